// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dedup target: a volume's device. What is here is device-mapper's side of it, and the hit
 * path; whatever does not hit goes to the volume's worker (fetch.c).
 */
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "dedup.h"

#define AGENT_TIMEOUT	30	/* seconds for LOOKUP and OPEN, unless agent_timeout says else */

/*
 * struct volume_table - one table of the device
 * @flags: DEDUP_VOL_READONLY, DEDUP_VOL_EPHEMERAL: what the table asks for
 * @size: bytes
 * @growth: for the resume, if the volume is smaller
 */
struct volume_table {
	struct volume *vol;
	struct cache *cache;
	struct dm_dev *cache_dev;
	struct dm_dev *disk;
	u64 size;
	struct map_growth *growth;
	u32 flags;
	unsigned int fetch_timeout;
	unsigned int agent_timeout;
	char name[DM_DEDUP_NAME_SIZE];
};

/* ---- the hit path ---- */

static struct volume *ti_volume(struct dm_target *ti)
{
	return ((struct volume_table *)ti->private)->vol;
}

/*
 * The first @len sectors, or the whole bio: of that device-mapper makes no piece, which it would have
 * to put together again, one clone a time, whenever it is sent back.
 */
static void map_accept(struct bio *bio, u32 len)
{
	if (len < bio_sectors(bio))
		dm_accept_partial_bio(bio, len);
}

/* Hands the bio to the worker, cut down to one block. Its sector is the volume's from now on. */
static int map_defer(struct volume *vol, struct bio *bio, sector_t sector, u32 len)
{
	/* volume_send_back() waits for whoever has not seen the suspend. */
	rcu_read_lock();
	if (volume_requeues(vol)) {
		rcu_read_unlock();
		return DM_MAPIO_REQUEUE;
	}
	this_cpu_inc(vol->stats->deferred);
	map_accept(bio, len);
	bio->bi_iter.bi_sector = sector;
	/*
	 * It may wait, but not its submitter: nobody needs to try again with a thread. Nor can anybody
	 * poll for it: a piece of it may be all that reaches the disk.
	 */
	bio->bi_opf &= ~(REQ_NOWAIT | REQ_POLLED);
	volume_defer(vol, bio);
	rcu_read_unlock();
	return DM_MAPIO_SUBMITTED;
}

static int map_remap(struct cache *c, struct bio *bio, u32 slot, u32 offset, u32 len)
{
	if (len < bio_sectors(bio))
		dm_accept_partial_bio(bio, len);
	bio_set_dev(bio, c->bdev);
	bio->bi_iter.bi_sector = slot_sector(c, slot) + offset;
	return DM_MAPIO_REMAPPED;
}

/*
 * What a read finds at @offset of a block, as view_run() would say it. Nearly always all of it lies
 * in the top layer, and then there is no need to look at the others.
 */
static void run_at(struct volume *vol, u64 block, u32 offset, u32 len, struct run *run)
{
	u64 e = volume_entry(vol, block);
	struct overlay *ov = entry_overlay(e);
	struct view view;

	run->overlaid = entry_kind(e) == ENTRY_OVERLAY;
	if (run->overlaid && overlay_range_valid(ov, offset, len)) {
		run->slot = ov->slot;
	} else if (entry_kind(e) == ENTRY_BASE && base_use(vol->cache, e)) {
		run->slot = entry_slot(e);
	} else {
		view_load(vol, block, &view);
		view_run(vol->cache, &view, offset, len, run);
		return;
	}
	run->kind = ENTRY_BASE;
	run->len = len;
}

/* How many sectors of the following blocks lie in the following slots, too. */
static u32 read_extend(struct volume *vol, u64 block, u32 slot, u32 max)
{
	struct cache *c = vol->cache;
	struct run run;
	u32 len = 0;

	while (len < max) {
		run_at(vol, ++block, 0, min(max - len, c->block_sectors), &run);
		if (run.kind != ENTRY_BASE || run.slot != ++slot)
			break;
		len += run.len;
		if (run.len < c->block_sectors)
			break;
	}
	return len;
}

