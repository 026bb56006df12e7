// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PUT and GET of unique 256 KiB blocks at a data server with its meta server, over loopback TCP,
 * beside the same messages to a server that throws away and makes up (an echo).
 *
 *   data [MIB [WINDOW [DIR]]]    MiB of blocks (1024), requests of 16 blocks in flight (8),
 *                                where the disk is (/var/tmp)
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fingerprint.h"
#include "data/server.h"
#include "meta/server.h"
#include "net/net.h"

#define BLOCK	  (256 << 10)
#define A_REQUEST 16
#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                    \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static uint8_t *blocks;
static struct fp *fps;
static size_t nr_blocks;
static uint32_t domain;

struct run {
	struct net_client *client;
	bool put;
	size_t next, bytes;
};

/* ---- the echo ---- */

static void keep(void *data, void *hint)
{
}

static void echo(void *ctx, struct net_request *req)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__GetReply get = VMDEDUP__GET_REPLY__INIT;
	Vmdedup__PutReply put = VMDEDUP__PUT_REPLY__INIT;
	struct net_frame frames[A_REQUEST];
	size_t n = 0;

	if (net_request_header(req)->body_case == VMDEDUP__REQUEST__BODY_GET) {
		for (; n < A_REQUEST; n++)
			frames[n] = (struct net_frame){ blocks + n * BLOCK, BLOCK, keep, NULL };
		reply.body_case = VMDEDUP__REPLY__BODY_GET;
		reply.get = &get;
	} else {
		reply.body_case = VMDEDUP__REPLY__BODY_PUT;
		reply.put = &put;
	}
	net_reply_send(req, &reply, frames, n);
}

static const struct net_server_ops echo_ops = { .handle = echo };

static void *run_net(void *arg)
{
	CHECK(!net_server_run(arg, NULL));
	return NULL;
}
static void *run_meta(void *arg)
{
	CHECK(!meta_server_run(arg, NULL));
	return NULL;
}
static void *run_data(void *arg)
{
	CHECK(!data_server_run(arg, NULL));
	return NULL;
}

/* ---- the client ---- */

static void done(void *arg, int r, struct net_reply *reply)
{
	struct run *run = arg;

	CHECK(!r);
	if (reply->header->error) {
		fprintf(stderr, "%s\n", reply->header->error_text);
		exit(1);
	}
	for (size_t i = 0; run->put && i < reply->header->put->n_errors; i++)
		CHECK(!reply->header->put->errors[i]);
	if (!run->put) {
		CHECK(reply->nr_frames == A_REQUEST);
		for (size_t i = 0; i < reply->nr_frames; i++)
			run->bytes += reply->frames[i].len;
	} else {
		run->bytes += A_REQUEST * BLOCK;
	}
	net_reply_free(reply);
}

static void submit(struct run *run)
{
	Vmdedup__BlockHead heads[A_REQUEST], *pointers[A_REQUEST];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_frame frames[A_REQUEST];
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__Get get = VMDEDUP__GET__INIT;

	for (size_t i = 0; i < A_REQUEST; i++) {
		vmdedup__block_head__init(&heads[i]);
		heads[i].fingerprint = (ProtobufCBinaryData){ FP_SIZE, fps[run->next + i].b };
		heads[i].raw_size = BLOCK;
		heads[i].incompressible = true;
		pointers[i] = &heads[i];
		frames[i] = (struct net_frame){ blocks + (run->next + i) * BLOCK, BLOCK, keep, NULL };
	}
	put.map_version = 1000000;
	put.domain = domain;
	put.n_blocks = A_REQUEST;
	put.blocks = pointers;
	get.domain = domain;
	get.fingerprints = (ProtobufCBinaryData){ A_REQUEST * FP_SIZE, fps[run->next].b };
	req.body_case = run->put ? VMDEDUP__REQUEST__BODY_PUT : VMDEDUP__REQUEST__BODY_GET;
	if (run->put)
		req.put = &put;
	else
		req.get = &get;
	CHECK(!net_client_submit(run->client, &req, frames, run->put ? A_REQUEST : 0, 60000, done,
				 run));
	run->next += A_REQUEST;
}

static double measure(struct net_client *client, bool put, size_t window)
{
	struct run run = { .client = client, .put = put };
	uint64_t start = clock_mono_ns();

	while (run.next < nr_blocks || net_client_pending(client)) {
		while (run.next < nr_blocks && net_client_pending(client) < window)
			submit(&run);
		CHECK(!net_client_run(client, -1));
	}
	CHECK(run.bytes == nr_blocks * BLOCK);
	return (double)run.bytes / (double)(clock_mono_ns() - start) * 1000;
}

