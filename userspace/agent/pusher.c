// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "agent/pusher_impl.h"
#include "agent/readers.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#define LOOK_EVERY_MS	 2000 /* at the volumes' age and dirty bytes */
#define OPEN_TIMEOUT_MS	 3000
#define REPORT_TIMEOUT_MS 1000
#define PUSH_TRIES	 8 /* of one push whose blocks collections take away */

/* ---- what a push calls ---- */

static void for_each(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
	struct pusher *p = ctx;

	pool_for_each(p->pool, n, fn, arg);
}

struct find {
	struct agent *agent;
	const struct fp *fps;
	size_t count;
	uint64_t *slots, *seqs;
	const struct dm_dedup_clean_entry *clean;
};

static void find_in_loop(void *arg)
{
	struct find *f = arg;
	size_t i;

	for (i = 0; i < f->count; i++)
		if (fp_is_zero(&f->fps[i]) ||
		    !agent_find_slot(f->agent, &f->fps[i], &f->slots[i], &f->seqs[i]))
			f->seqs[i] = 0;
}

static void find_slots(void *ctx, const struct fp *fps, size_t count, uint64_t *slots,
		       uint64_t *seqs)
{
	struct pusher *p = ctx;
	struct find f = { p->params.agent, fps, count, slots, seqs, NULL };

	memset(seqs, 0, count * sizeof(*seqs));
	loop_call(p->params.loop, find_in_loop, &f);
}

static void clean_in_loop(void *arg)
{
	struct find *f = arg;

	agent_clean_slots(f->agent, f->clean, f->count);
}

static void clean_slots(void *ctx, const struct dm_dedup_clean_entry *slots, size_t count)
{
	struct pusher *p = ctx;
	struct find f = { p->params.agent, NULL, count, NULL, NULL, slots };

	loop_call(p->params.loop, clean_in_loop, &f);
}

/* ---- one volume ---- */

void pusher_holder(struct pusher *p, struct uuid *cache)
{
	pthread_mutex_lock(&p->lock);
	*cache = p->cache_uuid;
	pthread_mutex_unlock(&p->lock);
}

int pusher_find_image(struct pusher *p, const struct uuid *image, const char *name,
		      struct dm_dedup_volume_info *found, struct error *err)
{
	return cache_find_volume(p->params.cache, 0, image, name, found, err);
}

int pusher_find_volume(struct pusher *p, struct pusher_task *task,
		       struct dm_dedup_volume_info *found, struct error *err)
{
	struct uuid uuid;
	int r;

	/* The cache may answer before the loop has been told which one it is. */
	pusher_holder(p, &uuid);
	if (uuid_is_null(&uuid))
		return error_set(err, -ENODEV, "the cache is not connected yet");
	r = cache_find_volume(p->params.cache, task->volume, NULL, task->name, found, err);
	if (!r)
		memcpy(task->image.b, found->image, sizeof(task->image.b));
	return r;
}

/* Only the meta server's word on the lease itself stops a volume. */
static void fence_if_lost(struct pusher *p, const struct dm_dedup_volume_info *v)
{
	struct agent_lease lease = { .confirm_only = true, .epoch = v->lease_epoch };
	struct error err = { 0 };
	struct uuid cache;
	int r;

	memcpy(lease.image.b, v->image, sizeof(lease.image.b));
	pusher_holder(p, &cache);
	r = network_take_lease(p->servers.cluster, &cache, p->params.host, &lease, META_TIMEOUT_MS,
			       &err);
	if (r != -ESTALE)
		return;
	log_error("volume %s: its lease (epoch %llu) is no longer this host's: writes stop, and what "
		  "was not pushed waits to be recovered as a new image",
		  v->name, (unsigned long long)v->lease_epoch);
	r = p->params.cache->ops->fence(p->params.cache, v->volume, v->lease_epoch);
	if (r)
		log_error("cannot fence volume %s: %s", v->name, strerror(-r));
}

