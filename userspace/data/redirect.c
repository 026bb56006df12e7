// SPDX-License-Identifier: GPL-2.0-or-later
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"
#include "data/redirect.h"

#define WAYS	     4
#define PEER_BUCKETS 4096 /* power of two */
#define NONE	     UINT16_MAX
#define MAX_DEBT     120
/* Of a score: an upload that is owed, and another rack. That debts weigh little lets the first hosts that
 * ask be in debt for hundreds of blocks before others take their place. */
#define OWED	     4
#define FAR	     32

/* Numbers are those of peers; NONE: the end. */
struct known {
	struct peer_address address;
	uint16_t next;		/* in its bucket */
	uint16_t newer, older;	/* by when it was seen last */
};

struct record {
	uint16_t peer;
	uint8_t named;	    /* as the first */
	uint8_t generation; /* its low bits: a record that is taken for another's is a bad hint */
	uint8_t depth;	    /* in the tree: hosts that the block goes through before it */
};

/* Oldest record first. */
struct entry {
	struct fp fp;
	uint64_t used_ns;
	uint16_t nr;
	uint8_t copies; /* handed out here */
	struct record ring[REDIRECT_RING];
};

struct redirect {
	size_t sets;
	struct entry *entries;
	uint16_t buckets[PEER_BUCKETS];
	size_t nr_peers, max_peers;
	struct known *peers;
	uint16_t newest, oldest;
	/* Of peers, apart: all that a ring's records are looked at for. A number that was used again for
	 * another peer has another generation: records of the old one are void. */
	uint8_t *generations;
	uint32_t *racks;
	int8_t *debts; /* how often more it was named than sent on, up to MAX_DEBT either way */
};

struct redirect *redirect_new(size_t blocks, size_t peers)
{
	struct redirect *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->sets = 1;
	while (r->sets * WAYS < blocks)
		r->sets *= 2;
	r->max_peers = MIN(peers, NONE);
	r->newest = r->oldest = NONE;
	memset(r->buckets, 0xff, sizeof(r->buckets));
	r->entries = calloc(r->sets * WAYS, sizeof(*r->entries));
	r->peers = calloc(r->max_peers, sizeof(*r->peers));
	r->generations = calloc(r->max_peers, sizeof(*r->generations));
	r->racks = calloc(r->max_peers, sizeof(*r->racks));
	r->debts = calloc(r->max_peers, sizeof(*r->debts));
	if (!r->entries || !r->peers || !r->generations || !r->racks || !r->debts) {
		redirect_free(r);
		return NULL;
	}
	return r;
}

void redirect_free(struct redirect *r)
{
	if (!r)
		return;
	free(r->entries);
	free(r->peers);
	free(r->generations);
	free(r->racks);
	free(r->debts);
	free(r);
}

/* ---- addresses ---- */

static uint16_t *bucket_of(struct redirect *r, const struct peer_address *a)
{
	uint32_t h = text_hash(a->endpoint);

	return &r->buckets[(h ^ h >> 16) & (PEER_BUCKETS - 1)];
}

static void forget_peer(struct redirect *r, uint16_t n)
{
	uint16_t *p = bucket_of(r, &r->peers[n].address);

	while (*p != n)
		p = &r->peers[*p].next;
	*p = r->peers[n].next;
}

static void unlink_peer(struct redirect *r, uint16_t n)
{
	struct known *k = &r->peers[n];

	*(k->newer == NONE ? &r->newest : &r->peers[k->newer].older) = k->older;
	*(k->older == NONE ? &r->oldest : &r->peers[k->older].newer) = k->newer;
}

static void link_newest(struct redirect *r, uint16_t n)
{
	struct known *k = &r->peers[n];

	k->newer = NONE;
	k->older = r->newest;
	*(r->newest == NONE ? &r->oldest : &r->peers[r->newest].newer) = n;
	r->newest = n;
}

