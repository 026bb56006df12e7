/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bytes that are handed on without a copy, in whosever memory they are. */
#ifndef VMDEDUP_BASE_BYTES_H
#define VMDEDUP_BASE_BYTES_H

#include <stddef.h>

struct bytes {
	const void *data;
	size_t len;
	void (*free)(struct bytes *b); /* gives the memory back, and @b; any thread */
};

/* A copy of them; NULL: no memory. */
struct bytes *bytes_copy(const void *data, size_t len);
void bytes_free(struct bytes *b); /* NULL: nothing */

#endif
