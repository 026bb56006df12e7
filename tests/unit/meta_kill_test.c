// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The meta server as a process of its own, killed at random moments while clients wait for
 * answers. Every mutation is repeated until it is answered: each must have been done exactly once,
 * with the result that the first answer, if there was one, would have had; and the counts must
 * agree.
 */
#include "base/clock.h"
#include "base/uuid.h"
#include "meta/server.h"
#include "net/net.h"
#include "pg_cluster.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define NR_OPS 120

static const char *pg_uri; /* NULL: SQLite */

static void use(const char *uri)
{
	pg_uri = uri;
}

struct rig {
	char dir[80], path[256], endpoint[128];
	struct net_ctx *net;
	struct net_client *c;
	pid_t server;
	uint64_t session, sequence;
	unsigned int kills, retries;
};

/* In the child: `meta_kill_test serve STORE ENDPOINT`. */
static int serve(const char *store, const char *endpoint)
{
	struct error err = { 0 };
	struct net_ctx *net = net_ctx_new(NULL, NULL, &err);
	struct meta_server *s = net ? meta_server_open(net, store, &err) : NULL;

	if (!s || meta_server_bind(s, endpoint, &err) || meta_server_run(s, &err)) {
		fprintf(stderr, "serve: %s\n", err.text);
		return 1;
	}
	return 0;
}

static void start(struct rig *rig)
{
	rig->server = fork();
	assert_true(rig->server >= 0);
	if (!rig->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl("/proc/self/exe", "meta_kill_test", "serve", rig->path, rig->endpoint, NULL);
		_exit(127);
	}
}

static void kill_server(struct rig *rig)
{
	int status;

	kill(rig->server, SIGKILL);
	assert_int_equal(waitpid(rig->server, &status, 0), rig->server);
	assert_true(WIFSIGNALED(status));
	rig->kills++;
}

static void connect_client(struct rig *rig)
{
	struct error err = { 0 };

	rig->c = net_client_new(rig->net, rig->endpoint, NULL, "cli", &err);
	assert_non_null(rig->c);
}

struct answer {
	bool there;
	int r;
	struct net_reply reply;
};

static void answered(void *arg, int r, struct net_reply *reply)
{
	struct answer *a = arg;

	a->there = true;
	a->r = r;
	if (reply)
		a->reply = *reply;
}

/* Sends, and perhaps kills the server a moment later; repeats on a new connection until there is
 * an answer. The caller frees it. */
static void insist(struct rig *rig, Vmdedup__Request *req, const struct net_frame *frames, size_t n,
		   struct net_reply *reply)
{
	struct answer a;
	uint64_t until;

	for (;;) {
		bool deadly = rand() % 3 == 0;

		a = (struct answer){ 0 };
		assert_int_equal(net_client_submit(rig->c, req, frames, n, 60000, answered, &a), 0);
		until = clock_mono_ns() + (uint64_t)(rand() % 4000) * 1000;
		while (!a.there && (!deadly || clock_mono_ns() < until))
			net_client_run(rig->c, deadly ? 1 : 200);
		if (deadly) {
			kill_server(rig);
			start(rig);
		}
		if (a.there && !a.r) {
			*reply = a.reply;
			/* Now and then the answer is lost after it has come. */
			if (!req->mutation || rand() % 4)
				return;
			net_reply_free(reply);
		}
		rig->retries++;
		net_client_free(rig->c);
		connect_client(rig);
	}
}

static void mutate(struct rig *rig, Vmdedup__Request *req, const struct net_frame *frames, size_t n,
		   struct net_reply *reply)
{
	Vmdedup__Mutation mut = VMDEDUP__MUTATION__INIT;

	mut.session = rig->session;
	mut.sequence = ++rig->sequence;
	req->mutation = &mut;
	insist(rig, req, frames, n, reply);
	req->mutation = NULL;
}

static void open_session(struct rig *rig)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__SessionOpen open = VMDEDUP__SESSION_OPEN__INIT;
	struct net_reply reply;
	struct uuid nonce;

	assert_int_equal(uuid_generate(&nonce), 0);
	open.nonce = (ProtobufCBinaryData){ 16, nonce.b };
	req.body_case = VMDEDUP__REQUEST__BODY_SESSION_OPEN;
	req.session_open = &open;
	insist(rig, &req, NULL, 0, &reply);
	assert_int_equal(reply.header->error, 0);
	rig->session = reply.header->session_open->session;
	net_reply_free(&reply);
}

/* An image of zeros: no data server is needed. */
static void import_zeros(struct rig *rig, const char *name)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PushBegin begin = VMDEDUP__PUSH_BEGIN__INIT;
	Vmdedup__PushCommit commit = VMDEDUP__PUSH_COMMIT__INIT;
	uint8_t root[32] = { 0 };
	struct net_reply reply;

	begin.name = (char *)name;
	begin.size = 1 << 30;
	begin.make_version = true;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_BEGIN;
	req.push_begin = &begin;
	mutate(rig, &req, NULL, 0, &reply);
	assert_int_equal(reply.header->error, 0);
	commit.push = reply.header->push_begin->push;
	net_reply_free(&reply);
	commit.root = (ProtobufCBinaryData){ 32, root };
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_COMMIT;
	req.push_commit = &commit;
	mutate(rig, &req, NULL, 0, &reply);
	assert_int_equal(reply.header->error, 0);
	net_reply_free(&reply);
}

