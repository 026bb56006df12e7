// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "agent/handover.h"
#include "agent/node_source.h"
#include "agent/prefetch.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "lib/cluster.h"

#define OPEN_TIMEOUT_MS 3000
#define META_TIMEOUT_MS 5000
#define PEER_TIMEOUT_MS 3000
#define LOOK_MS		50	  /* at how warm the other host is */
#define HOT_WALK_BLOCKS (1 << 20) /* of a recipe that are looked at for the list */
#define HOT_AT_ONCE	512
#define MAX_KNOWN	4
#define KNOWN_S		600

/* What the last handovers have found, so that the switch, for which a guest waits, need not. */
struct known {
	struct uuid image;
	char to[64];
	struct handover_target target;
	void *hot;
	size_t hot_len;
	uint64_t at_ns;
};

struct handover {
	struct handover_params params;
	struct cluster *cluster;
	struct known known[MAX_KNOWN];
	size_t next_known;
	pthread_t thread;
	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t some;
	struct handover_task *first;
	bool stop, ended;
};

static bool stopping(struct handover *h)
{
	bool stop;

	pthread_mutex_lock(&h->lock);
	stop = h->stop;
	pthread_mutex_unlock(&h->lock);
	return stop;
}

/* Under the lock. */
static bool switch_waits(const struct handover *h)
{
	return h->first && !h->first->warm;
}

/* Or until a switch waits. */
static void pause_ms(struct handover *h, int ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)ms * 1000000L;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	pthread_mutex_lock(&h->lock);
	while (!h->stop && !switch_waits(h))
		if (pthread_cond_timedwait(&h->some, &h->lock, &until) == ETIMEDOUT)
			break;
	pthread_mutex_unlock(&h->lock);
}

static int need_cluster(struct handover *h, struct error *err)
{
	if (!h->cluster)
		h->cluster = cluster_open(h->params.net, h->params.config, h->params.meta, "agent",
					  OPEN_TIMEOUT_MS, err);
	return h->cluster ? 0 : err->code ? err->code : -ETIMEDOUT;
}

/* ---- the target ---- */

static int take_target(struct handover_task *t, const Vmdedup__HostFindReply *found)
{
	struct uuid caches[16];
	size_t i, n = 0;

	if (found->caches.len != found->n_addresses * sizeof(caches[0]) ||
	    found->n_hosts != found->n_addresses || found->caches.len > sizeof(caches))
		return error_set(&t->err, -EPROTO, "the meta server answered with something else");
	for (i = 0; i < found->n_addresses; i++) {
		memcpy(caches[i].b, found->caches.data + i * sizeof(caches[0]), sizeof(caches[0]));
		if (uuid_equal(&caches[i], &t->self) ||
		    peer_address_take(found->addresses[i], &t->target.address))
			continue;
		t->target.cache = caches[i];
		snprintf(t->target.host, sizeof(t->target.host), "%s", found->hosts[i]);
		n++;
	}
	if (!n && i)
		return error_set(&t->err, -EINVAL, "%s is this host: the volume is here already", t->to);
	if (!n)
		return error_set(&t->err, -ENOENT, "the meta server knows no agent of a host %s: it has "
				 "to run, with a cache, and to serve peers ([agent] listen)", t->to);
	if (n > 1)
		return error_set(&t->err, -EEXIST, "%zu caches are known by the host's name %s: say the "
				 "UUID of one (`vmdedup status` there)", n, t->to);
	return 0;
}

static int find_target(struct handover *h, struct handover_task *t)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__HostFind find = VMDEDUP__HOST_FIND__INIT;
	struct net_reply reply = { 0 };
	int r = need_cluster(h, &t->err);

	if (r)
		return r;
	find.host = t->to;
	req.body_case = VMDEDUP__REQUEST__BODY_HOST_FIND;
	req.host_find = &find;
	r = cluster_call(h->cluster, &req, NULL, 0, META_TIMEOUT_MS, &reply, &t->err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_HOST_FIND)
		r = error_set(&t->err, -EPROTO, "the meta server answered with something else");
	if (!r)
		r = take_target(t, reply.header->host_find);
	net_reply_free(&reply);
	return r;
}

