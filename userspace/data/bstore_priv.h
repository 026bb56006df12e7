/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of the store share: bstore.c, commit.c, recover.c, compact.c. */
#ifndef VMDEDUP_DATA_BSTORE_PRIV_H
#define VMDEDUP_DATA_BSTORE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "data/index.h"
#include "data/lump.h"
#include "data/bstore.h"

struct bstore {
	struct disk disk;
	char *dir;
	int dirfd; /* holds the folder's lock */
	struct uuid uuid;
	uint64_t incarnation;
	struct uuid cluster, session;
	uint64_t reserve, capacity, lump_size, map_size;
	struct index *ix;
	struct lumps *lumps;
	struct block_cache *cache;
	atomic_int failed; /* negative errno: only reads from now on */
	bool full;	   /* said so in the log */
	/* The writer's: */
	struct index_shard shards[NR_SHARDS];
	bool shard_dirty[NR_SHARDS];
	struct index_info info;
	uint32_t compact_next; /* shard to look at next */
	/* A copy of info for bstore_stat(), under its lock. */
	pthread_mutex_t stat_lock;
	struct index_info stat_info;
	_Atomic uint64_t puts, put_dups, put_bytes, gets, get_bytes, cache_hits, commits, bad;
	bool unstamped_seen;
};

/* bstore.c */
int bstore_write_identity(struct bstore *st, struct error *err);
uint64_t bstore_new_incarnation(uint64_t old);
/* Bytes that new records may take now: disk, reserve, capacity. @pending: what else the index may take of
 * the disk. */
int bstore_budget(struct bstore *st, uint64_t pending, uint64_t *bytes);
void bstore_publish_info(struct bstore *st);
/* The epoch that counts: a rebuilt index knows lower bounds only. */
static inline uint64_t bstore_effective_epoch(const struct bstore *st, uint16_t shard,
					     const struct index_block *b)
{
	return b->epoch > st->shards[shard].floor ? b->epoch : st->shards[shard].floor;
}

/* commit.c */
/* Rows of touched lumps and dirty shards, and @info, into a transaction. */
int bstore_put_rows(struct bstore *st, struct index_txn *txn, const struct index_info *info);
/* The lump that takes the next @size bytes of a shard: the last one or a new one. */
int bstore_open_lump(struct bstore *st, uint16_t shard, uint64_t size, struct lump **lump);
void bstore_fail(struct bstore *st, int r, const char *doing);

/* Calls for one record, not through the cache: 0, -EIO (damaged), -ENOENT (lump is gone). */
int bstore_read_record(struct bstore *st, uint32_t domain, const struct fp *fp,
		      const struct index_block *b, struct block_buf **out);

/* compact.c */
/* A lump with nothing live: marked in the index, its file removed, then its row. Frees @lump. */
int bstore_drop_lump(struct bstore *st, struct lump *lump);

/* recover.c */
/* Every lump of the disk into the set, tails scanned. -ESTALE: the lumps and the index do not
 * belong together: rebuild. */
int bstore_recover(struct bstore *st, bool rebuild, struct error *err);
/* Calls @found for each whole record from @from to @size, in order. *end: where the last one ends;
 * *damaged: bytes before it that are no record. */
int bstore_scan_lump(struct bstore *st, struct lump *lump, uint64_t from, uint64_t size,
		     int (*found)(void *arg, struct lump *lump, uint32_t offset,
				  const struct record *rec),
		     void *arg, uint64_t *end, uint64_t *damaged);

#endif
