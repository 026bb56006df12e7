// SPDX-License-Identifier: GPL-2.0-or-later
#include "data_help.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

/* ---- files ---- */

char *help_dir(void)
{
	const char *tmp = getenv("TMPDIR");
	char path[512];

	snprintf(path, sizeof(path), "%s/vmdedup-data-XXXXXX", tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(path));
	return strdup(path);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

void help_dir_remove(char *dir)
{
	assert_int_equal(nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	free(dir);
}

void help_path(char path[512], const char *dir, const char *name)
{
	assert_in_range(snprintf(path, 512, "%s/%s", dir, name), 1, 511);
}

uint64_t help_file_size(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return (uint64_t)st.st_size;
}

static size_t each_lump(const char *dir, uint64_t min, char path[512])
{
	char lumps[512], one[1024];
	struct dirent *e;
	size_t nr = 0;
	DIR *d;

	help_path(lumps, dir, "lumps");
	d = opendir(lumps);
	assert_non_null(d);
	while ((e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(one, sizeof(one), "%s/%s", lumps, e->d_name);
		if (min && help_file_size(one) <= min)
			continue;
		if (path && !nr)
			snprintf(path, 512, "%.511s", one);
		nr++;
	}
	closedir(d);
	return nr;
}

bool help_find_lump(const char *dir, uint64_t min, char path[512])
{
	return each_lump(dir, min, path);
}

size_t help_count_lumps(const char *dir)
{
	return each_lump(dir, 0, NULL);
}

void help_flip_bit(const char *path, uint64_t bit)
{
	int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)(bit / 8)), 1);
	byte ^= (uint8_t)(1 << bit % 8);
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)(bit / 8)), 1);
	close(fd);
}

void help_copy(const char *from, const char *to)
{
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	char buf[65536];
	ssize_t n;

	assert_true(in >= 0 && out >= 0);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		assert_int_equal(write(out, buf, (size_t)n), n);
	assert_int_equal(n, 0);
	close(in);
	close(out);
}

/* ---- blocks ---- */

void help_block(uint64_t n, uint8_t data[TEST_BLOCK], struct fp *fp)
{
	struct fp_hasher *h = fp_hasher_new(FP_SHA256, NULL, 0);
	uint64_t x = n * 0x9e3779b97f4a7c15ULL + 1;

	assert_non_null(h);
	for (size_t i = 0; i < TEST_BLOCK; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(data + i, &x, 8);
	}
	fp_hash(h, data, TEST_BLOCK, fp);
	fp_hasher_free(h);
}

struct bstore_options help_options(const char *dir)
{
	return (struct bstore_options){ .dir = dir, .lump_size = 2 << 20 };
}

int help_put(struct bstore *st, uint64_t first, size_t count, int *results)
{
	struct bstore_op *ops = calloc(count, sizeof(*ops));
	uint8_t (*data)[TEST_BLOCK] = malloc(count * sizeof(*data));
	int r;

	assert_true(ops && data);
	for (size_t i = 0; i < count; i++) {
		ops[i] = (struct bstore_op){ .kind = STORE_PUT, .data = data[i], .len = TEST_BLOCK,
					    .raw_len = TEST_BLOCK };
		help_block(first + i, data[i], &ops[i].fp);
	}
	r = bstore_commit(st, ops, count);
	for (size_t i = 0; i < count; i++) {
		if (results)
			results[i] = ops[i].r;
		else if (!r)
			r = ops[i].r;
	}
	free(ops);
	free(data);
	return r;
}

int help_touch(struct bstore *st, uint64_t n, uint64_t *epoch)
{
	struct bstore_op op = { .kind = STORE_TOUCH };
	uint8_t data[TEST_BLOCK];
	int r;

	help_block(n, data, &op.fp);
	r = bstore_commit(st, &op, 1);
	if (epoch)
		*epoch = op.epoch;
	return r ? r : op.r;
}

int help_delete(struct bstore *st, uint64_t n, uint64_t below)
{
	struct bstore_op op = { .kind = STORE_DELETE, .epoch = below };
	uint8_t data[TEST_BLOCK];
	int r;

	help_block(n, data, &op.fp);
	r = bstore_commit(st, &op, 1);
	return r ? r : op.r;
}

