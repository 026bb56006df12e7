/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which volume is pushed next, and how fast: what was wished for, bounds on the age and the amount
 * of unpushed data, moments without guest I/O, failures and when they are tried again, and a bound
 * on the bytes a second. Pure: it is told the time (CLOCK_MONOTONIC, so that a jump of the wall
 * clock is none here) and what the cache says of its volumes. Not thread-safe: the caller locks.
 */
#ifndef VMDEDUP_AGENT_PUSH_POLICY_H
#define VMDEDUP_AGENT_PUSH_POLICY_H

#include <linux/dm-dedup.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POLICY_VOLUMES	    256	  /* with a wish, a failure, or I/O; others only by the bounds */
#define POLICY_IDLE_MS	    4000  /* without guest I/O for so long, a volume is idle */
#define POLICY_RETRY_MS	    1000  /* after a failure, doubling */
#define POLICY_RETRY_MAX_MS 60000
#define POLICY_BURST_MS	    1000  /* the rate may be exceeded by what this makes */

struct push_bounds {
	uint64_t age_ms; /* 0: a volume is pushed only when somebody asks */
	uint64_t bytes;
	uint64_t rate; /* bytes a second; 0: none */
};

struct policy_volume {
	uint64_t volume; /* 0: free */
	bool wanted;
	bool taken; /* by the look that is under way */
	unsigned int failures;
	uint64_t not_before_ns;
	uint64_t ios;	  /* the volume's count, as last seen */
	uint64_t busy_ns; /* when it was last seen to change */
	char name[DM_DEDUP_NAME_SIZE], trouble[256];
};

struct push_policy {
	struct push_bounds bounds;
	uint64_t paid_until_ns; /* what was sent is within the rate from then on */
	struct policy_volume volumes[POLICY_VOLUMES];
};

bool policy_can_be_pushed(const struct dm_dedup_volume_info *v);
bool policy_is_unpushed(const struct dm_dedup_volume_info *v);

/* @volume is to be pushed whatever its bounds say (its device has gone). */
void policy_want(struct push_policy *p, uint64_t volume);
/* A wish, or a failure whose time has come. */
bool policy_has_wish(const struct push_policy *p, uint64_t now_ns);

/*
 * A look at all volumes: begin, next until it returns -1, end. @looked holds a flag for each of
 * @infos, false at first; next sets it for the one that it returns. @space: writers wait for slots,
 * any push helps. Idle volumes go first, then the one with most dirty bytes. A look may be left
 * without an end: the next one goes on.
 */
void policy_look(struct push_policy *p, const struct dm_dedup_volume_info *infos, size_t count,
		 uint64_t now_ns);
ssize_t policy_next(struct push_policy *p, const struct dm_dedup_volume_info *infos, size_t count,
		    bool *looked, bool space, uint64_t now_ns);
void policy_look_end(struct push_policy *p);

/* A push has ended with @r; @why: its error. True: @why is news. */
bool policy_pushed(struct push_policy *p, const struct dm_dedup_volume_info *v, int r,
		   const char *why, uint64_t now_ns);
/* Why the last push of @volume failed; empty: it did not. */
const char *policy_trouble(const struct push_policy *p, uint64_t volume);
/* Some volume whose last push failed; NULL: none. */
const struct policy_volume *policy_in_trouble(const struct push_policy *p);

/* @bytes were sent. How long to wait until more may be; 0: not at all. */
void policy_sent(struct push_policy *p, uint64_t bytes, uint64_t now_ns);
uint64_t policy_wait_ns(const struct push_policy *p, uint64_t now_ns);

#endif
