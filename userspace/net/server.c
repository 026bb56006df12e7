// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A server: one thread, one ROUTER socket for each endpoint (they differ in their keys).
 *
 * A ROUTER names a connection by an id that it makes up: a connection that has not said HELLO,
 * or said it to an earlier process, is a peer that we do not know, and is told so.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "net/internal.h"
#include "net/outgoing.h"
#include "net/peer.h"
#include "net/room.h"
#include "proto/limits.h"

#define MAX_ENDPOINTS	16
#define MAX_WATCHES	64
#define BATCH_REQUESTS	256
#define BATCH_BYTES	(64U << 20)
#define WAITING_MAX	4096
#define WAITING_BYTES	(512ULL << 20)
#define CLOSE_MS	2000

struct endpoint {
	void *socket;
	enum net_transport transport;
	char bound[256];
};

struct watched {
	int fd;
	void (*ready)(void *arg);
	void *arg;
};

LIST_HEAD(request_list, net_request);

struct net_server {
	struct net_ctx *net;
	const struct net_server_ops *ops;
	void *ctx;
	char *role;
	uint8_t cluster[16];
	int tick_ms;
	int stop_fd; /* written by net_server_stop(), on any thread */
	struct endpoint endpoints[MAX_ENDPOINTS];
	size_t nr_endpoints;
	size_t turn; /* the endpoint that comes first in the next batch */
	struct watched watches[MAX_WATCHES];
	size_t nr_watches;
	struct peer_table peers;
	struct peer_sum *sum;
	struct room room;
	struct request_list requests; /* not replied to */
	uint64_t waiting_bytes;
	uint64_t waiting_payload; /* of these */
	struct net_server_stats stats;
};

struct net_request {
	LIST_ENTRY(net_request) link;
	struct net_server *server;
	struct peer *peer;
	uint64_t id;
	uint64_t payload; /* bytes */
	uint64_t expected; /* that whoever asks will send next, as the handler says */
	Vmdedup__Request *header;
	struct net_parts parts; /* routing id, header, payload */
};

enum { PART_PEER, PART_HEADER, PART_PAYLOAD };

/* ---- sending ---- */

/* Packs and sends to @peer; the id is the request's. An error: @reply was not sent. */
static int send_reply(struct net_server *s, struct peer *peer, uint64_t id, Vmdedup__Reply *reply,
		      const struct net_frame *frames, size_t nr)
{
	Vmdedup__Reply refusal = VMDEDUP__REPLY__INIT;
	struct error err = { 0 };
	zmq_msg_t header;
	int r, sent;

	reply->id = id;
	reply->payload_frames = nr;
	r = net_check_frames(frames, nr, &err);
	if (!r) {
		r = outgoing_header(peer, reply, &header);
		if (r)
			error_set(&err, r, "a header of %zu bytes",
				  vmdedup__reply__get_packed_size(reply));
	}
	if (r) {
		log_error("the answer to %s cannot be sent: %s", peer->text, err.text);
		net_frames_drop(frames, nr);
		nr = 0;
		refusal.id = id;
		refusal.error = -r;
		refusal.error_text = err.text;
		if (outgoing_header(peer, &refusal, &header)) {
			s->stats.lost++;
			return r;
		}
	}
	sent = outgoing_send(s->endpoints[peer->socket].socket, peer, &header, frames, nr);
	if (sent) {
		s->stats.lost++;
		log_debug("an answer to %s is lost: %s", peer->text, zmq_strerror(-sent));
	}
	return sent ?: r;
}

/* With room that is taken back if the peer does not hear of it. */
static void send_reply_and_room(struct net_server *s, struct peer *peer, uint64_t id,
				Vmdedup__Reply *reply, const struct net_frame *frames, size_t nr,
				uint64_t room)
{
	reply->room = room;
	if (send_reply(s, peer, id, reply, frames, nr) && room)
		room_take(&s->room, peer, room);
}

