// SPDX-License-Identifier: GPL-2.0-or-later
/* The client library: what it reads, and how it asks for changes, of servers that misbehave. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zstd.h>

#include "cluster_fakes.h"

/* ---- gets ---- */

static void test_get(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	uint8_t a[FAKES_BLOCK], b[FAKES_BLOCK], z[FAKES_BLOCK];
	struct fakes_got res[3] = { 0 };
	struct fp fps[3];
	size_t n;

	fakes_block(a, 1, false);
	fakes_block(b, 2, true);
	fps[0] = fakes_fp(c, a);
	fps[1] = fakes_fp(c, b);
	fps[2] = fps[0];
	fps[2].b[5] ^= 1; /* nobody has it */
	fakes_put(&f->data[0], &fps[0], a); /* each on one of two replicas only */
	n = ZSTD_compress(z, sizeof(z), b, FAKES_BLOCK, 1);
	fakes_store(&f->data[1], fps[1].b, VMDEDUP__CODEC__ZSTD, z, n);
	assert_int_equal(cluster_get(c, fps, 3, FAKES_TIMEOUT_MS, fakes_got, res, NULL), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(res[i].calls, 1);
	assert_int_equal(res[0].r, 0);
	assert_memory_equal(res[0].data, a, FAKES_BLOCK);
	assert_int_equal(res[1].r, 0);
	assert_int_equal(res[1].len, FAKES_BLOCK);
	assert_memory_equal(res[1].data, b, FAKES_BLOCK);
	assert_int_equal(res[2].r, -ENOENT);
	cluster_close(c);
	f->clean = true;
}

static void test_get_corrupt(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	uint8_t a[FAKES_BLOCK];
	struct fakes_got res = { 0 };
	struct fp fp;

	fakes_block(a, 1, false);
	fp = fakes_fp(c, a);
	fakes_put(&f->data[0], &fp, a);
	fakes_put(&f->data[1], &fp, a);
	f->data[0].corrupt = 1;
	assert_int_equal(cluster_get(c, &fp, 1, FAKES_TIMEOUT_MS, fakes_got, &res, NULL), 0);
	assert_int_equal(res.r, 0); /* from the good one, whichever was asked first */
	assert_memory_equal(res.data, a, FAKES_BLOCK);
	f->data[1].corrupt = 1;
	memset(f->data[0].coded[0], 0, FAKES_BLOCK);
	assert_int_equal(cluster_get(c, &fp, 1, FAKES_TIMEOUT_MS, fakes_got, &res, NULL), 0);
	assert_int_equal(res.r, -EIO);
	cluster_close(c);
	f->clean = true;
}

static void test_get_hostile_zstd(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	static uint8_t big[1 << 20], z[4096];
	uint8_t a[FAKES_BLOCK];
	struct fakes_got res = { 0 };
	struct fp fp;
	size_t n = ZSTD_compress(z, sizeof(z), big, sizeof(big), 1);

	fakes_block(a, 1, false);
	fp = fakes_fp(c, a);
	fakes_store(&f->data[0], fp.b, VMDEDUP__CODEC__ZSTD, z, n); /* a megabyte out of a few bytes */
	fakes_store(&f->data[1], fp.b, VMDEDUP__CODEC__ZSTD, "rubbish", 7);
	assert_int_equal(cluster_get(c, &fp, 1, FAKES_TIMEOUT_MS, fakes_got, &res, NULL), 0);
	assert_int_equal(res.r, -EIO);
	cluster_close(c);
	f->clean = true;
}

static void test_get_old_map(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	uint8_t a[FAKES_BLOCK];
	struct fakes_got res = { 0 };
	struct fp fp;

	fakes_block(a, 1, false);
	fp = fakes_fp(c, a);
	fakes_put(&f->data[0], &fp, a);
	f->map_version = 2;
	f->data[0].map_version = f->data[1].map_version = 2;
	assert_int_equal(cluster_get(c, &fp, 1, FAKES_TIMEOUT_MS, fakes_got, &res, NULL), 0);
	assert_int_equal(res.r, 0);
	cluster_close(c);
	f->clean = true;
}

static void test_get_timeout(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	uint8_t a[FAKES_BLOCK];
	struct fakes_got res = { 0 };
	struct fp fp;

	fakes_block(a, 1, false);
	fp = fakes_fp(c, a);
	for (int i = 0; i < 2; i++) {
		net_server_stop(f->data[i].net);
		pthread_join(f->data[i].thread, NULL);
	}
	assert_int_equal(cluster_get(c, &fp, 1, 300, fakes_got, &res, NULL), 0);
	assert_int_equal(res.r, -ETIMEDOUT);
	/* They come back, and the same cluster goes on. */
	fakes_put(&f->data[0], &fp, a);
	for (int i = 0; i < 2; i++)
		pthread_create(&f->data[i].thread, NULL, fakes_serve, f->data[i].net);
	cluster_close(c);
	f->clean = true;
}

/* ---- mutations ---- */

static void test_sequences(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	struct net_reply reply;
	struct error err;

	rm.name = (char *)"x";
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	for (int i = 1; i <= 3; i++) {
		assert_int_equal(cluster_mutate(c, &req, NULL, 0, FAKES_TIMEOUT_MS, &reply, &err), 0);
		assert_int_equal(f->done_sequence, i);
		assert_int_equal(f->done_times, i);
		net_reply_free(&reply);
	}
	cluster_close(c);
	f->clean = true;
}

static void test_lost_answer(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	struct net_reply reply;
	struct error err;

	f->lose_answers = 1;
	rm.name = (char *)"x";
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, FAKES_TIMEOUT_MS, &reply, &err), 0);
	net_reply_free(&reply);
	assert_int_equal(f->done_sequence, 1);
	assert_int_equal(f->done_times, 1);
	assert_int_equal(f->lose_answers, 0);

	/* Nobody ever answers: it may have been done, so its sequence is not used again. */
	f->lose_answers = 1;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, 300, &reply, &err), -ETIMEDOUT);
	net_reply_free(&reply);
	cluster_close(c);
	f->clean = true;
}

