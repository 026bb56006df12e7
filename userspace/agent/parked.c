// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>
#include "agent/parked.h"
#include "base/cleanup.h"
#include "proto/peer_address.h"

#define BUCKETS 256 /* power of two */
#define MSEC	1000000ULL

struct parked {
	LIST_HEAD(, parked_ask) buckets[BUCKETS];
	struct parked_list all;
	unsigned int nr;
	unsigned int of_who[BUCKETS]; /* by the low bits of a hash: two peers may share a bound */
	uint64_t next_ns;	      /* none is due before */
};

struct parked *parked_new(void)
{
	struct parked *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	TAILQ_INIT(&p->all);
	p->next_ns = UINT64_MAX;
	return p;
}

void parked_free(struct parked *p)
{
	free(p);
}

bool parked_add(struct parked *p, struct parked_ask *ask, const struct fp *fp, const char *who,
		uint64_t now_ns, unsigned int wait_ms)
{
	uint32_t hash = text_hash(who);

	hash = (hash ^ hash >> 16) & (BUCKETS - 1);
	if (p->nr >= PARKED_MAX || p->of_who[hash] >= PARKED_EACH)
		return false;
	ask->fp = *fp;
	ask->who = hash;
	ask->until_ns = now_ns + MIN(wait_ms, PARKED_MAX_MS) * MSEC;
	LIST_INSERT_HEAD(&p->buckets[fp->b[0]], ask, by_fp);
	TAILQ_INSERT_TAIL(&p->all, ask, link);
	p->nr++;
	p->of_who[hash]++;
	p->next_ns = MIN(p->next_ns, ask->until_ns);
	return true;
}

static struct parked_ask *take(struct parked *p, struct parked_ask *ask)
{
	LIST_REMOVE(ask, by_fp);
	TAILQ_REMOVE(&p->all, ask, link);
	p->nr--;
	p->of_who[ask->who]--;
	return ask;
}

struct parked_ask *parked_take(struct parked *p, const struct fp *fp)
{
	struct parked_ask *ask, *first = NULL;

	LIST_FOREACH(ask, &p->buckets[fp->b[0]], by_fp)
		if (fp_equal(&ask->fp, fp))
			first = ask;
	return first ? take(p, first) : NULL;
}

struct parked_ask *parked_expired(struct parked *p, uint64_t now_ns)
{
	struct parked_ask *ask;
	uint64_t next = UINT64_MAX;

	if (now_ns < p->next_ns)
		return NULL;
	TAILQ_FOREACH(ask, &p->all, link) {
		if (ask->until_ns <= now_ns)
			return take(p, ask);
		next = MIN(next, ask->until_ns);
	}
	p->next_ns = next;
	return NULL;
}

uint64_t parked_next_ns(const struct parked *p)
{
	return p->nr ? p->next_ns : UINT64_MAX;
}
