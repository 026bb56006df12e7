// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which key may what: a meta server and a data server behind real sockets with keys, asked for every
 * kind of request that there is by a host's key, a data server's and an administrator's.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <czmq.h>

#include "base/clock.h"
#include "data/server.h"
#include "meta/server.h"
#include "net/role.h"
#include "net_world.h"
#include "proto/limits.h"

static char dir[] = "/tmp/vmdedup-roles-XXXXXX";

static char *in_dir(const char *name)
{
	return netw_path(dir, name);
}

/* ---- a cluster with keys ---- */

struct cluster {
	uint8_t meta_key[32], data_key[32], host_key[32], admin_key[32];
	struct net_ctx *meta_net, *data_net, *host_net, *admin_net;
	struct meta_server *meta;
	struct data_server *data;
	pthread_t meta_thread, data_thread;
	char data_endpoint[64];
	struct net_client *host, *host_data; /* a host's connections to both */
};

static void *meta_run(void *arg)
{
	struct error err = { 0 };

	assert_int_equal(meta_server_run(arg, &err), 0);
	return NULL;
}

static void *data_run(void *arg)
{
	struct error err = { 0 };

	assert_int_equal(data_server_run(arg, &err), 0);
	return NULL;
}

static void start_meta(struct cluster *c)
{
	struct meta_init init = { .name = "test", .block_shift = 18, .replicas = 1, .min_copies = 1 };
	struct error err = { 0 };

	c->meta_net = netw_context(in_dir("meta_secret"), in_dir("clients"));
	assert_int_equal(meta_store_init(in_dir("meta.sqlite"), &init, &err), 0);
	c->meta = meta_server_open(c->meta_net, in_dir("meta.sqlite"), &err);
	assert_non_null(c->meta);
	assert_int_equal(meta_server_bind(c->meta, "tcp://127.0.0.1:*", &err), 0);
	assert_int_equal(pthread_create(&c->meta_thread, NULL, meta_run, c->meta), 0);
}

/* A port for the data server: one that was free just now. */
static void find_endpoint(struct cluster *c)
{
	struct netw_server *s = netw_server_start(c->data_net, false, "tcp://127.0.0.1:*");

	snprintf(c->data_endpoint, sizeof(c->data_endpoint), "%s", net_server_endpoint(s->net, 0));
	netw_server_stop(s);
	netw_server_free(s);
}

static void start_data(struct cluster *c)
{
	struct data_options o = {
		.dir = in_dir("disk"), .meta = meta_server_endpoint(c->meta, 0),
		.meta_key = c->meta_key, .host = "here", .endpoint = c->data_endpoint,
	};
	struct error err = { 0 };

	c->data_net = netw_context(in_dir("data_secret"), in_dir("clients"));
	find_endpoint(c);
	c->data = data_server_open(c->data_net, &o, &err);
	if (!c->data)
		fail_msg("%s", err.text);
	while (data_server_bind(c->data, c->data_endpoint, &err)) {
		assert_int_equal(err.code, -EADDRINUSE); /* somebody else's by now */
		find_endpoint(c);
	}
	assert_int_equal(pthread_create(&c->data_thread, NULL, data_run, c->data), 0);
}

static struct net_client *to_meta(struct cluster *c, struct net_ctx *net)
{
	return netw_client(net, meta_server_endpoint(c->meta, 0), c->meta_key);
}

static struct cluster *cluster_start(void)
{
	struct cluster *c = calloc(1, sizeof(*c));

	assert_non_null(c);
	assert_non_null(mkdtemp(strcpy(dir, "/tmp/vmdedup-roles-XXXXXX")));
	assert_int_equal(mkdir(in_dir("clients"), 0700), 0);
	netw_make_key(dir, "meta", true, c->meta_key);
	netw_make_key(dir, "data", true, c->data_key);
	netw_make_key(dir, "host", true, c->host_key);
	netw_make_key(dir, "admin", true, c->admin_key);
	/* Files of these names are keys like any other; the folders come when they are made. */
	assert_int_equal(rename(in_dir("clients/data"), in_dir("clients/data.key")), 0);
	assert_int_equal(rename(in_dir("clients/admin"), in_dir("clients/admin.key")), 0);
	start_meta(c);
	start_data(c);
	c->host_net = netw_context(in_dir("host_secret"), NULL);
	c->admin_net = netw_context(in_dir("admin_secret"), NULL);
	c->host = to_meta(c, c->host_net);
	c->host_data = netw_client(c->host_net, c->data_endpoint, c->data_key);
	return c;
}

