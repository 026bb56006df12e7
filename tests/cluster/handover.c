// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * handover [STRIDE]: a volume goes from host to host and back, while either agent or the meta
 * server is killed at each change of state, and at every STRIDEth step. At each, exactly one host
 * can open the volume for writing, and it has everything that was acknowledged anywhere before; and the
 * next handover goes through. Then the message of a handover that comes too late, names that the
 * volume was not opened by, and the pause that a guest would see.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "guest.h"
#include "strike.h"

#define MAX_STEPS 100
#define WAIT_MS	  120000

enum who { SOURCE, TARGET, META };
static const char *const who_names[] = { "the agent that gives", "the agent that gets", "meta" };

struct test {
	struct guest g;
	struct strike strike; /* its lock guards all below */
	enum who who;
	char last[32];
};

/* ---- steps ---- */

static void on_step(void *arg, int host, const char *name)
{
	struct test *t = arg;
	struct process *victim = NULL;

	if (!strncmp(name, "message", 7))
		return;
	pthread_mutex_lock(&t->strike.lock);
	if (strike_is(&t->strike, name)) {
		snprintf(t->last, sizeof(t->last), "%.20s of host%d", name, host);
		victim = t->who == META	  ? &t->g.w->meta :
			 t->who == SOURCE ? &guest_host(&t->g)->agent :
					    &guest_other(&t->g)->agent;
	}
	pthread_mutex_unlock(&t->strike.lock);
	if (!victim)
		return;
	/* The one that gives stays dead until its command is, too: nobody goes on with it. */
	if (t->who == SOURCE)
		process_kill(victim);
	else
		process_restart(victim);
	strike_tell(&t->strike);
}

static void arm(struct test *t, enum who who, size_t at, const char *name)
{
	t->who = who; /* nothing is armed */
	strike_arm(&t->strike, at, name);
}

/* ---- handovers ---- */

static void write_some(struct guest *g)
{
	uint32_t id = 1000000 + (uint32_t)guest_random(g, 1 << 24);

	guest_write(g, id % (GUEST_BLOCKS - 8) * 8, 8, id);
	guest_write(g, id % (GUEST_BLOCKS - 8) * 8 + 19, 2, id + 1);
	guest_write(g, (GUEST_BLOCKS - 1) * 8, 8, id + 2);
}

/* Each host tries. How many may. */
static int try_to_open(struct guest *g)
{
	int n = 0, first = g->on;

	for (int i = 0; i < 2; i++) {
		int h = i ? !first : first;
		struct error err = { 0 };
		uint64_t volume;
		int r = host_attach(&g->w->hosts[h], "vol", 0, &volume, &err);

		if (!r) {
			g->on = h;
			g->volume = volume;
			n++;
		} else if (r != -EBUSY) {
			die("host%d may not open it, and says why: %s", h, err.text);
		}
	}
	return n;
}

static pid_t command(struct guest *g)
{
	const char *argv[] = { "vmdedup", "--conf", guest_host(g)->agent.conf, "volume", "handover",
			       "vol", "--to", guest_other(g)->agent.name, NULL };

	return command_start(g->w, argv);
}

/* To the end, by the command, as people would. An agent that was started just now is not known to
 * the meta server at once. */
static void command_to_the_end(struct guest *g)
{
	uint64_t end = clock_mono_ns() + WAIT_MS * 1000000ULL;
	int r;

	while ((r = command_wait(command(g)))) {
		if (clock_mono_ns() > end)
			die("a handover ends with status %d: see %s/commands.log", r, g->w->dir);
		poll(NULL, 0, 100);
	}
}

/* The command, with the victim killed at step @at of it, or @name. False: there is no such step. */
static bool struck(struct test *t, enum who who, size_t at, const char *name)
{
	struct process *source = &guest_host(&t->g)->agent;
	pid_t pid, ended = 0;
	bool fired;

	arm(t, who, at, name);
	pid = command(&t->g);
	if (who == SOURCE) {
		/* It ends by itself when there are fewer steps; else its agent dies, perhaps before
		 * it has begun: that pushes when a device goes. */
		while (!(ended = waitpid(pid, NULL, WNOHANG)) && !strike_has_fired(&t->strike))
			poll(NULL, 0, 2);
		if (strike_has_fired(&t->strike)) {
			while (source->pid)
				poll(NULL, 0, 2);
			if (!ended) {
				kill(pid, SIGKILL);
				command_wait(pid);
			}
			process_start(source);
		}
	} else {
		command_wait(pid);
	}
	fired = strike_disarm(&t->strike);
	host_wait(&t->g.w->hosts[0]);
	host_wait(&t->g.w->hosts[1]);
	return fired;
}

