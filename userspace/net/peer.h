/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The peers of a server: its connections. */
#ifndef VMDEDUP_NET_PEER_H
#define VMDEDUP_NET_PEER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "net/role.h"

#define NET_ROLE_NS	    1000000000ULL /* a role is looked up again after this */
#define NET_MAX_PEERS	    8192	 /* the one that was silent for longest is forgotten */
/* Replies that wait for a peer; beyond it gets EBUSY, and beyond the last not even that. */
#define NET_MAX_PEER_QUEUED (1ULL << 30) /* bytes */
#define NET_MAX_PEER_PARTS  65536
#define NET_MAX_PEER_ERRORS 131072 /* parts too */
#define NET_FEW_QUEUED	    (256U << 10) /* bytes that never count as too many for all together */

/* Bytes of replies that wait for all peers of a server. Referenced by the server and by each peer that
 * adds to it; the last may go on a thread of ZeroMQ. */
struct peer_sum {
	atomic_uint refs;
	atomic_uint_fast64_t queued;
};
struct peer_sum *peer_sum_new(void); /* NULL: out of memory */
struct peer_sum *peer_sum_get(struct peer_sum *sum);
void peer_sum_put(struct peer_sum *sum); /* NULL is fine */

/* Referenced by the table, by each request and by each reply frame on its way: the last may be
 * dropped on a thread of ZeroMQ. All else belongs to the server's thread. */
struct peer {
	atomic_uint refs;
	atomic_uint_fast64_t queued; /* bytes of replies that wait for it */
	atomic_uint_fast32_t parts;
	struct peer_sum *sum; /* NULL: in this process, where the reader bounds itself */
	struct peer *next_in_bucket;
	TAILQ_ENTRY(peer) lru;
	unsigned int socket;
	bool said_hello;
	bool asks; /* for room before it sends payload */
	bool forwards; /* a data server: what it sends was taken by it already, and must not wait */
	bool has_key;
	uint8_t key[32]; /* that it has proved to have */
	char user[41];	 /* the same as text, or empty */
	enum net_role role; /* of that key, as long as it counts */
	uint64_t role_until_ns;
	bool warned; /* of a request that its role is too little for */
	/* net/room.h */
	TAILQ_ENTRY(peer) holder, asking;
	uint64_t room, room_until_ns; /* bytes that it may send, and how long they are kept for it */
	uint64_t asked_id;	      /* of its question that waits for an answer, or 0 */
	uint64_t asked_bytes, asked_least;
	char text[200]; /* for logs */
	size_t id_len;
	uint8_t id[];
};
TAILQ_HEAD(peer_list, peer);

struct peer_table {
	size_t nr;
	struct peer_list lru; /* the most recent first */
	struct peer *buckets[4096];
};

void peer_table_init(struct peer_table *t);
void peer_table_free(struct peer_table *t);
/* NULL: not known. Moves it to the front. */
struct peer *peer_find(struct peer_table *t, unsigned int socket, const void *id, size_t len);
/* The same, and makes it known. NULL: out of memory. */
struct peer *peer_find_or_add(struct peer_table *t, unsigned int socket, const void *id,
			      size_t len);
struct peer *peer_get(struct peer *p);
void peer_put(struct peer *p);

#endif
