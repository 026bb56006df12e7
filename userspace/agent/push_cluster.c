// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "agent/push_cluster.h"
#include "base/clock.h"
#include "agent/pusher.h"

#define GET_TIMEOUT_MS 30000
#define PATIENCE_MS    3000 /* what takes longer is told */

static ProtobufCBinaryData bytes(const void *data, size_t len)
{
	return (ProtobufCBinaryData){ .len = len, .data = (uint8_t *)data };
}

static void wait_begins(struct push_cluster *s, const char *what)
{
	__atomic_store_n(&s->since_ns, clock_mono_ns(), __ATOMIC_RELAXED);
	__atomic_store_n(&s->waits_for, what, __ATOMIC_RELEASE); /* pairs with the load below */
}

static int wait_ends(struct push_cluster *s, int r)
{
	__atomic_store_n(&s->waits_for, NULL, __ATOMIC_RELEASE);
	return r;
}

void push_cluster_trouble(const struct push_cluster *s, char *text, size_t size)
{
	const char *what = __atomic_load_n(&s->waits_for, __ATOMIC_ACQUIRE);
	uint64_t since = __atomic_load_n(&s->since_ns, __ATOMIC_RELAXED), now = clock_mono_ns();

	text[0] = 0;
	if (what && now > since + PATIENCE_MS * 1000000ULL)
		snprintf(text, size, "%s not answered for %llu s", what,
			 (unsigned long long)(now - since) / 1000000000);
}

static int begin(void *ctx, const struct push_name *name, bool *done, struct fp *root,
		 uint64_t *size, struct error *err)
{
	Vmdedup__PushBegin msg = VMDEDUP__PUSH_BEGIN__INIT;
	struct push_cluster *s = ctx;
	struct error own = { 0 };

	if (name->new_image) {
		msg.name = (char *)name->new_image;
		msg.size = name->size;
		msg.domain = cluster_params(s->cluster)->domain;
	} else {
		msg.image = bytes(name->image, sizeof(name->image));
		msg.lease_epoch = name->lease_epoch;
		if (!uuid_is_null(&s->cache))
			msg.cache = bytes(s->cache.b, sizeof(s->cache.b));
		msg.cut = name->cut;
		msg.parent_root = bytes(name->parent.b, sizeof(name->parent.b));
	}
	msg.make_version = name->make_version;
	if (name->label)
		msg.label = (char *)name->label;
	wait_begins(s, "the meta server has");
	s->push = cluster_push_begin(s->cluster, &msg, root, &own);
	wait_ends(s, 0);
	*done = !s->push && own.code == -EALREADY;
	if (!s->push && !*done) {
		if (err)
			*err = own;
		return own.code ? own.code : -EIO;
	}
	if (s->push && !name->new_image && cluster_push_size(s->push))
		*size = cluster_push_size(s->push);
	s->source.below = s->push ? &cluster_push_recipe_ops : &cluster_recipe_ops;
	s->source.below_ctx = s->push ? (void *)s->push : (void *)s->cluster;
	return 0;
}

static int block(void *ctx, const struct fp *fp, const void *data, size_t len, struct error *err)
{
	struct push_cluster *s = ctx;

	wait_begins(s, "data servers have");
	return wait_ends(s, cluster_push_block(s->push, fp, data, len, err));
}

static int sent(void *ctx, uint64_t *bytes, struct error *err)
{
	struct cluster_push_stats stats;
	struct push_cluster *s = ctx;
	int r = 0;

	wait_begins(s, "data servers have");
	while (!r && cluster_push_waiting(s->push, NULL)) {
		r = cluster_run(s->cluster, 1000);
		if (r && r != -EINTR)
			return wait_ends(s, error_set(err, r, "waiting for the data servers"));
		r = cluster_push_error(s->push, err);
	}
	wait_ends(s, 0);
	cluster_push_stats(s->push, &stats);
	*bytes = stats.bytes_sent;
	return r ? r : cluster_push_error(s->push, err);
}

static int commit(void *ctx, const struct fp *root, struct push_result *result, struct error *err)
{
	Vmdedup__PushCommitReply *reply = NULL;
	struct cluster_push_stats stats;
	struct push_cluster *s = ctx;
	int r;

	wait_begins(s, "the servers have");
	r = wait_ends(s, cluster_push_commit(s->push, root, &reply, err));
	if (r)
		return r;
	cluster_push_stats(s->push, &stats);
	result->new_blocks = stats.new_blocks;
	result->bytes_sent = stats.bytes_sent;
	if (reply) {
		result->version = reply->version;
		if (reply->image.len == sizeof(result->image.b))
			memcpy(result->image.b, reply->image.data, sizeof(result->image.b));
		vmdedup__push_commit_reply__free_unpacked(reply, NULL);
	}
	return 0;
}

