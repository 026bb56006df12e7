/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Epochs and members as the open transaction sees them, read once for each version of the map. The
 * version is read in every transaction, so that a change by another process is noticed; whatever
 * undoes changes calls members_forget().
 */
#ifndef VMDEDUP_META_MEMBERS_H
#define VMDEDUP_META_MEMBERS_H

#include "meta/core.h"

struct member {
	struct uuid disk;
	uint64_t incarnation;
	uint8_t shards[NR_SHARDS / 8]; /* that it holds as a current replica */
};

/* A replica, whatever the state of its server. */
struct member_place {
	uint32_t server; /* 0: no more places */
	enum replica_state state;
	struct uuid disk;
	uint64_t incarnation;
};

struct members {
	uint64_t map_version;
	uint64_t epochs[NR_SHARDS];
	size_t nr;
	struct member *members; /* of servers that are up, suspect or draining */
	struct member_place places[NR_SHARDS][PROTO_MAX_PLACES];
};

int members_get(struct meta *m, const struct members **out, struct error *err);
void members_forget(struct meta *m);
/* The disk vouches for @shard: a current replica of it, in that incarnation, and reachable. */
bool members_has(const struct members *ms, unsigned int shard, const uint8_t disk[16],
		 uint64_t incarnation);

/* A receipt of @shard counts: current replicas that are not among its @nr disks have missed a write
 * and are stale from now on; stale ones are noted to have missed one. @uuids and @incarnations are
 * the receipt's. Members are as new as the map when this returns. */
struct member_disk {
	uint8_t uuid[16];
	uint64_t incarnation;
};
int members_missed(struct meta *m, unsigned int shard, const struct member_disk *disks, size_t nr,
		   struct error *err);

#endif
