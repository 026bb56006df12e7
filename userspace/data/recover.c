// SPDX-License-Identifier: GPL-2.0-or-later
/* Lumps at opening: tails beyond what the index knows, and a whole index from nothing. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "data/crc32c.h"
#include "data/bstore_priv.h"

#define WINDOW	  (4U << 20) /* of a scan; more than the largest record */
#define SECTOR	  4096	     /* what cannot be read is looked for in pieces of this size */
#define CHUNK_MAX 16384	     /* records named by one transaction of a rebuild */

/* ---- scanning one lump ---- */

struct scan {
	struct bstore *st;
	struct lump *lump;
	int fd;
	uint64_t size;	/* of the file */
	uint64_t start; /* what the window holds */
	size_t filled;
	uint8_t *window;
};

/* As much of @want bytes at @offset as there is before the first sector that cannot be read. */
static int read_window(struct scan *s, uint64_t offset, size_t want)
{
	size_t n;
	int r = disk_read(&s->st->disk, s->fd, s->window, want, offset);

	s->start = offset;
	s->filled = r ? 0 : want;
	if (r != -EIO)
		return r;
	for (r = 0; !r && s->filled < want; s->filled += r ? 0 : n) {
		n = MIN(SECTOR - (offset + s->filled) % SECTOR, want - s->filled);
		r = disk_read(&s->st->disk, s->fd, s->window + s->filled, n, offset + s->filled);
	}
	return r == -EIO ? 0 : r;
}

/* @len bytes at @offset, which the file has. -EIO: a sector cannot be read; *bad: where it ends. */
static int scan_bytes(struct scan *s, uint64_t offset, size_t len, const uint8_t **bytes,
		      uint64_t *bad)
{
	int r = 0;

	if (offset < s->start || offset + len > s->start + s->filled)
		r = read_window(s, offset, (size_t)MIN(s->size - offset, WINDOW));
	if (r)
		return r;
	if (s->filled < len) {
		*bad = ((offset + s->filled) / SECTOR + 1) * SECTOR;
		return -EIO;
	}
	*bytes = s->window + (offset - s->start);
	return 0;
}

/* 1: a whole record at @offset; 0: none; or a negative errno. *skip: bytes to go on. */
static int scan_record(struct scan *s, uint64_t offset, struct record *rec, uint32_t *skip)
{
	struct record_place place = { &s->st->uuid, s->lump->shard, s->lump->number,
				      (uint32_t)offset };
	uint64_t bad;
	const uint8_t *p;
	int r;

	*skip = RECORD_ALIGN;
	if (s->size - offset < RECORD_HEADER_SIZE) {
		*skip = (uint32_t)(s->size - offset);
		return 0;
	}
	r = scan_bytes(s, offset, RECORD_HEADER_SIZE, &p, &bad);
	if (r == -EIO) {
		s->lump->unreadable = true;
		*skip = (uint32_t)(MIN(bad, s->size) - offset);
		return 0;
	}
	if (r)
		return r;
	r = record_decode(rec, &place, p);
	if (r)
		return r == -EBADMSG ? 0 : r;
	if (s->size - offset < record_size(rec->stored_len))
		return 0;
	*skip = record_size(rec->stored_len);
	r = scan_bytes(s, offset, *skip, &p, &bad);
	s->lump->unreadable |= r == -EIO;
	if (r)
		return r == -EIO ? 0 : r;
	/* A bad payload behind a good header: the next record is where the header says. */
	return crc32c(0, p + RECORD_HEADER_SIZE, rec->stored_len) == rec->payload_crc;
}

int bstore_scan_lump(struct bstore *st, struct lump *lump, uint64_t from, uint64_t size,
		     int (*found)(void *arg, struct lump *lump, uint32_t offset,
				  const struct record *rec),
		     void *arg, uint64_t *end, uint64_t *damaged)
{
	struct scan s = { .st = st, .lump = lump, .size = MIN(size, LUMP_SIZE_MAX) };
	uint64_t offset = MAX(from, LUMP_HEADER_SIZE);
	uint64_t lost = 0;
	int r;

	*end = offset;
	*damaged = 0;
	s.window = malloc(WINDOW);
	if (!s.window)
		return -ENOMEM;
	r = lumps_pin(st->lumps, lump, &s.fd);
	while (!r && offset < s.size) {
		struct record rec;
		uint32_t skip;

		r = scan_record(&s, offset, &rec, &skip);
		if (r < 0)
			break;
		if (r) {
			r = found(arg, lump, (uint32_t)offset, &rec);
			*end = offset + skip;
			*damaged = lost;
		} else {
			lost += skip;
		}
		offset += skip;
	}
	if (s.fd >= 0)
		lumps_unpin(st->lumps, lump);
	free(s.window);
	return r;
}

