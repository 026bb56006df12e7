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

struct members {
	uint64_t map_version;
	uint64_t epochs[NR_SHARDS];
	size_t nr;
	struct member *members; /* of servers that are up, suspect or draining */
};

int members_get(struct meta *m, const struct members **out, struct error *err);
void members_forget(struct meta *m);
/* The disk vouches for @shard: a current replica of it, in that incarnation, and reachable. */
bool members_has(const struct members *ms, unsigned int shard, const uint8_t disk[16],
		 uint64_t incarnation);

#endif
