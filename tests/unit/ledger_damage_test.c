// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ledger on a disk that lies. Each page of metadata in turn is damaged in each way in which
 * disks do it: a bit flips, the page is lost (zeros), it is torn (half of what it was before), a
 * write to it was lost (what it was before), a write meant for another page lands on it. Then the
 * cache opens with exactly what was committed, or is refused; it never opens with anything else.
 *
 * One exception is stated in Documentation/on-disk.rst: while the cache is open, damage to the last
 * append looks like an append that the power cut, and the state before it is recovered.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "ledger.h"
#include "sim_disk.h"

#define PAGE	DEDUP_PAGE_BYTES
#define DAMAGES 5

enum damage { FLIP, ZERO, TEAR, LOSE, MISDIRECT };

struct world {
	struct sim_disk sim;
	struct dedup_super sb;
	struct dedup_ledger l;
	u8 *slots;	/* records, encoded: equal bytes, equal state */
	u32 left;	/* changes to hand out */
	u64 seq;
	u32 committed;	/* checksums of the state, and of the one before the last commit */
	u32 before;
	u8 *older;	/* the disk a few commits and a checkpoint ago */
	u64 opened;
	u64 refused;
	u64 shortened;	/* opened without the last append */
};

static bool hand_out(void *ctx, struct dedup_change *change)
{
	struct world *w = ctx;
	struct dedup_slot_rec *rec = &change->slot;

	if (!w->left)
		return false;
	w->left--;
	memset(change, 0, sizeof(*change));
	change->kind = DEDUP_CHANGE_SLOT;
	change->index = sim_random(&w->sim) % w->sb.nr_slots;
	rec->state = sim_random(&w->sim) % 3;
	if (rec->state)
		rec->seq = ++w->seq;
	if (rec->state == DEDUP_SLOT_CLEAN)
		memcpy(rec->fp, &w->seq, sizeof(w->seq));
	if (rec->state == DEDUP_SLOT_DIRTY) {
		rec->volume = 1;
		rec->block = w->seq;
		rec->cut = 1;
		rec->bitmap[0] = w->seq;
	}
	dedup_slot_encode(&w->sb, w->slots + change->index * w->sb.slot_bytes, rec);
	return true;
}

static void commit(struct world *w, u32 changes)
{
	bool more;
	u32 nr;

	w->before = w->committed;
	w->left = changes;
	assert_int_equal(dedup_ledger_commit(&w->l, hand_out, w, &nr, &more), 0);
	assert_false(more);
	w->committed = dedup_crc32c(~0U, w->slots, w->sb.nr_slots * w->sb.slot_bytes);
}

static void checkpoint(struct world *w)
{
	struct dedup_why why;

	dedup_ledger_freeze(&w->l);
	commit(w, 5);
	assert_int_equal(dedup_ledger_write_tables(&w->l, &why), 0);
	commit(w, 5);
	assert_int_equal(dedup_ledger_finish(&w->l), 0);
}

static void some_life(struct world *w)
{
	for (int i = 0; i < 12; i++) {
		commit(w, 1 + sim_random(&w->sim) % w->sb.max_changes);
		if (!dedup_ledger_has_room(&w->l) || i % 5 == 4)
			checkpoint(w);
	}
}

static void start(struct world *w)
{
	static const u8 uuid[16] = "an incarnation";
	struct dedup_why why;

	if (dedup_ledger_open(&w->l, &w->sim.disk, &why) || dedup_ledger_start(&w->l, uuid, &why))
		fail_msg("open: %s", why.text);
}

static void world_init(struct world *w, u32 journal_pages, u64 seed)
{
	u64 bytes = dedup_min_bytes(12) + (600 << 12);

	memset(w, 0, sizeof(*w));
	assert_int_equal(sim_disk_init(&w->sim, bytes, seed), 0);
	assert_int_equal(dedup_layout_journal(&w->sb, bytes, 12, journal_pages), 0);
	memcpy(w->sb.cache_uuid, "damaged damaged", 16);
	assert_int_equal(dedup_ledger_format(&w->sim.disk, &w->sb), 0);
	w->slots = calloc(w->sb.nr_slots, w->sb.slot_bytes);
	w->older = malloc(bytes);
	assert_true(w->slots && w->older);
	w->committed = dedup_crc32c(~0U, w->slots, w->sb.nr_slots * w->sb.slot_bytes);
	w->before = w->committed;
	start(w);
	some_life(w);
	memcpy(w->older, w->sim.now, bytes);
	some_life(w);
	/* Something in the journal to replay, and a tail of changes. */
	commit(w, 7);
	commit(w, w->sb.max_changes);
}

static void world_exit(struct world *w)
{
	sim_disk_exit(&w->sim);
	free(w->slots);
	free(w->older);
}

/* ---- what a damaged disk opens with ---- */

struct load {
	struct world *w;
	u8 *slots;
};

static int load_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	fail_msg("a volume that never was: %llu", index);
	return 0;
}

static int load_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct load *load = ctx;
	const struct dedup_super *sb = &load->w->sb;

	assert_true(slot < sb->nr_slots);
	dedup_slot_encode(sb, load->slots + slot * sb->slot_bytes, rec);
	return 0;
}

