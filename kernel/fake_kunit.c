// SPDX-License-Identifier: GPL-2.0-only
#include <linux/slab.h>
#include <linux/uuid.h>
#include <linux/vmalloc.h>
#include "fake_kunit.h"

static void no_work(struct work_struct *work)
{
}

static void fake_cache_exit(void *p)
{
	struct cache *c = p;

	if (c->store)
		dedup_store_close(c->store);
	c->store = NULL;
	flush_work(&c->space_work);
	flush_work(&c->health_work);
	slots_reclaim(c);
	if (c->channel)
		channel_destroy(c->channel);
	c->channel = NULL;
	volumes_exit(c);
	overlays_exit(c);
	slots_exit(c);
	inflight_exit(&c->inflight);
	bitmap_free(c->indexes);
	kfree(c->info);
	kfree(c);
}

struct cache *fake_cache(struct kunit *test, unsigned int block_shift)
{
	struct cache *c = kzalloc(sizeof(*c), GFP_KERNEL);
	struct dedup_store_info *info = kzalloc(sizeof(*info), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, c);
	KUNIT_ASSERT_NOT_NULL(test, info);
	info->incarnation_nr = 3;
	c->info = info;
	c->nr_slots = FAKE_SLOTS;
	c->sector_shift = block_shift - SECTOR_SHIFT;
	c->block_sectors = 1U << c->sector_shift;
	mutex_init(&c->mutex);
	INIT_LIST_HEAD(&c->volumes);
	spin_lock_init(&c->lock);
	spin_lock_init(&c->change_lock);
	INIT_LIST_HEAD(&c->volume_changes);
	INIT_LIST_HEAD(&c->commit_volumes);
	init_waitqueue_head(&c->slot_wait);
	INIT_WORK(&c->space_work, no_work);
	INIT_WORK(&c->health_work, no_work);
	c->wq = system_wq;
	c->io_wq = system_wq;
	c->reserve = FAKE_RESERVE;
	c->max_zero = FAKE_SLOTS;
	c->max_memory = S64_MAX;
	c->indexes = bitmap_zalloc(DM_DEDUP_MAX_VOLUMES, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, c->indexes);
	KUNIT_ASSERT_EQ(test, inflight_init(&c->inflight), 0);
	KUNIT_ASSERT_EQ(test, slots_init(c), 0);
	KUNIT_ASSERT_EQ(test, overlays_init(c), 0);
	overlays_refill(c);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, fake_cache_exit, c), 0);
	return c;
}

/* ---- a disk in memory ---- */

static int fake_disk_read(void *ctx, const struct dedup_io *ios, unsigned int n)
{
	struct fake_disk *d = ctx;
	unsigned int i;

	for (i = 0; i < n; i++)
		memcpy(ios[i].buf, d->data + ios[i].offset, ios[i].len);
	return 0;
}

static int fake_disk_write(void *ctx, const struct dedup_io *ios, unsigned int n, bool fua)
{
	struct fake_disk *d = ctx;
	unsigned int i;

	if (READ_ONCE(d->broken))
		return -EIO;
	for (i = 0; i < n; i++)
		memcpy(d->data + ios[i].offset, ios[i].buf, ios[i].len);
	return 0;
}

static int fake_disk_flush(void *ctx)
{
	struct fake_disk *d = ctx;

	WRITE_ONCE(d->flushes, d->flushes + 1);
	return READ_ONCE(d->broken) ? -EIO : 0;
}

static const struct dedup_disk_ops fake_disk_ops = {
	fake_disk_read, fake_disk_write, fake_disk_flush
};

static void fake_disk_free(void *p)
{
	vfree(p);
}

static struct fake_disk *fake_disk_alloc(struct kunit *test, u64 bytes)
{
	struct fake_disk *d = kunit_kzalloc(test, sizeof(*d), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, d);
	d->data = vzalloc(bytes);
	KUNIT_ASSERT_NOT_NULL(test, d->data);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, fake_disk_free, d->data), 0);
	d->disk = (struct dedup_disk){ &fake_disk_ops, d, bytes };
	return d;
}

struct fake_disk *fake_disk(struct kunit *test, unsigned int block_shift, u64 slots)
{
	u64 bytes = dedup_min_bytes(block_shift) + (slots << block_shift);
	struct fake_disk *d = fake_disk_alloc(test, bytes);

