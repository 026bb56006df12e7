// SPDX-License-Identifier: GPL-2.0-or-later
/* Replicas: what makes one current, what makes one stale, who moves where, and who governs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta/membership.h"
#include "meta/placement.h"
#include "meta_world.h"

static const struct uuid disk2 = { { 2 } }, disk3 = { { 3 } };

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	world_init(w, 2, 1);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	world_free(*state);
	free(*state);
	return 0;
}

static void ramp(uint64_t *blocks, size_t n, uint64_t first)
{
	for (size_t i = 0; i < n; i++)
		blocks[i] = first + i;
}

/* A statement is known by its text's address. */
static int64_t count(struct world *w, int server, int state)
{
	static const char *const sql[2][2] = {
		{ "SELECT count(*) FROM replicas WHERE server = 1 AND state = 0",
		  "SELECT count(*) FROM replicas WHERE server = 1 AND state = 1" },
		{ "SELECT count(*) FROM replicas WHERE server = 2 AND state = 0",
		  "SELECT count(*) FROM replicas WHERE server = 2 AND state = 1" },
	};

	return world_sql(w, sql[server - 1][state]);
}

static void change(struct world *w, const char *sql)
{
	struct error err = { 0 };

	assert_int_equal(store_begin(w->m.store, &err), 0);
	assert_true(store_exec(w->m.store, &err, sql) > 0);
	assert_int_equal(store_commit(w->m.store, &err), 0);
}

/* All stale shards of @disk. Returns how many have a source. */
static size_t begin(struct world *w, const struct uuid *disk, uint32_t *shards, uint32_t *sources,
		    uint64_t *version)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ReconcileBegin ask = VMDEDUP__RECONCILE_BEGIN__INIT;
	const Vmdedup__Reply *reply;
	size_t n = 0;

	for (uint32_t i = 0; i < NR_SHARDS; i++)
		shards[i] = i;
	ask.disk = (ProtobufCBinaryData){ 16, (uint8_t *)disk->b };
	ask.incarnation = 1;
	ask.n_shards = NR_SHARDS;
	ask.shards = shards;
	req.body_case = VMDEDUP__REQUEST__BODY_RECONCILE_BEGIN;
	req.reconcile_begin = &ask;
	reply = world_call(w, &req, NULL, 0);
	assert_int_equal(reply->error, 0);
	*version = reply->reconcile_begin->map_version;
	for (uint32_t i = 0; i < NR_SHARDS; i++) {
		if (!reply->reconcile_begin->sources[i])
			continue;
		shards[n] = i;
		sources[n++] = reply->reconcile_begin->sources[i];
	}
	return n;
}

static int end(struct world *w, const struct uuid *disk, uint64_t incarnation, uint32_t *shards,
	       uint32_t *sources, size_t n, uint64_t version)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ReconcileEnd done = VMDEDUP__RECONCILE_END__INIT;

	done.disk = (ProtobufCBinaryData){ 16, (uint8_t *)disk->b };
	done.incarnation = incarnation;
	done.n_shards = done.n_sources = n;
	done.shards = shards;
	done.sources = sources;
	done.map_version = version;
	req.body_case = VMDEDUP__REQUEST__BODY_RECONCILE_END;
	req.reconcile_end = &done;
	return world_call(w, &req, NULL, 0)->error;
}

/* A receipt that counts without a current replica makes that one stale, and it has to reconcile. */
static void missed_write_makes_stale(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	uint64_t blocks[20], version;
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	assert_int_equal(count(w, 2, REPLICA_CURRENT), 1024);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0); /* receipts name disk 1 alone */
	stale = count(w, 2, REPLICA_STALE);
	assert_in_range(stale, 15, 20); /* shards of 20 blocks */
	assert_int_equal(count(w, 1, REPLICA_STALE), 0);
	n = begin(w, &disk2, shards, sources, &version);
	assert_int_equal(n, stale);
	assert_int_equal(sources[0], w->server);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, version), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 0);
}

