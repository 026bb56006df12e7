// SPDX-License-Identifier: GPL-2.0-only
#include "journal.h"

#define SCAN_PAGES	64U

int dedup_journal_init(struct dedup_journal *j, const struct dedup_super *sb,
		       const struct dedup_disk *disk)
{
	memset(j, 0, sizeof(*j));
	j->sb = sb;
	j->disk = disk;
	j->buf_pages = max_t(u32, SCAN_PAGES, max_t(u32, sb->append_pages, sb->root_pages));
	j->buf = dedup_alloc(j->buf_pages, DEDUP_PAGE_BYTES);
	return j->buf ? 0 : -ENOMEM;
}

void dedup_journal_exit(struct dedup_journal *j)
{
	dedup_free(j->found);
	dedup_free(j->buf);
	j->found = NULL;
	j->buf = NULL;
}

static u64 page_offset_in_ring(const struct dedup_journal *j, u32 page)
{
	return j->sb->journal_start + (u64)page * DEDUP_PAGE_BYTES;
}

/* ---- scan ---- */

static int compare_found(const void *a, const void *b)
{
	const struct dedup_found *x = a;
	const struct dedup_found *y = b;

	if (x->seq != y->seq)
		return x->seq < y->seq ? -1 : 1;
	return x->page < y->page ? -1 : x->page > y->page;
}

static int scan_heads(struct dedup_journal *j)
{
	u32 nr_pages = j->sb->journal_pages;
	struct dedup_append head;
	u32 page, i, n;
	int r;

	for (page = 0; page < nr_pages; page += n) {
		n = min_t(u32, SCAN_PAGES, nr_pages - page);
		r = dedup_disk_read(j->disk, page_offset_in_ring(j, page), j->buf,
				    n * DEDUP_PAGE_BYTES);
		if (r)
			return r;
		for (i = 0; i < n; i++) {
			struct dedup_found *f = &j->found[j->nr_found];

			r = dedup_append_head(j->sb, j->buf + (size_t)i * DEDUP_PAGE_BYTES, &head);
			if (r || head.pages > nr_pages - (page + i))
				continue;
			f->seq = head.seq;
			f->page = page + i;
			f->pages = head.pages;
			f->crc = head.crc;
			f->prev_crc = head.prev_crc;
			f->nr_items = head.nr_items;
			f->kind = head.kind;
			j->nr_found++;
		}
		dedup_yield();
	}
	sort(j->found, j->nr_found, sizeof(*j->found), compare_found, NULL);
	return 0;
}

/* Reads a found append into the buffer. -EBADMSG: torn or rotten. */
static int read_found(struct dedup_journal *j, const struct dedup_found *f,
		      struct dedup_append *head)
{
	int r;

	r = dedup_disk_read(j->disk, page_offset_in_ring(j, f->page), j->buf,
			    f->pages * DEDUP_PAGE_BYTES);
	if (r)
		return r;
	if (dedup_append_head(j->sb, j->buf, head) || head->seq != f->seq ||
	    head->pages != f->pages)
		return -EBADMSG;
	return dedup_append_check(j->buf, head);
}

/* The valid append with sequence @seq; there may be torn ones beside it. */
static int find_valid(struct dedup_journal *j, u64 seq, const struct dedup_found **found,
		      struct dedup_append *head)
{
	struct dedup_append h;
	u32 i;
	int r;

	*found = NULL;
	for (i = j->nr_found; i-- && j->found[i].seq >= seq;) {
		if (j->found[i].seq != seq)
			continue;
		r = read_found(j, &j->found[i], &h);
		if (r == -EBADMSG)
			continue;
		if (r)
			return r;
		if (*found)
			return -EUCLEAN;
		*found = &j->found[i];
		*head = h;
	}
	return *found ? 0 : -EBADMSG;
}

static int find_tail(struct dedup_journal *j, const struct dedup_found **found,
		     struct dedup_append *head, struct dedup_why *why)
{
	u64 last;
	int r;

