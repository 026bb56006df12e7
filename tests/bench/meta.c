// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A meta server's store with many blocks and images: size, start, look-ups and commits.
 *
 *   meta [--blocks N] [--images N] [--seconds S] [--store sqlite|postgresql] [--dir DIR]
 *
 * Makes a store of N blocks (5,000,000), each named by one leaf of 256, and N images (100,000), of
 * one leaf each, in SQLite and in a PostgreSQL of its own, both below DIR (/var/tmp) and syncing to
 * its disk; then measures each thing for S seconds (5) through the core, one request in a
 * transaction and 32 in one. A commit is a volume's cut that changes one block: a leaf that raises
 * 256 counts.
 */
#include <errno.h>
#include <getopt.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include <openssl/evp.h>

#include "base/clock.h"
#include "../unit/meta_world.h"
#include "../unit/pg_cluster.h"

#define LEAF	 256
#define AT_ONCE	 256 /* rows of one insertion */
#define PER_COMMIT (1024 * AT_ONCE)
#define MAX_BATCH 32
#define NS	 1000000000.0

static uint64_t nr_blocks = 5000000, nr_images = 100000;
static double seconds = 5;

static void die(const char *what, const struct error *err)
{
	fprintf(stderr, "bench: %s: %s\n", what, err->text);
	exit(1);
}

/* Fingerprint @i of the generated ones, in order: a block's place in the range, then noise. */
static struct fp fp_of(uint64_t i)
{
	uint64_t place = (uint64_t)(((unsigned __int128)i << 64) / nr_blocks);
	unsigned int len;
	struct fp fp;
	int b;

	EVP_Digest(&i, sizeof(i), fp.b, &len, EVP_sha256(), NULL);
	for (b = 0; b < 8; b++)
		fp.b[b] = (uint8_t)(place >> (56 - 8 * b));
	return fp;
}

/* ---- generating ---- */

static void begin(struct store *s)
{
	struct error err = { 0 };

	if (store_begin(s, &err))
		die("begin", &err);
}

static void commit(struct store *s)
{
	struct error err = { 0 };

	if (store_commit(s, &err))
		die("commit", &err);
}

static void insert(struct store *s, const char *sql, const struct val *vals, size_t per_row,
		   size_t n)
{
	struct error err = { 0 };

	if (store_exec_many(s, &err, sql, vals, per_row, n, NULL, 0))
		die(sql, &err);
}

static void make_blocks(struct store *s)
{
	struct val vals[AT_ONCE * 2];
	struct fp fps[AT_ONCE];
	uint64_t i, n;

	for (i = 0; i < nr_blocks; i += n) {
		/* A transaction's log is as long as what it inserts. */
		if (i % PER_COMMIT == 0 && i) {
			commit(s);
			begin(s);
		}
		for (n = 0; n < AT_ONCE && i + n < nr_blocks; n++) {
			fps[n] = fp_of(i + n);
			vals[2 * n] = V_INT(0);
			vals[2 * n + 1] = V_FP(&fps[n]);
		}
		insert(s, "INSERT INTO blocks (domain, fp, count, condemned) VALUES (?1, ?2, 1, 0)",
		       vals, 2, n);
	}
}

/* Leaf @j: blocks from all over the range. */
static void make_leaf(uint64_t j, uint64_t leaves, struct fp *hash, uint8_t *data, size_t *len)
{
	struct recipe_node node = { .level = 0, .block_shift = WORLD_SHIFT, .count = LEAF };
	unsigned int k;

	for (k = 0; k < LEAF; k++)
		node.entries[k] = fp_of(j + k * leaves);
	*len = recipe_node_encode(&node, data);
	recipe_node_hash(data, *len, hash);
}

static void make_leaves(struct store *s, struct fp *hashes, uint64_t leaves)
{
	uint64_t j, users = nr_images / leaves, extra = nr_images % leaves;
	uint8_t data[RECIPE_NODE_MAX];
	struct val row[3];
	size_t len;

	for (j = 0; j < leaves; j++) {
		if (j % AT_ONCE == 0 && j) {
			commit(s);
			begin(s);
		}
		make_leaf(j, leaves, &hashes[j], data, &len);
		row[0] = V_FP(&hashes[j]);
		row[1] = V_INT(users + (j < extra));
		insert(s, "INSERT INTO nodes (hash, domain, level, count, blocks_min, blocks_max) "
		       "VALUES (?1, 0, 0, ?2, 256, 256)", row, 2, 1);
		row[1] = V_BLOB(data, len);
		insert(s, "INSERT INTO node_data (hash, domain, data) VALUES (?1, 0, ?2)", row, 2,
		       1);
	}
}

