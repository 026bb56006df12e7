// SPDX-License-Identifier: GPL-2.0-or-later
/* Connections of the client library; calls and mutations of the meta server. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include "lib/internal.h"

/* ---- the meta server ---- */

static struct net_client *meta_client(struct cluster *c, struct error *err)
{
	if (!c->metas[c->meta_now].client)
		c->metas[c->meta_now].client =
			net_client_new(c->net, c->metas[c->meta_now].endpoint,
				       c->has_meta_key ? c->meta_key : NULL, c->role, err);
	return c->metas[c->meta_now].client;
}

/* The one that did not answer may be gone for good: the next attempt goes to the next. */
static void meta_next(struct cluster *c)
{
	c->meta_now = (c->meta_now + 1) % c->nr_metas;
}

int cluster_meta_submit(struct cluster *c, Vmdedup__Request *req, int timeout_ms, net_done_fn done,
		void *arg)
{
	struct net_client *client = meta_client(c, NULL);

	if (!client)
		return -ENOTCONN;
	return net_client_submit(client, req, NULL, 0, timeout_ms, done, arg);
}

static void metas_run(struct cluster *c, int max_ms)
{
	for (size_t i = 0; i < c->nr_metas; i++)
		if (c->metas[i].client && i != c->meta_now)
			net_client_run(c->metas[i].client, 0);
	if (c->metas[c->meta_now].client)
		net_client_run(c->metas[c->meta_now].client, max_ms);
}

static uint64_t deadline_after(int timeout_ms)
{
	return timeout_ms < 0 ? 0 : clock_mono_ns() + timeout_ms * NS_PER_MS;
}

/* What remains until @deadline_ns (0: none), at most @cap ms; 0: it is over. */
static int remaining_ms(uint64_t deadline_ns, int cap)
{
	uint64_t now = clock_mono_ns();

	if (!deadline_ns)
		return cap;
	if (deadline_ns <= now)
		return 0;
	return MIN((deadline_ns - now) / NS_PER_MS + 1, (uint64_t)cap);
}

static int meta_silent(struct cluster *c, int r, struct error *err)
{
	if (r == -ETIMEDOUT)
		return error_set(err, r, "the meta server at %s does not answer: check that it runs "
				 "(and, over TCP, that its key is the configured one)",
				 c->metas[c->meta_now].endpoint);
	return error_set(err, r, "the meta server at %s: %s", c->metas[c->meta_now].endpoint,
			 strerror(-r));
}

/* No answer, or one that says that the store cannot be reached from there, or that the transaction
 * lost against others again and again: it took its time to find out, so that nobody comes back at
 * once. */
static bool try_next(int r, const struct net_reply *reply)
{
	if (!reply || !reply->header)
		return r == -ETIMEDOUT;
	return reply->header->not_done &&
	       (reply->header->error == EHOSTDOWN || reply->header->error == EBUSY);
}

/* To wait longer each time is for a single server, which may be slow: of several, another one
 * answers a repetition. */
static int meta_attempt_ms(const struct cluster *c, unsigned int attempts)
{
	return attempt_ms(META_ATTEMPT_MS, c->nr_metas > 1 ? 0 : attempts);
}

int cluster_call(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
		 size_t nr_frames, int timeout_ms, struct net_reply *reply, struct error *err)
{
	uint64_t deadline = deadline_after(timeout_ms);

	for (unsigned int attempts = 0;; attempts++) {
		struct net_client *client = meta_client(c, err);
		int left = remaining_ms(deadline, meta_attempt_ms(c, attempts)), r;

		memset(reply, 0, sizeof(*reply));
		if (!client)
			return err ? err->code : -ENOTCONN;
		r = net_call(client, req, frames, nr_frames, MAX(left, 1), reply, err);
		if (!try_next(r, reply) || !remaining_ms(deadline, 1))
			return r;
		net_reply_free(reply);
		meta_next(c);
	}
}

/* ---- mutations ---- */

