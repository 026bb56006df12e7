// SPDX-License-Identifier: GPL-2.0-only
/*
 * What map() cannot finish by itself: bios that wait for a leaf of the map, a slot, or a block
 * that has to be fetched. answer.c has what brings those blocks.
 *
 * A deferred bio lies within one block and holds no reference. The volume's worker looks at it
 * again from the start:
 *
 *	all pieces are here           submitted, in pieces if they lie in several layers
 *	a piece is missing            parked in the block's miss; one FETCH for all that wait
 *	too many misses, no memory    parked in cache.full_bios until one is answered
 *	a write without a free slot   parked in cache.space_bios until eviction or a push frees one
 *
 * Misses
 *
 *	asked      in both hash tables, its upcall in the channel
 *	answered   removed from them under the lock by PUBLISH, MAP or FAIL; its bios go on
 *	restarted  removed by COMMIT, suspend or close; its bios are deferred or requeued, the
 *	           cookie names nothing any more
 */
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include "dedup.h"
#include "trace.h"

/* ---- deferring ---- */

/* Hands a bio to the volume's worker. Never sleeps. */
void volume_defer(struct volume *vol, struct bio *bio)
{
	spin_lock(&vol->defer_lock);
	bio_list_add(&vol->deferred, bio);
	spin_unlock(&vol->defer_lock);
	queue_work(vol->cache->wq, &vol->work);
}

static struct volume *bio_volume(struct bio *bio)
{
	return bio_data_of(bio)->vol;
}

static void bio_end(struct bio *bio, blk_status_t status)
{
	bio->bi_status = status;
	bio_endio(bio);
}

void bios_end(struct bio_list *bios, blk_status_t status)
{
	struct bio *bio;

	while ((bio = bio_list_pop(bios)))
		bio_end(bio, status);
}

static void bios_defer(struct bio_list *bios)
{
	struct bio *bio;

	while ((bio = bio_list_pop(bios)))
		volume_defer(bio_volume(bio), bio);
}

/* ---- the table of misses ---- */

static u64 block_key(struct volume *vol, u64 block)
{
	return block ^ hash_long((unsigned long)vol, 48);
}

struct miss *miss_find(struct volume *vol, u64 block)
{
	struct cache *c = vol->cache;
	struct miss *m;

	lockdep_assert_held(&c->lock);
	hash_for_each_possible(c->miss_blocks, m, by_block, block_key(vol, block))
		if (m->vol == vol && m->block == block)
			return m;
	return NULL;
}

struct miss *miss_find_cookie(struct cache *c, u64 cookie)
{
	struct miss *m;

	lockdep_assert_held(&c->lock);
	hash_for_each_possible(c->miss_cookies, m, by_cookie, cookie)
		if (m->up.msg.cookie == cookie)
			return m;
	return NULL;
}

static void miss_fill_upcall(struct miss *m, u64 cookie)
{
	struct dm_dedup_upcall *msg = &m->up.msg;
	struct volume *vol = m->vol;

	upcall_init(&m->up, DM_DEDUP_UP_FETCH);
	msg->cookie = cookie;
	msg->block = m->block;
	msg->info.volume = vol->rec.id;
	memcpy(msg->info.image, vol->rec.image, sizeof(msg->info.image));
	memcpy(msg->info.root, vol->root, sizeof(msg->info.root));
	msg->info.size = vol->rec.size;
	msg->info.lease_epoch = vol->rec.lease_epoch;
	strscpy(msg->info.name, vol->rec.name, sizeof(msg->info.name));
}

static void miss_start(struct miss *m, struct volume *vol, u64 block)
{
	struct cache *c = vol->cache;

	m->vol = vol;
	m->block = block;
	m->since = get_jiffies_64();
	m->start = ktime_get();
	bio_list_init(&m->bios);
	miss_fill_upcall(m, cache_new_id(c));
	hash_add(c->miss_blocks, &m->by_block, block_key(vol, block));
	hash_add(c->miss_cookies, &m->by_cookie, m->up.msg.cookie);
	c->nr_misses++;
	trace_dedup_miss_start(vol, block, m->up.msg.cookie);
	channel_queue(c->channel, &m->up);
}

