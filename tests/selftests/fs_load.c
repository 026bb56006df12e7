// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fs_load run DIR LOG: makes, appends to, truncates, links and renames files in DIR, and removes the
 * oldest. What it has done to file n it fsyncs, and then writes a byte to LOG. Ends with 0 as soon
 * as the file system fails with EIO or EROFS.
 *
 * fs_load check DIR LOG: the file system was recovered since. The youngest of the files that LOG
 * counts must be as they were when their byte was written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEPT	600		/* files; older ones are removed */
#define CHECKED	150		/* of the removals none is known to be durable, or not to be */
#define MOST	(64 << 10)	/* bytes in a file */

enum kind { MADE, APPENDED, TRUNCATED, LINKED, RENAMED, NR_KINDS };

static uint8_t buf[MOST], seen[MOST + 1];

static enum kind kind_of(unsigned int n)
{
	return n * 7 / 3 % NR_KINDS;
}

/* The final length. */
static size_t length_of(unsigned int n)
{
	return n * 2654435761U % (MOST / 2) + 1;
}

static void content(unsigned int n, size_t length)
{
	uint64_t x = n + 1;

	for (size_t i = 0; i < length; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		buf[i] = x >> 56;
	}
}

static void name_of(unsigned int n, const char *what, char name[64])
{
	snprintf(name, 64, "d%u/%s%u", n % 7, what, n);
}

static int put(int fd, size_t from, size_t to)
{
	return pwrite(fd, buf + from, to - from, from) == (ssize_t)(to - from) ? 0 : -1;
}

/* Does what file @n is for, up to the fsync that makes it durable. */
static int make(unsigned int n)
{
	size_t length = length_of(n), first = length;
	enum kind kind = kind_of(n);
	char name[64], other[64];
	int fd, r;

	name_of(n, "f", name);
	name_of(n, "g", other);
	if (kind == APPENDED)
		first = length / 2;
	else if (kind == TRUNCATED)
		first = length * 2;
	content(n, first > length ? first : length);
	fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return -1;
	r = put(fd, 0, first);
	if (!r && kind != MADE && kind != LINKED)
		r = fsync(fd);
	if (!r && kind == APPENDED)
		r = put(fd, first, length);
	else if (!r && kind == TRUNCATED)
		r = ftruncate(fd, length);
	else if (!r && kind == LINKED)
		r = link(name, other);
	else if (!r && kind == RENAMED)
		r = rename(name, other);
	if (!r)
		r = fsync(fd);
	return close(fd) || r ? -1 : 0;
}

static int drop(unsigned int n)
{
	char name[64];

	name_of(n, "f", name);
	if (unlink(name) && errno != ENOENT)
		return -1;
	name_of(n, "g", name);
	return unlink(name) && errno != ENOENT ? -1 : 0;
}

static int run(int log)
{
	char name[64];

	for (unsigned int n = 0; n < 7; n++) {
		snprintf(name, sizeof(name), "d%u", n);
		if (mkdir(name, 0700))
			return -1;
	}
	for (unsigned int n = 0;; n++) {
		if (make(n) || (n >= KEPT && drop(n - KEPT)))
			return errno == EIO || errno == EROFS ? 0 : -1;
		if (write(log, "", 1) != 1)
			return -1;
	}
}

static bool is_right(unsigned int n, const char *what)
{
	size_t length = length_of(n);
	char name[64];
	ssize_t got;
	int fd;

	name_of(n, what, name);
	fd = open(name, O_RDONLY);
	if (fd < 0) {
		perror(name);
		return false;
	}
	content(n, length);
	got = read(fd, seen, sizeof(seen));
	close(fd);
	if (got == (ssize_t)length && !memcmp(buf, seen, length))
		return true;
	fprintf(stderr, "%s: is not as it was synced: %zd bytes, not %zu, or others\n", name, got,
		length);
	return false;
}

static bool is_gone(unsigned int n)
{
	char name[64];

	name_of(n, "f", name);
	if (access(name, F_OK))
		return true;
	fprintf(stderr, "%s: is there again after it was renamed\n", name);
	return false;
}

static int check(int log)
{
	off_t count = lseek(log, 0, SEEK_END);
	unsigned int n = count > CHECKED ? count - CHECKED : 0;
	bool good = count > 0;

	for (; good && n < count; n++) {
		enum kind kind = kind_of(n);

		if (kind == LINKED)
			good = is_right(n, "f") && is_right(n, "g");
		else if (kind == RENAMED)
			good = is_right(n, "g") && is_gone(n);
		else
			good = is_right(n, "f");
	}
	return good ? 0 : -1;
}

int main(int argc, char **argv)
{
	bool checks = argc == 4 && !strcmp(argv[1], "check");
	int log;

	if (argc != 4 || (!checks && strcmp(argv[1], "run"))) {
		fprintf(stderr, "usage: fs_load run|check DIR LOG\n");
		return 2;
	}
	log = open(argv[3], checks ? O_RDONLY : O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
	if (log < 0 || chdir(argv[2])) {
		perror("fs_load");
		return 1;
	}
	if (!(checks ? check(log) : run(log)))
		return 0;
	if (!checks)
		perror("fs_load");
	return 1;
}
