// SPDX-License-Identifier: GPL-2.0-or-later
/* The store: its folder and identity, opening, reading, listing, figures. */
#include "data/bstore.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "data/crc32c.h"
#include "data/bstore_priv.h"

/* ---- identity: disk.uuid, five lines of text ---- */

/*
 * An incarnation only goes up, also past one that a copy of this disk may have reached without
 * us: so it is the time in its high bits, and random in the low ones.
 */
uint64_t bstore_new_incarnation(uint64_t old)
{
	uint64_t low = 0, fresh;

	if (getrandom(&low, sizeof(low), 0) != sizeof(low))
		low = (uint64_t)getpid();
	fresh = (uint64_t)time(NULL) << 24 | (low & 0xffffff);
	return fresh > old ? fresh : old + 1;
}

int bstore_write_identity(struct bstore *st, struct error *err)
{
	char text[320], uuid[UUID_TEXT_SIZE], cluster[UUID_TEXT_SIZE], session[UUID_TEXT_SIZE];
	CLEANUP_CLOSE int fd = openat(st->dirfd, "disk.uuid.new",
				      O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int len = snprintf(text, sizeof(text), "format %d\nuuid %s\nincarnation %" PRIu64 "\n"
			   "cluster %s\nsession %s\n", STORE_FORMAT,
			   uuid_to_text(&st->uuid, uuid), st->incarnation,
			   uuid_to_text(&st->cluster, cluster),
			   uuid_to_text(&st->session, session));

	if (fd < 0 || write(fd, text, (size_t)len) != len || fsync(fd) ||
	    renameat(st->dirfd, "disk.uuid.new", st->dirfd, "disk.uuid") || fsync(st->dirfd))
		return error_set(err, errno ? -errno : -EIO, "write %s/disk.uuid: %m", st->dir);
	return 0;
}

static int read_identity(struct bstore *st, struct error *err)
{
	CLEANUP_CLOSE int fd = openat(st->dirfd, "disk.uuid", O_RDONLY | O_CLOEXEC);
	char text[320], uuid[40], cluster[40], session[40] = "";
	unsigned int format;
	int end = 0, more = 0;
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? -ENOENT :
			       error_set(err, -errno, "open %s/disk.uuid: %m", st->dir);
	n = read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return error_set(err, -errno, "read %s/disk.uuid: %m", st->dir);
	text[n] = '\0';
	if (sscanf(text, "format %u", &format) == 1 && format > STORE_FORMAT)
		return error_set(err, -EPROTONOSUPPORT, "%s was made by a newer vmdedup-data "
				 "(format %u, this one knows %d)", st->dir, format, STORE_FORMAT);
	if (sscanf(text, "format %u uuid %36s incarnation %" SCNu64 " cluster %36s %n",
		   &format, uuid, &st->incarnation, cluster, &end) == 4 && end &&
	    sscanf(text + end, "session %36s %n", session, &more) == 1)
		end += more;
	if (!end || text[end] || uuid_from_text(&st->uuid, uuid) || uuid_is_null(&st->uuid) ||
	    uuid_from_text(&st->cluster, cluster) ||
	    (*session && uuid_from_text(&st->session, session)))
		return error_set(err, -EUCLEAN, "%s/disk.uuid is damaged: put back its lines "
				 "(format, uuid, incarnation, cluster, session)", st->dir);
	return 0;
}

static int found_one(void *arg, uint16_t shard, uint32_t number)
{
	return 1;
}

static int make_folder(struct bstore *st, const char *name, struct error *err)
{
	if (mkdirat(st->dirfd, name, 0700) && errno != EEXIST)
		return error_set(err, -errno, "create %s/%s: %m", st->dir, name);
	return 0;
}

static int open_folder(struct bstore *st, struct error *err)
{
	int r;

	if (mkdir(st->dir, 0700) && errno != EEXIST)
		return error_set(err, -errno, "create %s: %m", st->dir);
	st->dirfd = open(st->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (st->dirfd < 0)
		return error_set(err, -errno, "open %s: %m", st->dir);
	if (flock(st->dirfd, LOCK_EX | LOCK_NB))
		return error_set(err, errno == EWOULDBLOCK ? -EBUSY : -errno,
				 "%s is used by another data server", st->dir);
	r = make_folder(st, "lumps", err);
	return r ? r : make_folder(st, "index", err);
}

/* ---- opening ---- */

static int open_index(struct bstore *st, struct error *err)
{
	char path[4096];

	if (snprintf(path, sizeof(path), "%s/index", st->dir) >= (int)sizeof(path))
		return error_set(err, -ENAMETOOLONG, "%s: name too long", st->dir);
	st->ix = index_open(path, st->map_size, err);
	return st->ix ? 0 : err->code;
}

static int commit_info(struct bstore *st, struct error *err)
{
	struct index_txn *txn;
	int r = index_begin(st->ix, true, &txn);

	if (!r) {
		r = index_put_info(txn, &st->info);
		if (r)
			index_abort(txn);
		else
			r = index_commit(txn);
	}
	return r ? error_set(err, r, "write the index of %s: %s", st->dir, strerror(-r)) : 0;
}

static int load_shards(struct bstore *st, struct error *err)
{
	struct index_txn *txn;
	int r = index_begin(st->ix, false, &txn);

	if (r)
		return error_set(err, r, "read the index of %s: %s", st->dir, strerror(-r));
	r = index_get_info(txn, &st->info);
	for (size_t s = 0; s < NR_SHARDS && !r; s++) {
		r = index_get_shard(txn, (uint16_t)s, &st->shards[s]);
		if (r == -ENOENT) {
			st->shards[s] = (struct index_shard){ .next_lump = 1 };
			r = 0;
		}
	}
	index_abort(txn);
	return r ? error_set(err, -EUCLEAN, "the index of %s is damaged", st->dir) : 0;
}

/* The index and the lumps belong together? -ENOENT: there is no index; -EUCLEAN: rebuild. */
static int load_index(struct bstore *st, struct error *err)
{
	int r = open_index(st, err);

	if (r)
		return r;
	if (index_is_new(st->ix))
		return -ENOENT;
	r = load_shards(st, err);
	if (r)
		return r;
	if (!uuid_equal(&st->info.disk, &st->uuid) || st->info.incarnation != st->incarnation)
		return error_set(err, -EUCLEAN, "the index of %s is not of this disk and "
				 "incarnation", st->dir);
	if (!st->info.complete)
		return error_set(err, -EUCLEAN, "a rebuild of the index of %s was interrupted",
				 st->dir);
	return 0;
}

static void drop_state(struct bstore *st)
{
	index_close(st->ix);
	st->ix = NULL;
	lumps_free(st->lumps);
	st->lumps = NULL;
	memset(st->shards, 0, sizeof(st->shards));
	for (size_t s = 0; s < NR_SHARDS; s++)
		st->shards[s].next_lump = 1;
	memset(st->shard_dirty, 0, sizeof(st->shard_dirty));
}

static int new_lumps(struct bstore *st, unsigned int max_fds, struct error *err)
{
	st->lumps = lumps_new(&st->disk, st->dirfd, &st->uuid, max_fds, err);
	return st->lumps ? 0 : err->code;
}

/*
 * A new index from the lumps. The incarnation goes up first, durably, for from here on receipts
 * given before are not vouched for (epochs of TOUCH are lost, and maybe blocks). Interrupted, it
 * is begun again: `complete` is written last.
 */
static int rebuild(struct bstore *st, unsigned int max_fds, struct error *err)
{
	int r;

	drop_state(st);
	st->incarnation = bstore_new_incarnation(st->incarnation);
	r = bstore_write_identity(st, err);
	if (r)
		return r;
	if ((unlinkat(st->dirfd, "index/data.mdb", 0) && errno != ENOENT) ||
	    (unlinkat(st->dirfd, "index/lock.mdb", 0) && errno != ENOENT))
		return error_set(err, -errno, "remove the old index of %s: %m", st->dir);
	r = open_index(st, err);
	if (!r)
		r = new_lumps(st, max_fds, err);
	if (r)
		return r;
	st->info = (struct index_info){
		.disk = st->uuid, .incarnation = st->incarnation, .unstamped = 1,
	};
	r = commit_info(st, err);
	if (!r)
		r = bstore_recover(st, true, err);
	if (r)
		return r;
	st->info.complete = 1;
	r = commit_info(st, err);
	if (!r)
		log_info("%s: index rebuilt from %zu lumps: %" PRIu64 " blocks", st->dir,
			 lumps_count(st->lumps), st->info.blocks);
	return r;
}

static int create(struct bstore *st, struct error *err)
{
	int r = uuid_generate(&st->uuid);

	if (r)
		return error_set(err, r, "no random bytes for the disk's UUID");
	st->incarnation = bstore_new_incarnation(0);
	drop_state(st);
	r = open_index(st, err);
	if (r)
		return r;
	st->info = (struct index_info){
		.disk = st->uuid, .incarnation = st->incarnation, .complete = 1,
	};
	/* The index first: with disk.uuid there, an empty one would look lost. */
	r = commit_info(st, err);
	return r ? r : bstore_write_identity(st, err);
}

static int open_state(struct bstore *st, unsigned int max_fds, struct error *err)
{
	struct error why = { 0 };
	int r = read_identity(st, err);

	if (r == -ENOENT) {
		r = new_lumps(st, max_fds, err);
		if (!r)
			r = lumps_list(st->lumps, found_one, NULL, err);
		if (r < 0)
			return r;
		if (r)
			return error_set(err, -EUCLEAN, "%s has lumps but no disk.uuid: put it "
					 "back, or give the server an empty folder", st->dir);
		unlinkat(st->dirfd, "index/data.mdb", 0); /* of a creation that was interrupted */
		unlinkat(st->dirfd, "index/lock.mdb", 0);
		r = create(st, err);
		return r ? r : new_lumps(st, max_fds, err);
	}
	if (r)
		return r;
	r = load_index(st, &why);
	if (!r)
		r = new_lumps(st, max_fds, &why);
	if (!r)
		r = bstore_recover(st, false, &why);
	if (!r)
		return 0;
	if (r != -ENOENT && r != -EUCLEAN && r != -ESTALE) {
		*err = why;
		return r;
	}
	log_warn("%s: %s: rebuilding it from the lumps", st->dir,
		 why.text[0] ? why.text : "there is no index");
	return rebuild(st, max_fds, err);
}

struct bstore *bstore_open(const struct bstore_options *o, struct error *err)
{
	struct bstore *st = calloc(1, sizeof(*st));
	struct error local = { 0 };

	if (!err)
		err = &local;
	if (!st || !(st->dir = strdup(o->dir))) {
		error_set(err, -ENOMEM, "no memory for a store");
		free(st);
		return NULL;
	}
	st->dirfd = -1;
	st->disk = (struct disk){ o->disk ? o->disk : &disk_posix, o->disk_ctx };
	st->reserve = MAX(o->reserve, STORE_RESERVE_MIN);
	st->capacity = o->capacity;
	st->lump_size = o->lump_size ? o->lump_size : LUMP_SIZE_DEFAULT;
	st->map_size = o->map_size ? o->map_size : INDEX_MAP_DEFAULT;
	pthread_mutex_init(&st->stat_lock, NULL);
	st->cache = block_cache_new(o->cache_bytes);
	if (!st->cache) {
		error_set(err, -ENOMEM, "no memory for a store");
		goto close;
	}
	if (st->lump_size > LUMP_SIZE_MAX ||
	    st->lump_size < LUMP_HEADER_SIZE + record_size(RECORD_MAX_PAYLOAD)) {
		error_set(err, -EINVAL, "a lump's size must be 2 MiB to 2 GiB");
		goto close;
	}
	if (open_folder(st, err))
		goto close;
	drop_state(st);
	if (open_state(st, o->max_fds ? o->max_fds : LUMPS_MAX_FDS, err)) {
		if (err->code == -EMEDIUMTYPE) /* no rebuild helps: a person must look */
			err->code = -EUCLEAN;
		goto close;
	}
	bstore_publish_info(st);
	return st;
close:
	bstore_close(st);
	return NULL;
}

void bstore_close(struct bstore *st)
{
	if (!st)
		return;
	index_close(st->ix);
	lumps_free(st->lumps);
	block_cache_free(st->cache);
	pthread_mutex_destroy(&st->stat_lock);
	if (st->dirfd >= 0)
		close(st->dirfd); /* and gives the lock back */
	free(st->dir);
	free(st);
}

const struct uuid *bstore_disk(struct bstore *st)
{
	return &st->uuid;
}

uint64_t bstore_incarnation(struct bstore *st)
{
	return st->incarnation;
}

const struct uuid *bstore_cluster(struct bstore *st)
{
	return &st->cluster;
}

const struct uuid *bstore_session(struct bstore *st)
{
	return &st->session;
}

int bstore_set_session(struct bstore *st, const struct uuid *session, struct error *err)
{
	struct uuid old = st->session;
	int r;

	if (uuid_equal(&old, session))
		return 0;
	st->session = *session;
	r = bstore_write_identity(st, err);
	if (r)
		st->session = old;
	return r;
}

int bstore_bind_cluster(struct bstore *st, const struct uuid *cluster, struct error *err)
{
	char ours[UUID_TEXT_SIZE], theirs[UUID_TEXT_SIZE];

	if (uuid_equal(&st->cluster, cluster))
		return 0;
	if (!uuid_is_null(&st->cluster))
		return error_set(err, -EXDEV, "the disk in %s belongs to cluster %s, the meta server to "
				 "%s: give the server an empty folder, or its own meta server",
				 st->dir, uuid_to_text(&st->cluster, ours),
				 uuid_to_text(cluster, theirs));
	st->cluster = *cluster;
	return bstore_write_identity(st, err);
}

bool bstore_is_unstamped(struct bstore *st)
{
	bool unstamped;

	pthread_mutex_lock(&st->stat_lock);
	unstamped = st->stat_info.unstamped;
	pthread_mutex_unlock(&st->stat_lock);
	return unstamped;
}

/* ---- space and figures ---- */

int bstore_budget(struct bstore *st, uint64_t pending, uint64_t *bytes)
{
	uint64_t room, used = lumps_bytes(st->lumps) + index_file_bytes(st->ix);
	int r = st->disk.ops->space(st->disk.ctx, st->dirfd, &room);

	if (r)
		return r;
	room = room > st->reserve + pending ? room - st->reserve - pending : 0;
	if (st->capacity)
		room = MIN(room, st->capacity > used ? st->capacity - used : 0);
	*bytes = room;
	return 0;
}

void bstore_publish_info(struct bstore *st)
{
	pthread_mutex_lock(&st->stat_lock);
	st->stat_info = st->info;
	pthread_mutex_unlock(&st->stat_lock);
}

int bstore_stat(struct bstore *st, struct bstore_stat *stat)
{
	struct index_info info;
	int r;

	pthread_mutex_lock(&st->stat_lock);
	info = st->stat_info;
	pthread_mutex_unlock(&st->stat_lock);
	*stat = (struct bstore_stat){
		.blocks = info.blocks,
		.raw_bytes = info.raw_bytes,
		.stored_bytes = info.stored_bytes,
		.sequence = info.sequence,
		.lump_bytes = lumps_bytes(st->lumps),
		.index_bytes = index_file_bytes(st->ix),
		.puts = st->puts,
		.put_dups = st->put_dups,
		.put_bytes = st->put_bytes,
		.gets = st->gets,
		.get_bytes = st->get_bytes,
		.cache_hits = st->cache_hits,
		.commits = st->commits,
		.bad = st->bad,
	};
	r = bstore_budget(st, 0, &stat->free);
	stat->capacity = stat->lump_bytes + stat->index_bytes + stat->free;
	return r;
}

/* ---- reading ---- */

static void say_bad(struct bstore *st, uint16_t shard, const struct index_block *b,
		    const struct fp *fp, const char *what)
{
	char hex[FP_HEX_SIZE];

	log_error("%s: lump %03x-%08x, offset %u: %s of block %.16s: it counts as missing until it "
		  "is sent again", st->dir, shard, b->lump, b->offset, what, fp_to_hex(fp, hex));
}

static bool record_matches(const struct record *rec, uint32_t domain, const struct fp *fp,
			   const struct index_block *b)
{
	return rec->domain == domain && fp_equal(&rec->fp, fp) && rec->kind == b->kind &&
	       rec->codec == b->codec && rec->raw_len == b->raw_len &&
	       rec->stored_len == b->stored_len;
}

/* Header and payload come with one read. -ENOENT: the lump has gone (compacted meanwhile). */
int bstore_read_record(struct bstore *st, uint32_t domain, const struct fp *fp,
		      const struct index_block *b, struct block_buf **out)
{
	uint16_t shard = (uint16_t)fp_shard(fp);
	struct record_place place = { &st->uuid, shard, b->lump, b->offset };
	struct block_buf *buf;
	struct record rec;
	int r;

	if (!b->stored_len || b->stored_len > RECORD_MAX_PAYLOAD) {
		say_bad(st, shard, b, fp, "bad length in the index");
		return -EIO;
	}
	buf = block_buf_new(RECORD_HEADER_SIZE + (size_t)b->stored_len);
	if (!buf)
		return -ENOMEM;
	r = lumps_read(st->lumps, shard, b->lump, b->offset, buf->data,
		       RECORD_HEADER_SIZE + (size_t)b->stored_len);
	if (r) {
		if (r == -EIO)
			say_bad(st, shard, b, fp, "cannot read the record");
		goto put;
	}
	r = -EIO;
	if (record_decode(&rec, &place, buf->data) || !record_matches(&rec, domain, fp, b)) {
		say_bad(st, shard, b, fp, "bad header");
		goto put;
	}
	if (crc32c(0, buf->data + RECORD_HEADER_SIZE, rec.stored_len) != rec.payload_crc) {
		say_bad(st, shard, b, fp, "bad CRC");
		goto put;
	}
	buf->offset = RECORD_HEADER_SIZE;
	buf->len = rec.stored_len;
	buf->raw_len = rec.raw_len;
	buf->codec = rec.codec;
	*out = buf;
	return 0;
put:
	block_buf_put(buf);
	return r;
}

static int look_up(struct bstore *st, uint32_t domain, const struct fp *fp, struct index_block *b)
{
	struct index_txn *txn;
	int r = index_begin(st->ix, false, &txn);

	if (r)
		return r;
	r = index_get(txn, domain, fp, b);
	index_abort(txn);
	return r;
}

int bstore_read(struct bstore *st, uint32_t domain, const struct fp *fp, struct block_buf **buf,
	       struct bstore_op *bad)
{
	struct index_block b;
	int r;

	st->gets++;
	*bad = (struct bstore_op){ .kind = STORE_BAD, .domain = domain, .fp = *fp };
	*buf = block_cache_get(st->cache, domain, fp);
	if (*buf) {
		st->cache_hits++;
		st->get_bytes += (*buf)->len;
		return 0;
	}
	/* Compaction moves a record, commits, then removes the lump: who looked it up before
	 * and comes after looks it up again. Twice in a row would be a lump that is lost. */
	for (int tries = 0; tries < 3; tries++) {
		r = look_up(st, domain, fp, &b);
		if (r)
			return r == -EUCLEAN ? -EIO : r;
		bad->lump = b.lump;
		bad->offset = b.offset;
		if (b.flags & INDEX_BAD)
			return -EIO;
		r = bstore_read_record(st, domain, fp, &b, buf);
		if (r != -ENOENT)
			break;
	}
	if (r == -ENOENT) {
		say_bad(st, (uint16_t)fp_shard(fp), &b, fp, "lost lump");
		return -EIO;
	}
	if (r)
		return r;
	st->get_bytes += (*buf)->len;
	block_cache_put(st->cache, domain, fp, *buf);
	return 0;
}

struct listing {
	struct bstore *st;
	struct bstore_listed *out;
	size_t nr, max;
	uint64_t floor;
};

static int list_row(void *arg, uint32_t domain, const struct fp *fp, const struct index_block *b)
{
	struct listing *l = arg;

	if (l->nr == l->max)
		return 1;
	l->out[l->nr].fp = *fp;
	l->out[l->nr].bad = !b || b->flags & INDEX_BAD;
	l->out[l->nr++].epoch = !b ? 0 : MAX(b->epoch, l->floor);
	return 0;
}

int bstore_list(struct bstore *st, uint16_t shard, uint32_t domain, const struct fp *after,
	       struct bstore_listed *out, size_t max, bool *more)
{
	struct listing l = { .st = st, .out = out, .max = max };
	struct index_shard row = { 0 };
	struct index_txn *txn;
	int r = index_begin(st->ix, false, &txn);

	if (r)
		return r;
	r = index_get_shard(txn, shard, &row);
	l.floor = row.floor;
	if (!r || r == -ENOENT)
		r = index_walk_blocks(txn, domain, shard, after, list_row, &l);
	index_abort(txn);
	if (r < 0)
		return r;
	*more = r;
	return (int)l.nr;
}
