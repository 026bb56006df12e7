// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Blocks of a push on their way to data servers. A block is asked for with TOUCH; where it is
 * missing it is sent with PUT. Both answers carry receipts, which parts.c brings to the meta
 * server. Messages are as large as what has gathered while a few others were on their way.
 */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>
#include "base/log.h"
#include "lib/push.h"

#define TOUCHES_INFLIGHT 2
#define PUTS_INFLIGHT	 4
#define TOUCH_BATCH	 1024
#define TOUCH_ENOUGH	 128	   /* below, a TOUCH waits while another is on its way */
#define PUT_ENOUGH	 (1U << 20) /* bytes; likewise */

struct push_batch {
	LIST_ENTRY(push_batch) link; /* of the push */
	struct cluster_push *p;
	struct server *s;
	bool put;
	size_t count;
	struct push_block *blocks[];
};

static void block_queue_up(struct cluster_push *p, struct push_block *b);

/* ---- content ---- */

static void blob_put(void *data, void *hint)
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

static void block_answer(struct push_block *b, int missing)
{
	void (*answer)(void *arg, int) = b->answer;

	b->answer = NULL;
	if (answer)
		answer(b->arg, missing);
}

/* It has its receipt, or the push has failed. Not in any server's queue. */
static void block_end(struct cluster_push *p, struct push_block *b, int r)
{
	TAILQ_REMOVE(&p->blocks, b, all);
	LIST_REMOVE(b, bucket);
	p->nr_blocks--;
	if (b->state == BLOCK_OWED)
		p->nr_owed--;
	if (b->blob) {
		p->bytes -= b->blob->len;
		blob_put(NULL, b->blob);
	}
	block_answer(b, r);
	free(b);
}

/* ---- failure ---- */

static void queue_drop(struct cluster_push *p, struct block_queue *q)
{
	struct push_block *b;

	while ((b = TAILQ_FIRST(q))) {
		TAILQ_REMOVE(q, b, queue);
		block_end(p, b, p->err.code);
	}
}

/* Ends every block but those in messages on their way: they are answered now and end with
 * their message. */
static void blocks_drop(struct cluster_push *p)
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
			block_end(p, b, p->err.code);
		else
			block_answer(b, p->err.code);
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
	blocks_drop(p);
	return code;
}

int cluster_push_error(const struct cluster_push *p, struct error *err)
{
	if (p->err.code && err)
		*err = p->err;
	return p->err.code;
}

/* ---- queues ---- */

static int servers_grow(struct cluster_push *p)
{
	struct push_server *grown;
	size_t n = p->c->nr_servers;

	if (n <= p->nr_servers)
		return 0;
	grown = calloc(n, sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		TAILQ_INIT(&grown[i].touch);
		TAILQ_INIT(&grown[i].put);
		if (i >= p->nr_servers)
			continue;
		TAILQ_CONCAT(&grown[i].touch, &p->servers[i].touch, queue);
		TAILQ_CONCAT(&grown[i].put, &p->servers[i].put, queue);
		grown[i].nr_touch = p->servers[i].nr_touch;
		grown[i].put_bytes = p->servers[i].put_bytes;
		grown[i].touches = p->servers[i].touches;
		grown[i].puts = p->servers[i].puts;
	}
	free(p->servers);
	p->servers = grown;
	p->nr_servers = n;
	return 0;
}

/* The first replica that is current and not known to be down; it forwards to the others. */
static struct server *home_of(struct cluster *c, const struct fp *fp)
{
	struct server *first = NULL;
	unsigned int best = UINT_MAX;

	for (unsigned int i = 0; i < c->map_replicas; i++) {
		size_t at = fp_shard(fp) * c->map_replicas + i;
		struct server *s = c->map[at];
		unsigned int rank;

		if (!s)
			continue;
		/* 0 current, 2 leaving, 1 stale */
		rank = 4 * !cluster_server_is_up(s) + (3 - c->map_states[at]) % 3;
		if (rank >= best)
			continue;
		first = s;
		best = rank;
	}
	return first;
}

static void block_queue_up(struct cluster_push *p, struct push_block *b)
{
	struct server *s = home_of(p->c, &b->fp);
	struct push_server *ps;

	b->state = b->blob && b->state != BLOCK_TOUCH ? BLOCK_PUT : BLOCK_TOUCH;
	if (!s || servers_grow(p)) {
		if (clock_mono_ns() - b->since_ns > SERVER_DEAD_MS * NS_PER_MS) {
			char hex[FP_HEX_SIZE];
			struct fp fp = b->fp;

			block_end(p, b, -EHOSTUNREACH);
			cluster_push_fail(p, -EHOSTUNREACH, "no data server holds the shard of block %s: "
				  "start a data server", fp_to_hex(&fp, hex));
			return;
		}
		TAILQ_INSERT_TAIL(&p->homeless, b, queue);
		cluster_map_want(p->c);
		return;
	}
	ps = &p->servers[s->index];
	if (b->state == BLOCK_TOUCH) {
		TAILQ_INSERT_TAIL(&ps->touch, b, queue);
		ps->nr_touch++;
	} else {
		TAILQ_INSERT_TAIL(&ps->put, b, queue);
		ps->put_bytes += b->blob->len;
	}
}

