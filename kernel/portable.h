/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the sources shared by the kernel and the offline tools (codec.c, journal.c, table.c,
 * ledger.c) need from either world.
 */
#ifndef DEDUP_PORTABLE_H
#define DEDUP_PORTABLE_H

#ifdef __KERNEL__

#include <linux/bitops.h>
#include <linux/crc32c.h>
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/stdarg.h>
#include <linux/types.h>

static inline u32 dedup_crc32c(u32 crc, const void *data, size_t len)
{
	return crc32c(crc, data, len);
}

static inline void *dedup_alloc(u64 n, size_t size)
{
	return kvcalloc(n, size, GFP_KERNEL);
}

#define dedup_free(p)		kvfree(p)
#define dedup_yield()		cond_resched()

#else

#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

/* crc32c.c in userspace/cache; the kernel's convention: neither inverted at start nor at end. */
u32 dedup_crc32c(u32 crc, const void *data, size_t len);

static inline void sort(void *base, size_t nr, size_t size,
			int (*compare)(const void *a, const void *b),
			void (*swap)(void *a, void *b, int size))
{
	(void)swap;
	qsort(base, nr, size, compare);
}

static inline void *dedup_alloc(u64 n, size_t size)
{
	return calloc(n ? n : 1, size);
}

#define dedup_free(p)		free(p)
#define dedup_yield()		do { } while (0)

#define cpu_to_le16(x)		((__le16)htole16(x))
#define cpu_to_le32(x)		((__le32)htole32(x))
#define cpu_to_le64(x)		((__le64)htole64(x))
#define le16_to_cpu(x)		((u16)le16toh(x))
#define le32_to_cpu(x)		((u32)le32toh(x))
#define le64_to_cpu(x)		((u64)le64toh(x))

#define DIV_ROUND_UP_ULL(a, b)	(((a) + (b) - 1) / (b))
#define min_t(t, a, b)		((t)(a) < (t)(b) ? (t)(a) : (t)(b))
#define max_t(t, a, b)		((t)(a) > (t)(b) ? (t)(a) : (t)(b))
#define clamp_t(t, v, lo, hi)	min_t(t, max_t(t, v, lo), hi)
#define div_u64(a, b)		((u64)(a) / (u32)(b))
#define __printf(...)		/* the kernel build checks the formats */

#endif

#include "planted.h"

/* 64-bit modulo that also links on 32-bit kernels. */
static inline u32 dedup_mod(u64 a, u32 b)
{
	return a - div_u64(a, b) * b;
}

#endif
