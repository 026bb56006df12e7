// SPDX-License-Identifier: GPL-2.0-only
/*
 * The table of slots: their states (see dedup.h), the pool they are allocated from, and the
 * list of those whose records have changed, which the store asks for when it builds a commit.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "dedup.h"

/* A stream that cannot go on beside its last slot starts at a free run of this many. */
#define SLOT_RUN	16U
#define SLOT_RUN_SEARCH	(256U * SLOT_RUN)

static void list_init(struct slot_list *list)
{
	list->head = DEDUP_NO_SLOT;
	list->tail = DEDUP_NO_SLOT;
	list->count = 0;
}

static void list_append(struct cache *c, struct slot_list *list, u32 n)
{
	c->slots[n].next = DEDUP_NO_SLOT;
	if (list->tail == DEDUP_NO_SLOT)
		list->head = n;
	else
		c->slots[list->tail].next = n;
	list->tail = n;
	list->count++;
}

static u32 list_pop(struct cache *c, struct slot_list *list)
{
	u32 n = list->head;

	if (n == DEDUP_NO_SLOT)
		return n;
	list->head = c->slots[n].next;
	if (list->head == DEDUP_NO_SLOT)
		list->tail = DEDUP_NO_SLOT;
	list->count--;
	return n;
}

static void list_move_all(struct cache *c, struct slot_list *from, struct slot_list *to)
{
	if (!from->count)
		return;
	if (to->tail == DEDUP_NO_SLOT)
		to->head = from->head;
	else
		c->slots[to->tail].next = from->head;
	to->tail = from->tail;
	to->count += from->count;
	list_init(from);
}

/* What the table takes in memory, without overlays. */
u64 slots_memory(u64 nr_slots)
{
	return nr_slots * sizeof(struct slot) + DIV_ROUND_UP(nr_slots, 8);
}

int slots_init(struct cache *c)
{
	u32 n = c->nr_slots;

	BUILD_BUG_ON(sizeof(struct slot) > 64);
	c->slots = vzalloc(array_size(n, sizeof(struct slot)));
	c->pool = kvcalloc(BITS_TO_LONGS(n), sizeof(long), GFP_KERNEL);
	if (!c->slots || !c->pool)
		return -ENOMEM;
	bitmap_set(c->pool, 0, n);
	c->nr_pool = n;
	c->nr_state[SLOT_FREE] = n;
	list_init(&c->changes);
	list_init(&c->freeing);
	list_init(&c->freed);
	return 0;
}

void slots_exit(struct cache *c)
{
	kvfree(c->pool);
	vfree(c->slots);
}

void slot_set_state(struct cache *c, u32 n, enum slot_state state)
{
	struct slot *s = &c->slots[n];

	lockdep_assert_held(&c->lock);
	c->nr_state[s->state]--;
	c->nr_state[state]++;
	s->state = state;
}

/* ---- the pool ---- */

static bool pool_run_is_free(struct cache *c, u32 n)
{
	unsigned long word = c->pool[n / BITS_PER_LONG] >> (n % BITS_PER_LONG);

	return (word & ((1UL << SLOT_RUN) - 1)) == (1UL << SLOT_RUN) - 1;
}

/* Where a new stream of slots starts: so that it can go on for a while, if that can be had. */
static u32 pool_find(struct cache *c)
{
	u32 n = round_down(c->rover, SLOT_RUN);
	u32 looked;

	for (looked = 0; looked < min(c->nr_slots, SLOT_RUN_SEARCH); looked += SLOT_RUN) {
		if (n + SLOT_RUN > c->nr_slots)
			n = 0;
		if (pool_run_is_free(c, n)) {
			c->rover = n + SLOT_RUN;
			return n;
		}
		n += SLOT_RUN;
	}
	n = find_next_bit(c->pool, c->nr_slots, min(c->rover, c->nr_slots));
	if (n >= c->nr_slots)
		n = find_first_bit(c->pool, c->nr_slots);
	c->rover = n;
	return n;
}

/*
 * slot_alloc - take a slot out of the pool and give it a sequence
 * @hint: the slot that would be best, or DEDUP_NO_SLOT
 *
 * The reserve is for SLOT_FILLING only. Returns DEDUP_NO_SLOT if there is none to be had.
 */
u32 slot_alloc(struct cache *c, enum slot_state state, u32 hint)
{
	u32 n;

	lockdep_assert_held(&c->lock);
	if (c->nr_pool <= (state == SLOT_FILLING ? 0 : c->reserve))
		return DEDUP_NO_SLOT;
	n = hint < c->nr_slots && test_bit(hint, c->pool) ? hint : pool_find(c);
	if (WARN_ON_ONCE(n >= c->nr_slots))
		return DEDUP_NO_SLOT;
	__clear_bit(n, c->pool);
	c->nr_pool--;
	slot_set_state(c, n, state);
	c->slots[n].seq = cache_new_id(c);
	c->slots[n].ref = 1;
	if (c->nr_pool < c->low)
		space_kick(c);
	return n;
}