/* True: it opened, with the state @crc. */
static bool open_damaged(struct world *w, u32 *crc, struct dedup_why *why)
{
	struct load load = { w, calloc(w->sb.nr_slots, w->sb.slot_bytes) };
	struct dedup_visitor v = { .volume = load_volume, .slot = load_slot, .ctx = &load };
	struct dedup_ledger l;
	int r;

	assert_non_null(load.slots);
	r = dedup_ledger_open(&l, &w->sim.disk, why);
	if (!r) {
		r = dedup_ledger_load(&l, &v, why);
		dedup_ledger_close(&l);
	}
	*crc = dedup_crc32c(~0U, load.slots, w->sb.nr_slots * w->sb.slot_bytes);
	free(load.slots);
	if (r && !why->text[0])
		fail_msg("refused with %d, and not a word", r);
	return !r;
}

static void damage_page(struct world *w, u8 *page, u64 offset, enum damage how)
{
	const u8 *older = w->older + offset;
	u64 pages = w->sb.data_start / PAGE;

	switch (how) {
	case FLIP:
		page[sim_random(&w->sim) % PAGE] ^= 1 << sim_random(&w->sim) % 8;
		break;
	case ZERO:
		memset(page, 0, PAGE);
		break;
	case TEAR:
		memcpy(page + PAGE / 2, older + PAGE / 2, PAGE / 2);
		break;
	case LOSE:
		memcpy(page, older, PAGE);
		break;
	case MISDIRECT:
		memcpy(page, w->sim.now + (w->sb.journal_start / PAGE +
			     sim_random(&w->sim) % (pages - w->sb.journal_start / PAGE)) * PAGE, PAGE);
		break;
	}
}

/* Pages @from to @to (bytes); @tail: of the last append, which may count as torn. */
static void damage_pages(struct world *w, u64 from, u64 to, const char *what, bool closed)
{
	u8 saved[PAGE];

	for (u64 at = from; at < to; at += PAGE) {
		u8 *page = w->sim.now + at;

		memcpy(saved, page, PAGE);
		for (int how = 0; how < DAMAGES; how++) {
			struct dedup_why why = { "" };
			u32 crc;

			damage_page(w, page, at, how);
			if (!open_damaged(w, &crc, &why)) {
				w->refused++;
			} else if (crc == w->committed) {
				w->opened++;
			} else {
				if (crc != w->before || closed)
					fail_msg("%s at %llu, damage %d: another state than was "
						 "committed", what, at, how);
				w->shortened++;
			}
			memcpy(page, saved, PAGE);
		}
	}
}

static void damage_all(struct world *w, bool closed)
{
	const struct dedup_super *sb = &w->sb;
	u64 b = dedup_super_b_offset(sb->device_bytes);
	u64 refused;

	/* Either superblock does for both. */
	damage_pages(w, DEDUP_SUPER_OFFSET, DEDUP_SUPER_OFFSET + PAGE, "superblock A", closed);
	damage_pages(w, b, b + PAGE, "superblock B", closed);
	assert_int_equal(w->refused, 0);
	assert_int_equal(w->shortened, 0);
	damage_pages(w, sb->journal_start, sb->table_start, "journal", closed);
	refused = w->refused;
	/* What is in the tables cannot be shortened. */
	damage_pages(w, sb->table_start, sb->data_start, "tables", true);
	print_message("# opened %llu, refused %llu (in the journal %llu), without the last append %llu\n",
		      w->opened, w->refused, refused, w->shortened);
	assert_true(w->opened && refused && w->refused > refused);
}

static void test_while_open(void **state)
{
	struct world w;

	for (u64 seed = 1; seed < 2; seed++) {
		world_init(&w, 64, seed);
		dedup_ledger_close(&w.l);
		damage_all(&w, false);
		/* All damages of the pages of one append, and no more. */
		assert_true(w.shortened > 0 && w.shortened <= DAMAGES * w.sb.append_pages);
		world_exit(&w);
	}
}

static void test_closed(void **state)
{
	struct world w;

	for (u64 seed = 11; seed < 12; seed++) {
		world_init(&w, 64, seed);
		assert_int_equal(dedup_ledger_stop(&w.l, NULL), 0);
		dedup_ledger_close(&w.l);
		damage_all(&w, true);
		world_exit(&w);
	}
}

/* The commit in flight: whatever half of it, or none, is on the disk when the power fails. */
static void test_reused_sequence(void **state)
{
	struct dedup_why why = { "" };
	struct world w;
	u32 crc;

	for (u64 seed = 21; seed < 31; seed++) {
		u8 *torn;

		world_init(&w, DEDUP_JOURNAL_MIN_PAGES, seed);
		if (!dedup_ledger_has_room(&w.l))
			checkpoint(&w);
		/* An append that is torn. Its sequence is the next incarnation's first. */
		torn = malloc(w.sim.bytes);
		memcpy(torn, w.sim.now, w.sim.bytes);
		commit(&w, w.sb.max_changes);
		for (u64 at = w.sb.journal_start; at < w.sb.table_start; at += 512)
			if (memcmp(torn + at, w.sim.now + at, 512) && sim_random(&w.sim) % 2)
				memcpy(torn + at, w.sim.now + at, 512);
		sim_disk_load(&w.sim, torn);
		dedup_ledger_close(&w.l);
		assert_true(open_damaged(&w, &crc, &why));
		assert_true(crc == w.before || crc == w.committed);
		/* Again, and again: it never comes back. */
		for (int life = 0; life < 3; life++) {
			u32 again;

			start(&w);
			dedup_ledger_close(&w.l);
			assert_true(open_damaged(&w, &again, &why));
			assert_int_equal(again, crc);
		}
		free(torn);
		world_exit(&w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_while_open),
		cmocka_unit_test(test_closed),
		cmocka_unit_test(test_reused_sequence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