struct session_request {
	Vmdedup__Request req;
	Vmdedup__SessionOpen open;
	struct uuid nonce;
};

static int session_request(const struct cluster *c, struct session_request *ask)
{
	int r = uuid_generate(&ask->nonce);

	vmdedup__request__init(&ask->req);
	vmdedup__session_open__init(&ask->open);
	ask->open.nonce = (ProtobufCBinaryData){ sizeof(ask->nonce.b), ask->nonce.b };
	ask->open.name = c->role;
	ask->req.body_case = VMDEDUP__REQUEST__BODY_SESSION_OPEN;
	ask->req.session_open = &ask->open;
	return r;
}

static void mutation_attempt(struct cluster *c);

static void mutation_end(struct cluster *c, int r, struct net_reply *reply)
{
	struct mutation *m = TAILQ_FIRST(&c->mutations);

	TAILQ_REMOVE(&c->mutations, m, link);
	/* Whether it was done is not known: its sequence must not be used for anything else. */
	if ((r || reply->header->not_done) && !c->closing)
		c->session = 0;
	m->done(m->arg, r, reply);
	if (!TAILQ_EMPTY(&c->mutations))
		mutation_attempt(c);
}

/* The first mutation got no answer that ends it, and there is time: the next meta server is asked. */
static bool goes_on(struct cluster *c, int r, struct net_reply *reply)
{
	c->progress++;
	if (!try_next(r, reply) || c->closing ||
	    !remaining_ms(TAILQ_FIRST(&c->mutations)->deadline_ns, 1))
		return false;
	if (reply)
		net_reply_free(reply);
	meta_next(c);
	return true;
}

/* ---- a session that is not known: it was not used for long, or a backup was restored ---- */

static void session_renew(struct cluster *c);

/* Nothing of the mutation was done: it was sent once, and refused. After several attempts one that
 * was not answered may have been done under the session that is gone. */
static bool session_has_gone(const struct mutation *m, int r, const struct net_reply *reply)
{
	return !r && reply->header->not_done && reply->header->error == EKEYEXPIRED &&
	       m->attempts == 1 && !m->renewed;
}

static void session_renewed(void *arg, int r, struct net_reply *reply)
{
	struct cluster *c = arg;
	struct mutation *m = TAILQ_FIRST(&c->mutations);

	if (goes_on(c, r, reply)) {
		session_renew(c);
		return;
	}
	if (!r && !reply->header->error &&
	    reply->header->body_case != VMDEDUP__REPLY__BODY_SESSION_OPEN)
		r = -EPROTO;
	if (r || reply->header->error) {
		mutation_end(c, r, reply);
		return;
	}
	c->session = reply->header->session_open->session;
	c->sequence = 0;
	net_reply_free(reply);
	vmdedup__mutation__init(&m->id);
	m->attempts = 0;
	mutation_attempt(c);
}

static void session_renew(struct cluster *c)
{
	struct mutation *m = TAILQ_FIRST(&c->mutations);
	struct session_request ask;
	int r;

	m->renewed = true;
	c->session = 0;
	r = session_request(c, &ask);
	if (!r)
		r = cluster_meta_submit(c, &ask.req, remaining_ms(m->deadline_ns, META_ATTEMPT_MS),
					session_renewed, c);
	if (r)
		mutation_end(c, r, NULL);
}

static void mutation_answered(void *arg, int r, struct net_reply *reply)
{
	struct cluster *c = arg;
	struct mutation *m = TAILQ_FIRST(&c->mutations);

	if (goes_on(c, r, reply)) {
		mutation_attempt(c);
		return;
	}
	if (!c->closing && session_has_gone(m, r, reply)) {
		net_reply_free(reply);
		session_renew(c);
		return;
	}
	mutation_end(c, r, reply);
}