static void push_requeue(struct cluster_push *p)
{
	struct block_queue all = TAILQ_HEAD_INITIALIZER(all);
	struct push_block *b;

	TAILQ_CONCAT(&all, &p->homeless, queue);
	for (size_t i = 0; i < p->nr_servers; i++) {
		TAILQ_CONCAT(&all, &p->servers[i].touch, queue);
		TAILQ_CONCAT(&all, &p->servers[i].put, queue);
		p->servers[i].nr_touch = p->servers[i].put_bytes = 0;
	}
	while ((b = TAILQ_FIRST(&all))) {
		TAILQ_REMOVE(&all, b, queue);
		block_queue_up(p, b);
	}
	if (p->err.code)
		blocks_drop(p);
}

void cluster_pushes_requeue(struct cluster *c)
{
	struct cluster_push *p;

	TAILQ_FOREACH(p, &c->pushes, link)
		push_requeue(p);
}

void cluster_pushes_abandon(struct cluster *c, struct server *s)
{
	struct cluster_push *p;
	struct push_batch *b;

	TAILQ_FOREACH(p, &c->pushes, link) {
		LIST_FOREACH(b, &p->batches, link) {
			if (b->s != s || p->err.code)
				continue;
			for (size_t i = 0; i < b->count; i++) {
				b->blocks[i]->state = b->put ? BLOCK_PUT : BLOCK_TOUCH;
				TAILQ_INSERT_TAIL(&p->homeless, b->blocks[i], queue);
			}
			b->count = 0;
		}
	}
}

/* ---- answers ---- */

/* Again, unless the server has been silent for too long. */
static void batch_again(struct push_batch *b, bool silent)
{
	struct cluster_push *p = b->p;
	uint64_t now = clock_mono_ns();

	for (size_t i = 0; i < b->count; i++) {
		struct push_block *blk = b->blocks[i];
		uint64_t heard = MAX(b->s->last_answer_ns, blk->since_ns);

		if (silent && !p->err.code && now - heard > SERVER_DEAD_MS * NS_PER_MS)
			cluster_push_fail(p, -ETIMEDOUT, "data server %s has not answered for %d seconds: "
				  "check that it runs", b->s->endpoint, SERVER_DEAD_MS / 1000);
		if (p->err.code) {
			block_end(p, blk, p->err.code);
			continue;
		}
		blk->state = b->put ? BLOCK_PUT : BLOCK_TOUCH;
		if (silent) {
			TAILQ_INSERT_TAIL(&p->homeless, blk, queue);
			cluster_map_want(p->c);
		} else {
			block_queue_up(p, blk);
		}
	}
	b->count = 0;
}

static void server_full(struct cluster_push *p, const struct server *s)
{
	cluster_push_fail(p, -ENOSPC, "data server %s is full: free space on its disk or add a data server, "
		  "then try again; nothing that was there is lost", s->endpoint);
}

static void block_refused(struct cluster_push *p, struct push_batch *b, struct push_block *blk,
			  int error)
{
	char hex[FP_HEX_SIZE];
	struct fp fp = blk->fp;

	if (error == EAGAIN || error == EBUSY) {
		blk->state = BLOCK_PUT;
		TAILQ_INSERT_TAIL(&p->homeless, blk, queue);
		cluster_map_want(p->c);
		return;
	}
	block_end(p, blk, -error);
	if (error == ENOSPC)
		server_full(p, b->s);
	else
		cluster_push_fail(p, -error, "data server %s refused block %s: %s", b->s->endpoint,
			  fp_to_hex(&fp, hex), strerror(error));
}

static void put_answered(struct push_batch *b, struct net_reply *reply)
{
	const Vmdedup__PutReply *put = reply->header->put;
	struct cluster_push *p = b->p;

	if (put->n_errors != b->count) {
		cluster_push_fail(p, -EPROTO, "data server %s answered %zu of %zu blocks", b->s->endpoint,
			  put->n_errors, b->count);
		batch_again(b, false);
		return;
	}
	for (size_t i = 0; i < b->count; i++) {
		struct push_block *blk = b->blocks[i];
		int error = put->errors[i] < 0 ? -put->errors[i] : put->errors[i];

		if (p->err.code) {
			block_end(p, blk, p->err.code);
		} else if (error) {
			block_refused(p, b, blk, error);
		} else {
			p->stats.new_blocks++;
			p->stats.bytes_sent += blk->blob->len;
			block_end(p, blk, 0);
		}
	}
	cluster_parts_hold(p, reply, put->receipts, put->n_receipts);
}

