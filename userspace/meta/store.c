// SPDX-License-Identifier: GPL-2.0-or-later
/* What all stores share: stickiness of failures, and calls made of the stores' own. */
#include "meta/store.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int store_fail(struct store *s, struct error *err, int code, const char *fmt, ...)
{
	char text[ERROR_TEXT_SIZE];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!s->failed)
		s->failed = code;
	error_set(err, code, "%s", text);
	return code;
}

static int still_failed(struct store *s, struct error *err)
{
	return error_set(err, s->failed, "the transaction failed before");
}

bool store_is_pg(const char *where)
{
	return !strncmp(where, "postgresql://", 13) || !strncmp(where, "postgres://", 11);
}

static int open_any(struct store **s, const char *where, bool create, struct error *err)
{
	*s = NULL;
	if (!where || !*where)
		return error_set(err, -EINVAL, "no store given: it is the path of a SQLite file or "
				 "postgresql://HOST[,HOST...]/DATABASE");
	return store_is_pg(where) ? store_pg_open(s, where, create, err) :
				    store_sqlite_open(s, where, create, err);
}

/* In a transaction. */
static int check_schema(struct store *s, const char *where, struct error *err)
{
	/* A URI may have a password in it. */
	const char *name = store_is_pg(where) ? "in PostgreSQL" : where;
	int64_t version = 0;
	int r;

	r = store_int(s, err, &version, "SELECT schema FROM cluster");
	if (r < 0)
		return r;
	if (!r)
		return error_set(err, -EUCLEAN, "store %s: the cluster's row is missing", name);
	if (version > META_SCHEMA_VERSION)
		return error_set(
			err, -EPROTONOSUPPORT,
			"store %s: written by a newer release (schema %lld, this one knows "
			"%d)",
			name, (long long)version, META_SCHEMA_VERSION);
	if (version < META_SCHEMA_VERSION)
		return error_set(err, -EPROTONOSUPPORT,
				 "store %s: written by an older release (schema %lld); the meta "
				 "server brings it up to date when it starts",
				 name, (long long)version);
	return 0;
}

int store_create(struct store **s, const char *where, struct error *err)
{
	return open_any(s, where, true, err);
}

int store_open(struct store **s, const char *where, struct error *err)
{
	int r;

	r = open_any(s, where, false, err);
	if (r)
		return r;
	r = store_begin(*s, err) ?: check_schema(*s, where, err);
	store_rollback(*s);
	if (r) {
		store_close(*s);
		*s = NULL;
	}
	return r;
}

int store_open_snapshot(struct store **snap, const char *where, struct error *err)
{
	int r;

	*snap = NULL;
	r = store_is_pg(where) ? store_pg_snapshot(snap, where, err) :
				 store_sqlite_snapshot(snap, where, err);
	if (r)
		return r;
	r = check_schema(*snap, where, err);
	if (r) {
		store_close(*snap);
		*snap = NULL;
	}
	return r;
}

struct store_memory {
	struct store_memory *next;
	char bytes[];
};

char *store_keep(struct store *s, size_t size)
{
	struct store_memory *m = calloc(1, sizeof(*m) + size);

	if (!m)
		return NULL;
	m->next = s->memory;
	s->memory = m;
	return m->bytes;
}

void store_close(struct store *s)
{
	struct store_memory *m, *next;

	if (!s)
		return;
	m = s->memory;
	s->ops->close(s);
	for (; m; m = next) {
		next = m->next;
		free(m);
	}
}

int store_begin(struct store *s, struct error *err)
{
	s->failed = 0;
	return s->ops->begin(s, err);
}

int store_commit(struct store *s, struct error *err)
{
	return s->failed ? still_failed(s, err) : s->ops->commit(s, err);
}

void store_rollback(struct store *s)
{
	s->ops->rollback(s);
	s->failed = 0;
}

int store_savepoint(struct store *s, struct error *err)
{
	return s->failed ? still_failed(s, err) : s->ops->savepoint(s, err);
}

