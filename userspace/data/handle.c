// SPDX-License-Identifier: GPL-2.0-or-later
/* Requests to jobs, and jobs that are done to replies. On the server's thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "data/record.h"
#include "data/server_priv.h"
#include "net/net.h"

/* ---- requests ---- */

/* NULL, after an error reply: no memory. */
static struct job *job_new(struct data_server *s, struct net_request *req, enum job_kind kind,
			   size_t nr)
{
	struct job *job = calloc(1, sizeof(*job));

	if (job)
		job->ops = calloc(nr + 1, sizeof(*job->ops));
	if (!job || !job->ops) {
		job_free(job);
		net_reply_error(req, ENOMEM, "no memory for a request");
		return NULL;
	}
	job->kind = kind;
	job->req = req;
	job->nr = nr;
	job->topology = s->topology;
	if (s->topology)
		atomic_fetch_add(&s->topology->refs, 1);
	return job;
}

static void out_of_memory(struct job *job)
{
	net_reply_error(job->req, ENOMEM, "no memory for a request");
	job_free(job);
}

/* The map's version is checked first: who has an old one gets the new one, and nothing done. */
static bool refuse_map(struct data_server *s, struct net_request *req, uint64_t version)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	const Vmdedup__MapReply *map;

	if (!s->topology) {
		net_reply_error(req, EAGAIN, "the data server %s has not joined the meta server yet",
				s->endpoint);
		return true;
	}
	map = topology_map(s->topology);
	if (version > map->version)
		s->refresh = true;
	if (version >= map->version)
		return false;
	reply.error = ESTALE;
	reply.error_text = (char *)"the request came with an old shard map";
	reply.body_case = VMDEDUP__REPLY__BODY_MAP;
	reply.map = (Vmdedup__MapReply *)map;
	net_reply_send(req, &reply, NULL, 0);
	return true;
}

static bool refuse_domain(struct data_server *s, struct net_request *req, uint32_t domain)
{
	if (topology_domain(s->topology, domain))
		return false;
	s->refresh = true;
	net_reply_error(req, EINVAL, "there is no domain %u", domain);
	return true;
}

static void copy_fps(struct job *job, const ProtobufCBinaryData *fps, enum bstore_op_kind kind,
		     uint32_t domain)
{
	job->domain = domain;
	for (size_t i = 0; i < job->nr; i++) {
		job->ops[i].kind = kind;
		job->ops[i].domain = domain;
		memcpy(job->ops[i].fp.b, fps->data + i * FP_SIZE, FP_SIZE);
	}
}

static bool refuse_fps(struct net_request *req, const ProtobufCBinaryData *fps, size_t max)
{
	if (fps->len && fps->len % FP_SIZE == 0 && fps->len / FP_SIZE <= max)
		return false;
	net_reply_error(req, EINVAL, "fingerprints: %zu bytes, want 32 each, 1 to %zu of them",
			fps->len, max);
	return true;
}

static bool put_block(struct job *job, size_t i, const Vmdedup__BlockHead *head,
		      uint32_t domain)
{
	struct bstore_op *op = &job->ops[i];
	size_t len;

	op->kind = STORE_PUT;
	op->domain = domain;
	op->data = net_request_frame(job->req, i, &len);
	if (head->fingerprint.len != FP_SIZE || len > PROTO_MAX_FRAME || !op->data)
		return false;
	memcpy(op->fp.b, head->fingerprint.data, FP_SIZE);
	op->codec = (unsigned int)head->codec > CODEC_ZSTD ? UINT8_MAX : (uint8_t)head->codec;
	op->raw_len = head->raw_size;
	op->len = (uint32_t)len;
	job->no_coding[i] = head->incompressible;
	job->bytes += len;
	return true;
}

static void handle_put(struct data_server *s, struct net_request *req, const Vmdedup__Put *put)
{
	struct job *job;

	if (refuse_map(s, req, put->map_version) || refuse_domain(s, req, put->domain))
		return;
	if (!put->n_blocks || put->n_blocks > PROTO_MAX_BLOCKS ||
	    put->n_blocks != net_request_nr_frames(req)) {
		net_reply_error(req, EINVAL, "PUT of %zu blocks in %zu frames (at most %d)",
				put->n_blocks, net_request_nr_frames(req), PROTO_MAX_BLOCKS);
		return;
	}
	job = job_new(s, req, JOB_PUT, put->n_blocks);
	if (!job)
		return;
	job->domain = put->domain;
	job->verified = calloc(job->nr, sizeof(*job->verified));
	job->no_coding = calloc(job->nr, sizeof(*job->no_coding));
	if (!job->verified || !job->no_coding) {
		out_of_memory(job);
		return;
	}
	for (size_t i = 0; i < job->nr; i++) {
		if (put_block(job, i, put->blocks[i], put->domain))
			continue;
		net_reply_error(req, EINVAL, "PUT: the head of block %zu is damaged", i);
		job_free(job);
		return;
	}
	server_submit(s, job);
}

