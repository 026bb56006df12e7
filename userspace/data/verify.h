/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a PUT brings, decoded within bounds and compared with its fingerprint. */
#ifndef VMDEDUP_DATA_VERIFY_H
#define VMDEDUP_DATA_VERIFY_H

#include <stddef.h>
#include <stdint.h>
#include "base/error.h"
#include "base/fingerprint.h"

/* One thread's: digest states, zstd contexts, a buffer. */
struct verifier;
struct verifier *verifier_new(size_t block_size); /* NULL: no memory */
void verifier_free(struct verifier *v);

struct verify_block {
	struct fp fp;
	uint8_t codec;	   /* enum record_codec */
	uint32_t raw_len;
	const void *data;  /* as it came */
	uint32_t len;
	uint8_t no_coding; /* raw, and the sender found that it does not shrink */
};

/* How it shall be stored; @data is the verify_block's, or @owned (free it) when it was recoded. */
struct verified {
	uint8_t codec;
	const void *data;
	uint32_t len;
	void *owned;
};

/* 0; -EINVAL: lengths or codec that cannot be; -EBADMSG: not the content that the fingerprint
 * names, or not a zstd frame of raw_len bytes; -ENOMEM. Never writes or reads beyond the
 * block size, whatever a frame claims. @hasher: of the block's domain. */
int verify_block(struct verifier *v, struct fp_hasher *hasher, const struct verify_block *in,
		 struct verified *out);
/* Decode a stored block into @out of @raw_len bytes. -EIO when it does not fit. */
int verify_decode(struct verifier *v, uint8_t codec, const void *data, size_t len, void *out,
		  size_t raw_len);

#endif
