// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Recipe nodes and the counts that hang on them.
 *
 * A node's row is made once, by the push that sends it, and raises the counts of all that it
 * names: blocks for a leaf, nodes for the others. From then on naming it raises its own count only.
 * At count 0 it is dying: its entries are still counted until gc.c takes it apart, in one
 * transaction, so that bringing the whole node again brings it back to life with one count.
 *
 * The shape is checked from the leaves up. A node knows the least and the most blocks that it can
 * span: a subtree of zeros in last place has no size of its own. A root fits an image if the
 * image's blocks lie between the two; every node that is not last in its level must be able to be
 * full.
 */
#include "meta/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int node_ref(struct meta_call *c, uint32_t domain, const struct fp *hash)
{
	char hex[FP_HEX_SIZE];
	int64_t n;

	if (fp_is_zero(hash))
		return 0;
	n = store_exec(call_store(c), &c->err,
		       "UPDATE nodes SET count = count + 1 WHERE hash = ?1 AND domain = ?2 AND "
		       "count > 0", V_FP(hash), V_INT(domain));
	if (n < 0)
		return (int)n;
	return n ? 0
		 : store_fail(call_store(c), &c->err, -EUCLEAN,
			      "root %s is recorded and its node is not there",
			      fp_to_hex(hash, hex));
}

int node_unref(struct meta *m, uint32_t domain, const struct fp *hash, uint64_t n,
	       struct error *err)
{
	char hex[FP_HEX_SIZE];
	int64_t left = 0;
	int r;

	if (fp_is_zero(hash))
		return 0;
	r = store_int(m->store, err, &left,
		      "UPDATE nodes SET count = count - ?3 WHERE hash = ?1 AND domain = ?2 AND "
		      "count >= ?3 RETURNING count", V_FP(hash), V_INT(domain), V_INT(n));
	if (r < 0)
		return r;
	if (!r)
		return store_fail(
			m->store, err, -EUCLEAN,
			"node %s is counted fewer times than it is named; `vmdedup cluster "
			"check` tells more",
			fp_to_hex(hash, hex));
	if (left)
		return 0;
	left = store_exec(m->store, err, "INSERT INTO dying (hash, domain) VALUES (?1, ?2)",
			  V_FP(hash), V_INT(domain));
	return left < 0 ? (int)left : 0;
}

static uint64_t full_span(unsigned int level)
{
	return 1ULL << (8 * (level + 1));
}

struct span {
	uint64_t min, max;
};

static int fp_order(const void *a, const void *b)
{
	return memcmp(a, b, FP_SIZE);
}

/* The distinct entries that are not zero, and how often each stands there. */
static size_t distinct(const struct recipe_node *node, struct fp out[RECIPE_FANOUT],
		       uint32_t times[RECIPE_FANOUT])
{
	size_t i, n = 0;
	struct fp sorted[RECIPE_FANOUT];

	memcpy(sorted, node->entries, node->count * sizeof(sorted[0]));
	qsort(sorted, node->count, sizeof(sorted[0]), fp_order);
	for (i = 0; i < node->count; i++) {
		if (fp_is_zero(&sorted[i]))
			continue;
		if (n && fp_equal(&out[n - 1], &sorted[i])) {
			times[n - 1]++;
			continue;
		}
		out[n] = sorted[i];
		times[n++] = 1;
	}
	return n;
}

static void want(struct fp *list, size_t *nr, const struct fp *fp)
{
	if (*nr < META_MAX_REDO)
		list[*nr] = *fp;
	(*nr)++;
}

/*
 * A block that nothing named until now may be on its way out, or not there at all: it needs a
 * receipt of the shard's epoch, in the transaction that raises its count (from here on the
 * collector does not condemn it). One that a leaf names already was vouched for then.
 */
static int raise_blocks(struct node_put *p, const struct recipe_node *node)
{
	struct meta_call *c = p->c;
	struct val vals[RECIPE_FANOUT * 3];
	struct fp fps[RECIPE_FANOUT];
	uint32_t times[RECIPE_FANOUT];
	int64_t counts[RECIPE_FANOUT];
	bool covered[RECIPE_FANOUT];
	size_t i, n, nr_new = 0;
	int r;

	n = distinct(node, fps, times);
	if (!n)
		return 0;
	for (i = 0; i < n; i++) {
		vals[3 * i] = V_INT(p->domain);
		vals[3 * i + 1] = V_FP(&fps[i]);
		vals[3 * i + 2] = V_INT(times[i]);
	}
	r = store_exec_many(
		call_store(c), &c->err,
		"INSERT INTO blocks (domain, fp, count, condemned) VALUES (?1, ?2, ?3, 0) "
		"ON CONFLICT (domain, fp) DO UPDATE SET "
		"count = blocks.count + excluded.count, condemned = 0 RETURNING count",
		vals, 3, n, counts, 0);
	if (r)
		return r;
	for (i = 0; i < n; i++)
		if (counts[i] == times[i])
			fps[nr_new++] = fps[i];
	c->m->delta.blocks += (int64_t)nr_new;
	r = receipts_cover(c, p->push, fps, nr_new, covered);
	for (i = 0; !r && i < nr_new; i++)
		if (!covered[i])
			want(p->redo, &p->nr_redo, &fps[i]);
	return r;
}

