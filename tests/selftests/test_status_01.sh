#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# What can be observed: status fields and where they come from, messages, the latency
# histogram, tracepoints, and options that a later table changes.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

make_image "$TEST_TMP/img" 4
truncate -s 5M "$TEST_TMP/img"	# four blocks of zeros in the end
size=$((5 << 20))
disk=$(make_disk 128)
format_cache "$disk"
open_cache cache0 "$disk"

# expect_fields DEVICE KEY=VALUE...
expect_fields() {
	local dev=$1 want status
	shift
	status=$(dmsetup status "$dev")
	for want; do
		[[ " $status " == *" $want "* ]] || fail "not $want: $status"
	done
}

# Every key of the documentation is there, and the other way round.
documented() {
	local doc keys status word
	doc=$(<"${0%/*}/../../Documentation/dm-dedup.rst")
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	status=$(dmsetup status cache0)
	for word in $status $(dmsetup status vol0); do
		[[ $word != *=* || $doc =~ [^a-z_]${word%%=*}[^a-z_] ]] || fail "$word is not documented"
	done
	keys=$(sed -n '/^agent  /,/^miss_avg_us/p' <<<"$doc" | cut -c1-32)
	for word in ${keys//,/ }; do
		[[ $status == *" $word="* ]] || fail "no key $word"
	done
}

provenance() {
	start_agent -s 1 -z "img=$TEST_TMP/img"
	attach vol0 img $size
	dmsetup message vol0 0 reset_stats
	dmsetup message cache0 0 reset_stats
	expect_fields vol0 read_hits=0 from_peer=0 miss_max_us=0
	dd if=/dev/mapper/vol0 of=/dev/null bs=256k count=8 iflag=direct status=none
	expect_fields vol0 from_peer=8 from_data=0 from_unknown=0 mapped=0 miss_failed=0
	stop_agent
	start_agent -s 2 -z "img=$TEST_TMP/img"
	dd if=/dev/mapper/vol0 of=/dev/null bs=256k skip=8 count=12 iflag=direct status=none
	expect_fields vol0 from_peer=8 from_data=8 mapped_zero=4
	expect_fields cache0 from_peer=8 from_data=8 mapped_zero=4 publishes=16 agent=1 waiting=0
	# Hits, by what they hit.
	dmsetup message vol0 0 reset_stats
	dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=10 iflag=direct status=none
	dd if=/dev/mapper/vol0 of=/dev/null bs=4k skip=1024 count=5 iflag=direct status=none
	expect_fields vol0 read_hits=15 read_base=10 read_zero=5 read_overlay=0 read_misses=0
	dd if=/dev/zero of=/dev/mapper/vol0 bs=4k count=3 oflag=direct,dsync status=none
	dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=3 iflag=direct status=none
	expect_fields vol0 read_overlay=3 read_base=10 write_opens=1 write_hits=2
	agent push img
	dmsetup message vol0 0 reset_stats
	agent dropall
	stop_agent
	start_agent "img=$TEST_TMP/img"
	dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 iflag=direct status=none
	expect_fields vol0 from_unknown=1
}

utilisation() {
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	dd if=/dev/zero of=/dev/mapper/vol0 bs=4k count=2 oflag=direct status=none
	dd if=/dev/zero of=/dev/mapper/vol0 bs=4k count=1 seek=512 oflag=direct status=none
	dmsetup message cache0 0 commit
	expect_fields vol0 dirty=$((2 << 18)) dirty_written=12288 size=$size
	expect_fields cache0 dirty=2 dirty_written=12288
	[ "$(volume_status vol0 oldest_ms)" -gt 0 ]
	agent push img
	expect_fields vol0 dirty=0 dirty_written=0 oldest_ms=0
}

# The age is that of the first write after the cut, not that of the commit.
age_over_a_push() {
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	dd if=/dev/zero of=/dev/mapper/vol0 bs=4k count=1 oflag=direct status=none
	agent cut img >/dev/null
	dd if=/dev/zero of=/dev/mapper/vol0 bs=4k count=1 oflag=direct status=none
	wait_until 10 older_than 1500
	agent push img
	older_than 1500
	agent push img
}

older_than() {
	[ "$(volume_status vol0 oldest_ms)" -ge "$1" ]
}

one_waits() {
	[ "$(agent waiting)" = 1 ]
}

histogram() {
	start_agent -h "img=$TEST_TMP/img"
	agent dropall
	attach vol0 img $size
	dmsetup message vol0 0 reset_stats
	start dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 iflag=direct status=none
	local reader=$pid slow
	wait_until 10 one_waits
	expect_fields cache0 waiting=1 upcalls_sent=1 upcalls_unsent=0
	sleep 1	# the figure that is looked for
	agent answer
	wait "$reader"
	slow=$(dmsetup message vol0 0 histogram | awk '$1 >= 524288 { n += $3 } END { print n }')
	[ "$slow" = 1 ]
	[ "$(dmsetup message cache0 0 histogram | awk '{ n += $3 } END { print n }')" -ge 1 ]
	[ "$(volume_status vol0 miss_max_us)" -ge 1000000 ]
	agent hold
	start dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 skip=64 iflag=direct status=none
	reader=$pid
	wait_until 10 one_waits
	dmsetup message cache0 0 fail_parked
	ended_badly "$reader"
	expect_fields vol0 miss_failed=1
}

messages() {
	start_agent "img=$TEST_TMP/img"
	attach vol0 img $size
	cmp "$TEST_TMP/img" /dev/mapper/vol0
	local clean
	clean=$(cache_status cache0 clean)
	[ "$clean" -ge 16 ]
	dmsetup message cache0 0 evict 6
	expect_fields cache0 clean=$((clean - 6))
	expect_error "Invalid argument" dmsetup message cache0 0 evict
	expect_error "Invalid argument" dmsetup message cache0 0 evict many
	expect_error "Invalid argument" dmsetup message cache0 0 nonsense
	expect_error "Invalid argument" dmsetup message vol0 0 nonsense
	cmp "$TEST_TMP/img" /dev/mapper/vol0
}

options() {
	local n
	n=$(sectors "$disk")
	dmsetup table cache0 | grep -q "max_memory [0-9]* dirty_timeout 0 dirty_age 60 dirty_max 1024$"
	dmsetup reload cache0 --table \
		"0 $n dedup-cache $disk 12 max_memory 200 dirty_timeout 7 dirty_age 8 dirty_max 9 low_watermark 20 high_watermark 30"
	# Not yet: only when it is resumed.
	dmsetup table cache0 | grep -q "dirty_age 60"
	dmsetup suspend cache0
	dmsetup resume cache0
	dmsetup table cache0 | grep -q "max_memory 200 dirty_timeout 7 dirty_age 8 dirty_max 9 low_watermark 20 high_watermark 30$"
	expect_fields cache0 max_memory=$((200 << 20))
	mark_log
	expect_error . dmsetup reload cache0 --table "0 $n dedup-cache $disk 2 max_memory 1"
	expect_log "needs [0-9]* MiB of memory now, max_memory is 1 MiB"
	expect_error . dmsetup reload cache0 --table \
		"0 $n dedup-cache $disk 4 low_watermark 30 high_watermark 20"
	expect_log "low_watermark must be below"
}

tracepoints() {
	local trace=/sys/kernel/tracing e
	mount -t tracefs tracefs $trace 2>/dev/null || [ -d $trace/events ] || exit 4
	[ -d $trace/events/dm_dedup ] || exit 4
	start_agent "img=$TEST_TMP/img"
	agent dropall
	attach vol0 img $size
	echo >$trace/trace
	echo 1 >$trace/events/dm_dedup/enable
	dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 iflag=direct status=none
	dd if=/dev/zero of=/dev/mapper/vol0 bs=4k count=1 oflag=direct,dsync status=none
	agent push img
	dmsetup message cache0 0 evict 1
	# A hit leaves no trace.
	local lines
	lines=$(grep -c dedup_ $trace/trace)
	dd if=/dev/mapper/vol0 of=/dev/null bs=4k count=1 skip=1 iflag=direct status=none
	[ "$(grep -c "dedup_[mp]" $trace/trace)" -le "$lines" ]
	echo 0 >$trace/events/dm_dedup/enable
	for e in miss_start miss_end park publish cut commit evict append; do
		grep -q "dedup_$e: " $trace/trace || fail "no trace of $e"
	done
	grep -q "dedup_miss_end: .*block=0 .*answered=1" $trace/trace
	grep -q "dedup_publish: .*block=0 .*source=0 result=0" $trace/trace
	for e in "$trace"/events/dm_dedup/dedup_*; do
		grep -q "^${e##*/}" "${0%/*}/../../Documentation/dm-dedup.rst" ||
			fail "$e is not documented"
	done
}

# Sixteen writers whose every write is synced, on a disk that takes its time: one commit for many.
shared_commits() {
	local raw n i commits appends writers=()
	modprobe -q dm-delay || dmsetup targets | grep -q delay || exit 4
	raw=$(make_disk 64)
	n=$(sectors "$raw")
	dm_create slow "0 $n delay $raw 0 0 $raw 0 30"
	format_cache /dev/mapper/slow
	open_cache cache1 /dev/mapper/slow
	cleanup_fn stop_agent
	start_agent "img=$TEST_TMP/img"
	attach vol1 img $size
	dmsetup message cache1 0 reset_stats
	for ((i = 0; i < 16; i++)); do
		start dd if=/dev/zero of=/dev/mapper/vol1 bs=4k seek=$((i * 80)) count=80 \
			oflag=direct,dsync conv=notrunc status=none
		writers+=("$pid")
	done
	for i in "${writers[@]}"; do
		wait "$i"
	done
	commits=$(volume_status vol1 flush_commits) appends=$(cache_status cache1 appends)
	echo "# $commits writes waited for the journal, which had $appends rounds"
	[ "$commits" -ge 640 ]
	# (They do not start at once on a machine that is busy.)
	[ $((appends * 2)) -le "$commits" ]
	dmsetup remove --retry vol1
}

run_case "status and its documentation have the same keys" documented
run_case "where blocks came from, and what reads hit" provenance
run_case "dirty slots and what is written in them" utilisation
run_case "the oldest unpushed write" age_over_a_push
run_case "how long blocks took" histogram
run_case "many that wait, one commit" shared_commits
run_case "messages" messages
run_case "options of a later table" options
run_case "tracepoints" tracepoints
finish
