// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Simulates the data servers of a large cluster: how even they are filled, how soon a dead one is found,
 * how soon its shards are whole again, and what the meta server has to do for it.
 *
 *   cluster_sim [--servers N] [--hosts N] [--shard-gib N] [--out-after SECONDS]
 *
 * What decides is the meta server's own code on a real SQLite store: the governor, planning, placement,
 * reconciling, and what it answers to agents. Simulated are time, the data servers (which copy
 * one shard at a time, at their repair_rate), and what the governor's two threads see of the network.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/clock.h"
#include "meta/governor.h"
#include "meta/probe.h"
#include "../unit/meta_world.h"

#define MS	    1000000ULL
#define S	    1000000000ULL
#define MAX_SERVERS 400
#define REPLICAS    3
#define RACK_HOSTS 40
#define RACK	    5 /* servers */
#define REPAIR_RATE (100ULL << 20)
#define CAPACITY    (20ULL << 40)

enum death { ALIVE, KILLED, SILENT };

struct server {
	uint32_t id;
	enum death death;
	uint64_t died_ns, refused_ns;
	/* the shard that it copies; 0: none */
	uint64_t done_ns;
	uint32_t shard, source;
	uint64_t version, round;
	struct uuid disk;
};

static struct world world;
static struct server servers[MAX_SERVERS];
static unsigned int nr_servers = 200, nr_hosts = 10000, out_after_s = 600;
static uint64_t shard_bytes = 20ULL << 30;
static uint64_t meta_messages, copied;

static void die(const char *what, const char *why)
{
	fprintf(stderr, "cluster_sim: %s: %s\n", what, why);
	exit(1);
}

/* ---- what the governor's threads would see (meta/probe.h) ---- */

struct prober {
	int fd;
	struct probe_state states[PROBE_MAX_TARGETS];
	size_t nr;
	uint64_t probes_free_ns; /* one after the other */
};

static struct server *server_of(uint32_t id)
{
	unsigned int i;

	for (i = 0; i < nr_servers; i++)
		if (servers[i].id == id)
			return &servers[i];
	return NULL;
}

struct prober *prober_new(struct net_ctx *net, struct error *err)
{
	struct prober *p = calloc(1, sizeof(*p));

	if (p)
		p->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return p;
}

void prober_free(struct prober *p)
{
	close(p->fd);
	free(p);
}

int prober_fd(struct prober *p)
{
	return p->fd;
}

void prober_targets(struct prober *p, const struct probe_target *targets, size_t nr,
		    uint64_t map_version)
{
	struct probe_state old[PROBE_MAX_TARGETS];
	size_t n = p->nr, i, k;

	memcpy(old, p->states, sizeof(old));
	for (i = 0, p->nr = nr; i < nr; i++) {
		p->states[i] = (struct probe_state){ .id = targets[i].id, .since_ns = world.mono_ns };
		for (k = 0; k < n; k++)
			if (old[k].id == targets[i].id)
				p->states[i] = old[k];
	}
}

void prober_accuse(struct prober *p, uint32_t id)
{
	size_t i;

	for (i = 0; i < p->nr; i++)
		if (p->states[i].id == id)
			p->states[i].accused_ns = world.mono_ns;
}

void prober_forgive(struct prober *p, uint32_t id)
{
	size_t i;

	for (i = 0; i < p->nr; i++)
		if (p->states[i].id == id)
			p->states[i].refused_ns = p->states[i].accused_ns = 0;
}

/* A heartbeat a second each, spread over the second; the connection to a process that is killed
 * breaks, and two connections 100 ms apart are refused, one server after the other. */
size_t prober_states(struct prober *p, struct probe_state *out, size_t max)
{
	uint64_t now = world.mono_ns, at;
	size_t i;

	for (i = 0; i < p->nr; i++) {
		struct probe_state *s = &p->states[i];
		struct server *v = server_of(s->id);

		if (!v || v->death == ALIVE) {
			at = i * S / p->nr;
			s->answered_ns = now < at ? 0 : now - (now - at) % S;
			s->in_a_row = 10;
			continue;
		}
		s->in_a_row = 0;
		if (v->death == KILLED && !v->refused_ns) {
			p->probes_free_ns = MAX(p->probes_free_ns, now) + 100 * MS;
			v->refused_ns = p->probes_free_ns;
		}
		if (v->refused_ns && now >= v->refused_ns)
			s->refused_ns = v->refused_ns;
	}
	memcpy(out, p->states, MIN(p->nr, max) * sizeof(*out));
	return MIN(p->nr, max);
}

