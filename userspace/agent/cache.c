// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include "agent/cache.h"

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
