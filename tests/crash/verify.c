// SPDX-License-Identifier: GPL-2.0-or-later
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include "cache/cache.h"
#include "ledger.h"
#include "verify.h"

/* ---- images and their versions ---- */

static uint8_t *read_file(const char *path, size_t *size)
{
	FILE *f = fopen(path, "r");
	uint8_t *data = NULL;
	struct stat st;

	if (!f)
		return NULL;
	if (!fstat(fileno(f), &st)) {
		*size = st.st_size;
		data = malloc(*size ? *size : 1);
		if (data && *size && fread(data, *size, 1, f) != 1) {
			free(data);
			data = NULL;
		}
	}
	fclose(f);
	return data;
}

static int add_version(struct load_volume *v, uint64_t version, const uint8_t *data, size_t size,
		       uint32_t block_bytes)
{
	for (size_t at = 0; at + 8 + block_bytes <= size; at += 8 + block_bytes) {
		struct version_block *b = malloc(sizeof(*b));
		uint64_t block;

		memcpy(&block, data + at, sizeof(block));
		if (!b || block >= v->nr_blocks)
			return -1;
		*b = (struct version_block){ version, data + at + 8, v->versions[block] };
		v->versions[block] = b;
	}
	return 0;
}

int load_volume_init(struct load_volume *v, const char *dir, const char *name, uint64_t seed,
		     uint64_t count, uint64_t every, bool zeros, uint32_t block_bytes)
{
	char path[4096];
	uint8_t *data;
	size_t size;

	memset(v, 0, sizeof(*v));
	v->name = name;
	v->every = every;
	snprintf(path, sizeof(path), "%s/%s.base", dir, name);
	v->base = read_file(path, &size);
	if (!v->base)
		return -1;
	v->nr_blocks = size / block_bytes;
	v->versions = calloc(v->nr_blocks, sizeof(*v->versions));
	v->overlays = calloc(v->nr_blocks, sizeof(*v->overlays));
	if (!v->versions || !v->overlays ||
	    stamps_init(&v->stamps, seed, count, size / STAMP_SECTOR, zeros))
		return -1;
	for (uint64_t n = 2;; n++) {
		snprintf(path, sizeof(path), "%s/%s.%" PRIu64, dir, name, n);
		data = read_file(path, &size);
		if (!data)
			break;
		/* The last may have been cut short: no record names it then. */
		if (add_version(v, n, data, size, block_bytes))
			return -1;
	}
	return 0;
}

static const uint8_t *version_data(const struct load_volume *v, uint64_t block, uint64_t version,
				   uint32_t block_bytes)
{
	const struct version_block *b = v->versions[block];

	while (b && b->version > version)
		b = b->older;
	return b ? b->data : v->base + block * block_bytes;
}

/* ---- records ---- */

struct judge {
	struct verifier *v;
	uint8_t *image;
	char *text;
	size_t text_size;
	struct cache_info info;
};

__attribute__((format(printf, 2, 3)))
static bool bad(struct judge *j, const char *fmt, ...)
{
	va_list ap;

	if (*j->text)
		return false;
	va_start(ap, fmt);
	vsnprintf(j->text, j->text_size, fmt, ap);
	va_end(ap);
	return false;
}

static int take_volume(void *ctx, uint64_t index, const struct dedup_volume_rec *rec)
{
	struct judge *j = ctx;
	struct verifier *v = j->v;

	for (unsigned int i = 0; i < v->nr_volumes; i++) {
		struct load_volume *lv = &v->volumes[i];
		char name[33] = { 0 };

		if (strcmp(lv->name, rec->name))
			continue;
		lv->found = true;
		lv->rec = *rec;
		/* The test agent's roots: "NAME VERSION". */
		memcpy(name, rec->root, 32);
		if (!strchr(name, ' '))
			bad(j, "volume %s: root makes no sense", lv->name);
		else
			lv->version = strtoull(strchr(name, ' '), NULL, 10);
	}
	return 0;
}

/* Adds an overlay to what a volume's reader looks through, the later cut above. */
static void take_overlay(struct judge *j, struct load_volume *lv, uint64_t slot,
			 const struct dedup_slot_rec *rec)
{
	uint32_t *o;

	if (rec->cut <= lv->rec.committed_cut || rec->block >= lv->nr_blocks)
		return;
	o = lv->overlays[rec->block];
	if (!o[0]) {
		o[0] = slot + 1;
	} else if (o[1]) {
		bad(j, "volume %s, block %llu: three overlays", lv->name, rec->block);
	} else if (j->v->slots[o[0] - 1].cut > rec->cut) {
		o[1] = slot + 1;
	} else {
		o[1] = o[0];
		o[0] = slot + 1;
	}
}

