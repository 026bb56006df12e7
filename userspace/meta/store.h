/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The store: a transactional SQL database, and what the meta server asks of one.
 *
 * The domain code writes its SQL once, in what SQLite and PostgreSQL share: parameters are ?1,
 * ?2, ... (a PostgreSQL store rewrites them to $1, $2 when it prepares), upserts are ON
 * CONFLICT, results come back by RETURNING. A statement is prepared once for each SQL text, which
 * must be a string that lives as long as the store, without a ? in a literal.
 *
 * Every call runs inside store_begin() and store_commit(). A failure of the database itself
 * (not "no row") is sticky: every later call returns the same errno until store_rollback(), so
 * that no code can go on with half a result. -EAGAIN: the transaction lost against another one;
 * run all of it again. -EHOSTDOWN: the database cannot be reached; of a store_commit(): nobody knows
 * whether the transaction is done, so only one that finds out by itself may run again. A store
 * belongs to one thread at a time.
 */
#ifndef VMDEDUP_META_STORE_H
#define VMDEDUP_META_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/cleanup.h"
#include "base/error.h"
#include "base/fingerprint.h"
#include "base/uuid.h"

#define META_SCHEMA_VERSION 3

enum val_type { VAL_NULL, VAL_INT, VAL_BLOB, VAL_TEXT };

/* A parameter. Blobs and texts stay the caller's and must live through the call. A text has a NUL
 * behind its @len bytes. */
struct val {
	enum val_type type;
	int64_t i;
	const void *p;
	size_t len;
};
#define V_NULL		((struct val){ .type = VAL_NULL })
#define V_INT(x)	((struct val){ .type = VAL_INT, .i = (int64_t)(x) })
#define V_BLOB(ptr, n)	((struct val){ .type = VAL_BLOB, .p = (ptr), .len = (n) })
#define V_TEXT(s)	((struct val){ .type = VAL_TEXT, .p = (s), .len = strlen(s) })
#define V_FP(fp)	V_BLOB((fp)->b, FP_SIZE)
#define V_UUID(u)	V_BLOB((u)->b, sizeof((u)->b))

struct store;

/* The answer of a query. Ended by rows_end(), also when it failed or has been read to the end. */
struct rows {
	struct store *store;
	void *impl;
	void *slot; /* the store's: where the statement came from; NULL: it is this query's alone */
	int row;    /* the store's */
};

struct store_ops {
	void (*close)(struct store *s);
	int (*begin)(struct store *s, struct error *err);
	int (*commit)(struct store *s, struct error *err);
	void (*rollback)(struct store *s);
	/* Savepoints nest. rollback_to() keeps the savepoint; release() ends it. */
	int (*savepoint)(struct store *s, struct error *err);
	int (*release)(struct store *s, struct error *err);
	int (*rollback_to)(struct store *s, struct error *err);
	int (*snapshot)(struct store *s, struct store **snap, struct error *err);
	int (*sync)(struct store *s, struct error *err); /* NULL: what is seen is durable */
	int (*script)(struct store *s, const char *sql, struct error *err);
	int (*query)(struct store *s, struct rows *rows, const char *sql, const struct val *vals,
		     size_t nr, struct error *err);
	/* NULL: one query after the other */
	int (*many)(struct store *s, const char *sql, const struct val *vals, size_t per_row,
		    size_t nr_rows, int64_t *results, int64_t none, struct error *err);
	int (*next)(struct rows *rows, struct error *err);
	int64_t (*col_int)(struct rows *rows, int col);
	const void *(*col_blob)(struct rows *rows, int col, size_t *len);
	const char *(*col_text)(struct rows *rows, int col);
	int64_t (*affected)(struct rows *rows);
	void (*end)(struct rows *rows);
};

#define STORE_SLOTS 16

struct store {
	const struct store_ops *ops;
	int failed; /* sticky negative errno of this transaction */
	/* below STORE_SLOTS: where this process keeps its share of what all add to (`totals`) */
	unsigned int slot;
	struct store_memory *memory;
};

/*
 * @where: path of a SQLite file, or a postgresql:// URI of libpq. store_create() makes an empty database with the schema, all in
 * the transaction that is open when it returns, for the caller to fill and commit; -EEXIST when
 * there is a cluster. store_open(): -ENOENT no cluster there; -EPROTONOSUPPORT newer schema;
 * -EBUSY another process has it (a SQLite file; PostgreSQL takes many).
 */
