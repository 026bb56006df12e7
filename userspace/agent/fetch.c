// SPDX-License-Identifier: GPL-2.0-or-later
/* Misses: struct wait for each, struct flight for each fingerprint. See core.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/core_impl.h"
#include "base/log.h"

static void flight_step(struct agent *a, struct flight *f);

static struct wait_list *wait_bucket(struct agent *a, uint64_t cookie)
{
	return &a->waits[(cookie * 0x9e3779b97f4a7c15ULL) >> 52 & (HASH_BUCKETS - 1)];
}

static struct flight_list *flight_bucket(struct agent *a, const struct fp *fp)
{
	uint32_t h;

	memcpy(&h, fp->b, sizeof(h));
	return &a->flights[h & (HASH_BUCKETS - 1)];
}

/* ---- one miss ---- */

static void wait_free(struct agent *a, struct wait *w)
{
	job_end(a, &w->job);
	if (w->retry_ns)
		TAILQ_REMOVE(&a->wait_retry, w, in_retry);
	LIST_REMOVE(w, by_cookie);
	if (w->ahead)
		a->nr_ahead--;
	else
		a->stats.waiting--;
	if (w->warm)
		warm_ended(w->warm, w->warm_end);
	free(w);
}

/* The kernel has its answer, or no longer wants one. */
static void wait_end(struct agent *a, struct wait *w, enum agent_origin from)
{
	struct volume *v = volume_find(a, &w->image);
	uint64_t took = agent_now(a) - w->began_ns;

	if (w->ahead) {
		w->warm_end = from == FROM_PEER ? WARM_FROM_PEER : WARM_HERE;
		a->stats.prefetched += from >= FROM_DATA;
		if (v && !w->warm)
			v->reads.prefetched += from >= FROM_DATA;
	} else {
		a->stats.fetches++;
		a->stats.reads.count[from]++;
		a->stats.reads.wait_ns[from] += took;
		if (v) {
			v->fetches++;
			v->reads.count[from]++;
			v->reads.wait_ns[from] += took;
		}
	}
	wait_free(a, w);
}

static void wait_is_stale(struct agent *a, struct wait *w)
{
	a->stats.stale += !w->ahead;
	wait_free(a, w);
}

static void wait_retry_later(struct agent *a, struct wait *w)
{
	if (w->ahead) {
		wait_free(a, w);
		return;
	}
	w->retry_ns = backoff(a, &w->attempt);
	TAILQ_INSERT_TAIL(&a->wait_retry, w, in_retry);
}

static void wait_resolve(struct agent *a, struct wait *w)
{
	struct volume *v = volume_find(a, &w->image);

	if (!w->size && v)
		w->size = v->size;
	if (!w->size) {
		log_warn("the kernel asks for a block of volume %llu, whose size is unknown",
			 (unsigned long long)w->volume);
		wait_retry_later(a, w);
		return;
	}
	a->ops->resolve(a->ctx, job_start(a, &w->job, JOB_WAIT, w), &w->root, w->size, w->block);
}

static void wait_map_zero(struct agent *a, struct wait *w)
{
	struct dm_dedup_map m = {
		.cookie = w->cookie,
		.volume = w->volume,
		.block = w->block,
		.flags = DM_DEDUP_MAP_ZERO,
	};

	memcpy(m.root, w->root.b, FP_SIZE);
	a->ops->map(a->ctx, job_start(a, &w->job, JOB_WAIT, w), &m);
}

static void wait_zero_mapped(struct agent *a, struct wait *w, int r)
{
	if (!r)
		wait_end(a, w, FROM_ZERO);
	else if (r == -ESTALE || r == -EEXIST)
		wait_is_stale(a, w);
	else
		wait_retry_later(a, w);
	prefetch_more(a);
}

static struct wait *wait_find(struct agent *a, uint64_t cookie)
{
	struct wait *w;

	LIST_FOREACH(w, wait_bucket(a, cookie), by_cookie)
		if (w->cookie == cookie)
			return w;
	return NULL;
}

