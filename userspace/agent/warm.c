// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Volumes that are about to come: another host hands one over, and names the blocks that it has of
 * it. They are brought into CLEAN slots that no volume maps yet; the first OPEN replays the same list,
 * and finds them. Part of the core.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/core_impl.h"

struct warm {
	struct uuid image;
	struct fp root;
	uint64_t size;
	uint32_t *blocks;
	size_t nr, next; /* @next: the first that was not asked for */
	uint64_t asked_ns;
	struct agent_warmth warmth;
};

void warm_ended(struct warm *w, enum warm_end end)
{
	w->warmth.here += end != WARM_FAILED;
	w->warmth.failed += end == WARM_FAILED;
	w->warmth.from_peers += end == WARM_FROM_PEER;
}

void warm_more(struct agent *a)
{
	struct warm *w;
	size_t i;

	for (i = 0; i < AGENT_WARMS; i++) {
		w = a->warms[i];
		while (w && w->next < w->nr && a->nr_ahead < PREFETCH_REPLAY &&
		       fetch_warm(a, w, &w->image, &w->root, w->size, w->blocks[w->next]))
			w->next++;
	}
}

static void warm_free(struct agent *a, struct warm **w)
{
	if (!*w)
		return;
	fetch_forget_warm(a, *w);
	free((*w)->blocks);
	free(*w);
	*w = NULL;
}

void warm_forget_all(struct agent *a)
{
	size_t i;

	for (i = 0; i < AGENT_WARMS; i++)
		warm_free(a, &a->warms[i]);
}

/* Of the image, else a free one, else the one that was asked about longest ago. */
static struct warm **place_of(struct agent *a, const struct uuid *image)
{
	struct warm **best = &a->warms[0];
	size_t i;

	for (i = 0; i < AGENT_WARMS; i++) {
		if (a->warms[i] && uuid_equal(&a->warms[i]->image, image))
			return &a->warms[i];
		if (*best && (!a->warms[i] || a->warms[i]->asked_ns < (*best)->asked_ns))
			best = &a->warms[i];
	}
	return best;
}

static int warm_begin(struct agent *a, struct warm **place, const struct uuid *image,
		      const struct fp *root, uint64_t size, const void *trace, size_t len)
{
	uint64_t nr_blocks = (size + (1ULL << a->hello.block_shift) - 1) >> a->hello.block_shift;
	struct warm *w = calloc(1, sizeof(*w));

	if (w)
		w->blocks = calloc(TRACE_MAX, sizeof(*w->blocks));
	if (!w || !w->blocks) {
		free(w);
		return -ENOMEM;
	}
	w->image = *image;
	w->root = *root;
	w->size = size;
	w->nr = trace_unpack(trace, len, nr_blocks, w->blocks, TRACE_MAX);
	w->warmth.blocks = w->nr;
	warm_free(a, place);
	*place = w;
	if (!w->nr) {
		warm_free(a, place);
		return -EINVAL;
	}
	return 0;
}

int agent_warm(struct agent *a, const struct uuid *image, const struct fp *root, uint64_t size,
	       const void *trace, size_t len, struct agent_warmth *warmth)
{
	struct warm **place = place_of(a, image);
	int r = 0;

	if (!a->connected)
		return -ENODEV;
	memcpy(warmth->cache.b, a->hello.cache, sizeof(warmth->cache.b));
	if (!(a->hello.features & DM_DEDUP_FEATURE_LOOSE))
		return -EOPNOTSUPP;
	if (len)
		r = warm_begin(a, place, image, root, size, trace, len);
	else if (!*place || !uuid_equal(&(*place)->image, image) || !fp_equal(&(*place)->root, root))
		r = -ENOENT;
	if (r)
		return r;
	(*place)->asked_ns = agent_now(a);
	warm_more(a);
	(*place)->warmth.cache = warmth->cache;
	*warmth = (*place)->warmth;
	return 0;
}
