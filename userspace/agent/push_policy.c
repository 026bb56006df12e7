// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdio.h>
#include <string.h>
#include "agent/push_policy.h"
#include "base/cleanup.h"

#define NS_PER_MS 1000000ULL
#define NS_PER_S  1000000000ULL

bool policy_can_be_pushed(const struct dm_dedup_volume_info *v)
{
	return v->flags & DM_DEDUP_VOL_GRANTED &&
	       !(v->flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL |
			     DM_DEDUP_VOL_DIVERGED | DM_DEDUP_VOL_FENCED));
}

bool policy_is_unpushed(const struct dm_dedup_volume_info *v)
{
	return v->flags & DM_DEDUP_VOL_DIRTY || v->dirty_bytes || v->closed_cut > v->committed_cut;
}

/* ---- the table ---- */

static struct policy_volume *find(struct push_policy *p, uint64_t volume)
{
	size_t i;

	for (i = 0; i < POLICY_VOLUMES; i++)
		if (p->volumes[i].volume == volume)
			return &p->volumes[i];
	return NULL;
}

/* NULL: the table is full. */
static struct policy_volume *find_or_add(struct push_policy *p, uint64_t volume)
{
	struct policy_volume *v = find(p, volume);

	if (v)
		return v;
	v = find(p, 0);
	if (v) {
		memset(v, 0, sizeof(*v));
		v->volume = volume;
	}
	return v;
}

/* Nothing is to be done for it; what is known of its I/O stays. */
static void settle(struct policy_volume *v)
{
	v->wanted = v->taken = false;
	v->failures = 0;
	v->not_before_ns = 0;
	v->trouble[0] = 0;
}

void policy_want(struct push_policy *p, uint64_t volume)
{
	struct policy_volume *v = find_or_add(p, volume);

	if (v)
		v->wanted = true;
}

bool policy_has_wish(const struct push_policy *p, uint64_t now_ns)
{
	const struct policy_volume *v;

	for (v = p->volumes; v < p->volumes + POLICY_VOLUMES; v++)
		if (v->volume && (v->wanted || v->taken) && v->not_before_ns <= now_ns)
			return true;
	return false;
}

/* ---- a look ---- */

/* Whoever has gone makes room, unless somebody waits for it. */
static void forget_gone(struct push_policy *p, const struct dm_dedup_volume_info *infos,
			size_t count)
{
	struct policy_volume *v;
	size_t i;

	for (v = p->volumes; v < p->volumes + POLICY_VOLUMES; v++) {
		if (!v->volume || v->wanted || v->taken)
			continue;
		for (i = 0; i < count; i++)
			if (infos[i].volume == v->volume && policy_is_unpushed(&infos[i]))
				break;
		if (i == count)
			memset(v, 0, sizeof(*v));
	}
}

/* 0 is no count: this cache does not tell, and the volume is never taken for idle. */
static void note_ios(struct push_policy *p, const struct dm_dedup_volume_info *info,
		     uint64_t now_ns)
{
	struct policy_volume *v;

	if (!policy_can_be_pushed(info) || !policy_is_unpushed(info) || !info->ios)
		return;
	v = find_or_add(p, info->volume);
	if (!v || v->ios == info->ios)
		return;
	v->ios = info->ios;
	v->busy_ns = now_ns;
}

void policy_look(struct push_policy *p, const struct dm_dedup_volume_info *infos, size_t count,
		 uint64_t now_ns)
{
	struct policy_volume *v;
	size_t i;

	for (v = p->volumes; v < p->volumes + POLICY_VOLUMES; v++) {
		v->taken = v->volume && (v->wanted || v->taken) && v->not_before_ns <= now_ns;
		if (v->taken)
			v->wanted = false;
	}
	forget_gone(p, infos, count);
	for (i = 0; i < count; i++)
		note_ios(p, &infos[i], now_ns);
}

static bool is_idle(const struct policy_volume *v, uint64_t now_ns)
{
	return v && v->ios && now_ns - v->busy_ns >= POLICY_IDLE_MS * NS_PER_MS;
}

