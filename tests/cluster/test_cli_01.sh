#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Every verb explains itself; wrong usage is told apart; output goes where it should.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

verbs() {
	vmdedup --help | sed -n 's/^    \([a-z]*\) .*/\1/p'
}

help_everywhere() {
	local noun verb n=0
	for noun in cluster image cache volume; do
		vmdedup $noun --help >/dev/null
		for verb in $(vmdedup $noun --help | sed -n 's/^  \([a-z]*\) .*/\1/p'); do
			vmdedup --conf /nowhere $noun "$verb" --help >"$TEST_TMP/help"
			grep -q "^usage: vmdedup $noun $verb" "$TEST_TMP/help"
			grep -q "^examples:" "$TEST_TMP/help" || fail "$noun $verb: no examples"
			grep -qE "^  vmdedup $noun $verb" "$TEST_TMP/help"
			n=$((n + 1))
		done
	done
	[ $n -ge 24 ] || fail "only $n verbs"
	vmdedup status --help | grep -q '^examples:'
	vmdedup --version | grep -qE '^vmdedup [0-9.]+$'
}

usage() {
	expect_status 2 "usage:" vmdedup
	expect_status 2 "is none of" vmdedup frobnicate
	expect_status 2 "there is no .image frobnicate." vmdedup image frobnicate
	expect_status 2 "unrecognized option" vmdedup image ls --frobnicate
	expect_status 2 "an argument is missing" vmdedup image import one
	expect_status 2 "too many arguments" vmdedup image show one two
	expect_status 2 "requires an argument" vmdedup image show one --version
	expect_status 2 "is not a number" vmdedup image show one --version x
}

no_agent() {
	new_cluster >/dev/null
	expect_status 5 "no agent runs" vmdedup volume ls
	expect_status 5 "no agent runs" vmdedup volume push x
	expect_status 5 "no agent runs" vmdedup volume detach x
	expect_status 5 "no agent runs" vmdedup status
	{ vmdedup status --json 2>/dev/null || [ $? = 5 ]; } >"$TEST_TMP/status"
	[ "$(jq -c '[.agent, .cluster.images]' "$TEST_TMP/status")" = "[null,0]" ]
	# Without the module that is what is said first.
	if ! dmsetup targets 2>/dev/null | grep -q '^dedup '; then
		expect_status 5 "not loaded|device mapper" vmdedup volume attach x
	fi
}

full_pipe() {
	expect_status 1 "cannot write to standard output" bash -c 'vmdedup --help >/dev/full'
}

# On a terminal a bar, elsewhere not a byte of it.
progress() {
	command -v script >/dev/null || exit 4
	new_cluster >/dev/null
	make_image "$images/a.raw" 96
	script -qec "vmdedup image import $images/a.raw a" /dev/null >"$TEST_TMP/tty" </dev/null
	grep -q 'import .*% .*/s  ETA' "$TEST_TMP/tty"
	vmdedup image import "$images/a.raw" b >"$TEST_TMP/out" 2>"$TEST_TMP/err"
	[ ! -s "$TEST_TMP/err" ] || fail "$(cat "$TEST_TMP/err")"
}

completion() {
	bash -c '
		. "$1/../../userspace/completion/vmdedup.bash"
		COMP_WORDS=(vmdedup image ex) COMP_CWORD=2
		_vmdedup
		[ "${COMPREPLY[*]}" = export ]' x "${0%/*}"
}

run_case "help everywhere" help_everywhere
run_case "wrong usage" usage
run_case "no agent, no module" no_agent
run_case "standard output that is full" full_pipe
run_case "the progress bar" progress
run_case "completion" completion
finish
