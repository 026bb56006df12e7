// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup cluster: init, info, gc, check, key. The others: servers.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "cli/check.h"
#include "cli/key.h"
#include "cli/servers.h"
#include "cli/stores.h"
#include "cli/ui.h"
#include "meta/server.h"
#include "meta/store.h"
#include "proto/limits.h"

/* ---- init ---- */

static int block_shift_of(uint64_t size, unsigned int *shift, struct error *err)
{
	for (unsigned int s = BLOCK_SHIFT_MIN; s <= BLOCK_SHIFT_MAX; s++) {
		if (size != 1ULL << s)
			continue;
		*shift = s;
		return 0;
	}
	return error_set(err, -EINVAL, "a block size must be a power of two from 4K to 1M");
}

static int folder_make(const char *path, struct error *err)
{
	CLEANUP_FREE char *copy = strdup(path);

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	for (char *p = copy + 1;; p++) {
		char end = *p;

		if (end && end != '/')
			continue;
		*p = '\0';
		if (mkdir(copy, 0700) && errno != EEXIST)
			return error_set(err, -errno, "cannot make the folder %s: %s", copy,
					 strerror(errno));
		*p = end;
		if (!end)
			return 0;
	}
}

static int init_parse(struct meta_init *init, uint64_t block_size, const char *fingerprint,
		      uint64_t replicas, uint64_t min_copies, struct error *err)
{
	if (fp_algorithm_from_name(fingerprint, &init->algorithm))
		return error_set(err, -EINVAL, "--fingerprint: \"%s\" is none of sha256, sha1, md5",
				 fingerprint);
	if (replicas < 1 || replicas > 4)
		return error_set(err, -EINVAL, "--replicas: from 1 to 4");
	if (min_copies < 1 || min_copies > replicas)
		return error_set(err, -EINVAL, "--min-copies: from 1 to the number of replicas");
	if (!*init->name || strlen(init->name) > 63)
		return error_set(err, -EINVAL, "--name: 1 to 63 bytes");
	init->replicas = replicas;
	init->min_copies = min_copies;
	return block_shift_of(block_size, &init->block_shift, err);
}

static void init_warn(const struct meta_init *init)
{
	if (init->algorithm == FP_SHA256)
		return;
	fprintf(stderr, "vmdedup: warning: collisions of %s can be made on purpose: whoever may "
		"write to one image could change another's content. Only for a fleet in which all "
		"guests are trusted.\n", fp_algorithm_name(init->algorithm));
}

static int init_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	struct meta_init init = { 0 };
	const char *name = "vmdedup", *fingerprint = "sha256", *store = NULL;
	uint64_t block_size = 1ULL << BLOCK_SHIFT_DEFAULT, replicas = 1, min_copies = 0;
	const struct opt opts[] = {
		OPT_TEXT("name", "NAME", &name, "of the cluster, for people (vmdedup)"),
		OPT_SIZE("block-size", "SIZE", &block_size, "power of two from 4K to 1M (256K)"),
		OPT_TEXT("fingerprint", "ALG", &fingerprint, "sha256, sha1 or md5 (sha256)"),
		OPT_NUMBER("replicas", "N", &replicas, "copies of each block, 1 to 4 (1)"),
		OPT_NUMBER("min-copies", "N", &min_copies,
			   "copies that a commit needs (half of the replicas)"),
		OPT_TEXT("store", "STORE", &store,
			 "postgresql://... or the path of a SQLite file ([meta] store)"),
		OPT_END
	};
	struct error err = { 0 };
	char size[32];
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	init.name = name;
	if (init_parse(&init, block_size, fingerprint, replicas,
		       min_copies ? min_copies : (replicas + 1) / 2, &err)) {
		cli_fail(&err);
		return EXIT_USAGE;
	}
	init_warn(&init);
	store = store ? store : cli->conf.meta_store;
	r = store_is_pg(store) ? 0 : folder_make(cli->conf.store, &err);
	if (!r)
		r = meta_store_init(store, &init, &err);
	if (r)
		return cli_fail(&err);
	printf("cluster %s created in %s: blocks of %s, %s, %u replica%s\n", name,
	       store_is_pg(store) ? "PostgreSQL" : cli->conf.store,
	       size_to_text(block_size, size), fp_algorithm_name(init.algorithm), init.replicas,
	       init.replicas == 1 ? "" : "s");
	return EXIT_OK;
}

