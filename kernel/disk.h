/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The disk as the metadata sees it: the seam between what is shared with the offline tools
 * and tests, and the block device (kernel/bdev.c) or file (userspace/cache/disk_file.c) below.
 */
#ifndef DEDUP_DISK_H
#define DEDUP_DISK_H

#include "portable.h"

/* One transfer. Offset and length are multiples of 512; the buffer is aligned to 512. */
struct dedup_io {
	u64 offset;
	void *buf;
	u32 len;		/* at most 1 MiB */
};

/**
 * struct dedup_disk_ops - all are synchronous, may sleep, return 0 or a negative errno
 * @read: n transfers, in any order
 * @write: the same; with @fua durable when it returns, and what was written before it (PREFLUSH)
 *         durable before any of it
 * @flush: everything written before is durable
 *
 * A write that failed may have happened in part, in any order.
 */
struct dedup_disk_ops {
	int (*read)(void *ctx, const struct dedup_io *ios, unsigned int n);
	int (*write)(void *ctx, const struct dedup_io *ios, unsigned int n, bool fua);
	int (*flush)(void *ctx);
};

struct dedup_disk {
	const struct dedup_disk_ops *ops;
	void *ctx;
	u64 bytes;
};

static inline int dedup_disk_read(const struct dedup_disk *disk, u64 offset, void *buf, u32 len)
{
	struct dedup_io io = { .offset = offset, .buf = buf, .len = len };

	return disk->ops->read(disk->ctx, &io, 1);
}

static inline int dedup_disk_write(const struct dedup_disk *disk, u64 offset, void *buf, u32 len,
				   bool fua)
{
	struct dedup_io io = { .offset = offset, .buf = buf, .len = len };

	return disk->ops->write(disk->ctx, &io, 1, fua);
}

/* One sentence for a person: what is wrong, and where. */
struct dedup_why {
	char text[240];
};

/* @why may be NULL. */
__printf(2, 3) void dedup_say(struct dedup_why *why, const char *fmt, ...);

#endif
