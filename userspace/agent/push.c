// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/push.h"
#include "base/cleanup.h"
#include "base/log.h"

#define COMMIT_BATCH 512
#define PUBLISH_BATCH 64 /* DM_DEDUP_MAX_PUBLISH */

/* What is kept of an overlay until the kernel's COMMIT. */
struct overlay {
	uint64_t block, slot, seq;
	struct fp fp;	  /* of the whole block; zero: zeros */
	struct fp parent; /* of the block in the parent recipe */
	bool own;	  /* complete, in a slot of its own that matches fp */
	bool known;	  /* fp is the new recipe's */
	void *kept;	  /* the whole block of a partial overlay: its new base, if there is room */
};

/* One overlay while it is composed. */
struct chunk_item {
	struct dm_dedup_cut_entry entry;
	struct overlay *overlay;
	void *data;
	void *base;
	bool want_base; /* not here: get it from the data servers */
	int r;
};

struct push {
	const struct push_env *env;
	const struct dm_dedup_volume_info *volume;
	struct push_recover *recover; /* or NULL */
	struct error *err;
	uint64_t connection; /* of the cache, that the volume and all slots are of */
	struct dm_dedup_cut cut;
	struct fp parent, root;
	uint64_t size; /* of the image that the push makes */
	bool done; /* the meta server has committed this cut */
	size_t block_size;
	struct overlay *overlays;
	size_t nr_overlays, room, kept_bytes;
	uint64_t sent;
	struct chunk_item chunk[PUSH_CHUNK];
	void *buffers;
};

/* ---- compose one block; on any thread ---- */

static bool sector_is_valid(const struct dm_dedup_cut_entry *e, size_t sector)
{
	return e->bitmap[sector / 8] & (1U << (sector % 8));
}

/* Puts the sectors that the overlay does not have from @base (NULL: zeros) into @data. */
static void fill_from_base(const struct push *p, struct chunk_item *item, const void *base)
{
	size_t first, n, sectors = p->block_size >> 9;

	for (first = 0; first < sectors; first += n) {
		bool valid = sector_is_valid(&item->entry, first);

		for (n = 1; first + n < sectors; n++)
			if (sector_is_valid(&item->entry, first + n) != valid)
				break;
		if (valid)
			continue;
		if (base)
			memcpy((char *)item->data + (first << 9), (char *)base + (first << 9),
			       n << 9);
		else
			memset((char *)item->data + (first << 9), 0, n << 9);
	}
}

static void name_block(const struct push *p, struct chunk_item *item, size_t i)
{
	if (mem_is_zero(item->data, p->block_size))
		memset(&item->overlay->fp, 0, sizeof(item->overlay->fp));
	else
		fp_hash(p->env->hashers[i], item->data, p->block_size, &item->overlay->fp);
}

/* The base slot may have been evicted since it was listed, or be rotten: its content tells. */
static bool read_base_slot(const struct push *p, struct chunk_item *item, size_t i)
{
	struct cache *c = p->env->cache;
	struct fp fp;

	if (c->ops->read_slot(c, p->connection, item->entry.base_slot, item->base, p->block_size))
		return false;
	fp_hash(p->env->hashers[i], item->base, p->block_size, &fp);
	return fp_equal(&fp, &item->overlay->parent);
}

static void compose(void *arg, size_t i)
{
	struct push *p = arg;
	struct chunk_item *item = &p->chunk[i];
	const struct dm_dedup_cut_entry *e = &item->entry;
	struct cache *c = p->env->cache;

	item->want_base = false;
	item->r = 0;
	if (e->flags & DM_DEDUP_CUT_NO_SLOT)
		memset(item->data, 0, p->block_size);
	else
		item->r = c->ops->read_slot(c, p->connection, e->slot, item->data, p->block_size);
	if (item->r)
		return;
	if (!(e->flags & DM_DEDUP_CUT_COMPLETE)) {
		if (e->base_kind == DM_DEDUP_BASE_ZERO || fp_is_zero(&item->overlay->parent)) {
			fill_from_base(p, item, NULL);
		} else if (e->base_kind == DM_DEDUP_BASE_SLOT && read_base_slot(p, item, i)) {
			fill_from_base(p, item, item->base);
		} else {
			item->want_base = true;
			return;
		}
	}
	name_block(p, item, i);
}

