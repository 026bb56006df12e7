// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * channel_agent: an agent for the kernel's tests, without any of the project's userspace
 *
 *	channel_agent serve [-h] [-m] [-v] [-z] [-s SOURCE] CACHE-UUID:CACHE-DEVICE SOCKET NAME=FILE...
 *	channel_agent ctl SOCKET COMMAND [ARGUMENT...]
 *
 * serve opens the cache's channel and answers for images that are plain files. A file is its
 * image's head, its length the image's; FILE.head keeps epoch, committed cut and version over restarts of the agent.
 *
 *	-h	holds FETCHes back until the command `answer`
 *	-m	answers with MAP where a CLEAN slot with the content is known
 *	-v	keeps in FILE.N what version N changed: (64-bit number, content) of each block
 *	-z	answers with MAP ZERO where the block is all zeros
 *	-s	says with PUBLISH that the block is from SOURCE (enum dm_dedup_source)
 *
 * ctl sends a command, prints what comes back, and exits with 0 for "ok", else with 1. Numbers of
 * volumes may be given as names. Commands:
 *
 *	volumes			records: id name flags committed closed dirty_bytes epoch
 *	cut VOLUME		prints the cut
 *	list VOLUME CUT		prints block slot seq flags base_kind and how many sectors are valid
 *	push VOLUME		CUT, LIST_CUT, merges into the file, COMMIT
 *	merge VOLUME		the same without the COMMIT, as if the agent had died before it
 *	commit VOLUME CUT VERSION	an empty COMMIT with that root
 *	release VOLUME [discard]; fence VOLUME [EPOCH]
 *	clean			prints slot seq of each CLEAN slot
 *	drop SLOT SEQ; dropall	of what is CLEAN
 *	waiting			how many FETCHes are held back
 *	hold, answer		from now on holds FETCHes back; answers all
 *	fail ERRNO		answers FETCHes that are held back with FAIL
 *	set NAME epoch|cut|version|error|uuid N	what the head says; error: of OPEN
 *	hostile			calls that must all be refused; prints those that were not
 *	hello			another HELLO: what was sent comes again
 *	quit
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/dm-dedup.h>
#include "../stamps.h"

#define MAX_IMAGES	512
#define MAX_HELD	4096
#define MAX_KNOWN	65536

struct image {
	const char *name;
	const char *file;
	int fd;
	uint64_t size;
	uint64_t epoch, cut, version;
	int error;
	uint64_t uuid;
};

struct known {
	uint64_t hash, slot, seq;
};

struct agent {
	int fd, window, sock;
	struct dm_dedup_hello hello;
	uint32_t block;
	struct image images[MAX_IMAGES];
	int nr_images;
	bool hold, use_map, use_zero, keep_versions, quit;
	FILE *version; /* the file for what the version being merged changes */
	uint32_t source;
	struct dm_dedup_upcall held[MAX_HELD];
	int nr_held;
	struct known known[MAX_KNOWN];
	FILE *out; /* of the command that is being carried out */
};

static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(errno));
	exit(1);
}

/* ---- images ---- */

static void head_save(const struct image *im)
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

static void image_add(struct agent *a, char *arg)
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

static struct image *image_by_name(struct agent *a, const char *name)
{
	for (int i = 0; i < a->nr_images; i++)
		if (!strcmp(a->images[i].name, name))
			return &a->images[i];
	return NULL;
}

static void image_uuid(const struct image *im, uint8_t uuid[16])
{
	memset(uuid, 0, 16);
	memcpy(uuid, im->name, strnlen(im->name, 8));
	uuid[15] = 1 + im->uuid;
}

static struct image *image_by_uuid(struct agent *a, const uint8_t uuid[16])
{
	uint8_t u[16];

	for (int i = 0; i < a->nr_images; i++) {
		image_uuid(&a->images[i], u);
		if (!memcmp(u, uuid, 16))
			return &a->images[i];
	}
	return NULL;
}

static void image_root(const struct image *im, uint64_t version, uint8_t root[DM_DEDUP_FP_SIZE])
{
	memset(root, 0, DM_DEDUP_FP_SIZE);
	snprintf((char *)root, DM_DEDUP_FP_SIZE, "%.16s %" PRIu64, im->name, version);
}

static int image_read(const struct image *im, uint64_t block, uint32_t bs, uint8_t *buf)
{
	ssize_t n = pread(im->fd, buf, bs, block * bs);

	if (n < 0)
		return -errno;
	memset(buf + n, 0, bs - n);
	return 0;
}

