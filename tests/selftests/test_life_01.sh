#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# The life of devices: other sizes, suspend and removal without an agent, and a cache disk that
# fails or goes away under them.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
vol=/dev/mapper/vol0

make_image "$TEST_TMP/seed" 6

# A formatted disk under a linear target, so that it can be made to fail.
new_cache() {
	raw=$(make_disk 64)
	size=$(sectors "$raw")
	dm_create disk0 "0 $size linear $raw 0"
	format_cache /dev/mapper/disk0 --block-size 65536
	find_data_start /dev/mapper/disk0
	open_cache cache0 /dev/mapper/disk0
	head -c 4M "$TEST_TMP/seed" >"$TEST_TMP/img"
	rm -f "$TEST_TMP/img.head"
}

table() {
	echo "0 $(($1 / 512)) dedup $cache img"
}

# write_both OFFSET COUNT: KiB, the same bytes to the volume and to what it is compared with
write_both() {
	dd if="$TEST_TMP/seed" of=$vol bs=1k skip=1111 seek="$1" count="$2" oflag=direct conv=fsync \
		status=none
	dd if="$TEST_TMP/seed" of="$TEST_TMP/ref" bs=1k skip=1111 seek="$1" count="$2" conv=notrunc \
		status=none
}

resize_to() {
	truncate -s "$1" "$TEST_TMP/img" "$TEST_TMP/ref"
	dmsetup reload vol0 --table "$(table "$1")"
	dmsetup suspend --noflush vol0
	dmsetup resume vol0
	[ "$(blockdev --getsize64 $vol)" = "$1" ]
	[ "$(volume_status vol0 size)" = "$1" ]
}

# A writer goes on while the volume grows, twice; a push, and opening it again, know the new size.
grow() {
	new_cache
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	: >"$TEST_TMP/ref"
	start stamp write $vol "$TEST_TMP/log" 5 600 8
	local writer=$pid
	wait_until 10 test -s "$TEST_TMP/log"
	resize_to $((4 << 20 | 12288))
	resize_to $((40 << 20))
	wait "$writer"
	[ "$(tail -n 1 "$TEST_TMP/log")" -eq 600 ]
	# What it wrote lies in the first 4 MiB; the new end is zeros.
	dm_create view "0 8192 linear $vol 0"
	stamp verify /dev/mapper/view "$TEST_TMP/log" 5 600 "$TEST_TMP/seed"
	dmsetup remove --retry view
	cmp -i $((4 << 20)) -n $((36 << 20)) $vol /dev/zero
	write_both $((30 << 10)) 100
	cmp -i $((30 << 20)) -n 102400 $vol "$TEST_TMP/ref"
	cp --sparse=always $vol "$TEST_TMP/now"
	agent push img
	cmp "$TEST_TMP/now" "$TEST_TMP/img"
	write_both $((36 << 10)) 8
	cp --sparse=always $vol "$TEST_TMP/now"
	# Dirty, far beyond the old end, and opened anew.
	dmsetup remove vol0
	stop_agent
	dmsetup remove --retry cache0
	dmsetup create cache0 --table "0 $size dedup-cache /dev/mapper/disk0"
	start_agent -z "img=$TEST_TMP/img"
	dmsetup create vol0 --table "$(table $((40 << 20)))"
	cmp $vol "$TEST_TMP/now"
}

# While it is closed, with and without dirty data; and what must be refused.
sizes_refused() {
	new_cache
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	mark_log
	truncate -s 3M "$TEST_TMP/img"
	expect_error . dmsetup reload vol0 --table "$(table $((3 << 20)))"
	expect_log "cannot become smaller"
	head -c 4M "$TEST_TMP/seed" >"$TEST_TMP/img"
	mark_log
	expect_error . dmsetup reload vol0 --table "$(table $((5 << 20)))"
	expect_log "the table has 10240 sectors, the image has 8192"
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	write_both 512 64
	dmsetup remove vol0
	# Dirty: larger it may become, smaller not.
	truncate -s 3M "$TEST_TMP/img"
	expect_error . dmsetup create vol0 --table "$(table $((3 << 20)))"
	head -c 4M "$TEST_TMP/seed" >"$TEST_TMP/img"
	truncate -s 5M "$TEST_TMP/img" "$TEST_TMP/ref"
	dmsetup create vol0 --table "$(table $((5 << 20)))"
	cmp $vol "$TEST_TMP/ref"
	# Clean and closed: any size, as after a rollback.
	agent push img
	dmsetup remove vol0
	truncate -s 2M "$TEST_TMP/img" "$TEST_TMP/ref"
	dmsetup create vol0 --table "$(table $((2 << 20)))"
	cmp $vol "$TEST_TMP/ref"
	write_both 100 10
	agent push img
	cmp "$TEST_TMP/img" "$TEST_TMP/ref"
	# No map of that size fits in the memory that is allowed.
	mark_log
	dmsetup reload cache0 --table "0 $size dedup-cache /dev/mapper/disk0 2 max_memory 16"
	dmsetup suspend cache0
	dmsetup resume cache0
	truncate -s 60T "$TEST_TMP/img"
	expect_error . dmsetup reload vol0 --table "$(table $((60 << 40)))"
	expect_log "a map takes [0-9]* KiB of memory, [0-9]* KiB are left of max_memory"
	[ "$(blockdev --getsize64 $vol)" = $((2 << 20)) ]
	truncate -s 2M "$TEST_TMP/img"
	cmp $vol "$TEST_TMP/ref"
}

