// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * volumes CASE: what happens to volumes on two hosts of a fleet of real processes: clones and
 * snapshots of what runs, a lost lease and its recovery, one cache for many clones, servers that are full or away,
 * and collections between the steps of a push of exactly what they collect.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "world.h"

#define BLOCKS	300
#define SECTORS (BLOCKS * 8)
#define WAIT_MS 60000

struct test {
	struct world *w;
	uint32_t ids[SECTORS]; /* of the image that the case is about */
	uint8_t *buf, *seen;
	bool collect; /* at each step of host 0's push */
	unsigned int steps, collections, stride;
	const char *kill_at; /* host 0's agent, at this step, or NULL; when that came so often before */
	unsigned int kill_after;
};

/* ---- parts ---- */

/* A line of shell, with the configuration of host @h (NULL: a client without an agent). */
static int shell(struct test *t, struct host *h, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static int shell(struct test *t, struct host *h, const char *fmt, ...)
{
	char line[1024], whole[2048];
	va_list ap;
	int r;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	snprintf(whole, sizeof(whole), "set -e -o pipefail; cd %s; export VMDEDUP_CONF=%s; { %s; } >>%s/commands.log 2>&1",
		 t->w->dir, h ? h->agent.conf : t->w->conf, line, t->w->dir);
	r = vmdedup_killed(t->w, 0, (const char *const[]){ "bash", "-c", whole, NULL });
	return r;
}

#define SHELL(t, h, ...)                                                            \
	do {                                                                        \
		int shell_r = shell(t, h, __VA_ARGS__);                              \
		if (shell_r)                                                        \
			die("line %d: exit status %d: see %s/commands.log", __LINE__, \
			    shell_r, (t)->w->dir);                                  \
	} while (0)

static void write_ids(struct test *t, struct host *h, uint64_t volume, uint64_t first,
		      uint64_t count, uint32_t id)
{
	int r;

	for (uint64_t s = first; s < first + count; s++)
		t->ids[s] = id;
	content_fill(t->buf, t->ids, first, count);
	r = cache_file_write(h->cache, volume, first * 512, t->buf, count * 512);
	if (r)
		die("write: %s", strerror(-r));
}

static void expect_content(struct test *t, struct host *h, uint64_t volume, const uint32_t *ids)
{
	int r = cache_file_read(h->cache, volume, 0, t->seen, SECTORS * 512);

	if (r)
		die("read: %s", strerror(-r));
	content_fill(t->buf, ids, 0, SECTORS);
	for (uint64_t s = 0; s < SECTORS; s++)
		if (memcmp(t->buf + s * 512, t->seen + s * 512, 512))
			die("%s: sector %llu is not what was written", h->agent.name,
			    (unsigned long long)s);
}

static void save(struct test *t, const uint32_t *ids, const char *name)
{
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", t->w->dir, name);
	content_fill(t->buf, ids, 0, SECTORS);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, t->buf, SECTORS * 512) != SECTORS * 512 || close(fd))
		die("%s: %s", path, strerror(errno));
}

/* Image @name is what @ids say. */
static void expect_image(struct test *t, const char *name, const uint32_t *ids)
{
	save(t, ids, "wanted");
	SHELL(t, NULL, "vmdedup image verify %s --format raw --against wanted", name);
}

static void expect_version(struct test *t, const char *name, int version, const uint32_t *ids)
{
	save(t, ids, "wanted");
	SHELL(t, NULL, "vmdedup image verify %s --version %d --format raw --against wanted", name,
	      version);
}

static void make_base(struct test *t)
{
	for (uint64_t s = 0; s < SECTORS; s++)
		t->ids[s] = s / 8 % 3 ? (uint32_t)(s / 8) + 1 : 0;
	save(t, t->ids, "base.raw");
	SHELL(t, NULL, "vmdedup image import base.raw base --format raw");
}

static void attach(struct test *t, int host, const char *name, uint32_t flags, uint64_t *volume)
{
	struct error err;

	if (host_attach(&t->w->hosts[host], name, flags, volume, &err))
		die("attach of %s: %s", name, err.text);
}

static void detach(struct test *t, int host, const char *name, uint64_t volume)
{
	struct host *h = &t->w->hosts[host];
	struct error err;

	if (cache_file_close(h->cache, volume) || host_detach(h, name, &err))
		die("detach of %s: %s", name, err.text);
}

static void push(struct test *t, int host, const char *name)
{
	struct error err;

	if (host_push(&t->w->hosts[host], name, NULL, &err))
		die("push of %s: %s", name, err.text);
}

