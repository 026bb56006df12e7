// SPDX-License-Identifier: GPL-2.0-or-later
/* A host: the cores, its guests, and its cache. */
#include <errno.h>
#include "swarm_impl.h"

#define DATA_BATCH_BYTES (4U << 20) /* of lib/blocks.c */
#define DATA_MESSAGES	 8	    /* to one server at a time, of lib/blocks.c */
#define GET_MEMORY	 (64ULL << 20) /* of daemon.c */
#define FILTER_S	 600	       /* of daemon_peers.c */
#define META_NS		 (1 * SIM_MS)
#define CONTROL_NS	 (20 * SIM_US) /* of the cache's channel */

/* ---- what the cores ask for ---- */

static uint64_t op_now(void *ctx)
{
	return ((struct host *)ctx)->w->sim.now;
}

static uint64_t op_random(void *ctx)
{
	return sim_random(&((struct host *)ctx)->w->sim);
}

static void op_send_blocks(void *ctx, unsigned int peer, const struct link_ask *asks, unsigned int nr)
{
	struct host *h = ctx;
	const struct source_peer *sp = sources_peer_at(links_sources(h->links), peer);
	struct packet *m = packet_new(h->w, ASK_PEER, h->n, host_of(&sp->address));
	unsigned int i;

	m->peer = peer;
	m->nr = nr;
	m->wait_ms = asks[0].wait_ms;
	for (i = 0; i < nr; i++)
		m->items[i] = (struct item){ .id = asks[i].id, .block = block_of(&asks[i].fp) };
	packet_hop(h->w, m);
}

static bool op_send_filter(void *ctx, unsigned int peer, uint64_t generation, uint64_t additions,
			   uint64_t max)
{
	struct host *h = ctx;
	const struct source_peer *sp = sources_peer_at(links_sources(h->links), peer);
	struct packet *m = packet_new(h->w, ASK_FILTER, h->n, host_of(&sp->address));

	m->peer = peer;
	m->life = links_life(h->links, peer);
	m->generation = generation;
	m->additions = additions;
	m->max = max;
	packet_hop(h->w, m);
	return true;
}

static void op_ask_data(void *ctx, uint64_t id, const struct fp *fp, bool serve)
{
	struct host *h = ctx;
	unsigned int server = fp_shard(fp) % h->w->p.data_servers;
	struct wanted *d = &h->wanted[server];

	h->wants |= 1ULL << server;
	if (d->nr == d->room) {
		d->room = d->room ? 2 * d->room : 16;
		d->asks = realloc(d->asks, d->room * sizeof(*d->asks));
		if (!d->asks)
			abort();
	}
	d->asks[d->nr].id = id;
	d->asks[d->nr].block = block_of(fp);
	d->asks[d->nr++].serve = serve;
}

/* As lib/blocks.c: some in a message, and some messages at a time. */
static void send_wanted(struct host *h, unsigned int server)
{
	struct wanted *d = &h->wanted[server];
	unsigned int max = MAX(1, MIN(DATA_BATCH_BYTES >> h->w->p.block_shift, MAX_ITEMS)), i, kept;
	struct packet *m;

	while (d->nr && d->under_way < DATA_MESSAGES) {
		m = packet_new(h->w, ASK_DATA, h->n, h->w->p.hosts + server);
		m->serve = d->asks[0].serve;
		for (i = kept = 0; i < d->nr; i++)
			if (m->nr < max && d->asks[i].serve == m->serve)
				m->items[m->nr++] = (struct item){ .id = d->asks[i].id,
								   .block = d->asks[i].block };
			else
				d->asks[kept++] = d->asks[i];
		d->nr = kept;
		d->under_way++;
		packet_hop(h->w, m);
	}
	if (!d->nr)
		h->wants &= ~(1ULL << server);
}

static void free_block(struct bytes *b)
{
	free(b);
}

/* A block's length without its bytes. */
static struct bytes *block_new(const struct host *h)
{
	struct bytes *b = malloc(sizeof(*b));

	if (b)
		*b = (struct bytes){ b, (size_t)1 << h->w->p.block_shift, free_block };
	return b;
}

static void op_done(void *ctx, void *arg, int r, enum source_kind from, const void *data, size_t len)
{
	struct host *h = ctx;

	agent_get_done(h->agent, (uintptr_t)arg, r, from == SOURCE_PEER, r ? NULL : block_new(h));
}

static void op_gone(void *ctx, unsigned int peer)
{
}

