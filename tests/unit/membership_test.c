// SPDX-License-Identifier: GPL-2.0-or-later
/* Replicas: what makes one current, what makes one stale, who moves where, and who governs. On both
 * stores. */
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
#include "meta_world.h"
#include "pg_cluster.h"

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

/* What END must say of BEGIN. */
struct round {
	uint64_t version, id;
};

/* All stale shards of @disk. Returns how many have a source. */
static size_t begin(struct world *w, const struct uuid *disk, uint32_t *shards, uint32_t *sources,
		    struct round *round)
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
	*round = (struct round){ reply->reconcile_begin->map_version, reply->reconcile_begin->round };
	for (uint32_t i = 0; i < NR_SHARDS; i++) {
		if (!reply->reconcile_begin->sources[i])
			continue;
		shards[n] = i;
		sources[n++] = reply->reconcile_begin->sources[i];
	}
	return n;
}

static int end(struct world *w, const struct uuid *disk, uint64_t incarnation, uint32_t *shards,
	       uint32_t *sources, size_t n, const struct round *round)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ReconcileEnd done = VMDEDUP__RECONCILE_END__INIT;

	done.disk = (ProtobufCBinaryData){ 16, (uint8_t *)disk->b };
	done.incarnation = incarnation;
	done.n_shards = done.n_sources = n;
	done.shards = shards;
	done.sources = sources;
	done.map_version = round->version;
	done.round = round->id;
	req.body_case = VMDEDUP__REQUEST__BODY_RECONCILE_END;
	req.reconcile_end = &done;
	return world_call(w, &req, NULL, 0)->error;
}

/* A receipt that counts without a current replica makes that one stale, and it has to reconcile. */
static void missed_write_makes_stale(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	uint64_t blocks[20];
	struct round round;
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	assert_int_equal(count(w, 2, REPLICA_CURRENT), 1024);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0); /* receipts name disk 1 alone */
	stale = count(w, 2, REPLICA_STALE);
	assert_in_range(stale, 15, 20); /* shards of 20 blocks */
	assert_int_equal(count(w, 1, REPLICA_STALE), 0);
	n = begin(w, &disk2, shards, sources, &round);
	assert_int_equal(n, stale);
	assert_int_equal(sources[0], w->server);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &round), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 0);
}

/* What is written between BEGIN and END, and not there, makes END void for its shards. */
static void missed_while_reconciling(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	uint64_t blocks[20], more[5];
	struct round round;
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	n = begin(w, &disk2, shards, sources, &round);
	ramp(more, 5, 1);
	more[4] = 1000;
	assert_int_equal(world_import(w, "b", more, 5), 0); /* receipts for all five */
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &round), 0);
	stale = count(w, 2, REPLICA_STALE);
	assert_in_range(stale, 4, 6);
	n = begin(w, &disk2, shards, sources, &round);
	assert_int_equal(n, stale);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &round), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 0);
}

/* A source that was not current all the time, and a disk in another incarnation, end nothing. */
static void end_needs_the_same_source(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	uint64_t blocks[20];
	struct round round;
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	stale = count(w, 2, REPLICA_STALE);
	n = begin(w, &disk2, shards, sources, &round);
	assert_int_equal(end(w, &disk2, 2, shards, sources, n, &round), ESTALE);
	/* The source starts anew: where it alone is current it stays so, but from now on. */
	assert_int_equal(world_join(w, &w->disk, w->incarnation + 1, "host1", 1ULL << 40, &id), 0);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &round), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), stale);
	n = begin(w, &disk2, shards, sources, &round);
	assert_int_equal(n, stale);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &round), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 0);
}

/* A BEGIN that was held up on its way clears what was missed since the one that was answered: then
 * that one's END is void. */
