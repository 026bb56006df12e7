/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A cache as the agent uses it: the verbs of the channel's ABI (linux/dm-dedup.h), which say what
 * each means. Two implement them: the kernel's channel, and a plain file.
 *
 * The verbs block. All but connect, read and disconnect may be called from any thread at any time;
 * they answer -ENODEV while the cache is not connected. Epochs of the agent are filled in here.
 * An entry's own result is in the entry; the functions' results are those of the whole call.
 *
 * A cache may be exchanged for another below its path: numbers of volumes, cuts and slots are of one
 * connection. What reads slots by numbers that it was told before says of which (open_slots gives it out), and
 * gets -ENODEV once that one has ended.
 */
#ifndef VMDEDUP_AGENT_CACHE_H
#define VMDEDUP_AGENT_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <linux/dm-dedup.h>
#include "base/error.h"
#include "base/uuid.h"

struct cache;

struct cache_ops {
	/* Find the cache and say HELLO. One thread does connect, read and disconnect. */
	int (*connect)(struct cache *c, struct dm_dedup_hello *hello, struct error *err);
	/* Wait for upcalls, at most @timeout_ms or until wake(). Their number; 0: none; or a
	 * negative errno: the cache has gone, disconnect. */
	ssize_t (*read)(struct cache *c, struct dm_dedup_upcall *ups, size_t max, int timeout_ms);
	void (*wake)(struct cache *c); /* any thread */
	void (*disconnect)(struct cache *c);
	void (*free)(struct cache *c);

	int (*reply)(struct cache *c, struct dm_dedup_reply *reply);
	int (*publish)(struct cache *c, struct dm_dedup_publish *p, size_t count);
	int (*map)(struct cache *c, struct dm_dedup_map *m, size_t count);
	int (*fail)(struct cache *c, struct dm_dedup_fail *f, size_t count);
	int (*drop)(struct cache *c, struct dm_dedup_drop *d, size_t count);
	int (*cut)(struct cache *c, uint64_t connection, struct dm_dedup_cut *cut); /* in: volume */
	/* @count in: room; out: filled. @cursor in: 0 or as left by the call before; ~0: the end. */
	int (*list_cut)(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
			uint64_t *cursor, struct dm_dedup_cut_entry *entries, size_t *count);
	int (*list_clean)(struct cache *c, uint64_t *cursor, struct dm_dedup_clean_entry *entries,
			  size_t *count);
	int (*list_volumes)(struct cache *c, uint64_t *cursor, struct dm_dedup_volume_info *infos,
			    size_t *count);
	/* @more: only stages. -EALREADY: committed before, with this root. */
	int (*commit)(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
		      const uint8_t *root, uint64_t lease_epoch, struct dm_dedup_replacement *r,
		      size_t count, bool more);
	int (*fence)(struct cache *c, uint64_t volume, uint64_t lease_epoch);
	int (*release)(struct cache *c, uint64_t volume, uint64_t lease_epoch, uint32_t flags);

	/* Slots can be read between these two, by any thread; pairs may nest. The cache's device
	 * is open meanwhile, and cannot be removed. *connection: the one that there is. */
	int (*open_slots)(struct cache *c, uint64_t *connection);
	void (*close_slots)(struct cache *c);
	/* The whole block in @slot. @buf: 4096-aligned. @len: the size of a block, else -EINVAL. The
	 * caller checks what it got: by the slot's sequence afterwards, or by the block's fingerprint. */
	int (*read_slot)(struct cache *c, uint64_t connection, uint64_t slot, void *buf, size_t len);
};

/* The head of every implementation. */
struct cache {
	const struct cache_ops *ops;
};

/* The dedup-cache device @path, e.g. /dev/mapper/cache0, which need not exist yet. */
struct cache *cache_channel_new(const char *path, struct error *err);

/* All volume records: *infos is malloc()ed. */
int cache_volumes(struct cache *c, struct dm_dedup_volume_info **infos, size_t *count);
/* The record of volume number @volume, or 0: of @image, or NULL: of @name, which may be an image's UUID, too.
 * -ENOENT; -EEXIST: several have that name, as when an image was renamed and another got its name, or one was
 * deleted and made again. With a text for people. Any thread; blocks. */
int cache_find_volume(struct cache *c, uint64_t volume, const struct uuid *image, const char *name,
		      struct dm_dedup_volume_info *found, struct error *err);

#endif