	if (!j->nr_found) {
		dedup_say(why, "the journal holds no append of this cache: it was destroyed");
		return -EUCLEAN;
	}
	last = j->found[j->nr_found - 1].seq;
	r = find_valid(j, last, found, head);
	if (r == -EBADMSG && last > 1)
		r = find_valid(j, last - 1, found, head);
	if (r == -EBADMSG || r == -EUCLEAN) {
		dedup_say(why, "journal appends %llu and before are damaged",
			  (unsigned long long)last);
		return -EUCLEAN;
	}
	if (!r && head->seq < j->sb->journal_seq) {
		dedup_say(why, "the journal ends at append %llu, but append %llu was durable",
			  (unsigned long long)head->seq, (unsigned long long)j->sb->journal_seq);
		return -EUCLEAN;
	}
	return r;
}

int dedup_journal_scan(struct dedup_journal *j, struct dedup_why *why)
{
	const struct dedup_found *tail;
	struct dedup_append head;
	int r;

	j->found = dedup_alloc(j->sb->journal_pages, sizeof(*j->found));
	if (!j->found)
		return -ENOMEM;
	r = scan_heads(j);
	if (!r)
		r = find_tail(j, &tail, &head, why);
	if (r) {
		if (r != -EUCLEAN)
			dedup_say(why, "the journal cannot be read");
		return r;
	}
	j->seq = head.seq;
	j->crc = head.crc;
	j->incarnation_nr = head.incarnation_nr;
	memcpy(j->incarnation, head.incarnation, sizeof(j->incarnation));
	j->checkpoint_seq = head.checkpoint_seq;
	j->checkpoint_page = head.checkpoint_page;
	j->replay_seq = head.replay_seq;
	j->replay_page = head.replay_page;
	return 0;
}

u64 dedup_journal_nr_changes(const struct dedup_journal *j)
{
	u64 nr = 0;
	u32 i;

	for (i = 0; i < j->nr_found; i++)
		if (j->found[i].kind == DEDUP_APPEND_CHANGES && j->found[i].seq >= j->replay_seq &&
		    j->found[i].seq <= j->seq)
			nr += j->found[i].nr_items;
	return nr;
}

/* ---- replay ---- */

static const struct dedup_found *first_found(const struct dedup_journal *j, u64 seq)
{
	u32 lo = 0;
	u32 hi = j->nr_found;

	while (lo < hi) {
		u32 mid = lo + (hi - lo) / 2;

		if (j->found[mid].seq < seq)
			lo = mid + 1;
		else
			hi = mid;
	}
	return &j->found[lo];
}

/*
 * Reads the append with sequence @seq that follows the position @head and the CRC @prev. What is
 * left of a torn one may have the same sequence, even the same predecessor.
 */
static int read_linked(struct dedup_journal *j, u64 seq, u32 prev,
		       const struct dedup_found **found, struct dedup_append *head)
{
	const struct dedup_found *end = j->found + j->nr_found;
	u32 next = dedup_mod(j->head, j->sb->journal_pages);
	const struct dedup_found *f;
	int r;

	for (f = first_found(j, seq); f < end && f->seq == seq; f++) {
		if (seq == j->replay_seq ? f->page != j->replay_page :
					   f->prev_crc != prev || (f->page != next && f->page))
			continue;
		r = read_found(j, f, head);
		if (r == -EBADMSG)
			continue;
		*found = f;
		return r;
	}
	return -EUCLEAN;
}

static int replay_append(struct dedup_journal *j, const struct dedup_append *head,
			 const struct dedup_replay *replay)
{
	struct dedup_disk_entry entry;
	struct dedup_cursor c;
	const void *rec;
	u32 bytes, nr = 0;
	u64 index;
	u8 kind;
	int r;

	dedup_cursor_start(&c, j->buf, head);
	if (head->kind == DEDUP_APPEND_CHANGES) {
		while ((r = dedup_cursor_change(j->sb, &c, &kind, &index, &rec, &bytes)) > 0) {
			r = replay->change(replay->ctx, kind, index, rec, bytes);
			if (r)
				return r;
		}
		return r;
	}
	if (head->kind != DEDUP_APPEND_CHECKPOINT)
		return -EUCLEAN;
	/* Between the start of the replay and the newest checkpoint there may be an older one. */
	if (head->seq != j->checkpoint_seq)
		return 0;
	if (head->nr_items != j->sb->dir_pages || head->replay_seq != j->replay_seq)
		return -EUCLEAN;
	while ((r = dedup_cursor_entry(&c, &entry)) > 0) {
		r = replay->root(replay->ctx, nr++, &entry);
		if (r)
			return r;
	}
	return r;
}

