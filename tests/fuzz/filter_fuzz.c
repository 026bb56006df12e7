// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a peer sends of its filter, and what a meta server keeps of a boot: the first byte says which
 * (a full filter of 1 << 10 to 1 << 17 bits, additions, a trace), the rest is what was sent.
 */
#include <errno.h>
#include <string.h>

#include "agent/filter_table.h"
#include "agent/prefetch.h"
#include "fuzz.h"

#define COLUMN	  3
#define MAX_ADDED (1U << 16)

static void take_full(const uint8_t *data, size_t size, unsigned int shift)
{
	struct filter_table *t = filter_table_new(1 << 14, 8);
	uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8];
	size_t len = (size_t)1 << (shift - 3);
	struct fp fp = { { 1, 2, 3 } };
	void *bits;
	int r;

	FUZZ_CHECK(t);
	r = filter_unpack(data, size, true, &len, &bits);
	FUZZ_CHECK(!r == !!bits);
	if (!r) {
		FUZZ_CHECK(len == (size_t)1 << (shift - 3));
		FUZZ_CHECK(!filter_table_set(t, COLUMN, bits, shift));
		/* Folded or not: what the filter has, the table has. */
		if (filter_has(bits, shift, FILTER_HASHES, fp.b))
			FUZZ_CHECK(filter_table_find(t, &fp, yes) && yes[0] >> COLUMN & 1);
		FUZZ_CHECK(filter_table_bytes(t) <= 1 << 14);
	}
	free(bits);
	filter_table_free(t);
}

static void take_added(const uint8_t *data, size_t size)
{
	struct filter_table *t = filter_table_new(1 << 14, 8);
	uint8_t yes[FILTER_TABLE_MAX_COLUMNS / 8], empty[1 << (FILTER_MIN_SHIFT - 3)] = { 0 };
	size_t len = MAX_ADDED, i;
	struct fp fp = { 0 };
	uint8_t *added;
	void *raw;

	FUZZ_CHECK(t && !filter_table_set(t, COLUMN, empty, FILTER_MIN_SHIFT));
	if (!filter_unpack(data, size, false, &len, &raw)) {
		FUZZ_CHECK(len <= MAX_ADDED && len % FILTER_ADDED_SIZE == 0);
		added = raw;
		for (i = 0; i < len; i += FILTER_ADDED_SIZE) {
			filter_table_add(t, COLUMN, added + i);
			memcpy(fp.b, added + i, FILTER_ADDED_SIZE);
			FUZZ_CHECK(filter_table_find(t, &fp, yes) && yes[0] >> COLUMN & 1);
		}
		free(raw);
	}
	filter_table_free(t);
}

static void take_trace(const uint8_t *data, size_t size)
{
	static uint32_t blocks[TRACE_MAX], again[TRACE_MAX];
	static uint8_t packed[TRACE_MAX_BYTES];
	uint64_t nr_blocks = 1 << 20;
	size_t n = trace_unpack(data, size, nr_blocks, blocks, TRACE_MAX), i, len;

	FUZZ_CHECK(n <= TRACE_MAX);
	for (i = 0; i < n; i++)
		FUZZ_CHECK(blocks[i] < nr_blocks);
	len = trace_pack(blocks, n, packed, sizeof(packed));
	FUZZ_CHECK(len <= sizeof(packed));
	FUZZ_CHECK(trace_unpack(packed, len, nr_blocks, again, TRACE_MAX) == n);
	FUZZ_CHECK(!memcmp(blocks, again, n * sizeof(*blocks)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	switch (data[0] % 10) {
	case 8:
		take_added(data + 1, size - 1);
		break;
	case 9:
		take_trace(data + 1, size - 1);
		break;
	default:
		take_full(data + 1, size - 1, FILTER_MIN_SHIFT + data[0] % 10);
	}
	return 0;
}

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	static uint8_t plain[1 << 14];
	static const uint32_t blocks[] = { 0, 1, 2, 900000, 5, 6, 7, 1048575, 0 };
	size_t len = 0, i;
	void *packed;

	for (i = 0; i < sizeof(plain); i++)
		plain[i] = (uint8_t)(i * i * (n + 3) >> 5);
	if (n > 3)
		return 0;
	out[0] = n == 0 ? 0 : n == 1 ? 7 : n == 2 ? 8 : 9;
	if (n == 3)
		return 1 + trace_pack(blocks, sizeof(blocks) / sizeof(blocks[0]), out + 1, room - 1);
	packed = filter_pack(plain, n == 2 ? 40 * FILTER_ADDED_SIZE :
				    (size_t)1 << (FILTER_MIN_SHIFT + out[0] - 3), &len);
	FUZZ_CHECK(packed && len < room);
	memcpy(out + 1, packed, len);
	free(packed);
	return 1 + len;
}