int store_create(struct store **s, const char *where, struct error *err);
int store_open(struct store **s, const char *where, struct error *err);
void store_close(struct store *s); /* rolls back what is open; NULL is fine */

int store_begin(struct store *s, struct error *err);
int store_commit(struct store *s, struct error *err);
void store_rollback(struct store *s);
int store_savepoint(struct store *s, struct error *err);
int store_release(struct store *s, struct error *err);
int store_rollback_to(struct store *s, struct error *err);

/*
 * The transaction is about to vouch for what others have committed: its commit returns only when
 * that is as durable as a commit of its own would be, and fails where nothing can be committed.
 */
int store_sync(struct store *s, struct error *err);

/*
 * Another store on what is committed now, read only, in a transaction of its own that is begun
 * already; the caller closes it. Mutations go on meanwhile and are not seen.
 */
int store_snapshot(struct store *s, struct store **snap, struct error *err);
/* The same of a store that is not open here, and that a server may have. Errors as store_open(). */
int store_open_snapshot(struct store **snap, const char *where, struct error *err);

/* Memory that ends with the store: for the text of statements that are made as the program runs.
 * NULL: there is none. */
char *store_keep(struct store *s, size_t size);

/* Runs @sql to its end. Returns the number of rows changed (or returned). */
int64_t store_exec_vals(struct store *s, struct error *err, const char *sql,
			const struct val *vals, size_t nr);
/* One int64 of the first row: 1 and *out, 0 when there is no row. */
int store_int_vals(struct store *s, struct error *err, int64_t *out, const char *sql,
		   const struct val *vals, size_t nr);
/* Starts a query; then rows_next(). rows_end() is due in any case. */
int store_query_vals(struct store *s, struct error *err, struct rows *rows, const char *sql,
		     const struct val *vals, size_t nr);
/*
 * Runs @sql once for each of @nr_rows rows of @per_row parameters (a PostgreSQL store sends them
 * in one go). results[i], when @results is not NULL: the first column of row i's first result
 * row, else @none.
 */
int store_exec_many(struct store *s, struct error *err, const char *sql, const struct val *vals,
		    size_t per_row, size_t nr_rows, int64_t *results, int64_t none);

#define VALS(...)   ((struct val[]){ V_NULL, ##__VA_ARGS__ } + 1)
#define NR_VALS(...) (sizeof((struct val[]){ V_NULL, ##__VA_ARGS__ }) / sizeof(struct val) - 1)
#define store_exec(s, err, sql, ...) \
	store_exec_vals(s, err, sql, VALS(__VA_ARGS__), NR_VALS(__VA_ARGS__))
#define store_int(s, err, out, sql, ...) \
	store_int_vals(s, err, out, sql, VALS(__VA_ARGS__), NR_VALS(__VA_ARGS__))
#define store_query(s, err, rows, sql, ...) \
	store_query_vals(s, err, rows, sql, VALS(__VA_ARGS__), NR_VALS(__VA_ARGS__))

/* 1: a row; 0: the end; negative: failed. Columns count from 0 and live until the next call. */
int rows_next(struct rows *rows, struct error *err);
int64_t rows_int(struct rows *rows, int col);
const char *rows_text(struct rows *rows, int col); /* "" for NULL */
const void *rows_blob(struct rows *rows, int col, size_t *len);
/* A blob of exactly @len bytes: -EUCLEAN and sticky when the database holds another. */
int rows_bytes(struct rows *rows, int col, void *out, size_t len, struct error *err);
void rows_end(struct rows *rows);
#define CLEANUP_ROWS __attribute__((cleanup(rows_end)))

/* ---- for stores ---- */
extern const char meta_schema_sql[];
extern const char meta_upgrade_1_sql[]; /* from version 1, which only SQLite has had */
extern const char meta_upgrade_2_sql[];
int store_sqlite_open(struct store **s, const char *path, bool create, struct error *err);
int store_sqlite_snapshot(struct store **s, const char *path, struct error *err);
int store_pg_open(struct store **s, const char *where, bool create, struct error *err);
int store_pg_snapshot(struct store **s, const char *where, struct error *err);
bool store_is_pg(const char *where);
/* A script with what stands in comments that begin with "@name: " uncovered. Free it. */
char *store_sql_for(const char *script, const char *name);
/* Sets s->failed and err. Returns @code. */
int store_fail(struct store *s, struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

#endif
