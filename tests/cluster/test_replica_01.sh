#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# Replicas: a block is on as many data servers as the cluster wants, and stays readable and complete
# while servers die, come back, come back empty or as they were yesterday, are drained and added.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

make_image "$images/a.raw" 48
make_image "$images/b.raw" 48
make_image "$images/c.raw" 24

data_conf='repair_rate = 1G'
start_fleet 3 --block-size 64K --replicas 2 --min-copies 1

# Fails when a server does not tell: it would count as copies that are missing.
copies() {
	told '[.servers[] | select(.state == "up") | .blocks // error("server \(.id) is silent")] | add'
}

stored_twice() {
	vmdedup image import "$images/a.raw" a
	wait_until 30 all_current
	wait_until 20 copies_agree
	same_and_sparse a "$images/a.raw"
}

# Of the server that was started as number $1, the newest disk of it: id_of NUMBER; in_state NUMBER STATE.
id_of() {
	json "[.servers[] | select(.host == \"host$1\") | .id] | max" vmdedup cluster servers
}

in_state() {
	[ "$(json ".servers[] | select(.id == $(id_of "$1")) | .state" vmdedup cluster servers)" = "$2" ]
}

enough_copies() {
	[ "$(copies)" -ge $((2 * $(json .blocks vmdedup cluster info))) ]
}

# One server is killed: reads and writes go on at once; it comes back and gets what it missed.
one_dies() {
	kill_hard "${data_pids[2]}"
	vmdedup image verify a --against "$images/a.raw"
	vmdedup image import "$images/b.raw" b
	same_and_sparse b "$images/b.raw"
	wait_until 20 in_state 2 down
	start_data 2
	wait_until 20 in_state 2 up
	wait_until 60 all_current
	wait_until 20 enough_copies
	# Now the other two: each block is still there.
	kill_hard "${data_pids[1]}"
	vmdedup image verify b --against "$images/b.raw"
	start_data 1
	wait_until 20 in_state 1 up
	wait_until 60 all_current
}

# Out: what it held is copied anew by the others.
one_is_lost() {
	vmdedup cluster set --out-after 2s
	kill_hard "${data_pids[3]}"
	wait_until 30 in_state 3 out
	vmdedup cluster set --out-after 1h
	wait_until 60 all_current
	wait_until 20 copies_agree
	# It comes back with its disk empty, under a new UUID, and gets its share.
	rm -rf "$store/data3"
	vmdedup cluster remove --lost "$(id_of 3)"
	start_data 3
	wait_until 30 in_state 3 up
	wait_until 60 has_share 3
	wait_until 60 all_current
	vmdedup image verify a --against "$images/a.raw"
}

has_share() { # SERVER
	[ "$(json ".servers[] | select(.id == $(id_of "$1")) | .shards" vmdedup cluster servers)" -ge 600 ]
}

# Yesterday's copy of a disk: stale until it is reconciled, then complete.
comes_back_as_it_was() {
	end_daemons "${data_pids[2]}"
	cp -a "$store/data2" "$store/yesterday"
	start_data 2
	wait_until 20 in_state 2 up
	vmdedup image import "$images/c.raw" c
	wait_until 60 all_current
	kill_hard "${data_pids[2]}"
	rm -rf "$store/data2"
	mv "$store/yesterday" "$store/data2"
	# Not what was said before it died.
	wait_until 20 in_state 2 down
	start_data 2
	wait_until 20 in_state 2 up
	wait_until 60 all_current
	kill_hard "${data_pids[1]}"
	vmdedup image verify c --against "$images/c.raw"
	start_data 1
	wait_until 20 in_state 1 up
	wait_until 60 all_current
}

drained_and_removed() {
	local id
	id=$(id_of 1)
	vmdedup cluster drain "$id"
	expect_status 4 "drain" vmdedup cluster remove "$id"
	wait_until 60 holds_nothing 1
	vmdedup cluster remove "$id"
	end_daemons "${data_pids[1]}"
	for image in a b c; do
		vmdedup image verify $image --against "$images/$image.raw"
	done
}

holds_nothing() {
	[ "$(json ".servers[] | select(.id == $(id_of "$1")) | .shards" vmdedup cluster servers)" = 0 ]
}

counts_agree() {
	vmdedup image rm b
	vmdedup cluster gc --full
	vmdedup cluster check
	copies_agree || fail "$(copies) copies of $(json .blocks vmdedup cluster info) blocks:" \
		"$(vmdedup cluster info) $(vmdedup cluster status)"
}

copies_agree() {
	[ "$(copies)" = $((2 * $(json .blocks vmdedup cluster info))) ]
}

for name in stored_twice one_dies one_is_lost comes_back_as_it_was drained_and_removed counts_agree; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
