// SPDX-License-Identifier: GPL-2.0-only
/* The table of misses: who waits for what, and what ends it. No disk: blocks come as zeros. */
#include <linux/delay.h>
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
	volume_fail_parked(vol);
	flush_work(&vol->work);
	volume_fail_parked(vol);
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

	misses_restart(vol, true);
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
	const unsigned int most = DEDUP_MAX_MISSES / 2, n = most + 5;
	struct volume *vol = world(test, n), *other;
	struct cache *c = vol->cache;
	struct fake_bio **fb = kunit_kcalloc(test, n, sizeof(*fb), GFP_KERNEL);
	unsigned int i, done = 0;

	KUNIT_ASSERT_NOT_NULL(test, fb);
	for (i = 0; i < n; i++)
		fb[i] = start_read(test, vol, i);
	KUNIT_EXPECT_EQ(test, c->nr_misses, most);
	KUNIT_EXPECT_EQ(test, bio_list_size(&c->full_bios), 5U);
	/* Others may ask. */
	other = fake_volume(test, c, 1);
	start_read(test, other, 0);
	KUNIT_EXPECT_EQ(test, other->nr_misses, 1U);
	KUNIT_EXPECT_EQ(test, c->nr_misses, most + 1);
	end_all(other);
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie_of(vol, 0), 0), 0);
	flush_work(&vol->work);
	KUNIT_EXPECT_EQ(test, c->nr_misses, most);
	KUNIT_EXPECT_EQ(test, bio_list_size(&c->full_bios), 4U);
	end_all(vol);
	for (i = 0; i < n; i++)
		done += fb[i]->done;
	KUNIT_EXPECT_EQ(test, done, n);
	KUNIT_EXPECT_EQ(test, c->nr_misses, 0U);
}

/* As if it had waited for so much longer. */
static void waited(struct fake_bio *fb, unsigned int seconds)
{
	bio_data_of(&fb->bio)->since -= seconds * HZ;
}

static void fetch_timeout_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *late = start_read(test, vol, 1), *young = start_read(test, vol, 2);

	waited(late, 2000);
	misses_tick(vol->cache);
	KUNIT_EXPECT_FALSE(test, late->done);
	vol->fetch_timeout = 1000;
	misses_tick(vol->cache);
	expect_done(test, late, BLK_STS_TIMEOUT);
	KUNIT_EXPECT_FALSE(test, young->done);
	KUNIT_EXPECT_EQ(test, vol->cache->nr_misses, 1U);
	KUNIT_EXPECT_EQ(test, vol->fetched.failed, 1ULL);
	end_all(vol);
}

/* The deadline is the read's own: pushes do not put it off, and an older read does not take it over. */
static void fetch_timeout_own_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *old = start_read(test, vol, 1), *young;
	unsigned int i;
	u64 cookie;

	vol->fetch_timeout = 1000;
	for (i = 0; i < 3; i++) {
		waited(old, 300);
		misses_restart(vol, true);
		flush_work(&vol->work);
		misses_tick(vol->cache);
		KUNIT_EXPECT_FALSE(test, old->done);
	}
	young = start_read(test, vol, 1);
	waited(old, 300);
	cookie = cookie_of(vol, 1);
	misses_tick(vol->cache);
	expect_done(test, old, BLK_STS_TIMEOUT);
	KUNIT_EXPECT_FALSE(test, young->done);
	KUNIT_EXPECT_EQ(test, vol->fetched.failed, 0ULL);
	/* The block is still asked for. */
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie, 1), 0);
	expect_done(test, young, BLK_STS_OK);
}

static void fetch_requeue_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *before = start_read(test, vol, 1);

	set_bit(VOLUME_REQUEUE, &vol->state);
	volume_send_back(vol);
	expect_done(test, before, BLK_STS_DM_REQUEUE);
	expect_done(test, start_read(test, vol, 1), BLK_STS_DM_REQUEUE);
	KUNIT_EXPECT_EQ(test, vol->cache->nr_misses, 0U);
}

struct restarter {
	struct work_struct work;
	struct volume *vol;
	bool stop;
};

static void restarter_work(struct work_struct *work)
{
	struct restarter *r = container_of(work, struct restarter, work);

	while (!READ_ONCE(r->stop)) {
		misses_restart(r->vol, true);
		misses_tick(r->vol->cache);
		cond_resched();
	}
}

