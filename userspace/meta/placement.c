// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/placement.h"

#include <string.h>

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

static bool may_hold(const struct placement *p, unsigned int shard,
		     const struct placement_server *s)
{
	const struct placement_server *other;
	unsigned int i;

	for (i = 0; i < p->replicas; i++) {
		other = find(p, p->shards[shard][i]);
		if (p->shards[shard][i] == s->id || (other && same_domain(other, s)))
			return false;
	}
	return true;
}

/* The one with the fewest places a byte of capacity: a.places / a.capacity < b.places / b.capacity. */
static size_t choose(const struct placement *p, unsigned int shard, const uint32_t *places)
{
	size_t i, best = p->nr_servers;

	for (i = 0; i < p->nr_servers; i++) {
		const struct placement_server *s = &p->servers[i];

		if (!may_hold(p, shard, s))
			continue;
		if (best == p->nr_servers ||
		    (double)places[i] * (double)(p->servers[best].capacity + 1) <
			    (double)places[best] * (double)(s->capacity + 1))
			best = i;
	}
	return best;
}

unsigned int placement_fill(struct placement *p)
{
	uint32_t places[META_MAX_SERVERS] = { 0 };
	unsigned int shard, replica, filled = 0;
	size_t i;

	for (shard = 0; shard < NR_SHARDS; shard++)
		for (replica = 0; replica < p->replicas; replica++)
			for (i = 0; i < p->nr_servers; i++)
				places[i] += p->shards[shard][replica] == p->servers[i].id;
	for (replica = 0; replica < p->replicas; replica++) {
		for (shard = 0; shard < NR_SHARDS; shard++) {
			if (p->shards[shard][replica])
				continue;
			i = choose(p, shard, places);
			if (i == p->nr_servers)
				continue;
			p->shards[shard][replica] = p->servers[i].id;
			p->filled[shard][replica] = true;
			places[i]++;
			filled++;
		}
	}
	return filled;
}
