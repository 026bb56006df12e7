// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/outgoing.h"
#include "proto/limits.h"

/* A part of a reply on its way to a peer that may be slow: counted until ZeroMQ is done with it. */
struct out_part {
	struct peer *peer;
	size_t cost;
	struct net_frame frame;
	uint8_t copy[];
};

static void out_part_done(void *data, void *hint)
{
	struct out_part *out = hint;

	if (out->frame.free_fn)
		out->frame.free_fn(data, out->frame.hint);
	atomic_fetch_sub_explicit(&out->peer->queued, out->cost, memory_order_relaxed);
	atomic_fetch_sub_explicit(&out->peer->parts, 1, memory_order_relaxed);
	if (out->peer->sum)
		atomic_fetch_sub_explicit(&out->peer->sum->queued, out->cost, memory_order_relaxed);
	peer_put(out->peer);
	free(out);
}

/* With @room for bytes of its own, in ->copy. */
static struct out_part *out_part_new(struct peer *peer, size_t len, size_t room)
{
	struct out_part *out = malloc(sizeof(*out) + room);

	if (!out)
		return NULL;
	out->peer = peer_get(peer);
	out->cost = len + sizeof(*out) + sizeof(zmq_msg_t);
	memset(&out->frame, 0, sizeof(out->frame));
	atomic_fetch_add_explicit(&peer->queued, out->cost, memory_order_relaxed);
	atomic_fetch_add_explicit(&peer->parts, 1, memory_order_relaxed);
	if (peer->sum)
		atomic_fetch_add_explicit(&peer->sum->queued, out->cost, memory_order_relaxed);
	return out;
}

static int out_part_msg(struct out_part *out, void *data, size_t len, zmq_msg_t *msg)
{
	if (!zmq_msg_init_data(msg, data, len, out_part_done, out))
		return 0;
	out_part_done(data, out);
	return -ENOMEM;
}

static int frame_msg(struct peer *peer, const struct net_frame *frame, zmq_msg_t *msg)
{
	struct out_part *out = out_part_new(peer, frame->len, frame->free_fn ? 0 : frame->len);

	if (!out) {
		net_frames_drop(frame, 1);
		return -ENOMEM;
	}
	if (frame->free_fn) {
		out->frame = *frame;
		return out_part_msg(out, (void *)frame->data, frame->len, msg);
	}
	if (frame->len)
		memcpy(out->copy, frame->data, frame->len);
	return out_part_msg(out, out->copy, frame->len, msg);
}

int outgoing_header(struct peer *peer, const Vmdedup__Reply *reply, zmq_msg_t *msg)
{
	size_t len = vmdedup__reply__get_packed_size(reply);
	struct out_part *out;

	if (len > PROTO_MAX_HEADER)
		return -EMSGSIZE;
	out = out_part_new(peer, len, len);
	if (!out)
		return -ENOMEM;
	vmdedup__reply__pack(reply, out->copy);
	return out_part_msg(out, out->copy, len, msg);
}

/* After the first part ZeroMQ takes the others without a wait, and drops them itself when the peer goes
 * meanwhile. */
int outgoing_send(void *socket, struct peer *peer, zmq_msg_t *header, const struct net_frame *frames,
		  size_t nr)
{
	zmq_msg_t msg;
	int r = -ENOMEM;

	if (!zmq_msg_init_size(&msg, peer->id_len)) {
		memcpy(zmq_msg_data(&msg), peer->id, peer->id_len);
		r = net_send_part(socket, &msg, true);
	}
	if (r) {
		zmq_msg_close(header);
		net_frames_drop(frames, nr);
		return r;
	}
	r = net_send_part(socket, header, nr);
	for (size_t i = 0; i < nr; i++) {
		bool more = i + 1 < nr;

		/* A frame that cannot be made leaves a hole that the peer's decoder refuses: a
		 * message that has begun cannot be taken back. */
		if (r) {
			net_frames_drop(&frames[i], 1);
			continue;
		}
		r = frame_msg(peer, &frames[i], &msg);
		if (r)
			zmq_msg_init(&msg);
		if (net_send_part(socket, &msg, more && !r))
			r = r ?: -EPIPE;
	}
	return r;
}
