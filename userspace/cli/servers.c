// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup cluster: status, servers, shards, add, drain, remove, set. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "cli/connect.h"
#include "cli/servers.h"
#include "cli/ui.h"
#include "proto/limits.h"

#define PING_MS 5000

static const char *const server_states[] = { "up", "suspect", "down", "draining", "out", "stale" };
static const char *const replica_states[] = { "current", "stale", "leaving" };

/* ---- asking ---- */

struct one {
	Vmdedup__Server *server; /* the map's */
	bool answered;
	Vmdedup__PingReply ping; /* numbers only */
	unsigned int shards;	 /* that it has a replica of, leaving ones too */
};

struct view {
	Vmdedup__MapReply *map; /* owned */
	struct one *ones;
	size_t nr;
};

static Vmdedup__MapReply *map_copy(const Vmdedup__MapReply *in)
{
	size_t len = vmdedup__map_reply__get_packed_size(in);
	CLEANUP_FREE uint8_t *bytes = malloc(len + 1);

	if (!bytes)
		return NULL;
	vmdedup__map_reply__pack(in, bytes);
	return vmdedup__map_reply__unpack(NULL, len, bytes);
}

static void take(void *arg, const Vmdedup__MapReply *map, const Vmdedup__Server *server, int r,
		 const Vmdedup__Reply *reply)
{
	struct view *v = arg;
	struct one *o;

	if (!v->map) {
		v->map = map_copy(map);
		v->ones = calloc(map->n_servers + 1, sizeof(*v->ones));
	}
	if (!v->map || !v->ones || !server || v->nr == v->map->n_servers)
		return;
	o = &v->ones[v->nr];
	o->server = v->map->servers[v->nr++];
	o->answered = !r && reply->body_case == VMDEDUP__REPLY__BODY_PING;
	if (o->answered) {
		o->ping = *reply->ping;
		o->ping.failed = NULL;
		o->ping.disk = (ProtobufCBinaryData){ 0 };
	}
	for (size_t i = 0; i < v->map->n_shard_servers; i++)
		o->shards += v->map->shard_servers[i] == o->server->id;
}

static void view_free(struct view *v)
{
	if (v->map)
		vmdedup__map_reply__free_unpacked(v->map, NULL);
	free(v->ones);
	*v = (struct view){ 0 };
}

static int view_ask(struct connection *cn, struct view *v, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Ping ping = VMDEDUP__PING__INIT;
	int r;

	*v = (struct view){ 0 };
	req.body_case = VMDEDUP__REQUEST__BODY_PING;
	req.ping = &ping;
	r = cluster_servers_ask(cn->cluster, &req, PING_MS, take, v, err);
	if (!r && (!v->map || !v->ones || v->map->n_shard_servers !=
		   (size_t)v->map->replicas * NR_SHARDS))
		r = error_set(err, -EPROTO, "the meta server sent no shard map");
	if (r)
		view_free(v);
	return r;
}

/* All servers as they are now, for a command that needs nothing else. */
static int view_open(struct cli *cli, struct view *v, struct error *err)
{
	struct connection cn;
	int r;

	r = connect_open(&cn, &cli->conf, err);
	if (r)
		return r;
	r = view_ask(&cn, v, err);
	connect_close(&cn);
	return r;
}

/* ---- shards ---- */

struct shard_sum {
	unsigned int current, stale, leaving; /* replicas */
	unsigned int missing;	/* replicas that nobody has been given */
	unsigned int under;	/* shards with fewer current replicas, of servers that are up, than wanted */
	unsigned int unreadable; /* shards with none */
};

static unsigned int state_at(const struct view *v, size_t at)
{
	return v->map->shard_states.len ? v->map->shard_states.data[at] : 0;
}

static const struct one *server_at(const struct view *v, size_t at)
{
	for (size_t i = 0; i < v->nr; i++)
		if (v->map->shard_servers[at] && v->ones[i].server->id == v->map->shard_servers[at])
			return &v->ones[i];
	return NULL;
}

static bool is_there(const struct one *o)
{
	return o && o->server->state != 2 && o->server->state != 4;
}