/* A fingerprint stands in for a real one: what matters here is that it follows from the content. */
static void make_fp(uint64_t hash, uint8_t fp[DM_DEDUP_FP_SIZE])
{
	memset(fp, 0, DM_DEDUP_FP_SIZE);
	memcpy(fp, &hash, sizeof(hash));
	fp[31] = 1;
}

/* ---- calls ---- */

static int call(struct agent *a, unsigned long cmd, void *arg)
{
	int r;

	do
		r = ioctl(a->fd, cmd, arg);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

static int batch(struct agent *a, unsigned long cmd, struct dm_dedup_batch *b, void *entries,
		 uint32_t entry_size, uint32_t count)
{
	b->size = sizeof(*b);
	b->entry_size = entry_size;
	b->agent_epoch = a->hello.agent_epoch;
	b->entries = (uintptr_t)entries;
	b->count = count;
	return call(a, cmd, b);
}

static int hello(struct agent *a)
{
	memset(&a->hello, 0, sizeof(a->hello));
	a->hello.size = sizeof(a->hello);
	a->hello.abi_major = DM_DEDUP_ABI_MAJOR;
	a->hello.abi_minor = DM_DEDUP_ABI_MINOR;
	a->hello.features = DM_DEDUP_FEATURE_SOURCE;
	return call(a, DM_DEDUP_HELLO, &a->hello);
}

/* ---- answers ---- */

static bool all_zero(const uint8_t *p, size_t n)
{
	return !*p && !memcmp(p, p + 1, n - 1);
}

static void answer_fail(struct agent *a, uint64_t cookie, int error)
{
	struct dm_dedup_fail f = { .cookie = cookie, .error = error };
	struct dm_dedup_batch b = {};

	batch(a, DM_DEDUP_FAIL, &b, &f, sizeof(f), 1);
}

static int answer_map(struct agent *a, const struct dm_dedup_upcall *up, const struct known *k)
{
	struct dm_dedup_map m = {
		.cookie = up->cookie, .volume = up->info.volume, .block = up->block,
	};
	struct dm_dedup_batch b = {};
	int r;

	memcpy(m.root, up->info.root, sizeof(m.root));
	if (k) {
		m.slot = k->slot;
		m.seq = k->seq;
	} else {
		m.flags = DM_DEDUP_MAP_ZERO;
	}
	r = batch(a, DM_DEDUP_MAP, &b, &m, sizeof(m), 1);
	return r ? r : m.result;
}

static int answer_publish(struct agent *a, const struct dm_dedup_upcall *up, const uint8_t *data,
			  struct known *k)
{
	struct dm_dedup_publish p = {
		.cookie = up->cookie, .volume = up->info.volume, .block = up->block,
		.data = (uintptr_t)data, .source = a->source,
	};
	struct dm_dedup_batch b = {};
	uint64_t hash = stamps_hash(data, a->block);
	int r;

	memcpy(p.root, up->info.root, sizeof(p.root));
	make_fp(hash, p.fp);
	r = batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	if (!r && !p.result) {
		k->hash = hash;
		k->slot = p.slot;
		k->seq = p.seq;
	}
	return r ? r : p.result;
}

/* 0, or what made it impossible; -ENOSPC: may be tried again. */
static int answer_fetch(struct agent *a, const struct dm_dedup_upcall *up)
{
	struct image *im = image_by_uuid(a, up->info.image);
	uint8_t *buf = malloc(a->block);
	struct known *k;
	int r;

	if (!im || !buf || image_read(im, up->block, a->block, buf)) {
		answer_fail(a, up->cookie, EIO);
		free(buf);
		return -EIO;
	}
	k = &a->known[stamps_hash(buf, a->block) % MAX_KNOWN];
	if (a->use_zero && all_zero(buf, a->block)) {
		r = answer_map(a, up, NULL);
	} else if (a->use_map && k->seq && k->hash == stamps_hash(buf, a->block) &&
		   !answer_map(a, up, k)) {
		r = 0;
	} else {
		do
			r = answer_publish(a, up, buf, k);
		while (r == -ENOSPC);
	}
	free(buf);
	return r;
}

static void answer_lookup(struct agent *a, const struct dm_dedup_upcall *up, struct image *im)
{
	struct dm_dedup_reply *rep = calloc(1, sizeof(*rep));
	struct stat st;

	rep->size = sizeof(*rep);
	rep->agent_epoch = a->hello.agent_epoch;
	rep->cookie = up->cookie;
	if (!im) {
		rep->error = ENOENT;
	} else if (up->type == DM_DEDUP_UP_OPEN && im->error) {
		rep->error = im->error;
	} else {
		image_uuid(im, rep->info.image);
		if (!fstat(im->fd, &st))
			im->size = st.st_size;
		rep->info.size = im->size;
		if (up->type == DM_DEDUP_UP_OPEN) {
			memset(rep->info.image, 0, sizeof(rep->info.image));
			image_root(im, im->version, rep->info.root);
			rep->info.lease_epoch = im->epoch;
			rep->info.committed_cut = im->cut;
		}
	}
	call(a, DM_DEDUP_REPLY, rep);
	free(rep);
}

static void handle_upcall(struct agent *a, const struct dm_dedup_upcall *up)
{
	switch (up->type) {
	case DM_DEDUP_UP_LOOKUP:
		answer_lookup(a, up, image_by_name(a, up->info.name));
		break;
	case DM_DEDUP_UP_OPEN:
		answer_lookup(a, up, image_by_uuid(a, up->info.image));
		break;
	case DM_DEDUP_UP_FETCH:
		if (a->hold && a->nr_held < MAX_HELD)
			a->held[a->nr_held++] = *up;
		else
			answer_fetch(a, up);
		break;
	default:
		break;
	}
}

static void read_upcalls(struct agent *a)
{
	struct dm_dedup_upcall ups[16];
	ssize_t n = read(a->fd, ups, sizeof(ups));

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		die("read");
	for (ssize_t i = 0; i < n / (ssize_t)sizeof(ups[0]); i++)
		handle_upcall(a, &ups[i]);
}

/* ---- commands ---- */

static int find_volume(struct agent *a, const char *what, struct dm_dedup_volume_info *info)
{
	struct dm_dedup_batch b = {};
	uint64_t id = strtoull(what, NULL, 0);
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_VOLUMES, &b, info, sizeof(*info), 1);
		if (!r && b.count && (info->volume == id || !strcmp(info->name, what)))
			return 0;
	} while (!r && b.cursor != ~0ULL);
	return r ? r : -ENOENT;
}

