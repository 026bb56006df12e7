// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <unistd.h>
#include "agent/peers.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "net/net.h"
#include "proto/limits.h"

#define MSEC	      1000000ULL
#define BATCH_BYTES   (1U << 20) /* of blocks in one message */
#define BATCH_MAX     32
#define QUIET_MS      3000	 /* without a word; then what it was asked for is had elsewhere */
#define BLOCK_MS      20000	 /* for one answer of a peer that gives others meanwhile */
#define FILTER_MS     5000
#define NODE_MS	      1000
#define SAVE_MS	      5000
#define CONNECT_MS    300 /* for a connection, before what waits for it is had elsewhere */
#define MAX_NAMED     4

struct ask {
	uint64_t id;
	struct fp fp;
};

/* A connection; its number is the peer's in sources.c, and the column of its filter. */
struct link {
	struct net_client *client;
	unsigned int life; /* goes up when the number stands for another peer */
	struct ask queue[PEER_MAX_BLOCKS];
	unsigned int nr_queued;
	unsigned int messages; /* not answered yet */
	uint64_t heard_ns;     /* or when the first of them went out */
	uint64_t unconnected_ns; /* since when; 0: it is connected */
	bool filter_asked, has_filter;
	uint64_t generation, additions, filter_blocks, filter_ns, next_filter_ns;
	unsigned int filter_shift;
};

struct node_get {
	struct peers *peers;
	struct fp hash;
	uint64_t tried;
	void (*done)(void *arg, int r, const void *data, size_t len);
	void *arg;
};

struct message {
	struct peers *peers;
	unsigned int peer;
	unsigned int nr;
	struct ask asks[BATCH_MAX];
};

struct filter_message {
	struct peers *peers;
	unsigned int peer, life;
};

struct node_message {
	struct node_get *get;
	unsigned int peer;
};

struct peers {
	struct peers_params params;
	struct peer_address self;
	char *path;
	struct sources *sources;
	struct filter_table *table;
	struct fp_hasher *hasher;
	unsigned int block_shift;
	struct link links[SOURCES_MAX_PEERS];
	struct net_client *gone[SOURCES_MAX_PEERS]; /* closed when no callback runs */
	size_t nr_gone;
	uint64_t filter_bytes_in;
	bool closing, changed;
	uint64_t save_ns;
};

/* ---- the operations of sources.c ---- */

static uint64_t op_now(void *ctx)
{
	return clock_mono_ns();
}

static uint64_t op_random(void *ctx)
{
	uint64_t n;

	if (getrandom(&n, sizeof(n), 0) != sizeof(n))
		n = clock_mono_ns();
	return n;
}

static void op_ask_peer(void *ctx, unsigned int peer, uint64_t id, const struct fp *fp)
{
	struct peers *p = ctx;
	struct link *l = &p->links[peer];

	/* sources.c asks a peer for no more than fit. */
	l->queue[l->nr_queued++] = (struct ask){ id, *fp };
}

static void op_ask_data(void *ctx, uint64_t id, const struct fp *fp, bool serve)
{
	struct peers *p = ctx;

	p->params.ask_data(p->params.ctx, id, fp, serve);
}

static void op_done(void *ctx, void *arg, int r, enum source_kind from, const void *data,
		    size_t len)
{
	struct peers *p = ctx;

	p->params.done(p->params.ctx, arg, r, from, data, len);
}

static void op_peer_gone(void *ctx, unsigned int peer)
{
	struct peers *p = ctx;
	struct link *l = &p->links[peer];
	unsigned int life = l->life + 1;

	if (l->client && p->nr_gone < SOURCES_MAX_PEERS)
		p->gone[p->nr_gone++] = l->client;
	memset(l, 0, sizeof(*l));
	l->life = life;
}

static const struct source_ops source_ops = {
	.now_ns = op_now,
	.random = op_random,
	.ask_peer = op_ask_peer,
	.ask_data = op_ask_data,
	.done = op_done,
	.peer_gone = op_peer_gone,
};

static struct net_client *client_of(struct peers *p, unsigned int peer)
{
	const struct source_peer *sp = sources_peer_at(p->sources, peer);
	struct link *l = &p->links[peer];
	struct error err = { 0 };

