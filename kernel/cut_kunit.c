// SPDX-License-Identifier: GPL-2.0-only
/*
 * CUT, LIST_CUT, COMMIT, FENCE and RELEASE, step by step, on a store whose disk is memory; with
 * crashes, after which the records decide.
 */
#include <linux/delay.h>
#include <linux/slab.h>
#include "fake_kunit.h"

#define BLOCKS	8U
#define EPOCH	5U
#define OTHER	0x100U		/* with a cut: another root than the one that goes with it */

struct world {
	struct fake_disk *d;
	struct cache *c;
	struct volume *vol;
};

static void world_init(struct kunit *test, struct world *w)
{
	struct volume *vol;

	w->d = fake_disk(test, 12, FAKE_SLOTS);
	w->c = fake_cache_on(test, w->d);
	w->vol = vol = fake_volume(test, w->c, BLOCKS);
	refcount_inc(&vol->refs);
	vol->rec.lease_epoch = EPOCH;
	vol->rec.flags = DEDUP_VOL_GRANTED;
	__set_bit(vol->index, w->c->indexes);
	spin_lock(&w->c->lock);
	volume_changed(vol);
	spin_unlock(&w->c->lock);
	KUNIT_ASSERT_EQ(test, dedup_store_sync(w->c->store), 0);
}

/* The kernel dies, and the cache is opened again. */
static int crash(struct kunit *test, struct world *w)
{
	volume_put(w->vol);
	w->d = fake_disk_copy(test, w->d);
	w->c = fake_cache_on(test, w->d);
	w->vol = volume_find(w->c, 77);
	KUNIT_ASSERT_NOT_NULL(test, w->vol);
	return 0;
}

/* ---- steps ---- */

enum step {
	END,
	SOME,		/* some sectors of block @arg */
	FILL,		/* all of them */
	ZERO,		/* makes it zero by a record */
	CUT,		/* @want: the cut */
	RECOVER,	/* the same, of what is fenced */
	LIST,		/* cut @arg; @want: how many overlays */
	COMMIT,		/* cut @arg, all its blocks replaced as @kind says */
	MORE,		/* the same, and more to come */
	STALE,		/* COMMIT of an epoch that has passed */
	FENCE,
	RELEASE,
	DISCARD,	/* RELEASE, with what is dirty */
	SYNC,
	CRASH,
	BREAK,		/* the disk takes no more writes */
};

/* Of replacements, beside enum dm_dedup_base_kind; for each, what the entry gets. */
enum {
	KIND_NONE	= DM_DEDUP_BASE_NONE,
	KIND_ZERO	= DM_DEDUP_BASE_ZERO,
	KIND_SLOT	= DM_DEDUP_BASE_SLOT,
	KIND_OWN	= DM_DEDUP_BASE_OWN,
	KIND_PART,		/* OWN of an overlay that is not complete */
	KIND_OLD_SEQ,		/* OWN with another sequence than the slot's */
	KIND_DIRTY_SLOT,	/* SLOT that names one that is not CLEAN */
	KIND_NO_SLOT,		/* SLOT that names none */
	KIND_UNKNOWN,
	KIND_NO_ENTRY,		/* no replacements */
};

static const int entry_results[] = {
	[KIND_PART] = -EINVAL,
	[KIND_OLD_SEQ] = -ESTALE,
	[KIND_DIRTY_SLOT] = -ESTALE,
	[KIND_NO_SLOT] = -EINVAL,
	[KIND_UNKNOWN] = -EINVAL,
	[KIND_NO_ENTRY] = 0,
};

static int do_write(struct world *w, u64 block, u32 offset, u32 len, u8 flags)
{
	struct overlay *ov = fake_open(w->vol, block, flags);
	struct bio_data bd = { .ov = ov, .offset = offset, .sectors = len };

	if (!ov)
		return -ENOSPC;
	if (len)
		overlay_written(w->c, &bd);
	else
		slot_changed(w->c, ov->slot, w->vol);
	return 0;
}

static int do_cut(struct world *w, u32 flags)
{
	struct dm_dedup_cut cut = { .volume = 77, .flags = flags };
	int r = cache_channel_ops.cut(w->c, &cut);

	return r ?: cut.cut;
}

