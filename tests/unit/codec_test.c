// SPDX-License-Identifier: GPL-2.0-or-later
/* Layout, round trips, and decoders given bytes that nobody wrote. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include "codec.h"

#define ALIGNED __attribute__((aligned(8)))

static u64 rng = 1;

static u64 rnd(void)
{
	u64 z = rng += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static void rnd_bytes(void *p, size_t n)
{
	for (u8 *b = p; n--; b++)
		*b = rnd();
}

static void test_crc32c(void **state)
{
	/* RFC 3720, B.4: 32 bytes of zeros, of ones, and 0..31. */
	u8 b[32] = { 0 };

	(void)state;
	assert_int_equal(~dedup_crc32c(~0U, b, 32), 0x8a9136aa);
	memset(b, 0xff, 32);
	assert_int_equal(~dedup_crc32c(~0U, b, 32), 0x62a8ab43);
	for (int i = 0; i < 32; i++)
		b[i] = i;
	assert_int_equal(~dedup_crc32c(~0U, b, 32), 0x46dd794e);
	assert_int_equal(~dedup_crc32c(dedup_crc32c(~0U, b, 13), b + 13, 19), 0x46dd794e);
}

static void check_layout(const struct dedup_super *sb, u64 bytes)
{
	u64 end = sb->data_start + (sb->nr_slots << sb->block_shift);

	assert_true(sb->nr_slots >= DEDUP_MIN_SLOTS && sb->nr_slots <= DEDUP_MAX_SLOTS);
	assert_int_equal(sb->data_start % DEDUP_ALIGN_BYTES, 0);
	assert_true(sb->data_start >= DEDUP_ALIGN_BYTES);
	assert_true(end + DEDUP_ALIGN_BYTES <= bytes);
	assert_true(sb->journal_start + (u64)sb->journal_pages * 4096 <= sb->table_start);
	assert_true(sb->table_start + 2ULL * sb->table_pages * 4096 <= sb->dir_start);
	assert_true(sb->dir_start + 2ULL * sb->dir_pages * 4096 <= sb->data_start);
	assert_true(sb->append_pages <= sb->journal_pages / 8);
	assert_true(sb->root_pages <= sb->journal_pages / 8);
	assert_true(sb->root_pages <= 256);
}

static void test_layout(void **state)
{
	struct dedup_super sb;

	(void)state;
	for (u32 shift = 12; shift <= 20; shift++) {
		u64 min = dedup_min_bytes(shift);
		u64 waste;

		assert_int_equal(dedup_layout(&sb, min, shift), 0);
		check_layout(&sb, min);
		assert_int_equal(dedup_layout(&sb, min - 1, shift), -ENOSPC);
		for (u64 bytes = min; bytes < (1ULL << 50); bytes = bytes * 3 + 12345) {
			int r = dedup_layout(&sb, bytes, shift);

			if (r == -EFBIG) {
				assert_true(bytes >> shift > DEDUP_MAX_SLOTS);
				break;
			}
			assert_int_equal(r, 0);
			check_layout(&sb, bytes);
			/* What is left over is less than alignment and a few blocks. */
			waste = bytes - DEDUP_ALIGN_BYTES - sb.data_start - (sb.nr_slots << shift);
			assert_true(waste <= DEDUP_ALIGN_BYTES + (64ULL << shift));
		}
	}
	assert_int_equal(dedup_layout(&sb, 1ULL << 40, 11), -EINVAL);
	assert_int_equal(dedup_layout(&sb, 1ULL << 40, 21), -EINVAL);
	assert_int_equal(dedup_layout(&sb, 0, 18), -ENOSPC);
	assert_int_equal(dedup_layout_journal(&sb, 1ULL << 32, 18, 15), -EINVAL);
	assert_int_equal(dedup_layout_journal(&sb, 1ULL << 32, 18, 16385), -EINVAL);
	assert_int_equal(dedup_layout_journal(&sb, 1ULL << 32, 18, 16), 0);
	check_layout(&sb, 1ULL << 32);
	/* Its roots would not fit. */
	assert_int_equal(dedup_layout_journal(&sb, 1ULL << 44, 18, 16), -EINVAL);
	/* The bound on the memory for 1 TiB of cache is stated for this one. */
	assert_int_equal(dedup_layout(&sb, 1ULL << 40, 18), 0);
	assert_int_equal(sb.slot_bytes, 104);
	assert_true(sb.data_start < 1ULL << 30);
}

