/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The governor: looks after the data servers, when this process holds the lease.
 *
 * Two threads of its own do the looking and know no store. The heartbeat pings each data server once
 * a second, one after the other. The prober looks at once at whom somebody complains about. What
 * they find is judged, and written, on the meta server's thread.
 *
 *   down  a process that is gone (its host refuses the connection) in less than a second after the
 *         first complaint, in about two without any. A server that is silent, after
 *         GOVERNOR_SILENT_MS; and only if somebody complained, too, or if this process hears from at
 *         least half of the servers: if it does not, it is itself what is cut off.
 *   up    again: when another process of it joins (a start), or has answered three heartbeats in a row
 *         in time, or ten late.
 *   out   after the cluster's out_after_s, if it stays within one failure domain or 10 % of the
 *         capacity together with all that went out by themselves. The time runs on through a JOIN,
 *         until three heartbeats were answered.
 * A server that answers late is slow, not down.
 */
#ifndef VMDEDUP_META_GOVERNOR_H
#define VMDEDUP_META_GOVERNOR_H

#include "meta/membership.h"
#include "net/net.h"

#define GOVERNOR_BEAT_MS   1000
#define GOVERNOR_SILENT_MS 6000
#define GOVERNOR_LEASE_MS  5000 /* a lease whose beat stands still so long is taken over */

struct governor;

/* @patience_ns: see membership_govern(); 0 where no other process can have the store. The meta
 * server's thread calls governor_tick() about ten times a second, and when governor_fd() is
 * readable. */
struct governor *governor_new(struct net_ctx *net, struct meta *m, uint64_t patience_ns,
			      struct error *err);
void governor_free(struct governor *g);
int governor_fd(struct governor *g);
void governor_tick(struct governor *g);

#endif
