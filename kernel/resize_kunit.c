// SPDX-License-Identifier: GPL-2.0-only
/* Volumes of another size: which may be had when, and what becomes of the map. */
#include <linux/delay.h>
#include <linux/slab.h>
#include "fake_kunit.h"

#define BLOCKS	1000ULL

static u64 bytes_of(struct cache *c, u64 blocks)
{
	return blocks << (c->sector_shift + SECTOR_SHIFT);
}

static const struct {
	const char *what;
	u64 blocks;
	bool open, dirty;
	int check;
	u64 reshaped;		/* blocks after volume_reshape() */
} sizes[] = {
	{ "closed, smaller", 10, false, false, 0, 10 },
	{ "closed, the same", BLOCKS, false, false, 0, BLOCKS },
	{ "closed, larger", 5000, false, false, 0, 5000 },
	{ "open, smaller", BLOCKS - 1, true, false, -EBUSY, BLOCKS },
	{ "open, larger", 5000, true, false, 0, BLOCKS },
	{ "dirty, smaller", BLOCKS - 1, false, true, -EBUSY, BLOCKS },
	{ "dirty, larger", 5000, false, true, 0, BLOCKS },
	{ "open and dirty, the same", BLOCKS, true, true, 0, BLOCKS },
};

static void resize_check_test(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct cache *c = fake_cache(test, 12);
		struct volume *vol = fake_volume(test, c, BLOCKS);
		u64 size = bytes_of(c, sizes[i].blocks);

		volume_make_leaf(vol, 3, GFP_KERNEL);
		*volume_slot_of(vol, 3) = entry_make(ENTRY_ZERO, 0, 0);
		if (sizes[i].dirty)
			KUNIT_ASSERT_NOT_NULL(test, fake_open(vol, 9, 0));
		vol->open = sizes[i].open;
		KUNIT_EXPECT_EQ_MSG(test, volume_check_size(vol, size), sizes[i].check, "%s",
				    sizes[i].what);
		mutex_lock(&vol->mutex);
		KUNIT_EXPECT_EQ_MSG(test, volume_reshape(vol, size), 0, "%s", sizes[i].what);
		mutex_unlock(&vol->mutex);
		KUNIT_EXPECT_EQ_MSG(test, vol->nr_blocks, sizes[i].reshaped, "%s", sizes[i].what);
		KUNIT_EXPECT_EQ_MSG(test, vol->rec.size, bytes_of(c, sizes[i].reshaped), "%s",
				    sizes[i].what);
		/* Another shape names nothing; the same one all that it did. */
		KUNIT_EXPECT_EQ_MSG(test, volume_has_leaf(vol, 3), sizes[i].reshaped == BLOCKS,
				    "%s", sizes[i].what);
		KUNIT_EXPECT_EQ_MSG(test, vol->rec_pending, sizes[i].reshaped != BLOCKS, "%s",
				    sizes[i].what);
	}
}

static int grow(struct volume *vol, u64 size, struct map_growth *g)
{
	int r;

	mutex_lock(&vol->mutex);
	r = volume_grow(vol, size, g);
	mutex_unlock(&vol->mutex);
	return r;
}

static void resize_grow_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = fake_volume(test, c, BLOCKS);
	struct overlay *ov = fake_open(vol, BLOCKS - 1, 0);
	u64 size = bytes_of(c, 100000), before;
	struct map_growth *g, *late;

	vol->open = true;
	before = atomic64_read(&c->memory);
	KUNIT_EXPECT_EQ(test, grow(vol, vol->rec.size, NULL), 0);
	KUNIT_EXPECT_FALSE(test, vol->rec_pending);
	/* Larger than the table that was loaded knew of. */
	KUNIT_EXPECT_EQ(test, grow(vol, size, NULL), -EBUSY);

	g = map_growth_new(vol, size);
	late = map_growth_new(vol, bytes_of(c, 50000));
	KUNIT_ASSERT_FALSE(test, IS_ERR(g));
	KUNIT_ASSERT_FALSE(test, IS_ERR(late));
	KUNIT_EXPECT_NULL(test, volume_slot_of(vol, BLOCKS));
	KUNIT_EXPECT_EQ(test, grow(vol, size, g), 0);
	KUNIT_EXPECT_EQ(test, vol->nr_blocks, 100000ULL);
	KUNIT_EXPECT_EQ(test, vol->rec.size, size);
	KUNIT_EXPECT_TRUE(test, vol->rec_pending);
	KUNIT_EXPECT_TRUE(test, volume_entry(vol, BLOCKS - 1) == entry_make_overlay(ov));
	KUNIT_EXPECT_EQ(test, volume_make_leaf(vol, 99999, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, volume_make_leaf(vol, 100000, GFP_KERNEL), -EINVAL);
	KUNIT_EXPECT_NOT_NULL(test, fake_open(vol, 99999, 0));
	/* A table that was loaded before, and is resumed after it. */
	KUNIT_EXPECT_EQ(test, grow(vol, bytes_of(c, 50000), late), -EBUSY);
	KUNIT_EXPECT_EQ(test, vol->nr_blocks, 100000ULL);
	map_growth_free(vol, g);
	map_growth_free(vol, late);
	map_growth_free(vol, NULL);
	/* The longer top, and the leaf at the new end. */
	KUNIT_EXPECT_EQ(test, atomic64_read(&c->memory) - before,
			(DIV_ROUND_UP(100000, 512) - DIV_ROUND_UP(BLOCKS, 512)) * 8 + 4096);
}

static int reshape(struct volume *vol, u64 size)
{
	int r;

	mutex_lock(&vol->mutex);
	r = volume_reshape(vol, size);
	mutex_unlock(&vol->mutex);
	return r;
}