static void compose_again(void *arg, size_t i)
{
	struct push *p = arg;
	struct chunk_item *item = &p->chunk[i];

	if (!item->want_base || item->r)
		return;
	fill_from_base(p, item, item->base);
	name_block(p, item, i);
}

/* ---- a chunk of overlays ---- */

struct bases {
	struct push *p;
	size_t index[PUSH_CHUNK];
};

static void got_base(void *arg, size_t n, int r, const void *data, size_t len)
{
	struct bases *b = arg;
	struct chunk_item *item = &b->p->chunk[b->index[n]];

	if (!r && len != b->p->block_size)
		r = -EPROTO;
	if (!r)
		memcpy(item->base, data, len);
	item->r = r;
}

static int get_bases(struct push *p, size_t count)
{
	struct bases b = { .p = p };
	struct fp fps[PUSH_CHUNK];
	size_t i, n = 0;
	int r;

	for (i = 0; i < count; i++) {
		if (p->chunk[i].r || !p->chunk[i].want_base)
			continue;
		b.index[n] = i;
		fps[n++] = p->chunk[i].overlay->parent;
		p->chunk[i].r = -EIO; /* until it has come */
	}
	if (!n)
		return 0;
	r = p->env->net->get(p->env->net_ctx, fps, n, got_base, &b, p->err);
	if (!r)
		p->env->for_each(p->env->ctx, count, compose_again, p);
	return r;
}

/* A partial overlay's slot goes with the COMMIT. The block that it made is at hand now, and would
 * have to be got from a server the next time the guest reads it. */
static void keep_block(struct push *p, struct overlay *o, const void *data)
{
	if (o->own || p->kept_bytes + p->block_size > PUSH_KEEP_BYTES)
		return;
	o->kept = malloc(p->block_size);
	if (!o->kept)
		return;
	memcpy(o->kept, data, p->block_size);
	p->kept_bytes += p->block_size;
}

static int store_chunk(struct push *p, size_t count)
{
	struct overlay *o;
	size_t i;
	int r;

	for (i = 0; i < count; i++) {
		o = p->chunk[i].overlay;
		if (p->chunk[i].r)
			return error_set(p->err, p->chunk[i].r,
					 "cannot read block %llu of volume %s: %s",
					 (unsigned long long)o->block, p->volume->name,
					 strerror(-p->chunk[i].r));
		o->own = p->chunk[i].entry.flags & DM_DEDUP_CUT_COMPLETE &&
			 !(p->chunk[i].entry.flags & DM_DEDUP_CUT_NO_SLOT);
		o->known = true;
		if (!fp_is_zero(&o->fp))
			keep_block(p, o, p->chunk[i].data);
		if (fp_is_zero(&o->fp) || fp_equal(&o->fp, &o->parent))
			continue;
		r = p->env->net->block(p->env->net_ctx, &o->fp, p->chunk[i].data, p->block_size,
				       p->err);
		if (r)
			return r;
	}
	return 0;
}

static int look_up(struct push *p, const struct fp *root, uint64_t block, struct fp *fp)
{
	return recipe_lookup_any(root, p->env->block_shift, p->env->algorithm, block,
				 p->env->net->recipe, p->env->net->recipe_ctx, fp, p->err);
}

static int push_chunk(struct push *p, size_t count)
{
	size_t i;
	int r;

	for (i = 0; i < count; i++) {
		struct overlay *o = p->chunk[i].overlay;

		r = look_up(p, &p->parent, o->block, &o->parent);
		if (r)
			return r;
	}
	p->env->for_each(p->env->ctx, count, compose, p);
	r = get_bases(p, count);
	return r ? r : store_chunk(p, count);
}

