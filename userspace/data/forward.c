// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a client has sent to this replica, brought to the others of its shards while it is being
 * committed here. One thread owns the connections to the other data servers. A job waits for them
 * for a bounded time: a replica that has not answered by then is left out of the receipts, and the
 * meta server takes it from there (meta/membership.h).
 *
 * Maps that differ: a replica whose map is older waits for the newer one before it refuses (handle.c).
 * Where it is ours that is older, what was forwarded by it is to be sent again by the client, with a
 * newer map, for which we wait then.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "data/record.h"
#include "data/server_priv.h"

#define FORWARD_MS    4000 /* more than the governor needs to find a server dead */
#define DEAF_TRY_MS   1000 /* a server that did not answer is asked that often whether it does */
#define LOOP_MS	      200

/* Another data server; the thread's own. */
struct peer {
	uint32_t id;
	char *endpoint;
	uint8_t key[32];
	bool has_key;
	struct net_client *client;
	bool deaf;		/* it let one wait too long: nothing waits for it until it answers */
	bool asking;		/* whether it answers */
	uint64_t next_try_ns;
	uint64_t lost_ns;	/* since when it is not connected although something waits; 0: it is */
	struct forwarder *f;
};

struct forwarder {
	struct data_server *s;
	struct topology *topology; /* the newest that a job came with, or was published */
	struct peer **peers;
	size_t nr_peers;
	bool ending;
};

/* One message on its way. */
struct message {
	struct forwarder *f;
	struct job *job;
	struct peer *peer;
	size_t nr;
	uint32_t index[]; /* of the job's ops, in order of their fingerprints */
};

/* ---- jobs ---- */

static const struct bstore_op *sent_op(const struct message *m, size_t i)
{
	return &m->job->sent[m->index[i]];
}

static void job_settle(struct forwarder *f, struct job *job)
{
	if (--job->waiting)
		return;
	pthread_mutex_lock(&f->s->lock);
	f->s->forward_bytes -= job->sent_bytes;
	server_part_done(f->s, job);
	pthread_mutex_unlock(&f->s->lock);
}

static struct message *message_find(struct message *m, const uint8_t *fp, size_t *at)
{
	size_t low = 0, high = m->nr;

