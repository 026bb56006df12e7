// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The repair thread: stale replicas are reconciled with current ones, damaged records are found and
 * replaced, shards that have moved away are dropped. What is to be done is in the shard map and on
 * the disk: the thread keeps no state that a crash could lose, and begins again where it was.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "data/repair.h"

#define CALL_MS	     10000
#define SLICE_MS     50	  /* how soon the end of the server is noticed */
#define IDLE_MS	     200
#define RETRY_NS     1000000000ULL /* a shard that could not be finished is tried again */
#define DROP_EVERY_NS 5000000000ULL
#define SHARDS_AT_ONCE 16 /* that one BEGIN and one END are for */
#define MAX_BURST_NS 200000000ULL

/* ---- time and rates ---- */

static bool is_ending(struct repair *rp)
{
	struct data_server *s = rp->s;
	bool ending;

	pthread_mutex_lock(&s->lock);
	ending = s->draining || s->stopping;
	pthread_mutex_unlock(&s->lock);
	return ending;
}

/* Until something new, or the end, or @ms. */
static void pause_ms(struct repair *rp, unsigned int ms)
{
	uint64_t until_ns = clock_mono_ns() + ms * 1000000ULL;
	struct data_server *s = rp->s;

	pthread_mutex_lock(&s->lock);
	if (!s->draining && !s->stopping)
		clock_cond_wait(&s->repair_cond, &s->lock, until_ns);
	pthread_mutex_unlock(&s->lock);
}

void repair_pace(struct repair *rp, struct pace *p, uint64_t rate, uint64_t bytes)
{
	uint64_t now = clock_mono_ns();

	p->until_ns = MAX(p->until_ns, now > MAX_BURST_NS ? now - MAX_BURST_NS : 0);
	p->until_ns += (uint64_t)((double)bytes * 1e9 / (double)rate);
	while (p->until_ns > now && !is_ending(rp)) {
		pause_ms(rp, (unsigned int)MIN((p->until_ns - now) / 1000000 + 1, IDLE_MS));
		now = clock_mono_ns();
	}
}

/* ---- calls ---- */

struct call {
	bool done;
	int r;
	struct net_reply reply;
};

static void call_done(void *arg, int r, struct net_reply *reply)
{
	struct call *c = arg;

	c->done = true;
	c->r = r;
	if (!r)
		c->reply = *reply;
}

int repair_call(struct repair *rp, struct net_client **client, Vmdedup__Request *req,
		struct net_reply *reply)
{
	struct call c = { .r = -ECANCELED };
	int r;

	memset(reply, 0, sizeof(*reply));
	if (!*client)
		return -ENOTCONN;
	r = net_client_submit(*client, req, NULL, 0, CALL_MS, call_done, &c);
	if (r)
		return r;
	while (!c.done && !is_ending(rp))
		net_client_run(*client, SLICE_MS);
	if (!c.done) {
		net_client_free(*client); /* ends the call */
		*client = NULL;
	}
	if (!c.r)
		*reply = c.reply;
	return c.r ? c.r : -c.reply.header->error;
}

static int meta_call(struct repair *rp, Vmdedup__Request *req, struct net_reply *reply)
{
	int r = repair_call(rp, &rp->metas.clients[rp->metas.now], req, reply);

	metas_answered(&rp->metas, r, NULL);
	return r;
}

/* ---- other data servers ---- */

static void source_close(struct source *src)
{
	net_client_free(src->client);
	free(src->endpoint);
	*src = (struct source){ 0 };
}

/* One of the last few, or a new one in the place of the one used longest ago. NULL: not there. */
struct source *repair_source(struct repair *rp, uint32_t id)
{
	const Vmdedup__MapReply *map = topology_map(rp->t);
	const Vmdedup__Server *server = NULL;
	struct source *src = &rp->sources[0];
	struct error err = { 0 };

