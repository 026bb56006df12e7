// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Where blocks come from: sources.c among simulated peers and a data server, with the real memory of
 * redirects (data/redirect.c). Random worlds print their seed; VMDEDUP_SEED=N runs that one.
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

#include "agent/sources.h"
#include "base/cleanup.h"
#include "data/redirect.h"

#define MS	  1000000ULL
#define MAX_HOSTS 40
#define BLOCKS	  64
#define EVENTS	  65536
#define MAX_KNOWN 1024 /* peers that the server remembers */

enum mood { GOOD, EMPTY, LIES, SILENT, BUSY };

/* An answer on its way: to a question of host @to, by peer number @peer there, or by the server. */
struct event {
	uint64_t at;
	unsigned int to;
	int from; /* a host; -1: the data server */
	unsigned int peer;
	uint64_t id;
	unsigned int block;
	bool serve;
};

struct world;

struct sim_host {
	struct world *world;
	unsigned int n;
	struct peer_address address;
	enum mood mood;
	struct sources *sources;
	struct filter_table *filters;
	bool has[BLOCKS], getting[BLOCKS];
	unsigned int got, failed, by_peer;
	unsigned int asked; /* by others */
	unsigned int sent[BLOCKS];
};

struct world {
	uint64_t now, seed;
	struct sim_host hosts[MAX_HOSTS];
	unsigned int nr_hosts;
	struct redirect *redirect;
	bool server_dead;
	unsigned int served, server_asked;
	unsigned int copies[BLOCKS];
	struct event *events;
	size_t nr_events;
};

static uint64_t rnd(struct world *w)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return w->seed;
}

static struct fp fp_of(unsigned int block)
{
	struct fp fp;
	size_t i;

	for (i = 0; i < FP_SIZE; i++)
		fp.b[i] = (uint8_t)((block + 1) * (2 * i + 37) * 97 >> 3);
	fp.b[0] = (uint8_t)(block + 1);
	return fp;
}

static unsigned int block_of(const struct fp *fp)
{
	return fp->b[0] - 1U;
}

/* ---- the operations ---- */

static uint64_t op_now(void *ctx)
{
	return ((struct sim_host *)ctx)->world->now;
}

static uint64_t op_random(void *ctx)
{
	return rnd(((struct sim_host *)ctx)->world);
}

static void ask(struct sim_host *h, int from, unsigned int peer, uint64_t id, const struct fp *fp,
		bool serve, uint64_t delay)
{
	struct world *w = h->world;

	assert_true(w->nr_events < EVENTS);
	w->events[w->nr_events++] = (struct event){
		w->now + delay, h->n, from, peer, id, block_of(fp), serve,
	};
}

static int host_at(struct world *w, const struct peer_address *a)
{
	unsigned int i;

	for (i = 0; i < w->nr_hosts; i++)
		if (peer_address_equal(&w->hosts[i].address, a))
			return (int)i;
	return -1;
}

static void op_ask_peer(void *ctx, unsigned int peer, uint64_t id, const struct fp *fp,
			unsigned int wait_ms)
{
	struct sim_host *h = ctx;
	struct world *w = h->world;
	int to = host_at(w, &sources_peer_at(h->sources, peer)->address);

	assert_true(to >= 0 && to != (int)h->n); /* nobody asks himself */
	w->hosts[to].asked++;
	ask(h, to, peer, id, fp, false,
	    w->hosts[to].mood == SILENT ? 2000 * MS : (1 + rnd(w) % 5) * MS);
}

static void op_ask_data(void *ctx, uint64_t id, const struct fp *fp, bool serve)
{
	struct sim_host *h = ctx;

	h->world->server_asked++;
	ask(h, -1, 0, id, fp, serve,
	    h->world->server_dead ? 10000 * MS : (2 + rnd(h->world) % 8) * MS);
}

static void op_done(void *ctx, void *arg, int r, enum source_kind from, const void *data, size_t len)
{
	struct sim_host *h = ctx;
	unsigned int block = (unsigned int)(uintptr_t)arg;

	assert_true(h->getting[block]); /* once, and only what was asked for */
	h->getting[block] = false;
	if (r) {
		h->failed++;
		return;
	}
	h->has[block] = true;
	h->got++;
	h->by_peer += from == SOURCE_PEER;
}