static void make_super(struct dedup_super *sb)
{
	assert_int_equal(dedup_layout(sb, 1ULL << 32, 18), 0);
	rnd_bytes(sb->cache_uuid, 16);
	rnd_bytes(sb->cluster_uuid, 16);
	rnd_bytes(sb->incarnation, 16);
	sb->incarnation_nr = 77;
	sb->generation = 99;
	sb->journal_seq = 5;
	strcpy(sb->label, "left disk");
}

static void test_super(void **state)
{
	struct dedup_super sb, got;
	struct dedup_disk_super *d;
	u8 buf[DEDUP_SUPER_BYTES] ALIGNED;

	(void)state;
	memset(&got, 0, sizeof(got));
	make_super(&sb);
	dedup_super_encode(&sb, buf);
	assert_int_equal(dedup_super_decode(&got, buf), 0);
	assert_memory_equal(&sb, &got, sizeof(sb));

	for (u32 bit = 0; bit < DEDUP_SUPER_BYTES * 8; bit++) {
		buf[bit / 8] ^= 1 << bit % 8;
		assert_int_not_equal(dedup_super_decode(&got, buf), 0);
		buf[bit / 8] ^= 1 << bit % 8;
	}
	memset(buf, 0, sizeof(buf));
	assert_int_equal(dedup_super_decode(&got, buf), -EINVAL);

	dedup_super_encode(&sb, buf);
	d = (void *)buf;
	d->version = cpu_to_le32(2);
	d->crc = 0;
	d->crc = cpu_to_le32(dedup_crc32c(~0U, buf, sizeof(buf)));
	assert_int_equal(dedup_super_decode(&got, buf), -EPROTONOSUPPORT);

	sb.features_incompat = 1ULL << 63;
	dedup_super_encode(&sb, buf);
	assert_int_equal(dedup_super_decode(&got, buf), -EPROTONOSUPPORT);
}

/* Good CRC, numbers that nobody would write: nothing that later code could trip over. */
static void test_super_impossible(void **state)
{
	struct dedup_super sb, got;
	u8 buf[DEDUP_SUPER_BYTES] ALIGNED;

	(void)state;
	make_super(&sb);
#define BAD(field, value)                                                     \
	do {                                                                  \
		struct dedup_super bad = sb;                                  \
		bad.field = value;                                            \
		dedup_super_encode(&bad, buf);                                \
		assert_int_equal(dedup_super_decode(&got, buf), -EUCLEAN);    \
	} while (0)
	BAD(block_shift, 0);
	BAD(block_shift, 63);
	BAD(nr_slots, 0);
	BAD(nr_slots, ~0ULL);
	BAD(nr_slots, sb.nr_slots + 100);
	BAD(journal_pages, 0);
	BAD(journal_pages, ~0U);
	BAD(append_pages, 0);
	BAD(append_pages, ~0U);
	BAD(table_pages, 1);
	BAD(dir_pages, 0);
	BAD(nr_volumes, ~0U);
	BAD(nr_volumes, 0);
	BAD(data_start, 0);
	BAD(data_start, sb.data_start + 1);
	BAD(table_start, ~0ULL);
	BAD(dir_start, 0);
	BAD(journal_start, 0);
	BAD(device_bytes, 0);
	BAD(incarnation_nr, 1U << 24);
	BAD(journal_seq, 0);
	BAD(label[DEDUP_LABEL_BYTES - 1], 'x');
#undef BAD
	for (int i = 0; i < 20000; i++) {
		struct dedup_disk_super *d = (void *)buf;

		dedup_super_encode(&sb, buf);
		for (u64 n = 1 + rnd() % 4; n; n--)
			buf[16 + rnd() % (DEDUP_SUPER_BYTES - 16)] = rnd();
		d->crc = 0;
		d->crc = cpu_to_le32(dedup_crc32c(~0U, buf, sizeof(buf)));
		if (!dedup_super_decode(&got, buf))
			assert_true(got.slots_per_page > 0 &&
				    got.data_start + (got.nr_slots << got.block_shift) <=
				    got.device_bytes);
	}
}

