// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The agent's core in a simulated world: a cache that evicts, servers that are slow, silent or
 * dead, answers that come late and twice, and agents that end in the middle. Random worlds print
 * their seed; VMDEDUP_SEED=N runs that one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <cmocka.h>

#include "agent/core.h"
#include "base/cleanup.h"

#define SHIFT	   12
#define BLOCK_SIZE (1U << SHIFT)
#define SLOTS	   24
#define MISSES	   64
#define EVENTS	   1024
#define MS	   1000000ULL

enum event_kind { EV_RESOLVE, EV_GET, EV_PUBLISH, EV_MAP, EV_IMAGE, EV_LEASE };

struct event {
	uint64_t at;
	enum event_kind kind;
	uint64_t id;
	unsigned int life; /* of the agent that asked */
	int r;
	struct fp fp;
	struct dm_dedup_publish publish;
	struct dm_dedup_map map;
	struct agent_lease lease;
};

struct miss {
	uint64_t cookie; /* 0: free */
	uint64_t volume, block;
	bool cancelled; /* a COMMIT made it void: answers get ESTALE */
};

struct slot {
	uint64_t seq; /* 0: free */
	struct fp fp;
};

struct world {
	struct agent *agent;
	uint64_t now, seed;
	unsigned int life;
	struct event events[EVENTS];
	size_t nr_events;
	/* the kernel */
	struct slot slots[SLOTS];
	uint64_t next_seq, next_cookie;
	struct miss misses[MISSES];
	unsigned int mapped, zeroed, published, failed_calls;
	/* what must hold */
	unsigned int gets_now, most_gets;
	/* how bad it is, in per cent */
	unsigned int lose, repeat, slow;
	bool meta_dead, data_dead;
	bool no_slots;
	unsigned int wanted_push, urgent_push, fenced, discarded;
	int reply_error;
	unsigned int replies;
	struct dm_dedup_volume_info reply_info;
	int lease_error, image_error;
	bool lease_was_confirm_only, lease_was_readonly;
};

static uint64_t rnd(struct world *w)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return w->seed;
}

static bool chance(struct world *w, unsigned int percent)
{
	return rnd(w) % 100 < percent;
}

/* ---- content: many blocks share a fingerprint, every seventh is zero ---- */

static void fp_of(uint64_t volume, uint64_t block, struct fp *fp)
{
	uint64_t content = (block + volume * 3) % 20;

	memset(fp, 0, sizeof(*fp));
	if (block % 7 == 0)
		return;
	memset(fp->b, (int)(content + 1), FP_SIZE);
}

static uint64_t volume_of_root(const struct fp *root)
{
	return root->b[0];
}

/* ---- the operations ---- */

static struct event *add_event(struct world *w, enum event_kind kind, uint64_t id)
{
	struct event *e;

	assert_true(w->nr_events < EVENTS);
	e = &w->events[w->nr_events++];
	memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->id = id;
	e->life = w->life;
	e->at = w->now + (1 + rnd(w) % 20) * MS;
	if (chance(w, w->slow))
		e->at += rnd(w) % 3000 * MS;
	return e;
}

static uint64_t op_now(void *ctx)
{
	return ((struct world *)ctx)->now;
}

static uint64_t op_random(void *ctx)
{
	return rnd(ctx);
}

static void op_publish(void *ctx, uint64_t id, const struct dm_dedup_publish *p)
{
	add_event(ctx, EV_PUBLISH, id)->publish = *p;
}

static void op_map(void *ctx, uint64_t id, const struct dm_dedup_map *m)
{
	add_event(ctx, EV_MAP, id)->map = *m;
}

static void op_fail(void *ctx, uint64_t cookie, int error)
{
	fail_msg("the core failed a miss: %d", error);
}

static void op_reply(void *ctx, uint64_t cookie, int error,
		     const struct dm_dedup_volume_info *info)
{
	struct world *w = ctx;

	w->replies++;
	w->reply_error = error;
	if (info)
		w->reply_info = *info;
}

static void op_fence(void *ctx, const struct uuid *image, uint64_t epoch)
{
	((struct world *)ctx)->fenced++;
}

static void op_resolve(void *ctx, uint64_t id, const struct fp *root, uint64_t size,
		       uint64_t block)
{
	struct world *w = ctx;
	struct event *e = add_event(w, EV_RESOLVE, id);

	assert_int_equal(size, 1000 * BLOCK_SIZE);
	fp_of(volume_of_root(root), block, &e->fp);
	if (w->meta_dead || chance(w, w->lose))
		e->r = -ETIMEDOUT;
}

