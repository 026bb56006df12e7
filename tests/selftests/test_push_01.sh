#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
#
# CUT and COMMIT: the same cut until its COMMIT, writes above a closed cut, repeated and wrong
# COMMITs, a push whose COMMIT was lost, FENCE, RELEASE, divergence.

. "${0%/*}/test_common.sh"
. "${0%/*}/kernel_common.sh"

disk=$(make_disk 256)
format_cache "$disk"
open_cache cache0 "$disk"
make_image "$TEST_TMP/img" 16
size=$((16 << 20))
vol=/dev/mapper/vol0

setup() {
	rm -f "$TEST_TMP/img.head"
	make_image "$TEST_TMP/img" 16
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	start_agent "img=$TEST_TMP/img"
	cleanup_fn forget
	attach vol0 img $size
}

forget() {
	detach vol0
	agent fence img
	agent release img discard
}

layers() {
	setup
	put 3 9 1
	put 512 512 2		# a whole block
	put 1100 5 3
	same
	[ "$(agent cut img)" = 1 ]
	[ "$(agent cut img)" = 1 ]
	put 5 3 4		# above the closed overlay of block 0
	put 700 1 5
	put 5000 1000 6
	same
	[ "$(agent cut img)" = 1 ]
	[ "$(agent list img 1 | wc -l)" = 3 ]
	agent list img 1 | grep -q '^0 .* 9$'
	agent list img 1 | grep -q '^1 .* 2 0 512$'
	expect_error "22" agent list img 2
	expect_error "22" agent commit img 2 9
	agent push img
	same
	[ "$(field 4)" = 1 ]
	expect_error "114" agent commit img 1 2
	expect_error "22" agent commit img 1 3
	[ "$(agent cut img)" = 2 ]
	put 4 600 7
	same
	agent push img
	same
	agent push img
	same
	[ "$(field 4)" = 3 ]
	[ "$(field 6)" = 0 ]
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
	[ "$(agent cut img)" = 0 ]
}

lost_commit() {
	setup
	put 3 900 1
	agent merge img
	[ "$(agent cut img)" = 1 ]
	put 40 900 2
	detach vol0
	# The head has the cut, we have not: its child by the very next cut, which is closed here.
	attach vol0 img $size
	same
	agent push img
	same
	agent push img
	same
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
}

diverged() {
	setup
	put 3 900 1
	detach vol0
	agent set img cut 1
	expect_error . dmsetup create vol0 --table "0 $((size / 512)) dedup $cache img"
	dmsetup remove vol0 2>/dev/null || :
	# bit 5: diverged
	[ $(($(field 3) & 0x20)) != 0 ]
	expect_error "108" agent cut img
	expect_error "16" agent release img
	agent release img discard
	[ -z "$(field 1)" ]
	agent set img cut 0
	attach vol0 img $size
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	same
}

other_epoch() {
	setup
	put 3 900 1
	agent push img
	detach vol0
	agent release img
	agent set img epoch 7
	agent set img cut 0
	attach vol0 img $size
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	put 3 900 2
	[ "$(agent cut img)" = 1 ]
	same
	agent push img
	cmp "$TEST_TMP/ref" "$TEST_TMP/img"
}

# The same name, another image: nothing of the old one may show.
made_again() {
	setup
	put 3 900 1
	detach vol0
	agent set img uuid 5
	cp "$TEST_TMP/img" "$TEST_TMP/ref"
	attach vol0 img $size
	same
	[ "$(agent volumes | wc -l)" = 2 ]
	detach vol0
	agent release "$(agent volumes | awk '$6 == 0 {print $1}')"
}

fenced() {
	setup
	put 3 900 1
	expect_error "116" agent fence img 99
	agent fence img
	expect_error . dd if=/dev/zero of=$vol bs=4k count=1 oflag=direct
	same
	expect_error "108" agent cut img
	expect_error "16" agent release img discard
	# What it holds can be had, and committed: by somebody who means to.
	[ "$(field 6)" != 0 ]
	agent recover img
	[ "$(field 6)" = 0 ]
	same
	expect_error . dd if=/dev/zero of=$vol bs=4k count=1 oflag=direct
}

run_case "layers, and the same cut until its commit" layers
run_case "a commit that was lost is repeated" lost_commit
run_case "a head that went on elsewhere is diverged" diverged
run_case "a grant of another epoch" other_epoch
run_case "an image made again under the same name" made_again
run_case "fence" fenced
finish
