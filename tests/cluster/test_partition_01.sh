#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 240
# only when named
#
# The primary of PostgreSQL, a meta server and its clients are cut off together, in a network
# namespace: on their side nothing is acknowledged, on the other side the service goes on, and both
# sides' histories are one.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"
# shellcheck source=tests/cluster/ha_common.sh
. "${0%/*}/ha_common.sh"
requires python3 openssl ip
[ "$(id -u)" = 0 ] || skip "network namespaces need root"

tools=$top/build/tests/cluster
ns=vmdedup-$$
here=10.213.77.1 there=10.213.77.2
enter="ip netns exec $ns"
cut_s=${TEST_SECONDS:-35} # longer than a primary may be silent

make_network() {
	ip netns add "$ns" || skip "no network namespaces"
	cleanup_fn ip netns del "$ns"
	ip link add "vmd$$" type veth peer name eth0 netns "$ns"
	ip addr add $here/24 dev "vmd$$"
	ip link set "vmd$$" up
	$enter ip link set lo up
	$enter ip addr add $there/24 dev eth0
	$enter ip link set eth0 up
}

# One certificate for all nodes, from an authority of the test's own.
make_certificates() {
	local tls=$1
	mkdir "$tls"
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca \
		-keyout "$tls/ca.key" -out "$tls/ca.crt"
	openssl req -newkey rsa:2048 -nodes -subj /CN=postgresql -keyout "$tls/server.key" \
		-out "$tls/server.csr"
	openssl x509 -req -in "$tls/server.csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -days 2 \
		-CAcreateserial -out "$tls/server.crt" \
		-extfile <(echo "subjectAltName=IP:$here,IP:$there,IP:127.0.0.1")
	chown postgres "$tls/server.key"
	chmod 600 "$tls/server.key"
	chmod 755 "$tls"
} 2>>"$TEST_TMP/openssl.log"

# start_meta_at N [ENTER...]
start_meta_at() {
	local n=$1
	shift
	meta_ports[n]=$(free_port)
	printf '[store]\nstore = %s\nrun = %s\n' "$store/$n" "$store/run$n" >"$store/meta$n.conf"
	start "$@" vmdedup-meta --conf "$store/meta$n.conf" --store "$ha_uri" \
		--listen "tcp://127.0.0.1:${meta_ports[n]}" 2>>"$store/meta$n.log"
}

# start_history NAME PORT [join] -- [ENTER...]
start_history() {
	local name=$1 port=$2 join=''
	shift 2
	[ "$1" = -- ] || { join=$1; shift; }
	shift
	start "$@" "$tools/history" "tcp://127.0.0.1:$port" 1 "$TEST_TMP/$name" $join
	history_pids[$name]=$pid
	# It insists on its answers for minutes.
	cleanup_fn kill_quietly "$pid"
	wait_until 30 test -s "$TEST_TMP/$name"
}

kill_quietly() {
	kill -KILL "$1" 2>/dev/null
}

now_us() {
	python3 -c 'import time; print(time.monotonic_ns() // 1000)'
}

# ended FILE FROM TO: operations with a result that ended within these microseconds.
ended() {
	awk -v from="$2" -v to="$3" '$3 > from && $3 < to && $6 != "?"' "$1" | wc -l
}

has_ended() {
	[ "$(ended "$@")" -gt 20 ]
}

declare -A history_pids=()
make_network
node_address=([1]=$there [2]=$here [3]=$here) node_enter=([1]=$enter) etcd_address=$here
ha_begin
make_certificates "$ha/tls"
export PGSSLMODE=verify-ca PGSSLROOTCERT=$ha/tls/ca.crt
ha_nodes 3 --tls "$ha/tls"
ha_leads 1
ha_uri="$ha_uri?sslmode=verify-full&sslrootcert=$ha/tls/ca.crt"
new_store
vmdedup --conf /dev/null cluster init --store "$ha_uri"
start_meta_at 1 $enter
start_meta_at 2
start_history inside "${meta_ports[1]}" -- $enter
start_history outside "${meta_ports[2]}" join --
wait_until 30 has_ended "$TEST_TMP/outside" 0 1e18

$enter ip link set eth0 down
cut=$(now_us)
# What was on its way; then nothing may come.
from=$((cut + 1000000))
end=$((SECONDS + cut_s))
wait_until 60 has_ended "$TEST_TMP/outside" "$from" 1e18
back=$(now_us)
until [ $SECONDS -ge $end ]; do
	sleep 0.5
done
heal=$(now_us)
$enter ip link set eth0 up
wait_until 60 has_ended "$TEST_TMP/inside" "$heal" 1e18
kill -TERM "${history_pids[inside]}" "${history_pids[outside]}"
wait "${history_pids[inside]}" "${history_pids[outside]}"

nothing_acknowledged() {
	echo "# cut off for $(((heal - cut) / 1000000)) s; the other side served again after $(((back -
		cut) / 1000000)) s"
	[ "$(ended "$TEST_TMP/inside" "$from" "$heal")" = 0 ]
	[ "$(ended "$TEST_TMP/outside" "$from" "$heal")" -gt 20 ]
}

one_history() {
	cat "$TEST_TMP/inside" "$TEST_TMP/outside" >"$TEST_TMP/both"
	"$top/tests/cluster/linearizable" "$TEST_TMP/both"
}

run_case "the cut-off side acknowledges nothing, the other goes on" nothing_acknowledged
run_case "both sides' histories are one that is linearizable" one_history
finish