/* Sends the first mutation, again or for the first time: the sequence is the same each time. */
static void mutation_attempt(struct cluster *c)
{
	struct mutation *m = TAILQ_FIRST(&c->mutations);
	struct net_client *client = meta_client(c, NULL);
	int left = remaining_ms(m->deadline_ns, meta_attempt_ms(c, m->attempts++));
	int r = -ETIMEDOUT;

	if (!m->id.sequence) {
		m->id.session = c->session;
		m->id.sequence = ++c->sequence;
	}
	m->req->mutation = &m->id;
	if (c->closing)
		r = -ECANCELED;
	else if (!c->session)
		r = -ECONNABORTED; /* the mutation before this one was never answered */
	else if (!client)
		r = -ENOTCONN;
	else if (left)
		r = net_client_submit(client, m->req, m->frames, m->nr_frames, left,
				      mutation_answered, c);
	if (r)
		mutation_end(c, r, NULL);
}

/* Not inline: a synchronous mutation lies on its caller's stack, which waits until it is done. */
__attribute__((noinline)) void cluster_mutation_submit(struct cluster *c, struct mutation *m)
{
	bool first = TAILQ_EMPTY(&c->mutations);

	vmdedup__mutation__init(&m->id);
	TAILQ_INSERT_TAIL(&c->mutations, m, link);
	if (first)
		mutation_attempt(c);
}

int cluster_session_open(struct cluster *c, int timeout_ms, struct error *err)
{
	struct session_request ask;
	struct net_reply reply;
	int r;

	if (c->session)
		return 0;
	r = session_request(c, &ask);
	if (r)
		return error_set(err, r, "no random numbers");
	r = cluster_call(c, &ask.req, NULL, 0, timeout_ms, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_SESSION_OPEN)
		r = error_set(err, -EPROTO, "the meta server gave no session");
	if (!r) {
		c->session = reply.header->session_open->session;
		c->sequence = 0;
	}
	net_reply_free(&reply);
	return r;
}

struct sync_mutation {
	struct mutation m;
	bool done;
	int r;
	struct net_reply *reply;
};

static void sync_done(void *arg, int r, struct net_reply *reply)
{
	struct sync_mutation *s = arg;

	s->done = true;
	s->r = r;
	if (reply)
		*s->reply = *reply;
}

int cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
		   size_t nr_frames, int timeout_ms, struct net_reply *reply, struct error *err)
{
	struct sync_mutation s = { .reply = reply };
	int r;

	memset(reply, 0, sizeof(*reply));
	r = cluster_session_open(c, timeout_ms, err);
	if (r)
		return r;
	s.m.req = req;
	s.m.frames = frames;
	s.m.nr_frames = nr_frames;
	s.m.deadline_ns = deadline_after(timeout_ms);
	s.m.done = sync_done;
	s.m.arg = &s;
	cluster_mutation_submit(c, &s.m);
	while (!s.done)
		metas_run(c, 1000);
	req->mutation = NULL;
	if (s.r)
		return meta_silent(c, s.r, err);
	if (reply->header->error)
		return error_set(err, -reply->header->error, "%s", reply->header->error_text);
	return 0;
}

/* ---- open and close ---- */

