// SPDX-License-Identifier: GPL-2.0-or-later
/* Connections to peers, and the messages over them. What is asked of whom is decided in links.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "agent/peers_impl.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/limits.h"

#define MSEC	   1000000ULL
#define BLOCK_MS   20000 /* for one answer of a peer that gives others meanwhile */
#define FILTER_MS  5000
#define SAVE_MS	   5000
#define MAX_NAMED  4
#define MAX_OTHERS 8

struct message {
	struct peers *peers;
	unsigned int peer;
	unsigned int nr;
	struct link_ask asks[LINK_BATCH_MAX];
};

struct filter_message {
	struct peers *peers;
	unsigned int peer, life;
};

uint64_t peers_random(void)
{
	uint64_t n;

	if (getrandom(&n, sizeof(n), 0) != sizeof(n))
		n = clock_mono_ns();
	return n;
}

struct net_client *peers_client(struct peers *p, unsigned int peer)
{
	const struct source_peer *sp = sources_peer_at(links_sources(p->links), peer);
	struct error err = { 0 };

	if (!p->clients[peer] && sp && !p->closing) {
		p->clients[peer] =
			net_client_new(p->params.net, sp->address.endpoint,
				       sp->address.has_key ? sp->address.key : NULL, "agent", &err);
		if (!p->clients[peer])
			log_warn("peer %s: %s", sp->address.endpoint, err.text);
	}
	return p->clients[peer];
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
	const struct source_peer *sp = sources_peer_at(links_sources(p->links), peer);
	char hex[FP_HEX_SIZE];

	if (sp->state == PEER_LIAR)
		return;
	log_warn("peer %s sent a block that does not match its fingerprint (%s): it is not asked "
		 "again", sp->address.endpoint, fp_to_hex(fp, hex));
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
			struct net_reply *reply)
{
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
			m->peers->giving = reply;
			m->peers->giving_frame = frame;
			f = &reply->frames[frame++];
			r = check_block(m->peers, &m->asks[i].fp, f);
			if (r == -EBADMSG)
				tell_lie(m->peers, m->peer, &m->asks[i].fp);
		}
		if (r == -EREMOTE)
			nr = named_of(get, head, named);
		links_block(m->peers->links, m->peer, m->asks[i].id, r, f ? f->data : NULL,
			    f ? f->len : 0, named, r == -EREMOTE ? nr : 0);
		m->peers->giving = NULL;
	}
}

struct bytes *peers_take(struct peers *p, const void *data, size_t len)
{
	if (p->giving && p->giving->frames[p->giving_frame].data == data)
		return net_reply_take(p->giving, p->giving_frame);
	return bytes_copy(data, len);
}

static void blocks_answered(void *arg, int r, struct net_reply *reply)
{
	struct message *m = arg;
	const Vmdedup__GetReply *get = NULL;
	unsigned int i;

	links_answered(m->peers->links, m->peer, !r);
	if (!r && reply->header->error)
		r = -reply->header->error;
	if (!r && reply->header->body_case == VMDEDUP__REPLY__BODY_PEER_GET)
		get = reply->header->peer_get;
	if (!r && (!get || get->n_blocks != m->nr))
		r = -EPROTO;
	if (!r)
		take_blocks(m, get, reply);
	for (i = 0; r && i < m->nr; i++)
		links_block(m->peers->links, m->peer, m->asks[i].id,
			    r == -EREMOTE || r == -EBADMSG ? -EPROTO : r, NULL, 0, NULL, 0);
	if (reply)
		net_reply_free(reply);
	free(m);
}

