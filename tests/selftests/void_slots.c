// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * void_slots DISK VOLUME
 *
 * Appends to a cache's journal what COMMIT makes durable first: the volume's record, whose committed
 * cut is the one that was open. A crash right after that leaves the same: DIRTY records of a
 * committed cut, which are void.
 */
#include <stdio.h>
#include <string.h>
#include "base/error.h"
#include "cache/disk_file.h"
#include "ledger.h"

struct found {
	const char *name;
	struct dedup_change change;
	bool is_there;
	bool taken;
};

static int find_volume(void *ctx, u64 index, const struct dedup_volume_rec *rec)
{
	struct found *f = ctx;

	if (rec->id && !strcmp(rec->name, f->name)) {
		f->change.kind = DEDUP_CHANGE_VOLUME;
		f->change.index = index;
		f->change.volume = *rec;
		f->is_there = true;
	}
	return 0;
}

static int skip_slot(void *ctx, u64 slot, const struct dedup_slot_rec *rec)
{
	(void)ctx;
	(void)slot;
	(void)rec;
	return 0;
}

static bool next_change(void *ctx, struct dedup_change *change)
{
	struct found *f = ctx;

	if (f->taken)
		return false;
	f->taken = true;
	*change = f->change;
	return true;
}

static int append(struct dedup_ledger *l, struct found *f, struct dedup_why *why)
{
	struct dedup_visitor visitor = { .volume = find_volume, .slot = skip_slot, .ctx = f };
	u8 incarnation[DEDUP_UUID_BYTES] = { 1 };
	bool more;
	u32 nr;
	int r = dedup_ledger_load(l, &visitor, why);

	if (r)
		return r;
	if (!f->is_there) {
		snprintf(why->text, sizeof(why->text), "no volume %s", f->name);
		return -1;
	}
	f->change.volume.committed_cut = f->change.volume.cut_counter++;
	r = dedup_ledger_start(l, incarnation, why);
	return r ? r : dedup_ledger_commit(l, next_change, f, &nr, &more);
}

int main(int argc, char **argv)
{
	struct dedup_why why = { "" };
	struct error err = { 0 };
	struct found found = { 0 };
	struct dedup_ledger l;
	struct disk_file f;
	int r;

	if (argc != 3) {
		fprintf(stderr, "usage: void_slots DISK VOLUME\n");
		return 2;
	}
	found.name = argv[2];
	if (disk_file_open(&f, argv[1], true, &err)) {
		fprintf(stderr, "void_slots: %s cannot be opened\n", argv[1]);
		return 1;
	}
	r = dedup_ledger_open(&l, &f.disk, &why);
	if (!r) {
		r = append(&l, &found, &why);
		dedup_ledger_close(&l);
	}
	if (r)
		fprintf(stderr, "void_slots: %s: error %d: %s\n", argv[1], r, why.text);
	disk_file_close(&f);
	return r ? 1 : 0;
}
