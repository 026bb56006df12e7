/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the cluster holds, asked from the meta server and all data servers. */
#ifndef VMDEDUP_CLI_STORES_H
#define VMDEDUP_CLI_STORES_H

#include "cli/connect.h"
#include "cli/ui.h"

struct store_of {
	char *endpoint;
	uint32_t id, state;
	int r; /* of its DATA_STAT */
	uint64_t blocks, raw_bytes, stored_bytes, lump_bytes, capacity, free;
	uint64_t gets, get_bytes; /* sent since its process began */
};

struct stores {
	Vmdedup__ClusterInfoReply *info;
	struct store_of *servers;
	size_t nr_servers;
};

int stores_ask(struct connection *cn, struct stores *s, struct error *err);
json_t *stores_json(const struct stores *s);
void stores_print(const struct stores *s);
void stores_free(struct stores *s);

#endif
