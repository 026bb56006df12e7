// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A push as its caller sees it: begin and end, blocks that are offered and given, and what has been
 * offered before. How blocks travel is push_send.c's, nodes and receipts are parts.c's.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include "base/log.h"
#include "lib/push.h"

/* ---- content ---- */

void cluster_push_blob_put(void *data, void *hint)
{
	struct blob *blob = hint;

	if (__atomic_sub_fetch(&blob->refs, 1, __ATOMIC_ACQ_REL))
		return;
	if (blob->free_fn)
		blob->free_fn((void *)blob->data, blob->hint);
	free(blob);
}

static void free_data(void *data, void *hint)
{
	free(data);
}

/* ---- what was offered ---- */

static int set_grow(struct cluster_push *p)
{
	size_t size = p->set_size ? p->set_size * 2 : 1024;
	struct fp *old = p->set, *set;

	if (p->set_used >= PUSH_SET_MAX) {
		/* Bounded memory: forget. Blocks that come again are asked for again, no more. */
		memset(p->set, 0, p->set_size * sizeof(*p->set));
		p->set_used = 0;
		return 0;
	}
	set = calloc(size, sizeof(*set));
	if (!set)
		return -ENOMEM;
	for (size_t i = 0; i < p->set_size; i++) {
		uint64_t h;

		if (fp_is_zero(&old[i]))
			continue;
		memcpy(&h, old[i].b, sizeof(h));
		while (!fp_is_zero(&set[h & (size - 1)]))
			h++;
		set[h & (size - 1)] = old[i];
	}
	free(old);
	p->set = set;
	p->set_size = size;
	return 0;
}

/* 1: was there; 0: is now; -ENOMEM */
static int set_add(struct cluster_push *p, const struct fp *fp)
{
	uint64_t h;

	if (p->set_used * 2 >= p->set_size) {
		int r = set_grow(p);

		if (r)
			return r;
	}
	memcpy(&h, fp->b, sizeof(h));
	for (;; h++) {
		struct fp *slot = &p->set[h & (p->set_size - 1)];

		if (fp_equal(slot, fp))
			return 1;
		if (!fp_is_zero(slot))
			continue;
		*slot = *fp;
		p->set_used++;
		return 0;
	}
}

/* The top bits name the shard; take others, so that one shard's blocks spread as well. */
static unsigned int bucket_of(const struct fp *fp)
{
	return (fp->b[4] << 8 | fp->b[5]) % PUSH_BUCKETS;
}

static struct push_block *block_find(struct cluster_push *p, const struct fp *fp)
{
	struct push_block *b;

	LIST_FOREACH(b, &p->buckets[bucket_of(fp)], bucket)
		if (fp_equal(&b->fp, fp))
			return b;
	return NULL;
}

static struct push_block *block_new(struct cluster_push *p, const struct fp *fp)
{
	struct push_block *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->fp = *fp;
	b->ticket = ++p->tickets;
	b->since_ns = clock_mono_ns();
	TAILQ_INSERT_TAIL(&p->blocks, b, all);
	LIST_INSERT_HEAD(&p->buckets[bucket_of(fp)], b, bucket);
	p->nr_blocks++;
	return b;
}

void cluster_push_block_answer(struct push_block *b, int missing)
{
	void (*answer)(void *arg, int) = b->answer;

	b->answer = NULL;
	if (answer)
		answer(b->arg, missing);
}

void cluster_push_block_end(struct cluster_push *p, struct push_block *b, int r)
{
	TAILQ_REMOVE(&p->blocks, b, all);
	LIST_REMOVE(b, bucket);
	p->nr_blocks--;
	if (b->state == BLOCK_OWED)
		p->nr_owed--;
	if (b->blob) {
		p->bytes -= b->blob->len;
		cluster_push_blob_put(NULL, b->blob);
	}
	cluster_push_block_answer(b, r);
	free(b);
}

/* ---- failure ---- */

static void queue_drop(struct cluster_push *p, struct block_queue *q)
{
	struct push_block *b;

	while ((b = TAILQ_FIRST(q))) {
		TAILQ_REMOVE(q, b, queue);
		cluster_push_block_end(p, b, p->err.code);
	}
}

void cluster_push_blocks_drop(struct cluster_push *p)
{
	struct push_block *b, *next;

	for (size_t i = 0; i < p->nr_servers; i++) {
		queue_drop(p, &p->servers[i].touch);
		queue_drop(p, &p->servers[i].put);
		p->servers[i].nr_touch = p->servers[i].put_bytes = 0;
	}
	queue_drop(p, &p->homeless);
	for (b = TAILQ_FIRST(&p->blocks); b; b = next) {
		next = TAILQ_NEXT(b, all);
		if (b->state == BLOCK_OWED)
			cluster_push_block_end(p, b, p->err.code);
		else
			cluster_push_block_answer(b, p->err.code);
	}
}

