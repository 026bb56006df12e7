// SPDX-License-Identifier: GPL-2.0-only
#include "table.h"

#define BATCH_PAGES	256U

/* ---- deltas ---- */

int dedup_delta_init(struct dedup_delta *d, const struct dedup_super *sb, u32 max_slots,
		     u32 max_volumes)
{
	u32 size = 16;

	memset(d, 0, sizeof(*d));
	d->sb = sb;
	d->max_slots = max_slots;
	d->max_volumes = max_volumes;
	while (size < 2 * (max_slots + max_volumes))
		size *= 2;
	d->hash_mask = size - 1;
	d->hash = dedup_alloc(size, sizeof(*d->hash));
	d->recs = dedup_alloc((u64)max_slots + max_volumes + 1, sizeof(*d->recs));
	d->slots = dedup_alloc((u64)max_slots + 1, sb->slot_bytes);
	d->volumes = dedup_alloc((u64)max_volumes + 1, sizeof(struct dedup_disk_volume));
	if (d->hash && d->recs && d->slots && d->volumes)
		return 0;
	dedup_delta_exit(d);
	return -ENOMEM;
}

void dedup_delta_exit(struct dedup_delta *d)
{
	dedup_free(d->hash);
	dedup_free(d->recs);
	dedup_free(d->slots);
	dedup_free(d->volumes);
	memset(d, 0, sizeof(*d));
}

void dedup_delta_clear(struct dedup_delta *d)
{
	if (d->nr)
		memset(d->hash, 0, ((size_t)d->hash_mask + 1) * sizeof(*d->hash));
	d->nr = 0;
	d->nr_slots = 0;
	d->nr_volumes = 0;
}

static u32 hash_key(u64 key)
{
	return (key * 0x9e3779b97f4a7c15ULL) >> 32;
}

static u8 *delta_new(struct dedup_delta *d, u8 kind, u64 key)
{
	struct dedup_delta_rec *rec = &d->recs[d->nr];

	if (kind == DEDUP_CHANGE_VOLUME) {
		if (d->nr_volumes == d->max_volumes)
			return NULL;
		rec->rec = d->volumes + (size_t)d->nr_volumes++ * sizeof(struct dedup_disk_volume);
	} else {
		if (d->nr_slots == d->max_slots)
			return NULL;
		rec->rec = d->slots + (size_t)d->nr_slots++ * d->sb->slot_bytes;
	}
	rec->key = key;
	return rec->rec;
}

int dedup_delta_put(struct dedup_delta *d, u8 kind, u64 index, const void *rec, u32 bytes)
{
	u32 full = dedup_record_bytes(d->sb, kind);
	u32 page, offset, at;
	u8 *to = NULL;
	u64 key;

	dedup_record_at(d->sb, kind, index, &page, &offset);
	key = (u64)page << DEDUP_PAGE_SHIFT | offset;
	for (at = hash_key(key) & d->hash_mask; d->hash[at]; at = (at + 1) & d->hash_mask) {
		if (d->recs[d->hash[at] - 1].key == key) {
			to = d->recs[d->hash[at] - 1].rec;
			break;
		}
	}
	if (!to) {
		to = delta_new(d, kind, key);
		if (!to)
			return -ENOSPC;
		d->hash[at] = ++d->nr;
	}
	memcpy(to, rec, bytes);
	memset(to + bytes, 0, full - bytes);
	return 0;
}

static int compare_recs(const void *a, const void *b)
{
	const struct dedup_delta_rec *x = a;
	const struct dedup_delta_rec *y = b;

	return x->key < y->key ? -1 : x->key > y->key;
}

void dedup_delta_sort(struct dedup_delta *d)
{
	sort(d->recs, d->nr, sizeof(*d->recs), compare_recs, NULL);
}

static u32 delta_page(const struct dedup_delta *d, u32 nr)
{
	return d->recs[nr].key >> DEDUP_PAGE_SHIFT;
}

/* Puts the delta's records of @page, from the one at @nr on, into @buf; returns the next. */
static u32 delta_apply(const struct dedup_delta *d, u32 nr, u32 page, u8 *buf)
{
	u8 kind = page < d->sb->volume_pages ? DEDUP_CHANGE_VOLUME : DEDUP_CHANGE_SLOT;
	u32 bytes = dedup_record_bytes(d->sb, kind);

	for (; nr < d->nr && delta_page(d, nr) == page; nr++)
		memcpy(buf + (d->recs[nr].key & (DEDUP_PAGE_BYTES - 1)), d->recs[nr].rec, bytes);
	return nr;
}

