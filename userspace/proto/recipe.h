/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Recipes: an image as a Merkle tree of nodes over the fingerprints of its blocks.
 *
 * A node is, little-endian: magic "VDRN", u8 format 1, u8 level (0: leaf), u8 block shift,
 * u8 algorithm, u32 count, u32 reserved 0, then count entries of 32 bytes: fingerprints of
 * blocks (leaf) or hashes of nodes one level down. count is RECIPE_FANOUT except in the last
 * node of a level. An all-zero entry is a block, or a whole subtree, of zeros. Trailing zero
 * entries are kept: the shape follows from the number of blocks alone, so that equal content
 * of equal size has an equal root. A node's hash is SHA-256 of its bytes, whatever algorithm
 * names blocks; a node of nothing but zero entries is never stored, its hash is all zero. An
 * image of zeros alone has the all-zero root.
 */
#ifndef VMDEDUP_PROTO_RECIPE_H
#define VMDEDUP_PROTO_RECIPE_H

#include "base/error.h"
#include "base/fingerprint.h"

#define RECIPE_FANOUT	   256
#define RECIPE_HEADER_SIZE 16
#define RECIPE_NODE_MAX	   (RECIPE_HEADER_SIZE + RECIPE_FANOUT * FP_SIZE)

struct recipe_node {
	uint8_t level;
	uint8_t block_shift;
	uint8_t algorithm;
	uint32_t count;
	struct fp entries[RECIPE_FANOUT];
};

/* Decode hostile bytes: -EBADMSG (err says why). Encode returns the length. */
int recipe_node_decode(struct recipe_node *node, const void *data, size_t len, struct error *err);
size_t recipe_node_encode(const struct recipe_node *node, uint8_t out[RECIPE_NODE_MAX]);
/* SHA-256 of the encoding; all zero when every entry is. Thread-safe. */
void recipe_node_hash(const void *data, size_t len, struct fp *out);

/* Shape: number of blocks, of levels (1: the root is a leaf; 0 blocks: not allowed), of nodes
 * at a level, and of entries in node @index of @level. */
uint64_t recipe_blocks(uint64_t size, unsigned int block_shift);
unsigned int recipe_levels(uint64_t blocks);
uint64_t recipe_level_nodes(uint64_t blocks, unsigned int level);
unsigned int recipe_node_entries(uint64_t blocks, unsigned int level, uint64_t index);

/* Where nodes come from and go to. */
struct recipe_ops {
	/* Fills @out with the node's bytes, verified against @hash or not (recipe verifies). */
	int (*get)(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		   struct error *err);
	/* A new node, children always before parents. */
	int (*put)(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		   struct error *err);
	bool verified; /* whatever ->get gives has matched its hash: it need not be digested again */
};

/* Build a whole tree, blocks in order; O(levels) memory. Only ->put is used. */
struct recipe_builder;
struct recipe_builder *recipe_builder_new(uint64_t size, unsigned int block_shift,
					  enum fp_algorithm alg, const struct recipe_ops *ops,
					  void *ctx);
int recipe_builder_add(struct recipe_builder *b, const struct fp *fp, struct error *err);
/* @count blocks of zeros: costs O(levels + count / fanout) at most, no nodes */
int recipe_builder_add_zeros(struct recipe_builder *b, uint64_t count, struct error *err);
int recipe_builder_finish(struct recipe_builder *b, struct fp *root, struct error *err);
void recipe_builder_free(struct recipe_builder *b);

/* Change some blocks: gets and puts only the changed paths. @blocks ascending, no repeats. */
struct recipe_change {
	uint64_t block;
	struct fp fp;
};
int recipe_update(const struct fp *root, uint64_t size, unsigned int block_shift,
		  enum fp_algorithm alg, const struct recipe_change *changes, size_t count,
		  const struct recipe_ops *ops, void *ctx, struct fp *new_root, struct error *err);

/* Visit blocks [first, first + count) in order; runs of zeros come as one call with fp NULL.
 * A non-zero return of @visit ends the walk with that value. */
int recipe_walk(const struct fp *root, uint64_t size, unsigned int block_shift,
		enum fp_algorithm alg, uint64_t first, uint64_t count, const struct recipe_ops *ops,
		void *ctx,
		int (*visit)(void *arg, uint64_t block, uint64_t run, const struct fp *fp),
		void *arg, struct error *err);
/* Visit the blocks that differ between two recipes of one size, in order; only ->get is used, and
 * only for paths that differ. A non-zero return of @visit ends it with that value. */
int recipe_diff(const struct fp *a, const struct fp *b, uint64_t size, unsigned int block_shift,
		enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx,
		int (*visit)(void *arg, uint64_t block, const struct fp *from, const struct fp *to),
		void *arg, struct error *err);
/* The fingerprint of one block. */
int recipe_lookup(const struct fp *root, uint64_t size, unsigned int block_shift,
		  enum fp_algorithm alg, uint64_t block, const struct recipe_ops *ops, void *ctx,
		  struct fp *out, struct error *err);

/* The same content in an image of @size, which is not smaller, with zeros behind it: the root that a
 * build of that would have. The size of the tree need not be known. A tree that fits already puts
 * nothing. -EINVAL: it is of a larger image. */
int recipe_grow(const struct fp *root, uint64_t size, unsigned int block_shift,
		enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx, struct fp *new_root,
		struct error *err);
/* The fingerprint of one block of a recipe whose image's size is not known, or has changed since: zero
 * for what lies behind its end. */
int recipe_lookup_any(const struct fp *root, unsigned int block_shift, enum fp_algorithm alg,
		      uint64_t block, const struct recipe_ops *ops, void *ctx, struct fp *out,
		      struct error *err);

#endif
