// SPDX-License-Identifier: GPL-2.0-or-later
/* Images: the namespace, heads, clones, removal. */
#include "meta/image.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define IMAGE_COLUMNS                                                                   \
	"uuid, name, domain, size, root, head_epoch, head_cut, head_parent, head_version, " \
	"lease_epoch, last_version, versions, created_s, changed_s"

static int read_row(struct meta_call *c, struct rows *rows, struct image *im)
{
	snprintf(im->name, sizeof(im->name), "%s", rows_text(rows, 1));
	im->domain = (uint32_t)rows_int(rows, 2);
	im->size = (uint64_t)rows_int(rows, 3);
	im->head_epoch = (uint64_t)rows_int(rows, 5);
	im->head_cut = (uint64_t)rows_int(rows, 6);
	im->head_version = (uint64_t)rows_int(rows, 8);
	im->lease_epoch = (uint64_t)rows_int(rows, 9);
	im->last_version = (uint64_t)rows_int(rows, 10);
	im->versions = (uint64_t)rows_int(rows, 11);
	im->created_s = (uint64_t)rows_int(rows, 12);
	im->changed_s = (uint64_t)rows_int(rows, 13);
	return rows_bytes(rows, 0, im->uuid.b, sizeof(im->uuid.b), &c->err) ?:
	       rows_bytes(rows, 4, im->root.b, FP_SIZE, &c->err) ?:
	       rows_bytes(rows, 7, im->head_parent.b, FP_SIZE, &c->err);
}

int image_by_name(struct meta_call *c, const char *name, struct image *im)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	const char *wrong = image_name_check(name);
	int r;

	if (wrong)
		return call_error(c, -EINVAL, "image name: %s", wrong);
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT " IMAGE_COLUMNS " FROM images WHERE name = ?1", V_TEXT(name));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -ENOENT, "there is no image \"%s\"; `vmdedup image ls` lists "
				  "them", name);
	return read_row(c, &rows, im);
}

int image_by_uuid(struct meta_call *c, const struct uuid *uuid, struct image *im)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	char text[UUID_TEXT_SIZE];
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT " IMAGE_COLUMNS " FROM images WHERE uuid = ?1 AND removed = 0",
			V_UUID(uuid));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -ENOENT, "there is no image with the UUID %s",
				  uuid_to_text(uuid, text));
	return read_row(c, &rows, im);
}

int image_find(struct meta_call *c, const char *name, const ProtobufCBinaryData *uuid,
	       struct image *im)
{
	struct uuid u;
	int r;

	if (!uuid->len)
		return image_by_name(c, name, im);
	r = call_get_uuid(c, uuid, "the image's UUID", &u);
	return r ? r : image_by_uuid(c, &u, im);
}

int image_name_free(struct meta_call *c, const char *name)
{
	const char *wrong = image_name_check(name);
	int64_t one;
	int r;

	if (wrong)
		return call_error(c, -EINVAL, "image name: %s", wrong);
	r = store_int(call_store(c), &c->err, &one, "SELECT 1 FROM images WHERE name = ?1",
		      V_TEXT(name));
	if (r > 0)
		return call_error(c, -EEXIST, "there is an image \"%s\" already", name);
	return r;
}

int image_insert(struct meta_call *c, struct image *im)
{
	const struct meta_env *env = c->m->env;
	int64_t n;
	int r;

	if (env->random(env->ctx, im->uuid.b, sizeof(im->uuid.b)))
		return call_error(c, -EIO, "no random numbers from the system");
	im->uuid.b[6] = (im->uuid.b[6] & 0x0f) | 0x40;
	im->uuid.b[8] = (im->uuid.b[8] & 0x3f) | 0x80;
	im->created_s = im->changed_s = call_now_s(c);
	r = node_ref(c, im->domain, &im->root);
	if (r)
		return r;
	n = store_exec(call_store(c), &c->err,
		       "INSERT INTO images (" IMAGE_COLUMNS ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, "
		       "?8, ?9, ?10, ?11, ?12, ?13, ?14)", V_UUID(&im->uuid), V_TEXT(im->name),
		       V_INT(im->domain), V_INT(im->size), V_FP(&im->root), V_INT(im->head_epoch),
		       V_INT(im->head_cut), V_FP(&im->head_parent), V_INT(im->head_version),
		       V_INT(im->lease_epoch), V_INT(im->last_version), V_INT(im->versions),
		       V_INT(im->created_s), V_INT(im->changed_s));
	return n < 0 ? (int)n : 0;
}