static bool op_knows_key(void *ctx, const struct peer_address *a)
{
	return true;
}

static const struct link_ops link_ops = {
	op_now, op_random, op_send_blocks, op_send_filter, op_ask_data, op_done, op_gone, op_knows_key,
};

static void op_get(void *ctx, uint64_t id, const struct fp *fp)
{
	struct host *h = ctx;

	if (sources_get(links_sources(h->links), fp, (void *)(uintptr_t)id))
		abort();
}

static void op_resolve(void *ctx, uint64_t id, const struct fp *root, uint64_t size, uint64_t block)
{
	struct host *h = ctx;

	sim_at(&h->w->sim, h->w->sim.now + CONTROL_NS, EV_RESOLVED, h->n, id, (void *)(uintptr_t)block);
}

static void op_lease(void *ctx, uint64_t id, const struct agent_lease *take)
{
	struct host *h = ctx;

	sim_at(&h->w->sim, h->w->sim.now + META_NS, EV_LEASED, h->n, id, NULL);
}

static void op_trace_get(void *ctx, uint64_t id, const struct fp *root, const struct uuid *image)
{
	struct host *h = ctx;

	sim_at(&h->w->sim, h->w->sim.now + META_NS, EV_TRACED, h->n, id, NULL);
}

static void op_trace_put(void *ctx, const struct fp *root, const struct uuid *image,
			 const void *blocks, size_t len)
{
}

/* A block, or its map entry, goes to the cache. */
static void to_cache(struct host *h, uint64_t id, uint64_t volume, uint64_t block, bool is_map,
		     uint64_t slot)
{
	struct publish *p = malloc(sizeof(*p));
	uint64_t at = h->w->sim.now + CONTROL_NS;

	if (!p)
		abort();
	*p = (struct publish){ id, volume, block, is_map, slot };
	if (!is_map)
		at = sim_pipe(&h->disk_free, at, 1ULL << h->w->p.block_shift, h->w->p.disk_rate);
	sim_at(&h->w->sim, at, is_map ? EV_MAPPED : EV_PUBLISHED, h->n, 0, p);
}

static void op_publish(void *ctx, uint64_t id, const struct dm_dedup_publish *p)
{
	to_cache(ctx, id, p->volume, p->block, false, 0);
}

static void op_map(void *ctx, uint64_t id, const struct dm_dedup_map *m)
{
	to_cache(ctx, id, m->volume, m->block, true, m->slot);
}

static void op_fail(void *ctx, uint64_t cookie, int error)
{
}

static void op_fence(void *ctx, const struct uuid *image, uint64_t epoch)
{
}

static void op_image(void *ctx, uint64_t id, const char *name)
{
}

static void op_want_push(void *ctx, uint64_t volume, enum agent_push_reason why)
{
}

static void op_discard(void *ctx, uint64_t volume, uint64_t epoch)
{
}

/* As in daemon_peers.c. */
static void put_block(void *arg, const struct fp *fp)
{
	host_filter_put(arg, fp);
}

static void new_filter(struct host *h)
{
	struct agent_stats stats;

	agent_stats(h->agent, &stats);
	if (host_filter_begin(h->filter, stats.clean))
		abort();
	agent_each_clean(h->agent, put_block, h->filter);
	host_filter_end(h->filter);
	h->filter_ns = h->w->sim.now + FILTER_S * SIM_S;
}

static void op_settled(void *ctx, const struct fp *fp)
{
	packet_settled(ctx, fp);
}

static void op_have(void *ctx, const struct fp *fp)
{
	struct host *h = ctx;

	if (h->filter && !host_filter_add(h->filter, fp))
		new_filter(h);
}

/* ---- guests ---- */

static void upcall(struct host *h, unsigned int volume, uint16_t type, uint64_t block)
{
	struct dm_dedup_upcall up = { .size = sizeof(up), .type = type, .block = block };
	struct fp root = fp_of(UINT32_MAX);

	up.cookie = ++h->next_cookie;
	up.info.volume = volume + 1;
	up.info.image[0] = (uint8_t)(volume + 1);
	up.info.image[1] = (uint8_t)((volume + 1) >> 8);
	memcpy(up.info.root, root.b, FP_SIZE);
	up.info.size = (uint64_t)h->w->p.blocks << h->w->p.block_shift;
	up.info.flags = DM_DEDUP_VOL_READONLY;
	snprintf(up.info.name, sizeof(up.info.name), "v%u", volume);
	agent_upcalls(h->agent, &up, 1);
}

