// SPDX-License-Identifier: GPL-2.0-or-later
/* What servers and clients make of peers that do not play by the rules. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "net/internal.h"
#include "net/peer.h"
#include "net_world.h"
#include "proto/limits.h"

static void raw_send(void *socket, const void *header, size_t len, size_t nr, size_t frame_len)
{
	static const uint8_t bytes[NET_MAX_RAW_FRAME];

	assert_int_equal(zmq_send(socket, header, len, nr ? ZMQ_SNDMORE : 0), len);
	for (size_t i = 0; i < nr; i++)
		assert_int_equal(zmq_send(socket, bytes, frame_len, i + 1 < nr ? ZMQ_SNDMORE : 0),
				 frame_len);
}

static size_t pack_request(Vmdedup__Request *req, uint64_t id, uint32_t nr, uint8_t *out)
{
	req->id = id;
	req->payload_frames = nr;
	return vmdedup__request__pack(req, out);
}

static void raw_hello(void *socket, uint64_t id, uint32_t version)
{
	Vmdedup__Hello hello = VMDEDUP__HELLO__INIT;
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_HELLO, &hello);
	uint8_t buf[256];

	hello.version = version;
	hello.role = "agent";
	raw_send(socket, buf, pack_request(&req, id, 0, buf), 0, 0);
}

/* The next answer's error; its id must be @id. */
static int raw_error(void *socket, uint64_t id, Vmdedup__Reply__BodyCase *body_case)
{
	struct net_parts parts = {0};
	zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
	Vmdedup__Reply *reply;
	int error;

	assert_int_equal(zmq_poll(&item, 1, NETW_WAIT_MS), 1);
	assert_int_equal(net_parts_recv(socket, 8, &parts), 0);
	reply = vmdedup__reply__unpack(NULL, zmq_msg_size(&parts.msgs[0]),
				       zmq_msg_data(&parts.msgs[0]));
	assert_non_null(reply);
	assert_int_equal(reply->id, id);
	error = reply->error;
	if (body_case)
		*body_case = reply->body_case;
	vmdedup__reply__free_unpacked(reply, NULL);
	net_parts_free(&parts);
	return error;
}

