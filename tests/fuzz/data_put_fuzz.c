// SPDX-License-Identifier: GPL-2.0-or-later
/* What a PUT brings: a codec, a length, and bytes that claim to be a block or a zstd frame. */
#include <errno.h>
#include <string.h>
#include <zstd.h>

#include "data/record.h"
#include "data/verify.h"
#include "fuzz.h"

#define BLOCK 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct verifier *v;
	static struct fp_hasher *h;
	struct verify_block in = { 0 };
	struct verified out;
	uint8_t raw[BLOCK];
	int r;

	if (!v) {
		v = verifier_new(BLOCK);
		h = fp_hasher_new(FP_SHA256, NULL, 0);
		FUZZ_CHECK(v && h);
	}
	if (size < 5)
		return 0;
	in.codec = data[0];
	in.raw_len = get_le32(data + 1);
	in.data = data + 5;
	in.len = (uint32_t)(size - 5);
	/* Its own fingerprint when it is raw: so that the way beyond is walked too. */
	fp_hash(h, in.data, in.len, &in.fp);
	r = verify_block(v, h, &in, &out);
	FUZZ_CHECK(!r || r == -EINVAL || r == -EBADMSG);
	if (!r) {
		FUZZ_CHECK(out.len && out.len <= in.raw_len && in.raw_len <= BLOCK);
		FUZZ_CHECK(!verify_decode(v, out.codec, out.data, out.len, raw, in.raw_len));
		FUZZ_CHECK(in.codec || !memcmp(raw, in.data, in.raw_len));
	}
	free(out.owned);
	if (in.raw_len <= BLOCK)
		verify_decode(v, in.codec, in.data, in.len, raw, in.raw_len);
	return 0;
}

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	uint8_t block[BLOCK];

	if (n > 3)
		return 0;
	for (size_t i = 0; i < BLOCK; i++)
		block[i] = n & 1 ? (uint8_t)(i * i >> 3) : (uint8_t)(i / 512);
	out[0] = n < 2 ? CODEC_RAW : CODEC_ZSTD;
	put_le32(out + 1, BLOCK);
	if (n < 2) {
		memcpy(out + 5, block, BLOCK);
		return 5 + BLOCK;
	}
	return 5 + ZSTD_compress(out + 5, room - 5, block, BLOCK, 3);
}
