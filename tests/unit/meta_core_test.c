// SPDX-License-Identifier: GPL-2.0-or-later
/* The meta server's core: each verb, each refusal, every mutation delivered twice. (Leases:
 * meta_lease_test.c. Where blocks are, and when they go: meta_gc_test.c.) */
#include "meta_world.h"
#include "pg_cluster.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static const struct uuid cache_a = { { 0xa } }, cache_b = { { 0xb } };

static int setup_reopen(void **state)
{
	int r = world_setup(state);

	((struct world *)*state)->reopen = true;
	return r;
}

static void test_import_clone_remove(void **state)
{
	struct world *w = *state;
	uint64_t blocks[600];
	struct uuid u1, u2;
	struct fp r1, r2;

	world_ramp(blocks, 600, 1);
	blocks[5] = 0;
	blocks[6] = blocks[7];
	assert_int_equal(world_import(w, "web", blocks, 600), 0);
	assert_int_equal(world_import(w, "web", blocks, 600), EEXIST);
	assert_int_equal(world_import(w, "web-2", blocks, 600), 0);
	assert_int_equal(world_image(w, "web", &u1, &r1), 0);
	assert_int_equal(world_clone(w, "web", 0, "clone"), 0);
	assert_int_equal(world_clone(w, "web", 0, "clone"), EEXIST);
	assert_int_equal(world_clone(w, "none", 0, "clone2"), ENOENT);
	assert_int_equal(world_clone(w, "web", 7, "clone2"), ENOENT);
	assert_int_equal(world_clone(w, "web", 0, "a/b"), EINVAL);
	assert_int_equal(world_clone(w, "web", 0, ""), EINVAL);
	assert_int_equal(world_image(w, "clone", &u2, &r2), 0);
	assert_true(fp_equal(&r1, &r2));
	assert_false(uuid_equal(&u1, &u2));
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM blocks"), 598);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 4);
	assert_int_equal(world_sql(w, "SELECT max(count) FROM nodes WHERE level = 1"), 3);
	assert_int_equal(world_sql(w, "SELECT max(count) FROM blocks"), 2);
	assert_int_equal(world_sql(w, "SELECT sum(blocks) FROM totals"), 598);
	assert_int_equal(world_remove(w, "web"), 0);
	assert_int_equal(world_remove(w, "web"), ENOENT);
	assert_int_equal(world_import(w, "web", blocks, 600), 0);
	assert_int_equal(world_remove(w, "web"), 0);
	assert_int_equal(world_remove(w, "web-2"), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 4);
	assert_int_equal(world_remove(w, "clone"), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM node_data"), 0);
	assert_int_equal(world_sql(w, "SELECT sum(count) FROM blocks"), 0);
	assert_int_equal(world_sql(w, "SELECT sum(nodes) FROM totals"), 0);
	assert_int_equal(world_sql(w, "SELECT sum(blocks) FROM totals"), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM push_receipts"), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM pushes"), 0);
}

static void test_parts_refused(void **state)
{
	struct world *w = *state;
	uint64_t blocks[300], push, half[2] = { 1, 2 };
	const Vmdedup__Reply *reply;
	struct tree t;

	world_ramp(blocks, 300, 1);
	tree_build(&t, blocks, 300, 300 * WORLD_BLOCK);
	assert_int_equal(t.nr, 3);
	assert_int_equal(world_begin_import(w, "x", 300 * WORLD_BLOCK, &push), 0);
	/* The root before its leaves. */
	reply = world_part_reply(w, push, &t, 2, 3, NULL, 0);
	assert_int_equal(reply->error, EAGAIN);
	assert_int_equal(reply->push_part->missing_nodes.len, 2 * FP_SIZE);
	/* A leaf without receipts: what was brought counts for the next try. */
	reply = world_part_reply(w, push, &t, 0, 1, half, 2);
	assert_int_equal(reply->error, EAGAIN);
	assert_int_equal(reply->push_part->redo_blocks.len, 254 * FP_SIZE);
	assert_int_equal(world_commit(w, push, &t.root), EAGAIN);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM blocks"), 0);
	assert_int_equal(world_part(w, push, &t, 0, 1, blocks + 2, 254), 0);
	/* Receipts alone, for a part to come. */
	assert_int_equal(world_part(w, push, &t, 0, 0, blocks + 256, 44), 0);
	assert_int_equal(world_part(w, push, &t, 1, 3, NULL, 0), 0);
	/* The leaf is no root of 300 blocks. */
	assert_int_equal(world_commit(w, push, &t.hashes[0]), EINVAL);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	assert_int_equal(world_commit(w, push, &t.root), ESTALE);
	assert_int_equal(world_part(w, push, &t, 0, 1, NULL, 0), ESTALE);
	tree_free(&t);
}

