/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * DOC: what the parts of dm-dedup share
 *
 * A cache (struct cache) is a dedup-cache target: a disk, its store, its table of slots, the
 * volumes that it has records of, and the channel to its agent. A volume (struct volume) is an
 * image that was opened here; a dedup target is its device. Volumes with overlays live, and
 * can be cut, whether a device has them open or not.
 *
 * Locks, outermost first:
 *
 *	open_mutex		(target-cache.c) the opening and closing of caches
 *	registry_mutex		(target-cache.c) the list of caches, who uses them
 *	volume.mutex		one OPEN, CUT, COMMIT, FENCE or RELEASE of a volume at a time, and its size
 *	cache.mutex		which volumes there are, who uses them, their index
 *	inflight.mutex		one drain at a time
 *	cache.lock		slot states and their fields, the pool, map entries (writers of),
 *				overlays' lower layers, misses, volume.rec, volume.root
 *	cache.change_lock	what is pending for a commit, who waits for a commit. Taken in
 *				interrupts. Inside cache.lock or alone.
 *	channel.lock, volume.defer_lock	innermost
 *
 * The hit path takes none of them: it holds a reference (inflight.h), reads a map entry, and
 * follows it to a slot and an overlay. Whoever changes what it may still be looking at changes
 * the entry first, then drains, and only then reuses or frees what the entry named.
 */
#ifndef DEDUP_DEDUP_H
#define DEDUP_DEDUP_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/delay.h>
#include <linux/device-mapper.h>
#include <linux/hashtable.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/random.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include <linux/dm-dedup.h>

#include "compat/compat.h"
#include "channel.h"
#include "inflight.h"
#include "planted.h"
#include "record.h"
#include "store.h"

#define DM_MSG_PREFIX "dedup"

#define DEDUP_MAX_MISSES	1024U	/* FETCHes that wait at a time; more bios wait for one */
#define DEDUP_OVERLAY_POOL	512U	/* overlay descriptors kept ready for map() */
#define MEMORY_FOR_READS	SZ_512K	/* of max_memory, see memory.c; four of the largest leaves */
#define DEDUP_NO_SLOT		U32_MAX

/*
 * Slots
 *
 *	state    its record  what it is                    goes to
 *	FREE     FREE        in the pool (or retired)      FILLING, DIRTY
 *	FILLING  FREE        a PUBLISH writes it           CLEAN; FREE when that came to nothing
 *	CLEAN    CLEAN|FREE  the block that fp names       FREEING by eviction or DROP, or because
 *	                                                   it cannot be read
 *	DIRTY    DIRTY|FREE  an overlay                    CLEAN or FREEING after its COMMIT,
 *	                                                   FREEING when its volume is given up
 *	FREEING  any         named by no map; its record   FREE when the FREE record is durable,
 *	                     is to become FREE             and then the readers are drained
 *
 * So a slot is written only while its record is FREE, or as its own open overlay.
 */
enum slot_state {
	SLOT_FREE,
	SLOT_FILLING,
	SLOT_CLEAN,
	SLOT_DIRTY,
	SLOT_FREEING,
	NR_SLOT_STATES
};

/* slot.flags, under change_lock */
#define SLOT_PENDING	1	/* on the list of changes */
#define SLOT_BAD	2	/* could not be written, or read: once free it is not used again */
#define SLOT_LOST	4	/* DIRTY, and could not be read as the base that COMMIT was making it */

/*
 * struct slot - one slot in memory; there is one for each, so every byte counts
 * @seq: of the allocation; never used again
 * @fp: CLEAN: names the content
 * @ov: DIRTY
 * @next: number of the next slot in the list of changes, or of freed slots
 * @gen: goes up when the slot is freed: map entries that name an older one are dead
 * @ref: was read since eviction last looked; racy by intent
 */
struct slot {
	u64 seq;
	union {
		u8 fp[DEDUP_FP_BYTES];
		struct overlay *ov;
	};
	u32 next;
	u32 gen;
	u8 state;
	u8 flags;
	u8 ref;
};

/* A list of slots through slot.next. */
struct slot_list {
	u32 head;
	u32 tail;
	u32 count;
};