	for (size_t i = 0; i < map->n_servers; i++)
		if (map->servers[i]->id == id)
			server = map->servers[i];
	if (!server || server->disk.len != sizeof(src->disk) || server->state == 2 ||
	    server->state == 4) /* down, out */
		return NULL;
	for (size_t i = 0; i < MAX_SOURCES; i++)
		if (rp->sources[i].used < src->used)
			src = &rp->sources[i];
	for (size_t i = 0; i < MAX_SOURCES; i++)
		if (rp->sources[i].client && rp->sources[i].id == id)
			src = &rp->sources[i];
	/* A number is used again when its server was removed. */
	if (src->client && (src->id != id || strcmp(src->endpoint, server->endpoint) ||
			    memcmp(src->disk, server->disk.data, sizeof(src->disk))))
		source_close(src);
	src->used = ++rp->uses;
	if (src->client)
		return src;
	source_close(src);
	src->id = id;
	memcpy(src->disk, server->disk.data, sizeof(src->disk));
	src->used = rp->uses;
	src->endpoint = strdup(server->endpoint);
	if (src->endpoint)
		src->client = net_client_new(rp->s->net, src->endpoint,
					     server->curve_key.len == 32 ? server->curve_key.data :
									   NULL,
					     "data", &err);
	if (!src->client)
		log_warn("data server %s: %s", server->endpoint, err.text);
	return src->client ? src : NULL;
}

/* ---- blocks ---- */

static int store_got(struct repair *rp, uint32_t domain, const struct net_reply *reply,
		     struct fetched *out)
{
	const Vmdedup__GetReply *get = reply->header->get;
	struct job *job = server_job_new(rp->s, JOB_PUT, get->n_blocks);
	size_t frame = 0, nr = 0;
	int r = -ENOMEM;

	if (!job)
		return r;
	job->domain = domain;
	job->verified = calloc(job->nr + 1, sizeof(*job->verified));
	job->no_coding = calloc(job->nr + 1, sizeof(*job->no_coding));
	if (!job->verified || !job->no_coding)
		goto free_job;
	for (size_t i = 0; i < get->n_blocks; i++) {
		const Vmdedup__BlockHead *h = get->blocks[i];
		struct bstore_op *op = &job->ops[nr];

		if (h->error || h->fingerprint.len != FP_SIZE || frame >= reply->nr_frames) {
			out->absent += h->error == ENOENT;
			out->damaged += h->error != ENOENT;
			continue;
		}
		op->kind = STORE_PUT;
		op->domain = domain;
		memcpy(op->fp.b, h->fingerprint.data, FP_SIZE);
		op->codec = h->codec == VMDEDUP__CODEC__ZSTD ? 1 : 0;
		op->raw_len = h->raw_size;
		op->data = reply->frames[frame].data;
		op->len = (uint32_t)reply->frames[frame++].len;
		job->no_coding[nr] = op->codec == 0;
		job->bytes += op->len;
		nr++;
	}
	job->nr = nr;
	r = 0;
	if (!nr)
		goto free_job;
	out->bytes += job->bytes;
	server_submit_wait(rp->s, job);
	r = job->r;
	for (size_t i = 0; !r && i < nr; i++) {
		if (job->ops[i].r == -EBADMSG || job->ops[i].r == -EINVAL)
			out->damaged++;
		else if (job->ops[i].r)
			r = job->ops[i].r;
		else
			out->stored++;
	}
free_job:
	job_free(job);
	return r;
}

int repair_fetch(struct repair *rp, struct source *src, uint32_t domain, const uint8_t *fps,
		 size_t nr, struct fetched *out)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Get get = VMDEDUP__GET__INIT;
	struct net_reply reply;
	int r;

	get.domain = domain;
	get.disk = (ProtobufCBinaryData){ sizeof(src->disk), src->disk };
	get.fingerprints = (ProtobufCBinaryData){ nr * FP_SIZE, (uint8_t *)fps };
	req.body_case = VMDEDUP__REQUEST__BODY_GET;
	req.get = &get;
	r = repair_call(rp, &src->client, &req, &reply);
	if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_GET ||
		   reply.header->get->n_blocks != nr))
		r = -EPROTO;
	if (!r)
		r = store_got(rp, domain, &reply, out);
	net_reply_free(&reply);
	if (!r) {
		pthread_mutex_lock(&rp->s->lock);
		rp->s->repair.blocks += out->stored;
		rp->s->repair.bytes += out->bytes;
		pthread_mutex_unlock(&rp->s->lock);
		repair_pace(rp, &rp->copying, rp->s->repair_rate, out->bytes);
	}
	return r;
}

/* ---- healing ---- */

void repair_bad(struct data_server *s, uint32_t domain, const struct fp *fp)
{
	pthread_mutex_lock(&s->lock);
	s->repair.damaged++;
	for (size_t i = 0; i < s->nr_bad; i++) {
		if (s->bad[i].domain == domain && fp_equal(&s->bad[i].fp, fp)) {
			pthread_mutex_unlock(&s->lock);
			return;
		}
	}
	if (s->nr_bad < MAX_BAD)
		s->bad[s->nr_bad++] = (struct bad_block){ domain, *fp };
	pthread_cond_signal(&s->repair_cond);
	pthread_mutex_unlock(&s->lock);
}

