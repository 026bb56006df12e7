/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bloom filters of the blocks that a host has.
 *
 * A filter has m = 1 << shift bits and k hashes. With n blocks in it, a block that is not there is
 * said to be with the probability (1 - e^(-kn/m))^k. A stated rate of FILTER_FALSE_RATE fixes k
 * = log2(1 / rate), the same for all hosts, and each host's smallest m for its n. Fingerprints are
 * uniform, so their bytes are the hashes: position i is h1 + i * h2, modulo m. As m is a power of two
 * a filter can be folded to fewer bits, and unfolded to more, without the blocks.
 */
#ifndef VMDEDUP_AGENT_FILTER_H
#define VMDEDUP_AGENT_FILTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/fingerprint.h"

#define FILTER_FALSE_RATE 0.01
#define FILTER_HASHES	  7  /* log2(1 / FILTER_FALSE_RATE), rounded up */
#define FILTER_MIN_SHIFT  10
#define FILTER_MAX_SHIFT  28 /* 32 MiB: 28 million blocks */
#define FILTER_ADDED_SIZE 16 /* of an addition: all that the positions are made of */
#define FILTER_OVERHEAD	  512 /* bytes of a question for a filter and the headers of its answer, at most */

/* The h1 and h2 of a fingerprint. */
struct filter_hash {
	uint64_t h1, h2;
};
static inline struct filter_hash filter_hash(const uint8_t b[FILTER_ADDED_SIZE])
{
	struct filter_hash h;

	memcpy(&h.h1, b, 8);
	memcpy(&h.h2, b + 8, 8);
	h.h2 |= 1; /* odd: the positions differ */
	return h;
}
static inline uint64_t filter_position(const struct filter_hash *h, unsigned int i,
				       unsigned int shift)
{
	return (h->h1 + i * h->h2) & ((1ULL << shift) - 1);
}

/* The share of blocks that are not there and are said to be. */
double filter_false_rate(uint64_t blocks, unsigned int shift, unsigned int hashes);
/* The smallest that keeps FILTER_FALSE_RATE for so many blocks; at most FILTER_MAX_SHIFT. */
unsigned int filter_shift_for(uint64_t blocks);
void filter_set(uint8_t *bits, unsigned int shift, unsigned int hashes,
		const uint8_t fp[FILTER_ADDED_SIZE]);
bool filter_has(const uint8_t *bits, unsigned int shift, unsigned int hashes,
		const uint8_t fp[FILTER_ADDED_SIZE]);

/* ---- on the wire: one zstd frame ---- */
/* malloc()ed; NULL: no memory. */
void *filter_pack(const void *data, size_t len, size_t *packed_len);
/* Hostile input. @len: what must come out, exactly (the filter), or at most (@exact false: the
 * additions, a multiple of FILTER_ADDED_SIZE), updated. malloc()ed. -EPROTO, -ENOMEM. */
int filter_unpack(const void *packed, size_t packed_len, bool exact, size_t *len, void **data);

#endif