static int map_read(struct volume *vol, struct bio *bio, struct bio_data *bd, sector_t sector)
{
	struct cache *c = vol->cache;
	u64 block = sector >> c->sector_shift;
	u32 offset = sector & (c->block_sectors - 1);
	u32 len = min(bio_sectors(bio), c->block_sectors - offset);
	struct run run;

	bd->epoch = inflight_enter(&c->inflight);
	run_at(vol, block, offset, len, &run);
	if (run.kind == ENTRY_NONE) {
		inflight_leave(&c->inflight, bd->epoch);
		this_cpu_inc(vol->stats->read_misses);
		return map_defer(vol, bio, sector, run.len);
	}
	bd->flags = BIO_INFLIGHT;
	if (run.kind == ENTRY_BASE) {
		if (run.overlaid)
			this_cpu_inc(vol->stats->read_overlay);
		else
			this_cpu_inc(vol->stats->read_base);
		if (offset + run.len == c->block_sectors && run.len < bio_sectors(bio))
			run.len += read_extend(vol, block, run.slot, bio_sectors(bio) - run.len);
		map_remap(c, bio, run.slot, offset, run.len);
		bio_note_read(bio, bd, sector);
		return DM_MAPIO_REMAPPED;
	}
	this_cpu_inc(vol->stats->read_zero);
	dm_accept_partial_bio(bio, run.len);
	zero_fill_bio(bio);
	bio_endio(bio);
	return DM_MAPIO_SUBMITTED;
}

/* The block's open overlay, if it has one. Under a reference. */
static struct overlay *open_overlay(struct volume *vol, u64 block)
{
	u64 e = volume_entry(vol, block);
	struct overlay *ov = entry_overlay(e);

	return entry_kind(e) == ENTRY_OVERLAY && ov->cut == READ_ONCE(vol->cut_counter) ? ov : NULL;
}

static u32 write_extend(struct volume *vol, u64 block, u32 slot, u32 max)
{
	struct overlay *ov;
	u32 len = 0;

	while (len < max) {
		ov = open_overlay(vol, ++block);
		if (!ov || ov->slot != ++slot)
			break;
		len += vol->cache->block_sectors;
	}
	return min(len, max);
}

/*
 * On a disk without a volatile cache a FUA write to sectors that are valid, of a volume without
 * pending changes, is durable when it completes, and so is all that completed before. Any other
 * completes with a commit, whose preflush covers its data, and theirs.
 */
static void map_fua(struct volume *vol, struct bio *bio, struct bio_data *bd)
{
	struct cache *c = vol->cache;
	u32 slot = bd->ov->slot, offset = bd->offset, left = bd->sectors;
	bool valid = !bdev_write_cache(c->bdev);

	for (; left && valid; slot++, offset = 0) {
		u32 len = min(left, c->block_sectors - offset);

		valid = overlay_range_valid(c->slots[slot].ov, offset, len);
		left -= len;
	}
	if (valid && !volume_commit_pending(vol))
		return;
	bio->bi_opf &= ~REQ_FUA;
	bd->flags |= BIO_FUA;
}

static int map_write(struct volume *vol, struct bio *bio, struct bio_data *bd, sector_t sector)
{
	struct cache *c = vol->cache;
	u64 block = sector >> c->sector_shift;
	u32 offset = sector & (c->block_sectors - 1);
	u32 len = min(bio_sectors(bio), c->block_sectors - offset);
	struct overlay *ov;

	if (unlikely(volume_write_status(vol)))
		return DM_MAPIO_KILL;
	/* The reference comes before the cut counter is read: see volume_start_write(). */
	bd->epoch = inflight_enter(&c->inflight);
	planted_delay();
	ov = open_overlay(vol, block);
	planted_delay();
	if (!ov) {
		inflight_leave(&c->inflight, bd->epoch);
		map_accept(bio, len);
		if (!volume_start_write(vol, bio, block, offset))
			return map_defer(vol, bio, sector, len);
	} else {
		this_cpu_inc(vol->stats->write_hits);
		if (len < bio_sectors(bio))
			len += write_extend(vol, block, ov->slot, bio_sectors(bio) - len);
		map_remap(c, bio, ov->slot, offset, len);
		bd->flags = BIO_INFLIGHT | BIO_WRITE;
		bd->ov = ov;
		bd->offset = offset;
		bd->sectors = len;
		if (planted(PLANTED_VALID_AT_MAP))
			overlay_written(c, bd);
		if (bio->bi_opf & REQ_FUA)
			map_fua(vol, bio, bd);
	}
	return DM_MAPIO_REMAPPED;
}