	while (low < high) {
		size_t mid = (low + high) / 2;
		int order = memcmp(sent_op(m, mid)->fp.b, fp, FP_SIZE);

		if (!order) {
			*at = mid;
			return m;
		}
		if (order < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

/* The place that the peer has in the shard, as a bit. */
static uint8_t place_bit(const struct job *job, const struct fp *fp, uint32_t server)
{
	const Vmdedup__MapReply *map = topology_map(job->topology);

	for (unsigned int k = 0; k < map->replicas; k++)
		if (map->shard_servers[fp_shard(fp) * map->replicas + k] == server)
			return (uint8_t)(1U << k);
	return 0;
}

static struct job_peer *job_peer(struct job *job, uint32_t server)
{
	for (size_t i = 0; i < job->nr_peers; i++)
		if (job->peers[i].id == server)
			return &job->peers[i];
	return NULL;
}

/* What the peer vouches for. */
static void take_receipt(struct message *m, const Vmdedup__Receipt *r)
{
	struct job_peer *peer = job_peer(m->job, m->peer->id);
	const Vmdedup__Disk *d = r->n_disks == 1 ? r->disks[0] : NULL;

	if (!peer || !d || d->server != peer->id || d->uuid.len != sizeof(peer->disk) ||
	    r->domain != m->job->domain || r->fingerprints.len % FP_SIZE ||
	    !receipt_is_authentic(r, m->job->topology->receipt_key))
		return;
	memcpy(peer->disk, d->uuid.data, sizeof(peer->disk));
	peer->incarnation = d->incarnation;
	for (size_t i = 0; i < r->fingerprints.len; i += FP_SIZE) {
		struct job_copies *c;
		size_t at;

		if (!message_find(m, r->fingerprints.data + i, &at))
			continue;
		c = &m->job->copies[m->index[at]];
		c->have |= place_bit(m->job, &sent_op(m, at)->fp, peer->id);
		c->epoch = MIN(c->epoch, r->epoch);
	}
}

/* A stale replica may lack a block, a current one may not: the client shall send it. */
static void take_missing(struct message *m, const ProtobufCBinaryData *fps)
{
	const Vmdedup__MapReply *map = topology_map(m->job->topology);

	for (size_t i = 0; i + FP_SIZE <= fps->len; i += FP_SIZE) {
		uint8_t bit;
		size_t at;

		if (!message_find(m, fps->data + i, &at))
			continue;
		bit = place_bit(m->job, &sent_op(m, at)->fp, m->peer->id);
		if (bit & topology_current(map, fp_shard(&sent_op(m, at)->fp)))
			m->job->copies[m->index[at]].missing = true;
	}
}

static void report(struct forwarder *f, uint32_t server)
{
	struct data_server *s = f->s;

	pthread_mutex_lock(&s->lock);
	s->accused = server;
	s->want_map = true;
	pthread_mutex_unlock(&s->lock);
}

static void refused_by_map(struct message *m, const Vmdedup__MapReply *theirs)
{
	/* We could not get the newer map: then the replica is left out. */
	if (m->job->late || theirs->version <= topology_map(m->job->topology)->version)
		return;
	for (size_t i = 0; i < m->nr; i++)
		m->job->copies[m->index[i]].again = true;
}

static void answered(void *arg, int r, struct net_reply *reply)
{
	struct message *m = arg;
	const Vmdedup__Reply *h = r ? NULL : reply->header;

	if (r == -ETIMEDOUT && !m->peer->deaf) {
		m->peer->deaf = true;
		m->peer->next_try_ns = 0;
		log_warn("data server %s does not take what is forwarded to it: it is left out "
			 "until it answers", m->peer->endpoint);
		report(m->f, m->peer->id);
	}
	if (h && h->error == ESTALE) {
		if (h->body_case == VMDEDUP__REPLY__BODY_MAP)
			refused_by_map(m, h->map);
		pthread_mutex_lock(&m->f->s->lock);
		m->f->s->want_map = true;
		pthread_mutex_unlock(&m->f->s->lock);
	}
	if (h && !h->error && h->body_case == VMDEDUP__REPLY__BODY_PUT)
		for (size_t i = 0; i < h->put->n_receipts; i++)
			take_receipt(m, h->put->receipts[i]);
	if (h && !h->error && h->body_case == VMDEDUP__REPLY__BODY_TOUCH) {
		for (size_t i = 0; i < h->touch->n_receipts; i++)
			take_receipt(m, h->touch->receipts[i]);
		take_missing(m, &h->touch->missing);
	}
	job_settle(m->f, m->job);
	if (reply)
		net_reply_free(reply);
	free(m);
}

/* ---- peers ---- */

static const Vmdedup__Server *server_of(const Vmdedup__MapReply *map, uint32_t id)
{
	for (size_t i = 0; i < map->n_servers; i++)
		if (map->servers[i]->id == id)
			return map->servers[i];
	return NULL;
}

static bool takes_writes(const Vmdedup__Server *s)
{
	return s && (s->state == 0 || s->state == 1 || s->state == 3); /* up, suspect, draining */
}

static void peer_close(struct peer *p)
{
	net_client_free(p->client); /* what waits ends now */
	p->client = NULL;
	p->deaf = p->asking = false;
	p->lost_ns = 0;
}

static bool peer_is(const struct peer *p, const Vmdedup__Server *s)
{
	return !strcmp(p->endpoint, s->endpoint) && p->has_key == (s->curve_key.len == 32) &&
	       (!p->has_key || !memcmp(p->key, s->curve_key.data, 32));
}

static int peer_set(struct peer *p, const Vmdedup__Server *s)
{
	char *endpoint = strdup(s->endpoint);

	if (!endpoint)
		return -ENOMEM;
	peer_close(p);
	free(p->endpoint);
	p->endpoint = endpoint;
	p->id = s->id;
	p->has_key = s->curve_key.len == 32;
	if (p->has_key)
		memcpy(p->key, s->curve_key.data, 32);
	return 0;
}

/* NULL: nothing can be sent there. */
static struct peer *peer_get(struct forwarder *f, uint32_t id)
{
	const Vmdedup__Server *s = server_of(topology_map(f->topology), id);
	struct peer *p = NULL, **grown;
	struct error err = { 0 };

	if (!takes_writes(s))
		return NULL;
	for (size_t i = 0; i < f->nr_peers && !p; i++)
		if (f->peers[i]->id == id)
			p = f->peers[i];
	if (!p) {
		grown = realloc(f->peers, (f->nr_peers + 1) * sizeof(*grown));
		if (!grown)
			return NULL;
		f->peers = grown;
		p = calloc(1, sizeof(*p));
		if (!p)
			return NULL;
		p->f = f;
		f->peers[f->nr_peers++] = p;
	}
	if (!p->endpoint || !peer_is(p, s))
		if (peer_set(p, s))
			return NULL;
	if (!p->client) {
		p->client = net_client_new(f->s->net, p->endpoint, p->has_key ? p->key : NULL,
					   "data", &err);
		if (p->client)
			net_client_need_no_room(p->client); /* two would wait for each other */
		else
			log_warn("data server %s: %s", p->endpoint, err.text);
	}
	return p->client ? p : NULL;
}

static void try_answered(void *arg, int r, struct net_reply *reply)
{
	struct peer *p = arg;

	p->asking = false;
	if (!r && p->deaf) {
		p->deaf = false;
		log_info("data server %s answers again", p->endpoint);
	}
	if (reply)
		net_reply_free(reply);
}

static void peer_try(struct peer *p)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Ping ping = VMDEDUP__PING__INIT;
	uint64_t now = clock_mono_ns();

	if (!p->deaf || p->asking || now < p->next_try_ns)
		return;
	p->next_try_ns = now + DEAF_TRY_MS * 1000000ULL;
	req.body_case = VMDEDUP__REQUEST__BODY_PING;
	req.ping = &ping;
	p->asking = !net_client_submit(p->client, &req, NULL, 0, DEAF_TRY_MS, try_answered, p);
}

/* A connection that is gone while something waits for it is told of at once. */
static void peer_watch(struct peer *p)
{
	uint64_t now = clock_mono_ns();

	if (net_client_is_connected(p->client) || !net_client_pending(p->client)) {
		p->lost_ns = 0;
		return;
	}
	if (p->lost_ns && now - p->lost_ns < 500000000ULL)
		return;
	p->lost_ns = now;
	report(p->f, p->id);
}

static void peers_run(struct forwarder *f)
{
	for (size_t i = 0; i < f->nr_peers; i++) {
		struct peer *p = f->peers[i];

		if (!p->client)
			continue;
		net_client_run(p->client, 0);
		if (f->ending || !takes_writes(server_of(topology_map(f->topology), p->id))) {
			peer_close(p);
			continue;
		}
		peer_watch(p);
		peer_try(p);
	}
}

/* ---- sending ---- */

static int order_of(const void *a, const void *b, void *arg)
{
	const struct bstore_op *ops = arg;

	return memcmp(ops[*(const uint32_t *)a].fp.b, ops[*(const uint32_t *)b].fp.b, FP_SIZE);
}

/* The blocks of the job that @server has a place for. */
static struct message *message_new(struct forwarder *f, struct job *job, struct peer *peer)
{
	struct message *m = calloc(1, sizeof(*m) + job->nr * sizeof(m->index[0]));

	if (!m)
		return NULL;
	m->f = f;
	m->job = job;
	m->peer = peer;
	for (size_t i = 0; i < job->nr; i++)
		if (!job->sent[i].r && place_bit(job, &job->sent[i].fp, peer->id))
			m->index[m->nr++] = (uint32_t)i;
	qsort_r(m->index, m->nr, sizeof(m->index[0]), order_of, job->sent);
	return m;
}

static int send_put(struct message *m)
{
	Vmdedup__BlockHead heads[PROTO_MAX_BLOCKS], *ptrs[PROTO_MAX_BLOCKS];
	struct net_frame frames[PROTO_MAX_BLOCKS];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;

	for (size_t i = 0; i < m->nr; i++) {
		const struct bstore_op *op = sent_op(m, i);

		vmdedup__block_head__init(&heads[i]);
		heads[i].fingerprint = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)op->fp.b };
		heads[i].raw_size = op->raw_len;
		heads[i].codec = op->codec == CODEC_ZSTD ? VMDEDUP__CODEC__ZSTD :
							   VMDEDUP__CODEC__RAW;
		heads[i].incompressible = op->codec == CODEC_RAW; /* it was tried here */
		ptrs[i] = &heads[i];
		frames[i] = (struct net_frame){ .data = op->data, .len = op->len };
	}
	put.map_version = topology_map(m->job->topology)->version;
	put.domain = m->job->domain;
	put.n_blocks = m->nr;
	put.blocks = ptrs;
	put.forwarded = true;
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &put;
	return net_client_submit(m->peer->client, &req, frames, m->nr, FORWARD_MS, answered, m);
}