static uint64_t clean_slots(struct host *h)
{
	Vmdedup__AgentStatus body = VMDEDUP__AGENT_STATUS__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply;
	struct error err;
	uint64_t clean;

	req.body_case = VMDEDUP__REQUEST__BODY_AGENT_STATUS;
	req.agent_status = &body;
	if (host_ask(h, &req, &reply, &err))
		die("status: %s", err.text);
	clean = reply.header->agent_status->clean;
	net_reply_free(&reply);
	return clean;
}

/* ---- cases ---- */

/* A snapshot of a running volume has what the guest had written; from elsewhere that is told. */
static void case_snapshot(struct test *t)
{
	struct host *here = &t->w->hosts[0], *there = &t->w->hosts[1];
	uint32_t *pushed = malloc(sizeof(t->ids));
	uint64_t volume;

	make_base(t);
	SHELL(t, NULL, "vmdedup image clone base vol");
	attach(t, 0, "vol", 0, &volume);
	write_ids(t, here, volume, 80, 40, 9001);
	SHELL(t, here, "[ $(vmdedup image snapshot vol --label one --json | jq .version) = 1 ]");
	memcpy(pushed, t->ids, sizeof(t->ids));
	expect_version(t, "vol", 1, pushed);
	write_ids(t, here, volume, 0, 19, 9002);
	SHELL(t, there, "r=0; vmdedup image snapshot vol 2>said || r=$?; [ $r = 4 ] && "
	      "grep 'attached on host host0' said && grep 'say --head to snapshot the last push' said");
	SHELL(t, NULL, "r=0; vmdedup image snapshot vol || r=$?; [ $r = 4 ] && "
	      "vmdedup image snapshot vol --head");
	expect_version(t, "vol", 2, pushed);
	/* The volume goes by the name that it was opened by. */
	SHELL(t, NULL, "vmdedup image rename vol renamed && vmdedup image clone base vol");
	SHELL(t, here, "vmdedup image snapshot renamed --label three && vmdedup image snapshot vol");
	expect_version(t, "renamed", 3, t->ids);
	SHELL(t, NULL, "[ \"$(vmdedup image history renamed --json | jq -c 'map(.label)')\" = "
	      "'[\"one\",\"\",\"three\"]' ]");
	expect_content(t, here, volume, t->ids);
	/* Data servers that do not answer: no version of what was not pushed. */
	write_ids(t, here, volume, 400, 40, 9003);
	kill(t->w->data[0].pid, SIGSTOP);
	kill(t->w->data[1].pid, SIGSTOP);
	SHELL(t, here, "r=0; timeout 2 vmdedup image snapshot renamed || r=$?; [ $r = 124 ] && "
	      "[ $(vmdedup image history renamed --json | jq length) = 3 ]");
	kill(t->w->data[0].pid, SIGCONT);
	kill(t->w->data[1].pid, SIGCONT);
	free(pushed);
	detach(t, 0, "vol", volume);
	/* Nobody has it: the head, without an agent. */
	SHELL(t, NULL, "vmdedup image snapshot renamed");
	expect_version(t, "renamed", 4, t->ids);
}

/* A clone of a running volume has what the guest had written; from elsewhere that is told. */
static void case_clone(struct test *t)
{
	struct host *here = &t->w->hosts[0], *there = &t->w->hosts[1];
	uint32_t *pushed = malloc(sizeof(t->ids));
	uint64_t volume;

	make_base(t);
	SHELL(t, NULL, "vmdedup image clone base vol");
	attach(t, 0, "vol", 0, &volume);
	write_ids(t, here, volume, 80, 40, 9001);
	SHELL(t, here, "vmdedup image clone vol running");
	expect_image(t, "running", t->ids);
	memcpy(pushed, t->ids, sizeof(t->ids));
	write_ids(t, here, volume, 0, 19, 9002);
	SHELL(t, there, "r=0; vmdedup image clone vol far || r=$?; [ $r = 4 ]");
	SHELL(t, NULL, "vmdedup image clone vol far 2>said || grep 'attached on host host0' said; "
	      "vmdedup image clone vol far --head");
	expect_image(t, "far", pushed);
	/* The volume goes by the name that it was opened by; its versions are the image's. */
	SHELL(t, NULL, "vmdedup image rename vol renamed && vmdedup image clone base vol");
	SHELL(t, here, "vmdedup volume push vol && vmdedup volume push vol --version");
	SHELL(t, NULL, "[ $(vmdedup image history renamed --json | jq length) = 1 ] && "
	      "[ $(vmdedup image history vol --json | jq length) = 0 ]");
	expect_image(t, "renamed", t->ids);
	expect_content(t, here, volume, t->ids);
	/* Blocks 10 to 14 in full; 0, 1 and a part of 2. */
	SHELL(t, NULL, "[ \"$(vmdedup image diff base renamed --ranges)\" = \"0 12288\n40960 20480\n"
	      "8 blocks differ (32.0 KiB): 0 became zeros, 2 were zeros\" ] || "
	      "{ vmdedup image diff base renamed --ranges; false; }");
	SHELL(t, NULL, "vmdedup image diff renamed --from 1 | grep '^0 blocks differ'");
	free(pushed);
	detach(t, 0, "vol", volume);
}

