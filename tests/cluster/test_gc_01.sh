#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# What no image names goes from meta and data servers, while others import exactly that.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

make_image "$images/a.raw" 48
head -c 16M "$images/a.raw" >"$images/part.raw"
start_fleet 2

stored() {
	told '[.servers[].blocks] | add'
}

collects() {
	local part
	vmdedup image import "$images/part.raw" part
	part=$(stored)
	vmdedup image import "$images/a.raw" a
	[ "$(stored)" -gt "$part" ]
	vmdedup image rm a
	vmdedup cluster gc
	[ "$(stored)" = "$part" ]
	vmdedup image verify part --against "$images/part.raw"
	vmdedup cluster check
}

# At once after a collection: the data servers have not heard of the new epochs yet.
import_after_gc() {
	local i
	for i in 1 2 3; do
		vmdedup image import "$images/a.raw" again
		vmdedup image verify again --against "$images/a.raw"
		vmdedup image rm again
		vmdedup cluster gc
	done
	vmdedup image import "$images/a.raw" again
	vmdedup cluster check
}

# Content that is removed and collected while others import it.
import_while_gc() {
	local i pids=() pid
	(
		while [ ! -e "$TEST_TMP/stop" ]; do
			vmdedup cluster gc --full || exit 1
		done
	) &
	local gc=$!
	for i in 1 2 3 4 5 6; do
		vmdedup image import "$images/a.raw" "x$i" &
		pids=($!)
		vmdedup image import "$images/a.raw" "y$i" &
		pids+=($!)
		for pid in "${pids[@]}"; do
			wait "$pid"
		done
		vmdedup image rm "x$i"
		vmdedup image verify "y$i" --against "$images/a.raw"
		vmdedup image rm "y$i"
		[ "$i" != 3 ] || vmdedup image rm again
	done
	touch "$TEST_TMP/stop"
	wait "$gc"
	vmdedup image verify part --against "$images/part.raw"
	vmdedup cluster check
}

# What an import that died has left is found by a full collection; in the end nothing is left.
nothing_is_left() {
	head -c 256M /dev/urandom >"$images/noise.raw"
	kill -STOP "${data_pids[2]}" # so that it does not end before it is killed
	start vmdedup image import "$images/noise.raw" dead
	wait_until 30 has_open_push
	kill_hard "$pid"
	kill -CONT "${data_pids[2]}"
	wait_until 30 servers_are_up 2
	vmdedup image rm part
	vmdedup cluster gc --full
	end_daemons "$meta_pid"
	start_meta
	vmdedup image import "$images/a.raw" alive
	vmdedup image verify alive --against "$images/a.raw"
	vmdedup image rm alive
	vmdedup cluster gc --full
	vmdedup cluster check
	[ "$(json .images vmdedup cluster info)" = 0 ]
}

has_open_push() {
	[ "$(json .pushes vmdedup cluster info)" != 0 ]
}

for name in collects import_after_gc import_while_gc nothing_is_left; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
