#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# not on: 6.1
#
# Rules of the kernel that stand for ways to lose data, each broken once to see this test fail; the
# table in Documentation/design.rst says which test is for which rule.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

size=$((8 << 20))
vol=/dev/mapper/vol0

# setup [AGENT OPTION...]: a new cache on $disk, and one image; the disk's device can be exchanged.
# It is $ram, if that is set.
setup() {
	raw=${ram:-$(make_disk 128)}
	n=$(sectors "$raw")
	dm_create raw0 "0 $n linear $raw 0"
	disk=/dev/mapper/raw0
	format_cache "$disk"
	open_cache cache0 "$disk"
	rm -f "$TEST_TMP"/img.*
	make_image "$TEST_TMP/img" 8
	make_image "$TEST_TMP/other" 8 2
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	cleanup_fn stop_agent
	start_agent "$@" "img=$TEST_TMP/img" "other=$TEST_TMP/other"
}

# Sectors count when their write has completed, not when it was mapped.
valid_bits() {
	modprobe -q dm-flakey || dmsetup targets | grep -q flakey || exit 4
	setup
	attach vol0 img $size
	same
	put 100 8 3
	exchange "0 $n flakey $raw 0 0 600 1 error_writes"
	expect_error "Input/output" dd if="$TEST_TMP/other" of=$vol bs=4k count=2 seek=12 oflag=direct \
		conv=notrunc
	expect_error "Input/output" dd if="$TEST_TMP/other" of=$vol bs=4k count=1 seek=1500 oflag=direct \
		conv=notrunc
	same
	exchange "0 $n linear $raw 0"
}

volume_ids() {
	local last=0 id i
	setup
	for i in 1 2 3; do
		attach vol0 img $size
		id=$(field 1)
		[ "$id" -gt "$last" ]
		last=$id
		put 5 5 "$i"
		agent push img
		detach vol0
		agent release img
		if [ "$i" = 2 ]; then
			stop_agent
			dmsetup remove cache0
			dmsetup create cache0 --table "0 $n dedup-cache $disk"
			start_agent "img=$TEST_TMP/img" "other=$TEST_TMP/other"
		fi
	done
}

drop_all() {
	agent dropall
	wait_until 10 none_freeing
	echo 3 >/proc/sys/vm/drop_caches
}

used_again() {
	agent clean | cut -d' ' -f1 | sort | comm -12 - <(sort "$TEST_TMP/slots") | grep -q .
}

# The agent names slots by sequences of their earlier lives.
stale_sequences() {
	local before
	setup -m
	attach vol0 img $size 1 read_only
	attach vol1 other $size 1 read_only
	same
	agent clean | cut -d' ' -f1 >"$TEST_TMP/slots"
	drop_all
	until used_again; do
		drop_all
		cmp "$TEST_TMP/other" /dev/mapper/vol1
	done
	before=$(cache_status cache0 stale)
	same
	[ "$(cache_status cache0 stale)" -gt "$before" ]
}

none_freeing() {
	[ "$(cache_status cache0 freeing)" = 0 ]
}

# A read waits for a block's base; a COMMIT gives the block a new one; then comes the old answer.
late_after_commit() {
	setup -h -k
	attach vol0 img $size
	put 1100 7 3			# in block 2
	start dd if=$vol of="$TEST_TMP/out" bs=256k skip=2 count=1 iflag=direct status=none
	local reader=$pid
	wait_until 10 waiting 1
	agent push img
	wait_until 10 waiting 2
	agent answer
	wait "$reader"
	cmp -i $((2 << 18)):0 -n $((1 << 18)) "$TEST_TMP/ref" "$TEST_TMP/out"
	same
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
}

# A read begins to wait for its block while a COMMIT goes through the map, many leaves long, in the
# last of which it gives the block a base: no answer fits that wait any more.
miss_in_commit() {
	local slot seq reader i last=$(((64 << 14) - 1))
	setup -h
	truncate -s $((256 << 30)) "$TEST_TMP/img"
	attach vol0 img $((256 << 30))
	agent warm other 0 1
	read -r slot seq < <(agent clean)
	for ((i = 0; i < 64; i++)); do
		dd if="$TEST_TMP/other" of=$vol bs=256k seek=$((i << 14)) count=1 oflag=direct \
			conv=notrunc status=none
	done
	dd if="$TEST_TMP/other" of=$vol bs=512 seek=$((last << 9)) count=1 oflag=direct conv=notrunc \
		status=none
	start dd if=$vol of="$TEST_TMP/out" bs=256k skip=$last count=1 iflag=direct status=none
	reader=$pid
	cleanup_fn dmsetup message vol0 0 fail_parked
	wait_until 10 waiting 1
	agent merge img
	[ -z "$(agent replace img 1 $last "$slot" "$seq")" ]
	agent commit img 1 2
	wait_until 20 test -s "$TEST_TMP/out"
	wait "$reader"
	cmp -n $((1 << 18)) "$TEST_TMP/other" "$TEST_TMP/out"
}