static void send_error(struct net_server *s, struct peer *peer, uint64_t id, int error,
		       const char *text, bool say_hello)
{
	Vmdedup__HelloReply hello = VMDEDUP__HELLO_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	reply.error = error;
	reply.error_text = (char *)text;
	if (say_hello) {
		hello.version = PROTO_VERSION;
		reply.body_case = VMDEDUP__REPLY__BODY_HELLO;
		reply.hello = &hello;
	}
	send_reply(s, peer, id, &reply, NULL, 0);
}

/* ---- requests and their replies ---- */

static void request_free(struct net_request *req)
{
	LIST_REMOVE(req, link);
	req->server->stats.waiting--;
	req->server->waiting_bytes -= req->parts.bytes;
	req->server->waiting_payload -= req->payload;
	if (req->header)
		vmdedup__request__free_unpacked(req->header, NULL);
	net_parts_free(&req->parts);
	peer_put(req->peer);
	free(req);
}

/* Those who wait for room, in their order, as far as there is some. */
static void serve_room(struct net_server *s)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct peer *peer;
	uint64_t id, bytes;

	while (!TAILQ_EMPTY(&s->room.asking)) {
		id = TAILQ_FIRST(&s->room.asking)->asked_id;
		peer = room_next(&s->room, s->waiting_payload, clock_mono_ns(), &bytes);
		if (!peer)
			return;
		send_reply_and_room(s, peer, id, &reply, NULL, 0, bytes);
		peer_put(peer);
	}
}

/* As much as has come, and as the handler expects: whoever sends all the time need not ask. */
static uint64_t offer_room(struct net_request *req)
{
	struct net_server *s = req->server;

	if (!req->peer->asks || !(req->payload + req->expected))
		return 0;
	return room_offer(&s->room, req->peer, req->payload + req->expected,
			  s->waiting_payload - req->payload, clock_mono_ns());
}

void net_reply_send(struct net_request *req, Vmdedup__Reply *reply, const struct net_frame *frames,
		    size_t nr_frames)
{
	struct net_server *s = req->server;

	send_reply_and_room(s, req->peer, req->id, reply, frames, nr_frames, offer_room(req));
	request_free(req);
	serve_room(s);
}

void net_reply_error(struct net_request *req, int positive_errno, const char *fmt, ...)
{
	struct net_server *s = req->server;
	char text[ERROR_TEXT_SIZE];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	send_error(s, req->peer, req->id, positive_errno, text, false);
	request_free(req);
	serve_room(s);
}

bool net_request_expect(struct net_request *req, uint64_t bytes)
{
	struct net_server *s = req->server;
	struct peer *peer = req->peer;

	req->expected = bytes;
	if (!s->room.budget || peer->asks || peer->forwards ||
	    s->endpoints[peer->socket].transport == NET_INPROC)
		return true;
	return room_reserve(&s->room, peer, bytes, s->waiting_payload, clock_mono_ns());
}

const Vmdedup__Request *net_request_header(const struct net_request *req)
{
	return req->header;
}

size_t net_request_nr_frames(const struct net_request *req)
{
	return req->parts.nr - PART_PAYLOAD;
}

const void *net_request_frame(const struct net_request *req, size_t n, size_t *len)
{
	zmq_msg_t *msg = &req->parts.msgs[PART_PAYLOAD + n];

	*len = zmq_msg_size(msg);
	return zmq_msg_data(msg);
}

const char *net_request_peer(const struct net_request *req)
{
	return req->peer->text;
}

const uint8_t *net_request_key(const struct net_request *req)
{
	return req->peer->has_key ? req->peer->key : NULL;
}

/* ---- receiving ---- */