static void op_peer_gone(void *ctx, unsigned int peer)
{
}

static const struct source_ops ops = {
	.now_ns = op_now,
	.random = op_random,
	.ask_peer = op_ask_peer,
	.ask_data = op_ask_data,
	.done = op_done,
	.peer_gone = op_peer_gone,
};

/* ---- answers ---- */

static void answer_by_server(struct world *w, const struct event *e)
{
	const struct peer_address *names[REDIRECT_NAMES];
	struct peer_address copies[REDIRECT_NAMES];
	struct sim_host *h = &w->hosts[e->to];
	struct fp fp = fp_of(e->block);
	size_t i, n;

	if (w->server_dead) {
		sources_data_answer(h->sources, e->id, -ETIMEDOUT, NULL, 0);
		return;
	}
	n = redirect_ask(w->redirect, &fp, &h->address, e->serve, 1, w->now, names);
	if (n) {
		for (i = 0; i < n; i++) {
			copies[i] = *names[i];
			assert_false(peer_address_equal(&copies[i], &h->address));
		}
		sources_data_redirect(h->sources, e->id, copies, n);
		return;
	}
	w->served++;
	w->copies[e->block]++;
	sources_data_answer(h->sources, e->id, 0, "x", 1);
}

static void answer_by_peer(struct world *w, const struct event *e)
{
	struct sim_host *from = &w->hosts[e->from], *h = &w->hosts[e->to];
	int r = -ENOENT;

	if (from->mood == SILENT)
		r = -ETIMEDOUT;
	else if (from->mood == LIES)
		r = -EBADMSG;
	else if (from->mood == BUSY)
		r = -EBUSY;
	else if (from->mood == GOOD && from->has[e->block])
		r = 0;
	else if (from->mood == GOOD && from->getting[e->block])
		r = -EINPROGRESS;
	from->sent[e->block] += !r;
	sources_peer_answer(h->sources, e->peer, e->id, r, r ? NULL : "x", r ? 0 : 1, NULL, 0);
}

static void tick_all(struct world *w)
{
	unsigned int i;

	for (i = 0; i < w->nr_hosts; i++)
		sources_tick(w->hosts[i].sources);
}

static uint64_t next_moment(struct world *w)
{
	uint64_t next = UINT64_MAX;
	unsigned int i;
	size_t k;

	for (i = 0; i < w->nr_hosts; i++)
		next = MIN(next, sources_next_ns(w->hosts[i].sources));
	for (k = 0; k < w->nr_events; k++)
		next = MIN(next, w->events[k].at);
	return next;
}

/* Runs until nothing is under way. */
static void run(struct world *w)
{
	uint64_t next;
	size_t k;

	for (;;) {
		tick_all(w);
		next = next_moment(w);
		if (next == UINT64_MAX)
			return;
		w->now = MAX(w->now, next);
		for (k = 0; k < w->nr_events;) {
			struct event e = w->events[k];

			if (e.at > w->now) {
				k++;
				continue;
			}
			w->events[k] = w->events[--w->nr_events];
			if (e.from < 0)
				answer_by_server(w, &e);
			else
				answer_by_peer(w, &e);
		}
	}
}

static void get(struct sim_host *h, unsigned int block)
{
	struct fp fp = fp_of(block);

	h->getting[block] = true;
	assert_int_equal(sources_get(h->sources, &fp, (void *)(uintptr_t)block), 0);
}

static struct world *new_world(unsigned int hosts, uint64_t seed)
{
	struct world *w = calloc(1, sizeof(*w));
	unsigned int i;