static void op_get(void *ctx, uint64_t id, const struct fp *fp)
{
	struct world *w = ctx;
	struct event *e = add_event(w, EV_GET, id);
	size_t i;

	for (i = 0; i + 1 < w->nr_events; i++) /* single flight */
		if (w->events[i].kind == EV_GET && w->events[i].life == w->life &&
		    w->events[i].id && fp_equal(&w->events[i].fp, fp))
			fail_msg("a block was asked for twice at a time");
	e->fp = *fp;
	if (++w->gets_now > w->most_gets)
		w->most_gets = w->gets_now;
	if (w->data_dead || chance(w, w->lose))
		e->r = chance(w, 50) ? -ETIMEDOUT : -EIO;
}

static void op_image(void *ctx, uint64_t id, const char *name)
{
	struct world *w = ctx;

	add_event(w, EV_IMAGE, id)->r = w->meta_dead ? -ETIMEDOUT : w->image_error;
}

static void op_lease(void *ctx, uint64_t id, const struct agent_lease *take)
{
	struct world *w = ctx;
	struct event *e = add_event(w, EV_LEASE, id);

	w->lease_was_confirm_only = take->confirm_only;
	w->lease_was_readonly = take->readonly;
	e->lease = *take;
	e->lease.root.b[0] = 9;
	e->lease.cut = 4;
	e->lease.size = 1000 * BLOCK_SIZE;
	if (!take->readonly && !take->confirm_only)
		e->lease.epoch = 7;
	e->r = w->meta_dead ? -ETIMEDOUT : w->lease_error;
}

static void op_want_push(void *ctx, uint64_t volume, enum agent_push_reason why)
{
	struct world *w = ctx;

	w->wanted_push++;
	w->urgent_push += why == AGENT_PUSH_SPACE;
}

static void op_discard(void *ctx, uint64_t volume, uint64_t epoch)
{
	((struct world *)ctx)->discarded++;
}

static const struct agent_ops ops = {
	.now_ns = op_now,
	.random = op_random,
	.publish = op_publish,
	.map = op_map,
	.fail = op_fail,
	.reply = op_reply,
	.fence = op_fence,
	.resolve = op_resolve,
	.get = op_get,
	.image = op_image,
	.lease = op_lease,
	.want_push = op_want_push,
	.discard = op_discard,
};

/* ---- the kernel's side ---- */

static struct miss *miss_find(struct world *w, uint64_t cookie)
{
	size_t i;

	for (i = 0; i < MISSES; i++)
		if (cookie && w->misses[i].cookie == cookie)
			return &w->misses[i];
	return NULL;
}

static void send_upcall(struct world *w, const struct miss *m, uint16_t flags)
{
	struct dm_dedup_upcall up = {
		.size = sizeof(up),
		.type = DM_DEDUP_UP_FETCH,
		.flags = flags,
		.cookie = m->cookie,
		.block = m->block,
		.info = { .volume = m->volume, .image = { (uint8_t)m->volume } },
	};

	up.info.root[0] = (uint8_t)m->volume;
	agent_upcalls(w->agent, &up, 1);
}

static bool add_miss(struct world *w, uint64_t volume, uint64_t block)
{
	size_t i;

	for (i = 0; i < MISSES; i++) {
		if (w->misses[i].cookie)
			continue;
		w->misses[i] = (struct miss){ .cookie = w->next_cookie++,
					      .volume = volume,
					      .block = block };
		send_upcall(w, &w->misses[i], 0);
		return true;
	}
	return false;
}

static size_t misses_left(const struct world *w)
{
	size_t i, n = 0;

	for (i = 0; i < MISSES; i++)
		n += w->misses[i].cookie != 0;
	return n;
}

static void check_answer(struct miss *m, const struct fp *fp)
{
	struct fp want;

	fp_of(m->volume, m->block, &want);
	if (!fp_equal(&want, fp))
		fail_msg("block %d of volume %d got another block's content", (int)m->block,
			 (int)m->volume);
	m->cookie = 0;
}

