// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/lump.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"

/*
 * With up to this many touched lumps each is synced by itself; beyond, the whole file system
 * is, once. A batch of 256 new blocks touches some 226 of 1024 shards' lumps, and every
 * fdatasync() of ext4 ends in a flush of the disk: 741 ms for such a batch against 42 ms for
 * one syncfs(), which is one journal commit. The price: foreign dirty pages on the same file
 * system are written too, which is why a data server's folder wants a file system of its own.
 */
#define SYNC_EACH_MAX 4

#define NAME_SIZE 32

struct shard_lumps {
	struct lump **v; /* ascending by number */
	size_t nr, room;
};

struct lumps {
	const struct disk *disk;
	struct uuid uuid;
	int dirfd; /* of lumps/ */
	unsigned int max_fds;
	pthread_mutex_t lock;
	struct shard_lumps shards[NR_SHARDS];
	size_t nr;
	struct lump lru; /* head of a ring: lru_next was used last */
	unsigned int nr_fds;
	struct lump *touched;
	bool names_changed; /* since the last sync of the folder */
	_Atomic uint64_t bytes;
};

static const char *lump_name(const struct lump *l, char name[NAME_SIZE])
{
	snprintf(name, NAME_SIZE, "%03x-%08x.lump", l->shard, l->number);
	return name;
}

