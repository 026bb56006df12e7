// SPDX-License-Identifier: GPL-2.0-only
/* What is counted, where the bound is, and what is given up there. */
#include <linux/delay.h>
#include <linux/slab.h>
#include "fake_kunit.h"

#define LEAF_BLOCKS	512ULL
#define NR_LEAVES	64U
#define LEAF_BYTES	(LEAF_BLOCKS * sizeof(u64))
#define FOR_TOPS	(MEMORY_FOR_READS + SZ_128K)	/* is left by them, with a full pool */

static u64 taken(struct cache *c)
{
	return atomic64_read(&c->memory);
}

/* From now on there is room for @bytes more. */
static void bound(struct cache *c, u64 bytes)
{
	c->max_memory = taken(c) + bytes;
}

static const struct {
	u64 room, want, keep;
	bool ok;
} takes[] = {
	{ 0, 0, 0, true }, { 0, 1, 0, false }, { 1, 1, 0, true }, { 4096, 4096, 0, true },
	{ 4096, 4097, 0, false }, { 1 << 20, 1ULL << 40, 0, false }, { 5, 4, 1, true },
	{ 5, 5, 1, false }, { 0, 0, 1, false },
};

static void memory_take_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	u64 before = taken(c);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(takes); i++) {
		bound(c, takes[i].room);
		KUNIT_EXPECT_EQ(test, memory_left(c), takes[i].room);
		KUNIT_EXPECT_EQ(test, memory_take(c, takes[i].want, takes[i].keep), takes[i].ok);
		if (takes[i].ok)
			memory_give(c, takes[i].want);
		KUNIT_EXPECT_EQ(test, taken(c), before);
	}
	/* A later table may have a lower bound than what is taken. */
	c->max_memory = before - 1;
	KUNIT_EXPECT_EQ(test, memory_left(c), 0ULL);
	KUNIT_EXPECT_FALSE(test, memory_take(c, 0, 0));
	KUNIT_EXPECT_EQ(test, taken(c), before);
}

/* A table is refused when its cache could not even keep its descriptors. */
static void memory_begin_test(struct kunit *test)
{
	struct dedup_store_info info = { .nr_slots = FAKE_SLOTS, .memory = 100000 };
	struct cache *c = fake_cache(test, 12);
	u64 pool = DEDUP_OVERLAY_POOL * (u64)overlay_bytes(c), before = taken(c);

	bound(c, 1000);
	KUNIT_EXPECT_EQ(test, memory_begin(c, &info), -E2BIG);
	KUNIT_EXPECT_EQ(test, taken(c), before);
	KUNIT_EXPECT_GT(test, c->memory_fixed, slots_memory(FAKE_SLOTS) + info.memory);
	bound(c, c->memory_fixed + pool + FOR_TOPS - 1);
	KUNIT_EXPECT_EQ(test, memory_begin(c, &info), -E2BIG);
	bound(c, c->memory_fixed + pool + FOR_TOPS);
	KUNIT_EXPECT_EQ(test, memory_begin(c, &info), 0);
	KUNIT_EXPECT_EQ(test, taken(c), before + c->memory_fixed);
}

/* Refused, or without memory: nothing is counted, and the next try may do. */
static void memory_maps_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	u64 before = taken(c), **top, *leaf;

	bound(c, 10 * sizeof(u64 *));
	KUNIT_EXPECT_EQ(test, map_top_alloc(c, 11, &top), -E2BIG);
	KUNIT_EXPECT_NULL(test, top);
	KUNIT_EXPECT_EQ(test, map_top_alloc(c, 10, &top), 0);
	map_top_free(c, 10, top);
	/* That was while the disk is read. From then on tops leave something; nobody looks into the store. */
	c->store = (struct dedup_store *)c;
	KUNIT_EXPECT_EQ(test, map_top_alloc(c, 1, &top), -E2BIG);
	bound(c, 10 * sizeof(u64 *) + FOR_TOPS);
	KUNIT_EXPECT_EQ(test, map_top_alloc(c, 11, &top), -E2BIG);
	KUNIT_EXPECT_EQ(test, map_top_alloc(c, 10, &top), 0);
	KUNIT_EXPECT_EQ(test, memory_left(c), (u64)FOR_TOPS);
	map_top_free(c, 10, top);
	c->store = NULL;

	bound(c, LEAF_BYTES - 1);
	KUNIT_EXPECT_NULL(test, leaf_alloc(c, 9, GFP_KERNEL));
	KUNIT_EXPECT_TRUE(test, c->maps_full);
	c->maps_full = false;
	bound(c, overlay_bytes(c) - 1 + MEMORY_FOR_READS);
	KUNIT_EXPECT_NULL(test, overlay_new(c, MEMORY_FOR_READS, GFP_KERNEL));
	KUNIT_EXPECT_EQ(test, taken(c), before);

	c->max_memory = S64_MAX;
	if (!fake_fail_alloc(1))
		kunit_skip(test, "allocations that may sleep do not fail here");
	KUNIT_EXPECT_EQ(test, map_top_alloc(c, 10, &top), -ENOMEM);
	fake_fail_alloc(1);
	KUNIT_EXPECT_NULL(test, leaf_alloc(c, 9, GFP_KERNEL));
	fake_fail_alloc(1);
	KUNIT_EXPECT_NULL(test, overlay_new(c, 0, GFP_KERNEL));
	fake_fail_none();
	/* That is not the bound: giving up maps would be no help. */
	KUNIT_EXPECT_FALSE(test, c->maps_full);
	KUNIT_EXPECT_EQ(test, taken(c), before);
	leaf = leaf_alloc(c, 9, GFP_KERNEL);
	KUNIT_EXPECT_NOT_NULL(test, leaf);
	KUNIT_EXPECT_EQ(test, taken(c), before + LEAF_BYTES);
	leaf_free(c, 9, leaf);
	KUNIT_EXPECT_EQ(test, taken(c), before);
}

