// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup volume leases, break-lease, recover: when a host is gone, or comes back too late. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "cli/agent.h"
#include "cli/connect.h"
#include "cli/ui.h"
#include "proto/limits.h"

/* @visit for all leases, also the broken ones; its non-zero return ends the list. */
static int leases_each(struct cluster *c, int (*visit)(void *arg, const Vmdedup__Lease *l),
		       void *arg, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseList list = VMDEDUP__LEASE_LIST__INIT;
	char after[128] = "";
	bool more = true;
	int r = 0;

	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_LIST;
	req.lease_list = &list;
	list.limit = PROTO_MAX_LIST;
	while (!r && more) {
		struct net_reply reply;

		list.after = after;
		r = cluster_call(c, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
		if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_LEASE_LIST)
			r = error_set(err, -EPROTO, "the meta server answered with something else");
		for (size_t i = 0; !r && i < reply.header->lease_list->n_leases; i++)
			r = visit(arg, reply.header->lease_list->leases[i]);
		more = !r && reply.header->lease_list->more;
		if (more)
			snprintf(after, sizeof(after), "%s", reply.header->lease_list->next);
		net_reply_free(&reply);
	}
	return r;
}

/* ---- leases ---- */

/* "12.0 MiB, as of 8 s ago", what the holder last said; "-": it has said nothing. */
static const char *unpushed_text(const Vmdedup__Lease *l, char text[96])
{
	char bytes[32], ago[32];

	if (l->reported)
		snprintf(text, 96, "%s, as of %s ago", size_to_text(l->unpushed_bytes, bytes),
			 duration_to_text(l->report_age_s * 1000, ago));
	else
		strcpy(text, "-");
	return text;
}

struct leases {
	struct table *table; /* or ... */
	json_t *json;
};

static int lease_show(void *arg, const Vmdedup__Lease *l)
{
	struct leases *s = arg;
	char since[32], root[16], unpushed[96];
	json_t *j;

	if (s->json) {
		j = json_pack("{s:s, s:o, s:s, s:o, s:I, s:I, s:I, s:b, s:o}", "image", l->name,
			      "uuid", json_uuid(l->image.data, l->image.len), "host", l->host, "cache",
			      json_uuid(l->cache.data, l->cache.len), "epoch", (json_int_t)l->epoch,
			      "cut", (json_int_t)l->cut, "since_s", (json_int_t)l->since_s, "broken",
			      l->broken, "root", json_fp(l->root.data, l->root.len));
		json_object_set_new(j, "reader", json_boolean(l->reader));
		json_object_set_new(j, "unpushed_bytes", l->reported ?
				    json_integer((json_int_t)l->unpushed_bytes) : json_null());
		json_object_set_new(j, "oldest_ms", l->reported ?
				    json_integer((json_int_t)l->oldest_ms) : json_null());
		json_object_set_new(j, "report_age_s", l->reported ?
				    json_integer((json_int_t)l->report_age_s) : json_null());
		return json_array_append_new(s->json, j) ? -ENOMEM : 0;
	}
	table_cell(s->table, "%s", l->name);
	table_cell(s->table, "%s", l->host);
	table_cell(s->table, "%llu", (unsigned long long)l->epoch);
	table_cell(s->table, "%s", l->broken ? "BROKEN" : l->reader ? "reads" : "active");
	table_cell(s->table, "%s", time_to_text(l->since_s, since));
	table_cell(s->table, "%s", unpushed_text(l, unpushed));
	table_cell(s->table, "%s", fp_short(l->root.data, l->root.len, root));
	return 0;
}

int leases_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	static const char *const heads[] = { "<IMAGE", "<HOST", "EPOCH", "<STATE", "<SINCE",
					     "<UNPUSHED", "<ROOT" };
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct leases s = { 0 };
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	if (json)
		s.json = json_array();
	else
		s.table = table_new(heads, 7);
	r = leases_each(cn.cluster, lease_show, &s, &err);
	connect_close(&cn);
	if (r) {
		json_decref(s.json);
		return cli_fail(&err);
	}
	if (json)
		json_show(s.json);
	else
		table_print(s.table);
	return EXIT_OK;
}

/* ---- break-lease ---- */

struct wanted {
	const char *image;
	bool broken;	/* or a reader's */
	bool reader;
	uint64_t epoch; /* 0: any; then the found one's */
	bool found;
	char host[256], name[IMAGE_NAME_MAX + 1];
	uint8_t uuid[16];
	uint64_t since_s, cut;
	char unpushed[200]; /* a sentence */
};

static void say_unpushed(const Vmdedup__Lease *l, char text[200])
{
	char bytes[32], ago[32], oldest[32];

	if (!l->reported)
		strcpy(text, "Its agent has never said how much that is: `vmdedup volume ls` there does.");
	else if (!l->unpushed_bytes)
		snprintf(text, 200, "As of %s ago that was nothing.",
			 duration_to_text(l->report_age_s * 1000, ago));
	else
		snprintf(text, 200, "As of %s ago that was %s, the oldest of it written %s before.",
			 duration_to_text(l->report_age_s * 1000, ago),
			 size_to_text(l->unpushed_bytes, bytes), duration_to_text(l->oldest_ms, oldest));
}

static int lease_match(void *arg, const Vmdedup__Lease *l)
{
	struct wanted *w = arg;

	/* A reader lives, as a rule: who gives one up says which. */
	if (strcmp(l->name, w->image) || (l->broken || (l->reader && w->epoch)) != w->broken ||
	    l->image.len != sizeof(w->uuid) || (w->epoch && l->epoch != w->epoch))
		return 0;
	w->found = true;
	w->reader = l->reader;
	w->epoch = l->epoch;
	snprintf(w->host, sizeof(w->host), "%s", l->host);
	memcpy(w->uuid, l->image.data, sizeof(w->uuid));
	w->since_s = l->since_s;
	w->cut = l->cut;
	say_unpushed(l, w->unpushed);
	return 1;
}

