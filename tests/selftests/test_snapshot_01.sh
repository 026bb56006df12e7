#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# not on: 6.1
#
# Snapshots of a volume in use are states that its guest had reached: while databases and files are
# written and synced on an ext4, pushes are asked for as versions, $SNAPSHOTS of them (3). Another
# host with a cache of its own opens a clone of each: it mounts, the databases recover to a state with
# all that was acknowledged before the push was asked for and nothing that was never submitted, and
# the file system passes its check.

. "${0%/*}/test_common.sh"

requires vmdedup vmdedup-agent vmdedup-meta vmdedup-data mke2fs e2fsck jq snapshot_load
count=${SNAPSHOTS:-3}
meta=tcp://127.0.0.1:7401

# config NAME LINE...: of the process NAME
config() {
	local name=$1
	shift
	printf '%s\n' "[store]" "store = $TEST_TMP/$name" "run = $TEST_TMP/run-$name" "$@" \
		>"$TEST_TMP/$name.conf"
}

on() {
	VMDEDUP_CONF=$TEST_TMP/$1.conf "${@:2}"
}

is_ready() {
	on "$1" vmdedup status --json 2>/dev/null | jq -e '.agent.channel' >/dev/null
}

servers() {
	[ "$(on client vmdedup cluster info --json | jq '.servers | length')" = 1 ]
}

start_servers() {
	config meta "[meta]" "listen = $meta"
	config data "[cluster]" "meta = $meta" "[data]" "dir = $TEST_TMP/blocks" "host = store" \
		"listen = tcp://127.0.0.1:7402"
	config client "[cluster]" "meta = $meta"
	on meta vmdedup cluster init --name lab --block-size 64K
	start vmdedup-meta --conf "$TEST_TMP/meta.conf"
	start vmdedup-data --conf "$TEST_TMP/data.conf"
	wait_until 30 servers
}

# start_host NAME: its cache NAME-cache and its agent
start_host() {
	local disk
	disk=$(make_disk 256)
	config "$1" "[cluster]" "meta = $meta" "[data]" "host = $1" "[agent]" \
		"cache = /dev/mapper/$1-cache" "push_age = 20"
	on "$1" vmdedup cache format --block-size 64K "$disk"
	dm_create "$1-cache" "0 $(sectors "$disk") dedup-cache $disk"
	start vmdedup-agent --conf "$TEST_TMP/$1.conf"
	wait_until 30 is_ready "$1"
}

remove_volume() {
	! dmsetup info "$1" >/dev/null 2>&1 || dmsetup message "$1" 0 fail_parked
	dm_remove "$1"
}

unmount() {
	! mountpoint -q "$1" || umount "$1"
}

start_load() {
	truncate -s 64M "$TEST_TMP/image"
	mke2fs -q -t ext4 -J size=4 "$TEST_TMP/image"
	on here vmdedup image import "$TEST_TMP/image" vm
	cleanup_fn remove_volume vm
	on here vmdedup volume attach vm --name vm
	mkdir "$TEST_TMP/mnt" "$TEST_TMP/check"
	mount /dev/mapper/vm "$TEST_TMP/mnt"
	cleanup_fn unmount "$TEST_TMP/mnt"
	start snapshot_load write "$TEST_TMP/mnt" "$TEST_TMP/progress"
	load=$pid
	wait_until 60 test -s "$TEST_TMP/progress"
}

snapshots() {
	local i
	for ((i = 1; i <= count; i++)); do
		snapshot_load wait "$TEST_TMP/progress" $((1 + RANDOM % 12))
		cp "$TEST_TMP/progress" "$TEST_TMP/before.$i"
		version=$(on here vmdedup volume push vm --label "snapshot $i" --json | jq .version)
		cp "$TEST_TMP/progress" "$TEST_TMP/after.$i"
		on here vmdedup image clone vm "snapshot.$i" --version "$version"
	done
	kill -0 "$load"
	stop "$load"
}

# As after a power cut: the mount replays the journal, the databases theirs.
check_snapshot() {
	cleanup_fn remove_volume snapshot
	on there vmdedup volume attach "snapshot.$1" --ephemeral --name snapshot >/dev/null
	mount /dev/mapper/snapshot "$TEST_TMP/check"
	cleanup_fn unmount "$TEST_TMP/check"
	snapshot_load check "$TEST_TMP/check" "$TEST_TMP/before.$1" "$TEST_TMP/after.$1"
	umount "$TEST_TMP/check"
	e2fsck -fn /dev/mapper/snapshot >"$TEST_TMP/fsck" 2>&1 || { cat "$TEST_TMP/fsck"; exit 1; }
	on there vmdedup volume detach snapshot --discard
}

start_servers
start_host here
start_host there
start_load
snapshots
for ((n = 1; n <= count; n++)); do
	run_case "snapshot $n" check_snapshot "$n"
done
umount "$TEST_TMP/mnt"
on here vmdedup volume detach vm
on client vmdedup cluster check
finish
