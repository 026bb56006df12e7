// SPDX-License-Identifier: GPL-2.0-only
/* A piece of a read that the disk has failed: what becomes of it when its place changes meanwhile. */
#include "fake_kunit.h"

struct fake_read {
	u8 before[1024];	/* device-mapper keeps our data of a bio here */
	struct bio bio;
	bool done;
};

static void fake_end_io(struct bio *bio)
{
	container_of(bio, struct fake_read, bio)->done = true;
}

/* Block 0: a base, and an overlay with sectors 2 to 4. */
struct world {
	struct cache *c;
	struct volume *vol;
	struct overlay *ov;
	u32 base;
};

static void map_base(struct world *w, u64 *where)
{
	spin_lock(&w->c->lock);
	*where = entry_make(ENTRY_BASE, w->base, w->c->slots[w->base].gen);
	spin_unlock(&w->c->lock);
}

static void guest_writes(struct cache *c, struct overlay *ov, u16 offset, u32 sectors)
{
	struct bio_data bd = { .ov = ov, .offset = offset, .sectors = sectors };

	overlay_written(c, &bd);
}

static void world_init(struct kunit *test, struct world *w)
{
	w->c = fake_cache_on(test, fake_disk(test, 12, FAKE_SLOTS));
	w->vol = fake_volume(test, w->c, 8);
	w->base = fake_alloc_clean(w->c);
	KUNIT_ASSERT_EQ(test, volume_make_leaf(w->vol, 0, GFP_KERNEL), 0);
	map_base(w, volume_slot_of(w->vol, 0));
	w->ov = fake_open(w->vol, 0, 0);
	KUNIT_ASSERT_NOT_NULL(test, w->ov);
	guest_writes(w->c, w->ov, 2, 3);
	KUNIT_ASSERT_EQ(test, dedup_store_sync(w->c->store), 0);
}

/* From @sector to the end of the block, and @left sectors beyond. */
static struct fake_read *read_in_pieces(struct kunit *test, struct world *w, u32 sector, u32 left)
{
	struct fake_read *fr = kunit_kzalloc(test, sizeof(*fr), GFP_KERNEL);
	struct bio_data *bd;

	KUNIT_ASSERT_NOT_NULL(test, fr);
	bio_init(&fr->bio, NULL, NULL, 0, REQ_OP_READ);
	fr->bio.bi_end_io = fake_end_io;
	fr->bio.bi_iter.bi_sector = sector;
	fr->bio.bi_iter.bi_size = (w->c->block_sectors - sector + left) << SECTOR_SHIFT;
	bd = bio_data_of(&fr->bio);
	bd->vol = w->vol;
	bd->flags = BIO_PIECES;
	bio_note_read(&fr->bio, bd, sector);
	return fr;
}

/* As the worker does before it submits a piece, and after the disk has failed it. */
static void piece_begins(struct world *w, struct fake_read *fr)
{
	struct view view;
	struct run run;

	bio_hold(&fr->bio, inflight_enter(&w->c->inflight));
	view_load(w->vol, 0, &view);
	read_next_piece(w->c, &fr->bio, &view, &run);
}

static bool piece_fails(struct world *w, struct fake_read *fr)
{
	fr->bio.bi_status = BLK_STS_MEDIUM;
	bio_data_of(&fr->bio)->flags |= BIO_FAILED;
	return read_again(w->vol, &fr->bio);
}

enum then { NOTHING, WRITTEN, CUT_AND_WRITTEN, COMMITTED, ZEROED, GIVEN_UP };

static void happens(struct kunit *test, struct world *w, enum then then)
{
	static const u8 fp[DEDUP_FP_BYTES] = { 7 };
	struct overlay *ov = w->ov;
	struct cache *c = w->c;

	switch (then) {
	case NOTHING:
		break;
	case WRITTEN:
		guest_writes(c, ov, 1, 1);
		break;
	case CUT_AND_WRITTEN:
	case ZEROED:
		w->vol->cut_counter = ++w->vol->rec.cut_counter;
		ov = fake_open(w->vol, 0, then == ZEROED ? DEDUP_OVERLAY_BASE_ZERO : 0);
		KUNIT_ASSERT_NOT_NULL(test, ov);
		if (then == CUT_AND_WRITTEN)
			guest_writes(c, ov, 0, c->block_sectors);
		break;
	case COMMITTED:
		spin_lock(&c->lock);
		*volume_slot_of(w->vol, 0) = entry_make(ENTRY_BASE, ov->slot,
							c->slots[ov->slot].gen);
		overlay_kill(c, ov);
		slot_make_clean(c, ov->slot, fp);
		spin_unlock(&c->lock);
		break;
	case GIVEN_UP:
		KUNIT_EXPECT_TRUE(test, slot_unreadable(c, w->base));
		break;
	}
}