/*
 * Map entries, and overlays' lower layers: 2 bits of kind. An overlay's entry is the address of
 * its descriptor, so that the hit path needs no slot; any other has 32 bits of slot number and 30
 * of the slot's generation. 0 is an entry of kind NONE.
 */
enum entry_kind {
	ENTRY_NONE,	/* not known here: must be fetched */
	ENTRY_ZERO,
	ENTRY_BASE,	/* a CLEAN slot, if the generation is still the slot's */
	ENTRY_OVERLAY,
};

#define ENTRY_GEN_BITS	30
#define ENTRY_GEN_MAX	((1U << ENTRY_GEN_BITS) - 1)

static inline u64 entry_make(enum entry_kind kind, u32 slot, u32 gen)
{
	return (u64)gen << 34 | (u64)slot << 2 | kind;
}

static inline enum entry_kind entry_kind(u64 e)
{
	return e & 3;
}

static inline u32 entry_slot(u64 e)
{
	return e >> 2;
}

static inline u32 entry_gen(u64 e)
{
	return e >> 34;
}

static inline u64 entry_make_overlay(struct overlay *ov)
{
	return (u64)(unsigned long)ov | ENTRY_OVERLAY;
}

static inline struct overlay *entry_overlay(u64 e)
{
	return (struct overlay *)(unsigned long)(e & ~3ULL);
}

/*
 * struct overlay - sectors written over a block's base
 * @below: the layer under it: a closed overlay of an earlier cut, or the base
 * @block, @vol, @slot: of which it is
 * @cut: the volume's cut counter when it was opened; it is open while they are equal
 * @flags: DEDUP_OVERLAY_BASE_ZERO
 * @next: in the pool, or among the dead that wait for a drain
 * @nr_valid: how many bits the last record of it has, for the status
 * @valid: one bit a sector; bits are only ever set, and only when the data write has completed
 */
struct overlay {
	u64 below;
	u64 block;
	u64 cut;
	struct volume *vol;
	struct overlay *next;
	u32 slot;
	u16 nr_valid;
	u8 flags;
	unsigned long valid[];
};

/* The layers of one block, as one reader sees them: top overlay first. */
struct view {
	struct overlay *ov[2];
	u8 nr_ov;
	u8 base;		/* enum entry_kind; NONE: must be fetched; never OVERLAY */
	u32 base_slot;
};

/* A piece of one block that lies in one place. */
struct run {
	u8 kind;		/* ENTRY_NONE: a miss; ENTRY_ZERO; ENTRY_BASE: in @slot */
	bool overlaid;		/* in an overlay's slot, not in the base's */
	u32 slot;
	u32 len;		/* sectors */
};

struct volume_stats {		/* for each CPU; the hit path counts here and nowhere else */
	u64 read_base;		/* served from a CLEAN slot, */
	u64 read_overlay;	/* from sectors that were written here, */
	u64 read_zero;		/* as zeros without I/O */
	u64 read_misses;
	u64 write_hits;		/* into an overlay that was open */
	u64 write_opens;	/* that opened an overlay */
	u64 write_zero;		/* that made a whole block zero by a record */
	u64 deferred;
	u64 flushes;		/* that went straight down */
	u64 commits;		/* flushes and FUA writes that waited for a commit */
};

#define DEDUP_NR_SOURCES	(DM_DEDUP_SOURCE_DATA + 1)
#define DEDUP_LATENCIES	32	/* the last one takes all that are longer */

/*
 * struct volume_fetched - blocks that the agent brought, and how long they took; cache.lock
 * @from: by enum dm_dedup_source
 * @mapped: that were in a CLEAN slot already
 * @zero: that are zeros
 * @failed: FETCHes that the agent gave up, or that waited too long
 * @latency: of answered misses: [0] below 1 us, [n] from 2^(n-1) to below 2^n us
 */
struct volume_fetched {
	u64 from[DEDUP_NR_SOURCES];
	u64 mapped;
	u64 zero;
	u64 failed;
	u64 latency[DEDUP_LATENCIES];
	u64 total_us;
	u64 max_us;
};

