// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A push whose agent, meta server or data server is killed at every one of its steps: nothing is
 * lost, the push that follows finishes, what a guest reads here and on another host is what was
 * written, and in the end nothing is left behind. And the commit that the cache never heard of,
 * with its message delivered again after newer pushes.
 *
 * The steps are the cache's verbs and the entries of the client library (host_agent.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "world.h"

#define BLOCKS	  300 /* more than one leaf */
#define SECTORS	  (BLOCKS * 8)
#define MAX_STEPS 256

enum how {
	KILL,  /* at the step; it is started again, then the step goes on */
	STALL, /* stopped at the step, and killed while what is asked of it waits */
	HOWS
};

struct test {
	struct world *w;
	uint32_t ids[SECTORS];
	uint64_t volume, rng;
	uint8_t *buf, *seen;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t changed;
	char steps[MAX_STEPS][32];
	size_t nr_steps, at;
	struct process *victim; /* at step @break_at */
	size_t break_at;
	const char *break_name; /* instead of a number */
	enum how how;
	bool fired, hold;
	struct process *stalled; /* to be killed soon */
	pthread_t staller;
	struct fp root;
	char message[160]; /* the commit's, as the agent told it */
};

static uint64_t rnd(struct test *t, uint64_t n)
{
	t->rng = t->rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return (t->rng >> 33) % n;
}

/* ---- steps ---- */

/* Kills what is stopped, a moment after the agent has gone on. */
static void *staller_thread(void *arg)
{
	struct test *t = arg;

	pthread_mutex_lock(&t->lock);
	for (;;) {
		struct process *p;

		while (!t->stalled)
			pthread_cond_wait(&t->changed, &t->lock);
		p = t->stalled;
		pthread_mutex_unlock(&t->lock);
		poll(NULL, 0, 20);
		process_restart(p);
		pthread_mutex_lock(&t->lock);
		t->stalled = NULL;
		pthread_cond_broadcast(&t->changed);
	}
	return NULL;
}