/* True: it is as it should be. */
static bool shard_count(const struct view *v, unsigned int shard, struct shard_sum *sum)
{
	unsigned int n[3] = { 0 }, good = 0, have;

	for (unsigned int k = 0; k < v->map->replicas; k++) {
		size_t at = shard * v->map->replicas + k;
		const struct one *o = server_at(v, at);

		if (!o)
			continue;
		n[state_at(v, at) % 3]++;
		good += state_at(v, at) != 1 && is_there(o);
	}
	sum->current += n[0];
	sum->stale += n[1];
	sum->leaving += n[2];
	have = n[0] + n[1];
	sum->missing += have < v->map->wanted ? v->map->wanted - have : 0;
	sum->under += good < v->map->wanted;
	sum->unreadable += !good;
	return n[0] == v->map->wanted && !n[1] && !n[2] && good == v->map->wanted;
}

static struct shard_sum shard_sum(const struct view *v)
{
	struct shard_sum sum = { 0 };

	for (unsigned int shard = 0; shard < NR_SHARDS; shard++)
		shard_count(v, shard, &sum);
	return sum;
}

static json_t *shard_json(const struct view *v, unsigned int shard)
{
	json_t *replicas = json_array();

	for (unsigned int k = 0; k < v->map->replicas; k++) {
		size_t at = shard * v->map->replicas + k;

		if (server_at(v, at))
			json_array_append_new(replicas, json_pack(
				"{s:i, s:s}", "server", (int)v->map->shard_servers[at], "state",
				replica_states[state_at(v, at) % 3]));
	}
	return json_pack("{s:i, s:I, s:o}", "shard", (int)shard, "epoch",
			 (json_int_t)(shard < v->map->n_shard_epochs ? v->map->shard_epochs[shard] :
								       0), "replicas", replicas);
}

static json_t *sum_json(const struct view *v, const struct shard_sum *s)
{
	return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "wanted", (int)v->map->wanted,
			 "current", (int)s->current, "stale", (int)s->stale, "leaving",
			 (int)s->leaving, "missing", (int)s->missing, "under_replicated",
			 (int)s->under, "unreadable", (int)s->unreadable);
}

static void shard_row(struct table *t, const struct view *v, unsigned int shard)
{
	char text[256] = "";

	for (unsigned int k = 0; k < v->map->replicas; k++) {
		size_t at = shard * v->map->replicas + k, len = strlen(text);
		const struct one *o = server_at(v, at);

		if (o)
			snprintf(text + len, sizeof(text) - len, "%s%u %s%s", len ? ", " : "",
				 o->server->id, replica_states[state_at(v, at) % 3],
				 is_there(o) ? "" : " (not there)");
	}
	table_cell(t, "%u", shard);
	table_cell(t, "%s", text);
}

static void shards_print(const struct view *v, bool all)
{
	static const char *const heads[] = { "SHARD", "<REPLICAS" };
	struct shard_sum sum = { 0 };
	struct table *t = table_new(heads, 2);

	for (unsigned int shard = 0; shard < NR_SHARDS; shard++)
		if (!shard_count(v, shard, &sum) || all)
			shard_row(t, v, shard);
	printf("%u shards, %u replicas wanted of each: %u current, %u stale, %u leaving, "
	       "%u missing\n\n", NR_SHARDS, v->map->wanted, sum.current, sum.stale, sum.leaving,
	       sum.missing);
	table_print(t);
}

