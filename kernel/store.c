// SPDX-License-Identifier: GPL-2.0-only
/*
 * The store: the ledger, driven by two workers.
 *
 * The commit worker is the only one that appends: commits, and the roots of checkpoints. The
 * checkpoint worker writes table pages from the frozen delta while commits go on. They hand the
 * ledger to one another through @ckpt:
 *
 *	IDLE --commit worker: freeze--> WRITING --checkpoint worker--> WRITTEN
 *	WRITTEN --commit worker: finish--> IDLE
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/device-mapper.h>
#include <linux/err.h>
#include <linux/uuid.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "bdev.h"
#include "ledger.h"
#include "store.h"
#include "trace.h"

#define DM_MSG_PREFIX "dedup-cache"

#define KICK_DELAY	(HZ / 10)

enum ckpt_state {
	CKPT_IDLE,
	CKPT_WRITING,
	CKPT_WRITTEN,
};

struct dedup_store {
	struct dedup_ledger ledger;
	struct dedup_disk disk;
	struct dedup_bdev bdev;
	struct dedup_store_info info;
	const struct dedup_store_ops *ops;
	void *ctx;

	atomic64_t wanted;		/* the last sequence given to a caller of commit */
	u64 durable;			/* written by the commit worker; read anywhere */
	int error;			/* set once, by the commit worker */
	bool flush_failed;		/* somebody else's; set once, anywhere */
	wait_queue_head_t waiters;	/* on durable and error */

	/* Two, each with a thread for times without memory: commit_work may wait for ckpt_work. */
	struct workqueue_struct *wq, *ckpt_wq;
	struct delayed_work commit_work;
	struct work_struct ckpt_work;
	bool closing;			/* no checkpoint begins but for want of room */
	enum ckpt_state ckpt;
	int ckpt_error;			/* published by ckpt == CKPT_WRITTEN */
	struct completion ckpt_written;
};

/* ---- checkpoint worker ---- */

static void do_checkpoint(struct work_struct *work)
{
	struct dedup_store *s = container_of(work, struct dedup_store, ckpt_work);
	struct dedup_why why = { "" };

	s->ckpt_error = dedup_ledger_write_tables(&s->ledger, &why);
	if (s->ckpt_error)
		DMERR("checkpoint: %s", why.text);
	/* Tables and ckpt_error. Pairs with the acquire in finish_checkpoint(). */
	smp_store_release(&s->ckpt, CKPT_WRITTEN);
	/* Before whoever waits goes on: when the commit worker has ended, nothing wakes it any more. */
	mod_delayed_work(s->wq, &s->commit_work, 0);
	complete(&s->ckpt_written);
}

static void begin_checkpoint(struct dedup_store *s)
{
	dedup_ledger_freeze(&s->ledger);
	reinit_completion(&s->ckpt_written);
	WRITE_ONCE(s->ckpt, CKPT_WRITING);
	queue_work(s->ckpt_wq, &s->ckpt_work);
}

/* Before something is made durable that relies on what was written before, and after. */
static int flush_result(struct dedup_store *s)
{
	return READ_ONCE(s->flush_failed) ? -EIO : 0;
}

static int finish_checkpoint(struct dedup_store *s)
{
	int r;

	/* Pairs with the release in do_checkpoint(). */
	if (smp_load_acquire(&s->ckpt) != CKPT_WRITTEN)
		return 0;
	r = s->ckpt_error;
	if (!r)
		r = flush_result(s);
	if (!r)
		r = dedup_ledger_finish(&s->ledger);
	WRITE_ONCE(s->ckpt, CKPT_IDLE);
	return r;
}

/* Until an append of any length fits. */
static int make_room(struct dedup_store *s)
{
	int r;

	while (!dedup_ledger_has_room(&s->ledger)) {
		if (READ_ONCE(s->ckpt) == CKPT_IDLE)
			begin_checkpoint(s);
		wait_for_completion(&s->ckpt_written);
		r = finish_checkpoint(s);
		if (r)
			return r;
	}
	return 0;
}

/* ---- commit worker ---- */

static bool store_next(void *ctx, struct dedup_change *change)
{
	struct dedup_store *s = ctx;

	return s->ops->next_change(s->ctx, change);
}

/* Everything that is pending, in as few appends as can be; a flush if nothing is. */
static int commit_pending(struct dedup_store *s, bool flush)
{
	bool written = false;
	ktime_t start;
	bool more;
	u32 nr;
	int r;

	do {
		r = flush_result(s) ?: make_room(s);
		if (r)
			return r;
		start = ktime_get();
		r = dedup_ledger_commit(&s->ledger, store_next, s, &nr, &more);
		if (r || nr)
			trace_dedup_append(s->durable, nr, ktime_us_delta(ktime_get(), start), r);
		if (r)
			return r;
		written |= nr > 0;
	} while (more);
	if (flush && !written)
		r = s->disk.ops->flush(s->disk.ctx);
	return r ?: flush_result(s);
}

