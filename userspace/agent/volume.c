// SPDX-License-Identifier: GPL-2.0-or-later
/* LOOKUP, OPEN, CLOSE, and the grants of open volumes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/core_impl.h"
#include "base/log.h"

#define OPEN_SETTLES_S 60 /* the cache has a record of what was answered, or has refused it */

struct volume *volume_find(struct agent *a, const struct uuid *image)
{
	struct volume *v;

	LIST_FOREACH(v, &a->volumes, link)
		if (uuid_equal(&v->image, image))
			return v;
	return NULL;
}

static bool is_dirty(const struct dm_dedup_volume_info *info)
{
	return info->flags & DM_DEDUP_VOL_DIRTY || info->closed_cut > info->committed_cut;
}

/* Opened by a table without flags, under a lease that must still be there. */
static bool stands_on_lease(uint32_t flags)
{
	return flags & DM_DEDUP_VOL_GRANTED &&
	       !(flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL | DM_DEDUP_VOL_DIVERGED));
}

/* A volume's record as the kernel tells it. */
int volume_learn(struct agent *a, const struct dm_dedup_volume_info *info)
{
	struct volume *v;
	struct uuid image;

	memcpy(image.b, info->image, sizeof(image.b));
	v = volume_find(a, &image);
	if (!v) {
		v = calloc(1, sizeof(*v));
		if (!v)
			return -ENOMEM;
		v->image = image;
		LIST_INSERT_HEAD(&a->volumes, v, link);
		/* It was open before this agent was there: somebody may have broken its lease. */
		v->unconfirmed = info->flags & DM_DEDUP_VOL_OPEN && stands_on_lease(info->flags);
		v->retry_ns = agent_now(a);
	}
	memcpy(v->name, info->name, sizeof(v->name));
	v->name[sizeof(v->name) - 1] = 0;
	v->size = info->size;
	v->epoch = info->lease_epoch;
	v->flags = info->flags;
	v->id = info->volume;
	memcpy(v->root.b, info->root, FP_SIZE);
	return 0;
}

static void volume_free(struct agent *a, struct volume *v)
{
	prefetch_ended(a, v, false);
	job_end(a, &v->confirm);
	LIST_REMOVE(v, link);
	free(v);
}

/* @name may be an image's UUID. *several: that many have it, and none of them is meant. */
static struct volume *volume_by_name(struct agent *a, const char *name, bool *several)
{
	struct volume *v, *found = NULL;
	struct uuid image;

	*several = false;
	if (!uuid_from_text(&image, name))
		return volume_find(a, &image);
	LIST_FOREACH(v, &a->volumes, link) {
		if (strcmp(v->name, name))
			continue;
		*several = found;
		found = v;
	}
	return *several ? NULL : found;
}

void agent_forget_volume(struct agent *a, const struct uuid *image)
{
	struct volume *v = volume_find(a, image);

	if (v && !agent_opens_image(a, image))
		volume_free(a, v);
}

uint64_t agent_image_fetches(struct agent *a, const struct uuid *image)
{
	struct volume *v = volume_find(a, image);

	return v ? v->fetches : 0;
}

bool agent_opens_image(struct agent *a, const struct uuid *image)
{
	struct volume *v = volume_find(a, image);
	struct ask *ask;

	LIST_FOREACH(ask, &a->asks, link)
		if (ask->type == DM_DEDUP_UP_OPEN &&
		    !memcmp(ask->info.image, image->b, sizeof(image->b)))
			return true;
	return v && v->open_cookie &&
	       agent_now(a) < v->opened_ns + OPEN_SETTLES_S * NSEC_PER_SEC;
}

size_t agent_open_images(struct agent *a, struct uuid *images, size_t max)
{
	struct volume *v;
	size_t n = 0;

	LIST_FOREACH(v, &a->volumes, link)
		if (v->flags & DM_DEDUP_VOL_OPEN && n < max)
			images[n++] = v->image;
	return n;
}

void agent_image_reads(struct agent *a, const struct uuid *image, struct agent_reads *reads)
{
	struct volume *v = volume_find(a, image);

	*reads = v ? v->reads : (struct agent_reads){ 0 };
}

/* ---- LOOKUP and OPEN ---- */

/* A volume that was opened ephemeral holds no lease; one that holds a lease is not to lose what
 * was not pushed because its next table says `ephemeral`. */
static bool is_dirty_ephemeral(const struct dm_dedup_volume_info *info)
{
	return is_dirty(info) && info->flags & DM_DEDUP_VOL_EPHEMERAL && !info->lease_epoch;
}

