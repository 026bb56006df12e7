// SPDX-License-Identifier: GPL-2.0-or-later
/* The store on a real LMDB and real files. (Disks that are damaged: data_damage_test.c.) */
#include "data_help.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "data/crc32c.h"

/* The instruction takes three lanes of 4 KiB at a time, and what is left as it is. */
static void crc_by_lanes(void **state)
{
	static const size_t lens[] = { 0, 1, 8, 4095, 12287, 12288, 12289, 24576, 24583,
				       65536, 100000 };
	static uint8_t data[100007];

	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * i * 2654435761U >> 13);
	for (size_t i = 0; i < ARRAY_SIZE(lens); i++)
		for (size_t at = 0; at < 8; at += 7)
			assert_int_equal(crc32c((uint32_t)i, data + at, lens[i]),
					 crc32c_portable((uint32_t)i, data + at, lens[i]));
}

static void put_read_reopen(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	struct uuid disk = *bstore_disk(st);
	uint64_t incarnation = bstore_incarnation(st);
	struct bstore_stat stat;

	assert_int_equal(help_check(st, 0), -ENOENT);
	assert_int_equal(help_put(st, 0, 300, NULL), 0);
	assert_int_equal(help_put(st, 200, 200, NULL), 0);
	help_check_range(st, 0, 400);
	assert_int_equal(bstore_stat(st, &stat), 0);
	assert_int_equal(stat.blocks, 400);
	assert_int_equal(stat.raw_bytes, 400 * TEST_BLOCK);
	assert_int_equal(stat.put_dups, 100);
	assert_int_equal(stat.stored_bytes, 400 * (TEST_BLOCK + 128));
	assert_int_equal(stat.lump_bytes, stat.stored_bytes + 128 * help_count_lumps(dir));
	bstore_close(st);

	st = help_open(&o);
	assert_true(uuid_equal(&disk, bstore_disk(st)));
	assert_int_equal(bstore_incarnation(st), incarnation);
	help_check_range(st, 0, 400);
	assert_int_equal(bstore_stat(st, &stat), 0);
	assert_int_equal(stat.blocks, 400);
	bstore_close(st);
	help_dir_remove(dir);
}

static void same_block_twice_in_a_batch(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	uint8_t data[TEST_BLOCK];
	struct bstore_op ops[3];
	struct bstore_stat stat;

	for (size_t i = 0; i < 3; i++) {
		ops[i] = (struct bstore_op){ .kind = i == 1 ? STORE_TOUCH : STORE_PUT, .data = data,
					    .len = TEST_BLOCK, .raw_len = TEST_BLOCK };
		help_block(7, data, &ops[i].fp);
	}
	assert_int_equal(bstore_commit(st, ops, 3), 0);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(ops[i].r, 0);
	assert_int_equal(bstore_stat(st, &stat), 0);
	assert_int_equal(stat.blocks, 1);
	assert_int_equal(stat.lump_bytes, 128 + 128 + TEST_BLOCK);
	bstore_close(st);
	help_dir_remove(dir);
}

static void domains_share_nothing(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	uint8_t data[TEST_BLOCK];
	struct bstore_op op = { .kind = STORE_PUT, .domain = 3, .data = data, .len = TEST_BLOCK,
			       .raw_len = TEST_BLOCK };
	struct block_buf *buf;
	struct bstore_op bad;

	help_block(1, data, &op.fp);
	assert_int_equal(bstore_commit(st, &op, 1), 0);
	assert_int_equal(help_check(st, 1), -ENOENT);
	assert_int_equal(help_touch(st, 1, NULL), -ENOENT);
	assert_int_equal(bstore_read(st, 3, &op.fp, &buf, &bad), 0);
	block_buf_put(buf);
	bstore_close(st);
	help_dir_remove(dir);
}

