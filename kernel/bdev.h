/* SPDX-License-Identifier: GPL-2.0-only */
/* A block device as a struct dedup_disk. */
#ifndef DEDUP_BDEV_H
#define DEDUP_BDEV_H

#include <linux/bio.h>
#include "disk.h"

struct dedup_bdev {
	struct block_device *bdev;
	struct bio_set bios;
};

/* @d must outlive @disk; the block device must outlive both. -ENOMEM. */
int dedup_bdev_init(struct dedup_bdev *d, struct block_device *bdev, u64 sectors,
		    struct dedup_disk *disk);
void dedup_bdev_exit(struct dedup_bdev *d);

#endif
