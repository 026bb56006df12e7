// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup peers: the agents that this host's agent gets blocks from. */
#include <stdio.h>
#include <string.h>
#include "base/cleanup.h"
#include "cli/agent.h"
#include "cli/ui.h"

static json_t *peer_json(const Vmdedup__PeerInfo *p)
{
	json_t *j = json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
			      "endpoint", p->endpoint, "state", p->state,
			      "same_rack", (int)p->same_rack, "asked", (json_int_t)p->asked,
			      "served", (json_int_t)p->served, "bytes", (json_int_t)p->bytes,
			      "not_here", (json_int_t)p->not_here, "busy", (json_int_t)p->busy,
			      "failed", (json_int_t)p->failed, "lies", (json_int_t)p->lies,
			      "latency_us", (json_int_t)p->latency_us);

	if (p->filter_age_ms == UINT64_MAX)
		json_object_set_new(j, "filter", json_null());
	else
		json_object_set_new(j, "filter", json_pack("{s:I, s:I, s:I, s:I, s:I}",
			"age_ms", (json_int_t)p->filter_age_ms,
			"blocks", (json_int_t)p->filter_blocks,
			"bytes", (json_int_t)1 << p->filter_bits_shift >> 3,
			"yes", (json_int_t)p->filter_yes, "false", (json_int_t)p->filter_false));
	return j;
}

static void print_json(const Vmdedup__PeerListReply *l)
{
	json_t *peers = json_array();
	size_t i;

	for (i = 0; i < l->n_peers; i++)
		json_array_append_new(peers, peer_json(l->peers[i]));
	json_show(json_pack("{s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
			    "endpoint", l->endpoint, "peers", peers,
			    "max_peers", (json_int_t)l->max_peers,
			    "uploads", (json_int_t)l->uploads,
			    "upload_bytes", (json_int_t)l->upload_bytes,
			    "redirects", (json_int_t)l->redirects,
			    "refused", (json_int_t)l->refused,
			    "filter_bytes_in", (json_int_t)l->filter_bytes_in,
			    "filter_bytes_out", (json_int_t)l->filter_bytes_out,
			    "filter_budget", (json_int_t)l->filter_budget,
			    "filter_memory", (json_int_t)l->filter_memory,
			    "peer_gets", (json_int_t)l->peer_gets, "hedges", (json_int_t)l->hedges));
}

static void print_peer(struct table *t, const Vmdedup__PeerInfo *p)
{
	char a[32];

	table_cell(t, "%s", p->endpoint);
	table_cell(t, "%s", p->state);
	table_cell(t, "%s", p->same_rack ? "same" : "-");
	table_cell(t, "%llu", (unsigned long long)p->served);
	table_cell(t, "%s", size_to_text(p->bytes, a));
	table_cell(t, "%.1f ms", (double)p->latency_us / 1000);
	table_cell(t, "%llu", (unsigned long long)p->failed);
	table_cell(t, "%llu", (unsigned long long)p->lies);
	table_cell(t, "%s", p->filter_age_ms == UINT64_MAX ? "-" :
				    duration_to_text(p->filter_age_ms, a));
	table_cell(t, "%llu", (unsigned long long)p->filter_blocks);
	/* Of the times that its filter said yes: how often that was so. */
	if (p->filter_yes) {
		table_cell(t, "%.1f %%",
			   100.0 - 100.0 * (double)p->filter_false / (double)p->filter_yes);
		table_cell(t, "%.1f %%", 100.0 * (double)p->filter_false / (double)p->filter_yes);
	} else {
		table_cell(t, "-");
		table_cell(t, "-");
	}
}

static void print_text(const Vmdedup__PeerListReply *l)
{
	static const char *const heads[] = { "<PEER", "<STATE", "<RACK", "BLOCKS", "BYTES", "LATENCY",
					     "FAILED", "LIES", "FILTER", "HAS", "HITS", "FALSE" };
	struct table *t = table_new(heads, ARRAY_SIZE(heads));
	char a[32], b[32], c[32], d[32];
	size_t i;

	if (*l->endpoint)
		printf("serves     %s: %llu blocks sent, %s; %llu redirected, %llu refused\n",
		       l->endpoint, (unsigned long long)l->uploads,
		       size_to_text(l->upload_bytes, a), (unsigned long long)l->redirects,
		       (unsigned long long)l->refused);
	else
		printf("serves     no peers: [agent] listen is not set\n");
	printf("filters    %s received, %s sent, %s an hour allowed, %s of memory, up to %llu peers\n",
	       size_to_text(l->filter_bytes_in, a), size_to_text(l->filter_bytes_out, b),
	       size_to_text(l->filter_budget, d), size_to_text(l->filter_memory, c),
	       (unsigned long long)l->max_peers);
	printf("asked for  %llu blocks; %llu hedged\n\n", (unsigned long long)l->peer_gets,
	       (unsigned long long)l->hedges);
	for (i = 0; i < l->n_peers; i++)
		print_peer(t, l->peers[i]);
	table_print(t);
}

static int peers_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerList ask = VMDEDUP__PEER_LIST__INIT;
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	struct agent_link a;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	r = agent_open(&a, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_LIST;
	req.peer_list = &ask;
	r = agent_call(&a, &req, VMDEDUP__REPLY__BODY_PEER_LIST, AGENT_TIMEOUT_MS, &reply, &err);
	if (!r && json)
		print_json(reply.header->peer_list);
	else if (!r)
		print_text(reply.header->peer_list);
	net_reply_free(&reply);
	agent_close(&a);
	return r ? cli_fail(&err) : EXIT_OK;
}

const struct verb peers_verbs[] = {
	{ "peers", NULL, "", "the hosts that this one gets blocks from, and what it sends",
	  "RACK says who is in this host's own; LATENCY is that of a block; FILTER how old what it said of its cache is; HITS and FALSE how\n"
	  "often it had a block that its filter said it had. A liar has sent a block that did not\n"
	  "match its fingerprint, and is not asked again.\n\n"
	  "examples:\n"
	  "  vmdedup peers\n"
	  "  vmdedup peers --json | jq '.peers[] | select(.state == \"liar\") | .endpoint'\n",
	  peers_run },
	{ 0 }
};
