/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The machines of a history, and what is known of their disks. */
#ifndef VMDEDUP_SIM_WORLD_H
#define VMDEDUP_SIM_WORLD_H

#include <sqlite3.h>

#include "base/cleanup.h"
#include "base/fingerprint.h"
#include "data/bstore_priv.h"
#include "data/server_priv.h"
#include "history.h"
#include "threads.h"

#define BLOCK_SHIFT 12
#define BLOCK_BYTES (1U << BLOCK_SHIFT)
#define CONTENTS    200 /* different blocks that there are */
#define FP_SLOTS    1024
#define MAX_DATA    8
#define NODE_SELF   0 /* of the nemesis */
#define NODE_META   1
#define NODE_DATA   2
#define NODE_CLIENT 12

#define MS 1000000ULL
#define S  1000000000ULL

struct data_machine {
	unsigned int node, number;
	bool exists, up;
	char dir[128], old[128]; /* its disk; a copy of it from before, or "" */
	unsigned int nr_dirs;
	struct data_server *s; /* while it is up */
	/* The disk is not what it was, and the meta server has not been told. */
	bool damaged;
	struct uuid disk; /* null: not known yet */
	uint64_t sequence; /* of the store, when `have` was read */
	uint64_t have[CONTENTS]; /* epoch of each block's copy; 0: none */
	struct uuid session;
	/* Another process has joined since the copy was made: the meta server knows it for a copy. (How
	 * many commits a disk has it is told once a minute, which is longer than a history.) */
	struct uuid old_session;
	bool old_is_older;
};

struct history {
	const struct history_options *o;
	struct history_result *r;
	char what[512]; /* why it failed; "": it has not */
	unsigned int replicas, min_copies, nr_data;
	unsigned int yesterday; /* the server whose disk is put back */
	struct data_machine data[MAX_DATA];
	bool meta_up;
	char meta_path[128];
	unsigned int nr_metas;
	struct fp fps[CONTENTS];
	uint8_t by_fp[FP_SLOTS]; /* 1 + the content, or 0; by the low bits of its digest or behind them */
	/* The checker's eyes. */
	sqlite3 *db;
	int64_t db_version;
	uint64_t db_writes; /* to files, when it was read */
	/* phases */
	bool ending, over;
	uint64_t late_until_ns; /* a JOIN may be on its way that harms a disk when it arrives */
	unsigned int writers;
};

void world_fail(struct history *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void world_trace(struct history *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Once for all histories: the blocks there are, and an empty store. */
void world_prepare(struct history *h, const char *dir);
void world_make(struct history *h);
void meta_start(struct history *h);
void meta_crash(struct history *h);
void data_start(struct history *h, unsigned int i);
void data_crash(struct history *h, unsigned int i);
/* The disk of a machine that is off: an empty one in its place, the copy, or a copy made. */
void data_empty(struct history *h, unsigned int i);
void data_put_back(struct history *h, unsigned int i);
void data_copy(struct history *h, unsigned int i);
void content_make(unsigned int k, uint8_t block[BLOCK_BYTES]);
int content_of(const struct history *h, const uint8_t *fp); /* -1: none of ours */

/* files.c: what SQLite opens from now on is in memory. */
void files_init(void);
uint64_t files_writes(void); /* so far */
/* To a new name, as it is; there need not be one. What has it open must not touch it any more. */
void files_move(const char *from, const char *to);

/* watch.c */
void watch_open(struct history *h);
void watch_close(struct history *h);
/* Something may have changed: on @node, and on disks. */
void watch_step(struct history *h, unsigned int node);
/* Every shard has its replicas, all current, and nothing is told to the meta server still. */
bool watch_is_whole(struct history *h, char *why, size_t len);
/* Copies are replicas x blocks, on the servers that the map names, and nothing is condemned. */
bool watch_is_exact(struct history *h, char *why, size_t len);

#endif
