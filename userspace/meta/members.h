/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Epochs and members as the open transaction sees them, read once for each version of the map. The
 * version is read in every transaction, so that a change by another process is noticed; whatever
 * undoes changes calls members_forget().
 */
#ifndef VMDEDUP_META_MEMBERS_H
#define VMDEDUP_META_MEMBERS_H

#include "meta/core.h"

/* A replica, whatever the state of its server. */
struct member_place {
	uint32_t server; /* 0: no more places */
	enum replica_state state;
	bool reachable;	 /* the server is up, suspect or draining */
	struct uuid disk;
	uint64_t incarnation;
	uint64_t since;	 /* receipts of older versions of the map say nothing about it */
};

struct members {
	uint64_t map_version;
	uint64_t epochs[NR_SHARDS];
	struct member_place places[NR_SHARDS][PROTO_MAX_PLACES];
};

int members_get(struct meta *m, const struct members **out, struct error *err);
void members_forget(struct meta *m);
/* A disk that a receipt names: what it vouched for by map version @version. */
struct member_disk {
	uint8_t uuid[16];
	uint64_t incarnation;
	uint64_t version;
};
/* The disk vouches for @shard: a current replica of it, in that incarnation and ever since that
 * version, and reachable. */
bool members_has(const struct members *ms, unsigned int shard, const struct member_disk *disk);

/* The version at which the youngest of the places that these disks vouch for came to be what it is. */
uint64_t members_since(const struct members *ms, unsigned int shard,
		       const struct member_disk *disks, size_t nr);

/* A receipt of @shard counts: current replicas that are not among its @nr disks have missed a write
 * and are stale from now on; stale ones are noted to have missed one. Members are as new as the map
 * when this returns. */
int members_missed(struct meta *m, unsigned int shard, const struct member_disk *disks, size_t nr,
		   struct error *err);
/* Nobody better is left: the stale replica of @shard on @server counts from now on, as one that has missed
 * writes: it makes way as soon as another has reconciled with it. Open pushes ask again for what the
 * others vouched for. Members are as new as the map when this returns. */
int members_make_do(struct meta *m, unsigned int shard, uint32_t server, struct error *err);

#endif
