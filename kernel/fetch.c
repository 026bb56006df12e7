// SPDX-License-Identifier: GPL-2.0-only
/*
 * What map() cannot finish by itself: bios that wait for a leaf of the map, a slot, or a block
 * that has to be fetched. answer.c has what brings those blocks.
 *
 * A deferred bio lies within one block and holds no reference (but for reads that have failed, see
 * reread.c). The volume's worker looks at it again from the start:
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
 *
 * A noflush suspend sends back whatever waits. Device-mapper takes it until the suspend is
 * interrupted, which it says to nobody; so nothing may be on its way to be sent back when presuspend
 * returns. Whoever takes bios out of a table, and map() when it has found that one has to be
 * deferred, hands them to the worker within an RCU read-side section: volume_send_back() waits for that.
 */
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include "dedup.h"
#include "trace.h"

/* ---- deferring ---- */

/* Hands a bio to the volume's worker. Any context. */
void volume_defer(struct volume *vol, struct bio *bio)
{
	unsigned long flags;

	spin_lock_irqsave(&vol->defer_lock, flags);
	bio_list_add(&vol->deferred, bio);
	/* Under the lock: a worker that runs may end the bio at once, and then the volume may go. */
	queue_work(vol->cache->io_wq, &vol->work);
	spin_unlock_irqrestore(&vol->defer_lock, flags);
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
	m->start = ktime_get();
	bio_list_init(&m->bios);
	miss_fill_upcall(m, cache_new_id(c));
	hash_add(c->miss_blocks, &m->by_block, block_key(vol, block));
	hash_add(c->miss_cookies, &m->by_cookie, m->up.msg.cookie);
	/* Pair with miss_has_place() without the lock. */
	WRITE_ONCE(c->nr_misses, c->nr_misses + 1);
	WRITE_ONCE(vol->nr_misses, vol->nr_misses + 1);
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
	WRITE_ONCE(c->nr_misses, c->nr_misses - 1);
	WRITE_ONCE(m->vol->nr_misses, m->vol->nr_misses - 1);
	c->miss_ended = true;
	channel_cancel(c->channel, &m->up);
}

