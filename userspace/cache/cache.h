/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A cache disk while no kernel has it open: format, check, repair, dump. The path is a block
 * device, which is claimed (EBUSY while a dedup-cache device, a mount or anything else has
 * it), or a plain file. What is on the disk is read and written by the sources that the kernel
 * compiles. Every function opens and closes the path itself; no state is kept between calls.
 */
#ifndef VMDEDUP_CACHE_CACHE_H
#define VMDEDUP_CACHE_CACHE_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"
#include "base/uuid.h"
#include "record.h"

#define CACHE_LABEL_MAX 63 /* bytes, without the NUL */

struct cache_params {
	uint32_t block_shift; /* log2 of the block size: 12 to 20 */
	struct uuid cluster;  /* all zero: any cluster */
	const char *label;    /* NULL: none */
	uint64_t journal;     /* bytes, 64 KiB to 64 MiB; 0: a 128th of the disk, at least 2 MiB */
	bool force;	      /* format what is not empty, or holds a cache, as well */
};

/* What the superblock says. */
struct cache_info {
	struct uuid cache;
	struct uuid cluster;
	struct uuid incarnation; /* of the last open */
	char label[CACHE_LABEL_MAX + 1];
	uint32_t incarnation_nr;
	uint32_t block_shift;
	uint64_t device_bytes; /* of the disk it was formatted on */
	uint64_t data_start;   /* byte offset of slot 0 */
	uint64_t nr_slots;
	uint64_t journal_bytes;
	uint64_t store_memory; /* bytes of kernel memory that the store takes while open */
	uint32_t max_volumes;
};

/* May be NULL. Called now and then with done <= total (bytes). */
typedef void (*cache_progress)(void *ctx, uint64_t done, uint64_t total);

/* The smallest disk for a block size, in bytes; 0: no such block size. */
uint64_t cache_min_bytes(uint32_t block_shift);

/**
 * cache_format - make an empty cache
 *
 * Everything on the disk is lost (and discarded, where the disk can). @info, if not NULL, tells
 * what was made. Errors: -EINVAL (block size, label), -ENOSPC (too small; says the minimum),
 * -EFBIG (more slots than a cache may have; says the block size to take), -EEXIST (not empty, and
 * not forced), -EBUSY, -ENOENT, -EACCES, -EIO.
 */
int cache_format(const char *path, const struct cache_params *params, cache_progress progress,
		 void *ctx, struct cache_info *info, struct error *err);

/*
 * Reads the superblocks. With one destroyed it succeeds. -EINVAL: not formatted; -EUCLEAN:
 * both destroyed; -EPROTONOSUPPORT: newer version; -EBUSY, -ENOENT, -EACCES, -EIO.
 */
int cache_info_read(const char *path, struct cache_info *info, struct error *err);

struct cache_report {
	struct cache_info info;
	uint64_t free;	    /* slots */
	uint64_t clean;
	uint64_t dirty;	    /* above their volume's committed cut */
	uint64_t void_dirty;/* at or below it: freed when the kernel opens the cache */
	uint64_t volumes;
	uint64_t journal_appends; /* that the next open replays */
	uint64_t journal_changes;
	uint64_t problems;
	bool repairable;    /* all problems are of the kind that cache_repair() mends */
};

/**
 * cache_check - verify superblocks, journal, directory, tables, and that records make sense
 * @problem: called with one sentence for each problem found; may be NULL
 *
 * Writes nothing. Returns 0 when the check could be carried out: whether the cache is well is
 * told by @report->problems. A disk that is no cache at all is an error, as in
 * cache_info_read().
 */
int cache_check(const char *path, void (*problem)(void *ctx, const char *text), void *ctx,
		struct cache_report *report, struct error *err);

/*
 * Restores a destroyed or older superblock from the other. @repaired: superblocks written;
 * 0: there was nothing to repair.
 */
int cache_repair(const char *path, unsigned int *repaired, struct error *err);

/* Receives records in use: volumes first, then slots, each in order. Non-zero stops the dump. */
struct cache_visitor {
	int (*volume)(void *ctx, uint64_t index, const struct dedup_volume_rec *rec);
	int (*slot)(void *ctx, uint64_t slot, const struct dedup_slot_rec *rec);
	void *ctx;
};

/* Returns what the visitor returned, or an error. Records as the next open would load them. */
int cache_dump(const char *path, const struct cache_visitor *visitor, struct cache_info *info,
	       struct error *err);

#endif
