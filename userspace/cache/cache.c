// SPDX-License-Identifier: GPL-2.0-or-later
/* Reading and repairing superblocks, and the dump. */
#include "cache/cache.h"
#include "cache/internal.h"

void cache_info_fill(struct cache_info *info, const struct dedup_super *sb)
{
	memset(info, 0, sizeof(*info));
	memcpy(info->cache.b, sb->cache_uuid, sizeof(info->cache.b));
	memcpy(info->cluster.b, sb->cluster_uuid, sizeof(info->cluster.b));
	memcpy(info->incarnation.b, sb->incarnation, sizeof(info->incarnation.b));
	memcpy(info->label, sb->label, sizeof(info->label));
	info->incarnation_nr = sb->incarnation_nr;
	info->block_shift = sb->block_shift;
	info->device_bytes = sb->device_bytes;
	info->data_start = sb->data_start;
	info->nr_slots = sb->nr_slots;
	info->journal_bytes = (u64)sb->journal_pages * DEDUP_PAGE_BYTES;
	info->store_memory = dedup_ledger_memory(sb);
	info->max_volumes = sb->nr_volumes;
}

_Static_assert(CACHE_LABEL_MAX + 1 == DEDUP_LABEL_BYTES, "label");

static int open_supers(struct disk_file *f, const char *path, bool writable,
		       struct dedup_super *sb, int errors[2], struct error *err)
{
	struct dedup_why why = { "" };
	int r = disk_file_open(f, path, writable, err);

	if (r)
		return r;
	r = dedup_supers_read(&f->disk, sb, errors, &why);
	if (!r)
		return 0;
	disk_file_close(f);
	return error_set(err, r, "%s: %s", path, why.text[0] ? why.text : strerror(-r));
}

int cache_info_read(const char *path, struct cache_info *info, struct error *err)
{
	struct dedup_super sb;
	struct disk_file f;
	int errors[2];
	int r;

	r = open_supers(&f, path, false, &sb, errors, err);
	if (r)
		return r;
	cache_info_fill(info, &sb);
	disk_file_close(&f);
	return 0;
}

int cache_repair(const char *path, unsigned int *repaired, struct error *err)
{
	struct dedup_super sb;
	struct disk_file f;
	int errors[2];
	int r;

	*repaired = 0;
	r = open_supers(&f, path, true, &sb, errors, err);
	if (r)
		return r;
	if (errors[0] || errors[1]) {
		r = dedup_supers_write(&f.disk, &sb);
		if (r)
			error_set(err, r, "cannot write the superblocks of %s: %s", path,
				  strerror(-r));
		else
			*repaired = !!errors[0] + !!errors[1];
	}
	disk_file_close(&f);
	return r;
}

static int no_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	(void)ctx;
	(void)index;
	(void)rec;
	return 0;
}

static int no_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	(void)ctx;
	(void)slot;
	(void)rec;
	return 0;
}

/* uint64_t and u64 are different types of the same size. */
struct dump {
	const struct cache_visitor *v;
};

static int dump_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	struct dump *d = ctx;

	return d->v->volume(d->v->ctx, index, rec);
}

static int dump_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	struct dump *d = ctx;

	return d->v->slot(d->v->ctx, slot, rec);
}

int cache_dump(const char *path, const struct cache_visitor *visitor, struct cache_info *info,
	       struct error *err)
{
	struct dump d = { visitor };
	struct dedup_visitor v = {
		.volume = visitor->volume ? dump_volume : no_volume,
		.slot = visitor->slot ? dump_slot : no_slot,
		.ctx = &d,
	};
	struct dedup_why why = { "" };
	struct dedup_ledger l;
	struct disk_file f;
	int r;

	r = disk_file_open(&f, path, false, err);
	if (r)
		return r;
	r = dedup_ledger_open(&l, &f.disk, &why);
	if (!r) {
		if (info)
			cache_info_fill(info, &l.sb);
		r = dedup_ledger_load(&l, &v, &why);
		dedup_ledger_close(&l);
	}
	if (r < 0 && why.text[0])
		error_set(err, r, "%s: %s", path, why.text);
	disk_file_close(&f);
	return r;
}
