// SPDX-License-Identifier: GPL-2.0-or-later
/* The data server behind real sockets, joined to a meta server that only knows membership. */
#include "data_help.h"
#include "data_host.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include "base/cleanup.h"
#include "data/bstore_priv.h"
#include "data/server_priv.h"
#include "net/net.h"
#include "proto/limits.h"
#include "proto/receipt.h"

#define TIMEOUT 30000
#define SHIFT	13 /* TEST_BLOCK */

static const uint8_t receipt_key[RECEIPT_KEY_SIZE] = { 1, 2, 3 };

/* ---- a meta server that knows membership ---- */

struct tiny_meta {
	_Atomic uint64_t version, epoch, joins, incarnation;
	_Atomic uint32_t owner; /* of all shards */
	struct uuid former;	/* a process that another one has followed; null: the next that joins */
	_Atomic bool refuses;	/* it */
	_Atomic unsigned int refused;
	_Atomic bool unsettled; /* it does not answer that the disk names who joins */
	_Atomic unsigned int held;
};

static void fill_map(struct tiny_meta *m, Vmdedup__MapReply *map, uint64_t *epochs,
		     uint32_t *servers)
{
	for (size_t i = 0; i < NR_SHARDS; i++) {
		epochs[i] = m->epoch;
		servers[i] = m->owner;
	}
	map->version = m->version;
	map->replicas = 1;
	map->n_shard_epochs = NR_SHARDS;
	map->shard_epochs = epochs;
	map->n_shard_servers = NR_SHARDS;
	map->shard_servers = servers;
}

static bool is_former(struct tiny_meta *m, const Vmdedup__ServerJoin *join)
{
	if (!m->refuses)
		return false;
	if (uuid_is_null(&m->former))
		memcpy(m->former.b, join->session.data, sizeof(m->former.b));
	if (memcmp(m->former.b, join->session.data, sizeof(m->former.b)))
		return false;
	m->refused++;
	return true;
}

static bool is_held(struct tiny_meta *m, const Vmdedup__ServerJoin *join)
{
	if (!m->unsettled || memcmp(join->session.data, join->last_session.data, 16))
		return false;
	m->held++;
	return true;
}

static void meta_handle(void *ctx, struct net_request *req)
{
	const Vmdedup__Request *h = net_request_header(req);
	static const uint8_t cluster[16] = { 7 };
	Vmdedup__ServerJoinReply join = VMDEDUP__SERVER_JOIN_REPLY__INIT;
	Vmdedup__Domain domain = VMDEDUP__DOMAIN__INIT, *domains[] = { &domain };
	Vmdedup__MapReply map = VMDEDUP__MAP_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint64_t epochs[NR_SHARDS];
	uint32_t servers[NR_SHARDS];
	struct tiny_meta *m = ctx;

	fill_map(m, &map, epochs, servers);
	if (h->body_case == VMDEDUP__REQUEST__BODY_SERVER_JOIN && is_former(m, h->server_join)) {
		net_reply_error(req, ESTALE, "another process has joined with this disk since");
		return;
	}
	if (h->body_case == VMDEDUP__REQUEST__BODY_SERVER_JOIN && is_held(m, h->server_join)) {
		net_reply_error(req, EAGAIN, "not now");
		return;
	}
	if (h->body_case == VMDEDUP__REQUEST__BODY_SERVER_JOIN) {
		m->incarnation = h->server_join->incarnation;
		m->joins++;
		domain.name = (char *)"public";
		join.id = 1;
		join.cluster = (ProtobufCBinaryData){ 16, (uint8_t *)cluster };
		join.receipt_key = (ProtobufCBinaryData){ sizeof(receipt_key), (uint8_t *)receipt_key };
		join.block_shift = SHIFT;
		join.n_domains = 1;
		join.domains = domains;
		join.map = &map;
		reply.body_case = VMDEDUP__REPLY__BODY_SERVER_JOIN;
		reply.server_join = &join;
	} else {
		reply.body_case = VMDEDUP__REPLY__BODY_MAP;
		reply.map = &map;
	}
	net_reply_send(req, &reply, NULL, 0);
}