int pusher_need_cluster(struct pusher *p, struct error *err)
{
	const struct pusher_params *m = &p->params;
	unsigned int i;

	pusher_holder(p, &p->servers.cache);
	if (!p->servers.cluster) {
		p->servers.cluster = cluster_open(m->net, m->config, m->meta, "agent",
						  OPEN_TIMEOUT_MS, err);
		if (!p->servers.cluster)
			return err->code ? err->code : -ETIMEDOUT;
		p->env.block_shift = cluster_params(p->servers.cluster)->block_shift;
		p->env.algorithm = cluster_params(p->servers.cluster)->algorithm;
	}
	for (i = 0; i < PUSH_CHUNK; i++) {
		if (!p->env.hashers[i])
			p->env.hashers[i] = cluster_hasher(p->servers.cluster);
		if (!p->env.hashers[i])
			return error_set(err, -ENOMEM, "out of memory for digests");
	}
	return 0;
}

static int push_once(struct pusher *p, const struct dm_dedup_volume_info *v, bool make_version,
		     const char *label, struct push_result *result, struct error *err)
{
	int r, tries;

	memset(result, 0, sizeof(*result));
	r = pusher_need_cluster(p, err);
	/* -EAGAIN: a collection took blocks that the data servers had when they were asked. The same
	 * cut again finds them missing, and sends them. */
	for (tries = 0; !r && tries < PUSH_TRIES; tries++) {
		err->code = 0;
		r = push_volume(&p->env, v, NULL, make_version, label, result, err);
		if (r != -EAGAIN)
			break;
		log_info("volume %s: its push begins again: %s", v->name, err->text);
		r = 0;
	}
	if (!r && tries == PUSH_TRIES)
		r = -EAGAIN;
	if (r == -ESTALE)
		fence_if_lost(p, v);
	if (r)
		return r;
	if (!result->cut)
		return 0;
	pthread_mutex_lock(&p->lock);
	p->stats.pushes++;
	p->stats.blocks += result->blocks;
	p->stats.new_blocks += result->new_blocks;
	p->stats.bytes_sent += result->bytes_sent;
	pthread_mutex_unlock(&p->lock);
	log_info("volume %s: pushed cut %llu: %llu blocks, %llu new", v->name,
		 (unsigned long long)result->cut, (unsigned long long)result->blocks,
		 (unsigned long long)result->new_blocks);
	return 0;
}

static void note_push(struct pusher *p, const struct dm_dedup_volume_info *v, int r,
		      const struct error *err)
{
	pthread_mutex_lock(&p->lock);
	if (policy_pushed(&p->policy, v, r, err->text, clock_mono_ns()))
		log_warn("push of volume %s waits: %s", v->name, err->text);
	pthread_mutex_unlock(&p->lock);
}

int pusher_push(struct pusher *p, const struct dm_dedup_volume_info *v, bool make_version,
		const char *label, struct push_result *result, struct error *err)
{
	int r;

	pthread_mutex_lock(&p->lock);
	p->pushing = v->volume;
	memcpy(p->pushing_name, v->name, sizeof(p->pushing_name));
	pthread_mutex_unlock(&p->lock);
	r = push_once(p, v, make_version, label, result, err);
	pthread_mutex_lock(&p->lock);
	p->pushing = 0;
	pthread_mutex_unlock(&p->lock);
	note_push(p, v, r, err);
	return r;
}

/* ---- in the background ---- */

/* Keeps to the rate, unless somebody waits for this push to be over. */
static void pace(void *ctx, uint64_t sent)
{
	struct pusher *p = ctx;
	uint64_t now = clock_mono_ns(), wait;

	pthread_mutex_lock(&p->lock);
	policy_sent(&p->policy, sent, now);
	while (!p->first && !p->stop && !p->want_space &&
	       (wait = policy_wait_ns(&p->policy, now))) {
		clock_cond_wait(&p->some, &p->lock, now + wait);
		now = clock_mono_ns();
	}
	pthread_mutex_unlock(&p->lock);
}

static ssize_t next_due(struct pusher *p, const struct dm_dedup_volume_info *infos, size_t count,
			bool *looked, bool space)
{
	ssize_t i;

	pthread_mutex_lock(&p->lock);
	/* People come first; what is left of this look is taken up by the next one. */
	i = -EINTR;
	if (!p->first && !p->stop)
		i = policy_next(&p->policy, infos, count, looked, space, clock_mono_ns());
	if (i == -1)
		policy_look_end(&p->policy);
	pthread_mutex_unlock(&p->lock);
	return i;
}

