/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ledger: superblocks, journal and tables as one thing that can be opened, added to and
 * checkpointed. Synchronous and without threads; the store (kernel) drives it from its
 * workers, the offline tools and the tests call it directly.
 *
 * One caller at a time, with one exception: between dedup_ledger_freeze() and
 * dedup_ledger_finish(), dedup_ledger_write_tables() may run beside dedup_ledger_commit().
 *
 * After any error of a function that writes, the ledger refuses to write (-EROFS): what the
 * disk holds is then found out by the next open.
 */
#ifndef DEDUP_LEDGER_H
#define DEDUP_LEDGER_H

#include "journal.h"
#include "table.h"

/* Slots' records that a checkpoint may wait with: the bound on memory for deltas. */
#define DEDUP_DELTA_SLOTS	32768U

struct dedup_ledger {
	struct dedup_super sb;
	struct dedup_disk disk;
	struct dedup_journal journal;
	struct dedup_table table;
	struct dedup_delta recovered;	/* from open to start */
	struct dedup_delta delta[2];
	unsigned int active;		/* filled by commits; the other is frozen or empty */
	bool frozen;
	u64 frozen_seq;			/* the last append in the frozen delta */
	bool writable;
	int super_error[2];		/* what was wrong with superblocks A and B */
};

/**
 * dedup_supers_read - find the superblock that counts
 *
 * @errors: 0 or what is wrong with A and B, see dedup_super_decode(); -ESTALE: valid, but not
 * the newest. Succeeds while one is valid. -EINVAL: not formatted, or the disk has shrunk;
 * -EUCLEAN: destroyed; -EPROTONOSUPPORT; -EIO.
 */
int dedup_supers_read(const struct dedup_disk *disk, struct dedup_super *sb, int errors[2],
		      struct dedup_why *why);

/* Writes B, then A, each durable. Raises the generation. */
int dedup_supers_write(const struct dedup_disk *disk, struct dedup_super *sb);

/*
 * Writes an empty cache: the first append, then superblocks. @sb comes from dedup_layout() with
 * the UUIDs set. What was in the first and last MiB before is the caller's to erase, first.
 */
int dedup_ledger_format(const struct dedup_disk *disk, struct dedup_super *sb);

/* Reads superblocks, journal and directory. Writes nothing. @why explains an error. */
int dedup_ledger_open(struct dedup_ledger *l, const struct dedup_disk *disk,
		      struct dedup_why *why);
void dedup_ledger_close(struct dedup_ledger *l);	/* only frees */

/* Every record in use. Before dedup_ledger_start() only. */
int dedup_ledger_load(struct dedup_ledger *l, const struct dedup_visitor *visitor,
		      struct dedup_why *why);

/* The number that the next incarnation will have. */
u32 dedup_ledger_next_incarnation(const struct dedup_ledger *l);

/*
 * Begins a new incarnation, named @incarnation, with a checkpoint; durable on return. From
 * then on commits may be made. -EOVERFLOW: there is no incarnation left.
 */
int dedup_ledger_start(struct dedup_ledger *l, const u8 incarnation[DEDUP_UUID_BYTES],
		       struct dedup_why *why);

/* May an append of the greatest length be made, or must a checkpoint be finished first? */
bool dedup_ledger_has_room(const struct dedup_ledger *l);
/* Is it time to begin a checkpoint? */
bool dedup_ledger_wants_checkpoint(const struct dedup_ledger *l);

/**
 * dedup_ledger_commit - one append of what @next hands out
 * @nr: changes that became durable; 0: there were none and nothing was written or flushed
 * @more: @next may have more: the append was full
 *
 * Needs dedup_ledger_has_room().
 */
int dedup_ledger_commit(struct dedup_ledger *l, bool (*next)(void *ctx, struct dedup_change *change),
			void *ctx, u32 *nr, bool *more);

/* A checkpoint, in three steps. Between the first and the last, commits may go on. */
void dedup_ledger_freeze(struct dedup_ledger *l);
int dedup_ledger_write_tables(struct dedup_ledger *l, struct dedup_why *why);
int dedup_ledger_finish(struct dedup_ledger *l);

/* All three, if anything has changed, and the superblocks: the end of an incarnation. */
int dedup_ledger_stop(struct dedup_ledger *l, struct dedup_why *why);

/* Bytes of memory that an open ledger takes. */
u64 dedup_ledger_memory(const struct dedup_super *sb);

#endif
