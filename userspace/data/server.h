/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The data server, to be run by vmdedup-data or embedded in the agent and the command. */
#ifndef VMDEDUP_DATA_SERVER_H
#define VMDEDUP_DATA_SERVER_H

#include <stdint.h>
#include "base/error.h"
#include "net/net.h"

struct data_options {
	const char *dir;      /* created when missing; holds disk.uuid, lumps/, index/ */
	const char *meta;     /* the meta servers' endpoints, to join one; retried for ever */
	const uint8_t *meta_key; /* 32 bytes: the meta server's public key; NULL: local or loopback */
	const char *endpoint; /* what clients connect to, as told to the meta server */
	const char *host;
	const char *rack;
	uint64_t reserve;     /* bytes of the disk that stay free: ENOSPC before */
	uint64_t capacity;    /* bytes at most, 0: the disk's */
	uint64_t cache_bytes; /* of hot blocks in memory, 0: 64 MiB */
	uint64_t repair_rate; /* bytes a second copied from other replicas, 0: 100 MiB */
	uint64_t scrub_rate;  /* bytes a second read to find damage, 0: none */
	uint64_t scrub_every_s; /* from the start of one scrub to the next, 0: a week */
};

struct data_server;
/* -EBUSY: another server has the folder; -EPROTONOSUPPORT: newer format; -EUCLEAN. */
struct data_server *data_server_open(struct net_ctx *net, const struct data_options *o,
				     struct error *err);
int data_server_bind(struct data_server *s, const char *endpoint, struct error *err);
int data_server_run(struct data_server *s, struct error *err); /* one thread, until stop */
void data_server_stop(struct data_server *s);		       /* any thread */
void data_server_close(struct data_server *s);

#endif