static void handle_touch(struct data_server *s, struct net_request *req,
			 const Vmdedup__Touch *touch)
{
	struct job *job;

	if (refuse_map(s, req, touch->map_version) || refuse_domain(s, req, touch->domain) ||
	    refuse_fps(req, &touch->fingerprints, PROTO_MAX_TOUCH))
		return;
	job = job_new(s, req, JOB_TOUCH, touch->fingerprints.len / FP_SIZE);
	if (!job)
		return;
	copy_fps(job, &touch->fingerprints, STORE_TOUCH, touch->domain);
	server_submit(s, job);
}

/* Some of the blocks may be had from hosts that asked for them before. No memory: all are served. */
static void redirect_some(struct data_server *s, struct job *job, const Vmdedup__Get *get)
{
	const struct peer_address *names[REDIRECT_NAMES];
	uint64_t now = clock_mono_ns();
	struct peer_address from;
	size_t i, n;

	if (peer_address_take(get->from, &from))
		return;
	job->redirected = calloc(1, sizeof(*job->redirected));
	job->named = calloc(job->nr, sizeof(*job->named));
	job->nr_named = calloc(job->nr, 1);
	if (!job->redirected || !job->named || !job->nr_named)
		return;
	for (i = 0; i < job->nr; i++) {
		n = redirect_ask(s->redirect, &job->ops[i].fp, &from, get->serve, REDIRECT_COPIES,
				 now, names);
		n = redirected_add(job->redirected, names, n, job->named[i]);
		job->nr_named[i] = (uint8_t)n;
		if (n)
			job->ops[i].r = -EREMOTE;
		s->redirects += n != 0;
	}
}

static void handle_get(struct data_server *s, struct net_request *req, const Vmdedup__Get *get)
{
	size_t block = s->topology ? s->topology->block_size : RECORD_MAX_PAYLOAD;
	size_t max = PROTO_MAX_PAYLOAD / block;
	struct job *job;

	/* Version 0 reads from whoever has the block, joined or not. */
	if (get->map_version && refuse_map(s, req, get->map_version))
		return;
	if (refuse_fps(req, &get->fingerprints, max < PROTO_MAX_BLOCKS ? max : PROTO_MAX_BLOCKS))
		return;
	job = job_new(s, req, JOB_GET, get->fingerprints.len / FP_SIZE);
	if (!job)
		return;
	job->raw_only = get->raw_only;
	job->bufs = calloc(job->nr, sizeof(*job->bufs));
	if (!job->bufs) {
		out_of_memory(job);
		return;
	}
	copy_fps(job, &get->fingerprints, STORE_TOUCH, get->domain);
	redirect_some(s, job, get);
	server_submit(s, job);
}

static bool refuse_shard(struct net_request *req, uint32_t shard)
{
	if (shard < NR_SHARDS)
		return false;
	net_reply_error(req, EINVAL, "there is no shard %u", shard);
	return true;
}

static void handle_list(struct data_server *s, struct net_request *req,
			const Vmdedup__ShardList *list)
{
	struct job *job;

	if (refuse_shard(req, list->shard))
		return;
	if (list->after.len && list->after.len != FP_SIZE) {
		net_reply_error(req, EINVAL, "SHARD_LIST: bad cursor");
		return;
	}
	job = job_new(s, req, JOB_LIST, 0);
	if (!job)
		return;
	job->shard = (uint16_t)list->shard;
	job->domain = list->domain;
	job->has_after = list->after.len;
	if (job->has_after)
		memcpy(job->after.b, list->after.data, FP_SIZE);
	job->max = list->limit && list->limit < PROTO_MAX_LIST ? list->limit : PROTO_MAX_LIST;
	job->listed = calloc(job->max, sizeof(*job->listed));
	if (!job->listed) {
		out_of_memory(job);
		return;
	}
	server_submit(s, job);
}

/* A list that was made before the meta server's store was restored says nothing about now. */
static bool refuse_history(struct data_server *s, struct net_request *req,
			   const ProtobufCBinaryData *history)
{
	const Vmdedup__MapReply *map = s->topology ? topology_map(s->topology) : NULL;

	if (map && map->deletion_suspended)
		net_reply_error(req, EBUSY, "deletion is suspended since the meta server's store was "
				"restored from a backup");
	else if (!map || map->history.len != history->len ||
		 (history->len && memcmp(map->history.data, history->data, history->len)))
		net_reply_error(req, ESTALE, "the list is not of the cluster's present history");
	else
		return false;
	return true;
}