/* The cut is committed: find out which overlays' slots hold what the new recipe names. */
static int recognize_chunk(struct push *p, size_t count)
{
	struct overlay *o;
	struct fp fp;
	size_t i;
	int r;

	for (i = 0; i < count; i++) {
		o = p->chunk[i].overlay;
		/* Only complete ones are composed: for them the base does not matter. */
		if (!(p->chunk[i].entry.flags & DM_DEDUP_CUT_COMPLETE))
			p->chunk[i].entry.base_kind = DM_DEDUP_BASE_ZERO;
	}
	p->env->for_each(p->env->ctx, count, compose, p);
	for (i = 0; i < count; i++) {
		o = p->chunk[i].overlay;
		r = look_up(p, &p->root, o->block, &fp);
		if (r)
			return r;
		o->own = p->chunk[i].entry.flags & DM_DEDUP_CUT_COMPLETE &&
			 !(p->chunk[i].entry.flags & DM_DEDUP_CUT_NO_SLOT) && !p->chunk[i].r &&
			 fp_equal(&fp, &o->fp);
		o->fp = fp;
		o->known = true;
	}
	return 0;
}

/* ---- all overlays of the cut ---- */

static int add_overlays(struct push *p, size_t count)
{
	struct overlay *bigger;
	size_t i, room = p->room;

	while (p->nr_overlays + count > room)
		room = room ? room * 2 : 256;
	if (room != p->room) {
		bigger = realloc(p->overlays, room * sizeof(*bigger));
		if (!bigger)
			return error_set(p->err, -ENOMEM, "out of memory for a push of volume %s",
					 p->volume->name);
		p->overlays = bigger;
		p->room = room;
	}
	for (i = 0; i < count; i++) {
		struct overlay *o = &p->overlays[p->nr_overlays + i];
		struct chunk_item *item = &p->chunk[i];

		memset(o, 0, sizeof(*o));
		o->block = item->entry.block;
		o->slot = item->entry.slot;
		o->seq = item->entry.seq;
		item->overlay = o;
		item->data = (char *)p->buffers + 2 * i * p->block_size;
		item->base = (char *)item->data + p->block_size;
	}
	p->nr_overlays += count;
	return 0;
}

static int keep_pace(struct push *p)
{
	uint64_t sent;
	int r;

	if (!p->env->pace || p->done)
		return 0;
	r = p->env->net->sent(p->env->net_ctx, &sent, p->err);
	if (r)
		return r;
	p->env->pace(p->env->ctx, sent - p->sent);
	p->sent = sent;
	return 0;
}

static int push_overlays(struct push *p)
{
	struct dm_dedup_cut_entry entries[PUSH_CHUNK];
	struct cache *c = p->env->cache;
	uint64_t cursor = 0;
	size_t count, i;
	int r;

	while (cursor != ~0ULL) {
		count = PUSH_CHUNK;
		r = c->ops->list_cut(c, p->connection, p->volume->volume, p->cut.cut, &cursor,
				     entries, &count);
		if (r)
			return error_set(p->err, r, "cannot list cut %llu of volume %s: %s",
					 (unsigned long long)p->cut.cut, p->volume->name,
					 strerror(-r));
		for (i = 0; i < count; i++)
			p->chunk[i].entry = entries[i];
		r = add_overlays(p, count);
		if (!r)
			r = p->done ? recognize_chunk(p, count) : push_chunk(p, count);
		if (!r)
			r = keep_pace(p);
		if (r)
			return r;
	}
	return 0;
}

static int by_block(const void *a, const void *b)
{
	const struct overlay *x = a, *y = b;

	return x->block < y->block ? -1 : x->block > y->block;
}