static int take_slot(void *ctx, uint64_t slot, const struct dedup_slot_rec *rec)
{
	struct judge *j = ctx;
	struct verifier *v = j->v;

	v->slots[slot] = *rec;
	if (rec->state != DEDUP_SLOT_DIRTY)
		return 0;
	for (unsigned int i = 0; i < v->nr_volumes; i++)
		if (v->volumes[i].found && v->volumes[i].rec.id == rec->volume)
			take_overlay(j, &v->volumes[i], slot, rec);
	return 0;
}

static const uint8_t *slot_data(const struct judge *j, uint64_t slot)
{
	return j->image + j->info.data_start + slot * j->v->block_bytes;
}

/* ---- content ---- */

/* Whatever was once read from a server and verified must still be what its fingerprint says. */
static bool check_clean(struct judge *j)
{
	struct verifier *v = j->v;

	for (uint64_t n = 0; n < v->nr_slots; n++) {
		uint64_t hash, fp;

		if (v->slots[n].state != DEDUP_SLOT_CLEAN)
			continue;
		v->clean++;
		hash = stamps_hash(slot_data(j, n), v->block_bytes);
		memcpy(&fp, v->slots[n].fp, sizeof(fp));
		if (hash != fp)
			return bad(j, "CLEAN slot %" PRIu64 " (sequence %llu) does not hold what its "
				   "fingerprint says", n, v->slots[n].seq);
	}
	return true;
}

static bool sector_valid(const struct dedup_slot_rec *rec, uint32_t sector)
{
	return rec->bitmap[sector / 8] >> sector % 8 & 1;
}

static const uint8_t *find_sector(struct judge *j, const struct load_volume *lv, uint64_t block,
				  uint32_t sector)
{
	static const uint8_t zeros[STAMP_SECTOR];
	struct verifier *v = j->v;

	for (int i = 0; i < 2 && lv->overlays[block][i]; i++) {
		uint32_t slot = lv->overlays[block][i] - 1;

		if (sector_valid(&v->slots[slot], sector)) {
			v->dirty_sectors++;
			return slot_data(j, slot) + sector * STAMP_SECTOR;
		}
		if (v->slots[slot].flags & DEDUP_OVERLAY_BASE_ZERO)
			return zeros;
	}
	return version_data(lv, block, lv->version, v->block_bytes) + sector * STAMP_SECTOR;
}

static bool check_volume(struct judge *j, const struct load_volume *lv)
{
	uint32_t per_block = j->v->block_bytes / STAMP_SECTOR;

	if (!lv->found)
		return !lv->stamps.durable ||
		       bad(j, "volume %s has no record, but operation %" PRIu64 " was acknowledged",
			   lv->name, lv->stamps.durable);
	for (uint64_t s = 0; s < lv->stamps.sectors; s++) {
		const uint8_t *p = find_sector(j, lv, s / per_block, s % per_block);
		uint64_t first;

		if (stamps_allowed(&lv->stamps, s, p, lv->base + s * STAMP_SECTOR))
			continue;
		memcpy(&first, p, sizeof(first));
		return bad(j, "volume %s, version %" PRIu64 ", sector %" PRIu64 " (block %" PRIu64
			   "): operation %u was acknowledged (all up to %" PRIu64
			   " were), but it holds %" PRIx64 "; slots %d %d", lv->name, lv->version, s,
			   s / per_block, lv->stamps.last[s], lv->stamps.durable, first,
			   (int)lv->overlays[s / per_block][0] - 1,
			   (int)lv->overlays[s / per_block][1] - 1);
	}
	j->v->sectors += lv->stamps.sectors;
	return true;
}

/* ---- the next incarnation ---- */

struct mem {
	uint8_t *data;
};

static int mem_read(void *ctx, const struct dedup_io *ios, unsigned int n)
{
	struct mem *m = ctx;

	for (unsigned int i = 0; i < n; i++)
		memcpy(ios[i].buf, m->data + ios[i].offset, ios[i].len);
	return 0;
}

