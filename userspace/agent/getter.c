// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "agent/getter.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#define MSEC		1000000ULL
#define OPEN_TIMEOUT_MS 1000
#define OPEN_RETRY_MS	1000
#define GET_TIMEOUT_MS	10000
#define MAX_FDS		2048
#define MAX_SUGGESTED	64
#define MAX_OTHERS	8
#define ENDED_MAX	4 /* gets that end together, if they are in one answer: each wakes others */

struct node_wait {
	struct node_wait *next;
	struct getter *getter;
	struct fp hash;
	uint8_t *out;
	size_t *len;
	int r;
	bool ended;
};

struct data_get {
	struct getter *getter;
	uint64_t id;
	struct data_get *next;
};

struct getter {
	struct getter_params params;
	pthread_t thread;
	bool runs;
	int fd;
	pthread_mutex_t lock; /* guards what follows, up to the next comment */
	pthread_cond_t node_ended;
	struct getter_get *gets, **last_get;
	struct getter_list *lists;
	struct node_wait *nodes;
	struct peer_address suggested[MAX_SUGGESTED];
	size_t nr_suggested;
	struct peer_address met[MAX_OTHERS];
	size_t nr_met;
	char liars[16][PEER_ENDPOINT_MAX];
	size_t nr_liars;
	struct peer_address others[MAX_OTHERS];
	size_t nr_others;
	bool new_params, meta_is_down, stop;
	struct cluster_params cluster_params;
	/* The thread's own: */
	struct cluster *cluster;
	struct peers *peers;
	struct fp_hasher *hasher;
	uint64_t next_open_ns;
	struct data_get *unreachable; /* asked for while there is no cluster */
	bool asked_data;	      /* since the cluster was run last */
	struct getter_get *ended[ENDED_MAX]; /* ->done() is still to come */
	size_t nr_ended;
};

/* ---- data servers ---- */

static void data_got(void *arg, int r, const void *data, size_t len)
{
	struct data_get *d = arg;

	sources_data_answer(links_sources(peers_links(d->getter->peers)), d->id, r, data, len);
	free(d);
}

static void data_redirected(void *arg, const struct peer_address *named, size_t nr)
{
	struct data_get *d = arg;

	sources_data_redirect(links_sources(peers_links(d->getter->peers)), d->id, named, nr);
	free(d);
}

/* Its answer comes from the loop, whatever happens. */
static void ask_data(void *ctx, uint64_t id, const struct fp *fp, bool serve)
{
	struct getter *g = ctx;
	struct data_get *d = calloc(1, sizeof(*d));
	int r = -ENOTCONN;

	if (!d) { /* the get stays; its peers, or the end of the process, end it */
		log_error("out of memory for a block");
		return;
	}
	d->getter = g;
	d->id = id;
	g->asked_data = true;
	if (g->cluster && serve)
		r = cluster_get_served(g->cluster, fp, GET_TIMEOUT_MS, data_got, d);
	else if (g->cluster)
		r = cluster_get_submit(g->cluster, fp, GET_TIMEOUT_MS, data_got, d);
	if (r) {
		d->next = g->unreachable;
		g->unreachable = d;
	}
}

static void fail_unreachable(struct getter *g)
{
	struct data_get *d, *next;

	d = g->unreachable;
	g->unreachable = NULL;
	for (; d; d = next) {
		next = d->next;
		data_got(d, -EHOSTUNREACH, NULL, 0);
	}
}

/* ---- the cluster ---- */

static void take_params(struct getter *g, const struct cluster_params *p)
{
	struct fp_hasher *hasher;

	hasher = fp_hasher_new(p->algorithm, p->domain_key, p->domain_key_len);
	if (!hasher)
		return;
	peers_set_hasher(g->peers, hasher, p->block_shift);
	fp_hasher_free(g->hasher);
	g->hasher = hasher;
}

