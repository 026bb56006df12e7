// SPDX-License-Identifier: GPL-2.0-or-later
/* Data servers and the shard map. */
#include "meta/core.h"
#include "meta/membership.h"

#include <errno.h>
#include <string.h>

int map_bump(struct meta *m, bool members, struct error *err)
{
	int64_t n =
		store_exec(m->store, err,
			   "UPDATE cluster SET map_version = map_version + 1, members_version = "
			   "members_version + ?1",
			   V_INT(members));

	if (n < 0)
		return (int)n;
	m->params.map_version++;
	m->params.members_version += members;
	return 0;
}

static int read_server(struct meta_call *c, struct rows *rows, Vmdedup__Server *out)
{
	const void *key;
	uint8_t disk[16];
	size_t len;
	int r;

	vmdedup__server__init(out);
	out->id = (uint32_t)rows_int(rows, 0);
	out->incarnation = (uint64_t)rows_int(rows, 2);
	out->capacity = (uint64_t)rows_int(rows, 5);
	out->free = (uint64_t)rows_int(rows, 6);
	out->state = (uint32_t)rows_int(rows, 9);
	out->endpoint = arena_strdup(c->arena, rows_text(rows, 3));
	out->host = arena_strdup(c->arena, rows_text(rows, 7));
	out->rack = arena_strdup(c->arena, rows_text(rows, 8));
	if (!out->endpoint || !out->host || !out->rack)
		return call_nomem(c);
	r = rows_bytes(rows, 1, disk, sizeof(disk), &c->err) ?:
	    call_bytes(c, &out->disk, disk, sizeof(disk));
	key = rows_blob(rows, 4, &len);
	return r ?: call_bytes(c, &out->curve_key, key, len);
}

static int read_servers(struct meta_call *c, Vmdedup__MapReply *map)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	map->servers = call_alloc(c, META_MAX_SERVERS * sizeof(*map->servers));
	if (!map->servers)
		return call_nomem(c);
	r = store_query(
		call_store(c), &c->err, &rows,
		"SELECT id, disk, incarnation, endpoint, curve_key, capacity, free, host, rack, "
		"state FROM servers ORDER BY id");
	while (!r && map->n_servers < META_MAX_SERVERS && (r = rows_next(&rows, &c->err)) > 0) {
		Vmdedup__Server *s = call_alloc(c, sizeof(*s));

		if (!s)
			return call_nomem(c);
		map->servers[map->n_servers++] = s;
		r = read_server(c, &rows, s);
	}
	return r < 0 ? r : 0;
}

static int read_shards(struct meta_call *c, Vmdedup__MapReply *map)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	map->shard_epochs = call_alloc(c, NR_SHARDS * sizeof(*map->shard_epochs));
	if (!map->shard_epochs)
		return call_nomem(c);
	map->n_shard_epochs = NR_SHARDS;
	r = store_query(call_store(c), &c->err, &rows, "SELECT shard, epoch FROM shards");
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		uint64_t shard = (uint64_t)rows_int(&rows, 0);

		if (shard < NR_SHARDS)
			map->shard_epochs[shard] = (uint64_t)rows_int(&rows, 1);
		r = 0;
	}
	return r;
}

/* As many places as the shard with most replicas has now. */
static int read_width(struct meta_call *c, unsigned int *width)
{
	int64_t n = 0;
	int r = store_int(call_store(c), &c->err, &n,
			  "SELECT coalesce(max(replica), 0) + 1 FROM replicas");

	*width = MIN(MAX((unsigned int)n, c->m->params.replicas), (unsigned int)PROTO_MAX_PLACES);
	return MIN(r, 0);
}