static void say_what_is_lost(const struct wanted *w)
{
	char since[32];

	time_to_text(w->since_s, since);
	if (w->reader) {
		printf("Host %s has image %s attached read-only or as ephemeral since %s (epoch %llu).\n"
		       "With --yes what that stands on is given up: when the image has been removed or "
		       "written since,\nreads there of blocks that are not in its cache wait for ever. For "
		       "a host that never comes back.\n", w->host, w->image, since,
		       (unsigned long long)w->epoch);
		return;
	}
	if (w->broken) {
		printf("The broken lease of epoch %llu on image %s keeps what host %s may have left "
		       "unpushed recoverable.\n"
		       "With --yes that is given up: if the host comes back, its unpushed data cannot "
		       "be recovered. %s\n", (unsigned long long)w->epoch, w->image, w->host,
		       w->unpushed);
		return;
	}
	printf("Image %s is attached for writing on host %s since %s (lease epoch %llu, last cut "
	       "pushed: %llu).\n"
	       "With --yes the image goes on from its head, the last cut that was pushed. What the host "
	       "has written\nsince then is not in it. %s\n"
	       "The host may still be running: then its guest goes on writing until its agent next "
	       "hears\nof the meta server, and its volume stops as diverged. Stop the guest first if "
	       "you can.\n"
	       "If the host comes back, `vmdedup volume recover` there makes what it had not pushed a "
	       "new image.\n",
	       w->image, w->host, since, (unsigned long long)w->epoch, (unsigned long long)w->cut,
	       w->unpushed);
}

static int break_it(struct cluster *c, struct wanted *w, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseBreak body = VMDEDUP__LEASE_BREAK__INIT;
	struct net_reply reply;
	int r;

	body.image.data = w->uuid;
	body.image.len = sizeof(w->uuid);
	body.epoch = w->epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_BREAK;
	req.lease_break = &body;
	r = cluster_mutate(c, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	net_reply_free(&reply);
	return r;
}

int break_lease_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool yes = false, forget = false;
	struct wanted w = { 0 };
	const struct opt opts[] = {
		OPT_FLAG("yes", &yes, "do it"),
		OPT_FLAG("forget", &forget,
			 "a lease that is broken already, or that reads: keep nothing for its host"),
		OPT_NUMBER("epoch", "N", &w.epoch, "that lease, when there are several broken ones, or one that reads"),
		OPT_END
	};
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	w.image = argv[0];
	w.broken = forget;
	r = leases_each(cn.cluster, lease_match, &w, &err);
	if (r == 1)
		r = 0;
	if (!r && !w.found)
		r = error_set(&err, -ENOENT, "image %.200s has no %s; `vmdedup volume leases` lists them",
			      argv[0], !forget ? "lease" : w.epoch ? "broken lease and no reader of that epoch" :
			      "broken lease; a reader's is forgotten with --epoch");
	if (!r && yes)
		r = break_it(cn.cluster, &w, &err);
	connect_close(&cn);
	if (r)
		return cli_fail(&err);
	if (yes) {
		printf("lease of epoch %llu on image %s %s\n", (unsigned long long)w.epoch, argv[0],
		       forget ? "forgotten" : "broken");
		return EXIT_OK;
	}
	say_what_is_lost(&w);
	fprintf(stderr, "vmdedup: nothing was done: --yes does it\n");
	return EXIT_FAILED;
}

/* ---- recover ---- */

/* A name that no earlier recovery of the volume has: the second, and a random number. */
static void default_name(const char *volume, char name[IMAGE_NAME_MAX + 1])
{
	time_t now = time(NULL);
	struct tm tm;
	char when[32];

	strftime(when, sizeof(when), "%Y%m%d-%H%M%S", gmtime_r(&now, &tm));
	snprintf(name, IMAGE_NAME_MAX + 1, "%.200s-recovered-%s-%04x", volume, when,
		 (unsigned int)(agent_nonce() & 0xffff));
}

static void recover_show(const char *volume, const char *name, const Vmdedup__VolumePushReply *p,
			 bool json)
{
	if (json)
		json_show(json_pack("{s:s, s:s, s:I, s:I, s:o}", "volume", volume, "image", name,
				    "blocks", (json_int_t)p->blocks, "new_blocks",
				    (json_int_t)p->new_blocks, "root",
				    json_fp(p->root.data, p->root.len)));
	else
		printf("recovered what %s had not pushed as image %s: %llu blocks, %llu of them new\n",
		       volume, name, (unsigned long long)p->blocks,
		       (unsigned long long)p->new_blocks);
}

int recover_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumeRecover body = VMDEDUP__VOLUME_RECOVER__INIT;
	char name[IMAGE_NAME_MAX + 1];
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	struct agent_link a;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 2, &code))
		return code;
	if (argc > 1)
		snprintf(name, sizeof(name), "%s", argv[1]);
	else
		default_name(argv[0], name);
	r = cli_name_check(argc > 1 ? argv[1] : name, &err);
	if (!r)
		r = agent_open(&a, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	body.name = argv[0];
	body.new_name = name;
	body.nonce = agent_nonce();
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_RECOVER;
	req.volume_recover = &body;
	r = agent_call(&a, &req, VMDEDUP__REPLY__BODY_VOLUME_PUSH, -1, &reply, &err);
	if (!r)
		recover_show(argv[0], name, reply.header->volume_push, json);
	net_reply_free(&reply);
	agent_close(&a);
	return r ? cli_fail(&err) : EXIT_OK;
}
