// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many hosts on one machine: each is a process of its own with a whole agent, a plain-file cache,
 * and a guest that reads an image and compares what it reads.
 *
 *   swarm FOLDER HOSTS IMAGE SOURCE    FOLDER/hostN.conf: the hosts' configurations, N from 1
 *
 * Commands come by standard input, WHO VERB [ARGUMENT...], WHO being all, N or N-M; each is answered
 * by one line of JSON, the sum of the hosts' answers:
 *
 *   start             the agent, and the image opened read-only (hosts do not start by themselves)
 *   read FROM TO      blocks of the image, in order
 *   fetch FROM TO     the same, but what is read is compared with nothing
 *   boot SEED [N]     all (or N) blocks, in an order that the seed makes, four at a time
 *   evict             forget the cache's clean blocks
 *   reopen            close the volume and open it again
 *   stats             where blocks came from, since the start
 *   kill              the process, at once
 *   pause, resume     the process stands still, and goes on
 *   stop              the agent ends as it does by SIGTERM, and the host with it
 *   restart           the agent ends so, and another one begins; the cache and its records stay
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "agent/cache_file.h"
#include "agent/daemon.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/memory.h"

#define MAX_HOSTS 256
#define GUEST_THREADS 4

struct source {
	const uint8_t *data;
	uint64_t size;
};

/* What a host answers. */
struct answer {
	int64_t ms, bad, error;
	uint64_t from[NR_ORIGINS], prefetched, bytes, uploads, upload_bytes, hedges, redirects, on_way;
	uint64_t peers, liars, lies, filter_bytes_in, filter_bytes_out, filter_yes, filter_false;
	uint64_t filters, filter_blocks;
};

/* ---- a host, in a process of its own ---- */

struct host {
	struct config config;
	struct daemon *daemon;
	pthread_t thread;
	const char *image;
	struct source source;
	uint64_t volume, size;
	size_t block_size, nr_blocks;
};

static void *run_daemon(void *arg)
{
	struct host *h = arg;
	struct error err = { 0 };

	if (daemon_run(h->daemon, &err))
		fprintf(stderr, "the agent ended: %s\n", err.text);
	return NULL;
}

static void ask_connected(void *arg)
{
	struct host *h = arg;

	h->block_size = agent_block_size(h->daemon->agent);
}

static int open_volume(struct host *h)
{
	int r = cache_file_open(h->daemon->cache, h->image, DM_DEDUP_VOL_READONLY, &h->volume,
				&h->size);

	if (!r && h->size < h->source.size)
		r = -EINVAL;
	h->nr_blocks = (h->size + h->block_size - 1) / h->block_size;
	return r;
}

/* @cache: NULL: the one that the configuration names. */
static int start_agent(struct host *h, struct cache *cache)
{
	struct error err = { 0 };
	int i;

	h->daemon = daemon_new(&h->config, cache, &err);
	if (!h->daemon)
		goto fail;
	if (pthread_create(&h->thread, NULL, run_daemon, h))
		return -EAGAIN;
	for (i = 0; i < 3000 && !h->block_size; i++) {
		loop_call(h->daemon->loop, ask_connected, h);
		if (!h->block_size)
			poll(NULL, 0, 10);
	}
	return h->block_size ? 0 : -ETIMEDOUT;

fail:
	fprintf(stderr, "%s\n", err.text);
	return err.code ? err.code : -EIO;
}

static int start(struct host *h, const char *conf)
{
	struct error err = { 0 };

	if (!config_load(&h->config, conf, &err))
		return start_agent(h, NULL) ?: open_volume(h);
	fprintf(stderr, "%s\n", err.text);
	return err.code;
}

static void keep_cache(struct cache *c)
{
}

static int restart(struct host *h)
{
	struct cache *cache = h->daemon->cache;
	static struct cache_ops keep;

	/* The cache outlives the agent, as the kernel's does. */
	keep = *cache->ops;
	keep.free = keep_cache;
	cache->ops = &keep;
	daemon_stop(h->daemon);
	pthread_join(h->thread, NULL);
	if (!daemon_free(h->daemon))
		return -EBUSY;
	free(h->config.cache_file);
	h->config.cache_file = NULL;
	h->block_size = 0;
	return start_agent(h, cache);
}

struct guest {
	struct host *host;
	const uint32_t *order;
	size_t nr;
	bool blind; /* it does not compare */
	pthread_mutex_t lock; /* guards the rest */
	size_t next;
	int64_t bad, error;
};

