/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * This host's peers: the connections to them, what is asked over these (blocks, filters, recipe
 * nodes), and the file that remembers them. Whom to ask for a block is decided in sources.c.
 *
 * Everything that comes is verified here before sources.c hears of it. All belongs to one thread,
 * the getter's.
 */
#ifndef VMDEDUP_AGENT_PEERS_H
#define VMDEDUP_AGENT_PEERS_H

#include "agent/sources.h"
#include "base/error.h"
#include "net/net.h"
#include "proto/recipe.h"

#define PEERS_SET	    16		  /* with whom filters are exchanged */
#define PEERS_FILTER_MEMORY (64U << 20)	  /* of received filters; it shrinks the set */
#define PEERS_FILTER_MS	    5000	  /* between two exchanges with a peer */

struct peers;

struct peers_params {
	struct net_ctx *net;
	const struct peer_address *self; /* NULL: this host serves no peers */
	const char *path;		 /* of the file; NULL: none */
	/* The data servers' side of struct source_ops, and its end; see there. */
	void (*ask_data)(void *ctx, uint64_t id, const struct fp *fp, bool serve);
	void (*done)(void *ctx, void *arg, int r, enum source_kind from, const void *data,
		     size_t len);
	void *ctx;
};

struct peers *peers_new(const struct peers_params *params, struct error *err);
void peers_free(struct peers *p);
struct sources *peers_sources(struct peers *p);
/* Blocks are verified with @hasher (the caller's) and have 1 << @block_shift bytes at most. */
void peers_set_hasher(struct peers *p, struct fp_hasher *hasher, unsigned int block_shift);

/* The meta server suggests these. */
void peers_suggest(struct peers *p, const struct peer_address *list, size_t nr);
/* One that asks for our filter, or that another peer knows: taken while there are few. */
void peers_met(struct peers *p, const struct peer_address *a);
/* Some of the set that answer. */
size_t peers_some(struct peers *p, struct peer_address *some, size_t max);
/* Liars that were not reported yet; at most @max, whose endpoints are copied. */
size_t peers_liars(struct peers *p, char (*endpoints)[PEER_ENDPOINT_MAX], size_t max);

/* A recipe node from any peer, verified. @done runs once, later: 0, or -ENOENT: nobody has it.
 * -ENOMEM. */
int peers_get_node(struct peers *p, const struct fp *hash,
		   void (*done)(void *arg, int r, const void *data, size_t len), void *arg);

/* ---- the thread's loop ---- */
size_t peers_fds(struct peers *p, int *fds, size_t max);
/* Handles answers and times, then sends what is queued. */
void peers_run(struct peers *p);
uint64_t peers_next_ns(struct peers *p);

/* ---- for people ---- */
struct peers_info {
	struct source_peer peer;
	uint64_t filter_age_ms; /* UINT64_MAX: none */
	uint64_t filter_blocks;
	unsigned int filter_shift;
};
struct peers_totals {
	struct sources_stats sources;
	uint64_t filter_bytes_in;
	size_t filter_memory;
	unsigned int max_peers;
};
size_t peers_list(struct peers *p, struct peers_info *list, size_t max);
void peers_totals(struct peers *p, struct peers_totals *totals);

#endif
