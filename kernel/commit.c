// SPDX-License-Identifier: GPL-2.0-only
/*
 * FLUSH and FUA: who waits for a commit.
 *
 * A write sets its valid bits and puts its slot on the list of changes, under one hold of
 * change_lock, before it completes; next_slot_change() takes a slot off the list and reads the
 * bits under one hold, too. A FLUSH that comes
 * after the completion therefore finds the change pending, or in the commit in flight, or
 * durable. In the first two cases it waits for a commit that is asked for now; a commit begins
 * with a preflush, which makes the data of the write durable, too. In the third the data of
 * all writes is made durable by passing the flush down.
 */
#include "dedup.h"

/* Has the volume changes that are not durable? */
bool volume_commit_pending(struct volume *vol)
{
	struct cache *c = vol->cache;
	unsigned long flags;
	bool ret;

	spin_lock_irqsave(&c->change_lock, flags);
	ret = vol->nr_pending || vol->in_commit || vol->rec_pending;
	spin_unlock_irqrestore(&c->change_lock, flags);
	return ret;
}

/*
 * A FUA write was completed by the disk already, and held back by volume_end_io(): what the block
 * layer counts was counted then. What is left is device-mapper's end.
 */
void commit_done(struct bio *bio, int error)
{
	if (error)
		bio->bi_status = errno_to_blk_status(error);
	if (bio_data_of(bio)->flags & BIO_FUA)
		bio->bi_end_io(bio);
	else
		bio_endio(bio);
}

/* Completes the bio when all changes made so far are durable. Any context. */
void commit_wait(struct cache *c, struct volume *vol, struct bio *bio)
{
	unsigned long flags;
	int error;

	this_cpu_inc(vol->stats->commits);
	/* Asked for under the lock: cache_committed() cannot miss a bio that is not listed yet. */
	spin_lock_irqsave(&c->change_lock, flags);
	error = c->error;
	if (!error) {
		bio_data_of(bio)->commit_seq = dedup_store_commit(c->store);
		bio_list_add(&c->commit_bios, bio);
	}
	spin_unlock_irqrestore(&c->change_lock, flags);
	if (error)
		commit_done(bio, error);
}
