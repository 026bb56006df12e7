// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Collection of blocks. A block at count 0 is dead. Collecting a shard raises its epoch E by one
 * and condemns its dead blocks in the same transaction. Any count that comes later needs a receipt
 * of the new epoch, that is, a PUT or TOUCH that a data server has stamped with it. Data servers
 * delete condemned and unknown copies with a stamp below E only, and look at the stamp again in the
 * transaction that deletes: so a list may be as old as it likes, and whoever drives this may die at
 * any step. Forgetting a condemned row is safe at any time: the block is unknown from then on.
 * A shard with more dead blocks than one transaction may condemn is collected several times.
 */
#include "meta/image.h"
#include "meta/members.h"

#include <errno.h>
#include <string.h>

#define DEFAULT_BUDGET 32  /* nodes */
#define MAX_BUDGET     128 /* nodes: a third of a second or so; then others have their turn */
#define SHARDS_A_STEP  256

/* 1 and the shard of a dead block that is not condemned yet, at or after shard @from. */
static int next_dead_shard(struct meta_call *c, unsigned int from, unsigned int *shard)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct fp low, high, fp;
	int r;

	fp_shard_range(from, &low, &high);
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT fp FROM blocks WHERE count = 0 AND condemned = 0 AND fp >= ?1 "
			"ORDER BY fp LIMIT 1", V_FP(&low));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r <= 0)
		return r;
	r = rows_bytes(&rows, 0, fp.b, FP_SIZE, &c->err);
	*shard = fp_shard(&fp);
	return r ?: 1;
}

/* Sets *to back to the @rows-th dead block from @from on, if there are so many up to *to. */
static int bound_range(struct meta_call *c, const struct fp *from, struct fp *to, int64_t rows)
{
	struct rows found CLEANUP_ROWS = { 0 };
	int r;

	r = store_query(call_store(c), &c->err, &found,
			"SELECT fp FROM blocks WHERE count = 0 AND condemned = 0 AND fp >= ?1 AND "
			"fp <= ?2 ORDER BY fp LIMIT 1 OFFSET ?3", V_FP(from), V_FP(to),
			V_INT(rows - 1));
	if (!r)
		r = rows_next(&found, &c->err);
	return r <= 0 ? r : rows_bytes(&found, 0, to->b, FP_SIZE, &c->err);
}

/* The epoch goes up, and what is dead just now is condemned to it: about the first *rows of them
 * (of a fingerprint in all its domains), from which is taken what they were. */
static int condemn(struct meta_call *c, unsigned int shard, int64_t *rows)
{
	struct store *s = call_store(c);
	struct fp from, to;
	int64_t n;
	int r;

	fp_shard_range(shard, &from, &to);
	r = bound_range(c, &from, &to, *rows);
	if (r)
		return r;
	n = store_exec(s, &c->err, "UPDATE shards SET epoch = epoch + 1 WHERE shard = ?1",
		       V_INT(shard));
	if (n >= 0)
		n = store_exec(s, &c->err,
			       "UPDATE blocks SET condemned = (SELECT epoch FROM shards WHERE "
			       "shard = ?1) WHERE count = 0 AND condemned = 0 AND fp >= ?2 AND "
			       "fp <= ?3", V_INT(shard), V_FP(&from), V_FP(&to));
	if (n < 0)
		return (int)n;
	*rows -= n;
	return 0;
}

/* For unknown copies of the present epoch; while pushes are open these may be theirs, and are left
 * alone. Where pushes never end, blocks die, too, and their collection raises epochs. */
static int raise_epoch(struct meta_call *c, unsigned int shard)
{
	int64_t one, rows = META_MAX_CONDEMN;
	int r = store_int(call_store(c), &c->err, &one, "SELECT 1 FROM pushes WHERE state = 0 LIMIT 1");

	if (r)
		return r < 0 ? r : 0;
	return condemn(c, shard, &rows) ?: map_bump(c->m, false, &c->err);
}

/* Raises the epochs of up to @budget shards with dead blocks, until so many are condemned as the
 * thread that answers everybody can change at a time. The map's version goes up with
 * them: that is how clients and data servers learn. */
static int condemn_some(struct meta_call *c, unsigned int budget, bool *more)
{
	int64_t rows = META_MAX_CONDEMN;
	unsigned int from = 0, shard, done;
	int r = 0;

	for (done = 0; done < budget && from < NR_SHARDS && rows > 0; done++) {
		r = next_dead_shard(c, from, &shard);
		if (r <= 0)
			break;
		r = condemn(c, shard, &rows);
		if (r)
			return r;
		from = shard + 1;
	}
	*more = rows <= 0 || (done == budget && from < NR_SHARDS);
	if (r >= 0 && done)
		r = map_bump(c->m, false, &c->err);
	return r < 0 ? r : 0;
}

