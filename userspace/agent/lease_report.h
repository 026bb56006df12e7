/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tells the meta server how much of each leased volume is not pushed, so that who breaks a lease can
 * be told what that may lose. Said when it has changed, at most every REPORT_CHANGED_MS, and every
 * REPORT_SAME_MS otherwise. Belongs to the push thread.
 */
#ifndef VMDEDUP_AGENT_LEASE_REPORT_H
#define VMDEDUP_AGENT_LEASE_REPORT_H

#include "agent/cache.h"
#include "base/uuid.h"
#include "lib/cluster.h"

#define REPORT_CHANGED_MS 5000
#define REPORT_SAME_MS	  60000

/* Zeroed memory: nothing was said yet. */
struct lease_report {
	uint64_t tried_ns, said_ns;
	uint64_t said; /* a digest of it; 0: nothing */
};

/* The time to look has come. */
bool lease_report_is_due(const struct lease_report *r, uint64_t now_ns);
/* Says what the volumes' records hold, if it has changed or is old. Fails silently: the next one will
 * tell. Waits at most @timeout_ms for the answer. */
void lease_report_send(struct lease_report *r, struct cluster *c, const struct uuid *cache,
		       const struct dm_dedup_volume_info *infos, size_t count, uint64_t now_ns,
		       int timeout_ms);

#endif
