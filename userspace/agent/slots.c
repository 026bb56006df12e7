// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <sys/mman.h>
#include "agent/slots.h"

#define NO_SLOT UINT32_MAX

struct slot_entry {
	struct fp fp;
	uint64_t seq; /* 0: not known to be CLEAN */
	uint32_t next;
};

struct slots {
	uint64_t nr_slots;
	uint64_t count;
	uint32_t mask;
	uint32_t *heads;
	struct slot_entry *entries;
};

/* Mapped and not allocated, so that a large cache's index costs only the pages it uses. */
static void *map_zeroed(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

struct slots *slots_new(uint64_t nr_slots)
{
	struct slots *s;
	uint64_t buckets = 64;

	if (!nr_slots || nr_slots >= NO_SLOT)
		return NULL;
	while (buckets < nr_slots && buckets < (1ULL << 31))
		buckets *= 2;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->nr_slots = nr_slots;
	s->mask = (uint32_t)(buckets - 1);
	s->heads = map_zeroed(buckets * sizeof(*s->heads));
	s->entries = map_zeroed(nr_slots * sizeof(*s->entries));
	if (!s->heads || !s->entries) {
		slots_free(s);
		return NULL;
	}
	return s;
}

void slots_free(struct slots *s)
{
	if (!s)
		return;
	if (s->heads)
		munmap(s->heads, ((size_t)s->mask + 1) * sizeof(*s->heads));
	if (s->entries)
		munmap(s->entries, s->nr_slots * sizeof(*s->entries));
	free(s);
}

/* Digests are uniform: their last bytes may be zero (short digests), their first are not all. */
static uint32_t *head_of(const struct slots *s, const struct fp *fp)
{
	uint32_t h;

	memcpy(&h, fp->b + 4, sizeof(h));
	return &s->heads[h & s->mask];
}

/* Chains hold slot + 1, so that zeroed memory is an empty table. */
static void unlink_slot(struct slots *s, uint32_t slot)
{
	uint32_t *p = head_of(s, &s->entries[slot].fp);

	while (*p && *p - 1 != slot)
		p = &s->entries[*p - 1].next;
	if (*p)
		*p = s->entries[slot].next;
	s->entries[slot].seq = 0;
	s->count--;
}

void slots_set(struct slots *s, uint64_t slot, uint64_t seq, const struct fp *fp)
{
	struct slot_entry *e;
	uint32_t *head;

	if (slot >= s->nr_slots || !seq || fp_is_zero(fp))
		return;
	e = &s->entries[slot];
	if (e->seq >= seq)
		return;
	if (e->seq)
		unlink_slot(s, (uint32_t)slot);
	e->fp = *fp;
	e->seq = seq;
	head = head_of(s, fp);
	e->next = *head;
	*head = (uint32_t)slot + 1;
	s->count++;
}

void slots_drop(struct slots *s, uint64_t slot, uint64_t seq)
{
	if (slot < s->nr_slots && s->entries[slot].seq && s->entries[slot].seq == seq)
		unlink_slot(s, (uint32_t)slot);
}

bool slots_find(const struct slots *s, const struct fp *fp, uint64_t *slot, uint64_t *seq)
{
	uint32_t n;

	for (n = *head_of(s, fp); n; n = s->entries[n - 1].next) {
		if (!fp_equal(&s->entries[n - 1].fp, fp))
			continue;
		*slot = n - 1;
		*seq = s->entries[n - 1].seq;
		return true;
	}
	return false;
}

void slots_each(const struct slots *s, void (*visit)(void *arg, const struct fp *fp), void *arg)
{
	uint64_t i, left = s->count;

	for (i = 0; i < s->nr_slots && left; i++) {
		if (!s->entries[i].seq)
			continue;
		visit(arg, &s->entries[i].fp);
		left--;
	}
}

uint64_t slots_count(const struct slots *s)
{
	return s->count;
}
