/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A link to PostgreSQL on which nothing waits without a deadline. A server that is silent for
 * longer, or is no longer one that may be written to, costs the link: the next use connects again,
 * to whichever of the conninfo's hosts is the primary by then. What was under way is never
 * cancelled: a COMMIT that is cancelled while it waits for its standby would be reported as done.
 * A link belongs to one thread.
 */
#ifndef VMDEDUP_META_PG_H
#define VMDEDUP_META_PG_H

#include <libpq-fe.h>
#include <stdbool.h>
#include "base/error.h"

#define PG_CONNECT_S	3     /* for each host of the conninfo */
#define PG_WAIT_MS	10000 /* for the end of any one command, a COMMIT's standby included */
#define PG_DOWN_MS	8000  /* how long pg_up() looks for a primary */
#define PG_LOCK_MS	5000  /* for a row that another transaction has */
#define PG_MIN_VERSION	140000

struct pg {
	PGconn *conn; /* NULL: lost, or not there yet */
	char *where;
	unsigned int links;  /* how many there have been: what was prepared is gone with each */
	bool warned;	     /* the server has said a warning since this was last set to false */
	char warning[256];
};

/* A libpq URI; nothing is connected yet. -EINVAL: it is none. */
int pg_init(struct pg *p, const char *where, struct error *err);
void pg_drop(struct pg *p); /* the link; it may be used again */
void pg_free(struct pg *p);

/* Makes sure that there is a link, trying again for PG_DOWN_MS. -EHOSTDOWN: no primary can be
 * reached that has its synchronous standby; others: it is reached, and unfit. */
int pg_up(struct pg *p, struct error *err);

/* Waits for the next result of what was sent; *res is NULL at the end of it. 0, or -EHOSTDOWN. */
int pg_result(struct pg *p, PGresult **res, struct error *err);
/* The one result of the one command that was sent, to be cleared, in *res; or its error. */
int pg_single(struct pg *p, PGresult **res, struct error *err);
/* Runs a command without parameters. COMMIT: see pg_commit(). */
int pg_command(struct pg *p, const char *sql, struct error *err);
/* 0: durable, and on the synchronous standby if there is one. -EHOSTDOWN: it is not known whether
 * the transaction is. */
int pg_commit(struct pg *p, struct error *err);

/* The link is no good (sending failed): drops it and says why. -EHOSTDOWN. */
int pg_lost(struct pg *p, const char *what, struct error *err);
/* 0 for a result that is no error. -EAGAIN: lost against another transaction; -EHOSTDOWN: drops
 * the link. */
int pg_check(struct pg *p, const PGresult *res, struct error *err);

#endif