/* The images of the broken leases are removed, too: what a lost host had not pushed of one becomes an
 * image, of the other it is given up. */
static void recover_removed(struct test *t)
{
	struct host *here = &t->w->hosts[0];
	uint64_t volume, waste;

	SHELL(t, NULL, "vmdedup image clone rescued gone && vmdedup image clone rescued waste");
	attach(t, 0, "gone", 0, &volume);
	attach(t, 0, "waste", 0, &waste);
	write_ids(t, here, volume, 1500, 10, 7005);
	if (cache_file_write(here->cache, waste, 0, t->buf, 4096))
		die("write");
	process_kill(&here->agent);
	SHELL(t, NULL, "for i in gone waste; do vmdedup volume break-lease $i --yes && vmdedup image rm $i; "
	      "done && vmdedup image rm rescued && vmdedup cluster gc --now");
	process_start(&here->agent);
	host_wait(here);
	SHELL(t, here, "for i in $(seq 300); do [ $(vmdedup volume ls | grep -c DIVERGED) != 2 ] || break; "
	      "sleep 0.1; done; [ $(vmdedup volume ls | grep -c DIVERGED) = 2 ]");
	if (cache_file_write(here->cache, volume, 0, t->buf, 4096) != -EROFS)
		die("a write to the volume of a removed image");
	if (cache_file_close(here->cache, volume) || cache_file_close(here->cache, waste))
		die("close");
	SHELL(t, here, "vmdedup volume recover gone found && vmdedup volume detach waste --discard");
	expect_image(t, "found", t->ids);
	SHELL(t, here, "[ \"$(vmdedup volume ls --json)\" = '[]' ] && "
	      "[ \"$(vmdedup volume leases --json | jq -c 'map([.image, .broken])')\" = '[]' ]");
}

static void cut_off(struct test *t, const char *name, const char *step, unsigned int after)
{
	t->kill_after = after;
	t->kill_at = step;
	SHELL(t, &t->w->hosts[0], "r=0; vmdedup volume recover vol %s || r=$?; [ $r != 0 ]", name);
	if (t->kill_at)
		die("the recovery did not come to %s", step);
	host_wait(&t->w->hosts[0]);
}

/* The agent dies in the midst of it. What a person then takes for rubbish is the base of the rest as soon
 * as the cache stands on it, and cannot be removed. */
static void recover_cut_off(struct test *t)
{
	cut_off(t, "r1", "take", 0);
	SHELL(t, NULL, "vmdedup image rm r1 && vmdedup cluster gc --now");
	cut_off(t, "r2", "commit-cache.done", 0);
	SHELL(t, NULL, "r=0; vmdedup image rm r2 2>said || r=$?; [ $r = 4 ] && "
	      "grep 'attached on host host0' said && vmdedup cluster gc --now");
}

/* A push that no server hears of, killed when there is a cut. */
static void cut_only(struct test *t, struct host *h)
{
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	bool cut = false;
	pid_t pid;
	size_t n;

	kill(t->w->meta.pid, SIGSTOP);
	pid = command_start(t->w, (const char *const[]){ "vmdedup", "--conf", h->agent.conf,
							 "volume", "push", "vol", NULL });
	while (!cut) {
		poll(NULL, 0, 10);
		free(infos);
		infos = NULL;
		if (cache_volumes(h->cache, &infos, &n))
			die("no volumes");
		for (size_t i = 0; i < n; i++)
			cut |= infos[i].closed_cut > infos[i].committed_cut;
		if (!cut && waitpid(pid, NULL, WNOHANG) == pid)
			die("a push without a meta server ended");
	}
	kill(pid, SIGKILL);
	command_wait(pid);
	process_restart(&h->agent);
	process_restart(&t->w->meta);
}

