// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The cache's thread. The device may come late, go, and come again (the module is reloaded, the
 * host's disk is attached after the agent): it is looked for as long as the agent runs.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "agent/daemon.h"
#include "base/log.h"

#define RETRY_FIRST_MS 100
#define RETRY_LAST_MS  2000
#define UPCALLS_A_READ 64
#define READ_WAIT_MS   60000
#define PARAMS_WAIT_MS 3000

struct cache_event {
	struct daemon *d;
	const struct dm_dedup_hello *hello;
	struct dm_dedup_volume_info *volumes;
	const struct dm_dedup_clean_entry *clean;
	const struct dm_dedup_upcall *ups;
	size_t count;
	const char *text;
	int r;
};

/* ---- on the loop's thread ---- */

/* Blocks of another size or of another cluster must not meet in one cache. */
static int check_cluster(struct daemon *d, const struct dm_dedup_hello *hello, char *text,
			 size_t size)
{
	static const struct uuid any;
	struct cluster_params p;

	if (!network_params(d->network, &p))
		return 0; /* no meta server yet: what comes is checked block by block */
	if (hello->block_shift != p.block_shift) {
		snprintf(text, size,
			 "the cache has blocks of %llu bytes, the cluster of %llu: format a cache "
			 "for this cluster",
			 1ULL << hello->block_shift, 1ULL << p.block_shift);
		return -EINVAL;
	}
	if (memcmp(hello->cluster, any.b, sizeof(any.b)) &&
	    memcmp(hello->cluster, p.uuid.b, sizeof(p.uuid.b))) {
		snprintf(text, size, "the cache was formatted for another cluster");
		return -EINVAL;
	}
	return 0;
}

static void on_connect(void *arg)
{
	struct cache_event *e = arg;
	struct daemon *d = e->d;
	struct uuid uuid;

	e->r = check_cluster(d, e->hello, d->cache_trouble, sizeof(d->cache_trouble));
	if (e->r) {
		log_error("%s", d->cache_trouble);
		return;
	}
	d->hello = *e->hello;
	memcpy(uuid.b, e->hello->cache, sizeof(uuid.b));
	pusher_set_cache(d->pusher, &uuid);
	e->r = agent_connected(d->agent, e->hello, e->volumes, e->count);
	if (e->r)
		snprintf(d->cache_trouble, sizeof(d->cache_trouble),
			 "no memory for the index of %llu slots",
			 (unsigned long long)e->hello->nr_slots);
	else
		d->cache_trouble[0] = 0;
}

static void on_clean(void *arg)
{
	struct cache_event *e = arg;

	agent_clean_slots(e->d->agent, e->clean, e->count);
}

static void on_upcalls(void *arg)
{
	struct cache_event *e = arg;

	agent_upcalls(e->d->agent, e->ups, e->count);
}

static void on_disconnect(void *arg)
{
	struct cache_event *e = arg;

	agent_disconnected(e->d->agent);
	snprintf(e->d->cache_trouble, sizeof(e->d->cache_trouble), "%s", e->text);
}

/* ---- on the cache's thread ---- */

static bool stopping(struct daemon *d)
{
	bool stop;

	pthread_mutex_lock(&d->stop_lock);
	stop = d->stop;
	pthread_mutex_unlock(&d->stop_lock);
	return stop;
}

static void pause_unless_stopping(struct daemon *d, int ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)(ms % 1000) * 1000000L;
	until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	pthread_mutex_lock(&d->stop_lock);
	while (!d->stop)
		if (pthread_cond_timedwait(&d->stop_cond, &d->stop_lock, &until) == ETIMEDOUT)
			break;
	pthread_mutex_unlock(&d->stop_lock);
}

static int hand_over(struct daemon *d, const struct dm_dedup_hello *hello)
{
	struct cache_event e = { .d = d, .hello = hello };
	int r;

	r = cache_volumes(d->cache, &e.volumes, &e.count);
	if (r)
		return r;
	if (!loop_call(d->loop, on_connect, &e))
		e.r = -ECANCELED;
	free(e.volumes);
	return e.r;
}

static int read_upcalls(struct daemon *d, struct dm_dedup_upcall *ups, int timeout_ms)
{
	struct cache_event e = { .d = d, .ups = ups };
	ssize_t n;

	n = d->cache->ops->read(d->cache, ups, UPCALLS_A_READ, timeout_ms);
	if (n <= 0)
		return (int)n;
	e.count = (size_t)n;
	return loop_call(d->loop, on_upcalls, &e) ? 0 : -ECANCELED;
}

