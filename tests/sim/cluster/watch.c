// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What must hold. After every step:
 *   - a receipt of an open push that counts stands, for each disk that it counts by, for a block that
 *     this disk has, stamped no lower;
 *   - a replica that is current has all blocks of its shard that anything names;
 *   - every block that is named has a copy on a server that is current for it.
 * A disk that was put back from a copy is left out until its server has joined with it: nobody but the
 * checker can know before. The rules are written down here a second time, on purpose.
 */
#include <stdio.h>
#include <string.h>

#include "world.h"

#define MAX_IDS 256 /* of servers in one history */

enum { IS_UP = 0, IS_DOWN = 2, IS_OUT = 4 }; /* a server's state */

/* The store's rows, as committed. */
struct place {
	unsigned int shard;
	int64_t server;
	int state;
	bool missed;
	bool excused; /* current, and it need not have all: nobody else could take its place */
	int64_t since; /* what it vouched for before may be gone */
	uint8_t disk[16];
	uint64_t incarnation;
	int server_state;
	bool told; /* the meta server knows the process that runs */
	struct data_machine *m; /* NULL: the disk is gone for good */
};

struct server {
	int64_t id, anew;
	uint8_t disk[16];
	uint64_t incarnation;
	int state;
	bool told;
	struct data_machine *m;
};

static struct {
	struct server servers[MAX_IDS];
	size_t nr_servers;
	struct place places[NR_SHARDS * PROTO_MAX_PLACES];
	size_t nr;
	uint64_t epochs[NR_SHARDS];
	bool named[CONTENTS];
	uint64_t condemned;
	/* When it was seen before, or since: it has not been whole. */
	bool was_stale[NR_SHARDS][MAX_IDS];
} view;

/* Prepared, of the store that is open. */
static struct statement {
	const char *sql;
	sqlite3_stmt *st;
} statements[16];

void watch_close(struct history *h)
{
	for (struct statement *s = statements; s->sql; s++)
		sqlite3_finalize(s->st);
	memset(statements, 0, sizeof(statements));
	sqlite3_close(h->db);
}

void watch_open(struct history *h)
{
	char path[160];

	snprintf(path, sizeof(path), "%s", h->meta_path);
	if (sqlite3_open(path, &h->db))
		world_fail(h, "the checker cannot open %s", path);
	h->db_version = -1;
}

static sqlite3_stmt *query(struct history *h, const char *sql)
{
	struct statement *s = statements;

	/* They are few: one for each place in this file. */
	while (s->sql && s->sql != sql)
		s++;
	if (!s->sql && sqlite3_prepare_v3(h->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &s->st, NULL))
		world_fail(h, "the checker: %s", sqlite3_errmsg(h->db));
	s->sql = sql;
	return s->st;
}

static int64_t one(struct history *h, const char *sql)
{
	sqlite3_stmt *st = query(h, sql);
	int64_t n = sqlite3_step(st) == SQLITE_ROW ? sqlite3_column_int64(st, 0) : -1;

	sqlite3_reset(st);
	return n;
}

/* ---- what there is ---- */

static void look_at_disk(struct history *h, struct data_machine *m)
{
	struct bstore_listed *listed, all[CONTENTS * 2];
	uint64_t old[CONTENTS];
	bool more;
	int n;

	memcpy(old, m->have, sizeof(old));
	memset(m->have, 0, sizeof(m->have));
	for (unsigned int shard = 0; shard < NR_SHARDS; shard++) {
		n = bstore_list(m->s->store, (uint16_t)shard, 0, NULL, all, ARRAY_SIZE(all), &more);
		for (listed = all; listed < all + n; listed++) {
			int k = content_of(h, listed->fp.b);

			if (k < 0)
				world_fail(h, "data server %u has a block of nobody's", m->number);
			else if (!listed->bad)
				m->have[k] = listed->epoch;
		}
	}
	for (unsigned int k = 0; h->o->trace && k < CONTENTS; k++)
		if (m->have[k] != old[k])
			world_trace(h, "data server %u: block %u of shard %u has epoch %llu, had %llu",
				    m->number, k, fp_shard(&h->fps[k]),
				    (unsigned long long)m->have[k], (unsigned long long)old[k]);
}