static struct wait *wait_ahead(struct agent *a, const struct uuid *image, const struct fp *root,
			       uint64_t size, uint64_t block)
{
	struct wait *w;

	if (!a->connected || a->nr_ahead >= a->max_gets / 4 * 3)
		return NULL;
	w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->block = block;
	w->size = size;
	w->image = *image;
	w->root = *root;
	w->readahead = w->ahead = true;
	w->began_ns = agent_now(a);
	LIST_INSERT_HEAD(wait_bucket(a, 0), w, by_cookie);
	a->nr_ahead++;
	return w;
}

bool fetch_ahead(struct agent *a, struct volume *v, uint64_t block)
{
	struct wait *w = NULL;

	if (v->flags & DM_DEDUP_VOL_OPEN && v->id)
		w = wait_ahead(a, &v->image, &v->root, v->size, block);
	if (!w)
		return false;
	w->volume = v->id;
	wait_resolve(a, w);
	return true;
}

bool fetch_warm(struct agent *a, struct warm *warm, const struct uuid *image, const struct fp *root,
		uint64_t size, uint64_t block)
{
	struct wait *w = wait_ahead(a, image, root, size, block);

	if (!w)
		return false;
	w->warm = warm;
	wait_resolve(a, w);
	return true;
}

void fetch_forget_warm(struct agent *a, struct warm *warm)
{
	struct wait *w;

	LIST_FOREACH(w, wait_bucket(a, 0), by_cookie)
		if (w->warm == warm)
			w->warm = NULL;
}

/* What a miss tells about its volume, and what is likely to be missed next. */
static void note_miss(struct agent *a, const struct wait *w)
{
	struct volume *v = volume_find(a, &w->image);

	if (!v)
		return;
	v->id = w->volume;
	v->root = w->root;
	if (!w->readahead)
		prefetch_missed(a, v, w->block);
}

void fetch_upcall(struct agent *a, const struct dm_dedup_upcall *up)
{
	struct wait *w = wait_find(a, up->cookie);

	if (w) { /* sent again: it is under way */
		if (!(up->flags & DM_DEDUP_UP_READAHEAD))
			w->readahead = false;
		return;
	}
	w = calloc(1, sizeof(*w));
	if (!w) {
		/* The next agent is handed it again; this one has no memory to remember it. */
		log_error("out of memory for a miss of volume %llu",
			  (unsigned long long)up->info.volume);
		return;
	}
	w->cookie = up->cookie;
	w->volume = up->info.volume;
	w->block = up->block;
	w->size = up->info.size;
	memcpy(w->image.b, up->info.image, sizeof(w->image.b));
	w->readahead = up->flags & DM_DEDUP_UP_READAHEAD;
	memcpy(w->root.b, up->info.root, FP_SIZE);
	w->began_ns = agent_now(a);
	LIST_INSERT_HEAD(wait_bucket(a, w->cookie), w, by_cookie);
	a->stats.waiting++;
	wait_resolve(a, w);
	note_miss(a, w);
}

/* ---- one fingerprint ---- */

static struct flight *flight_find(struct agent *a, const struct fp *fp)
{
	struct flight *f;

	LIST_FOREACH(f, flight_bucket(a, fp), by_fp)
		if (fp_equal(&f->fp, fp))
			return f;
	return NULL;
}

static struct flight *flight_new(struct agent *a, const struct fp *fp)
{
	struct flight *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->fp = *fp;
	TAILQ_INIT(&f->waits);
	LIST_INSERT_HEAD(flight_bucket(a, fp), f, by_fp);
	a->stats.flights++;
	return f;
}

static struct flight_queue *get_queue(struct agent *a, struct flight *f)
{
	struct wait *w;

	TAILQ_FOREACH(w, &f->waits, in_flight)
		if (!w->readahead)
			return &a->to_get[0];
	return &a->to_get[1];
}

static void flight_enter_queue(struct flight *f, struct flight_queue *queue,
			       enum flight_state state)
{
	f->in = queue;
	f->state = state;
	TAILQ_INSERT_TAIL(queue, f, queue);
}

static void flight_leave_queue(struct flight *f)
{
	if (f->in)
		TAILQ_REMOVE(f->in, f, queue);
	f->in = NULL;
	f->state = FLIGHT_IDLE;
}

