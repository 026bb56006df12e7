/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The cluster of the configuration, as a verb uses it: reached, or embedded while it runs. */
#ifndef VMDEDUP_CLI_CONNECT_H
#define VMDEDUP_CLI_CONNECT_H

#include "agent/embedded.h"
#include "base/uuid.h"
#include "cli/cli.h"
#include "lib/cluster.h"

#define CLI_TIMEOUT_MS 15000 /* for one request to the meta server */

struct connection {
	const struct config *conf;
	struct net_ctx *net;
	struct embedded *embedded; /* NULL: others serve */
	char *meta;
	struct cluster *cluster;
};

/* Either all of it or nothing. */
int connect_open(struct connection *cn, const struct config *conf, struct error *err);
void connect_close(struct connection *cn);
/* One more client of the same cluster, for another thread. */
struct cluster *connect_another(struct connection *cn, struct error *err);

/* Requests that several verbs make. The image is freed with cli_image_free(). */
int cli_image_get(struct connection *cn, const char *name, uint64_t version, Vmdedup__Image **image,
	      struct error *err);
/* By its UUID, whatever its name is by now. */
int cli_image_get_by_uuid(struct connection *cn, const struct uuid *uuid, Vmdedup__Image **image,
			  struct error *err);
void cli_image_free(Vmdedup__Image *image);
int cli_root_of(const Vmdedup__Image *image, struct fp *root, struct error *err);
/* -EINVAL with a text that says what is wrong with the name. */
int cli_name_check(const char *name, struct error *err);

#endif
