// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fsx: random operations on one file, each compared with what a model in memory says
 *
 *	fsx FILE BYTES OPERATIONS SEED [SECONDS]
 *
 * Reads, writes, reads and writes through a mapping, truncations, holes, zeroed ranges,
 * syncs, and now and then the file is closed, dropped from the page cache, and opened again. After
 * OPERATIONS, or SECONDS, the whole file is compared once more from the disk. Exit status 1, and
 * the last operations, at the first wrong byte.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MOST	(256UL << 10)	/* bytes of one operation */
#define LOG	32

struct fsx {
	const char *path;
	int fd;
	uint64_t max, size, rng, n;
	uint8_t *model, *buf;
	char log[LOG][80];
};

static uint64_t rnd(struct fsx *f, uint64_t below)
{
	f->rng ^= f->rng << 13;
	f->rng ^= f->rng >> 7;
	f->rng ^= f->rng << 17;
	return (f->rng * 0x2545f4914f6cdd1dULL >> 11) % below;
}

static void fail(struct fsx *f, const char *what)
{
	printf("fsx: %s: operation %llu: %s\n", f->path, (unsigned long long)f->n, what);
	for (uint64_t i = f->n < LOG ? 0 : f->n - LOG + 1; i <= f->n; i++)
		printf("fsx: %s\n", f->log[i % LOG]);
	exit(1);
}

static void check(struct fsx *f, const uint8_t *got, uint64_t at, uint64_t len)
{
	char what[120];

	for (uint64_t i = 0; i < len; i++) {
		if (got[i] == f->model[at + i])
			continue;
		snprintf(what, sizeof(what), "byte %#llx is %#x, not %#x",
			 (unsigned long long)(at + i), got[i], f->model[at + i]);
		fail(f, what);
	}
}

static void fsx_open(struct fsx *f, int flags)
{
	f->fd = open(f->path, O_RDWR | flags, 0644);
	if (f->fd < 0)
		fail(f, strerror(errno));
}

static void op_read(struct fsx *f, uint64_t at, uint64_t len)
{
	if (at + len > f->size)
		len = at < f->size ? f->size - at : 0;
	if (pread(f->fd, f->buf, len, at) != (ssize_t)len)
		fail(f, "short read");
	check(f, f->buf, at, len);
}

static void op_write(struct fsx *f, uint64_t at, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		f->model[at + i] = rnd(f, 256);
	if (pwrite(f->fd, f->model + at, len, at) != (ssize_t)len)
		fail(f, "short write");
	if (at + len > f->size)
		f->size = at + len;
}

/* Pages of the file that are there. */
static void op_map(struct fsx *f, uint64_t at, uint64_t len, int write)
{
	uint64_t start = at & ~4095ULL;
	uint8_t *p;

	if (at + len > f->size)
		len = at < f->size ? f->size - at : 0;
	if (!len)
		return;
	p = mmap(NULL, at + len - start, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, f->fd,
		 start);
	if (p == MAP_FAILED)
		fail(f, "mmap");
	check(f, p + (at - start), at, len);
	for (uint64_t i = 0; write && i < len; i++)
		p[at - start + i] = f->model[at + i] = rnd(f, 256);
	if (write && rnd(f, 2) && msync(p, at + len - start, MS_SYNC))
		fail(f, "msync");
	munmap(p, at + len - start);
}

static void op_truncate(struct fsx *f, uint64_t size)
{
	if (ftruncate(f->fd, size))
		fail(f, "ftruncate");
	/* What is cut off reads as zeros when the file grows again. */
	memset(f->model + size, 0, f->max - size);
	f->size = size;
}

static void op_zero(struct fsx *f, uint64_t at, uint64_t len, int mode)
{
	if (at + len > f->size)
		len = at < f->size ? f->size - at : 0;
	if (!len)
		return;
	if (fallocate(f->fd, mode | FALLOC_FL_KEEP_SIZE, at, len)) {
		if (errno != EOPNOTSUPP)
			fail(f, "fallocate");
		return;
	}
	memset(f->model + at, 0, len);
}

static void op_reopen(struct fsx *f)
{
	if (fsync(f->fd) || posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED) || close(f->fd))
		fail(f, "close");
	fsx_open(f, 0);
}

static void step(struct fsx *f)
{
	static const char * const names[] = {
		"read", "read", "write", "write", "write", "read by mapping", "write by mapping",
		"punch", "zero", "truncate", "sync", "reopen",
	};
	uint64_t at = rnd(f, f->max), len = 1 + rnd(f, MOST), kind = rnd(f, 48);

	/* The last ones are rare. */
	kind = kind < 36 ? kind % 9 : kind < 41 ? 9 : kind < 45 ? 10 : 11;
	if (rnd(f, 3) == 0) {
		at &= ~4095ULL;
		len = (len + 4095) & ~4095ULL;
	}
	if (at + len > f->max)
		len = f->max - at;
	snprintf(f->log[f->n % LOG], sizeof(f->log[0]), "%llu: %s at %#llx, %#llx bytes",
		 (unsigned long long)f->n, names[kind], (unsigned long long)at,
		 (unsigned long long)len);
	switch (kind) {
	case 0: case 1:
		op_read(f, at, len);
		break;
	case 2: case 3: case 4:
		op_write(f, at, len);
		break;
	case 5: case 6:
		op_map(f, at, len, kind == 6);
		break;
	case 7:
		op_zero(f, at, len, FALLOC_FL_PUNCH_HOLE);
		break;
	case 8:
		op_zero(f, at, len, FALLOC_FL_ZERO_RANGE);
		break;
	case 9:
		op_truncate(f, at);
		break;
	case 10:
		if (fdatasync(f->fd))
			fail(f, "fdatasync");
		break;
	default:
		op_reopen(f);
	}
}

int main(int argc, char **argv)
{
	struct fsx f = {};
	time_t end;

	if (argc < 5) {
		fprintf(stderr, "usage: fsx FILE BYTES OPERATIONS SEED [SECONDS]\n");
		return 2;
	}
	f.path = argv[1];
	f.max = strtoull(argv[2], NULL, 0);
	f.rng = strtoull(argv[4], NULL, 0) * 0x9e3779b97f4a7c15ULL | 1;
	end = argc > 5 ? time(NULL) + atoi(argv[5]) : 0;
	f.model = calloc(1, f.max + MOST + 4096);
	f.buf = malloc(MOST + 4096);
	fsx_open(&f, O_CREAT | O_TRUNC);
	for (uint64_t ops = strtoull(argv[3], NULL, 0); f.n < ops; f.n++) {
		step(&f);
		if (end && time(NULL) >= end)
			break;
	}
	op_reopen(&f);
	for (uint64_t at = 0; at < f.size; at += MOST)
		op_read(&f, at, MOST);
	printf("fsx: %s: %llu operations\n", f.path, (unsigned long long)f.n);
	return 0;
}
