// SPDX-License-Identifier: GPL-2.0-or-later
/* The client library: pushes, to servers that misbehave. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cluster_fakes.h"

#define IMAGE_BLOCKS 700

static struct cluster_push *begin(struct cluster *c)
{
	Vmdedup__PushBegin b = VMDEDUP__PUSH_BEGIN__INIT;
	struct error err = { 0 };
	struct cluster_push *p;

	b.name = (char *)"image";
	b.size = IMAGE_BLOCKS * FAKES_BLOCK;
	p = cluster_push_begin(c, &b, NULL, &err);
	if (!p)
		fail_msg("%s", err.text);
	return p;
}

/* All blocks of an image, every tenth one a repetition. */
static int push_all(struct cluster *c, struct cluster_push *p, struct fp *root, struct error *err)
{
	struct recipe_builder *b = recipe_builder_new(IMAGE_BLOCKS * FAKES_BLOCK, 12, FP_SHA256,
						      &cluster_push_recipe_ops, p);
	int r = 0;

	for (int i = 0; i < IMAGE_BLOCKS && !r; i++) {
		uint8_t block[FAKES_BLOCK];
		struct fp fp;

		fakes_block(block, i % 10 ? i : 0, i & 1);
		fp = fakes_fp(c, block);
		r = cluster_push_block(p, &fp, block, FAKES_BLOCK, err);
		if (!r)
			r = recipe_builder_add(b, &fp, err);
	}
	if (!r)
		r = recipe_builder_finish(b, root, err);
	recipe_builder_free(b);
	return r;
}

static void test_push(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	struct cluster_push *p = begin(c);
	Vmdedup__PushCommitReply *reply;
	struct cluster_push_stats stats;
	struct error err = { 0 };
	struct fp root, root2;
	uint8_t block[FAKES_BLOCK];
	struct fakes_got res = { 0 };

	assert_int_equal(push_all(c, p, &root, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root, &reply, &err), 0);
	assert_int_equal(reply->version, 7);
	assert_memory_equal(reply->root.data, root.b, FP_SIZE);
	vmdedup__push_commit_reply__free_unpacked(reply, NULL);
	cluster_push_stats(p, &stats);
	cluster_push_free(p);
	assert_int_equal(stats.blocks, IMAGE_BLOCKS - 69);
	assert_int_equal(stats.new_blocks, IMAGE_BLOCKS - 69);
	assert_int_equal(f->data[0].count, IMAGE_BLOCKS - 69);
	assert_true(stats.bytes_sent < 500 * FAKES_BLOCK);
	assert_int_equal(f->leaves, 3);
	assert_int_equal(stats.nodes, 4);
	assert_int_equal(f->unvouched, 0);
	assert_int_equal(f->commits, 1);
	assert_int_equal(f->aborts, 0);

	/* A second time nothing is new. */
	p = begin(c);
	assert_int_equal(push_all(c, p, &root2, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root2, NULL, &err), 0);
	cluster_push_stats(p, &stats);
	cluster_push_free(p);
	assert_int_equal(stats.new_blocks, 0);
	assert_memory_equal(root.b, root2.b, FP_SIZE);
	assert_int_equal(f->unvouched, 0);

	/* And what was stored comes back. */
	fakes_block(block, 3, true);
	root = fakes_fp(c, block);
	assert_int_equal(cluster_get(c, &root, 1, FAKES_TIMEOUT_MS, fakes_got, &res, NULL), 0);
	assert_int_equal(res.r, 0);
	assert_memory_equal(res.data, block, FAKES_BLOCK);
	cluster_close(c);
	f->clean = true;
}

static void test_push_full(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	struct cluster_push *p = begin(c);
	struct error err = { 0 };
	struct fp root;
	int r;

	f->data[0].full = 100;
	r = push_all(c, p, &root, &err);
	if (!r)
		r = cluster_push_commit(p, &root, NULL, &err);
	assert_int_equal(r, -ENOSPC);
	assert_non_null(strstr(err.text, "full"));
	cluster_push_free(p);
	assert_int_equal(f->commits, 0);
	assert_int_equal(f->aborts, 1);
	cluster_close(c);
	f->clean = true;
}

