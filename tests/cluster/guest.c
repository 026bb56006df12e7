// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "guest.h"

struct host *guest_host(struct guest *g)
{
	return &g->w->hosts[g->on];
}

struct host *guest_other(struct guest *g)
{
	return &g->w->hosts[!g->on];
}

uint64_t guest_random(struct guest *g, uint64_t n)
{
	g->rng = g->rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return (g->rng >> 33) % n;
}

/* ---- its I/O ---- */

void guest_write_back(struct guest *g, uint64_t first, uint64_t count)
{
	int r;

	content_fill(g->buf, g->ids, first, count);
	r = cache_file_write(guest_host(g)->cache, g->volume, first * 512, g->buf, count * 512);
	if (r)
		die("write: %s", strerror(-r));
}

void guest_write(struct guest *g, uint64_t first, uint64_t count, uint32_t id)
{
	for (uint64_t s = first; s < first + count; s++)
		g->ids[s] = id;
	guest_write_back(g, first, count);
}

void guest_compare(struct guest *g, struct host *h, uint64_t volume, const char *when)
{
	int r = cache_file_read(h->cache, volume, 0, g->seen, GUEST_SECTORS * 512);

	if (r)
		die("read %s: %s", when, strerror(-r));
	content_fill(g->buf, g->ids, 0, GUEST_SECTORS);
	for (uint64_t s = 0; s < GUEST_SECTORS; s++)
		if (memcmp(g->buf + s * 512, g->seen + s * 512, 512))
			die("%s: sector %llu is not what was written", when, (unsigned long long)s);
}

void guest_verify(struct guest *g, const char *when)
{
	guest_compare(g, guest_host(g), g->volume, when);
}

/* ---- its volume ---- */

void guest_push(struct guest *g)
{
	struct error err;

	if (host_push(guest_host(g), "vol", NULL, &err))
		die("push: %s", err.text);
}

void guest_close(struct guest *g)
{
	int r = cache_file_close(guest_host(g)->cache, g->volume);

	if (r)
		die("close: %s", strerror(-r));
}

int guest_hand_over(struct guest *g, const char *name, uint64_t warm_ms,
		    Vmdedup__VolumeHandoverReply *said, struct error *err)
{
	Vmdedup__VolumeHandover body = VMDEDUP__VOLUME_HANDOVER__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	uint64_t end = clock_mono_ns() + 120 * 1000000000ULL;
	struct net_reply reply = { 0 };
	int r;

	body.name = (char *)name;
	body.to = guest_other(g)->agent.name;
	body.warm = warm_ms != 0;
	body.wait_ms = warm_ms;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER;
	req.volume_handover = &body;
	/* Nothing was done if the target stood still for longer than it is waited for. */
	while ((r = host_ask(guest_host(g), &req, &reply, err)) == -EHOSTUNREACH &&
	       clock_mono_ns() < end)
		net_reply_free(&reply);
	if (!r && said)
		*said = *reply.header->volume_handover;
	if (!r && warm_ms && *reply.header->volume_handover->cold)
		r = error_set(err, -EAGAIN, "%s", reply.header->volume_handover->cold);
	net_reply_free(&reply);
	return r;
}

void guest_follow(struct guest *g, const char *name, const char *when)
{
	struct error err;
	size_t count;

	if (host_unpushed(guest_host(g), &count) || count)
		die("%s: its volume is still here", when);
	g->on = !g->on;
	if (host_attach(guest_host(g), name, 0, &g->volume, &err))
		die("%s: %s", when, err.text);
	guest_verify(g, when);
}

static void make_images(struct guest *g, unsigned int contents)
{
	char path[200];
	int fd;

	for (uint64_t s = 0; s < GUEST_SECTORS; s++)
		g->ids[s] = s / 8 % 5 ? (uint32_t)(s / 8 % contents) + 1 : 0;
	content_fill(g->buf, g->ids, 0, GUEST_SECTORS);
	snprintf(path, sizeof(path), "%s/content", g->w->dir);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, g->buf, GUEST_SECTORS * 512) != GUEST_SECTORS * 512 || close(fd))
		die("%s: %s", path, strerror(errno));
	if (vmdedup(g->w, "image", "import", path, "base", NULL) ||
	    vmdedup(g->w, "image", "clone", "base", "vol", NULL))
		die("no image: see %s/commands.log", g->w->dir);
}

void guest_new(struct guest *g, unsigned int contents, const char *agent_conf,
	       void (*step)(void *arg, int host, const char *name), void *arg)
{
	struct error err;

	g->buf = malloc(GUEST_SECTORS * 512);
	g->seen = malloc(GUEST_SECTORS * 512);
	if (!g->buf || !g->seen)
		die("out of memory");
	g->w = world_new(16 << 20, agent_conf, step, arg);
	make_images(g, contents);
	if (host_attach(guest_host(g), "vol", 0, &g->volume, &err))
		die("attach: %s", err.text);
}

void guest_end(struct guest *g)
{
	struct error err;

	guest_close(g);
	if (host_detach(guest_host(g), "vol", &err))
		die("detach: %s", err.text);
	if (vmdedup(g->w, "cluster", "check", NULL))
		die("cluster check: see %s/commands.log", g->w->dir);
	if (vmdedup(g->w, "image", "rm", "vol", "base", NULL))
		die("rm: see %s/commands.log", g->w->dir);
	world_empty(g->w);
	world_free(g->w);
	free(g->buf);
	free(g->seen);
}
