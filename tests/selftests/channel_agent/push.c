// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A push: CUT, LIST_CUT, the merge into the image's file, COMMIT. It dies between any two of them
 * if it is told to.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent.h"

#define STAGE	2U	/* replacements in one COMMIT */

static bool bit(const uint8_t *map, unsigned int n)
{
	return map[n / 8] >> n % 8 & 1;
}

typedef int (*entry_fn)(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx);

static int each_entry(struct agent *a, uint64_t volume, uint64_t cut, entry_fn fn, void *ctx)
{
	static struct dm_dedup_cut_entry e[64];
	struct dm_dedup_batch b = { .volume = volume, .cut = cut };
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_CUT, &b, e, sizeof(e[0]), 64);
		step(a, "list");
		for (uint32_t i = 0; !r && i < b.count; i++)
			r = fn(a, &e[i], ctx);
	} while (!r && b.cursor != ~0ULL);
	return r;
}

static int print_entry(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx)
{
	unsigned int n, valid = 0;

	(void)ctx;
	for (n = 0; n < a->block / 512; n++)
		valid += bit(e->bitmap, n);
	fprintf(a->out, "%llu %llu %llu %u %u %u\n", e->block, e->slot, e->seq, e->flags,
		e->base_kind, valid);
	return 0;
}

static int merge_entry(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx)
{
	struct image *im = ctx;
	uint8_t *data = aligned_alloc(4096, a->block);
	uint8_t *block = malloc(a->block);
	unsigned int n;
	int r;

	r = image_read(im, e->block, a->block, block);
	if (e->base_kind == DM_DEDUP_BASE_ZERO)
		memset(block, 0, a->block);
	if (!r && pread(a->window, data, a->block, a->hello.data_offset + e->slot * a->block) !=
		  (ssize_t)a->block)
		r = -EIO;
	for (n = 0; !r && n < a->block / 512; n++)
		if (bit(e->bitmap, n))
			memcpy(block + n * 512, data + n * 512, 512);
	n = e->block * a->block + a->block > im->size ? im->size - e->block * a->block : a->block;
	if (!r && pwrite(im->fd, block, n, e->block * a->block) != n)
		r = -EIO;
	if (!r && a->changes) {
		uint64_t nr = e->block;

		if (fwrite(&nr, sizeof(nr), 1, a->changes) != 1 ||
		    fwrite(block, a->block, 1, a->changes) != 1)
			r = -EIO;
	}
	free(block);
	free(data);
	return r;
}

/* Merges the cut into the file, and keeps what it changes, if that is wanted. */
static int merge_cut(struct agent *a, struct image *im, uint64_t volume, uint64_t cut)
{
	char path[4096];
	int r = a->keep ? image_keep(im) : 0;

	if (!r && a->keep_changes) {
		snprintf(path, sizeof(path), "%s.%" PRIu64, im->file, im->version + 1);
		a->changes = fopen(path, "w");
		if (!a->changes)
			return -errno;
	}
	if (!r)
		r = each_entry(a, volume, cut, merge_entry, im);
	if (a->changes) {
		if (!r && (fflush(a->changes) || fsync(fileno(a->changes))))
			r = -errno;
		fclose(a->changes);
		a->changes = NULL;
	}
	return r;
}

struct commit {
	struct image *im;
	uint64_t volume, cut, epoch;
	uint8_t root[DM_DEDUP_FP_SIZE];
	struct dm_dedup_replacement e[STAGE];
	uint32_t n;
};

static int commit_send(struct agent *a, struct commit *cm, bool more)
{
	struct dm_dedup_batch b = {
		.volume = cm->volume, .cut = cm->cut, .lease_epoch = cm->epoch,
		.flags = more ? DM_DEDUP_COMMIT_MORE : 0,
	};
	int r;

	memcpy(b.root, cm->root, sizeof(b.root));
	r = batch(a, DM_DEDUP_COMMIT, &b, cm->e, sizeof(cm->e[0]), cm->n);
	for (uint32_t i = 0; !r && i < cm->n; i++)
		if (cm->e[i].result)
			fprintf(a->out, "block %llu: %d\n", cm->e[i].block, cm->e[i].result);
	cm->n = 0;
	return r;
}

