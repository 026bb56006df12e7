// SPDX-License-Identifier: GPL-2.0-or-later
/* The ioctls, one to one. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "agent.h"

int call(struct agent *a, unsigned long cmd, void *arg)
{
	int r;

	do
		r = ioctl(a->fd, cmd, arg);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

int batch(struct agent *a, unsigned long cmd, struct dm_dedup_batch *b, void *entries,
		 uint32_t entry_size, uint32_t count)
{
	b->size = sizeof(*b);
	b->entry_size = entry_size;
	b->agent_epoch = a->hello.agent_epoch;
	b->entries = (uintptr_t)entries;
	b->count = count;
	return call(a, cmd, b);
}

int hello(struct agent *a)
{
	memset(&a->hello, 0, sizeof(a->hello));
	a->hello.size = sizeof(a->hello);
	a->hello.abi_major = DM_DEDUP_ABI_MAJOR;
	a->hello.abi_minor = DM_DEDUP_ABI_MINOR;
	a->hello.features = DM_DEDUP_FEATURE_SOURCE | DM_DEDUP_FEATURE_LOOSE;
	return call(a, DM_DEDUP_HELLO, &a->hello);
}

int find_volume(struct agent *a, const char *what, struct dm_dedup_volume_info *info)
{
	struct dm_dedup_batch b = {};
	uint64_t id = strtoull(what, NULL, 0);
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_VOLUMES, &b, info, sizeof(*info), 1);
		if (!r && b.count && (info->volume == id || !strcmp(info->name, what)))
			return 0;
	} while (!r && b.cursor != ~0ULL);
	return r ? r : -ENOENT;
}

int do_cut(struct agent *a, uint64_t volume, struct dm_dedup_cut *cut)
{
	memset(cut, 0, sizeof(*cut));
	cut->size = sizeof(*cut);
	cut->agent_epoch = a->hello.agent_epoch;
	cut->volume = volume;
	cut->flags = a->recover ? DM_DEDUP_CUT_RECOVER : 0;
	return call(a, DM_DEDUP_CUT, cut);
}
