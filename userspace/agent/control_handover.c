// SPDX-License-Identifier: GPL-2.0-or-later
/* The control socket: a volume goes to another host. First the thread of handover.h, then the push
 * thread. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/daemon.h"

struct handover_request {
	struct pusher_task push; /* first: its ->work is the request's */
	struct handover_task find;
	struct daemon *daemon;
	struct net_request *req;
	uint64_t nonce;
};

static struct handover_request *of_find(struct work *w)
{
	return (struct handover_request *)((char *)w - offsetof(struct handover_request, find));
}

static void finish(struct handover_request *h, Vmdedup__Reply *reply)
{
	once_reply(&h->daemon->once, h->nonce, h->req, reply);
	free(h->find.hot);
	free(h);
}

static void fail(struct handover_request *h, struct error *err)
{
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

	reply.error = -err->code;
	reply.error_text = err->text;
	finish(h, &reply);
}

static void answer(struct handover_request *h)
{
	Vmdedup__VolumeHandoverReply body = VMDEDUP__VOLUME_HANDOVER_REPLY__INIT;
	Vmdedup__VolumePushReply push = VMDEDUP__VOLUME_PUSH_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct push_result *result = &h->push.result;

	push.cut = result->cut;
	push.blocks = result->blocks;
	push.new_blocks = result->new_blocks;
	push.bytes_sent = result->bytes_sent;
	push.root = (ProtobufCBinaryData){ FP_SIZE, result->root.b };
	push.milliseconds = h->push.milliseconds;
	body.host = h->find.target.host;
	body.cache = (ProtobufCBinaryData){ sizeof(h->find.target.cache.b), h->find.target.cache.b };
	body.blocks = h->find.warmth.blocks;
	body.warm = h->find.warmth.here;
	body.from_peers = h->find.warmth.from_peers;
	body.push = &push;
	body.lease_epoch = h->push.lease_epoch;
	body.release_ms = h->push.release_ms;
	body.lease_ms = h->push.lease_ms;
	body.cold = h->find.cold;
	reply.body_case = VMDEDUP__REPLY__BODY_VOLUME_HANDOVER;
	reply.volume_handover = &body;
	finish(h, &reply);
}

static void switched(struct work *w)
{
	struct handover_request *h = (struct handover_request *)w;

	if (h->push.err.code) {
		fail(h, &h->push.err);
		return;
	}
	agent_forget_volume(h->daemon->agent, &h->push.image);
	answer(h);
}

static void found(struct work *w)
{
	struct handover_request *h = of_find(w);

	if (h->find.err.code) {
		fail(h, &h->find.err);
		return;
	}
	if (h->find.warm || h->find.ask) {
		answer(h);
		return;
	}
	h->push.work.done = switched;
	h->push.kind = TASK_HANDOVER;
	h->push.to_cache = h->find.target.cache;
	snprintf(h->push.to_host, sizeof(h->push.to_host), "%s", h->find.target.host);
	h->push.hot = h->find.hot;
	h->push.hot_len = h->find.hot_len;
	pusher_submit(h->daemon->pusher, &h->push);
}

void control_handover(struct daemon *d, struct net_request *req)
{
	const Vmdedup__VolumeHandover *msg = net_request_header(req)->volume_handover;
	struct handover_request *h;

	if (!*msg->name || strlen(msg->name) >= sizeof(h->push.name) || !*msg->to ||
	    strlen(msg->to) >= sizeof(h->find.to)) {
		net_reply_error(req, EINVAL, "a volume has 1 to %zu bytes, a host 1 to %zu",
				sizeof(h->push.name) - 1, sizeof(h->find.to) - 1);
		return;
	}
	if (msg->wait_ms > HANDOVER_WAIT_MAX_MS) {
		net_reply_error(req, EINVAL, "a host is waited for for at most %d s",
				HANDOVER_WAIT_MAX_MS / 1000);
		return;
	}
	if (!agent_is_connected(d->agent)) {
		net_reply_error(req, ENODEV, "the agent has no cache: %s", d->cache_trouble);
		return;
	}
	if (once_is_repeat(&d->once, msg->nonce, req))
		return;
	h = calloc(1, sizeof(*h));
	if (!h) {
		Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

		reply.error = ENOMEM;
		reply.error_text = (char *)"out of memory";
		once_reply(&d->once, msg->nonce, req, &reply);
		return;
	}
	h->daemon = d;
	h->req = req;
	h->nonce = msg->nonce;
	strcpy(h->push.name, msg->name);
	strcpy(h->find.name, msg->name);
	strcpy(h->find.to, msg->to);
	h->find.warm = msg->warm;
	h->find.ask = msg->ask;
	h->find.stopped = msg->stopped;
	h->find.wait_ms = msg->wait_ms;
	memcpy(h->find.self.b, d->hello.cache, sizeof(h->find.self.b));
	h->find.work.done = found;
	handover_submit(d->handover, &h->find);
}
