// SPDX-License-Identifier: GPL-2.0-only
#include "ledger.h"

/* ---- superblocks ---- */

static int read_super(const struct dedup_disk *disk, u64 offset, void *page, struct dedup_super *sb)
{
	int r = dedup_disk_read(disk, offset, page, DEDUP_PAGE_BYTES);

	return r ? r : dedup_super_decode(sb, page);
}

static int choose_super(struct dedup_super sb[2], int errors[2], struct dedup_why *why)
{
	unsigned int i, best;

	for (i = 0; i < 2; i++) {
		if (errors[i] == -EPROTONOSUPPORT) {
			dedup_say(why, "the cache was formatted by a newer version, or uses features that this one does not know");
			return -EPROTONOSUPPORT;
		}
	}
	if (errors[0] && errors[1]) {
		if (errors[0] == -EINVAL && errors[1] == -EINVAL) {
			dedup_say(why, "this is no cache: no superblock at either end; format it first");
			return -EINVAL;
		}
		if (errors[0] == -EIO || errors[1] == -EIO) {
			dedup_say(why, "the superblocks cannot be read");
			return -EIO;
		}
		dedup_say(why, "both superblocks are destroyed; the cache cannot be used");
		return -EUCLEAN;
	}
	if (errors[0] || errors[1])
		return errors[0] ? 1 : 0;
	if (memcmp(sb[0].cache_uuid, sb[1].cache_uuid, DEDUP_UUID_BYTES)) {
		dedup_say(why, "the two superblocks are of different caches");
		return -EUCLEAN;
	}
	best = sb[1].generation > sb[0].generation;
	if (sb[0].generation != sb[1].generation)
		errors[!best] = -ESTALE;
	return best;
}

int dedup_supers_read(const struct dedup_disk *disk, struct dedup_super *sb, int errors[2],
		      struct dedup_why *why)
{
	struct dedup_super both[2];
	void *page;
	u64 b;
	int r;

	if (disk->bytes < 4 * DEDUP_ALIGN_BYTES) {
		dedup_say(why, "this is no cache: the device is too small for one");
		return -EINVAL;
	}
	page = dedup_alloc(1, DEDUP_PAGE_BYTES);
	if (!page)
		return -ENOMEM;
	errors[0] = read_super(disk, DEDUP_SUPER_OFFSET, page, &both[0]);
	b = dedup_super_b_offset(disk->bytes);
	/* A disk that has grown has B where its end was. */
	if (!errors[0] && both[0].device_bytes < disk->bytes)
		b = dedup_super_b_offset(both[0].device_bytes);
	errors[1] = read_super(disk, b, page, &both[1]);
	dedup_free(page);
	r = choose_super(both, errors, why);
	if (r < 0)
		return r;
	*sb = both[r];
	if (sb->device_bytes > disk->bytes) {
		dedup_say(why, "the cache was formatted on a device of %llu bytes; this one has only %llu",
			  (unsigned long long)sb->device_bytes, (unsigned long long)disk->bytes);
		return -EINVAL;
	}
	return 0;
}

int dedup_supers_write(const struct dedup_disk *disk, struct dedup_super *sb)
{
	void *page = dedup_alloc(1, DEDUP_PAGE_BYTES);
	int r;

	if (!page)
		return -ENOMEM;
	sb->generation++;
	dedup_super_encode(sb, page);
	r = dedup_disk_write(disk, dedup_super_b_offset(sb->device_bytes), page, DEDUP_PAGE_BYTES,
			     true);
	if (!r)
		r = dedup_disk_write(disk, DEDUP_SUPER_OFFSET, page, DEDUP_PAGE_BYTES, true);
	dedup_free(page);
	return r;
}

/* ---- format ---- */

