#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Images in QEMU's formats, and over NBD.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

requires qemu-img qemu-nbd
new_cluster >/dev/null
make_image "$images/a.raw" 48
vmdedup image import "$images/a.raw" raw >/dev/null
root=$(json .root vmdedup image show raw)

# format NAME FORMAT [CONVERT-OPTION...]
format() {
	local name=$1 format=$2
	shift 2
	qemu-img convert -q -f raw -O "$format" "$@" "$images/a.raw" "$images/$name"
	# Every block is there already, under another format.
	[ "$(json '[.format, .new_blocks, .root] | join(" ")' \
		vmdedup image import "$images/$name" "$name")" = "$format 0 $root" ]
	vmdedup image verify "$name" --against "$images/$name"
	same_and_sparse "$name" "$images/a.raw"
}

nbd_uri() {
	local end
	start qemu-nbd --read-only --persistent --format=raw --socket="$TEST_TMP/nbd" "$images/a.raw"
	wait_until 30 test -S "$TEST_TMP/nbd"
	vmdedup image import "nbd+unix:///?socket=$TEST_TMP/nbd" over-nbd
	[ "$(json .root vmdedup image show over-nbd)" = "$root" ]
}

# A raw disk may hold anything, also what looks like another format.
named_format() {
	vmdedup image import --format raw "$images/a.qcow2" container
	same_and_sparse container "$images/a.qcow2"
}

no_child_stays() {
	! pgrep -f "qemu-nbd --read-only --format=[a-z0-9]+ -- $images" || fail "qemu-nbd still runs"
	! compgen -G "/tmp/vmdedup-*/nbd"
}

run_case "qcow2" format a.qcow2 qcow2
run_case "qcow2, compressed" format c.qcow2 qcow2 -c
run_case "vmdk" format a.vmdk vmdk
run_case "vmdk, stream optimized" format s.vmdk vmdk -o subformat=streamOptimized
run_case "vhdx" format a.vhdx vhdx
run_case "vdi" format a.vdi vdi
run_case "an NBD URI" nbd_uri
run_case "the format that the user names" named_format
run_case "no qemu-nbd is left" no_child_stays
finish
