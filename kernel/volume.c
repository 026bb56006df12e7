// SPDX-License-Identifier: GPL-2.0-only
/*
 * Volumes: their records, their maps, and OPEN.
 *
 *	record       device  what it is                     goes to
 *	none         yes     a table was loaded             OPEN writes the record
 *	none         no      gone
 *	granted      yes     open                           dtr: closed; RELEASE refuses
 *	granted      no      closed, its agent pushes       OPEN, CUT and COMMIT, RELEASE
 *	not granted  either  read-only                      the same, without CUT
 *	diverged     no      no I/O; dirty data is pinned   RELEASE with DISCARD
 *
 * A grant of another epoch, or one that starts at another cut, gets a new volume id: records
 * of overlays that an earlier grant left on the disk can then never be taken for ours.
 */
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "codec.h"
#include "dedup.h"

#define LEAF_SHIFT_MIN	9
#define TOP_SHIFT_MAX	20
#define OPEN_TRIES	8

/* ---- the object ---- */

struct volume *volume_new(struct cache *c, const u8 *image, u64 size)
{
	struct volume *vol = kzalloc(sizeof(*vol), GFP_KERNEL);
	int r = -ENOMEM;

	if (!vol)
		return ERR_PTR(r);
	vol->stats = alloc_percpu(struct volume_stats);
	if (!vol->stats)
		goto free_vol;
	vol->cache = c;
	refcount_set(&vol->refs, 1);
	mutex_init(&vol->mutex);
	memcpy(vol->rec.image, image, sizeof(vol->rec.image));
	INIT_LIST_HEAD(&vol->pending_list);
	INIT_LIST_HEAD(&vol->commit_list);
	xa_init(&vol->staged);
	spin_lock_init(&vol->defer_lock);
	bio_list_init(&vol->deferred);
	INIT_WORK(&vol->work, volume_work);
	upcall_init(&vol->close_event, DM_DEDUP_UP_CLOSE);
	upcall_init(&vol->dirty_event, DM_DEDUP_UP_DIRTY);
	r = volume_make_map(vol, size);
	if (r)
		goto free_stats;
	list_add_tail(&vol->list, &c->volumes);
	c->nr_volumes++;
	return vol;
free_stats:
	free_percpu(vol->stats);
free_vol:
	kfree(vol);
	return ERR_PTR(r);
}

static void volume_free(struct volume *vol)
{
	struct cache *c = vol->cache;

	cancel_work_sync(&vol->work);
	/* A sync may have returned before cache_committed() came to take it off its list. */
	spin_lock_irq(&c->change_lock);
	list_del_init(&vol->pending_list);
	list_del_init(&vol->commit_list);
	spin_unlock_irq(&c->change_lock);
	if (c->channel) {
		channel_cancel(c->channel, &vol->close_event);
		channel_cancel(c->channel, &vol->dirty_event);
	}
	commit_unstage(vol);
	xa_destroy(&vol->staged);
	volume_free_map(vol);
	free_percpu(vol->stats);
	kfree(vol);
}

void volume_put(struct volume *vol)
{
	if (refcount_dec_and_test(&vol->refs))
		volume_free(vol);
}

/* Off the list, if neither a record nor a table needs it any more. The caller holds a reference. */
static void volume_unlist(struct volume *vol)
{
	struct cache *c = vol->cache;

	lockdep_assert_held(&c->mutex);
	/* Dirty without a record: the store failed when it was given up. Its overlays go with the cache. */
	if (vol->users || vol->rec.id || vol->nr_dirty || list_empty(&vol->list))
		return;
	list_del_init(&vol->list);
	c->nr_volumes--;
	volume_put(vol);
}

