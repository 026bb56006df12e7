// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <czmq.h>

#include "net_world.h"
#include "proto/limits.h"

/* ---- the server ---- */

void netw_count_free(void *data, void *hint)
{
	atomic_fetch_add((atomic_int *)hint, 1);
}

static void answer_get(struct netw_server *s, struct net_request *req, const Vmdedup__Get *get)
{
	size_t n = get->fingerprints.len / 32;
	struct net_frame frames[PROTO_MAX_BLOCKS];
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__GetReply body = VMDEDUP__GET_REPLY__INIT;

	for (size_t i = 0; i < n; i++)
		frames[i] =
			(struct net_frame){s->block, NETW_BLOCK_SIZE, netw_count_free, &s->freed};
	reply.body_case = VMDEDUP__REPLY__BODY_GET;
	reply.get = &body;
	net_reply_send(req, &reply, frames, n);
}

/* Answers with the sum of the payload's bytes. */
static void answer_put(struct net_request *req)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__DataStatReply stat = VMDEDUP__DATA_STAT_REPLY__INIT;

	for (size_t i = 0; i < net_request_nr_frames(req); i++) {
		size_t len;
		const uint8_t *p = net_request_frame(req, i, &len);

		for (size_t b = 0; b < len; b++)
			stat.puts += p[b];
	}
	reply.body_case = VMDEDUP__REPLY__BODY_DATA_STAT;
	reply.data_stat = &stat;
	net_reply_send(req, &reply, NULL, 0);
}

static void answer_stat(struct netw_server *s, struct net_request *req)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	Vmdedup__DataStatReply stat = VMDEDUP__DATA_STAT_REPLY__INIT;
	struct net_server_stats stats;

	net_server_stats(s->net, &stats);
	stat.gets = stats.refused;
	reply.error_text = (char *)net_request_peer(req);
	reply.body_case = VMDEDUP__REPLY__BODY_DATA_STAT;
	reply.data_stat = &stat;
	net_reply_send(req, &reply, NULL, 0);
}

static void server_handle(void *ctx, struct net_request *req)
{
	const Vmdedup__Request *header = net_request_header(req);
	struct netw_server *s = ctx;

	pthread_mutex_lock(&s->lock);
	atomic_fetch_add(&s->seen, 1);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	if (s->silent)
		return;
	switch (header->body_case) {
	case VMDEDUP__REQUEST__BODY_GET:
		answer_get(s, req, header->get);
		break;
	case VMDEDUP__REQUEST__BODY_PUT:
		s->deferred[s->nr_deferred++] = req;
		if (s->nr_deferred == NETW_COUNT(s->deferred))
			while (s->nr_deferred)
				answer_put(s->deferred[--s->nr_deferred]);
		break;
	case VMDEDUP__REQUEST__BODY_DATA_STAT:
		answer_stat(s, req);
		break;
	case VMDEDUP__REQUEST__BODY_SHARD_LIST: {
		/* More than may be sent. */
		struct net_frame frames[PROTO_MAX_FRAMES + 1] = {0};
		Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

		net_reply_send(req, &reply, frames, NETW_COUNT(frames));
		break;
	}
	default:
		net_reply_error(req, ENOENT, "there is no image '%s'", "x");
	}
}

static void server_batch_end(void *ctx)
{
	struct netw_server *s = ctx;

	atomic_fetch_add(&s->batches, 1);
	while (s->nr_deferred)
		answer_put(s->deferred[--s->nr_deferred]);
}

static void server_tick(void *ctx)
{
	struct netw_server *s = ctx;

	atomic_fetch_add(&s->ticks, 1);
}

const struct net_server_ops netw_server_ops = {
	.handle = server_handle, .batch_end = server_batch_end, .tick = server_tick,
};

static void *server_main(void *arg)
{
	struct netw_server *s = arg;

	return (void *)(intptr_t)net_server_run(s->net, NULL);
}

struct netw_server *netw_server_start(struct net_ctx *ctx, bool silent, const char *endpoint)
{
	return netw_server_start_with(&netw_server_ops, ctx, silent, endpoint);
}

