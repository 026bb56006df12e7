// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/verify.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <zstd.h>

#include "data/record.h"

/* Fast, for it runs where a client has not compressed: 2 cores' time is the server's own. */
#define LEVEL 1
/* Coding that saves less than this is not worth decoding at every read. */
#define SAVES(raw) ((raw) / 32)

struct verifier {
	size_t block_size;
	ZSTD_DCtx *dctx;
	ZSTD_CCtx *cctx;
	uint8_t *raw; /* one block */
};

struct verifier *verifier_new(size_t block_size)
{
	struct verifier *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->block_size = block_size;
	v->dctx = ZSTD_createDCtx();
	v->cctx = ZSTD_createCCtx();
	v->raw = malloc(block_size);
	if (v->dctx && v->cctx && v->raw)
		return v;
	verifier_free(v);
	return NULL;
}

void verifier_free(struct verifier *v)
{
	if (!v)
		return;
	ZSTD_freeDCtx(v->dctx);
	ZSTD_freeCCtx(v->cctx);
	free(v->raw);
	free(v);
}

/* Exactly one frame of exactly @raw_len bytes: the output buffer is the bound, not the frame's
 * own claim, and nothing may follow the frame. */
static bool decode_frame(struct verifier *v, const void *data, size_t len, void *out,
			 size_t raw_len)
{
	size_t frame = ZSTD_findFrameCompressedSize(data, len);
	unsigned long long claim;

	if (ZSTD_isError(frame) || frame != len)
		return false;
	claim = ZSTD_getFrameContentSize(data, len);
	if (claim == ZSTD_CONTENTSIZE_ERROR ||
	    (claim != ZSTD_CONTENTSIZE_UNKNOWN && claim != raw_len))
		return false;
	return ZSTD_decompressDCtx(v->dctx, out, raw_len, data, len) == raw_len;
}

int verify_decode(struct verifier *v, uint8_t codec, const void *data, size_t len, void *out,
		  size_t raw_len)
{
	if (codec == CODEC_ZSTD)
		return decode_frame(v, data, len, out, raw_len) ? 0 : -EIO;
	if (codec != CODEC_RAW || len != raw_len)
		return -EIO;
	memcpy(out, data, len);
	return 0;
}

/* Raw content: coded when that saves something. */
static int store_raw(struct verifier *v, const struct verify_block *in, struct verified *out)
{
	size_t room = in->raw_len - SAVES(in->raw_len), n;

	if (in->no_coding || !room)
		return 0;
	out->owned = malloc(room);
	if (!out->owned)
		return -ENOMEM;
	n = ZSTD_compressCCtx(v->cctx, out->owned, room, out->data, in->raw_len, LEVEL);
	if (ZSTD_isError(n)) { /* does not fit */
		free(out->owned);
		out->owned = NULL;
		return 0;
	}
	out->codec = CODEC_ZSTD;
	out->data = out->owned;
	out->len = (uint32_t)n;
	return 0;
}

static int copy_raw(struct verifier *v, const struct verify_block *in, struct verified *out)
{
	out->owned = malloc(in->raw_len);
	if (!out->owned)
		return -ENOMEM;
	memcpy(out->owned, v->raw, in->raw_len);
	out->codec = CODEC_RAW;
	out->data = out->owned;
	out->len = in->raw_len;
	return 0;
}

int verify_block(struct verifier *v, struct fp_hasher *hasher, const struct verify_block *in,
		 struct verified *out)
{
	const void *raw = in->data;
	struct fp fp;

	*out = (struct verified){ .codec = in->codec, .data = in->data, .len = in->len };
	if (!in->raw_len || in->raw_len > v->block_size || !in->len || in->codec > CODEC_ZSTD ||
	    fp_is_zero(&in->fp))
		return -EINVAL;
	if (in->codec == CODEC_RAW) {
		if (in->len != in->raw_len)
			return -EINVAL;
	} else {
		if (!decode_frame(v, in->data, in->len, v->raw, in->raw_len))
			return -EBADMSG;
		raw = v->raw;
	}
	fp_hash(hasher, raw, in->raw_len, &fp);
	if (!fp_equal(&fp, &in->fp))
		return -EBADMSG;
	if (in->codec == CODEC_RAW)
		return store_raw(v, in, out);
	/* A frame that is no shorter than its content gains nothing. */
	return in->len >= in->raw_len ? copy_raw(v, in, out) : 0;
}
