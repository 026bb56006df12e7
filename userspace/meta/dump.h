/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All rows of a store, table by table, in an order in which they can be inserted: what a backup
 * writes, and what a restore and a move to another store insert. Tables, columns and keys are those
 * of schema.sql, read from its text.
 */
#ifndef VMDEDUP_META_DUMP_H
#define VMDEDUP_META_DUMP_H

#include "meta/store.h"

#define DUMP_MAX_TABLES	 64
#define DUMP_MAX_COLUMNS 24
#define DUMP_NAME_SIZE	 32

struct dump_column {
	char name[DUMP_NAME_SIZE];
	enum val_type type; /* VAL_INT, VAL_BLOB or VAL_TEXT; a value may also be VAL_NULL */
};

struct dump_table {
	char name[DUMP_NAME_SIZE];
	size_t nr_columns, nr_keys;
	struct dump_column columns[DUMP_MAX_COLUMNS];
	unsigned int keys[DUMP_MAX_COLUMNS]; /* the primary key's columns */
};

struct dump_schema {
	size_t nr_tables;
	struct dump_table tables[DUMP_MAX_TABLES];
};

/* Where rows go. A row's values are those of its table's columns, and live through the call. */
struct dump_sink {
	int (*table)(void *ctx, const struct dump_table *t, struct error *err);
	int (*row)(void *ctx, const struct val *vals, struct error *err);
	void *ctx;
};

/* -EINVAL: the text of the schema is not as this expects it. */
int dump_schema_read(struct dump_schema *s, struct error *err);
const struct dump_table *dump_schema_table(const struct dump_schema *s, const char *name);

/* Hands all rows of @s, which is in a transaction, to the sink. */
int dump_rows(struct store *s, const struct dump_sink *sink, struct error *err);

/*
 * A sink that inserts into @s, which is in a transaction and empty. A column that the table here
 * does not have is refused; one that it has in addition gets its default. dump_insert_end() inserts
 * what is held back, and frees: after all rows, or after a failure (@err NULL: only frees).
 */
struct dump_insert;
int dump_insert_begin(struct dump_insert **in, struct store *s, struct dump_sink *sink,
		      struct error *err);
int dump_insert_end(struct dump_insert *in, struct error *err);

#endif
