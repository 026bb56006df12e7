/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Many hosts that copy or boot one image at once, in simulated time. What decides is the code that runs
 * in the daemons: of each host the agent's core (core.c, fetch.c, prefetch.c), links.c with sources.c,
 * filters and peer_set.c, and serving.c; of each data server data/redirect.c. What is simulated: the
 * network, disks, the time that messages and digests take, guests, and a meta server that answers.
 *
 * Event-driven, one thread, and the same for the same parameters: all randomness comes from @seed.
 */
#ifndef VMDEDUP_SIM_SWARM_H
#define VMDEDUP_SIM_SWARM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct swarm_params {
	uint64_t seed;
	unsigned int hosts, volumes;	 /* @volumes: clones of the image on each host */
	unsigned int data_servers;	 /* at most 64; one to a rack, as far as there are racks */
	unsigned int rack_hosts;
	bool state_racks;		 /* hosts say in which one they are */
	double oversubscription;	 /* of a rack's uplink, by its hosts' links */
	uint64_t host_rate, data_rate;	 /* bytes a second, in and out */
	uint64_t hash_rate, disk_rate;	 /* bytes a second, of a host */
	uint64_t message_ns, block_ns;	 /* of a processor, for a message and each block in it */
	uint64_t rack_ns, far_ns;	 /* latency in a rack, and between racks */
	unsigned int block_shift;
	unsigned int blocks;		 /* of the image */
	unsigned int touched;		 /* of them that a guest reads, in runs of eight */
	unsigned int depth;		 /* reads of a guest at a time */
	uint64_t think_ns;		 /* between the starts of two reads */
	uint64_t spread_ns;		 /* hosts begin within so long */
	uint64_t early_ns;		 /* host 0 begins so long before the others */
	unsigned int slow_hosts;	 /* the first so many have links of a tenth */
	bool trace;			 /* an earlier boot has left one */
	bool peers;
	bool filters;
	unsigned int kill_percent;	 /* of the hosts die in the midst of it */
};

struct swarm_result {
	unsigned int complete, dead;
	uint64_t *times_ns;	/* of the hosts that live, sorted; free() */
	uint64_t others_ns;	/* the worst of those that are not slow */
	uint64_t unique_bytes;	/* of what a host reads */
	uint64_t data_bytes, data_messages, data_redirects;
	uint64_t peer_bytes, far_bytes; /* @far_bytes: between racks */
	uint64_t filter_bytes, hedges, on_way, busy, events, end_ns;
	uint64_t worst_server_bytes, worst_server_messages;
};

void swarm_defaults(struct swarm_params *p);
/* -ENOMEM; -ETIMEDOUT: after an hour of its time some host was not complete. */
int swarm_run(const struct swarm_params *p, struct swarm_result *r);

#endif
