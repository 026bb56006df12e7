// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Peers over real sockets with keys: a peer that tells of a host that is none of this cluster's, and
 * agents that announce somebody else.
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

#include "agent/filter.h"
#include "agent/peers.h"
#include "base/clock.h"
#include "meta/server.h"
#include "net_world.h"

#define NSEC_PER_SEC 1000000000ULL

static char dir[] = "/tmp/vmdedup-peers-XXXXXX";

static char *in_dir(const char *name)
{
	return netw_path(dir, name);
}

/* Hosts of this cluster are those whose keys may connect. */
static void make_key(const char *name, bool may_connect, uint8_t public_key[32])
{
	netw_make_key(dir, name, may_connect, public_key);
}

/* ---- a peer that tells of another, whatever it is asked ---- */

struct gossip {
	struct net_server *net;
	pthread_t thread;
	struct peer_address self, other;
	atomic_int asked;
};

static void gossip_handle(void *ctx, struct net_request *req)
{
	Vmdedup__PeerFilterReply body = VMDEDUP__PEER_FILTER_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__PeerAddress other, *others = &other;
	struct net_frame frame = { 0 };
	struct gossip *g = ctx;
	uint8_t bits[1 << (FILTER_MIN_SHIFT - 3)] = { 0 };
	void *packed;

	packed = filter_pack(bits, sizeof(bits), &frame.len);
	assert_non_null(packed);
	frame.data = packed;
	peer_address_give(&g->other, &other);
	body.others = &others;
	body.n_others = 1;
	body.generation = 1;
	body.full = true;
	body.bits_shift = FILTER_MIN_SHIFT;
	body.hashes = FILTER_HASHES;
	reply.body_case = VMDEDUP__REPLY__BODY_PEER_FILTER_GET;
	reply.peer_filter_get = &body;
	net_reply_send(req, &reply, &frame, 1);
	free(packed);
	g->asked++;
}

static const struct net_server_ops gossip_ops = { .handle = gossip_handle };

static void *gossip_run(void *arg)
{
	struct gossip *g = arg;
	struct error err = { 0 };

	assert_int_equal(net_server_run(g->net, &err), 0);
	return NULL;
}

static void gossip_start(struct gossip *g, struct net_ctx *ctx)
{
	struct error err = { 0 };

	g->net = net_server_new(ctx, "agent", NULL, &gossip_ops, g, 0, &err);
	assert_non_null(g->net);
	assert_int_equal(net_server_bind(g->net, "tcp://127.0.0.1:*", &err), 0);
	snprintf(g->self.endpoint, sizeof(g->self.endpoint), "%s", net_server_endpoint(g->net, 0));
	g->self.has_key = true;
	memcpy(g->self.key, net_ctx_public_key(ctx), 32);
	assert_int_equal(pthread_create(&g->thread, NULL, gossip_run, g), 0);
}

static void gossip_stop(struct gossip *g)
{
	net_server_stop(g->net);
	pthread_join(g->thread, NULL);
	net_server_free(g->net);
}

static void no_data(void *ctx, uint64_t id, const struct fp *fp, bool serve)
{
}

static void no_done(void *ctx, void *arg, int r, enum source_kind from, const void *data, size_t len)
{
}

/* Has its filter, and with it heard what it tells. */
static bool has_filter(struct peers *p, const struct peer_address *a)
{
	struct peers_info infos[SOURCES_MAX_PEERS];
	size_t i, n = links_list(peers_links(p), infos, SOURCES_MAX_PEERS);

	for (i = 0; i < n; i++)
		if (peer_address_equal(&infos[i].peer.address, a))
			return infos[i].filter_age_ms != UINT64_MAX;
	return false;
}

