// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Pushes from a plain-file cache to a server in memory. The main test ends a push at every one of
 * its steps, before and after the step took effect, and pushes again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <pthread.h>
#include <cmocka.h>

#include "agent/cache_file.h"
#include "agent/push.h"
#include "base/cleanup.h"

#define SHIFT	    12
#define BLOCK	    (1U << SHIFT)
#define NR_BLOCKS   300
#define IMAGE_SIZE  ((uint64_t)NR_BLOCKS * BLOCK)
#define MAX_OBJECTS 4096

struct object {
	struct fp fp;
	size_t len;
	uint8_t data[RECIPE_NODE_MAX];
};

/* A meta and a data server, as far as a push sees them. */
struct server {
	struct object *blocks, *nodes;
	size_t nr_blocks, nr_nodes;
	struct fp head;
	uint64_t head_cut;
	struct push_name pushing;
	unsigned int sent, commits;
	struct fp_hasher *hasher;
};

/* Ends everything at its n-th call: before it takes effect, or after (its answer is lost). */
struct fault {
	unsigned int calls, at;
	bool after;
};

struct world;

struct flaky_cache {
	struct cache cache;
	struct cache *real;
	struct fault *fault;
	void (*listed)(struct world *w); /* once, after LIST_CUT */
	struct world *world;
	uint64_t connection;
};

struct world {
	struct server server;
	struct fault fault;
	struct cache *cache;
	struct flaky_cache flaky;
	struct push_env env;
	struct push_net net;
	pthread_t agent;
	bool stop;
	uint64_t volume;
	uint8_t *model; /* what the guest has written */
	uint64_t paced_bytes, paced_chunks;
};

/* ---- the server ---- */

static struct object *find(struct object *all, size_t n, const struct fp *fp)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (fp_equal(&all[i].fp, fp))
			return &all[i];
	return NULL;
}

static void store(struct object *all, size_t *n, const struct fp *fp, const void *data, size_t len)
{
	if (find(all, *n, fp))
		return;
	assert_true(*n < MAX_OBJECTS);
	all[*n].fp = *fp;
	all[*n].len = len;
	memcpy(all[(*n)++].data, data, len);
}

static bool broken(struct fault *f, bool after)
{
	if (!after)
		f->calls++;
	return f->calls == f->at && f->after == after;
}

static int net_begin(void *ctx, const struct push_name *name, bool *done, struct fp *root,
		     uint64_t *size, struct error *err)
{
	struct world *w = ctx;
	struct server *s = &w->server;

	if (broken(&w->fault, false))
		return -ETIMEDOUT;
	*done = name->cut == s->head_cut;
	*root = s->head;
	if (!*done) {
		/* only the parent root with the next cut */
		assert_int_equal(name->cut, s->head_cut + 1);
		assert_true(fp_equal(&name->parent, &s->head));
	}
	s->pushing = *name;
	return broken(&w->fault, true) ? -ETIMEDOUT : 0;
}

static int net_block(void *ctx, const struct fp *fp, const void *data, size_t len,
		     struct error *err)
{
	struct world *w = ctx;
	struct fp seen;

	if (broken(&w->fault, false))
		return -ETIMEDOUT;
	fp_hash(w->server.hasher, data, len, &seen);
	assert_true(fp_equal(&seen, fp));
	assert_int_equal(len, BLOCK);
	if (!find(w->server.blocks, w->server.nr_blocks, fp))
		w->server.sent++;
	store(w->server.blocks, &w->server.nr_blocks, fp, data, len);
	return broken(&w->fault, true) ? -ETIMEDOUT : 0;
}

static int net_sent(void *ctx, uint64_t *bytes, struct error *err)
{
	struct world *w = ctx;

	if (broken(&w->fault, false))
		return -ETIMEDOUT;
	*bytes = (uint64_t)w->server.sent * BLOCK;
	return 0;
}

