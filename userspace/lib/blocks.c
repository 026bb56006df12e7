// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Gets: blocks from data servers. A get goes to the replica that ranks first, in a message with
 * others for that server; after a miss, a bad digest or silence it goes to the next. Nothing is
 * handed out that has not matched its fingerprint (invariant 3).
 */
#include <errno.h>
#include <string.h>
#include "base/log.h"
#include "lib/internal.h"

#define GETS_INFLIGHT 8 /* messages to one server */
#define MAX_NAMED     3 /* peers of a redirect */

struct get_item {
	TAILQ_ENTRY(get_item) link;
	struct fp fp;
	uint64_t deadline_ns; /* 0: none */
	uint8_t tried;	      /* replicas that were asked in this round */
	bool bad;	      /* some replica had it, and not right */
	bool serve;	      /* it was redirected, in vain */
	bool silent;	      /* some replica did not answer in this round */
	uint8_t asked;	      /* the replica whose answer is awaited */
	unsigned int attempts;
	void (*got)(void *arg, int r, const void *data, size_t len);
	void *arg;
};

struct get_batch {
	LIST_ENTRY(get_batch) link; /* of its server's */
	struct cluster *c;
	struct server *s;
	size_t count;
	struct get_item *items[PROTO_MAX_BLOCKS];
};

static void get_end(struct get_item *it, int r, const void *data, size_t len)
{
	it->got(it->arg, r, data, len);
	free(it);
}

/* ---- which replica ---- */

/* Rendezvous hashing: every reader ranks the replicas of a block alike, and blocks spread. */
static uint64_t rank(const struct fp *fp, const struct server *s)
{
	uint64_t h;

	memcpy(&h, fp->b + 8, sizeof(h));
	h ^= (uint64_t)s->id * 0x9e3779b97f4a7c15ULL;
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93ULL;
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93ULL;
	return h ^ h >> 32;
}

/* A current replica before a stale one, one that answers before one that does not. */
static unsigned int fitness(struct cluster *c, const struct fp *fp, unsigned int place)
{
	const struct server *s = c->map[fp_shard(fp) * c->map_replicas + place];

	return 4 * !cluster_server_is_up(s) + 2 * s->lost +
	       cluster_place_is_stale(c, fp_shard(fp), place);
}

static bool better(struct cluster *c, const struct fp *fp, unsigned int place_a,
		   unsigned int place_b)
{
	const struct server *a = c->map[fp_shard(fp) * c->map_replicas + place_a];
	const struct server *b = c->map[fp_shard(fp) * c->map_replicas + place_b];
	unsigned int fit_a = fitness(c, fp, place_a), fit_b = fitness(c, fp, place_b);

	if (fit_a != fit_b)
		return fit_a < fit_b;
	if (a->nr_gets > 2 * b->nr_gets + 64)
		return false;
	if (b->nr_gets > 2 * a->nr_gets + 64)
		return true;
	return rank(fp, a) > rank(fp, b);
}

static struct server *pick(struct cluster *c, struct get_item *it)
{
	struct server *best = NULL;

	for (unsigned int i = 0; i < c->map_replicas; i++) {
		struct server *s = c->map[fp_shard(&it->fp) * c->map_replicas + i];

		if (!s || it->tried & 1 << i)
			continue;
		if (!best || better(c, &it->fp, i, it->asked)) {
			best = s;
			it->asked = i;
		}
	}
	return best;
}

static bool has_server(struct cluster *c, const struct fp *fp)
{
	for (unsigned int i = 0; i < c->map_replicas; i++)
		if (c->map[fp_shard(fp) * c->map_replicas + i])
			return true;
	return false;
}

static bool expired(const struct get_item *it)
{
	return it->deadline_ns && clock_mono_ns() >= it->deadline_ns;
}

/* Queue it for the next replica; when all have said no, that is the answer. */
static void get_queue(struct cluster *c, struct get_item *it)
{
	struct server *s = pick(c, it);

	if (!s && it->tried && !it->silent) {
		get_end(it, it->bad ? -EIO : -ENOENT, NULL, 0);
		return;
	}
	if (expired(it)) {
		get_end(it, -ETIMEDOUT, NULL, 0);
		return;
	}
	if (s) {
		TAILQ_INSERT_TAIL(&s->gets, it, link);
		s->nr_gets++;
		return;
	}
	/* Nobody answered, or the shard has no server: another round when the map was looked at. */
	it->tried = 0;
	it->silent = false;
	TAILQ_INSERT_TAIL(&c->homeless, it, link);
	cluster_map_want(c);
}

