// SPDX-License-Identifier: GPL-2.0-or-later
#include "data/index.h"

#include <errno.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/crc32c.h"
#include "data/record.h"

#define BLOCK_KEY_SIZE	 (4 + FP_SIZE)
#define BLOCK_VALUE_SIZE 32
#define LUMP_KEY_SIZE	 6
#define LUMP_VALUE_SIZE	 28
#define SHARD_KEY_SIZE	 2
#define SHARD_VALUE_SIZE 24
#define INFO_VALUE_SIZE	 72
#define MAX_READERS	 128

struct index {
	MDB_env *env;
	MDB_dbi blocks, lumps, shards, info;
	/* Held for reading by every transaction: LMDB must have none when its map is resized. */
	pthread_rwlock_t resize;
	uint64_t map_size;
	bool is_new;
};

struct index_txn {
	struct index *ix;
	MDB_txn *txn;
};

static int index_errno(int rc)
{
	switch (rc) {
	case 0:
		return 0;
	case MDB_NOTFOUND:
		return -ENOENT;
	case MDB_MAP_FULL:
		return -EXFULL;
	case MDB_CORRUPTED:
	case MDB_PAGE_NOTFOUND:
	case MDB_PANIC:
	case MDB_INVALID:
	case MDB_VERSION_MISMATCH:
	case MDB_INCOMPATIBLE:
	case MDB_BAD_VALSIZE:
		return -EUCLEAN;
	case MDB_READERS_FULL:
		return -EAGAIN;
	default:
		return rc > 0 ? -rc : -EIO;
	}
}

/* ---- values: little-endian, the last four bytes are the CRC of key and value ---- */

static void seal(const void *key, size_t key_len, uint8_t *value, size_t len)
{
	put_le32(value + len - 4, crc32c(crc32c(0, key, key_len), value, len - 4));
}

static int check(const MDB_val *key, const MDB_val *value, size_t len)
{
	const uint8_t *v = value->mv_data;

	if (value->mv_size != len ||
	    get_le32(v + len - 4) != crc32c(crc32c(0, key->mv_data, key->mv_size), v, len - 4))
		return -EUCLEAN;
	return 0;
}

static void block_key(uint8_t key[BLOCK_KEY_SIZE], uint32_t domain, const struct fp *fp)
{
	key[0] = (uint8_t)(domain >> 24);
	key[1] = (uint8_t)(domain >> 16);
	key[2] = (uint8_t)(domain >> 8);
	key[3] = (uint8_t)domain;
	memcpy(key + 4, fp->b, FP_SIZE);
}

static uint32_t key_domain(const uint8_t *key)
{
	return (uint32_t)key[0] << 24 | (uint32_t)key[1] << 16 | (uint32_t)key[2] << 8 | key[3];
}

static void block_decode(const uint8_t *v, struct index_block *b)
{
	*b = (struct index_block){
		.lump = get_le32(v),
		.offset = get_le32(v + 4),
		.stored_len = get_le32(v + 8),
		.raw_len = get_le32(v + 12),
		.codec = v[16],
		.kind = v[17],
		.flags = get_le16(v + 18),
		.epoch = get_le64(v + 20),
	};
}

static void lump_key(uint8_t key[LUMP_KEY_SIZE], uint16_t shard, uint32_t number)
{
	key[0] = (uint8_t)(shard >> 8);
	key[1] = (uint8_t)shard;
	key[2] = (uint8_t)(number >> 24);
	key[3] = (uint8_t)(number >> 16);
	key[4] = (uint8_t)(number >> 8);
	key[5] = (uint8_t)number;
}

/* ---- environment ---- */

static int open_dbs(struct index *ix)
{
	MDB_txn *txn;
	MDB_stat st;
	int rc = mdb_txn_begin(ix->env, NULL, 0, &txn);

	if (rc)
		return rc;
	rc = mdb_dbi_open(txn, "blocks", MDB_CREATE, &ix->blocks);
	if (!rc)
		rc = mdb_dbi_open(txn, "lumps", MDB_CREATE, &ix->lumps);
	if (!rc)
		rc = mdb_dbi_open(txn, "shards", MDB_CREATE, &ix->shards);
	if (!rc)
		rc = mdb_dbi_open(txn, "info", MDB_CREATE, &ix->info);
	if (!rc)
		rc = mdb_stat(txn, ix->info, &st);
	if (rc) {
		mdb_txn_abort(txn);
		return rc;
	}
	ix->is_new = !st.ms_entries;
	return mdb_txn_commit(txn);
}

