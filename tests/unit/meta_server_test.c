// SPDX-License-Identifier: GPL-2.0-or-later
/* The meta server over real sockets: many clients at once, connections that go, restarts. */
#include "meta/server.h"
#include "base/clock.h"
#include "base/uuid.h"
#include "net/net.h"
#include "pg_cluster.h"

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
#define ENDPOINT_2 "inproc://meta-under-test-2"
#define TIMEOUT_MS 20000

static const char *pg_uri; /* NULL: SQLite */

static void use(const char *uri)
{
	pg_uri = uri;
}

struct rig {
	char dir[64], path[256];
	struct net_ctx *net;
	struct running {
		struct meta_server *s;
		pthread_t thread;
	} first, second;
};

static void *serve(void *arg)
{
	struct error err = { 0 };

	if (meta_server_run(arg, &err))
		fprintf(stderr, "serve: %s\n", err.text);
	return NULL;
}

static void start(struct rig *rig, struct running *run, const char *endpoint)
{
	struct error err = { 0 };

	run->s = meta_server_open(rig->net, rig->path, &err);
	if (!run->s || meta_server_bind(run->s, endpoint, &err))
		fail_msg("start: %s", err.text);
	assert_int_equal(pthread_create(&run->thread, NULL, serve, run->s), 0);
}

static void stop(struct running *run)
{
	meta_server_stop(run->s);
	pthread_join(run->thread, NULL);
	meta_server_close(run->s);
}

static int setup(void **state)
{
	struct meta_init init = { .name = "test", .block_shift = 18, .replicas = 1,
				  .min_copies = 1 };
	struct rig *rig = calloc(1, sizeof(*rig));
	struct error err = { 0 };

	strcpy(rig->dir, "/tmp/vmdedup-meta.XXXXXX");
	assert_non_null(mkdtemp(rig->dir));
	if (pg_uri)
		pg_schema(pg_uri, rig->path, sizeof(rig->path));
	else
		snprintf(rig->path, sizeof(rig->path), "%s/meta.sqlite", rig->dir);
	if (meta_store_init(rig->path, &init, &err))
		fail_msg("init: %s", err.text);
	rig->net = net_ctx_new(NULL, NULL, &err);
	assert_non_null(rig->net);
	start(rig, &rig->first, ENDPOINT);
	*state = rig;
	return 0;
}

static int teardown(void **state)
{
	static const char *const suffix[] = { "", "-wal", "-shm", "-lock" };
	struct rig *rig = *state;
	char path[300];
	size_t i;

	stop(&rig->first);
	net_ctx_free(rig->net);
	for (i = 0; !pg_uri && i < sizeof(suffix) / sizeof(suffix[0]); i++) {
		snprintf(path, sizeof(path), "%s%s", rig->path, suffix[i]);
		unlink(path);
	}
	rmdir(rig->dir);
	free(rig);
	return 0;
}

static struct net_client *client_of(struct rig *rig, const char *endpoint)
{
	struct error err = { 0 };
	struct net_client *c = net_client_new(rig->net, endpoint, NULL, "cli", &err);

	if (!c)
		fail_msg("client: %s", err.text);
	return c;
}

static struct net_client *client(struct rig *rig)
{
	return client_of(rig, ENDPOINT);
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
			stop(&rig->first);
			start(rig, &rig->first, ENDPOINT);
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

/* ---- several servers on one PostgreSQL ---- */

struct answer {
	bool there;
	int error;
	uint8_t uuid[16];
};

static void answered(void *arg, int r, struct net_reply *reply)
{
	struct answer *a = arg;

	a->there = true;
	a->error = r ? r : reply->header->error;
	if (!a->error)
		memcpy(a->uuid, reply->header->image->uuid.data, 16);
	if (!r)
		net_reply_free(reply);
}

/* Each mutation goes to both servers at the same time: it is done once, and both say the same. */
static void *work_twice(void *arg)
{
	struct worker *w = arg;
	struct net_client *c[2] = { client(w->rig), client_of(w->rig, ENDPOINT_2) };
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Mutation mut = VMDEDUP__MUTATION__INIT;
	Vmdedup__ImageClone clone = VMDEDUP__IMAGE_CLONE__INIT;
	struct answer a[2];
	char name[24];
	int i, k;

	mut.session = open_session(c[0]);
	req.mutation = &mut;
	clone.source = "base";
	clone.name = name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_CLONE;
	req.image_clone = &clone;
	for (i = 0; i < NR_CLONES; i++) {
		snprintf(name, sizeof(name), "w%d-%d", w->n, i);
		mut.sequence++;
		memset(a, 0, sizeof(a));
		for (k = 0; k < 2; k++)
			if (net_client_submit(c[k], &req, NULL, 0, TIMEOUT_MS, answered, &a[k]))
				return NULL;
		for (k = 0; k < 2; k++)
			while (!a[k].there)
				net_client_run(c[k], 1000);
		w->done += !a[0].error && !a[1].error && !memcmp(a[0].uuid, a[1].uuid, 16);
		if (a[0].error || a[1].error)
			print_message("%s: %d and %d\n", name, a[0].error, a[1].error);
	}
	net_client_free(c[0]);
	net_client_free(c[1]);
	return NULL;
}

static void test_two_servers(void **state)
{
	struct rig *rig = *state;
	uint64_t session, sequence = 0;
	struct worker workers[NR_WORKERS];
	struct net_client *c;
	int i;

	start(rig, &rig->second, ENDPOINT_2);
	c = client(rig);
	session = open_session(c);
	assert_int_equal(make_zero_image(c, session, &sequence, "base"), 0);
	for (i = 0; i < NR_WORKERS; i++) {
		workers[i] = (struct worker){ .rig = rig, .n = i };
		assert_int_equal(pthread_create(&workers[i].thread, NULL, work_twice, &workers[i]),
				 0);
	}
	for (i = 0; i < NR_WORKERS; i++) {
		pthread_join(workers[i].thread, NULL);
		assert_int_equal(workers[i].done, NR_CLONES);
	}
	assert_int_equal(count_images(c), NR_WORKERS * NR_CLONES + 1);
	net_client_free(c);
	stop(&rig->second);
}

static int run(const char *name)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest one[] = {
		T(test_retry_over_connections), T(test_many_clients), T(test_second_server),
	};
	const struct CMUnitTest many[] = {
		T(test_retry_over_connections), T(test_many_clients), T(test_two_servers),
	};

	return pg_uri ? cmocka_run_group_tests_name(name, many, NULL, NULL) :
			cmocka_run_group_tests_name(name, one, NULL, NULL);
}

int main(void)
{
	return pg_run_both(run, use);
}
