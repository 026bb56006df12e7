// SPDX-License-Identifier: GPL-2.0-only
/* Between records in memory and bytes on disk: superblocks, records, pages. */
#include "codec.h"

void dedup_say(struct dedup_why *why, const char *fmt, ...)
{
	va_list ap;

	if (!why)
		return;
	va_start(ap, fmt);
	vsnprintf(why->text, sizeof(why->text), fmt, ap);
	va_end(ap);
}

/* ---- layout ---- */

static void layout_derive(struct dedup_super *sb)
{
	u32 bitmap = (1U << (sb->block_shift - DEDUP_SECTOR_SHIFT)) / 8;
	u32 entries_head = (DEDUP_PAGE_BYTES - sizeof(struct dedup_disk_append)) /
			   sizeof(struct dedup_disk_entry);
	u32 entries_cont = (DEDUP_PAGE_BYTES - sizeof(struct dedup_disk_cont)) /
			   sizeof(struct dedup_disk_entry);
	u32 change;

	sb->bitmap_bytes = bitmap;
	sb->slot_bytes = 40 + max_t(u32, bitmap, 8);
	sb->slots_per_page = DEDUP_PAGE_PAYLOAD / sb->slot_bytes;
	sb->volume_pages = DIV_ROUND_UP_ULL((u64)sb->nr_volumes, DEDUP_VOLUMES_PER_PAGE);
	sb->table_pages = sb->volume_pages +
			  DIV_ROUND_UP_ULL(sb->nr_slots, sb->slots_per_page);
	sb->dir_pages = DIV_ROUND_UP_ULL((u64)sb->table_pages, DEDUP_DIR_ENTRIES);
	sb->root_pages = 1;
	if (sb->dir_pages > entries_head)
		sb->root_pages += DIV_ROUND_UP_ULL((u64)sb->dir_pages - entries_head,
						   entries_cont);
	change = sizeof(struct dedup_disk_change) +
		 max_t(u32, sb->slot_bytes, sizeof(struct dedup_disk_volume));
	sb->max_changes = (DEDUP_PAGE_BYTES - sizeof(struct dedup_disk_append)) / change +
			  (sb->append_pages - 1) *
			  ((DEDUP_PAGE_BYTES - sizeof(struct dedup_disk_cont)) / change);
}

/* Everything for @nr_slots slots; returns the bytes of the disk that it takes. */
static u64 layout_for(struct dedup_super *sb, u64 nr_slots)
{
	u64 at;

	sb->nr_slots = nr_slots;
	layout_derive(sb);
	sb->journal_start = DEDUP_ALIGN_BYTES;
	at = sb->journal_start + (u64)sb->journal_pages * DEDUP_PAGE_BYTES;
	sb->table_start = at;
	at += 2ULL * sb->table_pages * DEDUP_PAGE_BYTES;
	sb->dir_start = at;
	at += 2ULL * sb->dir_pages * DEDUP_PAGE_BYTES;
	sb->data_start = (at + DEDUP_ALIGN_BYTES - 1) & ~(u64)(DEDUP_ALIGN_BYTES - 1);
	return sb->data_start + (nr_slots << sb->block_shift) + DEDUP_ALIGN_BYTES;
}

static u32 default_journal_pages(u64 device_bytes)
{
	u64 pages = (device_bytes >> DEDUP_PAGE_SHIFT) >> 7;

	pages &= ~(u64)(DEDUP_ALIGN_BYTES / DEDUP_PAGE_BYTES - 1);
	return clamp_t(u64, pages, DEDUP_JOURNAL_LOW_PAGES, DEDUP_JOURNAL_MAX_PAGES);
}

static void layout_init(struct dedup_super *sb, u64 device_bytes, u32 block_shift,
			u32 journal_pages)
{
	memset(sb, 0, sizeof(*sb));
	sb->block_shift = block_shift;
	sb->device_bytes = device_bytes;
	sb->nr_volumes = DEDUP_VOLUMES;
	sb->journal_pages = journal_pages ? journal_pages : default_journal_pages(device_bytes);
	sb->append_pages = min_t(u32, sb->journal_pages / 8, DEDUP_APPEND_MAX_PAGES);
}