static int cmd_volumes(struct agent *a)
{
	struct dm_dedup_volume_info info[8];
	struct dm_dedup_batch b = {};
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_VOLUMES, &b, info, sizeof(info[0]), 8);
		for (uint32_t i = 0; !r && i < b.count; i++)
			fprintf(a->out, "%llu %s %#x %llu %llu %llu %llu\n", info[i].volume,
				info[i].name, info[i].flags, info[i].committed_cut,
				info[i].closed_cut, info[i].dirty_bytes, info[i].lease_epoch);
	} while (!r && b.cursor != ~0ULL);
	return r;
}

static int do_cut(struct agent *a, uint64_t volume, struct dm_dedup_cut *cut)
{
	memset(cut, 0, sizeof(*cut));
	cut->size = sizeof(*cut);
	cut->agent_epoch = a->hello.agent_epoch;
	cut->volume = volume;
	return call(a, DM_DEDUP_CUT, cut);
}

static bool bit(const uint8_t *map, unsigned int n)
{
	return map[n / 8] >> n % 8 & 1;
}

typedef int (*entry_fn)(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx);

static int each_entry(struct agent *a, uint64_t volume, uint64_t cut, entry_fn fn, void *ctx)
{
	static struct dm_dedup_cut_entry e[64];
	struct dm_dedup_batch b = { .volume = volume, .cut = cut };
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_CUT, &b, e, sizeof(e[0]), 64);
		for (uint32_t i = 0; !r && i < b.count; i++)
			r = fn(a, &e[i], ctx);
	} while (!r && b.cursor != ~0ULL);
	return r;
}

static int print_entry(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx)
{
	unsigned int n, valid = 0;

	(void)ctx;
	for (n = 0; n < a->block / 512; n++)
		valid += bit(e->bitmap, n);
	fprintf(a->out, "%llu %llu %llu %u %u %u\n", e->block, e->slot, e->seq, e->flags,
		e->base_kind, valid);
	return 0;
}

static int merge_entry(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx)
{
	struct image *im = ctx;
	uint8_t *data = aligned_alloc(4096, a->block);
	uint8_t *block = malloc(a->block);
	unsigned int n;
	int r;

	r = image_read(im, e->block, a->block, block);
	if (e->base_kind == DM_DEDUP_BASE_ZERO)
		memset(block, 0, a->block);
	if (!r && pread(a->window, data, a->block, a->hello.data_offset + e->slot * a->block) !=
		  (ssize_t)a->block)
		r = -EIO;
	for (n = 0; !r && n < a->block / 512; n++)
		if (bit(e->bitmap, n))
			memcpy(block + n * 512, data + n * 512, 512);
	n = e->block * a->block + a->block > im->size ? im->size - e->block * a->block : a->block;
	if (!r && pwrite(im->fd, block, n, e->block * a->block) != n)
		r = -EIO;
	if (!r && a->version) {
		uint64_t nr = e->block;

		if (fwrite(&nr, sizeof(nr), 1, a->version) != 1 ||
		    fwrite(block, a->block, 1, a->version) != 1)
			r = -EIO;
	}
	free(block);
	free(data);
	return r;
}

