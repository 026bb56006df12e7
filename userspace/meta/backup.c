// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The file: MAGIC, then records. 'T' begins a table: its name, the number of columns, name and
 * type of each. 'R' is a row: for each column of the table its type, or VAL_NULL, and the value: 8
 * bytes, or 4 bytes of length and the bytes. 'E' is the end: 8 bytes, the number of rows; then the
 * SHA-256 of everything before. Numbers are little-endian, names have one byte of length.
 */
#include "meta/backup.h"
#include "base/clock.h"
#include "meta/core.h"
#include "meta/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[16] = "vmdedup backup 1";

#define MAX_VALUE (64U << 20)
#define DIGEST_SIZE 32
#define JUMP	  (1LL << 32) /* more epochs or map versions than are given out after a backup */
#define CLOCK_SHIFT 10	      /* a history gives out fewer than 2^10 of them in a millisecond */

struct file {
	FILE *f;
	const char *name;
	EVP_MD_CTX *digest;
	struct backup_stats *stats;
	/* reading and writing: the table under way */
	struct dump_table table;
	unsigned int name_column; /* of images.name, when that is the table */
};

static int open_file(struct file *f, const char *name, FILE *stream, struct backup_stats *stats,
		     struct error *err)
{
	*f = (struct file){ .f = stream, .name = name, .stats = stats,
			    .digest = EVP_MD_CTX_new() };
	*stats = (struct backup_stats){ 0 };
	if (!f->f || !f->digest || EVP_DigestInit_ex(f->digest, EVP_sha256(), NULL) != 1)
		return error_set(err, f->f ? -ENOMEM : -errno, "%s: %s", name,
				 f->f ? "out of memory" : strerror(errno));
	return 0;
}

static void close_file(struct file *f)
{
	EVP_MD_CTX_free(f->digest);
	if (f->f)
		fclose(f->f);
}

/* ---- writing ---- */

static int put(struct file *f, const void *p, size_t len, struct error *err)
{
	if (len && (EVP_DigestUpdate(f->digest, p, len) != 1 || fwrite(p, len, 1, f->f) != 1))
		return error_set(err, -errno ?: -EIO, "cannot write %s: %s", f->name,
				 strerror(errno));
	f->stats->bytes += len;
	return 0;
}

static int put_number(struct file *f, uint64_t v, size_t len, struct error *err)
{
	uint8_t bytes[8];
	size_t i;

	for (i = 0; i < len; i++)
		bytes[i] = (uint8_t)(v >> (8 * i));
	return put(f, bytes, len, err);
}

static int put_name(struct file *f, const char *name, struct error *err)
{
	return put_number(f, strlen(name), 1, err) ?: put(f, name, strlen(name), err);
}

static void begin_table(struct file *f)
{
	unsigned int i;

	f->name_column = DUMP_MAX_COLUMNS;
	for (i = 0; !strcmp(f->table.name, "images") && i < f->table.nr_columns; i++)
		if (!strcmp(f->table.columns[i].name, "name"))
			f->name_column = i;
}

static void count_row(struct file *f, const struct val *vals)
{
	f->stats->rows++;
	if (f->name_column < f->table.nr_columns)
		f->stats->images += vals[f->name_column].type != VAL_NULL;
}

static int write_table(void *ctx, const struct dump_table *t, struct error *err)
{
	struct file *f = ctx;
	size_t i;
	int r;

	f->table = *t;
	begin_table(f);
	r = put(f, "T", 1, err) ?: put_name(f, t->name, err) ?:
	    put_number(f, t->nr_columns, 1, err);
	for (i = 0; !r && i < t->nr_columns; i++)
		r = put_name(f, t->columns[i].name, err) ?:
		    put_number(f, t->columns[i].type, 1, err);
	return r;
}

