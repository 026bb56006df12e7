/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What swarm.c, swarm_host.c and swarm_net.c share. */
#ifndef VMDEDUP_SIM_SWARM_IMPL_H
#define VMDEDUP_SIM_SWARM_IMPL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include "agent/core.h"
#include "agent/host_filter.h"
#include "agent/links.h"
#include "agent/parked.h"
#include "agent/serving.h"
#include "base/cleanup.h"
#include "engine.h"
#include "swarm.h"

#define MAX_ITEMS	 32

enum { EV_BEGIN, EV_DIE, EV_TIMER, EV_GUEST, EV_RESOLVED, EV_LEASED, EV_TRACED, EV_PUBLISHED, EV_MAPPED,
       EV_HOP, EV_TAKEN };

enum packet_kind { ASK_PEER, PEER_SAYS, ASK_DATA, DATA_SAYS, ASK_FILTER, FILTER_SAYS };

struct item {
	uint64_t id;
	uint32_t block;
	int32_t r;
	uint8_t nr_named;
	uint16_t named[REDIRECT_NAMES];
	struct sent *sent;
};

/* A message on its way. */
struct packet {
	TAILQ_ENTRY(packet) link;
	enum packet_kind kind;
	uint32_t from, to; /* nodes: hosts, then data servers */
	unsigned int peer; /* whom it is about, by the asker's number */
	unsigned int life; /* of that number */
	uint32_t stage;
	bool serve;
	uint64_t bytes;
	uint64_t generation, additions, max;
	struct host_filter_answer filter;
	int filter_r;
	unsigned int wait_ms;
	struct parked_ask parked; /* with the host that is asked */
	unsigned int nr;
	struct item items[MAX_ITEMS];
};
TAILQ_HEAD(packets, packet);

struct node {
	uint64_t out_free, in_free, cpu_free;
	uint32_t rack;
};

/* What a host wants of a data server and has not sent. */
struct wanted {
	struct { uint64_t id; uint32_t block; bool serve; } *asks;
	unsigned int nr, room, under_way;
};

struct publish {
	uint64_t id, volume, block;
	bool is_map;
	uint64_t slot;
};

struct volume_sim {
	uint8_t *mapped, *parked; /* bits */
	unsigned int next, waiting, done;
	uint64_t start_ns; /* when the next read may start */
	bool timer;
};

struct host {
	struct swarm *w;
	uint32_t n;
	struct agent *agent;
	struct links *links;
	struct serving *serving;
	struct parked *parked;
	struct host_filter *filter;
	uint64_t filter_ns;
	struct wanted *wanted; /* of each data server */
	uint64_t wants;	       /* bits: of whom something is */
	struct volume_sim *volumes;
	uint64_t disk_free, next_slot, next_cookie, timer_ns, began_ns, ended_ns;
	unsigned int complete; /* volumes */
	bool dead;
};

struct server {
	struct redirect *redirect;
	uint64_t bytes, messages;
};

struct rack {
	uint64_t up_free, down_free;
};

struct swarm {
	struct sim sim;
	struct swarm_params p;
	struct swarm_result *r;
	struct host *hosts;
	struct server *servers;
	struct node *nodes;
	struct rack *racks;
	struct peer_address *addresses; /* of hosts */
	unsigned int nr_racks, living;
	uint64_t rack_rate;
	uint32_t *order; /* in which a guest reads */
	uint8_t *trace;
	size_t trace_len;
	struct packets spare;
	unsigned int complete;
};

static inline struct packet *packet_of(struct parked_ask *ask)
{
	return (struct packet *)((char *)ask - offsetof(struct packet, parked));
}

/* ---- names ---- */

static inline struct fp fp_of(uint32_t block)
{
	uint64_t x = block + 1;
	struct fp fp;
	size_t i;

	for (i = 0; i < FP_SIZE; i += 8) {
		x += 0x9e3779b97f4a7c15ULL;
		x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
		x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
		x ^= x >> 31;
		memcpy(fp.b + i, &x, 8);
	}
	memcpy(fp.b + FP_SIZE - 4, &block, 4);
	return fp;
}

static inline uint32_t block_of(const struct fp *fp)
{
	uint32_t block;

	memcpy(&block, fp->b + FP_SIZE - 4, 4);
	return block;
}

/* The number in tcp://N:PORT. */
static inline uint32_t host_of(const struct peer_address *a)
{
	const char *p = a->endpoint + 6;
	uint32_t n = 0;

	for (; *p != ':'; p++)
		n = n * 10 + (uint32_t)(*p - '0');
	return n;
}

static inline bool bit(const uint8_t *bits, uint64_t i)
{
	return bits[i / 8] >> i % 8 & 1;
}

static inline void set_bit(uint8_t *bits, uint64_t i)
{
	bits[i / 8] |= (uint8_t)(1 << i % 8);
}

static inline bool is_there(const struct host *h)
{
	return h->agent && !h->dead;
}

/* swarm_net.c */
struct packet *packet_new(struct swarm *w, enum packet_kind kind, uint32_t from, uint32_t to);
void packet_free(struct swarm *w, struct packet *m);
/* It is where it is now: on to the next stage. */
void packet_hop(struct swarm *w, struct packet *m);
void packet_taken(struct swarm *w, struct packet *m); /* somebody reads it */
void packet_settled(struct host *h, const struct fp *fp); /* for those that wait there */
void packet_expire(struct host *h, uint64_t now);

/* swarm_host.c */
void host_event(struct host *h, const struct sim_event *e);
void host_turn(struct host *h);
void host_end(struct host *h);

#endif
