// SPDX-License-Identifier: GPL-2.0-or-later
/* Group commit: see bstore.h for the order and why it is safe. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "data/crc32c.h"
#include "data/bstore_priv.h"

/* What one new block may add to the index: a leaf and a branch copied, before old pages are
 * used again. */
#define INDEX_GROWTH 8192
/* When the disk has hardly any room, reserve and all: blocks that are there are stamped no more, so that there
 * is some for deletions, this many at once; and below that it cannot be said whether a commit fits. */
#define SMALL_BATCH  64
#define DELETE_ROOM  (2 * SMALL_BATCH * INDEX_GROWTH)
#define STAMP_ROOM   (4 * DELETE_ROOM)

enum todo {
	TODO_NOTHING, /* ->r and ->epoch are final */
	TODO_APPEND,  /* a new record */
	TODO_FOLLOW,  /* the same block as an earlier op's new record */
	TODO_RAISE,   /* the block's epoch */
	TODO_DELETE,
	TODO_BAD,
};

struct plan {
	struct bstore_op *op;
	enum todo todo;
	uint16_t shard;
	struct plan *leader;	/* TODO_FOLLOW */
	bool replaces;		/* TODO_APPEND: @old is there, but damaged */
	bool row_lost;		/* TODO_APPEND: a row is there, but does not say what it named */
	struct index_block old;
	struct lump *lump;	/* TODO_APPEND, once it is written */
	uint32_t offset;
	uint32_t crc;
};

struct batch {
	struct bstore *st;
	struct plan *plans;
	/* By fingerprint (a shard's blocks together), domain, STORE_BAD before what may rely on the
	 * record, position. */
	struct plan **order;
	uint8_t (*headers)[RECORD_HEADER_SIZE];
	size_t count;
	size_t to_append;
	size_t to_change; /* rows of blocks that are there */
	bool moves;	/* compaction: may use half of the reserve */
	bool dirty;	/* the index must change */
	bool uncertain; /* the transaction was handed to the disk: committed or not */
};

static int plan_compare(const void *a, const void *b)
{
	const struct plan *x = *(struct plan *const *)a, *y = *(struct plan *const *)b;
	int c = memcmp(x->op->fp.b, y->op->fp.b, FP_SIZE);

	if (c)
		return c;
	if (x->op->domain != y->op->domain)
		return x->op->domain < y->op->domain ? -1 : 1;
	if ((x->op->kind == STORE_BAD) != (y->op->kind == STORE_BAD))
		return x->op->kind == STORE_BAD ? -1 : 1;
	return x < y ? -1 : x > y;
}

static bool is_same_block(const struct plan *x, const struct plan *y)
{
	return x->op->domain == y->op->domain && fp_equal(&x->op->fp, &y->op->fp);
}

/* Does this batch say that the record is bad? @bad: the first of the block's in order. */
static bool is_told_bad(struct plan *const *bad, struct plan *const *end, const struct index_block *row)
{
	for (; bad < end && (*bad)->op->kind == STORE_BAD; bad++)
		if ((*bad)->op->lump == row->lump && (*bad)->op->offset == row->offset)
			return true;
	return false;
}

static void raise_epoch(struct batch *b, uint16_t shard, uint64_t epoch, bool stamp)
{
	struct index_shard *s = &b->st->shards[shard];

	if (s->epoch < epoch) {
		s->epoch = epoch;
		b->st->shard_dirty[shard] = b->dirty = true;
	}
	if (stamp && s->floor < s->epoch) {
		s->floor = s->epoch;
		b->st->shard_dirty[shard] = b->dirty = true;
	}
}

/* Epochs first: a TOUCH in the same batch as a DELETE stamps what the DELETE will not pass. */
static void plan_epochs(struct batch *b)
{
	for (size_t i = 0; i < b->count; i++) {
		struct plan *p = &b->plans[i];

		switch (p->op->kind) {
		case STORE_DELETE:
			raise_epoch(b, p->shard, p->op->epoch, false);
			break;
		case STORE_EPOCH:
		case STORE_STAMP:
			raise_epoch(b, p->shard, p->op->epoch, p->op->kind == STORE_STAMP);
			break;
		default:
			break;
		}
	}
}