static void push_what_is_due(struct pusher *p, bool space)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	CLEANUP_FREE bool *looked = NULL;
	struct push_result result;
	struct error err;
	size_t count;
	ssize_t i;

	if (cache_volumes(p->params.cache, &infos, &count))
		count = 0; /* not connected: when it is, the next look finds what is due */
	looked = calloc(MAX(count, 1), sizeof(*looked));
	if (!looked)
		return;
	pthread_mutex_lock(&p->lock);
	policy_look(&p->policy, infos, count, clock_mono_ns());
	pthread_mutex_unlock(&p->lock);
	while ((i = next_due(p, infos, count, looked, space)) >= 0) {
		memset(&err, 0, sizeof(err));
		p->env.pace = p->params.config->push_rate && !space ? pace : NULL;
		pusher_push(p, &infos[i], false, NULL, &result, &err);
		p->env.pace = NULL;
	}
}

static void end_readers(struct pusher *p)
{
	struct readers_env env = {
		.loop = p->params.loop,
		.agent = p->params.agent,
		.cache = p->params.cache,
		.timeout_ms = REPORT_TIMEOUT_MS,
	};
	struct error err = { 0 };
	int r;

	pusher_holder(p, &env.holder);
	r = pusher_need_cluster(p, &err);
	env.cluster = p->servers.cluster;
	if (!r)
		r = readers_end_gone(&env, &err);
	p->readers = r ? READERS_LEFT : READERS_TOLD;
	if (r)
		log_debug("the meta server will be told later which volumes have gone: %s", err.text);
}

/* Only hints, and only while the meta server is there: pushes do not wait for it. */
static void report_leases(struct pusher *p)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	uint64_t now = clock_mono_ns();
	struct error err = { 0 };
	struct uuid cache;
	size_t count;

	pusher_holder(p, &cache);
	if (!lease_report_is_due(&p->report, now) || uuid_is_null(&cache) ||
	    cache_volumes(p->params.cache, &infos, &count))
		return;
	p->report.tried_ns = now;
	if (!count && !p->servers.cluster && p->readers != READERS_LEFT)
		return;
	if (p->readers != READERS_TOLD)
		end_readers(p);
	if (count && !pusher_need_cluster(p, &err))
		lease_report_send(&p->report, p->servers.cluster, &cache, infos, count, now,
				  REPORT_TIMEOUT_MS);
}

/* ---- the thread ---- */

static struct pusher_task *take_task(struct pusher *p)
{
	struct pusher_task *task = p->first;

	if (task) {
		p->first = task->next;
		if (!p->first)
			p->last = &p->first;
	}
	return task;
}

static bool something_wanted(struct pusher *p)
{
	return p->want_space || p->want_look || policy_has_wish(&p->policy, clock_mono_ns());
}

/* Waits for a task, a wish, the end, or the next look at the volumes. Under the lock. */
static void wait_for_some(struct pusher *p)
{
	uint64_t until_ns = clock_mono_ns() + LOOK_EVERY_MS * 1000000ULL;

	while (!p->first && !p->stop && !something_wanted(p))
		if (clock_cond_wait(&p->some, &p->lock, until_ns) == ETIMEDOUT)
			break;
}

static void *pusher_thread(void *arg)
{
	struct pusher *p = arg;
	struct pusher_task *task;
	bool space;

	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		wait_for_some(p);
		task = take_task(p);
		space = p->want_space && !task;
		if (space)
			p->want_space = false;
		if (!task)
			p->want_look = false;
		pthread_mutex_unlock(&p->lock);
		if (task)
			pusher_run_task(p, task);
		else
			push_what_is_due(p, space);
		pthread_mutex_lock(&p->lock);
		if (p->stop || p->first)
			continue;
		pthread_mutex_unlock(&p->lock);
		/* Behind all that is asked for: nobody waits for this. */
		if (p->readers == READERS_GONE)
			end_readers(p);
		report_leases(p);
		pthread_mutex_lock(&p->lock);
	}
	while ((task = take_task(p))) {
		error_set(&task->err, -ECANCELED, "the agent is ending");
		loop_post(p->params.loop, &task->work);
	}
	p->ended = true;
	pthread_cond_broadcast(&p->some);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* ---- the loop's side ---- */

