// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One random call: mostly well formed and full of numbers that the kernel gave us, then damaged in
 * a few places, or in none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "fuzz.h"

#define ARENA_BYTES	(4UL << 20)

/* Memory with nothing behind it. Arguments lie at its end, in its midst, or across its end. */
struct arena {
	uint8_t *mem;
	uint8_t *data;	/* of PUBLISH */
};

struct arena *arena_new(void)
{
	struct arena *a = calloc(1, sizeof(*a));

	a->mem = mmap(NULL, ARENA_BYTES + 4096, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	a->data = mmap(NULL, (2UL << 20) + 4096, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (a->mem == MAP_FAILED || a->data == MAP_FAILED ||
	    mprotect(a->mem + ARENA_BYTES, 4096, PROT_NONE) ||
	    mprotect(a->data + (2UL << 20), 4096, PROT_NONE))
		abort();
	return a;
}

/* From another thread, while a call reads what it changes. */
void arena_scribble(struct arena *a, struct rnd *r)
{
	volatile uint8_t *at = a->mem + ARENA_BYTES - 1 - rnd_below(r, 8192);

	*at = rnd_one_in(r, 2) ? 0xff : 0;
}

static uint64_t odd_number(struct rnd *r)
{
	static const uint64_t odd[] = {
		0, 1, 2, 7, 8, 63, 64, 511, 512, 1023, 1024, 1025, 4095, 4096, 65535, 65536,
		0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff,
		0x8000000000000000, 0xfffffffffffffffe, 0xffffffffffffffff, 0xffff800000000000,
		0xffffffff81000000, 4,
	};

	if (rnd_one_in(r, 4))
		return rnd64(r);
	return odd[rnd_below(r, sizeof(odd) / sizeof(odd[0]))] + rnd_below(r, 3) - 1;
}

static uint64_t number(struct know *k, const struct numbers *from, struct rnd *r)
{
	if (rnd_one_in(r, 30))
		return odd_number(r);
	return know_pick(k, from, r) + (rnd_one_in(r, 30) ? rnd_below(r, 3) - 1 : 0);
}

static void *pointer(struct arena *a, struct rnd *r, size_t bytes)
{
	if (bytes > ARENA_BYTES)
		bytes = ARENA_BYTES;
	switch (rnd_below(r, 24)) {
	case 0:
		return (void *)odd_number(r);
	case 1:
		return a->mem + ARENA_BYTES - bytes + 1 + rnd_below(r, bytes + 1);
	case 2:
		return a->mem + rnd_below(r, ARENA_BYTES - bytes + 1);
	default:
		return a->mem + ARENA_BYTES - bytes;
	}
}

static bool in_arena(const struct arena *a, const void *p, size_t bytes)
{
	const uint8_t *at = p;

	return at >= a->mem && at <= a->mem + ARENA_BYTES && bytes <= (size_t)(a->mem + ARENA_BYTES - at);
}

/* ---- entries ---- */

static void fill_publish(struct know *k, struct arena *a, struct rnd *r, void *entry)
{
	struct dm_dedup_publish e = {
		.cookie = rnd_one_in(r, 2) ? number(k, &k->cookies, r) : 0,
		.volume = number(k, &k->volumes, r),
		.block = number(k, &k->blocks, r),
		.data = (uintptr_t)a->data + rnd_below(r, 1UL << 20),
	};

	/* A block that no volume wants yet. */
	if (!e.cookie && rnd_one_in(r, 6))
		e.volume = 0;
	if (rnd_one_in(r, 20))
		e.data = odd_number(r);
	if (rnd_one_in(r, 20))
		e.data = (uintptr_t)a->data + (2UL << 20) - rnd_below(r, 1UL << 20);
	know_pick_root(k, r, e.root);
	memset(e.fp, rnd64(r), sizeof(e.fp));
	memcpy(entry, &e, sizeof(e));
}

static void fill_map(struct know *k, struct arena *a, struct rnd *r, void *entry)
{
	struct dm_dedup_map e = {
		.cookie = rnd_one_in(r, 2) ? number(k, &k->cookies, r) : 0,
		.volume = number(k, &k->volumes, r),
		.block = number(k, &k->blocks, r),
		.slot = number(k, &k->slots, r),
		.seq = number(k, &k->seqs, r),
		.flags = rnd_one_in(r, 4) ? DM_DEDUP_MAP_ZERO : 0,
	};

	(void)a;
	know_pick_root(k, r, e.root);
	memcpy(entry, &e, sizeof(e));
}

static void fill_fail(struct know *k, struct arena *a, struct rnd *r, void *entry)
{
	struct dm_dedup_fail e = { .cookie = number(k, &k->cookies, r), .error = rnd_below(r, 140) };

	(void)a;
	memcpy(entry, &e, sizeof(e));
}

static void fill_drop(struct know *k, struct arena *a, struct rnd *r, void *entry)
{
	struct dm_dedup_drop e = { .slot = number(k, &k->slots, r), .seq = number(k, &k->seqs, r) };

	(void)a;
	memcpy(entry, &e, sizeof(e));
}

static void fill_replacement(struct know *k, struct arena *a, struct rnd *r, void *entry)
{
	struct dm_dedup_replacement e = {
		.block = number(k, &k->blocks, r), .slot = number(k, &k->slots, r),
		.seq = number(k, &k->seqs, r), .kind = rnd_below(r, 5),
	};

	(void)a;
	memset(e.fp, rnd64(r), sizeof(e.fp));
	memcpy(entry, &e, sizeof(e));
}

/* ---- calls ---- */

static const struct batch_kind {
	unsigned long cmd;
	uint32_t entry_size, max;
	void (*fill)(struct know *k, struct arena *a, struct rnd *r, void *entry);
	unsigned int often;
} batches[] = {
	{ DM_DEDUP_PUBLISH, sizeof(struct dm_dedup_publish), DM_DEDUP_MAX_PUBLISH, fill_publish, 6 },
	{ DM_DEDUP_MAP, sizeof(struct dm_dedup_map), DM_DEDUP_MAX_BATCH, fill_map, 6 },
	{ DM_DEDUP_FAIL, sizeof(struct dm_dedup_fail), DM_DEDUP_MAX_BATCH, fill_fail, 2 },
	{ DM_DEDUP_DROP, sizeof(struct dm_dedup_drop), DM_DEDUP_MAX_BATCH, fill_drop, 3 },
	{ DM_DEDUP_COMMIT, sizeof(struct dm_dedup_replacement), DM_DEDUP_MAX_BATCH,
	  fill_replacement, 6 },
	{ DM_DEDUP_LIST_CUT, sizeof(struct dm_dedup_cut_entry), DM_DEDUP_MAX_BATCH, NULL, 2 },
	{ DM_DEDUP_LIST_CLEAN, sizeof(struct dm_dedup_clean_entry), DM_DEDUP_MAX_BATCH, NULL, 1 },
	{ DM_DEDUP_LIST_VOLUMES, sizeof(struct dm_dedup_volume_info), DM_DEDUP_MAX_BATCH, NULL, 1 },
};

static const struct batch_kind *kind_of(unsigned long cmd)
{
	const struct batch_kind *t = batches;

	while (t->cmd != cmd)
		t++;
	return t;
}

static void damage(struct rnd *r, void *p, size_t bytes)
{
	uint8_t *b = p;
	uint64_t v;

	if (!rnd_one_in(r, 4) || bytes < 8)
		return;
	for (uint64_t n = 1 + rnd_below(r, 3); n; n--) {
		v = odd_number(r);
		switch (rnd_below(r, 3)) {
		case 0:
			b[rnd_below(r, bytes)] ^= 1U << rnd_below(r, 8);
			break;
		case 1:
			memcpy(b + rnd_below(r, bytes / 4) * 4, &v, 4);
			break;
		default:
			memcpy(b + rnd_below(r, bytes / 8) * 8, &v, 8);
		}
	}
}

/* The safe volume is nobody's but its guard's. */
static void spare(struct know *k, void *p, size_t bytes)
{
	uint8_t *b = p;
	uint64_t v;

	for (size_t at = 0; at + 8 <= bytes; at += 8) {
		memcpy(&v, b + at, 8);
		if (v == k->safe)
			b[at] ^= 0x55;
	}
}

static uint64_t epoch(struct know *k, struct rnd *r)
{
	return k->epoch - (rnd_one_in(r, 30) ? 1 : 0);
}

/* True: it was done, and what the kernel wrote is in @arg if that was in the arena. */
static bool call_at(struct know *k, struct arena *a, struct rnd *r, unsigned long cmd, void *arg,
		    size_t bytes)
{
	void *p = pointer(a, r, bytes);

	damage(r, arg, bytes);
	spare(k, arg, bytes);
	if (in_arena(a, p, bytes))
		memcpy(p, arg, bytes);
	if (ioctl(k->fd, cmd, p)) {
		k->counts->refused[_IOC_NR(cmd) % 0x20]++;
		return false;
	}
	k->counts->done[_IOC_NR(cmd) % 0x20]++;
	if (in_arena(a, p, bytes))
		memcpy(arg, p, bytes);
	return true;
}

static void set_volume(struct dm_dedup_batch *b, const struct dm_dedup_volume_info *info)
{
	b->volume = info->volume;
	b->cut = info->closed_cut;
	b->lease_epoch = info->lease_epoch;
}

/* @about: a volume whose cut is closed, or NULL for any. */
static void random_batch(struct know *k, struct arena *a, struct rnd *r, const struct batch_kind *t,
			 const struct dm_dedup_volume_info *about)
{
	struct dm_dedup_batch b = {
		.size = sizeof(b), .entry_size = t->entry_size, .agent_epoch = epoch(k, r),
		.volume = number(k, &k->volumes, r), .cut = number(k, &k->cuts, r),
		.lease_epoch = number(k, &k->epochs, r),
	};
	static __thread uint8_t buf[DM_DEDUP_MAX_BATCH * 256];
	uint32_t n = rnd_one_in(r, 8) ? rnd_below(r, t->max + 2) : rnd_below(r, 6);
	struct dm_dedup_volume_info info;
	unsigned int tries;
	uint8_t *p;

	know_pick_root(k, r, b.root);
	/* What belongs together is together, half of the time; with a cut that is closed, if there is one. */
	for (tries = rnd_below(r, 2) * 6; !about && tries && know_pick_info(k, r, &info);
	     tries = info.closed_cut ? 0 : tries - 1)
		set_volume(&b, &info);
	if (about)
		set_volume(&b, about);
	if (t->cmd == DM_DEDUP_COMMIT && rnd_one_in(r, 2))
		b.flags = DM_DEDUP_COMMIT_MORE;
	b.count = n;
	p = pointer(a, r, (size_t)n * t->entry_size + sizeof(b));
	b.entries = (uintptr_t)p;
	for (uint32_t i = 0; t->fill && i < n && i < t->max; i++) {
		t->fill(k, a, r, buf + (size_t)i * t->entry_size);
		damage(r, buf + (size_t)i * t->entry_size, t->entry_size);
		spare(k, buf + (size_t)i * t->entry_size, t->entry_size);
	}
	if (t->fill && n <= t->max && in_arena(a, p, (size_t)n * t->entry_size))
		memcpy(p, buf, (size_t)n * t->entry_size);
	call_at(k, a, r, t->cmd, &b, sizeof(b));
}

static void random_volume_call(struct know *k, struct arena *a, struct rnd *r)
{
	struct dm_dedup_volume_call c = {
		.size = sizeof(c), .agent_epoch = epoch(k, r),
		.volume = number(k, &k->volumes, r), .lease_epoch = number(k, &k->epochs, r),
		.flags = rnd_below(r, 2),
	};
	bool fence = rnd_one_in(r, 30);
	struct dm_dedup_volume_info info;

	if (know_pick_info(k, r, &info)) {
		c.volume = info.volume;
		c.lease_epoch = info.lease_epoch;
	}
	if (fence)
		c.flags = 0;
	call_at(k, a, r, fence ? DM_DEDUP_FENCE : DM_DEDUP_RELEASE, &c, sizeof(c));
}

/* What it has closed is listed, before others may commit it. */
static void random_cut(struct know *k, struct arena *a, struct rnd *r)
{
	struct dm_dedup_cut c = { .size = sizeof(c), .agent_epoch = epoch(k, r),
				  .volume = number(k, &k->volumes, r) };

	struct dm_dedup_volume_info info = {};

	if (!call_at(k, a, r, DM_DEDUP_CUT, &c, sizeof(c)) || !c.cut)
		return;
	know_cut(k, c.volume, c.cut);
	info.volume = c.volume;
	info.closed_cut = c.cut;
	info.lease_epoch = c.lease_epoch;
	random_batch(k, a, r, kind_of(DM_DEDUP_LIST_CUT), &info);
}

static void random_reply(struct know *k, struct arena *a, struct rnd *r)
{
	struct dm_dedup_reply c = { .size = sizeof(c), .agent_epoch = epoch(k, r),
				    .cookie = number(k, &k->cookies, r) };

	if (!know_pick_info(k, r, &c.info))
		return;
	c.info.flags &= DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL;
	if (rnd_one_in(r, 8))
		c.error = odd_number(r);
	call_at(k, a, r, DM_DEDUP_REPLY, &c, sizeof(c));
}

static void random_hello(struct know *k, struct arena *a, struct rnd *r)
{
	struct dm_dedup_hello c = { .size = sizeof(c), .abi_major = DM_DEDUP_ABI_MAJOR,
				    .features = rnd64(r) };

	call_at(k, a, r, DM_DEDUP_HELLO, &c, sizeof(c));
	know_hello(k);
}

/* No command of ours, or one of ours with another size or direction. */
static void random_number(struct know *k, struct arena *a, struct rnd *r)
{
	unsigned long cmd = rnd_one_in(r, 2) ? rnd64(r) :
			    _IOC(rnd_below(r, 4), DM_DEDUP_IOC, rnd_below(r, 0x20),
				 rnd_below(r, 1024));
	uint8_t junk[1024];

	/* (A well formed call of the safe volume would be nobody's fault but ours.) */
	memset(junk, rnd64(r), sizeof(junk));
	call_at(k, a, r, cmd, junk, sizeof(junk));
}

void random_call(struct know *k, struct arena *a, struct rnd *r)
{
	uint64_t n = rnd_below(r, 40);

	for (size_t i = 0; i < sizeof(batches) / sizeof(batches[0]); i++) {
		if (n < batches[i].often) {
			random_batch(k, a, r, &batches[i], NULL);
			return;
		}
		n -= batches[i].often;
	}
	if (n < 4)
		random_cut(k, a, r);
	else if (n < 8)
		random_reply(k, a, r);
	else if (n < 10)
		random_number(k, a, r);
	else if (n < 11 && rnd_one_in(r, 50))
		random_hello(k, a, r);
	else if (rnd_one_in(r, 6))
		random_volume_call(k, a, r);
}
