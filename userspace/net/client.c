// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A client: requests by id, in flight on one DEALER socket.
 *
 * The socket's monitor tells of each new connection. Everything that had been sent before then
 * is sent again behind a new HELLO: every operation may be repeated, and a server that was
 * restarted knows nothing of what it had been asked. ZMQ_IMMEDIATE keeps libzmq from queueing
 * for a connection that is not there, so what a new connection carries is what we sent on it.
 * Should a server not know us all the same (it forgets the peers that were silent for longest),
 * it answers ENOTCONN with an empty HelloReply, and that request is said again after a HELLO.
 *
 * libzmq connects again by itself after a connection has ended, but never after a handshake was
 * refused or the other side sent what is not ZMTP. It does not say which, so a connection that
 * has not come back after a while is replaced.
 *
 * A call with payload is held until the server has room for it (net/room.h); those without pass it.
 * What was given to a connection that has ended is void.
 *
 * inproc:// has no monitor's events and no reconnection: it is connected from the start.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "net/calls.h"
#include "net/internal.h"
#include "proto/limits.h"

#define MAX_CALLS	  16384
#define RUN_BATCH	  256 /* replies handled before the owner gets its thread back */
#define RECONNECT_MS	  50 /* libzmq's own */
#define RECONNECT_MAX_MS  2000
#define RETRY_MIN_MS	  300 /* ours, when libzmq has given up */
#define RETRY_MAX_MS	  2400
#define MONITOR_EVENTS                                                                             \
	(ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |                                  \
	 ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |              \
	 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)

struct net_client {
	char *endpoint;
	char *role;
	enum net_transport transport;
	void *socket;
	void *monitor;
	int epoll_fd; /* of the sockets and the kick: what net_client_fd() gives */
	int kick_fd;  /* there is something to do that the sockets' own fds no longer tell */
	struct calls calls;
	uint64_t last_id;
	uint64_t hello_id; /* of the HELLO that is not answered yet, or 0 */
	bool connected, hello_said, closing;
	bool asks;	    /* for room before it sends payload, if the server gives some */
	bool gives;	    /* the server does */
	uint64_t room, room_until; /* bytes that may be sent */
	uint64_t ask_id, asked_ns; /* a question for room that is not answered, or 0 */
	bool broken;	     /* there was a connection, or nearly, and it has ended */
	unsigned int retries; /* since the last HELLO that was answered */
	uint64_t retry_at;
	char trouble[256]; /* why there is no connection, as far as known */
};

/* ---- sending ---- */

static int send_parts(struct net_client *c, zmq_msg_t *msgs, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		zmq_msg_t copy;
		int r;

		/* A reference, not the bytes: the original stays for sending it again. */
		zmq_msg_init(&copy);
		zmq_msg_copy(&copy, &msgs[i]);
		r = net_send_part(c->socket, &copy, i + 1 < nr);
		if (r)
			return r;
	}
	return 0;
}

static int send_header(struct net_client *c, const Vmdedup__Request *req)
{
	zmq_msg_t msg;
	int r = net_pack(&req->base, &msg);

	if (r)
		return r;
	r = send_parts(c, &msg, 1);
	zmq_msg_close(&msg);
	return r;
}

static uint64_t payload_of(const struct call_list *list)
{
	const struct call *call;
	uint64_t bytes = 0;

	TAILQ_FOREACH(call, list, link)
		bytes += call->payload;
	return bytes;
}

static int say_hello(struct net_client *c)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Hello hello = VMDEDUP__HELLO__INIT;
	char name[128] = "";
	int r;

	if (gethostname(name, sizeof(name) - 16))
		strcpy(name, "?");
	sprintf(name + strlen(name), "/%d", getpid());
	hello.version = PROTO_VERSION;
	hello.role = c->role;
	hello.name = name;
	if (c->asks) {
		hello.features = NET_FEATURE_ROOM;
		hello.room = payload_of(&c->calls.waiting) + payload_of(&c->calls.held);
	}
	req.id = c->last_id + 1;
	req.body_case = VMDEDUP__REQUEST__BODY_HELLO;
	req.hello = &hello;
	r = send_header(c, &req);
	if (r)
		return r;
	c->hello_id = ++c->last_id;
	c->hello_said = true;
	c->room = c->ask_id = 0;
	return 0;
}

