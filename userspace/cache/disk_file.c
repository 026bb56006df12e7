// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/fs.h>
#include "cache/disk_file.h"

static int file_read(void *ctx, const struct dedup_io *ios, unsigned int n)
{
	struct disk_file *f = ctx;

	for (unsigned int i = 0; i < n; i++) {
		char *p = ios[i].buf;
		u64 at = ios[i].offset;
		size_t left = ios[i].len;

		while (left) {
			ssize_t r = pread(f->fd, p, left, at);

			if (r < 0 && errno == EINTR)
				continue;
			if (r <= 0)
				return r ? -errno : -EIO;
			p += r;
			at += r;
			left -= r;
		}
	}
	return 0;
}

static int file_flush(void *ctx)
{
	struct disk_file *f = ctx;

	return fdatasync(f->fd) ? -errno : 0;
}

static int file_write(void *ctx, const struct dedup_io *ios, unsigned int n, bool fua)
{
	struct disk_file *f = ctx;

	if (fua && fdatasync(f->fd))
		return -errno;
	for (unsigned int i = 0; i < n; i++) {
		const char *p = ios[i].buf;
		u64 at = ios[i].offset;
		size_t left = ios[i].len;

		while (left) {
			ssize_t r = pwrite(f->fd, p, left, at);

			if (r < 0 && errno == EINTR)
				continue;
			if (r <= 0)
				return r ? -errno : -EIO;
			p += r;
			at += r;
			left -= r;
		}
	}
	return fua ? file_flush(f) : 0;
}

static const struct dedup_disk_ops file_ops = {
	.read = file_read,
	.write = file_write,
	.flush = file_flush,
};

static int open_error(const char *path, int code, struct error *err)
{
	if (code == -EBUSY)
		return error_set(err, code, "%s is in use; remove its dedup-cache device, unmount it, "
				 "or stop what else holds it", path);
	return error_set(err, code, "cannot open %s: %s", path, strerror(-code));
}

static int file_size(struct disk_file *f, const struct stat *st, u64 *bytes)
{
	if (!f->block_device) {
		*bytes = st->st_size;
		return 0;
	}
	return ioctl(f->fd, BLKGETSIZE64, bytes) ? -errno : 0;
}

int disk_file_open(struct disk_file *f, const char *path, bool writable, struct error *err)
{
	int flags = O_CLOEXEC | (writable ? O_RDWR : O_RDONLY);
	struct stat st;
	u64 bytes;
	int r;

	memset(f, 0, sizeof(*f));
	f->fd = -1;
	if (stat(path, &st))
		return open_error(path, -errno, err);
	f->block_device = S_ISBLK(st.st_mode);
	if (!f->block_device && !S_ISREG(st.st_mode))
		return error_set(err, -ENOTBLK, "%s is neither a block device nor a file", path);
	f->fd = open(path, f->block_device ? flags | O_EXCL : flags);
	if (f->fd < 0)
		return open_error(path, -errno, err);
	if (fstat(f->fd, &st))
		r = -errno;
	else
		r = file_size(f, &st, &bytes);
	if (r) {
		disk_file_close(f);
		return error_set(err, r, "cannot find out the size of %s: %s", path, strerror(-r));
	}
	/* The kernel's target writes below the page cache: what it holds may be old. */
	posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
	f->disk = (struct dedup_disk){ &file_ops, f, bytes };
	return 0;
}

void disk_file_close(struct disk_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}