/* A discard of what cannot be discarded any more, or not as a whole, is done at once. */
static int map_zero(struct volume *vol, struct bio *bio, sector_t sector)
{
	struct cache *c = vol->cache;
	u32 len = c->block_sectors - (sector & (c->block_sectors - 1));

	if (unlikely(volume_write_status(vol)))
		return DM_MAPIO_KILL;
	if (bio_op(bio) == REQ_OP_DISCARD && READ_ONCE(c->nr_zero) >= c->max_zero) {
		bio_endio(bio);
		return DM_MAPIO_SUBMITTED;
	}
	return map_defer(vol, bio, sector, len);
}

static int map_flush(struct volume *vol, struct bio *bio)
{
	struct cache *c = vol->cache;

	if (volume_commit_pending(vol) && !planted(PLANTED_FLUSH_NO_WAIT)) {
		commit_wait(c, vol, bio);
		return DM_MAPIO_SUBMITTED;
	}
	this_cpu_inc(vol->stats->flushes);
	bio_data_of(bio)->flags = BIO_FLUSH;
	bio_set_dev(bio, c->bdev);
	bio->bi_iter.bi_sector = 0;
	return DM_MAPIO_REMAPPED;
}

static int volume_map(struct dm_target *ti, struct bio *bio)
{
	struct volume *vol = ti_volume(ti);
	struct bio_data *bd = bio_data_of(bio);
	sector_t sector;

	bd->vol = vol;
	bd->flags = 0;
	if (bio->bi_opf & REQ_PREFLUSH)
		return map_flush(vol, bio);
	sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	switch (bio_op(bio)) {
	case REQ_OP_READ:
		return map_read(vol, bio, bd, sector);
	case REQ_OP_WRITE:
		return map_write(vol, bio, bd, sector);
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		return map_zero(vol, bio, sector);
	default:
		return DM_MAPIO_KILL;
	}
}

/*
 * A flush that went straight to the disk has ended. If it has failed, what others have written, and
 * the store is about to name, may be lost, though the store's own next flush succeed. From then on
 * no flush succeeds: it says nothing about what was lost before. Nor does a write begin, so that
 * the data that belongs to a failed flush does not follow it.
 */
static void flush_ended(struct cache *c, blk_status_t *error)
{
	unsigned long flags;

	if (likely(!*error)) {
		if (unlikely(dedup_store_error(c->store)))
			*error = BLK_STS_IOERR;
		return;
	}
	if (*error == BLK_STS_AGAIN || *error == BLK_STS_NOTSUPP || *error == BLK_STS_DM_REQUEUE)
		return;
	dedup_store_flush_failed(c->store);
	spin_lock_irqsave(&c->change_lock, flags);
	if (!c->error)
		WRITE_ONCE(c->error, -EIO);
	spin_unlock_irqrestore(&c->change_lock, flags);
	health_suspect(c);
}

/* Sets the valid bits before the reference is dropped, and both before anybody hears of it. */
static int volume_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct bio_data *bd = bio_data_of(bio);
	struct volume *vol = bd->vol;
	struct cache *c = vol->cache;
	u8 flags = bd->flags;

	if (!(flags & BIO_INFLIGHT)) {
		if (flags & BIO_FLUSH)
			flush_ended(c, error);
		return DM_ENDIO_DONE;
	}
	if (unlikely(*error)) {
		if ((flags & BIO_WRITE) && slot_write_failed(bio, *error))
			slots_bad(c, bd->ov->slot,
				  DIV_ROUND_UP(bd->offset + bd->sectors, c->block_sectors));
		health_suspect(c);
		if (read_failed(bio, *error))
			return DM_ENDIO_INCOMPLETE;
	} else if (flags & BIO_WRITE) {
		planted_delay();
		overlay_written(c, bd);
	} else if (unlikely(flags & BIO_PIECES) && read_goes_on(bio)) {
		return DM_ENDIO_INCOMPLETE;
	}
	bd->flags = 0;
	inflight_leave(&c->inflight, bd->epoch);
	if ((flags & BIO_FUA) && !*error) {
		bd->flags = BIO_FUA;
		commit_wait(c, vol, bio);
		return DM_ENDIO_INCOMPLETE;
	}
	return DM_ENDIO_DONE;
}

/* ---- table lines ---- */

