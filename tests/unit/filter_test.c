// SPDX-License-Identifier: GPL-2.0-or-later
/* Bloom filters: the rate of false answers against the formula, the bit-sliced table against one
 * filter after another, and what hosts tell each other of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <math.h>
#include <cmocka.h>

#include "agent/filter_table.h"
#include "agent/host_filter.h"
#include "base/cleanup.h"
#include "base/fingerprint.h"

static struct fp_hasher *hasher;

static struct fp fp_of(uint64_t n)
{
	struct fp fp;

	fp_hash(hasher, &n, sizeof(n), &fp);
	return fp;
}

static uint8_t *filter_of(uint64_t from, uint64_t nr, unsigned int shift, unsigned int hashes)
{
	uint8_t *bits = calloc(1, (size_t)1 << (shift - 3));
	uint64_t i;

	assert_non_null(bits);
	for (i = 0; i < nr; i++) {
		struct fp fp = fp_of(from + i);

		filter_set(bits, shift, hashes, fp.b);
	}
	return bits;
}

static double measured(const uint8_t *bits, unsigned int shift, unsigned int hashes, uint64_t probes)
{
	uint64_t i, yes = 0;

	for (i = 0; i < probes; i++) {
		struct fp fp = fp_of((1ULL << 40) + i);

		yes += filter_has(bits, shift, hashes, fp.b);
	}
	return (double)yes / (double)probes;
}

/* The filter itself is one of many: a twentieth; and five standard deviations of the sample. */
static void test_false_rate_is_the_formulas(void **state)
{
	static const struct {
		uint64_t n;
		unsigned int shift, hashes;
	} cases[] = {
		{ 100, 10, 7 },	   { 1000, 13, 7 },  { 1000, 13, 3 },  { 1000, 12, 1 },
		{ 20000, 18, 7 }, { 20000, 17, 4 }, { 50000, 19, 10 }, { 6000, 14, 7 },
	};
	const uint64_t probes = 100000;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		uint8_t *bits = filter_of(0, cases[i].n, cases[i].shift, cases[i].hashes);
		double want = filter_false_rate(cases[i].n, cases[i].shift, cases[i].hashes);
		double got = measured(bits, cases[i].shift, cases[i].hashes, probes);
		double slack = want / 20 + 5 * sqrt(want * (1 - want) / (double)probes);

		print_message("# n %llu m %u k %u: %.5f expected, %.5f measured\n",
			      (unsigned long long)cases[i].n, 1U << cases[i].shift,
			      cases[i].hashes, want, got);
		if (got < want - slack || got > want + slack)
			fail_msg("far from the formula");
		free(bits);
	}
}

static void test_size_keeps_the_stated_rate(void **state)
{
	uint64_t n;

	for (n = 1; n < 20000000; n = n * 3 + 1) {
		unsigned int shift = filter_shift_for(n);

		assert_true(filter_false_rate(n, shift, FILTER_HASHES) <= FILTER_FALSE_RATE);
		assert_true(shift == FILTER_MIN_SHIFT ||
			    filter_false_rate(n, shift - 1, FILTER_HASHES) > FILTER_FALSE_RATE);
	}
}

static void test_what_is_in_is_always_there(void **state)
{
	uint8_t *bits = filter_of(0, 3000, 15, FILTER_HASHES);
	uint64_t i;

	for (i = 0; i < 3000; i++) {
		struct fp fp = fp_of(i);

		assert_true(filter_has(bits, 15, FILTER_HASHES, fp.b));
	}
	free(bits);
}

/* Filters of several lengths in one table: it says what each of them says. */
static void test_table_says_what_the_filters_say(void **state)
{
	struct filter_table *t = filter_table_new(1 << 20, 32);
	static const unsigned int shifts[] = { 12, 14, 10, 13, 14, 11 };
	uint8_t *filters[ARRAY_SIZE(shifts)];
	uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8];
	uint64_t i;
	size_t c;

	assert_non_null(t);
	for (c = 0; c < ARRAY_SIZE(shifts); c++) {
		filters[c] = filter_of(c * 1000, 60, shifts[c], FILTER_HASHES);
		assert_int_equal(filter_table_set(t, (unsigned int)c * 5, filters[c], shifts[c]), 0);
	}
	for (i = 0; i < 6000; i++) {
		struct fp fp = fp_of(i);
		bool any = filter_table_find(t, &fp, yes), want = false;

		for (c = 0; c < ARRAY_SIZE(shifts); c++) {
			bool has = filter_has(filters[c], shifts[c], FILTER_HASHES, fp.b);

			assert_int_equal(yes[c * 5 / 8] >> c * 5 % 8 & 1, has);
			want |= has;
		}
		assert_int_equal(any, want);
	}
	/* Additions, and one that goes: the others stay. */
	for (i = 7000; i < 7050; i++) {
		struct fp fp = fp_of(i);

		filter_table_add(t, 10, fp.b);
		filter_set(filters[2], shifts[2], FILTER_HASHES, fp.b);
	}
	filter_table_clear(t, 5);
	for (i = 0; i < 8000; i++) {
		struct fp fp = fp_of(i);

		if (!filter_table_find(t, &fp, yes))
			memset(yes, 0, sizeof(yes));
		for (c = 0; c < ARRAY_SIZE(shifts); c++)
			assert_int_equal(yes[c * 5 / 8] >> c * 5 % 8 & 1,
					 c != 1 && filter_has(filters[c], shifts[c], FILTER_HASHES,
							      fp.b));
	}
	for (c = 0; c < ARRAY_SIZE(shifts); c++)
		free(filters[c]);
	filter_table_free(t);
}