static void cluster_stop(struct cluster *c)
{
	char command[64];

	net_client_free(c->host);
	net_client_free(c->host_data);
	data_server_stop(c->data);
	pthread_join(c->data_thread, NULL);
	data_server_close(c->data);
	meta_server_stop(c->meta);
	pthread_join(c->meta_thread, NULL);
	meta_server_close(c->meta);
	net_ctx_free(c->host_net);
	net_ctx_free(c->admin_net);
	net_ctx_free(c->data_net);
	net_ctx_free(c->meta_net);
	free(c);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	assert_int_equal(system(command), 0);
}

/* From now on keys have roles: data.key and admin.key these, meta and host none. */
static void give_roles(void)
{
	assert_int_equal(mkdir(in_dir("clients/data"), 0700), 0);
	assert_int_equal(rename(in_dir("clients/data.key"), in_dir("clients/data/data.key")), 0);
	assert_int_equal(mkdir(in_dir("clients/admin"), 0700), 0);
	assert_int_equal(rename(in_dir("clients/admin.key"), in_dir("clients/admin/admin.key")), 0);
}

/* ---- asking ---- */

static int ask(struct net_client *c, Vmdedup__Request *req, struct net_reply *reply, struct error *err)
{
	*reply = (struct net_reply){ 0 };
	return net_call(c, req, NULL, 0, NETW_WAIT_MS, reply, err);
}

static int ask_only(struct net_client *c, Vmdedup__Request *req, struct error *err)
{
	struct net_reply reply;
	int r = ask(c, req, &reply, err);

	net_reply_free(&reply);
	return r;
}

static bool is_body(const ProtobufCFieldDescriptor *f)
{
	return f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF;
}

/* An empty one of a kind. */
static int ask_kind(struct net_client *c, const ProtobufCFieldDescriptor *kind, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	ProtobufCMessage *body = protobuf_c_message_unpack(kind->descriptor, NULL, 0,
							   (const uint8_t *)"");
	int r;

	assert_non_null(body);
	req.body_case = (Vmdedup__Request__BodyCase)kind->id;
	memcpy((char *)&req + kind->offset, &body, sizeof(body));
	r = ask_only(c, &req, err);
	protobuf_c_message_free_unpacked(body, NULL);
	return r;
}

/* Every kind there is: what @role may not is refused, and nothing else for its role. */
static void ask_all(struct net_client *c, enum net_role role)
{
	const ProtobufCMessageDescriptor *d = &vmdedup__request__descriptor;

	for (unsigned int i = 0; i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];
		struct error err = { 0 };
		bool may;
		int r;

		if (!is_body(f) || f->id == VMDEDUP__REQUEST__BODY_HELLO)
			continue;
		may = net_role_row((Vmdedup__Request__BodyCase)f->id) <= role;
		r = ask_kind(c, f, &err);
		if (may == (r == -EPERM) || r == -ETIMEDOUT)
			fail_msg("%s: a key of the role %s got %d: %s", f->name, net_role_name(role),
				 r, err.text);
		if (!may && (!strstr(err.text, f->name) || !strstr(err.text, "[curve] clients")))
			fail_msg("%s: does not say what to do: %s", f->name, err.text);
	}
}

static int server_join(struct net_client *c, struct net_reply *reply, struct error *err)
{
	Vmdedup__ServerJoin join = VMDEDUP__SERVER_JOIN__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	uint8_t disk[16] = { 9 }, session[16] = { 8 };

	join.disk = (ProtobufCBinaryData){ sizeof(disk), disk };
	join.session = (ProtobufCBinaryData){ sizeof(session), session };
	join.incarnation = 1;
	join.endpoint = (char *)"tcp://127.0.0.1:1";
	join.host = join.rack = (char *)"there";
	join.capacity = join.free = 1 << 30;
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_JOIN;
	req.server_join = &join;
	return ask(c, &req, reply, err);
}

static bool says_open(struct net_client *c)
{
	Vmdedup__ClusterInfo info = VMDEDUP__CLUSTER_INFO__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;
	bool open;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &info;
	assert_int_equal(ask(c, &req, &reply, &err), 0);
	open = reply.header->cluster_info->open_keys;
	net_reply_free(&reply);
	return open;
}

static bool data_says_open(struct net_client *c)
{
	Vmdedup__Ping ping = VMDEDUP__PING__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;
	bool open;

	req.body_case = VMDEDUP__REQUEST__BODY_PING;
	req.ping = &ping;
	assert_int_equal(ask(c, &req, &reply, &err), 0);
	open = reply.header->ping->open_keys;
	net_reply_free(&reply);
	return open;
}