static void name_peer(struct peer *p, const Vmdedup__Hello *hello, zmq_msg_t *msg)
{
	const char *address = zmq_msg_gets(msg, "Peer-Address");
	const char *key = zmq_msg_gets(msg, "User-Id");

	snprintf(p->text, sizeof(p->text), "%.16s %.64s%s%.64s%s%.40s", hello->role, hello->name,
		 address ? " at " : "", address ?: "", key && *key ? " key " : "", key ?: "");
	snprintf(p->user, sizeof(p->user), "%s", key ?: "");
	p->has_key = key && strlen(key) == 40 && zmq_z85_decode(p->key, key);
	p->role_until_ns = 0;
}

/* A connection can take the id of one that has ended: its key it cannot take. */
static bool is_same_peer(const struct peer *p, zmq_msg_t *msg)
{
	const char *key = zmq_msg_gets(msg, "User-Id");

	return !strcmp(p->user, key ?: "");
}

/* Without keys only this host gets here, who may everything. */
static enum net_role role_of(struct net_server *s, struct peer *p)
{
	uint64_t now = clock_mono_ns();

	if (s->endpoints[p->socket].transport != NET_TCP || !s->net->has_key)
		return NET_ROLE_ADMIN;
	if (!p->has_key || !s->net->zap)
		return NET_ROLE_NONE;
	if (now >= p->role_until_ns) {
		p->role = zap_role(s->net->zap, p->key);
		p->role_until_ns = now + NET_ROLE_NS;
	}
	return p->role;
}

/* Answers a HELLO; a peer that may stay has said it from then on. */
static void handle_hello(struct net_server *s, struct peer *peer, const Vmdedup__Request *req,
			 zmq_msg_t *msg)
{
	Vmdedup__HelloReply hello = VMDEDUP__HELLO_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint32_t version = req->hello->version;
	uint64_t room = 0;

	s->stats.hellos++;
	/* Releases N and N+1 talk. */
	if (version + 1 < PROTO_VERSION || version > PROTO_VERSION + 1 || !version) {
		char text[120];

		snprintf(text, sizeof(text),
			 "this server speaks version %d of the protocol, the client version %u: "
			 "update the older one",
			 PROTO_VERSION, version);
		send_error(s, peer, req->id, EPROTONOSUPPORT, text, false);
		return;
	}
	name_peer(peer, req->hello, msg);
	peer->said_hello = true;
	peer->forwards = !strcmp(req->hello->role, "data") && role_of(s, peer) >= NET_ROLE_DATA;
	if (s->room.budget && s->endpoints[peer->socket].transport != NET_INPROC)
		hello.features = req->hello->features & NET_FEATURE_ROOM;
	peer->asks = hello.features;
	if (peer->asks)
		room = room_offer(&s->room, peer, req->hello->room, s->waiting_payload,
				  clock_mono_ns());
	hello.version = version < PROTO_VERSION ? version : PROTO_VERSION;
	hello.role = s->role;
	hello.cluster.data = s->cluster;
	hello.cluster.len = sizeof(s->cluster);
	reply.body_case = VMDEDUP__REPLY__BODY_HELLO;
	reply.hello = &hello;
	send_reply_and_room(s, peer, req->id, &reply, NULL, 0, room);
}

static void handle_room(struct net_server *s, struct peer *peer, const Vmdedup__Request *req)
{
	if (!peer->asks) {
		send_error(s, peer, req->id, EINVAL, "a client that asks for room says so in HELLO", false);
		return;
	}
	s->stats.asked++;
	room_ask(&s->room, peer, req->id, req->room->bytes, req->room->least);
	serve_room(s);
}

/* Decode and check everything. With an error there may be an id to answer to. */
static int check_message(struct net_parts *parts, Vmdedup__Request **req, uint64_t *id,
			 struct error *err)
{
	zmq_msg_t *header = &parts->msgs[PART_HEADER];
	int r;

