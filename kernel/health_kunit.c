// SPDX-License-Identifier: GPL-2.0-only
/* Which slots are bad, what becomes of them, and when somebody looks; the disk's part is a selftest. */
#include "fake_kunit.h"

static const struct {
	enum req_op op;
	blk_status_t status;
	bool failed;
} writes[] = {
	{ REQ_OP_WRITE, BLK_STS_IOERR, true },
	{ REQ_OP_WRITE, BLK_STS_MEDIUM, true },
	{ REQ_OP_WRITE, BLK_STS_NOSPC, true },
	{ REQ_OP_WRITE, BLK_STS_OK, false },
	{ REQ_OP_WRITE, BLK_STS_AGAIN, false },	/* the queue was full, and the bio does not wait */
	{ REQ_OP_WRITE, BLK_STS_TARGET, false },	/* a command that was not understood, or interrupted */
	{ REQ_OP_WRITE, BLK_STS_NOTSUPP, false },
	{ REQ_OP_WRITE, BLK_STS_RESOURCE, false },
	{ REQ_OP_WRITE, BLK_STS_TRANSPORT, false },
	{ REQ_OP_WRITE, BLK_STS_DM_REQUEUE, false },
	{ REQ_OP_WRITE_ZEROES, BLK_STS_IOERR, false },
	{ REQ_OP_WRITE_ZEROES, BLK_STS_TARGET, false },
};

static void health_status_test(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(writes); i++) {
		struct bio bio = { .bi_opf = writes[i].op };

		KUNIT_EXPECT_EQ_MSG(test, slot_write_failed(&bio, writes[i].status),
				    writes[i].failed, "op %u, status %u", writes[i].op,
				    (__force u8)writes[i].status);
	}
}

/* Gives a slot back as the workers do. */
static void give_back(struct cache *c, u32 n)
{
	struct dedup_change change;

	fake_free(c, n);
	fake_take_all(c, &change);
	cache_store_ops.committed(c, 1, 0);
	slots_reclaim(c);
}

/* A bad slot counts once, serves on for as long as it is used, and never comes back to the pool. */
static void health_bad_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	u32 clean = fake_alloc_clean(c), filling = fake_alloc(c, SLOT_FILLING, DEDUP_NO_SLOT);
	u32 good = fake_alloc_clean(c), pool = c->nr_pool;

	slots_bad(c, clean, 1);
	slots_bad(c, clean, 1);
	slots_bad(c, filling, 1);
	KUNIT_EXPECT_EQ(test, c->nr_bad, 2U);
	KUNIT_EXPECT_EQ(test, (int)c->slots[clean].state, SLOT_CLEAN);
	KUNIT_EXPECT_EQ(test, c->nr_retired, 0U);
	give_back(c, clean);
	give_back(c, good);
	spin_lock(&c->lock);
	slot_unalloc(c, filling);
	spin_unlock(&c->lock);
	KUNIT_EXPECT_FALSE(test, test_bit(clean, c->pool));
	KUNIT_EXPECT_FALSE(test, test_bit(filling, c->pool));
	KUNIT_EXPECT_TRUE(test, test_bit(good, c->pool));
	KUNIT_EXPECT_EQ(test, c->nr_pool, pool + 1);
	KUNIT_EXPECT_EQ(test, c->nr_retired, 2U);
	KUNIT_EXPECT_EQ(test, c->nr_state[SLOT_FREE], FAKE_SLOTS);
}

/* Being pending for a commit and being bad are told apart. */
static void health_pending_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = fake_volume(test, c, 8);
	struct overlay *ov = fake_open(vol, 1, 0);
	struct bio_data bd = { .ov = ov, .sectors = 2 };
	struct dedup_change change;

	slots_bad(c, ov->slot, 1);
	KUNIT_EXPECT_FALSE(test, volume_commit_pending(vol));
	KUNIT_EXPECT_EQ(test, fake_take_all(c, &change), 0U);
	overlay_written(c, &bd);
	slots_bad(c, ov->slot, 1);
	KUNIT_EXPECT_EQ(test, vol->nr_pending, 1U);
	KUNIT_EXPECT_EQ(test, fake_take_all(c, &change), 1U);
	KUNIT_EXPECT_EQ(test, vol->nr_pending, 0U);
	KUNIT_EXPECT_EQ(test, (int)c->slots[ov->slot].flags, SLOT_BAD);
	KUNIT_EXPECT_EQ(test, c->nr_bad, 1U);
}

