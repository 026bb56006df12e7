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

run_case "noflush suspend takes back what waits" noflush
run_case "suspend waits, interruptibly" flush
run_case "fail_parked" fail_parked
run_case "remove --force without an agent" by_force
run_case "two caches" two_caches
finish