/* ---- the list of what is hot here: the boot's order first, then what else the cache holds ---- */

struct hot {
	struct handover *h;
	uint32_t blocks[TRACE_MAX];
	size_t nr;
	/* of the walk */
	uint64_t looked_at;
	uint64_t at[HOT_AT_ONCE];
	struct fp fps[HOT_AT_ONCE];
	size_t n;
	uint8_t *seen; /* a bit a block: in the list */
	uint64_t nr_blocks;
};

static void hot_add(struct hot *hot, uint64_t block)
{
	if (hot->nr == TRACE_MAX || block >= hot->nr_blocks || block > UINT32_MAX ||
	    hot->seen[block / 8] & (1 << block % 8))
		return;
	hot->seen[block / 8] |= (uint8_t)(1 << block % 8);
	hot->blocks[hot->nr++] = (uint32_t)block;
}

static void look_in_loop(void *arg)
{
	struct hot *hot = arg;
	uint64_t slot, seq;
	size_t i;

	for (i = 0; i < hot->n; i++)
		if (agent_find_slot(hot->h->params.agent, &hot->fps[i], &slot, &seq))
			hot_add(hot, hot->at[i]);
	hot->n = 0;
}

static int hot_visit(void *arg, uint64_t block, uint64_t run, const struct fp *fp)
{
	struct hot *hot = arg;

	if (!fp)
		return 0;
	hot->at[hot->n] = block;
	hot->fps[hot->n++] = *fp;
	if (hot->n == HOT_AT_ONCE && !loop_call(hot->h->params.loop, look_in_loop, hot))
		return -ECANCELED;
	return hot->nr == TRACE_MAX || ++hot->looked_at == HOT_WALK_BLOCKS;
}

static void hot_trace(struct handover *h, struct hot *hot, const struct dm_dedup_volume_info *v)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__TraceGet get = VMDEDUP__TRACE_GET__INIT;
	CLEANUP_FREE uint32_t *blocks = malloc(TRACE_MAX * sizeof(*blocks));
	struct net_reply reply = { 0 };
	size_t i, n = 0;

	get.root = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)v->root };
	get.image = (ProtobufCBinaryData){ sizeof(v->image), (uint8_t *)v->image };
	req.body_case = VMDEDUP__REQUEST__BODY_TRACE_GET;
	req.trace_get = &get;
	if (blocks && !cluster_call(h->cluster, &req, NULL, 0, META_TIMEOUT_MS, &reply, NULL) &&
	    reply.header->body_case == VMDEDUP__REPLY__BODY_TRACE_GET)
		n = trace_unpack(reply.header->trace_get->blocks.data,
				 reply.header->trace_get->blocks.len, hot->nr_blocks, blocks, TRACE_MAX);
	for (i = 0; i < n; i++)
		hot_add(hot, blocks[i]);
	net_reply_free(&reply);
}

/* Best effort: what cannot be had is left out. */
static int make_hot_list(struct handover *h, struct handover_task *t,
			 const struct dm_dedup_volume_info *v)
{
	const struct cluster_params *p = cluster_params(h->cluster);
	struct node_source source = { .nodes = h->params.nodes, .below = &cluster_recipe_ops,
				      .below_ctx = h->cluster };
	struct hot *hot = calloc(1, sizeof(*hot));
	struct fp root;
	int r = 0;

	memcpy(root.b, v->root, FP_SIZE);
	if (hot) {
		hot->h = h;
		hot->nr_blocks = MIN(recipe_blocks(v->size, p->block_shift), 1ULL << 32);
		hot->seen = calloc(1, hot->nr_blocks / 8 + 1);
	}
	t->hot = malloc(TRACE_MAX_BYTES);
	if (!hot || !hot->seen || !t->hot) {
		r = error_set(&t->err, -ENOMEM, "out of memory for a list of blocks");
		goto free_hot;
	}
	hot_trace(h, hot, v);
	if (!fp_is_zero(&root))
		recipe_walk(&root, v->size, p->block_shift, p->algorithm, 0, hot->nr_blocks,
			    &node_source_ops, &source, hot_visit, hot, NULL);
	loop_call(h->params.loop, look_in_loop, hot);
	t->hot_len = trace_pack(hot->blocks, hot->nr, t->hot, TRACE_MAX_BYTES);
free_hot:
	if (hot)
		free(hot->seen);
	free(hot);
	return r;
}