static void hostile_client(const char *endpoint)
{
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s = netw_server_start(ctx, false, endpoint);
	void *raw = zmq_socket(ctx->zmq, ZMQ_DEALER);
	static uint8_t buf[PROTO_MAX_HEADER + 64];
	Vmdedup__Request stat_req = netw_request(VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat);
	Vmdedup__Request empty = VMDEDUP__REQUEST__INIT;
	Vmdedup__Reply__BodyCase body_case;
	const int linger = 0, hwm = 100000;
	size_t len;

	zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof(linger));
	zmq_setsockopt(raw, ZMQ_SNDHWM, &hwm, sizeof(hwm));
	assert_int_equal(zmq_connect(raw, net_server_endpoint(s->net, 0)), 0);

	/* Before HELLO, and a HELLO from the far future or past */
	raw_send(raw, buf, pack_request(&stat_req, 1, 0, buf), 0, 0);
	assert_int_equal(raw_error(raw, 1, &body_case), ENOTCONN);
	assert_int_equal(body_case, VMDEDUP__REPLY__BODY_HELLO);
	raw_hello(raw, 2, PROTO_VERSION + 2);
	assert_int_equal(raw_error(raw, 2, NULL), EPROTONOSUPPORT);
	raw_hello(raw, 2, 0);
	assert_int_equal(raw_error(raw, 2, NULL), EPROTONOSUPPORT);
	raw_hello(raw, 2, UINT32_MAX);
	assert_int_equal(raw_error(raw, 2, NULL), EPROTONOSUPPORT);
	raw_send(raw, buf, pack_request(&stat_req, 3, 0, buf), 0, 0);
	assert_int_equal(raw_error(raw, 3, NULL), ENOTCONN);
	raw_hello(raw, 4, PROTO_VERSION + 1);
	assert_int_equal(raw_error(raw, 4, &body_case), 0);
	assert_int_equal(body_case, VMDEDUP__REPLY__BODY_HELLO);

	/* Frames that the header does not speak of, or the other way round */
	raw_send(raw, buf, pack_request(&stat_req, 5, 0, buf), 1, 10);
	assert_int_equal(raw_error(raw, 5, NULL), EPROTO);
	raw_send(raw, buf, pack_request(&stat_req, 6, 2, buf), 1, 10);
	assert_int_equal(raw_error(raw, 6, NULL), EPROTO);
	raw_send(raw, buf, pack_request(&stat_req, 7, UINT32_MAX, buf), 0, 0);
	assert_int_equal(raw_error(raw, 7, NULL), EPROTO);
	/* Too many, too large, too much */
	raw_send(raw, buf, pack_request(&stat_req, 8, PROTO_MAX_FRAMES + 1, buf),
		 PROTO_MAX_FRAMES + 1, 1);
	assert_int_equal(raw_error(raw, 8, NULL), EMSGSIZE);
	raw_send(raw, buf, pack_request(&stat_req, 9, 5000, buf), 5000, 1);
	assert_int_equal(raw_error(raw, 9, NULL), EMSGSIZE);
	raw_send(raw, buf, pack_request(&stat_req, 10, 1, buf), 1, PROTO_MAX_FRAME + 1);
	assert_int_equal(raw_error(raw, 10, NULL), EMSGSIZE);
	raw_send(raw, buf, pack_request(&stat_req, 11, 65, buf), 65, 1 << 20);
	assert_int_equal(raw_error(raw, 11, NULL), EMSGSIZE);
	/* A header that is too large, cut off, repeats a field, or says nothing we know */
	len = pack_request(&stat_req, 12, 0, buf);
	memset(buf + len, 0, sizeof(buf) - len);
	raw_send(raw, buf, PROTO_MAX_HEADER + 1, 0, 0);
	assert_int_equal(raw_error(raw, 12, NULL), EMSGSIZE);
	raw_send(raw, buf, len - 1, 0, 0);
	assert_int_equal(raw_error(raw, 12, NULL), EPROTO);
	memcpy(buf + len, buf, len);
	raw_send(raw, buf, 2 * len, 0, 0);
	assert_int_equal(raw_error(raw, 12, NULL), EPROTO);
	raw_send(raw, buf, pack_request(&empty, 13, 0, buf), 0, 0);
	assert_int_equal(raw_error(raw, 13, NULL), EOPNOTSUPP);
	/* No id: nobody to answer */
	raw_send(raw, buf, 0, 0, 0);
	raw_send(raw, "\377\377\377\377", 4, 3, 5);
	raw_send(raw, buf, pack_request(&stat_req, 0, 0, buf), 0, 0);
	for (int i = 0; i < 2000; i++) {
		for (size_t b = 0; b < 200; b++)
			buf[b] = rand() >> 7;
		buf[0] |= 0x80; /* not field 1 */
		raw_send(raw, buf, rand() % 200, rand() % 3, rand() % 100);
	}

	/* Through all of it the server serves. */
	struct net_client *c = netw_client(ctx, net_server_endpoint(s->net, 0), NULL);

	assert_int_equal(netw_stat_call(c, NETW_WAIT_MS, NULL), 0);
	raw_send(raw, buf, pack_request(&stat_req, 14, 0, buf), 0, 0);
	while (raw_error(raw, 14, NULL))
		;
	net_client_free(c);
	zmq_close(raw);

	struct net_server_stats stats = netw_server_stop(s);

	assert_int_equal(stats.requests, 2);
	assert_true(stats.dropped >= 2000);
	net_ctx_free(ctx);
	netw_server_free(s);
}

static void test_hostile_client(void **state)
{
	hostile_client("tcp://127.0.0.1:*");
	hostile_client("inproc://victim");
}

