#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# Sizes: every block size, volumes of 64 TiB, a cache of 1 TiB, and hundreds of volumes on two caches.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"
vol=/dev/mapper/vol0

make_image "$TEST_TMP/seed" 4

# Writes of every length and alignment, read back, pushed, read back.
block_size() {
	local disk
	disk=$(make_disk 160)
	format_cache "$disk" --block-size "$1"
	open_cache cache0 "$disk"
	cp "$TEST_TMP/seed" "$TEST_TMP/img"
	truncate -s $((4195328 + 512)) "$TEST_TMP/img"	# its end is in the midst of a block
	cp "$TEST_TMP/img" "$TEST_TMP/base"
	rm -f "$TEST_TMP/img.head"
	start_agent -m -z "img=$TEST_TMP/img"
	attach vol0 img 4195840
	[ "$(cache_status cache0 block)" = "$1" ]
	[ "$(blockdev --getioopt $vol)" = "$1" ]
	stamp write $vol "$TEST_TMP/log.$1" 3 80 8
	stamp verify $vol "$TEST_TMP/log.$1" 3 80 "$TEST_TMP/base"
	agent push img
	cmp $vol "$TEST_TMP/img"
	dmsetup remove vol0
	dmsetup create vol0 --table "0 8195 dedup $cache img"
	stamp verify $vol "$TEST_TMP/log.$1" 3 80 "$TEST_TMP/base"
}

# put KIB, get KIB: 4 KiB that say where they are
put() {
	printf '%4096d' "$1" | dd of=$vol bs=4096 seek=$(($1 / 4)) oflag=direct iflag=fullblock \
		conv=notrunc status=none
}

get() {
	printf '%4096d' "$1" | cmp - <(dd if=$vol bs=4096 skip=$(($1 / 4)) count=1 iflag=direct status=none)
}

# Ends, middle and the places where leaves and words of 32 bits end.
far_places="0 4 2097148 2097152 4294967296 17179869180 17179869184 34359738368 68719476732"

# The file stands for the image: what was pushed is in it, 64 TiB away.
huge_volume() {
	local disk at before
	disk=$(make_disk 128)
	format_cache "$disk" --block-size "$1"
	open_cache cache0 "$disk"
	rm -f "$TEST_TMP/huge" "$TEST_TMP/huge.head"
	truncate -s 64T "$TEST_TMP/huge"
	start_agent -z "huge=$TEST_TMP/huge"
	before=$(cache_status cache0 memory)
	attach vol0 huge $((64 << 40))
	[ "$(blockdev --getsize64 $vol)" = $((64 << 40)) ]
	for at in $far_places; do
		put "$at"
	done
	for at in $far_places; do
		get "$at"
	done
	expect_error "past end|No space|cannot" \
		dd if=/dev/zero of=$vol bs=4096 seek=$((64 << 28)) count=1 oflag=direct
	agent push huge
	[ "$(cache_status cache0 dirty)" = 0 ]
	agent dropall
	for at in $far_places; do
		get "$at"
	done
	[ $(($(cache_status cache0 memory) - before)) -lt $((16 << 20)) ]
	put 68719476728
	dmsetup remove vol0
	stop_agent
	dmsetup remove --retry cache0
	dmsetup create cache0 --table "0 $(sectors "$disk") dedup-cache $disk"
	start_agent -z "huge=$TEST_TMP/huge"
	dmsetup create vol0 --table "0 $((64 << 31)) dedup $cache huge"
	get 68719476728
	get 68719476732
	# One sector more is refused.
	dmsetup remove vol0
	agent push huge
	truncate -s $(((64 << 40) + 512)) "$TEST_TMP/huge"
	mark_log
	expect_error . dmsetup create vol0 --table "0 $(((64 << 31) + 1)) dedup $cache huge"
	expect_log "answer to LOOKUP makes no sense"
}

vmalloc_used() {
	awk '/^VmallocUsed/ { print $2 * 1024 }' /proc/meminfo
}

# The disk is sparse. Its tables are not: what the status says is what was taken.
cache_of_1_tib() {
	local disk before taken said
	disk=$(make_disk $((1 << 20)))
	format_cache "$disk" --block-size 262144
	mark_log
	expect_error . dmsetup create cache0 \
		--table "0 $(sectors "$disk") dedup-cache $disk 2 max_memory 200"
	expect_log "slots of 256 KiB take 2[0-9][0-9] MiB of memory, max_memory is 200 MiB"
	expect_log "needs more memory than max_memory allows"
	before=$(vmalloc_used)
	open_cache cache0 "$disk" 2 max_memory 256
	taken=$(($(vmalloc_used) - before))
	said=$(cache_status cache0 memory)
	echo "# 1 TiB: memory $said, vmalloc $taken bytes"
	[ "$said" -le $((256 << 20)) ]
	[ "$taken" -le "$said" ]
	[ $((taken * 100 / said)) -ge 90 ]
	cp "$TEST_TMP/seed" "$TEST_TMP/img"
	rm -f "$TEST_TMP/img.head"
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $((4 << 20))
	cmp $vol "$TEST_TMP/img"
}

# Hundreds of volumes, half of them on each of two caches. Each image is two blocks of 64 KiB, and all
# of its text says which it is.
nr_volumes=104

# many_text I PART: sets $text to the 4 KiB with which that volume begins, as PART says
many_text() {
	printf -v text '%4091s %04d' "$2" "$1"
}