static const struct net_server_ops meta_ops = { .handle = meta_handle };

/* ---- a fixture: both servers and a client ---- */

struct fixture {
	char *dir;
	struct net_ctx *net;
	struct tiny_meta meta;
	struct meta_host meta_host;
	struct data_host data;
	uint64_t capacity;
};

static void start_meta(struct fixture *f)
{
	f->meta.version = 3;
	f->meta.epoch = 2;
	f->meta.owner = 1;
	meta_host_start(&f->meta_host, f->net, &meta_ops, &f->meta);
}

static void start_data(struct fixture *f)
{
	data_host_start(&f->data, f->net, f->dir, "inproc://data", f->capacity);
}

static struct fixture *setup_with(uint64_t capacity)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err = { 0 };

	f->dir = help_dir();
	f->capacity = capacity;
	f->net = net_ctx_new(NULL, NULL, &err);
	assert_non_null(f->net);
	start_meta(f);
	start_data(f);
	return f;
}

static void teardown(struct fixture *f)
{
	data_host_stop(&f->data);
	meta_host_stop(&f->meta_host);
	net_ctx_free(f->net);
	help_dir_remove(f->dir);
	free(f);
}

/* A call that waits until the server has joined. */
static int call(struct net_client *c, Vmdedup__Request *req, const struct net_frame *frames,
		size_t nr, struct net_reply *reply)
{
	for (int tries = 0; tries < 1000; tries++) {
		int r = net_call(c, req, frames, nr, TIMEOUT, reply, NULL);

		if (r != -EAGAIN)
			return r;
		net_reply_free(reply);
		poll(NULL, 0, 10);
	}
	return -ETIMEDOUT;
}

/* ---- requests ---- */

struct put_block {
	struct fp fp;
	int codec;
	uint32_t raw_size;
	struct net_frame frame;
};

static int put(struct net_client *c, uint64_t version, const struct put_block *blocks, size_t nr,
	       struct net_reply *reply)
{
	Vmdedup__BlockHead heads[PROTO_MAX_BLOCKS], *pointers[PROTO_MAX_BLOCKS];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Put p = VMDEDUP__PUT__INIT;
	struct net_frame frames[PROTO_MAX_BLOCKS];

	for (size_t i = 0; i < nr; i++) {
		vmdedup__block_head__init(&heads[i]);
		heads[i].fingerprint = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)blocks[i].fp.b };
		heads[i].codec = (Vmdedup__Codec)blocks[i].codec;
		heads[i].raw_size = blocks[i].raw_size;
		pointers[i] = &heads[i];
		frames[i] = blocks[i].frame;
	}
	p.map_version = version;
	p.n_blocks = nr;
	p.blocks = pointers;
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &p;
	return call(c, &req, frames, nr, reply);
}

/* Blocks first.. in one PUT; 0 when all were receipted, by receipts that are authentic. */
static int put_range(struct net_client *c, uint64_t first, size_t nr)
{
	struct put_block *blocks = calloc(nr, sizeof(*blocks));
	uint8_t (*data)[TEST_BLOCK] = malloc(nr * sizeof(*data));
	struct net_reply reply;
	size_t receipted = 0;
	int r;

	for (size_t i = 0; i < nr; i++) {
		help_block(first + i, data[i], &blocks[i].fp);
		blocks[i].raw_size = TEST_BLOCK;
		blocks[i].frame = (struct net_frame){ .data = data[i], .len = TEST_BLOCK };
	}
	r = put(c, 3, blocks, nr, &reply);
	if (!r) {
		const Vmdedup__PutReply *p = reply.header->put;

		assert_int_equal(p->n_errors, nr);
		for (size_t i = 0; i < nr && !r; i++)
			r = -p->errors[i];
		for (size_t i = 0; i < p->n_receipts; i++) {
			assert_true(receipt_is_authentic(p->receipts[i], receipt_key));
			assert_true(p->receipts[i]->epoch >= 2);
			receipted += p->receipts[i]->fingerprints.len / FP_SIZE;
		}
		if (!r)
			assert_int_equal(receipted, nr);
	}
	net_reply_free(&reply);
	free(blocks);
	free(data);
	return r;
}

