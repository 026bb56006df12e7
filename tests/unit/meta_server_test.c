// SPDX-License-Identifier: GPL-2.0-or-later
/* The meta server over real sockets: many clients at once, connections that go, restarts. */
#include "meta/server.h"
#include "base/clock.h"
#include "base/uuid.h"
#include "net/net.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define ENDPOINT   "inproc://meta-under-test"
#define TIMEOUT_MS 20000

struct rig {
	char dir[64], path[96];
	struct net_ctx *net;
	struct meta_server *s;
	pthread_t thread;
};

static void *serve(void *arg)
{
	struct error err = { 0 };

	if (meta_server_run(((struct rig *)arg)->s, &err))
		fprintf(stderr, "serve: %s\n", err.text);
	return NULL;
}

static void start(struct rig *rig)
{
	struct error err = { 0 };

	rig->s = meta_server_open(rig->net, rig->path, &err);
	if (!rig->s || meta_server_bind(rig->s, ENDPOINT, &err))
		fail_msg("start: %s", err.text);
	assert_int_equal(pthread_create(&rig->thread, NULL, serve, rig), 0);
}

static void stop(struct rig *rig)
{
	meta_server_stop(rig->s);
	pthread_join(rig->thread, NULL);
	meta_server_close(rig->s);
}

static int setup(void **state)
{
	struct meta_init init = { .name = "test", .block_shift = 18, .replicas = 1,
				  .min_copies = 1 };
	struct rig *rig = calloc(1, sizeof(*rig));
	struct error err = { 0 };

	strcpy(rig->dir, "/tmp/vmdedup-meta.XXXXXX");
	assert_non_null(mkdtemp(rig->dir));
	snprintf(rig->path, sizeof(rig->path), "%s/meta.sqlite", rig->dir);
	if (meta_store_init(rig->path, &init, &err))
		fail_msg("init: %s", err.text);
	rig->net = net_ctx_new(NULL, NULL, &err);
	assert_non_null(rig->net);
	start(rig);
	*state = rig;
	return 0;
}

static int teardown(void **state)
{
	static const char *const suffix[] = { "", "-wal", "-shm", "-lock" };
	struct rig *rig = *state;
	char path[128];
	size_t i;

	stop(rig);
	net_ctx_free(rig->net);
	for (i = 0; i < sizeof(suffix) / sizeof(suffix[0]); i++) {
		snprintf(path, sizeof(path), "%s%s", rig->path, suffix[i]);
		unlink(path);
	}
	rmdir(rig->dir);
	free(rig);
	return 0;
}

static struct net_client *client(struct rig *rig)
{
	struct error err = { 0 };
	struct net_client *c = net_client_new(rig->net, ENDPOINT, NULL, "cli", &err);

	if (!c)
		fail_msg("client: %s", err.text);
	return c;
}

static int call(struct net_client *c, Vmdedup__Request *req, struct net_reply *reply)
{
	struct error err = { 0 };

	return net_call(c, req, NULL, 0, TIMEOUT_MS, reply, &err);
}

static uint64_t open_session(struct net_client *c)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__SessionOpen open = VMDEDUP__SESSION_OPEN__INIT;
	struct net_reply reply;
	struct uuid nonce;
	uint64_t session;

	uuid_generate(&nonce);
	open.nonce = (ProtobufCBinaryData){ 16, nonce.b };
	req.body_case = VMDEDUP__REQUEST__BODY_SESSION_OPEN;
	req.session_open = &open;
	assert_int_equal(call(c, &req, &reply), 0);
	session = reply.header->session_open->session;
	net_reply_free(&reply);
	return session;
}

/* An image of zeros: two mutations. Returns the commit's error. */
static int make_zero_image(struct net_client *c, uint64_t session, uint64_t *sequence,
			   const char *name)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Mutation mut = VMDEDUP__MUTATION__INIT;
	Vmdedup__PushBegin begin = VMDEDUP__PUSH_BEGIN__INIT;
	Vmdedup__PushCommit commit = VMDEDUP__PUSH_COMMIT__INIT;
	uint8_t zero[32] = { 0 };
	struct net_reply reply;
	int r;

	mut.session = session;
	mut.sequence = ++*sequence;
	req.mutation = &mut;
	begin.name = (char *)name;
	begin.size = 1 << 30;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_BEGIN;
	req.push_begin = &begin;
	r = call(c, &req, &reply);
	if (!r)
		commit.push = reply.header->push_begin->push;
	net_reply_free(&reply);
	if (r)
		return r;
	commit.root = (ProtobufCBinaryData){ 32, zero };
	mut.sequence = ++*sequence;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_COMMIT;
	req.push_commit = &commit;
	r = call(c, &req, &reply);
	net_reply_free(&reply);
	return r;
}

