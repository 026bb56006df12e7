// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * chaos_host SOCKET FILE IMAGE SEED OUT: a host's kernel side, with the cache in FILE and behind SOCKET
 * (cache_wire.h: its agent is another process, which may die), and a guest that writes IMAGE at random
 * and compares what it reads. Prints `open` when the volume is. At SIGTERM the guest stops, what the
 * image must hold is written to OUT, and `wrote N read N` is printed; the cache goes on until the next
 * one. Exit status 1: something read was wrong, or an I/O failed.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cache_wire.h"

#define CACHE_BYTES (64ULL << 20)
#define MAX_SECTORS 64
#define PAUSE_MS    4

struct guest {
	struct cache *cache;
	uint64_t volume, size, x;
	uint8_t *shadow;
	uint64_t wrote, read;
};

static volatile sig_atomic_t stopped;

static void on_term(int sig)
{
	stopped++;
}

static uint64_t next_random(struct guest *g)
{
	g->x ^= g->x << 13;
	g->x ^= g->x >> 7;
	g->x ^= g->x << 17;
	return g->x;
}

/* Half of what is written is content that others write, too. */
static void fill(struct guest *g, uint8_t *p, size_t len)
{
	uint64_t common = next_random(g) % 64, *q = (uint64_t *)p;
	bool own = next_random(g) % 2;

	for (size_t i = 0; i < len / 8; i++)
		q[i] = own ? next_random(g) : common + (i % 512);
}

static int compare(struct guest *g, uint64_t at, size_t len, uint8_t *buf)
{
	int r = cache_file_read(g->cache, g->volume, at, buf, len);

	if (r)
		return r;
	g->read += len;
	return memcmp(buf, g->shadow + at, len) ? -EILSEQ : 0;
}

static int guest_step(struct guest *g)
{
	uint8_t buf[MAX_SECTORS * 512] __attribute__((aligned(8)));
	size_t len = (next_random(g) % MAX_SECTORS + 1) * 512;
	uint64_t at = next_random(g) % (g->size / 512 - MAX_SECTORS) * 512;
	int r;

	if (next_random(g) % 2) { /* whole blocks */
		at &= ~4095ULL;
		len = (len + 4095) & ~(size_t)4095;
	}
	if (next_random(g) % 3 == 0)
		return compare(g, at, len, buf);
	fill(g, buf, len);
	r = cache_file_write(g->cache, g->volume, at, buf, len);
	if (r)
		return r;
	memcpy(g->shadow + at, buf, len);
	g->wrote += len;
	return 0;
}

static int save(const struct guest *g, const char *path)
{
	FILE *f = fopen(path, "w");

	if (!f || fwrite(g->shadow, 1, g->size, f) != g->size || fclose(f)) {
		perror(path);
		return 1;
	}
	printf("wrote %llu read %llu\n", (unsigned long long)g->wrote, (unsigned long long)g->read);
	fflush(stdout);
	return 0;
}

static int run(struct guest *g, const char *image)
{
	int r = cache_file_open(g->cache, image, 0, &g->volume, &g->size);

	if (!r) {
		g->shadow = malloc(g->size);
		r = g->shadow ? cache_file_read(g->cache, g->volume, 0, g->shadow, g->size) : -ENOMEM;
	}
	if (r)
		return r;
	puts("open");
	fflush(stdout);
	while (!r && !stopped) {
		r = guest_step(g);
		poll(NULL, 0, PAUSE_MS);
	}
	return r;
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_handler = on_term };
	struct error err = { 0 };
	struct guest g = { 0 };
	struct uuid uuid;
	int r;

	if (argc != 6) {
		fputs("Usage: chaos_host SOCKET FILE IMAGE SEED OUT\n", stderr);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGTERM, &act, NULL);
	g.x = strtoull(argv[4], NULL, 10) * 0x9e3779b97f4a7c15ULL + 1;
	if (!uuid_generate(&uuid))
		g.cache = cache_file_new(argv[2], CACHE_BYTES, WIRE_SHIFT, &uuid, &err);
	if (!g.cache || !cache_host_new(g.cache, argv[1], NULL, NULL)) {
		fprintf(stderr, "%s: %s\n", argv[2], err.text);
		return 2;
	}
	r = run(&g, argv[3]);
	if (r) {
		fprintf(stderr, "%s: %s\n", argv[3], r == -EILSEQ ? "wrong content" : strerror(-r));
		return 1;
	}
	if (save(&g, argv[5]))
		return 1;
	while (stopped < 2)
		poll(NULL, 0, 100);
	return 0; /* threads that serve an agent end with the process */
}
