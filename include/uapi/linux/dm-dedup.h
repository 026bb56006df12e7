/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The channel between dm-dedup.ko and the agent.
 *
 * Every dedup-cache device has one character device, /dev/dm-dedup/<cache uuid>. One agent
 * opens it (a second open gets EBUSY), says HELLO, reads upcalls and makes calls (ioctls).
 * Everything is in host byte order; every structure starts with its own size, and what is
 * reserved must be zero. Documentation/uapi.rst tells the whole protocol.
 *
 * Every call may be repeated: a repeated call finds its work done, or gets ESTALE, and changes
 * nothing. Closing the device fails no I/O: what is unanswered waits, and is sent again, with
 * DM_DEDUP_UP_RESEND, to the agent that says the next HELLO.
 */
#ifndef _UAPI_LINUX_DM_DEDUP_H
#define _UAPI_LINUX_DM_DEDUP_H

#include <linux/types.h>
#include <linux/ioctl.h>

#define DM_DEDUP_ABI_MAJOR	1
#define DM_DEDUP_ABI_MINOR	1

#define DM_DEDUP_FP_SIZE	32	/* a fingerprint or a root; shorter digests end in zeros */
#define DM_DEDUP_UUID_SIZE	16
#define DM_DEDUP_NAME_SIZE	256	/* an image's name with its NUL */
#define DM_DEDUP_BITMAP_BYTES	256	/* 1 MiB blocks of 512-byte sectors */
#define DM_DEDUP_MAX_BATCH	1024	/* entries in one call; PUBLISH: DM_DEDUP_MAX_PUBLISH */
#define DM_DEDUP_MAX_PUBLISH	64
#define DM_DEDUP_MAX_VOLUMES	4096	/* volume records of one cache */

/* ---- upcalls: read() returns an array of these, as many as fit; poll() says EPOLLIN ---- */

enum dm_dedup_upcall_type {
	/* Answered by REPLY. */
	DM_DEDUP_UP_LOOKUP	= 1,	/* which image is this name? no side effects */
	DM_DEDUP_UP_OPEN	= 2,	/* grant this volume: take or confirm the lease */
	/* Answered by PUBLISH, MAP or FAIL that carry the cookie. */
	DM_DEDUP_UP_FETCH	= 3,	/* block of the recipe named by root */
	/* Events: coalesced, never answered, their cookie is 0. */
	DM_DEDUP_UP_CLOSE	= 4,	/* the last device of the volume has gone */
	DM_DEDUP_UP_SPACE	= 5,	/* writers wait for slots: push something now */
	DM_DEDUP_UP_DIRTY	= 6,	/* the volume passed the bound on unpushed bytes or age */
};

/* dm_dedup_upcall.flags */
#define DM_DEDUP_UP_RESEND	(1U << 0)	/* may have been sent to an earlier agent */
#define DM_DEDUP_UP_READAHEAD	(1U << 1)	/* FETCH: nobody waits for it yet */

/* Volume flags, wherever volume flags stand. */
#define DM_DEDUP_VOL_READONLY	(1U << 0)
#define DM_DEDUP_VOL_EPHEMERAL	(1U << 1)	/* never pushed; gone on RELEASE */
#define DM_DEDUP_VOL_DIRTY	(1U << 2)	/* holds overlays above the committed cut */
#define DM_DEDUP_VOL_OPEN	(1U << 3)	/* a dedup device has it open */
#define DM_DEDUP_VOL_GRANTED	(1U << 4)	/* the record holds a grant (lease epoch) */
#define DM_DEDUP_VOL_DIVERGED	(1U << 5)	/* no I/O; dirty data waits to be recovered */
#define DM_DEDUP_VOL_FENCED	(1U << 6)	/* writes fail: the lease is known to be stale */

/**
 * struct dm_dedup_volume_info - the durable record of a volume, and its state
 * @volume: id, allocated by the kernel, never used again in this cache
 * @image: UUID of the image it is bound to
 * @root: root of the base recipe, as of @committed_cut
 * @lease_epoch: of the grant; 0 without one
 * @size: bytes
 * @committed_cut: the last cut that a COMMIT has closed; 0 before the first
 * @closed_cut: a cut that was made and not yet committed; 0 if there is none
 * @dirty_bytes: slots above @committed_cut, in bytes
 * @oldest_ms: age of the oldest unpushed write, in milliseconds
 * @flags: DM_DEDUP_VOL_*
 * @ios: while something is unpushed: reads and writes since the record was loaded; changes with
 *       every one. 0: not known
 * @name: the name it was last opened by
 */
