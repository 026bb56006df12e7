// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a cache takes in memory, and its bound (max_memory).
 *
 * What follows from the disk's size is allocated and counted when the table is loaded, or the
 * table is refused: slots, the store, descriptors and misses up to their numbers' bounds. What
 * grows with use is counted where it is allocated:
 *
 *	overlays	at the bound none is made, writes wait like those that find no slot, and the
 *			agent is asked for a push, which frees some
 *	maps		at the bound leaves without overlays are given up: they name only what can be
 *			fetched again
 *
 * A read may need a leaf, and what is pinned stays until a push: overlays, leaves with overlays, and tops.
 * So these leave MEMORY_FOR_READS: none of them comes to be while less is left, and what is left and what
 * reads have taken of it are at least that much, whatever is written. (Only what a cache that is opened
 * finds on its disk, and the replacements of a COMMIT, may go beyond: then the agent is asked for a push,
 * which frees them.) Tops, which no push frees, leave what one write needs as well. A leaf of a block
 * that is waited for is not given up, or many such reads could take one another's for ever.
 */
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include "dedup.h"

#define RECLAIM_LEAVES	64U		/* given up with one drain */
#define RECLAIM_PART	32U		/* of the bound: what one reclaim makes free */
#define LEAF_BYTES_MAX	SZ_128K		/* in a volume of 64 TiB in blocks of 4 KiB */

/* Counts @bytes if they fit under the bound, and @keep beside them. Not on the hit path. */
bool memory_take(struct cache *c, u64 bytes, u64 keep)
{
	s64 now = atomic64_add_return(bytes, &c->memory);

	if (now + keep <= c->max_memory)
		return true;
	atomic64_sub(bytes, &c->memory);
	return false;
}

/* Counts what is not refused, for it soon gives back more. */
void memory_add(struct cache *c, u64 bytes)
{
	atomic64_add(bytes, &c->memory);
}

void memory_give(struct cache *c, u64 bytes)
{
	atomic64_sub(bytes, &c->memory);
}

u64 memory_left(struct cache *c)
{
	u64 now = atomic64_read(&c->memory);

	return c->max_memory > now ? c->max_memory - now : 0;
}

/*
 * What the cache takes from its opening to its end. The bios of guests that wait, and the copies
 * of a PUBLISH, of which an agent has as many under way as it has threads, are not the cache's.
 */
static u64 memory_fixed(struct cache *c, const struct dedup_store_info *info)
{
	return sizeof(*c) + slots_memory(info->nr_slots) + info->memory +
	       DEDUP_MAX_MISSES * (u64)kmalloc_size_roundup(sizeof(struct miss));
}

/* Counts what is the cache's own. Refused, with the figures, if nothing could be done with it. */
int memory_begin(struct cache *c, const struct dedup_store_info *info)
{
	u64 pool = DEDUP_OVERLAY_POOL * (u64)overlay_bytes(c);

	c->memory_fixed = memory_fixed(c, info);
	if (memory_take(c, c->memory_fixed + pool, MEMORY_FOR_READS + LEAF_BYTES_MAX)) {
		/* Each descriptor is counted when it is made. */
		memory_give(c, pool);
		return 0;
	}
	DMERR("%llu slots of %u KiB take %llu MiB of memory, max_memory is %llu MiB",
	      info->nr_slots, c->block_sectors / 2,
	      DIV_ROUND_UP_ULL(c->memory_fixed + pool + MEMORY_FOR_READS + LEAF_BYTES_MAX, SZ_1M),
	      c->max_memory >> 20);
	return -E2BIG;
}

/* ---- maps ---- */

static u64 top_bytes(u64 nr_leaves)
{
	return nr_leaves * sizeof(u64 *);
}

/* What a top leaves: for reads, and for one write, with a leaf and a full pool. */
static u64 top_keep(struct cache *c)
{
	u64 pool = DEDUP_OVERLAY_POOL - min(READ_ONCE(c->nr_overlay_pool), DEDUP_OVERLAY_POOL);

	return MEMORY_FOR_READS + LEAF_BYTES_MAX + pool * overlay_bytes(c);
}

