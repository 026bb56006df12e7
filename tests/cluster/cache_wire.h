/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The verbs of a cache over a Unix socket: the test holds a plain-file cache in its own process
 * and guests beside it, as the kernel does; its agents are processes that it kills.
 */
#ifndef VMDEDUP_TESTS_CACHE_WIRE_H
#define VMDEDUP_TESTS_CACHE_WIRE_H

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "agent/cache_file.h"

#define WIRE_SHIFT	12		/* blocks of 4 KiB */
#define WIRE_MAX	(16U << 20)	/* payload */

enum wire_verb {
	WIRE_CONNECT, WIRE_READ, WIRE_WAKE, WIRE_DISCONNECT, WIRE_REPLY, WIRE_PUBLISH, WIRE_MAP,
	WIRE_FAIL, WIRE_DROP, WIRE_CUT, WIRE_LIST_CUT, WIRE_LIST_CLEAN, WIRE_LIST_VOLUMES,
	WIRE_COMMIT, WIRE_FENCE, WIRE_RELEASE, WIRE_READ_SLOT,
	WIRE_STEP, /* not of the cache: the agent is at the step that the payload names */
	WIRE_VERBS
};

/* A call and its answer: this head, then @len bytes. What a field means is the verb's. */
struct wire {
	uint32_t verb;
	int32_t r;
	uint64_t volume, cut, cursor, epoch;
	uint64_t count;
	uint32_t flags;
	uint32_t len;
	uint8_t root[32];
};

static inline int wire_io(int fd, void *buf, size_t len, bool out)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = out ? send(fd, (char *)buf + done, len - done, MSG_NOSIGNAL) :
				  recv(fd, (char *)buf + done, len - done, 0);

		if (n <= 0)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

/* ---- the kernel's side: cache_host.c ---- */

/* Serves @cache on a Unix socket at @path, a thread for each connection, until the process
 * ends. @step runs (any thread) when an agent is at a step: "cut" before the verb, "cut.done"
 * after it, before the answer leaves, and the steps that the agent names itself. */
struct cache_host;
struct cache_host *cache_host_new(struct cache *cache, const char *path,
				  void (*step)(void *arg, const char *name), void *arg);
/* While it is held, PUBLISH waits: the cache takes in no block. Any thread. */
void cache_host_hold(struct cache_host *h, bool hold);
/* Another cache in its place: the host was lost with all that it held. No agent may be there. */
void cache_host_replace(struct cache_host *h, struct cache *cache);

/* ---- the agent's side: cache_socket.c ---- */

struct cache *cache_socket_new(const char *path);
void cache_socket_step(const char *name);

#endif