static void plan_put(struct batch *b, struct plan *p, int found)
{
	if (!found && !(p->old.flags & INDEX_BAD)) {
		p->op->existed = true;
		p->todo = p->old.epoch < p->op->epoch ? TODO_RAISE : TODO_NOTHING;
		return;
	}
	p->row_lost = found == -EUCLEAN || (!found && !p->old.stored_len);
	p->replaces = !found && !p->row_lost;
	p->todo = TODO_APPEND;
	b->to_append++;
}

/* Still where compaction found it? Then a copy takes its place, with its epoch. */
static void plan_move(struct batch *b, struct plan *p, int found)
{
	struct bstore_op *op = p->op;

	if (found || p->old.lump != op->lump || p->old.offset != op->offset)
		return;
	op->epoch = p->old.epoch;
	p->replaces = true;
	p->todo = TODO_APPEND;
	b->to_append++;
	b->moves = true;
}

/* What record_decode() will ask of the record. */
static bool put_is_sane(const struct bstore_op *op)
{
	return op->len && op->raw_len <= RECORD_MAX_PAYLOAD && op->codec <= CODEC_ZSTD &&
	       (op->codec == CODEC_RAW ? op->len == op->raw_len : op->len <= op->raw_len);
}

/* @group, @at: the block's first op, and @p's place in the batch's order. */
static int plan_one(struct batch *b, struct index_txn *txn, struct plan *const *group,
		    struct plan *const *at, struct plan *leader)
{
	struct plan *p = *at;
	struct bstore_op *op = p->op;
	int found;

	op->r = 0;
	if (op->kind == STORE_EPOCH || op->kind == STORE_STAMP)
		return 0;
	if (op->kind == STORE_DROP) {
		p->todo = TODO_DELETE;
		return 0;
	}
	if (op->kind == STORE_DELETE) {
		/* Deletion while epochs are only lower bounds could pass a TOUCH. */
		if (b->st->info.unstamped)
			op->r = -EAGAIN;
		else
			p->todo = TODO_DELETE;
		return 0;
	}
	if (op->kind == STORE_BAD) {
		p->todo = TODO_BAD;
		return 0;
	}
	if (op->kind != STORE_TOUCH && !put_is_sane(op)) {
		op->r = -EINVAL;
		return 0;
	}
	op->existed = false;
	op->epoch = b->st->shards[p->shard].epoch;
	if (leader) {
		p->leader = leader;
		p->todo = TODO_FOLLOW;
		op->existed = true;
		return 0;
	}
	found = index_get(txn, op->domain, &op->fp, &p->old);
	if (found && found != -ENOENT && found != -EUCLEAN)
		return found;
	/* The writer took both up at once: a receipt for what is known to be bad must not go out. */
	if (!found && is_told_bad(group, at, &p->old))
		p->old.flags |= INDEX_BAD;
	if (op->kind == STORE_MOVE) {
		plan_move(b, p, found);
		return 0;
	}
	if (op->kind == STORE_PUT)
		plan_put(b, p, found);
	else if (found || p->old.flags & INDEX_BAD)
		op->r = -ENOENT; /* a damaged block is missing: so that it is sent again */
	else
		p->todo = p->old.epoch < op->epoch ? TODO_RAISE : TODO_NOTHING;
	return 0;
}

static int plan_all(struct batch *b)
{
	struct plan *leader = NULL, **group = b->order;
	struct index_txn *txn;
	int r = index_begin(b->st->ix, false, &txn);

	if (r)
		return r;
	for (size_t i = 0; i < b->count && !r; i++) {
		struct plan *p = b->order[i];

		/* Two ops on one block in a batch: the second follows the first's record. */
		if (!is_same_block(*group, p)) {
			group = &b->order[i];
			leader = NULL;
		}
		r = plan_one(b, txn, group, &b->order[i], leader);
		if (p->todo == TODO_APPEND)
			leader = p;
		if (p->todo != TODO_NOTHING && p->todo != TODO_FOLLOW)
			b->dirty = true;
		b->to_change += p->todo == TODO_RAISE || p->todo == TODO_DELETE ||
				p->todo == TODO_BAD;
	}
	index_abort(txn);
	return r;
}

static void say_full(struct bstore *st)
{
	if (!st->full)
		log_warn("%s: full: new blocks are refused until space is made", st->dir);
	st->full = true;
}