/* ---- pages ---- */

int dedup_table_init(struct dedup_table *t, const struct dedup_super *sb,
		     const struct dedup_disk *disk)
{
	memset(t, 0, sizeof(*t));
	t->sb = sb;
	t->disk = disk;
	t->dir = dedup_alloc(sb->table_pages, sizeof(*t->dir));
	t->root = dedup_alloc(sb->dir_pages, sizeof(*t->root));
	t->dir_changed = dedup_alloc(sb->dir_pages, 1);
	t->buf = dedup_alloc(BATCH_PAGES, DEDUP_PAGE_BYTES);
	t->ios = dedup_alloc(BATCH_PAGES, sizeof(*t->ios));
	if (t->dir && t->root && t->dir_changed && t->buf && t->ios)
		return 0;
	dedup_table_exit(t);
	return -ENOMEM;
}

void dedup_table_exit(struct dedup_table *t)
{
	dedup_free(t->dir);
	dedup_free(t->root);
	dedup_free(t->dir_changed);
	dedup_free(t->buf);
	dedup_free(t->ios);
	memset(t, 0, sizeof(*t));
}

static u8 *batch_page(const struct dedup_table *t, u32 i)
{
	return t->buf + (size_t)i * DEDUP_PAGE_BYTES;
}

/* One of the two kinds of pages: where they lie, and what names them. */
struct page_set {
	u64 start;
	u32 nr;
	u32 magic;
	struct dedup_disk_entry *entries;
	const char *name;
};

static struct page_set table_set(const struct dedup_table *t)
{
	return (struct page_set){ t->sb->table_start, t->sb->table_pages, DEDUP_TABLE_MAGIC,
				  t->dir, "table" };
}

static struct page_set dir_set(const struct dedup_table *t)
{
	return (struct page_set){ t->sb->dir_start, t->sb->dir_pages, DEDUP_DIR_MAGIC,
				  t->root, "directory" };
}

static u64 page_at(const struct page_set *set, u32 page, u32 place)
{
	return set->start + ((u64)place * set->nr + page) * DEDUP_PAGE_BYTES;
}

/* Adds a transfer of the batch's i-th page, joined to the one before where both adjoin. */
static u32 add_io(struct dedup_table *t, u32 nr, u64 offset, u32 i)
{
	u8 *buf = batch_page(t, i);

	if (nr && t->ios[nr - 1].offset + t->ios[nr - 1].len == offset &&
	    (u8 *)t->ios[nr - 1].buf + t->ios[nr - 1].len == buf) {
		t->ios[nr - 1].len += DEDUP_PAGE_BYTES;
		return nr;
	}
	t->ios[nr] = (struct dedup_io){ .offset = offset, .buf = buf, .len = DEDUP_PAGE_BYTES };
	return nr + 1;
}

static int say_damaged(const struct page_set *set, u32 page, struct dedup_why *why)
{
	const struct dedup_disk_entry *e = &set->entries[page];

	dedup_say(why, "%s page %u, place %u at byte %llu, is not the one of sequence %llu", set->name,
		  page, le32_to_cpu(e->place),
		  (unsigned long long)page_at(set, page, le32_to_cpu(e->place)),
		  (unsigned long long)le64_to_cpu(e->seq));
	return -EUCLEAN;
}

/* Reads pages (the i-th is pages[i], or first + i) into the batch; never written ones are zero. */
static int read_pages(struct dedup_table *t, const struct page_set *set, const u32 *pages, u32 first,
		      u32 nr, struct dedup_why *why)
{
	u32 nr_ios = 0;
	u32 i;
	int r;

	for (i = 0; i < nr; i++) {
		u32 page = pages ? pages[i] : first + i;

		if (set->entries[page].seq)
			nr_ios = add_io(t, nr_ios,
					page_at(set, page, le32_to_cpu(set->entries[page].place)), i);
		else
			memset(batch_page(t, i), 0, DEDUP_PAGE_BYTES);
	}
	if (!nr_ios)
		return 0;
	r = t->disk->ops->read(t->disk->ctx, t->ios, nr_ios);
	if (r)
		dedup_say(why, "%s pages from %u on cannot be read", set->name,
			  pages ? pages[0] : first);
	return r;
}

