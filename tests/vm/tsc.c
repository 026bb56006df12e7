// SPDX-License-Identifier: GPL-2.0-or-later
/* Prints the frequency of this machine's TSC in kHz (tests/vm/run). */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct reading {
	uint64_t tsc;
	uint64_t ns;
};

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* Both at one time: of many tries the one with the least between them. */
static struct reading read_both(void)
{
	struct reading best = { 0 };
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < 1000; i++) {
		uint64_t before = now(), tsc = __rdtsc(), after = now();

		if (after - before >= least)
			continue;
		least = after - before;
		best = (struct reading){ tsc, before + least / 2 };
	}
	return best;
}

int main(void)
{
	struct timespec some = { .tv_nsec = 100000000 };
	struct reading a = read_both(), b;

	nanosleep(&some, NULL);
	b = read_both();
	printf("%llu\n", (unsigned long long)((b.tsc - a.tsc) * 1000000 / (b.ns - a.ns)));
	return 0;
}
