// SPDX-License-Identifier: GPL-2.0-or-later
/* What differs between two recipes of one size: reads only the paths that differ. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "proto/recipe.h"

#define FANOUT_SHIFT 8
#define MAX_LEVELS   6

/* A pair of nodes on the way down. */
struct pair {
	struct recipe_node a, b;
	uint64_t index; /* of the node in its level */
	unsigned int next;
};

struct diff {
	uint64_t blocks;
	unsigned int block_shift;
	enum fp_algorithm alg;
	const struct recipe_ops *ops;
	void *ctx;
	struct error *err;
	struct pair pairs[MAX_LEVELS];
};

static int node_load(struct diff *d, const struct fp *hash, unsigned int level, uint64_t index,
		     struct recipe_node *node)
{
	unsigned int entries = recipe_node_entries(d->blocks, level, index);
	uint8_t data[RECIPE_NODE_MAX];
	struct fp found;
	size_t len;
	int r;

	if (fp_is_zero(hash)) {
		memset(node->entries, 0, entries * sizeof(node->entries[0]));
		node->count = entries;
		return 0;
	}
	r = d->ops->get(d->ctx, hash, data, &len, d->err);
	if (r)
		return r;
	recipe_node_hash(data, len, &found);
	if (!fp_equal(&found, hash))
		return error_set(d->err, -EBADMSG, "a recipe node is not what its hash names");
	r = recipe_node_decode(node, data, len, d->err);
	if (!r && (node->level != level || node->count != entries ||
		   node->block_shift != d->block_shift || node->algorithm != d->alg))
		r = error_set(d->err, -EBADMSG, "a recipe node does not fit its place");
	return r;
}

static int pair_load(struct diff *d, unsigned int level, uint64_t index, const struct fp *a,
		     const struct fp *b)
{
	struct pair *p = &d->pairs[level];

	p->index = index;
	p->next = 0;
	return node_load(d, a, level, index, &p->a) ?: node_load(d, b, level, index, &p->b);
}

int recipe_diff(const struct fp *a, const struct fp *b, uint64_t size, unsigned int block_shift,
		enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx,
		int (*visit)(void *arg, uint64_t block, const struct fp *from, const struct fp *to),
		void *arg, struct error *err)
{
	uint64_t blocks = recipe_blocks(size, block_shift);
	unsigned int level, top = blocks ? recipe_levels(blocks) - 1 : 0;
	struct diff *d;
	int r;

	if (!blocks || top >= MAX_LEVELS)
		return error_set(err, -EINVAL, "recipe: an image of %llu blocks",
				 (unsigned long long)blocks);
	if (fp_equal(a, b))
		return 0;
	d = calloc(1, sizeof(*d));
	if (!d)
		return error_set(err, -ENOMEM, "out of memory");
	*d = (struct diff){ .blocks = blocks, .block_shift = block_shift, .alg = alg, .ops = ops,
			    .ctx = ctx, .err = err };
	level = top;
	r = pair_load(d, top, 0, a, b);
	while (!r) {
		struct pair *p = &d->pairs[level];
		unsigned int i = p->next++;

		if (i == p->a.count) {
			if (level++ == top)
				break;
			continue;
		}
		if (fp_equal(&p->a.entries[i], &p->b.entries[i]))
			continue;
		if (!level) {
			r = visit(arg, (p->index << FANOUT_SHIFT) + i, &p->a.entries[i],
				  &p->b.entries[i]);
			continue;
		}
		level--;
		r = pair_load(d, level, (p->index << FANOUT_SHIFT) + i, &p->a.entries[i],
			      &p->b.entries[i]);
	}
	free(d);
	return r;
}
