// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup status: the agent of this host, and the cluster. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "cli/agent.h"
#include "cli/connect.h"
#include "cli/origins.h"
#include "cli/stores.h"
#include "cli/ui.h"

static json_t *agent_json(const Vmdedup__AgentStatusReply *s)
{
	json_t *j = json_pack("{s:s, s:s, s:s, s:b, s:o, s:s, s:I, s:I, s:I, s:I}",
			      "version", s->version, "host", s->host, "mode", s->mode,
			      "channel", s->channel, "cache", json_uuid(s->cache.data, s->cache.len),
			      "cache_device", s->cache_device, "slots", (json_int_t)s->slots,
			      "clean", (json_int_t)s->clean,
			      "dirty_bytes", (json_int_t)s->dirty_bytes,
			      "block_bytes", s->block_shift ? (json_int_t)1 << s->block_shift :
							      (json_int_t)0);

	json_object_set_new(j, "fetches", json_integer(s->fetches));
	json_object_set_new(j, "fetch_bytes", json_integer(s->fetch_bytes));
	json_object_set_new(j, "from_cache", json_integer(s->from_cache));
	json_object_set_new(j, "from_zero", json_integer(s->from_zero));
	json_object_set_new(j, "from_data", json_integer(s->from_data));
	json_object_set_new(j, "from_peer", json_integer(s->from_peer));
	json_object_set_new(j, "prefetched", json_integer(s->prefetched));
	json_object_set_new(j, "latency_us", origins_json(s->latency_us, s->n_latency_us));
	json_object_set_new(j, "failed", json_integer(s->failed));
	json_object_set_new(j, "waiting", json_integer(s->waiting));
	json_object_set_new(j, "pushes", json_integer(s->pushes));
	json_object_set_new(j, "pushed_blocks", json_integer(s->pushed_blocks));
	json_object_set_new(j, "pushed_new", json_integer(s->pushed_new));
	json_object_set_new(j, "pushed_bytes", json_integer(s->pushed_bytes));
	json_object_set_new(j, "meta_ok", json_boolean(s->meta_ok));
	json_object_set_new(j, "data_ok", json_boolean(s->data_ok));
	json_object_set_new(j, "trouble", json_string(s->trouble));
	json_object_set_new(j, "uptime_s", json_integer(s->uptime_s));
	return j;
}

static void agent_print(const Vmdedup__AgentStatusReply *s)
{
	const uint64_t from[] = { s->from_cache, s->from_zero, s->from_data, s->from_peer };
	char a[32], b[32];

	printf("agent      %s, %s, version %s, up for %s\n", s->host, s->mode, s->version,
	       duration_to_text(s->uptime_s * 1000, a));
	if (s->channel)
		printf("cache      %s: %llu of %llu slots hold clean blocks of %s, %s dirty\n",
		       *s->cache_device ? s->cache_device : "a file", (unsigned long long)s->clean,
		       (unsigned long long)s->slots, size_to_text(1ULL << s->block_shift, a),
		       size_to_text(s->dirty_bytes, b));
	else
		printf("cache      not connected%s%s\n", *s->cache_device ? ": " : "", s->cache_device);
	printf("fetched    %llu blocks, %s; %llu ahead of the guest; %llu failed, %llu waiting\n",
	       (unsigned long long)s->fetches, size_to_text(s->fetch_bytes, a),
	       (unsigned long long)s->prefetched, (unsigned long long)s->failed,
	       (unsigned long long)s->waiting);
	origins_print(from, s->latency_us, s->n_latency_us);
	printf("pushed     %llu times, %llu blocks, %llu of them new, %s\n",
	       (unsigned long long)s->pushes, (unsigned long long)s->pushed_blocks,
	       (unsigned long long)s->pushed_new, size_to_text(s->pushed_bytes, a));
	printf("servers    meta %s, data %s\n", s->meta_ok ? "ok" : "NOT REACHED",
	       s->data_ok ? "ok" : "NOT REACHED");
	if (*s->trouble)
		printf("trouble    %s\n", s->trouble);
	printf("\n");
}

static int agent_ask(struct cli *cli, struct net_reply *reply, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__AgentStatus ask = VMDEDUP__AGENT_STATUS__INIT;
	struct agent_link a;
	int r = agent_open(&a, &cli->conf, err);

	if (r)
		return r;
	req.body_case = VMDEDUP__REQUEST__BODY_AGENT_STATUS;
	req.agent_status = &ask;
	r = agent_call(&a, &req, VMDEDUP__REPLY__BODY_AGENT_STATUS, AGENT_TIMEOUT_MS, reply, err);
	if (r)
		net_reply_free(reply);
	agent_close(&a);
	return r;
}

static int stores_of(struct cli *cli, struct stores *s, struct error *err)
{
	struct connection cn;
	int r = connect_open(&cn, &cli->conf, err);

	if (r)
		return r;
	r = stores_ask(&cn, s, err);
	connect_close(&cn);
	return r;
}

/* Each half is shown as far as it can be had; without the agent the exit code says so. */
static int status_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct net_reply reply = { 0 };
	struct stores stores = { 0 };
	struct error agent_err = { 0 }, cluster_err = { 0 };
	int code, ar, cr;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	ar = agent_ask(cli, &reply, &agent_err);
	cr = stores_of(cli, &stores, &cluster_err);
	if (json) {
		json_t *j = json_object();

		json_object_set_new(j, "agent", ar ? json_null() :
				    agent_json(reply.header->agent_status));
		json_object_set_new(j, "cluster", cr ? json_null() : stores_json(&stores));
		json_show(j);
	} else {
		if (!ar)
			agent_print(reply.header->agent_status);
		if (!cr)
			stores_print(&stores);
	}
	net_reply_free(&reply);
	stores_free(&stores);
	code = EXIT_OK;
	if (cr)
		code = cli_fail(&cluster_err);
	if (ar)
		code = cli_fail(&agent_err);
	return code;
}

const struct verb status_verbs[] = {
	{ "status", NULL, "", "this host's agent and the cluster at a glance",
	  "Exit code 5 when no agent runs here; the cluster is shown all the same.\n\n"
	  "examples:\n"
	  "  vmdedup status\n"
	  "  vmdedup status --json | jq .agent.dirty_bytes\n", status_run },
	{ 0 }
};
