// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/cluster.h"
#include "proto/recipe.h"
#include "world.h"

#define CHAOS_NS   (15 * S)
#define PATIENCE_NS (150 * S) /* until all is whole again, at most */
#define MAX_IMAGES 64
#define MAX_BLOCKS 12
#define NR_WRITERS 4
#define MAX_SERVERS 64

/* What was acknowledged. */
struct image {
	char name[32];
	bool there, unsure; /* @unsure: an answer never came */
	unsigned int nr;
	uint8_t blocks[MAX_BLOCKS];
	struct fp root;
};

struct writer {
	struct history *h;
	unsigned int number, nr;
	bool gives; /* blocks */
	struct cluster *c;
	struct image images[MAX_IMAGES];
};

static struct writer writers[NR_WRITERS];

/* ---- clients ---- */

static struct cluster *open_cluster(struct history *h, const char *role)
{
	struct error err = { 0 };
	struct net_ctx *net = net_ctx_new(NULL, NULL, &err);
	struct cluster *c = NULL;

	while (!c && !h->over)
		c = cluster_open(net, NULL, "sim://meta", role, 5000, &err);
	return c;
}

static int give(struct writer *w, struct cluster_push *p, struct image *im, struct error *err)
{
	uint64_t size = (uint64_t)im->nr * BLOCK_BYTES;
	struct recipe_builder *b = recipe_builder_new(size, BLOCK_SHIFT, FP_SHA256,
						      &cluster_push_recipe_ops, p);
	uint8_t block[BLOCK_BYTES];
	int r = 0;

	w->gives = true;
	for (unsigned int i = 0; !r && i < im->nr; i++) {
		content_make(im->blocks[i], block);
		r = cluster_push_block(p, &w->h->fps[im->blocks[i]], block, sizeof(block), err) ?:
		    recipe_builder_add(b, &w->h->fps[im->blocks[i]], err);
		if (sim_one_in(16))
			thread_sleep(sim_pick(300 * MS));
	}
	w->gives = false;
	if (!r)
		r = recipe_builder_finish(b, &im->root, err);
	recipe_builder_free(b);
	return r;
}

static void import(struct writer *w)
{
	Vmdedup__PushBegin begin = VMDEDUP__PUSH_BEGIN__INIT;
	struct image *im = &w->images[w->nr];
	struct cluster_push *p;
	struct error err = { 0 };
	struct fp root;
	int r;

	*im = (struct image){ .nr = 1 + (unsigned int)sim_pick(MAX_BLOCKS) };
	snprintf(im->name, sizeof(im->name), "w%u-%u", w->number, w->nr);
	for (unsigned int i = 0; i < im->nr; i++)
		im->blocks[i] = (uint8_t)sim_pick(CONTENTS);
	begin.name = im->name;
	begin.size = (uint64_t)im->nr * BLOCK_BYTES;
	p = cluster_push_begin(w->c, &begin, &root, &err);
	if (!p)
		return;
	r = give(w, p, im, &err);
	if (sim_one_in(8))
		thread_sleep(sim_pick(8 * S));
	if (r || sim_one_in(10)) { /* given up */
		cluster_push_free(p);
		return;
	}
	r = cluster_push_commit(p, &im->root, NULL, &err);
	cluster_push_free(p);
	world_trace(w->h, "%s: commit: %s", im->name, r ? err.text : "done");
	im->there = !r;
	im->unsure = r;
	w->nr++;
	w->h->r->commits += !r;
}

static void remove_image(struct writer *w, struct image *im)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove rm = VMDEDUP__IMAGE_REMOVE__INIT;
	struct error err = { 0 };
	struct net_reply reply;
	int r;

	rm.name = im->name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &rm;
	im->there = false;
	im->unsure = true;
	r = cluster_mutate(w->c, &req, NULL, 0, 20000, &reply, &err);
	net_reply_free(&reply);
	world_trace(w->h, "%s: remove: %s", im->name, r ? err.text : "done");
	im->unsure = r;
	w->h->r->removed += !r;
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;

	w->c = open_cluster(w->h, "writer");
	while (!w->h->ending && w->nr < MAX_IMAGES) {
		struct image *im = &w->images[sim_pick(w->nr + 1)];

		if (im->there && sim_one_in(2))
			remove_image(w, im);
		else
			import(w);
		thread_sleep(sim_pick(400 * MS));
	}
	w->h->writers--;
	return NULL;
}

