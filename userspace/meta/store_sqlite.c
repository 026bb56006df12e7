// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The store on SQLite: WAL, synchronous=FULL (a commit is on the disk when it returns), one
 * writer at a time. A lock on a file beside the database keeps a second server out; the kernel
 * drops it with the process.
 */
#include "meta/store.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define NR_CACHED 128

/* Prepared once: a transaction has at least two of them. */
enum fixed { BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE, ROLLBACK_TO, NR_FIXED };

static const char *const fixed_sql[] = {
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[ROLLBACK] = "ROLLBACK",
	[SAVEPOINT] = "SAVEPOINT v",
	[RELEASE] = "RELEASE v",
	[ROLLBACK_TO] = "ROLLBACK TO v",
};

struct cached {
	const char *sql; /* by address */
	sqlite3_stmt *stmt;
	bool busy;
};

struct sqlite_store {
	struct store store;
	sqlite3 *db;
	int lock_fd;
	struct cached cached[NR_CACHED];
	sqlite3_stmt *fixed[NR_FIXED];
	bool in_tx;
};

static struct sqlite_store *to_sqlite(struct store *s)
{
	return (struct sqlite_store *)((char *)s - offsetof(struct sqlite_store, store));
}

static int errno_of(int rc)
{
	switch (rc & 0xff) {
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return -EUCLEAN;
	case SQLITE_READONLY:
	case SQLITE_PERM:
		return -EROFS;
	case SQLITE_CANTOPEN:
		return -EACCES;
	default:
		return -EIO;
	}
}

static int fail(struct sqlite_store *q, struct error *err, int rc, const char *what)
{
	return store_fail(&q->store, err, errno_of(rc), "the meta server's store: %s: %s", what,
			  sqlite3_errmsg(q->db));
}

static int run(struct sqlite_store *q, const char *sql, struct error *err)
{
	int rc = sqlite3_exec(q->db, sql, NULL, NULL, NULL);

	return rc == SQLITE_OK ? 0 : fail(q, err, rc, sql);
}

static int step_fixed(struct sqlite_store *q, enum fixed n)
{
	int rc = SQLITE_OK;

	if (!q->fixed[n])
		rc = sqlite3_prepare_v3(q->db, fixed_sql[n], -1, SQLITE_PREPARE_PERSISTENT, &q->fixed[n],
					NULL);
	if (rc != SQLITE_OK)
		return rc;
	sqlite3_step(q->fixed[n]);
	return sqlite3_reset(q->fixed[n]); /* what the step said */
}

static int run_fixed(struct sqlite_store *q, enum fixed n, struct error *err)
{
	int rc = step_fixed(q, n);

	return rc == SQLITE_OK ? 0 : fail(q, err, rc, fixed_sql[n]);
}

static int sqlite_begin(struct store *s, struct error *err)
{
	struct sqlite_store *q = to_sqlite(s);
	int r = run_fixed(q, BEGIN, err);

	q->in_tx = !r;
	return r;
}

static void sqlite_rollback(struct store *s)
{
	struct sqlite_store *q = to_sqlite(s);

	/* SQLite has rolled back by itself after some errors. */
	if (q->in_tx && !sqlite3_get_autocommit(q->db))
		step_fixed(q, ROLLBACK);
	q->in_tx = false;
}

static int sqlite_commit(struct store *s, struct error *err)
{
	struct sqlite_store *q = to_sqlite(s);
	int r = run_fixed(q, COMMIT, err);

	if (!r)
		q->in_tx = false;
	return r;
}

static int sqlite_savepoint(struct store *s, struct error *err)
{
	return run_fixed(to_sqlite(s), SAVEPOINT, err);
}

static int sqlite_release(struct store *s, struct error *err)
{
	return run_fixed(to_sqlite(s), RELEASE, err);
}

static int sqlite_rollback_to(struct store *s, struct error *err)
{
	return run_fixed(to_sqlite(s), ROLLBACK_TO, err);
}

static int sqlite_script(struct store *s, const char *sql, struct error *err)
{
	return run(to_sqlite(s), sql, err);
}

/* A statement in use (its rows are still being read) is not shared: the second user gets one
 * of its own. */
static int prepare(struct sqlite_store *q, struct rows *rows, const char *sql, struct error *err)
{
	size_t slot = ((uintptr_t)sql >> 3) % NR_CACHED;
	struct cached *c = NULL;
	sqlite3_stmt *stmt;
	size_t i;
	int rc;

	for (i = 0; i < NR_CACHED; i++, slot = (slot + 1) % NR_CACHED) {
		c = &q->cached[slot];
		if (!c->sql || c->sql == sql)
			break;
	}
	if (i < NR_CACHED && c->sql && !c->busy) {
		c->busy = true;
		rows->impl = c->stmt;
		rows->slot = c;
		return 0;
	}
	rc = sqlite3_prepare_v3(q->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &stmt, NULL);
	if (rc != SQLITE_OK)
		return fail(q, err, rc, sql);
	rows->impl = stmt;
	if (i < NR_CACHED && !c->sql) {
		*c = (struct cached){ .sql = sql, .stmt = stmt, .busy = true };
		rows->slot = c;
	}
	return 0;
}

