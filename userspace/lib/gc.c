// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Collection, driven from a client: the meta server says what nothing counts, the data servers
 * delete it. Any step may fail, be repeated or be the last: data servers look at each block's
 * stamp in the transaction that deletes, and what stays behind is found the next time.
 */
#include <errno.h>
#include <string.h>
#include "base/cleanup.h"
#include "lib/internal.h"

#define GC_CALL_MS 30000

struct collection {
	struct cluster *c;
	struct cluster_gc_stats *stats;
	uint32_t *domains;
	size_t nr_domains;
	bool *silent; /* data servers, by their index, that did not answer */
	size_t nr_silent;
};

static int unexpected(struct error *err)
{
	return error_set(err, -EPROTO, "an answer to another request");
}

static int list_domains(struct collection *g, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterInfo info = VMDEDUP__CLUSTER_INFO__INIT;
	const Vmdedup__ClusterInfoReply *in;
	struct net_reply reply;
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &info;
	r = cluster_call(g->c, &req, NULL, 0, GC_CALL_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_CLUSTER_INFO)
		r = unexpected(err);
	if (r)
		goto free_reply;
	in = reply.header->cluster_info;
	g->domains = calloc(in->n_domains + 1, sizeof(*g->domains));
	if (!g->domains)
		r = error_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; !r && i < in->n_domains; i++)
		g->domains[g->nr_domains++] = in->domains[i]->id;
free_reply:
	net_reply_free(&reply);
	return r;
}

/* The meta server's own work: nodes that are dying, then the epochs of shards with dead blocks. */
static int cascade(struct collection *g, uint64_t push_idle_s, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcStep step = VMDEDUP__GC_STEP__INIT;
	const Vmdedup__GcStepReply *s;
	struct net_reply reply;
	bool more = true;
	int r = 0;

	step.now = true;
	step.push_idle_s = push_idle_s;
	req.body_case = VMDEDUP__REQUEST__BODY_GC_STEP;
	req.gc_step = &step;
	while (!r && more) {
		r = cluster_call(g->c, &req, NULL, 0, GC_CALL_MS, &reply, err);
		if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_GC_STEP)
			r = unexpected(err);
		if (!r) {
			s = reply.header->gc_step;
			g->stats->freed_nodes += s->freed_nodes;
			g->stats->dying_nodes = s->dying_nodes;
			g->stats->dead_blocks = s->dead_blocks;
			more = s->more;
		}
		net_reply_free(&reply);
	}
	return r;
}

static int delete_at(struct collection *g, struct server *s, uint32_t shard, uint32_t domain,
		     const Vmdedup__GcListReply *list, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardDelete del = VMDEDUP__SHARD_DELETE__INIT;
	struct net_client *client = cluster_server_client(g->c, s);
	struct net_reply reply;
	int r;

	if (!client)
		return error_set(err, -ENOTCONN, "no connection to data server %s", s->endpoint);
	del.shard = shard;
	del.domain = domain;
	del.below_epoch = list->below_epoch;
	del.fingerprints = list->fingerprints;
	del.history = list->history;
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_DELETE;
	req.shard_delete = &del;
	r = net_call(client, &req, NULL, 0, GC_CALL_MS, &reply, err);
	if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_SHARD_DELETE) {
		g->stats->deleted_copies += reply.header->shard_delete->deleted;
		g->stats->kept_copies += reply.header->shard_delete->kept;
	}
	net_reply_free(&reply);
	return r ? error_prefix(err, "data server %s", s->endpoint) : 0;
}

static int forget(struct collection *g, uint32_t shard, uint32_t domain, ProtobufCBinaryData fps,
		  struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcForget f = VMDEDUP__GC_FORGET__INIT;
	struct net_reply reply;
	int r;

	f.shard = shard;
	f.domain = domain;
	f.fingerprints = fps;
	req.body_case = VMDEDUP__REQUEST__BODY_GC_FORGET;
	req.gc_forget = &f;
	r = cluster_call(g->c, &req, NULL, 0, GC_CALL_MS, &reply, err);
	net_reply_free(&reply);
	return r;
}

/* A server that is not there, or that did not answer once, is not waited for again. */
static bool is_skipped(const struct collection *g, const struct server *s)
{
	return !cluster_server_is_up(s) || (s->index < g->nr_silent && g->silent[s->index]);
}

