// SPDX-License-Identifier: GPL-2.0-or-later
/* Clients and servers over real sockets. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "net_world.h"
#include "proto/limits.h"

static char dir[] = "/tmp/vmdedup-net-XXXXXX";

static const char *ipc_endpoint(void)
{
	static char text[128];

	snprintf(text, sizeof(text), "ipc://%s/sock", dir);
	return text;
}

static void round_trip(const char *endpoint)
{
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s = netw_server_start(ctx, false, endpoint);
	struct net_client *c = netw_client(ctx, net_server_endpoint(s->net, 0), NULL);
	static uint8_t fps[4 * 32], payload[300000];
	Vmdedup__Get get = VMDEDUP__GET__INIT;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__ImageGet image = VMDEDUP__IMAGE_GET__INIT;
	Vmdedup__ShardList list = VMDEDUP__SHARD_LIST__INIT;
	Vmdedup__Request req;
	struct net_reply reply, copy;
	struct bytes *taken;
	struct error err;
	atomic_int freed = 0;
	struct net_frame frames[3] = {
		{payload, sizeof(payload), netw_count_free, &freed},
		{payload, 0, NULL, NULL},
		{"\1\2", 2, NULL, NULL},
	};

	get.fingerprints.data = fps;
	get.fingerprints.len = sizeof(fps);
	assert_int_equal(netw_call(c, VMDEDUP__REQUEST__BODY_GET, &get, &reply, &err), 0);
	assert_int_equal(reply.nr_frames, 4);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(reply.frames[i].len, NETW_BLOCK_SIZE);
		assert_memory_equal(reply.frames[i].data, s->block, NETW_BLOCK_SIZE);
	}
	/* A frame that was taken stays when the reply goes. */
	taken = net_reply_take(&reply, 2);
	assert_non_null(taken);
	assert_ptr_equal(taken->data, reply.frames[2].data);
	/* A copy of the structure owns the reply as well as the first does, once. */
	copy = reply;
	net_reply_free(&copy);
	assert_null(copy.header);
	net_reply_free(&copy);
	assert_int_equal(taken->len, NETW_BLOCK_SIZE);
	assert_memory_equal(taken->data, s->block, NETW_BLOCK_SIZE);
	bytes_free(taken);

	memset(payload, 1, sizeof(payload));
	req = netw_request(VMDEDUP__REQUEST__BODY_PUT, &put);
	assert_int_equal(net_call(c, &req, frames, 3, NETW_WAIT_MS, &reply, &err), 0);
	assert_true(reply.header->data_stat->puts == sizeof(payload) + 3);
	net_reply_free(&reply);
	assert_true(atomic_load(&s->batches) >= 1);

	/* An error with its text, and the reply all the same. */
	assert_int_equal(netw_call(c, VMDEDUP__REQUEST__BODY_IMAGE_GET, &image, &reply, &err),
			 -ENOENT);
	assert_string_equal(err.text, "there is no image 'x'");
	assert_int_equal(reply.header->error, ENOENT);
	net_reply_free(&reply);

	/* The server's own mistake does not leave the client waiting. */
	assert_int_equal(netw_call(c, VMDEDUP__REQUEST__BODY_SHARD_LIST, &list, &reply, &err),
			 -EMSGSIZE);
	net_reply_free(&reply);

	/* The peer has a name for logs. */
	assert_int_equal(
		netw_call(c, VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat, &reply, &err), 0);
	assert_int_equal(strncmp(reply.header->error_text, "agent ", 6), 0);
	net_reply_free(&reply);

	net_client_free(c);
	struct net_server_stats stats = netw_server_stop(s);
	assert_true(stats.hellos == 1 && stats.requests == 5);
	assert_true(!stats.waiting && !stats.dropped && !stats.refused);
	net_ctx_free(ctx);
	assert_int_equal(atomic_load(&freed), 1);
	assert_int_equal(atomic_load(&s->freed), 4);
	netw_server_free(s);
}

static void test_inproc(void **state)
{
	round_trip("inproc://server");
}

