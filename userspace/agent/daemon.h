/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The agent's process: which thread does what, and how the core's operations are carried out.
 *
 *   loop        the core, the control socket, timers: everything that has state
 *   cache       waits for the cache's device, says HELLO, reads upcalls
 *   publish     a pool for the channel's calls
 *   serve-peers, read-slots (peer_server.h)
 *   get-blocks, ask-meta (network.h), push and hash (pusher.h), handover (handover.h)
 *   meta, data  the embedded servers, where they are configured
 */
#ifndef VMDEDUP_AGENT_DAEMON_H
#define VMDEDUP_AGENT_DAEMON_H

#include <pthread.h>
#include "agent/cache.h"
#include "agent/core.h"
#include "agent/embedded.h"
#include "agent/handover.h"
#include "agent/loop.h"
#include "agent/network.h"
#include "agent/once.h"
#include "agent/peer_server.h"
#include "agent/pusher.h"
#include "base/config.h"

struct daemon {
	const struct config *config;
	struct net_ctx *net;
	struct embedded *embedded;
	char *meta; /* endpoint */
	char host[64];
	uint64_t started_ns;
	struct loop *loop;
	struct nodes *nodes;
	struct network *network;
	struct agent *agent;
	struct cache *cache; /* NULL: servers only */
	struct pusher *pusher;
	struct handover *handover;
	struct host_filter *filter;
	struct peer_server *peer_server; /* NULL: no peers */
	struct peer_address self;	 /* where it is reached */
	uint64_t announce_ns, filter_ns; /* when each is due */
	struct pool *calls;
	struct net_server *server;
	struct once once; /* the control socket's */
	int timer_fd, signal_fd;
	struct dm_dedup_hello hello;
	char cache_trouble[256]; /* why the cache is not connected */
	int failure;

	pthread_t cache_thread;
	bool cache_runs;
	pthread_mutex_t stop_lock; /* guards the two below */
	pthread_cond_t stop_cond;
	bool stop, cache_ended;
};

/* Starts everything; @cache (may be NULL) becomes the daemon's. */
struct daemon *daemon_new(const struct config *config, struct cache *cache, struct error *err);
/* Serves until daemon_stop(). 0, or why it had to end. */
int daemon_run(struct daemon *d, struct error *err);
void daemon_stop(struct daemon *d); /* any thread */
/* False: a thread waits for a server and cannot be ended; exit the process without freeing. */
bool daemon_free(struct daemon *d);

/* daemon_cache.c: the cache's thread */
int daemon_start_cache(struct daemon *d, struct error *err);
void daemon_stop_cache(struct daemon *d);
bool daemon_cache_has_ended(struct daemon *d);

/* daemon_ops.c: struct agent_ops; ctx: struct daemon * */
extern const struct agent_ops daemon_agent_ops;

/* daemon_peers.c: peers of this host */
int daemon_listen(struct daemon *d, struct error *err);
int daemon_serve_peers(struct daemon *d, struct error *err);
void daemon_peers_tick(struct daemon *d);	      /* once a second, on the loop */
void daemon_have(struct daemon *d, const struct fp *fp); /* a block is here now */
void daemon_announce(struct daemon *d);

/* control.c: the control socket */
void control_handle(void *ctx, struct net_request *req);
/* control_peers.c */
void control_peers(struct daemon *d, struct net_request *req);
/* control_handover.c */
void control_handover(struct daemon *d, struct net_request *req);
/* What waits for a person's attention, into @text; empty: nothing. The loop's thread. */
void control_trouble(struct daemon *d, char *text, size_t size);

#endif