/* What a lost host had not pushed, in a closed cut and above it, becomes an image of its own. */
static void case_recover(struct test *t)
{
	struct host *here = &t->w->hosts[0];
	uint32_t *theirs = malloc(sizeof(t->ids));
	uint64_t volume, other;
	struct error err;

	make_base(t);
	SHELL(t, NULL, "vmdedup image clone base vol");
	attach(t, 0, "vol", 0, &volume);
	write_ids(t, here, volume, 0, 100, 7001);
	push(t, 0, "vol");
	memcpy(theirs, t->ids, sizeof(t->ids));
	/* A cut, and writes above it. */
	write_ids(t, here, volume, 40, 21, 7002);
	cut_only(t, here);
	write_ids(t, here, volume, 50, 30, 7003);
	write_ids(t, here, volume, 2000, 9, 7004);
	/* What that is, its agent says now and then. */
	SHELL(t, NULL, "vmdedup volume leases; for i in $(seq 200); do [ \"$(vmdedup volume leases --json | "
	      "jq '.[].unpushed_bytes')\" != %d ] || break; sleep 0.1; done; "
	      "vmdedup volume leases | grep '36.0 KiB, as of .* ago'", 9 * 4096);
	process_kill(&here->agent);
	SHELL(t, NULL, "vmdedup volume break-lease vol >said || grep 'ago that was 36.0 KiB, the oldest' said");
	SHELL(t, NULL, "r=0; vmdedup volume break-lease vol >said || r=$?; [ $r = 1 ] && "
	      "grep 'host0' said && grep 'may still be running' said && grep recover said");
	SHELL(t, NULL, "vmdedup volume break-lease vol --yes && vmdedup volume leases | grep BROKEN");
	/* The image goes on elsewhere, from what was pushed. */
	attach(t, 1, "vol", 0, &other);
	expect_content(t, &t->w->hosts[1], other, theirs);
	if (cache_file_write(t->w->hosts[1].cache, other, 0, t->buf + 4096, 4096))
		die("write on the other host");
	detach(t, 1, "vol", other);
	/* The host comes back. */
	process_start(&here->agent);
	host_wait(here);
	if (!host_push(here, "vol", NULL, &err))
		die("a push under a broken lease");
	printf("# a push under a broken lease: %s\n", err.text);
	SHELL(t, here, "for i in $(seq 100); do vmdedup volume ls --json | grep DIVERGED && break; sleep 0.1; done; "
	      "vmdedup volume ls | grep DIVERGED");
	if (cache_file_write(here->cache, volume, 0, t->buf, 4096) != -EROFS)
		die("a write to a diverged volume");
	if (cache_file_close(here->cache, volume))
		die("close");
	recover_cut_off(t);
	/* A name that is taken says so; without one there is always one. */
	SHELL(t, here, "r=0; vmdedup volume recover vol base 2>said || r=$?; [ $r = 4 ] && "
	      "grep 'there is an image base already: give another name' said");
	SHELL(t, here, "vmdedup volume recover vol --json | jq -r .image >name; "
	      "grep '^vol-recovered-20' name; vmdedup image rename $(cat name) rescued");
	expect_image(t, "rescued", t->ids);
	SHELL(t, here, "vmdedup volume detach r2 && vmdedup image rm r2");
	SHELL(t, here, "[ \"$(vmdedup volume ls --json)\" = '[]' ] && "
	      "[ \"$(vmdedup volume leases --json)\" = '[]' ]");
	free(theirs);
	recover_removed(t);
}

