// SPDX-License-Identifier: GPL-2.0-or-later
/* Two data servers behind real sockets, one with a replica that is stale, and a meta server that only
 * knows that. */
#include "data_help.h"
#include "data_host.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "data/server_priv.h"
#include "net/net.h"

#define TIMEOUT 30000
#define SHIFT	13 /* TEST_BLOCK */
#define TRIES	6000 /* of 10 ms: for a machine that has other things to do */

static const char *const endpoints[2] = { "inproc://data-1", "inproc://data-2" };

/* Server 1 has all; of one shard server 2 has a replica that is stale, until END, if there are two. */
struct two_meta {
	uint8_t disks[2][16];
	unsigned int shard;
	_Atomic bool two;
	_Atomic uint64_t version;
	_Atomic unsigned int joined, begun, ended;
};

struct map_parts {
	Vmdedup__MapReply map;
	Vmdedup__Server servers[2], *pointers[2];
	uint64_t epochs[NR_SHARDS];
	uint32_t ids[2 * NR_SHARDS];
	uint8_t states[2 * NR_SHARDS];
};

static void fill_map(struct two_meta *m, struct map_parts *p)
{
	unsigned int replicas = m->two ? 2 : 1;

	memset(p, 0, sizeof(*p));
	vmdedup__map_reply__init(&p->map);
	for (size_t i = 0; i < NR_SHARDS; i++) {
		p->epochs[i] = 2;
		p->ids[i * replicas] = 1;
		if (replicas == 2 && i == m->shard) {
			p->ids[i * 2 + 1] = 2;
			p->states[i * 2 + 1] = m->ended ? REPLICA_CURRENT : REPLICA_STALE;
		}
	}
	for (size_t i = 0; i < 2; i++) {
		vmdedup__server__init(&p->servers[i]);
		p->servers[i].id = (uint32_t)i + 1;
		p->servers[i].endpoint = (char *)endpoints[i];
		p->servers[i].disk = (ProtobufCBinaryData){ 16, m->disks[i] };
		p->pointers[i] = &p->servers[i];
	}
	p->map.version = m->version;
	p->map.replicas = replicas;
	p->map.n_servers = 2;
	p->map.servers = p->pointers;
	p->map.n_shard_epochs = NR_SHARDS;
	p->map.shard_epochs = p->epochs;
	p->map.n_shard_servers = replicas * NR_SHARDS;
	p->map.shard_servers = p->ids;
	p->map.shard_states = (ProtobufCBinaryData){ replicas * NR_SHARDS, p->states };
}

static void reply_join(struct two_meta *m, struct net_request *req, struct map_parts *p)
{
	const Vmdedup__ServerJoin *in = net_request_header(req)->server_join;
	static const uint8_t cluster[16] = { 7 }, receipt_key[RECEIPT_KEY_SIZE] = { 1 };
	unsigned int i = strcmp(in->endpoint, endpoints[0]) != 0;
	Vmdedup__ServerJoinReply join = VMDEDUP__SERVER_JOIN_REPLY__INIT;
	Vmdedup__Domain domains[2], *pointers[2] = { &domains[0], &domains[1] };
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	memcpy(m->disks[i], in->disk.data, MIN(in->disk.len, 16));
	for (uint32_t d = 0; d < 2; d++) {
		vmdedup__domain__init(&domains[d]);
		domains[d].id = d;
		domains[d].name = (char *)(d ? "other" : "public");
	}
	join.id = i + 1;
	join.cluster = (ProtobufCBinaryData){ 16, (uint8_t *)cluster };
	join.receipt_key = (ProtobufCBinaryData){ sizeof(receipt_key), (uint8_t *)receipt_key };
	join.block_shift = SHIFT;
	join.n_domains = 2;
	join.domains = pointers;
	join.map = &p->map;
	reply.body_case = VMDEDUP__REPLY__BODY_SERVER_JOIN;
	reply.server_join = &join;
	net_reply_send(req, &reply, NULL, 0);
	m->joined |= 1U << i;
}

static void reply_begin(struct two_meta *m, struct net_request *req)
{
	Vmdedup__ReconcileBeginReply begin = VMDEDUP__RECONCILE_BEGIN_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint32_t source = 1;

	begin.map_version = m->version;
	begin.n_sources = 1;
	begin.sources = &source;
	begin.round = 1;
	reply.body_case = VMDEDUP__REPLY__BODY_RECONCILE_BEGIN;
	reply.reconcile_begin = &begin;
	net_reply_send(req, &reply, NULL, 0);
	m->begun++;
}

