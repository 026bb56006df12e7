// SPDX-License-Identifier: GPL-2.0-or-later
/* Membership: joining the meta server, for ever, and following its map. The server's thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "data/server_priv.h"
#include "net/net.h"

static uint64_t now_ms(void)
{
	return clock_mono_ns() / 1000000;
}

/* ---- topology ---- */

void topology_put(struct topology *t)
{
	if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
		return;
	if (t->reply)
		vmdedup__server_join_reply__free_unpacked(t->reply, NULL);
	if (t->map)
		vmdedup__map_reply__free_unpacked(t->map, NULL);
	free(t);
}

const Vmdedup__MapReply *topology_map(const struct topology *t)
{
	return t->map ? t->map : t->reply->map;
}

const Vmdedup__Domain *topology_domain(const struct topology *t, uint32_t id)
{
	for (size_t i = 0; i < t->reply->n_domains; i++)
		if (t->reply->domains[i]->id == id)
			return t->reply->domains[i];
	return NULL;
}

uint8_t topology_place(const Vmdedup__MapReply *map, unsigned int shard, uint32_t id)
{
	for (unsigned int k = 0; k < map->replicas; k++)
		if (map->shard_servers[shard * map->replicas + k] == id)
			return (uint8_t)(1U << k);
	return 0;
}

uint8_t topology_current(const Vmdedup__MapReply *map, unsigned int shard)
{
	uint8_t bits = 0;

	for (unsigned int k = 0; k < map->replicas; k++) {
		size_t at = shard * map->replicas + k;

		if (map->shard_servers[at] &&
		    (!map->shard_states.len || map->shard_states.data[at] != REPLICA_STALE))
			bits |= (uint8_t)(1U << k);
	}
	return bits;
}

static Vmdedup__ServerJoinReply *copy_join(const Vmdedup__ServerJoinReply *in)
{
	size_t len = vmdedup__server_join_reply__get_packed_size(in);
	uint8_t *bytes = malloc(len + 1);
	Vmdedup__ServerJoinReply *out = NULL;

	if (bytes) {
		vmdedup__server_join_reply__pack(in, bytes);
		out = vmdedup__server_join_reply__unpack(NULL, len, bytes);
	}
	free(bytes);
	return out;
}

static Vmdedup__MapReply *copy_map(const Vmdedup__MapReply *in)
{
	size_t len = vmdedup__map_reply__get_packed_size(in);
	uint8_t *bytes = malloc(len + 1);
	Vmdedup__MapReply *out = NULL;

	if (bytes) {
		vmdedup__map_reply__pack(in, bytes);
		out = vmdedup__map_reply__unpack(NULL, len, bytes);
	}
	free(bytes);
	return out;
}

static bool map_is_sane(const Vmdedup__MapReply *map)
{
	size_t places = map ? (size_t)map->replicas * NR_SHARDS : 0;

	return map && map->n_shard_epochs == NR_SHARDS && map->replicas <= PROTO_MAX_PLACES &&
	       map->n_shard_servers == places &&
	       (!map->shard_states.len || map->shard_states.len == places);
}

static bool join_is_sane(const Vmdedup__ServerJoinReply *r)
{
	return r && r->id && r->cluster.len == 16 && r->receipt_key.len == RECEIPT_KEY_SIZE &&
	       r->block_shift >= BLOCK_SHIFT_MIN && r->block_shift <= BLOCK_SHIFT_MAX &&
	       (unsigned int)r->algorithm <= FP_MD5 && r->n_domains && map_is_sane(r->map);
}

static struct topology *topology_new(const Vmdedup__ServerJoinReply *reply)
{
	struct topology *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	atomic_init(&t->refs, 1);
	t->reply = copy_join(reply);
	if (!t->reply) {
		topology_put(t);
		return NULL;
	}
	t->id = reply->id;
	memcpy(t->cluster, reply->cluster.data, 16);
	memcpy(t->receipt_key, reply->receipt_key.data, RECEIPT_KEY_SIZE);
	t->block_size = 1U << reply->block_shift;
	t->algorithm = (enum fp_algorithm)reply->algorithm;
	return t;
}

/* ---- publishing: the epochs first ---- */

/*
 * A map's epochs become durable here before any request is judged by the map. After a rebuild
 * they are also the floor: what the index has lost is stamped with the current epoch.
 */