static int kernel_publish(struct world *w, struct dm_dedup_publish *p, uint64_t *slot,
			  uint64_t *seq)
{
	const uint8_t *data = (const uint8_t *)(uintptr_t)p->data;
	struct miss *m = miss_find(w, p->cookie);
	size_t i;

	for (i = 0; i < BLOCK_SIZE; i++) /* reads it all, as a copy would: ASan watches */
		if (data[i] != p->fp[0])
			fail_msg("the data is not the fingerprint's");
	if (!m)
		return -ESTALE;
	if (m->cancelled) {
		m->cookie = 0;
		return -ESTALE;
	}
	if (w->no_slots)
		return -ENOSPC;
	i = rnd(w) % SLOTS; /* evicts what is there */
	w->slots[i].seq = w->next_seq++;
	memcpy(w->slots[i].fp.b, p->fp, FP_SIZE);
	check_answer(m, &w->slots[i].fp);
	*slot = i;
	*seq = w->slots[i].seq;
	w->published++;
	return 0;
}

static int kernel_map(struct world *w, const struct dm_dedup_map *map)
{
	static const struct fp zero;
	struct miss *m = miss_find(w, map->cookie);

	if (!m)
		return -ESTALE;
	if (m->cancelled) {
		m->cookie = 0;
		return -ESTALE;
	}
	if (map->flags & DM_DEDUP_MAP_ZERO) {
		check_answer(m, &zero);
		w->zeroed++;
		return 0;
	}
	if (map->slot >= SLOTS || !map->seq || w->slots[map->slot].seq != map->seq)
		return -ESTALE;
	check_answer(m, &w->slots[map->slot].fp);
	w->mapped++;
	return 0;
}

/* ---- the run of events ---- */

static void answer_get(struct world *w, struct event *e, bool again)
{
	void *data = NULL;

	if (!e->r) {
		data = malloc(BLOCK_SIZE);
		memset(data, e->fp.b[0], BLOCK_SIZE);
	}
	if (!again && e->life == w->life)
		w->gets_now--;
	agent_get_done(w->agent, e->id, e->r, false, data, e->r ? 0 : BLOCK_SIZE);
}

static void answer(struct world *w, struct event *e, bool again)
{
	static const struct agent_image image = { .size = 1000 * BLOCK_SIZE,
						  .uuid = { { 5 } } };
	uint64_t slot = 0, seq = 0;
	int r;

	switch (e->kind) {
	case EV_RESOLVE:
		agent_resolve_done(w->agent, e->id, e->r, &e->fp);
		break;
	case EV_GET:
		answer_get(w, e, again);
		break;
	case EV_PUBLISH:
		/* The kernel's call runs once; only its answer may come twice. */
		r = again ? -EIO : kernel_publish(w, &e->publish, &slot, &seq);
		agent_publish_done(w->agent, e->id, r, slot, seq);
		break;
	case EV_MAP:
		agent_map_done(w->agent, e->id, again ? -EIO : kernel_map(w, &e->map));
		break;
	case EV_IMAGE:
		agent_image_done(w->agent, e->id, e->r, e->r ? NULL : &image);
		break;
	case EV_LEASE:
		agent_lease_done(w->agent, e->id, e->r, &e->lease);
		break;
	}
}

/* Runs what is next: an answer or the core's timer. False: nothing will ever happen. */
static bool step(struct world *w)
{
	uint64_t tick = agent_next_ns(w->agent);
	struct event e;
	size_t i, first = 0;

	for (i = 1; i < w->nr_events; i++)
		if (w->events[i].at < w->events[first].at)
			first = i;
	if (!w->nr_events && tick == UINT64_MAX)
		return false;
	if (!w->nr_events || tick < w->events[first].at) {
		w->now = MAX(w->now, tick);
		agent_tick(w->agent);
		return true;
	}
	e = w->events[first];
	w->events[first] = w->events[--w->nr_events];
	w->now = MAX(w->now, e.at);
	answer(w, &e, false);
	if (chance(w, w->repeat))
		answer(w, &e, true);
	return true;
}

static void run_until_idle(struct world *w)
{
	unsigned int n;

	for (n = 0; n < 200000 && (misses_left(w) || w->nr_events); n++)
		if (!step(w))
			break;
	assert_int_equal(misses_left(w), 0);
}

static void run_for(struct world *w, uint64_t ms)
{
	uint64_t end = w->now + ms * MS;
	unsigned int n;

	for (n = 0; n < 200000 && w->now < end; n++)
		if (!step(w))
			return;
}

