// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * step_agent CONF TRIGGER [MESSAGE]: vmdedup-agent on a host that is reset at a step of it: at the one whose
 * name is in the file TRIGGER, as soon as there is one. Steps are mutations that it asks of the meta
 * server, by their names in the protocol (`lease_handover`: before it is sent; `lease_handover.done`: it
 * is answered, and nobody here has heard of it), and `warm`: another host has said what to warm. Before a
 * reset at `push_commit.done` it writes to MESSAGE what the commit was.
 * step_agent --deliver CONF MESSAGE: the commit in MESSAGE once more, bit for bit, which must do nothing
 * and give the first result, and the same words in a new session, which must be refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent/daemon.h"
#include "base/log.h"
#include "lib/cluster.h"
#include "lib/internal.h"

#define ANSWER_MS 30000

/* Linked with --wrap. */
int __real_cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
			  size_t nr_frames, int timeout_ms, struct net_reply *reply,
			  struct error *err);
int __wrap_cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
			  size_t nr_frames, int timeout_ms, struct net_reply *reply,
			  struct error *err);

int __real_agent_warm(struct agent *a, const struct uuid *image, const struct fp *root,
		      uint64_t size, const void *trace, size_t len, struct agent_warmth *warmth);
int __wrap_agent_warm(struct agent *a, const struct uuid *image, const struct fp *root,
		      uint64_t size, const void *trace, size_t len, struct agent_warmth *warmth);

static const char *message_path, *trigger_path;

struct message {
	uint64_t session, sequence, push;
	struct fp root;
};

static void die(const char *what, const char *why)
{
	fprintf(stderr, "step_agent: %s: %s\n", what, why);
	exit(1);
}

static void write_all(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);

	if (fd < 0 || write(fd, data, len) != (ssize_t)len || fsync(fd) || close(fd))
		die(path, strerror(errno));
}

/* ---- steps ---- */

static bool is_at(const char *step)
{
	char name[64] = "";
	FILE *f = trigger_path ? fopen(trigger_path, "r") : NULL;
	bool is;

	if (!f)
		return false;
	is = fscanf(f, "%63s", name) == 1 && !strcmp(name, step);
	fclose(f);
	return is;
}

static void reset(const char *step)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY);

	fprintf(stderr, "reset at %s\n", step);
	if (fd < 0 || write(fd, "b", 1) != 1)
		die("/proc/sysrq-trigger", strerror(errno));
	for (;;)
		pause();
}

static const char *name_of(const Vmdedup__Request *req)
{
	const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(
		&vmdedup__request__descriptor, req->body_case);

	return f ? f->name : "";
}

int __wrap_cluster_mutate(struct cluster *c, Vmdedup__Request *req, const struct net_frame *frames,
			  size_t nr_frames, int timeout_ms, struct net_reply *reply,
			  struct error *err)
{
	struct message m = { 0 };
	char step[64];
	int r;

	snprintf(step, sizeof(step), "%s", name_of(req));
	if (is_at(step))
		reset(step);
	r = __real_cluster_mutate(c, req, frames, nr_frames, timeout_ms, reply, err);
	snprintf(step, sizeof(step), "%s.done", name_of(req));
	if (r || !is_at(step))
		return r;
	if (message_path && req->body_case == VMDEDUP__REQUEST__BODY_PUSH_COMMIT) {
		m = (struct message){ .session = c->session, .sequence = c->sequence,
				      .push = req->push_commit->push };
		memcpy(m.root.b, req->push_commit->root.data, FP_SIZE);
		write_all(message_path, &m, sizeof(m));
	}
	reset(step);
	return r;
}

int __wrap_agent_warm(struct agent *a, const struct uuid *image, const struct fp *root,
		      uint64_t size, const void *trace, size_t len, struct agent_warmth *warmth)
{
	int r = __real_agent_warm(a, image, root, size, trace, len, warmth);

	if (len && !r && is_at("warm"))
		reset("warm");
	return r;
}

/* ---- the message again ---- */

static void read_message(const char *path, struct message *m)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, m, sizeof(*m)) != sizeof(*m))
		die(path, "there is no whole message");
	close(fd);
}

static void same_again(struct net_ctx *net, const char *meta, Vmdedup__Request *req,
		       const struct message *m)
{
	Vmdedup__Mutation mutation = VMDEDUP__MUTATION__INIT;
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	struct net_client *c = net_client_new(net, meta, NULL, "agent", &err);
	const Vmdedup__PushCommitReply *first;

	if (!c)
		die(meta, err.text);
	mutation.session = m->session;
	mutation.sequence = m->sequence;
	req->mutation = &mutation;
	if (net_call(c, req, NULL, 0, ANSWER_MS, &reply, &err))
		die("the same message", err.text);
	first = reply.header->body_case == VMDEDUP__REPLY__BODY_PUSH_COMMIT ?
			reply.header->push_commit : NULL;
	if (!first || first->root.len != FP_SIZE || memcmp(first->root.data, m->root.b, FP_SIZE))
		die("the same message", "it has another result than the first time");
	puts("the message again: the first result");
	net_reply_free(&reply);
	net_client_free(c);
	req->mutation = NULL;
}

static int deliver(const char *conf, const char *path)
{
	Vmdedup__PushCommit body = VMDEDUP__PUSH_COMMIT__INIT;
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	struct config config;
	struct cluster *c;
	struct net_ctx *net;
	struct message m;
	int r;

	read_message(path, &m);
	if (config_load(&config, conf, &err))
		die(conf, err.text);
	net = net_ctx_new(NULL, NULL, &err);
	c = net ? cluster_open(net, &config, config.meta, "test", ANSWER_MS, &err) : NULL;
	if (!c)
		die(config.meta, err.text);
	body.push = m.push;
	body.root.data = m.root.b;
	body.root.len = FP_SIZE;
	req.body_case = VMDEDUP__REQUEST__BODY_PUSH_COMMIT;
	req.push_commit = &body;
	same_again(net, config.meta, &req, &m);
	r = cluster_mutate(c, &req, NULL, 0, ANSWER_MS, &reply, &err);
	net_reply_free(&reply);
	if (r != -ESTALE)
		die("an old commit in a new session is not refused", err.text);
	printf("its words in a new session: %s\n", err.text);
	cluster_close(c);
	net_ctx_free(net);
	config_free(&config);
	return 0;
}

/* ---- the agent ---- */

static int serve(const char *conf)
{
	struct error err = { 0 };
	struct config config;
	struct cache *cache;
	struct daemon *d;
	sigset_t set;
	int r;

	if (config_load(&config, conf, &err))
		die(conf, err.text);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	cache = cache_channel_new(config.cache, &err);
	d = cache ? daemon_new(&config, cache, &err) : NULL;
	if (!d)
		die("no agent", err.text);
	r = daemon_run(d, &err);
	if (r)
		log_error("%s", err.text);
	if (!daemon_free(d))
		_exit(r ? 1 : 0);
	config_free(&config);
	return r ? 1 : 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 4 && !strcmp(argv[1], "--deliver"))
		return deliver(argv[2], argv[3]);
	if (argc != 3 && argc != 4) {
		fputs("usage: step_agent CONF TRIGGER [MESSAGE] | --deliver CONF MESSAGE\n", stderr);
		return 2;
	}
	trigger_path = argv[2];
	message_path = argv[3];
	return serve(argv[1]);
}
