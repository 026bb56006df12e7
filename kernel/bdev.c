// SPDX-License-Identifier: GPL-2.0-only
/*
 * The block device below the metadata. Bios come from a pool of its own, so that a commit
 * never fails for memory; a bio is submitted before the next one is taken, so the pool's
 * reserve makes progress.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/highmem.h>
#include <linux/vmalloc.h>
#include "bdev.h"

struct disk_wait {
	atomic_t pending;
	int error;
	struct completion done;
};

static void disk_put(struct disk_wait *wait)
{
	if (atomic_dec_and_test(&wait->pending))
		complete(&wait->done);
}

static void disk_end_io(struct bio *bio)
{
	struct disk_wait *wait = bio->bi_private;
	int r = blk_status_to_errno(bio->bi_status);

	if (r)
		cmpxchg(&wait->error, 0, r);
	bio_put(bio);
	disk_put(wait);
}

static struct page *buffer_page(const void *buf)
{
	return is_vmalloc_addr(buf) ? vmalloc_to_page(buf) : virt_to_page(buf);
}

/* Submits one bio for as much of the transfer as it takes; returns the bytes. */
static u32 submit_part(struct dedup_bdev *d, const struct dedup_io *io, u32 done, blk_opf_t opf,
		       struct disk_wait *wait)
{
	unsigned int vecs = min_t(u32, BIO_MAX_VECS, (io->len - done + PAGE_SIZE - 1) / PAGE_SIZE + 1);
	struct bio *bio = bio_alloc_bioset(d->bdev, vecs, opf, GFP_NOIO, &d->bios);
	u32 at = done;

	bio->bi_iter.bi_sector = (io->offset + done) >> SECTOR_SHIFT;
	bio->bi_private = wait;
	bio->bi_end_io = disk_end_io;
	while (at < io->len) {
		const u8 *p = (const u8 *)io->buf + at;
		unsigned int n = min_t(u32, io->len - at, PAGE_SIZE - offset_in_page(p));

		if (bio_add_page(bio, buffer_page(p), n, offset_in_page(p)) != n)
			break;
		at += n;
	}
	atomic_inc(&wait->pending);
	submit_bio(bio);
	return at - done;
}

static int disk_transfer(struct dedup_bdev *d, const struct dedup_io *ios, unsigned int n,
			 blk_opf_t opf)
{
	struct disk_wait wait = { .pending = ATOMIC_INIT(1) };
	struct blk_plug plug;
	unsigned int i;

	init_completion(&wait.done);
	blk_start_plug(&plug);
	for (i = 0; i < n; i++) {
		u32 done;

		if (op_is_write(opf) && is_vmalloc_addr(ios[i].buf))
			flush_kernel_vmap_range(ios[i].buf, ios[i].len);
		for (done = 0; done < ios[i].len;)
			done += submit_part(d, &ios[i], done, opf, &wait);
	}
	blk_finish_plug(&plug);
	disk_put(&wait);
	wait_for_completion_io(&wait.done);
	if (!op_is_write(opf))
		for (i = 0; i < n; i++)
			if (is_vmalloc_addr(ios[i].buf))
				invalidate_kernel_vmap_range(ios[i].buf, ios[i].len);
	return wait.error;
}

static int bdev_read(void *ctx, const struct dedup_io *ios, unsigned int n)
{
	return disk_transfer(ctx, ios, n, REQ_OP_READ | REQ_META | REQ_SYNC);
}

static int bdev_write(void *ctx, const struct dedup_io *ios, unsigned int n, bool fua)
{
	blk_opf_t opf = REQ_OP_WRITE | REQ_META | REQ_SYNC;

	if (fua)
		opf |= planted(PLANTED_NO_PREFLUSH) ? REQ_FUA : REQ_FUA | REQ_PREFLUSH;
	return disk_transfer(ctx, ios, n, opf);
}

static int bdev_flush(void *ctx)
{
	struct dedup_bdev *d = ctx;

	return blkdev_issue_flush(d->bdev);
}

static const struct dedup_disk_ops bdev_ops = {
	.read = bdev_read,
	.write = bdev_write,
	.flush = bdev_flush,
};

int dedup_bdev_init(struct dedup_bdev *d, struct block_device *bdev, u64 sectors,
		    struct dedup_disk *disk)
{
	d->bdev = bdev;
	disk->ops = &bdev_ops;
	disk->ctx = d;
	disk->bytes = sectors << SECTOR_SHIFT;
	return bioset_init(&d->bios, 4, 0, BIOSET_NEED_BVECS);
}

void dedup_bdev_exit(struct dedup_bdev *d)
{
	bioset_exit(&d->bios);
}