/* A commit that finds no room for the index would be the store's last: what may not fit is refused. */
static int refuse_changes(struct batch *b)
{
	struct bstore *st = b->st;
	uint64_t room;
	int r;

	if (!b->to_change)
		return 0;
	r = st->disk.ops->space(st->disk.ctx, st->dirfd, &room);
	if (r || room >= STAMP_ROOM)
		return r;
	say_full(st);
	for (size_t i = 0; i < b->count; i++) {
		struct plan *p = &b->plans[i];

		if (p->todo == TODO_RAISE || (p->todo == TODO_DELETE && room < DELETE_ROOM)) {
			p->todo = TODO_NOTHING;
			p->op->r = -ENOSPC;
		}
	}
	return 0;
}

/* ---- appending ---- */

int bstore_open_lump(struct bstore *st, uint16_t shard, uint64_t size, struct lump **lump)
{
	struct index_shard *s = &st->shards[shard];
	struct lump *l = lumps_last(st->lumps, shard);
	int r;

	if (l && !l->sealed && l->number < s->next_lump) {
		uint64_t end = l->touched ? l->new_end : l->end;

		if (end >= LUMP_HEADER_SIZE && end + size <= st->lump_size) {
			*lump = l;
			return 0;
		}
	}
	r = lumps_create(st->lumps, shard, s->next_lump, st->info.sequence + 1, lump);
	if (!r || r == -EEXIST) {
		s->next_lump++;
		st->shard_dirty[shard] = true;
	}
	return r;
}

/* Consecutive records for one lump, written by one call. */
struct run {
	struct lump *lump;
	struct iovec iov[IOV_MAX];
	size_t count;
	uint64_t bytes;
	size_t first, last; /* in batch.order */
};

static bool is_no_space(int r)
{
	return r == -ENOSPC || r == -EDQUOT || r == -EFBIG;
}

static int run_flush(struct batch *b, struct run *run)
{
	struct lump *l = run->lump;
	int r;

	if (!l)
		return 0;
	run->lump = NULL;
	r = lumps_append(b->st->lumps, l, run->iov, run->count, run->bytes);
	if (!r)
		return 0;
	for (size_t i = run->first; i <= run->last; i++) {
		if (b->order[i]->todo == TODO_APPEND && b->order[i]->lump == l &&
		    b->order[i]->offset >= l->new_end) {
			b->order[i]->lump = NULL;
			b->order[i]->op->r = is_no_space(r) ? -ENOSPC : r;
		}
	}
	if (is_no_space(r) && lumps_truncate(b->st->lumps, l, l->new_end))
		l->sealed = true;
	return r;
}

static void run_add(struct batch *b, struct run *run, size_t at)
{
	static const uint8_t zeros[RECORD_ALIGN];
	struct plan *p = b->order[at];
	struct bstore_op *op = p->op;
	struct record rec = {
		.kind = RECORD_BLOCK,
		.codec = op->codec,
		.domain = op->domain,
		.raw_len = op->raw_len,
		.stored_len = op->len,
		.payload_crc = crc32c(0, op->data, op->len),
		.epoch = op->epoch,
		.sequence = b->st->info.sequence + 1,
		.fp = op->fp,
	};
	struct record_place place = {
		.disk = &b->st->uuid, .shard = p->shard, .lump = run->lump->number,
		.offset = (uint32_t)(run->lump->new_end + run->bytes),
	};
	uint32_t size = record_size(op->len);

	record_encode(&rec, &place, b->headers[at]);
	run->iov[run->count++] = (struct iovec){ b->headers[at], RECORD_HEADER_SIZE };
	run->iov[run->count++] = (struct iovec){ (void *)op->data, op->len };
	if (size > RECORD_HEADER_SIZE + op->len)
		run->iov[run->count++] = (struct iovec){ (void *)zeros,
							 size - RECORD_HEADER_SIZE - op->len };
	p->lump = run->lump;
	p->offset = place.offset;
	run->bytes += size;
	run->last = at;
}

/* The run that takes @p's record: the present one, or a new one after it is written. */
static int run_for(struct batch *b, struct run *run, struct plan *p, size_t at)
{
	uint32_t size = record_size(p->op->len);
	struct lump *l;
	int r;

	if (run->lump && run->lump->shard == p->shard && run->count + 3 <= IOV_MAX &&
	    run->lump->new_end + run->bytes + size <= b->st->lump_size)
		return 0;
	r = run_flush(b, run);
	if (r)
		return r;
	r = bstore_open_lump(b->st, p->shard, size, &l);
	if (r)
		return r;
	lumps_touch(b->st->lumps, l);
	run->lump = l;
	run->count = 0;
	run->bytes = 0;
	run->first = at;
	return 0;
}

