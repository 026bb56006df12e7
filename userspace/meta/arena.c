// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/core.h"

#include <string.h>

#define CHUNK 65536

struct arena_chunk {
	struct arena_chunk *next;
	uint64_t number; /* from 1 on, in the order in which they were made */
	size_t used, size;
	_Alignas(16) uint8_t bytes[];
};

void *arena_room(struct arena *a, size_t len)
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
		c->number = ++a->nr_made;
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
	return p;
}

void *arena_alloc(struct arena *a, size_t len)
{
	void *p = arena_room(a, len);

	return p ? memset(p, 0, len) : NULL;
}

void *arena_memdup(struct arena *a, const void *p, size_t len)
{
	uint8_t *copy = len < SIZE_MAX ? arena_room(a, len + 1) : NULL;

	if (copy && len)
		memcpy(copy, p, len);
	if (copy)
		copy[len] = 0;
	return copy;
}

char *arena_strdup(struct arena *a, const char *text)
{
	return arena_memdup(a, text, strlen(text) + 1);
}

static void *protobuf_alloc(void *arena, size_t size)
{
	return arena_alloc(arena, size);
}

static void protobuf_free(void *arena, void *p)
{
}

ProtobufCAllocator arena_protobuf(struct arena *a)
{
	return (ProtobufCAllocator){ .alloc = protobuf_alloc, .free = protobuf_free,
				     .allocator_data = a };
}

struct arena_mark arena_mark(const struct arena *a)
{
	return (struct arena_mark){ .nr_made = a->nr_made,
				    .used = a->chunks ? a->chunks->used : 0 };
}

void arena_release(struct arena *a, struct arena_mark mark)
{
	struct arena_chunk **p = &a->chunks, *c;

	while ((c = *p)) {
		if (c->number <= mark.nr_made) {
			p = &c->next;
			continue;
		}
		*p = c->next;
		free(c);
	}
	/* All that is not large comes from the first one: it is the first that it was. */
	if (a->chunks)
		a->chunks->used = mark.used;
}

void arena_free(struct arena *a)
{
	struct arena_chunk *c;

	while ((c = a->chunks)) {
		a->chunks = c->next;
		free(c);
	}
}
