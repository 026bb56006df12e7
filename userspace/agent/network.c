// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent/network_impl.h"
#include "agent/node_source.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#define OPEN_TIMEOUT_MS 2000
/* After no answer, what queues is sent back at once for so long: each has its own interval to
 * try again, and an OPEN does not wait for the timeouts of a thousand misses before it. */
#define DOWN_MS		1000

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

static struct request *queue_take(struct request_queue *q, bool *stopped)
{
	struct request *req;

	pthread_mutex_lock(&q->lock);
	while (!q->first && !q->stop)
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

/* ---- the cluster, and whether it answers ---- */

/* What a host must know to verify blocks, for a start without a meta server. Host order: it
 * never travels, and may be deleted at any time. The domain's key is in it. */
struct params_file {
	char magic[8];
	struct cluster_params params;
};
#define PARAMS_MAGIC "VDPARM1"

static void save_params(struct network *n, const struct cluster_params *params)
{
	struct params_file file = { .magic = PARAMS_MAGIC };
	CLEANUP_CLOSE int fd = -1;

	if (!n->params_path)
		return;
	file.params = *params;
	fd = open(n->params_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, &file, sizeof(file)) != sizeof(file))
		log_warn("cannot write %s: %s: this host cannot start without a meta server",
			 n->params_path, strerror(errno));
}

static void load_params(struct network *n)
{
	struct params_file file;
	CLEANUP_CLOSE int fd = n->params_path ? open(n->params_path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0 || read(fd, &file, sizeof(file)) != sizeof(file) ||
	    memcmp(file.magic, PARAMS_MAGIC, sizeof(file.magic)) ||
	    file.params.domain_key_len > sizeof(file.params.domain_key))
		return;
	n->params = file.params;
	n->have_params = true;
}

static bool remember_params(struct network *n, const struct cluster_params *params)
{
	bool changed;

	pthread_mutex_lock(&n->params_lock);
	changed = !n->have_params || memcmp(&n->params, params, sizeof(*params));
	n->params = *params;
	n->have_params = true;
	if (changed)
		save_params(n, params);
	pthread_mutex_unlock(&n->params_lock);
	return changed;
}

/* The getter's own thread knows them then, and n->getter may not be set yet. */
static void getter_opened(void *ctx, const struct cluster_params *params)
{
	remember_params(ctx, params);
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
	getter_meta_answers(n->getter, !AGENT_IS_UNREACHABLE(r));
}

static int need_cluster(struct network *n, struct cluster **c)
{
	struct error err = { 0 };
	int r;

	if (is_down(n))
		return -ETIMEDOUT;
	if (*c)
		return 0;
	*c = cluster_open(n->net, n->config, n->meta, "agent", OPEN_TIMEOUT_MS, &err);
	r = *c ? 0 : err.code ? err.code : -ETIMEDOUT;
	/* A key that cannot be read, or a refusal to talk, is no answer to what will be asked. */
	if (r && !AGENT_IS_UNREACHABLE(r)) {
		log_warn("%s", err.text);
		r = -ENOTCONN;
	}
	note_answer(n, r);
	if (*c && remember_params(n, cluster_params(*c)))
		getter_set_params(n->getter, cluster_params(*c));
	return r;
}

/* ---- recipe nodes: from the meta server, else from peers ---- */

struct far_nodes {
	struct network *network;
	struct cluster **cluster;
};

static int ask_node(struct cluster *c, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX],
		    size_t *len, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__NodeGet get = VMDEDUP__NODE_GET__INIT;
	struct net_reply reply = { 0 };
	struct fp seen;
	int r;

	get.hashes = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)hash->b };
	req.body_case = VMDEDUP__REQUEST__BODY_NODE_GET;
	req.node_get = &get;
	r = cluster_call(c, &req, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (!r && (reply.nr_frames != 1 || reply.frames[0].len > RECIPE_NODE_MAX))
		r = error_set(err, -ENOENT, "the meta server does not know a recipe node");
	if (!r) {
		recipe_node_hash(reply.frames[0].data, reply.frames[0].len, &seen);
		if (!fp_equal(&seen, hash))
			r = error_set(err, -EBADMSG, "a recipe node does not match its hash");
	}
	if (!r) {
		*len = reply.frames[0].len;
		memcpy(out, reply.frames[0].data, *len);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int far_get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		   struct error *err)
{
	struct far_nodes *f = ctx;
	int r = need_cluster(f->network, f->cluster);

	if (!r) {
		r = ask_node(*f->cluster, hash, out, len, err);
		note_answer(f->network, r);
	}
	if (r && !getter_node(f->network->getter, hash, out, len))
		return 0;
	return r ? error_set(err, r, "a recipe node cannot be had: %s", strerror(-r)) : 0;
}

static const struct recipe_ops far_ops = { .get = far_get };

static int ask_resolve(struct network *n, struct cluster **c, struct request *req,
		       struct error *err)
{
	struct far_nodes far = { n, c };
	struct node_source source = { .nodes = n->nodes, .below = &far_ops, .below_ctx = &far };
	struct cluster_params p;
	int r = 0;

	if (!network_params(n, &p)) {
		r = need_cluster(n, c);
		if (!r)
			p = *cluster_params(*c);
	}
	return r ? r : recipe_lookup_any(&req->root, p.block_shift, p.algorithm, req->block,
				     &node_source_ops, &source, &req->fp, err);
}

static int answer(struct network *n, struct cluster **c, struct request *req)
{
	struct error err = { 0 };
	int r;

	if (req->kind == REQUEST_RESOLVE) {
		r = ask_resolve(n, c, req, &err);
		if (r && !AGENT_IS_UNREACHABLE(r))
			log_warn("%s", err.text);
		return r;
	}
	r = need_cluster(n, c);
	if (!r) {
		r = network_ask(n, *c, req);
		note_answer(n, r);
	}
	return r;
}

static void *meta_thread(void *arg)
{
	struct network *n = arg;
	struct cluster *c = NULL;
	struct request *req;
	bool stopped;

	while ((req = queue_take(&n->asks, &stopped))) {
		req->r = stopped ? -ECANCELED : answer(n, &c, req);
		loop_post(n->loop, &req->work);
	}
	if (c)
		cluster_close(c);
	return NULL;
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
		agent_get_done(a, req->id, req->get.r, req->get.from == SOURCE_PEER,
			       req->get.block);
		break;
	case REQUEST_TRACE_GET:
		agent_trace_done(a, req->id, req->r, req->data, req->len);
		break;
	case REQUEST_ANNOUNCE:
	case REQUEST_TRACE_PUT:
		break;
	}
	free(req->data);
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

static void request_submit(struct network *n, struct request *req)
{
	if (queue_add(&n->asks, req))
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
	    !recipe_lookup_any(root, p.block_shift, p.algorithm, block, &node_source_ops, &source,
			   &req->fp, NULL)) {
		loop_post(n->loop, &req->work);
		return;
	}
	request_submit(n, req);
}

