// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Recipe nodes, and walks through trees of them: the input is nodes, each behind two bytes of
 * length; what they are the nodes of, the first byte says.
 */
#include <errno.h>
#include <string.h>

#include "fuzz.h"
#include "proto/limits.h"
#include "proto/recipe.h"

#define MAX_NODES 64

struct nodes {
	size_t nr;
	struct {
		struct fp hash;
		const uint8_t *data;
		size_t len;
	} node[MAX_NODES];
};

static int get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
	       struct error *err)
{
	const struct nodes *nodes = ctx;

	for (size_t i = 0; i < nodes->nr; i++)
		if (fp_equal(&nodes->node[i].hash, hash)) {
			memcpy(out, nodes->node[i].data, nodes->node[i].len);
			*len = nodes->node[i].len;
			return 0;
		}
	return error_set(err, -ENOENT, "no such node");
}

static int put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len, struct error *err)
{
	struct recipe_node node;

	/* What we make ourselves is well formed. */
	FUZZ_CHECK(!recipe_node_decode(&node, data, len, err));
	return 0;
}

static const struct recipe_ops ops = { .get = get, .put = put };

static int visit(void *arg, uint64_t block, uint64_t run, const struct fp *fp)
{
	uint64_t *next = arg;

	FUZZ_CHECK(block == *next && run && (!fp || run == 1));
	*next += run;
	return 0;
}

static void check_node(const uint8_t *data, size_t len)
{
	uint8_t again[RECIPE_NODE_MAX];
	struct recipe_node node;

	if (recipe_node_decode(&node, data, len, NULL))
		return;
	FUZZ_CHECK(recipe_node_encode(&node, again) == len && !memcmp(again, data, len));
}

static void check_tree(struct nodes *nodes, const struct fp *root, uint64_t size,
		       unsigned int shift)
{
	uint64_t blocks = recipe_blocks(size, shift), next = 0;
	struct recipe_change changes[2] = { { blocks / 2, { { 1 } } }, { blocks - 1, { { 2 } } } };
	struct fp fp;

	if (!recipe_walk(root, size, shift, FP_SHA256, 0, blocks, &ops, nodes, visit, &next, NULL))
		FUZZ_CHECK(next == blocks);
	recipe_lookup(root, size, shift, FP_SHA256, blocks - 1, &ops, nodes, &fp, NULL);
	if (blocks > 2)
		recipe_update(root, size, shift, FP_SHA256, changes, 2, &ops, nodes, &fp, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint32_t sizes[] = { 1, 100, 256, 257, 600, 65536, 70000 };
	struct nodes nodes = { 0 };
	uint64_t blocks;

	check_node(data, size);
	if (!size)
		return 0;
	blocks = sizes[*data++ % (sizeof(sizes) / sizeof(sizes[0]))];
	size--;
	while (nodes.nr < MAX_NODES && size >= 2) {
		size_t len = data[0] | data[1] << 8;

		data += 2;
		size -= 2;
		if (len > size)
			len = size;
		if (len > RECIPE_NODE_MAX)
			len = RECIPE_NODE_MAX;
		check_node(data, len);
		nodes.node[nodes.nr].data = data;
		nodes.node[nodes.nr].len = len;
		recipe_node_hash(data, len, &nodes.node[nodes.nr++].hash);
		data += len;
		size -= len;
	}
	if (nodes.nr)
		check_tree(&nodes, &nodes.node[nodes.nr - 1].hash, blocks << 18, 18);
	return 0;
}

/* ---- seeds: real trees ---- */

struct writer {
	uint8_t *out;
	size_t len, room;
};

static int write_node(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		      struct error *err)
{
	struct writer *w = ctx;

	FUZZ_CHECK(w->len + 2 + len <= w->room);
	w->out[w->len++] = len;
	w->out[w->len++] = len >> 8;
	memcpy(w->out + w->len, data, len);
	w->len += len;
	return 0;
}

static const struct recipe_ops writer_ops = { .put = write_node };

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	static const struct {
		uint8_t size; /* index into the sizes above */
		uint32_t blocks, zeros;
	} seeds[] = { { 0, 1, 0 }, { 1, 100, 40 }, { 3, 257, 10 }, { 4, 600, 300 }, { 6, 70000,
										     69990 } };
	struct writer w = { out, 1, room };
	struct recipe_builder *b;
	struct fp fp = { { 0 } };

	if (n >= sizeof(seeds) / sizeof(seeds[0]))
		return 0;
	out[0] = seeds[n].size;
	b = recipe_builder_new((uint64_t)seeds[n].blocks << 18, 18, FP_SHA256, &writer_ops, &w);
	FUZZ_CHECK(b && !recipe_builder_add_zeros(b, seeds[n].zeros, NULL));
	for (uint32_t i = seeds[n].zeros; i < seeds[n].blocks; i++) {
		fp.b[0] = i + 1;
		fp.b[31] = 1;
		FUZZ_CHECK(!recipe_builder_add(b, &fp, NULL));
	}
	FUZZ_CHECK(!recipe_builder_finish(b, &fp, NULL));
	recipe_builder_free(b);
	return w.len;
}
