// SPDX-License-Identifier: GPL-2.0-or-later
/* Rows in, rows out: placement.c chooses who shall hold what, and this says so in the store. */
#include "meta/membership.h"
#include "meta/placement.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ROOM_RESERVE (256ULL << 20) /* of a disk, not planned with */

struct plan {
	struct placement p;
	enum server_state states[META_MAX_SERVERS]; /* of p.servers */
	bool missed[NR_SHARDS][PROTO_MAX_PLACES];
	bool counted[NR_SHARDS][PROTO_MAX_PLACES]; /* before: current or leaving */
};

static int load_servers(struct meta *m, struct plan *plan, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct placement *p = &plan->p;
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT id, capacity, host, rack, state, free, draining FROM servers ORDER BY "
			"id");
	while (!r && p->nr_servers < META_MAX_SERVERS && (r = rows_next(&rows, err)) > 0) {
		enum server_state state = (enum server_state)rows_int(&rows, 4);
		struct placement_server *s = &p->servers[p->nr_servers];
		uint64_t free = (uint64_t)rows_int(&rows, 5);

		plan->states[p->nr_servers++] = state;
		s->id = (uint32_t)rows_int(&rows, 0);
		s->capacity = (uint64_t)rows_int(&rows, 1);
		s->room = free > ROOM_RESERVE ? free - ROOM_RESERVE : 0;
		s->takes = state == SERVER_UP || state == SERVER_SUSPECT;
		s->leaves = state == SERVER_DRAINING || state == SERVER_OUT || rows_int(&rows, 6);
		snprintf(s->host, sizeof(s->host), "%s", rows_text(&rows, 2));
		snprintf(s->rack, sizeof(s->rack), "%s", rows_text(&rows, 3));
		r = 0;
	}
	return MIN(r, 0);
}

static size_t server_index(const struct plan *plan, uint32_t id)
{
	const struct placement_server *s = placement_find(&plan->p, id);

	return s ? (size_t)(s - plan->p.servers) : plan->p.nr_servers;
}

static int load_rows(struct meta *m, struct plan *plan, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct placement *p = &plan->p;
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT shard, replica, server, state, missed FROM replicas");
	while (!r && (r = rows_next(&rows, err)) > 0) {
		uint64_t shard = (uint64_t)rows_int(&rows, 0);
		uint64_t place = (uint64_t)rows_int(&rows, 1);
		struct placement_row *row;
		size_t i;

		r = 0;
		if (shard >= NR_SHARDS || place >= PROTO_MAX_PLACES)
			continue;
		row = &p->shards[shard][place];
		row->server = (uint32_t)rows_int(&rows, 2);
		row->state = (enum replica_state)rows_int(&rows, 3);
		plan->missed[shard][place] = rows_int(&rows, 4);
		plan->counted[shard][place] = row->state != REPLICA_STALE;
		i = server_index(plan, row->server);
		/* What is being copied there needs its room still. */
		if (row->state == REPLICA_STALE && i < p->nr_servers)
			p->servers[i].room -= MIN(p->servers[i].room, p->shard_bytes);
	}
	return MIN(r, 0);
}

/* Blocks are at most as large as they are: never too little. */
static int load_sizes(struct meta *m, struct plan *plan, struct error *err)
{
	int64_t blocks = 0;
	int r = store_int(m->store, err, &blocks, "SELECT coalesce(sum(blocks), 0) FROM totals");

	plan->p.shard_bytes = (uint64_t)(blocks / NR_SHARDS + 1) << m->params.block_shift;
	return MIN(r, 0);
}

/*
 * A shard is empty when nothing names a block of it, and nothing may come to name one by a receipt that was
 * accepted already. The state of the pushes is no parameter: there are indexes of a part of the rows, by
 * state, and SQLite would look again with each value which of them will do, which takes longer than to look.
 */
static int shard_is_empty(struct meta *m, unsigned int shard, struct error *err)
{
	struct fp from, to;
	int64_t one;
	int r;

	fp_shard_range(shard, &from, &to);
	r = store_int(
		m->store, err, &one,
		"SELECT 1 FROM domains WHERE EXISTS (SELECT 1 FROM blocks WHERE blocks.domain = "
		"domains.id AND fp >= ?1 AND fp <= ?2) UNION ALL SELECT 1 FROM pushes WHERE state = "
		"0 AND EXISTS (SELECT 1 FROM push_receipts WHERE push_receipts.push = pushes.id "
		"AND fp >= ?1 AND fp <= ?2) LIMIT 1", V_FP(&from), V_FP(&to));
	return r < 0 ? r : !r;
}

static int load_empty(struct meta *m, struct plan *plan, struct error *err)
{
	unsigned int shard;
	int r = 0;

	for (shard = 0; !r && shard < NR_SHARDS; shard++) {
		r = shard_is_empty(m, shard, err);
		plan->p.empty[shard] = r > 0;
		r = MIN(r, 0);
	}
	return r;
}

/* ---- replicas that have done their part ---- */