static void test_records(void **state)
{
	struct dedup_volume_rec v, gv;
	struct dedup_slot_rec s, gs;
	struct dedup_super sb;
	u8 buf[512] ALIGNED;

	(void)state;
	for (u32 shift = 12; shift <= 20; shift++) {
		assert_int_equal(dedup_layout(&sb, 1ULL << 34, shift), 0);
		assert_true(sb.slot_bytes >= sizeof(struct dedup_disk_slot));
		assert_true(sb.slots_per_page * sb.slot_bytes <= DEDUP_PAGE_PAYLOAD);

		memset(&s, 0, sizeof(s));
		s.state = DEDUP_SLOT_DIRTY;
		s.flags = DEDUP_OVERLAY_BASE_ZERO;
		s.seq = rnd();
		s.volume = rnd();
		s.block = rnd();
		s.cut = rnd();
		rnd_bytes(s.bitmap, (1U << (shift - 9)) / 8);
		assert_int_equal(dedup_slot_encode(&sb, buf, &s), sb.slot_bytes);
		assert_int_equal(dedup_slot_decode(&sb, &gs, buf), 0);
		assert_memory_equal(&s, &gs, sizeof(s));

		memset(&s, 0, sizeof(s));
		s.state = DEDUP_SLOT_CLEAN;
		s.seq = rnd();
		rnd_bytes(s.fp, sizeof(s.fp));
		assert_int_equal(dedup_slot_encode(&sb, buf, &s), 48);
		assert_int_equal(dedup_slot_decode(&sb, &gs, buf), 0);
		assert_memory_equal(&s, &gs, sizeof(s));

		buf[8] = 3;
		assert_int_equal(dedup_slot_decode(&sb, &gs, buf), -EUCLEAN);
		for (int i = 0; i < 2000; i++) {
			rnd_bytes(buf, sb.slot_bytes);
			buf[8] &= 3;
			dedup_slot_decode(&sb, &gs, buf);
		}
	}
	memset(&v, 0, sizeof(v));
	v.id = 7;
	v.cut_counter = 3;
	v.size = 1ULL << 40;
	rnd_bytes(v.root, sizeof(v.root));
	memset(v.name, 'n', sizeof(v.name) - 1);
	assert_int_equal(dedup_volume_encode(buf, &v), sizeof(struct dedup_disk_volume));
	assert_int_equal(dedup_volume_decode(&gv, buf), 0);
	assert_memory_equal(&v, &gv, sizeof(v));
	buf[offsetof(struct dedup_disk_volume, name) + 255] = 'x';
	assert_int_equal(dedup_volume_decode(&gv, buf), -EUCLEAN);
}

static void test_places(void **state)
{
	struct dedup_super sb;
	u32 page, offset, nr;
	u64 first;

	(void)state;
	for (u32 shift = 12; shift <= 20; shift += 4) {
		assert_int_equal(dedup_layout(&sb, dedup_min_bytes(shift) * 2, shift), 0);
		for (u64 i = 0; i < sb.nr_slots; i++) {
			dedup_record_at(&sb, DEDUP_CHANGE_SLOT, i, &page, &offset);
			assert_true(page < sb.table_pages && offset + sb.slot_bytes <= 4096);
			assert_int_equal(dedup_page_records(&sb, page, &first, &nr),
					 DEDUP_CHANGE_SLOT);
			assert_true(i >= first && i < first + nr);
			assert_int_equal(offset, 32 + (i - first) * sb.slot_bytes);
		}
		for (u64 i = 0; i < sb.nr_volumes; i++) {
			dedup_record_at(&sb, DEDUP_CHANGE_VOLUME, i, &page, &offset);
			assert_int_equal(dedup_page_records(&sb, page, &first, &nr),
					 DEDUP_CHANGE_VOLUME);
			assert_true(i >= first && i < first + nr && offset + 384 <= 4096);
		}
	}
}

static u32 build_append(const struct dedup_super *sb, u8 *buf, u32 nr, struct dedup_append *head)
{
	struct dedup_builder b;
	struct dedup_change c;
	u32 done;

	dedup_build_start(&b, buf, sb->append_pages, 42);
	for (done = 0; done < nr; done++) {
		bool room = dedup_build_has_room(sb, &b);

		memset(&c, 0, sizeof(c));
		c.kind = done % 7 ? DEDUP_CHANGE_SLOT : DEDUP_CHANGE_VOLUME;
		c.index = done;
		c.slot.state = done % 7 ? done % 3 : 0;
		if (!dedup_build_change(sb, &b, &c)) {
			assert_false(room);
			break;
		}
	}
	memset(head, 0, sizeof(*head));
	head->kind = DEDUP_APPEND_CHANGES;
	head->prev_crc = 9;
	head->checkpoint_seq = 40;
	head->replay_seq = 39;
	dedup_build_seal(sb, &b, head);
	return done;
}

