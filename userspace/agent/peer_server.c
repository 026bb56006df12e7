// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "agent/peer_server.h"
#include "agent/prefetch.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/limits.h"

#define READ_THREADS	 2
#define REDIRECT_BLOCKS	 4096
#define ALIGNMENT	 4096
#define MAX_OTHERS	 8
#define FILTER_FRAME	 (1U << 20)

struct piece {
	struct fp fp;
	int r;
	uint64_t slot, seq;
	void *data;
	size_t len;
	struct sent *sent;
	uint32_t named[REDIRECT_NAMES];
	uint8_t nr_named;
};

/* An answer that waits for the server's thread. At the head of what it is about. */
struct answer {
	struct work work; /* what is done for it before, on the loop and elsewhere */
	struct peer_server *server;
	struct net_request *req;
	struct answer *next;
	void (*reply)(struct answer *a);
	void (*free)(struct answer *a);
};

struct upload {
	struct answer answer; /* ->work.run reads the slots */
	struct parked_ask parked; /* of the only piece */
	unsigned int wait_ms;	  /* 0: it does not wait, or no more */
	bool late;		  /* it has waited, and then there was too much on its way */
	char who[160];		  /* asks; by its connection */
	size_t block_size;
	size_t nr;
	bool known; /* @from: where whoever asks serves peers */
	struct peer_address from;
	struct redirected *redirected;
	struct piece pieces[];
};

struct peer_server {
	struct net_server *server;
	struct peer_server_params params;
	pthread_t thread;
	bool runs;
	struct pool *pool;
	int done_fd;
	struct serving *serving;
	struct parked *parked; /* the loop's */
	_Atomic uint32_t block_size; /* set on the loop, whose hello it is from; read on the thread */
	pthread_mutex_t lock; /* guards the rest */
	struct answer *done, **last_done;
	struct peer_server_stats stats;
};

/* On any thread, ZeroMQ's too. */
static void frame_sent(void *data, void *hint)
{
	free(data);
	serving_sent(hint);
}

/* ---- replies, on the server's thread ---- */

static void upload_free(struct answer *a)
{
	struct upload *up = (struct upload *)a;
	size_t i;

	for (i = 0; i < up->nr; i++) {
		free(up->pieces[i].data);
		if (up->pieces[i].sent)
			serving_cancel(up->pieces[i].sent);
	}
	free(up->redirected);
	free(up);
}

static void count(struct peer_server *s, const struct upload *up)
{
	size_t i;

	pthread_mutex_lock(&s->lock);
	for (i = 0; i < up->nr; i++) {
		s->stats.blocks += !up->pieces[i].r;
		s->stats.bytes += up->pieces[i].r ? 0 : up->pieces[i].len;
		s->stats.redirects += up->pieces[i].r == -EREMOTE;
		s->stats.refused += up->pieces[i].r == -EBUSY;
		s->stats.not_here += up->pieces[i].r == -ENOENT;
		s->stats.on_way += up->pieces[i].r == -EINPROGRESS;
	}
	pthread_mutex_unlock(&s->lock);
}

static void name_others(struct upload *up, struct piece *p, const struct peer_address *const *names,
			size_t nr)
{
	if (!up->redirected)
		up->redirected = calloc(1, sizeof(*up->redirected));
	if (up->redirected)
		p->nr_named = (uint8_t)redirected_add(up->redirected, names, nr, p->named);
	p->r = p->nr_named ? -EREMOTE : -EBUSY;
}

/* One that waited for a block, which has come when too much is on its way. */
static void name_to_late(struct peer_server *s, struct upload *up)
{
	const struct peer_address *names[REDIRECT_NAMES];
	struct piece *p = &up->pieces[0];
	size_t nr;

	serving_busy(s->serving, up->known ? &up->from : NULL, &p->fp, clock_mono_ns(), names, &nr);
	name_others(up, p, names, nr);
}

