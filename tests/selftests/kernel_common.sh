# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# For tests of the kernel alone: a cache, the test agent (channel_agent.c), volumes. Source it after
# test_common.sh.

# format_cache DISK [OPTION...]: options of vmdedup cache format
format_cache() {
	local disk=$1
	shift
	vmdedup cache format --force "$@" "$disk" >"$TEST_TMP/format.out"
}

# open_cache NAME DISK [TABLE OPTION...]: the cache device; sets $cache and $uuid
open_cache() {
	local name=$1 disk=$2
	shift 2
	dm_create "$name" "0 $(sectors "$disk") dedup-cache $disk $*"
	cache=/dev/mapper/$name
	uuid=$(cache_status "$name" uuid)
}

# cache_status NAME KEY: a field of the cache's status line
cache_status() {
	if [ "$2" = uuid ]; then
		dmsetup status "$1" | awk '{print $4}'
	else
		dmsetup status "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"
	fi
}

# make_image FILE MIB [SEED]: pseudo-random content, the same for the same seed
make_image() {
	stamp fill "$1" $(($2 << 20)) "${3-1}"
}

# volume_status NAME KEY: a field of a volume's status line
volume_status() {
	dmsetup status "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"
}

# start_agent [OPTION...] NAME=FILE...: for $cache; sets $agent_pid. agent COMMAND... talks to it.
start_agent() {
	local opts=()
	while [ "${1#-}" != "$1" ]; do
		opts+=("$1")
		[ "$1" != -s ] || { opts+=("$2"); shift; }
		shift
	done
	socket=$(mktemp -u "$TEST_TMP/agent.XXXXXXXX")
	start channel_agent serve "${opts[@]}" "$uuid:$cache" "$socket" "$@"
	agent_pid=$pid
	wait_until 10 test -S "$socket"
}

agent() {
	channel_agent ctl "$socket" "$@"
}

stop_agent() {
	kill -9 "$agent_pid" 2>/dev/null || return 0
	wait "$agent_pid" 2>/dev/null || :
	# (It may be the child of another shell, which then takes it from the table of processes.)
	wait_until 10 eval '! kill -0 $agent_pid 2>/dev/null'
}

# attach NAME IMAGE BYTES [TABLE OPTION...]: removed in the end, with whatever waits in it
attach() {
	local name=$1 image=$2 bytes=$3
	shift 3
	cleanup_fn detach "$name"
	dmsetup create "$name" --table "0 $((bytes / 512)) dedup $cache $image $*"
}

detach() {
	local i
	dmsetup info "$1" >/dev/null 2>&1 || return 0
	for ((i = 0; i < 50; i++)); do
		# Readers ask again for what failed.
		dmsetup message "$1" 0 fail_parked
		! dmsetup remove "$1" 2>/dev/null || return 0
		sleep 0.1
	done
	dmsetup remove "$1"
}

# ended_badly PID: waits for a process of this shell, which must have failed
ended_badly() {
	local r=0
	wait "$1" 2>/dev/null || r=$?
	[ $r != 0 ] || fail "process $1 saw no error"
}

# put OFFSET_SECTORS SECTORS SEED: pseudo-random data into $vol and into $TEST_TMP/ref
put() {
	make_image "$TEST_TMP/data" 1 "$3"
	dd if="$TEST_TMP/data" of=$vol bs=512 seek="$1" count="$2" oflag=direct conv=notrunc status=none
	dd if="$TEST_TMP/data" of="$TEST_TMP/ref" bs=512 seek="$1" count="$2" conv=notrunc status=none
}

# same: $vol holds what $TEST_TMP/ref does
same() {
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$TEST_TMP/ref" $vol
}

# field N: of what the agent says of the volume of the image img
field() {
	agent volumes | awk -v n="$1" '$2 == "img" {print $n}'
}

# waiting N: that many requests wait for the agent, or more
waiting() {
	[ "$(agent waiting)" -ge "$1" ]
}

# exchange TABLE [DEVICE]: another table for the device (raw0) below a cache, with I/O under way or not
exchange() {
	local device=${2-raw0}
	dmsetup suspend --noflush --nolockfs "$device"
	dmsetup load "$device" --table "$1"
	dmsetup resume "$device"
}

# with_bad_slots DISK FROM COUNT: the table of a device that is $DISK, but that cannot read or write
# COUNT slots of the cache on it, from FROM on; $data_start and $block say where they are, in bytes
with_bad_slots() {
	local size from len
	size=$(sectors "$1")
	from=$((data_start / 512 + $2 * block / 512))
	len=$(($3 * block / 512))
	echo "0 $from linear $1 0"
	echo "$from $len error"
	echo "$((from + len)) $((size - from - len)) linear $1 $((from + len))"
}

# sets $data_start, of the cache on DISK
find_data_start() {
	data_start=$(vmdedup cache dump --json "$1" | sed -n 's/.*"data_start":\([0-9]*\).*/\1/p')
}

# numbers of the CLEAN slots, in order
clean_slots() {
	agent clean | awk '$1 ~ /^[0-9]+$/ {print $1}' | sort -n
}
