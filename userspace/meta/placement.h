/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which servers hold which shards: a pure function of servers and of what is placed already. */
#ifndef VMDEDUP_META_PLACEMENT_H
#define VMDEDUP_META_PLACEMENT_H

#include <stdbool.h>
#include "meta/core.h"

#define PLACEMENT_MAX_REPLICAS 4

struct placement_server {
	uint32_t id; /* from 1 */
	uint64_t capacity;
	char host[META_MAX_TEXT + 1];
	char rack[META_MAX_TEXT + 1];
};

struct placement {
	unsigned int replicas;
	size_t nr_servers;
	struct placement_server servers[META_MAX_SERVERS];
	uint32_t shards[NR_SHARDS][PLACEMENT_MAX_REPLICAS]; /* server ids; 0: an empty place */
	bool empty[NR_SHARDS]; /* holds no block: costs nothing to move */
	bool changed[NR_SHARDS][PLACEMENT_MAX_REPLICAS];    /* out */
};

/*
 * Fills empty places, each with the server that is furthest below its share by capacity, never two
 * of one host or of one named rack in a shard; a place without such a server stays empty. Then
 * moves places of shards that hold no block from servers above their share to servers below, as few
 * as make it even. Returns how many places have changed.
 */
unsigned int placement_fill(struct placement *p);

#endif