/* Ten clones whose own copies would be ten times the cache; what they write alike is kept once. */
static void case_shared(struct test *t)
{
	struct host *h = &t->w->hosts[0];
	uint64_t volumes[10], before, after, unique = 0;
	char name[16];
	int i;

	make_base(t);
	for (uint64_t b = 0; b < BLOCKS; b++)
		unique += t->ids[b * 8] != 0;
	for (i = 0; i < 10; i++) {
		snprintf(name, sizeof(name), "c%d", i);
		SHELL(t, NULL, "vmdedup image clone base %s", name);
		attach(t, 0, name, 0, &volumes[i]);
		expect_content(t, h, volumes[i], t->ids);
	}
	before = clean_slots(h);
	printf("# 10 clones of %llu blocks are served by %llu slots\n", (unsigned long long)unique,
	       (unsigned long long)before);
	if (before != unique)
		die("%llu slots, not %llu", (unsigned long long)before, (unsigned long long)unique);
	/* The same twenty blocks by each, four of them alike; and a part of a block. */
	for (i = 0; i < 10; i++) {
		for (int b = 0; b < 20; b++)
			write_ids(t, h, volumes[i], (uint64_t)b * 8, 8, 5000 + (b < 4 ? 0 : b));
		write_ids(t, h, volumes[i], 8 * 100 + 1, 2, 5100);
		snprintf(name, sizeof(name), "c%d", i);
		push(t, 0, name);
	}
	for (i = 0; i < 10; i++)
		expect_content(t, h, volumes[i], t->ids);
	after = clean_slots(h);
	printf("# what they all wrote takes %llu slots more\n", (unsigned long long)(after - before));
	if (after - before != 17 + 1)
		die("18 were to be expected");
	/* With the servers away: what was partly written is here. */
	for (i = 0; i < WORLD_DATA; i++)
		kill(t->w->data[i].pid, SIGSTOP);
	expect_content(t, h, volumes[9], t->ids);
	for (i = 0; i < WORLD_DATA; i++)
		kill(t->w->data[i].pid, SIGCONT);
	for (i = 0; i < 10; i++) {
		snprintf(name, sizeof(name), "c%d", i);
		detach(t, 0, name, volumes[i]);
	}
}

static bool trouble_says(struct test *t, const char *words)
{
	return !shell(t, &t->w->hosts[0], "vmdedup volume ls --json | jq -r '.[].trouble' | grep -q '%s'",
		      words);
}

static void await_trouble(struct test *t, const char *words)
{
	uint64_t end = clock_mono_ns() + WAIT_MS * 1000000ULL;

	while (!trouble_says(t, words)) {
		if (clock_mono_ns() > end)
			die("volume ls does not say \"%s\"", words);
		poll(NULL, 0, 100);
	}
}

static void set_capacity(struct test *t, const char *capacity)
{
	for (int i = 0; i < WORLD_DATA; i++) {
		SHELL(t, NULL, "sed -i '/^capacity/d' %s && echo 'capacity = %s' >>%s",
		      t->w->data[i].conf, capacity, t->w->data[i].conf);
		process_restart(&t->w->data[i]);
	}
}

/* A push to full servers, or without a meta server, waits and says why; the guest goes on. */
static void case_trouble(struct test *t)
{
	struct host *h = &t->w->hosts[0];
	uint64_t volume;
	struct error err;
	int r;

	make_base(t);
	SHELL(t, NULL, "vmdedup image clone base vol");
	attach(t, 0, "vol", 0, &volume);
	expect_content(t, h, volume, t->ids);
	set_capacity(t, "1M");
	for (uint64_t b = 0; b < 250; b++)
		write_ids(t, h, volume, b * 8, 8, 600000 + (uint32_t)b);
	r = host_push(h, "vol", NULL, &err);
	if (r != -ENOSPC)
		die("a push to full servers: %d %s", r, err.text);
	printf("# %s\n", err.text);
	await_trouble(t, "is full");
	write_ids(t, h, volume, 2000, 100, 8001);
	expect_content(t, h, volume, t->ids);
	set_capacity(t, "0");
	push(t, 0, "vol");
	expect_image(t, "vol", t->ids);
	if (trouble_says(t, "."))
		die("the trouble is over and is still told");
	/* No meta server: a push of the agent's own waits for it. */
	kill(t->w->meta.pid, SIGSTOP);
	write_ids(t, h, volume, 100, 300, 8002);
	expect_content(t, h, volume, t->ids);
	SHELL(t, h, "r=0; timeout 10 vmdedup volume push vol || r=$?; [ $r = 124 ]");
	await_trouble(t, "meta server has not answered for");
	SHELL(t, h, "r=0; vmdedup status >said || r=$?; [ $r = 5 ]; "
	      "grep 'push of vol waits: the meta server has not answered' said");
	write_ids(t, h, volume, 500, 300, 8003);
	expect_content(t, h, volume, t->ids);
	process_restart(&t->w->meta);
	push(t, 0, "vol");
	expect_image(t, "vol", t->ids);
	/* What is in use is not taken away, and says where it is. */
	SHELL(t, NULL, "for c in 'image rm vol' 'image rollback vol --version 1'; do r=0; "
	      "vmdedup $c 2>said || r=$?; [ $r = 4 ] && grep 'attached on host host0' said || exit 1; "
	      "done; vmdedup image rm base");
	detach(t, 0, "vol", volume);
	expect_image(t, "vol", t->ids);
}