static int read_replicas(struct meta_call *c, Vmdedup__MapReply *map)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	size_t n = (size_t)NR_SHARDS * map->replicas;
	int r;

	map->shard_servers = call_alloc(c, n * sizeof(*map->shard_servers));
	map->shard_states.data = call_alloc(c, n);
	if (!map->shard_servers || !map->shard_states.data)
		return call_nomem(c);
	map->n_shard_servers = n;
	map->shard_states.len = n;
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT shard, replica, server, state FROM replicas");
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		uint64_t shard = (uint64_t)rows_int(&rows, 0);
		uint64_t replica = (uint64_t)rows_int(&rows, 1);

		if (shard < NR_SHARDS && replica < map->replicas) {
			map->shard_servers[shard * map->replicas + replica] =
				(uint32_t)rows_int(&rows, 2);
			map->shard_states.data[shard * map->replicas + replica] =
				(uint8_t)rows_int(&rows, 3);
		}
		r = 0;
	}
	return r;
}

static int read_map(struct meta_call *c, Vmdedup__MapReply **out)
{
	Vmdedup__MapReply *map = call_alloc(c, sizeof(*map));

	if (!map)
		return call_nomem(c);
	vmdedup__map_reply__init(map);
	map->version = c->m->params.map_version;
	map->deletion_suspended = c->m->params.deletion_suspended;
	map->wanted = c->m->params.replicas;
	map->min_copies = c->m->params.min_copies;
	*out = map;
	return call_bytes(c, &map->history, c->m->params.history.b, 16) ?:
	       read_width(c, &map->replicas) ?: read_servers(c, map) ?: read_shards(c, map) ?:
	       read_replicas(c, map);
}

/* All of it, also for who has the newest: it is some kilobytes. */
int map_get(struct meta_call *c)
{
	int r = read_map(c, &c->reply.map);

	c->reply.body_case = VMDEDUP__REPLY__BODY_MAP;
	return r;
}

/* ---- joining ---- */

#define SESSIONS 8 /* of a disk that are remembered */

struct known {
	int64_t id, state;
	uint8_t sessions[SESSIONS * 16]; /* the last first */
	size_t sessions_len;
	bool settled; /* the disk names the last one; until then that has stored nothing */
	bool former; /* said by a process that has been followed by another one */
	bool late;   /* said by this one before it said what is known */
	uint64_t incarnation;
	bool anew; /* its content is not what it was: a new incarnation, or put back from a copy */
	bool again; /* said by the process that said it last */
	bool same; /* nothing that the map tells has changed */
};

static bool names(const Vmdedup__ServerJoin *req, const struct known *k, size_t at)
{
	return at < k->sessions_len && !memcmp(k->sessions + at, req->last_session.data, 16);
}

/*
 * The disk was last joined by another process than the one that says so. One that ended before its
 * disk named it, or before it could say that, has stored nothing: the disk is what it was before it.
 */
static bool is_other_session(const struct known *k, const Vmdedup__ServerJoin *req)
{
	if (!k->sessions_len || req->session.len != 16 || req->last_session.len != 16)
		return false; /* one of them is of an older version */
	return memcmp(k->sessions, req->session.data, 16) && !names(req, k, 0) &&
	       (k->settled || !names(req, k, 16));
}

/* A request that was on its way for long: what it says was true before another process joined. */
static bool is_former_session(const struct known *k, const Vmdedup__ServerJoin *req)
{
	size_t at;

	for (at = 16; req->session.len == 16 && at < k->sessions_len; at += 16)
		if (!memcmp(k->sessions + at, req->session.data, 16))
			return true;
	return false;
}

static bool is_last_session(const struct known *k, const Vmdedup__ServerJoin *req)
{
	return k->sessions_len && req->session.len == 16 &&
	       !memcmp(k->sessions, req->session.data, 16);
}

/* The process that joined last says less than it has said: this was on its way for longer. A disk
 * that is put back from a copy comes with another process. */
static bool is_late(const struct known *k, const Vmdedup__ServerJoin *req, uint64_t commits)
{
	return is_last_session(k, req) && k->incarnation == req->incarnation &&
	       req->commits < commits;
}

/*
 * A server that is down and says what it has said before can reach a meta server. Whether it can be reached
 * is not known by that, and the governor, which asks it, says when it is up.
 */
static bool stays_as_it_is(const struct known *k)
{
	return k->again && (k->state == SERVER_DOWN || k->state == SERVER_OUT);
}

