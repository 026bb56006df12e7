// SPDX-License-Identifier: GPL-2.0-or-later
/* The meta server's core: leases, and what is counted for those who only read. Every mutation is delivered
 * twice. */
#include "meta_world.h"
#include "pg_cluster.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static const struct uuid cache_a = { { 0xa } }, cache_b = { { 0xb } };

static void test_leases(void **state)
{
	struct world *w = *state;
	uint64_t blocks[4] = { 1, 2, 3, 4 }, e1 = 0, e2 = 0;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseBreak brk = VMDEDUP__LEASE_BREAK__INIT;
	Vmdedup__LeaseTake take = VMDEDUP__LEASE_TAKE__INIT;
	Vmdedup__LeaseList list = VMDEDUP__LEASE_LIST__INIT;
	const Vmdedup__Reply *reply;
	struct fp root, r0, r1, r2;
	struct uuid image;

	assert_int_equal(world_import(w, "vm", blocks, 4), 0);
	assert_int_equal(world_image(w, "vm", &image, &root), 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &e1, &r0), 0);
	assert_true(fp_equal(&root, &r0));
	assert_int_equal(world_lease(w, &image, &cache_a, &e2, &r0), 0);
	assert_int_equal(e1, e2);
	assert_int_equal(world_lease(w, &image, &cache_b, &e2, &r0), EBUSY);
	assert_int_equal(world_remove(w, "vm"), EBUSY);
	blocks[0] = 10;
	assert_int_equal(world_push(w, &image, e1, 7, &r0, blocks, 4, false, &r1), 0);
	blocks[0] = 11;
	assert_int_equal(world_push(w, &image, e1, 8, &r1, blocks, 4, true, &r2), 0);
	/* Broken: it commits nothing, its two last roots stay. */
	brk.image = (ProtobufCBinaryData){ 16, image.b };
	brk.epoch = e1;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_BREAK;
	req.lease_break = &brk;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_push(w, &image, e1, 9, &r2, blocks, 4, false, &root), ESTALE);
	assert_int_equal(world_lease(w, &image, &cache_b, &e2, &root), 0);
	assert_true(e2 > e1);
	assert_true(fp_equal(&root, &r2));
	take.image = brk.image;
	take.cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache_a.b };
	take.confirm_only = true;
	take.epoch = e1;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_TAKE;
	req.lease_take = &take;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, ESTALE);
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_LIST;
	req.lease_list = &list;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->lease_list->n_leases, 2);
	assert_true(reply->lease_list->leases[0]->broken);
	assert_false(reply->lease_list->leases[1]->broken);
	list.limit = 1;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->lease_list->n_leases, 1);
	assert_true(reply->lease_list->more);
	list.after = reply->lease_list->next;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->lease_list->n_leases, 1);
	assert_int_equal(reply->lease_list->leases[0]->epoch, e2);
	list.after = "nonsense";
	assert_int_equal(world_call(w, &req, NULL, 0)->error, EINVAL);
	assert_int_equal(world_release(w, &image, &cache_b, e2), 0);
	assert_int_equal(world_release(w, &image, &cache_b, e2), 0);
	assert_int_equal(world_remove(w, "vm"), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 2);
	assert_int_equal(world_release(w, &image, &cache_b, e1), EBUSY);
	assert_int_equal(world_release(w, &image, &cache_a, e1), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM images"), 0);
}

static int take(struct world *w, const struct uuid *image, uint64_t confirm)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseTake body = VMDEDUP__LEASE_TAKE__INIT;

	body.image = (ProtobufCBinaryData){ 16, (uint8_t *)image->b };
	body.cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache_a.b };
	body.confirm_only = confirm != 0;
	body.epoch = confirm;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_TAKE;
	req.lease_take = &body;
	return world_mutate(w, &req, NULL, 0)->error;
}

static int hand_over(struct world *w, const struct uuid *image, uint64_t epoch)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseHandover body = VMDEDUP__LEASE_HANDOVER__INIT;

	body.image = (ProtobufCBinaryData){ 16, (uint8_t *)image->b };
	body.cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache_a.b };
	body.to_cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache_b.b };
	body.to_host = "host2";
	body.epoch = epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_HANDOVER;
	req.lease_handover = &body;
	return world_mutate(w, &req, NULL, 0)->error;
}

static void expect_lost(struct world *w, const struct uuid *image, uint64_t epoch,
			const struct fp *root)
{
	uint64_t push;
	bool done;

	assert_int_equal(take(w, image, epoch), ESTALE);
	assert_int_equal(world_begin_cut(w, image, epoch, 2, root, false, &push, &done), ESTALE);
	assert_int_equal(hand_over(w, image, epoch), ESTALE);
	/* Who has nothing to lose is told what there is. */
	assert_int_equal(take(w, image, 0), ENOENT);
}

/* The image of a broken lease is removed: its holder hears that the lease is over, and what that pins
 * is there to be recovered. So it is when nobody has heard of the image since a restore. */
