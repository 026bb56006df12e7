#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# not on: 6.1
#
# What a handover asks of the kernel: RELEASE of a volume that holds unpushed writes, in which a miss
# waits, or whose agent dies on the way; and blocks that come before their volume.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

size=$((8 << 20))	# 32 blocks
vol=/dev/mapper/vol0

# setup [AGENT OPTION...]: a cache on $disk, which can be exchanged, and one image
setup() {
	raw=$(make_disk 64)
	n=$(sectors "$raw")
	dm_create raw0 "0 $n linear $raw 0"
	disk=/dev/mapper/raw0
	format_cache "$disk"
	open_cache cache0 "$disk"
	rm -f "$TEST_TMP"/img*
	make_image "$TEST_TMP/img" 8
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	cleanup_fn stop_agent
	start_agent "$@" "img=$TEST_TMP/img"
}

nr_clean() {
	agent clean | wc -l
}

# From now on the cache's disk takes no write any more; then the cache is opened again.
crash() {
	exchange "0 $n error"
	reopen
}

reopen() {
	stop_agent
	detach vol0
	dmsetup remove --retry cache0
	exchange "0 $n linear $raw 0"
	dmsetup create cache0 --table "0 $n dedup-cache $disk"
	start_agent "img=$TEST_TMP/img"
}

# The image's next writer.
next_epoch() {
	agent set img epoch "$1"
	agent set img cut 0
}

refused() {
	expect_error "error 16 " agent release img "$@"
}

unpushed() {
	setup
	attach vol0 img $size
	put 5 700 1
	refused				# a device has it, and goes on
	put 900 9 2
	agent merge img >/dev/null	# the head has the cut, and its COMMIT was lost
	put 2000 3 3			# above the cut
	same
	detach vol0
	refused
	refused discard
	# Refused is as if it had not been asked for, also across a crash.
	crash
	refused
	attach vol0 img $size
	agent push img
	put 7 100 4
	put 2000 3 3
	detach vol0
	refused
	agent push img
	expect_error "error 116 " agent release img 99
	agent release img
	[ -z "$(agent volumes)" ]
	expect_error "error 2 " agent release img
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
	# It is durable when it answers.
	crash
	[ -z "$(agent volumes)" ]
	next_epoch 2
	attach vol0 img $size
	same
}

# What waits in the device ends, whatever has failed.
let_go() {
	! dmsetup info vol0 >/dev/null 2>&1 || dmsetup message vol0 0 fail_parked
}

parked() {
	local reader before
	setup -h
	attach vol0 img $size
	start dd if=$vol of="$TEST_TMP/out" bs=256k count=1 skip=3 iflag=direct status=none
	reader=$pid
	cleanup_fn let_go
	wait_until 10 waiting 1
	refused
	# A block without a volume is nobody's answer.
	agent warm img 3 1
	[ "$(cache_status cache0 waiting)" = 1 ]
	dmsetup suspend --noflush vol0
	refused
	dmsetup resume vol0
	wait_until 10 waiting 2
	agent answer
	wait "$reader"
	cmp -i $((3 << 18)):0 -n $((1 << 18)) "$TEST_TMP/ref" "$TEST_TMP/out"
	# The device goes while a miss waits; its answer comes when the volume has gone, too.
	agent hold
	start dd if=$vol of="$TEST_TMP/out" bs=256k count=1 skip=4 iflag=direct status=none
	reader=$pid
	cleanup_fn let_go
	wait_until 10 waiting 1
	dmsetup message vol0 0 fail_parked
	ended_badly "$reader"
	detach vol0
	agent release img
	before=$(nr_clean)
	agent answer
	[ "$(nr_clean)" = "$before" ]
	[ "$(cache_status cache0 filling)" = 0 ]
	next_epoch 2
	attach vol0 img $size
	same
}

gone() {
	! kill -0 "$agent_pid" 2>/dev/null
}