static int make_root(struct push *p)
{
	CLEANUP_FREE struct recipe_change *changes = NULL;
	struct fp base;
	size_t i, n = 0;
	int r;

	qsort(p->overlays, p->nr_overlays, sizeof(*p->overlays), by_block);
	changes = malloc(MAX(p->nr_overlays, 1) * sizeof(*changes));
	if (!changes)
		return error_set(p->err, -ENOMEM, "out of memory for a push of volume %s",
				 p->volume->name);
	for (i = 0; i < p->nr_overlays; i++) {
		if (i && p->overlays[i].block == p->overlays[i - 1].block)
			return error_set(p->err, -EUCLEAN, "block %llu is listed twice in a cut",
					 (unsigned long long)p->overlays[i].block);
		if (fp_equal(&p->overlays[i].fp, &p->overlays[i].parent))
			continue;
		changes[n].block = p->overlays[i].block;
		changes[n++].fp = p->overlays[i].fp;
	}
	/* The image may have grown since the parent was made, the volume as well, or not yet. */
	r = recipe_grow(&p->parent, p->size, p->env->block_shift, p->env->algorithm,
			p->env->net->recipe, p->env->net->recipe_ctx, &p->root, p->err);
	if (r || !n)
		return r;
	base = p->root;
	return recipe_update(&base, p->size, p->env->block_shift, p->env->algorithm,
			     changes, n, p->env->net->recipe, p->env->net->recipe_ctx, &p->root,
			     p->err);
}

/* ---- the kernel's COMMIT ---- */

/* Equal blocks of one cut: the first of them keeps its slot, and the others are mapped to it when
 * they are read. @owners: by a hash of the fingerprint. True: @i is not the first. */
struct owners {
	size_t mask;
	size_t slots[]; /* number of the overlay + 1; 0: free */
};

static struct owners *owners_new(size_t count)
{
	size_t size = 64;
	struct owners *w;

	while (size < 2 * count)
		size *= 2;
	w = calloc(1, sizeof(*w) + size * sizeof(w->slots[0]));
	if (w)
		w->mask = size - 1;
	return w;
}

static bool is_owned(struct owners *w, const struct overlay *all, size_t i)
{
	uint64_t h;

	memcpy(&h, all[i].fp.b, sizeof(h));
	for (; w->slots[h & w->mask]; h++)
		if (fp_equal(&all[w->slots[h & w->mask] - 1].fp, &all[i].fp))
			return true;
	w->slots[h & w->mask] = i + 1;
	return false;
}

static void choose_replacements(struct push *p, struct owners *owners, const struct overlay *o,
				struct dm_dedup_replacement *r, size_t count)
{
	uint64_t slots[COMMIT_BATCH], seqs[COMMIT_BATCH] = { 0 };
	struct fp fps[COMMIT_BATCH];
	size_t i;

	for (i = 0; i < count; i++)
		fps[i] = o[i].fp;
	p->env->find_slots(p->env->ctx, fps, count, slots, seqs);
	for (i = 0; i < count; i++) {
		memset(&r[i], 0, sizeof(r[i]));
		r[i].block = o[i].block;
		if (!o[i].known) {
			r[i].kind = DM_DEDUP_BASE_NONE;
		} else if (fp_is_zero(&o[i].fp)) {
			r[i].kind = DM_DEDUP_BASE_ZERO;
		} else if (seqs[i]) { /* another volume, or this one, has it already */
			r[i].kind = DM_DEDUP_BASE_SLOT;
			r[i].slot = slots[i];
			r[i].seq = seqs[i];
		} else if (o[i].own && !is_owned(owners, p->overlays, &o[i] - p->overlays)) {
			r[i].kind = DM_DEDUP_BASE_OWN;
			r[i].slot = o[i].slot;
			r[i].seq = o[i].seq;
		}
		if (r[i].kind == DM_DEDUP_BASE_OWN || r[i].kind == DM_DEDUP_BASE_SLOT)
			memcpy(r[i].fp, o[i].fp.b, FP_SIZE);
	}
}

