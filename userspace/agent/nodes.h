/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Recipe nodes that this host has seen: in memory, and in a file of fixed size that may be deleted
 * at any time. Both are direct-mapped by hash: a newer node takes the place of an older one.
 * Every node is verified against its hash when it comes in from the file or from outside.
 * Thread-safe.
 */
#ifndef VMDEDUP_AGENT_NODES_H
#define VMDEDUP_AGENT_NODES_H

#include "base/error.h"
#include "base/fingerprint.h"
#include "proto/recipe.h"

#define NODES_IN_MEMORY 4096  /* of 8 KiB: 32 MiB */
#define NODES_IN_FILE	32768 /* 256 MiB, sparse */

struct nodes;
/* @path NULL: memory only. A file that cannot be used is a warning, not an error. */
struct nodes *nodes_new(const char *path);
void nodes_free(struct nodes *n);
/* False: it does not match its hash, and is not kept. */
bool nodes_put(struct nodes *n, const struct fp *hash, const void *data, size_t len);
/* 0 or -ENOENT. @memory_only: does not block on the file. */
int nodes_get(struct nodes *n, const struct fp *hash, bool memory_only,
	      uint8_t out[RECIPE_NODE_MAX], size_t *len);

#endif