int dedup_layout_journal(struct dedup_super *sb, u64 device_bytes, u32 block_shift,
			 u32 journal_pages)
{
	u64 nr;

	if (block_shift < DEDUP_BLOCK_SHIFT_MIN || block_shift > DEDUP_BLOCK_SHIFT_MAX)
		return -EINVAL;
	if (journal_pages && (journal_pages < DEDUP_JOURNAL_MIN_PAGES ||
			      journal_pages > DEDUP_JOURNAL_MAX_PAGES))
		return -EINVAL;
	layout_init(sb, device_bytes, block_shift, journal_pages);
	if (layout_for(sb, DEDUP_MIN_SLOTS) > device_bytes)
		return -ENOSPC;
	nr = device_bytes >> block_shift;
	if (nr > DEDUP_MAX_SLOTS)
		return -EFBIG;
	/* Tables shrink with the number of slots: what is too much tells how many to give up. */
	for (;;) {
		u64 need = layout_for(sb, nr);

		if (need <= device_bytes)
			break;
		nr -= ((need - device_bytes) >> (block_shift + 1)) + 1;
	}
	return sb->root_pages > sb->journal_pages / 8 ? -EINVAL : 0;
}

int dedup_layout(struct dedup_super *sb, u64 device_bytes, u32 block_shift)
{
	return dedup_layout_journal(sb, device_bytes, block_shift, 0);
}

u64 dedup_min_bytes(u32 block_shift)
{
	struct dedup_super sb;
	u64 bytes = 0;
	u64 need;

	/* The journal grows with the disk, so the answer is a fixed point. */
	for (;;) {
		layout_init(&sb, bytes, block_shift, 0);
		need = layout_for(&sb, DEDUP_MIN_SLOTS);
		if (need <= bytes)
			return bytes;
		bytes = need;
	}
}

/* ---- superblock ---- */

void dedup_super_encode(const struct dedup_super *sb, void *buf)
{
	struct dedup_disk_super *d = buf;

	memset(d, 0, sizeof(*d));
	d->magic = cpu_to_le64(DEDUP_SUPER_MAGIC);
	d->version = cpu_to_le32(DEDUP_SUPER_VERSION);
	d->generation = cpu_to_le64(sb->generation);
	d->features_compat = cpu_to_le64(sb->features_compat);
	d->features_ro = cpu_to_le64(sb->features_ro);
	d->features_incompat = cpu_to_le64(sb->features_incompat);
	memcpy(d->cache_uuid, sb->cache_uuid, sizeof(d->cache_uuid));
	memcpy(d->cluster_uuid, sb->cluster_uuid, sizeof(d->cluster_uuid));
	memcpy(d->incarnation, sb->incarnation, sizeof(d->incarnation));
	d->incarnation_nr = cpu_to_le32(sb->incarnation_nr);
	d->block_shift = cpu_to_le32(sb->block_shift);
	d->device_bytes = cpu_to_le64(sb->device_bytes);
	d->journal_start = cpu_to_le64(sb->journal_start);
	d->journal_pages = cpu_to_le32(sb->journal_pages);
	d->append_pages = cpu_to_le32(sb->append_pages);
	d->table_start = cpu_to_le64(sb->table_start);
	d->dir_start = cpu_to_le64(sb->dir_start);
	d->data_start = cpu_to_le64(sb->data_start);
	d->nr_slots = cpu_to_le64(sb->nr_slots);
	d->table_pages = cpu_to_le32(sb->table_pages);
	d->dir_pages = cpu_to_le32(sb->dir_pages);
	d->nr_volumes = cpu_to_le32(sb->nr_volumes);
	d->journal_seq = cpu_to_le64(sb->journal_seq);
	memcpy(d->label, sb->label, sizeof(d->label));
	d->crc = cpu_to_le32(dedup_crc32c(~0U, d, sizeof(*d)));
}

