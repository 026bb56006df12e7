// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dedup-cache target: opens a formatted disk, and is a read-only window on its slots.
 *
 * A cache lives as long as a table of its device or a volume uses it. Where the device's table
 * was replaced by force, the volumes keep the cache and hold the disk; the disk cannot be
 * opened a second time until they have gone, nor the device be the cache on another disk.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include "dedup.h"

#define WINDOW_EDGE	(SZ_1M >> SECTOR_SHIFT)	/* read as zeros at both ends */

/*
 * One cache is opened or closed at a time, and meanwhile no other one: that is I/O, and a disk may
 * hang. Who only uses a cache that is open takes no more than the registry's mutex.
 */
static DEFINE_MUTEX(open_mutex);
static DEFINE_MUTEX(registry_mutex);	/* the list changes under both */
static LIST_HEAD(caches);

struct cache_opts {
	u64 max_memory;
	unsigned int dirty_timeout;
	unsigned int dirty_age;
	u64 dirty_bytes;
	unsigned int low;		/* per cent; 0: the default */
	unsigned int high;
};

/* The cache does as the options of the table say that was resumed last. */
struct cache_table {
	struct cache *cache;
	struct dm_dev *dev;
	struct cache_opts opts;
};

/* ---- life ---- */

/*
 * The disk may have another name (device-mapper lets all its devices claim one), or this is a copy of
 * it. Two that write to one journal lose what the other has acknowledged.
 */
static bool cache_is_open(const u8 *uuid)
{
	struct cache *c;

	/* Both are held to change the list. */
	lockdep_assert_held(&open_mutex);
	list_for_each_entry(c, &caches, list)
		if (!memcmp(c->info->cache_uuid, uuid, sizeof(c->info->cache_uuid)))
			return true;
	return false;
}

/* From dedup_store_open(), when the geometry is known and before anything is written. */
int cache_prepare(struct cache *c, const struct dedup_store_info *info)
{
	int r;

	if (info->nr_slots >= DEDUP_NO_SLOT)
		return -EINVAL;
	if (cache_is_open(info->cache_uuid))
		return -EBUSY;
	c->info = info;
	c->nr_slots = info->nr_slots;
	c->sector_shift = info->block_shift - SECTOR_SHIFT;
	c->block_sectors = 1U << c->sector_shift;
	c->data_start = info->data_start >> SECTOR_SHIFT;
	space_set_reserve(c);
	r = memory_begin(c, info);
	if (r)
		return r;
	r = slots_init(c);
	return r ?: overlays_init(c);
}

static void cache_free(struct cache *c)
{
	volumes_exit(c);
	overlays_exit(c);
	slots_exit(c);
	if (c->wq)
		destroy_workqueue(c->wq);
	if (c->io_wq)
		destroy_workqueue(c->io_wq);
	bioset_exit(&c->bios);
	inflight_exit(&c->inflight);
	bitmap_free(c->indexes);
	kfree(c);
}

/* Where eviction begins and ends with these options. The reserve does not depend on them. */
static int cache_marks(struct cache *c, const struct cache_opts *opts, u32 *low, u32 *high,
		       char **error)
{
	space_default_marks(c, low, high);
	if (opts->low)
		*low = c->reserve + div_u64((u64)c->nr_slots * opts->low, 100);
	if (opts->high)
		*high = c->reserve + div_u64((u64)c->nr_slots * opts->high, 100);
	if (*low < *high && *high < c->nr_slots)
		return 0;
	*error = "low_watermark must be below high_watermark";
	return -EINVAL;
}

/* May the options take effect on a cache that is open already? */
static int cache_check_opts(struct cache *c, const struct cache_opts *opts, char **error)
{
	u64 now = atomic64_read(&c->memory);
	u32 low, high;

	if (opts->max_memory < c->max_memory && opts->max_memory < now + MEMORY_FOR_READS) {
		DMERR("the cache needs %llu MiB of memory now, max_memory is %llu MiB",
		      DIV_ROUND_UP_ULL(now + MEMORY_FOR_READS, SZ_1M), opts->max_memory >> 20);
		*error = "max_memory is less than the cache needs now";
		return -E2BIG;
	}
	return cache_marks(c, opts, &low, &high, error);
}

