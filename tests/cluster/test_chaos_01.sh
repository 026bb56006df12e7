#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# Imports, clones, exports, removals and collections go on while data servers and the meta server are
# killed, stopped and full: in the end every image that was acknowledged is there, bit by bit.
#
#   --minutes N   how long (20 s)
#   --seed S      of what happens when

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

seed=${TEST_SEED:-$RANDOM}
seconds=$((${TEST_MINUTES:-0} * 60))
[ $seconds -gt 0 ] || seconds=20
servers=5
RANDOM=$seed
echo "# seed $seed, $seconds s"

for i in 1 2 3; do
	make_image "$images/$i.raw" 6
done
data_conf='repair_rate = 1G'
start_fleet $servers --block-size 64K --replicas 3 --min-copies 2
# One of them is soon full.
end_daemons "${data_pids[5]}"
sed -i 's/^repair_rate/capacity = 24M\nreserve = 16M\nrepair_rate/' "$store/data5.conf"
start_data 5
wait_until 30 servers_are_up $servers
deadline=$((SECONDS + seconds))

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
	local n=0 name source mine=()
	RANDOM=$((seed + $1))
	while [ $SECONDS -lt $deadline ]; do
		case $((RANDOM % 6)) in
		0 | 1 | 2)
			n=$((n + 1)) name=w$1-$n source=$((1 + RANDOM % 6))
			if [ $source -gt 3 ]; then # content that nobody has seen yet
				source=$name
				head -c 3M /dev/urandom >"$images/$source.raw"
			fi
			if vmdedup image import "$images/$source.raw" "$name" >>"$store/worker$1.log" 2>&1; then
				mine+=("$name $source")
				echo "$name $source" >>"$store/made"
			fi ;;
		3)
			[ ${#mine[@]} -gt 0 ] || continue
			n=$((n + 1))
			read -r name source <<<"${mine[RANDOM % ${#mine[@]}]}"
			if vmdedup image clone "$name" "w$1-$n" >>"$store/worker$1.log" 2>&1; then
				mine+=("w$1-$n $source")
				echo "w$1-$n $source" >>"$store/made"
			fi ;;
		4)
			[ ${#mine[@]} -gt 4 ] || continue
			read -r name source <<<"${mine[0]}"
			mine=("${mine[@]:1}")
			# Asked for is as good as gone: nothing is claimed of it any more.
			echo "$name" >>"$store/removed"
			tries removals vmdedup image rm "$name" >>"$store/worker$1.log" 2>&1 ;;
		5)
			[ ${#mine[@]} -gt 0 ] || continue
			read -r name source <<<"${mine[RANDOM % ${#mine[@]}]}"
			vmdedup image export "$name" "$store/export$1" >>"$store/worker$1.log" 2>&1 || continue
			echo 1 >>"$store/exports"
			cmp "$store/export$1" "$images/$source.raw" || echo "$name $source" >>"$store/wrong"
			rm -f "$store/export$1" ;;
		esac
	done
}

collector() {
	while [ $SECONDS -lt $deadline ]; do
		tries collections vmdedup cluster gc >>"$store/gc.log" 2>&1
		sleep 2
	done
}

# pause MIN SPAN: a random time.
pause() {
	sleep $(($1 + RANDOM % $2)).$((RANDOM % 10))
}

kills=0 stops=0 metas=0
chaos() {
	local i
	while [ $SECONDS -lt $deadline ]; do
		pause 1 3
		i=$((1 + RANDOM % servers))
		case $((RANDOM % 5)) in
		0 | 1)
			kill_hard "${data_pids[$i]}"
			kills=$((kills + 1))
			pause 0 4
			start_data $i ;;
		2 | 3)
			kill -STOP "${data_pids[$i]}"
			stops=$((stops + 1))
			pause 1 9
			kill -CONT "${data_pids[$i]}" ;;
		4)
			kill_hard "$meta_pid"
			metas=$((metas + 1))
			pause 0 2
			start_meta ;;
		esac
	done
}

for i in made removed removals collections exports; do
	: >"$store/$i"
done
workers=()
for i in 1 2 3; do
	worker $i &
	workers+=($!)
done
collector &
workers+=($!)
chaos
wait "${workers[@]}"
echo "# $kills data servers killed, $stops stopped, $metas meta servers killed;" \
	"$(wc -l <"$store/made") images made, $(wc -l <"$store/removed") removed," \
	"$(wc -l <"$store/removals") with an answer; $(wc -l <"$store/exports") exports compared," \
	"$(wc -l <"$store/collections") collections"

# Whatever dies, a store of three replicas is of use most of the time.
was_of_use() {
	local i
	for i in made exports collections; do
		[ -s "$store/$i" ] || fail "no $i in $seconds s"
	done
	[ $((kills + stops + metas)) -gt 0 ] || fail "nothing was killed or stopped"
}

all_there() {
	wait_until 60 servers_are_up $servers
}

nothing_was_wrong() {
	[ ! -e "$store/wrong" ] || fail "wrong content: $(cat "$store/wrong")"
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

# What is short of a copy for want of room on the small one stays so; everything else heals.
heals() {
	wait_until 60 mostly_current
}

mostly_current() {
	[ "$(json .unreadable vmdedup cluster shards)" = 0 ] &&
		[ "$(json '[.shards[] | select([.replicas[] | select(.state == "current")] | length < 2)] | length' \
			vmdedup cluster shards)" = 0 ]
}

counts_agree() {
	vmdedup cluster gc --full >/dev/null
	vmdedup cluster check
}

one_more_dies() {
	local name source
	kill_hard "${data_pids[1]}"
	while read -r name source; do
		vmdedup image verify "$name" --against "$images/$source.raw" >/dev/null
	done < <(kept | tail -n 20)
	start_data 1
}

for name in was_of_use all_there nothing_was_wrong every_image_verifies heals counts_agree one_more_dies; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
