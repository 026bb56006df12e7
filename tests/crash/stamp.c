// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Stamped blocks: what was written and flushed must be there after a crash.
 *
 *	stamp write FILE BLOCKS LOG	overwrites random blocks of 4 KiB for ever, each followed by
 *					fdatasync, and then says so in LOG, which lies outside
 *	stamp check FILE BLOCKS LOG	every block must hold one whole stamp, not older than the
 *					last that LOG has of it
 *
 * A stamp is the block's number and a generation, repeated over the block.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096

struct stamp {
	uint64_t block;
	uint64_t generation;
};

static int fail(const char *what)
{
	fprintf(stderr, "stamp: %s: %s\n", what, strerror(errno));
	return 1;
}

static void fill(struct stamp *buf, uint64_t block, uint64_t generation)
{
	size_t i;

	for (i = 0; i < BLOCK / sizeof(*buf); i++)
		buf[i] = (struct stamp){ block, generation };
}

static int write_stamp(int fd, uint64_t block, uint64_t generation)
{
	struct stamp buf[BLOCK / sizeof(struct stamp)];

	fill(buf, block, generation);
	return pwrite(fd, buf, BLOCK, (off_t)(block * BLOCK)) == BLOCK ? 0 : -1;
}

static int do_write(const char *file, uint64_t blocks, const char *log)
{
	int fd = open(file, O_RDWR | O_CREAT, 0600);
	int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_DSYNC, 0600);
	uint64_t block, generation;
	char line[64];
	int len;

	if (fd < 0 || out < 0)
		return fail("open");
	for (block = 0; block < blocks; block++)
		if (write_stamp(fd, block, 0))
			return fail("write");
	if (fsync(fd))
		return fail("fsync");
	if (write(out, "all 0\n", 6) != 6)
		return fail("log");
	for (generation = 1;; generation++) {
		block = (uint64_t)random() % blocks;
		if (write_stamp(fd, block, generation))
			return fail("write");
		if (fdatasync(fd))
			return fail("fdatasync");
		len = snprintf(line, sizeof(line), "%" PRIu64 " %" PRIu64 "\n", block, generation);
		if (write(out, line, (size_t)len) != len)
			return fail("log");
	}
}

static int read_log(const char *log, uint64_t blocks, uint64_t *last, uint64_t *acknowledged)
{
	FILE *f = fopen(log, "r");
	uint64_t block, generation;
	char line[64];

	if (!f)
		return fail("open the log");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNu64 " %" SCNu64 "\n", &block, &generation) != 2 ||
		    block >= blocks)
			continue;
		last[block] = generation;
		++*acknowledged;
	}
	fclose(f);
	return 0;
}

static int check_block(int fd, uint64_t block, uint64_t least)
{
	struct stamp buf[BLOCK / sizeof(struct stamp)], want[BLOCK / sizeof(struct stamp)];

	if (pread(fd, buf, BLOCK, (off_t)(block * BLOCK)) != BLOCK)
		return fail("read");
	fill(want, block, buf[0].generation);
	if (memcmp(buf, want, BLOCK)) {
		fprintf(stderr, "stamp: block %" PRIu64 " is torn or not ours\n", block);
		return 1;
	}
	if (buf[0].generation < least) {
		fprintf(stderr, "stamp: block %" PRIu64 " has generation %" PRIu64 ", but %" PRIu64
			" was acknowledged\n", block, buf[0].generation, least);
		return 1;
	}
	return 0;
}

static int do_check(const char *file, uint64_t blocks, const char *log)
{
	uint64_t *last = calloc(blocks, sizeof(*last));
	uint64_t block, acknowledged = 0, bad = 0;
	int fd = open(file, O_RDONLY);

	if (!last || fd < 0)
		return fail("open");
	if (read_log(log, blocks, last, &acknowledged))
		return 1;
	for (block = 0; block < blocks; block++)
		bad += (uint64_t)check_block(fd, block, last[block]);
	printf("stamp: %" PRIu64 " acknowledged writes, %" PRIu64 " blocks, %" PRIu64 " lost\n",
	       acknowledged, blocks, bad);
	free(last);
	return bad || !acknowledged;
}

int main(int argc, char **argv)
{
	uint64_t blocks = argc == 5 ? strtoull(argv[3], NULL, 10) : 0;

	if (blocks && !strcmp(argv[1], "write"))
		return do_write(argv[2], blocks, argv[4]);
	if (blocks && !strcmp(argv[1], "check"))
		return do_check(argv[2], blocks, argv[4]);
	fprintf(stderr, "usage: stamp write|check FILE BLOCKS LOG\n");
	return 2;
}
