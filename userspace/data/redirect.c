// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>
#include "data/redirect.h"

#define WAYS	     4
#define PEER_BUCKETS 1024 /* power of two */

/* An address that was used again for another peer has another generation: records of the old one
 * are void. */
struct known {
	struct peer_address address;
	uint32_t generation; /* 0: never used */
	uint64_t used;
	uint16_t next; /* in its bucket; index + 1, 0: the end */
};

struct record {
	uint16_t peer;
	uint8_t named;	    /* as the first */
	uint8_t generation; /* its low bits: a record that is taken for another's is a bad hint */
};

/* Oldest record first. */
struct entry {
	struct fp fp;
	uint64_t used_ns;
	uint8_t nr;
	uint8_t copies; /* handed out here */
	struct record ring[REDIRECT_RING];
};

struct redirect {
	size_t sets;
	struct entry *entries;
	uint64_t uses;
	uint16_t buckets[PEER_BUCKETS];
	struct known peers[REDIRECT_PEERS];
	size_t nr_peers;
};

struct redirect *redirect_new(size_t blocks)
{
	struct redirect *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->sets = 1;
	while (r->sets * WAYS < blocks)
		r->sets *= 2;
	r->entries = calloc(r->sets * WAYS, sizeof(*r->entries));
	if (!r->entries) {
		free(r);
		return NULL;
	}
	return r;
}

void redirect_free(struct redirect *r)
{
	if (!r)
		return;
	free(r->entries);
	free(r);
}

/* ---- addresses ---- */

static uint16_t *bucket_of(struct redirect *r, const struct peer_address *a)
{
	uint32_t h = 2166136261U;
	const char *p;

	for (p = a->endpoint; *p; p++)
		h = (h ^ (uint8_t)*p) * 16777619U;
	return &r->buckets[(h ^ h >> 16) & (PEER_BUCKETS - 1)];
}

static void forget_peer(struct redirect *r, size_t n)
{
	uint16_t *p = bucket_of(r, &r->peers[n].address);

	while (*p != n + 1)
		p = &r->peers[*p - 1].next;
	*p = r->peers[n].next;
}

static size_t peer_of(struct redirect *r, const struct peer_address *a)
{
	uint16_t *bucket = bucket_of(r, a);
	size_t n, i;

	for (n = *bucket; n; n = r->peers[n - 1].next)
		if (peer_address_equal(&r->peers[n - 1].address, a)) {
			r->peers[n - 1].used = ++r->uses;
			return n - 1;
		}
	n = r->nr_peers;
	if (n < REDIRECT_PEERS) {
		r->nr_peers++;
	} else {
		for (n = 0, i = 1; i < REDIRECT_PEERS; i++)
			if (r->peers[i].used < r->peers[n].used)
				n = i;
		forget_peer(r, n);
	}
	r->peers[n].address = *a;
	r->peers[n].generation++;
	r->peers[n].used = ++r->uses;
	r->peers[n].next = *bucket;
	*bucket = (uint16_t)(n + 1);
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

/* Drops what is void; true when @peer is one of them. */
static bool knows(struct redirect *r, struct entry *e, size_t peer)
{
	bool found = false;
	size_t i;

	for (i = 0; i < e->nr;) {
		if ((uint8_t)r->peers[e->ring[i].peer].generation != e->ring[i].generation) {
			drop_record(e, i);
			continue;
		}
		found |= e->ring[i++].peer == peer;
	}
	return found;
}

/* One that has been named to as many as it should gives way to the newest. While there is none, the
 * newest is not remembered: were those forgotten that are still to be named, the tree would become as
 * deep as there are hosts. */
static void remember(struct redirect *r, struct entry *e, size_t peer)
{
	size_t i, most = 0;

	if (e->nr == REDIRECT_RING) {
		for (i = 1; i < e->nr; i++)
			if (e->ring[i].named > e->ring[most].named)
				most = i;
		if (e->ring[most].named < REDIRECT_FANOUT)
			return;
		drop_record(e, most);
	}
	e->ring[e->nr++] = (struct record){
		.peer = (uint16_t)peer, .generation = (uint8_t)r->peers[peer].generation,
	};
}

/* First the oldest that has been named to few; when all have, the one that was to fewest. */
static size_t first_name(const struct entry *e)
{
	size_t i, best = 0;

	for (i = 0; i < e->nr; i++) {
		if (e->ring[i].named < REDIRECT_FANOUT)
			return i;
		if (e->ring[i].named < e->ring[best].named)
			best = i;
	}
	return best;
}

/* All but @not; there is somebody. */
static size_t name_some(struct redirect *r, struct entry *e, size_t not,
			const struct peer_address *names[REDIRECT_NAMES])
{
	size_t first = first_name(e), nr = 0, i;

	if (e->ring[first].peer != not) {
		e->ring[first].named += e->ring[first].named < UINT8_MAX;
		names[nr++] = &r->peers[e->ring[first].peer].address;
	}
	/* Then those that asked just before it. */
	for (i = 1; i < e->nr && nr < REDIRECT_NAMES; i++) {
		size_t at = (first + e->nr - i) % e->nr;

		if (e->ring[at].peer != not)
			names[nr++] = &r->peers[e->ring[at].peer].address;
	}
	return nr;
}

size_t redirect_names(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		      uint64_t now_ns, const struct peer_address *names[REDIRECT_NAMES])
{
	struct entry *e = entry_of(r, fp, now_ns);
	size_t peer = peer_of(r, who);

	knows(r, e, peer);
	e->used_ns = now_ns;
	return e->nr ? name_some(r, e, peer, names) : 0;
}

void redirect_handed(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		     uint64_t now_ns)
{
	struct entry *e = entry_of(r, fp, now_ns);
	size_t peer = peer_of(r, who);

	e->used_ns = now_ns;
	if (!knows(r, e, peer))
		remember(r, e, peer);
}

size_t redirect_ask(struct redirect *r, const struct fp *fp, const struct peer_address *who,
		    bool serve, unsigned int copies, uint64_t now_ns,
		    const struct peer_address *names[REDIRECT_NAMES])
{
	struct entry *e = entry_of(r, fp, now_ns);
	size_t peer = peer_of(r, who), nr;
	bool again = knows(r, e, peer);

	e->used_ns = now_ns;
	/* One that asks again has lost the block, or never got it: it may be behind those that
	 * would be named. */
	if (serve || again || e->copies < copies || !e->nr) {
		if (e->copies < UINT8_MAX)
			e->copies++;
		if (!again)
			remember(r, e, peer);
		return 0;
	}
	nr = name_some(r, e, peer, names);
	remember(r, e, peer);
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