static int do_list(struct world *w, u64 cut, struct dm_dedup_cut_entry *entries)
{
	struct dm_dedup_batch b = { .volume = 77, .cut = cut, .count = BLOCKS };
	int r = cache_channel_ops.list_cut(w->c, &b, entries);

	return r ?: b.count;
}

static void fill_replacement(struct world *w, const struct dm_dedup_cut_entry *ce, u32 kind,
			     struct dm_dedup_replacement *e)
{
	*e = (struct dm_dedup_replacement){ .block = ce->block, .slot = ce->slot, .seq = ce->seq };
	e->kind = kind;
	switch (kind) {
	case KIND_SLOT:
		e->slot = fake_alloc_clean(w->c);
		e->seq = w->c->slots[e->slot].seq;
		break;
	case KIND_OLD_SEQ:
		e->seq--;
		fallthrough;
	case KIND_PART:
		e->kind = KIND_OWN;
		break;
	case KIND_DIRTY_SLOT:
		e->kind = KIND_SLOT;
		break;
	case KIND_NO_SLOT:
		e->kind = KIND_SLOT;
		e->slot = FAKE_SLOTS;
		break;
	}
}

static int do_commit(struct kunit *test, struct world *w, u64 arg, u32 kind, u32 flags, u64 epoch)
{
	struct dm_dedup_cut_entry *list = kunit_kcalloc(test, BLOCKS, sizeof(*list), GFP_KERNEL);
	struct dm_dedup_replacement *e = kunit_kcalloc(test, BLOCKS, sizeof(*e), GFP_KERNEL);
	struct dm_dedup_batch b = {
		.volume = 77, .cut = arg & ~OTHER, .flags = flags, .lease_epoch = epoch,
		.root = { arg & 0xff, arg & OTHER ? 1 : 0 },
	};
	int i, n, r;

	KUNIT_ASSERT_NOT_NULL(test, list);
	KUNIT_ASSERT_NOT_NULL(test, e);
	n = kind == KIND_NO_ENTRY ? 0 : do_list(w, b.cut, list);
	b.count = max(n, 0);
	for (i = 0; i < n; i++)
		fill_replacement(w, &list[i], kind, &e[i]);
	r = cache_channel_ops.commit(w->c, &b, e);
	for (i = 0; i < n && !r; i++)
		KUNIT_EXPECT_EQ(test, e[i].result, entry_results[kind]);
	return r;
}

static int do_call(struct world *w, enum step op)
{
	struct dm_dedup_volume_call call = { .volume = 77, .lease_epoch = EPOCH };

	if (op == FENCE)
		return cache_channel_ops.fence(w->c, &call);
	if (op == DISCARD)
		call.flags = DM_DEDUP_RELEASE_DISCARD;
	return cache_channel_ops.release(w->c, &call);
}

static int do_step(struct kunit *test, struct world *w, enum step op, u64 arg, u32 kind)
{
	struct dm_dedup_cut_entry *list;

	switch (op) {
	case SOME:
		return do_write(w, arg, 2, 3, 0);
	case FILL:
		return do_write(w, arg, 0, w->c->block_sectors, 0);
	case ZERO:
		return do_write(w, arg, 0, 0, DEDUP_OVERLAY_BASE_ZERO);
	case CUT:
		return do_cut(w, 0);
	case RECOVER:
		return do_cut(w, DM_DEDUP_CUT_RECOVER);
	case LIST:
		list = kunit_kcalloc(test, BLOCKS, sizeof(*list), GFP_KERNEL);
		return list ? do_list(w, arg, list) : -ENOMEM;
	case COMMIT:
		return do_commit(test, w, arg, kind, 0, EPOCH);
	case MORE:
		return do_commit(test, w, arg, kind, DM_DEDUP_COMMIT_MORE, EPOCH);
	case STALE:
		return do_commit(test, w, arg, kind, 0, EPOCH - 1);
	case FENCE:
	case RELEASE:
	case DISCARD:
		return do_call(w, op);
	case SYNC:
		return dedup_store_sync(w->c->store);
	case CRASH:
		return crash(test, w);
	case BREAK:
		WRITE_ONCE(w->d->broken, true);
		return 0;
	case END:
		break;
	}
	return 0;
}

