#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 240
# A volume goes from host to host while its agents and the meta server are killed at each change of
# state; with --stride N also at every Nth step. To whom it goes, and before whom.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

requires "$TESTS_BIN/handover" "$TESTS_BIN/handover_target"

handover() {
	"$TESTS_BIN/handover" "${TEST_STRIDE:-0}"
}

run_case "a volume is handed over while agents and the meta server are killed" handover
run_case "a volume goes to the cache that is there, and before what only warms" "$TESTS_BIN/handover_target"
finish
