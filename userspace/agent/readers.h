/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What read-only and ephemeral volumes of this host stand on, the meta server counts from the OPEN on
 * (LeaseTake.readonly), until it is told that the volume has gone. Nobody waits for that: who has no
 * answer, or dies before he asks, looks again later. Belongs to the push thread.
 */
#ifndef VMDEDUP_AGENT_READERS_H
#define VMDEDUP_AGENT_READERS_H

#include "agent/core.h"
#include "agent/cache.h"
#include "agent/loop.h"
#include "lib/cluster.h"

struct readers_env {
	struct loop *loop;
	struct agent *agent;
	struct cache *cache;
	struct cluster *cluster;
	struct uuid holder; /* the cache's UUID */
	int timeout_ms;	    /* of each request */
};

/* Ends what the meta server counts for volumes that the cache has no record of. 0, or a negative
 * errno: some of it is left. */
int readers_end_gone(const struct readers_env *env, struct error *err);

#endif