struct netw_server *netw_server_start_with(const struct net_server_ops *ops, struct net_ctx *ctx,
					   bool silent, const char *endpoint)
{
	static const uint8_t cluster[16] = {1, 2, 3};
	struct netw_server *s = calloc(1, sizeof(*s));
	struct error err = {0};

	s->ctx = ctx;
	s->silent = silent;
	s->block = malloc(NETW_BLOCK_SIZE);
	memset(s->block, 'b', NETW_BLOCK_SIZE);
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->net = net_server_new(ctx, "data", cluster, ops, s, 50, &err);
	assert_non_null(s->net);
	if (net_server_bind(s->net, endpoint, &err))
		fail_msg("%s", err.text);
	assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
	return s;
}

void netw_server_wait_seen(struct netw_server *s, int n)
{
	pthread_mutex_lock(&s->lock);
	while (atomic_load(&s->seen) < n)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

struct net_server_stats netw_server_stop(struct netw_server *s)
{
	struct net_server_stats stats;
	void *r;

	net_server_stop(s->net);
	pthread_join(s->thread, &r);
	assert_null(r);
	net_server_stats(s->net, &stats);
	net_server_free(s->net);
	return stats;
}

void netw_server_free(struct netw_server *s)
{
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->changed);
	free(s->block);
	free(s);
}

/* ---- requests ---- */

Vmdedup__DataStat netw_data_stat = VMDEDUP__DATA_STAT__INIT;

Vmdedup__Request netw_request(Vmdedup__Request__BodyCase body_case, void *body)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;

	req.body_case = body_case;
	req.data_stat = body;
	return req;
}

int netw_call(struct net_client *c, Vmdedup__Request__BodyCase body_case, void *body,
	      struct net_reply *reply, struct error *err)
{
	Vmdedup__Request req = netw_request(body_case, body);

	return net_call(c, &req, NULL, 0, NETW_WAIT_MS, reply, err);
}

int netw_stat_call(struct net_client *c, int timeout_ms, struct error *err)
{
	Vmdedup__Request req = netw_request(VMDEDUP__REQUEST__BODY_DATA_STAT, &netw_data_stat);
	struct net_reply reply;
	int r = net_call(c, &req, NULL, 0, timeout_ms, &reply, err);

	net_reply_free(&reply);
	return r;
}

struct net_client *netw_client(struct net_ctx *ctx, const char *endpoint, const uint8_t *key)
{
	struct error err = {0};
	struct net_client *c = net_client_new(ctx, endpoint, key, "agent", &err);

	if (!c)
		fail_msg("%s", err.text);
	return c;
}

struct net_ctx *netw_context(const char *secret, const char *clients)
{
	struct error err = {0};
	struct net_ctx *ctx = net_ctx_new(secret, clients, &err);

	if (!ctx)
		fail_msg("%s", err.text);
	return ctx;
}

void netw_record(void *arg, int r, struct net_reply *reply)
{
	struct netw_outcome *o = arg;

	o->done++;
	o->r = r;
	if (reply && reply->header->body_case == VMDEDUP__REPLY__BODY_DATA_STAT)
		o->puts = reply->header->data_stat->puts;
	net_reply_free(reply);
}

char *netw_path(const char *dir, const char *name)
{
	static char paths[4][160];
	static int n;
	char *path = paths[n++ % 4];

	snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	return path;
}

void netw_make_key(const char *dir, const char *name, bool may_connect, uint8_t public_key[32])
{
	zcert_t *cert = zcert_new();
	char client_name[64];

	assert_non_null(cert);
	assert_int_equal(zcert_save(cert, netw_path(dir, name)), 0);
	snprintf(client_name, sizeof(client_name), "clients/%s", name);
	if (may_connect)
		assert_int_equal(zcert_save_public(cert, netw_path(dir, client_name)), 0);
	memcpy(public_key, zcert_public_key(cert), 32);
	zcert_destroy(&cert);
}
