#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# Bounds: a cache full of dirty data, memory for overlays and maps that runs out, deadlines, and
# evictions under a load that is verified.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
vol=/dev/mapper/vol0

# new_cache MIB BLOCK IMAGE-MIB [TABLE OPTION...]
new_cache() {
	disk=$(make_disk "$1")
	format_cache "$disk" --block-size "$2"
	bytes=$(($3 << 20))
	shift 3
	open_cache cache0 "$disk" "$@"
	rm -f "$TEST_TMP/img.head"
	truncate -s 0 "$TEST_TMP/img"
	truncate -s "$bytes" "$TEST_TMP/img"
}

reload_cache() {
	dmsetup reload cache0 --table "0 $(sectors "$disk") dedup-cache $disk $*"
	dmsetup suspend cache0
	dmsetup resume cache0
}

writes_wait() {
	[ "$(cache_status cache0 writes_waiting)" != 0 ]
}

# No agent at all: the writer waits, status says how many and how long, reads and rewrites go on.
full_without_agent() {
	new_cache 16 65536 16
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	dd if=$vol of=/dev/null bs=64k count=8 skip=200 iflag=direct status=none
	stop_agent
	start dd if=/dev/zero of=$vol bs=64k count=180 oflag=direct status=none
	local writer=$pid ms
	wait_until 60 writes_wait
	[ "$(cache_status cache0 pool)" -le "$(cache_status cache0 reserve)" ]
	ms=$(cache_status cache0 writes_waiting_ms)
	wait_until 10 eval '[ "$(cache_status cache0 writes_waiting_ms)" -gt $((ms + 1500)) ]'
	kill -0 "$writer"
	dd if=/dev/zero of=$vol bs=4k count=8 oflag=direct,dsync status=none
	dd if=$vol of=/dev/null bs=64k count=1 iflag=direct status=none
	dd if=$vol of=/dev/null bs=64k count=8 skip=200 iflag=direct status=none
	kill -0 "$writer"
	# A flush-suspend would wait for the writer; one without gives it back and takes it again.
	dmsetup suspend --noflush vol0
	[ "$(cache_status cache0 writes_waiting)" = 0 ]
	dmsetup resume vol0
	wait_until 10 writes_wait
	# The agent comes back, and the writer goes on as fast as it pushes.
	start_agent -z "img=$TEST_TMP/img"
	agent push img
	wait "$writer"
	agent push img
	[ "$(cache_status cache0 writes_waiting)" = 0 ]
}

# Each write has its own deadline, and one that finds a slot in time is none of those that fail.
deadline() {
	new_cache 16 65536 16
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	reload_cache 2 dirty_timeout 2
	expect_error "No space" dd if=/dev/zero of=$vol bs=64k oflag=direct
	# What is written already can be written again; and what finds a slot in time is written.
	dd if=/dev/zero of=$vol bs=64k count=1 oflag=direct status=none
	reload_cache 2 dirty_timeout 600
	start dd if=/dev/zero of=$vol bs=64k seek=250 count=2 oflag=direct status=none
	local writer=$pid
	wait_until 10 writes_wait
	agent push img
	wait "$writer"
	cmp -n "$bytes" $vol /dev/zero
}

# Descriptors of overlays take more than max_memory allows: writers wait for a push, and the bound
# is kept. What was written is all there.
memory_of_overlays() {
	new_cache 128 4096 96
	local fixed mib
	fixed=$(cache_status cache0 memory_fixed)
	mib=$(((fixed >> 20) + 2))
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	reload_cache 2 max_memory $mib
	start dd if="$TEST_TMP/seed" of=$vol bs=128k count=750 oflag=direct status=none
	local writer=$pid
	# 24000 of them are more than the 2 MiB, less what is kept for reads, that they may get.
	wait_until 60 writes_wait
	[ "$(cache_status cache0 pool)" -gt 1000 ]
	while kill -0 "$writer" 2>/dev/null; do
		agent push img
		[ "$(cache_status cache0 memory)" -le $((mib << 20)) ]
		sleep 0.2
	done
	wait "$writer"
	cmp -n $((24000 * 4096)) "$TEST_TMP/seed" $vol
	agent push img
	cmp -n $((24000 * 4096)) "$TEST_TMP/seed" "$TEST_TMP/img"
}

# While they do, any block can be read, also where the map has nothing yet: with the agent, and what
# is here without it.
reads_beside_overlays() {
	new_cache 128 4096 100
	local fixed
	fixed=$(cache_status cache0 memory_fixed)
	dd if="$TEST_TMP/seed" of="$TEST_TMP/img" bs=1M conv=notrunc status=none
	start_agent "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	reload_cache 2 max_memory $(((fixed >> 20) + 2))
	start dd if=/dev/zero of=$vol bs=128k count=720 oflag=direct status=none
	local writer=$pid reader
	wait_until 60 writes_wait
	# Every other 128 KiB of 10 MiB that no write comes to.
	start stride $((128 << 10)) 80 $vol $((90 << 20))
	reader=$pid
	wait_until 60 eval "! kill -0 $reader 2>/dev/null"
	wait "$reader"
	cmp -i $((95 << 20)) -n 4096 "$TEST_TMP/seed" $vol
	kill -0 "$writer"
	while kill -0 "$writer" 2>/dev/null; do
		agent push img
		sleep 0.2
	done
	wait "$writer"
}

