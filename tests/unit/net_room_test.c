// SPDX-License-Identifier: GPL-2.0-or-later
/* Room for payload: who may have how much, and clients that wait for it over real sockets. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "net/room.h"
#include "net_world.h"

#define BUDGET (1U << 20)
#define SHARE  (BUDGET / 16)
#define S      1000000000ULL

/* ---- the account ---- */

struct account {
	struct peer_table peers;
	struct room room;
	struct peer *p[20];
};

static int account_new(void **state)
{
	struct account *a = calloc(1, sizeof(*a));

	peer_table_init(&a->peers);
	room_init(&a->room, BUDGET);
	for (uint8_t i = 0; i < ARRAY_SIZE(a->p); i++)
		a->p[i] = peer_find_or_add(&a->peers, 0, &i, 1);
	*state = a;
	return 0;
}

static int account_free(void **state)
{
	struct account *a = *state;

	room_free(&a->room);
	assert_true(!a->room.given);
	peer_table_free(&a->peers);
	free(a);
	return 0;
}

/* The peer whose turn it is by its number, or -1. */
static int next(struct account *a, uint64_t busy, uint64_t now, uint64_t *bytes)
{
	struct peer *p = room_next(&a->room, busy, now, bytes);

	for (size_t i = 0; p && i < ARRAY_SIZE(a->p); i++) {
		if (a->p[i] != p)
			continue;
		peer_put(p);
		return (int)i;
	}
	return -1;
}

static void test_offers(void **state)
{
	struct account *a = *state;

	/* No more than a share, and together no more than half of the budget. */
	assert_int_equal(room_offer(&a->room, a->p[0], BUDGET, 0, 0), SHARE);
	assert_int_equal(room_offer(&a->room, a->p[0], 1, 0, 0), 0);
	for (size_t i = 1; i < 8; i++)
		assert_int_equal(room_offer(&a->room, a->p[i], SHARE, 0, 0), SHARE);
	assert_int_equal(room_offer(&a->room, a->p[8], 1, 0, 0), 0);
	/* What has come is busy instead of given. */
	room_take(&a->room, a->p[0], SHARE);
	assert_int_equal(room_offer(&a->room, a->p[8], 1, SHARE, 0), 0);
	assert_int_equal(room_offer(&a->room, a->p[8], 1, SHARE - 1, 0), 1);
	/* More came than was given. */
	room_take(&a->room, a->p[8], BUDGET);
	assert_int_equal(a->room.given, 7 * SHARE);
	/* Nothing is offered while somebody waits. */
	room_ask(&a->room, a->p[9], 1, SHARE, SHARE);
	assert_int_equal(room_offer(&a->room, a->p[8], 1, 0, 0), 0);
	assert_false(room_reserve(&a->room, a->p[8], 1, 0, 0));
}

static void test_turns(void **state)
{
	struct account *a = *state;
	uint64_t bytes;

	assert_int_equal(next(a, 0, 0, &bytes), -1);
	/* One alone gets what it wants, up to a share; several what they need, in order. */
	room_ask(&a->room, a->p[0], 1, 10 * SHARE, 1);
	assert_int_equal(next(a, 0, 0, &bytes), 0);
	assert_int_equal(bytes, SHARE);
	room_ask(&a->room, a->p[2], 1, SHARE, 10 * SHARE);
	room_ask(&a->room, a->p[1], 1, SHARE, 100);
	room_ask(&a->room, a->p[3], 1, SHARE, 7 * SHARE);
	/* A large one is not passed by small ones. */
	assert_int_equal(next(a, 6 * SHARE, 0, &bytes), -1);
	assert_int_equal(next(a, 5 * SHARE, 0, &bytes), 2);
	assert_int_equal(bytes, 10 * SHARE);
	assert_int_equal(next(a, 0, 0, &bytes), 1);
	assert_int_equal(bytes, 100);
	assert_int_equal(next(a, 0, 0, &bytes), -1);
	/* It asks again, and keeps its place. */
	room_ask(&a->room, a->p[4], 1, 1, 1);
	room_ask(&a->room, a->p[3], 2, SHARE, 1);
	assert_int_equal(next(a, 0, 0, &bytes), 3);
	assert_int_equal(next(a, 0, 0, &bytes), 4);
}

