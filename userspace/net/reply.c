// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>

#include "net/internal.h"

/* A reply as it came; net_reply.priv points here, and the first field is what callers get. */
struct received {
	struct net_reply reply;
	struct net_parts parts;
	struct net_frame frames[];
};

void net_reply_free(struct net_reply *reply)
{
	struct received *in = reply ? reply->priv : NULL;

	if (!in)
		return;
	/* Callers may have copied the structure: theirs forgets, ours goes with all it holds. */
	if (reply != &in->reply)
		memset(reply, 0, sizeof(*reply));
	vmdedup__reply__free_unpacked(in->reply.header, NULL);
	net_parts_free(&in->parts);
	free(in);
}

/* A frame that its reply was relieved of. */
struct taken {
	struct bytes bytes;
	zmq_msg_t msg;
};

static void free_taken(struct bytes *b)
{
	struct taken *t = (struct taken *)b;

	zmq_msg_close(&t->msg);
	free(t);
}

struct bytes *net_reply_take(struct net_reply *reply, size_t n)
{
	struct received *in = reply->priv;
	struct taken *t = malloc(sizeof(*t));

	if (!t)
		return NULL;
	zmq_msg_init(&t->msg);
	zmq_msg_move(&t->msg, &in->parts.msgs[n + 1]);
	/* A few bytes lie in the message itself, and have moved with it. */
	t->bytes = (struct bytes){ zmq_msg_data(&t->msg), zmq_msg_size(&t->msg), free_taken };
	in->frames[n].data = t->bytes.data;
	return &t->bytes;
}

int net_reply_new(struct net_parts *parts, struct net_reply **out, struct error *err)
{
	size_t nr = parts->nr - 1;
	struct received *in = calloc(1, sizeof(*in) + nr * sizeof(in->frames[0]));
	int r;

	if (!in) {
		net_parts_free(parts);
		return error_set(err, -ENOMEM, "out of memory");
	}
	in->parts = *parts;
	memset(parts, 0, sizeof(*parts));
	in->reply.priv = in;
	in->reply.nr_frames = nr;
	in->reply.frames = in->frames;
	r = net_decode_reply(zmq_msg_data(&in->parts.msgs[0]), zmq_msg_size(&in->parts.msgs[0]),
			     &in->reply.header, err);
	if (!r)
		r = net_check_payload(&in->parts, 1, in->reply.header->payload_frames, err);
	if (r) {
		net_reply_free(&in->reply);
		return r;
	}
	for (size_t i = 0; i < nr; i++) {
		in->frames[i].data = zmq_msg_data(&in->parts.msgs[i + 1]);
		in->frames[i].len = zmq_msg_size(&in->parts.msgs[i + 1]);
	}
	*out = &in->reply;
	return 0;
}
