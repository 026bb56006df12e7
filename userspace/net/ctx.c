// SPDX-License-Identifier: GPL-2.0-or-later
/* The ZeroMQ context of a process, its keys, and which endpoints may be used without them. */
#include <arpa/inet.h>
#include <czmq.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fingerprint.h"
#include "base/log.h"
#include "net/internal.h"

#define NET_MAX_SOCKETS 8192
#define NET_IO_THREADS	2

static int load_keys(struct net_ctx *ctx, const char *file, struct error *err)
{
	zcert_t *cert;

	if (!zmq_has("curve"))
		return error_set(err, -ENOTSUP, "this libzmq was built without CURVE");
	if (access(file, R_OK))
		return error_set(err, -errno, "cannot read [curve] secret, %s: %s", file,
				 strerror(errno));
	cert = zcert_load(file);
	if (!cert)
		return error_set(err, -EINVAL, "[curve] secret, %s, is not a key file", file);
	memcpy(ctx->public_key, zcert_public_key(cert), 32);
	memcpy(ctx->secret_key, zcert_secret_key(cert), 32);
	zcert_destroy(&cert);
	if (mem_is_zero(ctx->secret_key, 32))
		return error_set(err, -EINVAL,
				 "[curve] secret, %s, holds a public key only: name the file with "
				 "the secret key",
				 file);
	ctx->has_key = true;
	return 0;
}

struct net_ctx *net_ctx_new(const char *curve_secret_file, const char *clients_dir,
			    struct error *err)
{
	struct net_ctx *ctx = calloc(1, sizeof(*ctx));

	if (!ctx) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	ctx->zmq = zmq_ctx_new();
	if (!ctx->zmq) {
		error_set(err, -ENOMEM, "cannot start ZeroMQ: %s", zmq_strerror(errno));
		goto free_ctx;
	}
	zmq_ctx_set(ctx->zmq, ZMQ_IO_THREADS, NET_IO_THREADS);
	zmq_ctx_set(ctx->zmq, ZMQ_MAX_SOCKETS, NET_MAX_SOCKETS);
	zmq_ctx_set(ctx->zmq, ZMQ_BLOCKY, 0);
	if (clients_dir && !curve_secret_file) {
		error_set(err, -EINVAL,
			  "[curve] clients needs [curve] secret: this host's own keys");
		goto free_ctx;
	}
	if (curve_secret_file && load_keys(ctx, curve_secret_file, err))
		goto free_ctx;
	/* Before any socket listens: without it, ZeroMQ would let every key in. */
	if (clients_dir) {
		ctx->zap = zap_start(ctx->zmq, clients_dir, err);
		if (!ctx->zap)
			goto free_ctx;
	}
	return ctx;

free_ctx:
	net_ctx_free(ctx);
	return NULL;
}

void net_ctx_free(struct net_ctx *ctx)
{
	if (!ctx)
		return;
	zap_stop(ctx->zap);
	if (ctx->zmq)
		while (zmq_ctx_term(ctx->zmq) && errno == EINTR)
			;
	OPENSSL_cleanse(ctx->secret_key, sizeof(ctx->secret_key));
	free(ctx);
}

const uint8_t *net_ctx_public_key(const struct net_ctx *ctx)
{
	return ctx->has_key ? ctx->public_key : NULL;
}

bool net_ctx_knows_key(struct net_ctx *ctx, const uint8_t *key)
{
	if (!ctx->has_key)
		return !key;
	return key && ctx->zap && zap_role(ctx->zap, key);
}

bool net_ctx_keys_are_open(struct net_ctx *ctx)
{
	return ctx->zap && zap_is_open(ctx->zap);
}

void net_ctx_warn_of_open_keys(struct net_ctx *ctx)
{
	if (net_ctx_keys_are_open(ctx))
		log_warn("no key in the folder of [curve] clients has a role: each of them may all that "
			 "an administrator and a data server may; see \"Roles of keys\" in "
			 "operations.rst");
}

int net_endpoint_transport(const char *endpoint, enum net_transport *transport, struct error *err)
{
	static const char *const schemes[] = {
		[NET_INPROC] = "inproc://",
		[NET_IPC] = "ipc://",
		[NET_TCP] = "tcp://",
	};

	for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
		size_t n = strlen(schemes[i]);

		if (strncmp(endpoint, schemes[i], n) || !endpoint[n])
			continue;
		/* A socket with an abstract name ("ipc://@x") has no permissions. */
		if (i == NET_IPC && endpoint[n] != '/')
			return error_set(err, -EINVAL, "%s: an ipc endpoint is a path, ipc:///...",
					 endpoint);
		*transport = i;
		return 0;
	}
	return error_set(err, -EINVAL, "%s: not an endpoint; tcp://, ipc:// and inproc:// are",
			 endpoint);
}

bool net_endpoint_is_loopback(const char *endpoint)
{
	struct in6_addr in6;
	struct in_addr in;
	char host[64];

	if (sscanf(endpoint, "tcp://[%63[^]]]:", host) == 1)
		return inet_pton(AF_INET6, host, &in6) == 1 && IN6_IS_ADDR_LOOPBACK(&in6);
	return sscanf(endpoint, "tcp://%63[^:]:", host) == 1 &&
	       inet_pton(AF_INET, host, &in) == 1 && ntohl(in.s_addr) >> 24 == 127;
}

void net_inproc_name(struct net_ctx *ctx, char name[64])
{
	snprintf(name, 64, "inproc://vmdedup-%llu",
		 (unsigned long long)atomic_fetch_add_explicit(&ctx->names, 1, memory_order_relaxed));
}

static int set_int(void *socket, int option, int value)
{
	return zmq_setsockopt(socket, option, &value, sizeof(value)) ? -errno : 0;
}

int net_socket_init(void *socket, const char *endpoint, enum net_transport transport)
{
	const int64_t max_frame = NET_MAX_RAW_FRAME;
	int r;

	r = set_int(socket, ZMQ_LINGER, NET_LINGER_MS);
	r = r ?: set_int(socket, ZMQ_SNDHWM, NET_HWM);
	r = r ?: set_int(socket, ZMQ_RCVHWM, NET_HWM);
	if (!r && zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_frame, sizeof(max_frame)))
		r = -errno;
	if (transport != NET_TCP)
		return r;
	/* A peer whose host is gone says nothing: notice it. */
	r = r ?: set_int(socket, ZMQ_HEARTBEAT_IVL, NET_HEARTBEAT_MS);
	r = r ?: set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, NET_HEARTBEAT_TIMEOUT_MS);
	if (strchr(endpoint, '['))
		r = r ?: set_int(socket, ZMQ_IPV6, 1);
	return r;
}
