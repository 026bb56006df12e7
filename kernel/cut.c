// SPDX-License-Identifier: GPL-2.0-only
/*
 * The agent's calls: CUT, LIST_CUT and COMMIT, and the smaller ones.
 *
 *	cut counter  committed  closed cut   then
 *	n            n - 1      none         CUT, if anything is dirty: counter n + 1
 *	n + 1        n - 1      n            CUT again: n; COMMIT of n: committed n
 *
 * Overlays of cuts up to the committed one are void, on the disk from the moment the volume
 * record is durable; in memory COMMIT then replaces them, in this order:
 *
 *	1. the record, with root and committed cut, is made durable; nothing else has changed
 *	2. misses are resolved against the new root, and those of the old one are restarted
 *	3. every entry that names a closed overlay gets the block's new base, and whoever has begun to
 *	   wait for one meanwhile looks again
 *	4. drain: nobody looks at the closed overlays any more
 *	5. their slots become CLEAN, or are freed, and their records follow. (One that could not be
 *	   read since 3 is freed: its block is fetched again.)
 *
 * A crash after 1 finds DIRTY records of a committed cut: void. A reader between 1 and 4 may
 * see the old layers or the new base: their contents are the same. 2 comes before 3, because a
 * block whose new base is not here is fetched as soon as its entry says so: under the old
 * root that would bring the content from before the cut. Below an overlay the new root's
 * block is as good as the old one's: they differ only in sectors that the overlay covers.
 */
#include <linux/slab.h>
#include "dedup.h"
#include "trace.h"

static u64 closed_cut(struct volume *vol)
{
	u64 cut = vol->rec.cut_counter - 1;

	return cut > vol->rec.committed_cut ? cut : 0;
}

/* ---- CUT ---- */

static int cut_allowed(struct volume *vol, bool recover)
{
	if (!recover && vol->rec.flags & (DEDUP_VOL_DIVERGED | DEDUP_VOL_FENCED))
		return -ESHUTDOWN;
	if (!(vol->rec.flags & DEDUP_VOL_GRANTED))
		return -EROFS;
	return 0;
}

/*
 * Raises the counter. Writers took a reference before they read it: after a drain, whoever used
 * the old one has set its valid bits, and the sync takes these, and the counter, to the disk.
 */
static int cut_close(struct volume *vol, struct dm_dedup_cut *cut)
{
	struct cache *c = vol->cache;
	int r;

	spin_lock(&c->lock);
	r = cut_allowed(vol, cut->flags & DM_DEDUP_CUT_RECOVER);
	/* After a COMMIT that failed there, the overlays of the cut before are in the map for good. */
	if (!r)
		r = dedup_store_error(c->store);
	if (!r && vol->rec.cut_counter > DEDUP_MAX_CUT)
		r = -EOVERFLOW;
	if (!r && !closed_cut(vol) && vol->nr_dirty) {
		vol->rec.cut_counter++;
		WRITE_ONCE(vol->cut_counter, vol->rec.cut_counter);
		volume_changed(vol);
		vol->oldest_open = 0;
		c->stats.cuts++;
	}
	cut->cut = closed_cut(vol);
	cut->lease_epoch = vol->rec.lease_epoch;
	memcpy(cut->root, vol->rec.root, sizeof(cut->root));
	spin_unlock(&c->lock);
	if (r || !cut->cut)
		return r;
	if (!planted(PLANTED_CUT_NO_DRAIN))
		inflight_drain(&c->inflight);
	return dedup_store_sync(c->store);
}

static int call_cut(void *ctx, struct dm_dedup_cut *cut)
{
	struct cache *c = ctx;
	struct volume *vol = volume_find(c, cut->volume);
	int r;

	if (!vol)
		return -ENOENT;
	mutex_lock(&vol->mutex);
	r = vol->rec.id == cut->volume ? cut_close(vol, cut) : -ENOENT;
	trace_dedup_cut(vol, cut->cut, r);
	mutex_unlock(&vol->mutex);
	volume_put(vol);
	return r;
}

/* ---- LIST_CUT ---- */

/* Where the closed overlay of a block is named; NULL if there is none. */
static u64 *closed_entry(struct volume *vol, u64 *entry, u64 cut)
{
	while (entry_kind(*entry) == ENTRY_OVERLAY) {
		struct overlay *ov = entry_overlay(*entry);

		if (ov->cut <= cut)
			return entry;
		entry = &ov->below;
	}
	return NULL;
}