int image_set_head(struct meta_call *c, struct image *im, const struct fp *root)
{
	struct fp old = im->root;
	int64_t n;
	int r;

	r = node_ref(c, im->domain, root);
	if (r)
		return r;
	im->root = *root;
	im->changed_s = call_now_s(c);
	n = store_exec(call_store(c), &c->err,
		       "UPDATE images SET root = ?2, head_epoch = ?3, head_cut = ?4, "
		       "head_parent = ?5, head_version = ?6, lease_epoch = ?7, last_version = ?8, "
		       "versions = ?9, changed_s = ?10 WHERE uuid = ?1", V_UUID(&im->uuid),
		       V_FP(&im->root), V_INT(im->head_epoch), V_INT(im->head_cut),
		       V_FP(&im->head_parent), V_INT(im->head_version), V_INT(im->lease_epoch),
		       V_INT(im->last_version), V_INT(im->versions), V_INT(im->changed_s));
	if (n < 0)
		return (int)n;
	return node_unref(c->m, im->domain, &old, 1, &c->err);
}

uint64_t image_epoch_cut(const struct image *im)
{
	return im->head_epoch == im->lease_epoch ? im->head_cut : 0;
}

static int fill(struct meta_call *c, Vmdedup__Image *out, const struct image *im,
		const struct version *v)
{
	struct lease l;
	int leased, r;

	vmdedup__image__init(out);
	leased = lease_active(c, &im->uuid, &l);
	if (leased < 0)
		return leased;
	out->name = arena_strdup(c->arena, im->name);
	if (!out->name)
		return call_nomem(c);
	out->size = v ? v->size : im->size;
	out->version = v ? v->number : 0;
	out->versions = im->versions;
	out->domain = im->domain;
	out->created_s = v ? v->created_s : im->created_s;
	out->changed_s = v ? v->created_s : im->changed_s;
	out->lease_epoch = im->lease_epoch;
	out->head_cut = image_epoch_cut(im);
	r = call_bytes(c, &out->uuid, im->uuid.b, sizeof(im->uuid.b)) ?:
	    call_bytes(c, &out->root, v ? v->root.b : im->root.b, FP_SIZE);
	if (!r && v && v->label[0] && !(out->label = arena_strdup(c->arena, v->label)))
		r = call_nomem(c);
	if (!r && leased) {
		r = call_bytes(c, &out->leased_to, l.cache.b, sizeof(l.cache.b));
		out->leased_host = arena_strdup(c->arena, l.host);
		if (!out->leased_host)
			r = call_nomem(c);
	}
	return r;
}

int image_reply(struct meta_call *c, const struct image *im, const struct version *v)
{
	Vmdedup__Image *out = call_alloc(c, sizeof(*out));
	int r;

	if (!out)
		return call_nomem(c);
	r = fill(c, out, im, v);
	if (r)
		return r;
	c->reply.body_case = VMDEDUP__REPLY__BODY_IMAGE;
	c->reply.image = out;
	return 0;
}

int image_get(struct meta_call *c)
{
	const Vmdedup__ImageGet *req = c->req->image_get;
	struct version v;
	struct image im;
	int r;

	r = image_find(c, req->name, &req->uuid, &im);
	if (!r && req->version)
		r = version_load(c, &im, req->version, &v);
	return r ? r : image_reply(c, &im, req->version ? &v : NULL);
}

/* Names are ASCII: everything with the prefix sorts before the prefix and DEL. */
static int prefix_end(struct meta_call *c, const char *prefix, char **end)
{
	size_t len = strlen(prefix);

	if (len > IMAGE_NAME_MAX)
		return call_error(c, -EINVAL, "prefix: %zu bytes, an image name has at most %d",
				  len, IMAGE_NAME_MAX);
	*end = call_alloc(c, len + 2);
	if (!*end)
		return call_nomem(c);
	memcpy(*end, prefix, len);
	(*end)[len] = '\x7f';
	return 0;
}

