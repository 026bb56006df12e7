/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Device-mapper devices of the target `dedup`, by libdevmapper. */
#ifndef VMDEDUP_CLI_DM_H
#define VMDEDUP_CLI_DM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/error.h"
#include "base/uuid.h"

struct dm_volume {
	char name[128];	 /* of the device */
	char image[256]; /* as in its table: a name that may mean another image by now */
	struct uuid uuid; /* of the image that the device has; null: the kernel does not tell */
	dev_t cache;	 /* the cache device */
	uint32_t open_count;
	bool read_only;
};

/* -ENOPROTOOPT: the kernel has no device mapper, or no target `dedup`. */
int dm_check(struct error *err);
/* Makes /dev/mapper/@name with the table `0 SECTORS dedup CACHE IMAGE`. */
int dm_volume_create(const char *name, uint64_t bytes, const char *cache, const char *image,
		     bool read_only, bool ephemeral, struct error *err);
int dm_volume_remove(const char *name, struct error *err);

/* A table of ours. */
struct dm_table {
	uint64_t sectors;
	char *params; /* free() */
	bool read_only;
};

/* -EINVAL: the device is no volume. free(t->params), also after an error. */
int dm_table_read(const char *name, struct dm_table *t, struct error *err);
/* The device that had it, once more. @image: what the table is to call the image; NULL: what it does. */
int dm_table_restore(const char *name, const struct dm_table *t, const char *image, struct error *err);
/*
 * The devices of the target `dedup` over @cache, the path of a cache device ([agent] cache): other caches of
 * this kernel are other agents', and may have images of the same names. NULL: over any. free(*volumes).
 */
int dm_volume_list(const char *cache, struct dm_volume **volumes, size_t *count, struct error *err);
const char *dm_name_check(const char *name); /* NULL, or what is wrong with it */
/* -EEXIST: a device has it, of whatever cache or program: names are the kernel's. */
int dm_name_is_free(const char *name, struct error *err);

/* What a user named: a device over a cache, by its name or path, or an image, by its name or UUID. */
struct dm_named {
	char image[256];  /* for people: as in the device's table, else as was said */
	char device[128]; /* empty: no device has it */
	char volume[256]; /* for the agent: the UUID of the device's image, else @image */
	struct uuid uuid; /* of the device's image; null: no device has it, or the kernel does not tell */
};

/* -EEXIST: @what is a device's name and, in the table of another, an image's. Never any other error: without
 * a device mapper there are no devices. */
int dm_find(const char *cache, const char *what, struct dm_named *named, struct error *err);
/* The same among @volumes. */
int dm_find_among(const struct dm_volume *volumes, size_t count, const char *what,
		  struct dm_named *named, struct error *err);

/* The parameters of a table of ours with another word for the image; free(). NULL: they are none, or no memory. */
char *dm_params_with(const char *params, const char *image);

/*
 * A device of ours gets another size, in use: its table with that size is loaded and resumed. @image: what
 * the table is to call the image; NULL: what it calls it now.
 */
int dm_volume_resize(const char *name, uint64_t bytes, const char *image, struct error *err);

#endif
