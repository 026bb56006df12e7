// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two data servers and a client whose maps differ: the meta server here says who is told which version.
 * What is stored in that moment is to have all the copies that it would have a moment later.
 */
#include "data_help.h"
#include "data_host.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "data/server.h"
#include "net/net.h"
#include "proto/limits.h"
#include "proto/receipt.h"

#define TIMEOUT 30000
#define SHIFT	13 /* TEST_BLOCK */

enum { A = 1, B };

/* ---- a meta server of two maps ---- */

struct meta {
	uint64_t told[B + 1];	     /* the version that a server joins with */
	bool second_is_place[3];     /* by version: B is a replica, beside A */
	_Atomic bool silent;	     /* it tells of no newer map */
};

struct map {
	Vmdedup__MapReply reply;
	Vmdedup__Server servers[2], *pointers[2];
	uint64_t epochs[NR_SHARDS];
	uint32_t places[NR_SHARDS * 2];
};

static void fill_map(const struct meta *m, uint64_t version, struct map *map)
{
	vmdedup__map_reply__init(&map->reply);
	for (size_t i = 0; i < NR_SHARDS; i++) {
		map->epochs[i] = 1;
		map->places[2 * i] = A;
		map->places[2 * i + 1] = m->second_is_place[version] ? B : 0;
	}
	for (uint32_t i = 0; i < 2; i++) {
		vmdedup__server__init(&map->servers[i]);
		map->servers[i].id = A + i;
		map->servers[i].endpoint = (char *)(i ? "inproc://B" : "inproc://A");
		map->pointers[i] = &map->servers[i];
	}
	map->reply.version = version;
	map->reply.n_servers = 2;
	map->reply.servers = map->pointers;
	map->reply.replicas = map->reply.wanted = 2;
	map->reply.min_copies = 1;
	map->reply.n_shard_epochs = NR_SHARDS;
	map->reply.shard_epochs = map->epochs;
	map->reply.n_shard_servers = NR_SHARDS * 2;
	map->reply.shard_servers = map->places;
}

static void meta_handle(void *ctx, struct net_request *req)
{
	static const uint8_t cluster[16] = { 7 }, receipt_key[RECEIPT_KEY_SIZE] = { 1 };
	const Vmdedup__Request *h = net_request_header(req);
	Vmdedup__ServerJoinReply join = VMDEDUP__SERVER_JOIN_REPLY__INIT;
	Vmdedup__Domain domain = VMDEDUP__DOMAIN__INIT, *domains[] = { &domain };
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct meta *m = ctx;
	struct map map;

	if (h->body_case == VMDEDUP__REQUEST__BODY_SERVER_JOIN) {
		join.id = strcmp(h->server_join->endpoint, "inproc://A") ? B : A;
		fill_map(m, m->told[join.id], &map);
		domain.name = (char *)"public";
		join.cluster = (ProtobufCBinaryData){ 16, (uint8_t *)cluster };
		join.receipt_key = (ProtobufCBinaryData){ sizeof(receipt_key), (uint8_t *)receipt_key };
		join.block_shift = SHIFT;
		join.n_domains = 1;
		join.domains = domains;
		join.map = &map.reply;
		reply.body_case = VMDEDUP__REPLY__BODY_SERVER_JOIN;
		reply.server_join = &join;
	} else if (h->body_case == VMDEDUP__REQUEST__BODY_MAP_GET && !m->silent) {
		fill_map(m, 2, &map);
		reply.body_case = VMDEDUP__REPLY__BODY_MAP;
		reply.map = &map.reply;
	} else {
		net_reply_error(req, EOPNOTSUPP, "not here");
		return;
	}
	net_reply_send(req, &reply, NULL, 0);
}

static const struct net_server_ops meta_ops = { .handle = meta_handle };

/* ---- the servers ---- */

struct data {
	char *dir;
	struct data_host host;
};

struct world {
	struct net_ctx *net;
	struct meta meta;
	struct meta_host meta_host;
	struct data data[B + 1];
};

static uint64_t version_of(struct net_client *c)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Ping ping = VMDEDUP__PING__INIT;
	struct net_reply reply;
	uint64_t version;

	req.body_case = VMDEDUP__REQUEST__BODY_PING;
	req.ping = &ping;
	assert_int_equal(net_call(c, &req, NULL, 0, TIMEOUT, &reply, NULL), 0);
	version = reply.header->ping->map_version;
	net_reply_free(&reply);
	return version;
}

static void start_data(struct world *w, int which, const char *endpoint)
{
	struct data *d = &w->data[which];

	d->dir = help_dir();
	data_host_start(&d->host, w->net, d->dir, endpoint, 0);
	while (!version_of(d->host.client)) /* it has joined */
		poll(NULL, 0, 5);
}

