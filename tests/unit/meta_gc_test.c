// SPDX-License-Identifier: GPL-2.0-or-later
/* The meta server's core: receipts, shards' epochs and collections, and the placement of shards; every
 * mutation delivered twice. */
#include "meta_world.h"
#include "pg_cluster.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static const struct uuid cache_a = { { 0xa } }, cache_b = { { 0xb } };

static void test_receipts(void **state)
{
	struct world *w = *state;
	uint64_t block = 77, push, epoch = w->epoch;
	struct uuid disk = w->disk;
	struct tree t;

	tree_build(&t, &block, 1, WORLD_BLOCK);
	assert_int_equal(world_begin_import(w, "x", WORLD_BLOCK, &push), 0);
	w->receipt_key[0] ^= 1;
	assert_int_equal(world_part(w, push, &t, 0, 1, &block, 1), EBADMSG);
	w->receipt_key[0] ^= 1;
	w->epoch = 0; /* below E */
	assert_int_equal(world_part(w, push, &t, 0, 1, &block, 1), EAGAIN);
	w->epoch = epoch;
	w->disk.b[0] ^= 1; /* no member */
	assert_int_equal(world_part(w, push, &t, 0, 1, &block, 1), EAGAIN);
	w->disk = disk;
	w->incarnation = 2; /* not this one's */
	assert_int_equal(world_part(w, push, &t, 0, 1, &block, 1), EAGAIN);
	w->incarnation = 1;
	assert_int_equal(world_part(w, push, &t, 0, 1, &block, 1), 0);
	/* The disk starts anew before the commit: what it vouched for is gone. */
	assert_int_equal(world_join(w, &w->disk, 2, "host1", 1ULL << 40, &w->server), 0);
	assert_int_equal(world_commit(w, push, &t.root), EAGAIN);
	assert_int_equal(world_part(w, push, &t, 0, 0, &block, 1), 0);
	assert_int_equal(world_commit(w, push, &t.root), EAGAIN);
	w->incarnation = 2;
	assert_int_equal(world_part(w, push, &t, 0, 0, &block, 1), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	/* An older copy of the disk does not join. */
	assert_int_equal(world_join(w, &w->disk, 1, "host1", 1ULL << 40, &w->server), ESTALE);
	tree_free(&t);
}

/* Between count 0 and the cascade a node is whole: bringing it again revives it. */
static void test_revive(void **state)
{
	struct world *w = *state;
	uint64_t blocks[300], push;
	struct error err = { 0 };
	struct gc_progress p;
	struct tree t;

	world_ramp(blocks, 300, 1);
	tree_build(&t, blocks, 300, 300 * WORLD_BLOCK);
	assert_int_equal(world_import(w, "a", blocks, 300), 0);
	world_settle(w);
	assert_int_equal(world_remove(w, "a"), 0);
	/* The image goes, its root is dying. */
	assert_int_equal(meta_begin(&w->m, &err), 0);
	assert_int_equal(gc_cascade(&w->m, 1, &p, &err), 0);
	assert_int_equal(meta_commit(&w->m, &err), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM dying"), 1);
	assert_int_equal(world_begin_import(w, "b", 300 * WORLD_BLOCK, &push), 0);
	assert_int_equal(world_commit(w, push, &t.root), EAGAIN);
	assert_int_equal(world_part(w, push, &t, 2, 3, NULL, 0), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes WHERE count = 1"), 3);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM blocks WHERE count = 1"), 300);
	tree_free(&t);
}

/* Dead blocks are condemned with a new epoch; old receipts count no more; naming one again with a
 * new receipt uncondemns it. */
static void test_epochs(void **state)
{
	struct world *w = *state;
	uint64_t blocks[10], push;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcStep gc = VMDEDUP__GC_STEP__INIT;
	const Vmdedup__Reply *reply;
	uint64_t version = w->m.params.map_version;
	struct tree t;

	world_ramp(blocks, 10, 1);
	tree_build(&t, blocks, 10, 10 * WORLD_BLOCK);
	assert_int_equal(world_import(w, "a", blocks, 10), 0);
	assert_int_equal(world_import(w, "b", blocks, 5), 0);
	assert_int_equal(world_remove(w, "a"), 0);
	/* Receipts of the old epoch, for a part that comes after the collection. */
	assert_int_equal(world_begin_import(w, "c", 10 * WORLD_BLOCK, &push), 0);
	assert_int_equal(world_part(w, push, &t, 0, 0, blocks, 10), 0);
	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &gc;
	gc.now = true;
	do
		reply = world_call(w, &req, NULL, 0);
	while (reply->gc_step->more);
	assert_int_equal(reply->gc_step->dead_blocks, 5);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM blocks WHERE condemned = 2"), 5);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM shards WHERE epoch = 2"), 5);
	assert_true(w->m.params.map_version > version);
	reply = world_part_reply(w, push, &t, 0, 1, NULL, 0);
	assert_int_equal(reply->error, EAGAIN);
	assert_int_equal(reply->push_part->redo_blocks.len, 5 * FP_SIZE);
	w->epoch = 2;
	assert_int_equal(world_part(w, push, &t, 0, 1, blocks, 10), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM blocks WHERE condemned > 0"), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	tree_free(&t);
}

