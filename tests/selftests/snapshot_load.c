// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * snapshot_load write DIR PROGRESS
 * snapshot_load check DIR BEFORE AFTER
 * snapshot_load wait PROGRESS COUNT
 *
 * What a guest does while its volume is cut: two databases, one with a rollback journal and one
 * with a write-ahead log, and files that are written, synced and renamed, each by a thread that
 * does one transaction after the other for ever. PROGRESS holds for each of them the last
 * transaction that was submitted and the last that was acknowledged.
 *
 * `check` reads what a crash, or a snapshot, has left of them in DIR: each must be in the state
 * after transaction k, where k is not below what BEFORE says was acknowledged, nor above what AFTER
 * says was submitted. Both are copies of PROGRESS. `wait` ends when the slowest of the three has
 * done COUNT more.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEEP_ROWS  300
#define KEEP_FILES 16
#define MAX_BYTES  3000

enum what { ROLLBACK, WAL, FILES, WHATS };

static const char *const names[WHATS] = { "rollback.db", "wal.db", "files" };

struct progress {
	uint64_t submitted[WHATS], acked[WHATS];
};

struct load {
	const char *dir;
	struct progress *progress;
	enum what what;
};

static void die(const char *what, const char *why)
{
	fprintf(stderr, "snapshot_load: %s: %s\n", what, why);
	exit(1);
}

/* A moment between transactions: the daemons share these processors. */
static void submit(struct load *l, uint64_t n)
{
	poll(NULL, 0, 20);
	__atomic_store_n(&l->progress->submitted[l->what], n, __ATOMIC_SEQ_CST);
}

static void acknowledge(struct load *l, uint64_t n)
{
	__atomic_store_n(&l->progress->acked[l->what], n, __ATOMIC_SEQ_CST);
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9ULL;
	return x ^ (x >> 29);
}

/* What transaction @n writes; returns its length. */
static size_t payload(enum what what, uint64_t n, uint8_t buf[MAX_BYTES])
{
	uint64_t x = mix(n * WHATS + what + 1);
	size_t i, len = 20 + x % (MAX_BYTES - 20);

	for (i = 0; i < len; i++) {
		if (i % 8 == 0)
			x = mix(x + i + 1);
		buf[i] = (uint8_t)(x >> (i % 8 * 8));
	}
	return len;
}

/* ---- databases ---- */

static void sql(sqlite3 *db, const char *text)
{
	char *why = NULL;

	if (sqlite3_exec(db, text, NULL, NULL, &why))
		die(text, why ? why : "failed");
}

static sqlite3_stmt *prepare(sqlite3 *db, const char *text)
{
	sqlite3_stmt *s;

	if (sqlite3_prepare_v2(db, text, -1, &s, NULL))
		die(text, sqlite3_errmsg(db));
	return s;
}

static void run(sqlite3 *db, sqlite3_stmt *s)
{
	if (sqlite3_step(s) != SQLITE_DONE)
		die(sqlite3_sql(s), sqlite3_errmsg(db));
	sqlite3_reset(s);
}

static sqlite3 *open_db(const char *dir, enum what what)
{
	char path[256];
	sqlite3 *db;

	snprintf(path, sizeof(path), "%s/%s", dir, names[what]);
	if (sqlite3_open(path, &db))
		die(path, sqlite3_errmsg(db));
	return db;
}

static void make_tables(sqlite3 *db, enum what what)
{
	sql(db, what == WAL ? "PRAGMA journal_mode = WAL" : "PRAGMA journal_mode = DELETE");
	sql(db, "PRAGMA synchronous = FULL");
	sql(db, "PRAGMA wal_autocheckpoint = 100");
	sql(db, "CREATE TABLE entries (n INTEGER PRIMARY KEY, payload BLOB)");
	sql(db, "CREATE TABLE total (n INTEGER, bytes INTEGER)");
	sql(db, "INSERT INTO total VALUES (0, 0)");
}