static bool page_good(const struct dedup_table *t, const struct page_set *set, u32 page, u32 i)
{
	return !set->entries[page].seq ||
	       !dedup_page_check(t->sb, batch_page(t, i), set->magic, page, &set->entries[page]);
}

int dedup_table_load_dir(struct dedup_table *t, struct dedup_why *why)
{
	struct page_set set = dir_set(t);
	u32 first, n, i, k;
	int r;

	for (first = 0; first < set.nr; first += n) {
		n = min_t(u32, BATCH_PAGES, set.nr - first);
		r = read_pages(t, &set, NULL, first, n, why);
		if (r)
			return r;
		for (i = 0; i < n; i++) {
			u32 at = (first + i) * DEDUP_DIR_ENTRIES;
			u32 nr = min_t(u32, DEDUP_DIR_ENTRIES, t->sb->table_pages - at);

			if (!page_good(t, &set, first + i, i))
				return say_damaged(&set, first + i, why);
			memcpy(&t->dir[at], batch_page(t, i) + sizeof(struct dedup_disk_page),
			       nr * sizeof(*t->dir));
			for (k = at; k < at + nr; k++)
				if (le32_to_cpu(t->dir[k].place) > 1)
					return say_damaged(&set, first + i, why);
		}
	}
	return 0;
}

/* ---- walk ---- */

static int say_nonsense(u8 kind, u64 index, const struct dedup_visitor *v, struct dedup_why *why)
{
	struct dedup_why text;

	dedup_say(&text, "the record of %s %llu makes no sense",
		  kind == DEDUP_CHANGE_VOLUME ? "volume" : "slot", (unsigned long long)index);
	if (why)
		*why = text;
	return v->damaged ? v->damaged(v->ctx, text.text) : -EUCLEAN;
}

static int visit_page(struct dedup_table *t, u32 page, const u8 *buf,
		      const struct dedup_visitor *v, struct dedup_why *why)
{
	u64 first;
	u32 nr, i;
	u8 kind = dedup_page_records(t->sb, page, &first, &nr);
	u32 bytes = dedup_record_bytes(t->sb, kind);
	int r;

	buf += sizeof(struct dedup_disk_page);
	for (i = 0; i < nr; i++, buf += bytes) {
		if (kind == DEDUP_CHANGE_VOLUME) {
			r = dedup_volume_decode(&t->volume, buf);
			if (!r && t->volume.id)
				r = v->volume(v->ctx, first + i, &t->volume);
		} else {
			r = dedup_slot_decode(t->sb, &t->slot, buf);
			if (!r && t->slot.state != DEDUP_SLOT_FREE)
				r = v->slot(v->ctx, first + i, &t->slot);
		}
		if (r == -EUCLEAN)
			r = say_nonsense(kind, first + i, v, why);
		if (r)
			return r;
	}
	return 0;
}

static int walk_damage(const struct page_set *set, u32 page, const struct dedup_visitor *v,
		       struct dedup_why *why)
{
	struct dedup_why text;
	int r = say_damaged(set, page, &text);

	if (why)
		*why = text;
	return v->damaged ? v->damaged(v->ctx, text.text) : r;
}

int dedup_table_walk(struct dedup_table *t, const struct dedup_delta *delta,
		     const struct dedup_visitor *v, struct dedup_why *why)
{
	struct page_set set = table_set(t);
	u32 at = 0;
	u32 first, n, i;
	int r;

	for (first = 0; first < set.nr; first += n) {
		n = min_t(u32, BATCH_PAGES, set.nr - first);
		r = read_pages(t, &set, NULL, first, n, why);
		if (r)
			return r;
		for (i = 0; i < n; i++) {
			u32 page = first + i;
			bool changed = at < delta->nr && delta_page(delta, at) == page;

			if (!set.entries[page].seq && !changed)
				continue;
			if (!page_good(t, &set, page, i)) {
				r = walk_damage(&set, page, v, why);
				if (r)
					return r;
				memset(batch_page(t, i), 0, DEDUP_PAGE_BYTES);
			}
			at = delta_apply(delta, at, page, batch_page(t, i));
			r = visit_page(t, page, batch_page(t, i), v, why);
			if (r)
				return r;
		}
		dedup_yield();
	}
	return 0;
}