static int net_commit(void *ctx, const struct fp *root, struct push_result *result,
		      struct error *err)
{
	struct world *w = ctx;

	if (broken(&w->fault, false))
		return -ETIMEDOUT;
	assert_true(fp_is_zero(root) || find(w->server.nodes, w->server.nr_nodes, root));
	w->server.head = *root;
	w->server.head_cut = w->server.pushing.cut;
	w->server.commits++;
	return broken(&w->fault, true) ? -ETIMEDOUT : 0;
}

static void net_end(void *ctx)
{
}

static int net_get(void *ctx, const struct fp *fps, size_t count,
		   void (*got)(void *arg, size_t index, int r, const void *data, size_t len),
		   void *arg, struct error *err)
{
	struct world *w = ctx;
	struct object *o;
	size_t i;

	if (broken(&w->fault, false))
		return -ETIMEDOUT;
	for (i = count; i--;) { /* any order */
		o = find(w->server.blocks, w->server.nr_blocks, &fps[i]);
		assert_non_null(o);
		got(arg, i, 0, o->data, o->len);
	}
	return 0;
}

static int node_get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		    struct error *err)
{
	struct world *w = ctx;
	struct object *o = find(w->server.nodes, w->server.nr_nodes, hash);

	if (!o)
		return -ENOENT;
	memcpy(out, o->data, o->len);
	*len = o->len;
	return 0;
}

static int node_put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		    struct error *err)
{
	struct world *w = ctx;

	if (broken(&w->fault, false))
		return -ETIMEDOUT;
	store(w->server.nodes, &w->server.nr_nodes, hash, data, len);
	return 0;
}

static const struct recipe_ops node_ops = { .get = node_get, .put = node_put };

/* ---- the cache, with faults ---- */

/* The one that the cache's path led to has gone. */
static bool has_gone(struct cache *c, uint64_t connection)
{
	return connection != ((struct flaky_cache *)c)->connection;
}

static int flaky_cut(struct cache *c, uint64_t connection, struct dm_dedup_cut *cut)
{
	struct flaky_cache *f = (struct flaky_cache *)c;
	int r;

	if (broken(f->fault, false))
		return -EIO;
	if (has_gone(c, connection))
		return -ENODEV;
	r = f->real->ops->cut(f->real, 1, cut);
	return broken(f->fault, true) ? -EIO : r;
}

static int flaky_list_cut(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
			  uint64_t *cursor, struct dm_dedup_cut_entry *entries, size_t *count)
{
	struct flaky_cache *f = (struct flaky_cache *)c;

	int r;

	if (broken(f->fault, false))
		return -EIO;
	if (has_gone(c, connection))
		return -ENODEV;
	r = f->real->ops->list_cut(f->real, 1, volume, cut, cursor, entries, count);
	if (f->listed)
		f->listed(f->world);
	f->listed = NULL;
	return r;
}

static int flaky_commit(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
			const uint8_t *root, uint64_t lease_epoch, struct dm_dedup_replacement *r,
			size_t count, bool more)
{
	struct flaky_cache *f = (struct flaky_cache *)c;
	int ret;

	if (broken(f->fault, false))
		return -EIO;
	if (has_gone(c, connection))
		return -ENODEV;
	ret = f->real->ops->commit(f->real, 1, volume, cut, root, lease_epoch, r, count, more);
	return broken(f->fault, true) ? -EIO : ret;
}

static int flaky_open_slots(struct cache *c, uint64_t *connection)
{
	struct flaky_cache *f = (struct flaky_cache *)c;

	*connection = f->connection;

	return broken(f->fault, false) ? -EIO : 0;
}

static void flaky_close_slots(struct cache *c)
{
}

static int flaky_read_slot(struct cache *c, uint64_t connection, uint64_t slot, void *buf,
			   size_t len)
{
	struct flaky_cache *f = (struct flaky_cache *)c;

	if (broken(f->fault, false))
		return -EIO;
	if (has_gone(c, connection))
		return -ENODEV;
	return f->real->ops->read_slot(f->real, 1, slot, buf, len);
}