static void read_done(struct host *h, struct volume_sim *v)
{
	if (++v->done < h->w->p.touched || ++h->complete < h->w->p.volumes)
		return;
	h->ended_ns = h->w->sim.now;
	h->w->complete++;
}

static void guest_run(struct host *h, unsigned int volume)
{
	struct volume_sim *v = &h->volumes[volume];
	struct swarm *w = h->w;

	while (v->next < w->p.touched && v->waiting < w->p.depth) {
		uint32_t block = w->order[v->next];

		if (w->sim.now < v->start_ns) {
			if (!v->timer)
				sim_at(&w->sim, v->start_ns, EV_GUEST, h->n, volume, NULL);
			v->timer = true;
			return;
		}
		v->start_ns = w->sim.now + w->p.think_ns;
		v->next++;
		if (bit(v->mapped, block)) {
			read_done(h, v);
			continue;
		}
		v->waiting++;
		set_bit(v->parked, block);
		upcall(h, volume, DM_DEDUP_UP_FETCH, block);
	}
}

static void is_mapped(struct host *h, unsigned int volume, uint64_t block)
{
	struct volume_sim *v = &h->volumes[volume];

	set_bit(v->mapped, block);
	if (!bit(v->parked, block))
		return;
	v->parked[block / 8] &= (uint8_t)~(1 << block % 8);
	v->waiting--;
	read_done(h, v);
	guest_run(h, volume);
}

static void op_reply(void *ctx, uint64_t cookie, int error, const struct dm_dedup_volume_info *info)
{
	struct host *h = ctx;

	if (error)
		abort();
	/* The cookies of a host's first upcalls are those of its OPENs. */
	sim_at(&h->w->sim, h->w->sim.now + CONTROL_NS, EV_GUEST, h->n, cookie - 1, NULL);
}

static const struct agent_ops agent_ops = {
	.now_ns = op_now, .random = op_random, .publish = op_publish, .map = op_map,
	.fail = op_fail, .reply = op_reply, .fence = op_fence, .resolve = op_resolve,
	.get = op_get, .image = op_image, .lease = op_lease, .have = op_have,
	.trace_get = op_trace_get, .trace_put = op_trace_put, .want_push = op_want_push,
	.discard = op_discard, .settled = op_settled,
};

/* ---- a host's time ---- */

void host_turn(struct host *h)
{
	struct swarm *w = h->w;
	uint64_t next, set;

	if (agent_next_ns(h->agent) <= w->sim.now)
		agent_tick(h->agent);
	if (h->filter && w->sim.now >= h->filter_ns)
		new_filter(h);
	packet_expire(h, w->sim.now);
	links_run(h->links);
	for (set = h->wants; set; set &= set - 1)
		send_wanted(h, (unsigned int)__builtin_ctzll(set));
	next = MIN(links_next_ns(h->links), agent_next_ns(h->agent));
	next = MIN(next, parked_next_ns(h->parked));
	/* The daemon waits in whole milliseconds. */
	next = MAX(next, w->sim.now + SIM_MS);
	if (h->timer_ns > w->sim.now && h->timer_ns <= next)
		return;
	h->timer_ns = next;
	if (h->complete < w->p.volumes || w->p.filters)
		sim_at(&w->sim, next, EV_TIMER, h->n, 0, NULL);
}

/* As peers_run() does before anything else. */
static void look_at_connections(struct host *h)
{
	uint64_t set = links_watched(h->links);

	for (; set; set &= set - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(set);
		const struct source_peer *sp = sources_peer_at(links_sources(h->links), i);

		if (sp)
			links_connection(h->links, i, is_there(&h->w->hosts[host_of(&sp->address)]));
	}
}

/* As the meta server's: half of the same rack, where they are stated; a quarter at random; the others,
 * who have the image in common, from a random place on. */
static void suggest_peers(struct host *h)
{
	struct swarm *w = h->w;
	struct peer_address list[PEERS_SET];
	uint32_t from = (uint32_t)(sim_random(&w->sim) % w->p.hosts), other;
	uint32_t rack = w->nodes[h->n].rack * w->p.rack_hosts, here = MIN(w->p.rack_hosts, w->p.hosts - rack);
	unsigned int i, n = 0;

	for (i = 0; i < PEERS_SET; i++) {
		if (i < PEERS_SET / 2 && w->p.state_racks)
			other = rack + (from + i) % here;
		else
			other = i < PEERS_SET / 4 * 3 ? (from + i) % w->p.hosts :
				(uint32_t)(sim_random(&w->sim) % w->p.hosts);
		if (other != h->n)
			list[n++] = w->addresses[other];
	}
	links_suggest(h->links, list, n);
}

