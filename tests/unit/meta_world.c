// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta_world.h"
#include "pg_cluster.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static const char *pg_uri;

void world_use_pg(const char *uri)
{
	pg_uri = uri;
}

static uint64_t world_wall_s(void *ctx)
{
	return ((struct world *)ctx)->wall_s;
}

static uint64_t world_mono_ns(void *ctx)
{
	return ((struct world *)ctx)->mono_ns;
}

uint64_t world_random(struct world *w)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return w->seed;
}

static int world_fill_random(void *ctx, void *buf, size_t len)
{
	uint8_t *p = buf;

	while (len--)
		*p++ = (uint8_t)(world_random(ctx) >> 24);
	return 0;
}

static void open_store(struct world *w)
{
	struct error err = { 0 };

	if (store_open(&w->m.store, w->path, &err))
		fail_msg("open: %s", err.text);
	w->m.env = &w->env;
	w->m.ticked_ns = w->mono_ns;
	w->m.may_cascade = true;
}

int world_setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	world_init(w, 1, 1);
	w->replay = true;
	*state = w;
	return 0;
}

int world_teardown(void **state)
{
	world_free(*state);
	free(*state);
	return 0;
}

void world_ramp(uint64_t *blocks, size_t n, uint64_t from)
{
	size_t i;

	for (i = 0; i < n; i++)
		blocks[i] = from + i;
}

void world_reopen(struct world *w)
{
	meta_end(&w->m);
	store_close(w->m.store);
	open_store(w);
}

void world_init(struct world *w, unsigned int replicas, unsigned int min_copies)
{
	struct meta_init init = { .name = "test", .block_shift = WORLD_SHIFT,
				  .replicas = replicas, .min_copies = min_copies };
	struct error err = { 0 };

	*w = (struct world){ .wall_s = 1000000, .seed = 0x9e3779b97f4a7c15, .epoch = 1 };
	w->env = (struct meta_env){ .wall_s = world_wall_s, .mono_ns = world_mono_ns,
				    .random = world_fill_random, .ctx = w };
	snprintf(w->dir, sizeof(w->dir), "%.40s/vmdedup-meta.XXXXXX",
		 getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	assert_non_null(mkdtemp(w->dir));
	if (pg_uri)
		pg_schema(pg_uri, w->path, sizeof(w->path));
	else
		snprintf(w->path, sizeof(w->path), "%s/meta.sqlite", w->dir);
	if (meta_store_init(w->path, &init, &err))
		fail_msg("init: %s", err.text);
	open_store(w);
	world_session(w);
	world_fill_random(w, &w->disk, sizeof(w->disk));
	w->incarnation = 1;
	assert_int_equal(world_join(w, &w->disk, 1, "host1", 1ULL << 40, &w->server), 0);
}

void world_free(struct world *w)
{
	static const char *const suffix[] = { "", "-wal", "-shm", "-lock" };
	char path[300];
	size_t i;

	meta_end(&w->m);
	store_close(w->m.store);
	arena_free(&w->arena);
	for (i = 0; !store_is_pg(w->path) && i < ARRAY_SIZE(suffix); i++) {
		snprintf(path, sizeof(path), "%s%s", w->path, suffix[i]);
		unlink(path);
	}
	rmdir(w->dir);
}

void world_forget(struct world *w)
{
	arena_free(&w->arena);
}

const Vmdedup__Reply *world_call(struct world *w, Vmdedup__Request *req,
				 const struct meta_bytes *frames, size_t n)
{
	struct meta_call *c = arena_alloc(&w->arena, sizeof(*c));

	*c = (struct meta_call){ .m = &w->m, .arena = &w->arena, .req = req, .frames = frames,
				 .nr_frames = n };
	meta_batch(&w->m, c, 1);
	w->frames = c->out;
	w->nr_frames = c->nr_out;
	return &c->reply;
}

static size_t pack(struct world *w, const Vmdedup__Reply *reply, uint8_t **out)
{
	size_t len = vmdedup__reply__get_packed_size(reply);

	*out = arena_alloc(&w->arena, len + 1);
	vmdedup__reply__pack(reply, *out);
	return len;
}

static void assert_same_reply(struct world *w, const Vmdedup__Reply *first,
			      const Vmdedup__Reply *again)
{
	uint8_t *a, *b;
	size_t la = pack(w, first, &a), lb = pack(w, again, &b);

	assert_int_equal(la, lb);
	assert_memory_equal(a, b, la);
}

const Vmdedup__Reply *world_mutate(struct world *w, Vmdedup__Request *req,
				   const struct meta_bytes *frames, size_t n)
{
	Vmdedup__Mutation mut = VMDEDUP__MUTATION__INIT;
	const Vmdedup__Reply *first, *again;

	mut.session = w->session;
	mut.sequence = ++w->sequence;
	req->mutation = &mut;
	first = world_call(w, req, frames, n);
	if (w->reopen)
		world_reopen(w);
	if (w->replay) {
		again = world_call(w, req, frames, n);
		assert_same_reply(w, first, again);
	}
	req->mutation = NULL;
	return first;
}

#define REQUEST(name, field, type, BODY)                            \
	Vmdedup__Request name = VMDEDUP__REQUEST__INIT;             \
	Vmdedup__##type field;                                      \
	name.body_case = VMDEDUP__REQUEST__BODY_##BODY;             \
	name.field = &field

void world_session(struct world *w)
{
	REQUEST(req, session_open, SessionOpen, SESSION_OPEN);
	const Vmdedup__Reply *reply;
	uint8_t nonce[16];

	vmdedup__session_open__init(&session_open);
	world_fill_random(w, nonce, sizeof(nonce));
	session_open.nonce = (ProtobufCBinaryData){ sizeof(nonce), nonce };
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	w->session = reply->session_open->session;
	w->sequence = 0;
}

int world_join(struct world *w, const struct uuid *disk, uint64_t incarnation, const char *host,
	       uint64_t capacity, uint32_t *id)
{
	REQUEST(req, server_join, ServerJoin, SERVER_JOIN);
	const Vmdedup__Reply *reply;
	char endpoint[80];

	vmdedup__server_join__init(&server_join);
	snprintf(endpoint, sizeof(endpoint), "inproc://%s", host);
	server_join.disk = (ProtobufCBinaryData){ 16, (uint8_t *)disk->b };
	server_join.incarnation = incarnation;
	server_join.endpoint = endpoint;
	server_join.capacity = capacity;
	server_join.free = capacity;
	server_join.host = (char *)host;
	reply = world_call(w, &req, NULL, 0);
	if (reply->error)
		return reply->error;
	*id = reply->server_join->id;
	memcpy(w->receipt_key, reply->server_join->receipt_key.data, RECEIPT_KEY_SIZE);
	w->map_version = reply->server_join->map->version;
	return 0;
}

struct fp world_fp(uint64_t k)
{
	struct fp fp = { 0 };

	if (k)
		recipe_node_hash(&k, sizeof(k), &fp);
	return fp;
}

/* ---- trees ---- */

static int tree_put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		    struct error *err)
{
	struct tree *t = ctx;

	t->hashes = realloc(t->hashes, (t->nr + 1) * sizeof(*t->hashes));
	t->bytes = realloc(t->bytes, (t->nr + 1) * sizeof(*t->bytes));
	t->lens = realloc(t->lens, (t->nr + 1) * sizeof(*t->lens));
	t->hashes[t->nr] = *hash;
	memcpy(t->bytes[t->nr], data, len);
	t->lens[t->nr++] = len;
	return 0;
}

