// SPDX-License-Identifier: GPL-2.0-or-later
/* The file that remembers peers. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "agent/peers_impl.h"
#include "base/cleanup.h"
#include "base/log.h"

/* A line for each: endpoint, key in hex or -, "liar" or "peer", its rack's number in hex or 0. It may
 * be deleted at any time. */
void peers_save(struct peers *p)
{
	CLEANUP_FREE char *tmp = NULL;
	unsigned int i, k;
	FILE *f;

	if (!p->path || asprintf(&tmp, "%s.new", p->path) < 0) {
		tmp = NULL;
		return;
	}
	f = fopen(tmp, "we");
	if (!f)
		return;
	for (i = 0; i < SOURCES_MAX_PEERS; i++) {
		const struct source_peer *sp = sources_peer_at(links_sources(p->links), i);

		if (!sp || (!sp->suggested && sp->state != PEER_LIAR))
			continue;
		fprintf(f, "%s ", sp->address.endpoint);
		for (k = 0; sp->address.has_key && k < sizeof(sp->address.key); k++)
			fprintf(f, "%02x", sp->address.key[k]);
		fprintf(f, "%s %s %x\n", sp->address.has_key ? "" : "-",
			sp->state == PEER_LIAR ? "liar" : "peer", sp->address.rack);
	}
	if (fclose(f) || rename(tmp, p->path))
		log_debug("the file of peers %s was not written: %s", p->path, strerror(errno));
}

void peers_load(struct peers *p)
{
	char line[512], endpoint[PEER_ENDPOINT_MAX], key[65], what[8];
	struct peer_address a;
	struct fp bytes;
	FILE *f;

	f = p->path ? fopen(p->path, "re") : NULL;
	while (f && fgets(line, sizeof(line), f)) {
		Vmdedup__PeerAddress in = VMDEDUP__PEER_ADDRESS__INIT;

		if (sscanf(line, "%127s %64s %7s %x", endpoint, key, what, &in.rack) < 3)
			continue;
		in.endpoint = endpoint;
		if (!fp_from_hex(&bytes, key))
			in.curve_key = (ProtobufCBinaryData){ FP_SIZE, bytes.b };
		else if (strcmp(key, "-"))
			continue;
		if (peer_address_take(&in, &a))
			continue;
		links_remember(p->links, &a, !strcmp(what, "liar"));
	}
	if (f)
		fclose(f);
}
