#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 240
# A push whose agent, meta server or data server is killed at its steps: every seventh, or all of
# them with PUSH_STRIDE=1; and the commit that the cache never heard of.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

requires "$TESTS_BIN/push_steps"

steps() {
	"$TESTS_BIN/push_steps" "${PUSH_STRIDE:-7}"
}

run_case "a push is killed at its steps, and a commit is delivered again" steps
finish