	if (!l->client && sp && !p->closing) {
		l->client = net_client_new(p->params.net, sp->address.endpoint,
					   sp->address.has_key ? sp->address.key : NULL, "agent",
					   &err);
		if (!l->client)
			log_warn("peer %s: %s", sp->address.endpoint, err.text);
	}
	return l->client;
}

/* ---- blocks ---- */

static int check_block(struct peers *p, const struct fp *want, const struct net_frame *frame)
{
	struct fp fp;

	if (!p->hasher)
		return -EAGAIN;
	if (frame->len > 1ULL << p->block_shift)
		return -EBADMSG;
	fp_hash(p->hasher, frame->data, frame->len, &fp);
	return fp_equal(&fp, want) ? 0 : -EBADMSG;
}

static void tell_lie(struct peers *p, unsigned int peer, const struct fp *fp)
{
	const struct source_peer *sp = sources_peer_at(p->sources, peer);
	char hex[FP_HEX_SIZE];

	if (sp->state == PEER_LIAR)
		return;
	log_warn("peer %s sent a block that does not match its fingerprint (%s): it is not asked "
		 "again", sp->address.endpoint, fp_to_hex(fp, hex));
	p->changed = true;
}

static size_t named_of(const Vmdedup__GetReply *get, const Vmdedup__BlockHead *head,
		       struct peer_address named[MAX_NAMED])
{
	size_t i, nr = 0;

	for (i = 0; i < head->n_redirect && nr < MAX_NAMED; i++)
		if (head->redirect[i] < get->n_peers &&
		    !peer_address_take(get->peers[head->redirect[i]], &named[nr]))
			nr++;
	return nr;
}

static void take_blocks(struct message *m, const Vmdedup__GetReply *get,
			const struct net_reply *reply)
{
	struct sources *s = m->peers->sources;
	struct peer_address named[MAX_NAMED];
	size_t frame = 0, nr = 0;
	unsigned int i;
	int r;

	for (i = 0; i < m->nr; i++) {
		const Vmdedup__BlockHead *head = get->blocks[i];
		const struct net_frame *f = NULL;

		r = head->error < 0 || head->error == EBADMSG ? -EPROTO : -head->error;
		if (!r && frame >= reply->nr_frames)
			r = -EPROTO;
		if (!r) {
			f = &reply->frames[frame++];
			r = check_block(m->peers, &m->asks[i].fp, f);
			if (r == -EBADMSG)
				tell_lie(m->peers, m->peer, &m->asks[i].fp);
		}
		if (r == -EREMOTE)
			nr = named_of(get, head, named);
		sources_peer_answer(s, m->peer, m->asks[i].id, r, f ? f->data : NULL,
				    f ? f->len : 0, named, r == -EREMOTE ? nr : 0);
	}
}

static void blocks_answered(void *arg, int r, struct net_reply *reply)
{
	struct message *m = arg;
	struct link *l = &m->peers->links[m->peer];
	const Vmdedup__GetReply *get = NULL;
	unsigned int i;

	/* The number stands for this peer as long as it is asked for a block. */
	l->messages--;
	if (!r)
		l->heard_ns = clock_mono_ns();

	if (!r && reply->header->error)
		r = -reply->header->error;
	if (!r && reply->header->body_case == VMDEDUP__REPLY__BODY_PEER_GET)
		get = reply->header->peer_get;
	if (!r && (!get || get->n_blocks != m->nr))
		r = -EPROTO;
	if (!r)
		take_blocks(m, get, reply);
	for (i = 0; r && i < m->nr; i++)
		sources_peer_answer(m->peers->sources, m->peer, m->asks[i].id,
				    r == -EREMOTE || r == -EBADMSG ? -EPROTO : r, NULL, 0, NULL, 0);
	if (reply)
		net_reply_free(reply);
	free(m);
}

static unsigned int batch_max(const struct peers *p)
{
	unsigned int n = p->block_shift ? BATCH_BYTES >> p->block_shift : 1;

	return MAX(1, MIN(n, BATCH_MAX));
}

