// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * handover [STRIDE]: a volume goes from host to host and back, while either agent or the meta server
 * is killed at each change of state, and at every STRIDEth step. At each, exactly one host can open the volume for writing, and it
 * has everything that was acknowledged anywhere before; and the next handover goes through. Then the
 * message of a handover that comes too late, names that the volume was not opened by, and the pause that
 * a guest would see.
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
#include "world.h"

#define BLOCKS	  300
#define SECTORS	  (BLOCKS * 8)
#define MAX_STEPS 100
#define WAIT_MS	  30000

enum who { SOURCE, TARGET, META };
static const char *const who_names[] = { "the agent that gives", "the agent that gets", "meta" };

struct test {
	struct world *w;
	uint32_t ids[SECTORS];
	uint8_t *buf, *seen;
	int on; /* the host that has it */
	uint64_t volume, rng;

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t changed;
	bool armed, fired;
	enum who who;
	size_t at, break_at;
	const char *break_name; /* instead of a number */
	char last[32];
};

static struct host *host_of(struct test *t, int n)
{
	return &t->w->hosts[n];
}

/* ---- steps ---- */

static void on_step(void *arg, int host, const char *name)
{
	struct test *t = arg;
	struct process *victim = NULL;

	if (!strncmp(name, "message", 7))
		return;
	pthread_mutex_lock(&t->lock);
	if (t->armed && !t->fired &&
	    (t->break_name ? !strcmp(name, t->break_name) : t->at++ == t->break_at)) {
		t->fired = true;
		snprintf(t->last, sizeof(t->last), "%.20s of host%d", name, host);
		victim = t->who == META	  ? &t->w->meta :
			 t->who == SOURCE ? &host_of(t, t->on)->agent :
					    &host_of(t, !t->on)->agent;
	}
	pthread_mutex_unlock(&t->lock);
	if (!victim)
		return;
	/* The one that gives stays dead until its command is, too: nobody goes on with it. */
	if (t->who == SOURCE)
		process_kill(victim);
	else
		process_restart(victim);
	pthread_mutex_lock(&t->lock);
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

static void arm(struct test *t, enum who who, size_t at, const char *name)
{
	pthread_mutex_lock(&t->lock);
	t->armed = true;
	t->fired = false;
	t->who = who;
	t->at = 0;
	t->break_at = at;
	t->break_name = name;
	pthread_mutex_unlock(&t->lock);
}

static bool has_fired(struct test *t)
{
	bool fired;

	pthread_mutex_lock(&t->lock);
	fired = t->fired;
	pthread_mutex_unlock(&t->lock);
	return fired;
}

static bool disarm(struct test *t)
{
	bool fired;

	pthread_mutex_lock(&t->lock);
	fired = t->fired;
	t->armed = false;
	pthread_mutex_unlock(&t->lock);
	return fired;
}

/* ---- the guest ---- */

static void write_ids(struct test *t, uint64_t first, uint64_t count, uint32_t id)
{
	int r;

	for (uint64_t s = first; s < first + count; s++)
		t->ids[s] = id;
	content_fill(t->buf, t->ids, first, count);
	r = cache_file_write(host_of(t, t->on)->cache, t->volume, first * 512, t->buf, count * 512);
	if (r)
		die("write: %s", strerror(-r));
}

static void write_some(struct test *t)
{
	uint32_t id;

	t->rng = t->rng * 6364136223846793005ULL + 1442695040888963407ULL;
	id = 1000000 + (uint32_t)(t->rng >> 40);
	write_ids(t, id % (BLOCKS - 8) * 8, 8, id);
	write_ids(t, id % (BLOCKS - 8) * 8 + 19, 2, id + 1);
	write_ids(t, (BLOCKS - 1) * 8, 8, id + 2);
}

static void verify(struct test *t, const char *when)
{
	int r = cache_file_read(host_of(t, t->on)->cache, t->volume, 0, t->seen, SECTORS * 512);

	if (r)
		die("read %s: %s", when, strerror(-r));
	content_fill(t->buf, t->ids, 0, SECTORS);
	for (uint64_t s = 0; s < SECTORS; s++)
		if (memcmp(t->buf + s * 512, t->seen + s * 512, 512))
			die("%s: sector %llu is not what was written", when, (unsigned long long)s);
}

static void close_it(struct test *t)
{
	int r = cache_file_close(host_of(t, t->on)->cache, t->volume);

	if (r)
		die("close: %s", strerror(-r));
}

/* Each host tries. How many may. */
static int try_to_open(struct test *t)
{
	int n = 0, first = t->on;

	for (int i = 0; i < 2; i++) {
		int h = i ? !first : first;
		struct error err = { 0 };
		uint64_t volume;
		int r = host_attach(host_of(t, h), "vol", 0, &volume, &err);

		if (!r) {
			t->on = h;
			t->volume = volume;
			n++;
		} else if (r != -EBUSY) {
			die("host%d may not open it, and says why: %s", h, err.text);
		}
	}
	return n;
}

/* ---- handovers ---- */

static int hand_over(struct test *t, const char *name, bool warm, Vmdedup__VolumeHandoverReply *said,
		     struct error *err)
{
	Vmdedup__VolumeHandover body = VMDEDUP__VOLUME_HANDOVER__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	body.to = t->on ? (char *)"host0" : (char *)"host1";
	body.warm = warm;
	body.wait_ms = WAIT_MS;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER;
	req.volume_handover = &body;
	r = host_ask(host_of(t, t->on), &req, &reply, err);
	if (!r && said)
		*said = *reply.header->volume_handover; /* numbers only are good */
	if (!r && warm && *reply.header->volume_handover->cold)
		r = error_set(err, -EAGAIN, "%s", reply.header->volume_handover->cold);
	net_reply_free(&reply);
	return r;
}

/* To the end, by the command, as people would. An agent that was started just now is not known to the
 * meta server at once. */
static void command_to_the_end(struct test *t)
{
	char *conf = host_of(t, t->on)->agent.conf;
	const char *argv[] = { "vmdedup", "--conf", conf, "volume", "handover", "vol", "--to",
			       t->on ? "host0" : "host1", NULL };
	uint64_t end = clock_mono_ns() + WAIT_MS * 1000000ULL;
	int r;

	while ((r = vmdedup_killed(t->w, 0, argv))) {
		if (clock_mono_ns() > end)
			die("a handover ends with status %d: see %s/commands.log", r, t->w->dir);
		poll(NULL, 0, 100);
	}
}

static pid_t command_start(struct test *t)
{
	char log[100];
	pid_t pid;

	snprintf(log, sizeof(log), "%s/commands.log", t->w->dir);
	pid = fork();
	if (!pid) {
		int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);

		dup2(fd, 1);
		dup2(fd, 2);
		execlp("vmdedup", "vmdedup", "--conf", host_of(t, t->on)->agent.conf, "volume",
		       "handover", "vol", "--to", t->on ? "host0" : "host1", NULL);
		_exit(127);
	}
	return pid;
}

