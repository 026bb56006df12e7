/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The agent's network: the operations of struct agent_ops that go to meta servers, data servers and
 * peers.
 *
 * One thread gets blocks, many at a time (getter.h). Two threads ask the meta server, one question at
 * a time each, so that one that waits does not hold up all. Each thread has its own struct cluster.
 * Answers come to the core on the loop's thread.
 */
#ifndef VMDEDUP_AGENT_NETWORK_H
#define VMDEDUP_AGENT_NETWORK_H

#include "agent/core.h"
#include "agent/getter.h"
#include "agent/loop.h"
#include "agent/nodes.h"
#include "base/config.h"
#include "lib/cluster.h"

struct network;
struct network_setup {
	struct net_ctx *net;
	const struct config *config;
	const char *meta;		 /* endpoint of the meta server; copied */
	struct loop *loop;
	struct nodes *nodes;
	const char *folder;		 /* of the files that are caches; NULL: none; copied */
	const struct peer_address *self; /* where peers are served; NULL: they are not; copied */
};
/* What is not copied outlives the network. */
struct network *network_new(const struct network_setup *in, struct error *err);
void network_set_agent(struct network *n, struct agent *agent); /* before the first request */
void network_stop(struct network *n); /* what waits is answered with -ECANCELED */
void network_free(struct network *n);

/* The loop's thread; see struct agent_ops. */
void network_resolve(struct network *n, uint64_t id, const struct fp *root, uint64_t size,
		     uint64_t block);
void network_get(struct network *n, uint64_t id, const struct fp *fp);
void network_image(struct network *n, uint64_t id, const char *name);
void network_lease(struct network *n, uint64_t id, const struct uuid *cache, const char *host,
		   const struct agent_lease *take);

void network_trace_get(struct network *n, uint64_t id, const struct fp *root,
		       const struct uuid *image, const struct uuid *cache);
void network_trace_put(struct network *n, const struct fp *root, const struct uuid *image,
		       const void *blocks, size_t len);
/* Tells the meta server that this host serves peers, with these images open, and learns of some.
 * Nothing when it serves none. */
void network_announce(struct network *n, const struct uuid *cache, const char *host,
		      const struct uuid *images, size_t nr);
struct getter *network_getter(struct network *n);

/* Any thread: the cluster's parameters; false: no meta server has answered yet. */
bool network_params(struct network *n, struct cluster_params *params);

/* A lease, asked for on any thread with a cluster of its own (the push thread's). */
int network_take_lease(struct cluster *c, const struct uuid *cache, const char *host,
		       struct agent_lease *lease, int timeout_ms, struct error *err);

#endif
