// SPDX-License-Identifier: GPL-2.0-or-later
/* Batches, dispatch, and what handlers share. */
#include "meta/core.h"
#include "meta/check.h"
#include "meta/members.h"
#include "meta/membership.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_RERUNS 20 /* of a transaction that loses against others (PostgreSQL) */

enum verb_kind {
	VERB_LOOK,     /* changes nothing, and may be a little old: named by hash, or a hint */
	VERB_READ,     /* changes nothing, and vouches for what it says */
	VERB_MUTATION, /* needs (session, sequence) */
	VERB_REPEAT,   /* changes something, and may be repeated without a session */
};

struct verb {
	Vmdedup__Request__BodyCase body;
	enum verb_kind kind;
	meta_handler fn;
};

#define VERB(name, kind, fn) { VMDEDUP__REQUEST__BODY_##name, kind, fn }
static const struct verb verbs[] = {
	VERB(CLUSTER_INFO, VERB_LOOK, cluster_info),
	VERB(MAP_GET, VERB_LOOK, map_get),
	VERB(SERVER_JOIN, VERB_REPEAT, map_server_join),
	VERB(SESSION_OPEN, VERB_REPEAT, session_open),
	VERB(IMAGE_GET, VERB_READ, image_get),
	VERB(IMAGE_LIST, VERB_READ, image_list),
	VERB(IMAGE_CLONE, VERB_MUTATION, image_clone),
	VERB(IMAGE_REMOVE, VERB_MUTATION, image_remove),
	VERB(IMAGE_RENAME, VERB_MUTATION, image_rename),
	VERB(IMAGE_RESIZE, VERB_MUTATION, image_resize),
	VERB(VERSION_LIST, VERB_READ, version_list),
	VERB(SNAPSHOT, VERB_MUTATION, version_snapshot),
	VERB(ROLLBACK, VERB_MUTATION, version_rollback),
	VERB(LEASE_TAKE, VERB_MUTATION, lease_take),
	VERB(LEASE_RELEASE, VERB_MUTATION, lease_release),
	VERB(LEASE_BREAK, VERB_MUTATION, lease_break),
	VERB(LEASE_LIST, VERB_READ, lease_list),
	VERB(LEASE_REPORT, VERB_REPEAT, lease_report),
	VERB(LEASE_HANDOVER, VERB_MUTATION, lease_handover),
	VERB(HOST_FIND, VERB_READ, peers_find),
	VERB(PUSH_BEGIN, VERB_MUTATION, push_begin),
	VERB(PUSH_PART, VERB_MUTATION, push_part),
	VERB(PUSH_COMMIT, VERB_MUTATION, push_commit),
	VERB(PUSH_ABORT, VERB_MUTATION, push_abort),
	VERB(NODE_GET, VERB_LOOK, node_get),
	VERB(GC_STEP, VERB_REPEAT, gc_step),
	VERB(GC_LIST, VERB_READ, gc_list),
	VERB(GC_SELECT, VERB_READ, gc_select),
	VERB(GC_FORGET, VERB_REPEAT, gc_forget),
	VERB(BLOCK_LIST, VERB_READ, gc_block_list),
	VERB(DELETION_RESUME, VERB_MUTATION, gc_deletion_resume),
	VERB(CHECK_STEP, VERB_LOOK, check_step),
	VERB(PEER_ANNOUNCE, VERB_REPEAT, peers_announce),
	VERB(TRACE_GET, VERB_READ, trace_get),
	VERB(TRACE_PUT, VERB_REPEAT, trace_put),
	VERB(SERVER_REPORT, VERB_LOOK, membership_report),
	VERB(SERVER_SET, VERB_MUTATION, membership_server_set),
	VERB(CLUSTER_SET, VERB_MUTATION, membership_cluster_set),
	VERB(RECONCILE_BEGIN, VERB_REPEAT, reconcile_begin),
	VERB(RECONCILE_END, VERB_REPEAT, reconcile_end),
	VERB(SHARD_DROP, VERB_READ, reconcile_drop),
};

int call_error(struct meta_call *c, int code, const char *fmt, ...)
{
	char text[ERROR_TEXT_SIZE];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return error_set(&c->err, code, "%s", text);
}

int call_nomem(struct meta_call *c)
{
	return call_error(c, -ENOMEM, "the meta server is out of memory");
}

int call_bytes(struct meta_call *c, ProtobufCBinaryData *out, const void *p, size_t len)
{
	out->data = arena_memdup(c->arena, p, len);
	out->len = len;
	return out->data ? 0 : call_nomem(c);
}

