// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>
#include "agent/lease_report.h"
#include "base/cleanup.h"

#define NSEC_PER_MSEC 1000000ULL

bool lease_report_is_due(const struct lease_report *r, uint64_t now_ns)
{
	return !r->tried_ns || now_ns >= r->tried_ns + REPORT_CHANGED_MS * NSEC_PER_MSEC;
}

/* A diverged volume's, too: what it holds is what is about to be lost. */
static bool has_lease(const struct dm_dedup_volume_info *v)
{
	return v->lease_epoch && v->flags & DM_DEDUP_VOL_GRANTED &&
	       !(v->flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL));
}

static uint64_t digest(uint64_t seed, const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len--)
		seed = (seed ^ *p++) * 0x100000001b3ULL;
	return seed;
}

static void add(Vmdedup__LeaseReport *say, const struct dm_dedup_volume_info *v, uint64_t *seen)
{
	memcpy(say->images.data + say->images.len, v->image, sizeof(v->image));
	say->images.len += sizeof(v->image);
	say->epochs[say->n_epochs++] = v->lease_epoch;
	say->unpushed_bytes[say->n_unpushed_bytes++] = v->dirty_bytes;
	say->oldest_ms[say->n_oldest_ms++] = v->dirty_bytes ? v->oldest_ms : 0;
	/* Not the age: it changes by itself. */
	*seen = digest(*seen, v->image, sizeof(v->image));
	*seen = digest(*seen, &v->lease_epoch, sizeof(v->lease_epoch));
	*seen = digest(*seen, &v->dirty_bytes, sizeof(v->dirty_bytes));
}

void lease_report_send(struct lease_report *r, struct cluster *c, const struct uuid *cache,
		       const struct dm_dedup_volume_info *infos, size_t count, uint64_t now_ns,
		       int timeout_ms)
{
	Vmdedup__LeaseReport say = VMDEDUP__LEASE_REPORT__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	CLEANUP_FREE uint64_t *numbers = calloc(3 * count + 1, sizeof(*numbers));
	CLEANUP_FREE uint8_t *images = calloc(count + 1, DM_DEDUP_UUID_SIZE);
	uint64_t seen = 0xcbf29ce484222325ULL;
	struct net_reply reply = { 0 };
	size_t i;

	r->tried_ns = now_ns;
	if (!numbers || !images)
		return;
	say.cache = (ProtobufCBinaryData){ sizeof(cache->b), (uint8_t *)cache->b };
	say.images.data = images;
	say.epochs = numbers;
	say.unpushed_bytes = numbers + count;
	say.oldest_ms = numbers + 2 * count;
	for (i = 0; i < count; i++)
		if (has_lease(&infos[i]))
			add(&say, &infos[i], &seen);
	if (!say.n_epochs ||
	    (seen == r->said && now_ns < r->said_ns + REPORT_SAME_MS * NSEC_PER_MSEC))
		return;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_REPORT;
	req.lease_report = &say;
	if (!cluster_call(c, &req, NULL, 0, timeout_ms, &reply, NULL)) {
		r->said = seen;
		r->said_ns = now_ns;
	}
	net_reply_free(&reply);
}
