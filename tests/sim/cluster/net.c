// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The network of the simulation, in the place of net/client.c, net/server.c and net/ctx.c, with the
 * same functions. Messages are packed and unpacked as they are on the wire. A connection keeps their
 * order; it may break at any time, and then what was on its way there may still arrive (late, and so
 * twice and out of order, for the client sends again what was not answered), and what was on its way
 * back is lost.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "../engine.h"
#include "base/cleanup.h"
#include "net/net.h"
#include "threads.h"

#define MAX_CLIENTS 65536
#define MAX_SERVERS 4096
#define RUN_BATCH   256
#define MAX_WATCHES 16
#define DEAD_NS	    (20 * SIM_S) /* a connection over which nothing comes is given up */

struct wire {
	void *header;
	size_t len, nr_frames;
	struct net_frame frames[];
};

enum { REQUEST, REPLY, CONNECT };

struct delivery {
	uint32_t client, server; /* ids */
	uint64_t connection, call, sent_ns;
	struct wire *wire;
};

struct call {
	TAILQ_ENTRY(call) link;
	uint64_t id, deadline_ns;
	Vmdedup__Request__BodyCase kind;
	net_done_fn done;
	void *arg;
	struct wire *wire;
};

struct net_ctx {
	unsigned int node;
};

struct net_client {
	uint32_t id;
	unsigned int node;
	uint64_t life;
	char endpoint[64];
	TAILQ_HEAD(, call) calls;
	TAILQ_HEAD(, inbound) inbox;
	size_t pending;
	uint64_t last_id;
	uint64_t connection; /* 0: none */
	bool seen_connected, closing;
	uint32_t server;
	unsigned int retries;
	uint64_t there_ns, back_ns; /* when the last message arrives */
};

struct inbound {
	TAILQ_ENTRY(inbound) link;
	struct delivery d;
};

struct net_server {
	uint32_t id;
	unsigned int node;
	uint64_t life;
	char endpoint[64];
	struct net_server_ops ops;
	void *ctx;
	uint64_t tick_ns, next_tick_ns;
	TAILQ_HEAD(, inbound) queue;
	bool stop;
	struct {
		int fd;
		void (*ready)(void *arg);
		void *arg;
	} watches[MAX_WATCHES];
	size_t nr_watches;
};

struct net_request {
	struct net_server *s;
	struct delivery d;
	Vmdedup__Request *header;
};

static struct {
	struct sim sim;
	unsigned int loss, slow, late_rounds;
	uint64_t latency_ns;
	struct net_client *clients[MAX_CLIENTS];
	struct net_server *servers[MAX_SERVERS];
	uint32_t nr_clients, nr_servers;
	uint64_t connections;
	uint64_t cut_ns[MAX_NODES][MAX_NODES];
	bool late_join[MAX_NODES];
} net;

void net_sim_init(unsigned int loss_in_10000, unsigned int slow_in_1000, unsigned int late_rounds_in_100,
		  uint64_t latency_ns)
{
	net.late_rounds = late_rounds_in_100;
	net.latency_ns = latency_ns;
	net.loss = loss_in_10000;
	net.slow = slow_in_1000;
	net.clients[0] = NULL;
	net.nr_clients = net.nr_servers = 1;
}

void net_sim_calm(void)
{
	net.loss = net.slow = net.late_rounds = 0;
	net.latency_ns = SIM_MS;
	memset(net.cut_ns, 0, sizeof(net.cut_ns));
}

void net_sim_cut(unsigned int a, unsigned int b, uint64_t ns)
{
	net.cut_ns[a][b] = net.cut_ns[b][a] = threads_now() + ns;
}

void net_sim_late_join(unsigned int node)
{
	net.late_join[node] = true;
}

uint64_t net_sim_next(void)
{
	return net.sim.nr ? net.sim.heap[0].at : UINT64_MAX;
}

/* ---- messages ---- */

static struct wire *wire_new(const ProtobufCMessage *m, const struct net_frame *frames, size_t nr)
{
	struct wire *w = calloc(1, sizeof(*w) + nr * sizeof(w->frames[0]));