/* Back to the pool: the slot was FILLING, or is FREEING with its FREE record durable. */
void slot_unalloc(struct cache *c, u32 n)
{
	struct slot *s = &c->slots[n];

	lockdep_assert_held(&c->lock);
	slot_set_state(c, n, SLOT_FREE);
	memset(s->fp, 0, sizeof(s->fp));
	/*
	 * Of the last generation another use could not be told from the first one. Nobody sets
	 * SLOT_BAD any more: whoever wrote to the slot has gone.
	 */
	if (s->gen == ENTRY_GEN_MAX || (READ_ONCE(s->flags) & SLOT_BAD)) {
		c->nr_retired++;
		return;
	}
	__set_bit(n, c->pool);
	c->nr_pool++;
}

/*
 * Starts the way back of a CLEAN slot, or of a DIRTY one whose overlay no map names any more:
 * entries die here, the FREE record goes into the next commit, cache_committed() passes the
 * slot to slots_reclaim(), and that drains the readers.
 */
void slot_free(struct cache *c, u32 n)
{
	struct slot *s = &c->slots[n];

	lockdep_assert_held(&c->lock);
	WRITE_ONCE(s->gen, s->gen + 1);
	slot_set_state(c, n, SLOT_FREEING);
	if (planted(PLANTED_SLOT_REUSE) && !(s->flags & SLOT_PENDING)) {
		spin_lock_irq(&c->change_lock);
		list_append(c, &c->freed, n);
		spin_unlock_irq(&c->change_lock);
		return;
	}
	slot_changed(c, n, NULL);
}

/* A FILLING slot whose data is written, or an overlay that has become a base. */
void slot_make_clean(struct cache *c, u32 n, const u8 *fp)
{
	struct slot *s = &c->slots[n];

	lockdep_assert_held(&c->lock);
	memcpy(s->fp, fp, sizeof(s->fp));
	slot_set_state(c, n, SLOT_CLEAN);
	slot_changed(c, n, NULL);
}

/*
 * Is it the slots' fault? Not if the disk was busy, cannot do it at all, or its link was down; nor
 * if it could not write zeroes by itself: disks that offer it may refuse it in many ways, whereupon
 * the block layer writes them.
 */
bool slot_write_failed(struct bio *bio, blk_status_t status)
{
	return bio_op(bio) == REQ_OP_WRITE &&
	       (status == BLK_STS_IOERR || status == BLK_STS_MEDIUM || status == BLK_STS_NOSPC);
}

static bool slot_set_bad(struct cache *c, u32 n)
{
	struct slot *s = &c->slots[n];

	lockdep_assert_held(&c->change_lock);
	if (s->flags & SLOT_BAD)
		return false;
	s->flags |= SLOT_BAD;
	WRITE_ONCE(c->nr_bad, c->nr_bad + 1);
	return true;
}

/*
 * A write to these slots has failed. Any context; the reference of whoever wrote or read, or his
 * FILLING slot, keeps them from slot_unalloc().
 */
void slots_bad(struct cache *c, u32 n, u32 count)
{
	unsigned long flags;

	spin_lock_irqsave(&c->change_lock, flags);
	for (; count; count--, n++)
		c->nr_unwritable += slot_set_bad(c, n);
	/* No more writes, or all slots might go this way before somebody looks: see health.c. */
	if (c->nr_unwritable > c->reserve && !c->error)
		WRITE_ONCE(c->error, -EIO);
	spin_unlock_irqrestore(&c->change_lock, flags);
}

/* Counts the slot as bad for a reader, if that can be borne. */
static bool slot_bad_to_read(struct cache *c, u32 n, u8 flags)
{
	bool ret;

	spin_lock_irq(&c->change_lock);
	ret = c->slots[n].flags & SLOT_BAD || c->nr_bad < c->reserve;
	if (ret) {
		slot_set_bad(c, n);
		c->slots[n].flags |= flags;
	}
	spin_unlock_irq(&c->change_lock);
	return ret;
}

/*
 * The base of a block cannot be read: its slot is given up, unless as many are bad already as can be
 * borne. The caller holds the reader's reference. False: reading it once more is of no use.
 *
 *	CLEAN    is freed
 *	DIRTY    COMMIT is about to make it CLEAN: entries die now, and it will be freed then
 *	others   somebody else has been faster, or the eviction
 */