/* Unasked, after the end: no step of the push, which succeeds without it. */
static int flaky_publish(struct cache *c, struct dm_dedup_publish *p, size_t count)
{
	struct flaky_cache *f = (struct flaky_cache *)c;

	return f->real->ops->publish(f->real, p, count);
}

static int flaky_list_volumes(struct cache *c, uint64_t *cursor, struct dm_dedup_volume_info *infos,
			      size_t *count)
{
	struct flaky_cache *f = (struct flaky_cache *)c;

	return f->real->ops->list_volumes(f->real, cursor, infos, count);
}

static const struct cache_ops flaky_ops = {
	.list_volumes = flaky_list_volumes,
	.publish = flaky_publish,
	.cut = flaky_cut,
	.list_cut = flaky_list_cut,
	.commit = flaky_commit,
	.open_slots = flaky_open_slots,
	.close_slots = flaky_close_slots,
	.read_slot = flaky_read_slot,
};

/* ---- a small agent, so that the guest's I/O is answered ---- */

static void answer_fetch(struct world *w, struct dm_dedup_upcall *up)
{
	struct dm_dedup_map m = { .cookie = up->cookie, .volume = up->info.volume,
				  .block = up->block, .flags = DM_DEDUP_MAP_ZERO };
	struct dm_dedup_publish p = { .cookie = up->cookie, .volume = up->info.volume,
				      .block = up->block };
	struct fp root, fp;
	struct object *o;

	memcpy(root.b, up->info.root, FP_SIZE);
	memcpy(m.root, root.b, FP_SIZE);
	memcpy(p.root, root.b, FP_SIZE);
	if (recipe_lookup(&root, IMAGE_SIZE, SHIFT, FP_SHA256, up->block, &node_ops, w, &fp, NULL))
		abort();
	if (fp_is_zero(&fp)) {
		w->cache->ops->map(w->cache, &m, 1);
		return;
	}
	o = find(w->server.blocks, w->server.nr_blocks, &fp);
	if (!o)
		abort();
	memcpy(p.fp, fp.b, FP_SIZE);
	p.data = (uintptr_t)o->data;
	w->cache->ops->publish(w->cache, &p, 1);
}

static void *small_agent(void *arg)
{
	struct dm_dedup_upcall ups[8];
	struct dm_dedup_reply reply;
	struct world *w = arg;
	ssize_t i, n;

	while (!__atomic_load_n(&w->stop, __ATOMIC_ACQUIRE)) {
		n = w->cache->ops->read(w->cache, ups, 8, 10000);
		for (i = 0; i < n; i++) {
			memset(&reply, 0, sizeof(reply));
			reply.cookie = ups[i].cookie;
			reply.info.size = IMAGE_SIZE;
			reply.info.image[0] = 7;
			if (ups[i].type == DM_DEDUP_UP_FETCH) {
				answer_fetch(w, &ups[i]);
			} else if (ups[i].type <= DM_DEDUP_UP_OPEN) {
				if (ups[i].type == DM_DEDUP_UP_OPEN) {
					reply.info.lease_epoch = 3;
					reply.info.committed_cut = w->server.head_cut;
					memcpy(reply.info.root, w->server.head.b, FP_SIZE);
				}
				w->cache->ops->reply(w->cache, &reply);
			}
		}
	}
	return NULL;
}

/* ---- the world ---- */

static void serially(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
	while (n--)
		fn(arg, n);
}

