/* SPDX-License-Identifier: GPL-2.0-or-later */
/* vmdedup cluster: the verbs about data servers and replicas. */
#ifndef VMDEDUP_CLI_SERVERS_H
#define VMDEDUP_CLI_SERVERS_H

#include "cli/cli.h"

int cluster_status_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_servers_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_shards_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_add_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_drain_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_remove_run(struct cli *cli, const struct verb *verb, int argc, char **argv);
int cluster_set_run(struct cli *cli, const struct verb *verb, int argc, char **argv);

#endif
