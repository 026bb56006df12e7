/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A data server behind a real socket, and the meta server that a test makes up for it: a thread for each. */
#ifndef DATA_HOST_H
#define DATA_HOST_H

#include <pthread.h>

#include "data/server_priv.h"
#include "net/net.h"

struct data_host {
	struct data_server *server;
	struct net_client *client;
	pthread_t thread;
};

/* On the folder @dir, which stays the caller's, of inproc://meta. Fails the test if it cannot. inproc does not
 * connect again: one that is started anew has a new client. */
void data_host_start(struct data_host *h, struct net_ctx *net, const char *dir, const char *endpoint,
		     uint64_t capacity);
void data_host_stop(struct data_host *h);

struct meta_host {
	struct net_server *server;
	pthread_t thread;
};

/* Serves inproc://meta with @ops, which get @ctx. */
void meta_host_start(struct meta_host *h, struct net_ctx *net, const struct net_server_ops *ops, void *ctx);
void meta_host_stop(struct meta_host *h);

#endif
