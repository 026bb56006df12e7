// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <time.h>
#include <unistd.h>
#include "agent/cache_file.h"
#include "base/cleanup.h"
#include "base/fingerprint.h"

#define MIN_SLOTS 16

enum slot_state { SLOT_FREE, SLOT_CLEAN, SLOT_DIRTY };

struct file_slot {
	enum slot_state state;
	uint64_t seq;
	struct fp fp;
	uint8_t bitmap[DM_DEDUP_BITMAP_BYTES]; /* DIRTY: valid sectors */
};

/* A slot as named by a map: valid while the sequence is the slot's. */
struct slot_name {
	uint64_t slot, seq; /* seq 0: none */
};

struct file_block {
	struct slot_name open, closed, base;
	bool base_zero;
};

struct file_volume {
	struct dm_dedup_volume_info info; /* closed_cut, committed_cut, flags: kept here */
	struct file_block *blocks;
	uint64_t nr_blocks;
	struct dm_dedup_replacement *staged;
	size_t nr_staged;
	LIST_ENTRY(file_volume) link;
};

struct request {
	struct dm_dedup_upcall up;
	bool sent;
	bool answered; /* LOOKUP, OPEN: the guest takes it from here */
	int error;
	struct dm_dedup_volume_info reply;
	TAILQ_ENTRY(request) link;
};

struct cache_file {
	struct cache cache;
	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t changed;
	int fd;
	unsigned int shift;
	uint64_t nr_slots, hand; /* where the search for a slot begins */
	struct uuid uuid;
	struct file_slot *slots;
	uint64_t next_seq, next_cookie, next_volume, epoch;
	bool connected, woken;
	LIST_HEAD(, file_volume) volumes;
	TAILQ_HEAD(, request) requests;
};

static struct cache_file *lock(struct cache *c)
{
	struct cache_file *f = (struct cache_file *)c;

	pthread_mutex_lock(&f->lock);
	return f;
}

static int unlock(struct cache_file *f, int r)
{
	pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
	return r;
}

static size_t block_size(const struct cache_file *f)
{
	return (size_t)1 << f->shift;
}

/* ---- slots ---- */

static bool slot_is(const struct cache_file *f, const struct slot_name *n, enum slot_state state)
{
	return n->seq && n->slot < f->nr_slots && f->slots[n->slot].seq == n->seq &&
	       f->slots[n->slot].state == state;
}

static void slot_put(struct cache_file *f, struct slot_name *n)
{
	if (slot_is(f, n, SLOT_DIRTY))
		f->slots[n->slot].state = SLOT_FREE;
	n->seq = 0;
}

/* A FREE slot, else a CLEAN one, which is evicted: maps that name it see its new sequence. */
static int slot_take(struct cache_file *f, enum slot_state state, struct slot_name *n)
{
	enum slot_state want;
	uint64_t i, slot;

	for (want = SLOT_FREE; want <= SLOT_CLEAN; want++)
		for (i = 0; i < f->nr_slots; i++) {
			slot = (f->hand + i) % f->nr_slots;
			if (f->slots[slot].state != want)
				continue;
			f->hand = slot + 1;
			memset(&f->slots[slot], 0, sizeof(f->slots[slot]));
			f->slots[slot].state = state;
			f->slots[slot].seq = f->next_seq++;
			n->slot = slot;
			n->seq = f->slots[slot].seq;
			return 0;
		}
	return -ENOSPC;
}

static int slot_io(struct cache_file *f, uint64_t slot, size_t offset, void *buf, size_t len,
		   bool write)
{
	off_t at = (off_t)((slot << f->shift) + offset);
	ssize_t n;

	n = write ? pwrite(f->fd, buf, len, at) : pread(f->fd, buf, len, at);
	return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EIO;
}

/* ---- volumes ---- */

static struct file_volume *volume_find(struct cache_file *f, uint64_t id)
{
	struct file_volume *v;