/* ---- data servers ---- */

static void join(unsigned int i)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ServerJoin say = VMDEDUP__SERVER_JOIN__INIT;
	const Vmdedup__Reply *reply;
	char host[32], rack[32], endpoint[64];

	snprintf(host, sizeof(host), "data%u", i);
	snprintf(rack, sizeof(rack), "rack%u", i / RACK);
	snprintf(endpoint, sizeof(endpoint), "inproc://%s", host);
	servers[i].disk.b[0] = 0xda;
	memcpy(servers[i].disk.b + 4, &i, sizeof(i));
	say.disk = (ProtobufCBinaryData){ 16, servers[i].disk.b };
	say.incarnation = 1;
	say.endpoint = endpoint;
	/* Half of them are twice as large. */
	say.capacity = say.free = i % 2 ? 2 * CAPACITY : CAPACITY;
	say.host = host;
	say.rack = rack;
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_JOIN;
	req.server_join = &say;
	reply = world_call(&world, &req, NULL, 0);
	if (reply->error)
		die("join", reply->error_text);
	servers[i].id = reply->server_join->id;
	world_forget(&world);
}

static void order(uint32_t id, Vmdedup__ServerOrder what)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ServerSet set = VMDEDUP__SERVER_SET__INIT;
	const Vmdedup__Reply *reply;

	set.server = id;
	set.order = what;
	req.body_case = VMDEDUP__REQUEST__BODY_SERVER_SET;
	req.server_set = &set;
	reply = world_mutate(&world, &req, NULL, 0);
	if (reply->error)
		die("order", reply->error_text);
	world_forget(&world);
}

static void copy_begin(struct server *s, uint32_t shard)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ReconcileBegin ask = VMDEDUP__RECONCILE_BEGIN__INIT;
	const Vmdedup__Reply *reply;

	ask.disk = (ProtobufCBinaryData){ 16, s->disk.b };
	ask.incarnation = 1;
	ask.n_shards = 1;
	ask.shards = &shard;
	req.body_case = VMDEDUP__REQUEST__BODY_RECONCILE_BEGIN;
	req.reconcile_begin = &ask;
	reply = world_call(&world, &req, NULL, 0);
	meta_messages++;
	if (!reply->error && reply->reconcile_begin->sources[0]) {
		s->shard = shard;
		s->source = reply->reconcile_begin->sources[0];
		s->version = reply->reconcile_begin->map_version;
		s->round = reply->reconcile_begin->round;
		s->done_ns = world.mono_ns + (uint64_t)((double)shard_bytes * 1e9 / REPAIR_RATE);
	}
	world_forget(&world);
}

static void copy_end(struct server *s)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ReconcileEnd done = VMDEDUP__RECONCILE_END__INIT;

	done.disk = (ProtobufCBinaryData){ 16, s->disk.b };
	done.incarnation = 1;
	done.n_shards = done.n_sources = 1;
	done.shards = &s->shard;
	done.sources = &s->source;
	done.map_version = s->version;
	done.round = s->round;
	req.body_case = VMDEDUP__REQUEST__BODY_RECONCILE_END;
	req.reconcile_end = &done;
	copied += world_call(&world, &req, NULL, 0)->error ? 0 : shard_bytes;
	meta_messages++;
	s->done_ns = 0;
	world_forget(&world);
}

/* Once a second: who has nothing to copy takes a stale shard of its own. */
static unsigned int servers_tick(void)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	static struct { uint32_t shard, server; } stale[NR_SHARDS * PROTO_MAX_PLACES];
	struct error err = { 0 };
	size_t n = 0, i;

	for (i = 0; i < nr_servers; i++)
		if (servers[i].death == ALIVE && servers[i].done_ns &&
		    world.mono_ns >= servers[i].done_ns)
			copy_end(&servers[i]);
	if (meta_begin(&world.m, &err) ||
	    store_query(world.m.store, &err, &rows,
			"SELECT shard, server FROM replicas WHERE state = 1 ORDER BY shard"))
		die("stale shards", err.text);
	while (rows_next(&rows, &err) > 0) {
		stale[n].shard = (uint32_t)rows_int(&rows, 0);
		stale[n++].server = (uint32_t)rows_int(&rows, 1);
	}
	rows_end(&rows);
	meta_rollback(&world.m);
	for (i = 0; i < n; i++) {
		struct server *s = server_of(stale[i].server);

		if (s && s->death == ALIVE && !s->done_ns)
			copy_begin(s, stale[i].shard);
	}
	return (unsigned int)n;
}

