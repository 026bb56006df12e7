/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads that work for the loop. The agent's state belongs to one thread, the loop; what blocks
 * (ioctls, disks, digests) runs on the threads of a pool, and its end comes back to the loop.
 */
#ifndef VMDEDUP_AGENT_LOOP_H
#define VMDEDUP_AGENT_LOOP_H

#include <stdbool.h>
#include <stddef.h>

/* Embedded in what is to be done; owned by the loop until submitted and after @done began. */
struct work {
	void (*run)(struct work *w);  /* on a thread of the pool; NULL: only @done */
	void (*done)(struct work *w); /* on the loop's thread; may free it. NULL: nothing */
	struct work *next;
};

/* ---- the loop's inbox ---- */
struct loop;
struct loop *loop_new(void);
void loop_free(struct loop *l);
int loop_fd(struct loop *l); /* readable: call loop_run() */
void loop_run(struct loop *l);
/* Any thread: have @w->done run on the loop's thread. */
void loop_post(struct loop *l, struct work *w);
/* Any other thread: run @fn on the loop's thread and wait for it. False: the loop has closed. */
bool loop_call(struct loop *l, void (*fn)(void *arg), void *arg);
/* The loop's thread: from now on loop_call() fails; loop_run() goes on working. */
void loop_close(struct loop *l);

/* ---- threads ---- */
struct pool;
struct pool *pool_new(struct loop *l, const char *name, unsigned int threads);
/* Runs what was submitted to the end. Call loop_run() after it. */
void pool_free(struct pool *p);
void pool_submit(struct pool *p, struct work *w);
/* Runs fn(arg, 0 .. n - 1) on the pool's threads and this one, and waits for all of them. */
void pool_for_each(struct pool *p, size_t n, void (*fn)(void *arg, size_t i), void *arg);

#endif