int store_release(struct store *s, struct error *err)
{
	return s->failed ? still_failed(s, err) : s->ops->release(s, err);
}

int store_rollback_to(struct store *s, struct error *err)
{
	return s->failed ? still_failed(s, err) : s->ops->rollback_to(s, err);
}

int store_sync(struct store *s, struct error *err)
{
	if (s->failed)
		return still_failed(s, err);
	return s->ops->sync ? s->ops->sync(s, err) : 0;
}

int store_snapshot(struct store *s, struct store **snap, struct error *err)
{
	*snap = NULL;
	return s->ops->snapshot(s, snap, err);
}

int store_query_vals(struct store *s, struct error *err, struct rows *rows, const char *sql,
		     const struct val *vals, size_t nr)
{
	*rows = (struct rows){ .store = s };
	return s->failed ? still_failed(s, err) : s->ops->query(s, rows, sql, vals, nr, err);
}

int rows_next(struct rows *rows, struct error *err)
{
	return rows->store->failed ? still_failed(rows->store, err) :
				     rows->store->ops->next(rows, err);
}

int64_t rows_int(struct rows *rows, int col)
{
	return rows->store->ops->col_int(rows, col);
}

const char *rows_text(struct rows *rows, int col)
{
	return rows->store->ops->col_text(rows, col);
}

const void *rows_blob(struct rows *rows, int col, size_t *len)
{
	return rows->store->ops->col_blob(rows, col, len);
}

int rows_bytes(struct rows *rows, int col, void *out, size_t len, struct error *err)
{
	size_t have;
	const void *p = rows_blob(rows, col, &have);

	if (have != len)
		return store_fail(rows->store, err, -EUCLEAN,
				  "the store is damaged: a value of %zu bytes where %zu belong",
				  have, len);
	memcpy(out, p, len);
	return 0;
}

void rows_end(struct rows *rows)
{
	if (rows->store && rows->impl)
		rows->store->ops->end(rows);
	rows->impl = NULL;
}

int64_t store_exec_vals(struct store *s, struct error *err, const char *sql,
			const struct val *vals, size_t nr)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int64_t n = 0;
	int r;

	r = store_query_vals(s, err, &rows, sql, vals, nr);
	if (r)
		return r;
	while ((r = rows_next(&rows, err)) > 0)
		n++;
	if (r < 0)
		return r;
	return n ? n : s->ops->affected(&rows);
}

int store_int_vals(struct store *s, struct error *err, int64_t *out, const char *sql,
		   const struct val *vals, size_t nr)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int found, r;

	r = store_query_vals(s, err, &rows, sql, vals, nr);
	if (r)
		return r;
	found = rows_next(&rows, err);
	if (found <= 0)
		return found;
	*out = rows_int(&rows, 0);
	/* To the end: a RETURNING statement may not have changed all its rows before. */
	while ((r = rows_next(&rows, err)) > 0)
		;
	return r ? r : found;
}

int store_exec_many(struct store *s, struct error *err, const char *sql, const struct val *vals,
		    size_t per_row, size_t nr_rows, int64_t *results, int64_t none)
{
	size_t i;
	int64_t v;
	int r;

	if (s->failed)
		return still_failed(s, err);
	if (s->ops->many)
		return s->ops->many(s, sql, vals, per_row, nr_rows, results, none, err);
	for (i = 0; i < nr_rows; i++) {
		r = store_int_vals(s, err, &v, sql, vals + i * per_row, per_row);
		if (r < 0)
			return r;
		if (results)
			results[i] = r ? v : none;
	}
	return 0;
}

char *store_sql_for(const char *script, const char *name)
{
	char open[32];
	char *sql = strdup(script);
	char *p;

	if (!sql)
		return NULL;
	snprintf(open, sizeof(open), "/*%s:", name);
	while ((p = strstr(sql, open))) {
		memset(p, ' ', strlen(open));
		p = strstr(p, "*/");
		if (!p)
			break;
		memset(p, ' ', 2);
	}
	return sql;
}
