#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The order in which one host's boot touched an image is replayed when another host opens it, or a
# clone of it: the guest finds the blocks there.

# shellcheck source=tests/cluster/swarm_common.sh
. "${0%/*}/swarm_common.sh"

make_keys
head -c 64M /dev/urandom >"$images/a.raw"
start_fleet 1
vmdedup image import "$images/a.raw" a >/dev/null
vmdedup image clone a b >/dev/null
start_swarm 2 a "$images/a.raw"

first_boot() {
	swarm_do 1 start
	swarm_do 1 boot 5 100
	[ "$(of bad)" = 0 ]
	swarm_do 1 stats
	misses=$(($(of from_data) + $(of from_peer)))
	echo "# the first boot: $misses misses"
	[ "$misses" -gt 0 ]
	# The volume's end hands the trace over.
	swarm_do 1 reopen
}

# What is touched, and what was read ahead of it in the first boot. Not while more of it comes: the guest
# would overtake it.
before=0 still=0
came_ahead() {
	local now
	swarm_do 2 stats
	now=$(of prefetched)
	[ "$now" = "$before" ] && still=$((still + 1)) || still=0
	before=$now
	[ "$now" -ge 100 ] && [ $still -ge 50 ]
}

# Until the trace is there: each OPEN asks for it.
replayed() {
	! came_ahead || return 0
	[ "$(of prefetched)" -ge 100 ] || swarm_do 2 reopen
	return 1
}

second_boot() {
	swarm_do 2 start
	wait_until 60 replayed
	[ "$(of from_data)" = 0 ]
	swarm_do 2 boot 5 100
	[ "$(of bad)" = 0 ]
	swarm_do 2 stats
	[ $(($(of from_data) + $(of from_peer))) = 0 ] || fail "the guest waited: $answer"
	echo "# 100 blocks were read, $(($(of bytes) / 262144)) fetched"
}

for name in first_boot second_boot; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
end_swarm
finish