static void connect_cache(struct world *w)
{
	struct dm_dedup_hello hello = { .nr_slots = SLOTS, .block_shift = SHIFT };
	struct dm_dedup_volume_info volumes[3] = { 0 };
	struct dm_dedup_clean_entry clean;
	size_t i;

	for (i = 0; i < 3; i++) {
		volumes[i].volume = i + 1;
		volumes[i].image[0] = (uint8_t)(i + 1);
		volumes[i].size = 1000 * BLOCK_SIZE;
		snprintf(volumes[i].name, sizeof(volumes[i].name), "vm%zu", i + 1);
	}
	w->life++;
	w->gets_now = 0;
	assert_int_equal(agent_connected(w->agent, &hello, volumes, 3), 0);
	for (i = 0; i < SLOTS; i++) {
		if (!w->slots[i].seq)
			continue;
		clean.slot = i;
		clean.seq = w->slots[i].seq;
		memcpy(clean.fp, w->slots[i].fp.b, FP_SIZE);
		agent_clean_slots(w->agent, &clean, 1);
	}
	for (i = 0; i < MISSES; i++)
		if (w->misses[i].cookie)
			send_upcall(w, &w->misses[i], DM_DEDUP_UP_RESEND);
}

static void new_agent(struct world *w)
{
	struct agent_params params = { .max_get_bytes = 6 * BLOCK_SIZE, .lookup_wait_s = 20 };

	w->agent = agent_new(&ops, w, &params);
	assert_non_null(w->agent);
	connect_cache(w);
}

static struct world *new_world(uint64_t seed)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	w->seed = seed ? seed : 1;
	w->now = 1000 * MS;
	w->next_seq = 1;
	w->next_cookie = 1;
	new_agent(w);
	return w;
}

static void free_world(struct world *w)
{
	agent_free(w->agent);
	free(w);
}

/* ---- tests: misses ---- */

static void test_one_get_for_all_that_wait(void **state)
{
	struct world *w = new_world(1);
	struct agent_stats s;

	/* blocks 1, 21, 41 hold the same content */
	add_miss(w, 1, 1);
	add_miss(w, 1, 41);
	add_miss(w, 1, 61);
	run_until_idle(w);
	agent_stats(w->agent, &s);
	assert_int_equal(w->published, 1);
	assert_int_equal(w->mapped, 2);
	assert_int_equal(s.got_bytes, BLOCK_SIZE);
	assert_int_equal(s.fetches, 3);
	assert_int_equal(s.reads.count[FROM_DATA], 3);
	assert_int_equal(s.waiting, 0);
	assert_int_equal(s.flights, 0);
	free_world(w);
}

static void test_zero_blocks_are_not_got(void **state)
{
	struct world *w = new_world(1);
	struct agent_stats s;

	add_miss(w, 1, 7);
	add_miss(w, 2, 14);
	run_until_idle(w);
	agent_stats(w->agent, &s);
	assert_int_equal(w->zeroed, 2);
	assert_int_equal(s.got_bytes, 0);
	assert_int_equal(s.reads.count[FROM_ZERO], 2);
	free_world(w);
}

static void test_a_block_in_the_cache_is_mapped(void **state)
{
	struct world *w = new_world(1);
	struct agent_stats s;

	add_miss(w, 1, 1);
	run_until_idle(w);
	add_miss(w, 1, 21 + 20); /* same content, later */
	run_until_idle(w);
	agent_stats(w->agent, &s);
	assert_int_equal(w->published, 1);
	assert_int_equal(w->mapped, 1);
	assert_int_equal(s.reads.count[FROM_CACHE], 1);
	free_world(w);
}

static void test_an_evicted_slot_is_fetched_again(void **state)
{
	struct world *w = new_world(1);
	size_t i;

	add_miss(w, 1, 1);
	run_until_idle(w);
	for (i = 0; i < SLOTS; i++)
		w->slots[i].seq = 0;
	add_miss(w, 1, 41);
	run_until_idle(w);
	assert_int_equal(w->published, 2);
	assert_int_equal(w->mapped, 0);
	free_world(w);
}

static void test_clean_slots_of_an_earlier_agent_are_used(void **state)
{
	struct world *w = new_world(1);

	add_miss(w, 1, 1);
	run_until_idle(w);
	agent_free(w->agent);
	new_agent(w);
	add_miss(w, 1, 41);
	run_until_idle(w);
	assert_int_equal(w->published, 1);
	assert_int_equal(w->mapped, 1);
	free_world(w);
}