	LIST_FOREACH(v, &f->volumes, link)
		if (v->info.volume == id)
			return v;
	return NULL;
}

static struct file_volume *volume_of_image(struct cache_file *f, const uint8_t *image)
{
	struct file_volume *v;

	LIST_FOREACH(v, &f->volumes, link)
		if (!memcmp(v->info.image, image, sizeof(v->info.image)))
			return v;
	return NULL;
}

static struct file_volume *volume_new(struct cache_file *f, const uint8_t *image, uint64_t size)
{
	struct file_volume *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->nr_blocks = (size + block_size(f) - 1) >> f->shift;
	v->blocks = calloc(v->nr_blocks, sizeof(*v->blocks));
	if (!v->blocks) {
		free(v);
		return NULL;
	}
	v->info.volume = f->next_volume++;
	v->info.size = size;
	v->info.logical_block_size = 512;
	memcpy(v->info.image, image, sizeof(v->info.image));
	LIST_INSERT_HEAD(&f->volumes, v, link);
	return v;
}

static void volume_free(struct cache_file *f, struct file_volume *v)
{
	uint64_t i;

	for (i = 0; i < v->nr_blocks; i++) {
		slot_put(f, &v->blocks[i].open);
		slot_put(f, &v->blocks[i].closed);
	}
	LIST_REMOVE(v, link);
	free(v->staged);
	free(v->blocks);
	free(v);
}

static bool has_overlays(const struct file_volume *v, bool closed_too)
{
	uint64_t i;

	for (i = 0; i < v->nr_blocks; i++)
		if (v->blocks[i].open.seq || (closed_too && v->blocks[i].closed.seq))
			return true;
	return false;
}

static void volume_info(struct cache_file *f, struct file_volume *v,
			struct dm_dedup_volume_info *info)
{
	uint64_t i;

	*info = v->info;
	for (i = 0; i < v->nr_blocks; i++)
		info->dirty_bytes += ((v->blocks[i].open.seq != 0) +
				      (v->blocks[i].closed.seq != 0)) *
				     block_size(f);
	if (info->dirty_bytes)
		info->flags |= DM_DEDUP_VOL_DIRTY;
}

/* ---- requests to the agent ---- */

static struct request *request_new(struct cache_file *f, uint16_t type, bool event)
{
	struct request *req = calloc(1, sizeof(*req));

	if (!req)
		return NULL;
	req->up.size = sizeof(req->up);
	req->up.type = type;
	if (!event)
		req->up.cookie = f->next_cookie++;
	TAILQ_INSERT_TAIL(&f->requests, req, link);
	pthread_cond_broadcast(&f->changed);
	return req;
}

static void request_free(struct cache_file *f, struct request *req)
{
	TAILQ_REMOVE(&f->requests, req, link);
	free(req);
}

static struct request *request_find(struct cache_file *f, uint64_t cookie, bool fetch)
{
	struct request *req;

	TAILQ_FOREACH(req, &f->requests, link)
		if (cookie && req->up.cookie == cookie && !req->answered &&
		    (req->up.type == DM_DEDUP_UP_FETCH) == fetch)
			return req;
	return NULL;
}

/* Waits for the agent's REPLY. Takes the request over. */
static int wait_for_reply(struct cache_file *f, struct request *req,
			  struct dm_dedup_volume_info *reply)
{
	int r;

	while (!req->answered)
		pthread_cond_wait(&f->changed, &f->lock);
	r = -req->error;
	*reply = req->reply;
	request_free(f, req);
	return r;
}

static int need_block(struct cache_file *f, struct file_volume *v, uint64_t block)
{
	struct request *req;

	TAILQ_FOREACH(req, &f->requests, link)
		if (req->up.type == DM_DEDUP_UP_FETCH && req->up.info.volume == v->info.volume &&
		    req->up.block == block)
			break;
	if (!req) {
		req = request_new(f, DM_DEDUP_UP_FETCH, false);
		if (!req)
			return -ENOMEM;
		req->up.block = block;
		req->up.info = v->info;
	}
	pthread_cond_wait(&f->changed, &f->lock);
	return 0;
}

