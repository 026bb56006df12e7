// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Blocks of a push on their way to data servers. A block is asked for with TOUCH; where it is
 * missing it is sent with PUT. Both answers carry receipts, which parts.c brings to the meta
 * server. Messages are as large as what has gathered while a few others were on their way.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
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

void cluster_push_queue(struct cluster_push *p, struct push_block *b)
{
	struct server *s = home_of(p->c, &b->fp);
	struct push_server *ps;

	b->state = b->blob && b->state != BLOCK_TOUCH ? BLOCK_PUT : BLOCK_TOUCH;
	if (!s || servers_grow(p)) {
		if (clock_mono_ns() - b->since_ns > SERVER_DEAD_MS * NS_PER_MS) {
			char hex[FP_HEX_SIZE];
			struct fp fp = b->fp;

			cluster_push_block_end(p, b, -EHOSTUNREACH);
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
		cluster_push_queue(p, b);
	}
	if (p->err.code)
		cluster_push_blocks_drop(p);
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
			cluster_push_block_end(p, blk, p->err.code);
			continue;
		}
		blk->state = b->put ? BLOCK_PUT : BLOCK_TOUCH;
		if (silent) {
			TAILQ_INSERT_TAIL(&p->homeless, blk, queue);
			cluster_map_want(p->c);
		} else {
			cluster_push_queue(p, blk);
		}
	}
	b->count = 0;
}

static void server_full(struct cluster_push *p, const struct server *s)
{
	cluster_push_fail(p, -ENOSPC, "data server %s is full: free space on its disk or add a data "
			  "server, then try again; nothing that was there is lost", s->endpoint);
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
	cluster_push_block_end(p, blk, -error);
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
			cluster_push_block_end(p, blk, p->err.code);
		} else if (error) {
			block_refused(p, b, blk, error);
		} else {
			p->stats.new_blocks++;
			p->stats.bytes_sent += blk->blob->len;
			cluster_push_block_end(p, blk, 0);
		}
	}
	cluster_parts_hold(p, reply, put->receipts, put->n_receipts);
}

static void block_missing(struct cluster_push *p, struct push_block *b)
{
	b->attempts = 0;
	if (b->blob) {
		b->state = BLOCK_PUT;
		cluster_push_queue(p, b);
	} else if (b->redo) {
		cluster_push_block_end(p, b, -EAGAIN);
		cluster_push_fail(p, -EAGAIN, "blocks of this push went missing from the data servers before "
			  "its commit: start it again");
	} else {
		b->state = BLOCK_OWED;
		p->nr_owed++;
		cluster_push_block_answer(b, 1);
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
			cluster_push_block_end(p, blk, p->err.code);
		else if (missing && bsearch(&blk->fp, touch->missing.data, missing, FP_SIZE,
					    fp_compare))
			block_missing(p, blk);
		else
			cluster_push_block_end(p, blk, 0);
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
		frames[i] = (struct net_frame){ blk->blob->data, blk->blob->len, cluster_push_blob_put,
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
			cluster_push_blob_put(NULL, b->blocks[i]->blob);
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

