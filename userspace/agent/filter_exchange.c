// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Filters of peers: each of the set is asked every five seconds or so for what is new. What that
 * brings is paid for from a budget: before a peer is asked, as much as its answer may need is set
 * aside, and the peer is told to send no more: what is larger is asked for again, with more. The
 * one whose turn was longest ago comes first.
 */
#include <errno.h>
#include <stdlib.h>
#include "agent/links_impl.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "proto/limits.h"

#define FIRST_BYTES (64U << 10) /* set aside for an answer; one that needs more says so */

/* ---- what came ---- */

void links_drop_filter(struct links *l, unsigned int peer)
{
	struct link *k = &l->links[peer];

	filter_table_clear(l->table, peer);
	k->has_filter = false;
	k->generation = k->additions = 0;
}

static int take_full(struct links *l, unsigned int peer, const struct link_filter *f)
{
	size_t len;
	void *bits;
	int r;

	if (f->shift < FILTER_MIN_SHIFT || f->shift > FILTER_MAX_SHIFT || f->hashes != FILTER_HASHES)
		return -EPROTO;
	len = (size_t)1 << (f->shift - 3);
	r = filter_unpack(f->packed, f->packed_len, true, &len, &bits);
	if (r)
		return r;
	r = filter_table_set(l->table, peer, bits, f->shift);
	free(bits);
	l->links[peer].has_filter = !r;
	return r == -ENOSPC ? 0 : r;
}

static int take_added(struct links *l, unsigned int peer, const struct link_filter *f)
{
	struct link *k = &l->links[peer];
	size_t len = (size_t)PROTO_MAX_FRAME, i;
	uint8_t *added;
	void *data;
	int r;

	if (f->generation != k->generation || f->additions < k->additions)
		return -EPROTO;
	r = filter_unpack(f->packed, f->packed_len, false, &len, &data);
	if (r)
		return r;
	added = data;
	if (len / FILTER_ADDED_SIZE != f->additions - k->additions)
		r = -EPROTO;
	for (i = 0; !r && i < len; i += FILTER_ADDED_SIZE)
		filter_table_add(l->table, peer, added + i);
	free(data);
	return r;
}

static void take_filter(struct links *l, unsigned int peer, const struct link_filter *f)
{
	struct link *k = &l->links[peer];
	int r;

	r = f->full ? take_full(l, peer, f) : take_added(l, peer, f);
	if (r) { /* begin anew the next time */
		log_warn("peer %s sent a filter that cannot be read (%s)",
			 sources_peer_at(l->sources, peer)->address.endpoint, strerror(-r));
		links_drop_filter(l, peer);
		return;
	}
	k->generation = f->generation;
	k->additions = f->additions;
	k->filter_shift = f->full ? f->shift : k->filter_shift;
	k->filter_blocks = f->blocks;
	k->filter_ns = links_now(l);
	k->wanted = 0;
}

void links_filter(struct links *l, unsigned int peer, unsigned int life, int r,
		  const struct link_filter *f)
{
	struct link *k = &l->links[peer];
	const struct source_peer *sp = sources_peer_at(l->sources, peer);
	uint64_t cost = FILTER_OVERHEAD + (f ? f->packed_len : 0);
	size_t i;

	l->filter_bytes_in += f ? f->packed_len : 0;
	if (k->life != life || !sp || !k->filter_asked) {
		budget_spend(&l->budget, cost);
		return;
	}
	k->filter_asked = false;
	budget_return(&l->budget, k->promised);
	budget_spend(&l->budget, cost);
	sources_peer_heard(l->sources, peer, !r);
	if (!f || sp->state == PEER_LIAR || !sp->suggested)
		return;
	if (f->too_large) {
		k->wanted = f->too_large + FILTER_OVERHEAD;
		k->next_filter_ns = links_now(l);
	} else {
		take_filter(l, peer, f);
	}
	/* Peers of peers, while there are few of our own. */
	for (i = 0; i < f->nr_others; i++)
		links_met(l, &f->others[i]);
}

/* ---- whom to ask ---- */

static bool may_ask(struct links *l, unsigned int peer)
{
	const struct source_peer *sp = sources_peer_at(l->sources, peer);

	return sp && (sp->suggested || sp->state == PEER_SILENT) && sp->state != PEER_LIAR &&
	       !l->links[peer].filter_asked;
}

static uint64_t needed(const struct link *k)
{
	return MAX(k->wanted, FIRST_BYTES);
}

/* The peer whose turn has come, longest ago; SOURCES_MAX_PEERS: none. */
static unsigned int next_due(struct links *l, uint64_t now)
{
	unsigned int i, best = SOURCES_MAX_PEERS;

	for (i = 0; i < SOURCES_MAX_PEERS; i++)
		if (may_ask(l, i) && now >= l->links[i].next_filter_ns &&
		    sources_peer_usable(l->sources, i) &&
		    (best == SOURCES_MAX_PEERS ||
		     l->links[i].next_filter_ns < l->links[best].next_filter_ns))
			best = i;
	return best;
}

static void ask_one(struct links *l, unsigned int peer, uint64_t now)
{
	struct link *k = &l->links[peer];

	k->next_filter_ns =
		now + (PEERS_FILTER_MS + l->ops->random(l->ctx) % (PEERS_FILTER_MS / 4)) * MSEC;
	if (!l->ops->send_filter(l->ctx, peer, k->generation, k->additions,
				 needed(k) - FILTER_OVERHEAD))
		return;
	k->filter_asked = true;
	k->promised = needed(k);
	budget_spend(&l->budget, k->promised);
}

void links_exchange(struct links *l)
{
	uint64_t now = links_now(l);
	unsigned int peer;

	if (!l->budget.per_hour)
		return;
	while ((peer = next_due(l, now)) != SOURCES_MAX_PEERS) {
		struct link *k = &l->links[peer];

		/* What needs more than there ever is would stop all others: its turn goes by. */
		if (needed(k) > l->budget.per_hour / 2)
			k->next_filter_ns = now + PEERS_FILTER_MS * MSEC;
		else if (needed(k) > budget_left(&l->budget, now))
			return;
		else
			ask_one(l, peer, now);
	}
}

uint64_t links_exchange_ns(struct links *l)
{
	uint64_t next = UINT64_MAX, now = links_now(l);
	unsigned int i;

	for (i = 0; l->budget.per_hour && i < SOURCES_MAX_PEERS; i++) {
		const struct source_peer *sp = sources_peer_at(l->sources, i);

		if (may_ask(l, i))
			next = MIN(next, MAX(l->links[i].next_filter_ns,
					     sp->state == PEER_SILENT ? sp->until_ns : 0));
	}
	if (next > now)
		return next;
	i = next_due(l, now);
	return i == SOURCES_MAX_PEERS ? now : MAX(now, budget_when_ns(&l->budget,
								  needed(&l->links[i])));
}
