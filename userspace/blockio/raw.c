// SPDX-License-Identifier: GPL-2.0-or-later
/* Raw files, read by their holes, and block devices. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "blockio/source.h"

struct raw {
	int fd;
	char *path;
	uint64_t size;
	bool holes; /* the file system knows them */
};

static int raw_extent(void *priv, uint64_t offset, uint64_t *len, bool *data, struct error *err)
{
	struct raw *raw = priv;
	off_t at, end;

	*data = true;
	*len = raw->size - offset;
	if (!raw->holes)
		return 0;
	at = lseek(raw->fd, offset, SEEK_DATA);
	if (at < 0 && errno == ENXIO) {
		*data = false; /* a hole to the end */
		return 0;
	}
	if (at < 0) {
		raw->holes = false;
		return 0;
	}
	if ((uint64_t)at > offset) {
		*data = false;
		*len = at - offset;
		return 0;
	}
	end = lseek(raw->fd, offset, SEEK_HOLE);
	if (end > at)
		*len = end - offset;
	return 0;
}

static int raw_pread(void *priv, void *data, size_t len, uint64_t offset, struct error *err)
{
	struct raw *raw = priv;
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(raw->fd, (char *)data + done, len - done, offset + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, -errno, "cannot read %s at byte %llu: %s", raw->path,
					 (unsigned long long)(offset + done), strerror(errno));
		if (!n)
			return error_set(err, -EIO, "%s became shorter while it was read", raw->path);
		done += n;
	}
	return 0;
}

static void raw_close(void *priv)
{
	struct raw *raw = priv;

	close(raw->fd);
	free(raw->path);
	free(raw);
}

static const struct source_ops raw_ops = { raw_extent, raw_pread, raw_close };

static int raw_size(int fd, const char *path, uint64_t *size, bool *holes, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return error_set(err, -errno, "cannot examine %s: %s", path, strerror(errno));
	*holes = false;
	if (S_ISREG(st.st_mode)) {
		*size = st.st_size;
		*holes = true;
		return 0;
	}
	if (S_ISBLK(st.st_mode)) {
		if (!ioctl(fd, BLKGETSIZE64, size))
			return 0;
		return error_set(err, -errno, "cannot tell the size of %s: %s", path,
				 strerror(errno));
	}
	return error_set(err, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL,
			 "%s is %s: expected a file, a block device or an NBD URI", path,
			 S_ISDIR(st.st_mode) ? "a directory" : "neither a file nor a block device");
}

int raw_open(struct source *s, int fd, const char *path, struct error *err)
{
	struct raw *raw = calloc(1, sizeof(*raw));
	int r;

	if (!raw)
		return error_set(err, -ENOMEM, "out of memory");
	r = raw_size(fd, path, &raw->size, &raw->holes, err);
	if (r)
		goto free_raw;
	raw->path = strdup(path);
	if (!raw->path) {
		r = error_set(err, -ENOMEM, "out of memory");
		goto free_raw;
	}
	raw->fd = fd;
	posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	s->ops = &raw_ops;
	s->priv = raw;
	s->size = raw->size;
	return 0;
free_raw:
	free(raw);
	return r;
}
