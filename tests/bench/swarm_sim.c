// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Simulates thousands of hosts that copy or boot one image at once, with the daemons' own cores.
 *
 *   tests/bench/run swarm_sim                        the small ones, in a minute
 *   tests/bench/run swarm_sim --all                  those of Documentation/bench.rst
 *   tests/bench/run swarm_sim NAME [--seed N]        one; --list names them
 *   tests/bench/run swarm_sim NAME --hosts N --blocks N --block-shift N --slow N --no-racks    another form
 *   tests/bench/plot FILE.svg                        draws how many hosts were complete when
 *
 * What it models and what not is said in Documentation/bench.rst. Times are simulated: the machine that
 * it runs on makes no difference. They go to build/bench/swarm_sim.json.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "../sim/engine.h"
#include "../sim/swarm.h"

#define MIB	  1048576ULL

struct scenario {
	const char *name, *what;
	bool small;
	void (*set)(struct swarm_params *p);
};

/* All of 3 GB, as fast as may be, at 300 MB/s a host. */
static void copy(struct swarm_params *p, unsigned int hosts)
{
	p->hosts = hosts;
	p->block_shift = 20;
	p->blocks = p->touched = 2861;
	p->depth = 32;
	p->data_servers = 10;
	p->spread_ns = 500 * SIM_MS;
	p->trace = false;
	p->filters = false; /* nothing is in them */
}

static void copy_2600(struct swarm_params *p)
{
	copy(p, 2600);
	p->host_rate = 300000000;
	p->oversubscription = 1;
}

static void copy_2600_fast(struct swarm_params *p)
{
	copy(p, 2600);
}

static void copy_1000(struct swarm_params *p)
{
	copy(p, 1000);
}

static void copy_10000(struct swarm_params *p)
{
	copy(p, 10000);
	p->data_servers = 40;
	p->blocks = p->touched = 286;
}

static void copy_300(struct swarm_params *p)
{
	copy(p, 300);
}

/* 64 MiB of 1 GiB in 2 s of a guest's own time. */
static void boot(struct swarm_params *p, unsigned int hosts)
{
	p->hosts = hosts;
	p->block_shift = 20;
	p->blocks = 1024;
	p->touched = 64;
	p->think_ns = 2 * SIM_S / 64;
	p->data_servers = 10;
	p->filters = false; /* they are empty */
}

static void boot_100(struct swarm_params *p)
{
	boot(p, 100);
}

static void boot_1000(struct swarm_params *p)
{
	boot(p, 1000);
}

static void boot_1000_cold(struct swarm_params *p)
{
	boot(p, 1000);
	p->trace = false;
}

static void boot_1000_star(struct swarm_params *p)
{
	boot(p, 1000);
	p->peers = p->filters = false;
}

static void starts_10000(struct swarm_params *p)
{
	boot(p, 1000);
	p->volumes = 10;
}

static void boot_1000_deaths(struct swarm_params *p)
{
	boot(p, 1000);
	p->kill_percent = 5;
}

static void boot_10000(struct swarm_params *p)
{
	boot(p, 10000);
	p->data_servers = 40;
}

static const struct scenario scenarios[] = {
	{ "boot-100", "100 hosts boot", true, boot_100 },
	{ "copy-300", "300 hosts copy 3 GB", true, copy_300 },
	{ "boot-1000", "1,000 hosts boot", true, boot_1000 },
	{ "boot-1000-no-trace", "1,000 hosts boot, the first boot ever: no trace", false,
	  boot_1000_cold },
	{ "boot-1000-no-peers", "1,000 hosts boot, from data servers alone", false, boot_1000_star },
	{ "boot-1000-deaths", "1,000 hosts boot, 5 % of them die in the first second", false,
	  boot_1000_deaths },
	{ "starts-10000", "10,000 starts on 1,000 hosts", false, starts_10000 },
	{ "boot-10000", "10,000 hosts boot", false, boot_10000 },
	{ "copy-2600-limited", "2,600 hosts copy 3 GB, links of 300 MB/s, racks not oversubscribed",
	  false, copy_2600 },
	{ "copy-1000", "1,000 hosts copy 3 GB", false, copy_1000 },
	{ "copy-2600", "2,600 hosts copy 3 GB", false, copy_2600_fast },
	{ "copy-10000", "10,000 hosts copy 300 MB", false, copy_10000 },
};

static double seconds(const struct swarm_result *r, unsigned int percent)
{
	size_t i = r->complete * (size_t)percent / 100;

	return (double)r->times_ns[MIN(i, r->complete - 1U)] / 1e9;
}

/* What differs from the scenario; 0: nothing. */
struct form {
	uint64_t seed;
	unsigned int hosts, blocks, block_shift, slow_hosts;
	bool no_racks;
};