static void send_batch(struct peers *p, unsigned int peer, const struct ask *asks, unsigned int nr)
{
	uint8_t fps[BATCH_MAX * FP_SIZE];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerGet get = VMDEDUP__PEER_GET__INIT;
	struct net_client *client = client_of(p, peer);
	struct message *m = malloc(sizeof(*m));
	Vmdedup__PeerAddress self;
	unsigned int i;
	int r;

	if (!m || !client) {
		for (i = 0; i < nr; i++)
			sources_peer_answer(p->sources, peer, asks[i].id, -ENOTCONN, NULL, 0, NULL,
					    0);
		free(m);
		return;
	}
	m->peers = p;
	m->peer = peer;
	m->nr = nr;
	memcpy(m->asks, asks, nr * sizeof(*asks));
	for (i = 0; i < nr; i++)
		memcpy(fps + i * FP_SIZE, asks[i].fp.b, FP_SIZE);
	get.fingerprints = (ProtobufCBinaryData){ nr * FP_SIZE, fps };
	if (p->params.self) {
		peer_address_give(&p->self, &self);
		get.from = &self;
	}
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_GET;
	req.peer_get = &get;
	if (!p->links[peer].messages++)
		p->links[peer].heard_ns = clock_mono_ns();
	r = net_client_submit(client, &req, NULL, 0, BLOCK_MS, blocks_answered, m);
	if (r)
		blocks_answered(m, r, NULL);
}

static void flush(struct peers *p)
{
	struct ask asks[PEER_MAX_BLOCKS];
	unsigned int peer, i, nr, max = batch_max(p);

	for (peer = 0; peer < SOURCES_MAX_PEERS; peer++) {
		struct link *l = &p->links[peer];

		nr = l->nr_queued;
		if (!nr)
			continue;
		memcpy(asks, l->queue, nr * sizeof(asks[0]));
		l->nr_queued = 0;
		for (i = 0; i < nr; i += max)
			send_batch(p, peer, asks + i, MIN(max, nr - i));
	}
}

/* ---- filters ---- */

static unsigned int suggested_count(struct peers *p)
{
	unsigned int i, n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		const struct source_peer *sp = sources_peer_at(p->sources, i);

		n += sp && sp->suggested;
	}
	return n;
}

static unsigned int set_size(const struct peers *p)
{
	return MIN(PEERS_SET, filter_table_columns(p->table));
}

static void learn(struct peers *p, const struct peer_address *a)
{
	struct source_peer *sp;
	int peer = sources_peer(p->sources, a);

	sp = peer < 0 ? NULL : sources_peer_at(p->sources, (unsigned int)peer);
	if (!sp || sp->suggested)
		return;
	sp->suggested = true;
	p->changed = true;
}

void peers_met(struct peers *p, const struct peer_address *a)
{
	if (suggested_count(p) < set_size(p))
		learn(p, a);
}

static int unpack(const struct net_reply *reply, bool exact, size_t *len, void **data)
{
	uint8_t *packed;
	size_t i, n = 0;
	int r;

	if (reply->nr_frames == 1)
		return filter_unpack(reply->frames[0].data, reply->frames[0].len, exact, len, data);
	for (i = 0; i < reply->nr_frames; i++)
		n += reply->frames[i].len;
	packed = malloc(n + 1);
	if (!packed)
		return -ENOMEM;
	for (i = 0, n = 0; i < reply->nr_frames; i++) {
		memcpy(packed + n, reply->frames[i].data, reply->frames[i].len);
		n += reply->frames[i].len;
	}
	r = filter_unpack(packed, n, exact, len, data);
	free(packed);
	return r;
}

static int take_full(struct peers *p, unsigned int peer, const Vmdedup__PeerFilterReply *f,
		     const struct net_reply *reply)
{
	size_t len;
	void *bits;
	int r;

	if (f->bits_shift < FILTER_MIN_SHIFT || f->bits_shift > FILTER_MAX_SHIFT ||
	    f->hashes != FILTER_HASHES)
		return -EPROTO;
	len = (size_t)1 << (f->bits_shift - 3);
	r = unpack(reply, true, &len, &bits);
	if (r)
		return r;
	r = filter_table_set(p->table, peer, bits, f->bits_shift);
	free(bits);
	p->links[peer].has_filter = !r;
	return r == -ENOSPC ? 0 : r;
}

