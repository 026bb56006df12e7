// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Links to peers without sockets, in simulated time: what filters may cost an hour, and whose word on
 * where a host is, and by which key, is taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <cmocka.h>

#include "agent/budget.h"
#include "agent/host_filter.h"
#include "agent/links.h"
#include "base/cleanup.h"

#define SECOND	 1000000000ULL
#define HOUR	 (3600 * SECOND)
#define NR_PEERS 16

/* ---- a host and its peers ---- */

struct spent {
	uint64_t at, bytes;
};

struct world {
	uint64_t now, seed;
	struct links *links;
	struct host_filter *peers[NR_PEERS];
	/* the question that waits for its answer, by the number of the peer */
	struct question {
		bool asked;
		unsigned int life;
		uint64_t generation, additions, max;
	} questions[SOURCES_MAX_PEERS];
	struct spent spent[65536];
	size_t nr_spent;
	/* what the peers tell of others, whatever they are asked */
	struct peer_address others[8];
	size_t nr_others;
	unsigned int asked_peer[SOURCES_MAX_PEERS], nr_data, nr_waiting;
	uint64_t last_id;
};

static uint64_t op_now(void *ctx)
{
	return ((struct world *)ctx)->now;
}

static uint64_t op_random(void *ctx)
{
	struct world *w = ctx;

	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return w->seed;
}

static void op_send_blocks(void *ctx, unsigned int peer, const struct link_ask *asks, unsigned int nr)
{
	struct world *w = ctx;

	unsigned int i;

	w->asked_peer[peer] += nr;
	w->nr_waiting += asks[0].wait_ms != 0;
	for (i = 0; i < nr; i++)
		assert_true(!asks[i].wait_ms || nr == 1); /* its answer holds up no other */
	w->last_id = asks[0].id;
}

static bool op_send_filter(void *ctx, unsigned int peer, uint64_t generation, uint64_t additions,
			   uint64_t max)
{
	struct world *w = ctx;

	w->questions[peer] = (struct question){ true, links_life(w->links, peer), generation,
						additions, max };
	return true;
}

static void op_ask_data(void *ctx, uint64_t id, const struct fp *fp, bool serve)
{
	((struct world *)ctx)->nr_data++;
	((struct world *)ctx)->last_id = id;
}

static void op_done(void *ctx, void *arg, int r, enum source_kind from, const void *data, size_t len)
{
}

static void op_gone(void *ctx, unsigned int peer)
{
}

/* Keys of this cluster begin with 1. */
static bool op_knows_key(void *ctx, const struct peer_address *a)
{
	return a->has_key && a->key[0] == 1;
}

static const struct link_ops ops = {
	op_now, op_random, op_send_blocks, op_send_filter, op_ask_data, op_done, op_gone, op_knows_key,
};

static struct peer_address address(unsigned int host, uint8_t first, uint8_t second)
{
	struct peer_address a = { .has_key = true, .key = { first, second } };

	snprintf(a.endpoint, sizeof(a.endpoint), "tcp://10.0.0.%u:7403", host);
	return a;
}

static struct world *new_world(uint64_t filter_bytes)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	w->now = SECOND;
	w->seed = 0x1234567;
	w->links = links_new(&ops, w, NULL, filter_bytes);
	assert_non_null(w->links);
	links_set_block_shift(w->links, 18);
	return w;
}

static void free_world(struct world *w)
{
	unsigned int i;

	for (i = 0; i < NR_PEERS; i++)
		host_filter_free(w->peers[i]);
	links_free(w->links);
	free(w);
}

/* ---- the budget ---- */

/* The most that was spent in any hour. */
static uint64_t most_in_an_hour(const struct spent *s, size_t nr)
{
	uint64_t sum = 0, most = 0;
	size_t i, from = 0;

	for (i = 0; i < nr; i++) {
		sum += s[i].bytes;
		while (s[i].at - s[from].at >= HOUR)
			sum -= s[from++].bytes;
		most = MAX(most, sum);
	}
	return most;
}