static bool skip(struct collection *g, const struct server *s, int r)
{
	if (r != -ETIMEDOUT && r != -ENOTCONN && r != -EAGAIN)
		return false;
	if (s->index >= g->nr_silent) {
		bool *grown = realloc(g->silent, g->c->nr_servers * sizeof(*grown));

		if (!grown)
			return false;
		memset(grown + g->nr_silent, 0, g->c->nr_servers - g->nr_silent);
		g->silent = grown;
		g->nr_silent = g->c->nr_servers;
	}
	g->silent[s->index] = true;
	return true;
}

/* One page of what is condemned. The copies go on every replica before the row does; if one
 * replica cannot be reached the row stays for the next time. */
static int delete_page(struct collection *g, uint32_t shard, uint32_t domain,
		       const Vmdedup__GcListReply *list, struct error *err)
{
	size_t n = list->fingerprints.len / FP_SIZE;
	bool everywhere = true;
	int r = 0;

	for (unsigned int i = 0; !r && i < g->c->map_replicas; i++) {
		struct server *s = g->c->map[shard * g->c->map_replicas + i];

		if (!s)
			continue;
		r = is_skipped(g, s) ? -ENOTCONN :
		    delete_at(g, s, shard, domain, list, err);
		if (r && (is_skipped(g, s) || skip(g, s, r))) {
			everywhere = false;
			r = 0;
		}
	}
	if (r)
		return r;
	if (!everywhere) {
		g->stats->left_blocks += n;
		return 0;
	}
	r = forget(g, shard, domain, list->fingerprints, err);
	if (!r)
		g->stats->deleted_blocks += n;
	return r;
}

/* *@next: the next shard that has to be asked for. */
static int delete_condemned(struct collection *g, uint32_t shard, uint32_t domain, uint32_t *next,
			    struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcList ask = VMDEDUP__GC_LIST__INIT;
	uint8_t after[FP_SIZE];
	struct net_reply reply;
	bool more = true;
	int r = 0;

	ask.shard = shard;
	ask.domain = domain;
	req.body_case = VMDEDUP__REQUEST__BODY_GC_LIST;
	req.gc_list = &ask;
	while (!r && more) {
		const ProtobufCBinaryData *fps;

		r = cluster_call(g->c, &req, NULL, 0, GC_CALL_MS, &reply, err);
		if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_GC_LIST ||
			   reply.header->gc_list->fingerprints.len % FP_SIZE))
			r = unexpected(err);
		if (!r) {
			fps = &reply.header->gc_list->fingerprints;
			more = reply.header->gc_list->more && fps->len;
			*next = MAX(reply.header->gc_list->next_shard, shard + 1);
			if (fps->len) {
				memcpy(after, fps->data + fps->len - FP_SIZE, FP_SIZE);
				ask.after = (ProtobufCBinaryData){ FP_SIZE, after };
				r = delete_page(g, shard, domain, reply.header->gc_list, err);
			}
		}
		net_reply_free(&reply);
	}
	return r;
}

/* ---- copies that nothing knows ---- */

static int select_unknown(struct collection *g, uint32_t shard, uint32_t domain,
			  ProtobufCBinaryData fps, bool raise, struct net_reply *reply,
			  struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__GcSelect sel = VMDEDUP__GC_SELECT__INIT;
	int r;

	sel.shard = shard;
	sel.domain = domain;
	sel.fingerprints = fps;
	sel.raise = raise;
	req.body_case = VMDEDUP__REQUEST__BODY_GC_SELECT;
	req.gc_select = &sel;
	r = cluster_call(g->c, &req, NULL, 0, GC_CALL_MS, reply, err);
	if (!r && reply->header->body_case != VMDEDUP__REPLY__BODY_GC_LIST)
		r = unexpected(err);
	return r;
}

/* Copies that nothing knows and that are stamped with the shard's present epoch may be those of a
 * push that is under way: they go with the next collection, for which the epoch is raised now. */