/* Everything that later code divides by, indexes with or seeks to. */
static bool super_possible(struct dedup_super *sb)
{
	struct dedup_super want = *sb;

	if (sb->block_shift < DEDUP_BLOCK_SHIFT_MIN || sb->block_shift > DEDUP_BLOCK_SHIFT_MAX ||
	    !sb->nr_slots || sb->nr_slots > DEDUP_MAX_SLOTS || sb->nr_volumes != DEDUP_VOLUMES)
		return false;
	if (sb->journal_pages < DEDUP_JOURNAL_MIN_PAGES ||
	    sb->journal_pages > DEDUP_JOURNAL_MAX_PAGES ||
	    !sb->append_pages || sb->append_pages > DEDUP_APPEND_MAX_PAGES ||
	    sb->append_pages > sb->journal_pages / 8 ||
	    sb->incarnation_nr > DEDUP_MAX_INCARNATION || !sb->journal_seq ||
	    sb->label[DEDUP_LABEL_BYTES - 1])
		return false;
	if (layout_for(&want, sb->nr_slots) > sb->device_bytes)
		return false;
	if (want.journal_start != sb->journal_start || want.table_start != sb->table_start ||
	    want.dir_start != sb->dir_start || want.data_start != sb->data_start ||
	    want.table_pages != sb->table_pages || want.dir_pages != sb->dir_pages ||
	    want.root_pages > sb->journal_pages / 8)
		return false;
	*sb = want;
	return true;
}

int dedup_super_decode(struct dedup_super *sb, const void *buf)
{
	struct dedup_disk_super d;
	__le32 crc;

	memcpy(&d, buf, sizeof(d));
	if (le64_to_cpu(d.magic) != DEDUP_SUPER_MAGIC)
		return -EINVAL;
	crc = d.crc;
	d.crc = 0;
	if (dedup_crc32c(~0U, &d, sizeof(d)) != le32_to_cpu(crc))
		return -EBADMSG;
	if (le32_to_cpu(d.version) != DEDUP_SUPER_VERSION ||
	    le64_to_cpu(d.features_incompat) & ~DEDUP_FEATURES_INCOMPAT)
		return -EPROTONOSUPPORT;

	memset(sb, 0, sizeof(*sb));
	sb->generation = le64_to_cpu(d.generation);
	sb->features_compat = le64_to_cpu(d.features_compat);
	sb->features_ro = le64_to_cpu(d.features_ro);
	sb->features_incompat = le64_to_cpu(d.features_incompat);
	memcpy(sb->cache_uuid, d.cache_uuid, sizeof(sb->cache_uuid));
	memcpy(sb->cluster_uuid, d.cluster_uuid, sizeof(sb->cluster_uuid));
	memcpy(sb->incarnation, d.incarnation, sizeof(sb->incarnation));
	sb->incarnation_nr = le32_to_cpu(d.incarnation_nr);
	sb->block_shift = le32_to_cpu(d.block_shift);
	sb->device_bytes = le64_to_cpu(d.device_bytes);
	sb->journal_start = le64_to_cpu(d.journal_start);
	sb->journal_pages = le32_to_cpu(d.journal_pages);
	sb->append_pages = le32_to_cpu(d.append_pages);
	sb->table_start = le64_to_cpu(d.table_start);
	sb->dir_start = le64_to_cpu(d.dir_start);
	sb->data_start = le64_to_cpu(d.data_start);
	sb->nr_slots = le64_to_cpu(d.nr_slots);
	sb->table_pages = le32_to_cpu(d.table_pages);
	sb->dir_pages = le32_to_cpu(d.dir_pages);
	sb->nr_volumes = le32_to_cpu(d.nr_volumes);
	sb->journal_seq = le64_to_cpu(d.journal_seq);
	memcpy(sb->label, d.label, sizeof(sb->label));
	return super_possible(sb) ? 0 : -EUCLEAN;
}

/* ---- records ---- */

u32 dedup_record_bytes(const struct dedup_super *sb, u8 kind)
{
	return kind == DEDUP_CHANGE_VOLUME ? sizeof(struct dedup_disk_volume) : sb->slot_bytes;
}

u32 dedup_slot_encode(const struct dedup_super *sb, void *buf, const struct dedup_slot_rec *rec)
{
	struct dedup_disk_slot *d = buf;

	memset(buf, 0, sb->slot_bytes);
	d->seq = cpu_to_le64(rec->seq);
	d->state = rec->state;
	switch (rec->state) {
	case DEDUP_SLOT_CLEAN:
		memcpy(d->fp, rec->fp, sizeof(d->fp));
		return sizeof(*d);
	case DEDUP_SLOT_DIRTY:
		d->flags = rec->flags;
		d->dirty.volume = cpu_to_le64(rec->volume);
		d->dirty.block = cpu_to_le64(rec->block);
		d->dirty.cut = cpu_to_le64(rec->cut);
		memcpy((u8 *)buf + offsetof(struct dedup_disk_slot, dirty.bitmap), rec->bitmap,
		       sb->bitmap_bytes);
		return sb->slot_bytes;
	default:
		return offsetof(struct dedup_disk_slot, fp);
	}
}

