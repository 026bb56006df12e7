// SPDX-License-Identifier: GPL-2.0-or-later
/* Agents that serve peers, and the order of boots, as the meta server keeps them; on both stores. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta_world.h"
#include "pg_cluster.h"
#include "proto/peer_address.h"

#define TTL_S 60

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	world_init(w, 1, 1);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	world_free(*state);
	free(*state);
	return 0;
}

/* The agent of cache @n in @rack, with image @image open; the reply, with at most @want peers. */
static const Vmdedup__Reply *announce_in(struct world *w, const char *rack, unsigned int n,
					 unsigned int port, uint8_t image, uint32_t want, char *liar)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerAnnounce say = VMDEDUP__PEER_ANNOUNCE__INIT;
	Vmdedup__PeerAddress address = VMDEDUP__PEER_ADDRESS__INIT;
	struct uuid cache = { { 1, (uint8_t)n } }, open = { { image } };
	char endpoint[64], host[16];

	snprintf(endpoint, sizeof(endpoint), "tcp://10.0.0.1:%u", port);
	snprintf(host, sizeof(host), "host%u", n);
	address.endpoint = endpoint;
	say.cache = (ProtobufCBinaryData){ 16, cache.b };
	say.address = &address;
	say.host = host;
	say.rack = (char *)rack;
	say.ttl_s = TTL_S;
	say.images = (ProtobufCBinaryData){ 16, open.b };
	say.want = want;
	say.liars = &liar;
	say.n_liars = liar != NULL;
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_ANNOUNCE;
	req.peer_announce = &say;
	return world_call(w, &req, NULL, 0);
}

static const Vmdedup__Reply *announce(struct world *w, unsigned int n, unsigned int port,
				      uint8_t image, uint32_t want, char *liar)
{
	return announce_in(w, "", n, port, image, want, liar);
}

static bool names(const Vmdedup__Reply *reply, const char *endpoint)
{
	for (size_t i = 0; i < reply->peer_announce->n_peers; i++)
		if (!strcmp(reply->peer_announce->peers[i]->endpoint, endpoint))
			return true;
	return false;
}

/* Of many, those with the same image open come first; never oneself, and none twice. */
static void images_in_common_first(void **state)
{
	struct world *w = *state;
	const Vmdedup__Reply *reply;
	char endpoint[64];

	for (unsigned int n = 1; n <= 20; n++)
		assert_int_equal(announce(w, n, 1000 + n, n <= 4 ? 7 : 8, 0, NULL)->error, 0);
	reply = announce(w, 1, 1001, 7, 8, NULL);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->peer_announce->n_peers, 8);
	for (unsigned int n = 2; n <= 4; n++) {
		snprintf(endpoint, sizeof(endpoint), "tcp://10.0.0.1:%u", 1000 + n);
		assert_true(names(reply, endpoint));
	}
	assert_false(names(reply, "tcp://10.0.0.1:1001"));
	for (size_t i = 0; i < 8; i++)
		for (size_t k = 0; k < i; k++)
			assert_string_not_equal(reply->peer_announce->peers[i]->endpoint,
						reply->peer_announce->peers[k]->endpoint);
}

/* Of the same rack are half, however many there are; the others are elsewhere, with what is in common
 * before what is not. */
static void racks_know_each_other(void **state)
{
	struct world *w = *state;
	const Vmdedup__Reply *reply;
	unsigned int same = 0, common = 0, far = 0;

	for (unsigned int n = 1; n <= 60; n++)
		assert_int_equal(announce_in(w, n % 3 ? n % 3 == 1 ? "a" : "b" : "", n, 1000 + n,
					     n <= 45 ? 7 : 8, 0, NULL)->error, 0);
	reply = announce_in(w, "a", 1, 1001, 7, 16, NULL);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->peer_announce->n_peers, 16);
	for (size_t i = 0; i < 16; i++) {
		unsigned int n = (unsigned int)atoi(strrchr(reply->peer_announce->peers[i]->endpoint, ':')
						    + 1) - 1000;
		uint32_t rack = reply->peer_announce->peers[i]->rack;

		assert_int_equal(rack, peer_rack(n % 3 ? n % 3 == 1 ? "a" : "b" : ""));
		same += i < 8 && n % 3 == 1 && n <= 45;
		common += i >= 8 && i < 12 && n <= 45;
		far += n % 3 != 1;
	}
	assert_int_equal(same, 8);
	assert_true(far >= 4);
	assert_int_equal(common, 4);
	/* Alone in its rack, or in none: as if there were no racks. */
	assert_int_equal(announce_in(w, "c", 1, 1001, 7, 16, NULL)->peer_announce->n_peers, 16);
	assert_int_equal(announce_in(w, "", 1, 1001, 7, 16, NULL)->peer_announce->n_peers, 16);
}