static void *collector_main(void *arg)
{
	struct history *h = arg;
	struct cluster *c = open_cluster(h, "collector");
	struct cluster_gc_stats stats;

	while (!h->over) {
		struct error err = { 0 };
		bool full = h->ending || sim_one_in(3);
		int r = cluster_gc(c, full, h->ending, NULL, NULL, &stats, &err);

		world_trace(h, "collection: %s, %llu copies deleted, %llu kept", r ? err.text : "done",
			    (unsigned long long)stats.deleted_copies,
			    (unsigned long long)stats.kept_copies);
		h->r->collections += !r;
		thread_sleep(h->ending ? 2 * S : 200 * MS + sim_pick(3 * S));
	}
	return NULL;
}

/* ---- the nemesis ---- */

static void order(struct history *h, struct cluster *c, int64_t server, Vmdedup__ServerOrder what)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ServerSet set = VMDEDUP__SERVER_SET__INIT;
	struct error err = { 0 };
	struct net_reply reply;
	int r;

	set.server = (uint32_t)server;
	set.order = what;
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_SET;
	req.server_set = &set;
	r = cluster_mutate(c, &req, NULL, 0, 5000, &reply, &err);
	net_reply_free(&reply);
	world_trace(h, "order %d for server %lld: %s", what, (long long)server, r ? err.text : "done");
}

/* What people would do: servers whose disk is gone are removed, and none is drained. */
static void tidy(struct history *h, struct cluster *c)
{
	const Vmdedup__Server *servers[MAX_SERVERS];
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;
	struct error err = { 0 };
	struct net_reply reply;
	size_t n = 0;

	req.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	req.map_get = &get;
	if (!cluster_call(c, &req, NULL, 0, 5000, &reply, &err))
		for (size_t i = 0; n < MAX_SERVERS && i < reply.header->map->n_servers; i++)
			servers[n++] = reply.header->map->servers[i];
	for (size_t i = 0; i < n; i++) {
		bool known = false;

		for (unsigned int k = 0; k < MAX_DATA; k++)
			known |= h->data[k].exists &&
				 !memcmp(h->data[k].disk.b, servers[i]->disk.data, 16);
		if (!known)
			order(h, c, servers[i]->id, VMDEDUP__SERVER_ORDER__SERVER_REMOVE);
		else if (servers[i]->state == 3)
			order(h, c, servers[i]->id, VMDEDUP__SERVER_ORDER__SERVER_USE);
	}
	net_reply_free(&reply);
}

/* A second disk is harmed only when the harm of the first is mended. */
static bool may_harm(struct history *h)
{
	char why[200];

	if (h->min_copies < 2 || threads_now() < h->late_until_ns)
		return false;
	for (unsigned int i = 0; i < MAX_DATA; i++)
		if (h->data[i].damaged)
			return false;
	return watch_is_whole(h, why, sizeof(why));
}

static void cut_off(struct history *h, unsigned int i, uint64_t ns)
{
	unsigned int k = (i + 1 + (unsigned int)sim_pick(h->nr_data - 1)) % h->nr_data;

	world_trace(h, "data servers %u and %u are cut off for %.1f s", i, k, (double)ns / 1e9);
	net_sim_cut(h->data[i].node, h->data[k].node, ns);
}

static void cut_writers(struct history *h, uint64_t ns)
{
	for (unsigned int w = 0; w < NR_WRITERS; w++)
		net_sim_cut(NODE_CLIENT + w, NODE_META, ns);
}

static bool somebody_gives(void)
{
	for (unsigned int w = 0; w < NR_WRITERS; w++)
		if (writers[w].gives)
			return true;
	return false;
}

/*
 * Yesterday's disk, with pushes in flight: writers get receipts by server @i that reach the meta server only
 * when the disk is not what it was any more, and has been reconciled; one of the others has not got the
 * blocks either, and is current, for nobody who knows has spoken.
 */
static void put_back_in_flight(struct history *h, unsigned int i)
{
	unsigned int other = (i + 1 + (unsigned int)sim_pick(h->nr_data - 1)) % h->nr_data;
	uint64_t ns = 4 * S + sim_pick(3 * S), until_ns;
	char why[200];

	for (until_ns = threads_now() + 2 * S; !somebody_gives() && threads_now() < until_ns;)
		thread_sleep(10 * MS);
	world_trace(h, "writers are cut off from the meta server, and data server %u from the others, for "
		    "%.1f s", other, (double)ns / 1e9);
	cut_writers(h, 60 * S);
	for (unsigned int k = 0; k < h->nr_data; k++)
		if (k != other)
			net_sim_cut(h->data[other].node, h->data[k].node, ns);
	thread_sleep(ns);
	data_crash(h, i);
	data_put_back(h, i);
	data_start(h, i);
	until_ns = threads_now() + 6 * S;
	while ((h->data[i].damaged || !watch_is_whole(h, why, sizeof(why))) && threads_now() < until_ns)
		thread_sleep(50 * MS);
	world_trace(h, "writers may speak again");
	cut_writers(h, 0);
}