/* True: some disk has changed. */
static bool look_at_disks(struct history *h)
{
	bool any = false;

	for (unsigned int i = 0; i < MAX_DATA; i++) {
		struct data_machine *m = &h->data[i];

		if (!m->s || m->sequence == m->s->store->stat_info.sequence)
			continue;
		look_at_disk(h, m);
		m->sequence = m->s->store->stat_info.sequence;
		any = true;
	}
	return any;
}

static struct data_machine *machine_of(struct history *h, const void *disk)
{
	for (unsigned int i = 0; i < MAX_DATA; i++)
		if (h->data[i].exists && !memcmp(h->data[i].disk.b, disk, 16))
			return &h->data[i];
	return NULL;
}

/* Who is current and has missed something was current when he missed it: he did not become so since. */
static void excuse(struct history *h, struct place *p)
{
	if (p->server >= MAX_IDS) {
		world_fail(h, "too many servers");
		return;
	}
	p->excused = p->state != REPLICA_STALE && p->missed &&
		     !view.was_stale[p->shard][p->server];
	view.was_stale[p->shard][p->server] =
		p->state == REPLICA_STALE || (p->missed && !p->excused);
}

/* A process that was taken for a former one goes on as another. */
static void look_at_sessions(struct history *h)
{
	for (unsigned int i = 0; i < MAX_DATA; i++) {
		struct data_machine *m = &h->data[i];

		if (!m->s || uuid_equal(&m->session, &m->s->session))
			continue;
		world_trace(h, "data server %u: its process was taken for a former one", i);
		m->session = m->s->session;
		h->r->anew++;
	}
}

/* Settled, or not yet: that begins with a null UUID. */
static bool is_last_session(sqlite3_stmt *st, int column, const struct uuid *session)
{
	const uint8_t *sessions = sqlite3_column_blob(st, column);
	int len = sqlite3_column_bytes(st, column);
	static const struct uuid none;

	if (len >= 32 && !memcmp(sessions, none.b, 16))
		sessions += 16;
	return len >= 16 && !memcmp(sessions, session->b, 16);
}

static void look_at_servers(struct history *h)
{
	sqlite3_stmt *st = query(h, "SELECT id, disk, incarnation, state, session, anew FROM servers");

	for (view.nr_servers = 0; sqlite3_step(st) == SQLITE_ROW; view.nr_servers++) {
		struct server *s = &view.servers[view.nr_servers];
		struct data_machine *m;

		s->id = sqlite3_column_int64(st, 0);
		memcpy(s->disk, sqlite3_column_blob(st, 1), 16);
		s->incarnation = (uint64_t)sqlite3_column_int64(st, 2);
		s->state = sqlite3_column_int(st, 3);
		s->anew = sqlite3_column_int64(st, 5);
		s->m = m = machine_of(h, s->disk);
		s->told = m && m->up && is_last_session(st, 4, &m->session);
	}
	sqlite3_reset(st);
}

static const struct server *server_of(struct history *h, int64_t id)
{
	for (size_t i = 0; i < view.nr_servers; i++)
		if (view.servers[i].id == id)
			return &view.servers[i];
	world_fail(h, "a replica is of server %lld, which there is not", (long long)id);
	return &view.servers[0];
}

static void look_at_places(struct history *h)
{
	/* Not a join: SQLite would look for each row's server. */
	sqlite3_stmt *st = query(h, "SELECT shard, server, state, missed, placed FROM replicas");

	look_at_sessions(h);
	look_at_servers(h);
	for (view.nr = 0; sqlite3_step(st) == SQLITE_ROW; view.nr++) {
		struct place *p = &view.places[view.nr];
		const struct server *s = server_of(h, sqlite3_column_int64(st, 1));
		int64_t placed = sqlite3_column_int64(st, 4);

		p->shard = (unsigned int)sqlite3_column_int(st, 0);
		p->server = s->id;
		p->state = sqlite3_column_int(st, 2);
		p->missed = sqlite3_column_int(st, 3);
		p->since = MAX(placed, s->anew);
		memcpy(p->disk, s->disk, 16);
		p->incarnation = s->incarnation;
		p->server_state = s->state;
		excuse(h, p);
		p->m = s->m;
		p->told = s->told;
		if (!p->told)
			continue;
		p->m->damaged = false; /* it has been told */
		p->m->old_is_older = *p->m->old && !uuid_equal(&p->m->session, &p->m->old_session);
	}
	sqlite3_reset(st);
}