struct dm_dedup_volume_info {
	__u64	volume;
	__u8	image[DM_DEDUP_UUID_SIZE];
	__u8	root[DM_DEDUP_FP_SIZE];
	__u64	lease_epoch;
	__u64	size;
	__u64	committed_cut;
	__u64	closed_cut;
	__u64	dirty_bytes;
	__u64	oldest_ms;
	__u32	flags;
	__u32	logical_block_size;
	__u64	ios;
	__u64	reserved[3];
	char	name[DM_DEDUP_NAME_SIZE];
};

/**
 * struct dm_dedup_upcall - one request or event
 * @size: sizeof(struct dm_dedup_upcall)
 * @type: enum dm_dedup_upcall_type
 * @flags: DM_DEDUP_UP_*
 * @cookie: never used again, not even after a reboot; 0 for events
 * @block: FETCH: number of the block in the volume
 * @info: LOOKUP: only name is set. OPEN, CLOSE, DIRTY: the volume's record. FETCH: volume,
 *        image and root (resolve against this root only). SPACE: all zero but dirty_bytes,
 *        of the whole cache.
 */
struct dm_dedup_upcall {
	__u32	size;
	__u16	type;
	__u16	flags;
	__u64	cookie;
	__u64	block;
	__u64	reserved[2];
	struct dm_dedup_volume_info info;
};

/* ---- calls ---- */

/**
 * struct dm_dedup_hello - HELLO: become this cache's agent
 * @size: sizeof
 * @abi_major: in: DM_DEDUP_ABI_MAJOR, else EPROTO; out: the kernel's
 * @abi_minor: in: the agent's; out: the lower of both
 * @features: in: feature bits that the agent knows (DM_DEDUP_FEATURE_*); out: those in use
 * @agent_epoch: out: stands in every later call; an older one gets ESTALE
 * @cache: out: UUID of the cache
 * @cluster: out: UUID of the cluster it was formatted for; all zero: any
 * @incarnation: out: changes each time the cache is opened by the kernel
 * @nr_slots: out
 * @data_offset: out: byte offset of slot 0 in the dedup-cache device
 * @block_shift: out: log2 of the block size in bytes
 * @max_inflight: out: how many FETCHes the kernel lets wait at most
 *
 * Unanswered requests are queued again with RESEND. Errors: EPROTO, EINVAL, EFAULT.
 */
struct dm_dedup_hello {
	__u32	size;
	__u16	abi_major;
	__u16	abi_minor;
	__u64	features;
	__u64	agent_epoch;
	__u8	cache[DM_DEDUP_UUID_SIZE];
	__u8	cluster[DM_DEDUP_UUID_SIZE];
	__u8	incarnation[DM_DEDUP_UUID_SIZE];
	__u64	nr_slots;
	__u64	data_offset;
	__u32	block_shift;
	__u32	max_inflight;
	__u64	reserved[4];
};

#define DM_DEDUP_FEATURE_SOURCE	(1ULL << 0)	/* dm_dedup_publish.source; from minor 1 on */
#define DM_DEDUP_FEATURE_LOOSE	(1ULL << 1)	/* PUBLISH of a block without a volume */

/**
 * struct dm_dedup_reply - REPLY: the answer to LOOKUP or OPEN
 * @error: 0 or a positive errno, which fails the upcall (and so the table load or resume)
 * @info: LOOKUP: image, size, logical_block_size (0: 512). OPEN: root, lease_epoch,
 *        committed_cut (the cut that the head stores for this epoch), size, flags
 *        (READONLY, EPHEMERAL). The rest must be zero.
 *
 * Errors: ESTALE (epoch or cookie), EINVAL, EFAULT.
 */
struct dm_dedup_reply {
	__u32	size;
	__s32	error;
	__u64	agent_epoch;
	__u64	cookie;
	__u64	reserved[2];
	struct dm_dedup_volume_info info;
};

/**
 * struct dm_dedup_batch - a call that carries an array
 * @size: sizeof(struct dm_dedup_batch)
 * @entry_size: sizeof of one entry
 * @entries: user address of the array
 * @count: in: entries in the array; out (LIST_*): entries filled
 * @volume: LIST_CUT, COMMIT: the volume
 * @cut: LIST_CUT, COMMIT: the cut
 * @cursor: LIST_*: in: 0 or the cursor of the call before; out: the next, ~0 at the end
 * @root: COMMIT: the new root
 * @lease_epoch: COMMIT
 * @flags: COMMIT: DM_DEDUP_COMMIT_MORE
 *
 * What the call as a whole cannot do is its errno; what one entry cannot is the entry's
 * @result, a negative errno, and does not stop the others.
 */
struct dm_dedup_batch {
	__u32	size;
	__u32	entry_size;
	__u64	agent_epoch;
	__u64	entries;
	__u32	count;
	__u32	flags;
	__u64	volume;
	__u64	cut;
	__u64	cursor;
	__u8	root[DM_DEDUP_FP_SIZE];
	__u64	lease_epoch;
	__u64	reserved[4];
};

