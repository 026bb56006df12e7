// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "agent/sources.h"
#include "base/cleanup.h"

#define MSEC		 1000000ULL
#define BUCKETS		 1024 /* power of two */
#define HEDGE_MIN_NS	 (50 * MSEC)	/* later than this, or four times the peer's own pace */
#define HEDGE_EACH	 20		/* one in so many */
#define ON_WAY_FIRST_NS	 (4 * MSEC)
#define ON_WAY_EARLY_NS	 (64 * MSEC)
#define ON_WAY_LAST_NS	 (32 * MSEC)
#define ON_WAY_MAX_NS	 (15000 * MSEC)
#define WAIT_MIN_NS	 (250 * MSEC) /* for an answer that waits for the block */
#define WAIT_MAX_NS	 (1000 * MSEC) /* below LINK_QUIET_MS */
#define SILENT_FIRST_NS	 (500 * MSEC)
#define SILENT_LAST_NS	 (60000 * MSEC)
#define DATA_LATE_NS	 (500 * MSEC)	/* beside a silent data server any peer is asked */
#define MAX_TO_ASK	 4
#define RACK_WEIGHT	 8 /* so much likelier is one in this host's rack, as loaded and as fast */

struct get {
	uint64_t id;
	struct fp fp;
	void *arg;
	uint64_t due_ns;	  /* when something is to be done unless an answer comes; 0: never */
	size_t place;		  /* in the heap of those that are due, from 1 */
	uint64_t on_way_until_ns; /* 0: nobody was named, or has said so, yet */
	uint64_t asked_ns;	  /* the peer */
	uint64_t data_asked_ns;
	uint8_t to_ask[MAX_TO_ASK], nr_to_ask;
	uint8_t on_way[MAX_TO_ASK], nr_on_way;
	uint8_t probes, hops;
	int peer;		  /* whose answer is awaited; -1: nobody's */
	bool by_filter;		  /* it was chosen by its filter */
	bool counted;		  /* in peer_gets */
	bool hedged;
	bool redirected;
	bool data_out, data_failed, any_peer;
	int error;
	uint64_t tried;		  /* bits: peers that have said no */
	LIST_ENTRY(get) by_id;
	TAILQ_ENTRY(get) link;
};
TAILQ_HEAD(get_list, get);

struct sources {
	const struct source_ops *ops;
	void *ctx;
	struct filter_table *filters;
	bool has_self;
	struct peer_address self;
	struct source_peer peers[SOURCES_MAX_PEERS];
	uint32_t hashes[SOURCES_MAX_PEERS]; /* of their endpoints: all of a search but its end */
	uint64_t next_id;
	LIST_HEAD(, get) ids[BUCKETS];
	struct get_list gets;
	struct get **due; /* a heap of those with a due_ns, the first at 1; room for all gets */
	size_t nr_due, due_room, nr_gets;
	uint64_t on_way_ns; /* what a block that was on its way takes, moving average */
	struct get_list fresh; /* their first step is still to come */
	struct sources_stats stats;
};

struct sources *sources_new(const struct source_ops *ops, void *ctx, struct filter_table *filters)
{
	struct sources *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->ops = ops;
	s->ctx = ctx;
	s->filters = filters;
	s->next_id = 1;
	TAILQ_INIT(&s->gets);
	TAILQ_INIT(&s->fresh);
	return s;
}

void sources_cancel(struct sources *s)
{
	struct get_list all = TAILQ_HEAD_INITIALIZER(all);
	struct get *g;

	TAILQ_CONCAT(&all, &s->gets, link);
	TAILQ_CONCAT(&all, &s->fresh, link);
	s->nr_due = s->nr_gets = 0;
	while ((g = TAILQ_FIRST(&all))) {
		TAILQ_REMOVE(&all, g, link);
		LIST_REMOVE(g, by_id);
		s->ops->done(s->ctx, g->arg, -ECANCELED, SOURCE_DATA, NULL, 0);
		free(g);
	}
}

void sources_free(struct sources *s)
{
	if (!s)
		return;
	sources_cancel(s);
	free(s->due);
	free(s);
}

static uint64_t now_of(struct sources *s)
{
	return s->ops->now_ns(s->ctx);
}

/* ---- peers ---- */