static void test_hostile_nodes(void **state)
{
	struct world *w = *state;
	uint64_t blocks[300], push, push2;
	struct recipe_node node = { .block_shift = WORLD_SHIFT, .count = 2 };
	struct tree t, odd = { .nr = 1 };
	uint8_t bytes[RECIPE_NODE_MAX];
	struct fp hash, zero = { 0 };
	size_t len;

	world_ramp(blocks, 300, 1);
	tree_build(&t, blocks, 300, 300 * WORLD_BLOCK);
	assert_int_equal(world_begin_import(w, "x", 300 * WORLD_BLOCK, &push), 0);
	odd.hashes = &hash;
	odd.bytes = &bytes;
	odd.lens = &len;
	/* Bytes of another hash, no bytes, garbage. */
	len = t.lens[0];
	memcpy(bytes, t.bytes[0], len);
	hash = t.hashes[1];
	assert_int_equal(world_part(w, push, &odd, 0, 1, blocks, 300), EBADMSG);
	len = 0;
	assert_int_equal(world_part(w, push, &odd, 0, 1, NULL, 0), EBADMSG);
	len = 40;
	assert_int_equal(world_part(w, push, &odd, 0, 1, NULL, 0), EBADMSG);
	/* Of another block size, of another algorithm, deeper than the image. */
	node.entries[0] = node.entries[1] = world_fp(7);
	node.block_shift = 13;
	len = recipe_node_encode(&node, bytes);
	recipe_node_hash(bytes, len, &hash);
	assert_int_equal(world_part(w, push, &odd, 0, 1, blocks, 300), EINVAL);
	node.block_shift = WORLD_SHIFT;
	node.algorithm = FP_MD5;
	memset(node.entries[0].b + 16, 0, 16);
	node.entries[1] = node.entries[0];
	len = recipe_node_encode(&node, bytes);
	recipe_node_hash(bytes, len, &hash);
	assert_int_equal(world_part(w, push, &odd, 0, 1, blocks, 300), EINVAL);
	node.algorithm = FP_SHA256;
	node.level = 2;
	len = recipe_node_encode(&node, bytes);
	recipe_node_hash(bytes, len, &hash);
	assert_int_equal(world_part(w, push, &odd, 0, 1, blocks, 300), EINVAL);
	/* A short leaf that is not the last one; a leaf named as if it were an inner node. */
	assert_int_equal(world_part(w, push, &t, 0, 3, blocks, 300), 0);
	node.level = 1;
	node.entries[0] = t.hashes[1];
	node.entries[1] = t.hashes[0];
	len = recipe_node_encode(&node, bytes);
	recipe_node_hash(bytes, len, &hash);
	assert_int_equal(world_part(w, push, &odd, 0, 1, NULL, 0), EINVAL);
	node.entries[0] = t.root;
	len = recipe_node_encode(&node, bytes);
	recipe_node_hash(bytes, len, &hash);
	assert_int_equal(world_part(w, push, &odd, 0, 1, NULL, 0), EINVAL);
	/* The right tree for another size. */
	assert_int_equal(world_begin_import(w, "y", 299 * WORLD_BLOCK, &push2), 0);
	assert_int_equal(world_commit(w, push2, &t.root), EINVAL);
	assert_int_equal(world_begin_import(w, "z", 300ULL * 256 * WORLD_BLOCK, &push2), 0);
	assert_int_equal(world_commit(w, push2, &t.root), EINVAL);
	assert_int_equal(world_commit(w, push2, &zero), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	assert_int_equal(world_begin_import(w, "v", 0, &push), EINVAL);
	assert_int_equal(world_begin_import(w, "v", 100, &push), EINVAL);
	assert_int_equal(world_begin_import(w, "v", IMAGE_SIZE_MAX + 512, &push), EINVAL);
	tree_free(&t);
}

static void test_cuts(void **state)
{
	struct world *w = *state;
	uint64_t b0[4] = { 1, 2, 3, 4 }, b1[4] = { 5, 2, 3, 4 }, b2[4] = { 6, 2, 3, 4 };
	uint64_t epoch, push, late;
	struct fp r0, r1, r2, out;
	struct uuid image;
	struct tree t;
	bool done;

	assert_int_equal(world_import(w, "vm", b0, 4), 0);
	assert_int_equal(world_image(w, "vm", &image, &r0), 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &out), 0);
	/* The first push of an epoch: any cut, but the head's root. */
	out.b[0] ^= 1;
	assert_int_equal(world_push(w, &image, epoch, 41, &out, b1, 4, false, &r1), ESTALE);
	assert_int_equal(world_push(w, &image, epoch, 0, &r0, b1, 4, false, &r1), EINVAL);
	assert_int_equal(world_push(w, &image, epoch + 1, 41, &r0, b1, 4, false, &r1), ESTALE);
	/* A second begin of the same cut goes on with the first one's push. */
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r0, false, &late, &done), 0);
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r0, false, &push, &done), 0);
	assert_int_equal(push, late);
	/* Of another cache, which had an epoch of that number in another history. */
	w->cutter = &cache_b;
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r0, false, &push, &done), ESTALE);
	w->cutter = &cache_a;
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r0, false, &push, &done), 0);
	assert_int_equal(push, late);
	tree_build(&t, b1, 4, 4 * WORLD_BLOCK);
	r1 = t.root;
	assert_int_equal(world_part(w, push, &t, 0, 1, b1, 4), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	tree_free(&t);
	/* Again: the first result. On another parent: stale. */
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r0, false, &push, &done), 0);
	assert_true(done);
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r1, false, &push, &done), ESTALE);
	w->cutter = &cache_b;
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r0, false, &push, &done), ESTALE);
	w->cutter = NULL;
	/* Only the next cut follows. */
	assert_int_equal(world_push(w, &image, epoch, 43, &r1, b2, 4, false, &r2), ESTALE);
	assert_int_equal(world_push(w, &image, epoch, 40, &r1, b2, 4, false, &r2), ESTALE);
	assert_int_equal(world_push(w, &image, epoch, 42, &r0, b2, 4, false, &r2), ESTALE);
	assert_int_equal(world_push(w, &image, epoch, 42, &r1, b2, 4, false, &r2), 0);
	/* The content of cut 41 again, as cut 43: the same root as before, and cut 41 is behind. */
	assert_int_equal(world_push(w, &image, epoch, 43, &r2, b1, 4, false, &out), 0);
	assert_true(fp_equal(&out, &r1));
	assert_int_equal(world_begin_cut(w, &image, epoch, 41, &r0, false, &push, &done), ESTALE);
	assert_int_equal(world_begin_cut(w, &image, epoch, 42, &r1, false, &push, &done), ESTALE);
	/* A new grant has no cut yet. */
	assert_int_equal(world_release(w, &image, &cache_a, epoch), 0);
	assert_int_equal(world_push(w, &image, epoch, 44, &out, b2, 4, false, &r2), ESTALE);
	assert_int_equal(world_lease(w, &image, &cache_b, &epoch, &out), 0);
	assert_int_equal(world_push(w, &image, epoch, 1, &out, b2, 4, false, &r2), 0);
}

