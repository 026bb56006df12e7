/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a cache disk looks like. Documentation/on-disk.rst tells it in prose.
 *
 * All integers are little-endian. Metadata is written in pages of 4 KiB:
 *
 *	byte 0		one page of zeros
 *	4 KiB		superblock A (its first 512 bytes)
 *	1 MiB		journal: a ring of pages
 *	then		tables, place 0; tables, place 1
 *	then		directory, place 0; directory, place 1
 *	data_start	slots, one after the other; a multiple of 1 MiB
 *	last page	superblock B
 *
 * No slot lies in the first or in the last MiB of the disk.
 *
 * The journal's newest CHECKPOINT append holds the root: place, sequence and CRC of every
 * directory page. A directory page holds the same of every table page. Table pages hold the
 * records: first those of volumes, then those of slots. A page has two places; a checkpoint
 * writes the one that the last durable checkpoint does not name.
 */
#ifndef DEDUP_FORMAT_H
#define DEDUP_FORMAT_H

#include <linux/types.h>
#include "record.h"

#define DEDUP_PAGE_SHIFT	12
#define DEDUP_PAGE_BYTES	(1U << DEDUP_PAGE_SHIFT)
#define DEDUP_ALIGN_BYTES	(1U << 20)	/* of the journal's start and of data_start */

#define DEDUP_BLOCK_SHIFT_MIN	12
#define DEDUP_BLOCK_SHIFT_MAX	20
#define DEDUP_SECTOR_SHIFT	9		/* an overlay's bitmap counts these */

#define DEDUP_MIN_SLOTS		128ULL
#define DEDUP_MAX_SLOTS		(1ULL << 26)
#define DEDUP_VOLUMES		4096U		/* volume records of a cache */
#define DEDUP_MAX_INCARNATION	((1U << 24) - 1)

#define DEDUP_JOURNAL_MIN_PAGES	16U		/* 64 KiB, if asked for */
#define DEDUP_JOURNAL_LOW_PAGES	512U		/* 2 MiB, of its own accord */
#define DEDUP_JOURNAL_MAX_PAGES	16384U		/* 64 MiB */
#define DEDUP_APPEND_MAX_PAGES	128U		/* 512 KiB */

/* ---- superblock ---- */

#define DEDUP_SUPER_MAGIC	0x4350554445444d56ULL	/* "VMDEDUPC" */
#define DEDUP_SUPER_VERSION	1U
#define DEDUP_SUPER_BYTES	512U
#define DEDUP_SUPER_OFFSET	4096U		/* of A; B is the last whole page of the disk */
#define DEDUP_LABEL_BYTES	64

/* Feature bits that this version knows. Unknown: compat are ignored, incompat refuse the cache,
 * ro_compat allow the offline check and dump only.
 */
#define DEDUP_FEATURES_COMPAT	0ULL
#define DEDUP_FEATURES_RO	0ULL
#define DEDUP_FEATURES_INCOMPAT	0ULL

/**
 * struct dedup_disk_super - a superblock
 * @crc: CRC-32C of these 512 bytes with this field 0. Magic, crc and version stand where they
 *       are, with this meaning, in every version.
 * @generation: goes up with every write of the superblocks; of two valid ones the higher counts
 * @incarnation: of the last open
 * @journal_seq: an append with this sequence is durable: a journal that ends before it is damaged
 * @append_pages: no append is longer
 */
struct dedup_disk_super {
	__le64	magic;
	__le32	crc;
	__le32	version;
	__le64	generation;
	__le64	features_compat;
	__le64	features_ro;
	__le64	features_incompat;
	__u8	cache_uuid[DEDUP_UUID_BYTES];
	__u8	cluster_uuid[DEDUP_UUID_BYTES];
	__u8	incarnation[DEDUP_UUID_BYTES];
	__le32	incarnation_nr;
	__le32	block_shift;
	__le64	device_bytes;
	__le64	journal_start;		/* bytes, as all starts */
	__le32	journal_pages;
	__le32	append_pages;
	__le64	table_start;		/* of place 0; place 1 follows it */
	__le64	dir_start;		/* likewise */
	__le64	data_start;
	__le64	nr_slots;
	__le32	table_pages;		/* in one place */
	__le32	dir_pages;		/* in one place */
	__le32	nr_volumes;
	__le32	reserved;
	__le64	journal_seq;
	__u8	label[DEDUP_LABEL_BYTES];
	__u8	reserved2[264];
};

/* ---- records ---- */

/**
 * struct dedup_disk_slot - a slot's record
 *
 * Its size depends on the block size: the bitmap has one bit for each 512 bytes of a block,
 * rounded up to whole 8 bytes; bit n is bit n % 8 of byte n / 8. CLEAN uses 48 bytes of it.
 */
struct dedup_disk_slot {
	__le64	seq;
	__u8	state;			/* enum dedup_slot_state */
	__u8	flags;			/* DEDUP_OVERLAY_* */
	__u8	reserved[6];
	union {
		__u8	fp[DEDUP_FP_BYTES];
		struct {
			__le64	volume;
			__le64	block;
			__le64	cut;
			__u8	bitmap[8];	/* and what follows */
		} dirty;
	};
};