static int touch(struct net_client *c, uint64_t n, uint64_t version, uint64_t *epoch)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Touch t = VMDEDUP__TOUCH__INIT;
	struct net_reply reply;
	uint8_t data[TEST_BLOCK];
	struct fp fp;
	int r;

	help_block(n, data, &fp);
	t.map_version = version;
	t.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	req.body_case = VMDEDUP__REQUEST__BODY_TOUCH;
	req.touch = &t;
	r = call(c, &req, NULL, 0, &reply);
	if (!r && reply.header->touch->missing.len)
		r = -ENOENT;
	if (!r && epoch)
		*epoch = reply.header->touch->receipts[0]->epoch;
	if (r == -ESTALE)
		assert_int_equal(reply.header->map->version, 4);
	net_reply_free(&reply);
	return r;
}

/* 0: there, with its content, decoded here. */
static int get_version(struct net_client *c, uint64_t n, uint64_t version, bool raw_only)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Get g = VMDEDUP__GET__INIT;
	uint8_t data[TEST_BLOCK], out[TEST_BLOCK];
	struct net_reply reply;
	struct fp fp;
	int r;

	help_block(n, data, &fp);
	g.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	g.map_version = version;
	g.raw_only = raw_only;
	req.body_case = VMDEDUP__REQUEST__BODY_GET;
	req.get = &g;
	r = call(c, &req, NULL, 0, &reply);
	if (!r) {
		const Vmdedup__BlockHead *head = reply.header->get->blocks[0];

		r = -head->error;
		if (r) {
			assert_int_equal(reply.nr_frames, 0);
		} else {
			assert_int_equal(reply.nr_frames, 1);
			assert_int_equal(head->raw_size, TEST_BLOCK);
			if (head->codec == VMDEDUP__CODEC__ZSTD)
				assert_int_equal(ZSTD_decompress(out, sizeof(out),
								 reply.frames[0].data,
								 reply.frames[0].len), TEST_BLOCK);
			else
				memcpy(out, reply.frames[0].data, TEST_BLOCK);
			assert_memory_equal(out, data, TEST_BLOCK);
		}
	}
	net_reply_free(&reply);
	return r;
}

static int get(struct net_client *c, uint64_t n, bool raw_only)
{
	return get_version(c, n, 0, raw_only);
}

static void stat_of(struct net_client *c, Vmdedup__DataStatReply *out)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__DataStat s = VMDEDUP__DATA_STAT__INIT;
	struct net_reply reply;

	req.body_case = VMDEDUP__REQUEST__BODY_DATA_STAT;
	req.data_stat = &s;
	assert_int_equal(call(c, &req, NULL, 0, &reply), 0);
	*out = *reply.header->data_stat;
	out->disk.data = NULL;
	net_reply_free(&reply);
}

/* ---- tests ---- */

static void put_get_touch_restart(void **state)
{
	struct fixture *f = setup_with(0);
	Vmdedup__DataStatReply st;
	uint64_t epoch;

	assert_int_equal(get(f->data.client, 1, false), -ENOENT);
	assert_int_equal(put_range(f->data.client, 0, 256), 0);
	assert_int_equal(put_range(f->data.client, 250, 10), 0);
	for (uint64_t i = 0; i < 260; i++)
		assert_int_equal(get(f->data.client, i, i % 2), 0);
	assert_int_equal(touch(f->data.client, 5, 3, &epoch), 0);
	assert_int_equal(epoch, 2);
	assert_int_equal(touch(f->data.client, 999, 3, NULL), -ENOENT);
	stat_of(f->data.client, &st);
	assert_int_equal(st.blocks, 260);
	assert_int_equal(st.put_dups, 6);
	data_host_stop(&f->data);
	start_data(f);
	for (uint64_t i = 0; i < 260; i++)
		assert_int_equal(get(f->data.client, i, false), 0);
	teardown(f);
}

