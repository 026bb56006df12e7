// SPDX-License-Identifier: GPL-2.0-only
/*
 * A volume of another size than before. The size is the image's: LOOKUP tells it, a table is
 * loaded for it, OPEN confirms it.
 *
 *	volume                      larger     smaller
 *	open, or with dirty data    grows      refused: what is cut off might be in use, or unpushed
 *	closed and clean            any size: its map is made anew
 *
 * A map grows by a longer top over the same leaves. It is made when the table is loaded, so that
 * the resume, which is not to fail, needs no memory.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include "dedup.h"

/* A longer top for a map, not in use yet. @leaf_shift: of the map that it is for */
struct map_growth {
	u64 **top;
	unsigned int leaf_shift;
	u64 nr_leaves;
	u64 nr_blocks;
	u64 size;
};

/* Returns an ERR_PTR: -ENOMEM, -E2BIG. */
struct map_growth *map_growth_new(struct volume *vol, u64 size)
{
	struct map_growth *g = kzalloc(sizeof(*g), GFP_KERNEL);
	int r;

	if (!g)
		return ERR_PTR(-ENOMEM);
	g->size = size;
	g->nr_blocks = volume_blocks(vol->cache, size);
	/* The map of a volume that is closed may get another shape meanwhile, and again until the resume. */
	g->leaf_shift = READ_ONCE(vol->leaf_shift);
	g->nr_leaves = DIV_ROUND_UP_ULL(g->nr_blocks, 1ULL << g->leaf_shift);
	r = map_top_alloc(vol->cache, g->nr_leaves, &g->top);
	if (!r)
		return g;
	kfree(g);
	return ERR_PTR(r);
}

void map_growth_free(struct volume *vol, struct map_growth *g)
{
	if (!g)
		return;
	map_top_free(vol->cache, g->nr_leaves, g->top);
	kfree(g);
}

/* The device is suspended, but the agent's calls go on, and the workers. */
static void map_grow(struct volume *vol, struct map_growth *g)
{
	struct cache *c = vol->cache;
	u64 **old_top;
	u64 old_leaves;

	lockdep_assert_held(&vol->mutex);
	mutex_lock(&c->mutex);
	spin_lock(&c->lock);
	old_top = vol->top;
	old_leaves = vol->nr_leaves;
	/* At most 8 MiB, for a volume of 64 TiB. No leaf is made meanwhile: that takes the lock. */
	memcpy(g->top, old_top, old_leaves * sizeof(*old_top));
	/* Pairs with the dependent loads of whoever follows it. */
	smp_store_release(&vol->top, g->top);
	vol->nr_leaves = g->nr_leaves;
	/* Pairs with the acquire in volume_has_leaf(): who sees the blocks sees the top. */
	smp_store_release(&vol->nr_blocks, g->nr_blocks);
	vol->rec.size = g->size;
	volume_changed(vol);
	spin_unlock(&c->lock);
	mutex_unlock(&c->mutex);
	/* Somebody may still read the old one; then it goes with @g. */
	inflight_drain(&c->inflight);
	g->top = old_top;
	g->nr_leaves = old_leaves;
}

/* Another shape for a map that names nothing that matters. */
static int map_replace(struct volume *vol, u64 size)
{
	struct volume *fresh = kzalloc(sizeof(*fresh), GFP_KERNEL);
	struct cache *c = vol->cache;
	int r = -ENOMEM;

	if (!fresh)
		return r;
	fresh->cache = c;
	r = volume_make_map(fresh, size);
	if (r)
		goto free_fresh;
	/* A prefetch may look for a leaf without the lock: first it finds no block at all. */
	WRITE_ONCE(vol->nr_blocks, 0);
	inflight_drain(&c->inflight);
	mutex_lock(&c->mutex);
	spin_lock(&c->lock);
	swap(vol->top, fresh->top);
	swap(vol->nr_leaves, fresh->nr_leaves);
	swap(vol->leaf_shift, fresh->leaf_shift);
	/* Pairs with the acquire in volume_has_leaf(). */
	smp_store_release(&vol->nr_blocks, fresh->nr_blocks);
	vol->map_hand = 0;
	vol->rec.size = size;
	/* An OPEN without an agent writes no record. In a commit, volumes come before slots. */
	if (vol->rec.id)
		volume_changed(vol);
	spin_unlock(&c->lock);
	mutex_unlock(&c->mutex);
	volume_free_map(fresh);
free_fresh:
	kfree(fresh);
	return r;
}

static bool is_clean_and_closed(struct volume *vol)
{
	lockdep_assert_held(&vol->cache->lock);
	return !READ_ONCE(vol->open) && !volume_is_dirty(vol);
}

/* May the volume have that size? 0, or -EBUSY. */
int volume_check_size(struct volume *vol, u64 size)
{
	struct cache *c = vol->cache;
	int r = 0;

	spin_lock(&c->lock);
	if (size < vol->rec.size && !is_clean_and_closed(vol))
		r = -EBUSY;
	spin_unlock(&c->lock);
	return r;
}

/* Before the OPEN: a volume that is closed and clean takes the size of its table, whatever it is. */
int volume_reshape(struct volume *vol, u64 size)
{
	bool free;

	lockdep_assert_held(&vol->mutex);
	vol->table_size = size;
	spin_lock(&vol->cache->lock);
	free = is_clean_and_closed(vol);
	spin_unlock(&vol->cache->lock);
	return free && size != vol->rec.size ? map_replace(vol, size) : 0;
}

/*
 * volume_grow - after the OPEN, before the first I/O: the volume takes the size of its table
 * @g: what map_growth_new() made when the table was loaded; NULL if the volume was not smaller
 *
 * Returns when the record is durable. Errors: -EBUSY: the volume has become larger since the
 * table was loaded, or its map has got another shape; the store's.
 */
int volume_grow(struct volume *vol, u64 size, struct map_growth *g)
{
	lockdep_assert_held(&vol->mutex);
	if (size == vol->rec.size)
		return 0;
	if (size < vol->rec.size || !g || g->leaf_shift != vol->leaf_shift)
		return -EBUSY;
	map_grow(vol, g);
	/* No store: a test plays it. */
	return vol->cache->store ? dedup_store_sync(vol->cache->store) : 0;
}