/* Merges the cut into the file, which is the next version then. */
static int merge_cut(struct agent *a, uint64_t volume, struct image *im, uint64_t cut)
{
	char path[4096];
	int r;

	if (a->keep_versions) {
		snprintf(path, sizeof(path), "%s.%" PRIu64, im->file, im->version + 1);
		a->version = fopen(path, "w");
		if (!a->version)
			return -errno;
	}
	r = each_entry(a, volume, cut, merge_entry, im);
	if (a->version) {
		if (!r && (fflush(a->version) || fsync(fileno(a->version))))
			r = -errno;
		fclose(a->version);
		a->version = NULL;
	}
	if (!r && fsync(im->fd))
		r = -errno;
	if (r)
		return r;
	im->cut = cut;
	im->version++;
	head_save(im);
	return 0;
}

struct commit {
	struct image *im;
	uint64_t volume, cut, epoch;
	uint8_t root[DM_DEDUP_FP_SIZE];
	struct dm_dedup_replacement e[64];
	uint32_t n;
};

static int commit_send(struct agent *a, struct commit *cm, bool more)
{
	struct dm_dedup_batch b = {
		.volume = cm->volume, .cut = cm->cut, .lease_epoch = cm->epoch,
		.flags = more ? DM_DEDUP_COMMIT_MORE : 0,
	};
	int r;

	memcpy(b.root, cm->root, sizeof(b.root));
	r = batch(a, DM_DEDUP_COMMIT, &b, cm->e, sizeof(cm->e[0]), cm->n);
	for (uint32_t i = 0; !r && i < cm->n; i++)
		if (cm->e[i].result)
			fprintf(a->out, "block %llu: %d\n", cm->e[i].block, cm->e[i].result);
	cm->n = 0;
	return r;
}

static int stage_entry(struct agent *a, const struct dm_dedup_cut_entry *e, void *ctx)
{
	struct commit *cm = ctx;
	struct dm_dedup_replacement *rep = &cm->e[cm->n++];

	memset(rep, 0, sizeof(*rep));
	rep->block = e->block;
	rep->slot = e->slot;
	rep->seq = e->seq;
	rep->kind = DM_DEDUP_BASE_NONE;
	if (e->flags & DM_DEDUP_CUT_COMPLETE) {
		uint8_t *buf = malloc(a->block);
		int r = image_read(cm->im, e->block, a->block, buf);

		rep->kind = DM_DEDUP_BASE_OWN;
		make_fp(stamps_hash(buf, a->block), rep->fp);
		free(buf);
		if (r)
			return r;
	}
	return cm->n == 64 ? commit_send(a, cm, true) : 0;
}

static int cmd_push(struct agent *a, const char *what, bool commit)
{
	struct dm_dedup_volume_info info;
	struct dm_dedup_cut cut;
	static struct commit cm;
	struct image *im;
	int r = find_volume(a, what, &info);

	if (r)
		return r;
	im = image_by_uuid(a, info.image);
	if (!im)
		return -ENOENT;
	r = do_cut(a, info.volume, &cut);
	if (r || !cut.cut)
		return r;
	fprintf(a->out, "cut %llu\n", cut.cut);
	/* A cut that the head has already gets its first result again. */
	if (cut.cut != im->cut) {
		r = merge_cut(a, info.volume, im, cut.cut);
		if (r)
			return r;
	}
	if (!commit)
		return 0;
	memset(&cm, 0, sizeof(cm));
	cm.im = im;
	cm.volume = info.volume;
	cm.cut = cut.cut;
	cm.epoch = cut.lease_epoch;
	image_root(im, im->version, cm.root);
	r = each_entry(a, info.volume, cut.cut, stage_entry, &cm);
	return r ? r : commit_send(a, &cm, false);
}