/* ---- naming what a scan finds ---- */

struct found {
	struct record rec;
	struct lump *lump;
	uint32_t offset;
};

struct recovery {
	struct bstore *st;
	bool rebuild;
	bool synced; /* everything that any tail holds is on the disk, or never will be */
	struct found *chunk;
	size_t nr;
	uint64_t named;
};

static int name_one(struct recovery *rv, struct index_txn *txn, struct index_info *info,
		    const struct found *f)
{
	struct index_shard *s = &rv->st->shards[f->lump->shard];
	uint32_t size = record_size(f->rec.stored_len);
	struct index_block row;
	bool row_lost;
	int r = index_get(txn, f->rec.domain, &f->rec.fp, &row);

	f->lump->new_end = (uint64_t)f->offset + size;
	if (!r && !(row.flags & INDEX_BAD))
		return 0; /* a second copy: dead space */
	if (r && r != -ENOENT && r != -EUCLEAN)
		return r;
	row_lost = r == -EUCLEAN || (!r && !row.stored_len); /* but counted */
	if (!r && !row_lost) { /* instead of a damaged one */
		struct lump *old = lumps_find(rv->st->lumps, f->lump->shard, row.lump);

		if (old) {
			lumps_touch(rv->st->lumps, old);
			old->new_live_bytes -= record_size(row.stored_len);
			old->new_live_records--;
		}
		info->blocks--;
		info->raw_bytes -= row.raw_len;
		info->stored_bytes -= record_size(row.stored_len);
	}
	if (s->epoch < f->rec.epoch) {
		s->epoch = f->rec.epoch;
		rv->st->shard_dirty[f->lump->shard] = true;
	}
	row = (struct index_block){
		.lump = f->lump->number,
		.offset = f->offset,
		.stored_len = f->rec.stored_len,
		.raw_len = f->rec.raw_len,
		.codec = f->rec.codec,
		.kind = f->rec.kind,
		.epoch = s->epoch,
	};
	f->lump->new_live_bytes += size;
	f->lump->new_live_records++;
	if (!row_lost) {
		info->blocks++;
		info->raw_bytes += row.raw_len;
		info->stored_bytes += size;
	}
	return index_put(txn, f->rec.domain, &f->rec.fp, &row);
}

static int name_try(struct recovery *rv, struct index_info *info)
{
	struct bstore *st = rv->st;
	struct index_txn *txn;
	int r;

	*info = st->info;
	for (size_t i = 0; i < rv->nr; i++)
		lumps_touch(st->lumps, rv->chunk[i].lump);
	for (struct lump *l = lumps_touched(st->lumps); l; l = l->next_touched) {
		l->new_end = l->end;
		l->new_live_bytes = l->live_bytes;
		l->new_live_records = l->live_records;
		if (st->shards[l->shard].next_lump <= l->number) {
			st->shards[l->shard].next_lump = l->number + 1;
			st->shard_dirty[l->shard] = true;
		}
	}
	r = index_begin(st->ix, true, &txn);
	if (r)
		return r;
	for (size_t i = 0; i < rv->nr && !r; i++)
		r = name_one(rv, txn, info, &rv->chunk[i]);
	for (size_t s = 0; s < NR_SHARDS && !r; s++)
		if (st->shard_dirty[s])
			r = index_put_shard(txn, (uint16_t)s, &st->shards[s]);
	for (struct lump *l = lumps_touched(st->lumps); l && !r; l = l->next_touched) {
		struct index_lump row = { l->new_end, l->new_live_bytes, l->new_live_records, 0 };

		r = index_put_lump(txn, l->shard, l->number, &row);
	}
	if (!r)
		r = index_put_info(txn, info);
	if (r) {
		index_abort(txn);
		return r;
	}
	return index_commit(txn);
}