static void expect_done(struct world *w, const struct uuid *image, uint64_t epoch, uint64_t cut,
			const struct fp *parent, const struct fp *root)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PushBegin body = VMDEDUP__PUSH_BEGIN__INIT;
	const Vmdedup__Reply *reply;

	body.image = (ProtobufCBinaryData){ 16, (uint8_t *)image->b };
	body.lease_epoch = epoch;
	body.cut = cut;
	body.parent_root = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)parent->b };
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_BEGIN;
	req.push_begin = &body;
	reply = world_mutate(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	assert_true(reply->push_begin->done);
	assert_memory_equal(reply->push_begin->root.data, root->b, FP_SIZE);
}

/* A cut is committed, its agent dies before the cache knows, and the image grows. The next agent is told
 * the root of the cut, as an OPEN is: the cache's record and the lease must never name two. */
static void test_grown_before_kernel_commit(void **state)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageResize grow = VMDEDUP__IMAGE_RESIZE__INIT;
	uint64_t blocks[200], epoch, same;
	struct fp root, r1, r2, lease, head;
	struct world *w = *state;
	struct uuid image;

	world_ramp(blocks, ARRAY_SIZE(blocks), 1);
	assert_int_equal(world_import(w, "vm", blocks, 4), 0);
	assert_int_equal(world_image(w, "vm", &image, &root), 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &root), 0);
	blocks[0] = 1000;
	assert_int_equal(world_push(w, &image, epoch, 7, &root, blocks, 4, false, &r1), 0);
	grow.name = "vm";
	grow.size = ARRAY_SIZE(blocks) * WORLD_BLOCK;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_RESIZE;
	req.image_resize = &grow;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_image(w, "vm", &image, &head), 0);
	assert_false(fp_equal(&head, &r1));
	expect_done(w, &image, epoch, 7, &root, &r1);
	assert_int_equal(world_lease(w, &image, &cache_a, &same, &lease), 0);
	assert_int_equal(same, epoch);
	assert_true(fp_equal(&lease, &r1));
	/* And the next cut follows it. */
	assert_int_equal(world_push(w, &image, epoch, 8, &r1, blocks, ARRAY_SIZE(blocks), false, &r2), 0);
	expect_done(w, &image, epoch, 8, &r1, &r2);
	assert_int_equal(world_check(w, true), 0);
}