/* A miss has ended: those that found the table full may try again. Not under the lock. */
void misses_ended(struct cache *c)
{
	struct bio_list bios;

	rcu_read_lock();
	spin_lock(&c->lock);
	bios = c->full_bios;
	bio_list_init(&c->full_bios);
	spin_unlock(&c->lock);
	bios_defer(&bios);
	rcu_read_unlock();
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

/*
 * A volume may take half of the places that are left, so that one whose blocks do not come does not keep
 * the others' from being asked for.
 */
static bool miss_has_place(struct volume *vol)
{
	return READ_ONCE(vol->nr_misses) < DEDUP_MAX_MISSES - READ_ONCE(vol->cache->nr_misses);
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
	if (volume_requeues(vol))
		return PARK_REQUEUE;
	if (health_is_hopeless(c))
		return PARK_FAIL;
	bio_waits(bio);
	m = miss_find(vol, block);
	if (!m && (!*spare || !base || !miss_has_place(vol))) {
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
	/* Whoever sets one of these goes through those that wait under the lock afterwards. */
	if (volume_requeues(vol)) {
		ret = PARK_REQUEUE;
	} else if (volume_write_status(vol)) {
		ret = PARK_FAIL;
	} else {
		bio_waits(bio);
		trace_dedup_park(vol, bio, "a slot");
		bio_list_add(&c->space_bios, bio);
		c->stats.space_waits++;
		/*
		 * What it waits for may have come between its look and its parking. Under the lock: once
		 * the bio can be taken from there, the cache may go.
		 */
		space_kick(c);
	}
	spin_unlock(&c->lock);
	return ret;
}

/* ---- submitting ---- */

static void submit_run(struct cache *c, struct bio *bio, const struct run *run)
{
	if (run->kind == ENTRY_BASE) {
		u32 offset = bio->bi_iter.bi_sector & (c->block_sectors - 1);

		bio_set_dev(bio, c->bdev);
		bio->bi_iter.bi_sector = slot_sector(c, run->slot) + offset;
		submit_bio_noacct(bio);
	} else {
		zero_fill_bio(bio);
		bio_endio(bio);
	}
}

/*
 * Carries out a read as planned in @view, or, if it goes in pieces, the next one of them. The bio
 * holds a reference already.
 */
void submit_view(struct volume *vol, struct bio *bio, const struct view *view)
{
	struct bio_data *bd = bio_data_of(bio);
	struct cache *c = vol->cache;
	struct run run;

	if (bd->flags & BIO_PIECES) {
		read_next_piece(c, bio, view, &run);
		submit_run(c, bio, &run);
		return;
	}
	bio_note_read(bio, bd, bio->bi_iter.bi_sector);
	for (;;) {
		u32 offset = bio->bi_iter.bi_sector & (c->block_sectors - 1);
		struct bio *piece = bio;

		view_run(c, view, offset, bio_sectors(bio), &run);
		if (run.len < bio_sectors(bio)) {
			piece = bio_split(bio, run.len, GFP_NOIO, &c->bios);
			bio_chain(piece, bio);
		}
		submit_run(c, piece, &run);
		if (piece == bio)
			return;
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
	/* Of a read that goes in pieces the first sector: what follows it is the next piece's. */
	u32 len = bio_data_of(bio)->flags & BIO_PIECES ? 1 : bio_sectors(bio);
	unsigned int epoch;
	struct view view;
	enum park how;

	do {
		epoch = inflight_enter(&c->inflight);
		view_load(vol, block, &view);
		if (view_covers(c, &view, offset, len)) {
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
	else
		this_cpu_inc(vol->stats->write_hits);
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

/*
 * A discard or write-zeroes that needs no I/O of its own is done. What completed before it may still be
 * in the disk's volatile cache: a commit without changes flushes that.
 */
static void zero_done(struct volume *vol, struct bio *bio)
{
	struct bio_data *bd = bio_data_of(bio);
	struct cache *c = vol->cache;

	if (bio->bi_opf & REQ_FUA && (volume_commit_pending(vol) || bdev_write_cache(c->bdev))) {
		bd->flags = 0;
		commit_wait(c, vol, bio);
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
	if (how == ZERO_DONE)
		this_cpu_inc(vol->stats->write_zero);
	if (how == ZERO_DONE || bio_op(bio) == REQ_OP_DISCARD)
		zero_done(vol, bio);
	else if (how == ZERO_WRITE)
		volume_write(vol, bio, block);
	else
		park_ended(bio, space_park(vol, bio));
}

static void volume_process(struct volume *vol, struct bio *bio)
{
	u64 block;

	if ((bio_data_of(bio)->flags & BIO_FAILED) && !read_again(vol, bio))
		return;
	/*
	 * A read that is under way goes on in spite of a suspend, unless its block must be fetched. If
	 * then the suspend is interrupted at that very moment, it gets the error that the disk gave it.
	 */
	if (!(bio_data_of(bio)->flags & BIO_PIECES) && volume_requeues(vol)) {
		bio_end(bio, BLK_STS_DM_REQUEUE);
		return;
	}
	block = bio->bi_iter.bi_sector >> vol->cache->sector_shift;
	/*
	 * Without memory for a leaf the bio waits, and the tick lets it try again. What has to wait anyway
	 * takes none: many such would take those of others, and be run again when they have lost them.
	 */
	if (bio_op(bio) == REQ_OP_READ ? miss_has_place(vol) : overlays_ready(vol->cache))
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

	spin_lock_irq(&vol->defer_lock);
	bios = vol->deferred;
	bio_list_init(&vol->deferred);
	spin_unlock_irq(&vol->defer_lock);

	blk_start_plug(&plug);
	while ((bio = bio_list_pop(&bios)))
		volume_process(vol, bio);
	blk_finish_plug(&plug);
}

/* There are slots again: writes that wait may try. They park again if it was not enough. */
void space_waiters_run(struct cache *c, bool force)
{
	struct bio_list bios = BIO_EMPTY_LIST;

	rcu_read_lock();
	spin_lock(&c->lock);
	if (force || c->error ||
	    (c->nr_pool > c->reserve && overlays_ready(c) && !READ_ONCE(c->maps_full))) {
		bios = c->space_bios;
		bio_list_init(&c->space_bios);
	}
	spin_unlock(&c->lock);
	bios_defer(&bios);
	rcu_read_unlock();
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

static bool miss_is_over(struct miss *m)
{
	u64 *base = volume_base(m->vol, m->block);

	return base && !volume_base_unmapped(m->vol->cache, *base);
}

/* Ends the volume's misses, or those whose block has its base already, and gathers their bios. */
static void misses_take(struct volume *vol, bool all, enum miss_how how, struct bio_list *bios)
{
	struct cache *c = vol->cache;
	struct hlist_node *next;
	struct miss *m;
	int i;

	lockdep_assert_held(&c->lock);
	hash_for_each_safe(c->miss_blocks, i, next, m, by_block) {
		if (m->vol != vol || (!all && !miss_is_over(m)))
			continue;
		miss_end(c, m, how);
		bio_list_merge(bios, &m->bios);
		kfree(m);
	}
}

/*
 * The root has changed: whoever waits asks again, under a new cookie and with the new root. Or, not
 * @all: a COMMIT has mapped blocks, and whoever waits for one of them looks again.
 */
void misses_restart(struct volume *vol, bool all)
{
	struct bio_list bios = BIO_EMPTY_LIST;
	struct cache *c = vol->cache;

	rcu_read_lock();
	spin_lock(&c->lock);
	misses_take(vol, all, MISS_RESTARTED, &bios);
	spin_unlock(&c->lock);
	bios_defer(&bios);
	rcu_read_unlock();
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

static void parked_take(struct volume *vol, enum miss_how how, struct bio_list *bios)
{
	struct cache *c = vol->cache;

	spin_lock(&c->lock);
	misses_take(vol, true, how, bios);
	bios_take_of(&c->full_bios, vol, bios);
	bios_take_of(&c->space_bios, vol, bios);
	spin_unlock(&c->lock);
}

/* Ends every parked bio of the volume with an error. */
void volume_fail_parked(struct volume *vol)
{
	struct bio_list bios = BIO_EMPTY_LIST;

	parked_take(vol, MISS_FAILED, &bios);
	bios_end(&bios, BLK_STS_IOERR);
	misses_ended(vol->cache);
}

/*
 * volume_send_back - for a noflush suspend: whatever waits goes back to device-mapper
 *
 * VOLUME_REQUEUE is set: nothing is parked any more. When this returns all that had been parked or
 * deferred has been sent back, and no bio is that comes in; but see volume_process(). Sleeps.
 */
void volume_send_back(struct volume *vol)
{
	struct bio_list bios = BIO_EMPTY_LIST;

	/*
	 * In this order. From here on nobody finds a parked bio to take; who has taken some before has
	 * handed them to the worker then; and what is sent back comes in again at once, until
	 * device-mapper stops it.
	 */
	parked_take(vol, MISS_RESTARTED, &bios);
	synchronize_rcu();
	bios_end(&bios, BLK_STS_DM_REQUEUE);
	misses_ended(vol->cache);
	/* The worker may have handed bios to itself. */
	while (flush_work(&vol->work))
		;
}

/* The deadline is each bio's own, from when it first waited: blocks are asked for again meanwhile. */
static void bios_take_late(struct bio_list *from, u64 now, struct bio_list *late)
{
	struct bio_list rest = BIO_EMPTY_LIST;
	struct bio *bio;

	while ((bio = bio_list_pop(from)))
		bio_list_add(bio_is_late(bio, now, READ_ONCE(bio_volume(bio)->fetch_timeout)) ?
			     late : &rest, bio);
	*from = rest;
}

/* A block that nobody waits for any more is given up. */
static void misses_expire(struct cache *c, u64 now, struct bio_list *late)
{
	struct hlist_node *next;
	struct miss *m;
	int i;

	lockdep_assert_held(&c->lock);
	hash_for_each_safe(c->miss_blocks, i, next, m, by_block) {
		bios_take_late(&m->bios, now, late);
		if (!bio_list_empty(&m->bios))
			continue;
		miss_end(c, m, MISS_FAILED);
		kfree(m);
	}
}

/* Once a second: deadlines, and another try for those that found no memory. */
void misses_tick(struct cache *c)
{
	struct bio_list late = BIO_EMPTY_LIST;
	u64 now = get_jiffies_64();

	spin_lock(&c->lock);
	misses_expire(c, now, &late);
	bios_take_late(&c->full_bios, now, &late);
	spin_unlock(&c->lock);
	bios_end(&late, BLK_STS_TIMEOUT);
	misses_ended(c);
}