static bool must_refuse(const struct dm_dedup_volume_info *info)
{
	return is_dirty(info) && info->flags & DM_DEDUP_VOL_EPHEMERAL && info->lease_epoch;
}

static void ask_send(struct agent *a, struct ask *ask)
{
	struct agent_lease take = { .epoch = ask->info.lease_epoch };
	uint32_t flags = ask->info.flags;

	ask->retry_ns = 0;
	if (ask->type != DM_DEDUP_UP_OPEN) {
		a->ops->image(a->ctx, job_start(a, &ask->job, JOB_ASK, ask), ask->info.name);
		return;
	}
	memcpy(take.image.b, ask->info.image, sizeof(take.image.b));
	take.confirm_only = is_dirty(&ask->info) && !is_dirty_ephemeral(&ask->info);
	take.readonly = !take.confirm_only &&
			flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL);
	take.renew = ask->renew;
	memcpy(take.root.b, ask->info.root, FP_SIZE);
	a->ops->lease(a->ctx, job_start(a, &ask->job, JOB_ASK, ask), &take);
}

static struct ask *ask_new(struct agent *a, uint16_t type)
{
	struct ask *ask = calloc(1, sizeof(*ask));

	if (!ask)
		return NULL;
	ask->type = type;
	ask->until_ns = agent_now(a) + a->params.lookup_wait_s * NSEC_PER_SEC;
	LIST_INSERT_HEAD(&a->asks, ask, link);
	return ask;
}

static void ask_free(struct agent *a, struct ask *ask)
{
	job_end(a, &ask->job);
	LIST_REMOVE(ask, link);
	free(ask);
}

static void ask_retry_later(struct agent *a, struct ask *ask)
{
	ask->retry_ns = backoff(a, &ask->attempt);
}

static void ask_refuse(struct agent *a, struct ask *ask, int r)
{
	if (ask->done)
		ask->done(ask->arg, r, NULL);
	else
		a->ops->reply(a->ctx, ask->cookie, -r, NULL);
	ask_free(a, ask);
}

static void reply_lookup(struct agent *a, struct ask *ask, const struct uuid *image, uint64_t size)
{
	struct dm_dedup_volume_info info = { .size = size };

	memcpy(info.image, image->b, sizeof(info.image));
	a->ops->reply(a->ctx, ask->cookie, 0, &info);
	ask_free(a, ask);
}

static void reply_open(struct agent *a, struct ask *ask, const struct fp *root, uint64_t epoch,
		       uint64_t cut, uint64_t size, bool confirmed)
{
	struct dm_dedup_volume_info info = {
		.lease_epoch = epoch,
		.committed_cut = cut,
		.size = size,
		.flags = ask->info.flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL),
	};
	struct volume *v;
	struct uuid image;

	memcpy(info.root, root->b, sizeof(info.root));
	memcpy(image.b, ask->info.image, sizeof(image.b));
	ask->info.size = size;
	ask->info.lease_epoch = epoch;
	memcpy(ask->info.root, root->b, FP_SIZE);
	ask->info.flags |= DM_DEDUP_VOL_OPEN;
	if (epoch)
		ask->info.flags |= DM_DEDUP_VOL_GRANTED;
	if (!volume_learn(a, &ask->info)) {
		v = volume_find(a, &image);
		job_end(a, &v->confirm); /* that was about the grant before this one */
		v->unconfirmed = !confirmed && stands_on_lease(ask->info.flags);
		v->attempt = 0;
		v->retry_ns = v->opened_ns = agent_now(a);
		v->open_cookie = ask->cookie;
	}
	a->ops->reply(a->ctx, ask->cookie, 0, &info);
	ask_free(a, ask);
	v = volume_find(a, &image);
	if (v)
		prefetch_opened(a, v, root);
}

/* The grant stands in the record of the cache: enough to go on without the meta server. */
static void open_from_record(struct agent *a, struct ask *ask)
{
	struct fp root;

	log_warn("volume %s: opened on what its record holds; the meta server will be asked later",
		 ask->info.name);
	memcpy(root.b, ask->info.root, sizeof(root.b));
	reply_open(a, ask, &root, ask->info.lease_epoch, ask->info.committed_cut, ask->info.size,
		   false);
}

static bool record_suffices(const struct ask *ask)
{
	return ask->info.volume && ask->info.size &&
	       ask->info.flags & (DM_DEDUP_VOL_GRANTED | DM_DEDUP_VOL_READONLY);
}

