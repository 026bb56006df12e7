// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include "agent/embedded.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "data/server.h"
#include "meta/server.h"

/* How long embedded_start() waits for the data server to stand in the shard map. */
#define EMBEDDED_JOIN_MS 15000

struct embedded {
	int lock_fd;
	struct meta_server *meta;
	struct data_server *data;
	pthread_t meta_thread;
	pthread_t data_thread;
	bool meta_runs;
	bool data_runs;
	pthread_mutex_t lock; /* guards failure */
	struct error failure;
};

static int make_folder(const char *path, mode_t mode, struct error *err)
{
	CLEANUP_FREE char *copy = strdup(path);
	char *p;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	for (p = copy + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = 0;
		if (mkdir(copy, 0755) && errno != EEXIST)
			return error_set(err, -errno, "cannot create the folder %s: %s", copy,
					 strerror(errno));
		*p = '/';
	}
	if (mkdir(copy, mode) && errno != EEXIST)
		return error_set(err, -errno, "cannot create the folder %s: %s", copy,
				 strerror(errno));
	return 0;
}

/* The lock file lives in the store, so it says nothing about stores that do not exist. */
static int lock_store(const char *store, int *fd, struct error *err)
{
	CLEANUP_FREE char *path = NULL;
	int r;

	if (asprintf(&path, "%s/lock", store) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	*fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (*fd < 0)
		return error_set(err, -errno, "cannot open the store's lock %s: %s", path,
				 strerror(errno));
	if (flock(*fd, LOCK_EX | LOCK_NB)) {
		r = -errno;
		close(*fd);
		*fd = -1;
		if (r == -EWOULDBLOCK)
			return error_set(err, -EBUSY,
					 "another process (the agent, or a command) has the store %s",
					 store);
		return error_set(err, r, "cannot lock %s: %s", path, strerror(-r));
	}
	return 0;
}

static int socket_endpoint(const struct config *config, const char *name, char **endpoint,
			   struct error *err)
{
	if (asprintf(endpoint, "ipc://%s/%s", config->run, name) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	if (strlen(*endpoint) - strlen("ipc://") >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
		free(*endpoint);
		*endpoint = NULL;
		return error_set(err, -ENAMETOOLONG,
				 "the run folder %s is too long for a socket's path: choose a "
				 "shorter `run`",
				 config->run);
	}
	return 0;
}

static void note_failure(struct embedded *e, const char *what, const struct error *err)
{
	log_error("%s server ended: %s", what, err->text);
	pthread_mutex_lock(&e->lock);
	if (!e->failure.code) {
		e->failure = *err;
		error_prefix(&e->failure, "%s server", what);
	}
	pthread_mutex_unlock(&e->lock);
}

static void *meta_thread(void *arg)
{
	struct embedded *e = arg;
	struct error err = { 0 };

	pthread_setname_np(pthread_self(), "meta");
	if (meta_server_run(e->meta, &err))
		note_failure(e, "meta", &err);
	return NULL;
}

static void *data_thread(void *arg)
{
	struct embedded *e = arg;
	struct error err = { 0 };

	pthread_setname_np(pthread_self(), "data");
	if (data_server_run(e->data, &err))
		note_failure(e, "data", &err);
	return NULL;
}

int embedded_check(struct embedded *e, struct error *err)
{
	int r;

	pthread_mutex_lock(&e->lock);
	r = e->failure.code;
	if (r && err)
		*err = e->failure;
	pthread_mutex_unlock(&e->lock);
	return r;
}

static int start_meta(struct embedded *e, struct net_ctx *net, const struct config *config,
		      struct error *err)
{
	CLEANUP_FREE char *endpoint = NULL;
	int r;

	r = socket_endpoint(config, "meta.sock", &endpoint, err);
	if (r)
		return r;
	e->meta = meta_server_open(net, config->meta_store, err);
	if (!e->meta)
		return err->code ? err->code : -EIO;
	r = meta_server_bind(e->meta, EMBEDDED_META, err);
	if (!r)
		r = meta_server_bind(e->meta, endpoint, err);
	if (r)
		return r;
	r = -pthread_create(&e->meta_thread, NULL, meta_thread, e);
	if (r)
		return error_set(err, r, "cannot start the meta server's thread: %s",
				 strerror(-r));
	e->meta_runs = true;
	return 0;
}

static int start_data(struct embedded *e, struct net_ctx *net, const struct config *config,
		      struct error *err)
{
	CLEANUP_FREE char *endpoint = NULL;
	struct data_options o = {
		.dir = config->data_dir,
		.meta = EMBEDDED_META,
		.host = config->host,
		.rack = config->rack,
		.reserve = config->data_reserve,
		.capacity = config->data_capacity,
	};
	int r;

	r = socket_endpoint(config, "data.sock", &endpoint, err);
	if (r)
		return r;
	/* Other processes of this host learn this endpoint from the shard map. */
	o.endpoint = endpoint;
	e->data = data_server_open(net, &o, err);
	if (!e->data)
		return err->code ? err->code : -EIO;
	r = data_server_bind(e->data, EMBEDDED_DATA, err);
	if (!r)
		r = data_server_bind(e->data, endpoint, err);
	if (r)
		return r;
	r = -pthread_create(&e->data_thread, NULL, data_thread, e);
	if (r)
		return error_set(err, r, "cannot start the data server's thread: %s",
				 strerror(-r));
	e->data_runs = true;
	return 0;
}

/* True when the shard map names a server that is up at @endpoint. */
static int data_has_joined(struct net_client *client, const char *endpoint, bool *joined,
			   struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__MapGet get = VMDEDUP__MAP_GET__INIT;
	struct net_reply reply = { 0 };
	size_t i;
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_MAP_GET;
	req.map_get = &get;
	r = net_call(client, &req, NULL, 0, 2000, &reply, err);
	if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_MAP)
		for (i = 0; i < reply.header->map->n_servers; i++)
			if (!reply.header->map->servers[i]->state &&
			    !strcmp(reply.header->map->servers[i]->endpoint, endpoint))
				*joined = true;
	if (reply.header)
		net_reply_free(&reply);
	return r;
}

static int wait_for_data(struct embedded *e, struct net_ctx *net, const struct config *config,
			 struct error *err)
{
	const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };
	uint64_t end = clock_mono_ns() + EMBEDDED_JOIN_MS * 1000000ULL;
	CLEANUP_FREE char *endpoint = NULL;
	struct net_client *client;
	bool joined = false;
	int r;

	r = socket_endpoint(config, "data.sock", &endpoint, err);
	if (r)
		return r;
	client = net_client_new(net, EMBEDDED_META, NULL, "agent", err);
	if (!client)
		return err->code ? err->code : -ENOMEM;
	for (;;) {
		r = data_has_joined(client, endpoint, &joined, err);
		if (joined || (r && r != -ETIMEDOUT))
			break;
		r = embedded_check(e, err);
		if (r)
			break;
		if (clock_mono_ns() > end) {
			r = error_set(err, -ETIMEDOUT,
				      "the embedded data server did not join its meta server");
			break;
		}
		nanosleep(&pause, NULL);
	}
	net_client_free(client);
	return r;
}

