// SPDX-License-Identifier: GPL-2.0-or-later
/* `vmdedup peers`: whom this host gets blocks from, and what it sends. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/daemon.h"

struct peers_request {
	struct work work;
	struct getter_list list;
	struct daemon *daemon;
	struct net_request *req;
};

static const char *const states[] = {
	[PEER_NEW] = "new", [PEER_OK] = "ok", [PEER_SILENT] = "silent", [PEER_LIAR] = "liar",
};

static void fill_peer(Vmdedup__PeerInfo *out, const struct peers_info *in, uint32_t rack)
{
	vmdedup__peer_info__init(out);
	out->endpoint = (char *)in->peer.address.endpoint;
	out->state = (char *)states[in->peer.state];
	out->asked = in->peer.asked;
	out->served = in->peer.served;
	out->bytes = in->peer.bytes;
	out->not_here = in->peer.not_here;
	out->busy = in->peer.busy;
	out->failed = in->peer.failed;
	out->lies = in->peer.lies;
	out->latency_us = in->peer.latency_ns / 1000;
	out->filter_yes = in->peer.filter_yes;
	out->filter_false = in->peer.filter_false;
	out->filter_age_ms = in->filter_age_ms;
	out->filter_blocks = in->filter_blocks;
	out->filter_bits_shift = in->filter_shift;
	out->same_rack = rack && in->peer.address.rack == rack;
}

static void reply_peers(struct work *w)
{
	struct peers_request *p = (struct peers_request *)w;
	Vmdedup__PeerInfo infos[SOURCES_MAX_PEERS], *pointers[SOURCES_MAX_PEERS];
	Vmdedup__PeerListReply body = VMDEDUP__PEER_LIST_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct peer_server_stats up = { 0 };
	size_t i;

	for (i = 0; i < p->list.nr; i++) {
		fill_peer(&infos[i], &p->list.peers[i], p->daemon->self.rack);
		pointers[i] = &infos[i];
	}
	if (p->daemon->peer_server) {
		peer_server_stats(p->daemon->peer_server, &up);
		body.endpoint = (char *)p->daemon->self.endpoint;
	}
	body.n_peers = p->list.nr;
	body.peers = pointers;
	body.uploads = up.blocks;
	body.upload_bytes = up.bytes;
	body.redirects = up.redirects;
	body.refused = up.refused;
	body.filter_bytes_out = up.filter_bytes;
	body.filter_bytes_in = p->list.totals.filter_bytes_in;
	body.filter_memory = p->list.totals.filter_memory;
	body.max_peers = p->list.totals.max_peers;
	body.filter_budget = p->list.totals.filter_budget;
	body.hedges = p->list.totals.sources.hedges;
	body.peer_gets = p->list.totals.sources.peer_gets;
	reply.body_case = VMDEDUP__REPLY__BODY_PEER_LIST;
	reply.peer_list = &body;
	net_reply_send(p->req, &reply, NULL, 0);
	free(p);
}

/* On the getter's thread. */
static void listed(struct getter_list *list)
{
	struct peers_request *p =
		(struct peers_request *)((char *)list - offsetof(struct peers_request, list));

	loop_post(p->daemon->loop, &p->work);
}

void control_peers(struct daemon *d, struct net_request *req)
{
	struct peers_request *p = calloc(1, sizeof(*p));

	if (!p) {
		net_reply_error(req, ENOMEM, "out of memory");
		return;
	}
	p->work.done = reply_peers;
	p->list.done = listed;
	p->daemon = d;
	p->req = req;
	getter_list(network_getter(d->network), &p->list);
}
