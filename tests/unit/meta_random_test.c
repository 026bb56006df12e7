// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Thousands of random operations against a model: what every image must contain, and a data server
 * that stamps, forgets to hear of new epochs, and deletes what the collector lets it. Mutations are
 * delivered twice and the store is reopened at random. After each round the check must be
 * silent, every image must read back, and every block that an image names must still be there.
 * VMDEDUP_SEED and VMDEDUP_OPS choose another history.
 */
#include "meta_world.h"
#include "pg_cluster.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#define NR_IMAGES   12
#define NR_CONTENTS 400
#define MAX_BLOCKS  700
#define NR_CACHES   3

struct model_image {
	bool exists, leased;
	struct uuid uuid;
	uint64_t blocks[MAX_BLOCKS];
	size_t n;
	struct fp root;
	unsigned int cache;
	uint64_t epoch, cut;
	uint64_t versions; /* snapshots have the content of saved[] */
	struct {
		uint64_t number;
		uint64_t blocks[MAX_BLOCKS];
	} saved;
};

struct model {
	struct world w;
	struct model_image images[NR_IMAGES];
	uint64_t stamps[NR_CONTENTS];
	uint64_t known_epochs[NR_SHARDS]; /* the data server's, may be old */
	uint64_t selected[NR_CONTENTS], nr_selected, below[NR_CONTENTS];
	uint64_t cuts;
};

static uint64_t pick(struct model *m, uint64_t n)
{
	return (world_random(&m->w) >> 11) % n;
}

static const char *name_of(size_t i)
{
	static const char *const names[NR_IMAGES] = { "a", "b", "c", "d", "e", "f",
						      "g", "h", "i", "j", "k", "l" };

	return names[i];
}

static struct uuid cache_of(unsigned int n)
{
	return (struct uuid){ { 0xc0, (uint8_t)n } };
}

/* ---- the data server ---- */

static void hear_epochs(struct model *m)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;
	const Vmdedup__Reply *reply;

	req.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	req.map_get = &get;
	reply = world_call(&m->w, &req, NULL, 0);
	assert_int_equal(reply->map->n_shard_epochs, NR_SHARDS);
	memcpy(m->known_epochs, reply->map->shard_epochs, sizeof(m->known_epochs));
	m->w.map_version = reply->map->version;
}

/* PUT or TOUCH: there from now on, stamped with the epoch that this data server knows. */
static void put_blocks(struct model *m, const uint64_t *blocks, size_t n)
{
	struct fp fp;
	size_t i;

	for (i = 0; i < n; i++) {
		fp = world_fp(blocks[i]);
		if (blocks[i])
			m->stamps[blocks[i]] = m->known_epochs[fp_shard(&fp)];
	}
}

static const Vmdedup__GcListReply *select_one(struct model *m, uint64_t k)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcSelect sel = VMDEDUP__GC_SELECT__INIT;
	struct fp fp = world_fp(k);
	const Vmdedup__Reply *reply;

	sel.shard = fp_shard(&fp);
	sel.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	req.body_case = VMDEDUP__REQUEST__BODY_GC_SELECT;
	req.gc_select = &sel;
	reply = world_call(&m->w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	return reply->gc_list;
}

static void gc_steps(struct model *m, bool now, unsigned int steps)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcStep gc = VMDEDUP__GC_STEP__INIT;
	const Vmdedup__Reply *reply;

	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &gc;
	gc.now = now;
	gc.budget = 1 + (uint32_t)pick(m, 4);
	do {
		reply = world_call(&m->w, &req, NULL, 0);
		assert_int_equal(reply->error, 0);
	} while (reply->gc_step->more && --steps);
}

/* The two halves of a collection, so that anything can happen between them. */
static void gc_choose(struct model *m)
{
	const Vmdedup__GcListReply *list;
	uint64_t k;

	gc_steps(m, true, (unsigned int)pick(m, 12) + 1);
	m->nr_selected = 0;
	for (k = 1; k < NR_CONTENTS; k++) {
		list = m->stamps[k] ? select_one(m, k) : NULL;
		if (!list || !list->fingerprints.len)
			continue;
		m->below[m->nr_selected] = list->below_epoch;
		m->selected[m->nr_selected++] = k;
	}
}

static void gc_delete(struct model *m)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcForget forget = VMDEDUP__GC_FORGET__INIT;
	struct fp fp;
	uint64_t i, k;

	for (i = 0; i < m->nr_selected; i++) {
		k = m->selected[i];
		if (m->stamps[k] >= m->below[i])
			continue;
		m->stamps[k] = 0;
		fp = world_fp(k);
		forget.shard = fp_shard(&fp);
		forget.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
		req.body_case = VMDEDUP__REQUEST__BODY_GC_FORGET;
		req.gc_forget = &forget;
		assert_int_equal(world_call(&m->w, &req, NULL, 0)->error, 0);
	}
	m->nr_selected = 0;
}

