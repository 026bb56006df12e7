/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests and replies over ZeroMQ: what a client and a server share.
 *
 * A message is one header frame (proto/vmdedup.proto) and payload frames. The decoder checks
 * every bound of proto/limits.h before anyone sees the message. inproc:// and ipc:// are local
 * and plain; tcp:// is CURVE, or plain on the loopback interface only when no key is configured.
 */
#ifndef VMDEDUP_NET_NET_H
#define VMDEDUP_NET_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/bytes.h"
#include "base/error.h"
#include "proto/vmdedup.pb-c.h"

/* One ZeroMQ context for a process, and this host's keys. Thread-safe after creation. Threads
 * inherit PR_SET_IO_FLUSHER: set it before net_ctx_new(), which starts ZeroMQ's own.
 * @curve_secret_file: key pair (zcert), NULL: no keys. @clients_dir: folder of the public keys
 * that may connect to servers of this process (read again when it changes), NULL: none. */
struct net_ctx;
struct net_ctx *net_ctx_new(const char *curve_secret_file, const char *clients_dir,
			    struct error *err);
void net_ctx_free(struct net_ctx *ctx); /* closes all; sockets must be gone */
const uint8_t *net_ctx_public_key(const struct net_ctx *ctx); /* 32 bytes, or NULL: no keys */
/* The key (32 bytes, or NULL: none) is one that may connect to this process's servers; without keys
 * of its own, no key is. Any thread. */
bool net_ctx_knows_key(struct net_ctx *ctx, const uint8_t *key);
/* No key in @clients_dir has a role, so each has all rights (net/role.h). Any thread. The second says so
 * in the log: for daemons whose requests need more than a host's key. */
bool net_ctx_keys_are_open(struct net_ctx *ctx);
void net_ctx_warn_of_open_keys(struct net_ctx *ctx);

/* A payload frame to send. With @free_fn the frame is sent without a copy, and @free_fn(data,
 * hint) runs (on any thread) when ZeroMQ is done with it; without, the bytes are copied. */
struct net_frame {
	const void *data;
	size_t len;
	void (*free_fn)(void *data, void *hint);
	void *hint;
};

/* ---- client (net/client.c): owned by one thread; reconnects by itself ---- */
struct net_client;

/* A reply. Header and frames live until net_reply_free(). */
struct net_reply {
	Vmdedup__Reply *header;
	size_t nr_frames;
	const struct net_frame *frames;
	void *priv;
};
void net_reply_free(struct net_reply *reply);
/* Frame @n in ZeroMQ's own memory, which outlives the reply: bytes_free() on any thread, before the
 * context. Once for each frame; reply->frames[n] is good as long as these. NULL: no memory. */
struct bytes *net_reply_take(struct net_reply *reply, size_t n);

/* @server_key: 32 bytes, or NULL. Says HELLO first on each connection. Does not wait. -EACCES:
 * the endpoint needs keys that are not configured. */
struct net_client *net_client_new(struct net_ctx *ctx, const char *endpoint,
				  const uint8_t *server_key, const char *role, struct error *err);
/* Pending calls end with -ECANCELED. Not from a callback of the client. */
void net_client_free(struct net_client *c);

/* Called from net_client_run() on the owner's thread: r 0 and a reply (free it), or a negative
 * errno (-ETIMEDOUT, -ECANCELED, -EPROTO, or why it could not be sent: -EMSGSIZE; -EAGAIN: too
 * many are pending) and reply NULL. A reply's own error is in its header. May submit more. */
typedef void (*net_done_fn)(void *arg, int r, struct net_reply *reply);

/* Send; payload waits here until the server has room for it. @done runs once, always, and never from
 * within this function. The request's id and payload_frames are filled in. A request that is not
 * answered when the connection breaks is sent again on the next one. The frames are taken over, whatever
 * is returned. A negative errno (-ENOMEM; -ECANCELED while the client is being freed): there is no call
 * and no @done. */
int net_client_submit(struct net_client *c, Vmdedup__Request *req, const struct net_frame *frames,
		      size_t nr_frames, int timeout_ms, net_done_fn done, void *arg);
/* Handle replies and timeouts; waits for the first at most @max_ms (0: not at all; -1: without
 * end, unless nothing is pending). 0, or -EINTR. */
int net_client_run(struct net_client *c, int max_ms);
/* For poll(): readable means call net_client_run(c, 0), until which it stays readable. */
int net_client_fd(struct net_client *c);
int net_client_next_timeout_ms(struct net_client *c); /* -1: none */
/* What this client sends was given room by somebody else, and must not wait for it here: one data server
 * forwards to another. Before the first submit. */