static bool is_reliable(const struct plan *plan, unsigned int shard, unsigned int place)
{
	const struct placement_row *row = &plan->p.shards[shard][place];
	size_t i = row->server ? server_index(plan, row->server) : plan->p.nr_servers;

	return i < plan->p.nr_servers && row->state == REPLICA_CURRENT &&
	       !plan->missed[shard][place] &&
	       (plan->states[i] == SERVER_UP || plan->states[i] == SERVER_SUSPECT);
}

/* Whoever was current for want of a better one makes way, and what is leaving leaves. */
static unsigned int retire(struct plan *plan, unsigned int shard)
{
	struct placement *p = &plan->p;
	unsigned int place, reliable = 0, n = 0;

	for (place = 0; place < PROTO_MAX_PLACES; place++)
		reliable += is_reliable(plan, shard, place);
	for (place = 0; reliable && place < PROTO_MAX_PLACES; place++) {
		struct placement_row *row = &p->shards[shard][place];

		if (!row->server)
			continue;
		if (row->state == REPLICA_CURRENT && plan->missed[shard][place])
			row->state = REPLICA_STALE;
		else if (row->state == REPLICA_LEAVING && reliable >= p->replicas)
			*row = (struct placement_row){ 0 };
		else
			continue;
		p->changed[shard][place] = true;
		n++;
	}
	return n;
}

/* ---- saving ---- */

static int save_place(struct meta *m, struct plan *plan, unsigned int shard, unsigned int place,
		      struct error *err)
{
	const struct placement_row *row = &plan->p.shards[shard][place];
	bool counts = row->state != REPLICA_STALE;
	int64_t n;

	if (!row->server)
		n = store_exec(m->store, err,
			       "DELETE FROM replicas WHERE shard = ?1 AND replica = ?2",
			       V_INT(shard), V_INT(place));
	else if (row->state == REPLICA_LEAVING)
		n = store_exec(m->store, err,
			       "UPDATE replicas SET state = ?3 WHERE shard = ?1 AND replica = ?2",
			       V_INT(shard), V_INT(place), V_INT(row->state));
	else
		n = store_exec(
			m->store, err,
			"INSERT INTO replicas (shard, replica, server, state, since, missed, placed) "
			"VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6) ON CONFLICT (shard, replica) DO UPDATE SET "
			"placed = CASE WHEN replicas.server = excluded.server THEN replicas.placed "
			"ELSE excluded.placed END, server = excluded.server, state = excluded.state, "
			"since = excluded.since, missed = excluded.missed, round = 0",
			V_INT(shard), V_INT(place), V_INT(row->server), V_INT(row->state),
			V_INT(counts ? m->params.map_version + 1 : 0),
			V_INT(m->params.map_version + 1));
	return n < 0 ? (int)n : 0;
}

static int save(struct meta *m, struct plan *plan, struct plan_result *result, struct error *err)
{
	unsigned int shard, place;
	int r = 0;

	for (shard = 0; !r && shard < NR_SHARDS; shard++) {
		for (place = 0; !r && place < PROTO_MAX_PLACES; place++) {
			const struct placement_row *row = &plan->p.shards[shard][place];

			if (!plan->p.changed[shard][place])
				continue;
			result->members |= plan->counted[shard][place] &&
					   (!row->server || row->state == REPLICA_STALE);
			r = save_place(m, plan, shard, place, err);
		}
	}
	return r;
}

static unsigned int in_motion(const struct plan *plan)
{
	unsigned int shard, place, n = 0;

	for (shard = 0; shard < NR_SHARDS; shard++) {
		bool moving = false;

		for (place = 0; place < PROTO_MAX_PLACES; place++)
			moving |= plan->p.shards[shard][place].server &&
				  plan->p.shards[shard][place].state != REPLICA_CURRENT;
		n += moving;
	}
	return n;
}

int plan_run(struct meta *m, unsigned int moves, struct plan_result *out, struct error *err)
{
	struct plan *plan CLEANUP_FREE = calloc(1, sizeof(*plan));
	struct plan_result result = { 0 };
	unsigned int shard, moving;
	int r;

	if (!plan)
		return error_set(err, -ENOMEM, "the meta server is out of memory");
	/* What a restored store says of replicas may be old: nothing is copied because of it, and none is
	 * given up, until `resume-deletion` has looked. */
	if (m->params.deletion_suspended) {
		if (out)
			*out = result;
		return 0;
	}
	plan->p.replicas = m->params.replicas;
	r = load_sizes(m, plan, err) ?: load_servers(m, plan, err) ?: load_rows(m, plan, err) ?:
	    load_empty(m, plan, err);
	if (r)
		return r;
	for (shard = 0; shard < NR_SHARDS; shard++)
		result.changed += retire(plan, shard);
	moving = in_motion(plan);
	plan->p.moves = moves > moving ? moves - moving : 0;
	result.changed += placement_fill(&plan->p);
	result.unplaced = plan->p.unplaced;
	r = result.changed ? save(m, plan, &result, err) : 0;
	if (out)
		*out = result;
	return r;
}