void sources_set_self(struct sources *s, const struct peer_address *self)
{
	s->self = *self;
	s->has_self = true;
}

uint64_t sources_peers_at(struct sources *s, const char *endpoint)
{
	uint32_t hash = text_hash(endpoint);
	uint64_t set = 0;
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS; i++)
		if (s->hashes[i] == hash && s->peers[i].state != PEER_NONE &&
		    !strcmp(s->peers[i].address.endpoint, endpoint))
			set |= 1ULL << i;
	return set;
}

static int peer_find(struct sources *s, const struct peer_address *a)
{
	uint64_t set = sources_peers_at(s, a->endpoint);

	for (; set; set &= set - 1)
		if (peer_address_equal(&s->peers[__builtin_ctzll(set)].address, a))
			return __builtin_ctzll(set);
	return -ENOENT;
}

/* A free number, else that of whom nobody has needed longest. Liars stay: they are remembered. */
static int peer_place(struct sources *s)
{
	int i, best = -ENOSPC;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		struct source_peer *p = &s->peers[i];

		if (p->state == PEER_NONE)
			return i;
		if (p->asking || p->state == PEER_LIAR)
			continue;
		if (best < 0 || (p->suggested == s->peers[best].suggested ?
					 p->used_ns < s->peers[best].used_ns : !p->suggested))
			best = i;
	}
	return best;
}

int sources_peer(struct sources *s, const struct peer_address *a)
{
	int i = peer_find(s, a);

	if (s->has_self && !strcmp(a->endpoint, s->self.endpoint))
		return -ENOSPC;
	if (i >= 0) {
		if (a->rack)
			s->peers[i].address.rack = a->rack;
		return i;
	}
	i = peer_place(s);
	if (i < 0)
		return i;
	if (s->peers[i].state != PEER_NONE) {
		s->ops->peer_gone(s->ctx, (unsigned int)i);
		filter_table_clear(s->filters, (unsigned int)i);
	}
	memset(&s->peers[i], 0, sizeof(s->peers[i]));
	s->peers[i].state = PEER_NEW;
	s->peers[i].address = *a;
	s->hashes[i] = text_hash(a->endpoint);
	s->peers[i].used_ns = now_of(s);
	return i;
}

struct source_peer *sources_peer_at(struct sources *s, unsigned int peer)
{
	return peer < SOURCES_MAX_PEERS && s->peers[peer].state != PEER_NONE ? &s->peers[peer] :
									       NULL;
}

bool sources_peer_usable(struct sources *s, unsigned int peer)
{
	const struct source_peer *p = &s->peers[peer];

	return p->state == PEER_NEW || p->state == PEER_OK ||
	       (p->state == PEER_SILENT && now_of(s) >= p->until_ns);
}

void sources_peer_heard(struct sources *s, unsigned int peer, bool answered)
{
	struct source_peer *p = &s->peers[peer];
	uint64_t pause = SILENT_FIRST_NS;
	unsigned int i;

	if (p->state == PEER_LIAR || p->state == PEER_NONE)
		return;
	if (answered) {
		p->state = PEER_OK;
		p->fails = 0;
		return;
	}
	for (i = 0; i < p->fails && pause < SILENT_LAST_NS; i++)
		pause *= 2;
	p->fails++;
	p->state = PEER_SILENT;
	p->until_ns = now_of(s) + MIN(pause, SILENT_LAST_NS);
}

void sources_peer_is_liar(struct sources *s, unsigned int peer)
{
	s->peers[peer].state = PEER_LIAR;
	filter_table_clear(s->filters, peer);
}

/* ---- whom to ask ---- */

/* One that was silent is asked for its filter first, for which nobody waits. */
static bool is_there(struct sources *s, const struct get *g, unsigned int peer)
{
	return !(g->tried >> peer & 1) && sources_peer_usable(s, peer) &&
	       s->peers[peer].state != PEER_SILENT;
}

static bool may_ask(struct sources *s, const struct get *g, unsigned int peer)
{
	return is_there(s, g, peer) && s->peers[peer].asking < PEER_MAX_BLOCKS;
}

/* The less it has to do, the faster it was and the nearer it is, the likelier. */
static uint64_t weight(const struct sources *s, unsigned int peer)
{
	const struct source_peer *p = &s->peers[peer];
	uint64_t us = p->latency_ns / 1000, w = (1ULL << 32) / ((p->asking + 1) * (us + 1000)) + 1;

	return s->self.rack && p->address.rack == s->self.rack ? RACK_WEIGHT * w : w;
}

