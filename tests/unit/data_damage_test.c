// SPDX-License-Identifier: GPL-2.0-or-later
/* The store on a real LMDB and real files: what is lost, damaged or cannot be read. */
#include "data_help.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

static void rebuild_from_lumps(void **state)
{
	char *dir = help_dir(), path[512];
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	uint64_t incarnation = bstore_incarnation(st);
	struct bstore_stat before, after;

	assert_int_equal(help_epoch(st, STORE_EPOCH, 3), 0);
	assert_int_equal(help_put(st, 0, 500, NULL), 0);
	assert_int_equal(help_epoch(st, STORE_EPOCH, 8), 0);
	assert_int_equal(help_touch(st, 7, NULL), 0); /* only the index knows */
	assert_int_equal(bstore_stat(st, &before), 0);
	bstore_close(st);
	help_path(path, dir, "index/data.mdb");
	assert_int_equal(unlink(path), 0);

	st = help_open(&o);
	assert_true(bstore_incarnation(st) > incarnation);
	assert_true(bstore_is_unstamped(st));
	help_check_range(st, 0, 500);
	assert_int_equal(bstore_stat(st, &after), 0);
	assert_int_equal(after.blocks, before.blocks);
	assert_int_equal(after.stored_bytes, before.stored_bytes);
	/* Block 7 was touched at 8: no list may pass that before the epochs are known. */
	assert_int_equal(help_delete(st, 7, 8), -EAGAIN);
	assert_int_equal(help_epoch(st, STORE_STAMP, 8), 0);
	assert_false(bstore_is_unstamped(st));
	assert_int_equal(help_delete(st, 7, 8), -EBUSY);
	assert_int_equal(help_delete(st, 7, 9), 0);
	incarnation = bstore_incarnation(st);
	bstore_close(st);
	st = help_open(&o);
	assert_int_equal(bstore_incarnation(st), incarnation);
	assert_int_equal(help_check(st, 7), -ENOENT);
	assert_int_equal(help_check(st, 8), 0);
	bstore_close(st);
	help_dir_remove(dir);
}

static void an_old_copy_of_the_index_is_not_believed(void **state)
{
	char *dir = help_dir(), path[512], copy[512];
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	uint64_t incarnation = bstore_incarnation(st);

	assert_int_equal(help_put(st, 0, 50, NULL), 0);
	bstore_close(st);
	help_path(path, dir, "index/data.mdb");
	help_path(copy, dir, "copy");
	help_copy(path, copy);
	st = help_open(&o);
	assert_int_equal(help_put(st, 50, 50, NULL), 0);
	assert_int_equal(help_put(st, 100, 50, NULL), 0);
	bstore_close(st);
	help_copy(copy, path);
	st = help_open(&o);
	assert_true(bstore_incarnation(st) > incarnation);
	help_check_range(st, 0, 150);
	bstore_close(st);
	help_dir_remove(dir);
}

static void lost_lump(void **state)
{
	char *dir = help_dir(), path[512];
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	uint64_t incarnation = bstore_incarnation(st);
	size_t lost = 0;

	assert_int_equal(help_put(st, 0, 100, NULL), 0);
	bstore_close(st);
	assert_true(help_find_lump(dir, 128, path));
	assert_int_equal(unlink(path), 0);
	st = help_open(&o);
	assert_true(bstore_incarnation(st) > incarnation); /* old receipts vouch for nothing */
	for (uint64_t i = 0; i < 100; i++) {
		int r = help_check(st, i);

		assert_true(!r || r == -ENOENT);
		assert_int_equal(help_touch(st, i, NULL), r);
		lost += !!r;
	}
	assert_in_range(lost, 1, 5);
	assert_int_equal(help_put(st, 0, 100, NULL), 0);
	help_check_range(st, 0, 100);
	bstore_close(st);
	help_dir_remove(dir);
}

static void garbage_behind_a_lump_is_cut_off(void **state)
{
	char *dir = help_dir(), path[512];
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	uint64_t incarnation = bstore_incarnation(st), size;
	char junk[5000];
	int fd;

	assert_int_equal(help_put(st, 0, 100, NULL), 0);
	bstore_close(st);
	assert_true(help_find_lump(dir, 128, path));
	size = help_file_size(path);
	memset(junk, 'V', sizeof(junk));
	fd = open(path, O_WRONLY | O_APPEND);
	assert_int_equal(write(fd, junk, sizeof(junk)), sizeof(junk));
	close(fd);
	st = help_open(&o);
	assert_int_equal(help_file_size(path), size);
	assert_int_equal(bstore_incarnation(st), incarnation);
	help_check_range(st, 0, 100);
	bstore_close(st);
	help_dir_remove(dir);
}

