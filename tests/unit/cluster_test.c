// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The client library against servers that misbehave on demand: a meta server and two data
 * servers of few lines, on sockets, whose answers each test scripts.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zstd.h>

#include "base/cleanup.h"
#include "lib/cluster.h"
#include "proto/limits.h"

#define BLOCK	   4096
#define MAX_STORED 4096
#define MAX_SEEN   64
#define TIMEOUT_MS 30000

/* ---- a data server ---- */

struct data {
	struct net_server *net;
	pthread_t thread;
	struct fp fps[MAX_STORED];
	uint8_t *coded[MAX_STORED];
	size_t len[MAX_STORED];
	Vmdedup__Codec codec[MAX_STORED];
	atomic_size_t count;
	atomic_int puts, touches, gets;
	atomic_int corrupt;	  /* gets answer with a flipped bit */
	atomic_int forgets;	  /* touch and get find nothing */
	atomic_int full;	  /* ENOSPC after so many blocks; 0: never */
	atomic_uint map_version;  /* requests with an older one get ESTALE; 0: any */
	struct fakes *all;
};

/* ---- a meta server ---- */

struct fakes {
	struct net_ctx *ctx;
	struct data data[2];
	struct net_server *meta;
	pthread_t meta_thread;
	atomic_uint map_version;
	atomic_int reports;	/* of data servers found wanting */
	atomic_int shard_swap;	/* the second data server stands first in the map */
	atomic_int lone;	/* only one replica */
	atomic_int lose_answers; /* so many mutations are done and not answered */
	/* The results of mutations, by sequence. */
	atomic_uint done_sequence;
	atomic_int done_times;
	/* What the push brought. */
	struct fp receipts[MAX_STORED];
	size_t nr_receipts;
	atomic_int leaves, nodes, unvouched, commits, aborts;
	atomic_int refuse_receipts; /* so many commits answer EAGAIN with a redo list */
	struct fp refused;
	bool clean; /* the test has come to its end */
};

static void pack_map(struct fakes *f, Vmdedup__MapReply *map, Vmdedup__Server servers[2],
		     Vmdedup__Server *pointers[2], uint32_t *shards)
{
	static uint8_t disk[16];

	vmdedup__map_reply__init(map);
	for (int i = 0; i < 2; i++) {
		vmdedup__server__init(&servers[i]);
		servers[i].id = i + 1;
		servers[i].disk.data = disk;
		servers[i].disk.len = 16;
		servers[i].endpoint = (char *)net_server_endpoint(f->data[i].net, 0);
		pointers[i] = &servers[i];
	}
	map->version = f->map_version;
	map->n_servers = 2;
	map->servers = pointers;
	map->replicas = f->lone ? 1 : 2;
	for (int i = 0; i < NR_SHARDS; i++) {
		shards[i * map->replicas] = f->shard_swap ? 2 : 1;
		if (!f->lone)
			shards[i * 2 + 1] = f->shard_swap ? 1 : 2;
	}
	map->n_shard_servers = NR_SHARDS * map->replicas;
	map->shard_servers = shards;
}

static void send_map(struct fakes *f, struct net_request *req, int error)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__Server servers[2], *pointers[2];
	uint32_t shards[NR_SHARDS * 2];
	Vmdedup__MapReply map;

	pack_map(f, &map, servers, pointers, shards);
	reply.error = error;
	reply.body_case = VMDEDUP__REPLY__BODY_MAP;
	reply.map = &map;
	net_reply_send(req, &reply, NULL, 0);
}

static int data_find(struct data *d, const uint8_t *fp)
{
	if (d->forgets)
		return -1;
	for (size_t i = 0; i < d->count; i++)
		if (!memcmp(d->fps[i].b, fp, FP_SIZE))
			return i;
	return -1;
}

