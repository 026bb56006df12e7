// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/placement.h"

#include <string.h>

#define MAX_PASSES 8

static const struct placement_server *find(const struct placement *p, uint32_t id)
{
	size_t i;

	for (i = 0; id && i < p->nr_servers; i++)
		if (p->servers[i].id == id)
			return &p->servers[i];
	return NULL;
}

static bool same_domain(const struct placement_server *a, const struct placement_server *b)
{
	return a->id == b->id || !strcmp(a->host, b->host) ||
	       (a->rack[0] && !strcmp(a->rack, b->rack));
}

/* @place is the one that it would take. */
static bool may_hold(const struct placement *p, unsigned int shard, unsigned int place,
		     const struct placement_server *s)
{
	const struct placement_server *other;
	unsigned int i;

	for (i = 0; i < p->replicas; i++) {
		if (i == place)
			continue;
		other = find(p, p->shards[shard][i]);
		if (p->shards[shard][i] == s->id || (other && same_domain(other, s)))
			return false;
	}
	return true;
}

/* a has fewer places a byte of capacity than b. */
static bool below(uint64_t places_a, const struct placement_server *a, uint64_t places_b,
		  const struct placement_server *b)
{
	return (double)places_a * (double)(b->capacity + 1) <
	       (double)places_b * (double)(a->capacity + 1);
}

/* The server for a place: the one furthest below its share. nr_servers: none may have it. */
static size_t choose(const struct placement *p, unsigned int shard, unsigned int place,
		     const uint32_t *places)
{
	size_t i, best = p->nr_servers;

	for (i = 0; i < p->nr_servers; i++) {
		if (!may_hold(p, shard, place, &p->servers[i]))
			continue;
		if (best == p->nr_servers || below(places[i], &p->servers[i], places[best],
						   &p->servers[best]))
			best = i;
	}
	return best;
}

static void set(struct placement *p, unsigned int shard, unsigned int place, size_t server,
		uint32_t *places)
{
	p->shards[shard][place] = p->servers[server].id;
	p->changed[shard][place] = true;
	places[server]++;
}

static unsigned int fill(struct placement *p, uint32_t *places)
{
	unsigned int shard, place, n = 0;
	size_t i;

	for (place = 0; place < p->replicas; place++) {
		for (shard = 0; shard < NR_SHARDS; shard++) {
			if (p->shards[shard][place])
				continue;
			i = choose(p, shard, place, places);
			if (i == p->nr_servers)
				continue;
			set(p, shard, place, i, places);
			n++;
		}
	}
	return n;
}

/* A move pays while the receiver, with the place, is still no fuller than the giver with it. */
static unsigned int even_out(struct placement *p, uint32_t *places)
{
	unsigned int shard, place, n = 0;
	const struct placement_server *from;
	size_t to;

	for (shard = 0; shard < NR_SHARDS; shard++) {
		for (place = 0; p->empty[shard] && place < p->replicas; place++) {
			from = find(p, p->shards[shard][place]);
			if (!from)
				continue;
			to = choose(p, shard, place, places);
			if (to == p->nr_servers || &p->servers[to] == from ||
			    !below(places[to] + 1, &p->servers[to], places[from - p->servers],
				   from))
				continue;
			places[from - p->servers]--;
			set(p, shard, place, to, places);
			n++;
		}
	}
	return n;
}

unsigned int placement_fill(struct placement *p)
{
	uint32_t places[META_MAX_SERVERS] = { 0 };
	unsigned int shard, place, pass, moved, n;
	const struct placement_server *s;

	for (shard = 0; shard < NR_SHARDS; shard++)
		for (place = 0; place < p->replicas; place++)
			if ((s = find(p, p->shards[shard][place])))
				places[s - p->servers]++;
	n = fill(p, places);
	/* One pass looks at each place once; what it has moved may let another follow. */
	for (pass = 0; pass < MAX_PASSES; pass++) {
		moved = even_out(p, places);
		if (!moved)
			break;
		n += moved;
	}
	return n;
}