/* volume.state, bits. The hit path reads them. */
#define VOLUME_READONLY		0
#define VOLUME_FENCED		1	/* writes fail */
#define VOLUME_REQUEUE		2	/* noflush suspend: see volume_requeues() */
#define VOLUME_FAIL_PARKED	3

/*
 * struct volume - an image that was opened on this cache
 * @rec: what the journal holds or is about to; rec.id 0: no record yet
 * @root: resolves FETCHes: rec.root, but only once that is durable
 * @cut_counter: rec.cut_counter for the hit path
 * @index: in the volume table, while rec.id is set
 * @suspended: the target whose noflush suspend set VOLUME_REQUEUE last; NULL: a test plays it
 * @md, @users: the one device that has it loaded or live, and in how many tables; cache.mutex
 * @open: a grant was given to the device; set under volume.mutex, cleared with the last user
 * @top: leaves of the map, each of 1 << @leaf_shift entries; NULL leaves until used
 * @nr_dirty: overlays above the committed cut; cache.lock
 * @nr_pending: its slots that are pending for a commit; change_lock
 * @in_commit: the commit in flight holds changes of it; change_lock
 * @staged: replacements of a COMMIT by block; volume.mutex
 * @deferred: bios for @work: whatever map() could not finish
 */
struct volume {
	/* What the hit path reads. */
	struct cache *cache;
	unsigned long state;
	u64 cut_counter;
	u64 **top;
	unsigned int leaf_shift;
	struct volume_stats __percpu *stats;

	struct list_head list;
	refcount_t refs;
	struct mutex mutex;

	struct dedup_volume_rec rec;
	u8 root[DEDUP_FP_BYTES];
	u32 index;

	struct dm_target *suspended;
	struct mapped_device *md;
	unsigned int users;
	bool open;
	u64 table_size;			/* of the table that is resumed now; mutex */

	u64 nr_blocks;
	u64 nr_leaves;
	u64 map_hand;			/* where maps_reclaim() goes on; cache.mutex */

	u64 nr_dirty;
	u64 nr_valid;			/* sectors in them, as of their last records */
	u32 nr_misses;
	u64 oldest_dirty;		/* jiffies64 of the oldest unpushed write's overlay */
	u64 oldest_open;		/* of the oldest since the last cut; 0: none */
	u32 nr_pending;
	bool rec_pending;
	bool in_commit;
	struct list_head pending_list;
	struct list_head commit_list;
	struct xarray staged;

	spinlock_t defer_lock;
	struct bio_list deferred;
	struct work_struct work;
	unsigned int fetch_timeout;	/* seconds; 0: wait for ever */

	struct upcall close_event;
	struct upcall dirty_event;
	u64 dirty_event_at;

	struct volume_fetched fetched;
};

/* A block that was asked for, and the bios that wait for it. */
struct miss {
	struct hlist_node by_block;
	struct hlist_node by_cookie;
	struct volume *vol;
	u64 block;
	ktime_t start;
	struct bio_list bios;
	struct upcall up;
};

struct cache_stats {			/* under cache.lock */
	u64 publishes;
	u64 maps;
	u64 fails;
	u64 stale;
	u64 evictions;
	u64 cuts;
	u64 commits;			/* COMMITs of the agent */
	u64 appends;			/* rounds of the journal */
	u64 space_waits;
};

/* See health.c. */
enum cache_mode {
	CACHE_RW,
	CACHE_RO,
	CACHE_FAILED,
};

/*
 * struct cache - a dedup-cache target
 * @pool: one bit a slot: free to be allocated; @nr_pool of them
 * @reserve: slots that only PUBLISH may take
 * @low, @high: eviction starts below @low and stops at @high slots in the pool or on their way
 * @freeing: slots whose FREE record is in the commit in flight
 * @freed: slots whose FREE record is durable; they wait for a drain
 * @dead: overlays that no map names; they wait for a drain
 * @space_bios: writes that wait for a slot
 */
