/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A push, as push.c, push_send.c (blocks) and parts.c (nodes, receipts, commit) share it. */
#ifndef VMDEDUP_LIB_PUSH_H
#define VMDEDUP_LIB_PUSH_H

#include "lib/internal.h"

#define PUSH_MAX_BYTES	 (64U << 20) /* of data held for blocks: cluster_push_block() waits above */
#define PUSH_MAX_BLOCKS	 8192	     /* on their way: it waits above */
#define PUSH_SET_MAX	 (1U << 22)  /* blocks remembered as offered: 256 MiB; then it starts over */
#define PUSH_BUCKETS	 8192
#define PART_RECEIPT_MAX (512U << 10) /* bytes of receipts in one part (header: PROTO_MAX_HEADER) */
#define PART_NODES	 64	      /* a part is sent when so many nodes may go */
#define PUSH_REDO_ROUNDS 8

/* Coded content that a block and messages in ZeroMQ's hands share. */
struct blob {
	int refs; /* atomic: the last one may be let go of by one of ZeroMQ's threads */
	const void *data;
	size_t len;
	void (*free_fn)(void *data, void *hint);
	void *hint;
};

enum block_state {
	BLOCK_TOUCH,	/* queued */
	BLOCK_TOUCHING, /* asked */
	BLOCK_OWED,	/* missing there, and the caller has yet to give the content */
	BLOCK_PUT,	/* queued */
	BLOCK_PUTTING,	/* sent */
};

/* A block from its offer until a receipt names it. */
struct push_block {
	TAILQ_ENTRY(push_block) all;	/* in the order of the offers */
	TAILQ_ENTRY(push_block) queue;	/* TOUCH, PUT: of its server, or homeless */
	LIST_ENTRY(push_block) bucket;
	struct fp fp;
	uint64_t ticket; /* goes up with each offer */
	uint64_t since_ns;
	unsigned int attempts;
	enum block_state state;
	bool redo;	 /* offered again because the meta server refused its receipt */
	uint32_t raw_len;
	struct blob *blob; /* NULL: not given (yet) */
	void (*answer)(void *arg, int missing);
	void *arg;
};
TAILQ_HEAD(block_queue, push_block);

/* What waits for one data server. */
struct push_server {
	struct block_queue touch, put;
	size_t nr_touch, put_bytes;
	unsigned int touches, puts; /* messages on their way */
};

struct push_node {
	TAILQ_ENTRY(push_node) link;
	struct fp hash;
	uint64_t ticket; /* may go when no block up to this one waits any more */
	uint32_t len;
	uint8_t data[];
};
TAILQ_HEAD(node_queue, push_node);

/* A data server's answer that is kept until its receipts have been sent. */
struct held_reply {
	TAILQ_ENTRY(held_reply) link;
	struct net_reply reply;
	Vmdedup__Receipt **receipts;
	size_t count, sent;
};
TAILQ_HEAD(held_queue, held_reply);

struct push_part; /* on its way to the meta server */

struct cluster_push {
	TAILQ_ENTRY(cluster_push) link;
	struct cluster *c;
	uint64_t id;
	uint64_t size; /* of its image, as the meta server says */
	unsigned int refs; /* of the caller, and of messages on their way */
	bool freed, committed;
	struct error err; /* the first one ends the push */
	struct cluster_push_stats stats;

	/* blocks */
	struct block_queue blocks;
	LIST_HEAD(, push_block) buckets[PUSH_BUCKETS];
	size_t nr_blocks, bytes, nr_owed;
	uint64_t tickets;
	struct push_server *servers; /* as many as the cluster knew last */
	size_t nr_servers;
	struct block_queue homeless;
	LIST_HEAD(, push_batch) batches; /* messages on their way */
	struct fp *set; /* open addressing; all zero: free */
	size_t set_size, set_used;
	ZSTD_CCtx *cctx;

	/* nodes and receipts */
	struct node_queue nodes;
	size_t nr_nodes;
	struct held_queue held;
	size_t held_bytes;
	struct push_part *part;
	uint64_t part_ns; /* when the last one was sent, or the push began */
	bool flushing; /* the commit is near: parts of any size go */
	unsigned int redos;
};

/* push.c */
/* It has its receipt, or the push has failed (@r). Not in any server's queue. */
void cluster_push_block_end(struct cluster_push *p, struct push_block *b, int r);
/* Its caller's answer, once. */
void cluster_push_block_answer(struct push_block *b, int missing);
/* Ends every block but those in messages on their way: they are answered now and end with
 * their message. */
void cluster_push_blocks_drop(struct cluster_push *p);
void cluster_push_blob_put(void *data, void *hint); /* hint: struct blob *; any thread */
int cluster_push_fail(struct cluster_push *p, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void cluster_push_put_ref(struct cluster_push *p);
/* TOUCH these again; their content is not at hand. */
int cluster_push_redo(struct cluster_push *p, const ProtobufCBinaryData *fps);

/* push_send.c */
/* To the server that it is asked from, or sent to. */
void cluster_push_queue(struct cluster_push *p, struct push_block *b);

/* parts.c */
/* Keeps the reply's receipts; takes over the reply. */
void cluster_parts_hold(struct cluster_push *p, struct net_reply *reply, Vmdedup__Receipt **receipts,
		size_t count);
void cluster_parts_flush(struct cluster_push *p);
bool cluster_parts_done(const struct cluster_push *p);
/* A part on its way is not waited for much longer. */
void cluster_parts_give_up(struct cluster_push *p);
void cluster_parts_free(struct cluster_push *p);

#endif