static void find_clean(void *ctx, const struct fp *fps, size_t count, uint64_t *slots,
		       uint64_t *seqs)
{
	struct dm_dedup_clean_entry clean[512];
	struct world *w = ctx;
	uint64_t cursor = 0;
	size_t i, k, n = 512;

	memset(seqs, 0, count * sizeof(*seqs));
	assert_int_equal(w->cache->ops->list_clean(w->cache, &cursor, clean, &n), 0);
	for (i = 0; i < count; i++)
		for (k = 0; k < n; k++)
			if (!memcmp(clean[k].fp, fps[i].b, FP_SIZE)) {
				slots[i] = clean[k].slot;
				seqs[i] = clean[k].seq;
			}
}

static void clean_slots(void *ctx, const struct dm_dedup_clean_entry *slots, size_t count)
{
}

static struct world *new_world(void)
{
	struct world *w = calloc(1, sizeof(*w));
	struct dm_dedup_hello hello;
	struct uuid uuid = { { 1 } };
	uint64_t size;
	size_t i;

	assert_non_null(w);
	w->server.blocks = calloc(MAX_OBJECTS, sizeof(*w->server.blocks));
	w->server.nodes = calloc(MAX_OBJECTS, sizeof(*w->server.nodes));
	w->server.hasher = fp_hasher_new(FP_SHA256, NULL, 0);
	w->model = calloc(NR_BLOCKS, BLOCK);
	w->cache = cache_file_new(NULL, IMAGE_SIZE, SHIFT, &uuid, NULL);
	assert_non_null(w->cache);
	w->flaky = (struct flaky_cache){ { &flaky_ops }, w->cache, &w->fault, NULL, w, 1 };
	w->net = (struct push_net){ net_begin, net_block, net_sent, net_commit, net_end, net_get,
				    &node_ops,	w };
	w->env = (struct push_env){
		.cache = &w->flaky.cache,
		.block_shift = SHIFT,
		.algorithm = FP_SHA256,
		.net = &w->net,
		.net_ctx = w,
		.for_each = serially,
		.find_slots = find_clean,
		.clean_slots = clean_slots,
		.ctx = w,
	};
	for (i = 0; i < PUSH_CHUNK; i++)
		w->env.hashers[i] = fp_hasher_new(FP_SHA256, NULL, 0);
	assert_int_equal(w->cache->ops->connect(w->cache, &hello, NULL), 0);
	assert_int_equal(pthread_create(&w->agent, NULL, small_agent, w), 0);
	assert_int_equal(cache_file_open(w->cache, "web-01", 0, &w->volume, &size), 0);
	assert_int_equal(size, IMAGE_SIZE);
	return w;
}

static void free_world(struct world *w)
{
	size_t i;

	__atomic_store_n(&w->stop, true, __ATOMIC_RELEASE);
	w->cache->ops->wake(w->cache);
	pthread_join(w->agent, NULL);
	w->cache->ops->free(w->cache);
	for (i = 0; i < PUSH_CHUNK; i++)
		fp_hasher_free(w->env.hashers[i]);
	fp_hasher_free(w->server.hasher);
	free(w->server.blocks);
	free(w->server.nodes);
	free(w->model);
	free(w);
}

static void write_sectors(struct world *w, uint64_t sector, size_t count, uint8_t seed)
{
	uint8_t *at = w->model + sector * 512;
	size_t i;

	for (i = 0; i < count * 512; i++)
		at[i] = seed ? (uint8_t)(seed + i / 512 + i % 251) : 0;
	assert_int_equal(cache_file_write(w->cache, w->volume, sector * 512, at, count * 512), 0);
}

static struct dm_dedup_volume_info volume(struct world *w)
{
	struct dm_dedup_volume_info info;
	uint64_t cursor = 0;
	size_t n = 1;

	assert_int_equal(w->cache->ops->list_volumes(w->cache, &cursor, &info, &n), 0);
	assert_int_equal(n, 1);
	return info;
}

static int push(struct world *w, struct push_result *result)
{
	struct dm_dedup_volume_info info = volume(w);
	struct error err = { 0 };

	return push_volume(&w->env, &info, NULL, false, NULL, result, &err);
}