static void late_begin_ends_nothing(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	struct round round, late;
	uint64_t blocks[20];
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	n = begin(w, &disk2, shards, sources, &round);
	stale = count(w, 2, REPLICA_STALE);
	ramp(blocks, 20, 1);
	blocks[19] = 1000;
	assert_int_equal(world_import(w, "b", blocks, 20), 0);
	begin(w, &disk2, shards, sources, &late);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &round), 0);
	assert_true(count(w, 2, REPLICA_STALE) >= stale);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &late), 0);
	assert_true(count(w, 2, REPLICA_STALE) <= 1);
}

/* SERVER_JOIN of process @session, of a disk that says that @last joined with it before. */
static int join_counts(struct world *w, const struct uuid *disk, const char *host, uint8_t session,
		       uint8_t last, uint64_t commits)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ServerJoin join = VMDEDUP__SERVER_JOIN__INIT;
	struct uuid a = { { session } }, b = { { last } };

	join.disk = (ProtobufCBinaryData){ 16, (uint8_t *)disk->b };
	join.incarnation = 1;
	join.endpoint = join.host = (char *)host;
	join.capacity = join.free = 1ULL << 40;
	join.commits = commits;
	join.session = (ProtobufCBinaryData){ 16, a.b };
	join.last_session = (ProtobufCBinaryData){ 16, b.b };
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_JOIN;
	req.server_join = &join;
	return world_call(w, &req, NULL, 0)->error;
}

static int join_says(struct world *w, const struct uuid *disk, const char *host, uint8_t session,
		     uint8_t last)
{
	return join_counts(w, disk, host, session, last, 0);
}

static void join_as(struct world *w, const struct uuid *disk, const char *host, uint8_t session,
		    uint8_t last)
{
	assert_int_equal(join_says(w, disk, host, session, last), 0);
}

/* What a process has said, and what arrives when another one has joined after it, changes nothing; nor
 * does it make the next one look like a copy, or a copy like the next one. */
static void late_join_changes_nothing(void **state)
{
	struct world *w = *state;
	uint64_t blocks[20];

	join_as(w, &disk2, "host2", 1, 0);
	ramp(blocks, 20, 1);
	change(w, "DELETE FROM replicas WHERE server = 2"); /* nothing is stored in this test */
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	join_as(w, &disk2, "host2", 2, 1);
	join_as(w, &disk2, "host2", 3, 2);
	assert_int_equal(join_says(w, &disk2, "elsewhere", 1, 0), ESTALE);
	assert_int_equal(join_says(w, &disk2, "elsewhere", 2, 1), ESTALE);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM servers WHERE host = 'elsewhere'"), 0);
	join_as(w, &disk2, "host2", 3, 3);
	join_as(w, &disk2, "host2", 4, 3);
	assert_int_equal(world_sql(w, "SELECT anew FROM servers WHERE id = 2"), 0);
	join_as(w, &disk2, "host2", 9, 2); /* of a copy */
	assert_true(world_sql(w, "SELECT anew FROM servers WHERE id = 2") > 0);
	/* Of many processes the last few are remembered; and of the last one, that no disk has named it. */
	for (uint8_t i = 10; i < 40; i++)
		join_as(w, &disk2, "host2", i, (uint8_t)(i - 1));
	assert_int_equal(join_says(w, &disk2, "host2", 35, 34), ESTALE);
	assert_int_equal(world_sql(w, "SELECT length(session) FROM servers WHERE id = 2"), 9 * 16);
	join_as(w, &disk2, "host2", 39, 39);
	assert_int_equal(world_sql(w, "SELECT length(session) FROM servers WHERE id = 2"), 8 * 16);
}

/* Who joins, and what the disk says then of who joined last. */
static const struct {
	uint8_t session, last;
	bool anew; /* the disk is another one than it was */
} crash_loop[] = {
	{ 1, 0, false },
	{ 2, 0, false }, /* 1 ended before its disk named it */
	{ 2, 2, false },
	{ 3, 2, false },
	{ 4, 2, false },
	{ 5, 2, false }, /* so did 3 and 4 */
	{ 6, 5, false }, /* 5 is named, and could not say it */
	{ 6, 6, false },
	{ 6, 5, false }, /* on its way for longer: nothing new */
	{ 7, 5, true },  /* 6 has said that the disk names it: this one is a copy */
	{ 8, 5, true },	 /* so is this, whose process before stored nothing: 6 may have gone on */
	{ 8, 8, false },
	{ 9, 6, true },
	{ 10, 9, false },
	{ 11, 8, true },
};