static int volume_parse_opts(struct dm_target *ti, struct dm_arg_set *as, struct volume_table *t)
{
	static const struct dm_arg group = {0, 6, "Bad number of option words"};
	unsigned int n;
	int r;

	if (!as->argc)
		return 0;
	r = dm_read_arg_group(&group, as, &n, &ti->error);
	if (r)
		return r;
	while (n) {
		const char *name = dm_shift_arg(as);
		unsigned int *value = NULL;

		n--;
		if (!strcasecmp(name, "read_only")) {
			t->flags |= DEDUP_VOL_READONLY;
		} else if (!strcasecmp(name, "ephemeral")) {
			t->flags |= DEDUP_VOL_EPHEMERAL;
		} else if (!strcasecmp(name, "fetch_timeout")) {
			value = &t->fetch_timeout;
		} else if (!strcasecmp(name, "agent_timeout")) {
			value = &t->agent_timeout;
		} else {
			ti->error = "Unknown option: read_only, ephemeral, fetch_timeout, agent_timeout SECONDS are known";
			return -EINVAL;
		}
		if (!value)
			continue;
		if (!n-- || kstrtouint(dm_shift_arg(as), 10, value) || *value > 86400) {
			ti->error = "fetch_timeout and agent_timeout need a number of seconds, 86400 at the most";
			return -EINVAL;
		}
	}
	if (as->argc) {
		ti->error = "Too many arguments after the options";
		return -EINVAL;
	}
	return 0;
}

static int volume_parse(struct dm_target *ti, unsigned int argc, char **argv,
			struct volume_table *t, const char **cache_path)
{
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	const char *name;

	if (argc < 2) {
		ti->error = "Too few arguments: <cache device> <image> [<#opts> <opt>...]";
		return -EINVAL;
	}
	*cache_path = dm_shift_arg(&as);
	name = dm_shift_arg(&as);
	if (!*name || strscpy(t->name, name, sizeof(t->name)) < 0) {
		ti->error = "The image's name must have 1 to 255 bytes";
		return -EINVAL;
	}
	if (ti->begin) {
		ti->error = "The target must be the only one of its device";
		return -EINVAL;
	}
	t->agent_timeout = AGENT_TIMEOUT;
	return volume_parse_opts(ti, &as, t);
}

/* Without an agent, what the cache's own record says is the best that can be known. */
static bool lookup_record(struct cache *c, const char *name, struct dm_dedup_volume_info *info)
{
	struct volume *vol;

	mutex_lock(&c->mutex);
	vol = volume_find_name(c, name);
	mutex_unlock(&c->mutex);
	if (!vol)
		return false;
	spin_lock(&c->lock);
	volume_info(vol, info);
	spin_unlock(&c->lock);
	volume_put(vol);
	return true;
}

static int lookup(struct dm_target *ti, struct volume_table *t, struct dm_dedup_volume_info *info)
{
	struct cache *c = t->cache;
	u64 cookie;
	int r;

	if (!channel_has_agent(c->channel) && lookup_record(c, t->name, info))
		return 0;
	spin_lock(&c->lock);
	cookie = cache_new_id(c);
	spin_unlock(&c->lock);
	memset(info, 0, sizeof(*info));
	strscpy(info->name, t->name, sizeof(info->name));
	r = channel_ask(c->channel, DM_DEDUP_UP_LOOKUP, cookie, info, t->agent_timeout);
	if (r == -ENOENT)
		ti->error = "There is no image of this name";
	else if (r == -ETIMEDOUT)
		ti->error = "No agent answers, and the cache has no record of the image";
	else if (r)
		ti->error = "The agent cannot look up the image";
	if (r)
		return r;
	if (!memchr_inv(info->image, 0, sizeof(info->image)) || !info->size ||
	    (info->size & (SECTOR_SIZE - 1)) || info->size > DEDUP_MAX_SIZE ||
	    (info->logical_block_size && info->logical_block_size != SECTOR_SIZE)) {
		ti->error = "The agent's answer to LOOKUP makes no sense";
		return -EPROTO;
	}
	return 0;
}

/* Everything that can refuse another size does so now, not in the resume. */
static int bind_size(struct dm_target *ti, struct volume_table *t, u64 size)
{
	struct volume *vol = t->vol;
	int r = volume_check_size(vol, size);

	if (r) {
		ti->error = "A volume that is open or holds unpushed data cannot become smaller";
		return r;
	}
	t->size = size;
	if (size <= vol->rec.size)
		return 0;
	memory_make_room(vol->cache, volume_leaves(vol->cache, size));
	t->growth = map_growth_new(vol, size);
	if (!IS_ERR(t->growth))
		return 0;
	r = PTR_ERR(t->growth);
	t->growth = NULL;
	ti->error = "Cannot allocate a larger map: see max_memory of the cache";
	return r;
}

