// SPDX-License-Identifier: GPL-2.0-or-later
/* The data server's threads and queues. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "data/record.h"
#include "data/server_priv.h"

/* ---- queues, under the lock ---- */

static void queue_init(struct queue *q)
{
	q->first = NULL;
	q->last = &q->first;
}

static void queue_push(struct queue *q, struct job *job)
{
	job->next = NULL;
	*q->last = job;
	q->last = &job->next;
}

static struct job *queue_pop(struct queue *q)
{
	struct job *job = q->first;

	if (job) {
		q->first = job->next;
		if (!q->first)
			q->last = &q->first;
	}
	return job;
}

void job_free(struct job *job)
{
	if (!job)
		return;
	for (size_t i = 0; i < job->nr && job->verified; i++)
		free(job->verified[i].owned);
	for (size_t i = 0; i < job->nr && job->bufs; i++)
		if (job->bufs[i])
			block_buf_put(job->bufs[i]);
	topology_put(job->topology);
	topology_put(job->fresh);
	free(job->sent);
	free(job->copies);
	free(job->peers);
	free(job->verified);
	free(job->no_coding);
	free(job->bufs);
	free(job->redirected);
	free(job->named);
	free(job->nr_named);
	free(job->ops);
	free(job->listed);
	free(job);
}

static bool is_write(const struct job *job)
{
	return job->kind != JOB_PUT && job->kind != JOB_GET && job->kind != JOB_LIST;
}

void server_part_done(struct data_server *s, struct job *job)
{
	uint64_t one = 1;

	if (--job->parts)
		return;
	queue_push(&s->done, job);
	pthread_cond_signal(&s->done_cond);
	if (write(s->done_fd, &one, sizeof(one)) != sizeof(one))
		log_error("wake the data server: %m");
}

/* What was to be done here is done: its bytes make room for others. Under the lock. */
static void job_done(struct data_server *s, struct job *job)
{
	s->bytes_in -= job->bytes;
	job->bytes = 0;
	pthread_cond_signal(&s->done_cond);
	server_part_done(s, job);
}

/* ---- workers ---- */

struct worker {
	struct data_server *s;
	struct verifier *verifier;
	struct {
		uint32_t domain;
		enum fp_algorithm algorithm;
		struct fp_hasher *hasher;
	} hashers[8];
	unsigned int next_hasher;
};

static struct fp_hasher *worker_hasher(struct worker *w, const struct job *job)
{
	const Vmdedup__Domain *d = topology_domain(job->topology, job->domain);
	enum fp_algorithm algorithm = job->topology->algorithm;
	unsigned int i;

	if (!d) /* what began under a topology that knew it: a backup was restored since */
		return NULL;
	for (i = 0; i < ARRAY_SIZE(w->hashers); i++)
		if (w->hashers[i].hasher && w->hashers[i].domain == job->domain &&
		    w->hashers[i].algorithm == algorithm)
			return w->hashers[i].hasher;
	i = w->next_hasher++ % ARRAY_SIZE(w->hashers);
	fp_hasher_free(w->hashers[i].hasher);
	w->hashers[i].domain = job->domain;
	w->hashers[i].algorithm = algorithm;
	w->hashers[i].hasher = fp_hasher_new(algorithm, d->key.data, d->key.len);
	return w->hashers[i].hasher;
}

static void work_put(struct worker *w, struct job *job)
{
	struct fp_hasher *hasher = worker_hasher(w, job);

	for (size_t i = 0; i < job->nr; i++) {
		struct bstore_op *op = &job->ops[i];
		struct verify_block in = {
			.fp = op->fp, .codec = op->codec, .raw_len = op->raw_len,
			.data = op->data, .len = op->len, .no_coding = job->no_coding[i],
		};
		struct verified *out = &job->verified[i];

		op->r = !hasher ? -ENOMEM :
			op->raw_len > job->topology->block_size ? -EINVAL :
			verify_block(w->verifier, hasher, &in, out);
		if (op->r)
			continue;
		op->codec = out->codec;
		op->data = out->data;
		op->len = out->len;
	}
	job->r = forward_snapshot(job);
}

