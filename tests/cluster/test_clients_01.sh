#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
#
# A thousand clients of one data server at once: all are served, and its memory stays within its bounds
# (Documentation/data.rst), whatever they ask for together.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"
PATH=$TESTS_BIN:$PATH
requires clients

clients=${TEST_CLIENTS:-1000} blocks=4
head -c 8M /dev/urandom >"$images/a.raw"
start_fleet 1
vmdedup image import "$images/a.raw" a >/dev/null
port=$(sed -n 's/^listen = //p' "$store/data1.conf")

peak_mib() {
	awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/${data_pids[1]}/status"
}

# all_at_once WHAT MIB: its memory is less than MIB MiB above what it was at first.
before=$(peak_mib)
all_at_once() {
	local out
	out=$(clients "$1" "$port" "$clients" $blocks)
	echo "# $out; the data server's memory: $before MiB before, $(peak_mib) MiB at most"
	[ "$(jq .whole <<<"$out")" = "$clients" ]
	[ "$(peak_mib)" -lt $((before + $2)) ]
}

# Those that have all the room there is die before they use it: it is taken back, and others write.
after_dead_ones() {
	local holder
	coproc HOLDER { exec clients hold "$port" 256 $blocks; }
	holder=$HOLDER_PID
	read -r -t 120 <&"${HOLDER[0]}"
	kill -9 "$holder"
	wait "$holder" 2>/dev/null || [ $? = 137 ]
	all_at_once put 512
}

# Together they want, or send, a GiB. What is on its way out is 256 MiB at most, hot blocks 64. What is on its
# way in is as much, and up to half of that again which malloc() does not give back at once: the others wait
# at their senders.
run_case "memory is bounded under many readers" all_at_once get $((256 + 64 + 64))
run_case "memory is bounded under many writers" all_at_once put 512
run_case "room of dead writers is given to others" after_dead_ones
finish
