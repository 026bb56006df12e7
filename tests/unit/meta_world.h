/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A meta server's core on a real SQLite file or in a real PostgreSQL, with a clock and random numbers of the test's own,
 * and a client that speaks its requests. With `replay` every mutation is delivered twice and must
 * be answered with the same bytes, and so is every step of a check; with `reopen` the store is closed and opened again between the
 * two, as after a crash.
 */
#ifndef VMDEDUP_TESTS_META_WORLD_H
#define VMDEDUP_TESTS_META_WORLD_H

#include "meta/core.h"
#include "meta/server.h"

#define WORLD_SHIFT 12
#define WORLD_BLOCK (1U << WORLD_SHIFT)

struct world {
	char dir[64];
	char path[256]; /* the store: a file, or a URI */
	struct meta m;
	struct meta_env env;
	struct arena arena;
	uint64_t wall_s, mono_ns, seed;
	uint64_t session, sequence;
	bool replay, reopen;
	struct uuid disk;
	uint64_t incarnation;
	uint32_t server;
	uint8_t receipt_key[RECEIPT_KEY_SIZE];
	uint64_t epoch; /* that the data server stamps */
	const uint64_t *stamps; /* or NULL: the epoch of content k's copy, 0: it has none */
	uint64_t map_version;
	const struct uuid *cutter; /* the cache that names itself with a cut, or NULL */
	struct meta_bytes *frames; /* of the last reply */
	size_t nr_frames;
};

/* The worlds to come are in schemas of their own in this database; NULL: in files, as at first. */
void world_use_pg(const char *uri);
void world_init(struct world *w, unsigned int replicas, unsigned int min_copies);
void world_free(struct world *w);
void world_reopen(struct world *w);
/* Of a cmocka test: a world with one replica, in which all is delivered twice. */
int world_setup(void **state);
int world_teardown(void **state);
void world_ramp(uint64_t *blocks, size_t n, uint64_t from); /* from, from + 1, ... */
uint64_t world_random(struct world *w); /* xorshift on w->seed */

/* Replies live until world_forget(). */
const Vmdedup__Reply *world_call(struct world *w, Vmdedup__Request *req,
				 const struct meta_bytes *frames, size_t n);
const Vmdedup__Reply *world_mutate(struct world *w, Vmdedup__Request *req,
				   const struct meta_bytes *frames, size_t n);
void world_forget(struct world *w);
void world_session(struct world *w);
int world_join(struct world *w, const struct uuid *disk, uint64_t incarnation, const char *host,
	       uint64_t capacity, uint32_t *id);

/* A fingerprint for content @k; 0: the zero block. */
struct fp world_fp(uint64_t k);

/* A recipe made in memory: nodes in order, children first. */
struct tree {
	struct fp root;
	size_t nr;
	struct fp *hashes;
	uint8_t (*bytes)[RECIPE_NODE_MAX];
	size_t *lens;
};
void tree_build(struct tree *t, const uint64_t *blocks, size_t n, uint64_t size);
void tree_free(struct tree *t);

/* All return 0 or a positive errno, as the reply has it. */
int world_begin_import(struct world *w, const char *name, uint64_t size, uint64_t *push);
int world_begin_cut(struct world *w, const struct uuid *image, uint64_t epoch, uint64_t cut,
		    const struct fp *parent, bool version, uint64_t *push, bool *done);
/* Nodes [from, to) of @t with receipts for @blocks (NULL: none). */
int world_part(struct world *w, uint64_t push, const struct tree *t, size_t from, size_t to,
	       const uint64_t *blocks, size_t n);
const Vmdedup__Reply *world_part_reply(struct world *w, uint64_t push, const struct tree *t,
				       size_t from, size_t to, const uint64_t *blocks, size_t n);
int world_commit(struct world *w, uint64_t push, const struct fp *root);
int world_import(struct world *w, const char *name, const uint64_t *blocks, size_t n);
int world_push(struct world *w, const struct uuid *image, uint64_t epoch, uint64_t cut,
	       const struct fp *parent, const uint64_t *blocks, size_t n, bool version,
	       struct fp *root);
int world_image(struct world *w, const char *name, struct uuid *uuid, struct fp *root);
int world_clone(struct world *w, const char *source, uint64_t version, const char *name);
int world_remove(struct world *w, const char *name);
int world_lease(struct world *w, const struct uuid *image, const struct uuid *cache,
		uint64_t *epoch, struct fp *root);
int world_release(struct world *w, const struct uuid *image, const struct uuid *cache,
		  uint64_t epoch);
/* Cascades until nothing is left. */
void world_settle(struct world *w);
/* Runs a whole check in small steps. Returns how many problems it found. */
unsigned int world_check(struct world *w, bool say);
int64_t world_sql(struct world *w, const char *sql);

#endif
