// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "proto/limits.h"
#include "proto/recipe.h"

/* Nodes in memory. */
struct stored {
	struct stored *next;
	struct fp hash;
	size_t len;
	uint8_t data[];
};

struct store {
	struct stored *buckets[256];
	size_t gets, puts;
	int put_error; /* answer to every put */
};

static struct stored *store_find(struct store *s, const struct fp *hash)
{
	struct stored *n = s->buckets[hash->b[0]];

	while (n && !fp_equal(&n->hash, hash))
		n = n->next;
	return n;
}

static int store_get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		     struct error *err)
{
	struct store *s = ctx;
	struct stored *n = store_find(s, hash);

	s->gets++;
	if (!n)
		return error_set(err, -ENOENT, "no such node");
	memcpy(out, n->data, n->len);
	*len = n->len;
	return 0;
}

static int store_put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		     struct error *err)
{
	struct recipe_node node;
	struct store *s = ctx;
	struct stored *n;

	if (s->put_error)
		return error_set(err, s->put_error, "put refused");
	s->puts++;
	if (store_find(s, hash))
		return 0;
	/* What comes out decodes, and its children came first. */
	assert_int_equal(recipe_node_decode(&node, data, len, NULL), 0);
	if (node.level)
		for (uint32_t i = 0; i < node.count; i++)
			assert_true(fp_is_zero(&node.entries[i]) ||
				    store_find(s, &node.entries[i]));
	n = malloc(sizeof(*n) + len);
	assert_non_null(n);
	n->hash = *hash;
	n->len = len;
	memcpy(n->data, data, len);
	n->next = s->buckets[hash->b[0]];
	s->buckets[hash->b[0]] = n;
	return 0;
}

static const struct recipe_ops store_ops = { .get = store_get, .put = store_put };

static void store_clear(struct store *s)
{
	for (size_t i = 0; i < 256; i++)
		while (s->buckets[i]) {
			struct stored *n = s->buckets[i];

			s->buckets[i] = n->next;
			free(n);
		}
	memset(s, 0, sizeof(*s));
}

static struct fp random_fp(void)
{
	struct fp fp;

	for (size_t i = 0; i < sizeof(fp); i++)
		fp.b[i] = rand() >> 8;
	fp.b[5] |= 1;
	return fp;
}

/* Some blocks are zero, in runs. */
static void random_blocks(struct fp *fps, size_t n)
{
	for (size_t i = 0; i < n;) {
		size_t run = 1 + (size_t)rand() % (rand() % 8 ? 20 : 700);
		bool zero = rand() % 2;

		for (; run && i < n; run--, i++)
			fps[i] = zero ? (struct fp){ 0 } : random_fp();
	}
}

static struct fp build(struct store *s, const struct fp *fps, size_t n, bool use_zeros)
{
	struct recipe_builder *b = recipe_builder_new((uint64_t)n << 18, 18, FP_SHA256, &store_ops,
						      s);
	struct fp root;

	assert_non_null(b);
	for (size_t i = 0; i < n;) {
		size_t run = 0;

		while (use_zeros && i + run < n && fp_is_zero(&fps[i + run]))
			run++;
		if (run)
			assert_int_equal(recipe_builder_add_zeros(b, run, NULL), 0);
		else
			assert_int_equal(recipe_builder_add(b, &fps[i], NULL), 0);
		i += run ? run : 1;
	}
	assert_int_equal(recipe_builder_finish(b, &root, NULL), 0);
	recipe_builder_free(b);
	return root;
}

struct expect {
	const struct fp *fps;
	uint64_t next, end;
	bool last_was_zeros;
};

static int expect_visit(void *arg, uint64_t block, uint64_t run, const struct fp *fp)
{
	struct expect *e = arg;

	assert_true(block == e->next && run && run <= e->end - block);
	/* Zeros come as one call. */
	assert_false(!fp && e->last_was_zeros);
	e->last_was_zeros = !fp;
	if (fp) {
		assert_true(run == 1 && fp_equal(fp, &e->fps[block]));
	} else {
		for (uint64_t i = 0; i < run; i++)
			assert_true(fp_is_zero(&e->fps[block + i]));
	}
	e->next += run;
	return 0;
}

