/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the two halves of the plain-file cache share: the guest's side and the channel's. */
#ifndef VMDEDUP_AGENT_CACHE_FILE_IMPL_H
#define VMDEDUP_AGENT_CACHE_FILE_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/queue.h>
#include "agent/cache_file.h"
#include "base/fingerprint.h"

enum slot_state { SLOT_FREE, SLOT_CLEAN, SLOT_DIRTY, SLOT_FILLING };

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
	bool is_new; /* never opened yet: it has no record that LIST_VOLUMES could tell of */
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
	pthread_cond_t changed, asked; /* what guests wait for, and the agent */
	int fd;
	unsigned int shift;
	uint64_t nr_slots, hand; /* where the search for a slot begins */
	struct uuid uuid;
	struct file_slot *slots;
	uint64_t next_seq, next_cookie, next_volume, epoch;
	bool connected, woken;
	unsigned int guests; /* that wait */
	LIST_HEAD(, file_volume) volumes;
	TAILQ_HEAD(, request) requests;
};

extern const struct cache_ops cache_file_ops;

struct cache_file *cf_lock(struct cache *c);
int cf_unlock(struct cache_file *f, int r); /* wakes guests that wait for a change; returns @r */

/* All below are called with the lock held. */
size_t cf_block_size(const struct cache_file *f);
bool cf_slot_is(const struct cache_file *f, const struct slot_name *n, enum slot_state state);
void cf_slot_put(struct cache_file *f, struct slot_name *n);
int cf_slot_take(struct cache_file *f, enum slot_state state, struct slot_name *n);
int cf_slot_io(struct cache_file *f, uint64_t slot, size_t offset, void *buf, size_t len,
	       bool write);
struct file_volume *cf_volume_find(struct cache_file *f, uint64_t id);
void cf_volume_free(struct cache_file *f, struct file_volume *v);
bool cf_has_overlays(const struct file_volume *v, bool closed_too);
void cf_volume_info(struct cache_file *f, struct file_volume *v,
		    struct dm_dedup_volume_info *info);
struct request *cf_request_find(struct cache_file *f, uint64_t cookie, bool fetch);
void cf_request_free(struct cache_file *f, struct request *req);

#endif
