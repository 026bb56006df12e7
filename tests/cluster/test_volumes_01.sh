#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# Volumes of two hosts: clones and snapshots of what runs, lost leases, shared slots, full and silent servers,
# collections in the midst of pushes.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

requires "$TESTS_BIN/volumes"

for name in clone snapshot recover shared trouble rate collect readers resize; do
	run_case "volumes: $name" "$TESTS_BIN/volumes" $name
done
finish
