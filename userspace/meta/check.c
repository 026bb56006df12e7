// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The check: every count recomputed from the recipes and compared with what is stored.
 *
 * It reads a snapshot of the store, so that mutations go on meanwhile, and in bounded steps. What
 * is named is counted in memory, for one part of hash space at a time: as many passes over the
 * recipes as it takes to keep a part below MAX_KEYS. The state of a check lives in the process that
 * runs it; when that ends, the check has to begin again. It is outside of transactions: one that is
 * run again, and a client whose reply was lost, get the last step's reply a second time.
 */
#include "meta/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_KEYS     (2U << 20)
#define MAX_PROBLEMS 100 /* of one step's reply; beyond that they are only counted */
#define MIN_TABLE    1024
#define MAX_PARTS    65536 /* in_part() knows no more */

enum kind { KIND_FREE, KIND_NODE, KIND_BLOCK };

/* What is named, and how often. A node's key has the level in which it is named as well. */
struct key {
	struct fp fp;
	uint32_t domain;
	uint8_t kind;
	bool seen;
	uint64_t count;
};

enum phase { PHASE_ROOTS, PHASE_RECIPES, PHASE_NODES, PHASE_BLOCKS, PHASE_REST, PHASE_END };

struct check {
	struct store *snap; /* NULL: the check is over */
	uint64_t id, step;
	uint8_t *last; /* the reply of the step before @step, packed; or it failed */
	size_t last_len;
	struct error failed;
	uint64_t used_ns; /* monotonic */
	unsigned int part, parts;
	enum phase phase;
	struct fp after; /* the row last seen in this phase */
	int64_t after_domain;
	struct key *keys;
	size_t nr_keys, size;
	uint64_t nodes, blocks;		    /* seen in this step */
	int64_t live_nodes, live_blocks;    /* to compare with `totals` */
	/* of this step */
	struct meta_call *c;
	Vmdedup__CheckStepReply *reply;
	unsigned int more_problems;
};

void check_free(struct check *k)
{
	if (!k)
		return;
	store_close(k->snap);
	free(k->keys);
	free(k->last);
	free(k);
}

void check_expire(struct meta *m)
{
	uint64_t now = m->env->mono_ns(m->env->ctx);

	if (!m->check || now - m->check->used_ns < CHECK_IDLE_S * 1000000000ULL)
		return;
	check_free(m->check);
	m->check = NULL;
}

__attribute__((format(printf, 2, 3)))
static int problem(struct check *k, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	if (k->reply->n_problems == MAX_PROBLEMS) {
		k->more_problems++;
		return 0;
	}
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	k->reply->problems[k->reply->n_problems] = arena_strdup(k->c->arena, text);
	if (!k->reply->problems[k->reply->n_problems])
		return call_nomem(k->c);
	k->reply->n_problems++;
	return 0;
}

/* ---- the table of what is named ---- */

static size_t slot_of(const struct check *k, enum kind kind, uint32_t domain, const struct fp *fp)
{
	uint64_t h;

	memcpy(&h, fp->b + 8, sizeof(h));
	h = (h ^ domain * 0x9e3779b97f4a7c15ULL ^ kind) * 0xff51afd7ed558ccdULL;
	return (size_t)(h >> 20) & (k->size - 1);
}

static struct key *find(struct check *k, enum kind kind, uint32_t domain, const struct fp *fp)
{
	size_t i = slot_of(k, kind, domain, fp);

	for (;; i = (i + 1) & (k->size - 1)) {
		struct key *key = &k->keys[i];

		if (key->kind == KIND_FREE ||
		    (key->kind == kind && key->domain == domain && fp_equal(&key->fp, fp)))
			return key;
	}
}

static int grow(struct check *k)
{
	struct key *old = k->keys;
	size_t i, n = k->size;

	k->size = n ? 2 * n : MIN_TABLE;
	k->keys = calloc(k->size, sizeof(*k->keys));
	if (!k->keys) {
		k->keys = old;
		k->size = n;
		return call_nomem(k->c);
	}
	for (i = 0; i < n; i++)
		if (old[i].kind != KIND_FREE)
			*find(k, old[i].kind, old[i].domain, &old[i].fp) = old[i];
	free(old);
	return 0;
}

static bool in_part(const struct check *k, const struct fp *fp)
{
	return ((unsigned int)fp->b[3] << 8 | fp->b[4]) % k->parts == k->part;
}

static int name_one(struct check *k, enum kind kind, uint32_t domain, const struct fp *fp)
{
	struct key *key;
	int r;

	if (fp_is_zero(fp) || !in_part(k, fp))
		return 0;
	if (2 * (k->nr_keys + 1) > k->size) {
		r = grow(k);
		if (r)
			return r;
	}
	key = find(k, kind, domain, fp);
	if (key->kind == KIND_FREE) {
		*key = (struct key){ .fp = *fp, .domain = domain, .kind = (uint8_t)kind };
		k->nr_keys++;
	}
	key->count++;
	return 0;
}

