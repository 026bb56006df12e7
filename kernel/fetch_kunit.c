// SPDX-License-Identifier: GPL-2.0-only
/* The table of misses: who waits for what, and what ends it. No disk: blocks come as zeros. */
#include <linux/slab.h>
#include "fake_kunit.h"

/* Device-mapper keeps our data of a bio before it. */
struct fake_bio {
	u8 before[1024];
	struct bio bio;
	struct bio_vec vec;
	struct cache *c;
	bool done;
	blk_status_t status;
};

static void fake_end_io(struct bio *bio)
{
	struct fake_bio *fb = container_of(bio, struct fake_bio, bio);
	struct bio_data *bd = bio_data_of(bio);

	if (bd->flags & BIO_INFLIGHT)
		inflight_leave(&fb->c->inflight, bd->epoch);
	fb->status = bio->bi_status;
	fb->done = true;
}

static struct fake_bio *bio_for(struct kunit *test, struct volume *vol, enum req_op op, u64 block)
{
	struct fake_bio *fb = kunit_kzalloc(test, sizeof(*fb), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, fb);
	fb->c = vol->cache;
	bio_init(&fb->bio, NULL, &fb->vec, 1, op);
	fb->bio.bi_end_io = fake_end_io;
	fb->bio.bi_iter.bi_sector = block << vol->cache->sector_shift;
	bio_data_of(&fb->bio)->vol = vol;
	return fb;
}

/* One sector, in a page that is not zeros. */
static struct fake_bio *read_bio(struct kunit *test, struct volume *vol, u64 block)
{
	struct fake_bio *fb = bio_for(test, vol, REQ_OP_READ, block);
	u8 *p = kunit_kmalloc(test, PAGE_SIZE, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, p);
	memset(p, 0xee, PAGE_SIZE);
	KUNIT_ASSERT_EQ(test, bio_add_page(&fb->bio, virt_to_page(p), SECTOR_SIZE,
					   offset_in_page(p)), SECTOR_SIZE);
	return fb;
}

static struct fake_bio *start_read(struct kunit *test, struct volume *vol, u64 block)
{
	struct fake_bio *fb = read_bio(test, vol, block);

	volume_defer(vol, &fb->bio);
	flush_work(&vol->work);
	return fb;
}

static struct volume *world(struct kunit *test, u64 blocks)
{
	struct cache *c = fake_cache(test, 12);

	fake_channel(test, c);
	return fake_volume(test, c, blocks);
}

static u64 cookie_of(struct volume *vol, u64 block)
{
	struct miss *m;
	u64 cookie;

	spin_lock(&vol->cache->lock);
	m = miss_find(vol, block);
	cookie = m ? m->up.msg.cookie : 0;
	spin_unlock(&vol->cache->lock);
	return cookie;
}

static int map_zero(struct volume *vol, u64 cookie, u64 block)
{
	struct dm_dedup_map e = {
		.cookie = cookie, .volume = vol->rec.id, .block = block,
		.flags = DM_DEDUP_MAP_ZERO,
	};

	fetch_map(vol->cache, &e);
	return e.result;
}

static void expect_done(struct kunit *test, struct fake_bio *fb, blk_status_t status)
{
	KUNIT_EXPECT_TRUE(test, fb->done);
	KUNIT_EXPECT_TRUE(test, fb->status == status);
}

/* Waits for nothing: what is left may have no bio that is on this test's stack. */
static void end_all(struct volume *vol)
{
	vol->state = 0;
	volume_return_parked(vol, BLK_STS_IOERR);
	flush_work(&vol->work);
	volume_return_parked(vol, BLK_STS_IOERR);
}

static void fetch_once_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *a = start_read(test, vol, 3), *b = start_read(test, vol, 3);
	struct fake_bio *other = start_read(test, vol, 4);
	u64 cookie = cookie_of(vol, 3);

	KUNIT_EXPECT_EQ(test, vol->cache->nr_misses, 2U);
	KUNIT_EXPECT_NE(test, cookie, cookie_of(vol, 4));
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie, 3), 0);
	expect_done(test, a, BLK_STS_OK);
	expect_done(test, b, BLK_STS_OK);
	KUNIT_EXPECT_EQ(test, *(u8 *)bvec_virt(&a->vec), 0);
	KUNIT_EXPECT_FALSE(test, other->done);
	/* Late, and twice: it names nothing any more. */
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie, 3), -ESTALE);
	KUNIT_EXPECT_EQ(test, map_zero(vol, 0, 3), -EEXIST);
	expect_done(test, start_read(test, vol, 3), BLK_STS_OK);
	end_all(vol);
	expect_done(test, other, BLK_STS_IOERR);
	KUNIT_EXPECT_EQ(test, vol->cache->nr_misses, 0U);
}