	w->len = protobuf_c_message_get_packed_size(m);
	w->header = malloc(w->len + 1);
	protobuf_c_message_pack(m, w->header);
	w->nr_frames = nr;
	for (size_t i = 0; i < nr; i++) {
		void *copy = malloc(frames[i].len + 1);

		memcpy(copy, frames[i].data, frames[i].len);
		w->frames[i] = (struct net_frame){ .data = copy, .len = frames[i].len };
	}
	return w;
}

static struct wire *wire_copy(const struct wire *in)
{
	size_t size = sizeof(*in) + in->nr_frames * sizeof(in->frames[0]);
	struct wire *w = malloc(size);

	memcpy(w, in, size);
	w->header = malloc(in->len + 1);
	memcpy(w->header, in->header, in->len);
	for (size_t i = 0; i < in->nr_frames; i++) {
		void *copy = malloc(in->frames[i].len + 1);

		memcpy(copy, in->frames[i].data, in->frames[i].len);
		w->frames[i].data = copy;
	}
	return w;
}

static void wire_free(struct wire *w)
{
	for (size_t i = 0; w && i < w->nr_frames; i++)
		free((void *)w->frames[i].data);
	if (w)
		free(w->header);
	free(w);
}

static void frames_drop(const struct net_frame *frames, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (frames[i].free_fn)
			frames[i].free_fn((void *)frames[i].data, frames[i].hint);
}

/* Most of what is late is so because its connection is about to break. */
static uint64_t latency(bool *breaks)
{
	uint64_t ns = 50 * SIM_US + sim_pick(net.latency_ns);

	*breaks = false;
	if (sim_pick(1000) < net.slow) {
		ns += sim_pick(sim_one_in(3) ? 8 * SIM_S : SIM_S);
		*breaks = !sim_one_in(3);
	}
	return ns;
}

static void post(uint32_t kind, uint64_t at, const struct delivery *d)
{
	struct delivery *copy = malloc(sizeof(*copy));

	*copy = *d;
	sim_at(&net.sim, at, kind, 0, 0, copy);
}

/* ---- connections ---- */

static struct net_server *server_at(const char *endpoint)
{
	for (uint32_t i = net.nr_servers; i-- > 1;)
		if (net.servers[i] && !strcmp(net.servers[i]->endpoint, endpoint))
			return net.servers[i];
	return NULL;
}

static bool is_cut(unsigned int a, unsigned int b)
{
	return net.cut_ns[a][b] > threads_now();
}

static void connect_after(struct net_client *c, uint64_t ns)
{
	struct delivery d = { .client = c->id };

	post(CONNECT, threads_now() + ns, &d);
}

static void disconnect(struct net_client *c)
{
	if (!c->connection)
		return;
	c->connection = 0;
	c->retries = 0;
	connect_after(c, 20 * SIM_MS + sim_pick(100 * SIM_MS));
}

/*
 * An attempt to reconcile is soon over, and what goes wrong in the midst of it would seldom be seen. So the
 * question by which it begins comes late, and a second time before; and its host is cut off from all others
 * in the moment in which it says that it has finished.
 */
static uint64_t late_round(const struct net_client *c, const struct call *call, bool *breaks)
{
	uint64_t ns = SIM_S + sim_pick(7 * SIM_S);

	if (call->kind == VMDEDUP__REQUEST__BODY_SERVER_JOIN && net.late_join[c->node]) {
		net.late_join[c->node] = false;
		return ns;
	}
	if (sim_pick(100) >= net.late_rounds)
		return 0;
	if (call->kind == VMDEDUP__REQUEST__BODY_RECONCILE_BEGIN) {
		*breaks = true;
		return ns;
	}
	for (unsigned int n = 1; call->kind == VMDEDUP__REQUEST__BODY_RECONCILE_END && n < MAX_NODES; n++)
		net_sim_cut(c->node, n, ns);
	return 0;
}

