#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# Volumes by the command: attach, write, push, detach, and everything that is refused.

. "${0%/*}/test_common.sh"

requires vmdedup vmdedup-agent mke2fs e2fsck jq
export VMDEDUP_CONF=$TEST_TMP/vmdedup.conf
cache_disk=$(make_disk 256)
cat >"$VMDEDUP_CONF" <<END
[store]
store = $TEST_TMP/store
run = $TEST_TMP/run
[agent]
cache = /dev/mapper/vol-cache
push_age = 0
END

start_agent() {
	start vmdedup-agent
	agent=$pid
	wait_until 60 agent_is_ready
}

agent_is_ready() {
	vmdedup status --json 2>/dev/null | jq -e '.agent.channel' >/dev/null
}

json() {
	local filter=$1
	shift
	"$@" --json | jq -r "$filter"
}

# expect_status STATUS PATTERN COMMAND...
expect_status() {
	local want=$1 pattern=$2 r=0 out
	shift 2
	out=$("$@" 2>&1 </dev/null) || r=$?
	[ "$r" = "$want" ] || fail "exit status $r, not $want: $*: $out"
	grep -qE -- "$pattern" <<<"$out" || fail "said \"$out\", not \"$pattern\": $*"
}

vmdedup cluster init --name lab
vmdedup cache format "$cache_disk"
dm_create vol-cache "0 $(sectors "$cache_disk") dedup-cache $cache_disk"
remove_volumes() {
	local name
	for name in $(dmsetup ls | awk '/^vol-/ && !/^vol-cache/ { print $1 }'); do
		dmsetup message "$name" 0 fail_parked
		dmsetup remove --retry "$name"
	done
}
cleanup_fn remove_volumes
truncate -s 40M "$TEST_TMP/image"
mke2fs -q -t ext4 -d "${0%/*}" "$TEST_TMP/image"
start_agent
vmdedup image import "$TEST_TMP/image" base
vmdedup image clone base one
vmdedup image clone base two

detach_if_there() {
	! dmsetup info "$1" >/dev/null 2>&1 || vmdedup volume detach "$1"
}

attach_reads_the_image() {
	[ "$(vmdedup volume attach one --name vol-one)" = /dev/mapper/vol-one ]
	cmp /dev/mapper/vol-one "$TEST_TMP/image"
	[ "$(json '.[0] | .image + " " + .device' vmdedup volume ls)" = "one vol-one" ]
	vmdedup volume ls | grep -q '^one  *vol-one'
	vmdedup image show one | grep -q 'for writing on'
}

write_push() {
	head -c 3M /dev/urandom | dd of=/dev/mapper/vol-one bs=64K seek=100 conv=fsync status=none
	[ "$(json '.[0].dirty_bytes > 0' vmdedup volume ls)" = true ]
	[ "$(json '.blocks > 0 and .new_blocks > 0' vmdedup volume push vol-one)" = true ]
	[ "$(json '.[0].dirty_bytes' vmdedup volume ls)" = 0 ]
	vmdedup volume push one | grep -q 'nothing was dirty'
	cp /dev/mapper/vol-one "$TEST_TMP/now"
	vmdedup image verify one --against "$TEST_TMP/now"
	[ "$(json .version vmdedup volume push one --label first)" = 1 ]
	[ "$(json '.[0].label' vmdedup image history one)" = first ]
}

refusals() {
	expect_status 4 "attached on this host already" vmdedup volume attach one --name vol-other
	expect_status 4 "a device /dev/mapper/vol-one already" vmdedup volume attach two --name vol-one
	expect_status 3 "no image" vmdedup volume attach missing
	expect_status 1 "cannot be an image's name" vmdedup volume attach ""
	expect_status 1 "cannot be an image's name" vmdedup volume attach a/b
	expect_status 1 "cannot be a device's name" vmdedup volume attach two --name a/b
	expect_status 3 "no volume|not attached|missing" vmdedup volume push missing
	expect_status 3 "no volume|not attached|missing" vmdedup volume detach missing
	exec 9</dev/mapper/vol-one
	expect_status 4 "is in use" vmdedup volume detach one
	exec 9<&-
	expect_status 4 "attached|lease|in use" vmdedup image rm one
	[ "$(dmsetup ls | grep -c vol-)" = 2 ]
}

detach() {
	printf 'the last words' | dd of=/dev/mapper/vol-one bs=1 seek=20000000 conv=fsync,notrunc status=none
	cp /dev/mapper/vol-one "$TEST_TMP/now"
	vmdedup volume detach /dev/mapper/vol-one
	! dmsetup info vol-one 2>/dev/null
	vmdedup image verify one --against "$TEST_TMP/now"
	vmdedup image show one | grep -q 'nowhere for writing'
	[ "$(json length vmdedup volume ls)" = 0 ]
	vmdedup volume attach one --name vol-one
	cmp /dev/mapper/vol-one "$TEST_TMP/now"
	vmdedup volume detach vol-one
}

read_only() {
	vmdedup volume attach base --read-only --name vol-base
	cmp /dev/mapper/vol-base "$TEST_TMP/image"
	expect_error "Read-only|Operation not permitted" dd if=/dev/zero of=/dev/mapper/vol-base bs=4K count=1 conv=fsync
	vmdedup image show base | grep -q 'nowhere for writing'
	vmdedup volume detach vol-base
}

