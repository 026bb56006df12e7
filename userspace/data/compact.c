// SPDX-License-Identifier: GPL-2.0-or-later
/* Dead space: lumps more than half dead are copied out and removed. And the scrub. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "data/bstore_priv.h"

#define MOVE_MAX  1024	       /* records of one step */
#define DEAD_MIN  (1ULL << 20) /* a lump with less dead space is left alone */

/* ---- removal ---- */

static int change_row(struct bstore *st, uint16_t shard, uint32_t number,
		      const struct index_lump *row)
{
	struct index_txn *txn;
	int r;

	for (;;) {
		r = index_begin(st->ix, true, &txn);
		if (r)
			return r;
		r = row ? index_put_lump(txn, shard, number, row) :
			  index_del_lump(txn, shard, number);
		if (r)
			index_abort(txn);
		else
			r = index_commit(txn);
		if (r != -EXFULL)
			return r == -ENOENT ? 0 : r;
		r = index_grow(st->ix);
		if (r)
			return r;
	}
}

/*
 * The row says `removing` before the file goes: a lump without a row would be taken for an
 * unfinished commit's at the next open, and deleted blocks would come back with it.
 */
int bstore_drop_lump(struct bstore *st, struct lump *l)
{
	struct index_lump row = { .end = l->end, .removing = 1 };
	uint16_t shard = l->shard;
	uint32_t number = l->number;
	int r = l->removing ? 0 : change_row(st, shard, number, &row);

	if (r)
		return r;
	l->removing = true;
	r = lumps_remove(st->lumps, l);
	if (r)
		return r;
	r = lumps_sync_names(st->lumps);
	return r ? r : change_row(st, shard, number, NULL);
}

/* ---- moving what lives ---- */

struct moving {
	struct bstore *st;
	struct bstore_op *ops;
	struct block_buf **bufs;
	size_t nr;
	uint64_t bytes, max_bytes;
};

static int live_record(void *arg, struct lump *l, uint32_t offset, const struct record *rec)
{
	struct moving *m = arg;
	struct index_txn *txn;
	struct index_block b;
	int r = index_begin(m->st->ix, false, &txn);

	if (r)
		return r;
	r = index_get(txn, rec->domain, &rec->fp, &b);
	index_abort(txn);
	if (r == -ENOENT || r == -EUCLEAN || (!r && (b.lump != l->number || b.offset != offset)))
		return 0;
	if (!r)
		r = bstore_read_record(m->st, rec->domain, &rec->fp, &b, &m->bufs[m->nr]);
	if (r == -EIO)
		return 0; /* damaged since the scan read it: it stays, and says so when it is read */
	if (r)
		return r;
	m->ops[m->nr] = (struct bstore_op){
		.kind = STORE_MOVE,
		.domain = rec->domain,
		.fp = rec->fp,
		.data = m->bufs[m->nr]->data + m->bufs[m->nr]->offset,
		.len = rec->stored_len,
		.raw_len = rec->raw_len,
		.codec = rec->codec,
		.lump = l->number,
		.offset = offset,
	};
	m->nr++;
	m->bytes += record_size(rec->stored_len);
	return m->nr == MOVE_MAX || m->bytes >= m->max_bytes;
}

/* Copies out up to @max_bytes. 1: more of this lump may live; 0: nothing does. */
static int move_some(struct bstore *st, struct lump *l, uint64_t max_bytes)
{
	struct moving m = { .st = st, .max_bytes = max_bytes };
	uint64_t end, damaged;
	int r = -ENOMEM;

	m.ops = calloc(MOVE_MAX, sizeof(*m.ops));
	m.bufs = calloc(MOVE_MAX, sizeof(*m.bufs));
	if (m.ops && m.bufs)
		r = bstore_scan_lump(st, l, 0, l->end, live_record, &m, &end, &damaged);
	if (r >= 0 && m.nr) {
		r = bstore_commit(st, m.ops, m.nr);
		for (size_t i = 0; i < m.nr && !r; i++)
			r = m.ops[i].r;
		if (!r)
			r = 1;
	}
	for (size_t i = 0; i < m.nr; i++)
		block_buf_put(m.bufs[i]);
	free(m.ops);
	free(m.bufs);
	return r;
}

/* ---- counting again ---- */

struct recount {
	uint32_t number;
	struct index_lump row;
	bool unknown; /* what a row of the shard named */
};

static int recount_row(void *arg, uint32_t domain, const struct fp *fp, const struct index_block *b)
{
	struct recount *rc = arg;

	if (!b || !b->stored_len) {
		rc->unknown = true;
	} else if (b->lump == rc->number) {
		rc->row.live_bytes += record_size(b->stored_len);
		rc->row.live_records++;
	}
	return 0;
}

/*
 * Where a damaged row of the index was replaced or deleted, the lump that it named counts one too many. But
 * while there are damaged rows in the shard, the lump may have the last copies of their blocks: a rebuild
 * would find them.
 */
static int recount(struct bstore *st, struct lump *l)
{
	struct recount rc = { .number = l->number, .row = { .end = l->end } };
	struct index_txn *txn;
	uint32_t domain = 0;
	int r = index_begin(st->ix, false, &txn);

	if (r)
		return r;
	while (!(r = index_next_domain(txn, &domain))) {
		r = index_walk_blocks(txn, domain, l->shard, NULL, recount_row, &rc);
		if (r || ++domain == 0)
			break;
	}
	index_abort(txn);
	if (r && r != -ENOENT)
		return r;
	if (rc.unknown || rc.row.live_records == l->live_records)
		return 0;
	r = change_row(st, l->shard, l->number, &rc.row);
	if (r)
		return r;
	l->live_bytes = rc.row.live_bytes;
	l->live_records = rc.row.live_records;
	return 0;
}

