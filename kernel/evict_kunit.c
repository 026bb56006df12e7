// SPDX-License-Identifier: GPL-2.0-only
/* Eviction: whom it takes, how many, and what has to come before a slot is used again. */
#include <linux/delay.h>
#include <linux/slab.h>
#include "fake_kunit.h"

static struct cache *world(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);

	fake_channel(test, c);
	c->low = FAKE_RESERVE + 16;
	c->high = c->low + 16;
	return c;
}

/* CLEAN slots until only @left are in the pool; those of every second one were read lately. */
static u32 fill(struct cache *c, u32 left)
{
	struct dedup_change change;
	u32 n = 0, slot;

	while (c->nr_pool > left) {
		slot = fake_alloc_clean(c);
		c->slots[slot].ref = n++ & 1;
	}
	fake_take_all(c, &change);
	cache_store_ops.committed(c, 1, 0);
	return n;
}

static const struct {
	const char *what;
	u32 pool;		/* slots in the pool */
	int error;
	bool closing;
	u32 want;		/* that are evicted */
} cases[] = {
	{ "enough in the pool", FAKE_RESERVE + 16, 0, false, 0 },
	{ "one below the mark", FAKE_RESERVE + 15, 0, false, 17 },
	{ "empty", 0, 0, false, FAKE_RESERVE + 32 },
	{ "the store has failed", 0, -EIO, false, 0 },
	{ "the cache is being closed", 0, 0, true, 0 },
};

static void evict_marks_test(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct cache *c = world(test);
		u32 clean = fill(c, cases[i].pool);

		c->error = cases[i].error;
		c->closing = cases[i].closing;
		space_work(&c->space_work);
		KUNIT_EXPECT_EQ_MSG(test, c->nr_state[SLOT_FREEING], cases[i].want, "%s",
				    cases[i].what);
		KUNIT_EXPECT_EQ_MSG(test, c->nr_state[SLOT_CLEAN], clean - cases[i].want, "%s",
				    cases[i].what);
		KUNIT_EXPECT_EQ_MSG(test, c->stats.evictions, (u64)cases[i].want, "%s",
				    cases[i].what);
		/* What is on its way counts: nothing more is taken. */
		space_work(&c->space_work);
		KUNIT_EXPECT_EQ_MSG(test, c->nr_state[SLOT_FREEING], cases[i].want, "%s",
				    cases[i].what);
	}
}

/* What was read since the hand passed last stays for another round. */
static void evict_second_chance_test(struct kunit *test)
{
	struct cache *c = world(test);
	u32 i, kept = 0, n = fill(c, 0);
	u8 *was_read = kunit_kzalloc(test, FAKE_SLOTS, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, was_read);
	for (i = 0; i < FAKE_SLOTS; i++)
		was_read[i] = c->slots[i].ref;
	space_work(&c->space_work);
	for (i = 0; i < FAKE_SLOTS; i++) {
		if (c->slots[i].state == SLOT_CLEAN)
			kept += was_read[i];
		else
			KUNIT_EXPECT_EQ(test, was_read[i], 0);
	}
	KUNIT_EXPECT_EQ(test, kept, n / 2);
}

/* If all were read, the second round takes some. */
static void evict_all_read_test(struct kunit *test)
{
	struct cache *c = world(test);
	u32 i;

	fill(c, 0);
	for (i = 0; i < FAKE_SLOTS; i++)
		c->slots[i].ref = 1;
	space_work(&c->space_work);
	KUNIT_EXPECT_EQ(test, c->nr_state[SLOT_FREEING], c->high);
}