/* An idle volume at half of the bounds: the moment is good, and may not last until all of them. */
static bool is_due(const struct push_policy *p, const struct dm_dedup_volume_info *info,
		   const struct policy_volume *v, bool idle, bool space, uint64_t now_ns)
{
	const struct push_bounds *b = &p->bounds;
	unsigned int part = idle ? 2 : 1;

	if (!policy_can_be_pushed(info) || !policy_is_unpushed(info))
		return false;
	if (v && now_ns < v->not_before_ns)
		return false;
	if (space || (v && v->taken))
		return true;
	return b->age_ms && (info->oldest_ms >= b->age_ms / part ||
			     info->dirty_bytes >= b->bytes / part);
}

ssize_t policy_next(struct push_policy *p, const struct dm_dedup_volume_info *infos, size_t count,
		    bool *looked, bool space, uint64_t now_ns)
{
	bool best_idle = false;
	ssize_t best = -1;
	size_t i;

	for (i = 0; i < count; i++) {
		const struct policy_volume *v = find(p, infos[i].volume);
		bool idle = is_idle(v, now_ns);

		if (looked[i] || !is_due(p, &infos[i], v, idle, space, now_ns))
			continue;
		if (best >= 0 && (idle < best_idle ||
				  (idle == best_idle &&
				   infos[i].dirty_bytes <= infos[best].dirty_bytes)))
			continue;
		best = (ssize_t)i;
		best_idle = idle;
	}
	if (best >= 0)
		looked[best] = true;
	return best;
}

void policy_look_end(struct push_policy *p)
{
	struct policy_volume *v;

	for (v = p->volumes; v < p->volumes + POLICY_VOLUMES; v++)
		if (v->taken && !v->wanted)
			settle(v);
}

/* ---- how pushes end ---- */

bool policy_pushed(struct push_policy *p, const struct dm_dedup_volume_info *info, int r,
		   const char *why, uint64_t now_ns)
{
	struct policy_volume *v = r ? find_or_add(p, info->volume) : find(p, info->volume);
	uint64_t ms;
	bool news;

	if (!v)
		return r;
	if (!r) {
		settle(v);
		return false;
	}
	ms = (uint64_t)POLICY_RETRY_MS << MIN(v->failures, 10U);
	v->not_before_ns = now_ns + MIN(ms, (uint64_t)POLICY_RETRY_MAX_MS) * NS_PER_MS;
	v->failures++;
	v->wanted = true;
	v->taken = false;
	news = strncmp(v->trouble, why, sizeof(v->trouble) - 1);
	snprintf(v->trouble, sizeof(v->trouble), "%.255s", why);
	memcpy(v->name, info->name, sizeof(v->name));
	return news;
}

const char *policy_trouble(const struct push_policy *p, uint64_t volume)
{
	const struct policy_volume *v;

	for (v = p->volumes; v < p->volumes + POLICY_VOLUMES; v++)
		if (v->volume && v->volume == volume)
			return v->trouble;
	return "";
}

const struct policy_volume *policy_in_trouble(const struct push_policy *p)
{
	const struct policy_volume *v;

	for (v = p->volumes; v < p->volumes + POLICY_VOLUMES; v++)
		if (v->volume && v->trouble[0])
			return v;
	return NULL;
}

/* ---- rate: a bucket that holds POLICY_BURST_MS, and may owe what one step has sent ---- */

void policy_sent(struct push_policy *p, uint64_t bytes, uint64_t now_ns)
{
	uint64_t burst = POLICY_BURST_MS * NS_PER_MS;
	uint64_t full = now_ns > burst ? now_ns - burst : 0;

	if (!p->bounds.rate)
		return;
	p->paid_until_ns = MAX(p->paid_until_ns, full) +
			   (uint64_t)((double)bytes * NS_PER_S / (double)p->bounds.rate);
}

uint64_t policy_wait_ns(const struct push_policy *p, uint64_t now_ns)
{
	return p->bounds.rate && p->paid_until_ns > now_ns ? p->paid_until_ns - now_ns : 0;
}
