// SPDX-License-Identifier: GPL-2.0-or-later
/* The decoders of a cache disk, behind their checksums: the CRCs of the input are made good. */
#include <string.h>

#include "base/cleanup.h"
#include "codec.h"
#include "fuzz.h"

enum { SUPER, APPEND, RECORDS, NR_KINDS };

static void lay_out(struct dedup_super *sb)
{
	FUZZ_CHECK(!dedup_layout(sb, 1ULL << 32, 18));
	memset(sb->cache_uuid, 'u', sizeof(sb->cache_uuid));
	sb->journal_seq = 1;
}

static void fuzz_super(const uint8_t *data, size_t size)
{
	struct dedup_disk_super d = { 0 };
	struct dedup_super sb;
	struct dedup_disk_super again;

	memcpy(&d, data, MIN(size, sizeof(d)));
	d.crc = 0;
	d.crc = cpu_to_le32(dedup_crc32c(~0U, &d, sizeof(d)));
	if (dedup_super_decode(&sb, &d))
		return;
	FUZZ_CHECK(sb.slots_per_page && sb.slot_bytes >= sizeof(struct dedup_disk_slot));
	FUZZ_CHECK(sb.data_start + (sb.nr_slots << sb.block_shift) < sb.device_bytes);
	dedup_super_encode(&sb, &again);
	FUZZ_CHECK(!dedup_super_decode(&sb, &again));
}

static void fuzz_append(const uint8_t *data, size_t size)
{
	struct dedup_append head;
	struct dedup_disk_append *d;
	struct dedup_disk_entry entry;
	struct dedup_cursor c;
	struct dedup_super sb;
	uint32_t pages, bytes;
	const void *rec;
	uint8_t *buf;
	u64 index;
	u8 kind;

	lay_out(&sb);
	/* Exactly as many pages as the head says, when that is plausible. */
	pages = MAX(1, (size + DEDUP_PAGE_BYTES - 1) / DEDUP_PAGE_BYTES);
	buf = calloc(pages, DEDUP_PAGE_BYTES);
	FUZZ_CHECK(buf);
	memcpy(buf, data, size);
	d = (void *)buf;
	d->magic = cpu_to_le64(DEDUP_APPEND_MAGIC);
	memcpy(d->cache_uuid, sb.cache_uuid, sizeof(d->cache_uuid));
	d->pages = cpu_to_le32(pages);
	d->header_crc = 0;
	d->crc = 0;
	d->header_crc = cpu_to_le32(dedup_crc32c(~0U, d, sizeof(*d)));
	d->crc = cpu_to_le32(dedup_crc32c(~0U, d, (size_t)pages * DEDUP_PAGE_BYTES));
	if (!dedup_append_head(&sb, buf, &head)) {
		FUZZ_CHECK(!dedup_append_check(buf, &head));
		dedup_cursor_start(&c, buf, &head);
		while (dedup_cursor_change(&sb, &c, &kind, &index, &rec, &bytes) > 0) {
			FUZZ_CHECK((const uint8_t *)rec + bytes <= buf + pages * DEDUP_PAGE_BYTES);
			FUZZ_CHECK(bytes <= dedup_record_bytes(&sb, kind));
		}
		dedup_cursor_start(&c, buf, &head);
		while (dedup_cursor_entry(&c, &entry) > 0)
			FUZZ_CHECK(le32_to_cpu(entry.place) < 2);
	}
	free(buf);
}

static void fuzz_records(const uint8_t *data, size_t size)
{
	struct dedup_volume_rec volume;
	struct dedup_slot_rec slot;
	struct dedup_super sb;
	uint8_t buf[sizeof(struct dedup_disk_volume)] __attribute__((aligned(8))) = { 0 };

	lay_out(&sb);
	memcpy(buf, data, MIN(size, sizeof(buf)));
	if (!dedup_volume_decode(&volume, buf))
		FUZZ_CHECK(memchr(volume.name, 0, sizeof(volume.name)));
	if (!dedup_slot_decode(&sb, &slot, buf))
		FUZZ_CHECK(slot.state <= DEDUP_SLOT_DIRTY);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size || size > 40000)
		return 0;
	switch (*data % NR_KINDS) {
	case SUPER:
		fuzz_super(data + 1, size - 1);
		break;
	case APPEND:
		fuzz_append(data + 1, size - 1);
		break;
	default:
		fuzz_records(data + 1, size - 1);
	}
	return 0;
}

static size_t seed_append(const struct dedup_super *sb, uint8_t *out)
{
	struct dedup_append head = { .kind = DEDUP_APPEND_CHANGES, .checkpoint_seq = 1,
				     .replay_seq = 1 };
	struct dedup_change change;
	struct dedup_builder b;
	uint8_t *buf = malloc(3 * DEDUP_PAGE_BYTES);

	FUZZ_CHECK(buf);
	dedup_build_start(&b, buf, 3, 2);
	for (unsigned int i = 0; i < 60; i++) {
		memset(&change, 0, sizeof(change));
		change.kind = i % 9 ? DEDUP_CHANGE_SLOT : DEDUP_CHANGE_VOLUME;
		change.index = i;
		if (i % 9)
			change.slot.state = i % 3;
		FUZZ_CHECK(dedup_build_change(sb, &b, &change));
	}
	dedup_build_seal(sb, &b, &head);
	memcpy(out, buf, (size_t)head.pages * DEDUP_PAGE_BYTES);
	free(buf);
	return (size_t)head.pages * DEDUP_PAGE_BYTES;
}

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	struct dedup_disk_super d;
	struct dedup_super sb;

	FUZZ_CHECK(room > 3 * DEDUP_PAGE_BYTES);
	lay_out(&sb);
	out[0] = n;
	switch (n) {
	case SUPER:
		dedup_super_encode(&sb, &d);
		memcpy(out + 1, &d, sizeof(d));
		return 1 + DEDUP_SUPER_BYTES;
	case APPEND:
		return 1 + seed_append(&sb, out + 1);
	case RECORDS:
		memset(out + 1, 1, sizeof(struct dedup_disk_volume));
		return 1 + sizeof(struct dedup_disk_volume);
	default:
		return 0;
	}
}
