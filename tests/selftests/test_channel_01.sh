#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# The channel: one agent at a time, hostile calls, agents that die and come back.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
requires fio

disk=$(make_disk 256)
format_cache "$disk"
open_cache cache0 "$disk"
make_image "$TEST_TMP/img" 16
size=$((16 << 20))

second_agent() {
	start_agent "img=$TEST_TMP/img"
	expect_error "busy" timeout 30 channel_agent serve "$uuid:$cache" "$TEST_TMP/second" "img=$TEST_TMP/img"
	expect_error "denied|such file" su nobody -s /bin/sh -c "cat /dev/dm-dedup/$uuid"
}

hostile() {
	start_agent "img=$TEST_TMP/img"
	agent hostile
	attach vol0 img $size
	dd if="$TEST_TMP/img" of=/dev/mapper/vol0 bs=4k count=1 oflag=direct status=none
	agent hostile
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	agent push img
	dmsetup remove vol0
	agent release img
}

# Hits and writes go on without an agent, misses wait, another agent serves them.
agent_dies() {
	local vol=/dev/mapper/vol0 reader
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	cmp -n $((4 << 20)) "$TEST_TMP/img" $vol
	stop_agent
	echo 3 >/proc/sys/vm/drop_caches
	cmp -n $((4 << 20)) "$TEST_TMP/img" $vol
	dd if=/dev/zero of=$vol bs=4k count=64 seek=2048 oflag=direct,dsync conv=notrunc status=none
	start cmp -n $((8 << 20)) "$TEST_TMP/img" $vol
	reader=$pid
	wait_until 10 misses_wait
	kill -0 "$reader"
	start_agent -h "img=$TEST_TMP/img"
	wait_until 10 agent_waits
	# It dies with the FETCHes in its hands.
	stop_agent
	kill -0 "$reader"
	start_agent "img=$TEST_TMP/img"
	wait "$reader"
	agent push img
	cmp "$TEST_TMP/img" $vol
}

misses_wait() {
	[ "$(cache_status cache0 waiting)" != 0 ]
}

agent_waits() {
	[ "$(agent waiting)" != 0 ]
}

# An answer to the epoch before, and the same answers twice, change nothing.
late_answers() {
	local reader
	start_agent -h "img=$TEST_TMP/img"
	agent dropall
	attach vol0 img $size 1 read_only
	start cmp "$TEST_TMP/img" /dev/mapper/vol0
	reader=$pid
	wait_until 10 agent_waits
	agent hello
	wait_until 10 agent_waits
	agent hello
	wait_until 10 agent_waits
	agent answer
	wait "$reader"
}

failed_fetch() {
	start_agent -h "img=$TEST_TMP/img"
	agent dropall
	attach vol0 img $size 1 read_only
	start dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 skip=2500 iflag=direct status=none
	wait_until 10 agent_waits
	agent fail 5
	local r=0
	wait "$pid" || r=$?
	[ $r != 0 ]
	cmp "$TEST_TMP/img" /dev/mapper/vol0
}

# Without an agent the record is enough to open the volume; misses have a deadline here.
fetch_timeout() {
	start_agent "img=$TEST_TMP/img"
	agent dropall
	stop_agent
	attach vol0 img $size 3 read_only fetch_timeout 1
	expect_error . dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 skip=3500 iflag=direct
	detach vol0
	attach vol0 img $size 1 read_only
	start_agent "img=$TEST_TMP/img"
	cmp "$TEST_TMP/img" /dev/mapper/vol0
}

# By force the cache's table goes; the channel says so, and the volume keeps what it needs.
channel_goes() {
	start_agent "img=$TEST_TMP/img"
	local p=$pid
	attach vol0 img $size 1 read_only
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	dmsetup suspend --noflush cache0
	dmsetup reload cache0 --table "0 $(sectors "$disk") error"
	dmsetup resume cache0
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	expect_error . dmsetup create again --table "0 $(sectors "$disk") dedup-cache $disk"
	dmsetup remove vol0
	wait_until 10 gone "$p"
	! [ -e "/dev/dm-dedup/$uuid" ]
}

gone() {
	! kill -0 "$1" 2>/dev/null
}

run_case "a second agent is refused" second_agent
run_case "hostile calls are refused" hostile
run_case "agents die and I/O goes on" agent_dies
run_case "requests are sent again to another HELLO" late_answers
run_case "FAIL is an I/O error, and the next read asks again" failed_fetch
run_case "a volume opens without an agent, fetch_timeout ends misses" fetch_timeout
run_case "a cache that is torn away lives until its volumes have gone" channel_goes
finish
