/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What network.c, which queues requests and answers them, shares with network_ask.c, which asks. */
#ifndef VMDEDUP_AGENT_NETWORK_IMPL_H
#define VMDEDUP_AGENT_NETWORK_IMPL_H

#include <pthread.h>
#include "agent/network.h"

#define META_THREADS	2
#define META_TIMEOUT_MS 3000

enum request_kind {
	REQUEST_RESOLVE,
	REQUEST_IMAGE,
	REQUEST_LEASE,
	REQUEST_GET,
	REQUEST_ANNOUNCE,
	REQUEST_TRACE_GET,
	REQUEST_TRACE_PUT,
};

struct request {
	struct work work; /* ->done answers the core */
	struct network *network;
	struct request *next;
	enum request_kind kind;
	uint64_t id;
	int r;
	/* RESOLVE, TRACE_* */
	struct fp root;
	uint64_t size, block;
	struct fp fp;
	void *data; /* of a trace; of images for ANNOUNCE */
	size_t len;
	/* GET */
	struct getter_get get;
	/* IMAGE */
	char name[DM_DEDUP_NAME_SIZE];
	struct agent_image image;
	/* LEASE */
	struct uuid cache;
	char host[64];
	struct agent_lease lease;
};

struct request_queue {
	pthread_mutex_t lock; /* guards all of it */
	pthread_cond_t some;
	struct request *first, **last;
	bool stop;
};

struct network {
	struct net_ctx *net;
	const struct config *config;
	char *meta;
	struct loop *loop;
	struct nodes *nodes;
	struct agent *agent;
	struct request_queue asks;
	struct getter *getter;
	bool has_self;
	struct peer_address self;
	char *params_path;
	pthread_t meta_threads[META_THREADS];
	unsigned int nr_meta_threads;
	pthread_mutex_t params_lock; /* guards params and down_until */
	uint64_t down_until;	     /* the meta server has just failed to answer */
	bool have_params;
	struct cluster_params params;
};

/*
 * A question of @req's kind to the meta server, other than RESOLVE and GET; what it answers is in @req
 * then. A thread of META_THREADS, which has @c. What went wrong is logged.
 */
int network_ask(struct network *n, struct cluster *c, struct request *req);

#endif