/* Only stages the replacements; the COMMIT without it, for the same cut, applies them all. */
#define DM_DEDUP_COMMIT_MORE	(1U << 0)

/**
 * struct dm_dedup_publish - PUBLISH: the content of a block
 * @cookie: of the FETCH, or 0: unasked for (prefetch); then @root must be the volume's root
 * @volume, @block: where it goes; must be the FETCH's. With DM_DEDUP_FEATURE_LOOSE @volume may be
 *          0, and @cookie then is: a CLEAN slot that no volume maps yet; @block and @root do not
 *          count
 * @root: the root it was resolved against
 * @fp: its fingerprint, which the agent has verified; kept in the slot's record
 * @data: user address of one block, any alignment
 * @slot, @seq: out: where it is now
 * @result: out: 0; ESTALE: the cookie or root no longer applies, the block is not cached;
 *          EEXIST: mapped already; ENOSPC: no slot; EIO
 * @source: enum dm_dedup_source, where DM_DEDUP_FEATURE_SOURCE is in use, else 0
 *
 * The kernel copies, writes, and publishes when the write has completed; then it returns.
 */
struct dm_dedup_publish {
	__u64	cookie;
	__u64	volume;
	__u64	block;
	__u8	root[DM_DEDUP_FP_SIZE];
	__u8	fp[DM_DEDUP_FP_SIZE];
	__u64	data;
	__u64	slot;
	__u64	seq;
	__s32	result;
	__u32	source;
};

/* Where the agent has a block from. */
enum dm_dedup_source {
	DM_DEDUP_SOURCE_UNKNOWN	= 0,
	DM_DEDUP_SOURCE_PEER	= 1,	/* another host's agent */
	DM_DEDUP_SOURCE_DATA	= 2,	/* a data server */
};

/**
 * struct dm_dedup_map - MAP: the block is in that CLEAN slot already, or is zero
 * @seq: the slot's sequence; a mismatch gets ESTALE and the FETCH stays open
 * @flags: DM_DEDUP_MAP_ZERO: @slot and @seq are ignored
 * The rest as in struct dm_dedup_publish.
 */
struct dm_dedup_map {
	__u64	cookie;
	__u64	volume;
	__u64	block;
	__u8	root[DM_DEDUP_FP_SIZE];
	__u64	slot;
	__u64	seq;
	__s32	result;
	__u32	flags;
};

#define DM_DEDUP_MAP_ZERO	(1U << 0)

/**
 * struct dm_dedup_fail - FAIL: the block cannot be had; parked bios end with an I/O error
 * @error: a positive errno: EIO, ENODATA, ...
 */
struct dm_dedup_fail {
	__u64	cookie;
	__s32	error;
	__s32	result;
};

/* Also of a diverged or fenced volume: what it holds is to become a new image. */
#define DM_DEDUP_CUT_RECOVER	(1U << 0)

/**
 * struct dm_dedup_cut - CUT: close all open overlays of a volume
 * @flags: DM_DEDUP_CUT_RECOVER
 * @cut: out: the cut; the same one again until its COMMIT; 0: nothing was dirty
 * @lease_epoch: out: of the grant
 * @root: out: the parent root, on which the cut stands
 *
 * Returns when counter and data are durable. Works with and without an open device.
 * Errors: ESTALE, ENOENT (no such volume), EROFS, EIO, ESHUTDOWN (diverged or fenced, without
 * DM_DEDUP_CUT_RECOVER), EOVERFLOW (an OPEN was answered with an impossible committed cut).
 */
struct dm_dedup_cut {
	__u32	size;
	__u32	flags;
	__u64	agent_epoch;
	__u64	volume;
	__u64	cut;
	__u64	lease_epoch;
	__u8	root[DM_DEDUP_FP_SIZE];
	__u64	reserved[2];
};

/* Kinds of base, in LIST_CUT entries and in COMMIT replacements. */
enum dm_dedup_base_kind {
	DM_DEDUP_BASE_NONE	= 0,	/* not here: fetched when needed */
	DM_DEDUP_BASE_ZERO	= 1,
	DM_DEDUP_BASE_SLOT	= 2,	/* a CLEAN slot, named with its sequence */
	DM_DEDUP_BASE_OWN	= 3,	/* COMMIT only: the overlay's own slot, complete */
};

/* dm_dedup_cut_entry.flags */
#define DM_DEDUP_CUT_NO_SLOT	(1U << 0)	/* an overlay of zeros without a slot */
#define DM_DEDUP_CUT_COMPLETE	(1U << 1)	/* every sector is valid: OWN is allowed */

