/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The meta server, to be run by vmdedup-meta or embedded in the agent and the command. */
#ifndef VMDEDUP_META_SERVER_H
#define VMDEDUP_META_SERVER_H

#include <stdbool.h>
#include "base/error.h"
#include "base/fingerprint.h"
#include "net/net.h"

struct meta_init {
	const char *name;	 /* of the cluster */
	enum fp_algorithm algorithm;
	unsigned int block_shift;
	unsigned int replicas;	 /* 1 to 4 */
	unsigned int min_copies; /* 1 to replicas */
};

/* Creates the store (path of a SQLite file; its folder is made when only that is missing).
 * -EEXIST when a cluster is there already. */
int meta_store_init(const char *store, const struct meta_init *init, struct error *err);

struct meta_server;
/* -ENOENT: no cluster there; -EPROTONOSUPPORT: newer schema; -EBUSY: another server has it. */
struct meta_server *meta_server_open(struct net_ctx *net, const char *store, struct error *err);
/* Looks after data servers (governor.h) from meta_server_run() on. @shared: other processes may have
 * the store open, too: the one with the lease does it. */
int meta_server_govern(struct meta_server *s, bool shared, struct error *err);
int meta_server_bind(struct meta_server *s, const char *endpoint, struct error *err);
const char *meta_server_endpoint(struct meta_server *s, size_t n); /* as bound; NULL: no such */
/* Runs @ready on the server's thread when @fd is readable. Before meta_server_run(). */
int meta_server_watch(struct meta_server *s, int fd, void (*ready)(void *arg), void *arg);
int meta_server_run(struct meta_server *s, struct error *err); /* one thread, until stop */
void meta_server_stop(struct meta_server *s);		       /* any thread */
void meta_server_close(struct meta_server *s);		       /* NULL is fine */

#endif
