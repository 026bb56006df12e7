// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * host_agent CONF SOCKET: vmdedup-agent with its cache in another process (cache_wire.h). It says
 * there which step of a push it is at; whoever listens may kill it, or a server, just then.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/daemon.h"
#include "base/log.h"
#include "lib/internal.h"
#include "cache_wire.h"

/* Linked with --wrap: the library's entries, with a step before and after. */
struct cluster_push *__real_cluster_push_begin(struct cluster *c, const Vmdedup__PushBegin *begin,
					       struct fp *root, struct error *err);
int __real_cluster_push_block(struct cluster_push *p, const struct fp *fp, const void *data,
			      size_t len, struct error *err);
void __real_cluster_mutation_submit(struct cluster *c, struct mutation *m);
int __real_cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
			  size_t nr_frames, int timeout_ms, struct net_reply *reply,
			  struct error *err);
struct cluster_push *__wrap_cluster_push_begin(struct cluster *c, const Vmdedup__PushBegin *begin,
					       struct fp *root, struct error *err);
int __wrap_cluster_push_block(struct cluster_push *p, const struct fp *fp, const void *data,
			      size_t len, struct error *err);
void __wrap_cluster_mutation_submit(struct cluster *c, struct mutation *m);
int __wrap_cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
			  size_t nr_frames, int timeout_ms, struct net_reply *reply,
			  struct error *err);

struct cluster_push *__wrap_cluster_push_begin(struct cluster *c, const Vmdedup__PushBegin *begin,
					       struct fp *root, struct error *err)
{
	struct cluster_push *p;

	cache_socket_step("begin");
	p = __real_cluster_push_begin(c, begin, root, err);
	cache_socket_step("begin.done");
	return p;
}

int __wrap_cluster_push_block(struct cluster_push *p, const struct fp *fp, const void *data,
			      size_t len, struct error *err)
{
	int r;

	cache_socket_step("block");
	r = __real_cluster_push_block(p, fp, data, len, err);
	cache_socket_step("block.done");
	return r;
}

void __wrap_cluster_mutation_submit(struct cluster *c, struct mutation *m)
{
	bool part = m->req->body_case == VMDEDUP__REQUEST__BODY_PUSH_PART;

	if (part)
		cache_socket_step("part");
	__real_cluster_mutation_submit(c, m);
	if (part)
		cache_socket_step("part.sent");
}

int __wrap_cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
			  size_t nr_frames, int timeout_ms, struct net_reply *reply,
			  struct error *err)
{
	const char *what = req->body_case == VMDEDUP__REQUEST__BODY_PUSH_COMMIT ? "commit" :
			   req->body_case == VMDEDUP__REQUEST__BODY_LEASE_RELEASE ? "lease" :
			   req->body_case == VMDEDUP__REQUEST__BODY_LEASE_HANDOVER ? "handover" :
			   req->body_case == VMDEDUP__REQUEST__BODY_LEASE_TAKE ? "take" : NULL;
	char done[160], hex[FP_HEX_SIZE];
	struct fp root;
	int r;

	if (req->body_case == VMDEDUP__REQUEST__BODY_PUSH_COMMIT) {
		memcpy(root.b, req->push_commit->root.data, FP_SIZE);
		snprintf(done, sizeof(done), "message %llu %llu %llu %s",
			 (unsigned long long)req->push_commit->push,
			 (unsigned long long)c->session, (unsigned long long)c->sequence + 1,
			 fp_to_hex(&root, hex));
		cache_socket_step(done);
	}
	if (what)
		cache_socket_step(what);
	r = __real_cluster_mutate(c, req, frames, nr_frames, timeout_ms, reply, err);
	if (what) {
		snprintf(done, sizeof(done), "%s.done", what);
		cache_socket_step(done);
	}
	return r;
}

int __real_agent_warm(struct agent *a, const struct uuid *image, const struct fp *root,
		      uint64_t size, const void *trace, size_t len, struct agent_warmth *warmth);
int __wrap_agent_warm(struct agent *a, const struct uuid *image, const struct fp *root,
		      uint64_t size, const void *trace, size_t len, struct agent_warmth *warmth);

/* Only where it begins: how often it is asked about is the clock's. */
int __wrap_agent_warm(struct agent *a, const struct uuid *image, const struct fp *root,
		      uint64_t size, const void *trace, size_t len, struct agent_warmth *warmth)
{
	int r;

	if (len)
		cache_socket_step("warm");
	r = __real_agent_warm(a, image, root, size, trace, len, warmth);
	if (len)
		cache_socket_step("warm.done");
	return r;
}

static void block_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
	struct error err = { 0 };
	struct config config;
	struct daemon *d;
	int r;

	if (argc != 3) {
		fputs("Usage: host_agent CONF SOCKET\n", stderr);
		return 2;
	}
	if (config_load(&config, argv[1], &err)) {
		log_error("%s", err.text);
		return 2;
	}
	block_signals();
	d = daemon_new(&config, cache_socket_new(argv[2]), &err);
	r = d ? daemon_run(d, &err) : -1;
	if (r)
		log_error("%s", err.text);
	if (!d || !daemon_free(d))
		_exit(r ? 1 : 0);
	config_free(&config);
	return r ? 1 : 0;
}