static void *database(void *arg)
{
	struct load *l = arg;
	sqlite3 *db = open_db(l->dir, l->what);
	sqlite3_stmt *insert, *delete, *total;
	uint8_t buf[MAX_BYTES];
	uint64_t n;
	size_t len;

	make_tables(db, l->what);
	insert = prepare(db, "INSERT INTO entries VALUES (?1, ?2)");
	delete = prepare(db, "DELETE FROM entries WHERE n = ?1");
	total = prepare(db, "UPDATE total SET n = ?1, bytes = bytes + ?2");
	for (n = 1;; n++) {
		len = payload(l->what, n, buf);
		submit(l, n);
		sql(db, "BEGIN");
		sqlite3_bind_int64(insert, 1, (int64_t)n);
		sqlite3_bind_blob(insert, 2, buf, (int)len, SQLITE_STATIC);
		run(db, insert);
		sqlite3_bind_int64(delete, 1, (int64_t)n - KEEP_ROWS);
		run(db, delete);
		sqlite3_bind_int64(total, 1, (int64_t)n);
		sqlite3_bind_int64(total, 2, (int64_t)len);
		run(db, total);
		sql(db, "COMMIT");
		acknowledge(l, n);
	}
	return NULL;
}

static void check_integrity(sqlite3 *db, enum what what)
{
	sqlite3_stmt *s = prepare(db, "PRAGMA integrity_check");

	if (sqlite3_step(s) != SQLITE_ROW)
		die(names[what], sqlite3_errmsg(db));
	if (strcmp((const char *)sqlite3_column_text(s, 0), "ok"))
		die(names[what], (const char *)sqlite3_column_text(s, 0));
	sqlite3_finalize(s);
}

/* All rows of transaction @k and those before it, and no others. */
static void check_rows(sqlite3 *db, enum what what, uint64_t k)
{
	uint64_t n = k > KEEP_ROWS ? k - KEEP_ROWS + 1 : 1;
	sqlite3_stmt *s = prepare(db, "SELECT n, payload FROM entries ORDER BY n");
	uint8_t buf[MAX_BYTES];
	size_t len;

	for (; sqlite3_step(s) == SQLITE_ROW; n++) {
		len = payload(what, n, buf);
		if ((uint64_t)sqlite3_column_int64(s, 0) != n)
			die(names[what], "a transaction is missing, or there in part");
		if ((size_t)sqlite3_column_bytes(s, 1) != len ||
		    memcmp(sqlite3_column_blob(s, 1), buf, len))
			die(names[what], "a row is not what was written");
	}
	if (n != k + 1)
		die(names[what], "the last transactions are there in part");
	sqlite3_finalize(s);
}

static uint64_t check_database(const char *dir, enum what what)
{
	sqlite3 *db = open_db(dir, what);
	uint8_t buf[MAX_BYTES];
	uint64_t k, n, bytes, want = 0;
	sqlite3_stmt *s;

	check_integrity(db, what);
	s = prepare(db, "SELECT n, bytes FROM total");
	if (sqlite3_step(s) != SQLITE_ROW)
		die(names[what], "there is no total");
	k = (uint64_t)sqlite3_column_int64(s, 0);
	bytes = (uint64_t)sqlite3_column_int64(s, 1);
	sqlite3_finalize(s);
	check_rows(db, what, k);
	for (n = 1; n <= k; n++)
		want += payload(what, n, buf);
	if (bytes != want)
		die(names[what], "the total is not that of its transactions");
	sqlite3_close(db);
	return k;
}

/* ---- files ---- */

static void write_file(int dir, const char *name, const void *data, size_t len)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || write(fd, data, len) != (ssize_t)len || fsync(fd) || close(fd))
		die(name, strerror(errno));
}

static int open_files(const char *dir)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, names[FILES]);
	fd = open(path, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		die(path, strerror(errno));
	return fd;
}

static void *files(void *arg)
{
	struct load *l = arg;
	uint8_t buf[MAX_BYTES];
	char name[32], old[32];
	int dir = open_files(l->dir);
	uint64_t n;

	for (n = 1;; n++) {
		snprintf(name, sizeof(name), "%" PRIu64, n);
		snprintf(old, sizeof(old), "%" PRIu64, n - KEEP_FILES);
		submit(l, n);
		write_file(dir, "new", buf, payload(FILES, n, buf));
		if (renameat(dir, "new", dir, name) || fsync(dir) ||
		    (n > KEEP_FILES && unlinkat(dir, old, 0)))
			die(name, strerror(errno));
		acknowledge(l, n);
	}
	return NULL;
}

