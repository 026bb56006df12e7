// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Pushes: a new recipe arrives in parts that a push record owns, and the commit only moves a
 * head. Nothing that a push has brought is seen before, and what an abandoned push has brought is
 * given back in steps (gc.c).
 *
 * A volume's push is named (image, lease epoch, cut). The head stores epoch and cut of the push
 * that made it, and accepts
 *  - within the epoch, only the parent root that it has, with the very next cut;
 *  - as the first push of an epoch, only the parent root that it has, with any cut: the cut
 *    counter belongs to the cache's volume record and goes on over grants, while a new grant has
 *    no cut yet.
 * The parent may be the root that the lease stands on, when a resize has made the head of that one.
 * The same (epoch, cut) on the same parent again was committed before: it gets the first result, which
 * is the root that the lease stands on. The head may be what a resize has made of it.
 * Everything else is stale. A commit that comes late finds its lease over, or its cut behind.
 */
#include "meta/image.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct push {
	uint64_t id;
	char name[IMAGE_NAME_MAX + 1]; /* of an import, else empty */
	struct uuid image;	       /* of a volume, else all zero */
	uint64_t epoch, cut;
	struct fp parent_root;
	uint32_t domain;
	uint64_t size;
	bool make_version;
	char label[META_MAX_TEXT + 1];
	uint64_t nodes, receipts;
	uint64_t members_version;
};

static bool is_import(const struct push *p)
{
	return uuid_is_null(&p->image);
}

static int load(struct meta_call *c, uint64_t id, struct push *p)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	size_t len;
	int r;

	*p = (struct push){ .id = id };
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT name, image, epoch, cut, parent_root, domain, size, make_version, "
			"label, nodes, receipts, members_version FROM pushes WHERE id = ?1 AND "
			"state = 0", V_INT(id));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -ESTALE,
				  "push %llu is over or was never begun: begin it again",
				  (unsigned long long)id);
	snprintf(p->name, sizeof(p->name), "%s", rows_text(&rows, 0));
	p->epoch = (uint64_t)rows_int(&rows, 2);
	p->cut = (uint64_t)rows_int(&rows, 3);
	p->domain = (uint32_t)rows_int(&rows, 5);
	p->size = (uint64_t)rows_int(&rows, 6);
	p->make_version = rows_int(&rows, 7) != 0;
	snprintf(p->label, sizeof(p->label), "%s", rows_text(&rows, 8));
	p->nodes = (uint64_t)rows_int(&rows, 9);
	p->receipts = (uint64_t)rows_int(&rows, 10);
	p->members_version = (uint64_t)rows_int(&rows, 11);
	rows_blob(&rows, 1, &len);
	r = len ? rows_bytes(&rows, 1, p->image.b, sizeof(p->image.b), &c->err) : 0;
	return r ?: rows_bytes(&rows, 4, p->parent_root.b, FP_SIZE, &c->err);
}

/* ---- begin ---- */

static int insert(struct meta_call *c, struct push *p)
{
	struct store *s = call_store(c);
	int64_t n = 0;
	int r;

	r = store_int(s, &c->err, &n, "SELECT count(*) FROM pushes WHERE state = 0");
	if (r < 0)
		return r;
	if (n >= META_MAX_PUSHES)
		return call_error(c, -EBUSY, "%d pushes are open already; try later",
				  META_MAX_PUSHES);
	r = call_random_id(c, &p->id);
	if (r)
		return r;
	n = store_exec(
		s, &c->err,
		"INSERT INTO pushes (id, state, name, image, epoch, cut, parent_root, domain, "
		"size, make_version, label, nodes, receipts, members_version, used_s) VALUES "
		"(?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, 0, ?11, ?12)",
		V_INT(p->id), is_import(p) ? V_TEXT(p->name) : V_NULL,
		is_import(p) ? V_NULL : V_UUID(&p->image), V_INT(p->epoch), V_INT(p->cut),
		V_FP(&p->parent_root), V_INT(p->domain), V_INT(p->size), V_INT(p->make_version),
		V_TEXT(p->label), V_INT(c->m->params.members_version), V_INT(c->m->params.age_s));
	return n < 0 ? (int)n : 0;
}

