// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Backups: the same bytes from whichever database, a restored store in a new history, damaged
 * files, and a store that moves to another database.
 */
#include "meta_world.h"
#include "meta/backup.h"
#include "pg_cluster.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static struct pg_cluster pg;
static const struct uuid cache_a = { { 0xa } };
/* Of lengths at which what is allocated ends with the text. */
static const char name16[] = "web-prod-eu-0001", name32[] = "web-prod-eu-0001-of-the-blue-ink";

struct rig {
	struct world w;
	char file[128], second[128], other[256]; /* two backups, and another store */
	struct uuid image;
	uint64_t epoch;
};

/* An image with versions, a lease and a cut; one that is removed; a push that is open. */
static void fill(struct rig *rig)
{
	struct world *w = &rig->w;
	uint64_t blocks[600], push;
	struct fp root;
	size_t i;

	for (i = 0; i < 600; i++)
		blocks[i] = i + 1;
	assert_int_equal(world_import(w, "web", blocks, 600), 0);
	assert_int_equal(world_import(w, "gone", blocks + 200, 300), 0);
	assert_int_equal(world_clone(w, "web", 0, name16), 0);
	assert_int_equal(world_clone(w, "web", 0, name32), 0);
	assert_int_equal(world_image(w, "web", &rig->image, &root), 0);
	assert_int_equal(world_lease(w, &rig->image, &cache_a, &rig->epoch, &root), 0);
	blocks[3] = 1000;
	assert_int_equal(world_push(w, &rig->image, rig->epoch, 1, &root, blocks, 600, true, &root),
			 0);
	assert_int_equal(world_begin_import(w, "half", 4096, &push), 0);
	assert_int_equal(world_remove(w, "gone"), 0);
}

/* SQLite in the world; @to_pg: PostgreSQL as the other store. */
static int setup_with(void **state, bool to_pg)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	world_init(&rig->w, 1, 1);
	fill(rig);
	snprintf(rig->file, sizeof(rig->file), "%s/backup", rig->w.dir);
	snprintf(rig->second, sizeof(rig->second), "%s/second", rig->w.dir);
	if (to_pg && pg.pid)
		pg_schema(pg.uri, rig->other, sizeof(rig->other));
	else
		snprintf(rig->other, sizeof(rig->other), "%s/other.sqlite", rig->w.dir);
	*state = rig;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, false);
}

static int setup_pg(void **state)
{
	return setup_with(state, true);
}

static int teardown(void **state)
{
	struct rig *rig = *state;
	char command[128];

	world_free(&rig->w);
	snprintf(command, sizeof(command), "rm -rf '%s'", rig->w.dir);
	assert_int_equal(system(command), 0);
	free(rig);
	return 0;
}

static void backup(const char *store, const char *file)
{
	struct backup_stats stats;
	struct error err = { 0 };

	if (meta_backup(store, file, &stats, &err))
		fail_msg("backup: %s", err.text);
	assert_int_equal(stats.images, 3);
	assert_true(stats.rows > 600 + 1024);
}

static void restore(const char *file, const char *store)
{
	struct backup_stats stats;
	struct error err = { 0 };

	if (meta_restore(file, store, &stats, &err))
		fail_msg("restore: %s", err.text);
	assert_int_equal(stats.images, 3);
}

static void assert_same_files(const char *a, const char *b)
{
	char command[300];

	snprintf(command, sizeof(command), "cmp '%s' '%s'", a, b);
	assert_int_equal(system(command), 0);
}

/* Another meta server's core on the world's clock. */
static void turn_to(struct world *w, const char *store)
{
	meta_end(&w->m);
	store_close(w->m.store);
	w->m.store = NULL;
	snprintf(w->path, sizeof(w->path), "%s", store);
	world_reopen(w);
}

static void assert_names(struct world *w)
{
	struct uuid uuid;
	struct fp root;

	assert_int_equal(world_image(w, "web", &uuid, &root), 0);
	assert_int_equal(world_image(w, name16, &uuid, &root), 0);
	assert_int_equal(world_image(w, name32, &uuid, &root), 0);
}

