// SPDX-License-Identifier: GPL-2.0-or-later
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "world.h"

#define ANSWER_MS 60000
#define START_MS  120000

void die(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("# ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs("\n", stderr);
	exit(1);
}

/* ---- processes ---- */

static pid_t spawn(const char *const *argv, const char *log, const char *conf)
{
	pid_t parent = getpid(), pid = fork();

	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid) {
		int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
		int null = open("/dev/null", O_RDONLY);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		dup2(null, 0);
		dup2(fd, 1);
		dup2(fd, 2);
		setenv("VMDEDUP_CONF", conf, 1);
		execvp(argv[0], (char *const *)argv);
		_exit(127);
	}
	return pid;
}

static void *spawner_thread(void *arg)
{
	struct spawner *s = arg;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		while (!s->wanted)
			pthread_cond_wait(&s->changed, &s->lock);
		s->wanted->pid = spawn(s->wanted->argv, s->wanted->log, s->wanted->conf);
		s->wanted = NULL;
		pthread_cond_broadcast(&s->changed);
	}
	return NULL;
}

static void start_locked(struct process *p)
{
	struct spawner *s = p->spawner;

	pthread_mutex_lock(&s->lock);
	while (s->wanted)
		pthread_cond_wait(&s->changed, &s->lock);
	s->wanted = p;
	pthread_cond_broadcast(&s->changed);
	while (s->wanted == p)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

static void kill_locked(struct process *p)
{
	int status;

	if (!p->pid)
		return;
	kill(p->pid, SIGKILL);
	while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
		;
	/* It may have been dead already, but only by a kill of ours. */
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("%s ended by itself, status 0x%x: see %s", p->name, status, p->log);
	p->pid = 0;
}

void process_start(struct process *p)
{
	pthread_mutex_lock(&p->lock);
	start_locked(p);
	pthread_mutex_unlock(&p->lock);
}

void process_kill(struct process *p)
{
	pthread_mutex_lock(&p->lock);
	kill_locked(p);
	pthread_mutex_unlock(&p->lock);
}

void process_restart(struct process *p)
{
	pthread_mutex_lock(&p->lock);
	kill_locked(p);
	start_locked(p);
	pthread_mutex_unlock(&p->lock);
}

static void process_end(struct process *p)
{
	int status = 0;

	kill(p->pid, SIGTERM);
	while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
		;
	if (status)
		die("%s ended with status 0x%x: see %s", p->name, status, p->log);
	p->pid = 0;
}

static void process_init(struct world *w, struct process *p, const char *name, const char *text,
			 const char *a0, const char *a3)
{
	FILE *f;

	pthread_mutex_init(&p->lock, NULL);
	p->spawner = &w->spawner;
	snprintf(p->name, sizeof(p->name), "%s", name);
	snprintf(p->conf, sizeof(p->conf), "%s/%s.conf", w->dir, name);
	snprintf(p->log, sizeof(p->log), "%s/%s.log", w->dir, name);
	f = fopen(p->conf, "w");
	if (!f || fputs(text, f) < 0 || fclose(f))
		die("%s: %s", p->conf, strerror(errno));
	p->argv[0] = a0;
	p->argv[1] = a3 ? p->conf : "--conf";
	p->argv[2] = a3 ? a3 : p->conf;
}

pid_t command_start(struct world *w, const char *const *argv)
{
	char log[200];

	snprintf(log, sizeof(log), "%s/commands.log", w->dir);
	return spawn(argv, log, w->conf);
}

int vmdedup_killed(struct world *w, unsigned int us, const char *const *argv)
{
	pid_t pid = command_start(w, argv);

	if (us) {
		usleep(us);
		kill(pid, SIGKILL);
	}
	return command_wait(pid);
}

int command_wait(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int vmdedup(struct world *w, const char *arg, ...)
{
	const char *argv[16] = { "vmdedup" };
	size_t n = 1;
	va_list ap;

	va_start(ap, arg);
	for (; arg && n < 15; arg = va_arg(ap, const char *))
		argv[n++] = arg;
	va_end(ap);
	return vmdedup_killed(w, 0, argv);
}

/* ---- requests ---- */

int world_mutate(struct world *w, Vmdedup__Request *req, struct net_reply *reply, struct error *err)
{
	memset(err, 0, sizeof(*err));
	return cluster_mutate(w->cluster, req, NULL, 0, ANSWER_MS, reply, err);
}

int world_call(struct world *w, Vmdedup__Request *req, struct net_reply *reply, struct error *err)
{
	memset(err, 0, sizeof(*err));
	return cluster_call(w->cluster, req, NULL, 0, ANSWER_MS, reply, err);
}

static bool agent_is_starting(int r, const struct error *err)
{
	return r == -ENODEV || r == -ECANCELED ||
	       (r == -EAGAIN && strstr(err->text, "not connected")) ||
	       strstr(err->text, "is not connected") || strstr(err->text, "agent is ending");
}

static uint64_t nonce(void)
{
	uint64_t n;

	if (getrandom(&n, sizeof(n), 0) != sizeof(n))
		die("no random numbers");
	return n;
}

/* Each try is a request of its own: an answer about the agent's start is an answer, too. */
static void renew(Vmdedup__Request *req)
{
	if (req->body_case == VMDEDUP__REQUEST__BODY_VOLUME_PUSH)
		req->volume_push->nonce = nonce();
	if (req->body_case == VMDEDUP__REQUEST__BODY_VOLUME_DETACH)
		req->volume_detach->nonce = nonce();
	if (req->body_case == VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER)
		req->volume_handover->nonce = nonce();
}

int host_ask(struct host *h, Vmdedup__Request *req, struct net_reply *reply, struct error *err)
{
	uint64_t end = clock_mono_ns() + ANSWER_MS * 1000000ULL;
	int r;

	for (;;) {
		memset(err, 0, sizeof(*err));
		memset(reply, 0, sizeof(*reply));
		renew(req);
		r = net_call(h->client, req, NULL, 0, ANSWER_MS, reply, err);
		if (!r || !agent_is_starting(r, err) || clock_mono_ns() > end)
			return r;
		if (reply->header)
			net_reply_free(reply);
		poll(NULL, 0, 5);
	}
}

void host_wait(struct host *h)
{
	uint64_t end = clock_mono_ns() + START_MS * 1000000ULL;
	Vmdedup__AgentStatus body = VMDEDUP__AGENT_STATUS__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	bool there = false;

	req.body_case = VMDEDUP__REQUEST__BODY_AGENT_STATUS;
	req.agent_status = &body;
	while (!there) {
		if (!net_call(h->client, &req, NULL, 0, START_MS, &reply, &err))
			there = reply.header->agent_status->channel;
		net_reply_free(&reply);
		memset(&reply, 0, sizeof(reply));
		if (!there && clock_mono_ns() > end)
			die("%s has no cache after %d s: %s", h->agent.name, START_MS / 1000,
			    err.text);
		if (!there)
			poll(NULL, 0, 5);
	}
}

uint64_t host_unpushed(struct host *h, size_t *volumes)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	uint64_t bytes = 0;
	int r = cache_volumes(h->cache, &infos, volumes);

	if (r)
		die("volumes: %s", strerror(-r));
	for (size_t i = 0; i < *volumes; i++)
		bytes += infos[i].dirty_bytes;
	return bytes;
}

int host_push(struct host *h, const char *name, uint64_t *version, struct error *err)
{
	Vmdedup__VolumePush body = VMDEDUP__VOLUME_PUSH__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	body.version = version != NULL;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PUSH;
	req.volume_push = &body;
	r = host_ask(h, &req, &reply, err);
	if (!r && version)
		*version = reply.header->volume_push->version;
	net_reply_free(&reply);
	return r;
}

int host_detach(struct host *h, const char *name, struct error *err)
{
	Vmdedup__VolumeDetach body = VMDEDUP__VOLUME_DETACH__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_DETACH;
	req.volume_detach = &body;
	r = host_ask(h, &req, &reply, err);
	net_reply_free(&reply);
	return r;
}

int host_attach(struct host *h, const char *name, uint32_t flags, uint64_t *volume,
		struct error *err)
{
	Vmdedup__VolumePrepare body = VMDEDUP__VOLUME_PREPARE__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	uint64_t size;
	int r;

	body.name = (char *)name;
	body.readonly = flags & DM_DEDUP_VOL_READONLY;
	body.ephemeral = flags & DM_DEDUP_VOL_EPHEMERAL;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PREPARE;
	req.volume_prepare = &body;
	r = host_ask(h, &req, &reply, err);
	net_reply_free(&reply);
	if (r)
		return r;
	r = cache_file_open(h->cache, name, flags, volume, &size);
	return r ? error_set(err, r, "open of %s: %s", name, strerror(-r)) : 0;
}

/* ---- the whole ---- */

static int free_port(void)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(fd, (struct sockaddr *)&addr, len) ||
	    getsockname(fd, (struct sockaddr *)&addr, &len))
		die("no free port: %s", strerror(errno));
	close(fd);
	return ntohs(addr.sin_port);
}

