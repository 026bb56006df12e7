// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/cleanup.h"
#include "cli/stores.h"

static const char *const states[] = { "up", "suspect", "down", "draining", "out", "stale" };

static const char *state_name(const struct store_of *s)
{
	if (s->r && !s->state)
		return "no answer";
	return s->state < ARRAY_SIZE(states) ? states[s->state] : "?";
}

static void take(void *arg, const Vmdedup__Server *server, int r,
		 const Vmdedup__DataStatReply *stat)
{
	struct stores *s = arg;
	struct store_of *grown = realloc(s->servers, (s->nr_servers + 1) * sizeof(*grown));

	if (!grown)
		return;
	s->servers = grown;
	grown += s->nr_servers++;
	*grown = (struct store_of){ .endpoint = strdup(server->endpoint), .id = server->id,
				    .state = server->state, .r = r, .capacity = server->capacity,
				    .free = server->free };
	if (r)
		return;
	grown->blocks = stat->blocks;
	grown->raw_bytes = stat->raw_bytes;
	grown->stored_bytes = stat->stored_bytes;
	grown->lump_bytes = stat->lump_bytes;
	grown->get_bytes = stat->get_bytes;
	grown->gets = stat->gets;
	grown->capacity = stat->capacity;
	grown->free = stat->free;
}

int stores_ask(struct connection *cn, struct stores *s, struct error *err)
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
		s->info = reply.header->cluster_info;
		reply.header->cluster_info = NULL;
		reply.header->body_case = VMDEDUP__REPLY__BODY__NOT_SET;
	}
	net_reply_free(&reply);
	return r ? r : cluster_data_stat(cn->cluster, 5000, take, s, err);
}

void stores_free(struct stores *s)
{
	if (s->info)
		vmdedup__cluster_info_reply__free_unpacked(s->info, NULL);
	for (size_t i = 0; i < s->nr_servers; i++)
		free(s->servers[i].endpoint);
	free(s->servers);
	*s = (struct stores){ 0 };
}

static struct store_of sum_of(const struct stores *s)
{
	struct store_of sum = { 0 };

	for (size_t i = 0; i < s->nr_servers; i++) {
		sum.blocks += s->servers[i].blocks;
		sum.raw_bytes += s->servers[i].raw_bytes;
		sum.stored_bytes += s->servers[i].stored_bytes;
		sum.lump_bytes += s->servers[i].lump_bytes;
		sum.capacity += s->servers[i].capacity;
		sum.free += s->servers[i].free;
	}
	return sum;
}

/* What only the server itself knows: null when it has not answered. */
static json_t *own(const struct store_of *s, uint64_t n)
{
	return s->r ? json_null() : json_integer((json_int_t)n);
}

static json_t *server_json(const struct store_of *s)
{
	return json_pack("{s:i, s:s, s:s, s:o, s:o, s:o, s:o, s:I, s:I, s:o, s:o}", "id", (int)s->id,
			 "endpoint", s->endpoint ? s->endpoint : "", "state", state_name(s),
			 "blocks", own(s, s->blocks), "raw_bytes", own(s, s->raw_bytes),
			 "stored_bytes", own(s, s->stored_bytes),
			 "lump_bytes", own(s, s->lump_bytes),
			 "capacity", (json_int_t)s->capacity, "free", (json_int_t)s->free,
			 "gets", own(s, s->gets), "get_bytes", own(s, s->get_bytes));
}

json_t *stores_json(const struct stores *s)
{
	const Vmdedup__ClusterInfoReply *in = s->info;
	struct store_of sum = sum_of(s);
	json_t *servers = json_array(), *domains = json_array();

	for (size_t i = 0; i < s->nr_servers; i++)
		json_array_append_new(servers, server_json(&s->servers[i]));
	for (size_t i = 0; i < in->n_domains; i++)
		json_array_append_new(domains, json_string(in->domains[i]->name));
	return json_pack("{s:s, s:o, s:I, s:s, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:I, s:I, s:b}",
			 "name", in->name, "uuid", json_uuid(in->cluster.data, in->cluster.len),
			 "block_bytes", (json_int_t)1 << in->block_shift, "fingerprint",
			 fp_algorithm_name((enum fp_algorithm)in->algorithm),
			 "replicas", (int)in->replicas, "min_copies", (int)in->min_copies,
			 "map_version", (json_int_t)in->map_version,
			 "images", (json_int_t)in->images, "blocks", (json_int_t)in->blocks,
			 "nodes", (json_int_t)in->nodes, "pushes", (json_int_t)in->pushes,
			 "domains", domains, "servers", servers,
			 "raw_bytes", (json_int_t)sum.raw_bytes,
			 "stored_bytes", (json_int_t)sum.stored_bytes,
			 "deletion_suspended", in->deletion_suspended);
}

void stores_print(const struct stores *s)
{
	static const char *const heads[] = { "SERVER", "<ENDPOINT", "<STATE", "BLOCKS", "CONTENT",
					     "STORED", "LUMPS", "FREE" };
	const Vmdedup__ClusterInfoReply *in = s->info;
	struct store_of sum = sum_of(s);
	struct table *t = table_new(heads, 8);
	char a[32], b[32];

	printf("cluster    %s\n", in->name);
	printf("blocks of  %s, %s, %u replica%s\n", size_to_text(1ULL << in->block_shift, a),
	       fp_algorithm_name((enum fp_algorithm)in->algorithm), in->replicas,
	       in->replicas == 1 ? "" : "s");
	printf("holds      %llu images, %llu distinct blocks, %llu recipe nodes, %llu open pushes\n",
	       (unsigned long long)in->images, (unsigned long long)in->blocks,
	       (unsigned long long)in->nodes, (unsigned long long)in->pushes);
	printf("stored     %s for %s of content\n", size_to_text(sum.stored_bytes, a),
	       size_to_text(sum.raw_bytes, b));
	puts(in->deletion_suspended ? "deletion   suspended since a restore: see `vmdedup cluster "
				      "resume-deletion`\n" : "");
	for (size_t i = 0; i < s->nr_servers; i++) {
		const struct store_of *o = &s->servers[i];

		table_cell(t, "%u", o->id);
		table_cell(t, "%s", o->endpoint ? o->endpoint : "");
		table_cell(t, "%s", state_name(o));
		if (o->r) {
			table_cell(t, "-");
			table_cell(t, "-");
			table_cell(t, "-");
			table_cell(t, "-");
		} else {
			table_cell(t, "%llu", (unsigned long long)o->blocks);
			table_cell(t, "%s", size_to_text(o->raw_bytes, a));
			table_cell(t, "%s", size_to_text(o->stored_bytes, a));
			table_cell(t, "%s", size_to_text(o->lump_bytes, a));
		}
		table_cell(t, "%s", size_to_text(o->free, a));
	}
	table_print(t);
}
