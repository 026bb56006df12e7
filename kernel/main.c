// SPDX-License-Identifier: GPL-2.0-only
#include <linux/module.h>
#include "dedup.h"

static int __init dedup_init(void)
{
	int r = dm_register_target(&cache_target);

	if (r)
		return r;
	r = dm_register_target(&volume_target);
	if (r)
		dm_unregister_target(&cache_target);
	return r;
}

static void __exit dedup_exit(void)
{
	dm_unregister_target(&volume_target);
	dm_unregister_target(&cache_target);
}

module_init(dedup_init);
module_exit(dedup_exit);

MODULE_DESCRIPTION("Device-mapper targets for volumes deduplicated over a fleet");
MODULE_LICENSE("GPL");
