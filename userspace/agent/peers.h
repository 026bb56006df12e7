/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * This host's peers: the connections to them, what goes over these, and the file that remembers
 * them. What is asked of whom is decided in links.h.
 *
 *   peers.c       connections, blocks, filters
 *   peer_nodes.c  recipe nodes
 *   peer_file.c   the file
 *
 * Everything that comes is verified here before links.c hears of it. All belongs to one thread,
 * the getter's.
 */
#ifndef VMDEDUP_AGENT_PEERS_H
#define VMDEDUP_AGENT_PEERS_H

#include "agent/links.h"
#include "base/error.h"
#include "net/net.h"
#include "proto/recipe.h"

struct peers;

struct peers_params {
	struct net_ctx *net;
	const struct peer_address *self; /* NULL: this host serves no peers */
	const char *path;		 /* of the file; NULL: none */
	uint64_t filter_bytes;		 /* an hour, received; 0: filters are not exchanged */
	/* The data servers' side of struct source_ops, and its end; see there. */
	void (*ask_data)(void *ctx, uint64_t id, const struct fp *fp, bool serve);
	void (*done)(void *ctx, void *arg, int r, enum source_kind from, const void *data,
		     size_t len);
	void *ctx;
};

struct peers *peers_new(const struct peers_params *params, struct error *err);
void peers_free(struct peers *p);
struct links *peers_links(struct peers *p);
/* Blocks are verified with @hasher (the caller's) and have 1 << @block_shift bytes at most. */
void peers_set_hasher(struct peers *p, struct fp_hasher *hasher, unsigned int block_shift);

/* From within ->done of a block that a peer sent: as cluster_take(). */
struct bytes *peers_take(struct peers *p, const void *data, size_t len);

/* A recipe node from any peer, verified. @done runs once, later: 0, or -ENOENT: nobody has it.
 * -ENOMEM. */
int peers_get_node(struct peers *p, const struct fp *hash,
		   void (*done)(void *arg, int r, const void *data, size_t len), void *arg);

/* ---- the thread's loop ---- */
size_t peers_fds(struct peers *p, int *fds, size_t max);
/* Handles answers and times, then sends what is queued. */
void peers_run(struct peers *p);
uint64_t peers_next_ns(struct peers *p);

#endif