/* Clients go away in the middle of their replies while the server closes: libzmq must survive. */
static void test_close_under_load(void **state)
{
	static uint8_t fps[PROTO_MAX_BLOCKS * 32], buf[sizeof(fps) + 256];
	Vmdedup__Get get = VMDEDUP__GET__INIT;
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_GET, &get);
	const int one = 1, linger = 0;

	get.fingerprints.data = fps;
	get.fingerprints.len = sizeof(fps);
	for (int round = 0; round < 12; round++) {
		struct net_ctx *ctx = netw_context(NULL, NULL);
		struct netw_server *s = netw_server_start(ctx, false, "tcp://127.0.0.1:*");
		void *clients_ctx = zmq_ctx_new(), *raw[8];

		for (size_t i = 0; i < NETW_COUNT(raw); i++) {
			raw[i] = zmq_socket(clients_ctx, ZMQ_DEALER);
			zmq_setsockopt(raw[i], ZMQ_LINGER, &linger, sizeof(linger));
			zmq_setsockopt(raw[i], ZMQ_RCVHWM, &one, sizeof(one));
			assert_int_equal(zmq_connect(raw[i], net_server_endpoint(s->net, 0)), 0);
			raw_hello(raw[i], 1, PROTO_VERSION);
			for (uint64_t id = 2; id < 6; id++)
				raw_send(raw[i], buf, pack_request(&req, id, 0, buf), 0, 0);
		}
		netw_server_wait_seen(s, 4 * NETW_COUNT(raw));
		for (size_t i = 0; i < NETW_COUNT(raw); i++)
			zmq_close(raw[i]);
		netw_server_stop(s);
		net_ctx_free(ctx);
		zmq_ctx_term(clients_ctx);
		netw_server_free(s);
	}
}

/* A client that asks and does not read: its replies wait up to a bound, then it gets no more. */
static void test_slow_reader(void **state)
{
	static uint8_t fps[PROTO_MAX_BLOCKS * 32], buf[sizeof(fps) + 256];
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s = netw_server_start(ctx, false, "tcp://127.0.0.1:*");
	struct net_client *c = netw_client(ctx, net_server_endpoint(s->net, 0), NULL);
	void *raw = zmq_socket(ctx->zmq, ZMQ_DEALER);
	Vmdedup__Get get = VMDEDUP__GET__INIT;
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_GET, &get);
	const int one = 1, linger = 0;
	struct net_reply reply;
	uint64_t refused;

	zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof(linger));
	zmq_setsockopt(raw, ZMQ_RCVHWM, &one, sizeof(one));
	assert_int_equal(zmq_connect(raw, net_server_endpoint(s->net, 0)), 0);
	raw_hello(raw, 1, PROTO_VERSION);
	get.fingerprints.data = fps;
	get.fingerprints.len = sizeof(fps);
	/* 64 MiB each; a few more are on their way through sockets and queues. */
	for (uint64_t i = 0; i < 60; i++)
		raw_send(raw, buf, pack_request(&req, i + 2, 0, buf), 0, 0);
	do {
		assert_int_equal(netw_call(c, VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat,
					   &reply, NULL),
				 0);
		refused = reply.header->data_stat->gets;
		net_reply_free(&reply);
	} while (refused < 20);
	net_client_free(c);
	zmq_close(raw);
	netw_server_stop(s);
	net_ctx_free(ctx);
	netw_server_free(s);
}

