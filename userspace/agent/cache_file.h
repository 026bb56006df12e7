/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A cache in a plain file: the verbs of the channel without a kernel, for tests, for swarms of
 * agents on one machine and for simulation. Slots' bytes are in the file, all else is in memory:
 * it survives a new agent in the same process (connect again), not the process.
 *
 * The functions below are the guest's side: they block as a guest's I/O would, until the agent has
 * answered. They may be called from any thread.
 */
#ifndef VMDEDUP_AGENT_CACHE_FILE_H
#define VMDEDUP_AGENT_CACHE_FILE_H

#include "agent/cache.h"
#include "base/uuid.h"

/* @path NULL: an unnamed temporary file. @size: bytes; at least 16 blocks. */
struct cache *cache_file_new(const char *path, uint64_t size, unsigned int block_shift,
			     const struct uuid *uuid, struct error *err);

/* What `dmsetup create` and `dmsetup remove` do. @flags: DM_DEDUP_VOL_READONLY, _EPHEMERAL. */
int cache_file_open(struct cache *c, const char *image, uint32_t flags, uint64_t *volume,
		    uint64_t *size);
/* A larger table is loaded: the volume takes the size that LOOKUP tells. -EBUSY: that is smaller. */
int cache_file_grow(struct cache *c, uint64_t volume);
int cache_file_close(struct cache *c, uint64_t volume);
/* Offset and length in sectors of 512 bytes' multiples. -EIO, -EROFS, -ENODEV (no such volume). */
int cache_file_read(struct cache *c, uint64_t volume, uint64_t offset, void *buf, size_t len);
int cache_file_write(struct cache *c, uint64_t volume, uint64_t offset, const void *buf,
		     size_t len);
/* Forget CLEAN slots, so that the next reads miss. */
void cache_file_evict_all(struct cache *c);

#endif