/* @dirty: overlays in the end; @counter: of cuts; @base: what block 1 has, below its overlays. */
static const struct {
	const char *what;
	struct {
		enum step op;
		u64 arg;
		u32 kind;
		int want;
	} steps[12];
	u64 dirty, counter;
	enum entry_kind base;
} cases[] = {
	{ "nothing is written", {
		{ CUT, 0, 0, 0 }, { LIST, 1, 0, -EINVAL }, { LIST, 0, 0, -EINVAL },
		{ COMMIT, 1, KIND_NO_ENTRY, -EINVAL }, { COMMIT, 0, KIND_NO_ENTRY, -EINVAL },
	  }, 0, 1, ENTRY_NONE },
	{ "a cut is the same until its COMMIT, and that is done once", {
		{ SOME, 1 }, { CUT, 0, 0, 1 }, { CUT, 0, 0, 1 }, { LIST, 1, 0, 1 },
		{ COMMIT, 1, KIND_NONE }, { COMMIT, 1, KIND_NO_ENTRY, -EALREADY },
		{ LIST, 1, 0, -EINVAL }, { CUT, 0, 0, 0 },
	  }, 0, 2, ENTRY_NONE },
	{ "what is written above a cut is not in it", {
		{ SOME, 1 }, { CUT, 0, 0, 1 }, { SOME, 1 }, { SOME, 2 }, { LIST, 1, 0, 1 },
		{ CUT, 0, 0, 1 }, { COMMIT, 1, KIND_NONE }, { CUT, 0, 0, 2 }, { LIST, 2, 0, 2 },
		{ LIST, 1, 0, -EINVAL }, { COMMIT, 1, KIND_NO_ENTRY, -EALREADY },
	  }, 2, 3, ENTRY_NONE },
	{ "a cut outlives a crash", {
		{ SOME, 1 }, { FILL, 2 }, { CUT, 0, 0, 1 }, { SOME, 1 }, { SYNC }, { CRASH },
		{ CUT, 0, 0, 1 }, { LIST, 1, 0, 2 },
	  }, 3, 2, ENTRY_NONE },
	{ "overlays of a committed cut are void after a crash", {
		{ FILL, 1 }, { FILL, 2 }, { CUT, 0, 0, 1 }, { SOME, 3 }, { SYNC },
		{ COMMIT, 1, KIND_NO_ENTRY }, { CRASH }, { LIST, 1, 0, -EINVAL },
		{ COMMIT, 1, KIND_NO_ENTRY, -EALREADY }, { CUT, 0, 0, 2 }, { LIST, 2, 0, 1 },
	  }, 1, 3, ENTRY_NONE },
	{ "of another epoch, another cut, another root", {
		{ SOME, 1 }, { CUT, 0, 0, 1 }, { STALE, 1, KIND_NO_ENTRY, -ESTALE },
		{ COMMIT, 2, KIND_NO_ENTRY, -EINVAL }, { COMMIT, 1, KIND_NO_ENTRY },
		{ COMMIT, 1 | OTHER, KIND_NO_ENTRY, -EINVAL },
		{ STALE, 1, KIND_NO_ENTRY, -ESTALE },
	  }, 0, 2, ENTRY_NONE },
	{ "replaced by zeros", {
		{ SOME, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_ZERO },
	  }, 0, 2, ENTRY_ZERO },
	{ "replaced by another slot", {
		{ SOME, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_SLOT },
	  }, 0, 2, ENTRY_BASE },
	{ "replaced by its own slot, which outlives a crash as a clean one", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_OWN },
	  }, 0, 2, ENTRY_BASE },
	{ "its own slot below what was written since", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { SOME, 1 }, { COMMIT, 1, KIND_OWN },
	  }, 1, 2, ENTRY_BASE },
	{ "its own slot, incomplete", {
		{ SOME, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_PART },
	  }, 0, 2, ENTRY_NONE },
	{ "its own slot, of an older use", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_OLD_SEQ },
	  }, 0, 2, ENTRY_NONE },
	{ "a slot that is not clean", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_DIRTY_SLOT },
	  }, 0, 2, ENTRY_NONE },
	{ "a slot beyond the end", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_NO_SLOT },
	  }, 0, 2, ENTRY_NONE },
	{ "a kind that is none", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { COMMIT, 1, KIND_UNKNOWN },
	  }, 0, 2, ENTRY_NONE },
	{ "in parts", {
		{ FILL, 1 }, { FILL, 2 }, { CUT, 0, 0, 1 }, { MORE, 1, KIND_OWN },
		{ LIST, 1, 0, 2 }, { COMMIT, 1, KIND_NO_ENTRY },
	  }, 0, 2, ENTRY_BASE },
	{ "the last part counts", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { MORE, 1, KIND_OWN }, { COMMIT, 1, KIND_ZERO },
	  }, 0, 2, ENTRY_ZERO },
	{ "a part that is refused takes what it should have replaced with it", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { MORE, 1, KIND_OWN }, { COMMIT, 1, KIND_OLD_SEQ },
	  }, 0, 2, ENTRY_NONE },
	{ "a crash between the parts forgets the first", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { MORE, 1, KIND_OWN }, { CRASH },
		{ CUT, 0, 0, 1 }, { COMMIT, 1, KIND_NO_ENTRY },
	  }, 0, 2, ENTRY_NONE },
	{ "a zeroed block", {
		{ ZERO, 1 }, { CUT, 0, 0, 1 }, { LIST, 1, 0, 1 }, { CRASH }, { LIST, 1, 0, 1 },
		{ COMMIT, 1, KIND_ZERO },
	  }, 0, 2, ENTRY_ZERO },
	{ "fenced: only a recovery may cut", {
		{ SOME, 1 }, { FENCE }, { CUT, 0, 0, -ESHUTDOWN }, { RECOVER, 0, 0, 1 }, { CRASH },
		{ CUT, 0, 0, -ESHUTDOWN }, { RECOVER, 0, 0, 1 }, { LIST, 1, 0, 1 },
		{ COMMIT, 1, KIND_NO_ENTRY }, { RELEASE },
	  }, 0, 2, ENTRY_NONE },
	{ "what is dirty is not released, and not discarded", {
		{ SOME, 1 }, { RELEASE, 0, 0, -EBUSY }, { DISCARD, 0, 0, -EBUSY },
		{ CUT, 0, 0, 1 }, { RELEASE, 0, 0, -EBUSY }, { COMMIT, 1, KIND_NO_ENTRY },
		{ RELEASE }, { CUT, 0, 0, -ENOENT },
	  }, 0, 2, ENTRY_NONE },
	{ "what is fenced may be discarded", {
		{ SOME, 1 }, { CUT, 0, 0, 1 }, { SOME, 1 }, { FENCE }, { RELEASE, 0, 0, -EBUSY },
		{ DISCARD }, { COMMIT, 1, KIND_NO_ENTRY, -ENOENT },
	  }, 0, 2, ENTRY_NONE },
	{ "a COMMIT that fails is not done, however often it is repeated", {
		{ FILL, 1 }, { CUT, 0, 0, 1 }, { BREAK }, { COMMIT, 1, KIND_OWN, -EIO },
		{ COMMIT, 1, KIND_NO_ENTRY, -EIO },
	  }, 1, 2, ENTRY_NONE },
	{ "a CUT that fails is the same again after a crash", {
		{ SOME, 1 }, { SYNC }, { BREAK }, { CUT, 0, 0, -EIO }, { CRASH }, { CUT, 0, 0, 1 },
	  }, 1, 2, ENTRY_NONE },
};

