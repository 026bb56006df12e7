// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/crc32c.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define POLY 0x82f63b78U /* reflected */

/* One bit at a time over the sixteen nibbles: small, constant, good enough where the
 * instruction is missing. Built by the compiler from the polynomial. */
#define B(c)	((c) >> 1 ^ ((c) & 1 ? POLY : 0))
#define N(n)	B(B(B(B((uint32_t)(n)))))

static const uint32_t nibble[16] = {
	N(0), N(1), N(2), N(3), N(4), N(5), N(6), N(7),
	N(8), N(9), N(10), N(11), N(12), N(13), N(14), N(15),
};

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;

	crc = ~crc;
	while (len--) {
		crc ^= *p++;
		crc = crc >> 4 ^ nibble[crc & 15];
		crc = crc >> 4 ^ nibble[crc & 15];
	}
	return ~crc;
}

#if defined(__x86_64__)
/*
 * One instruction waits for the one before; three chains at a time do not. A chain's result before
 * n more bytes is its product with x^8n modulo the polynomial: a carry-less multiplication, which in
 * reflected bits gives one factor x more, by a constant, and the instruction, which gives x^32.
 */
#define LANE	    4096
#define BEHIND_ONE  0x82f89c77U /* x^(8 * LANE - 33) */
#define BEHIND_TWO  0x54a86326U /* x^(8 * 2 * LANE - 33) */
#define TARGET	    __attribute__((target("sse4.2,pclmul")))

static inline uint64_t word_at(const uint8_t *p)
{
	uint64_t word;

	memcpy(&word, p, sizeof(word));
	return word;
}

TARGET static inline uint64_t move_on(uint64_t crc, uint32_t by)
{
	__m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)crc),
					       _mm_cvtsi64_si128(by), 0);

	return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

TARGET static uint64_t three_lanes(uint64_t c, const uint8_t *p)
{
	uint64_t c1 = 0, c2 = 0;

	for (const uint8_t *end = p + LANE; p < end; p += 8) {
		c = _mm_crc32_u64(c, word_at(p));
		c1 = _mm_crc32_u64(c1, word_at(p + LANE));
		c2 = _mm_crc32_u64(c2, word_at(p + 2 * LANE));
	}
	return move_on(c, BEHIND_TWO) ^ move_on(c1, BEHIND_ONE) ^ c2;
}

TARGET static uint32_t crc32c_fast(uint32_t crc, const uint8_t *p, size_t len)
{
	uint64_t c = (uint32_t)~crc;

	for (; len >= 3 * LANE; p += 3 * LANE, len -= 3 * LANE)
		c = three_lanes(c, p);
	for (; len >= 8; p += 8, len -= 8)
		c = _mm_crc32_u64(c, word_at(p));
	for (; len; p++, len--)
		c = _mm_crc32_u8((uint32_t)c, *p);
	return ~(uint32_t)c;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") ?
		       crc32c_fast(crc, data, len) : crc32c_portable(crc, data, len);
}
#else
uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	return crc32c_portable(crc, data, len);
}
#endif