int cluster_shards_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, all = false;
	const struct opt opts[] = {
		OPT_FLAG("all", &all, "also the shards that are as they should be"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct error err = { 0 };
	struct view v;
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	if (view_open(cli, &v, &err))
		return cli_fail(&err);
	if (json) {
		struct shard_sum sum = { 0 };
		json_t *list = json_array(), *out;

		for (unsigned int shard = 0; shard < NR_SHARDS; shard++)
			if (!shard_count(&v, shard, &sum) || all)
				json_array_append_new(list, shard_json(&v, shard));
		out = sum_json(&v, &sum);
		json_object_set_new(out, "shards", list);
		json_show(out);
	} else {
		shards_print(&v, all);
	}
	view_free(&v);
	return EXIT_OK;
}

/* ---- servers ---- */

static const char *server_state(const struct one *o)
{
	if (!o->answered && !o->server->state)
		return "no answer";
	return o->server->state < ARRAY_SIZE(server_states) ? server_states[o->server->state] : "?";
}

static json_t *server_json(const struct one *o)
{
	const Vmdedup__Server *s = o->server;

	return json_pack("{s:i, s:s, s:o, s:s, s:s, s:s, s:I, s:I, s:i, s:i, s:I, s:I, s:I, s:I, s:I, "
			 "s:I, s:b}", "id", (int)s->id, "endpoint", s->endpoint, "disk",
			 json_uuid(s->disk.data, s->disk.len), "host", s->host, "rack", s->rack,
			 "state", server_state(o), "capacity", (json_int_t)s->capacity, "free",
			 (json_int_t)(o->answered && o->ping.free ? o->ping.free : s->free),
			 "shards", (int)o->shards, "stale", (int)o->ping.stale_shards,
			 "repaired_blocks", (json_int_t)o->ping.repaired_blocks, "repaired_bytes",
			 (json_int_t)o->ping.repaired_bytes, "scrubbed_bytes",
			 (json_int_t)o->ping.scrubbed_bytes, "damaged",
			 (json_int_t)o->ping.damaged, "healed", (json_int_t)o->ping.healed,
			 "dropped_blocks", (json_int_t)o->ping.dropped_blocks, "open_keys",
			 o->ping.open_keys);
}

static json_t *servers_json(const struct view *v)
{
	json_t *list = json_array();

	for (size_t i = 0; i < v->nr; i++)
		json_array_append_new(list, server_json(&v->ones[i]));
	return list;
}

static void servers_print(const struct view *v)
{
	static const char *const heads[] = { "SERVER", "<ENDPOINT", "<STATE", "<HOST", "<RACK", "SHARDS",
					     "STALE", "CAPACITY", "FREE", "SCRUBBED", "DAMAGED",
					     "HEALED" };
	struct table *t = table_new(heads, ARRAY_SIZE(heads));
	char a[32];

	for (size_t i = 0; i < v->nr; i++) {
		const struct one *o = &v->ones[i];

		table_cell(t, "%u", o->server->id);
		table_cell(t, "%s", o->server->endpoint);
		table_cell(t, "%s", server_state(o));
		table_cell(t, "%s", o->server->host);
		table_cell(t, "%s", o->server->rack);
		table_cell(t, "%u", o->shards);
		table_cell(t, "%u", o->ping.stale_shards);
		table_cell(t, "%s", size_to_text(o->server->capacity, a));
		table_cell(t, "%s", size_to_text(o->server->free, a));
		table_cell(t, "%s", size_to_text(o->ping.scrubbed_bytes, a));
		table_cell(t, "%llu", (unsigned long long)o->ping.damaged);
		table_cell(t, "%llu", (unsigned long long)o->ping.healed);
	}
	table_print(t);
}

int cluster_servers_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct error err = { 0 };
	struct view v;
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	if (view_open(cli, &v, &err))
		return cli_fail(&err);
	if (json)
		json_show(json_pack("{s:o}", "servers", servers_json(&v)));
	else
		servers_print(&v);
	view_free(&v);
	return EXIT_OK;
}

/* ---- status ---- */

struct motion {
	uint64_t rate;	  /* blocks copied a second, by all */
	uint64_t left;	  /* blocks, about */
	uint64_t eta_ms;  /* 0: nothing moves, or it cannot be said */
};

static uint64_t copied(const struct view *v)
{
	uint64_t n = 0;

	for (size_t i = 0; i < v->nr; i++)
		n += v->ones[i].ping.repaired_blocks;
	return n;
}

static int info_ask(struct connection *cn, Vmdedup__ClusterInfoReply **info, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterInfo ask = VMDEDUP__CLUSTER_INFO__INIT;
	struct net_reply reply;
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &ask;
	r = cluster_call(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_CLUSTER_INFO)
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	if (!r) {
		*info = reply.header->cluster_info;
		reply.header->cluster_info = NULL;
		reply.header->body_case = VMDEDUP__REPLY__BODY__NOT_SET;
	}
	net_reply_free(&reply);
	return r;
}

