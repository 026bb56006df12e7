# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# shellcheck disable=SC2034 # its variables are for the tests
#
# A PostgreSQL of three nodes under Patroni with etcd, on loopback, made from tools/patroni-config as
# Documentation/operations.rst describes it. Sourced after test_common.sh.

top=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd)
requires patroni etcd etcdctl psql jq

# Its programs refuse to run as root.
if [ "$(id -u)" = 0 ]; then
	as_postgres() {
		exec setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps=-all \
			env HOME="$ha" PATH="$PATH" "$@"
	}
else
	as_postgres() {
		exec env HOME="$ha" "$@"
	}
fi

# in_folder: what as_postgres runs, with its words in FILE.
start_logged() {
	local file=$1
	shift
	start "$@" >>"$file" 2>&1
}

# A test may set, for nodes that are not all on 127.0.0.1: ${node_address[N]} of a node, the
# ${node_enter[N]} under which its commands run ("ip netns exec ..."), and $etcd_address.
node_address=() node_enter=() etcd_address=127.0.0.1

# ha_start N: etcd and N nodes; returns when there is a primary with a synchronous standby. Sets
# $ha (a folder), $ha_uri (of the database), ${pg_ports[]} and ${patroni_pids[]}.
ha_start() {
	ha_begin
	ha_nodes "$1"
}

# The folder and etcd.
ha_begin() {
	ha=$(mktemp -d /tmp/vmdedup-ha.XXXX)
	cleanup_fn ha_stop
	[ "$(id -u)" != 0 ] || chown postgres "$ha"
	printf 'superuser=s-%s\nreplication=r-%s\nrewind=w-%s\n' $RANDOM $RANDOM $RANDOM >"$ha/passwords"
	etcd_port=$(free_port)
	etcd_peer=$(free_port)
	start_logged "$ha/etcd.log" as_postgres etcd --data-dir "$ha/etcd" --name e1 \
		--listen-client-urls "http://$etcd_address:$etcd_port" \
		--advertise-client-urls "http://$etcd_address:$etcd_port" \
		--listen-peer-urls "http://127.0.0.1:$etcd_peer" \
		--initial-advertise-peer-urls "http://127.0.0.1:$etcd_peer" \
		--initial-cluster "e1=http://127.0.0.1:$etcd_peer" --unsafe-no-fsync
	wait_until 20 etcd_answers
}

# ha_nodes N [OPTION...]: the first of them becomes the primary. OPTIONs for tools/patroni-config.
ha_nodes() {
	local n=$1 i
	shift
	for ((i = 1; i <= n; i++)); do
		pg_ports[i]=$(free_port) rest_ports[i]=$(free_port)
		mkdir "$ha/n$i"
		[ "$(id -u)" != 0 ] || chown postgres "$ha/n$i"
		"$top/tools/patroni-config" --name "n$i" --address "${node_address[i]-127.0.0.1}" \
			--etcd "$etcd_address:$etcd_port" --data "$ha/n$i/data" \
			--passwords "$ha/passwords" --port "${pg_ports[i]}" \
			--rest-port "${rest_ports[i]}" --sockets "$ha/n$i" "$@" >"$ha/n$i.yml"
		start_patroni "$i"
		[ "$i" != 1 ] || wait_until 60 ha_leads 1
	done
	wait_until 60 ha_is_whole "$n"
	ha_database
}

ha_leads() {
	[ "$(ha_primary 2>/dev/null)" = "$1" ]
}

etcd_answers() {
	(exec 3<>"/dev/tcp/$etcd_address/$etcd_port") 2>/dev/null
}

start_patroni() {
	local enter=${node_enter[$1]-}
	# shellcheck disable=SC2086 # words
	start_logged "$ha/n$1.log" $enter "$BASH" -c "$(declare -f as_postgres); ha=$ha
		as_postgres patroni $ha/n$1.yml"
	patroni_pids[$1]=$pid
}