static void block_missing(struct cluster_push *p, struct push_block *b)
{
	b->attempts = 0;
	if (b->blob) {
		b->state = BLOCK_PUT;
		block_queue_up(p, b);
	} else if (b->redo) {
		block_end(p, b, -EAGAIN);
		cluster_push_fail(p, -EAGAIN, "blocks of this push went missing from the data servers before "
			  "its commit: start it again");
	} else {
		b->state = BLOCK_OWED;
		p->nr_owed++;
		block_answer(b, 1);
	}
}

static int fp_compare(const void *a, const void *b)
{
	return memcmp(a, b, FP_SIZE);
}

static void touch_answered(struct push_batch *b, struct net_reply *reply)
{
	Vmdedup__TouchReply *touch = reply->header->touch;
	size_t missing = touch->missing.len / FP_SIZE;
	struct cluster_push *p = b->p;

	if (missing)
		qsort(touch->missing.data, missing, FP_SIZE, fp_compare);
	for (size_t i = 0; i < b->count; i++) {
		struct push_block *blk = b->blocks[i];

		if (p->err.code)
			block_end(p, blk, p->err.code);
		else if (missing && bsearch(&blk->fp, touch->missing.data, missing, FP_SIZE,
					    fp_compare))
			block_missing(p, blk);
		else
			block_end(p, blk, 0);
	}
	cluster_parts_hold(p, reply, touch->receipts, touch->n_receipts);
}

static void batch_answered(void *arg, int r, struct net_reply *reply)
{
	struct push_batch *b = arg;
	struct cluster_push *p = b->p;
	struct push_server *ps = &p->servers[b->s->index];
	int error = r ? 0 : reply->header->error;

	p->c->progress++;
	LIST_REMOVE(b, link);
	*(b->put ? &ps->puts : &ps->touches) -= 1;
	if (r == -ETIMEDOUT && b->count)
		cluster_report(p->c, b->s, "no answer to a PUT or TOUCH");
	if (!r)
		b->s->last_answer_ns = clock_mono_ns();
	if (p->freed && !p->err.code)
		cluster_push_fail(p, -ECANCELED, "the push was given up");
	if (p->c->closing && !p->err.code)
		cluster_push_fail(p, -ECANCELED, "the cluster was closed");
	if (!b->count) {
		/* Abandoned: its blocks went to another replica, whose receipts count. */
	} else if (r || error == EAGAIN || error == EBUSY) {
		batch_again(b, true);
	} else if (error == ESTALE) {
		if (reply->header->body_case == VMDEDUP__REPLY__BODY_MAP)
			cluster_map_apply(p->c, reply->header->map);
		/* If ours is the newer map, the server will have it in a moment. */
		batch_again(b, true);
	} else if (error == ENOSPC) {
		server_full(p, b->s);
		batch_again(b, false);
	} else if (error) {
		cluster_push_fail(p, -error, "data server %s: %s", b->s->endpoint,
			  reply->header->error_text);
		batch_again(b, false);
	} else if (b->put && reply->header->body_case == VMDEDUP__REPLY__BODY_PUT) {
		put_answered(b, reply);
		reply = NULL;
	} else if (!b->put && reply->header->body_case == VMDEDUP__REPLY__BODY_TOUCH) {
		touch_answered(b, reply);
		reply = NULL;
	} else {
		cluster_push_fail(p, -EPROTO, "data server %s gave an answer to another question",
			  b->s->endpoint);
		batch_again(b, false);
	}
	if (reply)
		net_reply_free(reply);
	free(b);
	cluster_push_put_ref(p);
}

/* ---- sending ---- */

static int batch_attempt_ms(struct push_batch *b, int first_ms)
{
	int ms = first_ms;

	for (size_t i = 0; i < b->count; i++)
		ms = MAX(ms, attempt_ms(first_ms, b->blocks[i]->attempts++));
	return ms;
}

static struct push_batch *batch_take(struct cluster_push *p, struct server *s, bool put, size_t max)
{
	struct push_server *ps = &p->servers[s->index];
	struct block_queue *q = put ? &ps->put : &ps->touch;
	struct push_batch *b = calloc(1, sizeof(*b) + max * sizeof(b->blocks[0]));
	struct push_block *blk;
	size_t bytes = 0;