void volumes_exit(struct cache *c)
{
	struct volume *vol, *next;

	list_for_each_entry_safe(vol, next, &c->volumes, list) {
		u64 block;

		/* The overlays of what stays on the disk go with the table of slots. */
		for (block = 0; block < vol->nr_blocks; block++) {
			u64 e;

			if (!vol->top[block >> vol->leaf_shift]) {
				block |= (1ULL << vol->leaf_shift) - 1;
				continue;
			}
			e = volume_entry(vol, block);
			while (entry_kind(e) == ENTRY_OVERLAY) {
				struct overlay *ov = entry_overlay(e);

				e = ov->below;
				overlay_free(c, ov);
			}
		}
		list_del(&vol->list);
		volume_put(vol);
	}
}

typedef bool (*volume_match_fn)(struct volume *vol, const void *what);

static struct volume *volume_find_by(struct cache *c, volume_match_fn match, const void *what)
{
	struct volume *vol;

	lockdep_assert_held(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list) {
		if (match(vol, what)) {
			refcount_inc(&vol->refs);
			return vol;
		}
	}
	return NULL;
}

static bool match_id(struct volume *vol, const void *what)
{
	return vol->rec.id == *(const u64 *)what;
}

static bool match_image(struct volume *vol, const void *what)
{
	return !memcmp(vol->rec.image, what, sizeof(vol->rec.image));
}

static bool match_name(struct volume *vol, const void *what)
{
	char uuid[UUID_STRING_LEN + 1];

	if (!vol->rec.id)
		return false;
	snprintf(uuid, sizeof(uuid), "%pUb", vol->rec.image);
	return !strcmp(vol->rec.name, what) || !strcasecmp(uuid, what);
}

/* All return a reference, or NULL. */
struct volume *volume_find(struct cache *c, u64 id)
{
	struct volume *vol;

	mutex_lock(&c->mutex);
	vol = id ? volume_find_by(c, match_id, &id) : NULL;
	mutex_unlock(&c->mutex);
	return vol;
}

struct volume *volume_find_image(struct cache *c, const u8 *image)
{
	return volume_find_by(c, match_image, image);
}

/*
 * By image's name or UUID, among those with a record. An image that was deleted and made again
 * under its name may have left a record of the same name: then the name alone finds nothing.
 */
struct volume *volume_find_name(struct cache *c, const char *name)
{
	struct volume *vol = volume_find_by(c, match_name, name), *other;

	list_for_each_entry(other, &c->volumes, list) {
		if (!vol || other == vol || !match_name(other, name))
			continue;
		DMERR("several records are of images named %s: give the image's UUID", name);
		volume_put(vol);
		vol = NULL;
	}
	return vol;
}

/* ---- the map ---- */

static unsigned int map_shape(u64 blocks)
{
	unsigned int shift = LEAF_SHIFT_MIN;

	while (blocks >> shift >> TOP_SHIFT_MAX)
		shift++;
	return shift;
}

/* How many leaves a map for @size bytes has, when it is made. */
u64 volume_leaves(struct cache *c, u64 size)
{
	u64 blocks = volume_blocks(c, size);

	return DIV_ROUND_UP_ULL(blocks, 1ULL << map_shape(blocks));
}

/* Chooses the shape of the map, and makes it without leaves. -E2BIG: max_memory. */
int volume_make_map(struct volume *vol, u64 size)
{
	u64 blocks = volume_blocks(vol->cache, size);

	vol->leaf_shift = map_shape(blocks);
	vol->nr_blocks = blocks;
	vol->nr_leaves = volume_leaves(vol->cache, size);
	vol->rec.size = size;
	return map_top_alloc(vol->cache, vol->nr_leaves, &vol->top);
}

/* Not under the lock; several may try at once. */
int volume_make_leaf(struct volume *vol, u64 block, gfp_t gfp)
{
	unsigned int shift = READ_ONCE(vol->leaf_shift);
	struct cache *c = vol->cache;
	u64 *leaf, **where = NULL;

	if (volume_has_leaf(vol, block))
		return 0;
	leaf = leaf_alloc(c, shift, gfp);
	if (!leaf)
		return -ENOMEM;
	/* Under the lock, so that a map that grows takes all leaves along. */
	spin_lock(&c->lock);
	if (block < vol->nr_blocks && shift == vol->leaf_shift)
		where = &vol->top[block >> vol->leaf_shift];
	if (where && !*where) {
		/* Orders the zeros before the pointer, for volume_entry(). */
		smp_store_release(where, leaf);
		leaf = NULL;
	}
	spin_unlock(&c->lock);
	leaf_free(c, shift, leaf);
	return where ? 0 : -EINVAL;
}