static void run_until_heard(struct peers *p, const struct peer_address *a)
{
	uint64_t until = clock_mono_ns() + 120 * NSEC_PER_SEC;

	while (!has_filter(p, a)) {
		struct pollfd pfds[8];
		int fds[8];
		size_t i, n = peers_fds(p, fds, 8);

		assert_true(clock_mono_ns() < until);
		for (i = 0; i < n; i++)
			pfds[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
		poll(pfds, n, 50);
		peers_run(p);
	}
	peers_run(p);
}

static void test_a_lying_peer(void **state)
{
	uint8_t host_key[32], friend_key[32], other_key[32], stranger_key[32];
	struct net_ctx *host, *friend, *other, *stranger;
	struct gossip f = { 0 }, o = { 0 }, s = { 0 };
	struct peers_params params = { .filter_bytes = 1 << 30, .ask_data = no_data, .done = no_done };
	struct peers_info infos[SOURCES_MAX_PEERS];
	struct error err = { 0 };
	struct peers *p;

	make_key("host", true, host_key);
	make_key("friend", true, friend_key);
	make_key("other", true, other_key);
	make_key("stranger", false, stranger_key);
	host = netw_context(in_dir("host_secret"), in_dir("clients"));
	friend = netw_context(in_dir("friend_secret"), in_dir("clients"));
	other = netw_context(in_dir("other_secret"), in_dir("clients"));
	stranger = netw_context(in_dir("stranger_secret"), in_dir("clients"));
	gossip_start(&o, other);
	gossip_start(&s, stranger);
	o.other = s.self;
	f.other = o.self;
	gossip_start(&f, friend);

	/* The meta server names the friend, the friend the other, and the other a stranger. */
	params.net = host;
	p = peers_new(&params, &err);
	assert_non_null(p);
	links_suggest(peers_links(p), &f.self, 1);
	run_until_heard(p, &f.self);
	run_until_heard(p, &o.self);
	assert_int_equal(links_list(peers_links(p), infos, SOURCES_MAX_PEERS), 2);
	assert_int_equal(s.asked, 0);
	/* When the meta server names him he is asked. */
	links_suggest(peers_links(p), &s.self, 1);
	run_until_heard(p, &s.self);
	peers_free(p);
	gossip_stop(&f);
	gossip_stop(&o);
	gossip_stop(&s);
	net_ctx_free(host);
	net_ctx_free(friend);
	net_ctx_free(other);
	net_ctx_free(stranger);
}

/* ---- who announces whom ---- */

static void *meta_run(void *arg)
{
	struct error err = { 0 };

	assert_int_equal(meta_server_run(arg, &err), 0);
	return NULL;
}

static int announce(struct net_client *c, const uint8_t *key)
{
	Vmdedup__PeerAnnounce say = VMDEDUP__PEER_ANNOUNCE__INIT;
	Vmdedup__PeerAddress address = VMDEDUP__PEER_ADDRESS__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	uint8_t cache[16] = { 1 };
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	int r;

	address.endpoint = (char *)"tcp://10.0.0.1:7403";
	if (key)
		address.curve_key = (ProtobufCBinaryData){ 32, (uint8_t *)key };
	say.cache = (ProtobufCBinaryData){ sizeof(cache), cache };
	say.address = &address;
	say.host = (char *)"host";
	say.rack = (char *)"";
	say.ttl_s = 90;
	say.want = 4;
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_ANNOUNCE;
	req.peer_announce = &say;
	r = net_call(c, &req, NULL, 0, NETW_WAIT_MS, &reply, &err);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static void test_nobody_announces_another(void **state)
{
	struct meta_init init = { .name = "test", .block_shift = 18, .replicas = 1, .min_copies = 1 };
	uint8_t meta_key[32], a_key[32], b_key[32];
	struct net_ctx *meta, *a;
	struct meta_server *server;
	struct error err = { 0 };
	struct net_client *c;
	pthread_t thread;

	make_key("meta", false, meta_key);
	make_key("a", true, a_key);
	make_key("b", true, b_key);
	meta = netw_context(in_dir("meta_secret"), in_dir("clients"));
	a = netw_context(in_dir("a_secret"), NULL);
	assert_int_equal(meta_store_init(in_dir("meta.sqlite"), &init, &err), 0);
	server = meta_server_open(meta, in_dir("meta.sqlite"), &err);
	assert_non_null(server);
	assert_int_equal(meta_server_bind(server, "tcp://127.0.0.1:*", &err), 0);
	assert_int_equal(pthread_create(&thread, NULL, meta_run, server), 0);
	c = netw_client(a, meta_server_endpoint(server, 0), meta_key);
	assert_int_equal(announce(c, a_key), 0);
	assert_int_equal(announce(c, b_key), -EACCES);
	assert_int_equal(announce(c, NULL), -EACCES);
	net_client_free(c);
	meta_server_stop(server);
	pthread_join(thread, NULL);
	meta_server_close(server);
	net_ctx_free(a);
	net_ctx_free(meta);
}

static int setup(void **state)
{
	return mkdtemp(dir) && !mkdir(in_dir("clients"), 0700) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_lying_peer),
		cmocka_unit_test(test_nobody_announces_another),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
