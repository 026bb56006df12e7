// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * random_ops [--ops N] [--seed S]: N random operations on a fleet of real processes - import, clone,
 * attach, write, push, snapshot, rollback, rename, remove, collect, detach - between and during which
 * meta server, data servers, agents and commands are killed with SIGKILL, and now and then a host is
 * lost with its cache. Every image's head, versions and volume are modelled. Afterwards `cluster
 * check` must find no difference, every image and version must be the model's, byte for byte, and
 * after all images are removed no block and no recipe node may be left.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "random_model.h"
#include "world.h"

#define CACHE_BYTES (48ULL << 20)

/* Restarts a process after a while, from a thread that lives as long as this one. */
struct killer {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct process *victim; /* NULL: nothing to do */
	unsigned int delay_us;
};

struct test {
	struct world *w;
	struct model m;
	struct killer killer;
	unsigned int kills, lost_hosts, counts[32];
	uint8_t *buf, *seen;
	bool trace;
};

/* ---- the killer ---- */

static void *killer_thread(void *arg)
{
	struct killer *k = arg;

	pthread_mutex_lock(&k->lock);
	for (;;) {
		struct process *victim;

		while (!k->victim)
			pthread_cond_wait(&k->changed, &k->lock);
		victim = k->victim;
		pthread_mutex_unlock(&k->lock);
		usleep(k->delay_us);
		process_restart(victim);
		pthread_mutex_lock(&k->lock);
		k->victim = NULL;
		pthread_cond_broadcast(&k->changed);
	}
	return NULL;
}

static struct process *some_daemon(struct test *t)
{
	uint64_t n = rnd(&t->m, 1 + WORLD_DATA + WORLD_HOSTS);

	if (!n)
		return &t->w->meta;
	return n <= WORLD_DATA ? &t->w->data[n - 1] : &t->w->hosts[n - 1 - WORLD_DATA].agent;
}

/* A daemon dies during the next step. */
static void arm(struct test *t)
{
	struct killer *k = &t->killer;

	pthread_mutex_lock(&k->lock);
	k->delay_us = (unsigned int)rnd(&t->m, chance(&t->m, 50) ? 3000 : 30000);
	k->victim = some_daemon(t);
	pthread_cond_broadcast(&k->changed);
	pthread_mutex_unlock(&k->lock);
	t->kills++;
}

static void disarm(struct test *t)
{
	struct killer *k = &t->killer;

	pthread_mutex_lock(&k->lock);
	while (k->victim)
		pthread_cond_wait(&k->changed, &k->lock);
	pthread_mutex_unlock(&k->lock);
}

/* ---- the model ---- */

/* The meta server's versions above those known: a push that died may have made one more. All
 * have been made of the head as it is now. */
static void learn_versions(struct test *t, struct image *im)
{
	Vmdedup__VersionList body = VMDEDUP__VERSION_LIST__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;

	body.name = im->name;
	body.after = im->last_version;
	req.body_case = VMDEDUP__REQUEST__BODY_VERSION_LIST;
	req.version_list = &body;
	if (world_call(t->w, &req, &reply, &err))
		die("versions of %s: %s", im->name, err.text);
	for (size_t i = 0; i < reply.header->version_list->n_versions; i++) {
		if (im->nr_versions == MAX_VERSIONS)
			die("%s has more versions than expected", im->name);
		image_kept(im, reply.header->version_list->versions[i]->number);
	}
	net_reply_free(&reply);
}

/* ---- steps; each leaves model and fleet equal ---- */

static void write_file(struct test *t, const uint32_t *ids, uint64_t sectors, char path[200])
{
	int fd;

	snprintf(path, 200, "%s/content", t->w->dir);
	content_fill(t->buf, ids, 0, sectors);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, t->buf, sectors * 512) != (ssize_t)(sectors * 512) || close(fd))
		die("%s: %s", path, strerror(errno));
}

/* -ENOENT: there is none; only that. */
static int get_image(struct test *t, const char *name, struct net_reply *reply)
{
	Vmdedup__ImageGet body = VMDEDUP__IMAGE_GET__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct error err;
	int r;

	body.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	req.image_get = &body;
	r = world_call(t->w, &req, reply, &err);
	if (r && r != -ENOENT)
		die("image %s: %s", name, err.text);
	return r;
}

static bool image_exists(struct test *t, const char *name)
{
	struct net_reply reply;
	int r = get_image(t, name, &reply);

	net_reply_free(&reply);
	return !r;
}

static bool is_leased(struct test *t, const char *name)
{
	struct net_reply reply;
	bool leased;

	if (get_image(t, name, &reply))
		die("image %s has gone", name);
	leased = reply.header->image->leased_to.len;
	net_reply_free(&reply);
	return leased;
}

static void op_import(struct test *t)
{
	struct image *im = free_image(&t->m);
	char path[200];
	const char *argv[] = { "vmdedup", "image", "import", path, NULL, "--format", "raw", NULL };
	unsigned int us;
	int r;

	if (!im)
		return;
	image_init(&t->m, im, chance(&t->m, 30) ? 1 + rnd(&t->m, 64) : 1 + rnd(&t->m, MAX_SECTORS));
	im->head = calloc(im->sectors, sizeof(*im->head));
	ids_random(&t->m, im->head, 0, im->sectors);
	write_file(t, im->head, im->sectors, path);
	argv[4] = im->name;
	us = chance(&t->m, 15) ? 1 + (unsigned int)rnd(&t->m, 60000) : 0;
	t->kills += us != 0;
	r = vmdedup_killed(t->w, us, argv);
	if (!us && r)
		die("import of %s: exit status %d", im->name, r);
	if (us && !image_exists(t, im->name))
		image_drop(im);
}

static int make_clone(struct test *t, const char *source, uint64_t version, const char *name)
{
	Vmdedup__ImageClone body = VMDEDUP__IMAGE_CLONE__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;
	int r;

	body.source = (char *)source;
	body.source_version = version;
	body.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_CLONE;
	req.image_clone = &body;
	r = world_mutate(t->w, &req, &reply, &err);
	if (r && r != -EEXIST)
		die("clone of %s: %s", source, err.text);
	net_reply_free(&reply);
	return r;
}

static void op_clone(struct test *t)
{
	struct image *source = some_image(&t->m, NULL), *im = free_image(&t->m);
	struct version *v = NULL;

	if (!source || !im)
		return;
	if (source->nr_versions && chance(&t->m, 40))
		v = &source->versions[rnd(&t->m, source->nr_versions)];
	image_init(&t->m, im, source->sectors);
	if (make_clone(t, source->name, v ? v->number : 0, im->name))
		die("%s exists already", im->name);
	im->head = ids_copy(v ? v->ids : source->head, im->sectors);
	if (make_clone(t, source->name, 0, im->name) != -EEXIST)
		die("%s was made a second time", im->name);
}

static void op_attach(struct test *t)
{
	struct image *im = some_image(&t->m, is_detached);
	struct error err;

	if (!im)
		return;
	im->host = (int)rnd(&t->m, WORLD_HOSTS);
	if (host_attach(&t->w->hosts[im->host], im->name, 0, &im->volume, &err))
		die("attach of %s: %s", im->name, err.text);
	im->live = ids_copy(im->head, im->sectors);
}

static void push_image(struct test *t, struct image *im, bool version)
{
	uint64_t number = 0, before = im->last_version;
	struct error err;

	if (host_push(&t->w->hosts[im->host], im->name, version ? &number : NULL, &err))
		die("push of %s: %s", im->name, err.text);
	image_pushed(im);
	if (!version)
		return;
	learn_versions(t, im);
	/* One whose answer was lost with the connection is made again. */
	if (number <= before || number > im->last_version)
		die("push of %s says version %llu, there were %llu and are %llu", im->name,
		    (unsigned long long)number, (unsigned long long)before,
		    (unsigned long long)im->last_version);
}

static void op_push(struct test *t)
{
	struct image *im = some_image(&t->m, is_attached);

	/* A push that dies late may make a version twice. */
	if (im)
		push_image(t, im, chance(&t->m, 30) && im->nr_versions < MAX_VERSIONS - 1);
}

static void write_sectors(struct test *t, struct image *im, uint64_t first, uint64_t count)
{
	struct host *h = &t->w->hosts[im->host];
	int r;

	ids_random(&t->m, im->live, first, count);
	content_fill(t->buf, im->live, first, count);
	r = cache_file_write(h->cache, im->volume, first * 512, t->buf, count * 512);
	if (r == -ENOSPC) { /* where a kernel would have the writer wait, and ask for a push */
		for (size_t i = 0; i < MAX_IMAGES; i++)
			if (t->m.images[i].used && t->m.images[i].host == im->host &&
			    &t->m.images[i] != im)
				push_image(t, &t->m.images[i], false);
		r = cache_file_write(h->cache, im->volume, first * 512, t->buf, count * 512);
	}
	if (r)
		die("write to %s: %s", im->name, strerror(-r));
}

static void op_write(struct test *t)
{
	struct image *im = some_image(&t->m, is_attached);
	uint64_t n, first, count;

	if (!im)
		return;
	for (n = 1 + rnd(&t->m, 8); n; n--) {
		first = rnd(&t->m, im->sectors);
		count = chance(&t->m, 50) ? 1 + rnd(&t->m, 16) : 8 * (1 + rnd(&t->m, 20));
		if (chance(&t->m, 50))
			first &= ~7ULL;
		if (count > im->sectors - first)
			count = im->sectors - first;
		write_sectors(t, im, first, count);
	}
}

static void op_read(struct test *t)
{
	struct image *im = some_image(&t->m, is_attached);
	uint64_t first, count;
	int r;

	if (!im)
		return;
	first = rnd(&t->m, im->sectors);
	count = 1 + rnd(&t->m, im->sectors - first);
	r = cache_file_read(t->w->hosts[im->host].cache, im->volume, first * 512, t->seen,
			    count * 512);
	if (r)
		die("read of %s: %s", im->name, strerror(-r));
	content_fill(t->buf, im->live, first, count);
	for (uint64_t s = 0; s < count; s++)
		if (memcmp(t->buf + s * 512, t->seen + s * 512, 512))
			die("%s on host%d: sector %llu is not what was written", im->name, im->host,
			    (unsigned long long)(first + s));
}

static void op_evict(struct test *t)
{
	cache_file_evict_all(t->w->hosts[rnd(&t->m, WORLD_HOSTS)].cache);
}

static void detach_image(struct test *t, struct image *im)
{
	struct host *h = &t->w->hosts[im->host];
	struct error err;
	int r;

	if (cache_file_close(h->cache, im->volume))
		die("close of %s failed", im->name);
	/* -ENOENT: done, by an agent that died before it could say so. */
	r = host_detach(h, im->name, &err);
	if ((r && r != -ENOENT) || is_leased(t, im->name))
		die("detach of %s: %s", im->name, r ? err.text : "still leased");
	image_pushed(im);
	image_detached(im);
}

static void op_detach(struct test *t)
{
	struct image *im = some_image(&t->m, is_attached);

	if (im)
		detach_image(t, im);
}

static void op_snapshot(struct test *t)
{
	struct image *im = some_image(&t->m, NULL);
	Vmdedup__Snapshot body = VMDEDUP__SNAPSHOT__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;

	if (!im || im->nr_versions == MAX_VERSIONS)
		return;
	body.name = im->name;
	body.label = (char *)"kept";
	req.body_case = VMDEDUP__REQUEST__BODY_SNAPSHOT;
	req.snapshot = &body;
	if (world_mutate(t->w, &req, &reply, &err))
		die("snapshot of %s: %s", im->name, err.text);
	net_reply_free(&reply);
	learn_versions(t, im);
}

static void op_rollback(struct test *t)
{
	struct image *im = some_image(&t->m, NULL);
	Vmdedup__Rollback body = VMDEDUP__ROLLBACK__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct version *v;
	struct error err;
	int r;

	/* It may make one more, of the head that goes. */
	if (!im || !im->nr_versions || im->nr_versions == MAX_VERSIONS)
		return;
	v = &im->versions[rnd(&t->m, im->nr_versions)];
	body.name = im->name;
	body.version = v->number;
	req.body_case = VMDEDUP__REQUEST__BODY_ROLLBACK;
	req.rollback = &body;
	r = world_mutate(t->w, &req, &reply, &err);
	net_reply_free(&reply);
	if (r != (is_attached(im) ? -EBUSY : 0))
		die("rollback of %s: %d %s", im->name, r, err.text);
	if (r)
		return;
	learn_versions(t, im);
	memcpy(im->head, v->ids, im->sectors * sizeof(*im->head));
}

static void op_rename(struct test *t)
{
	struct image *im = some_image(&t->m, is_detached), *other = some_image(&t->m, NULL);
	Vmdedup__ImageRename body = VMDEDUP__IMAGE_RENAME__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	bool taken = chance(&t->m, 25);
	struct error err;
	char name[32];
	int r;

	if (!im || im == other)
		return;
	snprintf(name, sizeof(name), "image-%u", t->m.names++);
	body.name = im->name;
	body.new_name = taken ? other->name : name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_RENAME;
	req.image_rename = &body;
	r = world_mutate(t->w, &req, &reply, &err);
	net_reply_free(&reply);
	if (r != (taken ? -EEXIST : 0))
		die("rename of %s: %d %s", im->name, r, err.text);
	if (!r)
		strcpy(im->name, name);
}

static int remove_image(struct test *t, const char *name, uint64_t version, struct error *err)
{
	Vmdedup__ImageRemove body = VMDEDUP__IMAGE_REMOVE__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	int r;

	body.name = (char *)name;
	body.version = version;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &body;
	r = world_mutate(t->w, &req, &reply, err);
	net_reply_free(&reply);
	return r;
}

static void op_remove(struct test *t)
{
	struct image *im = some_image(&t->m, NULL);
	struct error err;
	int r;

	if (!im)
		return;
	r = remove_image(t, im->name, 0, &err);
	if (r != (is_attached(im) ? -EBUSY : 0))
		die("removal of %s: %d %s", im->name, r, err.text);
	if (!r)
		image_drop(im);
}

static void op_remove_version(struct test *t)
{
	struct image *im = some_image(&t->m, NULL);
	struct error err;
	size_t n;

	if (!im || !im->nr_versions)
		return;
	n = rnd(&t->m, im->nr_versions);
	if (remove_image(t, im->name, im->versions[n].number, &err))
		die("removal of a version of %s: %s", im->name, err.text);
	free(im->versions[n].ids);
	im->versions[n] = im->versions[--im->nr_versions];
}

static void op_collect(struct test *t)
{
	bool full = chance(&t->m, 20);
	int r = vmdedup(t->w, "cluster", "gc", full ? "--full" : NULL, NULL);

	if (!r)
		return;
	/* A server died under it; it says so, and once more is enough. */
	disarm(t);
	if (vmdedup(t->w, "cluster", "gc", full ? "--full" : NULL, NULL))
		die("cluster gc fails: see %s/commands.log", t->w->dir);
}

static void op_kill(struct test *t)
{
	process_restart(some_daemon(t));
	t->kills++;
}

static void verify(struct test *t, const struct image *im, const struct version *v)
{
	char path[200], number[24];
	int r;

	write_file(t, v ? v->ids : im->head, im->sectors, path);
	snprintf(number, sizeof(number), "%llu", v ? (unsigned long long)v->number : 0);
	r = vmdedup(t->w, "image", "verify", im->name, "--format", "raw", "--against", path,
		    v ? "--version" : NULL, number, NULL);
	if (r)
		die("%s%s%s is not the model's: exit status %d, see %s/commands.log", im->name,
		    v ? " version " : "", v ? number : "", r, t->w->dir);
}

static void op_verify(struct test *t)
{
	struct image *im = some_image(&t->m, NULL);

	if (im)
		verify(t, im, im->nr_versions && chance(&t->m, 50) ?
			      &im->versions[rnd(&t->m, im->nr_versions)] : NULL);
}

static void op_check(struct test *t)
{
	int r = vmdedup(t->w, "cluster", "check", NULL);

	if (r)
		die("cluster check: exit status %d, see %s/commands.log", r, t->w->dir);
}

/* A person breaks the leases of a host that never comes back: twice, to give up also what it
 * might have recovered. */
static void break_lease(struct test *t, const struct image *im)
{
	Vmdedup__LeaseBreak body = VMDEDUP__LEASE_BREAK__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply, done;
	struct error err;

	if (get_image(t, im->name, &reply))
		die("image %s has gone", im->name);
	if (!reply.header->image->leased_to.len)
		die("%s is attached and has no lease", im->name);
	body.image = reply.header->image->uuid;
	body.epoch = reply.header->image->lease_epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_BREAK;
	req.lease_break = &body;
	for (int i = 0; i < 2; i++) {
		if (world_mutate(t->w, &req, &done, &err))
			die("break of the lease on %s: %s", im->name, err.text);
		net_reply_free(&done);
	}
	net_reply_free(&reply);
}

static void op_lose_host(struct test *t)
{
	int n = (int)rnd(&t->m, WORLD_HOSTS);

	if (!chance(&t->m, 20))
		return;
	disarm(t);
	host_lose(t->w, &t->w->hosts[n]);
	for (size_t i = 0; i < MAX_IMAGES; i++) {
		struct image *im = &t->m.images[i];

		if (!im->used || im->host != n)
			continue;
		break_lease(t, im);
		image_detached(im);
	}
	t->lost_hosts++;
}

static const struct {
	const char *name;
	void (*run)(struct test *t);
	unsigned int weight;
} ops[] = {
	{ "import", op_import, 50 },   { "clone", op_clone, 60 },
	{ "attach", op_attach, 60 },   { "write", op_write, 300 },
	{ "read", op_read, 60 },       { "evict", op_evict, 20 },
	{ "push", op_push, 160 },      { "detach", op_detach, 40 },
	{ "snapshot", op_snapshot, 40 }, { "rollback", op_rollback, 30 },
	{ "rename", op_rename, 20 },   { "remove", op_remove, 70 },
	{ "remove version", op_remove_version, 40 },
	{ "collect", op_collect, 12 }, { "kill", op_kill, 40 },
	{ "verify", op_verify, 10 },   { "check", op_check, 4 },
	{ "lose host", op_lose_host, 4 },
};

static void one_op(struct test *t, unsigned int number)
{
	uint64_t n = 0, start = clock_mono_ns();
	bool armed = chance(&t->m, 10);
	size_t i;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		n += ops[i].weight;
	n = rnd(&t->m, n);
	for (i = 0; n >= ops[i].weight; i++)
		n -= ops[i].weight;
	if (t->trace)
		printf("# %u: %s%s\n", number, ops[i].name, armed ? ", and a kill" : "");
	if (armed)
		arm(t);
	ops[i].run(t);
	if (armed)
		disarm(t);
	t->counts[i]++;
	if (t->trace)
		printf("#   %llu ms\n", (unsigned long long)(clock_mono_ns() - start) / 1000000);
}

/* ---- the end ---- */

static void finish(struct test *t)
{
	unsigned int images = 0, versions = 0;
	struct error err;

	for (size_t i = 0; i < MAX_IMAGES; i++)
		if (t->m.images[i].used && is_attached(&t->m.images[i]))
			detach_image(t, &t->m.images[i]);
	op_check(t);
	for (size_t i = 0; i < MAX_IMAGES; i++) {
		struct image *im = &t->m.images[i];

		if (!im->used)
			continue;
		images++;
		verify(t, im, NULL);
		for (size_t v = 0; v < im->nr_versions; v++, versions++)
			verify(t, im, &im->versions[v]);
	}
	printf("# %u images and %u versions are the model's\n", images, versions);
	for (size_t i = 0; i < MAX_IMAGES; i++)
		if (t->m.images[i].used && remove_image(t, t->m.images[i].name, 0, &err))
			die("removal of %s: %s", t->m.images[i].name, err.text);
	world_empty(t->w);
	op_check(t);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "ops", required_argument, NULL, 'o' },
		{ "seed", required_argument, NULL, 's' },
		{ "seconds", required_argument, NULL, 't' },
		{ "trace", no_argument, NULL, 'v' },
		{ 0 },
	};
	uint64_t n = 1000, seed = (uint64_t)time(NULL), i, start, seconds = 0;
	struct test *t = calloc(1, sizeof(*t));
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'o': n = strtoull(optarg, NULL, 0); break;
		case 's': seed = strtoull(optarg, NULL, 0); break;
		case 't': seconds = strtoull(optarg, NULL, 0); break;
		case 'v': t->trace = true; break;
		default: return 2;
		}
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("# random_ops --ops %llu --seed %llu\n", (unsigned long long)n,
	       (unsigned long long)seed);
	t->m.rng = seed * 2 + 1;
	t->buf = malloc(MAX_SECTORS * 512);
	t->seen = malloc(MAX_SECTORS * 512);
	t->w = world_new(CACHE_BYTES, "push_age = 0\n", NULL, NULL);
	pthread_mutex_init(&t->killer.lock, NULL);
	pthread_cond_init(&t->killer.changed, NULL);
	if (pthread_create(&t->killer.thread, NULL, killer_thread, &t->killer))
		die("no thread");
	start = clock_mono_ns();
	for (i = 0; i < n && (!seconds || clock_mono_ns() - start < seconds * 1000000000ULL); i++)
		one_op(t, (unsigned int)i);
	printf("# %llu operations in %llu s, %u processes killed, %u hosts lost:",
	       (unsigned long long)i, (unsigned long long)(clock_mono_ns() - start) / 1000000000,
	       t->kills, t->lost_hosts);
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		printf(" %s %u%s", ops[i].name, t->counts[i], i + 1 < ARRAY_SIZE(ops) ? "," : "\n");
	finish(t);
	world_free(t->w);
	return 0;
}
