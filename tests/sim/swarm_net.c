// SPDX-License-Identifier: GPL-2.0-or-later
/* Messages, and who answers them. */
#include <errno.h>
#include "swarm_impl.h"

#define BLOCK_NS	 (20 * SIM_S) /* of peers.c */
#define FILTER_NS	 (5 * SIM_S)
#define REDIRECT_COPIES	 1	    /* of the data server */

/* ---- messages ---- */

struct packet *packet_new(struct swarm *w, enum packet_kind kind, uint32_t from, uint32_t to)
{
	struct packet *m = TAILQ_FIRST(&w->spare);

	if (m)
		TAILQ_REMOVE(&w->spare, m, link);
	else
		m = malloc(sizeof(*m));
	if (!m)
		abort();
	memset(m, 0, offsetof(struct packet, items));
	m->kind = kind;
	m->from = from;
	m->to = to;
	return m;
}

static void sent_all(struct packet *m)
{
	unsigned int i;

	for (i = 0; i < m->nr; i++)
		if (m->items[i].sent)
			serving_sent(m->items[i].sent);
	for (i = 0; i < m->nr; i++)
		m->items[i].sent = NULL;
}

void packet_free(struct swarm *w, struct packet *m)
{
	sent_all(m);
	free(m->filter.packed);
	TAILQ_INSERT_HEAD(&w->spare, m, link);
}

static uint64_t latency(struct swarm *w, const struct packet *m)
{
	return w->nodes[m->from].rack == w->nodes[m->to].rack ? w->p.rack_ns : w->p.far_ns;
}

static uint64_t rate_of(const struct swarm *w, uint32_t node)
{
	if (node >= w->p.hosts)
		return w->p.data_rate;
	return node < w->p.slow_hosts ? w->p.host_rate / 10 : w->p.host_rate;
}

/* One stage after the other, each a whole message at a time: out of the node, up from its rack, down to
 * the other's, in. What carries no blocks is not held up by what does. */
void packet_hop(struct swarm *w, struct packet *m)
{
	struct node *from = &w->nodes[m->from], *to = &w->nodes[m->to];
	uint64_t now = w->sim.now, at = now;
	bool far = from->rack != to->rack;

	if (!m->bytes && m->stage < 4) {
		m->stage = 4;
		at = now + latency(w, m);
	} else {
		if (m->stage == 1 && !far)
			m->stage = 3;
		switch (m->stage++) {
		case 0:
			at = sim_pipe(&from->out_free, now, m->bytes, rate_of(w, m->from));
			break;
		case 1:
			at = sim_pipe(&w->racks[from->rack].up_free, now, m->bytes, w->rack_rate);
			w->r->far_bytes += m->bytes;
			break;
		case 2:
			at = sim_pipe(&w->racks[to->rack].down_free, now, m->bytes, w->rack_rate);
			break;
		case 3:
			at = sim_pipe(&to->in_free, now, m->bytes, rate_of(w, m->to)) +
			     latency(w, m);
			break;
		default: /* it is there: a processor takes it, and its sender knows that it has gone */
			sent_all(m);
			at = sim_busy(&to->cpu_free, now,
				      w->p.message_ns + m->nr * w->p.block_ns +
				      (m->to < w->p.hosts ? m->bytes * SIM_S / w->p.hash_rate : 0));
			sim_at(&w->sim, at, EV_TAKEN, m->to, 0, m);
			return;
		}
	}
	sim_at(&w->sim, at, EV_HOP, m->to, 0, m);
}

/* ---- messages that have come ---- */

static void answer_to(struct packet *m, enum packet_kind kind)
{
	uint32_t from = m->from;

	m->from = m->to;
	m->to = from;
	m->kind = kind;
	m->stage = 0;
	m->bytes = 0;
}

static void take_names(struct item *it, const struct peer_address *const *names, size_t nr)
{
	size_t i;

	it->nr_named = (uint8_t)nr;
	for (i = 0; i < nr; i++)
		it->named[i] = (uint16_t)host_of(names[i]);
}

