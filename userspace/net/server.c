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

#include "base/clock.h"
#include "base/log.h"
#include "net/internal.h"
#include "net/peer.h"
#include "proto/limits.h"

#define MAX_ENDPOINTS	16
#define MAX_WATCHES	64
#define BATCH_REQUESTS	256
#define BATCH_BYTES	(64U << 20)
#define WAITING_MAX	4096
#define WAITING_BYTES	(512ULL << 20)
#define CLOSE_MS	2000
#define SUPPORTED_FEATURES 0

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
	struct request_list requests; /* not replied to */
	uint64_t waiting_bytes;
	struct net_server_stats stats;
};

struct net_request {
	LIST_ENTRY(net_request) link;
	struct net_server *server;
	struct peer *peer;
	uint64_t id;
	Vmdedup__Request *header;
	struct net_parts parts; /* routing id, header, payload */
};

enum { PART_PEER, PART_HEADER, PART_PAYLOAD };

/* ---- sending ---- */

/* A part of a reply on its way to a peer that may be slow: counted until ZeroMQ is done with it. */
struct out_part {
	struct peer *peer;
	size_t cost;
	struct net_frame frame;
	uint8_t copy[];
};

static void out_part_done(void *data, void *hint)
{
	struct out_part *out = hint;

	if (out->frame.free_fn)
		out->frame.free_fn(data, out->frame.hint);
	atomic_fetch_sub_explicit(&out->peer->queued, out->cost, memory_order_relaxed);
	atomic_fetch_sub_explicit(&out->peer->parts, 1, memory_order_relaxed);
	peer_put(out->peer);
	free(out);
}

/* With @room for bytes of its own, in ->copy. */
static struct out_part *out_part_new(struct peer *peer, size_t len, size_t room)
{
	struct out_part *out = malloc(sizeof(*out) + room);

	if (!out)
		return NULL;
	out->peer = peer_get(peer);
	out->cost = len + sizeof(*out) + sizeof(zmq_msg_t);
	memset(&out->frame, 0, sizeof(out->frame));
	atomic_fetch_add_explicit(&peer->queued, out->cost, memory_order_relaxed);
	atomic_fetch_add_explicit(&peer->parts, 1, memory_order_relaxed);
	return out;
}

static int out_part_msg(struct out_part *out, void *data, size_t len, zmq_msg_t *msg)
{
	if (!zmq_msg_init_data(msg, data, len, out_part_done, out))
		return 0;
	out_part_done(data, out);
	return -ENOMEM;
}

static int frame_msg(struct peer *peer, const struct net_frame *frame, zmq_msg_t *msg)
{
	struct out_part *out = out_part_new(peer, frame->len, frame->free_fn ? 0 : frame->len);

	if (!out) {
		net_frames_drop(frame, 1);
		return -ENOMEM;
	}
	if (frame->free_fn) {
		out->frame = *frame;
		return out_part_msg(out, (void *)frame->data, frame->len, msg);
	}
	if (frame->len)
		memcpy(out->copy, frame->data, frame->len);
	return out_part_msg(out, out->copy, frame->len, msg);
}

static int header_msg(struct peer *peer, const Vmdedup__Reply *reply, zmq_msg_t *msg)
{
	size_t len = vmdedup__reply__get_packed_size(reply);
	struct out_part *out;

	if (len > PROTO_MAX_HEADER)
		return -EMSGSIZE;
	out = out_part_new(peer, len, len);
	if (!out)
		return -ENOMEM;
	vmdedup__reply__pack(reply, out->copy);
	return out_part_msg(out, out->copy, len, msg);
}

/* Sends, or drops, a packed header and its frames; takes both over. After the first part ZeroMQ
 * takes the others without a wait, and drops them itself when the peer goes meanwhile. */
static int send_message(struct net_server *s, struct peer *peer, zmq_msg_t *header,
			const struct net_frame *frames, size_t nr)
{
	void *socket = s->endpoints[peer->socket].socket;
	zmq_msg_t msg;
	int r = -ENOMEM;

	if (!zmq_msg_init_size(&msg, peer->id_len)) {
		memcpy(zmq_msg_data(&msg), peer->id, peer->id_len);
		r = net_send_part(socket, &msg, true);
	}
	if (r) {
		zmq_msg_close(header);
		net_frames_drop(frames, nr);
		return r;
	}
	r = net_send_part(socket, header, nr);
	for (size_t i = 0; i < nr; i++) {
		bool more = i + 1 < nr;

		/* A frame that cannot be made leaves a hole that the peer's decoder refuses: a
		 * message that has begun cannot be taken back. */
		if (r) {
			net_frames_drop(&frames[i], 1);
			continue;
		}
		r = frame_msg(peer, &frames[i], &msg);
		if (r)
			zmq_msg_init(&msg);
		if (net_send_part(socket, &msg, more && !r))
			r = r ?: -EPIPE;
	}
	return r;
}

