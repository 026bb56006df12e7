/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The calls of one client, by id and by what is next for them. One thread's, like the client.
 *
 *   state         next
 *   CALL_WAITING  is to be sent       -> SENT; HELD; FAILED: it cannot be, or is too late
 *   CALL_HELD     has payload for which the server has no room yet -> SENT; FAILED: too late
 *   CALL_SENT     awaits its answer   -> its end; WAITING: a new connection; FAILED: too late
 *   CALL_FAILED   awaits its end, with call->result
 */
#ifndef VMDEDUP_NET_CALLS_H
#define VMDEDUP_NET_CALLS_H

#include <sys/queue.h>

#include "net/internal.h"

#define CALL_BUCKETS 1024

enum call_state { CALL_WAITING, CALL_HELD, CALL_SENT, CALL_FAILED };

struct call {
	TAILQ_ENTRY(call) link;
	struct call *next_in_bucket;
	enum call_state state;
	int result; /* of a failed one */
	uint64_t id;
	uint64_t deadline; /* in ns of the monotonic clock; UINT64_MAX: none */
	net_done_fn done;
	void *arg;
	size_t payload; /* bytes */
	size_t nr; /* header and frames, kept for sending again */
	zmq_msg_t msgs[];
};
TAILQ_HEAD(call_list, call);

struct calls {
	/* each in the order in which they are to go on */
	struct call_list waiting, held, sent, failed;
	size_t pending;		/* in all */
	uint64_t next_deadline; /* no call that is not failed has an earlier one */
	struct call *buckets[CALL_BUCKETS];
};

void calls_init(struct calls *t);
/* NULL: there is none of this id (any more). */
struct call *calls_find(struct calls *t, uint64_t id);
/* Takes over @call (from malloc()), to the tail of the list of its state. */
void calls_insert(struct calls *t, struct call *call);
void calls_move(struct calls *t, struct call *call, enum call_state state);
/* Calls back, and frees the call: it leaves every table before, so that the callback may submit
 * others. @reply: NULL, or the callback's from now on. */
void calls_end(struct calls *t, struct call *call, int r, struct net_reply *reply);
/* All become failed ones with result @r. */
void calls_fail_all(struct calls *t, int r);
/* What was sent, then what was held, goes to the head of what waits, each in its order. */
void calls_send_again(struct calls *t);
/* Those whose deadline is over at @now (ns) become failed ones with -ETIMEDOUT. */
void calls_expire(struct calls *t, uint64_t now);

#endif