/* What is written between BEGIN and END, and not there, makes END void for its shards. */
static void missed_while_reconciling(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	uint64_t blocks[20], more[5], version;
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	n = begin(w, &disk2, shards, sources, &version);
	ramp(more, 5, 1);
	more[4] = 1000;
	assert_int_equal(world_import(w, "b", more, 5), 0); /* receipts for all five */
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, version), 0);
	stale = count(w, 2, REPLICA_STALE);
	assert_in_range(stale, 4, 6);
	n = begin(w, &disk2, shards, sources, &version);
	assert_int_equal(n, stale);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, version), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 0);
}

/* A source that was not current all the time, and a disk in another incarnation, end nothing. */
static void end_needs_the_same_source(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	uint64_t blocks[20], version;
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	stale = count(w, 2, REPLICA_STALE);
	n = begin(w, &disk2, shards, sources, &version);
	assert_int_equal(end(w, &disk2, 2, shards, sources, n, version), ESTALE);
	/* The source starts anew: where it alone is current it stays so, but from now on. */
	assert_int_equal(world_join(w, &w->disk, w->incarnation + 1, "host1", 1ULL << 40, &id), 0);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, version), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), stale);
	n = begin(w, &disk2, shards, sources, &version);
	assert_int_equal(n, stale);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, version), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 0);
}

/* Copies go only where nobody is short of replicas. */
static void drop_asks(void **state)
{
	struct world *w = *state;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardDrop ask = VMDEDUP__SHARD_DROP__INIT;
	uint32_t id, shard = 7;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	assert_int_equal(world_join(w, &disk3, 1, "host3", 1ULL << 20, &id), 0);
	ask.disk = (ProtobufCBinaryData){ 16, (uint8_t *)disk3.b };
	ask.n_shards = 1;
	ask.shards = &shard;
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_DROP;
	req.shard_drop = &ask;
	change(w, "UPDATE cluster SET map_version = map_version + 1");
	assert_int_equal(world_call(w, &req, NULL, 0)->shard_drop->n_shards, 1);
	change(w, "UPDATE replicas SET state = 1 WHERE server = 2 AND shard = 7");
	assert_int_equal(world_call(w, &req, NULL, 0)->shard_drop->n_shards, 0);
	ask.disk.data = (uint8_t *)disk2.b;
	assert_int_equal(world_call(w, &req, NULL, 0)->shard_drop->n_shards, 0); /* its own */
}

/* ---- placement ---- */

static void add_server(struct placement *p, uint64_t capacity)
{
	struct placement_server *s = &p->servers[p->nr_servers++];

	*s = (struct placement_server){ .id = (uint32_t)p->nr_servers, .capacity = capacity,
					.room = UINT64_MAX, .takes = true };
	snprintf(s->host, sizeof(s->host), "host%zu", p->nr_servers);
}

/* Finishes what is in motion; returns how many replicas were copied. */
static unsigned int finish(struct placement *p)
{
	unsigned int copied = 0;

	for (unsigned int s = 0; s < NR_SHARDS; s++) {
		for (unsigned int k = 0; k < PROTO_MAX_PLACES; k++) {
			struct placement_row *row = &p->shards[s][k];

			copied += row->server && row->state == REPLICA_STALE;
			if (row->state == REPLICA_LEAVING)
				*row = (struct placement_row){ 0 };
			row->state = REPLICA_CURRENT;
		}
	}
	memset(p->changed, 0, sizeof(p->changed));
	return copied;
}

static unsigned int settle(struct placement *p)
{
	unsigned int copied = 0, rounds = 0;

	do {
		p->moves = 64;
		p->unplaced = 0;
		if (!placement_fill(p))
			return copied;
		copied += finish(p);
	} while (++rounds < 100);
	fail_msg("the placement does not settle");
	return 0;
}

static unsigned int places_of(const struct placement *p, uint32_t id)
{
	unsigned int n = 0;

	for (unsigned int s = 0; s < NR_SHARDS; s++)
		for (unsigned int k = 0; k < PROTO_MAX_PLACES; k++)
			n += p->shards[s][k].server == id;
	return n;
}

