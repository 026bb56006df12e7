/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The meta servers, as a data server speaks to them: to one of them, and when that one does not answer,
 * or has lost its store, to the next. One thread uses a struct metas.
 */
#ifndef VMDEDUP_DATA_METAS_H
#define VMDEDUP_DATA_METAS_H

#include <stdint.h>
#include "net/net.h"

#define MAX_METAS 8

struct metas {
	struct net_client *clients[MAX_METAS]; /* an entry is NULL when its client was freed */
	size_t nr, now;
};

/* @endpoints: with commas between. @key: of all of them, 32 bytes, or NULL. */
int metas_open(struct metas *m, struct net_ctx *net, const char *endpoints, const uint8_t *key,
	       struct error *err);
void metas_close(struct metas *m);
void metas_run(struct metas *m); /* what is there, without waiting */
/* The answer to a request of the present one (@header NULL: none) was @r: perhaps the next is asked next. */
void metas_answered(struct metas *m, int r, const Vmdedup__Reply *header);

#endif
