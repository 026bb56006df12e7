// SPDX-License-Identifier: GPL-2.0-or-later
/* The offline check: what the codec finds damaged, and what records say of one another. */
#include <stdarg.h>
#include "cache/cache.h"
#include "cache/internal.h"

struct overlay {
	u64 volume;
	u64 block;
	u64 cut;
	u64 slot;
};

struct seq_of {
	u64 seq;
	u64 slot;
};

struct check {
	struct cache_report *report;
	void (*problem)(void *ctx, const char *text);
	void *ctx;
	const struct dedup_super *sb;
	struct dedup_volume_rec *volumes;
	u64 nr_volumes;
	struct overlay *overlays;
	u64 nr_overlays;
	u64 max_overlays;
	struct seq_of *seqs;
	u64 nr_seqs;
	u64 max_seqs;
};

__attribute__((format(printf, 2, 3)))
static void problem(struct check *c, const char *fmt, ...)
{
	char text[ERROR_TEXT_SIZE];
	va_list ap;

	c->report->problems++;
	if (!c->problem)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->problem(c->ctx, text);
}

/* Room for one more in an array that doubles. */
static int grow(void **array, u64 nr, u64 *max, size_t size)
{
	u64 want = *max ? 2 * *max : 1024;
	void *p;

	if (nr < *max)
		return 0;
	p = realloc(*array, want * size);
	if (!p)
		return -ENOMEM;
	*array = p;
	*max = want;
	return 0;
}

static int check_damaged(void *ctx, const char *what)
{
	problem(ctx, "%s", what);
	return 0;
}

static int check_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	const char *wrong = dedup_volume_wrong(rec);
	struct check *c = ctx;

	for (u64 i = 0; i < c->nr_volumes; i++) {
		if (c->volumes[i].id == rec->id)
			problem(c, "two volume records have the id %llu", rec->id);
		else if (!memcmp(c->volumes[i].image, rec->image, sizeof(rec->image)))
			problem(c, "volumes %llu and %llu belong to one image", c->volumes[i].id,
				rec->id);
	}
	if (wrong)
		problem(c, "volume %llu: %s (size %llu, committed cut %llu, cut counter %llu)", rec->id, wrong,
			rec->size, rec->committed_cut, rec->cut_counter);
	if (!rec->name[0])
		problem(c, "volume %llu (record %llu) has no name", rec->id, index);
	c->volumes[c->nr_volumes++] = *rec;
	c->report->volumes++;
	return 0;
}

static int check_overlay(struct check *c, u64 slot, const struct dedup_slot_rec *rec)
{
	const struct dedup_volume_rec *v = NULL;
	u64 blocks;
	int r;

	for (u64 i = 0; i < c->nr_volumes && !v; i++)
		if (c->volumes[i].id == rec->volume)
			v = &c->volumes[i];
	if (!v) {
		problem(c, "slot %llu: an overlay of volume %llu, which does not exist", slot,
			rec->volume);
		return 0;
	}
	blocks = DIV_ROUND_UP_ULL(v->size, 1ULL << c->sb->block_shift);
	if (rec->block >= blocks)
		problem(c, "slot %llu: an overlay of block %llu of volume %llu, which has %llu blocks",
			slot, rec->block, rec->volume, blocks);
	if (!rec->cut || rec->cut > v->cut_counter)
		problem(c, "slot %llu: an overlay of cut %llu of volume %llu, whose counter is %llu",
			slot, rec->cut, rec->volume, v->cut_counter);
	if (rec->cut <= v->committed_cut) {
		c->report->void_dirty++;
		return 0;
	}
	c->report->dirty++;
	r = grow((void **)&c->overlays, c->nr_overlays, &c->max_overlays, sizeof(*c->overlays));
	if (!r)
		c->overlays[c->nr_overlays++] =
			(struct overlay){ rec->volume, rec->block, rec->cut, slot };
	return r;
}

static int check_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct check *c = ctx;
	int r;

	if (!rec->seq)
		problem(c, "slot %llu has no sequence", slot);
	else if (rec->seq >> 40 > c->sb->incarnation_nr)
		problem(c, "slot %llu: its sequence is of incarnation %llu; the last was %u", slot,
			rec->seq >> 40, c->sb->incarnation_nr);
	r = grow((void **)&c->seqs, c->nr_seqs, &c->max_seqs, sizeof(*c->seqs));
	if (r)
		return r;
	c->seqs[c->nr_seqs++] = (struct seq_of){ rec->seq, slot };
	if (rec->state == DEDUP_SLOT_DIRTY)
		return check_overlay(c, slot, rec);
	c->report->clean++;
	return 0;
}