static void report_bad(struct data_server *s, const struct bstore_op *bad)
{
	struct job *job = calloc(1, sizeof(*job));

	if (job)
		job->ops = malloc(sizeof(*job->ops));
	if (!job || !job->ops) {
		job_free(job);
		return; /* the next read will find it */
	}
	job->kind = JOB_BAD;
	job->ops[0] = *bad;
	job->nr = 1;
	server_submit(s, job);
}

static int decode(struct worker *w, struct block_buf **buf)
{
	struct block_buf *in = *buf, *out;
	int r;

	if (in->codec == CODEC_RAW)
		return 0;
	out = block_buf_new(in->raw_len);
	if (!out)
		return -ENOMEM;
	out->len = out->raw_len = in->raw_len;
	out->codec = CODEC_RAW;
	r = verify_decode(w->verifier, in->codec, in->data + in->offset, in->len, out->data,
			  out->raw_len);
	block_buf_put(r ? out : in);
	if (!r)
		*buf = out;
	return r;
}

static void work_get(struct worker *w, struct job *job)
{
	for (size_t i = 0; i < job->nr; i++) {
		struct bstore_op bad;

		if (job->ops[i].r) /* somebody else is asked */
			continue;
		job->ops[i].r = bstore_read(w->s->store, job->domain, &job->ops[i].fp,
					   &job->bufs[i], &bad);
		if (job->ops[i].r == -EIO)
			report_bad(w->s, &bad);
		if (job->ops[i].r == -EIO)
			repair_bad(w->s, job->domain, &job->ops[i].fp);
		if (!job->ops[i].r && job->raw_only)
			job->ops[i].r = decode(w, &job->bufs[i]);
		if (job->ops[i].r && job->bufs[i]) {
			block_buf_put(job->bufs[i]);
			job->bufs[i] = NULL;
		}
	}
}

static void work_list(struct worker *w, struct job *job)
{
	int n = bstore_list(w->s->store, job->shard, job->domain,
			   job->has_after ? &job->after : NULL, job->listed, job->max, &job->more);

	if (n < 0)
		job->r = n;
	else
		job->nr = (size_t)n;
}

/* Under the lock. */
static struct job *next_work(struct data_server *s)
{
	struct job *job = queue_pop(&s->puts);

	if (!job && s->gets.first && (s->draining || !flow_is_full(s->flow)))
		job = queue_pop(&s->gets);
	return job;
}