int call_get_uuid(struct meta_call *c, const ProtobufCBinaryData *in, const char *what,
		  struct uuid *out)
{
	if (in->len != sizeof(out->b))
		return call_error(c, -EINVAL, "%s: %zu bytes, a UUID has 16", what, in->len);
	memcpy(out->b, in->data, sizeof(out->b));
	if (uuid_is_null(out))
		return call_error(c, -EINVAL, "%s: the UUID is all zero", what);
	return 0;
}

int call_get_fp(struct meta_call *c, const ProtobufCBinaryData *in, const char *what,
		struct fp *out)
{
	if (in->len != FP_SIZE)
		return call_error(c, -EINVAL, "%s: %zu bytes, it has 32", what, in->len);
	memcpy(out->b, in->data, FP_SIZE);
	return 0;
}

/* Length of the valid UTF-8 sequence at @p, 0: none. */
static size_t utf8_length(const uint8_t *p)
{
	size_t i, n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 :
		      p[0] < 0xf5 ? 4 : 0;

	for (i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
	    (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
		return 0;
	return n;
}

int call_check_text(struct meta_call *c, const char *text, const char *what)
{
	const uint8_t *p = (const uint8_t *)text;
	size_t n;

	if (strlen(text) > META_MAX_TEXT)
		return call_error(c, -EINVAL, "%s: %zu bytes, at most %d are allowed", what,
				  strlen(text), META_MAX_TEXT);
	for (; *p; p += n) {
		n = utf8_length(p);
		if (!n || *p < 0x20 || *p == 0x7f)
			return call_error(c, -EINVAL,
					  "%s: it holds bytes that are no printable UTF-8", what);
	}
	return 0;
}

int call_random_id(struct meta_call *c, uint64_t *id)
{
	const struct meta_env *env = c->m->env;

	do {
		if (env->random(env->ctx, id, sizeof(*id)))
			return call_error(c, -EIO, "no random numbers from the system");
		*id &= INT64_MAX;
	} while (!*id);
	return 0;
}

static int load_params(struct meta *m, struct error *err)
{
	struct meta_params *p = &m->params;
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT uuid, name, algorithm, block_shift, replicas, min_copies, "
			"receipt_key, map_version, age_s, members_version, history, deletion, "
			"out_after_s FROM cluster");
	if (!r)
		r = rows_next(&rows, err);
	if (r <= 0)
		return r ? r : store_fail(m->store, err, -EUCLEAN, "the cluster's row is missing");
	r = rows_bytes(&rows, 0, p->uuid.b, sizeof(p->uuid.b), err) ?:
	    rows_bytes(&rows, 6, p->receipt_key, sizeof(p->receipt_key), err) ?:
	    rows_bytes(&rows, 10, p->history.b, sizeof(p->history.b), err);
	if (r)
		return r;
	snprintf(p->name, sizeof(p->name), "%s", rows_text(&rows, 1));
	p->algorithm = (enum fp_algorithm)rows_int(&rows, 2);
	p->block_shift = (unsigned int)rows_int(&rows, 3);
	p->replicas = (unsigned int)rows_int(&rows, 4);
	p->min_copies = (unsigned int)rows_int(&rows, 5);
	p->map_version = (uint64_t)rows_int(&rows, 7);
	p->age_s = (uint64_t)rows_int(&rows, 8);
	p->members_version = (uint64_t)rows_int(&rows, 9);
	p->deletion_suspended = rows_int(&rows, 11) != 0;
	p->out_after_s = (uint32_t)rows_int(&rows, 12);
	if (p->block_shift < BLOCK_SHIFT_MIN || p->block_shift > BLOCK_SHIFT_MAX ||
	    p->replicas < 1 || p->replicas > 4 || p->min_copies < 1 || p->min_copies > p->replicas)
		return store_fail(
			m->store, err, -EUCLEAN,
			"the cluster's row is damaged: block_shift, replicas or min_copies");
	return 0;
}

int meta_begin(struct meta *m, struct error *err)
{
	m->delta = (struct meta_totals){ 0 };
	return store_begin(m->store, err) ?: load_params(m, err);
}

int meta_commit(struct meta *m, struct error *err)
{
	int64_t n = 0;

	if (m->delta.nodes || m->delta.blocks)
		n = store_exec(m->store, err,
			       "INSERT INTO totals (slot, nodes, blocks) VALUES (?3, ?1, ?2) ON "
			       "CONFLICT (slot) DO UPDATE SET nodes = totals.nodes + "
			       "excluded.nodes, blocks = totals.blocks + excluded.blocks",
			       V_INT(m->delta.nodes), V_INT(m->delta.blocks),
			       V_INT(m->store->slot));
	return n < 0 ? (int)n : store_commit(m->store, err);
}

void meta_rollback(struct meta *m)
{
	store_rollback(m->store);
	members_forget(m);
}

static void reset_reply(struct meta_call *c)
{
	vmdedup__reply__init(&c->reply);
	c->out = NULL;
	c->nr_out = 0;
	c->err = (struct error){ 0 };
}

static void reply_with_error(struct meta_call *c)
{
	char *text = arena_strdup(c->arena, c->err.text);
	int code = c->err.code ? c->err.code : -EIO;
	struct error err = c->err;

	reset_reply(c);
	c->err = err;
	c->reply.error = -code;
	if (text)
		c->reply.error_text = text;
}

int call_run(struct meta_call *c, meta_handler fn)
{
	struct meta_params params = c->m->params;
	struct meta_totals delta = c->m->delta;
	struct store *s = call_store(c);
	int r;

	c->m->may_cascade = true;
	r = store_savepoint(s, &c->err);
	if (r)
		return r;
	r = fn(c);
	if (s->failed)
		return s->failed;
	if (r) {
		c->m->params = params; /* the map's version, too, is what it was */
		c->m->delta = delta;
		members_forget(c->m);
		c->err.code = r;
		reply_with_error(c);
		r = store_rollback_to(s, &c->err);
		if (r)
			return r;
	}
	return store_release(s, &c->err);
}


static const struct verb *verb_of(const struct meta_call *c)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(verbs); i++)
		if (verbs[i].body == c->req->body_case)
			return &verbs[i];
	return NULL;
}

