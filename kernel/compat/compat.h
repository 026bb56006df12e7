/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels that we build for. Each DEDUP_HAVE_* is found by compiling
 * kernel/compat/probe-*.c (see Kbuild), and names the kernel change that it detects.
 */
#ifndef DEDUP_COMPAT_H
#define DEDUP_COMPAT_H

#include <linux/blkdev.h>

/* 05bdb9965305 ("block: replace fmode_t with a block-specific type for block open flags") */
#ifdef DEDUP_HAVE_BLK_MODE
typedef blk_mode_t dedup_mode_t;
#define DEDUP_MODE_READ		BLK_OPEN_READ
#define DEDUP_MODE_WRITE	BLK_OPEN_WRITE
#else
typedef fmode_t dedup_mode_t;
#define DEDUP_MODE_READ		FMODE_READ
#define DEDUP_MODE_WRITE	FMODE_WRITE
#endif

/* 4f563a64732d ("block: add a max_user_discard_sectors queue limit") */
static inline void dedup_set_max_discard(struct queue_limits *limits, unsigned int sectors)
{
#ifdef DEDUP_HAVE_HW_DISCARD
	limits->max_hw_discard_sectors = sectors;
#else
	limits->max_discard_sectors = sectors;
	limits->max_hw_discard_sectors = sectors;
#endif
}

#endif