static void make_images(struct store *s, const struct fp *hashes, uint64_t leaves)
{
	struct val vals[AT_ONCE * 4];
	struct uuid uuids[AT_ONCE];
	char names[AT_ONCE][32];
	uint64_t i, n;

	for (i = 0; i < nr_images; i += n) {
		for (n = 0; n < AT_ONCE && i + n < nr_images; n++) {
			uuid_generate(&uuids[n]);
			snprintf(names[n], sizeof(names[n]), "image-%07llu",
				 (unsigned long long)(i + n));
			vals[4 * n] = V_UUID(&uuids[n]);
			vals[4 * n + 1] = V_TEXT(names[n]);
			vals[4 * n + 2] = V_FP(&hashes[(i + n) % leaves]);
			vals[4 * n + 3] = V_INT(LEAF * WORLD_BLOCK);
		}
		insert(s, "INSERT INTO images (uuid, name, domain, size, root, head_epoch, head_cut, "
		       "head_parent, head_version, lease_epoch, last_version, versions, created_s, "
		       "changed_s) VALUES (?1, ?2, 0, ?4, ?3, 0, 0, ?3, 0, 0, 0, 0, 1, 1)",
		       vals, 4, n);
	}
}

static void generate(struct store *s, struct fp *hashes, uint64_t leaves)
{
	struct error err = { 0 };

	begin(s);
	make_blocks(s);
	make_leaves(s, hashes, leaves);
	make_images(s, hashes, leaves);
	if (store_exec(s, &err, "UPDATE totals SET nodes = nodes + ?1, blocks = blocks + ?2 WHERE "
		       "slot = 0", V_INT(leaves), V_INT(nr_blocks)) < 0)
		die("totals", &err);
	commit(s);
}

/* ---- measuring ---- */

struct bench {
	struct world w;
	struct fp *hashes;
	uint64_t leaves;
	/* the volume that is pushed to */
	struct uuid image, cache;
	uint64_t epoch, cut;
	struct fp root;
	uint64_t blocks[LEAF];
};

static void random_name(struct bench *b, char name[32])
{
	snprintf(name, 32, "image-%07llu",
		 (unsigned long long)(world_random(&b->w) % nr_images));
}

struct request {
	Vmdedup__Request req;
	Vmdedup__ImageGet get;
	Vmdedup__NodeGet node;
	char name[32];
	struct fp hash;
};

static void make_get(struct bench *b, struct request *r)
{
	vmdedup__image_get__init(&r->get);
	random_name(b, r->name);
	r->get.name = r->name;
	r->req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	r->req.image_get = &r->get;
}

static void make_node(struct bench *b, struct request *r)
{
	vmdedup__node_get__init(&r->node);
	r->hash = b->hashes[world_random(&b->w) % b->leaves];
	r->node.hashes = (ProtobufCBinaryData){ FP_SIZE, r->hash.b };
	r->req.body_case = VMDEDUP__REQUEST__BODY_NODE_GET;
	r->req.node_get = &r->node;
}

/* Requests a second, @at_once in a transaction. */
static double reads(struct bench *b, void (*make)(struct bench *b, struct request *r),
		    size_t at_once)
{
	struct request requests[MAX_BATCH];
	struct meta_call calls[MAX_BATCH];
	uint64_t start = clock_mono_ns(), n = 0;
	size_t i;

	do {
		for (i = 0; i < at_once; i++) {
			vmdedup__request__init(&requests[i].req);
			make(b, &requests[i]);
			calls[i] = (struct meta_call){ .m = &b->w.m, .arena = &b->w.arena,
						       .req = &requests[i].req };
		}
		meta_batch(&b->w.m, calls, at_once);
		for (i = 0; i < at_once; i++)
			assert_int_equal(calls[i].reply.error, 0);
		n += at_once;
		world_forget(&b->w);
	} while (clock_mono_ns() - start < seconds * NS);
	return (double)n / ((double)(clock_mono_ns() - start) / NS);
}

static double clones(struct bench *b)
{
	uint64_t start = clock_mono_ns(), n = 0;
	char source[32], name[32];

	do {
		random_name(b, source);
		snprintf(name, sizeof(name), "clone-%llu", (unsigned long long)n++);
		assert_int_equal(world_clone(&b->w, source, 0, name), 0);
		world_forget(&b->w);
	} while (clock_mono_ns() - start < seconds * NS);
	return (double)n / ((double)(clock_mono_ns() - start) / NS);
}

