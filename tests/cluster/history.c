// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * history META[,META...] SEED FILE [join]
 *
 * Clients that clone, remove, lease, push and snapshot images without a pause, each insisting on
 * an answer, until SIGTERM; then every name and image is read once more. FILE gets a line for each
 * operation, for tests/cluster/linearizable:
 *
 *	KEY START END OPERATION ARGUMENT RESULT
 *
 * in microseconds of the monotonic clock; RESULT "?" when it is not known. Images are all of zeros,
 * so that no data server is needed. With `join` the images are there already: another history makes
 * them.
 */
#include "base/clock.h"
#include "base/uuid.h"
#include "lib/cluster.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NR_THREADS 6
#define NR_NAMES   4
#define NR_IMAGES  3
#define PAUSE_NS   5000000
#define OPEN_MS	   60000
#define CALL_MS	   300000

struct world {
	const char *meta;
	struct net_ctx *net;
	FILE *out;
	pthread_mutex_t lock; /* of out */
	struct uuid images[NR_IMAGES];
	atomic_bool stop;
	atomic_ulong ops;
};

struct client {
	struct world *w;
	pthread_t thread;
	struct cluster *c;
	struct uuid cache;
	unsigned int seed;
	uint64_t epochs[NR_IMAGES]; /* of the lease as far as this client knows; 0: none */
	uint64_t cuts[NR_IMAGES];
	uint64_t start_us; /* of the operation under way */
	bool failed;
};

static uint64_t now_us(void)
{
	return clock_mono_ns() / 1000;
}

__attribute__((format(printf, 4, 5)))
static void record(struct client *cl, const char *key, const char *op, const char *fmt, ...)
{
	uint64_t end = now_us();
	va_list ap;

	pthread_mutex_lock(&cl->w->lock);
	fprintf(cl->w->out, "%s %llu %llu %s ", key, (unsigned long long)cl->start_us,
		(unsigned long long)end, op);
	va_start(ap, fmt);
	vfprintf(cl->w->out, fmt, ap);
	va_end(ap);
	fputc('\n', cl->w->out);
	pthread_mutex_unlock(&cl->w->lock);
	cl->w->ops++;
}

/* The reply, to be freed; *text: "ok", the error's number, or "?". */
static bool ask(struct client *cl, Vmdedup__Request *req, bool mutation, struct net_reply *reply,
		char text[16])
{
	struct error err = { 0 };
	int r = mutation ? cluster_mutate(cl->c, req, NULL, 0, CALL_MS, reply, &err) :
			   cluster_call(cl->c, req, NULL, 0, CALL_MS, reply, &err);

	if (!r) {
		snprintf(text, 16, "ok");
		return true;
	}
	if (!reply->header || reply->header->not_done) {
		snprintf(text, 16, "?");
		fprintf(stderr, "history: no result: %s\n", err.text);
	} else {
		snprintf(text, 16, "%d", reply->header->error);
	}
	return false;
}

#define REQUEST(cl, type, Type, TYPE)                           \
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;          \
	Vmdedup__##Type body = VMDEDUP__##TYPE##__INIT;         \
	struct net_reply reply = { 0 };                         \
	char text[16];                                          \
	req.body_case = VMDEDUP__REQUEST__BODY_##TYPE;          \
	req.type = &body;                                       \
	(cl)->start_us = now_us()

static uint32_t first_bytes(const ProtobufCBinaryData *uuid)
{
	uint32_t v = 0;

	if (uuid->len >= sizeof(v))
		memcpy(&v, uuid->data, sizeof(v));
	return v;
}

/* ---- names ---- */

static void clone_base(struct client *cl, char *name)
{
	REQUEST(cl, image_clone, ImageClone, IMAGE_CLONE);

	body.source = "base";
	body.name = name;
	if (ask(cl, &req, true, &reply, text))
		record(cl, name, "clone", "- %08x", first_bytes(&reply.header->image->uuid));
	else
		record(cl, name, "clone", "- %s", text);
	net_reply_free(&reply);
}

