/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * /etc/vmdedup/vmdedup.conf (or $VMDEDUP_CONF, or --conf): one file for all daemons and the
 * command of a host. An unknown section or key is an error that names the line.
 */
#ifndef VMDEDUP_BASE_CONFIG_H
#define VMDEDUP_BASE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"

#define CONFIG_DEFAULT_PATH "/etc/vmdedup/vmdedup.conf"

/* A push must be told to go on before the meta server takes it for abandoned. */
#define CONFIG_MIN_PUSH_RATE (64U << 10)

struct config {
	/* [cluster] */
	char *meta;	      /* "embedded" (default) or endpoints "tcp://h:p[,tcp://h:p]" */
	/* [store]: what the embedded servers, or those of this host, keep */
	char *store;	      /* default /var/lib/vmdedup: meta.sqlite, data/ */
	char *run;	      /* default /run/vmdedup: ipc sockets agent.sock meta.sock data.sock */
	/* [meta] */
	char *meta_listen;    /* default tcp://127.0.0.1:7401 */
	char *meta_store;     /* "postgresql://..." or a SQLite file; default <store>/meta.sqlite */
	/* [data] */
	char *data_dir;	      /* default <store>/data */
	char *data_listen;    /* default tcp://127.0.0.1:7402 */
	char *data_endpoint;  /* what others connect to; default data_listen */
	uint64_t data_reserve;/* bytes of the disk kept free; default 64 MiB */
	uint64_t data_capacity;/* bytes at most; 0: the disk's size */
	uint64_t data_repair_rate; /* bytes a second copied from other replicas; default 100 MiB */
	uint64_t data_scrub_rate;  /* bytes a second read to find damage; default 16 MiB; 0: none */
	uint64_t data_scrub_every_s; /* from the start of one scrub to the next; default a week */
	char *host;	      /* failure domain; default the host's name */
	char *rack;
	/* [agent] */
	char *cache;	      /* dedup-cache device, /dev/mapper/cache0; NULL: no kernel cache */
	char *cache_file;     /* plain-file cache instead (tests, swarms) */
	uint64_t cache_file_size;
	char *agent_listen;   /* serve peers here, tcp://ADDRESS:PORT; NULL: there are no peers */
	char *agent_endpoint; /* what peers connect to; default agent_listen */
	char *agent_rack;     /* peers of the same one come first; default rack */
	uint64_t filter_budget; /* bytes an hour that filters may cost, in and out; default 1 GiB */
	uint64_t push_age_s;  /* push when older than this; default 300; 0: only when asked */
	uint64_t push_bytes;  /* ... or more than this; default 256 MiB */
	uint64_t push_rate;   /* bytes a second of pushes in the background; default 0: no bound */
	/* [curve] */
	char *curve_secret;   /* file with this host's key pair (zcert); NULL: loopback only */
	char *curve_servers;  /* file with the meta server's public key */
	char *curve_clients;  /* folder of public keys that may connect */
};

/* path NULL: $VMDEDUP_CONF or the default path, which need not exist. */
int config_load(struct config *c, const char *path, struct error *err);
void config_free(struct config *c);
/* "64M", "1TiB", "4096": bytes. -EINVAL, -ERANGE. */
int size_from_text(const char *text, uint64_t *bytes);
/* "1.5 GiB" into a static-size buffer. */
const char *size_to_text(uint64_t bytes, char text[32]);

#endif