	assert_non_null(w);
	w->seed = seed * 0x9e3779b97f4a7c15ULL + 1;
	w->now = 1000 * MS;
	w->nr_hosts = hosts;
	w->redirect = redirect_new(1024, MAX_KNOWN);
	w->events = calloc(EVENTS, sizeof(*w->events));
	assert_non_null(w->redirect);
	assert_non_null(w->events);
	for (i = 0; i < hosts; i++) {
		struct sim_host *h = &w->hosts[i];

		h->world = w;
		h->n = i;
		snprintf(h->address.endpoint, sizeof(h->address.endpoint), "tcp://10.0.0.%u:7403", i);
		h->filters = filter_table_new(1 << 20, SOURCES_MAX_PEERS);
		h->sources = sources_new(&ops, h, h->filters);
		assert_non_null(h->sources);
		sources_set_self(h->sources, &h->address);
	}
	return w;
}

static void free_world(struct world *w)
{
	unsigned int i;

	for (i = 0; i < w->nr_hosts; i++) {
		sources_free(w->hosts[i].sources);
		filter_table_free(w->hosts[i].filters);
	}
	redirect_free(w->redirect);
	free(w->events);
	free(w);
}

/* Host @of tells @to what it has: everything. */
static unsigned int tell(struct world *w, unsigned int to, unsigned int of)
{
	int peer = sources_peer(w->hosts[to].sources, &w->hosts[of].address);
	static uint8_t bits[1 << (FILTER_MIN_SHIFT - 3)];
	unsigned int b;

	assert_true(peer >= 0);
	memset(bits, 0, sizeof(bits));
	for (b = 0; b < BLOCKS; b++) {
		struct fp fp = fp_of(b);

		filter_set(bits, FILTER_MIN_SHIFT, FILTER_HASHES, fp.b);
	}
	assert_int_equal(filter_table_set(w->hosts[to].filters, (unsigned int)peer, bits,
					  FILTER_MIN_SHIFT), 0);
	return (unsigned int)peer;
}

/* ---- tests ---- */

/* All hosts want all blocks at once, and nobody knows what anybody has. */
static void test_a_storm_is_served_once(void **state)
{
	struct world *w = new_world(MAX_HOSTS, 1);
	unsigned int i, b, most = 0;

	for (b = 0; b < BLOCKS; b++)
		for (i = 0; i < w->nr_hosts; i++)
			get(&w->hosts[i], b);
	run(w);
	for (i = 0; i < w->nr_hosts; i++)
		assert_int_equal(w->hosts[i].got, BLOCKS);
	print_message("# %u hosts, %u blocks: %u served by the data server\n", w->nr_hosts, BLOCKS,
		      w->served);
	assert_true(w->served <= BLOCKS * 3 / 2);
	/* A tree, and not a star with another centre. */
	for (i = 0; i < w->nr_hosts; i++)
		for (b = 0; b < BLOCKS; b++)
			most = MAX(most, w->hosts[i].sent[b]);
	print_message("# at most %u times by one host\n", most);
	assert_true(most <= 3 * REDIRECT_FANOUT);
	free_world(w);
}

static void test_filters_spare_the_server(void **state)
{
	struct world *w = new_world(4, 2);
	unsigned int b;

	for (b = 0; b < BLOCKS; b++)
		w->hosts[1].has[b] = w->hosts[2].has[b] = true;
	tell(w, 0, 1);
	tell(w, 0, 2);
	for (b = 0; b < BLOCKS; b++)
		get(&w->hosts[0], b);
	run(w);
	assert_int_equal(w->hosts[0].got, BLOCKS);
	assert_int_equal(w->hosts[0].by_peer, BLOCKS);
	assert_int_equal(w->server_asked, 0);
	assert_true(w->hosts[1].asked > BLOCKS / 5 && w->hosts[2].asked > BLOCKS / 5);
	free_world(w);
}

/* Of two that have all, the one in the rack is asked, and the other when that one is loaded. */
static void test_the_rack_comes_first(void **state)
{
	struct world *w = new_world(3, 2);
	unsigned int b, i;

	for (i = 0; i < 3; i++)
		w->hosts[i].address.rack = peer_rack(i < 2 ? "r1" : "r2");
	sources_set_self(w->hosts[0].sources, &w->hosts[0].address);
	for (b = 0; b < BLOCKS; b++)
		w->hosts[1].has[b] = w->hosts[2].has[b] = true;
	tell(w, 0, 1);
	tell(w, 0, 2);
	for (b = 0; b < BLOCKS; b++) {
		get(&w->hosts[0], b);
		run(w);
	}
	print_message("# %u asked of the rack, %u of the other\n", w->hosts[1].asked, w->hosts[2].asked);
	assert_int_equal(w->hosts[0].by_peer, BLOCKS);
	assert_true(w->hosts[1].asked > 4 * w->hosts[2].asked);
	free_world(w);
}