/* The command, with the victim killed at step @at of it, or @name. False: there is no such step. */
static bool struck(struct test *t, enum who who, size_t at, const char *name)
{
	struct process *source = &host_of(t, t->on)->agent;
	pid_t pid, ended = 0;
	bool fired;

	arm(t, who, at, name);
	pid = command_start(t);
	if (who == SOURCE) {
		/* It ends by itself when there are fewer steps; else its agent dies, perhaps before
		 * it has begun: that pushes when a device goes. */
		while (!(ended = waitpid(pid, NULL, WNOHANG)) && !has_fired(t))
			poll(NULL, 0, 2);
		if (has_fired(t)) {
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
	fired = disarm(t);
	host_wait(host_of(t, 0));
	host_wait(host_of(t, 1));
	return fired;
}

/* One handover that is struck. True: the step was there. *here: the volume had not left. */
static bool round_trip(struct test *t, enum who who, size_t at, const char *name, size_t *here)
{
	int from = t->on;
	bool fired;

	write_some(t);
	close_it(t);
	fired = struck(t, who, at, name);
	if (try_to_open(t) != 1)
		die("not exactly one host can write after the death of %s at step %zu, %s",
		    who_names[who], at, t->last);
	verify(t, "after a death");
	write_some(t);
	if (t->on != from)
		return fired;
	*here += 1;
	/* What stopped is gone on with. */
	close_it(t);
	command_to_the_end(t);
	if (try_to_open(t) != 1 || t->on == from)
		die("the handover that went on did not get there");
	verify(t, "after it went on");
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
	struct host *here = host_of(t, t->on), *there = host_of(t, !t->on);
	struct net_reply reply, image;
	struct error err;
	uint64_t epoch;
	int r;

	get.name = (char *)"vol";
	ask.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	ask.image_get = &get;
	if (world_call(t->w, &ask, &image, &err))
		die("%s", err.text);
	epoch = image.header->image->lease_epoch;
	/* Killed where the grant is given up and nothing is said yet; then opened here again. */
	close_it(t);
	if (!struck(t, SOURCE, 0, "handover"))
		die("the handover was not said");
	if (try_to_open(t) != 1 || host_of(t, t->on) != here)
		die("the volume has left");
	write_some(t);
	body.image = image.header->image->uuid;
	body.cache = (ProtobufCBinaryData){ sizeof(here->uuid.b), here->uuid.b };
	body.to_cache = (ProtobufCBinaryData){ sizeof(there->uuid.b), there->uuid.b };
	body.to_host = (char *)"host";
	body.epoch = epoch;
	req.body_case = VMDEDUP__REQUEST__BODY_LEASE_HANDOVER;
	req.lease_handover = &body;
	r = world_mutate(t->w, &req, &reply, &err);
	net_reply_free(&reply);
	net_reply_free(&image);
	if (r != -ESTALE)
		die("a handover that came late: %d %s", r, err.text);
	printf("# it came late: %s\n", err.text);
	if (host_push(here, "vol", NULL, &err))
		die("push after it: %s", err.text);
	verify(t, "after a late message");
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

static void pause_of_a_guest(struct test *t)
{
	Vmdedup__VolumeHandoverReply said;
	uint64_t last, far, far_after;
	struct error err;
	double given, opened;
	struct host *to;

	verify(t, "before"); /* it is all here then, and nothing of it there */
	write_some(t);
	if (host_push(host_of(t, t->on), "vol", NULL, &err))
		die("push: %s", err.text);
	for (int i = 0; hand_over(t, "vol", true, &said, &err); i++) {
		if (i == WAIT_MS / 100)
			die("warm: %s", err.text);
		poll(NULL, 0, 100);
	}
	printf("# warmed while the guest runs: %llu of %llu blocks, %llu from peers\n",
	       (unsigned long long)said.warm, (unsigned long long)said.blocks,
	       (unsigned long long)said.from_peers);
	if (said.warm != said.blocks)
		die("the target is not warm");
	to = host_of(t, !t->on);
	write_some(t);
	last = clock_mono_ns();
	close_it(t);
	if (hand_over(t, "vol", false, NULL, &err))
		die("handover: %s", err.text);
	given = ms_since(last);
	t->on = !t->on;
	if (host_attach(to, "vol", 0, &t->volume, &err))
		die("attach: %s", err.text);
	opened = ms_since(last);
	write_ids(t, 0, 8, 99);
	printf("# pause of a guest: %.1f ms from its last write here to its first there (%.1f ms pushed "
	       "and given away, %.1f ms opened)\n", ms_since(last), given, opened - given);
	fetched(to, &far);
	verify(t, "there");
	fetched(to, &far_after);
	printf("# its reads there: %llu of %d blocks came from afar\n",
	       (unsigned long long)(far_after - far), BLOCKS);
	if (far_after - far > 8)
		die("the target was not warm");
}

/* ---- other names ---- */

static void rename_image(struct test *t, const char *from, const char *to)
{
	if (vmdedup(t->w, "image", "rename", from, to, NULL))
		die("rename: see %s/commands.log", t->w->dir);
}

static uint64_t unpushed(struct host *h, size_t *count)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	int r = cache_volumes(h->cache, &infos, count);

	if (r)
		die("volumes: %s", strerror(-r));
	return *count ? infos[0].dirty_bytes : 0;
}

/* The agent dies in the push that the close asks for. */
static void close_unpushed(struct test *t)
{
	struct host *h = host_of(t, t->on);
	size_t count;

	write_some(t);
	arm(t, SOURCE, 0, "commit");
	close_it(t);
	while (!has_fired(t) || h->agent.pid)
		poll(NULL, 0, 2);
	disarm(t);
	process_start(&h->agent);
	host_wait(h);
	if (!unpushed(h, &count) || count != 1)
		die("there is nothing to lose");
}

static void gone_to_the_other(struct test *t, const char *name, const char *how)
{
	struct host *from = host_of(t, t->on);
	struct error err;
	size_t count;

	if (unpushed(from, &count) || count)
		die("%s: its volume is still here", how);
	t->on = !t->on;
	if (host_attach(host_of(t, t->on), name, 0, &t->volume, &err))
		die("%s: %s", how, err.text);
	verify(t, how);
}

/* A name that the volume was not opened by: it is the image's all the same. */
static void other_names(struct test *t)
{
	struct error err;

	close_unpushed(t);
	rename_image(t, "vol", "renamed");
	if (hand_over(t, "renamed", false, NULL, &err))
		die("handover by another name: %s", err.text);
	gone_to_the_other(t, "renamed", "after a handover by another name");
	close_unpushed(t);
	rename_image(t, "renamed", "vol");
	if (host_detach(host_of(t, t->on), "vol", &err))
		die("detach by another name: %s", err.text);
	gone_to_the_other(t, "vol", "after a detach by another name");
}

/* ---- the whole ---- */

static void make_volume(struct test *t)
{
	char path[200];
	struct error err;
	int fd;

	for (uint64_t s = 0; s < SECTORS; s++)
		t->ids[s] = s / 8 % 5 ? (uint32_t)(s / 8) + 1 : 0;
	snprintf(path, sizeof(path), "%s/content", t->w->dir);
	content_fill(t->buf, t->ids, 0, SECTORS);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, t->buf, SECTORS * 512) != SECTORS * 512 || close(fd))
		die("%s: %s", path, strerror(errno));
	if (vmdedup(t->w, "image", "import", path, "vol", NULL))
		die("no image: see %s/commands.log", t->w->dir);
	if (host_attach(host_of(t, 0), "vol", 0, &t->volume, &err))
		die("attach: %s", err.text);
}

static void finish(struct test *t)
{
	struct error err;

	close_it(t);
	if (host_detach(host_of(t, t->on), "vol", &err))
		die("detach: %s", err.text);
	if (vmdedup(t->w, "cluster", "check", NULL) || vmdedup(t->w, "image", "rm", "vol", NULL))
		die("see %s/commands.log", t->w->dir);
	world_empty(t->w);
	world_free(t->w);
}

int main(int argc, char **argv)
{
	struct test *t = calloc(1, sizeof(*t));
	size_t stride = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!t || pthread_mutex_init(&t->lock, NULL) ||
	    pthread_cond_init(&t->changed, NULL))
		die("cannot start");
	t->buf = malloc(SECTORS * 512);
	t->seen = malloc(SECTORS * 512);
	t->w = world_new(16 << 20, "push_age = 0\nlisten = tcp://127.0.0.1:*\n", on_step, t);
	make_volume(t);
	pause_of_a_guest(t);
	other_names(t);
	for (enum who who = SOURCE; who <= META; who++) {
		walk_states(t, who);
		if (stride)
			walk(t, who, stride);
	}
	late_message(t);
	finish(t);
	return 0;
}