static int write_row(void *ctx, const struct val *vals, struct error *err)
{
	struct file *f = ctx;
	size_t i;
	int r = put(f, "R", 1, err);

	count_row(f, vals);
	for (i = 0; !r && i < f->table.nr_columns; i++) {
		const struct val *v = &vals[i];

		r = put_number(f, v->type, 1, err);
		if (!r && v->type == VAL_INT)
			r = put_number(f, (uint64_t)v->i, 8, err);
		else if (!r && v->type != VAL_NULL)
			r = put_number(f, v->len, 4, err) ?: put(f, v->p, v->len, err);
	}
	return r;
}

static int write_end(struct file *f, struct error *err)
{
	uint8_t digest[DIGEST_SIZE];
	unsigned int len = 0;
	int r;

	r = put(f, "E", 1, err) ?: put_number(f, f->stats->rows, 8, err);
	if (r)
		return r;
	if (EVP_DigestFinal_ex(f->digest, digest, &len) != 1)
		return error_set(err, -EIO, "%s: no digest", f->name);
	f->stats->bytes += len;
	if (fwrite(digest, len, 1, f->f) != 1 || fflush(f->f) || fsync(fileno(f->f)))
		return error_set(err, -errno, "cannot write %s: %s", f->name, strerror(errno));
	return 0;
}

/* Under its name only when it is whole. */
static int publish(const char *part, const char *file, struct error *err)
{
	char *copy CLEANUP_FREE = strdup(file);
	int fd CLEANUP_CLOSE = -1;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	if (link(part, file))
		return error_set(err, -errno, "cannot make %s: %s", file, strerror(errno));
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd))
		return error_set(err, -errno, "cannot sync the folder of %s: %s", file,
				 strerror(errno));
	return 0;
}

static int write_file(const char *store, const char *part, struct backup_stats *stats,
		      struct error *err)
{
	int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct store *snap = NULL;
	struct file f;
	struct dump_sink sink = { .table = write_table, .row = write_row, .ctx = &f };
	int r;

	r = open_file(&f, part, fd < 0 ? NULL : fdopen(fd, "w"), stats, err);
	if (!r)
		r = store_open_snapshot(&snap, store, err);
	if (!r)
		r = put(&f, magic, sizeof(magic), err) ?: dump_rows(snap, &sink, err) ?:
		    write_end(&f, err);
	store_close(snap);
	close_file(&f);
	return r;
}

