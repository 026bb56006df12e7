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
	end_swarm
	end_daemons "$meta_pid" "${data_pids[@]}"
}

storm "one host" 1
storm "with peers" "$hosts"
[ $((2 * bytes)) -le $((3 * unique)) ] || fail "the data server sent $bytes bytes, the image has $unique"
[ "$(of from_peer)" -gt 0 ]
peers=''
storm "without peers" "$hosts"
[ "$(of from_peer)" = 0 ]
echo "ok 1 the data server sends the image once"
echo "1..1"