static int raise_for_young(struct collection *g, uint32_t shard, uint32_t domain,
			   const Vmdedup__ShardListReply *page, uint64_t epoch, struct error *err)
{
	ProtobufCBinaryData young = { .data = malloc(page->fingerprints.len) };
	struct net_reply reply = { 0 };
	int r = 0;

	if (!young.data)
		return error_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; i < page->n_epochs && (i + 1) * FP_SIZE <= page->fingerprints.len; i++) {
		if (page->epochs[i] < epoch)
			continue;
		memcpy(young.data + young.len, page->fingerprints.data + i * FP_SIZE, FP_SIZE);
		young.len += FP_SIZE;
	}
	if (young.len)
		r = select_unknown(g, shard, domain, young, true, &reply, err);
	net_reply_free(&reply);
	free(young.data);
	return r;
}

static int sweep_page(struct collection *g, struct server *s, uint32_t shard, uint32_t domain,
		      const Vmdedup__ShardListReply *page, struct error *err)
{
	const Vmdedup__GcListReply *unknown;
	struct net_reply reply;
	uint64_t kept;
	int r;

	g->stats->listed_copies += page->fingerprints.len / FP_SIZE;
	r = select_unknown(g, shard, domain, page->fingerprints, false, &reply, err);
	unknown = r ? NULL : reply.header->gc_list;
	if (unknown && unknown->fingerprints.len) {
		kept = g->stats->kept_copies;
		r = delete_at(g, s, shard, domain, unknown, err);
		if (!r && g->stats->kept_copies != kept)
			r = raise_for_young(g, shard, domain, page, unknown->below_epoch, err);
	}
	net_reply_free(&reply);
	return r;
}

static int sweep(struct collection *g, struct server *s, uint32_t shard, uint32_t domain,
		 struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardList ask = VMDEDUP__SHARD_LIST__INIT;
	struct net_client *client = cluster_server_client(g->c, s);
	const Vmdedup__ShardListReply *page;
	struct net_reply reply;
	uint8_t after[FP_SIZE];
	bool more = true;
	int r = 0;

	if (!client)
		return error_set(err, -ENOTCONN, "no connection to data server %s", s->endpoint);
	ask.shard = shard;
	ask.domain = domain;
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_LIST;
	req.shard_list = &ask;
	while (!r && more) {
		r = net_call(client, &req, NULL, 0, GC_CALL_MS, &reply, err);
		page = r ? NULL : reply.header->shard_list;
		if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_SHARD_LIST ||
			   page->fingerprints.len % FP_SIZE))
			r = unexpected(err);
		more = !r && page->more && page->fingerprints.len;
		if (!r && page->fingerprints.len) {
			memcpy(after, page->fingerprints.data + page->fingerprints.len - FP_SIZE,
			       FP_SIZE);
			ask.after = (ProtobufCBinaryData){ FP_SIZE, after };
			r = sweep_page(g, s, shard, domain, page, err);
		}
		net_reply_free(&reply);
	}
	return r;
}

static int sweep_shard(struct collection *g, uint32_t shard, uint32_t domain, struct error *err)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < g->c->map_replicas; i++) {
		struct server *s = g->c->map[shard * g->c->map_replicas + i];

		if (!s || is_skipped(g, s))
			continue;
		r = sweep(g, s, shard, domain, err);
		if (r && skip(g, s, r))
			r = 0;
	}
	return r;
}

int cluster_gc(struct cluster *c, bool full, uint64_t push_idle_s, bool (*stopped)(void *arg),
	       void *arg, struct cluster_gc_stats *stats, struct error *err)
{
	struct collection g = { .c = c, .stats = stats };
	uint32_t condemned = 0; /* no shard before this one has any left */
	int r;

	*stats = (struct cluster_gc_stats){ 0 };
	r = cascade(&g, push_idle_s, err);
	if (!r)
		r = list_domains(&g, err);
	/* The raised epochs came with a new map: data servers hear of it by its version. */
	if (!r)
		r = cluster_map_fetch(c, GC_CALL_MS, err);
	for (uint32_t shard = 0, next; !r && shard < NR_SHARDS; shard = full ? shard + 1 : condemned) {
		if (stopped && stopped(arg)) {
			r = error_set(err, -EINTR,
				      "stopped; what is left is collected the next time");
			break;
		}
		next = condemned;
		for (size_t i = 0; !r && i < g.nr_domains; i++) {
			if (shard >= condemned)
				r = delete_condemned(&g, shard, g.domains[i], &next, err);
			if (!r && full)
				r = sweep_shard(&g, shard, g.domains[i], err);
		}
		condemned = next;
	}
	free(g.domains);
	free(g.silent);
	return r;
}
