// SPDX-License-Identifier: GPL-2.0-only
/*
 * Overlays: the sectors that a guest has written over a block's base, and how a read finds
 * what it wants among the layers.
 *
 *	a block's layers, top first     named by
 *	open overlay (cut = counter)    the map entry
 *	closed overlay                  the map entry, or the open overlay's below
 *	base: slot, zero, or none       the map entry, or the lowest overlay's below
 *
 * There is at most one closed overlay: CUT makes no second cut before the first is committed.
 */
#include <linux/bitmap.h>
#include <linux/slab.h>
#include "dedup.h"

size_t overlay_bytes(struct cache *c)
{
	return struct_size_t(struct overlay, valid, BITS_TO_LONGS(c->block_sectors));
}

int overlays_init(struct cache *c)
{
	static atomic_t nr = ATOMIC_INIT(0);
	char name[32];

	/* Two of one name would be taken for a mistake. */
	snprintf(name, sizeof(name), "dm_dedup_overlay_%d", atomic_inc_return(&nr));
	c->overlay_cache = kmem_cache_create(name, overlay_bytes(c), 0, SLAB_RECLAIM_ACCOUNT,
					     NULL);
	return c->overlay_cache ? 0 : -ENOMEM;
}

/* NULL when there is no memory, or less than @keep would be left of what is allowed. */
struct overlay *overlay_new(struct cache *c, u64 keep, gfp_t gfp)
{
	struct overlay *ov;

	if (!memory_take(c, overlay_bytes(c), keep))
		return NULL;
	ov = kmem_cache_alloc(c->overlay_cache, gfp);
	if (!ov)
		memory_give(c, overlay_bytes(c));
	return ov;
}

void overlay_free(struct cache *c, struct overlay *ov)
{
	kmem_cache_free(c->overlay_cache, ov);
	memory_give(c, overlay_bytes(c));
	memory_unpinned(c);
}

static void overlay_list_free(struct cache *c, struct overlay *ov)
{
	while (ov) {
		struct overlay *next = ov->next;

		overlay_free(c, ov);
		ov = next;
	}
}

void overlays_exit(struct cache *c)
{
	if (!c->overlay_cache)
		return;
	overlay_list_free(c, c->dead);
	overlay_list_free(c, c->overlay_pool);
	kmem_cache_destroy(c->overlay_cache);
}

/* Keeps descriptors ready for map(), which may not allocate. May sleep. */
void overlays_refill(struct cache *c)
{
	while (READ_ONCE(c->nr_overlay_pool) < DEDUP_OVERLAY_POOL) {
		struct overlay *ov = overlay_new(c, MEMORY_FOR_READS, GFP_NOIO);

		if (!ov)
			return;
		spin_lock(&c->lock);
		ov->next = c->overlay_pool;
		c->overlay_pool = ov;
		c->nr_overlay_pool++;
		spin_unlock(&c->lock);
	}
}

static void overlay_init(struct overlay *ov, struct volume *vol, u64 block, u32 slot, u64 cut)
{
	ov->vol = vol;
	ov->block = block;
	ov->slot = slot;
	ov->cut = cut;
	ov->below = 0;
	ov->flags = 0;
	ov->nr_valid = 0;
	ov->next = NULL;
	bitmap_zero(ov->valid, vol->cache->block_sectors);
}

/* Makes the slot an overlay. It is published by the entry that the caller then writes. */
static void overlay_take_slot(struct cache *c, struct overlay *ov)
{
	struct volume *vol = ov->vol;

	c->slots[ov->slot].ov = ov;
	if (ov->flags & DEDUP_OVERLAY_BASE_ZERO)
		c->nr_zero++;
	if (!vol->nr_dirty || !vol->oldest_open)
		vol->oldest_open = get_jiffies_64();
	if (!vol->nr_dirty++)
		vol->oldest_dirty = vol->oldest_open;
	vol->nr_valid += ov->nr_valid;
}

/* May an overlay be made? It pins its leaf, too. Without the lock the answer may be old. */
bool overlays_ready(struct cache *c)
{
	return READ_ONCE(c->nr_overlay_pool) && memory_left(c) >= MEMORY_FOR_READS;
}

/* The slot beside the one that the block before lies in: so that a stream stays in one run. */
static u32 overlay_slot_hint(struct volume *vol, u64 block)
{
	u64 e = block ? volume_entry(vol, block - 1) : 0;

	return entry_kind(e) == ENTRY_OVERLAY ? entry_overlay(e)->slot + 1 : DEDUP_NO_SLOT;
}

