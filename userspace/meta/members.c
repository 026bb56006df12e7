// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/members.h"

#include <errno.h>
#include <string.h>

void members_forget(struct meta *m)
{
	if (!m->members)
		return;
	free(m->members->members);
	free(m->members);
	m->members = NULL;
}

static int read_epochs(struct meta *m, struct members *ms, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	uint64_t shard;
	int r;

	r = store_query(m->store, err, &rows, "SELECT shard, epoch FROM shards");
	while (!r && (r = rows_next(&rows, err)) > 0) {
		shard = (uint64_t)rows_int(&rows, 0);
		if (shard < NR_SHARDS)
			ms->epochs[shard] = (uint64_t)rows_int(&rows, 1);
		r = 0;
	}
	return r;
}

static int add_row(struct members *ms, struct rows *rows, size_t *room, struct error *err)
{
	struct member fresh = { .incarnation = (uint64_t)rows_int(rows, 1) };
	uint64_t shard = (uint64_t)rows_int(rows, 2);
	struct member *last, *grown;
	int r;

	r = rows_bytes(rows, 0, fresh.disk.b, sizeof(fresh.disk.b), err);
	if (r || shard >= NR_SHARDS)
		return r;
	last = ms->nr ? &ms->members[ms->nr - 1] : NULL;
	if (!last || !uuid_equal(&last->disk, &fresh.disk)) {
		if (ms->nr == *room) {
			*room = 2 * *room + 8;
			grown = realloc(ms->members, *room * sizeof(*grown));
			if (!grown)
				return error_set(err, -ENOMEM, "the meta server is out of memory");
			ms->members = grown;
		}
		last = &ms->members[ms->nr++];
		*last = fresh;
	}
	last->shards[shard / 8] |= (uint8_t)(1 << shard % 8);
	return 0;
}

static int read_members(struct meta *m, struct members *ms, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	size_t room = 0;
	int r;

	r = store_query(
		m->store, err, &rows,
		"SELECT servers.disk, servers.incarnation, replicas.shard FROM servers JOIN "
		"replicas ON replicas.server = servers.id WHERE servers.state IN (0, 1, 3) AND "
		"replicas.state <> 1 ORDER BY servers.disk");
	while (!r && (r = rows_next(&rows, err)) > 0)
		r = add_row(ms, &rows, &room, err);
	return r;
}

static int read_places(struct meta *m, struct members *ms, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	unsigned int nr[NR_SHARDS] = { 0 };
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT replicas.shard, replicas.server, replicas.state, servers.disk, "
			"servers.incarnation FROM replicas JOIN servers ON servers.id = "
			"replicas.server");
	while (!r && (r = rows_next(&rows, err)) > 0) {
		uint64_t shard = (uint64_t)rows_int(&rows, 0);
		struct member_place *p;

		r = 0;
		if (shard >= NR_SHARDS || nr[shard] == PROTO_MAX_PLACES)
			continue;
		p = &ms->places[shard][nr[shard]++];
		p->server = (uint32_t)rows_int(&rows, 1);
		p->state = (enum replica_state)rows_int(&rows, 2);
		r = rows_bytes(&rows, 3, p->disk.b, sizeof(p->disk.b), err);
		p->incarnation = (uint64_t)rows_int(&rows, 4);
	}
	return r;
}

int members_get(struct meta *m, const struct members **out, struct error *err)
{
	int r = 0;

	if (!m->members || m->members->map_version != m->params.map_version) {
		members_forget(m);
		m->members = calloc(1, sizeof(*m->members));
		if (!m->members)
			return error_set(err, -ENOMEM, "the meta server is out of memory");
		m->members->map_version = m->params.map_version;
		r = read_epochs(m, m->members, err) ?: read_members(m, m->members, err) ?:
		    read_places(m, m->members, err);
		if (r)
			members_forget(m);
	}
	*out = m->members;
	return r;
}

bool members_has(const struct members *ms, unsigned int shard, const uint8_t disk[16],
		 uint64_t incarnation)
{
	size_t low = 0, high = ms->nr, mid;
	int order;

	while (low < high) {
		mid = (low + high) / 2;
		order = memcmp(ms->members[mid].disk.b, disk, 16);
		if (!order)
			return ms->members[mid].incarnation == incarnation &&
			       (ms->members[mid].shards[shard / 8] >> shard % 8 & 1);
		if (order < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return false;
}

static bool is_among(const struct member_place *p, const struct member_disk *disks, size_t nr)
{
	size_t i;

	for (i = 0; i < nr; i++)
		if (!memcmp(p->disk.b, disks[i].uuid, 16) && p->incarnation == disks[i].incarnation)
			return true;
	return false;
}

static void forget_shard(struct members *ms, unsigned int shard, const struct uuid *disk)
{
	size_t i;

	for (i = 0; i < ms->nr; i++)
		if (uuid_equal(&ms->members[i].disk, disk))
			ms->members[i].shards[shard / 8] &= (uint8_t)~(1 << shard % 8);
}

/* It was current, or leaving: then it has left. */
static int demote(struct meta *m, unsigned int shard, struct member_place *p, struct error *err)
{
	int64_t n;

	if (p->state == REPLICA_LEAVING)
		n = store_exec(m->store, err,
			       "DELETE FROM replicas WHERE shard = ?1 AND server = ?2",
			       V_INT(shard), V_INT(p->server));
	else
		n = store_exec(m->store, err,
			       "UPDATE replicas SET state = ?3, since = 0, missed = 1 WHERE shard = ?1 "
			       "AND server = ?2",
			       V_INT(shard), V_INT(p->server), V_INT(REPLICA_STALE));
	if (n < 0)
		return (int)n;
	forget_shard(m->members, shard, &p->disk);
	p->state = REPLICA_STALE;
	/* Its receipts for other blocks stay true: no push has to ask again. */
	n = map_bump(m, false, err);
	if (!n)
		m->members->map_version = m->params.map_version;
	return (int)n;
}

int members_missed(struct meta *m, unsigned int shard, const struct member_disk *disks, size_t nr,
		   struct error *err)
{
	struct members *ms = m->members;
	unsigned int i;
	int64_t n;
	int r = 0;

	for (i = 0; !r && i < PROTO_MAX_PLACES && ms->places[shard][i].server; i++) {
		struct member_place *p = &ms->places[shard][i];

		if (is_among(p, disks, nr))
			continue;
		if (p->state != REPLICA_STALE) {
			r = demote(m, shard, p, err);
			continue;
		}
		n = store_exec(m->store, err,
			       "UPDATE replicas SET missed = 1 WHERE shard = ?1 AND server = ?2 AND "
			       "missed = 0",
			       V_INT(shard), V_INT(p->server));
		r = n < 0 ? (int)n : 0;
	}
	return r;
}