static void note_clean(struct push *p, const struct dm_dedup_replacement *r, size_t count)
{
	struct dm_dedup_clean_entry clean[COMMIT_BATCH];
	size_t i, n = 0;

	for (i = 0; i < count; i++) {
		if (r[i].kind != DM_DEDUP_BASE_OWN || r[i].result)
			continue;
		clean[n].slot = r[i].slot;
		clean[n].seq = r[i].seq;
		memcpy(clean[n].fp, r[i].fp, FP_SIZE);
		n++;
	}
	if (n)
		p->env->clean_slots(p->env->ctx, clean, n);
}

static void publish_kept(struct push *p, const struct dm_dedup_publish *publish, size_t count)
{
	struct dm_dedup_clean_entry clean[PUBLISH_BATCH];
	size_t i, n = 0;

	for (i = 0; i < count; i++) {
		if (publish[i].result)
			continue;
		clean[n].slot = publish[i].slot;
		clean[n].seq = publish[i].seq;
		memcpy(clean[n++].fp, publish[i].fp, FP_SIZE);
	}
	if (n)
		p->env->clean_slots(p->env->ctx, clean, n);
}

/* Unasked: what the cache has no room for, or has meanwhile, is left out. */
static void publish_all_kept(struct push *p, const struct dm_dedup_replacement *r)
{
	struct dm_dedup_publish publish[PUBLISH_BATCH];
	struct cache *c = p->env->cache;
	size_t i, n = 0;

	for (i = 0; i < p->nr_overlays; i++) {
		if (p->overlays[i].kept && r[i].kind == DM_DEDUP_BASE_NONE) {
			memset(&publish[n], 0, sizeof(publish[n]));
			publish[n].volume = p->volume->volume;
			publish[n].block = p->overlays[i].block;
			publish[n].data = (uintptr_t)p->overlays[i].kept;
			memcpy(publish[n].root, p->root.b, FP_SIZE);
			memcpy(publish[n++].fp, p->overlays[i].fp.b, FP_SIZE);
		}
		if (n == PUBLISH_BATCH || (n && i + 1 == p->nr_overlays)) {
			if (c->ops->publish(c, publish, n))
				return;
			publish_kept(p, publish, n);
			n = 0;
		}
	}
}

static int commit_to_kernel(struct push *p)
{
	struct owners *owners = owners_new(p->nr_overlays);
	struct dm_dedup_replacement *r;
	struct cache *c = p->env->cache;
	size_t at = 0, n;
	int ret;

	/* All of them at hand until the last batch has answered: slots become CLEAN with it. */
	r = calloc(MAX(p->nr_overlays, 1), sizeof(*r));
	if (!r || !owners) {
		ret = error_set(p->err, -ENOMEM, "out of memory for a push of volume %s",
				p->volume->name);
		goto free_replacements;
	}
	do {
		n = MIN(p->nr_overlays - at, COMMIT_BATCH);
		choose_replacements(p, owners, p->overlays + at, r + at, n);
		ret = c->ops->commit(c, p->connection, p->volume->volume, p->cut.cut, p->root.b,
				     p->cut.lease_epoch, r + at, n, at + n < p->nr_overlays);
		at += n;
	} while (!ret && at < p->nr_overlays);
	if (ret && ret != -EALREADY) {
		error_set(p->err, ret, "the cache refused the COMMIT of cut %llu of volume %s: %s",
			  (unsigned long long)p->cut.cut, p->volume->name, strerror(-ret));
		goto free_replacements;
	}
	for (at = 0; !ret && at < p->nr_overlays; at += n) {
		n = MIN(p->nr_overlays - at, COMMIT_BATCH);
		note_clean(p, r + at, n);
	}
	if (!ret)
		publish_all_kept(p, r);
	ret = 0;
free_replacements:
	free(owners);
	free(r);
	return ret;
}

/* ---- the whole ---- */

/* Whoever asks for the push may have looked at the cache that was there before this one: there, another
 * image's volume may have the number. */