/* Receipts that are too old at the commit are fetched anew, and the commit comes again. */
static void test_push_redo(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	struct cluster_push *p = begin(c);
	struct error err = { 0 };
	struct fp root;
	uint8_t block[FAKES_BLOCK];
	size_t before;

	fakes_block(block, 1, true);
	f->refused = fakes_fp(c, block);
	f->refuse_receipts = 2;
	assert_int_equal(push_all(c, p, &root, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root, NULL, &err), 0);
	before = IMAGE_BLOCKS - 69;
	assert_int_equal(f->nr_receipts, before + 2);
	assert_int_equal(f->commits, 1);
	cluster_push_free(p);

	/* The block has gone meanwhile, and is not at hand: the push says so. */
	p = begin(c);
	assert_int_equal(push_all(c, p, &root, &err), 0);
	while (cluster_push_waiting(p, NULL))
		cluster_run(c, 100);
	f->data[0].forgets = 1;
	f->refuse_receipts = 1;
	assert_int_equal(cluster_push_commit(p, &root, NULL, &err), -EAGAIN);
	cluster_push_free(p);
	cluster_close(c);
	f->clean = true;
}

static void test_push_old_map(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	struct cluster_push *p = begin(c);
	struct error err = { 0 };
	struct fp root;

	/* The shards have moved to the other server. */
	f->map_version = 3;
	f->shard_swap = 1;
	f->data[0].map_version = f->data[1].map_version = 3;
	assert_int_equal(push_all(c, p, &root, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root, NULL, &err), 0);
	assert_int_equal(f->data[0].count, 0);
	assert_int_equal(f->data[1].count, IMAGE_BLOCKS - 69);
	cluster_push_free(p);
	cluster_close(c);
	f->clean = true;
}

struct offer {
	int missing, calls;
};

static void offer_answered(void *arg, int missing)
{
	struct offer *o = arg;

	o->calls++;
	o->missing = missing;
}

static void count_free(void *data, void *hint)
{
	atomic_fetch_add((atomic_int *)hint, 1);
}

static void test_offer_give(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	struct cluster_push *p = begin(c);
	struct offer a = { 0 }, b = { 0 }, again = { 0 }, lost = { 0 };
	struct error err = { 0 };
	static uint8_t one[FAKES_BLOCK], two[FAKES_BLOCK];
	atomic_int freed = 0;
	struct fp fp1, fp2, fp3;

	fakes_block(one, 1, false);
	fakes_block(two, 2, false);
	fp1 = fakes_fp(c, one);
	fp2 = fakes_fp(c, two);
	fp3 = fp1;
	fp3.b[9] ^= 1;
	fakes_put(&f->data[0], &fp1, one);
	assert_int_equal(cluster_push_offer(p, &fp1, offer_answered, &a, &err), 0);
	assert_int_equal(cluster_push_offer(p, &fp2, offer_answered, &b, &err), 0);
	assert_int_equal(cluster_push_offer(p, &fp2, offer_answered, &again, &err), 0);
	assert_int_equal(again.calls, 1);
	assert_int_equal(again.missing, 0);
	while (!a.calls || !b.calls)
		cluster_run(c, 1000);
	assert_int_equal(a.missing, 0);
	assert_int_equal(b.missing, 1);
	/* Not owed. */
	assert_int_equal(cluster_push_give(p, &fp1, FAKES_BLOCK, one, FAKES_BLOCK, count_free, &freed, &err),
			 -EINVAL);
	assert_int_equal(freed, 1);
	assert_int_equal(cluster_push_give(p, &fp2, FAKES_BLOCK, two, FAKES_BLOCK, count_free, &freed, &err), 0);
	while (cluster_push_waiting(p, NULL))
		cluster_run(c, 1000);
	assert_int_equal(f->data[0].count, 2);
	/* Given up with an offer under way: it is answered, once. */
	assert_int_equal(cluster_push_offer(p, &fp3, offer_answered, &lost, &err), 0);
	cluster_push_free(p);
	assert_int_equal(lost.calls, 1);
	assert_true(lost.missing < 0);
	assert_int_equal(f->aborts, 1);
	cluster_close(c);
	assert_int_equal(lost.calls, 1);
	f->clean = true;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fakes_start, fakes_stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_push),
		TEST(test_push_full),
		TEST(test_push_redo),
		TEST(test_push_old_map),
		TEST(test_offer_give),
	};

	return cmocka_run_group_tests_name("cluster_push", tests, NULL, NULL);
}
