// SPDX-License-Identifier: GPL-2.0-only
/* The state machines of slots and overlays, without a disk. */
#include <linux/delay.h>
#include <linux/prandom.h>
#include <linux/slab.h>
#include "fake_kunit.h"

static bool next(struct cache *c, struct dedup_change *change)
{
	return cache_store_ops.next_change(c, change);
}

/* ---- slots ---- */

static void slot_alloc_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 18);
	u64 last = 0;
	u32 i, n, hint = DEDUP_NO_SLOT;

	for (i = 0; i < FAKE_SLOTS - 16; i++) {
		n = fake_alloc(c, SLOT_DIRTY, hint);
		KUNIT_ASSERT_LT(test, n, FAKE_SLOTS);
		KUNIT_EXPECT_GT(test, c->slots[n].seq, last);
		KUNIT_EXPECT_EQ(test, c->slots[n].seq >> 40, 3ULL);
		if (hint < FAKE_SLOTS)
			KUNIT_EXPECT_EQ(test, n, hint);
		last = c->slots[n].seq;
		hint = n + 1;
	}
	/* What is left is for filling. */
	KUNIT_EXPECT_EQ(test, fake_alloc(c, SLOT_DIRTY, DEDUP_NO_SLOT), DEDUP_NO_SLOT);
	for (i = 0; i < 16; i++)
		KUNIT_EXPECT_LT(test, fake_alloc(c, SLOT_FILLING, DEDUP_NO_SLOT), FAKE_SLOTS);
	KUNIT_EXPECT_EQ(test, fake_alloc(c, SLOT_FILLING, DEDUP_NO_SLOT), DEDUP_NO_SLOT);
	KUNIT_EXPECT_EQ(test, c->nr_pool, 0U);
	/* None of them was ever given back properly: make the table consistent for the end. */
	spin_lock(&c->lock);
	for (i = 0; i < FAKE_SLOTS; i++)
		slot_unalloc(c, i);
	spin_unlock(&c->lock);
}

enum slot_step {
	END,
	FILL,		/* taken out of the pool */
	UNFILL,		/* that came to nothing */
	CLEAN,
	FREE,
	UNREADABLE,
	UNWRITABLE,
	LAST_GEN,	/* it was used as often as can be */
	TAKE,		/* the store takes its record into a commit */
	DURABLE,	/* which is durable */
	FAIL,		/* or has failed */
	RECLAIM,
};

#define NO_RECORD	0xff

/*
 * A slot is in the pool only after its FREE record was handed out, and that commit is durable.
 * @record: what TAKE gets
 */
