#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 240
# A volume goes from host to host while its agents and the meta server are killed at each change of
# state; with --stride N also at every Nth step.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

requires "$TESTS_BIN/handover"

handover() {
	"$TESTS_BIN/handover" "${TEST_STRIDE:-0}"
}

run_case "a volume is handed over while agents and the meta server are killed" handover
finish
