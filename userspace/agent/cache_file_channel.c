// SPDX-License-Identifier: GPL-2.0-or-later
/* The channel of the plain-file cache: the verbs of linux/dm-dedup.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent/cache_file_impl.h"
#include "base/clock.h"

static int file_connect(struct cache *c, struct dm_dedup_hello *hello, struct error *err)
{
	struct cache_file *f = cf_lock(c);
	struct request *req, *next;

	f->connected = true;
	for (req = TAILQ_FIRST(&f->requests); req; req = next) {
		next = TAILQ_NEXT(req, link);
		if (!req->sent || req->answered)
			continue;
		req->sent = false;
		req->up.flags |= DM_DEDUP_UP_RESEND;
	}
	*hello = (struct dm_dedup_hello){
		.size = sizeof(*hello),
		.abi_major = DM_DEDUP_ABI_MAJOR,
		.abi_minor = DM_DEDUP_ABI_MINOR,
		.agent_epoch = ++f->epoch,
		.nr_slots = f->nr_slots,
		.block_shift = f->shift,
		.max_inflight = 1024,
		.features = DM_DEDUP_FEATURE_LOOSE,
	};
	memcpy(hello->cache, f->uuid.b, sizeof(hello->cache));
	return cf_unlock(f, 0);
}

static ssize_t file_read(struct cache *c, struct dm_dedup_upcall *ups, size_t max, int timeout_ms)
{
	struct cache_file *f = cf_lock(c);
	struct request *req, *next;
	uint64_t until_ns = clock_mono_ns() + (uint64_t)timeout_ms * 1000000;
	size_t n = 0;

	for (;;) {
		for (req = TAILQ_FIRST(&f->requests); req && n < max; req = next) {
			next = TAILQ_NEXT(req, link);
			if (req->sent)
				continue;
			ups[n++] = req->up;
			req->sent = true;
			if (!req->up.cookie)
				cf_request_free(f, req);
		}
		if (n || f->woken || !timeout_ms ||
		    clock_cond_wait(&f->asked, &f->lock, until_ns) == ETIMEDOUT)
			break;
	}
	f->woken = false;
	pthread_mutex_unlock(&f->lock);
	return (ssize_t)n;
}

static void file_wake(struct cache *c)
{
	struct cache_file *f = cf_lock(c);

	f->woken = true;
	pthread_cond_signal(&f->asked);
	pthread_mutex_unlock(&f->lock);
}

static void file_disconnect(struct cache *c)
{
	struct cache_file *f = cf_lock(c);

	f->connected = false;
	cf_unlock(f, 0);
}

static void file_free(struct cache *c)
{
	struct cache_file *f = (struct cache_file *)c;
	struct request *req;

	while (!LIST_EMPTY(&f->volumes))
		cf_volume_free(f, LIST_FIRST(&f->volumes));
	while ((req = TAILQ_FIRST(&f->requests)))
		cf_request_free(f, req);
	close(f->fd);
	pthread_cond_destroy(&f->changed);
	pthread_cond_destroy(&f->asked);
	pthread_mutex_destroy(&f->lock);
	free(f->slots);
	free(f);
}

static int file_reply(struct cache *c, struct dm_dedup_reply *reply)
{
	struct cache_file *f = cf_lock(c);
	struct request *req = cf_request_find(f, reply->cookie, false);

	if (!f->connected || !req)
		return cf_unlock(f, req ? -ENODEV : -ESTALE);
	req->answered = true;
	req->error = reply->error;
	req->reply = reply->info;
	return cf_unlock(f, 0);
}

/* The block that a FETCH (or, without a cookie, a volume's root) asks for. */
static int find_target(struct cache_file *f, uint64_t cookie, uint64_t volume, uint64_t block,
		       const uint8_t *root, struct file_block **b, struct request **req)
{
	struct file_volume *v = cf_volume_find(f, volume);

	*req = cookie ? cf_request_find(f, cookie, true) : NULL;
	if (!v || block >= v->nr_blocks || (cookie && !*req) ||
	    memcmp(v->info.root, root, sizeof(v->info.root)))
		return -ESTALE;
	if (*req && ((*req)->up.info.volume != volume || (*req)->up.block != block))
		return -ESTALE;
	*b = &v->blocks[block];
	if ((*b)->base_zero || cf_slot_is(f, &(*b)->base, SLOT_CLEAN)) {
		if (*req)
			cf_request_free(f, *req);
		return -EEXIST;
	}
	return 0;
}

/* Under the lock, but for the writing: others read and publish meanwhile, and the target is looked for
 * again. */
