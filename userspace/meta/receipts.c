// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Receipts instead of pins. A receipt counts if its epoch is at least the shard's GC epoch E and
 * at least min_copies of its disks are current replicas of the shard in the incarnation that gave
 * it. Why the epoch need not be checked again at the commit: the leaf that names the block was made
 * in a transaction in which the receipt counted, and from then on the block's count keeps it from
 * being condemned, whatever E becomes. The disks are checked again, because a disk that has been
 * lost in the meantime takes with it what only the client's cache can still replace.
 */
#include "meta/image.h"

#include <errno.h>
#include <string.h>

#define DISK_PACKED 28 /* UUID, incarnation, server */
#define MAX_DISKS   8

/* A disk vouches for @shard: its server is a current replica, in that incarnation, and reachable. */
static int disk_counts(struct meta *m, uint32_t shard, const uint8_t *disk, uint64_t incarnation,
		       struct error *err)
{
	int64_t one;

	return store_int(m->store, err, &one,
			 "SELECT 1 FROM servers JOIN replicas ON replicas.server = servers.id WHERE "
			 "servers.disk = ?1 AND servers.incarnation = ?2 AND servers.state IN (0, 1, 3) "
			 "AND replicas.shard = ?3 AND replicas.state = 0", V_BLOB(disk, 16),
			 V_INT(incarnation), V_INT(shard));
}

static uint64_t get_le64(const uint8_t *p)
{
	uint64_t v = 0;
	int i;

	for (i = 7; i >= 0; i--)
		v = v << 8 | p[i];
	return v;
}

/* 1: enough of the packed disks count, each once. */
static int enough(struct meta *m, uint32_t shard, const uint8_t *packed, size_t len,
		  struct error *err)
{
	unsigned int copies = 0;
	size_t i, j;
	int r;

	for (i = 0; i + DISK_PACKED <= len; i += DISK_PACKED) {
		for (j = 0; j < i && memcmp(packed + j, packed + i, 16); j += DISK_PACKED)
			;
		if (j < i)
			continue;
		r = disk_counts(m, shard, packed + i, get_le64(packed + i + 16), err);
		if (r < 0)
			return r;
		copies += (unsigned int)r;
	}
	return copies >= m->params.min_copies;
}

static int pack_disks(struct meta_call *c, const Vmdedup__Receipt *in,
		      uint8_t packed[MAX_DISKS * DISK_PACKED], size_t *len)
{
	size_t i;
	int b;

	if (!in->n_disks || in->n_disks > MAX_DISKS)
		return call_error(c, -EINVAL, "a receipt of %zu disks; 1 to %d are allowed",
				  in->n_disks, MAX_DISKS);
	for (i = 0; i < in->n_disks; i++) {
		const Vmdedup__Disk *d = in->disks[i];
		uint8_t *p = packed + i * DISK_PACKED;

		if (d->uuid.len != 16)
			return call_error(c, -EINVAL, "a receipt's disk has no UUID");
		memcpy(p, d->uuid.data, 16);
		for (b = 0; b < 8; b++)
			p[16 + b] = (uint8_t)(d->incarnation >> (8 * b));
		for (b = 0; b < 4; b++)
			p[24 + b] = (uint8_t)(d->server >> (8 * b));
	}
	*len = in->n_disks * DISK_PACKED;
	return 0;
}

static int intern_disks(struct meta_call *c, uint64_t push, const uint8_t *packed, size_t len,
			int64_t *disks)
{
	struct store *s = call_store(c);
	int64_t n = 0;
	int r;

	r = store_int(s, &c->err, disks,
		      "SELECT disks FROM push_disks WHERE push = ?1 AND packed = ?2", V_INT(push),
		      V_BLOB(packed, len));
	if (r)
		return r < 0 ? r : 0;
	r = store_int(s, &c->err, &n, "SELECT count(*) FROM push_disks WHERE push = ?1",
		      V_INT(push));
	if (r < 0)
		return r;
	*disks = n;
	n = store_exec(s, &c->err, "INSERT INTO push_disks (push, disks, packed) VALUES "
		       "(?1, ?2, ?3)", V_INT(push), V_INT(n), V_BLOB(packed, len));
	return n < 0 ? (int)n : 0;
}

static int record_one(struct meta_call *c, uint64_t push, const Vmdedup__Receipt *in,
		      uint64_t *added)
{
	struct store *s = call_store(c);
	uint8_t packed[MAX_DISKS * DISK_PACKED];
	int64_t epoch = 0, disks = 0;
	struct val *vals;
	size_t i, n = in->fingerprints.len / FP_SIZE, len = 0;
	int r;

	r = pack_disks(c, in, packed, &len);
	if (r)
		return r;
	r = store_int(s, &c->err, &epoch, "SELECT epoch FROM shards WHERE shard = ?1",
		      V_INT(in->shard));
	if (r < 0)
		return r;
	if (!r || in->epoch < (uint64_t)epoch)
		return 0;
	r = enough(c->m, in->shard, packed, len, &c->err);
	if (r <= 0)
		return r;
	r = intern_disks(c, push, packed, len, &disks);
	if (r)
		return r;
	vals = call_alloc(c, (4 * n + 1) * sizeof(*vals));
	if (!vals)
		return call_nomem(c);
	for (i = 0; i < n; i++) {
		vals[4 * i] = V_INT(push);
		vals[4 * i + 1] = V_BLOB(in->fingerprints.data + i * FP_SIZE, FP_SIZE);
		vals[4 * i + 2] = V_INT(in->epoch);
		vals[4 * i + 3] = V_INT(disks);
	}
	*added += n;
	return store_exec_many(s, &c->err,
			       "INSERT INTO push_receipts (push, fp, epoch, disks) VALUES (?1, ?2, ?3, "
			       "?4) ON CONFLICT (push, fp) DO UPDATE SET epoch = excluded.epoch, "
			       "disks = excluded.disks", vals, 4, n, NULL, 0);
}

