// SPDX-License-Identifier: GPL-2.0-or-later
/* The governor's judgement, on the meta server's thread. The rules: governor.h. */
#include "meta/governor.h"
#include "meta/probe.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEASE_EVERY_NS	 1000000000ULL
#define PLAN_EVERY_NS	 1000000000ULL
#define PLAN_IDLE_NS	 10000000000ULL /* when the last plan changed nothing */
#define RELOAD_EVERY_NS	 1000000000ULL
#define HEARD_NS	 3000000000ULL	/* who answered since then is heard from */
#define WITNESS_NS	 10000000000ULL /* a complaint counts as long as this */
#define DEAF_NS		 3000000000ULL	/* when it hears again, those that are there answer within this */
#define BACK_IN_A_ROW	 3
#define BACK_LATE_IN_A_ROW 10 /* of one that is slow */
#define NS_PER_MS	 1000000ULL
#define NS_PER_S	 1000000000ULL

struct ward {
	uint32_t id;
	enum server_state state;
	bool by_itself;
	uint64_t capacity;
	char host[META_MAX_TEXT + 1], rack[META_MAX_TEXT + 1];
};

/* Kept until it answers again: a JOIN alone shows only that it can reach a meta server. */
struct down {
	uint32_t id;
	uint64_t since_ns; /* this governor knows */
	bool joined;	   /* since */
};

struct governor {
	struct meta *m;
	struct prober *prober;
	struct lease_watch lease;
	uint64_t patience_ns;
	uint64_t next_lease_ns, next_plan_ns, next_load_ns;
	uint64_t planned_version; /* of the map */
	uint64_t loaded_version;
	int trouble; /* said once */
	struct ward wards[META_MAX_SERVERS];
	size_t nr;
	struct down down[META_MAX_SERVERS];
	size_t nr_down;
	uint64_t deaf_ns; /* when it last heard too few; 0: it never did */
	struct probe_state states[META_MAX_SERVERS];
};

static uint64_t now_ns(struct governor *g)
{
	return g->m->env->mono_ns(g->m->env->ctx);
}

static void accused(void *arg, uint32_t server)
{
	struct governor *g = arg;

	prober_accuse(g->prober, server);
}

/* ---- who is there ---- */

static int load_targets(struct governor *g, struct probe_target *targets, size_t *nr,
			struct error *err)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	g->nr = *nr = 0;
	r = store_query(g->m->store, err, &rows,
			"SELECT id, state, capacity, host, rack, endpoint, curve_key, by_itself, "
			"disk FROM servers ORDER BY id");
	while (!r && g->nr < META_MAX_SERVERS && (r = rows_next(&rows, err)) > 0) {
		struct ward *w = &g->wards[g->nr++];
		struct probe_target *t = &targets[(*nr)++];
		const void *key;
		size_t len;

		r = rows_bytes(&rows, 8, t->disk, sizeof(t->disk), err);
		w->id = t->id = (uint32_t)rows_int(&rows, 0);
		w->state = (enum server_state)rows_int(&rows, 1);
		w->capacity = (uint64_t)rows_int(&rows, 2);
		w->by_itself = rows_int(&rows, 7);
		snprintf(w->host, sizeof(w->host), "%s", rows_text(&rows, 3));
		snprintf(w->rack, sizeof(w->rack), "%s", rows_text(&rows, 4));
		snprintf(t->endpoint, sizeof(t->endpoint), "%s", rows_text(&rows, 5));
		key = rows_blob(&rows, 6, &len);
		t->has_key = len == sizeof(t->key);
		if (t->has_key)
			memcpy(t->key, key, len);
	}
	return MIN(r, 0);
}

static int load(struct governor *g, struct error *err)
{
	struct probe_target *targets CLEANUP_FREE = calloc(META_MAX_SERVERS, sizeof(*targets));
	size_t nr = 0;
	int r;

	if (!targets)
		return error_set(err, -ENOMEM, "out of memory");
	r = meta_begin(g->m, err) ?: load_targets(g, targets, &nr, err);
	meta_rollback(g->m);
	if (!r)
		prober_targets(g->prober, targets, nr, g->m->params.map_version);
	return r;
}

static const struct probe_state *state_of(const struct governor *g, size_t nr, uint32_t id)
{
	for (size_t i = 0; i < nr; i++)
		if (g->states[i].id == id)
			return &g->states[i];
	return NULL;
}

/* ---- down, up ---- */

/* Half of those that should answer do: it is not this process that is cut off. */
static bool hears_enough(const struct governor *g, size_t nr, uint64_t now)
{
	size_t all = 0, heard = 0;

	for (size_t i = 0; i < g->nr; i++) {
		const struct probe_state *s = state_of(g, nr, g->wards[i].id);

		if (!s || g->wards[i].state == SERVER_OUT || g->wards[i].state == SERVER_DOWN)
			continue;
		all++;
		heard += s->answered_ns && now - s->answered_ns < HEARD_NS;
	}
	return 2 * heard >= all;
}