/* A process that ends as soon as it has joined does not make its disk look like a copy put back. */
static void crash_loop_is_no_copy(void **state)
{
	struct world *w = *state;
	int64_t anew = 0, now;

	for (size_t i = 0; i < ARRAY_SIZE(crash_loop); i++) {
		join_as(w, &disk2, "host2", crash_loop[i].session, crash_loop[i].last);
		now = world_sql(w, "SELECT anew FROM servers WHERE id = 2");
		if ((now != anew) != crash_loop[i].anew)
			fail_msg("join %zu: process %u, and the disk names %u", i,
				 crash_loop[i].session, crash_loop[i].last);
		anew = now;
	}
	assert_int_equal(join_says(w, &disk2, "host2", 0, 11), EINVAL);
}

static int state_of(struct world *w)
{
	return (int)world_sql(w, "SELECT state FROM servers WHERE id = 2");
}

/* Who is down, or out by itself, does not come up by saying what it has said before; another process does. */
static void join_of_who_is_not_reached(void **state)
{
	struct world *w = *state;
	struct lease_watch g = { .me = { 1 } };
	struct error err = { 0 };
	int64_t version;

	assert_int_equal(membership_govern(&w->m, &g, 0, &err), 1);
	join_as(w, &disk2, "host2", 1, 0);
	assert_int_equal(membership_mark(&w->m, &g, 2, SERVER_DOWN, &err), 1);
	version = world_sql(w, "SELECT map_version FROM cluster");
	join_as(w, &disk2, "host2", 1, 0);
	assert_int_equal(state_of(w), SERVER_DOWN);
	assert_int_equal(membership_mark(&w->m, &g, 2, SERVER_OUT, &err), 1);
	assert_int_equal(world_sql(w, "SELECT map_version FROM cluster"), version + 1);
	join_as(w, &disk2, "host2", 1, 1);
	assert_int_equal(state_of(w), SERVER_OUT);
	assert_int_equal(world_sql(w, "SELECT by_itself FROM servers WHERE id = 2"), 1);
	assert_int_equal(world_sql(w, "SELECT map_version FROM cluster"), version + 1);
	assert_int_equal(membership_mark(&w->m, &g, 2, SERVER_UP, &err), 1);
	assert_int_equal(state_of(w), SERVER_UP);

	assert_int_equal(membership_mark(&w->m, &g, 2, SERVER_DOWN, &err), 1);
	assert_int_equal(membership_mark(&w->m, &g, 2, SERVER_OUT, &err), 1);
	join_as(w, &disk2, "host2", 2, 1);
	assert_int_equal(state_of(w), SERVER_UP);
	assert_int_equal(world_sql(w, "SELECT by_itself FROM servers WHERE id = 2"), 0);
}

/* Of one process two requests are on their way to two meta servers, and the first comes last. */
static void late_join_of_the_same_process(void **state)
{
	struct world *w = *state;

	assert_int_equal(join_counts(w, &disk2, "host2", 1, 0, 50), 0);
	assert_int_equal(join_counts(w, &disk2, "host2", 1, 1, 150), 0);
	assert_int_equal(join_counts(w, &disk2, "elsewhere", 1, 1, 100), 0);
	assert_int_equal(world_sql(w, "SELECT anew FROM servers WHERE id = 2"), 0);
	assert_int_equal(world_sql(w, "SELECT commits FROM servers WHERE id = 2"), 150);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM servers WHERE host = 'elsewhere'"), 0);
	/* Another process with fewer: a copy. */
	assert_int_equal(join_counts(w, &disk2, "host2", 2, 1, 100), 0);
	assert_true(world_sql(w, "SELECT anew FROM servers WHERE id = 2") > 0);
	assert_int_equal(world_sql(w, "SELECT commits FROM servers WHERE id = 2"), 100);
}

