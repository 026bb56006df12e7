#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# Meta server and data server as processes of their own; they die and come back.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

make_image "$images/a.raw" 96
start_fleet 1

round_trip() {
	vmdedup image import "$images/a.raw" a
	same_and_sparse a "$images/a.raw"
	vmdedup image verify a --against "$images/a.raw"
	[ "$(json .new_blocks vmdedup image import "$images/a.raw" b)" = 0 ]
}

restart() {
	end_daemons "$meta_pid" "${data_pids[@]}"
	start_meta
	start_data 1
	wait_until 30 servers_are_up 1
	vmdedup image verify a --against "$images/a.raw"
	[ "$(json .new_blocks vmdedup image import "$images/a.raw" c)" = 0 ]
}

# The meta server answers nobody for a while: a command waits for it.
meta_stops_for_a_moment() {
	kill -STOP "$meta_pid"
	start vmdedup image clone a waited
	local clone=$pid
	kill -CONT "$meta_pid"
	wait "$clone"
	vmdedup image show waited >/dev/null
}

open_pushes() {
	[ "$(json .pushes vmdedup cluster info)" = "$1" ]
}

# A data server is killed while an import waits for it, and comes back.
data_server_dies() {
	make_image "$images/d.raw" 96
	kill -STOP "${data_pids[1]}"
	start vmdedup image import "$images/d.raw" d
	local import=$pid
	wait_until 30 open_pushes 1
	kill_hard "${data_pids[1]}"
	start_data 1
	wait "$import"
	vmdedup image verify d --against "$images/d.raw"
}

meta_server_dies() {
	make_image "$images/e.raw" 96
	kill -STOP "${data_pids[1]}"
	start vmdedup image import "$images/e.raw" e
	local import=$pid
	wait_until 30 open_pushes 1
	kill_hard "$meta_pid"
	kill -CONT "${data_pids[1]}"
	start_meta
	wait "$import"
	wait_until 30 servers_are_up 1
	vmdedup image verify e --against "$images/e.raw"
}

import_dies() {
	make_image "$images/f.raw" 48
	kill -STOP "${data_pids[1]}"
	start vmdedup image import "$images/f.raw" f
	wait_until 30 open_pushes 1
	kill_hard "$pid"
	kill -CONT "${data_pids[1]}"
	vmdedup image import "$images/f.raw" f
	vmdedup image verify f --against "$images/f.raw"
}

# The index is made again from the lumps.
index_rebuilt() {
	kill "${data_pids[1]}"
	wait "${data_pids[1]}"
	[ -d "$store/data1/index" ]
	rm -rf "$store/data1/index"
	start_data 1
	wait_until 60 servers_are_up 1
	vmdedup image verify a --against "$images/a.raw"
	vmdedup image verify d --against "$images/d.raw"
	[ "$(json .new_blocks vmdedup image import "$images/a.raw" after-rebuild)" = 0 ]
}

# A disk is lost for good: verify says what is missing, and how much.
disk_lost() {
	local r=0
	kill "${data_pids[1]}"
	wait "${data_pids[1]}"
	rm -rf "$store/data1"/lumps "$store/data1"/index
	start_data 1
	wait_until 60 servers_are_up 1
	vmdedup image verify a --against "$images/a.raw" >"$TEST_TMP/out" 2>&1 || r=$?
	[ $r = 6 ] || fail "exit status $r: $(cat "$TEST_TMP/out")"
	grep -q "no data server has it" "$TEST_TMP/out"
	expect_status 3 "cannot be had: no data server has it" vmdedup image export a "$TEST_TMP/lost"
	[ ! -e "$TEST_TMP/lost" ]
}

# In this shell: servers that a case starts anew must outlive it.
for name in round_trip restart meta_stops_for_a_moment data_server_dies meta_server_dies import_dies \
	index_rebuilt disk_lost; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