/* A bio that spans several slots does not say which of them it was. */
static void health_span_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	u32 i;

	slots_bad(c, FAKE_SLOTS - 5, 5);
	slots_bad(c, FAKE_SLOTS - 8, 4);
	slots_bad(c, 0, 0);
	KUNIT_EXPECT_EQ(test, c->nr_bad, 8U);
	KUNIT_EXPECT_EQ(test, c->error, 0);
	for (i = 0; i < FAKE_SLOTS; i++)
		KUNIT_ASSERT_EQ(test, (int)c->slots[i].flags,
				i >= FAKE_SLOTS - 8 ? SLOT_BAD : 0);
	/* As many as the reserve has can be borne. */
	slots_bad(c, 0, FAKE_RESERVE - 8);
	KUNIT_EXPECT_EQ(test, c->error, 0);
	slots_bad(c, 100, 1);
	KUNIT_EXPECT_EQ(test, c->error, -EIO);
}

/* A slot that cannot be read is given up once, and only as long as that can be borne. */
static void health_read_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	u32 a = fake_alloc_clean(c), b = fake_alloc_clean(c), gen = c->slots[a].gen;

	KUNIT_EXPECT_TRUE(test, slot_unreadable(c, a));
	KUNIT_EXPECT_EQ(test, (int)c->slots[a].state, SLOT_FREEING);
	KUNIT_EXPECT_NE(test, c->slots[a].gen, gen);
	KUNIT_EXPECT_EQ(test, c->nr_bad, 1U);
	/* Another reader of the same slot. */
	KUNIT_EXPECT_TRUE(test, slot_unreadable(c, a));
	KUNIT_EXPECT_EQ(test, c->slots[a].gen, gen + 1);
	slots_bad(c, FAKE_SLOTS - FAKE_RESERVE, FAKE_RESERVE - 1);
	KUNIT_EXPECT_FALSE(test, slot_unreadable(c, b));
	KUNIT_EXPECT_EQ(test, (int)c->slots[b].state, SLOT_CLEAN);
	KUNIT_EXPECT_EQ(test, c->error, 0);
}

static const struct {
	const char *what;
	enum cache_mode mode;
	int error;
	bool suspect;
	bool hopeless;		/* without an agent */
	bool looks;		/* the tick has the worker look at the disk */
} states[] = {
	{ "all is well", CACHE_RW, 0, false, false, false },
	{ "an I/O has failed", CACHE_RW, 0, true, false, true },
	{ "an append has failed", CACHE_RW, -EIO, false, true, true },
	{ "read-only", CACHE_RO, -EIO, false, true, true },
	{ "failed", CACHE_FAILED, -EIO, true, true, true },
};

static void health_look(struct work_struct *work)
{
	struct cache *c = container_of(work, struct cache, health_work);

	c->bad_seen++;
}

static void health_state_test(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(states); i++) {
		struct cache *c = fake_cache(test, 12);
		struct volume *vol = fake_volume(test, c, 8);

		fake_channel(test, c);
		INIT_WORK(&c->health_work, health_look);
		c->mode = states[i].mode;
		c->error = states[i].error;
		if (states[i].suspect)
			health_suspect(c);
		KUNIT_EXPECT_EQ_MSG(test, health_is_hopeless(c), states[i].hopeless, "%s",
				    states[i].what);
		KUNIT_EXPECT_EQ_MSG(test, volume_write_status(vol) != BLK_STS_OK, !!states[i].error,
				    "%s", states[i].what);
		health_tick(c);
		flush_work(&c->health_work);
		KUNIT_EXPECT_EQ_MSG(test, c->bad_seen, (u32)states[i].looks, "%s", states[i].what);
	}
}

static struct kunit_case health_cases[] = {
	KUNIT_CASE(health_status_test),
	KUNIT_CASE(health_bad_test),
	KUNIT_CASE(health_pending_test),
	KUNIT_CASE(health_span_test),
	KUNIT_CASE(health_read_test),
	KUNIT_CASE(health_state_test),
	{}
};

static struct kunit_suite health_suite = {
	.name = "dm_dedup_health",
	.test_cases = health_cases,
};

kunit_test_suite(health_suite);
