// SPDX-License-Identifier: GPL-2.0-or-later
/* What people ask for of volumes: push, detach, handover, recover. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "agent/pusher_impl.h"
#include "base/clock.h"

static int add_push(struct pusher *p, const struct dm_dedup_volume_info *v, bool make_version,
		      const char *label, struct push_result *result, struct error *err)
{
	struct push_result one;
	int r = pusher_push(p, v, make_version, label, &one, err);

	if (r)
		return r;
	if (one.cut)
		result->cut = one.cut;
	result->root = one.root;
	result->version = one.version;
	result->blocks += one.blocks;
	result->new_blocks += one.new_blocks;
	result->bytes_sent += one.bytes_sent;
	return 0;
}

static int task_push(struct pusher *p, struct pusher_task *task)
{
	struct dm_dedup_volume_info v;
	struct uuid image;
	int r;

	r = pusher_find_volume(p, task, &v, &task->err);
	if (r)
		return r;
	if (!policy_can_be_pushed(&v))
		return error_set(&task->err, -EROFS, "volume %s cannot be pushed: it %s", v.name,
				 v.flags & DM_DEDUP_VOL_EPHEMERAL ? "is ephemeral" :
				 v.flags & DM_DEDUP_VOL_READONLY  ? "is read-only" :
				 v.flags & (DM_DEDUP_VOL_DIVERGED | DM_DEDUP_VOL_FENCED) ?
								    "has diverged from its image" :
								    "holds no lease");
	/* A cut that an earlier push has left comes first; what was written since is above it. */
	if (v.closed_cut > v.committed_cut)
		r = add_push(p, &v, false, NULL, &task->result, &task->err);
	if (!r)
		r = add_push(p, &v, task->make_version, task->label, &task->result, &task->err);
	if (r || task->result.version || !task->make_version)
		return r;
	/* Nothing was dirty, or the meta server had committed this cut before, without a version. */
	memcpy(image.b, v.image, sizeof(image.b));
	return push_cluster_snapshot(&p->servers, &image, task->label, META_TIMEOUT_MS,
				     &task->result, &task->err);
}

static int push_to_the_end(struct pusher *p, struct pusher_task *task,
			   const struct dm_dedup_volume_info *v)
{
	uint64_t cut;
	int r;

	/* A cut that was closed before may leave open overlays above it: twice at most. */
	do {
		cut = task->result.cut;
		r = add_push(p, v, false, NULL, &task->result, &task->err);
	} while (!r && task->result.cut != cut);
	return r;
}

static int release_volume(struct pusher *p, const struct dm_dedup_volume_info *v, bool discard,
			  struct error *err)
{
	struct cache *c = p->params.cache;
	int r;

	r = c->ops->release(c, v->volume, v->lease_epoch,
			    discard ? DM_DEDUP_RELEASE_DISCARD : 0);
	if (r == -EBUSY)
		return error_set(err, r, "volume %s is still open or holds unpushed data", v->name);
	if (r)
		return error_set(err, r, "cannot release volume %s: %s", v->name, strerror(-r));
	return 0;
}

static int task_discard(struct pusher *p, struct pusher_task *task)
{
	struct dm_dedup_volume_info v;
	size_t i;
	int r;

	r = pusher_find_volume(p, task, &v, &task->err);
	if (r || !(v.flags & DM_DEDUP_VOL_EPHEMERAL) || v.flags & DM_DEDUP_VOL_OPEN)
		return r;
	r = release_volume(p, &v, true, &task->err);
	if (!r) {
		p->readers = READERS_GONE;
		i = p->next_discarded++ % MAX_DISCARDED;
		p->discarded[i].image = task->image;
		memcpy(p->discarded[i].name, v.name, sizeof(v.name));
	}
	return r;
}

/* @volume: the image's UUID, or the name that it was opened by. True once for each. */
static bool was_discarded(struct pusher *p, const char *volume)
{
	struct uuid image;
	bool by_uuid = !uuid_from_text(&image, volume);
	size_t i;

	for (i = 0; i < MAX_DISCARDED; i++) {
		if (uuid_is_null(&p->discarded[i].image) ||
		    (by_uuid ? !uuid_equal(&p->discarded[i].image, &image) :
			       strcmp(p->discarded[i].name, volume)))
			continue;
		memset(&p->discarded[i], 0, sizeof(p->discarded[i]));
		return true;
	}
	return false;
}

