// SPDX-License-Identifier: GPL-2.0-only
/*
 * Status lines, messages, and what they tell. INFO is words and key=value pairs;
 * Documentation/dm-dedup.rst lists them.
 */
#include <linux/slab.h>
#include "dedup.h"
#define CREATE_TRACE_POINTS
#include "trace.h"

/* ---- counters ---- */

/* Hits count on each CPU for itself; a sum is taken when somebody asks. */
static void volume_sum(struct volume *vol, struct volume_stats *sum)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct volume_stats *s = per_cpu_ptr(vol->stats, cpu);

		sum->read_base += s->read_base;
		sum->read_overlay += s->read_overlay;
		sum->read_zero += s->read_zero;
		sum->read_misses += s->read_misses;
		sum->write_hits += s->write_hits;
		sum->write_opens += s->write_opens;
		sum->write_zero += s->write_zero;
		sum->deferred += s->deferred;
		sum->flushes += s->flushes;
		sum->commits += s->commits;
	}
}

/* What a guest has read and written, for who asks whether it does. */
u64 volume_ios(struct volume *vol)
{
	struct volume_stats sum = {};

	volume_sum(vol, &sum);
	return sum.read_base + sum.read_overlay + sum.read_zero + sum.read_misses +
	       sum.write_hits + sum.write_opens + sum.write_zero;
}

/* A miss was answered after @us microseconds. */
void fetched_add(struct volume *vol, u64 us)
{
	struct volume_fetched *f = &vol->fetched;

	lockdep_assert_held(&vol->cache->lock);
	f->latency[min(fls64(us), DEDUP_LATENCIES - 1)]++;
	f->total_us += us;
	f->max_us = max(f->max_us, us);
}

static void fetched_sum(struct volume_fetched *sum, const struct volume_fetched *f)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(f->from); i++)
		sum->from[i] += f->from[i];
	for (i = 0; i < ARRAY_SIZE(f->latency); i++)
		sum->latency[i] += f->latency[i];
	sum->mapped += f->mapped;
	sum->zero += f->zero;
	sum->failed += f->failed;
	sum->total_us += f->total_us;
	sum->max_us = max(sum->max_us, f->max_us);
}

static u64 fetched_nr(const struct volume_fetched *f)
{
	u64 nr = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(f->latency); i++)
		nr += f->latency[i];
	return nr;
}

/* Each CPU's counters are its own: what it counts meanwhile may be lost. */
static void volume_reset(struct volume *vol)
{
	int cpu;

	for_each_possible_cpu(cpu)
		memset(per_cpu_ptr(vol->stats, cpu), 0, sizeof(*vol->stats));
	spin_lock(&vol->cache->lock);
	memset(&vol->fetched, 0, sizeof(vol->fetched));
	spin_unlock(&vol->cache->lock);
}

/* ---- status ---- */

/* What the status of a volume, or of all volumes of a cache, is made of. */
struct totals {
	struct volume_stats hits;
	struct volume_fetched fetched;
	u64 dirty_sectors;
	u64 oldest_ms;
};

static void totals_add(struct volume *vol, struct totals *t)
{
	struct cache *c = vol->cache;
	u64 age;

	volume_sum(vol, &t->hits);
	spin_lock(&c->lock);
	fetched_sum(&t->fetched, &vol->fetched);
	t->dirty_sectors += vol->nr_valid;
	age = vol->nr_dirty ? jiffies64_to_msecs(get_jiffies_64() - vol->oldest_dirty) : 0;
	spin_unlock(&c->lock);
	t->oldest_ms = max(t->oldest_ms, age);
}

static unsigned int emit_totals(const struct totals *t, char *result, unsigned int maxlen,
				unsigned int sz)
{
	const struct volume_stats *s = &t->hits;
	const struct volume_fetched *f = &t->fetched;
	u64 nr = fetched_nr(f);

	DMEMIT(" dirty_written=%llu oldest_ms=%llu", t->dirty_sectors << SECTOR_SHIFT,
	       t->oldest_ms);
	DMEMIT(" read_hits=%llu read_base=%llu read_overlay=%llu read_zero=%llu read_misses=%llu",
	       s->read_base + s->read_overlay + s->read_zero, s->read_base, s->read_overlay,
	       s->read_zero, s->read_misses);
	DMEMIT(" write_hits=%llu write_opens=%llu write_zero=%llu deferred=%llu flushes=%llu",
	       s->write_hits, s->write_opens, s->write_zero, s->deferred, s->flushes);
	DMEMIT(" flush_commits=%llu", s->commits);
	DMEMIT(" from_peer=%llu from_data=%llu from_unknown=%llu mapped=%llu mapped_zero=%llu",
	       f->from[DM_DEDUP_SOURCE_PEER], f->from[DM_DEDUP_SOURCE_DATA],
	       f->from[DM_DEDUP_SOURCE_UNKNOWN], f->mapped, f->zero);
	DMEMIT(" miss_failed=%llu miss_avg_us=%llu miss_max_us=%llu", f->failed,
	       nr ? div64_u64(f->total_us, nr) : 0, f->max_us);
	return sz;
}

