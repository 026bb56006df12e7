// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/core.h"

#include <string.h>

#define CHUNK 65536

struct arena_chunk {
	struct arena_chunk *next;
	size_t used, size;
	_Alignas(16) uint8_t bytes[];
};

void *arena_alloc(struct arena *a, size_t len)
{
	struct arena_chunk *c = a->chunks;
	size_t need = (len + 15) & ~(size_t)15;
	void *p;

	if (need < len)
		return NULL;
	if (!c || c->size - c->used < need) {
		size_t size = need > CHUNK / 4 ? need : CHUNK;

		c = malloc(sizeof(*c) + size);
		if (!c)
			return NULL;
		c->used = 0;
		c->size = size;
		/* A large one goes behind, so that the first one's room is used up. */
		if (a->chunks && size != CHUNK) {
			c->next = a->chunks->next;
			a->chunks->next = c;
		} else {
			c->next = a->chunks;
			a->chunks = c;
		}
	}
	p = c->bytes + c->used;
	c->used += need;
	return memset(p, 0, need);
}

void *arena_memdup(struct arena *a, const void *p, size_t len)
{
	void *copy = arena_alloc(a, len ? len : 1);

	if (copy && len)
		memcpy(copy, p, len);
	return copy;
}

char *arena_strdup(struct arena *a, const char *text)
{
	return arena_memdup(a, text, strlen(text) + 1);
}

void arena_free(struct arena *a)
{
	struct arena_chunk *c;

	while ((c = a->chunks)) {
		a->chunks = c->next;
		free(c);
	}
}
