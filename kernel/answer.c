// SPDX-License-Identifier: GPL-2.0-only
/*
 * The agent's answers to FETCH: PUBLISH brings a block's content, MAP names a slot that has it,
 * FAIL gives up. The same calls without a cookie are prefetch.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "dedup.h"
#include "trace.h"

#define PUBLISH_WINDOW	(8U << 20)	/* bytes of a PUBLISH that are copied at a time */
#define PUBLISH_WAIT	(HZ / 2)	/* for a slot, before the entry gets ENOSPC */

/* Bios whose block has come, with the view they are to be served by. */
struct answer {
	struct bio_list bios;
	struct view view;
};

/*
 * The block's base is mapped now. The bios get their references before the lock is dropped, so
 * that the eviction, which may want the slot at once, waits for them.
 */
static void answer_take(struct volume *vol, u64 block, struct answer *answer)
{
	struct miss *m = miss_find(vol, block);
	struct cache *c = vol->cache;
	struct bio *bio;

	bio_list_init(&answer->bios);
	if (!m)
		return;
	miss_end(c, m, MISS_ANSWERED);
	answer->bios = m->bios;
	kfree(m);
	bio_list_for_each(bio, &answer->bios)
		bio_hold(bio, inflight_enter(&c->inflight));
	view_load(vol, block, &answer->view);
}

static void answer_run(struct volume *vol, struct answer *answer)
{
	struct bio *bio;

	if (bio_list_empty(&answer->bios))
		return;
	while ((bio = bio_list_pop(&answer->bios)))
		submit_view(vol, bio, &answer->view);
	misses_ended(vol->cache);
}

/*
 * May an answer for this block be applied? Only if it was resolved against the volume's root,
 * answers the FETCH that waits (or was not asked for), and the base is still unmapped.
 */
static int answer_check(struct volume *vol, u64 cookie, u64 block, const u8 *root)
{
	struct cache *c = vol->cache;
	struct miss *m;
	u64 *base;

	lockdep_assert_held(&c->lock);
	if (cookie) {
		m = miss_find_cookie(c, cookie);
		if (!m)
			return -ESTALE;
		if (m->vol != vol || m->block != block)
			return -EINVAL;
	}
	if (!vol->rec.id || memcmp(root, vol->root, sizeof(vol->root)))
		return -ESTALE;
	base = volume_base(vol, block);
	if (!base)
		return volume_slot_of(vol, block) ? -EEXIST : -ENOSPC;
	return volume_base_unmapped(c, *base) ? 0 : -EEXIST;
}

static void base_set(struct volume *vol, u64 block, u64 entry)
{
	/* Pairs with the readers' dependent loads: the slot's fields come before the entry. */
	smp_store_release(volume_base(vol, block), entry);
}

static struct volume *answer_volume(struct cache *c, u64 id, u64 block, int *r)
{
	struct volume *vol = volume_find(c, id);

	*r = 0;
	if (!vol)
		*r = -ESTALE;
	else if (block >= vol->nr_blocks)
		*r = -EINVAL;
	else
		*r = volume_make_leaf(vol, block, GFP_NOIO) == -ENOMEM ? -ENOSPC : 0;
	if (*r && vol) {
		volume_put(vol);
		vol = NULL;
	}
	return vol;
}

static int map_apply(struct volume *vol, struct dm_dedup_map *e)
{
	struct cache *c = vol->cache;
	struct slot *s;
	int r = answer_check(vol, e->cookie, e->block, e->root);

	if (r)
		return r;
	if (e->flags & DM_DEDUP_MAP_ZERO) {
		base_set(vol, e->block, entry_make(ENTRY_ZERO, 0, 0));
		vol->fetched.zero++;
		return 0;
	}
	if (e->slot >= c->nr_slots)
		return -EINVAL;
	s = &c->slots[e->slot];
	if (s->state != SLOT_CLEAN || s->seq != e->seq)
		return -ESTALE;
	s->ref = 1;
	base_set(vol, e->block, entry_make(ENTRY_BASE, e->slot, s->gen));
	vol->fetched.mapped++;
	return 0;
}

void fetch_map(struct cache *c, struct dm_dedup_map *e)
{
	struct answer answer;
	struct volume *vol;
	int r;

	if (e->flags & ~DM_DEDUP_MAP_ZERO) {
		e->result = -EINVAL;
		return;
	}
	vol = answer_volume(c, e->volume, e->block, &e->result);
	if (!vol)
		return;
	bio_list_init(&answer.bios);
	spin_lock(&c->lock);
	r = map_apply(vol, e);
	if (!r) {
		c->stats.maps++;
		answer_take(vol, e->block, &answer);
	} else if (r == -ESTALE) {
		c->stats.stale++;
	}
	spin_unlock(&c->lock);
	e->result = r;
	answer_run(vol, &answer);
	volume_put(vol);
}