# A table brings another size, and when it is resumed the agent has gone: no grant says the size.
size_without_agent() {
	new_cache
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	dmsetup remove vol0
	truncate -s 8M "$TEST_TMP/img"
	dmsetup create vol0 --notable
	dmsetup load vol0 --table "$(table $((8 << 20)))"
	stop_agent
	dmsetup resume vol0
	dd if="$TEST_TMP/seed" of=$vol bs=1M seek=7 count=1 oflag=direct conv=fsync status=none
	dmsetup remove vol0
	dmsetup remove --retry cache0
	dmsetup create cache0 --table "0 $size dedup-cache /dev/mapper/disk0"
	dmsetup create vol0 --table "$(table $((8 << 20)))"
	cmp -i $((7 << 20)):0 -n $((1 << 20)) $vol "$TEST_TMP/seed"
}

agent_waits() {
	[ "$(agent waiting)" != 0 ]
}

misses_wait() {
	[ "$(cache_status cache0 waiting)" != 0 ]
}

# The agent is dead and reads are parked: what can be done without it?
without_agent() {
	new_cache
	start_agent -h "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	dd if=/dev/zero of=$vol bs=64k count=4 oflag=direct,dsync status=none
	start dd if=$vol of=/dev/null bs=4k skip=512 count=1 iflag=direct status=none
	local reader=$pid
	wait_until 10 agent_waits
	stop_agent
	# It is in use. Without force nothing happens, and nothing hangs.
	expect_error "busy" dmsetup remove vol0
	expect_error "in use|busy" rmmod dm_dedup
	# Suspended and resumed with what waits taken back; writes go on.
	dmsetup suspend --noflush vol0
	[ "$(cache_status cache0 waiting)" = 0 ]
	dmsetup resume vol0
	wait_until 10 misses_wait
	dd if=/dev/zero of=$vol bs=64k seek=8 count=4 oflag=direct,dsync status=none
	dmsetup message vol0 0 fail_parked
	ended_badly "$reader"
	dmsetup remove --retry vol0
	# It opens again on its record; and goes by force, with what waits.
	dmsetup create vol0 --table "$(table $((4 << 20)))"
	start dd if=$vol of=/dev/null bs=4k skip=600 count=1 iflag=direct status=none
	reader=$pid
	wait_until 10 misses_wait
	dmsetup remove --force vol0 || :
	ended_badly "$reader"
	dmsetup remove --retry vol0 2>/dev/null || :
	expect_error . dmsetup info vol0
	dmsetup remove --retry cache0
}

event_of_cache() {
	dmsetup wait --noflush cache0 "$1" >/dev/null
}

mode() {
	dmsetup status --noflush cache0 | awk '{print $5}'
}

mode_is() {
	[ "$(mode)" = "$1" ]
}

load_disk0() {
	exchange "$1" disk0
}

