/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Between records in memory and bytes on disk. Pure functions: no I/O, no allocation, any
 * context. Every decoder takes hostile bytes and answers with an error, never by reading
 * beyond what it was given. Buffers are aligned to 8 bytes.
 */
#ifndef DEDUP_CODEC_H
#define DEDUP_CODEC_H

#include "disk.h"
#include "format.h"

/* A superblock, decoded, and what follows from it. */
struct dedup_super {
	u64 generation;
	u64 features_compat;
	u64 features_ro;
	u64 features_incompat;
	u8 cache_uuid[DEDUP_UUID_BYTES];
	u8 cluster_uuid[DEDUP_UUID_BYTES];
	u8 incarnation[DEDUP_UUID_BYTES];
	u32 incarnation_nr;
	u32 block_shift;
	u64 device_bytes;
	u64 journal_start;
	u32 journal_pages;
	u32 append_pages;
	u64 table_start;
	u64 dir_start;
	u64 data_start;
	u64 nr_slots;
	u32 table_pages;
	u32 dir_pages;
	u32 nr_volumes;
	u64 journal_seq;
	char label[DEDUP_LABEL_BYTES];
	/* Derived from the above. */
	u32 bitmap_bytes;	/* that are used */
	u32 slot_bytes;		/* of a slot's record */
	u32 slots_per_page;
	u32 volume_pages;	/* table pages that hold volumes; slots begin after them */
	u32 root_pages;		/* of a CHECKPOINT append */
	u32 max_changes;	/* that surely fit in one append */
};

/**
 * dedup_layout - lay a cache out on a disk of @device_bytes
 *
 * Sets everything but UUIDs, incarnation, label, generation and sequence. -EINVAL: the block
 * size; -ENOSPC: fewer than DEDUP_MIN_SLOTS slots fit (dedup_min_bytes() tells what is needed);
 * -EFBIG: more than DEDUP_MAX_SLOTS would fit.
 */
int dedup_layout(struct dedup_super *sb, u64 device_bytes, u32 block_shift);

/*
 * The same with a journal of @journal_pages; 0: as dedup_layout(). -EINVAL also: fewer than
 * DEDUP_JOURNAL_MIN_PAGES, more than DEDUP_JOURNAL_MAX_PAGES, or too few for such a disk's roots.
 */
int dedup_layout_journal(struct dedup_super *sb, u64 device_bytes, u32 block_shift,
			 u32 journal_pages);

/* The smallest disk for a block size. */
u64 dedup_min_bytes(u32 block_shift);

/* Where superblock B of a disk is. */
static inline u64 dedup_super_b_offset(u64 device_bytes)
{
	return (device_bytes & ~(u64)(DEDUP_PAGE_BYTES - 1)) - DEDUP_PAGE_BYTES;
}

void dedup_super_encode(const struct dedup_super *sb, void *buf);

/**
 * dedup_super_decode - decode DEDUP_SUPER_BYTES bytes
 *
 * -EINVAL: no superblock; -EBADMSG: one with a bad CRC; -EPROTONOSUPPORT: of a newer version,
 * or with features unknown here; -EUCLEAN: good CRC, impossible content.
 */
int dedup_super_decode(struct dedup_super *sb, const void *buf);

/* ---- records ---- */

/* Bytes of a record on disk, by kind of change. */
u32 dedup_record_bytes(const struct dedup_super *sb, u8 kind);

/* Writes all of the record's bytes and returns how many of them the journal needs. */
u32 dedup_slot_encode(const struct dedup_super *sb, void *buf, const struct dedup_slot_rec *rec);
u32 dedup_volume_encode(void *buf, const struct dedup_volume_rec *rec);

/* @buf holds all of the record's bytes. -EUCLEAN: impossible content. */
int dedup_slot_decode(const struct dedup_super *sb, struct dedup_slot_rec *rec, const void *buf);
int dedup_volume_decode(struct dedup_volume_rec *rec, const void *buf);

/* What is wrong with a volume's record by itself, for people; NULL: nothing. */
const char *dedup_volume_wrong(const struct dedup_volume_rec *rec);

/* ---- table and directory pages ---- */

/* Of the record in the table: which page, and where in the page. */
void dedup_record_at(const struct dedup_super *sb, u8 kind, u64 index, u32 *page, u32 *offset);

/* The other way: kind and index of the first record of a table page, and how many it holds. */
u8 dedup_page_records(const struct dedup_super *sb, u32 page, u64 *first, u32 *nr);

/* Writes the head of a page and returns its CRC. */
u32 dedup_page_seal(const struct dedup_super *sb, void *buf, u32 magic, u64 index, u64 seq);

/* Is it the page that @entry names? 0 or -EUCLEAN. */
int dedup_page_check(const struct dedup_super *sb, const void *buf, u32 magic, u64 index,
		     const struct dedup_disk_entry *entry);

/* ---- appends ---- */

/* The head of an append, decoded. */
struct dedup_append {
	u64 seq;
	u8 incarnation[DEDUP_UUID_BYTES];
	u32 incarnation_nr;
	u32 crc;
	u32 prev_crc;
	u32 kind;
	u32 pages;
	u32 nr_items;
	u64 checkpoint_seq;
	u64 replay_seq;
	u32 checkpoint_page;
	u32 replay_page;
};

/* An append being built in @buf, which holds @max_pages pages. */
struct dedup_builder {
	u8 *buf;
	u64 seq;
	u32 max_pages;
	u32 at;			/* byte where the next item goes */
	u32 nr_items;
};

void dedup_build_start(struct dedup_builder *b, void *buf, u32 max_pages, u64 seq);
/* False: no room. */
bool dedup_build_change(const struct dedup_super *sb, struct dedup_builder *b,
			const struct dedup_change *change);
/* Room for any one more change? */
bool dedup_build_has_room(const struct dedup_super *sb, const struct dedup_builder *b);
bool dedup_build_entry(struct dedup_builder *b, const struct dedup_disk_entry *entry);
/* Fills @head's pages, nr_items and crc, and writes it. */
void dedup_build_seal(const struct dedup_super *sb, struct dedup_builder *b,
		      struct dedup_append *head);

/**
 * dedup_append_head - decode the head at the start of a page
 *
 * -ENOENT: there is none of this cache. Says nothing about the pages that follow.
 */
int dedup_append_head(const struct dedup_super *sb, const void *page, struct dedup_append *head);

/* Is the whole append, @head->pages pages at @buf, as it was written? 0 or -EBADMSG. */
int dedup_append_check(const void *buf, const struct dedup_append *head);

/* Walks the items of a checked append. */
struct dedup_cursor {
	const u8 *buf;
	u32 pages;
	u32 at;
	u32 left;		/* items */
};

void dedup_cursor_start(struct dedup_cursor *c, const void *buf, const struct dedup_append *head);
/*
 * The next change: kind, index, and its record's bytes as far as the journal holds them.
 * 1, 0 at the end, -EUCLEAN.
 */
int dedup_cursor_change(const struct dedup_super *sb, struct dedup_cursor *c, u8 *kind, u64 *index,
			const void **rec, u32 *bytes);
int dedup_cursor_entry(struct dedup_cursor *c, struct dedup_disk_entry *entry);

#endif