/* ---- the guest ---- */

int cache_file_open(struct cache *c, const char *image, uint32_t flags, uint64_t *volume,
		    uint64_t *size)
{
	struct cache_file *f = lock(c);
	struct dm_dedup_volume_info info, open;
	struct file_volume *v;
	struct request *req;
	int r;

	req = request_new(f, DM_DEDUP_UP_LOOKUP, false);
	if (!req)
		return unlock(f, -ENOMEM);
	snprintf(req->up.info.name, sizeof(req->up.info.name), "%s", image);
	r = wait_for_reply(f, req, &info);
	if (r)
		return unlock(f, r);
	v = volume_of_image(f, info.image);
	if (v && v->info.flags & DM_DEDUP_VOL_OPEN)
		return unlock(f, -EBUSY);
	if (!v)
		v = volume_new(f, info.image, info.size);
	if (!v)
		return unlock(f, -ENOMEM);
	snprintf(v->info.name, sizeof(v->info.name), "%s", image);
	v->info.flags |= flags | info.flags;
	req = request_new(f, DM_DEDUP_UP_OPEN, false);
	if (!req)
		return unlock(f, -ENOMEM);
	volume_info(f, v, &req->up.info);
	r = wait_for_reply(f, req, &open);
	if (!r && has_overlays(v, true) &&
	    (open.lease_epoch != v->info.lease_epoch ||
	     memcmp(open.root, v->info.root, sizeof(open.root))))
		r = -ESTALE;
	if (r)
		return unlock(f, r);
	memcpy(v->info.root, open.root, sizeof(open.root));
	v->info.lease_epoch = open.lease_epoch;
	if (!has_overlays(v, true))
		v->info.committed_cut = open.committed_cut;
	v->info.flags |= DM_DEDUP_VOL_OPEN | (open.lease_epoch ? DM_DEDUP_VOL_GRANTED : 0);
	*volume = v->info.volume;
	*size = v->info.size;
	return unlock(f, 0);
}

int cache_file_close(struct cache *c, uint64_t volume)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, volume);
	struct request *req;

	if (!v)
		return unlock(f, -ENODEV);
	v->info.flags &= ~DM_DEDUP_VOL_OPEN;
	req = request_new(f, DM_DEDUP_UP_CLOSE, true);
	if (req)
		volume_info(f, v, &req->up.info);
	return unlock(f, 0);
}

static bool sector_valid(const struct cache_file *f, const struct slot_name *n, size_t sector)
{
	return slot_is(f, n, SLOT_DIRTY) &&
	       f->slots[n->slot].bitmap[sector / 8] & (1U << (sector % 8));
}

/* One sector from the top layer that has it. -EAGAIN: the base is not here. */
static int read_sector(struct cache_file *f, struct file_block *b, size_t sector, void *buf)
{
	struct slot_name *n;

	if (sector_valid(f, &b->open, sector))
		n = &b->open;
	else if (sector_valid(f, &b->closed, sector))
		n = &b->closed;
	else if (b->base_zero) {
		memset(buf, 0, 512);
		return 0;
	} else if (slot_is(f, &b->base, SLOT_CLEAN))
		n = &b->base;
	else
		return -EAGAIN;
	return slot_io(f, n->slot, sector << 9, buf, 512, false);
}

int cache_file_read(struct cache *c, uint64_t volume, uint64_t offset, void *buf, size_t len)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, volume);
	size_t done = 0;
	int r = 0;

	if (!v || (offset | len) & 511 || offset + len > v->info.size)
		return unlock(f, v ? -EINVAL : -ENODEV);
	while (!r && done < len) {
		uint64_t block = (offset + done) >> f->shift;
		size_t sector = ((offset + done) & (block_size(f) - 1)) >> 9;

		r = read_sector(f, &v->blocks[block], sector, (char *)buf + done);
		if (!r)
			done += 512;
		else if (r == -EAGAIN)
			r = need_block(f, v, block);
	}
	return unlock(f, r);
}

