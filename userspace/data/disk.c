// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"

static int posix_open(void *ctx, int dirfd, const char *path, int flags)
{
	int fd = openat(dirfd, path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);

	return fd < 0 ? -errno : fd;
}

static int posix_close(void *ctx, int fd)
{
	return close(fd) ? -errno : 0;
}

static ssize_t posix_pread(void *ctx, int fd, void *buf, size_t len, uint64_t offset)
{
	ssize_t n = pread(fd, buf, len, (off_t)offset);

	return n < 0 ? -errno : n;
}

static ssize_t posix_pwritev(void *ctx, int fd, const struct iovec *iov, int count, uint64_t offset)
{
	ssize_t n = pwritev(fd, iov, count, (off_t)offset);

	return n < 0 ? -errno : n;
}

static int posix_datasync(void *ctx, int fd)
{
	return fdatasync(fd) ? -errno : 0;
}

static int posix_syncfs(void *ctx, int fd)
{
	return syncfs(fd) ? -errno : 0;
}

static int posix_truncate(void *ctx, int fd, uint64_t len)
{
	return ftruncate(fd, (off_t)len) ? -errno : 0;
}

static int posix_unlink(void *ctx, int dirfd, const char *path)
{
	return unlinkat(dirfd, path, 0) ? -errno : 0;
}

static int posix_space(void *ctx, int fd, uint64_t *free_bytes)
{
	struct statvfs vfs;

	if (fstatvfs(fd, &vfs))
		return -errno;
	*free_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
	return 0;
}

static int posix_before_commit(void *ctx)
{
	return 0;
}

const struct disk_ops disk_posix = {
	.open = posix_open,
	.close = posix_close,
	.pread = posix_pread,
	.pwritev = posix_pwritev,
	.datasync = posix_datasync,
	.syncfs = posix_syncfs,
	.truncate = posix_truncate,
	.unlink = posix_unlink,
	.space = posix_space,
	.before_commit = posix_before_commit,
};

int disk_read(const struct disk *disk, int fd, void *buf, size_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = disk->ops->pread(disk->ctx, fd, buf, len, offset);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		if (!n)
			return -EIO;
		buf = (char *)buf + n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int disk_write(const struct disk *disk, int fd, struct iovec *iov, size_t count, uint64_t offset)
{
	while (count) {
		ssize_t n = disk->ops->pwritev(disk->ctx, fd, iov, (int)MIN(count, IOV_MAX), offset);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n ? (int)n : -EIO;
		offset += (uint64_t)n;
		while (count && (size_t)n >= iov->iov_len) {
			n -= (ssize_t)iov->iov_len;
			iov++;
			count--;
		}
		if (count) {
			iov->iov_base = (char *)iov->iov_base + n;
			iov->iov_len -= (size_t)n;
		}
	}
	return 0;
}
