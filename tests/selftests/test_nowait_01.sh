#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# timeout: 240
#
# I/O that must not block its submitter (RWF_NOWAIT): a volume lets it wait, but not the submitter;
# only what the disk refuses is refused.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
requires fio
vol=/dev/mapper/vol0
size=$((16 << 20))

raw=$(make_disk 16)
dm_create disk0 "0 $(sectors "$raw") linear $raw 0"
format_cache /dev/mapper/disk0 --block-size 65536
open_cache cache0 /dev/mapper/disk0
make_image "$TEST_TMP/img" 16

# nowait RW FROM KIB: many I/Os at a time; FROM in KiB, too
nowait() {
	fio --name=nowait --filename=$vol --rw="$1" --offset="$2k" --size="$3k" --bs=16k --iodepth=16 \
		--ioengine=io_uring --direct=1 --nowait=1 --allow_file_create=0
}

cache_has() {
	[ "$(cache_status cache0 "$1")" -ge "$2" ]
}

# Misses of such reads wait for the agent like others.
misses() {
	start_agent -h "img=$TEST_TMP/img"
	attach vol0 img $size 1 read_only
	start nowait read 0 256 >/dev/null
	wait_until 20 cache_has waiting 4
	agent answer
	wait "$pid"
	cmp -n $((256 << 10)) $vol "$TEST_TMP/img"
}

# So do writes that find no slot.
no_slot() {
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	start nowait write 0 $((16 << 10)) >/dev/null
	wait_until 60 cache_has writes_waiting 1
	while kill -0 "$pid" 2>/dev/null; do
		agent push img >/dev/null
	done
	wait "$pid"
	agent push img >/dev/null
	cmp -n $size $vol "$TEST_TMP/img"
}

# A disk that would block is no disk that fails.
disk_says_again() {
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	dd if="$TEST_TMP/img" of=$vol bs=64k count=4 oflag=direct,dsync status=none
	dmsetup suspend --noflush --nolockfs disk0
	expect_error "Resource temporarily unavailable" nowait read 0 256
	expect_error "Resource temporarily unavailable" nowait write 0 256
	dmsetup resume disk0
	[ "$(cache_status cache0 bad)" = 0 ]
	nowait read 0 256 >/dev/null
	cmp -n $((256 << 10)) $vol "$TEST_TMP/img"
	agent push img >/dev/null
}

run_case "a miss" misses
run_case "a write that finds no slot" no_slot
run_case "a disk that would block" disk_says_again
finish