/* In the store a null UUID comes before those of which the last is not settled. */
static const uint8_t unsettled[16];

static void take_sessions(struct known *k, struct rows *rows, int column)
{
	size_t len;
	const uint8_t *sessions = rows_blob(rows, column, &len);

	k->settled = len < 16 || memcmp(sessions, unsettled, 16);
	if (!k->settled) {
		sessions += 16;
		len -= 16;
	}
	k->sessions_len = MIN(len, sizeof(k->sessions)) / 16 * 16;
	if (k->sessions_len) /* else NULL may stand for it */
		memcpy(k->sessions, sessions, k->sessions_len);
}

/* If there is room for it. */
static void append_session(struct known *k, const uint8_t *session)
{
	if (k->sessions_len == sizeof(k->sessions))
		return;
	memcpy(k->sessions + k->sessions_len, session, 16);
	k->sessions_len += 16;
}

/*
 * Who joins comes first; then, until its disk names it, whom the disk names, which may be nobody. Not
 * if the disk is another one: the process whose disk it is may still store, and a second start of the
 * copy must look like one, too.
 */
static void add_session(struct known *k, const Vmdedup__ServerJoin *req)
{
	const struct known old = *k;
	const uint8_t *session = req->session.data, *last = req->last_session.data;
	bool settled = k->anew || req->last_session.len != 16 || !memcmp(session, last, 16);
	size_t at;

	if (is_last_session(k, req) && k->settled) /* this may have been on its way for longer */
		return;
	k->settled = settled;
	k->sessions_len = 0;
	append_session(k, session);
	if (!settled)
		append_session(k, last);
	for (at = 0; at < old.sessions_len; at += 16) {
		const uint8_t *one = old.sessions + at;

		if (memcmp(one, session, 16) && memcmp(one, unsettled, 16) &&
		    (settled || memcmp(one, last, 16)))
			append_session(k, one);
	}
}

static int store_sessions(struct meta_call *c, struct known *k)
{
	const Vmdedup__ServerJoin *req = c->req->server_join;
	uint8_t packed[(SESSIONS + 1) * 16] = { 0 };
	size_t flag;
	int64_t n;

	if (req->session.len == 16)
		add_session(k, req);
	else
		k->sessions_len = 0;
	flag = k->sessions_len && !k->settled ? 16 : 0;
	memcpy(packed + flag, k->sessions, k->sessions_len);
	n = store_exec(call_store(c), &c->err, "UPDATE servers SET session = ?2 WHERE id = ?1",
		       V_INT(k->id), V_BLOB(packed, flag + k->sessions_len));
	return n < 0 ? (int)n : 0;
}

static int find_server(struct meta_call *c, const struct uuid *disk, struct known *k)
{
	const Vmdedup__ServerJoin *req = c->req->server_join;
	struct rows rows CLEANUP_ROWS = { 0 };
	const void *key;
	size_t len;
	int r;

	r = store_query(
		call_store(c), &c->err, &rows,
		"SELECT id, incarnation, state, endpoint, host, rack, curve_key, commits, session FROM "
		"servers WHERE disk = ?1",
		V_UUID(disk));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r <= 0)
		return r;
	k->id = rows_int(&rows, 0);
	k->incarnation = (uint64_t)rows_int(&rows, 1);
	k->state = rows_int(&rows, 2);
	take_sessions(k, &rows, 8);
	k->former = is_former_session(k, req);
	k->late = is_late(k, req, (uint64_t)rows_int(&rows, 7));
	k->anew = k->incarnation != req->incarnation ||
		  (uint64_t)rows_int(&rows, 7) > req->commits || is_other_session(k, req);
	k->again = !k->anew && is_last_session(k, req);
	key = rows_blob(&rows, 6, &len);
	k->same = !k->anew &&
		  (k->state == SERVER_UP || k->state == SERVER_DRAINING || stays_as_it_is(k)) &&
		  !strcmp(rows_text(&rows, 3), req->endpoint) &&
		  !strcmp(rows_text(&rows, 4), req->host) &&
		  !strcmp(rows_text(&rows, 5), req->rack) && len == req->curve_key.len &&
		  (!len || !memcmp(key, req->curve_key.data, len));
	return 1;
}

