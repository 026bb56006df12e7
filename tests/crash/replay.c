// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replay: crashes, made from the log of a disk (disk.c)
 *
 *	replay [-p POINTS] [-t TRIES] [-s SEED] [-o FILE] DISK LOG DIR VOLUME...
 *	replay -c [-s SEED] DISK LOG OUT
 *
 * At POINTS flushes (default 100) of LOG, which began with the disk as DISK holds it, makes TRIES
 * images (default 4) of what a power cut some time after that flush could leave, and judges them
 * (verify.h). A VOLUME of the load is NAME:SEED:COUNT:EVERY[:z] as given to `stamp write`; DIR has
 * its image's versions. The first bad image goes to FILE.
 *
 * With -c, writes what a power cut at the end of the log could leave to OUT, and prints for
 * each seed up to which operation it was acknowledged.
 *
 * What a cut leaves: every write that a completed flush covers, and of each other that has arrived
 * all, nothing, or any of its sectors of 512 bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "log.h"
#include "verify.h"

#define BLOCK_BYTES 65536

struct write {
	uint64_t id;
	uint64_t cover; /* the flush that makes it durable when it completes; 0: not yet */
	const struct log_entry *e;
	bool written;
};

struct acked {
	uint64_t seed;
	uint64_t durable;
};

struct replay {
	const uint8_t *log;
	size_t log_bytes;
	size_t at;
	uint64_t disk_bytes;
	uint8_t *durable; /* the disk, as far as it must survive */
	uint8_t *image;	  /* a crash */
	char image_path[64];
	struct write *writes; /* not durable, in the order of their arrival */
	size_t nr_writes;
	size_t max_writes;
	uint64_t flushed;
	struct acked acked[64];
	uint64_t rng;
	struct verifier v;
};

static void die(const char *what)
{
	fprintf(stderr, "replay: %s: %s\n", what, strerror(errno));
	exit(2);
}

static uint64_t random64(struct replay *r)
{
	return stamps_random(&r->rng);
}

/* ---- the log ---- */

static void take_write(struct replay *r, const struct log_entry *e)
{
	if (r->nr_writes == r->max_writes) {
		r->max_writes = r->max_writes ? 2 * r->max_writes : 1024;
		r->writes = realloc(r->writes, r->max_writes * sizeof(*r->writes));
		if (!r->writes)
			die("memory");
	}
	r->writes[r->nr_writes++] = (struct write){ .id = e->id, .e = e };
}

static void take_written(struct replay *r, uint64_t id)
{
	for (size_t i = r->nr_writes; i--;)
		if (r->writes[i].id == id)
			r->writes[i].written = true;
}

/* The flush covers what is complete when it arrives. */
static void take_flush(struct replay *r, uint64_t id)
{
	for (size_t i = 0; i < r->nr_writes; i++)
		if (r->writes[i].written && !r->writes[i].cover)
			r->writes[i].cover = id;
}

static void take_flushed(struct replay *r, uint64_t id)
{
	size_t kept = 0;

	for (size_t i = 0; i < r->nr_writes; i++) {
		const struct write *w = &r->writes[i];

		if (w->cover && w->cover <= id)
			memcpy(r->durable + w->e->offset, w->e + 1, w->e->len);
		else
			r->writes[kept++] = *w;
	}
	r->nr_writes = kept;
	r->flushed++;
}

static void take_ack(struct replay *r, const uint8_t *data)
{
	struct stamp_ack ack;

	memcpy(&ack, data, sizeof(ack));
	if (ack.magic != STAMP_ACK_MAGIC)
		return;
	r->acked[ack.seed % 64] = (struct acked){ ack.seed, ack.durable };
	for (unsigned int i = 0; i < r->v.nr_volumes; i++) {
		struct load_volume *v = &r->v.volumes[i];

		if (v->stamps.seed == ack.seed)
			stamps_durable(&v->stamps, ack.durable);
	}
}

/* The next entry; NULL at the end. A log that was cut short ends before what is not whole. */
static const struct log_entry *next_entry(const struct replay *r, size_t at)
{
	const struct log_entry *e = (const void *)(r->log + at);

	if (at + sizeof(*e) > r->log_bytes || at + sizeof(*e) + e->len > r->log_bytes)
		return NULL;
	return e;
}