static void cut_entry_fill(struct cache *c, const struct overlay *ov,
			   struct dm_dedup_cut_entry *e)
{
	u32 i;

	memset(e, 0, sizeof(*e));
	e->block = ov->block;
	e->slot = ov->slot;
	e->seq = c->slots[ov->slot].seq;
	for (i = 0; i < DIV_ROUND_UP(c->block_sectors, 8); i++)
		e->bitmap[i] = ov->valid[i / sizeof(long)] >> (i % sizeof(long) * 8);
	if (overlay_complete(c, ov))
		e->flags |= DM_DEDUP_CUT_COMPLETE;
	if ((ov->flags & DEDUP_OVERLAY_BASE_ZERO) || entry_kind(ov->below) == ENTRY_ZERO) {
		e->base_kind = DM_DEDUP_BASE_ZERO;
	} else if (!volume_base_unmapped(c, ov->below)) {
		e->base_kind = DM_DEDUP_BASE_SLOT;
		e->base_slot = entry_slot(ov->below);
		e->base_seq = c->slots[e->base_slot].seq;
	}
}

/* Lists what one leaf holds from block @*next on; at most up to @max entries in all. */
static u32 list_leaf(struct volume *vol, u64 cut, u64 *next, u32 done, u32 max,
		     struct dm_dedup_cut_entry *entries)
{
	struct cache *c = vol->cache;
	u64 end = min(vol->nr_blocks, round_up(*next + 1, 1ULL << vol->leaf_shift));
	u64 *where;

	spin_lock(&c->lock);
	if (!volume_slot_of(vol, *next))
		*next = end;
	for (; *next < end && done < max; (*next)++) {
		where = closed_entry(vol, volume_slot_of(vol, *next), cut);
		if (where)
			cut_entry_fill(c, entry_overlay(*where), &entries[done++]);
	}
	spin_unlock(&c->lock);
	cond_resched();
	return done;
}

static int call_list_cut(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	struct cache *c = ctx;
	struct volume *vol = volume_find(c, batch->volume);
	u64 next = batch->cursor;
	u32 done = 0;
	int r = 0;

	if (!vol)
		return -ENOENT;
	mutex_lock(&vol->mutex);
	if (vol->rec.id != batch->volume)
		r = -ENOENT;
	else if (!batch->cut || batch->cut != closed_cut(vol))
		r = -EINVAL;
	while (!r && next < vol->nr_blocks && done < batch->count)
		done = list_leaf(vol, batch->cut, &next, done, batch->count, entries);
	mutex_unlock(&vol->mutex);
	batch->count = done;
	batch->cursor = next < vol->nr_blocks ? next : ~0ULL;
	volume_put(vol);
	return r;
}

/* ---- COMMIT ---- */

/* A replacement that is kept until the COMMIT, with its place in the table of them. */
#define STAGED_BYTES	(sizeof(struct dm_dedup_replacement) + 16)

static void unstage_block(struct volume *vol, u64 block)
{
	struct dm_dedup_replacement *e = xa_erase(&vol->staged, block);

	if (!e)
		return;
	kfree(e);
	memory_give(vol->cache, STAGED_BYTES);
	memory_unpinned(vol->cache);
}

/* Looks at a replacement and keeps a copy until the COMMIT. Returns the entry's result. */
static int commit_stage(struct volume *vol, u64 cut, const struct dm_dedup_replacement *e)
{
	struct cache *c = vol->cache;
	struct dm_dedup_replacement *copy, *old;
	struct overlay *ov;
	u64 *where = NULL;
	int r = 0;

	if (e->block >= vol->nr_blocks || e->kind > DM_DEDUP_BASE_OWN)
		return -EINVAL;
	spin_lock(&c->lock);
	if (volume_slot_of(vol, e->block))
		where = closed_entry(vol, volume_slot_of(vol, e->block), cut);
	if (!where) {
		r = -EINVAL;
	} else if (e->kind == DM_DEDUP_BASE_OWN) {
		ov = entry_overlay(*where);
		if (e->slot != ov->slot || e->seq != c->slots[ov->slot].seq)
			r = -ESTALE;
		else if (!overlay_complete(c, ov))
			r = -EINVAL;
	} else if (e->kind == DM_DEDUP_BASE_SLOT) {
		if (e->slot >= c->nr_slots)
			r = -EINVAL;
		else if (c->slots[e->slot].state != SLOT_CLEAN ||
			 c->slots[e->slot].seq != e->seq)
			r = -ESTALE;
	}
	spin_unlock(&c->lock);
	/* A refused one counts as none: also one for the same block that was staged before it goes. */
	if (r)
		goto unstage;
	r = -ENOMEM;
	copy = kmemdup(e, sizeof(*e), GFP_NOIO);
	if (!copy)
		goto unstage;
	old = xa_store(&vol->staged, e->block, copy, GFP_NOIO);
	if (xa_is_err(old)) {
		kfree(copy);
		goto unstage;
	}
	if (!old)
		memory_add(c, STAGED_BYTES);
	kfree(old);
	return 0;

unstage:
	unstage_block(vol, e->block);
	return r;
}