/* A push that nobody waits for keeps to the rate; one that somebody asks for does not. */
static void case_rate(struct test *t)
{
	const uint64_t rate = 64 << 10, bytes = 100 * (1U << WIRE_SHIFT);
	struct host *h = &t->w->hosts[0];
	uint64_t volume, start, ms, end;

	make_base(t);
	SHELL(t, NULL, "vmdedup image clone base vol; echo 'push_rate = 64K' >>%s", h->agent.conf);
	process_restart(&h->agent);
	host_wait(h);
	attach(t, 0, "vol", 0, &volume);
	expect_content(t, h, volume, t->ids);
	for (uint64_t b = 0; b < 100; b++)
		write_ids(t, h, volume, b * 8, 8, 700000 + (uint32_t)b);
	start = clock_mono_ns();
	if (cache_file_close(h->cache, volume))
		die("close");
	end = start + WAIT_MS * 1000000ULL;
	while (shell(t, h, "vmdedup volume ls --json | jq -e '.[0].dirty_bytes == 0'"))
		if (clock_mono_ns() > end || poll(NULL, 0, 100) < 0)
			die("what was closed is not pushed");
	ms = (clock_mono_ns() - start) / 1000000;
	printf("# %llu bytes by themselves: %llu ms\n", (unsigned long long)bytes,
	       (unsigned long long)ms);
	/* Less one second's burst, and the last chunk, which nothing waits for: 16 blocks. */
	if (ms + 1000 < (bytes - 16 * (1U << WIRE_SHIFT)) * 1000 / rate)
		die("that is faster than the rate");
	if (cache_file_open(h->cache, "vol", 0, &volume, &end))
		die("open");
	for (uint64_t b = 0; b < 280; b++)
		write_ids(t, h, volume, b * 8, 8, 800000 + (uint32_t)b);
	start = clock_mono_ns();
	detach(t, 0, "vol", volume);
	printf("# %d bytes that a detach waits for: %llu ms\n", 280 * (1U << WIRE_SHIFT),
	       (unsigned long long)(clock_mono_ns() - start) / 1000000);
	expect_image(t, "vol", t->ids);
}

static void on_step(void *arg, int host, const char *name)
{
	struct test *t = arg;

	if (!host && t->kill_at && !strcmp(name, t->kill_at) && !t->kill_after--) {
		t->kill_at = NULL;
		process_restart(&t->w->hosts[0].agent);
	}
	/* Not without end: a push whose blocks are taken away each time begins again each time. */
	if (host || !t->collect || !strncmp(name, "message", 7) || t->steps++ % t->stride ||
	    t->steps > 4 * t->stride)
		return;
	/* On another thread than the test's, which waits for the push: requests of a process of its
	 * own. */
	if (shell(t, NULL, "vmdedup cluster gc --full"))
		die("collection at step %s: see %s/commands.log", name, t->w->dir);
	t->collections++;
}

/* Pushes of exactly what a collection between two of their steps is about to delete. */
static void case_collect(struct test *t)
{
	struct host *h = &t->w->hosts[0];
	uint64_t volume;

	make_base(t);
	SHELL(t, NULL, "vmdedup image clone base vol");
	attach(t, 0, "vol", 0, &volume);
	for (int round = 0; round < 3; round++) {
		for (uint64_t s = 0; s < SECTORS; s++)
			t->ids[s] = s / 8 < 12 ? 40000 + (uint32_t)(s / 8) + 100 * round : t->ids[s];
		save(t, t->ids, "prey.raw");
		SHELL(t, NULL, "vmdedup image import prey.raw prey --format raw && vmdedup image rm prey");
		for (uint64_t b = 0; b < 12; b++)
			write_ids(t, h, volume, b * 8, 8, t->ids[b * 8]);
		t->steps = 0;
		t->stride = 5 + (unsigned int)round;
		t->collect = true;
		push(t, 0, "vol");
		t->collect = false;
		expect_image(t, "vol", t->ids);
		SHELL(t, NULL, "vmdedup cluster check");
	}
	printf("# %u collections between the steps of 3 pushes\n", t->collections);
	detach(t, 0, "vol", volume);
}