/* Packs and sends to @peer; the id is the request's. */
static void send_reply(struct net_server *s, struct peer *peer, uint64_t id, Vmdedup__Reply *reply,
		       const struct net_frame *frames, size_t nr)
{
	Vmdedup__Reply refusal = VMDEDUP__REPLY__INIT;
	struct error err = { 0 };
	zmq_msg_t header;
	int r;

	reply->id = id;
	reply->payload_frames = nr;
	r = net_check_frames(frames, nr, &err);
	if (!r) {
		r = header_msg(peer, reply, &header);
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
		if (header_msg(peer, &refusal, &header)) {
			s->stats.lost++;
			return;
		}
	}
	r = send_message(s, peer, &header, frames, nr);
	if (r) {
		s->stats.lost++;
		log_debug("an answer to %s is lost: %s", peer->text, zmq_strerror(-r));
	}
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
	if (req->header)
		vmdedup__request__free_unpacked(req->header, NULL);
	net_parts_free(&req->parts);
	peer_put(req->peer);
	free(req);
}

void net_reply_send(struct net_request *req, Vmdedup__Reply *reply, const struct net_frame *frames,
		    size_t nr_frames)
{
	send_reply(req->server, req->peer, req->id, reply, frames, nr_frames);
	request_free(req);
}

void net_reply_error(struct net_request *req, int positive_errno, const char *fmt, ...)
{
	char text[ERROR_TEXT_SIZE];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	send_error(req->server, req->peer, req->id, positive_errno, text, false);
	request_free(req);
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
	p->has_key = key && strlen(key) == 40 && zmq_z85_decode(p->key, key);
}

/* Answers a HELLO; a peer that may stay has said it from then on. */
static void handle_hello(struct net_server *s, struct peer *peer, const Vmdedup__Request *req,
			 zmq_msg_t *msg)
{
	Vmdedup__HelloReply hello = VMDEDUP__HELLO_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint32_t version = req->hello->version;

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
	hello.version = version < PROTO_VERSION ? version : PROTO_VERSION;
	hello.features = req->hello->features & SUPPORTED_FEATURES;
	hello.role = s->role;
	hello.cluster.data = s->cluster;
	hello.cluster.len = sizeof(s->cluster);
	reply.body_case = VMDEDUP__REPLY__BODY_HELLO;
	reply.hello = &hello;
	send_reply(s, peer, req->id, &reply, NULL, 0);
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
	if (!peer || !id || peer_is_slow(s, peer, UINT64_MAX, NET_MAX_PEER_ERRORS)) {
		s->stats.dropped++;
	} else if (r) {
		s->stats.refused++;
		log_debug("refused a message of %s: %s", peer->text, err.text);
		send_error(s, peer, id, -r, err.text, false);
	} else if (req->body_case == VMDEDUP__REQUEST__BODY_HELLO) {
		handle_hello(s, peer, req, &parts->msgs[PART_HEADER]);
	} else if (!peer->said_hello) {
		s->stats.refused++;
		send_error(s, peer, id, ENOTCONN, "say HELLO first", true);
	} else if (peer_is_slow(s, peer, NET_MAX_PEER_QUEUED, NET_MAX_PEER_PARTS)) {
		s->stats.refused++;
		send_error(s, peer, id, EBUSY,
			   "too many answers wait to be read by this client", false);
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

static long until_tick_ms(const struct net_server *s, uint64_t next_tick)
{
	uint64_t now;

	if (!s->ops->tick || s->tick_ms <= 0)
		return -1;
	now = clock_mono_ns();
	return now >= next_tick ? 0 : (long)((next_tick - now + 999999) / 1000000);
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
	return false;
}

int net_server_run(struct net_server *s, struct error *err)
{
	zmq_pollitem_t items[1 + MAX_WATCHES + MAX_ENDPOINTS];
	uint64_t next_tick = clock_mono_ns() + (uint64_t)s->tick_ms * 1000000;

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
		if (zmq_poll(items, n, until_tick_ms(s, next_tick)) < 0) {
			if (errno == EINTR)
				continue;
			return error_set(err, -errno, "waiting for requests failed: %s",
					 zmq_strerror(errno));
		}
		if (turn(s, items))
			return 0;
		if (!until_tick_ms(s, next_tick)) {
			s->ops->tick(s->ctx);
			next_tick = clock_mono_ns() + (uint64_t)s->tick_ms * 1000000;
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
	if (cluster)
		net_server_set_cluster(s, cluster);
	s->role = strdup(role);
	s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!s->role || s->stop_fd < 0)
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
	peer_table_free(&s->peers);
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