static const struct {
	const char *what;
	struct {
		u8 step, state, record;
	} steps[16];
	u32 retired;
} slot_lives[] = {
	{ "filled, evicted, and filled again", {
		{ FILL, SLOT_FILLING }, { TAKE, SLOT_FILLING, NO_RECORD }, { CLEAN, SLOT_CLEAN },
		{ TAKE, SLOT_CLEAN, DEDUP_SLOT_CLEAN }, { TAKE, SLOT_CLEAN, NO_RECORD },
		{ DURABLE, SLOT_CLEAN }, { FREE, SLOT_FREEING }, { RECLAIM, SLOT_FREEING },
		{ TAKE, SLOT_FREEING, DEDUP_SLOT_FREE }, { RECLAIM, SLOT_FREEING },
		{ DURABLE, SLOT_FREEING }, { RECLAIM, SLOT_FREE }, { FILL, SLOT_FILLING },
		{ UNFILL, SLOT_FREE } } },
	{ "what was to be filled is free at once", {
		{ FILL, SLOT_FILLING }, { UNFILL, SLOT_FREE }, { TAKE, SLOT_FREE, NO_RECORD } } },
	{ "freed before its CLEAN record is handed out: there is one record", {
		{ FILL, SLOT_FILLING }, { CLEAN, SLOT_CLEAN }, { FREE, SLOT_FREEING },
		{ TAKE, SLOT_FREEING, DEDUP_SLOT_FREE }, { TAKE, SLOT_FREEING, NO_RECORD },
		{ DURABLE, SLOT_FREEING }, { RECLAIM, SLOT_FREE } } },
	{ "freed while its CLEAN record is in a commit: that commit is not enough", {
		{ FILL, SLOT_FILLING }, { CLEAN, SLOT_CLEAN },
		{ TAKE, SLOT_CLEAN, DEDUP_SLOT_CLEAN }, { FREE, SLOT_FREEING },
		{ DURABLE, SLOT_FREEING }, { RECLAIM, SLOT_FREEING },
		{ TAKE, SLOT_FREEING, DEDUP_SLOT_FREE }, { DURABLE, SLOT_FREEING },
		{ RECLAIM, SLOT_FREE } } },
	{ "the commit of its FREE record fails", {
		{ FILL, SLOT_FILLING }, { CLEAN, SLOT_CLEAN }, { FREE, SLOT_FREEING },
		{ TAKE, SLOT_FREEING, DEDUP_SLOT_FREE }, { FAIL, SLOT_FREEING },
		{ RECLAIM, SLOT_FREEING } } },
	{ "its generations are used up", {
		{ FILL, SLOT_FILLING }, { LAST_GEN, SLOT_FILLING }, { CLEAN, SLOT_CLEAN },
		{ FREE, SLOT_FREEING }, { TAKE, SLOT_FREEING, DEDUP_SLOT_FREE },
		{ DURABLE, SLOT_FREEING }, { RECLAIM, SLOT_FREE } }, 1 },
	{ "it cannot be written", {
		{ FILL, SLOT_FILLING }, { UNWRITABLE, SLOT_FILLING }, { UNFILL, SLOT_FREE } }, 1 },
	{ "it cannot be read", {
		{ FILL, SLOT_FILLING }, { CLEAN, SLOT_CLEAN }, { UNREADABLE, SLOT_FREEING },
		{ UNREADABLE, SLOT_FREEING }, { TAKE, SLOT_FREEING, DEDUP_SLOT_FREE },
		{ DURABLE, SLOT_FREEING }, { RECLAIM, SLOT_FREE } }, 1 },
};

/* Returns what TAKE gets. */
static u8 slot_step(struct kunit *test, struct cache *c, u32 n, enum slot_step step)
{
	static const u8 fp[DEDUP_FP_BYTES] = { 5 };
	u32 gen = c->slots[n].gen;
	struct dedup_change change;
	u64 seq = c->slots[n].seq;

	switch (step) {
	case FILL:
		KUNIT_EXPECT_EQ(test, fake_alloc(c, SLOT_FILLING, n), n);
		/* Each life has another name. */
		KUNIT_EXPECT_GT(test, c->slots[n].seq, seq);
		return NO_RECORD;
	case UNFILL:
		spin_lock(&c->lock);
		slot_unalloc(c, n);
		spin_unlock(&c->lock);
		return NO_RECORD;
	case CLEAN:
		spin_lock(&c->lock);
		slot_make_clean(c, n, fp);
		spin_unlock(&c->lock);
		return NO_RECORD;
	case FREE:
		fake_free(c, n);
		/* Entries that name it are dead. */
		KUNIT_EXPECT_EQ(test, c->slots[n].gen, gen + 1);
		return NO_RECORD;
	case UNREADABLE:
		KUNIT_EXPECT_TRUE(test, slot_unreadable(c, n));
		return NO_RECORD;
	case UNWRITABLE:
		slots_bad(c, n, 1);
		return NO_RECORD;
	case LAST_GEN:
		c->slots[n].gen = ENTRY_GEN_MAX - 1;
		return NO_RECORD;
	case TAKE:
		if (!next(c, &change))
			return NO_RECORD;
		KUNIT_EXPECT_EQ(test, change.index, (u64)n);
		KUNIT_EXPECT_EQ(test, change.slot.seq, seq);
		if (change.slot.state == DEDUP_SLOT_CLEAN)
			KUNIT_EXPECT_EQ(test, change.slot.fp[0], 5);
		return change.slot.state;
	case DURABLE:
	case FAIL:
		cache_store_ops.committed(c, 1, step == FAIL ? -EIO : 0);
		return NO_RECORD;
	case RECLAIM:
		slots_reclaim(c);
		return NO_RECORD;
	case END:
		break;
	}
	return NO_RECORD;
}