/* ---- warming it ---- */

static void run_switches(struct handover *h);

static int ask_warm(struct handover *h, struct net_client *c, struct handover_task *t,
		    const struct dm_dedup_volume_info *v, bool first, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerWarm warm = VMDEDUP__PEER_WARM__INIT;
	Vmdedup__PeerAddress self;
	struct net_reply reply = { 0 };
	int r;

	warm.image = (ProtobufCBinaryData){ sizeof(v->image), (uint8_t *)v->image };
	warm.root = (ProtobufCBinaryData){ FP_SIZE, (uint8_t *)v->root };
	warm.size = v->size;
	if (h->params.self) {
		peer_address_give(h->params.self, &self);
		warm.from = &self;
	}
	if (first)
		warm.blocks = (ProtobufCBinaryData){ t->hot_len, t->hot };
	req.body_case = VMDEDUP__REQUEST__BODY_PEER_WARM;
	req.peer_warm = &warm;
	r = net_call(c, &req, NULL, 0, PEER_TIMEOUT_MS, &reply, err);
	t->warmth.cache = (struct uuid){ 0 };
	if (reply.header && reply.header->body_case == VMDEDUP__REPLY__BODY_PEER_WARM &&
	    reply.header->peer_warm->cache.len == sizeof(t->warmth.cache.b))
		memcpy(t->warmth.cache.b, reply.header->peer_warm->cache.data,
		       sizeof(t->warmth.cache.b));
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_PEER_WARM)
		r = error_set(err, -EPROTO, "it is of another version");
	if (!r) {
		t->warmth.blocks = reply.header->peer_warm->blocks;
		t->warmth.here = reply.header->peer_warm->here;
		t->warmth.failed = reply.header->peer_warm->failed;
		t->warmth.from_peers = reply.header->peer_warm->from_peers;
	}
	net_reply_free(&reply);
	return r;
}

/* A cold target is no reason not to go there; why it is cold is told. */
static void warm_it(struct handover *h, struct net_client *c, struct handover_task *t,
		    const struct dm_dedup_volume_info *v)
{
	uint64_t end = clock_mono_ns() + t->wait_ms * 1000000ULL;
	struct error err = { 0 };
	int r;

	if (!t->hot_len) {
		snprintf(t->cold, sizeof(t->cold), "this host's cache holds nothing of the image");
		return;
	}
	r = ask_warm(h, c, t, v, true, &err);
	while (!r && t->warmth.here + t->warmth.failed < t->warmth.blocks && !stopping(h) &&
	       clock_mono_ns() < end) {
		pause_ms(h, LOOK_MS);
		run_switches(h);
		r = ask_warm(h, c, t, v, false, &err);
	}
	if (r)
		snprintf(t->cold, sizeof(t->cold), "%.199s", err.text);
	else if (t->warmth.here < t->warmth.blocks)
		snprintf(t->cold, sizeof(t->cold), "%llu of %llu blocks were not there in time",
			 (unsigned long long)(t->warmth.blocks - t->warmth.here),
			 (unsigned long long)t->warmth.blocks);
}

/* The grant is given up only for an agent that answers and has the very cache that gets the lease: that
 * may have been formatted anew since it was found. Besides that any answer will do. */