static void cut_table_test(struct kunit *test)
{
	struct world w;
	unsigned int i, s;
	struct view view;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		world_init(test, &w);
		for (s = 0; s < ARRAY_SIZE(cases[i].steps) && cases[i].steps[s].op; s++)
			KUNIT_EXPECT_EQ_MSG(test, do_step(test, &w, cases[i].steps[s].op,
							  cases[i].steps[s].arg,
							  cases[i].steps[s].kind),
					    cases[i].steps[s].want, "%s: step %u", cases[i].what, s);
		KUNIT_EXPECT_EQ_MSG(test, w.vol->nr_dirty, cases[i].dirty, "%s", cases[i].what);
		KUNIT_EXPECT_EQ_MSG(test, w.vol->rec.cut_counter, cases[i].counter, "%s",
				    cases[i].what);
		KUNIT_EXPECT_EQ_MSG(test, w.vol->cut_counter, cases[i].counter, "%s",
				    cases[i].what);
		view_load(w.vol, 1, &view);
		KUNIT_EXPECT_EQ_MSG(test, (int)view.base, (int)cases[i].base, "%s", cases[i].what);
		KUNIT_EXPECT_TRUE_MSG(test, xa_empty(&w.vol->staged), "%s", cases[i].what);
		/* It may have been released. */
		volume_put(w.vol);
	}
}

