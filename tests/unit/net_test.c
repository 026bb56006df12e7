// SPDX-License-Identifier: GPL-2.0-or-later
/* Clients and servers over real sockets. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <czmq.h>

#include "base/clock.h"
#include "net/internal.h"
#include "net/peer.h"
#include "proto/limits.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define WAIT_MS	   20000 /* for what must come; sanitizers and busy machines are slow */
#define BLOCK_SIZE (256 << 10)

static char dir[] = "/tmp/vmdedup-net-XXXXXX";

/* ---- a server that answers in every way there is ---- */

struct test_server {
	struct net_ctx *ctx;
	struct net_server *net;
	pthread_t thread;
	bool silent; /* never answers */
	atomic_int seen, batches, ticks, freed;
	struct net_request *deferred[64];
	size_t nr_deferred;
	uint8_t *block;
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

static void count_free(void *data, void *hint)
{
	atomic_fetch_add((atomic_int *)hint, 1);
}

static void answer_get(struct test_server *s, struct net_request *req, const Vmdedup__Get *get)
{
	size_t n = get->fingerprints.len / 32;
	struct net_frame frames[PROTO_MAX_BLOCKS];
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__GetReply body = VMDEDUP__GET_REPLY__INIT;

	for (size_t i = 0; i < n; i++)
		frames[i] = (struct net_frame){ s->block, BLOCK_SIZE, count_free, &s->freed };
	reply.body_case = VMDEDUP__REPLY__BODY_GET;
	reply.get = &body;
	net_reply_send(req, &reply, frames, n);
}

/* Answers with the sum of the payload's bytes. */
static void answer_put(struct net_request *req)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__DataStatReply stat = VMDEDUP__DATA_STAT_REPLY__INIT;

	for (size_t i = 0; i < net_request_nr_frames(req); i++) {
		size_t len;
		const uint8_t *p = net_request_frame(req, i, &len);

		for (size_t b = 0; b < len; b++)
			stat.puts += p[b];
	}
	reply.body_case = VMDEDUP__REPLY__BODY_DATA_STAT;
	reply.data_stat = &stat;
	net_reply_send(req, &reply, NULL, 0);
}

static void server_handle(void *ctx, struct net_request *req)
{
	const Vmdedup__Request *header = net_request_header(req);
	struct test_server *s = ctx;

	pthread_mutex_lock(&s->lock);
	atomic_fetch_add(&s->seen, 1);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	if (s->silent)
		return;
	switch (header->body_case) {
	case VMDEDUP__REQUEST__BODY_GET:
		answer_get(s, req, header->get);
		break;
	case VMDEDUP__REQUEST__BODY_PUT:
		s->deferred[s->nr_deferred++] = req;
		if (s->nr_deferred == ARRAY_SIZE(s->deferred))
			while (s->nr_deferred)
				answer_put(s->deferred[--s->nr_deferred]);
		break;
	case VMDEDUP__REQUEST__BODY_DATA_STAT: {
		Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

		reply.error_text = (char *)net_request_peer(req);
		net_reply_send(req, &reply, NULL, 0);
		break;
	}
	case VMDEDUP__REQUEST__BODY_SHARD_LIST: {
		/* More than may be sent. */
		struct net_frame frames[PROTO_MAX_FRAMES + 1] = { 0 };
		Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

		net_reply_send(req, &reply, frames, ARRAY_SIZE(frames));
		break;
	}
	default:
		net_reply_error(req, ENOENT, "there is no image '%s'", "x");
	}
}

static void server_batch_end(void *ctx)
{
	struct test_server *s = ctx;

	atomic_fetch_add(&s->batches, 1);
	while (s->nr_deferred)
		answer_put(s->deferred[--s->nr_deferred]);
}

static void server_tick(void *ctx)
{
	struct test_server *s = ctx;

	atomic_fetch_add(&s->ticks, 1);
}

static const struct net_server_ops server_ops = { server_handle, server_batch_end, server_tick };

static void *server_main(void *arg)
{
	struct test_server *s = arg;

	return (void *)(intptr_t)net_server_run(s->net, NULL);
}

static struct test_server *server_start(struct net_ctx *ctx, bool silent, const char *endpoint)
{
	static const uint8_t cluster[16] = { 1, 2, 3 };
	struct test_server *s = calloc(1, sizeof(*s));
	struct error err = { 0 };

	s->ctx = ctx;
	s->silent = silent;
	s->block = malloc(BLOCK_SIZE);
	memset(s->block, 'b', BLOCK_SIZE);
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->net = net_server_new(ctx, "data", cluster, &server_ops, s, 50, &err);
	assert_non_null(s->net);
	if (net_server_bind(s->net, endpoint, &err))
		fail_msg("%s", err.text);
	assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
	return s;
}

