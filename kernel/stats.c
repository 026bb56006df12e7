// SPDX-License-Identifier: GPL-2.0-only
/*
 * Status lines. INFO is words and key=value pairs; Documentation/dm-dedup.rst lists them.
 */
#include "dedup.h"

static void volume_sum(struct volume *vol, struct volume_stats *sum)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct volume_stats *s = per_cpu_ptr(vol->stats, cpu);

		sum->read_hits += s->read_hits;
		sum->read_misses += s->read_misses;
		sum->write_hits += s->write_hits;
		sum->write_opens += s->write_opens;
		sum->deferred += s->deferred;
		sum->flushes += s->flushes;
		sum->commits += s->commits;
	}
}

void cache_status(struct cache *c, char *result, unsigned int maxlen)
{
	struct volume_stats sum = {};
	struct cache_stats stats;
	u32 state[NR_SLOT_STATES];
	unsigned int sz = 0;
	struct volume *vol;
	u32 misses, pool;

	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		volume_sum(vol, &sum);
	mutex_unlock(&c->mutex);
	spin_lock(&c->lock);
	stats = c->stats;
	memcpy(state, c->nr_state, sizeof(state));
	misses = c->nr_misses;
	pool = c->nr_pool;
	spin_unlock(&c->lock);

	DMEMIT("%pUb %s agent=%d block=%u slots=%u free=%u pool=%u filling=%u clean=%u dirty=%u",
	       c->info->cache_uuid, c->error ? "failed" : "rw", channel_has_agent(c->channel),
	       c->block_sectors << SECTOR_SHIFT, c->nr_slots, state[SLOT_FREE], pool,
	       state[SLOT_FILLING], state[SLOT_CLEAN], state[SLOT_DIRTY]);
	DMEMIT(" zero=%u freeing=%u retired=%u volumes=%u waiting=%u", READ_ONCE(c->nr_zero),
	       state[SLOT_FREEING], c->nr_retired, c->nr_volumes, misses);
	DMEMIT(" read_hits=%llu read_misses=%llu write_hits=%llu write_opens=%llu deferred=%llu",
	       sum.read_hits, sum.read_misses, sum.write_hits, sum.write_opens, sum.deferred);
	DMEMIT(" publishes=%llu maps=%llu fails=%llu stale=%llu evictions=%llu cuts=%llu",
	       stats.publishes, stats.maps, stats.fails, stats.stale, stats.evictions,
	       stats.cuts);
	DMEMIT(" commits=%llu space_waits=%llu memory=%llu", stats.commits, stats.space_waits,
	       c->memory);
}

void volume_status(struct volume *vol, char *result, unsigned int maxlen)
{
	struct cache *c = vol->cache;
	struct dm_dedup_volume_info *info = kmalloc(sizeof(*info), GFP_NOIO);
	struct volume_stats sum = {};
	unsigned int sz = 0;
	const char *mode = "rw";

	if (!info) {
		DMEMIT("Error");
		return;
	}
	volume_sum(vol, &sum);
	spin_lock(&c->lock);
	volume_info(vol, info);
	spin_unlock(&c->lock);
	if (info->flags & DM_DEDUP_VOL_DIVERGED)
		mode = "diverged";
	else if (!(info->flags & DM_DEDUP_VOL_OPEN))
		mode = "closed";
	else if (test_bit(VOLUME_READONLY, &vol->state))
		mode = "ro";
	DMEMIT("%llu %pUb %s epoch=%llu cut=%llu closed_cut=%llu dirty=%llu oldest_ms=%llu",
	       info->volume, info->image, mode, info->lease_epoch, info->committed_cut,
	       info->closed_cut, info->dirty_bytes, info->oldest_ms);
	DMEMIT(" read_hits=%llu read_misses=%llu write_hits=%llu write_opens=%llu deferred=%llu",
	       sum.read_hits, sum.read_misses, sum.write_hits, sum.write_opens, sum.deferred);
	DMEMIT(" flushes=%llu commits=%llu", sum.flushes, sum.commits);
	kfree(info);
}