void tree_build(struct tree *t, const uint64_t *blocks, size_t n, uint64_t size)
{
	static const struct recipe_ops ops = { .put = tree_put };
	struct error err = { 0 };
	struct recipe_builder *b;
	struct fp fp;
	size_t i;
	int r = 0;

	*t = (struct tree){ 0 };
	b = recipe_builder_new(size, WORLD_SHIFT, FP_SHA256, &ops, t);
	assert_non_null(b);
	for (i = 0; !r && i < n; i++) {
		fp = world_fp(blocks[i]);
		r = blocks[i] ? recipe_builder_add(b, &fp, &err) :
				recipe_builder_add_zeros(b, 1, &err);
	}
	if (!r)
		r = recipe_builder_finish(b, &t->root, &err);
	if (r)
		fail_msg("tree: %s", err.text);
	recipe_builder_free(b);
}

void tree_free(struct tree *t)
{
	free(t->hashes);
	free(t->bytes);
	free(t->lens);
}

/* ---- verbs ---- */

int world_begin_import(struct world *w, const char *name, uint64_t size, uint64_t *push)
{
	REQUEST(req, push_begin, PushBegin, PUSH_BEGIN);
	const Vmdedup__Reply *reply;

	vmdedup__push_begin__init(&push_begin);
	push_begin.name = (char *)name;
	push_begin.size = size;
	reply = world_mutate(w, &req, NULL, 0);
	if (!reply->error)
		*push = reply->push_begin->push;
	return reply->error;
}

