/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Device-mapper devices of the target `dedup`, by libdevmapper. */
#ifndef VMDEDUP_CLI_DM_H
#define VMDEDUP_CLI_DM_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"

struct dm_volume {
	char name[128];	 /* of the device */
	char image[256]; /* as in its table */
	uint32_t open_count;
	bool read_only;
};

/* -ENOPROTOOPT: the kernel has no device mapper, or no target `dedup`. */
int dm_check(struct error *err);
/* Makes /dev/mapper/@name with the table `0 SECTORS dedup CACHE IMAGE`. */
int dm_volume_create(const char *name, uint64_t bytes, const char *cache, const char *image,
		     bool read_only, bool ephemeral, struct error *err);
int dm_volume_remove(const char *name, struct error *err);
/* All devices of the target `dedup`; free(*volumes). */
int dm_volume_list(struct dm_volume **volumes, size_t *count, struct error *err);
const char *dm_name_check(const char *name); /* NULL, or what is wrong with it */

/* The image behind what a user named: a device of ours (then also @device, else empty), or an image. */
void dm_image_of(const char *what, char image[256], char device[128]);

/* A device of ours gets another size, in use: its table with that size is loaded and resumed. */
int dm_volume_resize(const char *name, uint64_t bytes, struct error *err);

#endif