/* Takes one entry; false at the end. */
static bool step(struct replay *r)
{
	const struct log_entry *e = next_entry(r, r->at);

	if (!e)
		return false;
	switch (e->kind) {
	case LOG_WRITE:
		take_write(r, e);
		break;
	case LOG_WRITTEN:
		take_written(r, e->id);
		break;
	case LOG_FLUSH:
		take_flush(r, e->id);
		break;
	case LOG_FLUSHED:
		take_flushed(r, e->id);
		break;
	case LOG_ACK:
		/* Of several writers at once, if the machine has merged them. */
		for (uint32_t at = 0; at < e->len; at += STAMP_SECTOR)
			take_ack(r, (const uint8_t *)(e + 1) + at);
		break;
	}
	/* Data is whole sectors: entries stay aligned. */
	r->at += sizeof(*e) + e->len;
	return true;
}

static uint64_t count_flushes(const struct replay *r)
{
	const struct log_entry *e;
	uint64_t n = 0;

	for (size_t at = sizeof(uint64_t); (e = next_entry(r, at)); at += sizeof(*e) + e->len)
		n += e->kind == LOG_FLUSHED;
	return n;
}

/* ---- crashes ---- */

/* How much survives of what is not durable: in 256ths of whole writes, or of their sectors. */
static void make_crash(struct replay *r, unsigned int writes, unsigned int sectors)
{
	memcpy(r->image, r->durable, r->disk_bytes);
	for (size_t i = 0; i < r->nr_writes; i++) {
		const struct log_entry *e = r->writes[i].e;
		const uint8_t *data = (const void *)(e + 1);

		if ((random64(r) & 255) >= writes)
			continue;
		for (uint32_t at = 0; at < e->len; at += STAMP_SECTOR)
			if ((random64(r) & 255) < sectors)
				memcpy(r->image + e->offset + at, data + at, STAMP_SECTOR);
	}
}

static void make_some_crash(struct replay *r, unsigned int try)
{
	static const unsigned int some[] = { 16, 64, 128, 192, 240 };

	switch (try % 4) {
	case 0:
		make_crash(r, 0, 0);
		break;
	case 1:
		make_crash(r, 256, 256);
		break;
	case 2:
		make_crash(r, some[random64(r) % 5], 256);
		break;
	default:
		make_crash(r, 256, some[random64(r) % 5]);
	}
}

static void keep_image(const struct replay *r, const char *path)
{
	FILE *f = fopen(path, "w");

	if (!f || fwrite(r->image, r->disk_bytes, 1, f) != 1 || fclose(f))
		die(path);
}

/* Judges some crashes here; returns how many are bad. */
static unsigned int try_point(struct replay *r, unsigned int tries, const char *keep)
{
	unsigned int failed = 0;
	char text[1024];

	for (unsigned int i = 0; i < r->v.nr_volumes; i++) {
		struct load_volume *v = &r->v.volumes[i];

		/* The next acknowledgement has not come: what it covers may have begun, no more. */
		stamps_begun(&v->stamps, v->stamps.durable + v->every);
	}
	for (unsigned int t = 0; t < tries; t++) {
		uint64_t rng = r->rng;

		make_some_crash(r, t);
		if (verify_crash(&r->v, r->image_path, r->image, r->disk_bytes, text,
				 sizeof(text)))
			continue;
		printf("# flush %" PRIu64 ", try %u, %zu writes not durable: %s\n", r->flushed, t,
		       r->nr_writes, text);
		if (keep && !failed++) {
			r->rng = rng;
			make_some_crash(r, t);
			keep_image(r, keep);
		}
	}
	return failed;
}

struct totals {
	uint64_t points;
	uint64_t images;
	uint64_t lost;	 /* writes that were not durable, at all points */
	uint64_t failed;
};

/* Until an acknowledgement has just come: what it promises had no time to get there by itself. */
static void step_to_ack(struct replay *r)
{
	const struct log_entry *e;

	while ((e = next_entry(r, r->at)) && step(r))
		if (e->kind == LOG_ACK)
			return;
}

/*
 * Points are spread evenly over the flushes. Every second one is the next acknowledgement after its
 * flush; the others are a random number of entries after it, up to the flush after the next, so
 * that the cut comes anywhere.
 */
static void try_points(struct replay *r, uint64_t points, unsigned int tries, const char *keep,
		       struct totals *t)
{
	uint64_t flushes = count_flushes(r);

	if (points > flushes)
		points = flushes;
	for (t->points = 0; t->points < points; t->points++) {
		uint64_t until = (t->points * flushes + random64(r) % flushes) / points + 1;
		int more = t->points % 2 ? 0 : random64(r) % 12;

		while (r->flushed < until && step(r))
			;
		if (t->points % 2)
			step_to_ack(r);
		while (more-- && r->flushed < until + 2 && step(r))
			;
		t->lost += r->nr_writes;
		t->images += tries;
		t->failed += try_point(r, tries, keep);
		if (t->failed >= 10)
			break;
	}
}

