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
		"replicas.state = 0 ORDER BY servers.disk");
	while (!r && (r = rows_next(&rows, err)) > 0)
		r = add_row(ms, &rows, &room, err);
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
		r = read_epochs(m, m->members, err) ?: read_members(m, m->members, err);
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