static int publish(struct data_server *s, struct topology *fresh)
{
	const Vmdedup__MapReply *map = topology_map(fresh);
	bool stamp = bstore_is_unstamped(s->store);
	struct job *job = calloc(1, sizeof(*job));

	if (job)
		job->ops = calloc(NR_SHARDS, sizeof(*job->ops));
	if (!job || !job->ops) {
		free(job);
		topology_put(fresh);
		return -ENOMEM;
	}
	job->kind = JOB_MAP;
	job->fresh = fresh;
	job->nr = NR_SHARDS;
	for (size_t i = 0; i < NR_SHARDS; i++)
		job->ops[i] = (struct bstore_op){
			.kind = stamp ? STORE_STAMP : STORE_EPOCH,
			.shard = (uint16_t)i,
			.epoch = map->shard_epochs[i],
		};
	s->map_pending = true;
	server_submit(s, job);
	return 0;
}

void join_map_done(struct data_server *s, struct job *job)
{
	bool first = !s->topology;

	s->map_pending = false;
	if (job->r) {
		s->next_join_ms = MIN(s->next_join_ms, now_ms() + JOIN_RETRY_MS);
		return;
	}
	topology_put(s->topology);
	s->topology = job->fresh;
	job->fresh = NULL;
	atomic_fetch_add(&s->topology->refs, 2);
	pthread_mutex_lock(&s->lock);
	topology_put(s->newest);
	topology_put(s->known);
	s->newest = s->known = s->topology;
	pthread_mutex_unlock(&s->lock);
	server_take_early(s);
	if (first)
		log_info("data server %s: joined as server %u, map version %llu", s->endpoint,
			 s->topology->id,
			 (unsigned long long)topology_map(s->topology)->version);
}

/* ---- asking ---- */

static struct net_client *meta_now(struct data_server *s)
{
	return s->metas.clients[s->metas.now];
}

static void failed(struct data_server *s, int r, const char *what)
{
	/* Said once, and then once a minute or so: the meta server may be away for long. */
	if (s->failures++ % 120 == 0)
		log_warn("data server %s: the meta server at %s: %s; trying again", s->endpoint,
			 s->meta, what && *what ? what : strerror(-r));
	s->next_join_ms = now_ms() + JOIN_RETRY_MS;
}

static void joined(void *arg, int r, struct net_reply *reply)
{
	struct data_server *s = arg;
	struct error err = { 0 };
	struct topology *fresh;
	struct uuid cluster;

	s->asking = false;
	if (r == -ECANCELED) /* the server ends */
		return;
	metas_answered(&s->metas, r, r ? NULL : reply->header);
	if (r || reply->header->error) {
		/* Another process has joined with this disk since, and be it a copy's, or one whose
		 * JOIN came late. It is we who live: as a new process, whose disk is reconciled. */
		if (!r && reply->header->error == ESTALE)
			uuid_generate(&s->session);
		failed(s, r ? r : -reply->header->error, r ? NULL : reply->header->error_text);
		goto free;
	}
	if (reply->header->body_case != VMDEDUP__REPLY__BODY_SERVER_JOIN ||
	    !join_is_sane(reply->header->server_join)) {
		failed(s, -EPROTO, "an answer to SERVER_JOIN that makes no sense");
		goto free;
	}
	memcpy(cluster.b, reply->header->server_join->cluster.data, sizeof(cluster.b));
	/* Before anything is served by that map: the disk says who it joined as. */
	if (bstore_bind_cluster(s->store, &cluster, &err) ||
	    bstore_set_session(s->store, &s->session, &err)) {
		failed(s, err.code, err.text);
		goto free;
	}
	net_server_set_cluster(s->server, cluster.b);
	s->failures = 0;
	/*
	 * Who has published no map yet stores nothing until the meta server knows that the disk says so:
	 * should this process end before, the next one comes with the disk that the one before left,
	 * and not with a copy put back.
	 */
	if (!uuid_equal(&s->said, &s->session)) {
		s->next_join_ms = 0;
		goto free;
	}
	s->next_join_ms = now_ms() + JOIN_REPEAT_MS;
	s->next_map_ms = now_ms() + MAP_REFRESH_MS;
	fresh = topology_new(reply->header->server_join);
	if (!fresh || publish(s, fresh))
		failed(s, -ENOMEM, NULL);
free:
	if (!r)
		net_reply_free(reply);
}

