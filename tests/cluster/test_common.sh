# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# shellcheck disable=SC2034 # its variables are for the tests
#
# What every cluster test sources: the cases and cleanups of the selftests, clusters of real
# processes, and images to put into them. $TEST_TMP is a folder of the test's own.

# shellcheck source=tests/selftests/test_common.sh
. "${BASH_SOURCE[0]%/*}/../selftests/test_common.sh"

export TEST_TMP
images=$TEST_TMP/images
mkdir -p "$images"

# new_cluster [OPTION...]: a store of its own with embedded servers, made by `cluster init OPTION...`.
# Sets $store.
cluster_n=0
new_cluster() {
	new_store
	cat >"$VMDEDUP_CONF" <<-END
		[store]
		store = $store/store
		run = $store/run
	END
	vmdedup cluster init "$@" 2>&1
}

new_store() {
	cluster_n=$((cluster_n + 1))
	store=$(mktemp -d "$TEST_TMP/cluster.XXXX")
	mkdir "$store/run"
	export VMDEDUP_CONF=$store/vmdedup.conf
}

# A port of the loopback interface that nobody listens on, and that was not given out: who got it may
# have yet to listen.
free_port() {
	local port
	while :; do
		port=$((10000 + RANDOM % 20000))
		! grep -qx $port "$TEST_TMP/ports" 2>/dev/null || continue
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo $port | tee -a "$TEST_TMP/ports"
}

# start_fleet N [INIT-OPTION...]: a meta server and N data servers as processes of their own. Sets
# $store, $meta_pid and ${data_pids[]}; their configurations are $store/{meta,data1,...}.conf, and
# lines of $fleet_conf are part of all.
fleet_conf=''
start_fleet() {
	local n=$1 i
	shift
	new_store
	meta_port=$(free_port)
	fleet_config "$store/meta.conf" "
[store]
store = $store/store
run = $store/run
[meta]
listen = tcp://127.0.0.1:$meta_port"
	VMDEDUP_CONF=$store/meta.conf vmdedup cluster init "$@" >/dev/null 2>&1
	fleet_config "$VMDEDUP_CONF" "
[cluster]
meta = tcp://127.0.0.1:$meta_port
[store]
store = $store/client
run = $store/run-client"
	start_meta
	data_pids=()
	for ((i = 1; i <= n; i++)); do
		data_config $i
		start_data $i
	done
	wait_until 30 servers_are_up "$n"
}

# data_config N: writes it; start_data N
data_config() {
	fleet_config "$store/data$1.conf" "
[cluster]
meta = tcp://127.0.0.1:$meta_port
[store]
store = $store/data-store$1
run = $store/run-data$1
[data]
dir = $store/data$1
host = host$1
listen = tcp://127.0.0.1:$(free_port)
${data_conf-}"
}

fleet_config() {
	printf '%s\n%s\n' "$2" "$fleet_conf" >"$1"
}

start_meta() {
	start vmdedup-meta --conf "$store/meta.conf" 2>>"$store/meta.log"
	meta_pid=$pid
}

start_data() {
	start vmdedup-data --conf "$store/data$1.conf" 2>>"$store/data$1.log"
	data_pids[$1]=$pid
}

servers_are_up() {
	[ "$(vmdedup cluster info --json 2>/dev/null |
		jq '[.servers[] | select(.state == "up")] | length')" = "$1" ]
}

# told FILTER: of `cluster info`, once no server that is up is silent.
told() {
	local info
	for _ in {1..20}; do
		info=$(vmdedup cluster info --json) || return
		jq -e 'all(.servers[]; .state != "no answer")' <<<"$info" >/dev/null && break
	done
	jq -r "$1" <<<"$info"
}

# all_current: each shard has two replicas, and both have all blocks. (A server that has joined gets its
# shards' blocks in the background; what is stored while maps change may have one copy for a moment.)
all_current() {
	[ "$(json '"\(.stale) \(.leaving) \(.missing) \(.current)"' vmdedup cluster shards)" = \
		"0 0 0 2048" ]
}

# kill_hard PID: kills it at once, and waits until it is gone.
kill_hard() {
	local r=0
	kill -KILL "$1"
	wait "$1" 2>/dev/null || r=$?
	[ $r = 137 ]
}

# end_daemons PID...: asks daemons to end; each must do so without an error.
end_daemons() {
	local p r
	kill -TERM "$@"
	for p; do
		r=0
		wait "$p" || r=$?
		[ $r = 0 ] || fail "daemon $p ended with status $r when it was asked to"
	done
}

# make_image FILE MIB: a sparse file, a third of it text, a third noise, the rest zeros and holes.
make_image() {
	local file=$1 mib=$2 third=$(($2 / 3))
	truncate -s "${mib}M" "$file"
	head -c "${third}M" < <(seq 1 100000000) |
		dd of="$file" bs=1M seek=1 conv=notrunc iflag=fullblock status=none
	head -c "${third}M" /dev/urandom |
		dd of="$file" bs=1M seek=$((third + 2)) conv=notrunc iflag=fullblock status=none
	# Zeros that are written, and data that no block begins or ends with.
	dd if=/dev/zero of="$file" bs=64K count=5 seek=100 conv=notrunc status=none
	printf 'the last bytes' | dd of="$file" bs=1 seek=$((mib * 1048576 - 14)) conv=notrunc status=none
}

# same_and_sparse IMAGE FILE: an export of the image is bit for bit FILE, and about as sparse.
same_and_sparse() {
	local out had has
	out=$(mktemp -u "$TEST_TMP/export.XXXX")
	vmdedup image export "$1" "$out" >/dev/null
	cmp "$out" "$2"
	had=$(stat -c '%b * %B / 1048576' "$2") has=$(stat -c '%b * %B / 1048576' "$out")
	[ $((has)) -le $((had + 4)) ] || fail "export has $((has)) MiB on disk, the source $((had))"
	rm "$out"
}

# json FILTER COMMAND...: what jq makes of the command's JSON.
json() {
	local filter=$1
	shift
	"$@" --json | jq -r "$filter"
}

# expect_status STATUS PATTERN COMMAND...: the exit status, and words on stderr (grep -E).
expect_status() {
	local want=$1 pattern=$2 r=0 out
	shift 2
	out=$("$@" 2>&1 </dev/null) || r=$?
	[ "$r" = "$want" ] || fail "exit status $r, not $want: $*: $out"
	grep -qE -- "$pattern" <<<"$out" || fail "said \"$out\", not \"$pattern\": $*"
}

requires vmdedup jq
