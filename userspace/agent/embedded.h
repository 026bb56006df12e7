/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A meta and a data server inside this process, on the store of the configuration, bound to
 * inproc:// for itself and to ipc:// sockets in the run folder for the command. One process at
 * a time has a store (lock file): the agent while it runs, else the command.
 */
#ifndef VMDEDUP_AGENT_EMBEDDED_H
#define VMDEDUP_AGENT_EMBEDDED_H

#include "base/config.h"
#include "base/error.h"
#include "net/net.h"

#define EMBEDDED_META "inproc://vmdedup-meta"
#define EMBEDDED_DATA "inproc://vmdedup-data"

struct embedded;
/* Starts both on threads of their own and waits until they serve. -EBUSY: another process has
 * the store; -ENOENT: no cluster there (`vmdedup cluster init`). */
struct embedded *embedded_start(struct net_ctx *net, const struct config *config,
				struct error *err);
void embedded_stop(struct embedded *e); /* any thread, once; NULL is fine */
/* 0 while both servers run, else why one ended. Any thread. */
int embedded_check(struct embedded *e, struct error *err);
/* Does the configuration mean embedded servers (and not a fleet's)? */
bool embedded_is_configured(const struct config *config);

/* The endpoint of the meta server that this configuration means: the configured one; else the
 * running agent's ipc socket; else, when @start is not NULL, starts embedded servers. */
int embedded_or_remote(struct net_ctx *net, const struct config *config, struct embedded **start,
		       char **meta_endpoint, struct error *err);

#endif