static int begin_import(struct meta_call *c, const Vmdedup__PushBegin *req, struct push *p)
{
	int64_t one;
	int r;

	if (!req->size || req->size % 512 || req->size > IMAGE_SIZE_MAX)
		return call_error(c, -EINVAL,
				  "size: %llu bytes; an image has a multiple of 512, at "
				  "most %llu",
				  (unsigned long long)req->size,
				  (unsigned long long)IMAGE_SIZE_MAX);
	r = image_name_free(c, req->name);
	if (r)
		return r;
	r = store_int(call_store(c), &c->err, &one, "SELECT 1 FROM domains WHERE id = ?1",
		      V_INT(req->domain));
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -ENOENT, "there is no domain %u", req->domain);
	snprintf(p->name, sizeof(p->name), "%s", req->name);
	p->size = req->size;
	p->domain = req->domain;
	return insert(c, p);
}

static int stale(struct meta_call *c, const struct image *im, const struct push *p)
{
	return call_error(
		c, -ESTALE,
		"push of image \"%s\" (lease epoch %llu, cut %llu) does not follow the head "
		"(lease epoch %llu, head's epoch %llu and cut %llu)",
		im->name, (unsigned long long)p->epoch, (unsigned long long)p->cut,
		(unsigned long long)im->lease_epoch, (unsigned long long)im->head_epoch,
		(unsigned long long)im->head_cut);
}

enum follow { FOLLOW_NEXT = 0, FOLLOW_DONE = 1 };

/* The rule at the head of this file. enum follow, or -ESTALE. *l: the active lease. */
static int follows(struct meta_call *c, const struct image *im, const struct push *p,
		   struct lease *l)
{
	int r = lease_active(c, &im->uuid, l);

	if (r < 0)
		return r;
	if (!r || l->epoch != p->epoch)
		return stale(c, im, p);
	if (im->head_epoch == p->epoch && im->head_cut == p->cut)
		return fp_equal(&im->head_parent, &p->parent_root) ? FOLLOW_DONE : stale(c, im, p);
	if (im->head_epoch == p->epoch && im->head_cut + 1 != p->cut)
		return stale(c, im, p);
	if (fp_equal(&im->root, &p->parent_root))
		return FOLLOW_NEXT;
	r = image_has_grown(c, im, &p->parent_root);
	return r < 0 ? r : r ? FOLLOW_NEXT : stale(c, im, p);
}

/* A push of the same cut that is open already goes on, with what it has: its agent or its
 * connection died. Any other of the image can never be committed any more. */
static int adopt_or_insert(struct meta_call *c, struct push *p)
{
	struct store *s = call_store(c);
	int64_t id = 0, n;
	int r;

	n = store_exec(
		s, &c->err,
		"UPDATE pushes SET state = 1 WHERE image = ?1 AND state = 0 AND NOT (epoch = ?2 "
		"AND cut = ?3 AND parent_root = ?4)",
		V_UUID(&p->image), V_INT(p->epoch), V_INT(p->cut), V_FP(&p->parent_root));
	if (n < 0)
		return (int)n;
	r = store_int(
		s, &c->err, &id,
		"UPDATE pushes SET make_version = ?4, label = ?5, used_s = ?6 WHERE image = ?1 "
		"AND epoch = ?2 AND cut = ?3 AND state = 0 RETURNING id",
		V_UUID(&p->image), V_INT(p->epoch), V_INT(p->cut), V_INT(p->make_version),
		V_TEXT(p->label), V_INT(c->m->params.age_s));
	if (r <= 0)
		return r ? r : insert(c, p);
	p->id = (uint64_t)id;
	return 0;
}