/* 0, also when there was no room for some (their ->r says so); else the batch has failed. */
static int append_all(struct batch *b)
{
	struct bstore *st = b->st;
	uint64_t budget = 0;
	struct run *run;
	int r;

	if (!b->to_append)
		return 0;
	r = bstore_budget(st, b->to_change * INDEX_GROWTH, &budget);
	if (r)
		return r;
	if (b->moves)
		budget += st->reserve / 2;
	b->headers = malloc(b->count * sizeof(*b->headers));
	run = calloc(1, sizeof(*run));
	if (!b->headers || !run) {
		free(run);
		return -ENOMEM;
	}
	for (size_t i = 0; i < b->count; i++) {
		struct plan *p = b->order[i];
		uint64_t need = p->todo == TODO_APPEND ? record_size(p->op->len) + INDEX_GROWTH : 0;

		if (!need)
			continue;
		if (need > budget) {
			p->op->r = -ENOSPC;
			say_full(st);
			continue;
		}
		r = run_for(b, run, p, i);
		if (!r) {
			run_add(b, run, i);
			budget -= need;
			continue;
		}
		if (!is_no_space(r))
			break;
		p->op->r = -ENOSPC;
		budget = 0; /* what the disk says counts more than what we reckoned */
		r = 0;
	}
	if (!r)
		r = run_flush(b, run);
	free(run);
	return is_no_space(r) ? 0 : r;
}

/* ---- the index ---- */

int bstore_put_rows(struct bstore *st, struct index_txn *txn, const struct index_info *info)
{
	int r = 0;

	for (size_t s = 0; s < NR_SHARDS && !r; s++)
		if (st->shard_dirty[s])
			r = index_put_shard(txn, (uint16_t)s, &st->shards[s]);
	for (struct lump *l = lumps_touched(st->lumps); l && !r; l = l->next_touched) {
		struct index_lump row = { l->new_end, l->new_live_bytes, l->new_live_records, 0 };

		r = index_put_lump(txn, l->shard, l->number, &row);
	}
	return r ? r : index_put_info(txn, info);
}

static void forget_record(struct batch *b, struct index_info *info, uint16_t shard,
			  const struct index_block *old)
{
	struct lump *l = lumps_find(b->st->lumps, shard, old->lump);

	if (l) {
		lumps_touch(b->st->lumps, l);
		l->new_live_bytes -= record_size(old->stored_len);
		l->new_live_records--;
	}
	info->blocks--;
	info->raw_bytes -= old->raw_len;
	info->stored_bytes -= record_size(old->stored_len);
}

static int index_append(struct batch *b, struct index_txn *txn, struct index_info *info,
			struct plan *p)
{
	struct index_block row = {
		.lump = p->lump->number,
		.offset = p->offset,
		.stored_len = p->op->len,
		.raw_len = p->op->raw_len,
		.codec = p->op->codec,
		.kind = RECORD_BLOCK,
		.epoch = p->op->epoch,
	};

	if (p->replaces)
		forget_record(b, info, p->shard, &p->old);
	p->lump->new_live_bytes += record_size(row.stored_len);
	p->lump->new_live_records++;
	if (!p->row_lost) { /* else the block is counted, and it has the same bytes */
		info->blocks++;
		info->raw_bytes += row.raw_len;
		info->stored_bytes += record_size(row.stored_len);
	}
	return index_put(txn, p->op->domain, &p->op->fp, &row);
}

/* How long its block was is not known: as long as the others on an average. */
static void forget_lost_row(struct index_info *info)
{
	if (!info->blocks)
		return;
	info->raw_bytes -= info->raw_bytes / info->blocks;
	info->stored_bytes -= info->stored_bytes / info->blocks;
	info->blocks--;
}

/* The epoch is checked again here, in the transaction that deletes. */
static int index_delete(struct batch *b, struct index_txn *txn, struct index_info *info,
			struct plan *p)
{
	struct bstore_op *op = p->op;
	int r = index_get(txn, op->domain, &op->fp, &p->old);

