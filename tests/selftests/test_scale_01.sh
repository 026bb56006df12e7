#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# Sizes: every block size, volumes of 64 TiB, and a cache of 1 TiB.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
vol=/dev/mapper/vol0

make_image "$TEST_TMP/seed" 4

# Writes of every length and alignment, read back, pushed, read back.
block_size() {
	local disk
	disk=$(make_disk 160)
	format_cache "$disk" --block-size "$1"
	open_cache cache0 "$disk"
	cp "$TEST_TMP/seed" "$TEST_TMP/img"
	truncate -s $((4195328 + 512)) "$TEST_TMP/img"	# its end is in the midst of a block
	cp "$TEST_TMP/img" "$TEST_TMP/base"
	rm -f "$TEST_TMP/img.head"
	start_agent -m -z "img=$TEST_TMP/img"
	attach vol0 img 4195840
	[ "$(cache_status cache0 block)" = "$1" ]
	[ "$(blockdev --getioopt $vol)" = "$1" ]
	stamp write $vol "$TEST_TMP/log.$1" 3 80 8
	stamp verify $vol "$TEST_TMP/log.$1" 3 80 "$TEST_TMP/base"
	agent push img
	cmp $vol "$TEST_TMP/img"
	dmsetup remove vol0
	dmsetup create vol0 --table "0 8195 dedup $cache img"
	stamp verify $vol "$TEST_TMP/log.$1" 3 80 "$TEST_TMP/base"
}

# put KIB, get KIB: 4 KiB that say where they are
put() {
	printf '%4096d' "$1" | dd of=$vol bs=4096 seek=$(($1 / 4)) oflag=direct iflag=fullblock \
		conv=notrunc status=none
}

get() {
	printf '%4096d' "$1" | cmp - <(dd if=$vol bs=4096 skip=$(($1 / 4)) count=1 iflag=direct status=none)
}

# Ends, middle and the places where leaves and words of 32 bits end.
far_places="0 4 2097148 2097152 4294967296 17179869180 17179869184 34359738368 68719476732"

# The file stands for the image: what was pushed is in it, 64 TiB away.
huge_volume() {
	local disk at before
	disk=$(make_disk 128)
	format_cache "$disk" --block-size "$1"
	open_cache cache0 "$disk"
	rm -f "$TEST_TMP/huge" "$TEST_TMP/huge.head"
	truncate -s 64T "$TEST_TMP/huge"
	start_agent -z "huge=$TEST_TMP/huge"
	before=$(cache_status cache0 memory)
	attach vol0 huge $((64 << 40))
	[ "$(blockdev --getsize64 $vol)" = $((64 << 40)) ]
	for at in $far_places; do
		put "$at"
	done
	for at in $far_places; do
		get "$at"
	done
	expect_error "past end|No space|cannot" \
		dd if=/dev/zero of=$vol bs=4096 seek=$((64 << 28)) count=1 oflag=direct
	agent push huge
	[ "$(cache_status cache0 dirty)" = 0 ]
	agent dropall
	for at in $far_places; do
		get "$at"
	done
	[ $(($(cache_status cache0 memory) - before)) -lt $((16 << 20)) ]
	put 68719476728
	dmsetup remove vol0
	stop_agent
	dmsetup remove --retry cache0
	dmsetup create cache0 --table "0 $(sectors "$disk") dedup-cache $disk"
	start_agent -z "huge=$TEST_TMP/huge"
	dmsetup create vol0 --table "0 $((64 << 31)) dedup $cache huge"
	get 68719476728
	get 68719476732
	# One sector more is refused.
	dmsetup remove vol0
	agent push huge
	truncate -s $(((64 << 40) + 512)) "$TEST_TMP/huge"
	mark_log
	expect_error . dmsetup create vol0 --table "0 $(((64 << 31) + 1)) dedup $cache huge"
	expect_log "answer to LOOKUP makes no sense"
}

vmalloc_used() {
	awk '/^VmallocUsed/ { print $2 * 1024 }' /proc/meminfo
}

# The disk is sparse. Its tables are not: what the status says is what was taken.
cache_of_1_tib() {
	local disk before taken said
	disk=$(make_disk $((1 << 20)))
	format_cache "$disk" --block-size 262144
	mark_log
	expect_error . dmsetup create cache0 \
		--table "0 $(sectors "$disk") dedup-cache $disk 2 max_memory 200"
	expect_log "slots of 256 KiB take 2[0-9][0-9] MiB of memory, max_memory is 200 MiB"
	expect_log "needs more memory than max_memory allows"
	before=$(vmalloc_used)
	open_cache cache0 "$disk" 2 max_memory 256
	taken=$(($(vmalloc_used) - before))
	said=$(cache_status cache0 memory)
	echo "# 1 TiB: memory $said, vmalloc $taken bytes"
	[ "$said" -le $((256 << 20)) ]
	[ "$taken" -le "$said" ]
	[ $((taken * 100 / said)) -ge 90 ]
	cp "$TEST_TMP/seed" "$TEST_TMP/img"
	rm -f "$TEST_TMP/img.head"
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	cmp $vol "$TEST_TMP/img"
}

for bs in 4096 65536 262144 1048576; do
	run_case "blocks of $bs bytes" block_size $bs
done
run_case "a volume of 64 TiB in blocks of 4 KiB" huge_volume 4096
run_case "a volume of 64 TiB in blocks of 256 KiB" huge_volume 262144
run_case "1 TiB of cache in 256 MiB of memory" cache_of_1_tib
finish