/* First columns go, then bits: what is in a filter is found all the same. */
static void test_memory_cap(void **state)
{
	struct filter_table *t = filter_table_new(16 << 10, 64); /* 2^11 rows of 64 */
	uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8];
	uint8_t *bits = filter_of(0, 500, 16, FILTER_HASHES);
	uint64_t i;

	assert_int_equal(filter_table_set(t, 60, bits, 11), 0);
	assert_int_equal(filter_table_columns(t), 64);
	assert_int_equal(filter_table_set(t, 2, bits, 13), 0);
	assert_int_equal(filter_table_columns(t), 16);
	assert_int_equal(filter_table_set(t, 60, bits, 11), -ENOSPC);
	assert_int_equal(filter_table_set(t, 3, bits, 16), 0); /* folded to 2^14 */
	assert_int_equal(filter_table_columns(t), 8);
	assert_true(filter_table_bytes(t) <= 16 << 10);
	for (i = 0; i < 500; i++) {
		struct fp fp = fp_of(i);

		assert_true(filter_table_find(t, &fp, yes));
		assert_true(yes[0] >> 3 & 1);
	}
	assert_int_equal(filter_table_set(t, 0, bits, FILTER_MAX_SHIFT + 1), -EINVAL);
	free(bits);
	filter_table_free(t);
}

/* ---- what a host tells ---- */

struct listener {
	uint64_t generation, additions;
	unsigned int shift;
	uint8_t *bits;
	size_t bytes;
	unsigned int fulls;
};

static void listen_to(struct listener *l, struct host_filter *h)
{
	struct host_filter_answer a;
	uint8_t *data;
	void *raw;
	size_t len, i;

	assert_int_equal(host_filter_answer(h, 0, l->generation, l->additions, 0, &a), 0);
	l->bytes += a.packed_len;
	if (a.full) {
		len = (size_t)1 << (a.shift - 3);
		assert_int_equal(filter_unpack(a.packed, a.packed_len, true, &len, &raw), 0);
		free(l->bits);
		l->bits = raw;
		l->shift = a.shift;
		l->fulls++;
	} else {
		len = 1 << 20;
		assert_int_equal(filter_unpack(a.packed, a.packed_len, false, &len, &raw), 0);
		assert_int_equal(len, (a.additions - l->additions) * FILTER_ADDED_SIZE);
		data = raw;
		for (i = 0; i < len; i += FILTER_ADDED_SIZE)
			filter_set(l->bits, l->shift, FILTER_HASHES, data + i);
		free(raw);
	}
	l->generation = a.generation;
	l->additions = a.additions;
	free(a.packed);
}

static bool hears(const struct listener *l, uint64_t n)
{
	struct fp fp = fp_of(n);

	return filter_has(l->bits, l->shift, FILTER_HASHES, fp.b);
}

static void test_generations_and_additions(void **state)
{
	struct host_filter *h = host_filter_new(1ULL << 40, 0);
	struct listener l = { 0 };
	struct host_filter_answer a;
	uint64_t i, held = 0;
	struct fp fp;

	assert_non_null(h);
	assert_int_equal(host_filter_answer(h, 0, 0, 0, 0, &a), -EAGAIN);
	for (i = 0; i < 20000; i++) {
		fp = fp_of(i);
		if (!host_filter_add(h, &fp)) {
			assert_int_equal(host_filter_begin(h, i), 0);
			for (held = 0; held <= i; held++) {
				fp = fp_of(held);
				host_filter_put(h, &fp);
			}
			host_filter_end(h);
		}
		if (i % 500 == 0) {
			listen_to(&l, h);
			assert_true(hears(&l, i) && hears(&l, 0) && hears(&l, i / 2));
		}
	}
	listen_to(&l, h);
	for (i = 0; i < 20000; i++)
		assert_true(hears(&l, i));
	print_message("# 20,000 blocks told in 41 exchanges: %zu bytes, %u full filters\n", l.bytes,
		      l.fulls);
	/* fulls at each growth by half, and 16 bytes an addition between them */
	assert_true(l.fulls <= 20 && l.bytes < 20000 * FILTER_ADDED_SIZE + 20 * 40000);
	/* What was evicted is out of the next generation. */
	assert_int_equal(host_filter_begin(h, 100), 0);
	for (i = 0; i < 100; i++) {
		fp = fp_of(i);
		host_filter_put(h, &fp);
	}
	host_filter_end(h);
	listen_to(&l, h);
	assert_true(hears(&l, 99));
	for (i = 1000, held = 0; i < 20000; i++)
		held += hears(&l, i);
	assert_true(held < 19000 / 50);
	free(l.bits);
	host_filter_free(h);
}

static int make_hasher(void **state)
{
	hasher = fp_hasher_new(FP_SHA256, NULL, 0);
	return hasher ? 0 : -1;
}

static int free_hasher(void **state)
{
	fp_hasher_free(hasher);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_false_rate_is_the_formulas),
		cmocka_unit_test(test_size_keeps_the_stated_rate),
		cmocka_unit_test(test_what_is_in_is_always_there),
		cmocka_unit_test(test_table_says_what_the_filters_say),
		cmocka_unit_test(test_memory_cap),
		cmocka_unit_test(test_generations_and_additions),
	};

	return cmocka_run_group_tests_name("filter", tests, make_hasher, free_hasher);
}