static int bind(sqlite3_stmt *stmt, int n, const struct val *v)
{
	switch (v->type) {
	case VAL_INT:
		return sqlite3_bind_int64(stmt, n, v->i);
	case VAL_BLOB:
		if (!v->len)
			return sqlite3_bind_zeroblob(stmt, n, 0);
		return sqlite3_bind_blob64(stmt, n, v->p, v->len, SQLITE_STATIC);
	case VAL_TEXT:
		return sqlite3_bind_text64(stmt, n, v->p, v->len, SQLITE_STATIC, SQLITE_UTF8);
	case VAL_NULL:
		break;
	}
	return sqlite3_bind_null(stmt, n);
}

static int sqlite_query(struct store *s, struct rows *rows, const char *sql,
			const struct val *vals, size_t nr, struct error *err)
{
	struct sqlite_store *q = to_sqlite(s);
	size_t i;
	int rc, r;

	r = prepare(q, rows, sql, err);
	if (r)
		return r;
	for (i = 0; i < nr; i++) {
		rc = bind(rows->impl, (int)i + 1, &vals[i]);
		if (rc != SQLITE_OK)
			return fail(q, err, rc, sql);
	}
	return 0;
}

static int sqlite_next(struct rows *rows, struct error *err)
{
	int rc = sqlite3_step(rows->impl);

	if (rc == SQLITE_ROW)
		return 1;
	if (rc == SQLITE_DONE)
		return 0;
	return fail(to_sqlite(rows->store), err, rc, sqlite3_sql(rows->impl));
}

static int64_t sqlite_col_int(struct rows *rows, int col)
{
	return sqlite3_column_int64(rows->impl, col);
}

static const void *sqlite_col_blob(struct rows *rows, int col, size_t *len)
{
	const void *p = sqlite3_column_blob(rows->impl, col);

	*len = (size_t)sqlite3_column_bytes(rows->impl, col);
	return p;
}

static const char *sqlite_col_text(struct rows *rows, int col)
{
	const char *text = (const char *)sqlite3_column_text(rows->impl, col);

	return text ? text : "";
}

static int64_t sqlite_affected(struct rows *rows)
{
	/* changes() keeps an older statement's number after one that only reads. */
	return sqlite3_stmt_readonly(rows->impl) ? 0 :
						   sqlite3_changes64(to_sqlite(rows->store)->db);
}

static void sqlite_end(struct rows *rows)
{
	struct cached *c = rows->slot;

	if (!c) {
		sqlite3_finalize(rows->impl);
		return;
	}
	sqlite3_reset(rows->impl);
	sqlite3_clear_bindings(rows->impl);
	c->busy = false;
}

static void sqlite_close(struct store *s)
{
	struct sqlite_store *q = to_sqlite(s);
	size_t i;

	sqlite_rollback(s);
	for (i = 0; i < NR_CACHED; i++)
		sqlite3_finalize(q->cached[i].stmt);
	for (i = 0; i < NR_FIXED; i++)
		sqlite3_finalize(q->fixed[i]);
	sqlite3_close(q->db);
	if (q->lock_fd >= 0)
		close(q->lock_fd);
	free(q);
}

static int sqlite_snapshot(struct store *s, struct store **out, struct error *err);

static const struct store_ops sqlite_ops = {
	.close = sqlite_close,
	.begin = sqlite_begin,
	.commit = sqlite_commit,
	.rollback = sqlite_rollback,
	.savepoint = sqlite_savepoint,
	.release = sqlite_release,
	.rollback_to = sqlite_rollback_to,
	.snapshot = sqlite_snapshot,
	.script = sqlite_script,
	.query = sqlite_query,
	.next = sqlite_next,
	.col_int = sqlite_col_int,
	.col_blob = sqlite_col_blob,
	.col_text = sqlite_col_text,
	.affected = sqlite_affected,
	.end = sqlite_end,
};

/* Under WAL a reader keeps what it saw at its first read; the writer goes on. */
int store_sqlite_snapshot(struct store **out, const char *path, struct error *err)
{
	struct sqlite_store *q;
	int64_t one;
	int r, rc;

	if (access(path, F_OK))
		return error_set(err, -errno, "no cluster at %s: %s", path, strerror(errno));
	q = calloc(1, sizeof(*q));
	if (!q)
		return error_set(err, -ENOMEM, "out of memory");
	q->store.ops = &sqlite_ops;
	q->lock_fd = -1;
	rc = sqlite3_open_v2(path, &q->db,
			     SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
			     NULL);
	if (rc != SQLITE_OK)
		r = error_set(err, errno_of(rc), "cannot open the store %s: %s", path,
			      q->db ? sqlite3_errmsg(q->db) : "out of memory");
	else
		r = run(q, "BEGIN", err);
	q->in_tx = !r;
	if (!r)
		r = store_int(&q->store, err, &one, "SELECT 1 FROM cluster");
	if (r < 0) {
		sqlite_close(&q->store);
		return r;
	}
	*out = &q->store;
	return 0;
}