static void check_file(int dir, uint64_t n)
{
	uint8_t buf[MAX_BYTES], seen[MAX_BYTES + 1];
	size_t len = payload(FILES, n, buf);
	char name[32];
	int fd;

	snprintf(name, sizeof(name), "%" PRIu64, n);
	fd = openat(dir, name, O_RDONLY);
	if (fd < 0)
		die(name, "this file is missing");
	if (read(fd, seen, sizeof(seen)) != (ssize_t)len || memcmp(buf, seen, len))
		die(name, "this file is not what was written");
	close(fd);
}

/* The last ones are all there. One more may be: its removal was not synced; so may `new`. */
static uint64_t check_files(const char *path)
{
	uint64_t k = 0, n, first, count = 0;
	int dir = open_files(path);
	DIR *d = fdopendir(dup(dir));
	struct dirent *e;

	if (!d)
		die(path, strerror(errno));
	while ((e = readdir(d))) {
		if (e->d_name[0] == '.' || !strcmp(e->d_name, "new"))
			continue;
		n = strtoull(e->d_name, NULL, 10);
		k = n > k ? n : k;
		count++;
	}
	closedir(d);
	first = k > KEEP_FILES ? k - KEEP_FILES + 1 : 1;
	for (n = first; n <= k; n++)
		check_file(dir, n);
	if (count > k - first + 1) {
		if (count > k - first + 2 || first == 1)
			die(names[FILES], "there are files that were removed, or never made");
		check_file(dir, first - 1);
	}
	close(dir);
	return k;
}

/* ---- the whole ---- */

static struct progress *map_progress(const char *path, bool create)
{
	int fd = open(path, create ? O_RDWR | O_CREAT | O_TRUNC : O_RDWR, 0600);
	struct progress *p;

	if (fd < 0 || (create && ftruncate(fd, sizeof(*p))))
		die(path, strerror(errno));
	p = mmap(NULL, sizeof(*p), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die(path, strerror(errno));
	close(fd);
	return p;
}

static void write_for_ever(const char *dir, const char *progress)
{
	struct load loads[WHATS];
	pthread_t threads[WHATS];
	char path[256];
	int i;

	snprintf(path, sizeof(path), "%s/%s", dir, names[FILES]);
	if (mkdir(path, 0700))
		die(path, strerror(errno));
	for (i = 0; i < WHATS; i++)
		loads[i] = (struct load){ dir, i ? loads[0].progress : map_progress(progress, true),
					  (enum what)i };
	for (i = 0; i < WHATS; i++)
		if (pthread_create(&threads[i], NULL, i == FILES ? files : database, &loads[i]))
			die(names[i], "no thread");
	for (i = 0; i < WHATS; i++)
		pthread_join(threads[i], NULL);
}

static void check(const char *dir, const char *before, const char *after)
{
	struct progress *b = map_progress(before, false), *a = map_progress(after, false);
	uint64_t k;
	int i;

	for (i = 0; i < WHATS; i++) {
		k = i == FILES ? check_files(dir) : check_database(dir, (enum what)i);
		printf("%s%s: %" PRIu64 " of %" PRIu64 " to %" PRIu64, i ? ", " : "", names[i], k,
		       b->acked[i], a->submitted[i]);
		if (k < b->acked[i])
			die(names[i], "what was acknowledged before the snapshot is not in it");
		if (k > a->submitted[i])
			die(names[i], "there is more than was submitted by then");
	}
	putchar('\n');
}

static uint64_t least_acked(const struct progress *p)
{
	uint64_t least = UINT64_MAX;
	int i;

	for (i = 0; i < WHATS; i++) {
		uint64_t n = __atomic_load_n(&p->acked[i], __ATOMIC_SEQ_CST);

		least = n < least ? n : least;
	}
	return least;
}

static void wait_for_more(const struct progress *p, uint64_t count)
{
	uint64_t end = least_acked(p) + count;

	while (least_acked(p) < end)
		poll(NULL, 0, 20);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "write")) {
		write_for_ever(argv[2], argv[3]);
	} else if (argc == 5 && !strcmp(argv[1], "check")) {
		check(argv[2], argv[3], argv[4]);
	} else if (argc == 4 && !strcmp(argv[1], "wait")) {
		wait_for_more(map_progress(argv[2], false), strtoull(argv[3], NULL, 10));
	} else {
		fputs("usage: snapshot_load write DIR PROGRESS | check DIR BEFORE AFTER | "
		      "wait PROGRESS COUNT\n", stderr);
		return 2;
	}
	return 0;
}
