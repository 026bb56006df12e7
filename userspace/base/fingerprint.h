/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Fingerprints: (algorithm, domain, digest of the domain's key followed by the content). */
#ifndef VMDEDUP_BASE_FINGERPRINT_H
#define VMDEDUP_BASE_FINGERPRINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FP_SIZE	   32
#define FP_HEX_SIZE (2 * FP_SIZE + 1)
/* The simulations of tests/sim are built with fewer. */
#ifndef SHARD_BITS
#define SHARD_BITS 10
#endif
#define NR_SHARDS  (1 << SHARD_BITS)

/* The values are the wire's (enum Algorithm) and the disk's. */
enum fp_algorithm { FP_SHA256 = 0, FP_SHA1 = 1, FP_MD5 = 2 };

/* All zero stands for a block (or a subtree of a recipe) of zeros; a digest is never all zero. */
struct fp {
	uint8_t b[FP_SIZE];
};

/* A digest state for one thread (OpenSSL EVP behind it). NULL when out of memory. */
struct fp_hasher;
struct fp_hasher *fp_hasher_new(enum fp_algorithm alg, const void *key, size_t key_len);
void fp_hasher_free(struct fp_hasher *h);
/* The fingerprint of @len bytes at @data. Cannot fail after fp_hasher_new(). */
void fp_hash(struct fp_hasher *h, const void *data, size_t len, struct fp *out);

static inline bool fp_equal(const struct fp *a, const struct fp *b)
{
	return !memcmp(a, b, sizeof(*a));
}
static inline bool fp_is_zero(const struct fp *a)
{
	static const struct fp zero;
	return fp_equal(a, &zero);
}
/* The shard: the top bits of the digest. */
static inline unsigned int fp_shard(const struct fp *a)
{
	return ((unsigned int)a->b[0] << 8 | a->b[1]) >> (16 - SHARD_BITS);
}
/* The first and the last fingerprint of a shard. */
static inline void fp_shard_range(unsigned int shard, struct fp *from, struct fp *to)
{
	unsigned int first = shard << (16 - SHARD_BITS), last = first | (0xffff >> SHARD_BITS);

	memset(from, 0, sizeof(*from));
	memset(to, 0xff, sizeof(*to));
	from->b[0] = (uint8_t)(first >> 8);
	from->b[1] = (uint8_t)first;
	to->b[0] = (uint8_t)(last >> 8);
	to->b[1] = (uint8_t)last;
}

const char *fp_to_hex(const struct fp *a, char hex[FP_HEX_SIZE]);
int fp_from_hex(struct fp *a, const char *hex); /* -EINVAL */
const char *fp_algorithm_name(enum fp_algorithm alg);
int fp_algorithm_from_name(const char *name, enum fp_algorithm *alg); /* -EINVAL */

/* True when all @len bytes are zero. As fast as memory. */
bool mem_is_zero(const void *data, size_t len);

#endif
