// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the meta server does by itself: a bounded step of the cascade, the service clock, and the
 * end of sessions and pushes that nobody has used for long. Expiry counts seconds of service, so
 * that neither a jump of the wall clock nor a day without a meta server ends anything.
 */
#include "meta/check.h"
#include "meta/core.h"

#include <errno.h>

#define TICK_BUDGET 8	      /* nodes: about 2048 counts, some 20 milliseconds */
#define AGE_STEP_S  60	      /* how often the service clock is written */
#define NS_PER_S    1000000000ULL

static int has_work(struct meta *m, struct error *err)
{
	int64_t one;

	return store_int(
		m->store, err, &one,
		"SELECT 1 WHERE EXISTS (SELECT 1 FROM pushes WHERE state = 1) OR EXISTS "
		"(SELECT 1 FROM images WHERE removed = 1) OR EXISTS (SELECT 1 FROM dying)");
}

/* Several processes count the same seconds: whoever finds the clock behind puts it forward. */
static int advance_age(struct meta *m, uint64_t seconds, struct error *err)
{
	uint64_t age = (m->ticked_age_s ?: m->params.age_s) + seconds;
	int64_t n;

	if (age <= m->params.age_s)
		return 0;
	n = store_exec(m->store, err, "UPDATE cluster SET age_s = ?1", V_INT(age));
	if (n < 0)
		return (int)n;
	m->params.age_s = age;
	return 0;
}

static uint64_t seconds_since(const struct meta *m)
{
	return (m->env->mono_ns(m->env->ctx) - m->ticked_ns) / NS_PER_S;
}

int meta_end_idle_pushes(struct meta *m, uint64_t idle_s, struct error *err)
{
	uint64_t seconds = seconds_since(m);
	int r = advance_age(m, seconds, err);

	/* If this transaction fails the clock has lost these seconds: it errs towards patience. */
	if (!r) {
		m->ticked_ns += seconds * NS_PER_S;
		m->ticked_age_s = m->params.age_s;
	}
	return r ?: push_expire(m, idle_s, err);
}

/* Two that take the same nodes apart would mostly undo each other's transactions. */
static bool is_mine(const struct meta *m)
{
	return !m->defers || m->governs;
}

static int tick(struct meta *m, uint64_t seconds, struct gc_progress *p, struct error *err)
{
	int r;

	r = meta_begin(m, err);
	if (!r && seconds >= AGE_STEP_S)
		r = advance_age(m, seconds, err);
	if (r || !is_mine(m))
		return r;
	if (seconds >= AGE_STEP_S)
		r = session_expire(m, err) ?: push_expire(m, META_PUSH_IDLE_S, err);
	if (!r)
		r = has_work(m, err);
	return r > 0 ? gc_cascade(m, TICK_BUDGET, p, err) : r;
}

int meta_tick(struct meta *m, struct error *err)
{
	uint64_t seconds = seconds_since(m);
	struct gc_progress p = { 0 };
	int r;

	check_expire(m);
	/* Every so often also when this process changed nothing: another one may have. */
	if (!(m->may_cascade && is_mine(m)) && seconds < AGE_STEP_S)
		return 0;
	r = tick(m, seconds, &p, err);
	if (!r)
		r = meta_commit(m, err);
	if (r) {
		meta_rollback(m);
		return r == -EAGAIN ? 1 : r;
	}
	if (seconds >= AGE_STEP_S) {
		m->ticked_ns += seconds * NS_PER_S;
		m->ticked_age_s = m->params.age_s;
	}
	if (is_mine(m))
		m->may_cascade = p.more;
	return p.more;
}
