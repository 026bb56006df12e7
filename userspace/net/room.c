// SPDX-License-Identifier: GPL-2.0-or-later
#include "net/room.h"

#include "base/cleanup.h"
#include "proto/limits.h"

#define SHARE 16 /* no peer holds more than this part of the budget, if it can begin with less */

void room_init(struct room *room, uint64_t budget)
{
	room->budget = budget;
	room->given = 0;
	TAILQ_INIT(&room->holders);
	TAILQ_INIT(&room->asking);
}

static void forget_question(struct room *room, struct peer *peer)
{
	TAILQ_REMOVE(&room->asking, peer, asking);
	peer->asked_id = 0;
}

void room_take(struct room *room, struct peer *peer, uint64_t bytes)
{
	if (!peer->room)
		return;
	bytes = MIN(bytes, peer->room);
	room->given -= bytes;
	peer->room -= bytes;
	if (peer->room)
		return;
	TAILQ_REMOVE(&room->holders, peer, holder);
	peer_put(peer);
}

void room_free(struct room *room)
{
	struct peer *peer;

	while ((peer = TAILQ_FIRST(&room->holders)))
		room_take(room, peer, peer->room);
	while ((peer = TAILQ_FIRST(&room->asking))) {
		forget_question(room, peer);
		peer_put(peer);
	}
}

static void give(struct room *room, struct peer *peer, uint64_t bytes, uint64_t now)
{
	if (peer->room)
		TAILQ_REMOVE(&room->holders, peer, holder);
	else
		peer_get(peer);
	TAILQ_INSERT_TAIL(&room->holders, peer, holder);
	room->given += bytes;
	peer->room += bytes;
	peer->room_until_ns = now + ROOM_HOLD_NS;
}

static void expire(struct room *room, uint64_t now)
{
	struct peer *peer;

	while ((peer = TAILQ_FIRST(&room->holders)) && peer->room_until_ns <= now)
		room_take(room, peer, peer->room);
}

static uint64_t left(const struct room *room, uint64_t budget, uint64_t busy)
{
	uint64_t used = room->given + busy;

	return used < budget ? budget - used : 0;
}

static uint64_t left_for(const struct room *room, const struct peer *peer)
{
	uint64_t share = room->budget / SHARE;

	return peer->room < share ? share - peer->room : 0;
}

uint64_t room_offer(struct room *room, struct peer *peer, uint64_t bytes, uint64_t busy, uint64_t now)
{
	expire(room, now);
	bytes = MIN(MIN(bytes, left_for(room, peer)), left(room, room->budget / 2, busy));
	if (!bytes || !TAILQ_EMPTY(&room->asking))
		return 0;
	give(room, peer, bytes, now);
	return bytes;
}

bool room_reserve(struct room *room, struct peer *peer, uint64_t bytes, uint64_t busy, uint64_t now)
{
	expire(room, now);
	bytes = MIN(bytes, left_for(room, peer));
	if (!TAILQ_EMPTY(&room->asking) || bytes > left(room, room->budget, busy))
		return false;
	if (bytes)
		give(room, peer, bytes, now);
	return true;
}

void room_ask(struct room *room, struct peer *peer, uint64_t id, uint64_t bytes, uint64_t least)
{
	if (!peer->asked_id) {
		peer_get(peer);
		TAILQ_INSERT_TAIL(&room->asking, peer, asking);
	}
	peer->asked_id = id;
	peer->asked_least = MIN(MAX(least, 1), MIN(room->budget, PROTO_MAX_PAYLOAD));
	peer->asked_bytes = MAX(bytes, peer->asked_least);
}

struct peer *room_next(struct room *room, uint64_t busy, uint64_t now, uint64_t *bytes)
{
	struct peer *peer = TAILQ_FIRST(&room->asking);
	uint64_t there;

	if (!peer)
		return NULL;
	expire(room, now);
	there = left(room, room->budget, busy);
	/* What it holds was too little for it: it comes on top. */
	if (there < peer->asked_least && (room->given || busy))
		return NULL;
	*bytes = peer->asked_least;
	if (!TAILQ_NEXT(peer, asking))
		*bytes = MAX(*bytes, MIN(MIN(peer->asked_bytes, left_for(room, peer)), there));
	forget_question(room, peer);
	give(room, peer, *bytes, now);
	return peer;
}

uint64_t room_due(const struct room *room)
{
	const struct peer *peer = TAILQ_FIRST(&room->holders);

	return peer && !TAILQ_EMPTY(&room->asking) ? peer->room_until_ns : UINT64_MAX;
}