static int import_parts(struct world *w, const char *name, const uint64_t *blocks, size_t n,
			uint64_t *push, struct tree *t)
{
	tree_build(t, blocks, n, n * WORLD_BLOCK);
	return world_begin_import(w, name, n * WORLD_BLOCK, push) ?:
	       world_part(w, *push, t, 0, t->nr, blocks, n);
}

/* What a disk vouched for before it was put back from a copy counts neither in a part nor at the
 * commit, although its incarnation is the same. */
static void copy_of_a_disk_vouches_for_nothing(void **state)
{
	struct world *w = *state;
	uint64_t blocks[20], push;
	struct tree t;

	w->incarnation = 1;
	join_as(w, &disk2, "host2", 1, 0);
	join_as(w, &disk2, "host2", 1, 1);
	w->disk = disk2;
	w->server = 2;
	change(w, "DELETE FROM replicas WHERE server = 1");
	change(w, "UPDATE cluster SET map_version = map_version + 1");
	ramp(blocks, 20, 1);
	w->map_version = 100; /* whatever it was given by */
	assert_int_equal(import_parts(w, "a", blocks, 20, &push, &t), 0);
	w->map_version = (uint64_t)world_sql(w, "SELECT map_version FROM cluster");
	join_as(w, &disk2, "host2", 3, 0); /* process 1 is not what this copy knows of */
	assert_int_equal(world_commit(w, push, &t.root), EAGAIN);
	tree_free(&t);
	/* Nor does the receipt that was on its way meanwhile. */
	ramp(blocks, 20, 100);
	assert_int_equal(import_parts(w, "b", blocks, 20, &push, &t), EAGAIN);
	w->map_version = (uint64_t)world_sql(w, "SELECT map_version FROM cluster");
	assert_int_equal(world_part(w, push, &t, 0, t.nr, blocks, 20), 0);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	tree_free(&t);
}

/* Its receipts are good, and would make a replica stale; its node is not: nothing of it stays, nor
 * does a request of the same transaction see a version of the map that nobody will ever have. */
static void refused_part_changes_nothing(void **state)
{
	struct world *w = *state;
	uint64_t blocks[20], push, version;
	struct tree t;
	uint32_t id;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 20, 1);
	tree_build(&t, blocks, 20, 20 * WORLD_BLOCK);
	assert_int_equal(world_begin_import(w, "a", 20 * WORLD_BLOCK, &push), 0);
	version = (uint64_t)world_sql(w, "SELECT map_version FROM cluster");
	t.bytes[0][t.lens[0] - 1] ^= 1;
	assert_int_equal(world_part(w, push, &t, 0, 1, blocks, 20), EBADMSG);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM push_receipts"), 0);
	assert_int_equal(world_sql(w, "SELECT map_version FROM cluster"), version);
	assert_int_equal(w->m.params.map_version, version);
	t.bytes[0][t.lens[0] - 1] ^= 1;
	assert_int_equal(world_part(w, push, &t, 0, 1, blocks, 20), 0);
	assert_true(world_sql(w, "SELECT map_version FROM cluster") > (int64_t)version);
	assert_int_equal(world_commit(w, push, &t.root), 0);
	tree_free(&t);
}

/* ---- orders ---- */

static int order(struct world *w, uint32_t server, Vmdedup__ServerOrder what)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ServerSet set = VMDEDUP__SERVER_SET__INIT;

	set.server = server;
	set.order = what;
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_SET;
	req.server_set = &set;
	return world_mutate(w, &req, NULL, 0)->error;
}