# What a COMMIT names as a new base is dropped, and its slot used again, before the COMMIT.
stale_replacement() {
	local slot seq
	setup
	attach vol0 img $size
	attach vol1 other $size 1 read_only
	dd if=$vol of=/dev/null bs=256k count=1 iflag=direct status=none
	read -r slot seq < <(agent clean)
	put 1100 7 3
	agent merge img
	agent replace img 1 2 "$slot" $((seq + 1)) | grep -q "block 2: -116"
	[ -z "$(agent replace img 1 2 "$slot" "$seq")" ]
	agent drop "$slot" "$seq"
	wait_until 10 none_freeing
	cmp "$TEST_TMP/other" /dev/mapper/vol1
	agent commit img 1 2
	same
}

# A COMMIT that was begun counts for nothing when its volume was given up.
staged_and_given_up() {
	setup
	attach vol0 img $size
	put 1024 512 3			# block 2 as a whole
	put 2560 512 4			# block 5
	agent stage img
	dmsetup remove vol0
	dmsetup create vol0 --notable
	dmsetup load vol0 --table "0 $((size / 512)) dedup $cache img"
	agent fence img
	agent release img discard
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	dmsetup resume vol0
	put 4096 512 5
	put 4608 512 6
	put 1030 5 7			# the same blocks, in part
	put 2570 5 8
	agent merge img
	agent commit img 1 2
	same
}

# A FENCE ends with the grant that it was for.
fence_ends() {
	setup
	attach vol0 img $size
	put 5 5 1
	agent push img
	agent fence img
	expect_error . dd if=/dev/zero of=$vol bs=4k count=1 oflag=direct
	detach vol0
	agent set img epoch 2
	agent set img cut 0
	attach vol0 img $size
	put 50 5 2
	same
}

# An agent with one thread may CUT while an OPEN of the same volume waits for it; and what it
# COMMITs meanwhile is not undone by an answer from before.
cut_in_open() {
	setup
	attach vol0 img $size
	put 5 5 1
	detach vol0
	agent hold-open
	start dmsetup create vol0 --table "0 $((size / 512)) dedup $cache img"
	local opener=$pid
	cleanup_fn detach vol0
	wait_until 10 waiting 1
	[ "$(timeout 100 channel_agent ctl "$socket" cut img)" = 1 ]
	timeout 100 channel_agent ctl "$socket" push img
	agent answer
	wait "$opener"
	same
	put 6 5 2
	agent push img
	same
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
}

# Two images had one name here: without an agent the name says nothing, the UUID does.
one_name() {
	local u
	setup
	attach vol0 img $size
	put 5 5 1
	detach vol0
	agent set img uuid 5
	attach vol0 img $size
	detach vol0
	[ "$(agent volumes | wc -l)" = 2 ]
	stop_agent
	mark_log
	expect_error . dmsetup create vol0 --table "0 $((size / 512)) dedup $cache img 2 agent_timeout 1"
	expect_log "several records are of images named img"
	# Its first bytes are the name's.
	u=696d6700-0000-0000-0000-000000000001
	dmsetup create vol0 --table "0 $((size / 512)) dedup $cache $u"
	dd if=$vol bs=512 skip=5 count=5 iflag=direct status=none |
		cmp -n 2560 -i 0:2560 - "$TEST_TMP/ref"
	dmsetup remove vol0
}

log_has() {
	[ -e "$TEST_TMP/log" ] && [ "$(wc -l <"$TEST_TMP/log")" -ge "$1" ]
}