int dedup_slot_decode(const struct dedup_super *sb, struct dedup_slot_rec *rec, const void *buf)
{
	const struct dedup_disk_slot *d = buf;
	u32 bitmap_at = offsetof(struct dedup_disk_slot, dirty.bitmap);

	memset(rec, 0, sizeof(*rec));
	rec->state = d->state;
	rec->flags = d->flags;
	rec->seq = le64_to_cpu(d->seq);
	switch (rec->state) {
	case DEDUP_SLOT_FREE:
		return rec->flags ? -EUCLEAN : 0;
	case DEDUP_SLOT_CLEAN:
		memcpy(rec->fp, d->fp, sizeof(rec->fp));
		return rec->flags ? -EUCLEAN : 0;
	case DEDUP_SLOT_DIRTY:
		rec->volume = le64_to_cpu(d->dirty.volume);
		rec->block = le64_to_cpu(d->dirty.block);
		rec->cut = le64_to_cpu(d->dirty.cut);
		memcpy(rec->bitmap, (const u8 *)buf + bitmap_at, sb->bitmap_bytes);
		return rec->flags & ~(DEDUP_OVERLAY_BASE_ZERO | DEDUP_OVERLAY_COMPLETE) ?
			-EUCLEAN : 0;
	default:
		return -EUCLEAN;
	}
}

u32 dedup_volume_encode(void *buf, const struct dedup_volume_rec *rec)
{
	struct dedup_disk_volume *d = buf;

	memset(d, 0, sizeof(*d));
	d->id = cpu_to_le64(rec->id);
	memcpy(d->image, rec->image, sizeof(d->image));
	memcpy(d->root, rec->root, sizeof(d->root));
	d->lease_epoch = cpu_to_le64(rec->lease_epoch);
	d->size = cpu_to_le64(rec->size);
	d->cut_counter = cpu_to_le64(rec->cut_counter);
	d->committed_cut = cpu_to_le64(rec->committed_cut);
	d->flags = cpu_to_le32(rec->flags);
	memcpy(d->name, rec->name, sizeof(d->name));
	d->name[sizeof(d->name) - 1] = 0;
	return sizeof(*d);
}

int dedup_volume_decode(struct dedup_volume_rec *rec, const void *buf)
{
	const struct dedup_disk_volume *d = buf;

	memset(rec, 0, sizeof(*rec));
	rec->id = le64_to_cpu(d->id);
	memcpy(rec->image, d->image, sizeof(rec->image));
	memcpy(rec->root, d->root, sizeof(rec->root));
	rec->lease_epoch = le64_to_cpu(d->lease_epoch);
	rec->size = le64_to_cpu(d->size);
	rec->cut_counter = le64_to_cpu(d->cut_counter);
	rec->committed_cut = le64_to_cpu(d->committed_cut);
	rec->flags = le32_to_cpu(d->flags);
	memcpy(rec->name, d->name, sizeof(rec->name));
	return rec->name[sizeof(rec->name) - 1] ? -EUCLEAN : 0;
}

const char *dedup_volume_wrong(const struct dedup_volume_rec *rec)
{
	if (!rec->id)
		return "it has no id";
	if (!rec->size || rec->size > DEDUP_MAX_SIZE || rec->size & 511)
		return "its size is none that a volume can have";
	if (rec->committed_cut > DEDUP_MAX_CUT)
		return "its committed cut is none that there can be";
	if (rec->cut_counter <= rec->committed_cut || rec->cut_counter > rec->committed_cut + 2)
		return "its cut counter does not follow its committed cut";
	if (rec->name[sizeof(rec->name) - 1])
		return "its name has no end";
	return NULL;
}

/* ---- table and directory pages ---- */

