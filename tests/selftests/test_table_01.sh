#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# Table lines that are wrong, and devices that must not be opened: each with a clear error.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

disk=$(make_disk 128)
n=$(sectors "$disk")
blank=$(make_disk 128)
format_cache "$disk"
open_cache cache0 "$disk"
make_image "$TEST_TMP/img" 4
make_image "$TEST_TMP/other" 4
start_agent "img=$TEST_TMP/img" "other=$TEST_TMP/other"

# refused PATTERN TABLE: dmsetup fails, and the kernel says why
refused() {
	mark_log
	if dmsetup create bad --table "$2" 2>/dev/null; then
		dmsetup remove bad
		fail "accepted: $2"
	fi
	expect_log "$1"
}

cache_lines() {
	refused "Too few arguments" "0 $n dedup-cache"
	refused "Cannot open the cache's disk" "0 $n dedup-cache /dev/nonexistent"
	refused "Bad number of option words" "0 $n dedup-cache $blank 99"
	refused "Bad number of option words" "0 $n dedup-cache $blank many"
	refused "Bad number of option words" "0 $n dedup-cache $blank 2 max_memory"
	refused "Unknown option" "0 $n dedup-cache $blank 2 colour 3"
	refused "lacks its value" "0 $n dedup-cache $blank 1 max_memory"
	refused "not a number" "0 $n dedup-cache $blank 2 max_memory much"
	refused "Too many arguments" "0 $n dedup-cache $blank 2 max_memory 5 6"
	refused "only one of its device|must appear alone" "$(printf '0 8 zero\n8 %s dedup-cache %s' "$n" "$blank")"
}

cache_disks() {
	refused "vmdedup cache format|[Nn]ot formatted|[Nn]o cache" "0 $n dedup-cache $blank"
	refused "in use by another cache" "0 $n dedup-cache $disk"
}

cache_memory() {
	local small
	small=$(make_disk 1024)
	format_cache "$small" --block-size 4096
	refused "max_memory is 1 MiB" "0 $(sectors "$small") dedup-cache $small 2 max_memory 1"
	refused "shorter than the cache" "0 $(($(sectors "$small") - 4096)) dedup-cache $small"
}

volume_lines() {
	local long
	long=$(printf 'x%.0s' {1..300})
	refused "Too few arguments" "0 8192 dedup"
	refused "Too few arguments" "0 8192 dedup $cache"
	refused "Cannot open the cache device" "0 8192 dedup /dev/nonexistent img"
	refused "not a dedup-cache device" "0 8192 dedup $blank img"
	refused "1 to 255 bytes" "0 8192 dedup $cache $long"
	refused "no image of this name" "0 8192 dedup $cache nobody"
	refused "the table has 8191 sectors, the image has 8192" "0 8191 dedup $cache img"
	refused "size is not the image's" "0 16384 dedup $cache img"
	refused "Bad number of option words" "0 8192 dedup $cache img x"
	refused "Unknown option" "0 8192 dedup $cache img 1 colour"
	refused "need a number of seconds" "0 8192 dedup $cache img 1 fetch_timeout"
	refused "need a number of seconds" "0 8192 dedup $cache img 2 fetch_timeout soon"
	refused "Too many arguments" "0 8192 dedup $cache img 1 read_only ephemeral"
}

second_attach() {
	attach vol0 img $((4 << 20))
	refused "attached to another device" "0 8192 dedup $cache img"
	# The same device may load another table.
	dmsetup reload vol0 --table "0 8192 dedup $cache img 2 fetch_timeout 60"
	dmsetup suspend vol0
	dmsetup resume vol0
	dmsetup table vol0 | grep -q "dedup [0-9:]* img 2 fetch_timeout 60"
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	attach vol1 other $((4 << 20)) 1 read_only
	expect_error . dd if=/dev/zero of=/dev/mapper/vol1 bs=4k count=1 oflag=direct
	cmp "$TEST_TMP/other" /dev/mapper/vol1
	[ "$(dmsetup ls | grep -c .)" = 3 ]
}

window() {
	expect_error . dd if=/dev/zero of="$cache" bs=4k count=1 oflag=direct
	cmp -n $((1 << 20)) "$cache" /dev/zero
	tail -c $((1 << 20)) "$cache" | cmp -n $((1 << 20)) - /dev/zero
	# The disk itself has superblocks there.
	! cmp -s -n $((1 << 20)) "$disk" /dev/zero
}

in_use() {
	attach vol0 img $((4 << 20))
	expect_error "busy" dmsetup remove cache0
	expect_error "in use|busy" rmmod dm_dedup
	dmsetup remove vol0
}

run_case "cache tables" cache_lines
run_case "cache disks" cache_disks
run_case "memory and length" cache_memory
run_case "volume tables" volume_lines
run_case "one device for an image" second_attach
run_case "the window is read-only, its ends are zeros" window
run_case "what is in use cannot be removed" in_use
finish