static void test_forgotten_session(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = fakes_open(f);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	struct net_reply reply;
	struct error err;

	rm.name = (char *)"x";
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, FAKES_TIMEOUT_MS, &reply, &err), 0);
	net_reply_free(&reply);
	f->forget_sessions = 1;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, FAKES_TIMEOUT_MS, &reply, &err), 0);
	net_reply_free(&reply);
	assert_int_equal(f->done_times, 2);

	/* One that is forgotten at once is not opened again and again. */
	f->forget_sessions = 2;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, FAKES_TIMEOUT_MS, &reply, &err), -EKEYEXPIRED);
	net_reply_free(&reply);
	assert_int_equal(f->done_times, 2);

	/* It may have been done before the session was forgotten: not a second time. */
	f->lose_answers = 1;
	f->forget_sessions = 1;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, FAKES_TIMEOUT_MS, &reply, &err), -EKEYEXPIRED);
	net_reply_free(&reply);
	assert_int_equal(f->done_times, 3);
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, FAKES_TIMEOUT_MS, &reply, &err), 0);
	net_reply_free(&reply);
	assert_int_equal(f->done_times, 4);
	cluster_close(c);
	f->clean = true;
}

/* The first meta server of two is gone: the second is asked, with the same sequence. */
static void test_second_meta(void **state)
{
	struct fakes *f = *state;
	struct error err = { 0 };
	struct cluster *c = cluster_open(f->ctx, NULL, "tcp://127.0.0.1:1,inproc://test-meta", "cli",
					 FAKES_TIMEOUT_MS, &err);

	if (!c)
		fail_msg("%s", err.text);
	cluster_close(c);
	c = cluster_open(f->ctx, NULL, "tcp://127.0.0.1:1", "cli", 300, &err);
	assert_null(c);
	assert_int_equal(err.code, -ETIMEDOUT);
	f->clean = true;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fakes_start, fakes_stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_get),
		TEST(test_get_corrupt),
		TEST(test_get_hostile_zstd),
		TEST(test_get_old_map),
		TEST(test_get_timeout),
		TEST(test_sequences),
		TEST(test_lost_answer),
		TEST(test_forgotten_session),
		TEST(test_second_meta),
	};

	return cmocka_run_group_tests_name("cluster", tests, NULL, NULL);
}