static int check_volume(struct push *p)
{
	struct dm_dedup_volume_info v;
	int r = cache_find_volume(p->env->cache, p->volume->volume, NULL, p->volume->name, &v, p->err);

	if (!r && memcmp(v.image, p->volume->image, sizeof(v.image)))
		r = error_set(p->err, -ENODEV, "volume %s is not in the cache any more: that is another "
			      "one by now", p->volume->name);
	return r;
}

static int cut_volume(struct push *p)
{
	struct cache *c = p->env->cache;
	int r = check_volume(p);

	if (r)
		return r;
	p->cut.volume = p->volume->volume;
	r = c->ops->cut(c, p->connection, &p->cut);
	if (r)
		return error_set(p->err, r, "cannot cut volume %s: %s", p->volume->name,
				 r == -ESHUTDOWN ? "it has diverged or is fenced" : strerror(-r));
	memcpy(p->parent.b, p->cut.root, FP_SIZE);
	return 0;
}

static int push_begun(struct push *p, struct push_result *result)
{
	int r;

	r = push_overlays(p);
	if (r)
		return r;
	if (!p->done) {
		r = make_root(p);
		if (!r)
			r = p->env->net->commit(p->env->net_ctx, &p->root, result, p->err);
		if (!r && p->recover && p->recover->new_image) {
			p->recover->image = result->image;
			r = p->recover->lease(p->recover, p->err);
		}
		if (r)
			return r;
	}
	result->blocks = p->nr_overlays;
	result->root = p->root;
	return commit_to_kernel(p);
}

static void name_push(struct push *p, struct push_name *name)
{
	const struct push_recover *recover = p->recover;

	memcpy(name->image, p->volume->image, sizeof(name->image));
	name->lease_epoch = p->cut.lease_epoch;
	if (recover) {
		name->new_image = recover->new_image;
		memcpy(name->image, recover->image.b, sizeof(name->image));
		name->lease_epoch = recover->epoch;
	}
	name->size = p->volume->size;
	name->cut = p->cut.cut;
	name->parent = p->parent;
}

static int push_it(struct push *p, struct push_name *name, struct push_result *result)
{
	const struct push_net *net = p->env->net;
	int r = cut_volume(p);

	if (r)
		return r;
	result->cut = p->cut.cut;
	result->root = p->parent;
	if (!p->cut.cut)
		return 0;
	if (posix_memalign(&p->buffers, 4096, 2 * PUSH_CHUNK * p->block_size)) {
		p->buffers = NULL;
		return error_set(p->err, -ENOMEM, "out of memory for a push of volume %s",
				 p->volume->name);
	}
	name_push(p, name);
	p->size = p->volume->size;
	r = net->begin(p->env->net_ctx, name, &p->done, &p->root, &p->size, p->err);
	if (!r) {
		r = push_begun(p, result);
		net->end(p->env->net_ctx);
	}
	return r;
}

int push_volume(const struct push_env *env, const struct dm_dedup_volume_info *volume,
		struct push_recover *recover, bool make_version, const char *label,
		struct push_result *result, struct error *err)
{
	struct push p = {
		.env = env,
		.volume = volume,
		.recover = recover,
		.err = err,
		.block_size = (size_t)1 << env->block_shift,
	};
	struct push_name name = { .make_version = make_version, .label = label };
	size_t i;
	int r;

	memset(result, 0, sizeof(*result));
	p.cut.flags = recover ? DM_DEDUP_CUT_RECOVER : 0;
	r = env->cache->ops->open_slots(env->cache, &p.connection);
	if (r)
		return error_set(err, r, "cannot open the cache's slots: %s", strerror(-r));
	r = push_it(&p, &name, result);
	env->cache->ops->close_slots(env->cache);
	for (i = 0; i < p.nr_overlays; i++)
		free(p.overlays[i].kept);
	free(p.overlays);
	free(p.buffers);
	return r;
}