static void test_lease_outlives_image(void **state)
{
	struct world *w = *state;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseBreak brk = VMDEDUP__LEASE_BREAK__INIT;
	uint64_t blocks[4] = { 1, 2, 3, 4 }, epoch, push;
	struct uuid image, unknown = { { 7, 7, 7 } };
	struct fp root, r1;
	struct tree t;
	bool done;

	assert_int_equal(world_import(w, "vm", blocks, 4), 0);
	assert_int_equal(world_image(w, "vm", &image, &root), 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &root), 0);
	blocks[0] = 10;
	assert_int_equal(world_push(w, &image, epoch, 1, &root, blocks, 4, false, &r1), 0);
	blocks[0] = 11;
	tree_build(&t, blocks, 4, 4 * WORLD_BLOCK);
	assert_int_equal(world_begin_cut(w, &image, epoch, 2, &r1, false, &push, &done), 0);
	assert_int_equal(world_part(w, push, &t, 0, t.nr, blocks, 4), 0);
	brk.image = (ProtobufCBinaryData){ 16, image.b };
	brk.epoch = epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_BREAK;
	req.lease_break = &brk;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_remove(w, "vm"), 0);
	expect_lost(w, &image, epoch, &r1); /* removed */
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM images"), 0);
	expect_lost(w, &image, epoch, &r1); /* its row has gone as well */
	assert_int_equal(world_commit(w, push, &t.root), ESTALE);
	expect_lost(w, &unknown, 3, &r1);
	/* The recorded root is there for the recovery. */
	assert_int_equal(world_begin_import(w, "rescued", 4 * WORLD_BLOCK, &push), 0);
	assert_int_equal(world_part(w, push, &t, 0, t.nr, blocks, 4), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 3);
	assert_int_equal(world_release(w, &image, &cache_a, epoch), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 1);
	assert_int_equal(world_check(w, true), 0);
	tree_free(&t);
}

/* @has: the root that the cache has on record, or NULL. */
static void read_only(struct world *w, const struct uuid *image, const struct fp *has, struct fp *root)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseTake body = VMDEDUP__LEASE_TAKE__INIT;
	const Vmdedup__Reply *reply;

	body.image = (ProtobufCBinaryData){ 16, (uint8_t *)image->b };
	body.cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache_b.b };
	body.readonly = true;
	if (has)
		body.root = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)has->b };
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_TAKE;
	req.lease_take = &body;
	reply = world_mutate(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->lease->epoch, 0);
	memcpy(root->b, reply->lease->root.data, FP_SIZE);
}

/* The epoch of what @cache reads, 0: it reads nothing. It holds no lease. */
static uint64_t reader(struct world *w, const struct uuid *cache)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseList body = VMDEDUP__LEASE_LIST__INIT;
	const Vmdedup__Reply *reply;

	body.cache = (ProtobufCBinaryData){ 16, (uint8_t *)cache->b };
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_LIST;
	req.lease_list = &body;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	if (!reply->lease_list->n_leases)
		return 0;
	assert_int_equal(reply->lease_list->n_leases, 1);
	assert_true(reply->lease_list->leases[0]->reader);
	assert_false(reply->lease_list->leases[0]->broken);
	return reply->lease_list->leases[0]->epoch;
}

/* What is attached to be read stays: while it is written above, and when it is removed. */
static void test_readers(void **state)
{
	uint64_t blocks[4] = { 1, 2, 3, 4 }, epoch, first;
	struct fp r0, r1, r2, r3, out;
	struct world *w = *state;
	struct uuid image;

	assert_int_equal(world_import(w, "vm", blocks, 4), 0);
	assert_int_equal(world_image(w, "vm", &image, &r0), 0);
	read_only(w, &image, NULL, &out);
	assert_true(fp_equal(&out, &r0));
	first = reader(w, &cache_b);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &out), 0);
	assert_int_equal(epoch, 1); /* readers take none of an image's epochs */
	blocks[0] = 10;
	assert_int_equal(world_push(w, &image, epoch, 1, &r0, blocks, 4, false, &r1), 0);
	/* Opened again, which its cache hears of or not: what it has on record stays as well. */
	read_only(w, &image, &r0, &out);
	assert_true(fp_equal(&out, &r1));
	blocks[0] = 11;
	assert_int_equal(world_push(w, &image, epoch, 2, &r1, blocks, 4, false, &r2), 0);
	read_only(w, &image, &r0, &out);
	blocks[0] = 12;
	assert_int_equal(world_push(w, &image, epoch, 3, &r2, blocks, 4, false, &r3), 0);
	assert_int_equal(world_release(w, &image, &cache_a, epoch), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 3); /* r0, r2; r3 is the head */
	read_only(w, &image, &r2, &out);
	assert_int_equal(world_remove(w, "vm"), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 2); /* r2 and r3 */
	assert_int_equal(world_check(w, true), 0);
	/* A detach of an earlier opening that comes late ends nothing. */
	assert_int_equal(world_release(w, &image, &cache_b, first), 0);
	assert_int_equal(world_release(w, &image, &cache_a, reader(w, &cache_b)), EBUSY);
	assert_int_equal(reader(w, &cache_a), 0);
	assert_int_equal(world_release(w, &image, &cache_b, reader(w, &cache_b)), 0);
	assert_int_equal(reader(w, &cache_b), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 0);
}

static int run(const char *name)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, world_setup, world_teardown)
		T(test_leases),
		T(test_lease_outlives_image),
		T(test_readers),
	};

	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
	return pg_run_both(run, world_use_pg);
}
