/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For tests of the client library: servers that misbehave on demand. A meta server and two data
 * servers of few lines, on sockets, whose answers each test scripts.
 */
#ifndef VMDEDUP_TESTS_CLUSTER_FAKES_H
#define VMDEDUP_TESTS_CLUSTER_FAKES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "lib/cluster.h"

#define FAKES_BLOCK	 4096
#define FAKES_STORED	 4096
#define FAKES_TIMEOUT_MS 30000

struct fake_data {
	struct net_server *net;
	pthread_t thread;
	struct fp fps[FAKES_STORED];
	uint8_t *coded[FAKES_STORED];
	size_t len[FAKES_STORED];
	Vmdedup__Codec codec[FAKES_STORED];
	atomic_size_t count;
	atomic_int puts, touches, gets;
	atomic_int corrupt;	  /* gets answer with a flipped bit */
	atomic_int forgets;	  /* touch and get find nothing */
	atomic_int full;	  /* ENOSPC after so many blocks; 0: never */
	atomic_uint map_version;  /* requests with an older one get ESTALE; 0: any */
	struct fakes *all;
};

struct fakes {
	struct net_ctx *ctx;
	struct fake_data data[2];
	struct net_server *meta;
	pthread_t meta_thread;
	atomic_uint map_version;
	atomic_int reports;	/* of data servers found wanting */
	atomic_int shard_swap;	/* the second data server stands first in the map */
	atomic_int lone;	/* only one replica */
	atomic_int lose_answers; /* so many mutations are done and not answered */
	atomic_int forget_sessions; /* so many sessions are forgotten, each when its next mutation comes */
	atomic_int session; /* the one that is known */
	/* The results of mutations, by sequence. */
	atomic_uint done_sequence;
	atomic_int done_times;
	/* What the push brought. */
	struct fp receipts[FAKES_STORED];
	size_t nr_receipts;
	atomic_int leaves, nodes, unvouched, commits, aborts;
	atomic_int refuse_receipts; /* so many commits answer EAGAIN with a redo list */
	struct fp refused;
	bool clean; /* the test has come to its end */
};

/* Of a cmocka test. */
int fakes_start(void **state);
int fakes_stop(void **state);
void *fakes_serve(void *net); /* the thread of a server */
struct cluster *fakes_open(struct fakes *f);

/* Content by number, and its fingerprint. */
void fakes_block(uint8_t block[FAKES_BLOCK], unsigned int seed, bool compressible);
struct fp fakes_fp(struct cluster *c, const uint8_t *block);
/* A block that a data server has, as it keeps it, or raw. */
void fakes_store(struct fake_data *d, const uint8_t *fp, Vmdedup__Codec codec, const void *coded,
		 size_t len);
void fakes_put(struct fake_data *d, const struct fp *fp, const uint8_t *block);

/* For cluster_get(): @arg is an array of these. */
struct fakes_got {
	int calls, r;
	size_t len;
	uint8_t data[FAKES_BLOCK];
};
void fakes_got(void *arg, size_t index, int r, const void *data, size_t len);

#endif
