#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 120
# Hundreds of damaged bytes in the lumps of one data server: the scrub finds
# them, heals them from the other replica and says so.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

data_conf='scrub_rate = 1G
scrub_every = 1
repair_rate = 1G'
make_image "$images/a.raw" 48
start_fleet 2 --block-size 64K --replicas 2 --min-copies 1
vmdedup image import "$images/a.raw" a
wait_until 30 all_current

# damage N: a byte in each of N places of server 1's lumps is another one.
damage() {
	local lumps file at byte i size
	lumps=("$store"/data1/lumps/*.lump)
	for ((i = 0; i < $1; i++)); do
		file=${lumps[RANDOM % ${#lumps[@]}]}
		size=$(stat -c %s "$file")
		at=$((128 + (RANDOM * 32768 + RANDOM) % (size - 128)))
		byte=$(od -An -tu1 -j "$at" -N 1 "$file")
		printf '%b' "\\x$(printf %02x $(((byte + 1 + RANDOM % 255) % 256)))" |
			dd of="$file" bs=1 seek="$at" conv=notrunc status=none
	done
}

of_host1() { # FIELD
	json ".servers[] | select(.host == \"host1\") | .$1" vmdedup cluster servers
}

# Two rounds of the scrub have found nothing more.
all_healed() {
	local damaged healed bytes
	damaged=$(of_host1 damaged) healed=$(of_host1 healed) bytes=$(of_host1 scrubbed_bytes)
	[ "$healed" -gt 100 ] && [ "$damaged" = "$healed" ] || return 1
	wait_until 20 scrubbed $((bytes + 80000000))
	[ "$(of_host1 healed)" = "$healed" ] && [ "$(of_host1 damaged)" = "$damaged" ]
}

scrubbed() { # BYTES
	[ "$(of_host1 scrubbed_bytes)" -gt "$1" ]
}

damage_is_healed() {
	damage 400
	wait_until 60 all_healed
	echo "# $(of_host1 damaged) records found damaged, $(of_host1 healed) healed"
	[ "$(grep -c 'was damaged here: replaced' "$store/data1.log")" = "$(of_host1 healed)" ]
}

it_has_all_again() {
	kill_hard "${data_pids[2]}"
	vmdedup image verify a --against "$images/a.raw"
}

for name in damage_is_healed it_has_all_again; do
	echo "# $name"
	$name
	case_n=$((case_n + 1))
	echo "ok $case_n ${name//_/ }"
done
finish