/* What the cache has besides its volumes. */
struct cache_now {
	struct cache_stats stats;
	u32 state[NR_SLOT_STATES];
	u32 misses;
	u32 pool;
	u32 space_bios;
	u64 space_ms;
};

static void cache_look(struct cache *c, struct cache_now *now)
{
	u64 since = get_jiffies_64(), jiffies_now = since;
	struct bio *bio;

	spin_lock(&c->lock);
	now->stats = c->stats;
	memcpy(now->state, c->nr_state, sizeof(now->state));
	now->misses = c->nr_misses;
	now->pool = c->nr_pool;
	now->space_bios = 0;
	bio_list_for_each(bio, &c->space_bios) {
		now->space_bios++;
		since = min(since, bio_data_of(bio)->since);
	}
	spin_unlock(&c->lock);
	now->space_ms = jiffies64_to_msecs(jiffies_now - since);
}

static unsigned int emit_cache(struct cache *c, char *result, unsigned int maxlen)
{
	struct cache_now now;
	unsigned int sz = 0;
	u32 unsent, sent;

	cache_look(c, &now);
	channel_count(c->channel, &unsent, &sent);
	DMEMIT("%pUb %s agent=%d block=%u slots=%u free=%u pool=%u filling=%u clean=%u dirty=%u",
	       c->info->cache_uuid, cache_mode_name(c), channel_has_agent(c->channel),
	       c->block_sectors << SECTOR_SHIFT, c->nr_slots, now.state[SLOT_FREE], now.pool,
	       now.state[SLOT_FILLING], now.state[SLOT_CLEAN], now.state[SLOT_DIRTY]);
	DMEMIT(" zero=%u freeing=%u retired=%u bad=%u reserve=%u volumes=%u waiting=%u",
	       READ_ONCE(c->nr_zero), now.state[SLOT_FREEING], c->nr_retired,
	       READ_ONCE(c->nr_bad), c->reserve, c->nr_volumes, now.misses);
	DMEMIT(" upcalls_unsent=%u upcalls_sent=%u writes_waiting=%u writes_waiting_ms=%llu",
	       unsent, sent, now.space_bios, now.space_ms);
	DMEMIT(" publishes=%llu maps=%llu fails=%llu stale=%llu evictions=%llu cuts=%llu",
	       now.stats.publishes, now.stats.maps, now.stats.fails, now.stats.stale,
	       now.stats.evictions, now.stats.cuts);
	DMEMIT(" commits=%llu appends=%llu space_waits=%llu", now.stats.commits,
	       now.stats.appends, now.stats.space_waits);
	DMEMIT(" memory=%llu memory_fixed=%llu max_memory=%llu map_reclaims=%llu",
	       (u64)atomic64_read(&c->memory), c->memory_fixed, c->max_memory,
	       READ_ONCE(c->map_reclaims));
	return sz;
}

void cache_status(struct cache *c, char *result, unsigned int maxlen)
{
	struct totals *t = kzalloc(sizeof(*t), GFP_NOIO);
	unsigned int sz = emit_cache(c, result, maxlen);
	struct volume *vol;

	if (!t)
		return;
	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		totals_add(vol, t);
	mutex_unlock(&c->mutex);
	emit_totals(t, result, maxlen, sz);
	kfree(t);
}

static const char *volume_mode(struct volume *vol, u32 flags)
{
	if (flags & DM_DEDUP_VOL_DIVERGED)
		return "diverged";
	if (!(flags & DM_DEDUP_VOL_OPEN))
		return "closed";
	return test_bit(VOLUME_READONLY, &vol->state) ? "ro" : "rw";
}

