// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Whom filters are exchanged with. The meta server suggests them; while there are few, others that
 * are met are taken as well.
 *
 * Who asks a peer tells it what this host wants, and takes its word on what it has: so an address that
 * came from anyone but the meta server (or a data server, which names those only that it knows by
 * the key of their connection) is believed if its key is one that may connect to this host, and
 * if the meta server has not named another key for it.
 */
#include <string.h>
#include "agent/links_impl.h"
#include "base/cleanup.h"

static unsigned int suggested_count(struct links *l)
{
	unsigned int i, n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		const struct source_peer *sp = sources_peer_at(l->sources, i);

		n += sp && sp->suggested;
	}
	return n;
}

unsigned int links_set_size(const struct links *l)
{
	return MIN(PEERS_SET, filter_table_columns(l->table));
}

static int learn(struct links *l, const struct peer_address *a)
{
	int peer = sources_peer(l->sources, a);
	struct source_peer *sp;

	if (peer < 0)
		return peer;
	sp = sources_peer_at(l->sources, (unsigned int)peer);
	if (!sp->suggested) {
		sp->suggested = true;
		l->changed = true;
	}
	return peer;
}

bool links_vouched(struct links *l, const struct peer_address *a)
{
	uint64_t set = sources_peers_at(l->sources, a->endpoint);

	for (; set; set &= set - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(set);

		if (l->links[i].vouched)
			return peer_address_equal(&sources_peer_at(l->sources, i)->address, a);
	}
	return l->ops->knows_key(l->ctx, a);
}

void links_met(struct links *l, const struct peer_address *a)
{
	if (suggested_count(l) < links_set_size(l) && links_vouched(l, a))
		learn(l, a);
}

void links_remember(struct links *l, const struct peer_address *a, bool liar)
{
	int peer;

	if (!links_vouched(l, a))
		return;
	peer = learn(l, a);
	if (peer >= 0 && liar)
		sources_peer_is_liar(l->sources, (unsigned int)peer);
}

/* What is said of the same endpoint with another key was wrong, or is no longer true. */
static void disbelieve_others(struct links *l, const struct peer_address *a)
{
	unsigned int i;

	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		struct source_peer *sp = sources_peer_at(l->sources, i);

		if (!sp || strcmp(sp->address.endpoint, a->endpoint) ||
		    peer_address_equal(&sp->address, a))
			continue;
		l->links[i].vouched = false;
		sp->suggested = false;
		sources_peer_is_liar(l->sources, i);
		sp->reported = true; /* the host that is there is not to be blamed */
		links_drop_filter(l, i);
		l->changed = true;
	}
}

void links_suggest(struct links *l, const struct peer_address *list, size_t nr)
{
	bool named[SOURCES_MAX_PEERS] = { false };
	unsigned int i, n;
	int peer;

	for (n = 0; n < nr && n < links_set_size(l); n++) {
		disbelieve_others(l, &list[n]);
		peer = learn(l, &list[n]);
		if (peer < 0)
			continue;
		l->links[peer].vouched = true;
		named[peer] = true;
	}
	/* Those that were there before stay as far as there is room. */
	for (i = 0; i < SOURCES_MAX_PEERS && suggested_count(l) > links_set_size(l); i++) {
		struct source_peer *sp = sources_peer_at(l->sources, i);

		if (!sp || !sp->suggested || named[i])
			continue;
		sp->suggested = false;
		l->changed = true;
		links_drop_filter(l, i);
	}
}

size_t links_some(struct links *l, struct peer_address *some, size_t max)
{
	unsigned int i;
	size_t n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS && n < max; i++) {
		const struct source_peer *sp = sources_peer_at(l->sources, i);

		if (sp && sp->suggested && sp->state == PEER_OK)
			some[n++] = sp->address;
	}
	return n;
}

size_t links_liars(struct links *l, char (*endpoints)[PEER_ENDPOINT_MAX], size_t max)
{
	unsigned int i;
	size_t n = 0;

	for (i = 0; i < SOURCES_MAX_PEERS && n < max; i++) {
		struct source_peer *sp = sources_peer_at(l->sources, i);

		if (!sp || sp->state != PEER_LIAR || sp->reported)
			continue;
		strcpy(endpoints[n++], sp->address.endpoint);
		sp->reported = true;
		l->changed = true;
	}
	return n;
}

bool links_changed(struct links *l)
{
	bool changed = l->changed;

	l->changed = false;
	return changed;
}
