// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "net/peer.h"

void peer_table_init(struct peer_table *t)
{
	memset(t, 0, sizeof(*t));
	TAILQ_INIT(&t->lru);
}

static struct peer **bucket_of(struct peer_table *t, unsigned int socket, const uint8_t *id,
			       size_t len)
{
	uint32_t h = 2166136261U ^ socket;

	/* FNV-1a: libzmq makes the ids, from a counter. */
	for (size_t i = 0; i < len; i++)
		h = (h ^ id[i]) * 16777619U;
	return &t->buckets[(h ^ h >> 16) % ARRAY_SIZE(t->buckets)];
}

static void remove_peer(struct peer_table *t, struct peer *p)
{
	struct peer **link = bucket_of(t, p->socket, p->id, p->id_len);

	while (*link != p)
		link = &(*link)->next_in_bucket;
	*link = p->next_in_bucket;
	TAILQ_REMOVE(&t->lru, p, lru);
	t->nr--;
	peer_put(p);
}

void peer_table_free(struct peer_table *t)
{
	struct peer *p;

	while ((p = TAILQ_FIRST(&t->lru)))
		remove_peer(t, p);
}

struct peer *peer_find(struct peer_table *t, unsigned int socket, const void *id, size_t len)
{
	struct peer *p = *bucket_of(t, socket, id, len);

	while (p && (p->socket != socket || p->id_len != len || memcmp(p->id, id, len)))
		p = p->next_in_bucket;
	if (p && p != TAILQ_FIRST(&t->lru)) {
		TAILQ_REMOVE(&t->lru, p, lru);
		TAILQ_INSERT_HEAD(&t->lru, p, lru);
	}
	return p;
}

struct peer *peer_find_or_add(struct peer_table *t, unsigned int socket, const void *id, size_t len)
{
	struct peer *p = peer_find(t, socket, id, len);
	struct peer **bucket;

	if (p)
		return p;
	p = calloc(1, sizeof(*p) + len);
	if (!p)
		return NULL;
	atomic_init(&p->refs, 1);
	atomic_init(&p->queued, 0);
	atomic_init(&p->parts, 0);
	p->socket = socket;
	p->id_len = len;
	memcpy(p->id, id, len);
	strcpy(p->text, "a client without a name");
	if (t->nr == NET_MAX_PEERS)
		remove_peer(t, TAILQ_LAST(&t->lru, peer_list));
	bucket = bucket_of(t, socket, id, len);
	p->next_in_bucket = *bucket;
	*bucket = p;
	TAILQ_INSERT_HEAD(&t->lru, p, lru);
	t->nr++;
	return p;
}

struct peer *peer_get(struct peer *p)
{
	atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
	return p;
}

void peer_put(struct peer *p)
{
	/* Release, then acquire: the one that frees sees what the others did. */
	if (!p || atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1)
		return;
	peer_sum_put(p->sum);
	free(p);
}

struct peer_sum *peer_sum_new(void)
{
	struct peer_sum *sum = calloc(1, sizeof(*sum));

	if (!sum)
		return NULL;
	atomic_init(&sum->refs, 1);
	atomic_init(&sum->queued, 0);
	return sum;
}

struct peer_sum *peer_sum_get(struct peer_sum *sum)
{
	atomic_fetch_add_explicit(&sum->refs, 1, memory_order_relaxed);
	return sum;
}

void peer_sum_put(struct peer_sum *sum)
{
	/* As in peer_put(). */
	if (sum && atomic_fetch_sub_explicit(&sum->refs, 1, memory_order_acq_rel) == 1)
		free(sum);
}
