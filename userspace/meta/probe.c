// SPDX-License-Identifier: GPL-2.0-or-later
#include "meta/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "meta/governor.h"

#define PING_MS	       GOVERNOR_SILENT_MS
#define IN_TIME_NS     1000000000ULL
#define LOOP_MS	       100
#define CONNECT_MS     300
#define CONNECT_GAP_MS 100 /* between the two attempts that say that a process is gone */
#define NS_PER_MS      1000000ULL

/* A target with its connection; the client is the heartbeat thread's. */
struct beat {
	struct prober *p;
	struct probe_target target;
	struct probe_state state; /* under the lock */
	struct net_client *client;
	bool asked;
	bool wanted; /* still a target */
	uint64_t asked_ns, next_ns;
	bool connected;
};

struct prober {
	struct net_ctx *net;
	int event_fd; /* for the owner */
	pthread_t heart, prober;
	pthread_mutex_t lock;
	pthread_cond_t cond; /* somebody is accused, or the end */
	bool ending;
	struct beat *beats[PROBE_MAX_TARGETS];
	size_t nr;
	uint64_t map_version;
	uint32_t accused[PROBE_MAX_TARGETS];
	size_t nr_accused;
};

static void tell_owner(struct prober *p)
{
	uint64_t one = 1;

	if (write(p->event_fd, &one, sizeof(one)) != sizeof(one))
		log_error("wake the governor: %m");
}

/* Under the lock. */
static struct beat *beat_find(struct prober *p, uint32_t id)
{
	for (size_t i = 0; i < p->nr; i++)
		if (p->beats[i]->target.id == id)
			return p->beats[i];
	return NULL;
}

/* Under the lock. */
static void accuse(struct prober *p, uint32_t id)
{
	for (size_t i = 0; i < p->nr_accused; i++)
		if (p->accused[i] == id)
			return;
	if (p->nr_accused == PROBE_MAX_TARGETS)
		return;
	p->accused[p->nr_accused++] = id;
	pthread_cond_signal(&p->cond);
}

void prober_accuse(struct prober *p, uint32_t id)
{
	struct beat *b;

	pthread_mutex_lock(&p->lock);
	b = beat_find(p, id);
	if (b) {
		b->state.accused_ns = clock_mono_ns();
		if (!b->state.complaint_ns)
			b->state.complaint_ns = b->state.accused_ns;
		accuse(p, id);
	}
	pthread_mutex_unlock(&p->lock);
}

void prober_forgive(struct prober *p, uint32_t id)
{
	struct beat *b;

	pthread_mutex_lock(&p->lock);
	b = beat_find(p, id);
	if (b) {
		b->state.refused_ns = b->state.accused_ns = 0;
		b->state.complaint_ns = b->state.broken_ns = 0;
		b->state.since_ns = clock_mono_ns();
		b->state.in_a_row = b->state.answers_in_a_row = 0;
		b->state.failed = false;
	}
	pthread_mutex_unlock(&p->lock);
}

/* ---- the heartbeat ---- */

static void beat_answered(void *arg, int r, struct net_reply *reply)
{
	struct beat *b = arg;
	const Vmdedup__PingReply *pong = r || reply->header->error ||
		reply->header->body_case != VMDEDUP__REPLY__BODY_PING ? NULL : reply->header->ping;
	struct probe_state *s = &b->state;
	uint64_t now = clock_mono_ns();

	b->asked = false;
	/* One that has not joined serves nobody yet. */
	if (pong && (!pong->map_version || pong->disk.len != sizeof(b->target.disk) ||
		     memcmp(pong->disk.data, b->target.disk, sizeof(b->target.disk))))
		pong = NULL;
	pthread_mutex_lock(&b->p->lock);
	if (pong) {
		s->in_a_row = now - b->asked_ns < IN_TIME_NS ? s->in_a_row + 1 : 0;
		s->answers_in_a_row++;
		s->answered_ns = now;
		s->refused_ns = s->complaint_ns = s->broken_ns = 0;
		s->failed = *pong->failed;
		s->free = pong->free;
	} else if (r != -ECANCELED) {
		s->in_a_row = s->answers_in_a_row = 0;
	}
	pthread_mutex_unlock(&b->p->lock);
	if (reply)
		net_reply_free(reply);
}