/* A dead session leaves a push open; its cut is superseded by the image's next one. */
static void test_supersede_and_abort(void **state)
{
	struct world *w = *state;
	uint64_t b0[2] = { 1, 2 }, b1[2] = { 3, 4 }, epoch, push, push2;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PushAbort abt = VMDEDUP__PUSH_ABORT__INIT;
	struct fp root, out;
	struct uuid image;
	struct tree t;
	bool done;

	tree_build(&t, b1, 2, 2 * WORLD_BLOCK);
	assert_int_equal(world_import(w, "vm", b0, 2), 0);
	assert_int_equal(world_image(w, "vm", &image, &root), 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &out), 0);
	assert_int_equal(world_begin_cut(w, &image, epoch, 1, &root, false, &push, &done), 0);
	assert_int_equal(world_part(w, push, &t, 0, 1, b1, 2), 0);
	assert_int_equal(world_begin_cut(w, &image, epoch, 2, &root, false, &push2, &done), 0);
	assert_int_equal(world_commit(w, push, &t.root), ESTALE);
	abt.push = push2;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_ABORT;
	req.push_abort = &abt;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	/* The node that the superseded push brought is dying: naming it needs it whole. */
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 1);
	assert_int_equal(world_begin_cut(w, &image, epoch, 3, &root, false, &push, &done), 0);
	assert_int_equal(world_commit(w, push, &t.root), EAGAIN);
	assert_int_equal(world_part(w, push, &t, 0, 1, b1, 2), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	tree_free(&t);
}

