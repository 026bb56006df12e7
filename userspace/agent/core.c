// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/core_impl.h"
#include "base/cleanup.h"
#include "base/log.h"

#define MIN_GETS 4
#define MAX_GETS 1024

struct agent *agent_new(const struct agent_ops *ops, void *ctx, const struct agent_params *params)
{
	struct agent *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->ops = ops;
	a->ctx = ctx;
	a->params = *params;
	a->max_gets = MIN_GETS;
	/* Ids of an earlier life of this process must not be taken for ours. */
	a->next_id = (ops->random(ctx) >> 16) + 1;
	a->stats.meta_ok = true;
	a->stats.data_ok = true;
	TAILQ_INIT(&a->wait_retry);
	TAILQ_INIT(&a->flight_retry);
	TAILQ_INIT(&a->to_get[0]);
	TAILQ_INIT(&a->to_get[1]);
	return a;
}

void agent_free(struct agent *a)
{
	if (!a)
		return;
	warm_forget_all(a);
	fetch_forget_all(a);
	fetch_free_dead(a);
	volume_forget_all(a, true);
	slots_free(a->slots);
	free(a);
}

/* ---- operations under way ---- */

uint64_t job_start(struct agent *a, struct job *job, enum job_kind kind, void *owner)
{
	job->id = a->next_id++;
	job->kind = kind;
	job->owner = owner;
	LIST_INSERT_HEAD(&a->jobs[job->id & (HASH_BUCKETS - 1)], job, link);
	return job->id;
}

void job_end(struct agent *a, struct job *job)
{
	if (!job->id)
		return;
	LIST_REMOVE(job, link);
	job->id = 0;
}

void *job_take(struct agent *a, uint64_t id, enum job_kind kind)
{
	struct job *job;

	LIST_FOREACH(job, &a->jobs[id & (HASH_BUCKETS - 1)], link) {
		if (job->id != id || job->kind != kind)
			continue;
		job_end(a, job);
		return job->owner;
	}
	return NULL;
}

/* Exponential, with up to half of it at random so that hosts do not return in step. */
uint64_t backoff(struct agent *a, unsigned int *attempt)
{
	uint64_t ms = BACKOFF_FIRST_MS;
	unsigned int i;

	for (i = 0; i < *attempt && ms < BACKOFF_LAST_MS; i++)
		ms *= 2;
	ms = MIN(ms, BACKOFF_LAST_MS);
	(*attempt)++;
	a->stats.retries++;
	ms = ms / 2 + a->ops->random(a->ctx) % (ms / 2 + 1);
	return agent_now(a) + ms * NSEC_PER_MSEC;
}

void meta_answered(struct agent *a, int r, const char *what)
{
	bool ok = !AGENT_IS_UNREACHABLE(r);

	if (ok != a->stats.meta_ok) {
		if (ok)
			log_info("the meta server answers again");
		else
			log_warn("the meta server does not answer (%s: %s); trying again", what,
				 strerror(-r));
	}
	a->stats.meta_ok = ok;
	if (ok)
		a->meta_trouble[0] = 0;
	else
		snprintf(a->meta_trouble, sizeof(a->meta_trouble), "meta server: %s",
			 strerror(-r));
}

void data_answered(struct agent *a, int r)
{
	bool ok = !r;

	if (ok != a->stats.data_ok) {
		if (ok)
			log_info("blocks can be had again");
		else
			log_warn("cannot get a block (%s); trying again", strerror(-r));
	}
	a->stats.data_ok = ok;
	if (ok)
		a->data_trouble[0] = 0;
	else
		snprintf(a->data_trouble, sizeof(a->data_trouble), "data servers: %s",
			 strerror(-r));
}

/* ---- the cache comes and goes ---- */