int help_epoch(struct bstore *st, enum bstore_op_kind kind, uint64_t epoch)
{
	struct bstore_op ops[NR_SHARDS];

	for (size_t i = 0; i < NR_SHARDS; i++)
		ops[i] = (struct bstore_op){ .kind = kind, .shard = (uint16_t)i, .epoch = epoch };
	return bstore_commit(st, ops, NR_SHARDS);
}

int help_check(struct bstore *st, uint64_t n)
{
	uint8_t data[TEST_BLOCK];
	struct block_buf *buf;
	struct bstore_op bad;
	struct fp fp;
	int r;

	help_block(n, data, &fp);
	r = bstore_read(st, 0, &fp, &buf, &bad);
	if (r)
		return r;
	assert_int_equal(buf->raw_len, TEST_BLOCK);
	assert_int_equal(buf->len, TEST_BLOCK);
	assert_memory_equal(buf->data + buf->offset, data, TEST_BLOCK);
	block_buf_put(buf);
	return 0;
}

struct bstore *help_open(const struct bstore_options *o)
{
	struct error err = { 0 };
	struct bstore *st = bstore_open(o, &err);

	if (!st)
		fail_msg("bstore_open: %s", err.text);
	return st;
}

void help_check_range(struct bstore *st, uint64_t first, size_t count)
{
	for (size_t i = 0; i < count; i++)
		assert_int_equal(help_check(st, first + i), 0);
}

/* ---- the disk that breaks ---- */

static int step(struct bad_disk *d)
{
	if (d->dead)
		return -EIO;
	if (++d->ops != d->break_at)
		return 0;
	d->dead = d->power_cut;
	return d->error;
}

static size_t file_of(struct bad_disk *d, const char *name)
{
	for (size_t i = 0; i < d->nr_files; i++)
		if (!strcmp(d->files[i].name, name))
			return i;
	assert_true(d->nr_files < ARRAY_SIZE(d->files));
	d->files[d->nr_files] = (struct bad_file){ .name_synced = true };
	snprintf(d->files[d->nr_files].name, sizeof(d->files[0].name), "%s", name);
	return d->nr_files++;
}

static struct bad_file *file_by_fd(struct bad_disk *d, int fd)
{
	for (size_t i = 0; i < d->nr_fds; i++)
		if (d->fds[i].fd == fd)
			return &d->files[d->fds[i].file];
	return NULL;
}

static int bad_open(void *ctx, int dirfd, const char *path, int flags)
{
	struct bad_disk *d = ctx;
	struct bad_file *f;
	struct stat st;
	int fd, r = flags & O_CREAT ? step(d) : d->dead ? -EIO : 0;

	if (r)
		return r;
	fd = disk_posix.open(NULL, dirfd, path, flags);
	if (fd < 0)
		return fd;
	assert_true(d->nr_fds < ARRAY_SIZE(d->fds));
	d->fds[d->nr_fds].fd = fd;
	d->fds[d->nr_fds++].file = file_of(d, path);
	f = file_by_fd(d, fd);
	if (flags & O_CREAT) {
		*f = (struct bad_file){ .name_synced = false };
		snprintf(f->name, sizeof(f->name), "%s", path);
	} else if (!f->written) {
		assert_int_equal(fstat(fd, &st), 0);
		f->written = f->synced = (uint64_t)st.st_size;
	}
	return fd;
}

static int bad_close(void *ctx, int fd)
{
	struct bad_disk *d = ctx;

	for (size_t i = 0; i < d->nr_fds; i++) {
		if (d->fds[i].fd == fd) {
			d->fds[i] = d->fds[--d->nr_fds];
			break;
		}
	}
	return disk_posix.close(NULL, fd);
}

static bool is_readable(struct bad_disk *d, int fd, size_t len, uint64_t offset)
{
	const struct bad_file *f = file_by_fd(d, fd);

	for (size_t i = 0; f && i < d->nr_unreadable; i++) {
		uint64_t from = d->unreadable[i].sector * 4096;

		if (!strcmp(f->name, d->unreadable[i].name) && offset < from + 4096 &&
		    offset + len > from)
			return false;
	}
	return true;
}

static ssize_t bad_pread(void *ctx, int fd, void *buf, size_t len, uint64_t offset)
{
	struct bad_disk *d = ctx;

	if (d->short_writes && len > 100)
		len = 100 + len / 3;
	return d->dead || !is_readable(d, fd, len, offset) ? -EIO :
	       disk_posix.pread(NULL, fd, buf, len, offset);
}