static void beat_ask(struct beat *b, uint64_t map_version)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Ping ping = VMDEDUP__PING__INIT;
	struct error err = { 0 };

	if (!b->client)
		b->client = net_client_new(b->p->net, b->target.endpoint,
					   b->target.has_key ? b->target.key : NULL, "meta", &err);
	if (!b->client) {
		log_warn("governor: data server %s: %s", b->target.endpoint, err.text);
		return;
	}
	ping.map_version = map_version;
	req.body_case = VMDEDUP__REQUEST__BODY_PING;
	req.ping = &ping;
	b->asked_ns = clock_mono_ns();
	b->asked = !net_client_submit(b->client, &req, NULL, 0, PING_MS, beat_answered, b);
}

static void beat_run(struct prober *p, struct beat *b, uint64_t map_version)
{
	uint64_t now = clock_mono_ns();
	bool connected;

	if (!b->asked && now >= b->next_ns) {
		b->next_ns = now + GOVERNOR_BEAT_MS * NS_PER_MS;
		beat_ask(b, map_version);
	}
	if (!b->client)
		return;
	net_client_run(b->client, 0);
	connected = net_client_is_connected(b->client);
	/* A connection that broke, or that is not made in time, is looked at more closely. */
	if ((b->connected && !connected) ||
	    (!connected && b->asked && now - b->asked_ns > GOVERNOR_BEAT_MS * NS_PER_MS)) {
		pthread_mutex_lock(&p->lock);
		if (!b->state.broken_ns)
			b->state.broken_ns = now;
		accuse(p, b->target.id);
		pthread_mutex_unlock(&p->lock);
		b->asked_ns = now;
	}
	b->connected = connected;
}

static void beat_free(struct beat *b)
{
	net_client_free(b->client);
	free(b);
}

/* Frees those that are no targets any more, and copies the others. */
static size_t beats_take(struct prober *p, struct beat **out, uint64_t *map_version, bool *ending)
{
	struct beat *gone[PROBE_MAX_TARGETS];
	size_t n = 0, nr_gone = 0;

	pthread_mutex_lock(&p->lock);
	for (size_t i = 0; i < p->nr; i++) {
		if (p->beats[i]->wanted)
			out[n++] = p->beats[i];
		else
			gone[nr_gone++] = p->beats[i];
	}
	memcpy(p->beats, out, n * sizeof(*out));
	p->nr = n;
	*map_version = p->map_version;
	*ending = p->ending;
	pthread_mutex_unlock(&p->lock);
	for (size_t i = 0; i < nr_gone; i++)
		beat_free(gone[i]);
	return n;
}

static void *heart_run(void *arg)
{
	struct beat *beats[PROBE_MAX_TARGETS];
	struct pollfd pfd[PROBE_MAX_TARGETS];
	struct prober *p = arg;
	uint64_t map_version;
	bool ending;

	for (;;) {
		size_t n = beats_take(p, beats, &map_version, &ending), fds = 0;

		if (ending)
			return NULL;
		for (size_t i = 0; i < n; i++) {
			beat_run(p, beats[i], map_version);
			if (beats[i]->client)
				pfd[fds++] = (struct pollfd){
					.fd = net_client_fd(beats[i]->client), .events = POLLIN };
		}
		poll(pfd, fds, LOOP_MS);
	}
}

/* ---- the prober ---- */

/* "tcp://host:port" */
static int resolve(const char *endpoint, struct addrinfo **ai)
{
	const char *host = strncmp(endpoint, "tcp://", 6) ? NULL : endpoint + 6;
	const char *colon = host ? strrchr(host, ':') : NULL;
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	char *name CLEANUP_FREE = NULL;

	if (!colon)
		return -EINVAL;
	if (*host == '[')
		name = strndup(host + 1, (size_t)(colon - host) - 2);
	else
		name = strndup(host, (size_t)(colon - host));
	return name && !getaddrinfo(name, colon + 1, &hints, ai) ? 0 : -EINVAL;
}

/* 0: something listens there; -ECONNREFUSED: the host says that nothing does; else it is not known. */
static int connect_once(const char *endpoint)
{
	struct addrinfo *ai = NULL;
	socklen_t len = sizeof(int);
	struct pollfd pfd;
	int fd, r = resolve(endpoint, &ai), e = 0;

	if (r)
		return r;
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		r = -errno;
		goto free_address;
	}
	r = connect(fd, ai->ai_addr, ai->ai_addrlen) ? -errno : 0;
	if (r == -EINPROGRESS) {
		pfd = (struct pollfd){ .fd = fd, .events = POLLOUT };
		r = poll(&pfd, 1, CONNECT_MS) == 1 ? 0 : -ETIMEDOUT;
		if (!r && !getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len))
			r = -e;
	}
	close(fd);
free_address:
	freeaddrinfo(ai);
	return r;
}

