/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What links.c, peer_set.c and filter_exchange.c share. */
#ifndef VMDEDUP_AGENT_LINKS_IMPL_H
#define VMDEDUP_AGENT_LINKS_IMPL_H

#include "agent/budget.h"
#include "agent/links.h"

#define MSEC 1000000ULL

/* Its number is the peer's in sources.c, and the column of its filter. */
struct link {
	unsigned int life; /* goes up when the number stands for another peer */
	struct link_ask queue[PEER_MAX_BLOCKS];
	unsigned int nr_queued;
	unsigned int messages;	 /* not answered yet */
	uint64_t heard_ns;	 /* or when the first of them went out */
	uint64_t unconnected_ns; /* since when; 0: it is connected */
	bool vouched;		 /* by the meta server: this address, this key */
	/* the filter */
	bool filter_asked, has_filter;
	uint64_t generation, additions, filter_blocks, filter_ns, next_filter_ns;
	uint64_t promised; /* bytes of the budget, until the answer */
	uint64_t wanted;   /* bytes that its answer needs, as far as known */
	unsigned int filter_shift;
};

struct links {
	const struct link_ops *ops;
	void *ctx;
	bool has_self;
	struct sources *sources;
	struct filter_table *table;
	unsigned int block_shift;
	struct link links[SOURCES_MAX_PEERS];
	uint64_t queued;  /* bits: links with something to send */
	uint64_t watched; /* and those that may have something under way, or no connection */
	struct budget budget; /* of what filters bring */
	uint64_t filter_bytes_in;
	bool changed;
};

static inline uint64_t links_now(struct links *l)
{
	return l->ops->now_ns(l->ctx);
}

/* peer_set.c */
unsigned int links_set_size(const struct links *l);

/* filter_exchange.c */
void links_exchange(struct links *l);
uint64_t links_exchange_ns(struct links *l);
/* What is known of a peer's filter is forgotten. */
void links_drop_filter(struct links *l, unsigned int peer);

#endif
