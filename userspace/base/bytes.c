// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

struct copied {
	struct bytes bytes;
	unsigned char data[];
};

static void free_copy(struct bytes *b)
{
	free(b);
}

struct bytes *bytes_copy(const void *data, size_t len)
{
	struct copied *c = malloc(sizeof(*c) + len);

	if (!c)
		return NULL;
	if (len)
		memcpy(c->data, data, len);
	c->bytes = (struct bytes){ c->data, len, free_copy };
	return &c->bytes;
}

void bytes_free(struct bytes *b)
{
	if (b)
		b->free(b);
}
