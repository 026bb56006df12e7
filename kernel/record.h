/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The records that a cache keeps durably, decoded: what the state machines hand to the store
 * and get back from it. How they lie on disk is format.h's and codec.c's.
 */
#ifndef DEDUP_RECORD_H
#define DEDUP_RECORD_H

#include <linux/types.h>

#define DEDUP_FP_BYTES		32
#define DEDUP_UUID_BYTES	16
#define DEDUP_NAME_BYTES	256
#define DEDUP_BITMAP_BYTES	256	/* one bit for 512 bytes of a block of 1 MiB at most */

enum dedup_slot_state {
	DEDUP_SLOT_FREE		= 0,
	DEDUP_SLOT_CLEAN	= 1,	/* holds the block that @fp names */
	DEDUP_SLOT_DIRTY	= 2,	/* an overlay: valid sectors of (volume, block) in a cut */
};

/* DEDUP_SLOT_DIRTY flags. */
#define DEDUP_OVERLAY_BASE_ZERO	(1U << 0)	/* sectors that are not valid read as zeros */
#define DEDUP_OVERLAY_COMPLETE	(1U << 1)	/* all sectors are valid */

struct dedup_slot_rec {
	__u8 state;
	__u8 flags;
	__u64 seq;			/* of the allocation; never used again */
	__u8 fp[DEDUP_FP_BYTES];	/* CLEAN */
	__u64 volume;			/* DIRTY */
	__u64 block;
	__u64 cut;			/* the cut counter's value when the overlay was opened */
	__u8 bitmap[DEDUP_BITMAP_BYTES];
};

/* Volume flags, durable ones only (the values are the uapi's DM_DEDUP_VOL_*). */
#define DEDUP_VOL_READONLY	(1U << 0)
#define DEDUP_VOL_EPHEMERAL	(1U << 1)
#define DEDUP_VOL_GRANTED	(1U << 4)
#define DEDUP_VOL_DIVERGED	(1U << 5)
#define DEDUP_VOL_FENCED	(1U << 6)

#define DEDUP_MAX_SIZE		(64ULL << 40)	/* bytes in a volume */
#define DEDUP_MAX_CUT		(~0ULL >> 1)	/* no cut counter gets there by itself */

struct dedup_volume_rec {
	__u64 id;			/* 0: the record is unused */
	__u8 image[DEDUP_UUID_BYTES];
	__u8 root[DEDUP_FP_BYTES];	/* as of committed_cut */
	__u64 lease_epoch;
	__u64 size;			/* bytes */
	__u64 cut_counter;		/* overlays opened now belong to this value; from 1 on */
	__u64 committed_cut;		/* overlays of cuts up to this are void */
	__u32 flags;
	char name[DEDUP_NAME_BYTES];
};

/* One change, decoded. Which field counts is told by @kind. */
enum dedup_change_kind {
	DEDUP_CHANGE_SLOT	= 1,
	DEDUP_CHANGE_VOLUME	= 2,
};

struct dedup_change {
	enum dedup_change_kind kind;
	__u64 index;			/* slot number, or index in the volume table */
	union {
		struct dedup_slot_rec slot;
		struct dedup_volume_rec volume;
	};
};

#endif
