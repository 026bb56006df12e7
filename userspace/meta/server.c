// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The core behind a net server. Requests that were there together share one transaction and one
 * sync of the disk; their replies leave after it.
 */
#include "meta/server.h"
#include "meta/core.h"
#include "meta/governor.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/peer_address.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX_BATCH 512
#define TICK_MS	  100
#define QUEUED	  (2ULL << 30) /* bytes of replies that wait for clients, most of them of NODE_GET */

struct meta_server {
	struct meta meta;
	struct net_ctx *ctx;
	struct net_server *net;
	struct governor *governor; /* NULL: this one governs nothing */
	struct arena arena;
	size_t nr;
	struct net_request *reqs[MAX_BATCH];
	struct meta_call calls[MAX_BATCH];
	int tick_error; /* said once, not twenty times a second */
};

static void send_reply(struct meta_server *s, struct net_request *req, struct meta_call *c)
{
	struct net_frame *frames = NULL;
	size_t i;

	/* Of this process: the store does not know. */
	if (c->reply.body_case == VMDEDUP__REPLY__BODY_CLUSTER_INFO)
		c->reply.cluster_info->open_keys = net_ctx_keys_are_open(s->ctx);
	if (c->nr_out) {
		frames = arena_alloc(&s->arena, c->nr_out * sizeof(*frames));
		if (!frames) {
			net_reply_error(req, ENOMEM, "the meta server is out of memory");
			return;
		}
		for (i = 0; i < c->nr_out; i++)
			frames[i] = (struct net_frame){ .data = c->out[i].data,
							.len = c->out[i].len };
	}
	net_reply_send(req, &c->reply, frames, c->nr_out);
}

static void run_batch(void *ctx)
{
	struct meta_server *s = ctx;
	size_t i;

	meta_batch(&s->meta, s->calls, s->nr);
	for (i = 0; i < s->nr; i++)
		send_reply(s, s->reqs[i], &s->calls[i]);
	s->nr = 0;
	arena_free(&s->arena);
}

/* What the meta server says of a peer's key is believed. */
static bool speaks_for_itself(const struct net_request *req)
{
	const Vmdedup__Request *header = net_request_header(req);
	struct peer_address address;

	return header->body_case != VMDEDUP__REQUEST__BODY_PEER_ANNOUNCE ||
	       peer_address_take(header->peer_announce->address, &address) ||
	       peer_address_is_of(&address, net_request_key(req));
}

static void handle(void *ctx, struct net_request *req)
{
	struct meta_server *s = ctx;
	size_t i, n = net_request_nr_frames(req);
	struct meta_bytes *frames;

	if (!speaks_for_itself(req)) {
		net_reply_error(req, EACCES, "an agent announces itself, with the key by which it "
				"is connected, and nobody else");
		return;
	}
	frames = arena_alloc(&s->arena, (n + 1) * sizeof(*frames));

	if (!frames) {
		net_reply_error(req, ENOMEM, "the meta server is out of memory");
		return;
	}
	for (i = 0; i < n; i++)
		frames[i].data = net_request_frame(req, i, &frames[i].len);
	s->reqs[s->nr] = req;
	s->calls[s->nr++] = (struct meta_call){
		.m = &s->meta, .arena = &s->arena, .req = net_request_header(req),
		.frames = frames, .nr_frames = n,
	};
	if (s->nr == MAX_BATCH)
		run_batch(s);
}

static void tick(void *ctx)
{
	struct meta_server *s = ctx;
	struct error err = { 0 };
	int r = meta_tick(&s->meta, &err);

	if (r < 0 && r != s->tick_error)
		log_error("meta: background work: %s", err.text);
	s->tick_error = r < 0 ? r : 0;
	if (s->governor)
		governor_tick(s->governor);
}

static const struct net_server_ops server_ops = {
	.handle = handle, .batch_end = run_batch, .tick = tick, .queued = QUEUED,
};

struct meta_server *meta_server_open(struct net_ctx *net, const char *store, struct error *err)
{
	struct meta_server *s = calloc(1, sizeof(*s));
	int r;

	if (!s) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	s->ctx = net;
	s->meta.env = &meta_real_env;
	s->meta.ticked_ns = clock_mono_ns();
	s->meta.may_cascade = true;
	r = store_open(&s->meta.store, store, err);
	if (r)
		goto free;
	r = meta_begin(&s->meta, err);
	meta_rollback(&s->meta);
	if (r)
		goto close;
	s->net = net_server_new(net, "meta", s->meta.params.uuid.b, &server_ops, s, TICK_MS, err);
	if (!s->net)
		goto close;
	return s;
close:
	store_close(s->meta.store);
free:
	free(s);
	return NULL;
}

static void probed(void *arg)
{
	struct meta_server *s = arg;

	governor_tick(s->governor);
}

int meta_server_govern(struct meta_server *s, bool shared, struct error *err)
{
	int r;

	s->governor = governor_new(s->ctx, &s->meta,
				   shared ? GOVERNOR_LEASE_MS * 1000000ULL : 0, err);
	if (!s->governor)
		return err->code;
	r = net_server_watch(s->net, governor_fd(s->governor), probed, s);
	return r ? error_set(err, r, "the governor cannot start: %s", strerror(-r)) : 0;
}

int meta_server_bind(struct meta_server *s, const char *endpoint, struct error *err)
{
	return net_server_bind(s->net, endpoint, err);
}

const char *meta_server_endpoint(struct meta_server *s, size_t n)
{
	return net_server_endpoint(s->net, n);
}

int meta_server_watch(struct meta_server *s, int fd, void (*ready)(void *arg), void *arg)
{
	return net_server_watch(s->net, fd, ready, arg);
}

int meta_server_run(struct meta_server *s, struct error *err)
{
	return net_server_run(s->net, err);
}

void meta_server_stop(struct meta_server *s)
{
	net_server_stop(s->net);
}

void meta_server_close(struct meta_server *s)
{
	if (!s)
		return;
	net_server_free(s->net);
	governor_free(s->governor);
	meta_end(&s->meta);
	store_close(s->meta.store);
	arena_free(&s->arena);
	free(s);
}
