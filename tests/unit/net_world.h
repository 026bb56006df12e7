/* SPDX-License-Identifier: GPL-2.0-or-later */
/* For tests of net/: a server on a thread that answers in every way there is, and short calls. */
#ifndef VMDEDUP_TESTS_NET_WORLD_H
#define VMDEDUP_TESTS_NET_WORLD_H

#include <pthread.h>
#include <stdatomic.h>
#include "net/net.h"

#define NETW_WAIT_MS	20000 /* for what must come; sanitizers and busy machines are slow */
#define NETW_BLOCK_SIZE (256 << 10)
#define NETW_COUNT(a)	(sizeof(a) / sizeof((a)[0]))

/*
 * GET: blocks of 'b', without a copy. PUT: the sum of the payload's bytes, in DataStatReply.puts,
 * at the end of the batch. DATA_STAT: the peer's name in error_text, refused requests in
 * DataStatReply.gets. SHARD_LIST: tries to send too much. All else: ENOENT.
 */
struct netw_server {
	struct net_ctx *ctx;
	struct net_server *net;
	pthread_t thread;
	bool silent; /* never answers */
	atomic_int seen, batches, ticks, freed;
	struct net_request *deferred[64];
	size_t nr_deferred;
	uint8_t *block;
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

/* @silent: takes requests and never answers. */
struct netw_server *netw_server_start(struct net_ctx *ctx, bool silent, const char *endpoint);
/* @ops: netw_server_ops with other bounds; they must live as long. */
struct netw_server *netw_server_start_with(const struct net_server_ops *ops, struct net_ctx *ctx,
					   bool silent, const char *endpoint);
/* Until @n requests have come. */
void netw_server_wait_seen(struct netw_server *s, int n);
struct net_server_stats netw_server_stop(struct netw_server *s);
/* After the context has ended: frames that were sent refer to the block. */
void netw_server_free(struct netw_server *s);
extern const struct net_server_ops netw_server_ops;

extern Vmdedup__DataStat netw_data_stat;
Vmdedup__Request netw_request(Vmdedup__Request__BodyCase body_case, void *body);
int netw_call(struct net_client *c, Vmdedup__Request__BodyCase body_case, void *body,
	      struct net_reply *reply, struct error *err);
int netw_stat_call(struct net_client *c, int timeout_ms, struct error *err);
/* These fail the test when they fail. */
struct net_client *netw_client(struct net_ctx *ctx, const char *endpoint, const uint8_t *key);
struct net_ctx *netw_context(const char *secret, const char *clients);

/* DIR/NAME, in one of four buffers that are used in turn. */
char *netw_path(const char *dir, const char *name);
/* DIR/NAME and DIR/NAME_secret; the public key in DIR/clients too when it @may_connect. */
void netw_make_key(const char *dir, const char *name, bool may_connect, uint8_t public_key[32]);

/* How a call ended; a net_done_fn that records it. */
struct netw_outcome {
	int done, r;
	uint64_t puts;
};
void netw_record(void *arg, int r, struct net_reply *reply);
/* A free_fn that counts in an atomic_int. */
void netw_count_free(void *data, void *hint);

#endif