static int send_touch(struct message *m)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	uint8_t *fps CLEANUP_FREE = malloc(m->nr * FP_SIZE + 1);

	if (!fps)
		return -ENOMEM;
	for (size_t i = 0; i < m->nr; i++)
		memcpy(fps + i * FP_SIZE, sent_op(m, i)->fp.b, FP_SIZE);
	touch.map_version = topology_map(m->job->topology)->version;
	touch.domain = m->job->domain;
	touch.fingerprints = (ProtobufCBinaryData){ m->nr * FP_SIZE, fps };
	touch.forwarded = true;
	req.body_case = VMDEDUP__REQUEST__BODY_TOUCH;
	req.touch = &touch;
	return net_client_submit(m->peer->client, &req, NULL, 0, FORWARD_MS, answered, m);
}

static void job_forward(struct forwarder *f, struct job *job)
{
	if (topology_map(job->topology)->version >
	    (f->topology ? topology_map(f->topology)->version : 0)) {
		topology_put(f->topology);
		f->topology = job->topology;
		atomic_fetch_add(&f->topology->refs, 1);
	}
	job->waiting = 1;
	for (size_t i = 0; i < job->nr_peers && !f->ending; i++) {
		struct peer *p = peer_get(f, job->peers[i].id);
		struct message *m = p && !p->deaf ? message_new(f, job, p) : NULL;

		if (m && m->nr) {
			job->waiting++;
			if (!(job->kind == JOB_PUT ? send_put(m) : send_touch(m)))
				continue;
			job->waiting--;
		}
		free(m);
	}
	job_settle(f, job);
}