static struct cache *new_cache(struct host *h)
{
	struct error err = { 0 };
	struct cache *c;

	unlink(h->file);
	if (uuid_generate(&h->uuid))
		die("no random numbers");
	c = cache_file_new(h->file, h->cache_size, WIRE_SHIFT, &h->uuid, &err);
	if (!c)
		die("%s", err.text);
	return c;
}

struct host_step {
	struct world *w;
	int host;
};

static void on_step(void *arg, const char *name)
{
	struct host_step *s = arg;

	if (s->w->step)
		s->w->step(s->w->arg, s->host, name);
}

static const char *agent_binary(void)
{
	static char path[400];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 20);

	if (n < 0)
		die("/proc/self/exe: %s", strerror(errno));
	path[n] = 0;
	strcpy(strrchr(path, '/') + 1, "host_agent");
	return path;
}

static void host_init(struct world *w, int n, int meta_port, uint64_t cache_size,
		      const char *agent_conf)
{
	struct host_step *s = calloc(1, sizeof(*s));
	struct host *h = &w->hosts[n];
	struct error err = { 0 };
	char text[1200], name[16], endpoint[200];

	snprintf(name, sizeof(name), "host%d", n);
	snprintf(h->file, sizeof(h->file), "%s/cache%d", w->dir, n);
	snprintf(h->socket, sizeof(h->socket), "%s/c%d.sock", w->dir, n);
	snprintf(text, sizeof(text),
		 "[cluster]\nmeta = tcp://127.0.0.1:%d\n[store]\nstore = %s/s%d\nrun = %s/r%d\n"
		 "[data]\nhost = %s\n[agent]\n%s", meta_port, w->dir, n, w->dir, n, name, agent_conf);
	process_init(w, &h->agent, name, text, agent_binary(), h->socket);
	h->cache_size = cache_size;
	h->cache = new_cache(h);
	if (!s)
		die("out of memory");
	*s = (struct host_step){ w, n };
	h->served = cache_host_new(h->cache, h->socket, on_step, s);
	if (!h->served)
		exit(1);
	process_start(&h->agent);
	snprintf(endpoint, sizeof(endpoint), "ipc://%s/r%d/agent.sock", w->dir, n);
	h->client = net_client_new(w->net, endpoint, NULL, "cli", &err);
	if (!h->client)
		die("%s", err.text);
}

