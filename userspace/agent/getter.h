/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The thread that gets blocks: from peers (peers.h) and from data servers (lib/cluster.h), as sources.h
 * decides. Its callers are other threads; it answers on its own.
 */
#ifndef VMDEDUP_AGENT_GETTER_H
#define VMDEDUP_AGENT_GETTER_H

#include "agent/peers.h"
#include "base/config.h"
#include "lib/cluster.h"

struct getter;

/* One block that is wanted. The caller's memory, until ->done(), which runs once on the
 * getter's thread and takes over ->block (NULL: ->r says why). */
struct getter_get {
	struct getter_get *next;
	struct fp fp;
	void (*done)(struct getter_get *get);
	int r;
	enum source_kind from;
	struct bytes *block;
};

/* Who is there, for people: the same rules. */
struct getter_list {
	struct getter_list *next;
	void (*done)(struct getter_list *list);
	struct peers_totals totals;
	size_t nr;
	struct peers_info peers[SOURCES_MAX_PEERS];
};

struct getter_params {
	struct net_ctx *net;
	const struct config *config;
	const char *meta;
	const struct peer_address *self; /* NULL: no peers */
	const char *peers_path;		 /* NULL: none */
	/* The cluster was reached, or has changed. The getter's thread. */
	void (*opened)(void *ctx, const struct cluster_params *params);
	void *ctx;
};

/* All of @params outlives the getter. */
struct getter *getter_new(const struct getter_params *params, struct error *err);
void getter_stop(struct getter *g); /* what waits ends with -ECANCELED */
void getter_free(struct getter *g);

/* Any thread: */
void getter_get(struct getter *g, struct getter_get *get);
void getter_list(struct getter *g, struct getter_list *list);
void getter_suggest(struct getter *g, const struct peer_address *peers, size_t nr);
/* Some of the set, to tell other peers of. */
size_t getter_others(struct getter *g, struct peer_address *others, size_t max);
void getter_met(struct getter *g, const struct peer_address *peer); /* peers_met() */
bool getter_has_liars(struct getter *g);
size_t getter_liars(struct getter *g, char (*endpoints)[PEER_ENDPOINT_MAX], size_t max);
/* What a meta server has told, now or in an earlier life: enough to verify what peers send. */
void getter_set_params(struct getter *g, const struct cluster_params *params);
/* Whether the meta server answered just now: while it does not, it is not waited for. */
void getter_meta_answers(struct getter *g, bool answers);
/* A recipe node from a peer, verified; waits. 0, -ENOENT, -ECANCELED. */
int getter_node(struct getter *g, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len);

#endif
