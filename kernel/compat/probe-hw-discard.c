// SPDX-License-Identifier: GPL-2.0-only
#include <linux/blkdev.h>

void probe(struct queue_limits *limits);
void probe(struct queue_limits *limits)
{
	limits->max_user_discard_sectors = 0;
}