/* A suspend finds all bios, also those that somebody has in his hands to give them to the worker. */
static void fetch_send_back_test(struct kunit *test)
{
	const unsigned int n = 300, rounds = 12;
	struct volume *vol = world(test, 64);
	struct fake_bio **fb = kunit_kcalloc(test, n, sizeof(*fb), GFP_KERNEL);
	struct restarter r = { .vol = vol };
	unsigned int i, round, done;

	KUNIT_ASSERT_NOT_NULL(test, fb);
	for (i = 0; i < n; i++)
		fb[i] = bio_for(test, vol, REQ_OP_READ, i % 64);
	INIT_WORK_ONSTACK(&r.work, restarter_work);
	queue_work(system_unbound_wq, &r.work);
	for (round = 0; round < rounds; round++) {
		for (i = 0; i < n; i++) {
			fb[i]->done = false;
			bio_data_of(&fb[i]->bio)->flags = 0;
			fb[i]->bio.bi_iter.bi_size = SECTOR_SIZE;
			volume_defer(vol, &fb[i]->bio);
		}
		usleep_range(round * 100, round * 100 + 1000);
		set_bit(VOLUME_REQUEUE, &vol->state);
		volume_send_back(vol);
		for (i = 0, done = 0; i < n; i++)
			done += READ_ONCE(fb[i]->done) && fb[i]->status == BLK_STS_DM_REQUEUE;
		KUNIT_EXPECT_EQ(test, done, n);
		while (done < n) {
			/* They come back sooner or later. */
			msleep(20);
			for (i = 0, done = 0; i < n; i++)
				done += READ_ONCE(fb[i]->done);
		}
		clear_bit(VOLUME_REQUEUE, &vol->state);
	}
	WRITE_ONCE(r.stop, true);
	flush_work(&r.work);
	destroy_work_on_stack(&r.work);
	end_all(vol);
}

struct taker {
	struct work_struct work;
	struct cache *c;
	void (*take)(struct cache *c);
};

static void taker_work(struct work_struct *work)
{
	struct taker *t = container_of(work, struct taker, work);

	t->take(t->c);
}

static void space_take(struct cache *c)
{
	space_waiters_run(c, true);
}

/* Somebody takes @list, and hands over many bios of another volume before that of @vol. */
static void send_back_taken(struct kunit *test, struct volume *vol, struct volume *other,
			    struct bio_list *list, void (*take)(struct cache *c))
{
	struct fake_bio *fb = read_bio(test, vol, 1);
	struct cache *c = vol->cache;
	struct taker t = { .c = c, .take = take };
	unsigned int i;

	for (i = 0; i < 1500; i++) {
		struct fake_bio *before = bio_for(test, other, REQ_OP_READ, i % 64);

		bio_list_add(list, &before->bio);
	}
	bio_list_add(list, &fb->bio);
	INIT_WORK_ONSTACK(&t.work, taker_work);
	queue_work(system_unbound_wq, &t.work);
	while (READ_ONCE(list->head))
		cond_resched();
	/* All are in his hands, or on their way; and his hands are full. */
	set_bit(VOLUME_REQUEUE, &vol->state);
	volume_send_back(vol);
	expect_done(test, fb, BLK_STS_DM_REQUEUE);
	flush_work(&t.work);
	destroy_work_on_stack(&t.work);
	flush_work(&other->work);
	flush_work(&vol->work);
	clear_bit(VOLUME_REQUEUE, &vol->state);
}

static void fetch_send_back_taken_test(struct kunit *test)
{
	struct volume *vol = world(test, 64);
	struct cache *c = vol->cache;
	struct volume *other = fake_volume(test, c, 64);
	unsigned int round;

	set_bit(VOLUME_REQUEUE, &other->state);
	for (round = 0; round < 4; round++) {
		send_back_taken(test, vol, other, &c->full_bios, misses_ended);
		send_back_taken(test, vol, other, &c->space_bios, space_take);
	}
	end_all(vol);
}

struct drain {
	struct work_struct work;
	struct cache *c;
	bool begun;
};

static void drain_work(struct work_struct *work)
{
	struct drain *d = container_of(work, struct drain, work);

	WRITE_ONCE(d->begun, true);
	inflight_drain(&d->c->inflight);
}

/*
 * Without memory for threads each workqueue has one. What waits in it for references does not keep
 * a read that has failed, and holds one, from its volume's worker.
 */
static void fetch_rescuer_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct cache *c = vol->cache;
	struct fake_bio *fb = read_bio(test, vol, 1);
	struct drain d = { .c = c };
	unsigned int i;

	c->wq = alloc_ordered_workqueue("dm-dedup-test", 0);
	KUNIT_ASSERT_NOT_NULL(test, c->wq);
	/* The cache takes no more writes: then the read is not tried again. */
	c->error = -EIO;
	bio_hold(&fb->bio, inflight_enter(&c->inflight));
	bio_data_of(&fb->bio)->flags |= BIO_FAILED;
	fb->bio.bi_status = BLK_STS_IOERR;
	INIT_WORK_ONSTACK(&d.work, drain_work);
	queue_work(c->wq, &d.work);
	while (!READ_ONCE(d.begun))
		msleep(20);
	volume_defer(vol, &fb->bio);
	for (i = 0; i < 2500 && !READ_ONCE(fb->done); i++)
		msleep(20);
	expect_done(test, fb, BLK_STS_IOERR);
	/* If it is stuck: this is what it waits for. */
	volume_work(&vol->work);
	destroy_workqueue(c->wq);
	destroy_work_on_stack(&d.work);
	c->wq = system_wq;
	c->error = 0;
}

