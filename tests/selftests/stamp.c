// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * stamp: writes that can be accounted for after a crash (tests/stamps.h)
 *
 *	stamp write [-f FIRST] [-r] [-z] [-w SECTORS] [-b KIB] DEVICE LOG SEED COUNT [EVERY [SYNC]]
 *	stamp verify [-z] [-w SECTORS] DEVICE LOG SEED COUNT [BASE [EVERY]]
 *	stamp prefix FILE SEED COUNT BASE
 *	stamp fill FILE BYTES SEED
 *
 * write makes COUNT operations of random length and place, all determined by SEED. Each sector
 * says which operation it is of. After every EVERY (default 8) it makes them durable, by fdatasync
 * or, with SYNC = fua, by writing each with FUA, and then appends the number of the last one to
 * LOG; to a LOG that is a block device it writes an acknowledgement (struct stamp_ack) instead, at
 * sector SEED % 64. It stops at the first error, with status 2.
 *
 *	-f FIRST	goes on with this operation: those before it are durable
 *	-r		reads random sectors now and then, which must hold what was written last
 *			(else status 3)
 *	-z		with writes of zeros and discards (not with fua)
 *	-w SECTORS	only the first so many sectors of DEVICE, the working set
 *	-b KIB		at most so many KiB a second
 *
 * verify accepts in each sector the last operation that LOG says is durable, or any later one
 * that covers the sector and can have begun; where none is durable also what BASE
 * (zeros without it) has there.
 *
 * prefix accepts what a cut may hold: all operations up to some number, and parts of the one after.
 *
 * fill makes a file of pseudo-random bytes, always the same for one seed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include "../stamps.h"

#define BUF_BYTES (STAMP_MAX_SECTORS * STAMP_SECTOR)

struct args {
	const char *device;
	const char *log;
	uint64_t seed;
	uint64_t count;
	uint64_t every;
	uint64_t first;
	uint64_t sectors; /* of the working set; 0: all */
	uint64_t kib;	  /* a second; 0: as fast as it goes */
	const char *base;
	bool fua;
	bool zeros;
	bool reads;
};

struct writer {
	struct stamps stamps;
	struct stamps before; /* the state as the reader sees it: all done is durable */
	int fd;
	int sync_fd;
	aio_context_t aio;
	int log;
	bool log_is_device;
	uint8_t *buf;
	uint8_t *base;
	uint64_t rng;
};

/* Of the working set. */
static uint64_t sectors_of(int fd, const struct args *a)
{
	uint64_t bytes, sectors = 0;
	struct stat st;

	if (!fstat(fd, &st) && S_ISREG(st.st_mode))
		sectors = st.st_size / STAMP_SECTOR;
	else if (!ioctl(fd, BLKGETSIZE64, &bytes))
		sectors = bytes / STAMP_SECTOR;
	return a->sectors && a->sectors < sectors ? a->sectors : sectors;
}

/* ---- write ---- */

/* pwrite() to a device that is open with O_DSYNC is a FUA write and a flush; this is only the first. */
static int write_fua(struct writer *w, uint64_t offset, uint64_t bytes)
{
	struct iocb cb = {
		.aio_fildes = w->sync_fd, .aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_buf = (uintptr_t)w->buf, .aio_nbytes = bytes, .aio_offset = offset,
	};
	struct iocb *cbs[] = { &cb };
	struct io_event done;

	if (syscall(SYS_io_submit, w->aio, 1, cbs) != 1 ||
	    syscall(SYS_io_getevents, w->aio, 1, 1, &done, NULL) != 1)
		return -1;
	return done.res == (int64_t)bytes ? 0 : -1;
}

static int do_op(struct writer *w, const struct args *a, uint64_t n)
{
	const struct stamp_op *op = &w->stamps.ops[n];
	uint64_t range[2] = { op->sector * STAMP_SECTOR, (uint64_t)op->len * STAMP_SECTOR };

	if (op->kind == STAMP_ZERO)
		return ioctl(w->fd, BLKZEROOUT, range);
	if (op->kind == STAMP_DISCARD)
		return ioctl(w->fd, BLKDISCARD, range);
	for (uint32_t i = 0; i < op->len; i++)
		stamps_fill(&w->stamps, (uint64_t *)(w->buf + i * STAMP_SECTOR), op->sector + i, n);
	if (a->fua)
		return write_fua(w, range[0], range[1]);
	return pwrite(w->fd, w->buf, range[1], range[0]) == (ssize_t)range[1] ? 0 : -1;
}

static int acknowledge(struct writer *w, const struct args *a, uint64_t n)
{
	struct stamp_ack *ack = (struct stamp_ack *)w->buf;
	char line[32];

	if (w->log_is_device) {
		memset(w->buf, 0, STAMP_SECTOR);
		*ack = (struct stamp_ack){ STAMP_ACK_MAGIC, a->seed, n };
		return pwrite(w->log, w->buf, STAMP_SECTOR, a->seed % 64 * STAMP_SECTOR) ==
			       STAMP_SECTOR ? 0 : -1;
	}
	snprintf(line, sizeof(line), "%20llu\n", (unsigned long long)n);
	return write(w->log, line, strlen(line)) == (ssize_t)strlen(line) ? 0 : -1;
}