static int clone_base(struct net_client *c, uint64_t session, uint64_t sequence, const char *name,
		      uint8_t uuid[16])
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Mutation mut = VMDEDUP__MUTATION__INIT;
	Vmdedup__ImageClone clone = VMDEDUP__IMAGE_CLONE__INIT;
	struct net_reply reply;
	int r;

	mut.session = session;
	mut.sequence = sequence;
	req.mutation = &mut;
	clone.source = "base";
	clone.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_CLONE;
	req.image_clone = &clone;
	r = call(c, &req, &reply);
	if (!r)
		memcpy(uuid, reply.header->image->uuid.data, 16);
	net_reply_free(&reply);
	return r;
}

static uint64_t count_images(struct net_client *c)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterInfo info = VMDEDUP__CLUSTER_INFO__INIT;
	struct net_reply reply;
	uint64_t n;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &info;
	assert_int_equal(call(c, &req, &reply), 0);
	n = reply.header->cluster_info->images;
	net_reply_free(&reply);
	return n;
}

/* The answer is lost with its connection, or with the server: the same mutation again, on
 * another connection, gets the first result, and is done once. */
static void test_retry_over_connections(void **state)
{
	struct rig *rig = *state;
	struct net_client *c = client(rig);
	uint64_t session = open_session(c), sequence = 0;
	uint8_t first[16], again[16];
	char name[16];
	int i;

	assert_int_equal(make_zero_image(c, session, &sequence, "base"), 0);
	for (i = 0; i < 10; i++) {
		snprintf(name, sizeof(name), "c%d", i);
		sequence++;
		assert_int_equal(clone_base(c, session, sequence, name, first), 0);
		net_client_free(c);
		if (i % 3 == 0) {
			stop(rig);
			start(rig);
		}
		c = client(rig);
		assert_int_equal(clone_base(c, session, sequence, name, again), 0);
		assert_memory_equal(first, again, 16);
	}
	assert_int_equal(count_images(c), 11);
	net_client_free(c);
}

struct worker {
	struct rig *rig;
	int n, done;
	pthread_t thread;
};

#define NR_WORKERS 8
#define NR_CLONES  40

static void *work(void *arg)
{
	struct worker *w = arg;
	struct net_client *c = client(w->rig);
	uint64_t session = open_session(c);
	uint8_t uuid[16];
	char name[24];
	int i;

	for (i = 0; i < NR_CLONES; i++) {
		snprintf(name, sizeof(name), "w%d-%d", w->n, i);
		w->done += !clone_base(c, session, (uint64_t)i + 1, name, uuid);
	}
	net_client_free(c);
	return NULL;
}

static void test_many_clients(void **state)
{
	struct rig *rig = *state;
	struct net_client *c = client(rig);
	uint64_t session = open_session(c), sequence = 0, start_ns;
	struct worker workers[NR_WORKERS];
	double s;
	int i;

	assert_int_equal(make_zero_image(c, session, &sequence, "base"), 0);
	start_ns = clock_mono_ns();
	for (i = 0; i < NR_WORKERS; i++) {
		workers[i] = (struct worker){ .rig = rig, .n = i };
		assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
	}
	for (i = 0; i < NR_WORKERS; i++) {
		pthread_join(workers[i].thread, NULL);
		assert_int_equal(workers[i].done, NR_CLONES);
	}
	s = (double)(clock_mono_ns() - start_ns) / 1e9;
	print_message("%d clones by %d clients: %.0f a second\n", NR_WORKERS * NR_CLONES,
		      NR_WORKERS, NR_WORKERS * NR_CLONES / s);
	assert_int_equal(count_images(c), NR_WORKERS * NR_CLONES + 1);
	net_client_free(c);
}

static void test_second_server(void **state)
{
	struct rig *rig = *state;
	struct error err = { 0 };

	assert_null(meta_server_open(rig->net, rig->path, &err));
	assert_int_equal(err.code, -EBUSY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_retry_over_connections, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_clients, setup, teardown),
		cmocka_unit_test_setup_teardown(test_second_server, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
