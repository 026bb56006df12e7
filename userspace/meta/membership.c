// SPDX-License-Identifier: GPL-2.0-or-later
/* Rows of membership: what people order, what the governor finds out, and who the governor is. */
#include "meta/membership.h"

#include <errno.h>
#include <string.h>

/* ---- orders ---- */

struct server_row {
	enum server_state state;
	bool draining;
	int64_t places;
};

static int load_server(struct meta_call *c, uint32_t id, struct server_row *s)
{
	int64_t state = 0, draining = 0;
	int r;

	r = store_int(call_store(c), &c->err, &state, "SELECT state FROM servers WHERE id = ?1",
		      V_INT(id));
	if (!r)
		return call_error(c, -ENOENT, "there is no data server %u", id);
	if (r > 0)
		r = store_int(call_store(c), &c->err, &draining,
			      "SELECT draining FROM servers WHERE id = ?1", V_INT(id));
	s->state = (enum server_state)state;
	s->draining = draining;
	if (r > 0)
		r = store_int(call_store(c), &c->err, &s->places,
			      "SELECT count(*) FROM replicas WHERE server = ?1", V_INT(id));
	return MIN(r, 0);
}

static int set_state(struct meta *m, uint32_t id, enum server_state state, bool by_itself,
		     struct error *err)
{
	int64_t n = store_exec(m->store, err,
			       "UPDATE servers SET state = ?2, by_itself = ?3 WHERE id = ?1",
			       V_INT(id), V_INT(state), V_INT(by_itself));

	return n < 0 ? (int)n : 0;
}

static int set_draining(struct meta_call *c, uint32_t id, bool draining)
{
	int64_t n = store_exec(call_store(c), &c->err,
			       "UPDATE servers SET draining = ?2 WHERE id = ?1", V_INT(id),
			       V_INT(draining));

	return n < 0 ? (int)n : 0;
}

static bool is_gone(const struct server_row *s)
{
	return s->state == SERVER_DOWN || s->state == SERVER_OUT;
}

static int order_use(struct meta_call *c, uint32_t id, const struct server_row *s)
{
	int64_t n;

	if (is_gone(s) && !s->draining)
		return call_error(c, -EINVAL,
				  "data server %u does not answer: start it, and it is in use again",
				  id);
	/* What was leaving has missed nothing. */
	n = store_exec(call_store(c), &c->err,
		       "UPDATE replicas SET state = ?2 WHERE server = ?1 AND state = ?3", V_INT(id),
		       V_INT(REPLICA_CURRENT), V_INT(REPLICA_LEAVING));
	if (n < 0)
		return (int)n;
	return set_draining(c, id, false) ?:
	       is_gone(s) ? 0 : set_state(c->m, id, SERVER_UP, false, &c->err);
}

/* One that does not answer is drained by what others have of the same shards. */
static int order_drain(struct meta_call *c, uint32_t id, const struct server_row *s)
{
	return set_draining(c, id, true) ?:
	       is_gone(s) ? 0 : set_state(c->m, id, SERVER_DRAINING, false, &c->err);
}

/* Shards of which nobody else who can be reached has a current replica. */
static int count_only_here(struct meta_call *c, uint32_t id, int64_t *shards)
{
	int r = store_int(call_store(c), &c->err, shards,
			  "SELECT count(*) FROM replicas WHERE server = ?1 AND NOT EXISTS (SELECT 1 "
			  "FROM replicas AS other JOIN servers ON servers.id = other.server WHERE "
			  "other.shard = replicas.shard AND other.server <> ?1 AND other.state <> ?2 "
			  "AND other.missed = 0 AND servers.state IN (0, 1, 3))",
			  V_INT(id), V_INT(REPLICA_STALE));

	return MIN(r, 0);
}

/* One that does not answer may go as soon as nothing is lost with it: the others make it up. */
static int order_remove(struct meta_call *c, uint32_t id, const struct server_row *s)
{
	int64_t only = 0, n;
	int r;

	if (s->places && !is_gone(s))
		return call_error(c, -EBUSY,
				  "data server %u holds replicas of %lld shards: `vmdedup cluster "
				  "drain %u` first, or give them up with --lost",
				  id, (long long)s->places, id);
	/* What the others have is what the backup says. */
	if (s->places && c->m->params.deletion_suspended)
		return call_error(c, -EBUSY,
				  "since the store was restored it is not known what others have of data "
				  "server %u: `vmdedup cluster resume-deletion` first, or give it up with "
				  "--lost", id);
	r = count_only_here(c, id, &only);
	if (r)
		return r;
	if (only)
		return call_error(c, -EBUSY,
				  "data server %u does not answer, and of %lld shards nobody else has "
				  "all: start it, or give them up with --lost",
				  id, (long long)only);
	n = store_exec(call_store(c), &c->err, "DELETE FROM replicas WHERE server = ?1", V_INT(id));
	if (n >= 0)
		n = store_exec(call_store(c), &c->err, "DELETE FROM servers WHERE id = ?1", V_INT(id));
	return n < 0 ? (int)n : 0;
}