static void end(void *ctx)
{
	struct push_cluster *s = ctx;

	if (s->push)
		cluster_push_free(s->push);
	s->push = NULL;
}

static int get(void *ctx, const struct fp *fps, size_t count,
	       void (*got)(void *arg, size_t index, int r, const void *data, size_t len),
	       void *arg, struct error *err)
{
	struct push_cluster *s = ctx;

	wait_begins(s, "data servers have");
	return wait_ends(s, cluster_get(s->cluster, fps, count, GET_TIMEOUT_MS, got, arg, err));
}

void push_cluster_init(struct push_cluster *s, struct nodes *nodes)
{
	memset(s, 0, sizeof(*s));
	s->source.nodes = nodes;
	s->net.begin = begin;
	s->net.block = block;
	s->net.sent = sent;
	s->net.commit = commit;
	s->net.end = end;
	s->net.get = get;
	s->net.recipe = &node_source_ops;
	s->net.recipe_ctx = &s->source;
}

int push_cluster_release(struct push_cluster *s, const struct uuid *image,
			 const struct uuid *cache, uint64_t epoch, int timeout_ms,
			 struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseRelease release = VMDEDUP__LEASE_RELEASE__INIT;
	struct net_reply reply = { 0 };
	int r;

	release.image = bytes(image->b, sizeof(image->b));
	release.cache = bytes(cache->b, sizeof(cache->b));
	release.epoch = epoch;
	msg.body_case = VMDEDUP__REQUEST__BODY_LEASE_RELEASE;
	msg.lease_release = &release;
	r = cluster_mutate(s->cluster, &msg, NULL, 0, timeout_ms, &reply, err);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

int push_cluster_handover(struct push_cluster *s, const struct uuid *image,
			  const struct uuid *cache, const struct pusher_task *to, uint64_t *epoch,
			  int timeout_ms, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseHandover handover = VMDEDUP__LEASE_HANDOVER__INIT;
	struct net_reply reply = { 0 };
	int r;

	handover.image = bytes(image->b, sizeof(image->b));
	handover.cache = bytes(cache->b, sizeof(cache->b));
	handover.epoch = *epoch;
	handover.to_cache = bytes(to->to_cache.b, sizeof(to->to_cache.b));
	handover.to_host = (char *)to->to_host;
	handover.blocks = bytes(to->hot, to->hot_len);
	msg.body_case = VMDEDUP__REQUEST__BODY_LEASE_HANDOVER;
	msg.lease_handover = &handover;
	r = cluster_mutate(s->cluster, &msg, NULL, 0, timeout_ms, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_LEASE)
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	if (!r)
		*epoch = reply.header->lease->epoch;
	net_reply_free(&reply);
	return r;
}

int push_cluster_lease(struct push_cluster *s, const char *name, int timeout_ms,
		       struct uuid *image, struct uuid *cache, uint64_t *epoch, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageGet get = VMDEDUP__IMAGE_GET__INIT;
	struct net_reply reply = { 0 };
	const Vmdedup__Image *im;
	struct uuid uuid;
	int r;

	if (uuid_from_text(&uuid, name))
		get.name = (char *)name;
	else
		get.uuid = bytes(uuid.b, sizeof(uuid.b));
	msg.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	msg.image_get = &get;
	r = cluster_call(s->cluster, &msg, NULL, 0, timeout_ms, &reply, err);
	im = r ? NULL : reply.header->image;
	if (im && (reply.header->body_case != VMDEDUP__REPLY__BODY_IMAGE ||
		   im->uuid.len != sizeof(image->b)))
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	if (im && !r) {
		memset(cache, 0, sizeof(*cache));
		memcpy(image->b, im->uuid.data, sizeof(image->b));
		if (im->leased_to.len == sizeof(cache->b))
			memcpy(cache->b, im->leased_to.data, sizeof(cache->b));
		*epoch = im->lease_epoch;
	}
	net_reply_free(&reply);
	return r;
}

int push_cluster_snapshot(struct push_cluster *s, const struct uuid *image, const char *label,
			  int timeout_ms, struct push_result *result, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__Snapshot snapshot = VMDEDUP__SNAPSHOT__INIT;
	struct net_reply reply = { 0 };
	int r;

	snapshot.image = bytes(image->b, sizeof(image->b)); /* a name may be another's by now */
	if (label)
		snapshot.label = (char *)label;
	msg.body_case = VMDEDUP__REQUEST__BODY_SNAPSHOT;
	msg.snapshot = &snapshot;
	r = cluster_mutate(s->cluster, &msg, NULL, 0, timeout_ms, &reply, err);
	if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_IMAGE)
		result->version = reply.header->image->version;
	if (reply.header)
		net_reply_free(&reply);
	return r;
}