static int add_server(struct meta_call *c, const struct uuid *disk, struct known *k)
{
	const Vmdedup__ServerJoin *req = c->req->server_join;
	struct store *s = call_store(c);
	int64_t n = 0, now = (int64_t)call_now_s(c);
	int r;

	r = store_int(s, &c->err, &n, "SELECT count(*) FROM servers");
	if (r >= 0)
		r = store_int(s, &c->err, &k->id, "SELECT coalesce(max(id), 0) + 1 FROM servers");
	if (r < 0)
		return r;
	if (n >= META_MAX_SERVERS)
		return call_error(c, -EBUSY, "the cluster has %d data servers, the most it can",
				  META_MAX_SERVERS);
	n = store_exec(
		s, &c->err,
		"INSERT INTO servers (id, disk, incarnation, endpoint, curve_key, capacity, "
		"free, host, rack, state, joined_s, seen_s, commits) VALUES (?1, ?2, ?3, "
		"?4, ?5, ?6, ?7, ?8, ?9, 0, ?10, ?10, ?11)",
		V_INT(k->id), V_UUID(disk), V_INT(req->incarnation), V_TEXT(req->endpoint),
		V_BLOB(req->curve_key.data, req->curve_key.len), V_INT(req->capacity),
		V_INT(req->free), V_TEXT(req->host), V_TEXT(req->rack), V_INT(now),
		V_INT(req->commits));
	return n < 0 ? (int)n : store_sessions(c, k);
}

/*
 * A known disk. If its content is not what it was, what it holds of its shards is unknown until
 * they are reconciled, and it counts in no receipt; except where it is the only replica that could
 * be reconciled with: `missed` says that it gives way to the next one that is current.
 */
static int update_server(struct meta_call *c, struct known *k)
{
	const Vmdedup__ServerJoin *req = c->req->server_join;
	struct store *s = call_store(c);
	int64_t n = store_sessions(c, k);

	if (n < 0)
		return (int)n;
	n = store_exec(
		s, &c->err,
		"UPDATE servers SET incarnation = ?2, endpoint = ?3, curve_key = ?4, "
		"capacity = ?5, free = ?6, host = ?7, rack = ?8, seen_s = ?9, commits = ?10, "
		"by_itself = CASE WHEN ?11 = 1 THEN by_itself ELSE 0 END, "
		"state = CASE WHEN ?11 = 0 AND (state IN (1, 2) OR (state = 4 AND by_itself = 1)) "
		"THEN CASE WHEN draining = 1 THEN 3 ELSE 0 END ELSE state END WHERE id = ?1",
		V_INT(k->id), V_INT(req->incarnation), V_TEXT(req->endpoint),
		V_BLOB(req->curve_key.data, req->curve_key.len), V_INT(req->capacity),
		V_INT(req->free), V_TEXT(req->host), V_TEXT(req->rack), V_INT(call_now_s(c)),
		V_INT(req->commits), V_INT(stays_as_it_is(k)));
	if (n >= 0 && k->anew)
		n = store_exec(
			s, &c->err,
			"UPDATE replicas SET state = 1 WHERE server = ?1 AND EXISTS (SELECT 1 "
			"FROM replicas AS other WHERE other.shard = replicas.shard AND "
			"other.server <> ?1 AND other.state <> 1)",
			V_INT(k->id));
	/* What it has missed is not known, and what it has begun to reconcile is not what it is now. */
	if (n >= 0 && k->anew)
		n = store_exec(s, &c->err,
			       "UPDATE replicas SET missed = 1, round = 0, since = ?2 WHERE server = ?1",
			       V_INT(k->id), V_INT(c->m->params.map_version + 1));
	if (n >= 0 && k->anew)
		n = store_exec(s, &c->err, "UPDATE servers SET anew = ?2 WHERE id = ?1", V_INT(k->id),
			       V_INT(c->m->params.map_version + 1));
	return n < 0 ? (int)n : 0;
}

