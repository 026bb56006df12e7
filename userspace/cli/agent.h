/* SPDX-License-Identifier: GPL-2.0-or-later */
/* This host's agent, over its control socket. */
#ifndef VMDEDUP_CLI_AGENT_H
#define VMDEDUP_CLI_AGENT_H

#include "cli/cli.h"
#include "net/net.h"

struct agent_link {
	struct net_ctx *net;
	struct net_client *client;
	char *endpoint;
};

/* -ENOTCONN: no agent runs here. */
int agent_open(struct agent_link *a, const struct config *conf, struct error *err);
void agent_close(struct agent_link *a);
/* @timeout_ms -1: as long as it takes. Checks that the answer has @body. Result as net_call(). */
int agent_call(struct agent_link *a, Vmdedup__Request *req, Vmdedup__Reply__BodyCase body,
	       int timeout_ms, struct net_reply *reply, struct error *err);

/* All volumes of this host. net_reply_free(reply), also after an error. */
int agent_volumes(struct agent_link *a, struct net_reply *reply, struct error *err);
/* @volume: the image's UUID, or the name that it was opened by. NULL: there is none. */
const Vmdedup__Volume *agent_volume_in(const Vmdedup__VolumeListReply *list, const char *volume);

/* For a request that must not be done twice. */
uint64_t agent_nonce(void);

#define AGENT_TIMEOUT_MS 10000

#endif
