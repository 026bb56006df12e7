/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What peers.c, peer_nodes.c and peer_file.c share. */
#ifndef VMDEDUP_AGENT_PEERS_IMPL_H
#define VMDEDUP_AGENT_PEERS_IMPL_H

#include "agent/peers.h"

struct peers {
	struct peers_params params;
	struct peer_address self;
	char *path;
	struct links *links;
	struct fp_hasher *hasher;
	unsigned int block_shift;
	struct net_client *clients[SOURCES_MAX_PEERS]; /* by the number of the peer */
	struct net_client *gone[SOURCES_MAX_PEERS];    /* closed when no callback runs */
	size_t nr_gone;
	struct net_reply *giving; /* whose block is being handed on, or NULL */
	size_t giving_frame;
	bool closing, changed;
	uint64_t save_ns;
};

/* The connection to a peer, made when there is none. NULL: it cannot be. */
struct net_client *peers_client(struct peers *p, unsigned int peer);
uint64_t peers_random(void);

/* peer_file.c */
void peers_save(struct peers *p);
void peers_load(struct peers *p);

#endif