/* ---- answers ---- */

static int decode(struct cluster *c, const Vmdedup__BlockHead *head, const struct net_frame *frame,
		  const void **data, size_t *len)
{
	size_t n;

	if (head->codec == VMDEDUP__CODEC__RAW) {
		*data = frame->data;
		*len = frame->len;
		return frame->len <= (size_t)1 << c->params.block_shift ? 0 : -EBADMSG;
	}
	if (head->codec != VMDEDUP__CODEC__ZSTD)
		return -EBADMSG;
	n = ZSTD_decompressDCtx(c->dctx, c->raw, (size_t)1 << c->params.block_shift, frame->data,
				frame->len);
	if (ZSTD_isError(n))
		return -EBADMSG;
	*data = c->raw;
	*len = n;
	return 0;
}

static void get_accept(struct cluster *c, struct server *s, struct get_item *it,
		       const Vmdedup__BlockHead *head, const struct net_frame *frame)
{
	char hex[FP_HEX_SIZE];
	const void *data = NULL;
	size_t len = 0;
	struct fp fp;
	int r = decode(c, head, frame, &data, &len);

	if (!r) {
		fp_hash(c->hasher, data, len, &fp);
		if (fp_equal(&fp, &it->fp)) {
			get_end(it, 0, data, len);
			return;
		}
	}
	log_warn("data server %s sent block %s %s: trying the next replica", s->endpoint,
		 fp_to_hex(&it->fp, hex), r ? "in a form that cannot be decoded" :
		 "with content that does not match its fingerprint");
	it->bad = true;
	cluster_report(c, s, "a block that does not match its fingerprint");
	get_queue(c, it);
}

/* Who asked for it earlier. True: the get has ended. */
static bool get_redirected(struct cluster *c, struct get_item *it, const Vmdedup__GetReply *get,
			   const Vmdedup__BlockHead *head)
{
	struct peer_address peers[MAX_NAMED];
	size_t nr = 0;

	if (!c->serves_peers || it->serve)
		return false;
	for (size_t i = 0; i < head->n_redirect && nr < MAX_NAMED; i++)
		if (head->redirect[i] < get->n_peers &&
		    !peer_address_take(get->peers[head->redirect[i]], &peers[nr]))
			nr++;
	c->redirected(it->arg, peers, nr);
	free(it);
	return true;
}

static void batch_retry(struct get_batch *b, bool silent)
{
	for (size_t i = 0; i < b->count; i++) {
		struct get_item *it = b->items[i];

		if (b->c->closing) {
			get_end(it, -ECANCELED, NULL, 0);
			continue;
		}
		it->silent |= silent;
		get_queue(b->c, it);
	}
}

/* The shard is not there: by the newer of the two maps, which may be ours. */
static void get_stale(struct get_batch *b, const Vmdedup__Reply *h)
{
	const Vmdedup__MapReply *map = h->body_case == VMDEDUP__REPLY__BODY_MAP ? h->map : NULL;
	bool ours = !map || map->version <= b->c->map_version;

	cluster_map_apply(b->c, map);
	for (size_t i = 0; i < b->count && !ours; i++)
		b->items[i]->tried = 0;
	batch_retry(b, ours);
}

static void batch_answered(void *arg, int r, struct net_reply *reply)
{
	struct get_batch *b = arg;
	struct cluster *c = b->c;
	const Vmdedup__GetReply *get;
	size_t frame = 0;

	c->progress++;
	b->s->gets_inflight--;
	LIST_REMOVE(b, link);
	for (size_t i = 0; i < b->count; i++)
		b->items[i]->tried |= 1 << b->items[i]->asked;
	if (r) {
		if (r == -ETIMEDOUT && b->count)
			cluster_report(c, b->s, "no answer to a GET");
		batch_retry(b, true);
		goto free_batch;
	}
	b->s->last_answer_ns = clock_mono_ns();
	if (!b->count) /* abandoned */
		goto free_batch;
	if (reply->header->error == ESTALE) {
			get_stale(b, reply->header);
		goto free_batch;
	}
	get = reply->header->body_case == VMDEDUP__REPLY__BODY_GET ? reply->header->get : NULL;
	if (reply->header->error || !get || get->n_blocks != b->count) {
		log_warn("data server %s: %s", b->s->endpoint, reply->header->error ?
			 reply->header->error_text : "an answer that is not one to GET");
		batch_retry(b, true);
		goto free_batch;
	}
	for (size_t i = 0; i < b->count; i++) {
		const Vmdedup__BlockHead *head = get->blocks[i];

		if (head->error == EREMOTE && get_redirected(c, b->items[i], get, head))
			continue;
		if (head->error || frame >= reply->nr_frames) {
			b->items[i]->bad |= head->error != ENOENT;
			get_queue(c, b->items[i]);
		} else {
			c->giving = reply;
			c->giving_frame = frame++;
			get_accept(c, b->s, b->items[i], head, &reply->frames[c->giving_frame]);
			c->giving = NULL;
		}
	}
free_batch:
	if (reply)
		net_reply_free(reply);
	free(b);
}