struct opening {
	struct agent *agent;
	const struct uuid *image;
	bool is;
};

static void opening_in_loop(void *arg)
{
	struct opening *o = arg;

	o->is = agent_opens_image(o->agent, o->image);
}

/* The lease of an image without a volume here. */
struct left {
	struct uuid image, leased;
	uint64_t epoch;
};

/*
 * No volume has the task's name. 0: one has it all the same, @v: the image was renamed, or the
 * volume was opened by the image's UUID, or only just now. LEASE_LEFT: an agent died, or the meta
 * server was away, between the cache's RELEASE and the lease's: the volume has gone and the image
 * is still leased to this cache (or to whom it was handed over). -ENOENT: neither.
 */
#define LEASE_LEFT 1
static int find_by_lease(struct pusher *p, struct pusher_task *task, struct dm_dedup_volume_info *v,
			 struct left *left)
{
	struct opening o = { .agent = p->params.agent, .image = &left->image };
	struct error err = { 0 };
	struct uuid cache;
	int r;

	r = pusher_need_cluster(p, &err);
	if (!r)
		r = push_cluster_lease(&p->servers, task->name, META_TIMEOUT_MS, &left->image,
				       &left->leased, &left->epoch, &err);
	if (r)
		return -ENOENT;
	/*
	 * Nothing is concluded from a name: only the cache's records tell whether the image has a
	 * volume here. An OPEN whose lease is of this epoch or an older one is under way at the first
	 * look, or has left its record for the second. Whoever opens it later gets a lease of another
	 * epoch: volume.c, `renew`.
	 */
	if (!loop_call(p->params.loop, opening_in_loop, &o))
		return -ENOENT;
	task->err.code = 0;
	r = pusher_find_image(p, &left->image, task->name, v, &task->err);
	task->image = left->image;
	if (r != -ENOENT)
		return r;
	if (o.is)
		return error_set(&task->err, -EBUSY, "image %s is being opened on this host", task->name);
	pusher_holder(p, &cache);
	if (uuid_equal(&left->leased, &cache) ||
	    (task->kind == TASK_HANDOVER && uuid_equal(&left->leased, &task->to_cache))) {
		task->err.code = 0;
		return LEASE_LEFT;
	}
	return -ENOENT;
}

static int task_detach(struct pusher *p, struct pusher_task *task)
{
	struct dm_dedup_volume_info v;
	struct uuid image, cache;
	bool leased, discard;
	struct left left;
	int r;

	r = pusher_find_volume(p, task, &v, &task->err);
	if (r == -ENOENT && was_discarded(p, task->name)) {
		task->err.code = 0;
		return 0;
	}
	if (r == -ENOENT)
		r = find_by_lease(p, task, &v, &left);
	if (r == LEASE_LEFT)
		return push_cluster_release(&p->servers, &left.image, &left.leased, left.epoch,
					    META_TIMEOUT_MS, &task->err);
	if (r)
		return r;
	if (v.flags & DM_DEDUP_VOL_OPEN)
		return error_set(&task->err, -EBUSY,
				 "volume %s is still open: remove its device first (dmsetup remove)",
				 v.name);
	leased = v.flags & DM_DEDUP_VOL_GRANTED && v.lease_epoch &&
		 !(v.flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL));
	discard = task->discard || v.flags & DM_DEDUP_VOL_EPHEMERAL;
	if (policy_is_unpushed(&v) && !discard) {
		if (task->no_push)
			return error_set(&task->err, -EBUSY,
					 "volume %s holds %llu bytes that were not pushed", v.name,
					 (unsigned long long)v.dirty_bytes);
		r = push_to_the_end(p, task, &v);
		if (r)
			return r;
	}
	if (leased) {
		r = pusher_need_cluster(p, &task->err);
		if (r)
			return r;
	}
	/* First the cache gives the grant up durably, then the meta server may give it away. */
	r = release_volume(p, &v, discard, &task->err);
	if (!r && !leased)
		p->readers = READERS_GONE;
	if (r || !leased)
		return r;
	memcpy(image.b, v.image, sizeof(image.b));
	pusher_holder(p, &cache);
	return push_cluster_release(&p->servers, &image, &cache, v.lease_epoch, META_TIMEOUT_MS,
				    &task->err);
}

