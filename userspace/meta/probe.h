/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The governor's two threads: who answers, and who does not. Nothing here knows a store. */
#ifndef VMDEDUP_META_PROBE_H
#define VMDEDUP_META_PROBE_H

#include <stdbool.h>
#include <stdint.h>
#include "net/net.h"
#include "proto/limits.h"

#define PROBE_MAX_TARGETS 1024

struct probe_target {
	uint32_t id;
	uint8_t disk[16]; /* another disk's server is no answer */
	char endpoint[256];
	uint8_t key[32];
	bool has_key;
};

/* What is known of a target. Times are CLOCK_MONOTONIC. */
struct probe_state {
	uint32_t id;
	uint64_t since_ns;    /* looked after since */
	uint64_t answered_ns; /* last; 0: never */
	uint64_t refused_ns;  /* its host refused a connection twice in a row; 0, or the last time */
	uint64_t accused_ns;  /* somebody complained, last; 0: never */
	/* Signals, the first of each since the last answer; 0: none */
	uint64_t complaint_ns; /* somebody complained */
	uint64_t broken_ns;    /* the heartbeat's connection broke, or was not made in time */
	unsigned int in_a_row; /* heartbeats answered in time */
	unsigned int answers_in_a_row; /* in time or not */
	bool failed;	      /* it says that its disk takes nothing any more */
	uint64_t free;
};

struct prober;
struct prober *prober_new(struct net_ctx *net, struct error *err);
void prober_free(struct prober *p);
/* Readable when there is something that should be looked at soon; prober_states() resets it. */
int prober_fd(struct prober *p);
/* All of these, and no others, from now on; none: nobody is pinged. @map_version goes along. */
void prober_targets(struct prober *p, const struct probe_target *targets, size_t nr,
		    uint64_t map_version);
void prober_accuse(struct prober *p, uint32_t id); /* any thread */
void prober_forgive(struct prober *p, uint32_t id); /* looked after since now */
size_t prober_states(struct prober *p, struct probe_state *out, size_t max);

#endif