/* Up to @max of the peers in @set, at random weighted. */
static void choose(struct sources *s, struct get *g, uint64_t set, unsigned int max)
{
	uint64_t total, at, rest;
	unsigned int i = 0;

	while (set && g->nr_to_ask < max) {
		for (total = 0, rest = set; rest; rest &= rest - 1)
			total += weight(s, (unsigned int)__builtin_ctzll(rest));
		at = s->ops->random(s->ctx) % total;
		for (rest = set; rest; rest &= rest - 1) {
			i = (unsigned int)__builtin_ctzll(rest);
			if (at < weight(s, i))
				break;
			at -= weight(s, i);
		}
		g->to_ask[g->nr_to_ask++] = (uint8_t)i;
		set &= ~(1ULL << i);
	}
}

static void choose_by_filter(struct sources *s, struct get *g)
{
	uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8];
	unsigned int columns = MIN(filter_table_columns(s->filters), SOURCES_MAX_PEERS), i;
	uint64_t set = 0;

	if (!filter_table_find(s->filters, &g->fp, yes))
		return;
	for (i = 0; i < columns; i++)
		if (yes[i / 8] >> i % 8 & 1 && may_ask(s, g, i))
			set |= 1ULL << i;
	choose(s, g, set, PEER_PROBES);
	g->by_filter = g->nr_to_ask;
}

static void choose_any(struct sources *s, struct get *g)
{
	uint64_t set = 0;
	unsigned int i;

	choose_by_filter(s, g);
	for (i = 0; i < SOURCES_MAX_PEERS; i++)
		if (may_ask(s, g, i) && (!g->nr_to_ask || i != g->to_ask[0]))
			set |= 1ULL << i;
	if (!g->nr_to_ask)
		choose(s, g, set, PEER_PROBES);
}

/* ---- one get ---- */

static void heap_put(struct sources *s, size_t place, struct get *g)
{
	s->due[place] = g;
	g->place = place;
}

/* To where it belongs from @place, which is free. */
static void heap_settle(struct sources *s, size_t place, struct get *g)
{
	size_t child;

	for (; place > 1 && s->due[place / 2]->due_ns > g->due_ns; place /= 2)
		heap_put(s, place, s->due[place / 2]);
	for (; (child = 2 * place) <= s->nr_due; place = child) {
		if (child < s->nr_due && s->due[child + 1]->due_ns < s->due[child]->due_ns)
			child++;
		if (s->due[child]->due_ns >= g->due_ns)
			break;
		heap_put(s, place, s->due[child]);
	}
	heap_put(s, place, g);
}

static void set_due(struct sources *s, struct get *g, uint64_t at_ns)
{
	bool was = g->due_ns;
	struct get *last;

	if (at_ns == g->due_ns)
		return;
	g->due_ns = at_ns;
	if (at_ns) {
		heap_settle(s, was ? g->place : ++s->nr_due, g);
		return;
	}
	last = s->due[s->nr_due--];
	if (last != g)
		heap_settle(s, g->place, last);
}

static struct get *get_find(struct sources *s, uint64_t id)
{
	struct get *g;

	LIST_FOREACH(g, &s->ids[id & (BUCKETS - 1)], by_id)
		if (g->id == id)
			return g;
	return NULL;
}

static void get_end(struct sources *s, struct get *g, int r, enum source_kind from,
		    const void *data, size_t len)
{
	set_due(s, g, 0);
	LIST_REMOVE(g, by_id);
	TAILQ_REMOVE(&s->gets, g, link);
	s->nr_gets--;
	if (!r) {
		s->stats.gets++;
		if (from == SOURCE_PEER)
			s->stats.from_peer++;
		else
			s->stats.from_data++;
	}
	s->ops->done(s->ctx, g->arg, r, from, data, len);
	free(g);
}

/* The peer was named, most likely because the block is on its way there: it answers when it has come,
 * or after twice what that takes usually. Then the others are asked: not sooner, for they have the block
 * already, are nearer to where it comes from, and upload to those that were sent to them. */