	KUNIT_ASSERT_EQ(test, dedup_layout(&d->sb, bytes, block_shift), 0);
	KUNIT_ASSERT_EQ(test, dedup_ledger_format(&d->disk, &d->sb), 0);
	return d;
}

struct fake_disk *fake_disk_copy(struct kunit *test, const struct fake_disk *from)
{
	struct fake_disk *d = fake_disk_alloc(test, from->disk.bytes);

	memcpy(d->data, from->data, from->disk.bytes);
	d->sb = from->sb;
	return d;
}

static int fake_prepare(void *ctx, const struct dedup_store_info *info)
{
	struct cache *c = ctx;

	/* It has more slots than we. */
	*(struct dedup_store_info *)c->info = *info;
	return 0;
}

struct cache *fake_cache_on(struct kunit *test, struct fake_disk *d)
{
	static const struct dedup_store_ops *ops = &cache_store_ops;
	static struct dedup_store_ops fake_ops;
	struct cache *c = fake_cache(test, d->sb.block_shift);
	struct dedup_store *store;
	char *error;

	fake_ops = *ops;
	fake_ops.prepare = fake_prepare;
	store = dedup_store_open_disk(&d->disk, &fake_ops, c, &error);
	KUNIT_ASSERT_FALSE(test, IS_ERR(store));
	c->store = store;
	changes_kick(c);
	return c;
}

/* ---- agent, volumes, slots ---- */

void fake_channel(struct kunit *test, struct cache *c)
{
	u8 uuid[DEDUP_UUID_BYTES];

	generate_random_uuid(uuid);
	KUNIT_ASSERT_EQ(test, channel_create(&c->channel, uuid, 1, &cache_channel_ops, c), 0);
}

struct volume *fake_volume(struct kunit *test, struct cache *c, u64 blocks)
{
	static const u8 image[DEDUP_UUID_BYTES] = { 1 };
	struct volume *vol = volume_new(c, image, blocks << (c->sector_shift + SECTOR_SHIFT));

	KUNIT_ASSERT_FALSE(test, IS_ERR(vol));
	vol->rec.id = 77;
	vol->rec.cut_counter = 1;
	vol->cut_counter = 1;
	return vol;
}

u32 fake_alloc(struct cache *c, enum slot_state state, u32 hint)
{
	u32 n;

	spin_lock(&c->lock);
	n = slot_alloc(c, state, hint);
	spin_unlock(&c->lock);
	return n;
}

u32 fake_alloc_clean(struct cache *c)
{
	static const u8 fp[DEDUP_FP_BYTES] = { 5 };
	u32 n = fake_alloc(c, SLOT_FILLING, DEDUP_NO_SLOT);

	spin_lock(&c->lock);
	slot_make_clean(c, n, fp);
	spin_unlock(&c->lock);
	return n;
}

void fake_free(struct cache *c, u32 n)
{
	spin_lock(&c->lock);
	slot_free(c, n);
	spin_unlock(&c->lock);
}

unsigned int fake_take_all(struct cache *c, struct dedup_change *change)
{
	unsigned int n = 0;

	while (cache_store_ops.next_change(c, change))
		n++;
	return n;
}

struct overlay *fake_open(struct volume *vol, u64 block, u8 flags)
{
	struct cache *c = vol->cache;
	bool opened = false;
	struct overlay *ov;

	volume_make_leaf(vol, block, GFP_KERNEL);
	spin_lock(&c->lock);
	ov = overlay_open(vol, block, flags, &opened);
	spin_unlock(&c->lock);
	return ov;
}

#ifdef CONFIG_FAILSLAB
bool fake_fail_alloc(unsigned int nth)
{
	void *p;

	current->fail_nth = 1;
	p = kmalloc(8, GFP_NOIO);
	current->fail_nth = 0;
	kfree(p);
	if (!p)
		current->fail_nth = nth;
	return !p;
}

bool fake_fail_none(void)
{
	bool failed = !current->fail_nth;

	current->fail_nth = 0;
	return failed;
}
#else
bool fake_fail_alloc(unsigned int nth)
{
	return false;
}

bool fake_fail_none(void)
{
	return false;
}
#endif

void fake_fail_next(unsigned int *nth, unsigned int *again, bool ours)
{
	if (!ours && ++*again < 3)
		return;
	*again = 0;
	++*nth;
}
