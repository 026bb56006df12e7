/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a host serves its peers, and what it refuses: a share for each, and a bound for all, which is what
 * its link takes in UPLOAD_NS: what waits for longer comes sooner from those who have been given it. Whoever
 * asks for more is told who they are (data/redirect.h), or that the host is busy. Pure, driven by
 * peer_server.c and by simulations; serving_admit() and serving_sent() are any thread's, the others one's.
 */
#ifndef VMDEDUP_AGENT_SERVING_H
#define VMDEDUP_AGENT_SERVING_H

#include "agent/core.h"
#include "data/redirect.h"

#define UPLOAD_BLOCKS 128		/* on their way to one peer */
#define UPLOAD_BYTES  (128ULL << 20)	/* to all */
#define UPLOAD_LEAST  (8ULL << 20)	/* to all, however slow the link is */
#define UPLOAD_FIRST  (16ULL << 20)	/* to all, until its pace is known */
#define UPLOAD_NS     50000000ULL
#define UPLOAD_PEERS  256		/* that are sent something at a time */

struct serving;
struct sent; /* a block on its way out */

/* @blocks: whose receivers are remembered. NULL: no memory. */
struct serving *serving_new(size_t blocks);
void serving_free(struct serving *s); /* blocks may still be on their way */

/*
 * @who (a name for the connection) asks for @fp, of @len bytes; @from: where it serves peers itself,
 * or NULL. 0: it may be sent: *@sent, to be given to serving_sent() once, when the bytes have gone, or
 * to serving_cancel(). -EREMOTE: @names[0..*nr], good until the next call, were given it before. -EBUSY.
 */
int serving_ask(struct serving *s, const char *who, const struct peer_address *from,
		const struct fp *fp, size_t len, uint64_t now_ns, struct sent **sent,
		const struct peer_address *names[REDIRECT_NAMES], size_t *nr);
/* That it is busy was found later than serving_ask() said 0: who was given it, as above; *@nr may be 0. */
void serving_busy(struct serving *s, const struct peer_address *from, const struct fp *fp,
		  uint64_t now_ns, const struct peer_address *names[REDIRECT_NAMES], size_t *nr);
/* The bytes may be sent to @who now, as above; NULL: the host is busy. */
struct sent *serving_admit(struct serving *s, const char *who, size_t len, uint64_t now_ns);
void serving_sent(struct sent *sent);
/* Instead of serving_sent(): nothing of it was sent. */
void serving_cancel(struct sent *sent);
/* Its bytes are on their way to @from, who is one to be named from now on. On serving_ask()'s thread. */
void serving_handed(struct serving *s, const struct peer_address *from, const struct fp *fp,
		    uint64_t now_ns);

/* Where @fp is: 0: in *@slot, in the life *@seq of it; or, with *@data, in memory, good until the core is
 * called again. -EINPROGRESS: on its way here. -ENOENT. On the core's thread. */
int serving_find(struct agent *a, const struct fp *fp, uint64_t *slot, uint64_t *seq,
		 const void **data, size_t *len);

#endif