static void data_get(struct data *d, struct net_request *req, const Vmdedup__Get *get)
{
	size_t n = get->fingerprints.len / FP_SIZE, frames_n = 0;
	Vmdedup__BlockHead heads[PROTO_MAX_BLOCKS], *pointers[PROTO_MAX_BLOCKS];
	struct net_frame frames[PROTO_MAX_BLOCKS];
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__GetReply body = VMDEDUP__GET_REPLY__INIT;

	for (size_t i = 0; i < n; i++) {
		int at = data_find(d, get->fingerprints.data + i * FP_SIZE);

		vmdedup__block_head__init(&heads[i]);
		pointers[i] = &heads[i];
		if (at < 0) {
			heads[i].error = ENOENT;
			continue;
		}
		heads[i].codec = d->codec[at];
		if (d->corrupt)
			d->coded[at][d->len[at] - 1] ^= 1;
		frames[frames_n++] = (struct net_frame){ d->coded[at], d->len[at], NULL, NULL };
	}
	body.n_blocks = n;
	body.blocks = pointers;
	reply.body_case = VMDEDUP__REPLY__BODY_GET;
	reply.get = &body;
	net_reply_send(req, &reply, frames, frames_n);
}

static void receipt_init(Vmdedup__Receipt *r, uint8_t *fp)
{
	vmdedup__receipt__init(r);
	r->shard = fp[0] << 2 | fp[1] >> 6;
	r->fingerprints.data = fp;
	r->fingerprints.len = FP_SIZE;
}

static void data_touch(struct data *d, struct net_request *req, const Vmdedup__Touch *touch)
{
	size_t n = touch->fingerprints.len / FP_SIZE, missing = 0, held = 0;
	CLEANUP_FREE uint8_t *gone = malloc(touch->fingerprints.len);
	CLEANUP_FREE Vmdedup__Receipt *receipts = calloc(n, sizeof(*receipts));
	CLEANUP_FREE Vmdedup__Receipt **pointers = calloc(n, sizeof(*pointers));
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__TouchReply body = VMDEDUP__TOUCH_REPLY__INIT;

	for (size_t i = 0; i < n; i++) {
		uint8_t *fp = touch->fingerprints.data + i * FP_SIZE;

		if (data_find(d, fp) < 0) {
			memcpy(gone + missing++ * FP_SIZE, fp, FP_SIZE);
			continue;
		}
		receipt_init(&receipts[held], fp);
		pointers[held] = &receipts[held];
		held++;
	}
	body.missing.data = gone;
	body.missing.len = missing * FP_SIZE;
	body.n_receipts = held;
	body.receipts = pointers;
	reply.body_case = VMDEDUP__REPLY__BODY_TOUCH;
	reply.touch = &body;
	net_reply_send(req, &reply, NULL, 0);
}

static void data_store(struct data *d, const uint8_t *fp, Vmdedup__Codec codec, const void *coded,
		       size_t len)
{
	size_t at = d->count;

	assert(at < MAX_STORED);
	memcpy(d->fps[at].b, fp, FP_SIZE);
	d->codec[at] = codec;
	d->len[at] = len;
	d->coded[at] = malloc(len);
	memcpy(d->coded[at], coded, len);
	d->count++;
}

static void data_put(struct data *d, struct net_request *req, const Vmdedup__Put *put)
{
	size_t n = put->n_blocks, held = 0;
	CLEANUP_FREE Vmdedup__Receipt *receipts = calloc(n, sizeof(*receipts));
	CLEANUP_FREE Vmdedup__Receipt **pointers = calloc(n, sizeof(*pointers));
	CLEANUP_FREE int32_t *errors = calloc(n, sizeof(*errors));
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__PutReply body = VMDEDUP__PUT_REPLY__INIT;

	for (size_t i = 0; i < n; i++) {
		uint8_t *fp = put->blocks[i]->fingerprint.data;
		size_t len;
		const void *frame = net_request_frame(req, i, &len);

		if (d->full && (int)d->count >= d->full) {
			errors[i] = ENOSPC;
			continue;
		}
		data_store(d, fp, put->blocks[i]->codec, frame, len);
		receipt_init(&receipts[held], fp);
		pointers[held] = &receipts[held];
		held++;
	}
	body.n_receipts = held;
	body.receipts = pointers;
	body.n_errors = n;
	body.errors = errors;
	reply.body_case = VMDEDUP__REPLY__BODY_PUT;
	reply.put = &body;
	net_reply_send(req, &reply, NULL, 0);
}

