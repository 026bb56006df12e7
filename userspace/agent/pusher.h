/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The thread that pushes: what people ask for, what the kernel asks for (DIRTY, SPACE, CLOSE), and
 * by itself every volume whose unpushed data is older or larger than the configuration's bounds.
 * One push at a time. A push that fails is tried again, at growing intervals, and says why.
 */
#ifndef VMDEDUP_AGENT_PUSHER_H
#define VMDEDUP_AGENT_PUSHER_H

#include "agent/cache.h"
#include "agent/core.h"
#include "agent/loop.h"
#include "agent/network.h"
#include "agent/push.h"

struct pusher_params {
	struct net_ctx *net;
	const struct config *config;
	const char *meta;
	const char *host;
	struct loop *loop;
	struct nodes *nodes;
	struct network *network;
	struct cache *cache;
	struct agent *agent; /* used on the loop's thread only */
};

enum pusher_task_kind { TASK_PUSH, TASK_DETACH, TASK_DISCARD, TASK_RECOVER, TASK_HANDOVER };

/* Something asked for; ->work.done runs on the loop's thread when it has ended. */
struct pusher_task {
	struct work work;
	struct pusher_task *next;
	enum pusher_task_kind kind;
	char name[DM_DEDUP_NAME_SIZE]; /* of the volume, or its image's UUID */
	uint64_t volume;	       /* DISCARD: instead of the name */
	bool make_version;
	char label[256];
	char new_image[DM_DEDUP_NAME_SIZE]; /* RECOVER: what it becomes */
	bool no_push; /* DETACH: fails when something is unpushed */
	bool discard; /* DETACH: gives unpushed data of an ephemeral or diverged volume up */
	/* HANDOVER: to whom, and what it is told of (blocks as a trace, the caller's) */
	struct uuid to_cache;
	char to_host[64];
	const void *hot;
	size_t hot_len;
	uint64_t lease_epoch; /* answer: of the other's lease */
	struct uuid image;	       /* answer: of the volume that was found; null: none */
	uint64_t release_ms, lease_ms; /* answer: what took how long */
	struct push_result result;
	uint64_t milliseconds;
	struct error err; /* code 0: done */
};

struct pusher_stats {
	uint64_t pushes, blocks, new_blocks, bytes_sent;
	char trouble[320]; /* of a volume whose last push failed */
};

struct pusher;
struct pusher *pusher_new(const struct pusher_params *params, struct error *err);
/* Ask the thread to end after the push under way. That may wait for a server for long: whoever
 * cannot wait for pusher_has_ended() leaves without freeing; every state is safe to leave. */
void pusher_stop(struct pusher *p);
bool pusher_has_ended(struct pusher *p);
void pusher_free(struct pusher *p); /* after it has ended */

/* The loop's thread. */
void pusher_submit(struct pusher *p, struct pusher_task *task);
void pusher_set_cache(struct pusher *p, const struct uuid *cache); /* which holds the leases */
void pusher_want(struct pusher *p, uint64_t volume, enum agent_push_reason why);
void pusher_stats(struct pusher *p, struct pusher_stats *stats);
/* Why volume @id cannot be pushed; empty: it can. */
void pusher_trouble(struct pusher *p, uint64_t id, char text[256]);

#endif
