// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Blocks of 256 KiB from a server to a client, as a GET brings them: over inproc, ipc, tcp and
 * tcp with CURVE, beside what ZeroMQ alone does with the same bytes on the same transport.
 *
 *   net [MIB [WINDOW [BLOCKS]]]    MiB a run (4096), GETs in flight (8), blocks of one GET (1)
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <czmq.h>

#include "base/clock.h"
#include "net/internal.h"
#include "proto/limits.h"

#define BLOCK_SIZE (256 << 10)
#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                    \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static uint8_t block[BLOCK_SIZE];

struct bench {
	size_t blocks;	/* left to ask for */
	size_t a_get;	/* blocks of one GET */
	size_t waiting; /* asked for, not here */
	struct net_client *client;
};

static void keep(void *data, void *hint)
{
}

static void handle(void *ctx, struct net_request *req)
{
	size_t n = net_request_header(req)->get->fingerprints.len / 32;
	struct net_frame frames[PROTO_MAX_BLOCKS];
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__GetReply get = VMDEDUP__GET_REPLY__INIT;

	for (size_t i = 0; i < n; i++)
		frames[i] = (struct net_frame){ block, BLOCK_SIZE, keep, NULL };
	reply.body_case = VMDEDUP__REPLY__BODY_GET;
	reply.get = &get;
	net_reply_send(req, &reply, frames, n);
}

static const struct net_server_ops ops = { .handle = handle };

static void *serve(void *arg)
{
	CHECK(!net_server_run(arg, NULL));
	return NULL;
}

static void got(void *arg, int r, struct net_reply *reply);

static void ask(struct bench *b)
{
	static uint8_t fps[PROTO_MAX_BLOCKS * 32];
	size_t n = b->blocks < b->a_get ? b->blocks : b->a_get;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Get get = VMDEDUP__GET__INIT;

	if (!n)
		return;
	get.fingerprints.data = fps;
	get.fingerprints.len = n * 32;
	req.body_case = VMDEDUP__REQUEST__BODY_GET;
	req.get = &get;
	b->blocks -= n;
	b->waiting += n;
	CHECK(!net_client_submit(b->client, &req, NULL, 0, 60000, got, b));
}

static void got(void *arg, int r, struct net_reply *reply)
{
	struct bench *b = arg;

	CHECK(!r && reply->frames[0].len == BLOCK_SIZE);
	b->waiting -= reply->nr_frames;
	net_reply_free(reply);
	ask(b);
}

/* Wall clock, and the processor time of both ends: that is the same on a busy machine. */
struct result {
	double gib_per_s;
	double cpu_s_per_gib;
};

struct stopwatch {
	uint64_t ns;
	double cpu_s;
};

