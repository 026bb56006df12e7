/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The filter of this host's own CLEAN blocks, as peers are given it: a full one with a generation,
 * and the additions since. Evictions wait for the next generation, which is built from the index of
 * slots when the filter is full, or old. What is given out is paid for from a budget. Thread-safe.
 */
#ifndef VMDEDUP_AGENT_HOST_FILTER_H
#define VMDEDUP_AGENT_HOST_FILTER_H

#include "agent/filter.h"

#define HOST_FILTER_MAX_ADDED 65536 /* of a generation; and of one answer: 1 MiB */

struct host_filter;
/* @bytes_an_hour: given out at most, headers included; 0: nothing is. */
struct host_filter *host_filter_new(uint64_t bytes_an_hour, uint64_t now_ns);
void host_filter_free(struct host_filter *h);

/* A new generation for @blocks and some more: nothing is in it yet. -ENOMEM: the old one stays. */
int host_filter_begin(struct host_filter *h, uint64_t blocks);
/* In the full filter of the generation: what is there when it begins. */
void host_filter_put(struct host_filter *h, const struct fp *fp);
/* Beginning is over: what is new from now on is an addition. */
void host_filter_end(struct host_filter *h);
/* False: there is no room for more additions, begin a new generation. */
bool host_filter_add(struct host_filter *h, const struct fp *fp);

struct host_filter_answer {
	uint64_t generation, additions, blocks;
	unsigned int shift;
	bool full;
	void *packed; /* free() */
	size_t packed_len;
};
/* For a peer that has so much; 0, 0: nothing. -EAGAIN: no generation yet. -EFBIG: it takes more than
 * @max bytes (0: any number is fine): @out->packed_len says how many. -EDQUOT: the budget of this hour
 * does not suffice. -ENOMEM. */
int host_filter_answer(struct host_filter *h, uint64_t now_ns, uint64_t generation,
		       uint64_t additions, uint64_t max, struct host_filter_answer *out);

#endif
