// SPDX-License-Identifier: GPL-2.0-or-later
/* Requests to jobs. On the server's thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "data/record.h"
#include "data/server_priv.h"
#include "net/net.h"

/* ---- requests ---- */

struct job *server_job_new(struct data_server *s, enum job_kind kind, size_t nr)
{
	struct job *job = calloc(1, sizeof(*job));

	if (job)
		job->ops = calloc(nr + 1, sizeof(*job->ops));
	if (!job || !job->ops) {
		job_free(job);
		return NULL;
	}
	job->kind = kind;
	job->nr = nr;
	pthread_mutex_lock(&s->lock);
	job->topology = s->known;
	if (s->known)
		atomic_fetch_add(&s->known->refs, 1);
	pthread_mutex_unlock(&s->lock);
	return job;
}

/* NULL, after an error reply: no memory. */
static struct job *job_new(struct data_server *s, struct net_request *req, enum job_kind kind,
			   size_t nr)
{
	struct job *job = server_job_new(s, kind, nr);

	if (job)
		job->req = req;
	else
		net_reply_error(req, ENOMEM, "no memory for a request");
	return job;
}

static void out_of_memory(struct job *job)
{
	net_reply_error(job->req, ENOMEM, "no memory for a request");
	job_free(job);
}

static void send_map(struct data_server *s, struct net_request *req)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	reply.error = ESTALE;
	reply.error_text = (char *)"the request came with another shard map";
	reply.body_case = VMDEDUP__REPLY__BODY_MAP;
	reply.map = (Vmdedup__MapReply *)topology_map(s->topology);
	net_reply_send(req, &reply, NULL, 0);
}

static bool refuse_before_join(struct data_server *s, struct net_request *req, uint64_t version)
{
	if (s->topology) {
		s->refresh |= version > topology_map(s->topology)->version;
		return false;
	}
	net_reply_error(req, EAGAIN, "the data server %s has not joined the meta server yet",
			s->endpoint);
	return true;
}

static size_t payload_of(const struct net_request *req)
{
	size_t bytes = 0, len;

	for (size_t i = 0; i < net_request_nr_frames(req); i++) {
		net_request_frame(req, i, &len);
		bytes += len;
	}
	return bytes;
}

/*
 * By an older map it would be stored for replicas of before, and those of now, who miss it, would be stale
 * until they have been reconciled. The map comes within a few ticks; when it does not, what there is
 * must do: the meta server may be away, and sorts out who has what (meta/membership.h).
 */
static bool wait_for_map(struct data_server *s, struct net_request *req, uint64_t version)
{
	size_t bytes;

	if (s->late || version <= topology_map(s->topology)->version || s->nr_early == MAX_EARLY)
		return false;
	bytes = payload_of(req);
	if (s->early_bytes + bytes > MAX_EARLY_BYTES)
		return false;
	s->early_bytes += bytes;
	s->early[s->nr_early++] = (struct early){
		.req = req, .version = version, .bytes = bytes,
		.until_ms = clock_mono_ns() / 1000000 + MAP_WAIT_MS,
	};
	return true;
}

/* Takes out the first that need not wait any more. */
static bool early_next(struct data_server *s, struct early *out, bool *late)
{
	uint64_t now = clock_mono_ns() / 1000000;

	for (size_t i = 0; i < s->nr_early; i++) {
		*out = s->early[i];
		*late = out->version > topology_map(s->topology)->version;
		if (*late && now < out->until_ms)
			continue;
		s->early_bytes -= out->bytes;
		s->nr_early--;
		memmove(&s->early[i], &s->early[i + 1], (s->nr_early - i) * sizeof(*out));
		return true;
	}
	return false;
}

void server_refuse_early(struct data_server *s)
{
	while (s->nr_early)
		net_reply_error(s->early[--s->nr_early].req, EAGAIN, "the data server %s is ending",
				s->endpoint);
	s->early_bytes = 0;
}

/* One at a time: what is handled may wait for room, and get here again by a map that comes meanwhile. */
void server_take_early(struct data_server *s)
{
	struct early e;
	bool late;

	while (early_next(s, &e, &late)) {
		s->late = late;
		server_handle(s, e.req);
		s->late = false;
	}
}

/*
 * Who asks for a shard that has no replica here gets the map, and nothing is done. What else has
 * changed between two maps does no harm: it is this server that stamps and forwards, by its own.
 * A replica that forwards by a newer map may wait for this server to have that: @version, else 0.
 */
static bool refuse_shards(struct data_server *s, struct job *job, uint64_t version)
{
	const Vmdedup__MapReply *map = topology_map(job->topology);

	for (size_t i = 0; i < job->nr; i++) {
		if (topology_place(map, fp_shard(&job->ops[i].fp), job->topology->id))
			continue;
		if (!wait_for_map(s, job->req, version))
			send_map(s, job->req);
		job_free(job);
		return true;
	}
	return false;
}

static bool refuse_domain(struct data_server *s, struct net_request *req, uint32_t domain)
{
	if (topology_domain(s->topology, domain))
		return false;
	s->refresh = true;
	net_reply_error(req, EINVAL, "there is no domain %u", domain);
	return true;
}

/*
 * Who becomes current by what this disk has means this one: an empty disk behind the same address would
 * have him take everything for deleted.
 */
