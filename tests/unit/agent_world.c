// SPDX-License-Identifier: GPL-2.0-or-later
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <cmocka.h>

#include "agent_world.h"

#define MS 1000000ULL

uint64_t agent_world_random(struct agent_world *w)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 7;
	w->seed ^= w->seed << 17;
	return w->seed;
}

bool agent_world_chance(struct agent_world *w, unsigned int percent)
{
	return agent_world_random(w) % 100 < percent;
}

/* ---- content: many blocks share a fingerprint, every seventh is zero ---- */

void agent_world_fp(uint64_t volume, uint64_t block, struct fp *fp)
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

static struct agent_world_event *add_event(struct agent_world *w, enum agent_world_event_kind kind, uint64_t id)
{
	struct agent_world_event *e;

	assert_true(w->nr_events < AGENT_WORLD_EVENTS);
	e = &w->events[w->nr_events++];
	memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->id = id;
	e->life = w->life;
	e->at = w->now + (1 + agent_world_random(w) % 20) * MS;
	if (agent_world_chance(w, w->slow))
		e->at += agent_world_random(w) % 3000 * MS;
	return e;
}

static uint64_t op_now(void *ctx)
{
	return ((struct agent_world *)ctx)->now;
}

static uint64_t op_random(void *ctx)
{
	return agent_world_random(ctx);
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
	struct agent_world *w = ctx;

	w->replies++;
	w->reply_error = error;
	if (info)
		w->reply_info = *info;
}

static void op_fence(void *ctx, const struct uuid *image, uint64_t epoch)
{
	((struct agent_world *)ctx)->fenced++;
}

static void op_resolve(void *ctx, uint64_t id, const struct fp *root, uint64_t size,
		       uint64_t block)
{
	struct agent_world *w = ctx;
	struct agent_world_event *e = add_event(w, EV_RESOLVE, id);

	assert_int_equal(size, 1000 * AGENT_WORLD_BLOCK);
	agent_world_fp(volume_of_root(root), block, &e->fp);
	if (w->meta_dead || agent_world_chance(w, w->lose))
		e->r = -ETIMEDOUT;
}

static void op_get(void *ctx, uint64_t id, const struct fp *fp)
{
	struct agent_world *w = ctx;
	struct agent_world_event *e = add_event(w, EV_GET, id);
	size_t i;

	for (i = 0; i + 1 < w->nr_events; i++) /* single flight */
		if (w->events[i].kind == EV_GET && w->events[i].life == w->life &&
		    w->events[i].id && fp_equal(&w->events[i].fp, fp))
			fail_msg("a block was asked for twice at a time");
	e->fp = *fp;
	if (++w->gets_now > w->most_gets)
		w->most_gets = w->gets_now;
	if (w->data_dead || agent_world_chance(w, w->lose))
		e->r = agent_world_chance(w, 50) ? -ETIMEDOUT : -EIO;
}

static void op_image(void *ctx, uint64_t id, const char *name)
{
	struct agent_world *w = ctx;

	add_event(w, EV_IMAGE, id)->r = w->meta_dead ? -ETIMEDOUT : w->image_error;
}

static void op_lease(void *ctx, uint64_t id, const struct agent_lease *take)
{
	struct agent_world *w = ctx;
	struct agent_world_event *e;

	if (w->hold_confirm && take->confirm_only) {
		w->held_confirm = id;
		return;
	}
	e = add_event(w, EV_LEASE, id);
	w->lease_was_confirm_only = take->confirm_only;
	w->lease_was_readonly = take->readonly;
	e->lease = *take;
	e->lease.root.b[0] = 9;
	e->lease.cut = 4;
	e->lease.size = 1000 * AGENT_WORLD_BLOCK;
	if (!take->readonly && !take->confirm_only)
		e->lease.epoch = 7;
	e->r = w->meta_dead ? -ETIMEDOUT : w->lease_error;
}

static void op_want_push(void *ctx, uint64_t volume, enum agent_push_reason why)
{
	struct agent_world *w = ctx;

	w->wanted_push++;
	w->urgent_push += why == AGENT_PUSH_SPACE;
}

static void op_discard(void *ctx, uint64_t volume, uint64_t epoch)
{
	((struct agent_world *)ctx)->discarded++;
}

static bool is_on_way(struct agent_world *w, const struct fp *fp)
{
	const void *data;
	size_t len;

	return agent_is_getting(w->agent, fp, &data, &len) && !data;
}

static void op_settled(void *ctx, const struct fp *fp)
{
	struct agent_world *w = ctx;
	size_t i;

	assert_false(is_on_way(w, fp));
	for (i = 0; i < w->nr_parked;) {
		if (!fp_equal(&w->parked[i], fp)) {
			i++;
			continue;
		}
		w->parked[i] = w->parked[--w->nr_parked];
		w->nr_settled++;
	}
}

void agent_world_park(struct agent_world *w, const struct fp *fp)
{
	size_t i;

	if (is_on_way(w, fp) && w->nr_parked < AGENT_WORLD_MISSES)
		w->parked[w->nr_parked++] = *fp;
	for (i = 0; i < w->nr_parked; i++)
		assert_true(is_on_way(w, &w->parked[i]));
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
	.settled = op_settled,
	.image = op_image,
	.lease = op_lease,
	.want_push = op_want_push,
	.discard = op_discard,
};

/* ---- the kernel's side ---- */

static struct agent_world_miss *miss_find(struct agent_world *w, uint64_t cookie)
{
	size_t i;

	for (i = 0; i < AGENT_WORLD_MISSES; i++)
		if (cookie && w->misses[i].cookie == cookie)
			return &w->misses[i];
	return NULL;
}

void agent_world_send(struct agent_world *w, const struct agent_world_miss *m, uint16_t flags)
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