static const struct {
	const char *name;
	u32 sector;		/* where the read begins */
	enum then then;
	bool again;
	bool base_stays;
} reread_table[] = {
	{ "the base", 0, NOTHING, true, false },
	{ "the base, the guest writes", 0, WRITTEN, true, true },
	{ "the base, the guest writes after a cut", 0, CUT_AND_WRITTEN, true, true },
	{ "the base, the guest zeroes", 0, ZEROED, true, true },
	{ "the base, another reader was faster", 0, GIVEN_UP, true, false },
	{ "an overlay", 2, NOTHING, false, true },
	{ "an overlay, the guest writes elsewhere", 2, WRITTEN, false, true },
	{ "an overlay, the guest writes after a cut", 2, CUT_AND_WRITTEN, true, true },
	{ "an overlay, the guest zeroes", 2, ZEROED, true, true },
	{ "an overlay that becomes the base", 2, COMMITTED, true, true },
};

static void reread_moved_test(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(reread_table); i++) {
		u32 sector = reread_table[i].sector, left = 5;
		struct bio_data *bd;
		struct fake_read *fr;
		struct world w;

		world_init(test, &w);
		fr = read_in_pieces(test, &w, sector, left);
		bd = bio_data_of(&fr->bio);
		piece_begins(&w, fr);
		/* One look, whatever comes after it. */
		KUNIT_EXPECT_EQ(test, bd->slot, sector ? w.ov->slot : w.base);
		KUNIT_EXPECT_EQ(test, bd->overlaid, sector != 0);
		KUNIT_EXPECT_EQ(test, bd->sectors, sector ? 3U : 2U);
		KUNIT_EXPECT_EQ(test, bio_sectors(&fr->bio), bd->sectors);
		happens(test, &w, reread_table[i].then);

		KUNIT_EXPECT_EQ_MSG(test, piece_fails(&w, fr), reread_table[i].again, "%s",
				    reread_table[i].name);
		KUNIT_EXPECT_EQ_MSG(test, fr->done, !reread_table[i].again, "%s",
				    reread_table[i].name);
		KUNIT_EXPECT_EQ_MSG(test, w.c->slots[w.base].state == SLOT_CLEAN,
				    reread_table[i].base_stays, "%s", reread_table[i].name);
		if (reread_table[i].again)
			KUNIT_EXPECT_EQ(test, bio_sectors(&fr->bio),
					w.c->block_sectors - sector + left);
		/* The reference is gone: else this waits for ever. */
		inflight_drain(&w.c->inflight);
	}
}

/* Once: when what was brought instead cannot be read either, it is the guest's error. */
static void reread_once_test(struct kunit *test)
{
	struct fake_read *fr;
	struct world w;

	world_init(test, &w);
	fr = read_in_pieces(test, &w, 0, 0);
	piece_begins(&w, fr);
	KUNIT_EXPECT_TRUE(test, piece_fails(&w, fr));
	w.base = fake_alloc_clean(w.c);
	map_base(&w, &w.ov->below);
	piece_begins(&w, fr);
	KUNIT_EXPECT_FALSE(test, piece_fails(&w, fr));
	KUNIT_EXPECT_TRUE(test, fr->done);
	KUNIT_EXPECT_TRUE(test, fr->bio.bi_status == BLK_STS_MEDIUM);
	KUNIT_EXPECT_EQ(test, w.c->slots[w.base].state, (u8)SLOT_CLEAN);
}

static struct kunit_case reread_cases[] = {
	KUNIT_CASE(reread_moved_test),
	KUNIT_CASE(reread_once_test),
	{}
};

static struct kunit_suite reread_suite = {
	.name = "dm_dedup_reread",
	.test_cases = reread_cases,
};

kunit_test_suite(reread_suite);
