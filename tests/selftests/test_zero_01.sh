#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
#
# Discard and write-zeroes: by record for whole blocks, by writing for parts, over restarts, through
# a push, and beyond the bound on such records.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

make_image "$TEST_TMP/base" 16
size=$((16 << 20))
vol=/dev/mapper/vol0

setup() {
	disk=$(make_disk 128)
	format_cache "$disk"
	open_cache cache0 "$disk"
	cp "$TEST_TMP/base" "$TEST_TMP/img"
	cp "$TEST_TMP/base" "$TEST_TMP/ref"
	rm -f "$TEST_TMP/img.head"
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
}

zero() {
	blkdiscard -f -z -o "$1" -l "$2" $vol
	dd if=/dev/zero of="$TEST_TMP/ref" bs=512 seek=$(($1 / 512)) count=$(($2 / 512)) \
		conv=notrunc status=none
}

same() {
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$TEST_TMP/ref" $vol
}

reopen() {
	detach vol0
	stop_agent
	dmsetup remove cache0
	dmsetup create cache0 --table "0 $(sectors "$disk") dedup-cache $disk"
	start_agent "img=$TEST_TMP/img"
	dmsetup create vol0 --table "0 $((size / 512)) dedup $cache img"
}

write_zeroes() {
	setup
	zero $((1 << 20)) $((2 << 20))
	[ "$(cache_status cache0 zero)" = 8 ]
	zero 512 1024				# parts of blocks
	zero $(((5 << 20) + 4096)) $((1 << 20))
	dd if="$TEST_TMP/base" of=$vol bs=4k seek=300 count=3 oflag=direct conv=notrunc status=none
	dd if="$TEST_TMP/base" of="$TEST_TMP/ref" bs=4k seek=300 count=3 conv=notrunc status=none
	zero $(((1 << 20) + (256 << 10))) $((256 << 10))	# over an open overlay
	same
	reopen
	same
	agent cut img
	zero $((1 << 20)) $((1 << 20))
	same
	reopen
	same
	agent push img
	agent push img
	same
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
	[ "$(cache_status cache0 dirty)" = 0 ]
	[ "$(cache_status cache0 zero)" = 0 ]
}

# What was discarded may read as before or as zeros, block by block; all else is untouched.
discard() {
	setup
	blkdiscard -f -o 4096 -l $((10 << 20)) $vol
	[ "$(cache_status cache0 zero)" -gt 20 ]
	cmp -n 4096 "$TEST_TMP/ref" $vol
	cmp -n $((256 << 10)) -i $((2 << 20)):0 $vol /dev/zero
	cmp -i $(((10 << 20) + 4096)) "$TEST_TMP/ref" $vol
	blkdiscard -f $vol
	blkdiscard -f $vol
	[ "$(cache_status cache0 zero)" -le "$(($(cache_status cache0 slots) / 16))" ]
	reopen
	cmp -n $((256 << 10)) -i $((2 << 20)):0 $vol /dev/zero
}

# A read that waits for the block that is made zero needs no answer any more.
zero_ends_a_miss() {
	setup
	detach vol0
	stop_agent
	start_agent -h "img=$TEST_TMP/img"
	attach vol0 img $size
	# (Direct: zeroing waits for pages that are being read.)
	start dd if=$vol of="$TEST_TMP/out" bs=256k count=1 iflag=direct status=none
	wait_until 10 agent_waits
	# (-f: else it looks for a file system first, and waits.)
	blkdiscard -f -z -o 0 -l $((256 << 10)) $vol
	wait "$pid"
	cmp -n $((256 << 10)) "$TEST_TMP/out" /dev/zero
	agent answer
	cmp -n $((256 << 10)) $vol /dev/zero
}

agent_waits() {
	[ "$(agent waiting)" != 0 ]
}

run_case "write-zeroes" write_zeroes
run_case "discard" discard
run_case "zeroing ends a miss" zero_ends_a_miss
finish