static const struct {
	const char *what;
	u64 cookie, volume, block;
	u8 root;
	u32 flags;
	int want;
} wrong_maps[] = {
	{ "another cookie", 1ULL << 50, 0, 0, 0, DM_DEDUP_MAP_ZERO, -ESTALE },
	{ "another volume", 0, 5, 0, 0, DM_DEDUP_MAP_ZERO, -ESTALE },
	{ "another block", 0, 0, 1, 0, DM_DEDUP_MAP_ZERO, -EINVAL },
	{ "beyond the end", 0, 0, 100, 0, DM_DEDUP_MAP_ZERO, -EINVAL },
	{ "another root", 0, 0, 0, 1, DM_DEDUP_MAP_ZERO, -ESTALE },
	{ "unknown flags", 0, 0, 0, 0, 6, -EINVAL },
	{ "a slot that is free", 0, 0, 0, 0, 0, -ESTALE },
};

static void fetch_wrong_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *fb = start_read(test, vol, 2);
	u64 cookie = cookie_of(vol, 2);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(wrong_maps); i++) {
		struct dm_dedup_map e = {
			.cookie = cookie ^ wrong_maps[i].cookie,
			.volume = vol->rec.id + wrong_maps[i].volume,
			.block = 2 + wrong_maps[i].block,
			.root = { wrong_maps[i].root },
			.flags = wrong_maps[i].flags,
		};

		fetch_map(vol->cache, &e);
		KUNIT_EXPECT_EQ_MSG(test, e.result, wrong_maps[i].want, "%s", wrong_maps[i].what);
		KUNIT_EXPECT_FALSE_MSG(test, fb->done, "%s", wrong_maps[i].what);
	}
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie, 2), 0);
	expect_done(test, fb, BLK_STS_OK);
}

static const struct {
	int error, result;
	blk_status_t status;
} fails[] = {
	{ EIO, 0, BLK_STS_IOERR },
	{ ENODATA, 0, BLK_STS_MEDIUM },
	{ ETIMEDOUT, 0, BLK_STS_TIMEOUT },
	{ EAGAIN, 0, BLK_STS_IOERR },		/* not what the block layer means by it */
	{ MAX_ERRNO, 0, BLK_STS_IOERR },
	{ 0, -EINVAL, 0 },
	{ -EIO, -EINVAL, 0 },
	{ MAX_ERRNO + 1, -EINVAL, 0 },
};

static void fetch_fail_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fails); i++) {
		struct fake_bio *fb = start_read(test, vol, 1);
		struct dm_dedup_fail e = { .cookie = cookie_of(vol, 1), .error = fails[i].error };

		fetch_fail(vol->cache, &e);
		KUNIT_EXPECT_EQ(test, e.result, fails[i].result);
		if (fails[i].result)
			KUNIT_EXPECT_FALSE(test, fb->done);
		else
			expect_done(test, fb, fails[i].status);
		end_all(vol);
	}
}

/* After a COMMIT the cookie is another, and so is the root that an answer must be for. */
static void fetch_restart_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *fb = start_read(test, vol, 5);
	u64 old = cookie_of(vol, 5), new;

	misses_restart(vol);
	flush_work(&vol->work);
	new = cookie_of(vol, 5);
	KUNIT_EXPECT_GT(test, new, old);
	KUNIT_EXPECT_EQ(test, map_zero(vol, old, 5), -ESTALE);
	KUNIT_EXPECT_FALSE(test, fb->done);
	KUNIT_EXPECT_EQ(test, map_zero(vol, new, 5), 0);
	expect_done(test, fb, BLK_STS_OK);
}

/* More than may wait at a time wait for their turn. */
static void fetch_full_test(struct kunit *test)
{
	const unsigned int n = DEDUP_MAX_MISSES + 5;
	struct volume *vol = world(test, n);
	struct cache *c = vol->cache;
	struct fake_bio **fb = kunit_kcalloc(test, n, sizeof(*fb), GFP_KERNEL);
	unsigned int i, done = 0;

	KUNIT_ASSERT_NOT_NULL(test, fb);
	for (i = 0; i < n; i++)
		fb[i] = start_read(test, vol, i);
	KUNIT_EXPECT_EQ(test, c->nr_misses, DEDUP_MAX_MISSES);
	KUNIT_EXPECT_EQ(test, bio_list_size(&c->full_bios), 5U);
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie_of(vol, 0), 0), 0);
	flush_work(&vol->work);
	KUNIT_EXPECT_EQ(test, c->nr_misses, DEDUP_MAX_MISSES);
	KUNIT_EXPECT_EQ(test, bio_list_size(&c->full_bios), 4U);
	end_all(vol);
	for (i = 0; i < n; i++)
		done += fb[i]->done;
	KUNIT_EXPECT_EQ(test, done, n);
	KUNIT_EXPECT_EQ(test, c->nr_misses, 0U);
}

static void fetch_timeout_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *late = start_read(test, vol, 1), *young = start_read(test, vol, 2);

	spin_lock(&vol->cache->lock);
	miss_find(vol, 1)->since -= 20 * HZ;
	spin_unlock(&vol->cache->lock);
	misses_tick(vol->cache);
	KUNIT_EXPECT_FALSE(test, late->done);
	vol->fetch_timeout = 10;
	misses_tick(vol->cache);
	expect_done(test, late, BLK_STS_TIMEOUT);
	KUNIT_EXPECT_FALSE(test, young->done);
	end_all(vol);
}

