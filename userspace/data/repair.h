/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the repair thread share: repair.c, reconcile.c. All of it is that thread's. */
#ifndef VMDEDUP_DATA_REPAIR_H
#define VMDEDUP_DATA_REPAIR_H

#include "data/server_priv.h"
#include "net/net.h"

#define MAX_SOURCES 8 /* connections to other data servers, for copying from */
#define LIST_PAGE   PROTO_MAX_LIST

struct source {
	uint32_t id;
	uint8_t disk[16];
	char *endpoint;
	struct net_client *client; /* NULL: free */
	uint64_t used;
};

/* A rate of bytes: the time up to which what was moved has used it up. */
struct pace {
	uint64_t until_ns;
};

struct repair {
	struct data_server *s;
	struct topology *t; /* of this round; NULL: not joined yet */
	struct metas metas;
	struct source sources[MAX_SOURCES];
	uint64_t uses;
	struct pace copying, reading;
	uint64_t retry_ns[NR_SHARDS], next_drop_ns;
	/* scrub */
	struct bstore_scrub_at at;
	bool scrubbing;
	uint64_t scrub_began_ns, next_scrub_ns;
	struct bstore_scrubbed *page;
	struct bstore_listed mine[LIST_PAGE];
};

struct fetched {
	size_t stored, absent, damaged;
	uint64_t bytes;
};

/* A call that ends early, with -ECANCELED, when the server ends. A negative errno: also an error
 * reply's. @reply is to be freed in any case. */
int repair_call(struct repair *rp, struct net_client **client, Vmdedup__Request *req,
		struct net_reply *reply);
struct source *repair_source(struct repair *rp, uint32_t id); /* NULL: it cannot be asked */
/* Gets blocks (at most PROTO_MAX_BLOCKS), verifies them and stores them; adds to @out. */
int repair_fetch(struct repair *rp, struct source *src, uint32_t domain, const uint8_t *fps,
		 size_t nr, struct fetched *out);
/* Waits as long as @bytes take at @rate. */
void repair_pace(struct repair *rp, struct pace *p, uint64_t rate, uint64_t bytes);

/* reconcile.c: all blocks that @src has of the shard are here, stamped no lower, when this returns
 * 0; -EIO: all but those that are damaged there. */
int reconcile_shard(struct repair *rp, uint16_t shard, struct source *src);

#endif