static void server_wait_seen(struct test_server *s, int n)
{
	pthread_mutex_lock(&s->lock);
	while (atomic_load(&s->seen) < n)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

static struct net_server_stats server_stop(struct test_server *s)
{
	struct net_server_stats stats;
	void *r;

	net_server_stop(s->net);
	pthread_join(s->thread, &r);
	assert_null(r);
	net_server_stats(s->net, &stats);
	net_server_free(s->net);
	return stats;
}

/* After the context has ended: frames that were sent refer to the block. */
static void server_free(struct test_server *s)
{
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->changed);
	free(s->block);
	free(s);
}

/* ---- requests ---- */

static Vmdedup__DataStat data_stat = VMDEDUP__DATA_STAT__INIT;

static Vmdedup__Request request(Vmdedup__Request__BodyCase body_case, void *body)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;

	req.body_case = body_case;
	req.data_stat = body;
	return req;
}

static int call(struct net_client *c, Vmdedup__Request__BodyCase body_case, void *body,
		struct net_reply *reply, struct error *err)
{
	Vmdedup__Request req = request(body_case, body);

	return net_call(c, &req, NULL, 0, WAIT_MS, reply, err);
}

static int stat_call(struct net_client *c, int timeout_ms, struct error *err)
{
	Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat);
	struct net_reply reply;
	int r = net_call(c, &req, NULL, 0, timeout_ms, &reply, err);

	net_reply_free(&reply);
	return r;
}

static struct net_client *client(struct net_ctx *ctx, const char *endpoint, const uint8_t *key)
{
	struct error err = { 0 };
	struct net_client *c = net_client_new(ctx, endpoint, key, "agent", &err);

	if (!c)
		fail_msg("%s", err.text);
	return c;
}

static struct net_ctx *context(const char *secret, const char *clients)
{
	struct error err = { 0 };
	struct net_ctx *ctx = net_ctx_new(secret, clients, &err);

	if (!ctx)
		fail_msg("%s", err.text);
	return ctx;
}

static const char *ipc_endpoint(void)
{
	static char text[128];

	snprintf(text, sizeof(text), "ipc://%s/sock", dir);
	return text;
}

/* ---- tests ---- */

