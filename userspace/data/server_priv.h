/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of the data server: server.c (threads and queues), handle.c (requests to jobs), reply.c
 * (jobs to replies), forward.c (to the other replicas), join.c (membership), repair.c (reconciling,
 * healing, scrubbing).
 *
 * The server's thread owns the sockets: it checks a request and makes a job of it. Workers
 * verify what a PUT brings and read what a GET wants. One writer commits all PUT, TOUCH, delete
 * and epoch jobs that are ready as one batch, while the next ones are received and
 * verified. What is done goes back to the server's thread, which makes receipts and replies.
 *
 *   handle() -> work -> [workers] -> writes -> [writer] -> done -> reply
 *                           \________________________________^
 *
 * What a client brings goes to the other replicas at the same time, on the forwarder's thread: the
 * job is done when both the writer and the forwarder are.
 */
#ifndef VMDEDUP_DATA_SERVER_PRIV_H
#define VMDEDUP_DATA_SERVER_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/fingerprint.h"
#include "data/server.h"
#include "data/bstore.h"
#include "data/metas.h"
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
#ifndef REDIRECT_BLOCKS
#define REDIRECT_BLOCKS	  16384
#define REDIRECT_PEERS	  16384
#endif
#define REDIRECT_COPIES	  1	       /* of a block, before others are sent to who has it */
#define JOIN_RETRY_MS	  500	       /* after a failure */
#ifndef JOIN_REPEAT_MS
#define JOIN_REPEAT_MS	  60000	       /* tells the free space */
#endif
#define MAP_REFRESH_MS	  5000
#define DEFAULT_REPAIR_RATE   (100ULL << 20)
#define DEFAULT_SCRUB_EVERY_S 604800
#define MAP_SOON_MS	  200	       /* when something hints at a newer one */
#define MAP_WAIT_MS	  1500	       /* for a map that whoever writes has already; below FORWARD_MS */
#define MAX_EARLY	  256	       /* requests that wait for it, */
#define MAX_EARLY_BYTES	  (64U << 20)  /* and their payload: beyond it none waits */
#define MAX_FORWARD_BYTES (192U << 20) /* that other replicas have not taken: then PUTs get EAGAIN */

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
/* As the map has it. */
enum { REPLICA_CURRENT = 0, REPLICA_STALE = 1, REPLICA_LEAVING = 2 };
/* Bit k: place k of the shard is a replica that counts. */
uint8_t topology_current(const Vmdedup__MapReply *map, unsigned int shard);
/* Bit k: the place of server @id in the shard; 0: none. */
uint8_t topology_place(const Vmdedup__MapReply *map, unsigned int shard, uint32_t id);

/* Who else has a block of a job durably. */
struct job_copies {
	uint64_t epoch; /* the lowest; UINT64_MAX: nobody */
	uint8_t have;	/* bit k: place k of its shard in the job's map */
	bool missing;	/* a replica that should have it has not */
	bool again;	/* by a newer map somebody else should have it */
};
struct job_peer {
	uint32_t id;
	uint8_t disk[16]; /* what its receipts say */
	uint64_t incarnation;
};

enum job_kind { JOB_PUT, JOB_TOUCH, JOB_GET, JOB_LIST, JOB_DELETE, JOB_DROP, JOB_EPOCH, JOB_MAP,
		JOB_BAD };

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
	/* LIST, DROP */
	uint16_t shard;
	struct fp after;
	bool has_after, more;
	struct bstore_listed *listed;
	size_t max;
	/* PUT, TOUCH: other replicas */
	bool forwarded;		    /* one of them sent it */
	bool late;		    /* it has waited for a newer map, which did not come */
	unsigned int parts;	    /* that are not done: here, and there; under the lock */
	struct job *forward_next;
	struct bstore_op *sent;	    /* ops as they were before the writer had them; NULL: not sent */
	size_t sent_bytes;
	size_t waiting;		    /* messages that are not answered; the forwarder's */
	struct job_copies *copies;  /* one an op; the forwarder's, then the server's */
	struct job_peer *peers;
	size_t nr_peers;
	/* A job of this server's own, that a thread waits for: not freed when it is done. */
	struct job_waiter *waiter;
	/* MAP */
	struct topology *fresh;	    /* published when its epochs are durable */
};