static void test_dead_servers_fail_nothing(void **state)
{
	struct world *w = new_world(1);
	struct agent_stats s;

	w->meta_dead = true;
	w->data_dead = true;
	add_miss(w, 1, 1);
	add_miss(w, 2, 2);
	run_for(w, 3600 * 1000);
	assert_int_equal(misses_left(w), 2);
	agent_stats(w->agent, &s);
	assert_false(s.meta_ok);
	assert_int_equal(s.waiting, 2);
	assert_string_not_equal(s.trouble, "");
	/* bounded: at most every two and a half seconds once it has been tried for a while */
	assert_in_range(s.retries, 100, 3000);
	w->meta_dead = false;
	run_for(w, 60 * 1000);
	assert_int_equal(misses_left(w), 2);
	agent_stats(w->agent, &s);
	assert_true(s.meta_ok);
	assert_false(s.data_ok);
	w->data_dead = false;
	run_until_idle(w);
	agent_stats(w->agent, &s);
	assert_true(s.data_ok);
	assert_string_equal(s.trouble, "");
	free_world(w);
}

static void test_a_miss_that_no_longer_waits(void **state)
{
	struct world *w = new_world(1);
	struct agent_stats s;
	size_t i;

	add_miss(w, 1, 1);
	add_miss(w, 1, 7);
	for (i = 0; i < MISSES; i++)
		w->misses[i].cancelled = w->misses[i].cookie;
	run_until_idle(w);
	agent_stats(w->agent, &s);
	assert_int_equal(s.stale, 2);
	assert_int_equal(s.fetches, 0);
	assert_int_equal(s.flights, 0);
	free_world(w);
}

static void test_no_slot_waits_and_asks_for_a_push(void **state)
{
	struct world *w = new_world(1);

	w->no_slots = true;
	add_miss(w, 1, 1);
	run_for(w, 10000);
	assert_int_equal(misses_left(w), 1);
	assert_true(w->urgent_push > 0);
	w->no_slots = false;
	run_until_idle(w);
	assert_int_equal(w->published, 1);
	free_world(w);
}

static void test_upcalls_sent_again_are_one(void **state)
{
	struct world *w = new_world(1);
	struct agent_stats s;
	int i;

	add_miss(w, 1, 1);
	for (i = 0; i < 5; i++)
		send_upcall(w, &w->misses[0], DM_DEDUP_UP_RESEND);
	agent_stats(w->agent, &s);
	assert_int_equal(s.waiting, 1);
	run_until_idle(w);
	assert_int_equal(w->published, 1);
	free_world(w);
}

static void test_memory_is_bounded(void **state)
{
	struct world *w = new_world(3);
	uint64_t block;

	for (block = 1; block < 60; block++)
		add_miss(w, 1 + block % 3, block);
	run_until_idle(w);
	assert_in_range(w->most_gets, 2, 6);
	free_world(w);
}

/* ---- random worlds ---- */

static void random_world(uint64_t seed)
{
	struct world *w = new_world(seed);
	struct agent_stats s;
	unsigned int i, n;

	w->lose = (unsigned int)(rnd(w) % 40);
	w->repeat = (unsigned int)(rnd(w) % 30);
	w->slow = (unsigned int)(rnd(w) % 30);
	for (i = 0; i < 400; i++) {
		add_miss(w, 1 + rnd(w) % 3, rnd(w) % 200);
		for (n = (unsigned int)(rnd(w) % 4); n; n--)
			step(w);
		if (chance(w, 3))
			w->misses[rnd(w) % MISSES].cancelled = true;
		if (chance(w, 2))
			w->slots[rnd(w) % SLOTS].seq = 0;
		if (chance(w, 1))
			w->meta_dead = !w->meta_dead;
		if (chance(w, 1))
			w->data_dead = !w->data_dead;
		if (chance(w, 1))
			w->no_slots = !w->no_slots;
		if (chance(w, 1)) { /* the channel breaks; late answers still come */
			agent_disconnected(w->agent);
			connect_cache(w);
		}
	}
	w->meta_dead = w->data_dead = w->no_slots = false;
	run_until_idle(w);
	for (n = 0; n < 100000 && step(w); n++) /* what nobody waits for any more ends too */
		;
	agent_stats(w->agent, &s);
	assert_int_equal(s.waiting, 0);
	assert_int_equal(s.flights, 0);
	assert_in_range(w->most_gets, 0, 6);
	free_world(w);
}