/*
 * overlay_open - the open overlay of a block, made now if need be
 * @flags: of an overlay that is made now: 0 or DEDUP_OVERLAY_BASE_ZERO
 * @opened: set if it was made now
 *
 * The leaf of the block must be there. Never sleeps. NULL if there is no slot, no
 * descriptor in the pool, or no memory left but for reads.
 */
struct overlay *overlay_open(struct volume *vol, u64 block, u8 flags, bool *opened)
{
	struct cache *c = vol->cache;
	u64 *entry = volume_slot_of(vol, block);
	struct overlay *ov;
	u32 n;

	lockdep_assert_held(&c->lock);
	if (entry_kind(*entry) == ENTRY_OVERLAY) {
		ov = entry_overlay(*entry);
		if (ov->cut == vol->rec.cut_counter)
			return ov;
	}
	if (!overlays_ready(c)) {
		space_kick(c);
		return NULL;
	}
	n = slot_alloc(c, SLOT_DIRTY, overlay_slot_hint(vol, block));
	if (n == DEDUP_NO_SLOT)
		return NULL;
	ov = c->overlay_pool;
	c->overlay_pool = ov->next;
	if (--c->nr_overlay_pool == DEDUP_OVERLAY_POOL / 2)
		space_kick(c);

	overlay_init(ov, vol, block, n, vol->rec.cut_counter);
	ov->below = *entry;
	ov->flags = flags;
	overlay_take_slot(c, ov);
	/* Readers follow the entry to the overlay and its slot: those first. */
	smp_store_release(entry, entry_make_overlay(ov));
	*opened = true;
	return ov;
}

/* No map names the overlay any more: the descriptor goes after a drain, the slot stays. */
void overlay_kill(struct cache *c, struct overlay *ov)
{
	lockdep_assert_held(&c->lock);
	ov->vol->nr_dirty--;
	ov->vol->nr_valid -= ov->nr_valid;
	if (ov->flags & DEDUP_OVERLAY_BASE_ZERO)
		c->nr_zero--;
	ov->next = c->dead;
	c->dead = ov;
}

/* Puts a recovered overlay into its volume's map, above or below what is there. */
static int overlay_insert(struct cache *c, struct volume *vol, struct overlay *ov)
{
	u64 *entry = volume_slot_of(vol, ov->block);
	u64 mine = entry_make_overlay(ov);
	struct overlay *other;

	if (entry_kind(*entry) != ENTRY_OVERLAY) {
		ov->below = *entry;
		*entry = mine;
		return 0;
	}
	other = entry_overlay(*entry);
	if (entry_kind(other->below) == ENTRY_OVERLAY || other->cut == ov->cut)
		return -EUCLEAN;
	if (other->cut < ov->cut) {
		ov->below = *entry;
		*entry = mine;
	} else {
		other->below = mine;
	}
	return 0;
}

int overlay_load(struct volume *vol, u32 n, const struct dedup_slot_rec *rec)
{
	struct cache *c = vol->cache;
	struct overlay *ov;
	unsigned int i;
	int r;

	if (rec->block >= vol->nr_blocks || rec->cut > vol->rec.cut_counter)
		return -EUCLEAN;
	r = volume_make_leaf(vol, rec->block, GFP_KERNEL);
	ov = r ? NULL : overlay_new(c, 0, GFP_KERNEL);
	if (!ov && memory_left(c) < overlay_bytes(c) + leaf_bytes(vol->leaf_shift)) {
		DMERR("what is dirty takes more memory than max_memory, %llu MiB", c->max_memory >> 20);
		return -E2BIG;
	}
	if (!ov)
		return r ?: -ENOMEM;
	overlay_init(ov, vol, rec->block, n, rec->cut);
	ov->flags = rec->flags & DEDUP_OVERLAY_BASE_ZERO;
	for (i = 0; i < BITS_TO_LONGS(c->block_sectors); i++) {
		__le64 word;

		memcpy(&word, rec->bitmap + i * sizeof(word), sizeof(word));
		ov->valid[i] = le64_to_cpu(word);
	}
	ov->nr_valid = bitmap_weight(ov->valid, c->block_sectors);
	spin_lock(&c->lock);
	r = overlay_insert(c, vol, ov);
	if (!r) {
		slot_set_state(c, n, SLOT_DIRTY);
		overlay_take_slot(c, ov);
	}
	spin_unlock(&c->lock);
	if (r)
		overlay_free(c, ov);
	return r;
}