static void transmit(struct net_client *c, struct call *call)
{
	struct delivery d = { .client = c->id, .server = c->server, .connection = c->connection,
			      .call = call->id, .sent_ns = threads_now() };
	bool breaks;
	uint64_t at = threads_now() + latency(&breaks);

	if (sim_pick(10000) < net.loss) {
		disconnect(c);
		return;
	}
	at += late_round(c, call, &breaks);
	d.wire = wire_copy(call->wire);
	c->there_ns = at > c->there_ns ? at : c->there_ns + 1;
	post(REQUEST, c->there_ns, &d);
	if (breaks)
		disconnect(c);
}

static void connected(struct net_client *c)
{
	struct net_server *s = server_at(c->endpoint);
	struct call *call;

	if (c->connection)
		return;
	if (!s || is_cut(c->node, s->node)) {
		c->retries = c->retries < 5 ? c->retries + 1 : 5;
		connect_after(c, (50ULL << c->retries) * SIM_MS);
		return;
	}
	c->connection = ++net.connections;
	c->server = s->id;
	c->there_ns = c->back_ns = threads_now();
	TAILQ_FOREACH(call, &c->calls, link) {
		transmit(c, call);
		if (!c->connection)
			return;
	}
}

void net_sim_killed(unsigned int node)
{
	for (uint32_t i = 1; i < net.nr_servers; i++) {
		struct net_server *s = net.servers[i];

		if (!s || s->node != node)
			continue;
		net.servers[i] = NULL;
		for (uint32_t k = 1; k < net.nr_clients; k++)
			if (net.clients[k] && net.clients[k]->server == i)
				disconnect(net.clients[k]);
	}
	for (uint32_t k = 1; k < net.nr_clients; k++)
		if (net.clients[k] && net.clients[k]->node == node)
			net.clients[k] = NULL;
}

/* ---- what happens by itself ---- */

static struct inbound *inbound_new(const struct delivery *d)
{
	struct inbound *in = calloc(1, sizeof(*in));

	in->d = *d;
	return in;
}

/* True: taken over. */
static bool deliver(uint32_t kind, struct delivery *d)
{
	struct net_client *c = net.clients[d->client];
	struct net_server *s = net.servers[d->server];
	struct inbound *in;

	if (kind == REPLY && (!c || c->connection != d->connection))
		return false;
	if (!s)
		return false;
	if (c && is_cut(c->node, s->node)) {
		if (threads_now() - d->sent_ns > DEAD_NS) {
			if (c->connection == d->connection)
				disconnect(c);
			return false;
		}
		post(kind, threads_now() + 50 * SIM_MS, d);
		return true;
	}
	in = inbound_new(d);
	node_changed(kind == REPLY ? c->node : s->node);
	if (kind == REPLY)
		TAILQ_INSERT_TAIL(&c->inbox, in, link);
	else
		TAILQ_INSERT_TAIL(&s->queue, in, link);
	return true;
}

void net_sim_run(void)
{
	struct sim_event e;

	while (net_sim_next() <= threads_now() && sim_next(&net.sim, &e)) {
		struct delivery *d = e.p;

		if (e.kind == CONNECT && net.clients[d->client])
			connected(net.clients[d->client]);
		else if (e.kind != CONNECT && !deliver(e.kind, d))
			wire_free(d->wire);
		free(d);
	}
}

/* ---- clients ---- */

static uint64_t next_deadline(const struct net_client *c)
{
	uint64_t next = UINT64_MAX;
	struct call *call;

	TAILQ_FOREACH(call, &c->calls, link)
		next = MIN(next, call->deadline_ns);
	return next;
}

static bool client_ready(void *arg)
{
	struct net_client *c = arg;

	return !TAILQ_EMPTY(&c->inbox);
}

bool net_sim_readable(int fd)
{
	struct net_client *c = net.clients[fd - SIM_NET_FD];

	return c && client_ready(c);
}