/* How fast it goes is seen by looking twice, a second apart; only when something is to be seen. */
static int motion_ask(struct connection *cn, struct view *v, uint64_t blocks, struct motion *m,
		      struct error *err)
{
	struct shard_sum sum = shard_sum(v);
	uint64_t before = copied(v);
	int r;

	*m = (struct motion){ 0 };
	if (!sum.stale)
		return 0;
	view_free(v);
	sleep(1);
	r = view_ask(cn, v, err);
	if (r)
		return r;
	sum = shard_sum(v);
	m->rate = copied(v) > before ? copied(v) - before : 0;
	m->left = sum.stale * (blocks / NR_SHARDS + 1);
	if (m->rate)
		m->eta_ms = m->left * 1000 / m->rate + 1;
	return 0;
}

static void keys_print(const struct view *v, const Vmdedup__ClusterInfoReply *in)
{
	const char *where = in->open_keys ? " the meta server" : "";
	size_t nr = 0;

	for (size_t i = 0; i < v->nr; i++)
		nr += v->ones[i].ping.open_keys;
	if (!in->open_keys && !nr)
		return;
	printf("KEYS       may everything, each of them, at%s", where);
	if (nr)
		printf("%s %zu data server%s", *where ? " and" : "", nr, nr == 1 ? "" : "s");
	puts(": see \"Roles of keys\" in operations.rst");
}

static void status_print(const struct view *v, const Vmdedup__ClusterInfoReply *in,
			 const struct motion *m)
{
	struct shard_sum sum = shard_sum(v);
	unsigned int n[ARRAY_SIZE(server_states)] = { 0 };
	char text[32];

	for (size_t i = 0; i < v->nr; i++)
		n[MIN(v->ones[i].server->state, ARRAY_SIZE(n) - 1)]++;
	printf("cluster    %s, %u replica%s, commits need %u\n", in->name, in->replicas,
	       in->replicas == 1 ? "" : "s", in->min_copies);
	printf("governor   %s\n", in->governed ? "this meta server" : "another meta server, or none");
	printf("servers    %zu:", v->nr);
	for (size_t i = 0; i < ARRAY_SIZE(n); i++)
		if (n[i])
			printf(" %u %s", n[i], server_states[i]);
	printf("\nreplicas   %u current, %u stale, %u leaving, %u without a server\n", sum.current,
	       sum.stale, sum.leaving, sum.missing);
	if (sum.under)
		printf("missing    %u of %d shards have fewer readable replicas than wanted\n",
		       sum.under, NR_SHARDS);
	if (sum.unreadable)
		printf("LOST       %u shards have no replica that could be read: start the data "
		       "servers that are down\n", sum.unreadable);
	if (sum.stale)
		printf("moving     about %llu blocks are left, %llu a second: %s\n",
		       (unsigned long long)m->left, (unsigned long long)m->rate,
		       m->eta_ms ? duration_to_text(m->eta_ms, text) : "no end in sight yet");
	keys_print(v, in);
}

static json_t *status_json(const struct view *v, const Vmdedup__ClusterInfoReply *in,
			   const struct motion *m)
{
	struct shard_sum sum = shard_sum(v);
	json_t *out = sum_json(v, &sum);

	json_object_update_new(out, json_pack(
		"{s:s, s:b, s:b, s:i, s:i, s:I, s:I, s:I, s:I, s:o}", "name", in->name, "governed",
		in->governed, "open_keys", in->open_keys, "min_copies", (int)in->min_copies, "out_after_s",
		(int)in->out_after_s, "map_version", (json_int_t)v->map->version, "left_blocks",
		(json_int_t)m->left, "blocks_a_second", (json_int_t)m->rate, "eta_ms",
		(json_int_t)m->eta_ms, "servers", servers_json(v)));
	return out;
}

int cluster_status_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	Vmdedup__ClusterInfoReply *info = NULL;
	struct error err = { 0 };
	struct connection cn;
	struct motion m;
	struct view v;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	r = view_ask(&cn, &v, &err) ?: info_ask(&cn, &info, &err);
	if (!r)
		r = motion_ask(&cn, &v, info->blocks, &m, &err);
	connect_close(&cn);
	if (r) {
		code = cli_fail(&err);
	} else {
		if (json)
			json_show(status_json(&v, info, &m));
		else
			status_print(&v, info, &m);
		code = shard_sum(&v).unreadable ? EXIT_BAD_CONTENT : EXIT_OK;
	}
	if (info)
		vmdedup__cluster_info_reply__free_unpacked(info, NULL);
	view_free(&v);
	return code;
}