static ssize_t bad_pwritev(void *ctx, int fd, const struct iovec *iov, int count, uint64_t offset)
{
	struct bad_disk *d = ctx;
	struct bad_file *f = file_by_fd(d, fd);
	struct iovec first = iov[0];
	int r = step(d);
	ssize_t n;

	if (r && r != -ENOSPC)
		return r;
	if (d->short_writes || r) { /* a disk that is full takes a part */
		first.iov_len = (first.iov_len + 1) / 2;
		n = disk_posix.pwritev(NULL, fd, &first, 1, offset);
	} else {
		n = disk_posix.pwritev(NULL, fd, iov, count, offset);
	}
	if (n > 0)
		f->written = MAX(f->written, offset + (uint64_t)n);
	return r ? r : n;
}

static int bad_datasync(void *ctx, int fd)
{
	struct bad_disk *d = ctx;
	struct bad_file *f = file_by_fd(d, fd);
	int r = step(d);

	if (r)
		return r;
	if (f) {
		f->synced = f->written;
		return 0;
	}
	for (size_t i = 0; i < d->nr_files; i++) /* the folder */
		d->files[i].name_synced = true;
	return 0;
}

static int bad_syncfs(void *ctx, int fd)
{
	struct bad_disk *d = ctx;
	int r = step(d);

	for (size_t i = 0; i < d->nr_files && !r; i++) {
		d->files[i].synced = d->files[i].written;
		d->files[i].name_synced = true;
	}
	return r;
}

static int bad_truncate(void *ctx, int fd, uint64_t len)
{
	struct bad_disk *d = ctx;
	struct bad_file *f = file_by_fd(d, fd);
	int r = step(d);

	if (r)
		return r;
	f->written = len;
	f->synced = MIN(f->synced, len);
	return disk_posix.truncate(NULL, fd, len);
}

static int bad_unlink(void *ctx, int dirfd, const char *path)
{
	struct bad_disk *d = ctx;
	int r = step(d);

	if (r)
		return r;
	d->files[file_of(d, path)] = (struct bad_file){ .name = "gone" };
	return disk_posix.unlink(NULL, dirfd, path);
}

static int bad_space(void *ctx, int fd, uint64_t *bytes)
{
	struct bad_disk *d = ctx;

	if (!d->free)
		return disk_posix.space(NULL, fd, bytes);
	*bytes = d->free;
	return 0;
}

static int bad_before_commit(void *ctx)
{
	return step(ctx);
}

const struct disk_ops bad_disk_ops = {
	.open = bad_open,
	.close = bad_close,
	.pread = bad_pread,
	.pwritev = bad_pwritev,
	.datasync = bad_datasync,
	.syncfs = bad_syncfs,
	.truncate = bad_truncate,
	.unlink = bad_unlink,
	.space = bad_space,
	.before_commit = bad_before_commit,
};

static void scramble(const char *path, uint64_t from, uint64_t to, bool zeros, unsigned int *seed)
{
	int fd = open(path, O_WRONLY);
	uint64_t start = from + (unsigned int)rand_r(seed) % (to - from);

	assert_true(fd >= 0);
	for (; start < to; start++) {
		uint8_t byte = zeros ? 0 : (uint8_t)rand_r(seed);

		assert_int_equal(pwrite(fd, &byte, 1, (off_t)start), 1);
	}
	close(fd);
}

void bad_disk_forget(struct bad_disk *d, const char *dir, unsigned int seed)
{
	for (size_t i = 0; i < d->nr_files; i++) {
		struct bad_file *f = &d->files[i];
		char path[512], lumps[512];

		help_path(lumps, dir, "lumps");
		help_path(path, lumps, f->name);
		if (access(path, F_OK))
			continue;
		if (!f->name_synced && rand_r(&seed) % 2) {
			assert_int_equal(unlink(path), 0);
			continue;
		}
		if (f->written <= f->synced)
			continue;
		switch (rand_r(&seed) % 4) {
		case 0: /* all of it made it */
			break;
		case 1:
			assert_int_equal(truncate(path, (off_t)(f->synced + (unsigned int)rand_r(&seed) %
						  (f->written - f->synced))), 0);
			break;
		default:
			scramble(path, f->synced, f->written, rand_r(&seed) % 2, &seed);
		}
	}
}
