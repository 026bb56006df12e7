/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A disk's blocks: lumps and their index, with group commit. No sockets, no clock, no threads
 * of its own; the disk is reached through a table of functions.
 *
 * The order that makes a receipt true (invariant 4): the records of a batch are appended to
 * their lumps, the lumps are synced, then one transaction of the index names them and is
 * synced, and only then bstore_commit() returns and receipts go out. A crash
 *   - before the lumps are synced leaves tails of which any part may be missing;
 *   - before the index commits leaves whole records beyond the ends that the index knows.
 * Neither has a receipt. At the next open such a tail is scanned: whole records are named again
 * (they were verified before they were written, their CRCs say that they are what was
 * written, and a block is its fingerprint, so that one more copy can harm nothing), and what
 * follows the last whole one is cut off. The tail is synced and dropped from the page cache before it
 * is read, and the index names only what came back from the disk.
 *
 * Threads: one writer calls bstore_commit() and bstore_compact(); any thread may call
 * bstore_read(), bstore_list() and bstore_stat().
 */
#ifndef VMDEDUP_DATA_BSTORE_H
#define VMDEDUP_DATA_BSTORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"
#include "base/fingerprint.h"
#include "base/uuid.h"
#include "data/cache.h"
#include "data/disk.h"

#define STORE_FORMAT	    1
#define STORE_RESERVE_MIN   (16ULL << 20) /* bytes kept free for the index whatever is asked */

struct bstore;

struct bstore_options {
	const char *dir;
	uint64_t reserve;      /* bytes of the disk that stay free */
	uint64_t capacity;     /* bytes at most that lumps and index take; 0: the disk's */
	uint64_t lump_size;    /* 0: LUMP_SIZE_DEFAULT */
	uint64_t map_size;     /* of the index to begin with; 0: INDEX_MAP_DEFAULT */
	size_t cache_bytes;    /* of hot blocks in memory */
	unsigned int max_fds;  /* 0: LUMPS_MAX_FDS */
	const struct disk_ops *disk; /* NULL: disk_posix */
	void *disk_ctx;
};

/* -EBUSY: another process has the folder; -EPROTONOSUPPORT: made by a newer version; -EUCLEAN:
 * lumps without disk.uuid. Recovers tails, and rebuilds the index when it is lost. */
struct bstore *bstore_open(const struct bstore_options *o, struct error *err);
void bstore_close(struct bstore *st);

const struct uuid *bstore_disk(struct bstore *st);
uint64_t bstore_incarnation(struct bstore *st);
/* The cluster that the disk belongs to (null: none yet), and its first one. -EXDEV: it belongs to
 * another one. The writes are the opener's thread's. */
const struct uuid *bstore_cluster(struct bstore *st);
int bstore_bind_cluster(struct bstore *st, const struct uuid *cluster, struct error *err);
/* The last process that joined with the disk, by a UUID of its own: a copy of the disk names another
 * one than the meta server knows. Null: none yet. The writes are the opener's thread's. */
const struct uuid *bstore_session(struct bstore *st);
int bstore_set_session(struct bstore *st, const struct uuid *session, struct error *err);
/* After a rebuild epochs are too low, and nothing may be deleted before STORE_STAMP. */
bool bstore_is_unstamped(struct bstore *st);

enum bstore_op_kind {
	STORE_PUT,    /* a verified block; when it is there, only its epoch is raised */
	STORE_TOUCH,  /* raise the epoch of a block that is there; -ENOENT: it is not */
	STORE_DELETE, /* if its epoch is below; -ENOENT: not there; -EBUSY: touched since */
	STORE_DROP,   /* whatever its epoch: its shard has moved away; -ENOENT: not there */
	STORE_EPOCH,  /* raise the shard's epoch */
	STORE_STAMP,  /* the same, and every block of the shard counts as stamped with it */
	STORE_BAD,    /* the record at (lump, offset) is damaged: it counts as missing */
	STORE_MOVE,   /* compaction's: a PUT that replaces the record at (lump, offset) */
};

struct bstore_op {
	enum bstore_op_kind kind;
	uint32_t domain;
	struct fp fp;
	uint16_t shard;	      /* STORE_EPOCH, STORE_STAMP */
	uint64_t epoch;	      /* in: DELETE below this, EPOCH, STAMP; out: PUT's and TOUCH's stamp */
	const void *data;     /* PUT: as coded; the caller's until bstore_commit() returns */
	uint32_t len;
	uint32_t raw_len;
	uint8_t codec;
	uint32_t lump, offset; /* BAD, MOVE */
	int r;		      /* out: 0 or a negative errno */
	bool existed;	      /* out, PUT */
};

/* All of it is durable when this returns 0; then each op has its own result: -ENOSPC also for a TOUCH, a
 * PUT of what is there, and a DELETE, when the index may have no room for it. On an error each op has ->r
 * set and must be taken as not done; after an error of the disk the store takes no more commits (see
 * bstore_failed()): whether a sync that failed can be repeated is not known. While the disk has little
 * room this takes several transactions, in order; those before the one that failed are done. */
int bstore_commit(struct bstore *st, struct bstore_op *ops, size_t count);
int bstore_failed(struct bstore *st); /* 0, or why the store only reads; any thread */

/* 0 and *buf with a reference; -ENOENT; -EIO: the record is damaged, *bad says which and wants
 * to be given to bstore_commit() as STORE_BAD. */
int bstore_read(struct bstore *st, uint32_t domain, const struct fp *fp, struct block_buf **buf,
	       struct bstore_op *bad);

struct bstore_listed {
	struct fp fp;
	uint64_t epoch;
	bool bad; /* counts as missing */
};
/* At most @max blocks after @after (NULL: from the first), ascending. Returns how many. */
int bstore_list(struct bstore *st, uint16_t shard, uint32_t domain, const struct fp *after,
	       struct bstore_listed *out, size_t max, bool *more);

struct bstore_stat {
	uint64_t blocks, raw_bytes, stored_bytes, lump_bytes, index_bytes;
	uint64_t capacity, free; /* free: what PUT can still take */
	uint64_t sequence; /* of the last commit */
	uint64_t puts, put_dups, put_bytes, gets, get_bytes, cache_hits, commits, bad;
};
int bstore_stat(struct bstore *st, struct bstore_stat *stat);

/* One bounded step of copying live records out of a lump more than half dead (at most
 * @max_bytes), and the removal of lumps with nothing live. 1: there is more; 0: nothing to do. */
int bstore_compact(struct bstore *st, uint64_t max_bytes);

/* Where a scrub is; all zero: at the beginning of shard 0. */
struct bstore_scrub_at {
	uint16_t shard;
	uint32_t domain;
	struct fp after;
	bool has_after;
	bool done; /* every shard was read */
};
#define SCRUB_PAGE 64
struct bstore_scrubbed {
	size_t nr;    /* of these */
	struct bstore_op bad[SCRUB_PAGE]; /* damaged, not known to be before: for bstore_commit() */
	size_t nr_known;
	struct fp known[SCRUB_PAGE];	  /* damaged, and marked already */
	uint32_t domain;
	uint64_t bytes; /* read */
};
/* Reads the next records, a page at most. 0, or a negative errno. Any thread. */
int bstore_scrub_page(struct bstore *st, struct bstore_scrub_at *at, struct bstore_scrubbed *out);
/* Reads every record of a shard and compares it with the index: the number of damaged blocks,
 * which are marked; a negative errno. The writer's. */
int bstore_scrub(struct bstore *st, uint16_t shard);

#endif
