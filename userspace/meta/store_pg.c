// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The store on PostgreSQL: serializable transactions, of as many processes as there are. One that
 * loses against another, or whose server is lost, fails with -EAGAIN or -EHOSTDOWN and is run again
 * by the core from its first request.
 */
#include "meta/store.h"
#include "meta/pg.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define NR_CACHED  512	/* prepared statements */
#define MAX_VALS   32	/* parameters of one statement */
#define PIPELINE   256	/* statements sent before the first result is read: both directions of
			 * them fit the sockets' buffers */
#define INT_TEXT   24

/* Types of the columns that the schema and counting make (pg_type.h). */
enum { OID_BOOL = 16, OID_INT8 = 20, OID_INT4 = 23, OID_NUMERIC = 1700 };

struct cached {
	const char *sql; /* by address */
	unsigned int link; /* on which it is prepared */
};

struct pg_store {
	struct store store;
	struct pg pg;
	bool in_tx;
	struct cached cached[NR_CACHED];
};

static struct pg_store *to_pg(struct store *s)
{
	return (struct pg_store *)((char *)s - offsetof(struct pg_store, store));
}

/* Makes an error of the link sticky. */
static int sticky(struct pg_store *q, int r)
{
	if (r && !q->store.failed)
		q->store.failed = r;
	return r;
}

static int run(struct pg_store *q, const char *sql, struct error *err)
{
	return sticky(q, pg_command(&q->pg, sql, err));
}

/* A link that was lost while nobody used it shows at the first command. */
static int begin(struct pg_store *q, const char *sql, struct error *err)
{
	bool had = q->pg.conn;
	int r = pg_up(&q->pg, err) ?: pg_command(&q->pg, sql, err);

	if (r == -EHOSTDOWN && had)
		r = pg_up(&q->pg, err) ?: pg_command(&q->pg, sql, err);
	q->in_tx = !r;
	return sticky(q, r);
}

static int pg_store_begin(struct store *s, struct error *err)
{
	return begin(to_pg(s), "BEGIN ISOLATION LEVEL SERIALIZABLE", err);
}

static void pg_store_rollback(struct store *s)
{
	struct pg_store *q = to_pg(s);

	if (q->in_tx && q->pg.conn && pg_command(&q->pg, "ROLLBACK", NULL))
		pg_drop(&q->pg);
	q->in_tx = false;
}

static int pg_store_commit(struct store *s, struct error *err)
{
	struct pg_store *q = to_pg(s);
	int r = sticky(q, pg_commit(&q->pg, err));

	if (!r || r == -EHOSTDOWN)
		q->in_tx = false;
	return r;
}

static int pg_store_savepoint(struct store *s, struct error *err)
{
	return run(to_pg(s), "SAVEPOINT v", err);
}

static int pg_store_release(struct store *s, struct error *err)
{
	return run(to_pg(s), "RELEASE v", err);
}

static int pg_store_rollback_to(struct store *s, struct error *err)
{
	return run(to_pg(s), "ROLLBACK TO v", err);
}

static int pg_store_script(struct store *s, const char *sql, struct error *err)
{
	return run(to_pg(s), sql, err);
}

/* As the transaction has something to commit, its COMMIT waits for the standby. */
static int pg_store_sync(struct store *s, struct error *err)
{
	return run(to_pg(s), "SELECT pg_logical_emit_message(true, 'vmdedup', '')", err);
}

/* ---- statements ---- */

struct params {
	const char *values[MAX_VALS];
	int lengths[MAX_VALS];
	int formats[MAX_VALS];
	char ints[MAX_VALS][INT_TEXT];
};

static int fill(struct params *p, const struct val *vals, size_t nr)
{
	size_t i;

	if (nr > MAX_VALS)
		return -E2BIG;
	for (i = 0; i < nr; i++) {
		const struct val *v = &vals[i];

		p->formats[i] = v->type == VAL_BLOB;
		p->lengths[i] = (int)v->len;
		switch (v->type) {
		case VAL_NULL:
			p->values[i] = NULL;
			break;
		case VAL_INT:
			/* As text: the server chooses between its integers and boolean. */
			snprintf(p->ints[i], INT_TEXT, "%lld", (long long)v->i);
			p->values[i] = p->ints[i];
			break;
		case VAL_BLOB:
		case VAL_TEXT:
			p->values[i] = v->len ? v->p : "";
			break;
		}
	}
	return 0;
}

