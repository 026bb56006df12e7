// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/crc32c.h"

#include <string.h>

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
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p,
								size_t len)
{
	uint64_t c = (uint32_t)~crc;
	uint64_t word;

	for (; len >= 8; p += 8, len -= 8) {
		memcpy(&word, p, 8);
		c = __builtin_ia32_crc32di(c, word);
	}
	for (; len; p++, len--)
		c = __builtin_ia32_crc32qi((uint32_t)c, *p);
	return ~(uint32_t)c;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	return __builtin_cpu_supports("sse4.2") ? crc32c_sse42(crc, data, len)
						: crc32c_portable(crc, data, len);
}
#else
uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	return crc32c_portable(crc, data, len);
}
#endif
