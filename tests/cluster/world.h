/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A fleet of real processes on the loopback interface: a meta server, data servers, and hosts, each
 * an agent whose cache is in this process (cache_wire.h), so that the agent can be killed and the
 * guests go on. For the tests that kill. Whatever fails prints why and ends the process; children
 * end with it.
 */
#ifndef VMDEDUP_TESTS_WORLD_H
#define VMDEDUP_TESTS_WORLD_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>
#include "agent/cache_file.h"
#include "lib/cluster.h"
#include "cache_wire.h"

#define WORLD_DATA  2
#define WORLD_HOSTS 2

/* Children end with the thread that made them (PR_SET_PDEATHSIG): one thread makes them all. */
struct spawner {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct process *wanted; /* NULL: none */
};

struct process {
	struct spawner *spawner;
	const char *argv[6];
	char name[16], conf[160], log[160];
	pthread_mutex_t lock; /* guards pid */
	pid_t pid;
};

struct host {
	struct process agent;
	struct cache *cache;
	struct cache_host *served;
	struct net_client *client; /* to its agent */
	char socket[108], file[160];
	struct uuid uuid;
	uint64_t cache_size;
};

struct world {
	char dir[80], conf[160];
	struct config config;
	struct net_ctx *net;
	struct cluster *cluster;
	struct spawner spawner;
	struct process meta, data[WORLD_DATA];
	struct host hosts[WORLD_HOSTS];
	/* When an agent is at a step; any thread. */
	void (*step)(void *arg, int host, const char *name);
	void *arg;
};

void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* @agent_conf: more lines for [agent]. */
struct world *world_new(uint64_t cache_size, const char *agent_conf,
			void (*step)(void *arg, int host, const char *name), void *arg);
void world_free(struct world *w); /* SIGTERM to all; each must end with status 0 */

void process_start(struct process *p);
void process_kill(struct process *p);	 /* kill -9, waits for the end */
void process_restart(struct process *p); /* both; any thread */

/* The host lost its disk: another, empty cache. Its agent is killed and started. */
void host_lose(struct world *w, struct host *h);
/* Waits until its agent has its cache. */
void host_wait(struct host *h);

/* The command: its exit status (128 + signal). Output goes to a log. @vargs end with NULL. */
int vmdedup(struct world *w, const char *arg, ...) __attribute__((sentinel));
/* Starts a command: command_wait() is to come. */
pid_t command_start(struct world *w, const char *const *argv);
/* Waits for a child: its exit status, as vmdedup(). */
int command_wait(pid_t pid);
/* The same, killed after @us microseconds if it is still there. */
int vmdedup_killed(struct world *w, unsigned int us, const char *const *argv);

/* Requests to the meta server; retried by the library. A negative errno or 0. */
int world_mutate(struct world *w, Vmdedup__Request *req, struct net_reply *reply,
		 struct error *err);
int world_call(struct world *w, Vmdedup__Request *req, struct net_reply *reply,
	       struct error *err);
/* No image, node, block, open push, and no copy on a data server. @say: prints what there is. */
bool world_is_empty(struct world *w, bool say);
/* Collects until it is; fails when something stays. */
void world_empty(struct world *w);
/* To the agent of @h; again until it has an answer that is not about the agent's own start. */
int host_ask(struct host *h, Vmdedup__Request *req, struct net_reply *reply, struct error *err);

/* Bytes that its cache holds unpushed, and of how many volumes it has a record. */
uint64_t host_unpushed(struct host *h, size_t *volumes);
/* *version (may be NULL): makes one. */
int host_push(struct host *h, const char *name, uint64_t *version, struct error *err);
int host_detach(struct host *h, const char *name, struct error *err);
/* For writing, or DM_DEDUP_VOL_READONLY, _EPHEMERAL. */
int host_attach(struct host *h, const char *name, uint32_t flags, uint64_t *volume,
		struct error *err);

/* @size bytes whose content follows from @ids, one for each sector; 0: zeros. Equal ids in equal
 * places of a block are equal content. */
void content_fill(void *buf, const uint32_t *ids, uint64_t first, uint64_t count);

#endif