int world_begin_cut(struct world *w, const struct uuid *image, uint64_t epoch, uint64_t cut,
		    const struct fp *parent, bool version, uint64_t *push, bool *done)
{
	REQUEST(req, push_begin, PushBegin, PUSH_BEGIN);
	const Vmdedup__Reply *reply;

	vmdedup__push_begin__init(&push_begin);
	push_begin.image = (ProtobufCBinaryData){ 16, (uint8_t *)image->b };
	push_begin.lease_epoch = epoch;
	push_begin.cut = cut;
	push_begin.parent_root = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)parent->b };
	push_begin.make_version = version;
	if (w->cutter)
		push_begin.cache = (ProtobufCBinaryData){ 16, (uint8_t *)w->cutter->b };
	reply = world_mutate(w, &req, NULL, 0);
	if (!reply->error) {
		*push = reply->push_begin->push;
		*done = reply->push_begin->done;
	}
	return reply->error;
}

/* One receipt a block: blocks of one part seldom share a shard. */
static void fill_receipts(struct world *w, Vmdedup__PushPart *part, const uint64_t *blocks,
			  size_t n)
{
	Vmdedup__Disk *disk = arena_alloc(&w->arena, sizeof(*disk));
	size_t i;

	vmdedup__disk__init(disk);
	disk->uuid = (ProtobufCBinaryData){ 16, w->disk.b };
	disk->incarnation = w->incarnation;
	disk->server = w->server;
	part->receipts = arena_alloc(&w->arena, (n + 1) * sizeof(*part->receipts));
	for (i = 0; i < n; i++) {
		Vmdedup__Receipt *r = arena_alloc(&w->arena, sizeof(*r));
		struct fp fp = world_fp(blocks[i]);

		if (!blocks[i] || (w->stamps && !w->stamps[blocks[i]]))
			continue;
		vmdedup__receipt__init(r);
		r->shard = fp_shard(&fp);
		r->epoch = w->stamps ? w->stamps[blocks[i]] : w->epoch;
		r->map_version = w->map_version;
		r->n_disks = 1;
		r->disks = arena_memdup(&w->arena, &disk, sizeof(disk));
		r->fingerprints = (ProtobufCBinaryData){
			FP_SIZE, arena_memdup(&w->arena, fp.b, FP_SIZE) };
		r->mac = (ProtobufCBinaryData){ RECEIPT_MAC_SIZE,
						arena_alloc(&w->arena, RECEIPT_MAC_SIZE) };
		receipt_mac(r, w->receipt_key, r->mac.data);
		part->receipts[part->n_receipts++] = r;
	}
}

const Vmdedup__Reply *world_part_reply(struct world *w, uint64_t push, const struct tree *t,
				       size_t from, size_t to, const uint64_t *blocks, size_t n)
{
	REQUEST(req, push_part, PushPart, PUSH_PART);
	struct meta_bytes *frames = arena_alloc(&w->arena, (to - from + 1) * sizeof(*frames));
	size_t i;

	vmdedup__push_part__init(&push_part);
	push_part.push = push;
	if (to > from)
		push_part.node_hashes = (ProtobufCBinaryData){
			(to - from) * FP_SIZE, (uint8_t *)&t->hashes[from] };
	for (i = from; i < to; i++)
		frames[i - from] = (struct meta_bytes){ t->bytes[i], t->lens[i] };
	if (blocks)
		fill_receipts(w, &push_part, blocks, n);
	return world_mutate(w, &req, frames, to - from);
}

int world_part(struct world *w, uint64_t push, const struct tree *t, size_t from, size_t to,
	       const uint64_t *blocks, size_t n)
{
	return world_part_reply(w, push, t, from, to, blocks, n)->error;
}

int world_commit(struct world *w, uint64_t push, const struct fp *root)
{
	REQUEST(req, push_commit, PushCommit, PUSH_COMMIT);

	vmdedup__push_commit__init(&push_commit);
	push_commit.push = push;
	push_commit.root = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)root->b };
	return world_mutate(w, &req, NULL, 0)->error;
}

static int send_tree(struct world *w, uint64_t push, const struct tree *t, const uint64_t *blocks,
		     size_t n)
{
	size_t from, to;
	int r = 0;

	for (from = 0; !r && from < t->nr; from = to) {
		to = MIN(from + PROTO_MAX_NODES, t->nr);
		r = world_part(w, push, t, from, to, from ? NULL : blocks, n);
	}
	return r;
}

int world_import(struct world *w, const char *name, const uint64_t *blocks, size_t n)
{
	struct tree t;
	uint64_t push;
	int r;

	r = world_begin_import(w, name, (uint64_t)n * WORLD_BLOCK, &push);
	if (r)
		return r;
	tree_build(&t, blocks, n, (uint64_t)n * WORLD_BLOCK);
	r = send_tree(w, push, &t, blocks, n);
	if (!r)
		r = world_commit(w, push, &t.root);
	tree_free(&t);
	return r;
}