static bool is_dead(const struct governor *g, const struct probe_state *s, uint64_t now)
{
	uint64_t heard = MAX(s->answered_ns, s->since_ns);

	if (s->refused_ns > heard || s->failed)
		return true;
	if (now - heard < GOVERNOR_SILENT_MS * NS_PER_MS)
		return false;
	if (s->accused_ns && now - s->accused_ns < WITNESS_NS)
		return true;
	return !g->deaf_ns || now - g->deaf_ns >= DEAF_NS;
}

static struct down *down_find(struct governor *g, uint32_t id)
{
	for (size_t i = 0; i < g->nr_down; i++)
		if (g->down[i].id == id)
			return &g->down[i];
	return NULL;
}

static void note_down(struct governor *g, uint32_t id, uint64_t now)
{
	struct down *d = down_find(g, id);

	if (d)
		d->joined = false;
	else if (g->nr_down < META_MAX_SERVERS)
		g->down[g->nr_down++] = (struct down){ .id = id, .since_ns = now };
}

static void forget_down(struct governor *g, struct down *d)
{
	*d = g->down[--g->nr_down];
}

/* What it has answered before it fell silent counts no more. */
static bool answers_again(const struct probe_state *s, uint64_t now)
{
	if (!s->answered_ns || now - s->answered_ns >= HEARD_NS)
		return false;
	return (s->in_a_row >= BACK_IN_A_ROW || s->answers_in_a_row >= BACK_LATE_IN_A_ROW) && !s->failed;
}

/* True: it has just joined anew, and what was found out before counts no more. */
static bool note_up(struct governor *g, uint32_t id, const struct probe_state *s, uint64_t now)
{
	struct down *d = down_find(g, id);

	if (d && !d->joined) {
		d->joined = true;
		prober_forgive(g->prober, id);
		return true;
	}
	if (d && answers_again(s, now))
		forget_down(g, d);
	return false;
}

/* ---- out ---- */

static bool same_domain(const struct ward *a, const struct ward *b)
{
	return a->id == b->id || !strcmp(a->host, b->host) || (*a->rack && !strcmp(a->rack, b->rack));
}

static bool may_go_out(const struct governor *g, const struct ward *w)
{
	uint64_t all = 0, out = w->capacity;
	bool one_domain = true;

	for (size_t i = 0; i < g->nr; i++) {
		const struct ward *other = &g->wards[i];

		all += other->capacity;
		if (other == w || other->state != SERVER_OUT || !other->by_itself)
			continue;
		out += other->capacity;
		one_domain &= same_domain(w, other);
	}
	return one_domain || out <= all / 10;
}

static bool is_due_out(const struct governor *g, const struct ward *w, uint64_t now)
{
	for (size_t i = 0; i < g->nr_down; i++)
		if (g->down[i].id == w->id)
			return now - g->down[i].since_ns >= g->m->params.out_after_s * NS_PER_S &&
			       may_go_out(g, w);
	return false;
}

/* ---- judging ---- */

static int set_state(struct governor *g, struct ward *w, enum server_state state, const char *why,
		     struct error *err)
{
	int r = membership_mark(g->m, &g->lease, w->id, state, err);

	if (r <= 0)
		return r;
	log_info("governor: data server %u (host %s) is %s: %s", w->id, w->host,
		 state == SERVER_DOWN ? "down" : state == SERVER_OUT ? "out" : "up", why);
	w->state = state;
	g->next_plan_ns = 0;
	return 0;
}

/* Why, and how soon it was found: the server was there at its last answer. */
static const char *why_down(const struct probe_state *s, uint64_t now, char text[160])
{
	int n = snprintf(text, 160, "%s; last answer %llu ms ago",
			 s->failed ? "its disk takes nothing any more" :
			 s->refused_ns ? "nothing listens there" : "it does not answer",
			 (unsigned long long)((now - MAX(s->answered_ns, s->since_ns)) / NS_PER_MS));

	if (s->complaint_ns)
		n += snprintf(text + n, 160 - (size_t)n, ", first complaint %llu ms",
			      (unsigned long long)((now - s->complaint_ns) / NS_PER_MS));
	if (s->broken_ns)
		snprintf(text + n, 160 - (size_t)n, ", connection lost %llu ms",
			 (unsigned long long)((now - s->broken_ns) / NS_PER_MS));
	return text;
}

static int raise_up(struct governor *g, struct ward *w, struct error *err)
{
	struct down *d = down_find(g, w->id);
	int r = set_state(g, w, SERVER_UP, "it answers again", err);

	if (w->state != SERVER_UP)
		return r;
	if (d)
		forget_down(g, d);
	prober_forgive(g->prober, w->id);
	return r;
}