static int take_added(struct peers *p, unsigned int peer, const Vmdedup__PeerFilterReply *f,
		      const struct net_reply *reply)
{
	struct link *l = &p->links[peer];
	size_t len = (size_t)PROTO_MAX_FRAME, i;
	uint8_t *added;
	void *data;
	int r;

	if (f->generation != l->generation || f->additions < l->additions)
		return -EPROTO;
	r = unpack(reply, false, &len, &data);
	if (r)
		return r;
	added = data;
	if (len / FILTER_ADDED_SIZE != f->additions - l->additions)
		r = -EPROTO;
	for (i = 0; !r && i < len; i += FILTER_ADDED_SIZE)
		filter_table_add(p->table, peer, added + i);
	free(data);
	return r;
}

static void take_filter(struct peers *p, unsigned int peer, const Vmdedup__PeerFilterReply *f,
			const struct net_reply *reply)
{
	struct link *l = &p->links[peer];
	struct peer_address a;
	size_t i;
	int r;

	for (i = 0; i < reply->nr_frames; i++)
		p->filter_bytes_in += reply->frames[i].len;
	r = f->full ? take_full(p, peer, f, reply) : take_added(p, peer, f, reply);
	if (r) { /* begin anew the next time */
		log_warn("peer %s sent a filter that cannot be read (%s)",
			 sources_peer_at(p->sources, peer)->address.endpoint, strerror(-r));
		filter_table_clear(p->table, peer);
		l->has_filter = false;
		l->generation = l->additions = 0;
		return;
	}
	l->generation = f->generation;
	l->additions = f->additions;
	l->filter_shift = f->full ? f->bits_shift : l->filter_shift;
	l->filter_blocks = f->blocks;
	l->filter_ns = clock_mono_ns();
	/* Peers of peers, while there are few of our own. */
	for (i = 0; i < f->n_others; i++)
		if (!peer_address_take(f->others[i], &a))
			peers_met(p, &a);
}

static void filter_answered(void *arg, int r, struct net_reply *reply)
{
	struct filter_message *m = arg;
	struct peers *p = m->peers;
	struct link *l = &p->links[m->peer];
	const struct source_peer *sp = sources_peer_at(p->sources, m->peer);

	if (l->life == m->life && sp && !p->closing) {
		l->filter_asked = false;
		sources_peer_heard(p->sources, m->peer, !r);
		if (!r && !reply->header->error &&
		    reply->header->body_case == VMDEDUP__REPLY__BODY_PEER_FILTER_GET &&
		    sp->state != PEER_LIAR && sp->suggested)
			take_filter(p, m->peer, reply->header->peer_filter_get, reply);
	}
	if (reply)
		net_reply_free(reply);
	free(m);
}

static void ask_filter(struct peers *p, unsigned int peer)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerFilterGet get = VMDEDUP__PEER_FILTER_GET__INIT;
	struct filter_message *m = malloc(sizeof(*m));
	struct net_client *client = client_of(p, peer);
	struct link *l = &p->links[peer];
	Vmdedup__PeerAddress self;

	l->next_filter_ns = clock_mono_ns() +
			    (PEERS_FILTER_MS + op_random(p) % (PEERS_FILTER_MS / 4)) * MSEC;
	if (!m || !client) {
		free(m);
		return;
	}
	*m = (struct filter_message){ p, peer, l->life };
	get.generation = l->generation;
	get.additions = l->additions;
	if (p->params.self) {
		peer_address_give(&p->self, &self);
		get.from = &self;
	}
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_FILTER_GET;
	req.peer_filter_get = &get;
	if (net_client_submit(client, &req, NULL, 0, FILTER_MS, filter_answered, m))
		free(m);
	else
		l->filter_asked = true;
}

static void exchange_filters(struct peers *p)
{
	uint64_t now = clock_mono_ns();
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		const struct source_peer *sp = sources_peer_at(p->sources, i);

		if (sp && (sp->suggested || sp->state == PEER_SILENT) && !p->links[i].filter_asked &&
		    now >= p->links[i].next_filter_ns && sources_peer_usable(p->sources, i))
			ask_filter(p, i);
	}
}