# Many writes wait for memory, each in a region of its own: they wait, and do not take maps from one
# another again and again.
writes_at_the_bound() {
	new_cache 64 4096 2048
	local fixed reclaims ms
	fixed=$(cache_status cache0 memory_fixed)
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	reload_cache 2 max_memory $(((fixed >> 20) + 2))
	stop_agent
	start fio --name=w --filename=$vol --rw="write:2044k" --bs=4k --direct=1 --size=2G \
		--io_size=4M --ioengine=libaio --iodepth=400 --output=/dev/null
	local writer=$pid
	wait_until 60 writes_wait
	ms=$(cache_status cache0 writes_waiting_ms)
	wait_until 10 eval '[ "$(cache_status cache0 writes_waiting_ms)" -gt $((ms + 1500)) ]'
	reclaims=$(cache_status cache0 map_reclaims)
	wait_until 10 eval '[ "$(cache_status cache0 writes_waiting_ms)" -gt $((ms + 4500)) ]'
	[ "$(cache_status cache0 writes_waiting)" -gt 128 ]
	[ "$(cache_status cache0 map_reclaims)" -le $((reclaims + 1)) ]
	start_agent -z "img=$TEST_TMP/img"
	while kill -0 "$writer" 2>/dev/null; do
		agent push img
		sleep 0.2
	done
	wait "$writer"
}

# What a disk holds dirty is loaded whatever it takes of max_memory; if it takes more, the table is refused.
dirty_beyond_the_bound() {
	new_cache 64 4096 2048
	local fixed
	fixed=$(cache_status cache0 memory_fixed)
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	# A leaf each for 600 of them: 2.4 MiB.
	fio --name=w --filename=$vol --rw="write:2044k" --bs=4k --direct=1 --size=1200M \
		--io_size=$((600 * 4096)) --ioengine=psync --output=/dev/null
	stop_agent
	detach vol0
	dmsetup remove --retry cache0
	mark_log
	expect_error . dmsetup create cache0 --table \
		"0 $(sectors "$disk") dedup-cache $disk 2 max_memory $(((fixed >> 20) + 2))"
	expect_log "what is dirty takes more memory than max_memory"
	# Enough for that, and not for more of it: reads go on, and a push makes room.
	dmsetup create cache0 --table \
		"0 $(sectors "$disk") dedup-cache $disk 2 max_memory $(((fixed >> 20) + 4))"
	[ "$(cache_status cache0 dirty)" = 600 ]
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	stride $((2 << 20)) 1000 "$vol"
	agent push img
}

# A map of which every region is touched needs twice what is allowed: regions are given up.
memory_of_maps() {
	new_cache 64 4096 1
	local fixed mib i
	fixed=$(cache_status cache0 memory_fixed)
	mib=$(((fixed >> 20) + 2))
	truncate -s 2G "$TEST_TMP/img"
	for ((i = 0; i < 1024; i += 64)); do
		printf '%4096d' $i | dd of="$TEST_TMP/img" bs=4096 seek=$((i * 512)) conv=notrunc \
			iflag=fullblock status=none
	done
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img $((2 << 30))
	reload_cache 2 max_memory $mib
	printf '%4096d' 77 | dd of=$vol bs=4096 seek=$((7 * 512)) oflag=direct iflag=fullblock status=none
	# One block of each region of 2 MiB, and some of them again.
	stride $((2 << 20)) 1024 "$vol"
	stride $((2 << 20)) 128 "$vol"
	[ "$(cache_status cache0 map_reclaims)" -gt 0 ]
	[ "$(cache_status cache0 memory)" -le $((mib << 20)) ]
	for ((i = 0; i < 1024; i += 64)); do
		printf '%4096d' $i | cmp -i 0:$((i * 512 * 4096)) -n 4096 - $vol
	done
	printf '%4096d' 77 | cmp -i 0:$((7 * 512 * 4096)) -n 4096 - $vol
}

# stride BYTES COUNT DEVICE [OFFSET]: reads 4 KiB every BYTES
stride() {
	fio --name=s --filename="$3" --rw="read:$((($1 - 4096) / 1024))k" --bs=4k --direct=1 \
		--io_size=$(($2 * 4096)) --size=$(($1 * $2)) --offset="${4-0}" --ioengine=psync \
		--output=/dev/null
}

# Reads and writes over a working set four times the cache, with pushes: every byte is right.
thrash() {
	new_cache 20 65536 48
	head -c "$bytes" "$TEST_TMP/seed" >"$TEST_TMP/img"
	start_agent -m "img=$TEST_TMP/img"
	attach vol0 img "$bytes"
	start stamp write $vol "$TEST_TMP/log" 11 200 8
	local writer=$pid
	while kill -0 "$writer" 2>/dev/null; do
		agent push img >/dev/null
		dd if=$vol of=/dev/null bs=1M count=8 skip=$((RANDOM % 40)) iflag=direct status=none
	done
	wait "$writer"
	# (On a busy machine the writer may have been done after few rounds.)
	while [ "$(cache_status cache0 evictions)" -le 100 ]; do
		dd if=$vol of=/dev/null bs=1M count=8 skip=$((RANDOM % 40)) iflag=direct status=none
	done
	stamp verify $vol "$TEST_TMP/log" 11 200 "$TEST_TMP/seed"
	agent push img
	stamp verify "$TEST_TMP/img" "$TEST_TMP/log" 11 200 "$TEST_TMP/seed" 2>/dev/null ||
		cmp "$TEST_TMP/img" $vol
}

requires fio
make_image "$TEST_TMP/seed" 96
run_case "full of dirty data and no agent: writers wait, the rest goes on" full_without_agent
run_case "dirty_timeout is each write's own" deadline
run_case "overlays stay within max_memory" memory_of_overlays
run_case "overlays leave memory for reads" reads_beside_overlays
run_case "dirty data beyond max_memory" dirty_beyond_the_bound
run_case "writes that wait for memory wait quietly" writes_at_the_bound
run_case "maps stay within max_memory" memory_of_maps
run_case "thrash" thrash
finish