/* Where the entry of a block is; NULL without a leaf. For those who hold the lock. */
u64 *volume_slot_of(struct volume *vol, u64 block)
{
	u64 *leaf;

	/* The agent may have asked about the volume when it was larger. */
	if (block >= vol->nr_blocks)
		return NULL;
	leaf = vol->top[block >> vol->leaf_shift];
	return leaf ? &leaf[block & ((1ULL << vol->leaf_shift) - 1)] : NULL;
}

/* Where the base of a block is named; NULL without a leaf, or if an overlay of zeros covers it. */
u64 *volume_base(struct volume *vol, u64 block)
{
	struct cache *c = vol->cache;
	u64 *where = volume_slot_of(vol, block);

	lockdep_assert_held(&c->lock);
	while (where && entry_kind(*where) == ENTRY_OVERLAY) {
		struct overlay *ov = entry_overlay(*where);

		if (ov->flags & DEDUP_OVERLAY_BASE_ZERO)
			return NULL;
		where = &ov->below;
	}
	return where;
}

bool volume_base_unmapped(struct cache *c, u64 base)
{
	return entry_kind(base) == ENTRY_NONE ||
	       (entry_kind(base) == ENTRY_BASE &&
		c->slots[entry_slot(base)].gen != entry_gen(base));
}

/* Forgets all that is mapped. For volumes without overlays and without I/O. */
static void volume_reset_map(struct volume *vol)
{
	struct cache *c = vol->cache;
	u64 i, *leaf;

	for (i = 0; i < vol->nr_leaves; i++) {
		spin_lock(&c->lock);
		leaf = vol->top[i];
		WRITE_ONCE(vol->top[i], NULL);
		spin_unlock(&c->lock);
		leaf_free(c, vol->leaf_shift, leaf);
		cond_resched();
	}
}

static void leaf_drop_overlays(struct volume *vol, u64 *leaf)
{
	struct cache *c = vol->cache;
	u64 i;

	for (i = 0; i < 1ULL << vol->leaf_shift; i++) {
		u64 e = leaf[i];

		if (entry_kind(e) != ENTRY_OVERLAY)
			continue;
		WRITE_ONCE(leaf[i], 0);
		while (entry_kind(e) == ENTRY_OVERLAY) {
			struct overlay *ov = entry_overlay(e);

			e = ov->below;
			overlay_kill(c, ov);
			slot_free(c, ov->slot);
		}
	}
}

/* The volume's dirty data is void: its record is durably gone. No I/O is possible any more. */
void volume_drop_overlays(struct volume *vol)
{
	struct cache *c = vol->cache;
	u64 i;

	for (i = 0; i < vol->nr_leaves; i++) {
		spin_lock(&c->lock);
		if (vol->top[i])
			leaf_drop_overlays(vol, vol->top[i]);
		spin_unlock(&c->lock);
		cond_resched();
	}
	space_kick(c);
}

/* ---- the record ---- */

/* The record differs from the journal's. */
void volume_changed(struct volume *vol)
{
	struct cache *c = vol->cache;

	lockdep_assert_held(&c->lock);
	spin_lock_irq(&c->change_lock);
	if (!vol->rec_pending) {
		vol->rec_pending = true;
		list_add_tail(&vol->pending_list, &c->volume_changes);
	}
	spin_unlock_irq(&c->change_lock);
}

static u64 volume_closed_cut(struct volume *vol)
{
	u64 cut = vol->rec.cut_counter - 1;

	return cut > vol->rec.committed_cut ? cut : 0;
}

bool volume_is_dirty(struct volume *vol)
{
	lockdep_assert_held(&vol->cache->lock);
	return vol->nr_dirty || (vol->rec.id && volume_closed_cut(vol));
}