static bool take_bad(struct data_server *s, struct bad_block *b)
{
	bool some;

	pthread_mutex_lock(&s->lock);
	some = s->nr_bad;
	if (some)
		*b = s->bad[--s->nr_bad];
	pthread_mutex_unlock(&s->lock);
	return some;
}

static void heal(struct repair *rp, const struct bad_block *b)
{
	const Vmdedup__MapReply *map = topology_map(rp->t);
	unsigned int shard = fp_shard(&b->fp);
	char hex[FP_HEX_SIZE];

	for (unsigned int k = 0; k < map->replicas; k++) {
		uint32_t id = map->shard_servers[shard * map->replicas + k];
		struct source *src = id && id != rp->t->id ? repair_source(rp, id) : NULL;
		struct fetched got = { 0 };

		if (!src || repair_fetch(rp, src, b->domain, b->fp.b, 1, &got) || !got.stored)
			continue;
		log_info("block %s was damaged here: replaced with the copy of data server %s",
			 fp_to_hex(&b->fp, hex), src->endpoint);
		pthread_mutex_lock(&rp->s->lock);
		rp->s->repair.healed++;
		pthread_mutex_unlock(&rp->s->lock);
		return;
	}
	log_error("block %s is damaged here, and no other data server has it now: the next scrub "
		  "tries again", fp_to_hex(&b->fp, hex));
}

/* ---- scrubbing ---- */

static void scrub_some(struct repair *rp)
{
	struct bstore_scrubbed *page = rp->page;
	struct job *job;
	int r = bstore_scrub_page(rp->s->store, &rp->at, page);

	if (r) {
		log_error("scrub: %s", strerror(-r));
		rp->at.done = true;
		return;
	}
	job = page->nr ? server_job_new(rp->s, JOB_BAD, page->nr) : NULL;
	if (job) {
		memcpy(job->ops, page->bad, page->nr * sizeof(page->bad[0]));
		server_submit_wait(rp->s, job);
		job_free(job);
	}
	for (size_t i = 0; i < page->nr; i++)
		repair_bad(rp->s, page->domain, &page->bad[i].fp);
	for (size_t i = 0; i < page->nr_known; i++)
		repair_bad(rp->s, page->domain, &page->known[i]);
	pthread_mutex_lock(&rp->s->lock);
	rp->s->repair.scrubbed_bytes += page->bytes;
	pthread_mutex_unlock(&rp->s->lock);
	repair_pace(rp, &rp->reading, rp->s->scrub_rate, page->bytes + page->nr);
}

/* False: nothing to read now. */
static bool scrub(struct repair *rp)
{
	uint64_t now = clock_mono_ns();

	if (!rp->s->scrub_rate || now < rp->next_scrub_ns)
		return false;
	if (!rp->scrubbing) {
		rp->scrubbing = true;
		rp->scrub_began_ns = now;
		rp->at = (struct bstore_scrub_at){ 0 };
	}
	scrub_some(rp);
	if (rp->at.done) {
		rp->scrubbing = false;
		rp->next_scrub_ns = rp->scrub_began_ns + rp->s->scrub_every_s * 1000000000ULL;
	}
	return true;
}

/* ---- shards that have moved away ---- */

static bool holds_any(struct repair *rp, uint16_t shard)
{
	const Vmdedup__ServerJoinReply *join = rp->t->reply;
	struct bstore_listed one;
	bool more;

	for (size_t i = 0; i < join->n_domains; i++)
		if (bstore_list(rp->s->store, shard, join->domains[i]->id, NULL, &one, 1,
				&more) > 0)
			return true;
	return false;
}

static int drop_page(struct repair *rp, uint16_t shard, uint32_t domain)
{
	struct job *job;
	bool more;
	int r, n = bstore_list(rp->s->store, shard, domain, NULL, rp->mine, LIST_PAGE, &more);

	if (n <= 0)
		return n;
	job = server_job_new(rp->s, JOB_DROP, (size_t)n);
	if (!job)
		return -ENOMEM;
	job->domain = domain;
	job->shard = shard;
	for (int i = 0; i < n; i++)
		job->ops[i] = (struct bstore_op){ .kind = STORE_DROP, .domain = domain,
						  .fp = rp->mine[i].fp };
	server_submit_wait(rp->s, job);
	r = job->r;
	for (int i = 0; !r && i < n; i++)
		r = job->ops[i].r == -ENOENT ? 0 : job->ops[i].r;
	job_free(job);
	if (r)
		return r;
	pthread_mutex_lock(&rp->s->lock);
	rp->s->repair.dropped += (uint64_t)n;
	pthread_mutex_unlock(&rp->s->lock);
	return n;
}

