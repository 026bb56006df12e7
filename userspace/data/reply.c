// SPDX-License-Identifier: GPL-2.0-or-later
/* Jobs that are done to receipts and replies. On the server's thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "data/record.h"
#include "data/server_priv.h"
#include "net/net.h"

/* ---- receipts ---- */

struct receipts {
	Vmdedup__Receipt *v;
	Vmdedup__Receipt **pointers;
	size_t nr;
	uint8_t *have;	/* places of each receipt */
	uint8_t *fps;	/* of all, in groups */
	uint8_t (*macs)[RECEIPT_MAC_SIZE];
	Vmdedup__Disk *disks; /* this server's first, then the job's peers' */
	Vmdedup__Disk *(*disk_ptrs)[PROTO_MAX_PLACES];
};

static void receipts_free(struct receipts *rs)
{
	free(rs->v);
	free(rs->pointers);
	free(rs->have);
	free(rs->fps);
	free(rs->macs);
	free(rs->disks);
	free(rs->disk_ptrs);
}

static int by_fingerprint(const void *a, const void *b, void *arg)
{
	const struct bstore_op *ops = arg;

	return memcmp(ops[*(const uint32_t *)a].fp.b, ops[*(const uint32_t *)b].fp.b, FP_SIZE);
}

/* What was done here, beside what the others have done. */
static void count_own(struct job *job)
{
	const Vmdedup__MapReply *map = topology_map(job->topology);

	for (size_t i = 0; i < job->nr; i++) {
		struct job_copies *c = &job->copies[i];
		struct bstore_op *op = &job->ops[i];

		if (job->r)
			op->r = job->r;
		if (op->r)
			continue;
		c->have |= topology_place(map, fp_shard(&op->fp), job->topology->id);
		c->epoch = MIN(c->epoch, op->epoch);
	}
}

/* Enough replicas that count have it; who forwards counts himself. */
static bool is_enough(const struct job *job, size_t i)
{
	const Vmdedup__MapReply *map = topology_map(job->topology);
	uint8_t have = job->copies[i].have;

	if (job->forwarded)
		return have;
	have &= topology_current(map, fp_shard(&job->ops[i].fp));
	return (unsigned int)__builtin_popcount(have) >= MAX(map->min_copies, 1);
}

static void receipt_disks(struct receipts *rs, const struct job *job, Vmdedup__Receipt *r,
			  uint8_t have)
{
	const Vmdedup__MapReply *map = topology_map(job->topology);

	r->disks = rs->disk_ptrs[rs->nr];
	for (unsigned int k = 0; k < map->replicas; k++) {
		uint32_t id = map->shard_servers[r->shard * map->replicas + k];

		for (size_t d = 0; have & 1U << k && d <= job->nr_peers; d++)
			if (rs->disks[d].server == id)
				r->disks[r->n_disks++] = &rs->disks[d];
	}
}

static void receipt_begin(struct receipts *rs, const struct job *job, size_t i, uint8_t *fps)
{
	Vmdedup__Receipt *r = &rs->v[rs->nr];

	vmdedup__receipt__init(r);
	r->shard = fp_shard(&job->ops[i].fp);
	r->epoch = job->copies[i].epoch;
	r->map_version = topology_map(job->topology)->version;
	r->domain = job->domain;
	receipt_disks(rs, job, r, job->copies[i].have);
	rs->have[rs->nr] = job->copies[i].have;
	r->fingerprints.data = fps;
	r->mac = (ProtobufCBinaryData){ RECEIPT_MAC_SIZE, rs->macs[rs->nr] };
	rs->pointers[rs->nr++] = r;
}

static int receipts_alloc(struct receipts *rs, struct data_server *s, struct job *job)
{
	*rs = (struct receipts){ 0 };
	rs->v = calloc(job->nr, sizeof(*rs->v));
	rs->pointers = calloc(job->nr, sizeof(*rs->pointers));
	rs->have = calloc(job->nr, 1);
	rs->fps = calloc(job->nr, FP_SIZE);
	rs->macs = calloc(job->nr, sizeof(*rs->macs));
	rs->disks = calloc(job->nr_peers + 1, sizeof(*rs->disks));
	rs->disk_ptrs = calloc(job->nr, sizeof(*rs->disk_ptrs));
	if (!rs->v || !rs->pointers || !rs->have || !rs->fps || !rs->macs || !rs->disks ||
	    !rs->disk_ptrs)
		return -ENOMEM;
	for (size_t d = 0; d <= job->nr_peers; d++) {
		struct job_peer *peer = d ? &job->peers[d - 1] : NULL;

		vmdedup__disk__init(&rs->disks[d]);
		rs->disks[d].uuid = (ProtobufCBinaryData){
			16, peer ? peer->disk : (uint8_t *)bstore_disk(s->store)->b };
		rs->disks[d].incarnation = peer ? peer->incarnation :
						  bstore_incarnation(s->store);
		rs->disks[d].server = peer ? peer->id : job->topology->id;
	}
	return 0;
}