static void slot_life_test(struct kunit *test)
{
	const u32 n = 100;
	unsigned int i, s;

	for (i = 0; i < ARRAY_SIZE(slot_lives); i++) {
		struct cache *c = fake_cache(test, 18);

		for (s = 0; slot_lives[i].steps[s].step; s++) {
			u8 record = slot_step(test, c, n, slot_lives[i].steps[s].step);
			u8 state = slot_lives[i].steps[s].state;

			if (slot_lives[i].steps[s].step == TAKE)
				KUNIT_EXPECT_EQ_MSG(test, record, slot_lives[i].steps[s].record,
						    "%s: step %u", slot_lives[i].what, s);
			KUNIT_EXPECT_EQ_MSG(test, c->slots[n].state, state, "%s: step %u",
					    slot_lives[i].what, s);
			KUNIT_EXPECT_EQ_MSG(test, test_bit(n, c->pool),
					    state == SLOT_FREE && !slot_lives[i].retired,
					    "%s: step %u", slot_lives[i].what, s);
		}
		KUNIT_EXPECT_EQ_MSG(test, c->nr_retired, slot_lives[i].retired, "%s",
				    slot_lives[i].what);
	}
}

/* ---- references ---- */

struct drainer {
	struct work_struct work;
	struct inflight *f;
	bool done;
};

static void drainer_work(struct work_struct *work)
{
	struct drainer *d = container_of(work, struct drainer, work);

	inflight_drain(d->f);
	WRITE_ONCE(d->done, true);
}

static void inflight_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 18);
	struct drainer d = { .f = &c->inflight };
	unsigned int i, tries, before, old, later;

	INIT_WORK_ONSTACK(&d.work, drainer_work);
	for (i = 0; i < 5; i++) {
		before = READ_ONCE(c->inflight.epoch);
		old = inflight_enter(&c->inflight);
		d.done = false;
		schedule_work(&d.work);
		/* Before that, the later one would be of the same epoch, and be waited for. */
		for (tries = 0; READ_ONCE(c->inflight.epoch) == before && tries < 2500; tries++)
			msleep(20);
		msleep(20);
		KUNIT_EXPECT_FALSE(test, READ_ONCE(d.done));
		later = inflight_enter(&c->inflight);
		inflight_leave(&c->inflight, old);
		/* The one that came later does not hold it up. */
		flush_work(&d.work);
		KUNIT_EXPECT_TRUE(test, READ_ONCE(d.done));
		inflight_leave(&c->inflight, later);
	}
	destroy_work_on_stack(&d.work);
}

/* ---- overlays ---- */

static void write_at(struct volume *vol, struct overlay *ov, u32 offset, u32 len)
{
	struct bio_data bd = { .ov = ov, .offset = offset, .sectors = len };

	overlay_written(vol->cache, &bd);
}

static void cut(struct volume *vol)
{
	vol->rec.cut_counter++;
	vol->cut_counter++;
}