static void test_random_worlds(void **state)
{
	const char *given = getenv("VMDEDUP_SEED");
	uint64_t seed;

	if (given) {
		random_world(strtoull(given, NULL, 0));
		return;
	}
	for (seed = 1; seed <= 300; seed++) {
		fprintf(stderr, "# VMDEDUP_SEED=%llu\n",
			(unsigned long long)(seed * 0x9e3779b97f4a7c15ULL));
		random_world(seed * 0x9e3779b97f4a7c15ULL);
	}
}

/* ---- tests: LOOKUP and OPEN ---- */

static void upcall(struct world *w, uint16_t type, uint32_t flags, uint64_t epoch)
{
	struct dm_dedup_upcall up = {
		.size = sizeof(up),
		.type = type,
		.cookie = w->next_cookie++,
		.info = { .volume = 10, .image = { 5 }, .flags = flags, .lease_epoch = epoch,
			  .committed_cut = 3, .size = 1000 * BLOCK_SIZE, .name = "web-01" },
	};

	up.info.root[0] = 8;
	if (type == DM_DEDUP_UP_LOOKUP)
		memset(&up.info, 0, offsetof(struct dm_dedup_volume_info, name));
	agent_upcalls(w->agent, &up, 1);
}

static void finish_replies(struct world *w)
{
	unsigned int n;

	for (n = 0; n < 10000 && !w->replies && step(w); n++)
		;
	assert_int_equal(w->replies, 1);
	w->replies = 0;
}

static void test_lookup(void **state)
{
	struct world *w = new_world(1);

	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, 0);
	assert_int_equal(w->reply_info.size, 1000 * BLOCK_SIZE);
	assert_int_equal(w->reply_info.image[0], 5);
	w->image_error = -ENOENT;
	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_error, ENOENT);
	free_world(w);
}

struct open_case {
	const char *what;
	uint32_t flags;
	uint64_t epoch;
	bool meta_dead;
	int lease_error;
	int error;
	uint64_t reply_epoch, reply_cut;
	uint8_t reply_root;
	bool confirm_only, readonly;
	unsigned int fenced;
};

static const struct open_case open_cases[] = {
	{ "fresh: a lease is taken", 0, 0, false, 0, 0, 7, 4, 9, false, false, 0 },
	{ "read-only: no lease", DM_DEDUP_VOL_READONLY, 0, false, 0, 0, 0, 4, 9, false, true, 0 },
	{ "ephemeral: no lease", DM_DEDUP_VOL_EPHEMERAL, 0, false, 0, 0, 0, 4, 9, false, true, 0 },
	{ "dirty: only confirmed", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED, 6, false, 0, 0, 6, 4,
	  9, true, false, 0 },
	{ "dirty, lease broken: fenced", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED, 6, false,
	  -ESTALE, ESTALE, 0, 0, 0, true, false, 1 },
	{ "clean, lease broken: refused", DM_DEDUP_VOL_GRANTED, 6, false, -ESTALE, ESTALE, 0, 0, 0,
	  false, false, 0 },
	{ "in use elsewhere", 0, 0, false, -EBUSY, EBUSY, 0, 0, 0, false, false, 0 },
	{ "offline with a grant: from the record", DM_DEDUP_VOL_GRANTED, 6, true, 0, 0, 6, 3, 8,
	  false, false, 0 },
	{ "offline, dirty, with a grant", DM_DEDUP_VOL_GRANTED | DM_DEDUP_VOL_DIRTY, 6, true, 0, 0,
	  6, 3, 8, true, false, 0 },
	{ "dirty, read-only: its lease is confirmed", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED |
	  DM_DEDUP_VOL_READONLY, 6, false, 0, 0, 6, 4, 9, true, false, 0 },
	{ "dirty, now ephemeral: refused", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED |
	  DM_DEDUP_VOL_EPHEMERAL, 6, false, 0, EBUSY, 0, 0, 0, false, false, 0 },
	{ "dirty and ephemeral: on its own root", DM_DEDUP_VOL_DIRTY | DM_DEDUP_VOL_GRANTED |
	  DM_DEDUP_VOL_EPHEMERAL, 0, false, 0, 0, 0, 3, 8, false, true, 0 },
	{ "offline, read-only: from the record", DM_DEDUP_VOL_READONLY, 0, true, 0, 0, 0, 3, 8,
	  false, true, 0 },
	{ "offline without a grant: times out", 0, 0, true, 0, ETIMEDOUT, 0, 0, 0, false, false,
	  0 },
};

