/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The index: where each block's record lies. An LMDB environment in index/, synced at each
 * commit, never mapped writable. It can be rebuilt from the lumps alone, except for what the
 * rebuilt one marks as lost (epochs of TOUCH, deletions): see recover.h.
 *
 * Every value ends in a CRC-32C of its key and itself, for LMDB keeps no checksums.
 *
 * Threads: one writer; any number of readers, each with its own transaction.
 */
#ifndef VMDEDUP_DATA_INDEX_H
#define VMDEDUP_DATA_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"
#include "base/fingerprint.h"
#include "base/uuid.h"

#define INDEX_FORMAT	   1
#define INDEX_MAP_DEFAULT  (1ULL << 30) /* address space, not disk; grows */

enum {
	INDEX_BAD = 1, /* a read found the record damaged: the block counts as missing */
};

struct index_block {
	uint32_t lump;
	uint32_t offset;
	uint32_t stored_len;
	uint32_t raw_len;
	uint8_t codec;
	uint8_t kind;
	uint16_t flags;
	uint64_t epoch; /* of the block's last PUT or TOUCH; see index_shard.floor */
};

struct index_lump {
	uint64_t end;
	uint64_t live_bytes;
	uint32_t live_records;
	uint32_t removing; /* 1: nothing live; the file may be gone already */
};

struct index_shard {
	uint64_t epoch;	    /* what PUT and TOUCH stamp */
	uint64_t floor;	    /* every block here counts as stamped with at least this */
	uint32_t next_lump; /* numbers are not used again */
};

struct index_info {
	struct uuid disk;
	uint64_t incarnation;
	uint64_t sequence;     /* of the last commit */
	uint32_t complete;     /* 0: a rebuild was interrupted */
	uint32_t unstamped;    /* 1: rebuilt; epochs are too low until the meta server has told */
	uint64_t blocks;
	uint64_t raw_bytes;
	uint64_t stored_bytes; /* of live records, headers included */
};

struct index;
struct index_txn;

/* @map_size: address space to begin with. -EUCLEAN: not readable, a rebuild is needed;
 * -EPROTONOSUPPORT: newer. An empty environment is made when there is none: see index_is_new. */
struct index *index_open(const char *path, uint64_t map_size, struct error *err);
void index_close(struct index *ix);
bool index_is_new(struct index *ix);
uint64_t index_file_bytes(struct index *ix); /* on disk; any thread */
uint64_t index_map_bytes(struct index *ix);

/* A read transaction sees the last commit and should be short. Writers: one at a time. */
int index_begin(struct index *ix, bool write, struct index_txn **txn);
void index_abort(struct index_txn *txn);
/* Durable when it returns 0. -EXFULL with nothing changed: index_grow(), and do the transaction
 * again; any other error: whether it was committed is not known. Frees @txn. */
int index_commit(struct index_txn *txn);
/* True when less than a quarter of the map is free: grow before the next large transaction. */
bool index_is_tight(struct index *ix);
/* Doubles the map. Waits for readers; the caller has no transaction. */
int index_grow(struct index *ix);

/* 0, -ENOENT, -EUCLEAN (damaged value), -EXFULL (map is full: abort, grow, again), -EIO. */
int index_get(struct index_txn *txn, uint32_t domain, const struct fp *fp, struct index_block *b);
int index_put(struct index_txn *txn, uint32_t domain, const struct fp *fp,
	      const struct index_block *b);
int index_del(struct index_txn *txn, uint32_t domain, const struct fp *fp);
int index_put_lump(struct index_txn *txn, uint16_t shard, uint32_t number,
		   const struct index_lump *l);
int index_del_lump(struct index_txn *txn, uint16_t shard, uint32_t number);
int index_put_shard(struct index_txn *txn, uint16_t shard, const struct index_shard *s);
int index_get_shard(struct index_txn *txn, uint16_t shard, struct index_shard *s);
int index_put_info(struct index_txn *txn, const struct index_info *info);
int index_get_info(struct index_txn *txn, struct index_info *info);

/* Walks; a non-zero return of the function ends the walk with that value. @b NULL: damaged. */
int index_walk_lumps(struct index_txn *txn,
		     int (*row)(void *arg, uint16_t shard, uint32_t number,
				const struct index_lump *l),
		     void *arg);
/* Blocks of a shard in order of (domain, fingerprint), after @after (NULL: from the first). */
int index_walk_blocks(struct index_txn *txn, uint32_t domain, uint16_t shard,
		      const struct fp *after,
		      int (*row)(void *arg, uint32_t domain, const struct fp *fp,
				 const struct index_block *b),
		      void *arg);
/* The domains that have blocks, ascending: the smallest one >= *domain. -ENOENT: none. */
int index_next_domain(struct index_txn *txn, uint32_t *domain);

#endif
