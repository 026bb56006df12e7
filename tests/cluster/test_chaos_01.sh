#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# A fleet in use while everything in it fails: PostgreSQL with a synchronous standby under Patroni, two
# meta servers, five data servers, three hosts that write volumes and push them, and users who import,
# clone, export, remove and collect. Processes are killed and stopped, hosts are cut off (network
# namespaces), disks are full. In the end every image that was acknowledged is there, bit by bit, every
# volume is what its guest wrote, the counts agree, and there are as many copies as there should be.
#
#   --minutes N   how long (40 s)
#   --seed S      of what happens when

# shellcheck source=tests/cluster/swarm_common.sh
. "${0%/*}/swarm_common.sh"
# shellcheck source=tests/cluster/ha_common.sh
. "${0%/*}/ha_common.sh"
requires chaos_host host_agent

seed=${TEST_SEED:-$RANDOM}
seconds=$((${TEST_MINUTES:-0} * 60))
[ $seconds -gt 0 ] || seconds=40
servers=5 hosts=3
RANDOM=$seed
echo "# --seed $seed, $seconds s"

# ---- the network: some in namespaces of their own, beside a bridge, if that can be had ----

here=127.0.0.1 bridge=vmdc$$ enter=() address=() cut_off=()

# isolate WHO N: a namespace with the address .N for what is called WHO.
isolate() {
	local ns=$bridge-$1 veth=v$$$1
	ip netns add "$ns" || return
	cleanup_fn ip netns del "$ns"
	ip link add "$veth" type veth peer name eth0 netns "$ns" &&
		ip link set "$veth" master "$bridge" up &&
		ip -n "$ns" link set lo up &&
		ip -n "$ns" addr add "$net.$2/24" dev eth0 &&
		ip -n "$ns" link set eth0 up
}

# Nobody listens at port 9: that is said at once, unless a firewall looks after bridges here.
reaches() {
	local r=0
	ip netns exec "$bridge-$1" timeout 5 bash -c "exec 3<>/dev/tcp/$net.$2/9" 2>/dev/null || r=$?
	[ $r = 1 ]
}

make_network() {
	net=10.$((64 + RANDOM % 64)).$((RANDOM % 256))
	ip link add "$bridge" type bridge || return
	cleanup_fn ip link del "$bridge"
	ip addr add "$net.1/24" dev "$bridge" && ip link set "$bridge" up || return
	isolate d3 13 && isolate d4 14 && isolate h3 23 && reaches d3 14 && reaches h3 1 || return
	here=$net.1
	address=([3]=$net.13 [4]=$net.14)
	cut_off=("$bridge-d3" "$bridge-d4" "$bridge-h3")
	enter=([3]="ip netns exec $bridge-d3" [4]="ip netns exec $bridge-d4" [13]="ip netns exec $bridge-h3")
}

# ---- the fleet ----

start_meta_n() {
	start vmdedup-meta --conf "$store/meta$1.conf" --store "$ha_uri" \
		--listen "tcp://$here:${meta_ports[$1]}" 2>>"$store/meta$1.log"
	meta_pids[$1]=$pid
}

start_data() {
	# shellcheck disable=SC2086 # words
	start ${enter[$1]-} vmdedup-data --conf "$store/data$1.conf" 2>>"$store/data$1.log"
	data_pids[$1]=$pid
}

start_agent() {
	# shellcheck disable=SC2086 # words
	start ${enter[10 + $1]-} host_agent "$store/host$1.conf" "$store/c$1.sock" 2>>"$store/agent$1.log"
	agent_pids[$1]=$pid
}

# The disk of server 5 is soon full by its configuration, that of server 2 when somebody fills it.
data_lines() {
	case $1 in
	5) printf 'capacity = 24M\nreserve = 16M\n' ;;
	2) printf 'reserve = 16M\n' ;;
	esac
	echo "repair_rate = 1G"
}