static void start_gets(struct agent *a)
{
	struct flight *f;
	int i;

	/* A quarter is kept for what somebody waits for. */
	for (i = 0; i < 2; i++)
		while (a->nr_gets < (i ? a->max_gets / 4 * 3 : a->max_gets) &&
		       (f = TAILQ_FIRST(&a->to_get[i]))) {
			flight_leave_queue(f);
			f->state = FLIGHT_GETTING;
			f->holds = true;
			a->nr_gets++;
			a->ops->get(a->ctx, job_start(a, &f->job, JOB_FLIGHT, f), &f->fp);
		}
}

/* Of one that is dead nobody is told any more: there may be another of the same fingerprint. */
static void flight_is_settled(struct agent *a, const struct flight *f)
{
	if (a->ops->settled && !f->dead)
		a->ops->settled(a->ctx, &f->fp);
}

static void flight_drop_data(struct agent *a, struct flight *f)
{
	bytes_free(f->block);
	f->block = NULL;
	if (f->holds)
		a->nr_gets--;
	f->holds = false;
}

static void flight_free(struct agent *a, struct flight *f)
{
	flight_leave_queue(f);
	job_end(a, &f->job);
	flight_drop_data(a, f);
	LIST_REMOVE(f, by_fp);
	a->stats.flights--;
	flight_is_settled(a, f);
	free(f);
	prefetch_more(a);
	warm_more(a);
}

static enum agent_origin came_from(const struct flight *f)
{
	return f->from_peer ? FROM_PEER : FROM_DATA;
}

/* Whoever needs only that the block is in the cache. */
static void flight_end_warm(struct agent *a, struct flight *f)
{
	struct wait *w, *next;

	for (w = TAILQ_FIRST(&f->waits); w; w = next) {
		next = TAILQ_NEXT(w, in_flight);
		if (w->volume)
			continue;
		TAILQ_REMOVE(&f->waits, w, in_flight);
		wait_end(a, w, f->was_here ? FROM_CACHE : came_from(f));
	}
}

static void flight_publish(struct agent *a, struct flight *f)
{
	struct wait *w = TAILQ_FIRST(&f->waits);
	struct dm_dedup_publish p = {
		.cookie = w->cookie,
		.volume = w->volume,
		.block = w->block,
		.data = (uintptr_t)f->block->data,
	};

	memcpy(p.root, w->root.b, FP_SIZE);
	memcpy(p.fp, f->fp.b, FP_SIZE);
	if (a->hello.features & DM_DEDUP_FEATURE_SOURCE)
		p.source = f->from_peer ? DM_DEDUP_SOURCE_PEER : DM_DEDUP_SOURCE_DATA;
	f->state = FLIGHT_PUBLISHING;
	a->ops->publish(a->ctx, job_start(a, &f->job, JOB_FLIGHT, f), &p);
}

static void flight_map(struct agent *a, struct flight *f)
{
	struct wait *w = TAILQ_FIRST(&f->waits);
	struct dm_dedup_map m = {
		.cookie = w->cookie,
		.volume = w->volume,
		.block = w->block,
		.slot = f->slot,
		.seq = f->seq,
	};

	memcpy(m.root, w->root.b, FP_SIZE);
	f->state = FLIGHT_MAPPING;
	a->ops->map(a->ctx, job_start(a, &f->job, JOB_FLIGHT, f), &m);
}

/* Decides what a flight with nothing under way does next. */
static void flight_step(struct agent *a, struct flight *f)
{
	if (f->job.id || f->state == FLIGHT_QUEUED || f->state == FLIGHT_RETRY)
		return;
	f->state = FLIGHT_IDLE;
	if (TAILQ_EMPTY(&f->waits)) {
		flight_free(a, f);
		start_gets(a);
		return;
	}
	if (!f->have_slot && slots_find(a->slots, &f->fp, &f->slot, &f->seq)) {
		f->have_slot = true;
		f->was_here = true;
	}
	if (f->have_slot)
		flight_end_warm(a, f);
	if (TAILQ_EMPTY(&f->waits)) {
		flight_free(a, f);
		start_gets(a);
	} else if (f->have_slot) {
		flight_map(a, f);
	} else if (f->block) {
		flight_publish(a, f);
	} else {
		flight_enter_queue(f, get_queue(a, f), FLIGHT_QUEUED);
		start_gets(a);
	}
}

