// SPDX-License-Identifier: GPL-2.0-only
/*
 * The space worker: keeps slots and overlay descriptors ready, by eviction from the CLEAN slots
 * and by taking freed slots back; and the tick, once a second, for what depends on time.
 */
#include "dedup.h"
#include "trace.h"

#define EVICT_BATCH	256U	/* slots looked at under one hold of the lock */
#define DIRTY_EVENT_GAP	(5 * HZ)
#define UNPIN_TICKS	4U	/* seconds, from one time that misses' leaves count as unpinned to the next */

void space_kick(struct cache *c)
{
	queue_work(c->wq, &c->space_work);
}

/*
 * The reserve is what only PUBLISH may take: the larger of 64 and 0.5 %, but of a tiny cache
 * never more than a sixteenth.
 */
void space_set_reserve(struct cache *c)
{
	u32 n = c->nr_slots;

	c->reserve = min(max(64U, n / 200), n / 16);
	c->max_zero = n / 16;
}

void space_default_marks(struct cache *c, u32 *low, u32 *high)
{
	u32 step = min(max(64U, c->nr_slots / 100), c->nr_slots / 16);

	*low = c->reserve + step;
	*high = *low + step;
}

/* Second chance: a slot that was read since the hand passed it last stays for another round. */
static u32 evict_batch(struct cache *c, u32 want, u32 *looked)
{
	u32 freed = 0, i;

	spin_lock(&c->lock);
	for (i = 0; i < EVICT_BATCH && freed < want; i++) {
		struct slot *s = &c->slots[c->hand];

		if (s->state == SLOT_CLEAN) {
			if (s->ref) {
				s->ref = 0;
			} else {
				trace_dedup_evict(c->hand, s->seq);
				slot_free(c, c->hand);
				c->stats.evictions++;
				freed++;
			}
		}
		if (++c->hand == c->nr_slots)
			c->hand = 0;
	}
	spin_unlock(&c->lock);
	*looked += i;
	return freed;
}

/* How many slots are missing to the upper mark, those on their way counted in. */
static u32 evict_want(struct cache *c)
{
	u32 coming, want = 0;

	spin_lock(&c->lock);
	coming = c->nr_pool + c->nr_state[SLOT_FREEING];
	if (c->nr_pool < c->low && coming < c->high && !c->error)
		want = min(c->high - coming, c->nr_state[SLOT_CLEAN]);
	spin_unlock(&c->lock);
	return want;
}

/* Gives up @want CLEAN slots, or as many as there are. Returns how many. */
u32 evict_now(struct cache *c, u32 want)
{
	u32 freed = 0, looked = 0;

	/* Two rounds take every CLEAN slot that is not read while the hand moves. */
	while (freed < want && looked / 2 < c->nr_slots) {
		freed += evict_batch(c, want - freed, &looked);
		cond_resched();
	}
	/* No store: a test plays it. */
	if (freed && c->store)
		dedup_store_commit(c->store);
	return freed;
}

/*
 * Writers wait, and what is on its way to the pool is not enough for them; or reads wait for memory
 * that is all pinned. Only a push can help.
 */
static void space_say(struct cache *c, bool reads_wait)
{
	struct dm_dedup_volume_info info = {};
	u32 freeing;
	bool say;

	spin_lock(&c->lock);
	freeing = c->nr_state[SLOT_FREEING];
	say = !bio_list_empty(&c->space_bios) &&
	      (!freeing || c->nr_pool + freeing <= c->reserve || !overlays_ready(c));
	say |= reads_wait && c->nr_state[SLOT_DIRTY];
	info.dirty_bytes = (u64)c->nr_state[SLOT_DIRTY] << (c->sector_shift + SECTOR_SHIFT);
	spin_unlock(&c->lock);
	/* A cache that is being opened has none yet. */
	if (say && c->channel)
		channel_event(c->channel, &c->space_event, &info);
}

void space_work(struct work_struct *work)
{
	struct cache *c = container_of(work, struct cache, space_work);
	bool reads_wait = false;

	slots_reclaim(c);
	if (READ_ONCE(c->closing))
		return;
	overlays_refill(c);
	evict_now(c, evict_want(c));
	if (READ_ONCE(c->nr_pool))
		wake_up_all(&c->slot_wait);
	if (maps_reclaim(c)) {
		misses_ended(c);
		space_waiters_run(c, true);
	} else {
		reads_wait = READ_ONCE(c->maps_full);
		space_waiters_run(c, false);
	}
	space_say(c, reads_wait);
	if (READ_ONCE(c->error) && READ_ONCE(c->mode) == CACHE_RW)
		queue_work(c->wq, &c->health_work);
}

/* Asks the agent for a push of what is older or larger than the bounds. */
static void dirty_say(struct cache *c, struct volume *vol, u64 now)
{
	struct dm_dedup_volume_info *info;
	bool say;

	spin_lock(&c->lock);
	say = vol->nr_dirty && !(vol->rec.flags & DEDUP_VOL_EPHEMERAL) &&
	      now - vol->dirty_event_at >= DIRTY_EVENT_GAP &&
	      ((vol->nr_dirty << (c->sector_shift + SECTOR_SHIFT)) > c->dirty_bytes ||
	       now - vol->oldest_dirty > (u64)c->dirty_age * HZ);
	spin_unlock(&c->lock);
	info = say ? kmalloc(sizeof(*info), GFP_NOIO) : NULL;
	if (!info)
		return;
	vol->dirty_event_at = now;
	spin_lock(&c->lock);
	volume_info(vol, info);
	spin_unlock(&c->lock);
	channel_event(c->channel, &vol->dirty_event, info);
	kfree(info);
}

/*
 * Leaves that misses kept may be given up for writes by now. Not at each end of a miss: reads would lose
 * all leaves, miss again, and so on.
 */
static void misses_unpin(struct cache *c)
{
	bool ended;

	if (++c->unpin_ticks < UNPIN_TICKS)
		return;
	c->unpin_ticks = 0;
	spin_lock(&c->lock);
	ended = c->miss_ended;
	c->miss_ended = false;
	spin_unlock(&c->lock);
	if (ended)
		memory_unpinned(c);
}

void tick_work(struct work_struct *work)
{
	struct cache *c = container_of(to_delayed_work(work), struct cache, tick_work);
	u64 now = get_jiffies_64();
	struct volume *vol;

	misses_tick(c);
	misses_unpin(c);
	space_waiters_expire(c);
	/* Some may wait for a slot only, behind those that wait for room in a map. */
	if (READ_ONCE(c->maps_full))
		space_waiters_run(c, true);
	health_tick(c);
	space_kick(c);
	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		dirty_say(c, vol, now);
	mutex_unlock(&c->mutex);
	queue_delayed_work(c->wq, &c->tick_work, HZ);
}
