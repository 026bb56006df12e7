/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A throw-away PostgreSQL on a socket in a folder of its own, as a user that is not root. */
#ifndef VMDEDUP_TESTS_PG_CLUSTER_H
#define VMDEDUP_TESTS_PG_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct pg_cluster {
	char bin[64]; /* folder of its programs */
	char dir[64];
	char uri[160];
	pid_t pid; /* 0: not started */
};

/* False, with a message printed: PostgreSQL is not installed. Anything else that goes wrong fails
 * the test. It ends with this process at the latest. */
bool pg_start(struct pg_cluster *p);
/* The same with its commits on the disk, below $TMPDIR, and with more memory: for benchmarks. */
bool pg_start_durable(struct pg_cluster *p);
void pg_stop(struct pg_cluster *p); /* and removes the folder */

/* A new schema in it; *out: the URI that names it. */
void pg_schema(const char *uri, char *out, size_t len);
/* One statement on a connection of its own; its first value, or -1. */
long long pg_sql(const char *uri, const char *sql);

/* cmocka: @run (a whole group) with SQLite, then with PostgreSQL. */
int pg_run_both(int (*run)(const char *name), void (*use)(const char *uri));

#endif
