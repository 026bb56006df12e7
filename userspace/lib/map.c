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
	LIST_INIT(&new->batches);
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
	if (m->replicas > MAX_PLACES || m->n_shard_servers != (size_t)m->replicas * NR_SHARDS ||
	    (m->shard_states.len && m->shard_states.len != m->n_shard_servers)) {
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
	for (size_t i = 0; i < m->n_shard_servers; i++) {
		c->map[i] = server_by_id(c, m->shard_servers[i]);
		c->map_states[i] = m->shard_states.len ? m->shard_states.data[i] : 0;
	}
	c->map_wanted = false;
	for (size_t i = 0; i < c->nr_servers; i++) {
		if (cluster_server_is_up(c->servers[i]))
			continue;
		cluster_gets_abandon(c, c->servers[i]);
		cluster_pushes_abandon(c, c->servers[i]);
	}
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

/* ---- servers that do not answer ---- */

static void reported(void *arg, int r, struct net_reply *reply)
{
	if (reply)
		net_reply_free(reply);
}

void cluster_report(struct cluster *c, struct server *s, const char *what)
{
	Vmdedup__ServerReport report = VMDEDUP__SERVER_REPORT__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	uint64_t now = clock_mono_ns();

	if (s->reported_ns && now - s->reported_ns < REPORT_EVERY_MS * NS_PER_MS)
		return;
	s->reported_ns = now;
	report.server = s->id;
	report.what = (char *)what;
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_REPORT;
	req.server_report = &report;
	/* Only the governor acts upon it, and only it knows that it is. */
	for (size_t i = 0; i < c->nr_metas; i++)
		if (c->metas[i].client)
			net_client_submit(c->metas[i].client, &req, NULL, 0, META_ATTEMPT_MS,
					  reported, c);
	cluster_map_want(c);
}

void cluster_servers_watch(struct cluster *c)
{
	uint64_t now = clock_mono_ns();

	for (size_t i = 0; i < c->nr_servers; i++) {
		struct server *s = c->servers[i];
		bool lost = s->client && net_client_pending(s->client) &&
			    !net_client_is_connected(s->client);

		if (!lost) {
			s->lost = false;
			s->waits_ns = 0;
			continue;
		}
		/* The first connection takes a moment. */
		if (!s->waits_ns)
			s->waits_ns = now;
		if (!s->last_answer_ns && now - s->waits_ns < CONNECT_PATIENCE_MS * NS_PER_MS)
			continue;
		if (!s->lost)
			cluster_gets_abandon(c, s);
		s->lost = true;
		if (!c->closing)
			cluster_report(c, s, "the connection broke");
	}
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

int cluster_servers_ask(struct cluster *c, Vmdedup__Request *req, int timeout_ms,
			void (*visit)(void *arg, const Vmdedup__MapReply *map,
				      const Vmdedup__Server *server, int r,
				      const Vmdedup__Reply *reply),
			void *arg, struct error *err)
{
	Vmdedup__Request ask = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;
	const Vmdedup__MapReply *m;
	struct net_reply map;
	int r;

	/* From the meta server afresh: space and state of the servers are as of now. */
	ask.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	ask.map_get = &get;
	r = cluster_call(c, &ask, NULL, 0, timeout_ms, &map, err);
	if (!r && map.header->body_case != VMDEDUP__REPLY__BODY_MAP)
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	if (r)
		goto free_map;
	m = map.header->map;
	cluster_map_apply(c, m);
	for (size_t i = 0; i < m->n_servers; i++) {
		struct server *s = server_known(c, m->servers[i]);
		struct net_client *client = NULL;
		struct net_reply reply = { 0 };
		int sr = -ENOTCONN;

		if (s && m->servers[i]->state != SERVER_IS_DOWN &&
		    m->servers[i]->state != SERVER_IS_OUT)
			client = cluster_server_client(c, s);
		if (client)
			sr = net_call(client, req, NULL, 0, timeout_ms, &reply, NULL);
		visit(arg, m, m->servers[i], sr, sr ? NULL : reply.header);
		net_reply_free(&reply);
	}
	if (!m->n_servers)
		visit(arg, m, NULL, 0, NULL);
free_map:
	net_reply_free(&map);
	return r;
}

struct stat_visit {
	void (*visit)(void *arg, const Vmdedup__Server *server, int r,
		      const Vmdedup__DataStatReply *stat);
	void *arg;
};

static void stat_visit(void *arg, const Vmdedup__MapReply *map, const Vmdedup__Server *server,
		       int r, const Vmdedup__Reply *reply)
{
	struct stat_visit *v = arg;

	if (!server)
		return;
	if (!r && reply->body_case != VMDEDUP__REPLY__BODY_DATA_STAT)
		r = -EPROTO;
	v->visit(v->arg, server, r, r ? NULL : reply->data_stat);
}

int cluster_data_stat(struct cluster *c, int timeout_ms,
		      void (*visit)(void *arg, const Vmdedup__Server *server, int r,
				    const Vmdedup__DataStatReply *stat),
		      void *arg, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__DataStat stat = VMDEDUP__DATA_STAT__INIT;
	struct stat_visit v = { visit, arg };

	req.body_case = VMDEDUP__REQUEST__BODY_DATA_STAT;
	req.data_stat = &stat;
	return cluster_servers_ask(c, &req, timeout_ms, stat_visit, &v, err);
}
