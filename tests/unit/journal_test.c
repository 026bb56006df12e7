// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Journals that no crash of an honest disk leaves, but a lost, a misdirected or an old write does:
 * an append of another history in the place, and with the sequence, of the right one. What it
 * says must never be believed, nor what follows a hole be forgotten.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "ledger.h"

#define COMMITS 5
#define SHIFT	12

/* One history: commit n gives slot n the sequence tag + n; @at, @len: where its append went. */
struct history {
	u8 *data;
	u64 bytes, tag;
	struct dedup_super sb;
	struct dedup_disk disk;
	struct dedup_ledger l;
	u32 commit;
	bool handed_out;
	u64 at[COMMITS], len[COMMITS];
};

static int mem_read(void *ctx, const struct dedup_io *ios, unsigned int n)
{
	struct history *h = ctx;

	for (unsigned int i = 0; i < n; i++)
		memcpy(ios[i].buf, h->data + ios[i].offset, ios[i].len);
	return 0;
}

static int mem_write(void *ctx, const struct dedup_io *ios, unsigned int n, bool fua)
{
	struct history *h = ctx;

	(void)fua;
	for (unsigned int i = 0; i < n; i++) {
		memcpy(h->data + ios[i].offset, ios[i].buf, ios[i].len);
		if (h->handed_out) {
			h->at[h->commit] = ios[0].offset;
			h->len[h->commit] = ios[i].offset + ios[i].len - ios[0].offset;
		}
	}
	return 0;
}

static int mem_flush(void *ctx)
{
	(void)ctx;
	return 0;
}

static const struct dedup_disk_ops mem_ops = { mem_read, mem_write, mem_flush };

static bool hand_out(void *ctx, struct dedup_change *change)
{
	struct history *h = ctx;

	if (h->handed_out)
		return false;
	h->handed_out = true;
	memset(change, 0, sizeof(*change));
	change->kind = DEDUP_CHANGE_SLOT;
	change->index = h->commit;
	change->slot.state = DEDUP_SLOT_CLEAN;
	change->slot.seq = h->tag + h->commit;
	return true;
}

static int no_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	(void)ctx, (void)index, (void)rec;
	return 0;
}

struct loaded {
	u64 seq[COMMITS];
};

static int load_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct loaded *found = ctx;

	assert_true(slot < COMMITS);
	found->seq[slot] = rec->seq;
	return 0;
}

static int load(struct history *h, struct loaded *found)
{
	struct dedup_visitor v = { .volume = no_volume, .slot = load_slot, .ctx = found };
	int r = dedup_ledger_open(&h->l, &h->disk, NULL);

	memset(found, 0, sizeof(*found));
	if (!r)
		r = dedup_ledger_load(&h->l, &v, NULL);
	return r;
}

/* The kernel dies after the last commit. Histories of two tags differ in nothing else. */
static void live(struct history *h, u64 tag, u8 incarnation)
{
	u8 uuid[DEDUP_UUID_BYTES] = { incarnation };
	struct loaded found;
	bool more;
	u32 nr;

	memset(h, 0, sizeof(*h));
	h->tag = tag;
	h->bytes = dedup_min_bytes(SHIFT) + (64U << SHIFT);
	h->data = calloc(1, h->bytes);
	h->disk = (struct dedup_disk){ &mem_ops, h, h->bytes };
	assert_int_equal(dedup_layout(&h->sb, h->bytes, SHIFT), 0);
	assert_int_equal(dedup_ledger_format(&h->disk, &h->sb), 0);
	assert_int_equal(load(h, &found), 0);
	assert_int_equal(dedup_ledger_start(&h->l, uuid, NULL), 0);
	for (h->commit = 0; h->commit < COMMITS; h->commit++) {
		h->handed_out = false;
		assert_int_equal(dedup_ledger_commit(&h->l, hand_out, h, &nr, &more), 0);
	}
	h->handed_out = false;
	dedup_ledger_close(&h->l);
}

/* May the journal say this? Nothing of another history; and no slot without those before it. */
static void check(struct history *h, u32 least)
{
	struct loaded found;
	u32 n = 0;

	if (!load(h, &found)) {
		while (n < COMMITS && found.seq[n] == h->tag + n)
			n++;
		assert_true(n >= least);
		for (; n < COMMITS; n++)
			assert_int_equal(found.seq[n], 0);
	}
	dedup_ledger_close(&h->l);
}

static void end(struct history *h)
{
	free(h->data);
}

/* Every append of one history in the place of the other's. */
static void splice(u8 incarnation)
{
	for (u32 n = 0; n < COMMITS; n++) {
		struct history a, b;

		live(&a, 1000, 1);
		live(&b, 2000, incarnation);
		assert_int_equal(a.at[n], b.at[n]);
		memcpy(a.data + a.at[n], b.data + b.at[n], a.len[n]);
		check(&a, n);
		end(&a);
		end(&b);
	}
}

static void test_other_history(void **state)
{
	(void)state;
	splice(1);
}

/* After a crash the next incarnation uses the sequences again. */
static void test_other_incarnation(void **state)
{
	(void)state;
	splice(2);
}

/* A hole before a valid append is an error, not the end. */
static void test_hole(void **state)
{
	struct loaded found;
	struct history a;

	(void)state;
	for (u32 n = 0; n < COMMITS; n++) {
		live(&a, 1000, 1);
		memset(a.data + a.at[n], 0, a.len[n]);
		if (n + 1 < COMMITS)
			assert_int_equal(load(&a, &found), -EUCLEAN);
		else
			assert_int_equal(load(&a, &found), 0);
		dedup_ledger_close(&a.l);
		end(&a);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_other_history),
		cmocka_unit_test(test_other_incarnation),
		cmocka_unit_test(test_hole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
