// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/readers.h"
#include "base/cleanup.h"

#define MAX_READERS 4096 /* of one look: a cache has no more volumes; the rest is the next look's */

struct reader {
	struct uuid image;
	uint64_t epoch;
	bool opening, recorded;
};

struct look {
	const struct readers_env *env;
	struct reader *readers;
	size_t count;
	bool is_there; /* the cache whose volumes were listed is still the holder's */
};

static void add(struct look *look, const Vmdedup__Lease *l)
{
	struct reader *r = &look->readers[look->count];

	if (!l->reader || l->image.len != sizeof(r->image.b) || look->count == MAX_READERS)
		return;
	memcpy(r->image.b, l->image.data, sizeof(r->image.b));
	r->epoch = l->epoch;
	look->count++;
}

static int list(struct look *look, struct error *err)
{
	const struct readers_env *env = look->env;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseList body = VMDEDUP__LEASE_LIST__INIT;
	struct net_reply reply = { 0 };
	char after[96] = "";
	bool more = true;
	size_t i;
	int r = 0;

	body.cache = (ProtobufCBinaryData){ sizeof(env->holder.b), (uint8_t *)env->holder.b };
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_LIST;
	req.lease_list = &body;
	while (!r && more) {
		body.after = after;
		r = cluster_call(env->cluster, &req, NULL, 0, env->timeout_ms, &reply, err);
		if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_LEASE_LIST)
			r = error_set(err, -EPROTO, "the meta server answered with something else");
		for (i = 0; !r && i < reply.header->lease_list->n_leases; i++)
			add(look, reply.header->lease_list->leases[i]);
		more = !r && reply.header->lease_list->more;
		if (more)
			snprintf(after, sizeof(after), "%s", reply.header->lease_list->next);
		net_reply_free(&reply);
	}
	return r;
}

static void is_there_in_loop(void *arg)
{
	struct look *look = arg;

	look->is_there = agent_has_cache(look->env->agent, &look->env->holder);
}

static void opening_in_loop(void *arg)
{
	struct look *look = arg;
	size_t i;

	for (i = 0; i < look->count; i++)
		look->readers[i].opening = agent_opens_image(look->env->agent,
							     &look->readers[i].image);
}

/*
 * An OPEN that the list knows of is under way now, or has left its record for the look at the records
 * after this. Whoever opens it later has a row of another epoch.
 */
static int find_volumes(struct look *look, struct error *err)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	const struct readers_env *env = look->env;
	size_t i, k, count;
	int r;

	if (!loop_call(env->loop, opening_in_loop, look))
		return error_set(err, -ECANCELED, "the agent is ending");
	r = cache_volumes(env->cache, &infos, &count);
	if (r)
		return error_set(err, r, "cannot list the volumes of the cache: %s", strerror(-r));
	/* The records of a cache that has taken its place say nothing. */
	if (!loop_call(env->loop, is_there_in_loop, look) || !look->is_there)
		return error_set(err, -EAGAIN, "the cache was exchanged");
	for (i = 0; i < look->count; i++)
		for (k = 0; k < count; k++)
			if (!memcmp(infos[k].image, look->readers[i].image.b, DM_DEDUP_UUID_SIZE))
				look->readers[i].recorded = true;
	return 0;
}

static int end(const struct readers_env *env, const struct reader *reader, struct error *err)
{
	Vmdedup__LeaseRelease body = VMDEDUP__LEASE_RELEASE__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.image = (ProtobufCBinaryData){ sizeof(reader->image.b), (uint8_t *)reader->image.b };
	body.cache = (ProtobufCBinaryData){ sizeof(env->holder.b), (uint8_t *)env->holder.b };
	body.epoch = reader->epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_RELEASE;
	req.lease_release = &body;
	r = cluster_mutate(env->cluster, &req, NULL, 0, env->timeout_ms, &reply, err);
	net_reply_free(&reply);
	return r;
}

int readers_end_gone(const struct readers_env *env, struct error *err)
{
	CLEANUP_FREE struct reader *readers = calloc(MAX_READERS + 1, sizeof(*readers));
	struct look look = { .env = env, .readers = readers };
	bool later = false;
	size_t i;
	int r;

	if (!readers)
		return error_set(err, -ENOMEM, "out of memory");
	r = list(&look, err);
	if (!r && look.count)
		r = find_volumes(&look, err);
	for (i = 0; !r && i < look.count; i++) {
		later |= readers[i].opening && !readers[i].recorded;
		if (!readers[i].opening && !readers[i].recorded)
			r = end(env, &readers[i], err);
	}
	if (!r && later)
		return error_set(err, -EAGAIN, "a volume is being opened or closed");
	return r;
}