static void test_dead(void **state)
{
	struct account *a = *state;
	uint64_t bytes;

	assert_true(room_due(&a->room) == UINT64_MAX);
	for (size_t i = 0; i < 16; i++) {
		room_ask(&a->room, a->p[i], 1, SHARE, SHARE);
		assert_int_equal(next(a, 0, i < 8 ? 0 : S, &bytes), i);
	}
	assert_true(room_due(&a->room) == UINT64_MAX);
	room_ask(&a->room, a->p[16], 1, SHARE, SHARE);
	room_ask(&a->room, a->p[17], 1, 1, 1);
	assert_true(room_due(&a->room) == ROOM_HOLD_NS);
	assert_int_equal(next(a, 0, ROOM_HOLD_NS - 1, &bytes), -1);
	assert_int_equal(next(a, 0, ROOM_HOLD_NS, &bytes), 16);
	assert_int_equal(a->room.given, 9 * SHARE);
	/* Whoever goes on keeps what he has. */
	room_take(&a->room, a->p[8], SHARE - 1);
	assert_int_equal(next(a, 0, ROOM_HOLD_NS, &bytes), 17);
	assert_int_equal(room_offer(&a->room, a->p[8], 1, 0, ROOM_HOLD_NS), 0);
	assert_int_equal(room_offer(&a->room, a->p[8], 1, 0, ROOM_HOLD_NS + S), 1);
	assert_int_equal(a->room.given, SHARE + 1 + 1);
	/* Too large for all: when nothing else is there. */
	room_ask(&a->room, a->p[18], 1, 2 * BUDGET, 2 * BUDGET);
	assert_int_equal(next(a, 0, ROOM_HOLD_NS + S, &bytes), -1);
	assert_int_equal(next(a, 0, 2 * ROOM_HOLD_NS + S, &bytes), 18);
	assert_int_equal(bytes, BUDGET);
}

static void test_old_clients(void **state)
{
	struct account *a = *state;

	for (size_t i = 0; i < 16; i++)
		assert_true(room_reserve(&a->room, a->p[i], BUDGET, 0, 0));
	assert_false(room_reserve(&a->room, a->p[16], 1, 0, 0));
	/* A client that has its share has nothing new to wait for. */
	assert_true(room_reserve(&a->room, a->p[0], 1, 0, 0));
	assert_true(room_reserve(&a->room, a->p[16], 1, 0, ROOM_HOLD_NS));
}

/* ---- over sockets ---- */

#define CLIENTS 8
#define PUTS	32

/* Keeps PUTs until it is told to answer one; refuses a TOUCH of a client that must wait. */
struct keeper {
	struct net_ctx *ctx;
	struct net_server *net;
	pthread_t thread;
	int answer_fd;
	struct net_request *kept[CLIENTS * PUTS];
	atomic_size_t nr, max;
	bool answers; /* at once */
};

static void answer(struct net_request *req)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	net_reply_send(req, &reply, NULL, 0);
}

static void keeper_handle(void *ctx, struct net_request *req)
{
	struct keeper *k = ctx;

	switch (net_request_header(req)->body_case) {
	case VMDEDUP__REQUEST__BODY_PUT:
		if (k->answers) {
			answer(req);
			return;
		}
		k->kept[atomic_fetch_add(&k->nr, 1)] = req;
		k->max = MAX(k->max, k->nr);
		return;
	case VMDEDUP__REQUEST__BODY_TOUCH:
		if (!net_request_expect(req, SHARE)) {
			net_reply_error(req, EAGAIN, "later");
			return;
		}
		break;
	default:
		break;
	}
	answer(req);
}

static void keeper_answer(void *arg)
{
	struct keeper *k = arg;
	uint64_t n;

	assert_int_equal(read(k->answer_fd, &n, sizeof(n)), sizeof(n));
	while (n-- && k->nr)
		answer(k->kept[--k->nr]);
}

static const struct net_server_ops keeper_ops = { .handle = keeper_handle, .room = BUDGET };

static void *keeper_main(void *arg)
{
	struct keeper *k = arg;

	return (void *)(intptr_t)net_server_run(k->net, NULL);
}

static struct keeper *keeper_start(void)
{
	struct keeper *k = calloc(1, sizeof(*k));
	struct error err = { 0 };

	k->ctx = netw_context(NULL, NULL);
	k->answer_fd = eventfd(0, 0);
	k->net = net_server_new(k->ctx, "data", NULL, &keeper_ops, k, 0, &err);
	assert_non_null(k->net);
	assert_int_equal(net_server_bind(k->net, "tcp://127.0.0.1:*", &err), 0);
	assert_int_equal(net_server_watch(k->net, k->answer_fd, keeper_answer, k), 0);
	assert_int_equal(pthread_create(&k->thread, NULL, keeper_main, k), 0);
	return k;
}

static struct net_server_stats keeper_stop(struct keeper *k)
{
	struct net_server_stats stats;

	net_server_stop(k->net);
	pthread_join(k->thread, NULL);
	net_server_stats(k->net, &stats);
	net_server_free(k->net);
	net_ctx_free(k->ctx);
	close(k->answer_fd);
	free(k);
	return stats;
}

static void count(void *arg, int r, struct net_reply *reply)
{
	assert_int_equal(r, 0);
	++*(size_t *)arg;
	net_reply_free(reply);
}

static void submit_put(struct net_client *c, size_t len, size_t *done)
{
	static uint8_t payload[BUDGET];
	struct net_frame frame = { payload, len, NULL, NULL };
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_PUT, &put);

	assert_int_equal(net_client_submit(c, &req, &frame, 1, NETW_WAIT_MS, count, done), 0);
}