static bool has_room(const struct net_client *c, const struct call *call)
{
	if (!call->payload || !c->asks)
		return true;
	if (c->hello_id)
		return false; /* whether the server gives room is not known yet */
	return !c->gives || (call->payload <= c->room && clock_mono_ns() < c->room_until);
}

/* For what is held, if it is not asked for already. */
static void ask_room(struct net_client *c)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Room room = VMDEDUP__ROOM__INIT;
	uint64_t now = clock_mono_ns();

	if (c->hello_id || TAILQ_EMPTY(&c->calls.held) ||
	    (c->ask_id && now < c->asked_ns + NET_ROOM_AGAIN_NS))
		return;
	room.least = TAILQ_FIRST(&c->calls.held)->payload;
	room.bytes = payload_of(&c->calls.held);
	req.id = c->last_id + 1;
	req.body_case = VMDEDUP__REQUEST__BODY_ROOM;
	req.room = &room;
	/* Should the socket be full, it is asked for when it is not. */
	if (send_header(c, &req))
		return;
	c->ask_id = ++c->last_id;
	c->asked_ns = now;
}

static void take_room(struct net_client *c, const Vmdedup__Reply *reply)
{
	uint64_t now = clock_mono_ns();

	if (reply->id == c->ask_id && !reply->error)
		c->ask_id = 0;
	if (!reply->room)
		return;
	if (now >= c->room_until)
		c->room = 0;
	c->room += reply->room;
	c->room_until = now + NET_ROOM_USE_NS;
}

/* False: the socket takes no more. */
static bool send_call(struct net_client *c, struct call *call)
{
	int r = send_parts(c, call->msgs, call->nr);

	if (r == -EAGAIN)
		return false;
	if (!r)
		c->room -= MIN(c->room, call->payload);
	call->result = r;
	calls_move(&c->calls, call, r ? CALL_FAILED : CALL_SENT);
	return true;
}

/* Send what waits, as far as the socket takes it. */
static void flush(struct net_client *c)
{
	struct call *call;

	if (!c->connected || (TAILQ_EMPTY(&c->calls.waiting) && TAILQ_EMPTY(&c->calls.held)))
		return;
	if (!c->hello_said && say_hello(c))
		return;
	while ((call = TAILQ_FIRST(&c->calls.held)) && has_room(c, call))
		if (!send_call(c, call))
			return;
	while ((call = TAILQ_FIRST(&c->calls.waiting))) {
		if (call->payload && (!TAILQ_EMPTY(&c->calls.held) || !has_room(c, call)))
			calls_move(&c->calls, call, CALL_HELD);
		else if (!send_call(c, call))
			return;
	}
	ask_room(c);
}

