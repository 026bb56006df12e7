// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * SQLite's files, in memory: a store is read and written thousands of times in a history. All that
 * SQLite asks of a disk is here but time. A path that SQLite opens need not exist as a file.
 */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "threads.h"
#include "world.h"

#define MAX_FILES   256
#define MAX_REGIONS 16
#define ROOM	    (64 << 10)

/* Lives on when the last one closes it. */
struct mem {
	char path[160]; /* "": the slot is free */
	uint8_t *data;
	size_t len, room;
	/* Who holds which lock; SQLite asks for them in order. */
	unsigned int shared;
	const void *reserved, *pending, *exclusive;
	/* Of the index of its log, which connections share. */
	void *regions[MAX_REGIONS];
	int readers[SQLITE_SHM_NLOCK];	     /* -1: one that writes */
};

struct handle {
	sqlite3_file base;
	struct mem *m;
	int level; /* SQLITE_LOCK_* */
	uint16_t shm_shared, shm_exclusive; /* by bits */
	bool drop;			    /* with the handle */
};

static struct mem files[MAX_FILES];
static uint64_t nr_writes;

uint64_t files_writes(void)
{
	return nr_writes;
}

static struct mem *find(const char *path)
{
	for (struct mem *m = files; m < files + MAX_FILES; m++)
		if (!strcmp(m->path, path))
			return m;
	return NULL;
}

static struct mem *make(const char *path)
{
	struct mem *m = find("");

	if (!m || strlen(path) >= sizeof(m->path)) {
		fprintf(stderr, "simulation: too many files, or a long name: %s\n", path);
		abort();
	}
	snprintf(m->path, sizeof(m->path), "%s", path);
	return m;
}

static void drop(struct mem *m)
{
	free(m->data);
	for (size_t i = 0; i < MAX_REGIONS; i++)
		free(m->regions[i]);
	*m = (struct mem){ 0 };
}

static void make_room(struct mem *m, size_t len)
{
	if (len <= m->room)
		return;
	m->room = MAX(len, 2 * m->room + ROOM);
	m->data = realloc(m->data, m->room);
	if (!m->data)
		abort();
}

static void set_len(struct mem *m, size_t len)
{
	make_room(m, len);
	if (len > m->len)
		memset(m->data + m->len, 0, len - m->len);
	m->len = len;
}

void files_move(const char *from, const char *to)
{
	struct mem *a = find(from), *b;

	if (!a)
		return; /* there need not be one */
	b = make(to);
	b->data = a->data;
	b->len = a->len;
	b->room = a->room;
	a->data = NULL;
	a->len = a->room = 0;
}

/* ---- bytes ---- */

static struct handle *handle_of(sqlite3_file *f)
{
	return (struct handle *)f;
}