/* ---- pushes as a client makes them ---- */

static void random_blocks(struct model *m, uint64_t *blocks, size_t n, unsigned int percent)
{
	uint64_t base = pick(m, NR_CONTENTS);
	size_t i;

	for (i = 0; i < n; i++)
		if (pick(m, 100) < percent)
			blocks[i] = pick(m, 4) ? (base + i) % NR_CONTENTS : pick(m, NR_CONTENTS);
}

/* Sends a tree in parts of random size; what is refused is put again and sent again, after the data
 * server has heard of the new epochs. With @stop_at the client dies on the way. */
static int send(struct model *m, uint64_t push, const struct tree *t, const uint64_t *blocks,
		size_t n, size_t stop_at)
{
	const Vmdedup__Reply *reply;
	size_t from = 0, to;
	int tries = 0;

	put_blocks(m, blocks, n);
	while (from < t->nr) {
		if (from >= stop_at)
			return -1;
		/* A collection, or half of one, at any point of a push. */
		if (!pick(m, 5))
			gc_choose(m);
		if (!pick(m, 3))
			gc_delete(m);
		to = from + 1 + pick(m, 4);
		to = MIN(to, t->nr);
		reply = world_part_reply(&m->w, push, t, from, to, tries || !from ? blocks : NULL,
					 n);
		if (reply->error == EAGAIN) {
			assert_int_equal(reply->push_part->missing_nodes.len, 0);
			assert_true(++tries < 10);
			hear_epochs(m);
			put_blocks(m, blocks, n);
			continue;
		}
		if (reply->error)
			return reply->error;
		from = to;
	}
	return 0;
}

static void do_import(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	struct model_image fresh = { .n = 1 + pick(m, MAX_BLOCKS) };
	size_t pick_from = pick(m, NR_IMAGES);
	struct tree t;
	uint64_t push;
	int r;

	random_blocks(m, fresh.blocks, fresh.n, 80);
	/* Or what another image has, or had: its nodes are there, or dying. */
	if (!pick(m, 3) && m->images[pick_from].n) {
		fresh.n = m->images[pick_from].n;
		memcpy(fresh.blocks, m->images[pick_from].blocks, sizeof(fresh.blocks));
	}
	r = world_begin_import(&m->w, name_of(i), fresh.n * WORLD_BLOCK, &push);
	assert_int_equal(r, im->exists ? EEXIST : 0);
	if (r)
		return;
	tree_build(&t, fresh.blocks, fresh.n, fresh.n * WORLD_BLOCK);
	r = send(m, push, &t, fresh.blocks, fresh.n, pick(m, 5) ? SIZE_MAX : pick(m, 3));
	if (!r) {
		assert_int_equal(world_commit(&m->w, push, &t.root), 0);
		*im = fresh;
		im->exists = true;
		assert_int_equal(world_image(&m->w, name_of(i), &im->uuid, &im->root), 0);
		assert_true(fp_equal(&im->root, &t.root));
	}
	tree_free(&t);
}

static void do_clone(struct model *m, size_t from, size_t to)
{
	struct model_image *a = &m->images[from], *b = &m->images[to];
	uint64_t version = pick(m, 2) ? a->saved.number : 0;
	int r = world_clone(&m->w, name_of(from), version, name_of(to));

	if (!a->exists || b->exists) {
		assert_int_equal(r, !a->exists ? ENOENT : EEXIST);
		return;
	}
	assert_int_equal(r, 0);
	*b = (struct model_image){ .exists = true, .n = a->n };
	memcpy(b->blocks, version ? a->saved.blocks : a->blocks, sizeof(b->blocks));
	assert_int_equal(world_image(&m->w, name_of(to), &b->uuid, &b->root), 0);
}

static void do_remove(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	int r = world_remove(&m->w, name_of(i));

	assert_int_equal(r, !im->exists ? ENOENT : im->leased ? EBUSY : 0);
	if (!r)
		im->exists = false;
}

static void do_lease(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	unsigned int who = (unsigned int)pick(m, NR_CACHES);
	struct uuid cache = cache_of(who);
	uint64_t epoch;
	struct fp root;
	int r;

	if (!im->exists)
		return;
	r = world_lease(&m->w, &im->uuid, &cache, &epoch, &root);
	if (im->leased && im->cache != who) {
		assert_int_equal(r, EBUSY);
		return;
	}
	assert_int_equal(r, 0);
	assert_true(fp_equal(&root, &im->root));
	if (im->leased)
		assert_int_equal(epoch, im->epoch);
	else
		assert_true(epoch > im->epoch);
	im->leased = true;
	im->cache = who;
	im->epoch = epoch;
}

