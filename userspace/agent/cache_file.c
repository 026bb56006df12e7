// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "agent/cache_file_impl.h"
#include "base/cleanup.h"

#define MIN_SLOTS 16

struct cache_file *cf_lock(struct cache *c)
{
	struct cache_file *f = (struct cache_file *)c;

	pthread_mutex_lock(&f->lock);
	return f;
}

int cf_unlock(struct cache_file *f, int r)
{
	if (f->guests)
		pthread_cond_broadcast(&f->changed);
	pthread_mutex_unlock(&f->lock);
	return r;
}

size_t cf_block_size(const struct cache_file *f)
{
	return (size_t)1 << f->shift;
}

/* ---- slots ---- */

bool cf_slot_is(const struct cache_file *f, const struct slot_name *n, enum slot_state state)
{
	return n->seq && n->slot < f->nr_slots && f->slots[n->slot].seq == n->seq &&
	       f->slots[n->slot].state == state;
}

void cf_slot_put(struct cache_file *f, struct slot_name *n)
{
	if (cf_slot_is(f, n, SLOT_DIRTY))
		f->slots[n->slot].state = SLOT_FREE;
	n->seq = 0;
}

/* A FREE slot, else a CLEAN one, which is evicted: maps that name it see its new sequence. */
int cf_slot_take(struct cache_file *f, enum slot_state state, struct slot_name *n)
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

int cf_slot_io(struct cache_file *f, uint64_t slot, size_t offset, void *buf, size_t len,
		   bool write)
{
	off_t at = (off_t)((slot << f->shift) + offset);
	ssize_t n;

	n = write ? pwrite(f->fd, buf, len, at) : pread(f->fd, buf, len, at);
	return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EIO;
}

/* ---- volumes ---- */

struct file_volume *cf_volume_find(struct cache_file *f, uint64_t id)
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
	v->nr_blocks = (size + cf_block_size(f) - 1) >> f->shift;
	v->blocks = calloc(v->nr_blocks, sizeof(*v->blocks));
	if (!v->blocks) {
		free(v);
		return NULL;
	}
	v->info.volume = f->next_volume++;
	v->info.size = size;
	v->info.logical_block_size = 512;
	v->is_new = true;
	memcpy(v->info.image, image, sizeof(v->info.image));
	LIST_INSERT_HEAD(&f->volumes, v, link);
	return v;
}

void cf_volume_free(struct cache_file *f, struct file_volume *v)
{
	uint64_t i;

	for (i = 0; i < v->nr_blocks; i++) {
		cf_slot_put(f, &v->blocks[i].open);
		cf_slot_put(f, &v->blocks[i].closed);
	}
	LIST_REMOVE(v, link);
	free(v->staged);
	free(v->blocks);
	free(v);
}

bool cf_has_overlays(const struct file_volume *v, bool closed_too)
{
	uint64_t i;

	for (i = 0; i < v->nr_blocks; i++)
		if (v->blocks[i].open.seq || (closed_too && v->blocks[i].closed.seq))
			return true;
	return false;
}

void cf_volume_info(struct cache_file *f, struct file_volume *v,
			struct dm_dedup_volume_info *info)
{
	uint64_t i;

	*info = v->info;
	for (i = 0; i < v->nr_blocks; i++)
		info->dirty_bytes += ((v->blocks[i].open.seq != 0) +
				      (v->blocks[i].closed.seq != 0)) *
				     cf_block_size(f);
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
	pthread_cond_signal(&f->asked);
	return req;
}

void cf_request_free(struct cache_file *f, struct request *req)
{
	TAILQ_REMOVE(&f->requests, req, link);
	free(req);
}

struct request *cf_request_find(struct cache_file *f, uint64_t cookie, bool fetch)
{
	struct request *req;

	TAILQ_FOREACH(req, &f->requests, link)
		if (cookie && req->up.cookie == cookie && !req->answered &&
		    (req->up.type == DM_DEDUP_UP_FETCH) == fetch)
			return req;
	return NULL;
}

static void wait_for_change(struct cache_file *f)
{
	f->guests++;
	pthread_cond_wait(&f->changed, &f->lock);
	f->guests--;
}

/* Waits for the agent's REPLY. Takes the request over. */
static int wait_for_reply(struct cache_file *f, struct request *req,
			  struct dm_dedup_volume_info *reply)
{
	int r;

	while (!req->answered)
		wait_for_change(f);
	r = -req->error;
	*reply = req->reply;
	cf_request_free(f, req);
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
	wait_for_change(f);
	return 0;
}