/* Takes the miss out of everything; the caller has its bios and frees it. */
void miss_end(struct cache *c, struct miss *m, enum miss_how how)
{
	u64 us = ktime_us_delta(ktime_get(), m->start);

	lockdep_assert_held(&c->lock);
	trace_dedup_miss_end(m->vol, m->block, m->up.msg.cookie, us, how == MISS_ANSWERED);
	if (how == MISS_ANSWERED)
		fetched_add(m->vol, us);
	else if (how == MISS_FAILED)
		m->vol->fetched.failed++;
	hash_del(&m->by_block);
	hash_del(&m->by_cookie);
	c->nr_misses--;
	channel_cancel(c->channel, &m->up);
}

/* A miss has ended: those that found the table full may try again. Not under the lock. */
void misses_ended(struct cache *c)
{
	struct bio_list bios;

	spin_lock(&c->lock);
	bios = c->full_bios;
	bio_list_init(&c->full_bios);
	spin_unlock(&c->lock);
	bios_defer(&bios);
}

enum park { PARKED, PARK_AGAIN, PARK_REQUEUE, PARK_FAIL };

/* From the first time on that it waits, however often it is tried again. */
static void bio_waits(struct bio *bio)
{
	struct bio_data *bd = bio_data_of(bio);

	if (bd->flags & BIO_WAITED)
		return;
	bd->flags |= BIO_WAITED;
	bd->since = get_jiffies_64();
}

static bool bio_is_late(struct bio *bio, u64 now, unsigned int timeout)
{
	return timeout && time_after64(now, bio_data_of(bio)->since + (u64)timeout * HZ);
}

/* Waits in the block's miss. Not if the block has come meanwhile: look again. */
static enum park miss_park_locked(struct volume *vol, u64 block, struct bio *bio,
				  struct miss **spare)
{
	u64 *base = volume_base(vol, block);
	struct cache *c = vol->cache;
	struct miss *m;

	if (base ? !volume_base_unmapped(c, *base) : !!volume_slot_of(vol, block))
		return PARK_AGAIN;
	/* Whoever sets the bit goes through the tables under the lock afterwards. */
	if (test_bit(VOLUME_REQUEUE, &vol->state))
		return PARK_REQUEUE;
	if (health_is_hopeless(c))
		return PARK_FAIL;
	m = miss_find(vol, block);
	if (!m && (!*spare || !base || c->nr_misses >= DEDUP_MAX_MISSES)) {
		bio_waits(bio);
		trace_dedup_park(vol, bio, "a place");
		bio_list_add(&c->full_bios, bio);
		return PARKED;
	}
	if (!m) {
		m = *spare;
		*spare = NULL;
		miss_start(m, vol, block);
	}
	trace_dedup_park(vol, bio, "the block");
	bio_list_add(&m->bios, bio);
	return PARKED;
}

static enum park miss_park(struct volume *vol, u64 block, struct bio *bio)
{
	struct miss *spare = kzalloc(sizeof(*spare), GFP_NOIO);
	struct cache *c = vol->cache;
	enum park ret;

	spin_lock(&c->lock);
	ret = miss_park_locked(vol, block, bio, &spare);
	spin_unlock(&c->lock);
	kfree(spare);
	return ret;
}

/* A write that found no slot waits for the space worker. */
static enum park space_park(struct volume *vol, struct bio *bio)
{
	struct cache *c = vol->cache;
	enum park ret = PARKED;

	spin_lock(&c->lock);
	if (test_bit(VOLUME_REQUEUE, &vol->state)) {
		ret = PARK_REQUEUE;
	} else {
		bio_waits(bio);
		trace_dedup_park(vol, bio, "a slot");
		bio_list_add(&c->space_bios, bio);
		c->stats.space_waits++;
	}
	spin_unlock(&c->lock);
	/* What it waits for may have come between its look and its parking. */
	space_kick(c);
	return ret;
}

/* ---- submitting ---- */