static int volume_bind(struct dm_target *ti, struct volume_table *t)
{
	struct dm_dedup_volume_info *info = kzalloc(sizeof(*info), GFP_KERNEL);
	struct volume *vol;
	int r;

	if (!info) {
		ti->error = "Cannot allocate the volume";
		return -ENOMEM;
	}
	r = lookup(ti, t, info);
	if (r)
		goto free_info;
	r = -EINVAL;
	if (ti->len != info->size >> SECTOR_SHIFT) {
		DMERR("%s: the table has %llu sectors, the image has %llu", t->name,
		      (unsigned long long)ti->len, info->size >> SECTOR_SHIFT);
		ti->error = "The table's size is not the image's";
		goto free_info;
	}
	memory_make_room(t->cache, volume_leaves(t->cache, info->size));
	vol = volume_use(t->cache, info->image, info->size, dm_table_get_md(ti->table));
	if (IS_ERR(vol)) {
		r = PTR_ERR(vol);
		if (r == -EBUSY)
			ti->error = "The image is attached to another device already";
		else if (r == -EEXIST)
			ti->error = "The device has another image: remove it, or clear its inactive table, first";
		else if (r == -E2BIG)
			ti->error = "The volume's map takes more than max_memory of the cache allows";
		else
			ti->error = "Cannot allocate the volume";
		goto free_info;
	}
	t->vol = vol;
	r = bind_size(ti, t, info->size);
	if (r)
		volume_unuse(vol);
free_info:
	kfree(info);
	return r;
}

static int volume_get_devices(struct dm_target *ti, struct volume_table *t, const char *path)
{
	char disk[32];
	int r = dm_get_device(ti, path, DEDUP_MODE_READ, &t->cache_dev);

	if (r) {
		ti->error = "Cannot open the cache device";
		return r;
	}
	t->cache = cache_get(t->cache_dev->bdev);
	if (!t->cache) {
		ti->error = "This is not a dedup-cache device";
		r = -EINVAL;
		goto put_cache_dev;
	}
	/* I/O goes to the disk itself; it must not go away before us. */
	format_dev_t(disk, t->cache->bdev->bd_dev);
	r = dm_get_device(ti, disk, DEDUP_MODE_READ | DEDUP_MODE_WRITE, &t->disk);
	if (r) {
		ti->error = "Cannot open the cache's disk";
		goto put_cache;
	}
	return 0;
put_cache:
	cache_put(t->cache);
put_cache_dev:
	dm_put_device(ti, t->cache_dev);
	return r;
}

static int volume_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct volume_table *t = kzalloc(sizeof(*t), GFP_KERNEL);
	const char *path;
	int r;

	if (!t) {
		ti->error = "Cannot allocate the table";
		return -ENOMEM;
	}
	r = volume_parse(ti, argc, argv, t, &path);
	if (r)
		goto free_table;
	r = volume_get_devices(ti, t, path);
	if (r)
		goto free_table;
	r = volume_bind(ti, t);
	if (r)
		goto put_devices;
	ti->private = t;
	ti->per_io_data_size = sizeof(struct bio_data);
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	ti->discards_supported = true;
	ti->num_write_zeroes_bios = 1;
	/* A disk without a volatile cache needs no flushes; our metadata does. */
	ti->flush_supported = true;
	return 0;
put_devices:
	cache_put(t->cache);
	dm_put_device(ti, t->disk);
	dm_put_device(ti, t->cache_dev);
free_table:
	kfree(t);
	return r;
}

static void volume_dtr(struct dm_target *ti)
{
	struct volume_table *t = ti->private;

	map_growth_free(t->vol, t->growth);
	volume_unuse(t->vol);
	/* The disk after the cache: closing the cache may still write to it. */
	cache_put(t->cache);
	dm_put_device(ti, t->disk);
	dm_put_device(ti, t->cache_dev);
	kfree(t);
}

/* ---- life ---- */

static int volume_preresume(struct dm_target *ti)
{
	struct volume_table *t = ti->private;
	struct volume *vol = t->vol;
	unsigned int noio;
	int r;

	if (mutex_lock_killable(&vol->mutex))
		return -EINTR;
	/* Memory must not wait for writes here: a push that makes room for them takes this mutex. */
	noio = memalloc_noio_save();
	r = volume_reshape(vol, t->size);
	if (!r)
		r = volume_open(vol, t->name, t->flags, t->agent_timeout);
	if (!r)
		r = volume_grow(vol, t->size, t->growth);
	memalloc_noio_restore(noio);
	mutex_unlock(&vol->mutex);
	if (r)
		DMERR("%s: cannot open the volume: error %d", t->name, r);
	return r;
}