/* A version is read by all hosts at once, while its image is written. */
static void case_readers(struct test *t)
{
	uint64_t writer, readers[WORLD_HOSTS], throwaway;
	uint32_t *base = malloc(sizeof(t->ids));
	int i;

	make_base(t);
	memcpy(base, t->ids, sizeof(t->ids));
	attach(t, 0, "base", 0, &writer);
	write_ids(t, &t->w->hosts[0], writer, 0, 1000, 333);
	SHELL(t, NULL, "vmdedup image clone base again --head");
	for (i = 0; i < WORLD_HOSTS; i++)
		attach(t, i, "again", DM_DEDUP_VOL_READONLY, &readers[i]);
	for (i = 0; i < WORLD_HOSTS; i++)
		expect_content(t, &t->w->hosts[i], readers[i], base);
	SHELL(t, NULL, "vmdedup image clone base throwaway --head");
	attach(t, 0, "throwaway", DM_DEDUP_VOL_EPHEMERAL, &throwaway);
	detach(t, 0, "base", writer);
	/* Also when it is removed, and collected, and no cache has it. */
	SHELL(t, NULL, "vmdedup image rm base again throwaway && vmdedup cluster gc --full");
	for (i = 0; i < WORLD_HOSTS; i++)
		cache_file_evict_all(t->w->hosts[i].cache);
	SHELL(t, NULL, "[ $(vmdedup volume leases --json | jq 'map(select(.reader)) | length') = %d ]",
	      WORLD_HOSTS + 1);
	expect_content(t, &t->w->hosts[0], throwaway, base);
	if (cache_file_write(t->w->hosts[0].cache, throwaway, 0, t->seen + 4096, 4096))
		die("write to an ephemeral volume");
	detach(t, 0, "throwaway", throwaway);
	for (i = 0; i < WORLD_HOSTS; i++) {
		expect_content(t, &t->w->hosts[i], readers[i], base);
		if (i)
			kill(t->w->meta.pid, SIGSTOP);
		detach(t, i, "again", readers[i]);
		kill(t->w->meta.pid, SIGCONT);
	}
	/* A detach that no meta server hears of is told later. */
	SHELL(t, NULL, "for i in $(seq 300); do [ \"$(vmdedup volume leases --json)\" != '[]' ] || break; "
	      "sleep 0.1; done; [ \"$(vmdedup volume leases --json)\" = '[]' ]");
	free(base);
}

/* What @volume should be: @ids, then zeros up to @mib, with one block of @last at its end. */
static void expect_grown(struct test *t, const char *name, unsigned int mib, bool last)
{
	save(t, t->ids, "wanted");
	SHELL(t, NULL, "truncate -s %uM wanted; %s; vmdedup image verify %s --format raw --against wanted",
	      mib, last ? "head -c 4096 /dev/zero | tr '\\0' x | dd of=wanted bs=4096 iflag=fullblock "
			  "conv=notrunc seek=$(($(stat -c %s wanted) / 4096 - 1))" : "true", name);
}

/* An image grows under a running volume, which follows later; pushes go on at each point. */
static void case_resize(struct test *t)
{
	struct host *here = &t->w->hosts[0], *there = &t->w->hosts[1];
	uint64_t volume, other;
	uint8_t block[4096], seen[4096];

	memset(block, 'x', sizeof(block));
	make_base(t);
	SHELL(t, NULL, "vmdedup image clone base vol");
	attach(t, 0, "vol", 0, &volume);
	write_ids(t, here, volume, 80, 40, 6001);
	SHELL(t, NULL, "for s in 1M 65T 2000000000T 1000 x; do r=0; vmdedup image resize vol $s 2>said || r=$?; "
	      "[ $r = 1 ] || [ $r = 2 ]; done; vmdedup image resize vol 1M 2>said || grep 'cannot become smaller' said; "
	      "[ $(vmdedup image resize vol 260M --json | jq .size) = 272629760 ]");
	/* Three levels instead of two; the volume, and what it stands on, know nothing of it yet. */
	push(t, 0, "vol");
	expect_grown(t, "vol", 260, false);
	expect_content(t, here, volume, t->ids);
	write_ids(t, here, volume, 0, 3, 6002);
	SHELL(t, NULL, "vmdedup image resize vol 261M && vmdedup image resize vol 300M && "
	      "vmdedup image resize vol 300M && vmdedup image snapshot vol --head");
	if (cache_file_grow(here->cache, volume))
		die("the volume does not grow");
	/* It has the size, and the root of before. */
	cache_file_evict_all(here->cache);
	process_restart(&here->agent);
	host_wait(here);
	expect_content(t, here, volume, t->ids);
	if (cache_file_write(here->cache, volume, (300ULL << 20) - 4096, block, 4096) ||
	    cache_file_read(here->cache, volume, (200ULL << 20), seen, 4096) || seen[7])
		die("what is new of the volume");
	push(t, 0, "vol");
	expect_grown(t, "vol", 300, true);
	/* Clean on a grown head, opened again; and elsewhere. */
	SHELL(t, NULL, "vmdedup image resize vol 301M");
	if (cache_file_close(here->cache, volume))
		die("close");
	attach(t, 0, "vol", 0, &volume);
	if (cache_file_grow(here->cache, volume))
		die("the volume does not grow at its second open");
	write_ids(t, here, volume, 900, 30, 6003);
	detach(t, 0, "vol", volume);
	SHELL(t, NULL, "vmdedup cluster check");
	attach(t, 1, "vol", 0, &other);
	expect_content(t, there, other, t->ids);
	if (cache_file_read(there->cache, other, (300ULL << 20) - 4096, seen, 4096) ||
	    memcmp(seen, block, 4096))
		die("what was new of the volume, elsewhere");
	detach(t, 1, "vol", other);
	SHELL(t, NULL, "[ $(vmdedup image show vol --json | jq .size) = $((301 << 20)) ] && "
	      "[ $(vmdedup image show vol --version 1 --json | jq .size) = $((300 << 20)) ]");
}