/* What the restored store does not know may be all there is of what was pushed since the backup. */
static int check_suspended(struct meta_call *c)
{
	return c->m->params.deletion_suspended ?
		       call_error(c, -EBUSY, "deletion is suspended since the store was restored from a "
				  "backup: `vmdedup cluster resume-deletion` checks what there is, and "
				  "asks") :
		       0;
}

int gc_step(struct meta_call *c)
{
	const Vmdedup__GcStep *req = c->req->gc_step;
	Vmdedup__GcStepReply *reply = call_alloc(c, sizeof(*reply));
	unsigned int budget = req->budget ? MIN(req->budget, MAX_BUDGET) : DEFAULT_BUDGET;
	struct gc_progress p = { 0 };
	int64_t dying = 0, dead = 0, condemned = 0;
	bool more = false;
	int r = 0;

	if (!reply)
		return call_nomem(c);
	vmdedup__gc_step_reply__init(reply);
	if (req->now)
		r = check_suspended(c);
	if (!r && req->push_idle_s)
		r = meta_end_idle_pushes(c->m, req->push_idle_s, &c->err);
	if (!r && !req->status)
		r = gc_cascade(c->m, budget, &p, &c->err);
	if (!r && !p.more && req->now && !req->status)
		r = condemn_some(c, SHARDS_A_STEP, &more);
	if (r)
		return r;
	reply->freed_nodes = p.freed_nodes;
	reply->more = p.more || more;
	c->reply.body_case = VMDEDUP__REPLY__BODY_GC_STEP;
	c->reply.gc_step = reply;
	/* Who counts all of a table conflicts with whoever changes it: once is enough. */
	if (reply->more)
		return 0;
	r = store_int(call_store(c), &c->err, &dying, "SELECT count(*) FROM dying");
	if (r >= 0)
		r = store_int(call_store(c), &c->err, &dead,
			      "SELECT count(*) FROM blocks WHERE count = 0 AND condemned = 0");
	if (r >= 0)
		r = store_int(call_store(c), &c->err, &condemned,
			      "SELECT count(*) FROM blocks WHERE condemned > 0");
	if (r < 0)
		return r;
	reply->dying_nodes = (uint64_t)dying;
	reply->dead_blocks = (uint64_t)(dead + condemned);
	return 0;
}

/* ---- what may be deleted ---- */

static int check_shard(struct meta_call *c, uint32_t shard, const ProtobufCBinaryData *fps)
{
	struct fp fp;
	size_t i;

	if (shard >= NR_SHARDS)
		return call_error(c, -EINVAL, "there is no shard %u", shard);
	if (fps->len % FP_SIZE || fps->len / FP_SIZE > PROTO_MAX_TOUCH)
		return call_error(c, -EINVAL, "fingerprints: %zu bytes; 32 for each of at most %d",
				  fps->len, PROTO_MAX_TOUCH);
	for (i = 0; i < fps->len; i += FP_SIZE) {
		memcpy(fp.b, fps->data + i, FP_SIZE);
		if (fp_shard(&fp) != shard)
			return call_error(c, -EINVAL, "a fingerprint is not of shard %u", shard);
	}
	return 0;
}

static int list_reply(struct meta_call *c, uint32_t shard, size_t room,
		      Vmdedup__GcListReply **out)
{
	Vmdedup__GcListReply *reply = call_alloc(c, sizeof(*reply));
	int64_t epoch = 0;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__gc_list_reply__init(reply);
	reply->fingerprints.data = call_alloc(c, room * FP_SIZE + 1);
	if (!reply->fingerprints.data)
		return call_nomem(c);
	r = store_int(call_store(c), &c->err, &epoch, "SELECT epoch FROM shards WHERE shard = ?1",
		      V_INT(shard));
	reply->below_epoch = (uint64_t)epoch;
	c->reply.body_case = VMDEDUP__REPLY__BODY_GC_LIST;
	c->reply.gc_list = *out = reply;
	return r < 0 ? r : call_bytes(c, &reply->history, c->m->params.history.b, 16);
}

static void add(Vmdedup__GcListReply *reply, const void *fp)
{
	memcpy(reply->fingerprints.data + reply->fingerprints.len, fp, FP_SIZE);
	reply->fingerprints.len += FP_SIZE;
}

/* Most shards have nothing condemned, and to ask for each is a transaction each. */
static int next_condemned(struct meta_call *c, uint32_t shard, Vmdedup__GcListReply *reply)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct fp from, to, fp;
	int r;

	fp_shard_range(shard, &from, &to);
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT fp FROM blocks WHERE condemned > 0 AND fp > ?1 ORDER BY fp LIMIT 1",
			V_FP(&to));
	if (!r)
		r = rows_next(&rows, &c->err);
	reply->next_shard = NR_SHARDS;
	if (r <= 0)
		return r;
	r = rows_bytes(&rows, 0, fp.b, FP_SIZE, &c->err);
	reply->next_shard = fp_shard(&fp);
	return r;
}