/* Carries out a read as planned in @view. The bio holds a reference already. */
void submit_view(struct volume *vol, struct bio *bio, const struct view *view)
{
	struct cache *c = vol->cache;
	u32 offset = bio->bi_iter.bi_sector & (c->block_sectors - 1);
	struct run run;

	for (;;) {
		struct bio *piece = bio;

		view_run(c, view, offset, bio_sectors(bio), &run);
		if (run.len < bio_sectors(bio)) {
			piece = bio_split(bio, run.len, GFP_NOIO, &c->bios);
			bio_chain(piece, bio);
		}
		if (run.kind == ENTRY_BASE) {
			bio_set_dev(piece, c->bdev);
			piece->bi_iter.bi_sector = slot_sector(c, run.slot) + offset;
			submit_bio_noacct(piece);
		} else {
			zero_fill_bio(piece);
			bio_endio(piece);
		}
		if (piece == bio)
			return;
		offset += run.len;
	}
}

static bool view_covers(struct cache *c, const struct view *view, u32 offset, u32 len)
{
	struct run run;

	while (len) {
		view_run(c, view, offset, len, &run);
		if (run.kind == ENTRY_NONE)
			return false;
		offset += run.len;
		len -= run.len;
	}
	return true;
}

/* ---- the worker ---- */

/* The bio keeps the reference until it has completed. */
void bio_hold(struct bio *bio, unsigned int epoch)
{
	struct bio_data *bd = bio_data_of(bio);

	bd->epoch = epoch;
	bd->flags |= BIO_INFLIGHT;
}

static void park_ended(struct bio *bio, enum park how)
{
	if (how == PARK_REQUEUE)
		bio_end(bio, BLK_STS_DM_REQUEUE);
	else if (how == PARK_FAIL)
		bio_end(bio, BLK_STS_IOERR);
}

static void volume_read(struct volume *vol, struct bio *bio, u64 block)
{
	struct cache *c = vol->cache;
	u32 offset = bio->bi_iter.bi_sector & (c->block_sectors - 1);
	unsigned int epoch;
	struct view view;
	enum park how;

	do {
		epoch = inflight_enter(&c->inflight);
		view_load(vol, block, &view);
		if (view_covers(c, &view, offset, bio_sectors(bio))) {
			bio_hold(bio, epoch);
			submit_view(vol, bio, &view);
			return;
		}
		inflight_leave(&c->inflight, epoch);
		how = miss_park(vol, block, bio);
	} while (how == PARK_AGAIN);
	park_ended(bio, how);
}

/*
 * Opens the overlay of the block, or finds it open. The reference is taken before the cut
 * counter is read, and kept until the valid bits are set: a CUT that raised the counter waits
 * for whoever may have read the old one.
 */
bool volume_start_write(struct volume *vol, struct bio *bio, u64 block, u32 offset)
{
	struct bio_data *bd = bio_data_of(bio);
	struct cache *c = vol->cache;
	struct overlay *ov = NULL;
	bool opened = false;

	bd->epoch = inflight_enter(&c->inflight);
	planted_delay();
	spin_lock(&c->lock);
	if (volume_slot_of(vol, block))
		ov = overlay_open(vol, block, 0, &opened);
	spin_unlock(&c->lock);
	planted_delay();
	if (!ov) {
		inflight_leave(&c->inflight, bd->epoch);
		return false;
	}
	if (opened)
		this_cpu_inc(vol->stats->write_opens);
	bd->flags |= BIO_INFLIGHT | BIO_WRITE;
	if (bio->bi_opf & REQ_FUA) {
		/* Its valid bits are new: durable with a commit, whose preflush covers the data. */
		bio->bi_opf &= ~REQ_FUA;
		bd->flags |= BIO_FUA;
	}
	bd->ov = ov;
	bd->offset = offset;
	bd->sectors = bio_sectors(bio);
	if (planted(PLANTED_VALID_AT_MAP))
		overlay_written(c, bd);
	bio_set_dev(bio, c->bdev);
	bio->bi_iter.bi_sector = slot_sector(c, ov->slot) + offset;
	return true;
}

static void volume_write(struct volume *vol, struct bio *bio, u64 block)
{
	struct cache *c = vol->cache;
	u32 offset = bio->bi_iter.bi_sector & (c->block_sectors - 1);

	blk_status_t status = volume_write_status(vol);

	if (status)
		bio_end(bio, status);
	else if (volume_start_write(vol, bio, block, offset))
		submit_bio_noacct(bio);
	else
		park_ended(bio, space_park(vol, bio));
}

/* ---- zeros ---- */