/* Who is silent is forgotten, with its images; a new cache at an address takes the old one's place. */
static void silent_ones_are_forgotten(void **state)
{
	struct world *w = *state;

	assert_int_equal(announce(w, 1, 1001, 7, 0, NULL)->error, 0);
	assert_true(names(announce(w, 2, 1002, 7, 4, NULL), "tcp://10.0.0.1:1001"));
	w->wall_s += TTL_S + 1;
	assert_int_equal(announce(w, 2, 1002, 7, 4, NULL)->peer_announce->n_peers, 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM peers"), 1);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM peer_images"), 1);
	assert_int_equal(announce(w, 3, 1002, 7, 4, NULL)->peer_announce->n_peers, 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM peers WHERE host = 'host3'"), 1);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM peer_images "), 1);
}

static void liars_are_counted(void **state)
{
	struct world *w = *state;

	assert_int_equal(announce(w, 1, 1001, 7, 0, NULL)->error, 0);
	assert_int_equal(announce(w, 2, 1002, 7, 0, (char *)"tcp://10.0.0.1:1001")->error, 0);
	assert_int_equal(announce(w, 2, 1002, 7, 0, (char *)"tcp://10.0.0.1:1001")->error, 0);
	assert_int_equal(world_sql(w, "SELECT accused FROM peers WHERE endpoint = "
				   "'tcp://10.0.0.1:1001'"), 2);
	assert_int_equal(world_sql(w, "SELECT sum(accused) FROM peers"), 2);
	assert_int_equal(announce(w, 1, 1001, 7, 1U << 31, NULL)->error, 0); /* as many as there are */
}

/* ---- traces ---- */

static int put_trace(struct world *w, uint64_t root, uint8_t image, const char *text, size_t len)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__TracePut put = VMDEDUP__TRACE_PUT__INIT;
	struct uuid of = { { image } };
	struct fp fp = world_fp(root);

	put.root = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	put.image = (ProtobufCBinaryData){ 16, of.b };
	put.blocks = (ProtobufCBinaryData){ len, (uint8_t *)text };
	req.body_case = VMDEDUP__REQUEST__BODY_TRACE_PUT;
	req.trace_put = &put;
	return world_call(w, &req, NULL, 0)->error;
}

static void expect_trace(struct world *w, uint64_t root, uint8_t image, const char *text)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__TraceGet get = VMDEDUP__TRACE_GET__INIT;
	struct uuid of = { { image } };
	struct fp fp = world_fp(root);
	const Vmdedup__Reply *reply;

	get.root = (ProtobufCBinaryData){ FP_SIZE, fp.b };
	get.image = (ProtobufCBinaryData){ 16, of.b };
	req.body_case = VMDEDUP__REQUEST__BODY_TRACE_GET;
	req.trace_get = &get;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	assert_int_equal(reply->trace_get->blocks.len, strlen(text));
	assert_memory_equal(reply->trace_get->blocks.data, text, strlen(text));
}

/* By root; else the newest one of the image; a new one takes an old one's place. */
static void trace_of_a_root(void **state)
{
	struct world *w = *state;

	expect_trace(w, 1, 7, "");
	assert_int_equal(put_trace(w, 1, 7, "one", 3), 0);
	w->wall_s++;
	assert_int_equal(put_trace(w, 2, 7, "two", 3), 0);
	expect_trace(w, 1, 7, "one");
	expect_trace(w, 3, 7, "two");
	expect_trace(w, 3, 8, "");
	assert_int_equal(put_trace(w, 1, 7, "again", 5), 0);
	expect_trace(w, 1, 9, "again");
	assert_int_equal(put_trace(w, 1, 7, "", 0), EMSGSIZE);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM traces"), 2);
}

static int run(const char *name)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(images_in_common_first),
		T(racks_know_each_other),
		T(silent_ones_are_forgotten),
		T(liars_are_counted),
		T(trace_of_a_root),
	};

	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
	return pg_run_both(run, world_use_pg);
}
