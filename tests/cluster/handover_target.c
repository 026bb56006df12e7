// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * handover_target: to whom a volume goes, and when. A cache that was made anew, under the same
 * address, after it was warmed; switches that come while other volumes are warmed; and when the command
 * waits until the target is warm.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "guest.h"

#define WAIT_MS 120000

struct test {
	struct guest g;
	pthread_mutex_t lock; /* guards: */
	unsigned int warms;   /* begun, on any host */
};

static void on_step(void *arg, int host, const char *name)
{
	struct test *t = arg;

	(void)host;
	pthread_mutex_lock(&t->lock);
	t->warms += !strcmp(name, "warm.done");
	pthread_mutex_unlock(&t->lock);
}

static unsigned int warms(struct test *t)
{
	unsigned int n;

	pthread_mutex_lock(&t->lock);
	n = t->warms;
	pthread_mutex_unlock(&t->lock);
	return n;
}

/* Says it again until the meta server has heard of the other host's agent. */
static void hand_over_in_time(struct guest *g, uint64_t warm_ms, const char *what)
{
	uint64_t end = clock_mono_ns() + WAIT_MS * 1000000ULL;
	struct error err;

	while (guest_hand_over(g, "vol", warm_ms, NULL, &err)) {
		if (clock_mono_ns() > end)
			die("%s: %s", what, err.text);
		poll(NULL, 0, 100);
	}
}

/* ---- a cache that is not there any more ---- */

/* Where its agent serves peers stays as it is. */
static void keep_endpoint(struct guest *g, struct host *h)
{
	Vmdedup__HostFind find = VMDEDUP__HOST_FIND__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;
	char line[500];

	find.host = h->agent.name;
	req.body_case = VMDEDUP__REQUEST__BODY_HOST_FIND;
	req.host_find = &find;
	if (world_call(g->w, &req, &reply, &err))
		die("%s is not found: %s", h->agent.name, err.text);
	if (reply.header->host_find->n_addresses != 1)
		die("%s is known %zu times", h->agent.name, reply.header->host_find->n_addresses);
	snprintf(line, sizeof(line), "sed -i 's|^listen = .*|listen = %s|' %s",
		 reply.header->host_find->addresses[0]->endpoint, h->agent.conf);
	net_reply_free(&reply);
	if (vmdedup_killed(g->w, 0, (const char *const[]){ "sh", "-c", line, NULL }))
		die("%s", line);
}

/* Warmed, then its cache is made anew, under the same address: the new one gets the lease. */
static void other_cache(struct test *t)
{
	struct guest *g = &t->g;
	struct host *to = guest_other(g);
	struct uuid before = to->uuid;

	guest_verify(g, "before"); /* it is all here then */
	hand_over_in_time(g, WAIT_MS, "it is not warmed");
	keep_endpoint(g, to);
	host_lose(g->w, to);
	if (uuid_equal(&before, &to->uuid))
		die("that is the same cache");
	guest_write(g, 80, 8, 5001);
	guest_close(g);
	hand_over_in_time(g, 0, "handover to a cache that was made anew");
	guest_follow(g, "vol", "after its cache was made anew");
	printf("# the cache that was found is gone: its successor has the volume\n");
}

/* ---- the order of what is asked for ---- */

struct asked {
	bool answered;
	int r;
	char text[200];
};

static void answered(void *arg, int r, struct net_reply *reply)
{
	struct asked *a = arg;

	a->answered = true;
	a->r = r ? r : -reply->header->error;
	if (a->r)
		snprintf(a->text, sizeof(a->text), "%s", r ? strerror(-r) : reply->header->error_text);
	if (reply)
		net_reply_free(reply);
}

/* All in one connection: they are in the queue in the order in which they are asked for. */
static void ask(struct guest *g, const char *name, bool warm, struct asked *a)
{
	static uint64_t nonce = 1;
	Vmdedup__VolumeHandover body = VMDEDUP__VOLUME_HANDOVER__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;

	*a = (struct asked){ 0 };
	body.name = (char *)name;
	body.to = guest_other(g)->agent.name;
	body.warm = warm;
	body.wait_ms = WAIT_MS;
	body.nonce = nonce++;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER;
	req.volume_handover = &body;
	if (net_client_submit(guest_host(g)->client, &req, NULL, 0, 2 * WAIT_MS, answered, a))
		die("cannot ask for a handover of %s", name);
}

static void wait_answered(struct guest *g, const struct asked *a)
{
	while (!a->answered)
		net_client_run(guest_host(g)->client, -1);
}

/* A volume that is closed here, and has been pushed. */
static void make_second(struct guest *g, const char *name)
{
	struct host *h = guest_host(g);
	uint64_t volume;
	struct error err;

	if (vmdedup(g->w, "image", "clone", "base", name, NULL) ||
	    host_attach(h, name, 0, &volume, &err) ||
	    cache_file_write(h->cache, volume, 0, g->buf, 4096) ||
	    host_push(h, name, NULL, &err) || cache_file_close(h->cache, volume))
		die("no volume %s", name);
}

/*
 * The other host takes in no block: what is warmed there does not end. A switch that comes after
 * one that is warmed, and after one that is to be warmed next, is done while neither has ended.
 */
