#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# A cache far smaller than the working set, and one that is full of dirty data.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
requires fio

make_image "$TEST_TMP/img" 48
size=$((48 << 20))

setup() {
	disk=$(make_disk 40)
	format_cache "$disk" --block-size 65536
	open_cache cache0 "$disk" "$@"
	rm -f "$TEST_TMP/img.head"
	start_agent "img=$TEST_TMP/img"
	cleanup_fn detach vol0
}

thrash() {
	setup
	attach vol0 img $size 1 read_only
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	[ "$(cache_status cache0 evictions)" -gt 200 ]
	start cmp "$TEST_TMP/img" /dev/mapper/vol0
	local a=$pid
	start cmp -i $((24 << 20)) "$TEST_TMP/img" /dev/mapper/vol0
	cmp -i $((24 << 20)) "$TEST_TMP/img" /dev/mapper/vol0
	wait "$a" "$pid"
}

full_of_dirty() {
	setup
	attach vol0 img $size
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	start fio --name=w --filename=/dev/mapper/vol0 --rw=randwrite --bs=64k --size=48m --direct=1 \
		--ioengine=psync --randseed=3 --refill_buffers --buffer_pattern=0x77 --output=/dev/null
	local writer=$pid
	wait_until 60 writers_wait
	kill -0 "$writer"
	# The reserve lets the push go on, and reads of what is not here.
	local i
	for ((i = 0; i < 20; i++)); do
		kill -0 "$writer" 2>/dev/null || break
		agent push img
	done
	wait "$writer"
	agent push img
	fio --name=w --filename="$TEST_TMP/ref" --rw=randwrite --bs=64k --size=48m --ioengine=psync \
		--randseed=3 --refill_buffers --buffer_pattern=0x77 --output=/dev/null
	cmp "$TEST_TMP/ref" /dev/mapper/vol0
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
}

writers_wait() {
	[ "$(cache_status cache0 space_waits)" != 0 ]
}

no_space_timeout() {
	setup 2 dirty_timeout 1
	stop_agent
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	expect_error "No space" dd if=/dev/zero of=/dev/mapper/vol0 bs=64k oflag=direct
}

run_case "thrash" thrash
run_case "a cache full of dirty data waits for the push" full_of_dirty
run_case "with dirty_timeout it is ENOSPC" no_space_timeout
finish