static void fetch_requeue_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *before = start_read(test, vol, 1);

	set_bit(VOLUME_REQUEUE, &vol->state);
	volume_return_parked(vol, BLK_STS_DM_REQUEUE);
	expect_done(test, before, BLK_STS_DM_REQUEUE);
	expect_done(test, start_read(test, vol, 1), BLK_STS_DM_REQUEUE);
	KUNIT_EXPECT_EQ(test, vol->cache->nr_misses, 0U);
}

/* Who waits for a block that is made zero waits in vain: it runs again and finds zeros. */
static void fetch_zero_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *fb = start_read(test, vol, 6);
	struct fake_bio *zero = bio_for(test, vol, REQ_OP_WRITE_ZEROES, 6);
	u64 cookie = cookie_of(vol, 6);

	zero->bio.bi_iter.bi_size = vol->cache->block_sectors << SECTOR_SHIFT;
	volume_defer(vol, &zero->bio);
	flush_work(&vol->work);
	flush_work(&vol->work);
	expect_done(test, zero, BLK_STS_OK);
	expect_done(test, fb, BLK_STS_OK);
	KUNIT_EXPECT_EQ(test, *(u8 *)bvec_virt(&fb->vec), 0);
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie, 6), -ESTALE);
}

/* Without memory for a leaf, or for the miss, a read waits until the next tick. */
static void fetch_nomem_test(struct kunit *test)
{
	unsigned int nth, failed = 0;

	/* (The leak checker allocates, too, and does without if need be.) */
	for (nth = 1; nth <= 4; nth++) {
		struct volume *vol = world(test, 8);
		struct fake_bio *fb = read_bio(test, vol, 7);

		bio_list_add(&vol->deferred, &fb->bio);
		if (!fake_fail_alloc(nth)) {
			bio_list_init(&vol->deferred);
			kunit_skip(test, "allocations that may sleep do not fail here");
		}
		volume_work(&vol->work);
		fake_fail_none();
		KUNIT_EXPECT_FALSE(test, fb->done);
		failed += !vol->cache->nr_misses;
		misses_tick(vol->cache);
		flush_work(&vol->work);
		KUNIT_EXPECT_EQ(test, vol->cache->nr_misses, 1U);
		KUNIT_EXPECT_EQ(test, map_zero(vol, cookie_of(vol, 7), 7), 0);
		expect_done(test, fb, BLK_STS_OK);
	}
	KUNIT_EXPECT_GE(test, failed, 2U);
}

/* Without memory for a leaf the answer is to be given again. */
static void answer_nomem_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);

	if (!fake_fail_alloc(1))
		kunit_skip(test, "allocations that may sleep do not fail here");
	KUNIT_EXPECT_EQ(test, map_zero(vol, 0, 3), -ENOSPC);
	fake_fail_none();
	KUNIT_EXPECT_EQ(test, map_zero(vol, 0, 3), 0);
}

static void volume_nomem_test(struct kunit *test)
{
	static const u8 image[DEDUP_UUID_BYTES] = { 9 };
	struct cache *c = fake_cache(test, 18);
	struct volume *vol = ERR_PTR(-ENOMEM);
	unsigned int nth;

	for (nth = 1; IS_ERR(vol); nth++) {
		KUNIT_ASSERT_LT(test, nth, 10U);
		if (!fake_fail_alloc(nth))
			kunit_skip(test, "allocations that may sleep do not fail here");
		vol = volume_new(c, image, 1 << 20);
		fake_fail_none();
		if (!IS_ERR(vol))
			break;
		KUNIT_EXPECT_EQ(test, (int)PTR_ERR(vol), -ENOMEM);
		KUNIT_EXPECT_EQ(test, c->nr_volumes, 0U);
	}
	KUNIT_EXPECT_GT(test, nth, 1U);
	KUNIT_EXPECT_EQ(test, c->nr_volumes, 1U);
}

static struct kunit_case fetch_cases[] = {
	KUNIT_CASE(fetch_once_test),
	KUNIT_CASE(fetch_wrong_test),
	KUNIT_CASE(fetch_fail_test),
	KUNIT_CASE(fetch_restart_test),
	KUNIT_CASE(fetch_full_test),
	KUNIT_CASE(fetch_timeout_test),
	KUNIT_CASE(fetch_requeue_test),
	KUNIT_CASE(fetch_zero_test),
	KUNIT_CASE(fetch_nomem_test),
	KUNIT_CASE(answer_nomem_test),
	KUNIT_CASE(volume_nomem_test),
	{}
};

static struct kunit_suite fetch_suite = {
	.name = "dm_dedup_fetch",
	.test_cases = fetch_cases,
};

kunit_test_suite(fetch_suite);