/* Some sectors must hold what the operations up to @n have put there. */
static int read_back(struct writer *w, uint64_t n)
{
	uint64_t sector = stamps_random(&w->rng) % w->stamps.sectors;
	uint64_t len = 1 + stamps_random(&w->rng) % 128;

	if (sector + len > w->stamps.sectors)
		len = w->stamps.sectors - sector;
	if (pread(w->fd, w->buf, len * STAMP_SECTOR, sector * STAMP_SECTOR) !=
	    (ssize_t)(len * STAMP_SECTOR))
		return 2;
	stamps_durable(&w->before, n);
	stamps_begun(&w->before, n);
	for (uint64_t i = 0; i < len; i++) {
		if (stamps_allowed(&w->before, sector + i, w->buf + i * STAMP_SECTOR,
				   w->base + (sector + i) * STAMP_SECTOR))
			continue;
		printf("sector %llu does not hold what was written, after operation %llu\n",
		       (unsigned long long)(sector + i), (unsigned long long)n);
		return 3;
	}
	return 0;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

/* Until @bytes since @start are no more than were asked for. */
static void pace(const struct args *a, uint64_t start, uint64_t bytes)
{
	uint64_t due = start + bytes * 1000000000ULL / (a->kib << 10);
	struct timespec t = { .tv_sec = due / 1000000000ULL, .tv_nsec = due % 1000000000ULL };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int write_all(struct writer *w, const struct args *a)
{
	uint64_t start = now_ns(), bytes = 0;
	int r;

	for (uint64_t n = a->first; n <= a->count; n++) {
		if (a->kib)
			pace(a, start, bytes);
		bytes += (uint64_t)w->stamps.ops[n].len * STAMP_SECTOR;
		if (do_op(w, a, n))
			return 2;
		r = a->reads && n % 4 == 0 ? read_back(w, n) : 0;
		if (r)
			return r;
		if (n % a->every)
			continue;
		if (!a->fua && fdatasync(w->fd))
			return 2;
		if (acknowledge(w, a, n))
			return 1;
	}
	return 0;
}

static int read_base(struct writer *w, const struct args *a)
{
	uint64_t bytes = w->stamps.sectors * STAMP_SECTOR;

	w->base = aligned_alloc(4096, (bytes + 4095) & ~4095ULL);
	for (uint64_t at = 0; w->base && at < bytes;) {
		ssize_t n = pread(w->fd, w->base + at, bytes - at < BUF_BYTES ? bytes - at : BUF_BYTES,
				  at);

		if (n <= 0)
			return -1;
		at += n;
	}
	return w->base ? stamps_init(&w->before, a->seed, a->count, w->stamps.sectors, a->zeros) :
			 -1;
}

static int do_write(const struct args *a)
{
	struct writer w = {
		.fd = open(a->device, O_RDWR | O_DIRECT),
		.sync_fd = open(a->device, O_RDWR | O_DIRECT | O_DSYNC),
		.buf = aligned_alloc(4096, BUF_BYTES),
		.rng = stamps_rng(a->seed + 1),
	};
	struct stat st;

	w.log_is_device = !stat(a->log, &st) && S_ISBLK(st.st_mode);
	w.log = w.log_is_device ? open(a->log, O_WRONLY | O_DIRECT) :
				  open(a->log, O_WRONLY | O_CREAT | O_APPEND | O_DSYNC, 0644);
	if (w.fd < 0 || w.sync_fd < 0 || w.log < 0 || !w.buf || !sectors_of(w.fd, a) ||
	    stamps_init(&w.stamps, a->seed, a->count, sectors_of(w.fd, a), a->zeros) ||
	    (a->reads && read_base(&w, a)) || (a->fua && syscall(SYS_io_setup, 1, &w.aio))) {
		perror(a->device);
		return 1;
	}
	return write_all(&w, a);
}

/* ---- verify ---- */

static uint64_t last_durable(const char *path)
{
	FILE *f = fopen(path, "r");
	unsigned long long n, last = 0;

	if (!f)
		return 0;
	while (fscanf(f, "%llu", &n) == 1)
		last = n;
	fclose(f);
	return last;
}

struct check {
	struct stamps s;
	int fd, base;
	uint8_t *buf;
};

static int check_open(struct check *c, const struct args *a)
{
	c->fd = open(a->device, O_RDONLY | O_DIRECT);
	/* (Files on a tmpfs.) */
	if (c->fd < 0)
		c->fd = open(a->device, O_RDONLY);
	c->base = a->base ? open(a->base, O_RDONLY) : -1;
	c->buf = aligned_alloc(4096, BUF_BYTES);
	if (c->fd >= 0 && c->buf && sectors_of(c->fd, a) &&
	    !stamps_init(&c->s, a->seed, a->count, sectors_of(c->fd, a), a->zeros))
		return 0;
	perror(a->device);
	return 1;
}

/* What the sector holds; they are asked for in order. */
static uint64_t *check_sector(struct check *c, uint64_t sector)
{
	if (sector % STAMP_MAX_SECTORS == 0 &&
	    pread(c->fd, c->buf, BUF_BYTES, sector * STAMP_SECTOR) <= 0) {
		perror("read");
		exit(1);
	}
	return (uint64_t *)(c->buf + sector % STAMP_MAX_SECTORS * STAMP_SECTOR);
}

static int check_all(struct check *c)
{
	uint8_t old[STAMP_SECTOR] = { 0 };
	uint64_t bad = 0, later = 0;

	for (uint64_t sector = 0; sector < c->s.sectors; sector++) {
		uint64_t *p = check_sector(c, sector);

		if (c->base >= 0 && pread(c->base, old, STAMP_SECTOR, sector * STAMP_SECTOR) < 0)
			return 1;
		if (!stamps_allowed(&c->s, sector, p, old)) {
			if (bad++ < 5)
				printf("sector %llu: operation %llu expected, holds %llx\n",
				       (unsigned long long)sector,
				       (unsigned long long)c->s.last[sector],
				       (unsigned long long)p[0]);
			continue;
		}
		later += p[0] > c->s.durable && p[0] <= c->s.begun &&
			 stamps_is_of(&c->s, p, sector, p[0]);
	}
	printf("durable %llu, later sectors %llu, bad sectors %llu\n",
	       (unsigned long long)c->s.durable, (unsigned long long)later,
	       (unsigned long long)bad);
	return bad ? 1 : 0;
}

static int do_verify(const struct args *a)
{
	struct check c;

	if (check_open(&c, a))
		return 1;
	stamps_durable(&c.s, last_durable(a->log));
	stamps_begun(&c.s, c.s.durable + a->every);
	return check_all(&c);
}

/* The newest operation that is there says which must be. */
static int do_prefix(const struct args *a)
{
	uint64_t last = 0;
	struct check c;

	if (check_open(&c, a))
		return 1;
	for (uint64_t sector = 0; sector < c.s.sectors; sector++) {
		uint64_t *p = check_sector(&c, sector);

		if (p[0] > last && p[0] <= a->count && stamps_is_of(&c.s, p, sector, p[0]))
			last = p[0];
	}
	stamps_durable(&c.s, last ? last - 1 : 0);
	stamps_begun(&c.s, last);
	return check_all(&c);
}

/* ---- fill ---- */

static int do_fill(const char *path, uint64_t bytes, uint64_t seed)
{
	static uint64_t buf[8192];
	uint64_t rng = stamps_rng(seed);
	FILE *f = fopen(path, "w");

	while (f && bytes) {
		size_t n = bytes < sizeof(buf) ? bytes : sizeof(buf);

		for (size_t i = 0; i < sizeof(buf) / 8; i++)
			buf[i] = stamps_random(&rng);
		if (fwrite(buf, 1, n, f) != n)
			break;
		bytes -= n;
	}
	if (!f || bytes || fclose(f)) {
		perror(path);
		return 1;
	}
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: stamp write [-f FIRST] [-r] [-z] [-w SECTORS] [-b KIB] DEVICE LOG SEED "
			"COUNT [EVERY [SYNC]]\n"
			"       stamp verify [-z] [-w SECTORS] DEVICE LOG SEED COUNT [BASE [EVERY]]\n"
			"       stamp prefix FILE SEED COUNT BASE\n"
			"       stamp fill FILE BYTES SEED\n");
	return 1;
}

int main(int argc, char **argv)
{
	struct args a = { .every = 8, .first = 1 };
	const char *what = argc > 1 ? argv[1] : "";
	int opt;

	if (argc == 5 && !strcmp(what, "fill"))
		return do_fill(argv[2], strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0));
	argc--;
	argv++;
	while ((opt = getopt(argc, argv, "f:rzw:b:")) != -1) {
		if (opt == '?')
			return usage();
		if (opt == 'f')
			a.first = strtoull(optarg, NULL, 0);
		if (opt == 'w')
			a.sectors = strtoull(optarg, NULL, 0);
		if (opt == 'b')
			a.kib = strtoull(optarg, NULL, 0);
		a.reads |= opt == 'r';
		a.zeros |= opt == 'z';
	}
	argc -= optind;
	argv += optind;
	if (argc < 4)
		return usage();
	a.device = argv[0];
	if (!strcmp(what, "prefix")) {
		a.seed = strtoull(argv[1], NULL, 0);
		a.count = strtoull(argv[2], NULL, 0);
		a.base = argv[3];
		return do_prefix(&a);
	}
	a.log = argv[1];
	a.seed = strtoull(argv[2], NULL, 0);
	a.count = strtoull(argv[3], NULL, 0);
	if (!strcmp(what, "write")) {
		a.every = argc > 4 ? strtoull(argv[4], NULL, 0) : a.every;
		a.fua = argc > 5 && !strcmp(argv[5], "fua");
		return a.every ? do_write(&a) : usage();
	}
	a.base = argc > 4 && *argv[4] ? argv[4] : NULL;
	a.every = argc > 5 ? strtoull(argv[5], NULL, 0) : a.every;
	return strcmp(what, "verify") ? usage() : do_verify(&a);
}