struct index *index_open(const char *path, uint64_t map_size, struct error *err)
{
	struct index *ix = calloc(1, sizeof(*ix));
	struct index_txn *txn;
	struct index_info info;
	MDB_envinfo env_info;
	pthread_rwlockattr_t attr;
	int rc;

	if (!ix) {
		error_set(err, -ENOMEM, "no memory for the index");
		return NULL;
	}
	/* A stream of short readers must not keep the writer from growing the map. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&ix->resize, &attr);
	pthread_rwlockattr_destroy(&attr);
	rc = mdb_env_create(&ix->env);
	if (!rc)
		rc = mdb_env_set_maxdbs(ix->env, 4);
	if (!rc)
		rc = mdb_env_set_maxreaders(ix->env, MAX_READERS);
	if (!rc)
		rc = mdb_env_set_mapsize(ix->env, map_size);
	if (!rc)
		rc = mdb_env_open(ix->env, path, MDB_NOTLS | MDB_NORDAHEAD, 0600);
	if (!rc)
		rc = open_dbs(ix);
	if (rc) {
		error_set(err, index_errno(rc), "open the index %s: %s", path, mdb_strerror(rc));
		goto close;
	}
	mdb_env_info(ix->env, &env_info);
	ix->map_size = env_info.me_mapsize;
	if (ix->is_new)
		return ix;
	rc = index_begin(ix, false, &txn);
	if (!rc) {
		rc = index_get_info(txn, &info);
		index_abort(txn);
	}
	if (!rc)
		return ix;
	error_set(err, rc == -ENOENT ? -EUCLEAN : rc, rc == -EPROTONOSUPPORT ?
		  "the index %s was made by a newer vmdedup-data" : "the index %s is damaged",
		  path);
close:
	index_close(ix);
	return NULL;
}

void index_close(struct index *ix)
{
	if (!ix)
		return;
	if (ix->env)
		mdb_env_close(ix->env);
	pthread_rwlock_destroy(&ix->resize);
	free(ix);
}

bool index_is_new(struct index *ix)
{
	return ix->is_new;
}

uint64_t index_file_bytes(struct index *ix)
{
	mdb_filehandle_t fd;
	struct stat st;

	if (mdb_env_get_fd(ix->env, &fd) || fstat(fd, &st))
		return 0;
	return (uint64_t)st.st_size;
}

uint64_t index_map_bytes(struct index *ix)
{
	return ix->map_size;
}

bool index_is_tight(struct index *ix)
{
	MDB_envinfo info;
	MDB_stat st;

	if (mdb_env_info(ix->env, &info) || mdb_env_stat(ix->env, &st))
		return false;
	return ((uint64_t)info.me_last_pgno + 1) * st.ms_psize > ix->map_size / 4 * 3;
}

int index_grow(struct index *ix)
{
	int rc;

	pthread_rwlock_wrlock(&ix->resize);
	rc = mdb_env_set_mapsize(ix->env, ix->map_size * 2);
	if (!rc)
		ix->map_size *= 2;
	pthread_rwlock_unlock(&ix->resize);
	return index_errno(rc);
}

/* ---- transactions ---- */

int index_begin(struct index *ix, bool write, struct index_txn **txn)
{
	struct index_txn *t = malloc(sizeof(*t));
	int rc;

	if (!t)
		return -ENOMEM;
	t->ix = ix;
	pthread_rwlock_rdlock(&ix->resize);
	rc = mdb_txn_begin(ix->env, NULL, write ? 0 : MDB_RDONLY, &t->txn);
	if (rc) {
		pthread_rwlock_unlock(&ix->resize);
		free(t);
		return index_errno(rc);
	}
	*txn = t;
	return 0;
}

void index_abort(struct index_txn *t)
{
	mdb_txn_abort(t->txn);
	pthread_rwlock_unlock(&t->ix->resize);
	free(t);
}

int index_commit(struct index_txn *t)
{
	int rc = mdb_txn_commit(t->txn);

	pthread_rwlock_unlock(&t->ix->resize);
	free(t);
	return index_errno(rc);
}

/* ---- rows ---- */

static int get(struct index_txn *t, MDB_dbi db, void *key, size_t key_len, size_t len,
	       const uint8_t **value)
{
	MDB_val k = { key_len, key }, v;
	int rc = mdb_get(t->txn, db, &k, &v);

	if (rc)
		return index_errno(rc);
	*value = v.mv_data;
	return check(&k, &v, len);
}

static int put(struct index_txn *t, MDB_dbi db, void *key, size_t key_len, uint8_t *value,
	       size_t len)
{
	MDB_val k = { key_len, key }, v = { len, value };

	seal(key, key_len, value, len);
	return index_errno(mdb_put(t->txn, db, &k, &v, 0));
}

int index_get(struct index_txn *t, uint32_t domain, const struct fp *fp, struct index_block *b)
{
	uint8_t key[BLOCK_KEY_SIZE];
	const uint8_t *v = NULL;
	int r;

	block_key(key, domain, fp);
	r = get(t, t->ix->blocks, key, sizeof(key), BLOCK_VALUE_SIZE, &v);
	if (!r)
		block_decode(v, b);
	return r;
}

int index_put(struct index_txn *t, uint32_t domain, const struct fp *fp,
	      const struct index_block *b)
{
	uint8_t key[BLOCK_KEY_SIZE], v[BLOCK_VALUE_SIZE];

	block_key(key, domain, fp);
	put_le32(v, b->lump);
	put_le32(v + 4, b->offset);
	put_le32(v + 8, b->stored_len);
	put_le32(v + 12, b->raw_len);
	v[16] = b->codec;
	v[17] = b->kind;
	put_le16(v + 18, b->flags);
	put_le64(v + 20, b->epoch);
	return put(t, t->ix->blocks, key, sizeof(key), v, sizeof(v));
}

int index_del(struct index_txn *t, uint32_t domain, const struct fp *fp)
{
	uint8_t key[BLOCK_KEY_SIZE];
	MDB_val k = { sizeof(key), key };

	block_key(key, domain, fp);
	return index_errno(mdb_del(t->txn, t->ix->blocks, &k, NULL));
}

int index_put_lump(struct index_txn *t, uint16_t shard, uint32_t number,
		   const struct index_lump *l)
{
	uint8_t key[LUMP_KEY_SIZE], v[LUMP_VALUE_SIZE];

	lump_key(key, shard, number);
	put_le64(v, l->end);
	put_le64(v + 8, l->live_bytes);
	put_le32(v + 16, l->live_records);
	put_le32(v + 20, l->removing);
	return put(t, t->ix->lumps, key, sizeof(key), v, sizeof(v));
}

int index_del_lump(struct index_txn *t, uint16_t shard, uint32_t number)
{
	uint8_t key[LUMP_KEY_SIZE];
	MDB_val k = { sizeof(key), key };

	lump_key(key, shard, number);
	return index_errno(mdb_del(t->txn, t->ix->lumps, &k, NULL));
}

int index_put_shard(struct index_txn *t, uint16_t shard, const struct index_shard *s)
{
	uint8_t key[SHARD_KEY_SIZE] = { (uint8_t)(shard >> 8), (uint8_t)shard };
	uint8_t v[SHARD_VALUE_SIZE];

	put_le64(v, s->epoch);
	put_le64(v + 8, s->floor);
	put_le32(v + 16, s->next_lump);
	return put(t, t->ix->shards, key, sizeof(key), v, sizeof(v));
}

int index_get_shard(struct index_txn *t, uint16_t shard, struct index_shard *s)
{
	uint8_t key[SHARD_KEY_SIZE] = { (uint8_t)(shard >> 8), (uint8_t)shard };
	const uint8_t *v = NULL;
	int r = get(t, t->ix->shards, key, sizeof(key), SHARD_VALUE_SIZE, &v);

	if (r)
		return r;
	s->epoch = get_le64(v);
	s->floor = get_le64(v + 8);
	s->next_lump = get_le32(v + 16);
	return 0;
}

static char info_key[] = "info";

int index_put_info(struct index_txn *t, const struct index_info *info)
{
	uint8_t v[INFO_VALUE_SIZE];

	put_le32(v, INDEX_FORMAT);
	memcpy(v + 4, info->disk.b, 16);
	put_le64(v + 20, info->incarnation);
	put_le64(v + 28, info->sequence);
	put_le32(v + 36, info->complete);
	put_le32(v + 40, info->unstamped);
	put_le64(v + 44, info->blocks);
	put_le64(v + 52, info->raw_bytes);
	put_le64(v + 60, info->stored_bytes);
	return put(t, t->ix->info, info_key, sizeof(info_key), v, sizeof(v));
}

int index_get_info(struct index_txn *t, struct index_info *info)
{
	MDB_val k = { sizeof(info_key), info_key }, val;
	const uint8_t *v = NULL;
	int r = index_errno(mdb_get(t->txn, t->ix->info, &k, &val));

	if (r)
		return r;
	v = val.mv_data;
	if (val.mv_size >= 4 && get_le32(v) > INDEX_FORMAT)
		return -EPROTONOSUPPORT;
	r = check(&k, &val, INFO_VALUE_SIZE);
	if (r)
		return r;
	memcpy(info->disk.b, v + 4, 16);
	info->incarnation = get_le64(v + 20);
	info->sequence = get_le64(v + 28);
	info->complete = get_le32(v + 36);
	info->unstamped = get_le32(v + 40);
	info->blocks = get_le64(v + 44);
	info->raw_bytes = get_le64(v + 52);
	info->stored_bytes = get_le64(v + 60);
	return 0;
}

/* ---- walks ---- */

int index_walk_lumps(struct index_txn *t,
		     int (*row)(void *arg, uint16_t shard, uint32_t number,
				const struct index_lump *l),
		     void *arg)
{
	MDB_cursor *cur;
	MDB_val k, v;
	int r, rc = mdb_cursor_open(t->txn, t->ix->lumps, &cur);

	if (rc)
		return index_errno(rc);
	for (r = 0; !r && !(rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT));) {
		const uint8_t *p = k.mv_data, *q = v.mv_data;
		struct index_lump l;

		if (k.mv_size != LUMP_KEY_SIZE || check(&k, &v, LUMP_VALUE_SIZE)) {
			r = -EUCLEAN;
			break;
		}
		l = (struct index_lump){ get_le64(q), get_le64(q + 8), get_le32(q + 16),
					 get_le32(q + 20) };
		r = row(arg, (uint16_t)(p[0] << 8 | p[1]), key_domain(p + 2), &l);
	}
	mdb_cursor_close(cur);
	return r ? r : rc == MDB_NOTFOUND ? 0 : index_errno(rc);
}