static void test_sessions(void **state)
{
	struct world *w = *state;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Mutation mut = VMDEDUP__MUTATION__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	Vmdedup__SessionOpen open = VMDEDUP__SESSION_OPEN__INIT;
	uint8_t nonce[16] = { 1, 2, 3 };
	uint64_t id;

	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	rm.name = "x";
	assert_int_equal(world_call(w, &req, NULL, 0)->error, EINVAL);
	req.mutation = &mut;
	mut.session = 12345;
	mut.sequence = 1;
	assert_int_equal(world_call(w, &req, NULL, 0)->error, EKEYEXPIRED);
	assert_true(world_call(w, &req, NULL, 0)->not_done);
	mut.session = w->session;
	mut.sequence = w->sequence + 2;
	assert_int_equal(world_call(w, &req, NULL, 0)->error, EINVAL);
	mut.sequence = w->sequence + 1;
	assert_false(world_call(w, &req, NULL, 0)->not_done);
	assert_int_equal(world_call(w, &req, NULL, 0)->error, ENOENT);
	/* Another request under the same sequence is no retry. */
	rm.name = "y";
	assert_int_equal(world_call(w, &req, NULL, 0)->error, EINVAL);
	mut.sequence++;
	assert_int_equal(world_call(w, &req, NULL, 0)->error, ENOENT);
	mut.sequence--;
	assert_int_equal(world_call(w, &req, NULL, 0)->error, ESTALE);
	/* Opening is idempotent by nonce. */
	req.mutation = NULL;
	req.body_case = VMDEDUP__REQUEST__BODY_SESSION_OPEN;
	req.session_open = &open;
	open.nonce = (ProtobufCBinaryData){ 16, nonce };
	id = world_call(w, &req, NULL, 0)->session_open->session;
	assert_int_equal(world_call(w, &req, NULL, 0)->session_open->session, id);
	open.nonce.len = 15;
	assert_int_equal(world_call(w, &req, NULL, 0)->error, EINVAL);
	/* A jump of the wall clock ends nothing; seven days of service do. */
	w->wall_s += 100ULL * 365 * 86400;
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM sessions"), 2);
	w->mono_ns += (META_SESSION_IDLE_S + 100) * 1000000000ULL;
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM sessions"), 0);
}

/* The head that goes becomes a version, unless one names it already. */
static void test_rollback_keeps_the_head(void **state)
{
	struct world *w = *state;
	uint64_t b0[2] = { 1, 2 }, b1[2] = { 3, 4 }, epoch;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Rollback back = VMDEDUP__ROLLBACK__INIT;
	Vmdedup__VersionList list = VMDEDUP__VERSION_LIST__INIT;
	Vmdedup__Snapshot snap = VMDEDUP__SNAPSHOT__INIT;
	const Vmdedup__Reply *reply;
	struct fp r0, r1, out;
	struct uuid image;
	int i;

	assert_int_equal(world_import(w, "vm", b0, 2), 0);
	assert_int_equal(world_image(w, "vm", &image, &r0), 0);
	snap.name = "vm";
	snap.label = "first";
	req.body_case = VMDEDUP__REQUEST__BODY_SNAPSHOT;
	req.snapshot = &snap;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &out), 0);
	/* As in the background: no version of it. */
	assert_int_equal(world_push(w, &image, epoch, 1, &r0, b1, 2, false, &r1), 0);
	assert_int_equal(world_release(w, &image, &cache_a, epoch), 0);
	back.name = "vm";
	req.body_case = VMDEDUP__REQUEST__BODY_ROLLBACK;
	req.rollback = &back;
	for (i = 0; i < 4; i++) {
		back.version = 1 + i % 2;
		assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
		assert_int_equal(world_image(w, "vm", &image, &out), 0);
		assert_true(fp_equal(&out, i % 2 ? &r1 : &r0));
	}
	list.name = "vm";
	req.body_case = VMDEDUP__REQUEST__BODY_VERSION_LIST;
	req.version_list = &list;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->version_list->n_versions, 2);
	assert_memory_equal(reply->version_list->versions[1]->root.data, r1.b, FP_SIZE);
	assert_string_equal(reply->version_list->versions[1]->label, "before the rollback to 1");
	assert_int_equal(world_remove(w, "vm"), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 0);
}

