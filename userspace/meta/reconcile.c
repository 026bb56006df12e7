// SPDX-License-Identifier: GPL-2.0-or-later
/* How a stale replica becomes current, and when a copy may go: see membership.h for the rules. */
#include "meta/membership.h"

#include <errno.h>
#include <string.h>

struct asker {
	int64_t server;
	struct uuid disk;
};

/* @incarnation 0: any. */
static int find_asker(struct meta_call *c, const ProtobufCBinaryData *disk, uint64_t incarnation,
		      struct asker *a)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r = call_get_uuid(c, disk, "the disk's UUID", &a->disk);

	if (!r)
		r = store_query(call_store(c), &c->err, &rows,
				"SELECT id, incarnation FROM servers WHERE disk = ?1",
				V_UUID(&a->disk));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -ENOENT, "this disk has not joined the cluster");
	a->server = rows_int(&rows, 0);
	if (incarnation && (uint64_t)rows_int(&rows, 1) != incarnation)
		return call_error(c, -ESTALE, "this disk is known in another incarnation");
	return 0;
}

static int check_shards(struct meta_call *c, const uint32_t *shards, size_t n)
{
	size_t i;

	if (n > NR_SHARDS)
		return call_error(c, -EINVAL, "%zu shards; there are %d", n, NR_SHARDS);
	for (i = 0; i < n; i++)
		if (shards[i] >= NR_SHARDS)
			return call_error(c, -EINVAL, "there is no shard %u", shards[i]);
	return 0;
}

/* A current replica that can be asked, the one that has been so for longest; 0: none. */
static int find_source(struct meta_call *c, uint32_t shard, int64_t server, int64_t *source)
{
	int r = store_int(call_store(c), &c->err, source,
			  "SELECT replicas.server FROM replicas JOIN servers ON servers.id = "
			  "replicas.server WHERE shard = ?1 AND replicas.server <> ?2 AND "
			  "replicas.state <> ?3 AND servers.state IN (0, 1, 3) ORDER BY "
			  "replicas.missed, replicas.since LIMIT 1",
			  V_INT(shard), V_INT(server), V_INT(REPLICA_STALE));

	if (!r)
		*source = 0;
	return MIN(r, 0);
}

int reconcile_begin(struct meta_call *c)
{
	const Vmdedup__ReconcileBegin *req = c->req->reconcile_begin;
	Vmdedup__ReconcileBeginReply *reply = call_alloc(c, sizeof(*reply));
	struct asker a;
	size_t i;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__reconcile_begin_reply__init(reply);
	r = find_asker(c, &req->disk, req->incarnation, &a) ?:
	    check_shards(c, req->shards, req->n_shards) ?: call_random_id(c, &reply->round);
	if (r)
		return r;
	reply->map_version = c->m->params.map_version;
	reply->sources = call_alloc(c, (req->n_shards + 1) * sizeof(*reply->sources));
	if (!reply->sources)
		return call_nomem(c);
	reply->n_sources = req->n_shards;
	for (i = 0; i < req->n_shards; i++) {
		int64_t source = 0, n;

		n = store_exec(call_store(c), &c->err,
			       "UPDATE replicas SET missed = 0, round = ?4 WHERE shard = ?1 AND "
			       "server = ?2 AND state = ?3",
			       V_INT(req->shards[i]), V_INT(a.server), V_INT(REPLICA_STALE),
			       V_INT(reply->round));
		r = n > 0 ? find_source(c, req->shards[i], a.server, &source) : (int)n;
		if (r)
			return r;
		reply->sources[i] = (uint32_t)source;
	}
	c->reply.body_case = VMDEDUP__REPLY__BODY_RECONCILE_BEGIN;
	c->reply.reconcile_begin = reply;
	return 0;
}

