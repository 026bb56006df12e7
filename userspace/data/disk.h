/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk under a store's lumps, as a table of functions: the real one, or a test's that
 * breaks. Functions return 0 (or a count) or a negative errno, and may be called from any
 * thread. Paths are relative to the store's folder.
 */
#ifndef VMDEDUP_DATA_DISK_H
#define VMDEDUP_DATA_DISK_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct disk_ops {
	int (*open)(void *ctx, int dirfd, const char *path, int flags); /* a descriptor */
	int (*close)(void *ctx, int fd);
	ssize_t (*pread)(void *ctx, int fd, void *buf, size_t len, uint64_t offset);
	/* May write less than was asked for. */
	ssize_t (*pwritev)(void *ctx, int fd, const struct iovec *iov, int count, uint64_t offset);
	int (*datasync)(void *ctx, int fd);
	int (*syncfs)(void *ctx, int fd); /* everything on the file system of @fd */
	int (*truncate)(void *ctx, int fd, uint64_t len);
	int (*unlink)(void *ctx, int dirfd, const char *path);
	/* Bytes that an ordinary user can still write. */
	int (*space)(void *ctx, int fd, uint64_t *free);
	/* Just before the index commits; an error stands for a crash at that point. */
	int (*before_commit)(void *ctx);
};

extern const struct disk_ops disk_posix; /* ctx is not used */

struct disk {
	const struct disk_ops *ops;
	void *ctx;
};

/* All of it: -EIO when the file ends before @len bytes. */
int disk_read(const struct disk *disk, int fd, void *buf, size_t len, uint64_t offset);
/* All of it, however short the writes are. Changes @iov. */
int disk_write(const struct disk *disk, int fd, struct iovec *iov, size_t count, uint64_t offset);

#endif
