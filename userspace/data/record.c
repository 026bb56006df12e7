// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/record.h"

#include <errno.h>

#include "data/crc32c.h"

/*
 * Record header, 128 bytes:
 *   0  4 magic "VDBK"     4  1 format   5  1 kind   6  1 codec   7  1 zero
 *   8  4 domain          12  4 raw length          16  4 stored length
 *  20  4 CRC of payload  24  8 epoch               32  8 sequence
 *  40 32 fingerprint     72 32 base              104 20 zero      124  4 CRC
 */
static const uint8_t record_magic[4] = { 'V', 'D', 'B', 'K' };
static const uint8_t lump_magic[4] = { 'V', 'D', 'L', 'P' };

static uint32_t record_crc(const uint8_t *in, const struct record_place *place)
{
	uint8_t tail[sizeof(place->disk->b) + 10];
	uint32_t crc = crc32c(0, in, RECORD_HEADER_SIZE - 4);

	memcpy(tail, place->disk->b, sizeof(place->disk->b));
	put_le16(tail + 16, place->shard);
	put_le32(tail + 18, place->lump);
	put_le32(tail + 22, place->offset);
	return crc32c(crc, tail, sizeof(tail));
}

void record_encode(const struct record *rec, const struct record_place *place,
		   uint8_t out[RECORD_HEADER_SIZE])
{
	memset(out, 0, RECORD_HEADER_SIZE);
	memcpy(out, record_magic, 4);
	out[4] = RECORD_FORMAT;
	out[5] = rec->kind;
	out[6] = rec->codec;
	put_le32(out + 8, rec->domain);
	put_le32(out + 12, rec->raw_len);
	put_le32(out + 16, rec->stored_len);
	put_le32(out + 20, rec->payload_crc);
	put_le64(out + 24, rec->epoch);
	put_le64(out + 32, rec->sequence);
	memcpy(out + 40, rec->fp.b, FP_SIZE);
	memcpy(out + 72, rec->base.b, FP_SIZE);
	put_le32(out + 124, record_crc(out, place));
}

int record_decode(struct record *rec, const struct record_place *place,
		  const uint8_t in[RECORD_HEADER_SIZE])
{
	static const uint8_t zero[20];

	if (memcmp(in, record_magic, 4))
		return -EBADMSG;
	if (get_le32(in + 124) != record_crc(in, place))
		return -EBADMSG;
	/* The CRC says that these bytes are as they were written: what does not fit is newer. */
	if (in[4] != RECORD_FORMAT || in[5] != RECORD_BLOCK || in[6] > CODEC_ZSTD || in[7] ||
	    memcmp(in + 104, zero, sizeof(zero)))
		return -EPROTONOSUPPORT;
	*rec = (struct record){
		.kind = in[5],
		.codec = in[6],
		.domain = get_le32(in + 8),
		.raw_len = get_le32(in + 12),
		.stored_len = get_le32(in + 16),
		.payload_crc = get_le32(in + 20),
		.epoch = get_le64(in + 24),
		.sequence = get_le64(in + 32),
	};
	memcpy(rec->fp.b, in + 40, FP_SIZE);
	memcpy(rec->base.b, in + 72, FP_SIZE);
	if (!rec->stored_len || rec->stored_len > RECORD_MAX_PAYLOAD ||
	    !rec->raw_len || rec->raw_len > RECORD_MAX_PAYLOAD ||
	    rec->stored_len > rec->raw_len ||
	    (rec->codec == CODEC_RAW && rec->stored_len != rec->raw_len) ||
	    fp_shard(&rec->fp) != place->shard)
		return -EBADMSG;
	return 0;
}

/*
 * Lump header, 128 bytes:
 *   0  4 magic "VDLP"   4  1 format   5  1 zero   6  2 shard   8  4 number   12  4 zero
 *  16 16 disk UUID     32  8 sequence            40 84 zero                 124  4 CRC
 */
void lump_header_encode(const struct lump_header *head, uint8_t out[LUMP_HEADER_SIZE])
{
	memset(out, 0, LUMP_HEADER_SIZE);
	memcpy(out, lump_magic, 4);
	out[4] = LUMP_FORMAT;
	put_le16(out + 6, head->shard);
	put_le32(out + 8, head->number);
	memcpy(out + 16, head->disk.b, sizeof(head->disk.b));
	put_le64(out + 32, head->sequence);
	put_le32(out + 124, crc32c(0, out, LUMP_HEADER_SIZE - 4));
}

int lump_header_decode(struct lump_header *head, const uint8_t in[LUMP_HEADER_SIZE])
{
	if (memcmp(in, lump_magic, 4) ||
	    get_le32(in + 124) != crc32c(0, in, LUMP_HEADER_SIZE - 4))
		return -EBADMSG;
	if (in[4] != LUMP_FORMAT)
		return -EPROTONOSUPPORT;
	*head = (struct lump_header){
		.shard = get_le16(in + 6),
		.number = get_le32(in + 8),
		.sequence = get_le64(in + 32),
	};
	memcpy(head->disk.b, in + 16, sizeof(head->disk.b));
	return head->shard < NR_SHARDS ? 0 : -EBADMSG;
}
