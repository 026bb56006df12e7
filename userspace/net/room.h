/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Room for payload that is on its way to a server. ZeroMQ reads a whole message of each connection
 * before anyone may look at it, so a thousand clients that send at once would fill the server's memory:
 * they ask before they send. What is given and what has come and is not answered never exceeds the budget
 * together. Room that nobody has used for ROOM_HOLD_NS is taken back: its owner may be dead. (Its owner
 * uses it in NET_ROOM_USE_NS or not at all.) Who asks when there is none waits for his turn.
 *
 * One thread's, the server's. @busy is always the payload of the requests that are not answered.
 */
#ifndef VMDEDUP_NET_ROOM_H
#define VMDEDUP_NET_ROOM_H

#include "net/peer.h"

#define ROOM_HOLD_NS 5000000000ULL

struct room {
	uint64_t budget; /* 0: nobody has to ask */
	uint64_t given;	 /* of all peers */
	TAILQ_HEAD(, peer) holders; /* in the order in which theirs is taken back */
	TAILQ_HEAD(, peer) asking;  /* in the order in which they asked; a reference each, as above */
};

void room_init(struct room *room, uint64_t budget);
void room_free(struct room *room);
/* Gives @peer up to @bytes that it did not ask for: only while half of the budget is free and nobody
 * waits. Returns how many. */
uint64_t room_offer(struct room *room, struct peer *peer, uint64_t bytes, uint64_t busy, uint64_t now);
/* Keeps @bytes for a peer that does not know of room, as far as one peer may have; false: there are none. */
bool room_reserve(struct room *room, struct peer *peer, uint64_t bytes, uint64_t busy, uint64_t now);
/* @bytes have come, or cannot be told to the peer. */
void room_take(struct room *room, struct peer *peer, uint64_t bytes);
/* The peer wants @bytes, and cannot begin with fewer than @least; a second question replaces the first. */
void room_ask(struct room *room, struct peer *peer, uint64_t id, uint64_t bytes, uint64_t least);
/* Whose turn it is, with what it has been given; the caller puts the reference. NULL: nobody's. */
struct peer *room_next(struct room *room, uint64_t busy, uint64_t now, uint64_t *bytes);
/* When room is to be taken back for somebody who waits; UINT64_MAX: nobody does. */
uint64_t room_due(const struct room *room);

#endif