static int publish_one(struct cache_file *f, struct dm_dedup_publish *p)
{
	struct file_block *b = NULL;
	struct request *req = NULL;
	uint64_t epoch = f->epoch;
	struct slot_name name;
	int r = 0;

	if (p->volume)
		r = find_target(f, p->cookie, p->volume, p->block, p->root, &b, &req);
	if (!r)
		r = cf_slot_take(f, SLOT_FILLING, &name);
	if (r)
		return r;
	pthread_mutex_unlock(&f->lock);
	r = cf_slot_io(f, name.slot, 0, (void *)(uintptr_t)p->data, cf_block_size(f), true);
	pthread_mutex_lock(&f->lock);
	if (!r && (!f->connected || f->epoch != epoch))
		r = -ENODEV;
	if (!r && p->volume)
		r = find_target(f, p->cookie, p->volume, p->block, p->root, &b, &req);
	f->slots[name.slot].state = r ? SLOT_FREE : SLOT_CLEAN;
	if (r)
		return r;
	memcpy(f->slots[name.slot].fp.b, p->fp, FP_SIZE);
	if (b)
		b->base = name;
	p->slot = name.slot;
	p->seq = name.seq;
	if (req)
		cf_request_free(f, req);
	return 0;
}

static int file_publish(struct cache *c, struct dm_dedup_publish *p, size_t count)
{
	struct cache_file *f = cf_lock(c);
	size_t i;

	if (!f->connected)
		return cf_unlock(f, -ENODEV);
	for (i = 0; i < count; i++)
		p[i].result = publish_one(f, &p[i]);
	return cf_unlock(f, 0);
}

static int map_one(struct cache_file *f, struct dm_dedup_map *m)
{
	struct slot_name name = { m->slot, m->seq };
	struct file_block *b;
	struct request *req;
	int r;

	if (!(m->flags & DM_DEDUP_MAP_ZERO) && !cf_slot_is(f, &name, SLOT_CLEAN))
		return -ESTALE;
	r = find_target(f, m->cookie, m->volume, m->block, m->root, &b, &req);
	if (r)
		return r;
	if (m->flags & DM_DEDUP_MAP_ZERO)
		b->base_zero = true;
	else
		b->base = name;
	if (req)
		cf_request_free(f, req);
	return 0;
}

static int file_map(struct cache *c, struct dm_dedup_map *m, size_t count)
{
	struct cache_file *f = cf_lock(c);
	size_t i;

	if (!f->connected)
		return cf_unlock(f, -ENODEV);
	for (i = 0; i < count; i++)
		m[i].result = map_one(f, &m[i]);
	return cf_unlock(f, 0);
}

static int file_fail(struct cache *c, struct dm_dedup_fail *entries, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++) /* the agent's policy here is to wait for ever */
		entries[i].result = -EOPNOTSUPP;
	return 0;
}

static int file_drop(struct cache *c, struct dm_dedup_drop *d, size_t count)
{
	struct cache_file *f = cf_lock(c);
	size_t i;

	for (i = 0; i < count; i++) {
		struct slot_name name = { d[i].slot, d[i].seq };

		d[i].result = cf_slot_is(f, &name, SLOT_CLEAN) ? 0 : -ESTALE;
		if (!d[i].result)
			f->slots[name.slot].state = SLOT_FREE;
	}
	return cf_unlock(f, 0);
}

static int file_cut(struct cache *c, uint64_t connection, struct dm_dedup_cut *cut)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, cut->volume);
	uint64_t i;

	if (!f->connected || !v)
		return cf_unlock(f, v ? -ENODEV : -ENOENT);
	if (!(cut->flags & DM_DEDUP_CUT_RECOVER) &&
	    v->info.flags & (DM_DEDUP_VOL_DIVERGED | DM_DEDUP_VOL_FENCED))
		return cf_unlock(f, -ESHUTDOWN);
	cut->cut = 0;
	cut->lease_epoch = v->info.lease_epoch;
	memcpy(cut->root, v->info.root, sizeof(cut->root));
	if (v->info.closed_cut <= v->info.committed_cut) {
		if (!cf_has_overlays(v, false))
			return cf_unlock(f, 0);
		for (i = 0; i < v->nr_blocks; i++) {
			v->blocks[i].closed = v->blocks[i].open;
			v->blocks[i].open.seq = 0;
		}
		v->info.closed_cut = v->info.committed_cut + 1;
	}
	cut->cut = v->info.closed_cut;
	return cf_unlock(f, 0);
}