/* One handover that is struck. True: the step was there. *here: the volume had not left. */
static bool round_trip(struct test *t, enum who who, size_t at, const char *name, size_t *here)
{
	struct guest *g = &t->g;
	int from = g->on;
	bool fired;

	write_some(g);
	guest_close(g);
	fired = struck(t, who, at, name);
	if (try_to_open(g) != 1)
		die("not exactly one host can write after the death of %s at step %zu, %s",
		    who_names[who], at, t->last);
	guest_verify(g, "after a death");
	write_some(g);
	if (g->on != from)
		return fired;
	*here += 1;
	/* What stopped is gone on with. */
	guest_close(g);
	command_to_the_end(g);
	if (try_to_open(g) != 1 || g->on == from)
		die("the handover that went on did not get there");
	guest_verify(g, "after it went on");
	return fired;
}

static void walk(struct test *t, enum who who, size_t stride)
{
	size_t at, n = 0, here = 0;
	char last[32] = "none";

	for (at = 0; at < MAX_STEPS && round_trip(t, who, at, NULL, &here); at += stride) {
		n++;
		memcpy(last, t->last, sizeof(last));
	}
	if (!n || at >= MAX_STEPS)
		die("a walk of %zu steps", n);
	printf("# %s killed at %zu steps, the last: %s; %zu times the volume had not left yet\n",
	       who_names[who], n, last, here);
}

/* Where one durable state becomes the next: see pusher_tasks.c. */
static void walk_states(struct test *t, enum who who)
{
	static const char *const steps[] = { "commit.done", "release", "release.done", "handover",
					     "handover.done" };
	size_t here = 0;

	for (size_t i = 0; i < ARRAY_SIZE(steps); i++)
		if (!round_trip(t, who, 0, steps[i], &here))
			die("there was no step %s", steps[i]);
	printf("# %s killed at %zu changes of state; %zu times the volume had not left yet\n",
	       who_names[who], ARRAY_SIZE(steps), here);
}

/* ---- a message that comes too late ---- */

static void late_message(struct test *t)
{
	Vmdedup__LeaseHandover body = VMDEDUP__LEASE_HANDOVER__INIT;
	Vmdedup__ImageGet get = VMDEDUP__IMAGE_GET__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT, ask = VMDEDUP__REQUEST__INIT;
	struct guest *g = &t->g;
	struct host *here = guest_host(g), *there = guest_other(g);
	struct net_reply reply, image;
	struct error err;
	uint64_t epoch;
	int r;

	get.name = (char *)"vol";
	ask.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	ask.image_get = &get;
	if (world_call(g->w, &ask, &image, &err))
		die("%s", err.text);
	epoch = image.header->image->lease_epoch;
	/* Killed where the grant is given up and nothing is said yet; then opened here again. */
	guest_close(g);
	if (!struck(t, SOURCE, 0, "handover"))
		die("the handover was not said");
	if (try_to_open(g) != 1 || guest_host(g) != here)
		die("the volume has left");
	write_some(g);
	body.image = image.header->image->uuid;
	body.cache = (ProtobufCBinaryData){ sizeof(here->uuid.b), here->uuid.b };
	body.to_cache = (ProtobufCBinaryData){ sizeof(there->uuid.b), there->uuid.b };
	body.to_host = (char *)"host";
	body.epoch = epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_HANDOVER;
	req.lease_handover = &body;
	r = world_mutate(g->w, &req, &reply, &err);
	net_reply_free(&reply);
	net_reply_free(&image);
	if (r != -ESTALE)
		die("a handover that came late: %d %s", r, err.text);
	printf("# it came late: %s\n", err.text);
	guest_push(g);
	guest_verify(g, "after a late message");
}

/* ---- the pause ---- */