	if (!b)
		return NULL;
	b->p = p;
	b->s = s;
	b->put = put;
	while (b->count < max && (blk = TAILQ_FIRST(q))) {
		if (put && b->count && bytes + blk->blob->len > BATCH_BYTES)
			break;
		TAILQ_REMOVE(q, blk, queue);
		if (put) {
			bytes += blk->blob->len;
			ps->put_bytes -= blk->blob->len;
		} else {
			ps->nr_touch--;
		}
		blk->state = put ? BLOCK_PUTTING : BLOCK_TOUCHING;
		b->blocks[b->count++] = blk;
	}
	*(put ? &ps->puts : &ps->touches) += 1;
	p->refs++;
	LIST_INSERT_HEAD(&p->batches, b, link);
	return b;
}

static void touch_send(struct cluster_push *p, struct server *s)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	uint8_t fps[TOUCH_BATCH * FP_SIZE];
	struct push_batch *b = batch_take(p, s, false, TOUCH_BATCH);
	struct net_client *client = cluster_server_client(p->c, s);
	int r = -ENOTCONN;

	if (!b)
		return;
	for (size_t i = 0; i < b->count; i++)
		memcpy(fps + i * FP_SIZE, b->blocks[i]->fp.b, FP_SIZE);
	touch.map_version = p->c->map_version;
	touch.domain = p->c->params.domain;
	touch.fingerprints.data = fps;
	touch.fingerprints.len = b->count * FP_SIZE;
	req.body_case = VMDEDUP__REQUEST__BODY_TOUCH;
	req.touch = &touch;
	if (client)
		r = net_client_submit(client, &req, NULL, 0, batch_attempt_ms(b, TOUCH_ATTEMPT_MS),
				      batch_answered, b);
	if (r)
		batch_answered(b, r, NULL);
}

static void put_send(struct cluster_push *p, struct server *s)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__BlockHead heads[PROTO_MAX_BLOCKS], *ptrs[PROTO_MAX_BLOCKS];
	struct net_frame frames[PROTO_MAX_BLOCKS];
	struct push_batch *b = batch_take(p, s, true, PROTO_MAX_BLOCKS);
	struct net_client *client = cluster_server_client(p->c, s);
	int r = -ENOTCONN;

	if (!b)
		return;
	for (size_t i = 0; i < b->count; i++) {
		struct push_block *blk = b->blocks[i];

		vmdedup__block_head__init(&heads[i]);
		heads[i].fingerprint.data = blk->fp.b;
		heads[i].fingerprint.len = FP_SIZE;
		heads[i].raw_size = blk->raw_len;
		heads[i].incompressible = blk->blob->len == blk->raw_len; /* tried here */
		heads[i].codec = blk->blob->len == blk->raw_len ? VMDEDUP__CODEC__RAW :
								  VMDEDUP__CODEC__ZSTD;
		ptrs[i] = &heads[i];
		__atomic_add_fetch(&blk->blob->refs, 1, __ATOMIC_RELAXED);
		frames[i] = (struct net_frame){ blk->blob->data, blk->blob->len, blob_put,
						blk->blob };
	}
	put.map_version = p->c->map_version;
	put.domain = p->c->params.domain;
	put.n_blocks = b->count;
	put.blocks = ptrs;
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &put;
	if (client) {
		r = net_client_submit(client, &req, frames, b->count,
				      batch_attempt_ms(b, PUT_ATTEMPT_MS), batch_answered, b);
	} else {
		for (size_t i = 0; i < b->count; i++)
			blob_put(NULL, b->blocks[i]->blob);
	}
	if (r)
		batch_answered(b, r, NULL);
}

static void push_flush(struct cluster_push *p)
{
	if (p->err.code || p->freed)
		return;
	for (size_t i = 0; i < p->nr_servers; i++) {
		struct push_server *ps = &p->servers[i];
		struct server *s = p->c->servers[i];

		while (!p->err.code && ps->nr_touch && ps->touches < TOUCHES_INFLIGHT &&
		       (!ps->touches || ps->nr_touch >= TOUCH_ENOUGH))
			touch_send(p, s);
		while (!p->err.code && ps->put_bytes && ps->puts < PUTS_INFLIGHT &&
		       (!ps->puts || ps->put_bytes >= PUT_ENOUGH))
			put_send(p, s);
	}
	cluster_parts_flush(p);
}

void cluster_pushes_flush(struct cluster *c)
{
	struct cluster_push *p;

	TAILQ_FOREACH(p, &c->pushes, link)
		push_flush(p);
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
	block_queue_up(p, b);
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
		block_queue_up(p, b);
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
	blob_put(NULL, blob);
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
	if (p)
		p->id = reply.header->push_begin->push;
	else
		error_set(err, -ENOMEM, "out of memory");
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
	blocks_drop(p);
	cluster_parts_give_up(p);
	if (!p->committed)
		push_abort(p);
	cluster_push_put_ref(p);
}