static void cache_apply_opts(struct cache *c, const struct cache_opts *opts)
{
	u32 low, high;
	char *error;

	/* Checked when the table was loaded. */
	if (cache_marks(c, opts, &low, &high, &error))
		return;
	spin_lock(&c->lock);
	c->low = low;
	c->high = high;
	c->max_memory = opts->max_memory;
	c->dirty_timeout = opts->dirty_timeout;
	c->dirty_age = opts->dirty_age;
	c->dirty_bytes = opts->dirty_bytes;
	spin_unlock(&c->lock);
	memory_unpinned(c);
	space_kick(c);
}

static struct cache *cache_alloc(const struct cache_opts *opts)
{
	struct cache *c = kzalloc(sizeof(*c), GFP_KERNEL);

	if (!c)
		return NULL;
	INIT_LIST_HEAD(&c->list);
	mutex_init(&c->mutex);
	INIT_LIST_HEAD(&c->volumes);
	spin_lock_init(&c->lock);
	spin_lock_init(&c->change_lock);
	INIT_LIST_HEAD(&c->volume_changes);
	INIT_LIST_HEAD(&c->commit_volumes);
	hash_init(c->miss_blocks);
	hash_init(c->miss_cookies);
	init_waitqueue_head(&c->slot_wait);
	INIT_WORK(&c->space_work, space_work);
	INIT_WORK(&c->health_work, health_work);
	INIT_DELAYED_WORK(&c->tick_work, tick_work);
	upcall_init(&c->space_event, DM_DEDUP_UP_SPACE);
	/* The rest of the options counts from the resume on. */
	c->max_memory = opts->max_memory;
	c->dirty_bytes = U64_MAX;
	c->dirty_age = UINT_MAX;
	c->indexes = bitmap_zalloc(DM_DEDUP_MAX_VOLUMES, GFP_KERNEL);
	/*
	 * Two, each with a thread for times without memory: what runs on the first waits for references,
	 * and a read that has failed holds one until the second has looked at it.
	 */
	c->wq = alloc_workqueue("dm-dedup", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	c->io_wq = alloc_workqueue("dm-dedup-io", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!c->indexes || !c->wq || !c->io_wq || inflight_init(&c->inflight) ||
	    bioset_init(&c->bios, 64, 0, BIOSET_NEED_BVECS)) {
		cache_free(c);
		return NULL;
	}
	return c;
}

static void cache_destroy(struct cache *c)
{
	/* A last round of the worker may go on, but asks the store for nothing any more. */
	WRITE_ONCE(c->closing, true);
	cancel_delayed_work_sync(&c->tick_work);
	cancel_work_sync(&c->space_work);
	cancel_work_sync(&c->health_work);
	/* The agent's calls end here; then the last commit, which may still kick the worker. */
	channel_destroy(c->channel);
	c->channel = NULL;
	dedup_store_close(c->store);
	cancel_work_sync(&c->space_work);
	cache_free(c);
}

static bool cache_put_unless_last(struct cache *c)
{
	bool last;

	mutex_lock(&registry_mutex);
	last = c->ref == 1;
	if (!last)
		c->ref--;
	mutex_unlock(&registry_mutex);
	return !last;
}

/* Takes the last commit along and closes the disk, when nobody uses the cache any more. */
void cache_put(struct cache *c)
{
	bool last;

	if (cache_put_unless_last(c))
		return;
	/* Until it is closed: the disk is not opened again before. */
	mutex_lock(&open_mutex);
	mutex_lock(&registry_mutex);
	last = !--c->ref;
	if (last)
		list_del(&c->list);
	mutex_unlock(&registry_mutex);
	if (last)
		cache_destroy(c);
	mutex_unlock(&open_mutex);
}

/* The cache whose device @bdev is, with a reference; NULL if it is none. */
struct cache *cache_get(struct block_device *bdev)
{
	struct cache *c, *found = NULL;

