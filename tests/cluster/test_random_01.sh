#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 240
# Random operations while daemons, commands and hosts die; RANDOM_OPS, RANDOM_SECONDS and RANDOM_SEED
# choose a longer form.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

requires "$TESTS_BIN/random_ops"

random_operations() {
	"$TESTS_BIN/random_ops" --ops "${RANDOM_OPS:-600}" --seconds "${RANDOM_SECONDS:-40}" \
		${RANDOM_SEED:+--seed "$RANDOM_SEED"}
}

run_case "random operations leave what the model says, and nothing in the end" random_operations
finish
