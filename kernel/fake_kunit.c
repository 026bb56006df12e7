// SPDX-License-Identifier: GPL-2.0-only
#include <linux/slab.h>
#include <linux/uuid.h>
#include "fake_kunit.h"

static void no_work(struct work_struct *work)
{
}

static void fake_cache_exit(void *p)
{
	struct cache *c = p;

	flush_work(&c->space_work);
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

void fake_channel(struct kunit *test, struct cache *c)
{
	u8 uuid[DEDUP_UUID_BYTES];
	struct channel *ch;

	generate_random_uuid(uuid);
	ch = channel_create(uuid, 1, &cache_channel_ops, c);
	KUNIT_ASSERT_FALSE(test, IS_ERR(ch));
	c->channel = ch;
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