/* Clients that do not read, and have each little enough waiting: together they have not. */
static void test_slow_readers(void **state)
{
	static uint8_t fps[16 * 32], buf[sizeof(fps) + 256];
	struct net_server_ops ops = netw_server_ops;
	Vmdedup__Get get = VMDEDUP__GET__INIT;
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_GET, &get);
	const int one = 1, linger = 0, each = 14;
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct netw_server *s;
	struct net_client *c;
	struct net_reply reply;
	int refused, stats = 0;
	void *raw[4];

	ops.queued = 32ULL << 20;
	s = netw_server_start_with(&ops, ctx, false, "tcp://127.0.0.1:*");
	c = netw_client(ctx, net_server_endpoint(s->net, 0), NULL);
	get.fingerprints.data = fps;
	get.fingerprints.len = sizeof(fps);
	for (size_t k = 0; k < NETW_COUNT(raw); k++) {
		raw[k] = zmq_socket(ctx->zmq, ZMQ_DEALER);
		zmq_setsockopt(raw[k], ZMQ_LINGER, &linger, sizeof(linger));
		zmq_setsockopt(raw[k], ZMQ_RCVHWM, &one, sizeof(one));
		assert_int_equal(zmq_connect(raw[k], net_server_endpoint(s->net, 0)), 0);
		raw_hello(raw[k], 1, PROTO_VERSION);
		for (int i = 0; i < each; i++) /* 4 MiB each */
			raw_send(raw[k], buf, pack_request(&req, (uint64_t)i + 2, 0, buf), 0, 0);
	}
	do {
		/* Who reads is served. */
		assert_int_equal(netw_call(c, VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat,
					   &reply, NULL), 0);
		stats++;
		refused = (int)reply.header->data_stat->gets;
		net_reply_free(&reply);
	} while (refused + atomic_load(&s->seen) - stats < each * (int)NETW_COUNT(raw));
	assert_true(refused >= 8); /* of 56, as 8 and some in sockets and queues fit */
	net_client_free(c);
	for (size_t k = 0; k < NETW_COUNT(raw); k++)
		zmq_close(raw[k]);
	netw_server_stop(s);
	net_ctx_free(ctx);
	netw_server_free(s);
}

/* The client's side: a raw ROUTER that forgets, repeats itself and talks nonsense. */
struct raw_server {
	void *socket;
	zmq_msg_t peer;
};

/* The next request's id and body; its sender is kept for raw_answer(). */
static Vmdedup__Request__BodyCase raw_next(struct raw_server *s, struct net_client *c, uint64_t *id)
{
	struct net_parts parts = {0};
	Vmdedup__Request__BodyCase body_case;
	Vmdedup__Request *req;
	int r;

	do {
		assert_int_equal(net_client_run(c, 1), 0);
		r = net_parts_recv(s->socket, 8, &parts);
	} while (r == -EAGAIN);
	assert_int_equal(r, 0);
	req = vmdedup__request__unpack(NULL, zmq_msg_size(&parts.msgs[1]),
				       zmq_msg_data(&parts.msgs[1]));
	assert_non_null(req);
	*id = req->id;
	body_case = req->body_case;
	vmdedup__request__free_unpacked(req, NULL);
	zmq_msg_copy(&s->peer, &parts.msgs[0]);
	net_parts_free(&parts);
	return body_case;
}

static void raw_answer_bytes(struct raw_server *s, const void *data, size_t len)
{
	zmq_msg_t peer;

	zmq_msg_init(&peer);
	zmq_msg_copy(&peer, &s->peer);
	assert_true(zmq_msg_send(&peer, s->socket, ZMQ_SNDMORE) >= 0);
	assert_int_equal(zmq_send(s->socket, data, len, 0), len);
}

static void raw_answer(struct raw_server *s, uint64_t id, int error, bool hello, uint32_t nr)
{
	Vmdedup__HelloReply body = VMDEDUP__HELLO_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	uint8_t buf[256];

	reply.id = id;
	reply.error = error;
	reply.payload_frames = nr;
	if (hello) {
		reply.body_case = VMDEDUP__REPLY__BODY_HELLO;
		reply.hello = &body;
	}
	raw_answer_bytes(s, buf, vmdedup__reply__pack(&reply, buf));
}