static int name_chunk(struct recovery *rv)
{
	struct index_info info;
	int r;

	if (!rv->nr)
		return 0;
	while ((r = name_try(rv, &info)) == -EXFULL) {
		r = index_grow(rv->st->ix);
		if (r)
			return r;
	}
	if (r)
		return r;
	rv->st->info = info;
	memset(rv->st->shard_dirty, 0, sizeof(rv->st->shard_dirty));
	lumps_settle(rv->st->lumps, true);
	rv->named += rv->nr;
	rv->nr = 0;
	return 0;
}

static int found_record(void *arg, struct lump *lump, uint32_t offset, const struct record *rec)
{
	struct recovery *rv = arg;

	/* One commit at a time: a tail is of the commit after the last one. Newer records mean
	 * that the index is an old copy, whose epochs and deletions cannot be trusted. */
	if (!rv->rebuild && rec->sequence > rv->st->info.sequence + 1)
		return -ESTALE;
	if (rv->rebuild && rv->st->info.sequence < rec->sequence)
		rv->st->info.sequence = rec->sequence;
	rv->chunk[rv->nr++] = (struct found){ *rec, lump, offset };
	return rv->nr == CHUNK_MAX ? name_chunk(rv) : 0;
}

/* ---- one lump ---- */

/*
 * What the page cache holds of a tail may never have reached the disk: after a write error the
 * kernel keeps the page and calls it clean. So write out (all lumps at once), drop, and read from
 * the disk.
 */
static int settle_pages(struct recovery *rv, struct lump *l)
{
	struct bstore *st = rv->st;
	int fd, r = rv->synced ? 0 : st->disk.ops->syncfs(st->disk.ctx, st->dirfd);

	if (r)
		return r;
	rv->synced = true;
	r = lumps_pin(st->lumps, l, &fd);
	if (r)
		return r;
	posix_fadvise(fd, (off_t)l->end, 0, POSIX_FADV_DONTNEED);
	lumps_unpin(st->lumps, l);
	return 0;
}

/* 0: ours; 1: torn at its creation; -EUCLEAN: of another disk or place. */
static int check_header(struct bstore *st, struct lump *l, uint64_t size, struct error *err)
{
	char uuid[UUID_TEXT_SIZE];
	uint8_t bytes[LUMP_HEADER_SIZE];
	struct lump_header head;
	int r;

	if (size < LUMP_HEADER_SIZE)
		return 1;
	r = lumps_read(st->lumps, l->shard, l->number, 0, bytes, sizeof(bytes));
	if (r && r != -EIO)
		return error_set(err, r, "read lump %03x-%08x: %s", l->shard, l->number,
				 strerror(-r));
	r = r ? r : lump_header_decode(&head, bytes);
	if (r == -EPROTONOSUPPORT)
		return error_set(err, r, "lump %03x-%08x was made by a newer vmdedup-data",
				 l->shard, l->number);
	if (r) /* the records are checked one by one, and against this place */
		return size == LUMP_HEADER_SIZE ? 1 : 0;
	if (uuid_equal(&head.disk, &st->uuid) && head.shard == l->shard &&
	    head.number == l->number)
		return 0;
	return error_set(err, -EMEDIUMTYPE, "lump %03x-%08x in %s is of disk %s, lump %03x-%08x: "
			 "take it away, or put back the disk.uuid that belongs to these lumps",
			 l->shard, l->number, st->dir, uuid_to_text(&head.disk, uuid), head.shard,
			 head.number);
}

/* What cannot be read may be read another day: it is not cut off, and nothing is written behind it. */
static void keep_unreadable(struct bstore *st, struct lump *l)
{
	struct index_shard *s = &st->shards[l->shard];

	l->sealed = true;
	if (s->next_lump <= l->number) {
		s->next_lump = l->number + 1;
		st->shard_dirty[l->shard] = true;
	}
	log_error("%s: lump %03x-%08x has sectors that cannot be read", st->dir, l->shard, l->number);
}