int dedup_ledger_format(const struct dedup_disk *disk, struct dedup_super *sb)
{
	static const struct dedup_disk_entry never;
	struct dedup_journal j;
	struct dedup_builder b;
	u32 i;
	int r;

	r = dedup_journal_init(&j, sb, disk);
	if (r)
		return r;
	dedup_journal_mark(&j);
	dedup_journal_start(&j, &b, sb->root_pages);
	for (i = 0; i < sb->dir_pages; i++)
		dedup_build_entry(&b, &never);
	r = dedup_journal_write(&j, &b, DEDUP_APPEND_CHECKPOINT);
	dedup_journal_exit(&j);
	if (r)
		return r;
	sb->journal_seq = 1;
	return dedup_supers_write(disk, sb);
}

/* ---- open ---- */

static int take_root(void *ctx, u32 nr, const struct dedup_disk_entry *entry)
{
	struct dedup_ledger *l = ctx;

	l->table.root[nr] = *entry;
	return 0;
}

static int take_change(void *ctx, u8 kind, u64 index, const void *rec, u32 bytes)
{
	struct dedup_ledger *l = ctx;

	return dedup_delta_put(&l->recovered, kind, index, rec, bytes);
}

/* Reads the journal; what it changes goes to @recovered, if that are no more than @slots slots. */
static int replay_journal(struct dedup_ledger *l, u64 *slots, struct dedup_why *why)
{
	struct dedup_replay replay = { take_root, take_change, l };
	u64 nr;
	int r;

	r = dedup_journal_scan(&l->journal, why);
	if (r)
		return r;
	nr = dedup_journal_nr_changes(&l->journal);
	*slots = min_t(u64, *slots, min_t(u64, nr, l->sb.nr_slots));
	r = dedup_delta_init(&l->recovered, &l->sb, *slots, min_t(u64, nr, l->sb.nr_volumes));
	return r ? r : dedup_journal_replay(&l->journal, &replay, why);
}

/*
 * The journal may hold far more changes than there are slots that they change: two deltas are all
 * that a checkpoint leaves behind, unless another version of this code wrote it.
 */
static int open_journal(struct dedup_ledger *l, struct dedup_why *why)
{
	u64 room = 2 * DEDUP_DELTA_SLOTS;
	u64 slots;
	int r;

	for (;;) {
		slots = room;
		r = replay_journal(l, &slots, why);
		if (r != -ENOSPC || slots < room)
			break;
		dedup_delta_exit(&l->recovered);
		room *= 2;
		if (why)
			why->text[0] = 0;
	}
	if (!r)
		dedup_delta_sort(&l->recovered);
	return r;
}

int dedup_ledger_open(struct dedup_ledger *l, const struct dedup_disk *disk, struct dedup_why *why)
{
	int r;

	memset(l, 0, sizeof(*l));
	l->disk = *disk;
	if (why)
		why->text[0] = 0;
	r = dedup_supers_read(&l->disk, &l->sb, l->super_error, why);
	if (r)
		return r;
	r = dedup_journal_init(&l->journal, &l->sb, &l->disk);
	if (!r)
		r = dedup_table_init(&l->table, &l->sb, &l->disk);
	if (!r)
		r = open_journal(l, why);
	if (!r)
		r = dedup_table_load_dir(&l->table, why);
	if (!r)
		return 0;
	if (why && !why->text[0])
		dedup_say(why, "the cache cannot be opened: error %d", r);
	dedup_ledger_close(l);
	return r;
}

void dedup_ledger_close(struct dedup_ledger *l)
{
	dedup_delta_exit(&l->delta[0]);
	dedup_delta_exit(&l->delta[1]);
	dedup_delta_exit(&l->recovered);
	dedup_table_exit(&l->table);
	dedup_journal_exit(&l->journal);
	l->writable = false;
}

int dedup_ledger_load(struct dedup_ledger *l, const struct dedup_visitor *visitor,
		      struct dedup_why *why)
{
	return dedup_table_walk(&l->table, &l->recovered, visitor, why);
}

static u32 delta_slots(const struct dedup_super *sb)
{
	return min_t(u64, sb->nr_slots, DEDUP_DELTA_SLOTS);
}