static void test_budget(void **state)
{
	struct world *w = new_world(0);
	static struct spent spent[20000];
	struct budget b;
	uint64_t sum = 0;
	size_t i;

	budget_init(&b, 1000000, w->now);
	assert_int_equal(budget_left(&b, w->now), 500000);
	for (i = 0; i < ARRAY_SIZE(spent); i++) {
		uint64_t want = op_random(w) % 30000, left;

		w->now += op_random(w) % (20 * SECOND);
		left = budget_left(&b, w->now);
		spent[i] = (struct spent){ w->now, MIN(want, left) };
		budget_spend(&b, spent[i].bytes);
		sum += spent[i].bytes;
	}
	assert_in_range(most_in_an_hour(spent, i), 900000, 1000000);
	/* What is spent goes on at half of it. */
	assert_true(sum >= (w->now - SECOND) / HOUR * 499000);
	/* When it says that there will be enough, there is. */
	budget_spend(&b, budget_left(&b, w->now) + 100);
	w->now = budget_when_ns(&b, 5000) - SECOND;
	assert_true(budget_left(&b, w->now) < 5000);
	w->now += SECOND;
	assert_true(budget_left(&b, w->now) >= 5000);
	budget_init(&b, 0, w->now);
	assert_int_equal(budget_left(&b, w->now + 10 * HOUR), 0);
	free_world(w);
}

/* ---- what filters cost ---- */

static struct fp random_fp(struct world *w)
{
	struct fp fp = { { 0 } };
	uint64_t x = op_random(w), y = op_random(w);

	memcpy(fp.b, &x, 8);
	memcpy(fp.b + 8, &y, 8);
	return fp;
}

static void new_generation(struct world *w, unsigned int peer, unsigned int blocks)
{
	struct fp fp;

	assert_int_equal(host_filter_begin(w->peers[peer], blocks), 0);
	while (blocks--) {
		fp = random_fp(w);
		host_filter_put(w->peers[peer], &fp);
	}
	host_filter_end(w->peers[peer]);
}

static void answer(struct world *w, unsigned int peer)
{
	struct question *q = &w->questions[peer];
	struct link_filter f = { .hashes = FILTER_HASHES };
	struct host_filter_answer a = { 0 };
	int r;

	if (!q->asked)
		return;
	q->asked = false;
	r = host_filter_answer(w->peers[peer % NR_PEERS], w->now, q->generation, q->additions, q->max,
			       &a);
	assert_true(!r || r == -EFBIG || r == -EDQUOT);
	assert_true(r || a.packed_len <= q->max);
	f.generation = a.generation;
	f.additions = a.additions;
	f.blocks = a.blocks;
	f.shift = a.shift;
	f.full = a.full;
	f.too_large = r == -EFBIG ? a.packed_len : 0;
	f.packed = a.packed;
	f.packed_len = r ? 0 : a.packed_len;
	w->spent[w->nr_spent++] = (struct spent){ w->now, f.packed_len + FILTER_OVERHEAD };
	assert_true(w->nr_spent < ARRAY_SIZE(w->spent));
	links_filter(w->links, peer, q->life, 0, r == -EDQUOT ? NULL : &f);
	free(a.packed);
}

/* Peers whose filters take 64 KiB and are begun anew every ten minutes, with additions between: for
 * @hours. Without a bound that is about 16 * 6 * 64 KiB = 6 MiB an hour, and additions. */