static void strike(struct test *t, struct process *victim, enum how how)
{
	if (how == KILL) {
		process_restart(victim);
		return;
	}
	kill(victim->pid, SIGSTOP);
	pthread_mutex_lock(&t->lock);
	t->stalled = victim;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

static void on_step(void *arg, int host, const char *name)
{
	struct test *t = arg;
	struct process *victim = NULL;
	bool hold;

	if (host)
		return;
	if (!strncmp(name, "message ", 8)) {
		pthread_mutex_lock(&t->lock);
		snprintf(t->message, sizeof(t->message), "%s", name);
		pthread_mutex_unlock(&t->lock);
		return;
	}
	pthread_mutex_lock(&t->lock);
	if (t->nr_steps < MAX_STEPS && !t->fired)
		snprintf(t->steps[t->nr_steps++], sizeof(t->steps[0]), "%s", name);
	if (!t->fired && t->victim &&
	    (t->break_name ? !strcmp(name, t->break_name) : t->at == t->break_at)) {
		victim = t->victim;
		t->fired = true;
	}
	t->at++;
	hold = t->hold;
	pthread_mutex_unlock(&t->lock);
	if (!victim)
		return;
	if (hold)
		process_kill(victim);
	else
		strike(t, victim, t->how);
	pthread_mutex_lock(&t->lock);
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

static void arm(struct test *t, struct process *victim, size_t at, const char *name, enum how how)
{
	pthread_mutex_lock(&t->lock);
	t->nr_steps = t->at = 0;
	t->victim = victim;
	t->break_at = at;
	t->break_name = name;
	t->how = how;
	t->fired = false;
	pthread_mutex_unlock(&t->lock);
}

/* True: the step was there. */
static bool disarm(struct test *t)
{
	bool fired;

	pthread_mutex_lock(&t->lock);
	while (t->stalled)
		pthread_cond_wait(&t->changed, &t->lock);
	fired = t->fired;
	t->victim = NULL;
	t->hold = false;
	pthread_mutex_unlock(&t->lock);
	return fired;
}

/* ---- the guest ---- */

static void write_ids(struct test *t, uint64_t first, uint64_t count)
{
	int r;

	content_fill(t->buf, t->ids, first, count);
	r = cache_file_write(t->w->hosts[0].cache, t->volume, first * 512, t->buf, count * 512);
	if (r)
		die("write: %s", strerror(-r));
}

static void set(struct test *t, uint64_t first, uint64_t count, uint32_t id)
{
	for (uint64_t s = first; s < first + count; s++)
		t->ids[s] = id;
	write_ids(t, first, count);
}

/* What a push has to tell apart: new blocks, a part of one, zeros, content that is known, content
 * twice in one cut, and what was there already. */
static void write_some(struct test *t)
{
	uint64_t n = rnd(t, BLOCKS - 20);
	uint32_t id = 1000000 + (uint32_t)rnd(t, 1000000000);

	set(t, n * 8, 8, id);
	set(t, (n + 2) * 8 + 3, 2, id + 1);
	set(t, (n + 4) * 8, 8, 0);
	set(t, (n + 6) * 8, 8, 1);
	set(t, (n + 8) * 8, 8, id + 2);
	set(t, (n + 9) * 8, 8, id + 2);
	write_ids(t, (n + 10) * 8, 8);
	set(t, (BLOCKS - 1) * 8, 8, id + 3); /* in the other leaf */
}

static void read_and_compare(struct test *t, struct host *h, uint64_t volume, const char *where)
{
	int r = cache_file_read(h->cache, volume, 0, t->seen, SECTORS * 512);

	if (r)
		die("read %s: %s", where, strerror(-r));
	content_fill(t->buf, t->ids, 0, SECTORS);
	for (uint64_t s = 0; s < SECTORS; s++)
		if (memcmp(t->buf + s * 512, t->seen + s * 512, 512))
			die("%s: sector %llu is not what was written", where,
			    (unsigned long long)s);
}

/* On this host from the servers, and on another one. */
static void verify(struct test *t)
{
	struct host *here = &t->w->hosts[0], *there = &t->w->hosts[1];
	struct error err;
	uint64_t volume;

	cache_file_evict_all(here->cache);
	read_and_compare(t, here, t->volume, "here");
	if (host_attach(there, "vol", DM_DEDUP_VOL_READONLY, &volume, &err))
		die("attach on another host: %s", err.text);
	read_and_compare(t, there, volume, "on another host");
	if (cache_file_close(there->cache, volume) || host_detach(there, "vol", &err))
		die("detach on another host: %s", err.text);
}

static void push(struct test *t)
{
	struct error err;

	if (host_push(&t->w->hosts[0], "vol", NULL, &err))
		die("push: %s", err.text);
}

/* ---- the walk ---- */

/* The push of a cut that is struck at step @at; then a push to the end, and all is compared. */
static bool struck_push(struct test *t, struct process *victim, size_t at, enum how how)
{
	bool fired;

	write_some(t);
	arm(t, victim, at, NULL, how);
	push(t);
	fired = disarm(t);
	push(t);
	verify(t);
	return fired;
}

static void walk(struct test *t, struct process *victim, enum how how, size_t stride)
{
	char last[32] = "none";
	size_t at, struck = 0;

	for (at = 0; at < MAX_STEPS; at += stride) {
		if (!struck_push(t, victim, at, how))
			break;
		struck++;
		snprintf(last, sizeof(last), "%s", t->steps[t->nr_steps - 1]);
	}
	if (!struck || at >= MAX_STEPS)
		die("a walk of %zu steps", struck);
	printf("# %s %s at %zu steps of a push, the last: %s\n", victim->name,
	       how == KILL ? "killed" : "stopped and killed", struck, last);
}

/* ---- the commit that the cache never heard of ---- */

/* *root: the answer's, when it is a commit's. */
static int call_raw(struct world *w, Vmdedup__Request *req, struct fp *root, struct error *err)
{
	struct net_client *c;
	struct net_reply reply = { 0 };
	int r;

	memset(err, 0, sizeof(*err));
	c = net_client_new(w->net, w->config.meta, NULL, "agent", err);
	if (!c)
		die("%s", err->text);
	r = net_call(c, req, NULL, 0, 30000, &reply, err);
	if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_PUSH_COMMIT)
		memcpy(root->b, reply.header->push_commit->root.data, FP_SIZE);
	net_reply_free(&reply);
	net_client_free(c);
	return r;
}

/* The same message, bit for bit; and the same words in another session, as if it were new. */
static void deliver_again(struct test *t)
{
	Vmdedup__PushCommit body = VMDEDUP__PUSH_COMMIT__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Mutation mutation = VMDEDUP__MUTATION__INIT;
	unsigned long long id, session, sequence;
	struct fp first = { 0 };
	struct net_reply reply;
	struct error err;
	char hex[FP_HEX_SIZE];
	int r;

	if (sscanf(t->message, "message %llu %llu %llu %64s", &id, &session, &sequence, hex) != 4 ||
	    fp_from_hex(&t->root, hex))
		die("no commit was seen: \"%s\"", t->message);
	body.push = id;
	body.root.data = t->root.b;
	body.root.len = FP_SIZE;
	mutation.session = session;
	mutation.sequence = sequence;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_COMMIT;
	req.push_commit = &body;
	req.mutation = &mutation;
	r = call_raw(t->w, &req, &first, &err);
	if (!r && !fp_equal(&first, &t->root))
		die("the same message has another result than the first time");
	printf("# the message again: %s\n", r ? err.text : "the first result, and nothing is done");
	req.mutation = NULL;
	r = world_mutate(t->w, &req, &reply, &err);
	net_reply_free(&reply);
	if (r != -ESTALE)
		die("an old commit in a new session: %d %s", r, err.text);
	printf("# its words in a new session: %s\n", err.text);
}

/* Killed after the meta server's commit, before the cache's. Nobody starts it again yet. */
static void push_and_die(struct test *t)
{
	const char *argv[] = { "vmdedup", "--conf", t->w->hosts[0].agent.conf, "volume",
			       "push", "vol", NULL };
	struct process *agent = &t->w->hosts[0].agent;
	char log[100];
	pid_t pid;

	arm(t, agent, 0, "commit.done", KILL);
	pthread_mutex_lock(&t->lock);
	t->hold = true;
	pthread_mutex_unlock(&t->lock);
	snprintf(log, sizeof(log), "%s/commands.log", t->w->dir);
	pid = fork();
	if (!pid) {
		int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);

		dup2(fd, 1);
		dup2(fd, 2);
		execvp(argv[0], (char *const *)argv);
		_exit(127);
	}
	pthread_mutex_lock(&t->lock);
	while (!t->fired || agent->pid)
		pthread_cond_wait(&t->changed, &t->lock);
	pthread_mutex_unlock(&t->lock);
	kill(pid, SIGKILL);
	command_wait(pid);
	disarm(t);
}

