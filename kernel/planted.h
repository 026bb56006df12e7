/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bugs that tests/crash plants, one at a time, to show that it would find them, and delays that
 * make windows wide. `tools/build-module --bug NAME` builds with one; no other build has any.
 */
#ifndef DEDUP_PLANTED_H
#define DEDUP_PLANTED_H

enum dedup_planted {
	PLANTED_NONE,
	PLANTED_SLOT_REUSE,		/* a slot is reused before its FREE record is durable */
	PLANTED_CHECKPOINT_OVERTAKES,	/* a checkpoint covers appends that its tables lack */
	PLANTED_VALID_AT_MAP,		/* valid bits are set when a write is mapped */
	PLANTED_COMMIT_BEFORE_ROOT,	/* COMMIT changes slots' records before the root's */
	PLANTED_FLUSH_NO_WAIT,		/* a flush does not wait for the records */
	PLANTED_NO_PREFLUSH,		/* an append may be durable before the data it names */
	PLANTED_CUT_NO_DRAIN,		/* CUT does not wait for the writes in flight; and delays */
	PLANTED_DELAYS,			/* no bug: writes are slow wherever a CUT may come between */
};

#ifndef DEDUP_PLANTED
#define DEDUP_PLANTED	PLANTED_NONE
#endif

static inline bool planted(enum dedup_planted what)
{
	return what == DEDUP_PLANTED;
}

#endif
