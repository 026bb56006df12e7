#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# The disk goes away in mid-load, everything is torn down, and what was flushed must be there.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

make_image "$TEST_TMP/img" 8
size=$((8 << 20))

# The cache stands on a linear device, which becomes an error device: a crash without a close.
open_all() {
	dmsetup create raw --table "0 $n linear $disk 0"
	dmsetup create cache0 --table "0 $n dedup-cache /dev/mapper/raw"
	cache=/dev/mapper/cache0
	uuid=$(cache_status cache0 uuid)
	start_agent "img=$TEST_TMP/img"
	dmsetup create vol0 --table "0 $((size / 512)) dedup $cache img"
}

tear_down() {
	dmsetup suspend --noflush raw
	dmsetup load raw --table "0 $n error"
	dmsetup resume raw
}

close_all() {
	stop_agent
	detach vol0
	dm_remove cache0
	dm_remove raw
}

crash() {
	local mode=$1 pushes=$2 seed=$3 count=20000 writer
	disk=$(make_disk 256)
	n=$(sectors "$disk")
	format_cache "$disk"
	cp "$TEST_TMP/img" "$TEST_TMP/base"
	rm -f "$TEST_TMP/img.head"
	cleanup_fn close_all
	open_all
	start stamp write /dev/mapper/vol0 "$TEST_TMP/log" "$seed" $count 4 "$mode"
	writer=$pid
	for ((i = 0; i < pushes; i++)); do
		wait_until 30 log_has $((i * 12 + 12))
		agent push img
	done
	wait_until 60 log_has $((pushes * 12 + 40))
	tear_down
	! wait "$writer"
	close_all
	open_all
	stamp verify /dev/mapper/vol0 "$TEST_TMP/log" "$seed" $count "$TEST_TMP/base"
	agent push img
	stamp verify /dev/mapper/vol0 "$TEST_TMP/log" "$seed" $count "$TEST_TMP/base"
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	rm -f "$TEST_TMP/log" "$TEST_TMP/img.head"
	cp "$TEST_TMP/base" "$TEST_TMP/img"
}

log_has() {
	[ -e "$TEST_TMP/log" ] && [ "$(wc -l <"$TEST_TMP/log")" -ge "$1" ]
}

crash_flush() { crash flush 0 11; }
crash_fua() { crash fua 0 12; }
crash_pushes() { crash flush 5 13; }

void_count() {
	vmdedup cache check --json "$disk" | sed -n 's/.*"void_dirty": \([0-9]*\).*/\1/p'
}

has_ended() {
	! kill -0 "$1" 2>/dev/null
}

is_all_back() {
	[ "$(cache_status cache0 freeing)" = 0 ]
}

# A crash in a COMMIT has left 96 of 128 slots void. Then only a volume that is dirty is opened, as
# its grant needs no commit; its reads need more slots than are free.
void_slots_come_back() {
	make_image "$TEST_TMP/a" 4 2
	make_image "$TEST_TMP/b" 4 3
	disk=$(make_disk 10)
	format_cache "$disk" --journal 64K --block-size 32K
	open_cache cache0 "$disk"
	start_agent "a=$TEST_TMP/a" "b=$TEST_TMP/b"
	attach vol0 a $((4 << 20))
	attach vol1 b $((4 << 20))
	dd if=/dev/urandom of=/dev/mapper/vol0 bs=32K count=96 oflag=direct status=none
	dd if=/dev/urandom of=/dev/mapper/vol1 bs=32K count=1 oflag=direct status=none
	detach vol0
	detach vol1
	stop_agent
	dm_remove cache0
	void_slots "$disk" a
	[ "$(void_count)" = 96 ]

	open_cache cache0 "$disk"
	start_agent "a=$TEST_TMP/a" "b=$TEST_TMP/b"
	attach vol1 b $((4 << 20))
	start cmp -i 32768 "$TEST_TMP/b" /dev/mapper/vol1
	wait_until 60 has_ended "$pid"
	wait "$pid"
	wait_until 10 is_all_back
}

run_case "flushed writes survive" crash_flush
run_case "FUA writes survive" crash_fua
run_case "with cuts and commits in between" crash_pushes
run_case "void slots come back after a crash" void_slots_come_back
finish
