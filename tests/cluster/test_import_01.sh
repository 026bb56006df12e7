#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A raw, sparse image goes in and comes out; what is there already is not stored again.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

new_cluster --name one >/dev/null
make_image "$images/a.raw" 96
truncate -s 64M "$images/hole.raw"
head -c $((3 * 512)) /dev/urandom >"$images/tiny.raw"

round_trip() {
	vmdedup image import "$images/a.raw" a
	vmdedup image verify a --against "$images/a.raw"
	same_and_sparse a "$images/a.raw"
}

again() {
	local summary
	summary=$(vmdedup image import --json "$images/a.raw" again)
	[ "$(jq .new_blocks <<<"$summary")" = 0 ]
	[ "$(jq .stored_bytes <<<"$summary")" = 0 ]
	[ "$(jq .virtual_bytes <<<"$summary")" = $((96 * 1048576)) ]
	[ "$(jq '.data_bytes + .zero_bytes == .virtual_bytes' <<<"$summary")" = true ]
	[ "$(json .root vmdedup image show a)" = "$(json .root vmdedup image show again)" ]
	same_and_sparse again "$images/a.raw"
}

# Half of the blocks are those of a.raw: only the others are sent.
half_new() {
	local summary
	cp --sparse=always "$images/a.raw" "$images/half.raw"
	head -c 16M /dev/urandom | dd of="$images/half.raw" bs=1M seek=1 conv=notrunc status=none
	summary=$(vmdedup image import --json "$images/half.raw" half)
	[ "$(jq .new_blocks <<<"$summary")" = 64 ]
	same_and_sparse half "$images/half.raw"
}

zeros_are_never_stored() {
	local before after
	before=$(json .blocks vmdedup cluster info)
	[ "$(json .data_bytes vmdedup image import "$images/hole.raw" hole)" = 0 ]
	after=$(json .blocks vmdedup cluster info)
	[ "$before" = "$after" ]
	same_and_sparse hole "$images/hole.raw"
}

smaller_than_a_block() {
	vmdedup image import "$images/tiny.raw" tiny
	same_and_sparse tiny "$images/tiny.raw"
	[ "$(json .size vmdedup image show tiny)" = 1536 ]
}

verify_sees_a_difference() {
	cp --sparse=always "$images/a.raw" "$images/other.raw"
	printf x | dd of="$images/other.raw" bs=1 seek=40000000 conv=notrunc status=none
	expect_status 6 "differs from the source" vmdedup image verify a --against "$images/other.raw"
	# Where the image has zeros.
	cp --sparse=always "$images/a.raw" "$images/other.raw"
	printf x | dd of="$images/other.raw" bs=1 seek=90000000 conv=notrunc status=none
	expect_status 6 "is zeros, and not in the source" \
		vmdedup image verify a --against "$images/other.raw"
	expect_status 6 "has .* bytes, the source" vmdedup image verify a --against "$images/hole.raw"
}

export_replaces_nothing() {
	echo precious >"$TEST_TMP/there"
	expect_status 4 "exists already .--force" vmdedup image export a "$TEST_TMP/there"
	[ "$(cat "$TEST_TMP/there")" = precious ]
	vmdedup image export --force a "$TEST_TMP/there"
	cmp "$TEST_TMP/there" "$images/a.raw"
	expect_status 3 "no image|not exist" vmdedup image export missing "$TEST_TMP/new"
	[ ! -e "$TEST_TMP/new" ]
	expect_status 3 "cannot create" vmdedup image export a "$TEST_TMP/no/such/folder"
}

run_case "import, verify, export" round_trip
run_case "a second import stores nothing" again
run_case "a third import stores what is new" half_new
run_case "zeros are never stored" zeros_are_never_stored
run_case "an image smaller than a block" smaller_than_a_block
run_case "verify sees a difference" verify_sees_a_difference
run_case "export replaces nothing unasked" export_replaces_nothing
finish
