/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tables: a checkpoint of the journal, in pages that each have two places, found through
 * a directory, found through the root in a CHECKPOINT append. And deltas: records that are
 * durable in the journal and not yet in the tables.
 *
 * Not thread-safe, but a delta that is being filled and a checkpoint that writes another
 * delta share nothing.
 */
#ifndef DEDUP_TABLE_H
#define DEDUP_TABLE_H

#include "codec.h"

/* A changed record: its place in the tables (page << DEDUP_PAGE_SHIFT | offset), its bytes. */
struct dedup_delta_rec {
	u64 key;
	u8 *rec;
};

/* The newest version of each changed record. Memory is taken once; its size is the bound. */
struct dedup_delta {
	const struct dedup_super *sb;
	struct dedup_delta_rec *recs;
	u32 *hash;		/* index in recs + 1, open addressing */
	u32 hash_mask;
	u32 nr;
	u8 *slots;
	u32 nr_slots;
	u32 max_slots;
	u8 *volumes;
	u32 nr_volumes;
	u32 max_volumes;
};

int dedup_delta_init(struct dedup_delta *d, const struct dedup_super *sb, u32 max_slots,
		     u32 max_volumes);
void dedup_delta_exit(struct dedup_delta *d);
void dedup_delta_clear(struct dedup_delta *d);
/* @rec has @bytes bytes, what is missing is zero. -ENOSPC. */
int dedup_delta_put(struct dedup_delta *d, u8 kind, u64 index, const void *rec, u32 bytes);
/* By place in the tables; ends dedup_delta_put() until it is cleared. */
void dedup_delta_sort(struct dedup_delta *d);

struct dedup_table {
	const struct dedup_super *sb;
	const struct dedup_disk *disk;
	struct dedup_disk_entry *dir;	/* of every table page */
	struct dedup_disk_entry *root;	/* of every directory page */
	u8 *dir_changed;		/* by directory page */
	u8 *buf;			/* one batch of pages */
	struct dedup_io *ios;
	/* The record being visited: too large for a stack. */
	struct dedup_volume_rec volume;
	struct dedup_slot_rec slot;
};

int dedup_table_init(struct dedup_table *t, const struct dedup_super *sb,
		     const struct dedup_disk *disk);
void dedup_table_exit(struct dedup_table *t);

/* Reads the directory that t->root names. */
int dedup_table_load_dir(struct dedup_table *t, struct dedup_why *why);

/* Receives records that are in use, volumes first. Stops at an error and returns it. */
struct dedup_visitor {
	int (*volume)(void *ctx, u64 index, const struct dedup_volume_rec *rec);
	int (*slot)(void *ctx, u64 slot, const struct dedup_slot_rec *rec);
	/* A page that is not what the directory names; NULL: that is the end, -EUCLEAN. */
	int (*damaged)(void *ctx, const char *what);
	void *ctx;
};

/* Every record in use, as the tables and over them the sorted @delta have it. */
int dedup_table_walk(struct dedup_table *t, const struct dedup_delta *delta,
		     const struct dedup_visitor *visitor, struct dedup_why *why);

/*
 * Writes the sorted @delta, and the directory, to the places that the last root does not name,
 * and flushes. @seq: of the last append that @delta holds. Then t->root is the new root, which
 * counts once it is durable in the journal.
 */
int dedup_table_write(struct dedup_table *t, const struct dedup_delta *delta, u64 seq,
		      struct dedup_why *why);

#endif
