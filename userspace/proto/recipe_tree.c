// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Building, changing and reading a tree of recipe nodes. Each keeps one node of every level and
 * no more, and goes along the blocks: no recursion, so a hostile tree costs no stack, and a
 * node that does not have the one shape that the image's size allows is refused.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/recipe.h"

#define FANOUT_SHIFT 8
#define LEVELS_MAX   5

struct tree {
	uint64_t blocks;
	unsigned int levels;
	unsigned int block_shift;
	enum fp_algorithm alg;
	const struct recipe_ops *ops;
	void *ctx;
};

/* One node of the path from the root to where we are. */
struct frame {
	bool open;
	uint64_t index; /* in its level */
	struct fp hash; /* as it was read */
	struct recipe_node node;
};

static int tree_init(struct tree *t, uint64_t size, unsigned int block_shift,
		     enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx,
		     struct error *err)
{
	if (!size || size > IMAGE_SIZE_MAX)
		return error_set(err, -EINVAL,
				 "recipe: an image of %llu bytes: 1 to %llu are allowed",
				 (unsigned long long)size, IMAGE_SIZE_MAX);
	if (block_shift < BLOCK_SHIFT_MIN || block_shift > BLOCK_SHIFT_MAX)
		return error_set(err, -EINVAL, "recipe: block shift %u: %d to %d are allowed",
				 block_shift, BLOCK_SHIFT_MIN, BLOCK_SHIFT_MAX);
	if ((unsigned int)alg > FP_MD5)
		return error_set(err, -EINVAL, "recipe: unknown algorithm %u", alg);
	t->blocks = recipe_blocks(size, block_shift);
	t->levels = recipe_levels(t->blocks);
	t->block_shift = block_shift;
	t->alg = alg;
	t->ops = ops;
	t->ctx = ctx;
	return 0;
}

static uint64_t node_index(uint64_t block, unsigned int level)
{
	return block >> ((level + 1) * FANOUT_SHIFT);
}

static unsigned int entry_index(uint64_t block, unsigned int level)
{
	return (block >> (level * FANOUT_SHIFT)) & (RECIPE_FANOUT - 1);
}

static void node_init(const struct tree *t, struct recipe_node *node, unsigned int level,
		      uint32_t count)
{
	node->level = level;
	node->block_shift = t->block_shift;
	node->algorithm = t->alg;
	node->count = count;
}

/* Encode, hash and, unless it is all zeros or the same as @old, put. */
static int node_put(const struct tree *t, const struct recipe_node *node, const struct fp *old,
		    struct fp *hash, struct error *err)
{
	uint8_t data[RECIPE_NODE_MAX];
	size_t len = recipe_node_encode(node, data);

	recipe_node_hash(data, len, hash);
	if (fp_is_zero(hash) || (old && fp_equal(hash, old)))
		return 0;
	return t->ops->put(t->ctx, hash, data, len, err);
}

static int node_get(const struct tree *t, const struct fp *hash, unsigned int level,
		    uint64_t index, struct recipe_node *node, struct error *err)
{
	unsigned int entries = recipe_node_entries(t->blocks, level, index);
	uint8_t data[RECIPE_NODE_MAX];
	char hex[FP_HEX_SIZE];
	struct fp got;
	size_t len = 0;
	int r;

	if (fp_is_zero(hash)) {
		node_init(t, node, level, entries);
		memset(node->entries, 0, sizeof(node->entries));
		return 0;
	}
	r = t->ops->get(t->ctx, hash, data, &len, err);
	if (r)
		return r;
	if (len > sizeof(data))
		return error_set(err, -EBADMSG, "recipe node %s: %zu bytes", fp_to_hex(hash, hex),
				 len);
	recipe_node_hash(data, len, &got);
	if (!fp_equal(&got, hash))
		return error_set(err, -EBADMSG,
				 "recipe node %s: the content does not match its hash",
				 fp_to_hex(hash, hex));
	r = recipe_node_decode(node, data, len, err);
	if (r) {
		error_prefix(err, "%s", fp_to_hex(hash, hex));
		return r;
	}
	if (node->level != level || node->block_shift != t->block_shift ||
	    node->algorithm != t->alg || node->count != entries)
		return error_set(err, -EBADMSG,
				 "recipe node %s: level %u, %u entries, block shift %u, %s where "
				 "level %u, %u, %u, %s belong",
				 fp_to_hex(hash, hex), node->level, node->count, node->block_shift,
				 fp_algorithm_name(node->algorithm), level, entries, t->block_shift,
				 fp_algorithm_name(t->alg));
	return 0;
}