	*id = 0;
	if (parts->nr <= PART_HEADER)
		return error_set(err, -EPROTO, "a message without a header");
	*id = net_peek_id(zmq_msg_data(header), zmq_msg_size(header));
	r = net_decode_request(zmq_msg_data(header), zmq_msg_size(header), req, err);
	if (r)
		return r;
	*id = (*req)->id;
	r = net_check_payload(parts, PART_PAYLOAD, (*req)->payload_frames, err);
	if (r)
		return r;
	if ((*req)->body_case == VMDEDUP__REQUEST__BODY__NOT_SET)
		return error_set(err, -EOPNOTSUPP, "this server does not know such a request");
	return *id ? 0 : error_set(err, -EPROTO, "a request without an id");
}

static void hand_over(struct net_server *s, struct peer *peer, Vmdedup__Request *header,
		      struct net_parts *parts)
{
	struct net_request *req = calloc(1, sizeof(*req));

	if (!req) {
		send_error(s, peer, header->id, ENOMEM, "the server is out of memory", false);
		vmdedup__request__free_unpacked(header, NULL);
		return;
	}
	req->server = s;
	req->peer = peer_get(peer);
	req->id = header->id;
	req->header = header;
	req->parts = *parts;
	memset(parts, 0, sizeof(*parts));
	for (size_t i = PART_PAYLOAD; i < req->parts.nr; i++)
		req->payload += zmq_msg_size(&req->parts.msgs[i]);
	room_take(&s->room, peer, req->payload);
	s->waiting_payload += req->payload;
	LIST_INSERT_HEAD(&s->requests, req, link);
	s->stats.waiting++;
	s->stats.requests++;
	s->waiting_bytes += req->parts.bytes;
	s->ops->handle(s->ctx, req);
}

/* In this process a reply counts until its reader frees it: that is the reader's own bound. */
static bool peer_is_slow(const struct net_server *s, struct peer *peer, uint64_t bytes,
			 uint32_t parts)
{
	return s->endpoints[peer->socket].transport != NET_INPROC &&
	       (atomic_load_explicit(&peer->queued, memory_order_relaxed) > bytes ||
		atomic_load_explicit(&peer->parts, memory_order_relaxed) > parts);
}

/* All together have too many replies waiting, and this one some of them. That the request was not done
 * lets the client repeat it, which is not at once: it reads what waits before it reads this. */
static bool refuse_for_all(struct net_server *s, struct peer *peer, const Vmdedup__Request *req)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	if (!s->ops->queued || !peer_is_slow(s, peer, NET_FEW_QUEUED, UINT32_MAX) ||
	    atomic_load_explicit(&s->sum->queued, memory_order_relaxed) <= s->ops->queued)
		return false;
	s->stats.refused++;
	reply.error = EBUSY;
	reply.error_text = "too many answers wait to be read by this client and others";
	reply.not_done = true;
	send_reply(s, peer, req->id, &reply, NULL, 0);
	return true;
}

static bool refuse_role(struct net_server *s, struct peer *peer, const Vmdedup__Request *req)
{
	enum net_role needed = net_role_needed(req), has;
	char text[ERROR_TEXT_SIZE];

	/* Who has connected may what a host may, and is not looked up for each block. */
	if (needed <= NET_ROLE_HOST)
		return false;
	has = role_of(s, peer);
	if (has >= needed)
		return false;
	net_role_refusal(req, peer->user, has, s->role, text, sizeof(text));
	if (!peer->warned)
		log_warn("refused %s: %s", peer->text, text);
	peer->warned = true;
	send_error(s, peer, req->id, EPERM, text, false);
	return true;
}

