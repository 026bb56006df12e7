// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <unistd.h>
#include <zstd.h>
#include "base/cleanup.h"
#include "cli/pipeline.h"

#define CHUNK_BYTES  (1U << 20)   /* what goes from thread to thread at once */
#define READ_BYTES   (256U << 10) /* what is read and then hashed while it is in the core's cache */
#define CHUNK_BLOCKS 256
#define WINDOW_BYTES (128U << 20) /* in all chunks */
#define PUSH_BYTES   (64U << 20)  /* coded, on their way: no new chunks above */
#define MAX_THREADS  64
#define ZSTD_LEVEL   1

struct chunk;

struct answer {
	struct pipeline *p;
	struct chunk *c;
	unsigned int i;
};

struct chunk {
	STAILQ_ENTRY(chunk) link; /* of the list that it is in */
	bool code;		  /* the next job: compress what is missing; else read and hash */
	bool hashed;
	uint64_t offset;	  /* in the source */
	size_t len;		  /* of the source; the rest of the last block is zeros */
	unsigned int count;	  /* of blocks */
	unsigned int answers_due, nr_missing;
	uint8_t *data;
	struct fp fps[CHUNK_BLOCKS];
	bool zero[CHUNK_BLOCKS], missing[CHUNK_BLOCKS];
	struct answer answers[CHUNK_BLOCKS];
	struct {
		void *data;
		size_t len;
	} coded[CHUNK_BLOCKS];
	int r;
	struct error err;
};
STAILQ_HEAD(chunk_list, chunk);

/* What comes next in the image: a chunk, or a run of blocks of zeros. */
struct span {
	struct chunk *chunk;
	uint64_t zero_blocks;
	uint64_t bytes;
};

struct pipeline {
	struct source *source;
	struct cluster *cluster;
	struct cluster_push *push;
	struct recipe_builder *builder;
	size_t block_size;
	unsigned int chunk_blocks;
	uint64_t size, planned, done; /* bytes */
	struct pipeline_stats stats;

	struct chunk *chunks;
	size_t nr_chunks, nr_free;
	struct chunk_list free;
	struct span *ring; /* spans whose turn in the recipe is still to come */
	size_t ring_size, ring_head, ring_used;

	pthread_t threads[MAX_THREADS];
	unsigned int nr_threads;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t work;
	struct chunk_list to_hash, to_code, finished;
	bool stop;
	int wake_fd; /* readable when finished is not empty */
};

/* ---- workers ---- */

static int blocks_hash(struct pipeline *p, struct fp_hasher *h, struct chunk *c, unsigned int first,
		       unsigned int count)
{
	size_t at = first * p->block_size, end = MIN(c->len, at + count * p->block_size);
	int r = source_pread(p->source, c->data + at, end - at, c->offset + at, &c->err);

	if (r)
		return r;
	if (end == c->len)
		memset(c->data + end, 0, c->count * p->block_size - end);
	for (unsigned int i = first; i < first + count; i++) {
		const uint8_t *block = c->data + i * p->block_size;

		c->zero[i] = mem_is_zero(block, p->block_size);
		if (!c->zero[i])
			fp_hash(h, block, p->block_size, &c->fps[i]);
	}
	return 0;
}

static void chunk_hash(struct pipeline *p, struct fp_hasher *h, struct chunk *c)
{
	unsigned int step = MAX(1U, READ_BYTES / p->block_size);

	for (unsigned int i = 0; i < c->count && !c->r; i += step)
		c->r = blocks_hash(p, h, c, i, MIN(step, c->count - i));
}

/* Compressed when that saves a sixteenth, else as it is. */
static int block_code(struct pipeline *p, ZSTD_CCtx *cctx, void *scratch, const void *block,
		      void **data, size_t *len)
{
	size_t n = ZSTD_compressCCtx(cctx, scratch, p->block_size - p->block_size / 16, block,
				     p->block_size, ZSTD_LEVEL);
	const void *from = scratch;

	if (ZSTD_isError(n)) {
		from = block;
		n = p->block_size;
	}
	*data = malloc(n);
	if (!*data)
		return -ENOMEM;
	memcpy(*data, from, n);
	*len = n;
	return 0;
}

