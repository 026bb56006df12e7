// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Runs a fuzz target without libFuzzer.
 *
 *   NAME_fuzz                  the seeds, then FUZZ_RUNS mutations of them (20000), from the
 *                              random state FUZZ_SEED (1)
 *   NAME_fuzz FILE...          these inputs (a finding; a corpus)
 *   NAME_fuzz --seeds DIR      writes the seeds, for libFuzzer
 *
 * Before each input it is written to the file that FUZZ_LAST names, if set: after a crash that
 * is the finding.
 */
#include <string.h>

#include "fuzz.h"

#define ROOM 70000

static uint64_t random_state;

static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static size_t below(size_t n)
{
	return n ? next_random() % n : 0;
}

/* One change: values that decoders trip over, bits, and pieces moved, doubled or cut off. */
static size_t mutate(uint8_t *data, size_t len, size_t room)
{
	static const uint8_t values[] = { 0, 1, 0x7f, 0x80, 0xfe, 0xff, 8, 0x0a, '[', '\n' };
	size_t at = below(len), n = below(below(8) ? 16 : len - at + 1);

	switch (below(7)) {
	case 0:
		if (len)
			data[at] ^= 1 << below(8);
		break;
	case 1:
		if (len)
			data[at] = values[below(sizeof(values))];
		break;
	case 2:
		if (len)
			data[at] = next_random();
		break;
	case 3:
		return below(4) ? len : at;
	case 4: /* remove */
		if (n > len - at)
			n = len - at;
		memmove(data + at, data + at + n, len - at - n);
		return len - n;
	case 5: /* double */
		if (n > len - at)
			n = len - at;
		if (len + n > room)
			return len;
		memmove(data + at + n, data + at, len - at);
		return len + n;
	case 6: /* copy elsewhere */
		if (n > len - at)
			n = len - at;
		memmove(data + below(len - n + 1), data + at, n);
		break;
	}
	return len;
}

/* Exactly as large as the input, so that the sanitizer sees a read beyond it. */
static void run(const uint8_t *data, size_t len)
{
	const char *last = getenv("FUZZ_LAST");
	uint8_t *copy = malloc(len ? len : 1);

	FUZZ_CHECK(copy);
	memcpy(copy, data, len);
	if (last) {
		FILE *f = fopen(last, "wb");

		FUZZ_CHECK(f && fwrite(data, 1, len, f) == len && !fclose(f));
	}
	LLVMFuzzerTestOneInput(len ? copy : copy + 1, len);
	free(copy);
}

static int write_seeds(const char *dir)
{
	static uint8_t data[ROOM];
	char path[4096];
	size_t len;

	for (size_t n = 0; (len = fuzz_seed(n, data, ROOM)); n++) {
		FILE *f;

		snprintf(path, sizeof(path), "%s/seed-%zu", dir, n);
		f = fopen(path, "wb");
		if (!f || fwrite(data, 1, len, f) != len || fclose(f)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}

static int run_files(int argc, char **argv)
{
	static uint8_t data[1 << 21];

	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rb");
		size_t len;

		if (!f) {
			perror(argv[i]);
			return 1;
		}
		len = fread(data, 1, sizeof(data), f);
		fclose(f);
		run(data, len);
	}
	return 0;
}

static unsigned long from_env(const char *name, unsigned long otherwise)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	static uint8_t seed[ROOM], data[ROOM];
	unsigned long runs = from_env("FUZZ_RUNS", 20000);
	size_t len, nr_seeds = 0;

	if (argc == 3 && !strcmp(argv[1], "--seeds"))
		return write_seeds(argv[2]);
	if (argc > 1)
		return run_files(argc, argv);
	random_state = from_env("FUZZ_SEED", 1) * 0x9e3779b97f4a7c15ULL | 1;
	while ((len = fuzz_seed(nr_seeds, seed, ROOM))) {
		run(seed, len);
		nr_seeds++;
	}
	FUZZ_CHECK(nr_seeds);
	run(seed, 0);
	for (unsigned long i = 0; i < runs; i++) {
		len = fuzz_seed(i % nr_seeds, data, ROOM);
		for (size_t n = 1 + below(1 << below(6)); n; n--)
			len = mutate(data, len, ROOM);
		run(data, len);
	}
	printf("1..1\nok 1 - %zu seeds, %lu mutations\n", nr_seeds, runs);
	return 0;
}
