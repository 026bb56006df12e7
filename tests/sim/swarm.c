// SPDX-License-Identifier: GPL-2.0-or-later
/* The world: who is there, and what happens next. */
#include <errno.h>
#include "agent/prefetch.h"
#include "swarm_impl.h"

#define REDIRECT_BLOCKS	 16384 /* of the data server */
#define REDIRECT_PEERS	 16384
#define END_NS		 (3600 * SIM_S)

static void handle(struct swarm *w, const struct sim_event *e)
{
	struct host *h = e->who < w->p.hosts ? &w->hosts[e->who] : NULL;
	bool is_answer;

	switch (e->kind) {
	case EV_HOP:
		packet_hop(w, e->p);
		return;
	case EV_TAKEN:
		is_answer = ((struct packet *)e->p)->kind != ASK_PEER;
		packet_taken(w, e->p);
		if (h && is_there(h) && is_answer)
			host_turn(h);
		return;
	case EV_DIE:
		w->living -= !h->dead;
		w->complete -= h->complete == w->p.volumes;
		h->dead = true;
		return;
	case EV_TIMER:
		if (e->at != h->timer_ns) /* an earlier one took its place */
			return;
	}
	if (!h->dead)
		host_event(h, e);
	else if (e->kind == EV_PUBLISHED || e->kind == EV_MAPPED)
		free(e->p);
}

/* ---- the world ---- */

void swarm_defaults(struct swarm_params *p)
{
	*p = (struct swarm_params){
		.seed = 1, .hosts = 100, .volumes = 1, .data_servers = 4,
		.rack_hosts = 40, .oversubscription = 4,
		.host_rate = 1250000000, .data_rate = 1250000000,
		.hash_rate = 1500000000, .disk_rate = 2000000000,
		.message_ns = 15 * SIM_US, .block_ns = 2 * SIM_US,
		.rack_ns = 50 * SIM_US, .far_ns = 100 * SIM_US,
		.block_shift = 18, .blocks = 4096, .touched = 256, .depth = 4,
		.spread_ns = 100 * SIM_MS, .trace = true, .peers = true, .filters = true,
		.state_racks = true,
	};
}

/* Runs of eight blocks, in an order of their own; all of it: from the first to the last. */
static int make_order(struct swarm *w)
{
	unsigned int runs = w->p.blocks / 8, i, k, n = 0;
	uint32_t *run;

	w->order = calloc(w->p.touched, sizeof(*w->order));
	w->trace = malloc(TRACE_MAX_BYTES);
	run = calloc(runs + 1, sizeof(*run));
	if (!w->order || !w->trace || !run) {
		free(run);
		return -ENOMEM;
	}
	for (i = 0; i < runs; i++)
		run[i] = i;
	for (i = runs; w->p.touched < w->p.blocks && i > 1; i--) {
		uint32_t t = run[i - 1];

		k = (unsigned int)(sim_random(&w->sim) % i);
		run[i - 1] = run[k];
		run[k] = t;
	}
	for (i = 0; i <= runs && n < w->p.touched; i++)
		for (k = 0; k < 8 && n < w->p.touched && (i < runs ? run[i] : i) * 8 + k < w->p.blocks; k++)
			w->order[n++] = (i < runs ? run[i] : i) * 8 + k;
	w->p.touched = n;
	free(run);
	w->trace_len = trace_pack(w->order, MIN(n, TRACE_MAX), w->trace, TRACE_MAX_BYTES);
	return 0;
}