static void do_release(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	struct uuid cache = cache_of(im->cache);

	if (!im->exists || !im->leased)
		return;
	assert_int_equal(world_release(&m->w, &im->uuid, &cache, im->epoch), 0);
	im->leased = false;
}

static void do_break(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseBreak brk = VMDEDUP__LEASE_BREAK__INIT;

	if (!im->exists || !im->leased)
		return;
	brk.image = (ProtobufCBinaryData){ 16, im->uuid.b };
	brk.epoch = im->epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_BREAK;
	req.lease_break = &brk;
	assert_int_equal(world_mutate(&m->w, &req, NULL, 0)->error, 0);
	im->leased = false;
}

static void do_push(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	uint64_t blocks[MAX_BLOCKS], push, cut = ++m->cuts;
	struct tree t;
	bool done;
	int r;

	if (!im->exists || !im->epoch)
		return;
	/* Within the epoch the next cut only. */
	if (im->cut)
		cut = im->cut + 1;
	memcpy(blocks, im->blocks, sizeof(blocks));
	random_blocks(m, blocks, im->n, 5);
	if (im->cut && !pick(m, 4))
		assert_int_equal(world_begin_cut(&m->w, &im->uuid, im->epoch, cut + 1, &im->root,
						 false, &push, &done),
				 ESTALE);
	r = world_begin_cut(&m->w, &im->uuid, im->epoch, cut, &im->root, false, &push, &done);
	if (!im->leased) {
		assert_int_equal(r, ESTALE);
		return;
	}
	assert_int_equal(r, 0);
	assert_false(done);
	tree_build(&t, blocks, im->n, im->n * WORLD_BLOCK);
	r = send(m, push, &t, blocks, im->n, pick(m, 4) ? SIZE_MAX : pick(m, 3));
	if (!r) {
		assert_int_equal(world_commit(&m->w, push, &t.root), 0);
		/* The first message again: the first result. */
		assert_int_equal(world_begin_cut(&m->w, &im->uuid, im->epoch, cut, &im->root, false,
						 &push, &done), 0);
		assert_true(done);
		memcpy(im->blocks, blocks, sizeof(blocks));
		im->root = t.root;
		im->cut = cut;
	}
	tree_free(&t);
}

static void do_snapshot(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Snapshot snap = VMDEDUP__SNAPSHOT__INIT;
	const Vmdedup__Reply *reply;

	snap.name = (char *)name_of(i);
	req.body_case = VMDEDUP__REQUEST__BODY_SNAPSHOT;
	req.snapshot = &snap;
	reply = world_mutate(&m->w, &req, NULL, 0);
	assert_int_equal(reply->error, im->exists ? 0 : ENOENT);
	if (!im->exists)
		return;
	im->saved.number = reply->image->version;
	memcpy(im->saved.blocks, im->blocks, sizeof(im->blocks));
}

static void do_rollback(struct model *m, size_t i)
{
	struct model_image *im = &m->images[i];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Rollback back = VMDEDUP__ROLLBACK__INIT;
	int r;

	if (!im->exists || !im->saved.number)
		return;
	back.name = (char *)name_of(i);
	back.version = im->saved.number;
	req.body_case = VMDEDUP__REQUEST__BODY_ROLLBACK;
	req.rollback = &back;
	r = world_mutate(&m->w, &req, NULL, 0)->error;
	assert_int_equal(r, im->leased ? EBUSY : 0);
	if (r)
		return;
	memcpy(im->blocks, im->saved.blocks, sizeof(im->blocks));
	assert_int_equal(world_image(&m->w, name_of(i), &im->uuid, &im->root), 0);
}

/* Gives up what broken leases of anybody pin. */
static void forget_broken(struct model *m)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseList list = VMDEDUP__LEASE_LIST__INIT;
	Vmdedup__LeaseBreak brk = VMDEDUP__LEASE_BREAK__INIT;
	const Vmdedup__Reply *reply;
	size_t i;

	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_LIST;
	req.lease_list = &list;
	reply = world_call(&m->w, &req, NULL, 0);
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_BREAK;
	req.lease_break = &brk;
	for (i = 0; i < reply->lease_list->n_leases; i++) {
		const Vmdedup__Lease *l = reply->lease_list->leases[i];

		if (!l->broken)
			continue;
		brk.image = l->image;
		brk.epoch = l->epoch;
		assert_int_equal(world_mutate(&m->w, &req, NULL, 0)->error, 0);
	}
}

/* ---- the proof ---- */

static int get_node(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		    struct error *err)
{
	struct model *m = ctx;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__NodeGet get = VMDEDUP__NODE_GET__INIT;

	get.hashes = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)hash->b };
	req.body_case = VMDEDUP__REQUEST__BODY_NODE_GET;
	req.node_get = &get;
	world_call(&m->w, &req, NULL, 0);
	if (!m->w.nr_frames)
		return error_set(err, -ENOENT, "a node is missing");
	memcpy(out, m->w.frames[0].data, m->w.frames[0].len);
	*len = m->w.frames[0].len;
	return 0;
}