static void chunk_code(struct pipeline *p, ZSTD_CCtx *cctx, void *scratch, struct chunk *c)
{
	for (unsigned int i = 0; i < c->count && !c->r; i++)
		if (c->missing[i])
			c->r = block_code(p, cctx, scratch, c->data + i * p->block_size,
					  &c->coded[i].data, &c->coded[i].len);
	if (c->r)
		error_set(&c->err, c->r, "out of memory");
}

/* Coding first: it is what sets chunks free. */
static struct chunk *next_job(struct pipeline *p)
{
	struct chunk *c = NULL;

	pthread_mutex_lock(&p->lock);
	while (!p->stop && STAILQ_EMPTY(&p->to_code) && STAILQ_EMPTY(&p->to_hash))
		pthread_cond_wait(&p->work, &p->lock);
	if (!p->stop) {
		struct chunk_list *from = STAILQ_EMPTY(&p->to_code) ? &p->to_hash : &p->to_code;

		c = STAILQ_FIRST(from);
		STAILQ_REMOVE_HEAD(from, link);
	}
	pthread_mutex_unlock(&p->lock);
	return c;
}

static void job_finished(struct pipeline *p, struct chunk *c)
{
	uint64_t one = 1;
	bool first;

	pthread_mutex_lock(&p->lock);
	first = STAILQ_EMPTY(&p->finished);
	STAILQ_INSERT_TAIL(&p->finished, c, link);
	pthread_mutex_unlock(&p->lock);
	/* An eventfd takes a write unless its counter is near 2^64. */
	if (first && write(p->wake_fd, &one, sizeof(one)) != sizeof(one))
		abort();
}

static void *worker(void *arg)
{
	struct pipeline *p = arg;
	struct fp_hasher *h = cluster_hasher(p->cluster);
	ZSTD_CCtx *cctx = ZSTD_createCCtx();
	void *scratch = malloc(p->block_size);
	struct chunk *c;

	while ((c = next_job(p))) {
		if (!h || !cctx || !scratch)
			c->r = error_set(&c->err, -ENOMEM, "out of memory");
		else if (c->code)
			chunk_code(p, cctx, scratch, c);
		else
			chunk_hash(p, h, c);
		job_finished(p, c);
	}
	free(scratch);
	ZSTD_freeCCtx(cctx);
	fp_hasher_free(h);
	return NULL;
}

static void job_queue(struct pipeline *p, struct chunk *c, bool code)
{
	c->code = code;
	pthread_mutex_lock(&p->lock);
	STAILQ_INSERT_TAIL(code ? &p->to_code : &p->to_hash, c, link);
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
}

/* ---- the plan: spans in the order of the image ---- */

static void chunk_release(struct pipeline *p, struct chunk *c)
{
	STAILQ_INSERT_HEAD(&p->free, c, link);
	p->nr_free++;
}

static struct chunk *chunk_take(struct pipeline *p)
{
	struct chunk *c = STAILQ_FIRST(&p->free);

	STAILQ_REMOVE_HEAD(&p->free, link);
	p->nr_free--;
	c->hashed = false;
	c->nr_missing = 0;
	memset(c->missing, 0, sizeof(c->missing));
	return c;
}

static void ring_add(struct pipeline *p, struct span s)
{
	p->ring[(p->ring_head + p->ring_used++) % p->ring_size] = s;
	p->planned += s.bytes;
}

/* The next span: only blocks that lie in holes altogether are not read. */
static int plan_one(struct pipeline *p, struct error *err)
{
	uint64_t extent, left = p->size - p->planned, blocks;
	struct chunk *c;
	bool data;
	int r = source_extent(p->source, p->planned, &extent, &data, err);

	if (r)
		return r;
	if (!data && (extent >= p->block_size || extent == left)) {
		blocks = extent == left ? (extent + p->block_size - 1) / p->block_size :
					  extent / p->block_size;
		ring_add(p, (struct span){ .zero_blocks = blocks,
					   .bytes = MIN(left, blocks * p->block_size) });
		return 0;
	}
	/* To the end of the data, which need not be the end of a block. */
	blocks = data ? (extent + p->block_size - 1) / p->block_size : 1;
	c = chunk_take(p);
	c->count = MIN(blocks, p->chunk_blocks);
	c->offset = p->planned;
	c->len = MIN(left, c->count * p->block_size);
	ring_add(p, (struct span){ .chunk = c, .bytes = c->len });
	job_queue(p, c, false);
	return 0;
}

