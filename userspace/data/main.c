// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup-data: the data server as a daemon. */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "base/config.h"
#include "base/log.h"
#include "base/memory.h"
#include "data/server.h"
#include "lib/key.h"
#include "net/net.h"

static const char help[] =
	"usage: vmdedup-data [OPTION...]\n"
	"\n"
	"Holds blocks in lumps under one folder, and joins a meta server.\n"
	"\n"
	"  -c, --conf FILE        configuration (default " CONFIG_DEFAULT_PATH ")\n"
	"  -d, --dir DIR          folder of the disk ([data] dir)\n"
	"  -m, --meta ENDPOINTS   of the meta servers ([cluster] meta)\n"
	"  -l, --listen ENDPOINT  where to listen ([data] listen); may be given more than once\n"
	"  -e, --endpoint EP      what others connect to ([data] endpoint; default: the first -l)\n"
	"  -r, --reserve SIZE     bytes of the disk that stay free ([data] reserve)\n"
	"  -C, --capacity SIZE    bytes at most ([data] capacity; 0: the disk's)\n"
	"  -h, --help             this text\n"
	"  -V, --version          version\n"
	"\n"
	"SIZE takes K, M, G, T (powers of 1024).\n"
	"\n"
	"examples:\n"
	"  vmdedup-data --dir /srv/vmdedup --meta tcp://meta1:7401 --listen tcp://0.0.0.0:7402 \\\n"
	"               --endpoint tcp://data1:7402\n"
	"  vmdedup-data --dir /tmp/d1 --meta tcp://127.0.0.1:7401 --listen tcp://127.0.0.1:7412 \\\n"
	"               --capacity 20G\n";

#define MAX_LISTEN 8

struct options {
	const char *conf, *dir, *meta, *endpoint;
	const char *listen[MAX_LISTEN];
	size_t nr_listen;
	uint64_t reserve, capacity;
	bool has_reserve, has_capacity;
};

static int parse_size(const char *name, const char *text, uint64_t *bytes, bool *has)
{
	*has = true;
	if (!size_from_text(text, bytes))
		return 0;
	fprintf(stderr, "vmdedup-data: --%s: '%s' is not a size (try 20G)\n", name, text);
	return -EINVAL;
}

/* 0: go on; 1: done; negative: bad arguments, said. */
static int parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "conf", required_argument, NULL, 'c' },
		{ "dir", required_argument, NULL, 'd' },
		{ "meta", required_argument, NULL, 'm' },
		{ "listen", required_argument, NULL, 'l' },
		{ "endpoint", required_argument, NULL, 'e' },
		{ "reserve", required_argument, NULL, 'r' },
		{ "capacity", required_argument, NULL, 'C' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "c:d:m:l:e:r:C:hV", longs, NULL)) != -1) {
		int r = 0;

		switch (c) {
		case 'c':
			o->conf = optarg;
			break;
		case 'd':
			o->dir = optarg;
			break;
		case 'm':
			o->meta = optarg;
			break;
		case 'l':
			if (o->nr_listen == MAX_LISTEN) {
				fprintf(stderr, "vmdedup-data: more than %d --listen\n", MAX_LISTEN);
				return -EINVAL;
			}
			o->listen[o->nr_listen++] = optarg;
			break;
		case 'e':
			o->endpoint = optarg;
			break;
		case 'r':
			r = parse_size("reserve", optarg, &o->reserve, &o->has_reserve);
			break;
		case 'C':
			r = parse_size("capacity", optarg, &o->capacity, &o->has_capacity);
			break;
		case 'h':
			fputs(help, stdout);
			return 1;
		case 'V':
			puts("vmdedup-data " VMDEDUP_VERSION);
			return 1;
		default:
			fputs("Try 'vmdedup-data --help'.\n", stderr);
			return -EINVAL;
		}
		if (r)
			return r;
	}
	if (optind == argc)
		return 0;
	fprintf(stderr, "vmdedup-data: '%s' is not an option\nTry 'vmdedup-data --help'.\n",
		argv[optind]);
	return -EINVAL;
}

/* SIGTERM and SIGINT end the server in order: a thread waits for them, all others block them. */
static void *wait_for_signal(void *arg)
{
	sigset_t set;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigwait(&set, &sig);
	sd_notify(0, "STOPPING=1");
	data_server_stop(arg);
	return NULL;
}

static void block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error, like a full disk */
}

/* A lump for each of 1024 shards, of which a bounded number is open, and a socket a client. */
static void raise_files(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim))
		return;
	lim.rlim_cur = lim.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &lim))
		log_warn("raise the number of open files: %m");
}

static int bind_all(struct data_server *s, const struct options *o, struct error *err)
{
	for (size_t i = 0; i < o->nr_listen; i++) {
		int r = data_server_bind(s, o->listen[i], err);

		if (r)
			return r;
	}
	return 0;
}

static int serve(struct data_server *s, struct error *err)
{
	pthread_t waiter;
	int r = pthread_create(&waiter, NULL, wait_for_signal, s);

	if (r)
		return error_set(err, -r, "start a thread: %s", strerror(r));
	sd_notify(0, "READY=1\nSTATUS=serving");
	r = data_server_run(s, err);
	pthread_cancel(waiter);
	pthread_join(waiter, NULL);
	return r;
}

static int run(struct options *o, const struct config *conf, struct error *err)
{
	const char *meta = o->meta ? o->meta : conf->meta;
	struct data_options d = {
		.dir = o->dir ? o->dir : conf->data_dir,
		.meta = meta,
		.reserve = o->has_reserve ? o->reserve : conf->data_reserve,
		.capacity = o->has_capacity ? o->capacity : conf->data_capacity,
		.host = conf->host,
		.rack = conf->rack,
		.repair_rate = conf->data_repair_rate,
		.scrub_rate = conf->data_scrub_rate,
		.scrub_every_s = conf->data_scrub_every_s,
	};
	struct data_server *s;
	struct net_ctx *net;
	uint8_t key[32];
	int r;

	if (!meta || !strcmp(meta, "embedded"))
		return error_set(err, -EINVAL, "no meta server to join: give --meta ENDPOINT, or "
				 "[cluster] meta in the configuration");
	if (!strncmp(meta, "tcp://", 6) && conf->curve_servers) {
		r = cluster_server_key_load(conf->curve_servers, key, err);
		if (r)
			return r;
		d.meta_key = key;
	}
	if (!o->nr_listen)
		o->listen[o->nr_listen++] = conf->data_listen;
	d.endpoint = o->endpoint ? o->endpoint :
		     o->listen[0] == conf->data_listen ? conf->data_endpoint : o->listen[0];
	net = net_ctx_new(conf->curve_secret, conf->curve_clients, err);
	if (!net)
		return err->code;
	net_ctx_warn_of_open_keys(net);
	s = data_server_open(net, &d, err);
	r = s ? bind_all(s, o, err) : err->code;
	if (!r)
		r = serve(s, err);
	data_server_close(s);
	net_ctx_free(net);
	return r;
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	struct error err = { 0 };
	struct config conf;
	int r = parse(&o, argc, argv);

	if (r)
		return r < 0 ? 2 : 0;
	memory_keep(MEMORY_KEEP);
	r = config_load(&conf, o.conf, &err);
	if (r) {
		log_error("%s", err.text);
		return 2;
	}
	umask(077);
	block_signals();
	raise_files();
	r = run(&o, &conf, &err);
	if (r)
		log_error("%s", err.text);
	config_free(&conf);
	return r ? 1 : 0;
}