static bool wants_compaction(const struct lump *l)
{
	uint64_t used = l->end > LUMP_HEADER_SIZE ? l->end - LUMP_HEADER_SIZE : 0;
	uint64_t dead = used > l->live_bytes ? used - l->live_bytes : 0;

	return used && !l->touched && (!l->live_records || (dead >= DEAD_MIN && dead > used / 2));
}

static struct lump *next_candidate(struct bstore *st)
{
	for (size_t n = 0; n < NR_SHARDS; n++) {
		uint16_t s = (uint16_t)((st->compact_next + n) % NR_SHARDS);
		struct lump *l;

		for (size_t i = 0; (l = lumps_nth(st->lumps, s, i)); i++) {
			if (!l->unmovable && wants_compaction(l)) {
				st->compact_next = s;
				return l;
			}
		}
	}
	return NULL;
}

int bstore_compact(struct bstore *st, uint64_t max_bytes)
{
	struct lump *l = bstore_failed(st) ? NULL : next_candidate(st);
	int r;

	if (!l)
		return bstore_failed(st);
	l->sealed = true; /* copies must go elsewhere */
	/* Also with no live record by the count: the lump is removed only when a scan agrees. */
	r = move_some(st, l, max_bytes);
	if (r == -EIO && !bstore_failed(st)) {
		l->unmovable = true; /* others can be moved */
		return 1;
	}
	if (r)
		return r;
	if (l->live_records)
		r = recount(st, l);
	if (r)
		return r;
	if (l->live_records || l->unreadable) {
		/* Only damaged records are named here any more: their blocks are marked when they
		 * are read or scrubbed, and a PUT then replaces them. And what a scan could not see, it
		 * does not agree to lose: a rebuild of the index may not have seen it either. */
		l->unmovable = true;
		return 1;
	}
	log_debug("%s: lump %03x-%08x removed", st->dir, l->shard, l->number);
	r = bstore_drop_lump(st, l);
	return r ? r : 1;
}

/* ---- scrub ---- */

struct scrub {
	struct fp fps[SCRUB_PAGE];
	struct index_block blocks[SCRUB_PAGE];
	bool row_damaged[SCRUB_PAGE];
	size_t nr;
};

static int scrub_row(void *arg, uint32_t domain, const struct fp *fp, const struct index_block *b)
{
	struct scrub *s = arg;

	if (s->nr == SCRUB_PAGE)
		return 1;
	s->fps[s->nr] = *fp;
	s->row_damaged[s->nr] = !b;
	if (b)
		s->blocks[s->nr] = *b;
	s->nr++;
	return 0;
}

static int scrub_read(struct bstore *st, struct scrub *s, struct bstore_scrubbed *out)
{
	for (size_t i = 0; i < s->nr; i++) {
		struct index_block *b = &s->blocks[i];
		struct block_buf *buf;
		int r;

		if (s->row_damaged[i]) {
			log_error("%s: damaged row of the index", st->dir);
			r = -EIO;
			*b = (struct index_block){ 0 };
		} else if (b->flags & INDEX_BAD) {
			out->known[out->nr_known++] = s->fps[i];
			continue;
		} else {
			r = bstore_read_record(st, out->domain, &s->fps[i], b, &buf);
			out->bytes += b->stored_len;
		}
		if (!r) {
			block_buf_put(buf);
			continue;
		}
		if (r != -EIO && r != -ENOENT)
			return r;
		out->bad[out->nr++] = (struct bstore_op){
			.kind = STORE_BAD, .domain = out->domain, .fp = s->fps[i],
			.lump = b->lump, .offset = b->offset,
		};
	}
	return 0;
}

/* The next domain of the shard that has blocks, or the next shard. */
static void scrub_next(struct bstore_scrub_at *at, bool shard_is_done)
{
	at->has_after = false;
	if (!shard_is_done && at->domain != UINT32_MAX) {
		at->domain++;
		return;
	}
	at->domain = 0;
	at->done = at->shard == NR_SHARDS - 1;
	at->shard += !at->done;
}

int bstore_scrub_page(struct bstore *st, struct bstore_scrub_at *at, struct bstore_scrubbed *out)
{
	struct scrub *s;
	struct index_txn *txn;
	int r, more = 0;

	out->nr = out->nr_known = 0;
	out->bytes = 0;
	r = index_begin(st->ix, false, &txn);
	if (r)
		return r;
	s = calloc(1, sizeof(*s));
	if (!s) {
		index_abort(txn);
		return -ENOMEM;
	}
	r = index_next_domain(txn, &at->domain);
	out->domain = at->domain;
	if (!r)
		more = index_walk_blocks(txn, at->domain, at->shard,
					 at->has_after ? &at->after : NULL, scrub_row, s);
	index_abort(txn);
	if (more < 0)
		r = more;
	if (!r && s->nr) {
		at->after = s->fps[s->nr - 1];
		at->has_after = true;
		r = scrub_read(st, s, out);
	}
	if ((!r && !more) || r == -ENOENT)
		scrub_next(at, r == -ENOENT);
	free(s);
	return r == -ENOENT ? 0 : r;
}

int bstore_scrub(struct bstore *st, uint16_t shard)
{
	struct bstore_scrub_at at = { .shard = shard };
	struct bstore_scrubbed *page = malloc(sizeof(*page));
	int r = page ? 0 : -ENOMEM, damaged = 0;

	while (!r && at.shard == shard && !at.done) {
		r = bstore_scrub_page(st, &at, page);
		if (!r && page->nr) {
			damaged += (int)page->nr;
			r = bstore_commit(st, page->bad, page->nr);
		}
	}
	free(page);
	return r ? r : damaged;
}