void net_client_need_no_room(struct net_client *c);
/* There is a connection now. Without one, what is pending waits for the next. */
bool net_client_is_connected(const struct net_client *c);
size_t net_client_pending(struct net_client *c);
/* As of the last net_client_run(). False as well before the first connection is made. */
bool net_client_is_connected(const struct net_client *c);

/* Submit and wait. A reply whose header has an error: returns its negative, err has its text;
 * *reply is set all the same (free it) so that its body can be read; NULL otherwise. */
int net_call(struct net_client *c, Vmdedup__Request *req, const struct net_frame *frames,
	     size_t nr_frames, int timeout_ms, struct net_reply *reply, struct error *err);

/* ---- server (net/server.c): one thread runs it ---- */
struct net_server;
struct net_request; /* one request, owned by the handler until it is replied to */

struct net_server_ops {
	/* Must reply, now or later, on the same thread. Requests that the key of whoever asks has not the
	 * role for (net/role.h) do not come here: they got EPERM. */
	void (*handle)(void *ctx, struct net_request *req);
	/* After each batch of requests that were there together (group commit). May be NULL. */
	void (*batch_end)(void *ctx);
	/* At least every @tick_ms of net_server_new(). May be NULL. */
	void (*tick)(void *ctx);
	/* Bytes of payload that clients may have on their way at a time: beyond it they wait, at their end
	 * (net/room.h). 0: no limit, nobody asks. */
	uint64_t room;
	/* Bytes of replies that may wait for all clients together, over TCP and ipc: beyond it those for
	 * whom more than 256 KiB wait get EBUSY, not done. 0: each has its own bound alone. */
	uint64_t queued;
};

/* @cluster: UUID for HELLO, copied; NULL: set it later. HELLO is answered by the server itself. */
struct net_server *net_server_new(struct net_ctx *net, const char *role, const uint8_t cluster[16],
				  const struct net_server_ops *ops, void *ctx, int tick_ms,
				  struct error *err);
void net_server_set_cluster(struct net_server *s, const uint8_t cluster[16]);
/* Up to 16 endpoints: inproc://, ipc:///path (mode 0600), tcp://address:port (port * allowed).
 * -EACCES: tcp needs [curve] secret and clients, unless without keys on loopback. */
int net_server_bind(struct net_server *s, const char *endpoint, struct error *err);
const char *net_server_endpoint(struct net_server *s, size_t n); /* as bound, port filled in */
/* Adds @fd to the poll set: @ready runs on the server's thread when it is readable. -ENOSPC. */
int net_server_watch(struct net_server *s, int fd, void (*ready)(void *arg), void *arg);
/* Runs until net_server_stop() (any thread, or a signal handler; also one that came before). A
 * batch ends at 256 requests or 64 MiB of payload. While 4096 requests or 512 MiB wait for their
 * replies no more are taken. */
int net_server_run(struct net_server *s, struct error *err);
void net_server_stop(struct net_server *s);
void net_server_free(struct net_server *s); /* frees requests that were never replied to */

struct net_server_stats {
	uint64_t requests; /* handed to ->handle() */
	uint64_t hellos;
	uint64_t asked;	   /* questions for room */
	uint64_t refused;  /* answered with an error before ->handle() */
	uint64_t dropped;  /* messages with no readable id */
	uint64_t lost;	   /* replies whose peer was gone or did not read */
	uint64_t peers;	   /* known now */
	uint64_t waiting;  /* requests not replied to now */
};
void net_server_stats(const struct net_server *s, struct net_server_stats *stats);

const Vmdedup__Request *net_request_header(const struct net_request *req);
size_t net_request_nr_frames(const struct net_request *req);
const void *net_request_frame(const struct net_request *req, size_t n, size_t *len);
const char *net_request_peer(const struct net_request *req); /* for logs */
/* The CURVE key by which whoever asks is connected, 32 bytes; NULL: a connection without keys. */
const uint8_t *net_request_key(const struct net_request *req);
/* Whoever asks will send @bytes of payload next: the reply brings room for them, as far as there is some.
 * False: a client of an older release, which does not ask, and there is none: it should try again later. */
bool net_request_expect(struct net_request *req, uint64_t bytes);
/* Fill @reply's body; id and payload_frames are filled in. Frees @req. */
void net_reply_send(struct net_request *req, Vmdedup__Reply *reply, const struct net_frame *frames,
		    size_t nr_frames);
void net_reply_error(struct net_request *req, int positive_errno, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