static void drop_shard(struct repair *rp, uint16_t shard)
{
	const Vmdedup__ServerJoinReply *join = rp->t->reply;
	int n = 0;

	for (size_t i = 0; n >= 0 && i < join->n_domains; i++)
		do
			n = drop_page(rp, shard, join->domains[i]->id);
		while (n > 0 && !is_ending(rp));
	if (n < 0 && n != -ESTALE)
		log_warn("shard %u has moved away, its blocks stay here: %s", shard, strerror(-n));
}

static void drop(struct repair *rp)
{
	const Vmdedup__MapReply *map = topology_map(rp->t);
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardDrop ask = VMDEDUP__SHARD_DROP__INIT;
	uint32_t shards[NR_SHARDS];
	struct uuid disk = *bstore_disk(rp->s->store);
	struct net_reply reply;
	int r;

	for (unsigned int shard = 0; shard < NR_SHARDS; shard++)
		if (!topology_place(map, shard, rp->t->id) && holds_any(rp, (uint16_t)shard))
			shards[ask.n_shards++] = shard;
	if (!ask.n_shards || map->deletion_suspended)
		return;
	ask.disk = (ProtobufCBinaryData){ sizeof(disk.b), disk.b };
	ask.shards = shards;
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_DROP;
	req.shard_drop = &ask;
	r = meta_call(rp, &req, &reply);
	if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_SHARD_DROP)
		for (size_t i = 0; i < reply.header->shard_drop->n_shards && !is_ending(rp); i++)
			drop_shard(rp, (uint16_t)(reply.header->shard_drop->shards[i] % NR_SHARDS));
	net_reply_free(&reply);
}

/* ---- reconciling ---- */

/* Replicas of mine that are stale, those with fewest current replicas beside them first. */
static size_t find_stale(struct repair *rp, uint32_t *shards)
{
	const Vmdedup__MapReply *map = topology_map(rp->t);
	uint64_t now = clock_mono_ns();
	size_t nr = 0, all = 0;

	for (int copies = 0; copies <= PROTO_MAX_PLACES; copies++) {
		for (unsigned int shard = 0; shard < NR_SHARDS; shard++) {
			uint8_t mine = topology_place(map, shard, rp->t->id);
			uint8_t current = topology_current(map, shard);

			if (!mine || mine & current || __builtin_popcount(current) != copies)
				continue;
			all++;
			if (nr < SHARDS_AT_ONCE && now >= rp->retry_ns[shard])
				shards[nr++] = shard;
		}
	}
	pthread_mutex_lock(&rp->s->lock);
	rp->s->repair.stale_shards = (uint32_t)all;
	pthread_mutex_unlock(&rp->s->lock);
	return nr;
}

/* What END must say of BEGIN. */
struct round {
	uint64_t version, id;
};

static int begin(struct repair *rp, uint32_t *shards, size_t nr, uint32_t *sources,
		 struct round *round)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ReconcileBegin ask = VMDEDUP__RECONCILE_BEGIN__INIT;
	struct uuid disk = *bstore_disk(rp->s->store);
	const Vmdedup__ReconcileBeginReply *in;
	struct net_reply reply;
	int r;

	ask.disk = (ProtobufCBinaryData){ sizeof(disk.b), disk.b };
	ask.incarnation = bstore_incarnation(rp->s->store);
	ask.n_shards = nr;
	ask.shards = shards;
	req.body_case = VMDEDUP__REQUEST__BODY_RECONCILE_BEGIN;
	req.reconcile_begin = &ask;
	r = meta_call(rp, &req, &reply);
	in = r ? NULL : reply.header->reconcile_begin;
	if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_RECONCILE_BEGIN ||
		   in->n_sources != nr))
		r = -EPROTO;
	if (!r) {
		memcpy(sources, in->sources, nr * sizeof(*sources));
		*round = (struct round){ in->map_version, in->round };
	}
	net_reply_free(&reply);
	return r;
}