/* Returns true when the request went to the handler. */
static bool handle_message(struct net_server *s, size_t socket, struct net_parts *parts)
{
	zmq_msg_t *id_msg = &parts->msgs[PART_PEER];
	Vmdedup__Request *req = NULL;
	struct error err = { 0 };
	struct peer *peer;
	bool handed = false;
	uint64_t id;
	int r;

	r = check_message(parts, &req, &id, &err);
	peer = peer_find_or_add(&s->peers, socket, zmq_msg_data(id_msg), zmq_msg_size(id_msg));
	if (peer && !peer->sum && s->endpoints[socket].transport != NET_INPROC)
		peer->sum = peer_sum_get(s->sum);
	if (!peer || !id || peer_is_slow(s, peer, UINT64_MAX, NET_MAX_PEER_ERRORS)) {
		s->stats.dropped++;
	} else if (r) {
		s->stats.refused++;
		log_debug("refused a message of %s: %s", peer->text, err.text);
		send_error(s, peer, id, -r, err.text, false);
	} else if (req->body_case == VMDEDUP__REQUEST__BODY_HELLO) {
		handle_hello(s, peer, req, &parts->msgs[PART_HEADER]);
	} else if (!peer->said_hello || !is_same_peer(peer, &parts->msgs[PART_HEADER])) {
		s->stats.refused++;
		send_error(s, peer, id, ENOTCONN, "say HELLO first", true);
	} else if (peer_is_slow(s, peer, NET_MAX_PEER_QUEUED, NET_MAX_PEER_PARTS)) {
		s->stats.refused++;
		send_error(s, peer, id, EBUSY,
			   "too many answers wait to be read by this client", false);
	} else if (req->body_case == VMDEDUP__REQUEST__BODY_ROOM) {
		handle_room(s, peer, req);
	} else if (refuse_for_all(s, peer, req)) {
		;
	} else if (refuse_role(s, peer, req)) {
		s->stats.refused++;
	} else {
		hand_over(s, peer, req, parts);
		req = NULL;
		handed = true;
	}
	if (req)
		vmdedup__request__free_unpacked(req, NULL);
	return handed;
}

static bool may_take(const struct net_server *s)
{
	return s->stats.waiting < WAITING_MAX && s->waiting_bytes < WAITING_BYTES;
}

/* Takes what is there, one message of each endpoint in turn, so that none starves another. */
static void batch(struct net_server *s)
{
	struct net_parts parts = { 0 };
	size_t messages = 0, handled = 0, idle = 0;
	uint64_t bytes = 0;

	while (idle < s->nr_endpoints && messages < BATCH_REQUESTS && bytes < BATCH_BYTES &&
	       may_take(s)) {
		size_t n = s->turn;

		s->turn = (n + 1) % s->nr_endpoints;
		if (net_parts_recv(s->endpoints[n].socket, PROTO_MAX_FRAMES + PART_PAYLOAD,
				   &parts)) {
			idle++;
			continue;
		}
		idle = 0;
		messages++;
		bytes += parts.bytes;
		handled += handle_message(s, n, &parts);
		net_parts_clear(&parts);
	}
	net_parts_free(&parts);
	if (handled && s->ops->batch_end)
		s->ops->batch_end(s->ctx);
}

/* ---- the loop ---- */

static long until_ms(uint64_t at)
{
	uint64_t now;

	if (at == UINT64_MAX)
		return -1;
	now = clock_mono_ns();
	return now >= at ? 0 : (long)((at - now + 999999) / 1000000);
}

static uint64_t after_tick(const struct net_server *s)
{
	if (!s->ops->tick || s->tick_ms <= 0)
		return UINT64_MAX;
	return clock_mono_ns() + (uint64_t)s->tick_ms * 1000000;
}

/* Returns true when the server is to stop. */
static bool turn(struct net_server *s, zmq_pollitem_t *items)
{
	size_t nr_watches = s->nr_watches;
	uint64_t count;

	if (items[0].revents) {
		if (read(s->stop_fd, &count, sizeof(count)) == sizeof(count))
			return true;
	}
	for (size_t i = 0; i < nr_watches; i++)
		if (items[1 + i].revents)
			s->watches[i].ready(s->watches[i].arg);
	if (may_take(s))
		batch(s);
	serve_room(s);
	return false;
}