/* ---- build ---- */

struct recipe_builder {
	struct tree tree;
	uint64_t done; /* blocks added */
	int error;     /* of a failed call: the tree has a hole, nothing may follow */
	struct fp root;
	struct recipe_node nodes[];
};

struct recipe_builder *recipe_builder_new(uint64_t size, unsigned int block_shift,
					  enum fp_algorithm alg, const struct recipe_ops *ops,
					  void *ctx)
{
	struct recipe_builder *b;
	struct tree t;

	if (tree_init(&t, size, block_shift, alg, ops, ctx, NULL))
		return NULL;
	b = calloc(1, sizeof(*b) + t.levels * sizeof(b->nodes[0]));
	if (!b)
		return NULL;
	b->tree = t;
	for (unsigned int l = 0; l < t.levels; l++)
		node_init(&b->tree, &b->nodes[l], l, 0);
	return b;
}

void recipe_builder_free(struct recipe_builder *b)
{
	free(b);
}

/* Append @fp, which stands for the subtree below entry of @level that begins at block b->done;
 * a node that is full becomes the next entry one level up. */
static int builder_append(struct recipe_builder *b, unsigned int level, const struct fp *fp,
			  struct error *err)
{
	struct fp hash = *fp;
	int r;

	for (; level < b->tree.levels; level++) {
		struct recipe_node *node = &b->nodes[level];

		node->entries[node->count++] = hash;
		if (node->count < recipe_node_entries(b->tree.blocks, level,
						      node_index(b->done, level)))
			return 0;
		r = node_put(&b->tree, node, NULL, &hash, err);
		if (r)
			return b->error = r;
		node->count = 0;
	}
	b->root = hash;
	return 0;
}

static int builder_check(struct recipe_builder *b, uint64_t count, struct error *err)
{
	if (b->error)
		return error_set(err, b->error, "recipe: an earlier part of it failed");
	if (count > b->tree.blocks - b->done)
		return error_set(err, b->error = -EINVAL,
				 "recipe: more than the image's %llu blocks",
				 (unsigned long long)b->tree.blocks);
	return 0;
}

int recipe_builder_add(struct recipe_builder *b, const struct fp *fp, struct error *err)
{
	int r = builder_check(b, 1, err);

	if (!r)
		r = builder_append(b, 0, fp, err);
	if (!r)
		b->done++;
	return r;
}

/* Blocks below one entry of @level that begins at @block: fewer at the image's end. */
static uint64_t subtree_blocks(const struct tree *t, uint64_t block, unsigned int level)
{
	uint64_t full = 1ULL << (level * FANOUT_SHIFT);

	return t->blocks - block < full ? t->blocks - block : full;
}

int recipe_builder_add_zeros(struct recipe_builder *b, uint64_t count, struct error *err)
{
	static const struct fp zero;
	int r = builder_check(b, count, err);

	while (!r && count) {
		unsigned int level = 0;
		uint64_t n;

		/* The largest subtree that begins here and is all zeros is one entry. */
		while (level + 1 <= b->tree.levels && !entry_index(b->done, level) &&
		       subtree_blocks(&b->tree, b->done, level + 1) <= count)
			level++;
		n = subtree_blocks(&b->tree, b->done, level);
		r = builder_append(b, level, &zero, err);
		if (!r) {
			b->done += n;
			count -= n;
		}
	}
	return r;
}

