/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes that can be accounted for: a sequence of operations on a disk, all determined by a seed, in
 * which every sector written says which operation it is of. Who knows up to which operation all
 * is durable, and up to which any can have begun, can say of each sector whether what it holds
 * after a crash is allowed.
 *
 * Operations count from 1. In a sector is allowed what the last durable one that covers it has put
 * there, or any later one that has begun; where none is durable also what was there before the
 * first, the base. A discard is one that may put zeros there, and changes nothing else.
 */
#ifndef VMDEDUP_TESTS_STAMPS_H
#define VMDEDUP_TESTS_STAMPS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define STAMP_SECTOR	  512
#define STAMP_MAX_SECTORS 1024 /* of one operation */

enum stamp_kind {
	STAMP_WRITE,
	STAMP_ZERO,
	STAMP_DISCARD,
};

struct stamp_op {
	uint64_t sector;
	uint32_t len; /* sectors */
	uint32_t kind;
};

/*
 * @ops: 1 to @count
 * @durable: up to which all are; @begun: up to which any can have begun
 * @last: by sector: the last durable write or write of zeros
 * @zero: by sector: the last one begun that makes it zero, or may
 */
struct stamps {
	uint64_t seed;
	uint64_t rng;
	uint64_t sectors;
	uint64_t count;
	struct stamp_op *ops;
	uint64_t durable;
	uint64_t begun;
	uint32_t *last;
	uint32_t *zero;
};

static inline uint64_t stamps_random(uint64_t *rng)
{
	*rng ^= *rng << 13;
	*rng ^= *rng >> 7;
	*rng ^= *rng << 17;
	return *rng * 0x2545f4914f6cdd1dULL;
}

static inline uint64_t stamps_rng(uint64_t seed)
{
	return seed * 0x9e3779b97f4a7c15ULL | 1;
}

/* Mostly small and aligned to 4 KiB, as file systems write; but of every kind. */
static inline struct stamp_op stamps_next(struct stamps *s, bool zeros)
{
	uint64_t kind = stamps_random(&s->rng) % 10, a = stamps_random(&s->rng);
	uint64_t b = stamps_random(&s->rng);
	struct stamp_op op = { .kind = STAMP_WRITE };

	if (kind < 6)
		op.len = 8 * (1 + a % 4);
	else if (kind < 9)
		op.len = 1 + a % 64;
	else
		op.len = 1 + a % STAMP_MAX_SECTORS;
	if (op.len > s->sectors)
		op.len = s->sectors;
	op.sector = b % (s->sectors - op.len + 1);
	if (kind < 6)
		op.sector &= ~7ULL;
	if (zeros && kind == 9)
		op.kind = a >> 32 & 1 ? STAMP_WRITE : a >> 33 & 1 ? STAMP_ZERO : STAMP_DISCARD;
	return op;
}

/* @zeros: with writes of zeros and discards. */
static inline int stamps_init(struct stamps *s, uint64_t seed, uint64_t count, uint64_t sectors,
			      bool zeros)
{
	*s = (struct stamps){ .seed = seed, .rng = stamps_rng(seed), .sectors = sectors,
			      .count = count };
	s->ops = calloc(count + 1, sizeof(*s->ops));
	s->last = calloc(sectors, sizeof(*s->last));
	s->zero = calloc(sectors, sizeof(*s->zero));
	if (!s->ops || !s->last || !s->zero)
		return -1;
	for (uint64_t n = 1; n <= count; n++)
		s->ops[n] = stamps_next(s, zeros);
	return 0;
}

static inline void stamps_exit(struct stamps *s)
{
	free(s->ops);
	free(s->last);
	free(s->zero);
}

/* Up to @n all are durable. Never goes back. */
static inline void stamps_durable(struct stamps *s, uint64_t n)
{
	for (n = n < s->count ? n : s->count; s->durable < n;) {
		const struct stamp_op *op = &s->ops[++s->durable];

		for (uint32_t i = 0; i < op->len && op->kind != STAMP_DISCARD; i++)
			s->last[op->sector + i] = s->durable;
	}
}

/* Up to @n any may have begun. Never goes back. */
static inline void stamps_begun(struct stamps *s, uint64_t n)
{
	for (n = n < s->count ? n : s->count; s->begun < n;) {
		const struct stamp_op *op = &s->ops[++s->begun];

		for (uint32_t i = 0; i < op->len && op->kind != STAMP_WRITE; i++)
			s->zero[op->sector + i] = s->begun;
	}
}

/* What operation @n writes into a sector. */
static inline void stamps_fill(const struct stamps *s, uint64_t *p, uint64_t sector, uint64_t n)
{
	for (int i = 0; i < STAMP_SECTOR / 8; i += 2) {
		p[i] = n;
		p[i + 1] = sector ^ s->seed << 40 ^ (n * 0x9e3779b97f4a7c15ULL + i);
	}
}

static inline bool stamps_is_zero(const uint64_t *p)
{
	return !p[0] && !memcmp(p, p + 1, STAMP_SECTOR - 8);
}

/* Is it operation @n's, and did that write this sector? */
static inline bool stamps_is_of(const struct stamps *s, const uint64_t *p, uint64_t sector,
				uint64_t n)
{
	const struct stamp_op *op = &s->ops[n];
	uint64_t want[STAMP_SECTOR / 8];

	if (op->kind != STAMP_WRITE || sector < op->sector || sector >= op->sector + op->len)
		return false;
	stamps_fill(s, want, sector, n);
	return !memcmp(p, want, STAMP_SECTOR);
}

/* May the sector hold that? @base: what it held before the first operation. */
static inline bool stamps_allowed(const struct stamps *s, uint64_t sector, const void *data,
				  const void *base)
{
	const uint64_t *p = data;
	uint64_t n = p[0], last = s->last[sector];

	if (n >= 1 && n >= last && n <= s->begun && stamps_is_of(s, p, sector, n))
		return true;
	if (s->zero[sector] && s->zero[sector] >= last && stamps_is_zero(p))
		return true;
	return !last && !memcmp(p, base, STAMP_SECTOR);
}

/* Of a block's content: what the test agent uses for a fingerprint. */
static inline uint64_t stamps_hash(const uint8_t *p, size_t n)
{
	uint64_t h = 0xcbf29ce484222325ULL;

	for (size_t i = 0; i + 8 <= n; i += 8) {
		uint64_t w;

		memcpy(&w, p + i, 8);
		h = (h ^ w) * 0x100000001b3ULL;
		h ^= h >> 29;
	}
	return h;
}

/*
 * An acknowledgement, as a sector that is written to a block device: the operations of
 * @seed up to @durable were made durable.
 */
#define STAMP_ACK_MAGIC 0x6b63612d706d7473ULL /* "stmp-ack" */

struct stamp_ack {
	uint64_t magic;
	uint64_t seed;
	uint64_t durable;
};

#endif
