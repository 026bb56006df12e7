// SPDX-License-Identifier: GPL-2.0-only
/*
 * dm-dedup: registration of the two targets.
 */
#include <linux/device-mapper.h>
#include <linux/module.h>

static int unusable_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	ti->error = "this build has no store";
	return -EOPNOTSUPP;
}

static int unusable_map(struct dm_target *ti, struct bio *bio)
{
	return DM_MAPIO_KILL;
}

static struct target_type cache_target = {
	.name = "dedup-cache",
	.version = {0, 1, 0},
	.module = THIS_MODULE,
	.ctr = unusable_ctr,
	.map = unusable_map,
};

static struct target_type volume_target = {
	.name = "dedup",
	.version = {0, 1, 0},
	.module = THIS_MODULE,
	.ctr = unusable_ctr,
	.map = unusable_map,
};

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