static void ask_join(struct data_server *s)
{
	Vmdedup__ServerJoin join = VMDEDUP__SERVER_JOIN__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	const uint8_t *key = net_ctx_public_key(s->net);
	struct uuid disk = *bstore_disk(s->store), cluster;
	struct bstore_stat st;
	int r = bstore_stat(s->store, &st);

	if (r) {
		failed(s, r, NULL);
		return;
	}
	s->free_bytes = st.free;
	join.disk = (ProtobufCBinaryData){ sizeof(disk.b), disk.b };
	join.incarnation = bstore_incarnation(s->store);
	join.endpoint = s->endpoint;
	if (key && !strncmp(s->endpoint, "tcp://", 6))
		join.curve_key = (ProtobufCBinaryData){ 32, (uint8_t *)key };
	join.capacity = st.capacity;
	join.free = st.free;
	join.host = s->host;
	join.rack = s->rack;
	join.commits = st.sequence;
	join.session = (ProtobufCBinaryData){ sizeof(s->session.b), s->session.b };
	cluster = *bstore_cluster(s->store);
	if (!uuid_is_null(&cluster))
		join.cluster = (ProtobufCBinaryData){ sizeof(cluster.b), cluster.b };
	s->said = *bstore_session(s->store);
	join.last_session = (ProtobufCBinaryData){ sizeof(s->said.b), s->said.b };
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_JOIN;
	req.server_join = &join;
	s->asking = true;
	r = net_client_submit(meta_now(s), &req, NULL, 0, JOIN_TIMEOUT_MS, joined, s);
	if (r) {
		s->asking = false;
		failed(s, r, NULL);
	}
}

static void got_map(void *arg, int r, struct net_reply *reply)
{
	struct data_server *s = arg;
	const Vmdedup__MapReply *map;
	struct topology *fresh = NULL;

	s->asking = false;
	s->next_map_ms = now_ms() + MAP_REFRESH_MS;
	if (r == -ECANCELED)
		return;
	metas_answered(&s->metas, r, r ? NULL : reply->header);
	if (r)
		return;
	map = reply->header->body_case == VMDEDUP__REPLY__BODY_MAP ? reply->header->map : NULL;
	if (!reply->header->error && map_is_sane(map) &&
	    map->version > topology_map(s->topology)->version)
		fresh = topology_new(s->topology->reply);
	if (fresh) {
		fresh->map = copy_map(map);
		if (fresh->map)
			publish(s, fresh);
		else
			topology_put(fresh);
	}
	net_reply_free(reply);
}

static void ask_map(struct data_server *s)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;

	get.have_version = topology_map(s->topology)->version;
	req.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	req.map_get = &get;
	s->asking = true;
	s->refresh = false;
	s->asked_map_ms = now_ms();
	if (net_client_submit(meta_now(s), &req, NULL, 0, JOIN_TIMEOUT_MS, got_map, s))
		s->asking = false;
}

static void reported(void *arg, int r, struct net_reply *reply)
{
	if (reply)
		net_reply_free(reply);
}

/* What the forwarder has noticed. */
static void take_hints(struct data_server *s, uint64_t now)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ServerReport report = VMDEDUP__SERVER_REPORT__INIT;

	pthread_mutex_lock(&s->lock);
	report.server = s->accused;
	s->accused = 0;
	s->refresh |= s->want_map || s->nr_early;
	s->want_map = false;
	pthread_mutex_unlock(&s->lock);
	if (s->refresh)
		s->next_map_ms = MIN(s->next_map_ms, s->asked_map_ms + MAP_SOON_MS);
	if (!report.server)
		return;
	report.what = (char *)"it does not take what is forwarded to it";
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_REPORT;
	req.server_report = &report;
	/* To all: one of them governs. */
	for (size_t i = 0; i < s->metas.nr; i++)
		net_client_submit(s->metas.clients[i], &req, NULL, 0, JOIN_TIMEOUT_MS, reported, s);
}

void join_tick(struct data_server *s)
{
	uint64_t now = now_ms();

	server_take_early(s);
	if (!s->metas.nr)
		return;
	metas_run(&s->metas);
	take_hints(s, now);
	/* A store that takes no commits can take no map; and a JOIN would say that the server is up. */
	if (s->asking || s->map_pending || bstore_failed(s->store))
		return;
	if (now >= s->next_join_ms)
		ask_join(s);
	else if (s->topology && now >= s->next_map_ms)
		ask_map(s);
}

static void client_ready(void *arg)
{
	join_tick(arg);
}

int join_start(struct data_server *s, struct error *err)
{
	int r;

	if (!*s->meta)
		return 0;
	r = metas_open(&s->metas, s->net, s->meta, s->has_meta_key ? s->meta_key : NULL, err);
	for (size_t i = 0; !r && i < s->metas.nr; i++)
		r = net_server_watch(s->server, net_client_fd(s->metas.clients[i]), client_ready, s);
	if (r)
		return error_set(err, r, "%s", *err->text ? err->text : strerror(-r));
	join_tick(s);
	return 0;
}

void join_end(struct data_server *s)
{
	metas_close(&s->metas);
}
