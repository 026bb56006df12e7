// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "cli/transfer.h"
#include "proto/limits.h"

#define BATCH_BYTES   (4U << 20)
#define QUEUE_BATCHES 8
#define MAX_THREADS   32
#define GET_TIMEOUT_MS 60000

struct batch {
	STAILQ_ENTRY(batch) link;
	size_t count;
	struct fp fps[PROTO_MAX_BLOCKS];
	uint64_t blocks[PROTO_MAX_BLOCKS];
};

struct run {
	const struct transfer *t;
	uint64_t size;
	size_t block_size, batch_max;
	struct batch *filling;
	uint64_t zero_bytes; /* behind, as the walking thread counts */

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t work, room;
	STAILQ_HEAD(, batch) queue;
	size_t queued;
	bool ended;	      /* no more batches come */
	uint64_t block_bytes; /* behind */
	struct error err;     /* the first one ends it all */
};

struct reader {
	struct run *run;
	struct cluster *cluster;
	struct batch *batch;
	pthread_t thread;
};

static void run_fail(struct run *run, const struct error *err, int r)
{
	pthread_mutex_lock(&run->lock);
	if (!run->err.code) {
		run->err = *err;
		run->err.code = r;
	}
	pthread_cond_broadcast(&run->work);
	pthread_cond_broadcast(&run->room);
	pthread_mutex_unlock(&run->lock);
}

/* ---- readers ---- */

static void got(void *arg, size_t index, int r, const void *data, size_t len)
{
	struct reader *rd = arg;
	struct run *run = rd->run;
	uint64_t offset = rd->batch->blocks[index] * run->block_size;
	size_t want = MIN(run->block_size, run->size - offset);
	struct error err = { 0 };

	if (!r && len < want)
		r = -EBADMSG;
	r = run->t->block(run->t->arg, offset, r, data, want, &err);
	if (r)
		run_fail(run, &err, r);
	pthread_mutex_lock(&run->lock);
	run->block_bytes += want;
	pthread_mutex_unlock(&run->lock);
}

static struct batch *batch_next(struct run *run)
{
	struct batch *b = NULL;

	pthread_mutex_lock(&run->lock);
	while (!run->err.code && !run->ended && !run->queued)
		pthread_cond_wait(&run->work, &run->lock);
	if (!run->err.code && run->queued) {
		b = STAILQ_FIRST(&run->queue);
		STAILQ_REMOVE_HEAD(&run->queue, link);
		run->queued--;
		pthread_cond_signal(&run->room);
	}
	pthread_mutex_unlock(&run->lock);
	return b;
}

static void *reader_main(void *arg)
{
	struct reader *rd = arg;
	struct error err = { 0 };

	while ((rd->batch = batch_next(rd->run))) {
		int r = cluster_get(rd->cluster, rd->batch->fps, rd->batch->count, GET_TIMEOUT_MS,
				    got, rd, &err);

		if (r)
			run_fail(rd->run, &err, r);
		free(rd->batch);
	}
	return NULL;
}

/* ---- the walk ---- */

static bool show_progress(struct run *run)
{
	uint64_t done;

	pthread_mutex_lock(&run->lock);
	done = run->block_bytes;
	pthread_mutex_unlock(&run->lock);
	return run->t->progress(run->t->arg, done + run->zero_bytes);
}

static void in_a_moment(struct timespec *ts)
{
	clock_gettime(CLOCK_MONOTONIC, ts);
	ts->tv_nsec += 100 * 1000 * 1000;
	if (ts->tv_nsec >= 1000000000) {
		ts->tv_nsec -= 1000000000;
		ts->tv_sec++;
	}
}

/* Waits for room in the queue, looking up now and then. */
static int batch_queue(struct run *run)
{
	struct timespec ts;
	int r;

	pthread_mutex_lock(&run->lock);
	while (!run->err.code && run->queued >= QUEUE_BATCHES) {
		in_a_moment(&ts);
		if (pthread_cond_clockwait(&run->room, &run->lock, CLOCK_MONOTONIC, &ts) !=
		    ETIMEDOUT)
			continue;
		pthread_mutex_unlock(&run->lock);
		if (!show_progress(run))
			run_fail(run, &(struct error){ .text = "interrupted" }, -EINTR);
		pthread_mutex_lock(&run->lock);
	}
	r = run->err.code;
	if (!r) {
		STAILQ_INSERT_TAIL(&run->queue, run->filling, link);
		run->queued++;
		run->filling = NULL;
		pthread_cond_signal(&run->work);
	}
	pthread_mutex_unlock(&run->lock);
	if (!r && !show_progress(run)) {
		r = -EINTR;
		run_fail(run, &(struct error){ .text = "interrupted" }, r);
	}
	return r;
}