static unsigned int may_wait_ms(const struct sources *s, const struct get *g)
{
	uint64_t ns = MIN(MAX(2 * s->on_way_ns, WAIT_MIN_NS), WAIT_MAX_NS);

	return g->redirected ? (unsigned int)(ns / MSEC) : 0;
}

static void get_ask_peer(struct sources *s, struct get *g, unsigned int peer)
{
	struct source_peer *p = &s->peers[peer];
	uint64_t now = now_of(s);

	if (!g->counted)
		s->stats.peer_gets++;
	g->counted = true;
	g->peer = (int)peer;
	g->asked_ns = now;
	set_due(s, g, now + MAX(HEDGE_MIN_NS, 4 * p->latency_ns));
	p->asking++;
	p->asked++;
	p->filter_yes += g->by_filter;
	p->used_ns = now;
	if (g->redirected && !g->on_way_until_ns)
		g->on_way_until_ns = now + ON_WAY_MAX_NS;
	s->ops->ask_peer(s->ctx, peer, g->id, &g->fp, may_wait_ms(s, g));
}

static void get_ask_data(struct sources *s, struct get *g, bool serve)
{
	g->data_out = true;
	g->data_asked_ns = now_of(s);
	if (g->peer < 0)
		set_due(s, g, g->data_asked_ns + DATA_LATE_NS);
	s->ops->ask_data(s->ctx, g->id, &g->fp, serve);
}

/* When those that have it on their way are asked again: first when half of what it took lately is
 * over, then each time after a quarter of what it has taken, and 32 ms at most: each host of a tree is
 * late by no more than that. */
static uint64_t on_way_delay(const struct sources *s, const struct get *g, uint64_t now)
{
	uint64_t waited = now + ON_WAY_MAX_NS - g->on_way_until_ns;

	if (waited < ON_WAY_FIRST_NS)
		return MAX(ON_WAY_FIRST_NS, MIN(s->on_way_ns / 2, ON_WAY_EARLY_NS));
	return MAX(ON_WAY_FIRST_NS, MIN(waited / 4, ON_WAY_LAST_NS));
}

/* True when there is a while left to ask them in. */
static bool wait_for_on_way(struct sources *s, struct get *g)
{
	uint64_t now = now_of(s);

	if (!g->nr_on_way || now >= g->on_way_until_ns) {
		g->nr_on_way = 0;
		return false;
	}
	/* Its answer may have waited for so long already. */
	if (!g->due_ns)
		set_due(s, g, MAX(now + MSEC, g->asked_ns + on_way_delay(s, g, now)));
	return true;
}

/* It is asked again before the others: they were named for when it fails, and upload to others now. Not
 * when this takes twice as long as usual: it may be slow, and is the last of them then. */
static void note_on_way(struct sources *s, struct get *g, unsigned int peer)
{
	uint64_t now = now_of(s), waited;
	unsigned int i, at;

	if (!g->on_way_until_ns)
		g->on_way_until_ns = now + ON_WAY_MAX_NS;
	waited = now + ON_WAY_MAX_NS - g->on_way_until_ns;
	for (i = 0; i < g->nr_on_way; i++)
		if (g->on_way[i] == peer)
			return;
	if (g->nr_on_way == MAX_TO_ASK)
		return;
	at = waited > MAX(2 * s->on_way_ns, ON_WAY_EARLY_NS) ? g->nr_on_way : 0;
	memmove(g->on_way + at + 1, g->on_way + at, g->nr_on_way - at);
	g->on_way[at] = (uint8_t)peer;
	g->nr_on_way++;
}

/* The other names, of whom one has the block on its way: they are asked in turn. */
static void ask_later(struct get *g)
{
	unsigned int i;

	for (i = 0; i < g->nr_to_ask && g->nr_on_way < MAX_TO_ASK; i++)
		g->on_way[g->nr_on_way++] = g->to_ask[i];
	g->nr_to_ask = 0;
}

static void ask_next_on_way(struct get *g)
{
	g->to_ask[0] = g->on_way[0];
	g->nr_to_ask = 1;
	g->nr_on_way--;
	memmove(g->on_way, g->on_way + 1, g->nr_on_way);
}

/* One that was named, and that is asked for as much as may be already, is waited for like one that
 * has the block on its way: the server that named it must not be asked by all. */