int cache_file_write(struct cache *c, uint64_t volume, uint64_t offset, const void *buf,
		     size_t len)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, volume);
	size_t done;
	int r = 0;

	if (!v || (offset | len) & 511 || offset + len > v->info.size)
		return unlock(f, v ? -EINVAL : -ENODEV);
	if (v->info.flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_FENCED))
		return unlock(f, -EROFS);
	for (done = 0; !r && done < len; done += 512) {
		uint64_t block = (offset + done) >> f->shift;
		size_t sector = ((offset + done) & (block_size(f) - 1)) >> 9;
		struct slot_name *n = &v->blocks[block].open;

		if (!slot_is(f, n, SLOT_DIRTY))
			r = slot_take(f, SLOT_DIRTY, n);
		if (!r)
			r = slot_io(f, n->slot, sector << 9, (char *)buf + done, 512, true);
		if (!r)
			f->slots[n->slot].bitmap[sector / 8] |= (uint8_t)(1U << (sector % 8));
	}
	return unlock(f, r);
}

void cache_file_evict_all(struct cache *c)
{
	struct cache_file *f = lock(c);
	uint64_t i;

	for (i = 0; i < f->nr_slots; i++)
		if (f->slots[i].state == SLOT_CLEAN)
			f->slots[i].state = SLOT_FREE;
	unlock(f, 0);
}

/* ---- the channel ---- */

static int file_connect(struct cache *c, struct dm_dedup_hello *hello, struct error *err)
{
	struct cache_file *f = lock(c);
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
	};
	memcpy(hello->cache, f->uuid.b, sizeof(hello->cache));
	return unlock(f, 0);
}

static ssize_t file_read(struct cache *c, struct dm_dedup_upcall *ups, size_t max, int timeout_ms)
{
	struct cache_file *f = lock(c);
	struct request *req, *next;
	struct timespec until;
	size_t n = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += timeout_ms / 1000;
	for (;;) {
		for (req = TAILQ_FIRST(&f->requests); req && n < max; req = next) {
			next = TAILQ_NEXT(req, link);
			if (req->sent)
				continue;
			ups[n++] = req->up;
			req->sent = true;
			if (!req->up.cookie)
				request_free(f, req);
		}
		if (n || f->woken || !timeout_ms ||
		    pthread_cond_timedwait(&f->changed, &f->lock, &until) == ETIMEDOUT)
			break;
	}
	f->woken = false;
	pthread_mutex_unlock(&f->lock);
	return (ssize_t)n;
}

static void file_wake(struct cache *c)
{
	struct cache_file *f = lock(c);

	f->woken = true;
	unlock(f, 0);
}

static void file_disconnect(struct cache *c)
{
	struct cache_file *f = lock(c);

	f->connected = false;
	unlock(f, 0);
}

static void file_free(struct cache *c)
{
	struct cache_file *f = (struct cache_file *)c;
	struct request *req;

	while (!LIST_EMPTY(&f->volumes))
		volume_free(f, LIST_FIRST(&f->volumes));
	while ((req = TAILQ_FIRST(&f->requests)))
		request_free(f, req);
	close(f->fd);
	pthread_cond_destroy(&f->changed);
	pthread_mutex_destroy(&f->lock);
	free(f->slots);
	free(f);
}

static int file_reply(struct cache *c, struct dm_dedup_reply *reply)
{
	struct cache_file *f = lock(c);
	struct request *req = request_find(f, reply->cookie, false);

	if (!f->connected || !req)
		return unlock(f, req ? -ENODEV : -ESTALE);
	req->answered = true;
	req->error = reply->error;
	req->reply = reply->info;
	return unlock(f, 0);
}