static void flipped_bits_are_found_and_healed(void **state)
{
	char *dir = help_dir(), path[512];
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	unsigned int damaged = 0;

	assert_int_equal(help_put(st, 0, 2000, NULL), 0);
	/* One bit in the first record of each of some lumps: header, payload, wherever. */
	for (unsigned int n = 1; n < 400; n++) {
		char name[64];

		snprintf(name, sizeof(name), "lumps/%03x-00000001.lump", n);
		help_path(path, dir, name);
		if (access(path, F_OK))
			continue;
		damaged++;
		help_flip_bit(path, 128 * 8 + n * 7919 % ((128 + TEST_BLOCK) * 8));
	}
	assert_in_range(damaged, 100, 400);
	{
		unsigned int found = 0, bad = 0;

		for (uint16_t s = 0; s < NR_SHARDS; s++) {
			int r = bstore_scrub(st, s);

			assert_true(r >= 0);
			found += (unsigned int)r;
		}
		assert_int_equal(found, damaged);
		for (uint64_t i = 0; i < 2000; i++) {
			int r = help_check(st, i);

			assert_true(!r || r == -EIO);
			assert_int_equal(help_touch(st, i, NULL), r ? -ENOENT : 0);
			bad += !!r;
		}
		assert_int_equal(bad, damaged);
	}
	assert_int_equal(help_put(st, 0, 2000, NULL), 0); /* heals */
	help_check_range(st, 0, 2000);
	bstore_close(st);
	st = help_open(&o);
	help_check_range(st, 0, 2000);
	bstore_close(st);

	/* The index from lumps with damaged records: what is whole is there. */
	help_path(path, dir, "index/data.mdb");
	assert_int_equal(unlink(path), 0);
	st = help_open(&o);
	help_check_range(st, 0, 2000);
	bstore_close(st);
	help_dir_remove(dir);
}

/* What is found bad, and what was to rely on it, in one batch and in either order. */
static void bad_and_put_in_a_batch(void **state)
{
	char *dir = help_dir(), path[512];
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);

	for (uint64_t n = 0; n < 4; n++) {
		uint8_t data[TEST_BLOCK];
		struct bstore_op ops[2], bad;
		struct block_buf *buf;
		char name[64];
		struct fp fp;

		help_block(n, data, &fp);
		assert_int_equal(help_put(st, n, 1, NULL), 0);
		snprintf(name, sizeof(name), "lumps/%03x-00000001.lump", fp_shard(&fp));
		help_path(path, dir, name);
		help_flip_bit(path, 128 * 8 + 128 * 8 + 77);
		/* At a new epoch there is more to be done for the PUT than to look. */
		if (n & 2)
			assert_int_equal(help_epoch(st, STORE_EPOCH, 5 + n), 0);
		assert_int_equal(bstore_read(st, 0, &fp, &buf, &bad), -EIO);
		ops[n & 1] = bad;
		ops[!(n & 1)] = (struct bstore_op){ .kind = STORE_PUT, .fp = fp, .data = data,
						    .len = TEST_BLOCK, .raw_len = TEST_BLOCK };
		assert_int_equal(bstore_commit(st, ops, 2), 0);
		assert_int_equal(ops[!(n & 1)].r, 0);
		assert_false(ops[!(n & 1)].existed);
		assert_int_equal(help_check(st, n), 0);
		assert_int_equal(help_touch(st, n, NULL), 0);
		/* The place is that of the old record. */
		assert_int_equal(bstore_commit(st, &bad, 1), 0);
		assert_int_equal(help_touch(st, n, NULL), 0);
	}
	bstore_close(st);
	help_dir_remove(dir);
}

/* A name for block @n in the shard of @top and no other; the store does not verify. */
static struct bstore_op op_in_shard(enum bstore_op_kind kind, uint8_t top, uint64_t n,
				    uint8_t data[TEST_BLOCK])
{
	struct bstore_op op = { .kind = kind, .data = data, .len = TEST_BLOCK,
				.raw_len = TEST_BLOCK };

	help_block(n, data, &op.fp);
	op.fp.b[0] = top;
	op.fp.b[1] = 0;
	return op;
}

static int commit_in_shard(struct bstore *st, enum bstore_op_kind kind, uint8_t top, uint64_t n)
{
	uint8_t data[TEST_BLOCK];
	struct bstore_op op = op_in_shard(kind, top, n, data);

	op.epoch = kind == STORE_DELETE ? 5 : 0;
	return bstore_commit(st, &op, 1) ?: op.r;
}

