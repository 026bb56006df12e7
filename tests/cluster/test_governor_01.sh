#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 200
# Who is down and who is out: a dead server is, a slow one is not; whoever hears nobody marks nobody;
# nothing goes out by itself beyond one host; and a disk is known by its UUID.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

start_fleet 5 --block-size 64K --replicas 2 --min-copies 1

state_of() { # NUMBER
	json "[.servers[] | select(.host == \"host$1\")] | max_by(.id) | .state" vmdedup cluster servers
}

in_state() { # NUMBER STATE
	[ "$(state_of "$1")" = "$2" ]
}

said() { # PATTERN
	grep -cE "$1" "$store/meta.log" || [ $? = 1 ]
}

# found SECONDS PATTERN: the log says so within that time; prints how long it took.
found() {
	local from
	from=$(date +%s%N)
	wait_until "$1" in_log "$2"
	echo "# found after $((($(date +%s%N) - from) / 1000000)) ms"
}

# Nobody asks for anything: the heartbeat alone, once a second, notices.
killed_is_down() {
	kill_hard "${data_pids[1]}"
	found 20 'host host1\) is down: nothing listens there'
	wait_until 10 in_state 1 down
	start_data 1
	wait_until 20 in_state 1 up
}

# Three seconds of silence, twice: it stays up. (If they were six, on a busy machine, once more.)
slow_is_up() {
	local before good=0 start
	for _ in 1 2 3 4 5 6 7 8; do
		wait_until 20 in_state 2 up
		before=$(said 'host host2\) is down')
		start=$SECONDS
		kill -STOP "${data_pids[2]}"
		sleep 3
		kill -CONT "${data_pids[2]}"
		[ $((SECONDS - start)) -lt 5 ] || continue
		sleep 4
		[ "$(said 'host host2\) is down')" = "$before" ] || continue
		good=$((good + 1))
		[ $good -lt 2 ] || return 0
	done
	fail "three seconds were six each time"
}

# One that is silent for longer is down, and comes back by its heartbeats alone.
silent_is_down() {
	local up down
	up=$(said 'host host2\) is up') down=$(said 'host host2\) is down: it does not answer')
	kill -STOP "${data_pids[2]}"
	wait_until 30 said_more "$down" 'host host2\) is down: it does not answer' # after six seconds of silence
	# What it answered before that does not raise it: some rounds of the governor later it is still down.
	sleep 2
	[ "$(said 'host host2\) is up')" = "$up" ]
	kill -CONT "${data_pids[2]}"
	wait_until 20 in_state 2 up
}

said_more() { # THAN PATTERN
	[ "$(said "$2")" -gt "$1" ]
}

in_log() {
	[ "$(said "$1")" -gt 0 ]
}

# All are silent: it is the governor that is cut off.
cut_off_marks_nobody() {
	local before
	wait_until 20 servers_are_up 5
	before=$(said 'is down')
	kill -STOP "${data_pids[@]}"
	sleep 9
	kill -CONT "${data_pids[@]}"
	[ "$(said 'is down')" = "$before" ]
	wait_until 20 servers_are_up 5
}

# Two hosts die for good: one goes out, the other stays down until a person says so.
one_goes_out() {
	vmdedup cluster set --out-after 1s
	kill_hard "${data_pids[3]}"
	kill_hard "${data_pids[4]}"
	wait_until 30 in_log 'is out: it has been down for too long'
	sleep 4
	[ "$(said 'is out')" = 1 ] || fail "$(said 'is out') went out"
	vmdedup cluster set --out-after 1h
	start_data 3
	start_data 4
	wait_until 30 servers_are_up 5
}

# The disk of another cluster is refused; an empty one is another server.
another_disk() {
	local other
	kill_hard "${data_pids[5]}"
	other=$(sed -n 's/^uuid //p' "$store/data5/disk.uuid")
	sed -i 's/^cluster .*/cluster 12345678-1234-1234-1234-123456789abc/' "$store/data5/disk.uuid"
	start_data 5
	wait_until 20 grep -q 'belongs to' "$store/data5.log"
	wait_until 20 in_state 5 down
	end_daemons "${data_pids[5]}"
	rm -rf "$store/data5"
	start_data 5
	wait_until 20 in_state 5 up
	[ "$(sed -n 's/^uuid //p' "$store/data5/disk.uuid")" != "$other" ]
	[ "$(json '[.servers[] | select(.host == "host5")] | length' vmdedup cluster servers)" = 2 ]
}

for name in killed_is_down slow_is_up silent_is_down cut_off_marks_nobody one_goes_out another_disk; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