/* Figures: what a clone costs. */
static double seconds_of(struct test *t, const char *line)
{
	uint64_t start = clock_mono_ns();

	SHELL(t, NULL, "%s", line);
	return (double)(clock_mono_ns() - start) / 1e9;
}

static double clone_seconds(struct test *t, const char *source, const char *prefix, int count)
{
	uint64_t start = clock_mono_ns();

	for (int i = 0; i < count; i++) {
		Vmdedup__ImageClone body = VMDEDUP__IMAGE_CLONE__INIT;
		Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
		struct net_reply reply;
		struct error err;
		char name[32];

		snprintf(name, sizeof(name), "%s-%d", prefix, i);
		body.source = (char *)source;
		body.name = name;
		req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_CLONE;
		req.image_clone = &body;
		if (world_mutate(t->w, &req, &reply, &err))
			die("clone: %s", err.text);
		net_reply_free(&reply);
	}
	return (double)(clock_mono_ns() - start) / 1e9;
}

static void case_figures(struct test *t)
{
	double small, large;

	SHELL(t, NULL, "truncate -s 1T large.raw && printf x | dd of=large.raw bs=1 seek=500G conv=notrunc && "
	      "truncate -s 1G small.raw && printf x | dd of=small.raw bs=1 seek=100M conv=notrunc && "
	      "vmdedup image import large.raw large --format raw && "
	      "vmdedup image import small.raw small --format raw && rm large.raw small.raw");
	clone_seconds(t, "small", "warm", 50);
	small = clone_seconds(t, "small", "s", 500);
	large = clone_seconds(t, "large", "l", 500);
	printf("# clones of 1 GiB: %.2f ms, of 1 TiB sparse: %.2f ms, ratio %.2f\n", small * 2,
	       large * 2, large / small);
	printf("# 1000 clones: %.1f s\n", clone_seconds(t, "large", "many", 1000));
	printf("# removal of 2050 images by one command: %.1f s\n",
	       seconds_of(t, "vmdedup image ls --json | jq -r '.[].name' | xargs vmdedup image rm"));
}

static const struct {
	const char *name;
	void (*run)(struct test *t);
} cases[] = {
	{ "clone", case_clone },     { "recover", case_recover }, { "shared", case_shared },
	{ "trouble", case_trouble }, { "collect", case_collect }, { "readers", case_readers },
	{ "figures", case_figures }, { "rate", case_rate },	  { "resize", case_resize },
	{ "snapshot", case_snapshot },
};

static void finish(struct test *t)
{
	SHELL(t, NULL, "vmdedup cluster check");
	SHELL(t, NULL, "vmdedup image ls --json | jq -r '.[].name' | xargs -r vmdedup image rm");
	world_empty(t->w);
	world_free(t->w);
}

int main(int argc, char **argv)
{
	struct test *t = calloc(1, sizeof(*t));
	size_t i = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (i < ARRAY_SIZE(cases) && (argc != 2 || strcmp(argv[1], cases[i].name)))
		i++;
	if (!t || i == ARRAY_SIZE(cases))
		die("usage: volumes CASE");
	t->buf = malloc(SECTORS * 512);
	t->seen = malloc(SECTORS * 512);
	t->w = world_new(8 << 20, "push_age = 0\n", on_step, t);
	cases[i].run(t);
	finish(t);
	return 0;
}