struct cache {
	/* What the hit path reads: hardly ever written, and apart from what the locks guard. */
	struct block_device *bdev;
	struct slot *slots;
	sector_t data_start;
	unsigned int sector_shift;	/* log2 of block_sectors */
	u32 block_sectors;
	int error;			/* the store's; 0: all is well */
	struct inflight inflight;

	struct list_head list;		/* registry_mutex, with @ref, @md, @users */
	unsigned int ref;
	struct mapped_device *md;	/* its device; whoever has a reference holds that, too */
	unsigned int users;		/* tables; 0: they are gone, only volumes are left */
	struct dm_table *table;		/* the live one, for events; mutex */

	struct dedup_store *store;
	const struct dedup_store_info *info;
	struct channel *channel;
	u64 last_id;			/* of cookies, sequences and volumes; cache.lock */
	u32 nr_slots;

	struct mutex mutex;
	struct list_head volumes;
	unsigned int nr_volumes;
	unsigned long *indexes;

	spinlock_t lock ____cacheline_aligned_in_smp;
	unsigned long *pool;
	u32 nr_pool;
	u32 rover;
	u32 hand;
	u32 reserve;
	u32 low;
	u32 high;
	u32 nr_state[NR_SLOT_STATES];
	u32 nr_retired;
	struct overlay *overlay_pool;
	u32 nr_overlay_pool;
	struct overlay *dead;
	u32 nr_zero;			/* overlays with BASE_ZERO; at most @max_zero by discards */
	u32 max_zero;
	struct bio_list space_bios;
	struct cache_stats stats;

	DECLARE_HASHTABLE(miss_blocks, 10);
	DECLARE_HASHTABLE(miss_cookies, 10);
	u32 nr_misses;
	struct bio_list full_bios;	/* wait until there are fewer misses, or memory */

	spinlock_t change_lock ____cacheline_aligned_in_smp;
	struct slot_list changes;
	struct slot_list freeing;
	struct slot_list freed;
	struct list_head volume_changes;
	struct list_head commit_volumes;
	struct bio_list commit_bios;
	enum cache_mode mode;		/* written by @health_work */
	bool suspect;			/* an I/O has failed since @health_work looked */
	u32 nr_bad;			/* slots with SLOT_BAD; change_lock */
	u32 nr_unwritable;		/* of these, for a write; change_lock */
	u32 bad_seen;			/* of these, what @health_work knows of */
	bool closing;			/* nothing new is begun by the workers */

	wait_queue_head_t slot_wait;
	struct workqueue_struct *wq;
	struct workqueue_struct *io_wq;	/* volumes' workers: see target-cache.c */
	struct work_struct space_work;
	struct work_struct health_work;
	struct delayed_work tick_work;
	struct upcall space_event;
	struct bio_set bios;
	struct kmem_cache *overlay_cache;

	atomic64_t memory;		/* bytes taken now; at most @max_memory */
	u64 memory_fixed;		/* of these, what does not depend on use */
	u64 max_memory;
	bool maps_full;			/* a leaf could not be had, and there is no room yet */
	bool starved;			/* giving up maps was not enough for overlays */
	bool miss_ended;		/* lately; cleared by the tick; lock */
	unsigned int unpin_ticks;	/* the tick's */
	u64 room_wanted;		/* by a table that is loaded; lock */
	u64 map_reclaims;
	unsigned int dirty_timeout;	/* seconds that a write waits for a slot; 0: for ever */
	u64 dirty_bytes;		/* of one volume, before the agent is asked to push */
	unsigned int dirty_age;		/* seconds, likewise */
};

/*
 * struct bio_data - per-bio data of a dedup target
 * @iter: of a read: what it is to read; its sector is the volume's
 * @bio_flags: of a read: before it was submitted
 * @slot, @overlaid: of a read that goes in pieces: where this piece comes from, see struct run
 * @sectors: of a write; of a read that goes in pieces: of this piece
 */
