#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 240
#
# A cut is a point in time: it holds what was acknowledged before it was asked for, and nothing
# that was submitted after an acknowledgement that it lacks. tests/crash/run --windows runs this with
# a module that is slow wherever a CUT may come between.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

cuts=${CUTS-15}

points_in_time() {
	local disk
	disk=$(make_disk 64)
	format_cache "$disk" --block-size 64K
	open_cache cache0 "$disk"
	truncate -s 1M "$TEST_TMP/img"
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((1 << 20))
	cut_windows /dev/mapper/vol0 "$TEST_TMP/img" "$cuts" channel_agent ctl "$socket" push img
}

run_case "each of $cuts cuts is a point in time" points_in_time
finish
