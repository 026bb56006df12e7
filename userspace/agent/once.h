/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests of the control socket that must not be done twice. A client says a request again when
 * its connection broke, and both may arrive: the second, known by its nonce, waits for the first,
 * or gets the first's answer. The table lives as long as the agent does and remembers the last
 * ONCE_MAX requests. All of it belongs to the loop's thread.
 */
#ifndef VMDEDUP_AGENT_ONCE_H
#define VMDEDUP_AGENT_ONCE_H

#include "net/net.h"

#define ONCE_MAX     64 /* requests remembered */
#define ONCE_REPEATS 8	/* of one that is under way; more are refused */

struct once_entry {
	uint64_t nonce; /* 0: free */
	bool done;
	uint8_t *answer; /* packed reply, when it is done; NULL then: there was no memory for it */
	size_t answer_len;
	struct net_request *repeats[ONCE_REPEATS];
	size_t nr_repeats;
};

struct once {
	struct once_entry entries[ONCE_MAX];
	size_t next;
};

/* True: @req is a repeat and is taken care of. False: do it, then call once_reply(). A nonce of 0
 * is never remembered. */
bool once_is_repeat(struct once *o, uint64_t nonce, struct net_request *req);
/* Answers @req and all its repeats, those to come as well. */
void once_reply(struct once *o, uint64_t nonce, struct net_request *req, Vmdedup__Reply *reply);
void once_free(struct once *o); /* what it holds; requests are the server's */

#endif