static void run_hours(struct world *w, unsigned int hours)
{
	uint64_t until = w->now + hours * HOUR, generation_ns = 0, add_ns = 0, next;
	unsigned int i;

	while (w->now < until) {
		if (w->now >= generation_ns) {
			for (i = 0; i < NR_PEERS; i++)
				new_generation(w, i, 40000);
			generation_ns = w->now + 600 * SECOND;
		}
		if (w->now >= add_ns) {
			for (i = 0; i < NR_PEERS; i++) {
				struct fp fp = random_fp(w);

				host_filter_add(w->peers[i], &fp);
			}
			add_ns = w->now + 10 * SECOND;
		}
		links_run(w->links);
		w->now += SECOND / 100;
		for (i = 0; i < SOURCES_MAX_PEERS; i++)
			answer(w, i);
		next = links_next_ns(w->links);
		/* It does not turn round and round while the budget is spent. */
		w->now = MAX(w->now, MIN(next, MIN(generation_ns, add_ns)));
	}
}

static struct world *filter_world(uint64_t in, uint64_t out)
{
	struct world *w = new_world(in);
	struct peer_address list[NR_PEERS];
	unsigned int i;

	for (i = 0; i < NR_PEERS; i++) {
		list[i] = address(i, 1, (uint8_t)i);
		w->peers[i] = host_filter_new(out, w->now);
		assert_non_null(w->peers[i]);
	}
	links_suggest(w->links, list, NR_PEERS);
	return w;
}

static unsigned int with_filters(struct world *w, uint64_t younger_ms)
{
	struct peers_info infos[SOURCES_MAX_PEERS];
	size_t i, n = links_list(w->links, infos, SOURCES_MAX_PEERS);
	unsigned int with = 0;

	for (i = 0; i < n; i++)
		with += infos[i].filter_age_ms < younger_ms;
	return with;
}

static void test_filters_within_the_budget(void **state)
{
	const uint64_t budget = 4 << 20;
	struct world *w = filter_world(1ULL << 40, 1ULL << 40);

	/* Without a bound. */
	run_hours(w, 1);
	assert_int_equal(with_filters(w, 10000), NR_PEERS);
	assert_true(most_in_an_hour(w->spent, w->nr_spent) > 2 * budget);
	free_world(w);
	/* It is kept, used, and used for all peers alike. */
	w = filter_world(budget, 1ULL << 40);
	run_hours(w, 3);
	assert_in_range(most_in_an_hour(w->spent, w->nr_spent), budget / 2, budget);
	assert_int_equal(with_filters(w, 5400000), NR_PEERS);
	free_world(w);
	/* None at all. */
	w = filter_world(0, 1ULL << 40);
	run_hours(w, 1);
	assert_int_equal(w->nr_spent, 0);
	free_world(w);
}

/* The one who gives out has a budget of his own, whatever he is asked. */
static void test_filters_given_out(void **state)
{
	const uint64_t budget = 1 << 20;
	struct host_filter *h = host_filter_new(budget, 0);
	struct world *w = new_world(0);
	struct host_filter_answer a;
	static struct spent spent[20000];
	unsigned int i, refused = 0;
	size_t n = 0;
	int r;

	w->peers[0] = h;
	new_generation(w, 0, 20000);
	for (i = 0; i < 20000; i++) {
		w->now += SECOND;
		r = host_filter_answer(h, w->now, 0, 0, 0, &a);
		refused += r == -EDQUOT;
		if (!r)
			spent[n++] = (struct spent){ w->now, a.packed_len + FILTER_OVERHEAD };
		free(a.packed);
	}
	assert_true(n > 10 && refused > 10000);
	assert_in_range(most_in_an_hour(spent, n), budget / 2, budget);
	assert_int_equal(host_filter_answer(h, w->now + HOUR, 0, 0, 100, &a), -EFBIG);
	assert_true(a.packed_len > 100 && !a.packed);
	free_world(w);
}

/* ---- whose word is taken ---- */

/* The peers that there are: as bits of the last byte of their addresses. */
static uint64_t known(struct world *w)
{
	struct peers_info infos[SOURCES_MAX_PEERS];
	size_t i, n = links_list(w->links, infos, SOURCES_MAX_PEERS);
	unsigned int host;
	uint64_t set = 0;

	for (i = 0; i < n; i++) {
		assert_int_equal(sscanf(infos[i].peer.address.endpoint, "tcp://10.0.0.%u:", &host), 1);
		if (infos[i].peer.state != PEER_LIAR)
			set |= 1ULL << host;
	}
	return set;
}