/* ---- orders ---- */

static int order(struct cli *cli, const char *who, Vmdedup__ServerOrder what, const char *said)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ServerSet set = VMDEDUP__SERVER_SET__INIT;
	struct error err = { 0 };
	struct net_reply reply;
	struct connection cn;
	char *end;
	int r;

	set.server = (uint32_t)strtoul(who, &end, 10);
	set.order = what;
	if (*end || !set.server) {
		fprintf(stderr, "vmdedup: \"%s\" is not the number of a data server (see `vmdedup "
			"cluster servers`)\n", who);
		return EXIT_USAGE;
	}
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_SET;
	req.server_set = &set;
	r = cluster_mutate(cn.cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, &err);
	net_reply_free(&reply);
	connect_close(&cn);
	if (r)
		return cli_fail(&err);
	printf("data server %u %s\n", set.server, said);
	return EXIT_OK;
}

int cluster_add_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const struct opt opts[] = { OPT_END };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	return order(cli, argv[0], VMDEDUP__SERVER_ORDER__SERVER_USE, "is in use");
}

int cluster_drain_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const struct opt opts[] = { OPT_END };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	return order(cli, argv[0], VMDEDUP__SERVER_ORDER__SERVER_DRAIN, "is being drained");
}

int cluster_remove_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool lost = false;
	const struct opt opts[] = {
		OPT_FLAG("lost", &lost, "it will not come back: give up what it holds"),
		OPT_END
	};
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	return order(cli, argv[0], lost ? VMDEDUP__SERVER_ORDER__SERVER_LOST :
					  VMDEDUP__SERVER_ORDER__SERVER_REMOVE, "is removed");
}

/* "90", "90s", "15m", "2h" */
static int seconds_of(const char *text, uint32_t *seconds)
{
	unsigned long n, unit = 1;
	char *end;

	errno = 0;
	n = strtoul(text, &end, 10);
	if (end == text || errno)
		return -EINVAL;
	if (*end == 'm')
		unit = 60;
	else if (*end == 'h')
		unit = 3600;
	else if (*end && *end != 's')
		return -EINVAL;
	if ((*end && end[1]) || n > INT32_MAX / unit)
		return -EINVAL;
	*seconds = (uint32_t)(n * unit);
	return 0;
}

int cluster_set_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	uint64_t replicas = 0, min_copies = 0;
	const char *out_after = NULL;
	const struct opt opts[] = {
		OPT_NUMBER("replicas", "N", &replicas, "copies of each block, 1 to 4"),
		OPT_NUMBER("min-copies", "N", &min_copies, "copies that a commit needs"),
		OPT_TEXT("out-after", "TIME", &out_after,
			 "how long a data server is down before it is replaced: 90s, 15m, 2h"),
		OPT_END
	};
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterSet set = VMDEDUP__CLUSTER_SET__INIT;
	struct error err = { 0 };
	struct net_reply reply;
	struct connection cn;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	if ((!replicas && !min_copies && !out_after) || replicas > PROTO_MAX_REPLICAS ||
	    min_copies > PROTO_MAX_REPLICAS) {
		fputs("vmdedup: give --replicas (1 to 4), --min-copies (1 to 4) or --out-after\n",
		      stderr);
		return EXIT_USAGE;
	}
	set.replicas = (uint32_t)replicas;
	set.min_copies = (uint32_t)min_copies;
	set.set_out_after = out_after != NULL;
	if (out_after && seconds_of(out_after, &set.out_after_s)) {
		fprintf(stderr, "vmdedup: --out-after: \"%s\" is not a time such as 90s, 15m or 2h\n",
			out_after);
		return EXIT_USAGE;
	}
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_SET;
	req.cluster_set = &set;
	r = cluster_mutate(cn.cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, &err);
	net_reply_free(&reply);
	connect_close(&cn);
	return r ? cli_fail(&err) : EXIT_OK;
}
