// SPDX-License-Identifier: GPL-2.0-or-later
/* Options of a verb: one table gives the parser and the help. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"
#include "cli/cli.h"

#define MAX_OPTS 24
#define HELP_KEY 'h'
#define FIRST_KEY 1000

static void usage_line(FILE *f, const struct verb *verb, bool options)
{
	fprintf(f, "usage: vmdedup %s%s%s%s%s%s\n", verb->noun, verb->name ? " " : "",
		verb->name ? verb->name : "", options ? " [OPTION...]" : "", *verb->args ? " " : "",
		verb->args);
}

static void opt_line(const char *name, const char *arg, const char *help)
{
	char left[64];

	snprintf(left, sizeof(left), "--%s%s%s", name, arg ? " " : "", arg ? arg : "");
	printf("  %-24s %s\n", left, help);
}

void verb_help(const struct verb *verb, const struct opt *opts)
{
	usage_line(stdout, verb, true);
	printf("\n%s\n\noptions:\n", verb->summary);
	for (const struct opt *o = opts; o->name; o++)
		opt_line(o->name, o->arg, o->help);
	opt_line("help", NULL, "this text");
	if (verb->help)
		printf("\n%s", verb->help);
}

static int opt_take(const struct opt *o, const char *value)
{
	char *end;

	if (o->flag) {
		*o->flag = true;
		return 0;
	}
	if (o->text) {
		*o->text = value;
		return 0;
	}
	if (o->size) {
		if (!size_from_text(value, o->size))
			return 0;
		fprintf(stderr, "vmdedup: --%s: \"%s\" is not a size such as 4096, 256K or 1.5GiB\n",
			o->name, value);
		return -EINVAL;
	}
	errno = 0;
	*o->number = strtoull(value, &end, 10);
	if (!errno && *value >= '0' && *value <= '9' && !*end)
		return 0;
	fprintf(stderr, "vmdedup: --%s: \"%s\" is not a number\n", o->name, value);
	return -EINVAL;
}

static int usage_error(const struct verb *verb)
{
	usage_line(stderr, verb, true);
	fprintf(stderr, "`vmdedup %s%s%s --help` tells more\n", verb->noun, verb->name ? " " : "",
		verb->name ? verb->name : "");
	return EXIT_USAGE;
}

bool cli_options(const struct verb *verb, const struct opt *opts, int *argc, char ***argv, int min,
		 int max, int *code)
{
	struct option longs[MAX_OPTS + 2] = { 0 };
	char **args = *argv;
	int n = 0, key;

	for (; opts[n].name && n < MAX_OPTS; n++)
		longs[n] = (struct option){ opts[n].name, opts[n].arg ? required_argument :
					    no_argument, NULL, FIRST_KEY + n };
	longs[n] = (struct option){ "help", no_argument, NULL, HELP_KEY };
	optind = 0; /* start over: main() has parsed what stands before the noun */
	while ((key = getopt_long(*argc, args, "h", longs, NULL)) != -1) {
		if (key == HELP_KEY) {
			verb_help(verb, opts);
			*code = EXIT_OK;
			return false;
		}
		if (key == '?' || opt_take(&opts[key - FIRST_KEY], optarg)) {
			*code = usage_error(verb);
			return false;
		}
	}
	*argc -= optind;
	*argv += optind;
	if (*argc >= min && *argc <= max)
		return true;
	fprintf(stderr, "vmdedup: %s\n", *argc < min ? "an argument is missing" :
		"too many arguments");
	*code = usage_error(verb);
	return false;
}