/* Peer 0, which the meta server has named, tells of others. */
static void tell_of(struct world *w, struct peer_address other)
{
	struct link_filter f = { .too_large = 1, .others = &other, .nr_others = 1 };
	unsigned int i;

	w->now += 10 * SECOND;
	links_run(w->links);
	assert_true(w->questions[0].asked);
	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		if (w->questions[i].asked)
			links_filter(w->links, i, w->questions[i].life, 0, i ? NULL : &f);
		w->questions[i].asked = false;
	}
}

static void test_a_peer_is_not_believed_about_others(void **state)
{
	struct world *w = new_world(1ULL << 30);
	struct peer_address list[2] = { address(0, 1, 0), address(1, 1, 1) };

	links_suggest(w->links, list, 2);
	assert_int_equal(known(w), 3);
	/* A host of this cluster. */
	tell_of(w, address(2, 1, 2));
	assert_int_equal(known(w), 7);
	/* A key that nobody of this cluster has; and none. */
	tell_of(w, address(3, 9, 3));
	assert_int_equal(known(w), 7);
	tell_of(w, (struct peer_address){ .endpoint = "tcp://10.0.0.4:7403" });
	assert_int_equal(known(w), 7);
	/* The meta server says that another key belongs there. */
	tell_of(w, address(1, 1, 7));
	assert_int_equal(known(w), 7);
	/* The meta server's word suffices, also for a key that may not connect to this host. */
	list[1] = address(3, 9, 3);
	links_suggest(w->links, list, 2);
	assert_int_equal(known(w), 15);
	/* It was told a wrong key before: that record is dead, and the right one is used. */
	tell_of(w, address(5, 1, 6));
	assert_int_equal(known(w), 15 | 1 << 5);
	list[1] = address(5, 1, 5);
	links_suggest(w->links, list, 2);
	assert_int_equal(known(w), 15 | 1 << 5);
	assert_true(links_vouched(w->links, &list[1]));
	list[1] = address(5, 1, 6);
	assert_false(links_vouched(w->links, &list[1]));
	/* One from the file whose key is no longer one of this cluster's. */
	list[1] = address(6, 9, 6);
	links_remember(w->links, &list[1], false);
	links_met(w->links, &list[1]);
	assert_int_equal(known(w), 15 | 1 << 5);
	free_world(w);
}

static void test_a_busy_peer_names_whom_it_likes(void **state)
{
	struct world *w = new_world(1ULL << 30);
	struct peer_address list[1] = { address(0, 1, 0) }, named[2];
	struct fp fp = random_fp(w);

	links_suggest(w->links, list, 1);
	assert_int_equal(sources_get(links_sources(w->links), &fp, NULL), 0);
	links_run(w->links);
	assert_int_equal(w->nr_data, 1);
	/* The data server is believed: it names only those whose key it has seen proved. */
	sources_data_redirect(links_sources(w->links), w->last_id, list, 1);
	links_run(w->links);
	assert_int_equal(w->asked_peer[0], 1);
	assert_int_equal(w->nr_waiting, 1); /* one that was named may answer when the block has come */
	named[0] = address(1, 9, 1);
	named[1] = address(2, 1, 2);
	links_answered(w->links, 0, true);
	links_block(w->links, 0, w->last_id, -EREMOTE, NULL, 0, named, 2);
	links_run(w->links);
	assert_int_equal(known(w), 1 | 1 << 2);
	free_world(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_budget),
		cmocka_unit_test(test_filters_within_the_budget),
		cmocka_unit_test(test_filters_given_out),
		cmocka_unit_test(test_a_peer_is_not_believed_about_others),
		cmocka_unit_test(test_a_busy_peer_names_whom_it_likes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