/* The block that a FETCH (or, without a cookie, a volume's root) asks for. */
static int find_target(struct cache_file *f, uint64_t cookie, uint64_t volume, uint64_t block,
		       const uint8_t *root, struct file_block **b, struct request **req)
{
	struct file_volume *v = volume_find(f, volume);

	*req = cookie ? request_find(f, cookie, true) : NULL;
	if (!v || block >= v->nr_blocks || (cookie && !*req) ||
	    memcmp(v->info.root, root, sizeof(v->info.root)))
		return -ESTALE;
	if (*req && ((*req)->up.info.volume != volume || (*req)->up.block != block))
		return -ESTALE;
	*b = &v->blocks[block];
	if ((*b)->base_zero || slot_is(f, &(*b)->base, SLOT_CLEAN)) {
		if (*req)
			request_free(f, *req);
		return -EEXIST;
	}
	return 0;
}

static int publish_one(struct cache_file *f, struct dm_dedup_publish *p)
{
	struct slot_name name;
	struct file_block *b;
	struct request *req;
	int r;

	r = find_target(f, p->cookie, p->volume, p->block, p->root, &b, &req);
	if (!r)
		r = slot_take(f, SLOT_CLEAN, &name);
	if (r)
		return r;
	r = slot_io(f, name.slot, 0, (void *)(uintptr_t)p->data, block_size(f), true);
	if (r) {
		f->slots[name.slot].state = SLOT_FREE;
		return r;
	}
	memcpy(f->slots[name.slot].fp.b, p->fp, FP_SIZE);
	b->base = name;
	p->slot = name.slot;
	p->seq = name.seq;
	if (req)
		request_free(f, req);
	return 0;
}

static int file_publish(struct cache *c, struct dm_dedup_publish *p, size_t count)
{
	struct cache_file *f = lock(c);
	size_t i;

	if (!f->connected)
		return unlock(f, -ENODEV);
	for (i = 0; i < count; i++)
		p[i].result = publish_one(f, &p[i]);
	return unlock(f, 0);
}

static int map_one(struct cache_file *f, struct dm_dedup_map *m)
{
	struct slot_name name = { m->slot, m->seq };
	struct file_block *b;
	struct request *req;
	int r;

	if (!(m->flags & DM_DEDUP_MAP_ZERO) && !slot_is(f, &name, SLOT_CLEAN))
		return -ESTALE;
	r = find_target(f, m->cookie, m->volume, m->block, m->root, &b, &req);
	if (r)
		return r;
	if (m->flags & DM_DEDUP_MAP_ZERO)
		b->base_zero = true;
	else
		b->base = name;
	if (req)
		request_free(f, req);
	return 0;
}

static int file_map(struct cache *c, struct dm_dedup_map *m, size_t count)
{
	struct cache_file *f = lock(c);
	size_t i;

	if (!f->connected)
		return unlock(f, -ENODEV);
	for (i = 0; i < count; i++)
		m[i].result = map_one(f, &m[i]);
	return unlock(f, 0);
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
	struct cache_file *f = lock(c);
	size_t i;

	for (i = 0; i < count; i++) {
		struct slot_name name = { d[i].slot, d[i].seq };

		d[i].result = slot_is(f, &name, SLOT_CLEAN) ? 0 : -ESTALE;
		if (!d[i].result)
			f->slots[name.slot].state = SLOT_FREE;
	}
	return unlock(f, 0);
}

