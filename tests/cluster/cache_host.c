// SPDX-License-Identifier: GPL-2.0-or-later
/* The kernel's side of a cache behind a socket. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent/cache_file_impl.h"
#include "cache_wire.h"

struct cache_host {
	struct cache *cache;
	pthread_rwlock_t lock; /* read: a verb uses the cache */
	void (*step)(void *arg, const char *name);
	void *arg;
	int fd;
	pthread_mutex_t hold_lock; /* guards: */
	pthread_cond_t let_go;
	bool hold;
};

struct connection {
	struct cache_host *h;
	int fd;
	uint8_t *buf; /* payload, in and out */
};

static const char *const step_names[WIRE_VERBS] = {
	[WIRE_CUT] = "cut",
	[WIRE_LIST_CUT] = "list-cut",
	[WIRE_READ_SLOT] = "read-slot",
	[WIRE_COMMIT] = "commit-cache",
	[WIRE_FENCE] = "fence",
	[WIRE_RELEASE] = "release",
};

static void step(struct cache_host *h, uint32_t verb, const char *when)
{
	char name[64];

	if (!h->step || !step_names[verb])
		return;
	snprintf(name, sizeof(name), "%s%s", step_names[verb], when);
	h->step(h->arg, name);
}

static void wait_while_held(struct cache_host *h)
{
	pthread_mutex_lock(&h->hold_lock);
	while (h->hold)
		pthread_cond_wait(&h->let_go, &h->hold_lock);
	pthread_mutex_unlock(&h->hold_lock);
}

void cache_host_hold(struct cache_host *h, bool hold)
{
	pthread_mutex_lock(&h->hold_lock);
	h->hold = hold;
	pthread_cond_broadcast(&h->let_go);
	pthread_mutex_unlock(&h->hold_lock);
}

static void publish(struct cache *c, struct wire *w, uint8_t *buf)
{
	struct dm_dedup_publish p;

	memcpy(&p, buf, sizeof(p));
	p.data = (uintptr_t)buf + sizeof(p);
	w->r = c->ops->publish(c, &p, 1);
	memcpy(buf, &p, sizeof(p));
	w->len = sizeof(p);
}

static void serve_list(struct cache *c, struct wire *w, void *buf)
{
	size_t count = w->count, size = 0;

	if (w->verb == WIRE_LIST_CUT) {
		size = sizeof(struct dm_dedup_cut_entry);
		w->r = c->ops->list_cut(c, 1, w->volume, w->cut, &w->cursor, buf, &count);
	} else if (w->verb == WIRE_LIST_CLEAN) {
		size = sizeof(struct dm_dedup_clean_entry);
		w->r = c->ops->list_clean(c, &w->cursor, buf, &count);
	} else {
		size = sizeof(struct dm_dedup_volume_info);
		w->r = c->ops->list_volumes(c, &w->cursor, buf, &count);
	}
	w->count = w->r ? 0 : count;
	w->len = (uint32_t)(w->count * size);
}

/* Verbs without an answer's payload, and those that answer in the entries that came. */
static void serve_call(struct cache *c, struct wire *w, void *buf)
{
	const struct cache_ops *ops = c->ops;
	struct error err = { 0 };

	switch (w->verb) {
	case WIRE_CONNECT:
		w->r = ops->connect(c, buf, &err);
		w->len = sizeof(struct dm_dedup_hello);
		return;
	case WIRE_READ_SLOT:
		w->r = ops->read_slot(c, 1, w->cursor, buf, 1 << WIRE_SHIFT);
		w->len = 1 << WIRE_SHIFT;
		return;
	case WIRE_MAP:
		w->r = ops->map(c, buf, w->count);
		return;
	case WIRE_FAIL:
		w->r = ops->fail(c, buf, w->count);
		return;
	case WIRE_DROP:
		w->r = ops->drop(c, buf, w->count);
		return;
	case WIRE_CUT:
		w->r = ops->cut(c, 1, buf);
		return;
	case WIRE_COMMIT:
		w->r = ops->commit(c, 1, w->volume, w->cut, w->root, w->epoch, buf, w->count,
				   w->flags);
		return;
	case WIRE_REPLY:
		w->r = ops->reply(c, buf);
		break;
	case WIRE_FENCE:
		w->r = ops->fence(c, w->volume, w->epoch);
		break;
	case WIRE_RELEASE:
		w->r = ops->release(c, w->volume, w->epoch, w->flags);
		break;
	case WIRE_WAKE:
		ops->wake(c);
		break;
	case WIRE_DISCONNECT:
		ops->disconnect(c);
		break;
	}
	w->len = 0;
}