static void host_begin(struct host *h)
{
	struct swarm *w = h->w;
	struct agent_params params = { .max_get_bytes = GET_MEMORY, .lookup_wait_s = 20 };
	struct dm_dedup_hello hello = {
		.nr_slots = w->p.touched * 2ULL + 64, .block_shift = w->p.block_shift,
	};
	unsigned int i;

	h->began_ns = w->sim.now;
	h->agent = agent_new(&agent_ops, h, &params);
	h->links = links_new(&link_ops, h, w->p.peers ? &w->addresses[h->n] : NULL, w->p.filters ? 1ULL << 30 : 0);
	h->serving = serving_new(64); /* less than a daemon has: few are busy, and it is memory */
	h->parked = parked_new();
	h->wanted = calloc(w->p.data_servers, sizeof(*h->wanted));
	h->volumes = calloc(w->p.volumes, sizeof(*h->volumes));
	if (!h->agent || !h->links || !h->serving || !h->parked || !h->wanted || !h->volumes ||
	    agent_connected(h->agent, &hello, NULL, 0))
		abort();
	links_set_block_shift(h->links, w->p.block_shift);
	if (w->p.filters) {
		h->filter = host_filter_new(1ULL << 30, w->sim.now);
		if (!h->filter)
			abort();
	}
	if (w->p.peers)
		suggest_peers(h);
	for (i = 0; i < w->p.volumes; i++) {
		h->volumes[i].mapped = calloc(w->p.blocks / 8 + 1, 1);
		h->volumes[i].parked = calloc(w->p.blocks / 8 + 1, 1);
		if (!h->volumes[i].mapped || !h->volumes[i].parked)
			abort();
		upcall(h, i, DM_DEDUP_UP_OPEN, 0);
	}
}

static void cache_answers(struct host *h, struct publish *p)
{
	unsigned int volume = (unsigned int)p->volume - 1;
	int r = bit(h->volumes[volume].mapped, p->block) ? -EEXIST : 0;

	if (!r)
		is_mapped(h, volume, p->block);
	if (p->is_map)
		agent_map_done(h->agent, p->id, r);
	else if (r)
		agent_publish_done(h->agent, p->id, r, 0, 0);
	else
		agent_publish_done(h->agent, p->id, 0, h->next_slot, h->next_slot + 1);
	h->next_slot += !p->is_map && !r;
	free(p);
}

void host_event(struct host *h, const struct sim_event *e)
{
	struct swarm *w = h->w;
	struct agent_lease lease = { .root = fp_of(UINT32_MAX) };
	struct fp fp;

	switch (e->kind) {
	case EV_BEGIN:
		host_begin(h);
		break;
	case EV_TIMER:
		look_at_connections(h);
		break;
	case EV_GUEST:
		h->volumes[e->a].timer = false;
		guest_run(h, (unsigned int)e->a);
		break;
	case EV_RESOLVED:
		fp = fp_of((uint32_t)(uintptr_t)e->p);
		agent_resolve_done(h->agent, e->a, 0, &fp);
		break;
	case EV_LEASED:
		lease.size = (uint64_t)w->p.blocks << w->p.block_shift;
		agent_lease_done(h->agent, e->a, 0, &lease);
		break;
	case EV_TRACED:
		agent_trace_done(h->agent, e->a, 0, w->trace, w->p.trace ? w->trace_len : 0);
		break;
	case EV_PUBLISHED:
	case EV_MAPPED:
		cache_answers(h, e->p);
		break;
	}
	host_turn(h);
}

void host_end(struct host *h)
{
	struct parked_ask *ask;
	unsigned int i;

	for (i = 0; h->links && i < h->w->p.data_servers; i++)
		free(h->wanted[i].asks);
	for (i = 0; h->links && i < h->w->p.volumes; i++) {
		free(h->volumes[i].mapped);
		free(h->volumes[i].parked);
	}
	free(h->wanted);
	free(h->volumes);
	links_free(h->links);
	agent_free(h->agent);
	host_filter_free(h->filter);
	serving_free(h->serving);
	while (h->parked && (ask = parked_expired(h->parked, UINT64_MAX)))
		packet_free(h->w, packet_of(ask));
	parked_free(h->parked);
}