/* A copy of a disk that is followed by another process, or one that is put back. */
static void yesterday(struct history *h, unsigned int i)
{
	uint64_t until_ns = threads_now() + 6 * S;

	if (*h->data[i].old) {
		while (!(may_harm(h) && h->data[i].old_is_older) && threads_now() < until_ns)
			thread_sleep(50 * MS);
		if (may_harm(h) && h->data[i].old_is_older)
			put_back_in_flight(h, i);
		return;
	}
	data_copy(h, i);
	data_crash(h, i);
	data_start(h, i);
}

/* The JOIN of a process that has died is still on its way when the next one has joined: that one is taken for
 * a former process, and its disk for another than it was. */
static void late_join(struct history *h, unsigned int i)
{
	world_trace(h, "data server %u: its JOIN comes late", i);
	net_sim_late_join(h->data[i].node);
	h->late_until_ns = threads_now() + 10 * S;
	data_start(h, i);
	thread_sleep(20 * MS + sim_pick(200 * MS));
	data_crash(h, i);
}

static void harm(struct history *h, unsigned int i)
{
	struct data_machine *m = &h->data[i];
	bool may = may_harm(h), old = may && h->o->hard && *m->old && m->old_is_older;

	if (!*m->old && sim_one_in(2))
		data_copy(h, i);
	data_crash(h, i);
	thread_sleep(sim_pick(sim_one_in(4) ? 5 * S : 300 * MS));
	if (old)
		data_put_back(h, i);
	else if (may && sim_one_in(3))
		data_empty(h, i);
	else if (may && h->o->hard && sim_one_in(2))
		late_join(h, i);
	data_start(h, i);
	for (int n = 2; n && sim_one_in(2); n--)
		cut_off(h, i, 100 * MS + sim_pick(9 * S));
}

static void strike(struct history *h, struct cluster *c)
{
	unsigned int i = (unsigned int)sim_pick(h->nr_data);
	struct data_machine *m = &h->data[i];
	uint64_t ns = 50 * MS + sim_pick(sim_one_in(4) ? 9 * S : S);

	if (h->o->hard && h->min_copies > 1 && sim_one_in(4)) {
		yesterday(h, h->yesterday);
		return;
	}
	switch (sim_pick(12)) {
	case 0:
	case 1:
	case 2:
		/* One whose disk was copied some time ago, if there is one. */
		for (unsigned int k = 0; k < h->nr_data; k++)
			if (*h->data[k].old && h->data[k].old_is_older && sim_one_in(2))
				i = k;
		harm(h, i);
		break;
	case 3:
		world_trace(h, "data server %u stands still for %.1f s", i, (double)ns / 1e9);
		node_freeze(m->node, ns);
		break;
	case 4:
		meta_crash(h);
		thread_sleep(sim_pick(2 * S));
		meta_start(h);
		break;
	case 5:
		world_trace(h, "data server %u is cut off from the meta server for %.1f s", i,
			    (double)ns / 1e9);
		net_sim_cut(m->node, NODE_META, ns);
		break;
	case 6:
		cut_off(h, i, ns + sim_pick(6 * S));
		break;
	case 7:
		if (!*m->old || sim_one_in(4))
			data_copy(h, i);
		break;
	case 8:
		world_trace(h, "writer %u stands still for %.1f s", i % NR_WRITERS, (double)ns / 1e9);
		node_freeze(NODE_CLIENT + i % NR_WRITERS, ns);
		break;
	case 9:
		world_trace(h, "writer %u is cut off from the meta server for %.1f s", i % NR_WRITERS,
			    (double)ns / 1e9);
		net_sim_cut(NODE_CLIENT + i % NR_WRITERS, NODE_META, ns);
		break;
	case 10:
		if (h->nr_data < MAX_DATA - 2 && sim_one_in(2))
			data_start(h, h->nr_data++);
		break;
	default:
		order(h, c, 1 + (int64_t)sim_pick(h->nr_data),
		      sim_one_in(2) ? VMDEDUP__SERVER_ORDER__SERVER_USE :
				      VMDEDUP__SERVER_ORDER__SERVER_DRAIN);
	}
}

/* ---- reading it all back ---- */

struct reading {
	struct history *h;
	struct image *im;
	struct cluster *c;
};

static void got_block(void *arg, size_t index, int r, const void *data, size_t len)
{
	struct reading *rd = arg;
	uint8_t block[BLOCK_BYTES];

	content_make(rd->im->blocks[index], block);
	if (r || len != sizeof(block) || memcmp(block, data, len))
		world_fail(rd->h, "block %zu of %s was acknowledged and cannot be read: %s", index,
			   rd->im->name, strerror(-r));
}