	if (r == -EUCLEAN) {
		op->r = 0;
		forget_lost_row(info);
		return index_del(txn, op->domain, &op->fp);
	}
	if (r) {
		op->r = r == -ENOENT ? r : 0;
		return r == -ENOENT ? 0 : r;
	}
	if (op->kind == STORE_DELETE &&
	    bstore_effective_epoch(b->st, p->shard, &p->old) >= op->epoch) {
		op->r = -EBUSY;
		return 0;
	}
	op->r = 0;
	if (p->old.stored_len)
		forget_record(b, info, p->shard, &p->old);
	else
		forget_lost_row(info);
	return index_del(txn, op->domain, &op->fp);
}

static int index_mark_bad(struct index_txn *txn, struct bstore_op *op)
{
	struct index_block row;
	int r = index_get(txn, op->domain, &op->fp, &row);

	if (r == -ENOENT)
		return 0;
	if (r == -EUCLEAN) { /* the row itself: a new one, that says that nothing is known */
		row = (struct index_block){ .flags = INDEX_BAD };
		return index_put(txn, op->domain, &op->fp, &row);
	}
	if (r || row.lump != op->lump || row.offset != op->offset)
		return r;
	row.flags |= INDEX_BAD;
	return index_put(txn, op->domain, &op->fp, &row);
}

static int index_one(struct batch *b, struct index_txn *txn, struct index_info *info,
		     struct plan *p)
{
	switch (p->todo) {
	case TODO_APPEND:
		return p->op->r ? 0 : index_append(b, txn, info, p);
	case TODO_RAISE:
		p->old.epoch = p->op->epoch;
		return index_put(txn, p->op->domain, &p->op->fp, &p->old);
	case TODO_DELETE:
		return index_delete(b, txn, info, p);
	case TODO_BAD:
		return index_mark_bad(txn, p->op);
	default:
		return 0;
	}
}

static int index_try(struct batch *b, struct index_info *info)
{
	struct bstore *st = b->st;
	struct index_txn *txn;
	int r = 0;

	*info = st->info;
	info->sequence++;
	for (struct lump *l = lumps_touched(st->lumps); l; l = l->next_touched) {
		l->new_live_bytes = l->live_bytes;
		l->new_live_records = l->live_records;
	}
	for (size_t i = 0; i < b->count; i++)
		if (b->plans[i].op->kind == STORE_STAMP)
			info->unstamped = 0;
	r = index_begin(st->ix, true, &txn);
	if (r)
		return r;
	/* Deletions last, so that they see what this batch has stamped. */
	for (size_t i = 0; i < b->count && !r; i++)
		if (b->order[i]->todo != TODO_DELETE)
			r = index_one(b, txn, info, b->order[i]);
	for (size_t i = 0; i < b->count && !r; i++)
		if (b->order[i]->todo == TODO_DELETE)
			r = index_one(b, txn, info, b->order[i]);
	if (!r)
		r = bstore_put_rows(st, txn, info);
	if (r) {
		index_abort(txn);
		return r;
	}
	r = index_commit(txn);
	b->uncertain = r && r != -EXFULL;
	return r;
}

static int index_all(struct batch *b)
{
	struct index_info info;
	int r;

	if (index_is_tight(b->st->ix))
		index_grow(b->st->ix); /* when it fails, the transaction will tell */
	while ((r = index_try(b, &info)) == -EXFULL) {
		r = index_grow(b->st->ix);
		if (r)
			return r;
	}
	if (r)
		return r;
	b->st->info = info;
	memset(b->st->shard_dirty, 0, sizeof(b->st->shard_dirty));
	return 0;
}

/* ---- all of it ---- */

void bstore_fail(struct bstore *st, int r, const char *doing)
{
	if (r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -EAGAIN) {
		log_warn("%s: %s: %s", st->dir, doing, strerror(-r)); /* this commit only */
		return;
	}
	log_error("%s: %s: %s; no more commits until vmdedup-data is started again: look at the "
		  "disk and at the kernel's log", st->dir, doing, strerror(-r));
	atomic_store(&st->failed, r);
}

int bstore_failed(struct bstore *st)
{
	return atomic_load(&st->failed);
}

