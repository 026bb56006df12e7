/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Simulated time: events in order, and pipes that take one thing after the other. */
#ifndef VMDEDUP_SIM_ENGINE_H
#define VMDEDUP_SIM_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_US 1000ULL
#define SIM_MS 1000000ULL
#define SIM_S  1000000000ULL

struct sim_event {
	uint64_t at;
	uint64_t order; /* of those at the same time */
	uint32_t kind, who;
	uint64_t a;
	void *p;
};

struct sim {
	uint64_t now, seed, next_order, nr_done;
	struct sim_event *heap;
	size_t nr, room;
};

void sim_free(struct sim *s);
uint64_t sim_random(struct sim *s);
/* Ends the process when there is no memory. */
void sim_at(struct sim *s, uint64_t at, uint32_t kind, uint32_t who, uint64_t a, void *p);
/* The next event, whose time it is then. False: there is none. */
bool sim_next(struct sim *s, struct sim_event *e);

/* What takes @bytes at @rate a second after all that it was given before: when it is done. */
static inline uint64_t sim_pipe(uint64_t *free_ns, uint64_t now, uint64_t bytes, uint64_t rate)
{
	uint64_t from = *free_ns > now ? *free_ns : now;

	*free_ns = from + bytes * SIM_S / rate;
	return *free_ns;
}
static inline uint64_t sim_busy(uint64_t *free_ns, uint64_t now, uint64_t ns)
{
	*free_ns = (*free_ns > now ? *free_ns : now) + ns;
	return *free_ns;
}

#endif