static void lost_answer(struct test *t)
{
	uint32_t old[32], i;

	memcpy(old, t->ids, sizeof(old));
	set(t, 0, 32, 77001);
	push_and_die(t);
	/* The same blocks again, with no agent there: they land in new overlays. */
	set(t, 0, 32, 77002);
	process_start(&t->w->hosts[0].agent);
	host_wait(&t->w->hosts[0]);
	push(t);
	verify(t);
	memcpy(t->ids, old, sizeof(old));
	write_ids(t, 0, 32);
	push(t);
	deliver_again(t);
	process_restart(&t->w->hosts[0].agent);
	process_restart(&t->w->meta);
	for (i = 0; i < WORLD_DATA; i++)
		process_restart(&t->w->data[i]);
	host_wait(&t->w->hosts[0]);
	verify(t);
	push(t);
	verify(t);
}

/* ---- the whole ---- */

static void make_volume(struct test *t)
{
	char path[200];
	struct error err;
	int fd;

	for (uint64_t s = 0; s < SECTORS; s++)
		t->ids[s] = s / 8 % 5 ? (uint32_t)(s / 8 % 40) + 1 : 0;
	snprintf(path, sizeof(path), "%s/content", t->w->dir);
	content_fill(t->buf, t->ids, 0, SECTORS);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, t->buf, SECTORS * 512) != SECTORS * 512 || close(fd))
		die("%s: %s", path, strerror(errno));
	if (vmdedup(t->w, "image", "import", path, "base", NULL) ||
	    vmdedup(t->w, "image", "clone", "base", "vol", NULL))
		die("no image: see %s/commands.log", t->w->dir);
	if (host_attach(&t->w->hosts[0], "vol", 0, &t->volume, &err))
		die("attach: %s", err.text);
}

static void finish(struct test *t)
{
	struct error err;

	if (cache_file_close(t->w->hosts[0].cache, t->volume) ||
	    host_detach(&t->w->hosts[0], "vol", &err))
		die("detach: %s", err.text);
	if (vmdedup(t->w, "cluster", "check", NULL))
		die("cluster check: see %s/commands.log", t->w->dir);
	if (vmdedup(t->w, "image", "rm", "vol", "base", NULL))
		die("rm: see %s/commands.log", t->w->dir);
	world_empty(t->w);
	world_free(t->w);
}

/* push_steps [STRIDE]: every STRIDEth step; a short form for every day. */
int main(int argc, char **argv)
{
	struct test *t = calloc(1, sizeof(*t));
	size_t stride = argc > 1 ? strtoul(argv[1], NULL, 0) : 1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!t || !stride || pthread_mutex_init(&t->lock, NULL) ||
	    pthread_cond_init(&t->changed, NULL) ||
	    pthread_create(&t->staller, NULL, staller_thread, t))
		die("cannot start");
	t->buf = malloc(SECTORS * 512);
	t->seen = malloc(SECTORS * 512);
	t->w = world_new(16 << 20, "push_age = 0\n", on_step, t);
	make_volume(t);
	walk(t, &t->w->hosts[0].agent, KILL, stride);
	walk(t, &t->w->meta, KILL, stride);
	walk(t, &t->w->meta, STALL, stride);
	walk(t, &t->w->data[0], KILL, stride);
	walk(t, &t->w->data[1], STALL, stride);
	lost_answer(t);
	finish(t);
	return 0;
}