/* ?1 becomes $1. NULL when memory is out. */
static char *translate(const char *sql)
{
	char *copy = strdup(sql), *p;

	for (p = copy; p && *p; p++)
		if (*p == '?')
			*p = '$';
	return copy;
}

static int prepare_as(struct pg_store *q, const char *name, const char *sql, struct error *err)
{
	char *text CLEANUP_FREE = translate(sql);
	PGresult *res;
	int r;

	if (!text)
		return store_fail(&q->store, err, -ENOMEM, "out of memory");
	if (!q->pg.conn || !PQsendPrepare(q->pg.conn, name, text, 0, NULL))
		return sticky(q, pg_lost(&q->pg, "cannot send", err));
	r = sticky(q, pg_single(&q->pg, &res, err));
	PQclear(res);
	return r;
}

/* Prepares @sql, unless it is. When all places are taken, as the unnamed statement. */
static int prepare(struct pg_store *q, const char *sql, char name[16], struct error *err)
{
	size_t i, slot = ((uintptr_t)sql >> 3) % NR_CACHED;
	struct cached *c = NULL;
	int r;

	for (i = 0; i < NR_CACHED; i++, slot = (slot + 1) % NR_CACHED) {
		c = &q->cached[slot];
		if (!c->sql || c->sql == sql)
			break;
	}
	if (i == NR_CACHED) {
		*name = '\0';
		return prepare_as(q, name, sql, err);
	}
	snprintf(name, 16, "s%zu", slot);
	if (c->sql && c->link == q->pg.links)
		return 0;
	r = prepare_as(q, name, sql, err);
	if (!r)
		*c = (struct cached){ .sql = sql, .link = q->pg.links };
	return r;
}

static int send_one(struct pg_store *q, const char *name, const struct val *vals, size_t nr,
		    struct error *err)
{
	struct params p;

	if (fill(&p, vals, nr))
		return store_fail(&q->store, err, -E2BIG, "more than %d parameters", MAX_VALS);
	if (!q->pg.conn || !PQsendQueryPrepared(q->pg.conn, name, (int)nr, p.values, p.lengths,
						p.formats, 1))
		return sticky(q, pg_lost(&q->pg, "cannot send", err));
	return 0;
}

static int pg_store_query(struct store *s, struct rows *rows, const char *sql,
			  const struct val *vals, size_t nr, struct error *err)
{
	struct pg_store *q = to_pg(s);
	PGresult *res = NULL;
	char name[16];
	int r;

	r = prepare(q, sql, name, err) ?: send_one(q, name, vals, nr, err) ?:
	    sticky(q, pg_single(&q->pg, &res, err));
	rows->impl = res;
	rows->row = -1;
	return r;
}

static int pg_store_next(struct rows *rows, struct error *err)
{
	return ++rows->row < PQntuples(rows->impl);
}

static uint64_t get_be(const char *p, int len)
{
	uint64_t v = 0;
	int i;

	for (i = 0; i < len; i++)
		v = v << 8 | (uint8_t)p[i];
	return v;
}

/* What sum() of a BIGINT gives: digits to the base of 10000, of which only whole ones come here. */
static int64_t numeric(const char *p)
{
	int i, digits = (int)get_be(p, 2), weight = (int16_t)get_be(p + 2, 2);
	bool negative = get_be(p + 4, 2) == 0x4000;
	int64_t v = 0;

	for (i = 0; i <= weight; i++)
		v = v * 10000 + (i < digits ? (int64_t)get_be(p + 8 + 2 * i, 2) : 0);
	return negative ? -v : v;
}

static int64_t value_int(const PGresult *res, int row, int col)
{
	const char *p = PQgetvalue(res, row, col);

	if (PQgetisnull(res, row, col))
		return 0;
	switch (PQftype(res, col)) {
	case OID_BOOL:
		return *p != 0;
	case OID_INT4:
		return (int32_t)get_be(p, 4);
	case OID_INT8:
		return (int64_t)get_be(p, 8);
	case OID_NUMERIC:
		return numeric(p);
	default:
		return 0;
	}
}