static void remove_name(struct client *cl, char *name)
{
	REQUEST(cl, image_remove, ImageRemove, IMAGE_REMOVE);

	body.name = name;
	ask(cl, &req, true, &reply, text);
	record(cl, name, "remove", "- %s", text);
	net_reply_free(&reply);
}

static void get_name(struct client *cl, char *name)
{
	REQUEST(cl, image_get, ImageGet, IMAGE_GET);

	body.name = name;
	if (ask(cl, &req, false, &reply, text))
		record(cl, name, "get", "- %08x", first_bytes(&reply.header->image->uuid));
	else
		record(cl, name, "get", "- %s", text);
	net_reply_free(&reply);
}

/* ---- images ---- */

static ProtobufCBinaryData uuid_field(struct uuid *u)
{
	return (ProtobufCBinaryData){ sizeof(u->b), u->b };
}

static const char *image_key(int i, char key[16])
{
	snprintf(key, 16, "image%d", i);
	return key;
}

static void take(struct client *cl, int i)
{
	uint32_t me = first_bytes(&(ProtobufCBinaryData){ 16, cl->cache.b });
	char key[16];

	REQUEST(cl, lease_take, LeaseTake, LEASE_TAKE);

	body.image = uuid_field(&cl->w->images[i]);
	body.cache = uuid_field(&cl->cache);
	body.host = "history";
	if (ask(cl, &req, true, &reply, text)) {
		cl->epochs[i] = reply.header->lease->epoch;
		cl->cuts[i] = reply.header->lease->cut;
		record(cl, image_key(i, key), "take", "%08x %llu", me,
		       (unsigned long long)cl->epochs[i]);
	} else {
		record(cl, image_key(i, key), "take", "%08x %s", me, text);
	}
	net_reply_free(&reply);
}

static void release(struct client *cl, int i)
{
	char key[16];

	REQUEST(cl, lease_release, LeaseRelease, LEASE_RELEASE);

	body.image = uuid_field(&cl->w->images[i]);
	body.cache = uuid_field(&cl->cache);
	body.epoch = cl->epochs[i];
	ask(cl, &req, true, &reply, text);
	record(cl, image_key(i, key), "release", "%llu %s", (unsigned long long)cl->epochs[i],
	       text);
	cl->epochs[i] = 0;
	net_reply_free(&reply);
}

static void break_lease(struct client *cl, int i, uint64_t epoch)
{
	char key[16];

	REQUEST(cl, lease_break, LeaseBreak, LEASE_BREAK);

	body.image = uuid_field(&cl->w->images[i]);
	body.epoch = epoch;
	ask(cl, &req, true, &reply, text);
	record(cl, image_key(i, key), "break", "%llu %s", (unsigned long long)epoch, text);
	net_reply_free(&reply);
}

/* Returns the lease epoch, as a hint for whom to break. */
static uint64_t get_image(struct client *cl, int i)
{
	uint64_t epoch = 0;
	char key[16];

	REQUEST(cl, image_get, ImageGet, IMAGE_GET);

	body.uuid = uuid_field(&cl->w->images[i]);
	if (ask(cl, &req, false, &reply, text)) {
		const Vmdedup__Image *im = reply.header->image;

		epoch = im->lease_epoch;
		record(cl, image_key(i, key), "get", "- %llu,%llu,%llu,%08x",
		       (unsigned long long)im->lease_epoch, (unsigned long long)im->head_cut,
		       (unsigned long long)im->versions, first_bytes(&im->leased_to));
	} else {
		record(cl, image_key(i, key), "get", "- %s", text);
	}
	net_reply_free(&reply);
	return epoch;
}

static void snapshot(struct client *cl, int i)
{
	char key[16];

	REQUEST(cl, snapshot, Snapshot, SNAPSHOT);

	body.name = (char *)image_key(i, key);
	if (ask(cl, &req, true, &reply, text))
		record(cl, key, "snapshot", "- %llu",
		       (unsigned long long)reply.header->image->version);
	else
		record(cl, key, "snapshot", "- %s", text);
	net_reply_free(&reply);
}

