/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * channel_fuzz: hostile calls on a cache's channel. Its parts:
 *
 *	guard.c		a guest that knows what it must read
 *	know.c		numbers that mean something to the kernel, learned from it
 *	call.c		one random call
 *	main.c		agents that make them until they are killed
 *
 * All that is random comes from a seed, but for what the kernel and the scheduler add.
 */
#ifndef CHANNEL_FUZZ_H
#define CHANNEL_FUZZ_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/dm-dedup.h>

#define NR_KNOWN	256

/* Numbers of one meaning; the newest replace the oldest. */
struct numbers {
	uint64_t v[NR_KNOWN];
	unsigned int n;
};

/*
 * struct know - what was learned, by all threads of one agent
 * @safe: the volume that is answered rightly and never named by a random call
 * @epoch: of our HELLO; may be replaced by another thread's
 * @last_call: the agent dies when counts.total gets there
 */
struct know {
	int fd;
	struct counts *counts;
	uint32_t block_shift;
	uint64_t nr_slots;
	uint64_t safe;
	uint64_t last_call;
	int safe_fd;
	_Atomic uint64_t epoch;
	pthread_mutex_t lock;
	struct numbers volumes, cookies, slots, seqs, cuts, epochs, blocks;
	uint8_t roots[NR_KNOWN][DM_DEDUP_FP_SIZE];
	unsigned int nr_roots;
	struct dm_dedup_volume_info infos[16];
	unsigned int nr_infos;
};

/* random numbers; one state a thread */
struct rnd {
	uint64_t s;
};

static inline uint64_t rnd64(struct rnd *r)
{
	r->s ^= r->s << 13;
	r->s ^= r->s >> 7;
	r->s ^= r->s << 17;
	return r->s * 0x2545f4914f6cdd1dULL;
}

static inline uint64_t rnd_below(struct rnd *r, uint64_t n)
{
	return (rnd64(r) >> 11) % n;
}

static inline bool rnd_one_in(struct rnd *r, unsigned int n)
{
	return !rnd_below(r, n);
}

static inline struct rnd rnd_seed(uint64_t seed)
{
	return (struct rnd){ seed * 0x9e3779b97f4a7c15ULL | 1 };
}

/* know.c */
int know_hello(struct know *k);
void know_refresh(struct know *k);
void know_upcall(struct know *k, const struct dm_dedup_upcall *up);
/* @volume has this cut closed now. */
void know_cut(struct know *k, uint64_t volume, uint64_t cut);
uint64_t know_pick(struct know *k, const struct numbers *from, struct rnd *r);
void know_pick_root(struct know *k, struct rnd *r, uint8_t root[DM_DEDUP_FP_SIZE]);
bool know_pick_info(struct know *k, struct rnd *r, struct dm_dedup_volume_info *info);

/*
 * By number of the command: how many calls did something, and how many were refused. And of all agents:
 * how many times one made up its mind to call.
 */
struct counts {
	_Atomic uint64_t done[0x20], refused[0x20], total;
};

/* call.c */
struct arena;
struct arena *arena_new(void);
void random_call(struct know *k, struct arena *a, struct rnd *r);
void arena_scribble(struct arena *a, struct rnd *r);

/* guard.c */
int guard(int argc, char **argv);

#endif
