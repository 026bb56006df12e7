// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A whole agent in this process, with embedded meta and data servers on a real store and a
 * plain-file cache in place of the kernel: a guest reads, writes, and its volume is pushed,
 * detached and opened again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <cmocka.h>

#include "agent/cache_file.h"
#include "agent/daemon.h"
#include "base/cleanup.h"
#include "lib/cluster.h"
#include "meta/server.h"

#define SHIFT	  12
#define BLOCK	  (1U << SHIFT)
#define NR_BLOCKS 600
#define SIZE	  ((uint64_t)NR_BLOCKS * BLOCK)
#define WAIT_MS	  30000

struct host {
	char dir[64];
	char store[96], run[96], data[96], file[96], meta_store[128];
	struct config config;
	struct daemon *daemon;
	pthread_t thread;
	struct net_client *client;
	uint8_t *model;
	struct race *race; /* NULL: none */
};

/* What happens in the midst of a verb of the cache. */
struct race {
	struct host *h;
	struct cache_ops ops;
	const struct cache_ops *real;
	void (*listed)(struct host *h); /* once, after LIST_VOLUMES has told of none */
	pthread_mutex_t lock;		/* guards all below */
	pthread_cond_t changed;
	bool hold;  /* the answer to an OPEN waits */
	bool is_held;
	bool refuse; /* the next answer to an OPEN opens nothing ... */
	int refusal; /* ... and this is what the agent hears */
};

/* ---- one host ---- */

static struct race *the_race; /* a cache's operations know the cache alone */

static int racing_list(struct cache *c, uint64_t *cursor, struct dm_dedup_volume_info *infos,
		       size_t *count)
{
	struct race *race = the_race;
	int r = race->real->list_volumes(c, cursor, infos, count);
	void (*listed)(struct host *h) = NULL;

	pthread_mutex_lock(&race->lock);
	if (!r && !*count) {
		listed = race->listed;
		race->listed = NULL;
	}
	pthread_mutex_unlock(&race->lock);
	if (listed)
		listed(race->h);
	return r;
}

static int racing_reply(struct cache *c, struct dm_dedup_reply *reply)
{
	struct race *race = the_race;
	bool refuse;
	int r;

	pthread_mutex_lock(&race->lock);
	while (race->hold && reply->info.lease_epoch) {
		race->is_held = true;
		pthread_cond_broadcast(&race->changed);
		pthread_cond_wait(&race->changed, &race->lock);
	}
	refuse = race->refuse && reply->info.lease_epoch;
	race->refuse &= !refuse;
	pthread_mutex_unlock(&race->lock);
	if (refuse)
		reply->error = EPROTO;
	r = race->real->reply(c, reply);
	return refuse ? race->refusal : r;
}

static struct cache *racing_cache(struct host *h)
{
	struct error err = { 0 };
	struct uuid uuid;
	struct cache *c;

	assert_int_equal(uuid_generate(&uuid), 0);
	c = cache_file_new(h->file, 4 * SIZE, SHIFT, &uuid, &err);
	assert_non_null(c);
	h->race->h = h;
	h->race->real = c->ops;
	h->race->ops = *c->ops;
	h->race->ops.list_volumes = racing_list;
	h->race->ops.reply = racing_reply;
	c->ops = &h->race->ops;
	the_race = h->race;
	return c;
}

static void *run_daemon(void *arg)
{
	struct host *h = arg;
	struct error err = { 0 };

	if (daemon_run(h->daemon, &err))
		fprintf(stderr, "# the daemon ended: %s\n", err.text);
	return NULL;
}

static void start_agent(struct host *h)
{
	char endpoint[128];
	struct error err = { 0 };

	h->daemon = daemon_new(&h->config, h->race ? racing_cache(h) : NULL, &err);
	if (!h->daemon)
		fail_msg("%s", err.text);
	assert_int_equal(pthread_create(&h->thread, NULL, run_daemon, h), 0);
	snprintf(endpoint, sizeof(endpoint), "ipc://%s/agent.sock", h->run);
	h->client = net_client_new(h->daemon->net, endpoint, NULL, "cli", &err);
	assert_non_null(h->client);
}