/* Who asks with an old map is served as long as the shard is here; then gets the new map. */
static void moved_shard_gets_the_new_map(void **state)
{
	struct fixture *f = setup_with(0);
	int r = 0;

	assert_int_equal(put_range(f->data.client, 0, 1), 0);
	assert_int_equal(touch(f->data.client, 0, 2, NULL), 0);
	f->meta.owner = 2;
	f->meta.version = 4;
	for (int i = 0; i < 6000 && !r; i++) {
		r = touch(f->data.client, 0, 4, NULL);
		poll(NULL, 0, 10);
	}
	assert_int_equal(r, -ESTALE);
	assert_int_equal(touch(f->data.client, 0, 3, NULL), -ESTALE);
	assert_int_equal(put_range(f->data.client, 1, 1), -ESTALE);
	assert_int_equal(get_version(f->data.client, 0, 3, false), -ESTALE);
	assert_int_equal(get(f->data.client, 0, false), 0); /* from whoever has it */
	teardown(f);
}

/* A client with a newer map makes the server fetch it. */
static void newer_map_is_fetched(void **state)
{
	struct fixture *f = setup_with(0);
	uint64_t epoch = 0;

	assert_int_equal(put_range(f->data.client, 0, 1), 0);
	f->meta.epoch = 9;
	f->meta.version = 4;
	for (int i = 0; i < 6000 && epoch != 9; i++) {
		assert_int_equal(touch(f->data.client, 0, 4, &epoch), 0);
		poll(NULL, 0, 10);
	}
	assert_int_equal(epoch, 9);
	teardown(f);
}

static void hostile_put(void **state)
{
	struct fixture *f = setup_with(0);
	struct put_block blocks[7];
	uint8_t data[TEST_BLOCK], zeros[1 << 20], bomb[4096], frame[TEST_BLOCK + 1024];
	struct net_reply reply;
	Vmdedup__DataStatReply st;
	size_t bomb_len, len;

	memset(zeros, 0, sizeof(zeros));
	help_block(1, data, &blocks[0].fp);
	bomb_len = ZSTD_compress(bomb, sizeof(bomb), zeros, sizeof(zeros), 1);
	assert_false(ZSTD_isError(bomb_len));
	len = ZSTD_compress(frame, sizeof(frame), data, sizeof(data), 1);
	assert_false(ZSTD_isError(len));
	for (size_t i = 1; i < ARRAY_SIZE(blocks); i++)
		blocks[i].fp = blocks[0].fp;
	/* not its content */
	blocks[0] = (struct put_block){ blocks[0].fp, 0, TEST_BLOCK, { zeros, TEST_BLOCK, 0, 0 } };
	/* larger than a block */
	blocks[1] = (struct put_block){ blocks[0].fp, 0, 1 << 20, { zeros, 1 << 20, 0, 0 } };
	/* a megabyte in a few bytes, that says it is a block */
	blocks[2] = (struct put_block){ blocks[0].fp, 1, TEST_BLOCK, { bomb, bomb_len, 0, 0 } };
	/* lengths that differ */
	blocks[3] = (struct put_block){ blocks[0].fp, 0, TEST_BLOCK, { data, 100, 0, 0 } };
	/* no frame */
	blocks[4] = (struct put_block){ blocks[0].fp, 1, TEST_BLOCK, { data, TEST_BLOCK, 0, 0 } };
	/* half a frame */
	blocks[5] = (struct put_block){ blocks[0].fp, 1, TEST_BLOCK, { frame, len / 2, 0, 0 } };
	/* a codec of the future */
	blocks[6] = (struct put_block){ blocks[0].fp, 9, TEST_BLOCK, { data, TEST_BLOCK, 0, 0 } };
	assert_int_equal(put(f->data.client, 3, blocks, ARRAY_SIZE(blocks), &reply), 0);
	assert_int_equal(reply.header->put->n_receipts, 0);
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++)
		assert_true(reply.header->put->errors[i] == EBADMSG ||
			    reply.header->put->errors[i] == EINVAL);
	net_reply_free(&reply);

	/* A frame and something behind it; then the frame alone, which is longer than raw. */
	blocks[0].codec = 1;
	blocks[0].frame = (struct net_frame){ .data = frame, .len = len + 1 };
	assert_int_equal(put(f->data.client, 3, blocks, 1, &reply), 0);
	assert_int_equal(reply.header->put->errors[0], EBADMSG);
	net_reply_free(&reply);
	blocks[0].frame.len = len;
	assert_int_equal(put(f->data.client, 3, blocks, 1, &reply), 0);
	assert_int_equal(reply.header->put->errors[0], 0);
	net_reply_free(&reply);
	assert_int_equal(get(f->data.client, 1, false), 0);
	stat_of(f->data.client, &st);
	assert_int_equal(st.blocks, 1);
	assert_true(st.stored_bytes <= TEST_BLOCK + 128);
	teardown(f);
}

