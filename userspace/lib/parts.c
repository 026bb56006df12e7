// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Parts of a push: recipe nodes and receipts on their way to the meta server, and the commit.
 *
 * A part must carry, or follow, the receipts of all blocks that its leaves name. Receipts come
 * in any order, so a node waits until no block that was offered before it is under way any
 * more, and a part takes nodes only after it has taken every receipt that is there.
 */
#include <errno.h>
#include <string.h>
#include "lib/push.h"

#define PART_TIMEOUT_MS	 120000
#define COMMIT_TIMEOUT_MS 120000
#define RECEIPTS_ENOUGH	 (256U << 10)
#define PART_EVERY_MS	 60000 /* also an empty one: the meta server ends pushes that are silent */

struct push_part {
	struct cluster_push *p;
	struct mutation m;
	Vmdedup__Request req;
	Vmdedup__PushPart body;
	struct node_queue nodes;
	size_t nr_nodes;
	struct net_frame frames[PROTO_MAX_NODES];
	uint8_t hashes[PROTO_MAX_NODES * FP_SIZE];
	Vmdedup__Receipt **receipts;
};

/* ---- receipts ---- */

static size_t receipt_bytes(const Vmdedup__Receipt *r)
{
	return vmdedup__receipt__get_packed_size(r) + 8;
}

void cluster_parts_hold(struct cluster_push *p, struct net_reply *reply, Vmdedup__Receipt **receipts,
		size_t count)
{
	struct held_reply *h = count && !p->err.code ? calloc(1, sizeof(*h)) : NULL;

	if (!h) {
		if (count && !p->err.code)
			cluster_push_fail(p, -ENOMEM, "out of memory");
		net_reply_free(reply);
		return;
	}
	h->reply = *reply;
	h->receipts = receipts;
	h->count = count;
	for (size_t i = 0; i < count; i++)
		p->held_bytes += receipt_bytes(receipts[i]);
	TAILQ_INSERT_TAIL(&p->held, h, link);
}

static void held_free(struct cluster_push *p, struct held_reply *h)
{
	TAILQ_REMOVE(&p->held, h, link);
	net_reply_free(&h->reply);
	free(h);
}

/* As many receipts as fit. True: these were all. */
static bool receipts_take(struct push_part *part)
{
	struct cluster_push *p = part->p;
	struct held_reply *h;
	size_t bytes = 0, max = 0;

	TAILQ_FOREACH(h, &p->held, link)
		max += h->count - h->sent;
	if (!max)
		return true;
	part->receipts = malloc(max * sizeof(*part->receipts));
	if (!part->receipts)
		return false;
	part->body.receipts = part->receipts;
	TAILQ_FOREACH(h, &p->held, link) {
		for (; h->sent < h->count; h->sent++) {
			size_t n = receipt_bytes(h->receipts[h->sent]);

			if (bytes + n > PART_RECEIPT_MAX)
				return false;
			bytes += n;
			p->held_bytes -= n;
			part->receipts[part->body.n_receipts++] = h->receipts[h->sent];
		}
	}
	return true;
}

/* The part was accepted: what it carried is not needed any more. */
static void receipts_done(struct cluster_push *p)
{
	struct held_reply *h;

	while ((h = TAILQ_FIRST(&p->held)) && h->sent == h->count)
		held_free(p, h);
	if (h && h->sent) {
		h->receipts += h->sent;
		h->count -= h->sent;
		h->sent = 0;
	}
}

/* The part was refused as a whole: its receipts go again. */
static void receipts_again(struct cluster_push *p)
{
	struct held_reply *h;

	TAILQ_FOREACH(h, &p->held, link) {
		for (size_t i = 0; i < h->sent; i++)
			p->held_bytes += receipt_bytes(h->receipts[i]);
		h->sent = 0;
	}
}

/* ---- nodes ---- */

static int node_put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		    struct error *err)
{
	struct cluster_push *p = ctx;
	struct push_node *n;
	int r = cluster_push_error(p, err);

	if (r)
		return r;
	n = malloc(sizeof(*n) + len);
	if (!n)
		return error_set(err, -ENOMEM, "out of memory");
	n->hash = *hash;
	n->ticket = p->tickets;
	n->len = len;
	memcpy(n->data, data, len);
	TAILQ_INSERT_TAIL(&p->nodes, n, link);
	p->nr_nodes++;
	return 0;
}