static void meta_handle(void *ctx, struct net_request *req)
{
	struct map_parts p;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct two_meta *m = ctx;

	switch (net_request_header(req)->body_case) {
	case VMDEDUP__REQUEST__BODY_SERVER_JOIN:
		fill_map(m, &p);
		reply_join(m, req, &p);
		break;
	case VMDEDUP__REQUEST__BODY_RECONCILE_BEGIN:
		reply_begin(m, req);
		break;
	case VMDEDUP__REQUEST__BODY_RECONCILE_END:
		m->ended++;
		m->version++;
		net_reply_send(req, &reply, NULL, 0);
		break;
	case VMDEDUP__REQUEST__BODY_MAP_GET:
		fill_map(m, &p);
		reply.body_case = VMDEDUP__REPLY__BODY_MAP;
		reply.map = &p.map;
		net_reply_send(req, &reply, NULL, 0);
		break;
	default:
		net_reply_error(req, EOPNOTSUPP, "not here");
	}
}

static const struct net_server_ops meta_ops = { .handle = meta_handle };

/* ---- the two data servers ---- */

struct machine {
	char *dir;
	struct data_host host;
};

static int put(struct machine *d, uint32_t domain, uint64_t n)
{
	Vmdedup__BlockHead head = VMDEDUP__BLOCK_HEAD__INIT, *heads = &head;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Put p = VMDEDUP__PUT__INIT;
	uint8_t data[TEST_BLOCK];
	struct net_frame frame = { .data = data, .len = sizeof(data) };
	struct net_reply reply;
	struct fp fp;
	int r;

	help_block(n, data, &fp);
	head.fingerprint = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	head.raw_size = TEST_BLOCK;
	p.domain = domain;
	p.n_blocks = 1;
	p.blocks = &heads;
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &p;
	r = net_call(d->host.client, &req, &frame, 1, TIMEOUT, &reply, NULL);
	if (!r)
		r = -(int)reply.header->put->errors[0];
	net_reply_free(&reply);
	return r;
}

/* Also word of the newest map. */
static int get(struct machine *d, uint64_t version, uint32_t domain, uint64_t n)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Get g = VMDEDUP__GET__INIT;
	uint8_t data[TEST_BLOCK];
	struct net_reply reply;
	struct fp fp;
	int r;

	help_block(n, data, &fp);
	g.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	g.map_version = version;
	g.domain = domain;
	req.body_case = VMDEDUP__REQUEST__BODY_GET;
	req.get = &g;
	r = net_call(d->host.client, &req, NULL, 0, TIMEOUT, &reply, NULL);
	if (!r)
		r = reply.header->body_case == VMDEDUP__REPLY__BODY_GET ?
			    -(int)reply.header->get->blocks[0]->error : -ESTALE;
	net_reply_free(&reply);
	return r;
}

#define WAIT_UNTIL(what) do {						\
	int left = TRIES;						\
	while (!(what) && --left)					\
		poll(NULL, 0, 10);					\
	assert_true(left);						\
} while (0)

/* The only current replica has a block that is damaged: what comes after it is copied all the same,
 * and the replica stays stale until the block is there, too. */
static void damage_at_the_source_stops_no_copying(void **state)
{
	struct two_meta m = { .version = 3 };
	struct meta_host meta;
	struct machine d[2];
	struct error err = { 0 };
	struct net_ctx *net = net_ctx_new(NULL, NULL, &err);
	uint8_t data[TEST_BLOCK];
	char path[512];
	struct fp fp;

	assert_non_null(net);
	help_block(5, data, &fp);
	m.shard = fp_shard(&fp);
	meta_host_start(&meta, net, &meta_ops, &m);
	for (int i = 0; i < 2; i++) {
		d[i].dir = help_dir();
		data_host_start(&d[i].host, net, d[i].dir, endpoints[i], 0);
	}
	WAIT_UNTIL(m.joined == 3);

	/* The domains have no keys: one shard has both. */
	WAIT_UNTIL(!put(&d[0], 0, 5));
	assert_int_equal(put(&d[0], 1, 5), 0);
	assert_true(help_find_lump(d[0].dir, 2 * TEST_BLOCK, path));
	help_flip_bit(path, (128 + 128 + 1000) * 8);
	assert_int_equal(get(&d[0], 0, 0, 5), -EIO);
	assert_int_equal(get(&d[0], 0, 1, 5), 0);

	m.two = true;
	m.version = 4;
	WAIT_UNTIL(!get(&d[1], 4, 1, 5));
	assert_int_equal(get(&d[1], 4, 0, 5), -ENOENT);
	WAIT_UNTIL(m.begun >= 2); /* the first round is over */
	assert_int_equal(m.ended, 0);
	WAIT_UNTIL(!put(&d[0], 0, 5));
	WAIT_UNTIL(m.ended);
	assert_int_equal(get(&d[1], 4, 0, 5), 0);

	for (int i = 0; i < 2; i++) {
		data_host_stop(&d[i].host);
		help_dir_remove(d[i].dir);
	}
	meta_host_stop(&meta);
	net_ctx_free(net);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(damage_at_the_source_stops_no_copying),
	};

	return cmocka_run_group_tests_name("data_reconcile", tests, NULL, NULL);
}