static uint64_t begin_push(struct client *cl, int i, char text[16])
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PushBegin body = VMDEDUP__PUSH_BEGIN__INIT;
	struct net_reply reply = { 0 };
	uint8_t zeros[FP_SIZE] = { 0 };
	uint64_t push = 0;

	body.image = uuid_field(&cl->w->images[i]);
	body.lease_epoch = cl->epochs[i];
	body.cut = cl->cuts[i] + 1;
	body.parent_root = (ProtobufCBinaryData){ FP_SIZE, zeros };
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_BEGIN;
	req.push_begin = &body;
	if (ask(cl, &req, true, &reply, text)) {
		push = reply.header->push_begin->push;
		if (reply.header->push_begin->done)
			snprintf(text, 16, "done");
	}
	net_reply_free(&reply);
	return push;
}

/* One operation: a push is seen at its commit only. */
static void commit(struct client *cl, int i)
{
	Vmdedup__PushCommit body = VMDEDUP__PUSH_COMMIT__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	uint8_t zeros[FP_SIZE] = { 0 };
	char text[16], key[16];

	cl->start_us = now_us();
	body.push = begin_push(cl, i, text);
	if (body.push) {
		body.root = (ProtobufCBinaryData){ FP_SIZE, zeros };
		req.body_case = VMDEDUP__REQUEST__BODY_PUSH_COMMIT;
		req.push_commit = &body;
		ask(cl, &req, true, &reply, text);
		net_reply_free(&reply);
	}
	record(cl, image_key(i, key), "commit", "%llu,%llu %s",
	       (unsigned long long)cl->epochs[i], (unsigned long long)cl->cuts[i] + 1, text);
	if (!strcmp(text, "ok"))
		cl->cuts[i]++;
	else
		cl->epochs[i] = 0;
}

/* ---- clients ---- */

static void one_op(struct client *cl)
{
	unsigned int what = (unsigned int)rand_r(&cl->seed) % 16;
	int i = rand_r(&cl->seed) % NR_IMAGES;
	uint64_t epoch;
	char name[16];

	snprintf(name, sizeof(name), "name%d", rand_r(&cl->seed) % NR_NAMES);
	if (what < 3) {
		clone_base(cl, name);
	} else if (what < 5) {
		remove_name(cl, name);
	} else if (what < 7) {
		get_name(cl, name);
	} else if (what < 8) {
		epoch = get_image(cl, i);
		if (epoch && rand_r(&cl->seed) % 4 == 0)
			break_lease(cl, i, epoch);
	} else if (what < 9) {
		snapshot(cl, i);
	} else if (!cl->epochs[i]) {
		take(cl, i);
	} else if (what < 15) {
		commit(cl, i);
	} else {
		release(cl, i);
	}
}

static bool open_client(struct client *cl, struct world *w, unsigned int n, unsigned int seed)
{
	struct error err = { 0 };

	*cl = (struct client){ .w = w, .seed = seed * 1000 + n };
	cl->c = cluster_open(w->net, NULL, w->meta, "history", OPEN_MS, &err);
	if (!cl->c || uuid_generate(&cl->cache)) {
		fprintf(stderr, "history: %s\n", err.text);
		return false;
	}
	return true;
}

