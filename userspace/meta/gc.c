// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The cascade gives back, in bounded steps, what pushes that are over and images that are removed
 * still hold, and takes dying nodes apart: one node, with all that it counts, in one transaction,
 * so that a dying node is whole until it is gone.
 */
#include "meta/image.h"

#include <errno.h>
#include <string.h>

#define ROWS_A_NODE 256 /* what counts as much work as one node */

/* ---- pushes that are over ---- */

/* Takes up to @n of a push's nodes. Returns how many there were. */
static int64_t end_push_nodes(struct meta *m, int64_t push, uint32_t domain, unsigned int n,
			      struct error *err)
{
	struct fp *hashes CLEANUP_FREE = calloc(n, sizeof(*hashes));
	struct rows rows CLEANUP_ROWS = { 0 };
	size_t i, nr = 0;
	int64_t done;
	int r;

	if (!hashes)
		return error_set(err, -ENOMEM, "the meta server is out of memory");
	r = store_query(m->store, err, &rows,
			"SELECT hash FROM push_nodes WHERE push = ?1 LIMIT ?2", V_INT(push),
			V_INT(n));
	while (!r && nr < n && (r = rows_next(&rows, err)) > 0)
		r = rows_bytes(&rows, 0, hashes[nr++].b, FP_SIZE, err);
	if (r < 0)
		return r;
	rows_end(&rows);
	for (i = 0; i < nr; i++) {
		r = node_unref(m, domain, &hashes[i], 1, err);
		if (r)
			return r;
		done = store_exec(m->store, err,
				  "DELETE FROM push_nodes WHERE push = ?1 AND hash = ?2",
				  V_INT(push), V_FP(&hashes[i]));
		if (done < 0)
			return done;
	}
	return (int64_t)nr;
}

static int64_t end_push_receipts(struct meta *m, int64_t push, unsigned int n, struct error *err)
{
	return store_exec(m->store, err,
			  "DELETE FROM push_receipts WHERE push = ?1 AND fp IN (SELECT fp FROM "
			  "push_receipts WHERE push = ?1 LIMIT ?2)", V_INT(push), V_INT(n));
}

static int64_t end_push(struct meta *m, int64_t push, struct error *err)
{
	int64_t n = store_exec(m->store, err, "DELETE FROM push_disks WHERE push = ?1",
			       V_INT(push));

	return n < 0 ? n : store_exec(m->store, err, "DELETE FROM pushes WHERE id = ?1",
				      V_INT(push));
}

/* One step on one push: 1 something was done (budget goes down), 0 there is none. */
static int step_push(struct meta *m, unsigned int *budget, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int64_t push, n;
	uint32_t domain;
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT id, domain FROM pushes WHERE state = 1 ORDER BY id LIMIT 1");
	if (!r)
		r = rows_next(&rows, err);
	if (r <= 0)
		return r;
	push = rows_int(&rows, 0);
	domain = (uint32_t)rows_int(&rows, 1);
	rows_end(&rows);
	n = end_push_nodes(m, push, domain, *budget, err);
	if (n < 0)
		return (int)n;
	*budget -= (unsigned int)n;
	if (n || !*budget)
		return 1;
	n = end_push_receipts(m, push, *budget * ROWS_A_NODE, err);
	if (n < 0)
		return (int)n;
	*budget -= MIN(*budget, (unsigned int)(n + ROWS_A_NODE - 1) / ROWS_A_NODE);
	if (n)
		return 1;
	n = end_push(m, push, err);
	return n < 0 ? (int)n : 1;
}

/* ---- images that are removed ---- */

struct removed {
	struct uuid uuid;
	uint32_t domain;
	struct fp root;
};

/* 1: a version of it has gone; 0: none is left. */
static int drop_version(struct meta *m, const struct removed *im, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct fp root;
	int64_t number;
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT number, root FROM versions WHERE image = ?1 LIMIT 1",
			V_UUID(&im->uuid));
	if (!r)
		r = rows_next(&rows, err);
	if (r <= 0)
		return r;
	number = rows_int(&rows, 0);
	r = rows_bytes(&rows, 1, root.b, FP_SIZE, err);
	rows_end(&rows);
	if (!r && store_exec(m->store, err, "DELETE FROM versions WHERE image = ?1 AND number = ?2",
			     V_UUID(&im->uuid), V_INT(number)) < 0)
		r = m->store->failed;
	return r ?: node_unref(m, im->domain, &root, 1, err) ?: 1;
}