static uint16_t peer_of(struct redirect *r, const struct peer_address *a)
{
	uint16_t *bucket = bucket_of(r, a), n;

	for (n = *bucket; n != NONE && !peer_address_equal(&r->peers[n].address, a);)
		n = r->peers[n].next;
	if (n != NONE) {
		unlink_peer(r, n);
	} else {
		if (r->nr_peers < r->max_peers) {
			n = (uint16_t)r->nr_peers++;
		} else {
			n = r->oldest;
			unlink_peer(r, n);
			forget_peer(r, n);
		}
		r->generations[n]++;
		r->debts[n] = 0;
		r->peers[n].next = *bucket;
		*bucket = n;
	}
	r->peers[n].address = *a;
	r->racks[n] = a->rack;
	link_newest(r, n);
	return n;
}

/* ---- blocks ---- */

static struct entry *entry_of(struct redirect *r, const struct fp *fp, uint64_t now_ns)
{
	struct entry *set, *oldest;
	uint64_t h;
	size_t i;

	memcpy(&h, fp->b + 8, sizeof(h));
	set = oldest = &r->entries[(h & (r->sets - 1)) * WAYS];
	for (i = 0; i < WAYS; i++) {
		if (fp_equal(&set[i].fp, fp) && now_ns - set[i].used_ns < REDIRECT_TTL_NS)
			return &set[i];
		if (set[i].used_ns < oldest->used_ns)
			oldest = &set[i];
	}
	memset(oldest, 0, sizeof(*oldest));
	oldest->fp = *fp;
	return oldest;
}

static void drop_record(struct entry *e, size_t i)
{
	memmove(&e->ring[i], &e->ring[i + 1], (e->nr - i - 1) * sizeof(e->ring[0]));
	e->nr--;
}

/* Drops what is void. Where @peer is; e->nr: it is not. */
static size_t place_of(struct redirect *r, struct entry *e, uint16_t peer)
{
	size_t i, place = SIZE_MAX;

	for (i = 0; i < e->nr;) {
		if (r->generations[e->ring[i].peer] != e->ring[i].generation) {
			drop_record(e, i);
			continue;
		}
		if (e->ring[i].peer == peer)
			place = i;
		i++;
	}
	return MIN(place, e->nr);
}

/* The newest of a rack that has others too, when there is nobody of @rack; else e->nr. */
static size_t one_too_many(const struct redirect *r, const struct entry *e, uint32_t rack)
{
	uint16_t of_rack[256] = { 0 };
	size_t i;

	for (i = 0; i < e->nr; i++) {
		if (r->racks[e->ring[i].peer] == rack)
			return e->nr;
		of_rack[r->racks[e->ring[i].peer] & 0xff]++;
	}
	while (i-- > 0)
		if (of_rack[r->racks[e->ring[i].peer] & 0xff] > 1)
			return i;
	return e->nr;
}

/* One that has been named to as many as it should gives way to the newest; else one whose rack has
 * others, to the first of another rack. While there is none, the newest is not remembered: were those
 * forgotten that are still to be named, the tree would become as deep as there are hosts. */
static void remember(struct redirect *r, struct entry *e, uint16_t peer, uint8_t depth)
{
	size_t i, most = 0;

	if (e->nr == REDIRECT_RING) {
		for (i = 1; i < e->nr; i++)
			if (e->ring[i].named > e->ring[most].named)
				most = i;
		if (e->ring[most].named < REDIRECT_FANOUT)
			most = r->racks[peer] ? one_too_many(r, e, r->racks[peer]) : e->nr;
		if (most == e->nr)
			return;
		drop_record(e, most);
	}
	e->ring[e->nr++] = (struct record){
		.peer = peer, .generation = r->generations[peer], .depth = depth,
	};
}

/*
 * Of the first @nr that have been named to few, whoever is likely to send the block first: near the
 * tree's root, and owing uploads rather than owed some. With the oldest first, a few hosts would upload
 * all blocks four times, and most of them none; so each uploads about as much as it gets, and what is slow
 * uploads little. Those of @rack come before others, as long as they are not owed much more. When all have
 * been named: the one that was to fewest.
 */