static void raw_that_shrinks_is_coded(void **state)
{
	struct fixture *f = setup_with(0);
	struct fp_hasher *h = fp_hasher_new(FP_SHA256, NULL, 0);
	uint8_t data[TEST_BLOCK] = "text text text";
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Get g = VMDEDUP__GET__INIT;
	struct put_block b = { .raw_size = TEST_BLOCK, .frame = { data, TEST_BLOCK, 0, 0 } };
	Vmdedup__DataStatReply st;
	struct net_reply reply;

	fp_hash(h, data, sizeof(data), &b.fp);
	fp_hasher_free(h);
	assert_int_equal(put(f->data.client, 3, &b, 1, &reply), 0);
	assert_int_equal(reply.header->put->errors[0], 0);
	net_reply_free(&reply);
	stat_of(f->data.client, &st);
	assert_true(st.stored_bytes < 256);
	assert_int_equal(st.raw_bytes, TEST_BLOCK);
	for (int raw = 0; raw < 2; raw++) {
		g.fingerprints = (ProtobufCBinaryData){ FP_SIZE, b.fp.b };
		g.raw_only = raw;
		req.body_case = VMDEDUP__REQUEST__BODY_GET;
		req.get = &g;
		assert_int_equal(call(f->data.client, &req, NULL, 0, &reply), 0);
		assert_int_equal(reply.header->get->blocks[0]->codec, !raw);
		if (raw)
			assert_memory_equal(reply.frames[0].data, data, TEST_BLOCK);
		net_reply_free(&reply);
	}
	teardown(f);
}

static void full_disk_is_said(void **state)
{
	struct fixture *f = setup_with(3 << 20);
	uint64_t n = 0;
	int r = 0;

	while (!r && n < 1000) {
		r = put_range(f->data.client, n, 50);
		n += 50;
	}
	assert_int_equal(r, -ENOSPC);
	for (uint64_t i = 0; i + 50 < n; i++)
		assert_int_equal(get(f->data.client, i, false), 0);
	assert_int_equal(put_range(f->data.client, 0, 50), 0); /* what is there is there */
	teardown(f);
}

static void rebuilt_index_joins_with_a_new_incarnation(void **state)
{
	struct fixture *f = setup_with(0);
	uint64_t before, joins;
	char path[512];

	assert_int_equal(put_range(f->data.client, 0, 20), 0);
	before = f->meta.incarnation;
	data_host_stop(&f->data);
	help_path(path, f->dir, "index/data.mdb");
	assert_int_equal(unlink(path), 0);
	joins = f->meta.joins;
	start_data(f);
	assert_int_equal(put_range(f->data.client, 10, 20), 0);
	assert_true(f->meta.joins > joins);
	assert_true(f->meta.incarnation > before);
	for (uint64_t i = 0; i < 30; i++)
		assert_int_equal(get(f->data.client, i, false), 0);
	teardown(f);
}