static int visit_zeros(struct run *run, uint64_t block, uint64_t count)
{
	uint64_t offset = block * run->block_size;
	uint64_t len = MIN(count * run->block_size, run->size - offset);
	struct error err = { 0 };
	int r = run->t->zeros(run->t->arg, offset, len, &err);

	if (r)
		run_fail(run, &err, r);
	run->zero_bytes += len;
	if (!r && !show_progress(run)) {
		r = -EINTR;
		run_fail(run, &(struct error){ .text = "interrupted" }, r);
	}
	return r;
}

static int visit(void *arg, uint64_t block, uint64_t count, const struct fp *fp)
{
	struct run *run = arg;

	if (!fp)
		return visit_zeros(run, block, count);
	if (!run->filling) {
		run->filling = calloc(1, sizeof(*run->filling));
		if (!run->filling) {
			run_fail(run, &(struct error){ .text = "out of memory" }, -ENOMEM);
			return -ENOMEM;
		}
	}
	run->filling->fps[run->filling->count] = *fp;
	run->filling->blocks[run->filling->count++] = block;
	return run->filling->count == run->batch_max ? batch_queue(run) : 0;
}

static void walk(struct run *run)
{
	const struct cluster_params *params = cluster_params(run->t->cn->cluster);
	struct error err = { 0 };
	struct fp root;
	int r = cli_root_of(run->t->image, &root, &err);

	if (!r)
		r = recipe_walk(&root, run->size, params->block_shift, params->algorithm, 0,
				recipe_blocks(run->size, params->block_shift), &cluster_recipe_ops,
				run->t->cn->cluster, visit, run, &err);
	if (!r && run->filling)
		r = batch_queue(run);
	if (r)
		run_fail(run, &err, r); /* counts only if it is the first */
}

/* The last batches: the readers signal room when they take one, not when they are done with it. */
static void wait_for_readers(struct run *run, struct reader *readers, unsigned int n)
{
	pthread_mutex_lock(&run->lock);
	run->ended = true;
	pthread_cond_broadcast(&run->work);
	pthread_mutex_unlock(&run->lock);
	for (unsigned int i = 0; i < n; i++) {
		struct timespec ts;

		for (;;) {
			in_a_moment(&ts);
			if (pthread_clockjoin_np(readers[i].thread, NULL, CLOCK_MONOTONIC, &ts) !=
			    ETIMEDOUT)
				break;
			if (!show_progress(run))
				run_fail(run, &(struct error){ .text = "interrupted" }, -EINTR);
		}
	}
	show_progress(run);
}

static unsigned int readers_start(struct run *run, struct reader *readers, struct error *err)
{
	unsigned int n = 0, want = MIN(2 * (unsigned int)sysconf(_SC_NPROCESSORS_ONLN), MAX_THREADS);
	sigset_t all, before;

	sigfillset(&all);
	for (; n < want; n++) {
		struct reader *rd = &readers[n];
		int r;

		rd->run = run;
		rd->cluster = connect_another(run->t->cn, err);
		if (!rd->cluster)
			break;
		pthread_sigmask(SIG_SETMASK, &all, &before);
		r = pthread_create(&rd->thread, NULL, reader_main, rd);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
		if (r) {
			error_set(err, -r, "cannot start a thread: %s", strerror(r));
			cluster_close(rd->cluster);
			break;
		}
	}
	return n;
}

int transfer_run(const struct transfer *t, struct error *err)
{
	struct run run = { .t = t, .size = t->image->size };
	struct reader readers[MAX_THREADS] = { 0 };
	struct batch *b;
	unsigned int n;

	run.block_size = (size_t)1 << cluster_params(t->cn->cluster)->block_shift;
	run.batch_max = MIN(BATCH_BYTES / run.block_size, (size_t)PROTO_MAX_BLOCKS);
	pthread_mutex_init(&run.lock, NULL);
	pthread_cond_init(&run.work, NULL);
	pthread_cond_init(&run.room, NULL);
	STAILQ_INIT(&run.queue);
	n = readers_start(&run, readers, err);
	if (n)
		walk(&run);
	else
		run.err = *err;
	wait_for_readers(&run, readers, n);
	for (unsigned int i = 0; i < n; i++)
		cluster_close(readers[i].cluster);
	while ((b = STAILQ_FIRST(&run.queue))) {
		STAILQ_REMOVE_HEAD(&run.queue, link);
		free(b);
	}
	free(run.filling);
	pthread_cond_destroy(&run.room);
	pthread_cond_destroy(&run.work);
	pthread_mutex_destroy(&run.lock);
	if (run.err.code)
		*err = run.err;
	return run.err.code;
}
