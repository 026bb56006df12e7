/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a block comes from: the choice among peers and data servers. Pure: it knows neither sockets
 * nor threads, and is driven through a table of operations like the agent's core.
 *
 * A block is asked of at most three peers whose filters say yes, one after the other, chosen at
 * random weighted by load, those of this host's rack before others that are no faster, else of its data
 * server. When a peer is late and not more than
 * one request in twenty was hedged, the data server is asked beside it. A data server (or a busy
 * peer) may answer with the names of peers that asked before; these are asked first then, and the
 * data server again when they fail. A peer that has the block on its way says so, and is asked
 * again a little later, for a bounded time; one that was named is asked to wait with its answer until
 * the block has come there. When data servers do not answer, any peer will do.
 *
 * A peer that sends what does not match the fingerprint is a liar: never asked again. One that does
 * not answer is left alone for a while, longer each time. What any of them does costs time only: the
 * caller verifies every byte before it says that a block has come.
 *
 * Bounds: SOURCES_MAX_PEERS peers; PEER_MAX_BLOCKS blocks asked of one at a time; the caller bounds
 * the gets. One thread.
 */
#ifndef VMDEDUP_AGENT_SOURCES_H
#define VMDEDUP_AGENT_SOURCES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "agent/filter_table.h"
#include "base/fingerprint.h"
#include "proto/peer_address.h"

#define SOURCES_MAX_PEERS 64
#define PEER_MAX_BLOCKS	  64 /* asked of one peer at a time */
#define PEER_PROBES	  3
#define PEER_HOPS	  4  /* redirects of one block */

enum source_kind { SOURCE_DATA, SOURCE_PEER };

struct source_ops {
	uint64_t (*now_ns)(void *ctx);
	uint64_t (*random)(void *ctx);
	/* Answered later, exactly once, by sources_peer_answer(). @wait_ms: when it is on its way there,
	 * its answer may wait for it for so long. */
	void (*ask_peer)(void *ctx, unsigned int peer, uint64_t id, const struct fp *fp,
			 unsigned int wait_ms);
	/* Answered later, once, by sources_data_answer() or sources_data_redirect(). */
	void (*ask_data)(void *ctx, uint64_t id, const struct fp *fp, bool serve);
	/* The get has ended. @data is verified, and good during the call. */
	void (*done)(void *ctx, void *arg, int r, enum source_kind from, const void *data,
		     size_t len);
	/* The number stands for another peer from now on, or for none. */
	void (*peer_gone)(void *ctx, unsigned int peer);
};

enum source_peer_state { PEER_NONE, PEER_NEW, PEER_OK, PEER_SILENT, PEER_LIAR };

struct source_peer {
	enum source_peer_state state;
	struct peer_address address;
	bool suggested;	     /* one of the set that filters are exchanged with */
	bool reported;	     /* a liar that the meta server has been told of */
	unsigned int asking; /* blocks now */
	unsigned int fails;  /* in a row */
	uint64_t until_ns;   /* SILENT: left alone until then */
	uint64_t used_ns;
	uint64_t latency_ns; /* of a block, moving average; 0: none yet */
	uint64_t asked, served, bytes, not_here, busy, failed, lies, filter_yes, filter_false;
};

struct sources_stats {
	uint64_t gets;	    /* ended with a block */
	uint64_t from_peer, from_data;
	uint64_t peer_gets; /* blocks that some peer was asked for */
	uint64_t hedges;
	uint64_t redirects; /* from data servers and peers */
	uint64_t on_way;    /* answers that a block is on its way there */
};

struct sources;
/* @filters: looked up in, column = number of the peer; the caller's. NULL: no memory. */
struct sources *sources_new(const struct source_ops *ops, void *ctx, struct filter_table *filters);
void sources_free(struct sources *s);
void sources_cancel(struct sources *s); /* gets that are under way end with -ECANCELED */

/* ---- peers ---- */
/* This host itself, which is no peer of its own. */
void sources_set_self(struct sources *s, const struct peer_address *self);
/* The number of a peer, which is added when it is not known; the one that was used longest ago
 * gives way. -ENOSPC: all are busy, liars or this host itself. */
int sources_peer(struct sources *s, const struct peer_address *a);
/* Those at @endpoint, with whatever key, as bits. */
uint64_t sources_peers_at(struct sources *s, const char *endpoint);
/* NULL: none has that number. The caller may change ->suggested and ->reported. */
struct source_peer *sources_peer_at(struct sources *s, unsigned int peer);
/* An exchange that is no block (a filter, a node) went so. */
void sources_peer_heard(struct sources *s, unsigned int peer, bool answered);
/* Its connection is gone: nobody waits for its answers any more, which may come all the same. */
void sources_peer_lost(struct sources *s, unsigned int peer);
/* It was a liar in an earlier life of this process. */
void sources_peer_is_liar(struct sources *s, unsigned int peer);
bool sources_peer_usable(struct sources *s, unsigned int peer);

/* ---- blocks ---- */
/* -ENOMEM. ->done() is not called from inside. */
int sources_get(struct sources *s, const struct fp *fp, void *arg);
/* 0 and the block; -ENOENT: not there; -EINPROGRESS: on its way there; -EBUSY; -EREMOTE: ask @named;
 * -EBADMSG: what came does not match; anything else: no answer. */
void sources_peer_answer(struct sources *s, unsigned int peer, uint64_t id, int r, const void *data,
			 size_t len, const struct peer_address *named, size_t nr_named);
void sources_data_answer(struct sources *s, uint64_t id, int r, const void *data, size_t len);
void sources_data_redirect(struct sources *s, uint64_t id, const struct peer_address *named,
			   size_t nr_named);

void sources_tick(struct sources *s);
uint64_t sources_next_ns(struct sources *s); /* UINT64_MAX: not before something happens */
void sources_stats(const struct sources *s, struct sources_stats *stats);

#endif
