/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Handing a volume over to another host: the part before the switch. It finds the other host's agent,
 * tells it what this host's cache holds of the image, and waits until that is in the other's cache. A
 * thread of its own, one handover at a time: all of it may take long, and changes nothing. What only asks
 * whether the other is there comes before all that warms, and between: a guest waits for it. The switch
 * is the push thread's (TASK_HANDOVER; its states are there).
 */
#ifndef VMDEDUP_AGENT_HANDOVER_H
#define VMDEDUP_AGENT_HANDOVER_H

#include "agent/cache.h"
#include "agent/core.h"
#include "agent/loop.h"
#include "agent/nodes.h"
#include "base/config.h"
#include "net/net.h"
#include "proto/peer_address.h"

#define HANDOVER_WAIT_MAX_MS (3600 * 1000) /* also what `volume handover --warm-wait` takes */

struct handover_target {
	char host[64];
	struct uuid cache;
	struct peer_address address;
};

/* What one handover is about. ->work.done runs on the loop's thread. */
struct handover_task {
	struct work work;
	struct handover_task *next;
	char name[DM_DEDUP_NAME_SIZE]; /* of the volume, or its image's UUID */
	char to[64];		       /* host, or its cache's UUID */
	bool warm;		       /* else: only who the target is, and that it is there */
	bool ask;		       /* no switch follows: another task's will use what was found */
	bool stopped;		       /* a guest waits: by what the last one has found */
	uint64_t wait_ms; /* at most HANDOVER_WAIT_MAX_MS */
	struct uuid self;	       /* this host's cache */
	/* answer */
	struct handover_target target;
	void *hot; /* blocks as a trace; free() */
	size_t hot_len;
	struct agent_warmth warmth;    /* ->cache: that has answered last; null: none has */
	char cold[200]; /* why it is not warm */
	struct error err;
};

struct handover_params {
	struct net_ctx *net;
	const struct config *config;
	const char *meta;
	struct loop *loop;
	struct nodes *nodes;
	struct cache *cache;
	struct agent *agent; /* used on the loop's thread only */
	const struct peer_address *self; /* where this host serves peers; NULL: it does not */
};

struct handover;
struct handover *handover_new(const struct handover_params *params, struct error *err);
void handover_submit(struct handover *h, struct handover_task *task); /* any thread */
void handover_stop(struct handover *h); /* what waits ends with -ECANCELED */
bool handover_has_ended(struct handover *h);
void handover_free(struct handover *h); /* after it has ended; NULL is fine */

#endif