u32 dedup_ledger_next_incarnation(const struct dedup_ledger *l)
{
	/* The newer superblock may have been destroyed. */
	return max_t(u32, l->sb.incarnation_nr, l->journal.incarnation_nr) + 1;
}

int dedup_ledger_start(struct dedup_ledger *l, const u8 incarnation[DEDUP_UUID_BYTES],
		       struct dedup_why *why)
{
	u32 nr = dedup_ledger_next_incarnation(l);
	unsigned int i;
	int r;

	if (nr > DEDUP_MAX_INCARNATION) {
		dedup_say(why, "the cache was opened %u times, which is all it can be; push and format it",
			  DEDUP_MAX_INCARNATION);
		return -EOVERFLOW;
	}
	for (i = 0; i < 2; i++) {
		r = dedup_delta_init(&l->delta[i], &l->sb, delta_slots(&l->sb), l->sb.nr_volumes);
		if (r) {
			dedup_say(why, "out of memory for %u changed records", delta_slots(&l->sb));
			return r;
		}
	}
	l->sb.incarnation_nr = nr;
	memcpy(l->sb.incarnation, incarnation, DEDUP_UUID_BYTES);
	l->sb.journal_seq = l->journal.seq;
	r = dedup_supers_write(&l->disk, &l->sb);
	if (r) {
		dedup_say(why, "the superblocks cannot be written");
		return r;
	}
	l->journal.incarnation_nr = nr;
	memcpy(l->journal.incarnation, incarnation, DEDUP_UUID_BYTES);
	l->writable = true;
	l->frozen_seq = l->journal.seq;
	dedup_journal_mark(&l->journal);
	r = dedup_table_write(&l->table, &l->recovered, l->frozen_seq, why);
	if (!r) {
		l->frozen = true;
		r = dedup_ledger_finish(l);
		if (r)
			dedup_say(why, "the journal cannot be written");
	}
	if (r)
		l->writable = false;
	else
		dedup_delta_exit(&l->recovered);
	return r;
}

/* ---- commit ---- */

/* How many slots' records the active delta can still take. */
static u32 delta_left(const struct dedup_ledger *l)
{
	const struct dedup_delta *d = &l->delta[l->active];

	/* A delta with room for every slot never runs out. */
	return d->max_slots == l->sb.nr_slots ? ~0U : d->max_slots - d->nr_slots;
}

bool dedup_ledger_has_room(const struct dedup_ledger *l)
{
	/* One root for the checkpoint being written, one for the next. */
	return dedup_journal_has_room(&l->journal, l->sb.append_pages, 2) &&
	       delta_left(l) >= l->sb.max_changes;
}

bool dedup_ledger_wants_checkpoint(const struct dedup_ledger *l)
{
	return !l->frozen && (dedup_journal_used(&l->journal) > l->sb.journal_pages / 2 ||
			      delta_left(l) < l->delta[l->active].max_slots / 2 ||
			      !dedup_ledger_has_room(l));
}

/* Only what is durable in the journal goes into the delta, and from there into the tables. */
static int take_durable(struct dedup_ledger *l, const struct dedup_builder *b)
{
	struct dedup_append head;
	struct dedup_cursor c;
	const void *rec;
	u32 bytes;
	u64 index;
	u8 kind;
	int r;

	r = dedup_append_head(&l->sb, b->buf, &head);
	if (r)
		return r;
	dedup_cursor_start(&c, b->buf, &head);
	while ((r = dedup_cursor_change(&l->sb, &c, &kind, &index, &rec, &bytes)) > 0) {
		r = dedup_delta_put(&l->delta[l->active], kind, index, rec, bytes);
		if (r)
			break;
	}
	return r;
}

static bool change_possible(const struct dedup_ledger *l, const struct dedup_change *change)
{
	switch (change->kind) {
	case DEDUP_CHANGE_SLOT:
		return change->index < l->sb.nr_slots && change->slot.state <= DEDUP_SLOT_DIRTY;
	case DEDUP_CHANGE_VOLUME:
		return change->index < l->sb.nr_volumes;
	default:
		return false;
	}
}

