// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ledger on a disk that loses power: the sources that the kernel compiles, cut at every
 * write and flush. What is recovered must be the state of the last acknowledged commit, or of
 * the one that was being written.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "ledger.h"
#include "sim_disk.h"

#define NR_VOLUMES 40 /* of the table's, that the test uses */

/* Records, encoded: equal bytes, equal state. */
struct model {
	u8 *slots;
	u8 *volumes;
	u32 crc;
};

struct world {
	struct sim_disk sim;
	struct dedup_super sb;
	struct dedup_ledger l;
	struct model model; /* with what the commit being made hands out */
	u32 acked;	    /* its checksum at the last acknowledged commit */
	u8 *image;
	u32 to_hand_out;
	u32 shape; /* how changes are spread */
	u64 seq;
	u64 cuts;
	u64 cut_every;
	u64 at_tail; /* cuts that left the commit in flight durable */
};

static u32 model_crc(const struct world *w, const struct model *m)
{
	return dedup_crc32c(dedup_crc32c(~0U, m->slots, w->sb.nr_slots * w->sb.slot_bytes),
			    m->volumes,
			    (size_t)NR_VOLUMES * sizeof(struct dedup_disk_volume));
}

static void model_init(const struct world *w, struct model *m)
{
	m->slots = calloc(w->sb.nr_slots, w->sb.slot_bytes);
	m->volumes = calloc(NR_VOLUMES, sizeof(struct dedup_disk_volume));
	assert_non_null(m->slots);
	assert_non_null(m->volumes);
}

static void model_exit(struct model *m)
{
	free(m->slots);
	free(m->volumes);
}

static int model_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	struct model *m = *(struct model **)ctx;

	assert_true(index < NR_VOLUMES);
	dedup_volume_encode(m->volumes + index * sizeof(struct dedup_disk_volume), rec);
	return 0;
}

struct load_ctx {
	struct model *m; /* first: model_volume() */
	const struct dedup_super *sb;
};

static int model_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct load_ctx *c = ctx;

	assert_true(slot < c->sb->nr_slots);
	dedup_slot_encode(c->sb, c->m->slots + slot * c->sb->slot_bytes, rec);
	return 0;
}

static int load_model(const struct world *w, struct dedup_ledger *l, struct model *m,
		      struct dedup_why *why)
{
	struct load_ctx ctx = { m, &w->sb };
	struct dedup_visitor v = { .volume = model_volume, .slot = model_slot, .ctx = &ctx };

	return dedup_ledger_load(l, &v, why);
}

/* ---- what the cuts check ---- */

static void recover_and_check(struct world *w, struct dedup_disk *disk)
{
	struct dedup_why why = { "" };
	struct dedup_ledger l;
	struct model m;
	u32 crc, in_flight;
	int r;

	r = dedup_ledger_open(&l, disk, &why);
	if (r)
		fail_msg("cut %llu: open: %d %s", w->cuts, r, why.text);
	model_init(w, &m);
	r = load_model(w, &l, &m, &why);
	if (r)
		fail_msg("cut %llu: load: %d %s", w->cuts, r, why.text);
	crc = model_crc(w, &m);
	in_flight = model_crc(w, &w->model);
	if (crc != w->acked && crc != in_flight)
		fail_msg("cut %llu: a state that was never committed, or an older one", w->cuts);
	if (crc == in_flight && crc != w->acked)
		w->at_tail++;
	model_exit(&m);
	dedup_ledger_close(&l);
}

struct image_disk {
	u8 *data;
};

static int image_read(void *ctx, const struct dedup_io *ios, unsigned int n)
{
	struct image_disk *d = ctx;

	for (unsigned int i = 0; i < n; i++)
		memcpy(ios[i].buf, d->data + ios[i].offset, ios[i].len);
	return 0;
}

static const struct dedup_disk_ops image_ops = { .read = image_read };

static void check_cut(struct sim_disk *sim, void *arg)
{
	struct world *w = arg;
	struct image_disk d = { w->image };
	struct dedup_disk disk = { &image_ops, &d, sim->bytes };

	w->cuts++;
	if (w->cuts % w->cut_every)
		return;
	sim_disk_crash(sim, w->image);
	recover_and_check(w, &disk);
}

/* ---- random commits ---- */

static bool hand_out(void *ctx, struct dedup_change *change)
{
	struct world *w = ctx;
	struct sim_disk *sim = &w->sim;
	u64 i;

	if (!w->to_hand_out)
		return false;
	w->to_hand_out--;
	memset(change, 0, sizeof(*change));
	if (sim_random(sim) % 16 == 0) {
		struct dedup_volume_rec *v = &change->volume;

		change->kind = DEDUP_CHANGE_VOLUME;
		change->index = sim_random(sim) % NR_VOLUMES;
		v->id = change->index + 1;
		v->cut_counter = ++w->seq;
		v->size = sim_random(sim);
		v->root[3] = sim_random(sim);
		snprintf(v->name, sizeof(v->name), "volume-%llu", change->index);
		dedup_volume_encode(w->model.volumes +
				    change->index * sizeof(struct dedup_disk_volume), v);
		return true;
	}
	i = w->shape ? sim_random(sim) % w->shape : sim_random(sim);
	change->kind = DEDUP_CHANGE_SLOT;
	change->index = i % w->sb.nr_slots;
	change->slot.state = sim_random(sim) % 3;
	if (change->slot.state == DEDUP_SLOT_CLEAN) {
		change->slot.seq = ++w->seq;
		memcpy(change->slot.fp, &w->seq, sizeof(w->seq));
	} else if (change->slot.state == DEDUP_SLOT_DIRTY) {
		change->slot.seq = ++w->seq;
		change->slot.volume = 1 + sim_random(sim) % NR_VOLUMES;
		change->slot.block = sim_random(sim);
		change->slot.cut = 1 + sim_random(sim) % 9;
		for (u32 k = 0; k < w->sb.bitmap_bytes; k++)
			change->slot.bitmap[k] = sim_random(sim);
	}
	dedup_slot_encode(&w->sb, w->model.slots + change->index * w->sb.slot_bytes, &change->slot);
	return true;
}