/*
 * Before a top is allocated, and not under a mutex: the worker gives up maps for it. If it cannot, or
 * somebody else takes what it has made free, map_top_alloc() says so.
 */
void memory_make_room(struct cache *c, u64 nr_leaves)
{
	u64 bytes = top_bytes(nr_leaves) + top_keep(c);

	if (memory_left(c) >= bytes)
		return;
	spin_lock(&c->lock);
	c->room_wanted = max(c->room_wanted, bytes);
	spin_unlock(&c->lock);
	space_kick(c);
	flush_work(&c->space_work);
}

/* -E2BIG: more than max_memory. What the disk says is there, whatever it takes: no store yet. */
int map_top_alloc(struct cache *c, u64 nr_leaves, u64 ***top)
{
	*top = NULL;
	if (!memory_take(c, top_bytes(nr_leaves), c->store ? top_keep(c) : 0)) {
		DMERR("a map takes %llu KiB of memory, %llu KiB are left of max_memory",
		      DIV_ROUND_UP_ULL(top_bytes(nr_leaves), SZ_1K), memory_left(c) >> 10);
		return -E2BIG;
	}
	*top = kvcalloc(nr_leaves, sizeof(**top), GFP_KERNEL);
	if (*top)
		return 0;
	memory_give(c, top_bytes(nr_leaves));
	return -ENOMEM;
}

void map_top_free(struct cache *c, u64 nr_leaves, u64 **top)
{
	if (!top)
		return;
	memory_give(c, top_bytes(nr_leaves));
	memory_unpinned(c);
	kvfree(top);
}

u64 leaf_bytes(unsigned int shift)
{
	return sizeof(u64) << shift;
}

u64 *leaf_alloc(struct cache *c, unsigned int shift, gfp_t gfp)
{
	u64 *leaf;

	if (!memory_take(c, leaf_bytes(shift), 0)) {
		WRITE_ONCE(c->maps_full, true);
		space_kick(c);
		return NULL;
	}
	leaf = kvcalloc(1UL << shift, sizeof(*leaf), gfp);
	if (!leaf)
		memory_give(c, leaf_bytes(shift));
	return leaf;
}

void leaf_free(struct cache *c, unsigned int shift, u64 *leaf)
{
	if (!leaf)
		return;
	memory_give(c, leaf_bytes(shift));
	kvfree(leaf);
}

void volume_free_map(struct volume *vol)
{
	u64 i;

	for (i = 0; vol->top && i < vol->nr_leaves; i++)
		leaf_free(vol->cache, vol->leaf_shift, vol->top[i]);
	map_top_free(vol->cache, vol->nr_leaves, vol->top);
	vol->top = NULL;
}

/* For whoever holds neither the lock nor a reference. */
bool volume_has_leaf(struct volume *vol, u64 block)
{
	struct inflight *f = &vol->cache->inflight;
	unsigned int epoch = inflight_enter(f);
	/* Pairs with the releases in map_grow() and map_replace(). */
	bool ret = block < smp_load_acquire(&vol->nr_blocks) &&
		   READ_ONCE(READ_ONCE(vol->top)[block >> vol->leaf_shift]);

	inflight_leave(f, epoch);
	return ret;
}

/* Does it name an overlay, or will it take a block that is waited for? */
static bool leaf_is_needed(struct volume *vol, u64 n, const u64 *leaf)
{
	struct miss *m;
	int bucket;
	u64 i;

	lockdep_assert_held(&vol->cache->lock);
	for (i = 0; i < 1ULL << vol->leaf_shift; i++)
		if (entry_kind(leaf[i]) == ENTRY_OVERLAY)
			return true;
	hash_for_each(vol->cache->miss_blocks, bucket, m, by_block)
		if (m->vol == vol && m->block >> vol->leaf_shift == n)
			return true;
	return false;
}

/* Takes leaves out of the map, from @map_hand on. Whoever follows them is drained later. */
static u32 volume_give_up(struct volume *vol, u64 **leaves, u32 max)
{
	struct cache *c = vol->cache;
	u32 n = 0;

	lockdep_assert_held(&c->mutex);
	for (; vol->map_hand < vol->nr_leaves && n < max; vol->map_hand++) {
		u64 **where = &vol->top[vol->map_hand];

		if (!READ_ONCE(*where))
			continue;
		spin_lock(&c->lock);
		if (*where && !leaf_is_needed(vol, vol->map_hand, *where)) {
			leaves[n++] = *where;
			WRITE_ONCE(*where, NULL);
		}
		spin_unlock(&c->lock);
		cond_resched();
	}
	return n;
}