static void handle_delete(struct data_server *s, struct net_request *req,
			  const Vmdedup__ShardDelete *del)
{
	struct job *job;

	if (refuse_history(s, req, &del->history) || refuse_shard(req, del->shard) ||
	    refuse_fps(req, &del->fingerprints, PROTO_MAX_TOUCH))
		return;
	job = job_new(s, req, JOB_DELETE, del->fingerprints.len / FP_SIZE);
	if (!job)
		return;
	copy_fps(job, &del->fingerprints, STORE_DELETE, del->domain);
	for (size_t i = 0; i < job->nr; i++) {
		job->ops[i].epoch = del->below_epoch;
		if (fp_shard(&job->ops[i].fp) == del->shard)
			continue;
		net_reply_error(req, EINVAL, "SHARD_DELETE: block %zu is not of shard %u", i,
				del->shard);
		job_free(job);
		return;
	}
	server_submit(s, job);
}

static void handle_epoch(struct data_server *s, struct net_request *req,
			 const Vmdedup__EpochSet *set)
{
	struct job *job;

	if (refuse_shard(req, set->shard))
		return;
	job = job_new(s, req, JOB_EPOCH, 1);
	if (!job)
		return;
	job->ops[0] = (struct bstore_op){
		.kind = STORE_EPOCH, .shard = (uint16_t)set->shard, .epoch = set->epoch,
	};
	server_submit(s, job);
}

static void handle_stat(struct data_server *s, struct net_request *req)
{
	Vmdedup__DataStatReply stat = VMDEDUP__DATA_STAT_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct uuid disk = *bstore_disk(s->store);
	struct bstore_stat st;
	int r = bstore_stat(s->store, &st);

	if (r) {
		net_reply_error(req, -r, "the space of the disk: %s", strerror(-r));
		return;
	}
	stat.disk = (ProtobufCBinaryData){ sizeof(disk.b), disk.b };
	stat.incarnation = bstore_incarnation(s->store);
	stat.blocks = st.blocks;
	stat.raw_bytes = st.raw_bytes;
	stat.stored_bytes = st.stored_bytes;
	stat.lump_bytes = st.lump_bytes;
	stat.capacity = st.capacity;
	stat.free = st.free;
	stat.gets = st.gets;
	stat.puts = st.puts;
	stat.put_dups = st.put_dups;
	stat.get_bytes = st.get_bytes;
	stat.put_bytes = st.put_bytes;
	stat.commits = st.commits;
	stat.cache_hits = st.cache_hits;
	reply.body_case = VMDEDUP__REPLY__BODY_DATA_STAT;
	reply.data_stat = &stat;
	net_reply_send(req, &reply, NULL, 0);
}

void server_handle(void *ctx, struct net_request *req)
{
	const Vmdedup__Request *h = net_request_header(req);
	struct data_server *s = ctx;

	switch (h->body_case) {
	case VMDEDUP__REQUEST__BODY_PUT:
		handle_put(s, req, h->put);
		break;
	case VMDEDUP__REQUEST__BODY_TOUCH:
		handle_touch(s, req, h->touch);
		break;
	case VMDEDUP__REQUEST__BODY_GET:
		handle_get(s, req, h->get);
		break;
	case VMDEDUP__REQUEST__BODY_SHARD_LIST:
		handle_list(s, req, h->shard_list);
		break;
	case VMDEDUP__REQUEST__BODY_SHARD_DELETE:
		handle_delete(s, req, h->shard_delete);
		break;
	case VMDEDUP__REQUEST__BODY_EPOCH_SET:
		handle_epoch(s, req, h->epoch_set);
		break;
	case VMDEDUP__REQUEST__BODY_DATA_STAT:
		handle_stat(s, req);
		break;
	default:
		net_reply_error(req, EOPNOTSUPP, "a data server does not know this request");
	}
}

/* ---- receipts ---- */

struct receipts {
	Vmdedup__Receipt *v;
	Vmdedup__Receipt **pointers;
	size_t nr;
	uint8_t *fps;	/* of all, in groups */
	uint8_t (*macs)[RECEIPT_MAC_SIZE];
	Vmdedup__Disk disk, *disks[1];
};

static void receipts_free(struct receipts *rs)
{
	free(rs->v);
	free(rs->pointers);
	free(rs->fps);
	free(rs->macs);
}

