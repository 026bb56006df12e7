// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The disk breaks at each of its operations in turn: by a power cut that loses any part of what
 * was not synced, by an I/O error, by being full. Whatever happens, what was receipted is there
 * at the next start, in the same incarnation.
 */
#include "data_help.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"

#define SIZE	(200 << 10) /* of a block: some ten in a lump of 2 MiB */
#define NR	64
#define A_BATCH 8

enum fate {
	NEVER,	 /* offered to no commit that was said to be done */
	MAYBE,	 /* in a commit that failed, or deleted in one that failed */
	THERE,	 /* receipted */
	DELETED, /* and said so */
};

struct world {
	struct bad_disk disk;
	struct bstore *st;
	unsigned int shards;
	enum fate fate[NR];
	uint64_t stamp[NR]; /* lowest epoch that a receipt has promised */
};

static uint8_t content[NR][SIZE];

static void fp_of(const struct world *w, size_t n, struct fp *fp)
{
	memset(fp, 0x11, sizeof(*fp));
	fp->b[0] = (uint8_t)(n % w->shards * 16);
	fp->b[1] = 0;
	fp->b[5] = (uint8_t)n;
}

static void fill_content(void)
{
	uint64_t x = 88172645463325252ULL;

	for (size_t n = 0; n < NR; n++)
		for (size_t i = 0; i < SIZE; i += 8) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			memcpy(&content[n][i], &x, 8);
		}
}

static void put(struct world *w, size_t first)
{
	struct bstore_op ops[A_BATCH];

	for (size_t i = 0; i < A_BATCH; i++) {
		ops[i] = (struct bstore_op){ .kind = STORE_PUT, .data = content[first + i],
					     .len = SIZE, .raw_len = SIZE };
		fp_of(w, first + i, &ops[i].fp);
	}
	bstore_commit(w->st, ops, A_BATCH);
	for (size_t i = 0; i < A_BATCH; i++) {
		if (!ops[i].r) {
			w->fate[first + i] = THERE;
			w->stamp[first + i] = ops[i].epoch;
		} else if (w->fate[first + i] != THERE) {
			w->fate[first + i] = MAYBE;
		}
	}
}

static void touch(struct world *w, size_t n)
{
	struct bstore_op op = { .kind = STORE_TOUCH };

	fp_of(w, n, &op.fp);
	if (!bstore_commit(w->st, &op, 1) && !op.r)
		w->stamp[n] = op.epoch;
}

static void delete_below(struct world *w, size_t first, size_t nr, uint64_t epoch)
{
	struct bstore_op ops[NR];

	for (size_t i = 0; i < nr; i++) {
		ops[i] = (struct bstore_op){ .kind = STORE_DELETE, .epoch = epoch };
		fp_of(w, first + i, &ops[i].fp);
	}
	bstore_commit(w->st, ops, nr);
	for (size_t i = 0; i < nr; i++) {
		if (!ops[i].r && w->stamp[first + i] >= epoch)
			fail_msg("block %zu deleted: stamped %llu, list %llu", first + i,
				 (unsigned long long)w->stamp[first + i],
				 (unsigned long long)epoch);
		if (!ops[i].r)
			w->fate[first + i] = DELETED;
		else if (ops[i].r != -EBUSY && w->fate[first + i] == THERE &&
			 w->stamp[first + i] < epoch)
			w->fate[first + i] = MAYBE;
	}
}

static void work(struct world *w)
{
	help_epoch(w->st, STORE_EPOCH, 1);
	for (size_t i = 0; i < 40; i += A_BATCH)
		put(w, i);
	help_epoch(w->st, STORE_EPOCH, 2);
	for (size_t i = 0; i < 32; i += 5)
		touch(w, i);
	delete_below(w, 0, 30, 2);
	while (bstore_compact(w->st, 3 * SIZE) > 0)
		;
	for (size_t i = 40; i < NR; i += A_BATCH)
		put(w, i);
	put(w, 0);
}

static void check(struct world *w, unsigned int at)
{
	for (size_t n = 0; n < NR; n++) {
		struct block_buf *buf;
		struct bstore_op bad;
		struct fp fp;
		int r;

		fp_of(w, n, &fp);
		r = bstore_read(w->st, 0, &fp, &buf, &bad);
		if (r ? r != -ENOENT || w->fate[n] == THERE :
			w->fate[n] == NEVER || w->fate[n] == DELETED)
			fail_msg("operation %u: block %zu: fate %d, read %d", at, n, w->fate[n], r);
		if (r)
			continue;
		assert_int_equal(buf->len, SIZE);
		assert_memory_equal(buf->data + buf->offset, content[n], SIZE);
		block_buf_put(buf);
	}
}

/* What receipts have stamped is stamped: no list below that may take it. */
static void check_stamps(struct world *w)
{
	for (size_t n = 0; n < NR; n++)
		if (w->fate[n] == THERE && w->stamp[n] == 2)
			delete_below(w, n, 1, 2);
}

/* True: the disk broke; false: the work has fewer operations than @at. */
static bool break_at(unsigned int shards, unsigned int at, int error, bool power_cut)
{
	struct world *w = calloc(1, sizeof(*w));
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct error err = { 0 };
	uint64_t incarnation;
	bool broke;

	w->shards = shards;
	o.max_fds = 4;
	o.disk = &bad_disk_ops;
	o.disk_ctx = &w->disk;
	w->st = bstore_open(&o, &err);
	assert_non_null(w->st);
	incarnation = bstore_incarnation(w->st);
	w->disk.break_at = at;
	w->disk.error = error;
	w->disk.power_cut = power_cut;
	w->disk.short_writes = at % 3 == 0;
	work(w);
	broke = w->disk.ops >= at;
	bstore_close(w->st);
	if (power_cut && broke)
		bad_disk_forget(&w->disk, dir, at);

	o.disk = NULL;
	w->st = bstore_open(&o, &err);
	if (!w->st)
		fail_msg("operation %u: %s", at, err.text);
	assert_int_equal(bstore_incarnation(w->st), incarnation);
	check(w, at);
	check_stamps(w);
	/* And it goes on from here. */
	put(w, 8);
	check(w, at);
	bstore_close(w->st);
	w->st = bstore_open(&o, &err);
	assert_non_null(w->st);
	check(w, at);
	bstore_close(w->st);
	help_dir_remove(dir);
	free(w);
	return broke;
}

static void each_operation(unsigned int shards, int error, bool power_cut, unsigned int stride)
{
	unsigned int at = 1;

	while (break_at(shards, at, error, power_cut))
		at += stride;
	assert_true(at > 40);
}

static void power_cut_few_lumps(void **state)
{
	each_operation(3, -EIO, true, 1);
}

static void power_cut_many_lumps(void **state)
{
	each_operation(11, -EIO, true, 4);
}

static void io_error(void **state)
{
	each_operation(3, -EIO, false, 4);
}

static void disk_is_full(void **state)
{
	each_operation(5, -ENOSPC, false, 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(power_cut_few_lumps),
		cmocka_unit_test(power_cut_many_lumps),
		cmocka_unit_test(io_error),
		cmocka_unit_test(disk_is_full),
	};

	/* Power cuts are the broken disk's: the real one may be memory. */
	if (!getenv("TMPDIR") && !access("/dev/shm", W_OK))
		setenv("TMPDIR", "/dev/shm", 1);
	fill_content();
	return cmocka_run_group_tests_name("data_crash", tests, NULL, NULL);
}