/* With a trace, what has become of the replicas. */
static void tell_places(struct history *h)
{
	static char told[NR_SHARDS][300];

	for (unsigned int shard = 0; shard < NR_SHARDS; shard++) {
		char text[300] = "";
		size_t len = 0;

		for (size_t i = 0; i < view.nr; i++) {
			const struct place *p = &view.places[i];

			if (p->shard != shard || len > sizeof(text) - 60)
				continue;
			len += (size_t)snprintf(text + len, sizeof(text) - len, " %lld%s%s",
						(long long)p->server,
						p->state == REPLICA_CURRENT ? "" :
						p->state == REPLICA_STALE   ? " stale" : " leaving",
						p->missed ? " missed" : "");
			len += (size_t)snprintf(text + len, sizeof(text) - len, "%s;",
						p->server_state == IS_DOWN ? " down" :
						p->server_state == IS_OUT  ? " out" : "");
		}
		if (strcmp(text, told[shard]))
			world_trace(h, "shard %u:%s", shard, text);
		memcpy(told[shard], text, sizeof(text));
	}
}

static void look_at_store(struct history *h)
{
	sqlite3_stmt *st;

	look_at_places(h);
	if (h->o->trace)
		tell_places(h);
	st = query(h, "SELECT shard, epoch FROM shards");
	while (sqlite3_step(st) == SQLITE_ROW)
		view.epochs[sqlite3_column_int(st, 0)] = (uint64_t)sqlite3_column_int64(st, 1);
	sqlite3_reset(st);
	memset(view.named, 0, sizeof(view.named));
	view.condemned = 0;
	st = query(h, "SELECT fp, count, condemned FROM blocks");
	while (sqlite3_step(st) == SQLITE_ROW) {
		int k = content_of(h, sqlite3_column_blob(st, 0));

		view.condemned += sqlite3_column_int64(st, 2) > 0;
		if (k >= 0)
			view.named[k] = sqlite3_column_int64(st, 1) > 0;
	}
	sqlite3_reset(st);
}

/* ---- the rules ---- */

static bool is_known(const struct place *p)
{
	return p->m && !p->m->damaged;
}

static void check_named(struct history *h, unsigned int k)
{
	unsigned int shard = fp_shard(&h->fps[k]), copies = 0;

	for (size_t i = 0; i < view.nr; i++) {
		const struct place *p = &view.places[i];

		if (p->shard != shard || p->state == REPLICA_STALE)
			continue;
		copies += p->m && p->m->have[k];
		if (is_known(p) && !p->excused && !p->m->have[k])
			world_fail(h, "block %u is named; data server %u (id %lld) is current for its "
				   "shard %u and has not got it", k, p->m->number,
				   (long long)p->server, shard);
	}
	if (!copies)
		world_fail(h, "block %u is named, and no server that is current for shard %u has it", k,
			   shard);
}

/* The disk at @packed vouches for the block: it counts. */
static void check_disk(struct history *h, unsigned int k, uint64_t epoch, const uint8_t *packed)
{
	unsigned int shard = fp_shard(&h->fps[k]);
	uint64_t incarnation, version;

	memcpy(&incarnation, packed + 16, 8);
	memcpy(&version, packed + 24, 8);
	for (size_t i = 0; i < view.nr; i++) {
		const struct place *p = &view.places[i];

		if (p->shard != shard || memcmp(p->disk, packed, 16) || p->state == REPLICA_STALE ||
		    p->incarnation != incarnation || (uint64_t)p->since > version ||
		    p->server_state == IS_DOWN || p->server_state == IS_OUT)
			continue;
		if (is_known(p) && p->m->have[k] < epoch)
			world_fail(h, "a receipt of epoch %llu for block %u counts, by data server %u (id "
				   "%lld), which has it with epoch %llu", (unsigned long long)epoch, k,
				   p->m->number, (long long)p->server,
				   (unsigned long long)p->m->have[k]);
	}
}

