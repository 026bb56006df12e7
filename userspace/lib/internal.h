/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the client library share. Nothing here is for others.
 *
 *   cluster.c  connections, the meta server: calls, and mutations one at a time
 *   map.c      the shard map and the data servers it names
 *   blocks.c   gets
 *   push.c     a push as its caller sees it
 *   push_send.c  its blocks on their way to data servers: TOUCH, PUT, receipts
 *   parts.c    recipe nodes and receipts on their way to the meta server, the commit
 *   nodes.c    recipe nodes from the meta server
 *   gc.c       collection
 *   missing.c  what is named and not there
 */
#ifndef VMDEDUP_LIB_INTERNAL_H
#define VMDEDUP_LIB_INTERNAL_H

#include <stdio.h>
#include <sys/queue.h>
#include <zstd.h>
#include "base/clock.h"
#include "base/cleanup.h"
#include "lib/cluster.h"
#include "lib/key.h"
#include "proto/limits.h"

/* Where embedded servers (agent/embedded.h) serve their own process, without a copy. */
#define OWN_DATA	 "inproc://vmdedup-data"

#define MAX_METAS	 8
#define MAX_PLACES	 PROTO_MAX_PLACES
#define MAX_SERVERS	 1024
/*
 * An unanswered request is sent again after this, and then after twice as long each time: a server
 * that is slow, not gone, must not be given the same work again and again.
 */
#define META_ATTEMPT_MS	 5000
#define GET_ATTEMPT_MS	 5000
#define TOUCH_ATTEMPT_MS 10000
#define PUT_ATTEMPT_MS	 20000
#define ATTEMPT_DOUBLINGS 3
#define SERVER_DEAD_MS	 60000 /* a push gives up on a data server that is silent for so long */
#define MAP_RETRY_MS	 200   /* between two looks for a better map */
#define BATCH_BYTES	 (4U << 20) /* payload of one PUT or GET */
#define NODE_CACHE_SLOTS 512   /* 4 MiB of recipe nodes */

#define NS_PER_MS 1000000ULL

/* A data server of the map. Never freed before the cluster, so that pointers stay good. */
struct server {
	uint32_t id;
	unsigned int index; /* in cluster.servers */
	uint32_t state;	    /* of Vmdedup__Server; SERVER_GONE: not in the map any more */
	char *endpoint;
	uint8_t key[32];
	bool has_key;
	struct net_client *client; /* NULL until it is used */
	uint64_t last_answer_ns;
	/* gets */
	TAILQ_HEAD(, get_item) gets;
	size_t nr_gets;
	unsigned int gets_inflight; /* messages */
	LIST_HEAD(, get_batch) batches; /* these messages */
	/* a connection that is gone while something waits for it */
	bool lost;
	uint64_t waits_ns; /* since when; 0: it is there, or nothing waits */
	uint64_t reported_ns;
};
#define REPORT_EVERY_MS	    500
#define CONNECT_PATIENCE_MS 500
#define SERVER_IS_DOWN 2
#define SERVER_IS_OUT  4
#define SERVER_GONE    100

struct node_slot {
	struct fp hash; /* all zero: empty */
	uint16_t len;
	uint8_t data[RECIPE_NODE_MAX];
};

typedef void (*mutation_done_fn)(void *arg, int r, struct net_reply *reply);

/* A mutation of the meta server's state: one at a time in the session. */
struct mutation {
	TAILQ_ENTRY(mutation) link;
	Vmdedup__Request *req; /* with frames: the caller's, until done */
	Vmdedup__Mutation id;
	const struct net_frame *frames;
	size_t nr_frames;
	uint64_t deadline_ns; /* 0: none */
	unsigned int attempts;
	bool renewed; /* is sent under a session that was opened for it */
	mutation_done_fn done; /* owns the reply; r is about the transport only */
	void *arg;
};

struct cluster {
	struct net_ctx *net;
	char *role;
	struct cluster_params params;

