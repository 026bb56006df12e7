#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 200
# All data servers have changed since the backup that is restored: those that it names have nothing, and
# those that have all would delete it.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

make_image "$images/a.raw" 8
data_conf='repair_rate = 1G'
start_fleet 2 --block-size 64K --replicas 2 --min-copies 1
backup=$TEST_TMP/backup

on_meta() {
	VMDEDUP_CONF=$store/meta.conf vmdedup cluster "$@"
}

blocks_of() { # CONDITION on the server: on all of them
	told "[.servers[] | select($1) | .blocks // error(\"server \(.id) is silent\")] | add"
}

have_dropped_all() {
	[ "$(blocks_of '.id < 3')" = 0 ]
}

moved_away() {
	vmdedup image import "$images/a.raw" a
	on_meta backup "$backup"
	for i in 3 4; do
		data_config $i
		start_data $i
	done
	wait_until 30 servers_are_up 4
	vmdedup cluster drain 1
	vmdedup cluster drain 2
	wait_until 100 have_dropped_all
	end_daemons "$meta_pid"
	rm "$store"/store/meta.sqlite*
	on_meta restore "$backup"
	start_meta
	wait_until 60 servers_are_up 4
}

force_deletes_nothing() {
	local before
	before=$(blocks_of '.id > 2')
	[ "$before" -gt 0 ]
	expect_status 6 "would delete them" vmdedup cluster resume-deletion --yes --force
	[ "$(json .deletion_suspended vmdedup cluster info)" = true ]
	[ "$(blocks_of '.id > 2')" = "$before" ]
}

stored_again() {
	vmdedup image import "$images/a.raw" again
	vmdedup cluster resume-deletion --yes
	vmdedup cluster check
	vmdedup image verify a --against "$images/a.raw"
}

# In this shell: each goes on from where the one before has left the servers.
for name in moved_away force_deletes_nothing stored_again; do
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