static void epochs_guard_deletion(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	struct bstore_op both[2];
	uint8_t data[TEST_BLOCK];
	uint64_t epoch;

	assert_int_equal(help_epoch(st, STORE_EPOCH, 5), 0);
	assert_int_equal(help_put(st, 0, 10, NULL), 0);
	assert_int_equal(help_delete(st, 0, 5), -EBUSY);
	assert_int_equal(help_epoch(st, STORE_EPOCH, 6), 0);
	assert_int_equal(help_epoch(st, STORE_EPOCH, 4), 0); /* only goes up */
	assert_int_equal(help_touch(st, 1, &epoch), 0);
	assert_int_equal(epoch, 6);
	bstore_close(st);
	st = help_open(&o); /* durably */
	assert_int_equal(help_delete(st, 1, 6), -EBUSY);
	assert_int_equal(help_delete(st, 2, 6), 0);
	assert_int_equal(help_delete(st, 2, 6), -ENOENT);
	assert_int_equal(help_check(st, 2), -ENOENT);

	/* A TOUCH in one batch with the DELETE of a list newer than the server's epoch. */
	help_block(3, data, &both[0].fp);
	both[0] = (struct bstore_op){ .kind = STORE_TOUCH, .fp = both[0].fp };
	both[1] = (struct bstore_op){ .kind = STORE_DELETE, .fp = both[0].fp, .epoch = 9 };
	assert_int_equal(bstore_commit(st, both, 2), 0);
	assert_int_equal(both[0].r, 0);
	assert_int_equal(both[0].epoch, 9);
	assert_int_equal(both[1].r, -EBUSY);
	assert_int_equal(help_check(st, 3), 0);

	/* What has moved away goes whatever its stamp is, and leaves the epoch as it was. */
	both[1] = (struct bstore_op){ .kind = STORE_DROP, .fp = both[0].fp };
	assert_int_equal(bstore_commit(st, both + 1, 1), 0);
	assert_int_equal(both[1].r, 0);
	assert_int_equal(help_check(st, 3), -ENOENT);
	assert_int_equal(help_put(st, 3, 1, NULL), 0);
	assert_int_equal(help_touch(st, 3, &epoch), 0);
	assert_int_equal(epoch, 9);
	bstore_close(st);
	help_dir_remove(dir);
}

static void full_disk_is_an_answer(void **state)
{
	char *dir = help_dir();
	struct bad_disk *disk = calloc(1, sizeof(*disk));
	struct bstore_options o = help_options(dir);
	struct bstore *st;
	int r[400];
	size_t stored = 0, refused = 0;
	struct bstore_stat stat;

	o.capacity = 4 << 20;
	st = help_open(&o);
	assert_int_equal(help_put(st, 0, 400, r), 0);
	for (size_t i = 0; i < 400; i++) {
		if (!r[i])
			assert_int_equal(help_check(st, i), 0);
		else
			assert_int_equal(r[i], -ENOSPC);
		stored += !r[i];
		refused += !!r[i];
	}
	assert_true(stored > 100 && refused > 100);
	assert_int_equal(bstore_stat(st, &stat), 0);
	assert_true(stat.lump_bytes + stat.index_bytes <= o.capacity);
	/* What is there can be touched, read, and put again. */
	assert_int_equal(help_put(st, 0, 400, r), 0);
	for (size_t i = 0; i < 400; i++)
		if (!r[i])
			assert_int_equal(help_touch(st, i, NULL), 0);
	bstore_close(st);

	/* The reserve of the disk counts, not only our own bound. */
	o.capacity = 0;
	o.reserve = 1 << 30;
	o.disk = &bad_disk_ops;
	o.disk_ctx = disk;
	st = help_open(&o);
	disk->free = (1 << 30) + 100 * TEST_BLOCK;
	assert_int_equal(help_put(st, 1000, 200, r), 0);
	stored = 0;
	for (size_t i = 0; i < 200; i++)
		stored += !r[i];
	assert_in_range(stored, 10, 100);
	bstore_close(st);
	free(disk);
	help_dir_remove(dir);
}

/* Kind @kind of blocks 0 to @count - 1, as one batch; how many were refused for want of room. */
static size_t commit_many(struct bstore *st, enum bstore_op_kind kind, size_t count, uint64_t epoch)
{
	struct bstore_op *ops = calloc(count, sizeof(*ops));
	uint8_t data[TEST_BLOCK];
	size_t refused = 0;

	for (size_t i = 0; i < count; i++) {
		ops[i] = (struct bstore_op){ .kind = kind, .epoch = epoch };
		help_block(i, data, &ops[i].fp);
	}
	assert_int_equal(bstore_commit(st, ops, count), 0);
	for (size_t i = 0; i < count; i++) {
		assert_true(!ops[i].r || ops[i].r == -ENOSPC || ops[i].r == -ENOENT);
		refused += ops[i].r == -ENOSPC;
	}
	free(ops);
	return refused;
}