static void data_handle(void *ctx, struct net_request *req)
{
	const Vmdedup__Request *h = net_request_header(req);
	struct data *d = ctx;
	uint64_t version = 0;

	switch (h->body_case) {
	case VMDEDUP__REQUEST__BODY_GET:
		version = h->get->map_version;
		d->gets++;
		break;
	case VMDEDUP__REQUEST__BODY_TOUCH:
		version = h->touch->map_version;
		d->touches++;
		break;
	case VMDEDUP__REQUEST__BODY_PUT:
		version = h->put->map_version;
		d->puts++;
		break;
	default:
		net_reply_error(req, EOPNOTSUPP, "not by a test's server");
		return;
	}
	if (version < d->map_version)
		send_map(d->all, req, ESTALE);
	else if (h->body_case == VMDEDUP__REQUEST__BODY_GET)
		data_get(d, req, h->get);
	else if (h->body_case == VMDEDUP__REQUEST__BODY_TOUCH)
		data_touch(d, req, h->touch);
	else
		data_put(d, req, h->put);
}

static bool vouched(struct fakes *f, const struct fp *fp)
{
	for (size_t i = 0; i < f->nr_receipts; i++)
		if (fp_equal(&f->receipts[i], fp))
			return true;
	return false;
}

static void meta_part(struct fakes *f, struct net_request *req, const Vmdedup__PushPart *part)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__PushPartReply body = VMDEDUP__PUSH_PART_REPLY__INIT;

	for (size_t i = 0; i < part->n_receipts; i++) {
		assert(f->nr_receipts < MAX_STORED);
		memcpy(f->receipts[f->nr_receipts++].b, part->receipts[i]->fingerprints.data,
		       FP_SIZE);
	}
	for (size_t i = 0; i < net_request_nr_frames(req); i++) {
		struct recipe_node node;
		struct error err;
		size_t len;
		const void *frame = net_request_frame(req, i, &len);

		if (recipe_node_decode(&node, frame, len, &err))
			abort();
		f->nodes++;
		if (node.level)
			continue;
		f->leaves++;
		for (unsigned int e = 0; e < node.count; e++)
			if (!fp_is_zero(&node.entries[e]) && !vouched(f, &node.entries[e]))
				f->unvouched++;
	}
	reply.body_case = VMDEDUP__REPLY__BODY_PUSH_PART;
	reply.push_part = &body;
	net_reply_send(req, &reply, NULL, 0);
}

static void meta_commit(struct fakes *f, struct net_request *req, const Vmdedup__PushCommit *commit)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__PushCommitReply body = VMDEDUP__PUSH_COMMIT_REPLY__INIT;
	Vmdedup__PushPartReply again = VMDEDUP__PUSH_PART_REPLY__INIT;

	if (f->refuse_receipts > 0) {
		f->refuse_receipts--;
		again.redo_blocks.data = f->refused.b;
		again.redo_blocks.len = FP_SIZE;
		reply.error = EAGAIN;
		reply.error_text = (char *)"receipts are of an old epoch";
		reply.body_case = VMDEDUP__REPLY__BODY_PUSH_PART;
		reply.push_part = &again;
	} else {
		f->commits++;
		body.root = commit->root;
		body.version = 7;
		reply.body_case = VMDEDUP__REPLY__BODY_PUSH_COMMIT;
		reply.push_commit = &body;
	}
	net_reply_send(req, &reply, NULL, 0);
}

static void meta_mutation(struct fakes *f, struct net_request *req, const Vmdedup__Request *h)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__PushBeginReply begin = VMDEDUP__PUSH_BEGIN_REPLY__INIT;
	Vmdedup__Image image = VMDEDUP__IMAGE__INIT;

	if (h->mutation->session != 42)
		abort();
	if (h->mutation->sequence > f->done_sequence) {
		f->done_sequence = h->mutation->sequence;
		f->done_times++;
	}
	switch (h->body_case) {
	case VMDEDUP__REQUEST__BODY_PUSH_PART:
		meta_part(f, req, h->push_part);
		return;
	case VMDEDUP__REQUEST__BODY_PUSH_COMMIT:
		meta_commit(f, req, h->push_commit);
		return;
	case VMDEDUP__REQUEST__BODY_PUSH_ABORT:
		f->aborts++;
		break;
	case VMDEDUP__REQUEST__BODY_PUSH_BEGIN:
		begin.push = 5;
		reply.body_case = VMDEDUP__REPLY__BODY_PUSH_BEGIN;
		reply.push_begin = &begin;
		break;
	default:
		reply.body_case = VMDEDUP__REPLY__BODY_IMAGE;
		reply.image = &image;
	}
	net_reply_send(req, &reply, NULL, 0);
}

