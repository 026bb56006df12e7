/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What pusher.c (the thread, and what is due by itself) and pusher_tasks.c (what people ask for)
 * share. All functions are the push thread's. */
#ifndef VMDEDUP_AGENT_PUSHER_IMPL_H
#define VMDEDUP_AGENT_PUSHER_IMPL_H

#include <pthread.h>
#include "agent/lease_report.h"
#include "agent/push_cluster.h"
#include "agent/push_policy.h"
#include "agent/pusher.h"

#define META_TIMEOUT_MS 5000
#define MAX_DISCARDED	64

struct pusher {
	struct pusher_params params;
	struct pool *pool;
	pthread_t thread;
	struct push_env env;
	struct push_cluster servers;
	/* Ephemeral volumes that their CLOSE has discarded: a detach may come after it. */
	struct {
		struct uuid image; /* null: none */
		char name[DM_DEDUP_NAME_SIZE];
	} discarded[MAX_DISCARDED];
	unsigned int next_discarded;
	struct lease_report report;
	/* readers.h: at its start nobody knows whether an earlier agent has left some, and a host without
	 * volumes does not call the meta server for that alone. */
	enum { READERS_UNKNOWN, READERS_GONE, READERS_LEFT, READERS_TOLD } readers;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t some;
	struct pusher_task *first, **last;
	struct push_policy policy;
	uint64_t pushing; /* the volume; 0: none */
	char pushing_name[DM_DEDUP_NAME_SIZE];
	bool want_space; /* writers wait for slots */
	bool want_look;	 /* at the volumes, now and not at the next interval */
	struct uuid cache_uuid;
	bool stop, ended;
	struct pusher_stats stats;
};

/* ---- pusher.c ---- */
void pusher_holder(struct pusher *p, struct uuid *cache); /* which holds the leases; null: none yet */
/* By task->volume, else by task->name: the name that the volume was opened by, or its image's UUID. Sets
 * task->image.
 * -ENOENT says nothing of an image that has got another name since. */
int pusher_find_volume(struct pusher *p, struct pusher_task *task,
		       struct dm_dedup_volume_info *found, struct error *err);
/* Of this very image, whatever the volume is called. @name: for people. -ENOENT: it has none. */
int pusher_find_image(struct pusher *p, const struct uuid *image, const char *name,
		      struct dm_dedup_volume_info *found, struct error *err);
int pusher_need_cluster(struct pusher *p, struct error *err);
/* One cut: pushed, or its failure noted, for the next try and for people. */
int pusher_push(struct pusher *p, const struct dm_dedup_volume_info *v, bool make_version,
		const char *label, struct push_result *result, struct error *err);

/* ---- pusher_tasks.c ---- */
void pusher_run_task(struct pusher *p, struct pusher_task *task);

#endif