	mutex_lock(&registry_mutex);
	list_for_each_entry(c, &caches, list) {
		if (c->users && dm_disk(c->md) == bdev->bd_disk) {
			c->ref++;
			found = c;
			break;
		}
	}
	mutex_unlock(&registry_mutex);
	return found;
}

static int cache_check_window(struct cache *c, struct dm_target *ti)
{
	sector_t end = c->data_start + ((sector_t)c->nr_slots << c->sector_shift);

	if (c->data_start < WINDOW_EDGE || ti->len < end + WINDOW_EDGE) {
		ti->error = "The table is shorter than the cache: use the whole device";
		return -EINVAL;
	}
	return 0;
}

static int cache_start(struct cache *c, struct dm_target *ti, const struct cache_opts *opts)
{
	int r = cache_check_window(c, ti);

	if (r)
		return r;
	r = cache_marks(c, opts, &c->low, &c->high, &ti->error);
	if (r)
		return r;
	r = channel_create(&c->channel, c->info->cache_uuid, (u64)c->info->incarnation_nr << 40,
			   &cache_channel_ops, c);
	if (r) {
		ti->error = "Cannot create the channel's device";
		return r;
	}
	queue_delayed_work(c->wq, &c->tick_work, 0);
	/*
	 * The load has freed what was void, when there was no store to be kicked; as long as these
	 * changes are pending, no other one kicks it.
	 */
	changes_kick(c);
	return 0;
}

static struct cache *cache_open(struct dm_target *ti, struct block_device *bdev,
				const struct cache_opts *opts)
{
	struct cache *c = cache_alloc(opts);
	struct dedup_store *store;
	int r;

	if (!c) {
		ti->error = "Cannot allocate the cache";
		return ERR_PTR(-ENOMEM);
	}
	c->bdev = bdev;
	store = dedup_store_open(bdev, bdev_nr_sectors(bdev), &cache_store_ops, c, &ti->error);
	if (IS_ERR(store)) {
		r = PTR_ERR(store);
		if (r == -E2BIG)
			ti->error = "Cache needs more memory than max_memory allows: see the kernel's log";
		else if (r == -EBUSY)
			ti->error = "This cache is open already: the disk has another name, or is a copy";
		goto free_cache;
	}
	c->store = store;
	r = cache_start(c, ti, opts);
	if (r)
		goto close_store;
	ti->error = NULL;
	return c;
close_store:
	WRITE_ONCE(c->closing, true);
	cancel_work_sync(&c->space_work);
	dedup_store_close(store);
free_cache:
	/* The load may have kicked the worker, too. */
	WRITE_ONCE(c->closing, true);
	cancel_work_sync(&c->space_work);
	cache_free(c);
	return ERR_PTR(r);
}

static struct cache *cache_use_again(struct dm_target *ti, struct cache *c,
				     const struct cache_opts *opts)
{
	int r;

	lockdep_assert_held(&registry_mutex);
	if (!c->users || c->md != dm_table_get_md(ti->table)) {
		ti->error = "The disk is in use by another cache";
		return ERR_PTR(-EBUSY);
	}
	r = cache_check_window(c, ti) ?: cache_check_opts(c, opts, &ti->error);
	if (r)
		return ERR_PTR(r);
	c->ref++;
	c->users++;
	return c;
}

/* The cache on @bdev that the other table of this device has; NULL if @bdev is not in use. */
static struct cache *cache_find(struct dm_target *ti, struct block_device *bdev,
				const struct cache_opts *opts)
{
	struct cache *c, *found = NULL;

	mutex_lock(&registry_mutex);
	list_for_each_entry(c, &caches, list) {
		if (c->bdev == bdev) {
			found = cache_use_again(ti, c, opts);
			break;
		}
		/* Its agent reads through this device, and would take the other disk for its own. */
		if (c->md == dm_table_get_md(ti->table)) {
			ti->error = "This device is the cache on another disk: clear its other table, or remove its volumes, first";
			found = ERR_PTR(-EBUSY);
		}
	}
	mutex_unlock(&registry_mutex);
	return found;
}

/* The cache on @bdev for a table: opened now, or the one that the device's other table has. */
static struct cache *cache_use(struct dm_target *ti, struct block_device *bdev,
			       const struct cache_opts *opts)
{
	struct cache *c;

	mutex_lock(&open_mutex);
	c = cache_find(ti, bdev, opts);
	if (c)
		goto unlock;
	c = cache_open(ti, bdev, opts);
	if (IS_ERR(c))
		goto unlock;
	c->md = dm_table_get_md(ti->table);
	c->ref = 1;
	c->users = 1;
	mutex_lock(&registry_mutex);
	list_add(&c->list, &caches);
	mutex_unlock(&registry_mutex);
unlock:
	mutex_unlock(&open_mutex);
	return c;
}

static void cache_unuse(struct cache *c, struct dm_table *table)
{
	mutex_lock(&c->mutex);
	if (c->table == table)
		c->table = NULL;
	mutex_unlock(&c->mutex);
	mutex_lock(&registry_mutex);
	c->users--;
	mutex_unlock(&registry_mutex);
	cache_put(c);
}

/* ---- table lines ---- */

static int cache_parse_opt(struct dm_target *ti, struct dm_arg_set *as, const char *name,
			   struct cache_opts *opts)
{
	unsigned long long n;
	const char *value;