void dedup_record_at(const struct dedup_super *sb, u8 kind, u64 index, u32 *page, u32 *offset)
{
	u32 per_page = kind == DEDUP_CHANGE_VOLUME ? DEDUP_VOLUMES_PER_PAGE : sb->slots_per_page;
	u32 nr = div_u64(index, per_page);

	*page = nr + (kind == DEDUP_CHANGE_VOLUME ? 0 : sb->volume_pages);
	*offset = sizeof(struct dedup_disk_page) +
		  (u32)(index - (u64)nr * per_page) * dedup_record_bytes(sb, kind);
}

u8 dedup_page_records(const struct dedup_super *sb, u32 page, u64 *first, u32 *nr)
{
	if (page < sb->volume_pages) {
		*first = (u64)page * DEDUP_VOLUMES_PER_PAGE;
		*nr = min_t(u64, DEDUP_VOLUMES_PER_PAGE, sb->nr_volumes - *first);
		return DEDUP_CHANGE_VOLUME;
	}
	*first = (u64)(page - sb->volume_pages) * sb->slots_per_page;
	*nr = min_t(u64, sb->slots_per_page, sb->nr_slots - *first);
	return DEDUP_CHANGE_SLOT;
}

u32 dedup_page_seal(const struct dedup_super *sb, void *buf, u32 magic, u64 index, u64 seq)
{
	struct dedup_disk_page *d = buf;
	u32 crc;

	memset(d, 0, sizeof(*d));
	d->magic = cpu_to_le32(magic);
	d->index = cpu_to_le64(index);
	d->seq = cpu_to_le64(seq);
	memcpy(d->tag, sb->cache_uuid, sizeof(d->tag));
	crc = dedup_crc32c(~0U, d, DEDUP_PAGE_BYTES);
	d->crc = cpu_to_le32(crc);
	return crc;
}

int dedup_page_check(const struct dedup_super *sb, const void *buf, u32 magic, u64 index,
		     const struct dedup_disk_entry *entry)
{
	struct dedup_disk_page d;
	__le32 crc;

	memcpy(&d, buf, sizeof(d));
	if (le32_to_cpu(d.magic) != magic || le64_to_cpu(d.index) != index ||
	    d.seq != entry->seq || d.crc != entry->crc ||
	    memcmp(d.tag, sb->cache_uuid, sizeof(d.tag)))
		return -EUCLEAN;
	crc = d.crc;
	d.crc = 0;
	if (dedup_crc32c(dedup_crc32c(~0U, &d, sizeof(d)), (const u8 *)buf + sizeof(d),
			 DEDUP_PAGE_BYTES - sizeof(d)) != le32_to_cpu(crc))
		return -EUCLEAN;
	return 0;
}

/* ---- appends ---- */

void dedup_build_start(struct dedup_builder *b, void *buf, u32 max_pages, u64 seq)
{
	b->buf = buf;
	b->seq = seq;
	b->max_pages = max_pages;
	b->at = sizeof(struct dedup_disk_append);
	b->nr_items = 0;
	memset(buf, 0, DEDUP_PAGE_BYTES);
}

/* Where @bytes more bytes would begin: no item crosses the end of a page. */
static u32 build_place(const struct dedup_builder *b, u32 bytes)
{
	u32 in_page = b->at & (DEDUP_PAGE_BYTES - 1);

	if (in_page && in_page + bytes <= DEDUP_PAGE_BYTES)
		return b->at;
	return ((b->at + DEDUP_PAGE_BYTES - 1) & ~(DEDUP_PAGE_BYTES - 1)) +
	       sizeof(struct dedup_disk_cont);
}

static void *build_take(struct dedup_builder *b, u32 bytes)
{
	u32 at = build_place(b, bytes);
	u32 page = at & ~(DEDUP_PAGE_BYTES - 1);

	if (at + bytes > b->max_pages * DEDUP_PAGE_BYTES)
		return NULL;
	if (at - page == sizeof(struct dedup_disk_cont)) {
		struct dedup_disk_cont *cont = (void *)(b->buf + page);

		memset(cont, 0, DEDUP_PAGE_BYTES);
		cont->magic = cpu_to_le64(DEDUP_CONT_MAGIC);
		cont->seq = cpu_to_le64(b->seq);
	}
	b->at = at + bytes;
	b->nr_items++;
	return b->buf + at;
}