/* Nobody waits for what is had ahead: it is given up. */
static void flight_retry_later(struct agent *a, struct flight *f)
{
	struct wait *w, *next;

	for (w = TAILQ_FIRST(&f->waits); w; w = next) {
		next = TAILQ_NEXT(w, in_flight);
		if (!w->ahead)
			continue;
		TAILQ_REMOVE(&f->waits, w, in_flight);
		wait_free(a, w);
	}
	f->retry_ns = backoff(a, &f->attempt);
	flight_enter_queue(f, &a->flight_retry, FLIGHT_RETRY);
	flight_is_settled(a, f);
}

static struct wait *flight_take_first(struct flight *f)
{
	struct wait *w = TAILQ_FIRST(&f->waits);

	TAILQ_REMOVE(&f->waits, w, in_flight);
	f->attempt = 0;
	return w;
}

/* ---- answers ---- */

void agent_resolve_done(struct agent *a, uint64_t id, int r, const struct fp *fp)
{
	struct wait *w = job_take(a, id, JOB_WAIT);
	struct flight *f;

	if (!w)
		return;
	meta_answered(a, r, "recipe");
	if (r) {
		wait_retry_later(a, w);
		return;
	}
	if (fp_is_zero(fp) && !w->volume) {
		wait_end(a, w, FROM_ZERO);
		warm_more(a);
		return;
	}
	if (fp_is_zero(fp)) {
		wait_map_zero(a, w);
		return;
	}
	f = flight_find(a, fp);
	if (!f)
		f = flight_new(a, fp);
	if (!f) {
		wait_retry_later(a, w);
		return;
	}
	w->flight = f;
	TAILQ_INSERT_TAIL(&f->waits, w, in_flight);
	if (f->state == FLIGHT_QUEUED && !w->readahead) { /* somebody waits for it now */
		flight_leave_queue(f);
		flight_enter_queue(f, &a->to_get[0], FLIGHT_QUEUED);
	}
	flight_step(a, f);
}

static bool flight_was_dead(struct agent *a, struct flight *f)
{
	if (!f->dead)
		return false;
	flight_free(a, f);
	start_gets(a);
	return true;
}

bool agent_is_getting(struct agent *a, const struct fp *fp, const void **data, size_t *len)
{
	const struct flight *f = flight_find(a, fp);

	*data = f && f->block ? f->block->data : NULL;
	*len = f && f->block ? f->block->len : 0;
	return f && f->state != FLIGHT_RETRY;
}

void agent_get_done(struct agent *a, uint64_t id, int r, bool from_peer, struct bytes *block)
{
	struct flight *f = job_take(a, id, JOB_FLIGHT);

	if (!f || flight_was_dead(a, f)) {
		bytes_free(block);
		return;
	}
	if (!r && block->len != 1ULL << a->hello.block_shift) {
		log_error("a block of %zu bytes came for a cache of %llu-byte blocks", block->len,
			  1ULL << a->hello.block_shift);
		r = -EPROTO;
	}
	data_answered(a, r);
	if (r) {
		bytes_free(block);
		flight_drop_data(a, f);
		flight_retry_later(a, f);
		start_gets(a);
		return;
	}
	f->block = block;
	f->from_peer = from_peer;
	f->attempt = 0;
	a->stats.got_bytes += block->len;
	flight_is_settled(a, f);
	flight_step(a, f);
}

void agent_publish_done(struct agent *a, uint64_t id, int r, uint64_t slot, uint64_t seq)
{
	struct flight *f = job_take(a, id, JOB_FLIGHT);

	if (!f || flight_was_dead(a, f))
		return;
	switch (r) {
	case 0:
		slot_is_clean(a, slot, seq, &f->fp);
		f->have_slot = true;
		f->was_here = false;
		f->slot = slot;
		f->seq = seq;
		wait_end(a, flight_take_first(f), came_from(f));
		break;
	case -EEXIST:
	case -ESTALE:
	case -ENOENT:
		/* It was the miss that no longer waited. Should the slot have gone as well, whoever uses
		 * it finds out. */
		if (f->doubted_seq)
			slots_set(a->slots, f->doubted_slot, f->doubted_seq, &f->fp);
		wait_is_stale(a, flight_take_first(f));
		break;
	case -ENOSPC: /* every slot is dirty or in use: only a push helps */
		a->ops->want_push(a->ctx, 0, AGENT_PUSH_SPACE);
		flight_retry_later(a, f);
		return;
	default:
		log_warn("cannot publish a block: %s", strerror(-r));
		flight_retry_later(a, f);
		return;
	}
	flight_step(a, f);
}

