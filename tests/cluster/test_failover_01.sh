#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 400
#
# Two meta servers on a PostgreSQL under Patroni, clients that never pause, and kills of the primary
# and of a meta server by turns: no acknowledged operation is lost, none is done twice. As many of
# each as --kills says (1); with 30, give it --timeout 3000.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"
# shellcheck source=tests/cluster/ha_common.sh
. "${0%/*}/ha_common.sh"
requires python3

kills=${TEST_KILLS:-1}
seed=${TEST_SEED:-$RANDOM}
tools=${BIN:+${BIN%/bin}/tests/cluster}
tools=${tools:-$top/build/tests/cluster}
history=$TEST_TMP/history
RANDOM=$seed
echo "# --seed $seed --kills $kills"

start_metas() {
	local i
	new_store
	wait_until 60 ha_init
	for i in 1 2; do
		meta_ports[i]=$(free_port)
		printf '[store]\nstore = %s\nrun = %s\n' "$store/$i" "$store/run$i" >"$store/meta$i.conf"
		start_one_meta $i
	done
	metas=tcp://127.0.0.1:${meta_ports[1]},tcp://127.0.0.1:${meta_ports[2]}
	printf '[cluster]\nmeta = %s\n' "$metas" >"$VMDEDUP_CONF"
	wait_until 20 vmdedup cluster info
}

start_one_meta() {
	start vmdedup-meta --conf "$store/meta$1.conf" --store "$ha_uri" \
		--listen "tcp://127.0.0.1:${meta_ports[$1]}" 2>>"$store/meta$1.log"
	meta_pids[$1]=$pid
}

lines() {
	wc -l <"$history"
}

has_more_than() {
	[ "$(lines)" -gt "$1" ]
}

# note WHAT: what is killed now, on the clock of the history.
note() {
	python3 -c 'import sys, time; print(time.monotonic_ns() // 1000, *sys.argv[1:])' "$@" |
		tee -a "$history.kills" | sed 's/^/# kill: /'
}

# The service is back: many operations, more than were on their way.
served_again() {
	local want=$(($(lines) + 30)) end=$((SECONDS + 360))
	until has_more_than $want; do
		[ $SECONDS -lt $end ] || show_all
		sleep 0.1
	done
}

show_all() {
	local f
	ha_members | jq -c '.members[]'
	for f in "$ha"/*.log "$store"/*.log; do
		echo "--- $f"
		tail -n 25 "$f" | cut -c 1-200
	done
	fail "the service does not come back"
}

kill_primary() {
	local node
	wait_until 90 ha_is_whole 3
	node=$(ha_primary)
	if [ $(($1 % 3)) = 0 ]; then
		note host of the primary "n$node"
		kill_host "$node"
		served_again
		start_patroni "$node"
	else
		note primary "n$node"
		kill_postgres "$node"
		served_again
	fi
}

kill_meta() {
	local i=$((RANDOM % 2 + 1))
	note meta server $i
	# It has ended already if it was started while there was no database.
	! kill -0 "${meta_pids[i]}" 2>/dev/null || kill_hard "${meta_pids[i]}"
	served_again
	start_one_meta $i
}

kill_quietly() {
	kill -KILL "$1" 2>/dev/null
}

linearizable() {
	"$top/tests/cluster/linearizable" "$history" "$history.kills"
}

ha_start 3
start_metas
start "$tools/history" "$metas" "$seed" "$history"
history_pid=$pid
# It insists on its answers for minutes.
cleanup_fn kill_quietly "$history_pid"
wait_until 30 test -s "$history"
for ((i = 1; i <= kills; i++)); do
	kill_primary $((i + 1))
	kill_meta
done
kill -TERM "$history_pid"
wait "$history_pid"
run_case "service comes back, and the recorded history is linearizable" linearizable
run_case "the counts agree" vmdedup cluster check
finish
