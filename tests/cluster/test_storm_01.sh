#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# Hosts that all boot the same image at once, with cold caches, from one data server: the block
# that one has got is where the next gets it from.

# shellcheck source=tests/cluster/swarm_common.sh
. "${0%/*}/swarm_common.sh"

hosts=${TEST_HOSTS:-8}
mib=48
make_keys
head -c ${mib}M /dev/urandom >"$images/a.raw"
unique=$((mib * 1048576))

# storm NAME: a new fleet whose hosts boot all at once. Sets $answer, $bytes.
storm() {
	local before
	start_fleet 1
	vmdedup image import "$images/a.raw" a >/dev/null
	start_swarm "$2" a "$images/a.raw"
	before=$(served)
	swarm_do all start
	swarm_do all boot 1
	bytes=$(($(served) - before))
	[ "$(of bad)" = 0 ]
	echo "# $1: $2 hosts, median $(of ms_median) ms, worst $(of ms_worst) ms; the data server sent" \
		"$bytes bytes, $((100 * bytes / unique)) % of the image"
	swarm_do all stats
	echo "# $answer"
	[ -z "$peers" ] || from_racks "$2"
	end_swarm
	end_daemons "$meta_pid" "${data_pids[@]}"
}

# from_racks HOSTS: how many blocks came from peers of the same rack, $same, and from others, $far.
from_racks() {
	local i
	read -r same far < <(for ((i = 1; i <= $1; i++)); do
		vmdedup --conf "$store/host$i.conf" peers --json
	done | jq -rs '[.[].peers[]] | group_by(.same_rack) | map({(.[0].same_rack | tostring):
		(map(.served) | add)}) | add | "\(.true // 0) \(.false // 0)"')
	echo "# $same blocks came from peers of the same rack, $far from others"
}

storm "one host" 1
racks=2
storm "with peers" "$hosts"
# How many is a matter of timing; that racks are known is not.
[ "$same" -gt 0 ] || fail "no block came from a peer that is known to be in the same rack"
[ $((2 * bytes)) -le $((3 * unique)) ] || fail "the data server sent $bytes bytes, the image has $unique"
[ "$(of from_peer)" -gt 0 ]
peers=''
storm "without peers" "$hosts"
[ "$(of from_peer)" = 0 ]
echo "ok 1 the data server sends the image once"
echo "1..1"
