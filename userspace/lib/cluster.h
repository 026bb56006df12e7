/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The client library: a cluster as agents and the command see it. It finds the meta server and
 * the data servers of each shard, retries what may be retried, verifies every block that it
 * gets, and collects the receipts that a commit needs. A struct cluster and all that comes
 * from it belong to one thread; open one for each thread that needs it.
 *
 * Callbacks (@got, @answer) may submit more; they must not close the cluster, free the push or
 * make a call that waits.
 */
#ifndef VMDEDUP_LIB_CLUSTER_H
#define VMDEDUP_LIB_CLUSTER_H

#include "base/config.h"
#include "base/error.h"
#include "base/fingerprint.h"
#include "base/uuid.h"
#include "net/net.h"
#include "proto/limits.h"
#include "proto/peer_address.h"
#include "proto/recipe.h"

struct cluster;

struct cluster_params {
	struct uuid uuid;
	char name[64];
	enum fp_algorithm algorithm;
	unsigned int block_shift;
	unsigned int replicas;
	unsigned int min_copies;
	uint32_t domain; /* of `public` */
	uint8_t domain_key[64];
	size_t domain_key_len;
};

/* @meta: endpoint of a meta server, or several with commas. @config: where curve_servers names
 * the meta servers' public key for tcp://, or NULL. With a @meta of inproc:// the data server of this
 * process is reached by inproc:// as well. Waits for an answer up to @timeout_ms. */
struct cluster *cluster_open(struct net_ctx *net, const struct config *config, const char *meta,
			     const char *role, int timeout_ms, struct error *err);
void cluster_close(struct cluster *c); /* what waits ends with -ECANCELED */
const struct cluster_params *cluster_params(struct cluster *c);
struct fp_hasher *cluster_hasher(struct cluster *c); /* one for the caller's thread to free */

/* A request to the meta server. A mutation gets (session, sequence) and is repeated with them
 * until it is answered or @timeout_ms (-1: for ever) is over. Reply and result as net_call(). */
int cluster_call(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
		 size_t nr_frames, int timeout_ms, struct net_reply *reply, struct error *err);
int cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
		   size_t nr_frames, int timeout_ms, struct net_reply *reply, struct error *err);

/* The map, fresh from the meta server, and @req to each of its data servers, one after the other.
 * @visit gets r and, when it is 0, the answer; -ENOTCONN: down or out, and not asked. A map without
 * data servers is visited once, with server NULL. */
int cluster_servers_ask(struct cluster *c, Vmdedup__Request *req, int timeout_ms,
			void (*visit)(void *arg, const Vmdedup__MapReply *map,
				      const Vmdedup__Server *server, int r,
				      const Vmdedup__Reply *reply),
			void *arg, struct error *err);
/* The data servers of the shard map, one after the other: DATA_STAT of each. @visit gets r and,
 * when it is 0, the answer. */
int cluster_data_stat(struct cluster *c, int timeout_ms,
		      void (*visit)(void *arg, const Vmdedup__Server *server, int r,
				    const Vmdedup__DataStatReply *stat),
		      void *arg, struct error *err);

/* ---- blocks ---- */
/* Get @count blocks (at most PROTO_MAX_BLOCKS) from their data servers; each is decoded and
 * verified, then handed to @got in any order: r 0 and data, or -ENOENT, -EIO, -ETIMEDOUT.
 * Returns 0 when every block was answered one way or the other. */
int cluster_get(struct cluster *c, const struct fp *fps, size_t count, int timeout_ms,
		void (*got)(void *arg, size_t index, int r, const void *data, size_t len),
		void *arg, struct error *err);
/* The same without waiting: @got runs from cluster_run(). */
int cluster_get_submit(struct cluster *c, const struct fp *fp, int timeout_ms,
		       void (*got)(void *arg, int r, const void *data, size_t len), void *arg);
/* From within @got, for who keeps the block: its bytes without a copy, as far as they came as they are.
 * bytes_free(), on any thread. NULL: no memory. */
struct bytes *cluster_take(struct cluster *c, const void *data, size_t len);
/* This host serves peers at @self (copied): data servers may from now on name others that asked for
 * a block, instead of sending it. @redirected then ends the get, in place of its @got. */
void cluster_serve_peers(struct cluster *c, const struct peer_address *self,
			 void (*redirected)(void *arg, const struct peer_address *peers, size_t nr));
/* cluster_get_submit() after a redirect that led nowhere. */
int cluster_get_served(struct cluster *c, const struct fp *fp, int timeout_ms,
		       void (*got)(void *arg, int r, const void *data, size_t len), void *arg);
/* Send what is queued, handle what has come; waits up to @max_ms (-1: no bound) for the first
 * thing to handle. 0, or -EINTR. */
int cluster_run(struct cluster *c, int max_ms);
size_t cluster_fds(struct cluster *c, int *fds, size_t max); /* poll these, then cluster_run(c, 0) */
/* How long a poll may last before cluster_run(c, 0) is due; -1: for ever. */
int cluster_next_timeout_ms(struct cluster *c);
/* cluster_run() also returns when @fd is readable (-1: none). */
void cluster_watch_fd(struct cluster *c, int fd);