/* A volume with all its leaves, at the bound; with overlays in @nr_dirty of them. */
static struct volume *full_map(struct kunit *test, struct cache *c, u32 nr_dirty)
{
	struct volume *vol = fake_volume(test, c, NR_LEAVES * LEAF_BLOCKS);
	u32 i;

	for (i = 0; i < NR_LEAVES; i++)
		KUNIT_ASSERT_EQ(test, volume_make_leaf(vol, i * LEAF_BLOCKS, GFP_KERNEL), 0);
	for (i = 0; i < nr_dirty; i++)
		KUNIT_ASSERT_NOT_NULL(test, fake_open(vol, i * LEAF_BLOCKS + 7, 0));
	overlays_refill(c);
	bound(c, 0);
	KUNIT_EXPECT_NULL(test, leaf_alloc(c, vol->leaf_shift, GFP_KERNEL));
	KUNIT_EXPECT_TRUE(test, c->maps_full);
	return vol;
}

static const struct {
	u32 dirty;
	bool reclaimed;
} reclaims[] = {
	{ 0, true }, { 1, true }, { NR_LEAVES - 1, true }, { NR_LEAVES, false },
};

/* What has overlays stays; all else can be asked for again. */
static void memory_reclaim_test(struct kunit *test)
{
	unsigned int i, block;

	for (i = 0; i < ARRAY_SIZE(reclaims); i++) {
		struct cache *c = fake_cache(test, 12);
		struct volume *vol = full_map(test, c, reclaims[i].dirty);
		u64 before = taken(c);

		KUNIT_EXPECT_EQ(test, maps_reclaim(c), reclaims[i].reclaimed);
		KUNIT_EXPECT_EQ(test, c->maps_full, !reclaims[i].reclaimed);
		KUNIT_EXPECT_EQ(test, c->map_reclaims, (u64)reclaims[i].reclaimed);
		KUNIT_EXPECT_EQ(test, before - taken(c),
				(NR_LEAVES - reclaims[i].dirty) * LEAF_BYTES);
		for (block = 0; block < NR_LEAVES * LEAF_BLOCKS; block += LEAF_BLOCKS)
			KUNIT_ASSERT_EQ(test, volume_has_leaf(vol, block),
					block / LEAF_BLOCKS < reclaims[i].dirty);
		for (block = 0; block < reclaims[i].dirty * LEAF_BLOCKS; block += LEAF_BLOCKS)
			KUNIT_ASSERT_EQ(test, (int)entry_kind(volume_entry(vol, block + 7)),
					ENTRY_OVERLAY);
		/* With nobody at the bound there is nothing to do. */
		c->maps_full = false;
		c->max_memory = S64_MAX;
		KUNIT_EXPECT_FALSE(test, maps_reclaim(c));
	}
}

/* The pool's descriptors, so that writers have none. */
static struct overlay *take_pool(struct cache *c)
{
	struct overlay *all = c->overlay_pool;

	c->overlay_pool = NULL;
	c->nr_overlay_pool = 0;
	return all;
}

static void free_all(struct cache *c, struct overlay *all)
{
	struct overlay *ov;

	while ((ov = all)) {
		all = ov->next;
		overlay_free(c, ov);
	}
}

/* Writers without a descriptor get the memory of maps. */
static void memory_starve_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct bio bio = {};
	struct overlay *all;

	full_map(test, c, 0);
	bound(c, MEMORY_FOR_READS);
	c->maps_full = false;
	KUNIT_EXPECT_FALSE(test, maps_reclaim(c));
	all = take_pool(c);
	KUNIT_EXPECT_FALSE(test, maps_reclaim(c));
	bio_list_add(&c->space_bios, &bio);
	KUNIT_EXPECT_TRUE(test, maps_reclaim(c));
	KUNIT_EXPECT_FALSE(test, c->starved);
	KUNIT_EXPECT_GT(test, c->nr_overlay_pool, 0U);
	KUNIT_EXPECT_GE(test, memory_left(c), (u64)MEMORY_FOR_READS);
	free_all(c, all);
}

/*
 * Where only reads' share is left no overlay comes to be, and reads keep their maps: these are given
 * up for writes once, and then again when something has been unpinned.
 */