static void test_versions(void **state)
{
	struct world *w = *state;
	uint64_t b0[2] = { 1, 2 }, b1[2] = { 3, 4 }, epoch;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Snapshot snap = VMDEDUP__SNAPSHOT__INIT;
	Vmdedup__Rollback back = VMDEDUP__ROLLBACK__INIT;
	Vmdedup__VersionList list = VMDEDUP__VERSION_LIST__INIT;
	Vmdedup__ImageRename ren = VMDEDUP__IMAGE_RENAME__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	const Vmdedup__Reply *reply;
	struct fp r0, r1, out;
	struct uuid image;

	assert_int_equal(world_import(w, "vm", b0, 2), 0);
	assert_int_equal(world_image(w, "vm", &image, &r0), 0);
	snap.name = "vm";
	snap.label = "first";
	req.body_case = VMDEDUP__REQUEST__BODY_SNAPSHOT;
	req.snapshot = &snap;
	reply = world_mutate(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->image->version, 1);
	assert_string_equal(reply->image->label, "first");
	snap.label = "a\nb";
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, EINVAL);
	snap.label = "\xff";
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, EINVAL);
	assert_int_equal(world_lease(w, &image, &cache_a, &epoch, &out), 0);
	assert_int_equal(world_push(w, &image, epoch, 1, &r0, b1, 2, true, &r1), 0);
	back.name = "vm";
	back.version = 1;
	req.body_case = VMDEDUP__REQUEST__BODY_ROLLBACK;
	req.rollback = &back;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, EBUSY);
	assert_int_equal(world_release(w, &image, &cache_a, epoch), 0);
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_image(w, "vm", &image, &out), 0);
	assert_true(fp_equal(&out, &r0));
	back.version = 9;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, ENOENT);
	list.name = "vm";
	req.body_case = VMDEDUP__REQUEST__BODY_VERSION_LIST;
	req.version_list = &list;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->version_list->n_versions, 2);
	assert_memory_equal(reply->version_list->versions[1]->root.data, r1.b, FP_SIZE);
	assert_int_equal(world_clone(w, "vm", 2, "from2"), 0);
	assert_int_equal(world_image(w, "from2", &image, &out), 0);
	assert_true(fp_equal(&out, &r1));
	ren.name = "vm";
	ren.new_name = "from2";
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_RENAME;
	req.image_rename = &ren;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, EEXIST);
	ren.new_name = "new";
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_remove(w, "vm"), ENOENT);
	rm.name = "new";
	rm.version = 2;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, 0);
	assert_int_equal(world_mutate(w, &req, NULL, 0)->error, ENOENT);
	assert_int_equal(world_remove(w, "from2"), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 1);
	assert_int_equal(world_remove(w, "new"), 0);
	world_settle(w);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM nodes"), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM versions"), 0);
}

static void test_list_and_nodes(void **state)
{
	struct world *w = *state;
	uint64_t b[2] = { 1, 2 };
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageList list = VMDEDUP__IMAGE_LIST__INIT;
	Vmdedup__NodeGet get = VMDEDUP__NODE_GET__INIT;
	const Vmdedup__Reply *reply;
	char name[16];
	struct uuid u;
	struct fp hashes[2];
	int i;

	assert_int_equal(world_import(w, "base", b, 2), 0);
	for (i = 0; i < 25; i++) {
		snprintf(name, sizeof(name), "vm-%02d", i);
		assert_int_equal(world_clone(w, "base", 0, name), 0);
	}
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_LIST;
	req.image_list = &list;
	list.prefix = "vm-";
	list.limit = 10;
	for (i = 0; i < 25; i += 10) {
		reply = world_call(w, &req, NULL, 0);
		assert_int_equal(reply->image_list->n_images, i == 20 ? 5 : 10);
		assert_int_equal(reply->image_list->more, i != 20);
		snprintf(name, sizeof(name), "vm-%02d", i);
		assert_string_equal(reply->image_list->images[0]->name, name);
		list.after = reply->image_list->images[reply->image_list->n_images - 1]->name;
	}
	assert_int_equal(world_image(w, "base", &u, &hashes[1]), 0);
	hashes[0] = world_fp(99);
	req.body_case = VMDEDUP__REQUEST__BODY_NODE_GET;
	req.node_get = &get;
	get.hashes = (ProtobufCBinaryData){ sizeof(hashes), (uint8_t *)hashes };
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	assert_int_equal(w->nr_frames, 1);
	assert_int_equal(reply->node_get->missing.len, FP_SIZE);
	assert_memory_equal(reply->node_get->missing.data, hashes[0].b, FP_SIZE);
	get.hashes.len = 31;
	assert_int_equal(world_call(w, &req, NULL, 0)->error, EINVAL);
}