static int judge(struct governor *g, struct ward *w, const struct probe_state *s, uint64_t now,
		 struct error *err)
{
	char why[160];

	switch (w->state) {
	case SERVER_UP:
	case SERVER_SUSPECT:
	case SERVER_DRAINING:
		if (note_up(g, w->id, s, now) || !is_dead(g, s, now))
			return 0;
		note_down(g, w->id, now);
		return set_state(g, w, SERVER_DOWN, why_down(s, now, why), err);
	case SERVER_DOWN:
		if (answers_again(s, now))
			return raise_up(g, w, err);
		note_down(g, w->id, now);
		if (!is_due_out(g, w, now))
			return 0;
		return set_state(g, w, SERVER_OUT, "it has been down for too long", err);
	case SERVER_OUT:
		return w->by_itself && answers_again(s, now) ? raise_up(g, w, err) : 0;
	default:
		return 0;
	}
}

static int judge_all(struct governor *g, struct error *err)
{
	size_t nr = prober_states(g->prober, g->states, META_MAX_SERVERS);
	uint64_t now = now_ns(g);
	int r = 0;

	if (!hears_enough(g, nr, now))
		g->deaf_ns = now;
	for (size_t i = 0; !r && i < g->nr; i++) {
		const struct probe_state *s = state_of(g, nr, g->wards[i].id);

		if (s)
			r = judge(g, &g->wards[i], s, now, err);
	}
	return r;
}

/* ---- planning ---- */

static int plan(struct governor *g, uint64_t now, struct error *err)
{
	struct plan_result result = { 0 };
	int r;

	if (now < g->next_plan_ns)
		return 0;
	r = membership_plan(g->m, &g->lease, &result, err);
	g->next_plan_ns = now + (result.changed ? PLAN_EVERY_NS : PLAN_IDLE_NS);
	g->planned_version = g->m->params.map_version;
	return r;
}

/* ---- the tick ---- */

static int lead(struct governor *g, uint64_t now, struct error *err)
{
	bool did = g->lease.epoch;
	int r;

	if (now < g->next_lease_ns)
		return did;
	g->next_lease_ns = now + LEASE_EVERY_NS;
	r = membership_govern(g->m, &g->lease, g->patience_ns, err);
	g->m->governs = r > 0;
	g->m->may_cascade |= g->m->defers; /* others leave theirs to the one that governs */
	if (r > 0 && !did) {
		log_info("governor: this meta server governs, epoch %llu",
			 (unsigned long long)g->lease.epoch);
		g->nr_down = 0;
		g->next_load_ns = g->next_plan_ns = 0;
	} else if (r <= 0 && did) {
		log_info("governor: this meta server does not govern any more");
		prober_targets(g->prober, NULL, 0, 0);
	}
	return r;
}

void governor_tick(struct governor *g)
{
	uint64_t now = now_ns(g);
	struct error err = { 0 };
	int r = lead(g, now, &err);

	if (r > 0) {
		r = 0;
		if (now >= g->next_load_ns || g->m->params.map_version != g->loaded_version) {
			r = load(g, &err);
			g->loaded_version = g->m->params.map_version;
			g->next_load_ns = now + RELOAD_EVERY_NS;
		}
		if (!r)
			r = judge_all(g, &err);
		/* Something else changed the map: there may be more to do. */
		if (g->m->params.map_version != g->planned_version)
			g->next_plan_ns = MIN(g->next_plan_ns, now + PLAN_EVERY_NS);
		if (!r)
			r = plan(g, now, &err);
	}
	if (r == -ESTALE || r == -EAGAIN)
		g->next_lease_ns = 0; /* another one governs, or the transaction lost */
	else if (r < 0 && r != g->trouble)
		log_error("governor: %s", err.text);
	g->trouble = r < 0 ? r : 0;
}

int governor_fd(struct governor *g)
{
	return prober_fd(g->prober);
}

struct governor *governor_new(struct net_ctx *net, struct meta *m, uint64_t patience_ns,
			      struct error *err)
{
	struct governor *g = calloc(1, sizeof(*g));

	if (!g) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	g->m = m;
	g->patience_ns = patience_ns;
	if (m->env->random(m->env->ctx, g->lease.me, sizeof(g->lease.me))) {
		error_set(err, -EIO, "no random numbers from the system");
		goto free_governor;
	}
	g->prober = prober_new(net, err);
	if (!g->prober)
		goto free_governor;
	m->accused = accused;
	m->accused_arg = g;
	m->defers = patience_ns;
	return g;
free_governor:
	free(g);
	return NULL;
}

void governor_free(struct governor *g)
{
	if (!g)
		return;
	g->m->accused = NULL;
	prober_free(g->prober);
	free(g);
}