static int recover_lump(struct recovery *rv, struct lump *l, struct error *err)
{
	uint64_t size, end, damaged, from = l->end;
	struct bstore *st = rv->st;
	int r = lumps_file_size(st->lumps, l, &size);

	if (r == -ENOENT || (!r && size < l->end))
		return error_set(err, -EUCLEAN, "lump %03x-%08x of %s is lost or cut short",
				 l->shard, l->number, st->dir);
	if (r)
		return error_set(err, r, "lump %03x-%08x of %s: %s", l->shard, l->number, st->dir,
				 strerror(-r));
	if (size == l->end && size) /* 0: killed between a lump's creation and its header */
		return 0;
	r = settle_pages(rv, l);
	if (!r && !l->end)
		r = check_header(st, l, size, err);
	if (r < 0)
		return err->code ? r : error_set(err, r, "sync a lump of %s: %s", st->dir,
						 strerror(-r));
	if (r)
		return lumps_remove(st->lumps, l);
	r = bstore_scan_lump(st, l, from, size, found_record, rv, &end, &damaged);
	if (!r && l->unreadable)
		keep_unreadable(st, l);
	else if (!r && end == LUMP_HEADER_SIZE && !l->end)
		return lumps_remove(st->lumps, l);
	else if (!r && size > end)
		r = lumps_truncate(st->lumps, l, end);
	if (r)
		return error_set(err, r, "recover lump %03x-%08x of %s: %s", l->shard, l->number,
				 st->dir, strerror(-r));
	if (damaged)
		log_warn("%s: lump %03x-%08x: %" PRIu64 " bytes are no record", st->dir, l->shard,
			 l->number, damaged);
	if (size > end && !l->unreadable)
		log_info("%s: lump %03x-%08x: cut off %" PRIu64 " bytes of a commit that was "
			 "never finished", st->dir, l->shard, l->number, size - end);
	return 0;
}

/* ---- all of them ---- */

static int known_lump(void *arg, uint16_t shard, uint32_t number, const struct index_lump *row)
{
	struct bstore *st = arg;
	struct lump *l = lumps_add(st->lumps, shard, number);

	if (!l)
		return -ENOMEM;
	lumps_set_end(st->lumps, l, row->end);
	l->live_bytes = row->live_bytes;
	l->live_records = row->live_records;
	l->removing = row->removing;
	return 0;
}

static int found_lump(void *arg, uint16_t shard, uint32_t number)
{
	struct bstore *st = arg;

	if (lumps_find(st->lumps, shard, number))
		return 0;
	return lumps_add(st->lumps, shard, number) ? 0 : -ENOMEM;
}

static int load_lumps(struct bstore *st, struct error *err)
{
	struct index_txn *txn;
	int r = index_begin(st->ix, false, &txn);

	if (r)
		return error_set(err, r, "read the index of %s: %s", st->dir, strerror(-r));
	r = index_walk_lumps(txn, known_lump, st);
	index_abort(txn);
	if (r)
		return error_set(err, r, "read the index of %s: %s", st->dir, strerror(-r));
	r = lumps_list(st->lumps, found_lump, st, err);
	return r && !err->code ? error_set(err, r, "no memory for lumps") : r;
}

int bstore_recover(struct bstore *st, bool rebuild, struct error *err)
{
	struct recovery rv = { .st = st, .rebuild = rebuild };
	int r = load_lumps(st, err);

	if (r)
		return r;
	rv.chunk = calloc(CHUNK_MAX, sizeof(*rv.chunk));
	if (!rv.chunk)
		return error_set(err, -ENOMEM, "no memory to recover %s", st->dir);
	for (uint16_t s = 0; s < NR_SHARDS && !r; s++) {
		for (size_t i = 0; !r;) {
			struct lump *l = lumps_nth(st->lumps, s, i);
			size_t before = lumps_count(st->lumps);

			if (!l)
				break;
			if (l->removing)
				r = bstore_drop_lump(st, l);
			else
				r = recover_lump(&rv, l, err);
			if (lumps_count(st->lumps) == before)
				i++;
		}
	}
	if (!r)
		r = name_chunk(&rv);
	free(rv.chunk);
	if (r && !err->code)
		error_set(err, r, "recover %s: %s", st->dir, strerror(-r));
	if (!r && rv.named && !rebuild)
		log_info("%s: %" PRIu64 " records of an unfinished commit kept", st->dir, rv.named);
	return r;
}