int dedup_ledger_commit(struct dedup_ledger *l, bool (*next)(void *ctx, struct dedup_change *change),
			void *ctx, u32 *nr, bool *more)
{
	u32 left = delta_left(l);
	struct dedup_change change;
	struct dedup_builder b;
	int r;

	*nr = 0;
	*more = false;
	if (!l->writable)
		return -EROFS;
	dedup_journal_start(&l->journal, &b, l->sb.append_pages);
	for (;;) {
		if (b.nr_items >= left || !dedup_build_has_room(&l->sb, &b)) {
			*more = true;
			break;
		}
		if (!next(ctx, &change))
			break;
		if (!change_possible(l, &change) || !dedup_build_change(&l->sb, &b, &change)) {
			l->writable = false;
			return -EINVAL;
		}
	}
	if (!b.nr_items)
		return 0;
	r = dedup_journal_write(&l->journal, &b, DEDUP_APPEND_CHANGES);
	if (!r)
		r = take_durable(l, &b);
	if (r)
		l->writable = false;
	else
		*nr = b.nr_items;
	return r;
}

/* ---- checkpoint ---- */

void dedup_ledger_freeze(struct dedup_ledger *l)
{
	dedup_journal_mark(&l->journal);
	l->frozen_seq = l->journal.seq;
	l->frozen = true;
	l->active = !l->active;
}

int dedup_ledger_write_tables(struct dedup_ledger *l, struct dedup_why *why)
{
	struct dedup_delta *frozen = &l->delta[!l->active];

	dedup_delta_sort(frozen);
	return dedup_table_write(&l->table, frozen, l->frozen_seq, why);
}

int dedup_ledger_finish(struct dedup_ledger *l)
{
	struct dedup_builder b;
	u32 i;
	int r = 0;

	if (!l->writable)
		return -EROFS;
	if (planted(PLANTED_CHECKPOINT_OVERTAKES))
		dedup_journal_mark(&l->journal);
	dedup_journal_start(&l->journal, &b, l->sb.root_pages);
	for (i = 0; i < l->sb.dir_pages && !r; i++)
		if (!dedup_build_entry(&b, &l->table.root[i]))
			r = -ENOSPC;
	if (!r)
		r = dedup_journal_write(&l->journal, &b, DEDUP_APPEND_CHECKPOINT);
	if (r) {
		l->writable = false;
		return r;
	}
	dedup_delta_clear(&l->delta[!l->active]);
	l->frozen = false;
	return 0;
}

int dedup_ledger_stop(struct dedup_ledger *l, struct dedup_why *why)
{
	int r = 0;

	if (!l->writable)
		return -EROFS;
	if (l->delta[l->active].nr) {
		dedup_ledger_freeze(l);
		r = dedup_ledger_write_tables(l, why);
		if (!r)
			r = dedup_ledger_finish(l);
	}
	if (!r) {
		l->sb.journal_seq = l->journal.seq;
		r = dedup_supers_write(&l->disk, &l->sb);
	}
	l->writable = false;
	return r;
}

u64 dedup_ledger_memory(const struct dedup_super *sb)
{
	u64 slots = delta_slots(sb);
	u64 recs = slots + sb->nr_volumes;
	u64 delta = recs * (sizeof(struct dedup_delta_rec) + 16) + slots * sb->slot_bytes +
		    (u64)sb->nr_volumes * sizeof(struct dedup_disk_volume);

	return 2 * delta + sb->table_pages * sizeof(struct dedup_disk_entry) +
	       sb->dir_pages * (sizeof(struct dedup_disk_entry) + 1ULL) +
	       (256 + max_t(u32, sb->append_pages, sb->root_pages)) * (u64)DEDUP_PAGE_BYTES;
}

_Static_assert(DEDUP_APPEND_MAX_PAGES * (DEDUP_PAGE_BYTES / 32) <= DEDUP_DELTA_SLOTS,
	       "an append of FREE changes fits in an empty delta");