static int run(const struct scenario *s, const struct form *form, FILE *json, bool first)
{
	uint64_t seed = form->seed;
	uint64_t began = clock_mono_ns();
	struct swarm_params p;
	struct swarm_result r;
	unsigned int i;
	int err;

	swarm_defaults(&p);
	p.seed = seed;
	s->set(&p);
	p.hosts = form->hosts ? form->hosts : p.hosts;
	if (form->blocks) {
		p.touched = p.touched == p.blocks ? form->blocks : MIN(p.touched, form->blocks);
		p.blocks = form->blocks;
	}
	p.state_racks &= !form->no_racks;
	p.slow_hosts = form->slow_hosts;
	if (form->block_shift && form->block_shift <= p.block_shift) {
		p.blocks <<= p.block_shift - form->block_shift;
		p.touched <<= p.block_shift - form->block_shift;
		p.depth <<= p.block_shift - form->block_shift;
		p.think_ns >>= p.block_shift - form->block_shift;
		p.block_shift = form->block_shift;
	}
	err = swarm_run(&p, &r);
	if (err || !r.complete) {
		fprintf(stderr, "%s, seed %llu: %u of %u hosts complete: %s\n", s->name,
			(unsigned long long)seed, r.complete, p.hosts, strerror(-err));
		free(r.times_ns);
		return 1;
	}
	printf("%-20s %6.2f %6.2f %6.2f %6.2f  %6.2f  %8.1f  %9.0f  %7.2f  %5.1f  %s\n", s->name,
	       seconds(&r, 0), seconds(&r, 50), seconds(&r, 99), seconds(&r, 100),
	       (double)r.data_bytes / (double)r.unique_bytes,
	       (double)r.worst_server_messages / ((double)r.end_ns / 1e9),
	       (double)(r.peer_bytes + r.data_bytes) / (double)r.unique_bytes, /* copies that moved */
	       (double)r.far_bytes / (double)(r.peer_bytes + r.data_bytes),
	       (double)(clock_mono_ns() - began) / 1e9, s->what);
	fflush(stdout);
	if (json)
		fprintf(json, "%s\"%s%s%s%s\": {\"seed\": %llu, \"hosts\": %u, \"median_s\": %.3f, "
			"\"p99_s\": %.3f, \"worst_s\": %.3f, \"data_bytes\": %llu, \"unique_bytes\": %llu, "
			"\"data_messages\": %llu, \"redirects\": %llu, \"hedges\": %llu, "
			"\"filter_bytes\": %llu, \"far_share\": %.3f, \"others_worst_s\": %.3f, "
			"\"racks\": %s, \"what\": \"%s\", \"curve\": [", first ? "" : ",\n", s->name,
			form->no_racks ? ", no racks" : "", form->slow_hosts ? ", a slow link" : "",
			form->block_shift ? ", other blocks" : "", (unsigned long long)seed,
			p.hosts, seconds(&r, 50), seconds(&r, 99), seconds(&r, 100),
			(unsigned long long)r.data_bytes, (unsigned long long)r.unique_bytes,
			(unsigned long long)r.data_messages, (unsigned long long)r.data_redirects,
			(unsigned long long)r.hedges, (unsigned long long)r.filter_bytes,
			(double)r.far_bytes / (double)(r.peer_bytes + r.data_bytes),
			(double)r.others_ns / 1e9, p.state_racks ? "true" : "false", s->what);
	for (i = 0; json && i <= 100; i++)
		fprintf(json, "%s%.3f", i ? ", " : "", seconds(&r, i));
	if (json)
		fprintf(json, "]}");
	free(r.times_ns);
	return 0;
}

int main(int argc, char **argv)
{
	const char *names[32];
	size_t nr_names = 0, i, k, n = 0;
	struct form form = { .seed = 1 };
	bool all = false, bad = false;
	FILE *json;
	int a;

	for (a = 1; a < argc; a++) {
		if (!strcmp(argv[a], "--all")) {
			all = true;
		} else if (!strcmp(argv[a], "--seed") && a + 1 < argc) {
			form.seed = strtoull(argv[++a], NULL, 0);
		} else if (!strcmp(argv[a], "--hosts") && a + 1 < argc) {
			form.hosts = (unsigned int)strtoul(argv[++a], NULL, 0);
		} else if (!strcmp(argv[a], "--blocks") && a + 1 < argc) {
			form.blocks = (unsigned int)strtoul(argv[++a], NULL, 0);
		} else if (!strcmp(argv[a], "--block-shift") && a + 1 < argc) {
			form.block_shift = (unsigned int)strtoul(argv[++a], NULL, 0);
		} else if (!strcmp(argv[a], "--slow") && a + 1 < argc) {
			form.slow_hosts = (unsigned int)strtoul(argv[++a], NULL, 0);
		} else if (!strcmp(argv[a], "--no-racks")) {
			form.no_racks = true;
		} else if (!strcmp(argv[a], "--list")) {
			for (i = 0; i < ARRAY_SIZE(scenarios); i++)
				printf("%-20s %s\n", scenarios[i].name, scenarios[i].what);
			return 0;
		} else if (*argv[a] == '-' || nr_names == ARRAY_SIZE(names)) {
			fprintf(stderr, "usage: swarm_sim [--all | --list | NAME...] [--seed N] "
				"[--hosts N] [--blocks N] [--block-shift N] [--slow N] "
				"[--no-racks]\n");
			return strcmp(argv[a], "--help") ? 2 : 0;
		} else {
			names[nr_names++] = argv[a];
		}
	}
	setenv("VMDEDUP_QUIET", "1", 0);
	printf("seed %llu\n%-20s %6s %6s %6s %6s  %6s  %8s  %9s  %7s  %5s\n", (unsigned long long)form.seed, "",
	       "first", "median", "99 %", "worst", "server", "messages", "copies", "far", "took");
	json = fopen("build/bench/swarm_sim.json", "w");
	if (json)
		fprintf(json, "{");
	for (i = 0; i < ARRAY_SIZE(scenarios); i++) {
		bool wanted = all || (!nr_names && scenarios[i].small);

		for (k = 0; k < nr_names; k++)
			wanted |= !strcmp(names[k], scenarios[i].name);
		if (wanted)
			bad |= run(&scenarios[i], &form, json, !n++);
	}
	if (json) {
		fprintf(json, "}\n");
		fclose(json);
	}
	if (!n) {
		fprintf(stderr, "swarm_sim: no such simulation; see --list\n");
		return 2;
	}
	return bad;
}