/* Requests of one batch share a transaction; the one that fails disturbs nobody. */
static void test_batch(void **state)
{
	struct world *w = *state;
	uint64_t b[2] = { 1, 2 };
	struct meta_call calls[3] = { 0 };
	Vmdedup__Request reqs[3];
	Vmdedup__ImageClone clones[3];
	Vmdedup__Mutation muts[3];
	const char *names[3] = { "one", "base", "two" };
	struct uuid u;
	struct fp root;
	int i;

	assert_int_equal(world_import(w, "base", b, 2), 0);
	for (i = 0; i < 3; i++) {
		vmdedup__request__init(&reqs[i]);
		vmdedup__image_clone__init(&clones[i]);
		vmdedup__mutation__init(&muts[i]);
		muts[i].session = w->session;
		muts[i].sequence = ++w->sequence;
		clones[i].source = "base";
		clones[i].name = (char *)names[i];
		reqs[i].mutation = &muts[i];
		reqs[i].body_case = VMDEDUP__REQUEST__BODY_IMAGE_CLONE;
		reqs[i].image_clone = &clones[i];
		calls[i] = (struct meta_call){ .m = &w->m, .arena = &w->arena, .req = &reqs[i] };
	}
	meta_batch(&w->m, calls, 3);
	assert_int_equal(calls[0].reply.error, 0);
	assert_int_equal(calls[1].reply.error, EEXIST);
	assert_int_equal(calls[2].reply.error, 0);
	assert_int_equal(world_image(w, "two", &u, &root), 0);
	assert_int_equal(world_sql(w, "SELECT count FROM nodes"), 4);
}

static void spoil(struct world *w, const char *sql)
{
	struct error err = { 0 };

	if (store_begin(w->m.store, &err) || store_exec(w->m.store, &err, sql) < 1 ||
	    store_commit(w->m.store, &err))
		fail_msg("%s: %s", sql, err.text);
}

/* The check is silent on what is right, also while a push is open, and finds each damage. */
static void test_check(void **state)
{
	static const char *const damage[][2] = {
		{ "UPDATE blocks SET count = count + 1 WHERE fp = (SELECT fp FROM blocks ORDER BY fp LIMIT 1)",
		  "UPDATE blocks SET count = count - 1 WHERE fp = (SELECT fp FROM blocks ORDER BY fp LIMIT 1)" },
		{ "UPDATE nodes SET count = count + 1 WHERE level = 1",
		  "UPDATE nodes SET count = count - 1 WHERE level = 1" },
		{ "UPDATE totals SET nodes = nodes + 1", "UPDATE totals SET nodes = nodes - 1" },
		{ "UPDATE blocks SET condemned = 1 WHERE fp = (SELECT fp FROM blocks ORDER BY fp DESC LIMIT 1)",
		  "UPDATE blocks SET condemned = 0" },
		{ "UPDATE node_data SET data = hash WHERE hash = (SELECT hash FROM nodes WHERE "
		  "level = 0 LIMIT 1)", NULL },
	};
	struct world *w = *state;
	uint64_t blocks[600], push;
	struct tree t;
	size_t i;

	world_ramp(blocks, 600, 1);
	assert_int_equal(world_check(w, true), 0);
	assert_int_equal(world_import(w, "a", blocks, 600), 0);
	tree_build(&t, blocks + 300, 300, 300 * WORLD_BLOCK);
	assert_int_equal(world_begin_import(w, "b", 300 * WORLD_BLOCK, &push), 0);
	assert_int_equal(world_part(w, push, &t, 0, t.nr, NULL, 0), 0);
	assert_int_equal(world_check(w, true), 0);
	for (i = 0; i < ARRAY_SIZE(damage); i++) {
		spoil(w, damage[i][0]);
		assert_true(world_check(w, false) > 0);
		if (!damage[i][1])
			break;
		spoil(w, damage[i][1]);
		assert_int_equal(world_check(w, true), 0);
	}
	tree_free(&t);
}