/* ---- phases: each returns 1 when it is through, 0 when the budget is ---- */

static int name_roots(struct check *k, const char *sql)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct fp fp;
	int r;

	r = store_query(k->snap, &k->c->err, &rows, sql);
	while (!r && (r = rows_next(&rows, &k->c->err)) > 0)
		r = rows_bytes(&rows, 0, fp.b, FP_SIZE, &k->c->err) ?:
		    name_one(k, KIND_NODE, (uint32_t)rows_int(&rows, 1), &fp);
	return r;
}

static int step_roots(struct check *k)
{
	int r = name_roots(k, "SELECT root, domain FROM images") ?:
		name_roots(k, "SELECT versions.root, images.domain FROM versions JOIN images ON "
			      "images.uuid = versions.image") ?:
		name_roots(k, "SELECT root, domain FROM leases") ?:
		name_roots(k, "SELECT parent_root, domain FROM leases") ?:
		name_roots(k, "SELECT push_nodes.hash, pushes.domain FROM push_nodes JOIN pushes "
			      "ON pushes.id = push_nodes.push");

	return r ? r : 1;
}

static int name_entries(struct check *k, uint32_t domain, const struct fp *hash, const void *data,
			size_t len)
{
	char hex[FP_HEX_SIZE];
	struct recipe_node node;
	struct fp real;
	size_t i;
	int r = 0;

	recipe_node_hash(data, len, &real);
	if (recipe_node_decode(&node, data, len, NULL) || !fp_equal(&real, hash))
		return k->part ? 0
			       : problem(k, "recipe node %s is unreadable", fp_to_hex(hash, hex));
	for (i = 0; !r && i < node.count; i++)
		r = name_one(k, node.level ? KIND_NODE : KIND_BLOCK, domain, &node.entries[i]);
	return r;
}

static int step_recipes(struct check *k, unsigned int budget)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	unsigned int n = 0;
	const void *data;
	size_t len;
	int r;

	r = store_query(k->snap, &k->c->err, &rows,
			"SELECT hash, domain, data FROM node_data WHERE (hash, domain) > (?1, ?2) "
			"ORDER BY hash, domain LIMIT ?3", V_FP(&k->after), V_INT(k->after_domain),
			V_INT(budget));
	while (!r && (r = rows_next(&rows, &k->c->err)) > 0) {
		r = rows_bytes(&rows, 0, k->after.b, FP_SIZE, &k->c->err);
		if (r)
			return r;
		k->after_domain = rows_int(&rows, 1);
		data = rows_blob(&rows, 2, &len);
		r = name_entries(k, (uint32_t)k->after_domain, &k->after, data, len);
		n++;
	}
	return r ? r : n < budget;
}

static int compare(struct check *k, enum kind kind, uint32_t domain, const struct fp *fp,
		   int64_t count)
{
	const char *what = kind == KIND_NODE ? "node" : "block";
	char hex[FP_HEX_SIZE];
	struct key *key = k->size ? find(k, kind, domain, fp) : NULL;
	int64_t named = key && key->kind != KIND_FREE ? (int64_t)key->count : 0;

	if (named)
		key->seen = true;
	if (named == count)
		return 0;
	return problem(k, "%s %s of domain %u is counted %lld times and named %lld times", what,
		       fp_to_hex(fp, hex), domain, (long long)count, (long long)named);
}

static int compare_node(struct check *k, struct rows *rows)
{
	uint32_t domain = (uint32_t)k->after_domain;
	int64_t count = rows_int(rows, 2);
	char hex[FP_HEX_SIZE];
	int r;

	k->live_nodes += k->part == 0;
	if (!in_part(k, &k->after))
		return 0;
	k->nodes++;
	r = compare(k, KIND_NODE, domain, &k->after, count);
	if (!r && (rows_int(rows, 3) != 0) != (count == 0))
		r = problem(k, "node %s with count %lld is %sdying", fp_to_hex(&k->after, hex),
			    (long long)count, count ? "" : "not ");
	if (!r && !rows_int(rows, 4))
		r = problem(k, "node %s has no bytes", fp_to_hex(&k->after, hex));
	return r;
}