/* ---- the set ---- */

void peers_suggest(struct peers *p, const struct peer_address *list, size_t nr)
{
	bool named[SOURCES_MAX_PEERS] = { false };
	unsigned int i, n;
	int peer;

	for (n = 0; n < nr && n < set_size(p); n++) {
		learn(p, &list[n]);
		peer = sources_peer(p->sources, &list[n]);
		if (peer >= 0)
			named[peer] = true;
	}
	/* Those that were there before stay as far as there is room. */
	for (i = 0; i < SOURCES_MAX_PEERS && suggested_count(p) > set_size(p); i++) {
		struct source_peer *sp = sources_peer_at(p->sources, i);

		if (!sp || !sp->suggested || named[i])
			continue;
		sp->suggested = false;
		p->changed = true;
		filter_table_clear(p->table, i);
		p->links[i].has_filter = false;
		p->links[i].generation = p->links[i].additions = 0;
	}
}

size_t peers_some(struct peers *p, struct peer_address *some, size_t max)
{
	unsigned int i;
	size_t n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS && n < max; i++) {
		const struct source_peer *sp = sources_peer_at(p->sources, i);

		if (sp && sp->suggested && sp->state == PEER_OK)
			some[n++] = sp->address;
	}
	return n;
}

size_t peers_liars(struct peers *p, char (*endpoints)[PEER_ENDPOINT_MAX], size_t max)
{
	unsigned int i;
	size_t n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS && n < max; i++) {
		struct source_peer *sp = sources_peer_at(p->sources, i);

		if (!sp || sp->state != PEER_LIAR || sp->reported)
			continue;
		strcpy(endpoints[n++], sp->address.endpoint);
		sp->reported = true;
		p->changed = true;
	}
	return n;
}

/* ---- recipe nodes ---- */

static void node_next(struct node_get *g);

static void node_answered(void *arg, int r, struct net_reply *reply)
{
	struct node_message *m = arg;
	struct node_get *g = m->get;
	struct peers *p = g->peers;
	const struct net_frame *f = NULL;
	struct fp seen;

	if (!p->closing)
		sources_peer_heard(p->sources, m->peer, !r);
	if (!r && !reply->header->error && reply->nr_frames == 1)
		f = &reply->frames[0];
	if (f && f->len && f->len <= RECIPE_NODE_MAX) {
		recipe_node_hash(f->data, f->len, &seen);
		if (fp_equal(&seen, &g->hash)) {
			g->done(g->arg, 0, f->data, f->len);
			free(g);
			g = NULL;
		} else {
			log_warn("a peer sent a recipe node that does not match its hash: it is "
				 "not asked again");
			sources_peer_is_liar(p->sources, m->peer);
		}
	}
	if (reply)
		net_reply_free(reply);
	free(m);
	if (g)
		node_next(g);
}

static int node_ask(struct node_get *g, unsigned int peer)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__NodeGet get = VMDEDUP__NODE_GET__INIT;
	struct net_client *client = client_of(g->peers, peer);
	struct node_message *m = malloc(sizeof(*m));
	int r = -ENOTCONN;

	if (!m || !client) {
		free(m);
		return r;
	}
	*m = (struct node_message){ g, peer };
	get.hashes = (ProtobufCBinaryData){ FP_SIZE, g->hash.b };
	req.body_case = VMDEDUP__REQUEST__BODY_NODE_GET;
	req.node_get = &get;
	r = net_client_submit(client, &req, NULL, 0, NODE_MS, node_answered, m);
	if (r)
		free(m);
	return r;
}

/* One after the other, from a random place on, until one has it. */
static void node_next(struct node_get *g)
{
	struct peers *p = g->peers;
	unsigned int i, peer, from = (unsigned int)op_random(p) % SOURCES_MAX_PEERS;

	for (i = 0; !p->closing && i < SOURCES_MAX_PEERS; i++) {
		peer = (from + i) % SOURCES_MAX_PEERS;
		if (g->tried >> peer & 1 || !sources_peer_at(p->sources, peer) ||
		    !sources_peer_usable(p->sources, peer))
			continue;
		g->tried |= 1ULL << peer;
		if (!node_ask(g, peer))
			return;
	}
	g->done(g->arg, -ENOENT, NULL, 0);
	free(g);
}