/* An administrator's request. */
static int gc_step(struct net_client *c, bool status)
{
	Vmdedup__GcStep step = VMDEDUP__GC_STEP__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct error err;

	step.status = status;
	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &step;
	return ask_only(c, &req, &err);
}

static void wait_for_gc(struct net_client *c, int r)
{
	uint64_t until = clock_mono_ns() + NETW_WAIT_MS * 1000000ULL;

	while (gc_step(c, false) != r) {
		assert_true(clock_mono_ns() < until);
		poll(NULL, 0, 50);
	}
}

/* ---- tests ---- */

static void test_every_request_has_a_row(void **state)
{
	const ProtobufCMessageDescriptor *d = &vmdedup__request__descriptor;
	unsigned int nr = 0;

	for (unsigned int i = 0; i < d->n_fields; i++) {
		if (!is_body(&d->fields[i]))
			continue;
		nr++;
		if (!net_role_row((Vmdedup__Request__BodyCase)d->fields[i].id))
			fail_msg("%s has no row in userspace/net/role.c: which role may ask for it?",
				 d->fields[i].name);
	}
	assert_true(nr > 50);
	assert_int_equal(net_role_row(1 << 20), NET_ROLE_NONE);
}

/* Before a key has a role each may everything, as before there were any; and it is said. */
static void test_without_roles(void **state)
{
	struct cluster *c = cluster_start();
	struct net_reply reply;
	struct error err = { 0 };

	ask_all(c->host, NET_ROLE_ADMIN);
	ask_all(c->host_data, NET_ROLE_ADMIN);
	assert_int_equal(server_join(c->host, &reply, &err), 0);
	net_reply_free(&reply);
	assert_true(says_open(c->host));
	assert_true(data_says_open(c->host_data));
	cluster_stop(c);
}

static void touch_forwarded(struct net_client *c, bool forwarded, bool may)
{
	Vmdedup__Touch touch = VMDEDUP__TOUCH__INIT;
	Vmdedup__Put put = VMDEDUP__PUT__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct error err;

	touch.forwarded = put.forwarded = forwarded;
	req.body_case = VMDEDUP__REQUEST__BODY_TOUCH;
	req.touch = &touch;
	assert_int_equal(ask_only(c, &req, &err) != -EPERM, may);
	req.body_case = VMDEDUP__REQUEST__BODY_PUT;
	req.put = &put;
	assert_int_equal(ask_only(c, &req, &err) != -EPERM, may);
}

static void test_roles(void **state)
{
	struct cluster *c = cluster_start();
	struct net_client *data, *admin, *data_data, *admin_data;
	struct net_reply reply;
	struct error err = { 0 };

	give_roles();
	wait_for_gc(c->host, -EPERM); /* on the connection that it has */
	ask_all(c->host, NET_ROLE_HOST);
	assert_int_equal(server_join(c->host, &reply, &err), -EPERM);
	assert_true(reply.header->body_case == VMDEDUP__REPLY__BODY__NOT_SET);
	net_reply_free(&reply);
	assert_non_null(strstr(err.text, "role data"));
	assert_int_equal(gc_step(c->host, true), 0);
	assert_false(says_open(c->host));

	/* New connections */
	data = to_meta(c, c->data_net);
	admin = to_meta(c, c->admin_net);
	ask_all(data, NET_ROLE_DATA);
	assert_int_equal(server_join(data, &reply, &err), 0);
	assert_int_equal(reply.header->server_join->receipt_key.len, 32);
	net_reply_free(&reply);
	ask_all(admin, NET_ROLE_ADMIN);
	assert_int_equal(gc_step(admin, false), 0);

	data_data = netw_client(c->data_net, c->data_endpoint, c->data_key);
	admin_data = netw_client(c->admin_net, c->data_endpoint, c->data_key);
	ask_all(data_data, NET_ROLE_DATA);
	ask_all(admin_data, NET_ROLE_ADMIN);
	net_client_free(c->host_data);
	c->host_data = netw_client(c->host_net, c->data_endpoint, c->data_key);
	ask_all(c->host_data, NET_ROLE_HOST);
	assert_false(data_says_open(c->host_data));
	touch_forwarded(c->host_data, true, false);
	touch_forwarded(c->host_data, false, true);
	touch_forwarded(data_data, true, true);

	net_client_free(data);
	net_client_free(admin);
	net_client_free(data_data);
	net_client_free(admin_data);
	cluster_stop(c);
}