static int check_in_shard(struct bstore *st, uint8_t top, uint64_t n)
{
	uint8_t data[TEST_BLOCK];
	struct bstore_op bad, op = op_in_shard(STORE_PUT, top, n, data);
	struct block_buf *buf;
	int r = bstore_read(st, 0, &op.fp, &buf, &bad);

	if (r)
		return r;
	assert_memory_equal(buf->data + buf->offset, data, TEST_BLOCK);
	block_buf_put(buf);
	return 0;
}

/* Two lumps of 200 blocks, in one of which three sectors cannot be read: in its header and first record,
 * in the 100th, and in the last. */
static struct bstore *open_unreadable(struct bstore_options *o, struct bad_disk *disk)
{
	static const uint64_t sectors[] = { 0, (128 + 100 * (128 + TEST_BLOCK)) / 4096 + 1,
					    (128 + 199 * (128 + TEST_BLOCK)) / 4096 + 1 };
	struct bstore *st = help_open(o);

	for (uint64_t n = 0; n < 200; n++) {
		assert_int_equal(commit_in_shard(st, STORE_PUT, 0x10, n), 0);
		assert_int_equal(commit_in_shard(st, STORE_PUT, 0x80, n), 0);
	}
	bstore_close(st);
	for (size_t i = 0; i < ARRAY_SIZE(sectors); i++) {
		snprintf(disk->unreadable[i].name, sizeof(disk->unreadable[i].name),
			 "040-00000001.lump");
		disk->unreadable[i].sector = sectors[i];
	}
	disk->nr_unreadable = ARRAY_SIZE(sectors);
	return help_open(o);
}

static bool is_unreadable(uint64_t n)
{
	return n == 0 || n == 100 || n == 199;
}

static void lose_index(const char *dir)
{
	char path[512];

	help_path(path, dir, "index/data.mdb");
	assert_int_equal(unlink(path), 0);
}

static void sectors_that_cannot_be_read_are_skipped(void **state)
{
	char *dir = help_dir(), path[512];
	struct bad_disk *disk = calloc(1, sizeof(*disk));
	struct bstore_options o = help_options(dir);
	struct bstore *st;
	uint64_t size;

	o.disk = &bad_disk_ops;
	o.disk_ctx = disk;
	st = open_unreadable(&o, disk);
	for (int rebuilt = 0; rebuilt < 2; rebuilt++) {
		for (uint64_t n = 0; n < 200; n++) {
			int lost = rebuilt ? -ENOENT : -EIO;

			assert_int_equal(check_in_shard(st, 0x10, n), is_unreadable(n) ? lost : 0);
			assert_int_equal(check_in_shard(st, 0x80, n), 0);
		}
		bstore_close(st);
		if (!rebuilt)
			lose_index(dir);
		st = help_open(&o);
	}
	/* Nothing is cut off, or written, where it may be read another day. */
	help_path(path, dir, "lumps/040-00000001.lump");
	size = help_file_size(path);
	assert_int_equal(commit_in_shard(st, STORE_PUT, 0x10, 1000), 0);
	assert_int_equal(help_file_size(path), size);
	assert_int_equal(check_in_shard(st, 0x10, 1000), 0);
	bstore_close(st);
	disk->nr_unreadable = 0;
	st = help_open(&o);
	assert_int_equal(check_in_shard(st, 0x10, 1000), 0);
	assert_int_equal(check_in_shard(st, 0x10, 199), 0); /* behind the end that the rebuild knew */
	bstore_close(st);
	free(disk);
	help_dir_remove(dir);
}

static void sectors_that_cannot_be_read_stop_no_compaction(void **state)
{
	char *dir = help_dir(), path[512];
	struct bad_disk *disk = calloc(1, sizeof(*disk));
	struct bstore_options o = help_options(dir);
	struct bstore *st;
	int r;

	o.disk = &bad_disk_ops;
	o.disk_ctx = disk;
	st = open_unreadable(&o, disk);
	for (uint64_t n = 0; n < 200; n++) {
		assert_int_equal(commit_in_shard(st, STORE_DELETE, 0x80, n), 0);
		if (!is_unreadable(n) && n % 10)
			assert_int_equal(commit_in_shard(st, STORE_DELETE, 0x10, n), 0);
	}
	while ((r = bstore_compact(st, 256 << 10)) > 0)
		;
	assert_int_equal(r, 0);
	help_path(path, dir, "lumps/200-00000001.lump");
	assert_int_equal(access(path, F_OK), -1);
	help_path(path, dir, "lumps/040-00000001.lump"); /* its three are named still */
	assert_int_equal(access(path, F_OK), 0);
	for (uint64_t n = 0; n < 200; n += 10)
		assert_int_equal(check_in_shard(st, 0x10, n), is_unreadable(n) ? -EIO : 0);
	bstore_close(st);
	free(disk);
	help_dir_remove(dir);
}

