#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A fleet whose links are authenticated and encrypted.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

keys=$TEST_TMP/keys
mkdir -p "$keys/clients"
for host in host stranger; do
	vmdedup --conf /dev/null cluster key "$keys/$host" >/dev/null
done
cp "$keys/host" "$keys/clients/"
fleet_conf="[curve]
secret = $keys/host_secret
servers = $keys/host
clients = $keys/clients"
make_image "$images/a.raw" 24
start_fleet 2

round_trip() {
	vmdedup image import "$images/a.raw" a
	same_and_sparse a "$images/a.raw"
}

# conf SECRET SERVERS: a client's configuration with these keys.
conf() {
	printf '[cluster]\nmeta = tcp://127.0.0.1:%s\n[curve]\nsecret = %s\nservers = %s\n' \
		"$meta_port" "$1" "$2" >"$TEST_TMP/client.conf"
}

strangers() {
	conf "$keys/stranger_secret" "$keys/host"
	expect_status 5 "key" vmdedup --conf "$TEST_TMP/client.conf" image ls
	conf "$keys/host_secret" "$keys/stranger"
	expect_status 5 "key|CURVE" vmdedup --conf "$TEST_TMP/client.conf" image ls
	printf '[cluster]\nmeta = tcp://127.0.0.1:%s\n' "$meta_port" >"$TEST_TMP/client.conf"
	expect_status 5 "CURVE|key" vmdedup --conf "$TEST_TMP/client.conf" image ls
	conf "$keys/host_secret" "$keys/host"
	vmdedup --conf "$TEST_TMP/client.conf" image ls
}

key_files() {
	[ "$(stat -c %a "$keys/host_secret")" = 600 ]
	expect_status 4 "exists" vmdedup cluster key "$keys/host"
	# The public key alone, where its pair is not beside it.
	conf "$keys/clients/host" "$keys/host"
	expect_status 1 "public key only" vmdedup --conf "$TEST_TMP/client.conf" image ls
	conf "$keys/missing" "$keys/host"
	expect_status 3 "cannot read .*secret" vmdedup --conf "$TEST_TMP/client.conf" image ls
}

# Servers' keys and administrators' in folders of their own: others are hosts'.
roles() {
	for key in guest boss; do
		vmdedup --conf /dev/null cluster key "$keys/$key" >/dev/null
		cp "$keys/$key" "$keys/clients/"
	done
	conf "$keys/guest_secret" "$keys/host"
	local guest="vmdedup --conf $TEST_TMP/client.conf"
	[[ $($guest cluster status) == *KEYS*"the meta server and 2 data servers"* ]]
	$guest cluster set --out-after 90
	mkdir "$keys/clients/data" "$keys/clients/admin"
	mv "$keys/clients/host" "$keys/clients/data/"
	mv "$keys/clients/boss" "$keys/clients/admin/"
	expect_status 1 "role admin" $guest cluster set --out-after 91
	expect_status 1 "role admin" $guest cluster gc
	[[ $($guest cluster status) != *KEYS* ]]
	$guest image import "$images/a.raw" b
	$guest image verify b
	$guest image rm b
	conf "$keys/boss_secret" "$keys/host"
	vmdedup --conf "$TEST_TMP/client.conf" cluster set --out-after 91
	vmdedup --conf "$TEST_TMP/client.conf" cluster gc --full
}

run_case "import and export" round_trip
run_case "who is not known gets nothing" strangers
run_case "files with keys" key_files
run_case "roles of keys" roles
finish