bool dedup_build_has_room(const struct dedup_super *sb, const struct dedup_builder *b)
{
	u32 bytes = sizeof(struct dedup_disk_change) +
		    max_t(u32, sb->slot_bytes, sizeof(struct dedup_disk_volume));

	return build_place(b, bytes) + bytes <= b->max_pages * DEDUP_PAGE_BYTES;
}

bool dedup_build_change(const struct dedup_super *sb, struct dedup_builder *b,
			const struct dedup_change *change)
{
	/* The longest record: a slot's with 1 MiB blocks is 296 bytes, a volume's is 384. */
	u64 rec[sizeof(struct dedup_disk_volume) / 8];
	struct dedup_disk_change *d;
	u32 bytes;

	if (change->kind == DEDUP_CHANGE_VOLUME)
		bytes = dedup_volume_encode(rec, &change->volume);
	else
		bytes = dedup_slot_encode(sb, rec, &change->slot);
	d = build_take(b, sizeof(*d) + bytes);
	if (!d)
		return false;
	d->kind = change->kind;
	d->bytes = cpu_to_le16(bytes);
	d->index = cpu_to_le64(change->index);
	memcpy(d + 1, rec, bytes);
	return true;
}

bool dedup_build_entry(struct dedup_builder *b, const struct dedup_disk_entry *entry)
{
	struct dedup_disk_entry *d = build_take(b, sizeof(*d));

	if (!d)
		return false;
	*d = *entry;
	return true;
}

void dedup_build_seal(const struct dedup_super *sb, struct dedup_builder *b,
		      struct dedup_append *head)
{
	struct dedup_disk_append *d = (void *)b->buf;

	head->pages = (b->at + DEDUP_PAGE_BYTES - 1) >> DEDUP_PAGE_SHIFT;
	head->nr_items = b->nr_items;
	head->seq = b->seq;
	memset(d, 0, sizeof(*d));
	d->magic = cpu_to_le64(DEDUP_APPEND_MAGIC);
	memcpy(d->cache_uuid, sb->cache_uuid, sizeof(d->cache_uuid));
	memcpy(d->incarnation, head->incarnation, sizeof(d->incarnation));
	d->seq = cpu_to_le64(head->seq);
	d->prev_crc = cpu_to_le32(head->prev_crc);
	d->incarnation_nr = cpu_to_le32(head->incarnation_nr);
	d->kind = cpu_to_le32(head->kind);
	d->pages = cpu_to_le32(head->pages);
	d->nr_items = cpu_to_le32(head->nr_items);
	d->checkpoint_seq = cpu_to_le64(head->checkpoint_seq);
	d->replay_seq = cpu_to_le64(head->replay_seq);
	d->checkpoint_page = cpu_to_le32(head->checkpoint_page);
	d->replay_page = cpu_to_le32(head->replay_page);
	d->header_crc = cpu_to_le32(dedup_crc32c(~0U, d, sizeof(*d)));
	head->crc = dedup_crc32c(~0U, d, (size_t)head->pages * DEDUP_PAGE_BYTES);
	d->crc = cpu_to_le32(head->crc);
}

int dedup_append_head(const struct dedup_super *sb, const void *page, struct dedup_append *head)
{
	struct dedup_disk_append d;
	__le32 header_crc;

	memcpy(&d, page, sizeof(d));
	if (le64_to_cpu(d.magic) != DEDUP_APPEND_MAGIC ||
	    memcmp(d.cache_uuid, sb->cache_uuid, sizeof(d.cache_uuid)))
		return -ENOENT;
	head->crc = le32_to_cpu(d.crc);
	header_crc = d.header_crc;
	d.header_crc = 0;
	d.crc = 0;
	if (dedup_crc32c(~0U, &d, sizeof(d)) != le32_to_cpu(header_crc))
		return -ENOENT;
	memcpy(head->incarnation, d.incarnation, sizeof(head->incarnation));
	head->seq = le64_to_cpu(d.seq);
	head->prev_crc = le32_to_cpu(d.prev_crc);
	head->incarnation_nr = le32_to_cpu(d.incarnation_nr);
	head->kind = le32_to_cpu(d.kind);
	head->pages = le32_to_cpu(d.pages);
	head->nr_items = le32_to_cpu(d.nr_items);
	head->checkpoint_seq = le64_to_cpu(d.checkpoint_seq);
	head->replay_seq = le64_to_cpu(d.replay_seq);
	head->checkpoint_page = le32_to_cpu(d.checkpoint_page);
	head->replay_page = le32_to_cpu(d.replay_page);
	if (!head->pages ||
	    head->pages > max_t(u32, sb->append_pages, sb->root_pages) ||
	    head->nr_items > head->pages * (DEDUP_PAGE_BYTES / 16) ||
	    !head->replay_seq || head->replay_seq > head->checkpoint_seq ||
	    head->checkpoint_seq > head->seq ||
	    head->checkpoint_page >= sb->journal_pages || head->replay_page >= sb->journal_pages)
		return -ENOENT;
	return 0;
}