/* ---- start ---- */

static void load_disk(struct replay *r, const char *disk)
{
	int fd = open(disk, O_RDONLY);
	struct stat st;
	int mem;

	if (fd < 0 || fstat(fd, &st))
		die(disk);
	r->disk_bytes = st.st_size;
	r->durable = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	mem = memfd_create("crash", 0);
	if (mem < 0 || ftruncate(mem, st.st_size))
		die("memory");
	snprintf(r->image_path, sizeof(r->image_path), "/proc/self/fd/%d", mem);
	r->image = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	if (r->durable == MAP_FAILED || r->image == MAP_FAILED)
		die(disk);
	close(fd);
}

static void load_log(struct replay *r, const char *log)
{
	int fd = open(log, O_RDONLY);
	uint64_t magic;
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		die(log);
	r->log_bytes = st.st_size;
	r->log = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (r->log == MAP_FAILED)
		die(log);
	close(fd);
	memcpy(&magic, r->log, sizeof(magic));
	if (magic != LOG_MAGIC) {
		errno = EINVAL;
		die(log);
	}
	r->at = sizeof(magic);
}

static void add_volume(struct replay *r, const char *dir, char *arg)
{
	char *name = strtok(arg, ":"), *seed = strtok(NULL, ":"), *count = strtok(NULL, ":");
	char *every = strtok(NULL, ":"), *zeros = strtok(NULL, ":");

	if (!every || load_volume_init(&r->v.volumes[r->v.nr_volumes], dir, name,
				       strtoull(seed, NULL, 0), strtoull(count, NULL, 0),
				       strtoull(every, NULL, 0), zeros, r->v.block_bytes))
		die(name);
	r->v.nr_volumes++;
}

static int cut(struct replay *r, const char *out)
{
	while (step(r))
		;
	make_some_crash(r, random64(r));
	keep_image(r, out);
	for (unsigned int i = 0; i < 64; i++)
		if (r->acked[i].seed)
			printf("%" PRIu64 " %" PRIu64 "\n", r->acked[i].seed, r->acked[i].durable);
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: replay [-p POINTS] [-t TRIES] [-s SEED] [-o FILE] DISK LOG DIR "
			"VOLUME...\n       replay -c [-s SEED] DISK LOG OUT\n");
	return 2;
}

int main(int argc, char **argv)
{
	static struct replay r = { .rng = 1, .v.block_bytes = BLOCK_BYTES };
	unsigned int points = 100, tries = 4;
	struct totals t = { 0 };
	const char *keep = NULL;
	bool at_end = false;
	int opt;

	while ((opt = getopt(argc, argv, "cp:t:s:o:")) != -1) {
		switch (opt) {
		case 'c': at_end = true; break;
		case 'p': points = atoi(optarg); break;
		case 't': tries = atoi(optarg); break;
		case 's': r.rng = stamps_rng(strtoull(optarg, NULL, 0)); break;
		case 'o': keep = optarg; break;
		default: return usage();
		}
	}
	argc -= optind;
	argv += optind;
	if (argc < 3 || (at_end && argc > 3))
		return usage();
	load_disk(&r, argv[0]);
	load_log(&r, argv[1]);
	if (at_end)
		return cut(&r, argv[2]);
	r.v.volumes = calloc(argc, sizeof(*r.v.volumes));
	for (int i = 3; i < argc; i++)
		add_volume(&r, argv[2], argv[i]);
	try_points(&r, points, tries, keep, &t);
	printf("# %" PRIu64 " flushes; %" PRIu64 " points, %" PRIu64 " crashes with %.1f writes not "
	       "durable, %.1f appends replayed and %.1f CLEAN slots each; %" PRIu64 " sectors, %"
	       PRIu64 " of them dirty\n", count_flushes(&r), t.points, t.images,
	       (double)t.lost / t.points, (double)r.v.replayed / t.images,
	       (double)r.v.clean / t.images, r.v.sectors, r.v.dirty_sectors);
	for (unsigned int i = 0; i < r.v.nr_volumes; i++)
		printf("# volume %s: %" PRIu64 " operations acknowledged at the last point, version %"
		       PRIu64 "\n", r.v.volumes[i].name, r.v.volumes[i].stamps.durable,
		       r.v.volumes[i].version);
	return t.failed ? 1 : 0;
}