static int cmd_commit(struct agent *a, char **argv)
{
	struct dm_dedup_volume_info info;
	struct commit cm = {};
	struct image *im;
	int r = find_volume(a, argv[0], &info);

	im = r ? NULL : image_by_uuid(a, info.image);
	if (!im)
		return -ENOENT;
	cm.volume = info.volume;
	cm.cut = strtoull(argv[1], NULL, 0);
	cm.epoch = info.lease_epoch;
	image_root(im, strtoull(argv[2], NULL, 0), cm.root);
	return commit_send(a, &cm, false);
}

static int cmd_volume_call(struct agent *a, unsigned long cmd, char **argv, int argc)
{
	struct dm_dedup_volume_info info;
	struct dm_dedup_volume_call c = { .size = sizeof(c) };
	int r = find_volume(a, argv[0], &info);

	if (r)
		return r;
	c.agent_epoch = a->hello.agent_epoch;
	c.volume = info.volume;
	c.lease_epoch = info.lease_epoch;
	if (argc > 1 && !strcmp(argv[1], "discard"))
		c.flags = DM_DEDUP_RELEASE_DISCARD;
	else if (argc > 1)
		c.lease_epoch = strtoull(argv[1], NULL, 0);
	return call(a, cmd, &c);
}

static int cmd_clean(struct agent *a)
{
	static struct dm_dedup_clean_entry e[256];
	struct dm_dedup_batch b = {};
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_CLEAN, &b, e, sizeof(e[0]), 256);
		for (uint32_t i = 0; !r && i < b.count; i++)
			fprintf(a->out, "%llu %llu\n", e[i].slot, e[i].seq);
	} while (!r && b.cursor != ~0ULL);
	return r;
}

static int cmd_drop(struct agent *a, char **argv)
{
	struct dm_dedup_drop d = { .slot = strtoull(argv[0], NULL, 0),
				   .seq = strtoull(argv[1], NULL, 0) };
	struct dm_dedup_batch b = {};
	int r = batch(a, DM_DEDUP_DROP, &b, &d, sizeof(d), 1);

	return r ? r : d.result;
}

static int cmd_dropall(struct agent *a)
{
	static struct dm_dedup_clean_entry e[256];
	struct dm_dedup_drop d[256];
	struct dm_dedup_batch l = {}, b = {};
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_CLEAN, &l, e, sizeof(e[0]), 256);
		for (uint32_t i = 0; !r && i < l.count; i++)
			d[i] = (struct dm_dedup_drop){ .slot = e[i].slot, .seq = e[i].seq };
		if (!r && l.count)
			r = batch(a, DM_DEDUP_DROP, &b, d, sizeof(d[0]), l.count);
	} while (!r && l.cursor != ~0ULL);
	return r;
}

static int cmd_set(struct agent *a, char **argv)
{
	struct image *im = image_by_name(a, argv[0]);
	uint64_t n = strtoull(argv[2], NULL, 0);

	if (!im)
		return -ENOENT;
	if (!strcmp(argv[1], "epoch"))
		im->epoch = n;
	else if (!strcmp(argv[1], "cut"))
		im->cut = n;
	else if (!strcmp(argv[1], "version"))
		im->version = n;
	else if (!strcmp(argv[1], "error"))
		im->error = n;
	else if (!strcmp(argv[1], "uuid"))
		im->uuid = n;
	else
		return -EINVAL;
	head_save(im);
	return 0;
}

static void cmd_answer(struct agent *a, int error)
{
	int n = a->nr_held;

	for (int i = 0; i < n; i++) {
		if (error)
			answer_fail(a, a->held[i].cookie, error);
		else
			answer_fetch(a, &a->held[i]);
	}
	a->nr_held = 0;
	a->hold = false;
}

/* ---- hostile calls ---- */

static int expect(struct agent *a, const char *what, int got, int want)
{
	if (got == want)
		return 0;
	fprintf(a->out, "%s: got %d, not %d\n", what, got, want);
	return 1;
}

