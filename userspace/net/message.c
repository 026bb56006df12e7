// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "net/internal.h"
#include "proto/limits.h"

/* ---- frames ---- */

static int parts_grow(struct net_parts *p)
{
	size_t room = p->room ? 2 * p->room : 4;
	zmq_msg_t *msgs;

	if (p->nr < p->room)
		return 0;
	/* A zmq_msg_t may not be moved by its bytes: each is moved by the library. */
	msgs = malloc(room * sizeof(*msgs));
	if (!msgs)
		return -ENOMEM;
	for (size_t i = 0; i < p->nr; i++) {
		zmq_msg_init(&msgs[i]);
		zmq_msg_move(&msgs[i], &p->msgs[i]);
	}
	free(p->msgs);
	p->msgs = msgs;
	p->room = room;
	return 0;
}

void net_parts_clear(struct net_parts *p)
{
	for (size_t i = 0; i < p->nr; i++)
		zmq_msg_close(&p->msgs[i]);
	p->nr = 0;
	p->bytes = 0;
	p->too_many = false;
}

void net_parts_free(struct net_parts *p)
{
	net_parts_clear(p);
	free(p->msgs);
	memset(p, 0, sizeof(*p));
}

int net_send_part(void *socket, zmq_msg_t *msg, bool more)
{
	int r;

	do
		r = zmq_msg_send(msg, socket, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0 ?
			    -errno :
			    0;
	while (r == -EINTR);
	if (r)
		zmq_msg_close(msg);
	return r;
}

/* Frames of one message come together: once the first is here, none of the others waits. */
int net_parts_recv(void *socket, size_t max, struct net_parts *p)
{
	int more;

	p->nr = 0;
	p->bytes = 0;
	p->too_many = false;
	do {
		zmq_msg_t msg;

		int r;

		zmq_msg_init(&msg);
		do
			r = zmq_msg_recv(&msg, socket, ZMQ_DONTWAIT) < 0 ? -errno : 0;
		while (r == -EINTR);
		if (r) {
			zmq_msg_close(&msg);
			net_parts_clear(p);
			return r;
		}
		more = zmq_msg_more(&msg);
		if (p->too_many || p->nr == max || parts_grow(p)) {
			p->too_many = true;
			zmq_msg_close(&msg);
			continue;
		}
		p->bytes += zmq_msg_size(&msg);
		zmq_msg_init(&p->msgs[p->nr]);
		zmq_msg_move(&p->msgs[p->nr++], &msg);
		zmq_msg_close(&msg);
	} while (more);
	return p->nr ? 0 : -ENOMEM;
}

/* ---- the decoder ---- */

struct reader {
	const uint8_t *p, *end;
};

static bool read_varint(struct reader *r, uint64_t *v)
{
	*v = 0;
	for (unsigned int shift = 0; shift < 70 && r->p < r->end; shift += 7) {
		uint8_t byte = *r->p++;

		if (shift < 64)
			*v |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return true;
	}
	return false;
}

static bool skip_value(struct reader *r, unsigned int wire_type)
{
	uint64_t n;

	switch (wire_type) {
	case 0:
		return read_varint(r, &n);
	case 1:
		n = 8;
		break;
	case 2:
		if (!read_varint(r, &n))
			return false;
		break;
	case 5:
		n = 4;
		break;
	default:
		return false;
	}
	if (n > (uint64_t)(r->end - r->p))
		return false;
	r->p += n;
	return true;
}

/*
 * No encoder repeats a field of the envelope. A header that does is refused before it reaches
 * protobuf-c, which merges what is repeated: that costs the square of its length.
 */
static bool envelope_is_sane(const void *data, size_t len)
{
	struct reader r = { data, (const uint8_t *)data + len };
	uint64_t seen[NET_MAX_HEADER_FIELDS];
	size_t nr = 0;

	while (r.p < r.end) {
		uint64_t tag;

		if (nr == NET_MAX_HEADER_FIELDS || !read_varint(&r, &tag))
			return false;
		for (size_t i = 0; i < nr; i++)
			if (seen[i] == tag >> 3)
				return false;
		seen[nr++] = tag >> 3;
		if (!skip_value(&r, tag & 7))
			return false;
	}
	return true;
}

uint64_t net_peek_id(const void *data, size_t len)
{
	struct reader r = { data, (const uint8_t *)data + len };
	uint64_t tag, id;

	/* Every encoder writes field 1 first. */
	if (!read_varint(&r, &tag) || tag != 1 << 3 || !read_varint(&r, &id))
		return 0;
	return id;
}

/* A MiB of empty submessages would become a hundred of structures: bounded memory instead. */
struct budget {
	size_t left;
};

static void *budget_alloc(void *data, size_t size)
{
	struct budget *b = data;

	if (size > b->left)
		return NULL;
	b->left -= size;
	return malloc(size ? size : 1);
}

static void budget_free(void *data, void *p)
{
	free(p);
}

static int decode(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
		  ProtobufCMessage **m, struct error *err)
{
	struct budget budget = { NET_HEADER_MEMORY };
	ProtobufCAllocator alloc = { budget_alloc, budget_free, &budget };

	if (len > PROTO_MAX_HEADER)
		return error_set(err, -EMSGSIZE, "a header of %zu bytes: at most %u are allowed",
				 len,
				 PROTO_MAX_HEADER);
	if (!envelope_is_sane(data, len))
		return error_set(err, -EPROTO, "the header is not a message of this protocol");
	*m = protobuf_c_message_unpack(type, &alloc, len, data);
	if (!*m)
		return error_set(err, -EPROTO, "the header is not a message of this protocol");
	return 0;
}

int net_decode_request(const void *data, size_t len, Vmdedup__Request **req, struct error *err)
{
	return decode(&vmdedup__request__descriptor, data, len, (ProtobufCMessage **)req, err);
}

int net_decode_reply(const void *data, size_t len, Vmdedup__Reply **reply, struct error *err)
{
	return decode(&vmdedup__reply__descriptor, data, len, (ProtobufCMessage **)reply, err);
}

static int check_sizes(size_t nr, uint64_t largest, uint64_t bytes, struct error *err)
{
	if (nr > PROTO_MAX_FRAMES)
		return error_set(err, -EMSGSIZE, "more than %d payload frames", PROTO_MAX_FRAMES);
	if (largest > PROTO_MAX_FRAME)
		return error_set(err, -EMSGSIZE,
				 "a payload frame of %llu bytes: at most %u are allowed",
				 (unsigned long long)largest, PROTO_MAX_FRAME);
	if (bytes > PROTO_MAX_PAYLOAD)
		return error_set(err, -EMSGSIZE, "a payload of %llu bytes: at most %u are allowed",
				 (unsigned long long)bytes, PROTO_MAX_PAYLOAD);
	return 0;
}

int net_check_payload(const struct net_parts *p, size_t first, uint32_t nr_said, struct error *err)
{
	uint64_t bytes = 0, largest = 0;
	size_t nr = p->nr - first;
	int r;

	for (size_t i = first; i < p->nr; i++) {
		size_t n = zmq_msg_size(&p->msgs[i]);

		bytes += n;
		if (n > largest)
			largest = n;
	}
	r = check_sizes(p->too_many ? PROTO_MAX_FRAMES + 1 : nr, largest, bytes, err);
	if (r)
		return r;
	if (nr != nr_said)
		return error_set(err, -EPROTO, "%zu payload frames where the header says %u", nr,
				 nr_said);
	return 0;
}

int net_check_frames(const struct net_frame *frames, size_t nr, struct error *err)
{
	uint64_t bytes = 0, largest = 0;

	for (size_t i = 0; i < nr; i++) {
		bytes += frames[i].len;
		if (frames[i].len > largest)
			largest = frames[i].len;
	}
	return check_sizes(nr, largest, bytes, err);
}

/* ---- the encoder ---- */

int net_pack(const ProtobufCMessage *m, zmq_msg_t *msg)
{
	size_t len = protobuf_c_message_get_packed_size(m);

	if (len > PROTO_MAX_HEADER)
		return -EMSGSIZE;
	if (zmq_msg_init_size(msg, len))
		return -ENOMEM;
	protobuf_c_message_pack(m, zmq_msg_data(msg));
	return 0;
}

static void frame_drop(const struct net_frame *frame)
{
	if (frame->free_fn)
		frame->free_fn((void *)frame->data, frame->hint);
}

int net_frame_to_msg(const struct net_frame *frame, zmq_msg_t *msg)
{
	if (frame->free_fn) {
		if (!zmq_msg_init_data(msg, (void *)frame->data, frame->len, frame->free_fn,
				       frame->hint))
			return 0;
		frame_drop(frame);
		return -ENOMEM;
	}
	if (zmq_msg_init_size(msg, frame->len))
		return -ENOMEM;
	if (frame->len)
		memcpy(zmq_msg_data(msg), frame->data, frame->len);
	return 0;
}

void net_frames_drop(const struct net_frame *frames, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		frame_drop(&frames[i]);
}