static void *worker_run(void *arg)
{
	struct data_server *s = arg;
	struct worker w = { .s = s, .verifier = verifier_new(RECORD_MAX_PAYLOAD) };

	pthread_mutex_lock(&s->lock);
	for (;;) {
		struct job *job = next_work(s);

		if (!job && s->stopping)
			break;
		if (!job) {
			pthread_cond_wait(&s->work_cond, &s->lock);
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		if (!w.verifier && !(w.verifier = verifier_new(RECORD_MAX_PAYLOAD)))
			job->r = -ENOMEM;
		else if (job->kind == JOB_PUT)
			work_put(&w, job);
		else if (job->kind == JOB_GET)
			work_get(&w, job);
		else
			work_list(&w, job);
		pthread_mutex_lock(&s->lock);
		if (job->kind == JOB_PUT)
			s->verifying--;
		if (job->kind == JOB_PUT && !job->r) {
			forward_queue(s, job);
			queue_push(&s->writes, job);
			s->write_bytes += job->bytes;
		} else {
			job_done(s, job);
		}
		pthread_cond_signal(&s->write_cond);
	}
	pthread_mutex_unlock(&s->lock);
	for (size_t i = 0; i < ARRAY_SIZE(w.hashers); i++)
		fp_hasher_free(w.hashers[i].hasher);
	verifier_free(w.verifier);
	return NULL;
}

/* On any thread: GETs may go on. */
static void flow_below(void *arg)
{
	struct data_server *s = arg;

	pthread_mutex_lock(&s->lock);
	pthread_cond_broadcast(&s->work_cond);
	pthread_mutex_unlock(&s->lock);
}

/* ---- the writer ---- */

struct batch {
	struct job *jobs; /* in order, through ->next */
	struct bstore_op *ops;
	struct bstore_op **from; /* whose result each op is */
	size_t nr, room;
};

/*
 * A shard that had moved away may have come back since the meta server agreed that it be dropped, and
 * have a PUT's receipt. From a map that gives it back a PUT can only come after this; under the lock.
 */
static void refuse_drop(struct data_server *s, struct job *job)
{
	if (s->known && !topology_place(topology_map(s->known), job->shard, s->known->id))
		return;
	for (size_t i = 0; i < job->nr; i++)
		job->ops[i].r = -ESTALE;
}

/* Takes what is ready, as much as one commit should hold; under the lock. */
static void batch_take(struct data_server *s, struct batch *b)
{
	struct job **last = &b->jobs;
	size_t bytes = 0, ops = 0;

	while (s->writes.first &&
	       (!b->jobs || (bytes < BATCH_MAX_BYTES && ops < BATCH_MAX_OPS))) {
		struct job *job = queue_pop(&s->writes);

		job->next = NULL;
		*last = job;
		last = &job->next;
		if (job->kind == JOB_DROP)
			refuse_drop(s, job);
		s->write_bytes -= job->bytes;
		bytes += job->bytes;
		ops += job->nr;
	}
	b->nr = 0;
	b->room = ops;
}

static int batch_commit(struct data_server *s, struct batch *b)
{
	int r;

	b->ops = malloc(MAX(b->room, 1) * sizeof(*b->ops));
	b->from = malloc(MAX(b->room, 1) * sizeof(*b->from));
	if (!b->ops || !b->from)
		return -ENOMEM;
	for (struct job *job = b->jobs; job; job = job->next) {
		for (size_t i = 0; i < job->nr; i++) {
			if (job->ops[i].r)
				continue; /* refused before */
			b->from[b->nr] = &job->ops[i];
			b->ops[b->nr++] = job->ops[i];
		}
	}
	r = b->nr ? bstore_commit(s->store, b->ops, b->nr) : 0;
	for (size_t i = 0; i < b->nr; i++)
		*b->from[i] = b->ops[i];
	return r;
}

static void batch_run(struct data_server *s, struct batch *b)
{
	int r = batch_commit(s, b);
	struct job *job, *next;

	pthread_mutex_lock(&s->lock);
	for (job = b->jobs; job; job = next) {
		next = job->next;
		if (r)
			job->r = r;
		if (job->kind == JOB_DELETE || job->kind == JOB_DROP || job->kind == JOB_BAD)
			s->compact = true;
		job_done(s, job);
	}
	pthread_mutex_unlock(&s->lock);
	free(b->ops);
	free(b->from);
}

/* A sync costs much the same for one block and for a thousand: PUTs that are nearly here are waited
 * for, briefly; under the lock. */
static void wait_for_more(struct data_server *s)
{
	uint64_t until_ns = clock_mono_ns() + BATCH_WAIT_MS * 1000000ULL;

	if (!s->writes.first || !s->verifying)
		return;
	while (s->verifying && s->write_bytes < BATCH_MAX_BYTES)
		if (clock_cond_wait(&s->write_cond, &s->lock, until_ns))
			return;
}

static void *writer_run(void *arg)
{
	struct data_server *s = arg;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		struct batch b = { 0 };

		wait_for_more(s);
		batch_take(s, &b);
		if (b.jobs) {
			pthread_mutex_unlock(&s->lock);
			batch_run(s, &b);
			pthread_mutex_lock(&s->lock);
		} else if (s->stopping) {
			break;
		} else if (s->compact) {
			int r;

			pthread_mutex_unlock(&s->lock);
			r = bstore_compact(s->store, COMPACT_STEP);
			pthread_mutex_lock(&s->lock);
			if (r < 0)
				log_warn("compaction: %s", strerror(-r));
			s->compact = r > 0;
		} else {
			pthread_cond_wait(&s->write_cond, &s->lock);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* ---- the server's thread ---- */

static void job_wake(struct job_waiter *w)
{
	pthread_mutex_lock(&w->lock);
	w->done = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static void finish_done(struct data_server *s)
{
	struct job *job;
	uint64_t count;

	if (read(s->done_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("data server's event: %m");
	for (;;) {
		pthread_mutex_lock(&s->lock);
		job = queue_pop(&s->done);
		if (job)
			s->unfinished--;
		pthread_mutex_unlock(&s->lock);
		if (!job)
			return;
		if (job->waiter) {
			job_wake(job->waiter);
			continue;
		}
		if (job->kind == JOB_MAP)
			join_map_done(s, job);
		else if (job->req)
			server_reply(s, job);
		job_free(job);
	}
}

static void done_ready(void *arg)
{
	finish_done(arg);
}

/* A PUT beyond the bound waits here, with the whole server: the senders feel it. */
static void wait_for_room(struct data_server *s, const struct job *job)
{
	pthread_mutex_lock(&s->lock);
	while (job->bytes && s->bytes_in && s->bytes_in + job->bytes > MAX_BYTES_IN) {
		if (!s->done.first)
			pthread_cond_wait(&s->done_cond, &s->lock);
		pthread_mutex_unlock(&s->lock);
		finish_done(s);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
}

/* The server's thread, and others for jobs that wait for no room. */
void server_submit(struct data_server *s, struct job *job)
{
	if (job->bytes && !job->waiter)
		wait_for_room(s, job);
	job->parts = 1;
	pthread_mutex_lock(&s->lock);
	s->unfinished++;
	s->bytes_in += job->bytes;
	if (is_write(job)) {
		if (job->kind == JOB_TOUCH)
			forward_queue(s, job);
		queue_push(&s->writes, job);
		pthread_cond_signal(&s->write_cond);
	} else {
		queue_push(job->kind == JOB_PUT ? &s->puts : &s->gets, job);
		s->verifying += job->kind == JOB_PUT;
		pthread_cond_signal(&s->work_cond);
	}
	pthread_mutex_unlock(&s->lock);
}

void server_submit_wait(struct data_server *s, struct job *job)
{
	struct job_waiter w = { .done = false };

	pthread_mutex_init(&w.lock, NULL);
	pthread_cond_init(&w.cond, NULL);
	job->waiter = &w;
	server_submit(s, job);
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	pthread_cond_destroy(&w.cond);
	pthread_mutex_destroy(&w.lock);
}

static void server_tick(void *ctx)
{
	join_tick(ctx);
}

static const struct net_server_ops server_ops = {
	.handle = server_handle,
	.tick = server_tick,
	.room = MAX_BYTES_IN,
};

/* ---- life ---- */

static char *copy_or_empty(const char *text)
{
	return strdup(text ? text : "");
}

struct data_server *data_server_open(struct net_ctx *net, const struct data_options *o,
				     struct error *err)
{
	struct bstore_options so = {
		.dir = o->dir, .reserve = o->reserve, .capacity = o->capacity,
		.cache_bytes = o->cache_bytes ? o->cache_bytes : SERVER_CACHE,
	};
	struct data_server *s = calloc(1, sizeof(*s));

	if (!s) {
		error_set(err, -ENOMEM, "no memory for a data server");
		return NULL;
	}
	s->net = net;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->work_cond, NULL);
	pthread_cond_init(&s->write_cond, NULL);
	pthread_cond_init(&s->done_cond, NULL);
	pthread_cond_init(&s->repair_cond, NULL);
	queue_init(&s->puts);
	queue_init(&s->gets);
	queue_init(&s->writes);
	queue_init(&s->done);
	s->compact = true; /* what a run before has left */
	s->repair_rate = o->repair_rate ? o->repair_rate : DEFAULT_REPAIR_RATE;
	s->scrub_rate = o->scrub_rate;
	s->scrub_every_s = o->scrub_every_s ? o->scrub_every_s : DEFAULT_SCRUB_EVERY_S;
	s->forwards_last = &s->forwards;
	s->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->forward_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->flow = flow_new(flow_below, s);
	s->redirect = redirect_new(REDIRECT_BLOCKS, REDIRECT_PEERS);
	s->meta = copy_or_empty(o->meta);
	s->endpoint = copy_or_empty(o->endpoint);
	s->host = copy_or_empty(o->host);
	s->rack = copy_or_empty(o->rack);
	s->has_meta_key = o->meta_key;
	if (o->meta_key)
		memcpy(s->meta_key, o->meta_key, sizeof(s->meta_key));
	if (s->done_fd < 0 || s->forward_fd < 0 || !s->flow || !s->redirect || !s->meta ||
	    !s->endpoint || !s->host || !s->rack) {
		error_set(err, -ENOMEM, "no memory for a data server");
		goto close;
	}
	if (uuid_generate(&s->session)) {
		error_set(err, -EIO, "no random bytes for a session's UUID");
		goto close;
	}
	s->store = bstore_open(&so, err);
	if (!s->store)
		goto close;
	s->server = net_server_new(net, "data", bstore_cluster(s->store)->b, &server_ops, s,
				   TICK_MS, err);
	if (!s->server || net_server_watch(s->server, s->done_fd, done_ready, s))
		goto close;
	return s;
close:
	data_server_close(s);
	return NULL;
}

int data_server_bind(struct data_server *s, const char *endpoint, struct error *err)
{
	return net_server_bind(s->server, endpoint, err);
}

static int start_threads(struct data_server *s, pthread_t *threads, unsigned int *nr,
			 struct error *err)
{
	void *(*const runs[])(void *) = { writer_run, forward_run, repair_run };
	int r = 0;

	for (size_t i = 0; !r && i < ARRAY_SIZE(runs) + NR_WORKERS; i++) {
		r = pthread_create(&threads[*nr], NULL,
				   i < ARRAY_SIZE(runs) ? runs[i] : worker_run, s);
		*nr += !r;
	}
	return r ? error_set(err, -r, "start a thread: %s", strerror(r)) : 0;
}

/* Everything that was accepted is finished and answered; what ZeroMQ has is its own. */
static void drain(struct data_server *s)
{
	pthread_mutex_lock(&s->lock);
	s->draining = true;
	pthread_cond_broadcast(&s->repair_cond);
	pthread_cond_broadcast(&s->work_cond);
	while (s->unfinished || s->repairing) {
		while (!s->done.first && (s->unfinished || s->repairing))
			pthread_cond_wait(&s->done_cond, &s->lock);
		pthread_mutex_unlock(&s->lock);
		finish_done(s);
		pthread_mutex_lock(&s->lock);
	}
	s->stopping = true;
	pthread_cond_broadcast(&s->work_cond);
	pthread_cond_broadcast(&s->write_cond);
	pthread_mutex_unlock(&s->lock);
}

int data_server_run(struct data_server *s, struct error *err)
{
	pthread_t threads[NR_WORKERS + 3];
	unsigned int nr = 0;
	int r = join_start(s, err);

	if (r)
		return r;
	s->stopping = s->draining = false;
	r = start_threads(s, threads, &nr, err);
	if (!r)
		r = net_server_run(s->server, err);
	join_end(s);
	server_refuse_early(s);
	drain(s);
	while (nr)
		pthread_join(threads[--nr], NULL);
	return r;
}

void data_server_stop(struct data_server *s)
{
	net_server_stop(s->server);
}

void data_server_close(struct data_server *s)
{
	if (!s)
		return;
	net_server_free(s->server);
	flow_end(s->flow);
	topology_put(s->topology);
	redirect_free(s->redirect);
	bstore_close(s->store);
	topology_put(s->newest);
	topology_put(s->known);
	if (s->done_fd >= 0)
		close(s->done_fd);
	if (s->forward_fd >= 0)
		close(s->forward_fd);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->work_cond);
	pthread_cond_destroy(&s->write_cond);
	pthread_cond_destroy(&s->done_cond);
	pthread_cond_destroy(&s->repair_cond);
	free(s->meta);
	free(s->endpoint);
	free(s->host);
	free(s->rack);
	free(s);
}