void volume_status(struct volume *vol, char *result, unsigned int maxlen)
{
	struct dm_dedup_volume_info *info = kmalloc(sizeof(*info), GFP_NOIO);
	struct totals *t = kzalloc(sizeof(*t), GFP_NOIO);
	struct cache *c = vol->cache;
	unsigned int sz = 0;

	if (!info || !t) {
		DMEMIT("Error");
		goto out;
	}
	totals_add(vol, t);
	spin_lock(&c->lock);
	volume_info(vol, info);
	spin_unlock(&c->lock);
	DMEMIT("%llu %pUb %s epoch=%llu cut=%llu closed_cut=%llu size=%llu dirty=%llu",
	       info->volume, info->image, volume_mode(vol, info->flags), info->lease_epoch,
	       info->committed_cut, info->closed_cut, info->size, info->dirty_bytes);
	emit_totals(t, result, maxlen, sz);
out:
	kfree(t);
	kfree(info);
}

/* ---- messages ---- */

/* Lines of "from to count", in microseconds, of what is not zero. */
static void emit_histogram(const struct volume_fetched *f, char *result, unsigned int maxlen)
{
	unsigned int sz = 0;
	unsigned int i;

	for (i = 0; i < DEDUP_LATENCIES; i++) {
		if (!f->latency[i])
			continue;
		if (i == DEDUP_LATENCIES - 1)
			DMEMIT("%llu - %llu\n", 1ULL << (i - 1), f->latency[i]);
		else
			DMEMIT("%llu %llu %llu\n", i ? 1ULL << (i - 1) : 0ULL, 1ULL << i,
			       f->latency[i]);
	}
}

static int cache_histogram(struct cache *c, char *result, unsigned int maxlen)
{
	struct volume_fetched *sum = kzalloc(sizeof(*sum), GFP_KERNEL);
	struct volume *vol;

	if (!sum)
		return -ENOMEM;
	mutex_lock(&c->mutex);
	spin_lock(&c->lock);
	list_for_each_entry(vol, &c->volumes, list)
		fetched_sum(sum, &vol->fetched);
	spin_unlock(&c->lock);
	mutex_unlock(&c->mutex);
	emit_histogram(sum, result, maxlen);
	kfree(sum);
	/* There is a result to copy out. */
	return 1;
}

static int volume_histogram(struct volume *vol, char *result, unsigned int maxlen)
{
	struct volume_fetched *f = kmalloc(sizeof(*f), GFP_KERNEL);

	if (!f)
		return -ENOMEM;
	spin_lock(&vol->cache->lock);
	*f = vol->fetched;
	spin_unlock(&vol->cache->lock);
	emit_histogram(f, result, maxlen);
	kfree(f);
	return 1;
}

static int cache_evict(struct cache *c, const char *arg)
{
	u32 nr;

	if (kstrtouint(arg, 10, &nr))
		return -EINVAL;
	/* What would be freed could not be used again, and is all that can still be read. */
	if (dedup_store_error(c->store))
		return dedup_store_error(c->store);
	if (READ_ONCE(c->error))
		return READ_ONCE(c->error);
	evict_now(c, nr);
	return dedup_store_sync(c->store);
}

static void cache_reset(struct cache *c)
{
	struct volume *vol;

	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		volume_reset(vol);
	mutex_unlock(&c->mutex);
	spin_lock(&c->lock);
	memset(&c->stats, 0, sizeof(c->stats));
	spin_unlock(&c->lock);
}

/* Messages to a cache's device. */
int cache_command(struct cache *c, unsigned int argc, char **argv, char *result,
		  unsigned int maxlen)
{
	if (argc == 1 && !strcasecmp(argv[0], "commit"))
		return dedup_store_sync(c->store);
	if (argc == 1 && !strcasecmp(argv[0], "histogram"))
		return cache_histogram(c, result, maxlen);
	if (argc == 2 && !strcasecmp(argv[0], "evict"))
		return cache_evict(c, argv[1]);
	if (argc == 1 && !strcasecmp(argv[0], "fail_parked")) {
		cache_fail_parked(c);
		return 0;
	}
	if (argc == 1 && !strcasecmp(argv[0], "reset_stats")) {
		cache_reset(c);
		return 0;
	}
	DMERR("unknown message: commit, evict SLOTS, fail_parked, histogram, reset_stats are known");
	return -EINVAL;
}

/* Messages to a volume's device. */
int volume_command(struct volume *vol, unsigned int argc, char **argv, char *result,
		   unsigned int maxlen)
{
	if (argc == 1 && !strcasecmp(argv[0], "fail_parked")) {
		volume_fail_parked(vol);
		return 0;
	}
	if (argc == 1 && !strcasecmp(argv[0], "histogram"))
		return volume_histogram(vol, result, maxlen);
	if (argc == 1 && !strcasecmp(argv[0], "reset_stats")) {
		volume_reset(vol);
		return 0;
	}
	DMERR("unknown message: fail_parked, histogram, reset_stats are known");
	return -EINVAL;
}
