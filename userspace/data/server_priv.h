/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of the data server: server.c (threads and queues), handle.c (requests to jobs, jobs
 * to replies), join.c (membership).
 *
 * The server's thread owns the sockets: it checks a request and makes a job of it. Workers
 * verify what a PUT brings and read what a GET wants. One writer commits all PUT, TOUCH, delete
 * and epoch jobs that are ready as one batch, while the next ones are received and
 * verified. What is done goes back to the server's thread, which makes receipts and replies.
 *
 *   handle() -> work -> [workers] -> writes -> [writer] -> done -> reply
 *                           \________________________________^
 */
#ifndef VMDEDUP_DATA_SERVER_PRIV_H
#define VMDEDUP_DATA_SERVER_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/fingerprint.h"
#include "data/server.h"
#include "data/bstore.h"
#include "data/redirect.h"
#include "data/verify.h"
#include "proto/limits.h"
#include "proto/receipt.h"

#define NR_WORKERS	  2
#define SERVER_CACHE	  (64U << 20)
#define MAX_BYTES_IN	  (256U << 20) /* payload of PUTs that are under way */
#define MAX_BYTES_OUT	  (256U << 20) /* blocks that ZeroMQ has not sent yet */
#define BATCH_MAX_BYTES	  (64U << 20)  /* of one commit */
#define BATCH_MAX_OPS	  8192
#define BATCH_WAIT_MS	  20	       /* for PUTs that are being verified: fewer syncs */
#define COMPACT_STEP	  (16U << 20)
#define TICK_MS		  100
#define JOIN_TIMEOUT_MS	  5000
#define REDIRECT_BLOCKS	  65536
#define REDIRECT_COPIES	  1	       /* of a block, before others are sent to who has it */
#define JOIN_RETRY_MS	  500	       /* after a failure */
#define JOIN_REPEAT_MS	  60000	       /* tells the free space */
#define MAP_REFRESH_MS	  5000

/* What the meta server has told. Immutable once published; counted references. */
struct topology {
	atomic_uint refs;
	uint32_t id;
	uint8_t cluster[16];
	uint8_t receipt_key[RECEIPT_KEY_SIZE];
	uint32_t block_size;
	enum fp_algorithm algorithm;
	Vmdedup__ServerJoinReply *reply; /* domains, map: owned */
	Vmdedup__MapReply *map;		 /* owned when it is newer than the reply's */
};

const Vmdedup__MapReply *topology_map(const struct topology *t);
const Vmdedup__Domain *topology_domain(const struct topology *t, uint32_t id);
void topology_put(struct topology *t); /* NULL allowed */

enum job_kind { JOB_PUT, JOB_TOUCH, JOB_GET, JOB_LIST, JOB_DELETE, JOB_EPOCH, JOB_MAP, JOB_BAD };

struct job {
	struct job *next;
	enum job_kind kind;
	struct net_request *req;    /* NULL: the server's own */
	struct topology *topology;  /* of when it came; NULL: not joined yet */
	int r;			    /* for all of it; else each op's */
	uint32_t domain;
	/* PUT, TOUCH, DELETE, EPOCH, MAP, BAD: what the store shall do; GET: what is wanted. */
	struct bstore_op *ops;
	size_t nr;
	struct verified *verified;  /* PUT, beside ops */
	bool *no_coding;
	size_t bytes;		    /* of a PUT's payload, counted in bytes_in */
	/* GET */
	struct block_buf **bufs;    /* NULL where ops[i].r */
	bool raw_only;
	struct redirected *redirected; /* ops[i].r -EREMOTE: who is named; NULL: none */
	uint32_t (*named)[REDIRECT_NAMES];
	uint8_t *nr_named;
	/* LIST */
	uint16_t shard;
	struct fp after;
	bool has_after, more;
	struct bstore_listed *listed;
	size_t max;
	/* MAP */
	struct topology *fresh;	    /* published when its epochs are durable */
};

struct queue {
	struct job *first, **last;
};

/* Blocks on their way out: outlives the server, as ZeroMQ may. */
struct flow {
	atomic_uint refs;
	_Atomic size_t bytes;
	pthread_mutex_t lock;	  /* guards what follows; taken before the server's, never after */
	void (*below)(void *arg); /* when bytes fall below the limit; NULL once the server is gone */
	void *arg;
};

struct data_server {
	struct net_ctx *net;
	struct net_server *server;
	struct bstore *store;
	char *meta, *endpoint, *host, *rack;
	uint8_t meta_key[32];
	bool has_meta_key;
	struct flow *flow;
	int done_fd; /* eventfd: something is in done */
	pthread_t workers[NR_WORKERS], writer;

	pthread_mutex_t lock; /* guards the queues and what follows */
	pthread_cond_t work_cond, write_cond, done_cond;
	struct queue puts, gets; /* for the workers */
	struct queue writes, done;
	size_t bytes_in;
	size_t verifying;   /* PUTs with the workers */
	size_t write_bytes; /* of the jobs in writes */
	size_t unfinished; /* jobs between handle() and done */
	bool draining; /* at the end: GETs no longer wait for slow readers */
	bool stopping;
	bool compact;

	/* The server's thread only: */
	struct topology *topology; /* NULL: not joined yet */
	struct net_client *client;
	struct redirect *redirect;
	uint64_t redirects;	   /* blocks */
	bool asking;		   /* a request to the meta server is under way */
	bool map_pending;	   /* a JOB_MAP is under way */
	bool refresh;		   /* a client knows a newer map */
	uint64_t next_join_ms, next_map_ms;
	unsigned int failures;
};

/* server.c */
void server_submit(struct data_server *s, struct job *job); /* frees it in the end */
void job_free(struct job *job);
/* handle.c */
void server_handle(void *ctx, struct net_request *req);
void server_reply(struct data_server *s, struct job *job); /* a job that is done */
/* join.c */
int join_start(struct data_server *s, struct error *err);
void join_tick(struct data_server *s);
void join_map_done(struct data_server *s, struct job *job);
void join_end(struct data_server *s);

/* flow.c: frames that put their buffer when they are sent */
struct flow *flow_new(void (*below)(void *arg), void *arg);
void flow_end(struct flow *f); /* the server is going; drops its reference */
bool flow_is_full(struct flow *f);
/* Takes over the reference to @buf. -ENOMEM: and puts it. */
int flow_frame(struct flow *f, struct block_buf *buf, struct net_frame *frame);

#endif