struct visit {
	struct model *m;
	const struct model_image *im;
};

static int visit(void *arg, uint64_t block, uint64_t run, const struct fp *fp)
{
	const struct visit *v = arg;
	uint64_t i;

	for (i = block; i < block + run; i++) {
		uint64_t k = v->im->blocks[i];
		struct fp want = world_fp(k);

		if (!fp) {
			assert_int_equal(k, 0);
			continue;
		}
		assert_true(fp_equal(fp, &want));
		assert_true(v->m->stamps[k] > 0); /* the data server has it */
	}
	return 0;
}

static void verify(struct model *m)
{
	static const struct recipe_ops ops = { .get = get_node };
	struct error err = { 0 };
	size_t i;

	assert_int_equal(world_check(&m->w, true), 0);
	for (i = 0; i < NR_IMAGES; i++) {
		struct model_image *im = &m->images[i];
		struct visit v = { m, im };

		if (im->exists && recipe_walk(&im->root, im->n * WORLD_BLOCK, WORLD_SHIFT,
					      FP_SHA256, 0, im->n, &ops, m, visit, &v, &err))
			fail_msg("image %s: %s", name_of(i), err.text);
	}
}

static void step(struct model *m)
{
	size_t i = pick(m, NR_IMAGES), j = pick(m, NR_IMAGES);
	struct error err = { 0 };

	m->w.replay = !pick(m, 2);
	m->w.reopen = !pick(m, 40);
	switch (pick(m, 16)) {
	case 0: case 1:
		do_import(m, i);
		break;
	case 2:
		if (i != j)
			do_clone(m, i, j);
		break;
	case 3:
		do_remove(m, i);
		break;
	case 4: case 5: {
		bool fresh = !m->images[i].leased;

		do_lease(m, i);
		if (fresh)
			m->images[i].cut = 0;
		break;
	}
	case 6:
		do_release(m, i);
		break;
	case 7:
		do_break(m, i);
		break;
	case 8: case 9: case 10:
		do_push(m, i);
		break;
	case 11:
		do_snapshot(m, i);
		break;
	case 12:
		do_rollback(m, i);
		break;
	case 13:
		gc_choose(m);
		break;
	case 14:
		gc_delete(m);
		break;
	case 15:
		if (pick(m, 2))
			hear_epochs(m);
		else
			assert_true(meta_tick(&m->w.m, &err) >= 0);
		break;
	}
	world_forget(&m->w);
}

static void clear(struct model *m)
{
	size_t i;

	for (i = 0; i < NR_IMAGES; i++) {
		do_release(m, i);
		if (m->images[i].exists)
			do_remove(m, i);
	}
	forget_broken(m);
	/* Pushes that died on the way. */
	m->w.mono_ns += (META_PUSH_IDLE_S + 200) * 1000000000ULL;
	world_settle(&m->w);
	world_settle(&m->w);
	verify(m);
	assert_int_equal(world_sql(&m->w, "SELECT count(*) FROM nodes"), 0);
	assert_int_equal(world_sql(&m->w, "SELECT count(*) FROM pushes"), 0);
	gc_steps(m, true, 10000);
	gc_choose(m);
	gc_steps(m, true, 10000);
	gc_choose(m);
	gc_delete(m);
	assert_int_equal(world_sql(&m->w, "SELECT count(*) FROM blocks WHERE count > 0"), 0);
	for (i = 1; i < NR_CONTENTS; i++)
		if (m->stamps[i] && select_one(m, i)->fingerprints.len == 0)
			fail_msg("content %zu is neither named nor collected", i);
}

static void test_random(void **state)
{
	struct model *m = calloc(1, sizeof(*m));
	const char *seed = getenv("VMDEDUP_SEED"), *ops = getenv("VMDEDUP_OPS");
	unsigned long i, n;

	world_init(&m->w, 1, 1);
	n = ops ? strtoul(ops, NULL, 0) : store_is_pg(m->w.path) ? 300 : 800;
	m->w.seed = seed ? strtoull(seed, NULL, 0) : (uint64_t)time(NULL) * 0x9e3779b97f4a7c15;
	print_message("VMDEDUP_SEED=0x%llx VMDEDUP_OPS=%lu\n", (unsigned long long)m->w.seed, n);
	m->w.stamps = m->stamps;
	hear_epochs(m);
	for (i = 0; i < n; i++) {
		step(m);
		if (i % 100 == 99)
			verify(m);
	}
	m->w.replay = m->w.reopen = false;
	clear(m);
	world_free(&m->w);
	free(m);
}

static int run(const char *name)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_random) };

	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
	return pg_run_both(run, world_use_pg);
}
