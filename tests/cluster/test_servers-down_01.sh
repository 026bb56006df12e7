#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# All data servers die, then the meta server as well: hosts go on with what their peers have.

# shellcheck source=tests/cluster/swarm_common.sh
. "${0%/*}/swarm_common.sh"

mib=40
make_keys
head -c ${mib}M /dev/urandom >"$images/a.raw"
start_fleet 2
vmdedup image import "$images/a.raw" a >/dev/null
blocks=$((mib * 4))
start_swarm 6 a "$images/a.raw"

# Four hosts have a quarter each, one has read everything once, one has only opened the volume.
spread() {
	local i
	swarm_do all start
	for i in 1 2 3 4; do
		swarm_do $i read $((blocks / 4 * (i - 1))) $((blocks / 4 * i))
		[ "$(of bad)" = 0 ]
	done
	swarm_do 5 read 0 $blocks
	swarm_do 5 evict
	wait_until 60 knows 5 $blocks
	wait_until 60 knows 6 $blocks
}

data_servers_down() {
	kill_hard "${data_pids[1]}"
	kill_hard "${data_pids[2]}"
	swarm_do 5 reopen
	swarm_do 5 boot 7
	echo "# without data servers: $(of ms_worst) ms"
	[ "$(of bad)" = 0 ]
	swarm_do 5 stats
	[ "$(of from_peer)" -gt 0 ]
}

# The recipe, too, comes from peers.
meta_server_down() {
	kill_hard "$meta_pid"
	swarm_do 5 evict
	swarm_do 5 reopen
	swarm_do 5 boot 8
	echo "# without any server: $(of ms_worst) ms"
	[ "$(of bad)" = 0 ]
	swarm_do 6 boot 9
	echo "# and without the recipe: $(of ms_worst) ms"
	[ "$(of bad)" = 0 ]
	swarm_do 6 stats
	[ "$(of from_data)" = 0 ]
	[ "$(of from_peer)" -gt 0 ]
}

# An agent that begins while no server is there. Its cache has forgotten the blocks, and has the
# volume's record; the recipe is in its file, its peers are in theirs.
agent_restarted() {
	swarm_do 5 evict
	swarm_do 5 restart
	swarm_do 5 reopen
	swarm_do 5 boot 11
	echo "# with a new agent: $(of ms_worst) ms"
	[ "$(of bad)" = 0 ]
	swarm_do 5 stats
	[ "$(of from_data)" = 0 ]
	[ "$(of from_cache)" = 0 ]
	[ "$(of from_peer)" -gt 0 ]
}

# One of those that had everything is left, and all come to it.
last_host() {
	swarm_do 1-4 kill
	swarm_do 5 evict
	swarm_do 5 boot 10
	echo "# with one peer: $(of ms_worst) ms"
	[ "$(of bad)" = 0 ]
}

for name in spread data_servers_down meta_server_down agent_restarted last_host; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
end_swarm
finish