#define BIO_INFLIGHT	(1U << 0)	/* holds a reference of epoch @epoch */
#define BIO_WRITE	(1U << 1)	/* sets valid bits from @ov, @offset on, @sectors */
#define BIO_FUA		(1U << 2)	/* completes only after a commit */
#define BIO_WAITED	(1U << 3)	/* for a slot, or for a block, since @since */
#define BIO_FLUSH	(1U << 4)	/* went straight to the disk */
#define BIO_FAILED	(1U << 5)	/* a read: for the worker, see reread.c */
#define BIO_PIECES	(1U << 6)	/* a read that goes on piece by piece */
#define BIO_GIVEN_UP	(1U << 7)	/* a read: so was the slot that it (this piece) came from */

struct bio_data {
	struct volume *vol;
	union {
		struct overlay *ov;
		struct {
			u32 slot;
			unsigned short bio_flags;
			bool overlaid;
		};
	};
	union {
		u64 commit_seq;
		u64 since;		/* jiffies64 */
	};
	struct bvec_iter iter;
	u16 offset;
	u8 epoch;
	u8 flags;
	u32 sectors;
};

static inline struct bio_data *bio_data_of(struct bio *bio)
{
	return dm_per_bio_data(bio, sizeof(struct bio_data));
}

/* Before a read is submitted: for the case that it fails. */
static inline void bio_note_read(struct bio *bio, struct bio_data *bd, sector_t sector)
{
	bd->iter = bio->bi_iter;
	bd->iter.bi_sector = sector;
	bd->bio_flags = bio->bi_flags;
}

/* In the windows that a CUT may fall into; nothing but for tests. */
static inline void planted_delay(void)
{
	if (planted(PLANTED_DELAYS) || planted(PLANTED_CUT_NO_DRAIN))
		udelay(get_random_u32() % 256);
}

static inline u64 cache_new_id(struct cache *c)
{
	lockdep_assert_held(&c->lock);
	return (u64)c->info->incarnation_nr << 40 | ++c->last_id;
}

static inline sector_t slot_sector(struct cache *c, u32 slot)
{
	return c->data_start + ((sector_t)slot << c->sector_shift);
}

struct map_growth;

/* slot.c */
int slots_init(struct cache *c);
void slots_exit(struct cache *c);
u64 slots_memory(u64 nr_slots);
u32 slot_alloc(struct cache *c, enum slot_state state, u32 hint);
void slot_unalloc(struct cache *c, u32 n);
void slot_set_state(struct cache *c, u32 n, enum slot_state state);
void slot_free(struct cache *c, u32 n);
void slot_make_clean(struct cache *c, u32 n, const u8 *fp);
bool slot_write_failed(struct bio *bio, blk_status_t status);
void slots_bad(struct cache *c, u32 n, u32 count);
bool slot_unreadable(struct cache *c, u32 n);
bool slot_set_pending(struct cache *c, u32 n, struct volume *vol);
void changes_kick(struct cache *c);
void slot_changed(struct cache *c, u32 n, struct volume *vol);
void slots_reclaim(struct cache *c);
extern const struct dedup_store_ops cache_store_ops;

/* overlay.c */
int overlays_init(struct cache *c);
void overlays_exit(struct cache *c);
size_t overlay_bytes(struct cache *c);
struct overlay *overlay_new(struct cache *c, u64 keep, gfp_t gfp);
void overlay_free(struct cache *c, struct overlay *ov);
void overlays_refill(struct cache *c);
bool overlays_ready(struct cache *c);
struct overlay *overlay_open(struct volume *vol, u64 block, u8 flags, bool *opened);
int overlay_load(struct volume *vol, u32 n, const struct dedup_slot_rec *rec);
void overlay_kill(struct cache *c, struct overlay *ov);
void overlay_written(struct cache *c, struct bio_data *bd);
bool overlay_complete(struct cache *c, const struct overlay *ov);
void view_load(struct volume *vol, u64 block, struct view *view);
void view_run(struct cache *c, const struct view *view, u32 offset, u32 max, struct run *run);

