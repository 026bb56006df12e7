// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A recipe of a larger image with the same content, and zeros behind it. A tree does not know its
 * image's size, only its own right edge; where that ends in zeros nothing has to be known.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include "proto/limits.h"
#include "proto/recipe.h"

#define LEVELS_MAX 5

struct edge {
	struct recipe_node nodes[LEVELS_MAX];
	uint64_t index[LEVELS_MAX];
	struct fp hash[LEVELS_MAX];
	unsigned int bottom, top; /* levels that were read */
};

static int get(const struct fp *hash, unsigned int block_shift,
	       enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx,
	       struct recipe_node *node, struct error *err)
{
	uint8_t data[RECIPE_NODE_MAX];
	struct fp seen;
	size_t len = 0;
	int r;

	r = ops->get(ctx, hash, data, &len, err);
	if (r)
		return r;
	if (len > sizeof(data))
		return error_set(err, -EBADMSG, "a recipe node is too long");
	if (!ops->verified) {
		recipe_node_hash(data, len, &seen);
		if (!fp_equal(&seen, hash))
			return error_set(err, -EBADMSG, "a recipe node does not match its hash");
	}
	r = recipe_node_decode(node, data, len, err);
	if (r)
		return r;
	if (node->block_shift != block_shift || node->algorithm != alg || node->level >= LEVELS_MAX)
		return error_set(err, -EBADMSG, "a recipe node is not one of this cluster's");
	memset(node->entries + node->count, 0,
	       (RECIPE_FANOUT - node->count) * sizeof(node->entries[0]));
	return 0;
}

/* From the root down, as far as there are nodes. */
static int edge_read(struct edge *e, const struct fp *root, unsigned int block_shift,
		     enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx,
		     struct error *err)
{
	struct recipe_node node;
	struct fp next = *root;
	uint64_t index = 0;
	unsigned int l;
	int r;

	for (l = LEVELS_MAX; l; index = index * RECIPE_FANOUT + node.count - 1) {
		r = get(&next, block_shift, alg, ops, ctx, &node, err);
		if (r)
			return r;
		if (l == LEVELS_MAX)
			l = e->top = node.level;
		else if (node.level != --l)
			return error_set(err, -EBADMSG, "a recipe node is of another level");
		e->nodes[l] = node;
		e->hash[l] = next;
		e->index[l] = index;
		e->bottom = l;
		next = node.entries[node.count - 1];
		if (!l || fp_is_zero(&next))
			return 0;
	}
	return 0;
}

static int put(const struct recipe_node *node, const struct recipe_ops *ops, void *ctx,
	       struct fp *hash, struct error *err)
{
	uint8_t data[RECIPE_NODE_MAX];
	size_t len = recipe_node_encode(node, data);

	recipe_node_hash(data, len, hash);
	return fp_is_zero(hash) ? 0 : ops->put(ctx, hash, data, len, err);
}

int recipe_grow(const struct fp *root, uint64_t size, unsigned int block_shift,
		enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx, struct fp *new_root,
		struct error *err)
{
	uint64_t blocks = recipe_blocks(size, block_shift);
	unsigned int levels, l;
	struct recipe_node up;
	struct edge e;
	struct fp hash;
	int r;

	*new_root = *root;
	if (!size || size > IMAGE_SIZE_MAX || block_shift < BLOCK_SHIFT_MIN ||
	    block_shift > BLOCK_SHIFT_MAX)
		return error_set(err, -EINVAL, "recipe: an image of %llu bytes",
				 (unsigned long long)size);
	if (fp_is_zero(root))
		return 0;
	levels = recipe_levels(blocks);
	r = edge_read(&e, root, block_shift, alg, ops, ctx, err);
	if (r)
		return r;
	if (e.top >= levels)
		return error_set(err, -EINVAL, "recipe: it is of a larger image");
	for (l = e.bottom; l <= e.top; l++) {
		struct recipe_node *node = &e.nodes[l];
		unsigned int want = recipe_node_entries(blocks, l, e.index[l]), had = node->count;

		if (want < had)
			return error_set(err, -EINVAL, "recipe: it is of a larger image");
		if (l > e.bottom)
			node->entries[had - 1] = hash;
		if (want == had && (l == e.bottom ||
				    fp_equal(&hash, &e.hash[l - 1]))) {
			hash = e.hash[l];
			continue;
		}
		node->count = want;
		r = put(node, ops, ctx, &hash, err);
		if (r)
			return r;
	}
	for (; l < levels; l++) {
		memset(&up, 0, sizeof(up));
		up.level = (uint8_t)l;
		up.block_shift = (uint8_t)block_shift;
		up.algorithm = (uint8_t)alg;
		up.count = recipe_node_entries(blocks, l, 0);
		up.entries[0] = hash;
		r = put(&up, ops, ctx, &hash, err);
		if (r)
			return r;
	}
	*new_root = hash;
	return 0;
}

int recipe_lookup_any(const struct fp *root, unsigned int block_shift, enum fp_algorithm alg,
		      uint64_t block, const struct recipe_ops *ops, void *ctx, struct fp *out,
		      struct error *err)
{
	struct recipe_node node;
	unsigned int level = 0;
	struct fp next = *root;
	bool first = true;
	uint64_t i;
	int r;

	memset(out, 0, sizeof(*out));
	while (!fp_is_zero(&next)) {
		r = get(&next, block_shift, alg, ops, ctx, &node, err);
		if (r)
			return r;
		if (first && block >> (8 * (node.level + 1)))
			return 0;
		if (!first && node.level != level - 1)
			return error_set(err, -EBADMSG, "a recipe node is of another level");
		first = false;
		level = node.level;
		i = (block >> (8 * level)) & (RECIPE_FANOUT - 1);
		next = node.entries[i]; /* zero behind the last */
		if (!level) {
			*out = next;
			return 0;
		}
	}
	return 0;
}