/* Files that are moved count on connections that are there. */
static void test_roles_that_change(void **state)
{
	struct cluster *c = cluster_start();
	struct net_client *admin = to_meta(c, c->admin_net);

	assert_int_equal(gc_step(c->host, false), 0);
	give_roles();
	wait_for_gc(c->host, -EPERM);
	assert_int_equal(gc_step(admin, false), 0);
	/* The host's in the administrator's place: one file, of the same size, as before. */
	assert_int_equal(rename(in_dir("clients/admin/admin.key"), in_dir("clients/admin.key")), 0);
	assert_int_equal(rename(in_dir("clients/host"), in_dir("clients/admin/host")), 0);
	wait_for_gc(c->host, 0);
	wait_for_gc(admin, -EPERM);
	/* The last administrator's key goes: nobody is one, not everybody. */
	assert_int_equal(unlink(in_dir("clients/admin/host")), 0);
	wait_for_gc(c->host, -EPERM);
	assert_int_equal(gc_step(admin, false), -EPERM);
	assert_int_equal(rmdir(in_dir("clients/admin")), 0);
	assert_int_equal(gc_step(admin, false), -EPERM);
	net_client_free(admin);
	cluster_stop(c);
}

/* ---- a connection under the name of another ---- */

static void *raw_socket(struct cluster *c, void *zmq, const char *key, const char *name)
{
	void *socket = zmq_socket(zmq, ZMQ_DEALER);
	zcert_t *cert = zcert_load(in_dir(key));
	const int wait_ms = 5000, linger = 0;

	assert_non_null(socket);
	assert_non_null(cert);
	zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, c->meta_key, 32);
	zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, zcert_public_key(cert), 32);
	zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, zcert_secret_key(cert), 32);
	zmq_setsockopt(socket, ZMQ_ROUTING_ID, name, strlen(name));
	zmq_setsockopt(socket, ZMQ_RCVTIMEO, &wait_ms, sizeof(wait_ms));
	zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof(linger));
	assert_int_equal(zmq_connect(socket, meta_server_endpoint(c->meta, 0)), 0);
	zcert_destroy(&cert);
	return socket;
}

static void raw_send(void *socket, const Vmdedup__Request *req)
{
	uint8_t buf[256];
	size_t len = vmdedup__request__pack(req, buf);

	assert_int_equal(zmq_send(socket, buf, len, 0), (int)len);
}

/* The error of the answer to request @id; -1: none comes. */
static int raw_answer(void *socket, uint64_t id)
{
	uint8_t buf[4096];
	int n, error = -1;

	while (error < 0 && (n = zmq_recv(socket, buf, sizeof(buf), 0)) > 0) {
		Vmdedup__Reply *reply = vmdedup__reply__unpack(NULL, (size_t)n, buf);

		assert_non_null(reply);
		if (reply->id == id)
			error = reply->error;
		vmdedup__reply__free_unpacked(reply, NULL);
	}
	return error;
}

static int raw_gc_step(void *socket)
{
	Vmdedup__GcStep step = VMDEDUP__GC_STEP__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;

	req.id = 2;
	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &step;
	raw_send(socket, &req);
	return raw_answer(socket, req.id);
}

static void raw_hello(void *socket)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Hello hello = VMDEDUP__HELLO__INIT;

	req.id = 1;
	req.body_case = VMDEDUP__REQUEST__BODY_HELLO;
	req.hello = &hello;
	hello.version = PROTO_VERSION;
	hello.role = hello.name = (char *)"raw";
	raw_send(socket, &req);
}

static void test_name_of_another(void **state)
{
	struct cluster *c = cluster_start();
	uint64_t until = clock_mono_ns() + 6 * NETW_WAIT_MS * 1000000ULL;
	void *zmq = zmq_ctx_new(), *socket;
	int error;

	give_roles();
	for (error = -1; error < 0;) { /* the first answer waits for the handshake */
		assert_true(clock_mono_ns() < until);
		socket = raw_socket(c, zmq, "admin_secret", "alice");
		raw_hello(socket);
		error = raw_gc_step(socket);
		zmq_close(socket);
	}
	assert_int_equal(error, 0);
	/* The server knows the connection's name. As long as that connection is there, another is not. */
	for (error = -1; error < 0;) {
		assert_true(clock_mono_ns() < until);
		socket = raw_socket(c, zmq, "host_secret", "alice");
		error = raw_gc_step(socket);
		zmq_close(socket);
	}
	assert_int_equal(error, ENOTCONN);
	zmq_ctx_term(zmq);
	cluster_stop(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_request_has_a_row),
		cmocka_unit_test(test_without_roles),
		cmocka_unit_test(test_roles),
		cmocka_unit_test(test_roles_that_change),
		cmocka_unit_test(test_name_of_another),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