/* A discard or write-zeroes that needs no I/O of its own is done. */
static void zero_done(struct volume *vol, struct bio *bio)
{
	struct bio_data *bd = bio_data_of(bio);

	if (bio->bi_opf & REQ_FUA && volume_commit_pending(vol)) {
		bd->flags = 0;
		commit_wait(vol->cache, vol, bio);
		return;
	}
	bio_end(bio, BLK_STS_OK);
}

enum zero { ZERO_DONE, ZERO_WRITE, ZERO_SPACE };

/*
 * Makes a whole block zero by a record: an overlay without valid sectors whose base is zero. It
 * is cut, listed, committed and recovered like any other. Whoever waits for the block's base
 * waits in vain: the bios of its miss are to run again. With an open overlay there already,
 * or too many such records, there is only writing zeros; or nothing, for a discard.
 */
static enum zero zero_by_record(struct volume *vol, u64 block, struct bio_list *again)
{
	struct cache *c = vol->cache;
	u64 *entry = volume_slot_of(vol, block);
	struct overlay *ov;
	bool opened = false;
	struct miss *m;

	lockdep_assert_held(&c->lock);
	if (!entry || c->nr_zero >= c->max_zero)
		return ZERO_WRITE;
	if (entry_kind(*entry) == ENTRY_ZERO)
		return ZERO_DONE;
	ov = overlay_open(vol, block, DEDUP_OVERLAY_BASE_ZERO, &opened);
	if (!ov)
		return ZERO_SPACE;
	if (!opened)
		return ZERO_WRITE;
	slot_changed(c, ov->slot, vol);
	m = miss_find(vol, block);
	if (m) {
		miss_end(c, m, MISS_RESTARTED);
		*again = m->bios;
		kfree(m);
	}
	return ZERO_DONE;
}

static bool zero_covers_block(struct volume *vol, struct bio *bio)
{
	u32 mask = vol->cache->block_sectors - 1;
	sector_t end = bio_end_sector(bio);

	return !(bio->bi_iter.bi_sector & mask) &&
	       (!(end & mask) || end == vol->rec.size >> SECTOR_SHIFT);
}

static void volume_zero(struct volume *vol, struct bio *bio, u64 block)
{
	struct bio_list again = BIO_EMPTY_LIST;
	struct cache *c = vol->cache;
	enum zero how = ZERO_WRITE;
	unsigned int epoch;

	if (volume_write_status(vol)) {
		bio_end(bio, volume_write_status(vol));
		return;
	}
	if (zero_covers_block(vol, bio)) {
		/* Before the cut counter is read, as for every write. */
		epoch = inflight_enter(&c->inflight);
		spin_lock(&c->lock);
		how = zero_by_record(vol, block, &again);
		spin_unlock(&c->lock);
		inflight_leave(&c->inflight, epoch);
		bios_defer(&again);
	}
	if (how == ZERO_DONE || bio_op(bio) == REQ_OP_DISCARD)
		zero_done(vol, bio);
	else if (how == ZERO_WRITE)
		volume_write(vol, bio, block);
	else
		park_ended(bio, space_park(vol, bio));
}

static void volume_process(struct volume *vol, struct bio *bio)
{
	u64 block = bio->bi_iter.bi_sector >> vol->cache->sector_shift;

	if (test_bit(VOLUME_REQUEUE, &vol->state)) {
		bio_end(bio, BLK_STS_DM_REQUEUE);
		return;
	}
	/* Without memory for a leaf the bio waits, and the tick lets it try again. */
	volume_make_leaf(vol, block, GFP_NOIO);
	if (bio_op(bio) == REQ_OP_READ)
		volume_read(vol, bio, block);
	else if (bio_op(bio) == REQ_OP_WRITE)
		volume_write(vol, bio, block);
	else
		volume_zero(vol, bio, block);
}

void volume_work(struct work_struct *work)
{
	struct volume *vol = container_of(work, struct volume, work);
	struct blk_plug plug;
	struct bio_list bios;
	struct bio *bio;

	spin_lock(&vol->defer_lock);
	bios = vol->deferred;
	bio_list_init(&vol->deferred);
	spin_unlock(&vol->defer_lock);

	blk_start_plug(&plug);
	while ((bio = bio_list_pop(&bios)))
		volume_process(vol, bio);
	blk_finish_plug(&plug);
}

