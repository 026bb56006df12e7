// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which of 16, 128 and 1,024 peers may have a block: the bit-sliced table, beside one filter after
 * another. Nanoseconds of one look-up, of blocks that nobody has and of blocks that one has.
 *
 *   filters [BLOCKS]    blocks of each peer (20000)
 */
#include <stdio.h>
#include <stdlib.h>
#include "agent/filter_table.h"
#include "base/cleanup.h"
#include "base/clock.h"

#define LOOKUPS 200000
#define SOME	64

static uint64_t state = 88172645463325252ULL;

static struct fp random_fp(void)
{
	struct fp fp;
	size_t i;

	for (i = 0; i < FP_SIZE; i += 8) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		memcpy(fp.b + i, &state, 8);
	}
	return fp;
}

struct peers {
	unsigned int nr, shift;
	uint8_t **filters;
	struct filter_table *table;
	struct fp *have; /* some blocks of each */
};

static void fill(struct peers *p, uint64_t blocks)
{
	unsigned int i;
	uint64_t b;

	p->shift = filter_shift_for(blocks);
	p->filters = calloc(p->nr, sizeof(*p->filters));
	p->have = calloc(p->nr * SOME, sizeof(*p->have));
	p->table = filter_table_new((size_t)1 << 40, p->nr);
	if (!p->filters || !p->have || !p->table)
		abort();
	for (i = 0; i < p->nr; i++) {
		p->filters[i] = calloc(1, (size_t)1 << (p->shift - 3));
		if (!p->filters[i])
			abort();
		for (b = 0; b < blocks; b++) {
			struct fp fp = random_fp();

			p->have[i * SOME + b % SOME] = fp;
			filter_set(p->filters[i], p->shift, FILTER_HASHES, fp.b);
		}
		if (filter_table_set(p->table, i, p->filters[i], p->shift))
			abort();
	}
}

static uint64_t sum; /* so that nothing is optimized away */

static double by_table(struct peers *p, const struct fp *fps, size_t nr)
{
	uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8];
	uint64_t began = clock_mono_ns();
	size_t i;

	for (i = 0; i < nr; i++)
		sum += filter_table_find(p->table, &fps[i], yes);
	return (double)(clock_mono_ns() - began) / (double)nr;
}

static double one_by_one(struct peers *p, const struct fp *fps, size_t nr)
{
	uint64_t began = clock_mono_ns();
	unsigned int k;
	size_t i;

	for (i = 0; i < nr; i++)
		for (k = 0; k < p->nr; k++)
			sum += filter_has(p->filters[k], p->shift, FILTER_HASHES, fps[i].b);
	return (double)(clock_mono_ns() - began) / (double)nr;
}

static void measure(struct peers *p, const char *what, bool there)
{
	size_t nr = LOOKUPS, one = LOOKUPS / p->nr + 1000, i;
	struct fp *fps = calloc(nr, sizeof(*fps));
	double table, others;

	if (!fps)
		abort();
	for (i = 0; i < nr; i++)
		fps[i] = there ? p->have[(i * 7919) % (p->nr * SOME)] : random_fp();
	table = by_table(p, fps, nr);
	others = one_by_one(p, fps, MIN(one, nr));
	printf("%5u peers, %-12s table %8.0f ns   one after another %9.0f ns   ratio %6.1f\n", p->nr,
	       what, table, others, others / table);
	free(fps);
}

int main(int argc, char **argv)
{
	static const unsigned int counts[] = { 16, 128, 1024 };
	uint64_t blocks = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
	unsigned int i, k;

	for (i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		struct peers p = { .nr = counts[i] };

		fill(&p, blocks);
		printf("%u filters of %u KiB: the table has %zu KiB\n", p.nr,
		       1U << (p.shift - 3) >> 10, filter_table_bytes(p.table) >> 10);
		measure(&p, "nobody's", false);
		measure(&p, "somebody's", true);
		for (k = 0; k < p.nr; k++)
			free(p.filters[k]);
		free(p.filters);
		free(p.have);
		filter_table_free(p.table);
	}
	return sum == 42;
}
