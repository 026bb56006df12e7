/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The peers of a server: connections that have said HELLO. */
#ifndef VMDEDUP_NET_PEER_H
#define VMDEDUP_NET_PEER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#define NET_MAX_PEERS	    8192	 /* the one that was silent for longest is forgotten */
#define NET_MAX_PEER_QUEUED (1ULL << 30) /* bytes of replies that wait for a peer: then EBUSY */
#define NET_MAX_PEER_ERRORS (1ULL << 24) /* ... of such errors: then nothing */

/* Referenced by the table, by each request and by each reply frame on its way: the last may be
 * dropped on a thread of ZeroMQ. All else belongs to the server's thread. */
struct peer {
	atomic_uint refs;
	atomic_uint_fast64_t queued;
	struct peer *next_in_bucket;
	TAILQ_ENTRY(peer) lru;
	unsigned int socket;
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
/* A peer that is not in the table (yet). NULL: out of memory. */
struct peer *peer_new(unsigned int socket, const void *id, size_t len);
/* The table takes a reference of its own. */
void peer_add(struct peer_table *t, struct peer *p);
struct peer *peer_get(struct peer *p);
void peer_put(struct peer *p);

#endif