static bool is_complete(const struct cache_file *f, uint64_t slot)
{
	size_t sector;

	for (sector = 0; sector < cf_block_size(f) >> 9; sector++)
		if (!(f->slots[slot].bitmap[sector / 8] & (1U << (sector % 8))))
			return false;
	return true;
}

static void fill_entry(struct cache_file *f, struct file_block *b, uint64_t block,
		       struct dm_dedup_cut_entry *e)
{
	memset(e, 0, sizeof(*e));
	e->block = block;
	e->slot = b->closed.slot;
	e->seq = b->closed.seq;
	memcpy(e->bitmap, f->slots[e->slot].bitmap, sizeof(e->bitmap));
	if (is_complete(f, e->slot))
		e->flags = DM_DEDUP_CUT_COMPLETE;
	if (b->base_zero) {
		e->base_kind = DM_DEDUP_BASE_ZERO;
	} else if (cf_slot_is(f, &b->base, SLOT_CLEAN)) {
		e->base_kind = DM_DEDUP_BASE_SLOT;
		e->base_slot = b->base.slot;
		e->base_seq = b->base.seq;
	}
}

static int file_list_cut(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
			 uint64_t *cursor, struct dm_dedup_cut_entry *entries, size_t *count)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);
	size_t n = 0;
	uint64_t i;

	if (!f->connected || !v)
		return cf_unlock(f, v ? -ENODEV : -ENOENT);
	if (cut != v->info.closed_cut)
		return cf_unlock(f, -EINVAL);
	for (i = *cursor; i < v->nr_blocks && n < *count; i++)
		if (v->blocks[i].closed.seq)
			fill_entry(f, &v->blocks[i], i, &entries[n++]);
	*cursor = i < v->nr_blocks ? i : ~0ULL;
	*count = n;
	return cf_unlock(f, 0);
}

static int file_list_clean(struct cache *c, uint64_t *cursor,
			   struct dm_dedup_clean_entry *entries, size_t *count)
{
	struct cache_file *f = cf_lock(c);
	size_t n = 0;
	uint64_t i;

	for (i = *cursor; i < f->nr_slots && n < *count; i++) {
		if (f->slots[i].state != SLOT_CLEAN)
			continue;
		entries[n].slot = i;
		entries[n].seq = f->slots[i].seq;
		memcpy(entries[n++].fp, f->slots[i].fp.b, FP_SIZE);
	}
	*cursor = i < f->nr_slots ? i : ~0ULL;
	*count = n;
	return cf_unlock(f, 0);
}

static int file_list_volumes(struct cache *c, uint64_t *cursor,
			     struct dm_dedup_volume_info *infos, size_t *count)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v;
	uint64_t i = 0;
	size_t n = 0;

	if (!f->connected)
		return cf_unlock(f, -ENODEV);
	LIST_FOREACH(v, &f->volumes, link)
		if (!v->is_new && i++ >= *cursor && n < *count)
			cf_volume_info(f, v, &infos[n++]);
	*cursor = *cursor + n < i ? *cursor + n : ~0ULL;
	*count = n;
	return cf_unlock(f, 0);
}

/* Misses that were resolved against the old root are void; their guests ask again. */
static void forget_fetches(struct cache_file *f, uint64_t volume)
{
	struct request *req, *next;

	for (req = TAILQ_FIRST(&f->requests); req; req = next) {
		next = TAILQ_NEXT(req, link);
		if (req->up.type == DM_DEDUP_UP_FETCH && req->up.info.volume == volume)
			cf_request_free(f, req);
	}
}

static void replace_base(struct cache_file *f, struct file_block *b,
			 struct dm_dedup_replacement *r)
{
	struct slot_name name = { r->slot, r->seq };

	r->result = 0;
	if (r->kind == DM_DEDUP_BASE_ZERO) {
		b->base_zero = true;
	} else if (r->kind == DM_DEDUP_BASE_SLOT && cf_slot_is(f, &name, SLOT_CLEAN)) {
		b->base = name;
	} else if (r->kind == DM_DEDUP_BASE_OWN && r->seq == b->closed.seq &&
		   cf_slot_is(f, &name, SLOT_DIRTY) && is_complete(f, name.slot)) {
		f->slots[name.slot].state = SLOT_CLEAN;
		memcpy(f->slots[name.slot].fp.b, r->fp, FP_SIZE);
		b->base = name;
		b->closed.seq = 0;
	} else if (r->kind != DM_DEDUP_BASE_NONE) {
		r->result = -ESTALE;
	}
}

