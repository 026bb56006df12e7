// SPDX-License-Identifier: GPL-2.0-or-later
/* The files that stand for images. A head is kept beside its file, over restarts of the agent. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>
#include "agent.h"

void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(errno));
	exit(1);
}

void head_save(const struct image *im)
{
	char path[4096], tmp[4200];
	FILE *f;

	snprintf(path, sizeof(path), "%s.head", im->file);
	snprintf(tmp, sizeof(tmp), "%s.new", path);
	f = fopen(tmp, "w");
	if (!f)
		die("%s", tmp);
	fprintf(f, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", im->epoch, im->cut,
		im->version, im->uuid);
	if (fflush(f) || fsync(fileno(f)) || fclose(f) || rename(tmp, path))
		die("%s", path);
}

static void head_load(struct image *im)
{
	char path[4096];
	FILE *f;

	im->epoch = 1;
	im->cut = 0;
	im->version = 1;
	im->uuid = 0;
	snprintf(path, sizeof(path), "%s.head", im->file);
	f = fopen(path, "r");
	if (!f)
		return;
	if (fscanf(f, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &im->epoch, &im->cut,
		   &im->version, &im->uuid) != 4)
		die("%s", path);
	fclose(f);
}

void image_add(struct agent *a, char *arg)
{
	struct image *im = &a->images[a->nr_images++];
	char *eq = strchr(arg, '=');
	struct stat st;

	if (!eq || a->nr_images > MAX_IMAGES)
		die("not NAME=FILE: %s", arg);
	*eq = 0;
	im->name = arg;
	im->file = eq + 1;
	im->fd = open(im->file, O_RDWR | O_CLOEXEC);
	if (im->fd < 0 || fstat(im->fd, &st))
		die("%s", im->file);
	im->size = st.st_size;
	head_load(im);
}

/* The file may have become longer. */
void image_resize(struct image *im)
{
	struct stat st;

	if (!fstat(im->fd, &st))
		im->size = st.st_size;
}

struct image *image_by_name(struct agent *a, const char *name)
{
	for (int i = 0; i < a->nr_images; i++)
		if (!strcmp(a->images[i].name, name))
			return &a->images[i];
	return NULL;
}

void image_uuid(const struct image *im, uint8_t uuid[16])
{
	memset(uuid, 0, 16);
	memcpy(uuid, im->name, strnlen(im->name, 8));
	uuid[15] = 1 + im->uuid;
}

struct image *image_by_uuid(struct agent *a, const uint8_t uuid[16])
{
	uint8_t u[16];

	for (int i = 0; i < a->nr_images; i++) {
		image_uuid(&a->images[i], u);
		if (!memcmp(u, uuid, 16))
			return &a->images[i];
	}
	return NULL;
}

void image_root(const struct image *im, uint64_t version, uint8_t root[DM_DEDUP_FP_SIZE])
{
	memset(root, 0, DM_DEDUP_FP_SIZE);
	snprintf((char *)root, DM_DEDUP_FP_SIZE, "%.16s %" PRIu64, im->name, version);
}

static int read_block(int fd, uint64_t block, uint32_t bs, uint8_t *buf)
{
	ssize_t n = pread(fd, buf, bs, block * bs);

	if (n < 0)
		return -errno;
	memset(buf + n, 0, bs - n);
	return 0;
}

int image_read(const struct image *im, uint64_t block, uint32_t bs, uint8_t *buf)
{
	return read_block(im->fd, block, bs, buf);
}

static void version_path(const struct image *im, uint64_t version, char path[4096])
{
	snprintf(path, 4096, "%s.v%" PRIu64, im->file, version);
}

/* The block as it was in that root's version, if that was kept; else as it is now. */
int image_read_root(const struct image *im, const uint8_t root[DM_DEDUP_FP_SIZE], uint64_t block,
		    uint32_t bs, uint8_t *buf)
{
	const char *version = strrchr((const char *)root, ' ');
	char path[4096];
	int fd, r;

	version_path(im, version ? strtoull(version, NULL, 10) : 0, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return image_read(im, block, bs, buf);
	r = read_block(fd, block, bs, buf);
	close(fd);
	return r;
}

/* Keeps a copy of the version that the file holds now. */
int image_keep(const struct image *im)
{
	char path[4096];
	loff_t at = 0;
	ssize_t n = 1;
	int fd;

	version_path(im, im->version, path);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return -errno;
	while (n > 0 && at < (loff_t)im->size)
		n = sendfile(fd, im->fd, &at, im->size - at);
	close(fd);
	return n < 0 ? -errno : 0;
}
