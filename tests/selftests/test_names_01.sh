#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# not on: 6.1
#
# Two agents on one host, each with its own cache and servers, and an image of the same name: names of
# devices are the kernel's, names of images are not.

. "${0%/*}/test_common.sh"

requires vmdedup vmdedup-agent jq

# on HOST COMMAND...
on() {
	VMDEDUP_CONF=$TEST_TMP/$1.conf "${@:2}"
}

is_ready() {
	on "$1" vmdedup status --json 2>/dev/null | jq -e '.agent.channel' >/dev/null
}

# start_host NAME: with an image vm
start_host() {
	local disk
	disk=$(make_disk 64)
	printf '%s\n' "[store]" "store = $TEST_TMP/$1" "run = $TEST_TMP/run-$1" "[agent]" \
		"cache = /dev/mapper/$1-cache" "push_age = 0" >"$TEST_TMP/$1.conf"
	on "$1" vmdedup cluster init --name "$1" --block-size 64K
	vmdedup cache format --block-size 64K "$disk"
	dm_create "$1-cache" "0 $(sectors "$disk") dedup-cache $disk"
	start env "VMDEDUP_CONF=$TEST_TMP/$1.conf" vmdedup-agent
	wait_until 60 is_ready "$1"
	head -c 1M /dev/urandom >"$TEST_TMP/image-$1"
	on "$1" vmdedup image import "$TEST_TMP/image-$1" vm
}

remove_volumes() {
	local name
	for name in vm vm-b; do
		! dmsetup info $name >/dev/null 2>&1 || dm_remove $name
	done
}

devices() {
	on "$1" vmdedup volume ls --json | jq -c '[.[].device]'
}

same_names() {
	cleanup_fn remove_volumes
	on a vmdedup volume attach vm
	expect_error "a device /dev/mapper/vm already, for image vm over the cache device.*--name" \
		on b vmdedup volume attach vm
	on b vmdedup volume attach vm --name vm-b
	expect_error "attached on this host already, as /dev/mapper/vm-b" \
		on b vmdedup volume attach vm --name vm-c
	cmp "$TEST_TMP/image-a" /dev/mapper/vm
	cmp "$TEST_TMP/image-b" /dev/mapper/vm-b
	[ "$(devices a)" = '["vm"]' ]
	[ "$(devices b)" = '["vm-b"]' ]
	# Each means its own.
	on b vmdedup volume resize vm 2M
	[ "$(sectors /dev/mapper/vm) $(sectors /dev/mapper/vm-b)" = "2048 4096" ]
	on b vmdedup volume detach vm
	[ "$(devices a) $(devices b)" = '["vm"] []' ]
	cmp "$TEST_TMP/image-a" /dev/mapper/vm
	expect_error "no volume" on b vmdedup volume detach vm
	[ "$(devices a)" = '["vm"]' ]
	on a vmdedup volume detach vm
	on b vmdedup volume attach vm
	[ "$(devices a) $(devices b)" = '[] ["vm"]' ]
	on b vmdedup volume detach vm
}

other_programs() {
	local disk
	disk=$(make_disk 1)
	dm_create vm "0 $(sectors "$disk") linear $disk 0"
	expect_error "a device /dev/mapper/vm already, which is no volume.*--name" \
		on a vmdedup volume attach vm
	expect_error "no volume" on a vmdedup volume detach vm
	[ -e /dev/mapper/vm ]
}

start_host a
start_host b
run_case "two agents' images have one name, and their devices two" same_names
run_case "a device of another program" other_programs
finish
