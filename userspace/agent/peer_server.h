/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Serves this host's cache to its peers: blocks, recipe nodes, and the filter of what is here.
 *
 * A block that is not here is ENOENT at once, one on its way here EINPROGRESS, or waits for it, as the
 * peer wishes (parked.h). After reading a slot its sequence is looked at again: what was evicted
 * meanwhile is not sent. Whoever
 * asks for more than its share, or when too much is on its way out, is told who asked before, or EBUSY
 * (serving.h).
 *
 * A request goes from the server's thread to the loop (which knows the index), to a thread that
 * reads slots, and back.
 */
#ifndef VMDEDUP_AGENT_PEER_SERVER_H
#define VMDEDUP_AGENT_PEER_SERVER_H

#include "agent/cache.h"
#include "agent/core.h"
#include "agent/getter.h"
#include "agent/host_filter.h"
#include "agent/loop.h"
#include "agent/nodes.h"
#include "agent/parked.h"
#include "agent/serving.h"
#include "net/net.h"

#define UPLOAD_REQUEST 64 /* blocks of one request */

struct peer_server;
/* Listens on @endpoint (tcp://ADDRESS:PORT, * for a free one); serves when it is started. */
struct peer_server *peer_server_new(struct net_ctx *net, const char *endpoint, struct error *err);
/* Where it listens, the port filled in. */
const char *peer_server_endpoint(struct peer_server *s);

struct peer_server_params {
	struct loop *loop;
	struct agent *agent;
	struct cache *cache;
	struct nodes *nodes;
	struct host_filter *filter;
	struct getter *getter;
};
int peer_server_start(struct peer_server *s, const struct peer_server_params *params,
		      struct error *err);
/* A block that peers may wait for has come, or does not come: struct agent_ops, settled. On the loop. */
void peer_server_settled(struct peer_server *s, const struct fp *fp);
/* Answers those that have waited for long enough. On the loop. */
void peer_server_tick(struct peer_server *s);
uint64_t peer_server_next_ns(struct peer_server *s); /* UINT64_MAX: not before something happens */
/* Serves no more, and ends what is under way: on the loop's thread, when nobody runs the loop any
 * more. NULL is fine. */
void peer_server_stop(struct peer_server *s);
void peer_server_free(struct peer_server *s);

struct peer_server_stats {
	uint64_t blocks, bytes; /* sent */
	uint64_t redirects, refused, not_here, on_way; /* blocks */
	uint64_t filter_bytes;
};
void peer_server_stats(struct peer_server *s, struct peer_server_stats *stats); /* any thread */

#endif