static int step_nodes(struct check *k, unsigned int budget)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	unsigned int n = 0;
	int r;

	r = store_query(
		k->snap, &k->c->err, &rows,
		"SELECT hash, domain, count, EXISTS (SELECT 1 FROM dying WHERE dying.hash = "
		"nodes.hash AND dying.domain = nodes.domain), EXISTS (SELECT 1 FROM node_data "
		"WHERE node_data.hash = nodes.hash AND node_data.domain = nodes.domain) FROM "
		"nodes WHERE (hash, domain) > (?1, ?2) ORDER BY hash, domain LIMIT ?3",
		V_FP(&k->after), V_INT(k->after_domain), V_INT(budget));
	while (!r && (r = rows_next(&rows, &k->c->err)) > 0) {
		r = rows_bytes(&rows, 0, k->after.b, FP_SIZE, &k->c->err);
		if (r)
			return r;
		k->after_domain = rows_int(&rows, 1);
		r = compare_node(k, &rows);
		n++;
	}
	return r ? r : n < budget;
}

static int step_blocks(struct check *k, unsigned int budget)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	unsigned int n = 0;
	char hex[FP_HEX_SIZE];
	int64_t count;
	int r;

	r = store_query(
		k->snap, &k->c->err, &rows,
		"SELECT domain, fp, count, condemned FROM blocks WHERE (domain, fp) > (?1, ?2) "
		"ORDER BY domain, fp LIMIT ?3",
		V_INT(k->after_domain), V_FP(&k->after), V_INT(budget));
	while (!r && (r = rows_next(&rows, &k->c->err)) > 0) {
		n++;
		r = rows_bytes(&rows, 1, k->after.b, FP_SIZE, &k->c->err);
		if (r)
			return r;
		k->after_domain = rows_int(&rows, 0);
		count = rows_int(&rows, 2);
		k->live_blocks += !k->part && count;
		if (!in_part(k, &k->after))
			continue;
		k->blocks++;
		r = compare(k, KIND_BLOCK, (uint32_t)k->after_domain, &k->after, count);
		if (!r && count && rows_int(&rows, 3))
			r = problem(k, "block %s is named and condemned",
				    fp_to_hex(&k->after, hex));
	}
	return r ? r : n < budget;
}

/* Named, and not there. */
static int step_rest(struct check *k)
{
	char hex[FP_HEX_SIZE];
	size_t i;
	int r = 0;

	for (i = 0; !r && i < k->size; i++) {
		const struct key *key = &k->keys[i];

		if (key->kind != KIND_FREE && !key->seen)
			r = problem(k, "%s %s of domain %u is named %llu times and not there",
				    key->kind == KIND_NODE ? "node" : "block",
				    fp_to_hex(&key->fp, hex), key->domain,
				    (unsigned long long)key->count);
	}
	return r ? r : 1;
}

static int check_totals(struct check *k)
{
	int64_t nodes = 0, blocks = 0;
	int r;

	r = store_int(k->snap, &k->c->err, &nodes, "SELECT sum(nodes) FROM totals");
	if (r >= 0)
		r = store_int(k->snap, &k->c->err, &blocks, "SELECT sum(blocks) FROM totals");
	if (r < 0)
		return r;
	if (nodes == k->live_nodes && blocks == k->live_blocks)
		return 0;
	return problem(k, "totals say %lld nodes and %lld blocks, there are %lld and %lld",
		       (long long)nodes, (long long)blocks, (long long)k->live_nodes,
		       (long long)k->live_blocks);
}

static void forget_keys(struct check *k)
{
	free(k->keys);
	k->keys = NULL;
	k->size = k->nr_keys = 0;
	k->after = (struct fp){ 0 };
	k->after_domain = -1;
}

/* Much more is named than the store's totals say: from the beginning, in smaller parts. */
static int more_parts(struct check *k)
{
	forget_keys(k);
	if (k->parts > MAX_PARTS / 2)
		return call_error(k->c, -E2BIG, "the recipes name more than a check can count");
	k->parts *= 2;
	k->part = 0;
	k->live_nodes = k->live_blocks = 0;
	k->phase = PHASE_ROOTS;
	return 0;
}

static int next_phase(struct check *k)
{
	if (k->phase != PHASE_REST) {
		k->after = (struct fp){ 0 };
		k->after_domain = -1;
		k->phase++;
		return 0;
	}
	forget_keys(k);
	k->phase = ++k->part < k->parts ? PHASE_ROOTS : PHASE_END;
	return k->phase == PHASE_END ? check_totals(k) : 0;
}

static int run(struct check *k, unsigned int budget)
{
	int r = 0;

	switch (k->phase) {
	case PHASE_ROOTS:
		r = step_roots(k);
		break;
	case PHASE_RECIPES:
		r = step_recipes(k, budget);
		break;
	case PHASE_NODES:
		r = step_nodes(k, budget);
		break;
	case PHASE_BLOCKS:
		r = step_blocks(k, budget * RECIPE_FANOUT);
		break;
	case PHASE_REST:
		r = step_rest(k);
		break;
	case PHASE_END:
		break;
	}
	if (r >= 0 && k->nr_keys > 2 * MAX_KEYS)
		return more_parts(k);
	return r > 0 ? next_phase(k) : r;
}