static void open_volume(struct bench *b)
{
	uint64_t i;

	for (i = 0; i < LEAF; i++)
		b->blocks[i] = i + 1;
	assert_int_equal(world_import(&b->w, "volume", b->blocks, LEAF), 0);
	assert_int_equal(world_image(&b->w, "volume", &b->image, &b->root), 0);
	uuid_generate(&b->cache);
	assert_int_equal(world_lease(&b->w, &b->image, &b->cache, &b->epoch, &b->root), 0);
}

/* Three requests each: begin, one part, commit. */
static double commits(struct bench *b)
{
	uint64_t start = clock_mono_ns(), n = 0;

	do {
		b->blocks[n % LEAF] = 1000000 + n;
		n++;
		assert_int_equal(world_push(&b->w, &b->image, b->epoch, ++b->cut, &b->root,
					    b->blocks, LEAF, false, &b->root), 0);
		world_forget(&b->w);
	} while (clock_mono_ns() - start < seconds * NS);
	return (double)n / ((double)(clock_mono_ns() - start) / NS);
}

static double since(uint64_t start)
{
	return (double)(clock_mono_ns() - start) / NS;
}

static double size_mib(struct bench *b)
{
	struct stat st = { 0 };

	if (store_is_pg(b->w.path))
		return (double)pg_sql(b->w.path, "SELECT pg_database_size(current_database())") /
		       1048576;
	return stat(b->w.path, &st) ? 0 : (double)st.st_size / 1048576;
}

/* Opening the store and the first answer. */
static double start_s(struct bench *b)
{
	uint64_t start = clock_mono_ns();
	struct uuid u;
	struct fp root;

	world_reopen(&b->w);
	assert_int_equal(world_image(&b->w, "image-0000000", &u, &root), 0);
	return since(start);
}

static void measure(const char *name)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct error err = { 0 };
	uint64_t start;

	b->leaves = nr_blocks / LEAF;
	b->hashes = calloc(b->leaves, sizeof(*b->hashes));
	world_init(&b->w, 1, 1);
	start = clock_mono_ns();
	generate(b->w.m.store, b->hashes, b->leaves);
	if (store_is_pg(b->w.path))
		pg_sql(b->w.path, "ANALYZE");
	printf("%s\n  generated in       %8.1f s\n", name, since(start));
	/* The log is checkpointed when the last one closes it. */
	printf("  start              %8.3f s\n", start_s(b));
	printf("  size               %8.0f MiB, %.0f bytes a block\n", size_mib(b),
	       size_mib(b) * 1048576 / (double)nr_blocks);
	printf("  image by name      %8.0f a second, %.0f in batches of 32\n",
	       reads(b, make_get, 1), reads(b, make_get, MAX_BATCH));
	printf("  recipe node        %8.0f a second, %.0f in batches of 32\n",
	       reads(b, make_node, 1), reads(b, make_node, MAX_BATCH));
	open_volume(b);
	printf("  clones             %8.0f a second\n", clones(b));
	printf("  commits            %8.0f a second\n", commits(b));
	fflush(stdout);
	if (b->w.m.store->failed)
		die("store", &err);
	world_free(&b->w);
	free(b->hashes);
	free(b);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "blocks", required_argument, NULL, 'b' },
		{ "images", required_argument, NULL, 'i' },
		{ "seconds", required_argument, NULL, 's' },
		{ "store", required_argument, NULL, 'S' },
		{ "dir", required_argument, NULL, 'd' },
		{ 0 },
	};
	const char *only = "", *dir = "/var/tmp";
	struct pg_cluster pg;
	int opt;

	while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (opt) {
		case 'b':
			nr_blocks = strtoull(optarg, NULL, 10) / LEAF * LEAF;
			break;
		case 'i':
			nr_images = strtoull(optarg, NULL, 10);
			break;
		case 's':
			seconds = strtod(optarg, NULL);
			break;
		case 'S':
			only = optarg;
			break;
		case 'd':
			dir = optarg;
			break;
		default:
			fprintf(stderr, "usage: meta [--blocks N] [--images N] [--seconds S] "
				"[--store sqlite|postgresql] [--dir DIR]\n");
			return 2;
		}
	}
	if (!nr_blocks || !nr_images || setenv("TMPDIR", dir, 1))
		return 2;
	printf("%llu blocks, %llu images\n", (unsigned long long)nr_blocks,
	       (unsigned long long)nr_images);
	if (strcmp(only, "postgresql"))
		measure("SQLite");
	if (!strcmp(only, "sqlite") || !pg_start_durable(&pg))
		return 0;
	world_use_pg(pg.uri);
	measure("PostgreSQL");
	pg_stop(&pg);
	return 0;
}