static int by_fingerprint(const void *a, const void *b)
{
	const struct bstore_op *x = *(const struct bstore_op *const *)a;
	const struct bstore_op *y = *(const struct bstore_op *const *)b;

	return memcmp(x->fp.b, y->fp.b, FP_SIZE);
}

static void receipt_begin(struct receipts *rs, const struct job *job, const struct bstore_op *op,
			  uint8_t *fps)
{
	Vmdedup__Receipt *r = &rs->v[rs->nr];

	vmdedup__receipt__init(r);
	r->shard = fp_shard(&op->fp);
	r->epoch = op->epoch;
	r->map_version = topology_map(job->topology)->version;
	r->domain = job->domain;
	r->n_disks = 1;
	r->disks = rs->disks;
	r->fingerprints.data = fps;
	r->mac = (ProtobufCBinaryData){ RECEIPT_MAC_SIZE, rs->macs[rs->nr] };
	rs->pointers[rs->nr++] = r;
}

/* One for each shard of the ops with result 0. */
static int receipts_make(struct receipts *rs, struct data_server *s, const struct job *job)
{
	const struct bstore_op **good = calloc(job->nr, sizeof(*good));
	uint8_t *fps;
	size_t nr = 0;

	*rs = (struct receipts){ .disk = VMDEDUP__DISK__INIT };
	rs->v = calloc(job->nr, sizeof(*rs->v));
	rs->pointers = calloc(job->nr, sizeof(*rs->pointers));
	rs->fps = calloc(job->nr, FP_SIZE);
	rs->macs = calloc(job->nr, sizeof(*rs->macs));
	if (!good || !rs->v || !rs->pointers || !rs->fps || !rs->macs) {
		free(good);
		return -ENOMEM;
	}
	rs->disk.uuid = (ProtobufCBinaryData){ 16, (uint8_t *)bstore_disk(s->store)->b };
	rs->disk.incarnation = bstore_incarnation(s->store);
	rs->disk.server = job->topology->id;
	rs->disks[0] = &rs->disk;
	for (size_t i = 0; i < job->nr; i++)
		if (!job->ops[i].r)
			good[nr++] = &job->ops[i];
	qsort(good, nr, sizeof(*good), by_fingerprint);
	fps = rs->fps;
	for (size_t i = 0; i < nr; i++, fps += FP_SIZE) {
		Vmdedup__Receipt *r = rs->nr ? &rs->v[rs->nr - 1] : NULL;

		if (!r || r->shard != fp_shard(&good[i]->fp)) {
			receipt_begin(rs, job, good[i], fps);
			r = &rs->v[rs->nr - 1];
		}
		memcpy(fps, good[i]->fp.b, FP_SIZE);
		r->fingerprints.len += FP_SIZE;
		if (r->epoch > good[i]->epoch)
			r->epoch = good[i]->epoch;
	}
	for (size_t i = 0; i < rs->nr; i++)
		receipt_mac(&rs->v[i], job->topology->receipt_key, rs->macs[i]);
	free(good);
	return 0;
}

/* ---- replies ---- */

static void reply_put(struct data_server *s, struct job *job)
{
	Vmdedup__PutReply put = VMDEDUP__PUT_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	int32_t errors[PROTO_MAX_BLOCKS];
	struct receipts rs;

	if (receipts_make(&rs, s, job)) {
		net_reply_error(job->req, ENOMEM, "no memory for receipts");
		goto free;
	}
	for (size_t i = 0; i < job->nr; i++)
		errors[i] = -job->ops[i].r;
	put.n_errors = job->nr;
	put.errors = errors;
	put.n_receipts = rs.nr;
	put.receipts = rs.pointers;
	reply.body_case = VMDEDUP__REPLY__BODY_PUT;
	reply.put = &put;
	net_reply_send(job->req, &reply, NULL, 0);
free:
	receipts_free(&rs);
}

static void reply_touch(struct data_server *s, struct job *job)
{
	Vmdedup__TouchReply touch = VMDEDUP__TOUCH_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint8_t *missing = calloc(job->nr, FP_SIZE);
	struct receipts rs;

	if (receipts_make(&rs, s, job) || !missing) {
		net_reply_error(job->req, ENOMEM, "no memory for receipts");
		goto free;
	}
	touch.missing.data = missing;
	for (size_t i = 0; i < job->nr; i++) {
		if (!job->ops[i].r)
			continue;
		memcpy(missing + touch.missing.len, job->ops[i].fp.b, FP_SIZE);
		touch.missing.len += FP_SIZE;
	}
	touch.n_receipts = rs.nr;
	touch.receipts = rs.pointers;
	reply.body_case = VMDEDUP__REPLY__BODY_TOUCH;
	reply.touch = &touch;
	net_reply_send(job->req, &reply, NULL, 0);
free:
	receipts_free(&rs);
	free(missing);
}