static void meta_info(struct net_request *req)
{
	static uint8_t uuid[16] = { 1 };
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__ClusterInfoReply info = VMDEDUP__CLUSTER_INFO_REPLY__INIT;
	Vmdedup__Domain domain = VMDEDUP__DOMAIN__INIT, *domains[] = { &domain };

	domain.id = 1;
	domain.name = (char *)"public";
	info.cluster.data = uuid;
	info.cluster.len = 16;
	info.block_shift = 12;
	info.n_domains = 1;
	info.domains = domains;
	reply.body_case = VMDEDUP__REPLY__BODY_CLUSTER_INFO;
	reply.cluster_info = &info;
	net_reply_send(req, &reply, NULL, 0);
}

static void meta_handle(void *ctx, struct net_request *req)
{
	const Vmdedup__Request *h = net_request_header(req);
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__SessionOpenReply session = VMDEDUP__SESSION_OPEN_REPLY__INIT;
	struct fakes *f = ctx;

	if (h->mutation && f->lose_answers) {
		/* Done, and never answered: the client must come again with this sequence. */
		f->lose_answers--;
		f->done_sequence = h->mutation->sequence;
		f->done_times++;
		return;
	}
	switch (h->body_case) {
	case VMDEDUP__REQUEST__BODY_CLUSTER_INFO:
		meta_info(req);
		return;
	case VMDEDUP__REQUEST__BODY_MAP_GET:
		send_map(f, req, 0);
		return;
	case VMDEDUP__REQUEST__BODY_SESSION_OPEN:
		session.session = 42;
		reply.body_case = VMDEDUP__REPLY__BODY_SESSION_OPEN;
		reply.session_open = &session;
		net_reply_send(req, &reply, NULL, 0);
		return;
	case VMDEDUP__REQUEST__BODY_SERVER_REPORT:
		f->reports++;
		net_reply_send(req, &reply, NULL, 0);
		return;
	default:
		meta_mutation(f, req, h);
	}
}

static void *serve(void *arg)
{
	struct error err;

	net_server_run(arg, &err);
	return NULL;
}

static const uint8_t cluster_uuid[16] = { 1 };

static int fakes_start(void **state)
{
	static const struct net_server_ops data_ops = { .handle = data_handle };
	static const struct net_server_ops meta_ops = { .handle = meta_handle };
	struct fakes *f = calloc(1, sizeof(*f));
	struct error err;

	f->ctx = net_ctx_new(NULL, NULL, &err);
	f->map_version = 1;
	for (int i = 0; i < 2; i++) {
		struct data *d = &f->data[i];

		d->all = f;
		d->net = net_server_new(f->ctx, "data", cluster_uuid, &data_ops, d, 1000, &err);
		assert_int_equal(net_server_bind(d->net, "tcp://127.0.0.1:*", &err), 0);
	}
	f->meta = net_server_new(f->ctx, "meta", cluster_uuid, &meta_ops, f, 1000, &err);
	assert_int_equal(net_server_bind(f->meta, "inproc://test-meta", &err), 0);
	for (int i = 0; i < 2; i++)
		pthread_create(&f->data[i].thread, NULL, serve, f->data[i].net);
	pthread_create(&f->meta_thread, NULL, serve, f->meta);
	*state = f;
	return 0;
}

