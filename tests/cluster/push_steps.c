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
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "guest.h"
#include "strike.h"

#define MAX_STEPS 256

enum how {
	KILL,  /* at the step; it is started again, then the step goes on */
	STALL, /* stopped at the step, and killed while what is asked of it waits */
	HOWS
};

struct test {
	struct guest g;
	struct strike strike; /* its lock guards all below */
	char steps[MAX_STEPS][32];
	size_t nr_steps;
	struct process *victim;
	enum how how;
	bool hold;
	struct process *stalled; /* to be killed soon */
	pthread_t staller;
	struct fp root;
	char message[160]; /* the commit's, as the agent told it */
};

/* ---- steps ---- */

/* Kills what is stopped, a moment after the agent has gone on. */
static void *staller_thread(void *arg)
{
	struct test *t = arg;

	pthread_mutex_lock(&t->strike.lock);
	for (;;) {
		struct process *p;

		while (!t->stalled)
			pthread_cond_wait(&t->strike.changed, &t->strike.lock);
		p = t->stalled;
		pthread_mutex_unlock(&t->strike.lock);
		poll(NULL, 0, 20);
		process_restart(p);
		pthread_mutex_lock(&t->strike.lock);
		t->stalled = NULL;
		pthread_cond_broadcast(&t->strike.changed);
	}
	return NULL;
}

static void hit(struct test *t, struct process *victim, enum how how)
{
	if (how == KILL) {
		process_restart(victim);
		return;
	}
	kill(victim->pid, SIGSTOP);
	pthread_mutex_lock(&t->strike.lock);
	t->stalled = victim;
	pthread_cond_broadcast(&t->strike.changed);
	pthread_mutex_unlock(&t->strike.lock);
}

static void on_step(void *arg, int host, const char *name)
{
	struct test *t = arg;
	struct process *victim = NULL;
	bool hold;

	if (host)
		return;
	if (!strncmp(name, "message ", 8)) {
		pthread_mutex_lock(&t->strike.lock);
		snprintf(t->message, sizeof(t->message), "%s", name);
		pthread_mutex_unlock(&t->strike.lock);
		return;
	}
	pthread_mutex_lock(&t->strike.lock);
	if (t->nr_steps < MAX_STEPS && !t->strike.fired)
		snprintf(t->steps[t->nr_steps++], sizeof(t->steps[0]), "%s", name);
	if (strike_is(&t->strike, name))
		victim = t->victim;
	hold = t->hold;
	pthread_mutex_unlock(&t->strike.lock);
	if (!victim)
		return;
	if (hold)
		process_kill(victim);
	else
		hit(t, victim, t->how);
	strike_tell(&t->strike);
}

static void arm(struct test *t, struct process *victim, size_t at, const char *name, enum how how)
{
	pthread_mutex_lock(&t->strike.lock);
	t->nr_steps = 0;
	t->victim = victim;
	t->how = how;
	pthread_mutex_unlock(&t->strike.lock);
	strike_arm(&t->strike, at, name);
}

/* True: the step was there. */
static bool disarm(struct test *t)
{
	pthread_mutex_lock(&t->strike.lock);
	while (t->stalled)
		pthread_cond_wait(&t->strike.changed, &t->strike.lock);
	t->hold = false;
	pthread_mutex_unlock(&t->strike.lock);
	return strike_disarm(&t->strike);
}

/* ---- the guest ---- */

/* What a push has to tell apart: new blocks, a part of one, zeros, content that is known, content
 * twice in one cut, and what was there already. */
static void write_some(struct guest *g)
{
	uint64_t n = guest_random(g, GUEST_BLOCKS - 20);
	uint32_t id = 1000000 + (uint32_t)guest_random(g, 1000000000);

	guest_write(g, n * 8, 8, id);
	guest_write(g, (n + 2) * 8 + 3, 2, id + 1);
	guest_write(g, (n + 4) * 8, 8, 0);
	guest_write(g, (n + 6) * 8, 8, 1);
	guest_write(g, (n + 8) * 8, 8, id + 2);
	guest_write(g, (n + 9) * 8, 8, id + 2);
	guest_write_back(g, (n + 10) * 8, 8);
	guest_write(g, (GUEST_BLOCKS - 1) * 8, 8, id + 3); /* in the other leaf */
}

