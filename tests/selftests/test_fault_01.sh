#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# not on: 6.1
#
# An agent that answers wrongly, late, twice and out of order, that dies at every step, and of which
# there are two at once: no wrong byte, and nothing that waits for ever.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

disk=$(make_disk 128)
format_cache "$disk"
open_cache cache0 "$disk"
size=$((8 << 20))
vol=/dev/mapper/vol0

setup() {
	rm -f "$TEST_TMP"/img.*
	make_image "$TEST_TMP/img" 8
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	cleanup_fn forget
	start_agent "$@" "img=$TEST_TMP/img"
}

forget() {
	stop_agent
	start_agent "img=$TEST_TMP/img"
	detach vol0
	if [ "$(agent volumes)" ]; then
		agent fence img
		agent release img discard
	fi
	stop_agent
}

wrong_answers() {
	setup -f -m
	attach vol0 img $size
	same
	put 5 3000 1
	agent push img
	agent dropall
	same
	put 7000 100 2
	same
	agent push img
	same
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
	agent faults
}

# Twelve readers wait; their blocks come last first, each after wrong answers and before late ones.
out_of_order() {
	local readers=() i
	setup -f -h
	agent dropall
	attach vol0 img $size 1 read_only
	for i in 0 3 6 9 12 15 18 21 24 27 30 31; do
		start dd if=$vol of="$TEST_TMP/out.$i" bs=256k skip=$i count=1 iflag=direct status=none
		readers+=("$pid")
	done
	wait_until 20 waiting 12
	# Sent again: the cookies are the same, the answers still count once.
	agent hello
	wait_until 20 waiting 12
	agent answer
	for i in "${readers[@]}"; do
		wait "$i"
	done
	for i in 0 3 6 9 12 15 18 21 24 27 30 31; do
		cmp -i $((i << 18)):0 -n $((1 << 18)) "$TEST_TMP/ref" "$TEST_TMP/out.$i"
	done
	agent faults
}

# gone: the agent has died by itself
gone() {
	! kill -0 "$agent_pid" 2>/dev/null
}

reborn() {
	wait_until 30 gone
	start_agent "img=$TEST_TMP/img"
}

# dies STEP COMMAND...: the command goes on, or is done again, with the next agent.
dies_in_call() {
	local step=$1
	echo "# $step"
	put $((RANDOM % 8000)) $((1 + RANDOM % 5000)) $RANDOM
	put 4096 512 $RANDOM		# a whole block: its own slot becomes the base
	put 9000 1 $RANDOM		# and another one: a stage has two
	agent die "$step"
	expect_error "" agent push img
	reborn
	same
	put $((RANDOM % 8000)) 100 $RANDOM
	agent push img
	same
	agent push img
	same
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
}

dies_in_upcall() {
	local step=$1 waiter
	echo "# $step"
	detach vol0
	agent dropall
	agent die "$step"
	start dmsetup create vol0 --table "0 $((size / 512)) dedup $cache img"
	waiter=$pid
	if [ "$step" = fetch ] || [ "$step" = publish ]; then
		wait "$waiter"
		start dd if=$vol of="$TEST_TMP/out" bs=1M iflag=direct status=none
		waiter=$pid
	fi
	reborn
	wait "$waiter"
	same
}

at_every_step() {
	local step
	setup
	attach vol0 img $size
	for step in lookup open fetch publish; do
		dies_in_upcall $step
	done
	for step in cut list merge head stage commit; do
		dies_in_call $step
	done
}

# Of several that come at once, one gets the channel.
two_at_once() {
	local pids=() i left=0 tries
	setup
	attach vol0 img $size
	stop_agent
	for ((tries = 0; tries < 5; tries++)); do
		pids=()
		for i in 1 2 3 4; do
			start channel_agent serve "$uuid:$cache" "$TEST_TMP/many.$i" "img=$TEST_TMP/img"
			pids+=("$pid")
		done 2>/dev/null
		wait_until 10 one_is_left "${pids[@]}"
		dd if=$vol of="$TEST_TMP/out" bs=1M iflag=direct status=none
		cmp "$TEST_TMP/out" "$TEST_TMP/ref"
		for i in "${pids[@]}"; do
			stop "$i"
		done
	done
	start_agent "img=$TEST_TMP/img"
}

one_is_left() {
	local p n=0
	for p; do
		! kill -0 "$p" 2>/dev/null || n=$((n + 1))
	done
	[ $n = 1 ]
}

run_case "wrong answers are refused, and so is what comes after the right one" wrong_answers
run_case "answers in another order, to requests that were sent again" out_of_order
run_case "the agent dies at every step" at_every_step
run_case "several agents at once" two_at_once
finish