static int fakes_stop(void **state)
{
	struct fakes *f = *state;

	if (!f->clean)
		return -1; /* a failed test leaves its cluster open, and the context would wait */
	net_server_stop(f->meta);
	pthread_join(f->meta_thread, NULL);
	net_server_free(f->meta);
	for (int i = 0; i < 2; i++) {
		struct data *d = &f->data[i];

		net_server_stop(d->net);
		pthread_join(d->thread, NULL);
		net_server_free(d->net);
		for (size_t n = 0; n < d->count; n++)
			free(d->coded[n]);
	}
	net_ctx_free(f->ctx);
	free(f);
	return 0;
}

/* ---- helpers of the tests ---- */

static struct cluster *open_cluster(struct fakes *f)
{
	struct error err = { 0 };
	struct cluster *c = cluster_open(f->ctx, NULL, "inproc://test-meta", "cli", TIMEOUT_MS,
					 &err);

	if (!c)
		fail_msg("%s", err.text);
	return c;
}

static void make_block(uint8_t block[BLOCK], unsigned int seed, bool compressible)
{
	srandom(seed + 1);
	for (int i = 0; i < BLOCK; i++)
		block[i] = compressible ? i / 512 + 1 : random();
	memcpy(block, &seed, sizeof(seed));
	block[8] = 1;
}

static struct fp fp_of(struct cluster *c, const uint8_t *block)
{
	struct fp_hasher *h = cluster_hasher(c);
	struct fp fp;

	fp_hash(h, block, BLOCK, &fp);
	fp_hasher_free(h);
	return fp;
}

struct result {
	int calls, r;
	size_t len;
	uint8_t data[BLOCK];
};

static void got(void *arg, size_t index, int r, const void *data, size_t len)
{
	struct result *res = (struct result *)arg + index;

	res->calls++;
	res->r = r;
	res->len = len;
	if (!r)
		memcpy(res->data, data, len);
}

static void store(struct data *d, const struct fp *fp, const uint8_t *block)
{
	data_store(d, fp->b, VMDEDUP__CODEC__RAW, block, BLOCK);
}

/* ---- gets ---- */

