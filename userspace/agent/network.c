// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "agent/network.h"
#include "base/clock.h"
#include "base/log.h"

#define META_THREADS	2
#define OPEN_TIMEOUT_MS 2000
#define META_TIMEOUT_MS 3000
#define GET_TIMEOUT_MS	10000
/* After no answer, what queues is sent back at once for so long: each has its own interval to
 * try again, and an OPEN does not wait for the timeouts of a thousand misses before it. */
#define DOWN_MS		1000

enum request_kind { REQUEST_RESOLVE, REQUEST_IMAGE, REQUEST_LEASE, REQUEST_GET };

struct request {
	struct work work; /* ->done answers the core */
	struct network *network;
	struct request *next;
	enum request_kind kind;
	uint64_t id;
	int r;
	/* RESOLVE, GET */
	struct fp root;
	uint64_t size, block;
	struct fp fp;
	void *data;
	size_t len;
	/* IMAGE */
	char name[DM_DEDUP_NAME_SIZE];
	struct agent_image image;
	/* LEASE */
	struct uuid cache;
	char host[64];
	struct agent_lease lease;
};

struct request_queue {
	pthread_mutex_t lock; /* guards all of it */
	pthread_cond_t some;
	struct request *first, **last;
	bool stop;
};

struct network {
	struct net_ctx *net;
	const struct config *config;
	char *meta;
	struct loop *loop;
	struct nodes *nodes;
	struct agent *agent;
	struct request_queue asks, gets;
	int gets_fd;
	pthread_t meta_threads[META_THREADS];
	pthread_t get_thread;
	unsigned int nr_meta_threads;
	bool get_runs;
	pthread_mutex_t params_lock; /* guards params and down_until */
	uint64_t down_until;	     /* the meta server has just failed to answer */
	bool have_params;
	struct cluster_params params;
};

/* ---- queues ---- */

static void queue_init(struct request_queue *q)
{
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->some, NULL);
	q->last = &q->first;
}

static bool queue_add(struct request_queue *q, struct request *req)
{
	bool stopped;

	req->next = NULL;
	pthread_mutex_lock(&q->lock);
	stopped = q->stop;
	if (!stopped) {
		*q->last = req;
		q->last = &req->next;
		pthread_cond_signal(&q->some);
	}
	pthread_mutex_unlock(&q->lock);
	return !stopped;
}

static struct request *queue_take(struct request_queue *q, bool wait, bool *stopped)
{
	struct request *req;

	pthread_mutex_lock(&q->lock);
	while (wait && !q->first && !q->stop)
		pthread_cond_wait(&q->some, &q->lock);
	req = q->first;
	if (req) {
		q->first = req->next;
		if (!q->first)
			q->last = &q->first;
	}
	*stopped = q->stop;
	pthread_mutex_unlock(&q->lock);
	return req;
}

static void queue_stop(struct request_queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->stop = true;
	pthread_cond_broadcast(&q->some);
	pthread_mutex_unlock(&q->lock);
}

/* ---- recipes ---- */

static int source_get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		      struct error *err)
{
	struct node_source *s = ctx;
	int r;

	if (!nodes_get(s->nodes, hash, s->memory_only, out, len))
		return 0;
	if (s->memory_only)
		return -EAGAIN;
	r = s->below->get(s->below_ctx, hash, out, len, err);
	if (!r)
		nodes_put(s->nodes, hash, out, *len);
	return r;
}

static int source_put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		      struct error *err)
{
	struct node_source *s = ctx;
	int r;

	r = s->below->put(s->below_ctx, hash, data, len, err);
	if (!r)
		nodes_put(s->nodes, hash, data, len);
	return r;
}

const struct recipe_ops node_source_ops = { .get = source_get, .put = source_put };

/* ---- questions to the meta server ---- */

static void remember_params(struct network *n, struct cluster *c)
{
	pthread_mutex_lock(&n->params_lock);
	n->params = *cluster_params(c);
	n->have_params = true;
	pthread_mutex_unlock(&n->params_lock);
}

