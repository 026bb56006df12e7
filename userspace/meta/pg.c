// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/pg.h"
#include "base/clock.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAUSE_MS  100
#define NS_PER_MS 1000000ULL
#define TEXT(x)	  TEXT_OF(x)
#define TEXT_OF(x) #x

/* A message whose only effect is that the transaction has something to make durable. */
#define FENCE "SELECT pg_logical_emit_message(true, 'vmdedup', '')"

void pg_drop(struct pg *p)
{
	PQfinish(p->conn);
	p->conn = NULL;
}

void pg_free(struct pg *p)
{
	pg_drop(p);
	free(p->where);
	p->where = NULL;
}

/* libpq's messages end with a newline, and go over several lines. */
static const char *flat(const char *message, char text[256])
{
	size_t i;

	snprintf(text, 256, "%s", message ? message : "");
	for (i = strlen(text); i && strchr(" \n", text[i - 1]); i--)
		text[i - 1] = '\0';
	for (i = 0; text[i]; i++)
		if (text[i] == '\n' || text[i] == '\t')
			text[i] = ' ';
	return text;
}

int pg_init(struct pg *p, const char *where, struct error *err)
{
	char *why = NULL, text[256];
	PQconninfoOption *all = PQconninfoParse(where, &why);

	*p = (struct pg){ 0 };
	if (!all) {
		error_set(err, -EINVAL, "the store's URI: %s", flat(why, text));
		PQfreemem(why);
		return -EINVAL;
	}
	PQconninfoFree(all);
	p->where = strdup(where);
	return p->where ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int pg_lost(struct pg *p, const char *what, struct error *err)
{
	char text[256];

	error_set(err, -EHOSTDOWN, "the meta server's store: %s: %s", what,
		  flat(p->conn ? PQerrorMessage(p->conn) : "there is no connection", text));
	pg_drop(p);
	return -EHOSTDOWN;
}

/* ---- what the server says ---- */

static void take_notice(void *arg, const PGresult *res)
{
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
	struct pg *p = arg;

	if (!severity || strcmp(severity, "WARNING"))
		return;
	p->warned = true;
	flat(PQresultErrorMessage(res), p->warning);
	log_warn("postgresql: %s", p->warning);
}

/* By SQLSTATE. A unique violation comes of a race: the core has looked before it inserted, and
 * sees the other's row the next time. */
static int errno_of(const char *state)
{
	static const struct {
		const char *prefix;
		int r;
	} map[] = {
		{ "40", -EAGAIN }, { "23505", -EAGAIN }, { "55P03", -EAGAIN },
		{ "08", -EHOSTDOWN }, { "57P", -EHOSTDOWN }, { "25006", -EHOSTDOWN },
		{ "25P03", -EHOSTDOWN }, { "53300", -EHOSTDOWN }, { "53100", -ENOSPC },
		{ "53", -ENOMEM }, { "22", -EINVAL }, { "XX", -EUCLEAN }, { "28", -EACCES },
		{ "42501", -EACCES },
	};
	size_t i;

	for (i = 0; i < sizeof(map) / sizeof(map[0]); i++)
		if (!strncmp(state, map[i].prefix, strlen(map[i].prefix)))
			return map[i].r;
	return -EIO;
}

int pg_check(struct pg *p, const PGresult *res, struct error *err)
{
	const char *state;
	char text[256];
	int r;

	switch (PQresultStatus(res)) {
	case PGRES_COMMAND_OK:
	case PGRES_TUPLES_OK:
	case PGRES_PIPELINE_SYNC:
		return 0;
	default:
		break;
	}
	state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	r = state ? errno_of(state) : -EHOSTDOWN;
	error_set(err, r, "the meta server's store: %s", flat(PQresultErrorMessage(res), text));
	if (r == -EHOSTDOWN)
		pg_drop(p);
	return r;
}

/* ---- waiting ---- */

int pg_result(struct pg *p, PGresult **res, struct error *err)
{
	uint64_t until = clock_mono_ns() + PG_WAIT_MS * NS_PER_MS, now;
	struct pollfd fd;
	int unsent, n;

	*res = NULL;
	while ((unsent = PQflush(p->conn)) || PQisBusy(p->conn)) {
		now = clock_mono_ns();
		if (unsent < 0)
			return pg_lost(p, "cannot send", err);
		if (now >= until) {
			pg_drop(p);
			return error_set(err, -EHOSTDOWN, "the meta server's store: no answer for "
					 TEXT(PG_WAIT_MS) " ms");
		}
		fd = (struct pollfd){ .fd = PQsocket(p->conn),
				      .events = (short)(unsent ? POLLIN | POLLOUT : POLLIN) };
		n = poll(&fd, 1, (int)((until - now) / NS_PER_MS) + 1);
		if (n < 0 && errno != EINTR)
			return pg_lost(p, "cannot wait", err);
		if (n > 0 && !PQconsumeInput(p->conn))
			return pg_lost(p, "the connection has ended", err);
	}
	*res = PQgetResult(p->conn);
	return 0;
}

int pg_single(struct pg *p, PGresult **res, struct error *err)
{
	PGresult *more = NULL;
	int r;

	r = pg_result(p, res, err);
	if (r)
		return r;
	if (!*res)
		return pg_lost(p, "no result", err);
	r = pg_check(p, *res, err);
	if (p->conn && !r)
		r = pg_result(p, &more, err);
	while (p->conn && more && !r) {
		PQclear(more);
		r = pg_result(p, &more, err);
	}
	/* After an error nothing but the end of the command is left. */
	if (p->conn && r && !pg_result(p, &more, NULL))
		PQclear(more);
	if (r) {
		PQclear(*res);
		*res = NULL;
	}
	return r;
}

int pg_command(struct pg *p, const char *sql, struct error *err)
{
	PGresult *res;
	int r;

	if (!p->conn || !PQsendQuery(p->conn, sql))
		return pg_lost(p, "cannot send", err);
	r = pg_single(p, &res, err);
	PQclear(res);
	return r;
}

int pg_commit(struct pg *p, struct error *err)
{
	PGresult *res;
	bool done;
	int r;

	p->warned = false;
	if (!p->conn || !PQsendQuery(p->conn, "COMMIT"))
		return pg_lost(p, "cannot send", err);
	r = pg_single(p, &res, err);
	if (r)
		return r;
	done = !strcmp(PQcmdStatus(res), "COMMIT");
	PQclear(res);
	if (!done)
		return error_set(err, -EIO, "the meta server's store: the transaction had failed");
	/* Somebody has ended the wait for the standby: it is committed here, and perhaps nowhere
	 * else. Nobody may be told. The next link begins with a fence. */
	if (p->warned) {
		pg_drop(p);
		return error_set(err, -EHOSTDOWN, "the meta server's store: %s", p->warning);
	}
	return 0;
}

/* ---- connecting ---- */

static bool is_local(PGconn *conn)
{
	const char *host = PQhost(conn), *address = PQhostaddr(conn);

	return (host && *host == '/') || (address && (!strncmp(address, "127.", 4) ||
						      !strcmp(address, "::1")));
}

static bool verifies(PGconn *conn)
{
	PQconninfoOption *all = PQconninfo(conn), *o;
	bool yes = false;

	for (o = all; o && o->keyword; o++)
		if (!strcmp(o->keyword, "sslmode"))
			yes = o->val && !strncmp(o->val, "verify-", 7);
	PQconninfoFree(all);
	return yes && PQsslInUse(conn);
}

/* Its keywords are overridden by those of the URI. */
static PGconn *dial(const char *where)
{
	static const char *const keys[] = {
		"target_session_attrs", "connect_timeout", "application_name", "keepalives_idle",
		"keepalives_interval", "keepalives_count", "tcp_user_timeout", "dbname", NULL,
	};
	const char *const values[] = {
		"read-write", TEXT(PG_CONNECT_S), "vmdedup-meta", "5", "2", "3",
		TEXT(PG_WAIT_MS), where, NULL,
	};

	return PQconnectdbParams(keys, values, 1);
}

/*
 * What a server that has crashed shows after its restart may be on no standby: before anything is
 * read, a transaction of our own goes to the standby, and all that came before it.
 */
static int fence(struct pg *p, struct error *err)
{
	return pg_command(p, "BEGIN", err) ?: pg_command(p, FENCE, err) ?: pg_commit(p, err);
}

static int set_up(struct pg *p, struct error *err)
{
	if (PQserverVersion(p->conn) < PG_MIN_VERSION)
		return error_set(err, -EPROTONOSUPPORT,
				 "the meta server's store: PostgreSQL %d is too old, it takes 14",
				 PQserverVersion(p->conn) / 10000);
	if (!is_local(p->conn) && !verifies(p->conn))
		return error_set(err, -EACCES,
				 "the meta server's store: PostgreSQL at %s is beyond the loopback "
				 "interface: it needs sslmode=verify-full (and sslrootcert) in the "
				 "URI", PQhost(p->conn));
	PQsetNoticeReceiver(p->conn, take_notice, p);
	if (PQsetnonblocking(p->conn, 1))
		return pg_lost(p, "cannot set up the connection", err);
	return pg_command(p, "SET synchronous_commit = on; SET statement_timeout = 0; "
			     "SET client_connection_check_interval = 1000; "
			     "SET idle_in_transaction_session_timeout = 60000; "
			     "SET client_min_messages = warning; SET client_encoding = 'UTF8'; "
			     "SET lock_timeout = " TEXT(PG_LOCK_MS), err) ?:
	       fence(p, err);
}

static int connect_once(struct pg *p, struct error *err)
{
	const char *state;
	char text[256];
	int r;

	p->conn = dial(p->where);
	if (!p->conn)
		return error_set(err, -ENOMEM, "out of memory");
	p->links++;
	if (PQstatus(p->conn) != CONNECTION_OK) {
		state = flat(PQerrorMessage(p->conn), text);
		/* libpq does not tell the reasons apart. (A database that does not exist may do so
		 * on a standby that lags.) */
		r = PQconnectionNeedsPassword(p->conn) || strstr(state, "authentication failed") ?
			    -EACCES : -EHOSTDOWN;
		error_set(err, r, "cannot connect to the meta server's store: %s", state);
		pg_drop(p);
		return r;
	}
	r = set_up(p, err);
	if (r)
		pg_drop(p);
	return r;
}

int pg_up(struct pg *p, struct error *err)
{
	uint64_t until = clock_mono_ns() + PG_DOWN_MS * NS_PER_MS;
	const struct timespec pause = { .tv_nsec = PAUSE_MS * (long)NS_PER_MS };
	int r = 0;

	while (!p->conn) {
		r = connect_once(p, err);
		if (r != -EHOSTDOWN || clock_mono_ns() >= until)
			return r;
		if (!p->conn)
			nanosleep(&pause, NULL);
	}
	return 0;
}