/* What the server has for the head is @model, byte for byte. */
static void check_server(struct world *w, const uint8_t *model)
{
	static const uint8_t zeros[BLOCK];
	struct object *o;
	struct fp fp;
	uint64_t i;

	for (i = 0; i < NR_BLOCKS; i++) {
		assert_int_equal(recipe_lookup(&w->server.head, IMAGE_SIZE, SHIFT, FP_SHA256, i,
					       &node_ops, w, &fp, NULL),
				 0);
		if (fp_is_zero(&fp)) {
			assert_memory_equal(model + i * BLOCK, zeros, BLOCK);
			continue;
		}
		o = find(w->server.blocks, w->server.nr_blocks, &fp);
		assert_non_null(o);
		assert_memory_equal(model + i * BLOCK, o->data, BLOCK);
	}
}

static void check_guest(struct world *w)
{
	uint8_t *seen = malloc(IMAGE_SIZE);

	assert_non_null(seen);
	assert_int_equal(cache_file_read(w->cache, w->volume, 0, seen, IMAGE_SIZE), 0);
	assert_memory_equal(seen, w->model, IMAGE_SIZE);
	free(seen);
}

static void check_clean(struct world *w)
{
	struct dm_dedup_volume_info info = volume(w);

	assert_int_equal(info.dirty_bytes, 0);
	assert_int_equal(info.committed_cut, w->server.head_cut);
	assert_memory_equal(info.root, w->server.head.b, FP_SIZE);
}

/* ---- tests ---- */

static void test_nothing_to_push(void **state)
{
	struct world *w = new_world();
	struct push_result result;

	assert_int_equal(push(w, &result), 0);
	assert_int_equal(result.cut, 0);
	assert_int_equal(w->server.commits, 0);
	free_world(w);
}

static void some_writes(struct world *w, uint8_t seed)
{
	uint64_t i;

	write_sectors(w, 0, 8 * 20, seed);		  /* whole blocks */
	write_sectors(w, 8 * 30 + 3, 2, seed);		  /* a part of one */
	write_sectors(w, 8 * 40 + 7, 2, (uint8_t)(seed + 1)); /* over an edge */
	write_sectors(w, 8 * 50, 8, 0);			  /* zeros */
	for (i = 100; i < 140; i++)
		write_sectors(w, 8 * i + i % 8, 1, (uint8_t)(seed + i));
	write_sectors(w, 8 * 298, 16, seed);
}

static void test_push_and_read_back(void **state)
{
	struct world *w = new_world();
	struct push_result result;

	some_writes(w, 11);
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(result.cut, 1);
	assert_int_equal(result.blocks, 20 + 1 + 2 + 1 + 40 + 2);
	check_server(w, w->model);
	check_clean(w);
	check_guest(w);
	/* complete blocks stayed as CLEAN slots; others were let go; then bases come from both */
	some_writes(w, 60);
	write_sectors(w, 8 * 5 + 1, 1, 99);
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(result.cut, 2);
	check_server(w, w->model);
	check_guest(w);
	cache_file_evict_all(w->cache); /* bases are not here */
	some_writes(w, 90);
	assert_int_equal(push(w, &result), 0);
	check_server(w, w->model);
	check_clean(w);
	check_guest(w);
	free_world(w);
}

static void test_same_content_is_sent_once_and_shares_a_slot(void **state)
{
	struct world *w = new_world();
	struct dm_dedup_clean_entry clean[64];
	struct push_result result;
	uint64_t cursor = 0;
	size_t n = 64;

	write_sectors(w, 0, 8, 42);
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(w->server.sent, 1);
	write_sectors(w, 80, 8, 42);
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(w->server.sent, 1);
	assert_int_equal(w->cache->ops->list_clean(w->cache, &cursor, clean, &n), 0);
	assert_int_equal(n, 1);
	check_guest(w);
	free_world(w);
}