static void store_fail(struct dedup_store *s, int error)
{
	s->ledger.writable = false;
	WRITE_ONCE(s->error, error);
	DMERR("a commit failed (%d): the cache is read-only from now on", error);
}

static void do_commit(struct work_struct *work)
{
	struct dedup_store *s = container_of(to_delayed_work(work), struct dedup_store, commit_work);
	/*
	 * Pairs with the full barrier of the increment in dedup_store_commit(): whoever got this
	 * sequence, or a lower one, has made his changes visible to ->next_change().
	 */
	u64 target = atomic64_read_acquire(&s->wanted);
	int r = s->error;

	if (!r) {
		r = commit_pending(s, target > s->durable);
		if (r)
			store_fail(s, r);
	}
	if (!r) {
		/* Pairs with the acquire in dedup_store_durable(). */
		smp_store_release(&s->durable, target);
	}
	wake_up_all(&s->waiters);
	s->ops->committed(s->ctx, target, r);
	if (r)
		return;

	r = finish_checkpoint(s);
	if (r) {
		store_fail(s, r);
		wake_up_all(&s->waiters);
		s->ops->committed(s->ctx, target, r);
		return;
	}
	if (!READ_ONCE(s->closing) && s->ckpt == CKPT_IDLE &&
	    dedup_ledger_wants_checkpoint(&s->ledger))
		begin_checkpoint(s);
}

u64 dedup_store_commit(struct dedup_store *s)
{
	u64 seq = atomic64_inc_return(&s->wanted);

	mod_delayed_work(s->wq, &s->commit_work, 0);
	return seq;
}

void dedup_store_kick(struct dedup_store *s)
{
	queue_delayed_work(s->wq, &s->commit_work, KICK_DELAY);
}

int dedup_store_sync(struct dedup_store *s)
{
	u64 seq = dedup_store_commit(s);

	wait_event(s->waiters, dedup_store_durable(s) >= seq || READ_ONCE(s->error));
	return dedup_store_durable(s) >= seq ? 0 : READ_ONCE(s->error);
}

u64 dedup_store_durable(struct dedup_store *s)
{
	/* Pairs with the release in do_commit(). */
	return smp_load_acquire(&s->durable);
}

int dedup_store_error(struct dedup_store *s)
{
	return READ_ONCE(s->error) ?: flush_result(s);
}

void dedup_store_flush_failed(struct dedup_store *s)
{
	WRITE_ONCE(s->flush_failed, true);
	dedup_store_commit(s);
}

int dedup_store_probe(struct dedup_store *s)
{
	void *page = (void *)__get_free_page(GFP_NOIO);
	int r;

	if (!page)
		return 0;
	r = dedup_disk_read(&s->disk, DEDUP_SUPER_OFFSET, page, DEDUP_PAGE_BYTES);
	free_page((unsigned long)page);
	return r;
}

const struct dedup_store_info *dedup_store_info(struct dedup_store *s)
{
	return &s->info;
}

/* ---- open and close ---- */

static int load_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	struct dedup_store *s = ctx;

	return s->ops->load_volume(s->ctx, index, rec);
}

static int load_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct dedup_store *s = ctx;

	return s->ops->load_slot(s->ctx, slot, rec);
}

static void fill_info(struct dedup_store *s)
{
	const struct dedup_super *sb = &s->ledger.sb;
	struct dedup_store_info *info = &s->info;

	memcpy(info->cache_uuid, sb->cache_uuid, sizeof(info->cache_uuid));
	memcpy(info->cluster_uuid, sb->cluster_uuid, sizeof(info->cluster_uuid));
	generate_random_uuid(info->incarnation);
	info->nr_slots = sb->nr_slots;
	info->data_start = sb->data_start;
	info->block_shift = sb->block_shift;
	info->max_changes = sb->max_changes;
	info->incarnation_nr = dedup_ledger_next_incarnation(&s->ledger);
	info->memory = dedup_ledger_memory(sb);
}

