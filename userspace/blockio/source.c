// SPDX-License-Identifier: GPL-2.0-or-later
/* Which kind of source something is. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "blockio/source.h"
#include "proto/limits.h"

static const struct magic {
	const char *format;
	size_t offset, len;
	const char *bytes;
} magics[] = {
	{ "qcow2", 0, 4, "QFI\xfb" },
	{ "vmdk", 0, 4, "KDMV" },
	{ "vmdk", 0, 21, "# Disk DescriptorFile" },
	{ "vhdx", 0, 8, "vhdxfile" },
	{ "vpc", 0, 8, "conectix" },
	{ "vdi", 0x40, 4, "\x7f\x10\xda\xbe" },
};

static const char *format_detect(int fd)
{
	char head[512] = { 0 };

	if (pread(fd, head, sizeof(head), 0) < 0)
		return "raw"; /* reading it will say why it cannot be read */
	for (size_t i = 0; i < ARRAY_SIZE(magics); i++)
		if (!memcmp(head + magics[i].offset, magics[i].bytes, magics[i].len))
			return magics[i].format;
	return "raw";
}

static bool is_uri(const char *what)
{
	return !strncmp(what, "nbd", 3) && strstr(what, "://");
}

static int open_file(struct source *s, const char *path, const char *format, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), r;

	if (fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	if (!format)
		format = format_detect(fd);
	snprintf(s->format, sizeof(s->format), "%s", format);
	if (!strcmp(format, "raw")) {
		r = raw_open(s, fd, path, err);
		if (r)
			close(fd);
		return r;
	}
	close(fd);
	return nbd_open_file(s, path, format, err);
}

static int size_check(const struct source *s, const char *what, struct error *err)
{
	if (!s->size)
		return error_set(err, -EINVAL, "%s is empty", what);
	if (s->size % 512)
		return error_set(err, -EINVAL, "%s has %llu bytes, which is not a multiple of 512: "
				 "not a disk image (`truncate -s %%512` would pad it)", what,
				 (unsigned long long)s->size);
	if (s->size > IMAGE_SIZE_MAX)
		return error_set(err, -EFBIG, "%s has %llu bytes, more than the %llu that an image "
				 "may have", what, (unsigned long long)s->size,
				 (unsigned long long)IMAGE_SIZE_MAX);
	return 0;
}

struct source *source_open(const char *what, const char *format, struct error *err)
{
	struct source *s = calloc(1, sizeof(*s));
	int r;

	if (!s) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	if (is_uri(what)) {
		snprintf(s->format, sizeof(s->format), "nbd");
		r = nbd_open_uri(s, what, err);
	} else {
		r = open_file(s, what, format, err);
	}
	if (!r)
		r = size_check(s, what, err);
	if (r) {
		source_close(s);
		return NULL;
	}
	return s;
}

void source_close(struct source *s)
{
	if (s && s->ops)
		s->ops->close(s->priv);
	free(s);
}

uint64_t source_size(const struct source *s)
{
	return s->size;
}

const char *source_format(const struct source *s)
{
	return s->format;
}

int source_extent(struct source *s, uint64_t offset, uint64_t *len, bool *data, struct error *err)
{
	if (offset < s->extent_start || offset >= s->extent_end) {
		uint64_t n;
		int r = s->ops->extent(s->priv, offset, &n, &s->extent_data, err);

		if (r)
			return r;
		s->extent_start = offset;
		s->extent_end = offset + (n < s->size - offset ? n : s->size - offset);
	}
	*len = s->extent_end - offset;
	*data = s->extent_data;
	return 0;
}

int source_pread(struct source *s, void *data, size_t len, uint64_t offset, struct error *err)
{
	return s->ops->pread(s->priv, data, len, offset, err);
}
