// SPDX-License-Identifier: GPL-2.0-or-later
/* Recipe nodes from peers. */
#include <errno.h>
#include <stdlib.h>
#include "agent/peers_impl.h"
#include "base/log.h"
#include "proto/recipe.h"

#define NODE_MS 1000

struct node_get {
	struct peers *peers;
	struct fp hash;
	uint64_t tried;
	void (*done)(void *arg, int r, const void *data, size_t len);
	void *arg;
};

struct node_message {
	struct node_get *get;
	unsigned int peer;
};

static void node_next(struct node_get *g);

static void node_answered(void *arg, int r, struct net_reply *reply)
{
	struct node_message *m = arg;
	struct node_get *g = m->get;
	struct peers *p = g->peers;
	const struct net_frame *f = NULL;
	struct fp seen;

	if (!p->closing)
		sources_peer_heard(links_sources(p->links), m->peer, !r);
	if (!r && !reply->header->error && reply->nr_frames == 1)
		f = &reply->frames[0];
	if (f && f->len && f->len <= RECIPE_NODE_MAX) {
		recipe_node_hash(f->data, f->len, &seen);
		if (fp_equal(&seen, &g->hash)) {
			g->done(g->arg, 0, f->data, f->len);
			free(g);
			g = NULL;
		} else {
			log_warn("a peer sent a recipe node that does not match its hash: it is "
				 "not asked again");
			sources_peer_is_liar(links_sources(p->links), m->peer);
		}
	}
	if (reply)
		net_reply_free(reply);
	free(m);
	if (g)
		node_next(g);
}

static int node_ask(struct node_get *g, unsigned int peer)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__NodeGet get = VMDEDUP__NODE_GET__INIT;
	struct net_client *client = peers_client(g->peers, peer);
	struct node_message *m = malloc(sizeof(*m));
	int r = -ENOTCONN;

	if (!m || !client) {
		free(m);
		return r;
	}
	*m = (struct node_message){ g, peer };
	get.hashes = (ProtobufCBinaryData){ FP_SIZE, g->hash.b };
	req.body_case = VMDEDUP__REQUEST__BODY_NODE_GET;
	req.node_get = &get;
	r = net_client_submit(client, &req, NULL, 0, NODE_MS, node_answered, m);
	if (r)
		free(m);
	return r;
}

/* One after the other, from a random place on, until one has it. */
static void node_next(struct node_get *g)
{
	struct peers *p = g->peers;
	unsigned int i, peer, from = (unsigned int)peers_random() % SOURCES_MAX_PEERS;

	for (i = 0; !p->closing && i < SOURCES_MAX_PEERS; i++) {
		peer = (from + i) % SOURCES_MAX_PEERS;
		if (g->tried >> peer & 1 || !sources_peer_at(links_sources(p->links), peer) ||
		    !sources_peer_usable(links_sources(p->links), peer))
			continue;
		g->tried |= 1ULL << peer;
		if (!node_ask(g, peer))
			return;
	}
	g->done(g->arg, -ENOENT, NULL, 0);
	free(g);
}

int peers_get_node(struct peers *p, const struct fp *hash,
		   void (*done)(void *arg, int r, const void *data, size_t len), void *arg)
{
	struct node_get *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	g->peers = p;
	g->hash = *hash;
	g->done = done;
	g->arg = arg;
	node_next(g);
	return 0;
}