/* An agent may have named any cut as the committed one: their numbers must not begin again. */
static void cut_last_test(struct kunit *test)
{
	struct world w;

	world_init(test, &w);
	w.vol->rec.committed_cut = DEDUP_MAX_CUT;
	w.vol->rec.cut_counter = w.vol->cut_counter = DEDUP_MAX_CUT + 1;
	KUNIT_EXPECT_EQ(test, do_write(&w, 1, 0, 8, 0), 0);
	KUNIT_EXPECT_EQ(test, do_cut(&w, 0), -EOVERFLOW);
	KUNIT_EXPECT_EQ(test, w.vol->rec.cut_counter, DEDUP_MAX_CUT + 1);
	volume_put(w.vol);
}

/* Every allocation of a COMMIT fails once: that block is fetched when it is needed, no more. */
static void cut_nomem_test(struct kunit *test)
{
	unsigned int nth, failed = 0, i;
	bool hit = true;

	for (nth = 1; hit; nth++) {
		struct dm_dedup_cut_entry *list;
		struct dm_dedup_replacement e[2];
		struct dm_dedup_batch b = {
			.volume = 77, .cut = 1, .lease_epoch = EPOCH, .root = { 1 }, .count = 2,
		};
		struct world w;
		struct view view;
		u64 before;

		KUNIT_ASSERT_LT(test, nth, 30U);
		world_init(test, &w);
		list = kunit_kcalloc(test, BLOCKS, sizeof(*list), GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, list);
		do_write(&w, 1, 0, w.c->block_sectors, 0);
		do_write(&w, 2, 0, w.c->block_sectors, 0);
		KUNIT_ASSERT_EQ(test, do_cut(&w, 0), 1);
		KUNIT_ASSERT_EQ(test, do_list(&w, 1, list), 2);
		for (i = 0; i < 2; i++)
			fill_replacement(&w, &list[i], KIND_OWN, &e[i]);
		before = atomic64_read(&w.c->memory);
		if (!fake_fail_alloc(nth)) {
			volume_put(w.vol);
			kunit_skip(test, "allocations that may sleep do not fail here");
		}
		KUNIT_EXPECT_EQ(test, cache_channel_ops.commit(w.c, &b, e), 0);
		hit = fake_fail_none();
		for (i = 0; i < 2; i++) {
			view_load(w.vol, e[i].block, &view);
			KUNIT_EXPECT_EQ(test, (int)view.base,
					e[i].result ? ENTRY_NONE : ENTRY_BASE);
			if (e[i].result)
				KUNIT_EXPECT_EQ(test, e[i].result, -ENOMEM);
			failed += !!e[i].result;
		}
		KUNIT_EXPECT_EQ(test, w.vol->nr_dirty, 0ULL);
		volume_put(w.vol);
		KUNIT_EXPECT_EQ(test, (u64)atomic64_read(&w.c->memory), before);
	}
	KUNIT_EXPECT_GE(test, failed, 1U);
}

/* ---- while it settles ---- */

struct committer {
	struct work_struct work;
	struct cache *c;
	struct dm_dedup_batch b;
	struct dm_dedup_replacement e;
	int r;
};

