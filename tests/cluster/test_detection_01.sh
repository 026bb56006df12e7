#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# How a dead data server is found, by what the governor itself says: under load and without any traffic a
# signal (a complaint, or a connection that broke) finds a process that was killed, long before its
# heartbeats could be missed; one that is silent is found when these have been missed for the stated bound.
# The times are printed; how short they are is no test's.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

silent_ms=6000 # GOVERNOR_SILENT_MS

start_fleet 4 --block-size 64K --replicas 2 --min-copies 1
head -c 4M /dev/urandom >"$images/a.raw"

# What the governor said when it found it, without what goes before "is down: ".
found() { # NUMBER
	sed -n "s/.*(host host$1) is down: //p" "$store/meta.log" | tail -n 1
}

times() { # NUMBER
	grep -c "(host host$1) is down: " "$store/meta.log" || [ $? = 1 ]
}

is_found() { # NUMBER TIMES-BEFORE
	[ "$(times "$1")" -gt "$2" ]
}

is_up() { # NUMBER
	[ "$(json ".servers[] | select(.host == \"host$1\") | .state" vmdedup cluster servers)" = up ]
}

# Once more, when the governor stood still for so long that it may say that the server was silent.
killed() { # NUMBER
	local before
	for _ in 1 2 3 4; do
		wait_until 30 is_up "$1"
		before=$(times "$1")
		kill_hard "${data_pids[$1]}"
		wait_until 30 is_found "$1" "$before"
		[[ $(found "$1") == 'it does not answer'* ]] || return 0
		start_data "$1"
	done
}

# of "last answer" FOUND: how many milliseconds.
of() {
	sed -n "s/.*$1 \([0-9]*\) ms.*/\1/p" <<<"$2"
}

# Its last answer was before the signal, and that was before the probe.
by_a_signal() { # FOUND
	local last signal
	[ "${1%%;*}" = 'nothing listens there' ] || fail "found otherwise: $1"
	last=$(of 'last answer' "$1")
	signal=$(of 'first complaint' "$1")
	[ "$signal" ] || signal=$(of 'connection lost' "$1")
	[ "$signal" ] && [ "$signal" -le "$last" ] || fail "no signal came before: $1"
	echo "# found at most $last ms after its death: $1"
}

load() {
	local n=0
	while [ -d "$store" ] && [ ! -e "$store/enough" ]; do
		n=$((n + 1))
		head -c 4M /dev/urandom >"$images/b.raw"
		vmdedup image import "$images/b.raw" "b$n" >>"$store/load.log" 2>&1 || :
		vmdedup image verify a --against "$images/a.raw" >>"$store/load.log" 2>&1 || :
		echo $n >"$store/loaded"
	done
}

killed_under_load() {
	local loader
	vmdedup image import "$images/a.raw" a >/dev/null
	wait_until 60 all_current
	load &
	loader=$!
	wait_until 60 test -s "$store/loaded"
	killed 1
	touch "$store/enough"
	wait "$loader"
	by_a_signal "$(found 1)"
}

killed_without_traffic() {
	killed 2
	by_a_signal "$(found 2)"
}

silent() {
	local last before
	wait_until 30 is_up 3
	before=$(times 3)
	kill -STOP "${data_pids[3]}"
	wait_until 60 is_found 3 "$before"
	kill -CONT "${data_pids[3]}"
	last=$(of 'last answer' "$(found 3)")
	[[ $(found 3) == 'it does not answer'* ]] || fail "found otherwise: $(found 3)"
	[ "$last" -ge $silent_ms ] || fail "given up too soon: $(found 3)"
	echo "# found $last ms after its last answer: $(found 3)"
}

for name in killed_under_load killed_without_traffic silent; do
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
end_daemons "${data_pids[3]}" "${data_pids[4]}" "$meta_pid"
finish