/* Of shards that nobody else has, what is stale is the best there is. */
static int order_lost(struct meta_call *c, uint32_t id)
{
	struct store *s = call_store(c);
	int64_t n;

	n = store_exec(s, &c->err, "DELETE FROM replicas WHERE server = ?1", V_INT(id));
	if (n >= 0)
		n = store_exec(s, &c->err,
			       "UPDATE replicas SET state = ?1, since = ?2, missed = 1 WHERE state = ?3 "
			       "AND NOT EXISTS (SELECT 1 FROM replicas AS other WHERE other.shard = "
			       "replicas.shard AND (other.state <> ?3 OR other.replica < "
			       "replicas.replica))",
			       V_INT(REPLICA_CURRENT), V_INT(c->m->params.map_version + 1),
			       V_INT(REPLICA_STALE));
	if (n >= 0)
		n = store_exec(s, &c->err, "DELETE FROM servers WHERE id = ?1", V_INT(id));
	return n < 0 ? (int)n : 0;
}

int membership_server_set(struct meta_call *c)
{
	const Vmdedup__ServerSet *req = c->req->server_set;
	struct server_row s = { 0 };
	int r = load_server(c, req->server, &s);

	if (r)
		return r;
	switch (req->order) {
	case VMDEDUP__SERVER_ORDER__SERVER_USE:
		r = order_use(c, req->server, &s);
		break;
	case VMDEDUP__SERVER_ORDER__SERVER_DRAIN:
		r = order_drain(c, req->server, &s);
		break;
	case VMDEDUP__SERVER_ORDER__SERVER_REMOVE:
		r = order_remove(c, req->server, &s);
		break;
	case VMDEDUP__SERVER_ORDER__SERVER_LOST:
		r = order_lost(c, req->server);
		break;
	default:
		r = call_error(c, -EINVAL, "unknown order %d", (int)req->order);
	}
	return r ?: plan_run(c->m, 0, NULL, &c->err) ?: map_bump(c->m, true, &c->err);
}

int membership_cluster_set(struct meta_call *c)
{
	const Vmdedup__ClusterSet *req = c->req->cluster_set;
	struct meta_params *p = &c->m->params;
	uint32_t replicas = req->replicas ? req->replicas : p->replicas;
	uint32_t min_copies = req->min_copies ? req->min_copies : MIN(p->min_copies, replicas);
	int64_t n;

	if (replicas > PROTO_MAX_REPLICAS)
		return call_error(c, -EINVAL, "replicas: %u; 1 to %d are allowed", replicas,
				  PROTO_MAX_REPLICAS);
	if (min_copies > replicas)
		return call_error(c, -EINVAL, "min-copies: %u; 1 to the replicas (%u) are allowed",
				  min_copies, replicas);
	if (req->out_after_s > INT32_MAX)
		return call_error(c, -EINVAL, "out-after: %u seconds are too many",
				  req->out_after_s);
	n = store_exec(call_store(c), &c->err,
		       "UPDATE cluster SET replicas = ?1, min_copies = ?2, out_after_s = ?3",
		       V_INT(replicas), V_INT(min_copies),
		       V_INT(req->set_out_after ? req->out_after_s : p->out_after_s));
	if (n < 0)
		return (int)n;
	p->replicas = replicas;
	p->min_copies = min_copies;
	return plan_run(c->m, 0, NULL, &c->err) ?: map_bump(c->m, true, &c->err);
}

int membership_report(struct meta_call *c)
{
	if (c->m->accused)
		c->m->accused(c->m->accused_arg, c->req->server_report->server);
	return 0;
}

/* ---- the governor's lease ---- */

struct lease_row {
	int64_t epoch, beat;
	bool mine;
};

/* 1, or 0: there is no row yet. */
static int load_lease(struct meta *m, const struct lease_watch *w, struct lease_row *row,
		      struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	uint8_t holder[sizeof(w->me)];
	int r;

	r = store_query(m->store, err, &rows, "SELECT epoch, beat, holder FROM governor");
	if (!r)
		r = rows_next(&rows, err);
	if (r <= 0)
		return r;
	row->epoch = rows_int(&rows, 0);
	row->beat = rows_int(&rows, 1);
	r = rows_bytes(&rows, 2, holder, sizeof(holder), err);
	row->mine = w->epoch && (uint64_t)row->epoch == w->epoch &&
		    !memcmp(holder, w->me, sizeof(holder));
	return r ?: 1;
}

