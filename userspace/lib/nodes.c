// SPDX-License-Identifier: GPL-2.0-or-later
/* Recipe nodes from the meta server, with a bounded cache. */
#include <errno.h>
#include <string.h>
#include "lib/internal.h"

#define NODE_TIMEOUT_MS 60000

static struct node_slot *slot_of(struct cluster *c, const struct fp *hash)
{
	uint32_t h;

	memcpy(&h, hash->b, sizeof(h));
	return &c->nodes[h % NODE_CACHE_SLOTS];
}

static int fetch(struct cluster *c, const struct fp *hash, struct node_slot *slot,
		 struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__NodeGet get = VMDEDUP__NODE_GET__INIT;
	char hex[FP_HEX_SIZE];
	struct net_reply reply;
	struct fp seen;
	int r;

	get.hashes.data = (uint8_t *)hash->b;
	get.hashes.len = FP_SIZE;
	req.body_case = VMDEDUP__REQUEST__BODY_NODE_GET;
	req.node_get = &get;
	r = cluster_call(c, &req, NULL, 0, NODE_TIMEOUT_MS, &reply, err);
	if (r)
		goto free_reply;
	if (reply.nr_frames != 1) {
		r = error_set(err, -ENOENT, "the meta server does not know recipe node %s",
			      fp_to_hex(hash, hex));
		goto free_reply;
	}
	if (reply.frames[0].len > RECIPE_NODE_MAX) {
		r = error_set(err, -EBADMSG, "recipe node %s is too long", fp_to_hex(hash, hex));
		goto free_reply;
	}
	recipe_node_hash(reply.frames[0].data, reply.frames[0].len, &seen);
	if (!fp_equal(&seen, hash)) {
		r = error_set(err, -EBADMSG, "recipe node %s does not match its hash",
			      fp_to_hex(hash, hex));
		goto free_reply;
	}
	slot->hash = *hash;
	slot->len = reply.frames[0].len;
	memcpy(slot->data, reply.frames[0].data, slot->len);
free_reply:
	net_reply_free(&reply);
	return r;
}

static int node_get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		    struct error *err)
{
	struct cluster *c = ctx;
	struct node_slot *slot = slot_of(c, hash);

	if (!fp_equal(&slot->hash, hash) || !slot->len) {
		int r = fetch(c, hash, slot, err);

		if (r)
			return r;
	}
	memcpy(out, slot->data, slot->len);
	*len = slot->len;
	return 0;
}

const struct recipe_ops cluster_recipe_ops = { .get = node_get };