static void test_same_bytes(void **state)
{
	struct rig *rig = *state;
	struct backup_stats stats;
	struct error err = { 0 };

	/* While the server has the store. */
	backup(rig->w.path, rig->file);
	assert_int_equal(meta_backup(rig->w.path, rig->file, &stats, &err), -EEXIST);
	assert_int_equal(meta_migrate(rig->w.path, rig->other, &stats, &err), -EBUSY);
	store_close(rig->w.m.store);
	rig->w.m.store = NULL;
	if (meta_migrate(rig->w.path, rig->other, &stats, &err))
		fail_msg("migrate: %s", err.text);
	assert_int_not_equal(access(rig->w.path, F_OK), 0);
	backup(rig->other, rig->second);
	assert_same_files(rig->file, rig->second);
	/* The same history: sessions go on, too. */
	turn_to(&rig->w, rig->other);
	assert_names(&rig->w);
	assert_int_equal(world_clone(&rig->w, "web", 0, "later"), 0);
	assert_int_equal(world_check(&rig->w, true), 0);
}

static int resume(struct world *w, const uint8_t history[16])
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__DeletionResume body = VMDEDUP__DELETION_RESUME__INIT;

	body.history = (ProtobufCBinaryData){ 16, (uint8_t *)history };
	req.body_case = VMDEDUP__REQUEST__BODY_DELETION_RESUME;
	req.deletion_resume = &body;
	return world_mutate(w, &req, NULL, 0)->error;
}

static int list(struct world *w, uint64_t *below)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcList body = VMDEDUP__GC_LIST__INIT;
	const Vmdedup__Reply *reply;

	req.body_case = VMDEDUP__REQUEST__BODY_GC_LIST;
	req.gc_list = &body;
	reply = world_call(w, &req, NULL, 0);
	if (!reply->error)
		*below = reply->gc_list->below_epoch;
	return reply->error;
}

static void test_new_history(void **state)
{
	struct rig *rig = *state;
	struct world *w = &rig->w;
	struct uuid old = { { 0 } }, cache_b = { { 0xb } };
	uint64_t below, epoch = 0;
	struct fp root;

	assert_int_equal(list(w, &below), 0);
	old = w->m.params.history;
	backup(w->path, rig->file);
	restore(rig->file, rig->other);
	turn_to(w, rig->other);
	assert_names(w);
	/* Nobody goes on where the old history was. */
	assert_int_equal(world_clone(w, "web", 0, "x"), EKEYEXPIRED);
	world_session(w);
	assert_int_equal(world_clone(w, "web", 0, "x"), 0);
	assert_false(uuid_equal(&old, &w->m.params.history));
	assert_int_equal(world_sql(w, "SELECT count(*) FROM pushes WHERE state = 0"), 0);
	/* The cache that had the lease then has it, in its epoch; who comes after it is beyond any
	 * epoch of the old history. */
	assert_int_equal(world_lease(w, &rig->image, &cache_a, &epoch, &root), 0);
	assert_int_equal(epoch, rig->epoch);
	assert_int_equal(world_release(w, &rig->image, &cache_a, epoch), 0);
	assert_int_equal(world_lease(w, &rig->image, &cache_b, &epoch, &root), 0);
	assert_true(epoch > 1ULL << 32);
	/* Nothing is listed for deletion until a person has agreed, to this history. */
	assert_int_equal(list(w, &below), EBUSY);
	assert_int_equal(resume(w, old.b), ESTALE);
	assert_int_equal(list(w, &below), EBUSY);
	assert_int_equal(resume(w, w->m.params.history.b), 0);
	assert_int_equal(list(w, &below), 0);
	assert_true(below > 1ULL << 32);
	world_settle(w);
	assert_int_equal(world_check(w, true), 0);
}

