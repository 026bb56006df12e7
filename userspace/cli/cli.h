/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command: `vmdedup NOUN VERB [OPTION...] [ARGUMENT...]`. Each noun has a file with a table of
 * its verbs; a verb is a function that gets its options parsed by its own table, and returns an
 * exit code.
 */
#ifndef VMDEDUP_CLI_H
#define VMDEDUP_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/config.h"
#include "base/error.h"

/* Exit codes, as documented in vmdedup(1). */
enum cli_exit {
	EXIT_OK = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_NOT_FOUND = 3,	/* no such image, version, volume, file */
	EXIT_IN_THE_WAY = 4,	/* exists already, or is in use */
	EXIT_UNREACHABLE = 5,	/* no agent, no meta server, no data server, no module */
	EXIT_BAD_CONTENT = 6,	/* verify: content is missing or differs */
	EXIT_INTERRUPTED = 130,
};

struct cli {
	const char *conf_path; /* NULL: the default */
	struct config conf;
};

struct verb {
	const char *noun;
	const char *name;    /* NULL: the noun is a command of its own */
	const char *args;    /* "SOURCE NAME" */
	const char *summary; /* one line */
	const char *help;    /* paragraphs and examples */
	int (*run)(struct cli *cli, const struct verb *verb, int argc, char **argv);
};

/* Each ends with an entry that is all NULL. */
extern const struct verb cluster_verbs[], image_verbs[], cache_verbs[], volume_verbs[],
	status_verbs[], peers_verbs[];
int cluster_backup_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_restore_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_migrate_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_resume_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int import_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int export_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int verify_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int diff_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int image_resize_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int volume_resize_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int handover_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int leases_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int break_lease_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int recover_run(struct cli *cli, const struct verb *verb, int argc, char **argv);

/* ---- options (options.c) ---- */

struct opt {
	const char *name;
	const char *arg; /* NULL: a flag */
	const char *help;
	bool *flag;
	const char **text;
	uint64_t *size;	  /* parsed by size_from_text() */
	uint64_t *number;
};
#define OPT_FLAG(n, p, h)      { .name = n, .flag = p, .help = h }
#define OPT_TEXT(n, a, p, h)   { .name = n, .arg = a, .text = p, .help = h }
#define OPT_SIZE(n, a, p, h)   { .name = n, .arg = a, .size = p, .help = h }
#define OPT_NUMBER(n, a, p, h) { .name = n, .arg = a, .number = p, .help = h }
#define OPT_END		       { .name = NULL }

/* Parses argv (argv[0] is the verb). True: go on, with *argv at the first argument and *argc
 * arguments, between @min and @max. False: return *code. */
bool cli_options(const struct verb *verb, const struct opt *opts, int *argc, char ***argv, int min,
		 int max, int *code);
void verb_help(const struct verb *verb, const struct opt *opts);

/* Prints "vmdedup: TEXT" and returns the exit code that fits the error. */
int cli_fail(const struct error *err);
int cli_exit_of(int r);

/* True once the user wants to stop (SIGINT, SIGTERM); cli_stop_fd() is readable then. */
void cli_catch_signals(void);
bool cli_stopped(void);
int cli_stop_fd(void);

#endif
