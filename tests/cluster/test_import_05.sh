#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A data server that becomes full in the middle of an import.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

new_cluster >/dev/null
printf '[data]\ncapacity = 32M\nreserve = 1M\n' >>"$VMDEDUP_CONF"
head -c 8M /dev/urandom >"$images/fits.raw"
head -c 96M /dev/urandom >"$images/large.raw"

full() {
	vmdedup image import "$images/fits.raw" fits
	expect_status 1 "is full: free space" vmdedup image import "$images/large.raw" large
	[ "$(json 'map(.name) | join(" ")' vmdedup image ls)" = fits ]
	[ "$(json .pushes vmdedup cluster info)" = 0 ]
}

nothing_is_lost() {
	vmdedup image verify fits --against "$images/fits.raw"
	vmdedup image clone fits clone
	same_and_sparse clone "$images/fits.raw"
}

more_room() {
	sed -i 's/^capacity = .*/capacity = 512M/' "$VMDEDUP_CONF"
	vmdedup image import "$images/large.raw" large
	vmdedup image verify large --against "$images/large.raw"
}

run_case "the import fails, and says why" full
run_case "what was there is there, and may be cloned" nothing_is_lost
run_case "with more room the second try succeeds" more_room
finish