/* What was there before the mark stays, whatever came after it and where. */
static void test_arena_mark(void **state)
{
	struct arena a = { 0 };
	struct arena_mark none = arena_mark(&a), mark;
	char *first, *large, *after;

	assert_non_null(arena_alloc(&a, 100));
	arena_release(&a, none);
	assert_null(a.chunks);
	first = arena_strdup(&a, "first");
	large = arena_alloc(&a, 100000);
	memset(large, 'x', 100000);
	mark = arena_mark(&a);
	after = arena_strdup(&a, "after");
	memset(arena_alloc(&a, 200000), 'y', 200000);
	for (int i = 0; i < 100; i++)
		memset(arena_alloc(&a, 5000), 'z', 5000);
	arena_release(&a, mark);
	assert_string_equal(first, "first");
	assert_int_equal(large[0], 'x');
	assert_int_equal(large[99999], 'x');
	assert_ptr_equal(arena_strdup(&a, "again"), after);
	arena_free(&a);
}

static void create_schema(struct world *w, const char *uri)
{
	char sql[80];

	snprintf(sql, sizeof(sql), "CREATE SCHEMA %s", strstr(uri, "%3D") + 3);
	pg_sql(w->path, sql);
}

static void test_store_errors(void **state)
{
	struct world *w = *state;
	struct meta_init init = { .name = "x", .block_shift = 12, .replicas = 1, .min_copies = 1 };
	struct error err = { 0 };
	struct store *s;
	bool many = store_is_pg(w->path);
	char path[300];

	/* PostgreSQL takes as many processes as come; a file takes one. */
	assert_int_equal(store_open(&s, w->path, &err), many ? 0 : -EBUSY);
	store_close(s);
	assert_int_equal(meta_store_init(w->path, &init, &err), many ? -EEXIST : -EBUSY);
	store_close(w->m.store);
	assert_int_equal(meta_store_init(w->path, &init, &err), -EEXIST);
	assert_int_equal(store_open(&w->m.store, w->path, &err), 0);
	assert_int_equal(store_begin(w->m.store, &err), 0);
	assert_int_equal(store_exec(w->m.store, &err, "UPDATE cluster SET schema = 99"), 1);
	assert_int_equal(store_commit(w->m.store, &err), 0);
	store_close(w->m.store);
	assert_int_equal(store_open(&s, w->path, &err), -EPROTONOSUPPORT);
	snprintf(path, sizeof(path), many ? "%snone" : "%s/none", many ? w->path : w->dir);
	if (many)
		create_schema(w, path);
	assert_int_equal(store_open(&s, path, &err), -ENOENT);
	init.block_shift = 11;
	assert_int_equal(meta_store_init(path, &init, &err), -EINVAL);
	init.block_shift = 12;
	assert_int_equal(meta_store_init(path, &init, &err), 0);
	assert_int_equal(store_open(&w->m.store, path, &err), 0);
}

static int run(const char *name)
{
	const struct CMUnitTest tests[] = {
#define T(f) cmocka_unit_test_setup_teardown(f, world_setup, world_teardown)
		T(test_import_clone_remove),
		cmocka_unit_test_setup_teardown(test_import_clone_remove, setup_reopen, world_teardown),
		T(test_parts_refused),
		T(test_hostile_nodes),
		T(test_cuts),
		cmocka_unit_test_setup_teardown(test_cuts, setup_reopen, world_teardown),
		T(test_grown_before_kernel_commit),
		T(test_supersede_and_abort),
		T(test_sessions),
		T(test_versions),
		T(test_rollback_keeps_the_head),
		T(test_list_and_nodes),
		T(test_batch),
		T(test_check),
		T(test_arena_mark),
		T(test_store_errors),
	};

	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
	return pg_run_both(run, world_use_pg);
}
