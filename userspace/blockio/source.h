/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the kinds of sources implement. */
#ifndef VMDEDUP_BLOCKIO_SOURCE_H
#define VMDEDUP_BLOCKIO_SOURCE_H

#include "blockio/blockio.h"

struct source_ops {
	int (*extent)(void *priv, uint64_t offset, uint64_t *len, bool *data, struct error *err);
	int (*pread)(void *priv, void *data, size_t len, uint64_t offset, struct error *err);
	void (*close)(void *priv);
};

struct source {
	const struct source_ops *ops;
	void *priv;
	uint64_t size;
	char format[16];
	/* The last extent: file systems look for the end of a long one each time they are asked. */
	uint64_t extent_start, extent_end;
	bool extent_data;
};

/* Fill in ops, priv and size. raw_open() takes over @fd when it succeeds. */
int raw_open(struct source *s, int fd, const char *path, struct error *err);
int nbd_open_uri(struct source *s, const char *uri, struct error *err);
int nbd_open_file(struct source *s, const char *path, const char *format, struct error *err);

#endif