int dedup_journal_replay(struct dedup_journal *j, const struct dedup_replay *replay,
			 struct dedup_why *why)
{
	u32 ring = j->sb->journal_pages;
	struct dedup_append head;
	u32 prev = 0;
	u64 seq;
	int r = 0;

	j->tail = j->replay_page;
	j->head = j->tail;
	for (seq = j->replay_seq; seq <= j->seq; seq++) {
		const struct dedup_found *f;

		r = read_linked(j, seq, prev, &f, &head);
		if (!r)
			r = replay_append(j, &head, replay);
		if (r)
			break;
		if (f->page != dedup_mod(j->head, ring))
			j->head += ring - dedup_mod(j->head, ring);
		j->head += f->pages;
		prev = head.crc;
		dedup_yield();
	}
	if (r == -EUCLEAN)
		dedup_say(why, "journal append %llu is damaged; the journal's tail is %llu",
			  (unsigned long long)seq, (unsigned long long)j->seq);
	else if (r)
		dedup_say(why, "journal append %llu cannot be replayed",
			  (unsigned long long)seq);
	dedup_free(j->found);
	j->found = NULL;
	j->nr_found = 0;
	if (!r && (prev != j->crc || j->head - j->tail >= ring)) {
		dedup_say(why, "the journal's appends do not lie as they are linked");
		r = -EUCLEAN;
	}
	return r;
}

/* ---- write ---- */

/* Where an append of @pages at or after @pos begins: it may not wrap around. */
static u64 place_append(const struct dedup_journal *j, u64 pos, u32 pages)
{
	u32 ring = j->sb->journal_pages;
	u32 page = dedup_mod(pos, ring);

	return page + pages <= ring ? pos : pos + ring - page;
}

bool dedup_journal_has_room(const struct dedup_journal *j, u32 pages, unsigned int roots)
{
	u64 pos = place_append(j, j->head, pages) + pages;

	while (roots--)
		pos = place_append(j, pos, j->sb->root_pages) + j->sb->root_pages;
	return pos - j->tail < j->sb->journal_pages;
}

void dedup_journal_mark(struct dedup_journal *j)
{
	j->mark_seq = j->seq + 1;
	j->mark_open = true;
}

void dedup_journal_start(struct dedup_journal *j, struct dedup_builder *b, u32 max_pages)
{
	dedup_build_start(b, j->buf, max_pages, j->seq + 1);
}

int dedup_journal_write(struct dedup_journal *j, struct dedup_builder *b, u32 kind)
{
	u32 ring = j->sb->journal_pages;
	u32 pages = (b->at + DEDUP_PAGE_BYTES - 1) >> DEDUP_PAGE_SHIFT;
	u64 pos = place_append(j, j->head, pages);
	struct dedup_append head = {
		.kind = kind,
		.prev_crc = j->crc,
		.incarnation_nr = j->incarnation_nr,
		.checkpoint_seq = j->checkpoint_seq,
		.checkpoint_page = j->checkpoint_page,
		.replay_seq = j->replay_seq,
		.replay_page = j->replay_page,
	};
	int r;

	if (pos + pages - j->tail >= ring)
		return -ENOSPC;
	if (j->mark_open) {
		j->mark_open = false;
		j->mark_pos = pos;
	}
	if (kind == DEDUP_APPEND_CHECKPOINT) {
		head.checkpoint_seq = b->seq;
		head.checkpoint_page = dedup_mod(pos, ring);
		head.replay_seq = j->mark_seq;
		head.replay_page = dedup_mod(j->mark_pos, ring);
	}
	memcpy(head.incarnation, j->incarnation, sizeof(head.incarnation));
	dedup_build_seal(j->sb, b, &head);
	r = dedup_disk_write(j->disk, page_offset_in_ring(j, dedup_mod(pos, ring)), b->buf,
			     head.pages * DEDUP_PAGE_BYTES, true);
	if (r)
		return r;
	j->seq = head.seq;
	j->crc = head.crc;
	j->head = pos + pages;
	j->checkpoint_seq = head.checkpoint_seq;
	j->checkpoint_page = head.checkpoint_page;
	j->replay_seq = head.replay_seq;
	j->replay_page = head.replay_page;
	if (kind == DEDUP_APPEND_CHECKPOINT)
		j->tail = j->mark_pos;
	return 0;
}
