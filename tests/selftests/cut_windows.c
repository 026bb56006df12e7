// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cut_windows: is a cut a point in time?
 *
 *	cut_windows DEVICE FILE CUTS PUSH...
 *
 * Three threads write to DEVICE while PUSH, a command, is run CUTS times: it cuts the volume and
 * merges the cut into FILE, which begins as the volume does. Every sector says which write it is
 * of; each write takes a ticket before it is submitted and another when it has been acknowledged.
 * Each cut must hold every write that was acknowledged before it was asked for; and when it
 * holds a write, also all those that were acknowledged before that one was submitted.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../stamps.h"

#define WRITERS	   3
#define UNIT	   8 /* sectors; unit u belongs to writer u % WRITERS, so no two write one sector */
#define MAX_WRITES 400000

struct write {
	uint64_t submitted;
	_Atomic uint64_t acknowledged;
	uint32_t sector;
	uint32_t len;
};

struct writer {
	struct test *test;
	unsigned int nr;
	int fd;
	struct write *writes;
	_Atomic uint64_t n; /* writes begun */
	uint32_t *latest;   /* by sector: the newest that must be in the cut being judged */
	pthread_t thread;
};

struct test {
	struct writer writers[WRITERS];
	uint64_t sectors;
	_Atomic uint64_t ticket;
	_Atomic bool stop;
	_Atomic int error;
};

struct stamp {
	uint64_t magic;
	uint64_t writer;
	uint64_t n;
	uint64_t sector;
};

#define MAGIC 0x737772696e646f77ULL

static void *write_for_ever(void *arg)
{
	struct writer *w = arg;
	struct test *t = w->test;
	uint64_t rng = stamps_rng(w->nr + 1), units = t->sectors / UNIT / WRITERS;
	uint8_t *buf = aligned_alloc(4096, UNIT * STAMP_SECTOR);

	for (uint64_t n = 1; !t->stop && n < MAX_WRITES; n++) {
		struct write *wr = &w->writes[n];
		uint32_t from = stamps_random(&rng) % UNIT;

		wr->len = 1 + stamps_random(&rng) % (UNIT - from);
		wr->sector = (stamps_random(&rng) % units * WRITERS + w->nr) * UNIT + from;
		memset(buf, 0, UNIT * STAMP_SECTOR);
		for (uint32_t i = 0; i < wr->len; i++)
			*(struct stamp *)(buf + i * STAMP_SECTOR) =
				(struct stamp){ MAGIC, w->nr, n, wr->sector + i };
		wr->submitted = atomic_fetch_add(&t->ticket, 1);
		atomic_store(&w->n, n);
		if (pwrite(w->fd, buf, wr->len * STAMP_SECTOR, (off_t)wr->sector * STAMP_SECTOR) !=
		    wr->len * STAMP_SECTOR) {
			t->error = errno ? errno : EIO;
			break;
		}
		wr->acknowledged = atomic_fetch_add(&t->ticket, 1);
	}
	free(buf);
	return NULL;
}

/* ---- judging ---- */

/* The stamp of a sector; NULL: none. */
static const struct stamp *stamp_of(const uint8_t *image, uint64_t sector)
{
	const struct stamp *s = (const void *)(image + sector * STAMP_SECTOR);

	return s->magic == MAGIC ? s : NULL;
}

/* When the last of all writes that the cut holds was submitted. */
static uint64_t last_submitted(const struct test *t, const uint8_t *image)
{
	uint64_t last = 0;

	for (uint64_t i = 0; i < t->sectors; i++) {
		const struct stamp *s = stamp_of(image, i);
		uint64_t at;

		if (!s)
			continue;
		at = t->writers[s->writer % WRITERS].writes[s->n % MAX_WRITES].submitted;
		if (at > last)
			last = at;
	}
	return last;
}