/* volume.c */
struct volume *volume_new(struct cache *c, const u8 *image, u64 size);
struct volume *volume_find(struct cache *c, u64 id);
struct volume *volume_find_image(struct cache *c, const u8 *image);
struct volume *volume_find_name(struct cache *c, const char *name);
void volume_put(struct volume *vol);
u64 volume_leaves(struct cache *c, u64 size);
int volume_make_map(struct volume *vol, u64 size);
int volume_make_leaf(struct volume *vol, u64 block, gfp_t gfp);
u64 *volume_slot_of(struct volume *vol, u64 block);
u64 *volume_base(struct volume *vol, u64 block);
bool volume_base_unmapped(struct cache *c, u64 base);
void volume_changed(struct volume *vol);
bool volume_is_dirty(struct volume *vol);
void volume_info(struct volume *vol, struct dm_dedup_volume_info *info);
int volume_open(struct volume *vol, const char *name, u32 flags, unsigned int timeout);
struct volume *volume_use(struct cache *c, const u8 *image, u64 size, struct mapped_device *md);
void volume_unuse(struct volume *vol);
void volume_drop_overlays(struct volume *vol);
int volume_forget(struct volume *vol);
void volumes_exit(struct cache *c);
int volume_load(struct cache *c, u64 index, const struct dedup_volume_rec *rec);

static inline u64 volume_blocks(struct cache *c, u64 size)
{
	return DIV_ROUND_UP_ULL(size, (u64)c->block_sectors << SECTOR_SHIFT);
}

/* May the volume be written now? */
static inline blk_status_t volume_write_status(struct volume *vol)
{
	if (unlikely(READ_ONCE(vol->state) & (BIT(VOLUME_READONLY) | BIT(VOLUME_FENCED))) ||
	    unlikely(READ_ONCE(vol->cache->error)))
		return BLK_STS_IOERR;
	return BLK_STS_OK;
}

/*
 * Is what would wait to be sent back to device-mapper? VOLUME_REQUEUE outlives a suspend that was
 * interrupted: I/O comes in again before presuspend_undo is called, and what is sent back then gets
 * an error. The caller has a bio of the device, so that the table of the suspend is still there.
 * That the suspend is interrupted after the look is for volume_send_back() to prevent.
 */
static inline bool volume_requeues(struct volume *vol)
{
	struct dm_target *ti;

	if (likely(!test_bit(VOLUME_REQUEUE, &vol->state)))
		return false;
	/* Pairs with the barrier in volume_presuspend(): the bit comes after the target. */
	smp_rmb();
	ti = READ_ONCE(vol->suspended);
	return !ti || dm_noflush_suspending(ti);
}

/* The entry of a block; 0 without a leaf. The caller holds a reference or the lock. */
static inline u64 volume_entry(struct volume *vol, u64 block)
{
	u64 *leaf = READ_ONCE(READ_ONCE(vol->top)[block >> vol->leaf_shift]);

	return leaf ? READ_ONCE(leaf[block & ((1ULL << vol->leaf_shift) - 1)]) : 0;
}

/* Is the slot of a BASE entry what it was? Then it is read, and eviction is told so. */
static inline bool base_use(struct cache *c, u64 e)
{
	struct slot *s = &c->slots[entry_slot(e)];

	if (READ_ONCE(s->gen) != entry_gen(e))
		return false;
	if (!READ_ONCE(s->ref))
		WRITE_ONCE(s->ref, 1);
	return true;
}

/* Are sectors @offset to @offset + @len - 1 all valid? Short ranges lie in one word. */
static inline bool overlay_range_valid(const struct overlay *ov, u32 offset, u32 len)
{
	u32 first = offset / BITS_PER_LONG;
	u32 from = offset % BITS_PER_LONG;

	if (from + len <= BITS_PER_LONG) {
		unsigned long mask = GENMASK(from + len - 1, from);

		return (READ_ONCE(ov->valid[first]) & mask) == mask;
	}
	return find_next_zero_bit(ov->valid, offset + len, offset) >= offset + len;
}

