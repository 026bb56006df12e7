/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One push: cut a volume, deduplicate and store what the cut closed, commit the new recipe, tell
 * the kernel. It knows neither sockets nor ioctls nor threads: the cache's verbs, the servers and
 * the parallel loop are handed in.
 *
 * Whatever ends it - an error, a crash of anything - the next push of the volume goes on: CUT
 * returns the same cut until the kernel has committed it, servers are asked before a block is
 * sent, and the meta server answers a committed cut with its root.
 *
 * Memory: PUSH_CHUNK blocks and as many bases, PUSH_KEEP_BYTES, and 220 bytes for each overlay of
 * the cut.
 */
#ifndef VMDEDUP_AGENT_PUSH_H
#define VMDEDUP_AGENT_PUSH_H

#include "agent/cache.h"
#include "base/error.h"
#include "base/fingerprint.h"
#include "base/uuid.h"
#include "proto/recipe.h"

#define PUSH_CHUNK	16
#define PUSH_KEEP_BYTES (32U << 20) /* of blocks that were completed from their base */

struct push_name { /* what a push is called; see PushBegin */
	const char *new_image; /* or NULL: all below but the version's are not used */
	uint64_t size;
	uint8_t image[DM_DEDUP_UUID_SIZE];
	uint64_t lease_epoch;
	uint64_t cut;
	struct fp parent;
	bool make_version;
	const char *label;
};

struct push_result {
	uint64_t cut;	     /* 0: nothing was dirty */
	uint64_t blocks;     /* overlays of the cut */
	uint64_t new_blocks; /* of them sent */
	uint64_t bytes_sent;
	uint64_t version;
	struct uuid image; /* that has the new root */
	struct fp root;
};

/* The servers. All block; errors as of the client library. */
struct push_net {
	/* *done: this cut is committed already, with *root. */
	/* *size: in: the volume's; out: the image's, which may have grown. */
	int (*begin)(void *ctx, const struct push_name *name, bool *done, struct fp *root,
		     uint64_t *size, struct error *err);
	int (*block)(void *ctx, const struct fp *fp, const void *data, size_t len,
		     struct error *err);
	/* All that was handed over so far is stored; *bytes: what was sent of it. */
	int (*sent)(void *ctx, uint64_t *bytes, struct error *err);
	int (*commit)(void *ctx, const struct fp *root, struct push_result *result,
		      struct error *err);
	void (*end)(void *ctx); /* after begin, always; without a commit it aborts */
	/* Blocks, each verified; @got once for each, any order. 0 when all were answered. */
	int (*get)(void *ctx, const struct fp *fps, size_t count,
		   void (*got)(void *arg, size_t index, int r, const void *data, size_t len),
		   void *arg, struct error *err);
	const struct recipe_ops *recipe; /* ctx: recipe_ctx; during a push */
	void *recipe_ctx;
};

struct push_env {
	struct cache *cache;
	unsigned int block_shift;
	enum fp_algorithm algorithm;
	struct fp_hasher *hashers[PUSH_CHUNK];
	const struct push_net *net;
	void *net_ctx;
	/* fn(arg, i) for all i < n, in any order, on any threads; returns after the last. */
	void (*for_each)(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg);
	/* CLEAN slots known to hold fps[i]; seqs[i] 0: none. */
	void (*find_slots)(void *ctx, const struct fp *fps, size_t count, uint64_t *slots,
			   uint64_t *seqs);
	/* NULL: as fast as it goes. After each chunk, with the bytes it has sent: waits until
	 * more may be. */
	void (*pace)(void *ctx, uint64_t sent);
	/* These have become CLEAN. */
	void (*clean_slots)(void *ctx, const struct dm_dedup_clean_entry *slots, size_t count);
	void *ctx;
};

/*
 * Instead of to its own image, what a diverged volume holds goes to another one that stands on the
 * same root: first a new one, then, for what lies above the first cut, to that one.
 */
struct push_recover {
	const char *new_image; /* NULL: to @image under the lease @epoch */
	struct uuid image;     /* set by the push that makes it */
	uint64_t epoch;
	/* Takes a lease on @image, which was just made, and sets @epoch. Before the volume's record names
	 * the new root: from then on that is the base of what is not recovered yet. */
	int (*lease)(struct push_recover *to, struct error *err);
	void *ctx;
};

/* @volume: its record. @recover: see there, or NULL. @make_version, @label: of the version that the push makes. */
int push_volume(const struct push_env *env, const struct dm_dedup_volume_info *volume,
		struct push_recover *recover, bool make_version, const char *label,
		struct push_result *result, struct error *err);

#endif