void host_lose(struct world *w, struct host *h)
{
	process_kill(&h->agent);
	h->cache = new_cache(h);
	cache_host_replace(h->served, h->cache);
	process_start(&h->agent);
	host_wait(h);
}

static void servers_init(struct world *w, int meta_port)
{
	char text[1200], name[16];
	int i;

	snprintf(text, sizeof(text),
		 "[store]\nstore = %s/meta\nrun = %s/rm\n[meta]\nlisten = tcp://127.0.0.1:%d\n",
		 w->dir, w->dir, meta_port);
	process_init(w, &w->meta, "meta", text, "vmdedup-meta", NULL);
	strcpy(w->conf, w->meta.conf);
	if (vmdedup(w, "cluster", "init", "--block-size", "4K", NULL))
		die("cluster init failed: see %s/commands.log", w->dir);
	process_start(&w->meta);
	for (i = 0; i < WORLD_DATA; i++) {
		snprintf(name, sizeof(name), "data%d", i);
		snprintf(text, sizeof(text),
			 "[cluster]\nmeta = tcp://127.0.0.1:%d\n[store]\nstore = %s/sd%d\n"
			 "run = %s/rd%d\n[data]\ndir = %s/data%d\nhost = h%d\n"
			 "listen = tcp://127.0.0.1:%d\n", meta_port, w->dir, i, w->dir, i, w->dir,
			 i, i, free_port());
		process_init(w, &w->data[i], name, text, "vmdedup-data", NULL);
		process_start(&w->data[i]);
	}
}

static void wait_for_servers(struct world *w)
{
	uint64_t end = clock_mono_ns() + START_MS * 1000000ULL;
	Vmdedup__MapGet body = VMDEDUP__MAP_GET__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;
	size_t n = 0;

	req.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	req.map_get = &body;
	while (n < WORLD_DATA) {
		if (world_call(w, &req, &reply, &err))
			die("%s", err.text);
		n = reply.header->map->n_servers;
		net_reply_free(&reply);
		if (n < WORLD_DATA && clock_mono_ns() > end)
			die("only %zu data servers are there", n);
		if (n < WORLD_DATA)
			poll(NULL, 0, 10);
	}
}