static int end(struct repair *rp, uint32_t *shards, uint32_t *sources, size_t nr,
	       const struct round *round)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ReconcileEnd done = VMDEDUP__RECONCILE_END__INIT;
	struct uuid disk = *bstore_disk(rp->s->store);
	struct net_reply reply;
	int r;

	done.disk = (ProtobufCBinaryData){ sizeof(disk.b), disk.b };
	done.incarnation = bstore_incarnation(rp->s->store);
	done.n_shards = done.n_sources = nr;
	done.shards = shards;
	done.sources = sources;
	done.map_version = round->version;
	done.round = round->id;
	req.body_case = VMDEDUP__REQUEST__BODY_RECONCILE_END;
	req.reconcile_end = &done;
	r = meta_call(rp, &req, &reply);
	net_reply_free(&reply);
	return r;
}

/* False: there is nothing to do now. */
static bool reconcile(struct repair *rp)
{
	uint32_t shards[SHARDS_AT_ONCE], sources[SHARDS_AT_ONCE];
	size_t nr = find_stale(rp, shards), done = 0;
	struct round round = { 0 };

	if (!nr || begin(rp, shards, nr, sources, &round))
		return false;
	for (size_t i = 0; i < nr && !is_ending(rp); i++) {
		struct source *src = sources[i] ? repair_source(rp, sources[i]) : NULL;
		int r = src ? reconcile_shard(rp, (uint16_t)shards[i], src) : -EHOSTUNREACH;

		/* Also the finished ones: the map that says so comes a little later. */
		rp->retry_ns[shards[i]] = clock_mono_ns() + RETRY_NS;
		if (r && r != -EHOSTUNREACH && r != -ECANCELED)
			log_warn("shard %u could not be reconciled with data server %s: %s",
				 shards[i], src ? src->endpoint : "?", strerror(-r));
		if (r)
			continue;
		shards[done] = shards[i];
		sources[done++] = sources[i];
	}
	if (done && !end(rp, shards, sources, done, &round)) {
		pthread_mutex_lock(&rp->s->lock);
		rp->s->want_map = true;
		pthread_mutex_unlock(&rp->s->lock);
	}
	return done;
}

/* ---- the thread ---- */

static bool take_topology(struct repair *rp)
{
	struct data_server *s = rp->s;

	topology_put(rp->t);
	pthread_mutex_lock(&s->lock);
	rp->t = s->known;
	if (rp->t)
		atomic_fetch_add(&rp->t->refs, 1);
	pthread_mutex_unlock(&s->lock);
	return rp->t;
}

static bool work(struct repair *rp)
{
	uint64_t now = clock_mono_ns();
	struct bad_block bad;
	bool some = false;

	if (rp->t && rp->metas.nr && !bstore_failed(rp->s->store)) {
		while (!is_ending(rp) && take_bad(rp->s, &bad)) {
			heal(rp, &bad);
			some = true;
		}
		some |= reconcile(rp);
		if (now >= rp->next_drop_ns) {
			drop(rp);
			rp->next_drop_ns = clock_mono_ns() + DROP_EVERY_NS;
		}
	}
	return scrub(rp) || some;
}

static int open_meta(struct repair *rp)
{
	struct data_server *s = rp->s;
	struct error err = { 0 };

	if (rp->metas.nr || !*s->meta)
		return 0;
	return metas_open(&rp->metas, s->net, s->meta, s->has_meta_key ? s->meta_key : NULL, &err);
}

void *repair_run(void *arg)
{
	struct data_server *s = arg;
	struct repair *rp = calloc(1, sizeof(*rp));

	pthread_mutex_lock(&s->lock);
	s->repairing = rp && !s->stopping && !s->draining;
	pthread_mutex_unlock(&s->lock);
	if (rp)
		rp->page = malloc(sizeof(*rp->page));
	if (!rp || !rp->page)
		log_error("no memory for repairs: start this data server again");
	if (rp) {
		rp->s = s;
		rp->next_scrub_ns = clock_mono_ns() + MIN(s->scrub_every_s, 60) * 1000000000ULL;
	}
	while (rp && rp->page && !is_ending(rp)) {
		take_topology(rp);
		if (open_meta(rp) || !work(rp))
			pause_ms(rp, IDLE_MS);
	}
	for (size_t i = 0; rp && i < MAX_SOURCES; i++)
		source_close(&rp->sources[i]);
	if (rp) {
		metas_close(&rp->metas);
		topology_put(rp->t);
		free(rp->page);
	}
	free(rp);
	pthread_mutex_lock(&s->lock);
	s->repairing = false;
	pthread_cond_broadcast(&s->done_cond);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}