/* ---- the guest ---- */

/* What dirty state may stand on: the recorded root of the recorded epoch, or that root's child by
 * the cut that is closed here and that nobody has told us the commit of. */
static bool is_own_head(const struct file_volume *v, const struct dm_dedup_volume_info *open)
{
	if (open->lease_epoch != v->info.lease_epoch)
		return false;
	return !memcmp(open->root, v->info.root, sizeof(open->root)) ||
	       (v->info.closed_cut > v->info.committed_cut &&
		open->committed_cut == v->info.closed_cut);
}

/* The agent's answer, which waits for others: *v is NULL if the volume was released meanwhile. */
static int ask_open(struct cache_file *f, struct file_volume **v,
		    struct dm_dedup_volume_info *grant)
{
	struct request *req = request_new(f, DM_DEDUP_UP_OPEN, false);
	uint64_t id = (*v)->info.volume;
	int r;

	if (!req)
		return -ENOMEM;
	cf_volume_info(f, *v, &req->up.info);
	r = wait_for_reply(f, req, grant);
	*v = cf_volume_find(f, id);
	if (!r && *v && (*v)->info.flags & DM_DEDUP_VOL_OPEN)
		r = -EBUSY; /* another device was first */
	if (!r && *v && cf_has_overlays(*v, true) && !is_own_head(*v, grant))
		r = -ESTALE;
	return r;
}

int cache_file_open(struct cache *c, const char *image, uint32_t flags, uint64_t *volume,
		    uint64_t *size)
{
	struct cache_file *f = cf_lock(c);
	struct dm_dedup_volume_info info, open;
	struct file_volume *v = NULL;
	struct request *req;
	int r;

	req = request_new(f, DM_DEDUP_UP_LOOKUP, false);
	if (!req)
		return cf_unlock(f, -ENOMEM);
	snprintf(req->up.info.name, sizeof(req->up.info.name), "%s", image);
	r = wait_for_reply(f, req, &info);
	while (!r && !v) {
		v = volume_of_image(f, info.image);
		if (v && v->info.flags & DM_DEDUP_VOL_OPEN)
			return cf_unlock(f, -EBUSY);
		if (!v)
			v = volume_new(f, info.image, info.size);
		if (!v)
			return cf_unlock(f, -ENOMEM);
		snprintf(v->info.name, sizeof(v->info.name), "%s", image);
		v->info.flags |= flags | info.flags;
		r = ask_open(f, &v, &open);
	}
	if (r) {
		if (v && v->is_new)
			cf_volume_free(f, v);
		return cf_unlock(f, r);
	}
	v->is_new = false;
	v->info.lease_epoch = open.lease_epoch;
	/* Dirty state stays on its own root, also when the head is the child by its closed cut. */
	if (!cf_has_overlays(v, true)) {
		memcpy(v->info.root, open.root, sizeof(open.root));
		v->info.committed_cut = open.committed_cut;
	}
	v->info.flags |= DM_DEDUP_VOL_OPEN | (open.lease_epoch ? DM_DEDUP_VOL_GRANTED : 0);
	*volume = v->info.volume;
	*size = v->info.size;
	return cf_unlock(f, 0);
}

int cache_file_grow(struct cache *c, uint64_t volume)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);
	struct dm_dedup_volume_info info;
	struct file_block *blocks;
	struct request *req;
	uint64_t nr;
	int r;

	req = v ? request_new(f, DM_DEDUP_UP_LOOKUP, false) : NULL;
	if (!req)
		return cf_unlock(f, v ? -ENOMEM : -ENODEV);
	snprintf(req->up.info.name, sizeof(req->up.info.name), "%s", v->info.name);
	r = wait_for_reply(f, req, &info);
	v = cf_volume_find(f, volume);
	if (r || !v || info.size < v->info.size)
		return cf_unlock(f, r ? r : v ? -EBUSY : -ENODEV);
	nr = (info.size + cf_block_size(f) - 1) >> f->shift;
	blocks = realloc(v->blocks, nr * sizeof(*blocks));
	if (!blocks)
		return cf_unlock(f, -ENOMEM);
	memset(blocks + v->nr_blocks, 0, (nr - v->nr_blocks) * sizeof(*blocks));
	v->blocks = blocks;
	v->nr_blocks = nr;
	v->info.size = info.size;
	return cf_unlock(f, 0);
}