static void overlay_valid_test(struct kunit *test)
{
	static const struct {
		u32 offset, len;
	} t[] = { { 0, 1 }, { 7, 2 }, { 63, 1 }, { 63, 2 }, { 64, 64 }, { 1, 63 }, { 60, 200 },
		  { 511, 1 }, { 0, 512 }, { 448, 64 } };
	unsigned int i, s;

	for (i = 0; i < ARRAY_SIZE(t); i++) {
		struct cache *c = fake_cache(test, 18);
		struct volume *vol = fake_volume(test, c, 4);
		struct overlay *ov = fake_open(vol, 1, 0);

		KUNIT_ASSERT_NOT_NULL(test, ov);
		write_at(vol, ov, t[i].offset, t[i].len);
		for (s = 0; s < c->block_sectors; s++)
			KUNIT_ASSERT_EQ(test, overlay_range_valid(ov, s, 1),
					s >= t[i].offset && s < t[i].offset + t[i].len);
		KUNIT_EXPECT_TRUE(test, overlay_range_valid(ov, t[i].offset, t[i].len));
		KUNIT_EXPECT_EQ(test, overlay_complete(c, ov), t[i].len == 512);
		KUNIT_EXPECT_EQ(test, vol->nr_pending, 1U);
		write_at(vol, ov, t[i].offset, t[i].len);
		KUNIT_EXPECT_EQ(test, vol->nr_pending, 1U);
	}
}

/* The record holds the bits of every write that completed before it was handed out. */
static void overlay_record_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 18);
	struct volume *vol = fake_volume(test, c, 4);
	struct overlay *ov = fake_open(vol, 2, 0);
	struct dedup_change change;

	KUNIT_EXPECT_FALSE(test, volume_commit_pending(vol));
	write_at(vol, ov, 8, 8);
	KUNIT_EXPECT_TRUE(test, volume_commit_pending(vol));
	KUNIT_ASSERT_TRUE(test, next(c, &change));
	KUNIT_EXPECT_EQ(test, (int)change.slot.state, DEDUP_SLOT_DIRTY);
	KUNIT_EXPECT_EQ(test, change.slot.volume, 77ULL);
	KUNIT_EXPECT_EQ(test, change.slot.block, 2ULL);
	KUNIT_EXPECT_EQ(test, change.slot.cut, 1ULL);
	KUNIT_EXPECT_EQ(test, change.slot.bitmap[1], 0xff);
	KUNIT_EXPECT_EQ(test, change.slot.bitmap[2], 0);
	/* In flight is not durable; and what is written meanwhile is a new change. */
	KUNIT_EXPECT_TRUE(test, volume_commit_pending(vol));
	write_at(vol, ov, 16, 8);
	cache_store_ops.committed(c, 1, 0);
	KUNIT_EXPECT_TRUE(test, volume_commit_pending(vol));
	KUNIT_ASSERT_TRUE(test, next(c, &change));
	KUNIT_EXPECT_EQ(test, change.slot.bitmap[2], 0xff);
	cache_store_ops.committed(c, 2, 0);
	KUNIT_EXPECT_FALSE(test, volume_commit_pending(vol));
}

/* Reads through all layers, sector by sector, against a model. */
static void overlay_view_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 16);
	struct volume *vol = fake_volume(test, c, 8);
	u32 base = fake_alloc_clean(c), closed_slot, open_slot, *model, s, i;
	struct overlay *closed, *open;
	struct rnd_state rnd;
	struct view view;
	struct run run;

	prandom_seed_state(&rnd, 4711);
	model = kunit_kcalloc(test, c->block_sectors, sizeof(*model), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, model);
	volume_make_leaf(vol, 3, GFP_KERNEL);
	*volume_slot_of(vol, 3) = entry_make(ENTRY_BASE, base, c->slots[base].gen);
	closed = fake_open(vol, 3, 0);
	closed_slot = closed->slot;
	cut(vol);
	open = fake_open(vol, 3, 0);
	open_slot = open->slot;
	KUNIT_ASSERT_PTR_NE(test, open, closed);
	for (s = 0; s < c->block_sectors; s++)
		model[s] = base;
	for (i = 0; i < 12; i++) {
		u32 offset = prandom_u32_state(&rnd) % c->block_sectors;
		u32 len = 1 + prandom_u32_state(&rnd) % min(20U, c->block_sectors - offset);
		struct overlay *ov = i & 1 ? open : closed;

		write_at(vol, ov, offset, len);
		for (s = offset; s < offset + len; s++)
			if (ov == open || model[s] == base)
				model[s] = ov->slot;
	}
	view_load(vol, 3, &view);
	KUNIT_EXPECT_EQ(test, (int)view.nr_ov, 2);
	for (s = 0; s < c->block_sectors; s += run.len) {
		view_run(c, &view, s, c->block_sectors - s, &run);
		KUNIT_ASSERT_GT(test, run.len, 0U);
		KUNIT_EXPECT_EQ(test, (int)run.kind, ENTRY_BASE);
		for (i = 0; i < run.len; i++)
			KUNIT_ASSERT_EQ(test, run.slot, model[s + i]);
	}
	/* The base is evicted: its sectors are misses, the overlays' are not. */
	fake_free(c, base);
	view_load(vol, 3, &view);
	for (s = 0; s < c->block_sectors; s++) {
		view_run(c, &view, s, 1, &run);
		KUNIT_EXPECT_EQ(test, (int)run.kind,
				model[s] == base ? ENTRY_NONE : ENTRY_BASE);
	}
	KUNIT_EXPECT_NE(test, open_slot, closed_slot);
}

