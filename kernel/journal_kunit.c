// SPDX-License-Identifier: GPL-2.0-only
/* Commits, checkpoints and recovery on a disk in memory; tests/unit cuts its power as well. */
#include <kunit/test.h>
#include <linux/module.h>
#include "fake_kunit.h"
#include "ledger.h"

#define BLOCK_SHIFT	12

struct world {
	struct fake_disk *d;
	struct dedup_ledger ledger;
	u64 next;		/* slot to hand out */
	u64 last;
	u64 loaded;
	u64 sum;
};

static bool hand_out(void *ctx, struct dedup_change *change)
{
	struct world *w = ctx;

	if (w->next == w->last)
		return false;
	memset(change, 0, sizeof(*change));
	change->kind = DEDUP_CHANGE_SLOT;
	change->index = w->next++;
	change->slot.state = DEDUP_SLOT_CLEAN;
	change->slot.seq = change->index + 1;
	return true;
}

static int load_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct world *w = ctx;

	w->loaded++;
	w->sum += rec->seq;
	return rec->seq == slot + 1 ? 0 : -EUCLEAN;
}

static int no_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	return -EUCLEAN;
}

static int open_and_load(struct world *w)
{
	struct dedup_visitor v = { .volume = no_volume, .slot = load_slot, .ctx = w };
	int r = dedup_ledger_open(&w->ledger, &w->d->disk, NULL);

	if (r)
		return r;
	w->loaded = 0;
	w->sum = 0;
	r = dedup_ledger_load(&w->ledger, &v, NULL);
	if (r)
		dedup_ledger_close(&w->ledger);
	return r;
}

static int commit_to(struct world *w, u64 last)
{
	bool more;
	u32 nr;
	int r;

	w->last = last;
	do {
		r = dedup_ledger_commit(&w->ledger, hand_out, w, &nr, &more);
	} while (!r && more);
	return r;
}

static int world_init(struct kunit *test)
{
	struct world *w = kunit_kzalloc(test, sizeof(*w), GFP_KERNEL);

	if (!w)
		return -ENOMEM;
	test->priv = w;
	w->d = fake_disk(test, BLOCK_SHIFT, 1000);
	return 0;
}

static void world_exit(struct kunit *test)
{
	struct world *w = test->priv;

	if (w)
		dedup_ledger_close(&w->ledger);
}

/* A kernel that dies after each of many commits, with checkpoints between. */
static void test_recovery(struct kunit *test)
{
	static const u8 incarnation[DEDUP_UUID_BYTES] = { 1, 2, 3 };
	struct world *w = test->priv;
	u64 step;

	for (step = 1; step < 20; step++) {
		KUNIT_ASSERT_EQ(test, open_and_load(w), 0);
		KUNIT_EXPECT_EQ(test, w->loaded, w->next);
		KUNIT_EXPECT_EQ(test, w->sum, w->next * (w->next + 1) / 2);
		KUNIT_EXPECT_EQ(test, dedup_ledger_next_incarnation(&w->ledger), (u32)step);
		KUNIT_ASSERT_EQ(test, dedup_ledger_start(&w->ledger, incarnation, NULL), 0);
		KUNIT_ASSERT_EQ(test, commit_to(w, w->next + step), 0);
		if (step % 3 == 0) {
			dedup_ledger_freeze(&w->ledger);
			KUNIT_ASSERT_EQ(test, commit_to(w, w->next + 2), 0);
			KUNIT_ASSERT_EQ(test, dedup_ledger_write_tables(&w->ledger, NULL), 0);
			KUNIT_ASSERT_EQ(test, commit_to(w, w->next + 3), 0);
			KUNIT_ASSERT_EQ(test, dedup_ledger_finish(&w->ledger), 0);
		}
		if (step % 4 == 0)
			KUNIT_ASSERT_EQ(test, dedup_ledger_stop(&w->ledger, NULL), 0);
		dedup_ledger_close(&w->ledger);
	}
}

