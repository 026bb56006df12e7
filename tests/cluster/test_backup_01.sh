#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 200
# Backups while images come, and the new history of a restored store: nothing is deleted by itself.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

make_image "$images/a.raw" 24
make_image "$images/b.raw" 24
start_fleet 2
backup=$TEST_TMP/backup

stored() {
	told '[.servers[].blocks] | add'
}

# The store of the meta server's host, not the client's.
on_meta() {
	VMDEDUP_CONF=$store/meta.conf vmdedup cluster "$@"
}

# Backups are taken while imports go on: each is whole, whatever it has caught.
on_line() {
	local i import
	vmdedup image import "$images/a.raw" a
	(for i in 1 2 3; do vmdedup image import "$images/b.raw" "b$i" >/dev/null; done) &
	import=$!
	for i in 1 2 3 4; do
		on_meta backup "$backup.$i"
	done
	wait "$import"
	for i in 1 2 3 4; do
		vmdedup --conf /dev/null cluster restore --store "$TEST_TMP/restored.$i" "$backup.$i"
	done
	expect_status 4 "exists" on_meta backup "$backup.1"
	[ "$(stat -c %a "$backup.1")" = 600 ]
	vmdedup image rm b1 b2 b3
	vmdedup cluster gc
}

restore_last_week() {
	local before
	on_meta backup "$backup"
	vmdedup image import "$images/b.raw" b
	before=$(stored)
	expect_status 4 "another meta server" on_meta restore "$backup"
	mkdir "$store/old"
	end_daemons "$meta_pid"
	mv "$store"/store/meta.sqlite* "$store/old"
	on_meta restore "$backup"
	start_meta
	wait_until 60 servers_are_up 2
	[ "$(vmdedup image ls --json | jq -r '.[].name')" = a ]
	[ "$(json .deletion_suspended vmdedup cluster info)" = true ]
	expect_status 4 "suspended" vmdedup cluster gc
	expect_status 4 "suspended" vmdedup cluster gc --full
	[ "$(stored)" = "$before" ]
	vmdedup image verify a --against "$images/a.raw"
	vmdedup image import "$images/b.raw" again
	vmdedup image verify again --against "$images/b.raw"
	vmdedup image rm again
	[ "$(stored)" = "$before" ]
}

# The old meta server comes back by mistake: its lists are not of the servers' history.
old_history() {
	local before port
	before=$(stored)
	port=$(free_port)
	start vmdedup-meta --conf "$store/meta.conf" --store "$store/old/meta.sqlite" \
		--listen "tcp://127.0.0.1:$port"
	printf '[cluster]\nmeta = tcp://127.0.0.1:%s\n' "$port" >"$TEST_TMP/old.conf"
	vmdedup --conf "$TEST_TMP/old.conf" image rm a
	expect_status 4 "suspended" vmdedup --conf "$TEST_TMP/old.conf" cluster gc
	[ "$(stored)" = "$before" ]
	vmdedup image verify a --against "$images/a.raw"
}

agreed() {
	local before
	before=$(stored)
	expect_status 1 "stays suspended" vmdedup cluster resume-deletion
	expect_status 4 "suspended" vmdedup cluster gc --full
	[ "$(json .missing vmdedup cluster resume-deletion --yes)" = 0 ]
	# The data servers hear of it with the next map.
	wait_until 60 vmdedup cluster gc --full
	vmdedup cluster gc --full
	[ "$(stored)" -lt "$before" ]
	vmdedup image verify a --against "$images/a.raw"
	vmdedup cluster check
}

# What was deleted after the backup is missing after the restore, and the check says so.
missing() {
	vmdedup image import "$images/b.raw" b
	on_meta backup "$backup.b"
	vmdedup image rm b
	vmdedup cluster gc
	end_daemons "$meta_pid"
	rm "$store"/store/meta.sqlite*
	on_meta restore "$backup.b"
	start_meta
	wait_until 60 servers_are_up 2
	expect_status 6 "stays suspended" vmdedup cluster resume-deletion --yes
	vmdedup image verify a --against "$images/a.raw"
	expect_status 6 "" vmdedup image verify b
	# The source heals it: its blocks are stored again.
	vmdedup image import "$images/b.raw" healed
	vmdedup image verify b --against "$images/b.raw"
	vmdedup cluster resume-deletion --yes
}


# In this shell: each goes on from where the one before has left the servers.
for name in on_line restore_last_week old_history agreed missing; do
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n $name"
done
finish
