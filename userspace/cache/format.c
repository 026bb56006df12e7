// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <linux/falloc.h>
#include "base/cleanup.h"
#include "base/config.h"
#include "base/fingerprint.h"
#include "cache/cache.h"
#include "cache/internal.h"

#define DISCARD_STEP (1ULL << 30)

uint64_t cache_min_bytes(uint32_t block_shift)
{
	if (block_shift < DEDUP_BLOCK_SHIFT_MIN || block_shift > DEDUP_BLOCK_SHIFT_MAX)
		return 0;
	return dedup_min_bytes(block_shift);
}

static int check_params(const struct cache_params *p, struct error *err)
{
	if (!cache_min_bytes(p->block_shift))
		return error_set(err, -EINVAL,
				 "a block is a power of two from 4 KiB to 1 MiB, not 2^%u bytes",
				 p->block_shift);
	if (p->journal && (p->journal % DEDUP_PAGE_BYTES ||
			   p->journal / DEDUP_PAGE_BYTES < DEDUP_JOURNAL_MIN_PAGES ||
			   p->journal / DEDUP_PAGE_BYTES > DEDUP_JOURNAL_MAX_PAGES))
		return error_set(err, -EINVAL,
				 "a journal has 64 KiB to 64 MiB, in whole pages of 4 KiB");
	if (p->label && strlen(p->label) > CACHE_LABEL_MAX)
		return error_set(err, -EINVAL, "the label is longer than %d bytes", CACHE_LABEL_MAX);
	return 0;
}

static int lay_out(struct dedup_super *sb, const char *path, u64 bytes,
		   const struct cache_params *p, struct error *err)
{
	u32 block_shift = p->block_shift;
	char have[32], need[32], block[32];
	int r = dedup_layout_journal(sb, bytes, block_shift, p->journal / DEDUP_PAGE_BYTES);

	size_to_text(bytes, have);
	size_to_text(1ULL << block_shift, block);
	if (r == -ENOSPC) {
		u64 min = dedup_min_bytes(block_shift);

		size_to_text(min, need);
		return error_set(err, r, "%s has %s (%llu bytes): too small for a cache of %s blocks, "
				 "which needs at least %s (%llu bytes)", path, have,
				 (unsigned long long)bytes, block, need, (unsigned long long)min);
	}
	if (r == -EFBIG)
		return error_set(err, r, "%s has %s: with blocks of %s that is more than the %llu slots "
				 "that a cache may have; take larger blocks or a partition", path,
				 have, block, DEDUP_MAX_SLOTS);
	if (r == -EINVAL)
		return error_set(err, r, "the journal is too small for a cache of the size of %s; take "
				 "a larger one", path);
	return r ? error_set(err, r, "cannot lay out a cache on %s: %s", path, strerror(-r)) : 0;
}

/* The start of whatever else the disk may hold: partition tables, file systems, LVM, swap. */
static int check_empty(const struct disk_file *f, const char *path, struct error *err)
{
	CLEANUP_FREE char *buf = malloc(DEDUP_ALIGN_BYTES);
	struct dedup_super sb;
	int errors[2];
	int r;

	if (!buf)
		return error_set(err, -ENOMEM, "out of memory");
	r = dedup_supers_read(&f->disk, &sb, errors, NULL);
	if (r != -EINVAL && r != -EIO)
		return error_set(err, -EEXIST, "%s holds a cache%s; formatting loses it, with all "
				 "writes that were not pushed: say --force if that is meant", path,
				 r ? " that is damaged or of a newer version" : "");
	r = dedup_disk_read(&f->disk, 0, buf, DEDUP_ALIGN_BYTES);
	if (r)
		return error_set(err, r, "cannot read %s: %s", path, strerror(-r));
	if (!mem_is_zero(buf, DEDUP_ALIGN_BYTES))
		return error_set(err, -EEXIST, "%s is not empty: there may be a file system or a "
				 "partition table on it; say --force to lose what it holds", path);
	return 0;
}

/* First, so that a format that is cut short leaves no cache that looks whole. */
static int wipe_ends(const struct disk_file *f, const struct dedup_super *sb)
{
	CLEANUP_FREE char *zeros = calloc(1, DEDUP_ALIGN_BYTES);
	u64 end = dedup_super_b_offset(sb->device_bytes) + DEDUP_PAGE_BYTES;
	int r;

	if (!zeros)
		return -ENOMEM;
	r = dedup_disk_write(&f->disk, 0, zeros, DEDUP_ALIGN_BYTES, false);
	if (!r)
		r = dedup_disk_write(&f->disk, end - DEDUP_ALIGN_BYTES, zeros, DEDUP_ALIGN_BYTES,
				     false);
	if (!r && sb->device_bytes > end)
		r = dedup_disk_write(&f->disk, end, zeros, sb->device_bytes - end, false);
	return r ? r : f->disk.ops->flush(f->disk.ctx);
}

/* Helps flash and thin disks; where it cannot be done nothing is lost. */
static void discard_data(const struct disk_file *f, const struct dedup_super *sb,
			 cache_progress progress, void *ctx)
{
	u64 end = sb->data_start + (sb->nr_slots << sb->block_shift);

	for (u64 at = sb->data_start; at < end; at += DISCARD_STEP) {
		u64 range[2] = { at, MIN(DISCARD_STEP, end - at) };
		int r;

		if (f->block_device)
			r = ioctl(f->fd, BLKDISCARD, range);
		else
			r = fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range[0],
				      range[1]);
		if (r)
			break;
		if (progress)
			progress(ctx, at - sb->data_start + range[1], end - sb->data_start);
	}
	if (progress)
		progress(ctx, end - sb->data_start, end - sb->data_start);
}

static int format_file(const struct disk_file *f, const char *path, const struct cache_params *p,
		       struct dedup_super *sb, cache_progress progress, void *ctx,
		       struct error *err)
{
	struct uuid uuid;
	int r;

	r = lay_out(sb, path, f->disk.bytes, p, err);
	if (!r && !p->force)
		r = check_empty(f, path, err);
	if (r)
		return r;
	r = uuid_generate(&uuid);
	if (r)
		return error_set(err, r, "the system gives no random bytes for a UUID");
	memcpy(sb->cache_uuid, uuid.b, sizeof(sb->cache_uuid));
	memcpy(sb->cluster_uuid, p->cluster.b, sizeof(sb->cluster_uuid));
	if (p->label)
		memcpy(sb->label, p->label, strlen(p->label));
	r = wipe_ends(f, sb);
	if (!r) {
		discard_data(f, sb, progress, ctx);
		r = dedup_ledger_format(&f->disk, sb);
	}
	return r ? error_set(err, r, "cannot write %s: %s", path, strerror(-r)) : 0;
}

int cache_format(const char *path, const struct cache_params *params, cache_progress progress,
		 void *ctx, struct cache_info *info, struct error *err)
{
	struct dedup_super sb;
	struct disk_file f;
	int r;

	r = check_params(params, err);
	if (r)
		return r;
	r = disk_file_open(&f, path, true, err);
	if (r)
		return r;
	r = format_file(&f, path, params, &sb, progress, ctx, err);
	if (!r && info)
		cache_info_fill(info, &sb);
	disk_file_close(&f);
	return r;
}