/* The cut has gone, one way or the other. */
void commit_unstage(struct volume *vol)
{
	struct dm_dedup_replacement *e;
	unsigned long i;

	xa_for_each(&vol->staged, i, e)
		unstage_block(vol, i);
}

/* The block's new base, as an entry. What has become stale since it was staged is none. */
static u64 commit_base(struct cache *c, const struct dm_dedup_replacement *e)
{
	struct slot *s;

	if (!e)
		return 0;
	s = &c->slots[e->slot];
	switch (e->kind) {
	case DM_DEDUP_BASE_ZERO:
		return entry_make(ENTRY_ZERO, 0, 0);
	case DM_DEDUP_BASE_SLOT:
		if (s->state != SLOT_CLEAN || s->seq != e->seq)
			return 0;
		s->ref = 1;
		fallthrough;
	case DM_DEDUP_BASE_OWN:
		return entry_make(ENTRY_BASE, e->slot, s->gen);
	}
	return 0;
}

/* Overlays that were replaced; through overlay.next until their slots are settled. */
static struct overlay *commit_leaf(struct volume *vol, u64 cut, u64 *next, struct overlay *list)
{
	struct cache *c = vol->cache;
	u64 end = min(vol->nr_blocks, round_up(*next + 1, 1ULL << vol->leaf_shift));
	u64 *where;

	spin_lock(&c->lock);
	if (!volume_slot_of(vol, *next))
		*next = end;
	for (; *next < end; (*next)++) {
		struct overlay *ov;

		where = closed_entry(vol, volume_slot_of(vol, *next), cut);
		if (!where)
			continue;
		ov = entry_overlay(*where);
		WRITE_ONCE(*where, commit_base(c, xa_load(&vol->staged, *next)));
		ov->next = list;
		list = ov;
	}
	spin_unlock(&c->lock);
	cond_resched();
	return list;
}

static void commit_settle(struct volume *vol, struct overlay *ov)
{
	const struct dm_dedup_replacement *e = xa_load(&vol->staged, ov->block);
	struct cache *c = vol->cache;
	u32 slot = ov->slot;

	spin_lock(&c->lock);
	overlay_kill(c, ov);
	if (e && e->kind == DM_DEDUP_BASE_OWN && !(READ_ONCE(c->slots[slot].flags) & SLOT_LOST))
		slot_make_clean(c, slot, e->fp);
	else
		slot_free(c, slot);
	spin_unlock(&c->lock);
}

static void commit_apply(struct volume *vol, u64 cut)
{
	struct overlay *list = NULL, *ov;
	struct cache *c = vol->cache;
	u64 next = 0;

	spin_lock(&c->lock);
	memcpy(vol->root, vol->rec.root, sizeof(vol->root));
	/* What is left was written after the cut. */
	vol->oldest_dirty = vol->oldest_open ?: get_jiffies_64();
	c->stats.commits++;
	spin_unlock(&c->lock);
	/* Answers for the old root apply no more; whoever waits for one asks again. */
	misses_restart(vol, true);
	while (next < vol->nr_blocks)
		list = commit_leaf(vol, cut, &next, list);
	/* Nor does one for a block that has got its base since it was missed: no answer will fit. */
	misses_restart(vol, false);
	inflight_drain(&c->inflight);
	while ((ov = list)) {
		list = ov->next;
		commit_settle(vol, ov);
		cond_resched();
	}
	dedup_store_kick(c->store);
}