bool slot_unreadable(struct cache *c, u32 n)
{
	struct slot *s = &c->slots[n];
	bool given_up = true;

	spin_lock(&c->lock);
	if (s->state == SLOT_CLEAN) {
		given_up = slot_bad_to_read(c, n, 0);
		if (given_up)
			slot_free(c, n);
	} else if (s->state == SLOT_DIRTY && !(READ_ONCE(s->flags) & SLOT_LOST)) {
		given_up = slot_bad_to_read(c, n, SLOT_LOST);
		if (given_up)
			WRITE_ONCE(s->gen, s->gen + 1);
	}
	spin_unlock(&c->lock);
	/* What was suspected when the read failed may have been looked into before it was bad. */
	health_suspect(c);
	return given_up;
}

/* Takes what is durably FREE back into the pool. Sleeps until its readers have gone. */
void slots_reclaim(struct cache *c)
{
	struct slot_list freed;
	struct overlay *dead;
	u32 n;

	list_init(&freed);
	spin_lock(&c->lock);
	dead = c->dead;
	c->dead = NULL;
	spin_lock_irq(&c->change_lock);
	list_move_all(c, &c->freed, &freed);
	spin_unlock_irq(&c->change_lock);
	spin_unlock(&c->lock);
	if (!freed.count && !dead)
		return;

	inflight_drain(&c->inflight);

	while (dead) {
		struct overlay *ov = dead;

		dead = ov->next;
		overlay_free(c, ov);
	}
	spin_lock(&c->lock);
	while ((n = list_pop(c, &freed)) != DEDUP_NO_SLOT)
		slot_unalloc(c, n);
	spin_unlock(&c->lock);
}

/* ---- changes ---- */

/*
 * The slot's record differs from the journal's. @vol: whose flushes must wait for it, if any.
 * True if it is the first change that waits: then changes_kick() is due, not under the lock.
 */
bool slot_set_pending(struct cache *c, u32 n, struct volume *vol)
{
	struct slot *s = &c->slots[n];

	lockdep_assert_held(&c->change_lock);
	if (s->flags & SLOT_PENDING)
		return false;
	s->flags |= SLOT_PENDING;
	if (vol)
		vol->nr_pending++;
	list_append(c, &c->changes, n);
	return c->changes.count == 1;
}

/* A commit is to follow, soon. No store yet: this is the load, after which cache_start() kicks. */
void changes_kick(struct cache *c)
{
	if (c->store)
		dedup_store_kick(c->store);
}

void slot_changed(struct cache *c, u32 n, struct volume *vol)
{
	unsigned long flags;
	bool kick;

	spin_lock_irqsave(&c->change_lock, flags);
	kick = slot_set_pending(c, n, vol);
	spin_unlock_irqrestore(&c->change_lock, flags);
	if (kick)
		changes_kick(c);
}

static void commit_has(struct cache *c, struct volume *vol)
{
	if (vol->in_commit)
		return;
	vol->in_commit = true;
	list_add_tail(&vol->commit_list, &c->commit_volumes);
}

static bool next_volume_change(struct cache *c, struct dedup_change *change)
{
	struct volume *vol;

	vol = list_first_entry_or_null(&c->volume_changes, struct volume, pending_list);
	if (!vol)
		return false;
	list_del_init(&vol->pending_list);
	vol->rec_pending = false;
	commit_has(c, vol);
	change->kind = DEDUP_CHANGE_VOLUME;
	change->index = vol->index;
	change->volume = vol->rec;
	return true;
}

/* Bit n of a record's bitmap is bit n % 8 of byte n / 8, whatever our byte order is. */
static void bitmap_to_record(u8 *to, const unsigned long *from, unsigned int bits)
{
	unsigned int i;

	BUILD_BUG_ON(BITS_PER_LONG != 64);
	for (i = 0; i < BITS_TO_LONGS(bits); i++) {
		__le64 word = cpu_to_le64(READ_ONCE(from[i]));

		memcpy(to + i * sizeof(word), &word, sizeof(word));
	}
}

static void overlay_record(struct cache *c, struct overlay *ov, struct dedup_slot_rec *rec)
{
	u32 valid = bitmap_weight(ov->valid, c->block_sectors);

	ov->vol->nr_valid += valid - ov->nr_valid;
	ov->nr_valid = valid;
	rec->state = DEDUP_SLOT_DIRTY;
	rec->volume = ov->vol->rec.id;
	rec->block = ov->block;
	rec->cut = ov->cut;
	bitmap_to_record(rec->bitmap, ov->valid, c->block_sectors);
	rec->flags = ov->flags;
	if (overlay_complete(c, ov))
		rec->flags |= DEDUP_OVERLAY_COMPLETE;
}

/*
 * The pending flag goes first and the bits are read after it: a write that completes meanwhile
 * either has its bits in this record or makes the slot pending again.
 */