start_whole_fleet() {
	local i
	new_store
	wait_until 60 ha_init --block-size 4K --replicas 3 --min-copies 2
	for i in 1 2; do
		meta_ports[i]=$(free_port)
		fleet_config "$store/meta$i.conf" "
[store]
store = $store/meta$i
run = $store/run-meta$i"
		start_meta_n $i
	done
	metas=tcp://$here:${meta_ports[1]},tcp://$here:${meta_ports[2]}
	fleet_config "$VMDEDUP_CONF" "
[cluster]
meta = $metas
[store]
store = $store/client
run = $store/run-client"
	wait_until 30 vmdedup cluster info >/dev/null
	for ((i = 1; i <= servers; i++)); do
		fleet_config "$store/data$i.conf" "
[cluster]
meta = $metas
[store]
store = $store/data-store$i
run = $store/run-data$i
[data]
dir = $store/data$i
host = host$i
listen = tcp://${address[i]-$here}:$(free_port)
$(data_lines $i)"
		memory_disk $i
		start_data $i
	done
	wait_until 30 servers_are_up $servers
}

# A disk of its own for each, in memory: what is tested is not the disk of this machine. It has room for
# what workers make in the time. Without root nobody fills one.
memory_disk() {
	local mib=$((192 + 6 * (seconds < 600 ? seconds : 600)))
	mkdir "$store/data$1"
	[ "$(id -u)" = 0 ] && mount -t tmpfs -o size=${mib}M chaos "$store/data$1" || return 0
	cleanup_fn umount -l "$store/data$1"
	fills=1
}

start_hosts() {
	local i
	for ((i = 1; i <= hosts; i++)); do
		fleet_config "$store/host$i.conf" "
[cluster]
meta = $metas
[store]
store = $store/host$i
run = $store/host$i
[data]
host = agent$i
[agent]
push_age = 3"
		mkdir "$store/host$i"
		vmdedup image import "$images/1.raw" volume$i >/dev/null
		start chaos_host "$store/c$i.sock" "$store/cache$i" volume$i $((seed + i)) "$store/volume$i" \
			>"$store/guest$i" 2>>"$store/guest$i.log"
		guest_pids[i]=$pid
		cleanup_fn kill_quietly "$pid"
		start_agent $i
		wait_until 30 grep -q open "$store/guest$i"
	done
}

# A guest waits for its agent for ever.
kill_quietly() {
	kill -KILL "$1" 2>/dev/null
}

# ---- users ----

# tries WHAT COMMAND...: may fail, as servers die under it; counts those that did not.
tries() {
	local what=$1
	shift
	if "$@"; then
		echo 1 >>"$store/$what"
	fi
}