/* ---- the request ---- */

static int begin(struct meta_call *c, struct check **out)
{
	struct check *k = calloc(1, sizeof(*k));
	int64_t nodes = 0, blocks = 0;
	int r;

	if (!k)
		return call_nomem(c);
	k->c = c;
	k->after_domain = -1;
	r = store_snapshot(call_store(c), &k->snap, &c->err) ?: call_random_id(c, &k->id);
	/* To count the tables would take minutes where they are large. */
	if (!r)
		r = store_int(k->snap, &c->err, &nodes, "SELECT sum(nodes) FROM totals");
	if (r >= 0)
		r = store_int(k->snap, &c->err, &blocks, "SELECT sum(blocks) FROM totals");
	if (r < 0) {
		check_free(k);
		return r;
	}
	nodes = nodes > 0 ? nodes : 0; /* whatever a damaged store says */
	blocks = blocks > 0 ? blocks : 0;
	k->parts = (unsigned int)MIN(nodes / MAX_KEYS + blocks / MAX_KEYS + 1, MAX_PARTS);
	*out = k;
	return 0;
}

/* 1: that step is done already. */
static int resume(struct meta_call *c, struct check **out)
{
	const ProtobufCBinaryData *cursor = &c->req->check_step->cursor;
	struct check *k = c->m->check;
	uint64_t want[2];

	if (!cursor->len) {
		check_free(k);
		c->m->check = NULL;
		return begin(c, &c->m->check) ?: (*out = c->m->check, 0);
	}
	if (cursor->len != sizeof(want))
		return call_error(c, -EINVAL, "cursor: take it from the reply before");
	memcpy(want, cursor->data, sizeof(want));
	if (!k || k->id != want[0] || (k->step != want[1] && k->step != want[1] + 1) ||
	    (k->step == want[1] && !k->snap))
		return call_error(c, -ESTALE, "this check has ended; begin again");
	*out = k;
	return k->step != want[1];
}

static int answer_again(struct meta_call *c, const struct check *k)
{
	ProtobufCAllocator alloc = arena_protobuf(c->arena);

	if (k->failed.code)
		return call_error(c, k->failed.code, "%s", k->failed.text);
	c->reply.check_step = vmdedup__check_step_reply__unpack(&alloc, k->last_len, k->last);
	if (!c->reply.check_step)
		return call_nomem(c);
	c->reply.body_case = VMDEDUP__REPLY__BODY_CHECK_STEP;
	return 0;
}

static int keep_reply(struct check *k)
{
	size_t len = vmdedup__check_step_reply__get_packed_size(k->reply);
	uint8_t *last = realloc(k->last, len + 1);

	if (!last)
		return call_nomem(k->c);
	k->last = last;
	k->last_len = vmdedup__check_step_reply__pack(k->reply, last);
	return 0;
}

static void end(struct check *k)
{
	store_close(k->snap);
	k->snap = NULL;
	forget_keys(k);
}

/* An empty cursor in the reply: the check is through. */
int check_step(struct meta_call *c)
{
	unsigned int budget = c->req->check_step->budget;
	Vmdedup__CheckStepReply *reply = call_alloc(c, sizeof(*reply));
	struct check *k = NULL;
	uint64_t cursor[2];
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__check_step_reply__init(reply);
	reply->problems = call_alloc(c, (MAX_PROBLEMS + 1) * sizeof(*reply->problems));
	if (!reply->problems)
		return call_nomem(c);
	r = resume(c, &k);
	if (r)
		return r < 0 ? r : answer_again(c, k);
	k->c = c;
	k->used_ns = c->m->env->mono_ns(c->m->env->ctx);
	k->reply = reply;
	k->more_problems = 0;
	k->nodes = k->blocks = 0;
	r = run(k, MIN(budget ? budget : 256, 1024));
	if (!r && k->more_problems) {
		reply->n_problems--;
		k->more_problems++;
		r = problem(k, "and %u more like these", k->more_problems);
	}
	reply->nodes = k->nodes;
	reply->blocks = k->blocks;
	cursor[0] = k->id;
	cursor[1] = ++k->step;
	if (!r && k->phase != PHASE_END)
		r = call_bytes(c, &reply->cursor, cursor, sizeof(cursor));
	if (!r)
		r = keep_reply(k);
	if (r) {
		k->failed = c->err;
		k->failed.code = r;
	}
	if (r || k->phase == PHASE_END)
		end(k);
	c->reply.body_case = VMDEDUP__REPLY__BODY_CHECK_STEP;
	c->reply.check_step = reply;
	return r;
}