struct dedup_disk_volume {
	__le64	id;
	__u8	image[DEDUP_UUID_BYTES];
	__u8	root[DEDUP_FP_BYTES];
	__le64	lease_epoch;
	__le64	size;
	__le64	cut_counter;
	__le64	committed_cut;
	__le32	flags;
	__le32	reserved;
	__u8	name[DEDUP_NAME_BYTES];
	__u8	reserved2[32];
};

/* ---- tables and directory ---- */

#define DEDUP_TABLE_MAGIC	0x62617464U	/* "dtab" */
#define DEDUP_DIR_MAGIC		0x72696464U	/* "ddir" */

/**
 * struct dedup_disk_page - the head of a table or directory page
 * @crc: CRC-32C of the page with this field 0
 * @seq: of the checkpoint that wrote it: the sequence of the last append that it covers
 * @tag: the first 8 bytes of the cache's UUID
 */
struct dedup_disk_page {
	__le32	magic;
	__le32	crc;
	__le64	index;
	__le64	seq;
	__u8	tag[8];
};

/**
 * struct dedup_disk_entry - where a page is, in the directory and in the root
 * @seq: the page's; 0: the page was never written and all its records are unused
 * @place: 0 or 1
 */
struct dedup_disk_entry {
	__le64	seq;
	__le32	crc;
	__le32	place;
};

#define DEDUP_PAGE_PAYLOAD	(DEDUP_PAGE_BYTES - 32U)
#define DEDUP_DIR_ENTRIES	(DEDUP_PAGE_PAYLOAD / 16U)
#define DEDUP_VOLUMES_PER_PAGE	(DEDUP_PAGE_PAYLOAD / 384U)

/* ---- journal ---- */

#define DEDUP_APPEND_MAGIC	0x646e657070416464ULL	/* "ddAppend" */
#define DEDUP_CONT_MAGIC	0x2e2e2e6e6f436464ULL	/* "ddCon..." */

enum dedup_append_kind {
	DEDUP_APPEND_CHANGES	= 1,	/* items: struct dedup_disk_change */
	DEDUP_APPEND_CHECKPOINT	= 2,	/* items: struct dedup_disk_entry, the root */
};

/**
 * struct dedup_disk_append - the head of an append, at the start of its first page
 * @header_crc: CRC-32C of this structure with @header_crc and @crc 0
 * @crc: CRC-32C of the whole append, @pages pages, with @crc 0 and @header_crc set
 * @seq: one more than the predecessor's, over all incarnations
 * @prev_crc: the predecessor's @crc; 0 for sequence 1
 * @checkpoint_seq, @checkpoint_page: the newest CHECKPOINT append, this one included
 * @replay_seq, @replay_page: the first append that the tables of that checkpoint do not
 *	hold; may be the checkpoint itself
 * @nr_items: changes or entries
 *
 * Every further page starts with struct dedup_disk_cont. Items follow the heads; none crosses
 * the end of a page: what is left of a page is zero. An append never wraps around the ring.
 */
struct dedup_disk_append {
	__le64	magic;
	__le32	header_crc;
	__le32	crc;
	__u8	cache_uuid[DEDUP_UUID_BYTES];
	__u8	incarnation[DEDUP_UUID_BYTES];
	__le64	seq;
	__le32	prev_crc;
	__le32	incarnation_nr;
	__le32	kind;
	__le32	pages;
	__le32	nr_items;
	__le32	reserved;
	__le64	checkpoint_seq;
	__le64	replay_seq;
	__le32	checkpoint_page;
	__le32	replay_page;
	__u8	reserved2[24];
};

struct dedup_disk_cont {
	__le64	magic;
	__le64	seq;
};

/**
 * struct dedup_disk_change - the head of a change; the new record follows
 * @kind: enum dedup_change_kind; 0: nothing more in this page
 * @bytes: of the record, a multiple of 8. A slot's record may be cut after its head (FREE) or
 *	after the fingerprint (CLEAN); what is missing is zero.
 */
struct dedup_disk_change {
	__u8	kind;
	__u8	reserved;
	__le16	bytes;
	__le32	reserved2;
	__le64	index;
};

_Static_assert(sizeof(struct dedup_disk_super) == DEDUP_SUPER_BYTES, "superblock");
_Static_assert(sizeof(struct dedup_disk_slot) == 48, "slot record");
_Static_assert(sizeof(struct dedup_disk_volume) == 384, "volume record");
_Static_assert(sizeof(struct dedup_disk_page) == 32, "page head");
_Static_assert(sizeof(struct dedup_disk_entry) == 16, "directory entry");
_Static_assert(sizeof(struct dedup_disk_append) == 128, "append head");
_Static_assert(sizeof(struct dedup_disk_cont) == 16, "continued append");
_Static_assert(sizeof(struct dedup_disk_change) == 16, "change");

#endif