static void test_get(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	uint8_t a[BLOCK], b[BLOCK], z[BLOCK];
	struct result res[3] = { 0 };
	struct fp fps[3];
	size_t n;

	make_block(a, 1, false);
	make_block(b, 2, true);
	fps[0] = fp_of(c, a);
	fps[1] = fp_of(c, b);
	fps[2] = fps[0];
	fps[2].b[5] ^= 1; /* nobody has it */
	store(&f->data[0], &fps[0], a); /* each on one of two replicas only */
	n = ZSTD_compress(z, sizeof(z), b, BLOCK, 1);
	data_store(&f->data[1], fps[1].b, VMDEDUP__CODEC__ZSTD, z, n);
	assert_int_equal(cluster_get(c, fps, 3, TIMEOUT_MS, got, res, NULL), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(res[i].calls, 1);
	assert_int_equal(res[0].r, 0);
	assert_memory_equal(res[0].data, a, BLOCK);
	assert_int_equal(res[1].r, 0);
	assert_int_equal(res[1].len, BLOCK);
	assert_memory_equal(res[1].data, b, BLOCK);
	assert_int_equal(res[2].r, -ENOENT);
	cluster_close(c);
	f->clean = true;
}

static void test_get_corrupt(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	uint8_t a[BLOCK];
	struct result res = { 0 };
	struct fp fp;

	make_block(a, 1, false);
	fp = fp_of(c, a);
	store(&f->data[0], &fp, a);
	store(&f->data[1], &fp, a);
	f->data[0].corrupt = 1;
	assert_int_equal(cluster_get(c, &fp, 1, TIMEOUT_MS, got, &res, NULL), 0);
	assert_int_equal(res.r, 0); /* from the good one, whichever was asked first */
	assert_memory_equal(res.data, a, BLOCK);
	f->data[1].corrupt = 1;
	memset(f->data[0].coded[0], 0, BLOCK);
	assert_int_equal(cluster_get(c, &fp, 1, TIMEOUT_MS, got, &res, NULL), 0);
	assert_int_equal(res.r, -EIO);
	cluster_close(c);
	f->clean = true;
}

static void test_get_hostile_zstd(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	static uint8_t big[1 << 20], z[4096];
	uint8_t a[BLOCK];
	struct result res = { 0 };
	struct fp fp;
	size_t n = ZSTD_compress(z, sizeof(z), big, sizeof(big), 1);

	make_block(a, 1, false);
	fp = fp_of(c, a);
	data_store(&f->data[0], fp.b, VMDEDUP__CODEC__ZSTD, z, n); /* a megabyte out of a few bytes */
	data_store(&f->data[1], fp.b, VMDEDUP__CODEC__ZSTD, "rubbish", 7);
	assert_int_equal(cluster_get(c, &fp, 1, TIMEOUT_MS, got, &res, NULL), 0);
	assert_int_equal(res.r, -EIO);
	cluster_close(c);
	f->clean = true;
}

static void test_get_old_map(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	uint8_t a[BLOCK];
	struct result res = { 0 };
	struct fp fp;

	make_block(a, 1, false);
	fp = fp_of(c, a);
	store(&f->data[0], &fp, a);
	f->map_version = 2;
	f->data[0].map_version = f->data[1].map_version = 2;
	assert_int_equal(cluster_get(c, &fp, 1, TIMEOUT_MS, got, &res, NULL), 0);
	assert_int_equal(res.r, 0);
	cluster_close(c);
	f->clean = true;
}

static void test_get_timeout(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	uint8_t a[BLOCK];
	struct result res = { 0 };
	struct fp fp;

	make_block(a, 1, false);
	fp = fp_of(c, a);
	for (int i = 0; i < 2; i++) {
		net_server_stop(f->data[i].net);
		pthread_join(f->data[i].thread, NULL);
	}
	assert_int_equal(cluster_get(c, &fp, 1, 300, got, &res, NULL), 0);
	assert_int_equal(res.r, -ETIMEDOUT);
	/* They come back, and the same cluster goes on. */
	store(&f->data[0], &fp, a);
	for (int i = 0; i < 2; i++)
		pthread_create(&f->data[i].thread, NULL, serve, f->data[i].net);
	cluster_close(c);
	f->clean = true;
}

/* ---- mutations ---- */

static void test_sequences(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	struct net_reply reply;
	struct error err;

	rm.name = (char *)"x";
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	for (int i = 1; i <= 3; i++) {
		assert_int_equal(cluster_mutate(c, &req, NULL, 0, TIMEOUT_MS, &reply, &err), 0);
		assert_int_equal(f->done_sequence, i);
		assert_int_equal(f->done_times, i);
		net_reply_free(&reply);
	}
	cluster_close(c);
	f->clean = true;
}

static void test_lost_answer(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	struct net_reply reply;
	struct error err;

	f->lose_answers = 1;
	rm.name = (char *)"x";
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, TIMEOUT_MS, &reply, &err), 0);
	net_reply_free(&reply);
	assert_int_equal(f->done_sequence, 1);
	assert_int_equal(f->done_times, 1);
	assert_int_equal(f->lose_answers, 0);

	/* Nobody ever answers: it may have been done, so its sequence is not used again. */
	f->lose_answers = 1;
	assert_int_equal(cluster_mutate(c, &req, NULL, 0, 300, &reply, &err), -ETIMEDOUT);
	net_reply_free(&reply);
	cluster_close(c);
	f->clean = true;
}

/* The first meta server of two is gone: the second is asked, with the same sequence. */
static void test_second_meta(void **state)
{
	struct fakes *f = *state;
	struct error err = { 0 };
	struct cluster *c = cluster_open(f->ctx, NULL, "tcp://127.0.0.1:1,inproc://test-meta", "cli",
					 TIMEOUT_MS, &err);

	if (!c)
		fail_msg("%s", err.text);
	cluster_close(c);
	c = cluster_open(f->ctx, NULL, "tcp://127.0.0.1:1", "cli", 300, &err);
	assert_null(c);
	assert_int_equal(err.code, -ETIMEDOUT);
	f->clean = true;
}

/* ---- pushes ---- */

#define IMAGE_BLOCKS 700

static struct cluster_push *begin(struct cluster *c)
{
	Vmdedup__PushBegin b = VMDEDUP__PUSH_BEGIN__INIT;
	struct error err = { 0 };
	struct cluster_push *p;