static int commit_check(struct volume *vol, const struct dm_dedup_batch *batch)
{
	const struct dedup_volume_rec *rec = &vol->rec;
	/* What a recipe names is named: a fence in between, or a recovery, changes nothing. */
	int r = cut_allowed(vol, true);

	if (r)
		return r;
	if (batch->lease_epoch != rec->lease_epoch)
		return -ESTALE;
	if (batch->cut == rec->committed_cut && batch->cut) {
		if (memcmp(batch->root, rec->root, sizeof(rec->root)))
			return -EINVAL;
		/* Done, unless it was then that the store failed. */
		return dedup_store_error(vol->cache->store) ?: -EALREADY;
	}
	return batch->cut && batch->cut == closed_cut(vol) ? 0 : -EINVAL;
}

static int commit(struct volume *vol, struct dm_dedup_batch *batch,
		  struct dm_dedup_replacement *entries)
{
	struct cache *c = vol->cache;
	int r = commit_check(vol, batch);
	u32 i;

	if (r)
		return r;
	for (i = 0; i < batch->count; i++)
		entries[i].result = commit_stage(vol, batch->cut, &entries[i]);
	if (batch->flags & DM_DEDUP_COMMIT_MORE)
		return 0;

	spin_lock(&c->lock);
	memcpy(vol->rec.root, batch->root, sizeof(vol->rec.root));
	vol->rec.committed_cut = batch->cut;
	if (!planted(PLANTED_COMMIT_BEFORE_ROOT))
		volume_changed(vol);
	spin_unlock(&c->lock);
	r = dedup_store_sync(c->store);
	/* A store that has failed takes no further change: what is in memory may stay as it is. */
	if (!r)
		commit_apply(vol, batch->cut);
	commit_unstage(vol);
	space_kick(c);
	if (planted(PLANTED_COMMIT_BEFORE_ROOT)) {
		dedup_store_sync(c->store);
		spin_lock(&c->lock);
		volume_changed(vol);
		spin_unlock(&c->lock);
		r = dedup_store_sync(c->store);
	}
	return r;
}

static int call_commit(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	struct cache *c = ctx;
	struct volume *vol = volume_find(c, batch->volume);
	int r;

	if (!vol)
		return -ENOENT;
	mutex_lock(&vol->mutex);
	r = vol->rec.id == batch->volume ? commit(vol, batch, entries) : -ENOENT;
	trace_dedup_commit(vol, batch->cut, r);
	mutex_unlock(&vol->mutex);
	volume_put(vol);
	return r;
}

/* ---- FENCE, RELEASE ---- */

static int call_fence(void *ctx, const struct dm_dedup_volume_call *call)
{
	struct cache *c = ctx;
	struct volume *vol = volume_find(c, call->volume);
	int r = 0;

	if (!vol)
		return -ENOENT;
	mutex_lock(&vol->mutex);
	spin_lock(&c->lock);
	if (vol->rec.id != call->volume) {
		r = -ENOENT;
	} else if (vol->rec.lease_epoch != call->lease_epoch) {
		r = -ESTALE;
	} else {
		set_bit(VOLUME_FENCED, &vol->state);
		vol->rec.flags |= DEDUP_VOL_FENCED | DEDUP_VOL_DIVERGED;
		volume_changed(vol);
	}
	spin_unlock(&c->lock);
	if (!r) {
		/* Writes that wait for a slot are writes, too. */
		space_waiters_run(c, true);
		r = dedup_store_sync(c->store);
	}
	trace_dedup_fence(vol, 0, r);
	mutex_unlock(&vol->mutex);
	volume_put(vol);
	return r;
}

static int release_check(struct volume *vol, const struct dm_dedup_volume_call *call)
{
	bool discard = call->flags & DM_DEDUP_RELEASE_DISCARD;
	u32 given_up = DEDUP_VOL_EPHEMERAL | DEDUP_VOL_DIVERGED | DEDUP_VOL_FENCED;

	lockdep_assert_held(&vol->cache->lock);
	if (vol->rec.id != call->volume)
		return -ENOENT;
	if (vol->rec.lease_epoch != call->lease_epoch)
		return -ESTALE;
	if (vol->open)
		return -EBUSY;
	if (volume_is_dirty(vol) && !(discard && (vol->rec.flags & given_up)))
		return -EBUSY;
	return 0;
}