void volume_info(struct volume *vol, struct dm_dedup_volume_info *info)
{
	struct cache *c = vol->cache;

	lockdep_assert_held(&c->lock);
	memset(info, 0, sizeof(*info));
	info->volume = vol->rec.id;
	memcpy(info->image, vol->rec.image, sizeof(info->image));
	memcpy(info->root, vol->rec.root, sizeof(info->root));
	info->lease_epoch = vol->rec.lease_epoch;
	info->size = vol->rec.size;
	info->committed_cut = vol->rec.committed_cut;
	info->flags = vol->rec.flags;
	if (vol->rec.id)
		info->closed_cut = volume_closed_cut(vol);
	if (volume_is_dirty(vol))
		info->flags |= DM_DEDUP_VOL_DIRTY;
	if (vol->nr_dirty) {
		info->dirty_bytes = vol->nr_dirty << (c->sector_shift + SECTOR_SHIFT);
		info->oldest_ms = jiffies64_to_msecs(get_jiffies_64() - vol->oldest_dirty);
		info->ios = volume_ios(vol);
	}
	if (READ_ONCE(vol->open))
		info->flags |= DM_DEDUP_VOL_OPEN;
	info->logical_block_size = 512;
	strscpy(info->name, vol->rec.name, sizeof(info->name));
}

int volume_load(struct cache *c, u64 index, const struct dedup_volume_rec *rec)
{
	struct volume *vol;
	int r = 0;

	if (index >= DM_DEDUP_MAX_VOLUMES || dedup_volume_wrong(rec))
		return -EUCLEAN;
	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		if (match_id(vol, &rec->id) || match_image(vol, rec->image))
			r = -EUCLEAN;
	vol = r ? ERR_PTR(r) : volume_new(c, rec->image, rec->size);
	if (IS_ERR(vol)) {
		r = PTR_ERR(vol);
	} else {
		vol->rec = *rec;
		memcpy(vol->root, rec->root, sizeof(vol->root));
		vol->cut_counter = rec->cut_counter;
		vol->index = index;
		__set_bit(index, c->indexes);
	}
	mutex_unlock(&c->mutex);
	return r;
}

/* Gives the record up, durably, and with it all dirty data. The volume has no device open. */
int volume_forget(struct volume *vol)
{
	struct cache *c = vol->cache;
	int r;

	lockdep_assert_held(&vol->mutex);
	/* What is pending of its slots goes first: they are not to change with the record gone. */
	r = dedup_store_sync(c->store);
	if (r)
		return r;
	spin_lock(&c->lock);
	vol->rec.id = 0;
	volume_changed(vol);
	spin_unlock(&c->lock);
	r = dedup_store_sync(c->store);
	if (r)
		return r;
	volume_drop_overlays(vol);
	volume_reset_map(vol);
	/* A loaded table may keep the object for another grant, whose cuts have the same numbers. */
	commit_unstage(vol);

	mutex_lock(&c->mutex);
	__clear_bit(vol->index, c->indexes);
	volume_unlist(vol);
	mutex_unlock(&c->mutex);
	return 0;
}

/* Has it a record that nobody needs: is it a closed volume that was only read? */
static bool volume_is_unused(struct volume *vol)
{
	bool unused;

	spin_lock(&vol->cache->lock);
	unused = vol->rec.id && !READ_ONCE(vol->users) &&
		 !(vol->rec.flags & DEDUP_VOL_GRANTED) && !volume_is_dirty(vol);
	spin_unlock(&vol->cache->lock);
	return unused;
}

static struct volume *volume_find_unused(struct cache *c)
{
	struct volume *vol, *found = NULL;

	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list) {
		if (volume_is_unused(vol)) {
			found = vol;
			break;
		}
	}
	if (found)
		refcount_inc(&found->refs);
	mutex_unlock(&c->mutex);
	return found;
}