static int begin_volume(struct meta_call *c, const Vmdedup__PushBegin *req, struct push *p,
			Vmdedup__PushBeginReply *reply)
{
	struct uuid cache;
	struct image im;
	struct lease l;
	int r;

	r = req->cache.len ? call_get_uuid(c, &req->cache, "the cache's UUID", &cache) : 0;
	r = r ?: call_get_uuid(c, &req->image, "the image's UUID", &p->image) ?:
	    call_get_fp(c, &req->parent_root, "the parent root", &p->parent_root) ?:
	    lease_image(c, &p->image, req->lease_epoch, &im);
	if (r)
		return r;
	if (!req->cut || req->cut > INT64_MAX || req->lease_epoch > INT64_MAX)
		return call_error(c, -EINVAL, "cuts count from 1");
	p->epoch = req->lease_epoch;
	p->cut = req->cut;
	p->domain = im.domain;
	p->size = im.size;
	r = follows(c, &im, p, &l);
	/* An epoch is one cache's, in one history. */
	if (r >= 0 && req->cache.len && !uuid_equal(&l.cache, &cache))
		r = stale(c, &im, p);
	if (r < 0)
		return r;
	if (r == FOLLOW_NEXT)
		return adopt_or_insert(c, p);
	/* What the commit made, and what the lease says: a resize may have moved the head since. */
	reply->done = true;
	reply->version = im.head_version;
	return call_bytes(c, &reply->root, l.root.b, FP_SIZE);
}

int push_begin(struct meta_call *c)
{
	const Vmdedup__PushBegin *req = c->req->push_begin;
	Vmdedup__PushBeginReply *reply = call_alloc(c, sizeof(*reply));
	struct push p = { .make_version = req->make_version };
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__push_begin_reply__init(reply);
	r = call_check_text(c, req->label, "the label");
	if (r)
		return r;
	snprintf(p.label, sizeof(p.label), "%s", req->label);
	r = req->image.len ? begin_volume(c, req, &p, reply) : begin_import(c, req, &p);
	if (r)
		return r;
	reply->push = p.id;
	reply->size = p.size;
	c->reply.body_case = VMDEDUP__REPLY__BODY_PUSH_BEGIN;
	c->reply.push_begin = reply;
	return 0;
}

/* ---- parts ---- */

static int reply_redo(struct meta_call *c, const struct fp *redo, size_t nr_redo,
		      const struct fp *missing, size_t nr_missing)
{
	Vmdedup__PushPartReply *reply = call_alloc(c, sizeof(*reply));

	if (!reply)
		return call_nomem(c);
	vmdedup__push_part_reply__init(reply);
	c->reply.body_case = VMDEDUP__REPLY__BODY_PUSH_PART;
	c->reply.push_part = reply;
	return call_bytes(c, &reply->redo_blocks, redo, MIN(nr_redo, META_MAX_REDO) * FP_SIZE) ?:
	       call_bytes(c, &reply->missing_nodes, missing,
			  MIN(nr_missing, META_MAX_REDO) * FP_SIZE);
}

/* Refused, and what was recorded on the way (receipts) stays: the next try needs only the rest. */
static int ask_again(struct meta_call *c, const char *what, size_t nr_redo, size_t nr_missing)
{
	char text[160];

	snprintf(text, sizeof(text),
		 "%s: %zu blocks need a receipt that counts, %zu nodes have to be sent", what,
		 nr_redo, nr_missing);
	c->reply.error = EAGAIN;
	c->reply.error_text = arena_strdup(c->arena, text);
	return c->reply.error_text ? 0 : call_nomem(c);
}

static uint64_t tree_nodes(struct meta_call *c, uint64_t size)
{
	uint64_t blocks = recipe_blocks(size, c->m->params.block_shift), n = 0;
	unsigned int level;

	for (level = 0; level < recipe_levels(blocks); level++)
		n += recipe_level_nodes(blocks, level);
	return n;
}

