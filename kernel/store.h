/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The durable side of a cache: superblocks, journal, and tables (checkpoints of the journal).
 *
 * The store knows records and their order on disk; it knows no bio of a guest, no slot state
 * and no volume map. Its user keeps the state in memory, tells the store that something has
 * changed (dedup_store_kick), and is asked for the changed records when a commit is built.
 *
 * A commit is one self-validating journal append, written with PREFLUSH and FUA, one in
 * flight. Whatever the user's ->next_change() hands out goes into the commit being built;
 * PREFLUSH makes the data writes that completed before it durable first (invariant 4).
 *
 * What is atomic: one change (one record), and all changes of one commit while no more than
 * dedup_store_info.max_changes are pending. Beyond that the commit goes on in further
 * appends, in the order in which the changes were handed out: a crash then leaves all of the
 * earlier ones and none of the later, and ->committed() speaks only after the last.
 */
#ifndef DEDUP_STORE_H
#define DEDUP_STORE_H

#include <linux/types.h>
#include "record.h"

struct block_device;
struct dedup_disk;
struct dedup_store;

/**
 * struct dedup_store_ops - what the store asks of its user
 * @prepare: at open, once, before anything is loaded and before the new incarnation is written:
 *           allocate what @info asks for, or refuse. @info stays valid while the store is open;
 *           incarnation and incarnation_nr are those of the new incarnation already. May sleep.
 * @load_slot: at open, for every slot whose record is not FREE, after recovery. May sleep.
 * @load_volume: at open, for every volume record in use, before any slot. May sleep.
 * @next_change: fill in the next changed record; false when there is none (for this commit).
 *               Called from the commit worker only; must not sleep for I/O. A record handed
 *               out is no longer pending; a change made to it later is a new change. Not
 *               called any more once the store has failed.
 * @committed: every change handed out so far is durable, and with it commit @seq (@error 0);
 *             or the store has failed (negative errno: it is read-only from now on). Called
 *             once after each commit, also after one that nobody asked for (kick), when @seq
 *             is the same as before. Worker context, before the next ->next_change().
 */
struct dedup_store_info;

struct dedup_store_ops {
	int (*prepare)(void *ctx, const struct dedup_store_info *info);
	int (*load_volume)(void *ctx, u64 index, const struct dedup_volume_rec *rec);
	int (*load_slot)(void *ctx, u64 slot, const struct dedup_slot_rec *rec);
	bool (*next_change)(void *ctx, struct dedup_change *change);
	void (*committed)(void *ctx, u64 seq, int error);
};

/* Geometry and identity, from the superblock; constant while the store is open. */
struct dedup_store_info {
	u8 cache_uuid[16];
	u8 cluster_uuid[16];
	u8 incarnation[16];
	u64 nr_slots;
	u64 data_start;		/* bytes, on the disk */
	u64 memory;		/* bytes that the open store takes */
	u32 block_shift;
	u32 max_changes;	/* this many pending changes are one append at the most */
	/*
	 * Goes up durably with each open, at most 2^24 - 1: the high 24 bits of every cookie and
	 * slot sequence of this incarnation, so that none is ever used again.
	 */
	u32 incarnation_nr;
};

/**
 * dedup_store_open - read superblocks, recover, hand every record to @ops
 *
 * Starts a new incarnation (durable before it returns). Returns an ERR_PTR on failure; then
 * @error gets one sentence, a constant, that says what is wrong and what to do; numbers and
 * places are logged. Errors: -EINVAL (not formatted, too small), -EPROTONOSUPPORT (newer
 * version), -EUCLEAN (rotten table page or journal), -EOVERFLOW (no incarnation left), -EIO,
 * -ENOMEM, and what @ops return.
 *
 * dedup_store_close() may find the store failed; it then only frees it. No call into the
 * store may be under way or follow.
 */
struct dedup_store *dedup_store_open(struct block_device *bdev, u64 dev_sectors,
				     const struct dedup_store_ops *ops, void *ctx, char **error);
void dedup_store_close(struct dedup_store *store);	/* commits what is pending, checkpoints */

/* For KUnit suites: the same on any disk, of which a copy is kept. */
struct dedup_store *dedup_store_open_disk(const struct dedup_disk *disk,
					  const struct dedup_store_ops *ops, void *ctx,
					  char **error);

const struct dedup_store_info *dedup_store_info(struct dedup_store *store);

/**
 * dedup_store_commit - ask for a commit that covers every change made so far
 *
 * Returns its sequence at once; ->committed() with that sequence or a higher one says that it
 * is durable. A commit without changes still flushes the disk and calls ->committed(). Any
 * context, never sleeps. Many callers, one commit.
 */
u64 dedup_store_commit(struct dedup_store *store);

/* The same, and waits. 0 or the store's error. May sleep; not from the commit worker. */
int dedup_store_sync(struct dedup_store *store);

/* There are changes, but nobody waits: commit soon (100 ms) or with the next commit. */
void dedup_store_kick(struct dedup_store *store);

/* Highest durable commit. Any context. Pairs with the release before ->committed(). */
u64 dedup_store_durable(struct dedup_store *store);

/*
 * A flush of the disk that was not the store's has failed: what the disk had not written yet may be
 * gone, and what names it must not be made durable. The store fails with its next commit, which is
 * asked for now. Any context.
 */
void dedup_store_flush_failed(struct dedup_store *store);

/* Can the disk still be read? 0 or a negative errno. Writes nothing. May sleep. */
int dedup_store_probe(struct dedup_store *store);

/* 0, or the negative errno that made the store read-only, or is about to. Any context. */
int dedup_store_error(struct dedup_store *store);

#endif
