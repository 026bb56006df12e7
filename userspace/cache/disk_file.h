/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A file or block device as a struct dedup_disk. */
#ifndef VMDEDUP_CACHE_DISK_FILE_H
#define VMDEDUP_CACHE_DISK_FILE_H

#include "disk.h"
#include "base/error.h"

struct disk_file {
	int fd;
	bool block_device;
	struct dedup_disk disk;
};

/*
 * Opens @path; a block device is claimed (O_EXCL). -EBUSY, -ENOENT, -EACCES, -ENOTBLK (neither
 * file nor block device).
 */
int disk_file_open(struct disk_file *f, const char *path, bool writable, struct error *err);
void disk_file_close(struct disk_file *f);

#endif