static void reply_blocks(struct answer *a)
{
	struct upload *up = (struct upload *)a;
	struct peer_server *s = a->server;
	Vmdedup__BlockHead heads[UPLOAD_REQUEST], *pointers[UPLOAD_REQUEST];
	Vmdedup__PeerAddress peers[REDIRECT_MAX_NAMED], *peer_pointers[REDIRECT_MAX_NAMED];
	Vmdedup__GetReply get = VMDEDUP__GET_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct net_frame frames[UPLOAD_REQUEST];
	size_t i, nr = 0;

	if (up->late)
		name_to_late(s, up);
	count(s, up);
	for (i = 0; i < up->nr; i++) {
		struct piece *p = &up->pieces[i];

		vmdedup__block_head__init(&heads[i]);
		pointers[i] = &heads[i];
		heads[i].fingerprint = (ProtobufCBinaryData){ FP_SIZE, p->fp.b };
		heads[i].error = -p->r;
		heads[i].redirect = p->named;
		heads[i].n_redirect = p->r == -EREMOTE ? p->nr_named : 0;
		if (p->r)
			continue;
		heads[i].raw_size = (uint32_t)p->len;
		if (up->known)
			serving_handed(s->serving, &up->from, &p->fp, clock_mono_ns());
		frames[nr++] = (struct net_frame){ p->data, p->len, frame_sent, p->sent };
		p->data = NULL;
		p->sent = NULL;
	}
	for (i = 0; up->redirected && i < up->redirected->nr; i++) {
		peer_address_give(&up->redirected->peers[i], &peers[i]);
		peer_pointers[get.n_peers++] = &peers[i];
	}
	get.peers = peer_pointers;
	get.n_blocks = up->nr;
	get.blocks = pointers;
	reply.body_case = VMDEDUP__REPLY__BODY_PEER_GET;
	reply.peer_get = &get;
	net_reply_send(a->req, &reply, frames, nr);
}

