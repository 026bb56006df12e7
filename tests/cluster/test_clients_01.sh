#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
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

# all_at_once WHAT MIB: its memory grows by less than MIB MiB.
all_at_once() {
	local before out
	before=$(peak_mib)
	out=$(clients "$1" "$port" "$clients" $blocks)
	echo "# $out; the data server's memory: $before MiB before, $(peak_mib) MiB at most"
	[ "$(jq .whole <<<"$out")" = "$clients" ]
	[ "$(peak_mib)" -lt $((before + $2)) ]
}

# Together they want, or send, a GiB. What is on its way out is 256 MiB at most, hot blocks 64. Of what
# comes in, each connection's first message waits in memory, whatever else waits at the senders.
run_case "memory is bounded under many readers" all_at_once get $((256 + 64 + 64))
run_case "memory is bounded under many writers" all_at_once put $((clients * blocks / 4 + 64))
finish