/* ---- info ---- */

static int info_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct stores stores = { 0 };
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	r = stores_ask(&cn, &stores, &err);
	if (!r && json)
		json_show(stores_json(&stores));
	else if (!r)
		stores_print(&stores);
	stores_free(&stores);
	connect_close(&cn);
	return r ? cli_fail(&err) : EXIT_OK;
}

/* ---- gc ---- */

static bool gc_stopped(void *arg)
{
	return cli_stopped();
}

/* What waits to be collected; nothing is done. */
static int gc_status(struct connection *cn, bool json, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT, ask = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcStep step = VMDEDUP__GC_STEP__INIT;
	Vmdedup__ClusterInfo info = VMDEDUP__CLUSTER_INFO__INIT;
	struct net_reply reply = { 0 }, about = { 0 };
	json_int_t dying, dead, pushes;
	int r;

	step.status = true;
	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &step;
	ask.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	ask.cluster_info = &info;
	r = cluster_call(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	if (!r)
		r = cluster_call(cn->cluster, &ask, NULL, 0, CLI_TIMEOUT_MS, &about, err);
	if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_GC_STEP ||
		   about.header->body_case != VMDEDUP__REPLY__BODY_CLUSTER_INFO))
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	if (r)
		goto free_replies;
	dying = (json_int_t)reply.header->gc_step->dying_nodes;
	dead = (json_int_t)reply.header->gc_step->dead_blocks;
	pushes = (json_int_t)about.header->cluster_info->pushes;
	if (json)
		json_show(json_pack("{s:I, s:I, s:I}", "dying_nodes", dying, "dead_blocks", dead,
				    "open_pushes", pushes));
	else
		printf("%lld recipe nodes wait to be taken apart, %lld blocks to be collected; %lld pushes "
		       "are open\n", (long long)dying, (long long)dead, (long long)pushes);
free_replies:
	net_reply_free(&about);
	net_reply_free(&reply);
	return r;
}

static int gc_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, full = false, now = false, status = false;
	uint64_t idle = 0;
	const struct opt opts[] = {
		OPT_FLAG("status", &status, "only say what waits to be collected"),
		OPT_FLAG("now", &now, "collect now (what the command does without options)"),
		OPT_NUMBER("idle-pushes", "SECONDS", &idle,
			   "first give up pushes that nobody has continued for so long (900)"),
		OPT_FLAG("full", &full, "also list every copy on the data servers and delete unknown ones"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct cluster_gc_stats stats;
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	if (status && (now || full)) {
		fputs("vmdedup: --status collects nothing: leave --now and --full out\n", stderr);
		return EXIT_USAGE;
	}
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	if (status) {
		r = gc_status(&cn, json, &err);
		connect_close(&cn);
		return r ? cli_fail(&err) : EXIT_OK;
	}
	cli_catch_signals();
	r = cluster_gc(cn.cluster, full, idle, gc_stopped, NULL, &stats, &err);
	connect_close(&cn);
	if (r)
		return cli_fail(&err);
	if (json)
		json_show(json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
				    "freed_nodes", (json_int_t)stats.freed_nodes,
				    "dead_blocks", (json_int_t)stats.dead_blocks,
				    "deleted_blocks", (json_int_t)stats.deleted_blocks,
				    "left_blocks", (json_int_t)stats.left_blocks,
				    "deleted_copies", (json_int_t)stats.deleted_copies,
				    "kept_copies", (json_int_t)stats.kept_copies,
				    "listed_copies", (json_int_t)stats.listed_copies));
	else
		printf("%llu recipe nodes freed, %llu blocks collected, %llu copies deleted%s\n",
		       (unsigned long long)stats.freed_nodes,
		       (unsigned long long)stats.deleted_blocks,
		       (unsigned long long)stats.deleted_copies, stats.left_blocks ?
		       "; some wait for data servers that are not there" : "");
	return EXIT_OK;
}