/* How many blocks wait for the data servers to delete them. */
static unsigned int collect_now(struct world *w)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcStep gc = VMDEDUP__GC_STEP__INIT;
	const Vmdedup__Reply *reply;

	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &gc;
	gc.now = true;
	do {
		reply = world_call(w, &req, NULL, 0);
		assert_int_equal(reply->error, 0);
	} while (reply->gc_step->more);
	return (unsigned int)reply->gc_step->dead_blocks;
}

/* So many dead blocks that one transaction must not condemn them: most in one shard. */
static void test_many_dead(void **state)
{
	enum { IN_ONE = META_MAX_CONDEMN + 100, NR = IN_ONE + 300 };
	struct world *w = *state;
	struct fp *fps = calloc(NR, sizeof(*fps));
	struct val *vals = calloc(NR, sizeof(*vals));
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcStep gc = VMDEDUP__GC_STEP__INIT;
	const Vmdedup__Reply *reply;
	struct error err = { 0 };
	size_t i;

	for (i = 0; i < NR; i++) {
		fps[i] = world_fp(i + 1);
		if (i < IN_ONE)
			fps[i].b[0] = fps[i].b[1] = 7;
		vals[i] = V_FP(&fps[i]);
	}
	assert_int_equal(store_begin(w->m.store, &err), 0);
	assert_int_equal(store_exec_many(w->m.store, &err,
					 "INSERT INTO blocks (domain, fp, count, condemned) VALUES "
					 "(1, ?1, 0, 0)", vals, 1, NR, NULL, 0), 0);
	assert_int_equal(store_commit(w->m.store, &err), 0);
	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &gc;
	gc.now = true;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	assert_true(reply->gc_step->more);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM blocks WHERE condemned > 0"),
			 META_MAX_CONDEMN);
	assert_int_equal(collect_now(w), NR);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM blocks WHERE condemned = 0"), 0);
	/* Collected twice, and condemned to the epoch that it had then. */
	assert_int_equal(world_sql(w, "SELECT max(epoch) FROM shards"), 3);
	assert_int_equal(world_sql(w, "SELECT max(condemned) FROM blocks"), 3);
	assert_int_equal(world_check(w, true), 0);
	free(fps);
	free(vals);
}

/* A day forth, two back, a year forth: of leases, sessions, open pushes, receipts and blocks none
 * ends early, and none stays longer, than without. */
static void test_clock_jumps(void **state)
{
	static const int64_t jumps[] = { 86400, -2 * 86400, 365 * 86400, -400 * 86400 };
	struct world *w = *state;
	uint64_t blocks[4] = { 1, 2, 3, 4 }, gone[5], epoch, other, push, cut = 0;
	unsigned int dead = 0;
	struct fp root, out;
	struct uuid image;
	struct tree t;
	bool done;
	size_t i;

	w->wall_s = 500 * 86400;
	assert_int_equal(world_import(w, "vm", blocks, 4), 0);
	assert_int_equal(world_image(w, "vm", &image, &root), 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &out), 0);
	for (i = 0; i < ARRAY_SIZE(jumps); i++) {
		/* Open, with receipts, when the clock jumps. */
		blocks[0] = 100 + i;
		tree_build(&t, blocks, 4, 4 * WORLD_BLOCK);
		assert_int_equal(
			world_begin_cut(w, &image, epoch, ++cut, &root, false, &push, &done), 0);
		assert_int_equal(world_part(w, push, &t, 0, 0, blocks, 4), 0);
		world_ramp(gone, 5, 1000 + 10 * i);
		assert_int_equal(world_import(w, "gone", gone, 5), 0);
		w->wall_s += (uint64_t)jumps[i];
		w->mono_ns += 100 * 1000000000ULL;
		world_settle(w);
		assert_int_equal(world_lease(w, &image, &cache_b, &other, &out), EBUSY);
		assert_int_equal(world_lease(w, &image, &cache_a, &other, &out), 0);
		assert_int_equal(other, epoch);
		/* What was removed, and what cuts have replaced; the lease keeps the last parent. */
		dead += i > 1;
		assert_int_equal(collect_now(w), dead);
		assert_int_equal(world_remove(w, "gone"), 0);
		world_settle(w);
		dead += 5;
		assert_int_equal(collect_now(w), dead);
		w->epoch = (uint64_t)world_sql(w, "SELECT max(epoch) FROM shards");
		/* What was collected raised the epochs of those shards alone. */
		assert_int_equal(world_part(w, push, &t, 0, 1, NULL, 0), 0);
		assert_int_equal(world_commit(w, push, &t.root), 0);
		root = t.root;
		tree_free(&t);
		assert_int_equal(world_sql(w, "SELECT count(*) FROM sessions"), 1);
	}
	/* Service alone ends what is idle. */
	blocks[0] = 200;
	assert_int_equal(world_begin_cut(w, &image, epoch, ++cut, &root, false, &push, &done), 0);
	w->mono_ns += (META_PUSH_IDLE_S + 100) * 1000000000ULL;
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM pushes WHERE state = 0"), 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &other, &out), 0);
	assert_int_equal(other, epoch);
	assert_int_equal(world_check(w, true), 0);
}

