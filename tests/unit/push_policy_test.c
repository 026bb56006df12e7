// SPDX-License-Identifier: GPL-2.0-or-later
/* Which volume is pushed when, in simulated time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <cmocka.h>

#include "agent/push_policy.h"
#include "base/cleanup.h"

#define S      1000000000ULL
#define MIB    (1ULL << 20)
#define MAX_V  8
#define LOOK_S 2 /* as often as the pusher looks */

struct world {
	struct push_policy policy;
	struct dm_dedup_volume_info infos[MAX_V];
	uint64_t writes_a_second[MAX_V];
	uint64_t dirty_since[MAX_V];
	size_t count;
	uint64_t now;
	int fails; /* every push, with this */
	size_t pushes[MAX_V], order[64], nr_pushed, tries;
	uint64_t pushed_at[MAX_V];
};

static struct world *new_world(uint64_t age_s, uint64_t bytes, size_t count)
{
	struct world *w = calloc(1, sizeof(*w));
	size_t i;

	assert_non_null(w);
	w->policy.bounds = (struct push_bounds){ .age_ms = age_s * 1000, .bytes = bytes };
	w->count = count;
	w->now = 1000 * S;
	for (i = 0; i < count; i++) {
		w->infos[i].volume = i + 1;
		w->infos[i].flags = DM_DEDUP_VOL_GRANTED;
		w->infos[i].ios = 1;
		snprintf(w->infos[i].name, sizeof(w->infos[i].name), "v%zu", i);
	}
	return w;
}

static void write_some(struct world *w, size_t i, uint64_t bytes)
{
	if (!w->infos[i].dirty_bytes)
		w->dirty_since[i] = w->now;
	w->infos[i].dirty_bytes += bytes;
	w->infos[i].ios++;
}

static void push_one(struct world *w, size_t i)
{
	w->tries++;
	if (!w->fails) {
		w->infos[i].dirty_bytes = w->infos[i].oldest_ms = 0;
		w->pushes[i]++;
		w->pushed_at[i] = w->now;
		w->order[w->nr_pushed++ % 64] = i;
	}
	policy_pushed(&w->policy, &w->infos[i], w->fails, "the server is away", w->now);
}

static void look(struct world *w, bool space)
{
	bool looked[MAX_V] = { 0 };
	ssize_t i;

	policy_look(&w->policy, w->infos, w->count, w->now);
	while ((i = policy_next(&w->policy, w->infos, w->count, looked, space, w->now)) >= 0)
		push_one(w, (size_t)i);
	policy_look_end(&w->policy);
}

/* Guests write all the time; a look every LOOK_S, and whenever a wish's time has come. */
static void run(struct world *w, uint64_t seconds)
{
	uint64_t s;
	size_t i;

	for (s = 0; s < seconds; s++) {
		w->now += S;
		for (i = 0; i < w->count; i++) {
			if (w->writes_a_second[i])
				write_some(w, i, w->writes_a_second[i]);
			if (w->infos[i].dirty_bytes)
				w->infos[i].oldest_ms = (w->now - w->dirty_since[i]) / 1000000;
		}
		if (s % LOOK_S == 0 || policy_has_wish(&w->policy, w->now))
			look(w, false);
	}
}

static void test_age(void **state)
{
	struct world *w = new_world(300, 256 * MIB, 1);

	w->writes_a_second[0] = 1000;
	run(w, 299);
	assert_int_equal(w->pushes[0], 0);
	run(w, 3);
	assert_int_equal(w->pushes[0], 1);
	run(w, 3600);
	assert_in_range(w->pushes[0], 1 + 3600 / 303, 1 + 3600 / 300);
	free(w);
}

static void test_amount(void **state)
{
	struct world *w = new_world(300, 256 * MIB, 1);

	w->writes_a_second[0] = 16 * MIB;
	run(w, 15);
	assert_int_equal(w->pushes[0], 0);
	run(w, 3);
	assert_int_equal(w->pushes[0], 1);
	run(w, 180);
	assert_in_range(w->pushes[0], 10, 12);
	free(w);
}