/* ---- sending ---- */

static int batch_attempt_ms(const struct get_batch *b)
{
	uint64_t now = clock_mono_ns(), left = 0;

	for (size_t i = 0; i < b->count; i++)
		left = MAX(left, (uint64_t)attempt_ms(GET_ATTEMPT_MS, b->items[i]->attempts++));
	for (size_t i = 0; i < b->count; i++) {
		uint64_t d = b->items[i]->deadline_ns;

		if (d)
			left = MIN(left, d > now ? (d - now) / NS_PER_MS + 1 : 1);
	}
	return left;
}

static void batch_send(struct cluster *c, struct server *s, size_t max)
{
	uint8_t fps[PROTO_MAX_BLOCKS * FP_SIZE];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Get get = VMDEDUP__GET__INIT;
	struct net_client *client = cluster_server_client(c, s);
	struct get_batch *b = calloc(1, sizeof(*b));
	struct get_item *it, *next;
	Vmdedup__PeerAddress self;
	int r = -ENOTCONN;

	if (!b)
		return; /* they stay queued */
	b->c = c;
	b->s = s;
	get.serve = TAILQ_FIRST(&s->gets)->serve;
	for (it = TAILQ_FIRST(&s->gets); it && b->count < max; it = next) {
		next = TAILQ_NEXT(it, link);
		if (it->serve != get.serve)
			continue;
		TAILQ_REMOVE(&s->gets, it, link);
		s->nr_gets--;
		memcpy(fps + b->count * FP_SIZE, it->fp.b, FP_SIZE);
		b->items[b->count++] = it;
	}
	get.map_version = c->map_version;
	get.domain = c->params.domain;
	get.fingerprints.data = fps;
	get.fingerprints.len = b->count * FP_SIZE;
	if (c->serves_peers) {
		peer_address_give(&c->self, &self);
		get.from = &self;
	}
	req.body_case = VMDEDUP__REQUEST__BODY_GET;
	req.get = &get;
	s->gets_inflight++;
	LIST_INSERT_HEAD(&s->batches, b, link);
	if (client)
		r = net_client_submit(client, &req, NULL, 0, batch_attempt_ms(b), batch_answered, b);
	if (r)
		batch_answered(b, r, NULL);
}

void cluster_gets_flush(struct cluster *c)
{
	size_t max = MIN(BATCH_BYTES >> c->params.block_shift, (size_t)PROTO_MAX_BLOCKS);

	for (size_t i = 0; i < c->nr_servers; i++) {
		struct server *s = c->servers[i];
		unsigned int sent = 0;

		while (!TAILQ_EMPTY(&s->gets) && s->gets_inflight < GETS_INFLIGHT &&
		       sent++ < GETS_INFLIGHT)
			batch_send(c, s, max);
	}
}

void cluster_gets_requeue(struct cluster *c)
{
	struct get_list all = TAILQ_HEAD_INITIALIZER(all);
	struct get_item *it;

	TAILQ_CONCAT(&all, &c->homeless, link);
	for (size_t i = 0; i < c->nr_servers; i++) {
		struct server *s = c->servers[i];

		while (s->state == SERVER_GONE && (it = TAILQ_FIRST(&s->gets))) {
			TAILQ_REMOVE(&s->gets, it, link);
			s->nr_gets--;
			it->tried = 0;
			TAILQ_INSERT_TAIL(&all, it, link);
		}
	}
	while ((it = TAILQ_FIRST(&all))) {
		TAILQ_REMOVE(&all, it, link);
		get_queue(c, it);
	}
}

