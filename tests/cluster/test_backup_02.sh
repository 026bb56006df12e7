#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 200
# A restored store gives shards to a data server that has left them since the backup, and knows nothing
# of the one that has them now.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

make_image "$images/a.raw" 24
data_conf='repair_rate = 1G'
start_fleet 2 --block-size 64K --replicas 2 --min-copies 1
backup=$TEST_TMP/backup

on_meta() {
	VMDEDUP_CONF=$store/meta.conf vmdedup cluster "$@"
}

has_dropped_all() {
	[ "$(told '.servers[] | select(.id == 1) | .blocks')" = 0 ]
}

moved_away() {
	vmdedup image import "$images/a.raw" a
	wait_until 30 all_current
	on_meta backup "$backup"
	data_config 3
	start_data 3
	wait_until 30 servers_are_up 3
	vmdedup cluster drain 1
	wait_until 60 has_dropped_all
	end_daemons "$meta_pid"
	rm "$store"/store/meta.sqlite*
	on_meta restore "$backup"
	start_meta
	wait_until 60 servers_are_up 3
}

# What the map says of server 1 is wrong; nothing is copied from there, or given up for it.
nothing_moves() {
	local before
	before=$(vmdedup cluster shards --json)
	expect_status 1 "stays suspended" vmdedup cluster resume-deletion
	[ "$(vmdedup cluster shards --json)" = "$before" ]
	vmdedup image verify a --against "$images/a.raw"
}

copied_again() {
	vmdedup cluster resume-deletion --yes --json | tee "$TEST_TMP/resumed"
	[ "$(jq .fewer_copies "$TEST_TMP/resumed")" -gt 0 ]
	[ "$(jq .shards_to_repair "$TEST_TMP/resumed")" -gt 0 ]
	[ "$(jq .scattered "$TEST_TMP/resumed")" = 0 ]
	wait_until 100 all_current
	vmdedup cluster check
	# Each of two of them is enough.
	kill_hard "${data_pids[2]}"
	vmdedup image verify a --against "$images/a.raw"
}

# In this shell: each goes on from where the one before has left the servers.
for name in moved_away nothing_moves copied_again; do
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