static void round_trip(const char *endpoint)
{
	struct net_ctx *ctx = context(NULL, NULL);
	struct test_server *s = server_start(ctx, false, endpoint);
	struct net_client *c = client(ctx, net_server_endpoint(s->net, 0), NULL);
	static uint8_t fps[4 * 32], payload[300000];
	Vmdedup__Get get = VMDEDUP__GET__INIT;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__ImageGet image = VMDEDUP__IMAGE_GET__INIT;
	Vmdedup__ShardList list = VMDEDUP__SHARD_LIST__INIT;
	Vmdedup__Request req;
	struct net_reply reply, copy;
	struct error err;
	atomic_int freed = 0;
	struct net_frame frames[3] = {
		{ payload, sizeof(payload), count_free, &freed },
		{ payload, 0, NULL, NULL },
		{ "\1\2", 2, NULL, NULL },
	};

	get.fingerprints.data = fps;
	get.fingerprints.len = sizeof(fps);
	assert_int_equal(call(c, VMDEDUP__REQUEST__BODY_GET, &get, &reply, &err), 0);
	assert_int_equal(reply.nr_frames, 4);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(reply.frames[i].len, BLOCK_SIZE);
		assert_memory_equal(reply.frames[i].data, s->block, BLOCK_SIZE);
	}
	/* A copy of the structure owns the reply as well as the first does, once. */
	copy = reply;
	net_reply_free(&copy);
	assert_null(copy.header);
	net_reply_free(&copy);

	memset(payload, 1, sizeof(payload));
	req = request(VMDEDUP__REQUEST__BODY_PUT, &put);
	assert_int_equal(net_call(c, &req, frames, 3, WAIT_MS, &reply, &err), 0);
	assert_true(reply.header->data_stat->puts == sizeof(payload) + 3);
	net_reply_free(&reply);
	assert_true(atomic_load(&s->batches) >= 1);

	/* An error with its text, and the reply all the same. */
	assert_int_equal(call(c, VMDEDUP__REQUEST__BODY_IMAGE_GET, &image, &reply, &err), -ENOENT);
	assert_string_equal(err.text, "there is no image 'x'");
	assert_int_equal(reply.header->error, ENOENT);
	net_reply_free(&reply);

	/* The server's own mistake does not leave the client waiting. */
	assert_int_equal(call(c, VMDEDUP__REQUEST__BODY_SHARD_LIST, &list, &reply, &err), -EMSGSIZE);
	net_reply_free(&reply);

	/* The peer has a name for logs. */
	assert_int_equal(call(c, VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat, &reply, &err), 0);
	assert_int_equal(strncmp(reply.header->error_text, "agent ", 6), 0);
	net_reply_free(&reply);

	net_client_free(c);
	struct net_server_stats stats = server_stop(s);
	assert_true(stats.hellos == 1 && stats.requests == 5);
	assert_true(!stats.waiting && !stats.dropped && !stats.refused);
	net_ctx_free(ctx);
	assert_int_equal(atomic_load(&freed), 1);
	assert_int_equal(atomic_load(&s->freed), 4);
	server_free(s);
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
	struct net_ctx *ctx = context(NULL, NULL);
	struct test_server *s = server_start(ctx, false, ipc_endpoint());

	assert_int_equal(stat(ipc_endpoint() + strlen("ipc://"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	server_stop(s);
	net_ctx_free(ctx);
	server_free(s);
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
	struct net_ctx *ctx = context(NULL, NULL);
	struct net_client *c = client(ctx, endpoint, NULL);
	struct error err;

	assert_int_equal(stat_call(c, 30, &err), -ETIMEDOUT);
	if (strncmp(endpoint, "inproc", 6))
		assert_non_null(strstr(err.text, "is it running?"));
	assert_int_equal(net_client_pending(c), 0);

	struct test_server *s = server_start(ctx, false, endpoint);

	assert_int_equal(stat_call(c, WAIT_MS, &err), 0);
	net_client_free(c);
	server_stop(s);
	net_ctx_free(ctx);
	server_free(s);
}

static void test_connect_before_bind(void **state)
{
	connect_before_bind("inproc://later");
	connect_before_bind(ipc_endpoint());
}

struct outcome {
	int done, r;
	uint64_t puts;
};

static void record(void *arg, int r, struct net_reply *reply)
{
	struct outcome *o = arg;

	o->done++;
	o->r = r;
	if (reply && reply->header->body_case == VMDEDUP__REPLY__BODY_DATA_STAT)
		o->puts = reply->header->data_stat->puts;
	net_reply_free(reply);
}

/* A server dies with requests unanswered: the next one gets them, with their payload. */
static void restart(const char *endpoint)
{
	enum { N = 20 };
	struct net_ctx *ctx = context(NULL, NULL);
	struct test_server *first = server_start(ctx, true, endpoint), *second;
	char bound[256];
	struct net_client *c;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	struct outcome outcomes[N] = { 0 };
	uint8_t bytes[N];

	strcpy(bound, net_server_endpoint(first->net, 0));
	c = client(ctx, bound, NULL);
	for (int i = 0; i < N; i++) {
		Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_PUT, &put);
		struct net_frame frame = { &bytes[i], 1, NULL, NULL };

		bytes[i] = i;
		assert_int_equal(net_client_submit(c, &req, &frame, 1, WAIT_MS, record, &outcomes[i]),
				 0);
	}
	while (atomic_load(&first->seen) < N)
		assert_int_equal(net_client_run(c, 10), 0);
	server_stop(first);
	second = server_start(ctx, false, bound);
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
	server_stop(second);
	net_ctx_free(ctx);
	server_free(first);
	server_free(second);
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
	struct net_ctx *ctx = context(NULL, NULL);
	struct test_server *s = server_start(ctx, false, "tcp://127.0.0.1:*");
	struct net_client *c = client(ctx, net_server_endpoint(s->net, 0), NULL);
	static struct outcome outcomes[N];
	Vmdedup__Put put = VMDEDUP__PUT__INIT;

	for (int i = 0; i < N; i++) {
		Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_PUT, &put);
		uint8_t byte = i;
		struct net_frame frame = { &byte, 1, NULL, NULL };

		assert_int_equal(net_client_submit(c, &req, &frame, 1, -1, record, &outcomes[i]), 0);
	}
	assert_int_equal(net_client_pending(c), N);
	assert_int_equal(net_client_next_timeout_ms(c), -1);
	while (net_client_pending(c)) {
		struct pollfd p = { net_client_fd(c), POLLIN, 0 };

		assert_int_equal(poll(&p, 1, WAIT_MS), 1);
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
	server_stop(s);
	net_ctx_free(ctx);
	server_free(s);
}

static void test_timeouts(void **state)
{
	struct net_ctx *ctx = context(NULL, NULL);
	struct test_server *s = server_start(ctx, true, "tcp://127.0.0.1:*");
	struct net_client *c = client(ctx, net_server_endpoint(s->net, 0), NULL);
	Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat);
	struct outcome soon = { 0 }, later = { 0 };
	struct error err;
	uint64_t start = clock_mono_ns();
	int ms;

	assert_int_equal(net_client_submit(c, &req, NULL, 0, 60000, record, &later), 0);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, 40, record, &soon), 0);
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
	server_wait_seen(s, 2);
	while (!atomic_load(&s->ticks))
		net_client_run(c, 10);
	assert_int_equal(stat_call(c, 20, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "it is there but busy"));

	net_client_free(c);
	assert_int_equal(later.done, 1);
	assert_int_equal(later.r, -ECANCELED);
	server_stop(s);
	net_ctx_free(ctx);
	server_free(s);
}