/*
 * ---- handover: the switch ----
 *
 * S is this host, T the other; e the epoch of S's lease. Every row is what stands durably, the last
 * column who can write, or can come to by an OPEN. Whoever dies, it goes on from the row reached.
 *
 *     step          S's record     meta server   head      who
 *  1  device gone   grant e        lease S, e    behind    S: the record has the grant
 *  2  push: commit  grant e        lease S, e    at cut    S; its next push finds the cut committed
 *  3  push: COMMIT  grant e        lease S, e    at cut    S
 *  4  RELEASE       none           lease S, e    the end   S, and only by the meta server: it has no
 *                                                          grant, and gets the lease under e + 1
 *  5  LeaseHandover none           lease T, e+1  the end   T, by an OPEN; S is told EBUSY
 *
 *  - T cannot write before 5: the lease is S's, and T has no record.
 *  - S cannot write after 4 without the meta server's word, and that is one transaction's: either
 *    5 came before it (EBUSY), or 5 comes after it and brings an epoch that is over (ESTALE). So a
 *    message of 5 whose agent is dead, and that arrives at any later time, takes nothing from a
 *    volume that was opened here meanwhile.
 *  - RELEASE is refused while a device is open or anything lies above the committed cut; so nothing
 *    acknowledged on S is missing from the head that T opens.
 *  - 5 twice is once: in the session by its sequence, else because T has it already.
 *  - From 4, whose volume is gone, a repeated handover goes on by what the meta server says
 *    (find_by_lease).
 *  - If T never comes, the image is leased to T: `break-lease` as for any host that is lost. Before the
 *    grant is given up T's agent has answered (handover.c).
 */
static int handover_lease(struct pusher *p, struct pusher_task *task, const struct uuid *image,
			  uint64_t epoch)
{
	uint64_t start = clock_mono_ns();
	struct uuid cache;
	int r;

	pusher_holder(p, &cache);
	task->lease_epoch = epoch;
	r = push_cluster_handover(&p->servers, image, &cache, task, &task->lease_epoch,
				  META_TIMEOUT_MS, &task->err);
	task->lease_ms = (clock_mono_ns() - start) / 1000000;
	return r ? error_prefix(&task->err, "the volume is given up here, and its lease not handed over "
				"yet (the same command again does it)"), r : 0;
}

static int task_handover(struct pusher *p, struct pusher_task *task)
{
	struct dm_dedup_volume_info v;
	struct left left;
	struct uuid image;
	uint64_t start;
	int r;

	r = pusher_find_volume(p, task, &v, &task->err);
	if (r == -ENOENT)
		r = find_by_lease(p, task, &v, &left);
	if (r == LEASE_LEFT) {
		task->lease_epoch = left.epoch;
		return uuid_equal(&left.leased, &task->to_cache) ?
			       0 : handover_lease(p, task, &left.image, left.epoch);
	}
	if (r)
		return r;
	if (v.flags & DM_DEDUP_VOL_OPEN)
		return error_set(&task->err, -EBUSY,
				 "volume %s is still open: remove its device first (dmsetup remove)",
				 v.name);
	if (!policy_can_be_pushed(&v) || !v.lease_epoch)
		return error_set(&task->err, -EROFS, "volume %s cannot be handed over: it %s", v.name,
				 v.flags & (DM_DEDUP_VOL_DIVERGED | DM_DEDUP_VOL_FENCED) ?
					 "has diverged from its image" : "holds no lease");
	r = pusher_need_cluster(p, &task->err);
	if (!r && policy_is_unpushed(&v))
		r = push_to_the_end(p, task, &v);
	start = clock_mono_ns();
	if (!r)
		r = release_volume(p, &v, false, &task->err);
	task->release_ms = (clock_mono_ns() - start) / 1000000;
	memcpy(image.b, v.image, sizeof(image.b));
	return r ?: handover_lease(p, task, &image, v.lease_epoch);
}