int cache_file_close(struct cache *c, uint64_t volume)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);
	struct request *req;

	if (!v)
		return cf_unlock(f, -ENODEV);
	v->info.flags &= ~DM_DEDUP_VOL_OPEN;
	req = request_new(f, DM_DEDUP_UP_CLOSE, true);
	if (req)
		cf_volume_info(f, v, &req->up.info);
	return cf_unlock(f, 0);
}

static bool sector_valid(const struct cache_file *f, const struct slot_name *n, size_t sector)
{
	return cf_slot_is(f, n, SLOT_DIRTY) &&
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
	} else if (cf_slot_is(f, &b->base, SLOT_CLEAN))
		n = &b->base;
	else
		return -EAGAIN;
	return cf_slot_io(f, n->slot, sector << 9, buf, 512, false);
}

/* As much as lies in one base: most of what a guest reads. Bytes; 0: sector by sector. -EAGAIN: it was
 * evicted meanwhile, for others go on. */
static ssize_t read_base(struct cache_file *f, struct file_block *b, size_t offset, void *buf,
			 size_t len)
{
	size_t n = MIN(len, cf_block_size(f) - offset);
	struct slot_name base = b->base;
	int r;

	if (b->open.seq || b->closed.seq || b->base_zero || !cf_slot_is(f, &base, SLOT_CLEAN))
		return 0;
	pthread_mutex_unlock(&f->lock);
	r = cf_slot_io(f, base.slot, offset, buf, n, false);
	pthread_mutex_lock(&f->lock);
	if (!cf_slot_is(f, &base, SLOT_CLEAN))
		return -EAGAIN;
	return r ? r : (ssize_t)n;
}

int cache_file_read(struct cache *c, uint64_t volume, uint64_t offset, void *buf, size_t len)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);
	size_t done = 0;
	int r = 0;

	if (!v || (offset | len) & 511 || offset + len > v->info.size)
		return cf_unlock(f, v ? -EINVAL : -ENODEV);
	v->info.ios++;
	while (!r && done < len) {
		uint64_t block = (offset + done) >> f->shift;
		size_t at = (offset + done) & (cf_block_size(f) - 1);
		ssize_t n = read_base(f, &v->blocks[block], at, (char *)buf + done, len - done);

		if (n == -EAGAIN)
			continue;
		if (n) {
			r = n < 0 ? (int)n : 0;
			done += n < 0 ? 0 : (size_t)n;
			continue;
		}
		r = read_sector(f, &v->blocks[block], at >> 9, (char *)buf + done);
		if (!r)
			done += 512;
		else if (r == -EAGAIN)
			r = need_block(f, v, block);
	}
	return cf_unlock(f, r);
}

int cache_file_write(struct cache *c, uint64_t volume, uint64_t offset, const void *buf,
		     size_t len)
{
	struct cache_file *f = cf_lock(c);
	struct file_volume *v = cf_volume_find(f, volume);
	size_t done;
	int r = 0;

	if (!v || (offset | len) & 511 || offset + len > v->info.size)
		return cf_unlock(f, v ? -EINVAL : -ENODEV);
	if (v->info.flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_FENCED))
		return cf_unlock(f, -EROFS);
	v->info.ios++;
	for (done = 0; !r && done < len; done += 512) {
		uint64_t block = (offset + done) >> f->shift;
		size_t sector = ((offset + done) & (cf_block_size(f) - 1)) >> 9;
		struct slot_name *n = &v->blocks[block].open;

		if (!cf_slot_is(f, n, SLOT_DIRTY))
			r = cf_slot_take(f, SLOT_DIRTY, n);
		if (!r)
			r = cf_slot_io(f, n->slot, sector << 9, (char *)buf + done, 512, true);
		if (!r)
			f->slots[n->slot].bitmap[sector / 8] |= (uint8_t)(1U << (sector % 8));
	}
	return cf_unlock(f, r);
}

void cache_file_evict_all(struct cache *c)
{
	struct cache_file *f = cf_lock(c);
	uint64_t i;

	for (i = 0; i < f->nr_slots; i++)
		if (f->slots[i].state == SLOT_CLEAN)
			f->slots[i].state = SLOT_FREE;
	cf_unlock(f, 0);
}

struct cache *cache_file_new(const char *path, uint64_t size, unsigned int block_shift,
			     const struct uuid *uuid, struct error *err)
{
	struct cache_file *f = calloc(1, sizeof(*f));

	if (!f) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	f->cache.ops = &cache_file_ops;
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
	pthread_cond_init(&f->asked, NULL);
	LIST_INIT(&f->volumes);
	TAILQ_INIT(&f->requests);
	return &f->cache;
}