static int compare_seqs(const void *a, const void *b)
{
	const struct seq_of *x = a;
	const struct seq_of *y = b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static int compare_overlays(const void *a, const void *b)
{
	const struct overlay *x = a;
	const struct overlay *y = b;

	if (x->volume != y->volume)
		return x->volume < y->volume ? -1 : 1;
	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return x->cut < y->cut ? -1 : x->cut > y->cut;
}

static void check_unique(struct check *c)
{
	if (!c->nr_seqs)
		return;
	qsort(c->seqs, c->nr_seqs, sizeof(*c->seqs), compare_seqs);
	for (u64 i = 1; i < c->nr_seqs; i++)
		if (c->seqs[i].seq && c->seqs[i].seq == c->seqs[i - 1].seq)
			problem(c, "slots %llu and %llu have the same sequence %llu",
				c->seqs[i - 1].slot, c->seqs[i].slot, c->seqs[i].seq);
	if (!c->nr_overlays)
		return;
	qsort(c->overlays, c->nr_overlays, sizeof(*c->overlays), compare_overlays);
	for (u64 i = 1; i < c->nr_overlays; i++)
		if (!compare_overlays(&c->overlays[i], &c->overlays[i - 1]))
			problem(c, "slots %llu and %llu are both the overlay of cut %llu of block %llu "
				"of volume %llu", c->overlays[i - 1].slot, c->overlays[i].slot,
				c->overlays[i].cut, c->overlays[i].block, c->overlays[i].volume);
}

static void check_supers(struct check *c, const int errors[2])
{
	static const char *const names[] = { "first", "second" };

	for (unsigned int i = 0; i < 2; i++) {
		if (errors[i] == -ESTALE)
			problem(c, "the %s superblock is older than the other: an open was cut short; "
				"repair restores it", names[i]);
		else if (errors[i])
			problem(c, "the %s superblock is destroyed (%s); repair restores it from the "
				"other", names[i], strerror(-errors[i]));
	}
}

static int check_records(struct check *c, struct dedup_ledger *l)
{
	struct dedup_visitor v = {
		.volume = check_volume,
		.slot = check_slot,
		.damaged = check_damaged,
		.ctx = c,
	};
	struct dedup_why why = { "" };
	int r;

	c->report->journal_appends = l->journal.seq - l->journal.replay_seq + 1;
	c->report->journal_changes = l->recovered.nr;
	c->volumes = calloc(l->sb.nr_volumes, sizeof(*c->volumes));
	r = c->volumes ? dedup_ledger_load(l, &v, &why) : -ENOMEM;
	if (!r)
		check_unique(c);
	c->report->free = l->sb.nr_slots - c->report->clean - c->report->dirty -
			  c->report->void_dirty;
	free(c->volumes);
	free(c->overlays);
	free(c->seqs);
	return r;
}

static int check_disk(struct check *c, const struct disk_file *f, const char *path,
		      struct error *err)
{
	struct dedup_why why = { "" };
	struct dedup_ledger l;
	struct dedup_super sb;
	int errors[2];
	u64 before;
	int r;

	r = dedup_supers_read(&f->disk, &sb, errors, &why);
	if (r)
		return error_set(err, r, "%s: %s", path, why.text[0] ? why.text : strerror(-r));
	cache_info_fill(&c->report->info, &sb);
	check_supers(c, errors);
	c->report->repairable = c->report->problems > 0;
	r = dedup_ledger_open(&l, &f->disk, &why);
	if (r == -EUCLEAN) {
		problem(c, "%s", why.text);
		c->report->repairable = false;
		return 0;
	}
	if (r)
		return error_set(err, r, "%s: %s", path, why.text[0] ? why.text : strerror(-r));
	c->sb = &l.sb;
	before = c->report->problems;
	r = check_records(c, &l);
	if (c->report->problems > before)
		c->report->repairable = false;
	dedup_ledger_close(&l);
	return r ? error_set(err, r, "cannot check %s: %s", path, strerror(-r)) : 0;
}

int cache_check(const char *path, void (*report_problem)(void *ctx, const char *text), void *ctx,
		struct cache_report *report, struct error *err)
{
	struct check c = { .report = report, .problem = report_problem, .ctx = ctx };
	struct disk_file f;
	int r;

	memset(report, 0, sizeof(*report));
	r = disk_file_open(&f, path, false, err);
	if (r)
		return r;
	r = check_disk(&c, &f, path, err);
	disk_file_close(&f);
	return r;
}