static void probe(struct prober *p, uint32_t id)
{
	char endpoint[sizeof(((struct probe_target *)NULL)->endpoint)];
	struct timespec gap = { .tv_nsec = CONNECT_GAP_MS * 1000000L };
	struct beat *b;
	bool refused;

	pthread_mutex_lock(&p->lock);
	b = beat_find(p, id);
	if (b)
		memcpy(endpoint, b->target.endpoint, sizeof(endpoint));
	pthread_mutex_unlock(&p->lock);
	if (!b)
		return;
	refused = connect_once(endpoint) == -ECONNREFUSED;
	if (refused) {
		nanosleep(&gap, NULL);
		refused = connect_once(endpoint) == -ECONNREFUSED;
	}
	pthread_mutex_lock(&p->lock);
	b = beat_find(p, id);
	if (b && refused) {
		b->state.refused_ns = clock_mono_ns();
		b->state.in_a_row = b->state.answers_in_a_row = 0;
	}
	pthread_mutex_unlock(&p->lock);
	tell_owner(p);
}

static void *prober_run(void *arg)
{
	struct prober *p = arg;

	pthread_mutex_lock(&p->lock);
	while (!p->ending) {
		uint32_t id;

		if (!p->nr_accused) {
			pthread_cond_wait(&p->cond, &p->lock);
			continue;
		}
		id = p->accused[0];
		memmove(p->accused, p->accused + 1, --p->nr_accused * sizeof(p->accused[0]));
		pthread_mutex_unlock(&p->lock);
		probe(p, id);
		pthread_mutex_lock(&p->lock);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* ---- for the governor ---- */

int prober_fd(struct prober *p)
{
	return p->event_fd;
}

static bool same_target(const struct probe_target *a, const struct probe_target *b)
{
	return a->id == b->id && !strcmp(a->endpoint, b->endpoint) && a->has_key == b->has_key &&
	       !memcmp(a->disk, b->disk, sizeof(a->disk)) &&
	       (!a->has_key || !memcmp(a->key, b->key, sizeof(a->key)));
}

void prober_targets(struct prober *p, const struct probe_target *targets, size_t nr,
		    uint64_t map_version)
{
	pthread_mutex_lock(&p->lock);
	p->map_version = map_version;
	for (size_t i = 0; i < p->nr; i++)
		p->beats[i]->wanted = false;
	for (size_t t = 0; t < nr; t++) {
		struct beat *b = NULL;

		for (size_t i = 0; i < p->nr && !b; i++)
			if (same_target(&p->beats[i]->target, &targets[t]))
				b = p->beats[i];
		if (!b && p->nr < PROBE_MAX_TARGETS)
			b = calloc(1, sizeof(*b));
		if (!b)
			continue;
		b->wanted = true;
		if (b->p)
			continue;
		b->p = p;
		b->target = targets[t];
		b->state = (struct probe_state){ .id = b->target.id, .since_ns = clock_mono_ns() };
		/* Round robin: not all at the same moment. */
		b->next_ns = b->state.since_ns + t * GOVERNOR_BEAT_MS * NS_PER_MS / MAX(nr, 1);
		p->beats[p->nr++] = b;
	}
	pthread_mutex_unlock(&p->lock);
}

size_t prober_states(struct prober *p, struct probe_state *out, size_t max)
{
	uint64_t count;
	size_t n = 0;

	if (read(p->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_error("the governor's event: %m");
	pthread_mutex_lock(&p->lock);
	for (size_t i = 0; i < p->nr && n < max; i++)
		if (p->beats[i]->wanted)
			out[n++] = p->beats[i]->state;
	pthread_mutex_unlock(&p->lock);
	return n;
}

struct prober *prober_new(struct net_ctx *net, struct error *err)
{
	struct prober *p = calloc(1, sizeof(*p));
	int r;

	if (!p) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	p->net = net;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->cond, NULL);
	p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = p->event_fd < 0 ? errno : pthread_create(&p->heart, NULL, heart_run, p);
	if (r)
		goto free_prober;
	r = pthread_create(&p->prober, NULL, prober_run, p);
	if (!r)
		return p;
	pthread_mutex_lock(&p->lock);
	p->ending = true;
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->heart, NULL);
free_prober:
	error_set(err, -r, "the governor cannot start: %s", strerror(r));
	if (p->event_fd >= 0)
		close(p->event_fd);
	free(p);
	return NULL;
}

void prober_free(struct prober *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->ending = true;
	pthread_cond_signal(&p->cond);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->heart, NULL);
	pthread_join(p->prober, NULL);
	for (size_t i = 0; i < p->nr; i++)
		beat_free(p->beats[i]);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->cond);
	close(p->event_fd);
	free(p);
}