int meta_backup(const char *store, const char *file, struct backup_stats *stats, struct error *err)
{
	char *part CLEANUP_FREE = NULL;
	int r;

	if (!access(file, F_OK))
		return error_set(err, -EEXIST, "%s exists already", file);
	if (asprintf(&part, "%s.part", file) < 0) {
		part = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	r = write_file(store, part, stats, err) ?: publish(part, file, err);
	unlink(part);
	return r;
}

/* ---- reading ---- */

static int damaged(struct file *f, const char *what, struct error *err)
{
	return error_set(err, -EBADMSG, "%s is no whole backup: %s", f->name, what);
}

static int get(struct file *f, void *p, size_t len, struct error *err)
{
	if (len && fread(p, len, 1, f->f) != 1)
		return damaged(f, "it ends too early", err);
	if (len && EVP_DigestUpdate(f->digest, p, len) != 1)
		return error_set(err, -ENOMEM, "out of memory");
	f->stats->bytes += len;
	return 0;
}

static int get_number(struct file *f, uint64_t *v, size_t len, struct error *err)
{
	uint8_t bytes[8] = { 0 };
	int i, r;

	r = get(f, bytes, len, err);
	for (*v = 0, i = 7; i >= 0; i--)
		*v = *v << 8 | bytes[i];
	return r;
}

static int get_name(struct file *f, char name[DUMP_NAME_SIZE], struct error *err)
{
	uint64_t len;
	int r;

	r = get_number(f, &len, 1, err);
	if (!r && (!len || len >= DUMP_NAME_SIZE))
		r = damaged(f, "a name is too long", err);
	if (r)
		return r;
	name[len] = '\0';
	r = get(f, name, len, err);
	/* It becomes part of a statement. */
	if (!r && strspn(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != len)
		r = damaged(f, "a name is none", err);
	return r;
}

static int read_table(struct file *f, const struct dump_sink *sink, struct error *err)
{
	struct dump_table *t = &f->table;
	uint64_t n, type;
	int r;

	*t = (struct dump_table){ 0 };
	r = get_name(f, t->name, err) ?: get_number(f, &n, 1, err);
	if (!r && (!n || n > DUMP_MAX_COLUMNS))
		r = damaged(f, "a table has too many columns", err);
	while (!r && t->nr_columns < n) {
		struct dump_column *c = &t->columns[t->nr_columns++];

		r = get_name(f, c->name, err) ?: get_number(f, &type, 1, err);
		if (!r && type != VAL_INT && type != VAL_BLOB && type != VAL_TEXT)
			r = damaged(f, "a column's type is none", err);
		c->type = r ? VAL_INT : (enum val_type)type;
	}
	begin_table(f);
	return r ?: sink->table(sink->ctx, t, err);
}

static int read_value(struct file *f, size_t i, struct val *v, struct arena *a, struct error *err)
{
	uint64_t n;
	char *p;
	int r;

	*v = V_NULL;
	r = get_number(f, &n, 1, err);
	if (r || n == VAL_NULL)
		return r;
	if (n != f->table.columns[i].type)
		return damaged(f, "a value has another type than its column", err);
	v->type = (enum val_type)n;
	r = get_number(f, &n, v->type == VAL_INT ? 8 : 4, err);
	if (r || v->type == VAL_INT) {
		v->i = (int64_t)n;
		return r;
	}
	if (n > MAX_VALUE)
		return damaged(f, "a value is too long", err);
	p = arena_alloc(a, n + 1);
	if (!p)
		return error_set(err, -ENOMEM, "out of memory");
	v->p = p;
	v->len = n;
	return get(f, p, n, err);
}

static int read_row(struct file *f, const struct dump_sink *sink, struct error *err)
{
	struct val vals[DUMP_MAX_COLUMNS];
	struct arena a = { 0 };
	size_t i;
	int r = f->table.nr_columns ? 0 : damaged(f, "a row before any table", err);

	for (i = 0; !r && i < f->table.nr_columns; i++)
		r = read_value(f, i, &vals[i], &a, err);
	if (!r) {
		count_row(f, vals);
		r = sink->row(sink->ctx, vals, err);
	}
	arena_free(&a);
	return r;
}

static int read_end(struct file *f, struct error *err)
{
	uint8_t real[DIGEST_SIZE], stored[DIGEST_SIZE];
	unsigned int len = 0;
	uint64_t rows;
	int r;

	r = get_number(f, &rows, 8, err);
	if (r)
		return r;
	if (EVP_DigestFinal_ex(f->digest, real, &len) != 1 ||
	    fread(stored, sizeof(stored), 1, f->f) != 1 || memcmp(real, stored, sizeof(real)) ||
	    rows != f->stats->rows || fgetc(f->f) != EOF)
		return damaged(f, "its digest is of something else", err);
	f->stats->bytes += sizeof(stored);
	return 0;
}

/* Nothing that the sink has got is to be kept before this has returned 0. */
static int read_file(const char *file, const struct dump_sink *sink, struct backup_stats *stats,
		     struct error *err)
{
	char head[sizeof(magic)];
	struct file f;
	char kind = 0;
	int r;

	r = open_file(&f, file, fopen(file, "re"), stats, err) ?: get(&f, head, sizeof(head), err);
	if (!r && memcmp(head, magic, sizeof(head)))
		r = damaged(&f, "it does not begin as one", err);
	while (!r && kind != 'E') {
		r = get(&f, &kind, 1, err);
		if (r)
			break;
		switch (kind) {
		case 'T':
			r = read_table(&f, sink, err);
			break;
		case 'R':
			r = read_row(&f, sink, err);
			break;
		case 'E':
			r = read_end(&f, err);
			break;
		default:
			r = damaged(&f, "a record of no known kind", err);
		}
	}
	close_file(&f);
	return r;
}

/* ---- stores from it ---- */

/*
 * Epochs and map versions go beyond any given out since the backup, also by a history that an
 * earlier restore of the same backup, or of an older one, began: the wall clock tells them apart,
 * with numbers that stay below 2^53 (JSON) for two centuries. Where it has gone back, or the
 * history in the backup has just begun, it cannot: then chance does.
 */
#define FORWARD(column) \
	column " = CASE WHEN " column " + ?1 < ?2 THEN ?2 ELSE " column " + ?1 END"

static int new_history(struct store *s, struct error *err)
{
	uint64_t now = clock_wall_ms();
	struct uuid history;
	uint32_t chance;
	struct val jump, clock;

	if (uuid_generate(&history))
		return error_set(err, -EIO, "no random numbers from the system");
	memcpy(&chance, history.b, sizeof(chance)); /* 4 bytes that are random alone */
	jump = V_INT(JUMP + chance);
	clock = V_INT(now > INT64_MAX >> (CLOCK_SHIFT + 1) ? 0 : now << CLOCK_SHIFT);
	/* The tables are those of this release, whichever made the backup: so is the schema. */
	if (store_exec(s, err, "UPDATE cluster SET " FORWARD("map_version") ", "
		       FORWARD("members_version") ", history = ?3, deletion = 1, schema = ?4", jump,
		       clock, V_UUID(&history), V_INT(META_SCHEMA_VERSION)) < 0 ||
	    store_exec(s, err, "UPDATE servers SET draining = 1 WHERE state = ?1",
		       V_INT(SERVER_DRAINING)) < 0 ||
	    store_exec(s, err, "UPDATE shards SET " FORWARD("epoch"), jump, clock) < 0 ||
	    store_exec(s, err, "UPDATE images SET " FORWARD("lease_epoch"), jump, clock) < 0 ||
	    store_exec(s, err, "UPDATE pushes SET state = 1") < 0 ||
	    store_exec(s, err, "DELETE FROM sessions") < 0)
		return s->failed;
	return 0;
}

int meta_restore(const char *file, const char *store, struct backup_stats *stats,
		 struct error *err)
{
	struct store *s = NULL;
	struct dump_insert *in;
	struct dump_sink sink;
	int r;

	r = store_create(&s, store, err) ?: dump_insert_begin(&in, s, &sink, err);
	if (r)
		goto close;
	r = read_file(file, &sink, stats, err);
	r = dump_insert_end(in, r ? NULL : err) ?: r;
	if (!r)
		r = new_history(s, err) ?: store_commit(s, err);
close:
	store_close(s);
	return r;
}

int meta_migrate(const char *from, const char *to, struct backup_stats *stats, struct error *err)
{
	char *moved CLEANUP_FREE = NULL;
	struct store *old = NULL, *s = NULL;
	struct dump_insert *in;
	struct dump_sink sink;
	int r;

	if (store_is_pg(from))
		return error_set(err, -EINVAL, "a store is moved from a SQLite file; for PostgreSQL "
				 "there are backup and restore");
	if (asprintf(&moved, "%s.moved", from) < 0) {
		moved = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	*stats = (struct backup_stats){ 0 };
	/* It stays open, and so locked, until it has its other name. */
	r = store_open(&old, from, err) ?: store_create(&s, to, err) ?: store_begin(old, err) ?:
	    dump_insert_begin(&in, s, &sink, err);
	if (r)
		goto close;
	r = dump_rows(old, &sink, err);
	r = dump_insert_end(in, r ? NULL : err) ?: r;
	if (!r)
		r = store_commit(s, err);
	if (!r && rename(from, moved))
		r = error_set(err, -errno, "the store is moved, and %s must be put away by hand: %s",
			      from, strerror(errno));
close:
	store_close(s);
	store_close(old);
	return r;
}