/* A byte of a page that counts is never overlooked. */
static void test_rot(struct kunit *test)
{
	static const u8 incarnation[DEDUP_UUID_BYTES] = { 1, 2, 3 };
	struct world *w = test->priv;
	const struct dedup_disk_entry *e;
	u64 at;

	KUNIT_ASSERT_EQ(test, open_and_load(w), 0);
	KUNIT_ASSERT_EQ(test, dedup_ledger_start(&w->ledger, incarnation, NULL), 0);
	KUNIT_ASSERT_EQ(test, commit_to(w, 10), 0);
	KUNIT_ASSERT_EQ(test, dedup_ledger_stop(&w->ledger, NULL), 0);
	e = &w->ledger.table.dir[w->d->sb.volume_pages];
	at = w->d->sb.table_start + ((u64)le32_to_cpu(e->place) * w->d->sb.table_pages +
				  w->d->sb.volume_pages) * DEDUP_PAGE_BYTES;
	dedup_ledger_close(&w->ledger);

	w->d->data[at + 100] ^= 1;
	KUNIT_EXPECT_EQ(test, open_and_load(w), -EUCLEAN);
	w->d->data[at + 100] ^= 1;
	w->d->data[DEDUP_SUPER_OFFSET] ^= 1;
	KUNIT_EXPECT_EQ(test, open_and_load(w), 0);
	dedup_ledger_close(&w->ledger);
	w->d->data[dedup_super_b_offset(w->d->disk.bytes) + 50] ^= 1;
	KUNIT_EXPECT_EQ(test, open_and_load(w), -EUCLEAN);
}

/*
 * Each allocation of an open fails once, and each of a start: -ENOMEM, nothing is leaked, and all that
 * was committed is there for the next try. (Most are large, and come from vmalloc() instead then.)
 */
static void test_nomem(struct kunit *test)
{
	static const u8 incarnation[DEDUP_UUID_BYTES] = { 1, 2, 3 };
	struct world *w = test->priv;
	unsigned int nth, failed = 0;
	bool hit = true;
	int r;

	KUNIT_ASSERT_EQ(test, open_and_load(w), 0);
	KUNIT_ASSERT_EQ(test, dedup_ledger_start(&w->ledger, incarnation, NULL), 0);
	KUNIT_ASSERT_EQ(test, commit_to(w, 300), 0);
	dedup_ledger_close(&w->ledger);
	for (nth = 1; hit; nth++) {
		KUNIT_ASSERT_LT(test, nth, 500U);
		if (!fake_fail_alloc(nth))
			kunit_skip(test, "allocations that may sleep do not fail here");
		r = open_and_load(w);
		hit = fake_fail_none();
		failed += !!r;
		if (r) {
			KUNIT_ASSERT_EQ(test, r, -ENOMEM);
			continue;
		}
		KUNIT_EXPECT_EQ(test, w->loaded, 300ULL);
		dedup_ledger_close(&w->ledger);
	}
	KUNIT_EXPECT_GE(test, failed, 1U);

	for (nth = 1, hit = true, failed = 0; hit; nth++) {
		KUNIT_ASSERT_LT(test, nth, 500U);
		KUNIT_ASSERT_EQ(test, open_and_load(w), 0);
		KUNIT_EXPECT_EQ(test, w->loaded, 300ULL);
		fake_fail_alloc(nth);
		r = dedup_ledger_start(&w->ledger, incarnation, NULL);
		hit = fake_fail_none();
		failed += !!r;
		if (r)
			KUNIT_ASSERT_EQ(test, r, -ENOMEM);
		KUNIT_EXPECT_EQ(test, w->ledger.writable, !r);
		dedup_ledger_close(&w->ledger);
	}
	KUNIT_EXPECT_GE(test, failed, 1U);
	KUNIT_ASSERT_EQ(test, open_and_load(w), 0);
	KUNIT_EXPECT_EQ(test, w->sum, 300ULL * 301 / 2);
}

static struct kunit_case journal_tests[] = {
	KUNIT_CASE(test_recovery),
	KUNIT_CASE(test_rot),
	KUNIT_CASE(test_nomem),
	{}
};

static struct kunit_suite journal_suite = {
	.name = "dedup-journal",
	.init = world_init,
	.exit = world_exit,
	.test_cases = journal_tests,
};

kunit_test_suite(journal_suite);