/* ---- valid sectors ---- */

bool overlay_complete(struct cache *c, const struct overlay *ov)
{
	return overlay_range_valid(ov, 0, c->block_sectors);
}

static void overlay_set_bits(struct overlay *ov, u32 offset, u32 len)
{
	while (len) {
		unsigned long *word = &ov->valid[offset / BITS_PER_LONG];
		u32 from = offset % BITS_PER_LONG;
		u32 n = min_t(u32, len, BITS_PER_LONG - from);

		/* One writer at a time, but readers without the lock. */
		WRITE_ONCE(*word, *word | GENMASK(from + n - 1, from));
		offset += n;
		len -= n;
	}
}

/*
 * The bits and the pending flag under one hold of the lock: whoever sees a bit and then asks for
 * what is pending, as FLUSH and FUA do, finds the change pending, in a commit, or durable, though
 * it was another write that set the bit and has not completed yet.
 */
static void overlay_set_valid(struct cache *c, struct overlay *ov, u32 offset, u32 len)
{
	unsigned long flags;
	bool kick;

	/* Most writes go where others went before: no lock for those. */
	if (overlay_range_valid(ov, offset, len))
		return;
	spin_lock_irqsave(&c->change_lock, flags);
	overlay_set_bits(ov, offset, len);
	kick = slot_set_pending(c, ov->slot, ov->vol);
	spin_unlock_irqrestore(&c->change_lock, flags);
	if (kick)
		changes_kick(c);
}

/*
 * overlay_written - a data write has completed: its sectors are valid from now on
 *
 * Any context. The writer's reference, which the caller still holds, keeps the overlays.
 */
void overlay_written(struct cache *c, struct bio_data *bd)
{
	u32 offset = bd->offset, left = bd->sectors;
	struct overlay *ov = bd->ov;

	for (;;) {
		u32 len = min(left, c->block_sectors - offset);

		overlay_set_valid(c, ov, offset, len);
		left -= len;
		if (!left)
			return;
		offset = 0;
		ov = c->slots[ov->slot + 1].ov;
	}
}

/* ---- reads ---- */

/*
 * view_load - what a reader sees of a block
 *
 * The caller holds a reference, or the lock: what the view names stays as it is meanwhile, even
 * if a COMMIT or the eviction takes it out of the map. A piece of a read that was planned with
 * the view can therefore be carried out with the same view.
 */
void view_load(struct volume *vol, u64 block, struct view *view)
{
	u64 e = volume_entry(vol, block);

	view->nr_ov = 0;
	view->base_slot = DEDUP_NO_SLOT;
	while (entry_kind(e) == ENTRY_OVERLAY) {
		struct overlay *ov = entry_overlay(e);

		if (WARN_ON_ONCE(view->nr_ov == ARRAY_SIZE(view->ov)))
			break;
		view->ov[view->nr_ov++] = ov;
		e = ov->flags & DEDUP_OVERLAY_BASE_ZERO ? entry_make(ENTRY_ZERO, 0, 0) :
							  READ_ONCE(ov->below);
	}
	view->base = entry_kind(e);
	if (view->base != ENTRY_BASE)
		return;
	if (base_use(vol->cache, e))
		view->base_slot = entry_slot(e);
	else
		view->base = ENTRY_NONE;
}

/* The longest piece from @offset on, of @max sectors at most, that lies in one place. */
void view_run(struct cache *c, const struct view *view, u32 offset, u32 max, struct run *run)
{
	u32 end = offset + max;
	unsigned int i;

	for (i = 0; i < view->nr_ov; i++) {
		const struct overlay *ov = view->ov[i];
		/*
		 * A write may complete at any time: the bit at @offset is looked at once, so that
		 * the run has a sector at least. Bits are only ever set.
		 */
		u32 next = find_next_bit(ov->valid, end, offset);

		if (next == offset) {
			end = find_next_zero_bit(ov->valid, end, offset);
			run->kind = ENTRY_BASE;
			run->overlaid = true;
			run->slot = ov->slot;
			run->len = end - offset;
			return;
		}
		end = next;
	}
	run->kind = view->base;
	run->overlaid = false;
	run->slot = view->base_slot;
	run->len = end - offset;
}
