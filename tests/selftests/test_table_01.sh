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

# Another cache's disk in the table of a cache that is in use: its agent reads through this device.
cache_of_another() {
	local second
	second=$(make_disk 128)
	format_cache "$second"
	attach vol0 img $((4 << 20))
	mark_log
	expect_error . dmsetup load cache0 --table "0 $n dedup-cache $second"
	expect_log "the cache on another disk"
	dmsetup load cache0 --table "0 $n dedup-cache $disk"
	dmsetup resume cache0
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	dmsetup remove vol0
}

# The same, when the device has been something else in between: its agent still reads through it.
cache_of_another_later() {
	local first second first_uuid=$uuid
	first=$(make_disk 128)
	second=$(make_disk 128)
	format_cache "$first"
	format_cache "$second"
	dm_create cache1 "0 $n dedup-cache $first"
	cache=/dev/mapper/cache1 uuid=$(cache_status cache1 uuid)
	cp "$TEST_TMP/img" "$TEST_TMP/img1"
	start_agent "img1=$TEST_TMP/img1"
	attach vol1 img1 $((4 << 20))
	exchange "0 $n zero" cache1
	mark_log
	expect_error . dmsetup load cache1 --table "0 $n dedup-cache $second"
	expect_log "the cache on another disk"
	refused "not a dedup-cache device" "0 8192 dedup $cache other"
	refused "in use by another cache" "0 $n dedup-cache $first"
	cmp "$TEST_TMP/img1" /dev/mapper/vol1
	detach vol1
	stop_agent
	# Nobody has the first cache any more.
	exchange "0 $n dedup-cache $second" cache1
	[ "$(cache_status cache1 uuid)" != "$uuid" ]
	dmsetup remove cache1
	cache=/dev/mapper/cache0 uuid=$first_uuid
}

# The same disk under another name, or a copy of one, is refused before anything is written to it.
cache_twice() {
	local copy sum
	copy=$(make_disk 128)
	attach vol0 img $((4 << 20))
	dmsetup message cache0 0 commit
	cp "$disk" "$copy"
	sum=$(sha256sum <"$copy")
	dm_create same "0 $n linear $disk 0"
	refused "is open already" "0 $n dedup-cache /dev/mapper/same"
	[ "$(sha256sum <"$disk")" = "$sum" ]
	refused "is open already" "0 $n dedup-cache $copy"
	[ "$(sha256sum <"$copy")" = "$sum" ]
	dmsetup remove same
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	dmsetup remove vol0
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
	# But none of another image, as when its name means another one now.
	mark_log
	expect_error . dmsetup reload vol0 --table "0 8192 dedup $cache other"
	expect_log "The device has another image"
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	attach vol1 other $((4 << 20)) 1 read_only
	expect_error . dd if=/dev/zero of=/dev/mapper/vol1 bs=4k count=1 oflag=direct
	cmp "$TEST_TMP/other" /dev/mapper/vol1
	[ "$(dmsetup ls | grep -c .)" = 3 ]
}

# A host that crashes with a volume that is ephemeral: nobody may go on with it and believe that it is pushed.
left_ephemeral() {
	attach vol0 img $((4 << 20)) 1 ephemeral
	head -c 64K "$TEST_TMP/other" >"$TEST_TMP/written"
	dd if="$TEST_TMP/written" of=/dev/mapper/vol0 bs=64k seek=3 oflag=direct,dsync status=none
	stop_agent
	dmsetup remove vol0
	for with in agent none; do
		[ "$with" = none ] || start_agent "img=$TEST_TMP/img" "other=$TEST_TMP/other"
		mark_log
		expect_error . dmsetup create vol0 --table "0 8192 dedup $cache img"
		expect_log "was opened ephemeral and not detached"
		[ "$with" = none ] || stop_agent
	done
	start_agent "img=$TEST_TMP/img" "other=$TEST_TMP/other"
	dmsetup create vol0 --table "0 8192 dedup $cache img 1 ephemeral"
	cmp -i 196608:0 -n 65536 /dev/mapper/vol0 "$TEST_TMP/written"
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
run_case "a cache that is open already" cache_twice
run_case "the device of another cache" cache_of_another
run_case "the device of another cache, later" cache_of_another_later
run_case "memory and length" cache_memory
run_case "volume tables" volume_lines
run_case "one device for an image" second_attach
run_case "the window is read-only, its ends are zeros" window
run_case "what is in use cannot be removed" in_use
run_case "an ephemeral volume that was left" left_ephemeral
finish
