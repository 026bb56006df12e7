// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>
#include "agent/cache_file.h"
#include "agent/daemon.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#define CALL_THREADS	4	 /* PUBLISHes that write at a time */
#define GET_MEMORY	(64 << 20) /* bytes of blocks on their way to the cache */
#define LOOKUP_WAIT_S	20
#define TICK_MS		1000
#define STOP_WAIT_MS	10000
#define STORE_WAIT_MS	30000
#define FILE_WAIT_MS	30000

/* ---- the loop ---- */

/* The core's next moment, as the timer's. Called whenever something may have changed it. */
static void arm_timer(struct daemon *d)
{
	uint64_t next = agent_next_ns(d->agent);
	struct itimerspec when = { 0 };

	if (d->peer_server)
		next = MIN(next, peer_server_next_ns(d->peer_server));
	if (next != UINT64_MAX) {
		next = MAX(next, 1);
		when.it_value.tv_sec = (time_t)(next / 1000000000ULL);
		when.it_value.tv_nsec = (long)(next % 1000000000ULL);
	}
	if (timerfd_settime(d->timer_fd, TFD_TIMER_ABSTIME, &when, NULL))
		log_error("cannot set the timer: %s", strerror(errno));
}

static void on_inbox(void *arg)
{
	struct daemon *d = arg;

	loop_run(d->loop);
	arm_timer(d);
}

