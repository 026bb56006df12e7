#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# not on: 6.1
#
# File systems on a volume whose cache is too small for them: random operations against a model while
# pushes, suspends and eviction go on; and recovery of their logs after the cache's disk has gone.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
requires mkfs.ext4 e2fsck

size=$((96 << 20))
vol=/dev/mapper/vol0
mnt=$TEST_TMP/mnt
mkdir "$mnt"

# setup TYPE: an empty image, whose cache has 64 KiB blocks
setup() {
	[ "$1" != xfs ] || modprobe -q xfs || grep -qw xfs /proc/filesystems || exit 4
	# (mkfs.xfs makes none below 300 MiB, with a log that has to fit.)
	size=$((96 << 20)) raw=80
	[ "$1" != xfs ] || size=$((320 << 20)) raw=256
	raw=$(make_disk $raw)
	n=$(sectors "$raw")
	dm_create raw0 "0 $n linear $raw 0"
	disk=/dev/mapper/raw0
	format_cache "$disk" --block-size 65536
	open_cache cache0 "$disk"
	rm -f "$TEST_TMP"/img*
	truncate -s $size "$TEST_TMP/img"
	cleanup_fn stop_agent
	start_agent -z "img=$TEST_TMP/img"
	attach vol0 img $size
	cleanup_fn let_go
	cleanup_fn unmount
	make_fs "$1"
	mount -t "$1" $vol "$mnt"
}

make_fs() {
	if [ "$1" = xfs ]; then
		mkfs.xfs -q -K $vol
	else
		mkfs.ext4 -q -E nodiscard $vol
	fi
}

# check_fs TYPE DEVICE-OR-FILE
check_fs() {
	if [ "$1" = xfs ]; then
		xfs_repair -n "$2" >/dev/null 2>&1
	else
		e2fsck -fn "$2" >/dev/null 2>&1
	fi
}

unmount() {
	! mountpoint -q "$mnt" || umount "$mnt"
}

# What waits for an agent that is dead, or for a disk that fails, ends.
let_go() {
	! dmsetup info cache0 >/dev/null 2>&1 || dmsetup message cache0 0 fail_parked
}

random_operations() {
	local a b
	setup "$1"
	start fsx "$mnt/a" $((6 << 20)) 1000000 31 5
	a=$pid
	start fsx "$mnt/b" $((6 << 20)) 1000000 32 5
	b=$pid
	while kill -0 "$a" 2>/dev/null; do
		agent push img >/dev/null
		dmsetup suspend --noflush --nolockfs vol0
		dmsetup resume vol0
		agent dropall
	done
	wait "$a" "$b"
	fstrim "$mnt"
	umount "$mnt"
	agent push img
	check_fs "$1" $vol
	cmp "$TEST_TMP/img" $vol
}

# Are so many files synced? Pushes when the cache, which is too small for all of it, gets full.
files_synced() {
	[ "$(cache_status cache0 dirty)" -lt 400 ] || agent push img >/dev/null
	[ -e "$TEST_TMP/synced" ] && [ "$(stat -c %s "$TEST_TMP/synced")" -ge "$1" ]
}

# crash HOW TYPE: the disk takes no more writes, and says so (error_writes) or does not (drop_writes)
crash() {
	local how=$1 load
	rm -f "$TEST_TMP/synced"
	start fs_load run "$mnt" "$TEST_TMP/synced"
	load=$pid
	wait_until 200 files_synced 30
	agent push img >/dev/null
	wait_until 200 files_synced 100
	# The head is not on the disk that loses what it has taken: no push from now on.
	cp "$TEST_TMP/synced" "$TEST_TMP/before"
	exchange "0 $n flakey $raw 0 0 600 1 $how"
	if [ "$how" = error_writes ]; then
		wait "$load"
		cp "$TEST_TMP/synced" "$TEST_TMP/before"
	fi
	stop "$load"
	stop_agent
	# What it still has to read nobody brings.
	start umount "$mnt"
	while kill -0 "$pid" 2>/dev/null; do
		dmsetup message cache0 0 fail_parked
		sleep 0.1
	done
	wait "$pid"
	dmsetup remove --retry --force vol0
	dmsetup remove --retry --force cache0
	exchange "0 $n linear $raw 0"
	vmdedup cache check $disk >/dev/null
	dmsetup create cache0 --table "0 $n dedup-cache $disk"
	start_agent -z "img=$TEST_TMP/img"
	dmsetup create vol0 --table "0 $((size / 512)) dedup $cache img"
	mount -t "$2" $vol "$mnt"
	echo "# $(stat -c %s "$TEST_TMP/before") files were synced"
	fs_load check "$mnt" "$TEST_TMP/before"
	umount "$mnt"
	check_fs "$2" $vol
	mount -t "$2" $vol "$mnt"
	rm -r "${mnt:?}"/d*
}

log_recovery() {
	modprobe -q dm-flakey || dmsetup targets | grep -q flakey || exit 4
	setup "$1"
	crash error_writes "$1"
	crash drop_writes "$1"
	umount "$mnt"
	agent push img
	check_fs "$1" "$TEST_TMP/img"
}

ext4_operations() { random_operations ext4; }
xfs_operations() { random_operations xfs; }
ext4_recovery() { log_recovery ext4; }
xfs_recovery() { log_recovery xfs; }

run_case "ext4: random operations" ext4_operations
run_case "xfs: random operations" xfs_operations
run_case "ext4: recovery after the cache's disk has gone" ext4_recovery
run_case "xfs: recovery after the cache's disk has gone" xfs_recovery
finish