static size_t first_name(const struct redirect *r, const struct entry *e, size_t nr, uint32_t rack)
{
	int score, best_score = INT_MAX;
	size_t i, fewest = 0, best = nr;
	bool near;

	for (i = 0; i < nr; i++) {
		const struct record *rec = &e->ring[i];

		if (rec->named < e->ring[fewest].named)
			fewest = i;
		near = rack && r->racks[rec->peer] == rack;
		/* Other racks may have used it up before its own comes. */
		if (rec->named >= (near ? 2 * REDIRECT_FANOUT : REDIRECT_FANOUT))
			continue;
		score = OWED * r->debts[rec->peer] + rec->depth + (near ? 0 : FAR);
		if (score < best_score) {
			best_score = score;
			best = i;
		}
	}
	return best < nr ? best : fewest;
}

/* Adds those of @rack (@near), or the others, that asked just before record @first. */
static size_t name_before(struct redirect *r, const struct entry *e, size_t count, size_t first,
			  uint32_t rack, bool near, const struct peer_address **names, size_t nr)
{
	size_t i;

	for (i = 1; i < count && nr < REDIRECT_NAMES; i++) {
		uint16_t peer = e->ring[(first + count - i) % count].peer;

		if ((rack && r->racks[peer] == rack) == near)
			names[nr++] = &r->peers[peer].address;
	}
	return nr;
}

/* To @who, the first @count of them: there is one. @depth: that of the one that is named first, and one
 * more. */
static size_t name_some(struct redirect *r, struct entry *e, size_t count, uint16_t who, uint8_t *depth,
			const struct peer_address *names[REDIRECT_NAMES])
{
	uint32_t rack = r->racks[who];
	size_t first = first_name(r, e, count, rack), nr = 1;
	struct record *rec = &e->ring[first];

	*depth = (uint8_t)MIN(rec->depth + 1, UINT8_MAX);
	rec->named += rec->named < UINT8_MAX;
	r->debts[rec->peer] += r->debts[rec->peer] < MAX_DEBT;
	r->debts[who] -= r->debts[who] > -MAX_DEBT;
	names[0] = &r->peers[rec->peer].address;
	if (rack)
		nr = name_before(r, e, count, first, rack, true, names, nr);
	return name_before(r, e, count, first, rack, false, names, nr);
}

size_t redirect_names(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		      uint64_t now_ns, const struct peer_address *names[REDIRECT_NAMES])
{
	struct entry *e = entry_of(r, fp, now_ns);
	uint16_t peer = peer_of(r, who);
	size_t before = place_of(r, e, peer);
	uint8_t depth;

	e->used_ns = now_ns;
	return before ? name_some(r, e, before, peer, &depth, names) : 0;
}

void redirect_handed(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		     uint64_t now_ns)
{
	struct entry *e = entry_of(r, fp, now_ns);
	uint16_t peer = peer_of(r, who);

	e->used_ns = now_ns;
	if (place_of(r, e, peer) == e->nr)
		remember(r, e, peer, 0);
}

size_t redirect_ask(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		    bool serve, unsigned int copies, uint64_t now_ns,
		    const struct peer_address *names[REDIRECT_NAMES])
{
	struct entry *e = entry_of(r, fp, now_ns);
	uint16_t peer = peer_of(r, who);
	size_t before = place_of(r, e, peer), nr = 0;
	bool again = before < e->nr;
	uint8_t depth = 0;

	e->used_ns = now_ns;
	/* One that asks again did not hear the answer, or has lost the block: it may be behind those that
	 * asked after it. */
	if (serve || e->copies < copies || !before)
		e->copies += e->copies < UINT8_MAX;
	else
		nr = name_some(r, e, before, peer, &depth, names);
	if (!again)
		remember(r, e, peer, depth);
	return nr;
}

size_t redirected_add(struct redirected *out, const struct peer_address *const *names, size_t nr,
		      uint32_t numbers[REDIRECT_NAMES])
{
	size_t i, k, n = 0;

	for (i = 0; i < nr; i++) {
		for (k = 0; k < out->nr && !peer_address_equal(&out->peers[k], names[i]); k++)
			;
		if (k == REDIRECT_MAX_NAMED)
			continue;
		if (k == out->nr)
			out->peers[out->nr++] = *names[i];
		numbers[n++] = (uint32_t)k;
	}
	return n;
}