int receipts_record(struct meta_call *c, uint64_t push, uint32_t domain,
		    Vmdedup__Receipt **receipts, size_t nr, uint64_t *added)
{
	size_t i;
	int r = 0;

	for (i = 0; !r && i < nr; i++) {
		const Vmdedup__Receipt *in = receipts[i];

		if (!receipt_is_authentic(in, c->m->params.receipt_key))
			return call_error(c, -EBADMSG, "receipt %zu, of shard %u, is not authentic", i,
					  in->shard);
		if (in->domain != domain)
			return call_error(c, -EINVAL, "receipt %zu is of domain %u, the push of %u", i,
					  in->domain, domain);
		r = record_one(c, push, in, added);
	}
	return r;
}

int receipts_cover(struct meta_call *c, uint64_t push, const struct fp *fps, size_t n,
		   bool *covered)
{
	struct val vals[RECIPE_FANOUT * 3];
	int64_t found[RECIPE_FANOUT];
	size_t i;
	int r;

	if (!n)
		return 0;
	for (i = 0; i < n; i++) {
		vals[3 * i] = V_INT(push);
		vals[3 * i + 1] = V_FP(&fps[i]);
		vals[3 * i + 2] = V_INT(fp_shard(&fps[i]));
	}
	r = store_exec_many(call_store(c), &c->err,
			    "SELECT 1 FROM push_receipts, shards WHERE push = ?1 AND fp = ?2 AND "
			    "shard = ?3 AND push_receipts.epoch >= shards.epoch", vals, 3, n, found, 0);
	for (i = 0; !r && i < n; i++)
		covered[i] = found[i] != 0;
	return r;
}

/* The answer for each shard of one set of disks: 0 not asked yet, 1 counts, 2 does not. */
struct disk_set {
	int64_t disks;
	uint8_t packed[MAX_DISKS * DISK_PACKED];
	size_t len;
	uint8_t counts[NR_SHARDS];
};

static int load_sets(struct meta_call *c, uint64_t push, struct disk_set **sets, size_t *nr)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int64_t n = 0;
	int r;

	r = store_int(call_store(c), &c->err, &n, "SELECT count(*) FROM push_disks WHERE push = ?1",
		      V_INT(push));
	if (r < 0)
		return r;
	*sets = call_alloc(c, ((size_t)n + 1) * sizeof(**sets));
	if (!*sets)
		return call_nomem(c);
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT disks, packed FROM push_disks WHERE push = ?1 ORDER BY disks",
			V_INT(push));
	for (*nr = 0; !r && *nr < (size_t)n; (*nr)++) {
		struct disk_set *set = &(*sets)[*nr];
		const void *packed;

		r = rows_next(&rows, &c->err);
		if (r <= 0)
			return r;
		r = 0;
		set->disks = rows_int(&rows, 0);
		packed = rows_blob(&rows, 1, &set->len);
		if (set->len > sizeof(set->packed) || set->disks != (int64_t)*nr)
			return store_fail(call_store(c), &c->err, -EUCLEAN,
					  "the store is damaged: disks of push %llu",
					  (unsigned long long)push);
		memcpy(set->packed, packed, set->len);
	}
	return r;
}

int receipts_recheck(struct meta_call *c, uint64_t push, struct fp *redo, size_t *nr_redo)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct disk_set *sets, *set;
	size_t nr = 0;
	struct fp fp;
	int r;

	r = load_sets(c, push, &sets, &nr);
	if (!r)
		r = store_query(call_store(c), &c->err, &rows,
				"SELECT fp, disks FROM push_receipts WHERE push = ?1", V_INT(push));
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		uint64_t disks = (uint64_t)rows_int(&rows, 1);
		uint8_t *counts;

		r = rows_bytes(&rows, 0, fp.b, FP_SIZE, &c->err);
		if (r)
			return r;
		if (disks >= nr)
			return store_fail(call_store(c), &c->err, -EUCLEAN,
					  "the store is damaged: a receipt without disks");
		set = &sets[disks];
		counts = &set->counts[fp_shard(&fp)];
		if (!*counts) {
			r = enough(c->m, fp_shard(&fp), set->packed, set->len, &c->err);
			if (r < 0)
				return r;
			*counts = r ? 1 : 2;
			r = 0;
		}
		if (*counts == 2 && *nr_redo < META_MAX_REDO)
			redo[(*nr_redo)++] = fp;
	}
	return r;
}
