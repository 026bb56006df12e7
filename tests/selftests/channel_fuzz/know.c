// SPDX-License-Identifier: GPL-2.0-or-later
/* Numbers that mean something to the kernel, learned from it. */
#include <string.h>
#include <sys/ioctl.h>
#include "fuzz.h"

static void add_locked(struct numbers *to, uint64_t v)
{
	to->v[to->n++ % NR_KNOWN] = v;
}

uint64_t know_pick(struct know *k, const struct numbers *from, struct rnd *r)
{
	uint64_t v = 0, at = rnd64(r);

	pthread_mutex_lock(&k->lock);
	if (from->n)
		v = from->v[at % (from->n < NR_KNOWN ? from->n : NR_KNOWN)];
	pthread_mutex_unlock(&k->lock);
	return v;
}

void know_pick_root(struct know *k, struct rnd *r, uint8_t root[DM_DEDUP_FP_SIZE])
{
	uint64_t at = rnd64(r);

	pthread_mutex_lock(&k->lock);
	if (k->nr_roots)
		memcpy(root, k->roots[at % (k->nr_roots < NR_KNOWN ? k->nr_roots : NR_KNOWN)],
		       DM_DEDUP_FP_SIZE);
	pthread_mutex_unlock(&k->lock);
}

bool know_pick_info(struct know *k, struct rnd *r, struct dm_dedup_volume_info *info)
{
	uint64_t at = rnd64(r);
	bool any;

	pthread_mutex_lock(&k->lock);
	any = k->nr_infos;
	if (any)
		*info = k->infos[at % k->nr_infos];
	pthread_mutex_unlock(&k->lock);
	return any;
}

static void add_info(struct know *k, const struct dm_dedup_volume_info *info)
{
	memcpy(k->roots[k->nr_roots++ % NR_KNOWN], info->root, sizeof(info->root));
	if (info->volume == k->safe)
		return;
	add_locked(&k->volumes, info->volume);
	add_locked(&k->epochs, info->lease_epoch);
	add_locked(&k->cuts, info->committed_cut);
	add_locked(&k->cuts, info->committed_cut + 1);
	add_locked(&k->cuts, info->closed_cut);
}

void know_upcall(struct know *k, const struct dm_dedup_upcall *up)
{
	pthread_mutex_lock(&k->lock);
	/* (The safe volume's cookies are its own.) */
	if (up->info.volume != k->safe)
		add_locked(&k->cookies, up->cookie);
	add_locked(&k->blocks, up->block);
	add_info(k, &up->info);
	pthread_mutex_unlock(&k->lock);
}

int know_hello(struct know *k)
{
	struct dm_dedup_hello h = { .size = sizeof(h), .abi_major = DM_DEDUP_ABI_MAJOR };

	if (ioctl(k->fd, DM_DEDUP_HELLO, &h))
		return -1;
	k->block_shift = h.block_shift;
	k->nr_slots = h.nr_slots;
	k->epoch = h.agent_epoch;
	return 0;
}

void know_cut(struct know *k, uint64_t volume, uint64_t cut)
{
	pthread_mutex_lock(&k->lock);
	add_locked(&k->cuts, cut);
	for (unsigned int i = 0; i < k->nr_infos; i++)
		if (k->infos[i].volume == volume && volume != k->safe)
			k->infos[i].closed_cut = cut;
	pthread_mutex_unlock(&k->lock);
}

static struct dm_dedup_batch batch_of(struct know *k, void *entries, uint32_t size, uint32_t count)
{
	return (struct dm_dedup_batch){
		.size = sizeof(struct dm_dedup_batch), .entry_size = size, .count = count,
		.agent_epoch = k->epoch, .entries = (uintptr_t)entries,
	};
}

static void learn_cut(struct know *k, const struct dm_dedup_volume_info *info)
{
	struct dm_dedup_cut_entry e[16];
	struct dm_dedup_batch b = batch_of(k, e, sizeof(e[0]), 16);

	b.volume = info->volume;
	b.cut = info->closed_cut;
	if (ioctl(k->fd, DM_DEDUP_LIST_CUT, &b))
		return;
	pthread_mutex_lock(&k->lock);
	for (uint32_t i = 0; i < b.count; i++) {
		add_locked(&k->blocks, e[i].block);
		add_locked(&k->slots, e[i].slot);
		add_locked(&k->seqs, e[i].seq);
	}
	pthread_mutex_unlock(&k->lock);
}

void know_refresh(struct know *k)
{
	struct dm_dedup_volume_info info[16];
	struct dm_dedup_clean_entry e[64];
	struct dm_dedup_batch b = batch_of(k, info, sizeof(info[0]), 16);

	if (!ioctl(k->fd, DM_DEDUP_LIST_VOLUMES, &b)) {
		pthread_mutex_lock(&k->lock);
		k->nr_infos = 0;
		for (uint32_t i = 0; i < b.count; i++) {
			if (!strcmp(info[i].name, "safe"))
				k->safe = info[i].volume;
			add_info(k, &info[i]);
			k->infos[k->nr_infos++] = info[i];
		}
		pthread_mutex_unlock(&k->lock);
		for (uint32_t i = 0; i < b.count; i++)
			if (info[i].closed_cut && info[i].volume != k->safe)
				learn_cut(k, &info[i]);
	}
	b = batch_of(k, e, sizeof(e[0]), 64);
	if (ioctl(k->fd, DM_DEDUP_LIST_CLEAN, &b))
		return;
	pthread_mutex_lock(&k->lock);
	for (uint32_t i = 0; i < b.count; i++) {
		add_locked(&k->slots, e[i].slot);
		add_locked(&k->seqs, e[i].seq);
	}
	pthread_mutex_unlock(&k->lock);
}