	struct {
		char *endpoint;
		struct net_client *client;
	} metas[MAX_METAS];
	size_t nr_metas, meta_now;
	uint8_t meta_key[32];
	bool has_meta_key;
	char *own_data; /* the endpoint of this process's data server as others know it, or NULL */
	uint64_t session, sequence;
	TAILQ_HEAD(, mutation) mutations; /* the first is on its way */

	uint64_t map_version; /* 0: none yet */
	unsigned int map_replicas; /* places of a shard in it */
	struct server *map[NR_SHARDS * MAX_PLACES];
	uint8_t map_states[NR_SHARDS * MAX_PLACES]; /* as the map has them */
	struct server **servers;
	size_t nr_servers;
	bool map_asked;	     /* a MAP_GET is under way */
	bool map_wanted;     /* something waits for a better map ... */
	uint64_t map_due_ns; /* ... which is asked for at this time */

	TAILQ_HEAD(get_list, get_item) homeless; /* gets without a server: wait for a map */
	TAILQ_HEAD(, cluster_push) pushes;
	bool serves_peers;
	struct peer_address self;
	void (*redirected)(void *arg, const struct peer_address *peers, size_t nr);
	uint64_t progress; /* goes up with every answer or timeout */
	int watch_fd;
	bool closing;

	struct fp_hasher *hasher;
	ZSTD_DCtx *dctx;
	void *raw; /* one decoded block */
	struct net_reply *giving; /* whose block a get is being given, or NULL */
	size_t giving_frame;
	struct node_slot *nodes;
};

/* cluster.c */
int cluster_meta_submit(struct cluster *c, Vmdedup__Request *req, int timeout_ms, net_done_fn done,
		void *arg);
int cluster_session_open(struct cluster *c, int timeout_ms, struct error *err);
void cluster_mutation_submit(struct cluster *c, struct mutation *m);

static inline int attempt_ms(int first_ms, unsigned int attempts)
{
	return first_ms << MIN(attempts, ATTEMPT_DOUBLINGS);
}

/* map.c */
/* Takes a map if it is newer; queued gets and pushes then go to its servers. */
void cluster_map_apply(struct cluster *c, const Vmdedup__MapReply *m);
int cluster_map_fetch(struct cluster *c, int timeout_ms, struct error *err);
/* Ask for a newer map, not now but soon. */
void cluster_map_want(struct cluster *c);
void cluster_map_flush(struct cluster *c);
struct net_client *cluster_server_client(struct cluster *c, struct server *s);
void cluster_map_free(struct cluster *c);
/* The replica of place @i of the shard does not have all blocks (yet). */
static inline bool cluster_place_is_stale(const struct cluster *c, uint32_t shard, unsigned int i)
{
	return c->map_states[shard * c->map_replicas + i] == 1;
}
/* The server is there, or no one has noticed yet that it is not. */
static inline bool cluster_server_is_up(const struct server *s)
{
	return s->state != SERVER_IS_DOWN && s->state != SERVER_IS_OUT && s->state != SERVER_GONE;
}
/* Tells the meta servers that @s was found wanting, so that it is looked at; not too often. */
void cluster_report(struct cluster *c, struct server *s, const char *what);
/* Looks for servers whose connection broke. */
void cluster_servers_watch(struct cluster *c);

/* blocks.c */
void cluster_gets_flush(struct cluster *c);
void cluster_gets_requeue(struct cluster *c);
void cluster_gets_cancel(struct cluster *c);
/* What is on its way to @s, or waits for it, is asked of others; a late answer counts for nothing. */
void cluster_gets_abandon(struct cluster *c, struct server *s);

/* push_send.c */
void cluster_pushes_flush(struct cluster *c);
void cluster_pushes_requeue(struct cluster *c);
void cluster_pushes_abandon(struct cluster *c, struct server *s); /* likewise */

#endif
