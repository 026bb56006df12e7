// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/placement.h"

#include <string.h>

#define MAX_PASSES 8
#define SLACK	   50 /* a difference of this part of a server's share is left alone */

const struct placement_server *placement_find(const struct placement *p, uint32_t id)
{
	size_t low = 0, high = id ? p->nr_servers : 0;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (p->servers[mid].id == id)
			return &p->servers[mid];
		if (p->servers[mid].id < id)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

static bool holds(const struct placement *p, const struct placement_row *row)
{
	const struct placement_server *s = placement_find(p, row->server);

	return s && !s->leaves && row->state != REPLICA_LEAVING;
}

unsigned int placement_holders(const struct placement *p, unsigned int shard)
{
	unsigned int i, n = 0;

	for (i = 0; i < PROTO_MAX_PLACES; i++)
		n += holds(p, &p->shards[shard][i]);
	return n;
}

/* Nothing of it moves: every replica is current and stays. */
static bool is_calm(const struct placement *p, unsigned int shard)
{
	unsigned int i;

	for (i = 0; i < PROTO_MAX_PLACES; i++)
		if (p->shards[shard][i].server && p->shards[shard][i].state != REPLICA_CURRENT)
			return false;
	return true;
}

/* PROTO_MAX_PLACES: none. */
static unsigned int free_place(const struct placement *p, unsigned int shard)
{
	unsigned int i;

	for (i = 0; i < PROTO_MAX_PLACES && p->shards[shard][i].server; i++)
		;
	return i;
}

static bool same_domain(const struct placement_server *a, const struct placement_server *b)
{
	return a->id == b->id || !strcmp(a->host, b->host) ||
	       (a->rack[0] && !strcmp(a->rack, b->rack));
}

/* @place is the one that it would take the place of; PROTO_MAX_PLACES: of none. */
static bool may_hold(const struct placement *p, unsigned int shard, unsigned int place,
		     const struct placement_server *s)
{
	const struct placement_server *other;
	unsigned int i;

	if (!s->takes || (!p->empty[shard] && s->room < p->shard_bytes))
		return false;
	for (i = 0; i < PROTO_MAX_PLACES; i++) {
		if (i == place)
			continue;
		if (p->shards[shard][i].server == s->id)
			return false;
		other = placement_find(p, p->shards[shard][i].server);
		if (other && holds(p, &p->shards[shard][i]) && same_domain(other, s))
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
		if (best != p->nr_servers && !below(places[i], &p->servers[i], places[best],
						    &p->servers[best]))
			continue;
		if (may_hold(p, shard, place, &p->servers[i]))
			best = i;
	}
	return best;
}

static void set(struct placement *p, unsigned int shard, unsigned int place, size_t server,
		enum replica_state state, uint32_t *places)
{
	p->shards[shard][place] = (struct placement_row){ p->servers[server].id, state };
	p->changed[shard][place] = true;
	if (!p->empty[shard])
		p->servers[server].room -= p->shard_bytes;
	places[server]++;
}

/* The first replica of a shard, and that of an empty one, has nobody to reconcile with. */
static enum replica_state state_of_new(const struct placement *p, unsigned int shard)
{
	unsigned int i;

	for (i = 0; !p->empty[shard] && i < PROTO_MAX_PLACES; i++)
		if (p->shards[shard][i].server)
			return REPLICA_STALE;
	return REPLICA_CURRENT;
}

/* Round by round, so that the first replicas, which take the writes, spread evenly too. */
static unsigned int fill(struct placement *p, uint32_t *places)
{
	unsigned int shard, round, n = 0;

	for (round = 0; round < p->replicas; round++) {
		for (shard = 0; shard < NR_SHARDS; shard++) {
			unsigned int place = free_place(p, shard);
			size_t i;

			if (place == PROTO_MAX_PLACES || placement_holders(p, shard) > round)
				continue;
			i = choose(p, shard, PROTO_MAX_PLACES, places);
			if (i == p->nr_servers) {
				p->unplaced++;
				continue;
			}
			set(p, shard, place, i, state_of_new(p, shard), places);
			n++;
		}
	}
	return n;
}

/* Puts the replica at @place onto server @to, at once or by way of a stale one beside it. */
static bool move(struct placement *p, unsigned int shard, unsigned int place, size_t to,
		 uint32_t *places)
{
	const struct placement_server *from = placement_find(p, p->shards[shard][place].server);
	unsigned int spare = free_place(p, shard);

	if (!p->empty[shard] && (!p->moves || spare == PROTO_MAX_PLACES || !is_calm(p, shard)))
		return false;
	if (from && places[from - p->servers])
		places[from - p->servers]--;
	if (p->empty[shard]) {
		set(p, shard, place, to, REPLICA_CURRENT, places);
		return true;
	}
	p->moves--;
	p->shards[shard][place].state = REPLICA_LEAVING;
	p->changed[shard][place] = true;
	set(p, shard, spare, to, REPLICA_STALE, places);
	return true;
}

/* What the servers that leave have left: fill() has looked for another holder already where there
 * are too few. */
static unsigned int clear_out(struct placement *p)
{
	unsigned int shard, place, n = 0;

	for (shard = 0; shard < NR_SHARDS; shard++) {
		if (placement_holders(p, shard) < p->replicas)
			continue;
		for (place = 0; place < PROTO_MAX_PLACES; place++) {
			struct placement_row *row = &p->shards[shard][place];
			const struct placement_server *s = placement_find(p, row->server);

			if (!s || !s->leaves || row->state == REPLICA_LEAVING)
				continue;
			row->state = row->state == REPLICA_CURRENT ? REPLICA_LEAVING : row->state;
			if (row->state != REPLICA_LEAVING || p->empty[shard])
				*row = (struct placement_row){ 0 };
			p->changed[shard][place] = true;
			n++;
		}
	}
	return n;
}

/* More replicas than wanted: the stale one goes first, then the one on the fullest server. */
static unsigned int thin_out(struct placement *p, uint32_t *places)
{
	unsigned int shard, place, n = 0;

	for (shard = 0; shard < NR_SHARDS; shard++) {
		while (placement_holders(p, shard) > p->replicas) {
			const struct placement_server *s, *worst = NULL;
			struct placement_row *row = NULL;

			for (place = 0; place < PROTO_MAX_PLACES; place++) {
				struct placement_row *at = &p->shards[shard][place];

				if (!holds(p, at))
					continue;
				s = placement_find(p, at->server);
				if (row && (at->state != row->state ?
						    at->state != REPLICA_STALE :
						    !below(places[worst - p->servers], worst,
							   places[s - p->servers], s)))
					continue;
				row = at;
				worst = s;
			}
			places[worst - p->servers]--;
			p->changed[shard][row - p->shards[shard]] = true;
			if (row->state == REPLICA_STALE || p->empty[shard])
				*row = (struct placement_row){ 0 };
			else
				row->state = REPLICA_LEAVING;
			n++;
		}
	}
	return n;
}

/*
 * A move pays while the receiver, with the place, is still emptier than the giver with it, and by more than
 * small changes of capacity are: they come each minute, from other files on the same disks, and places
 * would go to and fro with them.
 */
static bool pays(uint64_t places_from, const struct placement_server *from, uint64_t places_to,
		 const struct placement_server *to)
{
	return (double)(places_to + 1) * (double)(from->capacity + 1) * (1 + 1.0 / SLACK) <
	       (double)places_from * (double)(to->capacity + 1);
}

static unsigned int even_out(struct placement *p, uint32_t *places)
{
	const struct placement_server *from;
	unsigned int shard, place, n = 0;
	size_t to;

	for (shard = 0; shard < NR_SHARDS; shard++) {
		if (!p->empty[shard] && (!p->moves || !is_calm(p, shard)))
			continue;
		for (place = 0; place < PROTO_MAX_PLACES; place++) {
			from = placement_find(p, p->shards[shard][place].server);
			if (!from || !holds(p, &p->shards[shard][place]))
				continue;
			to = choose(p, shard, place, places);
			if (to == p->nr_servers || &p->servers[to] == from ||
			    !pays(places[from - p->servers], from, places[to], &p->servers[to]))
				continue;
			n += move(p, shard, place, to, places);
		}
	}
	return n;
}

unsigned int placement_fill(struct placement *p)
{
	uint32_t places[META_MAX_SERVERS] = { 0 };
	unsigned int shard, place, pass, moved, n;

	for (shard = 0; shard < NR_SHARDS; shard++)
		for (place = 0; place < PROTO_MAX_PLACES; place++)
			if (holds(p, &p->shards[shard][place]))
				places[placement_find(p, p->shards[shard][place].server) - p->servers]++;
	n = fill(p, places) + clear_out(p) + thin_out(p, places);
	/* One pass looks at each place once; what it has moved may let another follow. */
	for (pass = 0; pass < MAX_PASSES; pass++) {
		moved = even_out(p, places);
		if (!moved)
			break;
		n += moved;
	}
	return n;
}
