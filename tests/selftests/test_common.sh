# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What every selftest sources. A test is a sequence of commands that stops at the first that fails,
# or of cases:
#
#	. "${0%/*}/test_common.sh"
#	requires fio
#	disk=$(make_disk 64)
#	reads_zeros() { cmp -n 4096 "$disk" /dev/zero; }
#	run_case "a new disk reads as zeros" reads_zeros
#	finish
#
# Everything here may be used in a test that runs as root in a guest; $TEST_TMP is a directory
# on a tmpfs of the test's own.

set -Eeuo pipefail

case_n=0
case_failed=0
errored=''
cleanups=()

run_cleanups() {
	local i
	set +e
	for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do
		eval "${cleanups[i]}"
	done
}

on_error() {
	local r=$?
	errored=1
	echo "# line ${BASH_LINENO[0]}: \"$BASH_COMMAND\" returned $r"
}

on_exit() {
	local r=$?
	trap - EXIT ERR
	run_cleanups >&2
	# A command that fails may say the same as skip().
	[ $r != 4 ] || [ ! "$errored" ] || r=1
	exit $r
}

[ "${TEST_TMP-}" ] || TEST_TMP=$(mktemp -d)
trap on_exit EXIT
trap 'exit 143' TERM INT
trap on_error ERR

# cleanup_fn COMMAND [ARGUMENT...]: runs it when the test, or the case, ends, the last one first.
cleanup_fn() {
	cleanups+=("$(printf '%q ' "$@")")
}

skip() {
	echo "# skipped: $*"
	exit 4
}

fail() {
	echo "# $*"
	exit 1
}

# requires PROGRAM...: skips the test where one is missing.
requires() {
	local p
	for p; do
		command -v "$p" >/dev/null || skip "no $p"
	done
}

# run_case NAME COMMAND...: one case, in a subshell that stops at the first failure; exit
# status 4 skips it. The others run anyway. With TEST_CASE in the environment only the case of that
# COMMAND runs.
run_case() {
	local name=$1 r
	shift
	[ "${TEST_CASE-$1}" = "$1" ] || return 0
	case_n=$((case_n + 1))
	trap - ERR
	set +e
	( trap on_error ERR; set -e; cleanups=() errored=''; trap on_exit EXIT; "$@" )
	r=$?
	set -e
	trap on_error ERR
	case $r in
	0) echo "ok $case_n $name" ;;
	4) echo "ok $case_n $name # SKIP" ;;
	*) echo "not ok $case_n $name"; case_failed=1 ;;
	esac
}

# Ends a test made of cases.
finish() {
	echo "1..$case_n"
	exit $case_failed
}

# expect_error PATTERN COMMAND...: COMMAND must fail and say something that matches PATTERN (grep -E).
expect_error() {
	local pattern=$1 out r=0
	shift
	out=$("$@" 2>&1 </dev/null) || r=$?
	if [ $r = 0 ]; then
		fail "succeeded: $*"
	elif [ $r -ge 128 ]; then
		fail "died with status $r: $*: $out"
	elif ! grep -qE -- "$pattern" <<<"$out"; then
		fail "said \"$out\", not \"$pattern\": $*"
	fi
}

# expect_log PATTERN: the kernel's log has a line that matches since mark_log.
mark_log() {
	log_mark="mark $TEST_TMP $RANDOM$RANDOM"
	echo "$log_mark" >/dev/kmsg
}

expect_log() {
	dmesg | sed -n "\\|$log_mark|,\$p" | grep -qE -- "$1" || fail "the kernel did not log \"$1\""
}

# wait_until SECONDS COMMAND...: for states that nothing announces. SECONDS are those of a quiet
# machine: four times as long is waited, for a busy one and for the debug kernel.
wait_until() {
	local end=$((SECONDS + $1 * 4))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || fail "waited in vain for: $*"
		sleep 0.1
	done
}

# make_disk MIB: a scratch disk of that size, sparse and in memory; prints the device.
# It goes when the test ends. (The file is for the command substitution, a shell of its own.)
make_disk() {
	local file dev
	file=$(mktemp "$TEST_TMP/disk.XXXX")
	truncate -s "${1}M" "$file"
	[ -e /dev/loop-control ] || modprobe loop
	dev=$(losetup --find --show "$file")
	echo "$dev" >>"$TEST_TMP/loops"
	echo "$dev"
}

remove_tmp() {
	local dev
	if [ -e "$TEST_TMP/loops" ]; then
		while read -r dev; do
			losetup -d "$dev"
		done <"$TEST_TMP/loops"
	fi
	rm -rf "$TEST_TMP"
}
cleanup_fn remove_tmp

# dm_create NAME TABLE: a device-mapper device, removed in the end.
dm_create() {
	cleanup_fn dm_remove "$1"
	dmsetup create "$1" --table "$2"
}

dm_remove() {
	! dmsetup info "$1" >/dev/null 2>&1 || dmsetup remove --retry "$1"
}

sectors() {
	blockdev --getsz "$1"
}

# Runs COMMAND in the background; its process is killed in the end if it is still there. Sets $pid.
start() {
	"$@" &
	pid=$!
	cleanup_fn stop "$pid"
}

stop() {
	local r=0
	kill "$1" 2>/dev/null || return 0
	wait "$1" 2>/dev/null || r=$?
	return 0
}