static void on_done(void *arg)
{
	struct peer_server *s = arg;
	struct answer *a, *next;
	uint64_t n;

	if (read(s->done_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		log_error("cannot read an eventfd: %s", strerror(errno));
	pthread_mutex_lock(&s->lock);
	a = s->done;
	s->done = NULL;
	s->last_done = &s->done;
	pthread_mutex_unlock(&s->lock);
	for (; a; a = next) {
		next = a->next;
		a->reply(a);
		a->free(a);
	}
}

/* ---- on the loop, and on the threads that read ---- */

static void answer_done(struct work *w)
{
	struct answer *a = (struct answer *)w;
	struct peer_server *s = a->server;
	const uint64_t one = 1;

	a->next = NULL;
	pthread_mutex_lock(&s->lock);
	*s->last_done = a;
	s->last_done = &a->next;
	pthread_mutex_unlock(&s->lock);
	if (write(s->done_fd, &one, sizeof(one)) < 0)
		return; /* only when the counter is full: then it is readable */
}

/* The slot may have been evicted, and filled with another block, while it was read. */
static bool still_holds(struct cache *c, const struct piece *p)
{
	struct dm_dedup_clean_entry e;
	uint64_t cursor = p->slot;
	size_t n = 1;

	return !c->ops->list_clean(c, &cursor, &e, &n) && n == 1 && e.slot == p->slot &&
	       e.seq == p->seq && !memcmp(e.fp, p->fp.b, FP_SIZE);
}

static void read_piece(struct cache *c, uint64_t connection, struct piece *p, size_t block_size)
{
	if (posix_memalign(&p->data, ALIGNMENT, block_size)) {
		p->data = NULL;
		p->r = -EBUSY;
		return;
	}
	p->len = block_size;
	if (c->ops->read_slot(c, connection, p->slot, p->data, block_size) || !still_holds(c, p))
		p->r = -ENOENT;
}

static void read_slots(struct work *w)
{
	struct upload *up = (struct upload *)w;
	struct cache *c = up->answer.server->params.cache;
	uint64_t connection;
	int r = c->ops->open_slots(c, &connection);
	size_t i;

	for (i = 0; i < up->nr; i++) {
		struct piece *p = &up->pieces[i];

		if (p->r || p->data)
			continue;
		if (r)
			p->r = -ENOENT;
		else
			read_piece(c, connection, p, up->block_size);
	}
	if (!r)
		c->ops->close_slots(c);
}

static void find_piece(struct agent *a, struct piece *p)
{
	const void *data;

	p->r = serving_find(a, &p->fp, &p->slot, &p->seq, &data, &p->len);
	if (!data)
		return;
	p->data = malloc(p->len);
	if (p->data)
		memcpy(p->data, data, p->len);
	else
		p->r = -EBUSY;
}

/* What waits takes no share of what is on its way out. */
static bool park(struct upload *up)
{
	struct peer_server *s = up->answer.server;
	struct piece *p = &up->pieces[0];

	if (!up->wait_ms || up->nr != 1 || p->r != -EINPROGRESS ||
	    !parked_add(s->parked, &up->parked, &p->fp, up->who, clock_mono_ns(), up->wait_ms))
		return false;
	serving_cancel(p->sent);
	p->sent = NULL;
	return true;
}

static void find_slots(struct work *w)
{
	struct upload *up = (struct upload *)w;
	struct peer_server *s = up->answer.server;
	bool read_some = false;
	size_t i;

	up->block_size = agent_block_size(s->params.agent);
	if (up->block_size)
		s->block_size = (uint32_t)up->block_size;
	for (i = 0; i < up->nr; i++) {
		if (!up->pieces[i].r)
			find_piece(s->params.agent, &up->pieces[i]);
		read_some |= !up->pieces[i].r && !up->pieces[i].data;
	}
	if (park(up))
		return;
	w->run = read_slots;
	w->done = answer_done;
	if (read_some)
		pool_submit(s->pool, w);
	else
		answer_done(w);
}

/* ---- those that wait ---- */

static struct upload *upload_of(struct parked_ask *ask)
{
	return (struct upload *)((char *)ask - offsetof(struct upload, parked));
}

/* Answered, whatever there is by now. */
static void unpark(struct peer_server *s, struct upload *up)
{
	struct piece *p = &up->pieces[0];

	up->wait_ms = 0;
	p->sent = serving_admit(s->serving, up->who, up->block_size, clock_mono_ns());
	up->late = !p->sent;
	p->r = p->sent ? 0 : -EBUSY;
	find_slots(&up->answer.work);
}

void peer_server_settled(struct peer_server *s, const struct fp *fp)
{
	struct parked_ask *ask;

	while ((ask = parked_take(s->parked, fp)))
		unpark(s, upload_of(ask));
}

static void end_parked(struct peer_server *s, uint64_t now_ns)
{
	struct parked_ask *ask;

	while ((ask = parked_expired(s->parked, now_ns))) {
		upload_of(ask)->pieces[0].r = -EINPROGRESS;
		answer_done(&upload_of(ask)->answer.work);
	}
}

void peer_server_tick(struct peer_server *s)
{
	end_parked(s, clock_mono_ns());
}

uint64_t peer_server_next_ns(struct peer_server *s)
{
	return parked_next_ns(s->parked);
}

/* ---- a volume that is about to come ---- */

struct warming {
	struct answer answer;
	int r;
	struct agent_warmth warmth;
};

static void reply_warmth(struct answer *a)
{
	Vmdedup__PeerWarmReply body = VMDEDUP__PEER_WARM_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct warming *w = (struct warming *)a;
	struct error err;

	if (w->r) {
		error_set(&err, w->r, "that host cannot be warmed: %s",
			  w->r == -EOPNOTSUPP ? "its kernel takes no blocks before the volume" :
			  w->r == -ENODEV     ? "it has no cache" :
						strerror(-w->r));
		reply.error = -w->r;
		reply.error_text = err.text;
	}
	if (w->r != -ENODEV)
		body.cache = (ProtobufCBinaryData){ sizeof(w->warmth.cache.b), w->warmth.cache.b };
	body.blocks = w->warmth.blocks;
	body.here = w->warmth.here;
	body.failed = w->warmth.failed;
	body.from_peers = w->warmth.from_peers;
	reply.body_case = VMDEDUP__REPLY__BODY_PEER_WARM;
	reply.peer_warm = &body;
	net_reply_send(a->req, &reply, NULL, 0);
}

static void free_warming(struct answer *a)
{
	free(a);
}

/* On the loop. */
static void warm_some(struct work *work)
{
	struct warming *w = (struct warming *)work;
	const Vmdedup__PeerWarm *msg = net_request_header(w->answer.req)->peer_warm;
	struct uuid image;
	struct fp root;

	memcpy(image.b, msg->image.data, sizeof(image.b));
	memcpy(root.b, msg->root.data, FP_SIZE);
	w->r = agent_warm(w->answer.server->params.agent, &image, &root, msg->size, msg->blocks.data,
			  msg->blocks.len, &w->warmth);
	answer_done(work);
}

static void handle_warm(struct peer_server *s, struct net_request *req)
{
	const Vmdedup__PeerWarm *msg = net_request_header(req)->peer_warm;
	struct peer_address from;
	struct warming *w;

	if (!peer_address_take(msg->from, &from) &&
	    peer_address_is_of(&from, net_request_key(req)))
		getter_met(s->params.getter, &from);
	if (msg->image.len != sizeof(struct uuid) || msg->root.len != FP_SIZE || !msg->size ||
	    msg->size > IMAGE_SIZE_MAX || msg->blocks.len > TRACE_MAX_BYTES) {
		net_reply_error(req, EINVAL, "an image's UUID, a root, a size and at most %d bytes of "
				"blocks belong here", TRACE_MAX_BYTES);
		return;
	}
	w = calloc(1, sizeof(*w));
	if (!w) {
		net_reply_error(req, ENOMEM, "out of memory");
		return;
	}
	w->answer = (struct answer){ .work.done = warm_some, .server = s, .req = req,
				     .reply = reply_warmth, .free = free_warming };
	loop_post(s->params.loop, &w->answer.work);
}

/* ---- requests, on the server's thread ---- */

static void ask_serving(struct peer_server *s, struct upload *up, struct piece *p)
{
	const struct peer_address *names[REDIRECT_NAMES];
	size_t n;

	p->r = serving_ask(s->serving, up->who, up->known ? &up->from : NULL, &p->fp,
			   s->block_size, clock_mono_ns(), &p->sent, names, &n);
	if (p->r == -EREMOTE)
		name_others(up, p, names, n);
}

static void handle_get(struct peer_server *s, struct net_request *req)
{
	const Vmdedup__PeerGet *get = net_request_header(req)->peer_get;
	size_t nr = get->fingerprints.len / FP_SIZE, i;
	struct upload *up;

	if (!nr || nr > UPLOAD_REQUEST || get->fingerprints.len % FP_SIZE) {
		net_reply_error(req, EINVAL, "fingerprints: %zu bytes, want 32 each, 1 to %d of them",
				get->fingerprints.len, UPLOAD_REQUEST);
		return;
	}
	up = calloc(1, sizeof(*up) + nr * sizeof(up->pieces[0]));
	if (!up) {
		net_reply_error(req, ENOMEM, "out of memory");
		return;
	}
	up->known = !peer_address_take(get->from, &up->from) &&
		    peer_address_is_of(&up->from, net_request_key(req));
	up->answer = (struct answer){ .work.done = find_slots, .server = s, .req = req,
				      .reply = reply_blocks, .free = upload_free };
	up->nr = nr;
	up->wait_ms = get->wait_ms;
	snprintf(up->who, sizeof(up->who), "%s", net_request_peer(req));
	for (i = 0; i < nr; i++) {
		struct piece *p = &up->pieces[i];

		memcpy(p->fp.b, get->fingerprints.data + i * FP_SIZE, FP_SIZE);
		ask_serving(s, up, p);
	}
	loop_post(s->params.loop, &up->answer.work);
}

static void handle_nodes(struct peer_server *s, struct net_request *req)
{
	const Vmdedup__NodeGet *get = net_request_header(req)->node_get;
	Vmdedup__NodeGetReply body = VMDEDUP__NODE_GET_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint8_t node[RECIPE_NODE_MAX];
	struct net_frame frame;
	struct fp hash;
	size_t len;

	if (get->hashes.len != FP_SIZE) {
		net_reply_error(req, EINVAL, "a peer is asked for one recipe node at a time");
		return;
	}
	memcpy(hash.b, get->hashes.data, FP_SIZE);
	if (nodes_get(s->params.nodes, &hash, false, node, &len)) {
		net_reply_error(req, ENOENT, "that recipe node is not here");
		return;
	}
	frame = (struct net_frame){ .data = node, .len = len };
	reply.body_case = VMDEDUP__REPLY__BODY_NODE_GET;
	reply.node_get = &body;
	net_reply_send(req, &reply, &frame, 1);
}

static void send_filter(struct peer_server *s, struct net_request *req,
			const struct host_filter_answer *a)
{
	struct net_frame frames[PROTO_MAX_FRAMES];
	struct peer_address others[MAX_OTHERS];
	Vmdedup__PeerAddress peers[MAX_OTHERS], *pointers[MAX_OTHERS];
	Vmdedup__PeerFilterReply body = VMDEDUP__PEER_FILTER_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	size_t nr = 0, at, i;

	for (at = 0; a->packed && at < a->packed_len && nr < PROTO_MAX_FRAMES; at += FILTER_FRAME)
		frames[nr++] = (struct net_frame){
			.data = (const uint8_t *)a->packed + at,
			.len = MIN(FILTER_FRAME, a->packed_len - at),
		};
	body.n_others = getter_others(s->params.getter, others, MAX_OTHERS);
	for (i = 0; i < body.n_others; i++) {
		peer_address_give(&others[i], &peers[i]);
		pointers[i] = &peers[i];
	}
	body.others = pointers;
	body.generation = a->generation;
	body.additions = a->additions;
	body.bits_shift = a->shift;
	body.hashes = FILTER_HASHES;
	body.full = a->full;
	body.blocks = a->blocks;
	body.too_large = a->packed ? 0 : a->packed_len;
	reply.body_case = VMDEDUP__REPLY__BODY_PEER_FILTER_GET;
	reply.peer_filter_get = &body;
	net_reply_send(req, &reply, frames, nr);
	pthread_mutex_lock(&s->lock);
	s->stats.filter_bytes += a->packed ? a->packed_len : 0;
	pthread_mutex_unlock(&s->lock);
}

static void handle_filter(struct peer_server *s, struct net_request *req)
{
	const Vmdedup__PeerFilterGet *get = net_request_header(req)->peer_filter_get;
	struct host_filter_answer a;
	struct peer_address from;
	int r;

	if (!peer_address_take(get->from, &from) && peer_address_is_of(&from, net_request_key(req)))
		getter_met(s->params.getter, &from);
	r = host_filter_answer(s->params.filter, clock_mono_ns(), get->generation, get->additions,
			       get->max_bytes, &a);
	if (r && r != -EFBIG) {
		net_reply_error(req, -r, r == -EDQUOT ? "the filters of this hour have been given out" :
				"there is no filter yet");
		return;
	}
	send_filter(s, req, &a);
	free(a.packed);
}

static void handle(void *ctx, struct net_request *req)
{
	struct peer_server *s = ctx;

	switch (net_request_header(req)->body_case) {
	case VMDEDUP__REQUEST__BODY_PEER_GET:
		handle_get(s, req);
		break;
	case VMDEDUP__REQUEST__BODY_PEER_FILTER_GET:
		handle_filter(s, req);
		break;
	case VMDEDUP__REQUEST__BODY_NODE_GET:
		handle_nodes(s, req);
		break;
	case VMDEDUP__REQUEST__BODY_PEER_WARM:
		handle_warm(s, req);
		break;
	default:
		net_reply_error(req, EOPNOTSUPP, "an agent does not answer this to a peer");
	}
}

static const struct net_server_ops server_ops = { .handle = handle };

/* ---- life ---- */

static void *serve(void *arg)
{
	struct peer_server *s = arg;
	struct error err = { 0 };

	if (net_server_run(s->server, &err))
		log_error("peers are no longer served: %s", err.text);
	return NULL;
}

struct peer_server *peer_server_new(struct net_ctx *net, const char *endpoint, struct error *err)
{
	struct peer_server *s = calloc(1, sizeof(*s));

	if (!s) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	pthread_mutex_init(&s->lock, NULL);
	s->last_done = &s->done;
	s->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	s->serving = serving_new(REDIRECT_BLOCKS);
	s->parked = parked_new();
	s->server = net_server_new(net, "agent", NULL, &server_ops, s, 0, err);
	if (s->done_fd < 0 || !s->serving || !s->parked || !s->server ||
	    net_server_watch(s->server, s->done_fd, on_done, s)) {
		error_set(err, -ENOMEM, "out of memory");
		goto free_server;
	}
	if (net_server_bind(s->server, endpoint, err))
		goto free_server;
	return s;

free_server:
	peer_server_free(s);
	return NULL;
}

const char *peer_server_endpoint(struct peer_server *s)
{
	return net_server_endpoint(s->server, 0);
}

int peer_server_start(struct peer_server *s, const struct peer_server_params *params,
		      struct error *err)
{
	s->params = *params;
	s->block_size = 1U << BLOCK_SHIFT_MAX; /* until the first request is looked at */
	s->pool = pool_new(params->loop, "read-slots", READ_THREADS);
	if (!s->pool || pthread_create(&s->thread, NULL, serve, s))
		return error_set(err, -EAGAIN, "cannot start the threads that serve peers");
	pthread_setname_np(s->thread, "serve-peers");
	s->runs = true;
	return 0;
}

void peer_server_stop(struct peer_server *s)
{
	if (!s)
		return;
	if (s->runs) {
		net_server_stop(s->server);
		pthread_join(s->thread, NULL);
	}
	s->runs = false;
	if (!s->pool)
		return;
	/* What is under way comes to its end: to the threads that read, and back; then those that wait. */
	loop_run(s->params.loop);
	pool_free(s->pool);
	loop_run(s->params.loop);
	s->pool = NULL;
	end_parked(s, UINT64_MAX);
}

void peer_server_free(struct peer_server *s)
{
	struct answer *a;

	if (!s)
		return;
	peer_server_stop(s);
	while ((a = s->done)) { /* nobody is told any more */
		s->done = a->next;
		a->free(a);
	}
	if (s->server)
		net_server_free(s->server);
	serving_free(s->serving);
	parked_free(s->parked);
	if (s->done_fd >= 0)
		close(s->done_fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

void peer_server_stats(struct peer_server *s, struct peer_server_stats *stats)
{
	pthread_mutex_lock(&s->lock);
	*stats = s->stats;
	pthread_mutex_unlock(&s->lock);
}
