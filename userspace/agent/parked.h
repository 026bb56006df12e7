/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What peers asked for that is on its way here: each waits until the block has come, or will not, or its
 * time is over. Pure, driven by peer_server.c and by simulations; one thread.
 *
 * Bounds: PARKED_MAX, PARKED_EACH of one peer, PARKED_MAX_MS.
 */
#ifndef VMDEDUP_AGENT_PARKED_H
#define VMDEDUP_AGENT_PARKED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include "base/fingerprint.h"

#define PARKED_MAX    1024
#define PARKED_EACH   128
#define PARKED_MAX_MS 1000

/* Embedded in whatever waits. */
struct parked_ask {
	struct fp fp;
	uint64_t until_ns;
	uint32_t who;
	LIST_ENTRY(parked_ask) by_fp;
	TAILQ_ENTRY(parked_ask) link;
};
TAILQ_HEAD(parked_list, parked_ask);

struct parked;
struct parked *parked_new(void); /* NULL: no memory */
void parked_free(struct parked *p); /* what still waits is the caller's */

/* False: too many wait. @who: the peer. */
bool parked_add(struct parked *p, struct parked_ask *ask, const struct fp *fp, const char *who,
		uint64_t now_ns, unsigned int wait_ms);
/* One that waits for @fp, longest; it waits no more. NULL: none does. */
struct parked_ask *parked_take(struct parked *p, const struct fp *fp);
/* One whose time is over at @now_ns (UINT64_MAX: any); it waits no more. NULL: none. */
struct parked_ask *parked_expired(struct parked *p, uint64_t now_ns);
/* No time is over before; UINT64_MAX: nobody waits. */
uint64_t parked_next_ns(const struct parked *p);

#endif