/* What cannot be sent ends like anything else: in the callback, with its frames freed. */
static void test_too_large(void **state)
{
	struct net_ctx *ctx = context(NULL, NULL);
	struct net_client *c = client(ctx, "inproc://nobody", NULL);
	static uint8_t big[PROTO_MAX_FRAME + 1];
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_PUT, &put);
	struct net_frame frames[PROTO_MAX_FRAMES + 1];
	struct outcome o[4] = { 0 };
	atomic_int freed = 0;

	for (size_t i = 0; i < ARRAY_SIZE(frames); i++)
		frames[i] = (struct net_frame){ big, sizeof(big), count_free, &freed };
	assert_int_equal(net_client_submit(c, &req, frames, 1, -1, record, &o[0]), 0);
	assert_int_equal(o[0].done, 0);
	for (size_t i = 0; i < ARRAY_SIZE(frames); i++)
		frames[i].len = 1;
	assert_int_equal(net_client_submit(c, &req, frames, PROTO_MAX_FRAMES + 1, -1, record, &o[1]),
			 0);
	for (size_t i = 0; i < ARRAY_SIZE(frames); i++)
		frames[i].len = 1 << 20;
	assert_int_equal(net_client_submit(c, &req, frames, 65, -1, record, &o[2]), 0);
	touch.fingerprints.data = big;
	touch.fingerprints.len = PROTO_MAX_HEADER;
	req = request(VMDEDUP__REQUEST__BODY_TOUCH, &touch);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, -1, record, &o[3]), 0);
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
	Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat);

	assert_int_equal(r, 0);
	net_reply_free(reply);
	if (chain->nested)
		assert_int_equal(stat_call(chain->c, WAIT_MS, NULL), 0);
	if (--chain->left)
		assert_int_equal(net_client_submit(chain->c, &req, NULL, 0, WAIT_MS, chain_done, chain),
				 0);
}

/* Callbacks submit, and even call. */
static void test_callbacks(void **state)
{
	struct net_ctx *ctx = context(NULL, NULL);
	struct test_server *s = server_start(ctx, false, "inproc://s");
	struct chain chain = { client(ctx, "inproc://s", NULL), 101, false };

	for (int nested = 0; nested < 2; nested++) {
		chain.left = 100;
		chain.nested = nested;
		Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat);

		assert_int_equal(net_client_submit(chain.c, &req, NULL, 0, WAIT_MS, chain_done, &chain),
				 0);
		while (net_client_pending(chain.c))
			net_client_run(chain.c, -1);
		assert_int_equal(chain.left, 0);
	}
	net_client_free(chain.c);
	server_stop(s);
	net_ctx_free(ctx);
	server_free(s);
}

/* ---- keys ---- */

static char *key_path(const char *name)
{
	static char paths[4][160];
	static int n;
	char *path = paths[n++ % 4];

	snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	return path;
}

/* dir/NAME and dir/NAME_secret; the public key in clients/ too when it may connect. */
static void make_key(const char *name, bool may_connect, uint8_t public_key[32])
{
	zcert_t *cert = zcert_new();
	char client_name[64];

	assert_non_null(cert);
	assert_int_equal(zcert_save(cert, key_path(name)), 0);
	snprintf(client_name, sizeof(client_name), "clients/%s", name);
	if (may_connect)
		assert_int_equal(zcert_save_public(cert, key_path(client_name)), 0);
	memcpy(public_key, zcert_public_key(cert), 32);
	zcert_destroy(&cert);
}

static void test_curve(void **state)
{
	uint8_t server_key[32], good_key[32], bad_key[32];
	struct net_ctx *server_ctx, *good, *bad, *plain;
	struct test_server *s;
	struct net_client *c;
	struct net_reply reply;
	struct error err;
	const char *endpoint;

	mkdir(key_path("clients"), 0700);
	make_key("server", false, server_key);
	make_key("good", true, good_key);
	make_key("bad", false, bad_key);
	server_ctx = context(key_path("server_secret"), key_path("clients"));
	good = context(key_path("good_secret"), NULL);
	bad = context(key_path("bad_secret"), NULL);
	plain = context(NULL, NULL);
	assert_memory_equal(net_ctx_public_key(good), good_key, 32);
	assert_null(net_ctx_public_key(plain));
	s = server_start(server_ctx, false, "tcp://127.0.0.1:*");
	endpoint = net_server_endpoint(s->net, 0);

	c = client(good, endpoint, server_key);
	assert_int_equal(call(c, VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat, &reply, &err), 0);
	assert_non_null(strstr(reply.header->error_text, " key "));
	net_reply_free(&reply);
	net_client_free(c);

	/* A key that is not in the folder */
	c = client(bad, endpoint, server_key);
	assert_int_equal(stat_call(c, 500, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.text, "refused this host's key"));
	/* ... and then is: the folder is read again, the client comes again by itself. */
	zcert_t *cert = zcert_load(key_path("bad"));

	assert_int_equal(zcert_save_public(cert, key_path("clients/bad-too")), 0);
	zcert_destroy(&cert);
	assert_int_equal(stat_call(c, WAIT_MS, &err), 0);
	net_client_free(c);

	/* Another server's key; no keys at all */
	c = client(good, endpoint, bad_key);
	assert_int_equal(stat_call(c, 300, &err), -ETIMEDOUT);
	net_client_free(c);
	c = client(plain, endpoint, NULL);
	assert_int_equal(stat_call(c, 300, &err), -ETIMEDOUT);
	net_client_free(c);
	assert_int_equal(atomic_load(&s->seen), 2);

	/* What is missing is named. */
	assert_null(net_client_new(plain, endpoint, server_key, "agent", &err));
	assert_int_equal(err.code, -EACCES);
	assert_non_null(strstr(err.text, "[curve] secret"));
	assert_null(net_client_new(good, endpoint, NULL, "agent", &err));
	assert_non_null(strstr(err.text, "[curve] servers"));

	struct net_server *refused = net_server_new(good, "data", NULL, &server_ops, NULL, 0, &err);

	assert_int_equal(net_server_bind(refused, "tcp://127.0.0.1:*", &err), -EACCES);
	assert_non_null(strstr(err.text, "[curve] clients"));
	net_server_free(refused);

	server_stop(s);
	net_ctx_free(plain);
	net_ctx_free(good);
	net_ctx_free(bad);
	net_ctx_free(server_ctx);
	server_free(s);
}

