/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * This host's links to its peers, as far as no socket is concerned: which blocks go into one
 * message, who has been quiet for too long, with whom filters are exchanged and when, and who is to
 * be believed. Pure, like sources.c, which it owns: driven by peers.c and by simulations.
 *
 *   links.c            blocks, and the connections' fate
 *   peer_set.c         whom filters are exchanged with
 *   filter_exchange.c  filters
 *
 * All of it belongs to one thread. The number of a peer is that of sources.h.
 */
#ifndef VMDEDUP_AGENT_LINKS_H
#define VMDEDUP_AGENT_LINKS_H

#include "agent/sources.h"

#define PEERS_SET	    16		  /* with whom filters are exchanged */
#define PEERS_FILTER_MEMORY (64U << 20)	  /* of received filters; it shrinks the set */
#define PEERS_FILTER_MS	    5000	  /* between two exchanges with a peer */
#define LINK_BATCH_BYTES    (1U << 20)	  /* of blocks in one message */
#define LINK_BATCH_MAX	    32
#define LINK_QUIET_MS	    3000 /* without a word; then what it was asked for is had elsewhere */
#define LINK_CONNECT_MS	    300	 /* for a connection, before the same */

struct link_ask {
	uint64_t id;
	struct fp fp;
	unsigned int wait_ms; /* as in sources.h. Such a one is alone in its message */
};

struct link_ops {
	uint64_t (*now_ns)(void *ctx);
	uint64_t (*random)(void *ctx);
	/* One message. Answered later by links_answered() and a links_block() for each ask. */
	void (*send_blocks)(void *ctx, unsigned int peer, const struct link_ask *asks,
			    unsigned int nr);
	/* What is new since, of at most @max bytes. Answered later by links_filter(). False: it
	 * could not be sent. */
	bool (*send_filter)(void *ctx, unsigned int peer, uint64_t generation, uint64_t additions,
			    uint64_t max);
	/* The data servers' side of struct source_ops, and its end; see there. */
	void (*ask_data)(void *ctx, uint64_t id, const struct fp *fp, bool serve);
	void (*done)(void *ctx, void *arg, int r, enum source_kind from, const void *data,
		     size_t len);
	/* The number stands for another peer from now on, or for none: its connection ends. */
	void (*gone)(void *ctx, unsigned int peer);
	/* The key is one of this cluster's hosts. */
	bool (*knows_key)(void *ctx, const struct peer_address *a);
};

/* What a peer answers when it is asked for its filter. */
struct link_filter {
	uint64_t generation, additions, blocks;
	unsigned int shift, hashes;
	bool full;
	uint64_t too_large; /* bytes: it would have been more than was wanted; else 0 */
	const void *packed;
	size_t packed_len;
	const struct peer_address *others;
	size_t nr_others;
};

struct links;
/* @self: NULL: this host serves no peers. @filter_bytes: what filters may cost an hour, in bytes
 * received; 0: none are exchanged. NULL: no memory. */
struct links *links_new(const struct link_ops *ops, void *ctx, const struct peer_address *self,
			uint64_t filter_bytes);
void links_free(struct links *l);
struct sources *links_sources(struct links *l);

/* ---- blocks ---- */
void links_set_block_shift(struct links *l, unsigned int block_shift);
/* A message is answered, or given up (@heard false). Then links_block() for each block of it. */
void links_answered(struct links *l, unsigned int peer, bool heard);
/* As sources_peer_answer(); @data has matched its fingerprint. */
void links_block(struct links *l, unsigned int peer, uint64_t id, int r, const void *data,
		 size_t len, const struct peer_address *named, size_t nr_named);

/* ---- the set (peer_set.c) ---- */
/* The meta server suggests these. */
void links_suggest(struct links *l, const struct peer_address *list, size_t nr);
/* One that asks for our filter, or that another peer knows: taken while there are few, if its key is
 * that of a host of this cluster. */
void links_met(struct links *l, const struct peer_address *a);
/* Of the set in an earlier life of this process. */
void links_remember(struct links *l, const struct peer_address *a, bool liar);
/* It is to be asked: this address, with this key, is what the meta server says, or the key is that of
 * a host of this cluster and the meta server says nothing else of the address. */
bool links_vouched(struct links *l, const struct peer_address *a);
/* Some of the set that answer. */
size_t links_some(struct links *l, struct peer_address *some, size_t max);
/* Liars that were not reported yet; at most @max, whose endpoints are copied. */
size_t links_liars(struct links *l, char (*endpoints)[PEER_ENDPOINT_MAX], size_t max);
/* The set, or who lies, has changed since this was asked last. */
bool links_changed(struct links *l);

/* ---- filters (filter_exchange.c) ---- */
/* @life: links_life() when it was asked. @f: NULL: no answer, or none that helps (@r says which: 0:
 * the peer answered). */
void links_filter(struct links *l, unsigned int peer, unsigned int life, int r,
		  const struct link_filter *f);
unsigned int links_life(struct links *l, unsigned int peer);

/* ---- time ---- */
/* Has the connection of @peer looked at: called for each that there is, before links_run(). */
void links_connection(struct links *l, unsigned int peer, bool connected);
void links_run(struct links *l);
/* Those whose connection matters now, as bits: the others' may be left unlooked at. */
uint64_t links_watched(struct links *l);
uint64_t links_next_ns(struct links *l); /* UINT64_MAX: not before something happens */

/* ---- for people ---- */
struct peers_info {
	struct source_peer peer;
	uint64_t filter_age_ms; /* UINT64_MAX: none */
	uint64_t filter_blocks;
	unsigned int filter_shift;
};
struct peers_totals {
	struct sources_stats sources;
	uint64_t filter_bytes_in, filter_budget;
	size_t filter_memory;
	unsigned int max_peers;
};
size_t links_list(struct links *l, struct peers_info *list, size_t max);
void links_totals(struct links *l, struct peers_totals *totals);

#endif