static void *guest_thread(void *arg)
{
	struct guest *g = arg;
	struct host *h = g->host;
	uint8_t *buf = malloc(h->block_size);
	size_t i;

	for (;;) {
		uint64_t at, len;
		int r;

		pthread_mutex_lock(&g->lock);
		i = g->next++;
		pthread_mutex_unlock(&g->lock);
		if (i >= g->nr || !buf)
			break;
		at = (uint64_t)g->order[i] * h->block_size;
		len = MIN(h->block_size, h->source.size - at);
		r = cache_file_read(h->daemon->cache, h->volume, at, buf, len);
		pthread_mutex_lock(&g->lock);
		if (r)
			g->error = -r;
		else if (!g->blind && memcmp(buf, h->source.data + at, len))
			g->bad++;
		pthread_mutex_unlock(&g->lock);
	}
	free(buf);
	return NULL;
}

static void read_blocks(struct host *h, const uint32_t *order, size_t nr, int threads, bool blind,
			struct answer *a)
{
	struct guest g = { .host = h, .order = order, .nr = nr, .blind = blind };
	uint64_t began = clock_mono_ns();
	pthread_t guests[GUEST_THREADS];
	int i;

	pthread_mutex_init(&g.lock, NULL);
	for (i = 0; i < threads; i++)
		if (pthread_create(&guests[i], NULL, guest_thread, &g))
			abort();
	for (i = 0; i < threads; i++)
		pthread_join(guests[i], NULL);
	a->ms = (int64_t)((clock_mono_ns() - began) / 1000000);
	a->bad = g.bad;
	a->error = g.error;
}

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* Runs of eight blocks, as of files, in an order of their own. */
static void boot(struct host *h, uint64_t seed, size_t nr, struct answer *a)
{
	size_t runs = (h->nr_blocks + 7) / 8, i, k, n = 0;
	uint32_t *run = calloc(runs, sizeof(*run)), *order = calloc(h->nr_blocks, sizeof(*order));
	uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;

	if (!run || !order)
		abort();
	for (i = 0; i < runs; i++)
		run[i] = (uint32_t)i;
	for (i = runs; i > 1; i--) {
		uint32_t t = run[i - 1];

		k = next_random(&x) % i;
		run[i - 1] = run[k];
		run[k] = t;
	}
	for (i = 0; i < runs; i++)
		for (k = 0; k < 8 && run[i] * 8 + k < h->nr_blocks; k++)
			order[n++] = (uint32_t)(run[i] * 8 + k);
	read_blocks(h, order, nr ? MIN(nr, n) : n, GUEST_THREADS, false, a);
	free(run);
	free(order);
}

static void read_range(struct host *h, size_t from, size_t to, bool blind, struct answer *a)
{
	uint32_t *order;
	size_t i, n;

	to = MIN(to, h->nr_blocks);
	n = to > from ? to - from : 0;
	order = calloc(n + 1, sizeof(*order));
	if (!order)
		abort();
	for (i = 0; i < n; i++)
		order[i] = (uint32_t)(from + i);
	read_blocks(h, order, n, 1, blind, a);
	free(order);
}

struct stats_call {
	struct host *host;
	struct agent_stats stats;
};

static void ask_stats(void *arg)
{
	struct stats_call *c = arg;

	agent_stats(c->host->daemon->agent, &c->stats);
}

struct list_call {
	struct getter_list list;
	int fd[2];
};

static void list_done(struct getter_list *list)
{
	struct list_call *c = (struct list_call *)list;

	if (write(c->fd[1], "x", 1) != 1)
		abort();
}