/* What the repair thread has done since the start. */
struct repair_stats {
	uint32_t stale_shards; /* replicas here that are to be reconciled */
	uint64_t left_blocks;  /* of those under way: missing here still */
	uint64_t blocks, bytes;
	uint64_t scrubbed_bytes, damaged, healed, dropped;
};

struct bad_block {
	uint32_t domain;
	struct fp fp;
};
#define MAX_BAD 1024 /* the others are found by the next scrub */

/* A PUT or TOUCH that came with a newer map than is here. */
struct early {
	struct net_request *req;
	uint64_t version, until_ms;
	size_t bytes;
};

struct job_waiter {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
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
	uint64_t repair_rate, scrub_rate, scrub_every_s;
	struct flow *flow;
	int done_fd; /* eventfd: something is in done */
	int forward_fd; /* eventfd: something is in forwards, or there is a new map */

	pthread_mutex_t lock; /* guards the queues and what follows */
	pthread_cond_t work_cond, write_cond, done_cond, repair_cond;
	struct queue puts, gets; /* for the workers */
	struct queue writes, done;
	size_t bytes_in;
	size_t verifying;   /* PUTs with the workers */
	size_t write_bytes; /* of the jobs in writes */
	size_t unfinished; /* jobs between handle() and done */
	bool draining; /* at the end: GETs no longer wait for slow readers */
	bool stopping;
	bool compact;
	struct job *forwards, **forwards_last;
	size_t forward_bytes;	 /* of the jobs there, and of those that are not answered */
	struct topology *newest; /* a reference for the forwarder, when there is a new one */
	struct topology *known;	 /* the same, for the repair thread */
	uint32_t accused;	 /* a server to tell the meta server of; 0: none */
	bool want_map;
	bool repairing; /* the repair thread is there, and may submit jobs */
	struct repair_stats repair;
	struct bad_block bad[MAX_BAD]; /* to be healed */
	size_t nr_bad;

	/* The server's thread only: */
	struct topology *topology; /* NULL: not joined yet */
	struct metas metas;
	struct redirect *redirect;
	uint64_t redirects;	   /* blocks */
	bool asking;		   /* a request to the meta server is under way */
	bool map_pending;	   /* a JOB_MAP is under way */
	bool refresh;		   /* a client knows a newer map */
	struct early early[MAX_EARLY];
	size_t nr_early, early_bytes;
	bool late;		   /* the request that is being handled has waited in vain */
	uint64_t next_join_ms, next_map_ms, asked_map_ms;
	unsigned int failures;
	struct uuid session; /* of this process */
	struct uuid said;    /* that the disk names, as the last JOIN said */
	uint64_t free_bytes; /* of the disk, as last looked at */
};

/* server.c */
/* A part of the job is done: here, or at the others. Under the lock. */
void server_part_done(struct data_server *s, struct job *job);
/* From any thread but the server's: submits, and waits until it is done. The caller frees it. */
void server_submit_wait(struct data_server *s, struct job *job);
void server_submit(struct data_server *s, struct job *job); /* frees it in the end */
void job_free(struct job *job);
/* handle.c */
void server_handle(void *ctx, struct net_request *req);
/* Requests whose map has come, and those that have waited for long enough. */
void server_take_early(struct data_server *s);
void server_refuse_early(struct data_server *s); /* the server ends */
struct job *server_job_new(struct data_server *s, enum job_kind kind, size_t nr); /* its own */
/* reply.c */
void server_reply(struct data_server *s, struct job *job); /* a job that is done */
/* forward.c */
void *forward_run(void *server);
/* Finds the other replicas. Then, when the ops are as they shall be sent, a copy of them, which
 * forward_queue() (under the lock) gives to the forwarder. */
int forward_prepare(struct job *job);
int forward_snapshot(struct job *job);
void forward_queue(struct data_server *s, struct job *job);
/* repair.c */
void *repair_run(void *server);
/* A record was found damaged: it shall be healed. Any thread. */
void repair_bad(struct data_server *s, uint32_t domain, const struct fp *fp);
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