struct lumps *lumps_new(const struct disk *disk, int dirfd, const struct uuid *uuid,
			unsigned int max_fds, struct error *err)
{
	struct lumps *ls = calloc(1, sizeof(*ls));

	if (!ls) {
		error_set(err, -ENOMEM, "no memory for the lumps");
		return NULL;
	}
	ls->disk = disk;
	ls->uuid = *uuid;
	ls->max_fds = max_fds;
	ls->lru.lru_prev = ls->lru.lru_next = &ls->lru;
	pthread_mutex_init(&ls->lock, NULL);
	ls->dirfd = openat(dirfd, "lumps", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (ls->dirfd < 0) {
		error_set(err, -errno, "open the folder lumps/: %m");
		lumps_free(ls);
		return NULL;
	}
	return ls;
}

static void lru_unlink(struct lump *l)
{
	l->lru_prev->lru_next = l->lru_next;
	l->lru_next->lru_prev = l->lru_prev;
}

static void lru_push(struct lumps *ls, struct lump *l)
{
	l->lru_next = ls->lru.lru_next;
	l->lru_prev = &ls->lru;
	l->lru_next->lru_prev = l;
	ls->lru.lru_next = l;
}

/* Under the lock. */
static void lump_close(struct lumps *ls, struct lump *l)
{
	if (l->fd < 0)
		return;
	lru_unlink(l);
	ls->disk->ops->close(ls->disk->ctx, l->fd);
	l->fd = -1;
	ls->nr_fds--;
}

void lumps_free(struct lumps *ls)
{
	if (!ls)
		return;
	for (size_t s = 0; s < NR_SHARDS; s++) {
		for (size_t i = 0; i < ls->shards[s].nr; i++) {
			lump_close(ls, ls->shards[s].v[i]);
			free(ls->shards[s].v[i]);
		}
		free(ls->shards[s].v);
	}
	if (ls->dirfd >= 0)
		close(ls->dirfd);
	pthread_mutex_destroy(&ls->lock);
	free(ls);
}

/* Under the lock: the place of @number among the shard's lumps. */
static size_t lump_slot(const struct shard_lumps *sl, uint32_t number)
{
	size_t low = 0, high = sl->nr;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (sl->v[mid]->number < number)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static struct lump *find_locked(struct lumps *ls, uint16_t shard, uint32_t number)
{
	const struct shard_lumps *sl = &ls->shards[shard];
	size_t i = lump_slot(sl, number);

	return i < sl->nr && sl->v[i]->number == number ? sl->v[i] : NULL;
}

struct lump *lumps_find(struct lumps *ls, uint16_t shard, uint32_t number)
{
	struct lump *l;

	pthread_mutex_lock(&ls->lock);
	l = find_locked(ls, shard, number);
	pthread_mutex_unlock(&ls->lock);
	return l;
}

struct lump *lumps_nth(struct lumps *ls, uint16_t shard, size_t n)
{
	return n < ls->shards[shard].nr ? ls->shards[shard].v[n] : NULL;
}

struct lump *lumps_last(struct lumps *ls, uint16_t shard)
{
	const struct shard_lumps *sl = &ls->shards[shard];

	return sl->nr ? sl->v[sl->nr - 1] : NULL;
}

struct lump *lumps_add(struct lumps *ls, uint16_t shard, uint32_t number)
{
	struct shard_lumps *sl = &ls->shards[shard];
	struct lump *l = calloc(1, sizeof(*l));
	size_t at;

	if (!l)
		return NULL;
	l->shard = shard;
	l->number = number;
	l->fd = -1;
	pthread_mutex_lock(&ls->lock);
	if (sl->nr == sl->room) {
		size_t room = sl->room ? 2 * sl->room : 4;
		struct lump **v = realloc(sl->v, room * sizeof(*v));

		if (!v) {
			pthread_mutex_unlock(&ls->lock);
			free(l);
			return NULL;
		}
		sl->v = v;
		sl->room = room;
	}
	at = lump_slot(sl, number);
	memmove(sl->v + at + 1, sl->v + at, (sl->nr - at) * sizeof(*sl->v));
	sl->v[at] = l;
	sl->nr++;
	ls->nr++;
	pthread_mutex_unlock(&ls->lock);
	return l;
}

int lumps_list(struct lumps *ls, int (*found)(void *arg, uint16_t shard, uint32_t number),
	       void *arg, struct error *err)
{
	int fd = openat(ls->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	int r = 0;

	if (!dir) {
		r = error_set(err, -errno, "list the folder lumps/: %m");
		if (fd >= 0)
			close(fd);
		return r;
	}
	while (!r && (errno = 0, e = readdir(dir))) {
		unsigned int shard, number;
		struct lump probe;
		char name[NAME_SIZE];

		if (e->d_name[0] == '.')
			continue;
		if (sscanf(e->d_name, "%3x-%8x", &shard, &number) != 2 || shard >= NR_SHARDS) {
			log_warn("lumps/%s is not a lump: left alone", e->d_name);
			continue;
		}
		probe.shard = (uint16_t)shard;
		probe.number = number;
		if (strcmp(lump_name(&probe, name), e->d_name)) {
			log_warn("lumps/%s is not a lump: left alone", e->d_name);
			continue;
		}
		r = found(arg, probe.shard, number);
	}
	if (!r && errno)
		r = error_set(err, -errno, "list the folder lumps/: %m");
	closedir(dir);
	return r;
}

/* ---- descriptors ---- */

/* Under the lock. Pinned lumps stay open, however many they are: a reader or the writer holds
 * few at a time. */
static void close_excess(struct lumps *ls)
{
	struct lump *l = ls->lru.lru_prev;

	while (ls->nr_fds >= ls->max_fds && l != &ls->lru) {
		struct lump *prev = l->lru_prev;

		if (!l->pins)
			lump_close(ls, l);
		l = prev;
	}
}

static int pin_locked(struct lumps *ls, struct lump *l, int flags)
{
	char name[NAME_SIZE];
	int fd;

	if (l->fd < 0) {
		close_excess(ls);
		fd = ls->disk->ops->open(ls->disk->ctx, ls->dirfd, lump_name(l, name),
					 O_RDWR | flags);
		if (fd < 0)
			return fd;
		l->fd = fd;
		ls->nr_fds++;
	} else {
		lru_unlink(l);
	}
	lru_push(ls, l);
	l->pins++;
	return 0;
}

int lumps_pin(struct lumps *ls, struct lump *l, int *fd)
{
	int r;

	pthread_mutex_lock(&ls->lock);
	r = pin_locked(ls, l, 0);
	*fd = l->fd;
	pthread_mutex_unlock(&ls->lock);
	return r;
}

void lumps_unpin(struct lumps *ls, struct lump *l)
{
	pthread_mutex_lock(&ls->lock);
	if (!--l->pins && l->removed) {
		lump_close(ls, l);
		free(l);
	}
	pthread_mutex_unlock(&ls->lock);
}

int lumps_read(struct lumps *ls, uint16_t shard, uint32_t number, uint64_t offset, void *buf,
	       size_t len)
{
	struct lump *l;
	int fd, r;

	pthread_mutex_lock(&ls->lock);
	l = find_locked(ls, shard, number);
	r = l ? pin_locked(ls, l, 0) : -ENOENT;
	fd = r ? -1 : l->fd;
	pthread_mutex_unlock(&ls->lock);
	if (r)
		return r;
	r = disk_read(ls->disk, fd, buf, len, offset);
	lumps_unpin(ls, l);
	return r;
}

int lumps_file_size(struct lumps *ls, struct lump *l, uint64_t *size)
{
	struct stat st;
	char name[NAME_SIZE];

	if (fstatat(ls->dirfd, lump_name(l, name), &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	*size = (uint64_t)st.st_size;
	return S_ISREG(st.st_mode) ? 0 : -EIO;
}

int lumps_truncate(struct lumps *ls, struct lump *l, uint64_t len)
{
	int fd, r = lumps_pin(ls, l, &fd);

	if (r)
		return r;
	r = ls->disk->ops->truncate(ls->disk->ctx, fd, len);
	lumps_unpin(ls, l);
	return r;
}

/* Out of the set; its memory stays until the last reader has unpinned it. */
static void forget(struct lumps *ls, struct lump *l)
{
	struct shard_lumps *sl = &ls->shards[l->shard];
	size_t at;

	pthread_mutex_lock(&ls->lock);
	for (at = lump_slot(sl, l->number); sl->v[at] != l; at++)
		;
	memmove(sl->v + at, sl->v + at + 1, (sl->nr - at - 1) * sizeof(*sl->v));
	sl->nr--;
	ls->nr--;
	lumps_set_end(ls, l, 0);
	if (l->pins) {
		l->removed = true;
	} else {
		lump_close(ls, l);
		free(l);
	}
	pthread_mutex_unlock(&ls->lock);
}

int lumps_remove(struct lumps *ls, struct lump *l)
{
	char name[NAME_SIZE];
	int r = ls->disk->ops->unlink(ls->disk->ctx, ls->dirfd, lump_name(l, name));

	if (r && r != -ENOENT)
		return r;
	ls->names_changed = true;
	forget(ls, l);
	return 0;
}

/* ---- the commit under way ---- */

void lumps_touch(struct lumps *ls, struct lump *l)
{
	if (l->touched)
		return;
	l->touched = true;
	l->new_end = l->end;
	l->new_live_bytes = l->live_bytes;
	l->new_live_records = l->live_records;
	l->next_touched = ls->touched;
	ls->touched = l;
}

struct lump *lumps_touched(struct lumps *ls)
{
	return ls->touched;
}

int lumps_create(struct lumps *ls, uint16_t shard, uint32_t number, uint64_t sequence,
		 struct lump **lump)
{
	struct lump_header head = {
		.shard = shard, .number = number, .disk = ls->uuid, .sequence = sequence,
	};
	uint8_t bytes[LUMP_HEADER_SIZE];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct lump *l = lumps_add(ls, shard, number);
	int r;

	if (!l)
		return -ENOMEM;
	pthread_mutex_lock(&ls->lock);
	r = pin_locked(ls, l, O_CREAT | O_EXCL);
	pthread_mutex_unlock(&ls->lock);
	if (r) {
		forget(ls, l); /* whatever has the name is not ours to remove */
		return r;
	}
	ls->names_changed = true;
	lump_header_encode(&head, bytes);
	r = disk_write(ls->disk, l->fd, &iov, 1, 0);
	lumps_unpin(ls, l);
	if (r)
		goto remove;
	lumps_touch(ls, l);
	l->created = true;
	l->new_end = LUMP_HEADER_SIZE;
	*lump = l;
	return 0;
remove:
	lumps_remove(ls, l);
	return r;
}

int lumps_append(struct lumps *ls, struct lump *l, struct iovec *iov, size_t count, uint64_t bytes)
{
	int fd, r = lumps_pin(ls, l, &fd);

	if (r)
		return r;
	lumps_touch(ls, l);
	r = disk_write(ls->disk, fd, iov, count, l->new_end);
	lumps_unpin(ls, l);
	if (!r)
		l->new_end += bytes;
	return r;
}

int lumps_sync_names(struct lumps *ls)
{
	int r = ls->names_changed ? ls->disk->ops->datasync(ls->disk->ctx, ls->dirfd) : 0;

	if (!r)
		ls->names_changed = false;
	return r;
}

int lumps_sync(struct lumps *ls)
{
	unsigned int count = 0;
	struct lump *l;
	int fd, r;

	for (l = ls->touched; l; l = l->next_touched)
		count += l->new_end != l->end;
	if (!count)
		return 0;
	if (count > SYNC_EACH_MAX) {
		r = ls->disk->ops->syncfs(ls->disk->ctx, ls->dirfd);
		if (!r)
			ls->names_changed = false;
		return r;
	}
	for (l = ls->touched; l; l = l->next_touched) {
		if (l->new_end == l->end)
			continue;
		r = lumps_pin(ls, l, &fd);
		if (r)
			return r;
		r = ls->disk->ops->datasync(ls->disk->ctx, fd);
		lumps_unpin(ls, l);
		if (r)
			return r;
	}
	return lumps_sync_names(ls);
}

static void settle_failed(struct lumps *ls, struct lump *l)
{
	int r;

	if (l->created) {
		r = lumps_remove(ls, l);
		if (!r)
			return; /* @l is gone */
	} else {
		r = l->new_end == l->end ? 0 : lumps_truncate(ls, l, l->end);
	}
	if (r)
		l->sealed = true; /* never append after bytes of unknown worth */
}

void lumps_settle(struct lumps *ls, bool committed)
{
	struct lump *l = ls->touched, *next;

	ls->touched = NULL;
	for (; l; l = next) {
		next = l->next_touched;
		l->next_touched = NULL;
		l->touched = false;
		if (!committed) {
			settle_failed(ls, l);
			continue;
		}
		l->created = false;
		lumps_set_end(ls, l, l->new_end);
		l->live_bytes = l->new_live_bytes;
		l->live_records = l->new_live_records;
	}
}

void lumps_set_end(struct lumps *ls, struct lump *l, uint64_t end)
{
	atomic_fetch_add(&ls->bytes, end - l->end);
	l->end = end;
}

uint64_t lumps_bytes(struct lumps *ls)
{
	return atomic_load(&ls->bytes);
}

size_t lumps_count(struct lumps *ls)
{
	size_t nr;

	pthread_mutex_lock(&ls->lock);
	nr = ls->nr;
	pthread_mutex_unlock(&ls->lock);
	return nr;
}

size_t lumps_open_fds(struct lumps *ls)
{
	size_t nr;

	pthread_mutex_lock(&ls->lock);
	nr = ls->nr_fds;
	pthread_mutex_unlock(&ls->lock);
	return nr;
}