static void check_tree(struct store *s, const struct fp *root, const struct fp *fps, size_t n)
{
	uint64_t size = (uint64_t)n << 18;

	for (int i = 0; i < 6; i++) {
		uint64_t first = i ? (uint64_t)rand() % n : 0;
		uint64_t count = i ? (uint64_t)rand() % (n - first + 1) : n;
		struct expect e = { .fps = fps, .next = first, .end = first + count };

		assert_int_equal(recipe_walk(root, size, 18, FP_SHA256, first, count, &store_ops, s,
					     expect_visit, &e, NULL),
				 0);
		assert_true(e.next == e.end);
	}
	for (int i = 0; i < 20; i++) {
		uint64_t block = (uint64_t)rand() % n;
		struct fp fp;

		assert_int_equal(recipe_lookup(root, size, 18, FP_SHA256, block, &store_ops, s, &fp,
					       NULL),
				 0);
		assert_true(fp_equal(&fp, &fps[block]));
	}
}

static const size_t sizes[] = { 1, 2, 255, 256, 257, 511, 512, 513, 65535, 65536, 65537, 66000 };

static void test_shape(void **state)
{
	assert_true(recipe_blocks(1, 12) == 1 && recipe_blocks(4096, 12) == 1);
	assert_true(recipe_blocks(4097, 12) == 2);
	assert_true(recipe_blocks(UINT64_MAX, 12) == 1ULL << 52);
	assert_int_equal(recipe_levels(1), 1);
	assert_int_equal(recipe_levels(256), 1);
	assert_int_equal(recipe_levels(257), 2);
	assert_int_equal(recipe_levels(65536), 2);
	assert_int_equal(recipe_levels(65537), 3);
	assert_int_equal(recipe_levels(1ULL << 34), 5);
	assert_int_equal(recipe_levels(UINT64_MAX), 8);
	assert_true(recipe_level_nodes(257, 0) == 2 && recipe_level_nodes(257, 1) == 1);
	assert_true(recipe_level_nodes(1ULL << 34, 0) == 1ULL << 26);
	assert_int_equal(recipe_node_entries(257, 0, 0), 256);
	assert_int_equal(recipe_node_entries(257, 0, 1), 1);
	assert_int_equal(recipe_node_entries(257, 1, 0), 2);
}

/* However a tree comes to its content, it has the same root, and reads back. */
static void test_build(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct fp *fps = calloc(sizes[i], sizeof(*fps)), root, with_zeros;
		struct store s = { 0 }, s2 = { 0 };

		random_blocks(fps, sizes[i]);
		root = build(&s, fps, sizes[i], false);
		with_zeros = build(&s2, fps, sizes[i], true);
		assert_true(fp_equal(&root, &with_zeros));
		assert_int_equal(s.puts, s2.puts);
		check_tree(&s, &root, fps, sizes[i]);
		store_clear(&s);
		store_clear(&s2);
		free(fps);
	}
}

static void test_update(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		size_t n = sizes[i];
		struct fp *fps = calloc(n, sizeof(*fps)), root = { 0 }, want;
		struct recipe_change *changes = calloc(n, sizeof(*changes));
		struct store s = { 0 }, fresh = { 0 };

		for (int round = 0; round < 6; round++) {
			size_t count = 0;
			/* Few, many and all of the blocks; the last rounds only make zeros. */
			int every = round % 3 == 0 ? 1 : round % 3 == 1 ? 50 : 1000;

			for (size_t b = 0; b < n; b++)
				if (rand() % every == 0) {
					fps[b] = rand() % 4 && round < 3 ? random_fp() :
									   (struct fp){ 0 };
					changes[count++] = (struct recipe_change){ b, fps[b] };
				}
			assert_int_equal(recipe_update(&root, (uint64_t)n << 18, 18, FP_SHA256,
						       changes, count, &store_ops, &s, &root, NULL),
					 0);
			want = build(&fresh, fps, n, true);
			assert_true(fp_equal(&root, &want));
			check_tree(&s, &root, fps, n);
		}
		store_clear(&s);
		store_clear(&fresh);
		free(fps);
		free(changes);
	}
}

