# SPDX-License-Identifier: GPL-2.0-or-later
#
# From the runs of tests/bench/kernel-guest, one object each, to the figures: for each load and
# target the median over the rounds, and what dedup did against it in the same round.

def median:
	sort | if length % 2 == 1 then .[length / 2 | floor]
	       else (.[length / 2 - 1] + .[length / 2]) / 2 end;

# What is asked for: at least this many times what the target does.
def wanted($load; $target):
	if $target == "linear" then
		{"first": 0.70, "synced": 0.40, "seqread": 0.95, "seqwrite": 0.95}[$load] // 0.90
	elif $target == "thin-snapshot" then 20
	elif ($target == "thin" or $target == "vdo") and ($load | startswith("rand")) then 8
	else null end;

# The slices of a round are one run.
def rounds:
	group_by(.round) |
	map({round: .[0].round, ios: (map(.ios) | add), bytes: (map(.bytes) | add),
	     ms: (map(.ms) | add)} | .iops = .ios * 1000 / .ms | .bytes = .bytes * 1000 / .ms);

map(select(.round > 0)) |
if map(.error) | any(. != 0) then error("a run met I/O errors") else . end |
{
	kernel: $kernel, rounds: $rounds,
	loads: [group_by(.load)[] | .[0].load as $load |
		(map(select(.target == "dedup")) | rounds) as $dedup |
		{load: $load, targets: [group_by(.target)[] | .[0].target as $target | rounds |
			. as $rounds | {
				target: $target,
				iops: (map(.iops) | median),
				bytes: (map(.bytes) | median)
			} +
			if $target == "dedup" then {} else {
				dedup_against: ([range(length) | $dedup[.].bytes / $rounds[.].bytes] |
						{median: median, min: min, max: max}),
				wanted: wanted($load; $target)
			} end]}]
}