static void open_cluster(struct getter *g)
{
	uint64_t now = clock_mono_ns();
	struct error err = { 0 };
	bool down;

	pthread_mutex_lock(&g->lock);
	down = g->meta_is_down || g->stop;
	pthread_mutex_unlock(&g->lock);
	if (g->cluster || down || now < g->next_open_ns)
		return;
	g->cluster = cluster_open(g->params.net, g->params.config, g->params.meta, "agent",
				  OPEN_TIMEOUT_MS, &err);
	if (!g->cluster) {
		g->next_open_ns = clock_mono_ns() + OPEN_RETRY_MS * MSEC;
		return;
	}
	cluster_watch_fd(g->cluster, g->fd);
	if (g->params.self)
		cluster_serve_peers(g->cluster, g->params.self, data_redirected);
	take_params(g, cluster_params(g->cluster));
	g->params.opened(g->params.ctx, cluster_params(g->cluster));
}

/* ---- what others ask of the thread ---- */

static void tell_ended(struct getter *g)
{
	size_t i;

	for (i = 0; i < g->nr_ended; i++)
		g->ended[i]->done(g->ended[i]);
	g->nr_ended = 0;
}

static void get_done(void *ctx, void *arg, int r, enum source_kind from, const void *data,
		     size_t len)
{
	struct getter_get *get = arg;
	struct getter *g = ctx;

	get->r = r;
	get->from = from;
	get->block = NULL;
	if (!r && from == SOURCE_PEER)
		get->block = peers_take(g->peers, data, len);
	else if (!r)
		get->block = cluster_take(g->cluster, data, len);
	if (!r && !get->block)
		get->r = -ENOMEM;
	g->ended[g->nr_ended++] = get;
	if (g->nr_ended == ENDED_MAX)
		tell_ended(g);
}

static void end_node(void *arg, int r, const void *data, size_t len)
{
	struct node_wait *w = arg;
	struct getter *g = w->getter;

	pthread_mutex_lock(&g->lock);
	w->r = r;
	if (!r) {
		memcpy(w->out, data, len);
		*w->len = len;
	}
	w->ended = true;
	pthread_cond_broadcast(&g->node_ended);
	pthread_mutex_unlock(&g->lock);
}

struct orders {
	struct getter_get *gets;
	struct getter_list *lists;
	struct node_wait *nodes;
	struct peer_address suggested[MAX_SUGGESTED];
	size_t nr_suggested;
	struct peer_address met[MAX_OTHERS];
	size_t nr_met;
	bool new_params, stop;
	struct cluster_params params;
};