static int plan_more(struct pipeline *p, struct error *err)
{
	size_t bytes;
	int r = 0;

	cluster_push_waiting(p->push, &bytes);
	while (!r && p->planned < p->size && p->nr_free && p->ring_used < p->ring_size &&
	       bytes < PUSH_BYTES)
		r = plan_one(p, err);
	return r;
}

/* ---- the caller's thread: offers, in order ---- */

static void answered(void *arg, int missing)
{
	struct answer *a = arg;
	struct chunk *c = a->c;

	if (missing < 0)
		return; /* the push has failed, and says so itself */
	if (missing) {
		c->missing[a->i] = true;
		c->nr_missing++;
	}
	if (--c->answers_due)
		return;
	if (c->nr_missing)
		job_queue(a->p, c, true);
	else
		chunk_release(a->p, c);
}

static int chunk_offer(struct pipeline *p, struct chunk *c, struct error *err)
{
	unsigned int count = c->count;
	size_t len = c->len;
	int r = 0;

	c->answers_due = 0;
	for (unsigned int i = 0; i < count; i++)
		c->answers_due += !c->zero[i];
	if (!c->answers_due) {
		p->stats.zero_bytes += len;
		chunk_release(p, c);
		return recipe_builder_add_zeros(p->builder, count, err);
	}
	for (unsigned int i = 0; i < count && !r; i++) {
		size_t bytes = MIN(p->block_size, len - i * p->block_size);
		struct fp fp = c->fps[i];

		if (c->zero[i]) {
			p->stats.zero_bytes += bytes;
			r = recipe_builder_add_zeros(p->builder, 1, err);
			continue;
		}
		p->stats.data_bytes += bytes;
		p->stats.data_blocks++;
		/* After the last answer the chunk is not ours any more: see answered(). */
		r = cluster_push_offer(p->push, &fp, answered, &c->answers[i], err);
		if (!r)
			r = recipe_builder_add(p->builder, &fp, err);
	}
	return r;
}

static int offer_ready(struct pipeline *p, struct error *err)
{
	int r = 0;

	while (!r && p->ring_used) {
		struct span *s = &p->ring[p->ring_head];

		if (s->chunk && !s->chunk->hashed)
			break;
		p->ring_head = (p->ring_head + 1) % p->ring_size;
		p->ring_used--;
		p->done += s->bytes;
		if (s->chunk) {
			r = chunk_offer(p, s->chunk, err);
		} else {
			p->stats.zero_bytes += s->bytes;
			r = recipe_builder_add_zeros(p->builder, s->zero_blocks, err);
		}
	}
	return r;
}

static void coded_free(void *data, void *hint)
{
	free(data);
}

static int chunk_give(struct pipeline *p, struct chunk *c, struct error *err)
{
	int r = 0;

	for (unsigned int i = 0; i < c->count && !r; i++) {
		if (!c->missing[i])
			continue;
		r = cluster_push_give(p->push, &c->fps[i], p->block_size, c->coded[i].data,
				      c->coded[i].len, coded_free, NULL, err);
		c->coded[i].data = NULL;
	}
	chunk_release(p, c);
	return r;
}