static void test_curve_restart(void **state)
{
	uint8_t server_key[32], client_key[32];
	struct net_ctx *server_ctx, *ctx;
	struct test_server *s[2];
	struct net_client *c;
	char endpoint[256];

	mkdir(key_path("clients"), 0700);
	make_key("server2", false, server_key);
	make_key("client2", true, client_key);
	server_ctx = context(key_path("server2_secret"), key_path("clients"));
	ctx = context(key_path("client2_secret"), NULL);
	s[0] = server_start(server_ctx, false, "tcp://127.0.0.1:*");
	strcpy(endpoint, net_server_endpoint(s[0]->net, 0));
	c = client(ctx, endpoint, server_key);
	assert_int_equal(stat_call(c, WAIT_MS, NULL), 0);
	server_stop(s[0]);
	s[1] = server_start(server_ctx, false, endpoint);
	assert_int_equal(stat_call(c, WAIT_MS, NULL), 0);
	server_stop(s[1]);
	net_client_free(c);
	net_ctx_free(ctx);
	net_ctx_free(server_ctx);
	server_free(s[0]);
	server_free(s[1]);
}

static void test_bad_keys(void **state)
{
	struct error err;
	uint8_t key[32];
	FILE *f;

	make_key("some", false, key);
	assert_null(net_ctx_new(key_path("missing"), NULL, &err));
	assert_int_equal(err.code, -ENOENT);
	assert_non_null(strstr(err.text, "[curve] secret"));
	f = fopen(key_path("garbage"), "w");
	fputs("metadata\n    name = no key\n", f);
	fclose(f);
	assert_null(net_ctx_new(key_path("garbage"), NULL, &err));
	assert_null(net_ctx_new(key_path("some_secret"), key_path("nodir"), &err));
	assert_int_equal(err.code, -ENOENT);
	assert_null(net_ctx_new(NULL, dir, &err));
	assert_int_equal(err.code, -EINVAL);
	/* A public key alone */
	unlink(key_path("some_secret"));
	assert_null(net_ctx_new(key_path("some"), NULL, &err));
	assert_non_null(strstr(err.text, "public key only"));
}

static void test_endpoints(void **state)
{
	static const char *const far[] = { "tcp://10.0.0.1:7401", "tcp://0.0.0.0:0", "tcp://*:7401",
					   "tcp://localhost:7401", "tcp://[::]:7401",
					   "tcp://127.0.0.1.example.com:1", "tcp://128.0.0.1:1" };
	static const char *const bad[] = { "", "7401", "udp://1.2.3.4:5", "tcp://", "ipc://",
					   "ipc://@abstract", "inproc://" };
	struct net_ctx *ctx = context(NULL, NULL);
	struct error err;
	struct net_server *s = net_server_new(ctx, "data", NULL, &server_ops, NULL, 0, &err);

	for (size_t i = 0; i < ARRAY_SIZE(far); i++) {
		assert_null(net_client_new(ctx, far[i], NULL, "agent", &err));
		assert_int_equal(err.code, -EACCES);
		assert_int_equal(net_server_bind(s, far[i], &err), -EACCES);
		assert_non_null(strstr(err.text, "[curve]"));
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_null(net_client_new(ctx, bad[i], NULL, "agent", &err));
		assert_int_equal(err.code, -EINVAL);
		assert_int_equal(net_server_bind(s, bad[i], &err), -EINVAL);
	}
	assert_int_equal(net_server_bind(s, "tcp://127.0.0.1:*", &err), 0);
	/* A port that is taken */
	assert_int_equal(net_server_bind(s, net_server_endpoint(s, 0), &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "cannot listen on tcp://127.0.0.1:"));
	for (int i = 1; i < 16; i++)
		assert_int_equal(net_server_bind(s, "tcp://127.0.0.1:*", &err), 0);
	assert_int_equal(net_server_bind(s, "tcp://127.0.0.1:*", &err), -ENOSPC);
	assert_null(net_server_endpoint(s, 16));
	/* A stop that came first is not lost. */
	net_server_stop(s);
	assert_int_equal(net_server_run(s, &err), 0);
	net_server_free(s);
	net_ctx_free(ctx);
}