static void kick(struct net_client *c)
{
	uint64_t one = 1;

	/* Only fails when it is readable already. */
	if (write(c->kick_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_error("cannot wake a client's thread: %s", strerror(errno));
}

static bool has_event(void *socket, int events)
{
	int is = 0;
	size_t len = sizeof(is);

	return !zmq_getsockopt(socket, ZMQ_EVENTS, &is, &len) && (is & events);
}

static bool reconnect_is_due(const struct net_client *c)
{
	return c->broken && c->calls.pending && clock_mono_ns() >= c->retry_at;
}

/* libzmq's fds tell of changes only: whoever looked at a socket must see to what is left. */
static bool has_work(struct net_client *c)
{
	const struct call *held = TAILQ_FIRST(&c->calls.held);
	int events = ZMQ_POLLIN;

	if (c->connected && (!TAILQ_EMPTY(&c->calls.waiting) || (held && has_room(c, held))))
		events |= ZMQ_POLLOUT;
	return !TAILQ_EMPTY(&c->calls.failed) || reconnect_is_due(c) || has_event(c->socket, events) ||
	       (c->monitor && has_event(c->monitor, ZMQ_POLLIN));
}

int net_client_submit(struct net_client *c, Vmdedup__Request *req, const struct net_frame *frames,
		      size_t nr_frames, int timeout_ms, net_done_fn done, void *arg)
{
	struct call *call;
	struct error err = { 0 };

	if (c->closing) {
		net_frames_drop(frames, nr_frames);
		return -ECANCELED;
	}
	call = malloc(sizeof(*call) + (nr_frames + 1) * sizeof(call->msgs[0]));
	if (!call) {
		net_frames_drop(frames, nr_frames);
		return -ENOMEM;
	}
	call->id = ++c->last_id;
	call->done = done;
	call->arg = arg;
	call->nr = 0;
	call->payload = 0;
	call->deadline = timeout_ms < 0 ? UINT64_MAX :
					  clock_mono_ns() + (uint64_t)timeout_ms * 1000000;
	req->id = call->id;
	req->payload_frames = nr_frames;
	call->result = net_check_frames(frames, nr_frames, &err);
	if (!call->result && c->calls.pending >= MAX_CALLS)
		call->result = -EAGAIN;
	if (!call->result)
		call->result = net_pack(&req->base, &call->msgs[0]);
	if (call->result) {
		net_frames_drop(frames, nr_frames);
	} else {
		call->nr = 1;
		for (size_t i = 0; i < nr_frames; i++) {
			int r = net_frame_to_msg(&frames[i], &call->msgs[call->nr]);

			call->payload += frames[i].len;
			if (r)
				call->result = r;
			else
				call->nr++;
		}
	}
	call->state = call->result ? CALL_FAILED : CALL_WAITING;
	calls_insert(&c->calls, call);
	flush(c);
	if (has_work(c))
		kick(c);
	return 0;
}

/* ---- receiving ---- */

static void handle_hello_reply(struct net_client *c, const Vmdedup__Reply *reply)
{
	c->hello_id = 0;
	if (!reply->error) {
		c->gives = reply->hello && reply->hello->features & NET_FEATURE_ROOM;
		c->trouble[0] = '\0';
		c->retries = 0;
		return;
	}
	snprintf(c->trouble, sizeof(c->trouble), "it refused this client: %s", reply->error_text);
	log_error("%s %s", c->endpoint, c->trouble);
	c->hello_said = false;
	calls_fail_all(&c->calls, -EPROTO);
}

/* True: the server does not know us (any more), and the call will be sent again. */
static bool must_say_hello(struct net_client *c, struct call *call, const Vmdedup__Reply *reply)
{
	if (reply->error != ENOTCONN || reply->body_case != VMDEDUP__REPLY__BODY_HELLO)
		return false;
	c->hello_said = false;
	c->room = c->ask_id = 0;
	if (call && call->state == CALL_SENT)
		calls_move(&c->calls, call, CALL_WAITING);
	return true;
}

/* Returns true when a call has ended. */
static bool handle_message(struct net_client *c, struct net_parts *parts)
{
	uint64_t id = net_peek_id(zmq_msg_data(&parts->msgs[0]), zmq_msg_size(&parts->msgs[0]));
	struct error err = { 0 };
	struct net_reply *in;
	struct call *call;
	int r;

	r = net_reply_new(parts, &in, &err);
	if (r) {
		call = calls_find(&c->calls, id);
		log_warn("an answer of %s is refused: %s", c->endpoint, err.text);
		if (call)
			calls_end(&c->calls, call, r == -ENOMEM ? r : -EPROTO, NULL);
		return call;
	}
	id = in->header->id;
	call = calls_find(&c->calls, id);
	take_room(c, in->header);
	if (id && id == c->hello_id)
		handle_hello_reply(c, in->header);
	else if (!must_say_hello(c, call, in->header) && call) {
		calls_end(&c->calls, call, 0, in);
		return true;
	}
	/* Also late answers to what timed out, and second answers to what was sent again. */
	net_reply_free(in);
	return false;
}

static size_t receive(struct net_client *c)
{
	struct net_parts parts = { 0 };
	size_t ended = 0;

	for (size_t i = 0; i < RUN_BATCH; i++) {
		if (net_parts_recv(c->socket, PROTO_MAX_FRAMES + 2, &parts))
			break;
		ended += handle_message(c, &parts);
	}
	net_parts_free(&parts);
	return ended;
}

static void connection_ended(struct net_client *c)
{
	unsigned int ms = RETRY_MIN_MS << c->retries;

	c->connected = false;
	if (c->broken)
		return;
	c->broken = true;
	c->retry_at = clock_mono_ns() + (uint64_t)ms * 1000000;
	if (ms < RETRY_MAX_MS)
		c->retries++;
}

static void reconnect(struct net_client *c)
{
	if (!reconnect_is_due(c))
		return;
	c->broken = false;
	/* Fails when libzmq has dropped it already. */
	zmq_disconnect(c->socket, c->endpoint);
	if (zmq_connect(c->socket, c->endpoint)) {
		snprintf(c->trouble, sizeof(c->trouble), "cannot connect: %s", zmq_strerror(errno));
		connection_ended(c);
	}
}

static void handle_event(struct net_client *c, uint16_t event, uint32_t value)
{
	switch (event) {
	case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
		/* This connection has carried nothing yet. */
		calls_send_again(&c->calls);
		c->hello_said = false;
		c->hello_id = 0;
		c->connected = true;
		c->broken = false;
		return;
	case ZMQ_EVENT_DISCONNECTED:
		break;
	case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
		snprintf(c->trouble, sizeof(c->trouble),
			 "it refused this host's key (status %u): is the public key in the folder "
			 "of [curve] clients there?",
			 value);
		break;
	default:
		snprintf(c->trouble, sizeof(c->trouble),
			 "the handshake failed: does the server speak CURVE, with the public key "
			 "that [curve] servers names?");
	}
	connection_ended(c);
}

static void handle_monitor(struct net_client *c)
{
	struct net_parts parts = { 0 };

	if (!c->monitor)
		return;
	while (!net_parts_recv(c->monitor, 2, &parts)) {
		uint16_t event;
		uint32_t value;

		if (parts.nr && zmq_msg_size(&parts.msgs[0]) == sizeof(event) + sizeof(value)) {
			const uint8_t *p = zmq_msg_data(&parts.msgs[0]);

			memcpy(&event, p, sizeof(event));
			memcpy(&value, p + sizeof(event), sizeof(value));
			handle_event(c, event, value);
		}
		net_parts_clear(&parts);
	}
	net_parts_free(&parts);
}

/* ---- time ---- */

int net_client_next_timeout_ms(struct net_client *c)
{
	uint64_t next = c->calls.next_deadline, now, ms;

	if (!TAILQ_EMPTY(&c->calls.failed))
		return 0;
	if (c->broken && c->retry_at < next)
		next = c->retry_at;
	if (c->ask_id && !TAILQ_EMPTY(&c->calls.held))
		next = MIN(next, c->asked_ns + NET_ROOM_AGAIN_NS);
	if (!c->calls.pending || next == UINT64_MAX)
		return -1;
	now = clock_mono_ns();
	if (now >= next)
		return 0;
	ms = (next - now + 999999) / 1000000;
	return ms < INT32_MAX ? (int)ms : INT32_MAX;
}

/* ---- running ---- */

/* One turn without waiting. Returns how many calls have ended. */
static size_t turn(struct net_client *c)
{
	struct call *call;
	uint64_t kicks;
	size_t ended;

	if (read(c->kick_fd, &kicks, sizeof(kicks)) < 0 && errno != EAGAIN)
		log_error("cannot read a client's event counter: %s", strerror(errno));
	handle_monitor(c);
	reconnect(c);
	ended = receive(c);
	calls_expire(&c->calls, clock_mono_ns());
	flush(c);
	/* Only those that are there now: a callback may submit the next one that cannot be sent. */
	for (size_t n = c->calls.pending; n && (call = TAILQ_FIRST(&c->calls.failed)); n--, ended++)
		calls_end(&c->calls, call, call->result, NULL);
	if (has_work(c))
		kick(c);
	return ended;
}

int net_client_run(struct net_client *c, int max_ms)
{
	uint64_t end = max_ms < 0 ? UINT64_MAX : clock_mono_ns() + (uint64_t)max_ms * 1000000;

	for (;;) {
		int wait, next;
		uint64_t now;
		struct epoll_event event;

		if (turn(c) || !max_ms || (max_ms < 0 && !c->calls.pending))
			return 0;
		now = clock_mono_ns();
		if (now >= end)
			return 0;
		next = net_client_next_timeout_ms(c);
		wait = end == UINT64_MAX ? -1 : (int)((end - now + 999999) / 1000000);
		if (next >= 0 && (wait < 0 || next < wait))
			wait = next;
		if (epoll_wait(c->epoll_fd, &event, 1, wait) < 0)
			return -errno;
	}
}

int net_client_fd(struct net_client *c)
{
	return c->epoll_fd;
}

bool net_client_is_connected(const struct net_client *c)
{
	return c->connected;
}

void net_client_need_no_room(struct net_client *c)
{
	c->asks = false;
}

size_t net_client_pending(struct net_client *c)
{
	return c->calls.pending;
}

/* ---- open, close ---- */

static int set_keys(struct net_ctx *ctx, struct net_client *c, const uint8_t *server_key,
		    struct error *err)
{
	if (c->transport != NET_TCP)
		return 0;
	if (!ctx->has_key && !server_key) {
		if (net_endpoint_is_loopback(c->endpoint))
			return 0;
		return error_set(err, -EACCES,
				 "%s: without keys only 127.0.0.0/8 and ::1 may be used; set "
				 "[curve] secret and servers in the configuration",
				 c->endpoint);
	}
	if (!ctx->has_key)
		return error_set(err, -EACCES,
				 "%s: the server has a key and this host has none; set [curve] "
				 "secret in the configuration",
				 c->endpoint);
	if (!server_key)
		return error_set(err, -EACCES,
				 "%s: the server's public key is not known; set [curve] servers "
				 "in the configuration",
				 c->endpoint);
	if (zmq_setsockopt(c->socket, ZMQ_CURVE_SERVERKEY, server_key, 32) ||
	    zmq_setsockopt(c->socket, ZMQ_CURVE_PUBLICKEY, ctx->public_key, 32) ||
	    zmq_setsockopt(c->socket, ZMQ_CURVE_SECRETKEY, ctx->secret_key, 32))
		return error_set(err, -errno, "%s: cannot use CURVE: %s", c->endpoint,
				 zmq_strerror(errno));
	return 0;
}

static int watch(struct net_client *c, void *socket, int fd)
{
	struct epoll_event event = { .events = EPOLLIN };
	size_t len = sizeof(fd);

	if (socket && zmq_getsockopt(socket, ZMQ_FD, &fd, &len))
		return -errno;
	return epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int open_monitor(struct net_ctx *ctx, struct net_client *c)
{
	const int no_limit = 0, linger = 0;
	char address[64];

	if (c->transport == NET_INPROC) {
		c->connected = true;
		return 0;
	}
	net_inproc_name(ctx, address);
	if (zmq_socket_monitor(c->socket, address, MONITOR_EVENTS))
		return -errno;
	c->monitor = zmq_socket(ctx->zmq, ZMQ_PAIR);
	/* libzmq's own thread would wait for room: there must always be some. The events that are
	 * asked for come at most a few a second, and only while a server answers. */
	if (!c->monitor ||
	    zmq_setsockopt(c->monitor, ZMQ_RCVHWM, &no_limit, sizeof(no_limit)) ||
	    zmq_setsockopt(c->monitor, ZMQ_LINGER, &linger, sizeof(linger)) ||
	    zmq_connect(c->monitor, address))
		return -errno;
	return watch(c, c->monitor, -1);
}

static int open_socket(struct net_ctx *ctx, struct net_client *c, const uint8_t *server_key,
		       struct error *err)
{
	const int immediate = 1, ivl = RECONNECT_MS, ivl_max = RECONNECT_MAX_MS;
	int r;

	c->socket = zmq_socket(ctx->zmq, ZMQ_DEALER);
	if (!c->socket)
		return error_set(err, -errno, "cannot open a socket: %s", zmq_strerror(errno));
	r = net_socket_init(c->socket, c->endpoint, c->transport);
	if (!r && (zmq_setsockopt(c->socket, ZMQ_IMMEDIATE, &immediate, sizeof(immediate)) ||
		   zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL, &ivl, sizeof(ivl)) ||
		   zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL_MAX, &ivl_max, sizeof(ivl_max))))
		r = -errno;
	if (!r) {
		r = set_keys(ctx, c, server_key, err);
		if (r)
			return r;
	}
	r = r ?: open_monitor(ctx, c);
	r = r ?: watch(c, c->socket, -1);
	r = r ?: watch(c, NULL, c->kick_fd);
	if (!r && zmq_connect(c->socket, c->endpoint))
		r = -errno;
	if (r)
		error_set(err, r, "cannot connect to %s: %s", c->endpoint, zmq_strerror(-r));
	return r;
}

struct net_client *net_client_new(struct net_ctx *ctx, const char *endpoint,
				  const uint8_t *server_key, const char *role, struct error *err)
{
	struct net_client *c = calloc(1, sizeof(*c));

	if (!c)
		goto out_of_memory;
	calls_init(&c->calls);
	c->endpoint = strdup(endpoint);
	c->role = strdup(role);
	c->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!c->endpoint || !c->role)
		goto free_client;
	if (c->kick_fd < 0 || c->epoll_fd < 0) {
		error_set(err, -errno, "cannot open a client of %s: %s", endpoint, strerror(errno));
		net_client_free(c);
		return NULL;
	}
	if (net_endpoint_transport(endpoint, &c->transport, err) ||
	    open_socket(ctx, c, server_key, err)) {
		net_client_free(c);
		return NULL;
	}
	c->asks = c->transport != NET_INPROC;
	return c;

free_client:
	net_client_free(c);
out_of_memory:
	error_set(err, -ENOMEM, "out of memory");
	return NULL;
}