int cluster_push_fail(struct cluster_push *p, int code, const char *fmt, ...)
{
	va_list ap;

	if (p->err.code)
		return p->err.code;
	p->err.code = code;
	va_start(ap, fmt);
	vsnprintf(p->err.text, sizeof(p->err.text), fmt, ap);
	va_end(ap);
	cluster_push_blocks_drop(p);
	return code;
}

int cluster_push_error(const struct cluster_push *p, struct error *err)
{
	if (p->err.code && err)
		*err = p->err;
	return p->err.code;
}

/* ---- offers ---- */

int cluster_push_offer(struct cluster_push *p, const struct fp *fp,
		       void (*answer)(void *arg, int missing), void *arg, struct error *err)
{
	struct push_block *b;
	int r = cluster_push_error(p, err);

	if (r)
		return r;
	r = set_add(p, fp);
	if (r == 1 || (!r && block_find(p, fp))) {
		if (answer)
			answer(arg, 0);
		return 0;
	}
	b = r ? NULL : block_new(p, fp);
	if (!b)
		return error_set(err, -ENOMEM, "out of memory");
	p->stats.blocks++;
	b->answer = answer;
	b->arg = arg;
	b->state = BLOCK_TOUCH;
	cluster_push_queue(p, b);
	return 0;
}

static struct blob *blob_new(const void *data, size_t len, void (*free_fn)(void *, void *),
			     void *hint)
{
	struct blob *blob = malloc(sizeof(*blob));

	if (blob)
		*blob = (struct blob){ 1, data, len, free_fn, hint };
	else if (free_fn)
		free_fn((void *)data, hint);
	return blob;
}

static int block_give(struct cluster_push *p, struct push_block *b, size_t raw_len,
		      struct blob *blob)
{
	b->raw_len = raw_len;
	b->blob = blob;
	p->bytes += blob->len;
	if (b->state == BLOCK_OWED) {
		p->nr_owed--;
		b->state = BLOCK_PUT;
		cluster_push_queue(p, b);
	}
	return 0;
}

int cluster_push_give(struct cluster_push *p, const struct fp *fp, size_t raw_len,
		      const void *coded, size_t coded_len, void (*free_fn)(void *data, void *hint),
		      void *hint, struct error *err)
{
	struct push_block *b = block_find(p, fp);
	struct blob *blob;
	int r = cluster_push_error(p, err);

	if (r || !b || b->state != BLOCK_OWED || b->blob) {
		if (free_fn)
			free_fn((void *)coded, hint);
		return r ? r : error_set(err, -EINVAL, "this block is not owed to the push");
	}
	blob = blob_new(coded, coded_len, free_fn, hint);
	if (!blob)
		return error_set(err, -ENOMEM, "out of memory");
	return block_give(p, b, raw_len, blob);
}

/* Offer with the content at hand. */
static int offer_with(struct cluster_push *p, const struct fp *fp, size_t raw_len, void *coded,
		      size_t coded_len, struct error *err)
{
	struct blob *blob = blob_new(coded, coded_len, free_data, NULL);
	struct push_block *b;
	int r;

	if (!blob)
		return error_set(err, -ENOMEM, "out of memory");
	r = cluster_push_offer(p, fp, NULL, NULL, err);
	b = r ? NULL : block_find(p, fp);
	if (b && !b->blob && b->state == BLOCK_TOUCH)
		return block_give(p, b, raw_len, blob);
	cluster_push_blob_put(NULL, blob);
	return r;
}

static int wait_for_room(struct cluster_push *p, struct error *err)
{
	while (!p->err.code && (p->bytes >= PUSH_MAX_BYTES ||
				p->nr_blocks - p->nr_owed >= PUSH_MAX_BLOCKS)) {
		int r = cluster_run(p->c, 1000);

		if (r && r != -EINTR)
			return error_set(err, r, "waiting for the data servers");
	}
	return cluster_push_error(p, err);
}

static bool offered(struct cluster_push *p, const struct fp *fp)
{
	uint64_t h;

	memcpy(&h, fp->b, sizeof(h));
	for (; p->set_size && !fp_is_zero(&p->set[h & (p->set_size - 1)]); h++)
		if (fp_equal(&p->set[h & (p->set_size - 1)], fp))
			return true;
	return false;
}

int cluster_push_coded(struct cluster_push *p, const struct fp *fp, size_t raw_len,
		       const void *coded, size_t coded_len, struct error *err)
{
	void *copy;
	int r = wait_for_room(p, err);

	if (r || offered(p, fp))
		return r;
	copy = malloc(coded_len);
	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	memcpy(copy, coded, coded_len);
	return offer_with(p, fp, raw_len, copy, coded_len, err);
}

