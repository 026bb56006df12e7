#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A cache disk without a kernel: format, check, dump, repair.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

export VMDEDUP_CONF=/dev/null
disk=$TEST_TMP/disk
truncate -s 256M "$disk"

format() {
	vmdedup cache format --label ssd0 "$disk"
	vmdedup cache check "$disk" | grep -q 'the cache is well'
	[ "$(json .label vmdedup cache check "$disk")" = ssd0 ]
	[ "$(json .block_bytes vmdedup cache check "$disk")" = 262144 ]
	[ "$(json '.slots == .free' vmdedup cache check "$disk")" = true ]
	[ "$(vmdedup cache dump --json "$disk" | jq -r .record)" = super ]
}

not_unasked() {
	local before
	before=$(json .cache vmdedup cache check "$disk")
	expect_status 4 "force" vmdedup cache format "$disk"
	[ "$(json .cache vmdedup cache check "$disk")" = "$before" ]
	vmdedup cache format --force --block-size 64K "$disk" >/dev/null
	[ "$(json .cache vmdedup cache check "$disk")" != "$before" ]
	[ "$(json .block_bytes vmdedup cache check "$disk")" = 65536 ]
}

bad_disks() {
	truncate -s 1M "$TEST_TMP/small"
	expect_status 1 "small|least" vmdedup cache format "$TEST_TMP/small"
	truncate -s 64M "$TEST_TMP/none"
	expect_status 1 "not formatted|no cache" vmdedup cache check "$TEST_TMP/none"
	expect_status 1 "not formatted|no cache" vmdedup cache dump "$TEST_TMP/none"
	expect_status 3 "No such file" vmdedup cache check "$TEST_TMP/missing"
	expect_status 2 "power of two" vmdedup cache format --block-size 3K "$TEST_TMP/none"
	expect_status 2 "not a UUID" vmdedup cache format --cluster x "$TEST_TMP/none"
}

superblocks() {
	local last=$((256 * 256 - 1)) r=0
	vmdedup cache format --force "$disk" >/dev/null
	dd if=/dev/urandom of="$disk" bs=4096 seek=1 count=1 conv=notrunc status=none
	expect_status 6 "superblock" vmdedup cache check "$disk"
	vmdedup cache repair "$disk" | grep -q '1 superblock'
	vmdedup cache check "$disk" >/dev/null
	dd if=/dev/urandom of="$disk" bs=4096 seek=$last count=1 conv=notrunc status=none
	vmdedup cache repair "$disk" | grep -q '1 superblock'
	vmdedup cache repair "$disk" | grep -q 'nothing to repair'
	dd if=/dev/urandom of="$disk" bs=4096 seek=1 count=1 conv=notrunc status=none
	dd if=/dev/urandom of="$disk" bs=4096 seek=$last count=1 conv=notrunc status=none
	expect_status 1 "superblock|not formatted|no cache" vmdedup cache check "$disk"
}

run_case "format, check, dump" format
run_case "nothing is overwritten unasked" not_unasked
run_case "disks that are no caches" bad_disks
run_case "superblocks destroyed" superblocks
finish