/* ---- recover ---- */

/* Nobody removes the new image before it has all: from the cache's COMMIT on the rest stands on it. */
static int lease_recovered(struct push_recover *to, struct error *err)
{
	struct agent_lease lease = { .image = to->image };
	struct pusher *p = to->ctx;
	struct uuid cache;
	int r;

	pusher_holder(p, &cache);
	r = network_take_lease(p->servers.cluster, &cache, p->params.host, &lease, META_TIMEOUT_MS, err);
	to->epoch = lease.epoch;
	return r;
}

/* What lies above the first cut follows, under the lease on the new image, which ends then. */
static int recover_the_rest(struct pusher *p, struct pusher_task *task,
			    const struct dm_dedup_volume_info *v, struct push_recover *to)
{
	struct push_result rest;
	struct uuid cache;
	int r;

	to->new_image = NULL;
	r = push_volume(&p->env, v, to, false, NULL, &rest, &task->err);
	if (!r && rest.cut) {
		task->result.root = rest.root;
		task->result.blocks += rest.blocks;
		task->result.new_blocks += rest.new_blocks;
		task->result.bytes_sent += rest.bytes_sent;
	}
	pusher_holder(p, &cache);
	return r ?: push_cluster_release(&p->servers, &to->image, &cache, to->epoch,
					 META_TIMEOUT_MS, &task->err);
}

/* A volume whose lease is lost: what it holds becomes a new image over the root that it stands
 * on, which its broken lease keeps; then the volume and that lease are given up. */
static int task_recover(struct pusher *p, struct pusher_task *task)
{
	struct push_recover to = { .new_image = task->new_image, .lease = lease_recovered, .ctx = p };
	struct dm_dedup_volume_info v;
	struct uuid image, cache;
	int r;

	r = pusher_find_volume(p, task, &v, &task->err) ?: pusher_need_cluster(p, &task->err);
	if (r)
		return r;
	if (!(v.flags & (DM_DEDUP_VOL_DIVERGED | DM_DEDUP_VOL_FENCED)))
		return error_set(&task->err, -EINVAL, "volume %s has not diverged: push it", v.name);
	if (v.flags & DM_DEDUP_VOL_OPEN)
		return error_set(&task->err, -EBUSY,
				 "volume %s is still open: remove its device first (dmsetup remove)",
				 v.name);
	r = push_volume(&p->env, &v, &to, false, NULL, &task->result, &task->err);
	if (r == -EEXIST)
		return error_set(&task->err, r, "there is an image %.100s already: give another name, or "
				 "none. If an earlier `volume recover` made it and did not end: the new "
				 "image will have all of it; then `vmdedup volume detach %.100s` and "
				 "`vmdedup image rm` remove the earlier one", to.new_image, to.new_image);
	if (r)
		return r;
	if (!task->result.cut)
		return error_set(&task->err, -ENODATA, "volume %s holds nothing that was not pushed: "
				 "`vmdedup volume detach %s --discard` gives it up", v.name, v.name);
	r = recover_the_rest(p, task, &v, &to) ?: release_volume(p, &v, true, &task->err);
	if (r)
		return r;
	memcpy(image.b, v.image, sizeof(image.b));
	pusher_holder(p, &cache);
	return push_cluster_release(&p->servers, &image, &cache, v.lease_epoch, META_TIMEOUT_MS,
				    &task->err);
}

void pusher_run_task(struct pusher *p, struct pusher_task *task)
{
	static int (*const run[])(struct pusher *p, struct pusher_task *task) = {
		[TASK_PUSH] = task_push,
		[TASK_DETACH] = task_detach,
		[TASK_DISCARD] = task_discard,
		[TASK_RECOVER] = task_recover,
		[TASK_HANDOVER] = task_handover,
	};
	uint64_t start = clock_mono_ns();
	int r = run[task->kind](p, task);

	if (r && !task->err.code)
		error_set(&task->err, r, "%s", strerror(-r));
	task->milliseconds = (clock_mono_ns() - start) / 1000000;
	loop_post(p->params.loop, &task->work);
}