static void overlay_zero_test(struct kunit *test)
{
	struct cache *c = fake_cache(test, 12);
	struct volume *vol = fake_volume(test, c, 8);
	struct overlay *ov = fake_open(vol, 0, DEDUP_OVERLAY_BASE_ZERO);
	struct dedup_change change;
	struct view view;
	struct run run;

	write_at(vol, ov, 2, 3);
	view_load(vol, 0, &view);
	view_run(c, &view, 0, 8, &run);
	KUNIT_EXPECT_EQ(test, (int)run.kind, ENTRY_ZERO);
	KUNIT_EXPECT_EQ(test, run.len, 2U);
	view_run(c, &view, 2, 6, &run);
	KUNIT_EXPECT_EQ(test, run.slot, ov->slot);
	KUNIT_EXPECT_EQ(test, run.len, 3U);
	KUNIT_ASSERT_TRUE(test, next(c, &change));
	KUNIT_EXPECT_EQ(test, (int)change.slot.flags, DEDUP_OVERLAY_BASE_ZERO);
	KUNIT_EXPECT_EQ(test, change.slot.bitmap[0], 0x1c);
	KUNIT_EXPECT_EQ(test, c->nr_zero, 1U);
}

/* ---- recovery ---- */

static const struct {
	const char *what;
	u64 cut, block, cut2;
	int want, want2;
	enum slot_state state;
} loads[] = {
	{ "open", 3, 1, 0, 0, 0, SLOT_DIRTY },
	{ "closed", 2, 1, 0, 0, 0, SLOT_DIRTY },
	{ "committed: void", 1, 1, 0, 0, 0, SLOT_FREEING },
	{ "of the future", 4, 1, 0, -EUCLEAN, 0, SLOT_FREE },
	{ "beyond the end", 3, 9, 0, -EUCLEAN, 0, SLOT_FREE },
	{ "closed, then open", 2, 1, 3, 0, 0, SLOT_DIRTY },
	{ "open, then closed", 3, 1, 2, 0, 0, SLOT_DIRTY },
	{ "twice the same cut", 3, 1, 3, 0, -EUCLEAN, SLOT_DIRTY },
};