/* ---- hostile peers ---- */

static void raw_send(void *socket, const void *header, size_t len, size_t nr, size_t frame_len)
{
	static const uint8_t bytes[NET_MAX_RAW_FRAME];

	assert_int_equal(zmq_send(socket, header, len, nr ? ZMQ_SNDMORE : 0), len);
	for (size_t i = 0; i < nr; i++)
		assert_int_equal(zmq_send(socket, bytes, frame_len, i + 1 < nr ? ZMQ_SNDMORE : 0),
				 frame_len);
}

static size_t pack_request(Vmdedup__Request *req, uint64_t id, uint32_t nr, uint8_t *out)
{
	req->id = id;
	req->payload_frames = nr;
	return vmdedup__request__pack(req, out);
}

static void raw_hello(void *socket, uint64_t id, uint32_t version)
{
	Vmdedup__Hello hello = VMDEDUP__HELLO__INIT;
	Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_HELLO, &hello);
	uint8_t buf[256];

	hello.version = version;
	hello.role = "agent";
	raw_send(socket, buf, pack_request(&req, id, 0, buf), 0, 0);
}

/* The next answer's error; its id must be @id. */
static int raw_error(void *socket, uint64_t id, Vmdedup__Reply__BodyCase *body_case)
{
	struct net_parts parts = { 0 };
	zmq_pollitem_t item = { .socket = socket, .events = ZMQ_POLLIN };
	Vmdedup__Reply *reply;
	int error;

	assert_int_equal(zmq_poll(&item, 1, WAIT_MS), 1);
	assert_int_equal(net_parts_recv(socket, 8, &parts), 0);
	reply = vmdedup__reply__unpack(NULL, zmq_msg_size(&parts.msgs[0]),
				       zmq_msg_data(&parts.msgs[0]));
	assert_non_null(reply);
	assert_int_equal(reply->id, id);
	error = reply->error;
	if (body_case)
		*body_case = reply->body_case;
	vmdedup__reply__free_unpacked(reply, NULL);
	net_parts_free(&parts);
	return error;
}

static void hostile_client(const char *endpoint)
{
	struct net_ctx *ctx = context(NULL, NULL);
	struct test_server *s = server_start(ctx, false, endpoint);
	void *raw = zmq_socket(ctx->zmq, ZMQ_DEALER);
	static uint8_t buf[PROTO_MAX_HEADER + 64];
	Vmdedup__Request stat_req = request(VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat);
	Vmdedup__Request empty = VMDEDUP__REQUEST__INIT;
	Vmdedup__Reply__BodyCase body_case;
	const int linger = 0, hwm = 100000;
	size_t len;

	zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof(linger));
	zmq_setsockopt(raw, ZMQ_SNDHWM, &hwm, sizeof(hwm));
	assert_int_equal(zmq_connect(raw, net_server_endpoint(s->net, 0)), 0);

	/* Before HELLO, and a HELLO from the far future or past */
	raw_send(raw, buf, pack_request(&stat_req, 1, 0, buf), 0, 0);
	assert_int_equal(raw_error(raw, 1, &body_case), ENOTCONN);
	assert_int_equal(body_case, VMDEDUP__REPLY__BODY_HELLO);
	raw_hello(raw, 2, PROTO_VERSION + 2);
	assert_int_equal(raw_error(raw, 2, NULL), EPROTONOSUPPORT);
	raw_hello(raw, 2, 0);
	assert_int_equal(raw_error(raw, 2, NULL), EPROTONOSUPPORT);
	raw_hello(raw, 2, UINT32_MAX);
	assert_int_equal(raw_error(raw, 2, NULL), EPROTONOSUPPORT);
	raw_send(raw, buf, pack_request(&stat_req, 3, 0, buf), 0, 0);
	assert_int_equal(raw_error(raw, 3, NULL), ENOTCONN);
	raw_hello(raw, 4, PROTO_VERSION + 1);
	assert_int_equal(raw_error(raw, 4, &body_case), 0);
	assert_int_equal(body_case, VMDEDUP__REPLY__BODY_HELLO);

	/* Frames that the header does not speak of, or the other way round */
	raw_send(raw, buf, pack_request(&stat_req, 5, 0, buf), 1, 10);
	assert_int_equal(raw_error(raw, 5, NULL), EPROTO);
	raw_send(raw, buf, pack_request(&stat_req, 6, 2, buf), 1, 10);
	assert_int_equal(raw_error(raw, 6, NULL), EPROTO);
	raw_send(raw, buf, pack_request(&stat_req, 7, UINT32_MAX, buf), 0, 0);
	assert_int_equal(raw_error(raw, 7, NULL), EPROTO);
	/* Too many, too large, too much */
	raw_send(raw, buf, pack_request(&stat_req, 8, PROTO_MAX_FRAMES + 1, buf), PROTO_MAX_FRAMES + 1,
		 1);
	assert_int_equal(raw_error(raw, 8, NULL), EMSGSIZE);
	raw_send(raw, buf, pack_request(&stat_req, 9, 5000, buf), 5000, 1);
	assert_int_equal(raw_error(raw, 9, NULL), EMSGSIZE);
	raw_send(raw, buf, pack_request(&stat_req, 10, 1, buf), 1, PROTO_MAX_FRAME + 1);
	assert_int_equal(raw_error(raw, 10, NULL), EMSGSIZE);
	raw_send(raw, buf, pack_request(&stat_req, 11, 65, buf), 65, 1 << 20);
	assert_int_equal(raw_error(raw, 11, NULL), EMSGSIZE);
	/* A header that is too large, cut off, repeats a field, or says nothing we know */
	len = pack_request(&stat_req, 12, 0, buf);
	memset(buf + len, 0, sizeof(buf) - len);
	raw_send(raw, buf, PROTO_MAX_HEADER + 1, 0, 0);
	assert_int_equal(raw_error(raw, 12, NULL), EMSGSIZE);
	raw_send(raw, buf, len - 1, 0, 0);
	assert_int_equal(raw_error(raw, 12, NULL), EPROTO);
	memcpy(buf + len, buf, len);
	raw_send(raw, buf, 2 * len, 0, 0);
	assert_int_equal(raw_error(raw, 12, NULL), EPROTO);
	raw_send(raw, buf, pack_request(&empty, 13, 0, buf), 0, 0);
	assert_int_equal(raw_error(raw, 13, NULL), EOPNOTSUPP);
	/* No id: nobody to answer */
	raw_send(raw, buf, 0, 0, 0);
	raw_send(raw, "\377\377\377\377", 4, 3, 5);
	raw_send(raw, buf, pack_request(&stat_req, 0, 0, buf), 0, 0);
	for (int i = 0; i < 2000; i++) {
		for (size_t b = 0; b < 200; b++)
			buf[b] = rand() >> 7;
		buf[0] |= 0x80; /* not field 1 */
		raw_send(raw, buf, rand() % 200, rand() % 3, rand() % 100);
	}

	/* Through all of it the server serves. */
	struct net_client *c = client(ctx, net_server_endpoint(s->net, 0), NULL);

	assert_int_equal(stat_call(c, WAIT_MS, NULL), 0);
	raw_send(raw, buf, pack_request(&stat_req, 14, 0, buf), 0, 0);
	while (raw_error(raw, 14, NULL))
		;
	net_client_free(c);
	zmq_close(raw);

	struct net_server_stats stats = server_stop(s);

	assert_int_equal(stats.requests, 2);
	assert_true(stats.dropped >= 2000);
	net_ctx_free(ctx);
	server_free(s);
}

