// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include "agent/node_source.h"

static int source_get(void *ctx, const struct fp *hash, uint8_t out[RECIPE_NODE_MAX], size_t *len,
		      struct error *err)
{
	struct node_source *s = ctx;
	int r;

	if (!nodes_get(s->nodes, hash, s->memory_only, out, len))
		return 0;
	if (s->memory_only)
		return -EAGAIN;
	r = s->below->get(s->below_ctx, hash, out, len, err);
	if (!r && !nodes_put(s->nodes, hash, out, *len))
		r = error_set(err, -EBADMSG, "a recipe node does not match its hash");
	return r;
}

static int source_put(void *ctx, const struct fp *hash, const uint8_t *data, size_t len,
		      struct error *err)
{
	struct node_source *s = ctx;
	int r;

	r = s->below->put(s->below_ctx, hash, data, len, err);
	if (!r)
		nodes_put(s->nodes, hash, data, len);
	return r;
}

const struct recipe_ops node_source_ops = {
	.get = source_get,
	.put = source_put,
	.verified = true,
};
