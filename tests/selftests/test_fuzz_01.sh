#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 400
# not on: 6.1
# not on: 6.12
#
# Random calls on the channel, with I/O, suspends, reloads and deaths of the agent at the same time:
# the kernel complains of nothing, nothing hangs, and a volume that no random call names stays right, as
# does all of another cache. FUZZ_CALLS (8000) and FUZZ_SEED may be set; the seed is printed.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

calls=${FUZZ_CALLS:-8000}
seed=${FUZZ_SEED:-$RANDOM$RANDOM}
echo "# FUZZ_SEED=$seed FUZZ_CALLS=$calls"
size=$((8 << 20))

# The other cache has a good agent.
disk2=$(make_disk 128)
format_cache "$disk2"
open_cache cache1 "$disk2"
make_image "$TEST_TMP/quiet" 8 2
cp "$TEST_TMP/quiet" "$TEST_TMP/quiet.ref"
start_agent "quiet=$TEST_TMP/quiet"
attach quiet quiet $size
quiet_socket=$socket quiet_uuid=$uuid

disk=$(make_disk 128)
format_cache "$disk"
open_cache cache0 "$disk" 2 dirty_timeout 1
make_image "$TEST_TMP/safe" 8 1
cp "$TEST_TMP/safe" "$TEST_TMP/safe.ref"
for v in vic0 vic1 vic2; do
	make_image "$TEST_TMP/$v" 8 3
done
start_agent "safe=$TEST_TMP/safe" "vic0=$TEST_TMP/vic0" "vic1=$TEST_TMP/vic1" "vic2=$TEST_TMP/vic2"
attach safe safe $size
# What the guard writes has its slots already.
dd if="$TEST_TMP/safe" of=/dev/mapper/safe bs=1M count=4 oflag=direct conv=notrunc status=none

# Makes a device of victim $1, or finds it made; the agent may refuse all of it.
make_victim() {
	dmsetup info "$1" >/dev/null 2>&1 ||
		dmsetup create "$1" --table "0 $((size / 512)) dedup $cache $1 4 fetch_timeout 1 agent_timeout 1"
}

victims() {
	local v
	for v in vic0 vic1 vic2; do
		"$@" "$v"
	done
}

# All that may happen to a device, and some I/O; only that each of it ends is asked for.
torment() {
	local v=$1 dev=/dev/mapper/$1
	exec >/dev/null 2>&1
	set +e
	while :; do
		make_victim "$v"
		dd if=/dev/urandom of="$dev" bs=$((512 * (1 + RANDOM % 700))) count=8 \
			seek=$((RANDOM % 20)) oflag=direct conv=notrunc
		dd if="$dev" of=/dev/null bs=256k count=$((RANDOM % 32)) iflag=direct
		blkdiscard -f -z -o $(((RANDOM % 32) << 18)) -l $((1 << 18)) "$dev"
		case $((RANDOM % 6)) in
		0) dmsetup remove "$v" ;;
		1) dmsetup suspend --noflush "$v" ;;
		2) dmsetup message "$v" 0 fail_parked ;;
		3) dmsetup reload "$v" --table "0 $((size / 512)) dedup $cache $v 4 fetch_timeout 1 agent_timeout 1" ;;
		4) dd if=/dev/urandom of="$dev" bs=64k count=4 oflag=direct,dsync conv=notrunc ;;
		5) dmsetup status "$v"; dmsetup status cache0 ;;
		esac
		dmsetup resume "$v"
	done
}

cleanup_fn victims detach
victims make_victim
stop_agent
guards=()
start channel_fuzz guard /dev/mapper/safe "$TEST_TMP/safe.ref" 100000 "$seed"
guards+=("$pid")
start channel_fuzz guard /dev/mapper/quiet "$TEST_TMP/quiet.ref" 100000 "$seed"
guards+=("$pid")
tormentors=()
for v in vic0 vic1 vic2; do
	start torment $v
	tormentors+=("$pid")
done
channel_fuzz agents "$uuid" "$TEST_TMP/safe" "$calls" "$seed"
# Everything ends, with a good agent.
start_agent "safe=$TEST_TMP/safe" "vic0=$TEST_TMP/vic0" "vic1=$TEST_TMP/vic1" "vic2=$TEST_TMP/vic2"
kill -TERM "${guards[@]}"
for p in "${guards[@]}"; do
	wait "$p"
done
for p in "${tormentors[@]}"; do
	stop "$p"
done
echo 3 >/proc/sys/vm/drop_caches
cmp "$TEST_TMP/safe.ref" /dev/mapper/safe
cmp "$TEST_TMP/quiet.ref" /dev/mapper/quiet
victims detach
# And is there when the cache is opened again.
detach safe
stop_agent
dmsetup remove cache0
vmdedup cache check "$disk" >/dev/null
dmsetup create cache0 --table "0 $(sectors "$disk") dedup-cache $disk"
start_agent "safe=$TEST_TMP/safe"
dmsetup create safe --table "0 $((size / 512)) dedup $cache safe"
cmp "$TEST_TMP/safe.ref" /dev/mapper/safe
agent push safe
cmp "$TEST_TMP/safe.ref" "$TEST_TMP/safe"
socket=$quiet_socket uuid=$quiet_uuid
agent push quiet
cmp "$TEST_TMP/quiet.ref" "$TEST_TMP/quiet"