/* The cost does not depend on the image's size but on what changes. */
static void test_huge(void **state)
{
	const uint64_t size = IMAGE_SIZE_MAX, blocks = size >> 12;
	struct recipe_change change = { blocks - 1, random_fp() };
	struct fp root = { 0 }, zeros, fp;
	struct store s = { 0 };
	struct recipe_builder *b = recipe_builder_new(size, 12, FP_SHA256, &store_ops, &s);

	assert_int_equal(recipe_builder_add_zeros(b, blocks, NULL), 0);
	assert_int_equal(recipe_builder_finish(b, &zeros, NULL), 0);
	recipe_builder_free(b);
	assert_true(fp_is_zero(&zeros));
	assert_int_equal(s.puts, 0);

	assert_int_equal(recipe_update(&root, size, 12, FP_SHA256, &change, 1, &store_ops, &s,
				       &root,
				       NULL),
			 0);
	assert_int_equal(s.puts, 5);
	assert_int_equal(s.gets, 0);
	assert_int_equal(recipe_lookup(&root, size, 12, FP_SHA256, blocks - 1, &store_ops, &s, &fp,
				       NULL),
			 0);
	assert_true(fp_equal(&fp, &change.fp));
	assert_int_equal(s.gets, 5);

	/* The same once more changes nothing and stores nothing. */
	s.puts = s.gets = 0;
	assert_int_equal(recipe_update(&root, size, 12, FP_SHA256, &change, 1, &store_ops, &s, &fp,
				       NULL),
			 0);
	assert_true(fp_equal(&fp, &root));
	assert_int_equal(s.puts, 0);
	assert_int_equal(s.gets, 5);

	/* One block among zeros, built. */
	b = recipe_builder_new(size, 12, FP_SHA256, &store_ops, &s);
	assert_int_equal(recipe_builder_add_zeros(b, blocks - 1, NULL), 0);
	assert_int_equal(recipe_builder_add(b, &change.fp, NULL), 0);
	assert_int_equal(recipe_builder_finish(b, &fp, NULL), 0);
	recipe_builder_free(b);
	assert_true(fp_equal(&fp, &root));
	assert_int_equal(s.puts, 5);
	store_clear(&s);
}

static void test_misuse(void **state)
{
	struct recipe_change changes[2] = { { 3, random_fp() }, { 3, random_fp() } };
	struct fp root = { 0 }, fp = random_fp();
	struct recipe_builder *b;
	struct store s = { 0 };
	struct error err;

	assert_null(recipe_builder_new(0, 18, FP_SHA256, &store_ops, &s));
	assert_null(recipe_builder_new(IMAGE_SIZE_MAX + 1, 18, FP_SHA256, &store_ops, &s));
	assert_null(recipe_builder_new(1, 11, FP_SHA256, &store_ops, &s));
	assert_null(recipe_builder_new(1, 21, FP_SHA256, &store_ops, &s));
	assert_null(recipe_builder_new(1, 18, 3, &store_ops, &s));

	b = recipe_builder_new(3 << 18, 18, FP_SHA256, &store_ops, &s);
	assert_int_equal(recipe_builder_add(b, &fp, &err), 0);
	assert_int_equal(recipe_builder_finish(b, &root, &err), -EINVAL);
	assert_int_equal(recipe_builder_add_zeros(b, 3, &err), -EINVAL);
	/* After an error there is no root. */
	assert_int_equal(recipe_builder_add_zeros(b, 2, &err), -EINVAL);
	assert_int_equal(recipe_builder_finish(b, &root, &err), -EINVAL);
	recipe_builder_free(b);

	s.put_error = -ENOSPC;
	b = recipe_builder_new(1, 18, FP_SHA256, &store_ops, &s);
	assert_int_equal(recipe_builder_add(b, &fp, &err), -ENOSPC);
	assert_string_equal(err.text, "put refused");
	assert_int_equal(recipe_builder_finish(b, &root, &err), -ENOSPC);
	recipe_builder_free(b);
	assert_int_equal(recipe_update(&root, 9 << 18, 18, FP_SHA256, changes, 1, &store_ops, &s,
				       &root, &err),
			 -ENOSPC);
	assert_true(fp_is_zero(&root));
	s.put_error = 0;

	assert_int_equal(recipe_update(&root, 9 << 18, 18, FP_SHA256, changes, 2, &store_ops, &s,
				       &root, &err),
			 -EINVAL);
	changes[1].block = 9;
	assert_int_equal(recipe_update(&root, 9 << 18, 18, FP_SHA256, changes, 2, &store_ops, &s,
				       &root, &err),
			 -EINVAL);
	assert_int_equal(recipe_lookup(&root, 9 << 18, 18, FP_SHA256, 9, &store_ops, &s, &fp, &err),
			 -EINVAL);
	assert_int_equal(recipe_walk(&root, 9 << 18, 18, FP_SHA256, 9, 1, &store_ops, &s, NULL,
				     NULL, &err),
			 -EINVAL);
	assert_int_equal(recipe_walk(&root, 9 << 18, 18, FP_SHA256, 2, UINT64_MAX, &store_ops, &s,
				     NULL, NULL, &err),
			 -EINVAL);
	assert_int_equal(recipe_walk(&root, 9 << 18, 18, FP_SHA256, 9, 0, &store_ops, &s, NULL,
				     NULL,
				     &err),
			 0);
	store_clear(&s);
}