static void test_writing_the_same_again_changes_no_root(void **state)
{
	struct world *w = new_world();
	struct push_result result;
	struct fp root;

	some_writes(w, 11);
	assert_int_equal(push(w, &result), 0);
	root = w->server.head;
	some_writes(w, 11);
	assert_int_equal(push(w, &result), 0);
	assert_true(fp_equal(&root, &w->server.head));
	assert_int_equal(w->server.head_cut, 2);
	check_clean(w);
	free_world(w);
}

/* Linked with --wrap: every digest that a push makes. */
static unsigned int hashed;
void __real_fp_hash(struct fp_hasher *h, const void *data, size_t len, struct fp *out);
void __wrap_fp_hash(struct fp_hasher *h, const void *data, size_t len, struct fp *out);

void __wrap_fp_hash(struct fp_hasher *h, const void *data, size_t len, struct fp *out)
{
	hashed += len == BLOCK; /* not recipe nodes */
	__real_fp_hash(h, data, len, out);
}

/* A block is hashed once a cut however often it was written (and once by this server). */
static void test_written_often_hashed_once(void **state)
{
	struct world *w = new_world();
	struct push_result result;
	unsigned int i;

	for (i = 0; i < 100; i++) {
		write_sectors(w, 0, 8, (uint8_t)(i + 1));
		write_sectors(w, 8 * 7 + i % 8, 1, (uint8_t)(i + 3));
		write_sectors(w, 8 * 9, 8 * 3, (uint8_t)(i + 7));
	}
	hashed = 0;
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(result.blocks, 1 + 1 + 3);
	assert_int_equal(hashed, 2 * result.blocks);
	check_server(w, w->model);
	hashed = 0;
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(hashed, 0);
	free_world(w);
}

static void note_pace(void *ctx, uint64_t sent)
{
	struct world *w = ctx;

	w->paced_bytes += sent;
	w->paced_chunks++;
	assert_true(sent <= PUSH_CHUNK * BLOCK);
	assert_int_equal(w->paced_bytes, (uint64_t)w->server.sent * BLOCK);
}

/* After each chunk the pace is told what was sent, and what was there already does not count. */
static void test_pace(void **state)
{
	struct world *w = new_world();
	struct push_result result;

	w->env.pace = note_pace;
	write_sectors(w, 0, 8, 42);
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(w->paced_bytes, BLOCK);
	w->server.sent = 0;
	w->paced_bytes = w->paced_chunks = 0;
	some_writes(w, 11);
	write_sectors(w, 80 * 8, 8, 42);
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(w->paced_chunks, (result.blocks + PUSH_CHUNK - 1) / PUSH_CHUNK);
	assert_int_equal(w->paced_bytes, (uint64_t)w->server.sent * BLOCK);
	check_server(w, w->model);
	free_world(w);
}

/* Every free slot, the base's among them, gets another block's bytes. */
static void overwrite_free_slots(struct world *w)
{
	cache_file_evict_all(w->cache);
	write_sectors(w, 8, 8 * (NR_BLOCKS - 1), 5);
}

static void test_a_base_slot_that_was_evicted_meanwhile(void **state)
{
	struct world *w = new_world();
	struct push_result result;

	write_sectors(w, 0, 8, 42);
	assert_int_equal(push(w, &result), 0);
	write_sectors(w, 1, 2, 77);
	w->flaky.listed = overwrite_free_slots;
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(push(w, &result), 0);
	check_server(w, w->model);
	check_guest(w);
	free_world(w);
}

static void exchange_cache(struct world *w)
{
	w->flaky.connection++;
}