static bool next_to_ask(struct sources *s, struct get *g, unsigned int *peer)
{
	while (g->nr_to_ask) {
		*peer = g->to_ask[0];
		g->nr_to_ask--;
		memmove(g->to_ask, g->to_ask + 1, g->nr_to_ask);
		if (may_ask(s, g, *peer))
			return true;
		if (g->redirected && is_there(s, g, *peer))
			note_on_way(s, g, *peer);
	}
	return false;
}

/* Decides what a get does that waits for no peer. */
static void get_step(struct sources *s, struct get *g)
{
	unsigned int peer;

	if (g->peer >= 0)
		return;
	set_due(s, g, g->data_out ? g->data_asked_ns + DATA_LATE_NS : 0);
	if (g->data_out && (g->any_peer || now_of(s) >= g->due_ns))
		set_due(s, g, 0);
	if (next_to_ask(s, g, &peer)) {
		get_ask_peer(s, g, peer);
		return;
	}
	if (wait_for_on_way(s, g))
		return;
	if (!g->data_out && !g->data_failed) {
		get_ask_data(s, g, g->redirected);
		return;
	}
	if (!g->any_peer && (g->data_failed || !g->due_ns)) {
		g->any_peer = true;
		choose_any(s, g);
		if (next_to_ask(s, g, &peer)) {
			get_ask_peer(s, g, peer);
			return;
		}
	}
	if (!g->data_out)
		get_end(s, g, g->error ? g->error : -ENOENT, SOURCE_DATA, NULL, 0);
	else if (g->any_peer)
		set_due(s, g, 0);
}

static int make_room(struct sources *s)
{
	size_t room = s->due_room ? 2 * s->due_room : 64;
	struct get **due;

	if (s->nr_gets + 1 < s->due_room)
		return 0;
	due = realloc(s->due, room * sizeof(struct get *));
	if (!due)
		return -ENOMEM;
	s->due = due;
	s->due_room = room;
	return 0;
}

int sources_get(struct sources *s, const struct fp *fp, void *arg)
{
	struct get *g = calloc(1, sizeof(*g));

	if (!g || make_room(s)) {
		free(g);
		return -ENOMEM;
	}
	s->nr_gets++;
	g->id = s->next_id++;
	g->fp = *fp;
	g->arg = arg;
	g->peer = -1;
	LIST_INSERT_HEAD(&s->ids[g->id & (BUCKETS - 1)], g, by_id);
	TAILQ_INSERT_TAIL(&s->fresh, g, link);
	return 0;
}

static void start_fresh(struct sources *s)
{
	struct get *g;

	while ((g = TAILQ_FIRST(&s->fresh))) {
		TAILQ_REMOVE(&s->fresh, g, link);
		TAILQ_INSERT_TAIL(&s->gets, g, link);
		choose_by_filter(s, g);
		get_step(s, g);
	}
}

/* ---- answers ---- */

/* Best first. They stand before those that were to be asked anyway. */
static void take_named(struct sources *s, struct get *g, const struct peer_address *named,
		       size_t nr_named)
{
	size_t i;
	int peer;

	s->stats.redirects++;
	g->redirected = true;
	g->by_filter = false;
	g->nr_to_ask = 0;
	if (g->hops++ >= PEER_HOPS)
		return;
	for (i = 0; i < nr_named && g->nr_to_ask < MAX_TO_ASK; i++) {
		peer = sources_peer(s, &named[i]);
		if (peer >= 0 && !(g->tried >> peer & 1))
			g->to_ask[g->nr_to_ask++] = (uint8_t)peer;
	}
}

static void peer_served(struct sources *s, struct source_peer *p, const struct get *g, size_t len)
{
	uint64_t took = now_of(s) - g->asked_ns;

	p->served++;
	p->bytes += len;
	if (!g->redirected) /* else it may have waited for the block */
		p->latency_ns = p->latency_ns ? (7 * p->latency_ns + took) / 8 : took;
	if (g->on_way_until_ns)
		s->on_way_ns = (7 * s->on_way_ns + now_of(s) + ON_WAY_MAX_NS - g->on_way_until_ns) / 8;
}

static bool is_answer(int r)
{
	return !r || r == -ENOENT || r == -EINPROGRESS || r == -EBUSY || r == -EREMOTE ||
	       r == -EBADMSG;
}