static void apply_commit(struct cache_file *f, struct file_volume *v)
{
	size_t n;
	uint64_t i;

	for (i = 0; i < v->nr_blocks; i++) {
		if (!v->blocks[i].closed.seq)
			continue;
		v->blocks[i].base.seq = 0;
		v->blocks[i].base_zero = false;
	}
	for (n = 0; n < v->nr_staged; n++)
		if (v->staged[n].block < v->nr_blocks &&
		    v->blocks[v->staged[n].block].closed.seq)
			replace_base(f, &v->blocks[v->staged[n].block], &v->staged[n]);
	for (i = 0; i < v->nr_blocks; i++)
		cf_slot_put(f, &v->blocks[i].closed);
	forget_fetches(f, v->info.volume);
}

static int stage(struct file_volume *v, const struct dm_dedup_replacement *r, size_t count)
{
	struct dm_dedup_replacement *all;

	all = realloc(v->staged, (v->nr_staged + count + 1) * sizeof(*all));
	if (!all)
		return -ENOMEM;
	memcpy(all + v->nr_staged, r, count * sizeof(*all));
	v->staged = all;
	v->nr_staged += count;
	return 0;
}

static int file_commit(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
		       const uint8_t *root, uint64_t lease_epoch, struct dm_dedup_replacement *r,
		       size_t count, bool more)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);
	int ret;

	if (!f->connected || !v)
		return cf_unlock(f, v ? -ENODEV : -ENOENT);
	if (lease_epoch != v->info.lease_epoch)
		return cf_unlock(f, -ESTALE);
	if (cut == v->info.committed_cut && !memcmp(root, v->info.root, sizeof(v->info.root)))
		return cf_unlock(f, -EALREADY);
	if (cut != v->info.closed_cut || cut <= v->info.committed_cut)
		return cf_unlock(f, -EINVAL);
	ret = stage(v, r, count);
	if (ret || more)
		return cf_unlock(f, ret);
	apply_commit(f, v);
	memcpy(r, v->staged + v->nr_staged - count, count * sizeof(*r)); /* results */
	memcpy(v->info.root, root, sizeof(v->info.root));
	v->info.committed_cut = cut;
	free(v->staged);
	v->staged = NULL;
	v->nr_staged = 0;
	return cf_unlock(f, 0);
}

static int file_fence(struct cache *c, uint64_t volume, uint64_t lease_epoch)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);

	if (!v)
		return cf_unlock(f, -ENOENT);
	v->info.flags |= DM_DEDUP_VOL_FENCED | DM_DEDUP_VOL_DIVERGED;
	return cf_unlock(f, 0);
}

static int file_release(struct cache *c, uint64_t volume, uint64_t lease_epoch, uint32_t flags)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);
	bool discard = flags & DM_DEDUP_RELEASE_DISCARD;

	if (!v)
		return cf_unlock(f, -ENOENT);
	if (v->info.flags & DM_DEDUP_VOL_OPEN || (cf_has_overlays(v, true) && !discard))
		return cf_unlock(f, -EBUSY);
	if (discard && cf_has_overlays(v, true) &&
	    !(v->info.flags & (DM_DEDUP_VOL_EPHEMERAL | DM_DEDUP_VOL_DIVERGED)))
		return cf_unlock(f, -EBUSY);
	cf_volume_free(f, v);
	return cf_unlock(f, 0);
}

/* It is one cache as long as it is there. */
static int file_open_slots(struct cache *c, uint64_t *connection)
{
	*connection = 1;
	return 0;
}

static void file_close_slots(struct cache *c)
{
}

static int file_read_slot(struct cache *c, uint64_t connection, uint64_t slot, void *buf, size_t len)
{
	struct cache_file *f = (struct cache_file *)c;

	if (slot >= f->nr_slots || len != cf_block_size(f))
		return -EINVAL;
	/* As from the kernel's device: whoever reads looks at the slot's sequence again. */
	return cf_slot_io(f, slot, 0, buf, len, false);
}

const struct cache_ops cache_file_ops = {
	.connect = file_connect,
	.read = file_read,
	.wake = file_wake,
	.disconnect = file_disconnect,
	.free = file_free,
	.reply = file_reply,
	.publish = file_publish,
	.map = file_map,
	.fail = file_fail,
	.drop = file_drop,
	.cut = file_cut,
	.list_cut = file_list_cut,
	.list_clean = file_list_clean,
	.list_volumes = file_list_volumes,
	.commit = file_commit,
	.fence = file_fence,
	.release = file_release,
	.open_slots = file_open_slots,
	.close_slots = file_close_slots,
	.read_slot = file_read_slot,
};