static char *open_error(int r)
{
	switch (r) {
	case -EINVAL:
		return "No cache on this device, or it is too small: run `vmdedup cache format`";
	case -EPROTONOSUPPORT:
		return "Cache was formatted by a newer version: use a module of that version";
	case -EUCLEAN:
		return "Cache metadata is damaged: run `vmdedup cache check`";
	case -EOVERFLOW:
		return "Cache was opened too often: push everything and format it again";
	case -ENOMEM:
		return "Out of memory for the cache's tables";
	case -EIO:
		return "Cache device cannot be read or written";
	default:
		return "Cache cannot be opened";
	}
}

static int open_ledger(struct dedup_store *s)
{
	static const char * const names[] = { "first", "second" };
	struct dedup_visitor visitor = {
		.volume = load_volume,
		.slot = load_slot,
		.ctx = s,
	};
	struct dedup_why why = { "" };
	unsigned int i;
	int r;

	r = dedup_ledger_open(&s->ledger, &s->disk, &why);
	if (r)
		goto report;
	for (i = 0; i < 2; i++)
		if (s->ledger.super_error[i] && s->ledger.super_error[i] != -ESTALE)
			DMWARN("the %s superblock is destroyed (%d): restoring it from the other",
			       names[i], s->ledger.super_error[i]);
	fill_info(s);
	r = s->ops->prepare(s->ctx, &s->info);
	if (!r)
		r = dedup_ledger_load(&s->ledger, &visitor, &why);
	if (!r)
		r = dedup_ledger_start(&s->ledger, s->info.incarnation, &why);
	if (!r)
		return 0;
	dedup_ledger_close(&s->ledger);
report:
	if (why.text[0])
		DMERR("%s", why.text);
	return r;
}

/* On @bdev, or, for tests, on @disk. */
static struct dedup_store *store_open(struct block_device *bdev, u64 dev_sectors,
				      const struct dedup_disk *disk,
				      const struct dedup_store_ops *ops, void *ctx, char **error)
{
	struct dedup_store *s = kzalloc(sizeof(*s), GFP_KERNEL);
	int r = -ENOMEM;

	if (!s)
		goto out;
	s->ops = ops;
	s->ctx = ctx;
	init_waitqueue_head(&s->waiters);
	init_completion(&s->ckpt_written);
	INIT_DELAYED_WORK(&s->commit_work, do_commit);
	INIT_WORK(&s->ckpt_work, do_checkpoint);
	s->wq = alloc_workqueue("dedup-store", WQ_MEM_RECLAIM | WQ_UNBOUND, 1);
	if (!s->wq)
		goto free_store;
	s->ckpt_wq = alloc_workqueue("dedup-ckpt", WQ_MEM_RECLAIM | WQ_UNBOUND, 1);
	if (!s->ckpt_wq)
		goto destroy_wq;
	if (disk) {
		s->disk = *disk;
	} else {
		r = dedup_bdev_init(&s->bdev, bdev, dev_sectors, &s->disk);
		if (r)
			goto destroy_ckpt_wq;
	}
	r = open_ledger(s);
	if (r)
		goto exit_bdev;
	return s;

exit_bdev:
	dedup_bdev_exit(&s->bdev);
destroy_ckpt_wq:
	destroy_workqueue(s->ckpt_wq);
destroy_wq:
	destroy_workqueue(s->wq);
free_store:
	kfree(s);
out:
	*error = open_error(r);
	return ERR_PTR(r);
}

struct dedup_store *dedup_store_open(struct block_device *bdev, u64 dev_sectors,
				     const struct dedup_store_ops *ops, void *ctx, char **error)
{
	return store_open(bdev, dev_sectors, NULL, ops, ctx, error);
}

#if IS_ENABLED(CONFIG_KUNIT)
struct dedup_store *dedup_store_open_disk(const struct dedup_disk *disk,
					  const struct dedup_store_ops *ops, void *ctx,
					  char **error)
{
	return store_open(NULL, 0, disk, ops, ctx, error);
}
#endif

void dedup_store_close(struct dedup_store *s)
{
	struct dedup_why why = { "" };
	int r;

	dedup_store_sync(s);
	/* A checkpoint may be under way, and wakes the commit worker when it has ended: the last time. */
	WRITE_ONCE(s->closing, true);
	cancel_delayed_work_sync(&s->commit_work);
	flush_work(&s->ckpt_work);
	cancel_delayed_work_sync(&s->commit_work);
	if (!s->error) {
		r = finish_checkpoint(s);
		if (!r)
			r = dedup_ledger_stop(&s->ledger, &why);
		if (r)
			DMERR("the last checkpoint failed (%d): %s", r, why.text);
	}
	destroy_workqueue(s->ckpt_wq);
	destroy_workqueue(s->wq);
	dedup_ledger_close(&s->ledger);
	dedup_bdev_exit(&s->bdev);
	kfree(s);
}
