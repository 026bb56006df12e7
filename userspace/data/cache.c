// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NR_BUCKETS 4096

struct entry {
	struct entry *hash_next;
	struct entry *prev, *next; /* by use; head.next was used last */
	uint32_t domain;
	struct fp fp;
	struct block_buf *buf;
};

struct block_cache {
	pthread_mutex_t lock; /* guards everything below */
	struct entry *buckets[NR_BUCKETS];
	struct entry head;
	size_t bytes, max_bytes;
};

struct block_buf *block_buf_new(size_t room)
{
	struct block_buf *buf = malloc(sizeof(*buf) + room);

	if (!buf)
		return NULL;
	memset(buf, 0, sizeof(*buf));
	atomic_init(&buf->refs, 1);
	return buf;
}

void block_buf_get(struct block_buf *buf)
{
	atomic_fetch_add_explicit(&buf->refs, 1, memory_order_relaxed);
}

void block_buf_put(struct block_buf *buf)
{
	/* Release pairs with acquire of the last put: its free() sees all uses. */
	if (atomic_fetch_sub_explicit(&buf->refs, 1, memory_order_acq_rel) == 1)
		free(buf);
}

struct block_cache *block_cache_new(size_t max_bytes)
{
	struct block_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	pthread_mutex_init(&c->lock, NULL);
	c->head.prev = c->head.next = &c->head;
	c->max_bytes = max_bytes;
	return c;
}

/* A digest is its own hash: its low bits, as the high ones are the shard. */
static struct entry **bucket(struct block_cache *c, uint32_t domain, const struct fp *fp)
{
	uint32_t h;

	memcpy(&h, fp->b + 8, sizeof(h));
	return &c->buckets[(h ^ domain) % NR_BUCKETS];
}

static struct entry **find(struct block_cache *c, uint32_t domain, const struct fp *fp)
{
	struct entry **e = bucket(c, domain, fp);

	while (*e && ((*e)->domain != domain || !fp_equal(&(*e)->fp, fp)))
		e = &(*e)->hash_next;
	return e;
}

static size_t cost(const struct block_buf *buf)
{
	return sizeof(struct entry) + sizeof(*buf) + buf->offset + buf->len;
}

static void unlink_use(struct entry *e)
{
	e->prev->next = e->next;
	e->next->prev = e->prev;
}

static void push_use(struct block_cache *c, struct entry *e)
{
	e->next = c->head.next;
	e->prev = &c->head;
	e->next->prev = e;
	c->head.next = e;
}

static void drop(struct block_cache *c, struct entry **at)
{
	struct entry *e = *at;

	*at = e->hash_next;
	unlink_use(e);
	c->bytes -= cost(e->buf);
	block_buf_put(e->buf);
	free(e);
}

void block_cache_free(struct block_cache *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < NR_BUCKETS; i++)
		while (c->buckets[i])
			drop(c, &c->buckets[i]);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

struct block_buf *block_cache_get(struct block_cache *c, uint32_t domain, const struct fp *fp)
{
	struct block_buf *buf = NULL;
	struct entry *e;

	pthread_mutex_lock(&c->lock);
	e = *find(c, domain, fp);
	if (e) {
		unlink_use(e);
		push_use(c, e);
		buf = e->buf;
		block_buf_get(buf);
	}
	pthread_mutex_unlock(&c->lock);
	return buf;
}

void block_cache_put(struct block_cache *c, uint32_t domain, const struct fp *fp,
		     struct block_buf *buf)
{
	struct entry *e;

	if (cost(buf) > c->max_bytes / 4)
		return;
	e = calloc(1, sizeof(*e));
	if (!e)
		return; /* a cache may forget */
	e->domain = domain;
	e->fp = *fp;
	e->buf = buf;
	pthread_mutex_lock(&c->lock);
	if (*find(c, domain, fp)) {
		free(e);
	} else {
		struct entry **b = bucket(c, domain, fp);

		block_buf_get(buf);
		e->hash_next = *b;
		*b = e;
		push_use(c, e);
		c->bytes += cost(buf);
		while (c->bytes > c->max_bytes)
			drop(c, find(c, c->head.prev->domain, &c->head.prev->fp));
	}
	pthread_mutex_unlock(&c->lock);
}

void block_cache_drop(struct block_cache *c, uint32_t domain, const struct fp *fp)
{
	struct entry **e;

	pthread_mutex_lock(&c->lock);
	e = find(c, domain, fp);
	if (*e)
		drop(c, e);
	pthread_mutex_unlock(&c->lock);
}

size_t block_cache_bytes(struct block_cache *c)
{
	size_t bytes;

	pthread_mutex_lock(&c->lock);
	bytes = c->bytes;
	pthread_mutex_unlock(&c->lock);
	return bytes;
}