struct net_client *net_client_new(struct net_ctx *ctx, const char *endpoint,
				  const uint8_t *server_key, const char *role, struct error *err)
{
	struct net_client *c = calloc(1, sizeof(*c));

	if (net.nr_clients == MAX_CLIENTS)
		abort();
	c->id = net.nr_clients++;
	net.clients[c->id] = c;
	c->node = ctx->node;
	snprintf(c->endpoint, sizeof(c->endpoint), "%s", endpoint);
	TAILQ_INIT(&c->calls);
	TAILQ_INIT(&c->inbox);
	connect_after(c, 100 * SIM_US + sim_pick(2 * SIM_MS));
	return c;
}

static void call_end(struct net_client *c, struct call *call, int r, struct net_reply *reply)
{
	TAILQ_REMOVE(&c->calls, call, link);
	c->pending--;
	call->done(call->arg, r, reply);
	wire_free(call->wire);
	free(call);
}

void net_client_free(struct net_client *c)
{
	struct inbound *in;

	if (!c)
		return;
	c->closing = true;
	while (!TAILQ_EMPTY(&c->calls))
		call_end(c, TAILQ_FIRST(&c->calls), -ECANCELED, NULL);
	while ((in = TAILQ_FIRST(&c->inbox))) {
		TAILQ_REMOVE(&c->inbox, in, link);
		wire_free(in->d.wire);
		free(in);
	}
	net.clients[c->id] = NULL;
	free(c);
}

int net_client_submit(struct net_client *c, Vmdedup__Request *req, const struct net_frame *frames,
		      size_t nr_frames, int timeout_ms, net_done_fn done, void *arg)
{
	struct call *call;

	if (c->closing) {
		frames_drop(frames, nr_frames);
		return -ECANCELED;
	}
	call = calloc(1, sizeof(*call));
	req->id = call->id = ++c->last_id;
	req->payload_frames = (uint32_t)nr_frames;
	call->kind = req->body_case;
	call->wire = wire_new(&req->base, frames, nr_frames);
	frames_drop(frames, nr_frames);
	call->done = done;
	call->arg = arg;
	call->deadline_ns = timeout_ms < 0 ? UINT64_MAX :
					     threads_now() + (uint64_t)timeout_ms * SIM_MS;
	TAILQ_INSERT_TAIL(&c->calls, call, link);
	c->pending++;
	if (c->connection)
		transmit(c, call);
	return 0;
}

struct received {
	struct net_reply reply;
	struct wire *wire;
};

struct bytes *net_reply_take(struct net_reply *reply, size_t n)
{
	return bytes_copy(reply->frames[n].data, reply->frames[n].len);
}

void net_reply_free(struct net_reply *reply)
{
	struct received *in = reply ? reply->priv : NULL;

	if (!in)
		return;
	if (reply != &in->reply)
		memset(reply, 0, sizeof(*reply));
	vmdedup__reply__free_unpacked(in->reply.header, NULL);
	wire_free(in->wire);
	free(in);
}

static void take_reply(struct net_client *c, struct delivery *d)
{
	struct received *in;
	struct call *call;

	TAILQ_FOREACH(call, &c->calls, link)
		if (call->id == d->call)
			break;
	if (!call) {
		wire_free(d->wire);
		return;
	}
	in = calloc(1, sizeof(*in));
	in->wire = d->wire;
	in->reply.header = vmdedup__reply__unpack(NULL, d->wire->len, d->wire->header);
	in->reply.nr_frames = d->wire->nr_frames;
	in->reply.frames = d->wire->frames;
	in->reply.priv = in;
	call_end(c, call, 0, &in->reply);
}

/* Returns whether anything was done. */
static bool client_work(struct net_client *c)
{
	struct call *call, *next;
	struct inbound *in;
	bool some = false;

	for (int n = 0; n < RUN_BATCH && (in = TAILQ_FIRST(&c->inbox)); n++) {
		TAILQ_REMOVE(&c->inbox, in, link);
		take_reply(c, &in->d);
		free(in);
		some = true;
	}
	for (call = TAILQ_FIRST(&c->calls); call; call = next) {
		next = TAILQ_NEXT(call, link);
		if (call->deadline_ns > threads_now())
			continue;
		call_end(c, call, -ETIMEDOUT, NULL);
		next = TAILQ_FIRST(&c->calls); /* what it called may have changed the list */
		some = true;
	}
	c->seen_connected = c->connection;
	return some;
}