static int64_t pg_store_col_int(struct rows *rows, int col)
{
	return value_int(rows->impl, rows->row, col);
}

static const void *pg_store_col_blob(struct rows *rows, int col, size_t *len)
{
	*len = (size_t)PQgetlength(rows->impl, rows->row, col);
	return *len ? PQgetvalue(rows->impl, rows->row, col) : NULL;
}

static const char *pg_store_col_text(struct rows *rows, int col)
{
	return PQgetvalue(rows->impl, rows->row, col); /* "" for NULL */
}

static int64_t pg_store_affected(struct rows *rows)
{
	return strtoll(PQcmdTuples(rows->impl), NULL, 10);
}

static void pg_store_end(struct rows *rows)
{
	PQclear(rows->impl);
}

/* ---- many at once ---- */

/* The result of one statement of a pipeline, which a NULL ends. */
static int take_one(struct pg_store *q, int64_t *result, int64_t none, struct error *err)
{
	PGresult *res, *end = NULL;
	int r;

	r = pg_result(&q->pg, &res, err);
	if (r)
		return sticky(q, r);
	/* Those after the one that has failed are only skipped. */
	if (PQresultStatus(res) == PGRES_PIPELINE_ABORTED)
		r = q->store.failed;
	else
		r = pg_check(&q->pg, res, q->store.failed ? NULL : err);
	sticky(q, r);
	if (!r && result)
		*result = PQntuples(res) ? value_int(res, 0, 0) : none;
	PQclear(res);
	if (q->pg.conn && pg_result(&q->pg, &end, err))
		r = sticky(q, -EHOSTDOWN);
	PQclear(end);
	return r;
}

static int pipeline(struct pg_store *q, const char *name, const struct val *vals, size_t per_row,
		    size_t nr, int64_t *results, int64_t none, struct error *err)
{
	PGresult *sync;
	size_t i;
	int r = 0;

	if (!q->pg.conn || !PQenterPipelineMode(q->pg.conn))
		return sticky(q, pg_lost(&q->pg, "no pipeline", err));
	for (i = 0; !r && i < nr; i++)
		r = send_one(q, name, vals + i * per_row, per_row, err);
	if (r || !PQpipelineSync(q->pg.conn))
		return r ?: sticky(q, pg_lost(&q->pg, "cannot send", err));
	for (i = 0; q->pg.conn && i < nr; i++)
		take_one(q, results ? &results[i] : NULL, none, err);
	if (!q->pg.conn)
		return q->store.failed;
	r = pg_result(&q->pg, &sync, err);
	PQclear(sync);
	if (!r && !PQexitPipelineMode(q->pg.conn))
		r = pg_lost(&q->pg, "the pipeline does not end", err);
	return sticky(q, r) ?: q->store.failed;
}

static int pg_store_many(struct store *s, const char *sql, const struct val *vals, size_t per_row,
			 size_t nr_rows, int64_t *results, int64_t none, struct error *err)
{
	struct pg_store *q = to_pg(s);
	char name[16];
	size_t i;
	int r;

	r = prepare(q, sql, name, err);
	for (i = 0; !r && i < nr_rows; i += PIPELINE)
		r = pipeline(q, name, vals + i * per_row, per_row, MIN(PIPELINE, nr_rows - i),
			     results ? results + i : NULL, none, err);
	return r;
}

/* ---- open, close ---- */

static void pg_store_close(struct store *s)
{
	struct pg_store *q = to_pg(s);

	pg_store_rollback(s);
	pg_free(&q->pg);
	free(q);
}

static int pg_store_snapshot(struct store *s, struct store **snap, struct error *err);

static const struct store_ops pg_ops = {
	.close = pg_store_close,
	.begin = pg_store_begin,
	.commit = pg_store_commit,
	.rollback = pg_store_rollback,
	.savepoint = pg_store_savepoint,
	.release = pg_store_release,
	.rollback_to = pg_store_rollback_to,
	.snapshot = pg_store_snapshot,
	.sync = pg_store_sync,
	.script = pg_store_script,
	.query = pg_store_query,
	.many = pg_store_many,
	.next = pg_store_next,
	.col_int = pg_store_col_int,
	.col_blob = pg_store_col_blob,
	.col_text = pg_store_col_text,
	.affected = pg_store_affected,
	.end = pg_store_end,
};

