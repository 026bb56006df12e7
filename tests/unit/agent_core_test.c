// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The agent's core: misses, one by one and in random worlds. Random worlds print their seed;
 * VMDEDUP_SEED=N runs that one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "agent_world.h"

/* ---- misses ---- */

static void test_one_get_for_all_that_wait(void **state)
{
	struct agent_world *w = agent_world_new(1);
	struct agent_stats s;

	/* blocks 1, 21, 41 hold the same content */
	agent_world_miss(w, 1, 1);
	agent_world_miss(w, 1, 41);
	agent_world_miss(w, 1, 61);
	agent_world_finish(w);
	agent_stats(w->agent, &s);
	assert_int_equal(w->published, 1);
	assert_int_equal(w->mapped, 2);
	assert_int_equal(s.got_bytes, AGENT_WORLD_BLOCK);
	assert_int_equal(s.fetches, 3);
	assert_int_equal(s.reads.count[FROM_DATA], 3);
	assert_int_equal(s.waiting, 0);
	assert_int_equal(s.flights, 0);
	agent_world_free(w);
}

static void test_zero_blocks_are_not_got(void **state)
{
	struct agent_world *w = agent_world_new(1);
	struct agent_stats s;

	agent_world_miss(w, 1, 7);
	agent_world_miss(w, 2, 14);
	agent_world_finish(w);
	agent_stats(w->agent, &s);
	assert_int_equal(w->zeroed, 2);
	assert_int_equal(s.got_bytes, 0);
	assert_int_equal(s.reads.count[FROM_ZERO], 2);
	agent_world_free(w);
}

static void test_a_block_in_the_cache_is_mapped(void **state)
{
	struct agent_world *w = agent_world_new(1);
	struct agent_stats s;

	agent_world_miss(w, 1, 1);
	agent_world_finish(w);
	agent_world_miss(w, 1, 21 + 20); /* same content, later */
	agent_world_finish(w);
	agent_stats(w->agent, &s);
	assert_int_equal(w->published, 1);
	assert_int_equal(w->mapped, 1);
	assert_int_equal(s.reads.count[FROM_CACHE], 1);
	agent_world_free(w);
}

static void test_an_evicted_slot_is_fetched_again(void **state)
{
	struct agent_world *w = agent_world_new(1);
	size_t i;

	agent_world_miss(w, 1, 1);
	agent_world_finish(w);
	for (i = 0; i < AGENT_WORLD_SLOTS; i++)
		w->slots[i].seq = 0;
	agent_world_miss(w, 1, 41);
	agent_world_finish(w);
	assert_int_equal(w->published, 2);
	assert_int_equal(w->mapped, 0);
	agent_world_free(w);
}

static void test_a_slot_stays_known_when_only_the_miss_had_gone(void **state)
{
	struct agent_world *w = agent_world_new(1);
	uint64_t slot, seq;
	struct fp fp;

	agent_world_miss(w, 1, 1);
	agent_world_finish(w);
	/* MAP is stale, for the miss; so is PUBLISH then, which tells which of the two it was. */
	agent_world_miss(w, 1, 41);
	w->misses[0].cancelled = true;
	agent_world_finish(w);
	agent_world_fp(1, 1, &fp);
	assert_true(agent_find_slot(w->agent, &fp, &slot, &seq));
	assert_int_equal(w->slots[slot].seq, seq);
	agent_world_miss(w, 1, 61);
	agent_world_finish(w);
	assert_int_equal(w->published, 1);
	assert_int_equal(w->mapped, 1);
	/* Both have gone: whoever wants it next finds out. */
	w->slots[slot].seq = 0;
	agent_world_miss(w, 1, 41);
	w->misses[0].cancelled = true;
	agent_world_finish(w);
	agent_world_miss(w, 1, 61);
	agent_world_finish(w);
	assert_int_equal(w->published, 2);
	assert_int_equal(w->mapped, 1);
	agent_world_free(w);
}

static void test_clean_slots_of_an_earlier_agent_are_used(void **state)
{
	struct agent_world *w = agent_world_new(1);

	agent_world_miss(w, 1, 1);
	agent_world_finish(w);
	agent_free(w->agent);
	agent_world_new_agent(w);
	agent_world_miss(w, 1, 41);
	agent_world_finish(w);
	assert_int_equal(w->published, 1);
	assert_int_equal(w->mapped, 1);
	agent_world_free(w);
}

static void test_dead_servers_fail_nothing(void **state)
{
	struct agent_world *w = agent_world_new(1);
	struct agent_stats s;

	w->meta_dead = true;
	w->data_dead = true;
	agent_world_miss(w, 1, 1);
	agent_world_miss(w, 2, 2);
	agent_world_run(w, 3600 * 1000);
	assert_int_equal(agent_world_misses(w), 2);
	agent_stats(w->agent, &s);
	assert_false(s.meta_ok);
	assert_int_equal(s.waiting, 2);
	assert_string_not_equal(s.trouble, "");
	/* bounded: at most every two and a half seconds once it has been tried for a while */
	assert_in_range(s.retries, 100, 3000);
	w->meta_dead = false;
	agent_world_run(w, 60 * 1000);
	assert_int_equal(agent_world_misses(w), 2);
	agent_stats(w->agent, &s);
	assert_true(s.meta_ok);
	assert_false(s.data_ok);
	w->data_dead = false;
	agent_world_finish(w);
	agent_stats(w->agent, &s);
	assert_true(s.data_ok);
	assert_string_equal(s.trouble, "");
	agent_world_free(w);
}

