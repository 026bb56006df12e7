// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/dump.h"
#include "meta/core.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PAGE	   1024 /* rows of one query */
#define INSERT_AT_ONCE 256
#define SQL_SIZE   2048

/* ---- the schema's text ---- */

static void take_word(const char **p, char word[DUMP_NAME_SIZE])
{
	size_t n = 0;

	*p += strspn(*p, " \t,(");
	while (isalnum((unsigned char)(*p)[n]) || (*p)[n] == '_')
		n++;
	snprintf(word, DUMP_NAME_SIZE, "%.*s", (int)n, *p);
	*p += n;
}

static int add_key(struct dump_table *t, const char *name)
{
	unsigned int i;

	for (i = 0; i < t->nr_columns; i++) {
		if (strcmp(t->columns[i].name, name))
			continue;
		t->keys[t->nr_keys++] = i;
		return 0;
	}
	return -EINVAL;
}

/* PRIMARY KEY (a, b) */
static int read_keys(struct dump_table *t, const char *p)
{
	char word[DUMP_NAME_SIZE];
	int r = 0;

	p = strchr(p, '(');
	while (!r && p && *p && *p != ')') {
		take_word(&p, word);
		r = add_key(t, word);
	}
	return p ? r : -EINVAL;
}

/* A line within CREATE TABLE. */
static int read_line(struct dump_table *t, const char *line)
{
	char name[DUMP_NAME_SIZE], type[DUMP_NAME_SIZE];
	const char *p = line;
	struct dump_column *c;

	take_word(&p, name);
	if (!strcmp(name, "PRIMARY"))
		return read_keys(t, line);
	if (!islower((unsigned char)*name))
		return 0; /* another constraint */
	take_word(&p, type);
	if (t->nr_columns == DUMP_MAX_COLUMNS)
		return -EINVAL;
	c = &t->columns[t->nr_columns++];
	strcpy(c->name, name);
	if (!strcmp(type, "INTEGER") || !strcmp(type, "BIGINT"))
		c->type = VAL_INT;
	else if (!strcmp(type, "BYTEA"))
		c->type = VAL_BLOB;
	else if (!strcmp(type, "TEXT"))
		c->type = VAL_TEXT;
	else
		return -EINVAL;
	return strstr(line, "PRIMARY KEY") ? add_key(t, name) : 0;
}

int dump_schema_read(struct dump_schema *s, struct error *err)
{
	char *text CLEANUP_FREE = strdup(meta_schema_sql), *save = NULL, *line;
	struct dump_table *t = NULL;
	const char *p;
	int r = 0;

	*s = (struct dump_schema){ 0 };
	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	for (line = strtok_r(text, "\n", &save); !r && line; line = strtok_r(NULL, "\n", &save)) {
		if (!strncmp(line, "--", 2))
			continue;
		if (!strncmp(line, "CREATE TABLE ", 13)) {
			if (s->nr_tables == DUMP_MAX_TABLES)
				return error_set(err, -EINVAL, "the schema has too many tables");
			t = &s->tables[s->nr_tables++];
			p = line + 13;
			take_word(&p, t->name);
		} else if (*line == ')') {
			r = t && t->nr_keys ? 0 : -EINVAL;
			t = NULL;
		} else if (t) {
			r = read_line(t, line);
		}
	}
	return r ? error_set(err, r, "the schema is not as a dump expects it, at table %s",
			     s->nr_tables ? s->tables[s->nr_tables - 1].name : "(none)") : 0;
}

const struct dump_table *dump_schema_table(const struct dump_schema *s, const char *name)
{
	size_t i;

	for (i = 0; i < s->nr_tables; i++)
		if (!strcmp(s->tables[i].name, name))
			return &s->tables[i];
	return NULL;
}

/* ---- out ---- */

__attribute__((format(printf, 3, 4)))
static void append(char *sql, size_t *len, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	*len += (size_t)vsnprintf(sql + *len, *len < SQL_SIZE ? SQL_SIZE - *len : 0, fmt, ap);
	va_end(ap);
}