/* There are slots again: writes that wait may try. They park again if it was not enough. */
void space_waiters_run(struct cache *c, bool force)
{
	struct bio_list bios = BIO_EMPTY_LIST;

	spin_lock(&c->lock);
	if (force || c->error ||
	    (c->nr_pool > c->reserve && c->nr_overlay_pool && !READ_ONCE(c->maps_full))) {
		bios = c->space_bios;
		bio_list_init(&c->space_bios);
	}
	spin_unlock(&c->lock);
	bios_defer(&bios);
}

/* Once a second: writes that have waited longer than the table allows. */
void space_waiters_expire(struct cache *c)
{
	struct bio_list late = BIO_EMPTY_LIST, rest = BIO_EMPTY_LIST;
	u64 now = get_jiffies_64();
	struct bio *bio;

	spin_lock(&c->lock);
	while ((bio = bio_list_pop(&c->space_bios)))
		bio_list_add(bio_is_late(bio, now, c->dirty_timeout) ? &late : &rest, bio);
	c->space_bios = rest;
	spin_unlock(&c->lock);
	bios_end(&late, BLK_STS_NOSPC);
}

/* ---- taking parked bios back ---- */

typedef bool (*miss_match_fn)(const struct miss *m, const void *what);

/* Ends the misses that match and gathers their bios. */
static void misses_take(struct cache *c, miss_match_fn match, const void *what,
			enum miss_how how, struct bio_list *bios)
{
	struct hlist_node *next;
	struct miss *m;
	int i;

	lockdep_assert_held(&c->lock);
	hash_for_each_safe(c->miss_blocks, i, next, m, by_block) {
		if (!match(m, what))
			continue;
		miss_end(c, m, how);
		bio_list_merge(bios, &m->bios);
		kfree(m);
	}
}

static bool miss_is_of(const struct miss *m, const void *what)
{
	return m->vol == what;
}

static bool miss_is_late(const struct miss *m, const void *what)
{
	unsigned int timeout = READ_ONCE(m->vol->fetch_timeout);

	return timeout && time_after64(*(const u64 *)what, m->since + (u64)timeout * HZ);
}

/* The root has changed: whoever waits asks again, under a new cookie and with the new root. */
void misses_restart(struct volume *vol)
{
	struct bio_list bios = BIO_EMPTY_LIST;
	struct cache *c = vol->cache;

	spin_lock(&c->lock);
	misses_take(c, miss_is_of, vol, MISS_RESTARTED, &bios);
	spin_unlock(&c->lock);
	bios_defer(&bios);
	misses_ended(c);
}

static void bios_take_of(struct bio_list *from, struct volume *vol, struct bio_list *to)
{
	struct bio_list rest = BIO_EMPTY_LIST;
	struct bio *bio;

	while ((bio = bio_list_pop(from)))
		bio_list_add(bio_volume(bio) == vol ? to : &rest, bio);
	*from = rest;
}

/* Ends every parked bio of the volume: to be requeued, or with an error. */
void volume_return_parked(struct volume *vol, blk_status_t status)
{
	struct bio_list bios = BIO_EMPTY_LIST;
	struct cache *c = vol->cache;

	spin_lock(&c->lock);
	misses_take(c, miss_is_of, vol,
		    status == BLK_STS_DM_REQUEUE ? MISS_RESTARTED : MISS_FAILED, &bios);
	bios_take_of(&c->full_bios, vol, &bios);
	bios_take_of(&c->space_bios, vol, &bios);
	spin_unlock(&c->lock);
	bios_end(&bios, status);
	misses_ended(c);
}

/* Once a second: deadlines, and another try for those that found no memory. */
void misses_tick(struct cache *c)
{
	struct bio_list late = BIO_EMPTY_LIST, rest = BIO_EMPTY_LIST;
	u64 now = get_jiffies_64();
	struct bio *bio;

	spin_lock(&c->lock);
	misses_take(c, miss_is_late, &now, MISS_FAILED, &late);
	while ((bio = bio_list_pop(&c->full_bios)))
		bio_list_add(bio_is_late(bio, now, READ_ONCE(bio_volume(bio)->fetch_timeout)) ?
			     &late : &rest, bio);
	c->full_bios = rest;
	spin_unlock(&c->lock);
	bios_end(&late, BLK_STS_TIMEOUT);
	misses_ended(c);
}