# First the journal cannot be written, then all I/O fails. There are two events, and no process hangs.
disk_fails() {
	new_cache
	modprobe -q dm-flakey || dmsetup targets | grep -q flakey || exit 4
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	cmp -n $((1 << 20)) $vol "$TEST_TMP/ref"
	write_both 2048 64
	mode_is rw
	start event_of_cache 0
	local waiter=$pid
	load_disk0 "0 8192 flakey $raw 0 0 600 1 error_writes
8192 $((size - 8192)) linear $raw 8192"
	# Its data is written; that it is valid is not, and so it is refused.
	expect_error "Input/output|Read-only" \
		dd if=/dev/zero of=$vol bs=4k seek=700 count=1 oflag=direct,dsync
	wait "$waiter"
	wait_until 10 mode_is ro
	echo 3 >/proc/sys/vm/drop_caches
	cmp -n $((1 << 20)) $vol "$TEST_TMP/ref"
	cmp -i 2M -n 65536 $vol "$TEST_TMP/ref"
	# A block that is not here cannot be kept any more: an error, not a wait.
	expect_error "Input/output" dd if=$vol of=/dev/null bs=4k skip=900 count=1 iflag=direct
	stop_agent
	expect_error "Input/output" dd if=$vol of=/dev/null bs=4k skip=910 count=1 iflag=direct

	start event_of_cache "$(dmsetup info -c --noheadings -o events cache0)"
	waiter=$pid
	load_disk0 "0 $size error"
	expect_error "Input/output" dd if=$vol of=/dev/null bs=4k count=1 iflag=direct
	wait "$waiter"
	mode_is failed
	dmsetup remove --retry vol0
	dmsetup remove --retry cache0
	load_disk0 "0 $size linear $raw 0"
	dmsetup create cache0 --table "0 $size dedup-cache /dev/mapper/disk0"
	start_agent "img=$TEST_TMP/img"
	dmsetup create vol0 --table "$(table $((4 << 20)))"
	cmp $vol "$TEST_TMP/ref"
}

events() {
	dmsetup info -c --noheadings -o events cache0
}

# bad_disk FROM TO: writes to these sectors of the disk fail; reads go on
bad_disk() {
	local table="$1 $(($2 - $1)) flakey $raw $1 0 600 1 error_writes"
	[ "$1" = 0 ] || table="0 $1 linear $raw 0
$table"
	[ "$2" = "$size" ] || table="$table
$2 $((size - $2)) linear $raw $2"
	load_disk0 "$table"
}

setup_bad_disk() {
	modprobe -q dm-flakey || dmsetup targets | grep -q flakey || exit 4
	new_cache
	cleanup_fn stop_agent
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	write_both 2048 64
	mode_is rw
}

write_fails() {
	expect_error "Input/output" dd if=/dev/zero of=$vol bs=64k oflag=direct conv=notrunc \
		status=none "$@"
}

# A disk that can only be read: no record is due, as nothing got written, but it is noticed.
disk_takes_no_writes() {
	setup_bad_disk
	start event_of_cache "$(events)"
	local waiter=$pid
	bad_disk 0 "$size"
	write_fails seek=50 count=1
	wait "$waiter"
	wait_until 20 mode_is ro
	cmp -i 2M -n 65536 $vol "$TEST_TMP/ref"
	write_fails seek=32 count=1
	load_disk0 "0 $size linear $raw 0"
	dmsetup remove --retry vol0
	stop_agent
	dmsetup remove --retry cache0
	dmsetup create cache0 --table "0 $size dedup-cache /dev/mapper/disk0"
	start_agent "img=$TEST_TMP/img"
	dmsetup create vol0 --table "$(table $((4 << 20)))"
	cmp $vol "$TEST_TMP/ref"
}

# One flush of a guest fails, and the next one passes: what the disk has lost nobody knows.
flush_fails() {
	setup_bad_disk
	dmsetup message cache0 0 commit
	start event_of_cache "$(events)"
	local waiter=$pid
	bad_disk 0 "$size"
	expect_error "Input/output" dd if=/dev/null of=$vol conv=notrunc,fsync status=none
	load_disk0 "0 $size linear $raw 0"
	wait_until 20 mode_is ro
	wait "$waiter"
	[ "$(cache_status cache0 bad)" = 0 ]
	expect_error "Input/output|Read-only" \
		dd if=/dev/zero of=$vol bs=4k seek=700 count=1 oflag=direct,dsync
	expect_error . dmsetup message cache0 0 evict 10
	cmp -n 65536 -i 2M $vol "$TEST_TMP/ref"
	dmsetup remove --retry vol0
	stop_agent
	dmsetup remove --retry cache0
	# What was committed before is all there.
	dmsetup create cache0 --table "0 $size dedup-cache /dev/mapper/disk0"
	start_agent "img=$TEST_TMP/img"
	dmsetup create vol0 --table "$(table $((4 << 20)))"
	cmp $vol "$TEST_TMP/ref"
}

