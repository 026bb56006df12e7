// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lumps: record and lump headers, and the scan of a whole lump that a recovery makes. The first
 * byte says what the rest is, and whether its CRCs are made right first, for no mutation would
 * get past them.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/bstore_priv.h"
#include "data/crc32c.h"
#include "data/record.h"
#include "fuzz.h"

#define MAX_LUMP (256 << 10)

static const struct uuid disk_uuid = { { 1, 2, 3 } };

static void check_record(const uint8_t *data, const struct record_place *place)
{
	uint8_t again[RECORD_HEADER_SIZE];
	struct record rec;
	int r = record_decode(&rec, place, data);

	FUZZ_CHECK(!r || r == -EBADMSG || r == -EPROTONOSUPPORT);
	if (r)
		return;
	FUZZ_CHECK(rec.stored_len && rec.stored_len <= rec.raw_len);
	FUZZ_CHECK(rec.raw_len <= RECORD_MAX_PAYLOAD && fp_shard(&rec.fp) == place->shard);
	record_encode(&rec, place, again);
	FUZZ_CHECK(!memcmp(again, data, sizeof(again)));
}

/* As record_encode() would have it. */
static void mend(uint8_t *p, size_t room, uint32_t offset)
{
	uint32_t len = get_le32(p + 16);
	uint8_t place[26];

	memcpy(p, "VDBK", 4);
	if (len <= room - RECORD_HEADER_SIZE)
		put_le32(p + 20, crc32c(0, p + RECORD_HEADER_SIZE, len));
	memcpy(place, disk_uuid.b, 16);
	put_le16(place + 16, 0);
	put_le32(place + 18, 1);
	put_le32(place + 22, offset);
	put_le32(p + 124, crc32c(crc32c(0, p, 124), place, sizeof(place)));
}

static void headers(const uint8_t *data, size_t size, bool mended)
{
	struct record_place place = { &disk_uuid, 0, 1, 128 };
	uint8_t in[RECORD_HEADER_SIZE] = { 0 }, again[LUMP_HEADER_SIZE];
	struct lump_header head;

	memcpy(in, data, size < sizeof(in) ? size : sizeof(in));
	if (mended)
		mend(in, sizeof(in), place.offset);
	check_record(in, &place);
	if (mended) {
		memcpy(in, "VDLP", 4);
		put_le32(in + 124, crc32c(0, in, 124));
	}
	if (lump_header_decode(&head, in))
		return;
	FUZZ_CHECK(head.shard < NR_SHARDS);
	lump_header_encode(&head, again); /* may differ in bytes that are kept for later */
}

struct seen {
	uint64_t end, size;
	size_t nr;
};

static int found(void *arg, struct lump *lump, uint32_t offset, const struct record *rec)
{
	struct seen *seen = arg;

	FUZZ_CHECK(offset >= seen->end && offset % RECORD_ALIGN == 0);
	seen->end = (uint64_t)offset + record_size(rec->stored_len);
	FUZZ_CHECK(seen->end <= seen->size);
	seen->nr++;
	return 0;
}

/* A store of one lump without a name, whose bytes are the input's; one for the whole run. */
static struct bstore *scan_store(struct lump **lump, int *fd)
{
	static struct bstore st;
	static struct lump *the_lump;
	char dir[] = "/tmp/vmdedup-fuzz-XXXXXX", path[64];

	if (!st.lumps) {
		FUZZ_CHECK(mkdtemp(dir));
		snprintf(path, sizeof(path), "%s/lumps", dir);
		FUZZ_CHECK(!mkdir(path, 0700));
		st.disk.ops = &disk_posix;
		st.uuid = disk_uuid;
		st.dirfd = open(dir, O_RDONLY | O_DIRECTORY);
		st.lumps = lumps_new(&st.disk, st.dirfd, &st.uuid, 4, NULL);
		FUZZ_CHECK(st.lumps && !lumps_create(st.lumps, 0, 1, 1, &the_lump));
		snprintf(path, sizeof(path), "%s/lumps/000-00000001.lump", dir);
		FUZZ_CHECK(!unlink(path));
		snprintf(path, sizeof(path), "%s/lumps", dir);
		FUZZ_CHECK(!rmdir(path) && !rmdir(dir));
	}
	*lump = the_lump;
	*fd = the_lump->fd;
	return &st;
}

static void scan(const uint8_t *data, size_t size, bool mended)
{
	static uint8_t bytes[MAX_LUMP];
	uint64_t end, damaged;
	struct seen seen = { 0 };
	struct bstore *st;
	struct lump *lump;
	int fd;

	size = size < sizeof(bytes) ? size : sizeof(bytes);
	memcpy(bytes, data, size);
	for (size_t at = LUMP_HEADER_SIZE; mended && at + RECORD_HEADER_SIZE <= size; at += 8)
		if (!memcmp(bytes + at, "VDBK", 4))
			mend(bytes + at, size - at, (uint32_t)at);
	st = scan_store(&lump, &fd);
	FUZZ_CHECK(!ftruncate(fd, 0) && pwrite(fd, bytes, size, 0) == (ssize_t)size);
	seen.size = size;
	if (bstore_scan_lump(st, lump, 0, size, found, &seen, &end, &damaged))
		return;
	FUZZ_CHECK(!seen.nr || end == seen.end);
	FUZZ_CHECK(end + damaged <= size + LUMP_HEADER_SIZE + end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] & 2)
		scan(data + 1, size - 1, data[0] & 1);
	else
		headers(data + 1, size - 1, data[0] & 1);
	return 0;
}

static size_t seed_record(uint8_t *out, uint32_t offset, uint32_t len)
{
	struct record_place place = { &disk_uuid, 0, 1, offset };
	struct record rec = { .raw_len = len, .stored_len = len, .epoch = 3, .sequence = 9 };

	rec.fp.b[3] = 7;
	memset(out + RECORD_HEADER_SIZE, 0x5a, record_size(len) - RECORD_HEADER_SIZE);
	rec.payload_crc = crc32c(0, out + RECORD_HEADER_SIZE, len);
	record_encode(&rec, &place, out);
	return record_size(len);
}

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	struct lump_header head = { .number = 1, .disk = disk_uuid };
	size_t len = 1;

	FUZZ_CHECK(room >= 4096);
	switch (n) {
	case 0:
	case 1:
		out[0] = (uint8_t)n;
		return 1 + seed_record(out + 1, 128, 16) - 16;
	case 2:
		out[0] = 0;
		lump_header_encode(&head, out + 1);
		return 1 + LUMP_HEADER_SIZE;
	case 3:
	case 4:
		out[0] = (uint8_t)(n - 1);
		lump_header_encode(&head, out + 1);
		for (len = LUMP_HEADER_SIZE; len < 2000;)
			len += seed_record(out + 1 + len, (uint32_t)len, 100 + (uint32_t)len % 64);
		return 1 + len;
	default:
		return 0;
	}
}