/* A and B join with these versions; B is a replica by version 1 and 2, or not. */
static struct world *start(uint64_t a, uint64_t b, bool first, bool second, bool silent)
{
	struct world *w = calloc(1, sizeof(*w));
	struct error err = { 0 };

	w->net = net_ctx_new(NULL, NULL, &err);
	w->meta = (struct meta){ .told = { 0, a, b }, .second_is_place = { 0, first, second },
				 .silent = silent };
	meta_host_start(&w->meta_host, w->net, &meta_ops, &w->meta);
	start_data(w, B, "inproc://B");
	start_data(w, A, "inproc://A");
	return w;
}

static void stop(struct world *w)
{
	for (int i = A; i <= B; i++) {
		data_host_stop(&w->data[i].host);
		help_dir_remove(w->data[i].dir);
	}
	meta_host_stop(&w->meta_host);
	net_ctx_free(w->net);
	free(w);
}

/* ---- requests to A ---- */

/* Disks of the receipt for block @n; or a negative errno. */
static int put(struct world *w, uint64_t n, uint64_t version)
{
	Vmdedup__BlockHead head = VMDEDUP__BLOCK_HEAD__INIT, *heads[] = { &head };
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	uint8_t data[TEST_BLOCK];
	struct net_frame frame = { .data = data, .len = sizeof(data) };
	struct net_reply reply;
	struct fp fp;
	int r;

	help_block(n, data, &fp);
	head.fingerprint = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	head.raw_size = TEST_BLOCK;
	put.map_version = version;
	put.n_blocks = 1;
	put.blocks = heads;
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &put;
	r = net_call(w->data[A].host.client, &req, &frame, 1, TIMEOUT, &reply, NULL);
	if (!r) {
		assert_int_equal(reply.header->put->n_errors, 1);
		r = -reply.header->put->errors[0];
		assert_int_equal(reply.header->put->n_receipts, !r);
		if (!r)
			r = (int)reply.header->put->receipts[0]->n_disks;
	}
	net_reply_free(&reply);
	return r;
}

static int touch(struct world *w, uint64_t n, uint64_t version)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	uint8_t data[TEST_BLOCK];
	struct net_reply reply;
	struct fp fp;
	int r;

	help_block(n, data, &fp);
	touch.map_version = version;
	touch.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	req.body_case = VMDEDUP__REQUEST__BODY_TOUCH;
	req.touch = &touch;
	r = net_call(w->data[A].host.client, &req, NULL, 0, TIMEOUT, &reply, NULL);
	if (!r) {
		assert_int_equal(reply.header->touch->n_receipts, 1);
		r = (int)reply.header->touch->receipts[0]->n_disks;
	}
	net_reply_free(&reply);
	return r;
}

/* ---- tests ---- */

/* Each has a bound in time, after which fewer copies must do: a machine that is too slow for it just then
 * gets another world. */
#define TRIES 8

static bool both_have_it(uint64_t a, uint64_t b)
{
	struct world *w = start(a, b, false, true, false);
	bool both = put(w, 1, 2) == 2 && touch(w, 1, 2) == 2;

	stop(w);
	return both;
}

/* B has no place by its map yet: it waits for that of A. */
static void test_receiver_is_older(void **state)
{
	int i;

	for (i = 0; i < TRIES && !both_have_it(2, 1); i++)
		;
	assert_true(i < TRIES);
}

/* A knows of no B yet: it waits for the client's map. */
static void test_first_is_older(void **state)
{
	int i;

	for (i = 0; i < TRIES && !both_have_it(1, 2); i++)
		;
	assert_true(i < TRIES);
}

/* B is no replica any more, as it knows, but neither A nor the client: again, with the newer map. */
static void test_receiver_is_newer(void **state)
{
	int i, r = 0;

	for (i = 0; i < TRIES && r != -EAGAIN; i++) {
		struct world *w = start(1, 2, true, false, true);

		r = put(w, 1, 1);
		w->meta.silent = false;
		assert_int_equal(put(w, 1, 2), 1);
		assert_int_equal(touch(w, 1, 2), 1);
		stop(w);
	}
	assert_int_equal(r, -EAGAIN);
}

/* The newer map does not come: what there is must do, with fewer copies. */
static void test_no_map(void **state)
{
	struct world *w = start(1, 2, true, false, true);

	assert_int_equal(put(w, 1, 2), 1);
	assert_int_equal(touch(w, 1, 2), 1);
	assert_int_equal(version_of(w->data[A].host.client), 1);
	stop(w);
	w = start(2, 1, false, true, true);
	assert_int_equal(put(w, 1, 2), 1);
	stop(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_receiver_is_older),
		cmocka_unit_test(test_first_is_older),
		cmocka_unit_test(test_receiver_is_newer),
		cmocka_unit_test(test_no_map),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