/* ---- push: new blocks, receipts, nodes, commit ---- */
struct cluster_push;
struct cluster_push_stats {
	uint64_t blocks;      /* distinct, offered */
	uint64_t new_blocks;  /* sent */
	uint64_t bytes_sent;  /* as coded */
	uint64_t nodes;	      /* sent */
};

/* Begin with a filled-in push_begin. -EALREADY and *root set: committed before. */
struct cluster_push *cluster_push_begin(struct cluster *c, const Vmdedup__PushBegin *begin,
					struct fp *root, struct error *err);
/* Make sure that a block is stored durably. Asks with TOUCH in batches first; sends when it is
 * missing. @data is copied or coded before return. Zero blocks must not come here. A block
 * offered twice is offered once. Bounded memory: waits when too much is in flight. */
int cluster_push_block(struct cluster_push *p, const struct fp *fp, const void *data, size_t len,
		       struct error *err);
/* The same when the caller has coded it already (a zstd frame, or raw when @coded_len equals
 * @raw_len), e.g. on another thread. */
int cluster_push_coded(struct cluster_push *p, const struct fp *fp, size_t raw_len,
		       const void *coded, size_t coded_len, struct error *err);
/* The two halves of it, for pipelines: neither waits nor copies. Offer asks with TOUCH; @answer
 * runs once, from here or from cluster_run(): 0: nothing to do; 1: it is missing, the caller
 * owes a cluster_push_give(); negative: the push has failed. */
int cluster_push_offer(struct cluster_push *p, const struct fp *fp,
		       void (*answer)(void *arg, int missing), void *arg, struct error *err);
/* @free_fn(data, hint) runs when the data is no longer needed, on any thread. */
int cluster_push_give(struct cluster_push *p, const struct fp *fp, size_t raw_len,
		      const void *coded, size_t coded_len, void (*free_fn)(void *data, void *hint),
		      void *hint, struct error *err);
/* Blocks that are not durable yet, and bytes of data held for them. */
size_t cluster_push_waiting(const struct cluster_push *p, size_t *bytes);
/* 0, or the error that ended the push. */
int cluster_push_error(const struct cluster_push *p, struct error *err);
/* recipe_ops for this push: ->put queues a node for the next part, ->get reads the server's.
 * A leaf must be put after its blocks were offered. */
extern const struct recipe_ops cluster_push_recipe_ops; /* ctx: struct cluster_push * */
/* All blocks durable, all parts sent, receipts redone where refused, then the commit. -EAGAIN:
 * blocks went missing in mid-push that are not at hand any more: push again from the start.
 * @reply (free with vmdedup__push_commit_reply__free_unpacked) may be NULL. */
int cluster_push_commit(struct cluster_push *p, const struct fp *root,
			Vmdedup__PushCommitReply **reply, struct error *err);
void cluster_push_stats(const struct cluster_push *p, struct cluster_push_stats *stats);
/* The image's bytes when the push began; 0: the meta server did not say. */
uint64_t cluster_push_size(const struct cluster_push *p);
void cluster_push_free(struct cluster_push *p); /* without a commit: aborts it */

/* recipe_ops that read nodes from the meta server (verified, a bounded cache): ctx: struct cluster * */
extern const struct recipe_ops cluster_recipe_ops;

/* ---- collection ---- */
struct cluster_gc_stats {
	uint64_t freed_nodes;	 /* recipe nodes given back */
	uint64_t dying_nodes;	 /* that still wait */
	uint64_t dead_blocks;	 /* that nothing named when it began */
	uint64_t deleted_blocks; /* of them gone from all data servers */
	uint64_t left_blocks;	 /* that wait for a data server that is not there */
	uint64_t deleted_copies;
	uint64_t kept_copies;	 /* in use again meanwhile */
	uint64_t listed_copies;	 /* looked at by a full collection */
};
/*
 * Gives back what no image names, here and on the data servers. @full: also lists all that the data
 * servers hold and deletes what the meta server does not know (what a push left that was never
 * committed). @push_idle_s: pushes that nobody has continued for so long are given up first (0: those
 * of the meta server's own bound, 15 minutes; a push that goes on says so every minute). Safe beside everything else, and to repeat. -EINTR when @stopped (may be NULL)
 * returns true. Waits for each answer.
 */
int cluster_gc(struct cluster *c, bool full, uint64_t push_idle_s, bool (*stopped)(void *arg),
	       void *arg, struct cluster_gc_stats *stats, struct error *err);

/* ---- after a restore ---- */

/* A shard that not all of its data servers have whole, and those that do. */
struct cluster_whole {
	uint32_t shard, servers[PROTO_MAX_PLACES], nr;
};

struct cluster_missing {
	uint64_t blocks;    /* that the meta server names */
	uint64_t missing;   /* of them on none of their data servers that answered */
	uint64_t elsewhere; /* of these on others, which would delete them */
	uint64_t fewer;	    /* on some, but not on all */
	uint64_t scattered; /* of these, in shards that no data server has whole */
	uint64_t silent;    /* lists that a data server did not give */
	struct cluster_whole whole[NR_SHARDS];
	uint32_t nr_whole;
};
/*
 * Holds what is named in the domain `public` against what the data servers list; reads no block's
 * content. -EINTR when @stopped (may be NULL) returns true. Waits for each answer.
 */
int cluster_find_missing(struct cluster *c, bool (*stopped)(void *arg), void *arg,
			 struct cluster_missing *out, struct error *err);

#endif