/**
 * struct dm_dedup_cut_entry - LIST_CUT: one overlay of the cut
 * @slot, @seq: its slot
 * @base_kind: what lies below the sectors that are not valid: NONE (resolve the block against
 *             the parent root), ZERO, or SLOT with @base_slot and @base_seq
 * @bitmap: bit n (byte n / 8, bit n % 8): sector n, of 512 bytes, is valid
 */
struct dm_dedup_cut_entry {
	__u64	block;
	__u64	slot;
	__u64	seq;
	__u64	base_slot;
	__u64	base_seq;
	__u32	base_kind;
	__u32	flags;
	__u8	bitmap[DM_DEDUP_BITMAP_BYTES];
};

/**
 * struct dm_dedup_clean_entry - LIST_CLEAN: one CLEAN slot (cursor: slot number)
 */
struct dm_dedup_clean_entry {
	__u64	slot;
	__u64	seq;
	__u8	fp[DM_DEDUP_FP_SIZE];
};

/**
 * struct dm_dedup_replacement - COMMIT: the new base of a block of the cut
 * @kind: enum dm_dedup_base_kind
 * @slot, @seq: OWN: the overlay's own; SLOT: the CLEAN slot
 * @fp: OWN: the fingerprint of the whole block
 * @result: out: 0; ESTALE, ENOMEM: counts as BASE_NONE
 *
 * COMMIT itself: ESTALE (epochs), ENOENT, EALREADY (this cut is committed with this root:
 * done), EINVAL (another cut or root), EIO. It returns when the change is durable.
 */
struct dm_dedup_replacement {
	__u64	block;
	__u64	slot;
	__u64	seq;
	__u8	fp[DM_DEDUP_FP_SIZE];
	__u32	kind;
	__s32	result;
};

/**
 * struct dm_dedup_volume_call - FENCE, RELEASE
 * @flags: RELEASE: DM_DEDUP_RELEASE_DISCARD gives up the dirty data of an ephemeral or
 *         diverged volume
 *
 * FENCE: writes fail from now on; the volume is diverged. RELEASE: ends the grant durably;
 * EBUSY while a device has it open or anything lies above the committed cut.
 */
struct dm_dedup_volume_call {
	__u32	size;
	__u32	flags;
	__u64	agent_epoch;
	__u64	volume;
	__u64	lease_epoch;
	__u64	reserved[2];
};

#define DM_DEDUP_RELEASE_DISCARD	(1U << 0)

/**
 * struct dm_dedup_drop - DROP: the content of a CLEAN slot is bad or unwanted; free it
 */
struct dm_dedup_drop {
	__u64	slot;
	__u64	seq;
	__s32	result;
	__u32	reserved;
};

#define DM_DEDUP_IOC		0xDD
#define DM_DEDUP_HELLO		_IOWR(DM_DEDUP_IOC, 0x00, struct dm_dedup_hello)
#define DM_DEDUP_REPLY		_IOW(DM_DEDUP_IOC, 0x01, struct dm_dedup_reply)
#define DM_DEDUP_PUBLISH	_IOWR(DM_DEDUP_IOC, 0x02, struct dm_dedup_batch)
#define DM_DEDUP_MAP		_IOWR(DM_DEDUP_IOC, 0x03, struct dm_dedup_batch)
#define DM_DEDUP_FAIL		_IOWR(DM_DEDUP_IOC, 0x04, struct dm_dedup_batch)
#define DM_DEDUP_CUT		_IOWR(DM_DEDUP_IOC, 0x05, struct dm_dedup_cut)
#define DM_DEDUP_LIST_CUT	_IOWR(DM_DEDUP_IOC, 0x06, struct dm_dedup_batch)
#define DM_DEDUP_LIST_CLEAN	_IOWR(DM_DEDUP_IOC, 0x07, struct dm_dedup_batch)
#define DM_DEDUP_COMMIT		_IOWR(DM_DEDUP_IOC, 0x08, struct dm_dedup_batch)
#define DM_DEDUP_FENCE		_IOW(DM_DEDUP_IOC, 0x09, struct dm_dedup_volume_call)
#define DM_DEDUP_RELEASE	_IOW(DM_DEDUP_IOC, 0x0a, struct dm_dedup_volume_call)
#define DM_DEDUP_DROP		_IOWR(DM_DEDUP_IOC, 0x0b, struct dm_dedup_batch)
/* All volume records (struct dm_dedup_volume_info): what a restarted agent needs to go on. */
#define DM_DEDUP_LIST_VOLUMES	_IOWR(DM_DEDUP_IOC, 0x0c, struct dm_dedup_batch)

#endif /* _UAPI_LINUX_DM_DEDUP_H */
