# SPDX-License-Identifier: GPL-2.0-or-later
#
# awk -v want=N -f tests/ktap-count.awk: counts the cases of a KTAP stream. A result that has results
# of its own above it, indented by four more, is a sum of them and counts only if it failed and
# none of them did. Of `want` results at the outermost level, those that are missing failed.

/^ *(not )?ok [0-9]+/ {
	match($0, /^ */)
	d = RLENGTH / 4
	bad = /^ *not ok/ && !/# SKIP/
	if (children[d + 1]) {
		extra = bad && !failures[d + 1]
		failed += extra
	} else if (bad) {
		failed++
	} else if (/# SKIP/) {
		skipped++
	} else {
		passed++
	}
	children[d]++
	failures[d] += bad
	children[d + 1] = failures[d + 1] = 0
}

END {
	if (children[0] < want) {
		missing = want - children[0]
		# The one that was running may have a case that tells.
		if (failures[1])
			missing--
		failed += missing
	}
	printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
	exit failed > 0
}