/* Stamps and deletions copy pages of the index: so many at once as there is room for. */
static void little_room_for_the_index(void **state)
{
	char *dir = help_dir();
	struct bad_disk *disk = calloc(1, sizeof(*disk));
	struct bstore_options o = help_options(dir);
	struct bstore *st;
	struct bstore_stat before, after;
	uint64_t epoch;

	o.disk = &bad_disk_ops;
	o.disk_ctx = disk;
	st = help_open(&o);
	assert_int_equal(help_put(st, 0, 1000, NULL), 0);
	assert_int_equal(help_epoch(st, STORE_EPOCH, 2), 0);

	disk->free = 5 << 20; /* half of it: 320 at once */
	assert_int_equal(bstore_stat(st, &before), 0);
	assert_int_equal(commit_many(st, STORE_TOUCH, 1000, 0), 0);
	assert_int_equal(bstore_stat(st, &after), 0);
	assert_int_equal(after.commits - before.commits, 4);
	assert_int_equal(help_touch(st, 999, &epoch), 0);
	assert_int_equal(epoch, 2);
	/* The shards of a map, however many: once started, what it says holds for all or none. */
	before = after;
	assert_int_equal(help_epoch(st, STORE_STAMP, 3), 0);
	assert_int_equal(bstore_stat(st, &after), 0);
	assert_int_equal(after.commits - before.commits, 1);

	disk->free = 3 << 20;
	assert_int_equal(commit_many(st, STORE_TOUCH, 1000, 0), 1000);
	assert_int_equal(help_put(st, 0, 1, NULL), -ENOSPC);
	assert_int_equal(bstore_failed(st), 0);
	assert_int_equal(commit_many(st, STORE_DELETE, 500, 4), 0);
	disk->free = 100 << 10;
	assert_int_equal(commit_many(st, STORE_DELETE, 600, 4), 600);
	assert_int_equal(bstore_failed(st), 0);
	disk->free = 0;
	assert_int_equal(commit_many(st, STORE_DELETE, 600, 4), 0);
	assert_int_equal(bstore_stat(st, &after), 0);
	assert_int_equal(after.blocks, 400);
	bstore_close(st);
	free(disk);
	help_dir_remove(dir);
}

static void compaction_gives_space_back(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	struct bstore_stat before, after;
	int r;

	/* Blocks of two shards only, so that lumps get full. */
	size_t nr = 0;
	static uint64_t of[1200];

	for (uint64_t n = 0; nr < ARRAY_SIZE(of); n++) {
		uint8_t data[TEST_BLOCK];
		struct bstore_op op = { .kind = STORE_PUT, .data = data, .len = TEST_BLOCK,
				       .raw_len = TEST_BLOCK, .domain = 0 };
		static const uint8_t shard_byte[2] = { 0x10, 0x80 };

		help_block(n, data, &op.fp);
		/* The store does not verify: give the block another name. */
		op.fp.b[0] = shard_byte[n % 2];
		op.fp.b[1] = 0;
		assert_int_equal(bstore_commit(st, &op, 1), 0);
		of[nr++] = n;
	}
	assert_int_equal(bstore_stat(st, &before), 0);
	assert_in_range(help_count_lumps(dir), 4, 8);
	for (size_t i = 0; i < nr; i++) {
		uint8_t data[TEST_BLOCK];
		struct bstore_op op = { .kind = STORE_DELETE, .epoch = 5 };

		if (i % 4 == 0 && i > 8)
			continue;
		help_block(of[i], data, &op.fp);
		op.fp.b[0] = of[i] % 2 ? 0x80 : 0x10;
		op.fp.b[1] = 0;
		assert_int_equal(bstore_commit(st, &op, 1), 0);
		assert_int_equal(op.r, 0);
	}
	while ((r = bstore_compact(st, 256 << 10)) > 0)
		;
	assert_int_equal(r, 0);
	for (int again = 0; again < 2; again++) {
		assert_int_equal(bstore_stat(st, &after), 0);
		assert_true(after.lump_bytes < before.lump_bytes / 2);
		assert_int_equal(after.blocks, nr / 4 - 3);
		for (size_t i = 0; i < nr; i++) {
			uint8_t data[TEST_BLOCK];
			struct block_buf *buf;
			struct bstore_op bad;
			struct fp fp;

			help_block(of[i], data, &fp);
			fp.b[0] = of[i] % 2 ? 0x80 : 0x10;
			fp.b[1] = 0;
			r = bstore_read(st, 0, &fp, &buf, &bad);
			assert_int_equal(r, i % 4 == 0 && i > 8 ? 0 : -ENOENT);
			if (!r) {
				assert_memory_equal(buf->data + buf->offset, data, TEST_BLOCK);
				block_buf_put(buf);
			}
		}
		bstore_close(st);
		st = help_open(&o);
	}
	bstore_close(st);
	help_dir_remove(dir);
}