/* Values, then whether each is NULL; a page of them after the key in the parameters. */
static void make_select(const struct dump_table *t, bool first, char sql[SQL_SIZE])
{
	size_t i, len = 0;

	append(sql, &len, "SELECT ");
	for (i = 0; i < t->nr_columns; i++)
		append(sql, &len, "%s, ", t->columns[i].name);
	for (i = 0; i < t->nr_columns; i++)
		append(sql, &len, "%s%s IS NULL", i ? ", " : "", t->columns[i].name);
	append(sql, &len, " FROM %s", t->name);
	for (i = 0; !first && i < t->nr_keys; i++)
		append(sql, &len, "%s%s", i ? ", " : " WHERE (", t->columns[t->keys[i]].name);
	for (i = 0; !first && i < t->nr_keys; i++)
		append(sql, &len, "%s?%zu", i ? ", " : ") > (", i + 1);
	append(sql, &len, "%s ORDER BY ", first ? "" : ")");
	for (i = 0; i < t->nr_keys; i++)
		append(sql, &len, "%s%s", i ? ", " : "", t->columns[t->keys[i]].name);
	append(sql, &len, " LIMIT %d", PAGE);
}

static struct val value_of(struct rows *rows, const struct dump_table *t, size_t i)
{
	struct val v = { .type = t->columns[i].type };

	if (rows_int(rows, (int)(t->nr_columns + i)))
		return V_NULL;
	if (v.type == VAL_INT)
		v.i = rows_int(rows, (int)i);
	else if (v.type == VAL_BLOB)
		v.p = rows_blob(rows, (int)i, &v.len);
	else
		v = V_TEXT(rows_text(rows, (int)i));
	return v;
}

/* With a NUL behind it: libpq takes a text without its length. */
static const void *copy_of(const struct val *v, struct arena *a)
{
	char *copy = arena_alloc(a, v->len + 1);

	if (copy && v->len)
		memcpy(copy, v->p, v->len);
	return copy;
}

/* Keeps the key of the row, for the next page. */
static int keep_key(const struct dump_table *t, const struct val *vals, struct val *keys,
		    struct arena *a)
{
	size_t i;

	for (i = 0; i < t->nr_keys; i++) {
		keys[i] = vals[t->keys[i]];
		if (keys[i].type == VAL_INT)
			continue;
		keys[i].p = copy_of(&keys[i], a);
		if (!keys[i].p)
			return -ENOMEM;
	}
	return 0;
}

/* Returns how many rows there were. */
static int dump_page(struct store *s, const struct dump_table *t, const char *sql,
		     struct val *keys, size_t nr_keys, struct arena *a,
		     const struct dump_sink *sink, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct val vals[DUMP_MAX_COLUMNS];
	size_t i;
	int n = 0, r;

	r = store_query_vals(s, err, &rows, sql, keys, nr_keys);
	while (!r && (r = rows_next(&rows, err)) > 0) {
		for (i = 0; i < t->nr_columns; i++)
			vals[i] = value_of(&rows, t, i);
		r = sink->row(sink->ctx, vals, err);
		if (r || ++n < PAGE)
			continue;
		arena_free(a);
		r = keep_key(t, vals, keys, a);
		break;
	}
	if (r == -ENOMEM)
		error_set(err, r, "out of memory");
	return r ? r : n;
}

static int dump_table(struct store *s, const struct dump_table *t, char first[SQL_SIZE],
		      char next[SQL_SIZE], const struct dump_sink *sink, struct error *err)
{
	struct val keys[DUMP_MAX_COLUMNS];
	struct arena a = { 0 };
	int n;

	make_select(t, true, first);
	make_select(t, false, next);
	n = sink->table(sink->ctx, t, err);
	if (!n)
		n = dump_page(s, t, first, keys, 0, &a, sink, err);
	while (n == PAGE)
		n = dump_page(s, t, next, keys, t->nr_keys, &a, sink, err);
	arena_free(&a);
	return n < 0 ? n : 0;
}

