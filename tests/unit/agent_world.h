/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The agent's core in a simulated world: a cache that evicts, servers that are slow, silent or
 * dead, answers that come late and twice, and agents that end in the middle.
 */
#ifndef VMDEDUP_TESTS_AGENT_WORLD_H
#define VMDEDUP_TESTS_AGENT_WORLD_H

#include "agent/core.h"
#include "base/cleanup.h"

#define AGENT_WORLD_SHIFT  12
#define AGENT_WORLD_BLOCK  (1U << AGENT_WORLD_SHIFT)
#define AGENT_WORLD_SLOTS  24
#define AGENT_WORLD_MISSES 64
#define AGENT_WORLD_EVENTS 1024

enum agent_world_event_kind { EV_RESOLVE, EV_GET, EV_PUBLISH, EV_MAP, EV_IMAGE, EV_LEASE };

struct agent_world_event {
	uint64_t at;
	enum agent_world_event_kind kind;
	uint64_t id;
	unsigned int life; /* of the agent that asked */
	int r;
	struct fp fp;
	struct dm_dedup_publish publish;
	struct dm_dedup_map map;
	struct agent_lease lease;
};

struct agent_world_miss {
	uint64_t cookie; /* 0: free */
	uint64_t volume, block;
	bool cancelled; /* a COMMIT made it void: answers get ESTALE */
};

struct agent_world_slot {
	uint64_t seq; /* 0: free */
	struct fp fp;
};

struct agent_world {
	struct agent *agent;
	uint64_t now, seed;
	unsigned int life;
	struct agent_world_event events[AGENT_WORLD_EVENTS];
	size_t nr_events;
	/* the kernel */
	struct agent_world_slot slots[AGENT_WORLD_SLOTS];
	uint64_t next_seq, next_cookie;
	struct agent_world_miss misses[AGENT_WORLD_MISSES];
	unsigned int mapped, zeroed, published, failed_calls;
	/* what must hold */
	unsigned int gets_now, most_gets;
	/* peers that wait for what is on its way here */
	struct fp parked[AGENT_WORLD_MISSES];
	size_t nr_parked, nr_settled;
	/* how bad it is, in per cent */
	unsigned int lose, repeat, slow;
	bool meta_dead, data_dead;
	bool no_slots;
	unsigned int wanted_push, urgent_push, fenced, discarded;
	int reply_error;
	unsigned int replies;
	struct dm_dedup_volume_info reply_info;
	int lease_error, image_error;
	bool lease_was_confirm_only, lease_was_readonly;
	bool hold_confirm;     /* the next confirmation is not answered by agent_world_step() */
	uint64_t held_confirm; /* its id */
};

/* With an agent that is connected. Ends with agent_world_free(). */
struct agent_world *agent_world_new(uint64_t seed);
void agent_world_free(struct agent_world *w);
void agent_world_new_agent(struct agent_world *w); /* after the one before was freed */
void agent_world_connect(struct agent_world *w);   /* the channel, anew: what waits is sent again */

uint64_t agent_world_random(struct agent_world *w);
bool agent_world_chance(struct agent_world *w, unsigned int percent);

/* What a block holds: many share a fingerprint, every seventh is zero. */
void agent_world_fp(uint64_t volume, uint64_t block, struct fp *fp);
/* A FETCH; false: too many wait. */
bool agent_world_miss(struct agent_world *w, uint64_t volume, uint64_t block);
void agent_world_send(struct agent_world *w, const struct agent_world_miss *m, uint16_t flags);
size_t agent_world_misses(const struct agent_world *w); /* that wait */
/* A peer asks for a block. Nobody waits for what is not on its way. */
void agent_world_park(struct agent_world *w, const struct fp *fp);

/* Runs what is next: an answer or the core's timer. False: nothing will ever happen. */
bool agent_world_step(struct agent_world *w);
void agent_world_finish(struct agent_world *w); /* until no miss waits */
void agent_world_run(struct agent_world *w, uint64_t ms);

#endif
