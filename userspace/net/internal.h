/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of net/ share: keys, messages as ZeroMQ frames, and the decoder. */
#ifndef VMDEDUP_NET_INTERNAL_H
#define VMDEDUP_NET_INTERNAL_H

#include <stdatomic.h>
#include <zmq.h>

#include "net/net.h"
#include "net/role.h"

/*
 * What a closed socket may still send. Not 0: libzmq (4.3) then cuts off its connections' queues,
 * and a connection that the other side ends in just that moment, with half a message sent, fails
 * an assertion in libzmq and takes the process with it (zeromq/libzmq issue 3442). zmq_unbind()
 * cuts them off in the same way.
 */
#define NET_LINGER_MS		 500
#define NET_HEARTBEAT_MS	 5000
#define NET_HEARTBEAT_TIMEOUT_MS 20000
#define NET_HWM			 1000	    /* messages queued for one connection */
#define NET_SERVER_RCVHWM	 64	    /* requests of one connection read ahead */
#define NET_MAX_RAW_FRAME	 (4 << 20)  /* larger ones end the connection inside libzmq */
#define NET_HEADER_MEMORY	 (16 << 20) /* of one decoded header */
#define NET_MAX_HEADER_FIELDS	 16	    /* at the top level of a header */

#define NET_FEATURE_ROOM	 1ULL	      /* HELLO: who sends payload asks for room first */
#define NET_ROOM_USE_NS		 2000000000ULL /* room that a client has been given is void after this */
#define NET_ROOM_AGAIN_NS	 5000000000ULL /* an unanswered question for room is put again */

struct zap;

struct net_ctx {
	void *zmq;
	bool has_key;
	uint8_t public_key[32];
	uint8_t secret_key[32];
	struct zap *zap; /* NULL: this process serves no tcp:// with keys */
	atomic_uint_fast64_t names;
};

/* ---- endpoints (net/ctx.c) ---- */
enum net_transport { NET_INPROC, NET_IPC, NET_TCP };
/* -EINVAL: none that we know. */
int net_endpoint_transport(const char *endpoint, enum net_transport *transport, struct error *err);
bool net_endpoint_is_loopback(const char *endpoint);
/* A name for inproc:// that nobody has had: libzmq gives names back in its own time. */
void net_inproc_name(struct net_ctx *ctx, char name[64]);
/* Options that every socket has. */
int net_socket_init(void *socket, const char *endpoint, enum net_transport transport);

/* ---- who may connect (net/zap.c) ---- */
struct zap *zap_start(void *zmq, const char *clients_dir, struct error *err);
/* Any thread. NET_ROLE_NONE: it may not connect. */
enum net_role zap_role(struct zap *z, const uint8_t key[32]);
/* No key has a role: each has all rights. As of the last connection, or zap_role(). */
bool zap_is_open(struct zap *z);
void zap_stop(struct zap *zap);

/* ---- messages (net/message.c) ---- */
/* A message as it came, all frames; frames beyond what a message may have are not kept. */
struct net_parts {
	size_t nr;
	size_t room;
	uint64_t bytes; /* of the kept frames */
	bool too_many;
	zmq_msg_t *msgs;
};

/* 0, -EAGAIN: none there, or another errno. The parts are to be cleared and may be used again. */
int net_parts_recv(void *socket, size_t max, struct net_parts *p);
void net_parts_clear(struct net_parts *p);
void net_parts_free(struct net_parts *p);

/* Sends one part without waiting, and closes it in any case. A signal does not cut a message. */
int net_send_part(void *socket, zmq_msg_t *msg, bool more);

/* The id of a header that may be anything; 0: unreadable. */
uint64_t net_peek_id(const void *data, size_t len);
/* Decode a hostile header frame: -EMSGSIZE, -EPROTO. NULL arguments are not allowed but err. */
int net_decode_request(const void *data, size_t len, Vmdedup__Request **req, struct error *err);
int net_decode_reply(const void *data, size_t len, Vmdedup__Reply **reply, struct error *err);
/* The reply that @parts hold; takes them over, also when it fails (-ENOMEM, -EMSGSIZE, -EPROTO).
 * The caller frees it with net_reply_free(). (net/reply.c) */
int net_reply_new(struct net_parts *parts, struct net_reply **out, struct error *err);
/* Payload against the bounds and the header's count: -EMSGSIZE, -EPROTO. */
int net_check_payload(const struct net_parts *p, size_t first, uint32_t nr_said,
		      struct error *err);
/* The same for what this host is about to send. */
int net_check_frames(const struct net_frame *frames, size_t nr, struct error *err);

/* -EMSGSIZE, -ENOMEM */
int net_pack(const ProtobufCMessage *m, zmq_msg_t *msg);
/* Takes over the frame: @msg owns it, or it was freed (-ENOMEM). */
int net_frame_to_msg(const struct net_frame *frame, zmq_msg_t *msg);
void net_frames_drop(const struct net_frame *frames, size_t nr);

#endif