static void switch_before_warming(struct test *t)
{
	struct asked warm, next, last, first, second;
	struct guest *g = &t->g;
	struct host *to = guest_other(g);
	unsigned int begun = warms(t);

	make_second(g, "second");
	make_second(g, "third");
	guest_write(g, 160, 400, 6001); /* which that host has not */
	guest_push(g);
	cache_host_hold(to->served, true);
	ask(g, "vol", true, &warm);
	while (warms(t) == begun && !warm.answered)
		net_client_run(guest_host(g)->client, 10);
	ask(g, "vol", true, &next);
	ask(g, "second", false, &first);
	ask(g, "vol", true, &last);
	ask(g, "third", false, &second);
	wait_answered(g, &first);
	wait_answered(g, &second);
	if (first.r || second.r)
		die("a switch while others are warmed: %s%s", first.text, second.text);
	if (warm.answered || next.answered || last.answered || warms(t) != begun + 1)
		die("a switch waited until others were warm");
	cache_host_hold(to->served, false);
	wait_answered(g, &warm);
	wait_answered(g, &next);
	wait_answered(g, &last);
	if (warm.r || next.r || last.r)
		die("a warming that made way: %s%s%s", warm.text, next.text, last.text);
	if (warms(t) != begun + 3)
		die("%u of 3 were warmed", warms(t) - begun);
	printf("# two switches came before what was warmed\n");
}

/* The two are on the other host now. */
static void end_second(struct guest *g, const char *name)
{
	struct host *h = guest_other(g);
	uint64_t volume;
	struct error err;

	if (host_attach(h, name, 0, &volume, &err) || cache_file_close(h->cache, volume) ||
	    host_detach(h, name, &err))
		die("%s is not on the other host: %s", name, err.text);
	if (vmdedup(g->w, "image", "rm", name, NULL))
		die("rm of %s: see %s/commands.log", name, g->w->dir);
}

/* ---- whether the command waits ---- */

/* @a to @c: options; NULL: no more. */
static pid_t handover_command(struct guest *g, const char *a, const char *b, const char *c)
{
	const char *argv[] = { "vmdedup", "--conf", guest_host(g)->agent.conf, "volume", "handover",
			       "vol", "--to", guest_other(g)->agent.name, a, b, c, NULL };

	return command_start(g->w, argv);
}

static void ends(struct guest *g, pid_t pid, const char *what)
{
	uint64_t end = clock_mono_ns() + WAIT_MS * 1000000ULL;
	int status;

	while (!waitpid(pid, &status, WNOHANG)) {
		if (clock_mono_ns() > end)
			die("%s: it waits for a target that is not warm", what);
		poll(NULL, 0, 10);
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		die("%s: status 0x%x: see %s/commands.log", what, status, g->w->dir);
}

static void wait_warms(struct test *t, unsigned int n)
{
	while (warms(t) < n)
		poll(NULL, 0, 10);
}

/*
 * The other host takes in no block, and so is never warm. Waited for is that while the guest runs, and
 * nobody said otherwise; one that has stopped, and so has no device, is waiting itself.
 */
static void choices(struct test *t)
{
	struct guest *g = &t->g;
	struct cache_host *to = guest_other(g)->served;
	unsigned int begun = warms(t);
	int status;
	pid_t pid;

	guest_write(g, 200, 400, 7001); /* which that host has not */
	cache_host_hold(to, true);
	pid = handover_command(g, "--prepare", NULL, NULL);
	wait_warms(t, begun + 1);
	ends(g, handover_command(g, "--prepare", "--cold", NULL), "--cold");
	if (warms(t) != begun + 1)
		die("--cold has warmed");
	if (waitpid(pid, &status, WNOHANG))
		die("a target that is not warm was not waited for");
	cache_host_hold(to, false);
	ends(g, pid, "--prepare");

	guest_write(g, 200, 400, 7002);
	cache_host_hold(to, true);
	begun = warms(t);
	ends(g, handover_command(g, "--prepare", "--warm-wait", "0"), "--warm-wait 0");
	if (warms(t) == begun)
		die("--warm-wait 0 has not warmed");
	guest_write(g, 200, 400, 7003);
	guest_close(g);
	ends(g, handover_command(g, NULL, NULL, NULL), "without a device");
	cache_host_hold(to, false);
	guest_follow(g, "vol", "after a handover that did not wait");
	printf("# a target that is not warm is waited for while the guest runs, unless told otherwise\n");
}

/* ---- bounds ---- */

static void bounds(struct guest *g)
{
	struct host *h = guest_host(g);
	const char *argv[] = { "vmdedup", "--conf", h->agent.conf, "volume", "handover", "vol", "--to",
			       guest_other(g)->agent.name, "--prepare", "--warm-wait", "3601", NULL };
	struct error err;
	int r = guest_hand_over(g, "vol", 3600 * 1000 + 1, NULL, &err);

	if (r != -EINVAL)
		die("a host is waited for for longer than an hour: %d %s", r, err.text);
	printf("# %s\n", err.text);
	r = vmdedup_killed(g->w, 0, argv);
	if (r != 2)
		die("--warm-wait 3601: exit status %d", r);
}

int main(void)
{
	struct test *t = calloc(1, sizeof(*t));

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!t || pthread_mutex_init(&t->lock, NULL))
		die("cannot start");
	guest_new(&t->g, GUEST_BLOCKS, "push_age = 0\nlisten = tcp://127.0.0.1:*\n", on_step, t);
	bounds(&t->g);
	other_cache(t);
	switch_before_warming(t);
	end_second(&t->g, "second");
	end_second(&t->g, "third");
	choices(t);
	guest_end(&t->g);
	return 0;
}