static void on_timer(void *arg)
{
	struct daemon *d = arg;
	uint64_t count;

	if (read(d->timer_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("cannot read the timer: %s", strerror(errno));
	agent_tick(d->agent);
	if (d->peer_server)
		peer_server_tick(d->peer_server);
	arm_timer(d);
}

static void on_signal(void *arg)
{
	struct signalfd_siginfo info;
	struct daemon *d = arg;

	if (read(d->signal_fd, &info, sizeof(info)) == sizeof(info))
		daemon_stop(d);
}

static void control_tick(void *ctx)
{
	struct daemon *d = ctx;
	struct agent_stats stats;
	struct error err = { 0 };
	char trouble[400];

	if (d->embedded && !d->failure && embedded_check(d->embedded, &err)) {
		d->failure = err.code;
		daemon_stop(d);
		return;
	}
	daemon_peers_tick(d);
	agent_stats(d->agent, &stats);
	control_trouble(d, trouble, sizeof(trouble));
	sd_notifyf(0, "WATCHDOG=1\nSTATUS=%s%s%s",
		   !d->cache		       ? "servers only" :
		   agent_is_connected(d->agent) ? "serving the cache" :
						  "waiting for the cache",
		   trouble[0] ? ": " : "", trouble);
}

static void control_batch_end(void *ctx)
{
	arm_timer(ctx);
}

static const struct net_server_ops control_ops = {
	.handle = control_handle,
	.batch_end = control_batch_end,
	.tick = control_tick,
};

/* ---- start ---- */

static int start_embedded(struct daemon *d, struct error *err)
{
	const struct timespec pause = { .tv_nsec = 200 * 1000 * 1000 };
	uint64_t end = clock_mono_ns() + STORE_WAIT_MS * 1000000ULL;

	if (!embedded_is_configured(d->config)) {
		d->meta = strdup(d->config->meta);
		return d->meta ? 0 : error_set(err, -ENOMEM, "out of memory");
	}
	for (;;) {
		d->embedded = embedded_start(d->net, d->config, err);
		if (d->embedded)
			break;
		/* A command (an import) may have the store just now. */
		if (err->code != -EBUSY || clock_mono_ns() > end)
			return err->code;
		sd_notifyf(0, "STATUS=waiting for the store: %s", err->text);
		nanosleep(&pause, NULL);
	}
	d->meta = strdup(EMBEDDED_META);
	return d->meta ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* Recipes are kept beside the store; without a folder for them they are kept in memory only. */
static int start_nodes(struct daemon *d, struct error *err)
{
	CLEANUP_FREE char *folder = NULL, *path = NULL;

	if (asprintf(&folder, "%s/agent", d->config->store) < 0 ||
	    asprintf(&path, "%s/recipes.cache", folder) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if ((mkdir(d->config->store, 0755) && errno != EEXIST) ||
	    (mkdir(folder, 0700) && errno != EEXIST))
		log_warn("cannot create the folder %s: %s", folder, strerror(errno));
	d->nodes = nodes_new(path);
	return d->nodes ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int start_agent(struct daemon *d, struct error *err)
{
	struct agent_params params = {
		.max_get_bytes = GET_MEMORY,
		.lookup_wait_s = LOOKUP_WAIT_S,
	};
	struct network_setup setup = {
		.net = d->net,
		.config = d->config,
		.meta = d->meta,
		.nodes = d->nodes,
	};
	CLEANUP_FREE char *folder = NULL;
	int r;

	d->loop = loop_new();
	if (!d->loop)
		return error_set(err, -ENOMEM, "out of memory");
	d->agent = agent_new(&daemon_agent_ops, d, &params);
	if (!d->agent)
		return error_set(err, -ENOMEM, "out of memory");
	d->calls = pool_new(d->loop, "publish", CALL_THREADS);
	if (!d->calls)
		return error_set(err, -EAGAIN, "cannot start threads");
	r = daemon_listen(d, err);
	if (r)
		return r;
	setup.self = d->peer_server ? &d->self : NULL;
	setup.loop = d->loop;
	if (asprintf(&folder, "%s/agent", d->config->store) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	setup.folder = folder;
	d->network = network_new(&setup, err);
	if (!d->network)
		return err->code;
	network_set_agent(d->network, d->agent);
	return 0;
}

/* A plain-file cache has the blocks of the cluster that it serves. */
static int start_cache_file(struct daemon *d, struct error *err)
{
	struct cluster *c;
	struct uuid uuid;
	int r;

	if (!d->config->cache_file)
		return 0;
	if (d->cache)
		return error_set(err, -EINVAL,
				 "the configuration names a cache and a cache_file: an agent has one");
	c = cluster_open(d->net, d->config, d->meta, "agent", FILE_WAIT_MS, err);
	if (!c)
		return err->code ? err->code : -ETIMEDOUT;
	r = uuid_generate(&uuid);
	if (!r) {
		d->cache = cache_file_new(d->config->cache_file, d->config->cache_file_size,
					  cluster_params(c)->block_shift, &uuid, err);
		r = d->cache ? 0 : err->code;
	}
	cluster_close(c);
	return r;
}

static int start_pusher(struct daemon *d, struct error *err)
{
	struct pusher_params params = {
		.net = d->net,
		.config = d->config,
		.meta = d->meta,
		.host = d->host,
		.loop = d->loop,
		.nodes = d->nodes,
		.cache = d->cache,
		.agent = d->agent,
	};
	struct handover_params handover = {
		.net = d->net,
		.config = d->config,
		.meta = d->meta,
		.loop = d->loop,
		.nodes = d->nodes,
		.cache = d->cache,
		.agent = d->agent,
		.self = d->peer_server ? &d->self : NULL,
	};

	if (!d->cache)
		return 0;
	d->pusher = pusher_new(&params, err);
	if (d->pusher)
		d->handover = handover_new(&handover, err);
	return d->handover ? 0 : err->code;
}

static int make_run_folder(const struct config *config, struct error *err)
{
	if (mkdir(config->run, 0755) && errno != EEXIST)
		return error_set(err, -errno, "cannot create the run folder %s: %s", config->run,
				 strerror(errno));
	return 0;
}

/* Those that the process has blocked, and no others: a test's own signals stay its own. */
static int watch_signals(struct daemon *d, struct error *err)
{
	sigset_t blocked, set;
	int r;

	sigemptyset(&set);
	sigprocmask(SIG_BLOCK, NULL, &blocked);
	if (sigismember(&blocked, SIGTERM))
		sigaddset(&set, SIGTERM);
	if (sigismember(&blocked, SIGINT))
		sigaddset(&set, SIGINT);
	d->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (d->signal_fd < 0)
		return error_set(err, -errno, "cannot watch signals: %s", strerror(errno));
	r = net_server_watch(d->server, d->signal_fd, on_signal, d);
	return r ? error_set(err, r, "cannot watch signals: %s", strerror(-r)) : 0;
}

static int start_control(struct daemon *d, struct error *err)
{
	static const uint8_t no_cluster[16];
	CLEANUP_FREE char *endpoint = NULL;
	int r;

	r = make_run_folder(d->config, err);
	if (r)
		return r;
	if (asprintf(&endpoint, "ipc://%s/agent.sock", d->config->run) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	d->server = net_server_new(d->net, "agent", no_cluster, &control_ops, d, TICK_MS, err);
	if (!d->server)
		return err->code ? err->code : -ENOMEM;
	r = net_server_bind(d->server, endpoint, err);
	if (r)
		return r;
	d->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (d->timer_fd < 0)
		return error_set(err, -errno, "cannot create a timer: %s", strerror(errno));
	r = watch_signals(d, err);
	if (r)
		return r;
	r = net_server_watch(d->server, loop_fd(d->loop), on_inbox, d);
	if (!r)
		r = net_server_watch(d->server, d->timer_fd, on_timer, d);
	return r ? error_set(err, r, "cannot watch descriptors: %s", strerror(-r)) : 0;
}

static void init_locks(struct daemon *d)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&d->stop_lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->stop_cond, &attr);
	pthread_condattr_destroy(&attr);
}

struct daemon *daemon_new(const struct config *config, struct cache *cache, struct error *err)
{
	struct daemon *d = calloc(1, sizeof(*d));
	int r;

	if (!d) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	d->config = config;
	d->cache = cache;
	d->timer_fd = -1;
	d->signal_fd = -1;
	d->started_ns = clock_mono_ns();
	init_locks(d);
	snprintf(d->host, sizeof(d->host), "%s", config->host ? config->host : "localhost");
	if (cache || config->cache_file)
		snprintf(d->cache_trouble, sizeof(d->cache_trouble), "not connected yet");
	d->net = net_ctx_new(config->curve_secret, config->curve_clients, err);
	r = d->net ? 0 : err->code ? err->code : -ENOMEM;
	if (!r)
		r = start_embedded(d, err);
	if (!r)
		r = start_nodes(d, err);
	if (!r)
		r = start_agent(d, err);
	if (!r)
		r = start_cache_file(d, err);
	if (!r)
		r = start_pusher(d, err);
	if (!r)
		r = start_control(d, err);
	if (!r)
		r = daemon_serve_peers(d, err);
	if (!r && d->cache)
		r = daemon_start_cache(d, err);
	if (r) {
		daemon_free(d);
		return NULL;
	}
	return d;
}

/* ---- run and end ---- */

int daemon_run(struct daemon *d, struct error *err)
{
	int r;

	sd_notify(0, "READY=1\nSTATUS=started");
	arm_timer(d);
	r = net_server_run(d->server, err);
	sd_notify(0, "STOPPING=1");
	if (!r && d->failure)
		embedded_check(d->embedded, err);
	return r ? r : d->failure;
}

void daemon_stop(struct daemon *d)
{
	net_server_stop(d->server);
}

/* The cache's thread and the pusher may be waiting for the loop: it goes on until they end. */
static bool end_threads(struct daemon *d)
{
	uint64_t end = clock_mono_ns() + STOP_WAIT_MS * 1000000ULL;
	struct pollfd inbox = { .fd = d->loop ? loop_fd(d->loop) : -1, .events = POLLIN };
	bool ended = false;

	if (d->loop)
		loop_close(d->loop);
	daemon_stop_cache(d);
	if (d->pusher)
		pusher_stop(d->pusher);
	if (d->handover)
		handover_stop(d->handover);
	while (!ended && clock_mono_ns() < end) {
		ended = daemon_cache_has_ended(d) &&
			(!d->pusher || pusher_has_ended(d->pusher)) &&
			(!d->handover || handover_has_ended(d->handover));
		if (!ended && d->loop && poll(&inbox, 1, 50) > 0)
			loop_run(d->loop);
	}
	if (ended && d->cache_runs)
		pthread_join(d->cache_thread, NULL);
	return ended;
}

bool daemon_free(struct daemon *d)
{
	if (!d)
		return true;
	if (!end_threads(d))
		return false;
	/* What comes from now on moves nothing: the threads that would carry it out are going. */
	if (d->agent)
		agent_disconnected(d->agent);
	peer_server_stop(d->peer_server);
	if (d->network)
		network_stop(d->network);
	if (d->cache)
		d->cache->ops->disconnect(d->cache); /* no call waits for a parked answer now */
	pool_free(d->calls);
	d->calls = NULL; /* what the last answers ask for is not done any more */
	handover_free(d->handover);
	pusher_free(d->pusher);
	if (d->loop)
		loop_run(d->loop); /* the last answers; they free what was asked */
	agent_free(d->agent);
	network_free(d->network);
	peer_server_free(d->peer_server);
	host_filter_free(d->filter);
	if (d->server)
		net_server_free(d->server);
	once_free(&d->once);
	embedded_stop(d->embedded);
	if (d->cache)
		d->cache->ops->free(d->cache);
	nodes_free(d->nodes);
	loop_free(d->loop);
	if (d->timer_fd >= 0)
		close(d->timer_fd);
	if (d->signal_fd >= 0)
		close(d->signal_fd);
	if (d->net)
		net_ctx_free(d->net);
	pthread_cond_destroy(&d->stop_cond);
	pthread_mutex_destroy(&d->stop_lock);
	free(d->meta);
	free(d);
	return true;
}
