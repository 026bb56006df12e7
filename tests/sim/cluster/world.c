// SPDX-License-Identifier: GPL-2.0-or-later
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "meta/server.h"
#include "world.h"

void world_fail(struct history *h, const char *fmt, ...)
{
	va_list args;

	if (*h->what)
		return;
	va_start(args, fmt);
	vsnprintf(h->what, sizeof(h->what), fmt, args);
	va_end(args);
	world_trace(h, "FAILED: %s", h->what);
}

void world_trace(struct history *h, const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	for (const char *p = text; *p; p++)
		h->r->digest = (h->r->digest ^ (uint8_t)*p) * 0x100000001b3ULL;
	h->r->digest = (h->r->digest ^ threads_now()) * 0x100000001b3ULL;
	if (h->o->trace)
		printf("%12.6f  %s\n", (double)(threads_now() % (1000 * S)) / 1e9, text);
}

/* ---- content ---- */

void content_make(unsigned int k, uint8_t block[BLOCK_BYTES])
{
	memset(block, (int)k + 1, BLOCK_BYTES);
	memcpy(block, "content", 8);
}

static unsigned int slot_of(const uint8_t *fp)
{
	return (fp[FP_SIZE - 1] | (unsigned int)fp[FP_SIZE - 2] << 8) % FP_SLOTS;
}

int content_of(const struct history *h, const uint8_t *fp)
{
	for (unsigned int i = slot_of(fp); h->by_fp[i]; i = (i + 1) % FP_SLOTS)
		if (!memcmp(h->fps[h->by_fp[i] - 1].b, fp, FP_SIZE))
			return h->by_fp[i] - 1;
	return -1;
}

/* ---- files ---- */

static void die(const char *what, const char *path)
{
	fprintf(stdout, "simulation: %s %s: %s\n", what, path, strerror(errno));
	abort();
}

static void copy_file(const char *from, const char *to)
{
	static char buf[1 << 16];
	int in = open(from, O_RDONLY | O_CLOEXEC), out;
	off_t at = 0;
	ssize_t n;

	if (in < 0)
		return; /* there need not be one */
	out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (out < 0)
		die("make", to);
	for (; (n = pread(in, buf, sizeof(buf), at)) > 0; at += n)
		if (pwrite(out, buf, (size_t)n, at) != n)
			die("write", to);
	close(in);
	close(out);
}

static void copy_folder(const char *from, const char *to)
{
	DIR *d = opendir(from);
	struct dirent *e;

	if (!d || mkdir(to, 0700))
		die("copy to", to);
	while ((e = readdir(d))) {
		char a[512], b[512];
		struct stat st;

		if (e->d_name[0] == '.' || !strcmp(e->d_name, "lock.mdb"))
			continue;
		snprintf(a, sizeof(a), "%s/%s", from, e->d_name);
		snprintf(b, sizeof(b), "%s/%s", to, e->d_name);
		if (!stat(a, &st) && S_ISDIR(st.st_mode))
			copy_folder(a, b);
		else
			copy_file(a, b);
	}
	closedir(d);
}

static void new_folder(struct history *h, struct data_machine *m, char path[128])
{
	snprintf(path, 128, "%s/d%u-%u", h->o->dir, m->number, ++m->nr_dirs);
}

/* ---- the meta server ---- */

static void *meta_main(void *arg)
{
	struct history *h = arg;
	struct error err = { 0 };
	struct net_ctx *net = net_ctx_new(NULL, NULL, &err);
	struct meta_server *s = meta_server_open(net, h->meta_path, &err);

	if (!s) {
		world_fail(h, "the meta server does not start: %s", err.text);
		return NULL;
	}
	meta_server_bind(s, "sim://meta", &err);
	if (meta_server_govern(s, false, &err) || meta_server_run(s, &err))
		world_fail(h, "the meta server ended: %s", err.text);
	return NULL;
}

void meta_start(struct history *h)
{
	world_trace(h, "the meta server starts");
	h->meta_up = true;
	thread_start(NODE_META, meta_main, h);
}

