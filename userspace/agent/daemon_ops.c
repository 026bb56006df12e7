// SPDX-License-Identifier: GPL-2.0-or-later
/* The core's operations: calls of the channel on a pool's threads, the rest by the network. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "agent/daemon.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

enum cache_call_kind { CALL_PUBLISH, CALL_MAP, CALL_FAIL, CALL_REPLY, CALL_FENCE };

struct cache_call {
	struct work work;
	struct daemon *daemon;
	enum cache_call_kind kind;
	uint64_t id;
	int r;
	union {
		struct dm_dedup_publish publish;
		struct dm_dedup_map map;
		struct dm_dedup_fail fail;
		struct dm_dedup_reply reply;
		struct {
			struct uuid image;
			uint64_t epoch;
		} fence;
	};
};

/* The kernel names a volume by an id that is new with every grant: the record tells it. */
static int fence_image(struct cache *c, const struct uuid *image, uint64_t epoch)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	size_t i, count;
	int r;

	r = cache_volumes(c, &infos, &count);
	for (i = 0; !r && i < count; i++)
		if (!memcmp(infos[i].image, image->b, sizeof(image->b)) &&
		    infos[i].lease_epoch == epoch)
			return c->ops->fence(c, infos[i].volume, epoch);
	return r ? r : -ENOENT;
}

static void run_call(struct work *w)
{
	struct cache_call *call = (struct cache_call *)w;
	struct cache *c = call->daemon->cache;

	switch (call->kind) {
	case CALL_PUBLISH:
		call->r = c->ops->publish(c, &call->publish, 1);
		break;
	case CALL_MAP:
		call->r = c->ops->map(c, &call->map, 1);
		break;
	case CALL_FAIL:
		call->r = c->ops->fail(c, &call->fail, 1);
		break;
	case CALL_REPLY:
		call->r = c->ops->reply(c, &call->reply);
		break;
	case CALL_FENCE:
		call->r = fence_image(c, &call->fence.image, call->fence.epoch);
		break;
	}
}

/* What the call as a whole answers is not an entry's word: the entry is tried again. */
static int entry_result(const struct cache_call *call, int result)
{
	if (!call->r)
		return result;
	return call->r == -ESTALE || call->r == -ENOENT || call->r == -EEXIST ? -ENODEV : call->r;
}

static void call_done(struct work *w)
{
	struct cache_call *call = (struct cache_call *)w;
	struct agent *a = call->daemon->agent;

	switch (call->kind) {
	case CALL_PUBLISH:
		agent_publish_done(a, call->id, entry_result(call, call->publish.result),
				   call->publish.slot, call->publish.seq);
		break;
	case CALL_MAP:
		agent_map_done(a, call->id, entry_result(call, call->map.result));
		break;
	case CALL_FENCE:
		if (call->r)
			log_error("cannot fence a volume whose lease is lost: %s",
				  strerror(-call->r));
		break;
	case CALL_REPLY:
		if (call->r)
			agent_reply_refused(a, call->reply.cookie);
		/* fall through */
	case CALL_FAIL:
		if (call->r && call->r != -ESTALE && call->r != -ENODEV)
			log_warn("the cache refused an answer: %s", strerror(-call->r));
		break;
	}
	free(call);
}

static struct cache_call *call_new(struct daemon *d, enum cache_call_kind kind, uint64_t id)
{
	struct cache_call *call;

	if (!d->calls)
		return NULL;
	call = calloc(1, sizeof(*call));
	if (!call) { /* the request stays with the kernel, which hands it to the next agent */
		log_error("out of memory for a call of the channel");
		return NULL;
	}
	call->work.run = run_call;
	call->work.done = call_done;
	call->daemon = d;
	call->kind = kind;
	call->id = id;
	return call;
}

static uint64_t op_now_ns(void *ctx)
{
	return clock_mono_ns();
}

static uint64_t op_random(void *ctx)
{
	uint64_t n;

	if (getrandom(&n, sizeof(n), 0) != sizeof(n))
		n = clock_mono_ns();
	return n;
}

static void op_publish(void *ctx, uint64_t id, const struct dm_dedup_publish *p)
{
	struct daemon *d = ctx;
	struct cache_call *call = call_new(d, CALL_PUBLISH, id);

	if (!call)
		return;
	call->publish = *p;
	pool_submit(d->calls, &call->work);
}