static int volume_reclaim_record(struct cache *c)
{
	struct volume *old = volume_find_unused(c);
	int r = 0;

	if (!old) {
		DMERR("all %u volume records of the cache are in use: release volumes",
		      DM_DEDUP_MAX_VOLUMES);
		return -ENOSPC;
	}
	/* The opener holds its own volume's mutex: only try, so that the two never wait. */
	if (!mutex_trylock(&old->mutex)) {
		DMERR("a volume that is not used any more is busy: try again");
		r = -EBUSY;
	} else {
		/* Its record may have gone meanwhile, or a grant have come: then there is another one. */
		if (volume_is_unused(old))
			r = volume_forget(old);
		mutex_unlock(&old->mutex);
	}
	volume_put(old);
	return r;
}

static int volume_take_index(struct volume *vol)
{
	struct cache *c = vol->cache;
	unsigned long n;
	int r;

	for (;;) {
		mutex_lock(&c->mutex);
		n = find_first_zero_bit(c->indexes, DM_DEDUP_MAX_VOLUMES);
		if (n < DM_DEDUP_MAX_VOLUMES)
			__set_bit(n, c->indexes);
		mutex_unlock(&c->mutex);
		if (n < DM_DEDUP_MAX_VOLUMES)
			break;
		r = volume_reclaim_record(c);
		if (r)
			return r;
	}
	vol->index = n;
	return 0;
}

/* ---- OPEN ---- */

static bool grant_continues(struct volume *vol, const struct dm_dedup_volume_info *grant)
{
	const struct dedup_volume_rec *rec = &vol->rec;

	if (grant->lease_epoch != rec->lease_epoch)
		return false;
	if (grant->committed_cut == rec->committed_cut)
		return !memcmp(grant->root, rec->root, sizeof(rec->root));
	/* The head has our closed cut already: its COMMIT was lost, and will be repeated. */
	return grant->committed_cut == rec->committed_cut + 1 && volume_closed_cut(vol);
}

static int volume_diverge(struct volume *vol, const struct dm_dedup_volume_info *grant)
{
	struct cache *c = vol->cache;

	DMERR("%s: diverged: holds unpushed data of epoch %llu, cut %llu; the head is at epoch %llu, cut %llu. Recover it as a new image, or release it with discard",
	      vol->rec.name, vol->rec.lease_epoch, vol->rec.committed_cut, grant->lease_epoch,
	      grant->committed_cut);
	spin_lock(&c->lock);
	vol->rec.flags |= DEDUP_VOL_DIVERGED;
	volume_changed(vol);
	spin_unlock(&c->lock);
	return dedup_store_sync(c->store) ?: -ESTALE;
}

/* Writes the grant into the record; a new one gets a new volume id. */
static int volume_take_grant(struct volume *vol, const char *name, u32 flags,
			     const struct dm_dedup_volume_info *grant)
{
	struct dedup_volume_rec *rec = &vol->rec;
	struct cache *c = vol->cache;
	bool fresh = !rec->id || grant->lease_epoch != rec->lease_epoch ||
		     grant->committed_cut != rec->committed_cut;
	bool other = fresh || memcmp(grant->root, rec->root, sizeof(rec->root));
	int r;

	if (!rec->id) {
		r = volume_take_index(vol);
		if (r)
			return r;
	}
	spin_lock(&c->lock);
	if (fresh) {
		rec->id = cache_new_id(c);
		rec->lease_epoch = grant->lease_epoch;
		rec->committed_cut = grant->committed_cut;
		rec->cut_counter = grant->committed_cut + 1;
		WRITE_ONCE(vol->cut_counter, rec->cut_counter);
	}
	memcpy(rec->root, grant->root, sizeof(rec->root));
	memcpy(vol->root, grant->root, sizeof(vol->root));
	rec->flags = flags & (DEDUP_VOL_READONLY | DEDUP_VOL_EPHEMERAL);
	if (!(flags & DEDUP_VOL_READONLY))
		rec->flags |= DEDUP_VOL_GRANTED;
	memset(rec->name, 0, sizeof(rec->name));
	strscpy(rec->name, name, sizeof(rec->name));
	volume_changed(vol);
	spin_unlock(&c->lock);
	/* A FENCE was for the grant before. */
	clear_bit(VOLUME_FENCED, &vol->state);
	/* After the root: a PUBLISH for the old one that is under way can map nothing any more. */
	if (other)
		volume_reset_map(vol);
	return dedup_store_sync(c->store);
}