static int node_get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		    struct error *err)
{
	struct cluster_push *p = ctx;

	return cluster_recipe_ops.get(p->c, hash, out, len, err);
}

const struct recipe_ops cluster_push_recipe_ops = { .get = node_get, .put = node_put };

static bool node_may_go(const struct cluster_push *p, const struct push_node *n)
{
	const struct push_block *oldest = TAILQ_FIRST(&p->blocks);

	return !oldest || n->ticket < oldest->ticket;
}

static size_t nodes_ready(const struct cluster_push *p, size_t enough)
{
	struct push_node *n;
	size_t count = 0;

	TAILQ_FOREACH(n, &p->nodes, link) {
		if (!node_may_go(p, n) || count == enough)
			break;
		count++;
	}
	return count;
}

static void nodes_take(struct push_part *part)
{
	struct cluster_push *p = part->p;
	struct push_node *n;

	while (part->nr_nodes < PROTO_MAX_NODES && (n = TAILQ_FIRST(&p->nodes)) &&
	       node_may_go(p, n)) {
		TAILQ_REMOVE(&p->nodes, n, link);
		p->nr_nodes--;
		TAILQ_INSERT_TAIL(&part->nodes, n, link);
		memcpy(part->hashes + part->nr_nodes * FP_SIZE, n->hash.b, FP_SIZE);
		part->frames[part->nr_nodes++] = (struct net_frame){ .data = n->data,
								     .len = n->len };
	}
}

static void nodes_free(struct node_queue *q)
{
	struct push_node *n;

	while ((n = TAILQ_FIRST(q))) {
		TAILQ_REMOVE(q, n, link);
		free(n);
	}
}

/* Back to the head of the queue, behind the blocks that are asked for again. */
static void nodes_again(struct push_part *part)
{
	struct cluster_push *p = part->p;
	struct push_node *n;

	while ((n = TAILQ_LAST(&part->nodes, node_queue))) {
		TAILQ_REMOVE(&part->nodes, n, link);
		n->ticket = p->tickets;
		TAILQ_INSERT_HEAD(&p->nodes, n, link);
		p->nr_nodes++;
	}
}

/* ---- parts ---- */

static int redo(struct cluster_push *p, const Vmdedup__PushPartReply *todo)
{
	if (!todo || (!todo->redo_blocks.len && !todo->missing_nodes.len) ||
	    p->redos++ >= PUSH_REDO_ROUNDS)
		return cluster_push_fail(p, -EAGAIN, "the meta server keeps refusing the receipts of this "
				 "push: start it again");
	if (todo->missing_nodes.len)
		return cluster_push_fail(p, -EAGAIN, "%zu recipe nodes that this push names are unknown to "
				 "the meta server: start it again",
				 todo->missing_nodes.len / FP_SIZE);
	return cluster_push_redo(p, &todo->redo_blocks);
}

static const Vmdedup__PushPartReply *part_reply(const struct net_reply *reply)
{
	return reply->header->body_case == VMDEDUP__REPLY__BODY_PUSH_PART ?
	       reply->header->push_part : NULL;
}

static void part_answered(void *arg, int r, struct net_reply *reply)
{
	struct push_part *part = arg;
	struct cluster_push *p = part->p;
	int error = r ? 0 : reply->header->error;

	p->part = NULL;
	if (r) {
		cluster_push_fail(p, r, "the meta server did not answer a part of the push: %s",
			  strerror(-r));
	} else if (!error) {
		p->stats.nodes += part->nr_nodes;
		receipts_done(p);
	} else if (error == EAGAIN) {
		receipts_again(p);
		if (!redo(p, part_reply(reply)))
			nodes_again(part);
	} else {
		cluster_push_fail(p, -error, "%s", reply->header->error_text);
	}
	if (reply)
		net_reply_free(reply);
	nodes_free(&part->nodes);
	free(part->receipts);
	free(part);
	cluster_push_put_ref(p);
}