static uint64_t fetched(struct host *h, uint64_t *from_far)
{
	Vmdedup__AgentStatus body = VMDEDUP__AGENT_STATUS__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;
	uint64_t n;

	req.body_case = VMDEDUP__REQUEST__BODY_AGENT_STATUS;
	req.agent_status = &body;
	if (host_ask(h, &req, &reply, &err))
		die("status: %s", err.text);
	n = reply.header->agent_status->fetches;
	*from_far = reply.header->agent_status->from_data + reply.header->agent_status->from_peer;
	net_reply_free(&reply);
	return n;
}

static double ms_since(uint64_t ns)
{
	return (double)(clock_mono_ns() - ns) / 1e6;
}

static void pause_of_a_guest(struct guest *g)
{
	Vmdedup__VolumeHandoverReply said;
	uint64_t last, far, far_after;
	struct error err;
	double given, opened;
	struct host *to;

	guest_verify(g, "before"); /* it is all here then, and nothing of it there */
	write_some(g);
	guest_push(g);
	for (int i = 0; guest_hand_over(g, "vol", WAIT_MS, &said, &err); i++) {
		if (i == WAIT_MS / 100)
			die("warm: %s", err.text);
		poll(NULL, 0, 100);
	}
	printf("# warmed while the guest runs: %llu of %llu blocks, %llu from peers\n",
	       (unsigned long long)said.warm, (unsigned long long)said.blocks,
	       (unsigned long long)said.from_peers);
	if (said.warm != said.blocks)
		die("the target is not warm");
	to = guest_other(g);
	write_some(g);
	last = clock_mono_ns();
	guest_close(g);
	if (guest_hand_over(g, "vol", 0, NULL, &err))
		die("handover: %s", err.text);
	given = ms_since(last);
	g->on = !g->on;
	if (host_attach(to, "vol", 0, &g->volume, &err))
		die("attach: %s", err.text);
	opened = ms_since(last);
	guest_write(g, 0, 8, 99);
	printf("# pause of a guest: %.1f ms from its last write here to its first there (%.1f ms pushed "
	       "and given away, %.1f ms opened)\n", ms_since(last), given, opened - given);
	fetched(to, &far);
	guest_verify(g, "there");
	fetched(to, &far_after);
	printf("# its reads there: %llu of %d blocks came from afar\n",
	       (unsigned long long)(far_after - far), GUEST_BLOCKS);
	if (far_after - far > 8)
		die("the target was not warm");
}

/* ---- other names ---- */

static void rename_image(struct guest *g, const char *from, const char *to)
{
	if (vmdedup(g->w, "image", "rename", from, to, NULL))
		die("rename: see %s/commands.log", g->w->dir);
}

/* The agent dies in the push that the close asks for. */
static void close_unpushed(struct test *t)
{
	struct host *h = guest_host(&t->g);
	size_t count;

	write_some(&t->g);
	arm(t, SOURCE, 0, "commit");
	guest_close(&t->g);
	while (!strike_has_fired(&t->strike) || h->agent.pid)
		poll(NULL, 0, 2);
	strike_disarm(&t->strike);
	process_start(&h->agent);
	host_wait(h);
	if (!host_unpushed(h, &count) || count != 1)
		die("there is nothing to lose");
}

/* A name that the volume was not opened by: it is the image's all the same. */
static void other_names(struct test *t)
{
	struct guest *g = &t->g;
	struct error err;

	close_unpushed(t);
	rename_image(g, "vol", "renamed");
	if (guest_hand_over(g, "renamed", 0, NULL, &err))
		die("handover by another name: %s", err.text);
	guest_follow(g, "renamed", "after a handover by another name");
	close_unpushed(t);
	rename_image(g, "renamed", "vol");
	if (host_detach(guest_host(g), "vol", &err))
		die("detach by another name: %s", err.text);
	guest_follow(g, "vol", "after a detach by another name");
}

/* ---- the whole ---- */

int main(int argc, char **argv)
{
	struct test *t = calloc(1, sizeof(*t));
	size_t stride = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;

	if (!t)
		die("out of memory");
	strike_init(&t->strike);
	guest_new(&t->g, GUEST_BLOCKS, "push_age = 0\nlisten = tcp://127.0.0.1:*\n", on_step, t);
	pause_of_a_guest(&t->g);
	other_names(t);
	for (enum who who = SOURCE; who <= META; who++) {
		walk_states(t, who);
		if (stride)
			walk(t, who, stride);
	}
	late_message(t);
	guest_end(&t->g);
	return 0;
}