int gc_list(struct meta_call *c)
{
	const Vmdedup__GcList *req = c->req->gc_list;
	size_t limit = req->limit ? MIN(req->limit, PROTO_MAX_TOUCH) : PROTO_MAX_TOUCH;
	struct rows rows CLEANUP_ROWS = { 0 };
	struct fp from, to, after, fp;
	Vmdedup__GcListReply *reply;
	int r;

	r = check_suspended(c) ?: check_shard(c, req->shard, &(ProtobufCBinaryData){ 0 }) ?:
	    list_reply(c, req->shard, limit, &reply) ?: next_condemned(c, req->shard, reply);
	if (!r && req->after.len)
		r = call_get_fp(c, &req->after, "after", &after);
	if (r)
		return r;
	fp_shard_range(req->shard, &from, &to);
	if (req->after.len && memcmp(&after, &from, FP_SIZE) > 0)
		from = after;
	r = store_query(
		call_store(c), &c->err, &rows,
		"SELECT fp FROM blocks WHERE condemned > 0 AND domain = ?1 AND fp >= ?2 AND "
		"fp <= ?3 AND NOT (?4 AND fp = ?2) ORDER BY fp LIMIT ?5",
		V_INT(req->domain), V_FP(&from), V_FP(&to), V_INT(req->after.len != 0),
		V_INT(limit + 1));
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		r = rows_bytes(&rows, 0, fp.b, FP_SIZE, &c->err);
		reply->more = reply->fingerprints.len == limit * FP_SIZE;
		if (reply->more)
			break;
		add(reply, &fp);
	}
	return r;
}

/* Domain and fingerprint of each, as parameters. NULL: no memory. */
static struct val *block_vals(struct meta_call *c, uint32_t domain, const ProtobufCBinaryData *fps)
{
	size_t i, n = fps->len / FP_SIZE;
	struct val *vals = call_alloc(c, (n + 1) * 2 * sizeof(*vals));

	for (i = 0; vals && i < n; i++) {
		vals[2 * i] = V_INT(domain);
		vals[2 * i + 1] = V_BLOB(fps->data + i * FP_SIZE, FP_SIZE);
	}
	return vals;
}

int gc_select(struct meta_call *c)
{
	const Vmdedup__GcSelect *req = c->req->gc_select;
	const ProtobufCBinaryData *fps = &req->fingerprints;
	Vmdedup__GcListReply *reply;
	size_t i, n = fps->len / FP_SIZE;
	int64_t *condemned = call_alloc(c, (n + 1) * sizeof(*condemned));
	struct val *vals;
	bool unknown = false;
	int r;

	r = check_suspended(c) ?: check_shard(c, req->shard, fps) ?:
	    list_reply(c, req->shard, n, &reply);
	if (r)
		return r;
	vals = block_vals(c, req->domain, fps);
	if (!vals || !condemned)
		return call_nomem(c);
	r = store_exec_many(call_store(c), &c->err,
			    "SELECT condemned FROM blocks WHERE domain = ?1 AND fp = ?2", vals, 2, n,
			    condemned, -1);
	for (i = 0; !r && i < n; i++) {
		if (condemned[i])
			add(reply, fps->data + i * FP_SIZE);
		unknown |= condemned[i] < 0;
	}
	return !r && unknown && req->raise ? raise_epoch(c, req->shard) : r;
}

int gc_forget(struct meta_call *c)
{
	const Vmdedup__GcForget *req = c->req->gc_forget;
	const ProtobufCBinaryData *fps = &req->fingerprints;
	struct val *vals;
	int r;

	r = check_suspended(c) ?: check_shard(c, req->shard, fps);
	if (r)
		return r;
	vals = block_vals(c, req->domain, fps);
	if (!vals)
		return call_nomem(c);
	return store_exec_many(call_store(c), &c->err,
			       "DELETE FROM blocks WHERE domain = ?1 AND fp = ?2 AND condemned > 0",
			       vals, 2, fps->len / FP_SIZE, NULL, 0);
}

/* ---- after a restore ---- */