static void reply_get(struct data_server *s, struct job *job)
{
	Vmdedup__BlockHead heads[PROTO_MAX_BLOCKS], *pointers[PROTO_MAX_BLOCKS];
	Vmdedup__GetReply get = VMDEDUP__GET_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__PeerAddress peers[REDIRECT_MAX_NAMED], *peer_pointers[REDIRECT_MAX_NAMED];
	struct net_frame frames[PROTO_MAX_BLOCKS];
	size_t nr = 0;

	for (size_t i = 0; i < job->nr; i++) {
		struct block_buf *buf = job->bufs[i];

		vmdedup__block_head__init(&heads[i]);
		pointers[i] = &heads[i];
		heads[i].fingerprint = (ProtobufCBinaryData){ FP_SIZE, job->ops[i].fp.b };
		heads[i].error = -job->ops[i].r;
		if (job->ops[i].r == -EREMOTE) {
			heads[i].redirect = job->named[i];
			heads[i].n_redirect = job->nr_named[i];
		}
		if (!buf)
			continue;
		job->bufs[i] = NULL;
		heads[i].codec = buf->codec == CODEC_ZSTD ? VMDEDUP__CODEC__ZSTD :
							    VMDEDUP__CODEC__RAW;
		heads[i].raw_size = buf->raw_len;
		if (flow_frame(s->flow, buf, &frames[nr]))
			heads[i].error = ENOMEM;
		else
			nr++;
	}
	for (size_t i = 0; job->redirected && i < job->redirected->nr; i++) {
		peer_address_give(&job->redirected->peers[i], &peers[i]);
		peer_pointers[get.n_peers++] = &peers[i];
	}
	get.peers = peer_pointers;
	get.n_blocks = job->nr;
	get.blocks = pointers;
	reply.body_case = VMDEDUP__REPLY__BODY_GET;
	reply.get = &get;
	net_reply_send(job->req, &reply, frames, nr);
}

static void reply_list(struct data_server *s, struct job *job)
{
	Vmdedup__ShardListReply list = VMDEDUP__SHARD_LIST_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint8_t *fps = malloc(job->nr * FP_SIZE + 1);
	uint64_t *epochs = malloc(job->nr * sizeof(*epochs) + 1);

	if (!fps || !epochs) {
		net_reply_error(job->req, ENOMEM, "no memory for a list");
		goto free;
	}
	for (size_t i = 0; i < job->nr; i++) {
		memcpy(fps + i * FP_SIZE, job->listed[i].fp.b, FP_SIZE);
		epochs[i] = job->listed[i].epoch;
	}
	list.fingerprints = (ProtobufCBinaryData){ job->nr * FP_SIZE, fps };
	list.n_epochs = job->nr;
	list.epochs = epochs;
	list.more = job->more;
	reply.body_case = VMDEDUP__REPLY__BODY_SHARD_LIST;
	reply.shard_list = &list;
	net_reply_send(job->req, &reply, NULL, 0);
free:
	free(fps);
	free(epochs);
}

static void reply_delete(struct data_server *s, struct job *job)
{
	Vmdedup__ShardDeleteReply del = VMDEDUP__SHARD_DELETE_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	for (size_t i = 0; i < job->nr; i++) {
		if (job->ops[i].r == -EAGAIN) {
			net_reply_error(job->req, EAGAIN, "the index was rebuilt: nothing is deleted "
					"before the meta server has told the epochs");
			return;
		}
		del.deleted += !job->ops[i].r;
		del.missing += job->ops[i].r == -ENOENT;
		del.kept += job->ops[i].r == -EBUSY;
	}
	reply.body_case = VMDEDUP__REPLY__BODY_SHARD_DELETE;
	reply.shard_delete = &del;
	net_reply_send(job->req, &reply, NULL, 0);
}

void server_reply(struct data_server *s, struct job *job)
{
	Vmdedup__Reply ok = VMDEDUP__REPLY__INIT;

	if (job->r) {
		net_reply_error(job->req, -job->r, "the store of %s: %s", s->endpoint,
				strerror(-job->r));
		return;
	}
	switch (job->kind) {
	case JOB_PUT:
		reply_put(s, job);
		break;
	case JOB_TOUCH:
		reply_touch(s, job);
		break;
	case JOB_GET:
		reply_get(s, job);
		break;
	case JOB_LIST:
		reply_list(s, job);
		break;
	case JOB_DELETE:
		reply_delete(s, job);
		break;
	default:
		net_reply_send(job->req, &ok, NULL, 0);
	}
}