# worker N: what one user does. Writes "NAME SOURCE" of each image that was acknowledged.
worker() {
	local n=0 name source mine=() log=$store/worker$1.log
	RANDOM=$((seed + $1))
	# (Where everything is slow, until there was one of the rarest.)
	while [ $SECONDS -lt $deadline ] ||
	      { [ ! -s "$store/exports" ] && [ $SECONDS -lt $((deadline + 120)) ]; }; do
		case $((RANDOM % 6)) in
		0 | 1 | 2)
			n=$((n + 1)) name=w$1-$n source=$((1 + RANDOM % 6))
			if [ $source -gt 3 ]; then # content that nobody has seen yet
				source=$name
				head -c 1M /dev/urandom >"$images/$source.raw"
			fi
			if vmdedup image import "$images/$source.raw" "$name" >>"$log" 2>&1; then
				mine+=("$name $source")
				echo "$name $source" >>"$store/made"
			fi ;;
		3)
			[ ${#mine[@]} -gt 0 ] || continue
			n=$((n + 1))
			read -r name source <<<"${mine[RANDOM % ${#mine[@]}]}"
			if vmdedup image clone "$name" "w$1-$n" >>"$log" 2>&1; then
				mine+=("w$1-$n $source")
				echo "w$1-$n $source" >>"$store/made"
			fi ;;
		4)
			[ ${#mine[@]} -gt 4 ] || continue
			read -r name source <<<"${mine[0]}"
			mine=("${mine[@]:1}")
			# Asked for is as good as gone: nothing is claimed of it any more.
			echo "$name" >>"$store/removed"
			tries removals vmdedup image rm "$name" >>"$log" 2>&1 ;;
		5)
			[ ${#mine[@]} -gt 0 ] || continue
			read -r name source <<<"${mine[RANDOM % ${#mine[@]}]}"
			vmdedup image export "$name" "$store/export$1" >>"$log" 2>&1 || continue
			echo 1 >>"$store/exports"
			cmp "$store/export$1" "$images/$source.raw" || echo "$name $source" >>"$store/wrong"
			rm -f "$store/export$1" ;;
		esac
	done
}

# The hosts push by themselves every three seconds, and when they are told to.
pusher() {
	local i
	while [ $SECONDS -lt $deadline ]; do
		for ((i = 1; i <= hosts; i++)); do
			tries pushes timeout 30 vmdedup --conf "$store/host$i.conf" volume push volume$i \
				>>"$store/push.log" 2>&1
		done
		sleep 1
	done
}

collector() {
	while [ $SECONDS -lt $deadline ]; do
		tries collections vmdedup cluster gc --idle-pushes 20 >>"$store/gc.log" 2>&1
		sleep 2
	done
}

# ---- trouble ----

# pause MIN SPAN: a random time.
pause() {
	sleep $(($1 + RANDOM % $2)).$((RANDOM % 10))
}

declare -A troubles=()
note() {
	troubles[$1]=$((${troubles[$1]-0} + 1))
	echo "$SECONDS $*" >>"$store/trouble"
}

# kill_one WHAT N PID: and starts it again.
kill_one() {
	note "$1 killed" "$2"
	# (A meta server that finds no database ends by itself; systemd would start it again.)
	! kill -0 "$3" 2>/dev/null || kill_hard "$3"
	pause 0 4
	"start_$1" "$2"
}

stop_one() {
	if ! kill -STOP "$3" 2>/dev/null; then
		"start_$1" "$2"
		return
	fi
	note "$1 stopped" "$2"
	pause 1 9
	kill -CONT "$3"
}

cut_one() {
	[ ${#cut_off[@]} -gt 0 ] || return 0
	local ns=${cut_off[RANDOM % ${#cut_off[@]}]}
	note "cut off" "$ns"
	ip -n "$ns" link set eth0 down
	pause 2 9
	ip -n "$ns" link set eth0 up
}

# Its disk is full to the last byte. What the server has told by then is true, and after a failed
# commit it takes nothing more until it is started again.
fill_disk() {
	[ "${fills-}" ] || return 0
	note "disk filled" 2
	dd if=/dev/zero of="$store/data2/filler" bs=1M status=none 2>>"$store/fill.log" || :
	pause 2 4
	rm "$store/data2/filler"
	kill_hard "${data_pids[2]}"
	start_data 2
}

kill_database() {
	local node
	node=$(ha_primary) && [ "$node" ] || return 0
	note "database killed" "$node"
	kill_postgres "$node" || :
}

chaos() {
	local i
	while [ $SECONDS -lt $deadline ]; do
		pause 0 3
		i=$((1 + RANDOM % servers))
		case $((RANDOM % 16)) in
		0 | 1 | 2) kill_one data $i "${data_pids[$i]}" ;;
		3 | 4) stop_one data $i "${data_pids[$i]}" ;;
		5 | 6) i=$((1 + RANDOM % hosts)); kill_one agent $i "${agent_pids[$i]}" ;;
		7) i=$((1 + RANDOM % hosts)); stop_one agent $i "${agent_pids[$i]}" ;;
		8 | 9) i=$((1 + RANDOM % 2)); kill_one meta_n $i "${meta_pids[$i]}" ;;
		10) i=$((1 + RANDOM % 2)); stop_one meta_n $i "${meta_pids[$i]}" ;;
		11 | 12 | 13) cut_one ;;
		14) fill_disk ;;
		15) kill_database ;;
		esac
	done
}

for i in 1 2 3; do
	make_image "$images/$i.raw" 6
done
make_keys
chmod -R a+rX "$keys"
make_network 2>"$TEST_TMP/network.log" || echo "# no network namespaces: nobody is cut off"
ha_start 2
start_whole_fleet
for i in made removed removals exports collections pushes trouble; do
	: >"$store/$i"
done
start_hosts
echo "# the fleet is there after $SECONDS s"
deadline=$((SECONDS + seconds))
workers=()
for i in 1 2 3; do
	worker $i &
	workers+=($!)
done
pusher &
workers+=($!)
collector &
workers+=($!)
chaos
for i in 1 2; do
	kill -0 "${meta_pids[i]}" 2>/dev/null || start_meta_n $i
done
wait "${workers[@]}"
for i in "${!troubles[@]}"; do
	echo "# $i: ${troubles[$i]}"
done
echo "# $(wc -l <"$store/made") images made, $(wc -l <"$store/removed") removed," \
	"$(wc -l <"$store/exports") exports compared, $(wc -l <"$store/pushes") pushes asked for," \
	"$(wc -l <"$store/collections") collections"