int image_list(struct meta_call *c)
{
	const Vmdedup__ImageList *req = c->req->image_list;
	Vmdedup__ImageListReply *reply = call_alloc(c, sizeof(*reply));
	size_t limit = req->limit && req->limit < PROTO_MAX_LIST ? req->limit : PROTO_MAX_LIST;
	struct rows rows CLEANUP_ROWS = { 0 };
	struct image im;
	char *end;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__image_list_reply__init(reply);
	reply->images = call_alloc(c, limit * sizeof(*reply->images));
	if (!reply->images)
		return call_nomem(c);
	r = call_check_text(c, req->after, "after") ?: call_check_text(c, req->prefix, "prefix") ?:
	    prefix_end(c, req->prefix, &end);
	if (r)
		return r;
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT " IMAGE_COLUMNS " FROM images WHERE name > ?1 AND name >= ?2 AND "
			"name < ?3 ORDER BY name LIMIT ?4", V_TEXT(req->after), V_TEXT(req->prefix),
			V_TEXT(end), V_INT(limit + 1));
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		if (reply->n_images == limit) {
			reply->more = true;
			r = 0;
			break;
		}
		r = read_row(c, &rows, &im);
		if (r)
			return r;
		reply->images[reply->n_images] = call_alloc(c, sizeof(**reply->images));
		if (!reply->images[reply->n_images])
			return call_nomem(c);
		r = fill(c, reply->images[reply->n_images++], &im, NULL);
	}
	if (r)
		return r;
	c->reply.body_case = VMDEDUP__REPLY__BODY_IMAGE_LIST;
	c->reply.image_list = reply;
	return 0;
}

/* One count on the root, and a row: the same for every size. */
int image_clone(struct meta_call *c)
{
	const Vmdedup__ImageClone *req = c->req->image_clone;
	struct image source, clone = { 0 };
	struct version v;
	int r;

	r = image_by_name(c, req->source, &source) ?: image_name_free(c, req->name);
	if (!r && req->source_version)
		r = version_load(c, &source, req->source_version, &v);
	if (r)
		return r;
	snprintf(clone.name, sizeof(clone.name), "%s", req->name);
	clone.domain = source.domain;
	clone.size = req->source_version ? v.size : source.size;
	clone.root = req->source_version ? v.root : source.root;
	return image_insert(c, &clone) ?: image_reply(c, &clone, NULL);
}

/* The name is free at once; what the image held is given back in steps (gc.c). */
int image_remove(struct meta_call *c)
{
	const Vmdedup__ImageRemove *req = c->req->image_remove;
	struct store *s = call_store(c);
	struct image im;
	int64_t n;
	int r;

	if (req->version)
		return version_remove(c);
	r = image_find(c, req->name, &req->uuid, &im) ?: lease_none(c, &im, "removed");
	if (r)
		return r;
	n = store_exec(s, &c->err, "UPDATE images SET name = NULL, removed = 1, changed_s = ?2 "
		       "WHERE uuid = ?1", V_UUID(&im.uuid), V_INT(call_now_s(c)));
	if (n >= 0)
		n = store_exec(s, &c->err, "UPDATE pushes SET state = 1 WHERE image = ?1 AND "
			       "state = 0", V_UUID(&im.uuid));
	return n < 0 ? (int)n : 0;
}

int image_rename(struct meta_call *c)
{
	const Vmdedup__ImageRename *req = c->req->image_rename;
	struct image im;
	int64_t n;
	int r;

	r = image_by_name(c, req->name, &im) ?: image_name_free(c, req->new_name);
	if (r)
		return r;
	im.changed_s = call_now_s(c);
	n = store_exec(call_store(c), &c->err,
		       "UPDATE images SET name = ?2, changed_s = ?3 WHERE uuid = ?1",
		       V_UUID(&im.uuid), V_TEXT(req->new_name), V_INT(im.changed_s));
	if (n >= 0)
		n = store_exec(call_store(c), &c->err,
			       "UPDATE leases SET name = ?2 WHERE image = ?1", V_UUID(&im.uuid),
			       V_TEXT(req->new_name));
	if (n < 0)
		return (int)n;
	snprintf(im.name, sizeof(im.name), "%s", req->new_name);
	return image_reply(c, &im, NULL);
}