static void committer_work(struct work_struct *work)
{
	struct committer *m = container_of(work, struct committer, work);

	m->r = cache_channel_ops.commit(m->c, &m->b, &m->e);
}

static const struct {
	const char *what;
	bool unreadable;	/* while readers are drained */
	u32 bad;		/* slots that are bad already */
	bool again;		/* is it of use to read again? */
	enum entry_kind base;	/* then, and when it has settled */
	enum slot_state state;	/* when it has settled */
} settles[] = {
	{ "all is well", false, 0, true, ENTRY_BASE, SLOT_CLEAN },
	{ "cannot be read", true, 0, true, ENTRY_NONE, SLOT_FREEING },
	{ "cannot be read, like too many", true, FAKE_RESERVE, false, ENTRY_BASE, SLOT_CLEAN },
};

/*
 * From the moment that an overlay's own slot is its block's base until the readers of the overlay
 * have gone it is not CLEAN yet. Who cannot read it then has it fetched again.
 */
static void cut_settle_test(struct kunit *test)
{
	unsigned int i, tries;

	for (i = 0; i < ARRAY_SIZE(settles); i++) {
		struct dm_dedup_cut_entry *list;
		struct committer m;
		unsigned int epoch;
		struct world w;
		struct view view;
		u32 slot;

		world_init(test, &w);
		list = kunit_kcalloc(test, BLOCKS, sizeof(*list), GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, list);
		do_write(&w, 1, 0, w.c->block_sectors, 0);
		KUNIT_ASSERT_EQ(test, do_cut(&w, 0), 1);
		KUNIT_ASSERT_EQ(test, do_list(&w, 1, list), 1);
		slots_bad(w.c, FAKE_SLOTS - settles[i].bad, settles[i].bad);
		slot = list[0].slot;
		m = (struct committer){ .c = w.c, .b = {
			.volume = 77, .cut = 1, .lease_epoch = EPOCH, .root = { 1 }, .count = 1,
		} };
		fill_replacement(&w, &list[0], KIND_OWN, &m.e);
		INIT_WORK_ONSTACK(&m.work, committer_work);
		epoch = inflight_enter(&w.c->inflight);
		schedule_work(&m.work);
		for (tries = 0; entry_kind(volume_entry(w.vol, 1)) != ENTRY_BASE && tries < 5000;
		     tries++)
			msleep(20);
		msleep(20);
		KUNIT_EXPECT_EQ(test, (int)w.c->slots[slot].state, SLOT_DIRTY);
		if (settles[i].unreadable) {
			KUNIT_EXPECT_EQ_MSG(test, slot_unreadable(w.c, slot), settles[i].again,
					    "%s", settles[i].what);
			/* The next reader finds it done, or as hopeless. */
			KUNIT_EXPECT_EQ_MSG(test, slot_unreadable(w.c, slot), settles[i].again,
					    "%s", settles[i].what);
		}
		view_load(w.vol, 1, &view);
		KUNIT_EXPECT_EQ_MSG(test, (int)view.base, (int)settles[i].base, "%s",
				    settles[i].what);
		inflight_leave(&w.c->inflight, epoch);
		flush_work(&m.work);
		destroy_work_on_stack(&m.work);
		KUNIT_EXPECT_EQ(test, m.r, 0);
		KUNIT_EXPECT_EQ_MSG(test, (int)w.c->slots[slot].state, (int)settles[i].state, "%s",
				    settles[i].what);
		view_load(w.vol, 1, &view);
		KUNIT_EXPECT_EQ_MSG(test, (int)view.base, (int)settles[i].base, "%s",
				    settles[i].what);
		volume_put(w.vol);
	}
}

static struct kunit_case cut_cases[] = {
	KUNIT_CASE(cut_table_test),
	KUNIT_CASE(cut_last_test),
	KUNIT_CASE(cut_nomem_test),
	KUNIT_CASE(cut_settle_test),
	{}
};

static struct kunit_suite cut_suite = {
	.name = "dm_dedup_cut",
	.test_cases = cut_cases,
};

kunit_test_suite(cut_suite);
