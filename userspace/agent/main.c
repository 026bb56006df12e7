// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "agent/daemon.h"
#include "base/log.h"
#include "base/memory.h"

static const char usage[] =
	"Usage: vmdedup-agent [--conf FILE] [--rack NAME]\n"
	"\n"
	"The agent of a host: answers the misses of the host's cache, deduplicates and stores what\n"
	"its virtual machines write, and, unless the configuration names meta servers, carries an\n"
	"embedded meta and data server. One agent runs on a host; it needs root for the cache.\n"
	"\n"
	"  --conf FILE  configuration (default $VMDEDUP_CONF, or " CONFIG_DEFAULT_PATH ")\n"
	"  --rack NAME  the rack that the host is in, instead of [agent] rack: blocks come from peers of\n"
	"               the same rack first\n"
	"  --help       this text\n"
	"  --version    the version\n"
	"\n"
	"Examples:\n"
	"  vmdedup cluster init            create the cluster that the agent will serve\n"
	"  vmdedup-agent                   run in the foreground\n"
	"  vmdedup-agent --rack r17        a host of that rack\n"
	"  systemctl start vmdedup-agent   run as a service\n"
	"  vmdedup status                  what it does, and what it waits for\n";

/*
 * The agent stands on the way that dirty pages take to be written: it must not wait for memory
 * that only its own work can free. Set before any thread starts: threads inherit the one, the
 * other is the process's.
 */
static void stay_out_of_reclaim(void)
{
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0))
		log_warn("cannot become an I/O flusher (%s): under memory pressure the agent may "
			 "wait for itself; run it as root",
			 strerror(errno));
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
		log_warn("cannot lock memory (%s): under memory pressure the agent may wait for "
			 "swap; raise LimitMEMLOCK",
			 strerror(errno));
}

/* The loop reads these from a descriptor; no thread may take them before. */
static void block_signals(void)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN };
	sigset_t set;

	sigaction(SIGPIPE, &ignore, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static int parse(int argc, char **argv, const char **conf, const char **rack)
{
	static const struct option options[] = {
		{ "conf", required_argument, NULL, 'c' },
		{ "rack", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'c':
			*conf = optarg;
			break;
		case 'r':
			*rack = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		case 'V':
			printf("vmdedup-agent %s\n", VMDEDUP_VERSION);
			exit(0);
		default:
			fputs("Try vmdedup-agent --help\n", stderr);
			return -EINVAL;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "vmdedup-agent: unexpected argument: %s\n", argv[optind]);
		return -EINVAL;
	}
	return 0;
}

static int serve(const struct config *config)
{
	struct cache *cache = NULL;
	struct error err = { 0 };
	struct daemon *d;
	int r;

	if (config->cache) {
		cache = cache_channel_new(config->cache, &err);
		if (!cache)
			goto fail;
	}
	d = daemon_new(config, cache, &err);
	if (!d)
		goto fail;
	r = daemon_run(d, &err);
	if (r)
		log_error("%s", err.text);
	else
		log_info("ending; misses wait for the next agent");
	if (!daemon_free(d)) {
		log_warn("a push still waits for a server; it goes on when the agent is started again");
		_exit(r ? 1 : 0);
	}
	return r;

fail:
	log_error("%s", err.text);
	return err.code ? err.code : -EIO;
}

int main(int argc, char **argv)
{
	const char *conf = NULL, *rack = NULL;
	struct error err = { 0 };
	struct config config;
	int r;

	if (parse(argc, argv, &conf, &rack))
		return 2;
	memory_keep(MEMORY_KEEP);
	if (config_load(&config, conf, &err)) {
		log_error("%s", err.text);
		return 2;
	}
	if (rack) {
		free(config.agent_rack);
		config.agent_rack = strdup(rack);
	}
	stay_out_of_reclaim();
	block_signals();
	r = serve(&config);
	config_free(&config);
	return r ? 1 : 0;
}