static void test_hostile_client(void **state)
{
	hostile_client("tcp://127.0.0.1:*");
	hostile_client("inproc://victim");
}

/* The client's side: a raw ROUTER that forgets, repeats itself and talks nonsense. */
struct raw_server {
	void *socket;
	zmq_msg_t peer;
};

/* The next request's id and body; its sender is kept for raw_answer(). */
static Vmdedup__Request__BodyCase raw_next(struct raw_server *s, struct net_client *c, uint64_t *id)
{
	struct net_parts parts = { 0 };
	Vmdedup__Request__BodyCase body_case;
	Vmdedup__Request *req;
	int r;

	do {
		assert_int_equal(net_client_run(c, 1), 0);
		r = net_parts_recv(s->socket, 8, &parts);
	} while (r == -EAGAIN);
	assert_int_equal(r, 0);
	req = vmdedup__request__unpack(NULL, zmq_msg_size(&parts.msgs[1]),
				       zmq_msg_data(&parts.msgs[1]));
	assert_non_null(req);
	*id = req->id;
	body_case = req->body_case;
	vmdedup__request__free_unpacked(req, NULL);
	zmq_msg_copy(&s->peer, &parts.msgs[0]);
	net_parts_free(&parts);
	return body_case;
}

static void raw_answer_bytes(struct raw_server *s, const void *data, size_t len)
{
	zmq_msg_t peer;

	zmq_msg_init(&peer);
	zmq_msg_copy(&peer, &s->peer);
	assert_true(zmq_msg_send(&peer, s->socket, ZMQ_SNDMORE) >= 0);
	assert_int_equal(zmq_send(s->socket, data, len, 0), len);
}

static void raw_answer(struct raw_server *s, uint64_t id, int error, bool hello, uint32_t nr)
{
	Vmdedup__HelloReply body = VMDEDUP__HELLO_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint8_t buf[256];

	reply.id = id;
	reply.error = error;
	reply.payload_frames = nr;
	if (hello) {
		reply.body_case = VMDEDUP__REPLY__BODY_HELLO;
		reply.hello = &body;
	}
	raw_answer_bytes(s, buf, vmdedup__reply__pack(&reply, buf));
}

