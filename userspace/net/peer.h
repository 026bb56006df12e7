/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The peers of a server: its connections. */
#ifndef VMDEDUP_NET_PEER_H
#define VMDEDUP_NET_PEER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#define NET_MAX_PEERS	    8192	 /* the one that was silent for longest is forgotten */
/* Replies that wait for a peer; beyond it gets EBUSY, and beyond the last not even that. */
#define NET_MAX_PEER_QUEUED (1ULL << 30) /* bytes */
#define NET_MAX_PEER_PARTS  65536
#define NET_MAX_PEER_ERRORS 131072 /* parts too */

/* Referenced by the table, by each request and by each reply frame on its way: the last may be
 * dropped on a thread of ZeroMQ. All else belongs to the server's thread. */
struct peer {
	atomic_uint refs;
	atomic_uint_fast64_t queued; /* bytes of replies that wait for it */
	atomic_uint_fast32_t parts;
	struct peer *next_in_bucket;
	TAILQ_ENTRY(peer) lru;
	unsigned int socket;
	bool said_hello;
	bool has_key;
	uint8_t key[32]; /* that it has proved to have */
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