static void stop_agent(struct host *h)
{
	net_client_free(h->client);
	daemon_stop(h->daemon);
	pthread_join(h->thread, NULL);
	assert_true(daemon_free(h->daemon));
}

static void make_store(struct host *h)
{
	struct meta_init init = {
		.name = "test", .algorithm = FP_SHA256, .block_shift = SHIFT, .replicas = 1,
		.min_copies = 1,
	};
	char command[256];
	struct error err = { 0 };

	snprintf(command, sizeof(command), "mkdir -p %s %s", h->store, h->run);
	assert_int_equal(system(command), 0);
	snprintf(h->meta_store, sizeof(h->meta_store), "%s/meta.sqlite", h->store);
	if (meta_store_init(h->meta_store, &init, &err))
		fail_msg("%s", err.text);
}

static struct host *new_host_with(struct race *race)
{
	struct host *h = calloc(1, sizeof(*h));

	assert_non_null(h);
	strcpy(h->dir, "/tmp/vmdedup-agent-XXXXXX");
	assert_non_null(mkdtemp(h->dir));
	snprintf(h->store, sizeof(h->store), "%s/store", h->dir);
	snprintf(h->run, sizeof(h->run), "%s/run", h->dir);
	snprintf(h->data, sizeof(h->data), "%s/store/data", h->dir);
	snprintf(h->file, sizeof(h->file), "%s/cache", h->dir);
	make_store(h);
	h->config = (struct config){
		.store = h->store,
		.meta_store = h->meta_store,
		.run = h->run,
		.data_dir = h->data,
		.host = (char *)"here",
		.data_reserve = 1 << 20,
		.cache_file = race ? NULL : h->file,
		.cache_file_size = 4 * SIZE,
	};
	h->race = race;
	h->model = calloc(1, SIZE);
	assert_non_null(h->model);
	start_agent(h);
	return h;
}

static struct host *new_host(void)
{
	return new_host_with(NULL);
}

static void free_host(struct host *h)
{
	char command[128];

	stop_agent(h);
	snprintf(command, sizeof(command), "rm -rf %s", h->dir);
	assert_int_equal(system(command), 0);
	free(h->model);
	free(h);
}

/* ---- what the command does ---- */

static void fill(uint8_t *data, size_t len, unsigned int seed)
{
	size_t i;

	srand(seed);
	for (i = 0; i < len; i++)
		data[i] = (uint8_t)rand();
}

/* Every third block is zero, every fifth repeats one. */
static void make_image(struct host *h)
{
	uint64_t i;

	for (i = 0; i < NR_BLOCKS; i++)
		if (i % 3)
			fill(h->model + i * BLOCK, BLOCK, i % 5 ? (unsigned int)i : 1000000);
}

static void import(struct host *h, const char *name)
{
	Vmdedup__PushBegin begin = VMDEDUP__PUSH_BEGIN__INIT;
	struct recipe_builder *builder;
	struct cluster_push *push;
	struct fp_hasher *hasher;
	struct error err = { 0 };
	struct cluster *c;
	struct fp fp, root;
	uint64_t i;

	c = cluster_open(h->daemon->net, &h->config, EMBEDDED_META, "cli", WAIT_MS, &err);
	assert_non_null(c);
	hasher = cluster_hasher(c);
	begin.name = (char *)name;
	begin.size = SIZE;
	begin.domain = cluster_params(c)->domain;
	push = cluster_push_begin(c, &begin, &root, &err);
	if (!push)
		fail_msg("%s", err.text);
	builder = recipe_builder_new(SIZE, SHIFT, FP_SHA256, &cluster_push_recipe_ops, push);
	for (i = 0; i < NR_BLOCKS; i++) {
		memset(&fp, 0, sizeof(fp));
		if (!mem_is_zero(h->model + i * BLOCK, BLOCK)) {
			fp_hash(hasher, h->model + i * BLOCK, BLOCK, &fp);
			assert_int_equal(cluster_push_block(push, &fp, h->model + i * BLOCK, BLOCK,
							    &err),
					 0);
		}
		assert_int_equal(recipe_builder_add(builder, &fp, &err), 0);
	}
	assert_int_equal(recipe_builder_finish(builder, &root, &err), 0);
	if (cluster_push_commit(push, &root, NULL, &err))
		fail_msg("%s", err.text);
	cluster_push_free(push);
	recipe_builder_free(builder);
	fp_hasher_free(hasher);
	cluster_close(c);
}