/* At most three are asked, whatever filters say, before the data server is. */
static void test_three_probes(void **state)
{
	struct world *w = new_world(8, 3);
	unsigned int i, asked = 0;

	for (i = 1; i < 8; i++) {
		tell(w, 0, i);
		w->hosts[i].mood = EMPTY;
	}
	get(&w->hosts[0], 5);
	run(w);
	for (i = 1; i < 8; i++)
		asked += w->hosts[i].asked;
	assert_int_equal(asked, PEER_PROBES);
	assert_int_equal(w->hosts[0].got, 1);
	assert_int_equal(w->served, 1);
	free_world(w);
}

static void test_a_liar_is_not_asked_again(void **state)
{
	struct world *w = new_world(2, 4);
	unsigned int b, peer;

	w->hosts[1].mood = LIES;
	peer = tell(w, 0, 1);
	for (b = 0; b < BLOCKS; b++) {
		get(&w->hosts[0], b);
		run(w);
	}
	assert_int_equal(w->hosts[0].got, BLOCKS);
	assert_int_equal(w->hosts[1].asked, 1);
	assert_int_equal(sources_peer_at(w->hosts[0].sources, peer)->state, PEER_LIAR);
	/* Also when a server names it. */
	sources_peer(w->hosts[0].sources, &w->hosts[1].address);
	assert_false(sources_peer_usable(w->hosts[0].sources, peer));
	free_world(w);
}

/* Hedges are few, a silent peer holds up what it was asked for once and nothing after that. */
static void test_a_silent_peer(void **state)
{
	struct world *w = new_world(3, 5);
	struct sources_stats st;
	unsigned int b;
	uint64_t began;

	for (b = 0; b < BLOCKS; b++)
		w->hosts[2].has[b] = true;
	w->hosts[1].mood = SILENT;
	tell(w, 0, 1);
	began = w->now;
	for (b = 0; b < BLOCKS; b++)
		get(&w->hosts[0], b);
	run(w);
	sources_stats(w->hosts[0].sources, &st);
	print_message("# %llu ms, %llu hedges\n", (unsigned long long)((w->now - began) / MS),
		      (unsigned long long)st.hedges);
	assert_int_equal(w->hosts[0].got, BLOCKS);
	assert_true(st.hedges * 20 <= st.peer_gets);
	assert_true(w->now - began < 4000 * MS);
	began = w->hosts[1].asked;
	get(&w->hosts[0], 0);
	run(w);
	assert_int_equal(w->hosts[1].asked, began);
	free_world(w);
}

static void test_a_lost_connection_waits_for_nothing(void **state)
{
	struct world *w = new_world(2, 6);
	unsigned int b, peer;

	w->hosts[1].mood = SILENT;
	peer = tell(w, 0, 1);
	for (b = 0; b < 16; b++)
		get(&w->hosts[0], b);
	tick_all(w);
	assert_int_equal(sources_peer_at(w->hosts[0].sources, peer)->asking, 16);
	sources_peer_lost(w->hosts[0].sources, peer);
	while (w->hosts[0].got < 16 && w->now < 1500 * MS) {
		struct event e;
		size_t k, best = 0;

		for (k = 1; k < w->nr_events; k++)
			if (w->events[k].at < w->events[best].at)
				best = k;
		e = w->events[best];
		w->events[best] = w->events[--w->nr_events];
		w->now = e.at;
		assert_true(e.from < 0);
		answer_by_server(w, &e);
	}
	assert_int_equal(w->hosts[0].got, 16);
	run(w); /* its late answers change nothing */
	assert_int_equal(w->hosts[0].got, 16);
	assert_int_equal(sources_peer_at(w->hosts[0].sources, peer)->asking, 0);
	free_world(w);
}