/* What one push may bring: its tree and its blocks, and as much again for parts sent twice. */
static int check_bounds(struct meta_call *c, const struct push *p)
{
	uint64_t blocks = recipe_blocks(p->size, c->m->params.block_shift);

	if (p->nodes > 2 * tree_nodes(c, p->size) + 1024 || p->receipts > 8 * blocks + 65536)
		return call_error(c, -E2BIG,
				  "the push has brought more than an image of %llu bytes "
				  "can need; begin it again",
				  (unsigned long long)p->size);
	return 0;
}

static int put_nodes(struct meta_call *c, struct push *p, struct node_put *put)
{
	const ProtobufCBinaryData *hashes = &c->req->push_part->node_hashes;
	unsigned int top = recipe_levels(recipe_blocks(p->size, c->m->params.block_shift)) - 1;
	struct fp hash;
	size_t i;
	int r = 0;

	for (i = 0; !r && i < c->nr_frames; i++) {
		memcpy(hash.b, hashes->data + i * FP_SIZE, FP_SIZE);
		r = node_put(put, &hash, c->frames[i].data, c->frames[i].len, top);
	}
	return r;
}

static int save_progress(struct meta_call *c, const struct push *p)
{
	int64_t n = store_exec(call_store(c), &c->err,
			       "UPDATE pushes SET nodes = ?2, receipts = ?3, members_version = ?4, "
			       "used_s = ?5 WHERE id = ?1", V_INT(p->id), V_INT(p->nodes),
			       V_INT(p->receipts), V_INT(p->members_version),
			       V_INT(c->m->params.age_s));

	return n < 0 ? (int)n : 0;
}

int push_part(struct meta_call *c)
{
	const Vmdedup__PushPart *req = c->req->push_part;
	struct node_put put = { .c = c, .push = req->push };
	struct meta_totals delta = c->m->delta;
	struct push p;
	int r;

	if (req->node_hashes.len != c->nr_frames * FP_SIZE || c->nr_frames > PROTO_MAX_NODES)
		return call_error(c, -EINVAL,
				  "a part has a hash for each of at most %d nodes; this one "
				  "has %zu bytes of hashes and %zu nodes",
				  PROTO_MAX_NODES, req->node_hashes.len, c->nr_frames);
	r = load(c, req->push, &p);
	if (r)
		return r;
	put.domain = p.domain;
	/* Half a MiB, of which next to nothing is used. */
	put.missing = call_room(c, META_MAX_REDO * sizeof(struct fp));
	put.redo = call_room(c, META_MAX_REDO * sizeof(struct fp));
	if (!put.missing || !put.redo)
		return call_nomem(c);
	/* With the first receipts the push is as young as they are. */
	if (!p.receipts)
		p.members_version = c->m->params.members_version;
	r = receipts_record(c, p.id, p.domain, req->receipts, req->n_receipts, &p.receipts) ?:
	    store_savepoint(call_store(c), &c->err);
	if (r)
		return r;
	r = put_nodes(c, &p, &put);
	if (r) /* so that the caller's savepoint, of the same name, is the one that is undone next */
		return store_rollback_to(call_store(c), &c->err) ?:
		       store_release(call_store(c), &c->err) ?: r;
	if (put.nr_redo || put.nr_missing) {
		r = store_rollback_to(call_store(c), &c->err) ?:
		    ask_again(c, "the part is refused", put.nr_redo, put.nr_missing);
		put.new_nodes = 0;
		c->m->delta = delta;
	}
	p.nodes += put.new_nodes;
	return r ?: store_release(call_store(c), &c->err) ?: check_bounds(c, &p) ?:
	       save_progress(c, &p) ?:
	       reply_redo(c, put.redo, put.nr_redo, put.missing, put.nr_missing);
}

/* ---- commit ---- */

static int end(struct meta_call *c, uint64_t id)
{
	int64_t n = store_exec(call_store(c), &c->err, "UPDATE pushes SET state = 1 WHERE id = ?1",
			       V_INT(id));

	return n < 0 ? (int)n : 0;
}