static void *work(void *arg)
{
	const struct timespec pause = { .tv_nsec = PAUSE_NS };
	struct client *cl = arg;

	while (!cl->w->stop) {
		one_op(cl);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static bool find_image(struct client *cl, char *name, struct uuid *uuid)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageGet get = VMDEDUP__IMAGE_GET__INIT;
	struct net_reply reply = { 0 };
	char text[16];
	bool ok;

	get.name = name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	req.image_get = &get;
	ok = ask(cl, &req, false, &reply, text);
	if (ok)
		memcpy(uuid->b, reply.header->image->uuid.data, sizeof(uuid->b));
	net_reply_free(&reply);
	return ok;
}

/* An image of zeros, whose UUID goes into *uuid. */
static bool import_zeros(struct client *cl, char *name, struct uuid *uuid)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PushBegin begin = VMDEDUP__PUSH_BEGIN__INIT;
	Vmdedup__PushCommit end = VMDEDUP__PUSH_COMMIT__INIT;
	struct net_reply reply = { 0 };
	uint8_t zeros[FP_SIZE] = { 0 };
	char text[16];
	bool ok;

	begin.name = name;
	begin.size = 1 << 30;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_BEGIN;
	req.push_begin = &begin;
	ok = ask(cl, &req, true, &reply, text);
	if (ok)
		end.push = reply.header->push_begin->push;
	net_reply_free(&reply);
	end.root = (ProtobufCBinaryData){ FP_SIZE, zeros };
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_COMMIT;
	req.push_commit = &end;
	ok = ok && ask(cl, &req, true, &reply, text);
	if (ok)
		memcpy(uuid->b, reply.header->push_commit->image.data, sizeof(uuid->b));
	net_reply_free(&reply);
	return ok;
}

static bool prepare(struct client *cl, bool join)
{
	bool (*get)(struct client *cl, char *name, struct uuid *uuid) =
		join ? find_image : import_zeros;
	struct uuid base;
	char key[16];
	int i;

	if (!get(cl, "base", &base))
		return false;
	for (i = 0; i < NR_IMAGES; i++)
		if (!get(cl, (char *)image_key(i, key), &cl->w->images[i]))
			return false;
	return true;
}

static void read_all(struct client *cl)
{
	char name[16];
	int i;

	for (i = 0; i < NR_NAMES; i++) {
		snprintf(name, sizeof(name), "name%d", i);
		get_name(cl, name);
	}
	for (i = 0; i < NR_IMAGES; i++)
		get_image(cl, i);
}

static int run(struct world *w, unsigned int seed, bool join, const sigset_t *signals)
{
	struct client clients[NR_THREADS + 1];
	int i, signal, r = 1;

	if (!open_client(&clients[NR_THREADS], w, NR_THREADS, seed) ||
	    !prepare(&clients[NR_THREADS], join))
		return 1;
	for (i = 0; i < NR_THREADS; i++)
		if (!open_client(&clients[i], w, (unsigned int)i, seed) ||
		    pthread_create(&clients[i].thread, NULL, work, &clients[i]))
			return 1;
	printf("ready\n");
	fflush(stdout);
	sigwait(signals, &signal);
	w->stop = true;
	for (i = 0; i < NR_THREADS; i++) {
		pthread_join(clients[i].thread, NULL);
		cluster_close(clients[i].c);
	}
	read_all(&clients[NR_THREADS]);
	cluster_close(clients[NR_THREADS].c);
	r = fclose(w->out) ? 1 : 0;
	printf("%lu operations\n", w->ops);
	return r;
}

int main(int argc, char **argv)
{
	struct world w = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct error err = { 0 };
	sigset_t signals;
	int r;

	if (argc != 4 && (argc != 5 || strcmp(argv[4], "join"))) {
		fprintf(stderr, "usage: history META[,META...] SEED FILE [join]\n");
		return 2;
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	w.meta = argv[1];
	w.out = fopen(argv[3], "w");
	if (w.out)
		setvbuf(w.out, NULL, _IOLBF, 0);
	w.net = net_ctx_new(NULL, NULL, &err);
	if (!w.out || !w.net) {
		fprintf(stderr, "history: %s: %s\n", argv[3], w.net ? strerror(errno) : err.text);
		return 1;
	}
	r = run(&w, (unsigned int)strtoul(argv[2], NULL, 0), argc == 5, &signals);
	/* A client that is not closed would keep its context from ending. */
	if (!r)
		net_ctx_free(w.net);
	return r;
}