static void got_block(struct getter_get *get)
{
	struct request *req = (struct request *)((char *)get - offsetof(struct request, get));

	loop_post(req->network->loop, &req->work);
}

void network_get(struct network *n, uint64_t id, const struct fp *fp)
{
	struct request *req = request_new(n, REQUEST_GET, id);

	if (!req)
		return;
	req->get.fp = *fp;
	req->get.done = got_block;
	getter_get(n->getter, &req->get);
}

void network_announce(struct network *n, const struct uuid *cache, const char *host,
		      const struct uuid *images, size_t nr)
{
	struct request *req = n->has_self ? request_new(n, REQUEST_ANNOUNCE, 0) : NULL;

	if (!req)
		return;
	req->cache = *cache;
	strncpy(req->host, host, sizeof(req->host) - 1);
	req->data = malloc(nr * sizeof(*images) + 1);
	if (req->data) {
		req->len = nr * sizeof(*images);
		memcpy(req->data, images, req->len);
	}
	request_submit(n, req);
}

void network_trace_get(struct network *n, uint64_t id, const struct fp *root,
		       const struct uuid *image, const struct uuid *cache)
{
	struct request *req = request_new(n, REQUEST_TRACE_GET, id);

	if (!req)
		return;
	req->root = *root;
	req->image.uuid = *image;
	req->cache = *cache;
	request_submit(n, req);
}

void network_trace_put(struct network *n, const struct fp *root, const struct uuid *image,
		       const void *blocks, size_t len)
{
	struct request *req = request_new(n, REQUEST_TRACE_PUT, 0);

	if (!req)
		return;
	req->root = *root;
	req->image.uuid = *image;
	req->data = malloc(len + 1);
	if (!req->data) {
		free(req);
		return;
	}
	memcpy(req->data, blocks, len);
	req->len = len;
	request_submit(n, req);
}

struct getter *network_getter(struct network *n)
{
	return n->getter;
}

void network_image(struct network *n, uint64_t id, const char *name)
{
	struct request *req = request_new(n, REQUEST_IMAGE, id);

	if (!req)
		return;
	strncpy(req->name, name, sizeof(req->name) - 1);
	request_submit(n, req);
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
	request_submit(n, req);
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
	return 0;
}

static char *path_of(const char *folder, const char *name)
{
	char *path;

	return folder && asprintf(&path, "%s/%s", folder, name) >= 0 ? path : NULL;
}

struct network *network_new(const struct network_setup *in, struct error *err)
{
	struct network *n = calloc(1, sizeof(*n));
	CLEANUP_FREE char *peers_path = path_of(in->folder, "peers.cache");
	struct getter_params gp = {
		.net = in->net,
		.config = in->config,
		.peers_path = peers_path,
		.opened = getter_opened,
		.ctx = n,
	};

	if (!n) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	n->net = in->net;
	n->config = in->config;
	n->loop = in->loop;
	n->nodes = in->nodes;
	pthread_mutex_init(&n->params_lock, NULL);
	queue_init(&n->asks);
	n->params_path = path_of(in->folder, "cluster.cache");
	load_params(n);
	n->has_self = in->self;
	if (in->self)
		n->self = *in->self;
	gp.self = in->self ? &n->self : NULL;
	n->meta = strdup(in->meta);
	gp.meta = n->meta;
	if (!n->meta) {
		error_set(err, -ENOMEM, "out of memory");
		goto free_network;
	}
	n->getter = getter_new(&gp, err);
	if (!n->getter)
		goto free_network;
	if (n->have_params)
		getter_set_params(n->getter, &n->params);
	if (start_threads(n)) {
		error_set(err, -EAGAIN, "cannot start the threads of the network");
		goto free_network;
	}
	return n;

free_network:
	if (n->getter)
		network_stop(n);
	network_free(n);
	return NULL;
}

void network_stop(struct network *n)
{
	unsigned int i;

	getter_stop(n->getter);
	queue_stop(&n->asks);
	for (i = 0; i < n->nr_meta_threads; i++)
		pthread_join(n->meta_threads[i], NULL);
	n->nr_meta_threads = 0;
}

void network_free(struct network *n)
{
	if (!n)
		return;
	getter_free(n->getter);
	pthread_mutex_destroy(&n->params_lock);
	pthread_mutex_destroy(&n->asks.lock);
	pthread_cond_destroy(&n->asks.some);
	free(n->params_path);
	free(n->meta);
	free(n);
}
