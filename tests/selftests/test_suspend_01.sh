#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# suspend and resume with misses parked, fail_parked, removal, and two caches.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

disk=$(make_disk 128)
format_cache "$disk"
open_cache cache0 "$disk"
make_image "$TEST_TMP/img" 4
size=$((4 << 20))

agent_waits() {
	[ "$(agent waiting)" != 0 ]
}

parked_read() {
	start_agent -h "img=$TEST_TMP/img"
	agent dropall
	attach vol0 img $size
	start cmp "$TEST_TMP/img" /dev/mapper/vol0
	reader=$pid
	wait_until 10 agent_waits
}

noflush() {
	parked_read
	dmsetup suspend --noflush vol0
	[ "$(cache_status cache0 waiting)" = 0 ]
	# Answers to what was taken back are stale.
	agent answer
	dmsetup reload vol0 --table "0 $((size / 512)) dedup $cache img 2 fetch_timeout 100"
	dmsetup resume vol0
	wait "$reader"
}

flush() {
	parked_read
	# Without noflush it waits for the misses, and can be interrupted.
	r=0
	timeout -s INT 2 dmsetup suspend --nolockfs vol0 || r=$?
	[ $r != 0 ]
	start dmsetup suspend --nolockfs vol0
	local suspender=$pid
	agent answer
	wait "$suspender"
	dmsetup resume vol0
	wait "$reader"
}

none_waits() {
	[ "$(cache_status cache1 waiting)" = 0 ]
}

some_wait() {
	[ "$(cache_status cache1 waiting)" = 8 ]
}

# While a read is on the disk and others are parked, a noflush suspend is interrupted: what it has taken
# back comes in again, and waits again. No reader sees an error.
noflush_interrupted() {
	local raw i suspender readers=()
	raw=$(make_disk 128)
	dm_create disk1 "0 $(sectors "$raw") linear $raw 0"
	format_cache /dev/mapper/disk1
	open_cache cache1 /dev/mapper/disk1
	start_agent "img=$TEST_TMP/img"
	attach vol1 img $size
	dd if=/dev/mapper/vol1 of="$TEST_TMP/out.0" bs=256k count=1 iflag=direct status=none
	agent hold
	dmsetup suspend --noflush --nolockfs disk1
	for i in 0 2 3 4 5 6 7 8 9; do
		start dd if=/dev/mapper/vol1 of="$TEST_TMP/out.$i" bs=256k skip=$i count=1 \
			iflag=direct status=none
		readers+=("$pid")
	done
	cleanup_fn dmsetup message vol1 0 fail_parked
	cleanup_fn dmsetup resume disk1
	for ((i = 0; i < 6; i++)); do
		wait_until 20 some_wait
		# So that its own worker comes before it where a kernel can be preempted.
		start chrt --idle 0 dmsetup suspend --noflush --nolockfs vol1
		suspender=$pid
		wait_until 20 none_waits
		kill "$suspender"
		ended_badly "$suspender"
	done
	wait_until 20 some_wait
	dmsetup resume disk1
	agent answer
	for i in "${readers[@]}"; do
		wait "$i"
	done
	for i in 0 2 3 4 5 6 7 8 9; do
		cmp -i $((i << 18)):0 -n $((1 << 18)) "$TEST_TMP/img" "$TEST_TMP/out.$i"
	done
}

# (Direct reads: the page cache would ask a second time for what failed.)
fail_parked() {
	start_agent -h "img=$TEST_TMP/img"
	agent dropall
	attach vol0 img $size
	start dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 iflag=direct
	reader=$pid
	wait_until 10 agent_waits
	dmsetup message vol0 0 fail_parked
	r=0
	wait "$reader" 2>/dev/null || r=$?
	[ $r != 0 ]
	agent answer
	cmp "$TEST_TMP/img" /dev/mapper/vol0
}

by_force() {
	parked_read
	stop_agent
	dmsetup remove -f vol0 2>/dev/null || :
	r=0
	wait "$reader" 2>/dev/null || r=$?
	[ $r != 0 ]
	dmsetup remove vol0 2>/dev/null || :
	! dmsetup info vol0 2>/dev/null
}

two_caches() {
	local disk2 uuid1=$uuid cache1=$cache
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size 1 read_only
	disk2=$(make_disk 128)
	format_cache "$disk2"
	open_cache cache1 "$disk2"
	[ "$uuid" != "$uuid1" ]
	cp "$TEST_TMP/img" "$TEST_TMP/img2"
	start_agent "img=$TEST_TMP/img2"
	attach vol1 img $size
	dd if=/dev/zero of=/dev/mapper/vol1 bs=1M count=1 oflag=direct status=none
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	cmp -i 1M "$TEST_TMP/img" /dev/mapper/vol1
	agent push img
	cmp "$TEST_TMP/img2" /dev/mapper/vol1
	! cmp -s "$TEST_TMP/img2" "$TEST_TMP/img"
}

# One cache is being closed on a disk that hangs: the volumes of another one come and go.
hanging_disk() {
	local raw remover
	raw=$(make_disk 128)
	dm_create disk1 "0 $(sectors "$raw") linear $raw 0"
	format_cache /dev/mapper/disk1
	dm_create cache1 "0 $(sectors "$raw") dedup-cache /dev/mapper/disk1"
	start_agent "img=$TEST_TMP/img"
	dmsetup suspend --noflush --nolockfs disk1
	start dmsetup remove cache1
	remover=$pid
	cleanup_fn dmsetup resume disk1
	cleanup_fn detach vol0
	wait_until 20 eval '! dmsetup info cache1 >/dev/null 2>&1'
	start attach vol0 img $size
	wait_until 60 ended "$pid"
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	start dmsetup remove vol0
	wait_until 60 ended "$pid"
	kill -0 "$remover"
	dmsetup resume disk1
	wait "$remover"
}

ended() {
	! kill -0 "$1" 2>/dev/null
}

run_case "noflush suspend takes back what waits" noflush
run_case "suspend waits, interruptibly" flush
run_case "a noflush suspend that is interrupted" noflush_interrupted
run_case "fail_parked" fail_parked
run_case "remove --force without an agent" by_force
run_case "two caches" two_caches
run_case "a disk that hangs while its cache is closed" hanging_disk
finish