int dedup_append_check(const void *buf, const struct dedup_append *head)
{
	struct dedup_disk_append d;
	u32 crc;

	memcpy(&d, buf, sizeof(d));
	d.crc = 0;
	crc = dedup_crc32c(~0U, &d, sizeof(d));
	crc = dedup_crc32c(crc, (const u8 *)buf + sizeof(d),
			   (size_t)head->pages * DEDUP_PAGE_BYTES - sizeof(d));
	return crc == head->crc ? 0 : -EBADMSG;
}

void dedup_cursor_start(struct dedup_cursor *c, const void *buf, const struct dedup_append *head)
{
	c->buf = buf;
	c->pages = head->pages;
	c->at = sizeof(struct dedup_disk_append);
	c->left = head->nr_items;
}

/* The start of an item whose head has @bytes bytes; skips to the next page at a page's end. */
static const void *cursor_peek(struct dedup_cursor *c, u32 bytes)
{
	u32 in_page = c->at & (DEDUP_PAGE_BYTES - 1);

	if (!in_page || in_page + bytes > DEDUP_PAGE_BYTES) {
		c->at = ((c->at + DEDUP_PAGE_BYTES - 1) & ~(DEDUP_PAGE_BYTES - 1)) +
			sizeof(struct dedup_disk_cont);
	}
	if (c->at + bytes > c->pages * DEDUP_PAGE_BYTES)
		return NULL;
	return c->buf + c->at;
}

int dedup_cursor_change(const struct dedup_super *sb, struct dedup_cursor *c, u8 *kind, u64 *index,
			const void **rec, u32 *bytes)
{
	const struct dedup_disk_change *d;
	u32 min, max, len;

	if (!c->left)
		return 0;
	d = cursor_peek(c, sizeof(*d));
	if (d && !d->kind) {
		/* The rest of this page is empty. */
		c->at = (c->at | (DEDUP_PAGE_BYTES - 1)) + 1;
		d = cursor_peek(c, sizeof(*d));
	}
	if (!d)
		return -EUCLEAN;
	*kind = d->kind;
	*index = le64_to_cpu(d->index);
	len = le16_to_cpu(d->bytes);
	if (d->kind == DEDUP_CHANGE_VOLUME) {
		min = sizeof(struct dedup_disk_volume);
		max = min;
		if (*index >= sb->nr_volumes)
			return -EUCLEAN;
	} else {
		min = offsetof(struct dedup_disk_slot, fp);
		max = sb->slot_bytes;
		if (d->kind != DEDUP_CHANGE_SLOT || *index >= sb->nr_slots)
			return -EUCLEAN;
	}
	if (len < min || len > max || len & 7 ||
	    (c->at & (DEDUP_PAGE_BYTES - 1)) + sizeof(*d) + len > DEDUP_PAGE_BYTES)
		return -EUCLEAN;
	*rec = d + 1;
	*bytes = len;
	c->at += sizeof(*d) + len;
	c->left--;
	return 1;
}

int dedup_cursor_entry(struct dedup_cursor *c, struct dedup_disk_entry *entry)
{
	const struct dedup_disk_entry *d;

	if (!c->left)
		return 0;
	d = cursor_peek(c, sizeof(*d));
	if (!d || le32_to_cpu(d->place) > 1)
		return -EUCLEAN;
	*entry = *d;
	c->at += sizeof(*d);
	c->left--;
	return 1;
}
