/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The servers of a push (struct push_net), by the client library. Belongs to the push thread. */
#ifndef VMDEDUP_AGENT_PUSH_CLUSTER_H
#define VMDEDUP_AGENT_PUSH_CLUSTER_H

#include "agent/node_source.h"
#include "agent/push.h"
#include "lib/cluster.h"

struct pusher_task;
struct push_cluster {
	struct cluster *cluster;   /* set by the owner before a push, */
	struct uuid cache;	   /* as is whose cuts it pushes; null: not known */
	struct cluster_push *push; /* NULL when the meta server had committed the cut */
	struct node_source source;
	struct push_net net;
	/* What the push thread waits for, and since when; any thread reads them (atomics). */
	const char *waits_for;
	uint64_t since_ns;
};

void push_cluster_init(struct push_cluster *s, struct nodes *nodes);
/* "" or, when the push thread has waited for seconds, for what. Any thread. */
void push_cluster_trouble(const struct push_cluster *s, char *text, size_t size);
/* Give a lease back. */
int push_cluster_release(struct push_cluster *s, const struct uuid *image,
			 const struct uuid *cache, uint64_t epoch, int timeout_ms,
			 struct error *err);
/* Give it to another cache; @epoch: of the own lease, and then of the other's. */
int push_cluster_handover(struct push_cluster *s, const struct uuid *image,
			  const struct uuid *cache, const struct pusher_task *to, uint64_t *epoch,
			  int timeout_ms, struct error *err);
/* An image's UUID, and the cache that holds its lease (null: none) with the lease's epoch. */
int push_cluster_lease(struct push_cluster *s, const char *name, int timeout_ms,
		       struct uuid *image, struct uuid *cache, uint64_t *epoch, struct error *err);
/* A version of a head that stands already. */
int push_cluster_snapshot(struct push_cluster *s, const struct uuid *image, const char *label,
			  int timeout_ms, struct push_result *result, struct error *err);

#endif