	if (!as->argc) {
		ti->error = "An option lacks its value";
		return -EINVAL;
	}
	value = dm_shift_arg(as);
	if (kstrtoull(value, 10, &n) || n > UINT_MAX) {
		ti->error = "The value of an option is not a number";
		return -EINVAL;
	}
	if (!strcasecmp(name, "max_memory")) {
		opts->max_memory = n << 20;
	} else if (!strcasecmp(name, "dirty_timeout")) {
		opts->dirty_timeout = n;
	} else if (!strcasecmp(name, "dirty_age")) {
		opts->dirty_age = n;
	} else if (!strcasecmp(name, "dirty_max")) {
		opts->dirty_bytes = n << 20;
	} else if (!strcasecmp(name, "low_watermark") && n && n < 100) {
		opts->low = n;
	} else if (!strcasecmp(name, "high_watermark") && n && n < 100) {
		opts->high = n;
	} else {
		ti->error = "Unknown option: max_memory MiB, dirty_timeout, dirty_age SECONDS, dirty_max MiB, low_watermark, high_watermark PERCENT are known";
		return -EINVAL;
	}
	return 0;
}

static int cache_parse_opts(struct dm_target *ti, struct dm_arg_set *as, struct cache_opts *opts)
{
	static const struct dm_arg group = {0, 12, "Bad number of option words"};
	struct dm_arg_set words;
	unsigned int n;
	int r = 0;

	if (!as->argc)
		return 0;
	r = dm_read_arg_group(&group, as, &n, &ti->error);
	if (r)
		return r;
	words.argc = n;
	words.argv = as->argv;
	dm_consume_args(as, n);
	while (!r && words.argc) {
		const char *name = dm_shift_arg(&words);

		r = cache_parse_opt(ti, &words, name, opts);
	}
	if (!r && as->argc) {
		ti->error = "Too many arguments after the options";
		r = -EINVAL;
	}
	return r;
}

static int cache_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dm_arg_set as = { .argc = argc, .argv = argv };
	const struct cache_opts defaults = {
		.max_memory = (u64)totalram_pages() << PAGE_SHIFT >> 2,
		.dirty_bytes = 1ULL << 30,
		.dirty_age = 60,
	};
	struct cache_table *t;
	const char *path;
	int r;

