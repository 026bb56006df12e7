/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the data server's tests share: folders, blocks, and a disk that breaks. */
#ifndef DATA_HELP_H
#define DATA_HELP_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/fingerprint.h"
#include "data/disk.h"
#include "data/bstore.h"

#define TEST_BLOCK 8192

/* A fresh folder, and its end with everything in it. */
char *help_dir(void);
void help_dir_remove(char *dir);
void help_path(char path[512], const char *dir, const char *name);
/* First lump file of the folder that is longer than @min; false: none. */
bool help_find_lump(const char *dir, uint64_t min, char path[512]);
size_t help_count_lumps(const char *dir);
uint64_t help_file_size(const char *path);
void help_flip_bit(const char *path, uint64_t bit);
void help_copy(const char *from, const char *to);

/* Block @n: content (the same for the same n, not compressible) and fingerprint. */
void help_block(uint64_t n, uint8_t data[TEST_BLOCK], struct fp *fp);

struct bstore_options help_options(const char *dir);
/* Blocks first to first + count - 1 as one batch; each op's result in @r (may be NULL). */
int help_put(struct bstore *st, uint64_t first, size_t count, int *r);
int help_touch(struct bstore *st, uint64_t n, uint64_t *epoch);
int help_delete(struct bstore *st, uint64_t n, uint64_t below);
int help_epoch(struct bstore *st, enum bstore_op_kind kind, uint64_t epoch); /* all shards */
/* 0 when the block is there with its content; else what bstore_read() says. */
int help_check(struct bstore *st, uint64_t n);
/* The store, or the test fails. */
struct bstore *help_open(const struct bstore_options *o);
void help_check_range(struct bstore *st, uint64_t first, size_t count); /* all are there */

/*
 * A disk that breaks at one operation, and that forgets what was not synced. Counts every
 * changing operation; at number @break_at (from 1; 0: never) it fails with @error, or, with
 * @power_cut, that and every later one fail.
 */
struct bad_file {
	char name[64];
	uint64_t written, synced;
	bool name_synced;
};
struct bad_disk {
	unsigned int ops, break_at;
	int error;
	bool power_cut, dead;
	bool short_writes;
	uint64_t free; /* what space() says; 0: the real one */
	/* Sectors of 4 KiB that cannot be read, of the lumps with these names. */
	struct { char name[64]; uint64_t sector; } unreadable[4];
	size_t nr_unreadable;
	struct bad_file files[2048];
	size_t nr_files;
	struct { int fd; size_t file; } fds[2048];
	size_t nr_fds;
};
extern const struct disk_ops bad_disk_ops;
/* After a power cut: what was not synced is cut off, zeroed or scrambled, at random. */
void bad_disk_forget(struct bad_disk *d, const char *dir, unsigned int seed);

#endif