static void read_back(struct history *h, struct cluster *c)
{
	for (unsigned int w = 0; w < NR_WRITERS; w++) {
		for (unsigned int i = 0; i < writers[w].nr; i++) {
			struct reading rd = { .h = h, .im = &writers[w].images[i], .c = c };
			struct fp fps[MAX_BLOCKS];
			struct error err = { 0 };

			if (!rd.im->there)
				continue;
			for (unsigned int k = 0; k < rd.im->nr; k++)
				fps[k] = h->fps[rd.im->blocks[k]];
			if (cluster_get(c, fps, rd.im->nr, 20000, got_block, &rd, &err))
				world_fail(h, "%s: %s", rd.im->name, err.text);
		}
	}
}

/* ---- a history ---- */

static bool until(struct history *h, struct cluster *c, bool (*check)(struct history *, char *, size_t),
		  const char *what)
{
	uint64_t until_ns = threads_now() + PATIENCE_NS, tidy_ns = 0;
	char why[300] = "?";

	while (!*h->what && !check(h, why, sizeof(why))) {
		if (threads_now() > until_ns) {
			world_fail(h, "%s not after %llu s: %s", what, PATIENCE_NS / S, why);
			return false;
		}
		if (c && threads_now() >= tidy_ns) {
			tidy(h, c);
			tidy_ns = threads_now() + 2 * S;
		}
		thread_sleep(100 * MS);
	}
	return !*h->what;
}

static bool writers_are_done(struct history *h, char *why, size_t len)
{
	snprintf(why, len, "%u still write", h->writers);
	return !h->writers;
}

static void mend(struct history *h)
{
	net_sim_calm();
	h->ending = true;
	world_trace(h, "from now on there is peace");
}

static void *history_main(void *arg)
{
	struct history *h = arg;
	struct cluster *c = NULL;
	uint64_t chaos_ns;

	meta_start(h);
	for (unsigned int i = 0; i < h->nr_data; i++)
		data_start(h, i);
	if (!until(h, NULL, watch_is_whole, "the empty cluster is whole"))
		goto over;
	c = open_cluster(h, "admin");
	h->writers = NR_WRITERS;
	for (unsigned int i = 0; i < NR_WRITERS; i++) {
		writers[i] = (struct writer){ .h = h, .number = i };
		thread_start(NODE_CLIENT + i, writer_main, &writers[i]);
	}
	thread_start(NODE_CLIENT + NR_WRITERS, collector_main, h);
	chaos_ns = threads_now() + CHAOS_NS;
	while (!*h->what && threads_now() < chaos_ns) {
		thread_sleep(sim_pick(1000 * MS));
		strike(h, c);
	}
	mend(h);
	if (until(h, c, writers_are_done, "the writers are done") &&
	    until(h, c, watch_is_whole, "the cluster is whole again") &&
	    until(h, c, watch_is_exact, "there are as many copies as there should be"))
		read_back(h, c);
over:
	h->over = true;
	return NULL;
}

static bool is_over(void *arg)
{
	struct history *h = arg;

	return h->over || *h->what;
}

static void step(void *arg, unsigned int node)
{
	watch_step(arg, node);
}

static struct history history;

bool histories_begin(const char *dir, char *what, size_t len)
{
	static const struct history_options o;
	static struct history_result r;
	struct history *h = &history;

	h->o = &o;
	h->r = &r;
	threads_init(0, false);
	world_prepare(h, dir);
	snprintf(what, len, "%s", h->what);
	return !*h->what;
}

bool history_run(const struct history_options *o, struct history_result *r, char *what, size_t len)
{
	struct history *h = &history;

	*r = (struct history_result){ .digest = 0xcbf29ce484222325ULL };
	h->o = o;
	h->r = r;
	threads_init(o->seed, o->trace);
	h->replicas = sim_one_in(4) ? 2 : 3;
	h->min_copies = sim_one_in(4) ? 1 : 2;
	h->nr_data = h->replicas + 1 + (unsigned int)sim_pick(3);
	h->yesterday = o->hard ? (unsigned int)sim_pick(h->nr_data) : 0;
	net_sim_init(sim_one_in(3) ? 0 : (unsigned int)sim_pick(300),
		     sim_one_in(4) ? 0 : (unsigned int)sim_pick(40), sim_one_in(2) ? 0 : 50,
		     sim_one_in(3) ? 80 * MS : 5 * MS);
	world_make(h);
	world_trace(h, "seed %llu: %u replicas, at least %u copies, %u data servers",
		    (unsigned long long)o->seed, h->replicas, h->min_copies, h->nr_data);
	thread_start(NODE_SELF, history_main, h);
	if (!threads_run(is_over, step, h))
		world_fail(h, "nothing happens any more");
	r->sim_ns = threads_now();
	snprintf(what, len, "%s", h->what);
	return !*h->what;
}