struct world *world_new(uint64_t cache_size, const char *agent_conf,
			void (*step)(void *arg, int host, const char *name), void *arg)
{
	struct world *w = calloc(1, sizeof(*w));
	const char *tmp = getenv("TEST_TMP");
	int meta_port = free_port(), i;
	struct error err = { 0 };
	char text[400];
	FILE *f;

	if (!w)
		die("out of memory");
	w->step = step;
	w->arg = arg;
	pthread_mutex_init(&w->spawner.lock, NULL);
	pthread_cond_init(&w->spawner.changed, NULL);
	if (pthread_create(&w->spawner.thread, NULL, spawner_thread, &w->spawner))
		die("no thread");
	snprintf(w->dir, sizeof(w->dir), "%.70s/w.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(w->dir))
		die("%s: %s", w->dir, strerror(errno));
	w->net = net_ctx_new(NULL, NULL, &err);
	if (!w->net)
		die("%s", err.text);
	servers_init(w, meta_port);
	snprintf(w->conf, sizeof(w->conf), "%s/client.conf", w->dir);
	snprintf(text, sizeof(text),
		 "[cluster]\nmeta = tcp://127.0.0.1:%d\n[store]\nstore = %s/sc\nrun = %s/rc\n",
		 meta_port, w->dir, w->dir);
	f = fopen(w->conf, "w");
	if (!f || fputs(text, f) < 0 || fclose(f) || config_load(&w->config, w->conf, &err))
		die("%s: %s", w->conf, err.text);
	w->cluster = cluster_open(w->net, &w->config, w->config.meta, "test", START_MS, &err);
	if (!w->cluster)
		die("%s", err.text);
	wait_for_servers(w);
	for (i = 0; i < WORLD_HOSTS; i++)
		host_init(w, i, meta_port, cache_size, agent_conf);
	for (i = 0; i < WORLD_HOSTS; i++)
		host_wait(&w->hosts[i]);
	return w;
}

void world_free(struct world *w)
{
	int i;

	for (i = 0; i < WORLD_HOSTS; i++) {
		net_client_free(w->hosts[i].client);
		process_end(&w->hosts[i].agent);
	}
	cluster_close(w->cluster);
	for (i = 0; i < WORLD_DATA; i++)
		process_end(&w->data[i]);
	process_end(&w->meta);
	net_ctx_free(w->net);
	config_free(&w->config);
	free(w); /* the caches' threads have no more to do: their agents are gone */
}

/* ---- the end ---- */

static void data_blocks(void *arg, const Vmdedup__Server *server, int r,
			const Vmdedup__DataStatReply *stat)
{
	uint64_t *blocks = arg;

	*blocks += r ? 1 : stat->blocks;
}

bool world_is_empty(struct world *w, bool say)
{
	Vmdedup__ClusterInfo body = VMDEDUP__CLUSTER_INFO__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	const Vmdedup__ClusterInfoReply *info;
	struct net_reply reply;
	struct error err;
	uint64_t copies = 0;
	bool nothing;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &body;
	if (world_call(w, &req, &reply, &err) ||
	    cluster_data_stat(w->cluster, 10000, data_blocks, &copies, &err))
		die("%s", err.text);
	info = reply.header->cluster_info;
	nothing = !(info->images | info->blocks | info->nodes | info->pushes | copies);
	if (say)
		printf("# left: %llu images, %llu recipe nodes, %llu blocks, %llu open pushes, %llu "
		       "copies on data servers\n", (unsigned long long)info->images,
		       (unsigned long long)info->nodes, (unsigned long long)info->blocks,
		       (unsigned long long)info->pushes, (unsigned long long)copies);
	net_reply_free(&reply);
	return nothing;
}

void world_empty(struct world *w)
{
	for (int tries = 0; !world_is_empty(w, false); tries++) {
		if (tries == 20) {
			world_is_empty(w, true);
			die("something is left: see %s", w->dir);
		}
		if (vmdedup(w, "cluster", "gc", "--full", "--idle-pushes", "1", NULL))
			die("cluster gc fails: see %s/commands.log", w->dir);
		poll(NULL, 0, 500); /* a push is idle by the clock alone */
	}
	world_is_empty(w, true);
}

void content_fill(void *buf, const uint32_t *ids, uint64_t first, uint64_t count)
{
	uint64_t *p = buf, x, s;
	int i;

	for (s = first; s < first + count; s++) {
		x = ids[s] * 0x9e3779b97f4a7c15ULL + (s % 8 + 1) * 0xbf58476d1ce4e5b9ULL;
		for (i = 0; i < 64; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			*p++ = ids[s] ? x : 0;
		}
	}
}