static int is_there(struct handover *h, struct net_client *c, struct handover_task *t,
		    const struct dm_dedup_volume_info *v)
{
	char cache[UUID_TEXT_SIZE];
	int r = ask_warm(h, c, t, v, false, &t->err);

	if (uuid_equal(&t->warmth.cache, &t->target.cache)) {
		t->err.code = 0;
		return 0;
	}
	if (r == -ETIMEDOUT || r == -ECANCELED)
		return error_set(&t->err, -EHOSTUNREACH, "the agent of host %s does not answer on %s: "
				 "nothing was done", t->target.host, t->target.address.endpoint);
	return error_set(&t->err, -EHOSTUNREACH, "the agent of host %s on %s does not have the cache %s, "
			 "by which the meta server knows it: nothing was done", t->target.host,
			 t->target.address.endpoint, uuid_to_text(&t->target.cache, cache));
}

/* ---- one task ---- */

static struct known *known_find(struct handover *h, const uint8_t *image, const char *to)
{
	size_t i;

	for (i = 0; i < MAX_KNOWN; i++)
		if (!memcmp(h->known[i].image.b, image, sizeof(struct uuid)) &&
		    !strcmp(h->known[i].to, to) && h->known[i].at_ns &&
		    clock_mono_ns() < h->known[i].at_ns + KNOWN_S * 1000000000ULL)
			return &h->known[i];
	return NULL;
}

static void know(struct handover *h, const struct handover_task *t, const uint8_t *image)
{
	struct known *k = known_find(h, image, t->to);
	void *hot = malloc(t->hot_len + 1);

	if (!hot)
		return;
	if (!k)
		k = &h->known[h->next_known++ % MAX_KNOWN];
	free(k->hot);
	memcpy(k->image.b, image, sizeof(k->image.b));
	snprintf(k->to, sizeof(k->to), "%s", t->to);
	k->target = t->target;
	k->hot = hot;
	if (t->hot_len)
		memcpy(hot, t->hot, t->hot_len);
	k->hot_len = t->hot_len;
	k->at_ns = clock_mono_ns();
}

static int use_known(struct handover_task *t, const struct known *k)
{
	t->target = k->target;
	t->hot = malloc(k->hot_len + 1);
	if (!t->hot)
		return error_set(&t->err, -ENOMEM, "out of memory for a list of blocks");
	if (k->hot_len)
		memcpy(t->hot, k->hot, k->hot_len);
	t->hot_len = k->hot_len;
	return 0;
}

/* 1: it is not here any more: a switch that did not end. */
static int find_volume(struct handover *h, struct handover_task *t,
		       struct dm_dedup_volume_info *v)
{
	int r;

	memset(v, 0, sizeof(*v));
	r = cache_find_volume(h->params.cache, 0, NULL, t->name, v, &t->err);
	if (r != -ENOENT || t->warm)
		return r;
	t->err.code = 0;
	v->size = 512; /* for the question whether the target is there */
	return 1;
}

/* @k: what an earlier one has found, or NULL. */
static int run_once(struct handover *h, struct handover_task *t,
		    const struct dm_dedup_volume_info *v, bool gone, const struct known *k)
{
	const struct peer_address *to = &t->target.address;
	struct net_client *c;
	int r;

	free(t->hot);
	t->hot = NULL;
	t->hot_len = 0;
	r = k ? use_known(t, k) : find_target(h, t);
	if (!r && !k && !gone)
		r = make_hot_list(h, t, v);
	if (r)
		return r;
	c = net_client_new(h->params.net, to->endpoint, to->has_key ? to->key : NULL, "agent", &t->err);
	if (!c)
		return t->err.code ? t->err.code : -ENOMEM;
	if (!t->warm)
		r = is_there(h, c, t, v);
	if (!r && !k && !gone && (t->warm || t->ask))
		know(h, t, v->image);
	if (t->warm)
		warm_it(h, c, t, v);
	net_client_free(c);
	return r;
}