static int sqlite_snapshot(struct store *s, struct store **out, struct error *err)
{
	return store_sqlite_snapshot(out, sqlite3_db_filename(to_sqlite(s)->db, "main"), err);
}

static int take_lock(struct sqlite_store *q, const char *path, struct error *err)
{
	char lock[4096];

	if ((size_t)snprintf(lock, sizeof(lock), "%s-lock", path) >= sizeof(lock))
		return error_set(err, -ENAMETOOLONG, "store %s: the path is too long", path);
	q->lock_fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (q->lock_fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", lock, strerror(errno));
	if (flock(q->lock_fd, LOCK_EX | LOCK_NB)) {
		if (errno == EWOULDBLOCK)
			return error_set(
				err, -EBUSY,
				"store %s: another meta server has it (an agent or command "
				"with an embedded one counts as well)",
				path);
		return error_set(err, -errno, "cannot lock %s: %s", lock, strerror(errno));
	}
	return 0;
}

static int open_db(struct sqlite_store *q, const char *path, bool create, struct error *err)
{
	int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
	int rc, fd;

	/* The receipt key and the domains' keys are in it. SQLite gives its other files this mode.
	 */
	if (create) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0)
			return error_set(err, -errno, "cannot create the store %s: %s", path,
					 strerror(errno));
		close(fd);
	}
	rc = sqlite3_open_v2(path, &q->db, flags, NULL);
	if (rc != SQLITE_OK)
		return error_set(err, errno_of(rc), "cannot open the store %s: %s", path,
				 q->db ? sqlite3_errmsg(q->db) : "out of memory");
	sqlite3_busy_timeout(q->db, 5000);
	/* Checkpoints are the size of a burst of imports; the cache is the hot part of the counts.
	 */
	return run(q, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; "
		      "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF; "
		      "PRAGMA wal_autocheckpoint = 4096; PRAGMA cache_size = -65536; "
		      "PRAGMA journal_size_limit = 67108864", err);
}

/* 1: there is a cluster, 0: an empty database. */
static int has_cluster(struct sqlite_store *q, struct error *err)
{
	int64_t n = 0;
	int r;

	r = store_begin(&q->store, err);
	if (r)
		return r;
	r = store_int(
		&q->store, err, &n,
		"SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'cluster'");
	store_rollback(&q->store);
	return r < 0 ? r : n > 0;
}

static int make_schema(struct sqlite_store *q, struct error *err)
{
	char *sql CLEANUP_FREE = store_sql_for(meta_schema_sql, "sqlite");
	int r;

	if (!sql)
		return error_set(err, -ENOMEM, "out of memory");
	r = store_begin(&q->store, err);
	return r ? r : sqlite_script(&q->store, sql, err);
}

/* All of it or nothing; the lock is held, so nobody else has the store open. */
static int upgrade_schema(struct sqlite_store *q, struct error *err)
{
	char *to_3 CLEANUP_FREE = store_sql_for(meta_upgrade_2_sql, "sqlite");
	struct store *s = &q->store;
	int64_t version = 0;
	int r;

	if (!to_3)
		return error_set(err, -ENOMEM, "out of memory");
	r = store_begin(s, err);
	if (r)
		return r;
	r = store_int(s, err, &version, "SELECT schema FROM cluster");
	if (r > 0 && version == 1)
		r = sqlite_script(s, meta_upgrade_1_sql, err);
	if (r >= 0 && (version == 1 || version == 2))
		r = sqlite_script(s, to_3, err) ?: store_commit(s, err);
	store_rollback(s);
	return r > 0 ? 0 : r;
}

static int sync_dir_of(const char *path, struct error *err)
{
	char *copy CLEANUP_FREE = strdup(path);
	int fd CLEANUP_CLOSE = -1;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd))
		return error_set(err, -errno, "cannot sync the folder of %s: %s", path,
				 strerror(errno));
	return 0;
}

int store_sqlite_open(struct store **out, const char *path, bool create, struct error *err)
{
	struct sqlite_store *q = NULL;
	int r;

	if (!create && access(path, F_OK))
		return error_set(err, -errno,
				 "no cluster at %s: %s; `vmdedup cluster init` makes one", path,
				 strerror(errno));
	q = calloc(1, sizeof(*q));
	if (!q)
		return error_set(err, -ENOMEM, "out of memory");
	q->store.ops = &sqlite_ops;
	q->lock_fd = -1;
	r = take_lock(q, path, err);
	if (!r)
		r = open_db(q, path, create, err);
	if (!r)
		r = has_cluster(q, err);
	if (r < 0)
		goto close;
	if (!create && !r)
		r = error_set(err, -ENOENT, "no cluster at %s; `vmdedup cluster init` makes one",
			      path);
	else if (create && r)
		r = error_set(err, -EEXIST, "there is a cluster at %s already", path);
	else if (create)
		r = sync_dir_of(path, err) ?: make_schema(q, err);
	else
		r = upgrade_schema(q, err);
	if (r)
		goto close;
	*out = &q->store;
	return 0;
close:
	sqlite_close(&q->store);
	return r;
}