static int ask(struct host *h, Vmdedup__Request *req, struct net_reply *reply, struct error *err)
{
	return net_call(h->client, req, NULL, 0, WAIT_MS, reply, err);
}

static int prepare(struct host *h, const char *name, bool readonly, bool ephemeral,
		   struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumePrepare body = VMDEDUP__VOLUME_PREPARE__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	body.readonly = readonly;
	body.ephemeral = ephemeral;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PREPARE;
	req.volume_prepare = &body;
	r = ask(h, &req, &reply, err);
	if (!r)
		assert_int_equal(reply.header->volume_prepare->size, SIZE);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int push(struct host *h, const char *name, bool version, uint64_t *new_blocks,
		struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumePush body = VMDEDUP__VOLUME_PUSH__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	body.version = version;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PUSH;
	req.volume_push = &body;
	r = ask(h, &req, &reply, err);
	if (!r && new_blocks)
		*new_blocks = reply.header->volume_push->new_blocks;
	if (!r && version)
		assert_true(reply.header->volume_push->version > 0);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int detach(struct host *h, const char *name, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumeDetach body = VMDEDUP__VOLUME_DETACH__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_DETACH;
	req.volume_detach = &body;
	r = ask(h, &req, &reply, err);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int hand_over(struct host *h, const char *name, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumeHandover body = VMDEDUP__VOLUME_HANDOVER__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	body.to = (char *)"elsewhere";
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER;
	req.volume_handover = &body;
	r = ask(h, &req, &reply, err);
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static void rename_image(struct host *h, const char *name, const char *new_name)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRename body = VMDEDUP__IMAGE_RENAME__INIT;
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	struct cluster *c;

	c = cluster_open(h->daemon->net, &h->config, EMBEDDED_META, "cli", WAIT_MS, &err);
	assert_non_null(c);
	body.name = (char *)name;
	body.new_name = (char *)new_name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_RENAME;
	req.image_rename = &body;
	if (cluster_mutate(c, &req, NULL, 0, WAIT_MS, &reply, &err))
		fail_msg("%s", err.text);
	net_reply_free(&reply);
	cluster_close(c);
}

/* The agent serves its socket before it has its cache: what needs that waits for it. */
static void wait_for_cache(struct host *h)
{
	bool connected = false;
	int tries;

	for (tries = 0; !connected && tries < 3000; tries++) {
		Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
		Vmdedup__AgentStatus body = VMDEDUP__AGENT_STATUS__INIT;
		struct net_reply reply = { 0 };
		struct error err = { 0 };

		req.body_case = VMDEDUP__REQUEST__BODY_AGENT_STATUS;
		req.agent_status = &body;
		if (ask(h, &req, &reply, &err))
			fail_msg("%s", err.text);
		connected = reply.header->agent_status->channel;
		net_reply_free(&reply);
		if (!connected)
			poll(NULL, 0, 10);
	}
	assert_true(connected);
}

/* ---- the guest ---- */

static uint64_t open_volume(struct host *h, const char *name, uint32_t flags)
{
	uint64_t volume = 0, size = 0;
	struct error err = { 0 };

	wait_for_cache(h);
	if (prepare(h, name, flags & DM_DEDUP_VOL_READONLY, flags & DM_DEDUP_VOL_EPHEMERAL, &err))
		fail_msg("%s", err.text);
	assert_int_equal(cache_file_open(h->daemon->cache, name, flags, &volume, &size), 0);
	assert_int_equal(size, SIZE);
	return volume;
}

static void check_content(struct host *h, uint64_t volume)
{
	uint8_t *seen = malloc(SIZE);

	assert_non_null(seen);
	assert_int_equal(cache_file_read(h->daemon->cache, volume, 0, seen, SIZE), 0);
	assert_memory_equal(seen, h->model, SIZE);
	free(seen);
}

static void write_some(struct host *h, uint64_t volume, unsigned int seed)
{
	unsigned int i;

	for (i = 0; i < 40; i++) {
		uint64_t sector = (seed * 131 + i * 97) % (SIZE / 512 - 16);
		size_t len = 512 * (1 + (i + seed) % 12);

		fill(h->model + sector * 512, len, seed + i);
		assert_int_equal(cache_file_write(h->daemon->cache, volume, sector * 512,
						  h->model + sector * 512, len),
				 0);
	}
}

struct stats_call {
	struct agent *agent;
	struct agent_stats *stats;
};

static void stats_in_loop(void *arg)
{
	struct stats_call *c = arg;

	agent_stats(c->agent, c->stats);
}

/* The guest goes on when the cache has a block; the core hears of it a little later. */
static void stats_when_idle(struct host *h, struct agent_stats *s)
{
	struct stats_call c = { h->daemon->agent, s };

	do
		assert_true(loop_call(h->daemon->loop, stats_in_loop, &c));
	while (s->waiting || s->flights);
}

/* ---- tests ---- */

static void test_read_write_push_detach_open(void **state)
{
	struct host *h = new_host();
	uint64_t volume, new_blocks = 0;
	struct error err = { 0 };
	struct agent_stats s;

	make_image(h);
	import(h, "web-01");
	volume = open_volume(h, "web-01", 0);
	check_content(h, volume);
	stats_when_idle(h, &s);
	assert_true(s.reads.count[FROM_DATA] > 0 && s.prefetched > 0);
	/* every distinct block travelled once */
	assert_int_equal(s.got_bytes, (uint64_t)(NR_BLOCKS - NR_BLOCKS / 3 - NR_BLOCKS / 5 +
						NR_BLOCKS / 15 + 1) * BLOCK);

	write_some(h, volume, 1);
	check_content(h, volume);
	if (push(h, "web-01", false, &new_blocks, &err))
		fail_msg("%s", err.text);
	assert_true(new_blocks > 0);
	check_content(h, volume);
	cache_file_evict_all(h->daemon->cache);
	check_content(h, volume);
	write_some(h, volume, 2);
	if (push(h, "web-01", true, NULL, &err))
		fail_msg("%s", err.text);
	write_some(h, volume, 3);

	assert_int_equal(detach(h, "web-01", &err), -EBUSY); /* its device is still there */
	assert_int_equal(cache_file_close(h->daemon->cache, volume), 0);
	if (detach(h, "web-01", &err))
		fail_msg("%s", err.text);
	volume = open_volume(h, "web-01", 0);
	check_content(h, volume);
	free_host(h);
}

static void test_a_new_agent_on_the_same_store(void **state)
{
	struct host *h = new_host();
	struct error err = { 0 };
	uint64_t volume;

	make_image(h);
	import(h, "web-01");
	volume = open_volume(h, "web-01", 0);
	write_some(h, volume, 1);
	assert_int_equal(cache_file_close(h->daemon->cache, volume), 0);
	if (detach(h, "web-01", &err))
		fail_msg("%s", err.text);
	stop_agent(h);
	start_agent(h);
	volume = open_volume(h, "web-01", DM_DEDUP_VOL_READONLY);
	check_content(h, volume);
	free_host(h);
}

static void test_ephemeral_and_read_only(void **state)
{
	struct host *h = new_host();
	struct error err = { 0 };
	uint8_t *before;
	uint64_t volume;

	make_image(h);
	import(h, "web-01");
	before = malloc(SIZE);
	assert_non_null(before);
	memcpy(before, h->model, SIZE);
	volume = open_volume(h, "web-01", DM_DEDUP_VOL_EPHEMERAL);
	write_some(h, volume, 1);
	check_content(h, volume);
	assert_int_equal(push(h, "web-01", false, NULL, &err), -EROFS);
	assert_int_equal(cache_file_close(h->daemon->cache, volume), 0);
	assert_int_equal(detach(h, "web-01", &err), 0);
	memcpy(h->model, before, SIZE);
	free(before);
	volume = open_volume(h, "web-01", DM_DEDUP_VOL_READONLY);
	check_content(h, volume);
	assert_int_equal(cache_file_write(h->daemon->cache, volume, 0, h->model, 512), -EROFS);
	free_host(h);
}

static struct host *new_racing_host(struct race *race)
{
	struct host *h;

	pthread_mutex_init(&race->lock, NULL);
	pthread_cond_init(&race->changed, NULL);
	h = new_host_with(race);
	make_image(h);
	import(h, "web-01");
	return h;
}

static void open_write_close(struct host *h)
{
	uint64_t volume, size;

	assert_int_equal(cache_file_open(h->daemon->cache, "web-01", 0, &volume, &size), 0);
	write_some(h, volume, 1);
	assert_int_equal(cache_file_close(h->daemon->cache, volume), 0);
}

/* A detach has found no volume, and asks whose the lease is: this cache's, by now. */
static void test_opened_written_and_closed_during_a_detach(void **state)
{
	struct dm_dedup_volume_info *infos = NULL;
	struct race race = { 0 };
	struct host *h = new_racing_host(&race);
	struct error err = { 0 };
	uint64_t volume;
	size_t count;

	wait_for_cache(h);
	pthread_mutex_lock(&race.lock);
	race.listed = open_write_close;
	pthread_mutex_unlock(&race.lock);
	if (detach(h, "web-01", &err))
		fail_msg("%s", err.text);
	assert_null(race.listed);
	assert_int_equal(cache_volumes(h->daemon->cache, &infos, &count), 0);
	assert_int_equal(count, 0);
	free(infos);
	volume = open_volume(h, "web-01", 0);
	check_content(h, volume);
	free_host(h);
}

/* The lease is taken, and nothing is open; @refusal: whether the agent hears of that. */
static void open_for_nothing(struct race *race, int refusal)
{
	struct host *h = race->h;
	uint64_t volume, size;

	pthread_mutex_lock(&race->lock);
	race->refuse = true;
	race->refusal = refusal;
	pthread_mutex_unlock(&race->lock);
	assert_int_equal(cache_file_open(h->daemon->cache, "web-01", 0, &volume, &size), -EPROTO);
}

static void test_an_open_that_the_cache_refuses(void **state)
{
	struct race race = { 0 };
	struct host *h = new_racing_host(&race);
	struct error err = { 0 };
	uint64_t volume;
	int tries, r;

	wait_for_cache(h);
	open_for_nothing(&race, 0);
	volume = open_volume(h, "web-01", 0);
	write_some(h, volume, 1);
	check_content(h, volume);
	assert_int_equal(prepare(h, "web-01", false, false, &err), -EBUSY);
	assert_int_equal(cache_file_close(h->daemon->cache, volume), 0);
	if (detach(h, "web-01", &err))
		fail_msg("%s", err.text);
	open_for_nothing(&race, -ESTALE);
	/* The core hears of it a little later; well before it would give up to wait. */
	for (tries = 0, r = -EBUSY; r == -EBUSY && tries < 1000; tries++) {
		r = detach(h, "web-01", &err);
		if (r == -EBUSY)
			poll(NULL, 0, 10);
	}
	assert_int_equal(r, 0);
	volume = open_volume(h, "web-01", 0);
	check_content(h, volume);
	free_host(h);
}

static void *open_slowly(void *arg)
{
	static uint64_t volume;
	struct host *h = arg;
	uint64_t size;

	assert_int_equal(cache_file_open(h->daemon->cache, "web-01", 0, &volume, &size), 0);
	return &volume;
}

/* It has the lease, and the cache has no record of it yet. */
static void test_a_detach_during_an_open(void **state)
{
	struct race race = { .hold = true };
	struct host *h = new_racing_host(&race);
	struct error err = { 0 };
	pthread_t opener;
	void *volume;

	wait_for_cache(h);
	assert_int_equal(pthread_create(&opener, NULL, open_slowly, h), 0);
	pthread_mutex_lock(&race.lock);
	while (!race.is_held)
		pthread_cond_wait(&race.changed, &race.lock);
	pthread_mutex_unlock(&race.lock);
	assert_int_equal(detach(h, "web-01", &err), -EBUSY);
	assert_non_null(strstr(err.text, "is being opened"));
	pthread_mutex_lock(&race.lock);
	race.hold = false;
	pthread_cond_broadcast(&race.changed);
	pthread_mutex_unlock(&race.lock);
	pthread_join(opener, &volume);
	write_some(h, *(uint64_t *)volume, 1);
	if (push(h, "web-01", false, NULL, &err))
		fail_msg("%s", err.text);
	check_content(h, *(uint64_t *)volume);
	free_host(h);
}

/* An image is renamed, and another gets its name: a name alone says neither. */
static void test_two_volumes_of_one_name(void **state)
{
	struct dm_dedup_volume_info *infos = NULL;
	struct host *h = new_host();
	char first[UUID_TEXT_SIZE];
	struct error err = { 0 };
	uint64_t old, new;
	struct uuid image;
	size_t count;

	make_image(h);
	import(h, "web-01");
	old = open_volume(h, "web-01", 0);
	assert_int_equal(cache_volumes(h->daemon->cache, &infos, &count), 0);
	assert_int_equal(count, 1);
	memcpy(image.b, infos[0].image, sizeof(image.b));
	uuid_to_text(&image, first);
	free(infos);
	rename_image(h, "web-01", "web-old");
	import(h, "web-01");
	new = open_volume(h, "web-01", 0);
	assert_int_equal(push(h, "web-01", false, NULL, &err), -EEXIST);
	assert_non_null(strstr(err.text, "2 volumes of this host are called web-01"));
	if (push(h, first, false, NULL, &err))
		fail_msg("%s", err.text);
	assert_int_equal(cache_file_close(h->daemon->cache, old), 0);
	assert_int_equal(detach(h, "web-01", &err), -EEXIST);
	assert_int_equal(hand_over(h, "web-01", &err), -EEXIST);
	if (detach(h, first, &err))
		fail_msg("%s", err.text);
	assert_int_equal(detach(h, "web-01", &err), -EBUSY);
	assert_int_equal(cache_file_close(h->daemon->cache, new), 0);
	if (detach(h, "web-01", &err))
		fail_msg("%s", err.text);
	free_host(h);
}

static void test_what_cannot_be(void **state)
{
	uint64_t volume, other, size;
	struct host *h = new_host();
	struct error err = { 0 };

	make_image(h);
	import(h, "web-01");
	assert_int_equal(prepare(h, "nosuch", false, false, &err), -ENOENT);
	assert_int_equal(cache_file_open(h->daemon->cache, "nosuch", 0, &other, &size), -ENOENT);
	assert_int_equal(push(h, "web-01", false, NULL, &err), -ENOENT);
	assert_int_equal(detach(h, "web-01", &err), -ENOENT);
	assert_int_equal(prepare(h, "", false, false, &err), -EINVAL);
	volume = open_volume(h, "web-01", 0);
	assert_int_equal(prepare(h, "web-01", false, false, &err), -EBUSY);
	assert_non_null(strstr(err.text, "attached on this host already"));
	assert_int_equal(cache_file_open(h->daemon->cache, "web-01", 0, &other, &size), -EBUSY);
	check_content(h, volume);
	free_host(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_read_write_push_detach_open),
		cmocka_unit_test(test_a_new_agent_on_the_same_store),
		cmocka_unit_test(test_ephemeral_and_read_only),
		cmocka_unit_test(test_opened_written_and_closed_during_a_detach),
		cmocka_unit_test(test_an_open_that_the_cache_refuses),
		cmocka_unit_test(test_a_detach_during_an_open),
		cmocka_unit_test(test_two_volumes_of_one_name),
		cmocka_unit_test(test_what_cannot_be),
	};

	return cmocka_run_group_tests_name("agent_daemon", tests, NULL, NULL);
}
