// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/links_impl.h"
#include "base/cleanup.h"

#define MAX_NAMED 4

/* ---- the operations of sources.c ---- */

static uint64_t op_now(void *ctx)
{
	return links_now(ctx);
}

static uint64_t op_random(void *ctx)
{
	struct links *l = ctx;

	return l->ops->random(l->ctx);
}

static void op_ask_peer(void *ctx, unsigned int peer, uint64_t id, const struct fp *fp,
			unsigned int wait_ms)
{
	struct links *l = ctx;
	struct link *k = &l->links[peer];

	/* sources.c asks a peer for no more than fit. */
	k->queue[k->nr_queued++] = (struct link_ask){ id, *fp, wait_ms };
	l->queued |= 1ULL << peer;
}

static void op_ask_data(void *ctx, uint64_t id, const struct fp *fp, bool serve)
{
	struct links *l = ctx;

	l->ops->ask_data(l->ctx, id, fp, serve);
}

static void op_done(void *ctx, void *arg, int r, enum source_kind from, const void *data,
		    size_t len)
{
	struct links *l = ctx;

	l->ops->done(l->ctx, arg, r, from, data, len);
}

static void op_peer_gone(void *ctx, unsigned int peer)
{
	struct links *l = ctx;
	struct link *k = &l->links[peer];
	unsigned int life = k->life + 1;

	l->ops->gone(l->ctx, peer);
	if (k->filter_asked)
		budget_return(&l->budget, k->promised);
	memset(k, 0, sizeof(*k));
	k->life = life;
	l->queued &= ~(1ULL << peer);
}

static const struct source_ops source_ops = {
	.now_ns = op_now,
	.random = op_random,
	.ask_peer = op_ask_peer,
	.ask_data = op_ask_data,
	.done = op_done,
	.peer_gone = op_peer_gone,
};

/* ---- blocks ---- */

void links_set_block_shift(struct links *l, unsigned int block_shift)
{
	l->block_shift = block_shift;
}

static unsigned int batch_max(const struct links *l)
{
	unsigned int n = l->block_shift ? LINK_BATCH_BYTES >> l->block_shift : 1;

	return MAX(1, MIN(n, LINK_BATCH_MAX));
}

static void send_some(struct links *l, unsigned int peer, const struct link_ask *asks, unsigned int nr)
{
	struct link *k = &l->links[peer];

	if (!k->messages++)
		k->heard_ns = links_now(l);
	l->ops->send_blocks(l->ctx, peer, asks, nr);
}

/* What may wait there goes alone: its answer holds up no other. */
static void send_queued(struct links *l, unsigned int peer)
{
	struct link_ask asks[PEER_MAX_BLOCKS], together[PEER_MAX_BLOCKS];
	struct link *k = &l->links[peer];
	unsigned int nr = k->nr_queued, max = batch_max(l), nr_together = 0, i;

	memcpy(asks, k->queue, nr * sizeof(asks[0]));
	k->nr_queued = 0;
	l->queued &= ~(1ULL << peer);
	l->watched |= 1ULL << peer;
	for (i = 0; i < nr; i++)
		if (!asks[i].wait_ms)
			together[nr_together++] = asks[i];
	for (i = 0; i < nr_together; i += max)
		send_some(l, peer, together + i, MIN(max, nr_together - i));
	for (i = 0; i < nr; i++)
		if (asks[i].wait_ms)
			send_some(l, peer, &asks[i], 1);
}

/* The number stands for this peer as long as it is asked for a block. */
void links_answered(struct links *l, unsigned int peer, bool heard)
{
	struct link *k = &l->links[peer];

	k->messages--;
	if (heard)
		k->heard_ns = links_now(l);
}

void links_block(struct links *l, unsigned int peer, uint64_t id, int r, const void *data,
		 size_t len, const struct peer_address *named, size_t nr_named)
{
	struct peer_address believed[MAX_NAMED];
	size_t i, nr = 0;

	/* A peer may name whom it likes. */
	for (i = 0; r == -EREMOTE && i < nr_named && nr < MAX_NAMED; i++)
		if (links_vouched(l, &named[i]))
			believed[nr++] = named[i];
	if (r == -EBADMSG && sources_peer_at(l->sources, peer)->state != PEER_LIAR)
		l->changed = true;
	sources_peer_answer(l->sources, peer, id, r, data, len, believed, nr);
}