static uint32_t domain_of(struct net_client *meta)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterInfo info = VMDEDUP__CLUSTER_INFO__INIT;
	struct net_reply reply;
	uint32_t id;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &info;
	CHECK(!net_call(meta, &req, NULL, 0, 5000, &reply, NULL));
	id = reply.header->cluster_info->domains[0]->id;
	net_reply_free(&reply);
	return id;
}

static void wait_until_joined(struct net_client *c)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	struct net_reply reply;
	int r;

	touch.map_version = 1000000;
	touch.domain = domain;
	touch.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fps[0].b };
	req.body_case = VMDEDUP__REQUEST__BODY_TOUCH;
	req.touch = &touch;
	do {
		r = net_call(c, &req, NULL, 0, 5000, &reply, NULL);
		net_reply_free(&reply);
		usleep(20000);
	} while (r == -EAGAIN);
	CHECK(!r);
}

int main(int argc, char **argv)
{
	size_t window = argc > 2 ? (size_t)atoi(argv[2]) : 8;
	struct meta_init init = { .name = "bench", .block_shift = 18, .replicas = 1, .min_copies = 1 };
	struct data_options o = { .meta = "inproc://meta", .host = "here" };
	char dir[256], meta_path[300], data_path[300], cmd[400];
	struct net_ctx *net = net_ctx_new(NULL, NULL, NULL);
	struct error err = { 0 };
	struct fp_hasher *h = fp_hasher_new(FP_SHA256, NULL, 0);
	struct net_server *echo_server;
	struct net_client *c, *e;
	struct meta_server *meta;
	struct data_server *data;
	pthread_t threads[3];
	double put, get, eput, eget;

	nr_blocks = (argc > 1 ? (size_t)atoi(argv[1]) : 1024) * 4 / A_REQUEST * A_REQUEST;
	snprintf(dir, sizeof(dir), "%s/vmdedup-bench-XXXXXX", argc > 3 ? argv[3] : "/var/tmp");
	CHECK(nr_blocks && window && net && h && mkdtemp(dir));
	snprintf(meta_path, sizeof(meta_path), "%s/meta.sqlite", dir);
	snprintf(data_path, sizeof(data_path), "%s/data", dir);
	blocks = malloc(nr_blocks * BLOCK);
	fps = calloc(nr_blocks, sizeof(*fps));
	CHECK(blocks && fps);
	for (size_t i = 0; i < nr_blocks; i++) {
		for (size_t at = 0; at < BLOCK; at += 4096)
			CHECK(getrandom(blocks + i * BLOCK + at, 4096, 0) == 4096);
		fp_hash(h, blocks + i * BLOCK, BLOCK, &fps[i]);
	}

	CHECK(!meta_store_init(meta_path, &init, &err));
	meta = meta_server_open(net, meta_path, &err);
	CHECK(meta && !meta_server_bind(meta, "inproc://meta", &err));
	pthread_create(&threads[0], NULL, run_meta, meta);
	e = net_client_new(net, "inproc://meta", NULL, "cli", &err);
	CHECK(e);
	domain = domain_of(e);
	net_client_free(e);
	o.dir = data_path;
	o.endpoint = "tcp://127.0.0.1:17402";
	data = data_server_open(net, &o, &err);
	CHECK(data && !data_server_bind(data, o.endpoint, &err));
	pthread_create(&threads[1], NULL, run_data, data);
	echo_server = net_server_new(net, "data", NULL, &echo_ops, NULL, 0, &err);
	CHECK(echo_server && !net_server_bind(echo_server, "tcp://127.0.0.1:17403", &err));
	pthread_create(&threads[2], NULL, run_net, echo_server);
	c = net_client_new(net, o.endpoint, NULL, "cli", &err);
	e = net_client_new(net, "tcp://127.0.0.1:17403", NULL, "cli", &err);
	CHECK(c && e);
	wait_until_joined(c);

	eput = measure(e, true, window);
	eget = measure(e, false, window);
	put = measure(c, true, window);
	get = measure(c, false, window);
	printf("%zu MiB of 256 KiB blocks, %d a request, %zu in flight, MB/s:\n", nr_blocks / 4,
	       A_REQUEST, window);
	printf("  PUT  %7.0f   echo %7.0f   %.2f\n", put, eput, put / eput);
	printf("  GET  %7.0f   echo %7.0f   %.2f\n", get, eget, get / eget);
	printf("  PUT of blocks that are there  %7.0f\n", measure(c, true, window));

	net_client_free(c);
	net_client_free(e);
	net_server_stop(echo_server);
	data_server_stop(data);
	meta_server_stop(meta);
	for (size_t i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	net_server_free(echo_server);
	data_server_close(data);
	meta_server_close(meta);
	net_ctx_free(net);
	fp_hasher_free(h);
	free(blocks);
	free(fps);
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	return system(cmd) ? 1 : 0;
}
