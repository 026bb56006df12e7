/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Blocks in memory: buffers with counted references, and a bounded cache of the hot ones, as
 * stored (coded). A reply sends a buffer without a copy and puts its reference when ZeroMQ is
 * done. Thread-safe.
 */
#ifndef VMDEDUP_DATA_CACHE_H
#define VMDEDUP_DATA_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/fingerprint.h"

struct block_buf {
	atomic_uint refs;
	uint8_t codec;
	uint32_t raw_len;
	uint32_t len;	 /* of the payload, at data + offset */
	uint32_t offset;
	uint8_t data[];
};

struct block_buf *block_buf_new(size_t room); /* one reference; NULL: no memory */
void block_buf_get(struct block_buf *buf);
void block_buf_put(struct block_buf *buf);

struct block_cache;
struct block_cache *block_cache_new(size_t max_bytes); /* 0: keeps nothing */
void block_cache_free(struct block_cache *c);
/* With a reference for the caller; NULL: not here. */
struct block_buf *block_cache_get(struct block_cache *c, uint32_t domain, const struct fp *fp);
/* Keeps a reference of its own; the least recently used go. */
void block_cache_put(struct block_cache *c, uint32_t domain, const struct fp *fp,
		     struct block_buf *buf);
void block_cache_drop(struct block_cache *c, uint32_t domain, const struct fp *fp);
size_t block_cache_bytes(struct block_cache *c);

#endif
