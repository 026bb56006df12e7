/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What core.c, fetch.c and volume.c share. */
#ifndef VMDEDUP_AGENT_CORE_IMPL_H
#define VMDEDUP_AGENT_CORE_IMPL_H

#include <sys/queue.h>
#include "agent/core.h"
#include "agent/prefetch.h"
#include "agent/slots.h"

#define NSEC_PER_SEC	  1000000000ULL
#define NSEC_PER_MSEC	  1000000ULL
#define BACKOFF_FIRST_MS  50
#define BACKOFF_LAST_MS	  5000
#define HASH_BUCKETS	  4096 /* power of two */

enum job_kind { JOB_WAIT, JOB_FLIGHT, JOB_ASK, JOB_VOLUME, JOB_TRACE };

/* An operation under way; stands in what waits for it. id 0: none. */
struct job {
	uint64_t id;
	enum job_kind kind;
	void *owner;
	LIST_ENTRY(job) link;
};
LIST_HEAD(job_list, job);

struct flight;
struct warm;
enum warm_end { WARM_FAILED, WARM_HERE, WARM_FROM_PEER };

/* One miss of one volume, or a block that is had ahead of one. */
struct wait {
	struct job job; /* its resolve, or the MAP of zeros */
	uint64_t cookie, volume, block, size;
	struct uuid image;
	struct fp root;
	bool readahead;
	bool ahead; /* nobody has asked: no cookie; it is not tried again */
	struct warm *warm; /* for a volume that is about to come: @volume is 0 */
	enum warm_end warm_end;
	uint64_t began_ns;
	struct flight *flight;
	unsigned int attempt;
	uint64_t retry_ns; /* 0: not on the retry list */
	LIST_ENTRY(wait) by_cookie;
	TAILQ_ENTRY(wait) in_flight;
	TAILQ_ENTRY(wait) in_retry;
};
LIST_HEAD(wait_list, wait);
TAILQ_HEAD(wait_queue, wait);

enum flight_state {
	FLIGHT_IDLE, /* flight_step() decides */
	FLIGHT_QUEUED,
	FLIGHT_GETTING,
	FLIGHT_PUBLISHING,
	FLIGHT_MAPPING,
	FLIGHT_RETRY,
};

TAILQ_HEAD(flight_queue, flight);

/* One fingerprint, for all that wait for it. */
struct flight {
	struct job job;
	struct fp fp;
	enum flight_state state;
	bool holds;	/* one of nr_gets */
	bool dead;	/* the cache has gone: ends with the answer that it waits for */
	bool have_slot;
	bool from_peer; /* @block */
	bool was_here;	/* the slot was in the index, and not published by this flight */
	uint64_t slot, seq;
	uint64_t doubted_slot, doubted_seq; /* that a MAP called stale; 0: none */
	struct bytes *block; /* NULL until it has come */
	unsigned int attempt;
	uint64_t retry_ns;
	struct wait_queue waits;
	struct flight_queue *in; /* to_get or flight_retry, or NULL */
	LIST_ENTRY(flight) by_fp;
	TAILQ_ENTRY(flight) queue;
};
LIST_HEAD(flight_list, flight);

/* A LOOKUP or OPEN, or somebody of this host who asks about an image. */
struct ask {
	struct job job;
	uint64_t cookie;
	uint16_t type; /* DM_DEDUP_UP_LOOKUP or _OPEN; 0: @done */
	struct dm_dedup_volume_info info;
	uint64_t until_ns;
	uint64_t retry_ns; /* 0: an answer is awaited */
	unsigned int attempt;
	uint64_t renew; /* epoch of a lease that was found here without a grant */
	void (*done)(void *arg, int r, const struct agent_image *image);
	void *arg;
	LIST_ENTRY(ask) link;
};
LIST_HEAD(ask_list, ask);

/* An image on this host. Its volume's id is the kernel's, and changes with every new grant. */
struct volume {
	struct job confirm;
	struct uuid image;
	char name[DM_DEDUP_NAME_SIZE];
	uint64_t size;
	uint64_t epoch;
	uint32_t flags;
	uint64_t id;	     /* the kernel's, as of the last upcall */
	struct fp root;	     /* the same */
	struct fp opened_root;
	struct job trace;
	struct prefetch prefetch;
	struct agent_reads reads;
	uint64_t fetches;
	uint64_t open_cookie; /* of the OPEN that was answered last; 0: refused, or closed since */
	uint64_t opened_ns;
	bool unconfirmed; /* the meta server has not vouched for the grant since it was opened */
	unsigned int attempt;
	uint64_t retry_ns;
	LIST_ENTRY(volume) link;
};
LIST_HEAD(volume_list, volume);

struct agent {
	const struct agent_ops *ops;
	void *ctx;
	struct agent_params params;
	uint64_t next_id;
	bool connected;
	struct dm_dedup_hello hello;
	struct slots *slots;

	struct job_list jobs[HASH_BUCKETS];
	struct wait_list waits[HASH_BUCKETS];
	struct flight_list flights[HASH_BUCKETS];
	struct flight_list dead;
	struct wait_queue wait_retry;
	struct flight_queue flight_retry;
	struct flight_queue to_get[2]; /* demand, read-ahead */
	unsigned int nr_gets, max_gets;
	unsigned int nr_ahead; /* waits that nobody asked for */
	struct warm *warms[AGENT_WARMS];
	struct ask_list asks;
	struct volume_list volumes;

	struct agent_stats stats;
	char meta_trouble[80];
	char data_trouble[80];
};

static inline uint64_t agent_now(struct agent *a)
{
	return a->ops->now_ns(a->ctx);
}

/* core.c */
uint64_t job_start(struct agent *a, struct job *job, enum job_kind kind, void *owner);
void job_end(struct agent *a, struct job *job);
/* Ends operation @id. Its owner when it is one of @kind, NULL when nobody waits for it. */
void *job_take(struct agent *a, uint64_t id, enum job_kind kind);
/* Into the index, and on to who wants to know. */
void slot_is_clean(struct agent *a, uint64_t slot, uint64_t seq, const struct fp *fp);
uint64_t backoff(struct agent *a, unsigned int *attempt);
void meta_answered(struct agent *a, int r, const char *what);
void data_answered(struct agent *a, int r);

/* fetch.c */
void fetch_upcall(struct agent *a, const struct dm_dedup_upcall *up);
/* Has a block of an open volume that nobody has asked for yet. False: there is no room now. */
bool fetch_ahead(struct agent *a, struct volume *v, uint64_t block);
/* The same for a volume that is about to come. */
bool fetch_warm(struct agent *a, struct warm *warm, const struct uuid *image, const struct fp *root,
		uint64_t size, uint64_t block);
void fetch_forget_warm(struct agent *a, struct warm *warm); /* its waits tell nobody any more */
void fetch_forget_all(struct agent *a);
void fetch_free_dead(struct agent *a);
void fetch_tick(struct agent *a, uint64_t now);
uint64_t fetch_next_ns(struct agent *a);

/* warm.c */
void warm_ended(struct warm *w, enum warm_end end); /* one of its blocks */
void warm_more(struct agent *a);		    /* there may be room */
void warm_forget_all(struct agent *a);

/* volume.c */
struct volume *volume_find(struct agent *a, const struct uuid *image);
int volume_learn(struct agent *a, const struct dm_dedup_volume_info *info);
void volume_upcall(struct agent *a, const struct dm_dedup_upcall *up);
void volume_forget_all(struct agent *a, bool asks_of_people);
void volume_tick(struct agent *a, uint64_t now);
uint64_t volume_next_ns(struct agent *a);

#endif