# Slots that cannot be written, on a disk whose journal can: they are used no more; others are. With
# more of them than the reserve has there are no more writes, but what is dirty can be pushed.
slots_fail() {
	setup_bad_disk
	agent push img
	start event_of_cache "$(events)"
	local waiter=$pid
	bad_disk $((data_start / 512)) $((size - 4096))
	write_fails seek=50 count=1
	wait "$waiter"
	wait_until 20 cache_says bad 1
	mode_is rw
	load_disk0 "0 $size linear $raw 0"
	# Its overlay is in the bad slot and can be written again; pushed, the slot is not free again.
	write_both 3200 64
	agent push img
	dmsetup message cache0 0 evict 1000
	wait_until 20 cache_says retired 1
	write_both 1024 128
	cmp $vol "$TEST_TMP/ref"
	cache_says bad 1
	mode_is rw
	agent dropall

	# A block that the agent brings is brought again, into another slot.
	bad_disk $((data_start / 512)) $((size - 4096))
	start cmp -i 3900K -n 4096 $vol "$TEST_TMP/ref"
	wait_until 20 more_bad 1
	load_disk0 "0 $size linear $raw 0"
	wait "$pid"
	mode_is rw

	bad_disk $((data_start / 512)) $((size - 4096))
	write_fails bs=1M seek=0 count=1
	write_fails bs=1M seek=2 count=1
	write_fails bs=1M seek=3 count=1
	write_fails bs=512K seek=3 count=1
	wait_until 20 mode_is ro
	expect_error "Input/output" dd if=$vol of=/dev/null bs=64k skip=0 count=1 iflag=direct
	expect_error "Input/output" \
		dd if=/dev/zero of=$vol bs=4k count=1 oflag=direct,dsync conv=notrunc
	cmp -i 1M -n 128K $vol "$TEST_TMP/ref"
	agent push img
	cmp -i 1M -n 128K "$TEST_TMP/img" "$TEST_TMP/ref"
	[ "$(cache_status cache0 dirty)" = 0 ]
	dmsetup remove --retry vol0
	stop_agent
	dmsetup remove --retry cache0
}

more_bad() {
	[ "$(cache_status cache0 bad)" -gt "$1" ]
}

cache_says() {
	[ "$(cache_status cache0 "$1")" = "$2" ]
}

# Parked reads and writes in flight when the disk goes, with an agent that never answers.
disk_gone_while_parked() {
	new_cache
	start_agent -h "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	start dd if=$vol of=/dev/null bs=4k skip=512 count=1 iflag=direct status=none
	local reader=$pid
	wait_until 10 agent_waits
	load_disk0 "0 $size error"
	expect_error "Input/output" dd if=/dev/zero of=$vol bs=4k count=1 oflag=direct
	wait_until 20 mode_is failed
	ended_badly "$reader"
	expect_error "Input/output" dd if=/dev/zero of=$vol bs=4k count=1 oflag=direct,dsync
	expect_error "Input/output" dd if=$vol of=/dev/null bs=4k count=1 iflag=direct
	[ "$(cache_status cache0 waiting)" = 0 ]
	dmsetup remove --retry vol0
	stop_agent
	dmsetup remove --retry cache0
}

# A real device that is deleted under the cache.
disk_unplugged() {
	local dev host n
	modprobe -q sd_mod || exit 4
	modprobe -q scsi_debug dev_size_mb=64 2>/dev/null || exit 4
	cleanup_fn rmmod scsi_debug
	host=$(echo /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*:*:*:*)
	wait_until 10 sh -c "ls $host/block/* >/dev/null 2>&1"
	dev=/dev/$(basename "$host"/block/*)
	wait_until 10 test -b "$dev"
	format_cache "$dev" --block-size 65536
	n=$(sectors "$dev")
	head -c 4M "$TEST_TMP/seed" >"$TEST_TMP/img"
	rm -f "$TEST_TMP/img.head"
	open_cache cache0 "$dev"
	start_agent -h "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	dd if=/dev/zero of=$vol bs=64k count=4 oflag=direct,dsync status=none
	start dd if=$vol of=/dev/null bs=4k skip=512 count=1 iflag=direct status=none
	local reader=$pid
	wait_until 10 agent_waits
	start event_of_cache 0
	local waiter=$pid
	echo 1 >"$host/delete"
	expect_error "Input/output|No such" dd if=/dev/zero of=$vol bs=4k count=1 oflag=direct,dsync
	wait "$waiter"
	wait_until 20 mode_is failed
	ended_badly "$reader"
	[ "$n" -gt 0 ]
	dmsetup remove --retry vol0
	stop_agent
	dmsetup remove --retry cache0
}

run_case "a volume grows while it is written to" grow
run_case "other sizes when it is closed, and refusals" sizes_refused
run_case "another size, and no agent" size_without_agent
run_case "without an agent: suspend, fail_parked, removal" without_agent
run_case "a disk that fails: ro, failed, two events" disk_fails
run_case "a disk that takes no writes" disk_takes_no_writes
run_case "a flush that fails" flush_fails
run_case "slots that cannot be written" slots_fail
run_case "a disk that is gone while reads are parked" disk_gone_while_parked
run_case "a disk that is unplugged" disk_unplugged
finish
