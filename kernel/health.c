// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a cache can still do. It only ever gets worse, until the cache is opened again:
 *
 *	mode    because                              reads               writes   commits
 *	rw                                           all                 all      all
 *	ro      an append to the journal failed      what is on the      fail     fail
 *	                                             disk, and what the
 *	                                             agent can MAP
 *	failed  the superblock cannot be read, too   fail                fail     fail
 *
 * A device-mapper event of the cache's device tells of each step. Nobody waits for what cannot
 * come any more: parked I/O fails when the disk has failed, and in mode ro when there is no agent.
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

static void health_set_mode(struct cache *c, enum cache_mode mode)
{
	WRITE_ONCE(c->mode, mode);
	trace_dedup_mode(c, mode_names[mode]);
	if (mode == CACHE_FAILED)
		DMERR("the cache's disk cannot be read or written any more: all I/O fails");
	else
		DMERR("the cache's metadata cannot be written any more (error %d): no more writes",
		      c->error);
	mutex_lock(&c->mutex);
	if (c->table)
		dm_table_event(c->table);
	mutex_unlock(&c->mutex);
}

/* Ends everything that waits, in all volumes. */
void cache_fail_parked(struct cache *c)
{
	struct volume *vol;

	mutex_lock(&c->mutex);
	list_for_each_entry(vol, &c->volumes, list)
		volume_return_parked(vol, BLK_STS_IOERR);
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
	} else if (READ_ONCE(c->error)) {
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