/* The index was rebuilt while they could not be read: nothing names what is in them, but it is not to go. */
static void what_no_rebuild_has_read_is_not_compacted_away(void **state)
{
	char *dir = help_dir();
	struct bad_disk *disk = calloc(1, sizeof(*disk));
	struct bstore_options o = help_options(dir);
	struct bstore *st;
	int r;

	o.disk = &bad_disk_ops;
	o.disk_ctx = disk;
	bstore_close(open_unreadable(&o, disk));
	lose_index(dir);
	st = help_open(&o);
	assert_int_equal(help_epoch(st, STORE_STAMP, 4), 0); /* what is there may be deleted */
	for (uint64_t n = 0; n < 200; n++)
		if (!is_unreadable(n))
			assert_int_equal(commit_in_shard(st, STORE_DELETE, 0x10, n), 0);
	while ((r = bstore_compact(st, 256 << 10)) > 0)
		;
	assert_int_equal(r, 0);
	bstore_close(st);
	/* Another day, and another rebuild. */
	disk->nr_unreadable = 0;
	lose_index(dir);
	st = help_open(&o);
	assert_int_equal(check_in_shard(st, 0x10, 100), 0);
	assert_int_equal(check_in_shard(st, 0x10, 199), 0);
	bstore_close(st);
	free(disk);
	help_dir_remove(dir);
}

/* Flips a bit of every row that the index has had of block @n, while nobody has it open. */
static void damage_row(const char *dir, uint8_t top, uint64_t n)
{
	uint8_t data[TEST_BLOCK], *file;
	struct bstore_op op = op_in_shard(STORE_PUT, top, n, data);
	unsigned int found = 0;
	char path[512];
	uint64_t size;
	FILE *f;

	help_path(path, dir, "index/data.mdb");
	size = help_file_size(path);
	file = malloc(size);
	f = fopen(path, "r");
	assert_true(file && f && fread(file, 1, size, f) == size);
	fclose(f);
	for (uint64_t at = 0; at + FP_SIZE < size; at++) {
		if (file[at] != op.fp.b[0] || memcmp(file + at, op.fp.b, FP_SIZE))
			continue;
		help_flip_bit(path, (at + FP_SIZE) * 8 + 3); /* the number of the lump */
		found++;
	}
	assert_true(found);
	free(file);
}

static void counts_survive_damaged_rows(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	struct bstore_stat stat;
	int r;

	for (uint64_t n = 0; n < 150; n++)
		assert_int_equal(commit_in_shard(st, STORE_PUT, 0x10, n), 0);
	bstore_close(st);
	for (uint64_t n = 0; n < 3; n++)
		damage_row(dir, 0x10, n);
	st = help_open(&o);
	/* One is put again, one is deleted, one is marked and then put again. */
	assert_int_equal(commit_in_shard(st, STORE_PUT, 0x10, 0), 0);
	assert_int_equal(commit_in_shard(st, STORE_DELETE, 0x10, 1), 0);
	assert_int_equal(bstore_scrub(st, 0x40), 1);
	assert_int_equal(commit_in_shard(st, STORE_PUT, 0x10, 2), 0);
	assert_int_equal(bstore_stat(st, &stat), 0);
	assert_int_equal(stat.blocks, 149);
	assert_int_equal(stat.raw_bytes, 149 * TEST_BLOCK);
	assert_int_equal(stat.stored_bytes, 149 * (128 + TEST_BLOCK));
	for (uint64_t n = 0; n < 150; n++)
		assert_int_equal(commit_in_shard(st, STORE_DROP, 0x10, n), n == 1 ? -ENOENT : 0);
	while ((r = bstore_compact(st, 256 << 10)) > 0)
		;
	assert_int_equal(r, 0);
	assert_int_equal(help_count_lumps(dir), 0);
	assert_int_equal(bstore_stat(st, &stat), 0);
	assert_int_equal(stat.blocks + stat.raw_bytes + stat.stored_bytes + stat.lump_bytes, 0);
	bstore_close(st);
	help_dir_remove(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rebuild_from_lumps),
		cmocka_unit_test(an_old_copy_of_the_index_is_not_believed),
		cmocka_unit_test(lost_lump),
		cmocka_unit_test(garbage_behind_a_lump_is_cut_off),
		cmocka_unit_test(flipped_bits_are_found_and_healed),
		cmocka_unit_test(bad_and_put_in_a_batch),
		cmocka_unit_test(sectors_that_cannot_be_read_are_skipped),
		cmocka_unit_test(sectors_that_cannot_be_read_stop_no_compaction),
		cmocka_unit_test(what_no_rebuild_has_read_is_not_compacted_away),
		cmocka_unit_test(counts_survive_damaged_rows),
	};

	return cmocka_run_group_tests_name("data_damage", tests, NULL, NULL);
}