/* One for each shard, and set of disks, of the ops that enough disks have. */
static int receipts_make(struct receipts *rs, struct data_server *s, struct job *job)
{
	uint32_t *good = calloc(job->nr, sizeof(*good));
	uint8_t *fps;
	size_t nr = 0;

	if (!good || receipts_alloc(rs, s, job)) {
		free(good);
		return -ENOMEM;
	}
	for (size_t i = 0; i < job->nr; i++)
		if (is_enough(job, i) && !job->copies[i].missing && !job->copies[i].again)
			good[nr++] = (uint32_t)i;
	qsort_r(good, nr, sizeof(*good), by_fingerprint, job->ops);
	fps = rs->fps;
	for (size_t i = 0; i < nr; i++, fps += FP_SIZE) {
		const struct job_copies *c = &job->copies[good[i]];
		const struct fp *fp = &job->ops[good[i]].fp;
		Vmdedup__Receipt *r = rs->nr ? &rs->v[rs->nr - 1] : NULL;

		if (!r || r->shard != fp_shard(fp) || rs->have[rs->nr - 1] != c->have) {
			receipt_begin(rs, job, good[i], fps);
			r = &rs->v[rs->nr - 1];
		}
		memcpy(fps, fp->b, FP_SIZE);
		r->fingerprints.len += FP_SIZE;
		r->epoch = MIN(r->epoch, c->epoch);
	}
	for (size_t i = 0; i < rs->nr; i++)
		receipt_mac(&rs->v[i], job->topology->receipt_key, rs->macs[i]);
	free(good);
	return 0;
}

/* ---- replies ---- */

/* A block that too few replicas have is to be sent again, unless that would not help. */
static int32_t put_error(const struct job *job, size_t i)
{
	int r = -job->ops[i].r;

	if (is_enough(job, i) && !job->copies[i].again)
		return 0;
	return r ? r : EAGAIN;
}

static void reply_put(struct data_server *s, struct job *job)
{
	Vmdedup__PutReply put = VMDEDUP__PUT_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	int32_t errors[PROTO_MAX_BLOCKS];
	struct receipts rs;

	count_own(job);
	if (receipts_make(&rs, s, job)) {
		net_reply_error(job->req, ENOMEM, "no memory for receipts");
		goto free;
	}
	for (size_t i = 0; i < job->nr; i++)
		errors[i] = put_error(job, i);
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

/* Present, and yet not on enough replicas: some that should have it did not answer, or are others now. */
static bool touch_waits(struct job *job)
{
	for (size_t i = 0; i < job->nr; i++)
		if (!job->ops[i].r && !job->copies[i].missing &&
		    (!is_enough(job, i) || job->copies[i].again))
			return true;
	return false;
}

static void reply_touch(struct data_server *s, struct job *job)
{
	Vmdedup__TouchReply touch = VMDEDUP__TOUCH_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint8_t *missing = calloc(job->nr, FP_SIZE);
	struct receipts rs = { 0 };

	count_own(job);
	if (touch_waits(job)) {
		net_reply_error(job->req, EAGAIN, "too few replicas answer; try again");
		goto free;
	}
	if (receipts_make(&rs, s, job) || !missing) {
		net_reply_error(job->req, ENOMEM, "no memory for receipts");
		goto free;
	}
	touch.missing.data = missing;
	for (size_t i = 0; i < job->nr; i++) {
		if (!job->copies[i].missing && is_enough(job, i))
			continue;
		memcpy(missing + touch.missing.len, job->ops[i].fp.b, FP_SIZE);
		touch.missing.len += FP_SIZE;
	}
	/* What is missing comes next. */
	if (!job->forwarded && touch.missing.len &&
	    !net_request_expect(job->req, touch.missing.len / FP_SIZE * job->topology->block_size)) {
		net_reply_error(job->req, EAGAIN, "too many clients write here; try again");
		goto free;
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
		if (job->ops[i].r == -ENOSPC) {
			net_reply_error(job->req, ENOSPC, "the disk of %s has no room left to change its "
					"index: make some", s->endpoint);
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

	if (job->r && !job->nr_peers) {
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