/* Who waits for a block that is made zero waits in vain: it runs again and finds zeros. */
static void fetch_zero_test(struct kunit *test)
{
	struct volume *vol = world(test, 8);
	struct fake_bio *fb = start_read(test, vol, 6);
	struct fake_bio *zero = bio_for(test, vol, REQ_OP_WRITE_ZEROES, 6);
	u64 cookie = cookie_of(vol, 6), ios = volume_ios(vol);

	zero->bio.bi_iter.bi_size = vol->cache->block_sectors << SECTOR_SHIFT;
	volume_defer(vol, &zero->bio);
	flush_work(&vol->work);
	flush_work(&vol->work);
	expect_done(test, zero, BLK_STS_OK);
	expect_done(test, fb, BLK_STS_OK);
	KUNIT_EXPECT_EQ(test, *(u8 *)bvec_virt(&fb->vec), 0);
	KUNIT_EXPECT_EQ(test, map_zero(vol, cookie, 6), -ESTALE);
	/* An idle guest's counter stands still, and this one was not idle. */
	KUNIT_EXPECT_EQ(test, volume_ios(vol), ios + 1);
}

/* A FUA request to zero what is zero: it has nothing of its own to write, but others before it had. */
static void fetch_zero_fua_test(struct kunit *test)
{
	struct fake_disk *d = fake_disk(test, 12, FAKE_SLOTS);
	struct volume *vol = fake_volume(test, fake_cache_on(test, d), 8);
	struct cache *c = vol->cache;
	struct block_device *bdev = kunit_kzalloc(test, sizeof(*bdev), GFP_KERNEL);
	unsigned int flushes, i;
	struct fake_bio *fb;

	KUNIT_ASSERT_NOT_NULL(test, bdev);
	bdev->bd_queue = kunit_kzalloc(test, sizeof(*bdev->bd_queue), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, bdev->bd_queue);
#ifdef BLK_FEAT_WRITE_CACHE
	bdev->bd_queue->limits.features = BLK_FEAT_WRITE_CACHE;
#else
	set_bit(QUEUE_FLAG_WC, &bdev->bd_queue->queue_flags);
#endif
	c->bdev = bdev;
	KUNIT_ASSERT_EQ(test, volume_make_leaf(vol, 6, GFP_KERNEL), 0);
	spin_lock(&c->lock);
	*volume_slot_of(vol, 6) = entry_make(ENTRY_ZERO, 0, 0);
	spin_unlock(&c->lock);
	KUNIT_ASSERT_EQ(test, dedup_store_sync(c->store), 0);
	KUNIT_ASSERT_FALSE(test, volume_commit_pending(vol));

	fb = bio_for(test, vol, REQ_OP_WRITE_ZEROES, 6);
	fb->bio.bi_opf |= REQ_FUA;
	fb->bio.bi_iter.bi_size = c->block_sectors << SECTOR_SHIFT;
	flushes = READ_ONCE(d->flushes);
	volume_defer(vol, &fb->bio);
	flush_work(&vol->work);
	for (i = 0; i < 2500 && !READ_ONCE(fb->done); i++)
		msleep(20);
	expect_done(test, fb, BLK_STS_OK);
	KUNIT_EXPECT_GT(test, READ_ONCE(d->flushes), flushes);
}

/* Without memory for a leaf, or for the miss, a read waits until the next tick. */
static void fetch_nomem_test(struct kunit *test)
{
	unsigned int nth = 1, again = 0, failed = 0;
	bool hit = true, ours;

	/* (The leak checker and the slab allocate, too, and do without if need be.) */
	for (; hit; fake_fail_next(&nth, &again, ours)) {
		struct volume *vol = world(test, 8);
		struct fake_bio *fb = read_bio(test, vol, 7);

		KUNIT_ASSERT_LT(test, nth, 50U);
		bio_list_add(&vol->deferred, &fb->bio);
		if (!fake_fail_alloc(nth)) {
			bio_list_init(&vol->deferred);
			kunit_skip(test, "allocations that may sleep do not fail here");
		}
		volume_work(&vol->work);
		hit = fake_fail_none();
		KUNIT_EXPECT_FALSE(test, fb->done);
		ours = !vol->cache->nr_misses;
		failed += ours;
		misses_tick(vol->cache);
		flush_work(&vol->work);
		KUNIT_EXPECT_EQ(test, vol->cache->nr_misses, 1U);
		KUNIT_EXPECT_EQ(test, map_zero(vol, cookie_of(vol, 7), 7), 0);
		expect_done(test, fb, BLK_STS_OK);
	}
	KUNIT_EXPECT_GE(test, failed, 2U);
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
	KUNIT_CASE(fetch_timeout_own_test),
	KUNIT_CASE(fetch_requeue_test),
	KUNIT_CASE(fetch_send_back_test),
	KUNIT_CASE(fetch_send_back_taken_test),
	KUNIT_CASE(fetch_rescuer_test),
	KUNIT_CASE(fetch_zero_test),
	KUNIT_CASE(fetch_zero_fua_test),
	KUNIT_CASE(fetch_nomem_test),
	KUNIT_CASE(volume_nomem_test),
	{}
};

static struct kunit_suite fetch_suite = {
	.name = "dm_dedup_fetch",
	.test_cases = fetch_cases,
};

kunit_test_suite(fetch_suite);