/* Where a store shall be: a file there says that it is. */
static void meta_path_new(struct history *h, unsigned int n)
{
	int fd;

	snprintf(h->meta_path, sizeof(h->meta_path), "%s/meta-%u", h->o->dir, n);
	fd = open(h->meta_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		die("make", h->meta_path);
	close(fd);
}

/* Its store, as it is on the disk. */
void meta_crash(struct history *h)
{
	char old[128], a[160], b[160];

	world_trace(h, "the meta server crashes");
	node_kill(NODE_META);
	h->meta_up = false;
	watch_close(h);
	memcpy(old, h->meta_path, sizeof(old));
	meta_path_new(h, ++h->nr_metas);
	files_move(old, h->meta_path);
	snprintf(a, sizeof(a), "%s-wal", old);
	snprintf(b, sizeof(b), "%s-wal", h->meta_path);
	files_move(a, b);
	watch_open(h);
}

/* ---- data servers ---- */

static void *data_main(void *arg)
{
	struct history *h = ((void **)arg)[0];
	struct data_machine *m = ((void **)arg)[1];
	struct error err = { 0 };
	struct net_ctx *net = net_ctx_new(NULL, NULL, &err);
	char endpoint[32], host[32];
	struct data_options o = { .dir = m->dir, .meta = "sim://meta", .endpoint = endpoint,
				  .host = host, .rack = "", .cache_bytes = 1 << 20,
				  .capacity = 2ULL << 30 };
	struct data_server *s;

	snprintf(endpoint, sizeof(endpoint), "sim://d%u", m->number);
	snprintf(host, sizeof(host), "host%u", m->number);
	s = data_server_open(net, &o, &err);
	if (!s) {
		world_fail(h, "data server %u does not start: %s", m->number, err.text);
		return NULL;
	}
	data_server_bind(s, endpoint, &err);
	m->disk = *bstore_disk(s->store);
	m->session = s->session;
	m->sequence = UINT64_MAX;
	m->s = s;
	if (data_server_run(s, &err))
		world_fail(h, "data server %u ended: %s", m->number, err.text);
	return NULL;
}

void data_start(struct history *h, unsigned int i)
{
	struct data_machine *m = &h->data[i];
	void **arg = malloc(2 * sizeof(*arg));

	m->number = i;
	m->node = NODE_DATA + i;
	if (!m->exists) {
		new_folder(h, m, m->dir);
		if (mkdir(m->dir, 0700))
			die("make", m->dir);
	}
	m->exists = m->up = true;
	world_trace(h, "data server %u starts", i);
	arg[0] = h;
	arg[1] = m;
	thread_start(m->node, data_main, arg);
}

void data_crash(struct history *h, unsigned int i)
{
	struct data_machine *m = &h->data[i];
	char old[128];

	world_trace(h, "data server %u crashes", i);
	watch_step(h, m->node); /* what it has now */
	node_kill(m->node);
	m->up = false;
	m->s = NULL;
	m->session = (struct uuid){ { 0 } };
	memcpy(old, m->dir, sizeof(old));
	new_folder(h, m, m->dir);
	copy_folder(old, m->dir);
	h->r->crashes++;
}

void data_empty(struct history *h, unsigned int i)
{
	struct data_machine *m = &h->data[i];

	world_trace(h, "data server %u gets an empty disk", i);
	new_folder(h, m, m->dir);
	if (mkdir(m->dir, 0700))
		die("make", m->dir);
	memset(m->have, 0, sizeof(m->have));
	m->disk = (struct uuid){ { 0 } };
	*m->old = 0;
	m->damaged = false; /* it is another one */
	h->r->damages++;
}

void data_put_back(struct history *h, unsigned int i)
{
	struct data_machine *m = &h->data[i];

	world_trace(h, "data server %u gets yesterday's disk", i);
	new_folder(h, m, m->dir);
	copy_folder(m->old, m->dir);
	*m->old = 0;
	m->damaged = true;
	h->r->damages++;
}

void data_copy(struct history *h, unsigned int i)
{
	struct data_machine *m = &h->data[i];

	world_trace(h, "data server %u: its disk is copied", i);
	new_folder(h, m, m->old);
	copy_folder(m->dir, m->old);
	m->old_session = m->session;
	m->old_is_older = false;
}

/* ---- the beginning ---- */

static void make_contents(struct history *h)
{
	struct fp_hasher *hasher = fp_hasher_new(FP_SHA256, NULL, 0);
	uint8_t block[BLOCK_BYTES];

	for (unsigned int k = 0; k < CONTENTS; k++) {
		unsigned int i;

		content_make(k, block);
		fp_hash(hasher, block, sizeof(block), &h->fps[k]);
		for (i = slot_of(h->fps[k].b); h->by_fp[i]; i = (i + 1) % FP_SLOTS)
			;
		h->by_fp[i] = (uint8_t)(k + 1);
	}
	fp_hasher_free(hasher);
}

/* Small pages: what is in a store of a history is small, too. */
static void shrink_pages(struct history *h)
{
	sqlite3 *db = NULL;

	if (sqlite3_open(h->meta_path, &db) ||
	    sqlite3_exec(db, "PRAGMA journal_mode = DELETE; PRAGMA page_size = 1024; VACUUM; "
			 "PRAGMA journal_mode = WAL", NULL, NULL, NULL))
		world_fail(h, "the store: %s", sqlite3_errmsg(db));
	sqlite3_close(db);
}

void world_prepare(struct history *h, const char *dir)
{
	struct meta_init init = { .name = "sim", .block_shift = BLOCK_SHIFT, .replicas = 3, .min_copies = 2 };
	struct error err = { 0 };

	make_contents(h);
	files_init();
	snprintf(h->meta_path, sizeof(h->meta_path), "%s/meta", dir);
	if (meta_store_init(h->meta_path, &init, &err))
		world_fail(h, "no store: %s", err.text);
	else
		shrink_pages(h);
}

static void set_up_store(struct history *h)
{
	char sql[100];

	snprintf(sql, sizeof(sql), "UPDATE cluster SET out_after_s = 3, replicas = %u, min_copies = %u",
		 h->replicas, h->min_copies);
	if (sqlite3_exec(h->db, sql, NULL, NULL, NULL))
		world_fail(h, "the store: %s", sqlite3_errmsg(h->db));
}

void world_make(struct history *h)
{
	char prepared[128];

	memcpy(prepared, h->meta_path, sizeof(prepared));
	meta_path_new(h, 0);
	files_move(prepared, h->meta_path);
	watch_open(h);
	set_up_store(h);
}