static int stage_entry(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx)
{
	struct commit *cm = ctx;
	struct dm_dedup_replacement *rep = &cm->e[cm->n++];
	int r;

	memset(rep, 0, sizeof(*rep));
	rep->block = e->block;
	rep->slot = e->slot;
	rep->seq = e->seq;
	rep->kind = DM_DEDUP_BASE_NONE;
	if (e->flags & DM_DEDUP_CUT_COMPLETE) {
		uint8_t *buf = malloc(a->block);

		rep->kind = DM_DEDUP_BASE_OWN;
		r = image_read(cm->im, e->block, a->block, buf);
		make_fp(stamps_hash(buf, a->block), rep->fp);
		free(buf);
		if (r)
			return r;
	}
	if (cm->n < STAGE)
		return 0;
	r = commit_send(a, cm, true);
	step(a, "stage");
	return r;
}

int cmd_list(struct agent *a, const char *what, uint64_t cut)
{
	struct dm_dedup_volume_info info;
	int r = find_volume(a, what, &info);

	return r ? r : each_entry(a, info.volume, cut, print_entry, NULL);
}

/* The head takes the cut, unless it has it already: then it gets its first result again. */
static int head_take(struct agent *a, struct image *im, uint64_t volume, uint64_t cut)
{
	int r;

	if (cut == im->cut)
		return 0;
	r = merge_cut(a, im, volume, cut);
	if (r)
		return r;
	step(a, "merge");
	if (fsync(im->fd))
		return -errno;
	im->cut = cut;
	im->version++;
	head_save(im);
	step(a, "head");
	return 0;
}

static int send_replacements(struct agent *a, struct image *im, const struct dm_dedup_cut *cut,
			     bool commit)
{
	static struct commit cm;
	int r;

	memset(&cm, 0, sizeof(cm));
	cm.im = im;
	cm.volume = cut->volume;
	cm.cut = cut->cut;
	cm.epoch = cut->lease_epoch;
	image_root(im, im->version, cm.root);
	r = each_entry(a, cut->volume, cut->cut, stage_entry, &cm);
	if (!r)
		r = commit_send(a, &cm, !commit);
	step(a, "commit");
	return r;
}

enum push { PUSH_MERGE, PUSH_STAGE, PUSH_COMMIT };

static int push(struct agent *a, const char *what, enum push how)
{
	struct dm_dedup_volume_info info;
	struct dm_dedup_cut cut;
	struct image *im;
	int r = find_volume(a, what, &info);

	if (r)
		return r;
	im = image_by_uuid(a, info.image);
	if (!im)
		return -ENOENT;
	r = do_cut(a, info.volume, &cut);
	if (r || !cut.cut)
		return r;
	step(a, "cut");
	fprintf(a->out, "cut %llu\n", cut.cut);
	if (how != PUSH_STAGE)
		r = head_take(a, im, info.volume, cut.cut);
	if (!r && how != PUSH_MERGE)
		r = send_replacements(a, im, &cut, how == PUSH_COMMIT);
	return r;
}

int cmd_push(struct agent *a, const char *what, bool commit)
{
	return push(a, what, commit ? PUSH_COMMIT : PUSH_MERGE);
}

/* Only replacements, as if the agent had died in the midst of a large COMMIT. */
int cmd_stage(struct agent *a, const char *what)
{
	return push(a, what, PUSH_STAGE);
}

int cmd_commit(struct agent *a, char **argv)
{
	struct dm_dedup_volume_info info;
	struct commit cm = {};
	struct image *im;
	int r = find_volume(a, argv[0], &info);

	im = r ? NULL : image_by_uuid(a, info.image);
	if (!im)
		return -ENOENT;
	cm.volume = info.volume;
	cm.cut = strtoull(argv[1], NULL, 0);
	cm.epoch = info.lease_epoch;
	image_root(im, strtoull(argv[2], NULL, 0), cm.root);
	return commit_send(a, &cm, false);
}

/* VOLUME CUT BLOCK SLOT SEQ: stages one replacement. */
int cmd_replace(struct agent *a, char **argv)
{
	struct dm_dedup_volume_info info;
	struct commit cm = { .n = 1 };
	int r = find_volume(a, argv[0], &info);

	if (r)
		return r;
	cm.volume = info.volume;
	cm.cut = strtoull(argv[1], NULL, 0);
	cm.epoch = info.lease_epoch;
	memcpy(cm.root, info.root, sizeof(cm.root));
	cm.e[0].block = strtoull(argv[2], NULL, 0);
	cm.e[0].slot = strtoull(argv[3], NULL, 0);
	cm.e[0].seq = strtoull(argv[4], NULL, 0);
	cm.e[0].kind = DM_DEDUP_BASE_SLOT;
	return commit_send(a, &cm, true);
}