static int stop_visit(void *arg, uint64_t block, uint64_t run, const struct fp *fp)
{
	return 42;
}

/* Nodes that do not belong where a tree names them are refused, whatever they say. */
static void test_hostile_tree(void **state)
{
	const uint64_t size = 300 << 18;
	struct fp fps[300], root, fp;
	struct recipe_node node;
	struct store s = { 0 };
	struct stored *n;
	struct error err;

	for (size_t i = 0; i < 300; i++)
		fps[i] = random_fp();
	root = build(&s, fps, 300, false);
	assert_int_equal(recipe_walk(&root, size, 18, FP_SHA256, 0, 300, &store_ops, &s, stop_visit,
				     NULL, &err),
			 42);

	/* Other sizes, block sizes and algorithms than the tree's. */
	assert_int_equal(recipe_lookup(&root, 256 << 18, 18, FP_SHA256, 0, &store_ops, &s, &fp,
				       &err),
			 -EBADMSG);
	assert_int_equal(recipe_lookup(&root, 513 << 18, 18, FP_SHA256, 0, &store_ops, &s, &fp,
				       &err),
			 -EBADMSG);
	assert_int_equal(recipe_lookup(&root, 300 << 12, 12, FP_SHA256, 0, &store_ops, &s, &fp,
				       &err),
			 -EBADMSG);
	assert_int_equal(recipe_lookup(&root, size, 18, FP_SHA1, 0, &store_ops, &s, &fp, &err),
			 -EBADMSG);

	/* A root that names itself as its child's hash cannot be made; one that names a leaf of
	 * the wrong place can. */
	n = store_find(&s, &root);
	assert_int_equal(recipe_node_decode(&node, n->data, n->len, NULL), 0);
	node.entries[1] = node.entries[0];
	{
		uint8_t data[RECIPE_NODE_MAX];
		size_t len = recipe_node_encode(&node, data);

		recipe_node_hash(data, len, &fp);
		assert_int_equal(store_put(&s, &fp, data, len, NULL), 0);
	}
	assert_int_equal(recipe_lookup(&fp, size, 18, FP_SHA256, 299, &store_ops, &s, &fps[0],
				       &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "256 entries"));

	/* Bytes that do not match the hash. */
	n->data[20] ^= 1;
	assert_int_equal(recipe_lookup(&root, size, 18, FP_SHA256, 0, &store_ops, &s, &fp, &err),
			 -EBADMSG);
	assert_non_null(strstr(err.text, "does not match its hash"));
	/* An unknown root. */
	fp = random_fp();
	assert_int_equal(recipe_lookup(&fp, size, 18, FP_SHA256, 0, &store_ops, &s, &fp, &err),
			 -ENOENT);
	store_clear(&s);
}

