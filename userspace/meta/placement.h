/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which servers hold which shards: a pure function of servers and of what is placed already. */
#ifndef VMDEDUP_META_PLACEMENT_H
#define VMDEDUP_META_PLACEMENT_H

#include <stdbool.h>
#include "meta/core.h"

struct placement_server {
	uint32_t id; /* from 1 */
	uint64_t capacity;
	uint64_t room;	/* bytes that more replicas may take */
	bool takes;	/* may be given places */
	bool leaves;	/* draining or out: its places go elsewhere */
	char host[META_MAX_TEXT + 1];
	char rack[META_MAX_TEXT + 1];
};

struct placement_row {
	uint32_t server; /* 0: an empty place */
	enum replica_state state;
};

struct placement {
	unsigned int replicas;
	unsigned int moves;   /* shards with blocks that may be set in motion; counts down */
	uint64_t shard_bytes; /* what a replica of a shard with blocks takes, about */
	size_t nr_servers;
	struct placement_server servers[META_MAX_SERVERS]; /* by ascending id */
	struct placement_row shards[NR_SHARDS][PROTO_MAX_PLACES];
	bool empty[NR_SHARDS]; /* holds no block: costs nothing to move */
	bool changed[NR_SHARDS][PROTO_MAX_PLACES]; /* out */
	unsigned int unplaced; /* out: replicas that no server may hold */
};

/*
 * Gives each shard its replicas, each on the server that is furthest below its share by capacity and
 * has room, never two of one host or of one named rack in a shard. Then moves places from servers
 * that leave, and from servers above their share to servers below, as few as make it even but for a
 * fiftieth. A place
 * of an empty shard changes hands at once. A replica that has blocks becomes `leaving`, and the new
 * one beside it is stale; at most @moves of these, and none in a shard where something moves
 * already. Returns how many places have changed.
 */
unsigned int placement_fill(struct placement *p);
/* NULL: there is no such server; 0 is none. */
const struct placement_server *placement_find(const struct placement *p, uint32_t id);
/* Replicas of a shard that count: not leaving, and not on a server that leaves. */
unsigned int placement_holders(const struct placement *p, unsigned int shard);

#endif
