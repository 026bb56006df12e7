// SPDX-License-Identifier: GPL-2.0-or-later
/* The shard map and the data servers that it names. */
#include <errno.h>
#include <string.h>
#include "base/log.h"
#include "lib/internal.h"

static struct server *server_by_id(struct cluster *c, uint32_t id)
{
	for (size_t i = 0; id && i < c->nr_servers; i++)
		if (c->servers[i]->id == id && c->servers[i]->state != SERVER_GONE)
			return c->servers[i];
	return NULL;
}

static struct server *server_add(struct cluster *c, const Vmdedup__Server *s)
{
	struct server *new, **servers;

	if (c->nr_servers == MAX_SERVERS)
		return NULL;
	servers = realloc(c->servers, (c->nr_servers + 1) * sizeof(*servers));
	if (!servers)
		return NULL;
	c->servers = servers;
	new = calloc(1, sizeof(*new));
	if (!new)
		return NULL;
	new->endpoint = strdup(s->endpoint);
	if (!new->endpoint) {
		free(new);
		return NULL;
	}
	new->id = s->id;
	new->index = c->nr_servers;
	new->has_key = s->curve_key.len == sizeof(new->key);
	if (new->has_key)
		memcpy(new->key, s->curve_key.data, sizeof(new->key));
	TAILQ_INIT(&new->gets);
	c->servers[c->nr_servers++] = new;
	return new;
}

/* The server as it was known, unless it has moved or got another key. */
static struct server *server_known(struct cluster *c, const Vmdedup__Server *s)
{
	for (size_t i = 0; i < c->nr_servers; i++) {
		struct server *k = c->servers[i];

		if (k->id != s->id || strcmp(k->endpoint, s->endpoint))
			continue;
		if (k->has_key != (s->curve_key.len == sizeof(k->key)))
			continue;
		if (k->has_key && memcmp(k->key, s->curve_key.data, sizeof(k->key)))
			continue;
		return k;
	}
	return NULL;
}

void cluster_map_apply(struct cluster *c, const Vmdedup__MapReply *m)
{
	if (!m || m->version <= c->map_version)
		return;
	if (m->replicas > MAX_REPLICAS || m->n_shard_servers != (size_t)m->replicas * NR_SHARDS) {
		log_warn("a shard map with %u replicas and %zu entries is ignored", m->replicas,
			 m->n_shard_servers);
		return;
	}
	for (size_t i = 0; i < c->nr_servers; i++)
		c->servers[i]->state = SERVER_GONE;
	for (size_t i = 0; i < m->n_servers; i++) {
		struct server *s = server_known(c, m->servers[i]);

		if (!s)
			s = server_add(c, m->servers[i]);
		if (s)
			s->state = m->servers[i]->state;
	}
	c->map_version = m->version;
	c->map_replicas = m->replicas;
	for (size_t i = 0; i < m->n_shard_servers; i++)
		c->map[i] = server_by_id(c, m->shard_servers[i]);
	c->map_wanted = false;
	cluster_gets_requeue(c);
	cluster_pushes_requeue(c);
}

int cluster_map_fetch(struct cluster *c, int timeout_ms, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;
	struct net_reply reply;
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	req.map_get = &get;
	r = cluster_call(c, &req, NULL, 0, timeout_ms, &reply, err);
	if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_MAP)
		cluster_map_apply(c, reply.header->map);
	net_reply_free(&reply);
	return r;
}

void cluster_map_want(struct cluster *c)
{
	if (c->map_wanted)
		return;
	c->map_wanted = true;
	c->map_due_ns = clock_mono_ns() + MAP_RETRY_MS * NS_PER_MS;
}

static void map_answered(void *arg, int r, struct net_reply *reply)
{
	struct cluster *c = arg;

	c->progress++;
	c->map_asked = false;
	c->map_wanted = false;
	if (!r && reply->header->body_case == VMDEDUP__REPLY__BODY_MAP)
		cluster_map_apply(c, reply->header->map);
	if (reply)
		net_reply_free(reply);
	if (c->closing)
		return;
	/* Even when the map is the old one: what waited for it tries again, or asks again. */
	cluster_gets_requeue(c);
	cluster_pushes_requeue(c);
}

void cluster_map_flush(struct cluster *c)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;

	if (!c->map_wanted || c->map_asked || clock_mono_ns() < c->map_due_ns)
		return;
	get.have_version = c->map_version;
	req.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	req.map_get = &get;
	if (cluster_meta_submit(c, &req, META_ATTEMPT_MS, map_answered, c))
		c->map_due_ns = clock_mono_ns() + MAP_RETRY_MS * NS_PER_MS;
	else
		c->map_asked = true;
}

struct net_client *cluster_server_client(struct cluster *c, struct server *s)
{
	if (!s->client) {
		bool own = c->own_data && !strcmp(c->own_data, s->endpoint);
		struct error err = { 0 };

		s->client = net_client_new(c->net, own ? OWN_DATA : s->endpoint,
					   s->has_key ? s->key : NULL, c->role, &err);
		if (!s->client)
			log_warn("data server %s: %s", s->endpoint, err.text);
	}
	return s->client;
}

void cluster_map_free(struct cluster *c)
{
	for (size_t i = 0; i < c->nr_servers; i++) {
		net_client_free(c->servers[i]->client);
		free(c->servers[i]->endpoint);
		free(c->servers[i]);
	}
	free(c->servers);
}

int cluster_data_stat(struct cluster *c, int timeout_ms,
		      void (*visit)(void *arg, const Vmdedup__Server *server, int r,
				    const Vmdedup__DataStatReply *stat),
		      void *arg, struct error *err)
{
	Vmdedup__Request ask = VMDEDUP__REQUEST__INIT, req = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;
	Vmdedup__DataStat stat = VMDEDUP__DATA_STAT__INIT;
	struct net_reply map;
	int r;

	/* From the meta server afresh: space and state of the servers are as of now. */
	ask.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	ask.map_get = &get;
	req.body_case = VMDEDUP__REQUEST__BODY_DATA_STAT;
	req.data_stat = &stat;
	r = cluster_call(c, &ask, NULL, 0, timeout_ms, &map, err);
	if (r || map.header->body_case != VMDEDUP__REPLY__BODY_MAP)
		goto free_map;
	cluster_map_apply(c, map.header->map);
	for (size_t i = 0; i < map.header->map->n_servers; i++) {
		const Vmdedup__Server *server = map.header->map->servers[i];
		struct server *s = server_known(c, server);
		struct net_client *client = s ? cluster_server_client(c, s) : NULL;
		struct net_reply reply = { 0 };
		int sr = -ENOTCONN;

		if (client)
			sr = net_call(client, &req, NULL, 0, timeout_ms, &reply, NULL);
		if (!sr && reply.header->body_case != VMDEDUP__REPLY__BODY_DATA_STAT)
			sr = -EPROTO;
		visit(arg, server, sr, sr ? NULL : reply.header->data_stat);
		net_reply_free(&reply);
	}
free_map:
	net_reply_free(&map);
	return r;
}