static int make_world(struct swarm *w)
{
	unsigned int i, nr = w->p.hosts + w->p.data_servers;

	w->nr_racks = (w->p.hosts + w->p.rack_hosts - 1) / w->p.rack_hosts;
	w->rack_rate = (uint64_t)((double)w->p.host_rate * w->p.rack_hosts / w->p.oversubscription);
	w->hosts = calloc(w->p.hosts, sizeof(*w->hosts));
	w->servers = calloc(w->p.data_servers, sizeof(*w->servers));
	w->nodes = calloc(nr, sizeof(*w->nodes));
	w->racks = calloc(w->nr_racks, sizeof(*w->racks));
	w->addresses = calloc(w->p.hosts, sizeof(*w->addresses));
	if (!w->hosts || !w->servers || !w->nodes || !w->racks || !w->addresses || make_order(w))
		return -ENOMEM;
	w->living = w->p.hosts;
	for (i = 0; i < nr; i++)
		w->nodes[i].rack = i < w->p.hosts ? i / w->p.rack_hosts :
				   (i - w->p.hosts) * w->nr_racks / w->p.data_servers;
	for (i = 0; i < w->p.data_servers; i++) {
		w->servers[i].redirect = redirect_new(REDIRECT_BLOCKS, REDIRECT_PEERS);
		if (!w->servers[i].redirect)
			return -ENOMEM;
	}
	for (i = 0; i < w->p.hosts; i++) {
		uint64_t at = w->p.spread_ns ? sim_random(&w->sim) % w->p.spread_ns : 0;

		snprintf(w->addresses[i].endpoint, sizeof(w->addresses[i].endpoint), "tcp://%u:7403", i);
		w->addresses[i].rack = w->p.state_racks ? w->nodes[i].rack + 1 : 0;
		w->hosts[i].w = w;
		w->hosts[i].n = i;
		at += i ? w->p.early_ns : 0;
		sim_at(&w->sim, at, EV_BEGIN, i, 0, NULL);
		if (sim_random(&w->sim) % 100 < w->p.kill_percent)
			sim_at(&w->sim, at + sim_random(&w->sim) % SIM_S, EV_DIE, i, 0, NULL);
	}
	return 0;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int collect(struct swarm *w)
{
	struct swarm_result *r = w->r;
	struct sources_stats stats;
	unsigned int i;

	r->times_ns = calloc(w->p.hosts, sizeof(*r->times_ns));
	if (!r->times_ns)
		return -ENOMEM;
	for (i = 0; i < w->p.hosts; i++) {
		struct host *h = &w->hosts[i];

		r->dead += h->dead;
		if (!h->dead && h->ended_ns)
			r->times_ns[r->complete++] = h->ended_ns - h->began_ns;
		if (!h->dead && h->ended_ns && i >= w->p.slow_hosts)
			r->others_ns = MAX(r->others_ns, h->ended_ns - h->began_ns);
		if (!h->links)
			continue;
		sources_stats(links_sources(h->links), &stats);
		r->hedges += stats.hedges;
		r->on_way += stats.on_way;
	}
	qsort(r->times_ns, r->complete, sizeof(*r->times_ns), by_size);
	for (i = 0; i < w->p.data_servers; i++) {
		r->worst_server_bytes = MAX(r->worst_server_bytes, w->servers[i].bytes);
		r->worst_server_messages = MAX(r->worst_server_messages, w->servers[i].messages);
	}
	r->unique_bytes = (uint64_t)w->p.touched << w->p.block_shift;
	r->events = w->sim.nr_done;
	r->end_ns = w->sim.now;
	return r->complete + r->dead == w->p.hosts ? 0 : -ETIMEDOUT;
}

static void end_world(struct swarm *w)
{
	struct sim_event e;
	struct packet *m;
	unsigned int i;

	while (sim_next(&w->sim, &e)) {
		if (e.kind == EV_PUBLISHED || e.kind == EV_MAPPED)
			free(e.p);
		if (e.kind == EV_HOP || e.kind == EV_TAKEN)
			packet_free(w, e.p);
	}
	for (i = 0; w->hosts && i < w->p.hosts; i++)
		host_end(&w->hosts[i]);
	for (i = 0; w->servers && i < w->p.data_servers; i++)
		redirect_free(w->servers[i].redirect);
	while ((m = TAILQ_FIRST(&w->spare))) {
		TAILQ_REMOVE(&w->spare, m, link);
		free(m);
	}
	free(w->hosts);
	free(w->servers);
	free(w->nodes);
	free(w->racks);
	free(w->addresses);
	free(w->order);
	free(w->trace);
	sim_free(&w->sim);
}

int swarm_run(const struct swarm_params *p, struct swarm_result *r)
{
	struct swarm w = { .p = *p, .r = r, .sim.seed = p->seed * 0x9e3779b97f4a7c15ULL + 1 };
	struct sim_event e;
	int err;

	memset(r, 0, sizeof(*r));
	TAILQ_INIT(&w.spare);
	err = make_world(&w);
	while (!err && w.complete < w.living && sim_next(&w.sim, &e) && w.sim.now < END_NS)
		handle(&w, &e);
	if (!err)
		err = collect(&w);
	end_world(&w);
	return err;
}
