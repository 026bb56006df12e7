# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# shellcheck disable=SC2034 # its variables are for the tests
#
# Many hosts (tests/cluster/swarm.c) beside a meta server and data servers, all with keys.

# shellcheck source=tests/cluster/test_common.sh
. "${BASH_SOURCE[0]%/*}/test_common.sh"
PATH=$TESTS_BIN:$PATH
requires swarm

keys=$TEST_TMP/keys

# make_keys: one pair for all of a test's hosts.
make_keys() {
	mkdir -p "$keys/clients"
	vmdedup --conf /dev/null cluster key "$keys/host" >/dev/null
	cp "$keys/host" "$keys/clients/"
	fleet_conf="[curve]
secret = $keys/host_secret
servers = $keys/host
clients = $keys/clients"
}

# host_conf N [LINE...]: its configuration; LINEs go into [agent]. $peers empty: it serves none. $racks: how
# many there are, to which hosts belong in turn.
peers=1 racks=
host_conf() {
	local n=$1 line
	shift
	mkdir -p "$store/host$n"
	{
		cat <<-END
			[cluster]
			meta = tcp://127.0.0.1:$meta_port
			[store]
			store = $store/host$n
			run = $store/host$n
			[data]
			host = host$n
			[agent]
			cache_file = $store/host$n/cache
			cache_file_size = ${cache_size:-512M}
		END
		[ -z "$peers" ] || echo "listen = tcp://127.0.0.1:*"
		[ -z "$racks" ] || echo "rack = r$((n % racks))"
		for line; do
			echo "$line"
		done
		echo "$fleet_conf"
	} >"$store/host$n.conf"
}

# start_swarm N IMAGE SOURCE: hosts that do nothing yet; swarm WHO VERB... commands them, and leaves
# what they answer in $answer.
start_swarm() {
	local i
	for ((i = 1; i <= $1; i++)); do
		host_conf $i
	done
	rm -f "$store/commands" "$store/answers"
	mkfifo "$store/commands" "$store/answers"
	VMDEDUP_QUIET=1 swarm "$store" "$1" "$2" "$3" <"$store/commands" >"$store/answers" 2>>"$store/swarm.log" &
	swarm_pid=$!
	cleanup_fn stop $swarm_pid
	exec {to_swarm}>"$store/commands" {from_swarm}<"$store/answers"
}

swarm_do() {
	echo "$*" >&$to_swarm
	read -r answer <&$from_swarm
	[ "$(jq .error <<<"$answer")" = 0 ] || { tail -n 20 "$store/swarm.log"; fail "$*: $answer"; }
}

# knows HOST BLOCKS: its peers' filters hold all of so many blocks. The count in them may be lower by a
# few: an addition of which the filter says already that it is there is not counted.
knows() {
	swarm_do "$1" stats
	[ "$(of filter_blocks)" -ge $(($2 * 19 / 20)) ]
}

end_swarm() {
	exec {to_swarm}>&- {from_swarm}<&-
	wait $swarm_pid
}

# of FIELD: of the last answer.
of() {
	jq -r ".$1" <<<"$answer"
}

# served: bytes of blocks that the data servers have sent.
served() {
	vmdedup cluster info --json | jq '[.servers[].get_bytes] | add'
}