/* ---- the thread ---- */

static void take_news(struct forwarder *f)
{
	struct data_server *s = f->s;
	struct topology *newest;
	struct job *job;
	uint64_t count;

	if (read(s->forward_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("the forwarder's event: %m");
	pthread_mutex_lock(&s->lock);
	newest = s->newest;
	s->newest = NULL;
	pthread_mutex_unlock(&s->lock);
	if (newest) {
		topology_put(f->topology);
		f->topology = newest;
	}
	for (;;) {
		pthread_mutex_lock(&s->lock);
		job = s->forwards;
		if (job)
			s->forwards = job->forward_next;
		if (!s->forwards)
			s->forwards_last = &s->forwards;
		f->ending = s->draining;
		pthread_mutex_unlock(&s->lock);
		if (!job)
			return;
		job_forward(f, job);
	}
}

static int wait_for_news(struct forwarder *f)
{
	struct pollfd *pfd CLEANUP_FREE = malloc((f->nr_peers + 1) * sizeof(*pfd));
	size_t n = 0;

	if (!pfd)
		return -ENOMEM;
	pfd[n++] = (struct pollfd){ .fd = f->s->forward_fd, .events = POLLIN };
	for (size_t i = 0; i < f->nr_peers; i++)
		if (f->peers[i]->client)
			pfd[n++] = (struct pollfd){ .fd = net_client_fd(f->peers[i]->client),
						    .events = POLLIN };
	poll(pfd, n, LOOP_MS);
	return 0;
}

void *forward_run(void *arg)
{
	struct forwarder f = { .s = arg };
	bool stopping = false;

	while (!stopping) {
		if (wait_for_news(&f))
			usleep(LOOP_MS * 1000);
		take_news(&f);
		peers_run(&f);
		pthread_mutex_lock(&f.s->lock);
		stopping = f.s->stopping;
		pthread_mutex_unlock(&f.s->lock);
	}
	for (size_t i = 0; i < f.nr_peers; i++) {
		net_client_free(f.peers[i]->client);
		free(f.peers[i]->endpoint);
		free(f.peers[i]);
	}
	free(f.peers);
	topology_put(f.topology);
	return NULL;
}

/* ---- which jobs ---- */

static int add_peers(struct job *job, const Vmdedup__MapReply *map, unsigned int shard)
{
	for (unsigned int k = 0; k < map->replicas; k++) {
		uint32_t id = map->shard_servers[shard * map->replicas + k];
		struct job_peer *grown;

		if (!id || id == job->topology->id || job_peer(job, id) ||
		    !takes_writes(server_of(map, id)))
			continue;
		grown = realloc(job->peers, (job->nr_peers + 1) * sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		job->peers = grown;
		job->peers[job->nr_peers++] = (struct job_peer){ .id = id };
	}
	return 0;
}

int forward_prepare(struct job *job)
{
	const Vmdedup__MapReply *map = topology_map(job->topology);
	bool seen[NR_SHARDS] = { 0 };
	int r = 0;

	job->copies = calloc(job->nr, sizeof(*job->copies));
	if (!job->copies)
		return -ENOMEM;
	for (size_t i = 0; i < job->nr; i++)
		job->copies[i].epoch = UINT64_MAX;
	for (size_t i = 0; !r && !job->forwarded && i < job->nr; i++) {
		unsigned int shard = fp_shard(&job->ops[i].fp);

		if (!seen[shard])
			r = add_peers(job, map, shard);
		seen[shard] = true;
	}
	return r;
}

int forward_snapshot(struct job *job)
{
	if (!job->nr_peers)
		return 0;
	job->sent = malloc(job->nr * sizeof(*job->sent));
	if (!job->sent)
		return -ENOMEM;
	memcpy(job->sent, job->ops, job->nr * sizeof(*job->sent));
	for (size_t i = 0; i < job->nr; i++)
		job->sent_bytes += job->kind == JOB_PUT ? job->ops[i].len : 0;
	return 0;
}

void forward_queue(struct data_server *s, struct job *job)
{
	uint64_t one = 1;

	if (!job->sent)
		return;
	job->parts++;
	s->forward_bytes += job->sent_bytes;
	job->forward_next = NULL;
	*s->forwards_last = job;
	s->forwards_last = &job->forward_next;
	if (write(s->forward_fd, &one, sizeof(one)) != sizeof(one))
		log_error("wake the forwarder: %m");
}
