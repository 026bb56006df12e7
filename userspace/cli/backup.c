// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup cluster: backup, restore, migrate-store, resume-deletion. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "cli/check.h"
#include "cli/cli.h"
#include "cli/ui.h"
#include "meta/backup.h"

static int show_stats(const struct backup_stats *s, bool json, const char *done)
{
	char size[32];

	if (json)
		json_show(json_pack("{s:I, s:I, s:I}", "rows", (json_int_t)s->rows, "images",
				    (json_int_t)s->images, "bytes", (json_int_t)s->bytes));
	else
		printf("%s: %" PRIu64 " images, %" PRIu64 " rows, %s\n", done, s->images, s->rows,
		       size_to_text(s->bytes, size));
	return EXIT_OK;
}

int cluster_backup_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const char *store = NULL;
	bool json = false;
	const struct opt opts[] = {
		OPT_TEXT("store", "STORE", &store, "another store than the configured one"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct backup_stats stats;
	struct error err = { 0 };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (meta_backup(store ? store : cli->conf.meta_store, argv[0], &stats, &err))
		return cli_fail(&err);
	return show_stats(&stats, json, "backed up");
}

int cluster_restore_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const char *store = NULL;
	bool json = false;
	const struct opt opts[] = {
		OPT_TEXT("store", "STORE", &store, "another store than the configured one"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct backup_stats stats;
	struct error err = { 0 };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (meta_restore(argv[0], store ? store : cli->conf.meta_store, &stats, &err))
		return cli_fail(&err);
	if (!json)
		fputs("Data servers delete nothing until `vmdedup cluster resume-deletion`.\n",
		      stderr);
	return show_stats(&stats, json, "restored");
}

int cluster_migrate_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct backup_stats stats;
	struct error err = { 0 };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (meta_migrate(cli->conf.meta_store, argv[0], &stats, &err))
		return cli_fail(&err);
	if (!json)
		fprintf(stderr, "%s is %s.moved now: set [meta] store to the new one.\n",
			cli->conf.meta_store, cli->conf.meta_store);
	return show_stats(&stats, json, "moved");
}

/* ---- resume-deletion ---- */

struct findings {
	struct check counts;
	struct cluster_missing blocks;
	uint8_t history[16];
	bool suspended;
};

static int ask_info(struct connection *cn, struct findings *f, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterInfo ask = VMDEDUP__CLUSTER_INFO__INIT;
	const Vmdedup__ClusterInfoReply *info;
	struct net_reply reply;
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &ask;
	r = cluster_call(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	info = r ? NULL : reply.header->cluster_info;
	if (info && (reply.header->body_case != VMDEDUP__REPLY__BODY_CLUSTER_INFO ||
		     info->history.len != sizeof(f->history)))
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	if (!r) {
		memcpy(f->history, info->history.data, sizeof(f->history));
		f->suspended = info->deletion_suspended;
	}
	net_reply_free(&reply);
	return r;
}

static int resume(struct connection *cn, struct findings *f, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__DeletionResume body = VMDEDUP__DELETION_RESUME__INIT;
	Vmdedup__WholeReplicas whole[NR_SHARDS], *list[NR_SHARDS];
	struct net_reply reply;
	uint32_t i;
	int r;

	for (i = 0; i < f->blocks.nr_whole; i++) {
		vmdedup__whole_replicas__init(&whole[i]);
		whole[i].shard = f->blocks.whole[i].shard;
		whole[i].servers = f->blocks.whole[i].servers;
		whole[i].n_servers = f->blocks.whole[i].nr;
		list[i] = &whole[i];
	}
	body.whole = list;
	body.n_whole = f->blocks.nr_whole;
	body.history = (ProtobufCBinaryData){ sizeof(f->history), f->history };
	req.body_case = VMDEDUP__REQUEST__BODY_DELETION_RESUME;
	req.deletion_resume = &body;
	r = cluster_mutate(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	net_reply_free(&reply);
	return r;
}

static bool stopped(void *arg)
{
	return cli_stopped();
}

static int look(struct connection *cn, struct findings *f, struct error *err)
{
	int r = check_counts(cn, &f->counts, err);

	return r ?: cluster_find_missing(cn->cluster, stopped, NULL, &f->blocks, err);
}

static bool is_sound(const struct findings *f)
{
	return !f->counts.problems && !f->blocks.missing && !f->blocks.scattered &&
	       !f->blocks.silent;
}

static void show(const struct findings *f, bool resumed, bool json)
{
	if (json) {
		json_show(json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "blocks",
				    (json_int_t)f->blocks.blocks, "missing",
				    (json_int_t)f->blocks.missing, "elsewhere",
				    (json_int_t)f->blocks.elsewhere, "fewer_copies",
				    (json_int_t)f->blocks.fewer, "scattered",
				    (json_int_t)f->blocks.scattered, "shards_to_repair",
				    (json_int_t)f->blocks.nr_whole, "silent",
				    (json_int_t)f->blocks.silent, "problems",
				    (json_int_t)f->counts.problems, "resumed", resumed));
		return;
	}
	printf("%" PRIu64 " blocks are named: %" PRIu64 " of them are on no data server, %" PRIu64
	       " on fewer than they should be; %" PRIu64 " wrong counts; %" PRIu64
	       " lists that data servers did not give\n", f->blocks.blocks, f->blocks.missing,
	       f->blocks.fewer, f->counts.problems, f->blocks.silent);
	if (f->blocks.elsewhere)
		printf("%" PRIu64 " of those on no data server are on others than the map gives their "
		       "shard\n", f->blocks.elsewhere);
	if (f->blocks.nr_whole)
		printf("%u shards are to be copied again from the data servers that have them whole\n",
		       f->blocks.nr_whole);
	if (resumed)
		printf("deletion goes on\n");
}

/* A person agrees: on a terminal, or by --yes. */
static bool agreed(bool yes)
{
	char line[16] = "";

	if (yes || !isatty(STDIN_FILENO))
		return yes;
	fputs("What was pushed since the backup is not named any more, and the next collection deletes "
	      "it.\nCaches that still have it can recover it before. Type \"yes\" to go on: ", stderr);
	return fgets(line, sizeof(line), stdin) && !strcmp(line, "yes\n");
}

static int decide(struct connection *cn, struct findings *f, bool yes, bool force, bool json)
{
	struct error err = { 0 };
	int r;

	if (f->blocks.elsewhere) { /* --force is for what is lost anyway */
		show(f, false, json);
		fputs("vmdedup: deletion stays suspended: some named blocks are only on data servers that "
		      "would delete them; import their sources again, or remove the images (`vmdedup "
		      "image verify` names them)\n", stderr);
		return EXIT_BAD_CONTENT;
	}
	if (!is_sound(f) && !force) {
		show(f, false, json);
		fputs("vmdedup: deletion stays suspended: bring the silent data servers back, or remove "
		      "what cannot be had (`vmdedup image verify` names it); --force goes on "
		      "without\n", stderr);
		return EXIT_BAD_CONTENT;
	}
	if (!agreed(yes)) {
		show(f, false, json);
		fputs("vmdedup: deletion stays suspended: --yes says that it may go on\n", stderr);
		return EXIT_FAILED;
	}
	r = resume(cn, f, &err);
	if (r)
		return cli_fail(&err);
	show(f, true, json);
	return EXIT_OK;
}

int cluster_resume_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, yes = false, force = false;
	const struct opt opts[] = {
		OPT_FLAG("yes", &yes, "agree without being asked"),
		OPT_FLAG("force", &force, "also when named blocks are missing or counts are wrong"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct findings f = { 0 };
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	cli_catch_signals();
	f.counts.list = json_array();
	r = ask_info(&cn, &f, &err);
	if (!r && !f.suspended) {
		fputs("deletion is not suspended\n", stderr);
		code = EXIT_OK;
	} else {
		r = r ?: look(&cn, &f, &err);
		code = r ? cli_fail(&err) : decide(&cn, &f, yes, force, json);
	}
	json_decref(f.counts.list);
	connect_close(&cn);
	return code;
}
