// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/cache.h"
#include "base/cleanup.h"

#define VOLUMES_A_CALL 64

int cache_volumes(struct cache *c, struct dm_dedup_volume_info **infos, size_t *count)
{
	struct dm_dedup_volume_info *all = NULL, *bigger;
	uint64_t cursor = 0;
	size_t n = 0, got;
	int r;

	while (cursor != ~0ULL && n < DM_DEDUP_MAX_VOLUMES) {
		bigger = realloc(all, (n + VOLUMES_A_CALL) * sizeof(*all));
		if (!bigger) {
			free(all);
			return -ENOMEM;
		}
		all = bigger;
		got = VOLUMES_A_CALL;
		r = c->ops->list_volumes(c, &cursor, all + n, &got);
		if (r) {
			free(all);
			return r;
		}
		n += got;
		if (!got)
			break;
	}
	*infos = all;
	*count = n;
	return 0;
}

int cache_find_volume(struct cache *c, uint64_t volume, const struct uuid *image, const char *name,
		      struct dm_dedup_volume_info *found, struct error *err)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	size_t i, count, n = 0;
	struct uuid uuid;
	int r;

	r = cache_volumes(c, &infos, &count);
	if (r)
		return error_set(err, r, "cannot list the volumes of the cache: %s",
				 r == -ENODEV ? "it is not connected" : strerror(-r));
	if (!volume && !image && !uuid_from_text(&uuid, name))
		image = &uuid;
	for (i = 0; i < count; i++) {
		if (volume ? infos[i].volume != volume :
		    image  ? memcmp(infos[i].image, image->b, sizeof(image->b)) :
			     strcmp(infos[i].name, name))
			continue;
		*found = infos[i];
		n++;
	}
	if (n > 1)
		return error_set(err, -EEXIST, "%zu volumes of this host are called %s: give the UUID of "
				 "the image that is meant (`vmdedup volume ls --json`)", n, name);
	return n ? 0 : error_set(err, -ENOENT, "there is no volume of image %s on this host", name);
}