/* ---- what is measured ---- */

static void balance(const char *when)
{
	double least = 1e9, most = 0, sum = 0;
	struct rows rows CLEANUP_ROWS = { 0 };
	struct error err = { 0 };
	unsigned int n = 0;

	if (meta_begin(&world.m, &err) ||
	    store_query(world.m.store, &err, &rows,
			"SELECT capacity, (SELECT count(*) FROM replicas WHERE server = servers.id) FROM "
			"servers WHERE state = 0"))
		die("balance", err.text);
	while (rows_next(&rows, &err) > 0) {
		double share = (double)rows_int(&rows, 1) / ((double)rows_int(&rows, 0) / (double)CAPACITY);

		least = MIN(least, share);
		most = MAX(most, share);
		sum += share;
		n++;
	}
	rows_end(&rows);
	meta_rollback(&world.m);
	printf("%-34s %3u servers, shards for 20 TiB: least %.1f, mean %.1f, most %.1f\n", when, n, least,
	       sum / n, most);
	fflush(stdout);
}

/* Replicas of shards that count and are on servers that live, beyond @per_shard: how many are missing. */
static int64_t missing(void)
{
	return (int64_t)NR_SHARDS * REPLICAS -
	       world_sql(&world, "SELECT count(*) FROM replicas JOIN servers ON servers.id = server WHERE "
			 "replicas.state = 0 AND servers.state = 0");
}

static int64_t not_up(void)
{
	return world_sql(&world, "SELECT count(*) FROM servers WHERE state IN (2, 4)");
}

static void run(struct governor *g, const char *what, unsigned int first, unsigned int nr,
		unsigned int step, enum death how)
{
	uint64_t began = world.mono_ns, found = 0, half = 0, most = 0, before, messages = meta_messages;
	uint64_t bytes = copied;
	int64_t was_missing = 0, now_missing = 0;
	unsigned int i, tick;

	for (i = 0; i < nr; i++) {
		servers[first + i * step].death = how;
		servers[first + i * step].died_ns = world.mono_ns;
	}
	for (tick = 0; tick < 10 * 24 * 3600; tick++) {
		world.mono_ns += 100 * MS;
		governor_tick(g);
		if (!found && not_up() >= nr) {
			found = world.mono_ns;
			was_missing = missing();
		}
		if (tick % 10)
			continue;
		before = meta_messages;
		servers_tick();
		most = MAX(most, meta_messages - before);
		now_missing = tick % 100 || !found ? now_missing : missing();
		if (found && !half && now_missing && now_missing < was_missing / 2)
			half = world.mono_ns;
		if (found && tick > 100 && !(tick % 100) && !now_missing)
			break;
	}
	half = half ? half : world.mono_ns;
	printf("%-34s found in %.1f s; %lld replicas missing, half made again after %.0f s, all after %.0f s; "
	       "%.1f TiB copied; the meta server: %llu messages for it, at most %llu in a second\n", what,
	       (double)(found - began) / 1e9, (long long)was_missing, (double)(half - began) / 1e9,
	       now_missing ? -1.0 : (double)(world.mono_ns - began) / 1e9,
	       (double)(copied - bytes) / (double)(1ULL << 40),
	       (unsigned long long)(meta_messages - messages), (unsigned long long)most);
	fflush(stdout);
	/* They come back empty another day; here they are given up. */
	for (i = 0; i < nr; i++)
		order(servers[first + i * step].id, VMDEDUP__SERVER_ORDER__SERVER_LOST);
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * S + (uint64_t)t.tv_nsec;
}