static int commit(struct world *w)
{
	u32 nr, want;
	bool more;
	int r;

	/* Mostly small, now and then more than an append can hold. */
	want = sim_random(&w->sim) % 8 ? 1 + sim_random(&w->sim) % 40 :
					 sim_random(&w->sim) % (8 * w->sb.max_changes);
	w->shape = sim_random(&w->sim) % 2 ? 50 : 0;
	w->to_hand_out = want;
	do {
		r = dedup_ledger_commit(&w->l, hand_out, w, &nr, &more);
		if (r)
			return r;
		w->acked = model_crc(w, &w->model);
	} while (more && dedup_ledger_has_room(&w->l));
	return 0;
}

static void start(struct world *w)
{
	struct dedup_why why = { "" };
	u8 uuid[16];
	int r;

	r = dedup_ledger_open(&w->l, &w->sim.disk, &why);
	if (r)
		fail_msg("open: %s", why.text);
	model_exit(&w->model);
	model_init(w, &w->model);
	assert_int_equal(load_model(w, &w->l, &w->model, &why), 0);
	w->acked = model_crc(w, &w->model);
	for (int i = 0; i < 16; i++)
		uuid[i] = sim_random(&w->sim);
	r = dedup_ledger_start(&w->l, uuid, &why);
	if (r)
		fail_msg("start: %s", why.text);
}

static void world_init(struct world *w, u32 block_shift, u32 journal_pages, u64 bytes, u64 seed)
{
	memset(w, 0, sizeof(*w));
	w->cut_every = 1;
	assert_int_equal(sim_disk_init(&w->sim, bytes, seed), 0);
	assert_int_equal(dedup_layout_journal(&w->sb, bytes, block_shift, journal_pages), 0);
	for (int i = 0; i < 16; i++)
		w->sb.cache_uuid[i] = sim_random(&w->sim);
	assert_int_equal(dedup_ledger_format(&w->sim.disk, &w->sb), 0);
	w->image = malloc(bytes);
	assert_non_null(w->image);
	model_init(w, &w->model);
	w->acked = model_crc(w, &w->model);
	w->sim.cut = check_cut;
	w->sim.arg = w;
}

static void world_exit(struct world *w)
{
	dedup_ledger_close(&w->l);
	model_exit(&w->model);
	sim_disk_exit(&w->sim);
	free(w->image);
}

static void some_commits(struct world *w, u64 max)
{
	for (u64 n = sim_random(&w->sim) % max; n && dedup_ledger_has_room(&w->l); n--)
		assert_int_equal(commit(w), 0);
}

static void checkpoint(struct world *w)
{
	struct dedup_why why = { "" };

	dedup_ledger_freeze(&w->l);
	some_commits(w, 6);
	assert_int_equal(dedup_ledger_write_tables(&w->l, &why), 0);
	some_commits(w, 6);
	assert_int_equal(dedup_ledger_finish(&w->l), 0);
}

static void power_cuts(u32 block_shift, u32 journal_pages, u64 seed, unsigned int rounds)
{
	struct world w;

	world_init(&w, block_shift, journal_pages,
		   dedup_min_bytes(block_shift) + (1400ULL << block_shift), seed);
	for (unsigned int round = 0; round < rounds; round++) {
		start(&w);
		for (u64 n = 1 + sim_random(&w.sim) % 12; n; n--) {
			some_commits(&w, 12);
			if (!dedup_ledger_has_room(&w.l) || sim_random(&w.sim) % 2)
				checkpoint(&w);
		}
		/* The incarnation ends: cleanly, or by a power cut, in a checkpoint or not. */
		switch (sim_random(&w.sim) % 3) {
		case 0:
			assert_int_equal(dedup_ledger_stop(&w.l, NULL), 0);
			break;
		case 1:
			dedup_ledger_freeze(&w.l);
			assert_int_equal(dedup_ledger_write_tables(&w.l, NULL), 0);
			break;
		default:
			/* One that fails on its way out leaves a torn append behind. */
			w.sim.fail_at = w.sim.ops + 1;
			assert_true(commit(&w) == -EIO);
			assert_true(commit(&w) == -EROFS);
			w.sim.fail_at = 0;
			break;
		}
		sim_disk_crash(&w.sim, w.image);
		dedup_ledger_close(&w.l);
		sim_disk_load(&w.sim, w.image);
	}
	print_message("# %llu cuts, %llu with the commit in flight durable\n", w.cuts, w.at_tail);
	assert_true(w.cuts > 200 && w.at_tail > 10);
	world_exit(&w);
}

static void test_power_cuts_4k(void **state)
{
	(void)state;
	power_cuts(12, 0, 1, 8);
	power_cuts(12, 0, 2, 8);
}

static void test_power_cuts_64k(void **state)
{
	(void)state;
	power_cuts(16, 0, 3, 8);
}

/* The smallest journal: a checkpoint every few commits, and no room to spare. */
static void test_power_cuts_small(void **state)
{
	(void)state;
	power_cuts(12, DEDUP_JOURNAL_MIN_PAGES, 4, 14);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_power_cuts_4k),
		cmocka_unit_test(test_power_cuts_64k),
		cmocka_unit_test(test_power_cuts_small),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