static void test_hostile_server(void **state)
{
	struct net_ctx *ctx = context(NULL, NULL);
	struct raw_server s = { .socket = zmq_socket(ctx->zmq, ZMQ_ROUTER) };
	struct net_client *c = client(ctx, "inproc://raw", NULL);
	Vmdedup__Request req = request(VMDEDUP__REQUEST__BODY_DATA_STAT, &data_stat);
	struct outcome o[4] = { 0 };
	uint8_t id_only[] = { 0x08, 0, 0xff, 0xff };
	uint64_t hello, id, again;

	zmq_msg_init(&s.peer);
	assert_int_equal(zmq_bind(s.socket, "inproc://raw"), 0);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, WAIT_MS, record, &o[0]), 0);
	assert_int_equal(raw_next(&s, c, &hello), VMDEDUP__REQUEST__BODY_HELLO);
	assert_int_equal(raw_next(&s, c, &id), VMDEDUP__REQUEST__BODY_DATA_STAT);
	raw_answer(&s, hello, 0, true, 0);

	/* It has forgotten us: HELLO, and the same request again. */
	raw_answer(&s, id, ENOTCONN, true, 0);
	assert_int_equal(raw_next(&s, c, &hello), VMDEDUP__REQUEST__BODY_HELLO);
	assert_int_equal(raw_next(&s, c, &again), VMDEDUP__REQUEST__BODY_DATA_STAT);
	assert_int_equal(again, id);
	raw_answer(&s, hello, 0, true, 0);

	/* Nonsense without an id is ignored; so are ids that nobody asked for. */
	raw_answer_bytes(&s, "", 0);
	raw_answer_bytes(&s, "nonsense", 8);
	raw_answer(&s, 0, 0, false, 0);
	raw_answer(&s, id + 1000, 0, false, 0);
	raw_answer(&s, id, 0, false, 0);
	raw_answer(&s, id, 0, false, 0); /* a second answer */
	while (!o[0].done)
		net_client_run(c, -1);
	assert_int_equal(o[0].r, 0);

	/* With a readable id it ends the call. */
	assert_int_equal(net_client_submit(c, &req, NULL, 0, WAIT_MS, record, &o[1]), 0);
	raw_next(&s, c, &id);
	assert_true(id < 128);
	id_only[1] = id;
	raw_answer_bytes(&s, id_only, sizeof(id_only));
	while (!o[1].done)
		net_client_run(c, -1);
	assert_int_equal(o[1].r, -EPROTO);
	/* Payload that is announced and not there */
	assert_int_equal(net_client_submit(c, &req, NULL, 0, WAIT_MS, record, &o[2]), 0);
	raw_next(&s, c, &id);
	raw_answer(&s, id, 0, false, 3);
	while (!o[2].done)
		net_client_run(c, -1);
	assert_int_equal(o[2].r, -EPROTO);
	assert_int_equal(o[0].done, 1);
	net_client_free(c);

	/* A HELLO that is refused fails what waits, and says why. */
	c = client(ctx, "inproc://raw", NULL);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, WAIT_MS, record, &o[3]), 0);
	raw_next(&s, c, &hello);
	raw_next(&s, c, &id);
	raw_answer(&s, hello, EPROTONOSUPPORT, false, 0);
	raw_answer(&s, id, ENOTCONN, true, 0);
	while (!o[3].done)
		net_client_run(c, -1);
	assert_int_equal(o[3].r, -EPROTO);
	net_client_free(c);

	zmq_msg_close(&s.peer);
	zmq_close(s.socket);
	net_ctx_free(ctx);
}

/* The table of peers is bounded; the one that was silent for longest goes. */
static void test_peer_table(void **state)
{
	struct peer_table t;
	struct peer *first;

	peer_table_init(&t);
	for (uint32_t i = 0; i < NET_MAX_PEERS + 1; i++) {
		struct peer *p = peer_new(i % 3, &i, sizeof(i));

		assert_non_null(p);
		peer_add(&t, p);
		peer_put(p);
		/* Number 0 speaks now and then. */
		if (i % 1000 == 0)
			assert_non_null(peer_find(&t, 0, &(uint32_t){ 0 }, 4));
	}
	assert_int_equal(t.nr, NET_MAX_PEERS);
	first = peer_find(&t, 0, &(uint32_t){ 0 }, 4);
	assert_non_null(first);
	assert_null(peer_find(&t, 1, &(uint32_t){ 0 }, 4));
	assert_null(peer_find(&t, 0, &(uint32_t){ 0 }, 3));
	assert_null(peer_find(&t, 1, &(uint32_t){ 1 }, 4));
	peer_get(first);
	peer_table_free(&t);
	assert_int_equal(t.nr, 0);
	peer_put(first);
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
		cmocka_unit_test(test_curve),
		cmocka_unit_test(test_curve_restart),
		cmocka_unit_test(test_bad_keys),
		cmocka_unit_test(test_endpoints),
		cmocka_unit_test(test_hostile_client),
		cmocka_unit_test(test_hostile_server),
		cmocka_unit_test(test_peer_table),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