static int file_cut(struct cache *c, struct dm_dedup_cut *cut)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, cut->volume);
	uint64_t i;

	if (!f->connected || !v)
		return unlock(f, v ? -ENODEV : -ENOENT);
	if (v->info.flags & (DM_DEDUP_VOL_DIVERGED | DM_DEDUP_VOL_FENCED))
		return unlock(f, -ESHUTDOWN);
	cut->cut = 0;
	cut->lease_epoch = v->info.lease_epoch;
	memcpy(cut->root, v->info.root, sizeof(cut->root));
	if (v->info.closed_cut <= v->info.committed_cut) {
		if (!has_overlays(v, false))
			return unlock(f, 0);
		for (i = 0; i < v->nr_blocks; i++) {
			v->blocks[i].closed = v->blocks[i].open;
			v->blocks[i].open.seq = 0;
		}
		v->info.closed_cut = v->info.committed_cut + 1;
	}
	cut->cut = v->info.closed_cut;
	return unlock(f, 0);
}

static bool is_complete(const struct cache_file *f, uint64_t slot)
{
	size_t sector;

	for (sector = 0; sector < block_size(f) >> 9; sector++)
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
	} else if (slot_is(f, &b->base, SLOT_CLEAN)) {
		e->base_kind = DM_DEDUP_BASE_SLOT;
		e->base_slot = b->base.slot;
		e->base_seq = b->base.seq;
	}
}

static int file_list_cut(struct cache *c, uint64_t volume, uint64_t cut, uint64_t *cursor,
			 struct dm_dedup_cut_entry *entries, size_t *count)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, volume);
	size_t n = 0;
	uint64_t i;

	if (!f->connected || !v)
		return unlock(f, v ? -ENODEV : -ENOENT);
	if (cut != v->info.closed_cut)
		return unlock(f, -EINVAL);
	for (i = *cursor; i < v->nr_blocks && n < *count; i++)
		if (v->blocks[i].closed.seq)
			fill_entry(f, &v->blocks[i], i, &entries[n++]);
	*cursor = i < v->nr_blocks ? i : ~0ULL;
	*count = n;
	return unlock(f, 0);
}

static int file_list_clean(struct cache *c, uint64_t *cursor,
			   struct dm_dedup_clean_entry *entries, size_t *count)
{
	struct cache_file *f = lock(c);
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
	return unlock(f, 0);
}

static int file_list_volumes(struct cache *c, uint64_t *cursor,
			     struct dm_dedup_volume_info *infos, size_t *count)
{
	struct cache_file *f = lock(c);
	struct file_volume *v;
	uint64_t i = 0;
	size_t n = 0;

	if (!f->connected)
		return unlock(f, -ENODEV);
	LIST_FOREACH(v, &f->volumes, link)
		if (i++ >= *cursor && n < *count)
			volume_info(f, v, &infos[n++]);
	*cursor = *cursor + n < i ? *cursor + n : ~0ULL;
	*count = n;
	return unlock(f, 0);
}

/* Misses that were resolved against the old root are void; their guests ask again. */
static void forget_fetches(struct cache_file *f, uint64_t volume)
{
	struct request *req, *next;

	for (req = TAILQ_FIRST(&f->requests); req; req = next) {
		next = TAILQ_NEXT(req, link);
		if (req->up.type == DM_DEDUP_UP_FETCH && req->up.info.volume == volume)
			request_free(f, req);
	}
}

static void replace_base(struct cache_file *f, struct file_block *b,
			 struct dm_dedup_replacement *r)
{
	struct slot_name name = { r->slot, r->seq };

	r->result = 0;
	if (r->kind == DM_DEDUP_BASE_ZERO) {
		b->base_zero = true;
	} else if (r->kind == DM_DEDUP_BASE_SLOT && slot_is(f, &name, SLOT_CLEAN)) {
		b->base = name;
	} else if (r->kind == DM_DEDUP_BASE_OWN && r->seq == b->closed.seq &&
		   slot_is(f, &name, SLOT_DIRTY) && is_complete(f, name.slot)) {
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
		slot_put(f, &v->blocks[i].closed);
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

static int file_commit(struct cache *c, uint64_t volume, uint64_t cut, const uint8_t *root,
		       uint64_t lease_epoch, struct dm_dedup_replacement *r, size_t count, bool more)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, volume);
	int ret;