static void overlay_load_test(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(loads); i++) {
		struct cache *c = fake_cache(test, 18);
		struct volume *vol = fake_volume(test, c, 8);
		struct dedup_slot_rec rec = {
			.state = DEDUP_SLOT_DIRTY, .seq = 9, .volume = 77,
			.block = loads[i].block, .cut = loads[i].cut, .bitmap = { 0xf0 },
		};
		struct view view;

		vol->rec.cut_counter = 3;
		vol->rec.committed_cut = 1;
		KUNIT_EXPECT_EQ_MSG(test, cache_store_ops.load_slot(c, 5, &rec), loads[i].want,
				    "%s", loads[i].what);
		if (!loads[i].want)
			KUNIT_EXPECT_EQ_MSG(test, (int)c->slots[5].state, loads[i].state, "%s",
					    loads[i].what);
		if (!loads[i].cut2)
			continue;
		rec.cut = loads[i].cut2;
		KUNIT_EXPECT_EQ_MSG(test, cache_store_ops.load_slot(c, 6, &rec), loads[i].want2,
				    "%s", loads[i].what);
		if (loads[i].want2)
			continue;
		view_load(vol, 1, &view);
		KUNIT_EXPECT_EQ(test, (int)view.nr_ov, 2);
		KUNIT_EXPECT_EQ(test, view.ov[0]->cut, 3ULL);
		KUNIT_EXPECT_EQ(test, view.ov[1]->cut, 2ULL);
		KUNIT_EXPECT_FALSE(test, overlay_range_valid(view.ov[0], 3, 1));
		KUNIT_EXPECT_TRUE(test, overlay_range_valid(view.ov[0], 4, 4));
	}
}

static const struct {
	const char *what;
	u64 index, id, size, counter;
	bool long_name;
	int want;
} volume_loads[] = {
	{ "a good one", 0, 1, 1 << 20, 2, false, 0 },
	{ "with a cut that is closed", DM_DEDUP_MAX_VOLUMES - 1, 1, 1 << 20, 3, false, 0 },
	{ "the counter is at the committed cut", 0, 1, 1 << 20, 1, false, -EUCLEAN },
	{ "with two cuts that are closed", 0, 1, 1 << 20, 4, false, -EUCLEAN },
	{ "a name without an end", 0, 1, 1 << 20, 2, true, -EUCLEAN },
	{ "beyond the table", DM_DEDUP_MAX_VOLUMES, 1, 1 << 20, 2, false, -EUCLEAN },
	{ "of no volume", 0, 0, 1 << 20, 2, false, -EUCLEAN },
	{ "of no size", 0, 1, 0, 2, false, -EUCLEAN },
	{ "of half a sector", 0, 1, (1 << 20) + 256, 2, false, -EUCLEAN },
	{ "of more than there can be", 0, 1, DEDUP_MAX_SIZE + 512, 2, false, -EUCLEAN },
};

static void volume_load_test(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(volume_loads); i++) {
		struct dedup_volume_rec rec = {
			.id = volume_loads[i].id, .size = volume_loads[i].size,
			.cut_counter = volume_loads[i].counter, .committed_cut = 1, .name = "a",
		};
		struct cache *c = fake_cache(test, 18);

		if (volume_loads[i].long_name)
			memset(rec.name, 'x', sizeof(rec.name));
		KUNIT_EXPECT_EQ_MSG(test, volume_load(c, volume_loads[i].index, &rec),
				    volume_loads[i].want, "%s", volume_loads[i].what);
		/* A second one of this id or image is not this disk's. */
		if (!volume_loads[i].want)
			KUNIT_EXPECT_EQ_MSG(test, volume_load(c, 1, &rec), -EUCLEAN, "%s",
					    volume_loads[i].what);
		KUNIT_EXPECT_EQ_MSG(test, c->nr_volumes, (unsigned int)!volume_loads[i].want, "%s",
				    volume_loads[i].what);
	}
}

