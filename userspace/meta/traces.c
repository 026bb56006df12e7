// SPDX-License-Identifier: GPL-2.0-or-later
/* The order in which a boot first touched an image's blocks. Opaque here, and bounded. */
#include <errno.h>
#include "meta/core.h"

#define MAX_TRACES	4096
#define MAX_TRACE_BYTES 65536

/* 1: there is one. */
static int hot_list_get(struct meta_call *c, const struct uuid *image, ProtobufCBinaryData *out)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	const void *blocks;
	struct uuid cache;
	size_t len;
	int r;

	if (!c->req->trace_get->cache.len)
		return 0;
	r = call_get_uuid(c, &c->req->trace_get->cache, "the cache's UUID", &cache) ?:
	    store_query(call_store(c), &c->err, &rows,
			"SELECT blocks FROM hot_lists WHERE image = ?1 AND cache = ?2", V_UUID(image),
			V_UUID(&cache));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r <= 0)
		return r;
	blocks = rows_blob(&rows, 0, &len);
	return len ? (call_bytes(c, out, blocks, len) ?: 1) : 0;
}

int hot_list_put(struct meta_call *c, const struct uuid *image, const struct uuid *cache,
		 const ProtobufCBinaryData *blocks)
{
	int64_t n;

	if (blocks->len > MAX_TRACE_BYTES)
		return call_error(c, -EMSGSIZE, "a list of %zu bytes: at most %d are allowed",
				  blocks->len, MAX_TRACE_BYTES);
	n = store_exec(call_store(c), &c->err,
		       "INSERT INTO hot_lists (image, cache, blocks) VALUES (?1, ?2, ?3) ON CONFLICT "
		       "(image) DO UPDATE SET cache = ?2, blocks = ?3", V_UUID(image), V_UUID(cache),
		       V_BLOB(blocks->len ? blocks->data : (const uint8_t *)"", blocks->len));
	return n < 0 ? (int)n : 0;
}

int hot_list_drop(struct meta_call *c, const struct uuid *image, const struct uuid *cache)
{
	int64_t n = store_exec(call_store(c), &c->err,
			       "DELETE FROM hot_lists WHERE image = ?1 AND cache = ?2", V_UUID(image),
			       V_UUID(cache));

	return n < 0 ? (int)n : 0;
}

int trace_get(struct meta_call *c)
{
	const Vmdedup__TraceGet *req = c->req->trace_get;
	Vmdedup__TraceGetReply *reply = call_alloc(c, sizeof(*reply));
	struct rows rows CLEANUP_ROWS = { 0 };
	const void *blocks;
	struct uuid image;
	struct fp root;
	size_t len;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__trace_get_reply__init(reply);
	r = call_get_fp(c, &req->root, "the root", &root) ?:
	    call_get_uuid(c, &req->image, "the image's UUID", &image);
	if (r)
		return r;
	r = hot_list_get(c, &image, &reply->blocks);
	if (r < 0)
		return r;
	if (r > 0) {
		c->reply.body_case = VMDEDUP__REPLY__BODY_TRACE_GET;
		c->reply.trace_get = reply;
		return 0;
	}
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT blocks, CASE WHEN root = ?1 THEN 0 ELSE 1 END AS other, stored_s FROM "
			"traces WHERE root = ?1 OR image = ?2 ORDER BY other, stored_s DESC LIMIT 1",
			V_FP(&root), V_UUID(&image));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r < 0)
		return r;
	if (r) {
		blocks = rows_blob(&rows, 0, &len);
		r = call_bytes(c, &reply->blocks, blocks, len);
		if (r)
			return r;
	}
	c->reply.body_case = VMDEDUP__REPLY__BODY_TRACE_GET;
	c->reply.trace_get = reply;
	return 0;
}

/* The oldest makes room. */
static int make_room(struct meta_call *c)
{
	int64_t n = 0;
	int r;

	r = store_int(call_store(c), &c->err, &n, "SELECT COUNT(*) FROM traces");
	if (r < 0 || n < MAX_TRACES)
		return r < 0 ? r : 0;
	n = store_exec(call_store(c), &c->err,
		       "DELETE FROM traces WHERE root = (SELECT root FROM traces ORDER BY stored_s LIMIT 1)");
	return n < 0 ? (int)n : 0;
}

int trace_put(struct meta_call *c)
{
	const Vmdedup__TracePut *req = c->req->trace_put;
	struct uuid image;
	struct fp root;
	int64_t n;
	int r;

	r = call_get_fp(c, &req->root, "the root", &root) ?:
	    call_get_uuid(c, &req->image, "the image's UUID", &image);
	if (r)
		return r;
	if (!req->blocks.len || req->blocks.len > MAX_TRACE_BYTES)
		return call_error(c, -EMSGSIZE, "a trace of %zu bytes: 1 to %d are allowed",
				  req->blocks.len, MAX_TRACE_BYTES);
	r = make_room(c);
	if (r)
		return r;
	n = store_exec(call_store(c), &c->err,
		       "INSERT INTO traces (root, image, blocks, stored_s) VALUES (?1, ?2, ?3, ?4) ON "
		       "CONFLICT (root) DO UPDATE SET image = ?2, blocks = ?3, stored_s = ?4",
		       V_FP(&root), V_UUID(&image), V_BLOB(req->blocks.data, req->blocks.len),
		       V_INT(call_now_s(c)));
	return n < 0 ? (int)n : 0;
}
