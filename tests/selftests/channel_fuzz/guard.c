// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A guest that knows what it must read: the first half of the device it writes and reads, the
 * second half it only reads. Reads of the second half may fail, since their FETCH may; but no byte
 * may be another. In the end, after some seconds or at a SIGTERM, the content that must be there is
 * written to the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "fuzz.h"

#define SECTOR	512
#define MOST	64	/* sectors */

static int guard_read(int fd, const uint8_t *ref, uint64_t sector, uint64_t n, uint8_t *buf,
		      bool may_fail)
{
	ssize_t got = pread(fd, buf, n * SECTOR, sector * SECTOR);

	if (got < 0 && may_fail)
		return 0;
	if (got != (ssize_t)(n * SECTOR)) {
		fprintf(stderr, "guard: cannot read %llu: %s\n", (unsigned long long)sector,
			strerror(errno));
		return 1;
	}
	for (uint64_t i = 0; i < n; i++)
		if (memcmp(buf + i * SECTOR, ref + (sector + i) * SECTOR, SECTOR)) {
			fprintf(stderr, "guard: sector %llu is wrong\n",
				(unsigned long long)(sector + i));
			return 1;
		}
	return 0;
}

static int guard_step(int fd, uint8_t *ref, uint64_t sectors, uint8_t *buf, struct rnd *r)
{
	uint64_t half = sectors / 2, n = 1 + rnd_below(r, MOST);
	uint64_t sector = rnd_below(r, half - n);

	switch (rnd_below(r, 3)) {
	case 0:
		for (uint64_t i = 0; i < n * SECTOR; i += 8) {
			uint64_t v = rnd64(r);

			memcpy(buf + i, &v, 8);
		}
		if (pwrite(fd, buf, n * SECTOR, sector * SECTOR) != (ssize_t)(n * SECTOR)) {
			fprintf(stderr, "guard: cannot write %llu: %s\n",
				(unsigned long long)sector, strerror(errno));
			return 1;
		}
		memcpy(ref + sector * SECTOR, buf, n * SECTOR);
		return 0;
	case 1:
		return guard_read(fd, ref, sector, n, buf, false);
	default:
		return guard_read(fd, ref, half + sector, n, buf, true);
	}
}

static volatile sig_atomic_t over;

static void end_it(int sig)
{
	(void)sig;
	over = 1;
}

/* DEVICE FILE SECONDS SEED */
int guard(int argc, char **argv)
{
	int fd, file, r = 0;
	uint8_t *ref, *buf = aligned_alloc(4096, MOST * SECTOR);
	time_t end;
	struct rnd rnd;
	struct stat st;

	if (argc != 4)
		return 2;
	fd = open(argv[0], O_RDWR | O_DIRECT);
	file = open(argv[1], O_RDWR);
	if (fd < 0 || file < 0 || fstat(file, &st)) {
		perror("guard");
		return 1;
	}
	ref = malloc(st.st_size);
	if (pread(file, ref, st.st_size, 0) != st.st_size)
		return 1;
	signal(SIGTERM, end_it);
	rnd = rnd_seed(strtoull(argv[3], NULL, 0));
	end = time(NULL) + atoi(argv[2]);
	while (!r && !over && time(NULL) < end)
		r = guard_step(fd, ref, st.st_size / SECTOR, buf, &rnd);
	if (!r && pwrite(file, ref, st.st_size, 0) != st.st_size)
		r = 1;
	return r;
}