static struct pg_store *new_store(const char *where, struct error *err)
{
	struct pg_store *q = calloc(1, sizeof(*q));

	if (!q)
		error_set(err, -ENOMEM, "out of memory");
	if (!q || pg_init(&q->pg, where, err)) {
		free(q);
		return NULL;
	}
	q->store.ops = &pg_ops;
	if (getrandom(&q->store.slot, sizeof(q->store.slot), 0) != sizeof(q->store.slot))
		q->store.slot = 0;
	q->store.slot %= STORE_SLOTS;
	return q;
}

int store_pg_snapshot(struct store **out, const char *where, struct error *err)
{
	struct pg_store *q = new_store(where, err);
	int64_t one;
	int r;

	if (!q)
		return err->code;
	r = begin(q, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", err);
	/* The first statement takes the snapshot. */
	if (!r)
		r = store_int(&q->store, err, &one, "SELECT 1");
	if (r < 0) {
		pg_store_close(&q->store);
		return r;
	}
	*out = &q->store;
	return 0;
}

static int pg_store_snapshot(struct store *s, struct store **snap, struct error *err)
{
	return store_pg_snapshot(snap, to_pg(s)->pg.where, err);
}

/* In a transaction: is there a cluster? */
static int has_cluster(struct pg_store *q, struct error *err)
{
	int64_t n = 0;
	int r;

	r = store_int(&q->store, err, &n, "SELECT count(*) FROM pg_catalog.pg_tables WHERE "
		      "tablename = 'cluster' AND schemaname = current_schema()");
	return r < 0 ? r : n > 0;
}

static int make_schema(struct pg_store *q, struct error *err)
{
	char *sql CLEANUP_FREE = store_sql_for(meta_schema_sql, "postgresql");

	if (!sql)
		return error_set(err, -ENOMEM, "out of memory");
	return pg_store_script(&q->store, sql, err);
}

/* All of it or nothing. Several meta servers may find the old schema at the same time. */
static int upgrade_schema(struct pg_store *q, struct error *err)
{
	char *sql CLEANUP_FREE = store_sql_for(meta_upgrade_2_sql, "postgresql");
	struct store *s = &q->store;
	int64_t version = 0;
	int r;

	if (!sql)
		return error_set(err, -ENOMEM, "out of memory");
	r = store_int(s, err, &version, "SELECT schema FROM cluster");
	store_rollback(s);
	if (r <= 0 || version != 2)
		return r < 0 ? r : 0;
	/* The lock comes before the transaction's snapshot: who waited for it sees the new schema. */
	r = store_begin(s, err) ?:
	    pg_store_script(s, "LOCK TABLE cluster IN ACCESS EXCLUSIVE MODE", err);
	if (!r)
		r = store_int(s, err, &version, "SELECT schema FROM cluster");
	if (r > 0)
		r = version == 2 ? pg_store_script(s, sql, err) ?: store_commit(s, err) : 0;
	store_rollback(s);
	return r;
}

int store_pg_open(struct store **out, const char *where, bool create, struct error *err)
{
	struct pg_store *q = new_store(where, err);
	int r;

	if (!q)
		return err->code;
	r = store_begin(&q->store, err);
	if (!r)
		r = has_cluster(q, err);
	if (!r && !create)
		r = error_set(err, -ENOENT, "there is no cluster in this PostgreSQL database; "
			      "`vmdedup cluster init --store` makes one");
	else if (r > 0 && create)
		r = error_set(err, -EEXIST, "there is a cluster in this PostgreSQL database "
			      "already");
	else if (r >= 0)
		r = create ? make_schema(q, err) : upgrade_schema(q, err);
	if (r < 0) {
		pg_store_close(&q->store);
		return r;
	}
	if (!create)
		store_rollback(&q->store);
	*out = &q->store;
	return 0;
}