static int grant_check(struct volume *vol, u32 flags, const struct dm_dedup_volume_info *grant)
{
	const u32 known = DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL;
	const char *why = NULL;

	if (grant->flags & ~known)
		why = "unknown flags";
	else if (grant->size != vol->table_size)
		why = "another size than LOOKUP";
	else if (!flags && (grant->flags & DM_DEDUP_VOL_READONLY))
		why = "a read-only grant for a writable device: give the option read_only";
	else if (!(flags & DEDUP_VOL_EPHEMERAL) && (grant->flags & DM_DEDUP_VOL_EPHEMERAL))
		why = "an ephemeral grant for a table without the option ephemeral";
	else if (!flags && !grant->flags && !grant->lease_epoch)
		why = "no lease epoch";
	else if (grant->committed_cut > DEDUP_MAX_CUT - 4)
		why = "an impossible cut";
	if (!why)
		return 0;
	DMERR("the agent answered OPEN with %s", why);
	return -EPROTO;
}

/*
 * Not under the mutex: the agent may be in the midst of a CUT or a COMMIT of this volume, and
 * need that to end before it answers. @changed: the record is not what was asked about any more.
 */
static int volume_ask_grant(struct volume *vol, const char *name, u32 *flags, unsigned int timeout,
			    struct dm_dedup_volume_info *grant, bool *changed)
{
	const struct dedup_volume_rec *rec = &vol->rec;
	u64 id = rec->id, committed = rec->committed_cut;
	u32 rec_flags = rec->flags;
	struct cache *c = vol->cache;
	u64 cookie;
	int r;

	spin_lock(&c->lock);
	cookie = cache_new_id(c);
	volume_info(vol, grant);
	/* How a clean volume was opened before does not matter: the table says how it is now. */
	if (!volume_is_dirty(vol))
		grant->flags &= ~(DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL);
	spin_unlock(&c->lock);
	strscpy(grant->name, name, sizeof(grant->name));
	grant->flags |= *flags;
	mutex_unlock(&vol->mutex);
	r = channel_ask(c->channel, DM_DEDUP_UP_OPEN, cookie, grant, timeout);
	mutex_lock(&vol->mutex);
	*changed = rec->id != id || rec->committed_cut != committed || rec->flags != rec_flags;
	if (!r)
		r = grant_check(vol, *flags, grant);
	if (!r)
		*flags |= grant->flags;
	return r;
}

static int volume_try_open(struct volume *vol, const char *name, u32 flags, unsigned int timeout,
			   struct dm_dedup_volume_info *grant, bool *again)
{
	const u32 broken = DEDUP_VOL_DIVERGED | DEDUP_VOL_FENCED;
	struct cache *c = vol->cache;
	bool dirty;
	int r;

	spin_lock(&c->lock);
	dirty = volume_is_dirty(vol);
	spin_unlock(&c->lock);
	*again = false;
	if (dirty && (vol->rec.flags & broken)) {
		DMERR("%s: diverged: recover its data as a new image, or release it with discard",
		      vol->rec.name);
		return -ESTALE;
	}
	/* What is written to it would never be pushed: only who says so may go on with it. */
	if (dirty && (vol->rec.flags & DEDUP_VOL_EPHEMERAL) && !(flags & DEDUP_VOL_EPHEMERAL)) {
		DMERR("%s: was opened ephemeral and not detached: detach it, which gives up what it holds, or open it with the option ephemeral",
		      vol->rec.name);
		return -EBUSY;
	}
	if (!channel_has_agent(c->channel) && vol->rec.id && !(vol->rec.flags & broken) &&
	    ((vol->rec.flags & DEDUP_VOL_GRANTED) || (flags & DEDUP_VOL_READONLY)))
		return 0;
	r = volume_ask_grant(vol, name, &flags, timeout, grant, again);
	if (r || *again)
		return r;
	if (!dirty)
		return volume_take_grant(vol, name, flags, grant);
	return grant_continues(vol, grant) ? 0 : volume_diverge(vol, grant);
}