static int hostile_batches(struct agent *a)
{
	static const struct {
		const char *name;
		unsigned long cmd;
		uint32_t size, max;
	} t[] = {
		{ "PUBLISH", DM_DEDUP_PUBLISH, sizeof(struct dm_dedup_publish),
		  DM_DEDUP_MAX_PUBLISH },
		{ "MAP", DM_DEDUP_MAP, sizeof(struct dm_dedup_map), DM_DEDUP_MAX_BATCH },
		{ "FAIL", DM_DEDUP_FAIL, sizeof(struct dm_dedup_fail), DM_DEDUP_MAX_BATCH },
		{ "DROP", DM_DEDUP_DROP, sizeof(struct dm_dedup_drop), DM_DEDUP_MAX_BATCH },
		{ "LIST_CUT", DM_DEDUP_LIST_CUT, sizeof(struct dm_dedup_cut_entry),
		  DM_DEDUP_MAX_BATCH },
		{ "LIST_CLEAN", DM_DEDUP_LIST_CLEAN, sizeof(struct dm_dedup_clean_entry),
		  DM_DEDUP_MAX_BATCH },
		{ "LIST_VOLUMES", DM_DEDUP_LIST_VOLUMES, sizeof(struct dm_dedup_volume_info),
		  DM_DEDUP_MAX_BATCH },
		{ "COMMIT", DM_DEDUP_COMMIT, sizeof(struct dm_dedup_replacement),
		  DM_DEDUP_MAX_BATCH },
	};
	char buf[512] = {};
	int bad = 0;

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct dm_dedup_batch b = {};

		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size + 8, 1), -EINVAL);
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, t[i].max + 1),
			      -EINVAL);
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, ~0U), -EINVAL);
		b.flags = 0x80;
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, 1), -EINVAL);
		b.flags = 0;
		b.reserved[3] = 1;
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, 1), -EINVAL);
		b.reserved[3] = 0;
		b.size = 1;
		bad += expect(a, t[i].name, call(a, t[i].cmd, &b), -EINVAL);
		a->hello.agent_epoch--;
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, 1), -ESTALE);
		a->hello.agent_epoch++;
	}
	return bad;
}

static int hostile_entries(struct agent *a)
{
	struct dm_dedup_publish p = { .volume = 12345 };
	struct dm_dedup_map m = { .volume = 12345 };
	struct dm_dedup_fail f = { .cookie = 1, .error = EIO };
	struct dm_dedup_drop d = { .slot = ~0ULL };
	struct dm_dedup_volume_info v;
	struct dm_dedup_batch b = {};
	int bad = 0;

	bad += expect(a, "PUBLISH fault", batch(a, DM_DEDUP_PUBLISH, &b, (void *)8, sizeof(p), 1),
		      -EFAULT);
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH volume", p.result, -ESTALE);
	p.source = DM_DEDUP_SOURCE_DATA + 1;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH source", p.result, -EINVAL);
	batch(a, DM_DEDUP_MAP, &b, &m, sizeof(m), 1);
	bad += expect(a, "MAP volume", m.result, -ESTALE);
	batch(a, DM_DEDUP_FAIL, &b, &f, sizeof(f), 1);
	bad += expect(a, "FAIL cookie", f.result, -ESTALE);
	f.error = -5;
	batch(a, DM_DEDUP_FAIL, &b, &f, sizeof(f), 1);
	bad += expect(a, "FAIL error", f.result, -EINVAL);
	batch(a, DM_DEDUP_DROP, &b, &d, sizeof(d), 1);
	bad += expect(a, "DROP slot", d.result, -EINVAL);
	d.slot = 0;
	d.seq = ~0ULL;
	batch(a, DM_DEDUP_DROP, &b, &d, sizeof(d), 1);
	bad += expect(a, "DROP seq", d.result, -ESTALE);
	b.volume = 12345;
	b.cut = 1;
	bad += expect(a, "COMMIT volume", batch(a, DM_DEDUP_COMMIT, &b, NULL,
						sizeof(struct dm_dedup_replacement), 0), -ENOENT);
	b.cursor = ~0ULL - 1;
	bad += expect(a, "LIST_VOLUMES cursor",
		      batch(a, DM_DEDUP_LIST_VOLUMES, &b, &v, sizeof(v), 1), 0);
	bad += expect(a, "LIST_VOLUMES count", b.count, 0);
	return bad;
}

/* Calls on a volume that exists, when there is one. */
static int hostile_volume(struct agent *a)
{
	struct dm_dedup_volume_info v;
	struct dm_dedup_batch b = {};
	struct dm_dedup_publish p = {};
	struct dm_dedup_map m = { .flags = 0x10 };
	int bad = 0;

	if (batch(a, DM_DEDUP_LIST_VOLUMES, &b, &v, sizeof(v), 1) || !b.count)
		return 0;
	memset(&b, 0, sizeof(b));
	p.volume = v.volume;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH root", p.result, -ESTALE);
	memcpy(p.root, v.root, sizeof(p.root));
	p.block = ~0ULL;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH block", p.result, -EINVAL);
	p.cookie = 7;
	p.block = 0;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH cookie", p.result, -ESTALE);
	m.volume = v.volume;
	batch(a, DM_DEDUP_MAP, &b, &m, sizeof(m), 1);
	bad += expect(a, "MAP flags", m.result, -EINVAL);
	b.volume = v.volume;
	b.lease_epoch = v.lease_epoch + 1;
	b.cut = v.committed_cut + 1;
	bad += expect(a, "COMMIT epoch", batch(a, DM_DEDUP_COMMIT, &b, NULL,
					       sizeof(struct dm_dedup_replacement), 0), -ESTALE);
	b.lease_epoch = v.lease_epoch;
	b.cut = v.committed_cut + 77;
	bad += expect(a, "COMMIT cut", batch(a, DM_DEDUP_COMMIT, &b, NULL,
					     sizeof(struct dm_dedup_replacement), 0), -EINVAL);
	return bad;
}

