// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/members.h"

#include <errno.h>
#include <string.h>

void members_forget(struct meta *m)
{
	if (!m->members)
		return;
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

static bool is_reachable(enum server_state state)
{
	return state == SERVER_UP || state == SERVER_SUSPECT || state == SERVER_DRAINING;
}

static int read_places(struct meta *m, struct members *ms, struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	unsigned int nr[NR_SHARDS] = { 0 };
	int r;

	r = store_query(m->store, err, &rows,
			"SELECT replicas.shard, replicas.server, replicas.state, servers.disk, "
			"servers.incarnation, servers.state, servers.anew, replicas.placed FROM "
			"replicas JOIN servers ON servers.id = replicas.server");
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
		p->reachable = is_reachable((enum server_state)rows_int(&rows, 5));
		p->since = (uint64_t)MAX(rows_int(&rows, 6), rows_int(&rows, 7));
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
		r = read_epochs(m, m->members, err) ?: read_places(m, m->members, err);
		if (r)
			members_forget(m);
	}
	*out = m->members;
	return r;
}

static bool is_of(const struct member_place *p, const struct member_disk *d)
{
	return !memcmp(p->disk.b, d->uuid, sizeof(d->uuid)) && p->incarnation == d->incarnation &&
	       p->since <= d->version;
}

bool members_has(const struct members *ms, unsigned int shard, const struct member_disk *disk)
{
	const struct member_place *p = ms->places[shard];
	unsigned int i;

	for (i = 0; i < PROTO_MAX_PLACES && p[i].server; i++)
		if (p[i].state != REPLICA_STALE && p[i].reachable && is_of(&p[i], disk))
			return true;
	return false;
}

static bool is_among(const struct member_place *p, const struct member_disk *disks, size_t nr)
{
	size_t i;

	for (i = 0; i < nr; i++)
		if (is_of(p, &disks[i]))
			return true;
	return false;
}

uint64_t members_since(const struct members *ms, unsigned int shard,
		       const struct member_disk *disks, size_t nr)
{
	const struct member_place *p = ms->places[shard];
	uint64_t since = 0;
	unsigned int i;

	for (i = 0; i < PROTO_MAX_PLACES && p[i].server; i++)
		if (is_among(&p[i], disks, nr))
			since = MAX(since, p[i].since);
	return since;
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

int members_make_do(struct meta *m, unsigned int shard, uint32_t server, struct error *err)
{
	struct member_place *p = m->members->places[shard];
	int64_t n;

	n = store_exec(m->store, err,
		       "UPDATE replicas SET state = ?3, since = ?4, missed = 1 WHERE shard = ?1 AND "
		       "server = ?2", V_INT(shard), V_INT(server), V_INT(REPLICA_CURRENT),
		       V_INT(m->params.map_version + 1));
	if (n > 0)
		n = map_bump(m, true, err);
	if (n < 0)
		return (int)n;
	/* Those that were leaving stay: they may have what it lacks, and drop it when they have left. */
	n = store_exec(m->store, err,
		       "UPDATE replicas SET state = ?2, since = 0, missed = 1 WHERE shard = ?1 AND "
		       "state = ?3", V_INT(shard), V_INT(REPLICA_STALE), V_INT(REPLICA_LEAVING));
	if (n < 0)
		return (int)n;
	for (unsigned int i = 0; i < PROTO_MAX_PLACES && p[i].server; i++) {
		if (p[i].server == server)
			p[i].state = REPLICA_CURRENT;
		else if (p[i].state == REPLICA_LEAVING)
			p[i].state = REPLICA_STALE;
	}
	m->members->map_version = m->params.map_version;
	return 0;
}