struct embedded *embedded_start(struct net_ctx *net, const struct config *config,
				struct error *err)
{
	struct error own = { 0 };
	struct embedded *e;
	struct stat st;
	int r;

	if (!err)
		err = &own;
	err->code = 0;
	if (stat(config->store, &st)) {
		error_set(err, -ENOENT,
			  "there is no cluster in %s: create one with `vmdedup cluster init`",
			  config->store);
		return NULL;
	}
	e = calloc(1, sizeof(*e));
	if (!e) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	pthread_mutex_init(&e->lock, NULL);
	r = lock_store(config->store, &e->lock_fd, err);
	if (!r)
		r = make_folder(config->run, 0755, err);
	if (!r)
		r = start_meta(e, net, config, err);
	if (!r)
		r = start_data(e, net, config, err);
	if (!r)
		r = wait_for_data(e, net, config, err);
	if (r) {
		if (!err->code)
			error_set(err, r, "cannot start the embedded servers: %s", strerror(-r));
		embedded_stop(e);
		return NULL;
	}
	return e;
}

void embedded_stop(struct embedded *e)
{
	if (!e)
		return;
	if (e->data_runs) {
		data_server_stop(e->data);
		pthread_join(e->data_thread, NULL);
	}
	if (e->data)
		data_server_close(e->data);
	if (e->meta_runs) {
		meta_server_stop(e->meta);
		pthread_join(e->meta_thread, NULL);
	}
	if (e->meta)
		meta_server_close(e->meta);
	if (e->lock_fd >= 0)
		close(e->lock_fd);
	pthread_mutex_destroy(&e->lock);
	free(e);
}

bool embedded_is_configured(const struct config *config)
{
	return !config->meta || !strcmp(config->meta, "embedded");
}

/* Is there a process that has the store? Its sockets are the ones to use then. */
static int store_is_taken(const struct config *config, bool *taken, struct error *err)
{
	struct error probe = { 0 };
	struct stat st;
	int fd, r;

	*taken = false;
	if (stat(config->store, &st))
		return error_set(err, -ENOENT,
				 "there is no cluster in %s: create one with `vmdedup cluster init`",
				 config->store);
	r = lock_store(config->store, &fd, &probe);
	if (!r) {
		close(fd);
		return 0;
	}
	if (r == -EBUSY) {
		*taken = true;
		return 0;
	}
	if (err)
		*err = probe;
	return r;
}

int embedded_or_remote(struct net_ctx *net, const struct config *config, struct embedded **start,
		       char **meta_endpoint, struct error *err)
{
	struct error own = { 0 };
	bool taken;
	int r;

	if (!err)
		err = &own;
	if (start)
		*start = NULL;
	*meta_endpoint = NULL;
	if (!embedded_is_configured(config)) {
		*meta_endpoint = strdup(config->meta);
		return *meta_endpoint ? 0 : error_set(err, -ENOMEM, "out of memory");
	}
	r = store_is_taken(config, &taken, err);
	if (r)
		return r;
	if (taken)
		return socket_endpoint(config, "meta.sock", meta_endpoint, err);
	if (!start)
		return error_set(err, -ENOTCONN,
				 "no agent is running on this host (start vmdedup-agent)");
	*start = embedded_start(net, config, err);
	if (!*start)
		return err->code;
	*meta_endpoint = strdup(EMBEDDED_META);
	if (!*meta_endpoint) {
		embedded_stop(*start);
		*start = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}