	b.name = (char *)"image";
	b.size = IMAGE_BLOCKS * BLOCK;
	p = cluster_push_begin(c, &b, NULL, &err);
	if (!p)
		fail_msg("%s", err.text);
	return p;
}

/* All blocks of an image, every tenth one a repetition. */
static int push_all(struct cluster *c, struct cluster_push *p, struct fp *root, struct error *err)
{
	struct recipe_builder *b = recipe_builder_new(IMAGE_BLOCKS * BLOCK, 12, FP_SHA256,
						      &cluster_push_recipe_ops, p);
	int r = 0;

	for (int i = 0; i < IMAGE_BLOCKS && !r; i++) {
		uint8_t block[BLOCK];
		struct fp fp;

		make_block(block, i % 10 ? i : 0, i & 1);
		fp = fp_of(c, block);
		r = cluster_push_block(p, &fp, block, BLOCK, err);
		if (!r)
			r = recipe_builder_add(b, &fp, err);
	}
	if (!r)
		r = recipe_builder_finish(b, root, err);
	recipe_builder_free(b);
	return r;
}

static void test_push(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	struct cluster_push *p = begin(c);
	Vmdedup__PushCommitReply *reply;
	struct cluster_push_stats stats;
	struct error err = { 0 };
	struct fp root, root2;
	uint8_t block[BLOCK];
	struct result res = { 0 };

	assert_int_equal(push_all(c, p, &root, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root, &reply, &err), 0);
	assert_int_equal(reply->version, 7);
	assert_memory_equal(reply->root.data, root.b, FP_SIZE);
	vmdedup__push_commit_reply__free_unpacked(reply, NULL);
	cluster_push_stats(p, &stats);
	cluster_push_free(p);
	assert_int_equal(stats.blocks, IMAGE_BLOCKS - 69);
	assert_int_equal(stats.new_blocks, IMAGE_BLOCKS - 69);
	assert_int_equal(f->data[0].count, IMAGE_BLOCKS - 69);
	assert_true(stats.bytes_sent < 500 * BLOCK);
	assert_int_equal(f->leaves, 3);
	assert_int_equal(stats.nodes, 4);
	assert_int_equal(f->unvouched, 0);
	assert_int_equal(f->commits, 1);
	assert_int_equal(f->aborts, 0);

	/* A second time nothing is new. */
	p = begin(c);
	assert_int_equal(push_all(c, p, &root2, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root2, NULL, &err), 0);
	cluster_push_stats(p, &stats);
	cluster_push_free(p);
	assert_int_equal(stats.new_blocks, 0);
	assert_memory_equal(root.b, root2.b, FP_SIZE);
	assert_int_equal(f->unvouched, 0);

	/* And what was stored comes back. */
	make_block(block, 3, true);
	root = fp_of(c, block);
	assert_int_equal(cluster_get(c, &root, 1, TIMEOUT_MS, got, &res, NULL), 0);
	assert_int_equal(res.r, 0);
	assert_memory_equal(res.data, block, BLOCK);
	cluster_close(c);
	f->clean = true;
}

static void test_push_full(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	struct cluster_push *p = begin(c);
	struct error err = { 0 };
	struct fp root;
	int r;

	f->data[0].full = 100;
	r = push_all(c, p, &root, &err);
	if (!r)
		r = cluster_push_commit(p, &root, NULL, &err);
	assert_int_equal(r, -ENOSPC);
	assert_non_null(strstr(err.text, "full"));
	cluster_push_free(p);
	assert_int_equal(f->commits, 0);
	assert_int_equal(f->aborts, 1);
	cluster_close(c);
	f->clean = true;
}

