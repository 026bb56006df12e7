// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent/nodes.h"
#include "base/log.h"

struct node {
	struct fp hash;
	size_t len;
	uint8_t data[];
};

/* What lies in the file at (hash mod NODES_IN_FILE) * sizeof: host order, it never travels. */
struct node_record {
	struct fp hash;
	uint32_t len;
	uint8_t data[RECIPE_NODE_MAX];
};

struct nodes {
	pthread_mutex_t lock; /* guards memory */
	struct node *memory[NODES_IN_MEMORY];
	int fd; /* -1: none */
};

struct nodes *nodes_new(const char *path)
{
	struct nodes *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	pthread_mutex_init(&n->lock, NULL);
	n->fd = -1;
	if (path) {
		n->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (n->fd < 0)
			log_warn("recipes will not be kept on disk: cannot open %s: %s", path,
				 strerror(errno));
	}
	return n;
}

void nodes_free(struct nodes *n)
{
	size_t i;

	if (!n)
		return;
	for (i = 0; i < NODES_IN_MEMORY; i++)
		free(n->memory[i]);
	if (n->fd >= 0)
		close(n->fd);
	pthread_mutex_destroy(&n->lock);
	free(n);
}

static uint32_t hash_index(const struct fp *hash)
{
	uint32_t h;

	memcpy(&h, hash->b, sizeof(h));
	return h;
}

static void remember(struct nodes *n, const struct fp *hash, const void *data, size_t len)
{
	struct node **place = &n->memory[hash_index(hash) % NODES_IN_MEMORY];
	struct node *node = malloc(sizeof(*node) + len);

	if (!node)
		return; /* only a cache */
	node->hash = *hash;
	node->len = len;
	memcpy(node->data, data, len);
	pthread_mutex_lock(&n->lock);
	free(*place);
	*place = node;
	pthread_mutex_unlock(&n->lock);
}

static bool recall(struct nodes *n, const struct fp *hash, uint8_t *out, size_t *len)
{
	struct node *node;
	bool found;

	pthread_mutex_lock(&n->lock);
	node = n->memory[hash_index(hash) % NODES_IN_MEMORY];
	found = node && fp_equal(&node->hash, hash);
	if (found) {
		*len = node->len;
		memcpy(out, node->data, node->len);
	}
	pthread_mutex_unlock(&n->lock);
	return found;
}

static bool is_node(const struct fp *hash, const void *data, size_t len)
{
	struct fp seen;

	if (!len || len > RECIPE_NODE_MAX)
		return false;
	recipe_node_hash(data, len, &seen);
	return fp_equal(&seen, hash);
}

bool nodes_put(struct nodes *n, const struct fp *hash, const void *data, size_t len)
{
	struct node_record rec = { .hash = *hash, .len = (uint32_t)len };
	size_t size = offsetof(struct node_record, data) + len;
	off_t at = (off_t)(hash_index(hash) % NODES_IN_FILE) * (off_t)sizeof(rec);

	if (!is_node(hash, data, len))
		return false;
	remember(n, hash, data, len);
	if (n->fd < 0)
		return true;
	memcpy(rec.data, data, len);
	/* Not synced: a torn record fails its hash, and is fetched again. */
	if (pwrite(n->fd, &rec, size, at) != (ssize_t)size)
		log_debug("a recipe node was not kept on disk: %s", strerror(errno));
	return true;
}

int nodes_get(struct nodes *n, const struct fp *hash, bool memory_only,
	      uint8_t out[RECIPE_NODE_MAX], size_t *len)
{
	struct node_record rec;
	off_t at = (off_t)(hash_index(hash) % NODES_IN_FILE) * (off_t)sizeof(rec);
	ssize_t got;

	if (recall(n, hash, out, len))
		return 0;
	if (memory_only || n->fd < 0)
		return -ENOENT;
	got = pread(n->fd, &rec, sizeof(rec), at);
	if (got < (ssize_t)offsetof(struct node_record, data) || !fp_equal(&rec.hash, hash) ||
	    rec.len > RECIPE_NODE_MAX ||
	    got < (ssize_t)(offsetof(struct node_record, data) + rec.len) ||
	    !is_node(hash, rec.data, rec.len))
		return -ENOENT;
	memcpy(out, rec.data, rec.len);
	*len = rec.len;
	remember(n, hash, rec.data, rec.len);
	return 0;
}