static void check_receipts(struct history *h)
{
	sqlite3_stmt *st = query(h, "SELECT r.fp, r.epoch, d.packed FROM push_receipts AS r JOIN "
				 "push_disks AS d ON d.push = r.push AND d.disks = r.disks JOIN pushes "
				 "AS p ON p.id = r.push WHERE p.state = 0");

	while (sqlite3_step(st) == SQLITE_ROW) {
		int k = content_of(h, sqlite3_column_blob(st, 0));
		uint64_t epoch = (uint64_t)sqlite3_column_int64(st, 1);
		const uint8_t *packed = sqlite3_column_blob(st, 2);
		int len = sqlite3_column_bytes(st, 2);

		if (k < 0 || epoch < view.epochs[fp_shard(&h->fps[k])])
			continue;
		for (int at = 0; at + 32 <= len; at += 32)
			check_disk(h, (unsigned int)k, epoch, packed + at);
	}
	sqlite3_reset(st);
}

void watch_step(struct history *h, unsigned int node)
{
	bool changed = look_at_disks(h);
	int64_t version = h->db_version;

	if (h->db_writes != files_writes() || version < 0)
		version = one(h, "PRAGMA data_version");
	h->db_writes = files_writes();
	if (version != h->db_version)
		look_at_store(h);
	else if (!changed)
		return;
	h->db_version = version;
	h->r->checks++;
	for (size_t i = 0; i < view.nr; i++)
		view.places[i].m = machine_of(h, view.places[i].disk);
	for (unsigned int k = 0; k < CONTENTS; k++)
		if (view.named[k])
			check_named(h, k);
	check_receipts(h);
}

/* ---- in the end ---- */

bool watch_is_whole(struct history *h, char *why, size_t len)
{
	unsigned int current[NR_SHARDS] = { 0 };

	watch_step(h, NODE_META);
	for (size_t i = 0; i < view.nr; i++) {
		const struct place *p = &view.places[i];

		if (p->state != REPLICA_CURRENT || p->missed || !is_known(p) || !p->m->up || !p->told ||
		    p->server_state != IS_UP) {
			snprintf(why, len, "shard %u: server %lld is in state %d, missed %d, its server "
				 "in state %d%s%s", p->shard, (long long)p->server, p->state, p->missed,
				 p->server_state, p->told ? "" : ", its process not the last that joined",
				 p->m ? "" : ", its disk gone");
			return false;
		}
		current[p->shard]++;
	}
	for (unsigned int shard = 0; shard < NR_SHARDS; shard++) {
		if (current[shard] == h->replicas)
			continue;
		snprintf(why, len, "shard %u has %u replicas of %u", shard, current[shard], h->replicas);
		return false;
	}
	for (unsigned int i = 0; i < MAX_DATA; i++)
		if (h->data[i].damaged)
			return false;
	return true;
}

bool watch_is_exact(struct history *h, char *why, size_t len)
{
	if (!watch_is_whole(h, why, len))
		return false;
	if (view.condemned) {
		snprintf(why, len, "%llu blocks are condemned still",
			 (unsigned long long)view.condemned);
		return false;
	}
	for (unsigned int k = 0; k < CONTENTS; k++) {
		unsigned int copies = 0;

		for (unsigned int i = 0; i < MAX_DATA; i++)
			copies += h->data[i].up && h->data[i].have[k];
		if (copies == (view.named[k] ? h->replicas : 0))
			continue;
		snprintf(why, len, "block %u of shard %u, which is %snamed, has %u copies", k,
			 fp_shard(&h->fps[k]), view.named[k] ? "" : "not ", copies);
		return false;
	}
	return true;
}
