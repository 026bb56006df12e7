// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An image becomes larger. Its head gets the recipe of the larger image: the right edge of the tree is
 * made anew, at most a node of each level, and names only what the old one named. Zeros have no nodes.
 *
 * Of an attached image the lease stays on the root that its cache has. The cache goes on reading and
 * writing above that one; its next push names it as the parent, and is accepted as long as the head is
 * what the resize has made of it. Pushes that are open are over: they were begun for the smaller image.
 */
#include "meta/image.h"

#include <errno.h>
#include <string.h>

struct growing {
	struct meta_call *c;
	const struct image *im;
	struct node_put put;
	unsigned int top;
};

static int get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
	       struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct growing *g = ctx;
	const void *data;
	int r;

	r = store_query(call_store(g->c), err, &rows,
			"SELECT data FROM node_data WHERE hash = ?1 AND domain = ?2", V_FP(hash),
			V_INT(g->im->domain));
	if (!r)
		r = rows_next(&rows, err);
	if (r < 0)
		return r;
	data = r ? rows_blob(&rows, 0, len) : NULL;
	if (!r || *len > RECIPE_NODE_MAX)
		return store_fail(call_store(g->c), err, -EUCLEAN, "a node of the image's recipe is "
				  "not there");
	memcpy(out, data, *len);
	return 0;
}

static int put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
	       struct error *err)
{
	struct growing *g = ctx;
	int r = node_put(&g->put, hash, data, len, g->top);

	if (!r && (g->put.nr_missing || g->put.nr_redo))
		r = store_fail(call_store(g->c), err, -EUCLEAN, "the image's recipe names what is not "
			       "there");
	return r;
}

/* The nodes are a push's that is over as soon as the head names them: gc.c gives its counts back. */
static int own_push(struct meta_call *c, const struct image *im, uint64_t size, uint64_t *id)
{
	static const struct fp none;
	int64_t n;
	int r;

	r = call_random_id(c, id);
	if (r)
		return r;
	n = store_exec(call_store(c), &c->err,
		       "INSERT INTO pushes (id, state, name, image, epoch, cut, parent_root, domain, "
		       "size, make_version, label, nodes, receipts, members_version, used_s) VALUES (?1, "
		       "1, NULL, NULL, 0, 0, ?2, ?3, ?4, 0, '', 0, 0, ?5, ?6)", V_INT(*id), V_FP(&none),
		       V_INT(im->domain), V_INT(size), V_INT(c->m->params.members_version),
		       V_INT(c->m->params.age_s));
	return n < 0 ? (int)n : 0;
}

static int grow(struct meta_call *c, const struct image *im, uint64_t size, struct fp *root)
{
	static const struct recipe_ops ops = { .get = get, .put = put };
	const struct meta_params *p = &c->m->params;
	struct growing g = { .c = c, .im = im };
	int r;

	g.put.c = c;
	g.put.domain = im->domain;
	g.put.missing = call_alloc(c, META_MAX_REDO * sizeof(struct fp));
	g.put.redo = call_alloc(c, META_MAX_REDO * sizeof(struct fp));
	if (!g.put.missing || !g.put.redo)
		return call_nomem(c);
	g.top = recipe_levels(recipe_blocks(size, p->block_shift)) - 1;
	r = own_push(c, im, size, &g.put.push);
	return r ?: recipe_grow(&im->root, size, p->block_shift, p->algorithm, &ops, &g, root, &c->err);
}

/* Several resizes before the next push: the lease's root stays the first one's. */
static int note_growth(struct meta_call *c, const struct image *im, const struct fp *root,
		       uint64_t size)
{
	struct store *s = call_store(c);
	int64_t n;

	n = store_exec(s, &c->err, "UPDATE images SET size = ?2 WHERE uuid = ?1", V_UUID(&im->uuid),
		       V_INT(size));
	if (n >= 0)
		n = store_exec(s, &c->err, "UPDATE leases SET size = ?2, grown = ?3 WHERE image = ?1 AND "
			       "state = 0", V_UUID(&im->uuid), V_INT(size), V_FP(root));
	if (n >= 0)
		n = store_exec(s, &c->err, "UPDATE pushes SET state = 1 WHERE image = ?1 AND state = 0",
			       V_UUID(&im->uuid));
	return n < 0 ? (int)n : 0;
}

int image_has_grown(struct meta_call *c, const struct image *im, const struct fp *parent)
{
	int64_t one;

	return store_int(call_store(c), &c->err, &one, "SELECT 1 FROM leases WHERE image = ?1 AND "
			 "state = 0 AND root = ?2 AND grown = ?3", V_UUID(&im->uuid), V_FP(parent),
			 V_FP(&im->root));
}

int image_resize(struct meta_call *c)
{
	const Vmdedup__ImageResize *req = c->req->image_resize;
	struct image im;
	struct fp root;
	int r;

	r = image_find(c, req->name, &req->image, &im);
	if (r)
		return r;
	if (!req->size || req->size % 512 || req->size > IMAGE_SIZE_MAX)
		return call_error(c, -EINVAL, "size: %llu bytes; an image has a multiple of 512, at "
				  "most %llu", (unsigned long long)req->size,
				  (unsigned long long)IMAGE_SIZE_MAX);
	if (req->size < im.size)
		return call_error(c, -EINVAL, "image \"%s\" has %llu bytes and cannot become smaller: "
				  "export what it is to keep, and import that", im.name,
				  (unsigned long long)im.size);
	if (req->size == im.size)
		return image_reply(c, &im, NULL);
	r = grow(c, &im, req->size, &root);
	if (r)
		return r;
	im.head_version = 0;
	r = image_set_head(c, &im, &root) ?: note_growth(c, &im, &root, req->size);
	im.size = req->size;
	return r ?: image_reply(c, &im, NULL);
}