void pusher_submit(struct pusher *p, struct pusher_task *task)
{
	task->next = NULL;
	pthread_mutex_lock(&p->lock);
	*p->last = task;
	p->last = &task->next;
	pthread_cond_broadcast(&p->some);
	pthread_mutex_unlock(&p->lock);
}

void pusher_set_cache(struct pusher *p, const struct uuid *cache)
{
	pthread_mutex_lock(&p->lock);
	p->cache_uuid = *cache;
	pthread_mutex_unlock(&p->lock);
}

void pusher_want(struct pusher *p, uint64_t volume, enum agent_push_reason why)
{
	pthread_mutex_lock(&p->lock);
	if (why == AGENT_PUSH_CLOSE)
		policy_want(&p->policy, volume);
	if (why == AGENT_PUSH_SPACE)
		p->want_space = true;
	if (why == AGENT_PUSH_DIRTY)
		p->want_look = true;
	pthread_cond_broadcast(&p->some);
	pthread_mutex_unlock(&p->lock);
}

void pusher_stats(struct pusher *p, struct pusher_stats *stats)
{
	const struct policy_volume *v;
	char now[80] = "";

	pthread_mutex_lock(&p->lock);
	*stats = p->stats;
	if (p->pushing)
		push_cluster_trouble(&p->servers, now, sizeof(now));
	v = policy_in_trouble(&p->policy);
	if (now[0])
		snprintf(stats->trouble, sizeof(stats->trouble), "push of %.40s waits: %s",
			 p->pushing_name, now);
	else if (v)
		snprintf(stats->trouble, sizeof(stats->trouble), "push of %.40s waits: %s", v->name,
			 v->trouble);
	pthread_mutex_unlock(&p->lock);
}

void pusher_trouble(struct pusher *p, uint64_t id, char text[256])
{
	pthread_mutex_lock(&p->lock);
	text[0] = 0;
	if (p->pushing == id)
		push_cluster_trouble(&p->servers, text, 256);
	if (!text[0])
		snprintf(text, 256, "%s", policy_trouble(&p->policy, id));
	pthread_mutex_unlock(&p->lock);
}

struct pusher *pusher_new(const struct pusher_params *params, struct error *err)
{
	struct pusher *p = calloc(1, sizeof(*p));
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (!p) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	p->params = *params;
	p->policy.bounds = (struct push_bounds){ params->config->push_age_s * 1000,
						 params->config->push_bytes,
						 params->config->push_rate };
	p->last = &p->first;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->some, NULL);
	push_cluster_init(&p->servers, params->nodes);
	p->env.cache = params->cache;
	p->env.net = &p->servers.net;
	p->env.net_ctx = &p->servers;
	p->env.for_each = for_each;
	p->env.find_slots = find_slots;
	p->env.clean_slots = clean_slots;
	p->env.ctx = p;
	p->pool = pool_new(params->loop, "hash", (unsigned int)MIN(MAX(cpus, 1), 4));
	if (!p->pool || pthread_create(&p->thread, NULL, pusher_thread, p)) {
		error_set(err, -EAGAIN, "cannot start the threads that push");
		pool_free(p->pool);
		free(p);
		return NULL;
	}
	pthread_setname_np(p->thread, "push");
	return p;
}

void pusher_stop(struct pusher *p)
{
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->some);
	pthread_mutex_unlock(&p->lock);
}

bool pusher_has_ended(struct pusher *p)
{
	bool ended;

	pthread_mutex_lock(&p->lock);
	ended = p->ended;
	pthread_mutex_unlock(&p->lock);
	return ended;
}

void pusher_free(struct pusher *p)
{
	unsigned int i;

	if (!p)
		return;
	pthread_join(p->thread, NULL);
	pool_free(p->pool);
	for (i = 0; i < PUSH_CHUNK; i++)
		if (p->env.hashers[i])
			fp_hasher_free(p->env.hashers[i]);
	if (p->servers.cluster)
		cluster_close(p->servers.cluster);
	pthread_cond_destroy(&p->some);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