void net_client_free(struct net_client *c)
{
	struct call *call;

	if (!c)
		return;
	c->closing = true;
	calls_fail_all(&c->calls, -ECANCELED);
	while ((call = TAILQ_FIRST(&c->calls.failed)))
		calls_end(&c->calls, call, -ECANCELED, NULL);
	if (c->monitor) {
		zmq_socket_monitor(c->socket, NULL, 0);
		zmq_close(c->monitor);
	}
	if (c->socket)
		zmq_close(c->socket);
	if (c->kick_fd >= 0)
		close(c->kick_fd);
	if (c->epoll_fd >= 0)
		close(c->epoll_fd);
	free(c->endpoint);
	free(c->role);
	free(c);
}

/* ---- a call that waits ---- */

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

static int call_error(struct net_client *c, int r, int timeout_ms, struct error *err)
{
	if (r == -ETIMEDOUT)
		return error_set(err, r, "no answer from %s within %d ms: %s", c->endpoint,
				 timeout_ms,
				 c->trouble[0] ? c->trouble :
				 c->connected  ? "it is there but busy" :
						 "there is no connection; is it running?");
	if (r == -EPROTO && c->trouble[0])
		return error_set(err, r, "%s: %s", c->endpoint, c->trouble);
	return error_set(err, r, "the call to %s failed: %s", c->endpoint, strerror(-r));
}

int net_call(struct net_client *c, Vmdedup__Request *req, const struct net_frame *frames,
	     size_t nr_frames, int timeout_ms, struct net_reply *reply, struct error *err)
{
	struct waiter w = { 0 };
	int r;

	memset(reply, 0, sizeof(*reply));
	r = net_client_submit(c, req, frames, nr_frames, timeout_ms, wake, &w);
	if (r)
		return call_error(c, r, timeout_ms, err);
	/* A signal does not end the wait: the call's end does, which the timeout bounds. */
	while (!w.done)
		net_client_run(c, -1);
	if (w.r)
		return call_error(c, w.r, timeout_ms, err);
	*reply = w.reply;
	if (!reply->header->error)
		return 0;
	return error_set(err, -reply->header->error, "%s",
			 *reply->header->error_text ? reply->header->error_text :
						      strerror(reply->header->error));
}
