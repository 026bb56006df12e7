/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lumps: large append-only files, each of one shard, named lumps/SSS-NNNNNNNN.lump (shard and
 * number in hex). The set knows every lump of the disk and keeps a bounded number of them open.
 *
 * Threads: one writer changes the set and appends; any thread may read through
 * lumps_read(). The lock guards the set, the descriptors and the pins.
 */
#ifndef VMDEDUP_DATA_LUMP_H
#define VMDEDUP_DATA_LUMP_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"
#include "base/uuid.h"
#include "data/disk.h"
#include "data/record.h"

#define LUMP_SIZE_DEFAULT (256ULL << 20)
#define LUMP_SIZE_MAX	  (1ULL << 31) /* offsets are 32 bits */
#define LUMPS_MAX_FDS	  512

struct lumps;

struct lump {
	uint16_t shard;
	uint32_t number;
	/* As committed to the index: */
	uint64_t end;	       /* every byte before is durable and known to the index */
	uint64_t live_bytes;   /* of records that the index names */
	uint32_t live_records;
	bool sealed;	       /* nothing is appended any more */
	bool removing;	       /* nothing live, and the file may be gone */
	bool unmovable;	       /* compaction found records that it cannot read */
	bool unreadable;       /* a scan found sectors that cannot be read */
	/* The writer's, of the commit under way; see lumps_settle(): */
	bool touched;
	bool created;
	uint64_t new_end;
	uint64_t new_live_bytes;
	uint32_t new_live_records;
	/* The set's, under its lock: */
	int fd;
	unsigned int pins;
	bool removed;
	struct lump *lru_prev, *lru_next; /* of the open ones */
	struct lump *next_touched;
};

/* @dirfd: the store's folder; "lumps" in it must exist. @disk is kept. */
struct lumps *lumps_new(const struct disk *disk, int dirfd, const struct uuid *uuid,
			unsigned int max_fds, struct error *err);
void lumps_free(struct lumps *ls);

/* A known lump, for rows of the index and for files that were found. NULL: no memory. */
struct lump *lumps_add(struct lumps *ls, uint16_t shard, uint32_t number);
struct lump *lumps_find(struct lumps *ls, uint16_t shard, uint32_t number);
/* In order of number; NULL: no more. */
struct lump *lumps_nth(struct lumps *ls, uint16_t shard, size_t n);
struct lump *lumps_last(struct lumps *ls, uint16_t shard);
/* Calls @found for each lump file in the folder, until it returns non-zero. */
int lumps_list(struct lumps *ls, int (*found)(void *arg, uint16_t shard, uint32_t number),
	       void *arg, struct error *err);

/* A new lump with its header written (not synced), touched. */
int lumps_create(struct lumps *ls, uint16_t shard, uint32_t number, uint64_t sequence,
		 struct lump **lump);
/* Marks it as part of the commit under way. */
void lumps_touch(struct lumps *ls, struct lump *lump);
struct lump *lumps_touched(struct lumps *ls); /* a list through next_touched */
/* Append at new_end; on an error nothing counts as appended. Changes @iov. */
int lumps_append(struct lumps *ls, struct lump *lump, struct iovec *iov, size_t count,
		 uint64_t bytes);
/* Makes what was appended to the touched lumps durable, with their names. */
int lumps_sync(struct lumps *ls);
/* Ends the commit: @committed: new_* become the lump's state; else what was appended is cut
 * off again, and a lump that cannot be cut is sealed. */
void lumps_settle(struct lumps *ls, bool committed);

/* Any thread. -ENOENT: no such lump; -EIO: it ends before. */
int lumps_read(struct lumps *ls, uint16_t shard, uint32_t number, uint64_t offset, void *buf,
	       size_t len);
/* The writer's: size of the file; cut; a descriptor to scan with (unpin it). */
int lumps_pin(struct lumps *ls, struct lump *lump, int *fd);
void lumps_unpin(struct lumps *ls, struct lump *lump);
int lumps_file_size(struct lumps *ls, struct lump *lump, uint64_t *size);
int lumps_truncate(struct lumps *ls, struct lump *lump, uint64_t len);
int lumps_sync_names(struct lumps *ls); /* creations and removals */
/* Forgets the lump and removes its file. Readers that have it open finish. */
int lumps_remove(struct lumps *ls, struct lump *lump);

/* The committed end of a lump that was found, before anything is appended to it. */
void lumps_set_end(struct lumps *ls, struct lump *lump, uint64_t end);
uint64_t lumps_bytes(struct lumps *ls); /* sum of the ends: what lumps take on disk; any thread */
size_t lumps_count(struct lumps *ls);
size_t lumps_open_fds(struct lumps *ls);

#endif