/* Before anything is said of it: a server that can never join is not up. */
static int check_cluster(struct meta_call *c)
{
	const ProtobufCBinaryData *in = &c->req->server_join->cluster;
	char theirs[UUID_TEXT_SIZE], ours[UUID_TEXT_SIZE];
	struct uuid cluster;

	if (!in->len)
		return 0;
	if (call_get_uuid(c, in, "the cluster's UUID", &cluster))
		return c->err.code;
	if (uuid_equal(&cluster, &c->m->params.uuid))
		return 0;
	return call_error(c, -EXDEV, "the disk belongs to cluster %s, the meta server to %s: give the "
			  "server an empty folder, or its own meta server",
			  uuid_to_text(&cluster, theirs), uuid_to_text(&c->m->params.uuid, ours));
}

static int check_join(struct meta_call *c, struct uuid *disk)
{
	const Vmdedup__ServerJoin *req = c->req->server_join;

	if (req->curve_key.len && req->curve_key.len != 32)
		return call_error(c, -EINVAL, "a CURVE key has 32 bytes, this one %zu",
				  req->curve_key.len);
	if (!*req->endpoint)
		return call_error(c, -EINVAL, "the data server names no endpoint");
	if (req->capacity > INT64_MAX || req->free > INT64_MAX || req->commits > INT64_MAX)
		return call_error(c, -EINVAL, "capacity, free or commits are beyond 2^63");
	if ((req->session.len && req->session.len != 16) ||
	    (req->last_session.len && req->last_session.len != 16))
		return call_error(c, -EINVAL, "a session's UUID has 16 bytes");
	if (req->session.len && !memcmp(req->session.data, unsettled, 16))
		return call_error(c, -EINVAL, "the session's UUID is null");
	return check_cluster(c) ?: call_get_uuid(c, &req->disk, "the disk's UUID", disk) ?:
	       call_check_text(c, req->endpoint, "the endpoint") ?:
	       call_check_text(c, req->host, "the host's name") ?:
	       call_check_text(c, req->rack, "the rack's name");
}

static int reply_join(struct meta_call *c, int64_t id)
{
	Vmdedup__ServerJoinReply *reply = call_alloc(c, sizeof(*reply));
	const struct meta_params *p = &c->m->params;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__server_join_reply__init(reply);
	reply->id = (uint32_t)id;
	reply->block_shift = p->block_shift;
	reply->algorithm = (Vmdedup__Algorithm)p->algorithm;
	r = call_bytes(c, &reply->cluster, p->uuid.b, sizeof(p->uuid.b)) ?:
	    call_bytes(c, &reply->receipt_key, p->receipt_key, sizeof(p->receipt_key)) ?:
	    cluster_domains(c, &reply->domains, &reply->n_domains) ?: read_map(c, &reply->map);
	if (r)
		return r;
	c->reply.body_case = VMDEDUP__REPLY__BODY_SERVER_JOIN;
	c->reply.server_join = reply;
	return 0;
}

int map_server_join(struct meta_call *c)
{
	struct known k = { 0 };
	struct uuid disk;
	int r, known;

	r = check_join(c, &disk);
	if (r)
		return r;
	known = find_server(c, &disk, &k);
	if (known < 0)
		return known;
	if (known && k.former)
		return call_error(c, -ESTALE, "another process has joined with this disk since");
	if (known && k.late)
		return reply_join(c, k.id);
	if (known && c->req->server_join->incarnation < k.incarnation)
		return call_error(
			c, -ESTALE,
			"this disk was here in incarnation %llu and comes with %llu: an older "
			"copy of it",
			(unsigned long long)k.incarnation,
			(unsigned long long)c->req->server_join->incarnation);
	r = known ? update_server(c, &k) : add_server(c, &disk, &k);
	if (!r && !known)
		r = plan_run(c->m, 0, NULL, &c->err);
	if (!r && !k.same)
		r = map_bump(c->m, !known || k.anew, &c->err);
	return r ? r : reply_join(c, k.id);
}