	if (!f->connected || !v)
		return unlock(f, v ? -ENODEV : -ENOENT);
	if (lease_epoch != v->info.lease_epoch)
		return unlock(f, -ESTALE);
	if (cut == v->info.committed_cut && !memcmp(root, v->info.root, sizeof(v->info.root)))
		return unlock(f, -EALREADY);
	if (cut != v->info.closed_cut || cut <= v->info.committed_cut)
		return unlock(f, -EINVAL);
	ret = stage(v, r, count);
	if (ret || more)
		return unlock(f, ret);
	apply_commit(f, v);
	memcpy(r, v->staged + v->nr_staged - count, count * sizeof(*r)); /* results */
	memcpy(v->info.root, root, sizeof(v->info.root));
	v->info.committed_cut = cut;
	free(v->staged);
	v->staged = NULL;
	v->nr_staged = 0;
	return unlock(f, 0);
}

static int file_fence(struct cache *c, uint64_t volume, uint64_t lease_epoch)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, volume);

	if (!v)
		return unlock(f, -ENOENT);
	v->info.flags |= DM_DEDUP_VOL_FENCED | DM_DEDUP_VOL_DIVERGED;
	return unlock(f, 0);
}

static int file_release(struct cache *c, uint64_t volume, uint64_t lease_epoch, uint32_t flags)
{
	struct cache_file *f = lock(c);
	struct file_volume *v = volume_find(f, volume);
	bool discard = flags & DM_DEDUP_RELEASE_DISCARD;

	if (!v)
		return unlock(f, -ENOENT);
	if (v->info.flags & DM_DEDUP_VOL_OPEN || (has_overlays(v, true) && !discard))
		return unlock(f, -EBUSY);
	if (discard && has_overlays(v, true) &&
	    !(v->info.flags & (DM_DEDUP_VOL_EPHEMERAL | DM_DEDUP_VOL_DIVERGED)))
		return unlock(f, -EBUSY);
	volume_free(f, v);
	return unlock(f, 0);
}

static int file_open_slots(struct cache *c)
{
	return 0;
}

static void file_close_slots(struct cache *c)
{
}

static int file_read_slot(struct cache *c, uint64_t slot, void *buf)
{
	struct cache_file *f = lock(c);
	int r = -EINVAL;

	if (slot < f->nr_slots)
		r = slot_io(f, slot, 0, buf, block_size(f), false);
	pthread_mutex_unlock(&f->lock);
	return r;
}

static const struct cache_ops file_ops = {
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

struct cache *cache_file_new(const char *path, uint64_t size, unsigned int block_shift,
			     const struct uuid *uuid, struct error *err)
{
	struct cache_file *f = calloc(1, sizeof(*f));

	if (!f) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	f->cache.ops = &file_ops;
	f->shift = block_shift;
	f->nr_slots = size >> block_shift;
	f->uuid = *uuid;
	f->next_seq = f->next_cookie = f->next_volume = 1;
	f->fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) :
		       memfd_create("vmdedup-cache", MFD_CLOEXEC);
	f->slots = calloc(f->nr_slots, sizeof(*f->slots));
	if (f->nr_slots < MIN_SLOTS || f->fd < 0 || !f->slots ||
	    ftruncate(f->fd, (off_t)(f->nr_slots << block_shift))) {
		error_set(err, f->nr_slots < MIN_SLOTS ? -EINVAL : -errno,
			  "cannot make a cache of %llu bytes in %s: %s", (unsigned long long)size,
			  path ? path : "memory",
			  f->nr_slots < MIN_SLOTS ? "it holds less than 16 blocks" :
						    strerror(errno));
		if (f->fd >= 0)
			close(f->fd);
		free(f->slots);
		free(f);
		return NULL;
	}
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->changed, NULL);
	LIST_INIT(&f->volumes);
	TAILQ_INIT(&f->requests);
	return &f->cache;
}