static int metas_parse(struct cluster *c, const struct config *config, const char *meta,
		       struct error *err)
{
	CLEANUP_FREE char *text = strdup(meta);
	char *save = NULL;
	bool tcp = false;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	for (char *one = strtok_r(text, ", ", &save); one; one = strtok_r(NULL, ", ", &save)) {
		if (c->nr_metas == MAX_METAS)
			return error_set(err, -E2BIG, "%s: at most %d meta servers", meta, MAX_METAS);
		tcp |= !strncmp(one, "tcp://", 6);
		c->metas[c->nr_metas].endpoint = strdup(one);
		if (!c->metas[c->nr_metas++].endpoint)
			return error_set(err, -ENOMEM, "out of memory");
	}
	if (!c->nr_metas)
		return error_set(err, -EINVAL, "no endpoint of a meta server is configured");
	if (config && !strncmp(meta, "inproc://", 9) &&
	    asprintf(&c->own_data, "ipc://%s/data.sock", config->run) < 0) {
		c->own_data = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	if (!tcp || !config || !config->curve_servers)
		return 0;
	c->has_meta_key = true;
	return cluster_server_key_load(config->curve_servers, c->meta_key, err);
}

static int params_take(struct cluster *c, const Vmdedup__ClusterInfoReply *info, struct error *err)
{
	struct cluster_params *p = &c->params;

	if (info->cluster.len != sizeof(p->uuid.b) || info->block_shift < BLOCK_SHIFT_MIN ||
	    info->block_shift > BLOCK_SHIFT_MAX || info->algorithm > VMDEDUP__ALGORITHM__MD5)
		return error_set(err, -EPROTO, "the meta server describes a cluster that this "
				 "version does not understand: upgrade this host");
	memcpy(p->uuid.b, info->cluster.data, sizeof(p->uuid.b));
	snprintf(p->name, sizeof(p->name), "%s", info->name);
	p->algorithm = (enum fp_algorithm)info->algorithm;
	p->block_shift = info->block_shift;
	p->replicas = info->replicas;
	p->min_copies = info->min_copies;
	for (size_t i = 0; i < info->n_domains; i++) {
		const Vmdedup__Domain *d = info->domains[i];

		if (strcmp(d->name, "public"))
			continue;
		if (d->key.len > sizeof(p->domain_key))
			return error_set(err, -EPROTO, "the domain's key has %zu bytes", d->key.len);
		p->domain = d->id;
		p->domain_key_len = d->key.len;
		if (d->key.len)
			memcpy(p->domain_key, d->key.data, d->key.len);
		return 0;
	}
	return error_set(err, -EPROTO, "the cluster has no domain `public`");
}

static int params_fetch(struct cluster *c, int timeout_ms, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ClusterInfo ask = VMDEDUP__CLUSTER_INFO__INIT;
	struct net_reply reply;
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_CLUSTER_INFO;
	req.cluster_info = &ask;
	r = cluster_call(c, &req, NULL, 0, timeout_ms, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_CLUSTER_INFO)
		r = error_set(err, -EPROTO, "%s is not a meta server",
			      c->metas[c->meta_now].endpoint);
	if (!r)
		r = params_take(c, reply.header->cluster_info, err);
	net_reply_free(&reply);
	return r;
}

struct cluster *cluster_open(struct net_ctx *net, const struct config *config, const char *meta,
			     const char *role, int timeout_ms, struct error *err)
{
	struct cluster *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		goto nomem;
	c->net = net;
	c->watch_fd = -1;
	TAILQ_INIT(&c->mutations);
	TAILQ_INIT(&c->homeless);
	TAILQ_INIT(&c->pushes);
	c->role = strdup(role);
	c->nodes = calloc(NODE_CACHE_SLOTS, sizeof(*c->nodes));
	c->dctx = ZSTD_createDCtx();
	if (!c->role || !c->nodes || !c->dctx)
		goto nomem;
	r = metas_parse(c, config, meta, err);
	if (!r)
		r = params_fetch(c, timeout_ms, err);
	if (!r)
		r = cluster_map_fetch(c, timeout_ms, err);
	if (r) {
		cluster_close(c);
		return NULL;
	}
	c->raw = malloc((size_t)1 << c->params.block_shift);
	c->hasher = cluster_hasher(c);
	if (!c->raw || !c->hasher)
		goto nomem;
	return c;
nomem:
	error_set(err, -ENOMEM, "out of memory");
	cluster_close(c);
	return NULL;
}

void cluster_close(struct cluster *c)
{
	if (!c)
		return;
	c->closing = true;
	for (size_t i = 0; i < c->nr_metas; i++) {
		struct net_client *client = c->metas[i].client;

		c->metas[i].client = NULL;
		net_client_free(client);
		free(c->metas[i].endpoint);
	}
	cluster_gets_cancel(c);
	cluster_map_free(c);
	fp_hasher_free(c->hasher);
	ZSTD_freeDCtx(c->dctx);
	free(c->raw);
	free(c->nodes);
	free(c->own_data);
	free(c->role);
	free(c);
}

const struct cluster_params *cluster_params(struct cluster *c)
{
	return &c->params;
}

struct fp_hasher *cluster_hasher(struct cluster *c)
{
	return fp_hasher_new(c->params.algorithm, c->params.domain_key, c->params.domain_key_len);
}

/* ---- the loop ---- */

void cluster_watch_fd(struct cluster *c, int fd)
{
	c->watch_fd = fd;
}

/* The n-th client in use, or NULL. */
static struct net_client *client_at(struct cluster *c, size_t *n)
{
	for (; *n < c->nr_metas; ++*n)
		if (c->metas[*n].client)
			return c->metas[(*n)++].client;
	for (; *n - c->nr_metas < c->nr_servers; ++*n)
		if (c->servers[*n - c->nr_metas]->client)
			return c->servers[(*n)++ - c->nr_metas]->client;
	return NULL;
}

size_t cluster_fds(struct cluster *c, int *fds, size_t max)
{
	struct net_client *client;
	size_t at = 0, n = 0;

	while (n < max && (client = client_at(c, &at)))
		fds[n++] = net_client_fd(client);
	return n;
}

#define WATCH_MS 200 /* how soon a broken connection is reported again */

static int sooner(int a, int b)
{
	if (a < 0)
		return b;
	return b < 0 ? a : MIN(a, b);
}

int cluster_next_timeout_ms(struct cluster *c)
{
	struct net_client *client;
	size_t at = 0;
	int ms = -1;

	while ((client = client_at(c, &at)))
		ms = sooner(ms, net_client_next_timeout_ms(client));
	for (size_t i = 0; i < c->nr_servers; i++)
		if (c->servers[i]->waits_ns)
			ms = sooner(ms, WATCH_MS);
	if (c->map_wanted && !c->map_asked) {
		uint64_t now = clock_mono_ns();

		ms = sooner(ms, c->map_due_ns > now ?
				(int)((c->map_due_ns - now) / NS_PER_MS + 1) : 0);
	}
	return ms;
}

static void flush(struct cluster *c)
{
	cluster_map_flush(c);
	cluster_gets_flush(c);
	cluster_pushes_flush(c);
}

static void run_clients(struct cluster *c)
{
	struct net_client *client;
	size_t at = 0;

	while ((client = client_at(c, &at)))
		net_client_run(client, 0);
	cluster_servers_watch(c);
}

int cluster_run(struct cluster *c, int max_ms)
{
	uint64_t deadline = deadline_after(max_ms), before = c->progress;
	struct pollfd few[16], *pfd = few;
	int fds[MAX_METAS + MAX_SERVERS], r = 0;
	CLEANUP_FREE struct pollfd *many = NULL;

	for (;;) {
		size_t n;
		int ms;

		flush(c);
		run_clients(c);
		flush(c);
		ms = max_ms < 0 ? -1 : remaining_ms(deadline, max_ms);
		if (c->progress != before || !ms)
			return 0;
		n = cluster_fds(c, fds, ARRAY_SIZE(fds));
		if (n + 1 > ARRAY_SIZE(few)) {
			free(many);
			pfd = many = malloc((n + 1) * sizeof(*many));
			if (!many)
				return -ENOMEM;
		}
		for (size_t i = 0; i < n; i++)
			pfd[i] = (struct pollfd){ .fd = fds[i], .events = POLLIN };
		pfd[n] = (struct pollfd){ .fd = c->watch_fd, .events = POLLIN };
		r = poll(pfd, n + 1, sooner(ms, cluster_next_timeout_ms(c)));
		if (r < 0)
			return -errno;
		if (pfd[n].revents) {
			run_clients(c);
			return 0;
		}
	}
}
