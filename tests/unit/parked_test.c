// SPDX-License-Identifier: GPL-2.0-or-later
/* What peers wait for: who is answered when, and how many may wait. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "agent/parked.h"
#include "base/cleanup.h"

#define MS 1000000ULL

static struct fp fp_of(unsigned int n)
{
	struct fp fp = { .b = { (uint8_t)(n % 3), (uint8_t)n } };

	return fp;
}

static bool add(struct parked *p, struct parked_ask *ask, unsigned int n, const char *who, uint64_t now,
		unsigned int ms)
{
	struct fp fp = fp_of(n);

	return parked_add(p, ask, &fp, who, now, ms);
}

static struct parked_ask *take(struct parked *p, unsigned int n)
{
	struct fp fp = fp_of(n);

	return parked_take(p, &fp);
}

static void test_all_of_a_block_and_no_other(void **state)
{
	struct parked *p = parked_new();
	struct parked_ask asks[4];

	assert_true(add(p, &asks[0], 1, "a", 0, 100));
	assert_true(add(p, &asks[1], 4, "a", 0, 100)); /* the same bucket */
	assert_true(add(p, &asks[2], 1, "b", 0, 100));
	assert_true(add(p, &asks[3], 1, "a", 0, 100));
	assert_ptr_equal(take(p, 1), &asks[0]); /* who waits longest comes first */
	assert_ptr_equal(take(p, 1), &asks[2]);
	assert_ptr_equal(take(p, 1), &asks[3]);
	assert_null(take(p, 1));
	assert_null(take(p, 7));
	assert_ptr_equal(take(p, 4), &asks[1]);
	assert_true(parked_next_ns(p) == UINT64_MAX);
	parked_free(p);
}

static void test_time_is_over(void **state)
{
	struct parked *p = parked_new();
	struct parked_ask asks[4];

	assert_true(parked_next_ns(p) == UINT64_MAX);
	assert_true(add(p, &asks[0], 1, "a", 10 * MS, 300));
	assert_true(add(p, &asks[1], 2, "b", 20 * MS, 100));
	assert_true(add(p, &asks[2], 3, "c", 30 * MS, 4000000000U)); /* more than anybody may */
	assert_true(add(p, &asks[3], 4, "d", 30 * MS, 0));
	assert_true(parked_next_ns(p) == 30 * MS);
	assert_ptr_equal(parked_expired(p, 30 * MS), &asks[3]);
	assert_null(parked_expired(p, 30 * MS));
	assert_true(parked_next_ns(p) == 120 * MS);
	assert_null(parked_expired(p, 119 * MS));
	assert_ptr_equal(parked_expired(p, 120 * MS), &asks[1]);
	assert_null(parked_expired(p, 120 * MS));
	assert_true(parked_next_ns(p) == 310 * MS);
	assert_ptr_equal(take(p, 1), &asks[0]);
	assert_null(parked_expired(p, 320 * MS));
	assert_true(parked_next_ns(p) == (30 + PARKED_MAX_MS) * MS);
	assert_ptr_equal(parked_expired(p, UINT64_MAX), &asks[2]);
	assert_null(parked_expired(p, UINT64_MAX));
	parked_free(p);
}

static void test_bounds(void **state)
{
	struct parked_ask *asks = calloc(PARKED_MAX + 1, sizeof(*asks)), *ask;
	struct parked *p = parked_new();
	unsigned int i, n = 0;
	char who[16];

	for (i = 0; i < PARKED_EACH; i++)
		assert_true(add(p, &asks[n++], i, "greedy", 0, 100));
	assert_false(add(p, &asks[n], i, "greedy", 0, 100));
	for (i = 0; n < PARKED_MAX; i++) {
		snprintf(who, sizeof(who), "host%u", i);
		n += add(p, &asks[n], i, who, 0, 100);
		assert_true(i < 2 * PARKED_MAX);
	}
	assert_false(add(p, &asks[n], i, "another", 0, 100));
	ask = take(p, 5);
	assert_non_null(ask);
	assert_true(add(p, ask, 5, "another", 0, 100));
	for (i = 0; parked_expired(p, UINT64_MAX); i++)
		;
	assert_int_equal(i, PARKED_MAX);
	assert_true(add(p, &asks[0], 0, "greedy", 0, 100));
	parked_free(p);
	free(asks);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_of_a_block_and_no_other),
		cmocka_unit_test(test_time_is_over),
		cmocka_unit_test(test_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