/* What else it was asked for is had elsewhere. */
static void leave_peer(struct sources *s, unsigned int peer)
{
	struct get *g, *next;

	for (g = TAILQ_FIRST(&s->gets); g; g = next) {
		next = TAILQ_NEXT(g, link);
		if (g->peer != (int)peer)
			continue;
		g->peer = -1;
		g->tried |= 1ULL << peer;
		get_step(s, g);
	}
}

void sources_peer_lost(struct sources *s, unsigned int peer)
{
	sources_peer_heard(s, peer, false);
	leave_peer(s, peer);
}

void sources_peer_answer(struct sources *s, unsigned int peer, uint64_t id, int r, const void *data,
			 size_t len, const struct peer_address *named, size_t nr_named)
{
	struct source_peer *p = &s->peers[peer];
	struct get *g = get_find(s, id);

	p->asking--;
	p->lies += r == -EBADMSG;
	if (r == -EBADMSG)
		sources_peer_is_liar(s, peer);
	else if (is_answer(r) || (g && g->peer == (int)peer))
		sources_peer_heard(s, peer, is_answer(r));
	p->not_here += r == -ENOENT;
	p->busy += r == -EBUSY || r == -EREMOTE;
	p->failed += !is_answer(r);
	if (!g || g->peer != (int)peer) /* another was faster */
		return;
	p->filter_false += g->by_filter && r == -ENOENT;
	g->peer = -1;
	if (!r) {
		peer_served(s, p, g, len);
		get_end(s, g, 0, SOURCE_PEER, data, len);
		return;
	}
	g->by_filter &= g->nr_to_ask != 0;
	s->stats.on_way += r == -EINPROGRESS;
	/* So is one that is busy, if the data server named it: it is not asked by all instead. */
	if (r == -EINPROGRESS || (g->redirected && (r == -EBUSY || r == -EREMOTE)))
		note_on_way(s, g, peer);
	else
		g->tried |= 1ULL << peer;
	if (r == -EINPROGRESS && g->redirected)
		ask_later(g);
	if (r == -EREMOTE)
		take_named(s, g, named, nr_named);
	get_step(s, g);
	if (!is_answer(r) || r == -EBADMSG)
		leave_peer(s, peer);
}

void sources_data_answer(struct sources *s, uint64_t id, int r, const void *data, size_t len)
{
	struct get *g = get_find(s, id);

	if (!g)
		return;
	g->data_out = false;
	if (!r) {
		get_end(s, g, 0, SOURCE_DATA, data, len);
		return;
	}
	g->data_failed = true;
	g->error = r;
	get_step(s, g);
}

void sources_data_redirect(struct sources *s, uint64_t id, const struct peer_address *named,
			   size_t nr_named)
{
	struct get *g = get_find(s, id);

	if (!g)
		return;
	g->data_out = false;
	take_named(s, g, named, nr_named);
	get_step(s, g);
}

/* ---- time ---- */

static bool may_hedge(const struct sources *s)
{
	return (s->stats.hedges + 1) * HEDGE_EACH <= s->stats.peer_gets;
}

static void get_due(struct sources *s, struct get *g, uint64_t now)
{
	set_due(s, g, 0);
	if (g->peer >= 0) {
		/* Late. Without a hedge its answer, or the lack of one, is waited for; of a block that
		 * all want, too: the server would feel each of them. */
		if (!g->redirected && !g->data_out && !g->data_failed && !g->hedged &&
		    may_hedge(s)) {
			g->hedged = true;
			s->stats.hedges++;
			get_ask_data(s, g, false);
		}
		return;
	}
	if (g->nr_on_way && now < g->on_way_until_ns)
		ask_next_on_way(g);
	get_step(s, g);
}

void sources_tick(struct sources *s)
{
	uint64_t now = now_of(s);

	start_fresh(s);
	while (s->nr_due && s->due[1]->due_ns <= now)
		get_due(s, s->due[1], now);
}

uint64_t sources_next_ns(struct sources *s)
{
	if (!TAILQ_EMPTY(&s->fresh))
		return 0;
	return s->nr_due ? s->due[1]->due_ns : UINT64_MAX;
}

void sources_stats(const struct sources *s, struct sources_stats *stats)
{
	*stats = s->stats;
}