static void test_ipc(void **state)
{
	struct stat st;

	round_trip(ipc_endpoint());

	/* Plain, so for the owner alone. */
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s = netw_server_start(ctx, false, ipc_endpoint());

	assert_int_equal(stat(ipc_endpoint() + strlen("ipc://"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	netw_server_stop(s);
	net_ctx_free(ctx);
	netw_server_free(s);
}

static void test_tcp(void **state)
{
	round_trip("tcp://127.0.0.1:*");
}

static void test_tcp6(void **state)
{
	if (access("/proc/net/if_inet6", F_OK))
		skip();
	round_trip("tcp://[::1]:*");
}

/* The client may be first. */
static void connect_before_bind(const char *endpoint)
{
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct net_client *c = netw_client(ctx, endpoint, NULL);
	struct error err;

	assert_int_equal(netw_stat_call(c, 30, &err), -ETIMEDOUT);
	if (strncmp(endpoint, "inproc", 6))
		assert_non_null(strstr(err.text, "is it running?"));
	assert_int_equal(net_client_pending(c), 0);

	struct netw_server *s = netw_server_start(ctx, false, endpoint);

	assert_int_equal(netw_stat_call(c, NETW_WAIT_MS, &err), 0);
	net_client_free(c);
	netw_server_stop(s);
	net_ctx_free(ctx);
	netw_server_free(s);
}

static void test_connect_before_bind(void **state)
{
	connect_before_bind("inproc://later");
	connect_before_bind(ipc_endpoint());
}

/* A server dies with requests unanswered: the next one gets them, with their payload. */
static void restart(const char *endpoint)
{
	enum { N = 20 };
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *first = netw_server_start(ctx, true, endpoint), *second;
	char bound[256];
	struct net_client *c;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	struct netw_outcome outcomes[N] = {0};
	uint8_t bytes[N];

	strcpy(bound, net_server_endpoint(first->net, 0));
	c = netw_client(ctx, bound, NULL);
	for (int i = 0; i < N; i++) {
		Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_PUT, &put);
		struct net_frame frame = {&bytes[i], 1, NULL, NULL};

		bytes[i] = i;
		assert_int_equal(net_client_submit(c, &req, &frame, 1, NETW_WAIT_MS, netw_record,
						   &outcomes[i]),
				 0);
	}
	while (atomic_load(&first->seen) < N)
		assert_int_equal(net_client_run(c, 10), 0);
	netw_server_stop(first);
	second = netw_server_start(ctx, false, bound);
	while (net_client_pending(c))
		assert_int_equal(net_client_run(c, -1), 0);
	for (int i = 0; i < N; i++) {
		assert_int_equal(outcomes[i].done, 1);
		assert_int_equal(outcomes[i].r, 0);
		assert_int_equal(outcomes[i].puts, i);
	}
	/* Each was handed to the handler once. */
	assert_int_equal(atomic_load(&second->seen), N);
	net_client_free(c);
	netw_server_stop(second);
	net_ctx_free(ctx);
	netw_server_free(first);
	netw_server_free(second);
}

static void test_restart_tcp(void **state)
{
	restart("tcp://127.0.0.1:*");
}

static void test_restart_ipc(void **state)
{
	restart(ipc_endpoint());
}

/* Many at once, in any order of answers; waits only by the file descriptor. */
static void test_pipeline_and_poll(void **state)
{
	enum { N = 5000 };
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s = netw_server_start(ctx, false, "tcp://127.0.0.1:*");
	struct net_client *c = netw_client(ctx, net_server_endpoint(s->net, 0), NULL);
	static struct netw_outcome outcomes[N];
	Vmdedup__Put put = VMDEDUP__PUT__INIT;

	for (int i = 0; i < N; i++) {
		Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_PUT, &put);
		uint8_t byte = i;
		struct net_frame frame = {&byte, 1, NULL, NULL};

		assert_int_equal(
			net_client_submit(c, &req, &frame, 1, -1, netw_record, &outcomes[i]), 0);
	}
	assert_int_equal(net_client_pending(c), N);
	assert_int_equal(net_client_next_timeout_ms(c), -1);
	while (net_client_pending(c)) {
		struct pollfd p = {net_client_fd(c), POLLIN, 0};

		assert_int_equal(poll(&p, 1, NETW_WAIT_MS), 1);
		assert_int_equal(net_client_run(c, 0), 0);
	}
	for (int i = 0; i < N; i++) {
		assert_int_equal(outcomes[i].done, 1);
		assert_int_equal(outcomes[i].r, 0);
		assert_int_equal(outcomes[i].puts, (uint8_t)i);
	}
	/* Requests that were there together end in one batch. */
	assert_true(atomic_load(&s->batches) < N);
	net_client_free(c);
	netw_server_stop(s);
	net_ctx_free(ctx);
	netw_server_free(s);
}

static void test_timeouts(void **state)
{
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s = netw_server_start(ctx, true, "tcp://127.0.0.1:*");
	struct net_client *c = netw_client(ctx, net_server_endpoint(s->net, 0), NULL);
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat);
	struct netw_outcome soon = {0}, later = {0};
	struct error err;
	uint64_t start = clock_mono_ns();
	int ms;

	assert_int_equal(net_client_submit(c, &req, NULL, 0, 60000, netw_record, &later), 0);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, 40, netw_record, &soon), 0);
	ms = net_client_next_timeout_ms(c);
	assert_true(ms >= 0 && ms <= 40);
	while (!soon.done)
		assert_int_equal(net_client_run(c, -1), 0);
	assert_int_equal(soon.r, -ETIMEDOUT);
	assert_true(clock_mono_ns() - start >= 40000000);
	assert_int_equal(later.done, 0);
	assert_int_equal(net_client_pending(c), 1);
	assert_int_equal(net_client_run(c, 5), 0);

	/* The ticks go on while nothing comes. */
	while (!atomic_load(&s->ticks) || !atomic_load(&s->seen))
		net_client_run(c, 10);
	assert_int_equal(netw_stat_call(c, 20, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "it is there but busy"));

	net_client_free(c);
	assert_int_equal(later.done, 1);
	assert_int_equal(later.r, -ECANCELED);
	netw_server_stop(s);
	net_ctx_free(ctx);
	netw_server_free(s);
}