/* What a guest may be told. Other numbers have meanings of their own in the block layer. */
static blk_status_t fail_status(int error)
{
	switch (error) {
	case ENODATA:
	case ETIMEDOUT:
	case ENOLINK:
		return errno_to_blk_status(-error);
	default:
		return BLK_STS_IOERR;
	}
}

void fetch_fail(struct cache *c, struct dm_dedup_fail *e)
{
	struct bio_list bios = BIO_EMPTY_LIST;
	bool found = false;
	struct miss *m;

	e->result = -EINVAL;
	if (e->error <= 0 || e->error > MAX_ERRNO)
		return;
	spin_lock(&c->lock);
	m = miss_find_cookie(c, e->cookie);
	if (m) {
		miss_end(c, m, MISS_FAILED);
		bios = m->bios;
		kfree(m);
		c->stats.fails++;
		found = true;
	}
	spin_unlock(&c->lock);
	e->result = found ? 0 : -ESTALE;
	bios_end(&bios, fail_status(e->error));
	misses_ended(c);
}

/* ---- PUBLISH ---- */

/*
 * struct publish_io - one entry on its way to the disk
 * @started: else the entry has its result already
 * @vol: NULL: it goes into a slot that no volume maps
 */
struct publish_io {
	struct cache *cache;
	struct dm_dedup_publish *e;
	bool started;
	struct volume *vol;
	u32 slot;
	struct bio *bio;
	struct completion done;
};

static void publish_end_io(struct bio *bio)
{
	complete(bio->bi_private);
}

static void publish_free_bio(struct bio *bio)
{
	bio_free_pages(bio);
	bio_uninit(bio);
	kfree(bio);
}

/*
 * A bio with a private copy of the user's block: what is verified is what is written. It is not
 * from a pool: a call keeps all its bios until it has started the last, and two calls could then
 * wait for one another's.
 */
static struct bio *publish_copy(struct cache *c, const void __user *data)
{
	u32 left = c->block_sectors << SECTOR_SHIFT;
	unsigned short nr = DIV_ROUND_UP(left, PAGE_SIZE);
	struct bio *bio = bio_kmalloc(nr, GFP_NOIO);

	if (!bio)
		return ERR_PTR(-ENOMEM);
	bio_init(bio, c->bdev, bio->bi_inline_vecs, nr, REQ_OP_WRITE);
	while (left) {
		u32 n = min_t(u32, left, PAGE_SIZE);
		struct page *page = alloc_page(GFP_NOIO);

		if (!page) {
			publish_free_bio(bio);
			return ERR_PTR(-ENOMEM);
		}
		__bio_add_page(bio, page, n, 0);
		if (copy_from_user(page_address(page), data, n)) {
			publish_free_bio(bio);
			return ERR_PTR(-EFAULT);
		}
		data += n;
		left -= n;
	}
	return bio;
}

/* The slot beside the one that holds the block before. */
static u32 publish_hint(struct volume *vol, u64 block)
{
	u64 *base = block ? volume_base(vol, block - 1) : NULL;

	return base && entry_kind(*base) == ENTRY_BASE ? entry_slot(*base) + 1 : DEDUP_NO_SLOT;
}

/* Does the block still belong there? Without a volume nothing is waited for. */
static int publish_check(struct publish_io *io)
{
	const struct dm_dedup_publish *e = io->e;

	return io->vol ? answer_check(io->vol, e->cookie, e->block, e->root) : 0;
}

/* Checks the entry and takes a slot for it. */
static int publish_reserve(struct publish_io *io)
{
	u32 hint = DEDUP_NO_SLOT;
	struct cache *c = io->cache;
	int r;

	spin_lock(&c->lock);
	/* The check first: whoever repeats an answer that got EIO is told that nobody waits. */
	r = publish_check(io) ?: c->error;
	if (!r) {
		if (io->vol)
			hint = publish_hint(io->vol, io->e->block);
		io->slot = slot_alloc(c, SLOT_FILLING, hint);
		if (io->slot == DEDUP_NO_SLOT)
			r = -ENOSPC;
	}
	spin_unlock(&c->lock);
	return r;
}

/*
 * @wait: jiffies that the call may still wait in all. It does not while it has blocks on their way, which
 * keep what others wait for: -EAGAIN, finish those first.
 */
static int publish_take_slot(struct publish_io *io, bool others, long *wait)
{
	struct cache *c = io->cache;
	int r = publish_reserve(io);

	if (r != -ENOSPC)
		return r;
	if (others)
		return -EAGAIN;
	space_kick(c);
	*wait = wait_event_killable_timeout(c->slot_wait, READ_ONCE(c->nr_pool), *wait);
	*wait = max(*wait, 0L);
	return publish_reserve(io);
}