/* One that is drained and dies drains on from the others, and needs no --lost for what they have. */
static void draining_server_dies(void **state)
{
	struct world *w = *state;
	struct lease_watch g = { .me = { 1 } };
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	struct plan_result result;
	struct error err = { 0 };
	struct round round;
	uint64_t blocks[20];
	size_t n;

	assert_int_equal(membership_govern(&w->m, &g, 0, &err), 1);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	assert_int_equal(order(w, 1, VMDEDUP__SERVER_ORDER__SERVER_DRAIN), 0);
	assert_int_equal(membership_mark(&w->m, &g, 1, SERVER_DOWN, &err), 1);
	assert_int_equal(world_sql(w, "SELECT state FROM servers WHERE id = 1"), SERVER_DOWN);
	/* Of the shards with blocks it has the only copies. */
	assert_int_equal(order(w, 1, VMDEDUP__SERVER_ORDER__SERVER_REMOVE), EBUSY);
	/* It is back, and drains on. */
	assert_int_equal(world_join(w, &w->disk, w->incarnation, "host1", 1ULL << 40, &id), 0);
	assert_int_equal(world_sql(w, "SELECT state + 0 FROM servers WHERE id = 1"), SERVER_DRAINING);
	n = begin(w, &disk2, shards, sources, &round);
	assert_in_range(n, 15, 20);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n, &round), 0);
	/* Dead again, with a copy of everything elsewhere: a third server gets its places from there. */
	assert_int_equal(membership_mark(&w->m, &g, 1, SERVER_DOWN, &err), 1);
	assert_int_equal(world_join(w, &disk3, 1, "host3", 1ULL << 40, &id), 0);
	assert_int_equal(membership_plan(&w->m, &g, &result, &err), 0);
	n = begin(w, &disk3, shards, sources, &round);
	assert_in_range(n, 15, 20);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(sources[i], 2);
	assert_int_equal(end(w, &disk3, 1, shards, sources, n, &round), 0);
	assert_int_equal(membership_plan(&w->m, &g, &result, &err), 0);
	assert_int_equal(world_sql(w, "SELECT count(*) FROM replicas WHERE server = 1"), 0);
	assert_int_equal(order(w, 1, VMDEDUP__SERVER_ORDER__SERVER_REMOVE), 0);
	/* With one server left nobody can take what the dead one had; nothing is lost with it. */
	assert_int_equal(membership_mark(&w->m, &g, 3, SERVER_DOWN, &err), 1);
	assert_int_equal(order(w, 3, VMDEDUP__SERVER_ORDER__SERVER_REMOVE), 0);
	assert_int_equal(world_check(w, true), 0);
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

/* ---- after a restore ---- */

static void suspend_deletion(struct world *w)
{
	change(w, "UPDATE cluster SET deletion = 1, map_version = map_version + 1");
}

static int resume_but(struct world *w, uint32_t shard, uint32_t whole)
{
	Vmdedup__WholeReplicas one = VMDEDUP__WHOLE_REPLICAS__INIT, *list[] = { &one };
	Vmdedup__DeletionResume body = VMDEDUP__DELETION_RESUME__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;

	one.shard = shard;
	one.servers = &whole;
	one.n_servers = 1;
	body.whole = list;
	body.n_whole = 1;
	body.history = (ProtobufCBinaryData){ 16, w->m.params.history.b };
	req.body_case = VMDEDUP__REQUEST__BODY_DELETION_RESUME;
	req.deletion_resume = &body;
	return world_mutate(w, &req, NULL, 0)->error;
}

/* What becomes current while deletion is suspended does so by what the backup says: resuming it decides by
 * what was found, and an END that began before is void. */
static void reconciled_before_resumption(void **state)
{
	struct world *w = *state;
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS];
	struct round round;
	uint64_t blocks[20];
	int64_t stale;
	size_t n;

	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 20, 1);
	assert_int_equal(world_import(w, "a", blocks, 20), 0);
	stale = count(w, 2, REPLICA_STALE);
	suspend_deletion(w);
	n = begin(w, &disk2, shards, sources, &round);
	assert_int_equal(n, stale);
	assert_int_equal(end(w, &disk2, 1, shards, sources, n - 1, &round), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 1);
	/* One that has become so lacks a block. */
	assert_int_equal(resume_but(w, shards[0], 1), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 2);
	/* One that is at it; the source is whole, and then it is not. */
	suspend_deletion(w);
	assert_int_equal(begin(w, &disk2, shards, sources, &round), 2);
	assert_int_equal(resume_but(w, shards[0], 1), 0);
	suspend_deletion(w);
	assert_int_equal(resume_but(w, shards[1], 2), 0); /* takes the source's place */
	assert_int_equal(count(w, 1, REPLICA_STALE), 1);
	assert_int_equal(end(w, &disk2, 1, shards, sources, 2, &round), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 1);
	assert_int_equal(world_check(w, true), 0);
}