static void test_hostile_server(void **state)
{
	struct net_ctx *ctx = netw_context(NULL, NULL);
	struct raw_server s = {.socket = zmq_socket(ctx->zmq, ZMQ_ROUTER)};
	struct net_client *c = netw_client(ctx, "inproc://raw", NULL);
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat);
	struct netw_outcome o[4] = {0};
	uint8_t id_only[] = {0x08, 0, 0xff, 0xff};
	uint64_t hello, id, again;

	zmq_msg_init(&s.peer);
	assert_int_equal(zmq_bind(s.socket, "inproc://raw"), 0);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, NETW_WAIT_MS, netw_record, &o[0]), 0);
	assert_int_equal(raw_next(&s, c, &hello), VMDEDUP__REQUEST__BODY_HELLO);
	assert_int_equal(raw_next(&s, c, &id), VMDEDUP__REQUEST__BODY_DATA_STAT);
	raw_answer(&s, hello, 0, true, 0);

	/* It has forgotten us: HELLO, and the same request again. */
	raw_answer(&s, id, ENOTCONN, true, 0);
	assert_int_equal(raw_next(&s, c, &hello), VMDEDUP__REQUEST__BODY_HELLO);
	assert_int_equal(raw_next(&s, c, &again), VMDEDUP__REQUEST__BODY_DATA_STAT);
	assert_int_equal(again, id);
	raw_answer(&s, hello, 0, true, 0);

	/* Nonsense without an id is ignored; so are ids that nobody asked for. */
	raw_answer_bytes(&s, "", 0);
	raw_answer_bytes(&s, "nonsense", 8);
	raw_answer(&s, 0, 0, false, 0);
	raw_answer(&s, id + 1000, 0, false, 0);
	raw_answer(&s, id, 0, false, 0);
	raw_answer(&s, id, 0, false, 0); /* a second answer */
	while (!o[0].done)
		net_client_run(c, -1);
	assert_int_equal(o[0].r, 0);

	/* With a readable id it ends the call. */
	assert_int_equal(net_client_submit(c, &req, NULL, 0, NETW_WAIT_MS, netw_record, &o[1]), 0);
	raw_next(&s, c, &id);
	assert_true(id < 128);
	id_only[1] = id;
	raw_answer_bytes(&s, id_only, sizeof(id_only));
	while (!o[1].done)
		net_client_run(c, -1);
	assert_int_equal(o[1].r, -EPROTO);
	/* Payload that is announced and not there */
	assert_int_equal(net_client_submit(c, &req, NULL, 0, NETW_WAIT_MS, netw_record, &o[2]), 0);
	raw_next(&s, c, &id);
	raw_answer(&s, id, 0, false, 3);
	while (!o[2].done)
		net_client_run(c, -1);
	assert_int_equal(o[2].r, -EPROTO);
	assert_int_equal(o[0].done, 1);
	net_client_free(c);

	/* A HELLO that is refused fails what waits, and says why. */
	c = netw_client(ctx, "inproc://raw", NULL);
	assert_int_equal(net_client_submit(c, &req, NULL, 0, NETW_WAIT_MS, netw_record, &o[3]), 0);
	raw_next(&s, c, &hello);
	raw_next(&s, c, &id);
	raw_answer(&s, hello, EPROTONOSUPPORT, false, 0);
	raw_answer(&s, id, ENOTCONN, true, 0);
	while (!o[3].done)
		net_client_run(c, -1);
	assert_int_equal(o[3].r, -EPROTO);
	net_client_free(c);

	zmq_msg_close(&s.peer);
	zmq_close(s.socket);
	net_ctx_free(ctx);
}

/* The table of peers is bounded; the one that was silent for longest goes. */
static void test_peer_table(void **state)
{
	struct peer_table t;
	struct peer *first;

	peer_table_init(&t);
	for (uint32_t i = 0; i < NET_MAX_PEERS + 1; i++) {
		struct peer *p = peer_find_or_add(&t, i % 3, &i, sizeof(i));

		assert_non_null(p);
		assert_false(p->said_hello);
		assert_ptr_equal(peer_find(&t, i % 3, &i, sizeof(i)), p);
		/* Number 0 speaks now and then. */
		if (i % 1000 == 0)
			assert_non_null(peer_find(&t, 0, &(uint32_t){0}, 4));
	}
	assert_int_equal(t.nr, NET_MAX_PEERS);
	first = peer_find(&t, 0, &(uint32_t){0}, 4);
	assert_non_null(first);
	assert_null(peer_find(&t, 1, &(uint32_t){0}, 4));
	assert_null(peer_find(&t, 0, &(uint32_t){0}, 3));
	assert_null(peer_find(&t, 1, &(uint32_t){1}, 4));
	peer_get(first);
	peer_table_free(&t);
	assert_int_equal(t.nr, 0);
	peer_put(first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hostile_client),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_slow_readers),
		cmocka_unit_test(test_close_under_load),
		cmocka_unit_test(test_hostile_server),
		cmocka_unit_test(test_peer_table),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