int net_server_run(struct net_server *s, struct error *err)
{
	zmq_pollitem_t items[1 + MAX_WATCHES + MAX_ENDPOINTS];
	uint64_t next_tick = after_tick(s);

	for (;;) {
		size_t n = 0;

		/* Handlers may watch and bind more. */
		items[n++] = (zmq_pollitem_t){ .fd = s->stop_fd, .events = ZMQ_POLLIN };
		for (size_t i = 0; i < s->nr_watches; i++)
			items[n++] = (zmq_pollitem_t){ .fd = s->watches[i].fd,
						       .events = ZMQ_POLLIN };
		for (size_t i = 0; may_take(s) && i < s->nr_endpoints; i++)
			items[n++] = (zmq_pollitem_t){ .socket = s->endpoints[i].socket,
						       .events = ZMQ_POLLIN };
		if (zmq_poll(items, n, until_ms(MIN(next_tick, room_due(&s->room)))) < 0) {
			if (errno == EINTR)
				continue;
			return error_set(err, -errno, "waiting for requests failed: %s",
					 zmq_strerror(errno));
		}
		if (turn(s, items))
			return 0;
		if (!until_ms(next_tick)) {
			s->ops->tick(s->ctx);
			next_tick = after_tick(s);
		}
	}
}

void net_server_stop(struct net_server *s)
{
	const uint64_t one = 1;
	int saved = errno;

	/* Only fails when it is readable already. Signal handlers keep errno. */
	if (write(s->stop_fd, &one, sizeof(one)) < 0)
		errno = saved;
}

/* ---- open, bind, close ---- */

struct net_server *net_server_new(struct net_ctx *net, const char *role, const uint8_t cluster[16],
				  const struct net_server_ops *ops, void *ctx, int tick_ms,
				  struct error *err)
{
	struct net_server *s = calloc(1, sizeof(*s));

	if (!s)
		goto out_of_memory;
	s->net = net;
	s->ops = ops;
	s->ctx = ctx;
	s->tick_ms = tick_ms > 0 ? tick_ms : 0;
	LIST_INIT(&s->requests);
	peer_table_init(&s->peers);
	room_init(&s->room, ops->room);
	if (cluster)
		net_server_set_cluster(s, cluster);
	s->role = strdup(role);
	s->sum = peer_sum_new();
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!s->role || !s->sum || s->stop_fd < 0)
		goto free_server;
	return s;

free_server:
	net_server_free(s);
out_of_memory:
	error_set(err, -ENOMEM, "cannot start a server: %s", strerror(errno));
	return NULL;
}

/* Closing is libzmq's business, on its own threads and in its own time. Wait for it: else the
 * next server could not have the address, or would lose its ipc socket's file to our closing. (An
 * unbind before would be worse: see NET_LINGER_MS.) */
static void close_endpoint(struct net_server *s, struct endpoint *e)
{
	const int linger = 0;
	char address[64];
	zmq_pollitem_t item = { .events = ZMQ_POLLIN };

	net_inproc_name(s->net, address);
	if (!zmq_socket_monitor(e->socket, address, ZMQ_EVENT_MONITOR_STOPPED)) {
		item.socket = zmq_socket(s->net->zmq, ZMQ_PAIR);
		if (item.socket) {
			zmq_setsockopt(item.socket, ZMQ_LINGER, &linger, sizeof(linger));
			zmq_connect(item.socket, address);
		}
	}
	zmq_close(e->socket);
	if (item.socket) {
		while (zmq_poll(&item, 1, CLOSE_MS) < 0 && errno == EINTR)
			;
		zmq_close(item.socket);
	}
}

void net_server_free(struct net_server *s)
{
	struct net_request *req;

	if (!s)
		return;
	while ((req = LIST_FIRST(&s->requests)))
		request_free(req);
	for (size_t i = 0; i < s->nr_endpoints; i++)
		close_endpoint(s, &s->endpoints[i]);
	room_free(&s->room);
	peer_table_free(&s->peers);
	peer_sum_put(s->sum);
	if (s->stop_fd >= 0)
		close(s->stop_fd);
	free(s->role);
	free(s);
}

void net_server_set_cluster(struct net_server *s, const uint8_t cluster[16])
{
	memcpy(s->cluster, cluster, sizeof(s->cluster));
}