int index_walk_blocks(struct index_txn *t, uint32_t domain, uint16_t shard, const struct fp *after,
		      int (*row)(void *arg, uint32_t domain, const struct fp *fp,
				 const struct index_block *b),
		      void *arg)
{
	struct fp first, last;
	uint8_t key[BLOCK_KEY_SIZE];
	MDB_val k = { sizeof(key), key }, v;
	MDB_cursor *cur;
	int r = 0, rc = mdb_cursor_open(t->txn, t->ix->blocks, &cur);

	if (rc)
		return index_errno(rc);
	fp_shard_range(shard, &first, &last);
	if (after && memcmp(after, &first, sizeof(first)) < 0)
		after = NULL;
	block_key(key, domain, after ? after : &first);
	rc = mdb_cursor_get(cur, &k, &v, MDB_SET_RANGE);
	for (; !rc && !r; rc = mdb_cursor_get(cur, &k, &v, MDB_NEXT)) {
		struct index_block b;
		bool good = !check(&k, &v, BLOCK_VALUE_SIZE);
		struct fp fp;

		if (k.mv_size != BLOCK_KEY_SIZE)
			continue;
		memcpy(fp.b, (const uint8_t *)k.mv_data + 4, FP_SIZE);
		if (key_domain(k.mv_data) != domain || fp_shard(&fp) != shard)
			break;
		if (after && fp_equal(&fp, after))
			continue;
		if (good)
			block_decode(v.mv_data, &b);
		r = row(arg, domain, &fp, good ? &b : NULL);
	}
	mdb_cursor_close(cur);
	return r ? r : rc && rc != MDB_NOTFOUND ? index_errno(rc) : 0;
}

int index_next_domain(struct index_txn *t, uint32_t *domain)
{
	static const struct fp zero;
	uint8_t key[BLOCK_KEY_SIZE];
	MDB_val k = { sizeof(key), key }, v;
	MDB_cursor *cur;
	int rc = mdb_cursor_open(t->txn, t->ix->blocks, &cur);

	if (rc)
		return index_errno(rc);
	block_key(key, *domain, &zero);
	rc = mdb_cursor_get(cur, &k, &v, MDB_SET_RANGE);
	if (!rc)
		*domain = key_domain(k.mv_data);
	mdb_cursor_close(cur);
	return index_errno(rc);
}