/* The next leaves of the first volume; it goes to the end when the hand has passed all of them. */
static u64 maps_give_up(struct cache *c, u32 *passed)
{
	u64 *leaves[RECLAIM_LEAVES];
	struct volume *vol;
	unsigned int shift;
	u64 bytes;
	u32 n;

	mutex_lock(&c->mutex);
	vol = list_first_entry_or_null(&c->volumes, struct volume, list);
	if (!vol) {
		(*passed)++;
		mutex_unlock(&c->mutex);
		return 0;
	}
	refcount_inc(&vol->refs);
	n = volume_give_up(vol, leaves, ARRAY_SIZE(leaves));
	/* The map may get another shape before these leaves are freed. */
	shift = vol->leaf_shift;
	if (vol->map_hand >= vol->nr_leaves) {
		vol->map_hand = 0;
		list_move_tail(&vol->list, &c->volumes);
		(*passed)++;
	}
	mutex_unlock(&c->mutex);
	if (n)
		inflight_drain(&c->inflight);
	bytes = n * leaf_bytes(shift);
	while (n)
		leaf_free(c, shift, leaves[--n]);
	volume_put(vol);
	return bytes;
}

static u64 maps_shrink(struct cache *c, u64 want)
{
	u64 freed = 0;
	u32 passed = 0;

	/* One more than there are: with the first it may begin in the midst. */
	while (freed < want && passed <= READ_ONCE(c->nr_volumes))
		freed += maps_give_up(c, &passed);
	c->map_reclaims += !!freed;
	return freed;
}

/*
 * Writes wait for an overlay, and there is no memory for one. If giving up maps was not enough for
 * that, it is not done again, for reads need them, until memory_unpinned().
 */
static bool overlays_starve(struct cache *c)
{
	bool waits;

	spin_lock(&c->lock);
	waits = !bio_list_empty(&c->space_bios);
	spin_unlock(&c->lock);
	return waits && !READ_ONCE(c->starved) &&
	       memory_left(c) < MEMORY_FOR_READS + overlay_bytes(c);
}

/* How much must be left for what memory_make_room() was asked; once. */
static u64 take_room_wanted(struct cache *c)
{
	u64 bytes;

	spin_lock(&c->lock);
	bytes = c->room_wanted;
	c->room_wanted = 0;
	spin_unlock(&c->lock);
	return bytes;
}

/* Something has gone that kept memory from being given up: it is worth trying again. Any context. */
void memory_unpinned(struct cache *c)
{
	WRITE_ONCE(c->starved, false);
}

/*
 * In the space worker, after a leaf or an overlay could not be had: makes room. True: there is
 * some now. Else @maps_full stays, so that those who wait do not try again and again.
 */
bool maps_reclaim(struct cache *c)
{
	u64 want = max_t(u64, c->max_memory / RECLAIM_PART, LEAF_BYTES_MAX);
	u64 room = take_room_wanted(c), left = memory_left(c);
	bool full = READ_ONCE(c->maps_full);
	u64 freed = 0;

	if (left < room)
		freed = maps_shrink(c, room - left);

	if (overlays_starve(c)) {
		/* First: what is unpinned from here on may have been passed already. */
		WRITE_ONCE(c->starved, true);
		freed += maps_shrink(c, MEMORY_FOR_READS + want);
		overlays_refill(c);
		/* A write may need a leaf, too. */
		if (memory_left(c) >= MEMORY_FOR_READS + LEAF_BYTES_MAX)
			memory_unpinned(c);
	} else if (full && memory_left(c) < LEAF_BYTES_MAX) {
		freed += maps_shrink(c, want);
	}
	if (!freed && (!full || memory_left(c) < LEAF_BYTES_MAX))
		return false;
	WRITE_ONCE(c->maps_full, false);
	return true;
}
