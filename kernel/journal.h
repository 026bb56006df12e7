/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The journal: a ring of pages in which appends follow one another, each linked to its
 * predecessor by sequence and CRC.
 *
 * Which appends count. Appends are written one at a time, each durable before the next is
 * begun. So the mere head of an append proves that its predecessor was durable: the valid
 * tail is the append with the highest sequence found in the ring, or, when that one is torn,
 * the one before it. If that one is bad as well, the journal is damaged and the cache is
 * refused. The tail names the newest checkpoint and the first append to replay; all from there
 * to the tail must be valid and linked. Sequences go on over crashes and incarnations, so what
 * is left of an append that never became durable has a sequence that is used by another, and
 * can never be a tail again.
 *
 * Not thread-safe: the owner (the ledger) has one caller at a time.
 */
#ifndef DEDUP_JOURNAL_H
#define DEDUP_JOURNAL_H

#include "codec.h"

/* An append found by the scan. */
struct dedup_found {
	u64 seq;
	u32 page;
	u32 pages;
	u32 crc;
	u32 prev_crc;
	u32 nr_items;
	u32 kind;
};

struct dedup_journal {
	const struct dedup_super *sb;
	const struct dedup_disk *disk;
	u8 *buf;			/* the append being built, or read */
	u32 buf_pages;
	struct dedup_found *found;	/* between scan and replay only; sorted by sequence */
	u32 nr_found;
	/* The tail. */
	u64 seq;
	u32 crc;
	u32 incarnation_nr;
	u8 incarnation[DEDUP_UUID_BYTES];
	/* Positions count pages and never wrap; the page is the position modulo the ring. */
	u64 head;			/* after the tail */
	u64 tail;			/* the first append to replay */
	u64 checkpoint_seq;
	u64 replay_seq;
	u32 checkpoint_page;
	u32 replay_page;
	/* Where the next checkpoint's replay starts: set by mark, completed by the next append. */
	u64 mark_seq;
	u64 mark_pos;
	bool mark_open;			/* no append yet since the mark */
};

int dedup_journal_init(struct dedup_journal *j, const struct dedup_super *sb,
		       const struct dedup_disk *disk);
void dedup_journal_exit(struct dedup_journal *j);

/* Reads the ring and finds the tail. -EUCLEAN, -EIO, -ENOMEM; @why says which append. */
int dedup_journal_scan(struct dedup_journal *j, struct dedup_why *why);

/* After the scan: how many changes there are to replay, at most. */
u64 dedup_journal_nr_changes(const struct dedup_journal *j);

/**
 * struct dedup_replay - receives what the journal holds
 * @root: one entry of the root, in order
 * @change: one change, in order; @rec has @bytes bytes
 */
struct dedup_replay {
	int (*root)(void *ctx, u32 nr, const struct dedup_disk_entry *entry);
	int (*change)(void *ctx, u8 kind, u64 index, const void *rec, u32 bytes);
	void *ctx;
};

/* Validates and hands out everything from the first append to replay to the tail. */
int dedup_journal_replay(struct dedup_journal *j, const struct dedup_replay *replay,
			 struct dedup_why *why);

/*
 * Room for an append of @pages that leaves room for @roots appends of a checkpoint behind it?
 */
bool dedup_journal_has_room(const struct dedup_journal *j, u32 pages, unsigned int roots);

/* Pages in use. */
static inline u64 dedup_journal_used(const struct dedup_journal *j)
{
	return j->head - j->tail;
}

/* The next append is the first that a checkpoint begun now does not cover. */
void dedup_journal_mark(struct dedup_journal *j);

/* Begins an append in the journal's buffer. */
void dedup_journal_start(struct dedup_journal *j, struct dedup_builder *b, u32 max_pages);

/**
 * dedup_journal_write - seal and write the append, durably, with all writes before it
 *
 * A CHECKPOINT append ends at the mark: what lies before the mark may be overwritten from then
 * on. After an error the journal must not be written to again.
 */
int dedup_journal_write(struct dedup_journal *j, struct dedup_builder *b, u32 kind);

#endif