int peers_get_node(struct peers *p, const struct fp *hash,
		   void (*done)(void *arg, int r, const void *data, size_t len), void *arg)
{
	struct node_get *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	g->peers = p;
	g->hash = *hash;
	g->done = done;
	g->arg = arg;
	node_next(g);
	return 0;
}

/* ---- the file ---- */

/* A line for each: endpoint, key in hex or -, "liar" or "peer". It may be deleted at any time. */
static void save(struct peers *p)
{
	CLEANUP_FREE char *tmp = NULL;
	unsigned int i, k;
	FILE *f;

	p->changed = false;
	p->save_ns = clock_mono_ns() + SAVE_MS * MSEC;
	if (!p->path || asprintf(&tmp, "%s.new", p->path) < 0) {
		tmp = NULL;
		return;
	}
	f = fopen(tmp, "we");
	if (!f)
		return;
	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		const struct source_peer *sp = sources_peer_at(p->sources, i);

		if (!sp || (!sp->suggested && sp->state != PEER_LIAR))
			continue;
		fprintf(f, "%s ", sp->address.endpoint);
		for (k = 0; sp->address.has_key && k < sizeof(sp->address.key); k++)
			fprintf(f, "%02x", sp->address.key[k]);
		fprintf(f, "%s %s\n", sp->address.has_key ? "" : "-",
			sp->state == PEER_LIAR ? "liar" : "peer");
	}
	if (fclose(f) || rename(tmp, p->path))
		log_debug("the file of peers %s was not written: %s", p->path, strerror(errno));
}

static void load(struct peers *p)
{
	char line[512], endpoint[PEER_ENDPOINT_MAX], key[65], what[8];
	struct peer_address a;
	struct fp bytes;
	FILE *f;
	int peer;

	f = p->path ? fopen(p->path, "re") : NULL;
	while (f && fgets(line, sizeof(line), f)) {
		Vmdedup__PeerAddress in = VMDEDUP__PEER_ADDRESS__INIT;

		if (sscanf(line, "%127s %64s %7s", endpoint, key, what) != 3)
			continue;
		in.endpoint = endpoint;
		if (!fp_from_hex(&bytes, key))
			in.curve_key = (ProtobufCBinaryData){ FP_SIZE, bytes.b };
		else if (strcmp(key, "-"))
			continue;
		if (peer_address_take(&in, &a))
			continue;
		learn(p, &a);
		peer = sources_peer(p->sources, &a);
		if (peer >= 0 && !strcmp(what, "liar"))
			sources_peer_is_liar(p->sources, (unsigned int)peer);
	}
	if (f)
		fclose(f);
	p->changed = false;
}

/* ---- the loop ---- */

static void close_gone(struct peers *p)
{
	while (p->nr_gone)
		net_client_free(p->gone[--p->nr_gone]);
}

size_t peers_fds(struct peers *p, int *fds, size_t max)
{
	size_t n = 0;
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS && n < max; i++)
		if (p->links[i].client)
			fds[n++] = net_client_fd(p->links[i].client);
	return n;
}

/* A peer that says nothing, a connection that breaks or does not come, with blocks waiting for it. */
static void watch_connection(struct peers *p, unsigned int peer)
{
	const struct source_peer *sp = sources_peer_at(p->sources, peer);
	struct link *l = &p->links[peer];
	uint64_t now = clock_mono_ns(); /* after what was heard */

	if (l->messages && sp && sp->state != PEER_SILENT &&
	    now - l->heard_ns >= QUIET_MS * MSEC) {
		l->heard_ns = now;
		sources_peer_lost(p->sources, peer);
		return;
	}
	if (net_client_is_connected(l->client)) {
		l->unconnected_ns = 0;
		return;
	}
	if (!l->unconnected_ns)
		l->unconnected_ns = now;
	if (sp && sp->asking && sp->state != PEER_SILENT &&
	    now - l->unconnected_ns >= CONNECT_MS * MSEC)
		sources_peer_lost(p->sources, peer);
}