/* ---- check ---- */

static int check_step(struct connection *cn, uint8_t *cursor, size_t *cursor_len, size_t max,
		      struct check *ck, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__CheckStep step = VMDEDUP__CHECK_STEP__INIT;
	const Vmdedup__CheckStepReply *s;
	struct net_reply reply;
	int r;

	step.cursor.data = cursor;
	step.cursor.len = *cursor_len;
	step.budget = 10000;
	req.body_case = VMDEDUP__REQUEST__BODY_CHECK_STEP;
	req.check_step = &step;
	r = cluster_call(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_CHECK_STEP ||
		   reply.header->check_step->cursor.len > max))
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	s = r ? NULL : reply.header->check_step;
	if (s) {
		ck->nodes += s->nodes;
		ck->blocks += s->blocks;
		ck->problems += s->n_problems;
		for (size_t i = 0; i < s->n_problems; i++) {
			fprintf(stderr, "vmdedup: check: %s\n", s->problems[i]);
			json_array_append_new(ck->list, json_string(s->problems[i]));
		}
		*cursor_len = s->cursor.len;
		if (s->cursor.len)
			memcpy(cursor, s->cursor.data, s->cursor.len);
	}
	net_reply_free(&reply);
	return r;
}

int check_counts(struct connection *cn, struct check *ck, struct error *err)
{
	uint8_t cursor[4096];
	size_t cursor_len = 0;
	int r;

	do {
		r = check_step(cn, cursor, &cursor_len, sizeof(cursor), ck, err);
	} while (!r && cursor_len && !cli_stopped());
	return r ? r : cursor_len ? error_set(err, -EINTR, "stopped") : 0;
}

static int check_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct check ck = { 0 };
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	cli_catch_signals();
	ck.list = json_array();
	r = check_counts(&cn, &ck, &err);
	connect_close(&cn);
	if (r) {
		json_decref(ck.list);
		return cli_fail(&err);
	}
	if (json) {
		json_show(json_pack("{s:I, s:I, s:o}", "nodes", (json_int_t)ck.nodes, "blocks",
				    (json_int_t)ck.blocks, "problems", ck.list));
	} else {
		json_decref(ck.list);
		printf("%llu recipe nodes and %llu blocks checked, %llu problems\n",
		       (unsigned long long)ck.nodes, (unsigned long long)ck.blocks,
		       (unsigned long long)ck.problems);
	}
	return ck.problems ? EXIT_BAD_CONTENT : EXIT_OK;
}

/* ---- key ---- */

static int key_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const struct opt opts[] = { OPT_END };
	struct error err = { 0 };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (key_pair_create(argv[0], &err))
		return cli_fail(&err);
	printf("%s        the public key: into the folder of [curve] clients of the servers that this\n"
	       "%*s        host talks to; a data server's into data/ there, an administrator's into\n"
	       "%*s        admin/\n"
	       "%s_secret the key pair: [curve] secret of this host, and of no other\n", argv[0],
	       (int)strlen(argv[0]), "", (int)strlen(argv[0]), "", argv[0]);
	return EXIT_OK;
}