/*
 * @source was current all the time since @version, and nothing was missed here since the BEGIN that
 * gave @round: one that was late, and cleared what had been missed, gave another.
 *
 * After a restore, until DELETION_RESUME, `current` is what the backup says, and the source may have
 * dropped the shard since. Then this one becomes current although both lack blocks. It is allowed, or a
 * server that was away for a moment would count in no receipt for as long as people look at what was
 * restored; and it loses nothing:
 *   - it has what it had and all that the source has, nothing is deleted by it, and until the resumption
 *     nothing is deleted, dropped or moved by anything (gc, SHARD_DROP, plan.c, order_remove());
 *   - who has a block for certain is in the receipts, not in the map: a current replica that lacks what a
 *     client touches is sent it;
 *   - the resumption has held every named block against what each replica lists, whatever its state, and
 *     makes those stale that lack one, in the transaction that lets deletion go on. A replica that lacked
 *     one when it was listed gets it from one that does not, or is made stale, promoted or not;
 *   - an END whose BEGIN was before that is void: its source has become stale, or this one has `missed`.
 */
static int promote(struct meta_call *c, uint32_t shard, int64_t server, int64_t source,
		   uint64_t version, uint64_t round)
{
	int64_t n = store_exec(
		call_store(c), &c->err,
		"UPDATE replicas SET state = ?4, since = ?6 WHERE shard = ?1 AND server = ?2 AND "
		"state = ?7 AND missed = 0 AND round = ?8 AND EXISTS (SELECT 1 FROM replicas AS other WHERE "
		"other.shard = ?1 AND other.server = ?3 AND other.state <> ?7 AND other.since <= "
		"?5)",
		V_INT(shard), V_INT(server), V_INT(source), V_INT(REPLICA_CURRENT), V_INT(version),
		V_INT(c->m->params.map_version + 1), V_INT(REPLICA_STALE), V_INT(round));

	return (int)n;
}

int reconcile_end(struct meta_call *c)
{
	const Vmdedup__ReconcileEnd *req = c->req->reconcile_end;
	size_t i, done = 0;
	struct asker a;
	int r;

	if (req->n_sources != req->n_shards || req->map_version > INT64_MAX ||
	    !req->round || req->round > INT64_MAX)
		return call_error(c, -EINVAL, "RECONCILE_END: bad lists");
	r = find_asker(c, &req->disk, req->incarnation, &a) ?:
	    check_shards(c, req->shards, req->n_shards);
	for (i = 0; !r && i < req->n_shards; i++) {
		r = promote(c, req->shards[i], a.server, req->sources[i], req->map_version,
			    req->round);
		done += r > 0;
		r = MIN(r, 0);
	}
	if (!r && done)
		r = map_bump(c->m, false, &c->err);
	return r;
}

/*
 * Copies may go where the disk has no place in the shard, and as many replicas are current as the
 * cluster wants: a map from a backup, or one that is being repaired, deletes nothing.
 */
int reconcile_drop(struct meta_call *c)
{
	const Vmdedup__ShardDrop *req = c->req->shard_drop;
	Vmdedup__ShardDropReply *reply = call_alloc(c, sizeof(*reply));
	struct asker a;
	size_t i;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__shard_drop_reply__init(reply);
	r = find_asker(c, &req->disk, 0, &a) ?: check_shards(c, req->shards, req->n_shards);
	if (r)
		return r;
	reply->shards = call_alloc(c, (req->n_shards + 1) * sizeof(*reply->shards));
	if (!reply->shards)
		return call_nomem(c);
	for (i = 0; i < req->n_shards; i++) {
		int64_t mine = 0, current = 0;

		r = store_int(call_store(c), &c->err, &mine,
			      "SELECT count(*) FROM replicas WHERE shard = ?1 AND server = ?2",
			      V_INT(req->shards[i]), V_INT(a.server));
		if (r >= 0)
			r = store_int(call_store(c), &c->err, &current,
				      "SELECT count(*) FROM replicas JOIN servers ON servers.id = "
				      "replicas.server WHERE shard = ?1 AND replicas.state = ?2 AND "
				      "missed = 0 AND servers.state IN (0, 1)",
				      V_INT(req->shards[i]), V_INT(REPLICA_CURRENT));
		if (r < 0)
			return r;
		if (!c->m->params.deletion_suspended && !mine &&
		    current >= c->m->params.replicas)
			reply->shards[reply->n_shards++] = req->shards[i];
	}
	c->reply.body_case = VMDEDUP__REPLY__BODY_SHARD_DROP;
	c->reply.shard_drop = reply;
	return 0;
}
