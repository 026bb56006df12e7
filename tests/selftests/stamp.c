// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * stamp: writes that can be accounted for after a crash
 *
 *	stamp write DEVICE LOG SEED COUNT [EVERY [SYNC]]
 *	stamp verify DEVICE LOG SEED COUNT [BASE]
 *	stamp fill FILE BYTES SEED
 *
 * write makes COUNT writes of random length and place, all determined by SEED. Each sector says
 * which write it is of. After every EVERY writes (default 8) it makes them durable, by fdatasync
 * or, with SYNC = fua, by writing the last of them with O_DSYNC, and then appends the number of
 * the last write to LOG. It stops at the first error, with status 2.
 *
 * verify accepts in each sector the last write that LOG says is durable, or any later one that
 * covers the sector; where no write is durable also what BASE (zeros without it) has there.
 *
 * fill makes a file of pseudo-random bytes, always the same for one seed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/fs.h>

#define SECTOR		512
#define MAX_SECTORS	1024

struct write {
	uint64_t sector;
	uint32_t len;
};

static uint64_t rng;

static uint64_t next_random(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng * 0x2545f4914f6cdd1dULL;
}

/* Mostly small and aligned to 4 KiB, as file systems write; but of every kind. */
static struct write next_write(uint64_t sectors)
{
	uint64_t kind = next_random() % 10, a = next_random(), b = next_random();
	struct write w;

	if (kind < 6)
		w.len = 8 * (1 + a % 4);
	else if (kind < 9)
		w.len = 1 + a % 64;
	else
		w.len = 1 + a % MAX_SECTORS;
	if (w.len > sectors)
		w.len = sectors;
	w.sector = b % (sectors - w.len + 1);
	if (kind < 6)
		w.sector &= ~7ULL;
	return w;
}

static void stamp(uint64_t *p, uint64_t sector, uint64_t n)
{
	for (int i = 0; i < SECTOR / 8; i += 2) {
		p[i] = n;
		p[i + 1] = sector ^ (n * 0x9e3779b97f4a7c15ULL + i);
	}
}

static uint64_t size_of(int fd)
{
	struct stat st;
	uint64_t bytes;

	if (!fstat(fd, &st) && S_ISREG(st.st_mode))
		return st.st_size / SECTOR;
	if (ioctl(fd, BLKGETSIZE64, &bytes))
		return 0;
	return bytes / SECTOR;
}

static int do_write(char **argv, int argc)
{
	int fd = open(argv[0], O_RDWR | O_DIRECT);
	int sync_fd = open(argv[0], O_RDWR | O_DIRECT | O_DSYNC);
	int log = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
	uint64_t count = strtoull(argv[3], NULL, 0);
	uint64_t every = argc > 4 ? strtoull(argv[4], NULL, 0) : 8;
	bool fua = argc > 5 && !strcmp(argv[5], "fua");
	uint64_t sectors = size_of(fd);
	uint8_t *buf = aligned_alloc(4096, MAX_SECTORS * SECTOR);
	char line[32];

	if (fd < 0 || sync_fd < 0 || log < 0 || !sectors) {
		perror(argv[0]);
		return 1;
	}
	for (uint64_t n = 1; n <= count; n++) {
		struct write w = next_write(sectors);
		bool sync = n % every == 0;

		for (uint32_t i = 0; i < w.len; i++)
			stamp((uint64_t *)(buf + i * SECTOR), w.sector + i, n);
		/* O_DSYNC flushes nothing but its own write: then each is one. */
		if (pwrite(fua ? sync_fd : fd, buf, w.len * SECTOR, w.sector * SECTOR) !=
		    (ssize_t)w.len * SECTOR)
			return 2;
		if (!sync)
			continue;
		if (!fua && fdatasync(fd))
			return 2;
		snprintf(line, sizeof(line), "%20llu\n", (unsigned long long)n);
		if (write(log, line, strlen(line)) != (ssize_t)strlen(line))
			return 1;
	}
	return 0;
}

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

/* Is what the sector holds write @n's, and did that write cover it? */
static bool is_of(const uint64_t *p, const struct write *w, uint64_t sector, uint64_t n)
{
	uint64_t want[SECTOR / 8];

	if (sector < w[n].sector || sector >= w[n].sector + w[n].len)
		return false;
	stamp(want, sector, n);
	return !memcmp(p, want, SECTOR);
}

static int do_verify(char **argv, int argc)
{
	int fd = open(argv[0], O_RDONLY | O_DIRECT);
	int base = argc > 4 ? open(argv[4], O_RDONLY) : -1;
	uint64_t count = strtoull(argv[3], NULL, 0), durable = last_durable(argv[1]);
	uint64_t sectors = size_of(fd), bad = 0, later = 0;
	struct write *w = calloc(count + 1, sizeof(*w));
	uint64_t *last = calloc(sectors, sizeof(*last));
	uint8_t *buf = aligned_alloc(4096, MAX_SECTORS * SECTOR), old[SECTOR];

	if (fd < 0 || !sectors || !w || !last) {
		perror(argv[0]);
		return 1;
	}
	for (uint64_t n = 1; n <= count; n++) {
		w[n] = next_write(sectors);
		for (uint32_t i = 0; n <= durable && i < w[n].len; i++)
			last[w[n].sector + i] = n;
	}
	for (uint64_t s = 0; s < sectors; s++) {
		uint64_t *p = (uint64_t *)(buf + s % MAX_SECTORS * SECTOR), n;

		if (s % MAX_SECTORS == 0 &&
		    pread(fd, buf, MAX_SECTORS * SECTOR, s * SECTOR) <= 0) {
			perror("read");
			return 1;
		}
		n = p[0];
		if (n >= 1 && n >= last[s] && n <= count && is_of(p, w, s, n)) {
			later += n > durable;
			continue;
		}
		memset(old, 0, SECTOR);
		if (base >= 0 && pread(base, old, SECTOR, s * SECTOR) < 0)
			return 1;
		if (!last[s] && !memcmp(p, old, SECTOR))
			continue;
		if (bad++ < 5)
			printf("sector %llu: write %llu expected, holds %llx\n",
			       (unsigned long long)s, (unsigned long long)last[s],
			       (unsigned long long)n);
	}
	printf("durable %llu, later sectors %llu, bad sectors %llu\n", (unsigned long long)durable,
	       (unsigned long long)later, (unsigned long long)bad);
	return bad ? 1 : 0;
}

static int do_fill(const char *path, uint64_t bytes, uint64_t seed)
{
	static uint64_t buf[8192];
	FILE *f = fopen(path, "w");

	rng = seed * 0x9e3779b97f4a7c15ULL | 1;
	while (f && bytes) {
		size_t n = bytes < sizeof(buf) ? bytes : sizeof(buf);

		for (size_t i = 0; i < sizeof(buf) / 8; i++)
			buf[i] = next_random();
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

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "fill"))
		return do_fill(argv[2], strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0));
	if (argc < 6) {
		fprintf(stderr, "usage: stamp write|verify DEVICE LOG SEED COUNT ...\n");
		return 1;
	}
	rng = strtoull(argv[4], NULL, 0) * 0x9e3779b97f4a7c15ULL | 1;
	return !strcmp(argv[1], "write") ? do_write(argv + 2, argc - 2) :
					   do_verify(argv + 2, argc - 2);
}
