// SPDX-License-Identifier: GPL-2.0-only
/* The codec inside a kernel: its checksums, byte order and alignment; tests/unit has the rest. */
#include <kunit/test.h>
#include <linux/module.h>
#include <linux/random.h>
#include "codec.h"

struct codec_case {
	const char *name;
	u64 bytes;
	u32 block_shift;
	int layout;
};

static const struct codec_case codec_cases[] = {
	{ "4 KiB blocks", 1ULL << 30, 12, 0 },
	{ "64 KiB blocks", 1ULL << 32, 16, 0 },
	{ "256 KiB blocks", 1ULL << 40, 18, 0 },
	{ "1 MiB blocks", 1ULL << 44, 20, 0 },
	{ "too small", 1ULL << 22, 18, -ENOSPC },
	{ "too many slots", 1ULL << 44, 12, -EFBIG },
	{ "blocks too small", 1ULL << 40, 11, -EINVAL },
	{ "blocks too large", 1ULL << 40, 21, -EINVAL },
};

static void case_name(const struct codec_case *c, char *name)
{
	strscpy(name, c->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(codec, codec_cases, case_name);

static void test_super(struct kunit *test)
{
	const struct codec_case *c = test->param_value;
	struct dedup_super *sb = kunit_kzalloc(test, 2 * sizeof(*sb), GFP_KERNEL);
	u8 *buf = kunit_kzalloc(test, DEDUP_SUPER_BYTES, GFP_KERNEL);
	u32 i;

	KUNIT_ASSERT_NOT_NULL(test, sb);
	KUNIT_ASSERT_NOT_NULL(test, buf);
	KUNIT_ASSERT_EQ(test, dedup_layout(sb, c->bytes, c->block_shift), c->layout);
	if (c->layout)
		return;
	get_random_bytes(sb->cache_uuid, sizeof(sb->cache_uuid));
	sb->journal_seq = 1;
	dedup_super_encode(sb, buf);
	KUNIT_ASSERT_EQ(test, dedup_super_decode(sb + 1, buf), 0);
	KUNIT_EXPECT_EQ(test, memcmp(sb, sb + 1, sizeof(*sb)), 0);
	for (i = 0; i < DEDUP_SUPER_BYTES; i++) {
		buf[i] ^= 0x10;
		KUNIT_EXPECT_NE(test, dedup_super_decode(sb + 1, buf), 0);
		buf[i] ^= 0x10;
	}
}

static void test_slot(struct kunit *test)
{
	const struct codec_case *c = test->param_value;
	struct dedup_slot_rec *rec = kunit_kzalloc(test, 2 * sizeof(*rec), GFP_KERNEL);
	struct dedup_super *sb = kunit_kzalloc(test, sizeof(*sb), GFP_KERNEL);
	u8 *buf;

	KUNIT_ASSERT_NOT_NULL(test, rec);
	KUNIT_ASSERT_NOT_NULL(test, sb);
	if (dedup_layout(sb, c->bytes, c->block_shift))
		return;
	/* Exactly as large as a record, so that KASAN sees a step outside. */
	buf = kunit_kzalloc(test, sb->slot_bytes, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, buf);
	rec->state = DEDUP_SLOT_DIRTY;
	rec->seq = get_random_u64();
	rec->volume = get_random_u64();
	rec->block = get_random_u64();
	rec->cut = get_random_u64();
	get_random_bytes(rec->bitmap, sb->bitmap_bytes);
	KUNIT_EXPECT_EQ(test, dedup_slot_encode(sb, buf, rec), sb->slot_bytes);
	KUNIT_EXPECT_EQ(test, dedup_slot_decode(sb, rec + 1, buf), 0);
	KUNIT_EXPECT_EQ(test, memcmp(rec, rec + 1, sizeof(*rec)), 0);
	buf[offsetof(struct dedup_disk_slot, state)] = 9;
	KUNIT_EXPECT_EQ(test, dedup_slot_decode(sb, rec + 1, buf), -EUCLEAN);
}

/* Bytes that nobody wrote, as large as they claim to be. */
static void test_hostile(struct kunit *test)
{
	const struct codec_case *c = test->param_value;
	struct dedup_super *sb = kunit_kzalloc(test, sizeof(*sb), GFP_KERNEL);
	struct dedup_append head = { .nr_items = 1000 };
	struct dedup_cursor cursor;
	const void *rec;
	unsigned int i;
	u32 bytes;
	u64 index;
	u8 kind;
	u8 *buf;

	KUNIT_ASSERT_NOT_NULL(test, sb);
	if (dedup_layout(sb, c->bytes, c->block_shift))
		return;
	for (i = 0; i < 50; i++) {
		head.pages = 1 + i % 3;
		buf = kmalloc(head.pages * DEDUP_PAGE_BYTES, GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, buf);
		get_random_bytes(buf, head.pages * DEDUP_PAGE_BYTES);
		buf[sizeof(struct dedup_disk_append)] = DEDUP_CHANGE_SLOT;
		dedup_cursor_start(&cursor, buf, &head);
		while (dedup_cursor_change(sb, &cursor, &kind, &index, &rec, &bytes) > 0)
			KUNIT_EXPECT_LE(test, bytes, dedup_record_bytes(sb, kind));
		KUNIT_EXPECT_EQ(test, dedup_super_decode(sb, buf), -EINVAL);
		kfree(buf);
		KUNIT_ASSERT_EQ(test, dedup_layout(sb, c->bytes, c->block_shift), 0);
	}
}

static struct kunit_case codec_tests[] = {
	KUNIT_CASE_PARAM(test_super, codec_gen_params),
	KUNIT_CASE_PARAM(test_slot, codec_gen_params),
	KUNIT_CASE_PARAM(test_hostile, codec_gen_params),
	{}
};

static struct kunit_suite codec_suite = {
	.name = "dedup-codec",
	.test_cases = codec_tests,
};

kunit_test_suite(codec_suite);