static void op_send_blocks(void *ctx, unsigned int peer, const struct link_ask *asks,
			   unsigned int nr)
{
	uint8_t fps[LINK_BATCH_MAX * FP_SIZE];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerGet get = VMDEDUP__PEER_GET__INIT;
	struct peers *p = ctx;
	struct net_client *client = peers_client(p, peer);
	struct message *m = malloc(sizeof(*m));
	Vmdedup__PeerAddress self;
	unsigned int i;
	int r;

	if (!m || !client) {
		links_answered(p->links, peer, false);
		for (i = 0; i < nr; i++)
			links_block(p->links, peer, asks[i].id, -ENOTCONN, NULL, 0, NULL, 0);
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
	get.wait_ms = asks[0].wait_ms;
	if (p->params.self) {
		peer_address_give(&p->self, &self);
		get.from = &self;
	}
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_GET;
	req.peer_get = &get;
	r = net_client_submit(client, &req, NULL, 0, BLOCK_MS, blocks_answered, m);
	if (r)
		blocks_answered(m, r, NULL);
}

/* ---- filters ---- */

/* The payload as one piece: in the frame, or in *@joined (free()). */
static int join_frames(const struct net_reply *reply, struct link_filter *f, uint8_t **joined)
{
	size_t i, n = 0;

	*joined = NULL;
	if (reply->nr_frames == 1) {
		f->packed = reply->frames[0].data;
		f->packed_len = reply->frames[0].len;
		return 0;
	}
	for (i = 0; i < reply->nr_frames; i++)
		n += reply->frames[i].len;
	*joined = malloc(n + 1);
	if (!*joined)
		return -ENOMEM;
	for (i = 0, n = 0; i < reply->nr_frames; i++) {
		memcpy(*joined + n, reply->frames[i].data, reply->frames[i].len);
		n += reply->frames[i].len;
	}
	f->packed = *joined;
	f->packed_len = n;
	return 0;
}

static void take_filter(struct filter_message *m, const Vmdedup__PeerFilterReply *in,
			const struct net_reply *reply)
{
	struct peer_address others[MAX_OTHERS];
	struct link_filter f = {
		.generation = in->generation, .additions = in->additions, .blocks = in->blocks,
		.shift = in->bits_shift, .hashes = in->hashes, .full = in->full,
		.too_large = in->too_large, .others = others,
	};
	uint8_t *joined CLEANUP_FREE = NULL;
	size_t i;

	for (i = 0; i < in->n_others && f.nr_others < MAX_OTHERS; i++)
		if (!peer_address_take(in->others[i], &others[f.nr_others]))
			f.nr_others++;
	if (join_frames(reply, &f, &joined))
		links_filter(m->peers->links, m->peer, m->life, 0, NULL);
	else
		links_filter(m->peers->links, m->peer, m->life, 0, &f);
}

static void filter_answered(void *arg, int r, struct net_reply *reply)
{
	struct filter_message *m = arg;

	if (!m->peers->closing) {
		if (!r && !reply->header->error &&
		    reply->header->body_case == VMDEDUP__REPLY__BODY_PEER_FILTER_GET)
			take_filter(m, reply->header->peer_filter_get, reply);
		else
			links_filter(m->peers->links, m->peer, m->life, r, NULL);
	}
	if (reply)
		net_reply_free(reply);
	free(m);
}

static bool op_send_filter(void *ctx, unsigned int peer, uint64_t generation, uint64_t additions,
			   uint64_t max)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerFilterGet get = VMDEDUP__PEER_FILTER_GET__INIT;
	struct filter_message *m = malloc(sizeof(*m));
	struct peers *p = ctx;
	struct net_client *client = peers_client(p, peer);
	Vmdedup__PeerAddress self;

	if (!m || !client) {
		free(m);
		return false;
	}
	*m = (struct filter_message){ p, peer, links_life(p->links, peer) };
	get.generation = generation;
	get.additions = additions;
	get.max_bytes = max;
	if (p->params.self) {
		peer_address_give(&p->self, &self);
		get.from = &self;
	}
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_FILTER_GET;
	req.peer_filter_get = &get;
	if (!net_client_submit(client, &req, NULL, 0, FILTER_MS, filter_answered, m))
		return true;
	free(m);
	return false;
}

/* ---- the other operations of links.c ---- */

static uint64_t op_now(void *ctx)
{
	return clock_mono_ns();
}

static uint64_t op_random(void *ctx)
{
	return peers_random();
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

static void op_gone(void *ctx, unsigned int peer)
{
	struct peers *p = ctx;

	if (p->clients[peer] && p->nr_gone < SOURCES_MAX_PEERS)
		p->gone[p->nr_gone++] = p->clients[peer];
	p->clients[peer] = NULL;
}

static bool op_knows_key(void *ctx, const struct peer_address *a)
{
	struct peers *p = ctx;

	return net_ctx_knows_key(p->params.net, a->has_key ? a->key : NULL);
}

static const struct link_ops link_ops = {
	.now_ns = op_now,
	.random = op_random,
	.send_blocks = op_send_blocks,
	.send_filter = op_send_filter,
	.ask_data = op_ask_data,
	.done = op_done,
	.gone = op_gone,
	.knows_key = op_knows_key,
};

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
		if (p->clients[i])
			fds[n++] = net_client_fd(p->clients[i]);
	return n;
}

static void save_when_due(struct peers *p)
{
	p->changed |= links_changed(p->links);
	if (!p->changed || clock_mono_ns() < p->save_ns)
		return;
	p->changed = false;
	p->save_ns = clock_mono_ns() + SAVE_MS * MSEC;
	peers_save(p);
}

void peers_run(struct peers *p)
{
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		if (!p->clients[i])
			continue;
		net_client_run(p->clients[i], 0);
		/* What it answered may have named another, which has its number now. */
		if (!p->clients[i])
			continue;
		links_connection(p->links, i, net_client_is_connected(p->clients[i]));
	}
	links_run(p->links);
	close_gone(p);
	save_when_due(p);
}

uint64_t peers_next_ns(struct peers *p)
{
	uint64_t next = links_next_ns(p->links), now = clock_mono_ns();
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		int ms = p->clients[i] ? net_client_next_timeout_ms(p->clients[i]) : -1;

		if (ms >= 0)
			next = MIN(next, now + (uint64_t)ms * MSEC);
	}
	if (p->changed && p->path)
		next = MIN(next, p->save_ns);
	return next;
}

/* ---- life ---- */

struct links *peers_links(struct peers *p)
{
	return p->links;
}

void peers_set_hasher(struct peers *p, struct fp_hasher *hasher, unsigned int block_shift)
{
	p->hasher = hasher;
	p->block_shift = block_shift;
	links_set_block_shift(p->links, block_shift);
}

struct peers *peers_new(const struct peers_params *params, struct error *err)
{
	struct peers *p = calloc(1, sizeof(*p));

	if (!p)
		goto out_of_memory;
	p->params = *params;
	p->path = params->path ? strdup(params->path) : NULL;
	if (params->self)
		p->self = *params->self;
	p->links = links_new(&link_ops, p, params->self ? &p->self : NULL, params->filter_bytes);
	if (!p->links || (params->path && !p->path))
		goto free_peers;
	peers_load(p);
	links_changed(p->links); /* as it stands in the file */
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
	if (p->links && (links_changed(p->links) || p->changed))
		peers_save(p);
	close_gone(p);
	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		struct net_client *client = p->clients[i];

		p->clients[i] = NULL;
		net_client_free(client);
	}
	links_free(p->links);
	free(p->path);
	free(p);
}