static int mem_write(void *ctx, const struct dedup_io *ios, unsigned int n, bool fua)
{
	struct mem *m = ctx;

	for (unsigned int i = 0; i < n; i++)
		memcpy(m->data + ios[i].offset, ios[i].buf, ios[i].len);
	return 0;
}

static int mem_flush(void *ctx)
{
	return 0;
}

static const struct dedup_disk_ops mem_ops = { mem_read, mem_write, mem_flush };

struct digest {
	const struct dedup_super *sb;
	u32 crc;
};

static int digest_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	struct digest *d = ctx;
	u8 buf[sizeof(struct dedup_disk_volume)];

	d->crc = dedup_crc32c(d->crc ^ index, buf, dedup_volume_encode(buf, rec));
	return 0;
}

static int digest_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct digest *d = ctx;
	u8 buf[DEDUP_PAGE_BYTES];

	d->crc = dedup_crc32c(d->crc ^ slot, buf, dedup_slot_encode(d->sb, buf, rec));
	return 0;
}

/* Opens, takes a digest of all records, and with @start begins the next incarnation. */
static int open_once(const struct dedup_disk *disk, bool start, u32 *crc, u64 *replayed,
		     struct dedup_why *why)
{
	static const u8 uuid[DEDUP_UUID_BYTES] = "next incarnation";
	struct digest d = { .crc = ~0U };
	struct dedup_visitor visitor = { .volume = digest_volume, .slot = digest_slot, .ctx = &d };
	struct dedup_ledger l;
	int r;

	r = dedup_ledger_open(&l, disk, why);
	if (r)
		return r;
	d.sb = &l.sb;
	*replayed = l.journal.seq - l.journal.replay_seq;
	r = dedup_ledger_load(&l, &visitor, why);
	if (!r && start)
		r = dedup_ledger_start(&l, uuid, why);
	dedup_ledger_close(&l);
	*crc = d.crc;
	return r;
}

/* What was recovered is there after the next incarnation has begun, and no more and no less. */
static bool check_start(struct judge *j, uint64_t bytes)
{
	struct mem mem = { j->image };
	struct dedup_disk disk = { &mem_ops, &mem, bytes };
	struct dedup_why why = { "" };
	u64 replayed, none;
	u32 before, after;

	if (open_once(&disk, true, &before, &replayed, &why))
		return bad(j, "opening: %s", why.text);
	j->v->replayed += replayed;
	if (open_once(&disk, false, &after, &none, &why))
		return bad(j, "opening again: %s", why.text);
	return before == after || bad(j, "opened again, the records are others");
}

/* ---- all of it ---- */

static void take_problem(void *ctx, const char *text)
{
	struct judge *j = ctx;

	bad(j, "check: %s", text);
}

static void forget(struct verifier *v)
{
	memset(v->slots, 0, v->nr_slots * sizeof(*v->slots));
	for (unsigned int i = 0; i < v->nr_volumes; i++) {
		struct load_volume *lv = &v->volumes[i];

		lv->found = false;
		lv->version = 0;
		memset(lv->overlays, 0, lv->nr_blocks * sizeof(*lv->overlays));
	}
}

bool verify_crash(struct verifier *v, const char *path, uint8_t *image, uint64_t bytes, char *text,
		  size_t text_size)
{
	struct judge j = { .v = v, .image = image, .text = text, .text_size = text_size };
	struct cache_visitor visitor = { take_volume, take_slot, &j };
	struct cache_report report;
	struct error err = { 0 };

	*text = 0;
	if (cache_check(path, take_problem, &j, &report, &err))
		return bad(&j, "check: %s", err.text);
	/* A superblock that was being written is no damage. */
	if (report.problems && !report.repairable)
		return false;
	*text = 0;
	j.info = report.info;
	if (!v->slots) {
		v->nr_slots = report.info.nr_slots;
		v->slots = calloc(v->nr_slots, sizeof(*v->slots));
		if (!v->slots)
			return bad(&j, "out of memory");
	}
	forget(v);
	if (cache_dump(path, &visitor, NULL, &err))
		return bad(&j, "recovery: %s", err.text);
	if (*text || !check_clean(&j))
		return false;
	for (unsigned int i = 0; i < v->nr_volumes; i++)
		if (!check_volume(&j, &v->volumes[i]))
			return false;
	return check_start(&j, bytes);
}