bool network_params(struct network *n, struct cluster_params *params)
{
	bool have;

	pthread_mutex_lock(&n->params_lock);
	have = n->have_params;
	if (have)
		*params = n->params;
	pthread_mutex_unlock(&n->params_lock);
	return have;
}

static int ask_resolve(struct cluster *c, struct request *req, struct error *err)
{
	struct node_source source = {
		.nodes = req->network->nodes,
		.below = &cluster_recipe_ops,
		.below_ctx = c,
	};
	const struct cluster_params *p = cluster_params(c);

	return recipe_lookup(&req->root, req->size, p->block_shift, p->algorithm, req->block,
			     &node_source_ops, &source, &req->fp, err);
}

static void copy_uuid(struct uuid *to, const ProtobufCBinaryData *from)
{
	memset(to, 0, sizeof(*to));
	if (from->len == sizeof(to->b))
		memcpy(to->b, from->data, sizeof(to->b));
}

static int ask_image(struct cluster *c, struct request *req, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageGet get = VMDEDUP__IMAGE_GET__INIT;
	struct net_reply reply = { 0 };
	struct uuid uuid;
	int r;

	/* A table line may name an image by its UUID. */
	if (!uuid_from_text(&uuid, req->name))
		get.uuid = (ProtobufCBinaryData){ sizeof(uuid.b), uuid.b };
	else
		get.name = req->name;
	msg.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	msg.image_get = &get;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_IMAGE)
		r = -EPROTO;
	if (!r) {
		copy_uuid(&req->image.uuid, &reply.header->image->uuid);
		copy_uuid(&req->image.leased_to, &reply.header->image->leased_to);
		req->image.size = reply.header->image->size;
		strncpy(req->image.leased_host, reply.header->image->leased_host,
			sizeof(req->image.leased_host) - 1);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

int network_take_lease(struct cluster *c, const struct uuid *cache, const char *host,
		       struct agent_lease *lease, int timeout_ms, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__LeaseTake take = VMDEDUP__LEASE_TAKE__INIT;
	struct net_reply reply = { 0 };
	int r;

	take.image = (ProtobufCBinaryData){ sizeof(lease->image.b), lease->image.b };
	take.cache = (ProtobufCBinaryData){ sizeof(cache->b), (uint8_t *)cache->b };
	take.host = (char *)host;
	take.readonly = lease->readonly;
	take.confirm_only = lease->confirm_only;
	take.epoch = lease->epoch;
	msg.body_case = VMDEDUP__REQUEST__BODY_LEASE_TAKE;
	msg.lease_take = &take;
	r = cluster_mutate(c, &msg, NULL, 0, timeout_ms, &reply, err);
	if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_LEASE ||
		   reply.header->lease->root.len != FP_SIZE))
		r = -EPROTO;
	if (!r) {
		lease->epoch = reply.header->lease->epoch;
		lease->cut = reply.header->lease->cut;
		lease->size = reply.header->lease->size;
		memcpy(lease->root.b, reply.header->lease->root.data, FP_SIZE);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int answer_ask(struct cluster *c, struct request *req)
{
	struct error err = { 0 };
	int r;

	switch (req->kind) {
	case REQUEST_RESOLVE:
		r = ask_resolve(c, req, &err);
		break;
	case REQUEST_IMAGE:
		r = ask_image(c, req, &err);
		break;
	case REQUEST_LEASE:
		r = network_take_lease(c, &req->cache, req->host, &req->lease, META_TIMEOUT_MS,
				       &err);
		break;
	default:
		r = -EINVAL;
	}
	/* An unknown image is for whoever asked to report. */
	if (r && !AGENT_IS_UNREACHABLE(r) && req->kind != REQUEST_IMAGE)
		log_warn("%s", err.text);
	return r;
}

static bool is_down(struct network *n)
{
	bool down;

	pthread_mutex_lock(&n->params_lock);
	down = clock_mono_ns() < n->down_until;
	pthread_mutex_unlock(&n->params_lock);
	return down;
}

static void note_answer(struct network *n, int r)
{
	pthread_mutex_lock(&n->params_lock);
	n->down_until = AGENT_IS_UNREACHABLE(r) ? clock_mono_ns() + DOWN_MS * 1000000ULL : 0;
	pthread_mutex_unlock(&n->params_lock);
}

static int open_and_answer(struct network *n, struct cluster **c, struct request *req)
{
	struct error err = { 0 };
	int r = 0;

	if (is_down(n))
		return -ETIMEDOUT;
	if (!*c) {
		*c = cluster_open(n->net, n->config, n->meta, "agent", OPEN_TIMEOUT_MS, &err);
		if (*c)
			remember_params(n, *c);
		else
			r = err.code ? err.code : -ETIMEDOUT;
	}
	if (!r)
		r = answer_ask(*c, req);
	note_answer(n, r);
	return r;
}

static void *meta_thread(void *arg)
{
	struct network *n = arg;
	struct cluster *c = NULL;
	struct request *req;
	bool stopped;

	while ((req = queue_take(&n->asks, true, &stopped))) {
		req->r = stopped ? -ECANCELED : open_and_answer(n, &c, req);
		loop_post(n->loop, &req->work);
	}
	if (c)
		cluster_close(c);
	return NULL;
}

/* ---- blocks ---- */

static void got_block(void *arg, int r, const void *data, size_t len)
{
	struct request *req = arg;

	if (!r) {
		req->data = malloc(len);
		if (req->data)
			memcpy(req->data, data, len);
		else
			r = -ENOMEM;
	}
	req->len = len;
	req->r = r;
	loop_post(req->network->loop, &req->work);
}

static void submit_gets(struct network *n, struct cluster *c, int refuse_with, bool *stopped)
{
	struct request *req;
	int r;

	while ((req = queue_take(&n->gets, false, stopped))) {
		r = *stopped ? -ECANCELED : refuse_with;
		if (!r)
			r = cluster_get_submit(c, &req->fp, GET_TIMEOUT_MS, got_block, req);
		if (r)
			got_block(req, r, NULL, 0);
	}
}

static void drain_wakes(struct network *n)
{
	uint64_t count;

	if (read(n->gets_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("cannot read an eventfd: %s", strerror(errno));
}

static void *get_thread(void *arg)
{
	struct network *n = arg;
	struct cluster *c = NULL;
	struct pollfd wake = { .fd = n->gets_fd, .events = POLLIN };
	struct error err;
	bool stopped = false;

	while (!stopped) {
		if (!c) {
			err.code = 0;
			c = cluster_open(n->net, n->config, n->meta, "agent", OPEN_TIMEOUT_MS,
					 &err);
			if (!c) {
				drain_wakes(n);
				submit_gets(n, NULL, err.code ? err.code : -ETIMEDOUT, &stopped);
				poll(&wake, 1, DOWN_MS);
				continue;
			}
			remember_params(n, c);
			cluster_watch_fd(c, n->gets_fd);
		}
		cluster_run(c, -1);
		drain_wakes(n);
		submit_gets(n, c, 0, &stopped);
	}
	if (c)
		cluster_close(c);
	return NULL;
}

static void wake_gets(struct network *n)
{
	const uint64_t one = 1;

	if (write(n->gets_fd, &one, sizeof(one)) < 0)
		return; /* only when the counter is full: then it is readable */
}

/* ---- the loop's side ---- */

static void answer_core(struct work *w)
{
	struct request *req = (struct request *)w;
	struct agent *a = req->network->agent;

	switch (req->kind) {
	case REQUEST_RESOLVE:
		agent_resolve_done(a, req->id, req->r, &req->fp);
		break;
	case REQUEST_IMAGE:
		agent_image_done(a, req->id, req->r, &req->image);
		break;
	case REQUEST_LEASE:
		agent_lease_done(a, req->id, req->r, &req->lease);
		break;
	case REQUEST_GET:
		agent_get_done(a, req->id, req->r, req->data, req->len);
		break;
	}
	free(req);
}

static struct request *request_new(struct network *n, enum request_kind kind, uint64_t id)
{
	struct request *req = calloc(1, sizeof(*req));

	if (!req) { /* the miss stays with the kernel, which hands it to the next agent */
		log_error("out of memory for a request");
		return NULL;
	}
	req->work.done = answer_core;
	req->network = n;
	req->kind = kind;
	req->id = id;
	return req;
}

static void request_submit(struct network *n, struct request_queue *q, struct request *req)
{
	if (queue_add(q, req))
		return;
	req->r = -ECANCELED;
	loop_post(n->loop, &req->work);
}

void network_resolve(struct network *n, uint64_t id, const struct fp *root, uint64_t size,
		     uint64_t block)
{
	struct node_source source = { .nodes = n->nodes, .memory_only = true };
	struct request *req = request_new(n, REQUEST_RESOLVE, id);
	struct cluster_params p;

	if (!req)
		return;
	req->root = *root;
	req->size = size;
	req->block = block;
	if (network_params(n, &p) &&
	    !recipe_lookup(root, size, p.block_shift, p.algorithm, block, &node_source_ops, &source,
			   &req->fp, NULL)) {
		loop_post(n->loop, &req->work);
		return;
	}
	request_submit(n, &n->asks, req);
}

void network_get(struct network *n, uint64_t id, const struct fp *fp)
{
	struct request *req = request_new(n, REQUEST_GET, id);

	if (!req)
		return;
	req->fp = *fp;
	request_submit(n, &n->gets, req);
	wake_gets(n);
}

void network_image(struct network *n, uint64_t id, const char *name)
{
	struct request *req = request_new(n, REQUEST_IMAGE, id);

	if (!req)
		return;
	strncpy(req->name, name, sizeof(req->name) - 1);
	request_submit(n, &n->asks, req);
}

void network_lease(struct network *n, uint64_t id, const struct uuid *cache, const char *host,
		   const struct agent_lease *take)
{
	struct request *req = request_new(n, REQUEST_LEASE, id);

	if (!req)
		return;
	req->cache = *cache;
	strncpy(req->host, host, sizeof(req->host) - 1);
	req->lease = *take;
	request_submit(n, &n->asks, req);
}

/* ---- life ---- */

void network_set_agent(struct network *n, struct agent *agent)
{
	n->agent = agent;
}

static int start_threads(struct network *n)
{
	unsigned int i;

	for (i = 0; i < META_THREADS; i++) {
		if (pthread_create(&n->meta_threads[i], NULL, meta_thread, n))
			return -EAGAIN;
		pthread_setname_np(n->meta_threads[i], "ask-meta");
		n->nr_meta_threads++;
	}
	if (pthread_create(&n->get_thread, NULL, get_thread, n))
		return -EAGAIN;
	pthread_setname_np(n->get_thread, "get-blocks");
	n->get_runs = true;
	return 0;
}

struct network *network_new(struct net_ctx *net, const struct config *config, const char *meta,
			    struct loop *loop, struct nodes *nodes, struct error *err)
{
	struct network *n = calloc(1, sizeof(*n));

	if (!n) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	n->net = net;
	n->config = config;
	n->loop = loop;
	n->nodes = nodes;
	pthread_mutex_init(&n->params_lock, NULL);
	queue_init(&n->asks);
	queue_init(&n->gets);
	n->meta = strdup(meta);
	n->gets_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (!n->meta || n->gets_fd < 0 || start_threads(n)) {
		error_set(err, -EAGAIN, "cannot start the threads of the network");
		network_stop(n);
		network_free(n);
		return NULL;
	}
	return n;
}

void network_stop(struct network *n)
{
	unsigned int i;

	queue_stop(&n->asks);
	queue_stop(&n->gets);
	wake_gets(n);
	for (i = 0; i < n->nr_meta_threads; i++)
		pthread_join(n->meta_threads[i], NULL);
	if (n->get_runs)
		pthread_join(n->get_thread, NULL);
	n->nr_meta_threads = 0;
	n->get_runs = false;
}

void network_free(struct network *n)
{
	if (!n)
		return;
	if (n->gets_fd >= 0)
		close(n->gets_fd);
	pthread_mutex_destroy(&n->params_lock);
	pthread_mutex_destroy(&n->asks.lock);
	pthread_cond_destroy(&n->asks.some);
	pthread_mutex_destroy(&n->gets.lock);
	pthread_cond_destroy(&n->gets.some);
	free(n->meta);
	free(n);
}