static bool refuse_disk(struct data_server *s, struct net_request *req,
			const ProtobufCBinaryData *disk)
{
	const struct uuid *mine = bstore_disk(s->store);

	if (!disk->len)
		return false;
	if (refuse_before_join(s, req, 0))
		return true;
	if (disk->len == sizeof(mine->b) && !memcmp(disk->data, mine->b, disk->len))
		return false;
	net_reply_error(req, ESTALE, "another disk is here now");
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

/* The other replicas are behind: what they send each other must find room, so clients wait. */
static bool refuse_backlog(struct data_server *s, struct job *job)
{
	size_t bytes;

	pthread_mutex_lock(&s->lock);
	bytes = s->forward_bytes;
	pthread_mutex_unlock(&s->lock);
	if (job->forwarded || bytes <= MAX_FORWARD_BYTES)
		return false;
	net_reply_error(job->req, EAGAIN, "%zu MiB wait for other replicas; try again", bytes >> 20);
	job_free(job);
	return true;
}

static void handle_put(struct data_server *s, struct net_request *req, const Vmdedup__Put *put)
{
	struct job *job;

	if (refuse_before_join(s, req, put->map_version) || refuse_domain(s, req, put->domain))
		return;
	if (!put->n_blocks || put->n_blocks > PROTO_MAX_BLOCKS ||
	    put->n_blocks != net_request_nr_frames(req)) {
		net_reply_error(req, EINVAL, "PUT of %zu blocks in %zu frames (at most %d)",
				put->n_blocks, net_request_nr_frames(req), PROTO_MAX_BLOCKS);
		return;
	}
	if (!put->forwarded && wait_for_map(s, req, put->map_version))
		return;
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
	job->forwarded = put->forwarded;
	job->late = s->late;
	if (refuse_shards(s, job, put->map_version) || refuse_backlog(s, job))
		return;
	if (forward_prepare(job)) {
		out_of_memory(job);
		return;
	}
	server_submit(s, job);
}

static void handle_touch(struct data_server *s, struct net_request *req,
			 const Vmdedup__Touch *touch)
{
	struct job *job;

	if (refuse_before_join(s, req, touch->map_version) ||
	    refuse_domain(s, req, touch->domain) || refuse_fps(req, &touch->fingerprints, PROTO_MAX_TOUCH))
		return;
	if (!touch->forwarded && wait_for_map(s, req, touch->map_version))
		return;
	job = job_new(s, req, JOB_TOUCH, touch->fingerprints.len / FP_SIZE);
	if (!job)
		return;
	copy_fps(job, &touch->fingerprints, STORE_TOUCH, touch->domain);
	job->forwarded = touch->forwarded;
	job->late = s->late;
	if (refuse_shards(s, job, touch->map_version))
		return;
	if (forward_prepare(job) || forward_snapshot(job)) {
		out_of_memory(job);
		return;
	}
	server_submit(s, job);
}

/* Some of the blocks may be had from hosts that asked for them before. No memory: all are served. */
static void redirect_some(struct data_server *s, struct job *job, const Vmdedup__Get *get)
{
	const struct peer_address *names[REDIRECT_NAMES];
	uint64_t now = clock_mono_ns();
	struct peer_address from;
	size_t i, n;

	if (peer_address_take(get->from, &from) ||
	    !peer_address_is_of(&from, net_request_key(job->req)))
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
	if ((get->map_version && refuse_before_join(s, req, get->map_version)) ||
	    refuse_disk(s, req, &get->disk))
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
	if (get->map_version && refuse_shards(s, job, 0))
		return;
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

/* An epoch that no receipt may have would end the writing of its shard. */
static bool refuse_epoch(struct net_request *req, uint64_t epoch)
{
	if (epoch <= INT64_MAX)
		return false;
	net_reply_error(req, EINVAL, "there is no epoch %llu", (unsigned long long)epoch);
	return true;
}

static void handle_list(struct data_server *s, struct net_request *req,
			const Vmdedup__ShardList *list)
{
	struct job *job;

	/* Before the meta server knows whose content this is now, nobody may become current by it. */
	if (refuse_before_join(s, req, 0) || refuse_disk(s, req, &list->disk) ||
	    refuse_shard(req, list->shard))
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
	    refuse_epoch(req, del->below_epoch) ||
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

	if (refuse_shard(req, set->shard) || refuse_epoch(req, set->epoch))
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

/* By the governor. It must be quick: nothing here waits for the disk. */
static void handle_ping(struct data_server *s, struct net_request *req, const Vmdedup__Ping *ping)
{
	Vmdedup__PingReply pong = VMDEDUP__PING_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct uuid disk = *bstore_disk(s->store);
	int failed = bstore_failed(s->store);
	struct repair_stats st;

	pthread_mutex_lock(&s->lock);
	st = s->repair;
	pthread_mutex_unlock(&s->lock);
	if (s->topology) {
		pong.map_version = topology_map(s->topology)->version;
		s->refresh |= ping->map_version > pong.map_version;
	}
	pong.disk = (ProtobufCBinaryData){ sizeof(disk.b), disk.b };
	pong.incarnation = bstore_incarnation(s->store);
	if (failed)
		pong.failed = strerror(-failed);
	pong.free = s->free_bytes;
	pong.stale_shards = st.stale_shards;
	pong.left_blocks = st.left_blocks;
	pong.repaired_blocks = st.blocks;
	pong.repaired_bytes = st.bytes;
	pong.scrubbed_bytes = st.scrubbed_bytes;
	pong.damaged = st.damaged;
	pong.healed = st.healed;
	pong.dropped_blocks = st.dropped;
	pong.open_keys = net_ctx_keys_are_open(s->net);
	reply.body_case = VMDEDUP__REPLY__BODY_PING;
	reply.ping = &pong;
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
	case VMDEDUP__REQUEST__BODY_PING:
		handle_ping(s, req, h->ping);
		break;
	default:
		net_reply_error(req, EOPNOTSUPP, "a data server does not know this request");
	}
}