void agent_map_done(struct agent *a, uint64_t id, int r)
{
	struct wait *w = job_take(a, id, JOB_WAIT);
	struct flight *f;

	if (w) {
		wait_zero_mapped(a, w, r);
		return;
	}
	f = job_take(a, id, JOB_FLIGHT);
	if (!f || flight_was_dead(a, f))
		return;
	switch (r) {
	case 0:
		wait_end(a, flight_take_first(f),
			 f->was_here || !f->block ? FROM_CACHE : came_from(f));
		break;
	case -EEXIST:
		wait_is_stale(a, flight_take_first(f));
		break;
	case -ESTALE:
	case -ENOENT:
		/* The slot was evicted, or the miss no longer waits: PUBLISH will tell which. */
		slots_drop(a->slots, f->slot, f->seq);
		f->doubted_slot = f->slot;
		f->doubted_seq = f->seq;
		f->have_slot = false;
		break;
	default:
		log_warn("cannot map a block: %s", strerror(-r));
		flight_retry_later(a, f);
		return;
	}
	flight_step(a, f);
}

/* ---- time, and the end ---- */

void fetch_tick(struct agent *a, uint64_t now)
{
	struct flight *f, *next_f;
	struct wait *w, *next_w;

	prefetch_more(a);
	warm_more(a);
	/* What fails again goes to the tail with a later time: each is looked at once. */
	for (w = TAILQ_FIRST(&a->wait_retry); w; w = next_w) {
		next_w = TAILQ_NEXT(w, in_retry);
		if (w->retry_ns > now)
			continue;
		TAILQ_REMOVE(&a->wait_retry, w, in_retry);
		w->retry_ns = 0;
		wait_resolve(a, w);
	}
	for (f = TAILQ_FIRST(&a->flight_retry); f; f = next_f) {
		next_f = TAILQ_NEXT(f, queue);
		if (f->retry_ns > now)
			continue;
		flight_leave_queue(f);
		flight_step(a, f);
	}
}

uint64_t fetch_next_ns(struct agent *a)
{
	uint64_t next = UINT64_MAX;
	struct flight *f;
	struct wait *w;

	TAILQ_FOREACH(w, &a->wait_retry, in_retry)
		if (w->retry_ns < next)
			next = w->retry_ns;
	TAILQ_FOREACH(f, &a->flight_retry, queue)
		if (f->retry_ns < next)
			next = f->retry_ns;
	return next;
}

/*
 * The cache has gone. A flight whose data a PUBLISH is reading must outlive it; it is moved aside
 * until the answer comes. All others end.
 */
void fetch_forget_all(struct agent *a)
{
	struct flight *f, *next_f;
	struct wait *w, *next_w;
	size_t i;

	for (i = 0; i < HASH_BUCKETS; i++) {
		for (w = LIST_FIRST(&a->waits[i]); w; w = next_w) {
			next_w = LIST_NEXT(w, by_cookie);
			if (w->flight)
				TAILQ_REMOVE(&w->flight->waits, w, in_flight);
			wait_free(a, w);
		}
	}
	for (i = 0; i < HASH_BUCKETS; i++) {
		for (f = LIST_FIRST(&a->flights[i]); f; f = next_f) {
			next_f = LIST_NEXT(f, by_fp);
			if (f->state != FLIGHT_PUBLISHING) {
				flight_free(a, f);
				continue;
			}
			f->dead = true;
			LIST_REMOVE(f, by_fp);
			LIST_INSERT_HEAD(&a->dead, f, by_fp);
		}
	}
}

void fetch_free_dead(struct agent *a)
{
	struct flight *f;

	while ((f = LIST_FIRST(&a->dead)))
		flight_free(a, f);
}