int agent_connected(struct agent *a, const struct dm_dedup_hello *hello,
		    const struct dm_dedup_volume_info *volumes, size_t nr_volumes)
{
	uint64_t gets;
	size_t i;
	int r;

	agent_disconnected(a);
	slots_free(a->slots);
	a->slots = slots_new(hello->nr_slots);
	if (!a->slots)
		return -ENOMEM;
	a->hello = *hello;
	gets = a->params.max_get_bytes >> hello->block_shift;
	a->max_gets = (unsigned int)MAX(MIN(gets, MAX_GETS), MIN_GETS);
	a->connected = true;
	for (i = 0; i < nr_volumes; i++) {
		r = volume_learn(a, &volumes[i]);
		if (r)
			return r;
	}
	return 0;
}

void agent_disconnected(struct agent *a)
{
	a->connected = false;
	warm_forget_all(a);
	fetch_forget_all(a);
	volume_forget_all(a, false);
}

bool agent_is_connected(const struct agent *a)
{
	return a->connected;
}

bool agent_has_cache(const struct agent *a, const struct uuid *cache)
{
	return a->connected && !memcmp(a->hello.cache, cache->b, sizeof(cache->b));
}

void agent_clean_slots(struct agent *a, const struct dm_dedup_clean_entry *slots, size_t count)
{
	struct fp fp;
	size_t i;

	if (!a->connected)
		return;
	for (i = 0; i < count; i++) {
		memcpy(fp.b, slots[i].fp, FP_SIZE);
		slot_is_clean(a, slots[i].slot, slots[i].seq, &fp);
	}
}

void agent_each_clean(struct agent *a, void (*visit)(void *arg, const struct fp *fp), void *arg)
{
	if (a->connected)
		slots_each(a->slots, visit, arg);
}

void agent_slot_is_gone(struct agent *a, uint64_t slot, uint64_t seq)
{
	if (a->connected)
		slots_drop(a->slots, slot, seq);
}

void slot_is_clean(struct agent *a, uint64_t slot, uint64_t seq, const struct fp *fp)
{
	slots_set(a->slots, slot, seq, fp);
	if (a->ops->have)
		a->ops->have(a->ctx, fp);
}

uint64_t agent_block_size(const struct agent *a)
{
	return a->connected ? 1ULL << a->hello.block_shift : 0;
}

bool agent_find_slot(struct agent *a, const struct fp *fp, uint64_t *slot, uint64_t *seq)
{
	return a->connected && slots_find(a->slots, fp, slot, seq);
}

void agent_upcalls(struct agent *a, const struct dm_dedup_upcall *ups, size_t count)
{
	size_t i;

	if (!a->connected)
		return;
	for (i = 0; i < count; i++) {
		switch (ups[i].type) {
		case DM_DEDUP_UP_FETCH:
			fetch_upcall(a, &ups[i]);
			break;
		case DM_DEDUP_UP_LOOKUP:
		case DM_DEDUP_UP_OPEN:
		case DM_DEDUP_UP_CLOSE:
		case DM_DEDUP_UP_DIRTY:
			volume_upcall(a, &ups[i]);
			break;
		case DM_DEDUP_UP_SPACE:
			a->ops->want_push(a->ctx, 0, AGENT_PUSH_SPACE);
			break;
		default:
			log_warn("the kernel sent an upcall of unknown type %u", ups[i].type);
		}
	}
}

/* ---- time ---- */

void agent_tick(struct agent *a)
{
	uint64_t now = agent_now(a);

	fetch_tick(a, now);
	prefetch_tick(a, now);
	volume_tick(a, now);
}

uint64_t agent_next_ns(struct agent *a)
{
	return MIN(MIN(fetch_next_ns(a), volume_next_ns(a)), prefetch_next_ns(a));
}

void agent_stats(struct agent *a, struct agent_stats *stats)
{
	*stats = a->stats;
	stats->clean = a->connected ? slots_count(a->slots) : 0;
	if (a->stats.waiting || a->meta_trouble[0])
		snprintf(stats->trouble, sizeof(stats->trouble), "%s%s%s", a->meta_trouble,
			 a->meta_trouble[0] && a->data_trouble[0] ? "; " : "", a->data_trouble);
}