static void memory_reads_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = full_map(test, c, NR_LEAVES - 4);
	u64 block = (NR_LEAVES - 1) * LEAF_BLOCKS;
	struct bio bio = {};

	bound(c, MEMORY_FOR_READS - 4 * LEAF_BYTES);
	c->maps_full = false;
	KUNIT_EXPECT_GT(test, c->nr_overlay_pool, 0U);
	KUNIT_EXPECT_NULL(test, fake_open(vol, block, 0));
	KUNIT_EXPECT_FALSE(test, overlays_ready(c));

	free_all(c, take_pool(c));
	bound(c, MEMORY_FOR_READS - 4 * LEAF_BYTES);
	bio_list_add(&c->space_bios, &bio);
	KUNIT_EXPECT_TRUE(test, maps_reclaim(c));
	KUNIT_EXPECT_TRUE(test, c->starved);
	KUNIT_EXPECT_EQ(test, memory_left(c), (u64)MEMORY_FOR_READS);
	KUNIT_EXPECT_EQ(test, c->nr_overlay_pool, 0U);

	KUNIT_EXPECT_EQ(test, volume_make_leaf(vol, block, GFP_KERNEL), 0);
	KUNIT_EXPECT_FALSE(test, maps_reclaim(c));
	KUNIT_EXPECT_TRUE(test, volume_has_leaf(vol, block));
	memory_unpinned(c);
	KUNIT_EXPECT_TRUE(test, maps_reclaim(c));
	KUNIT_EXPECT_FALSE(test, volume_has_leaf(vol, block));
}

/* For a table that is loaded maps are given up, as many as it needs, once. */
static void memory_room_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);

	full_map(test, c, 0);
	/* Only now: what full_map() asked the worker for must not make room before the bound is set. */
	flush_work(&c->space_work);
	INIT_WORK(&c->space_work, space_work);
	c->maps_full = false;
	bound(c, FOR_TOPS);
	memory_make_room(c, 3 * LEAF_BYTES / sizeof(u64 *));
	KUNIT_EXPECT_EQ(test, c->map_reclaims, 1ULL);
	KUNIT_EXPECT_GE(test, memory_left(c), FOR_TOPS + 3 * LEAF_BYTES);
	KUNIT_EXPECT_FALSE(test, maps_reclaim(c));
	memory_make_room(c, 3 * LEAF_BYTES / sizeof(u64 *));
	KUNIT_EXPECT_EQ(test, c->map_reclaims, 1ULL);
}

/* Where a block is waited for the leaf stays until that has come. */
static void memory_miss_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = full_map(test, c, 0);
	u64 block = 5 * LEAF_BLOCKS + 3;
	struct miss m = { .vol = vol, .block = block };

	hash_add(c->miss_blocks, &m.by_block, block);
	KUNIT_EXPECT_TRUE(test, maps_reclaim(c));
	KUNIT_EXPECT_TRUE(test, volume_has_leaf(vol, block));
	KUNIT_EXPECT_FALSE(test, volume_has_leaf(vol, block + LEAF_BLOCKS));
	c->maps_full = true;
	bound(c, 0);
	KUNIT_EXPECT_FALSE(test, maps_reclaim(c));
	hash_del(&m.by_block);
	KUNIT_EXPECT_TRUE(test, maps_reclaim(c));
	KUNIT_EXPECT_FALSE(test, volume_has_leaf(vol, block));
}

struct reclaimer {
	struct work_struct work;
	struct cache *c;
	bool done;
};

static void reclaimer_work(struct work_struct *work)
{
	struct reclaimer *r = container_of(work, struct reclaimer, work);

	maps_reclaim(r->c);
	WRITE_ONCE(r->done, true);
}

/* A leaf is freed when those that may be looking at it have gone. */
static void memory_reader_test(struct kunit *test)
{
	struct reclaimer r = { .c = fake_cache(test, 12) };
	unsigned int epoch;
	u64 before;

	full_map(test, r.c, 0);
	before = taken(r.c);
	epoch = inflight_enter(&r.c->inflight);
	INIT_WORK_ONSTACK(&r.work, reclaimer_work);
	schedule_work(&r.work);
	while (work_pending(&r.work))
		msleep(20);
	msleep(20);
	KUNIT_EXPECT_FALSE(test, READ_ONCE(r.done));
	KUNIT_EXPECT_EQ(test, taken(r.c), before);
	inflight_leave(&r.c->inflight, epoch);
	flush_work(&r.work);
	destroy_work_on_stack(&r.work);
	KUNIT_EXPECT_LT(test, taken(r.c), before);
}

static struct kunit_case memory_cases[] = {
	KUNIT_CASE(memory_take_test),
	KUNIT_CASE(memory_begin_test),
	KUNIT_CASE(memory_maps_test),
	KUNIT_CASE(memory_reclaim_test),
	KUNIT_CASE(memory_starve_test),
	KUNIT_CASE(memory_reads_test),
	KUNIT_CASE(memory_room_test),
	KUNIT_CASE(memory_miss_test),
	KUNIT_CASE(memory_reader_test),
	{}
};

static struct kunit_suite memory_suite = {
	.name = "dm_dedup_memory",
	.test_cases = memory_cases,
};

kunit_test_suite(memory_suite);