/* The same backup restored a second time: the two histories give nothing out twice. */
static void test_two_histories(void **state)
{
	struct rig *rig = *state;
	struct world *w = &rig->w;
	struct uuid cache_b = { { 0xb } }, cache_c = { { 0xc } };
	uint64_t first, second, map, below, epoch;
	char again[256];
	struct fp root;

	backup(w->path, rig->file);
	restore(rig->file, rig->other);
	turn_to(w, rig->other);
	world_session(w);
	assert_int_equal(world_lease(w, &rig->image, &cache_a, &epoch, &root), 0);
	assert_int_equal(world_release(w, &rig->image, &cache_a, epoch), 0);
	assert_int_equal(world_lease(w, &rig->image, &cache_b, &first, &root), 0);
	assert_int_equal(resume(w, w->m.params.history.b), 0);
	assert_int_equal(list(w, &below), 0);
	map = w->m.params.map_version;

	if (store_is_pg(rig->other))
		pg_schema(pg.uri, again, sizeof(again));
	else
		snprintf(again, sizeof(again), "%s/again.sqlite", w->dir);
	restore(rig->file, again);
	turn_to(w, again);
	world_session(w);
	assert_int_equal(world_lease(w, &rig->image, &cache_a, &epoch, &root), 0);
	assert_int_equal(world_release(w, &rig->image, &cache_a, epoch), 0);
	assert_int_equal(world_lease(w, &rig->image, &cache_c, &second, &root), 0);
	assert_true(second > first);
	assert_true(second < 1ULL << 53);
	assert_true(w->m.params.map_version > map);
	assert_true((uint64_t)world_sql(w, "SELECT min(epoch) FROM shards") > below);
	assert_int_equal(world_push(w, &rig->image, first, 2, &root, NULL, 0, false, &root), ESTALE);
	assert_int_equal(world_check(w, true), 0);
}

/* A backup of a release before `draining` says it by the state. */
static void test_draining(void **state)
{
	struct rig *rig = *state;
	struct store *s = rig->w.m.store;
	struct error err = { 0 };

	assert_int_equal(store_begin(s, &err), 0);
	assert_int_equal(store_exec(s, &err, "UPDATE servers SET state = 3"), 1);
	assert_int_equal(store_commit(s, &err), 0);
	backup(rig->w.path, rig->file);
	restore(rig->file, rig->other);
	turn_to(&rig->w, rig->other);
	assert_int_equal(world_sql(&rig->w, "SELECT schema FROM cluster"), META_SCHEMA_VERSION);
	assert_int_equal(world_sql(&rig->w, "SELECT draining FROM servers"), 1);
	assert_int_equal(world_check(&rig->w, true), 0);
}

static void copy_but(const char *from, const char *to, long flip, long cut)
{
	FILE *in = fopen(from, "r"), *out = fopen(to, "w");
	long i;
	int c;

	assert_non_null(in);
	assert_non_null(out);
	for (i = 0; (c = fgetc(in)) != EOF && (cut < 0 || i < cut); i++)
		fputc(i == flip ? c ^ 0x10 : c, out);
	fclose(in);
	fclose(out);
}

static void test_damage(void **state)
{
	struct rig *rig = *state;
	struct backup_stats stats;
	struct error err;
	struct store *s;
	long size, at;
	int r;

	backup(rig->w.path, rig->file);
	assert_int_equal(meta_backup(rig->w.path, rig->second, &stats, &err), 0);
	size = (long)stats.bytes;
	assert_same_files(rig->file, rig->second);
	for (at = 0; at < 2 * 9; at++) {
		long where = (at / 2) * (size - 1) / 8;

		copy_but(rig->file, rig->second, at % 2 ? where : -1, at % 2 ? -1 : where);
		r = meta_restore(rig->second, rig->other, &stats, &err);
		if (r != -EBADMSG && r != -EPROTONOSUPPORT && r != -EIO && r != -EINVAL)
			fail_msg("byte %ld of %ld %s: %d %s", where, size,
				 at % 2 ? "changed" : "on missing", r, r ? err.text : "");
		assert_int_equal(store_open(&s, rig->other, &err), -ENOENT);
	}
	restore(rig->file, rig->other);
	assert_int_equal(meta_restore(rig->file, rig->other, &stats, &err), -EEXIST);
	assert_int_equal(meta_restore("/nonexistent", rig->w.dir, &stats, &err) < 0, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(f, s) cmocka_unit_test_setup_teardown(f, s, teardown)
		T(test_same_bytes, setup), T(test_same_bytes, setup_pg),
		T(test_new_history, setup), T(test_new_history, setup_pg),
		T(test_two_histories, setup), T(test_two_histories, setup_pg),
		T(test_draining, setup), T(test_draining, setup_pg),
		T(test_damage, setup), T(test_damage, setup_pg),
	};
	int r;

	pg_start(&pg);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	pg_stop(&pg);
	return r;
}