/* Only a stale replica has all: it takes the place of those that have not, until they have it from it. */
static void only_a_stale_one_is_whole(void **state)
{
	struct world *w = *state;
	struct lease_watch g = { .me = { 1 } };
	uint32_t id, shards[NR_SHARDS], sources[NR_SHARDS], shard;
	struct plan_result result;
	struct error err = { 0 };
	struct round round;
	uint64_t blocks[20];

	assert_int_equal(membership_govern(&w->m, &g, 0, &err), 1);
	assert_int_equal(world_join(w, &disk2, 1, "host2", 1ULL << 40, &id), 0);
	ramp(blocks, 1, 1);
	assert_int_equal(world_import(w, "a", blocks, 1), 0);
	assert_int_equal(begin(w, &disk2, shards, sources, &round), 1);
	shard = shards[0];
	suspend_deletion(w);
	/* Nobody that has a place; one that is not there now. */
	assert_int_equal(resume_but(w, shard, 9), EAGAIN);
	assert_int_equal(membership_mark(&w->m, &g, 2, SERVER_DOWN, &err), 1);
	assert_int_equal(resume_but(w, shard, 2), EAGAIN);
	assert_int_equal(count(w, 2, REPLICA_STALE), 1);
	/* Nor does anybody go whom others are said to make up for. */
	assert_int_equal(order(w, 2, VMDEDUP__SERVER_ORDER__SERVER_REMOVE), EBUSY);
	assert_int_equal(membership_mark(&w->m, &g, 2, SERVER_UP, &err), 1);
	assert_int_equal(resume_but(w, shard, 2), 0);
	assert_int_equal(world_sql(w, "SELECT deletion FROM cluster"), 0);
	assert_int_equal(count(w, 2, REPLICA_STALE), 0);
	assert_int_equal(count(w, 1, REPLICA_STALE), 1);
	/* The other reconciles, and is preferred from then on; then both are the same. */
	assert_int_equal(begin(w, &w->disk, shards, sources, &round), 1);
	assert_int_equal(sources[0], 2);
	assert_int_equal(end(w, &w->disk, w->incarnation, shards, sources, 1, &round), 0);
	assert_int_equal(membership_plan(&w->m, &g, &result, &err), 0);
	assert_int_equal(count(w, 1, REPLICA_CURRENT), 1024);
	assert_int_equal(count(w, 2, REPLICA_STALE), 1);
	assert_int_equal(begin(w, &disk2, shards, sources, &round), 1);
	assert_int_equal(sources[0], 1);
	assert_int_equal(end(w, &disk2, 1, shards, sources, 1, &round), 0);
	assert_int_equal(count(w, 2, REPLICA_CURRENT), 1024);
	assert_int_equal(world_check(w, true), 0);
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

static int run(const char *name)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(missed_write_makes_stale),
		T(missed_while_reconciling),
		T(end_needs_the_same_source),
		T(late_begin_ends_nothing),
		T(copy_of_a_disk_vouches_for_nothing),
		T(late_join_changes_nothing),
		T(crash_loop_is_no_copy),
		T(join_of_who_is_not_reached),
		T(late_join_of_the_same_process),
		T(refused_part_changes_nothing),
		T(draining_server_dies),
		T(drop_asks),
		T(reconciled_before_resumption),
		T(only_a_stale_one_is_whole),
		T(lease_is_fenced),
	};

	return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void)
{
	return pg_run_both(run, world_use_pg);
}