/* The meta server has heard of a later process with this disk (a copy's, or one whose request came late): the
 * server that lives goes on as a new process, also after it was started again. */
static void former_process_joins_anew(void **state)
{
	struct fixture *f = setup_with(0);

	assert_int_equal(put_range(f->data.client, 0, 20), 0);
	data_host_stop(&f->data);
	f->meta.refuses = true;
	start_data(f);
	assert_int_equal(put_range(f->data.client, 20, 20), 0);
	for (uint64_t i = 0; i < 40; i++)
		assert_int_equal(get(f->data.client, i, false), 0);
	assert_int_equal(f->meta.refused, 1);
	assert_false(uuid_is_null(&f->meta.former));
	teardown(f);
}

/* What it stored before would be taken for a copy's if it ended then; see Documentation/meta.rst. */
static void nothing_is_stored_before_the_disk_names_it(void **state)
{
	struct fixture *f = setup_with(0);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Touch t = VMDEDUP__TOUCH__INIT;
	struct net_reply reply;
	struct fp fp = { { 1 } };

	assert_int_equal(put_range(f->data.client, 0, 1), 0);
	data_host_stop(&f->data);
	f->meta.unsettled = true;
	start_data(f);
	while (f->meta.held < 3)
		poll(NULL, 0, 10);
	t.map_version = 3;
	t.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	req.body_case = VMDEDUP__REQUEST__BODY_TOUCH;
	req.touch = &t;
	assert_int_equal(net_call(f->data.client, &req, NULL, 0, TIMEOUT, &reply, NULL), -EAGAIN);
	net_reply_free(&reply);
	f->meta.unsettled = false;
	assert_int_equal(put_range(f->data.client, 1, 1), 0);
	teardown(f);
}

/* A JOIN would say that it is up, and the map that comes with it could not be taken. */
static void a_server_whose_store_failed_does_not_join(void **state)
{
	struct fixture *f = setup_with(0);
	uint64_t joins;

	assert_int_equal(put_range(f->data.client, 0, 1), 0);
	joins = f->meta.joins;
	bstore_fail(f->data.server->store, -EIO, "a test");
	f->meta.epoch = 9;
	f->meta.version = 4;
	/* It would take the map that these name, and each time it cannot join at once. */
	for (int i = 0; i < 200; i++) {
		assert_int_equal(get_version(f->data.client, 0, 4, false), 0);
		poll(NULL, 0, 10);
	}
	assert_int_equal(put_range(f->data.client, 1, 1), -EIO);
	assert_int_equal(f->meta.joins, joins);
	teardown(f);
}

static void many_requests_at_once_done(void *arg, int r, struct net_reply *reply)
{
	int *left = arg;

	assert_int_equal(r, 0);
	assert_int_equal(reply->header->error, 0);
	assert_int_equal(reply->nr_frames, reply->header->get->n_blocks);
	net_reply_free(reply);
	--*left;
}

static void many_requests_at_once(void **state)
{
	struct fixture *f = setup_with(0);
	uint8_t data[TEST_BLOCK];
	struct fp fps[256];
	int left = 200;

	assert_int_equal(put_range(f->data.client, 0, 256), 0);
	for (size_t i = 0; i < 256; i++)
		help_block(i, data, &fps[i]);
	for (int i = 0; i < 200; i++) { /* 400 MiB of answers, more than may be under way */
		Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
		Vmdedup__Get g = VMDEDUP__GET__INIT;

		g.fingerprints = (ProtobufCBinaryData){ sizeof(fps), fps[0].b };
		req.body_case = VMDEDUP__REQUEST__BODY_GET;
		req.get = &g;
		assert_int_equal(net_client_submit(f->data.client, &req, NULL, 0, TIMEOUT,
						   many_requests_at_once_done, &left), 0);
	}
	while (left)
		net_client_run(f->data.client, -1);
	teardown(f);
}

