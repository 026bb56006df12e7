// SPDX-License-Identifier: GPL-2.0-or-later
/* Numbered versions of an image. Each counts one on its root, so that all of this takes constant
 * time. */
#include "meta/image.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int version_load(struct meta_call *c, const struct image *im, uint64_t number, struct version *v)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT root, size, created_s, label FROM versions WHERE image = ?1 AND "
			"number = ?2", V_UUID(&im->uuid), V_INT(number));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -ENOENT, "image \"%s\" has no version %llu; `vmdedup image "
				  "history` lists them", im->name, (unsigned long long)number);
	v->number = number;
	v->size = (uint64_t)rows_int(&rows, 1);
	v->created_s = (uint64_t)rows_int(&rows, 2);
	snprintf(v->label, sizeof(v->label), "%s", rows_text(&rows, 3));
	return rows_bytes(&rows, 0, v->root.b, FP_SIZE, &c->err);
}

int image_add_version(struct meta_call *c, struct image *im, const char *label)
{
	int64_t n;
	int r;

	r = node_ref(c, im->domain, &im->root);
	if (r)
		return r;
	im->head_version = ++im->last_version;
	im->versions++;
	n = store_exec(call_store(c), &c->err,
		       "INSERT INTO versions (image, number, root, size, created_s, label) VALUES "
		       "(?1, ?2, ?3, ?4, ?5, ?6)", V_UUID(&im->uuid), V_INT(im->last_version),
		       V_FP(&im->root), V_INT(im->size), V_INT(call_now_s(c)), V_TEXT(label));
	return n < 0 ? (int)n : 0;
}

int version_list(struct meta_call *c)
{
	const Vmdedup__VersionList *req = c->req->version_list;
	Vmdedup__VersionListReply *reply = call_alloc(c, sizeof(*reply));
	size_t limit = req->limit && req->limit < PROTO_MAX_LIST ? req->limit : PROTO_MAX_LIST;
	struct rows rows CLEANUP_ROWS = { 0 };
	struct image im;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__version_list_reply__init(reply);
	reply->versions = call_alloc(c, limit * sizeof(*reply->versions));
	if (!reply->versions)
		return call_nomem(c);
	r = image_by_name(c, req->name, &im);
	if (r)
		return r;
	r = store_query(
		call_store(c), &c->err, &rows,
		"SELECT number, root, size, created_s, label FROM versions WHERE image = ?1 "
		"AND number > ?2 ORDER BY number LIMIT ?3",
		V_UUID(&im.uuid), V_INT(req->after), V_INT(limit + 1));
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		Vmdedup__Version *v;
		struct fp root;

		if (reply->n_versions == limit) {
			reply->more = true;
			r = 0;
			break;
		}
		v = reply->versions[reply->n_versions++] = call_alloc(c, sizeof(*v));
		if (!v)
			return call_nomem(c);
		vmdedup__version__init(v);
		v->number = (uint64_t)rows_int(&rows, 0);
		v->size = (uint64_t)rows_int(&rows, 2);
		v->created_s = (uint64_t)rows_int(&rows, 3);
		v->label = arena_strdup(c->arena, rows_text(&rows, 4));
		if (!v->label)
			return call_nomem(c);
		r = rows_bytes(&rows, 1, root.b, FP_SIZE, &c->err) ?:
		    call_bytes(c, &v->root, root.b, FP_SIZE);
	}
	if (r)
		return r;
	c->reply.body_case = VMDEDUP__REPLY__BODY_VERSION_LIST;
	c->reply.version_list = reply;
	return 0;
}

static int reply_newest(struct meta_call *c, const struct image *im)
{
	struct version v;
	int r = version_load(c, im, im->last_version, &v);

	return r ? r : image_reply(c, im, &v);
}

int version_snapshot(struct meta_call *c)
{
	const Vmdedup__Snapshot *req = c->req->snapshot;
	struct image im;
	int r;

	r = call_check_text(c, req->label, "the label") ?:
	    image_find(c, req->name, &req->image, &im) ?:
	    image_add_version(c, &im, req->label);
	/* The head stays; this writes the numbers. */
	return r ? r : image_set_head(c, &im, &im.root) ?: reply_newest(c, &im);
}

/* A head that no version names, as after pushes in the background, would be gone for good. */
static int keep_head(struct meta_call *c, struct image *im, const struct version *back_to)
{
	char label[64];

	if (im->head_version || fp_equal(&im->root, &back_to->root))
		return 0;
	snprintf(label, sizeof(label), "before the rollback to %llu",
		 (unsigned long long)back_to->number);
	return image_add_version(c, im, label);
}

/* Raises the epoch: whoever still holds a grant of the head before must not commit above it. */
int version_rollback(struct meta_call *c)
{
	const Vmdedup__Rollback *req = c->req->rollback;
	struct version v;
	struct image im;
	int r;

	r = image_by_name(c, req->name, &im) ?: lease_none(c, &im, "rolled back") ?:
	    version_load(c, &im, req->version, &v);
	if (r)
		return r;
	if (v.size != im.size)
		return call_error(c, -EINVAL, "version %llu of \"%s\" has another size; clone it "
				  "instead", (unsigned long long)v.number, im.name);
	r = keep_head(c, &im, &v);
	if (r)
		return r;
	im.lease_epoch++;
	im.head_version = v.number;
	return image_set_head(c, &im, &v.root) ?: image_reply(c, &im, NULL);
}

int version_remove(struct meta_call *c)
{
	const Vmdedup__ImageRemove *req = c->req->image_remove;
	struct version v;
	struct image im;
	int64_t n;
	int r;

	r = image_find(c, req->name, &req->uuid, &im) ?: version_load(c, &im, req->version, &v);
	if (r)
		return r;
	n = store_exec(call_store(c), &c->err,
		       "DELETE FROM versions WHERE image = ?1 AND number = ?2", V_UUID(&im.uuid),
		       V_INT(v.number));
	if (n < 0)
		return (int)n;
	im.versions--;
	if (im.head_version == v.number)
		im.head_version = 0;
	return image_set_head(c, &im, &im.root) ?: node_unref(c->m, im.domain, &v.root, 1, &c->err);
}