static void test_dead_data_servers(void **state)
{
	struct world *w = new_world(6, 7);
	unsigned int b, i;
	uint64_t began = w->now;

	w->server_dead = true;
	for (b = 0; b < BLOCKS; b++)
		w->hosts[1 + b % 3].has[b] = true;
	for (i = 1; i < 4; i++) /* known, and no filters yet */
		assert_true(sources_peer(w->hosts[0].sources, &w->hosts[i].address) >= 0);
	for (b = 0; b < BLOCKS; b++)
		get(&w->hosts[0], b);
	run(w);
	assert_int_equal(w->hosts[0].got, BLOCKS);
	/* The servers' silence is not waited for to its end. */
	assert_true(w->now - began < 11000 * MS);
	free_world(w);
}

/* Everybody in some mood: each get ends, with a block as long as the server lives. */
static void test_random_worlds(void **state)
{
	const char *one = getenv("VMDEDUP_SEED");
	uint64_t seed, from = one ? strtoull(one, NULL, 10) : 100, to = one ? from + 1 : 160;
	unsigned int i, b, n;

	for (seed = from; seed < to; seed++) {
		struct world *w = new_world(12, seed);

		for (i = 1; i < w->nr_hosts; i++) {
			w->hosts[i].mood = (enum mood)(rnd(w) % 5);
			for (b = 0; b < BLOCKS; b++)
				w->hosts[i].has[b] = rnd(w) % 3 == 0;
			if (rnd(w) % 2)
				tell(w, 0, i);
		}
		for (n = 0; n < 3; n++) {
			for (i = 0; i < w->nr_hosts; i++)
				for (b = 0; b < BLOCKS; b++)
					if (!w->hosts[i].has[b] && !w->hosts[i].getting[b] &&
					    rnd(w) % 2)
						get(&w->hosts[i], b);
			run(w);
		}
		for (i = 0; i < w->nr_hosts; i++) {
			if (w->hosts[i].failed)
				fail_msg("VMDEDUP_SEED=%llu: host %u failed to get a block",
					 (unsigned long long)seed, i);
			for (b = 0; b < BLOCKS; b++)
				assert_false(w->hosts[i].getting[b]);
		}
		free_world(w);
	}
}

/* ---- the memory of requesters ---- */

static struct peer_address address_of(unsigned int n)
{
	struct peer_address a = { 0 };

	snprintf(a.endpoint, sizeof(a.endpoint), "tcp://10.%u.%u.1:1", n / 256, n % 256);
	return a;
}

static void test_redirect_names_few_and_earlier_ones(void **state)
{
	struct redirect *r = redirect_new(64, MAX_KNOWN);
	const struct peer_address *names[REDIRECT_NAMES];
	unsigned int first[200] = { 0 }, i, k;
	struct fp fp = fp_of(1);
	size_t n, j;

	for (i = 0; i < 200; i++) {
		struct peer_address who = address_of(i);

		n = redirect_ask(r, &fp, &who, false, 1, 1 + i, names);
		assert_int_equal(n != 0, i != 0);
		for (j = 0; j < n; j++) {
			for (k = 0; k < i; k++) {
				struct peer_address a = address_of(k);

				if (peer_address_equal(&a, names[j]))
					break;
			}
			assert_true(k < i); /* an earlier one */
			first[k] += !j;
		}
	}
	for (i = 0; i < 200; i++)
		assert_true(first[i] <= REDIRECT_FANOUT);
	/* One that comes back without saying so did not hear: it is told again, of earlier ones. */
	{
		struct peer_address who = address_of(150), later;

		n = redirect_ask(r, &fp, &who, false, 1, 300, names);
		assert_int_not_equal(n, 0);
		for (j = 0; j < n; j++)
			for (k = 150; k < 200; k++) {
				later = address_of(k);
				assert_false(peer_address_equal(&later, names[j]));
			}
	}
	/* The first of all is served again, and so is one that was sent on in vain. */
	for (i = 0; i < 2; i++) {
		struct peer_address who = address_of(i ? 999 : 0);

		assert_int_equal(redirect_ask(r, &fp, &who, i, 1, 300, names), 0);
	}
	/* And after a minute of silence everybody begins anew. */
	{
		struct peer_address who = address_of(500);

		assert_int_equal(redirect_ask(r, &fp, &who, false, 1, 400 + REDIRECT_TTL_NS, names),
				 0);
	}
	redirect_free(r);
}

