// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/uuid.h"
#include "cli/agent.h"

/* Whether somebody listens there: ZeroMQ itself would wait for one to come. */
static int probe(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	return connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ? -errno : 0;
}

int agent_open(struct agent_link *a, const struct config *conf, struct error *err)
{
	int r;

	*a = (struct agent_link){ 0 };
	if (asprintf(&a->endpoint, "ipc://%s/agent.sock", conf->run) < 0) {
		a->endpoint = NULL;
		return error_set(err, -ENOMEM, "out of memory");
	}
	r = probe(a->endpoint + strlen("ipc://"));
	if (r == -ENOENT || r == -ECONNREFUSED)
		r = error_set(err, -ENOTCONN, "no agent runs on this host (nobody listens on "
			      "%s/agent.sock): systemctl start vmdedup-agent", conf->run);
	else if (r)
		error_set(err, r, "cannot reach the agent on %s/agent.sock: %s", conf->run,
			  strerror(-r));
	if (!r) {
		a->net = net_ctx_new(NULL, NULL, err);
		a->client = a->net ? net_client_new(a->net, a->endpoint, NULL, "cli", err) : NULL;
		r = a->client ? 0 : err->code;
	}
	if (r)
		agent_close(a);
	return r;
}

void agent_close(struct agent_link *a)
{
	net_client_free(a->client);
	if (a->net)
		net_ctx_free(a->net);
	free(a->endpoint);
	*a = (struct agent_link){ 0 };
}

uint64_t agent_nonce(void)
{
	uint64_t n;

	if (getrandom(&n, sizeof(n), 0) != sizeof(n))
		n = clock_mono_ns();
	return n;
}

int agent_call(struct agent_link *a, Vmdedup__Request *req, Vmdedup__Reply__BodyCase body,
	       int timeout_ms, struct net_reply *reply, struct error *err)
{
	int r = net_call(a->client, req, NULL, 0, timeout_ms, reply, err);

	if (!r && reply->header->body_case != body)
		r = error_set(err, -EPROTO, "the agent answered with something else: is it of "
			      "another version?");
	return r;
}

int agent_volumes(struct agent_link *a, struct net_reply *reply, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumeList list = VMDEDUP__VOLUME_LIST__INIT;

	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_LIST;
	req.volume_list = &list;
	return agent_call(a, &req, VMDEDUP__REPLY__BODY_VOLUME_LIST, AGENT_TIMEOUT_MS, reply, err);
}

const Vmdedup__Volume *agent_volume_in(const Vmdedup__VolumeListReply *list, const char *volume)
{
	struct uuid uuid;
	bool by_uuid = !uuid_from_text(&uuid, volume);

	for (size_t i = 0; i < list->n_volumes; i++) {
		const Vmdedup__Volume *v = list->volumes[i];

		if (by_uuid ? v->image.len == sizeof(uuid.b) && !memcmp(v->image.data, uuid.b, sizeof(uuid.b)) :
			      !strcmp(v->name, volume))
			return v;
	}
	return NULL;
}