static int take_finished(struct pipeline *p, struct error *err)
{
	struct chunk_list list = STAILQ_HEAD_INITIALIZER(list);
	struct chunk *c;
	uint64_t count;
	int r = 0;

	if (read(p->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return error_set(err, -errno, "eventfd: %s", strerror(errno));
	pthread_mutex_lock(&p->lock);
	STAILQ_CONCAT(&list, &p->finished);
	pthread_mutex_unlock(&p->lock);
	while (!r && (c = STAILQ_FIRST(&list))) {
		STAILQ_REMOVE_HEAD(&list, link);
		if (c->r) {
			r = c->r;
			if (err)
				*err = c->err;
		} else if (c->code) {
			r = chunk_give(p, c, err);
		} else {
			c->hashed = true;
		}
	}
	return r;
}

int pipeline_run(struct pipeline *p, bool (*progress)(void *arg, uint64_t done), void *arg,
		 struct error *err)
{
	int r = 0;

	cluster_watch_fd(p->cluster, p->wake_fd);
	while (!r && (p->planned < p->size || p->ring_used || p->nr_free < p->nr_chunks)) {
		r = plan_more(p, err);
		if (!r)
			r = take_finished(p, err);
		if (!r)
			r = offer_ready(p, err);
		if (!r)
			r = cluster_push_error(p->push, err);
		if (!r && !progress(arg, p->done))
			r = error_set(err, -EINTR, "interrupted");
		if (!r && cluster_run(p->cluster, 1000) == -ENOMEM)
			r = error_set(err, -ENOMEM, "out of memory");
	}
	cluster_watch_fd(p->cluster, -1);
	return r;
}

void pipeline_stats(const struct pipeline *p, struct pipeline_stats *stats)
{
	*stats = p->stats;
}

/* ---- begin and end ---- */

static unsigned int cores(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 1;
	return MIN(CPU_COUNT(&set), MAX_THREADS);
}

static int chunks_make(struct pipeline *p)
{
	size_t bytes = p->chunk_blocks * p->block_size;

	p->nr_chunks = WINDOW_BYTES / bytes;
	p->chunks = calloc(p->nr_chunks, sizeof(*p->chunks));
	p->ring_size = 2 * p->nr_chunks;
	p->ring = calloc(p->ring_size, sizeof(*p->ring));
	if (!p->chunks || !p->ring)
		return -ENOMEM;
	for (size_t i = 0; i < p->nr_chunks; i++) {
		struct chunk *c = &p->chunks[i];

		c->data = aligned_alloc(4096, bytes);
		if (!c->data)
			return -ENOMEM;
		for (unsigned int n = 0; n < CHUNK_BLOCKS; n++)
			c->answers[n] = (struct answer){ p, c, n };
	}
	/* Handed out from the first on: a short import touches little memory. */
	for (size_t i = p->nr_chunks; i > 0; i--)
		chunk_release(p, &p->chunks[i - 1]);
	return 0;
}

static int threads_start(struct pipeline *p, unsigned int threads)
{
	sigset_t all, before;
	int r = 0;

	/* Signals are for the caller's thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (!r && p->nr_threads < threads) {
		r = pthread_create(&p->threads[p->nr_threads], NULL, worker, p);
		if (!r)
			p->nr_threads++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return p->nr_threads ? 0 : -r;
}

struct pipeline *pipeline_new(struct source *source, struct cluster *c, struct cluster_push *push,
			      struct recipe_builder *builder, unsigned int threads,
			      struct error *err)
{
	struct pipeline *p = calloc(1, sizeof(*p));

	if (!p) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	p->source = source;
	p->cluster = c;
	p->push = push;
	p->builder = builder;
	p->size = source_size(source);
	p->block_size = (size_t)1 << cluster_params(c)->block_shift;
	p->chunk_blocks = MAX(1U, MIN(CHUNK_BYTES / p->block_size, (size_t)CHUNK_BLOCKS));
	STAILQ_INIT(&p->free);
	STAILQ_INIT(&p->to_hash);
	STAILQ_INIT(&p->to_code);
	STAILQ_INIT(&p->finished);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->wake_fd < 0 || chunks_make(p) ||
	    threads_start(p, threads ? MIN(threads, MAX_THREADS) : cores())) {
		error_set(err, -ENOMEM, "out of memory or threads");
		pipeline_stop(p);
		pipeline_free(p);
		return NULL;
	}
	return p;
}

void pipeline_stop(struct pipeline *p)
{
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	while (p->nr_threads)
		pthread_join(p->threads[--p->nr_threads], NULL);
}

void pipeline_free(struct pipeline *p)
{
	for (size_t i = 0; p->chunks && i < p->nr_chunks; i++) {
		for (unsigned int n = 0; n < CHUNK_BLOCKS; n++)
			free(p->chunks[i].coded[n].data);
		free(p->chunks[i].data);
	}
	if (p->wake_fd >= 0)
		close(p->wake_fd);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->lock);
	free(p->chunks);
	free(p->ring);
	free(p);
}
