// SPDX-License-Identifier: GPL-2.0-or-later
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
#include "cluster_fakes.h"
#include "proto/limits.h"

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

static int data_find(struct fake_data *d, const uint8_t *fp)
{
	if (d->forgets)
		return -1;
	for (size_t i = 0; i < d->count; i++)
		if (!memcmp(d->fps[i].b, fp, FP_SIZE))
			return i;
	return -1;
}

static void data_get(struct fake_data *d, struct net_request *req, const Vmdedup__Get *get)
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

static void data_touch(struct fake_data *d, struct net_request *req, const Vmdedup__Touch *touch)
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

void fakes_store(struct fake_data *d, const uint8_t *fp, Vmdedup__Codec codec, const void *coded,
		       size_t len)
{
	size_t at = d->count;

	assert(at < FAKES_STORED);
	memcpy(d->fps[at].b, fp, FP_SIZE);
	d->codec[at] = codec;
	d->len[at] = len;
	d->coded[at] = malloc(len);
	memcpy(d->coded[at], coded, len);
	d->count++;
}

static void data_put(struct fake_data *d, struct net_request *req, const Vmdedup__Put *put)
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
		fakes_store(d, fp, put->blocks[i]->codec, frame, len);
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
	struct fake_data *d = ctx;
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
		assert(f->nr_receipts < FAKES_STORED);
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

	if (f->forget_sessions) {
		f->forget_sessions--;
		f->session++;
		f->done_sequence = 0;
	}
	if (h->mutation->session != (uint64_t)f->session) {
		reply.error = EKEYEXPIRED;
		reply.not_done = true;
		net_reply_send(req, &reply, NULL, 0);
		return;
	}
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
		session.session = (uint64_t)f->session;
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

void *fakes_serve(void *arg)
{
	struct error err;

	net_server_run(arg, &err);
	return NULL;
}

static const uint8_t cluster_uuid[16] = { 1 };

int fakes_start(void **state)
{
	static const struct net_server_ops data_ops = { .handle = data_handle };
	static const struct net_server_ops meta_ops = { .handle = meta_handle };
	struct fakes *f = calloc(1, sizeof(*f));
	struct error err;

	f->ctx = net_ctx_new(NULL, NULL, &err);
	f->map_version = 1;
	f->session = 42;
	for (int i = 0; i < 2; i++) {
		struct fake_data *d = &f->data[i];

		d->all = f;
		d->net = net_server_new(f->ctx, "data", cluster_uuid, &data_ops, d, 1000, &err);
		assert_int_equal(net_server_bind(d->net, "tcp://127.0.0.1:*", &err), 0);
	}
	f->meta = net_server_new(f->ctx, "meta", cluster_uuid, &meta_ops, f, 1000, &err);
	assert_int_equal(net_server_bind(f->meta, "inproc://test-meta", &err), 0);
	for (int i = 0; i < 2; i++)
		pthread_create(&f->data[i].thread, NULL, fakes_serve, f->data[i].net);
	pthread_create(&f->meta_thread, NULL, fakes_serve, f->meta);
	*state = f;
	return 0;
}

int fakes_stop(void **state)
{
	struct fakes *f = *state;

	if (!f->clean)
		return -1; /* a failed test leaves its cluster open, and the context would wait */
	net_server_stop(f->meta);
	pthread_join(f->meta_thread, NULL);
	net_server_free(f->meta);
	for (int i = 0; i < 2; i++) {
		struct fake_data *d = &f->data[i];

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

/* ---- for the tests ---- */

struct cluster *fakes_open(struct fakes *f)
{
	struct error err = { 0 };
	struct cluster *c = cluster_open(f->ctx, NULL, "inproc://test-meta", "cli", FAKES_TIMEOUT_MS,
					 &err);

	if (!c)
		fail_msg("%s", err.text);
	return c;
}

void fakes_block(uint8_t block[FAKES_BLOCK], unsigned int seed, bool compressible)
{
	srandom(seed + 1);
	for (int i = 0; i < FAKES_BLOCK; i++)
		block[i] = compressible ? i / 512 + 1 : random();
	memcpy(block, &seed, sizeof(seed));
	block[8] = 1;
}

struct fp fakes_fp(struct cluster *c, const uint8_t *block)
{
	struct fp_hasher *h = cluster_hasher(c);
	struct fp fp;

	fp_hash(h, block, FAKES_BLOCK, &fp);
	fp_hasher_free(h);
	return fp;
}

void fakes_got(void *arg, size_t index, int r, const void *data, size_t len)
{
	struct fakes_got *res = (struct fakes_got *)arg + index;

	res->calls++;
	res->r = r;
	res->len = len;
	if (!r)
		memcpy(res->data, data, len);
}

void fakes_put(struct fake_data *d, const struct fp *fp, const uint8_t *block)
{
	fakes_store(d, fp->b, VMDEDUP__CODEC__RAW, block, FAKES_BLOCK);
}