static void ask_unreachable(struct agent *a, struct ask *ask, int r)
{
	struct volume *v = NULL;
	bool several = false;

	if (ask->type == DM_DEDUP_UP_OPEN && record_suffices(ask)) {
		open_from_record(a, ask);
		return;
	}
	if (ask->type == DM_DEDUP_UP_LOOKUP)
		v = volume_by_name(a, ask->info.name, &several);
	if (v)
		reply_lookup(a, ask, &v->image, v->size);
	else if (agent_now(a) >= ask->until_ns)
		ask_refuse(a, ask, several ? -EEXIST : -ETIMEDOUT);
	else /* the meta server knows which image has a name; records do not */
		ask_retry_later(a, ask);
}

void agent_image_done(struct agent *a, uint64_t id, int r, const struct agent_image *image)
{
	struct ask *ask = job_take(a, id, JOB_ASK);

	if (!ask)
		return;
	meta_answered(a, r, "image");
	if (AGENT_IS_UNREACHABLE(r)) {
		ask_unreachable(a, ask, r);
	} else if (r) {
		if (!ask->done)
			log_warn("cannot look up image %s: %s", ask->info.name, strerror(-r));
		ask_refuse(a, ask, r);
	} else if (ask->done) {
		ask->done(ask->arg, 0, image);
		ask_free(a, ask);
	} else {
		reply_lookup(a, ask, &image->uuid, image->size);
	}
}

/* The meta server has refused to confirm the lease of a volume that holds unpushed writes. */
static void lease_is_lost(struct agent *a, const struct uuid *image, const char *name,
			  uint64_t epoch)
{
	log_error("volume %s: its lease (epoch %llu) is no longer this host's: writes stop, and what "
		  "was not pushed waits to be recovered as a new image",
		  name, (unsigned long long)epoch);
	a->ops->fence(a->ctx, image, epoch);
}

static void open_answered(struct agent *a, struct ask *ask, int r, const struct agent_lease *lease)
{
	struct uuid image;

	memcpy(image.b, ask->info.image, sizeof(image.b));
	if (r) {
		if (r == -ESTALE && is_dirty(&ask->info))
			lease_is_lost(a, &image, ask->info.name, ask->info.lease_epoch);
		ask_refuse(a, ask, r);
		return;
	}
	/* A lease without a grant: an earlier agent was about to give it away, or died before this
	 * cache had it. What it has said may still arrive: see LeaseTake.renew. */
	if (lease->held && !(ask->info.flags & DM_DEDUP_VOL_GRANTED) && !ask->renew) {
		ask->renew = lease->epoch;
		ask_send(a, ask);
		return;
	}
	if (is_dirty_ephemeral(&ask->info)) {
		struct fp root; /* its writes stand on the root that it was opened with */

		memcpy(root.b, ask->info.root, sizeof(root.b));
		reply_open(a, ask, &root, ask->info.lease_epoch, ask->info.committed_cut,
			   ask->info.size, true);
		return;
	}
	reply_open(a, ask, &lease->root, lease->epoch, lease->cut, lease->size, true);
}

void agent_lease_done(struct agent *a, uint64_t id, int r, const struct agent_lease *lease)
{
	struct ask *ask = job_take(a, id, JOB_ASK);
	struct volume *v;

	if (ask) {
		meta_answered(a, r, "lease");
		if (AGENT_IS_UNREACHABLE(r))
			ask_unreachable(a, ask, r);
		else
			open_answered(a, ask, r, lease);
		return;
	}
	v = job_take(a, id, JOB_VOLUME);
	if (!v)
		return;
	meta_answered(a, r, "lease");
	/* Only its word on the lease itself stops a volume: trouble of its own does not. */
	if (r && r != -ESTALE) {
		v->retry_ns = backoff(a, &v->attempt);
		return;
	}
	v->unconfirmed = false;
	if (r)
		lease_is_lost(a, &v->image, v->name, v->epoch);
}

static bool ask_is_under_way(struct agent *a, uint64_t cookie)
{
	struct ask *ask;

	LIST_FOREACH(ask, &a->asks, link)
		if (!ask->done && ask->cookie == cookie)
			return true;
	return false;
}

