#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 400
# not on: 6.1
#
# File systems on a volume whose cache is too small for them: random operations against a model while
# pushes, suspends and eviction go on.

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

check_fs() {
	if [ "$1" = xfs ]; then
		xfs_repair -n $vol >/dev/null 2>&1
	else
		e2fsck -fn $vol >/dev/null 2>&1
	fi
}

unmount() {
	! mountpoint -q "$mnt" || umount "$mnt"
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
	check_fs "$1"
	cmp "$TEST_TMP/img" $vol
}

ext4_operations() { random_operations ext4; }
xfs_operations() { random_operations xfs; }

run_case "ext4: random operations" ext4_operations
run_case "xfs: random operations" xfs_operations
finish