static int step_image(struct meta *m, unsigned int *budget, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct removed im;
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT uuid, domain, root FROM images WHERE removed = 1 LIMIT 1");
	if (!r)
		r = rows_next(&rows, err);
	if (r <= 0)
		return r;
	im.domain = (uint32_t)rows_int(&rows, 1);
	r = rows_bytes(&rows, 0, im.uuid.b, sizeof(im.uuid.b), err) ?:
	    rows_bytes(&rows, 2, im.root.b, FP_SIZE, err);
	rows_end(&rows);
	if (!r)
		r = drop_version(m, &im, err);
	(*budget)--;
	if (r)
		return r;
	if (store_exec(m->store, err, "DELETE FROM images WHERE uuid = ?1", V_UUID(&im.uuid)) < 0)
		return m->store->failed;
	return node_unref(m, im.domain, &im.root, 1, err) ?: 1;
}

/* ---- dying nodes ---- */

static int fp_order(const void *a, const void *b)
{
	return memcmp(a, b, FP_SIZE);
}

static int lower_block(struct meta *m, uint32_t domain, const struct fp *fp, uint64_t times,
		       struct error *err)
{
	char hex[FP_HEX_SIZE];
	int64_t left = 0;
	int r = store_int(m->store, err, &left,
			  "UPDATE blocks SET count = count - ?3 WHERE domain = ?1 AND fp = ?2 AND "
			  "count >= ?3 RETURNING count", V_INT(domain), V_FP(fp), V_INT(times));

	if (r < 0)
		return r;
	m->delta.blocks -= !left;
	return r ? 0
		 : store_fail(m->store, err, -EUCLEAN,
			      "block %s is counted fewer times than it is named; `vmdedup cluster "
			      "check` tells more",
			      fp_to_hex(fp, hex));
}

static int lower_entries(struct meta *m, uint32_t domain, struct recipe_node *node,
			 struct error *err)
{
	size_t i, j;
	int r = 0;

	qsort(node->entries, node->count, sizeof(node->entries[0]), fp_order);
	for (i = 0; !r && i < node->count; i = j) {
		const struct fp *fp = &node->entries[i];

		for (j = i + 1; j < node->count && fp_equal(fp, &node->entries[j]); j++)
			;
		if (fp_is_zero(fp))
			continue;
		r = node->level ? node_unref(m, domain, fp, j - i, err) :
				  lower_block(m, domain, fp, j - i, err);
	}
	return r;
}

static int load_node(struct meta *m, uint32_t domain, const struct fp *hash,
		     struct recipe_node *node, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	char hex[FP_HEX_SIZE];
	const void *data;
	size_t len;
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT data FROM node_data WHERE hash = ?1 AND domain = ?2", V_FP(hash),
			V_INT(domain));
	if (!r)
		r = rows_next(&rows, err);
	if (r < 0)
		return r;
	data = r ? rows_blob(&rows, 0, &len) : NULL;
	if (!r || recipe_node_decode(node, data, len, NULL))
		return store_fail(m->store, err, -EUCLEAN, "node %s is missing or damaged",
				  fp_to_hex(hash, hex));
	return 0;
}

static int take_apart(struct meta *m, uint32_t domain, const struct fp *hash, struct error *err)
{
	struct recipe_node node;
	int r;

	r = load_node(m, domain, hash, &node, err) ?: lower_entries(m, domain, &node, err);
	if (r)
		return r;
	if (store_exec(m->store, err, "DELETE FROM dying WHERE hash = ?1 AND domain = ?2",
		       V_FP(hash), V_INT(domain)) < 0 ||
	    store_exec(m->store, err, "DELETE FROM node_data WHERE hash = ?1 AND domain = ?2",
		       V_FP(hash), V_INT(domain)) < 0 ||
	    store_exec(m->store, err, "DELETE FROM nodes WHERE hash = ?1 AND domain = ?2 AND "
		       "count = 0", V_FP(hash), V_INT(domain)) < 0)
		return m->store->failed;
	m->delta.nodes--;
	return 0;
}

static int step_dying(struct meta *m, unsigned int *budget, struct gc_progress *p,
		      struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct fp hash;
	uint32_t domain;
	int r;

	r = store_query(m->store, err, &rows, "SELECT hash, domain FROM dying LIMIT 1");
	if (!r)
		r = rows_next(&rows, err);
	if (r <= 0)
		return r;
	domain = (uint32_t)rows_int(&rows, 1);
	r = rows_bytes(&rows, 0, hash.b, FP_SIZE, err);
	rows_end(&rows);
	if (!r)
		r = take_apart(m, domain, &hash, err);
	if (r)
		return r;
	(*budget)--;
	p->freed_nodes++;
	return 1;
}

int gc_cascade(struct meta *m, unsigned int budget, struct gc_progress *p, struct error *err)
{
	int r = 1;

	*p = (struct gc_progress){ 0 };
	while (r > 0 && budget) {
		r = step_push(m, &budget, err);
		if (!r)
			r = step_image(m, &budget, err);
		if (!r)
			r = step_dying(m, &budget, p, err);
	}
	p->more = r > 0;
	return r < 0 ? r : 0;
}