static void test_only_when_asked(void **state)
{
	struct world *w = new_world(0, 256 * MIB, 2);

	w->writes_a_second[0] = w->writes_a_second[1] = 16 * MIB;
	run(w, 10000);
	assert_int_equal(w->tries, 0);
	policy_want(&w->policy, 2);
	assert_true(policy_has_wish(&w->policy, w->now));
	run(w, 2);
	assert_int_equal(w->pushes[0], 0);
	assert_int_equal(w->pushes[1], 1);
	assert_false(policy_has_wish(&w->policy, w->now));
	look(w, true); /* writers wait for slots */
	assert_int_equal(w->pushes[0], 1);
	assert_int_equal(w->pushes[1], 2);
	free(w);
}

static void test_what_cannot_be_pushed(void **state)
{
	static const uint32_t flags[] = { DM_DEDUP_VOL_READONLY, DM_DEDUP_VOL_EPHEMERAL,
					  DM_DEDUP_VOL_DIVERGED, DM_DEDUP_VOL_FENCED };
	struct world *w = new_world(10, MIB, ARRAY_SIZE(flags) + 1);
	size_t i;

	for (i = 0; i < w->count; i++) {
		if (i)
			w->infos[i].flags |= flags[i - 1];
		w->writes_a_second[i] = MIB;
		policy_want(&w->policy, i + 1);
	}
	run(w, 100);
	look(w, true);
	assert_true(w->pushes[0] > 10);
	for (i = 1; i < w->count; i++)
		assert_int_equal(w->pushes[i], 0);
	free(w);
}

/* An idle volume does not wait for the bounds, a busy one does; both are kept. */
static void test_idle_first(void **state)
{
	struct world *w = new_world(300, 256 * MIB, 2);

	write_some(w, 0, MIB);
	w->writes_a_second[1] = 100000;
	run(w, 149);
	assert_int_equal(w->tries, 0);
	run(w, 4);
	assert_int_equal(w->pushes[0], 1);
	assert_int_equal(w->pushes[1], 0);
	run(w, 150);
	assert_int_equal(w->pushes[1], 1);
	/* An amount, likewise: as soon as the guest has paused for a moment. */
	write_some(w, 0, 130 * MIB);
	run(w, 3);
	assert_int_equal(w->pushes[0], 1);
	run(w, 4);
	assert_int_equal(w->pushes[0], 2);
	free(w);
}

/* All are due at one look: first those without I/O, among them the one with most to push. */
static void test_order(void **state)
{
	static const size_t want[] = { 2, 0, 3, 1 };
	struct world *w = new_world(300, 256 * MIB, 4);

	w->fails = -ETIMEDOUT;
	policy_want(&w->policy, 1); /* known: its I/O is looked at */
	write_some(w, 0, 10 * MIB);
	write_some(w, 2, 20 * MIB);
	w->writes_a_second[1] = 1;
	w->writes_a_second[3] = MIB;
	run(w, 10);
	w->fails = 0;
	w->nr_pushed = 0;
	w->now += 60 * S; /* past every failure's delay */
	write_some(w, 1, 1);
	write_some(w, 3, 1);
	look(w, true);
	assert_int_equal(w->nr_pushed, 4);
	assert_memory_equal(w->order, want, sizeof(want));
	free(w);
}

/* A cache that counts no I/O: nothing is taken for idle. */
static void test_no_count(void **state)
{
	struct world *w = new_world(300, 256 * MIB, 1);

	write_some(w, 0, MIB);
	w->infos[0].ios = 0;
	run(w, 299);
	assert_int_equal(w->pushes[0], 0);
	run(w, 3);
	assert_int_equal(w->pushes[0], 1);
	free(w);
}

/* A meta server that is away for an hour: few tries, the reason stands there, and a minute after it
 * has come back all is pushed. */