/* Receipts that are too old at the commit are fetched anew, and the commit comes again. */
static void test_push_redo(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	struct cluster_push *p = begin(c);
	struct error err = { 0 };
	struct fp root;
	uint8_t block[BLOCK];
	size_t before;

	make_block(block, 1, true);
	f->refused = fp_of(c, block);
	f->refuse_receipts = 2;
	assert_int_equal(push_all(c, p, &root, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root, NULL, &err), 0);
	before = IMAGE_BLOCKS - 69;
	assert_int_equal(f->nr_receipts, before + 2);
	assert_int_equal(f->commits, 1);
	cluster_push_free(p);

	/* The block has gone meanwhile, and is not at hand: the push says so. */
	p = begin(c);
	assert_int_equal(push_all(c, p, &root, &err), 0);
	while (cluster_push_waiting(p, NULL))
		cluster_run(c, 100);
	f->data[0].forgets = 1;
	f->refuse_receipts = 1;
	assert_int_equal(cluster_push_commit(p, &root, NULL, &err), -EAGAIN);
	cluster_push_free(p);
	cluster_close(c);
	f->clean = true;
}

static void test_push_old_map(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	struct cluster_push *p = begin(c);
	struct error err = { 0 };
	struct fp root;

	/* The shards have moved to the other server. */
	f->map_version = 3;
	f->shard_swap = 1;
	f->data[0].map_version = f->data[1].map_version = 3;
	assert_int_equal(push_all(c, p, &root, &err), 0);
	assert_int_equal(cluster_push_commit(p, &root, NULL, &err), 0);
	assert_int_equal(f->data[0].count, 0);
	assert_int_equal(f->data[1].count, IMAGE_BLOCKS - 69);
	cluster_push_free(p);
	cluster_close(c);
	f->clean = true;
}

struct offer {
	int missing, calls;
};

static void offer_answered(void *arg, int missing)
{
	struct offer *o = arg;

	o->calls++;
	o->missing = missing;
}

static void count_free(void *data, void *hint)
{
	atomic_fetch_add((atomic_int *)hint, 1);
}

static void test_offer_give(void **state)
{
	struct fakes *f = *state;
	struct cluster *c = open_cluster(f);
	struct cluster_push *p = begin(c);
	struct offer a = { 0 }, b = { 0 }, again = { 0 }, lost = { 0 };
	struct error err = { 0 };
	static uint8_t one[BLOCK], two[BLOCK];
	atomic_int freed = 0;
	struct fp fp1, fp2, fp3;

	make_block(one, 1, false);
	make_block(two, 2, false);
	fp1 = fp_of(c, one);
	fp2 = fp_of(c, two);
	fp3 = fp1;
	fp3.b[9] ^= 1;
	store(&f->data[0], &fp1, one);
	assert_int_equal(cluster_push_offer(p, &fp1, offer_answered, &a, &err), 0);
	assert_int_equal(cluster_push_offer(p, &fp2, offer_answered, &b, &err), 0);
	assert_int_equal(cluster_push_offer(p, &fp2, offer_answered, &again, &err), 0);
	assert_int_equal(again.calls, 1);
	assert_int_equal(again.missing, 0);
	while (!a.calls || !b.calls)
		cluster_run(c, 1000);
	assert_int_equal(a.missing, 0);
	assert_int_equal(b.missing, 1);
	/* Not owed. */
	assert_int_equal(cluster_push_give(p, &fp1, BLOCK, one, BLOCK, count_free, &freed, &err),
			 -EINVAL);
	assert_int_equal(freed, 1);
	assert_int_equal(cluster_push_give(p, &fp2, BLOCK, two, BLOCK, count_free, &freed, &err), 0);
	while (cluster_push_waiting(p, NULL))
		cluster_run(c, 1000);
	assert_int_equal(f->data[0].count, 2);
	/* Given up with an offer under way: it is answered, once. */
	assert_int_equal(cluster_push_offer(p, &fp3, offer_answered, &lost, &err), 0);
	cluster_push_free(p);
	assert_int_equal(lost.calls, 1);
	assert_true(lost.missing < 0);
	assert_int_equal(f->aborts, 1);
	cluster_close(c);
	assert_int_equal(lost.calls, 1);
	f->clean = true;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fakes_start, fakes_stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_get),		 TEST(test_get_corrupt), TEST(test_get_hostile_zstd),
		TEST(test_get_old_map),	 TEST(test_get_timeout), TEST(test_sequences),
		TEST(test_lost_answer),	 TEST(test_second_meta), TEST(test_push),	 TEST(test_push_full),
		TEST(test_push_redo),	 TEST(test_push_old_map), TEST(test_offer_give),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