# The members as any node that answers sees them, as JSON.
ha_members() {
	local i
	for i in "${!rest_ports[@]}"; do
		(
			exec 3<>"/dev/tcp/${node_address[i]-127.0.0.1}/${rest_ports[i]}" || exit 1
			printf 'GET /cluster HTTP/1.0\r\n\r\n' >&3
			timeout 5 sed '1,/^\r$/d' <&3
		) 2>/dev/null && return
	done
	return 1
}

# A primary, to which $1 - 1 others stream, and one of them synchronous: for PostgreSQL, and in
# etcd, without which it is not promoted. (What Patroni tells of others is some seconds old.)
ha_is_whole() {
	local primary sync
	primary=$(ha_primary 2>/dev/null) && [ "$primary" ] || return 1
	sync=$(ETCDCTL_API=3 etcdctl --endpoints "$etcd_address:$etcd_port" get --print-value-only \
		/service/vmdedup/sync 2>/dev/null |
		jq -r --arg leader "n$primary" 'select(.leader == $leader) | .sync_standby') || return 1
	[ "$sync" ] && [ "$sync" != null ] &&
	[ "$(ha_sql "$primary" -d postgres -c "SELECT count(*) || ' ' || string_agg(application_name,
		',') FILTER (WHERE sync_state = 'sync') FROM pg_stat_replication WHERE
		state = 'streaming'" 2>/dev/null)" = "$(($1 - 1)) $sync" ]
}

# The number of the node that is the primary.
ha_primary() {
	ha_members | jq -r '.members[] | select(.role == "leader") | .name' | tr -d n
}

ha_sql() {
	PGPASSWORD=$(sed -n 's/^superuser=//p' "$ha/passwords") psql -qAtX -h "${node_address[$1]-127.0.0.1}" \
		-p "${pg_ports[$1]}" -U postgres -v ON_ERROR_STOP=1 "${@:2}"
}

# What is there already stays: a primary that had to give up in between is followed by another one.
make_database() {
	local primary
	primary=$(ha_primary) && [ "$primary" ] || return 1
	[ "$(ha_sql "$primary" -d postgres -c "SELECT 1 FROM pg_roles WHERE rolname = 'vmdedup'")" ] ||
		ha_sql "$primary" -d postgres -c "CREATE ROLE vmdedup LOGIN PASSWORD 'v'" || return 1
	[ "$(ha_sql "$primary" -d postgres -c "SELECT 1 FROM pg_database WHERE datname = 'vmdedup'")" ] ||
		ha_sql "$primary" -d postgres -c "CREATE DATABASE vmdedup OWNER vmdedup"
}

ha_database() {
	local hosts i
	wait_until 60 make_database
	hosts=$(for i in "${!pg_ports[@]}"; do
		printf ',%s:%s' "${node_address[i]-127.0.0.1}" "${pg_ports[i]}"
	done)
	ha_uri="postgresql://vmdedup:v@${hosts#,}/vmdedup"
}

# ha_init OPTION...: the cluster's store; 4: it is there.
ha_init() {
	VMDEDUP_CONF=/dev/null vmdedup cluster init --store "$ha_uri" "$@" >/dev/null || [ $? = 4 ]
}

# kill_postgres NODE: the postmaster, at once; its children follow.
kill_postgres() {
	kill -KILL "$(head -n 1 "$ha/n$1/data/postmaster.pid")"
}

# kill_host NODE: Patroni as well, as a host that has died.
kill_host() {
	kill_hard "${patroni_pids[$1]}"
	kill_postgres "$1"
}

ha_stop() {
	local i
	for i in "${!patroni_pids[@]}"; do
		kill -KILL "${patroni_pids[i]}" 2>/dev/null
		[ ! -e "$ha/n$i/data/postmaster.pid" ] || kill_postgres "$i" 2>/dev/null
	done
	rm -rf "$ha"
}