static int call_release(void *ctx, const struct dm_dedup_volume_call *call)
{
	struct cache *c = ctx;
	struct volume *vol = volume_find(c, call->volume);
	int r;

	if (!vol)
		return -ENOENT;
	mutex_lock(&vol->mutex);
	spin_lock(&c->lock);
	r = release_check(vol, call);
	spin_unlock(&c->lock);
	if (!r)
		r = volume_forget(vol);
	if (!r)
		clear_bit(VOLUME_FENCED, &vol->state);
	mutex_unlock(&vol->mutex);
	volume_put(vol);
	return r;
}

/* ---- the smaller ones ---- */

static void call_hello(void *ctx, struct dm_dedup_hello *hello)
{
	struct cache *c = ctx;

	memcpy(hello->cache, c->info->cache_uuid, sizeof(hello->cache));
	memcpy(hello->cluster, c->info->cluster_uuid, sizeof(hello->cluster));
	memcpy(hello->incarnation, c->info->incarnation, sizeof(hello->incarnation));
	hello->nr_slots = c->nr_slots;
	hello->data_offset = c->info->data_start;
	hello->block_shift = c->info->block_shift;
	hello->max_inflight = DEDUP_MAX_MISSES;
}

static int call_publish(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	return fetch_publish(ctx, entries, batch->count);
}

static int call_map(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	struct dm_dedup_map *e = entries;
	u32 i;

	for (i = 0; i < batch->count; i++)
		fetch_map(ctx, &e[i]);
	return 0;
}

static int call_fail(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	struct dm_dedup_fail *e = entries;
	u32 i;

	for (i = 0; i < batch->count; i++)
		fetch_fail(ctx, &e[i]);
	return 0;
}

static int call_drop(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	struct dm_dedup_drop *e = entries;
	struct cache *c = ctx;
	u32 i;

	for (i = 0; i < batch->count; i++, e++) {
		e->result = 0;
		spin_lock(&c->lock);
		if (e->reserved || e->slot >= c->nr_slots)
			e->result = -EINVAL;
		else if (c->slots[e->slot].state != SLOT_CLEAN || c->slots[e->slot].seq != e->seq)
			e->result = -ESTALE;
		else
			slot_free(c, e->slot);
		spin_unlock(&c->lock);
	}
	return 0;
}

#define LIST_CLEAN_LOOK	4096U	/* slots looked at under one hold of the lock */

static int call_list_clean(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	struct dm_dedup_clean_entry *e = entries;
	struct cache *c = ctx;
	u64 n = batch->cursor;
	u32 done = 0, looked;

	while (n < c->nr_slots && done < batch->count) {
		spin_lock(&c->lock);
		for (looked = 0; looked < LIST_CLEAN_LOOK && n < c->nr_slots &&
		     done < batch->count; looked++, n++) {
			if (c->slots[n].state != SLOT_CLEAN)
				continue;
			e[done].slot = n;
			e[done].seq = c->slots[n].seq;
			memcpy(e[done].fp, c->slots[n].fp, sizeof(e[done].fp));
			done++;
		}
		spin_unlock(&c->lock);
		cond_resched();
	}
	batch->count = done;
	batch->cursor = n < c->nr_slots ? n : ~0ULL;
	return 0;
}

/* The cursor is the index of a record in the volume table. */
static int call_list_volumes(void *ctx, struct dm_dedup_batch *batch, void *entries)
{
	struct dm_dedup_volume_info *info = entries;
	struct cache *c = ctx;
	u64 n = batch->cursor;
	struct volume *vol;
	u32 done = 0;

	mutex_lock(&c->mutex);
	while (n < DM_DEDUP_MAX_VOLUMES && done < batch->count) {
		n = find_next_bit(c->indexes, DM_DEDUP_MAX_VOLUMES, n);
		list_for_each_entry(vol, &c->volumes, list) {
			if (!vol->rec.id || vol->index != n)
				continue;
			spin_lock(&c->lock);
			volume_info(vol, &info[done++]);
			spin_unlock(&c->lock);
			break;
		}
		n++;
	}
	mutex_unlock(&c->mutex);
	batch->count = done;
	batch->cursor = n < DM_DEDUP_MAX_VOLUMES ? n : ~0ULL;
	return 0;
}

const struct channel_ops cache_channel_ops = {
	.hello = call_hello,
	.publish = call_publish,
	.map = call_map,
	.fail = call_fail,
	.drop = call_drop,
	.list_cut = call_list_cut,
	.list_clean = call_list_clean,
	.list_volumes = call_list_volumes,
	.commit = call_commit,
	.cut = call_cut,
	.fence = call_fence,
	.release = call_release,
};