static void test_open(void **state)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(open_cases); i++) {
		const struct open_case *c = &open_cases[i];
		struct world *w = new_world(1);

		print_message("# %s\n", c->what);
		w->meta_dead = c->meta_dead;
		w->lease_error = c->lease_error;
		upcall(w, DM_DEDUP_UP_OPEN, c->flags, c->epoch);
		finish_replies(w);
		assert_int_equal(w->reply_error, c->error);
		assert_int_equal(w->lease_was_confirm_only, c->confirm_only);
		assert_int_equal(w->lease_was_readonly, c->readonly);
		assert_int_equal(w->fenced, c->fenced);
		if (!c->error) {
			assert_int_equal(w->reply_info.lease_epoch, c->reply_epoch);
			assert_int_equal(w->reply_info.committed_cut, c->reply_cut);
			assert_int_equal(w->reply_info.root[0], c->reply_root);
		}
		free_world(w);
	}
}

static void test_a_grant_from_the_record_is_confirmed_later(void **state)
{
	struct world *w = new_world(1);

	w->meta_dead = true;
	upcall(w, DM_DEDUP_UP_OPEN, DM_DEDUP_VOL_GRANTED, 6);
	finish_replies(w);
	run_for(w, 60000);
	assert_int_equal(w->fenced, 0);
	w->meta_dead = false;
	w->lease_error = -ESTALE; /* it was broken meanwhile */
	run_for(w, 60000);
	assert_int_equal(w->fenced, 1);
	assert_true(w->lease_was_confirm_only);
	run_for(w, 60000);
	assert_int_equal(w->fenced, 1);
	free_world(w);
}

static void test_prepared_flags(void **state)
{
	struct world *w = new_world(1);

	assert_int_equal(agent_prepare(w->agent, "web-01", DM_DEDUP_VOL_READONLY), 0);
	upcall(w, DM_DEDUP_UP_LOOKUP, 0, 0);
	finish_replies(w);
	assert_int_equal(w->reply_info.flags, DM_DEDUP_VOL_READONLY);
	upcall(w, DM_DEDUP_UP_OPEN, 0, 0);
	finish_replies(w);
	assert_true(w->lease_was_readonly);
	assert_int_equal(w->reply_info.flags, DM_DEDUP_VOL_READONLY);
	upcall(w, DM_DEDUP_UP_OPEN, 0, 0); /* they held for one OPEN */
	finish_replies(w);
	assert_false(w->lease_was_readonly);
	free_world(w);
}

static void test_close(void **state)
{
	struct world *w = new_world(1);

	upcall(w, DM_DEDUP_UP_CLOSE, 0, 6);
	assert_int_equal(w->wanted_push, 0);
	upcall(w, DM_DEDUP_UP_CLOSE, DM_DEDUP_VOL_DIRTY, 6);
	assert_int_equal(w->wanted_push, 1);
	upcall(w, DM_DEDUP_UP_CLOSE, DM_DEDUP_VOL_EPHEMERAL | DM_DEDUP_VOL_DIRTY, 0);
	assert_int_equal(w->wanted_push, 1);
	assert_int_equal(w->discarded, 1);
	upcall(w, DM_DEDUP_UP_SPACE, 0, 0);
	assert_int_equal(w->urgent_push, 1);
	free_world(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_get_for_all_that_wait),
		cmocka_unit_test(test_zero_blocks_are_not_got),
		cmocka_unit_test(test_a_block_in_the_cache_is_mapped),
		cmocka_unit_test(test_an_evicted_slot_is_fetched_again),
		cmocka_unit_test(test_clean_slots_of_an_earlier_agent_are_used),
		cmocka_unit_test(test_dead_servers_fail_nothing),
		cmocka_unit_test(test_a_miss_that_no_longer_waits),
		cmocka_unit_test(test_no_slot_waits_and_asks_for_a_push),
		cmocka_unit_test(test_upcalls_sent_again_are_one),
		cmocka_unit_test(test_memory_is_bounded),
		cmocka_unit_test(test_random_worlds),
		cmocka_unit_test(test_lookup),
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_a_grant_from_the_record_is_confirmed_later),
		cmocka_unit_test(test_prepared_flags),
		cmocka_unit_test(test_close),
	};

	return cmocka_run_group_tests_name("agent_core", tests, NULL, NULL);
}
