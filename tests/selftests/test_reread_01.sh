#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# not on: 6.1
#
# A disk that cannot read some of its slots. What is clean is fetched again.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
vol=/dev/mapper/vol0
block=65536

make_image "$TEST_TMP/seed" 1

# A formatted disk under a linear target, so that it can be made to fail.
new_cache() {
	raw=$(make_disk 64)
	size=$(sectors "$raw")
	dm_create disk0 "0 $size linear $raw 0"
	format_cache /dev/mapper/disk0 --block-size $block
	find_data_start /dev/mapper/disk0
	open_cache cache0 /dev/mapper/disk0
	cp "$TEST_TMP/seed" "$TEST_TMP/img"
	cp "$TEST_TMP/seed" "$TEST_TMP/ref"
	rm -f "$TEST_TMP/img.head"
	cleanup_fn stop_agent
	start_agent "$@" "img=$TEST_TMP/img"
	attach vol0 img $((1 << 20))
}

# bad_slots FROM [COUNT]: of these slots nothing can be read or written; without any, all is well
bad_slots() {
	if [ $# = 0 ]; then
		exchange "0 $size linear $raw 0" disk0
	else
		exchange "$(with_bad_slots "$raw" "$1" "${2-1}")" disk0
	fi
}

cache_says() {
	[ "$(cache_status cache0 "$1")" = "$2" ]
}

mode_is() {
	[ "$(dmsetup status cache0 | awk '{print $5}')" = "$1" ]
}

publishes() {
	cache_status cache0 publishes
}

# read_back BYTES: the volume and what it is compared with, in reads of that size
read_back() {
	dd if=$vol of="$TEST_TMP/out" bs="$1" iflag=direct status=none
	cmp "$TEST_TMP/out" "$TEST_TMP/ref"
}

# One slot, read alone, and in the midst of a read of many; others that map it get the block, too.
one_slot() {
	local first n bytes
	for bytes in 4096 512k; do
		new_cache
		read_back 512k
		n=$(publishes)
		first=$(clean_slots | head -n 1)
		start event_of_cache "$(dmsetup info -c --noheadings -o events cache0)"
		bad_slots $((first + 5))
		read_back $bytes
		wait "$pid"
		cache_says bad 1
		mode_is rw
		[ "$(publishes)" = $((n + 1)) ]
		! clean_slots | grep -qx $((first + 5))
		read_back $bytes
		[ "$(publishes)" = $((n + 1)) ]
		bad_slots
		# It is not used again.
		dmsetup message cache0 0 evict 1000
		wait_until 20 cache_says retired 1
		read_back 512k
		detach vol0
		stop_agent
		dmsetup remove --retry cache0
		dmsetup remove --retry disk0
	done
}

event_of_cache() {
	dmsetup wait cache0 "$1" >/dev/null
}

# Several at once, under sectors that were written: those are left alone.
under_overlays() {
	local first
	new_cache
	read_back 512k
	first=$(clean_slots | head -n 1)
	for i in 3 4 9 10 11; do
		dd if=/dev/zero of=$vol bs=512 seek=$((i * 128 + 7)) count=9 oflag=direct conv=notrunc \
			status=none
		dd if=/dev/zero of="$TEST_TMP/ref" bs=512 seek=$((i * 128 + 7)) count=9 conv=notrunc \
			status=none
	done
	bad_slots $((first + 2)) 3
	read_back 512k
	cache_says bad 3
	bad_slots
	read_back 4096
	agent push img
	cmp "$TEST_TMP/img" "$TEST_TMP/ref"
}

# Nobody else has what an overlay holds: an error, and no slot is lost to it.
overlay_itself() {
	local slot n
	new_cache
	read_back 512k
	n=$(publishes)
	dd if=/dev/zero of=$vol bs=512 seek=$((4 * 128 + 7)) count=9 oflag=direct,dsync conv=notrunc \
		status=none
	agent cut img >/dev/null
	slot=$(agent list img 1 | awk '$1 == 4 {print $2}')
	bad_slots "$slot"
	for i in 1 2 3; do
		expect_error "Input/output" dd if=$vol of=/dev/null bs=1M iflag=direct count=1
	done
	dd if=$vol of=/dev/null bs=64k iflag=direct skip=5 status=none
	cache_says bad 0
	[ "$(publishes)" = "$n" ]
	bad_slots
}

# Without an agent such a read waits for one, like every miss.
without_agent() {
	local first reader
	new_cache
	read_back 512k
	first=$(clean_slots | head -n 1)
	stop_agent
	bad_slots "$first" 2
	start read_back 512k
	reader=$pid
	wait_until 10 eval '[ "$(cache_status cache0 waiting)" != 0 ]'
	dmsetup suspend --noflush --nolockfs vol0
	cache_says waiting 0
	dmsetup resume vol0
	start_agent "img=$TEST_TMP/img"
	wait "$reader"
	bad_slots
}

# All of the disk: nothing is fetched, nothing is given up, and no slot is to blame.
whole_disk() {
	local n
	new_cache
	read_back 512k
	n=$(publishes)
	start event_of_cache "$(dmsetup info -c --noheadings -o events cache0)"
	exchange "0 $size error" disk0
	for i in 0 1 2 3; do
		expect_error "Input/output" dd if=$vol of=/dev/null bs=64k skip=$i count=1 iflag=direct
	done
	wait "$pid"
	mode_is failed
	cache_says bad 0
	[ "$(publishes)" = "$n" ]
	cache_says waiting 0
	detach vol0
	stop_agent
	dmsetup remove --retry cache0
}

# What one volume has given up is given up in all.
two_volumes() {
	local first
	cp "$TEST_TMP/seed" "$TEST_TMP/img2"
	rm -f "$TEST_TMP/img2.head"
	new_cache -m "img2=$TEST_TMP/img2"
	attach vol1 img2 $((1 << 20))
	read_back 512k
	cmp /dev/mapper/vol1 "$TEST_TMP/ref"
	[ "$(cache_status cache0 clean)" = 16 ]
	first=$(clean_slots | head -n 1)
	bad_slots $((first + 7))
	read_back 512k
	vol=/dev/mapper/vol1 read_back 512k
	cache_says bad 1
	bad_slots
	vol=/dev/mapper/vol1 read_back 4096
}

run_case "a slot that cannot be read is fetched again" one_slot
run_case "a slot of two volumes" two_volumes
run_case "slots under overlays" under_overlays
run_case "an overlay that cannot be read is an error" overlay_itself
run_case "without an agent the read waits" without_agent
run_case "a disk that is dead costs no slot and no fetch" whole_disk
finish
