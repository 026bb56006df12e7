// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * clients get|put|hold ENDPOINT CLIENTS BLOCKS: so many clients of one data server at once, each with a
 * connection of its own. get: all ask for the same BLOCKS blocks (at most 16), which the server has. put:
 * each sends as many of 256 KiB whose content is not what they say, so that the server takes and verifies
 * them, and stores nothing. hold: each asks for room for as many, and uses none of it; when they have it, the
 * program waits to be killed. Prints, as JSON, how many had the right answer and the bytes they got. Exit
 * status 1: not all.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/fingerprint.h"
#include "net/net.h"
#include "proto/limits.h"

#define MAX_CLIENTS 4096
#define MAX_BLOCKS  16
#define A_CONTEXT   250 /* clients of one ZeroMQ context: it has room for some 1000 sockets */
#define WAIT_MS	    120000

#define BLOCK	    (256U << 10)

struct test {
	bool put, hold;
	uint8_t fps[MAX_BLOCKS * FP_SIZE];
	size_t want, nr, done, whole;
	uint64_t bytes;
	struct net_client *clients[MAX_CLIENTS];
	struct net_ctx *contexts[MAX_CLIENTS / A_CONTEXT + 1];
};

static void answered(void *arg, int r, struct net_reply *reply)
{
	struct test *t = arg;

	t->done++;
	if (r)
		return;
	if (t->hold)
		t->whole += reply->header->room >= t->want * BLOCK;
	else if (t->put)
		t->whole += !reply->header->error && reply->header->put->n_errors == t->want &&
			    reply->header->put->errors[0] == EBADMSG;
	else
		t->whole += !reply->header->error && reply->nr_frames == t->want;
	for (size_t i = 0; i < reply->nr_frames; i++)
		t->bytes += reply->frames[i].len;
	net_reply_free(reply);
}

/* The first blocks that it has, whatever they are. */
static int find_blocks(struct test *t, struct net_client *client)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardList list = VMDEDUP__SHARD_LIST__INIT;
	struct error err = { 0 };
	size_t have = 0;

	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_LIST;
	req.shard_list = &list;
	for (; list.shard < NR_SHARDS && have < t->want; list.shard++) {
		struct net_reply reply;

		list.limit = (uint32_t)(t->want - have);
		if (net_call(client, &req, NULL, 0, WAIT_MS, &reply, &err)) {
			fprintf(stderr, "%s\n", err.text);
			return 1;
		}
		memcpy(t->fps + have * FP_SIZE, reply.header->shard_list->fingerprints.data,
		       reply.header->shard_list->fingerprints.len);
		have += reply.header->shard_list->fingerprints.len / FP_SIZE;
		net_reply_free(&reply);
	}
	return have != t->want;
}

static int open_clients(struct test *t, const char *endpoint)
{
	struct error err = { 0 };

	for (size_t i = 0; i < t->nr; i++) {
		struct net_ctx **ctx = &t->contexts[i / A_CONTEXT];

		if (!*ctx)
			*ctx = net_ctx_new(NULL, NULL, &err);
		if (*ctx)
			t->clients[i] = net_client_new(*ctx, endpoint, NULL, "cli", &err);
		if (!t->clients[i]) {
			fprintf(stderr, "client %zu: %s\n", i, err.text);
			return 1;
		}
	}
	return 0;
}

static void keep(void *data, void *hint)
{
}

static int submit_put(struct test *t, struct net_client *client)
{
	static uint8_t content[BLOCK]; /* of all */
	Vmdedup__BlockHead heads[MAX_BLOCKS], *pointers[MAX_BLOCKS];
	struct net_frame frames[MAX_BLOCKS];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;

	for (size_t i = 0; i < t->want; i++) {
		vmdedup__block_head__init(&heads[i]);
		heads[i].fingerprint = (ProtobufCBinaryData){ FP_SIZE, t->fps + i * FP_SIZE };
		heads[i].raw_size = BLOCK;
		pointers[i] = &heads[i];
		frames[i] = (struct net_frame){ .data = content, .len = BLOCK, .free_fn = keep };
	}
	put.n_blocks = t->want;
	put.blocks = pointers;
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &put;
	return net_client_submit(client, &req, frames, t->want, WAIT_MS, answered, t);
}

static int submit_hold(struct test *t, struct net_client *client)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Room room = VMDEDUP__ROOM__INIT;

	room.bytes = room.least = t->want * BLOCK;
	req.body_case = VMDEDUP__REQUEST__BODY_ROOM;
	req.room = &room;
	return net_client_submit(client, &req, NULL, 0, WAIT_MS, answered, t);
}

static int submit_get(struct test *t, struct net_client *client)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Get get = VMDEDUP__GET__INIT;

	get.fingerprints = (ProtobufCBinaryData){ t->want * FP_SIZE, t->fps };
	req.body_case = VMDEDUP__REQUEST__BODY_GET;
	req.get = &get;
	return net_client_submit(client, &req, NULL, 0, WAIT_MS, answered, t);
}

static int ask_all(struct test *t)
{
	uint64_t end = clock_mono_ns() + WAIT_MS * 1000000ULL;

	for (size_t i = 0; i < t->nr; i++)
		if (t->hold ? submit_hold(t, t->clients[i]) :
		    t->put ? submit_put(t, t->clients[i]) : submit_get(t, t->clients[i]))
			return 1;
	while (t->done < t->nr && clock_mono_ns() < end) {
		for (size_t i = 0; i < t->nr; i++)
			net_client_run(t->clients[i], 0);
		usleep(2000);
	}
	return t->whole != t->nr;
}

int main(int argc, char **argv)
{
	struct test *t = calloc(1, sizeof(*t));
	struct rlimit lim;
	int r;

	if (!t || argc != 5)
		return 2;
	t->put = !strcmp(argv[1], "put");
	t->hold = !strcmp(argv[1], "hold");
	t->nr = strtoul(argv[3], NULL, 10);
	t->want = strtoul(argv[4], NULL, 10);
	if (!t->nr || t->nr > MAX_CLIENTS || !t->want || t->want > MAX_BLOCKS)
		return 2;
	if (!getrlimit(RLIMIT_NOFILE, &lim)) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
	r = open_clients(t, argv[2]) ?: find_blocks(t, t->clients[0]) ?: ask_all(t);
	printf("{\"clients\": %zu, \"whole\": %zu, \"bytes\": %llu}\n", t->nr, t->whole,
	       (unsigned long long)t->bytes);
	fflush(stdout);
	while (t->hold && !r)
		pause();
	for (size_t i = 0; i < t->nr; i++)
		net_client_free(t->clients[i]);
	for (size_t i = 0; i < ARRAY_SIZE(t->contexts); i++)
		net_ctx_free(t->contexts[i]);
	free(t);
	return r;
}