/* A fifth server beside four: what moves is its fair share, and not a tenth more. */
static void fifth_server_moves_its_share(void **state)
{
	struct placement *p = calloc(1, sizeof(*p));
	unsigned int copied, ideal = NR_SHARDS * 2 / 5;

	p->replicas = 2;
	p->shard_bytes = 1;
	for (int i = 0; i < 4; i++)
		add_server(p, 1ULL << 40);
	settle(p);
	for (uint32_t id = 1; id <= 4; id++)
		assert_in_range(places_of(p, id), 510, 514);
	add_server(p, 1ULL << 40);
	copied = settle(p);
	print_message("4 to 5 servers: %u of %u replicas copied, ideally %u\n", copied,
		      2 * NR_SHARDS, ideal);
	assert_in_range(copied, ideal * 95 / 100, ideal * 110 / 100);
	for (uint32_t id = 1; id <= 5; id++)
		assert_in_range(places_of(p, id), 407, 412);
	free(p);
}

/* By capacity; never two of a host; one that leaves gives all, once. */
static void weighted_and_drained(void **state)
{
	struct placement *p = calloc(1, sizeof(*p));
	unsigned int before, copied;

	p->replicas = 2;
	p->shard_bytes = 1;
	add_server(p, 1ULL << 40);
	add_server(p, 1ULL << 40);
	add_server(p, 2ULL << 40);
	add_server(p, 2ULL << 40);
	settle(p);
	assert_in_range(places_of(p, 1), 335, 348);
	assert_in_range(places_of(p, 4), 676, 690);
	before = places_of(p, 1);
	p->servers[0].leaves = true;
	p->servers[0].takes = false;
	copied = settle(p);
	assert_int_equal(places_of(p, 1), 0);
	assert_in_range(copied, before, before * 15 / 10);
	/* No room anywhere: nothing is placed, and said so. */
	p->servers[1].leaves = true;
	p->servers[1].takes = false;
	p->servers[2].room = p->servers[3].room = 0;
	p->replicas = 3;
	placement_fill(p);
	assert_true(p->unplaced > 0);
	free(p);
}

/* ---- the governor's lease ---- */

static void lease_is_fenced(void **state)
{
	struct world *w = *state;
	struct lease_watch a = { .me = { 1 } }, b = { .me = { 2 } };
	const uint64_t patience = 5000000000ULL;
	struct error err = { 0 };

	assert_int_equal(membership_govern(&w->m, &a, patience, &err), 1);
	assert_int_equal(a.epoch, 1);
	for (int i = 0; i < 10; i++) { /* a beats: b waits */
		w->mono_ns += patience;
		assert_int_equal(membership_govern(&w->m, &a, patience, &err), 1);
		assert_int_equal(membership_govern(&w->m, &b, patience, &err), 0);
	}
	w->mono_ns += patience;
	assert_int_equal(membership_govern(&w->m, &b, patience, &err), 1);
	assert_int_equal(b.epoch, 2);
	/* a does not know yet, and can do nothing all the same. */
	assert_int_equal(membership_mark(&w->m, &a, w->server, SERVER_DOWN, &err), -ESTALE);
	assert_int_equal(world_sql(w, "SELECT state FROM servers WHERE id = 1"), SERVER_UP);
	assert_int_equal(membership_mark(&w->m, &b, w->server, SERVER_DOWN, &err), 1);
	assert_int_equal(membership_mark(&w->m, &b, w->server, SERVER_DOWN, &err), 0);
	assert_int_equal(world_sql(w, "SELECT state FROM servers WHERE id = 1"), SERVER_DOWN);
	assert_int_equal(membership_govern(&w->m, &a, patience, &err), 0);
	assert_int_equal(a.epoch, 0);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(missed_write_makes_stale),
		T(missed_while_reconciling),
		T(end_needs_the_same_source),
		T(drop_asks),
		T(lease_is_fenced),
		cmocka_unit_test(fifth_server_moves_its_share),
		cmocka_unit_test(weighted_and_drained),
	};

	return cmocka_run_group_tests_name("membership", tests, NULL, NULL);
}