void cluster_gets_abandon(struct cluster *c, struct server *s)
{
	struct get_list all = TAILQ_HEAD_INITIALIZER(all);
	struct get_batch *b;
	struct get_item *it;

	if (c->closing)
		return;
	LIST_FOREACH(b, &s->batches, link) {
		for (size_t i = 0; i < b->count; i++) {
			b->items[i]->tried |= 1 << b->items[i]->asked;
			b->items[i]->silent = true;
			TAILQ_INSERT_TAIL(&all, b->items[i], link);
		}
		b->count = 0;
	}
	TAILQ_CONCAT(&all, &s->gets, link);
	s->nr_gets = 0;
	while ((it = TAILQ_FIRST(&all))) {
		TAILQ_REMOVE(&all, it, link);
		get_queue(c, it);
	}
}

void cluster_gets_cancel(struct cluster *c)
{
	struct get_item *it;

	while ((it = TAILQ_FIRST(&c->homeless))) {
		TAILQ_REMOVE(&c->homeless, it, link);
		get_end(it, -ECANCELED, NULL, 0);
	}
	for (size_t i = 0; i < c->nr_servers; i++) {
		struct server *s = c->servers[i];

		net_client_free(s->client);
		s->client = NULL;
		while ((it = TAILQ_FIRST(&s->gets))) {
			TAILQ_REMOVE(&s->gets, it, link);
			get_end(it, -ECANCELED, NULL, 0);
		}
	}
}

/* ---- for others ---- */

void cluster_serve_peers(struct cluster *c, const struct peer_address *self,
			 void (*redirected)(void *arg, const struct peer_address *peers, size_t nr))
{
	c->serves_peers = true;
	c->self = *self;
	c->redirected = redirected;
}

static int submit(struct cluster *c, const struct fp *fp, bool serve, int timeout_ms,
		  void (*got)(void *arg, int r, const void *data, size_t len), void *arg)
{
	struct get_item *it = calloc(1, sizeof(*it));

	if (!it)
		return -ENOMEM;
	it->fp = *fp;
	it->deadline_ns = timeout_ms < 0 ? 0 : clock_mono_ns() + timeout_ms * NS_PER_MS;
	it->got = got;
	it->arg = arg;
	it->serve = serve;
	if (has_server(c, fp)) {
		get_queue(c, it);
	} else {
		TAILQ_INSERT_TAIL(&c->homeless, it, link);
		cluster_map_want(c);
	}
	return 0;
}

int cluster_get_submit(struct cluster *c, const struct fp *fp, int timeout_ms,
		       void (*got)(void *arg, int r, const void *data, size_t len), void *arg)
{
	return submit(c, fp, false, timeout_ms, got, arg);
}

int cluster_get_served(struct cluster *c, const struct fp *fp, int timeout_ms,
		       void (*got)(void *arg, int r, const void *data, size_t len), void *arg)
{
	return submit(c, fp, true, timeout_ms, got, arg);
}

struct bytes *cluster_take(struct cluster *c, const void *data, size_t len)
{
	if (c->giving && c->giving->frames[c->giving_frame].data == data)
		return net_reply_take(c->giving, c->giving_frame);
	return bytes_copy(data, len); /* it was decoded */
}

struct sync_get {
	void (*got)(void *arg, size_t index, int r, const void *data, size_t len);
	void *arg;
	size_t left;
	struct sync_one {
		struct sync_get *all;
		size_t index;
	} ones[];
};

static void sync_got(void *arg, int r, const void *data, size_t len)
{
	struct sync_one *one = arg;

	one->all->left--;
	one->all->got(one->all->arg, one->index, r, data, len);
}

int cluster_get(struct cluster *c, const struct fp *fps, size_t count, int timeout_ms,
		void (*got)(void *arg, size_t index, int r, const void *data, size_t len),
		void *arg, struct error *err)
{
	struct sync_get *all;
	int r = 0;

	if (count > PROTO_MAX_BLOCKS)
		return error_set(err, -E2BIG, "at most %d blocks in one get", PROTO_MAX_BLOCKS);
	all = calloc(1, sizeof(*all) + count * sizeof(all->ones[0]));
	if (!all)
		return error_set(err, -ENOMEM, "out of memory");
	all->got = got;
	all->arg = arg;
	for (size_t i = 0; i < count; i++) {
		all->ones[i].all = all;
		all->ones[i].index = i;
		all->left++;
		r = cluster_get_submit(c, &fps[i], timeout_ms, sync_got, &all->ones[i]);
		if (r) {
			all->left--;
			error_set(err, r, "out of memory");
			break;
		}
	}
	/* Always to the end: the items point here. An interrupted wait goes on. */
	while (all->left)
		cluster_run(c, 1000);
	free(all);
	return r;
}