static double cpu_now(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec +
	       (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static struct stopwatch start_watch(void)
{
	return (struct stopwatch){ clock_mono_ns(), cpu_now() };
}

static struct result stop_watch(struct stopwatch w, size_t blocks)
{
	double gib = (double)blocks * BLOCK_SIZE / (1 << 30);

	return (struct result){ gib / ((clock_mono_ns() - w.ns) / 1e9),
				(cpu_now() - w.cpu_s) / gib };
}

static struct result run_net(struct net_ctx *server_ctx, struct net_ctx *client_ctx, const uint8_t *key,
		      const char *endpoint, size_t blocks, size_t window, size_t a_get)
{
	struct net_server *s = net_server_new(server_ctx, "data", NULL, &ops, NULL, 0, NULL);
	struct bench b = { .blocks = a_get, .a_get = a_get };
	struct error err = { 0 };
	pthread_t thread;
	struct stopwatch start;
	struct result result;

	CHECK(s);
	if (net_server_bind(s, endpoint, &err)) {
		fprintf(stderr, "%s\n", err.text);
		exit(1);
	}
	CHECK(!pthread_create(&thread, NULL, serve, s));
	b.client = net_client_new(client_ctx, net_server_endpoint(s, 0), key, "agent", &err);
	CHECK(b.client);
	/* The first one connects. */
	ask(&b);
	while (b.waiting)
		net_client_run(b.client, -1);
	b.blocks = blocks;
	start = start_watch();
	for (size_t i = 0; i < window; i++)
		ask(&b);
	while (b.waiting)
		net_client_run(b.client, -1);
	result = stop_watch(start, blocks);
	net_client_free(b.client);
	net_server_stop(s);
	pthread_join(thread, NULL);
	net_server_free(s);
	return result;
}

/* ---- ZeroMQ alone ---- */

struct raw {
	void *socket;
	size_t blocks;
};

static void *raw_serve(void *arg)
{
	struct raw *raw = arg;
	char c;

	CHECK(zmq_recv(raw->socket, &c, 1, 0) == 1);
	for (size_t i = 0; i < raw->blocks; i++) {
		zmq_msg_t msg;

		zmq_msg_init_data(&msg, block, BLOCK_SIZE, keep, NULL);
		CHECK(zmq_msg_send(&msg, raw->socket, 0) == BLOCK_SIZE);
	}
	CHECK(zmq_recv(raw->socket, &c, 1, 0) == 1);
	return NULL;
}

static void raw_keys(void *server, void *client)
{
	char public_key[41], secret_key[41];
	int yes = 1;

	zmq_curve_keypair(public_key, secret_key);
	zmq_setsockopt(server, ZMQ_CURVE_SERVER, &yes, sizeof(yes));
	zmq_setsockopt(server, ZMQ_CURVE_SECRETKEY, secret_key, 41);
	zmq_setsockopt(client, ZMQ_CURVE_SERVERKEY, public_key, 41);
	zmq_curve_keypair(public_key, secret_key);
	zmq_setsockopt(client, ZMQ_CURVE_PUBLICKEY, public_key, 41);
	zmq_setsockopt(client, ZMQ_CURVE_SECRETKEY, secret_key, 41);
}

static struct result run_raw(bool curve, const char *endpoint, size_t blocks)
{
	void *server_ctx = zmq_ctx_new(), *client_ctx = zmq_ctx_new();
	bool same = !strncmp(endpoint, "inproc", 6);
	void *server = zmq_socket(server_ctx, ZMQ_DEALER);
	void *client = zmq_socket(same ? server_ctx : client_ctx, ZMQ_DEALER);
	struct raw raw = { server, blocks };
	char bound[256];
	size_t len = sizeof(bound);
	int hwm = 8;
	pthread_t thread;
	struct stopwatch start;
	struct result result;

	zmq_setsockopt(server, ZMQ_SNDHWM, &hwm, sizeof(hwm));
	zmq_setsockopt(client, ZMQ_RCVHWM, &hwm, sizeof(hwm));
	if (curve)
		raw_keys(server, client);
	CHECK(!zmq_bind(server, endpoint));
	CHECK(!zmq_getsockopt(server, ZMQ_LAST_ENDPOINT, bound, &len));
	CHECK(!zmq_connect(client, bound));
	CHECK(!pthread_create(&thread, NULL, raw_serve, &raw));
	CHECK(zmq_send(client, "x", 1, 0) == 1);
	start = start_watch();
	for (size_t i = 0; i < blocks; i++) {
		zmq_msg_t msg;

		zmq_msg_init(&msg);
		CHECK(zmq_msg_recv(&msg, client, 0) == BLOCK_SIZE);
		zmq_msg_close(&msg);
		if (!i)
			start = start_watch();
	}
	result = stop_watch(start, blocks);
	CHECK(zmq_send(client, "x", 1, 0) == 1);
	pthread_join(thread, NULL);
	zmq_close(server);
	zmq_close(client);
	zmq_ctx_term(server_ctx);
	zmq_ctx_term(client_ctx);
	return result;
}

static void report(const char *what, struct result net, struct result raw)
{
	printf("%-10s %7.2f GiB/s %6.2f CPU s/GiB   ZeroMQ alone %7.2f %6.2f   ratio %.2f, CPU %.2f\n",
	       what, net.gib_per_s, net.cpu_s_per_gib, raw.gib_per_s, raw.cpu_s_per_gib,
	       net.gib_per_s / raw.gib_per_s, net.cpu_s_per_gib / raw.cpu_s_per_gib);
	fflush(stdout);
}

/* A server's and a client's context with each other's keys. */
static void make_keys(const char *dir, const char *name, uint8_t key[32], char path[160])
{
	char public_path[160];
	zcert_t *cert = zcert_new();

	snprintf(path, 160, "%s/%s", dir, name);
	CHECK(!zcert_save(cert, path));
	snprintf(public_path, sizeof(public_path), "%s/clients/%s", dir, name);
	CHECK(!zcert_save_public(cert, public_path));
	memcpy(key, zcert_public_key(cert), 32);
	zcert_destroy(&cert);
}

int main(int argc, char **argv)
{
	size_t blocks = (argc > 1 ? strtoull(argv[1], NULL, 10) : 4096) << 20 >> 18;
	size_t window = argc > 2 ? strtoull(argv[2], NULL, 10) : 8;
	size_t a_get = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
	char dir[] = "/tmp/vmdedup-bench-XXXXXX", path[160], clients[160], text[200];
	struct net_ctx *server, *client;
	uint8_t server_key[32], client_key[32];

	CHECK(blocks && window && a_get && a_get <= PROTO_MAX_BLOCKS);
	CHECK(mkdtemp(dir));
	memset(block, 'b', sizeof(block));
	server = net_ctx_new(NULL, NULL, NULL);
	client = net_ctx_new(NULL, NULL, NULL);
	CHECK(server && client);
	report("inproc", run_net(server, server, NULL, "inproc://b", blocks, window, a_get),
	       run_raw(false, "inproc://b", blocks));
	snprintf(text, sizeof(text), "ipc://%s/sock", dir);
	report("ipc", run_net(server, client, NULL, text, blocks, window, a_get),
	       run_raw(false, text, blocks));
	report("tcp", run_net(server, client, NULL, "tcp://127.0.0.1:*", blocks, window, a_get),
	       run_raw(false, "tcp://127.0.0.1:*", blocks));
	net_ctx_free(server);
	net_ctx_free(client);

	snprintf(clients, sizeof(clients), "%s/clients", dir);
	CHECK(!mkdir(clients, 0700));
	make_keys(dir, "server", server_key, path);
	server = net_ctx_new(path, clients, NULL);
	make_keys(dir, "client", client_key, path);
	client = net_ctx_new(path, NULL, NULL);
	CHECK(server && client);
	report("tcp CURVE",
	       run_net(server, client, server_key, "tcp://127.0.0.1:*", blocks / 4, window, a_get),
	       run_raw(true, "tcp://127.0.0.1:*", blocks / 4));
	net_ctx_free(server);
	net_ctx_free(client);
	snprintf(text, sizeof(text), "rm -rf %s", dir);
	return system(text);
}
