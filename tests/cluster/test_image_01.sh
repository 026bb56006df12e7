#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Clones, versions, names, and what is left when they are gone.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

new_cluster >/dev/null
make_image "$images/a.raw" 24
make_image "$images/b.raw" 24
vmdedup image import "$images/a.raw" a >/dev/null

clone() {
	local nodes
	nodes=$(json .nodes vmdedup cluster info)
	vmdedup image clone a c1
	[ "$(json .root vmdedup image clone a c2)" = "$(json .root vmdedup image show a)" ]
	[ "$(json .nodes vmdedup cluster info)" = "$nodes" ]
	same_and_sparse c2 "$images/a.raw"
}

ls_and_show() {
	[ "$(json 'map(.name) | join(" ")' vmdedup image ls)" = "a c1 c2" ]
	[ "$(json 'map(.name) | join(" ")' vmdedup image ls c)" = "c1 c2" ]
	[ "$(json .size vmdedup image show c1)" = $((24 * 1048576)) ]
	vmdedup image ls | grep -qE '^c1 +24.0 MiB'
	vmdedup image show c1 | grep -q 'nowhere for writing'
}

rename() {
	vmdedup image rename c1 new
	expect_status 3 "no image" vmdedup image show c1
	expect_status 4 "already" vmdedup image rename new a
	vmdedup image verify new --against "$images/a.raw"
}

versions() {
	[ "$(json .version vmdedup image snapshot a --label first)" ]
	[ "$(json '.[0].label' vmdedup image history a)" = first ]
	number=$(json '.[0].version' vmdedup image history a)
	vmdedup image verify a --version "$number" --against "$images/a.raw"
	vmdedup image clone a old --version "$number"
	vmdedup image rollback a --version "$number"
	vmdedup image verify a --against "$images/a.raw"
	expect_status 2 "version is needed" vmdedup image rollback a
	expect_status 3 "version" vmdedup image rollback a --version 99
	vmdedup image history a | grep -q first
}

rm_images() {
	vmdedup image rm new c2 old
	[ "$(json 'map(.name) | join(" ")' vmdedup image ls)" = a ]
	expect_status 3 "no image" vmdedup image rm c2
	vmdedup image verify a --against "$images/a.raw"
}

# Many, so that the list comes in pages.
many() {
	local i
	for ((i = 0; i < 30; i++)); do
		echo "image clone a many-$i"
	done | xargs -L 1 vmdedup
	[ "$(json length vmdedup image ls many-)" = 30 ]
}

run_case "clones share everything" clone
run_case "ls and show" ls_and_show
run_case "rename" rename
run_case "snapshot, history, rollback" versions
run_case "rm leaves the others whole" rm_images
run_case "many images" many
finish
