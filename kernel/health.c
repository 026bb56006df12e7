// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a cache can still do. It only ever gets worse, until the cache is opened again:
 *
 *	mode    because                              reads               writes   commits
 *	rw                                           all                 all      all
 *	ro      an append to the journal failed,     what is on the      fail     fail; not the
 *	        or writes to more slots than the     disk, and what the           agent's if only
 *	        reserve has                          agent can MAP                slots are bad
 *	failed  the superblock cannot be read, too   fail                fail     fail
 *
 * A write to a slot that fails is its writer's trouble, a CLEAN slot that cannot be read nobody's, for
 * its block is fetched again (reread.c); but the slot is not used again, and the journal is written
 * to see whether the disk still takes anything. (Nothing else might: what did not get written
 * leaves no record.) A flush that fails ends all commits: what was written before it may be lost.
 *
 * A device-mapper event of the cache's device tells of each step, and of slots that have become bad.
 * Nobody waits for what cannot come any more: parked I/O fails when the disk has failed, and in
 * mode ro when there is no agent.
 */
#include "dedup.h"
#include "trace.h"

static const char * const mode_names[] = {
	[CACHE_RW] = "rw",
	[CACHE_RO] = "ro",
	[CACHE_FAILED] = "failed",
};

const char *cache_mode_name(struct cache *c)
{
	return mode_names[READ_ONCE(c->mode)];
}

/* The disk may have trouble: somebody should look. Any context. */
void health_suspect(struct cache *c)
{
	if (!READ_ONCE(c->suspect))
		WRITE_ONCE(c->suspect, true);
}

/* Must a read that lacks a block fail, because nothing can bring it any more? */
bool health_is_hopeless(struct cache *c)
{
	return READ_ONCE(c->mode) == CACHE_FAILED ||
	       (READ_ONCE(c->error) && !channel_has_agent(c->channel));
}

/*
 * A read has failed: can it be for its slot alone? Not if the disk cannot be read at all, and it
 * does not help to know when no other slot can be written. Sleeps.
 */
bool health_disk_reads(struct cache *c)
{
	if (READ_ONCE(c->error))
		return false;
	if (!dedup_store_probe(c->store))
		return true;
	queue_work(c->wq, &c->health_work);
	return false;
}

static void health_event(struct cache *c)
{
	mutex_lock(&c->mutex);
	if (c->table)
		dm_table_event(c->table);
	mutex_unlock(&c->mutex);
}

static void health_set_mode(struct cache *c, enum cache_mode mode)
{
	WRITE_ONCE(c->mode, mode);
	trace_dedup_mode(c, mode_names[mode]);
	if (mode == CACHE_FAILED)
		DMERR("the cache's disk cannot be read or written any more: all I/O fails");
	else if (dedup_store_error(c->store))
		DMERR("the cache's metadata cannot be written any more (error %d): no more writes",
		      c->error);
	else
		DMERR("%u slots are bad: no more writes, but a push is possible",
		      READ_ONCE(c->nr_bad));
	health_event(c);
}

/* Writes the record of some volume once more: as it is, so that it does not matter which. */
static void health_append(struct cache *c)
{
	struct volume *vol;

	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list) {
		bool found;

		spin_lock(&c->lock);
		found = vol->rec.id;
		if (found)
			volume_changed(vol);
		spin_unlock(&c->lock);
		if (found)
			break;
	}
	mutex_unlock(&c->mutex);
	/* If that fails, cache_committed() sets the error, and the space worker has us look again. */
	dedup_store_sync(c->store);
}

/* Have more slots become bad? Then there may be more than bad slots. */
static void health_look_at_slots(struct cache *c)
{
	u32 bad = READ_ONCE(c->nr_bad);

	if (bad == c->bad_seen || READ_ONCE(c->error))
		return;
	DMERR("%u slots could not be written or read; they are not used again", bad - c->bad_seen);
	c->bad_seen = bad;
	health_event(c);
	health_append(c);
}

/* Ends everything that waits, in all volumes. */
void cache_fail_parked(struct cache *c)
{
	struct volume *vol;

	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		volume_fail_parked(vol);
	mutex_unlock(&c->mutex);
}

/* Own work, for a disk may be slow to say that it is dead. */
void health_work(struct work_struct *work)
{
	struct cache *c = container_of(work, struct cache, health_work);
	enum cache_mode mode = CACHE_RW;

	WRITE_ONCE(c->suspect, false);
	if (c->mode != CACHE_FAILED && dedup_store_probe(c->store)) {
		mode = CACHE_FAILED;
		spin_lock_irq(&c->change_lock);
		/* No more writes. The store finds out by itself. */
		if (!c->error)
			WRITE_ONCE(c->error, -EIO);
		spin_unlock_irq(&c->change_lock);
	} else {
		health_look_at_slots(c);
		if (READ_ONCE(c->error))
			mode = CACHE_RO;
	}
	if (mode > c->mode)
		health_set_mode(c, mode);
	if (READ_ONCE(c->error))
		space_waiters_run(c, true);
	if (health_is_hopeless(c))
		cache_fail_parked(c);
}

/* Once a second. */
void health_tick(struct cache *c)
{
	if (READ_ONCE(c->suspect) || READ_ONCE(c->error))
		queue_work(c->wq, &c->health_work);
}
