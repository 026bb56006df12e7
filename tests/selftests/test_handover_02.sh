#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 500
# not on: 6.1
# only when named
#
# A volume goes from host to host and back, while somebody writes to it and syncs: two caches of the real
# target, an agent for each on its own channel, and the second one in a network of its own. The writer
# is killed where the device goes, and goes on on the other host with what was not acknowledged; each
# sector must hold what was acknowledged last, whichever host wrote it. The pause is from the last
# acknowledgement on the one to the first on the other. Writes before and after each: $WRITES (40).

. "${0%/*}/test_common.sh"

requires vmdedup vmdedup-agent vmdedup-meta vmdedup-data ip nsenter jq stamp
writes=${WRITES:-40} seed=31 most=100000
log=$TEST_TMP/log
netns=vmdedup-handover
declare -A address=([here]=10.213.79.1 [there]=10.213.79.2)
meta=tcp://${address[here]}:7401

remove_network() {
	! ip netns pids $netns >/dev/null 2>&1 || ip netns del $netns
}

make_network() {
	ip netns add $netns
	cleanup_fn remove_network
	ip link add vmdedup0 type veth peer name eth0 netns $netns
	ip addr add "${address[here]}/24" dev vmdedup0
	ip link set vmdedup0 up
	ip -n $netns addr add "${address[there]}/24" dev eth0
	ip -n $netns link set lo up
	ip -n $netns link set eth0 up
}

# config NAME LINE...: of the process NAME
config() {
	local name=$1
	shift
	printf '%s\n' "[store]" "store = $TEST_TMP/$name" "run = $TEST_TMP/run-$name" \
		"[curve]" "secret = $TEST_TMP/key_secret" "servers = $TEST_TMP/key" \
		"clients = $TEST_TMP/clients" "$@" >"$TEST_TMP/$name.conf"
}

# at NAME: sets ${there[@]}, the words before a command of that host
at() {
	there=(env "VMDEDUP_CONF=$TEST_TMP/$1.conf")
	[ "$1" != there ] || there+=(nsenter "--net=/run/netns/$netns")
}

# on NAME COMMAND...
on() {
	local there
	at "$1"
	"${there[@]}" "${@:2}"
}

is_ready() {
	on "$1" vmdedup status --json 2>/dev/null | jq -e '.agent.channel' >/dev/null
}

servers() {
	[ "$(on here vmdedup cluster info --json | jq '.servers | length')" = 1 ]
}

start_servers() {
	vmdedup --conf /dev/null cluster key "$TEST_TMP/key"
	mkdir "$TEST_TMP/clients"
	cp "$TEST_TMP/key" "$TEST_TMP/clients/"
	config meta "[meta]" "listen = $meta"
	config data "[cluster]" "meta = $meta" "[data]" "dir = $TEST_TMP/blocks" "host = store" \
		"listen = tcp://${address[here]}:7402"
	on meta vmdedup cluster init --name lab --block-size 64K
	start vmdedup-meta --conf "$TEST_TMP/meta.conf"
	start vmdedup-data --conf "$TEST_TMP/data.conf"
}

# start_host NAME: its cache NAME-cache and its agent
start_host() {
	local disk
	disk=$(make_disk 128)
	config "$1" "[cluster]" "meta = $meta" "[data]" "host = $1" "[agent]" \
		"cache = /dev/mapper/$1-cache" "listen = tcp://${address[$1]}:7403"
	on "$1" vmdedup cache format --block-size 64K "$disk"
	dm_create "$1-cache" "0 $(sectors "$disk") dedup-cache $disk"
	at "$1"
	start "${there[@]}" vmdedup-agent
	wait_until 30 is_ready "$1"
}

remove_volume() {
	! dmsetup info "$1" >/dev/null 2>&1 || dmsetup message "$1" 0 fail_parked
	dm_remove "$1"
}

last_write() {
	[ -e "$log" ] && tail -n 1 "$log" | tr -d ' ' || echo 0
}

has_written() {
	[ "$(last_write)" -ge "$1" ]
}

# is_warm FROM TO: also while FROM's blocks change
is_warm() {
	on "$1" vmdedup volume handover "vm-$1" --to "$2" --prepare --json >"$TEST_TMP/warm" &&
		jq -e '.cold == "" and .warm == .blocks and .from_peers > 0' "$TEST_TMP/warm" >/dev/null
}

# Cut off by a server that is busy, the same command goes on.
is_handed_over() {
	on "$1" vmdedup volume handover vm --to "$2" --json >"$TEST_TMP/handed"
}

ms() {
	awk "BEGIN { printf \"%.0f\", ($2 - $1) * 1000 }"
}

# hand_over FROM TO
hand_over() {
	local last before handed attached after
	last=$(last_write)
	# The daemons share these processors.
	start nice -n 19 stamp write -r -f $((last + 1)) "/dev/mapper/vm-$1" "$log" $seed $most 1
	wait_until 120 has_written $((last + writes))
	wait_until 180 is_warm "$1" "$2"
	last=$(last_write)
	wait_until 120 has_written $((last + 1))
	# The guest stops in the midst of what it does.
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null || [ $? = 137 ]
	before=$(stat -c %.9Y "$log")
	last=$(last_write)
	wait_until 120 is_handed_over "$1" "$2"
	handed=$(date +%s.%N)
	on "$2" vmdedup volume attach vm --name "vm-$2" --wait 60
	attached=$(date +%s.%N)
	stamp write -f $((last + 1)) "/dev/mapper/vm-$2" "$log" $seed $((last + 1)) 1
	after=$(stat -c %.9Y "$log")
	echo "# $1 to $2 after write $last: $(jq .blocks "$TEST_TMP/warm") blocks warm, pause of" \
		"$(ms "$before" "$after") ms: $(ms "$before" "$handed") until the volume was handed over" \
		"($(jq .last_push_blocks "$TEST_TMP/handed") blocks pushed)," \
		"$(ms "$handed" "$attached") until it was attached"
	[ "$(on "$1" vmdedup volume ls --json)" = '[]' ]
	stamp verify "/dev/mapper/vm-$2" "$log" $seed $((last + 1)) "" 1
}

make_network
start_servers
start_host here
wait_until 30 servers
start_host there
truncate -s 8M "$TEST_TMP/image"
on here vmdedup image import "$TEST_TMP/image" vm
cleanup_fn remove_volume vm-here
cleanup_fn remove_volume vm-there
on here vmdedup volume attach vm --name vm-here
run_case "a volume goes to another host while it is written" hand_over here there
run_case "and back" hand_over there here
on here vmdedup volume detach vm-here
on there vmdedup volume attach vm --name vm-there --read-only
stamp verify /dev/mapper/vm-there "$log" $seed "$(last_write)" "" 1
on there vmdedup volume detach vm-there
on here vmdedup cluster check
finish