int net_client_run(struct net_client *c, int max_ms)
{
	uint64_t until = max_ms < 0 ? UINT64_MAX : threads_now() + (uint64_t)max_ms * SIM_MS;

	while (!client_work(c) && max_ms && (max_ms > 0 || c->pending)) {
		thread_wait(client_ready, c, MIN(until, next_deadline(c)));
		if (threads_now() >= until) {
			client_work(c);
			break;
		}
	}
	return 0;
}

int net_client_fd(struct net_client *c)
{
	return SIM_NET_FD + (int)c->id;
}

int net_client_next_timeout_ms(struct net_client *c)
{
	uint64_t next = next_deadline(c), now = threads_now();

	if (next == UINT64_MAX)
		return -1;
	return next <= now ? 0 : (int)((next - now) / SIM_MS + 1);
}

size_t net_client_pending(struct net_client *c)
{
	return c->pending;
}

bool net_client_is_connected(const struct net_client *c)
{
	return c->seen_connected;
}

struct waiter {
	bool done;
	int r;
	struct net_reply reply;
};

static void wake(void *arg, int r, struct net_reply *reply)
{
	struct waiter *w = arg;

	w->done = true;
	w->r = r;
	if (reply)
		w->reply = *reply;
}

int net_call(struct net_client *c, Vmdedup__Request *req, const struct net_frame *frames,
	     size_t nr_frames, int timeout_ms, struct net_reply *reply, struct error *err)
{
	struct waiter w = { 0 };
	int r;

	memset(reply, 0, sizeof(*reply));
	r = net_client_submit(c, req, frames, nr_frames, timeout_ms, wake, &w);
	while (!r && !w.done)
		net_client_run(c, -1);
	if (r || w.r)
		return error_set(err, r ? r : w.r, "%s: %s", c->endpoint, strerror(r ? -r : -w.r));
	*reply = w.reply;
	if (!reply->header->error)
		return 0;
	return error_set(err, -reply->header->error, "%s", reply->header->error_text);
}

/* ---- servers ---- */

struct net_server *net_server_new(struct net_ctx *ctx, const char *role, const uint8_t cluster[16],
				  const struct net_server_ops *ops, void *arg, int tick_ms,
				  struct error *err)
{
	struct net_server *s = calloc(1, sizeof(*s));

	if (net.nr_servers == MAX_SERVERS)
		abort();
	s->id = net.nr_servers++;
	s->node = ctx->node;
	s->ops = *ops;
	s->ctx = arg;
	s->tick_ns = (uint64_t)tick_ms * SIM_MS;
	TAILQ_INIT(&s->queue);
	return s;
}

void net_server_set_cluster(struct net_server *s, const uint8_t cluster[16])
{
}

int net_server_bind(struct net_server *s, const char *endpoint, struct error *err)
{
	snprintf(s->endpoint, sizeof(s->endpoint), "%s", endpoint);
	return 0;
}

const char *net_server_endpoint(struct net_server *s, size_t n)
{
	return n ? NULL : s->endpoint;
}

int net_server_watch(struct net_server *s, int fd, void (*ready)(void *arg), void *arg)
{
	if (s->nr_watches == MAX_WATCHES)
		return -ENOSPC;
	s->watches[s->nr_watches].fd = fd;
	s->watches[s->nr_watches].ready = ready;
	s->watches[s->nr_watches++].arg = arg;
	return 0;
}

static bool server_ready(void *arg)
{
	struct net_server *s = arg;

	if (s->stop || !TAILQ_EMPTY(&s->queue))
		return true;
	for (size_t i = 0; i < s->nr_watches; i++)
		if (sim_fd_readable(s->watches[i].fd))
			return true;
	return false;
}