static void test_an_hour_without_servers(void **state)
{
	struct world *w = new_world(300, 256 * MIB, 3);
	size_t i;

	w->fails = -ETIMEDOUT;
	for (i = 0; i < w->count; i++) {
		w->writes_a_second[i] = 1000;
		policy_want(&w->policy, i + 1);
	}
	run(w, 3600);
	assert_in_range(w->tries, 3 * 60, 3 * 70);
	for (i = 0; i < w->count; i++)
		assert_string_equal(policy_trouble(&w->policy, i + 1), "the server is away");
	assert_non_null(policy_in_trouble(&w->policy));
	w->fails = 0;
	w->tries = 0;
	run(w, 62);
	for (i = 0; i < w->count; i++) {
		assert_int_equal(w->pushes[i], 1);
		assert_string_equal(policy_trouble(&w->policy, i + 1), "");
	}
	assert_null(policy_in_trouble(&w->policy));
	free(w);
}

/* One volume's failure delays no other's push, and another's success does not hide it. */
static void test_one_fails(void **state)
{
	struct world *w = new_world(10, MIB, 2);

	policy_pushed(&w->policy, &w->infos[0], -ENOSPC, "full", w->now);
	assert_false(policy_pushed(&w->policy, &w->infos[0], -ENOSPC, "full", w->now));
	assert_true(policy_pushed(&w->policy, &w->infos[0], -ENOSPC, "fuller", w->now));
	write_some(w, 0, MIB);
	write_some(w, 1, MIB);
	look(w, false);
	assert_int_equal(w->pushes[0], 0);
	assert_int_equal(w->pushes[1], 1);
	assert_string_equal(policy_in_trouble(&w->policy)->name, "v0");
	run(w, 8);
	assert_int_equal(w->pushes[0], 1);
	assert_null(policy_in_trouble(&w->policy));
	free(w);
}

/* A volume that has gone, or was pushed otherwise, leaves no wish and no trouble. */
static void test_gone(void **state)
{
	struct world *w = new_world(0, MIB, 1);
	size_t i;

	write_some(w, 0, MIB);
	policy_pushed(&w->policy, &w->infos[0], -ENOSPC, "full", w->now);
	w->count = 0;
	run(w, 4);
	assert_false(policy_has_wish(&w->policy, w->now));
	assert_null(policy_in_trouble(&w->policy));
	/* More wishes than there is room for, and again. */
	for (i = 0; i < 3 * POLICY_VOLUMES; i++) {
		policy_want(&w->policy, i + 10);
		if (i % POLICY_VOLUMES == 0)
			run(w, 4);
	}
	run(w, 4);
	assert_false(policy_has_wish(&w->policy, w->now));
	free(w);
}

/* In any interval at most the rate, a second's burst and one step. */
static void test_rate(void **state)
{
	static const uint64_t step = 4 * MIB, rate = 10 * MIB;
	uint64_t start = 5000 * S, now = start, sent[400], at[400];
	struct push_policy p = { .bounds = { .rate = rate } };
	size_t i, j;

	for (i = 0; i < 400; i++) {
		now += policy_wait_ns(&p, now);
		sent[i] = i % 7 ? step : step / 3;
		at[i] = now;
		policy_sent(&p, sent[i], now);
		if (i == 200)
			now += 3600 * S; /* long idle: no more than the burst is saved up */
	}
	for (i = 0; i < 400; i++) {
		uint64_t sum = 0;

		for (j = i; j < 400; j++) {
			sum += sent[j];
			/* 1024: rounding */
			assert_true(sum <= (double)(at[j] - at[i] + S) / S * rate + step + 1024);
		}
		/* and not much less */
		if (i == 200)
			assert_true(at[i] - start < 200 * step * S / rate + S);
	}
	p.bounds.rate = 0;
	policy_sent(&p, 1ULL << 50, now);
	assert_int_equal(policy_wait_ns(&p, now), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_age),
		cmocka_unit_test(test_amount),
		cmocka_unit_test(test_only_when_asked),
		cmocka_unit_test(test_what_cannot_be_pushed),
		cmocka_unit_test(test_idle_first),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_no_count),
		cmocka_unit_test(test_an_hour_without_servers),
		cmocka_unit_test(test_one_fails),
		cmocka_unit_test(test_gone),
		cmocka_unit_test(test_rate),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