int recipe_builder_finish(struct recipe_builder *b, struct fp *root, struct error *err)
{
	int r = builder_check(b, 0, err);

	if (r)
		return r;
	if (b->done != b->tree.blocks)
		return error_set(err, -EINVAL, "recipe: %llu of the image's %llu blocks are there",
				 (unsigned long long)b->done, (unsigned long long)b->tree.blocks);
	*root = b->root;
	return 0;
}

/* ---- a path through a tree ---- */

struct path {
	struct tree tree;
	struct frame frames[LEVELS_MAX];
};

static struct path *path_new(const struct fp *root, uint64_t size, unsigned int block_shift,
			     enum fp_algorithm alg, const struct recipe_ops *ops, void *ctx,
			     int *r, struct error *err)
{
	struct path *p;
	struct tree t;

	*r = tree_init(&t, size, block_shift, alg, ops, ctx, err);
	if (*r)
		return NULL;
	p = malloc(sizeof(*p));
	if (!p) {
		*r = error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	p->tree = t;
	for (unsigned int l = 0; l < LEVELS_MAX; l++)
		p->frames[l].open = false;
	p->frames[t.levels - 1].hash = *root;
	return p;
}

/* Read the node of @level on the way to @block, whose hash the caller has set. */
static int path_open(struct path *p, unsigned int level, uint64_t block, struct error *err)
{
	struct frame *f = &p->frames[level];
	int r;

	f->open = false;
	f->index = node_index(block, level);
	r = node_get(&p->tree, &f->hash, level, f->index, &f->node, err);
	if (r)
		return r;
	f->open = true;
	return 0;
}

static bool path_has(const struct path *p, unsigned int level, uint64_t block)
{
	return p->frames[level].open && p->frames[level].index == node_index(block, level);
}

/* Go down to @block; stops above a subtree of zeros. *@level: of the node whose entry it is. */
static int path_find(struct path *p, uint64_t block, unsigned int *level, const struct fp **entry,
		     struct error *err)
{
	unsigned int top = p->tree.levels - 1, l = 0;
	int r;

	while (l < top && !path_has(p, l, block))
		l++;
	if (!path_has(p, l, block)) {
		r = path_open(p, l, block, err);
		if (r)
			return r;
	}
	for (;;) {
		*entry = &p->frames[l].node.entries[entry_index(block, l)];
		*level = l;
		if (!l || fp_is_zero(*entry))
			return 0;
		p->frames[l - 1].hash = **entry;
		r = path_open(p, --l, block, err);
		if (r)
			return r;
	}
}

/* ---- change ---- */

/* The node of @level has got all its changes: put it and tell its parent. */
static int path_close(struct path *p, unsigned int level, struct fp *root, struct error *err)
{
	struct frame *f = &p->frames[level];
	struct fp hash;
	int r;

	if (!f->open)
		return 0;
	r = node_put(&p->tree, &f->node, &f->hash, &hash, err);
	if (r)
		return r;
	f->open = false;
	if (level + 1 == p->tree.levels)
		*root = hash;
	else
		p->frames[level + 1].node.entries[f->index & (RECIPE_FANOUT - 1)] = hash;
	return 0;
}

/* Make the open path the one to @block, zeros or not. */
static int path_move(struct path *p, uint64_t block, struct error *err)
{
	unsigned int top = p->tree.levels - 1, l = 0;
	int r;

	for (; l < top && !path_has(p, l, block); l++) {
		r = path_close(p, l, NULL, err);
		if (r)
			return r;
	}
	if (!p->frames[l].open) {
		r = path_open(p, l, block, err);
		if (r)
			return r;
	}
	while (l) {
		p->frames[l - 1].hash = p->frames[l].node.entries[entry_index(block, l)];
		r = path_open(p, --l, block, err);
		if (r)
			return r;
	}
	return 0;
}

int recipe_update(const struct fp *root, uint64_t size, unsigned int block_shift,
		  enum fp_algorithm alg, const struct recipe_change *changes, size_t count,
		  const struct recipe_ops *ops, void *ctx, struct fp *new_root, struct error *err)
{
	struct fp result = *root;
	struct path *p;
	int r;

	p = path_new(root, size, block_shift, alg, ops, ctx, &r, err);
	if (!p)
		return r;
	for (size_t i = 0; i < count; i++) {
		uint64_t block = changes[i].block;

		if (block >= p->tree.blocks || (i && block <= changes[i - 1].block)) {
			r = error_set(err, -EINVAL,
				      "recipe: change %zu of block %llu is out of order or beyond "
				      "%llu",
				      i, (unsigned long long)block,
				      (unsigned long long)p->tree.blocks);
			goto free_path;
		}
		r = path_move(p, block, err);
		if (r)
			goto free_path;
		p->frames[0].node.entries[entry_index(block, 0)] = changes[i].fp;
	}
	for (unsigned int l = 0; l < p->tree.levels; l++) {
		r = path_close(p, l, &result, err);
		if (r)
			goto free_path;
	}
	*new_root = result;

free_path:
	free(p);
	return r;
}

/* ---- read ---- */

struct zero_run {
	uint64_t first, count;
	int (*visit)(void *arg, uint64_t block, uint64_t run, const struct fp *fp);
	void *arg;
};

static int zero_run_end(struct zero_run *z)
{
	int r = z->count ? z->visit(z->arg, z->first, z->count, NULL) : 0;

	z->count = 0;
	return r;
}

int recipe_walk(const struct fp *root, uint64_t size, unsigned int block_shift,
		enum fp_algorithm alg, uint64_t first, uint64_t count, const struct recipe_ops *ops,
		void *ctx,
		int (*visit)(void *arg, uint64_t block, uint64_t run, const struct fp *fp),
		void *arg, struct error *err)
{
	struct zero_run zeros = { .visit = visit, .arg = arg };
	uint64_t block = first, end = first + count;
	struct path *p;
	int r;

	p = path_new(root, size, block_shift, alg, ops, ctx, &r, err);
	if (!p)
		return r;
	if (first > p->tree.blocks || count > p->tree.blocks - first) {
		r = error_set(err, -EINVAL, "recipe: blocks %llu to %llu of an image of %llu",
			      (unsigned long long)first, (unsigned long long)end,
			      (unsigned long long)p->tree.blocks);
		goto free_path;
	}
	while (block < end) {
		const struct fp *entry;
		unsigned int level;

		r = path_find(p, block, &level, &entry, err);
		if (r)
			goto free_path;
		if (fp_is_zero(entry)) {
			uint64_t next = ((block >> (level * FANOUT_SHIFT)) + 1)
					<< (level * FANOUT_SHIFT);

			if (next > end)
				next = end;
			if (!zeros.count)
				zeros.first = block;
			zeros.count += next - block;
			block = next;
			continue;
		}
		r = zero_run_end(&zeros);
		if (!r)
			r = visit(arg, block, 1, entry);
		if (r)
			goto free_path;
		block++;
	}
	r = zero_run_end(&zeros);

free_path:
	free(p);
	return r;
}

int recipe_lookup(const struct fp *root, uint64_t size, unsigned int block_shift,
		  enum fp_algorithm alg, uint64_t block, const struct recipe_ops *ops, void *ctx,
		  struct fp *out, struct error *err)
{
	const struct fp *entry;
	unsigned int level;
	struct path *p;
	int r;

	p = path_new(root, size, block_shift, alg, ops, ctx, &r, err);
	if (!p)
		return r;
	if (block >= p->tree.blocks) {
		r = error_set(err, -EINVAL, "recipe: block %llu of an image of %llu",
			      (unsigned long long)block, (unsigned long long)p->tree.blocks);
		goto free_path;
	}
	r = path_find(p, block, &level, &entry, err);
	if (!r)
		*out = *entry;

free_path:
	free(p);
	return r;
}