/* Overlays and slots that are being filled are not for eviction. */
static void evict_others_test(struct kunit *test)
{
	struct cache *c = world(test);
	struct volume *vol = fake_volume(test, c, 64);
	u32 i, filling;

	for (i = 0; i < 40; i++)
		KUNIT_ASSERT_NOT_NULL(test, fake_open(vol, i, 0));
	filling = fake_alloc(c, SLOT_FILLING, DEDUP_NO_SLOT);
	fill(c, 0);
	for (i = 0; i < 20; i++) {
		space_work(&c->space_work);
		spin_lock(&c->lock);
		/* As if all that was freed had been taken at once. */
		c->nr_state[SLOT_FREEING] = 0;
		spin_unlock(&c->lock);
	}
	KUNIT_EXPECT_EQ(test, c->nr_state[SLOT_CLEAN], 0U);
	KUNIT_EXPECT_EQ(test, c->nr_state[SLOT_DIRTY], 40U);
	KUNIT_EXPECT_EQ(test, (int)c->slots[filling].state, SLOT_FILLING);
}

struct worker {
	struct work_struct work;
	struct cache *c;
	bool done;
};

static void reclaim_work(struct work_struct *work)
{
	struct worker *w = container_of(work, struct worker, work);

	slots_reclaim(w->c);
	WRITE_ONCE(w->done, true);
}

/* Not before its FREE record is durable, and not under a reader that found it before. */
static void evict_reader_test(struct kunit *test)
{
	struct worker w = { .c = world(test) };
	struct dedup_change change;
	struct cache *c = w.c;
	unsigned int epoch;
	u32 n;

	fill(c, c->low - 1);
	epoch = inflight_enter(&c->inflight);
	space_work(&c->space_work);
	KUNIT_EXPECT_EQ(test, c->nr_pool, c->low - 1);
	n = fake_take_all(c, &change);
	KUNIT_EXPECT_EQ(test, n, 17U);
	if (c->freed.count) {
		/* The worker would wait for us. */
		KUNIT_FAIL(test, "slots are to be used again before their records are durable");
		inflight_leave(&c->inflight, epoch);
		return;
	}
	space_work(&c->space_work);
	KUNIT_EXPECT_EQ(test, c->nr_pool, c->low - 1);
	cache_store_ops.committed(c, 2, 0);
	INIT_WORK_ONSTACK(&w.work, reclaim_work);
	schedule_work(&w.work);
	while (work_pending(&w.work))
		msleep(20);
	msleep(20);
	KUNIT_EXPECT_FALSE(test, READ_ONCE(w.done));
	KUNIT_EXPECT_EQ(test, READ_ONCE(c->nr_pool), c->low - 1);
	inflight_leave(&c->inflight, epoch);
	flush_work(&w.work);
	destroy_work_on_stack(&w.work);
	KUNIT_EXPECT_EQ(test, c->nr_pool, c->high);
}

static void evict_nomem_test(struct kunit *test)
{
	struct cache *c = world(test);
	struct volume *vol = fake_volume(test, c, 4);
	u32 i;

	volume_make_leaf(vol, 0, GFP_KERNEL);
	/* No descriptors, and no memory for any: a write would wait, and finds one later. */
	for (i = 0; i < DEDUP_OVERLAY_POOL; i++) {
		struct overlay *ov = c->overlay_pool;

		c->overlay_pool = ov->next;
		c->nr_overlay_pool--;
		overlay_free(c, ov);
	}
	if (!fake_fail_alloc(1))
		kunit_skip(test, "allocations that may sleep do not fail here");
	space_work(&c->space_work);
	fake_fail_none();
	KUNIT_EXPECT_EQ(test, c->nr_overlay_pool, 0U);
	KUNIT_EXPECT_NULL(test, fake_open(vol, 0, 0));
	space_work(&c->space_work);
	KUNIT_EXPECT_EQ(test, c->nr_overlay_pool, DEDUP_OVERLAY_POOL);
	KUNIT_EXPECT_NOT_NULL(test, fake_open(vol, 0, 0));
}

static struct kunit_case evict_cases[] = {
	KUNIT_CASE(evict_marks_test),
	KUNIT_CASE(evict_second_chance_test),
	KUNIT_CASE(evict_all_read_test),
	KUNIT_CASE(evict_others_test),
	KUNIT_CASE(evict_reader_test),
	KUNIT_CASE(evict_nomem_test),
	{}
};

static struct kunit_suite evict_suite = {
	.name = "dm_dedup_evict",
	.test_cases = evict_cases,
};

kunit_test_suite(evict_suite);