static void a_small_map_and_few_descriptors(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st;

	o.map_size = 64 << 10;
	o.max_fds = 4;
	st = help_open(&o);
	for (uint64_t i = 0; i < 10; i++)
		assert_int_equal(help_put(st, i * 300, 300, NULL), 0);
	help_check_range(st, 0, 3000);
	bstore_close(st);
	st = help_open(&o);
	help_check_range(st, 0, 3000);
	bstore_close(st);
	help_dir_remove(dir);
}

static void listing_goes_through_a_shard(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	struct bstore_listed out[3];
	size_t total = 0;

	assert_int_equal(help_epoch(st, STORE_EPOCH, 2), 0);
	assert_int_equal(help_put(st, 0, 3000, NULL), 0);
	for (uint16_t s = 0; s < NR_SHARDS; s++) {
		struct fp after = { 0 };
		bool more = true, first = true;

		while (more) {
			int n = bstore_list(st, s, 0, first ? NULL : &after, out, 3, &more);

			assert_in_range(n, 0, 3);
			for (int i = 0; i < n; i++) {
				assert_int_equal(fp_shard(&out[i].fp), s);
				assert_true(memcmp(out[i].fp.b, after.b, FP_SIZE) > 0);
				assert_int_equal(out[i].epoch, 2);
				after = out[i].fp;
			}
			total += (size_t)n;
			first = false;
		}
	}
	assert_int_equal(total, 3000);
	bstore_close(st);
	help_dir_remove(dir);
}

static void refuse(const char *dir, int code, const char *words)
{
	struct bstore_options o = help_options(dir);
	struct error err = { 0 };
	struct bstore *st = bstore_open(&o, &err);

	assert_null(st);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, words))
		fail_msg("'%s' has no '%s'", err.text, words);
}

static void write_text(const char *dir, const char *name, const char *text)
{
	char path[512];
	FILE *f;

	help_path(path, dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void folders_that_are_refused(void **state)
{
	char *dir = help_dir(), path[512], *other = help_dir(), to[512];
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);

	refuse(dir, -EBUSY, "another data server");
	assert_int_equal(help_put(st, 0, 1, NULL), 0);
	bstore_close(st);

	help_path(path, dir, "disk.uuid");
	help_path(to, dir, "kept");
	assert_int_equal(rename(path, to), 0);
	refuse(dir, -EUCLEAN, "no disk.uuid");
	write_text(dir, "disk.uuid", "format 2\nsomething new\n");
	refuse(dir, -EPROTONOSUPPORT, "newer");
	write_text(dir, "disk.uuid", "format 1\nuuid nonsense\n");
	refuse(dir, -EUCLEAN, "damaged");
	assert_int_equal(rename(to, path), 0);
	st = help_open(&o);
	bstore_close(st);

	/* Another disk's lump among ours. */
	o.dir = other;
	st = help_open(&o);
	bstore_close(st);
	assert_true(help_find_lump(dir, 128, path));
	snprintf(to, sizeof(to), "%s%s", other, path + strlen(dir));
	help_copy(path, to);
	refuse(other, -EUCLEAN, "of disk");
	help_dir_remove(dir);
	help_dir_remove(other);
}

static void a_disk_belongs_to_one_cluster(void **state)
{
	char *dir = help_dir();
	struct bstore_options o = help_options(dir);
	struct bstore *st = help_open(&o);
	struct uuid ours = { { 1 } }, other = { { 2 } };
	struct error err = { 0 };

	assert_true(uuid_is_null(bstore_cluster(st)));
	assert_int_equal(bstore_bind_cluster(st, &ours, &err), 0);
	bstore_close(st);
	st = help_open(&o);
	assert_true(uuid_equal(bstore_cluster(st), &ours));
	assert_int_equal(bstore_bind_cluster(st, &ours, &err), 0);
	assert_int_equal(bstore_bind_cluster(st, &other, &err), -EXDEV);
	bstore_close(st);
	help_dir_remove(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(crc_by_lanes),
		cmocka_unit_test(put_read_reopen),
		cmocka_unit_test(same_block_twice_in_a_batch),
		cmocka_unit_test(domains_share_nothing),
		cmocka_unit_test(epochs_guard_deletion),
		cmocka_unit_test(full_disk_is_an_answer),
		cmocka_unit_test(little_room_for_the_index),
		cmocka_unit_test(compaction_gives_space_back),
		cmocka_unit_test(a_small_map_and_few_descriptors),
		cmocka_unit_test(listing_goes_through_a_shard),
		cmocka_unit_test(folders_that_are_refused),
		cmocka_unit_test(a_disk_belongs_to_one_cluster),
	};

	return cmocka_run_group_tests_name("data_store", tests, NULL, NULL);
}