static void part_send(struct cluster_push *p)
{
	struct push_part *part = calloc(1, sizeof(*part));

	if (!part) {
		cluster_push_fail(p, -ENOMEM, "out of memory");
		return;
	}
	part->p = p;
	TAILQ_INIT(&part->nodes);
	vmdedup__request__init(&part->req);
	vmdedup__push_part__init(&part->body);
	if (receipts_take(part))
		nodes_take(part);
	part->body.push = p->id;
	part->body.node_hashes.data = part->hashes;
	part->body.node_hashes.len = part->nr_nodes * FP_SIZE;
	part->req.body_case = VMDEDUP__REQUEST__BODY_PUSH_PART;
	part->req.push_part = &part->body;
	part->m.req = &part->req;
	part->m.frames = part->frames;
	part->m.nr_frames = part->nr_nodes;
	part->m.deadline_ns = clock_mono_ns() + PART_TIMEOUT_MS * NS_PER_MS;
	part->m.done = part_answered;
	part->m.arg = part;
	p->part = part;
	p->part_ns = clock_mono_ns();
	p->refs++;
	cluster_mutation_submit(p->c, &part->m);
}

void cluster_parts_flush(struct cluster_push *p)
{
	bool due;

	if (p->part || p->err.code)
		return;
	if (p->flushing)
		due = p->held_bytes || nodes_ready(p, 1);
	else
		due = p->held_bytes >= RECEIPTS_ENOUGH ||
		      nodes_ready(p, PART_NODES) == PART_NODES ||
		      clock_mono_ns() - p->part_ns >= PART_EVERY_MS * NS_PER_MS;
	if (due)
		part_send(p);
}

bool cluster_parts_done(const struct cluster_push *p)
{
	return !p->part && TAILQ_EMPTY(&p->blocks) && TAILQ_EMPTY(&p->nodes) &&
	       TAILQ_EMPTY(&p->held);
}

void cluster_parts_give_up(struct cluster_push *p)
{
	if (p->part)
		p->part->m.deadline_ns = clock_mono_ns();
}

void cluster_parts_free(struct cluster_push *p)
{
	struct held_reply *h;

	nodes_free(&p->nodes);
	while ((h = TAILQ_FIRST(&p->held)))
		held_free(p, h);
}

/* ---- commit ---- */

static int drain(struct cluster_push *p, struct error *err)
{
	p->flushing = true;
	while (!p->err.code && !cluster_parts_done(p)) {
		int r;

		if (p->nr_owed)
			return error_set(err, -EINVAL, "%zu blocks are still owed to the push",
					 p->nr_owed);
		r = cluster_run(p->c, 1000);
		if (r)
			return error_set(err, r, "interrupted before the commit");
	}
	return cluster_push_error(p, err);
}

static int commit_once(struct cluster_push *p, const struct fp *root,
		       Vmdedup__PushCommitReply **out, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PushCommit commit = VMDEDUP__PUSH_COMMIT__INIT;
	struct net_reply reply;
	int r;

	commit.push = p->id;
	commit.root.data = (uint8_t *)root->b;
	commit.root.len = FP_SIZE;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_COMMIT;
	req.push_commit = &commit;
	r = cluster_mutate(p->c, &req, NULL, 0, COMMIT_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_PUSH_COMMIT)
		r = error_set(err, -EPROTO, "the meta server answered the commit with something else");
	if (!r) {
		p->committed = true;
		if (out) {
			/* It becomes the caller's; the rest of the reply ends here. */
			*out = reply.header->push_commit;
			reply.header->push_commit = NULL;
			reply.header->body_case = VMDEDUP__REPLY__BODY__NOT_SET;
		}
	} else if (r == -EAGAIN && reply.header && part_reply(&reply)) {
		if (redo(p, part_reply(&reply)))
			r = cluster_push_error(p, err);
		else
			r = 1;
	}
	net_reply_free(&reply);
	return r;
}

int cluster_push_commit(struct cluster_push *p, const struct fp *root,
			Vmdedup__PushCommitReply **reply, struct error *err)
{
	int r;

	if (reply)
		*reply = NULL;
	do {
		r = drain(p, err);
		if (!r)
			r = commit_once(p, root, reply, err);
	} while (r == 1);
	return r;
}