static void test_append(void **state)
{
	struct dedup_append head, got;
	struct dedup_cursor cur;
	struct dedup_super sb;
	const void *rec;
	u32 bytes, nr, n;
	u64 index;
	u8 kind;
	u8 *buf;

	(void)state;
	make_super(&sb);
	buf = malloc(sb.append_pages * 4096);
	assert_non_null(buf);
	for (u32 want = 0; want < 4000; want = want * 2 + 1) {
		nr = build_append(&sb, buf, want, &head);
		assert_true(nr == want || nr >= sb.max_changes);
		assert_int_equal(dedup_append_head(&sb, buf, &got), 0);
		assert_memory_equal(&head, &got, sizeof(head));
		assert_int_equal(dedup_append_check(buf, &got), 0);
		dedup_cursor_start(&cur, buf, &got);
		for (n = 0; dedup_cursor_change(&sb, &cur, &kind, &index, &rec, &bytes) > 0; n++)
			assert_int_equal(index, n);
		assert_int_equal(n, nr);
		/* Any sector lost is seen. */
		for (u32 s = 0; s < head.pages * 8; s++) {
			u8 save[512];

			memcpy(save, buf + s * 512, 512);
			memset(buf + s * 512, 0xa5, 512);
			assert_true(dedup_append_head(&sb, buf, &got) ||
				    dedup_append_check(buf, &got));
			memcpy(buf + s * 512, save, 512);
		}
	}
	free(buf);
}

/* Items that make no sense under a good CRC end the walk; they never lead it outside. */
static void test_append_hostile(void **state)
{
	struct dedup_disk_entry entry;
	struct dedup_append head;
	struct dedup_cursor cur;
	struct dedup_super sb;
	const void *rec;
	u32 bytes;
	u64 index;
	u8 kind;
	u8 *buf;

	(void)state;
	make_super(&sb);
	for (int i = 0; i < 3000; i++) {
		u32 pages = 1 + rnd() % 3;

		/* Exactly as large as it says, so that ASan sees a step outside. */
		buf = malloc(pages * 4096);
		assert_non_null(buf);
		if (i % 2) {
			rnd_bytes(buf, pages * 4096);
		} else {
			for (u32 at = 0; at < pages * 4096; at += 8) {
				u64 v = rnd() % 3 ? rnd() % 3 | (rnd() % 50 * 8) << 16 : 0;

				memcpy(buf + at, &v, 8);
			}
		}
		memset(&head, 0, sizeof(head));
		head.pages = pages;
		head.nr_items = rnd() % 1000;
		dedup_cursor_start(&cur, buf, &head);
		while (dedup_cursor_change(&sb, &cur, &kind, &index, &rec, &bytes) > 0) {
			assert_true((const u8 *)rec >= buf &&
				    (const u8 *)rec + bytes <= buf + pages * 4096);
			assert_true(bytes <= dedup_record_bytes(&sb, kind));
			assert_true(index < (kind == DEDUP_CHANGE_VOLUME ? sb.nr_volumes :
									   sb.nr_slots));
		}
		dedup_cursor_start(&cur, buf, &head);
		while (dedup_cursor_entry(&cur, &entry) > 0)
			assert_true(le32_to_cpu(entry.place) <= 1);
		dedup_append_head(&sb, buf, &head);
		free(buf);
	}
}

static void test_pages(void **state)
{
	struct dedup_disk_entry e = { 0 };
	struct dedup_super sb;
	u8 buf[4096] ALIGNED;

	(void)state;
	make_super(&sb);
	rnd_bytes(buf, sizeof(buf));
	e.seq = cpu_to_le64(12);
	e.crc = cpu_to_le32(dedup_page_seal(&sb, buf, DEDUP_TABLE_MAGIC, 5, 12));
	assert_int_equal(dedup_page_check(&sb, buf, DEDUP_TABLE_MAGIC, 5, &e), 0);
	assert_int_equal(dedup_page_check(&sb, buf, DEDUP_DIR_MAGIC, 5, &e), -EUCLEAN);
	assert_int_equal(dedup_page_check(&sb, buf, DEDUP_TABLE_MAGIC, 6, &e), -EUCLEAN);
	/* An older page, whole in itself. */
	dedup_page_seal(&sb, buf, DEDUP_TABLE_MAGIC, 5, 11);
	assert_int_equal(dedup_page_check(&sb, buf, DEDUP_TABLE_MAGIC, 5, &e), -EUCLEAN);
	dedup_page_seal(&sb, buf, DEDUP_TABLE_MAGIC, 5, 12);
	for (u32 bit = 0; bit < 4096 * 8; bit++) {
		buf[bit / 8] ^= 1 << bit % 8;
		assert_int_equal(dedup_page_check(&sb, buf, DEDUP_TABLE_MAGIC, 5, &e), -EUCLEAN);
		buf[bit / 8] ^= 1 << bit % 8;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_crc32c),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_super),
		cmocka_unit_test(test_super_impossible),
		cmocka_unit_test(test_records),
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_append),
		cmocka_unit_test(test_append_hostile),
		cmocka_unit_test(test_pages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
