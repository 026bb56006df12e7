// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A store that an older release wrote is brought up to date when it is opened: then it has the
 * tables, columns and indexes of a new one, and what was in it.
 */
#include "pg_cluster.h"
#include "meta/core.h"
#include "meta/server.h"
#include "meta/store.h"

#include <errno.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

struct rig {
	char dir[64], old[128], fresh[128];
};

static void make_store(const char *path)
{
	struct meta_init init = { .name = "c", .block_shift = 12, .replicas = 1, .min_copies = 1 };
	struct error err;

	if (meta_store_init(path, &init, &err))
		fail_msg("%s", err.text);
}

static void run_sql(const char *path, const char *sql)
{
	char *why = NULL;
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK)
		fail_msg("%s", why);
	sqlite3_close(db);
}

static int64_t get_int(const char *path, const char *sql)
{
	sqlite3_stmt *stmt;
	sqlite3 *db;
	int64_t v;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
	v = sqlite3_column_int64(stmt, 0);
	sqlite3_finalize(stmt);
	sqlite3_close(db);
	return v;
}

static int setup(void **state)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	snprintf(rig->dir, sizeof(rig->dir), "/tmp/meta-upgrade.XXXXXX");
	assert_non_null(mkdtemp(rig->dir));
	snprintf(rig->old, sizeof(rig->old), "%s/old", rig->dir);
	snprintf(rig->fresh, sizeof(rig->fresh), "%s/fresh", rig->dir);
	make_store(rig->old);
	make_store(rig->fresh);
	/* As the release with schema 1 made it. */
	run_sql(rig->old,
		"DROP TABLE governor; DROP TABLE peers; DROP TABLE peer_images; DROP TABLE traces;"
		"DROP TABLE lease_reports; DROP TABLE hot_lists; ALTER TABLE leases DROP COLUMN grown;"
		"ALTER TABLE cluster DROP COLUMN deletion;"
		"ALTER TABLE cluster DROP COLUMN out_after_s;"
		"ALTER TABLE servers DROP COLUMN draining; ALTER TABLE servers DROP COLUMN anew;"
		"ALTER TABLE replicas DROP COLUMN placed; ALTER TABLE replicas DROP COLUMN round;"
		"ALTER TABLE servers DROP COLUMN by_itself; ALTER TABLE servers DROP COLUMN session;"
		"ALTER TABLE replicas DROP COLUMN since; ALTER TABLE replicas DROP COLUMN missed;"
		"INSERT INTO servers VALUES (1, x'01', 1, 'e', x'02', 1, 1, 1, 'h', 'r', 0, 0, 0);"
		"INSERT INTO replicas VALUES (7, 0, 1, 0);"
		"UPDATE servers SET state = 3; UPDATE cluster SET schema = 1;");
	*state = rig;
	return 0;
}

static int teardown(void **state)
{
	struct rig *rig = *state;
	char command[160];
	int r;

	snprintf(command, sizeof(command), "rm -r %s", rig->dir);
	r = system(command);
	free(rig);
	return r;
}

/* Tables, columns and indexes as text, in an order of their own. */
static char *shape(const char *path)
{
	static const char sql[] =
		"SELECT group_concat(line, char(10)) FROM (SELECT m.type || ' ' || m.tbl_name || ' ' || "
		"m.name || ' ' || ifnull(c.cid || c.name || c.type || c.\"notnull\" || "
		"ifnull(c.dflt_value, '') || c.pk, '') AS line FROM sqlite_master m LEFT JOIN "
		"pragma_table_info(m.name) c ORDER BY 1)";
	sqlite3_stmt *stmt;
	sqlite3 *db;
	char *text;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
	text = strdup((const char *)sqlite3_column_text(stmt, 0));
	sqlite3_finalize(stmt);
	sqlite3_close(db);
	return text;
}

static void test_upgrade(void **state)
{
	struct rig *rig = *state;
	char *was, *is, *want;
	struct store *s;
	struct error err;

	was = shape(rig->old);
	if (store_open(&s, rig->old, &err))
		fail_msg("%s", err.text);
	store_close(s);
	is = shape(rig->old);
	want = shape(rig->fresh);
	assert_string_not_equal(was, want);
	assert_string_equal(is, want);
	assert_int_equal(get_int(rig->old, "SELECT schema FROM cluster"), META_SCHEMA_VERSION);
	assert_int_equal(get_int(rig->old, "SELECT server FROM replicas WHERE shard = 7"), 1);
	assert_int_equal(get_int(rig->old, "SELECT out_after_s FROM cluster"), 600);
	assert_int_equal(get_int(rig->old, "SELECT draining FROM servers"), 1);
	/* And again: nothing is left to be done. */
	assert_int_equal(store_open(&s, rig->old, &err), 0);
	store_close(s);
	free(was);
	free(is);
	free(want);
}

/* PostgreSQL has had no schema before 2. */
static void test_upgrade_pg(void **state)
{
	struct pg_cluster pg;
	struct store *s[2];
	struct error err;
	char uri[200];

	if (!pg_start(&pg))
		return;
	pg_schema(pg.uri, uri, sizeof(uri));
	make_store(uri);
	pg_sql(uri, "DROP INDEX peers_rack; DROP TABLE lease_reports; DROP TABLE hot_lists; "
	       "ALTER TABLE servers DROP COLUMN draining, DROP COLUMN anew; ALTER TABLE replicas DROP COLUMN placed, DROP COLUMN "
	       "round; ALTER TABLE leases DROP COLUMN grown; UPDATE cluster SET schema = 2");
	for (int i = 0; i < 2; i++)
		if (store_open(&s[i], uri, &err))
			fail_msg("%s", err.text);
	assert_int_equal(pg_sql(uri, "SELECT schema FROM cluster"), META_SCHEMA_VERSION);
	assert_int_equal(pg_sql(uri, "SELECT count(*) FROM lease_reports"), 0);
	assert_int_equal(pg_sql(uri, "SELECT count(*) FROM hot_lists"), 0);
	store_close(s[0]);
	store_close(s[1]);
	pg_stop(&pg);
}

static void test_newer(void **state)
{
	struct rig *rig = *state;
	struct store *s;
	struct error err;

	run_sql(rig->fresh, "UPDATE cluster SET schema = 99");
	assert_int_equal(store_open(&s, rig->fresh, &err), -EPROTONOSUPPORT);
	assert_non_null(strstr(err.text, "newer release"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_upgrade, setup, teardown),
		cmocka_unit_test(test_upgrade_pg),
		cmocka_unit_test_setup_teardown(test_newer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