int world_push(struct world *w, const struct uuid *image, uint64_t epoch, uint64_t cut,
	       const struct fp *parent, const uint64_t *blocks, size_t n, bool version,
	       struct fp *root)
{
	struct tree t;
	uint64_t push;
	bool done;
	int r;

	r = world_begin_cut(w, image, epoch, cut, parent, version, &push, &done);
	if (r || done)
		return r;
	tree_build(&t, blocks, n, (uint64_t)n * WORLD_BLOCK);
	r = send_tree(w, push, &t, blocks, n);
	if (!r)
		r = world_commit(w, push, &t.root);
	*root = t.root;
	tree_free(&t);
	return r;
}

int world_image(struct world *w, const char *name, struct uuid *uuid, struct fp *root)
{
	REQUEST(req, image_get, ImageGet, IMAGE_GET);
	const Vmdedup__Reply *reply;

	vmdedup__image_get__init(&image_get);
	image_get.name = (char *)name;
	reply = world_call(w, &req, NULL, 0);
	if (reply->error)
		return reply->error;
	memcpy(uuid->b, reply->image->uuid.data, 16);
	memcpy(root->b, reply->image->root.data, FP_SIZE);
	return 0;
}

int world_clone(struct world *w, const char *source, uint64_t version, const char *name)
{
	REQUEST(req, image_clone, ImageClone, IMAGE_CLONE);

	vmdedup__image_clone__init(&image_clone);
	image_clone.source = (char *)source;
	image_clone.source_version = version;
	image_clone.name = (char *)name;
	return world_mutate(w, &req, NULL, 0)->error;
}

int world_remove(struct world *w, const char *name)
{
	REQUEST(req, image_remove, ImageRemove, IMAGE_REMOVE);

	vmdedup__image_remove__init(&image_remove);
	image_remove.name = (char *)name;
	return world_mutate(w, &req, NULL, 0)->error;
}

int world_lease(struct world *w, const struct uuid *image, const struct uuid *cache,
		uint64_t *epoch, struct fp *root)
{
	REQUEST(req, lease_take, LeaseTake, LEASE_TAKE);
	const Vmdedup__Reply *reply;

	vmdedup__lease_take__init(&lease_take);
	lease_take.image = (ProtobufCBinaryData){ 16, (uint8_t *)image->b };
	lease_take.cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache->b };
	lease_take.host = "host1";
	reply = world_mutate(w, &req, NULL, 0);
	if (reply->error)
		return reply->error;
	*epoch = reply->lease->epoch;
	memcpy(root->b, reply->lease->root.data, FP_SIZE);
	return 0;
}

int world_release(struct world *w, const struct uuid *image, const struct uuid *cache,
		  uint64_t epoch)
{
	REQUEST(req, lease_release, LeaseRelease, LEASE_RELEASE);

	vmdedup__lease_release__init(&lease_release);
	lease_release.image = (ProtobufCBinaryData){ 16, (uint8_t *)image->b };
	lease_release.cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache->b };
	lease_release.epoch = epoch;
	return world_mutate(w, &req, NULL, 0)->error;
}

unsigned int world_check(struct world *w, bool say)
{
	REQUEST(req, check_step, CheckStep, CHECK_STEP);
	const Vmdedup__Reply *reply, *again;
	unsigned int problems = 0;
	size_t i;

	vmdedup__check_step__init(&check_step);
	check_step.budget = 3;
	do {
		reply = world_call(w, &req, NULL, 0);
		if (reply->error)
			fail_msg("check: %s", reply->error_text);
		if (w->replay && check_step.cursor.len) {
			again = world_call(w, &req, NULL, 0);
			assert_same_reply(w, reply, again);
		}
		for (i = 0; say && i < reply->check_step->n_problems; i++)
			print_message("check: %s\n", reply->check_step->problems[i]);
		problems += (unsigned int)reply->check_step->n_problems;
		check_step.cursor = reply->check_step->cursor;
	} while (check_step.cursor.len);
	return problems;
}

void world_settle(struct world *w)
{
	struct error err = { 0 };
	int r;

	while ((r = meta_tick(&w->m, &err)) > 0)
		;
	if (r)
		fail_msg("tick: %s", err.text);
}

int64_t world_sql(struct world *w, const char *sql)
{
	struct error err = { 0 };
	struct rows rows = { 0 };
	int64_t out = -1;

	if (store_begin(w->m.store, &err) || store_query(w->m.store, &err, &rows, sql) ||
	    rows_next(&rows, &err) < 0)
		fail_msg("%s: %s", sql, err.text);
	out = rows_int(&rows, 0);
	rows_end(&rows);
	store_rollback(w->m.store);
	return out;
}
