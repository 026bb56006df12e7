// SPDX-License-Identifier: GPL-2.0-or-later
/* Questions to the meta server: images and leases, peers, traces. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/network_impl.h"
#include "base/log.h"

#define PEER_TTL_S 90
#define MAX_LIARS  16

/* ---- images and leases ---- */

static void copy_uuid(struct uuid *to, const ProtobufCBinaryData *from)
{
	memset(to, 0, sizeof(*to));
	if (from->len == sizeof(to->b))
		memcpy(to->b, from->data, sizeof(to->b));
}

static int ask_image(struct cluster *c, struct request *req, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageGet get = VMDEDUP__IMAGE_GET__INIT;
	struct net_reply reply = { 0 };
	struct uuid uuid;
	int r;

	/* A table line may name an image by its UUID. */
	if (!uuid_from_text(&uuid, req->name))
		get.uuid = (ProtobufCBinaryData){ sizeof(uuid.b), uuid.b };
	else
		get.name = req->name;
	msg.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	msg.image_get = &get;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_IMAGE)
		r = -EPROTO;
	if (!r) {
		copy_uuid(&req->image.uuid, &reply.header->image->uuid);
		copy_uuid(&req->image.leased_to, &reply.header->image->leased_to);
		req->image.size = reply.header->image->size;
		strncpy(req->image.leased_host, reply.header->image->leased_host,
			sizeof(req->image.leased_host) - 1);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

int network_take_lease(struct cluster *c, const struct uuid *cache, const char *host,
		       struct agent_lease *lease, int timeout_ms, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseTake take = VMDEDUP__LEASE_TAKE__INIT;
	struct net_reply reply = { 0 };
	int r;

	take.image = (ProtobufCBinaryData){ sizeof(lease->image.b), lease->image.b };
	take.cache = (ProtobufCBinaryData){ sizeof(cache->b), (uint8_t *)cache->b };
	take.host = (char *)host;
	take.readonly = lease->readonly;
	take.confirm_only = lease->confirm_only;
	take.epoch = lease->epoch;
	take.renew = lease->renew;
	if (lease->readonly && !fp_is_zero(&lease->root))
		take.root = (ProtobufCBinaryData){ FP_SIZE, lease->root.b };
	msg.body_case = VMDEDUP__REQUEST__BODY_LEASE_TAKE;
	msg.lease_take = &take;
	r = cluster_mutate(c, &msg, NULL, 0, timeout_ms, &reply, err);
	if (r && reply.header && reply.header->not_done) /* of the store's state, not of the lease's */
		r = error_set(err, -EAGAIN, "%s", reply.header->error_text);
	if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_LEASE ||
		   reply.header->lease->root.len != FP_SIZE))
		r = -EPROTO;
	if (!r) {
		lease->held = reply.header->lease->held;
		lease->epoch = reply.header->lease->epoch;
		lease->cut = reply.header->lease->cut;
		lease->size = reply.header->lease->size;
		memcpy(lease->root.b, reply.header->lease->root.data, FP_SIZE);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

/* ---- peers and traces ---- */

static int ask_announce(struct network *n, struct cluster *c, struct request *req,
			struct error *err)
{
	char liars[MAX_LIARS][PEER_ENDPOINT_MAX], *liar_texts[MAX_LIARS];
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerAnnounce say = VMDEDUP__PEER_ANNOUNCE__INIT;
	struct peer_address peers[PEERS_SET];
	Vmdedup__PeerAddress self;
	struct net_reply reply = { 0 };
	size_t i, nr = 0;
	int r;

	peer_address_give(&n->self, &self);
	say.cache = (ProtobufCBinaryData){ sizeof(req->cache.b), req->cache.b };
	say.address = &self;
	say.host = req->host;
	say.rack = n->config->agent_rack ? n->config->agent_rack : (char *)"";
	say.ttl_s = PEER_TTL_S;
	say.images = (ProtobufCBinaryData){ req->len, req->data };
	say.want = PEERS_SET;
	say.n_liars = getter_liars(n->getter, liars, MAX_LIARS);
	for (i = 0; i < say.n_liars; i++)
		liar_texts[i] = liars[i];
	say.liars = liar_texts;
	msg.body_case = VMDEDUP__REQUEST__BODY_PEER_ANNOUNCE;
	msg.peer_announce = &say;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_PEER_ANNOUNCE)
		r = error_set(err, -EPROTO, "the meta server knows no peers");
	for (i = 0; !r && i < reply.header->peer_announce->n_peers && nr < PEERS_SET; i++)
		if (!peer_address_take(reply.header->peer_announce->peers[i], &peers[nr]))
			nr++;
	if (nr)
		getter_suggest(n->getter, peers, nr);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int ask_trace_get(struct cluster *c, struct request *req, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__TraceGet get = VMDEDUP__TRACE_GET__INIT;
	struct net_reply reply = { 0 };
	int r;

	get.root = (ProtobufCBinaryData){ FP_SIZE, req->root.b };
	get.image = (ProtobufCBinaryData){ sizeof(req->image.uuid.b), req->image.uuid.b };
	get.cache = (ProtobufCBinaryData){ sizeof(req->cache.b), req->cache.b };
	msg.body_case = VMDEDUP__REQUEST__BODY_TRACE_GET;
	msg.trace_get = &get;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_TRACE_GET)
		r = error_set(err, -EPROTO, "the meta server knows no traces");
	if (!r) {
		req->len = reply.header->trace_get->blocks.len;
		req->data = malloc(req->len + 1);
		if (!req->data)
			r = -ENOMEM;
		else if (req->len)
			memcpy(req->data, reply.header->trace_get->blocks.data, req->len);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int ask_trace_put(struct cluster *c, struct request *req, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__TracePut put = VMDEDUP__TRACE_PUT__INIT;
	struct net_reply reply = { 0 };
	int r;

	put.root = (ProtobufCBinaryData){ FP_SIZE, req->root.b };
	put.image = (ProtobufCBinaryData){ sizeof(req->image.uuid.b), req->image.uuid.b };
	put.blocks = (ProtobufCBinaryData){ req->len, req->data };
	msg.body_case = VMDEDUP__REQUEST__BODY_TRACE_PUT;
	msg.trace_put = &put;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

/* ---- whatever it is ---- */

int network_ask(struct network *n, struct cluster *c, struct request *req)
{
	struct error err = { 0 };
	int r;

	switch (req->kind) {
	case REQUEST_IMAGE:
		r = ask_image(c, req, &err);
		break;
	case REQUEST_LEASE:
		r = network_take_lease(c, &req->cache, req->host, &req->lease, META_TIMEOUT_MS,
				       &err);
		break;
	case REQUEST_ANNOUNCE:
		r = ask_announce(n, c, req, &err);
		break;
	case REQUEST_TRACE_GET:
		r = ask_trace_get(c, req, &err);
		break;
	case REQUEST_TRACE_PUT:
		r = ask_trace_put(c, req, &err);
		break;
	default:
		r = -EINVAL;
	}
	/* An unknown image is for whoever asked to report. */
	if (r && !AGENT_IS_UNREACHABLE(r) && req->kind != REQUEST_IMAGE)
		log_warn("%s", err.text);
	return r;
}