static void test_placement(void **state)
{
	struct world *w = *state;
	struct uuid d2 = { { 2 } }, d3 = { { 3 } }, d4 = { { 4 } };
	uint64_t blocks[100];
	uint32_t s2, s3, s4, again;

	world_free(w);
	world_init(w, 2, 1);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM replicas WHERE server = 1"), 1024);
	/* Two disks of a host share its places, one of each shard. */
	assert_int_equal(world_join(w, &d3, 1, "host1", 1ULL << 40, &s3), 0);
	assert_in_range(world_sql(w, "SELECT count(*) FROM replicas WHERE server = 1"), 502, 522);
	assert_in_range(world_sql(w, "SELECT count(*) FROM replicas WHERE server = 2"), 502, 522);
	assert_int_equal(world_join(w, &d2, 1, "host2", 1ULL << 40, &s2), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM replicas WHERE server = 3"), 1024);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM replicas WHERE state = 0"), 2048);
	assert_int_equal(world_join(w, &d2, 1, "host2", 1ULL << 40, &again), 0);
	assert_int_equal(again, s2);
	assert_int_equal(world_sql(w, "SELECT map_version FROM cluster"), 4);
	/* Started anew: stale wherever another replica is. */
	assert_int_equal(world_join(w, &d2, 2, "host2", 1ULL << 40, &again), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM replicas WHERE state = 1"), 1024);
	/* Shards that hold blocks stay; the others make way for twice the capacity. */
	w->incarnation = 1;
	world_ramp(blocks, 100, 1);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM replicas WHERE state = 0"), 1024);
	w->epoch = 1;
	/* Half of the blocks are the other disk's. */
	assert_int_equal(world_import(w, "a", blocks, 100), EAGAIN);
	assert_int_equal(world_join(w, &d4, 1, "host3", 2ULL << 40, &s4), 0);
	assert_in_range(world_sql(w, "SELECT count(*) FROM replicas WHERE server = 4"), 800, 824);
	assert_int_equal(world_sql(w,
				   "SELECT count(*) FROM replicas a JOIN replicas b ON a.shard = "
				   "b.shard AND a.replica < b.replica WHERE a.server = b.server OR "
				   "(a.server < 3 AND b.server < 3)"),
			 0);
}

/* Shards that hold blocks do not move by themselves. */
static void test_placement_keeps_blocks(void **state)
{
	struct world *w = *state;
	struct uuid d2 = { { 2 } };
	uint64_t blocks[100];
	struct fp fp;
	char sql[80];
	uint32_t s2;
	int i;

	world_ramp(blocks, 100, 1);
	assert_int_equal(world_import(w, "a", blocks, 100), 0);
	assert_int_equal(world_join(w, &d2, 1, "host2", 1ULL << 40, &s2), 0);
	assert_in_range(world_sql(w, "SELECT count(*) FROM replicas WHERE server = 2"), 502, 522);
	assert_int_equal(world_import(w, "b", blocks, 100), 0);
	for (i = 0; i < 100; i++) {
		fp = world_fp(blocks[i]);
		snprintf(sql, sizeof(sql), "SELECT count(*) FROM replicas WHERE server = 2 AND "
			 "shard = %u", fp_shard(&fp));
		assert_int_equal(world_sql(w, sql), 0);
	}
}

static int run(const char *name)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, world_setup, world_teardown)
		T(test_receipts),
		T(test_revive),
		T(test_epochs),
		T(test_many_dead),
		T(test_clock_jumps),
		T(test_placement),
		T(test_placement_keeps_blocks),
	};

	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
	return pg_run_both(run, world_use_pg);
}