/* Who is named first for a block that they all ask for, one after the other: counted in @first, by
 * host; how many of those that asked, but for the first of each rack, were told of another rack. */
static unsigned int spread(struct redirect *r, unsigned int block, unsigned int hosts,
			   unsigned int racks, unsigned int *first)
{
	const struct peer_address *names[REDIRECT_NAMES];
	struct fp fp = fp_of(block);
	unsigned int i, a, b, far = 0;

	for (i = 0; i < hosts; i++) {
		struct peer_address who = address_of(i);

		who.rack = racks ? 1 + i * 7 % racks : 0;
		if (!redirect_ask(r, &fp, &who, false, 1, 1 + i, names))
			continue;
		assert_int_equal(sscanf(names[0]->endpoint, "tcp://10.%u.%u.", &a, &b), 2);
		first[a * 256 + b]++;
		far += i >= racks && names[0]->rack != who.rack;
	}
	return far;
}

static void test_redirect_shares_the_uploads(void **state)
{
	struct redirect *r = redirect_new(256, MAX_KNOWN);
	unsigned int first[50] = { 0 }, b, i, most = 0;

	for (b = 0; b < BLOCKS; b++)
		assert_int_equal(spread(r, b, 50, 0, first), 0);
	for (i = 0; i < 50; i++)
		most = MAX(most, first[i]);
	print_message("# %u blocks to 50 hosts: at most %u by one of them\n", BLOCKS, most);
	assert_true(most <= BLOCKS * 3 / 2);
	redirect_free(r);
}

static void test_redirect_stays_in_the_rack(void **state)
{
	struct redirect *r = redirect_new(256, MAX_KNOWN);
	unsigned int first[600] = { 0 }, far;

	assert_int_equal(spread(r, 1, 60, 6, first), 0);
	/* More hosts than are remembered for a block: still most stay within theirs. */
	far = spread(r, 2, 600, 80, first);
	print_message("# %u of 600 hosts of 80 racks were sent to another rack\n", far);
	assert_true(far < 600 / 20);
	redirect_free(r);
}

/* More peers and blocks than are remembered: it forgets, and never names one for another. */
static void test_redirect_is_bounded(void **state)
{
	struct redirect *r = redirect_new(16, MAX_KNOWN);
	const struct peer_address *names[REDIRECT_NAMES];
	unsigned int i;

	for (i = 0; i < 3 * MAX_KNOWN; i++) {
		struct peer_address who = address_of(i);
		struct fp fp = fp_of(i % 60);
		size_t n = redirect_ask(r, &fp, &who, false, 1, 1 + i, names), j;

		for (j = 0; j < n; j++)
			assert_false(peer_address_equal(names[j], &who));
	}
	redirect_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_storm_is_served_once),
		cmocka_unit_test(test_filters_spare_the_server),
		cmocka_unit_test(test_the_rack_comes_first),
		cmocka_unit_test(test_three_probes),
		cmocka_unit_test(test_a_liar_is_not_asked_again),
		cmocka_unit_test(test_a_silent_peer),
		cmocka_unit_test(test_a_lost_connection_waits_for_nothing),
		cmocka_unit_test(test_dead_data_servers),
		cmocka_unit_test(test_random_worlds),
		cmocka_unit_test(test_redirect_names_few_and_earlier_ones),
		cmocka_unit_test(test_redirect_shares_the_uploads),
		cmocka_unit_test(test_redirect_stays_in_the_rack),
		cmocka_unit_test(test_redirect_is_bounded),
	};

	return cmocka_run_group_tests_name("sources", tests, NULL, NULL);
}