ephemeral() {
	local before
	before=$(json .root vmdedup image show two)
	vmdedup volume attach two --ephemeral --name vol-two
	head -c 1M /dev/urandom | dd of=/dev/mapper/vol-two bs=64K conv=fsync status=none
	vmdedup volume detach vol-two --discard
	[ "$(json .root vmdedup image show two)" = "$before" ]
	vmdedup image verify two --against "$TEST_TMP/image"
}

plain_dmsetup() {
	dmsetup create vol-plain --table "0 81920 dedup /dev/mapper/vol-cache two"
	cmp /dev/mapper/vol-plain "$TEST_TMP/image"
	expect_error "." dmsetup create vol-second --table "0 81920 dedup /dev/mapper/vol-cache two"
	vmdedup volume detach vol-plain
}

# The image and the device become larger while something has the device open.
resize() {
	local old=$TEST_TMP/old bytes=$((96 << 20))
	vmdedup volume attach two --name vol-two
	exec 9<>/dev/mapper/vol-two
	head -c 1M /dev/urandom | dd of=/dev/mapper/vol-two bs=64K seek=10 conv=fsync,notrunc status=none
	cp /dev/mapper/vol-two "$old"
	expect_status 1 "cannot become smaller" vmdedup volume resize two 1M
	[ "$(json .size vmdedup volume resize vol-two 96M)" = $bytes ]
	[ "$(blockdev --getsize64 /dev/mapper/vol-two)" = $bytes ]
	vmdedup volume resize two | grep -q 'has that size now'
	truncate -s 96M "$old"
	cmp /dev/mapper/vol-two "$old"
	for file in /dev/mapper/vol-two "$old"; do
		printf 'the new end' | dd of="$file" bs=1 seek=$((bytes - 11)) conv=fsync,notrunc status=none
	done
	vmdedup volume push two
	exec 9>&-
	vmdedup image verify two --against "$old"
	vmdedup volume detach vol-two
	[ "$(json .size vmdedup volume attach two --name vol-two)" = $bytes ]
	cmp /dev/mapper/vol-two "$old"
	vmdedup volume detach vol-two
	expect_status 3 "not attached on this host" vmdedup volume resize two 128M
}

# Nobody is there to take it: the device stays, and what was written.
handover_to_nobody() {
	vmdedup volume attach two --name vol-two
	cp /dev/mapper/vol-two "$TEST_TMP/two"
	for cold in "" --cold; do
		expect_status 3 "knows no agent of a host nosuch" \
			vmdedup volume handover vol-two --to nosuch $cold
		[ "$(json '.[0] | .device + " " + .state' vmdedup volume ls)" = "vol-two open" ]
		cmp /dev/mapper/vol-two "$TEST_TMP/two"
	done
	vmdedup volume detach vol-two
}

# The attached image gets another name, and another image its name: what is said of the device is the first's.
renamed() {
	local small=$((40 << 20)) bytes=$((64 << 20)) uuid
	vmdedup image clone base moving
	vmdedup volume attach moving --name vol-moving
	exec 9<>/dev/mapper/vol-moving
	uuid=$(json .uuid vmdedup image show moving)
	vmdedup image rename moving moved
	vmdedup image clone base moving
	head -c 1M /dev/urandom | dd of=/dev/mapper/vol-moving bs=64K seek=20 conv=fsync,notrunc status=none
	expect_status 4 "moving is another image by now" vmdedup volume resize moving 64M
	[ "$(json .size vmdedup volume resize vol-moving 64M)" = $bytes ]
	[ "$(blockdev --getsize64 /dev/mapper/vol-moving)" = $bytes ]
	cp /dev/mapper/vol-moving "$TEST_TMP/moved"
	[ "$(json '.[] | select(.device == "vol-moving").uuid' vmdedup volume ls)" = "$uuid" ]
	vmdedup volume push vol-moving
	vmdedup image verify moved --against "$TEST_TMP/moved"
	vmdedup image verify moving --against "$TEST_TMP/image"
	[ "$(json .size vmdedup volume resize moved 65M)" = $((65 << 20)) ]
	[ "$(json .size vmdedup volume resize "$uuid" 66M)" = $((66 << 20)) ]
	[ "$(blockdev --getsize64 /dev/mapper/vol-moving)" = $((66 << 20)) ]
	[ "$(json .size vmdedup image show moving)" = $small ]
	exec 9>&-
	vmdedup volume detach vol-moving
	[ "$(json length vmdedup volume ls)" = 0 ]
	vmdedup image rm moving moved
}

# What was written is on this host's cache, pushed meanwhile (the agent pushes when a device goes) or not.
no_push() {
	vmdedup volume attach two --name vol-two
	head -c 64K /dev/urandom | dd of=/dev/mapper/vol-two bs=64K conv=fsync status=none
	cp /dev/mapper/vol-two "$TEST_TMP/two"
	vmdedup volume detach vol-two --no-push
	vmdedup volume attach two --name vol-two
	cmp /dev/mapper/vol-two "$TEST_TMP/two"
	vmdedup volume detach vol-two
	vmdedup image verify two --against "$TEST_TMP/two"
}

second_agent() {
	expect_error "another process|already|in use|has the store" timeout 30 vmdedup-agent
	agent_is_ready
}

no_agent() {
	kill "$agent"
	wait "$agent"
	expect_status 5 "no agent runs" vmdedup volume attach one
	# The store is free: the command serves itself.
	vmdedup image verify one
}

for name in attach_reads_the_image write_push refusals detach read_only ephemeral plain_dmsetup \
	no_push resize renamed handover_to_nobody second_agent no_agent; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