static void test_hostile_node(void **state)
{
	static const struct {
		size_t offset;
		uint8_t value;
	} cases[] = {
		{ 0, 'X' }, { 3, 'n' }, { 4, 0 },  { 4, 2 },  { 5, 5 },	 { 5, 255 }, { 6, 11 },
		{ 6, 21 },  { 7, 3 },	{ 8, 0 },  { 8, 1 },  { 8, 3 },	 { 9, 1 },   { 9, 255 },
		{ 11, 255 }, { 12, 1 }, { 15, 1 },
	};
	struct recipe_node node = { .block_shift = 18, .count = 2 };
	uint8_t data[RECIPE_NODE_MAX + 1];
	struct error err;
	struct fp hash;
	size_t len;

	node.entries[0] = random_fp();
	node.entries[1] = random_fp();
	len = recipe_node_encode(&node, data);
	assert_int_equal(len, RECIPE_HEADER_SIZE + 2 * FP_SIZE);
	assert_int_equal(recipe_node_decode(&node, data, len, &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint8_t old = data[cases[i].offset];

		data[cases[i].offset] = cases[i].value;
		if (recipe_node_decode(&node, data, len, &err) != -EBADMSG)
			fail_msg("byte %zu = %u", cases[i].offset, cases[i].value);
		data[cases[i].offset] = old;
	}
	for (size_t l = 0; l <= sizeof(data); l++)
		assert_int_equal(recipe_node_decode(&node, data, l, &err), l == len ? 0 : -EBADMSG);
	/* A SHA-1 leaf with 32 digits; a level above holds hashes of nodes, always SHA-256. */
	data[7] = FP_SHA1;
	assert_int_equal(recipe_node_decode(&node, data, len, &err), -EBADMSG);
	data[5] = 1;
	assert_int_equal(recipe_node_decode(&node, data, len, &err), 0);
	memset(data + RECIPE_HEADER_SIZE, 0, 2 * FP_SIZE);
	assert_int_equal(recipe_node_decode(&node, data, len, &err), -EBADMSG);
	recipe_node_hash(data, len, &hash);
	assert_true(fp_is_zero(&hash));
}

/* The format does not move: this node has this hash for ever. */
static void test_golden(void **state)
{
	struct recipe_node node = { .level = 0, .block_shift = 18, .count = 3 };
	uint8_t data[RECIPE_NODE_MAX];
	char hex[FP_HEX_SIZE];
	struct fp hash;
	size_t len;

	memset(&node.entries[0], 0x11, FP_SIZE);
	memset(&node.entries[2], 0x22, FP_SIZE);
	len = recipe_node_encode(&node, data);
	recipe_node_hash(data, len, &hash);
	assert_string_equal(fp_to_hex(&hash, hex),
			    "5c6f0e1ecb7fa84971dd2dacf0bfeec0edb9ec81bd8900556624e64105380766");
}

/* A tree that has grown is the tree of the larger image, whatever the two sizes are. */
static void test_grow(void **state)
{
	static const size_t grown[] = { 1, 2, 255, 256, 257, 300, 511, 512, 513, 65535, 65536, 65537,
					70000, 131072 };
	const size_t nr = ARRAY_SIZE(grown), max = grown[nr - 1];
	struct fp *fps = calloc(max, sizeof(*fps)), from, want, got, out;
	struct store s = { 0 };

	for (size_t i = 0; i < nr; i++) {
		for (int zeros = 0; zeros < 3; zeros++) {
			memset(fps, 0, max * sizeof(*fps));
			random_blocks(fps, grown[i]);
			if (zeros == 1) /* its end is not to be seen */
				memset(fps + grown[i] / 2, 0, (grown[i] - grown[i] / 2) * sizeof(*fps));
			if (zeros == 2)
				fps[grown[i] - 1] = random_fp();
			from = build(&s, fps, grown[i], true);
			for (size_t j = i; j < nr; j++) {
				want = build(&s, fps, grown[j], true);
				assert_int_equal(recipe_grow(&from, (uint64_t)grown[j] << 18, 18, FP_SHA256,
							     &store_ops, &s, &got, NULL), 0);
				assert_memory_equal(&got, &want, sizeof(want));
				for (int k = 0; k < 20; k++) {
					size_t block = (size_t)rand() % grown[j];

					assert_int_equal(recipe_lookup_any(&from, 18, FP_SHA256, block,
									   &store_ops, &s, &out, NULL), 0);
					assert_memory_equal(&out, &fps[block], sizeof(out));
				}
			}
			if (i && zeros == 2)
				assert_int_equal(recipe_grow(&from, (uint64_t)grown[i - 1] << 18, 18,
							     FP_SHA256, &store_ops, &s, &got, NULL),
						 -EINVAL);
			store_clear(&s);
		}
	}
	free(fps);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shape),	     cmocka_unit_test(test_build),
		cmocka_unit_test(test_update),	     cmocka_unit_test(test_huge),
		cmocka_unit_test(test_misuse),	     cmocka_unit_test(test_hostile_tree),
		cmocka_unit_test(test_hostile_node), cmocka_unit_test(test_golden),
		cmocka_unit_test(test_grow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
