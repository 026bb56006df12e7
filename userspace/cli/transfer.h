/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All blocks of an image, read from the cluster and verified by several threads, each with its
 * own client: what export and verify stand on.
 */
#ifndef VMDEDUP_CLI_TRANSFER_H
#define VMDEDUP_CLI_TRANSFER_H

#include "cli/connect.h"

struct transfer {
	struct connection *cn;
	const Vmdedup__Image *image;
	/* Any thread; blocks in any order. @r 0: @len bytes, the image's end cut off; else why
	 * there are none. A non-zero return ends the transfer. */
	int (*block)(void *arg, uint64_t offset, int r, const void *data, size_t len,
		     struct error *err);
	/* A run of zeros. One thread, but at the same time as blocks. */
	int (*zeros)(void *arg, uint64_t offset, uint64_t len, struct error *err);
	/* One thread; false: stop. */
	bool (*progress)(void *arg, uint64_t done);
	void *arg;
};

int transfer_run(const struct transfer *t, struct error *err);

#endif