static void clone_image(struct rig *rig, const char *name, int want)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageClone clone_req = VMDEDUP__IMAGE_CLONE__INIT;
	struct net_reply reply;

	clone_req.source = "base";
	clone_req.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_CLONE;
	req.image_clone = &clone_req;
	mutate(rig, &req, NULL, 0, &reply);
	assert_int_equal(reply.header->error, want);
	net_reply_free(&reply);
}

static void remove_image(struct rig *rig, const char *name, int want)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	struct net_reply reply;

	rm.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	mutate(rig, &req, NULL, 0, &reply);
	assert_int_equal(reply.header->error, want);
	net_reply_free(&reply);
}

/* Done once: the version's number goes up by one each time. */
static void snapshot(struct rig *rig, uint64_t want)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Snapshot snap = VMDEDUP__SNAPSHOT__INIT;
	struct net_reply reply;

	snap.name = "base";
	req.body_case = VMDEDUP__REQUEST__BODY_SNAPSHOT;
	req.snapshot = &snap;
	mutate(rig, &req, NULL, 0, &reply);
	assert_int_equal(reply.header->error, 0);
	assert_int_equal(reply.header->image->version, want);
	net_reply_free(&reply);
}

static uint64_t count_images(struct rig *rig)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterInfo info = VMDEDUP__CLUSTER_INFO__INIT;
	struct net_reply reply;
	uint64_t n;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &info;
	insist(rig, &req, NULL, 0, &reply);
	n = reply.header->cluster_info->images;
	net_reply_free(&reply);
	return n;
}

static void check_counts(struct rig *rig)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__CheckStep step = VMDEDUP__CHECK_STEP__INIT;
	uint8_t cursor[64];
	struct net_reply reply;
	struct error err;

	req.body_case = VMDEDUP__REQUEST__BODY_CHECK_STEP;
	req.check_step = &step;
	do {
		assert_int_equal(net_call(rig->c, &req, NULL, 0, 60000, &reply, &err), 0);
		assert_int_equal(reply.header->check_step->n_problems, 0);
		step.cursor.len = reply.header->check_step->cursor.len;
		assert_true(step.cursor.len <= sizeof(cursor));
		if (step.cursor.len)
			memcpy(cursor, reply.header->check_step->cursor.data, step.cursor.len);
		step.cursor.data = cursor;
		net_reply_free(&reply);
	} while (step.cursor.len);
}

static void test_killed(void **state)
{
	struct meta_init init = { .name = "test", .block_shift = 18, .replicas = 1,
				  .min_copies = 1 };
	const char *seed_text = getenv("VMDEDUP_SEED");
	unsigned int seed = seed_text ? (unsigned int)strtoul(seed_text, NULL, 0) :
					(unsigned int)time(NULL);
	static const char *const files[] = { "meta.sqlite", "meta.sqlite-wal", "meta.sqlite-shm",
					     "meta.sqlite-lock", "sock" };
	struct rig rig = { 0 };
	struct error err = { 0 };
	bool exists[10] = { false };
	char name[160];
	uint64_t images = 1, versions = 1;
	int i, k, status;

	srand(seed);
	snprintf(rig.dir, sizeof(rig.dir), "%.50s/vmdedup-kill.XXXXXX",
		 getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	assert_non_null(mkdtemp(rig.dir));
	if (pg_uri)
		pg_schema(pg_uri, rig.path, sizeof(rig.path));
	else
		snprintf(rig.path, sizeof(rig.path), "%s/meta.sqlite", rig.dir);
	snprintf(rig.endpoint, sizeof(rig.endpoint), "ipc://%s/sock", rig.dir);
	if (meta_store_init(rig.path, &init, &err))
		fail_msg("init: %s", err.text);
	start(&rig);
	rig.net = net_ctx_new(NULL, NULL, &err);
	assert_non_null(rig.net);
	connect_client(&rig);
	open_session(&rig);
	import_zeros(&rig, "base");
	for (i = 0; i < NR_OPS; i++) {
		k = rand() % 10;
		snprintf(name, sizeof(name), "c%d", k);
		switch (rand() % 3) {
		case 0:
			clone_image(&rig, name, exists[k] ? EEXIST : 0);
			images += !exists[k];
			exists[k] = true;
			break;
		case 1:
			remove_image(&rig, name, exists[k] ? 0 : ENOENT);
			images -= exists[k];
			exists[k] = false;
			break;
		case 2:
			snapshot(&rig, ++versions);
			break;
		}
	}
	assert_int_equal(count_images(&rig), images);
	check_counts(&rig);
	print_message("VMDEDUP_SEED=%u: %d mutations, %u kills, %u retries\n", seed, NR_OPS,
		      rig.kills, rig.retries);
	assert_true(rig.kills > 5);
	net_client_free(rig.c);
	net_ctx_free(rig.net);
	kill(rig.server, SIGKILL);
	waitpid(rig.server, &status, 0);
	for (i = pg_uri ? 4 : 0; i < 5; i++) {
		snprintf(name, sizeof(name), "%s/%s", rig.dir, files[i]);
		unlink(name);
	}
	rmdir(rig.dir);
}

static int run(const char *name)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_killed) };

	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve"))
		return serve(argv[2], argv[3]);
	return pg_run_both(run, use);
}
