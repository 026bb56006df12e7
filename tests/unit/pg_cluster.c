// SPDX-License-Identifier: GPL-2.0-or-later
#include "pg_cluster.h"
#include "base/clock.h"

#include <glob.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define START_S 60

/* Its programs refuse to run as root. */
static void become_user(const char *dir, bool own)
{
	const struct passwd *pw = geteuid() ? NULL : getpwnam("postgres") ?: getpwnam("nobody");

	if (!pw)
		return;
	if (own && chown(dir, pw->pw_uid, pw->pw_gid))
		_exit(126);
	if (setgroups(0, NULL) || setgid(pw->pw_gid) || setuid(pw->pw_uid))
		_exit(126);
}

static pid_t spawn(struct pg_cluster *p, const char *program, char *const argv[], bool own)
{
	char path[128], log[96];
	pid_t pid;

	snprintf(path, sizeof(path), "%s/%s", p->bin, program);
	snprintf(log, sizeof(log), "%s/log", p->dir);
	pid = fork();
	assert_true(pid >= 0);
	if (pid)
		return pid;
	become_user(p->dir, own);
	prctl(PR_SET_PDEATHSIG, SIGQUIT);
	if (!freopen(log, "a", stdout) || dup2(fileno(stdout), 2) < 0 || chdir(p->dir))
		_exit(126);
	execv(path, argv);
	_exit(127);
}

static bool find_bin(struct pg_cluster *p)
{
	glob_t found;
	char *end;

	if (glob("/usr/lib/postgresql/*/bin/initdb", 0, NULL, &found))
		return false;
	snprintf(p->bin, sizeof(p->bin), "%s", found.gl_pathv[found.gl_pathc - 1]);
	globfree(&found);
	end = strrchr(p->bin, '/');
	*end = '\0';
	return true;
}

static void show_log(const struct pg_cluster *p)
{
	char line[512];
	FILE *f;

	snprintf(line, sizeof(line), "%s/log", p->dir);
	f = fopen(line, "r");
	while (f && fgets(line, sizeof(line), f))
		print_message("postgresql: %s", line);
	if (f)
		fclose(f);
}

static void init_db(struct pg_cluster *p)
{
	char *argv[] = { "initdb", "-D", "data", "-U", "vmdedup", "-A", "trust", "--no-sync",
			 "--no-instructions", "-E", "UTF8", "--locale=C", NULL };
	int status;

	assert_int_equal(waitpid(spawn(p, "initdb", argv, true), &status, 0) > 0, 1);
	if (status) {
		show_log(p);
		fail_msg("initdb: status %d", status);
	}
}

static bool start(struct pg_cluster *p, const char *tmp, bool durable)
{
	char sockets[96];
	char *argv[] = { "postgres", "-D", "data", "-c", "listen_addresses=", "-c",
			 durable ? "fsync=on" : "fsync=off", "-c", sockets, "-c",
			 durable ? "shared_buffers=512MB" : "shared_buffers=16MB", "-c",
			 durable ? "max_wal_size=4GB" : "autovacuum=off", NULL };
	const struct timespec pause = { .tv_nsec = 20000000 };
	uint64_t until = clock_mono_ns() + START_S * 1000000000ULL;
	int status;

	*p = (struct pg_cluster){ 0 };
	if (!find_bin(p)) {
		print_message("PostgreSQL is not installed: tools/install-deps build\n");
		return false;
	}
	snprintf(p->dir, sizeof(p->dir), "%.40s/vmdedup-pg.XXXXXX", tmp);
	assert_non_null(mkdtemp(p->dir));
	init_db(p);
	snprintf(sockets, sizeof(sockets), "unix_socket_directories=%s", p->dir);
	snprintf(p->uri, sizeof(p->uri), "postgresql:///postgres?host=%s&user=vmdedup", p->dir);
	p->pid = spawn(p, "postgres", argv, false);
	while (PQping(p->uri) != PQPING_OK) {
		if (waitpid(p->pid, &status, WNOHANG) || clock_mono_ns() > until) {
			show_log(p);
			fail_msg("PostgreSQL does not start");
		}
		nanosleep(&pause, NULL);
	}
	return true;
}

bool pg_start(struct pg_cluster *p)
{
	return start(p, "/tmp", false);
}

bool pg_start_durable(struct pg_cluster *p)
{
	return start(p, getenv("TMPDIR") ?: "/var/tmp", true);
}

void pg_stop(struct pg_cluster *p)
{
	char command[128];
	int status;

	if (!p->pid)
		return;
	kill(p->pid, SIGQUIT);
	waitpid(p->pid, &status, 0);
	p->pid = 0;
	snprintf(command, sizeof(command), "rm -rf '%s'", p->dir);
	assert_int_equal(system(command), 0);
}

long long pg_sql(const char *uri, const char *sql)
{
	PGconn *conn = PQconnectdb(uri);
	PGresult *res = PQexec(conn, sql);
	long long v = -1;

	if (PQresultStatus(res) == PGRES_TUPLES_OK && PQntuples(res))
		v = atoll(PQgetvalue(res, 0, 0));
	else if (PQresultStatus(res) != PGRES_COMMAND_OK)
		fail_msg("%s: %s", sql, PQerrorMessage(conn));
	PQclear(res);
	PQfinish(conn);
	return v;
}

void pg_schema(const char *uri, char *out, size_t len)
{
	char name[32], sql[64];
	static unsigned int n;

	snprintf(name, sizeof(name), "w%d_%u", (int)getpid(), ++n);
	snprintf(sql, sizeof(sql), "CREATE SCHEMA %s", name);
	pg_sql(uri, sql);
	assert_true((size_t)snprintf(out, len, "%s&options=-csearch_path%%3D%s", uri, name) < len);
}

static void test_no_postgresql(void **state)
{
	skip();
}

int pg_run_both(int (*run)(const char *name), void (*use)(const char *uri))
{
	const struct CMUnitTest none[] = { cmocka_unit_test(test_no_postgresql) };
	struct pg_cluster p;
	int r;

	r = run("sqlite");
	if (!pg_start(&p))
		return r + cmocka_run_group_tests(none, NULL, NULL);
	use(p.uri);
	r += run("postgresql");
	use(NULL);
	pg_stop(&p);
	return r;
}