/* Opening a cache without memory: every allocation of the load fails once. */
static void load_nomem_test(struct kunit *test)
{
	struct dedup_volume_rec rec = {
		.id = 5, .size = 1 << 20, .cut_counter = 2, .committed_cut = 1, .name = "a",
	};
	struct dedup_slot_rec slot = {
		.state = DEDUP_SLOT_DIRTY, .seq = 9, .block = 1, .cut = 2, .bitmap = { 1 },
	};
	unsigned int nth = 1, again = 0, failed = 0;
	struct volume *vol;
	struct cache *c;
	bool hit = true;
	u64 before;
	int r;

	for (; hit; fake_fail_next(&nth, &again, r)) {
		KUNIT_ASSERT_LT(test, nth, 50U);
		c = fake_cache(test, 12);
		if (!fake_fail_alloc(nth))
			kunit_skip(test, "allocations that may sleep do not fail here");
		r = volume_load(c, 3, &rec);
		hit = fake_fail_none();
		failed += !!r;
		if (r)
			KUNIT_EXPECT_EQ(test, r, -ENOMEM);
		KUNIT_EXPECT_EQ(test, c->nr_volumes, (unsigned int)!r);
		KUNIT_EXPECT_EQ(test, test_bit(3, c->indexes), !r);
	}
	KUNIT_EXPECT_GE(test, failed, 2U);

	vol = volume_find(c, 5);
	KUNIT_ASSERT_NOT_NULL(test, vol);
	before = atomic64_read(&c->memory);
	/* The leaf, then the overlay. */
	fake_fail_alloc(1);
	KUNIT_EXPECT_EQ(test, overlay_load(vol, 7, &slot), -ENOMEM);
	fake_fail_none();
	KUNIT_EXPECT_EQ(test, (u64)atomic64_read(&c->memory), before);
	KUNIT_ASSERT_EQ(test, volume_make_leaf(vol, 1, GFP_KERNEL), 0);
	fake_fail_alloc(1);
	KUNIT_EXPECT_EQ(test, overlay_load(vol, 7, &slot), -ENOMEM);
	fake_fail_none();
	KUNIT_EXPECT_EQ(test, vol->nr_dirty, 0ULL);
	KUNIT_EXPECT_EQ(test, (int)c->slots[7].state, SLOT_FREE);
	KUNIT_EXPECT_EQ(test, volume_entry(vol, 1), 0ULL);
	KUNIT_EXPECT_EQ(test, overlay_load(vol, 7, &slot), 0);
	KUNIT_EXPECT_EQ(test, vol->nr_dirty, 1ULL);
	spin_lock(&c->lock);
	__clear_bit(7, c->pool);
	c->nr_pool--;
	spin_unlock(&c->lock);
	volume_put(vol);
}

static void slots_nomem_test(struct kunit *test)
{
	struct cache *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);
	unsigned int nth = 1, again = 0, failed = 0;
	bool hit = true;
	int r;

	KUNIT_ASSERT_NOT_NULL(test, c);
	c->nr_slots = FAKE_SLOTS;
	for (; hit; fake_fail_next(&nth, &again, r)) {
		KUNIT_ASSERT_LT(test, nth, 100U);
		if (!fake_fail_alloc(nth))
			kunit_skip(test, "allocations that may sleep do not fail here");
		r = slots_init(c);
		hit = fake_fail_none();
		failed += !!r;
		if (r)
			KUNIT_EXPECT_EQ(test, r, -ENOMEM);
		slots_exit(c);
	}
	KUNIT_EXPECT_GE(test, failed, 2U);
}

static struct kunit_case slot_cases[] = {
	KUNIT_CASE(slot_alloc_test),
	KUNIT_CASE(slot_life_test),
	KUNIT_CASE(inflight_test),
	KUNIT_CASE(load_nomem_test),
	KUNIT_CASE(slots_nomem_test),
	{}
};

static struct kunit_case overlay_cases[] = {
	KUNIT_CASE(overlay_valid_test),
	KUNIT_CASE(overlay_record_test),
	KUNIT_CASE(overlay_view_test),
	KUNIT_CASE(overlay_zero_test),
	KUNIT_CASE(overlay_load_test),
	KUNIT_CASE(volume_load_test),
	{}
};

static struct kunit_suite slot_suite = {
	.name = "dm_dedup_slot",
	.test_cases = slot_cases,
};

static struct kunit_suite overlay_suite = {
	.name = "dm_dedup_overlay",
	.test_cases = overlay_cases,
};

kunit_test_suites(&slot_suite, &overlay_suite);