/* On this host from the servers, and on another one. */
static void verify(struct guest *g)
{
	struct host *there = guest_other(g);
	struct error err;
	uint64_t volume;

	cache_file_evict_all(guest_host(g)->cache);
	guest_verify(g, "here");
	if (host_attach(there, "vol", DM_DEDUP_VOL_READONLY, &volume, &err))
		die("attach on another host: %s", err.text);
	guest_compare(g, there, volume, "on another host");
	if (cache_file_close(there->cache, volume) || host_detach(there, "vol", &err))
		die("detach on another host: %s", err.text);
}

/* ---- the walk ---- */

/* The push of a cut that is struck at step @at; then a push to the end, and all is compared. */
static bool struck_push(struct test *t, struct process *victim, size_t at, enum how how)
{
	bool fired;

	write_some(&t->g);
	arm(t, victim, at, NULL, how);
	guest_push(&t->g);
	fired = disarm(t);
	guest_push(&t->g);
	verify(&t->g);
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
	r = call_raw(t->g.w, &req, &first, &err);
	if (!r && !fp_equal(&first, &t->root))
		die("the same message has another result than the first time");
	printf("# the message again: %s\n", r ? err.text : "the first result, and nothing is done");
	req.mutation = NULL;
	r = world_mutate(t->g.w, &req, &reply, &err);
	net_reply_free(&reply);
	if (r != -ESTALE)
		die("an old commit in a new session: %d %s", r, err.text);
	printf("# its words in a new session: %s\n", err.text);
}

/* Killed after the meta server's commit, before the cache's. Nobody starts it again yet. */
static void push_and_die(struct test *t)
{
	struct process *agent = &guest_host(&t->g)->agent;
	const char *argv[] = { "vmdedup", "--conf", agent->conf, "volume", "push", "vol", NULL };
	pid_t pid;

	arm(t, agent, 0, "commit.done", KILL);
	pthread_mutex_lock(&t->strike.lock);
	t->hold = true;
	pthread_mutex_unlock(&t->strike.lock);
	pid = command_start(t->g.w, argv);
	pthread_mutex_lock(&t->strike.lock);
	while (!t->strike.fired || agent->pid)
		pthread_cond_wait(&t->strike.changed, &t->strike.lock);
	pthread_mutex_unlock(&t->strike.lock);
	kill(pid, SIGKILL);
	command_wait(pid);
	disarm(t);
}

static void lost_answer(struct test *t)
{
	struct guest *g = &t->g;
	uint32_t old[32], i;

	memcpy(old, g->ids, sizeof(old));
	guest_write(g, 0, 32, 77001);
	push_and_die(t);
	/* The same blocks again, with no agent there: they land in new overlays. */
	guest_write(g, 0, 32, 77002);
	process_start(&guest_host(g)->agent);
	host_wait(guest_host(g));
	guest_push(g);
	verify(g);
	memcpy(g->ids, old, sizeof(old));
	guest_write_back(g, 0, 32);
	guest_push(g);
	deliver_again(t);
	process_restart(&guest_host(g)->agent);
	process_restart(&g->w->meta);
	for (i = 0; i < WORLD_DATA; i++)
		process_restart(&g->w->data[i]);
	host_wait(guest_host(g));
	verify(g);
	guest_push(g);
	verify(g);
}

/* push_steps [STRIDE]: every STRIDEth step; a short form for every day. */
int main(int argc, char **argv)
{
	struct test *t = calloc(1, sizeof(*t));
	size_t stride = argc > 1 ? strtoul(argv[1], NULL, 0) : 1;
	struct world *w;

	if (!t || !stride)
		die("cannot start");
	strike_init(&t->strike);
	if (pthread_create(&t->staller, NULL, staller_thread, t))
		die("cannot start");
	guest_new(&t->g, 40, "push_age = 0\n", on_step, t);
	w = t->g.w;
	walk(t, &w->hosts[0].agent, KILL, stride);
	walk(t, &w->meta, KILL, stride);
	walk(t, &w->meta, STALL, stride);
	walk(t, &w->data[0], KILL, stride);
	walk(t, &w->data[1], STALL, stride);
	lost_answer(t);
	guest_end(&t->g);
	return 0;
}