static bool next_slot_change(struct cache *c, struct dedup_change *change)
{
	u32 n = list_pop(c, &c->changes);
	struct slot *s = &c->slots[n];

	if (n == DEDUP_NO_SLOT)
		return false;
	s->flags &= ~SLOT_PENDING;
	change->kind = DEDUP_CHANGE_SLOT;
	change->index = n;
	memset(&change->slot, 0, sizeof(change->slot));
	change->slot.seq = s->seq;
	switch (s->state) {
	case SLOT_CLEAN:
		change->slot.state = DEDUP_SLOT_CLEAN;
		memcpy(change->slot.fp, s->fp, sizeof(s->fp));
		break;
	case SLOT_DIRTY:
		overlay_record(c, s->ov, &change->slot);
		s->ov->vol->nr_pending--;
		commit_has(c, s->ov->vol);
		break;
	default:
		change->slot.state = DEDUP_SLOT_FREE;
		list_append(c, &c->freeing, n);
		break;
	}
	return true;
}

static bool cache_next_change(void *ctx, struct dedup_change *change)
{
	struct cache *c = ctx;
	bool ret;

	spin_lock(&c->lock);
	spin_lock_irq(&c->change_lock);
	ret = next_volume_change(c, change) || next_slot_change(c, change);
	spin_unlock_irq(&c->change_lock);
	spin_unlock(&c->lock);
	return ret;
}

static void take_committed_bios(struct cache *c, u64 seq, int error, struct bio_list *done)
{
	struct bio_list wait = BIO_EMPTY_LIST;
	struct bio *bio;

	while ((bio = bio_list_pop(&c->commit_bios))) {
		if (error || bio_data_of(bio)->commit_seq <= seq)
			bio_list_add(done, bio);
		else
			bio_list_add(&wait, bio);
	}
	c->commit_bios = wait;
}

/*
 * Everything that was handed out is durable: freed slots may go on, flushes may complete. When
 * the store has failed nothing is durable any more, and whoever waits must be told.
 */
static void cache_committed(void *ctx, u64 seq, int error)
{
	struct bio_list done = BIO_EMPTY_LIST;
	struct cache *c = ctx;
	struct volume *vol, *next;
	struct bio *bio;
	bool freed;

	spin_lock(&c->lock);
	c->stats.appends++;
	spin_unlock(&c->lock);
	spin_lock_irq(&c->change_lock);
	if (error) {
		WRITE_ONCE(c->error, error);
	} else {
		list_for_each_entry_safe(vol, next, &c->commit_volumes, commit_list) {
			vol->in_commit = false;
			list_del_init(&vol->commit_list);
		}
		list_move_all(c, &c->freeing, &c->freed);
	}
	freed = c->freed.count;
	take_committed_bios(c, seq, error, &done);
	spin_unlock_irq(&c->change_lock);

	while ((bio = bio_list_pop(&done)))
		commit_done(bio, error);
	if (freed || error)
		space_kick(c);
}

/* ---- load ---- */

static int slot_load_dirty(struct cache *c, u32 n, const struct dedup_slot_rec *rec)
{
	struct volume *vol = volume_find(c, rec->volume);
	int r = 0;

	/* An overlay of a cut that was committed, or of a volume that was given up, is void. */
	if (vol && rec->cut > vol->rec.committed_cut) {
		r = overlay_load(vol, n, rec);
	} else {
		spin_lock(&c->lock);
		slot_free(c, n);
		spin_unlock(&c->lock);
	}
	if (vol)
		volume_put(vol);
	return r;
}

static int cache_load_slot(void *ctx, u64 n, const struct dedup_slot_rec *rec)
{
	struct cache *c = ctx;

	if (n >= c->nr_slots)
		return -EUCLEAN;
	spin_lock(&c->lock);
	__clear_bit(n, c->pool);
	c->nr_pool--;
	c->slots[n].seq = rec->seq;
	if (rec->state == DEDUP_SLOT_CLEAN) {
		memcpy(c->slots[n].fp, rec->fp, sizeof(rec->fp));
		slot_set_state(c, n, SLOT_CLEAN);
	}
	spin_unlock(&c->lock);
	if (rec->state == DEDUP_SLOT_CLEAN)
		return 0;
	return rec->state == DEDUP_SLOT_DIRTY ? slot_load_dirty(c, n, rec) : -EUCLEAN;
}

static int cache_load_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	return volume_load(ctx, index, rec);
}

static int cache_prepare_load(void *ctx, const struct dedup_store_info *info)
{
	return cache_prepare(ctx, info);
}

const struct dedup_store_ops cache_store_ops = {
	.prepare = cache_prepare_load,
	.load_volume = cache_load_volume,
	.load_slot = cache_load_slot,
	.next_change = cache_next_change,
	.committed = cache_committed,
};
