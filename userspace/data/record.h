/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What lumps hold on disk, and its codec: pure functions over bytes, which treat every byte
 * as hostile. Documentation/data.rst has the same tables.
 *
 * A lump begins with a lump header; records follow, each a header and a payload padded with
 * zeros to RECORD_ALIGN. All fields are little-endian.
 *
 * The CRC of a record header also covers the record's place: the disk's UUID, shard, number of
 * the lump, and offset. So a record that was copied to another place, or that a guest wrote
 * into its own block for a later scan to find, is no record.
 */
#ifndef VMDEDUP_DATA_RECORD_H
#define VMDEDUP_DATA_RECORD_H

#include <stdint.h>
#include "base/fingerprint.h"
#include "base/uuid.h"

#define LUMP_HEADER_SIZE   128
#define LUMP_FORMAT	   1
#define RECORD_HEADER_SIZE 128
#define RECORD_FORMAT	   1
#define RECORD_ALIGN	   8
#define RECORD_MAX_PAYLOAD (1U << 20) /* a block is never stored longer than it is */

enum record_kind {
	RECORD_BLOCK = 0,
	RECORD_DELTA = 1, /* reserved: the payload is a difference against the block `base` */
};

enum record_codec { /* the wire's enum Codec */
	CODEC_RAW = 0,
	CODEC_ZSTD = 1,
};

/* Where a record lies; all of it goes into the header's CRC. */
struct record_place {
	const struct uuid *disk;
	uint16_t shard;
	uint32_t lump;
	uint32_t offset; /* of the record's header in the lump */
};

struct record {
	uint8_t kind;
	uint8_t codec;
	uint32_t domain;
	uint32_t raw_len;     /* bytes of the block */
	uint32_t stored_len;  /* bytes of the payload */
	uint32_t payload_crc; /* CRC-32C of the payload */
	uint64_t epoch;	      /* of its shard when it was written */
	uint64_t sequence;    /* of the commit that wrote it */
	struct fp fp;
	struct fp base;	      /* zero for RECORD_BLOCK */
};

struct lump_header {
	uint16_t shard;
	uint32_t number;
	struct uuid disk;
	uint64_t sequence; /* of the commit that made the lump */
};

/* Bytes that a record with this payload takes in its lump. */
static inline uint32_t record_size(uint32_t stored_len)
{
	return RECORD_HEADER_SIZE + ((stored_len + RECORD_ALIGN - 1) & ~(RECORD_ALIGN - 1U));
}

void record_encode(const struct record *rec, const struct record_place *place,
		   uint8_t out[RECORD_HEADER_SIZE]);
/* -EBADMSG: not a record, or not of this place; -EPROTONOSUPPORT: a newer one, whole. */
int record_decode(struct record *rec, const struct record_place *place,
		  const uint8_t in[RECORD_HEADER_SIZE]);

void lump_header_encode(const struct lump_header *head, uint8_t out[LUMP_HEADER_SIZE]);
/* As record_decode(). */
int lump_header_decode(struct lump_header *head, const uint8_t in[LUMP_HEADER_SIZE]);

/* Little-endian fields, for this and for the index. */
static inline void put_le16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}
static inline void put_le32(uint8_t *p, uint32_t v)
{
	put_le16(p, (uint16_t)v);
	put_le16(p + 2, (uint16_t)(v >> 16));
}
static inline void put_le64(uint8_t *p, uint64_t v)
{
	put_le32(p, (uint32_t)v);
	put_le32(p + 4, (uint32_t)(v >> 32));
}
static inline uint16_t get_le16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t get_le32(const uint8_t *p)
{
	return get_le16(p) | (uint32_t)get_le16(p + 2) << 16;
}
static inline uint64_t get_le64(const uint8_t *p)
{
	return get_le32(p) | (uint64_t)get_le32(p + 4) << 32;
}

#endif