static void delete_and_list(void **state)
{
	struct fixture *f = setup_with(0);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardDelete del = VMDEDUP__SHARD_DELETE__INIT;
	Vmdedup__ShardList list = VMDEDUP__SHARD_LIST__INIT;
	struct net_reply reply;
	uint8_t data[TEST_BLOCK];
	struct fp fp;

	assert_int_equal(put_range(f->data.client, 0, 1), 0);
	help_block(0, data, &fp);
	del.shard = list.shard = fp_shard(&fp);
	del.below_epoch = 2;
	del.fingerprints = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_DELETE;
	req.shard_delete = &del;
	assert_int_equal(call(f->data.client, &req, NULL, 0, &reply), 0);
	assert_int_equal(reply.header->shard_delete->kept, 1);
	net_reply_free(&reply);
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_LIST;
	req.shard_list = &list;
	assert_int_equal(call(f->data.client, &req, NULL, 0, &reply), 0);
	assert_int_equal(reply.header->shard_list->fingerprints.len, FP_SIZE);
	assert_memory_equal(reply.header->shard_list->fingerprints.data, fp.b, FP_SIZE);
	assert_int_equal(reply.header->shard_list->epochs[0], 2);
	net_reply_free(&reply);
	/* Somebody means another disk, which was at this address before. */
	list.disk = (ProtobufCBinaryData){ 16, (uint8_t *)"yesterday's disk" };
	assert_int_equal(call(f->data.client, &req, NULL, 0, &reply), -ESTALE);
	net_reply_free(&reply);
	list.disk.len = 15;
	assert_int_equal(call(f->data.client, &req, NULL, 0, &reply), -ESTALE);
	net_reply_free(&reply);
	del.below_epoch = 3;
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_DELETE;
	req.shard_delete = &del;
	assert_int_equal(call(f->data.client, &req, NULL, 0, &reply), 0);
	assert_int_equal(reply.header->shard_delete->deleted, 1);
	net_reply_free(&reply);
	assert_int_equal(get(f->data.client, 0, false), -ENOENT);
	del.shard = del.shard ^ 1;
	assert_int_equal(call(f->data.client, &req, NULL, 0, &reply), -EINVAL);
	net_reply_free(&reply);
	teardown(f);
}

/* ---- kill -9 in the middle of PUTs, with a process of its own ---- */

/* vmdedup-data's part, in the child: serves until it is killed. */
static int serve(char *dir, const char *endpoint)
{
	struct fixture f = { .dir = dir };
	struct error err = { 0 };

	f.net = net_ctx_new(NULL, NULL, &err);
	start_meta(&f);
	data_host_start(&f.data, f.net, dir, endpoint, 0);
	pthread_join(f.data.thread, NULL);
	return 1;
}

static pid_t spawn(const char *dir, const char *endpoint)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		execl("/proc/self/exe", "data_server_test", "--serve", dir, endpoint, NULL);
		_exit(127);
	}
	return pid;
}

struct put_state {
	uint64_t first;
	bool done, ok;
};

static void killed_put_done(void *arg, int r, struct net_reply *reply)
{
	struct put_state *p = arg;

	p->done = true;
	p->ok = !r && !reply->header->error;
	if (!r) {
		for (size_t i = 0; p->ok && i < reply->header->put->n_errors; i++)
			p->ok = !reply->header->put->errors[i];
		net_reply_free(reply);
	}
}

#define KILL_BLOCKS 16