int cluster_push_block(struct cluster_push *p, const struct fp *fp, const void *data, size_t len,
		       struct error *err)
{
	size_t n;
	void *copy, *fit;
	int r = wait_for_room(p, err);

	if (r || offered(p, fp))
		return r;
	copy = malloc(len);
	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	/* Room for less than the block: what does not shrink fails, and stays as it is. */
	n = ZSTD_compressCCtx(p->cctx, copy, len - len / 16, data, len, 1);
	if (ZSTD_isError(n)) {
		memcpy(copy, data, len);
		n = len;
	} else {
		fit = realloc(copy, n);
		copy = fit ? fit : copy;
	}
	return offer_with(p, fp, len, copy, n, err);
}

int cluster_push_redo(struct cluster_push *p, const ProtobufCBinaryData *fps)
{
	for (size_t i = 0; i + FP_SIZE <= fps->len; i += FP_SIZE) {
		struct fp fp;
		struct push_block *b;

		memcpy(fp.b, fps->data + i, FP_SIZE);
		if (block_find(p, &fp))
			continue;
		b = block_new(p, &fp);
		if (!b)
			return cluster_push_fail(p, -ENOMEM, "out of memory");
		b->redo = true;
		b->state = BLOCK_TOUCH;
		/* The receipts may be of an epoch that is over: with the newest map's version the data
		 * servers learn of the next one. */
		TAILQ_INSERT_TAIL(&p->homeless, b, queue);
	}
	cluster_map_want(p->c);
	return 0;
}

size_t cluster_push_waiting(const struct cluster_push *p, size_t *bytes)
{
	if (bytes)
		*bytes = p->bytes;
	return p->nr_blocks;
}

uint64_t cluster_push_size(const struct cluster_push *p)
{
	return p->size;
}

void cluster_push_stats(const struct cluster_push *p, struct cluster_push_stats *stats)
{
	*stats = p->stats;
}

/* ---- begin and end ---- */

static struct cluster_push *push_new(struct cluster *c)
{
	struct cluster_push *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->cctx = ZSTD_createCCtx();
	if (!p->cctx) {
		free(p);
		return NULL;
	}
	p->c = c;
	p->refs = 1;
	p->part_ns = clock_mono_ns();
	TAILQ_INIT(&p->blocks);
	TAILQ_INIT(&p->homeless);
	TAILQ_INIT(&p->nodes);
	TAILQ_INIT(&p->held);
	LIST_INIT(&p->batches);
	TAILQ_INSERT_TAIL(&c->pushes, p, link);
	return p;
}

void cluster_push_put_ref(struct cluster_push *p)
{
	if (--p->refs)
		return;
	cluster_parts_free(p);
	ZSTD_freeCCtx(p->cctx);
	free(p->servers);
	free(p->set);
	free(p);
}

struct cluster_push *cluster_push_begin(struct cluster *c, const Vmdedup__PushBegin *begin,
					struct fp *root, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct cluster_push *p = NULL;
	struct net_reply reply;
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_BEGIN;
	req.push_begin = (Vmdedup__PushBegin *)begin;
	r = cluster_mutate(c, &req, NULL, 0, SERVER_DEAD_MS, &reply, err);
	if (r)
		goto free_reply;
	if (reply.header->body_case != VMDEDUP__REPLY__BODY_PUSH_BEGIN) {
		error_set(err, -EPROTO, "the meta server began no push");
		goto free_reply;
	}
	if (reply.header->push_begin->done) {
		if (root && reply.header->push_begin->root.len == FP_SIZE)
			memcpy(root->b, reply.header->push_begin->root.data, FP_SIZE);
		error_set(err, -EALREADY, "this cut is committed already");
		goto free_reply;
	}
	p = push_new(c);
	if (!p) {
		error_set(err, -ENOMEM, "out of memory");
		goto free_reply;
	}
	p->id = reply.header->push_begin->push;
	p->size = reply.header->push_begin->size;
free_reply:
	net_reply_free(&reply);
	return p;
}

static void push_abort(struct cluster_push *p)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PushAbort abort_it = VMDEDUP__PUSH_ABORT__INIT;
	struct net_reply reply;

	abort_it.push = p->id;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_ABORT;
	req.push_abort = &abort_it;
	/* If nobody answers, the meta server gives the push up by itself after a while. */
	cluster_mutate(p->c, &req, NULL, 0, 2000, &reply, NULL);
	net_reply_free(&reply);
}

void cluster_push_free(struct cluster_push *p)
{
	if (!p)
		return;
	if (!p->err.code)
		cluster_push_fail(p, -ECANCELED, "the push was given up");
	p->freed = true;
	TAILQ_REMOVE(&p->c->pushes, p, link);
	cluster_push_blocks_drop(p);
	cluster_parts_give_up(p);
	if (!p->committed)
		push_abort(p);
	cluster_push_put_ref(p);
}
