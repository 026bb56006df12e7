/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_AGENT_NODE_SOURCE_H
#define VMDEDUP_AGENT_NODE_SOURCE_H

#include "agent/nodes.h"
#include "proto/recipe.h"

/* recipe_ops that read through the host's nodes, then from @below; what comes is kept. Any thread. */
struct node_source {
	struct nodes *nodes;
	bool memory_only; /* -EAGAIN instead of the file and @below */
	const struct recipe_ops *below;
	void *below_ctx;
};
extern const struct recipe_ops node_source_ops; /* ctx: struct node_source * */

#endif