static void handle_one(struct net_server *s)
{
	struct inbound *in = TAILQ_FIRST(&s->queue);
	struct net_request *req = calloc(1, sizeof(*req));

	TAILQ_REMOVE(&s->queue, in, link);
	*req = (struct net_request){ .s = s, .d = in->d };
	free(in);
	req->header = vmdedup__request__unpack(NULL, req->d.wire->len, req->d.wire->header);
	s->ops.handle(s->ctx, req);
}

int net_server_run(struct net_server *s, struct error *err)
{
	net.servers[s->id] = s; /* it listens */
	while (!s->stop) {
		int n = 0;

		thread_wait(server_ready, s, s->next_tick_ns);
		for (; n < RUN_BATCH && !TAILQ_EMPTY(&s->queue); n++)
			handle_one(s);
		if (n && s->ops.batch_end)
			s->ops.batch_end(s->ctx);
		for (size_t i = 0; i < s->nr_watches; i++)
			if (sim_fd_readable(s->watches[i].fd))
				s->watches[i].ready(s->watches[i].arg);
		if (threads_now() < s->next_tick_ns)
			continue;
		s->next_tick_ns = threads_now() + s->tick_ns;
		if (s->ops.tick)
			s->ops.tick(s->ctx);
	}
	return 0;
}

void net_server_stop(struct net_server *s)
{
	s->stop = true;
}

void net_server_free(struct net_server *s)
{
	if (s)
		net.servers[s->id] = NULL;
	free(s);
}

const Vmdedup__Request *net_request_header(const struct net_request *req)
{
	return req->header;
}

size_t net_request_nr_frames(const struct net_request *req)
{
	return req->d.wire->nr_frames;
}

const void *net_request_frame(const struct net_request *req, size_t n, size_t *len)
{
	if (n >= req->d.wire->nr_frames)
		return NULL;
	*len = req->d.wire->frames[n].len;
	return req->d.wire->frames[n].data;
}

const char *net_request_peer(const struct net_request *req)
{
	return "a simulated peer";
}

const uint8_t *net_request_key(const struct net_request *req)
{
	return NULL;
}

/* Memory is not simulated. */
bool net_request_expect(struct net_request *req, uint64_t bytes)
{
	return true;
}

void net_client_need_no_room(struct net_client *c)
{
}

void net_reply_send(struct net_request *req, Vmdedup__Reply *reply, const struct net_frame *frames,
		    size_t nr_frames)
{
	struct delivery d = req->d;
	struct net_client *c = net.clients[d.client];
	bool breaks;
	uint64_t at = threads_now() + latency(&breaks);

	reply->id = d.call;
	reply->payload_frames = (uint32_t)nr_frames;
	if (c && c->connection == d.connection) {
		d.sent_ns = threads_now();
		d.wire = wire_new(&reply->base, frames, nr_frames);
		c->back_ns = at > c->back_ns ? at : c->back_ns + 1;
		post(REPLY, c->back_ns, &d);
		if (breaks || sim_pick(10000) < net.loss)
			disconnect(c);
	}
	frames_drop(frames, nr_frames);
	vmdedup__request__free_unpacked(req->header, NULL);
	wire_free(req->d.wire);
	free(req);
}

void net_reply_error(struct net_request *req, int positive_errno, const char *fmt, ...)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	reply.error = positive_errno;
	reply.error_text = text;
	net_reply_send(req, &reply, NULL, 0);
}

/* ---- contexts ---- */

struct net_ctx *net_ctx_new(const char *curve_secret_file, const char *clients_dir,
			    struct error *err)
{
	struct net_ctx *ctx = calloc(1, sizeof(*ctx));

	ctx->node = thread_node();
	return ctx;
}

void net_ctx_free(struct net_ctx *ctx)
{
	free(ctx);
}

const uint8_t *net_ctx_public_key(const struct net_ctx *ctx)
{
	return NULL;
}

bool net_ctx_keys_are_open(struct net_ctx *ctx)
{
	return false;
}

bool net_ctx_knows_key(struct net_ctx *ctx, const uint8_t *key)
{
	return !key;
}
