// SPDX-License-Identifier: GPL-2.0-or-later
/* Recipe nodes and the shape of their tree; proto/recipe_tree.c builds, changes and reads trees. */
#include <endian.h>
#include <errno.h>
#include <openssl/sha.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/recipe.h"

#define FANOUT_SHIFT 8
#define NODE_MAGIC   "VDRN"
#define NODE_FORMAT  1
/* 64 TiB in blocks of 4 KiB are 2^34 blocks: five levels. */
#define LEVELS_MAX   5

_Static_assert(RECIPE_FANOUT == 1 << FANOUT_SHIFT, "the shape is computed by shifts");
_Static_assert(IMAGE_SIZE_MAX >> BLOCK_SHIFT_MIN <= 1ULL << (LEVELS_MAX * FANOUT_SHIFT),
	       "the largest image fits");

/* A node's header as stored. */
struct node_header {
	char magic[4];
	uint8_t format;
	uint8_t level;
	uint8_t block_shift;
	uint8_t algorithm;
	uint32_t count;
	uint32_t reserved;
};
_Static_assert(sizeof(struct node_header) == RECIPE_HEADER_SIZE, "part of the format");

static const size_t digest_sizes[] = { [FP_SHA256] = 32, [FP_SHA1] = 20, [FP_MD5] = 16 };

/* Shorter digests end in zeros: a leaf that says otherwise names blocks that cannot exist. */
static int check_leaf(const struct recipe_node *node, struct error *err)
{
	size_t size = digest_sizes[node->algorithm];

	for (uint32_t i = 0; i < node->count; i++)
		if (!mem_is_zero(node->entries[i].b + size, FP_SIZE - size))
			return error_set(err, -EBADMSG,
					 "recipe node: entry %u is longer than a %s digest", i,
					 fp_algorithm_name(node->algorithm));
	return 0;
}

int recipe_node_decode(struct recipe_node *node, const void *data, size_t len, struct error *err)
{
	struct node_header h;
	uint32_t count;

	if (len < sizeof(h) || len > RECIPE_NODE_MAX)
		return error_set(err, -EBADMSG, "recipe node: %zu bytes, not %d to %d", len,
				 RECIPE_HEADER_SIZE + FP_SIZE, RECIPE_NODE_MAX);
	memcpy(&h, data, sizeof(h));
	if (memcmp(h.magic, NODE_MAGIC, sizeof(h.magic)))
		return error_set(err, -EBADMSG, "recipe node: no magic");
	if (h.format != NODE_FORMAT)
		return error_set(err, -EBADMSG, "recipe node: format %u, this program knows %u",
				 h.format, NODE_FORMAT);
	if (h.level >= LEVELS_MAX)
		return error_set(err, -EBADMSG, "recipe node: level %u", h.level);
	if (h.block_shift < BLOCK_SHIFT_MIN || h.block_shift > BLOCK_SHIFT_MAX)
		return error_set(err, -EBADMSG, "recipe node: block shift %u", h.block_shift);
	if (h.algorithm > FP_MD5)
		return error_set(err, -EBADMSG, "recipe node: algorithm %u", h.algorithm);
	count = le32toh(h.count);
	if (!count || count > RECIPE_FANOUT || h.reserved)
		return error_set(err, -EBADMSG, "recipe node: %u entries, reserved field %#x",
				 count,
				 le32toh(h.reserved));
	if (len != sizeof(h) + count * FP_SIZE)
		return error_set(err, -EBADMSG, "recipe node: %zu bytes for %u entries", len,
				 count);
	if (mem_is_zero((const uint8_t *)data + sizeof(h), len - sizeof(h)))
		return error_set(err, -EBADMSG, "recipe node: nothing but zero entries");
	node->level = h.level;
	node->block_shift = h.block_shift;
	node->algorithm = h.algorithm;
	node->count = count;
	memcpy(node->entries, (const uint8_t *)data + sizeof(h), len - sizeof(h));
	return h.level ? 0 : check_leaf(node, err);
}

size_t recipe_node_encode(const struct recipe_node *node, uint8_t out[RECIPE_NODE_MAX])
{
	const struct node_header h = {
		.magic = NODE_MAGIC,
		.format = NODE_FORMAT,
		.level = node->level,
		.block_shift = node->block_shift,
		.algorithm = node->algorithm,
		.count = htole32(node->count),
	};

	memcpy(out, &h, sizeof(h));
	memcpy(out + sizeof(h), node->entries, node->count * FP_SIZE);
	return sizeof(h) + node->count * FP_SIZE;
}

void recipe_node_hash(const void *data, size_t len, struct fp *out)
{
	const uint8_t *p = data;

	if (len >= RECIPE_HEADER_SIZE &&
	    mem_is_zero(p + RECIPE_HEADER_SIZE, len - RECIPE_HEADER_SIZE))
		memset(out, 0, sizeof(*out));
	else
		SHA256(p, len, out->b);
}

uint64_t recipe_blocks(uint64_t size, unsigned int block_shift)
{
	return (size >> block_shift) + !!(size & ((1ULL << block_shift) - 1));
}

unsigned int recipe_levels(uint64_t blocks)
{
	unsigned int levels = 1;

	while (levels * FANOUT_SHIFT < 64 && (blocks - 1) >> (levels * FANOUT_SHIFT))
		levels++;
	return levels;
}

uint64_t recipe_level_nodes(uint64_t blocks, unsigned int level)
{
	unsigned int shift = (level + 1) * FANOUT_SHIFT;

	return shift < 64 ? ((blocks - 1) >> shift) + 1 : 1;
}

unsigned int recipe_node_entries(uint64_t blocks, unsigned int level, uint64_t index)
{
	uint64_t below = level ? recipe_level_nodes(blocks, level - 1) : blocks;
	uint64_t left = below - (index << FANOUT_SHIFT);

	return left < RECIPE_FANOUT ? left : RECIPE_FANOUT;
}
