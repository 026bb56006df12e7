/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest in a world: the volume `vol`, a clone of `base`, on one host at a time, and what it has
 * written. Whatever fails, or is not what was written, ends the process.
 */
#ifndef VMDEDUP_TESTS_GUEST_H
#define VMDEDUP_TESTS_GUEST_H

#include "world.h"

#define GUEST_BLOCKS  300 /* more than one leaf */
#define GUEST_SECTORS (GUEST_BLOCKS * 8)

struct guest {
	struct world *w;
	int on; /* the host that has it */
	uint64_t volume, rng;
	uint32_t ids[GUEST_SECTORS]; /* see content_fill(); to be changed before guest_write_back() only */
	uint8_t *buf, *seen;
};

/* Makes the world, the images and the volume, on host 0. @contents: how many blocks differ. */
void guest_new(struct guest *g, unsigned int contents, const char *agent_conf,
	       void (*step)(void *arg, int host, const char *name), void *arg);
/* Detaches, `cluster check`, removes all: nothing may be left. Ends the world. */
void guest_end(struct guest *g);

struct host *guest_host(struct guest *g);  /* that has it */
struct host *guest_other(struct guest *g); /* the other */

uint64_t guest_random(struct guest *g, uint64_t n); /* below @n */
void guest_write(struct guest *g, uint64_t first, uint64_t count, uint32_t id);
void guest_write_back(struct guest *g, uint64_t first, uint64_t count); /* as ->ids are */
/* @volume on @h reads as the guest's. @when: for people. */
void guest_compare(struct guest *g, struct host *h, uint64_t volume, const char *when);
void guest_verify(struct guest *g, const char *when); /* its own */
void guest_push(struct guest *g);
void guest_close(struct guest *g); /* the device goes; the volume stays */

/* A closed volume to the other host. @warm_ms: only warms that one, for so long at most; -EAGAIN:
 * it is not warm. *said (may be NULL): the numbers in it. */
int guest_hand_over(struct guest *g, const char *name, uint64_t warm_ms,
		    Vmdedup__VolumeHandoverReply *said, struct error *err);
/* It has gone to the other host, and nothing of it is left here: opened there, and verified. */
void guest_follow(struct guest *g, const char *name, const char *when);

#endif