const struct verb cluster_verbs[] = {
	{ "cluster", "init", "", "create a cluster in the configured store",
	  "Block size and fingerprint are for ever; images of one cluster share blocks.\n\n"
	  "examples:\n"
	  "  vmdedup cluster init\n"
	  "  vmdedup cluster init --name lab --block-size 64K\n"
	  "  vmdedup cluster init --store postgresql://vmdedup@pg1,pg2/vmdedup?sslmode=verify-full\n",
	  init_run },
	{ "cluster", "info", "", "what the cluster is and holds",
	  "examples:\n"
	  "  vmdedup cluster info\n"
	  "  vmdedup cluster info --json\n", info_run },
	{ "cluster", "status", "", "how the cluster is: what is missing, what moves, how long it takes",
	  "Exit code 6 when a shard has no replica that could be read.\n\n"
	  "examples:\n"
	  "  vmdedup cluster status\n"
	  "  vmdedup cluster status --json\n", cluster_status_run },
	{ "cluster", "servers", "", "the data servers",
	  "examples:\n"
	  "  vmdedup cluster servers\n"
	  "  vmdedup cluster servers --json\n", cluster_servers_run },
	{ "cluster", "shards", "", "the shards that are not as they should be",
	  "examples:\n"
	  "  vmdedup cluster shards\n"
	  "  vmdedup cluster shards --all --json\n", cluster_shards_run },
	{ "cluster", "add", "SERVER", "use a data server that was being drained again",
	  "A new data server needs no order: it is in use as soon as it has joined.\n\n"
	  "examples:\n"
	  "  vmdedup cluster add 3\n", cluster_add_run },
	{ "cluster", "drain", "SERVER", "move everything from a data server to the others",
	  "It serves on meanwhile. `vmdedup cluster servers` shows what it still holds; with nothing\n"
	  "left it can be removed.\n\n"
	  "examples:\n"
	  "  vmdedup cluster drain 3\n", cluster_drain_run },
	{ "cluster", "remove", "SERVER", "forget a data server that holds nothing any more",
	  "With --lost also one that will never come back: what only it had is gone.\n\n"
	  "examples:\n"
	  "  vmdedup cluster remove 3\n"
	  "  vmdedup cluster remove --lost 3\n", cluster_remove_run },
	{ "cluster", "set", "", "change what may be changed in a cluster",
	  "More replicas are made, and those too many are deleted, in the background.\n\n"
	  "examples:\n"
	  "  vmdedup cluster set --replicas 3 --min-copies 2\n"
	  "  vmdedup cluster set --out-after 1800s\n", cluster_set_run },
	{ "cluster", "gc", "", "collect what no image names any more",
	  "examples:\n"
	  "  vmdedup cluster gc --status\n"
	  "  vmdedup cluster gc\n"
	  "  vmdedup cluster gc --full\n", gc_run },
	{ "cluster", "check", "", "check the meta server's counts against its recipes",
	  "Exit code 6 when something is wrong.\n\n"
	  "examples:\n"
	  "  vmdedup cluster check\n", check_run },
	{ "cluster", "backup", "FILE", "write the meta server's store to a file",
	  "Runs where the store is, while meta servers go on. The cluster's keys are in the file.\n"
	  "Blocks are not: they are on the data servers.\n\n"
	  "examples:\n"
	  "  vmdedup cluster backup /backup/meta-$(date +%F)\n"
	  "  vmdedup cluster backup --store postgresql://vmdedup@pg1,pg2/vmdedup /backup/meta\n",
	  cluster_backup_run },
	{ "cluster", "restore", "FILE", "make the meta server's store of a backup",
	  "There must be no store yet, and no meta server may run on the old one. Deletion on data\n"
	  "servers is suspended from then on: see `vmdedup cluster resume-deletion`.\n\n"
	  "examples:\n"
	  "  vmdedup cluster restore /backup/meta-2026-11-22\n", cluster_restore_run },
	{ "cluster", "migrate-store", "STORE", "move the meta server's store from SQLite to STORE",
	  "No meta server may run. The file that was the store is named *.moved afterwards.\n\n"
	  "examples:\n"
	  "  vmdedup cluster migrate-store postgresql://vmdedup@pg1,pg2/vmdedup?sslmode=verify-full\n",
	  cluster_migrate_run },
	{ "cluster", "resume-deletion", "", "after a restore: check, and let data servers delete again",
	  "Recomputes all counts and looks for every named block on the data servers. Exit code 6 when\n"
	  "something is wrong: deletion stays suspended, unless --force.\n\n"
	  "examples:\n"
	  "  vmdedup cluster resume-deletion\n"
	  "  vmdedup cluster resume-deletion --yes --json\n", cluster_resume_run },
	{ "cluster", "key", "FILE", "make this host's key pair, for links between hosts",
	  "Writes FILE (public) and FILE_secret (readable by its owner only). Every host needs one;\n"
	  "servers keep the public keys of all hosts that may connect in one folder.\n\n"
	  "examples:\n"
	  "  vmdedup cluster key /etc/vmdedup/host.key\n", key_run },
	{ 0 }
};
