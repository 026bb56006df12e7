// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent/network.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#define META_THREADS	2
#define OPEN_TIMEOUT_MS 2000
#define META_TIMEOUT_MS 3000
#define PEER_TTL_S	90
#define MAX_LIARS	16
/* After no answer, what queues is sent back at once for so long: each has its own interval to
 * try again, and an OPEN does not wait for the timeouts of a thousand misses before it. */
#define DOWN_MS		1000

enum request_kind {
	REQUEST_RESOLVE,
	REQUEST_IMAGE,
	REQUEST_LEASE,
	REQUEST_GET,
	REQUEST_ANNOUNCE,
	REQUEST_TRACE_GET,
	REQUEST_TRACE_PUT,
};

struct request {
	struct work work; /* ->done answers the core */
	struct network *network;
	struct request *next;
	enum request_kind kind;
	uint64_t id;
	int r;
	/* RESOLVE, TRACE_* */
	struct fp root;
	uint64_t size, block;
	struct fp fp;
	void *data; /* of a trace; of images for ANNOUNCE */
	size_t len;
	/* GET */
	struct getter_get get;
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
	struct request_queue asks;
	struct getter *getter;
	bool has_self;
	struct peer_address self;
	char *params_path;
	pthread_t meta_threads[META_THREADS];
	unsigned int nr_meta_threads;
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
	take.renew = lease->renew;
	msg.body_case = VMDEDUP__REQUEST__BODY_LEASE_TAKE;
	msg.lease_take = &take;
	r = cluster_mutate(c, &msg, NULL, 0, timeout_ms, &reply, err);
	if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_LEASE ||
		   reply.header->lease->root.len != FP_SIZE))
		r = -EPROTO;
	if (!r) {
		lease->held = reply.header->lease->held;
		lease->epoch = reply.header->lease->epoch;
		lease->cut = reply.header->lease->cut;
		lease->size = reply.header->lease->size;
		memcpy(lease->root.b, reply.header->lease->root.data, FP_SIZE);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

/* ---- peers and traces ---- */

static int ask_announce(struct network *n, struct cluster *c, struct request *req,
			struct error *err)
{
	char liars[MAX_LIARS][PEER_ENDPOINT_MAX], *liar_texts[MAX_LIARS];
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerAnnounce say = VMDEDUP__PEER_ANNOUNCE__INIT;
	struct peer_address peers[PEERS_SET];
	Vmdedup__PeerAddress self;
	struct net_reply reply = { 0 };
	size_t i, nr = 0;
	int r;

	peer_address_give(&n->self, &self);
	say.cache = (ProtobufCBinaryData){ sizeof(req->cache.b), req->cache.b };
	say.address = &self;
	say.host = req->host;
	say.rack = n->config->rack ? n->config->rack : (char *)"";
	say.ttl_s = PEER_TTL_S;
	say.images = (ProtobufCBinaryData){ req->len, req->data };
	say.want = PEERS_SET;
	say.n_liars = getter_liars(n->getter, liars, MAX_LIARS);
	for (i = 0; i < say.n_liars; i++)
		liar_texts[i] = liars[i];
	say.liars = liar_texts;
	msg.body_case = VMDEDUP__REQUEST__BODY_PEER_ANNOUNCE;
	msg.peer_announce = &say;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_PEER_ANNOUNCE)
		r = error_set(err, -EPROTO, "the meta server knows no peers");
	for (i = 0; !r && i < reply.header->peer_announce->n_peers && nr < PEERS_SET; i++)
		if (!peer_address_take(reply.header->peer_announce->peers[i], &peers[nr]))
			nr++;
	if (nr)
		getter_suggest(n->getter, peers, nr);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int ask_trace_get(struct cluster *c, struct request *req, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__TraceGet get = VMDEDUP__TRACE_GET__INIT;
	struct net_reply reply = { 0 };
	int r;

	get.root = (ProtobufCBinaryData){ FP_SIZE, req->root.b };
	get.image = (ProtobufCBinaryData){ sizeof(req->image.uuid.b), req->image.uuid.b };
	get.cache = (ProtobufCBinaryData){ sizeof(req->cache.b), req->cache.b };
	msg.body_case = VMDEDUP__REQUEST__BODY_TRACE_GET;
	msg.trace_get = &get;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_TRACE_GET)
		r = error_set(err, -EPROTO, "the meta server knows no traces");
	if (!r) {
		req->len = reply.header->trace_get->blocks.len;
		req->data = malloc(req->len + 1);
		if (!req->data)
			r = -ENOMEM;
		else if (req->len)
			memcpy(req->data, reply.header->trace_get->blocks.data, req->len);
	}
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int ask_trace_put(struct cluster *c, struct request *req, struct error *err)
{
	Vmdedup__Request msg = VMDEDUP__REQUEST__INIT;
	Vmdedup__TracePut put = VMDEDUP__TRACE_PUT__INIT;
	struct net_reply reply = { 0 };
	int r;

	put.root = (ProtobufCBinaryData){ FP_SIZE, req->root.b };
	put.image = (ProtobufCBinaryData){ sizeof(req->image.uuid.b), req->image.uuid.b };
	put.blocks = (ProtobufCBinaryData){ req->len, req->data };
	msg.body_case = VMDEDUP__REQUEST__BODY_TRACE_PUT;
	msg.trace_put = &put;
	r = cluster_call(c, &msg, NULL, 0, META_TIMEOUT_MS, &reply, err);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int answer_ask(struct network *n, struct cluster *c, struct request *req)
{
	struct error err = { 0 };
	int r;

	switch (req->kind) {
	case REQUEST_IMAGE:
		r = ask_image(c, req, &err);
		break;
	case REQUEST_LEASE:
		r = network_take_lease(c, &req->cache, req->host, &req->lease, META_TIMEOUT_MS,
				       &err);
		break;
	case REQUEST_ANNOUNCE:
		r = ask_announce(n, c, req, &err);
		break;
	case REQUEST_TRACE_GET:
		r = ask_trace_get(c, req, &err);
		break;
	case REQUEST_TRACE_PUT:
		r = ask_trace_put(c, req, &err);
		break;
	default:
		r = -EINVAL;
	}
	/* An unknown image is for whoever asked to report. */
	if (r && !AGENT_IS_UNREACHABLE(r) && req->kind != REQUEST_IMAGE)
		log_warn("%s", err.text);
	return r;
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
		r = answer_ask(n, *c, req);
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
		agent_get_done(a, req->id, req->get.r, req->get.from == SOURCE_PEER, req->get.data,
			       req->get.len);
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