/* Another cache is connected in the midst of a push, or was before it: it is nobody's there. */
static void test_another_cache_below_the_path(void **state)
{
	struct world *w = new_world();
	struct dm_dedup_volume_info info;
	struct push_result result;
	struct error err = { 0 };

	some_writes(w, 11);
	w->flaky.listed = exchange_cache;
	assert_int_equal(push(w, &result), -ENODEV);
	assert_int_equal(w->server.commits, 0);
	/* The number that the volume had in the one is another image's in the other. */
	info = volume(w);
	info.image[0]++;
	assert_int_equal(push_volume(&w->env, &info, NULL, false, NULL, &result, &err), -ENODEV);
	assert_int_equal(w->server.commits, 0);
	assert_int_equal(volume(w).closed_cut, 1); /* of the first push */
	assert_int_equal(push(w, &result), 0);
	check_server(w, w->model);
	check_clean(w);
	free_world(w);
}

static void test_slots_of_another_size(void **state)
{
	struct world *w = new_world();
	struct dm_dedup_clean_entry clean;
	struct push_result result;
	uint64_t cursor = 0;
	uint8_t buf[BLOCK];
	size_t n = 1;

	write_sectors(w, 0, 8, 42);
	assert_int_equal(push(w, &result), 0);
	assert_int_equal(w->cache->ops->list_clean(w->cache, &cursor, &clean, &n), 0);
	assert_int_equal(w->cache->ops->read_slot(w->cache, 1, clean.slot, buf, BLOCK / 2), -EINVAL);
	assert_int_equal(w->cache->ops->read_slot(w->cache, 1, clean.slot, buf, BLOCK), 0);
	assert_memory_equal(buf, w->model, BLOCK);
	free_world(w);
}

/* Ends the second push at step @at; false: it has fewer steps. */
static bool interrupted_push(unsigned int at, bool after)
{
	struct world *w = new_world();
	struct push_result result;
	uint8_t *cut_model;
	bool hit;
	int r;

	some_writes(w, 11);
	assert_int_equal(push(w, &result), 0);
	cache_file_evict_all(w->cache);
	some_writes(w, 60);
	cut_model = malloc(IMAGE_SIZE);
	assert_non_null(cut_model);
	memcpy(cut_model, w->model, IMAGE_SIZE);
	w->fault = (struct fault){ .at = at, .after = after };
	r = push(w, &result);
	hit = w->fault.calls >= at;
	if (hit && !after)
		assert_true(r < 0);
	w->fault.at = 0;
	/* the guest writes on, over the same blocks and others, and back again */
	some_writes(w, 91);
	write_sectors(w, 8 * 200, 8, 91);
	some_writes(w, 60);
	check_guest(w);
	assert_int_equal(push(w, &result), 0);
	if (w->server.head_cut == 2 && (at > 2 || (at == 2 && after))) /* step 2 is the CUT */
		check_server(w, cut_model); /* the head is what the cut closed, and nothing later */
	assert_int_equal(push(w, &result), 0);
	check_server(w, w->model);
	check_clean(w);
	cache_file_evict_all(w->cache);
	check_guest(w);
	free(cut_model);
	free_world(w);
	return hit;
}

static void test_a_push_that_ends_at_any_step(void **state)
{
	unsigned int at;

	for (at = 1; interrupted_push(at, false); at++)
		interrupted_push(at, true);
	print_message("# %u steps\n", at - 1);
	assert_true(at > 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_to_push),
		cmocka_unit_test(test_push_and_read_back),
		cmocka_unit_test(test_same_content_is_sent_once_and_shares_a_slot),
		cmocka_unit_test(test_writing_the_same_again_changes_no_root),
		cmocka_unit_test(test_written_often_hashed_once),
		cmocka_unit_test(test_pace),
		cmocka_unit_test(test_a_base_slot_that_was_evicted_meanwhile),
		cmocka_unit_test(test_another_cache_below_the_path),
		cmocka_unit_test(test_slots_of_another_size),
		cmocka_unit_test(test_a_push_that_ends_at_any_step),
	};

	return cmocka_run_group_tests_name("agent_push", tests, NULL, NULL);
}