many_images() {
	local k=$1 i text
	images=()
	mkdir "$TEST_TMP/many$k"
	for ((i = 0; i < nr_volumes; i++)); do
		many_text "$i" "image on $k"
		printf '%s%s%122880s' "$text" "$text" "$i" >"$TEST_TMP/many$k/$i"
		images+=("m$i=$TEST_TMP/many$k/$i")
	done
}

# many_create K: all volumes of a cache in one go
many_create() {
	local k=$1 i table=()
	for ((i = 0; i < nr_volumes; i++)); do
		table+=("many$k.$i,,,rw,0 256 dedup /dev/mapper/cache$k m$i")
	done
	local IFS=';'
	dmsetup create --concise "${table[*]}"
}

many_names() {
	local i
	for ((i = 0; i < nr_volumes; i++)); do
		echo "many$1.$i"
	done
}

many_remove() {
	many_names "$1" | xargs dmsetup remove --retry
}

many_write() {
	local i text
	for ((i = 0; i < nr_volumes; i++)); do
		many_text "$i" "$2 on $1"
		printf %s "$text" >"/dev/mapper/many$1.$i"
	done
}

# What was written lies over the image's.
many_verify() {
	local i text got
	for ((i = 0; i < nr_volumes; i++)); do
		IFS= read -r -N 8192 got <"/dev/mapper/many$1.$i"
		many_text "$i" "$2 on $1"
		[ "${got:0:4096}" = "$text" ] || fail "volume $i of cache $1 has not what was written"
		many_text "$i" "image on $1"
		[ "${got:4096}" = "$text" ] || fail "volume $i of cache $1 has not its image's content"
	done
}

# both COMMAND [ARGUMENT...]: on both caches at once
both() {
	local pids=() p k
	for k in 0 1; do
		"$1" "$k" "${@:2}" &
		pids+=($!)
	done
	for p in "${pids[@]}"; do
		wait "$p"
	done
}

# What is left when the case ends early: readers wait for agents that are dead.
many_gone() {
	local k
	for k in 0 1; do
		dmsetup message cache$k 0 fail_parked 2>/dev/null
		many_names $k | xargs dmsetup remove --retry --force 2>/dev/null
	done
}

waits_in_each() {
	[ "$(cache_status cache0 waiting)" = "$1" ] && [ "$(cache_status cache1 waiting)" = "$1" ]
}

many_volumes() {
	local k i disks=() uuids=() sockets=() agents=() images readers
	for k in 0 1; do
		disks+=("$(make_disk 64)")
		format_cache "${disks[k]}" --block-size 65536
		open_cache cache$k "${disks[k]}"
		many_images $k
		start_agent -z "${images[@]}"
		sockets+=("$socket") agents+=("$agent_pid") uuids+=("$uuid")
	done
	cleanup_fn many_gone
	both many_create
	[ "$(cache_status cache0 volumes)" = $nr_volumes ]
	[ "$(cache_status cache1 volumes)" = $nr_volumes ]
	both many_write first
	sync
	echo 3 >/proc/sys/vm/drop_caches
	both many_verify first
	[ "$(cache_status cache0 dirty)" = $nr_volumes ]
	# Some are pushed, some are cut and written again, some lose their device; both caches alike.
	for k in 0 1; do
		socket=${sockets[k]}
		for i in 0 7 63 103; do
			agent push m$i
			agent cut m$((i / 2 + 30))
		done >/dev/null
		dmsetup suspend --noflush many$k.5
		dmsetup resume many$k.5
		[ "$(cache_status cache$k dirty)" = $((nr_volumes - 4)) ]
	done
	both many_write second
	sync
	echo 3 >/proc/sys/vm/drop_caches
	both many_verify second
	both many_remove
	for k in 0 1; do
		stop "${agents[k]}"
		dmsetup remove --retry cache$k
		dmsetup create cache$k --table "0 $(sectors "${disks[k]}") dedup-cache ${disks[k]}"
		[ "$(cache_status cache$k volumes)" = $nr_volumes ]
	done
	# Without agents: their records are enough.
	both many_create
	for k in 0 1; do
		cache=/dev/mapper/cache$k uuid=${uuids[k]}
		many_images_again $k
		start_agent -z "${images[@]}"
		agents[k]=$agent_pid
	done
	both many_verify second
	# Reads of what is not here wait when the agents die; they end with the devices.
	readers=()
	for k in 0 1; do
		stop "${agents[k]}"
		for ((i = 0; i < nr_volumes; i += 26)); do
			start dd if=/dev/mapper/many$k.$i of=/dev/null bs=4k skip=16 count=1 iflag=direct status=none 2>/dev/null
			readers+=("$pid")
		done
	done
	cleanup_fn many_gone
	wait_until 20 waits_in_each $((nr_volumes / 26))
	for k in 0 1; do
		# (It says how often it tried while the reader was on its way out.)
		many_names $k | xargs dmsetup remove --retry --force 2>/dev/null
		dmsetup remove --retry cache$k
	done
	for i in "${readers[@]}"; do
		ended_badly "$i"
	done
	expect_error . dmsetup info cache0
}

many_images_again() {
	local i
	images=()
	for ((i = 0; i < nr_volumes; i++)); do
		images+=("m$i=$TEST_TMP/many$1/$i")
	done
}

for bs in 4096 65536 262144 1048576; do
	run_case "blocks of $bs bytes" block_size $bs
done
run_case "a volume of 64 TiB in blocks of 4 KiB" huge_volume 4096
run_case "a volume of 64 TiB in blocks of 256 KiB" huge_volume 262144
run_case "1 TiB of cache in 256 MiB of memory" cache_of_1_tib
run_case "hundreds of volumes on two caches" many_volumes
finish