int dump_rows(struct store *s, const struct dump_sink *sink, struct error *err)
{
	struct dump_schema *schema CLEANUP_FREE = malloc(sizeof(*schema));
	size_t i;
	int r;

	if (!schema)
		return error_set(err, -ENOMEM, "out of memory");
	r = dump_schema_read(schema, err);
	for (i = 0; !r && i < schema->nr_tables; i++) {
		/* A store knows a statement by its address until it is closed. */
		char *sql = store_keep(s, 2 * SQL_SIZE);

		if (!sql)
			return error_set(err, -ENOMEM, "out of memory");
		r = dump_table(s, &schema->tables[i], sql, sql + SQL_SIZE, sink, err);
	}
	return r;
}

/* ---- in ---- */

struct dump_insert {
	struct store *store;
	struct dump_schema schema;
	const char *sql; /* of the table under way */
	size_t per_row, nr;
	struct val vals[INSERT_AT_ONCE * DUMP_MAX_COLUMNS];
	struct arena arena;
};

static int flush(struct dump_insert *in, struct error *err)
{
	int r = store_exec_many(in->store, err, in->sql, in->vals, in->per_row, in->nr, NULL, 0);

	in->nr = 0;
	arena_free(&in->arena);
	return r;
}

static int check_columns(const struct dump_insert *in, const struct dump_table *t,
			 struct error *err)
{
	const struct dump_table *here = dump_schema_table(&in->schema, t->name);
	size_t i, j;

	if (!here)
		return error_set(err, -EPROTONOSUPPORT, "this release has no table %s: a newer one "
				 "wrote the backup", t->name);
	for (i = 0; i < t->nr_columns; i++) {
		for (j = 0; j < here->nr_columns; j++)
			if (!strcmp(t->columns[i].name, here->columns[j].name) &&
			    t->columns[i].type == here->columns[j].type)
				break;
		if (j == here->nr_columns)
			return error_set(err, -EPROTONOSUPPORT, "this release has no column %s.%s: "
					 "another one wrote the backup", t->name,
					 t->columns[i].name);
	}
	return 0;
}

static int insert_table(void *ctx, const struct dump_table *t, struct error *err)
{
	struct dump_insert *in = ctx;
	size_t i, len = 0;
	char *sql;
	int r;

	r = in->nr ? flush(in, err) : 0;
	if (!r)
		r = check_columns(in, t, err);
	if (r)
		return r;
	sql = store_keep(in->store, SQL_SIZE);
	if (!sql)
		return error_set(err, -ENOMEM, "out of memory");
	append(sql, &len, "INSERT INTO %s", t->name);
	for (i = 0; i < t->nr_columns; i++)
		append(sql, &len, "%s%s", i ? ", " : " (", t->columns[i].name);
	for (i = 0; i < t->nr_columns; i++)
		append(sql, &len, "%s?%zu", i ? ", " : ") VALUES (", i + 1);
	append(sql, &len, ")");
	in->sql = sql;
	in->per_row = t->nr_columns;
	return 0;
}

static int insert_row(void *ctx, const struct val *vals, struct error *err)
{
	struct dump_insert *in = ctx;
	struct val *to = in->vals + in->nr * in->per_row;
	size_t i;

	for (i = 0; i < in->per_row; i++) {
		to[i] = vals[i];
		if (vals[i].type != VAL_BLOB && vals[i].type != VAL_TEXT)
			continue;
		to[i].p = copy_of(&vals[i], &in->arena);
		if (!to[i].p)
			return error_set(err, -ENOMEM, "out of memory");
	}
	return ++in->nr == INSERT_AT_ONCE ? flush(in, err) : 0;
}

int dump_insert_begin(struct dump_insert **out, struct store *s, struct dump_sink *sink,
		      struct error *err)
{
	struct dump_insert *in = calloc(1, sizeof(*in));
	int r;

	if (!in)
		return error_set(err, -ENOMEM, "out of memory");
	in->store = s;
	r = dump_schema_read(&in->schema, err);
	if (r) {
		free(in);
		return r;
	}
	*sink = (struct dump_sink){ .table = insert_table, .row = insert_row, .ctx = in };
	*out = in;
	return 0;
}

int dump_insert_end(struct dump_insert *in, struct error *err)
{
	int r = err && in->nr ? flush(in, err) : 0;

	arena_free(&in->arena);
	free(in);
	return r;
}