static void op_map(void *ctx, uint64_t id, const struct dm_dedup_map *m)
{
	struct daemon *d = ctx;
	struct cache_call *call = call_new(d, CALL_MAP, id);

	if (!call)
		return;
	call->map = *m;
	pool_submit(d->calls, &call->work);
}

static void op_fail(void *ctx, uint64_t cookie, int error)
{
	struct daemon *d = ctx;
	struct cache_call *call = call_new(d, CALL_FAIL, 0);

	if (!call)
		return;
	call->fail.cookie = cookie;
	call->fail.error = error;
	pool_submit(d->calls, &call->work);
}

static void op_reply(void *ctx, uint64_t cookie, int error,
		     const struct dm_dedup_volume_info *info)
{
	struct daemon *d = ctx;
	struct cache_call *call = call_new(d, CALL_REPLY, 0);

	if (!call)
		return;
	call->reply.cookie = cookie;
	call->reply.error = error;
	if (info)
		call->reply.info = *info;
	pool_submit(d->calls, &call->work);
}

static void op_fence(void *ctx, const struct uuid *image, uint64_t epoch)
{
	struct daemon *d = ctx;
	struct cache_call *call = call_new(d, CALL_FENCE, 0);

	if (!call)
		return;
	call->fence.image = *image;
	call->fence.epoch = epoch;
	pool_submit(d->calls, &call->work);
}

static void op_resolve(void *ctx, uint64_t id, const struct fp *root, uint64_t size,
		       uint64_t block)
{
	struct daemon *d = ctx;

	network_resolve(d->network, id, root, size, block);
}

static void op_get(void *ctx, uint64_t id, const struct fp *fp)
{
	struct daemon *d = ctx;

	network_get(d->network, id, fp);
}

static void op_image(void *ctx, uint64_t id, const char *name)
{
	struct daemon *d = ctx;

	network_image(d->network, id, name);
}

static void op_lease(void *ctx, uint64_t id, const struct agent_lease *take)
{
	struct daemon *d = ctx;
	struct uuid cache;

	memcpy(cache.b, d->hello.cache, sizeof(cache.b));
	network_lease(d->network, id, &cache, d->host, take);
}

static void op_have(void *ctx, const struct fp *fp)
{
	daemon_have(ctx, fp);
}

static void op_settled(void *ctx, const struct fp *fp)
{
	struct daemon *d = ctx;

	if (d->peer_server)
		peer_server_settled(d->peer_server, fp);
}

static void op_trace_get(void *ctx, uint64_t id, const struct fp *root, const struct uuid *image)
{
	struct daemon *d = ctx;
	struct uuid cache;

	memcpy(cache.b, d->hello.cache, sizeof(cache.b));
	network_trace_get(d->network, id, root, image, &cache);
	daemon_announce(d); /* those who have it open as well are the best peers */
}

static void op_trace_put(void *ctx, const struct fp *root, const struct uuid *image,
			 const void *blocks, size_t len)
{
	struct daemon *d = ctx;

	network_trace_put(d->network, root, image, blocks, len);
}

static void op_want_push(void *ctx, uint64_t volume, enum agent_push_reason why)
{
	struct daemon *d = ctx;

	pusher_want(d->pusher, volume, why);
}

struct discard {
	struct pusher_task task;
	struct daemon *daemon;
};

static void discard_done(struct work *w)
{
	struct discard *discard = (struct discard *)w;
	struct pusher_task *task = &discard->task;

	if (task->err.code && task->err.code != -ENOENT)
		log_warn("ephemeral volume %llu: %s", (unsigned long long)task->volume,
			 task->err.text);
	else
		agent_forget_volume(discard->daemon->agent, &task->image);
	free(discard);
}

static void op_discard(void *ctx, uint64_t volume, uint64_t epoch)
{
	struct discard *discard = calloc(1, sizeof(*discard));
	struct daemon *d = ctx;

	if (!discard)
		return;
	discard->daemon = d;
	discard->task.work.done = discard_done;
	discard->task.kind = TASK_DISCARD;
	discard->task.volume = volume;
	pusher_submit(d->pusher, &discard->task);
}

const struct agent_ops daemon_agent_ops = {
	.now_ns = op_now_ns,
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
	.have = op_have,
	.settled = op_settled,
	.trace_get = op_trace_get,
	.trace_put = op_trace_put,
	.want_push = op_want_push,
	.discard = op_discard,
};