/* Each has sent what it may: what has no payload is not held up, and comes behind it. */
static void settle(struct net_client **c, size_t nr)
{
	struct error err;

	for (int round = 0; round < 2; round++)
		for (size_t i = 0; i < nr; i++)
			assert_int_equal(netw_stat_call(c[i], NETW_WAIT_MS, &err), 0);
}

static void test_writers_wait(void **state)
{
	struct keeper *k = keeper_start();
	struct net_client *c[CLIENTS];
	struct net_server_stats stats;
	size_t done = 0, max;
	uint64_t one = 1;
	bool slow = false;

	for (size_t i = 0; i < CLIENTS; i++) {
		c[i] = netw_client(k->ctx, net_server_endpoint(k->net, 0), NULL);
		for (size_t n = 0; n < PUTS; n++)
			submit_put(c[i], SHARE, &done);
	}
	while (done < CLIENTS * PUTS) {
		uint64_t before = clock_mono_ns();

		settle(c, CLIENTS);
		slow |= clock_mono_ns() - before > S;
		if (k->nr)
			assert_int_equal(write(k->answer_fd, &one, sizeof(one)), sizeof(one));
	}
	max = k->max;
	for (size_t i = 0; i < CLIENTS; i++)
		net_client_free(c[i]);
	stats = keeper_stop(k);
	/* On a machine that stands still room may be taken back from who uses it in the end. */
	if (slow)
		skip();
	assert_int_equal(max, BUDGET / SHARE);
	assert_true(stats.asked > 0);
}

/* One writer alone is given room with the answers that it gets anyway. */
static void test_no_questions(void **state)
{
	struct keeper *k = keeper_start();
	struct net_client *c = netw_client(k->ctx, net_server_endpoint(k->net, 0), NULL);
	struct net_server_stats stats;
	size_t done = 0;

	k->answers = true;
	for (size_t n = 0; n < PUTS; n++) {
		submit_put(c, SHARE / 2, &done);
		while (done <= n)
			assert_int_equal(net_client_run(c, -1), 0);
	}
	net_client_free(c);
	stats = keeper_stop(k);
	assert_int_equal(stats.asked, 0);
	assert_int_equal(stats.hellos, 1);
}

/* What the server expects it to send next may come without a question. */
static void test_expected(void **state)
{
	struct keeper *k = keeper_start();
	struct net_client *c = netw_client(k->ctx, net_server_endpoint(k->net, 0), NULL);
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	struct net_server_stats stats;
	struct net_reply reply;
	struct error err;
	size_t done = 0;

	k->answers = true;
	assert_int_equal(netw_call(c, VMDEDUP__REQUEST__BODY_TOUCH, &touch, &reply, &err), 0);
	net_reply_free(&reply);
	submit_put(c, SHARE, &done);
	while (!done)
		assert_int_equal(net_client_run(c, -1), 0);
	net_client_free(c);
	stats = keeper_stop(k);
	assert_int_equal(stats.asked, 0);
}

/* One that knows nothing of room is served while there is some, and asked to come back later. */
static void test_old_client_waits(void **state)
{
	struct keeper *k = keeper_start();
	struct net_client *old = netw_client(k->ctx, net_server_endpoint(k->net, 0), NULL);
	struct net_client *c = netw_client(k->ctx, net_server_endpoint(k->net, 0), NULL);
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	struct net_reply reply;
	struct error err;
	size_t done = 0;
	uint64_t all = 1000;

	net_client_need_no_room(old);
	assert_int_equal(netw_call(old, VMDEDUP__REQUEST__BODY_TOUCH, &touch, &reply, &err), 0);
	net_reply_free(&reply);
	submit_put(old, SHARE, &done);
	settle(&old, 1);
	assert_int_equal(k->nr, 1);
	for (size_t n = 0; n < BUDGET / SHARE; n++)
		submit_put(c, SHARE, &done);
	while (k->nr < BUDGET / SHARE)
		settle(&c, 1);
	assert_int_equal(netw_call(old, VMDEDUP__REQUEST__BODY_TOUCH, &touch, &reply, &err), -EAGAIN);
	net_reply_free(&reply);
	while (done <= BUDGET / SHARE) {
		assert_int_equal(write(k->answer_fd, &all, sizeof(all)), sizeof(all));
		settle(&c, 1);
		settle(&old, 1);
	}
	assert_int_equal(netw_call(old, VMDEDUP__REQUEST__BODY_TOUCH, &touch, &reply, &err), 0);
	net_reply_free(&reply);
	net_client_free(old);
	net_client_free(c);
	keeper_stop(k);
}

#define ACCOUNT_TEST(f) cmocka_unit_test_setup_teardown(f, account_new, account_free)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ACCOUNT_TEST(test_offers),
		ACCOUNT_TEST(test_turns),
		ACCOUNT_TEST(test_dead),
		ACCOUNT_TEST(test_old_clients),
		cmocka_unit_test(test_writers_wait),
		cmocka_unit_test(test_no_questions),
		cmocka_unit_test(test_expected),
		cmocka_unit_test(test_old_client_waits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
