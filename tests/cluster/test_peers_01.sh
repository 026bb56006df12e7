#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# Peers that send rubbish, that stand still, and that die: they cost time, and nothing else.

# shellcheck source=tests/cluster/swarm_common.sh
. "${0%/*}/swarm_common.sh"

mib=32
make_keys
head -c ${mib}M /dev/urandom >"$images/a.raw"
start_fleet 1
vmdedup image import "$images/a.raw" a >/dev/null
blocks=$((mib * 4))
start_swarm 5 a "$images/a.raw"

# Host 1 has everything, and its disk forgets what it was: it goes on sending it. Who gets that asks
# it no more, not even after a restart, and the meta server hears of it.
liar() {
	swarm_do 1-2 start
	swarm_do 1 read 0 $blocks
	wait_until 60 knows 2 $blocks
	dd if=/dev/urandom of="$store/host1/cache" bs=1M count=$((mib + 8)) conv=notrunc status=none
	swarm_do 2 boot 1
	[ "$(of bad)" = 0 ]
	swarm_do 2 stats
	echo "# $(of lies) of $blocks blocks were lies"
	[ "$(of liars)" = 1 ]
	[ "$(of lies)" -gt 0 ]
	[ "$(of from_peer)" = 0 ]
	[ "$(json '.peers[].state' vmdedup --conf "$store/host2.conf" peers)" = liar ]
	vmdedup --conf "$store/host2.conf" peers
	vmdedup --conf "$store/host1.conf" peers
	vmdedup --conf "$store/host2.conf" status | grep -q "0 from peers"
	[ "$(json .agent.prefetched vmdedup --conf "$store/host2.conf" status)" -gt 0 ]
	[ "$(json '.[0].from.data' vmdedup --conf "$store/host2.conf" volume ls)" -gt 0 ]
	wait_until 60 grep -q "host host2 says that its peer tcp://" "$store/meta.log"
	wait_until 20 grep -q " liar " "$store/host2/agent/peers.cache"
	swarm_do 2 stop
	swarm_do 2 start
	swarm_do 2 boot 2
	[ "$(of bad)" = 0 ]
	swarm_do 2 stats
	[ "$(of lies)" = 0 ]
	[ "$(of liars)" = 1 ]
	swarm_do 1 kill
}

# Host 3 stands still in the midst of what host 4 gets from it.
stands_still() {
	local before
	swarm_do 2 kill
	swarm_do 3-4 start
	swarm_do 3 read 0 $blocks
	wait_until 60 knows 4 $blocks
	swarm_do 4 read 0 8
	swarm_do 4 stats
	before=$(of from_peer)
	[ "$before" -gt 0 ]
	swarm_do 3 pause
	swarm_do 4 boot 3
	echo "# with a peer that stands still: $(of ms_worst) ms"
	[ "$(of bad)" = 0 ]
	swarm_do 3 resume
}

# It dies while two others read.
dies() {
	swarm_do 4 evict
	swarm_do 5 start
	wait_until 60 knows 5 $blocks
	swarm_do 3 kill
	swarm_do 4-5 boot 4
	echo "# with a peer that is dead: $(of ms_worst) ms"
	[ "$(of bad)" = 0 ]
}

for name in liar stands_still dies; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
end_swarm
finish