/*
 * volume_open - get or confirm the grant of a volume, durably
 * @flags: DEDUP_VOL_READONLY, DEDUP_VOL_EPHEMERAL: what the table asks for
 *
 * Without an agent the grant that the record holds is enough. Drops the mutex while it asks the
 * agent, and asks again when the record has changed meanwhile. Errors: what the agent said;
 * -ETIMEDOUT, -EINTR; -ESTALE: diverged; -EPROTO; -ENOSPC; -EBUSY: it changed again and again, or holds
 * what was written to it as an ephemeral volume, which it shall not be now; the store's.
 */
int volume_open(struct volume *vol, const char *name, u32 flags, unsigned int timeout)
{
	struct dm_dedup_volume_info *grant;
	unsigned int tries = OPEN_TRIES;
	bool again = true;
	int r = 0;

	lockdep_assert_held(&vol->mutex);
	if (vol->open)
		return 0;
	grant = kzalloc(sizeof(*grant), GFP_KERNEL);
	if (!grant)
		return -ENOMEM;
	while (!r && again && tries--)
		r = volume_try_open(vol, name, flags, timeout, grant, &again);
	kfree(grant);
	if (!r && again)
		r = -EBUSY;
	if (!r)
		WRITE_ONCE(vol->open, true);
	return r;
}

static bool device_has_other(struct cache *c, const struct mapped_device *md, const u8 *image)
{
	const struct volume *vol;

	lockdep_assert_held(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		if (vol->users && vol->md == md &&
		    memcmp(vol->rec.image, image, sizeof(vol->rec.image)))
			return true;
	return false;
}

/*
 * volume_use - bind a volume to the one device that may have it
 *
 * Returns the image's volume with a reference, made now if need be, or -EBUSY if another
 * device has it, -EEXIST if this device has another image's, -ENOMEM. (A name may mean another image
 * than when the device was made: it must not change beneath what is mounted there.)
 */
struct volume *volume_use(struct cache *c, const u8 *image, u64 size, struct mapped_device *md)
{
	unsigned int noio = memalloc_noio_save();
	struct volume *vol;

	/* Memory must not wait for writes here: a push that makes room for them takes this mutex. */
	mutex_lock(&c->mutex);
	if (device_has_other(c, md, image)) {
		vol = ERR_PTR(-EEXIST);
		goto unlock;
	}
	vol = volume_find_image(c, image);
	if (!vol) {
		vol = volume_new(c, image, size);
		if (IS_ERR(vol))
			goto unlock;
		refcount_inc(&vol->refs);
	}
	if (vol->users && vol->md != md) {
		volume_put(vol);
		vol = ERR_PTR(-EBUSY);
		goto unlock;
	}
	vol->md = md;
	vol->users++;
unlock:
	mutex_unlock(&c->mutex);
	memalloc_noio_restore(noio);
	return vol;
}

/*
 * A table lets go. @open is cleared with the last user and under the same mutex: the next
 * device's preresume comes after its volume_use(), and then finds the volume closed.
 */
void volume_unuse(struct volume *vol)
{
	struct cache *c = vol->cache;
	struct dm_dedup_volume_info *info;
	bool closed = false;

	mutex_lock(&c->mutex);
	if (!--vol->users) {
		vol->md = NULL;
		closed = vol->open;
		WRITE_ONCE(vol->open, false);
	}
	volume_unlist(vol);
	mutex_unlock(&c->mutex);

	info = closed ? kmalloc(sizeof(*info), GFP_KERNEL) : NULL;
	if (info) {
		spin_lock(&c->lock);
		volume_info(vol, info);
		spin_unlock(&c->lock);
		channel_event(c->channel, &vol->close_event, info);
		kfree(info);
	}
	volume_put(vol);
}