static void test_a_miss_that_no_longer_waits(void **state)
{
	struct agent_world *w = agent_world_new(1);
	struct agent_stats s;
	size_t i;

	agent_world_miss(w, 1, 1);
	agent_world_miss(w, 1, 7);
	for (i = 0; i < AGENT_WORLD_MISSES; i++)
		w->misses[i].cancelled = w->misses[i].cookie;
	agent_world_finish(w);
	agent_stats(w->agent, &s);
	assert_int_equal(s.stale, 2);
	assert_int_equal(s.fetches, 0);
	assert_int_equal(s.flights, 0);
	agent_world_free(w);
}

static void test_no_slot_waits_and_asks_for_a_push(void **state)
{
	struct agent_world *w = agent_world_new(1);

	w->no_slots = true;
	agent_world_miss(w, 1, 1);
	agent_world_run(w, 10000);
	assert_int_equal(agent_world_misses(w), 1);
	assert_true(w->urgent_push > 0);
	w->no_slots = false;
	agent_world_finish(w);
	assert_int_equal(w->published, 1);
	agent_world_free(w);
}

static void test_upcalls_sent_again_are_one(void **state)
{
	struct agent_world *w = agent_world_new(1);
	struct agent_stats s;
	int i;

	agent_world_miss(w, 1, 1);
	for (i = 0; i < 5; i++)
		agent_world_send(w, &w->misses[0], DM_DEDUP_UP_RESEND);
	agent_stats(w->agent, &s);
	assert_int_equal(s.waiting, 1);
	agent_world_finish(w);
	assert_int_equal(w->published, 1);
	agent_world_free(w);
}

static void test_memory_is_bounded(void **state)
{
	struct agent_world *w = agent_world_new(3);
	uint64_t block;

	for (block = 1; block < 60; block++)
		agent_world_miss(w, 1 + block % 3, block);
	agent_world_finish(w);
	assert_in_range(w->most_gets, 2, 6);
	agent_world_free(w);
}

/* ---- random worlds ---- */

/* How many peers waited for a block. */
static size_t random_world(uint64_t seed)
{
	struct agent_world *w = agent_world_new(seed);
	struct agent_stats s;
	unsigned int i, n;
	struct fp fp;
	size_t settled;

	w->lose = (unsigned int)(agent_world_random(w) % 40);
	w->repeat = (unsigned int)(agent_world_random(w) % 30);
	w->slow = (unsigned int)(agent_world_random(w) % 30);
	for (i = 0; i < 400; i++) {
		agent_world_miss(w, 1 + agent_world_random(w) % 3, agent_world_random(w) % 200);
		for (n = (unsigned int)(agent_world_random(w) % 4); n; n--)
			agent_world_step(w);
		agent_world_fp(1 + agent_world_random(w) % 3, agent_world_random(w) % 200, &fp);
		agent_world_park(w, &fp);
		if (agent_world_chance(w, 3))
			w->misses[agent_world_random(w) % AGENT_WORLD_MISSES].cancelled = true;
		if (agent_world_chance(w, 2))
			w->slots[agent_world_random(w) % AGENT_WORLD_SLOTS].seq = 0;
		if (agent_world_chance(w, 1))
			w->meta_dead = !w->meta_dead;
		if (agent_world_chance(w, 1))
			w->data_dead = !w->data_dead;
		if (agent_world_chance(w, 1))
			w->no_slots = !w->no_slots;
		if (agent_world_chance(w, 1)) { /* the channel breaks; late answers still come */
			agent_disconnected(w->agent);
			agent_world_connect(w);
		}
	}
	w->meta_dead = w->data_dead = w->no_slots = false;
	agent_world_finish(w);
	for (n = 0; n < 100000 && agent_world_step(w); n++) /* what nobody waits for any more ends too */
		;
	agent_stats(w->agent, &s);
	assert_int_equal(s.waiting, 0);
	assert_int_equal(s.flights, 0);
	assert_in_range(w->most_gets, 0, 6);
	assert_int_equal(w->nr_parked, 0);
	settled = w->nr_settled;
	agent_world_free(w);
	return settled;
}

static void test_random_worlds(void **state)
{
	const char *given = getenv("VMDEDUP_SEED");
	size_t settled = 0;
	uint64_t seed;

	if (given) {
		random_world(strtoull(given, NULL, 0));
		return;
	}
	for (seed = 1; seed <= 300; seed++) {
		fprintf(stderr, "# VMDEDUP_SEED=%llu\n",
			(unsigned long long)(seed * 0x9e3779b97f4a7c15ULL));
		settled += random_world(seed * 0x9e3779b97f4a7c15ULL);
	}
	assert_true(settled > 300);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_get_for_all_that_wait),
		cmocka_unit_test(test_zero_blocks_are_not_got),
		cmocka_unit_test(test_a_block_in_the_cache_is_mapped),
		cmocka_unit_test(test_an_evicted_slot_is_fetched_again),
		cmocka_unit_test(test_a_slot_stays_known_when_only_the_miss_had_gone),
		cmocka_unit_test(test_clean_slots_of_an_earlier_agent_are_used),
		cmocka_unit_test(test_dead_servers_fail_nothing),
		cmocka_unit_test(test_a_miss_that_no_longer_waits),
		cmocka_unit_test(test_no_slot_waits_and_asks_for_a_push),
		cmocka_unit_test(test_upcalls_sent_again_are_one),
		cmocka_unit_test(test_memory_is_bounded),
		cmocka_unit_test(test_random_worlds),
	};

	return cmocka_run_group_tests_name("agent_core", tests, NULL, NULL);
}