# Each cut holds what was acknowledged before it was asked for, and no write without those before it.
cuts_are_consistent() {
	local i count=100000 writer
	setup
	cp "$TEST_TMP/img" "$TEST_TMP/base"
	attach vol0 img $size
	start stamp write $vol "$TEST_TMP/log" 21 $count 1
	writer=$pid
	for ((i = 0; i < 6; i++)); do
		wait_until 60 log_has $((i * 20 + 20))
		cp "$TEST_TMP/log" "$TEST_TMP/log.before"
		agent push img
		stamp verify "$TEST_TMP/img" "$TEST_TMP/log.before" 21 $count "$TEST_TMP/base" $count
		stamp prefix "$TEST_TMP/img" 21 $count "$TEST_TMP/base"
	done
	stop "$writer"
}

# write_cache NAME: what the block layer thinks of a dm device's
write_cache() {
	cat "/sys/block/$(dmsetup info -c --noheadings -o blkdevname "$1")/queue/write_cache"
}

# A disk that needs no flushes, as far as the block layer knows: our metadata does. (A disk whose
# cache was turned off by sysfs is none: devices on it inherit the feature.)
no_volatile_cache() {
	local writer before ram=/dev/ram0
	modprobe -q brd rd_nr=1 rd_size=131072 && [ -b $ram ] || exit 4
	cleanup_fn modprobe -r brd
	setup
	[ "$(write_cache raw0)" = "write through" ]
	cp "$TEST_TMP/img" "$TEST_TMP/base"
	rm -f "$TEST_TMP/log"
	attach vol0 img $size
	[ "$(write_cache vol0)" = "write back" ]
	before=$(volume_status vol0 flush_commits)
	dd if="$TEST_TMP/other" of=$vol bs=4k count=1 conv=fsync,notrunc status=none
	[ "$(volume_status vol0 flush_commits)" -gt "$before" ]
	cp "$TEST_TMP/other" "$TEST_TMP/base"
	dd if="$TEST_TMP/img" of="$TEST_TMP/base" bs=4k seek=1 skip=1 conv=notrunc status=none
	start stamp write $vol "$TEST_TMP/log" 22 100000 1
	writer=$pid
	wait_until 60 log_has 50
	dmsetup suspend --noflush raw0
	dmsetup load raw0 --table "0 $n error"
	dmsetup resume raw0
	ended_badly "$writer"
	detach vol0
	stop_agent
	dmsetup remove cache0
	dmsetup suspend raw0
	dmsetup load raw0 --table "0 $n linear $raw 0"
	dmsetup resume raw0
	dmsetup create cache0 --table "0 $n dedup-cache $disk"
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	stamp verify $vol "$TEST_TMP/log" 22 100000 "$TEST_TMP/base"
}

# In blocks that have overlays: new sectors need a record, those that have one need none; then the write
# goes straight to a disk that needs no flushes. (A dd with dsync flushes as well.)
fua() {
	local i before after
	setup
	attach vol0 img $size
	rm -f "$TEST_TMP/log"
	for ((i = 0; i < 32; i++)); do
		put $((i * 512 + 511)) 1 3
	done
	dmsetup message cache0 0 commit
	before=$(volume_status vol0 flush_commits)
	stamp write $vol "$TEST_TMP/log" 5 1 1 fua
	[ "$(volume_status vol0 flush_commits)" -gt "$before" ]
	dmsetup message cache0 0 commit
	before=$(volume_status vol0 flush_commits)
	stamp write $vol "$TEST_TMP/log" 5 1 1 fua
	after=$(volume_status vol0 flush_commits)
	if [ "$1" = passes ]; then
		[ "$after" = "$before" ]
	else
		[ "$after" -gt "$before" ]
	fi
}

fua_waits() {
	fua waits
}

fua_passes() {
	local ram=/dev/ram0
	modprobe -q brd rd_nr=1 rd_size=131072 && [ -b $ram ] || exit 4
	cleanup_fn modprobe -r brd
	fua passes
}

run_case "sectors are valid when their write has completed" valid_bits
run_case "ids of volumes are never used again" volume_ids
run_case "stale sequences" stale_sequences
run_case "a late answer after a commit" late_after_commit
run_case "a read that misses in the midst of a commit" miss_in_commit
run_case "a stale replacement counts as nothing" stale_replacement
run_case "replacements that were staged go with the volume" staged_and_given_up
run_case "a fence ends with its grant" fence_ends
run_case "CUT and COMMIT while an OPEN waits" cut_in_open
run_case "one name of two images" one_name
run_case "cuts hold what was acknowledged" cuts_are_consistent
run_case "a FUA write waits for the record of its sectors" fua_waits
run_case "and no longer where the disk needs no flushes" fua_passes
run_case "flushes on a disk without a volatile cache" no_volatile_cache
finish