static int set_keys(struct net_server *s, void *socket, const char *endpoint, struct error *err)
{
	const int yes = 1;

	if (!s->net->has_key) {
		if (net_endpoint_is_loopback(endpoint))
			return 0;
		return error_set(err, -EACCES,
				 "%s: without keys only 127.0.0.0/8 and ::1 may be served; set "
				 "[curve] secret and clients in the configuration",
				 endpoint);
	}
	if (!s->net->zap)
		return error_set(err, -EACCES,
				 "%s: nobody may connect; set [curve] clients in the configuration",
				 endpoint);
	if (zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof(yes)) ||
	    zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, s->net->secret_key, 32) ||
	    zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, "vmdedup", 7))
		return error_set(err, -errno, "%s: cannot use CURVE: %s", endpoint,
				 zmq_strerror(errno));
	return 0;
}

static int bind_socket(struct endpoint *e, const char *endpoint, struct error *err)
{
	size_t len = sizeof(e->bound);
	const int yes = 1, no_limit = 0, ahead = NET_SERVER_RCVHWM;
	int r;

	r = net_socket_init(e->socket, endpoint, e->transport);
	/* Where a queue is full, a ROUTER throws replies away, and one that was thrown away is
	 * waited for. What may wait for a peer is bounded in bytes, before a request is taken. */
	if (!r && (zmq_setsockopt(e->socket, ZMQ_ROUTER_MANDATORY, &yes, sizeof(yes)) ||
		   zmq_setsockopt(e->socket, ZMQ_SNDHWM, &no_limit, sizeof(no_limit)) ||
		   zmq_setsockopt(e->socket, ZMQ_RCVHWM, &ahead, sizeof(ahead))))
		r = -errno;
	if (!r && zmq_bind(e->socket, endpoint))
		r = -errno;
	if (!r && zmq_getsockopt(e->socket, ZMQ_LAST_ENDPOINT, e->bound, &len))
		r = -errno;
	/* Plain, so for its owner alone. Until now the folder's permissions protected it. */
	if (!r && e->transport == NET_IPC && chmod(endpoint + strlen("ipc://"), 0600))
		r = -errno;
	if (r)
		error_set(err, r, "cannot listen on %s: %s", endpoint, zmq_strerror(-r));
	return r;
}

int net_server_bind(struct net_server *s, const char *endpoint, struct error *err)
{
	struct endpoint *e = &s->endpoints[s->nr_endpoints];
	int r;

	if (s->nr_endpoints == MAX_ENDPOINTS)
		return error_set(err, -ENOSPC, "%s: a server has at most %d endpoints", endpoint,
				 MAX_ENDPOINTS);
	r = net_endpoint_transport(endpoint, &e->transport, err);
	if (r)
		return r;
	e->socket = zmq_socket(s->net->zmq, ZMQ_ROUTER);
	if (!e->socket)
		return error_set(err, -errno, "%s: cannot open a socket: %s", endpoint,
				 zmq_strerror(errno));
	r = e->transport == NET_TCP ? set_keys(s, e->socket, endpoint, err) : 0;
	if (!r)
		r = bind_socket(e, endpoint, err);
	if (r) {
		zmq_close(e->socket);
		return r;
	}
	s->nr_endpoints++;
	return 0;
}

const char *net_server_endpoint(struct net_server *s, size_t n)
{
	return n < s->nr_endpoints ? s->endpoints[n].bound : NULL;
}

int net_server_watch(struct net_server *s, int fd, void (*ready)(void *arg), void *arg)
{
	if (s->nr_watches == MAX_WATCHES)
		return -ENOSPC;
	s->watches[s->nr_watches++] = (struct watched){ fd, ready, arg };
	return 0;
}

void net_server_stats(const struct net_server *s, struct net_server_stats *stats)
{
	*stats = s->stats;
	stats->peers = s->peers.nr;
}