/* ---- time ---- */

static bool is_waited_for(struct links *l, unsigned int peer)
{
	const struct source_peer *sp = sources_peer_at(l->sources, peer);

	return sp && sp->state != PEER_SILENT;
}

/* A peer that says nothing, a connection that breaks or does not come, with blocks waiting for it. */
void links_connection(struct links *l, unsigned int peer, bool connected)
{
	struct link *k = &l->links[peer];
	uint64_t now = links_now(l); /* after what was heard */

	if (k->messages && is_waited_for(l, peer) && now - k->heard_ns >= LINK_QUIET_MS * MSEC) {
		k->heard_ns = now;
		sources_peer_lost(l->sources, peer);
		return;
	}
	if (connected) {
		k->unconnected_ns = 0;
		return;
	}
	l->watched |= 1ULL << peer;
	if (!k->unconnected_ns)
		k->unconnected_ns = now;
	if (is_waited_for(l, peer) && sources_peer_at(l->sources, peer)->asking &&
	    now - k->unconnected_ns >= LINK_CONNECT_MS * MSEC)
		sources_peer_lost(l->sources, peer);
}

void links_run(struct links *l)
{
	sources_tick(l->sources);
	links_exchange(l);
	while (l->queued)
		send_queued(l, (unsigned int)__builtin_ctzll(l->queued));
}

uint64_t links_watched(struct links *l)
{
	return l->watched;
}

uint64_t links_next_ns(struct links *l)
{
	uint64_t next = MIN(sources_next_ns(l->sources), links_exchange_ns(l)), set;

	if (l->queued)
		return 0;
	for (set = l->watched; set; set &= set - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(set);
		const struct link *k = &l->links[i];

		if (!k->messages && !k->unconnected_ns) {
			l->watched &= ~(1ULL << i);
			continue;
		}
		if (!is_waited_for(l, i))
			continue;
		if (k->messages)
			next = MIN(next, k->heard_ns + LINK_QUIET_MS * MSEC);
		if (k->unconnected_ns && sources_peer_at(l->sources, i)->asking)
			next = MIN(next, k->unconnected_ns + LINK_CONNECT_MS * MSEC);
	}
	return next;
}

/* ---- for people ---- */

size_t links_list(struct links *l, struct peers_info *list, size_t max)
{
	uint64_t now = links_now(l);
	unsigned int i;
	size_t n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS && n < max; i++) {
		const struct source_peer *sp = sources_peer_at(l->sources, i);
		const struct link *k = &l->links[i];

		if (!sp)
			continue;
		list[n].peer = *sp;
		list[n].filter_age_ms = k->has_filter ? (now - k->filter_ns) / MSEC : UINT64_MAX;
		list[n].filter_blocks = k->filter_blocks;
		list[n++].filter_shift = k->filter_shift;
	}
	return n;
}

void links_totals(struct links *l, struct peers_totals *totals)
{
	sources_stats(l->sources, &totals->sources);
	totals->filter_bytes_in = l->filter_bytes_in;
	totals->filter_budget = l->budget.per_hour;
	totals->filter_memory = filter_table_bytes(l->table);
	totals->max_peers = links_set_size(l);
}

/* ---- life ---- */

struct sources *links_sources(struct links *l)
{
	return l->sources;
}

unsigned int links_life(struct links *l, unsigned int peer)
{
	return l->links[peer].life;
}

struct links *links_new(const struct link_ops *ops, void *ctx, const struct peer_address *self,
			uint64_t filter_bytes)
{
	struct links *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->ops = ops;
	l->ctx = ctx;
	l->table = filter_table_new(PEERS_FILTER_MEMORY, SOURCES_MAX_PEERS);
	if (l->table)
		l->sources = sources_new(&source_ops, l, l->table);
	if (!l->sources) {
		links_free(l);
		return NULL;
	}
	if (self)
		sources_set_self(l->sources, self);
	budget_init(&l->budget, filter_bytes, links_now(l));
	return l;
}

void links_free(struct links *l)
{
	if (!l)
		return;
	sources_free(l->sources);
	filter_table_free(l->table);
	free(l);
}