static void volume_resume(struct dm_target *ti)
{
	struct volume_table *t = ti->private;
	struct volume *vol = t->vol;

	WRITE_ONCE(vol->fetch_timeout, t->fetch_timeout);
	if ((t->flags | vol->rec.flags) & DEDUP_VOL_READONLY)
		set_bit(VOLUME_READONLY, &vol->state);
	else
		clear_bit(VOLUME_READONLY, &vol->state);
	clear_bit(VOLUME_REQUEUE, &vol->state);
}

/*
 * noflush: whatever waits for the agent, a slot or memory goes back to device-mapper, which
 * holds it until the resume. Else device-mapper waits, interruptibly, until all has completed.
 */
static void volume_presuspend(struct dm_target *ti)
{
	struct volume *vol = ti_volume(ti);

	if (!dm_noflush_suspending(ti))
		return;
	WRITE_ONCE(vol->suspended, ti);
	/* Pairs with the one in volume_requeues(). */
	smp_mb__before_atomic();
	set_bit(VOLUME_REQUEUE, &vol->state);
	/* Pairs with the tests of the bit under the lock by those that park, and in map_defer(). */
	volume_send_back(vol);
}

static void volume_presuspend_undo(struct dm_target *ti)
{
	clear_bit(VOLUME_REQUEUE, &ti_volume(ti)->state);
}

static int volume_message(struct dm_target *ti, unsigned int argc, char **argv, char *result,
			  unsigned int maxlen)
{
	return volume_command(ti_volume(ti), argc, argv, result, maxlen);
}

static void volume_emit_table(struct volume_table *t, char *result, unsigned int maxlen)
{
	unsigned int words = !!(t->flags & DEDUP_VOL_READONLY) +
			     !!(t->flags & DEDUP_VOL_EPHEMERAL) + 2 * !!t->fetch_timeout +
			     2 * (t->agent_timeout != AGENT_TIMEOUT);
	unsigned int sz = 0;

	DMEMIT("%s %s", t->cache_dev->name, t->name);
	if (words)
		DMEMIT(" %u", words);
	if (t->flags & DEDUP_VOL_READONLY)
		DMEMIT(" read_only");
	if (t->flags & DEDUP_VOL_EPHEMERAL)
		DMEMIT(" ephemeral");
	if (t->fetch_timeout)
		DMEMIT(" fetch_timeout %u", t->fetch_timeout);
	if (t->agent_timeout != AGENT_TIMEOUT)
		DMEMIT(" agent_timeout %u", t->agent_timeout);
}

static void volume_emit_status(struct dm_target *ti, status_type_t type, unsigned int flags,
			       char *result, unsigned int maxlen)
{
	switch (type) {
	case STATUSTYPE_INFO:
		volume_status(ti_volume(ti), result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		volume_emit_table(ti->private, result, maxlen);
		break;
	default:
		*result = '\0';
	}
}

/* Limits come from the disk; the volume's own size says nothing about the disk's. */
static int volume_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct volume_table *t = ti->private;
	struct cache *c = t->cache;

	return fn(ti, t->disk, c->data_start, (sector_t)c->nr_slots << c->sector_shift, data);
}

static void volume_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct cache *c = ((struct volume_table *)ti->private)->cache;

	/* Sectors are our unit whatever the size; but who writes 4 KiB spares bits. */
	limits->physical_block_size = max(limits->physical_block_size, 4096U);
	limits->io_min = limits->physical_block_size;
	limits->io_opt = c->block_sectors << SECTOR_SHIFT;
	limits->discard_granularity = c->block_sectors << SECTOR_SHIFT;
	dedup_set_max_discard(limits, round_down(UINT_MAX >> SECTOR_SHIFT, c->block_sectors));
}

struct target_type volume_target = {
	.name = "dedup",
	.version = {0, 1, 0},
	.features = DM_TARGET_SINGLETON | DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = volume_ctr,
	.dtr = volume_dtr,
	.map = volume_map,
	.end_io = volume_end_io,
	.presuspend = volume_presuspend,
	.presuspend_undo = volume_presuspend_undo,
	.preresume = volume_preresume,
	.resume = volume_resume,
	.message = volume_message,
	.status = volume_emit_status,
	.iterate_devices = volume_iterate_devices,
	.io_hints = volume_io_hints,
};