void peers_run(struct peers *p)
{
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		if (!p->links[i].client)
			continue;
		net_client_run(p->links[i].client, 0);
		watch_connection(p, i);
	}
	sources_tick(p->sources);
	exchange_filters(p);
	flush(p);
	close_gone(p);
	if (p->changed && clock_mono_ns() >= p->save_ns)
		save(p);
}

uint64_t peers_next_ns(struct peers *p)
{
	uint64_t next = sources_next_ns(p->sources), now = clock_mono_ns();
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		const struct source_peer *sp = sources_peer_at(p->sources, i);
		struct link *l = &p->links[i];
		int ms;

		if (!sp)
			continue;
		ms = l->client ? net_client_next_timeout_ms(l->client) : -1;
		if (l->messages && sp->state != PEER_SILENT)
			next = MIN(next, l->heard_ns + QUIET_MS * MSEC);
		if (l->unconnected_ns && sp->asking && sp->state != PEER_SILENT)
			next = MIN(next, l->unconnected_ns + CONNECT_MS * MSEC);
		if (ms >= 0)
			next = MIN(next, now + (uint64_t)ms * MSEC);
		if ((sp->suggested || sp->state == PEER_SILENT) && !l->filter_asked &&
		    sp->state != PEER_LIAR)
			next = MIN(next, MAX(l->next_filter_ns,
					     sp->state == PEER_SILENT ? sp->until_ns : 0));
		if (l->nr_queued)
			next = 0;
	}
	if (p->changed && p->path)
		next = MIN(next, p->save_ns);
	return next;
}

/* ---- for people ---- */

size_t peers_list(struct peers *p, struct peers_info *list, size_t max)
{
	uint64_t now = clock_mono_ns();
	unsigned int i;
	size_t n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS && n < max; i++) {
		const struct source_peer *sp = sources_peer_at(p->sources, i);
		const struct link *l = &p->links[i];

		if (!sp)
			continue;
		list[n].peer = *sp;
		list[n].filter_age_ms = l->has_filter ? (now - l->filter_ns) / MSEC : UINT64_MAX;
		list[n].filter_blocks = l->filter_blocks;
		list[n++].filter_shift = l->filter_shift;
	}
	return n;
}

void peers_totals(struct peers *p, struct peers_totals *totals)
{
	sources_stats(p->sources, &totals->sources);
	totals->filter_bytes_in = p->filter_bytes_in;
	totals->filter_memory = filter_table_bytes(p->table);
	totals->max_peers = set_size(p);
}

/* ---- life ---- */

struct sources *peers_sources(struct peers *p)
{
	return p->sources;
}

void peers_set_hasher(struct peers *p, struct fp_hasher *hasher, unsigned int block_shift)
{
	p->hasher = hasher;
	p->block_shift = block_shift;
}

struct peers *peers_new(const struct peers_params *params, struct error *err)
{
	struct peers *p = calloc(1, sizeof(*p));

	if (!p)
		goto out_of_memory;
	p->params = *params;
	p->path = params->path ? strdup(params->path) : NULL;
	p->table = filter_table_new(PEERS_FILTER_MEMORY, SOURCES_MAX_PEERS);
	if (p->table)
		p->sources = sources_new(&source_ops, p, p->table);
	if (!p->sources || (params->path && !p->path))
		goto free_peers;
	if (params->self) {
		p->self = *params->self;
		sources_set_self(p->sources, params->self);
	}
	load(p);
	return p;

free_peers:
	peers_free(p);
out_of_memory:
	error_set(err, -ENOMEM, "out of memory");
	return NULL;
}

void peers_free(struct peers *p)
{
	unsigned int i;

	if (!p)
		return;
	p->closing = true;
	if (p->changed)
		save(p);
	close_gone(p);
	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		struct net_client *client = p->links[i].client;

		p->links[i].client = NULL;
		net_client_free(client);
	}
	sources_free(p->sources);
	filter_table_free(p->table);
	free(p->path);
	free(p);
}
