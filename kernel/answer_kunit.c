// SPDX-License-Identifier: GPL-2.0-only
/* The agent's answers without memory: refused, nothing leaked, and as good the next time. */
#include <linux/slab.h>
#include "fake_kunit.h"

static const struct {
	const char *what;
	u64 volume, cookie, block;
	bool leaf;		/* of the block's part of the map is there */
	int want;		/* of the entry, if all the memory is there */
} publishes[] = {
	/* There is no agent whose memory the block could be copied from. */
	{ "no volume", 0, 0, 0, false, -EFAULT },
	{ "no volume, but a cookie", 0, 1, 0, false, -EINVAL },
	{ "a volume", 77, 0, 3, true, -EFAULT },
	{ "a volume without a leaf there", 77, 0, 3, false, -EFAULT },
	{ "beyond the end", 77, 0, 8, true, -EINVAL },
	{ "a volume that is not here", 78, 0, 3, true, -ESTALE },
	{ "a FETCH that nobody waits for", 77, 1, 3, true, -ESTALE },
};

static int publish(struct cache *c, unsigned int i, struct dm_dedup_publish *e)
{
	*e = (struct dm_dedup_publish){
		.volume = publishes[i].volume, .cookie = publishes[i].cookie,
		.block = publishes[i].block,
	};
	return fetch_publish(c, e, 1);
}

/* Every allocation of a PUBLISH fails once. (Others may come between, so they cannot be counted.) */
static void answer_publish_test(struct kunit *test)
{
	unsigned int i, nth, failed;
	struct dm_dedup_publish e;
	bool hit;
	int r;

	for (i = 0; i < ARRAY_SIZE(publishes); i++) {
		for (nth = 1, failed = 0, hit = true; hit; nth++) {
			struct cache *c = fake_cache(test, 12);
			struct volume *vol = fake_volume(test, c, 8);
			u64 before;

			KUNIT_ASSERT_LT(test, nth, 20U);
			if (publishes[i].leaf)
				volume_make_leaf(vol, 0, GFP_KERNEL);
			before = atomic64_read(&c->memory);
			if (!fake_fail_alloc(nth))
				kunit_skip(test, "allocations that may sleep do not fail here");
			r = publish(c, i, &e);
			hit = fake_fail_none();
			if (r)
				KUNIT_EXPECT_EQ(test, r, -ENOMEM);
			r = r ?: e.result;
			if (r == -ENOMEM || (r == -ENOSPC && !publishes[i].leaf))
				failed++;
			else
				KUNIT_EXPECT_EQ_MSG(test, r, publishes[i].want, "%s",
						    publishes[i].what);
			if (!hit)
				KUNIT_EXPECT_EQ(test, r, publishes[i].want);
			/* (A leaf that was made stays.) */
			if (publishes[i].leaf || !publishes[i].volume)
				KUNIT_EXPECT_EQ(test, (u64)atomic64_read(&c->memory), before);
			KUNIT_EXPECT_EQ(test, c->nr_pool, FAKE_SLOTS);
			KUNIT_EXPECT_EQ(test, c->nr_state[SLOT_FREE], FAKE_SLOTS);
		}
		KUNIT_EXPECT_GE_MSG(test, failed, 1U, "%s", publishes[i].what);
	}
}

static int map_zero(struct volume *vol, u64 block)
{
	struct dm_dedup_map e = {
		.volume = vol->rec.id, .block = block, .flags = DM_DEDUP_MAP_ZERO,
	};

	fetch_map(vol->cache, &e);
	return e.result;
}

/* Without memory for a leaf the answer is to be given again. */
static void answer_map_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = fake_volume(test, c, 8);

	if (!fake_fail_alloc(1))
		kunit_skip(test, "allocations that may sleep do not fail here");
	KUNIT_EXPECT_EQ(test, map_zero(vol, 3), -ENOSPC);
	fake_fail_none();
	KUNIT_EXPECT_EQ(test, map_zero(vol, 3), 0);
}

static struct kunit_case answer_cases[] = {
	KUNIT_CASE(answer_publish_test),
	KUNIT_CASE(answer_map_test),
	{}
};

static struct kunit_suite answer_suite = {
	.name = "dm_dedup_answer",
	.test_cases = answer_cases,
};

kunit_test_suite(answer_suite);