	if (!argc) {
		ti->error = "Too few arguments: <device> [<#opts> <opt>...]";
		return -EINVAL;
	}
	path = dm_shift_arg(&as);
	if (ti->begin) {
		ti->error = "The target must be the only one of its device";
		return -EINVAL;
	}
	t = kzalloc(sizeof(*t), GFP_KERNEL);
	if (!t) {
		ti->error = "Cannot allocate the table";
		return -ENOMEM;
	}
	t->opts = defaults;
	r = cache_parse_opts(ti, &as, &t->opts);
	if (r)
		goto free_table;
	r = dm_get_device(ti, path, DEDUP_MODE_READ | DEDUP_MODE_WRITE, &t->dev);
	if (r) {
		ti->error = "Cannot open the cache's disk";
		goto free_table;
	}
	t->cache = cache_use(ti, t->dev->bdev, &t->opts);
	if (IS_ERR(t->cache)) {
		r = PTR_ERR(t->cache);
		goto put_device;
	}
	ti->private = t;
	return 0;
put_device:
	dm_put_device(ti, t->dev);
free_table:
	kfree(t);
	return r;
}

static void cache_dtr(struct dm_target *ti)
{
	struct cache_table *t = ti->private;

	cache_unuse(t->cache, ti->table);
	dm_put_device(ti, t->dev);
	kfree(t);
}

/* ---- the window ---- */

/* Slots are where they are on the disk; all else reads as zeros. */
static int cache_map(struct dm_target *ti, struct bio *bio)
{
	struct cache *c = ((struct cache_table *)ti->private)->cache;
	sector_t sector = dm_target_offset(ti, bio->bi_iter.bi_sector);
	sector_t start = c->data_start;
	sector_t end = start + ((sector_t)c->nr_slots << c->sector_shift);

	if (bio_op(bio) != REQ_OP_READ)
		return DM_MAPIO_KILL;
	if (sector < start || sector >= end) {
		if (sector < start && sector + bio_sectors(bio) > start)
			dm_accept_partial_bio(bio, start - sector);
		zero_fill_bio(bio);
		bio_endio(bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (sector + bio_sectors(bio) > end)
		dm_accept_partial_bio(bio, end - sector);
	bio_set_dev(bio, c->bdev);
	bio->bi_iter.bi_sector = sector;
	return DM_MAPIO_REMAPPED;
}

static void cache_resume(struct dm_target *ti)
{
	struct cache_table *t = ti->private;
	struct cache *c = t->cache;

	cache_apply_opts(c, &t->opts);
	/* device-mapper has just set it from the table's mode; nobody writes through the window. */
	set_disk_ro(dm_disk(dm_table_get_md(ti->table)), true);
	mutex_lock(&c->mutex);
	c->table = ti->table;
	mutex_unlock(&c->mutex);
}

static void cache_emit_status(struct dm_target *ti, status_type_t type, unsigned int flags,
			      char *result, unsigned int maxlen)
{
	struct cache_table *t = ti->private;
	const struct cache_opts *opts = &t->opts;
	unsigned int sz = 0;

	switch (type) {
	case STATUSTYPE_INFO:
		cache_status(t->cache, result, maxlen);
		break;
	case STATUSTYPE_TABLE:
		DMEMIT("%s %u max_memory %llu dirty_timeout %u dirty_age %u dirty_max %llu",
		       t->dev->name, 8 + 2 * !!opts->low + 2 * !!opts->high,
		       opts->max_memory >> 20, opts->dirty_timeout, opts->dirty_age,
		       opts->dirty_bytes >> 20);
		if (opts->low)
			DMEMIT(" low_watermark %u", opts->low);
		if (opts->high)
			DMEMIT(" high_watermark %u", opts->high);
		break;
	default:
		*result = '\0';
	}
}

static int cache_message(struct dm_target *ti, unsigned int argc, char **argv, char *result,
			 unsigned int maxlen)
{
	return cache_command(((struct cache_table *)ti->private)->cache, argc, argv, result,
			     maxlen);
}

static int cache_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct cache_table *t = ti->private;

	return fn(ti, t->dev, 0, ti->len, data);
}

struct target_type cache_target = {
	.name = "dedup-cache",
	.version = {0, 1, 0},
	.features = DM_TARGET_SINGLETON | DM_TARGET_NOWAIT,
	.module = THIS_MODULE,
	.ctr = cache_ctr,
	.dtr = cache_dtr,
	.map = cache_map,
	.resume = cache_resume,
	.message = cache_message,
	.status = cache_emit_status,
	.iterate_devices = cache_iterate_devices,
};
