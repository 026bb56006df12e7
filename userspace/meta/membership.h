/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who is a member, who holds what, and who decides: rows only, no network (governor.h has that).
 *
 * What makes a replica `current`: it has every block of its shard that anything names, stamped no
 * lower than the receipt by which it was named. Three rules keep that true, each in a transaction:
 *   - a receipt that is accepted without one of the current replicas makes that one stale, and
 *     notes on every stale one that it is not in the receipt of (`missed`);
 *   - RECONCILE_BEGIN clears `missed` and names a current replica, whose list of blocks the stale
 *     one then works through;
 *   - RECONCILE_END makes it current, if nothing was missed since, and if the other one was current
 *     all the time (`since`).
 * Nothing of this trusts clocks, timeouts, or what version of the map a client or a server used.
 */
#ifndef VMDEDUP_META_MEMBERSHIP_H
#define VMDEDUP_META_MEMBERSHIP_H

#include "meta/core.h"

#define PLAN_MOVES 64 /* shards with blocks that are in motion at a time, to even out */

/* plan.c: fills empty places, moves what has to move (at most @moves shards that have blocks), and
 * forgets replicas that have left. *@changed (may be NULL): anything did. The caller bumps the map. */
struct plan_result {
	unsigned int changed;
	unsigned int unplaced; /* replicas that no server may hold */
	bool members;	       /* a replica that counted does no longer */
};
int plan_run(struct meta *m, unsigned int moves, struct plan_result *result, struct error *err);

/* membership.c: requests */
int membership_server_set(struct meta_call *c);
int membership_cluster_set(struct meta_call *c);
int membership_report(struct meta_call *c);
/* reconcile.c */
int reconcile_begin(struct meta_call *c);
int reconcile_end(struct meta_call *c);
int reconcile_drop(struct meta_call *c);

/*
 * The governor's lease. membership_govern() is called once a second or so with nothing open; 1:
 * this process governs, *epoch is its fencing epoch; 0: another one does. Time is this process's
 * own: a lease whose beat has stood still for @patience_ns is taken over.
 */
struct lease_watch {
	uint8_t me[16]; /* random, of this process */
	uint64_t epoch; /* held; 0: not held */
	int64_t seen_epoch, seen_beat;
	uint64_t seen_ns;
};
int membership_govern(struct meta *m, struct lease_watch *w, uint64_t patience_ns,
		      struct error *err);

/* What the governor has found out about a server; each a transaction that is refused (-ESTALE)
 * if @w does not hold the lease any more. 1: done; 0: nothing to do. */
int membership_mark(struct meta *m, const struct lease_watch *w, uint32_t server,
		    enum server_state state, struct error *err);
/* One round of planning. */
int membership_plan(struct meta *m, const struct lease_watch *w, struct plan_result *result,
		    struct error *err);

#endif