bool agent_world_miss(struct agent_world *w, uint64_t volume, uint64_t block)
{
	size_t i;

	for (i = 0; i < AGENT_WORLD_MISSES; i++) {
		if (w->misses[i].cookie)
			continue;
		w->misses[i] = (struct agent_world_miss){ .cookie = w->next_cookie++,
					      .volume = volume,
					      .block = block };
		agent_world_send(w, &w->misses[i], 0);
		return true;
	}
	return false;
}

size_t agent_world_misses(const struct agent_world *w)
{
	size_t i, n = 0;

	for (i = 0; i < AGENT_WORLD_MISSES; i++)
		n += w->misses[i].cookie != 0;
	return n;
}

static void check_answer(struct agent_world_miss *m, const struct fp *fp)
{
	struct fp want;

	agent_world_fp(m->volume, m->block, &want);
	if (!fp_equal(&want, fp))
		fail_msg("block %d of volume %d got another block's content", (int)m->block,
			 (int)m->volume);
	m->cookie = 0;
}

static int kernel_publish(struct agent_world *w, struct dm_dedup_publish *p, uint64_t *slot,
			  uint64_t *seq)
{
	const uint8_t *data = (const uint8_t *)(uintptr_t)p->data;
	struct agent_world_miss *m = miss_find(w, p->cookie);
	size_t i;

	for (i = 0; i < AGENT_WORLD_BLOCK; i++) /* reads it all, as a copy would: ASan watches */
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
	i = agent_world_random(w) % AGENT_WORLD_SLOTS; /* evicts what is there */
	w->slots[i].seq = w->next_seq++;
	memcpy(w->slots[i].fp.b, p->fp, FP_SIZE);
	check_answer(m, &w->slots[i].fp);
	*slot = i;
	*seq = w->slots[i].seq;
	w->published++;
	return 0;
}

static int kernel_map(struct agent_world *w, const struct dm_dedup_map *map)
{
	static const struct fp zero;
	struct agent_world_miss *m = miss_find(w, map->cookie);

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
	if (map->slot >= AGENT_WORLD_SLOTS || !map->seq || w->slots[map->slot].seq != map->seq)
		return -ESTALE;
	check_answer(m, &w->slots[map->slot].fp);
	w->mapped++;
	return 0;
}

/* ---- the run of events ---- */

static void answer_get(struct agent_world *w, struct agent_world_event *e, bool again)
{
	uint8_t data[AGENT_WORLD_BLOCK];

	memset(data, e->fp.b[0], sizeof(data));
	if (!again && e->life == w->life)
		w->gets_now--;
	agent_get_done(w->agent, e->id, e->r, false, e->r ? NULL : bytes_copy(data, sizeof(data)));
}

static void answer(struct agent_world *w, struct agent_world_event *e, bool again)
{
	static const struct agent_image image = { .size = 1000 * AGENT_WORLD_BLOCK,
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

bool agent_world_step(struct agent_world *w)
{
	uint64_t tick = agent_next_ns(w->agent);
	struct agent_world_event e;
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
	if (agent_world_chance(w, w->repeat))
		answer(w, &e, true);
	return true;
}

void agent_world_finish(struct agent_world *w)
{
	unsigned int n;

	for (n = 0; n < 200000 && (agent_world_misses(w) || w->nr_events); n++)
		if (!agent_world_step(w))
			break;
	assert_int_equal(agent_world_misses(w), 0);
}

void agent_world_run(struct agent_world *w, uint64_t ms)
{
	uint64_t end = w->now + ms * MS;
	unsigned int n;

	for (n = 0; n < 200000 && w->now < end; n++)
		if (!agent_world_step(w))
			return;
}

void agent_world_connect(struct agent_world *w)
{
	struct dm_dedup_hello hello = { .nr_slots = AGENT_WORLD_SLOTS, .block_shift = AGENT_WORLD_SHIFT };
	struct dm_dedup_volume_info volumes[3] = { 0 };
	struct dm_dedup_clean_entry clean;
	size_t i;

	for (i = 0; i < 3; i++) {
		volumes[i].volume = i + 1;
		volumes[i].image[0] = (uint8_t)(i + 1);
		volumes[i].size = 1000 * AGENT_WORLD_BLOCK;
		snprintf(volumes[i].name, sizeof(volumes[i].name), "vm%zu", i + 1);
	}
	w->life++;
	w->gets_now = 0;
	assert_int_equal(agent_connected(w->agent, &hello, volumes, 3), 0);
	for (i = 0; i < AGENT_WORLD_SLOTS; i++) {
		if (!w->slots[i].seq)
			continue;
		clean.slot = i;
		clean.seq = w->slots[i].seq;
		memcpy(clean.fp, w->slots[i].fp.b, FP_SIZE);
		agent_clean_slots(w->agent, &clean, 1);
	}
	for (i = 0; i < AGENT_WORLD_MISSES; i++)
		if (w->misses[i].cookie)
			agent_world_send(w, &w->misses[i], DM_DEDUP_UP_RESEND);
}

void agent_world_new_agent(struct agent_world *w)
{
	struct agent_params params = { .max_get_bytes = 6 * AGENT_WORLD_BLOCK, .lookup_wait_s = 20 };

	w->agent = agent_new(&ops, w, &params);
	assert_non_null(w->agent);
	agent_world_connect(w);
}

struct agent_world *agent_world_new(uint64_t seed)
{
	struct agent_world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	w->seed = seed ? seed : 1;
	w->now = 1000 * MS;
	w->next_seq = 1;
	w->next_cookie = 1;
	agent_world_new_agent(w);
	return w;
}

void agent_world_free(struct agent_world *w)
{
	agent_free(w->agent);
	free(w);
}