/* A table is loaded, and then the volume is opened with one of a size that needs larger leaves. */
static void resize_shape_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = fake_volume(test, c, BLOCKS);
	u64 size = bytes_of(c, 3ULL << 29);
	struct map_growth *early, *late;

	early = map_growth_new(vol, size);
	KUNIT_ASSERT_FALSE(test, IS_ERR(early));
	KUNIT_ASSERT_EQ(test, reshape(vol, bytes_of(c, 1ULL << 30)), 0);
	vol->open = true;
	KUNIT_ASSERT_EQ(test, volume_make_leaf(vol, 1, GFP_KERNEL), 0);
	KUNIT_EXPECT_EQ(test, grow(vol, size, early), -EBUSY);
	KUNIT_EXPECT_EQ(test, vol->nr_blocks, 1ULL << 30);
	late = map_growth_new(vol, size);
	KUNIT_ASSERT_FALSE(test, IS_ERR(late));
	KUNIT_EXPECT_EQ(test, grow(vol, size, late), 0);
	KUNIT_EXPECT_TRUE(test, volume_has_leaf(vol, 1));
	map_growth_free(vol, early);
	map_growth_free(vol, late);
}

struct grower {
	struct work_struct work;
	struct volume *vol;
	struct map_growth *g;
	bool done;
};

static void grower_work(struct work_struct *work)
{
	struct grower *w = container_of(work, struct grower, work);

	grow(w->vol, bytes_of(w->vol->cache, 100000), w->g);
	WRITE_ONCE(w->done, true);
}

/* The old top stays for as long as somebody may be reading it. */
static void resize_reader_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct grower w = { .vol = fake_volume(test, c, BLOCKS) };
	unsigned int epoch, i;

	w.g = map_growth_new(w.vol, bytes_of(c, 100000));
	KUNIT_ASSERT_FALSE(test, IS_ERR(w.g));
	epoch = inflight_enter(&c->inflight);
	INIT_WORK_ONSTACK(&w.work, grower_work);
	schedule_work(&w.work);
	/* The new one is there for whoever comes now. */
	for (i = 0; i < 1000 && READ_ONCE(w.vol->nr_blocks) != 100000; i++)
		msleep(20);
	KUNIT_EXPECT_EQ(test, READ_ONCE(w.vol->nr_blocks), 100000ULL);
	msleep(20);
	KUNIT_EXPECT_FALSE(test, READ_ONCE(w.done));
	inflight_leave(&c->inflight, epoch);
	flush_work(&w.work);
	destroy_work_on_stack(&w.work);
	map_growth_free(w.vol, w.g);
}

static void expect_unchanged(struct kunit *test, struct volume *vol, u64 memory)
{
	KUNIT_EXPECT_EQ(test, vol->nr_blocks, BLOCKS);
	KUNIT_EXPECT_EQ(test, vol->rec.size, bytes_of(vol->cache, BLOCKS));
	KUNIT_EXPECT_FALSE(test, vol->rec_pending);
	KUNIT_EXPECT_EQ(test, (u64)atomic64_read(&vol->cache->memory), memory);
}

static void resize_bound_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = fake_volume(test, c, BLOCKS);
	u64 size = bytes_of(c, 100000), before = atomic64_read(&c->memory);
	struct map_growth *g;

	c->max_memory = before + 100;
	g = map_growth_new(vol, size);
	KUNIT_EXPECT_TRUE(test, IS_ERR(g) && PTR_ERR(g) == -E2BIG);
	KUNIT_EXPECT_EQ(test, reshape(vol, size), -E2BIG);
	expect_unchanged(test, vol, before);
}

/* Without memory the volume is what it was. (The leak checker allocates, too, and can do without.) */
static void resize_nomem_test(struct kunit *test)
{
	unsigned int nth = 1, again = 0, growths = 0, shapes = 0;
	bool hit = true, ours;
	int r;

	for (; hit; fake_fail_next(&nth, &again, ours)) {
		struct cache *c = fake_cache(test, 12);
		struct volume *vol = fake_volume(test, c, BLOCKS);
		u64 size = bytes_of(c, 100000), before = atomic64_read(&c->memory);
		struct map_growth *g;

		KUNIT_ASSERT_LT(test, nth, 50U);
		if (!fake_fail_alloc(nth))
			kunit_skip(test, "allocations that may sleep do not fail here");
		g = map_growth_new(vol, size);
		hit = fake_fail_none();
		ours = IS_ERR(g);
		if (ours) {
			KUNIT_EXPECT_EQ(test, (int)PTR_ERR(g), -ENOMEM);
			growths++;
		} else {
			map_growth_free(vol, g);
		}
		expect_unchanged(test, vol, before);

		fake_fail_alloc(nth);
		r = reshape(vol, size);
		hit |= fake_fail_none();
		ours &= !!r;
		if (r) {
			KUNIT_EXPECT_EQ(test, r, -ENOMEM);
			expect_unchanged(test, vol, before);
			shapes++;
		} else {
			KUNIT_EXPECT_EQ(test, vol->nr_blocks, 100000ULL);
		}
	}
	KUNIT_EXPECT_GE(test, growths, 2U);
	KUNIT_EXPECT_GE(test, shapes, 2U);
}

static struct kunit_case resize_cases[] = {
	KUNIT_CASE(resize_check_test),
	KUNIT_CASE(resize_grow_test),
	KUNIT_CASE(resize_shape_test),
	KUNIT_CASE(resize_reader_test),
	KUNIT_CASE(resize_bound_test),
	KUNIT_CASE(resize_nomem_test),
	{}
};

static struct kunit_suite resize_suite = {
	.name = "dm_dedup_resize",
	.test_cases = resize_cases,
};

kunit_test_suite(resize_suite);