/* Agents that announce themselves, all with one image open: what that takes of a processor. */
static void announces(void)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__PeerAnnounce say = VMDEDUP__PEER_ANNOUNCE__INIT;
	Vmdedup__PeerAddress address = VMDEDUP__PEER_ADDRESS__INIT;
	uint8_t image[16] = { 7 }, cache[16] = { 1 };
	unsigned int i, round;
	uint64_t began = 0;
	char endpoint[64], rack[32];

	req.body_case = VMDEDUP__REQUEST__BODY_PEER_ANNOUNCE;
	req.peer_announce = &say;
	address.endpoint = endpoint;
	say.cache = (ProtobufCBinaryData){ 16, cache };
	say.address = &address;
	say.host = (char *)"host";
	say.rack = rack;
	say.ttl_s = 90;
	say.images = (ProtobufCBinaryData){ 16, image };
	say.want = 16;
	for (round = 0; round < 2; round++) {
		unsigned int n = round ? 2000 : nr_hosts;

		began = cpu_ns();
		for (i = 0; i < n; i++) {
			uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ULL;

			memcpy(cache, &h, sizeof(h));
			snprintf(endpoint, sizeof(endpoint), "tcp://10.%u.%u.%u:7403", i >> 16, i >> 8 & 255,
				 i & 255);
			snprintf(rack, sizeof(rack), "rack%u", i / RACK_HOSTS);
			if (world_call(&world, &req, NULL, 0)->error)
				die("announce", "refused");
			world_forget(&world);
		}
		began = cpu_ns() - began;
		if (round)
			printf("%u agents in racks of %u with one image in common: %u announcements a second (one in 20 s each), "
			       "%.0f us of a processor for each in a transaction of its own\n", nr_hosts, RACK_HOSTS,
			       nr_hosts / 20,
			       (double)began / n / 1e3);
	}
}

int main(int argc, char **argv)
{
	struct error err = { 0 };
	struct governor *g;
	bool only_agents = false;
	unsigned int i;
	char sql[200];

	for (i = 1; i + 1 < (unsigned int)argc; i += 2) {
		unsigned int n = (unsigned int)strtoul(argv[i + 1], NULL, 10);

		if (!strcmp(argv[i], "--servers") && n >= 60 && n <= MAX_SERVERS)
			nr_servers = n;
		else if (!strcmp(argv[i], "--hosts") && n)
			nr_hosts = n;
		else if (!strcmp(argv[i], "--shard-gib") && n)
			shard_bytes = (uint64_t)n << 30;
		else if (!strcmp(argv[i], "--out-after"))
			out_after_s = n;
		else if (!strcmp(argv[i], "--only") && !strcmp(argv[i + 1], "agents"))
			only_agents = true;
		else
			break;
	}
	if (i < (unsigned int)argc) {
		fprintf(stderr, "usage: cluster_sim [--servers 60..%d] [--hosts N] [--shard-gib N] "
			"[--out-after SECONDS] [--only agents]\n", MAX_SERVERS);
		return 2;
	}
	setenv("TMPDIR", "/dev/shm", 0);
	setenv("VMDEDUP_QUIET", "1", 0);
	world_init(&world, REPLICAS, 2);
	world.mono_ns = 1000 * S;
	if (only_agents) {
		announces();
		world_free(&world);
		return 0;
	}
	for (i = 0; i < nr_servers; i++)
		join(i);
	order(world.server, VMDEDUP__SERVER_ORDER__SERVER_LOST);
	balance("empty");
	/* A block in every shard: what is in them has to be copied from now on. */
	if (meta_begin(&world.m, &err))
		die("blocks", err.text);
	for (i = 0; i < NR_SHARDS; i++) {
		struct fp fp = { { (uint8_t)(i >> 2), (uint8_t)(i << 6), 1 } };

		if (store_exec(world.m.store, &err, "INSERT INTO blocks (domain, fp, count, condemned) "
			       "SELECT min(id), ?1, 1, 0 FROM domains",
			       V_FP(&fp)) < 0)
			die("blocks", err.text);
	}
	snprintf(sql, sizeof(sql), "UPDATE cluster SET out_after_s = %u", out_after_s);
	if (store_exec(world.m.store, &err, sql) < 0 || meta_commit(&world.m, &err))
		die("blocks", err.text);
	g = governor_new(NULL, &world.m, 0, &err);
	if (!g)
		die("governor", err.text);
	printf("heartbeats: %u a second; %llu GiB a shard and replica, copied at %llu MiB/s by each server; out "
	       "after %u s\n", nr_servers, (unsigned long long)(shard_bytes >> 30), REPAIR_RATE >> 20,
	       out_after_s);
	for (i = 0; i < 50; i++) {
		world.mono_ns += 100 * MS;
		governor_tick(g);
	}
	run(g, "a process is killed", 7, 1, 1, KILLED);
	run(g, "a host is silent", 18, 1, 1, SILENT);
	run(g, "a rack of 5 is silent", 20, 5, 1, SILENT);
	run(g, "10 in 10 racks are killed", 31, 10, RACK, KILLED);
	balance("afterwards");
	governor_free(g);
	announces();
	world_free(&world);
	return 0;
}
