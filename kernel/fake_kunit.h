/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A cache without a disk, for the suites of what stands above the store: the tests play the
 * store's side, they take changes and say that they are durable.
 */
#ifndef DEDUP_FAKE_KUNIT_H
#define DEDUP_FAKE_KUNIT_H

#include <kunit/test.h>
#include "dedup.h"
#include "ledger.h"

#define FAKE_SLOTS	256U
#define FAKE_RESERVE	16U

/* Freed when the test ends. Nothing of the workers runs but what the test calls. */
struct cache *fake_cache(struct kunit *test, unsigned int block_shift);

/* A disk in memory that holds an empty cache of at least @slots. */
struct fake_disk {
	u8 *data;
	struct dedup_disk disk;
	struct dedup_super sb;
	bool broken;		/* cannot be written */
	unsigned int flushes;
};

struct fake_disk *fake_disk(struct kunit *test, unsigned int block_shift, u64 slots);
/* As it is now: what a crash leaves. */
struct fake_disk *fake_disk_copy(struct kunit *test, const struct fake_disk *from);

/* A cache with a store: commits and recovery are the real ones. */
struct cache *fake_cache_on(struct kunit *test, struct fake_disk *d);

/* For what asks or tells the agent. Nobody reads it. */
void fake_channel(struct kunit *test, struct cache *c);

/* A volume with a record, id 77, first cut open. */
struct volume *fake_volume(struct kunit *test, struct cache *c, u64 blocks);

u32 fake_alloc(struct cache *c, enum slot_state state, u32 hint);
u32 fake_alloc_clean(struct cache *c);
void fake_free(struct cache *c, u32 n);
/* Hands out all changes; returns how many, the last one in @change. */
unsigned int fake_take_all(struct cache *c, struct dedup_change *change);
struct overlay *fake_open(struct volume *vol, u64 block, u8 flags);

/*
 * Makes the @nth allocation of this thread from now on fail. False where that cannot be done: the
 * kernel has no fault injection, or failslab spares those that may sleep.
 */
bool fake_fail_alloc(unsigned int nth);
/* No more of that. True if one has failed since. */
bool fake_fail_none(void);
/*
 * For loops that let each allocation fail in turn: on to the next one, unless the one that failed was not
 * @ours. Of those of the leak checker, the allocator and others, who can do without, some are made once: then
 * ours has its number by now. Three times.
 */
void fake_fail_next(unsigned int *nth, unsigned int *again, bool ours);

#endif