/* Bytes to be read from the disk for it: what is in memory needs none. */
static uint64_t find_item(struct host *h, struct packet *m, struct item *it)
{
	uint64_t slot, seq;
	struct fp fp = fp_of(it->block);
	const void *data;
	size_t len;

	it->r = serving_find(h->agent, &fp, &slot, &seq, &data, &len);
	if (it->r) {
		serving_sent(it->sent);
		it->sent = NULL;
		return 0;
	}
	serving_handed(h->serving, &h->w->addresses[m->from], &fp, h->w->sim.now);
	return data ? 0 : 1ULL << h->w->p.block_shift;
}

static void peer_answers(struct host *h, struct packet *m, uint64_t read)
{
	uint64_t size = 1ULL << h->w->p.block_shift;
	unsigned int i;

	answer_to(m, PEER_SAYS);
	for (i = 0; i < m->nr; i++)
		m->bytes += m->items[i].r ? 0 : size;
	h->w->r->peer_bytes += m->bytes;
	sim_at(&h->w->sim, read ? sim_pipe(&h->disk_free, h->w->sim.now, read, h->w->p.disk_rate) :
	       h->w->sim.now, EV_HOP, m->to, 0, m);
}

/* As peer_server.c. */
static void peer_is_asked(struct host *h, struct packet *m)
{
	const struct peer_address *names[REDIRECT_NAMES];
	const struct peer_address *from = &h->w->addresses[m->from];
	uint64_t read = 0;
	unsigned int i;
	size_t nr;

	for (i = 0; i < m->nr; i++) {
		struct item *it = &m->items[i];
		struct fp fp = fp_of(it->block);

		it->r = serving_ask(h->serving, from->endpoint, from, &fp, 1ULL << h->w->p.block_shift,
				    h->w->sim.now, &it->sent, names, &nr);
		take_names(it, names, nr);
		h->w->r->busy += it->r != 0;
		if (!it->r)
			read += find_item(h, m, it);
		if (it->r == -EINPROGRESS && m->wait_ms && m->nr == 1 &&
		    parked_add(h->parked, &m->parked, &fp, from->endpoint, h->w->sim.now, m->wait_ms))
			return;
	}
	peer_answers(h, m, read);
}

void packet_settled(struct host *h, const struct fp *fp)
{
	const struct peer_address *names[REDIRECT_NAMES], *from;
	struct parked_ask *ask;
	size_t nr;

	while ((ask = parked_take(h->parked, fp))) {
		struct packet *m = packet_of(ask);
		struct item *it = &m->items[0];
		uint64_t read = 0;

		from = &h->w->addresses[m->from];
		it->sent = serving_admit(h->serving, from->endpoint, 1ULL << h->w->p.block_shift,
					 h->w->sim.now);
		h->w->r->busy += !it->sent;
		if (it->sent) {
			read = find_item(h, m, it);
		} else {
			serving_busy(h->serving, from, fp, h->w->sim.now, names, &nr);
			take_names(it, names, nr);
			it->r = nr ? -EREMOTE : -EBUSY;
		}
		peer_answers(h, m, read);
	}
}

void packet_expire(struct host *h, uint64_t now)
{
	struct parked_ask *ask;

	while ((ask = parked_expired(h->parked, now))) {
		packet_of(ask)->items[0].r = -EINPROGRESS;
		peer_answers(h, packet_of(ask), 0);
	}
}

static void named_to(struct swarm *w, const struct item *it, struct peer_address *named)
{
	unsigned int i;

	for (i = 0; i < it->nr_named; i++)
		named[i] = w->addresses[it->named[i]];
}

static void peer_says(struct host *h, struct packet *m)
{
	struct peer_address named[REDIRECT_NAMES];
	uint64_t size = 1ULL << h->w->p.block_shift;
	unsigned int i;

	links_answered(h->links, m->peer, m->nr && m->items[0].r != -ETIMEDOUT);
	for (i = 0; i < m->nr; i++) {
		named_to(h->w, &m->items[i], named);
		links_block(h->links, m->peer, m->items[i].id, m->items[i].r, m, size, named,
			    m->items[i].nr_named);
	}
}