static int cmd_hostile(struct agent *a)
{
	struct dm_dedup_hello h = { .size = sizeof(h), .abi_major = DM_DEDUP_ABI_MAJOR + 1 };
	struct dm_dedup_cut cut = { .size = sizeof(cut), .flags = 1 };
	struct dm_dedup_volume_call vc = { .size = sizeof(vc), .volume = 12345 };
	struct dm_dedup_reply *rep = calloc(1, sizeof(*rep));
	char small[16];
	int bad = 0;

	bad += expect(a, "HELLO major", call(a, DM_DEDUP_HELLO, &h), -EPROTO);
	h.size = 3;
	bad += expect(a, "HELLO size", call(a, DM_DEDUP_HELLO, &h), -EINVAL);
	bad += expect(a, "HELLO fault", call(a, DM_DEDUP_HELLO, (void *)8), -EFAULT);
	bad += expect(a, "unknown call", call(a, _IO(DM_DEDUP_IOC, 0x7f), &h), -ENOTTY);
	bad += expect(a, "CUT flags", call(a, DM_DEDUP_CUT, &cut), -EINVAL);
	bad += expect(a, "CUT volume", do_cut(a, 12345, &cut), -ENOENT);
	bad += expect(a, "FENCE epoch", call(a, DM_DEDUP_FENCE, &vc), -ESTALE);
	vc.agent_epoch = a->hello.agent_epoch;
	bad += expect(a, "FENCE volume", call(a, DM_DEDUP_FENCE, &vc), -ENOENT);
	bad += expect(a, "RELEASE volume", call(a, DM_DEDUP_RELEASE, &vc), -ENOENT);
	vc.flags = 2;
	bad += expect(a, "RELEASE flags", call(a, DM_DEDUP_RELEASE, &vc), -EINVAL);
	rep->size = sizeof(*rep);
	rep->agent_epoch = a->hello.agent_epoch;
	rep->cookie = 77;
	bad += expect(a, "REPLY cookie", call(a, DM_DEDUP_REPLY, rep), -ESTALE);
	rep->error = -1;
	bad += expect(a, "REPLY error", call(a, DM_DEDUP_REPLY, rep), -EINVAL);
	free(rep);
	bad += expect(a, "short read", read(a->fd, small, sizeof(small)) < 0 ? -errno : 0, -EINVAL);
	bad += hostile_batches(a) + hostile_entries(a) + hostile_volume(a);
	return bad ? -EBADMSG : 0;
}

/* ---- control ---- */

static int run_command(struct agent *a, int argc, char **argv)
{
	struct dm_dedup_volume_info info;
	struct dm_dedup_cut cut;
	int r;

	if (!strcmp(argv[0], "volumes"))
		return cmd_volumes(a);
	if (!strcmp(argv[0], "clean"))
		return cmd_clean(a);
	if (!strcmp(argv[0], "dropall"))
		return cmd_dropall(a);
	if (!strcmp(argv[0], "hostile"))
		return cmd_hostile(a);
	if (!strcmp(argv[0], "hello")) {
		a->nr_held = 0;
		return hello(a);
	}
	if (!strcmp(argv[0], "hold")) {
		a->hold = true;
		return 0;
	}
	if (!strcmp(argv[0], "answer")) {
		cmd_answer(a, 0);
		return 0;
	}
	if (!strcmp(argv[0], "waiting")) {
		fprintf(a->out, "%d\n", a->nr_held);
		return 0;
	}
	if (!strcmp(argv[0], "quit")) {
		a->quit = true;
		return 0;
	}
	if (argc < 2)
		return -EINVAL;
	if (!strcmp(argv[0], "fail")) {
		cmd_answer(a, atoi(argv[1]));
		return 0;
	}
	if (!strcmp(argv[0], "push") || !strcmp(argv[0], "merge"))
		return cmd_push(a, argv[1], argv[0][0] == 'p');
	if (!strcmp(argv[0], "release"))
		return cmd_volume_call(a, DM_DEDUP_RELEASE, argv + 1, argc - 1);
	if (!strcmp(argv[0], "fence"))
		return cmd_volume_call(a, DM_DEDUP_FENCE, argv + 1, argc - 1);
	if (!strcmp(argv[0], "cut")) {
		r = find_volume(a, argv[1], &info);
		r = r ? r : do_cut(a, info.volume, &cut);
		if (!r)
			fprintf(a->out, "%llu\n", cut.cut);
		return r;
	}
	if (argc < 3)
		return -EINVAL;
	if (!strcmp(argv[0], "drop"))
		return cmd_drop(a, argv + 1);
	if (!strcmp(argv[0], "list")) {
		r = find_volume(a, argv[1], &info);
		return r ? r : each_entry(a, info.volume, strtoull(argv[2], NULL, 0), print_entry,
					  NULL);
	}
	if (argc < 4)
		return -EINVAL;
	if (!strcmp(argv[0], "set"))
		return cmd_set(a, argv + 1);
	if (!strcmp(argv[0], "commit"))
		return cmd_commit(a, argv + 1);
	return -EINVAL;
}