static void take_stats(struct host *h, struct answer *a)
{
	struct stats_call c = { .host = h };
	struct peer_server_stats up = { 0 };
	struct list_call *l = calloc(1, sizeof(*l));
	char x;
	size_t i;

	if (!l || pipe(l->fd))
		abort();
	loop_call(h->daemon->loop, ask_stats, &c);
	memcpy(a->from, c.stats.reads.count, sizeof(a->from));
	a->prefetched = c.stats.prefetched;
	a->bytes = c.stats.got_bytes;
	if (h->daemon->peer_server)
		peer_server_stats(h->daemon->peer_server, &up);
	a->uploads = up.blocks;
	a->upload_bytes = up.bytes;
	a->filter_bytes_out = up.filter_bytes;
	l->list.done = list_done;
	getter_list(network_getter(h->daemon->network), &l->list);
	if (read(l->fd[0], &x, 1) != 1)
		abort();
	a->hedges = l->list.totals.sources.hedges;
	a->redirects = l->list.totals.sources.redirects;
	a->on_way = l->list.totals.sources.on_way;
	a->filter_bytes_in = l->list.totals.filter_bytes_in;
	for (i = 0; i < l->list.nr; i++) {
		const struct peers_info *p = &l->list.peers[i];

		a->peers += p->peer.suggested;
		a->liars += p->peer.state == PEER_LIAR;
		a->lies += p->peer.lies;
		a->filter_yes += p->peer.filter_yes;
		a->filter_false += p->peer.filter_false;
		a->filters += p->filter_age_ms != UINT64_MAX;
		a->filter_blocks += p->filter_age_ms != UINT64_MAX ? p->filter_blocks : 0;
	}
	close(l->fd[0]);
	close(l->fd[1]);
	free(l);
}

static void reopen(struct host *h, struct answer *a)
{
	a->error = -cache_file_close(h->daemon->cache, h->volume);
	if (!a->error)
		a->error = -open_volume(h);
}

static void host_command(struct host *h, const char *conf, const char *line, struct answer *a)
{
	unsigned long long x = 0, y = 0;

	if (!strncmp(line, "start", 5))
		a->error = -start(h, conf);
	else if (!h->daemon)
		a->error = ESRCH;
	else if (sscanf(line, "read %llu %llu", &x, &y) == 2)
		read_range(h, x, y, false, a);
	else if (sscanf(line, "fetch %llu %llu", &x, &y) == 2)
		read_range(h, x, y, true, a);
	else if (sscanf(line, "boot %llu %llu", &x, &y) >= 1)
		boot(h, x, y, a);
	else if (!strncmp(line, "evict", 5))
		cache_file_evict_all(h->daemon->cache);
	else if (!strncmp(line, "reopen", 6))
		reopen(h, a);
	else if (!strncmp(line, "restart", 7))
		a->error = -restart(h);
	else if (!strncmp(line, "stats", 5))
		take_stats(h, a);
	else
		a->error = EINVAL;
}

static void host_main(struct host *h, const char *conf, int in, int out)
{
	char line[256];
	FILE *f = fdopen(in, "r");

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (f && fgets(line, sizeof(line), f)) {
		struct answer a = { 0 };

		if (!strncmp(line, "stop", 4))
			break;
		host_command(h, conf, line, &a);
		if (write(out, &a, sizeof(a)) != sizeof(a))
			break;
	}
	if (h->daemon) {
		daemon_stop(h->daemon);
		pthread_join(h->thread, NULL);
		if (!daemon_free(h->daemon))
			_exit(1);
	}
	_exit(0);
}

/* ---- the one that commands ---- */

struct child {
	pid_t pid; /* 0: none */
	int in, out;
};

static struct child children[MAX_HOSTS + 1];

static void spawn(int n, const char *folder, const char *image, struct source source)
{
	struct child *c = &children[n];
	int in[2], out[2], i;
	char conf[512];

	snprintf(conf, sizeof(conf), "%s/host%d.conf", folder, n);
	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		abort();
	fflush(stdout);
	c->pid = fork();
	if (c->pid < 0)
		abort();
	if (!c->pid) {
		struct host h = { .image = image, .source = source };

		for (i = 1; i <= MAX_HOSTS; i++)
			if (i != n && children[i].pid) {
				close(children[i].in);
				close(children[i].out);
			}
		close(in[1]);
		close(out[0]);
		host_main(&h, conf, in[0], out[1]);
	}
	close(in[0]);
	close(out[1]);
	c->in = in[1];
	c->out = out[0];
}

static void reap(struct child *c)
{
	close(c->in);
	close(c->out);
	waitpid(c->pid, NULL, 0);
	c->pid = 0;
}

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return x < y ? -1 : x > y;
}