/* 1 and the child's span; 0: unknown or dying; -EINVAL: not of the level below. */
static int raise_child(struct node_put *p, unsigned int level, const struct fp *child,
		       uint64_t times, struct span *span)
{
	struct meta_call *c = p->c;
	struct rows rows CLEANUP_ROWS = { 0 };
	char hex[FP_HEX_SIZE];
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"UPDATE nodes SET count = count + ?3 WHERE hash = ?1 AND domain = ?2 AND "
			"count > 0 RETURNING level, blocks_min, blocks_max", V_FP(child),
			V_INT(p->domain), V_INT(times));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r <= 0)
		return r;
	if (rows_int(&rows, 0) != level)
		return call_error(c, -EINVAL, "a node of level %u names node %s of level %d",
				  level + 1, fp_to_hex(child, hex), (int)rows_int(&rows, 0));
	span->min = (uint64_t)rows_int(&rows, 1);
	span->max = (uint64_t)rows_int(&rows, 2);
	return 1;
}

static int raise_children(struct node_put *p, const struct recipe_node *node, struct span *span)
{
	const uint64_t full = full_span(node->level - 1U);
	const struct fp *last = &node->entries[node->count - 1];
	struct fp fps[RECIPE_FANOUT];
	uint32_t times[RECIPE_FANOUT];
	struct span child = { 0, 0 }, tail = { 1, full };
	size_t i, n;
	int r;

	n = distinct(node, fps, times);
	for (i = 0; i < n; i++) {
		bool is_last = fp_equal(&fps[i], last);

		r = raise_child(p, node->level - 1U, &fps[i], times[i], &child);
		if (r < 0)
			return r;
		if (!r) {
			want(p->missing, &p->nr_missing, &fps[i]);
			continue;
		}
		if (times[i] > is_last && child.max != full)
			return call_error(p->c, -EINVAL, "a node that is not the last of its level "
					  "has fewer than %d entries", RECIPE_FANOUT);
		if (is_last)
			tail = child;
	}
	span->min = (node->count - 1) * full + tail.min;
	span->max = (node->count - 1) * full + tail.max;
	return 0;
}

static int check(struct node_put *p, const struct fp *hash, const void *data, size_t len,
		 unsigned int max_level, struct recipe_node *node)
{
	const struct meta_params *params = &p->c->m->params;
	char hex[FP_HEX_SIZE];
	struct fp real;
	int r;

	if (len > RECIPE_NODE_MAX)
		return call_error(p->c, -EBADMSG, "recipe node %s: %zu bytes, at most %d",
				  fp_to_hex(hash, hex), len, RECIPE_NODE_MAX);
	r = recipe_node_decode(node, data, len, &p->c->err);
	if (r)
		return r;
	recipe_node_hash(data, len, &real);
	if (!fp_equal(&real, hash) || fp_is_zero(hash))
		return call_error(p->c, -EBADMSG, "recipe node %s: its bytes have another hash",
				  fp_to_hex(hash, hex));
	if (node->block_shift != params->block_shift || node->algorithm != params->algorithm)
		return call_error(p->c, -EINVAL, "recipe node %s: made for another block size or "
				  "algorithm than the cluster's", fp_to_hex(hash, hex));
	if (!node->count || node->count > RECIPE_FANOUT || node->level > max_level)
		return call_error(p->c, -EINVAL,
				  "recipe node %s: %u entries at level %u do not fit "
				  "the image",
				  fp_to_hex(hash, hex), node->count, node->level);
	return 0;
}

static int own(struct node_put *p, const struct fp *hash, bool *fresh)
{
	int64_t n = store_exec(call_store(p->c), &p->c->err,
			       "INSERT INTO push_nodes (push, hash) VALUES (?1, ?2) ON CONFLICT DO "
			       "NOTHING", V_INT(p->push), V_FP(hash));

	*fresh = n > 0;
	p->new_nodes += *fresh;
	return n < 0 ? (int)n : 0;
}