static void handle_control(struct agent *a)
{
	char line[4096], *argv[8];
	int fd = accept(a->sock, NULL, NULL), argc = 0, r;
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);

	if (n <= 0) {
		close(fd);
		return;
	}
	line[n] = 0;
	for (char *p = strtok(line, "\n"); p && argc < 8; p = strtok(NULL, "\n"))
		argv[argc++] = p;
	a->out = fdopen(fd, "w");
	r = argc ? run_command(a, argc, argv) : -EINVAL;
	if (r)
		fprintf(a->out, "error %d %s\n", -r, strerror(-r));
	else
		fprintf(a->out, "ok\n");
	fclose(a->out);
}

static int listen_on(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) || listen(fd, 8))
		die("%s", path);
	return fd;
}

/* The dedup-cache device, to read slots through. */
static void open_window(struct agent *a, const char *path)
{
	a->window = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (a->window < 0)
		die("%s", path);
}

static int serve(int argc, char **argv)
{
	static struct agent a;
	char path[128];
	int opt, r;

	while ((opt = getopt(argc, argv, "hmvzs:")) != -1) {
		a.hold |= opt == 'h';
		a.use_map |= opt == 'm';
		a.keep_versions |= opt == 'v';
		a.use_zero |= opt == 'z';
		if (opt == 's')
			a.source = atoi(optarg);
	}
	argc -= optind;
	argv += optind;
	if (argc < 3)
		return 2;
	/* CACHE-UUID[:WINDOW] */
	if (strchr(argv[0], ':')) {
		open_window(&a, strchr(argv[0], ':') + 1);
		*strchr(argv[0], ':') = 0;
	}
	snprintf(path, sizeof(path), "/dev/dm-dedup/%s", argv[0]);
	a.fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (a.fd < 0)
		die("%s", path);
	for (int i = 2; i < argc; i++)
		image_add(&a, argv[i]);
	r = hello(&a);
	if (r) {
		errno = -r;
		die("HELLO");
	}
	a.block = 1U << a.hello.block_shift;
	a.sock = listen_on(argv[1]);
	while (!a.quit) {
		struct pollfd p[2] = { { .fd = a.fd, .events = POLLIN },
				       { .fd = a.sock, .events = POLLIN } };

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (p[1].revents & POLLIN)
			handle_control(&a);
		if (p[0].revents & (POLLERR | POLLHUP))
			return 3;
		if (p[0].revents & POLLIN)
			read_upcalls(&a);
	}
	return 0;
}

static int ctl(int argc, char **argv)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char line[4096] = "", last[64] = "";
	FILE *f;

	if (argc < 3)
		return 2;
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", argv[1]);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		die("%s", argv[1]);
	for (int i = 2; i < argc; i++) {
		strncat(line, argv[i], sizeof(line) - strlen(line) - 2);
		strcat(line, "\n");
	}
	if (write(fd, line, strlen(line)) < 0)
		die("write");
	f = fdopen(fd, "r");
	while (f && fgets(line, sizeof(line), f)) {
		snprintf(last, sizeof(last), "%.63s", line);
		if (strcmp(line, "ok\n"))
			fputs(line, stdout);
	}
	return strcmp(last, "ok\n") ? 1 : 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc > 1 && !strcmp(argv[1], "serve"))
		return serve(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "ctl"))
		return ctl(argc - 1, argv + 1);
	fprintf(stderr, "usage: channel_agent serve|ctl ...\n");
	return 2;
}