/* What was acknowledged before @bound must be there, or what was written over it. */
static unsigned int judge_writer(const struct test *t, struct writer *w, const uint8_t *image,
				 uint64_t bound, unsigned int cut)
{
	uint64_t nr = atomic_load(&w->n);
	unsigned int bad = 0;

	memset(w->latest, 0, t->sectors * sizeof(*w->latest));
	for (uint64_t n = 1; n <= nr; n++) {
		uint64_t at = w->writes[n].acknowledged;

		for (uint32_t i = 0; at && at < bound && i < w->writes[n].len; i++)
			w->latest[w->writes[n].sector + i] = n;
	}
	for (uint64_t i = 0; i < t->sectors; i++) {
		const struct stamp *s = stamp_of(image, i);
		uint64_t n = s ? s->n : 0;

		if (i / UNIT % WRITERS != w->nr)
			continue;
		if (s && (s->sector != i || s->writer != w->nr)) {
			printf("cut %u, sector %llu: holds another sector's data\n", cut,
			       (unsigned long long)i);
			bad++;
		} else if (n < w->latest[i] && bad++ < 3) {
			printf("cut %u, sector %llu: holds write %llu of writer %u, but %u was acknowledged before\n",
			       cut, (unsigned long long)i, (unsigned long long)n, w->nr,
			       w->latest[i]);
		}
	}
	return bad;
}

static unsigned int judge(struct test *t, const char *file, uint64_t asked, unsigned int cut)
{
	uint64_t bytes = t->sectors * STAMP_SECTOR, bound;
	uint8_t *image = malloc(bytes);
	unsigned int bad = 0;
	FILE *f = fopen(file, "r");

	if (!image || !f || fread(image, bytes, 1, f) != 1) {
		perror(file);
		exit(2);
	}
	fclose(f);
	bound = last_submitted(t, image);
	if (bound < asked)
		bound = asked;
	for (unsigned int i = 0; i < WRITERS; i++)
		bad += judge_writer(t, &t->writers[i], image, bound, cut);
	free(image);
	return bad;
}

/* ---- the run ---- */

static int run(char **argv)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		execvp(argv[0], argv);
		_exit(127);
	}
	return pid < 0 || waitpid(pid, &status, 0) != pid || status ? -1 : 0;
}

static void start_writers(struct test *t, const char *device)
{
	for (unsigned int i = 0; i < WRITERS; i++) {
		struct writer *w = &t->writers[i];

		*w = (struct writer){ .test = t, .nr = i, .fd = open(device, O_RDWR | O_DIRECT),
				      .writes = calloc(MAX_WRITES, sizeof(*w->writes)),
				      .latest = calloc(t->sectors, sizeof(*w->latest)) };
		if (w->fd < 0 || !w->writes || !w->latest ||
		    pthread_create(&w->thread, NULL, write_for_ever, w)) {
			perror(device);
			exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	static struct test t = { .ticket = 1 };
	unsigned int cuts = argc > 4 ? atoi(argv[3]) : 0, bad = 0, i;
	struct stat st;

	if (!cuts || stat(argv[2], &st)) {
		fprintf(stderr, "usage: cut_windows DEVICE FILE CUTS PUSH...\n");
		return 2;
	}
	t.sectors = st.st_size / STAMP_SECTOR / UNIT * UNIT;
	start_writers(&t, argv[1]);
	for (i = 1; i <= cuts && !bad && !t.error; i++) {
		uint64_t asked = atomic_fetch_add(&t.ticket, 1);

		if (run(argv + 4)) {
			fprintf(stderr, "%s failed\n", argv[4]);
			return 2;
		}
		bad = judge(&t, argv[2], asked, i);
	}
	t.stop = true;
	for (unsigned int w = 0; w < WRITERS; w++)
		pthread_join(t.writers[w].thread, NULL);
	printf("%u cuts, %llu writes, %u bad sectors\n", i - 1,
	       (unsigned long long)(t.writers[0].n + t.writers[1].n + t.writers[2].n), bad);
	if (t.error)
		fprintf(stderr, "writing: %s\n", strerror(t.error));
	return bad ? 1 : t.error ? 2 : 0;
}