static void submit_put(struct net_client *c, struct put_state *p)
{
	Vmdedup__BlockHead heads[KILL_BLOCKS], *pointers[KILL_BLOCKS];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Put body = VMDEDUP__PUT__INIT;
	struct net_frame frames[KILL_BLOCKS];
	uint8_t data[KILL_BLOCKS][TEST_BLOCK];
	struct fp fps[KILL_BLOCKS];

	for (size_t i = 0; i < KILL_BLOCKS; i++) {
		help_block(p->first + i, data[i], &fps[i]);
		vmdedup__block_head__init(&heads[i]);
		heads[i].fingerprint = (ProtobufCBinaryData){ FP_SIZE, fps[i].b };
		heads[i].raw_size = TEST_BLOCK;
		pointers[i] = &heads[i];
		frames[i] = (struct net_frame){ .data = data[i], .len = TEST_BLOCK };
	}
	body.map_version = 3;
	body.n_blocks = KILL_BLOCKS;
	body.blocks = pointers;
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &body;
	assert_int_equal(net_client_submit(c, &req, frames, KILL_BLOCKS, 2000, killed_put_done, p), 0);
}

static void killed_in_mid_put(void **state)
{
	enum { ROUNDS = 5, PUTS = 400 };
	static struct put_state puts[ROUNDS * PUTS];
	char *dir = help_dir(), endpoint[600], data_dir[512];
	struct error err = { 0 };
	struct net_ctx *net = net_ctx_new(NULL, NULL, &err);
	size_t receipted = 0, lost = 0;
	struct net_client *c;
	pid_t pid;

	help_path(data_dir, dir, "disk");
	snprintf(endpoint, sizeof(endpoint), "ipc://%s/sock", dir);
	for (size_t round = 0; round < ROUNDS; round++) {
		size_t base = round * PUTS, sent = 0, answered = 0;

		pid = spawn(data_dir, endpoint);
		c = net_client_new(net, endpoint, NULL, "cli", &err);
		assert_non_null(c);
		assert_int_equal(put_range(c, 1000000 + round, 1), 0); /* joined */
		/* Eight under way; killed after some number of answers. */
		while (answered < 20 + round * 7) {
			while (sent < PUTS && net_client_pending(c) < 8) {
				puts[base + sent].first = (base + sent) * KILL_BLOCKS;
				submit_put(c, &puts[base + sent++]);
			}
			net_client_run(c, -1);
			answered = 0;
			for (size_t i = 0; i < sent; i++)
				answered += puts[base + i].done;
		}
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		net_client_free(c); /* the rest end with -ECANCELED */
	}
	pid = spawn(data_dir, endpoint);
	c = net_client_new(net, endpoint, NULL, "cli", &err);
	for (size_t i = 0; i < ARRAY_SIZE(puts); i++) {
		if (!puts[i].ok)
			continue;
		receipted++;
		for (size_t b = 0; b < KILL_BLOCKS; b++)
			lost += get(c, puts[i].first + b, false) != 0;
	}
	assert_int_equal(lost, 0);
	assert_true(receipted >= ROUNDS * 20);
	net_client_free(c);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	net_ctx_free(net);
	help_dir_remove(dir);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(put_get_touch_restart),
		cmocka_unit_test(moved_shard_gets_the_new_map),
		cmocka_unit_test(newer_map_is_fetched),
		cmocka_unit_test(hostile_put),
		cmocka_unit_test(raw_that_shrinks_is_coded),
		cmocka_unit_test(full_disk_is_said),
		cmocka_unit_test(rebuilt_index_joins_with_a_new_incarnation),
		cmocka_unit_test(former_process_joins_anew),
		cmocka_unit_test(nothing_is_stored_before_the_disk_names_it),
		cmocka_unit_test(a_server_whose_store_failed_does_not_join),
		cmocka_unit_test(many_requests_at_once),
		cmocka_unit_test(delete_and_list),
		cmocka_unit_test(killed_in_mid_put),
	};

	if (argc == 4 && !strcmp(argv[1], "--serve"))
		return serve(argv[2], argv[3]);
	return cmocka_run_group_tests_name("data_server", tests, NULL, NULL);
}