/* fetch.c */
void volume_defer(struct volume *vol, struct bio *bio);
bool volume_start_write(struct volume *vol, struct bio *bio, u64 block, u32 offset);
void volume_work(struct work_struct *work);
void space_waiters_run(struct cache *c, bool force);
void misses_restart(struct volume *vol, bool all);
void volume_fail_parked(struct volume *vol);
void volume_send_back(struct volume *vol);
void misses_tick(struct cache *c);
void space_waiters_expire(struct cache *c);
struct miss *miss_find(struct volume *vol, u64 block);
struct miss *miss_find_cookie(struct cache *c, u64 cookie);
enum miss_how { MISS_ANSWERED, MISS_FAILED, MISS_RESTARTED };
void miss_end(struct cache *c, struct miss *m, enum miss_how how);
void misses_ended(struct cache *c);
void bio_hold(struct bio *bio, unsigned int epoch);
void bios_end(struct bio_list *bios, blk_status_t status);
void submit_view(struct volume *vol, struct bio *bio, const struct view *view);

/* reread.c */
bool read_failed(struct bio *bio, blk_status_t status);
bool read_again(struct volume *vol, struct bio *bio);
bool read_goes_on(struct bio *bio);
void read_next_piece(struct cache *c, struct bio *bio, const struct view *view, struct run *run);

/* answer.c */
int fetch_publish(struct cache *c, struct dm_dedup_publish *entries, u32 count);
void fetch_map(struct cache *c, struct dm_dedup_map *entry);
void fetch_fail(struct cache *c, struct dm_dedup_fail *entry);

/* resize.c */
struct map_growth *map_growth_new(struct volume *vol, u64 size);
void map_growth_free(struct volume *vol, struct map_growth *g);
int volume_check_size(struct volume *vol, u64 size);
int volume_reshape(struct volume *vol, u64 size);
int volume_grow(struct volume *vol, u64 size, struct map_growth *g);

/* memory.c */
bool memory_take(struct cache *c, u64 bytes, u64 keep);
void memory_add(struct cache *c, u64 bytes);
void memory_give(struct cache *c, u64 bytes);
int memory_begin(struct cache *c, const struct dedup_store_info *info);
u64 memory_left(struct cache *c);
void memory_make_room(struct cache *c, u64 nr_leaves);
void memory_unpinned(struct cache *c);
int map_top_alloc(struct cache *c, u64 nr_leaves, u64 ***top);
void map_top_free(struct cache *c, u64 nr_leaves, u64 **top);
void volume_free_map(struct volume *vol);
bool volume_has_leaf(struct volume *vol, u64 block);
u64 leaf_bytes(unsigned int shift);
u64 *leaf_alloc(struct cache *c, unsigned int shift, gfp_t gfp);
void leaf_free(struct cache *c, unsigned int shift, u64 *leaf);
bool maps_reclaim(struct cache *c);

/* evict.c */
void space_work(struct work_struct *work);
void tick_work(struct work_struct *work);
void space_kick(struct cache *c);
void space_set_reserve(struct cache *c);
u32 evict_now(struct cache *c, u32 nr);
void space_default_marks(struct cache *c, u32 *low, u32 *high);

/* health.c */
const char *cache_mode_name(struct cache *c);
void cache_fail_parked(struct cache *c);
void health_suspect(struct cache *c);
bool health_is_hopeless(struct cache *c);
bool health_disk_reads(struct cache *c);
void health_work(struct work_struct *work);
void health_tick(struct cache *c);

/* commit.c */
void commit_wait(struct cache *c, struct volume *vol, struct bio *bio);
void commit_done(struct bio *bio, int error);
bool volume_commit_pending(struct volume *vol);

/* cut.c */
extern const struct channel_ops cache_channel_ops;
void commit_unstage(struct volume *vol);

/* stats.c */
void cache_status(struct cache *c, char *result, unsigned int maxlen);
void volume_status(struct volume *vol, char *result, unsigned int maxlen);
void fetched_add(struct volume *vol, u64 us);
u64 volume_ios(struct volume *vol);
int cache_command(struct cache *c, unsigned int argc, char **argv, char *result,
		  unsigned int maxlen);
int volume_command(struct volume *vol, unsigned int argc, char **argv, char *result,
		   unsigned int maxlen);

/* target-cache.c, target-volume.c */
extern struct target_type cache_target;
extern struct target_type volume_target;
int cache_prepare(struct cache *c, const struct dedup_store_info *info);
struct cache *cache_get(struct block_device *bdev);
void cache_put(struct cache *c);

#endif