static int dispatch(struct meta_call *c, const struct verb *v)
{
	int r;

	if (!v)
		r = call_error(c, -EOPNOTSUPP, "the meta server knows no such request");
	else if (v->kind == VERB_MUTATION || (v->kind == VERB_REPEAT && c->req->mutation))
		return session_mutate(c, v->fn);
	else if (v->kind == VERB_REPEAT)
		return call_run(c, v->fn);
	else
		r = v->fn(c);
	if (call_store(c)->failed)
		return call_store(c)->failed;
	if (r)
		reply_with_error(c);
	return 0;
}

static int run_once(struct meta *m, struct meta_call *calls, size_t n, struct error *err)
{
	bool vouches = false;
	size_t i;
	int r;

	r = meta_begin(m, err);
	for (i = 0; !r && i < n; i++) {
		const struct verb *v = verb_of(&calls[i]);

		reset_reply(&calls[i]);
		r = dispatch(&calls[i], v);
		vouches |= v && v->kind == VERB_READ;
		if (r && err)
			*err = calls[i].err;
	}
	if (!r && vouches)
		r = store_sync(m->store, err);
	if (!r)
		r = meta_commit(m, err);
	if (r)
		meta_rollback(m);
	return r;
}

/* Again while it loses against other transactions; once more where the store was lost, which has
 * looked for another by then: a mutation finds its own result, all others may be repeated. */
static int run(struct meta *m, struct meta_call *calls, size_t n, struct error *err)
{
	struct arena_mark mark = arena_mark(calls->arena);
	unsigned int runs, lost = 0;
	int r = -EAGAIN;

	for (runs = 0; runs < MAX_RERUNS; runs++) {
		r = run_once(m, calls, n, err);
		if (!r)
			break;
		arena_release(calls->arena, mark); /* with what the replies had in it */
		if (r != -EAGAIN && (r != -EHOSTDOWN || lost++))
			break;
	}
	return r == -EAGAIN ? -EBUSY : r;
}

void meta_batch(struct meta *m, struct meta_call *calls, size_t n)
{
	struct error err = { 0 };
	size_t i;
	int r;

	if (!n)
		return;
	r = run(m, calls, n, &err);
	if (r && r != -EHOSTDOWN && n > 1) {
		/* One request may be what the store fails on: give each a transaction of its own.
		 */
		for (i = 0; i < n; i++)
			meta_batch(m, &calls[i], 1);
		return;
	}
	for (i = 0; r && i < n; i++) {
		reset_reply(&calls[i]);
		error_set(&calls[i].err, r, "%s", err.text);
		reply_with_error(&calls[i]);
		calls[i].reply.not_done = true;
	}
}

void meta_end(struct meta *m)
{
	check_free(m->check);
	m->check = NULL;
	members_forget(m);
}
