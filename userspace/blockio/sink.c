// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sinks. A file is written under a temporary name beside its own, with holes, made durable and
 * then renamed: under its own name it is whole or not there.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "blockio/blockio.h"

struct sink {
	int fd;
	char *path;
	char *temp; /* NULL: a device, written in place */
	bool force;
};

static int device_open(struct sink *s, uint64_t size, struct error *err)
{
	uint64_t room;

	if (!s->force)
		return error_set(err, -EEXIST, "%s is a block device: what it holds would be lost "
				 "(--force does it)", s->path);
	/* O_EXCL: not while it is mounted or otherwise in use */
	s->fd = open(s->path, O_WRONLY | O_EXCL | O_CLOEXEC);
	if (s->fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", s->path, strerror(errno));
	if (ioctl(s->fd, BLKGETSIZE64, &room))
		return error_set(err, -errno, "cannot tell the size of %s: %s", s->path,
				 strerror(errno));
	if (room < size)
		return error_set(err, -ENOSPC, "%s has %llu bytes, the image %llu", s->path,
				 (unsigned long long)room, (unsigned long long)size);
	return 0;
}

/* DIR/.NAME.XXXXXXXX.vmdedup */
static char *temp_name(const char *path)
{
	CLEANUP_FREE char *for_dir = strdup(path), *for_base = strdup(path);
	uint32_t salt = 0;
	char *temp;

	if (!for_dir || !for_base || getrandom(&salt, sizeof(salt), 0) < 0)
		return NULL;
	if (asprintf(&temp, "%s/.%.200s.%08x.vmdedup", dirname(for_dir), basename(for_base),
		     salt) < 0)
		return NULL;
	return temp;
}

static int file_open(struct sink *s, uint64_t size, struct error *err)
{
	s->temp = temp_name(s->path);
	if (!s->temp)
		return error_set(err, -ENOMEM, "out of memory");
	s->fd = open(s->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (s->fd < 0) {
		int r = error_set(err, -errno, "cannot create %s: %s", s->path, strerror(errno));

		free(s->temp);
		s->temp = NULL;
		return r;
	}
	if (ftruncate(s->fd, size))
		return error_set(err, -errno, "cannot make %s %llu bytes large: %s", s->path,
				 (unsigned long long)size, strerror(errno));
	return 0;
}

struct sink *sink_open(const char *path, uint64_t size, bool force, struct error *err)
{
	struct sink *s = calloc(1, sizeof(*s));
	struct stat st;
	bool there;
	int r;

	if (s)
		s->path = strdup(path);
	if (!s || !s->path) {
		free(s);
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	s->fd = -1;
	s->force = force;
	there = !stat(path, &st);
	if (there && S_ISBLK(st.st_mode))
		r = device_open(s, size, err);
	else if (there && !S_ISREG(st.st_mode))
		r = error_set(err, -EINVAL, "%s is neither a file nor a block device", path);
	else if (there && !force)
		r = error_set(err, -EEXIST, "%s exists already (--force replaces it)", path);
	else
		r = file_open(s, size, err);
	if (!r)
		return s;
	sink_close(s);
	return NULL;
}

int sink_pwrite(struct sink *s, const void *data, size_t len, uint64_t offset, struct error *err)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(s->fd, (const char *)data + done, len - done, offset + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n ? -errno : -EIO, "cannot write %s at byte %llu: %s",
					 s->path, (unsigned long long)(offset + done),
					 strerror(n ? errno : EIO));
		done += n;
	}
	return 0;
}

int sink_zero(struct sink *s, uint64_t len, uint64_t offset, struct error *err)
{
	uint64_t range[2] = { offset, len };

	if (s->temp)
		return 0; /* a hole */
	if (ioctl(s->fd, BLKZEROOUT, range))
		return error_set(err, -errno, "cannot zero %s at byte %llu: %s", s->path,
				 (unsigned long long)offset, strerror(errno));
	return 0;
}

static int dir_sync(const char *path)
{
	CLEANUP_FREE char *copy = strdup(path);
	CLEANUP_CLOSE int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

	if (fd < 0)
		return -errno;
	return fsync(fd) ? -errno : 0;
}

static int rename_new(const char *from, const char *to)
{
	if (!renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE))
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	/* A file system without that flag: link() does not replace either. */
	if (link(from, to))
		return -errno;
	unlink(from);
	return 0;
}

int sink_commit(struct sink *s, struct error *err)
{
	int r;

	if (fsync(s->fd))
		return error_set(err, -errno, "cannot make %s durable: %s", s->path, strerror(errno));
	if (!s->temp)
		return 0;
	if (s->force)
		r = rename(s->temp, s->path) ? -errno : 0;
	else
		r = rename_new(s->temp, s->path);
	if (r == -EEXIST)
		return error_set(err, r, "%s has come into being meanwhile (--force replaces it)",
				 s->path);
	if (r)
		return error_set(err, r, "cannot name %s: %s", s->path, strerror(-r));
	free(s->temp);
	s->temp = NULL;
	r = dir_sync(s->path);
	return r ? error_set(err, r, "cannot make %s durable: %s", s->path, strerror(-r)) : 0;
}

void sink_close(struct sink *s)
{
	if (!s)
		return;
	if (s->fd >= 0)
		close(s->fd);
	if (s->temp)
		unlink(s->temp);
	free(s->temp);
	free(s->path);
	free(s);
}