/* Tells the core what the cache holds, without letting misses wait until all is told. */
static int list_clean(struct daemon *d, struct dm_dedup_upcall *ups)
{
	struct dm_dedup_clean_entry *clean;
	struct cache_event e = { .d = d };
	uint64_t cursor = 0, before;
	int r = 0;

	clean = calloc(DM_DEDUP_MAX_BATCH, sizeof(*clean));
	if (!clean)
		return -ENOMEM;
	while (!r && cursor != ~0ULL && !stopping(d)) {
		before = cursor;
		e.count = DM_DEDUP_MAX_BATCH;
		r = d->cache->ops->list_clean(d->cache, &cursor, clean, &e.count);
		if (r || (cursor == before && !e.count))
			break;
		e.clean = clean;
		if (e.count && !loop_call(d->loop, on_clean, &e))
			r = -ECANCELED;
		if (!r)
			r = read_upcalls(d, ups, 0);
	}
	free(clean);
	return r;
}

static int serve_connection(struct daemon *d, const struct dm_dedup_hello *hello,
			    struct dm_dedup_upcall *ups)
{
	int r;

	r = hand_over(d, hello);
	if (r)
		return r;
	log_info("connected to the cache: %llu slots of %llu KiB",
		 (unsigned long long)hello->nr_slots, (1ULL << hello->block_shift) / 1024);
	r = list_clean(d, ups);
	while (!r && !stopping(d))
		r = read_upcalls(d, ups, READ_WAIT_MS);
	return r;
}

static void tell_disconnect(struct daemon *d, const char *text)
{
	struct cache_event e = { .d = d, .text = text };

	loop_call(d->loop, on_disconnect, &e);
}

/* The check of block size and cluster needs the meta server's word; an agent that starts without
 * any goes on after a while, on what the cache's records hold. */
static void wait_for_params(struct daemon *d)
{
	struct cluster_params p;
	int waited;

	for (waited = 0; waited < PARAMS_WAIT_MS && !network_params(d->network, &p); waited += 20)
		pause_unless_stopping(d, 20);
}

static void *cache_thread(void *arg)
{
	struct dm_dedup_upcall *ups = calloc(UPCALLS_A_READ, sizeof(*ups));
	struct daemon *d = arg;
	struct dm_dedup_hello hello;
	struct error err, told = { 0 };
	int pause_ms = RETRY_FIRST_MS, r;

	wait_for_params(d);
	while (ups && !stopping(d)) {
		memset(&err, 0, sizeof(err));
		r = d->cache->ops->connect(d->cache, &hello, &err);
		if (r) {
			if (strcmp(err.text, told.text))
				log_warn("waiting for the cache: %s", err.text);
			tell_disconnect(d, err.text);
		} else {
			r = serve_connection(d, &hello, ups);
			d->cache->ops->disconnect(d->cache);
			if (!stopping(d) && r != -EINVAL && r != -ENOMEM) {
				error_set(&err, r, "the cache has gone: %s", strerror(-r));
				log_warn("%s", err.text);
				tell_disconnect(d, err.text);
				pause_ms = RETRY_FIRST_MS;
			}
		}
		told = err;
		pause_unless_stopping(d, pause_ms);
		pause_ms = pause_ms * 2 < RETRY_LAST_MS ? pause_ms * 2 : RETRY_LAST_MS;
	}
	free(ups);
	pthread_mutex_lock(&d->stop_lock);
	d->cache_ended = true;
	pthread_mutex_unlock(&d->stop_lock);
	return NULL;
}

int daemon_start_cache(struct daemon *d, struct error *err)
{
	int r = -pthread_create(&d->cache_thread, NULL, cache_thread, d);

	if (r)
		return error_set(err, r, "cannot start the cache's thread: %s", strerror(-r));
	pthread_setname_np(d->cache_thread, "cache");
	d->cache_runs = true;
	return 0;
}

void daemon_stop_cache(struct daemon *d)
{
	pthread_mutex_lock(&d->stop_lock);
	d->stop = true;
	pthread_cond_broadcast(&d->stop_cond);
	pthread_mutex_unlock(&d->stop_lock);
	if (d->cache)
		d->cache->ops->wake(d->cache);
}

bool daemon_cache_has_ended(struct daemon *d)
{
	bool ended;

	pthread_mutex_lock(&d->stop_lock);
	ended = !d->cache_runs || d->cache_ended;
	pthread_mutex_unlock(&d->stop_lock);
	return ended;
}
