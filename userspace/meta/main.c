// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup-meta: the meta server as a daemon. */
#include "base/cleanup.h"
#include "base/config.h"
#include "base/log.h"
#include "meta/server.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#define MAX_LISTEN 16

static const char help[] =
	"usage: vmdedup-meta [options]\n"
	"\n"
	"The meta server of a vmdedup cluster: names, recipes, counts, leases and the shard map.\n"
	"`vmdedup cluster init` makes the store that it serves.\n"
	"\n"
	"  -c, --conf FILE      configuration (default $VMDEDUP_CONF, else " CONFIG_DEFAULT_PATH
	")\n"
	"  -s, --store STORE    SQLite file, or postgresql://HOST[,HOST...]/DATABASE (default: [meta]\n"
	"                       store of the configuration, else <store>/meta.sqlite)\n"
	"  -l, --listen ADDRESS tcp://HOST:PORT (PORT * : any), ipc://PATH; may be repeated. "
	"Default:\n"
	"                       meta.listen of the configuration and ipc://<run>/meta.sock\n"
	"  -h, --help           this text\n"
	"  -V, --version        the version\n"
	"\n"
	"Beyond the loopback interface tcp needs CURVE keys ([curve] in the configuration).\n"
	"\n"
	"examples:\n"
	"  vmdedup-meta\n"
	"  vmdedup-meta --store /srv/vmdedup/meta.sqlite --listen tcp://127.0.0.1:7401\n"
	"  vmdedup-meta --store 'postgresql://vmdedup@pg1,pg2/vmdedup?sslmode=verify-full'\n"
	"  vmdedup-meta --listen tcp://10.0.0.5:7401 --listen ipc:///run/vmdedup/meta.sock\n";

struct options {
	const char *conf, *store;
	const char *listen[MAX_LISTEN];
	size_t nr_listen;
};

/* 0: run; 1: done; -EINVAL */
static int parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{"conf", required_argument, NULL, 'c'},	  {"store", required_argument, NULL, 's'},
		{"listen", required_argument, NULL, 'l'}, {"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},	  {0},
	};
	int opt;

	while ((opt = getopt_long(argc, argv, "c:s:l:hV", longs, NULL)) != -1) {
		switch (opt) {
		case 'c':
			o->conf = optarg;
			break;
		case 's':
			o->store = optarg;
			break;
		case 'l':
			if (o->nr_listen == MAX_LISTEN) {
				fprintf(stderr, "vmdedup-meta: at most %d addresses\n", MAX_LISTEN);
				return -EINVAL;
			}
			o->listen[o->nr_listen++] = optarg;
			break;
		case 'h':
			fputs(help, stdout);
			return 1;
		case 'V':
			puts("vmdedup-meta " VMDEDUP_VERSION);
			return 1;
		default:
			fputs("see vmdedup-meta --help\n", stderr);
			return -EINVAL;
		}
	}
	if (optind != argc) {
		fprintf(stderr, "vmdedup-meta: unknown argument \"%s\"; see --help\n",
			argv[optind]);
		return -EINVAL;
	}
	return 0;
}

static int bind_all(struct meta_server *s, const struct options *o, const struct config *conf,
		    struct error *err)
{
	char *ipc CLEANUP_FREE = NULL;
	size_t i;
	int r = 0;

	for (i = 0; !r && i < o->nr_listen; i++)
		r = meta_server_bind(s, o->listen[i], err);
	if (r || o->nr_listen)
		return r;
	if (asprintf(&ipc, "ipc://%s/meta.sock", conf->run) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (mkdir(conf->run, 0755) && errno != EEXIST)
		return error_set(err, -errno, "cannot make %s: %s", conf->run, strerror(errno));
	return meta_server_bind(s, conf->meta_listen, err) ?: meta_server_bind(s, ipc, err);
}

static void stop(void *server)
{
	meta_server_stop(server);
}

static int serve(struct meta_server *s, int signals, struct error *err)
{
	const char *endpoint;
	size_t i;
	int r;

	r = meta_server_watch(s, signals, stop, s);
	if (r)
		return error_set(err, r, "cannot watch for signals: %s", strerror(-r));
	for (i = 0; (endpoint = meta_server_endpoint(s, i)); i++)
		log_info("meta: serving on %s", endpoint);
	sd_notify(0, "READY=1\nSTATUS=serving");
	r = meta_server_run(s, err);
	sd_notify(0, "STOPPING=1");
	return r;
}

static int run(const struct options *o, int signals, struct error *err)
{
	struct meta_server *s = NULL;
	struct net_ctx *net = NULL;
	const char *store;
	struct config conf;
	int r;

	r = config_load(&conf, o->conf, err);
	if (r)
		return r;
	store = o->store ? o->store : conf.meta_store;
	net = net_ctx_new(conf.curve_secret, conf.curve_clients, err);
	if (net) {
		net_ctx_warn_of_open_keys(net);
		s = meta_server_open(net, store, err);
	}
	if (!s) {
		r = err->code;
		goto free_net;
	}
	r = bind_all(s, o, &conf, err) ?:
	    meta_server_govern(s, !strncmp(store, "postgres", 8), err) ?:
	    serve(s, signals, err);
	meta_server_close(s);
free_net:
	if (net)
		net_ctx_free(net);
	config_free(&conf);
	return r;
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	struct error err = { 0 };
	int signals, r;
	sigset_t set;

	r = parse(argc, argv, &o);
	if (r)
		return r < 0 ? 2 : 0;
	/* Blocked before any thread starts, read from a descriptor: a signal stops the server
	 * between two batches. */
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0) {
		log_error("meta: signalfd: %s", strerror(errno));
		return 1;
	}
	r = run(&o, signals, &err);
	if (r)
		log_error("meta: %s", err.text);
	close(signals);
	return r ? 1 : 0;
}
