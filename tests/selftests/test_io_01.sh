#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# The whole way: read misses, hits, writes into overlays, push, and all of it after the devices
# were removed and made again.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
requires fio

disk=$(make_disk 256)
format_cache "$disk"
open_cache cache0 "$disk"
make_image "$TEST_TMP/img" 16
start_agent "img=$TEST_TMP/img"
attach vol0 img $((16 << 20))
vol=/dev/mapper/vol0

reads_equal() {
	cmp "$TEST_TMP/img" "$vol"
	[ "$(cache_status cache0 clean)" = 64 ]
	local before after
	before=$(cache_status cache0 publishes)
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$TEST_TMP/img" "$vol"
	after=$(cache_status cache0 publishes)
	[ "$before" = "$after" ]
}

# The same writes go to a plain copy; then both must be equal.
writes_equal() {
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	local job=(--name=w --rw=randwrite --bsrange=512-200k --blockalign=512 --size=16m --io_size=8m
		   --ioengine=psync --randseed=7 --verify=0 --norandommap --refill_buffers --buffer_pattern=0x5a
		   --allow_file_create=0 --output=/dev/null)
	fio "${job[@]}" --filename="$TEST_TMP/ref"
	fio "${job[@]}" --filename="$vol" --direct=1
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$TEST_TMP/ref" "$vol"
}

reopen() {
	dmsetup remove vol0
	stop_agent
	dmsetup remove cache0
	dmsetup create cache0 --table "0 $(sectors "$disk") dedup-cache $disk"
	uuid=$(cache_status cache0 uuid)
	start_agent "img=$TEST_TMP/img"
	dmsetup create vol0 --table "0 32768 dedup $cache img"
}

survives() {
	reopen
	cmp "$TEST_TMP/ref" "$vol"
}

# (What a case starts ends with it.)
pushes() {
	reopen
	agent push img
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$TEST_TMP/ref" "$vol"
	[ "$(cache_status cache0 dirty)" = 0 ]
	reopen
	cmp "$TEST_TMP/ref" "$vol"
}

run_case "misses are fetched once, and then hit" reads_equal
run_case "writes of all sizes and alignments read back" writes_equal
run_case "dirty data survives removal of the devices" survives
run_case "a push empties the overlays and the head has the data" pushes
finish
