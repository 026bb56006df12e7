// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <zstd.h>
#include "agent/filter.h"

#define ZSTD_LEVEL 1 /* a full filter is half ones: little to win */

double filter_false_rate(uint64_t blocks, unsigned int shift, unsigned int hashes)
{
	double m = (double)(1ULL << shift), k = hashes;

	return pow(1 - exp(-k * (double)blocks / m), k);
}

unsigned int filter_shift_for(uint64_t blocks)
{
	unsigned int shift = FILTER_MIN_SHIFT;

	while (shift < FILTER_MAX_SHIFT &&
	       filter_false_rate(blocks, shift, FILTER_HASHES) > FILTER_FALSE_RATE)
		shift++;
	return shift;
}

void filter_set(uint8_t *bits, unsigned int shift, unsigned int hashes,
		const uint8_t fp[FILTER_ADDED_SIZE])
{
	struct filter_hash h = filter_hash(fp);
	unsigned int i;

	for (i = 0; i < hashes; i++) {
		uint64_t at = filter_position(&h, i, shift);

		bits[at / 8] |= (uint8_t)(1 << at % 8);
	}
}

bool filter_has(const uint8_t *bits, unsigned int shift, unsigned int hashes,
		const uint8_t fp[FILTER_ADDED_SIZE])
{
	struct filter_hash h = filter_hash(fp);
	unsigned int i;

	for (i = 0; i < hashes; i++) {
		uint64_t at = filter_position(&h, i, shift);

		if (!(bits[at / 8] >> at % 8 & 1))
			return false;
	}
	return true;
}

void *filter_pack(const void *data, size_t len, size_t *packed_len)
{
	size_t room = ZSTD_compressBound(len);
	void *packed = malloc(room);

	if (!packed)
		return NULL;
	*packed_len = ZSTD_compress(packed, room, data, len, ZSTD_LEVEL);
	if (ZSTD_isError(*packed_len)) {
		free(packed);
		return NULL;
	}
	return packed;
}

int filter_unpack(const void *packed, size_t packed_len, bool exact, size_t *len, void **data)
{
	unsigned long long said = ZSTD_getFrameContentSize(packed, packed_len);
	size_t n;

	*data = NULL;
	/* An empty list of additions is no frame of zero bytes' room: one byte more is harmless. */
	if (said == ZSTD_CONTENTSIZE_UNKNOWN || said == ZSTD_CONTENTSIZE_ERROR || said > *len ||
	    (exact && said != *len) || (!exact && said % FILTER_ADDED_SIZE))
		return -EPROTO;
	*data = malloc((size_t)said + 1);
	if (!*data)
		return -ENOMEM;
	n = ZSTD_decompress(*data, (size_t)said + 1, packed, packed_len);
	if (ZSTD_isError(n) || n != said) {
		free(*data);
		*data = NULL;
		return -EPROTO;
	}
	*len = n;
	return 0;
}
