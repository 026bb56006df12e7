// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup: finds the verb and runs it. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/memory.h"
#include "cli/cli.h"

static const struct noun {
	const char *name;
	const char *summary;
	const struct verb *verbs;
} nouns[] = {
	{ "cluster", "create a cluster, look at it, collect its garbage", cluster_verbs },
	{ "image", "import, export, clone, list, verify images", image_verbs },
	{ "cache", "format, check and dump a local cache disk", cache_verbs },
	{ "volume", "attach images as block devices of this host", volume_verbs },
	{ "peers", "the hosts that this one gets blocks from", peers_verbs },
	{ "status", "this host's agent and the cluster at a glance", status_verbs },
};

static void help(FILE *f)
{
	fprintf(f, "usage: vmdedup [--conf FILE] NOUN VERB [OPTION...] [ARGUMENT...]\n\n"
		"Block devices for virtual machines, deduplicated over a fleet of hosts.\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(nouns); i++) {
		fprintf(f, "  %-8s %s\n", nouns[i].name, nouns[i].summary);
		for (const struct verb *v = nouns[i].verbs; v->noun && v->name; v++)
			fprintf(f, "    %-9s %-20s %s\n", v->name, v->args, v->summary);
	}
	fprintf(f, "\noptions:\n"
		"  --conf FILE   the configuration ($VMDEDUP_CONF, %s)\n"
		"  --version\n"
		"  --help        also after a noun or a verb\n\n"
		"The manual: man vmdedup\n", CONFIG_DEFAULT_PATH);
}

static void noun_help(FILE *f, const struct noun *n)
{
	fprintf(f, "usage: vmdedup %s VERB [OPTION...] [ARGUMENT...]\n\n%s\n\n", n->name, n->summary);
	for (const struct verb *v = n->verbs; v->noun; v++)
		fprintf(f, "  %-9s %-20s %s\n", v->name, v->args, v->summary);
	fprintf(f, "\n`vmdedup %s VERB --help` tells more\n", n->name);
}

static int run_verb(struct cli *cli, const struct verb *v, int argc, char **argv)
{
	bool wants_help = argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));
	struct error err = { 0 };
	int code;

	/* Help needs no configuration. */
	if (!wants_help && config_load(&cli->conf, cli->conf_path, &err))
		return cli_fail(&err);
	code = v->run(cli, v, argc, argv);
	if (!wants_help)
		config_free(&cli->conf);
	return code;
}

static int run_noun(struct cli *cli, const struct noun *n, int argc, char **argv)
{
	if (!n->verbs[0].name)
		return run_verb(cli, &n->verbs[0], argc, argv);
	if (argc < 2) {
		noun_help(stderr, n);
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		noun_help(stdout, n);
		return EXIT_OK;
	}
	for (const struct verb *v = n->verbs; v->noun; v++)
		if (!strcmp(v->name, argv[1]))
			return run_verb(cli, v, argc - 1, argv + 1);
	fprintf(stderr, "vmdedup: there is no `%s %s`\n", n->name, argv[1]);
	noun_help(stderr, n);
	return EXIT_USAGE;
}

static int dispatch(struct cli *cli, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "conf", required_argument, NULL, 'c' },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int key;

	while ((key = getopt_long(argc, argv, "+hV", longs, NULL)) != -1) {
		switch (key) {
		case 'c':
			cli->conf_path = optarg;
			break;
		case 'V':
			printf("vmdedup %s\n", VMDEDUP_VERSION);
			return EXIT_OK;
		case 'h':
			help(stdout);
			return EXIT_OK;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind == argc) {
		help(stderr);
		return EXIT_USAGE;
	}
	for (size_t i = 0; i < ARRAY_SIZE(nouns); i++)
		if (!strcmp(nouns[i].name, argv[optind]))
			return run_noun(cli, &nouns[i], argc - optind, argv + optind);
	fprintf(stderr, "vmdedup: \"%s\" is none of cluster, image, cache, volume, peers, "
		"status "
		"(vmdedup --help)\n", argv[optind]);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	struct cli cli = { 0 };
	int code;

	memory_keep(512U << 20);
	/* Embedded servers have nothing to say to who runs a command, unless something is wrong. */
	setenv("VMDEDUP_QUIET", "1", 0);
	code = dispatch(&cli, argc, argv);

	/* What was printed may not have reached its file. */
	if (fflush(stdout) || ferror(stdout)) {
		fprintf(stderr, "vmdedup: cannot write to standard output: %s\n", strerror(errno));
		return code ? code : EXIT_FAILED;
	}
	return code;
}