static int mem_read(sqlite3_file *f, void *buf, int len, sqlite3_int64 at)
{
	const struct mem *m = handle_of(f)->m;
	size_t n = (size_t)at < m->len ? MIN((size_t)len, m->len - (size_t)at) : 0;

	if (n)
		memcpy(buf, m->data + at, n);
	memset((uint8_t *)buf + n, 0, (size_t)len - n);
	return n == (size_t)len ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int mem_write(sqlite3_file *f, const void *buf, int len, sqlite3_int64 at)
{
	struct mem *m = handle_of(f)->m;

	if ((size_t)at > m->len)
		set_len(m, (size_t)at);
	make_room(m, (size_t)at + (size_t)len);
	memcpy(m->data + at, buf, (size_t)len);
	m->len = MAX(m->len, (size_t)at + (size_t)len);
	nr_writes++;
	return SQLITE_OK;
}

static int mem_truncate(sqlite3_file *f, sqlite3_int64 len)
{
	set_len(handle_of(f)->m, (size_t)len);
	nr_writes++;
	return SQLITE_OK;
}

static int mem_sync(sqlite3_file *f, int flags)
{
	return SQLITE_OK;
}

static int mem_size(sqlite3_file *f, sqlite3_int64 *len)
{
	*len = (sqlite3_int64)handle_of(f)->m->len;
	return SQLITE_OK;
}

/* ---- locks of the file ---- */

static int mem_lock(sqlite3_file *f, int level)
{
	struct handle *h = handle_of(f);
	struct mem *m = h->m;

	if (h->level >= level)
		return SQLITE_OK;
	if (level == SQLITE_LOCK_SHARED) {
		if (m->pending || m->exclusive)
			return SQLITE_BUSY;
		m->shared++;
	} else if (level == SQLITE_LOCK_RESERVED) {
		if (m->reserved || m->pending || m->exclusive)
			return SQLITE_BUSY;
		m->reserved = h;
	} else {
		if ((m->pending && m->pending != h) || (m->exclusive && m->exclusive != h) ||
		    (m->reserved && m->reserved != h))
			return SQLITE_BUSY;
		m->pending = h;
		if (m->shared > 1) {
			h->level = SQLITE_LOCK_PENDING;
			return SQLITE_BUSY;
		}
		m->exclusive = h;
	}
	h->level = level;
	return SQLITE_OK;
}

static int mem_unlock(sqlite3_file *f, int level)
{
	struct handle *h = handle_of(f);
	struct mem *m = h->m;

	if (h->level <= level)
		return SQLITE_OK;
	m->reserved = m->reserved == h ? NULL : m->reserved;
	m->pending = m->pending == h ? NULL : m->pending;
	m->exclusive = m->exclusive == h ? NULL : m->exclusive;
	if (level == SQLITE_LOCK_NONE)
		m->shared--;
	h->level = level;
	return SQLITE_OK;
}

static int mem_is_reserved(sqlite3_file *f, int *out)
{
	const struct mem *m = handle_of(f)->m;

	*out = m->reserved || m->pending || m->exclusive;
	return SQLITE_OK;
}

/* ---- the index of the log ---- */

static int shm_map(sqlite3_file *f, int region, int size, int extend, void volatile **out)
{
	struct mem *m = handle_of(f)->m;

	if (region >= MAX_REGIONS)
		return SQLITE_FULL;
	if (!m->regions[region] && extend)
		m->regions[region] = calloc(1, (size_t)size);
	*out = m->regions[region];
	return SQLITE_OK;
}

static int shm_lock(sqlite3_file *f, int first, int n, int flags)
{
	struct handle *h = handle_of(f);
	int *readers = h->m->readers;
	bool shared = flags & SQLITE_SHM_SHARED;
	uint16_t mask = (uint16_t)(((1U << n) - 1) << first);

	if (flags & SQLITE_SHM_UNLOCK) {
		for (int i = first; i < first + n; i++) {
			if (h->shm_exclusive & 1U << i)
				readers[i] = 0;
			else if (h->shm_shared & 1U << i)
				readers[i]--;
		}
		h->shm_shared &= (uint16_t)~mask;
		h->shm_exclusive &= (uint16_t)~mask;
		return SQLITE_OK;
	}
	for (int i = first; i < first + n; i++)
		if (shared ? readers[i] < 0 : readers[i] > !!(h->shm_shared & 1U << i) || readers[i] < 0)
			return SQLITE_BUSY;
	for (int i = first; i < first + n; i++) {
		if (!shared)
			readers[i] = -1;
		else if (!(h->shm_shared & 1U << i))
			readers[i]++;
	}
	if (shared)
		h->shm_shared |= mask;
	else
		h->shm_exclusive |= mask;
	return SQLITE_OK;
}

static void shm_barrier(sqlite3_file *f)
{
}

static int shm_unmap(sqlite3_file *f, int delete)
{
	struct mem *m = handle_of(f)->m;

	for (size_t i = 0; delete && i < MAX_REGIONS; i++) {
		free(m->regions[i]);
		m->regions[i] = NULL;
	}
	return SQLITE_OK;
}

/* ---- the rest ---- */

static int mem_close(sqlite3_file *f)
{
	struct handle *h = handle_of(f);

	mem_unlock(f, SQLITE_LOCK_NONE);
	if (h->drop)
		drop(h->m);
	return SQLITE_OK;
}

static int mem_control(sqlite3_file *f, int op, void *arg)
{
	return SQLITE_NOTFOUND;
}

static int mem_sector(sqlite3_file *f)
{
	return 4096;
}

static int mem_device(sqlite3_file *f)
{
	return 0;
}

static const sqlite3_io_methods methods = {
	.iVersion = 2,
	.xClose = mem_close,
	.xRead = mem_read,
	.xWrite = mem_write,
	.xTruncate = mem_truncate,
	.xSync = mem_sync,
	.xFileSize = mem_size,
	.xLock = mem_lock,
	.xUnlock = mem_unlock,
	.xCheckReservedLock = mem_is_reserved,
	.xFileControl = mem_control,
	.xSectorSize = mem_sector,
	.xDeviceCharacteristics = mem_device,
	.xShmMap = shm_map,
	.xShmLock = shm_lock,
	.xShmBarrier = shm_barrier,
	.xShmUnmap = shm_unmap,
};

static int vfs_open(sqlite3_vfs *v, const char *path, sqlite3_file *f, int flags, int *out)
{
	struct handle *h = handle_of(f);
	static unsigned int temps;
	char name[32];

	*h = (struct handle){ .base.pMethods = &methods };
	if (!path) {
		snprintf(name, sizeof(name), "temporary-%u", ++temps);
		path = name;
		h->drop = true;
	}
	h->m = find(path) ?: make(path);
	if (out)
		*out = flags;
	return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *v, const char *path, int sync)
{
	struct mem *m = find(path);

	if (m)
		drop(m);
	return SQLITE_OK;
}

static int vfs_access(sqlite3_vfs *v, const char *path, int flags, int *out)
{
	const struct mem *m = find(path);

	*out = m && (flags != SQLITE_ACCESS_EXISTS || m->len);
	return SQLITE_OK;
}

static int vfs_full(sqlite3_vfs *v, const char *path, int room, char *out)
{
	return snprintf(out, (size_t)room, "%s", path) < room ? SQLITE_OK : SQLITE_CANTOPEN;
}

static int vfs_random(sqlite3_vfs *v, int len, char *out)
{
	for (int i = 0; i < len; i++)
		out[i] = (char)i;
	return len;
}

static int vfs_sleep(sqlite3_vfs *v, int us)
{
	fputs("simulation: the store is locked\n", stderr);
	abort();
}

static int vfs_time(sqlite3_vfs *v, sqlite3_int64 *ms)
{
	*ms = 210866760000000LL + 1700000000000LL + (sqlite3_int64)(threads_now() / MS);
	return SQLITE_OK;
}

void files_init(void)
{
	static sqlite3_vfs vfs = {
		.iVersion = 2,
		.szOsFile = sizeof(struct handle),
		.mxPathname = 159,
		.zName = "sim",
		.xOpen = vfs_open,
		.xDelete = vfs_delete,
		.xAccess = vfs_access,
		.xFullPathname = vfs_full,
		.xRandomness = vfs_random,
		.xSleep = vfs_sleep,
		.xCurrentTimeInt64 = vfs_time,
	};

	sqlite3_config(SQLITE_CONFIG_SINGLETHREAD);
	sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
	sqlite3_vfs_register(&vfs, true);
}
