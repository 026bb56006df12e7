// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads that the disk has failed. What a CLEAN slot holds can be fetched again: a slot that cannot
 * be read is given up, so that no map names it any more, and who reads its block misses.
 *
 *	read from          then
 *	anywhere           all is read again in pieces, each from one place, one after the other:
 *	                   the request may have failed for another bio, or for being read ahead
 *	elsewhere by now   a piece: read again from its start. The guest has written some of it, or a
 *	                   COMMIT or another reader has changed where it is
 *	a CLEAN slot       a piece: the slot is given up, and the piece read again: once. So it is with
 *	                   a slot that a COMMIT is about to make CLEAN
 *	an overlay         a piece: the error is the guest's: it is there and nowhere else
 *
 * A guest may write the sectors at any time. So where a piece lies is looked up once, when it is
 * submitted; the piece is cut down to what that look has seen, and it is what is decided by later.
 *
 * Nothing is given up when the disk cannot be read at all, when a block that came could not be
 * written, or when as many slots are bad as the reserve has: then the error is the guest's, too.
 *
 * The bio keeps its reference until the worker has looked at its slot, which can therefore not have
 * become another block's meanwhile.
 */
#include "dedup.h"

/* As it was before it was submitted, and no more than what is still to be read. */
static void read_rewind(struct bio *bio)
{
	struct bio_data *bd = bio_data_of(bio);

	bio->bi_iter = bd->iter;
	bio->bi_flags = bd->bio_flags;
	bio->bi_status = BLK_STS_OK;
	/* Its submitter has gone on; and now it matters whether it fails, and for itself alone. */
	bio->bi_opf &= ~(REQ_NOWAIT | REQ_POLLED | REQ_RAHEAD | REQ_FAILFAST_MASK);
	bio->bi_opf |= REQ_NOMERGE;
	/* A bio that was split, here or below, has used that up. */
	atomic_set(&bio->__bi_remaining, 1);
}

/*
 * read_failed - a read has ended with an error
 *
 * Any context. True: the worker looks into it, and the bio has not ended.
 */
bool read_failed(struct bio *bio, blk_status_t status)
{
	struct bio_data *bd = bio_data_of(bio);

	if (bio_op(bio) != REQ_OP_READ || READ_ONCE(bd->vol->cache->error) ||
	    (status != BLK_STS_IOERR && status != BLK_STS_MEDIUM))
		return false;
	bd->flags |= BIO_FAILED;
	volume_defer(bd->vol, bio);
	return true;
}

/* Under the reference of the piece that has failed: its slot's number means what it did. */
static bool piece_has_moved(struct cache *c, struct bio_data *bd)
{
	sector_t sector = bd->iter.bi_sector;
	struct view view;
	struct run run;

	view_load(bd->vol, sector >> c->sector_shift, &view);
	view_run(c, &view, sector & (c->block_sectors - 1), bd->sectors, &run);
	return run.kind != ENTRY_BASE || run.slot != bd->slot || run.overlaid != bd->overlaid ||
	       run.len != bd->sectors;
}

/* May the read that has failed be tried again? The bio holds its reference. */
static bool read_may_again(struct cache *c, struct bio_data *bd)
{
	u8 flags = bd->flags;

	if (!health_disk_reads(c))
		return false;
	bd->flags |= BIO_PIECES;
	if (!(flags & BIO_PIECES) || piece_has_moved(c, bd))
		return true;
	if (bd->overlaid)
		return false;
	bd->flags |= BIO_GIVEN_UP;
	return !(flags & BIO_GIVEN_UP) && slot_unreadable(c, bd->slot);
}

/* In the worker, after read_failed(). False: the bio has ended, with its error. */
bool read_again(struct volume *vol, struct bio *bio)
{
	struct bio_data *bd = bio_data_of(bio);
	bool again = read_may_again(vol->cache, bd);

	bd->flags &= ~(BIO_FAILED | BIO_INFLIGHT);
	inflight_leave(&vol->cache->inflight, bd->epoch);
	if (again)
		read_rewind(bio);
	else
		/* What the block layer counts was counted when the disk completed it. */
		bio->bi_end_io(bio);
	return again;
}

/* The one look at the next piece of a read: cuts the bio down to it, and notes where it lies. */
void read_next_piece(struct cache *c, struct bio *bio, const struct view *view, struct run *run)
{
	u32 offset = bio->bi_iter.bi_sector & (c->block_sectors - 1);
	struct bio_data *bd = bio_data_of(bio);

	view_run(c, view, offset, min(bio_sectors(bio), c->block_sectors - offset), run);
	bio->bi_iter.bi_size = run->len << SECTOR_SHIFT;
	bd->slot = run->slot;
	bd->overlaid = run->overlaid;
	bd->sectors = run->len;
}

/*
 * read_goes_on - a piece of a read has been read
 *
 * Any context. True: the worker reads the next one, and the bio has not ended.
 */
bool read_goes_on(struct bio *bio)
{
	struct bio_data *bd = bio_data_of(bio);

	bio_advance_iter(bio, &bd->iter, bd->sectors << SECTOR_SHIFT);
	if (!bd->iter.bi_size)
		return false;
	bd->flags &= ~(BIO_INFLIGHT | BIO_GIVEN_UP);
	inflight_leave(&bd->vol->cache->inflight, bd->epoch);
	read_rewind(bio);
	volume_defer(bd->vol, bio);
	return true;
}