/* ---- checkpoint ---- */

/* Seals the batch's i-th page for its other place; the transfer is added to the batch. */
static u32 seal_page(struct dedup_table *t, struct page_set *set, u32 page, u32 i, u64 seq, u32 nr_ios)
{
	struct dedup_disk_entry *e = &set->entries[page];
	u32 place = e->seq ? !le32_to_cpu(e->place) : 0;

	e->crc = cpu_to_le32(dedup_page_seal(t->sb, batch_page(t, i), set->magic, page, seq));
	e->seq = cpu_to_le64(seq);
	e->place = cpu_to_le32(place);
	return add_io(t, nr_ios, page_at(set, page, place), i);
}

static int write_ios(struct dedup_table *t, const struct page_set *set, u32 nr_ios,
		     struct dedup_why *why)
{
	int r = t->disk->ops->write(t->disk->ctx, t->ios, nr_ios, false);

	if (r)
		dedup_say(why, "%s pages cannot be written", set->name);
	dedup_yield();
	return r;
}

/* The pages that a part of the delta changes: reads, changes and writes them. */
static int write_batch(struct dedup_table *t, struct page_set *set, const struct dedup_delta *delta,
		       u32 at, const u32 *pages, u32 nr, u64 seq, struct dedup_why *why)
{
	u32 nr_ios = 0;
	u32 i;
	int r;

	r = read_pages(t, set, pages, 0, nr, why);
	if (r)
		return r;
	for (i = 0; i < nr; i++)
		if (!page_good(t, set, pages[i], i))
			return say_damaged(set, pages[i], why);
	for (i = 0; i < nr; i++) {
		at = delta_apply(delta, at, pages[i], batch_page(t, i));
		nr_ios = seal_page(t, set, pages[i], i, seq, nr_ios);
		t->dir_changed[pages[i] / DEDUP_DIR_ENTRIES] = 1;
	}
	return write_ios(t, set, nr_ios, why);
}

static int write_delta(struct dedup_table *t, const struct dedup_delta *delta, u64 seq,
		       struct dedup_why *why)
{
	struct page_set set = table_set(t);
	u32 pages[64];
	u32 at = 0;
	u32 from, nr;
	int r;

	while (at < delta->nr) {
		from = at;
		for (nr = 0; nr < 64 && at < delta->nr; nr++) {
			pages[nr] = delta_page(delta, at);
			while (at < delta->nr && delta_page(delta, at) == pages[nr])
				at++;
		}
		r = write_batch(t, &set, delta, from, pages, nr, seq, why);
		if (r)
			return r;
	}
	return 0;
}

static int write_dir(struct dedup_table *t, u64 seq, struct dedup_why *why)
{
	struct page_set set = dir_set(t);
	u32 nr = 0, nr_ios = 0;
	u32 page;
	int r;

	for (page = 0; page < set.nr; page++) {
		u32 at = page * DEDUP_DIR_ENTRIES;

		if (!t->dir_changed[page])
			continue;
		t->dir_changed[page] = 0;
		memset(batch_page(t, nr), 0, DEDUP_PAGE_BYTES);
		memcpy(batch_page(t, nr) + sizeof(struct dedup_disk_page), &t->dir[at],
		       min_t(u32, DEDUP_DIR_ENTRIES, t->sb->table_pages - at) * sizeof(*t->dir));
		nr_ios = seal_page(t, &set, page, nr, seq, nr_ios);
		if (++nr < BATCH_PAGES)
			continue;
		r = write_ios(t, &set, nr_ios, why);
		if (r)
			return r;
		nr = 0;
		nr_ios = 0;
	}
	return nr_ios ? write_ios(t, &set, nr_ios, why) : 0;
}

int dedup_table_write(struct dedup_table *t, const struct dedup_delta *delta, u64 seq,
		      struct dedup_why *why)
{
	int r;

	if (!delta->nr)
		return 0;
	r = write_delta(t, delta, seq, why);
	if (!r)
		r = write_dir(t, seq, why);
	if (!r) {
		r = t->disk->ops->flush(t->disk->ctx);
		if (r)
			dedup_say(why, "the disk cannot be flushed");
	}
	return r;
}