/* As handle.c of the data server; the blocks are in its memory, or the disk keeps up. */
static void data_is_asked(struct swarm *w, struct packet *m)
{
	struct server *s = &w->servers[m->to - w->p.hosts];
	const struct peer_address *names[REDIRECT_NAMES];
	struct peer_address from = w->addresses[m->from];
	unsigned int i;
	size_t n;

	s->messages++;
	w->r->data_messages++;
	for (i = 0; i < m->nr; i++) {
		struct item *it = &m->items[i];
		struct fp fp = fp_of(it->block);

		n = w->p.peers ? redirect_ask(s->redirect, &fp, &from, m->serve, REDIRECT_COPIES,
					      w->sim.now, names) : 0;
		take_names(it, names, n);
		it->r = n ? -EREMOTE : 0;
		w->r->data_redirects += n != 0;
	}
	answer_to(m, DATA_SAYS);
	for (i = 0; i < m->nr; i++)
		m->bytes += m->items[i].r ? 0 : 1ULL << w->p.block_shift;
	s->bytes += m->bytes;
	w->r->data_bytes += m->bytes;
	packet_hop(w, m);
}

static void data_says(struct host *h, struct packet *m)
{
	unsigned int server = m->from - h->w->p.hosts, i;
	struct sources *s = links_sources(h->links);
	struct peer_address named[REDIRECT_NAMES];

	h->wanted[server].under_way--;
	for (i = 0; i < m->nr; i++) {
		named_to(h->w, &m->items[i], named);
		if (m->items[i].r)
			sources_data_redirect(s, m->items[i].id, named, m->items[i].nr_named);
		else
			sources_data_answer(s, m->items[i].id, 0, m, 1ULL << h->w->p.block_shift);
	}
}

static void filter_is_asked(struct host *h, struct packet *m)
{
	struct peer_address from = h->w->addresses[m->from];

	links_met(h->links, &from);
	m->filter_r = h->filter ? host_filter_answer(h->filter, h->w->sim.now, m->generation,
						     m->additions, m->max, &m->filter) : -EAGAIN;
	answer_to(m, FILTER_SAYS);
	m->bytes = m->filter_r ? 0 : m->filter.packed_len;
	h->w->r->filter_bytes += m->bytes + FILTER_OVERHEAD;
	packet_hop(h->w, m);
}

static void filter_says(struct host *h, struct packet *m)
{
	struct link_filter f = {
		.generation = m->filter.generation, .additions = m->filter.additions,
		.blocks = m->filter.blocks, .shift = m->filter.shift, .hashes = FILTER_HASHES,
		.full = m->filter.full, .too_large = m->filter_r == -EFBIG ? m->filter.packed_len : 0,
		.packed = m->filter.packed, .packed_len = m->filter_r ? 0 : m->filter.packed_len,
	};

	links_filter(h->links, m->peer, m->life, m->filter_r == -ETIMEDOUT ? m->filter_r : 0,
		     m->filter_r && !f.too_large ? NULL : &f);
}

/* The asker waits for as long as its message may take; what it asked for was had elsewhere before. */
static void nobody_is_there(struct swarm *w, struct packet *m)
{
	unsigned int i;

	if (m->kind != ASK_PEER && m->kind != ASK_FILTER) {
		packet_free(w, m);
		return;
	}
	m->filter_r = -ETIMEDOUT;
	for (i = 0; i < m->nr; i++)
		m->items[i].r = -ETIMEDOUT;
	answer_to(m, m->kind == ASK_PEER ? PEER_SAYS : FILTER_SAYS);
	m->stage = 4;
	sim_at(&w->sim, w->sim.now + (m->kind == PEER_SAYS ? BLOCK_NS : FILTER_NS), EV_HOP, m->to, 0, m);
}

void packet_taken(struct swarm *w, struct packet *m)
{
	struct host *h = m->to < w->p.hosts ? &w->hosts[m->to] : NULL;

	if (h && !is_there(h)) {
		nobody_is_there(w, m);
		return;
	}
	switch (m->kind) {
	case ASK_PEER:
		peer_is_asked(h, m);
		return;
	case ASK_DATA:
		data_is_asked(w, m);
		return;
	case ASK_FILTER:
		filter_is_asked(h, m);
		return;
	case PEER_SAYS:
		peer_says(h, m);
		break;
	case DATA_SAYS:
		data_says(h, m);
		break;
	case FILTER_SAYS:
		filter_says(h, m);
		break;
	}
	packet_free(w, m);
}