static int create(struct node_put *p, const struct fp *hash, const struct recipe_node *node,
		  const void *data, size_t len)
{
	struct store *s = call_store(p->c);
	struct span span = { node->count, node->count };
	int64_t n;
	int r;

	r = node->level ? raise_children(p, node, &span) : raise_blocks(p, node);
	if (r)
		return r;
	n = store_exec(
		s, &p->c->err,
		"INSERT INTO nodes (hash, domain, level, count, blocks_min, blocks_max) VALUES "
		"(?1, ?2, ?3, 1, ?4, ?5)",
		V_FP(hash), V_INT(p->domain), V_INT(node->level), V_INT(span.min), V_INT(span.max));
	if (n >= 0)
		n = store_exec(s, &p->c->err, "INSERT INTO node_data (hash, domain, data) VALUES "
			       "(?1, ?2, ?3)", V_FP(hash), V_INT(p->domain), V_BLOB(data, len));
	p->c->m->delta.nodes++;
	return n < 0 ? (int)n : 0;
}

static int revive(struct node_put *p, const struct fp *hash)
{
	struct store *s = call_store(p->c);
	int64_t n;

	n = store_exec(s, &p->c->err, "DELETE FROM dying WHERE hash = ?1 AND domain = ?2",
		       V_FP(hash), V_INT(p->domain));
	if (n >= 0)
		n = store_exec(s, &p->c->err, "UPDATE nodes SET count = 1 WHERE hash = ?1 AND "
			       "domain = ?2", V_FP(hash), V_INT(p->domain));
	return n < 0 ? (int)n : 0;
}

/*
 * One node of a part. What it lacks is added to p->missing and p->redo, and the part is refused
 * as a whole afterwards; the row is made all the same, so that a later node of the part that
 * names this one is not reported as well.
 */
int node_put(struct node_put *p, const struct fp *hash, const void *data, size_t len,
	     unsigned int max_level)
{
	struct meta_call *c = p->c;
	struct recipe_node node;
	int64_t count = 0;
	bool fresh;
	int found, r;

	r = check(p, hash, data, len, max_level, &node);
	if (r)
		return r;
	found = store_int(call_store(c), &c->err, &count,
			  "SELECT count FROM nodes WHERE hash = ?1 AND domain = ?2", V_FP(hash),
			  V_INT(p->domain));
	if (found < 0)
		return found;
	r = own(p, hash, &fresh);
	if (r)
		return r;
	if (!found)
		return create(p, hash, &node, data, len);
	if (!count)
		return revive(p, hash);
	return fresh ? node_ref(c, p->domain, hash) : 0;
}

int node_is_root(struct meta_call *c, uint32_t domain, const struct fp *root, uint64_t size)
{
	uint64_t blocks = recipe_blocks(size, c->m->params.block_shift);
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	if (fp_is_zero(root))
		return 1;
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT level, blocks_min, blocks_max FROM nodes WHERE hash = ?1 AND "
			"domain = ?2 AND count > 0", V_FP(root), V_INT(domain));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r <= 0)
		return r;
	if (rows_int(&rows, 0) + 1 != recipe_levels(blocks) ||
	    (uint64_t)rows_int(&rows, 1) > blocks || (uint64_t)rows_int(&rows, 2) < blocks)
		return call_error(c, -EINVAL,
				  "the root's tree does not have the shape of an image of "
				  "%llu bytes",
				  (unsigned long long)size);
	return 1;
}

static int get_one(struct meta_call *c, const struct fp *hash, struct meta_bytes *out)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	const void *data;
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT data FROM node_data WHERE hash = ?1 LIMIT 1", V_FP(hash));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r <= 0)
		return r;
	data = rows_blob(&rows, 0, &out->len);
	out->data = arena_memdup(c->arena, data, out->len);
	return out->data ? 1 : call_nomem(c);
}

int node_get(struct meta_call *c)
{
	const ProtobufCBinaryData *in = &c->req->node_get->hashes;
	Vmdedup__NodeGetReply *reply = call_alloc(c, sizeof(*reply));
	size_t i, n = in->len / FP_SIZE;
	struct fp hash;
	int r;

	if (in->len % FP_SIZE || n > PROTO_MAX_NODES)
		return call_error(c, -EINVAL, "hashes: %zu bytes; 32 for each of at most %d nodes",
				  in->len, PROTO_MAX_NODES);
	c->out = call_alloc(c, (n + 1) * sizeof(*c->out));
	if (!reply || !c->out)
		return call_nomem(c);
	vmdedup__node_get_reply__init(reply);
	reply->missing.data = call_alloc(c, in->len + 1);
	if (!reply->missing.data)
		return call_nomem(c);
	for (i = 0; i < n; i++) {
		memcpy(hash.b, in->data + i * FP_SIZE, FP_SIZE);
		r = get_one(c, &hash, &c->out[c->nr_out]);
		if (r < 0)
			return r;
		if (r) {
			c->nr_out++;
			continue;
		}
		memcpy(reply->missing.data + reply->missing.len, hash.b, FP_SIZE);
		reply->missing.len += FP_SIZE;
	}
	c->reply.body_case = VMDEDUP__REPLY__BODY_NODE_GET;
	c->reply.node_get = reply;
	return 0;
}