static void print_sum(const struct answer *answers, int n)
{
	int64_t ms[MAX_HOSTS] = { 0 }, error = 0, bad = 0;
	uint64_t sum[sizeof(struct answer) / sizeof(uint64_t)] = { 0 };
	const struct answer *s = (const struct answer *)sum;
	size_t k;
	int i;

	for (i = 0; i < n; i++) {
		const uint64_t *one = (const uint64_t *)&answers[i];

		ms[i] = answers[i].ms;
		bad += answers[i].bad;
		error = answers[i].error ? answers[i].error : error;
		for (k = 0; k < ARRAY_SIZE(sum); k++)
			sum[k] += one[k];
	}
	qsort(ms, (size_t)n, sizeof(ms[0]), by_size);
#define F(name) ", \"" #name "\": %llu"
#define V(name) (unsigned long long)s->name
	printf("{\"hosts\": %d, \"error\": %lld, \"bad\": %lld, \"ms_median\": %lld, \"ms_worst\": %lld, "
	       "\"from_cache\": %llu, \"from_zero\": %llu, \"from_data\": %llu, \"from_peer\": %llu"
	       F(prefetched) F(bytes) F(uploads) F(upload_bytes) F(hedges) F(redirects) F(on_way)
	       F(peers) F(liars) F(lies) F(filter_bytes_in) F(filter_bytes_out) F(filter_yes)
	       F(filter_false) F(filters) F(filter_blocks) "}\n", n, (long long)error, (long long)bad,
	       (long long)(n ? ms[n / 2] : 0), (long long)(n ? ms[n - 1] : 0), V(from[FROM_CACHE]),
	       V(from[FROM_ZERO]), V(from[FROM_DATA]), V(from[FROM_PEER]), V(prefetched), V(bytes),
	       V(uploads), V(upload_bytes), V(hedges), V(redirects), V(on_way), V(peers), V(liars),
	       V(lies), V(filter_bytes_in), V(filter_bytes_out), V(filter_yes), V(filter_false),
	       V(filters), V(filter_blocks));
	fflush(stdout);
}

static void command(const char *line, int hosts, const char *folder, const char *image,
		    struct source source)
{
	static struct answer answers[MAX_HOSTS];
	int from = 1, to = hosts, i, n = 0, used = 0;
	char who[32];

	if (sscanf(line, "%31s %n", who, &used) != 1 || !line[used])
		return;
	if (strcmp(who, "all") && sscanf(who, "%d-%d", &from, &to) == 1)
		to = from;
	line += used;
	for (i = from; i <= to && i <= hosts; i++) {
		if (!children[i].pid && !strncmp(line, "start", 5))
			spawn(i, folder, image, source);
		if (!children[i].pid)
			continue;
		if (!strncmp(line, "pause", 5) || !strncmp(line, "resume", 6)) {
			kill(children[i].pid, *line == 'p' ? SIGSTOP : SIGCONT);
			continue;
		}
		if (!strncmp(line, "kill", 4))
			kill(children[i].pid, SIGKILL);
		else if (write(children[i].in, line, strlen(line)) < 0)
			fprintf(stderr, "host %d is gone\n", i);
	}
	for (i = from; i <= to && i <= hosts; i++) {
		if (!children[i].pid || !strncmp(line, "pause", 5) || !strncmp(line, "resume", 6))
			continue;
		memset(&answers[n], 0, sizeof(answers[n]));
		if (read(children[i].out, &answers[n], sizeof(answers[n])) != sizeof(answers[n])) {
			if (strncmp(line, "kill", 4) && strncmp(line, "stop", 4))
				answers[n].error = ECHILD;
			reap(&children[i]);
		}
		n++;
	}
	print_sum(answers, n);
}

int main(int argc, char **argv)
{
	struct source source = { 0 };
	struct stat st;
	char line[256];
	sigset_t set;
	int fd, i, hosts;

	if (argc != 5 || (hosts = atoi(argv[2])) < 1 || hosts > MAX_HOSTS) {
		fprintf(stderr, "usage: swarm FOLDER HOSTS IMAGE SOURCE\n");
		return 2;
	}
	memory_keep(MEMORY_KEEP); /* as the agent does */
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	fd = open(argv[4], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		perror(argv[4]);
		return 1;
	}
	source.size = (uint64_t)st.st_size;
	source.data = mmap(NULL, source.size, PROT_READ, MAP_SHARED, fd, 0);
	if (source.data == MAP_FAILED)
		return 1;
	while (fgets(line, sizeof(line), stdin))
		command(line, hosts, argv[1], argv[3], source);
	for (i = 1; i <= hosts; i++)
		if (children[i].pid) {
			kill(children[i].pid, SIGKILL);
			reap(&children[i]);
		}
	return 0;
}