/* Is all there? Sets the reply to EAGAIN if not: 1. */
static int lacks(struct meta_call *c, struct push *p, const struct fp *root)
{
	struct fp *redo = NULL;
	size_t nr_redo = 0;
	int known, r;

	known = node_is_root(c, p->domain, root, p->size);
	if (known < 0)
		return known;
	if (p->members_version != c->m->params.members_version) {
		redo = call_room(c, META_MAX_REDO * sizeof(*redo));
		if (!redo)
			return call_nomem(c);
		r = receipts_recheck(c, p->id, redo, &nr_redo);
		if (r)
			return r;
	}
	if (known && !nr_redo)
		return 0;
	return ask_again(c, "the commit is refused", nr_redo, !known) ?:
	       reply_redo(c, redo, nr_redo, root, !known) ?: 1;
}

static int commit_import(struct meta_call *c, struct push *p, const struct fp *root,
			 struct image *im)
{
	int r;

	r = image_name_free(c, p->name);
	if (r)
		return r;
	r = lacks(c, p, root);
	if (r)
		return r;
	snprintf(im->name, sizeof(im->name), "%s", p->name);
	im->domain = p->domain;
	im->size = p->size;
	im->root = *root;
	r = image_insert(c, im);
	if (!r && p->make_version)
		r = image_add_version(c, im, p->label) ?: image_set_head(c, im, &im->root);
	return r;
}

/* *root: of the cut; out: of the cut that is committed. */
static int commit_volume(struct meta_call *c, struct push *p, struct fp *root, struct image *im)
{
	struct lease l;
	int r;

	r = lease_image(c, &p->image, p->epoch, im);
	if (r)
		return r;
	r = follows(c, im, p, &l);
	if (r < 0)
		return r;
	/* Committed by another push record of the same cut: that one's root is the result. */
	if (r == FOLLOW_DONE) {
		*root = l.root;
		return 0;
	}
	r = lacks(c, p, root) ?: lease_advance(c, &l, root, p->cut);
	if (r)
		return r;
	im->head_epoch = p->epoch;
	im->head_cut = p->cut;
	im->head_parent = p->parent_root;
	im->head_version = 0;
	r = image_set_head(c, im, root);
	if (!r && p->make_version)
		r = image_add_version(c, im, p->label) ?: image_set_head(c, im, root);
	return r;
}

int push_commit(struct meta_call *c)
{
	const Vmdedup__PushCommit *req = c->req->push_commit;
	Vmdedup__PushCommitReply *reply = call_alloc(c, sizeof(*reply));
	struct image im = { 0 };
	struct fp root;
	struct push p;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__push_commit_reply__init(reply);
	r = call_get_fp(c, &req->root, "the root", &root) ?: load(c, req->push, &p);
	if (r)
		return r;
	r = is_import(&p) ? commit_import(c, &p, &root, &im) : commit_volume(c, &p, &root, &im);
	if (r)
		return r < 0 ? r : 0; /* 1: the reply asks for more */
	r = end(c, p.id);
	if (r)
		return r;
	reply->version = im.head_version;
	reply->cut = p.cut;
	c->reply.body_case = VMDEDUP__REPLY__BODY_PUSH_COMMIT;
	c->reply.push_commit = reply;
	return call_bytes(c, &reply->image, im.uuid.b, sizeof(im.uuid.b)) ?:
	       call_bytes(c, &reply->root, root.b, FP_SIZE);
}

/* Of one that is over: done before. */
int push_abort(struct meta_call *c)
{
	return end(c, c->req->push_abort->push);
}

int push_expire(struct meta *m, uint64_t idle_s, struct error *err)
{
	int64_t n = store_exec(m->store, err, "UPDATE pushes SET state = 1 WHERE state = 0 AND "
			       "used_s < ?1", V_INT((int64_t)m->params.age_s - (int64_t)idle_s));

	return n < 0 ? (int)n : 0;
}