# ---- the end ----

# Whatever dies, a store of three replicas is of use most of the time.
was_of_use() {
	local i
	for i in made exports collections pushes trouble; do
		[ -s "$store/$i" ] || fail "no $i in $seconds s"
	done
}

# (A meta server that finds no database for some seconds as it starts ends.)
all_run() {
	local i
	for i in 1 2; do
		kill -0 "${meta_pids[i]}" 2>/dev/null || start_meta_n $i
	done
	servers_are_up $servers
}

all_there() {
	wait_until 90 all_run
}

nothing_was_wrong() {
	local i
	[ ! -e "$store/wrong" ] || fail "wrong content: $(cat "$store/wrong")"
	for ((i = 1; i <= hosts; i++)); do
		kill -0 "${guest_pids[i]}" || fail "guest $i: $(cat "$store/guest$i.log")"
	done
}

kept() {
	grep -vwFf "$store/removed" "$store/made" || [ $? = 1 ]
}

every_image_verifies() {
	local name source
	while read -r name source; do
		vmdedup image verify "$name" --against "$images/$source.raw" >/dev/null ||
			fail "$name is not $source.raw: $(vmdedup cluster status)"
	done < <(kept)
}

wrote() {
	grep -q ^wrote "$store/guest$1"
}

# What the guests wrote is what the images hold after one more push.
every_volume_verifies() {
	local i
	for ((i = 1; i <= hosts; i++)); do
		kill -TERM "${guest_pids[i]}"
	done
	for ((i = 1; i <= hosts; i++)); do
		wait_until 60 wrote $i
		wait_until 60 vmdedup --conf "$store/host$i.conf" volume push volume$i
		vmdedup image verify volume$i --against "$store/volume$i" ||
			fail "volume $i is not what its guest wrote: $(tail -n 20 "$store/agent$i.log")"
		echo "# volume $i: $(tail -n 1 "$store/guest$i")"
	done
}

# What is short of a copy for want of room on the small one stays so; everything else heals.
heals() {
	wait_until 90 mostly_current
}

mostly_current() {
	[ "$(json .unreadable vmdedup cluster shards)" = 0 ] &&
		[ "$(json '[.shards[] | select([.replicas[] | select(.state == "current")] | length < 2)] | length' \
			vmdedup cluster shards)" = 0 ]
}

counts_agree() {
	vmdedup cluster gc --idle-pushes 1
	vmdedup cluster check
}

all_current() {
	[ "$(json '[.shards[] | select(([.replicas[] | select(.state == "current")] | length) != 3 or
		(.replicas | length) != 3)] | length' vmdedup cluster shards)" = 0 ]
}

# Fails when a server does not tell: it would count as copies that are missing.
copies() {
	told '[.servers[] | .blocks // error("server \(.id) is silent")] | add'
}

# What is on its way out goes with a collection, or when its shard has moved.
copies_agree() {
	vmdedup cluster gc --full --idle-pushes 1 >>"$store/gc.log" 2>&1 || return
	echo "# $(copies) copies of $(json .blocks vmdedup cluster info) blocks"
	[ "$(copies)" = $((3 * $(json .blocks vmdedup cluster info))) ]
}

# The small server, which lacks what it has no room for, gives its shards to the others. Then the data
# servers hold three copies of each block: none is missing and none left over.
copies_are_exact() {
	vmdedup cluster drain "$(json '[.servers[] | select(.host == "host5")] | max_by(.id) | .id' \
		vmdedup cluster servers)"
	wait_until 150 all_current
	wait_until 150 copies_agree
}

one_more_dies() {
	local name source
	kill_hard "${data_pids[1]}"
	while read -r name source; do
		vmdedup image verify "$name" --against "$images/$source.raw" >/dev/null
	done < <(kept | tail -n 20)
	start_data 1
}

for name in was_of_use all_there nothing_was_wrong every_image_verifies every_volume_verifies heals \
	counts_agree copies_are_exact one_more_dies; do
	echo "# $name, after $SECONDS s"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
# How daemons end when they are asked to is for other tests.
kill -KILL "${agent_pids[@]}" "${guest_pids[@]}" "${data_pids[@]}" "${meta_pids[@]}"
wait "${agent_pids[@]}" "${guest_pids[@]}" "${data_pids[@]}" "${meta_pids[@]}" 2>/dev/null || :
finish