static int take_lease(struct meta *m, struct lease_watch *w, const struct lease_row *row,
		      struct error *err)
{
	int64_t n;

	if (row->mine)
		n = store_exec(m->store, err, "UPDATE governor SET beat = beat + 1 WHERE epoch = ?1",
			       V_INT(row->epoch));
	else if (!row->epoch)
		n = store_exec(m->store, err,
			       "INSERT INTO governor (one, holder, epoch, beat) VALUES (1, ?1, 1, 1)",
			       V_BLOB(w->me, sizeof(w->me)));
	else
		n = store_exec(m->store, err,
			       "UPDATE governor SET holder = ?1, epoch = epoch + 1, beat = beat + 1 "
			       "WHERE epoch = ?2 AND beat = ?3",
			       V_BLOB(w->me, sizeof(w->me)), V_INT(row->epoch), V_INT(row->beat));
	return (int)n;
}

static int govern(struct meta *m, struct lease_watch *w, uint64_t patience_ns, uint64_t *epoch,
		  struct error *err)
{
	uint64_t now = m->env->mono_ns(m->env->ctx);
	struct lease_row row = { 0 };
	int r = load_lease(m, w, &row, err);

	*epoch = 0;
	if (r < 0)
		return r;
	if (!row.mine && row.epoch && patience_ns &&
	    (row.epoch != w->seen_epoch || row.beat != w->seen_beat)) {
		w->seen_epoch = row.epoch;
		w->seen_beat = row.beat;
		w->seen_ns = now;
		return 0;
	}
	if (!row.mine && row.epoch && now - w->seen_ns < patience_ns)
		return 0;
	r = take_lease(m, w, &row, err);
	if (r > 0)
		*epoch = (uint64_t)(row.mine ? row.epoch : row.epoch + 1);
	return MIN(r, 0);
}

int membership_govern(struct meta *m, struct lease_watch *w, uint64_t patience_ns,
		      struct error *err)
{
	uint64_t epoch = 0;
	int r = meta_begin(m, err);

	if (!r)
		r = govern(m, w, patience_ns, &epoch, err);
	if (!r)
		r = meta_commit(m, err);
	if (r) {
		meta_rollback(m);
		epoch = 0;
	}
	w->epoch = epoch; /* in doubt this process does not govern */
	return r ? r : !!epoch;
}

/* ---- what the governor does ---- */

static int check_lease(struct meta *m, const struct lease_watch *w, struct error *err)
{
	struct lease_row row = { 0 };
	int r = load_lease(m, w, &row, err);

	if (r < 0 || row.mine)
		return MIN(r, 0);
	return error_set(err, -ESTALE, "another meta server governs now");
}

static int mark(struct meta *m, uint32_t server, enum server_state state, struct error *err)
{
	int64_t now = 0, draining = 0, by_itself = 0, r;

	r = store_int(m->store, err, &now, "SELECT state FROM servers WHERE id = ?1", V_INT(server));
	if (r > 0)
		r = store_int(m->store, err, &draining,
			      "SELECT draining FROM servers WHERE id = ?1", V_INT(server));
	if (r > 0)
		r = store_int(m->store, err, &by_itself,
			      "SELECT by_itself FROM servers WHERE id = ?1", V_INT(server));
	if (r <= 0)
		return (int)r;
	switch (state) {
	case SERVER_DOWN:
		r = now == SERVER_UP || now == SERVER_SUSPECT || now == SERVER_DRAINING;
		break;
	case SERVER_OUT:
		r = now == SERVER_DOWN;
		break;
	case SERVER_UP:
		r = now == SERVER_DOWN || (now == SERVER_OUT && by_itself);
		break;
	default:
		r = 0;
	}
	if (!r)
		return 0;
	r = set_state(m, server, state == SERVER_UP && draining ? SERVER_DRAINING : state,
		      state == SERVER_OUT, err);
	return r ? (int)r : map_bump(m, state != SERVER_UP, err) ?: 1;
}

int membership_mark(struct meta *m, const struct lease_watch *w, uint32_t server,
		    enum server_state state, struct error *err)
{
	int done = 0, r;

	r = meta_begin(m, err) ?: check_lease(m, w, err);
	if (!r)
		r = mark(m, server, state, err);
	if (r >= 0) {
		done = r;
		r = meta_commit(m, err);
	}
	if (!r)
		return done;
	meta_rollback(m);
	return r;
}

int membership_plan(struct meta *m, const struct lease_watch *w, struct plan_result *result,
		    struct error *err)
{
	int r;

	r = meta_begin(m, err) ?: check_lease(m, w, err) ?: plan_run(m, PLAN_MOVES, result, err);
	if (!r && result->changed)
		r = map_bump(m, result->members, err);
	if (!r)
		r = meta_commit(m, err);
	if (r)
		meta_rollback(m);
	return r;
}