static int publish_start(struct publish_io *io, bool others, long *wait)
{
	struct cache *c = io->cache;
	int r = publish_take_slot(io, others, wait);

	if (r)
		return r;
	io->bio = publish_copy(c, u64_to_user_ptr(io->e->data));
	if (IS_ERR(io->bio)) {
		spin_lock(&c->lock);
		slot_unalloc(c, io->slot);
		spin_unlock(&c->lock);
		return PTR_ERR(io->bio);
	}
	init_completion(&io->done);
	io->bio->bi_iter.bi_sector = slot_sector(c, io->slot);
	io->bio->bi_end_io = publish_end_io;
	io->bio->bi_private = &io->done;
	submit_bio(io->bio);
	return 0;
}

/* The data is written. The block may have been committed or mapped meanwhile: checked again. */
static int publish_apply(struct publish_io *io, struct answer *answer)
{
	struct dm_dedup_publish *e = io->e;
	struct volume *vol = io->vol;
	struct cache *c = io->cache;
	int r = blk_status_to_errno(io->bio->bi_status);

	if (!r)
		r = publish_check(io);
	if (r) {
		if (r == -ESTALE)
			c->stats.stale++;
		slot_unalloc(c, io->slot);
		return r;
	}
	slot_make_clean(c, io->slot, e->fp);
	e->slot = io->slot;
	e->seq = c->slots[io->slot].seq;
	c->stats.publishes++;
	if (!vol)
		return 0;
	base_set(vol, e->block, entry_make(ENTRY_BASE, io->slot, c->slots[io->slot].gen));
	vol->fetched.from[e->source]++;
	answer_take(vol, e->block, answer);
	return 0;
}

static void publish_finish(struct publish_io *io)
{
	struct volume *vol = io->vol;
	struct cache *c = io->cache;
	struct answer answer;

	wait_for_completion_io(&io->done);
	if (io->bio->bi_status) {
		if (slot_write_failed(io->bio, io->bio->bi_status))
			slots_bad(c, io->slot, 1);
		health_suspect(c);
	}
	bio_list_init(&answer.bios);
	spin_lock(&c->lock);
	io->e->result = publish_apply(io, &answer);
	spin_unlock(&c->lock);
	publish_free_bio(io->bio);
	if (!vol)
		return;
	trace_dedup_publish(vol, io->e, io->e->result);
	answer_run(vol, &answer);
	volume_put(vol);
}

/* A cache that takes no block any more: whoever waits for this one waits in vain. */
static void publish_give_up(struct volume *vol, u64 cookie)
{
	struct bio_list bios = BIO_EMPTY_LIST;
	struct cache *c = vol->cache;
	struct miss *m;

	spin_lock(&c->lock);
	m = cookie ? miss_find_cookie(c, cookie) : NULL;
	if (m && m->vol == vol) {
		miss_end(c, m, MISS_FAILED);
		bios = m->bios;
		kfree(m);
	}
	spin_unlock(&c->lock);
	bios_end(&bios, BLK_STS_IOERR);
	misses_ended(c);
}

/* False: not before those have ended that are on their way. */
static bool publish_begin(struct publish_io *io, bool others, long *wait)
{
	struct dm_dedup_publish *e = io->e;
	struct cache *c = io->cache;

	if (e->source >= DEDUP_NR_SOURCES || (!e->volume && e->cookie)) {
		e->result = -EINVAL;
		return true;
	}
	if (e->volume) {
		io->vol = answer_volume(c, e->volume, e->block, &e->result);
		if (!io->vol)
			return true;
	}
	e->result = publish_start(io, others, wait);
	io->started = !e->result;
	if (e->result && io->vol) {
		trace_dedup_publish(io->vol, e, e->result);
		if (READ_ONCE(c->error))
			publish_give_up(io->vol, e->cookie);
		volume_put(io->vol);
		io->vol = NULL;
	}
	return !others || e->result != -EAGAIN;
}

/* Begins as many as it can at a time, at most @max. Returns how many. */
static u32 publish_window(struct cache *c, struct publish_io *ios, struct dm_dedup_publish *entries,
			  u32 max, long *wait)
{
	bool others = false;
	struct blk_plug plug;
	u32 n;

	blk_start_plug(&plug);
	for (n = 0; n < max; n++) {
		ios[n] = (struct publish_io){ .cache = c, .e = &entries[n] };
		if (!publish_begin(&ios[n], others, wait))
			break;
		others |= ios[n].started;
	}
	blk_finish_plug(&plug);
	return n;
}

int fetch_publish(struct cache *c, struct dm_dedup_publish *entries, u32 count)
{
	u32 window = max(1U, PUBLISH_WINDOW >> (c->sector_shift + SECTOR_SHIFT));
	long wait = PUBLISH_WAIT;
	struct publish_io *ios;
	u32 done, n, i;

	window = min(window, count);
	ios = kcalloc(window, sizeof(*ios), GFP_NOIO);
	if (!ios)
		return -ENOMEM;
	for (done = 0; done < count; done += n) {
		n = publish_window(c, ios, &entries[done], min(window, count - done), &wait);
		for (i = 0; i < n; i++)
			if (ios[i].started)
				publish_finish(&ios[i]);
	}
	kfree(ios);
	return 0;
}