static void ask_upcall(struct agent *a, const struct dm_dedup_upcall *up)
{
	struct ask *ask;

	if (ask_is_under_way(a, up->cookie)) /* sent again */
		return;
	ask = ask_new(a, up->type);
	if (!ask) {
		a->ops->reply(a->ctx, up->cookie, ENOMEM, NULL);
		return;
	}
	ask->cookie = up->cookie;
	ask->info = up->info;
	ask->info.name[sizeof(ask->info.name) - 1] = 0;
	if (up->type == DM_DEDUP_UP_OPEN && must_refuse(&ask->info)) {
		log_warn("volume %s holds unpushed data: it is not opened as ephemeral",
			 ask->info.name);
		ask_refuse(a, ask, -EBUSY);
		return;
	}
	ask_send(a, ask);
}

void agent_ask_image(struct agent *a, const char *name,
		     void (*done)(void *arg, int r, const struct agent_image *image), void *arg)
{
	struct ask *ask = NULL;

	if (strlen(name) < sizeof(ask->info.name))
		ask = ask_new(a, 0);
	if (!ask) {
		done(arg, -ENOMEM, NULL);
		return;
	}
	strcpy(ask->info.name, name);
	ask->done = done;
	ask->arg = arg;
	ask_send(a, ask);
}

static void volume_not_open(struct agent *a, struct volume *v, bool was_open)
{
	v->flags &= ~DM_DEDUP_VOL_OPEN;
	v->open_cookie = 0;
	v->unconfirmed = false;
	job_end(a, &v->confirm);
	prefetch_ended(a, v, was_open);
}

void agent_reply_refused(struct agent *a, uint64_t cookie)
{
	struct volume *v;

	LIST_FOREACH(v, &a->volumes, link)
		if (v->open_cookie == cookie)
			volume_not_open(a, v, false);
}

static void volume_closed(struct agent *a, const struct dm_dedup_volume_info *info)
{
	struct volume *v;
	struct uuid image;

	memcpy(image.b, info->image, sizeof(image.b));
	v = volume_find(a, &image);
	if (v)
		volume_not_open(a, v, true);
	if (info->flags & DM_DEDUP_VOL_EPHEMERAL)
		a->ops->discard(a->ctx, info->volume, info->lease_epoch);
	else if (is_dirty(info))
		a->ops->want_push(a->ctx, info->volume, AGENT_PUSH_CLOSE);
}

void volume_upcall(struct agent *a, const struct dm_dedup_upcall *up)
{
	switch (up->type) {
	case DM_DEDUP_UP_LOOKUP:
	case DM_DEDUP_UP_OPEN:
		ask_upcall(a, up);
		break;
	case DM_DEDUP_UP_CLOSE:
		volume_closed(a, &up->info);
		break;
	case DM_DEDUP_UP_DIRTY:
		a->ops->want_push(a->ctx, up->info.volume, AGENT_PUSH_DIRTY);
		break;
	}
}

/* ---- time, and the end ---- */

static void volume_confirm(struct agent *a, struct volume *v)
{
	struct agent_lease take = {
		.image = v->image,
		.confirm_only = true,
		.epoch = v->epoch,
	};

	a->ops->lease(a->ctx, job_start(a, &v->confirm, JOB_VOLUME, v), &take);
}

void volume_tick(struct agent *a, uint64_t now)
{
	struct ask *ask, *next;
	struct volume *v;

	for (ask = LIST_FIRST(&a->asks); ask; ask = next) {
		next = LIST_NEXT(ask, link);
		if (ask->retry_ns && ask->retry_ns <= now)
			ask_send(a, ask);
	}
	LIST_FOREACH(v, &a->volumes, link)
		if (v->unconfirmed && !v->confirm.id && v->retry_ns <= now)
			volume_confirm(a, v);
}

uint64_t volume_next_ns(struct agent *a)
{
	uint64_t next = UINT64_MAX;
	struct volume *v;
	struct ask *ask;

	LIST_FOREACH(ask, &a->asks, link)
		if (ask->retry_ns && ask->retry_ns < next)
			next = ask->retry_ns;
	LIST_FOREACH(v, &a->volumes, link)
		if (v->unconfirmed && !v->confirm.id && v->retry_ns < next)
			next = v->retry_ns;
	return next;
}

void volume_forget_all(struct agent *a, bool asks_of_people)
{
	struct volume *v, *next_v;
	struct ask *ask, *next;

	for (ask = LIST_FIRST(&a->asks); ask; ask = next) {
		next = LIST_NEXT(ask, link);
		if (!ask->done)
			ask_free(a, ask);
		else if (asks_of_people)
			ask_refuse(a, ask, -ECANCELED);
	}
	for (v = LIST_FIRST(&a->volumes); v; v = next_v) {
		next_v = LIST_NEXT(v, link);
		volume_free(a, v);
	}
}
