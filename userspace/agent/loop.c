// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "agent/loop.h"

struct queue {
	struct work *first, **last;
};

static void queue_init(struct queue *q)
{
	q->first = NULL;
	q->last = &q->first;
}

static void queue_add(struct queue *q, struct work *w)
{
	w->next = NULL;
	*q->last = w;
	q->last = &w->next;
}

static struct work *queue_take(struct queue *q)
{
	struct work *w = q->first;

	if (w) {
		q->first = w->next;
		if (!q->first)
			q->last = &q->first;
	}
	return w;
}

struct loop {
	pthread_mutex_t lock; /* guards all below, and struct call.ended */
	pthread_cond_t called;
	struct queue inbox;
	bool closed;
	int fd;
};

struct loop *loop_new(void)
{
	struct loop *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (l->fd < 0) {
		free(l);
		return NULL;
	}
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->called, NULL);
	queue_init(&l->inbox);
	return l;
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	close(l->fd);
	pthread_cond_destroy(&l->called);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

int loop_fd(struct loop *l)
{
	return l->fd;
}

static void post_locked(struct loop *l, struct work *w)
{
	const uint64_t one = 1;
	bool was_empty = !l->inbox.first;

	queue_add(&l->inbox, w);
	/* It can only fail when the counter is full, which is readable all the same. */
	if (was_empty && write(l->fd, &one, sizeof(one)) < 0)
		return;
}

void loop_post(struct loop *l, struct work *w)
{
	pthread_mutex_lock(&l->lock);
	post_locked(l, w);
	pthread_mutex_unlock(&l->lock);
}

void loop_run(struct loop *l)
{
	struct queue batch;
	struct work *w;
	uint64_t count;

	if (read(l->fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	pthread_mutex_lock(&l->lock);
	batch = l->inbox;
	if (!batch.first)
		queue_init(&batch);
	queue_init(&l->inbox);
	pthread_mutex_unlock(&l->lock);
	while ((w = queue_take(&batch)))
		if (w->done)
			w->done(w);
}

struct call {
	struct work work;
	struct loop *loop;
	void (*fn)(void *arg);
	void *arg;
	bool ended;
};

static void call_done(struct work *w)
{
	struct call *c = (struct call *)w;
	struct loop *l = c->loop;

	c->fn(c->arg);
	pthread_mutex_lock(&l->lock);
	c->ended = true;
	pthread_cond_broadcast(&l->called);
	pthread_mutex_unlock(&l->lock);
}

bool loop_call(struct loop *l, void (*fn)(void *arg), void *arg)
{
	struct call c = { .work = { .done = call_done }, .loop = l, .fn = fn, .arg = arg };
	bool closed;

	pthread_mutex_lock(&l->lock);
	closed = l->closed;
	if (!closed)
		post_locked(l, &c.work);
	while (!closed && !c.ended)
		pthread_cond_wait(&l->called, &l->lock);
	pthread_mutex_unlock(&l->lock);
	return !closed;
}

void loop_close(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
	l->closed = true;
	pthread_mutex_unlock(&l->lock);
}

/* ---- threads ---- */

struct pool {
	struct loop *loop;
	pthread_mutex_t lock; /* guards queue and stop */
	pthread_cond_t some;
	struct queue queue;
	bool stop;
	unsigned int nr_threads;
	pthread_t threads[];
};

static void *pool_thread(void *arg)
{
	struct pool *p = arg;
	struct work *w;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		w = queue_take(&p->queue);
		if (!w && p->stop)
			break;
		if (!w) {
			pthread_cond_wait(&p->some, &p->lock);
			continue;
		}
		pthread_mutex_unlock(&p->lock);
		w->run(w);
		loop_post(p->loop, w);
		pthread_mutex_lock(&p->lock);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

struct pool *pool_new(struct loop *l, const char *name, unsigned int threads)
{
	struct pool *p = calloc(1, sizeof(*p) + threads * sizeof(p->threads[0]));
	unsigned int i;

	if (!p)
		return NULL;
	p->loop = l;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->some, NULL);
	queue_init(&p->queue);
	for (i = 0; i < threads; i++) {
		if (pthread_create(&p->threads[i], NULL, pool_thread, p))
			break;
		pthread_setname_np(p->threads[i], name);
		p->nr_threads++;
	}
	if (!p->nr_threads) {
		pool_free(p);
		return NULL;
	}
	return p;
}

void pool_free(struct pool *p)
{
	unsigned int i;

	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->some);
	pthread_mutex_unlock(&p->lock);
	for (i = 0; i < p->nr_threads; i++)
		pthread_join(p->threads[i], NULL);
	pthread_cond_destroy(&p->some);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

void pool_submit(struct pool *p, struct work *w)
{
	pthread_mutex_lock(&p->lock);
	queue_add(&p->queue, w);
	pthread_cond_signal(&p->some);
	pthread_mutex_unlock(&p->lock);
}

/* One loop over 0 .. n - 1 that several threads share; freed by the last to leave it. */
struct each {
	pthread_mutex_t lock;
	pthread_cond_t all;
	void (*fn)(void *arg, size_t i);
	void *arg;
	size_t n, next, ended;
	unsigned int users;
};

struct each_work {
	struct work work;
	struct each *each;
};

static void each_run(struct each *e)
{
	size_t i;

	pthread_mutex_lock(&e->lock);
	while (e->next < e->n) {
		i = e->next++;
		pthread_mutex_unlock(&e->lock);
		e->fn(e->arg, i);
		pthread_mutex_lock(&e->lock);
		if (++e->ended == e->n)
			pthread_cond_broadcast(&e->all);
	}
	pthread_mutex_unlock(&e->lock);
}

static void each_put(struct each *e)
{
	bool last;

	pthread_mutex_lock(&e->lock);
	last = !--e->users;
	pthread_mutex_unlock(&e->lock);
	if (!last)
		return;
	pthread_cond_destroy(&e->all);
	pthread_mutex_destroy(&e->lock);
	free(e);
}

static void each_work_run(struct work *w)
{
	struct each *e = ((struct each_work *)w)->each;

	each_run(e);
	each_put(e);
}

static void each_work_done(struct work *w)
{
	free(w);
}

void pool_for_each(struct pool *p, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
	struct each *e = n > 1 ? calloc(1, sizeof(*e)) : NULL;
	struct each_work *w;
	unsigned int i;
	size_t k;

	if (!e) {
		for (k = 0; k < n; k++)
			fn(arg, k);
		return;
	}
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->all, NULL);
	e->fn = fn;
	e->arg = arg;
	e->n = n;
	e->users = 1;
	for (i = 0; i < p->nr_threads && i + 1 < n; i++) {
		w = calloc(1, sizeof(*w));
		if (!w)
			break;
		w->work.run = each_work_run;
		w->work.done = each_work_done;
		w->each = e;
		pthread_mutex_lock(&e->lock);
		e->users++;
		pthread_mutex_unlock(&e->lock);
		pool_submit(p, &w->work);
	}
	each_run(e);
	pthread_mutex_lock(&e->lock);
	while (e->ended < e->n)
		pthread_cond_wait(&e->all, &e->lock);
	pthread_mutex_unlock(&e->lock);
	each_put(e);
}