# dies STEP COMMAND...: the agent does, there; then comes the next.
dies() {
	echo "# $1"
	agent die "$1"
	shift
	expect_error "" agent "$@"
	wait_until 30 gone
	start_agent "img=$TEST_TMP/img"
}

agent_dies() {
	local before
	setup
	attach vol0 img $size
	put 5 700 1
	detach vol0
	dies commit push img
	[ "$(field 6)" = 0 ]
	dies give release img
	# The grant is there: it needs no agent.
	stop_agent
	attach vol0 img $size 2 agent_timeout 1
	detach vol0
	start_agent "img=$TEST_TMP/img"
	dies release release img
	[ -z "$(agent volumes)" ]
	crash
	[ -z "$(agent volumes)" ]
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
	before=$(nr_clean)
	dies warm warm img 0 32
	[ "$(nr_clean)" = $((before + 1)) ]
	[ "$(cache_status cache0 filling)" = 0 ]
	next_epoch 2
	attach vol0 img $size
	same
}

# A RELEASE that fails has not given the grant up.
disk_fails() {
	modprobe -q dm-flakey || dmsetup targets | grep -q flakey || exit 4
	setup
	attach vol0 img $size
	put 5 700 1
	agent push img
	detach vol0
	exchange "0 $n flakey $raw 0 0 600 1 error_writes"
	expect_error "error 5 " agent release img
	reopen
	[ "$(field 1)" ]
	attach vol0 img $size
	same
	detach vol0
	agent release img
}

# Two hosts: the other cache is warmed while the guest still writes here, and maps what it has where that
# is still right. Then the volume comes back.
moves() {
	local disk2 here there uuid1
	setup
	attach vol0 img $size
	put 5 700 1
	agent push img
	here=$socket uuid1=$uuid
	disk2=$(make_disk 64)
	format_cache "$disk2"
	open_cache cache1 "$disk2"
	start_agent -m "img=$TEST_TMP/img"
	there=$socket
	agent warm img 0 32
	[ "$(nr_clean)" = 32 ]
	[ -z "$(agent volumes)" ]
	socket=$here
	put 1024 2048 2			# blocks 2 to 5
	agent push img
	detach vol0
	agent release img
	socket=$there
	next_epoch 2
	agent set img version 2
	attach vol0 img $size
	same
	[ "$(volume_status vol0 mapped)" = 28 ]
	put 1030 5 3
	agent push img
	detach vol0
	agent release img
	socket=$here uuid=$uuid1 cache=/dev/mapper/cache0
	next_epoch 3
	agent set img version 3
	attach vol0 img $size
	same
	put 9 9 9
	agent push img
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
}

writes_wait() {
	[ "$(cache_status cache0 writes_waiting)" != 0 ]
}

# Blocks that come before their volume are in nobody's way: not in that of dirty data, a miss or a push.
full() {
	local writer dirty
	disk=$(make_disk 16)
	format_cache "$disk" --block-size 65536
	open_cache cache0 "$disk"
	truncate -s 16M "$TEST_TMP/img"
	make_image "$TEST_TMP/other" 8
	start_agent -z "img=$TEST_TMP/img" "other=$TEST_TMP/other"
	attach vol0 img $((16 << 20))
	start dd if=/dev/zero of=$vol bs=64k count=200 oflag=direct status=none
	writer=$pid
	wait_until 60 writes_wait
	dirty=$(cache_status cache0 dirty)
	agent warm other 0 128
	[ "$(cache_status cache0 dirty)" = "$dirty" ]
	attach vol1 other $size 1 read_only
	cmp "$TEST_TMP/other" /dev/mapper/vol1
	kill -0 "$writer"
	agent push img
	wait "$writer"
	agent push img
}

run_case "a volume with unpushed writes is not released" unpushed
run_case "nor one that is open, while a miss waits; its late answer finds nobody" parked
run_case "the agent dies" agent_dies
run_case "the cache's disk fails" disk_fails
run_case "there and back" moves
run_case "warming a cache that is full of dirty data" full
finish
