/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The core of the agent: answers a cache's upcalls.
 *
 * It knows neither sockets nor ioctls nor threads. The world calls agent_*() and the core calls
 * back through struct agent_ops; every operation carries an id, never used again, and is answered
 * later by one of the agent_*_done() functions, never from inside the operation. A repeated or
 * late answer is ignored. All of it belongs to one thread.
 *
 * A miss: resolve (block -> fingerprint through the recipe of the miss's root), then for each
 * fingerprint one flight, however many volumes and blocks wait for it: MAP when the host has the
 * block in a CLEAN slot, else get, PUBLISH for the first that waits, and MAP for the others. What
 * fails waits and is tried again for ever, at growing intervals: a dead server fails no I/O.
 *
 * Bounds: the kernel bounds how many misses wait; at most @max_get_bytes of blocks are held in memory;
 * one index entry for each slot of the cache.
 */
#ifndef VMDEDUP_AGENT_CORE_H
#define VMDEDUP_AGENT_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/dm-dedup.h>
#include "base/bytes.h"
#include "base/fingerprint.h"
#include "base/uuid.h"

/* What the meta server knows of an image, as far as a LOOKUP needs it. */
struct agent_image {
	struct uuid uuid;
	uint64_t size;
	struct uuid leased_to; /* cache; null: nobody */
	char leased_host[64];
};

/* LeaseTake and its answer. */
struct agent_lease {
	struct uuid image;
	bool readonly;	   /* no lease, the root only; @root: the one on record, zero: none */
	bool confirm_only; /* a lease of @epoch must exist */
	uint64_t epoch;
	uint64_t renew;	   /* of a lease of that epoch, without a grant here: a new epoch */
	bool held;	   /* answer: the lease was this cache's before */
	struct fp root;	   /* answer: the head's */
	uint64_t cut;	   /* answer: the cut that the head stores for the epoch */
	uint64_t size;
};

/* How an answer of the meta server that is an error counts. */
#define AGENT_IS_UNREACHABLE(r) \
	((r) == -ETIMEDOUT || (r) == -EHOSTUNREACH || (r) == -ECONNREFUSED || \
	 (r) == -ECANCELED || (r) == -EAGAIN || (r) == -ENOTCONN)

enum agent_push_reason {
	AGENT_PUSH_CLOSE, /* its device has gone */
	AGENT_PUSH_DIRTY, /* the kernel finds it old or large; the agent's own bounds decide */
	AGENT_PUSH_SPACE, /* writers or misses wait for slots; @volume is 0: any */
};

struct agent_ops {
	uint64_t (*now_ns)(void *ctx); /* monotonic */
	uint64_t (*random)(void *ctx);

	/* The cache. Answers: agent_publish_done(), agent_map_done(). @data stays the core's and
	 * unchanged until the answer. reply, fail and fence are not answered. */
	void (*publish)(void *ctx, uint64_t id, const struct dm_dedup_publish *p);
	void (*map)(void *ctx, uint64_t id, const struct dm_dedup_map *m);
	void (*fail)(void *ctx, uint64_t cookie, int error);
	void (*reply)(void *ctx, uint64_t cookie, int error,
		      const struct dm_dedup_volume_info *info);
	void (*fence)(void *ctx, const struct uuid *image, uint64_t epoch);

	/* The network. Answers: agent_resolve_done(), agent_get_done(), agent_image_done(),
	 * agent_lease_done(). */
	void (*resolve)(void *ctx, uint64_t id, const struct fp *root, uint64_t size,
			uint64_t block);
	void (*get)(void *ctx, uint64_t id, const struct fp *fp);
	void (*image)(void *ctx, uint64_t id, const char *name);
	void (*lease)(void *ctx, uint64_t id, const struct agent_lease *take);

	/* A block is in a CLEAN slot now. NULL: nobody wants to know. */
	void (*have)(void *ctx, const struct fp *fp);
	/* agent_is_getting() says something else of a block now: it has come, or is not being had any
	 * more. Of the core only that and agent_find_slot() may be called from inside. NULL: nobody wants
	 * to know. */
	void (*settled)(void *ctx, const struct fp *fp);

	/* Traces (prefetch.h). trace_get is answered by agent_trace_done(). NULL: there are none. */
	void (*trace_get)(void *ctx, uint64_t id, const struct fp *root, const struct uuid *image);
	void (*trace_put)(void *ctx, const struct fp *root, const struct uuid *image,
			  const void *blocks, size_t len);

	/* A volume wants to be pushed. */
	void (*want_push)(void *ctx, uint64_t volume, enum agent_push_reason why);
	/* An ephemeral volume's device has gone: RELEASE it with its data. */
	void (*discard)(void *ctx, uint64_t volume, uint64_t epoch);
};

struct agent_params {
	uint64_t max_get_bytes;	    /* of blocks that are got or published at a time */
	unsigned int lookup_wait_s; /* LOOKUP and OPEN answer ETIMEDOUT after so long */
};

/* Misses by where their block came from. */
enum agent_origin { FROM_CACHE, FROM_ZERO, FROM_DATA, FROM_PEER, NR_ORIGINS };
struct agent_reads {
	uint64_t count[NR_ORIGINS];
	uint64_t wait_ns[NR_ORIGINS]; /* the sum */
	uint64_t prefetched;	      /* blocks that came before anybody asked */
};

struct agent_stats {
	uint64_t fetches;    /* upcalls answered */
	uint64_t failed;
	uint64_t stale;	     /* the answer no longer applied */
	uint64_t prefetched; /* blocks published before anybody asked */
	uint64_t got_bytes;
	uint64_t retries;
	uint64_t waiting;    /* misses now */
	uint64_t flights;    /* fingerprints under way now */
	uint64_t clean;	     /* slots in the index now */
	bool meta_ok;	     /* as of the last answer */
	bool data_ok;
	struct agent_reads reads;
	char trouble[176];   /* why the oldest miss waits; empty: nothing has failed */
};

struct agent;
struct agent *agent_new(const struct agent_ops *ops, void *ctx, const struct agent_params *params);
void agent_free(struct agent *a);

/* ---- the cache comes and goes ---- */
/* After HELLO: what was under way before is forgotten (the kernel sends it again). @volumes:
 * all records. 0, or -ENOMEM when the index for hello->nr_slots does not fit. */
int agent_connected(struct agent *a, const struct dm_dedup_hello *hello,
		    const struct dm_dedup_volume_info *volumes, size_t nr_volumes);
void agent_disconnected(struct agent *a);
bool agent_is_connected(const struct agent *a);
/* It is connected to that cache. */
bool agent_has_cache(const struct agent *a, const struct uuid *cache);
/* CLEAN slots, from LIST_CLEAN or from a COMMIT's replacements. */
void agent_clean_slots(struct agent *a, const struct dm_dedup_clean_entry *slots, size_t count);
/* The CLEAN slot that holds @fp, as far as this index knows. */
bool agent_find_slot(struct agent *a, const struct fp *fp, uint64_t *slot, uint64_t *seq);
/* All CLEAN slots, as far as this index knows. */
void agent_each_clean(struct agent *a, void (*visit)(void *arg, const struct fp *fp), void *arg);
/* A slot did not hold what the index says. */
void agent_slot_is_gone(struct agent *a, uint64_t slot, uint64_t seq);
uint64_t agent_block_size(const struct agent *a); /* bytes; 0: no cache yet */
/* Somebody waits for @fp here, and it is being had from elsewhere. @data: NULL, or the block when it
 * has come already: good until the core is called again. */
bool agent_is_getting(struct agent *a, const struct fp *fp, const void **data, size_t *len);
/* Images that are open here; how many there are, at most @max. */
size_t agent_open_images(struct agent *a, struct uuid *images, size_t max);
void agent_upcalls(struct agent *a, const struct dm_dedup_upcall *ups, size_t count);

/* ---- answers ---- */
void agent_publish_done(struct agent *a, uint64_t id, int r, uint64_t slot, uint64_t seq);
void agent_map_done(struct agent *a, uint64_t id, int r);
void agent_resolve_done(struct agent *a, uint64_t id, int r, const struct fp *fp);
/* Takes over @block, which matched its fingerprint; NULL when @r is not 0. */
void agent_get_done(struct agent *a, uint64_t id, int r, bool from_peer, struct bytes *block);
/* @len 0: there is no trace. */
void agent_trace_done(struct agent *a, uint64_t id, int r, const void *blocks, size_t len);
void agent_image_done(struct agent *a, uint64_t id, int r, const struct agent_image *image);
void agent_lease_done(struct agent *a, uint64_t id, int r, const struct agent_lease *lease);
/* The cache did not take the answer to a request: whoever asked has gone. */
void agent_reply_refused(struct agent *a, uint64_t cookie);

/* ---- time ---- */
void agent_tick(struct agent *a);
/* When the next agent_tick() is due, as now_ns(); UINT64_MAX: not before something happens. */
uint64_t agent_next_ns(struct agent *a);

/* ---- a volume is about to come ---- */
#define AGENT_WARMS 4 /* images at a time; the one that was asked about longest ago makes room */

/* How far it is. */
struct agent_warmth {
	uint64_t blocks; /* distinct numbers that were asked for */
	uint64_t here;	 /* in the cache, or zeros */
	uint64_t failed; /* given up: they come when the guest wants them */
	uint64_t from_peers;
	struct uuid cache; /* which one; also with an error, but for -ENODEV */
};

/*
 * Brings blocks of a recipe into the cache, in the order of @trace (prefetch.h), behind all that
 * guests wait for. @len 0: only tells how far it is. -ENOENT: that is not under way; -EOPNOTSUPP: the
 * kernel takes no blocks without a volume; -ENODEV, -ENOMEM, -EINVAL (the trace names nothing).
 */
int agent_warm(struct agent *a, const struct uuid *image, const struct fp *root, uint64_t size,
	       const void *trace, size_t len, struct agent_warmth *warmth);

/* ---- for the control socket ---- */
/* An image's size and lease: @done runs once, later. */
void agent_ask_image(struct agent *a, const char *name,
		     void (*done)(void *arg, int r, const struct agent_image *image), void *arg);
void agent_stats(struct agent *a, struct agent_stats *stats);
uint64_t agent_image_fetches(struct agent *a, const struct uuid *image);
void agent_image_reads(struct agent *a, const struct uuid *image, struct agent_reads *reads);
/* A volume was released: nothing of it is kept. */
void agent_forget_volume(struct agent *a, const struct uuid *image);
/* An OPEN of the image is under way. The cache may take a while to make a record of one that was answered,
 * and may refuse it then, which it does not tell: that is taken for under way for a minute. Whether it is
 * open, the cache's records tell. */
bool agent_opens_image(struct agent *a, const struct uuid *image);

#endif
