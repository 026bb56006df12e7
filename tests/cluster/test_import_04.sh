#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 240
# Imports that end before their end leave nothing that blocks a second try; all block sizes and
# fingerprints.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

make_image "$images/a.raw" 192

some_is_stored() {
	[ "$(du -sm "$store/store/data/lumps" 2>/dev/null | cut -f 1)" -ge 4 ] 2>/dev/null
}

import_in_background() {
	new_cluster >/dev/null
	start vmdedup image import "$images/a.raw" a >"$TEST_TMP/out" 2>&1
	wait_until 60 some_is_stored
}

# in_the_midst SIGNAL: its exit status is $r; once more when it was faster.
in_the_midst() {
	for _ in 1 2 3 4 5; do
		r=0
		import_in_background
		kill "-$1" "$pid" || :
		wait "$pid" 2>/dev/null || r=$?
		[ $r = 0 ] || return 0
	done
}

killed() {
	local r
	in_the_midst KILL
	[ $r = 137 ] || fail "exit status $r: $(cat "$TEST_TMP/out")"
	[ "$(json length vmdedup image ls)" = 0 ]
	vmdedup image import "$images/a.raw" a
	same_and_sparse a "$images/a.raw"
}

interrupted() {
	local r
	in_the_midst INT
	[ $r = 130 ] || fail "exit status $r: $(cat "$TEST_TMP/out")"
	grep -q "interrupted: there is no image a" "$TEST_TMP/out"
	[ "$(json .pushes vmdedup cluster info)" = 0 ]
	[ "$(json length vmdedup image ls)" = 0 ]
	vmdedup image import "$images/a.raw" a
	vmdedup image verify a --against "$images/a.raw"
}

begun_or_done() {
	compgen -G "$TEST_TMP/exports/.a.raw.*" >/dev/null || ! kill -0 "$pid" 2>/dev/null
}

export_interrupted() {
	local r=0
	new_cluster >/dev/null
	vmdedup image import "$images/a.raw" a
	mkdir "$TEST_TMP/exports"
	start vmdedup image export a "$TEST_TMP/exports/a.raw"
	wait_until 60 begun_or_done
	kill -INT "$pid" || :
	wait "$pid" || r=$?
	[ $r = 130 ] || [ $r = 0 ] || fail "exit status $r"
	if [ $r = 130 ]; then
		[ -z "$(ls -A "$TEST_TMP/exports")" ]
	fi
}

# geometry BLOCK-SIZE FINGERPRINT
geometry() {
	new_cluster --block-size "$1" --fingerprint "$2"
	make_image "$images/small.raw" 24
	vmdedup image import "$images/small.raw" a
	vmdedup image verify a --against "$images/small.raw"
	same_and_sparse a "$images/small.raw"
	[ "$(json .fingerprint vmdedup cluster info)" = "$2" ]
	[ "$(json .new_blocks vmdedup image import "$images/small.raw" b)" = 0 ]
}

run_case "killed in the middle, then again" killed
run_case "interrupted in the middle, then again" interrupted
run_case "an interrupted export leaves no file" export_interrupted
run_case "4 KiB, sha256" geometry 4K sha256
run_case "64 KiB, sha1" geometry 64K sha1
run_case "1 MiB, md5" geometry 1M md5
finish
