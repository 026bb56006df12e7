#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Disks that are no cache, damaged caches, and a cache disk that begins to fail.
# timeout: 240

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
requires fio openssl

# refused PATTERN DISK: no cache device comes of it, and the kernel says why.
refused() {
	mark_log
	expect_error . dmsetup create cache0 --table "0 $(sectors "$2") dedup-cache $2"
	expect_log "$1"
}

not_formatted() {
	local disk
	disk=$(make_disk 64)
	refused "No cache on this device" "$disk"
	disk=$(make_disk 2)
	refused "No cache on this device" "$disk"
	expect_error "needs at least" vmdedup cache format "$disk"
}

newer_version() {
	local disk
	disk=$(make_disk 64)
	format_cache "$disk"
	super_edit "$disk" A version
	refused "newer version" "$disk"
	format_cache "$disk"
	super_edit "$disk" B features
	refused "newer version" "$disk"
}

# One superblock destroyed: the cache works, warns, and is whole again.
one_superblock() {
	local disk which
	disk=$(make_disk 64)
	format_cache "$disk"
	for which in A B; do
		super_edit "$disk" $which crc
		expect_error "superblock is destroyed" vmdedup cache check "$disk"
		mark_log
		open_cache cache0 "$disk"
		expect_log "superblock is destroyed"
		dmsetup remove cache0
		vmdedup cache check "$disk" >/dev/null
	done
	super_edit "$disk" A crc
	vmdedup cache repair "$disk" >/dev/null
	vmdedup cache check "$disk" >/dev/null
}

both_superblocks() {
	local disk
	disk=$(make_disk 64)
	format_cache "$disk"
	super_edit "$disk" A crc
	super_edit "$disk" B crc
	refused "damaged" "$disk"
	expect_error "both superblocks" vmdedup cache check "$disk"
	# Not lost by accident.
	expect_error "--force" vmdedup cache format "$disk"
}

# A cache with content in $disk, closed again.
make_content() {
	disk=$(make_disk 128)
	format_cache "$disk"
	open_cache cache0 "$disk"
	make_image "$TEST_TMP/img" 2
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((2 << 20))
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	dmsetup remove vol0
	stop_agent
	dmsetup remove --retry cache0
}

in_use() {
	local disk
	disk=$(make_disk 64)
	format_cache "$disk"
	open_cache cache0 "$disk"
	expect_error "in use" vmdedup cache check "$disk"
	expect_error "in use" vmdedup cache format --force "$disk"
}

# Pages of the tables, damaged in turn: those that count are found, by name.
rotten_tables() {
	local disk at found=0
	make_content
	vmdedup cache check "$disk" >/dev/null
	while IFS=: read -r at _; do
		[ $((at % 4096)) = 0 ] || continue
		dd if="$disk" of="$TEST_TMP/page" bs=4096 skip=$((at / 4096)) count=1 status=none
		printf 'rot' | dd of="$disk" bs=1 seek=$((at + 2000)) conv=notrunc status=none
		if ! vmdedup cache check "$disk" >"$TEST_TMP/check" 2>&1; then
			grep -q "table page" "$TEST_TMP/check"
			refused "damaged" "$disk"
			found=$((found + 1))
		fi
		dd if="$TEST_TMP/page" of="$disk" bs=4096 seek=$((at / 4096)) conv=notrunc status=none
	done < <(head -c 7M "$disk" | LC_ALL=C grep -abo dtab | head -n 3)
	[ $found -gt 0 ]
	open_cache cache0 "$disk"
}

# Writes to the journal fail: the cache is read-only at once, what was acknowledged is there later.
failing_disk() {
	local disk raw size vol=/dev/mapper/vol0
	raw=$(make_disk 128)
	size=$(sectors "$raw")
	modprobe -q dm-flakey || dmsetup targets | grep -q flakey || exit 4
	dm_create disk0 "0 $size linear $raw 0"
	disk=/dev/mapper/disk0
	format_cache "$disk"
	open_cache cache0 "$disk"
	make_image "$TEST_TMP/img" 2
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((2 << 20))
	cmp "$TEST_TMP/img" $vol
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	make_image "$TEST_TMP/new" 1 2
	truncate -s 256K "$TEST_TMP/new"
	dd if="$TEST_TMP/new" of=$vol bs=64k seek=8 oflag=direct conv=fsync status=none
	dd if="$TEST_TMP/new" of="$TEST_TMP/ref" bs=64k seek=8 conv=notrunc status=none

	mark_log
	dmsetup suspend --noflush --nolockfs disk0
	# The first 4 MiB: superblock and journal. The slots are well.
	dmsetup load disk0 --table "0 8192 flakey $raw 0 0 600 1 error_writes
8192 $((size - 8192)) linear $raw 8192"
	dmsetup resume disk0
	expect_error "Input/output error|Read-only" \
		dd if="$TEST_TMP/new" of=$vol bs=64k seek=24 oflag=direct conv=fsync status=none
	wait_until 10 sh -c "dmsetup status cache0 | grep -qw ro"
	expect_log "read-only from now on"
	# What is there is read as before.
	echo 3 >/proc/sys/vm/drop_caches
	cmp -n $((1 << 20)) "$TEST_TMP/ref" $vol

	dmsetup remove vol0
	stop_agent
	dmsetup remove --retry cache0
	dmsetup suspend disk0
	dmsetup load disk0 --table "0 $size linear $raw 0"
	dmsetup resume disk0
	vmdedup cache check "$disk" >/dev/null
	dmsetup create cache0 --table "0 $size dedup-cache $disk"
	start_agent "img=$TEST_TMP/img"
	dmsetup create vol0 --table "0 4096 dedup /dev/mapper/cache0 img"
	cmp -n $((1 << 20)) "$TEST_TMP/ref" $vol
}

run_case "a disk that is not formatted, or too small, is refused" not_formatted
run_case "a cache of a newer version is refused" newer_version
run_case "one destroyed superblock is survived and restored" one_superblock
run_case "two destroyed superblocks are refused" both_superblocks
run_case "a cache in use is left alone by the offline tools" in_use
run_case "rotten table pages are found and refused" rotten_tables
run_case "a journal that cannot be written makes the cache read-only; nothing acknowledged is lost" failing_disk
finish