/* The answer did not reach the agent that asked: the next one is to have requests and events. */
static void unsend(struct cache *c, const struct dm_dedup_upcall *ups, size_t count)
{
	struct cache_file *f = cf_lock(c);
	struct request *req;
	size_t i;

	TAILQ_FOREACH(req, &f->requests, link)
		if (!req->answered)
			req->sent = false;
	for (i = 0; i < count; i++) {
		if (ups[i].cookie)
			continue;
		req = calloc(1, sizeof(*req));
		if (!req)
			abort();
		req->up = ups[i];
		TAILQ_INSERT_HEAD(&f->requests, req, link);
	}
	cf_unlock(f, 0);
}

static void serve_read(struct cache *c, struct wire *w, void *buf)
{
	/* Not for long: nobody tells a reader that its agent is dead. */
	ssize_t n = c->ops->read(c, buf, w->count, w->cursor ? 1000 : 0);

	w->r = n < 0 ? (int)n : 0;
	w->count = n < 0 ? 0 : (uint64_t)n;
	w->len = (uint32_t)(w->count * sizeof(struct dm_dedup_upcall));
}

static int serve_one(struct connection *n)
{
	struct cache_host *h = n->h;
	struct wire w;
	int r;

	if (wire_io(n->fd, &w, sizeof(w), false) || w.len > WIRE_MAX || w.verb >= WIRE_VERBS ||
	    wire_io(n->fd, n->buf, w.len, false))
		return -1;
	if (w.verb == WIRE_STEP) {
		w.len = 0;
		w.r = 0;
		if (h->step)
			h->step(h->arg, (char *)n->buf);
		return wire_io(n->fd, &w, sizeof(w), true);
	}
	step(h, w.verb, "");
	if (w.verb == WIRE_PUBLISH)
		wait_while_held(h);
	pthread_rwlock_rdlock(&h->lock);
	if (w.verb == WIRE_READ)
		serve_read(h->cache, &w, n->buf);
	else if (w.verb == WIRE_PUBLISH)
		publish(h->cache, &w, n->buf);
	else if (w.verb >= WIRE_LIST_CUT && w.verb <= WIRE_LIST_VOLUMES)
		serve_list(h->cache, &w, n->buf);
	else
		serve_call(h->cache, &w, n->buf);
	pthread_rwlock_unlock(&h->lock);
	step(h, w.verb, ".done");
	r = wire_io(n->fd, &w, sizeof(w), true);
	if (!r)
		r = wire_io(n->fd, n->buf, w.len, true);
	if (r && w.verb == WIRE_READ) {
		pthread_rwlock_rdlock(&h->lock);
		unsend(h->cache, (void *)n->buf, w.count);
		pthread_rwlock_unlock(&h->lock);
	}
	return r;
}

static void *serve(void *arg)
{
	struct connection *n = arg;

	while (!serve_one(n))
		;
	close(n->fd);
	free(n->buf);
	free(n);
	return NULL;
}

static void *accept_all(void *arg)
{
	struct cache_host *h = arg;

	for (;;) {
		struct connection *n = calloc(1, sizeof(*n));
		pthread_t thread;

		if (!n)
			abort();
		n->h = h;
		n->fd = accept4(h->fd, NULL, NULL, SOCK_CLOEXEC);
		if (n->fd < 0 || posix_memalign((void **)&n->buf, 4096, WIRE_MAX) ||
		    pthread_create(&thread, NULL, serve, n)) {
			perror("accept");
			abort();
		}
		pthread_detach(thread);
	}
	return NULL;
}

struct cache_host *cache_host_new(struct cache *cache, const char *path,
				  void (*on_step)(void *arg, const char *name), void *arg)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct cache_host *h = calloc(1, sizeof(*h));
	pthread_t thread;

	if (!h || strlen(path) >= sizeof(addr.sun_path))
		return NULL;
	strcpy(addr.sun_path, path);
	h->cache = cache;
	h->step = on_step;
	h->arg = arg;
	pthread_rwlock_init(&h->lock, NULL);
	pthread_mutex_init(&h->hold_lock, NULL);
	pthread_cond_init(&h->let_go, NULL);
	h->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (h->fd < 0 || bind(h->fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(h->fd, 64) || pthread_create(&thread, NULL, accept_all, h)) {
		perror(path);
		free(h);
		return NULL;
	}
	pthread_detach(thread);
	return h;
}

void cache_host_replace(struct cache_host *h, struct cache *cache)
{
	h->cache->ops->wake(h->cache); /* whoever still waits there for requests */
	pthread_rwlock_wrlock(&h->lock);
	h->cache->ops->free(h->cache);
	h->cache = cache;
	pthread_rwlock_unlock(&h->lock);
}