/* What cannot be sent ends like anything else: in the callback, with its frames freed. */
static void test_too_large(void **state)
{
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct net_client *c = netw_client(ctx, "inproc://nobody", NULL);
	static uint8_t big[PROTO_MAX_FRAME + 1];
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_PUT, &put);
	struct net_frame frames[PROTO_MAX_FRAMES + 1];
	struct netw_outcome o[4] = {0};
	atomic_int freed = 0;

	for (size_t i = 0; i < NETW_COUNT(frames); i++)
		frames[i] = (struct net_frame){big, sizeof(big), netw_count_free, &freed};
	assert_int_equal(net_client_submit(c, &req, frames, 1, -1, netw_record, &o[0]), 0);
	assert_int_equal(o[0].done, 0);
	for (size_t i = 0; i < NETW_COUNT(frames); i++)
		frames[i].len = 1;
	assert_int_equal(
		net_client_submit(c, &req, frames, PROTO_MAX_FRAMES + 1, -1, netw_record, &o[1]),
		0);
	for (size_t i = 0; i < NETW_COUNT(frames); i++)
		frames[i].len = 1 << 20;
	assert_int_equal(net_client_submit(c, &req, frames, 65, -1, netw_record, &o[2]), 0);
	touch.fingerprints.data = big;
	touch.fingerprints.len = PROTO_MAX_HEADER;
	req = netw_request(VMDEDUP__REQUEST__BODY_TOUCH, &touch);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, -1, netw_record, &o[3]), 0);
	while (net_client_pending(c))
		net_client_run(c, -1);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(o[i].done, 1);
		assert_int_equal(o[i].r, -EMSGSIZE);
	}
	assert_int_equal(atomic_load(&freed), 1 + PROTO_MAX_FRAMES + 1 + 65);
	net_client_free(c);
	net_ctx_free(ctx);
}

struct chain {
	struct net_client *c;
	int left;
	bool nested;
};

static void chain_done(void *arg, int r, struct net_reply *reply)
{
	struct chain *chain = arg;
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat);

	assert_int_equal(r, 0);
	net_reply_free(reply);
	if (chain->nested)
		assert_int_equal(netw_stat_call(chain->c, NETW_WAIT_MS, NULL), 0);
	if (--chain->left)
		assert_int_equal(
			net_client_submit(chain->c, &req, NULL, 0, NETW_WAIT_MS, chain_done, chain),
			0);
}

/* Callbacks submit, and even call. */
static void test_callbacks(void **state)
{
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s = netw_server_start(ctx, false, "inproc://s");
	struct chain chain = {netw_client(ctx, "inproc://s", NULL), 101, false};

	for (int nested = 0; nested < 2; nested++) {
		chain.left = 100;
		chain.nested = nested;
		Vmdedup__Request req =
			netw_request(VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat);

		assert_int_equal(
			net_client_submit(chain.c, &req, NULL, 0, NETW_WAIT_MS, chain_done, &chain),
			0);
		while (net_client_pending(chain.c))
			net_client_run(chain.c, -1);
		assert_int_equal(chain.left, 0);
	}
	net_client_free(chain.c);
	netw_server_stop(s);
	net_ctx_free(ctx);
	netw_server_free(s);
}

static int setup(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_inproc),
		cmocka_unit_test(test_ipc),
		cmocka_unit_test(test_tcp),
		cmocka_unit_test(test_tcp6),
		cmocka_unit_test(test_connect_before_bind),
		cmocka_unit_test(test_restart_tcp),
		cmocka_unit_test(test_restart_ipc),
		cmocka_unit_test(test_pipeline_and_poll),
		cmocka_unit_test(test_timeouts),
		cmocka_unit_test(test_too_large),
		cmocka_unit_test(test_callbacks),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