static void run_task(struct handover *h, struct handover_task *t)
{
	struct dm_dedup_volume_info v;
	struct known *k;
	int gone, r;

	gone = find_volume(h, t, &v);
	if (gone < 0)
		return;
	k = (t->warm && !t->stopped) || gone ? NULL : known_find(h, v.image, t->to);
	r = run_once(h, t, &v, gone, k);
	if (k && r == -EHOSTUNREACH) { /* it may be elsewhere, or another, by now */
		k->at_ns = 0;
		t->err.code = 0;
		r = run_once(h, t, &v, gone, NULL);
	}
	if (r && !t->err.code)
		error_set(&t->err, r, "%s", strerror(-r));
}

/* ---- the thread ---- */

/* Switches, then what warms; each in its order. Under the lock. */
static void put(struct handover *h, struct handover_task *task)
{
	struct handover_task **at = &h->first;

	while (*at && (task->warm || !(*at)->warm))
		at = &(*at)->next;
	task->next = *at;
	*at = task;
}

static struct handover_task *take(struct handover *h)
{
	struct handover_task *t = h->first;

	h->first = t->next;
	return t;
}

/* In the midst of a warming, of which no guest waits for the end. */
static void run_switches(struct handover *h)
{
	struct handover_task *t;

	pthread_mutex_lock(&h->lock);
	while (!h->stop && switch_waits(h)) {
		t = take(h);
		pthread_mutex_unlock(&h->lock);
		run_task(h, t);
		loop_post(h->params.loop, &t->work);
		pthread_mutex_lock(&h->lock);
	}
	pthread_mutex_unlock(&h->lock);
}

static void *handover_thread(void *arg)
{
	struct handover *h = arg;
	struct handover_task *t;

	pthread_mutex_lock(&h->lock);
	while (!h->stop || h->first) {
		if (!h->first) {
			pthread_cond_wait(&h->some, &h->lock);
			continue;
		}
		t = take(h);
		if (h->stop) {
			error_set(&t->err, -ECANCELED, "the agent is ending");
		} else {
			pthread_mutex_unlock(&h->lock);
			run_task(h, t);
			pthread_mutex_lock(&h->lock);
		}
		loop_post(h->params.loop, &t->work);
	}
	h->ended = true;
	pthread_mutex_unlock(&h->lock);
	return NULL;
}

void handover_submit(struct handover *h, struct handover_task *task)
{
	pthread_mutex_lock(&h->lock);
	if (h->ended) {
		error_set(&task->err, -ECANCELED, "the agent is ending");
		loop_post(h->params.loop, &task->work);
	} else {
		put(h, task);
		pthread_cond_broadcast(&h->some);
	}
	pthread_mutex_unlock(&h->lock);
}

struct handover *handover_new(const struct handover_params *params, struct error *err)
{
	struct handover *h = calloc(1, sizeof(*h));
	pthread_condattr_t attr;

	if (!h) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	h->params = *params;
	pthread_mutex_init(&h->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&h->some, &attr);
	pthread_condattr_destroy(&attr);
	if (pthread_create(&h->thread, NULL, handover_thread, h)) {
		error_set(err, -EAGAIN, "cannot start the thread that hands volumes over");
		free(h);
		return NULL;
	}
	pthread_setname_np(h->thread, "handover");
	return h;
}

void handover_stop(struct handover *h)
{
	pthread_mutex_lock(&h->lock);
	h->stop = true;
	pthread_cond_broadcast(&h->some);
	pthread_mutex_unlock(&h->lock);
}

bool handover_has_ended(struct handover *h)
{
	bool ended;

	pthread_mutex_lock(&h->lock);
	ended = h->ended;
	pthread_mutex_unlock(&h->lock);
	return ended;
}

void handover_free(struct handover *h)
{
	size_t i;

	if (!h)
		return;
	pthread_join(h->thread, NULL);
	for (i = 0; i < MAX_KNOWN; i++)
		free(h->known[i].hot);
	if (h->cluster)
		cluster_close(h->cluster);
	pthread_cond_destroy(&h->some);
	pthread_mutex_destroy(&h->lock);
	free(h);
}