static int batch_init(struct batch *b, struct bstore *st, struct bstore_op *ops, size_t count)
{
	*b = (struct batch){ .st = st, .count = count };
	b->plans = calloc(count, sizeof(*b->plans));
	b->order = calloc(count, sizeof(*b->order));
	if (!b->plans || !b->order)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		b->plans[i].op = &ops[i];
		b->plans[i].shard = ops[i].kind == STORE_EPOCH || ops[i].kind == STORE_STAMP ?
					    ops[i].shard : (uint16_t)fp_shard(&ops[i].fp);
		b->order[i] = &b->plans[i];
	}
	qsort(b->order, count, sizeof(*b->order), plan_compare);
	return 0;
}

static int batch_run(struct batch *b)
{
	struct bstore *st = b->st;
	int r;

	plan_epochs(b);
	r = plan_all(b);
	if (!r)
		r = refuse_changes(b);
	if (r)
		return r;
	r = append_all(b);
	if (r) {
		lumps_settle(st->lumps, false);
		bstore_fail(st, r, "append to lumps");
		return r;
	}
	if (!b->dirty) {
		lumps_settle(st->lumps, false);
		return 0;
	}
	r = lumps_sync(st->lumps);
	if (r) {
		/* The kernel has dropped what it could not write: only reading it all from
		 * the disk again tells what is there. */
		lumps_settle(st->lumps, false);
		bstore_fail(st, r, "sync lumps");
		return r;
	}
	r = st->disk.ops->before_commit(st->disk.ctx);
	if (!r)
		r = index_all(b);
	if (b->uncertain) {
		/* The transaction may be on the disk all the same: nothing is cut off, and
		 * nothing may be committed on top, so no error is a passing one here. */
		bstore_fail(st, -EIO, "commit the index");
		return r;
	}
	if (r) {
		lumps_settle(st->lumps, false);
		bstore_fail(st, r, "change the index");
		return r;
	}
	lumps_settle(st->lumps, true);
	return 0;
}

static void count_ops(struct bstore *st, struct batch *b)
{
	for (size_t i = 0; i < b->count; i++) {
		struct plan *p = &b->plans[i];

		if (p->todo == TODO_FOLLOW)
			p->op->r = p->leader->op->r;
		if (p->todo == TODO_DELETE && !p->op->r)
			block_cache_drop(st->cache, p->op->domain, &p->op->fp);
		if (p->op->kind == STORE_BAD)
			st->bad++;
		if (p->op->kind != STORE_PUT || p->op->r)
			continue;
		st->puts++;
		st->put_bytes += p->op->len;
		st->put_dups += p->op->existed;
		if (!p->op->existed)
			st->full = false;
	}
	st->commits += b->dirty;
	bstore_publish_info(st);
}

static int commit_once(struct bstore *st, struct bstore_op *ops, size_t count)
{
	struct batch b;
	int r = bstore_failed(st);

	if (!count || r)
		return r;
	r = batch_init(&b, st, ops, count);
	if (!r)
		r = batch_run(&b);
	if (!r)
		count_ops(st, &b);
	free(b.plans);
	free(b.order);
	free(b.headers);
	return r;
}

/*
 * How many of @ops one transaction shall hold. It copies each page that it changes, and what it copied is free
 * for later ones only: scattered over a large index, thousands of stamps take as many pages. They get half
 * of what the disk has, reserve and all. The shards of a map are not parted: see STORE_STAMP.
 */
static int next_count(struct bstore *st, const struct bstore_op *ops, size_t count, size_t *next)
{
	uint64_t room, blocks = 0;
	size_t n = 0;
	int r = 0;

	*next = count;
	if (count <= SMALL_BATCH)
		return 0;
	r = st->disk.ops->space(st->disk.ctx, st->dirfd, &room);
	for (; !r && n < count; n++)
		if (ops[n].kind != STORE_EPOCH && ops[n].kind != STORE_STAMP &&
		    blocks++ == MAX(room / 2 / INDEX_GROWTH, SMALL_BATCH))
			break;
	*next = n;
	return r;
}

int bstore_commit(struct bstore *st, struct bstore_op *ops, size_t count)
{
	size_t done = 0, n;
	int r;

	do {
		r = next_count(st, ops + done, count - done, &n);
		if (!r)
			r = commit_once(st, ops + done, n);
		done += n;
	} while (!r && done < count);
	for (size_t i = 0; r && i < count; i++)
		ops[i].r = r;
	return r;
}