static void take_orders(struct getter *g, struct orders *o)
{
	uint64_t count;

	if (read(g->fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("cannot read an eventfd: %s", strerror(errno));
	pthread_mutex_lock(&g->lock);
	o->gets = g->gets;
	o->lists = g->lists;
	o->nodes = g->nodes;
	g->gets = NULL;
	g->last_get = &g->gets;
	g->lists = NULL;
	g->nodes = NULL;
	o->nr_suggested = g->nr_suggested;
	memcpy(o->suggested, g->suggested, g->nr_suggested * sizeof(o->suggested[0]));
	g->nr_suggested = 0;
	o->nr_met = g->nr_met;
	memcpy(o->met, g->met, g->nr_met * sizeof(o->met[0]));
	g->nr_met = 0;
	o->new_params = g->new_params;
	o->params = g->cluster_params;
	g->new_params = false;
	o->stop = g->stop;
	pthread_mutex_unlock(&g->lock);
}

static void refuse_get(struct getter_get *get, int r)
{
	get->r = r;
	get->block = NULL;
	get->done(get);
}

static void follow_orders(struct getter *g, struct orders *o)
{
	struct getter_list *list;
	struct getter_get *get;
	struct node_wait *w;

	if (o->new_params && !g->hasher)
		take_params(g, &o->params);
	if (o->nr_suggested)
		links_suggest(peers_links(g->peers), o->suggested, o->nr_suggested);
	while (o->nr_met)
		links_met(peers_links(g->peers), &o->met[--o->nr_met]);
	while ((get = o->gets)) {
		o->gets = get->next;
		if (o->stop || sources_get(links_sources(peers_links(g->peers)), &get->fp, get))
			refuse_get(get, o->stop ? -ECANCELED : -ENOMEM);
	}
	while ((w = o->nodes)) {
		o->nodes = w->next;
		if (o->stop || peers_get_node(g->peers, &w->hash, end_node, w))
			end_node(w, o->stop ? -ECANCELED : -ENOMEM, NULL, 0);
	}
	while ((list = o->lists)) {
		o->lists = list->next;
		list->nr = links_list(peers_links(g->peers), list->peers, SOURCES_MAX_PEERS);
		links_totals(peers_links(g->peers), &list->totals);
		list->done(list);
	}
}

/* What other threads may want to know. */
static void publish(struct getter *g)
{
	pthread_mutex_lock(&g->lock);
	g->nr_liars += links_liars(peers_links(g->peers), g->liars + g->nr_liars,
				   ARRAY_SIZE(g->liars) - g->nr_liars);
	g->nr_others = links_some(peers_links(g->peers), g->others, MAX_OTHERS);
	pthread_mutex_unlock(&g->lock);
}

/* ---- the thread ---- */

static int poll_ms(struct getter *g)
{
	uint64_t next = peers_next_ns(g->peers), now = clock_mono_ns(), ms;
	int cluster_ms = g->cluster ? cluster_next_timeout_ms(g->cluster) : OPEN_RETRY_MS;

	if (g->unreachable)
		return 0;
	if (next == UINT64_MAX)
		return cluster_ms;
	ms = next <= now ? 0 : (next - now) / MSEC + 1;
	if (cluster_ms >= 0 && (uint64_t)cluster_ms < ms)
		return cluster_ms;
	return ms > 60000 ? 60000 : (int)ms;
}

static void wait_for_something(struct getter *g)
{
	struct pollfd pfds[MAX_FDS];
	int fds[MAX_FDS];
	size_t n = 0, i;

	fds[n++] = g->fd;
	n += peers_fds(g->peers, fds + n, MAX_FDS - n);
	if (g->cluster)
		n += cluster_fds(g->cluster, fds + n, MAX_FDS - n);
	for (i = 0; i < n; i++)
		pfds[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
	if (poll(pfds, n, poll_ms(g)) < 0 && errno != EINTR)
		log_error("cannot wait for answers: %s", strerror(errno));
}

static void turn(struct getter *g)
{
	if (g->cluster)
		cluster_run(g->cluster, 0);
	peers_run(g->peers);
	tell_ended(g); /* what has come does not wait for the meta server */
	if (g->unreachable)
		open_cluster(g);
	fail_unreachable(g);
	if (g->cluster && g->asked_data)
		cluster_run(g->cluster, 0);
	g->asked_data = false;
	tell_ended(g);
	publish(g);
}

static void *getter_thread(void *arg)
{
	struct orders *o = calloc(1, sizeof(*o));
	struct getter *g = arg;

	while (o) {
		take_orders(g, o);
		if (!o->stop)
			open_cluster(g);
		follow_orders(g, o);
		if (o->stop)
			break;
		turn(g);
		wait_for_something(g);
	}
	free(o);
	return NULL;
}

/* ---- any thread ---- */

static void wake(struct getter *g)
{
	const uint64_t one = 1;

	if (write(g->fd, &one, sizeof(one)) < 0)
		return; /* only when the counter is full: then it is readable */
}

void getter_get(struct getter *g, struct getter_get *get)
{
	bool stop;

	get->next = NULL;
	pthread_mutex_lock(&g->lock);
	stop = g->stop;
	if (!stop) {
		*g->last_get = get;
		g->last_get = &get->next;
	}
	pthread_mutex_unlock(&g->lock);
	if (stop)
		refuse_get(get, -ECANCELED);
	else
		wake(g);
}

void getter_list(struct getter *g, struct getter_list *list)
{
	pthread_mutex_lock(&g->lock);
	list->next = g->lists;
	g->lists = list;
	pthread_mutex_unlock(&g->lock);
	wake(g);
}

void getter_suggest(struct getter *g, const struct peer_address *peers, size_t nr)
{
	pthread_mutex_lock(&g->lock);
	g->nr_suggested = MIN(nr, MAX_SUGGESTED);
	memcpy(g->suggested, peers, g->nr_suggested * sizeof(*peers));
	pthread_mutex_unlock(&g->lock);
	wake(g);
}

void getter_met(struct getter *g, const struct peer_address *peer)
{
	pthread_mutex_lock(&g->lock);
	if (g->nr_met < MAX_OTHERS)
		g->met[g->nr_met++] = *peer;
	pthread_mutex_unlock(&g->lock);
	wake(g);
}

bool getter_has_liars(struct getter *g)
{
	bool has;

	pthread_mutex_lock(&g->lock);
	has = g->nr_liars;
	pthread_mutex_unlock(&g->lock);
	return has;
}

size_t getter_liars(struct getter *g, char (*endpoints)[PEER_ENDPOINT_MAX], size_t max)
{
	size_t n;

	pthread_mutex_lock(&g->lock);
	n = MIN(max, g->nr_liars);
	memcpy(endpoints, g->liars, n * sizeof(endpoints[0]));
	g->nr_liars -= n;
	memmove(g->liars, g->liars + n, g->nr_liars * sizeof(g->liars[0]));
	pthread_mutex_unlock(&g->lock);
	return n;
}

size_t getter_others(struct getter *g, struct peer_address *others, size_t max)
{
	size_t n;

	pthread_mutex_lock(&g->lock);
	n = MIN(max, g->nr_others);
	memcpy(others, g->others, n * sizeof(*others));
	pthread_mutex_unlock(&g->lock);
	return n;
}

void getter_set_params(struct getter *g, const struct cluster_params *params)
{
	pthread_mutex_lock(&g->lock);
	g->cluster_params = *params;
	g->new_params = true;
	pthread_mutex_unlock(&g->lock);
	wake(g);
}

void getter_meta_answers(struct getter *g, bool answers)
{
	bool changed;

	pthread_mutex_lock(&g->lock);
	changed = g->meta_is_down == answers;
	g->meta_is_down = !answers;
	pthread_mutex_unlock(&g->lock);
	if (changed)
		wake(g);
}

int getter_node(struct getter *g, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len)
{
	struct node_wait w = { .getter = g, .hash = *hash, .out = out, .len = len };

	pthread_mutex_lock(&g->lock);
	if (g->stop) {
		pthread_mutex_unlock(&g->lock);
		return -ECANCELED;
	}
	w.next = g->nodes;
	g->nodes = &w;
	wake(g);
	while (!w.ended)
		pthread_cond_wait(&g->node_ended, &g->lock);
	pthread_mutex_unlock(&g->lock);
	return w.r;
}

/* ---- life ---- */

struct getter *getter_new(const struct getter_params *params, struct error *err)
{
	struct getter *g = calloc(1, sizeof(*g));
	struct peers_params pp = {
		.net = params->net,
		.self = params->self,
		.path = params->peers_path,
		.filter_bytes = params->config->filter_budget,
		.ask_data = ask_data,
		.done = get_done,
		.ctx = g,
	};

	if (!g) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	g->params = *params;
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->node_ended, NULL);
	g->last_get = &g->gets;
	g->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	g->peers = peers_new(&pp, err);
	if (!g->peers || g->fd < 0)
		goto free_getter;
	if (pthread_create(&g->thread, NULL, getter_thread, g)) {
		error_set(err, -EAGAIN, "cannot start the thread that gets blocks");
		goto free_getter;
	}
	pthread_setname_np(g->thread, "get-blocks");
	g->runs = true;
	return g;

free_getter:
	getter_free(g);
	return NULL;
}

/* The thread has ended: what it asked for is answered here. */
void getter_stop(struct getter *g)
{
	if (!g->runs)
		return;
	pthread_mutex_lock(&g->lock);
	g->stop = true;
	pthread_mutex_unlock(&g->lock);
	wake(g);
	pthread_join(g->thread, NULL);
	g->runs = false;
	sources_cancel(links_sources(peers_links(g->peers)));
	if (g->cluster)
		cluster_close(g->cluster);
	g->cluster = NULL;
	fail_unreachable(g);
	tell_ended(g);
	peers_free(g->peers); /* whoever waits for a node is answered */
	g->peers = NULL;
}

void getter_free(struct getter *g)
{
	if (!g)
		return;
	getter_stop(g);
	peers_free(g->peers);
	fp_hasher_free(g->hasher);
	if (g->fd >= 0)
		close(g->fd);
	pthread_cond_destroy(&g->node_ended);
	pthread_mutex_destroy(&g->lock);
	free(g);
}
