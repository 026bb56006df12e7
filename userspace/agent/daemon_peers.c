// SPDX-License-Identifier: GPL-2.0-or-later
/* This host among its peers: where it is reached, what it has, and who is told of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/daemon.h"
#include "base/clock.h"

#define ANNOUNCE_S	  20
#define FILTER_S	  600 /* the oldest a generation becomes: evictions wait for the next */
#define MAX_IMAGES	  64
#define NSEC_PER_SEC	  1000000000ULL

int daemon_listen(struct daemon *d, struct error *err)
{
	Vmdedup__PeerAddress address = VMDEDUP__PEER_ADDRESS__INIT;
	const uint8_t *key = net_ctx_public_key(d->net);

	if (!d->config->agent_listen || (!d->config->cache_file && !d->cache))
		return 0;
	d->filter = host_filter_new(d->config->filter_budget, clock_mono_ns());
	if (!d->filter)
		return error_set(err, -ENOMEM, "out of memory");
	d->peer_server = peer_server_new(d->net, d->config->agent_listen, err);
	if (!d->peer_server)
		return err->code;
	address.endpoint = d->config->agent_endpoint ? d->config->agent_endpoint :
			   (char *)peer_server_endpoint(d->peer_server);
	if (key)
		address.curve_key = (ProtobufCBinaryData){ 32, (uint8_t *)key };
	if (peer_address_take(&address, &d->self))
		return error_set(err, -EINVAL, "peers cannot connect to %s: [agent] listen or endpoint "
				 "must be tcp://ADDRESS:PORT", address.endpoint);
	d->self.rack = peer_rack(d->config->agent_rack);
	return 0;
}

int daemon_serve_peers(struct daemon *d, struct error *err)
{
	struct peer_server_params params = {
		.loop = d->loop,
		.agent = d->agent,
		.cache = d->cache,
		.nodes = d->nodes,
		.filter = d->filter,
		.getter = network_getter(d->network),
	};

	return d->peer_server ? peer_server_start(d->peer_server, &params, err) : 0;
}

static void put_block(void *arg, const struct fp *fp)
{
	host_filter_put(arg, fp);
}

static void new_filter(struct daemon *d)
{
	struct agent_stats stats;

	agent_stats(d->agent, &stats);
	if (host_filter_begin(d->filter, stats.clean))
		return; /* no memory: the old one goes on */
	agent_each_clean(d->agent, put_block, d->filter);
	host_filter_end(d->filter);
	d->filter_ns = clock_mono_ns() + FILTER_S * NSEC_PER_SEC;
}

void daemon_have(struct daemon *d, const struct fp *fp)
{
	if (d->filter && !host_filter_add(d->filter, fp))
		new_filter(d);
}

void daemon_announce(struct daemon *d)
{
	struct uuid cache, images[MAX_IMAGES];
	size_t nr;

	d->announce_ns = clock_mono_ns() + ANNOUNCE_S * NSEC_PER_SEC;
	if (!d->peer_server || !agent_is_connected(d->agent))
		return;
	memcpy(cache.b, d->hello.cache, sizeof(cache.b));
	nr = agent_open_images(d->agent, images, MAX_IMAGES);
	network_announce(d->network, &cache, d->host, images, nr);
}

void daemon_peers_tick(struct daemon *d)
{
	uint64_t now = clock_mono_ns();

	if (!d->peer_server || !agent_is_connected(d->agent))
		return;
	if (now >= d->filter_ns)
		new_filter(d);
	if (now >= d->announce_ns || getter_has_liars(network_getter(d->network)))
		daemon_announce(d);
}
