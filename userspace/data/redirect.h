/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who asked for a block last: so that a new block spreads from host to host as a tree, and not
 * from one server to all as a star.
 *
 * A server hands out a few copies of a block itself. Whoever asks after that is told of up to three
 * that asked before, each of which is named first to a few only. It comes back (@serve) when these
 * have failed, and is served. Named are earlier requesters only, so nobody is sent to wait for
 * one that waits for him; a peer without the block says so at once. Whoever states its rack is told
 * of those of the same rack first: a block comes into a rack once or a few times, and spreads there.
 *
 * Bounded: sets of four blocks, of which the one that nobody asked for longest gives way, and
 * addresses likewise. It is a memory of hints: any of it may be forgotten. One thread.
 */
#ifndef VMDEDUP_DATA_REDIRECT_H
#define VMDEDUP_DATA_REDIRECT_H

#include <stddef.h>
#include "base/fingerprint.h"
#include "proto/peer_address.h"

#define REDIRECT_NAMES	 3	/* peers named in one answer */
#define REDIRECT_FANOUT	 2	/* how often a peer is the first that is named for a block; twice
					 * as often to hosts of its own rack */
#define REDIRECT_RING	 256	/* requesters remembered for a block */
#define REDIRECT_TTL_NS	 60000000000ULL	/* after so long without a request a block is forgotten */

struct redirect;
/* @blocks: remembered at most, about 1,600 bytes each; @peers: 180 bytes each, 65535 at most. NULL: no
 * memory. */
struct redirect *redirect_new(size_t blocks, size_t peers);
void redirect_free(struct redirect *r);

/*
 * @who asks for @fp. The number of peers in @names to send it to, best first; 0: serve it. Beyond
 * @copies handed out it is sent on. @serve: it was sent on before, in vain. The names are good
 * until the next call.
 */
size_t redirect_ask(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		    bool serve, unsigned int copies, uint64_t now_ns,
		    const struct peer_address *names[REDIRECT_NAMES]);

/*
 * For a server that may have the block from one of those that ask: names are those only that it was
 * handed to. Who waits for it himself would be sent to whom another server sends to him. The names for
 * @who, as above, who is not remembered; and: it is on its way to @who, who is.
 */
size_t redirect_names(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		      uint64_t now_ns, const struct peer_address *names[REDIRECT_NAMES]);
void redirect_handed(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		     uint64_t now_ns);

/* ---- one reply's worth of them ---- */
#define REDIRECT_MAX_NAMED 64 /* peers in one reply */

struct redirected {
	size_t nr;
	struct peer_address peers[REDIRECT_MAX_NAMED];
};

/* The numbers in @out of @names, added where they are not there yet; how many there was room for. */
size_t redirected_add(struct redirected *out, const struct peer_address *const *names, size_t nr,
		      uint32_t numbers[REDIRECT_NAMES]);

#endif
