// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Receipts instead of pins. A receipt counts if its epoch is at least the shard's GC epoch E and
 * at least min_copies of its disks are current replicas of the shard in the incarnation that gave
 * it, and were placed there, with what they hold, no later than the version of the map that it was
 * given by: a disk that has left the shard and come back, or was put back from a copy, may have lost
 * what it vouched for before. A current replica that is not among its disks becomes stale
 * (membership.h).
 *
 * Why the epoch need not be checked again at the commit: the leaf that names the block was made
 * in a transaction in which the receipt counted, and from then on the block's count keeps it from
 * being condemned, whatever E becomes. The disks are checked again, because a disk that has been
 * lost in the meantime takes with it what only the client's cache can still replace.
 */
#include "meta/image.h"
#include "meta/members.h"

#include <errno.h>
#include <string.h>

#define DISK_PACKED 32 /* UUID, incarnation, version */
#define MAX_DISKS   8

/* Who has the blocks of a receipt, by what it says. */
struct holders {
	struct member_disk disks[MAX_DISKS];
	size_t nr;
};

static uint64_t get_le64(const uint8_t *p)
{
	uint64_t v = 0;
	int i;

	for (i = 7; i >= 0; i--)
		v = v << 8 | p[i];
	return v;
}

static void put_le64(uint8_t *p, uint64_t v)
{
	int i;

	for (i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

/* Enough of the disks count, each once. */
static bool enough(const struct members *ms, unsigned int min_copies, uint32_t shard,
		   const struct holders *h)
{
	unsigned int copies = 0;
	size_t i, j;

	for (i = 0; i < h->nr; i++) {
		for (j = 0; j < i && memcmp(h->disks[j].uuid, h->disks[i].uuid, 16); j++)
			;
		copies += j == i && members_has(ms, shard, &h->disks[i]);
	}
	return copies >= min_copies;
}

static int take_holders(struct meta_call *c, const Vmdedup__Receipt *in, struct holders *h)
{
	size_t i;

	if (!in->n_disks || in->n_disks > MAX_DISKS)
		return call_error(c, -EINVAL, "a receipt of %zu disks; 1 to %d are allowed",
				  in->n_disks, MAX_DISKS);
	h->nr = in->n_disks;
	for (i = 0; i < h->nr; i++) {
		const Vmdedup__Disk *d = in->disks[i];

		if (d->uuid.len != 16)
			return call_error(c, -EINVAL, "a receipt's disk has no UUID");
		memcpy(h->disks[i].uuid, d->uuid.data, 16);
		h->disks[i].incarnation = d->incarnation;
		h->disks[i].version = in->map_version;
	}
	return 0;
}

/*
 * As they are kept until the commit: with the version at which the youngest of their places came to
 * be what it is, which is the same for most receipts. A place that changes is younger than that.
 */
static size_t pack_holders(const struct members *ms, uint32_t shard, const struct holders *h,
			   uint8_t packed[MAX_DISKS * DISK_PACKED])
{
	uint64_t since = members_since(ms, shard, h->disks, h->nr);
	size_t i;

	for (i = 0; i < h->nr; i++) {
		uint8_t *p = packed + i * DISK_PACKED;

		memcpy(p, h->disks[i].uuid, 16);
		put_le64(p + 16, h->disks[i].incarnation);
		put_le64(p + 24, since);
	}
	return h->nr * DISK_PACKED;
}

static void unpack_holders(const uint8_t *packed, size_t len, struct holders *h)
{
	for (h->nr = 0; h->nr < MAX_DISKS && (h->nr + 1) * DISK_PACKED <= len; h->nr++) {
		const uint8_t *p = packed + h->nr * DISK_PACKED;

		memcpy(h->disks[h->nr].uuid, p, 16);
		h->disks[h->nr].incarnation = get_le64(p + 16);
		h->disks[h->nr].version = get_le64(p + 24);
	}
}

/* The receipts of one part: mostly the same disks again and again. */
struct record {
	struct meta_call *c;
	uint64_t push;
	const struct members *members;
	uint8_t packed[MAX_DISKS * DISK_PACKED];
	size_t len;    /* 0: none yet */
	int64_t disks; /* the row of `packed` */
};

static int intern_disks(struct record *rec, const uint8_t *packed, size_t len)
{
	struct store *s = call_store(rec->c);
	struct error *err = &rec->c->err;
	int64_t n = 0;
	int r;

	if (rec->len == len && !memcmp(rec->packed, packed, len))
		return 0;
	r = store_int(s, err, &n, "SELECT disks FROM push_disks WHERE push = ?1 AND packed = ?2",
		      V_INT(rec->push), V_BLOB(packed, len));
	if (r < 0)
		return r;
	rec->disks = n;
	if (!r) {
		r = store_int(s, err, &rec->disks,
			      "SELECT count(*) FROM push_disks WHERE push = ?1", V_INT(rec->push));
		if (r < 0)
			return r;
		n = store_exec(s, err, "INSERT INTO push_disks (push, disks, packed) VALUES "
			       "(?1, ?2, ?3)", V_INT(rec->push), V_INT(rec->disks),
			       V_BLOB(packed, len));
		if (n < 0)
			return (int)n;
	}
	memcpy(rec->packed, packed, len);
	rec->len = len;
	return 0;
}

static int record_one(struct record *rec, const Vmdedup__Receipt *in, uint64_t *added)
{
	struct meta_call *c = rec->c;
	uint8_t packed[MAX_DISKS * DISK_PACKED];
	size_t i, n = in->fingerprints.len / FP_SIZE, len;
	struct holders h;
	struct val *vals;
	int r;

	r = take_holders(c, in, &h);
	if (r)
		return r;
	if (in->epoch < rec->members->epochs[in->shard] || in->epoch > INT64_MAX ||
	    !enough(rec->members, c->m->params.min_copies, in->shard, &h))
		return 0;
	/* It counts from here on, and whoever is not in it has missed a write. */
	r = members_missed(c->m, in->shard, h.disks, h.nr, &c->err);
	if (r)
		return r;
	len = pack_holders(rec->members, in->shard, &h, packed);
	r = intern_disks(rec, packed, len);
	if (r)
		return r;
	vals = call_alloc(c, (4 * n + 1) * sizeof(*vals));
	if (!vals)
		return call_nomem(c);
	for (i = 0; i < n; i++) {
		vals[4 * i] = V_INT(rec->push);
		vals[4 * i + 1] = V_BLOB(in->fingerprints.data + i * FP_SIZE, FP_SIZE);
		vals[4 * i + 2] = V_INT(in->epoch);
		vals[4 * i + 3] = V_INT(rec->disks);
	}
	*added += n;
	return store_exec_many(
		call_store(c), &c->err,
		"INSERT INTO push_receipts (push, fp, epoch, disks) VALUES (?1, ?2, ?3, "
		"?4) ON CONFLICT (push, fp) DO UPDATE SET epoch = excluded.epoch, "
		"disks = excluded.disks",
		vals, 4, n, NULL, 0);
}

int receipts_record(struct meta_call *c, uint64_t push, uint32_t domain,
		    Vmdedup__Receipt **receipts, size_t nr, uint64_t *added)
{
	struct record rec = { .c = c, .push = push };
	size_t i;
	int r;

	if (!nr)
		return 0;
	r = members_get(c->m, &rec.members, &c->err);
	for (i = 0; !r && i < nr; i++) {
		const Vmdedup__Receipt *in = receipts[i];

		if (in->shard >= NR_SHARDS || !receipt_is_authentic(in, c->m->params.receipt_key))
			return call_error(c, -EBADMSG, "receipt %zu, of shard %u, is not authentic",
					  i, in->shard);
		if (in->domain != domain)
			return call_error(c, -EINVAL, "receipt %zu is of domain %u, the push of %u",
					  i, in->domain, domain);
		r = record_one(&rec, in, added);
	}
	return r;
}

int receipts_cover(struct meta_call *c, uint64_t push, const struct fp *fps, size_t n,
		   bool *covered)
{
	const struct members *ms;
	struct val vals[RECIPE_FANOUT * 2];
	int64_t epochs[RECIPE_FANOUT];
	size_t i;
	int r;

	if (!n)
		return 0;
	for (i = 0; i < n; i++) {
		vals[2 * i] = V_INT(push);
		vals[2 * i + 1] = V_FP(&fps[i]);
	}
	r = members_get(c->m, &ms, &c->err)
		    ?: store_exec_many(
			       call_store(c), &c->err,
			       "SELECT epoch FROM push_receipts WHERE push = ?1 AND fp = ?2", vals,
			       2, n, epochs, -1);
	for (i = 0; !r && i < n; i++)
		covered[i] = epochs[i] >= 0 &&
			     (uint64_t)epochs[i] >= ms->epochs[fp_shard(&fps[i])];
	return r;
}

/* The answer for each shard of one set of disks: 0 not asked yet, 1 counts, 2 does not. */
struct disk_set {
	int64_t disks;
	struct holders holders;
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
		size_t len;

		r = rows_next(&rows, &c->err);
		if (r <= 0)
			return r;
		r = 0;
		set->disks = rows_int(&rows, 0);
		packed = rows_blob(&rows, 1, &len);
		if (len > MAX_DISKS * DISK_PACKED || set->disks != (int64_t)*nr)
			return store_fail(call_store(c), &c->err, -EUCLEAN,
					  "the store is damaged: disks of push %llu",
					  (unsigned long long)push);
		unpack_holders(packed, len, &set->holders);
	}
	return r;
}

int receipts_recheck(struct meta_call *c, uint64_t push, struct fp *redo, size_t *nr_redo)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	const struct members *ms;
	struct disk_set *sets, *set;
	size_t nr = 0;
	struct fp fp;
	int r;

	r = load_sets(c, push, &sets, &nr) ?: members_get(c->m, &ms, &c->err);
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
		if (!*counts)
			*counts = enough(ms, c->m->params.min_copies, fp_shard(&fp), &set->holders) ?
					  1 : 2;
		if (*counts == 2 && *nr_redo < META_MAX_REDO)
			redo[(*nr_redo)++] = fp;
	}
	return r;
}