int gc_block_list(struct meta_call *c)
{
	const Vmdedup__BlockList *req = c->req->block_list;
	size_t limit = req->limit ? MIN(req->limit, PROTO_MAX_TOUCH) : PROTO_MAX_TOUCH;
	Vmdedup__BlockListReply *reply = call_alloc(c, sizeof(*reply));
	struct rows rows CLEANUP_ROWS = { 0 };
	struct fp after, to, fp;
	size_t len = 0;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__block_list_reply__init(reply);
	reply->fingerprints.data = call_alloc(c, limit * FP_SIZE);
	if (!reply->fingerprints.data)
		return call_nomem(c);
	r = check_shard(c, req->shard, &(ProtobufCBinaryData){ 0 });
	if (r)
		return r;
	fp_shard_range(req->shard, &after, &to);
	if (req->after.len)
		r = call_get_fp(c, &req->after, "after", &after);
	if (!r)
		r = store_query(call_store(c), &c->err, &rows,
				"SELECT fp FROM blocks WHERE domain = ?1 AND fp >= ?2 AND fp <= ?3 "
				"AND NOT (?4 AND fp = ?2) AND count > 0 ORDER BY fp LIMIT ?5",
				V_INT(req->domain), V_FP(&after), V_FP(&to),
				V_INT(req->after.len != 0), V_INT(limit + 1));
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		r = rows_bytes(&rows, 0, fp.b, FP_SIZE, &c->err);
		reply->more = len == limit * FP_SIZE;
		if (reply->more)
			break;
		memcpy(reply->fingerprints.data + len, fp.b, FP_SIZE);
		len += FP_SIZE;
	}
	reply->fingerprints.len = len;
	c->reply.body_case = VMDEDUP__REPLY__BODY_BLOCK_LIST;
	c->reply.block_list = reply;
	return r;
}

static bool is_whole(const Vmdedup__WholeReplicas *in, uint32_t server)
{
	size_t i;

	for (i = 0; i < in->n_servers; i++)
		if (in->servers[i] == server)
			return true;
	return false;
}

/* Of the replicas that are whole those that count; and one that does not, but could (0: none). */
static size_t whole_disks(const struct members *ms, const Vmdedup__WholeReplicas *in,
			  struct member_disk disks[PROTO_MAX_PLACES], uint32_t *stale)
{
	const struct member_place *p = ms->places[in->shard];
	size_t i, nr = 0;

	*stale = 0;
	for (i = 0; i < PROTO_MAX_PLACES && p[i].server; i++) {
		if (!is_whole(in, p[i].server))
			continue;
		if (p[i].state == REPLICA_STALE) {
			if (!*stale && p[i].reachable)
				*stale = p[i].server;
			continue;
		}
		memcpy(disks[nr].uuid, p[i].disk.b, sizeof(disks[nr].uuid));
		disks[nr].incarnation = p[i].incarnation;
		disks[nr++].version = ms->map_version;
	}
	return nr;
}

/*
 * What else is a replica of the shard lacks something: it is reconciled from those that are whole.
 *
 * Where only a stale replica is whole, it may never become current: those that it would reconcile with
 * may be gone since the backup, and the check was made of what it has. So it takes their place. It need not
 * be stamped as a current one must be: no list by which it could lose a block is of this history. But it
 * may lack what was named since the check, by receipts of those that counted until now, so it counts only
 * for want of a better one (`missed`): they stay replicas, keep what they have, and are the ones that it
 * reconciles with when they have got from it what they lack.
 */
static int only_these_are_whole(struct meta_call *c, const Vmdedup__WholeReplicas *in)
{
	struct member_disk disks[PROTO_MAX_PLACES];
	const struct members *ms;
	uint32_t stale;
	size_t nr;
	int r = members_get(c->m, &ms, &c->err);

	if (r)
		return r;
	if (in->shard >= NR_SHARDS)
		return call_error(c, -EINVAL, "there is no shard %u", in->shard);
	nr = whole_disks(ms, in, disks, &stale);
	if (!nr && stale) {
		r = members_make_do(c->m, in->shard, stale, &c->err);
		if (r)
			return r;
		nr = whole_disks(ms, in, disks, &stale);
	}
	if (!nr)
		return call_error(c, -EAGAIN, "of shard %u no data server that is there now has all "
				  "that is named: check again when those that had it are back",
				  in->shard);
	return members_missed(c->m, in->shard, disks, nr, &c->err);
}

/* The map's version goes up: that is how data servers learn. */
int gc_deletion_resume(struct meta_call *c)
{
	const Vmdedup__DeletionResume *req = c->req->deletion_resume;
	struct uuid history;
	int64_t n;
	size_t i;
	int r;

	r = call_get_uuid(c, &req->history, "the history", &history);
	if (r)
		return r;
	if (!uuid_equal(&history, &c->m->params.history))
		return call_error(c, -ESTALE, "the store has been restored once more: check again");
	for (i = 0; !r && i < req->n_whole; i++)
		r = only_these_are_whole(c, req->whole[i]);
	if (r)
		return r;
	n = store_exec(call_store(c), &c->err, "UPDATE cluster SET deletion = 0");
	return n < 0 ? (int)n : map_bump(c->m, false, &c->err);
}
