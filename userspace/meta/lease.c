// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Leases: an image has one writer, a cache. Its epoch goes up with every grant; the same cache
 * that opens again keeps it. The root that a lease stands on, and that one's parent, are counted,
 * so that the collector never takes the base of a host's dirty data. Who only reads has no lease, but
 * its root is counted in the same way.
 */
#include "meta/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_REPORTS 4096 /* of one message: a cache has no more volumes */

#define READER_EPOCHS (1ULL << 62) /* above those of all leases */

#define LEASE_COLUMNS \
	"image, epoch, state, cache, host, domain, name, size, root, parent_root, cut, since_s"

static int read_row(struct meta_call *c, struct rows *rows, struct lease *l)
{
	l->epoch = (uint64_t)rows_int(rows, 1);
	l->state = (enum lease_state)rows_int(rows, 2);
	snprintf(l->host, sizeof(l->host), "%s", rows_text(rows, 4));
	l->domain = (uint32_t)rows_int(rows, 5);
	snprintf(l->name, sizeof(l->name), "%s", rows_text(rows, 6));
	l->size = (uint64_t)rows_int(rows, 7);
	l->cut = (uint64_t)rows_int(rows, 10);
	l->since_s = (uint64_t)rows_int(rows, 11);
	return rows_bytes(rows, 0, l->image.b, sizeof(l->image.b), &c->err) ?:
	       rows_bytes(rows, 3, l->cache.b, sizeof(l->cache.b), &c->err) ?:
	       rows_bytes(rows, 8, l->root.b, FP_SIZE, &c->err) ?:
	       rows_bytes(rows, 9, l->parent_root.b, FP_SIZE, &c->err);
}

int lease_active(struct meta_call *c, const struct uuid *image, struct lease *l)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT " LEASE_COLUMNS " FROM leases WHERE image = ?1 AND state = 0",
			V_UUID(image));
	if (!r)
		r = rows_next(&rows, &c->err);
	return r <= 0 ? r : (read_row(c, &rows, l) ?: 1);
}

static int load(struct meta_call *c, const struct uuid *image, uint64_t epoch, struct lease *l)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT " LEASE_COLUMNS " FROM leases WHERE image = ?1 AND epoch = ?2",
			V_UUID(image), V_INT(epoch));
	if (!r)
		r = rows_next(&rows, &c->err);
	return r <= 0 ? r : (read_row(c, &rows, l) ?: 1);
}

static int busy(struct meta_call *c, const struct lease *l, const char *what)
{
	char cache[UUID_TEXT_SIZE];

	return call_error(c, -EBUSY,
			  "image \"%s\" is attached on host %s (cache %s, lease epoch %llu) and "
			  "cannot be %s; detach it there, or see `vmdedup volume break-lease`",
			  l->name, l->host, uuid_to_text(&l->cache, cache),
			  (unsigned long long)l->epoch, what);
}

int lease_none(struct meta_call *c, const struct image *im, const char *what)
{
	struct lease l;
	int r = lease_active(c, &im->uuid, &l);

	return r > 0 ? busy(c, &l, what) : r;
}

static int fill(struct meta_call *c, Vmdedup__Lease *out, const struct lease *l)
{
	vmdedup__lease__init(out);
	out->epoch = l->epoch;
	out->cut = l->cut;
	out->size = l->size;
	out->since_s = l->since_s;
	out->broken = l->state == LEASE_BROKEN;
	out->reader = l->state == LEASE_READER;
	out->host = arena_strdup(c->arena, l->host);
	out->name = arena_strdup(c->arena, l->name);
	if (!out->host || !out->name)
		return call_nomem(c);
	return call_bytes(c, &out->image, l->image.b, sizeof(l->image.b)) ?:
	       call_bytes(c, &out->cache, l->cache.b, sizeof(l->cache.b)) ?:
	       call_bytes(c, &out->root, l->root.b, FP_SIZE) ?:
	       call_bytes(c, &out->parent_root, l->parent_root.b, FP_SIZE);
}

static int reply_lease(struct meta_call *c, const struct lease *l)
{
	Vmdedup__Lease *out = call_alloc(c, sizeof(*out));
	int r;

	if (!out)
		return call_nomem(c);
	r = fill(c, out, l);
	if (r)
		return r;
	c->reply.body_case = VMDEDUP__REPLY__BODY_LEASE;
	c->reply.lease = out;
	return 0;
}

static int insert(struct meta_call *c, const struct lease *l)
{
	int64_t n = store_exec(call_store(c), &c->err,
			       "INSERT INTO leases (" LEASE_COLUMNS ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, "
			       "?7, ?8, ?9, ?10, ?11, ?12)", V_UUID(&l->image), V_INT(l->epoch),
			       V_INT(l->state), V_UUID(&l->cache), V_TEXT(l->host), V_INT(l->domain),
			       V_TEXT(l->name), V_INT(l->size), V_FP(&l->root), V_FP(&l->parent_root),
			       V_INT(l->cut), V_INT(l->since_s));

	return n < 0 ? (int)n : 0;
}

/* Counts the root once for the lease; there is no parent before the first commit. */
static int grant(struct meta_call *c, struct image *im, struct lease *l)
{
	int64_t n;
	int r;

	l->epoch = ++im->lease_epoch;
	l->state = LEASE_ACTIVE;
	l->image = im->uuid;
	l->domain = im->domain;
	l->size = im->size;
	l->root = im->root;
	l->parent_root = (struct fp){ 0 };
	l->cut = 0;
	l->since_s = call_now_s(c);
	snprintf(l->name, sizeof(l->name), "%s", im->name);
	r = node_ref(c, l->domain, &l->root) ?: insert(c, l);
	if (r)
		return r;
	n = store_exec(call_store(c), &c->err, "UPDATE images SET lease_epoch = ?2 WHERE uuid = ?1",
		       V_UUID(&im->uuid), V_INT(im->lease_epoch));
	return n < 0 ? (int)n : 0;
}

int lease_advance(struct meta_call *c, struct lease *l, const struct fp *root, uint64_t cut)
{
	struct fp old = l->parent_root;
	int64_t n;
	int r;

	r = node_ref(c, l->domain, root);
	if (r)
		return r;
	l->parent_root = l->root; /* its count moves along */
	l->root = *root;
	l->cut = cut;
	n = store_exec(
		call_store(c), &c->err,
		"UPDATE leases SET root = ?3, parent_root = ?4, cut = ?5, grown = NULL WHERE image = ?1 AND "
		"epoch = ?2",
		V_UUID(&l->image), V_INT(l->epoch), V_FP(&l->root), V_FP(&l->parent_root),
		V_INT(l->cut));
	return n < 0 ? (int)n : node_unref(c->m, l->domain, &old, 1, &c->err);
}

static int lost(struct meta_call *c, const struct image *im, uint64_t epoch)
{
	return call_error(c, -ESTALE,
			  "the lease of epoch %llu on image \"%s\" is over (the image is at epoch "
			  "%llu): what this cache has not pushed can be recovered as a new image",
			  (unsigned long long)epoch, im->name, (unsigned long long)im->lease_epoch);
}

int lease_image(struct meta_call *c, const struct uuid *image, uint64_t epoch, struct image *im)
{
	char text[UUID_TEXT_SIZE];
	struct lease l;
	int r = image_by_uuid(c, image, im);

	if (r != -ENOENT)
		return r;
	r = load(c, image, epoch, &l);
	if (r < 0)
		return r;
	return call_error(c, -ESTALE,
			  "the lease of epoch %llu on image \"%s\" is over, and the image is not there "
			  "any more (or is not in the backup that the meta server's store was restored "
			  "from): what this cache has not pushed can be recovered as a new image",
			  (unsigned long long)epoch, r ? l.name : uuid_to_text(image, text));
}

/* Gives back what the lease counts, and ends the pushes that only it could commit. */
static int drop(struct meta_call *c, const struct lease *l)
{
	struct store *s = call_store(c);
	int64_t n;

	n = store_exec(s, &c->err, "DELETE FROM leases WHERE image = ?1 AND epoch = ?2",
		       V_UUID(&l->image), V_INT(l->epoch));
	if (n >= 0)
		n = store_exec(s, &c->err, "DELETE FROM lease_reports WHERE image = ?1 AND epoch = ?2",
			       V_UUID(&l->image), V_INT(l->epoch));
	if (n >= 0)
		n = store_exec(s, &c->err, "UPDATE pushes SET state = 1 WHERE image = ?1 AND "
			       "epoch = ?2 AND state = 0", V_UUID(&l->image), V_INT(l->epoch));
	if (n < 0)
		return (int)n;
	return node_unref(c->m, l->domain, &l->root, 1, &c->err) ?:
	       node_unref(c->m, l->domain, &l->parent_root, 1, &c->err);
}

static int load_reader(struct meta_call *c, const struct uuid *image, const struct uuid *cache,
		       struct lease *l)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT " LEASE_COLUMNS " FROM leases WHERE image = ?1 AND cache = ?2 AND "
			"state = 2", V_UUID(image), V_UUID(cache));
	if (!r)
		r = rows_next(&rows, &c->err);
	return r <= 0 ? r : (read_row(c, &rows, l) ?: 1);
}

/*
 * A cache that only reads excludes nobody, and what it reads stays: a row counts the root that it is
 * told now, and the one that its record has until it hears of that, or for good when it does not. The
 * epoch is new each time, so that what is still said of the row before ends nothing.
 */
static int take_readonly(struct meta_call *c, const struct image *im, const struct uuid *cache)
{
	const Vmdedup__LeaseTake *req = c->req->lease_take;
	struct lease old, l = {
		.state = LEASE_READER, .image = im->uuid, .cache = *cache, .domain = im->domain,
		.size = im->size, .root = im->root, .since_s = call_now_s(c),
	};
	int known, r;

	snprintf(l.host, sizeof(l.host), "%s", req->host);
	snprintf(l.name, sizeof(l.name), "%s", im->name);
	known = load_reader(c, &im->uuid, cache, &old);
	if (known < 0)
		return known;
	if (known)
		l.parent_root = req->root.len == FP_SIZE &&
				!memcmp(req->root.data, old.parent_root.b, FP_SIZE) ?
					old.parent_root : old.root;
	r = call_random_id(c, &l.epoch) ?: node_ref(c, l.domain, &l.root) ?:
	    node_ref(c, l.domain, &l.parent_root);
	l.epoch |= READER_EPOCHS;
	if (!r && known)
		r = drop(c, &old);
	r = r ?: insert(c, &l) ?: reply_lease(c, &l);
	if (!r)
		c->reply.lease->epoch = 0; /* the cache has no grant */
	return r;
}

int lease_take(struct meta_call *c)
{
	const Vmdedup__LeaseTake *req = c->req->lease_take;
	struct uuid image, cache;
	struct image im;
	struct lease l;
	int r;

	r = call_get_uuid(c, &req->image, "the image's UUID", &image) ?:
	    call_get_uuid(c, &req->cache, "the cache's UUID", &cache) ?:
	    call_check_text(c, req->host, "the host's name");
	if (!r)
		r = req->confirm_only ? lease_image(c, &image, req->epoch, &im) :
					image_by_uuid(c, &image, &im);
	if (r)
		return r;
	if (req->readonly)
		return take_readonly(c, &im, &cache);
	r = lease_active(c, &image, &l);
	if (r < 0)
		return r;
	if (req->confirm_only &&
	    (!r || !uuid_equal(&l.cache, &cache) || l.epoch != req->epoch))
		return lost(c, &im, req->epoch);
	if (r && !uuid_equal(&l.cache, &cache))
		return busy(c, &l, "attached a second time");
	/* What an earlier agent of the cache said under the epoch may still be on its way: the release
	 * or the handover that it had begun. Under another epoch nothing of it counts. */
	if (r && !req->confirm_only && req->renew == l.epoch) {
		r = drop(c, &l);
		if (r)
			return r;
	} else if (r) {
		r = reply_lease(c, &l);
		if (!r)
			c->reply.lease->held = true;
		return r;
	}
	l = (struct lease){ .cache = cache };
	snprintf(l.host, sizeof(l.host), "%s", req->host);
	return grant(c, &im, &l) ?: reply_lease(c, &l);
}

/* Also of a broken one: its cache has recovered or given up what it had. Of one that is gone:
 * done before. */
int lease_release(struct meta_call *c)
{
	const Vmdedup__LeaseRelease *req = c->req->lease_release;
	struct uuid image, cache;
	struct lease l;
	int r;

	r = call_get_uuid(c, &req->image, "the image's UUID", &image) ?:
	    call_get_uuid(c, &req->cache, "the cache's UUID", &cache);
	if (r)
		return r;
	r = load(c, &image, req->epoch, &l);
	if (r <= 0)
		return r;
	if (!uuid_equal(&l.cache, &cache))
		return busy(c, &l, "released by another cache");
	/* The list is the writer's. */
	r = l.state == LEASE_READER ? 0 : hot_list_drop(c, &image, &cache);
	return r ?: drop(c, &l);
}

/*
 * From a cache that has given its grant up durably to another, in one step: at no time is there no
 * lease, and nobody else can come in between. Whoever has the lease, no other cache can take it.
 */
int lease_handover(struct meta_call *c)
{
	const Vmdedup__LeaseHandover *req = c->req->lease_handover;
	struct uuid image, cache, to;
	struct image im;
	struct lease l;
	int r;

	r = call_get_uuid(c, &req->image, "the image's UUID", &image) ?:
	    call_get_uuid(c, &req->cache, "the cache's UUID", &cache) ?:
	    call_get_uuid(c, &req->to_cache, "the other cache's UUID", &to) ?:
	    call_check_text(c, req->to_host, "the host's name") ?:
	    lease_image(c, &image, req->epoch, &im);
	if (r)
		return r;
	if (uuid_equal(&cache, &to))
		return call_error(c, -EINVAL, "image \"%s\" cannot be handed over to the host that it "
				  "is on", im.name);
	r = lease_active(c, &image, &l);
	if (r < 0)
		return r;
	if (r && uuid_equal(&l.cache, &to) && l.epoch > req->epoch)
		return reply_lease(c, &l); /* done before */
	if (!r || !uuid_equal(&l.cache, &cache) || l.epoch != req->epoch)
		return lost(c, &im, req->epoch);
	r = hot_list_put(c, &image, &to, &req->blocks) ?: drop(c, &l);
	if (r)
		return r;
	l = (struct lease){ .cache = to };
	snprintf(l.host, sizeof(l.host), "%s", req->to_host);
	return grant(c, &im, &l) ?: reply_lease(c, &l);
}

/*
 * A person says that the host is gone, or that its unpushed data may go. The lease can commit
 * nothing from here on; what it stands on stays counted for a host that comes back. Breaking a
 * broken lease gives that up as well, and that of a reader what it reads.
 */
int lease_break(struct meta_call *c)
{
	const Vmdedup__LeaseBreak *req = c->req->lease_break;
	struct store *s = call_store(c);
	struct uuid image;
	struct lease l;
	int64_t n;
	int r;

	r = call_get_uuid(c, &req->image, "the image's UUID", &image);
	if (r)
		return r;
	r = load(c, &image, req->epoch, &l);
	if (r < 0)
		return r;
	if (!r)
		return call_error(c, -ENOENT, "there is no lease of epoch %llu on that image",
				  (unsigned long long)req->epoch);
	if (l.state != LEASE_ACTIVE)
		return drop(c, &l);
	r = hot_list_drop(c, &image, &l.cache);
	if (r)
		return r;
	n = store_exec(s, &c->err, "UPDATE leases SET state = 1 WHERE image = ?1 AND epoch = ?2",
		       V_UUID(&image), V_INT(req->epoch));
	if (n >= 0)
		n = store_exec(s, &c->err, "UPDATE images SET lease_epoch = lease_epoch + 1 WHERE "
			       "uuid = ?1", V_UUID(&image));
	if (n >= 0)
		n = store_exec(s, &c->err, "UPDATE pushes SET state = 1 WHERE image = ?1 AND "
			       "state = 0", V_UUID(&image));
	return n < 0 ? (int)n : 0;
}

/* ---- what is not pushed, as their holders say ---- */

static int take_report(struct meta_call *c, size_t i, const struct uuid *cache)
{
	const Vmdedup__LeaseReport *req = c->req->lease_report;
	struct uuid image;
	struct lease l;
	int64_t n;
	int r;

	memcpy(image.b, req->images.data + i * sizeof(image.b), sizeof(image.b));
	r = load(c, &image, req->epochs[i], &l);
	if (r <= 0 || !uuid_equal(&l.cache, cache))
		return r < 0 ? r : 0;
	n = store_exec(call_store(c), &c->err,
		       "INSERT INTO lease_reports (image, epoch, unpushed, oldest_ms, reported_s) VALUES "
		       "(?1, ?2, ?3, ?4, ?5) ON CONFLICT (image, epoch) DO UPDATE SET unpushed = ?3, "
		       "oldest_ms = ?4, reported_s = ?5", V_UUID(&image), V_INT(req->epochs[i]),
		       V_INT(req->unpushed_bytes[i]), V_INT(req->oldest_ms[i]), V_INT(call_now_s(c)));
	return n < 0 ? (int)n : 0;
}

int lease_report(struct meta_call *c)
{
	const Vmdedup__LeaseReport *req = c->req->lease_report;
	size_t i, nr = req->images.len / sizeof(struct uuid);
	struct uuid cache;
	int r;

	if (req->images.len % sizeof(struct uuid) || nr > MAX_REPORTS || req->n_epochs != nr ||
	    req->n_unpushed_bytes != nr || req->n_oldest_ms != nr)
		return call_error(c, -EINVAL, "a report has an epoch, bytes and an age for each of at "
				  "most %d images", MAX_REPORTS);
	r = call_get_uuid(c, &req->cache, "the cache's UUID", &cache);
	for (i = 0; !r && i < nr; i++) {
		if (req->epochs[i] > INT64_MAX || req->unpushed_bytes[i] > INT64_MAX ||
		    req->oldest_ms[i] > INT64_MAX)
			return call_error(c, -EINVAL, "a number of the report is out of range");
		r = take_report(c, i, &cache);
	}
	return r;
}

static int add_report(struct meta_call *c, Vmdedup__Lease *out, const struct lease *l)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	uint64_t then, now = call_now_s(c);
	int r;

	r = store_query(call_store(c), &c->err, &rows,
			"SELECT unpushed, oldest_ms, reported_s FROM lease_reports WHERE image = ?1 AND "
			"epoch = ?2", V_UUID(&l->image), V_INT(l->epoch));
	if (!r)
		r = rows_next(&rows, &c->err);
	if (r <= 0)
		return r;
	then = (uint64_t)rows_int(&rows, 2);
	out->reported = true;
	out->unpushed_bytes = (uint64_t)rows_int(&rows, 0);
	out->oldest_ms = (uint64_t)rows_int(&rows, 1);
	out->report_age_s = now > then ? now - then : 0;
	return 0;
}

/* ---- the list ---- */

/* The cursor is "<image's UUID>/<epoch>". */
static int parse_after(struct meta_call *c, const char *after, struct uuid *image,
		       uint64_t *epoch)
{
	char text[UUID_TEXT_SIZE] = "", *end;

	*image = (struct uuid){ 0 };
	*epoch = 0;
	if (!*after)
		return 0;
	snprintf(text, sizeof(text), "%s", after);
	if (uuid_from_text(image, text) || after[UUID_TEXT_SIZE - 1] != '/')
		return call_error(c, -EINVAL, "after: take it from the reply before");
	*epoch = strtoull(after + UUID_TEXT_SIZE, &end, 10);
	return *end ? call_error(c, -EINVAL, "after: take it from the reply before") : 0;
}

int lease_list(struct meta_call *c)
{
	const Vmdedup__LeaseList *req = c->req->lease_list;
	Vmdedup__LeaseListReply *reply = call_alloc(c, sizeof(*reply));
	size_t limit = req->limit && req->limit < PROTO_MAX_LIST ? req->limit : PROTO_MAX_LIST;
	char next[UUID_TEXT_SIZE + 24] = "", text[UUID_TEXT_SIZE];
	struct rows rows CLEANUP_ROWS = { 0 };
	struct uuid image, cache = { 0 };
	uint64_t epoch;
	struct lease l;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__lease_list_reply__init(reply);
	reply->leases = call_alloc(c, limit * sizeof(*reply->leases));
	if (!reply->leases)
		return call_nomem(c);
	r = parse_after(c, req->after, &image, &epoch);
	if (!r && req->cache.len)
		r = call_get_uuid(c, &req->cache, "the cache's UUID", &cache);
	if (r)
		return r;
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT " LEASE_COLUMNS " FROM leases WHERE (image, epoch) > (?1, ?2) "
			"AND (?4 = 0 OR cache = ?5) ORDER BY image, epoch LIMIT ?3", V_UUID(&image),
			V_INT(epoch), V_INT(limit + 1), V_INT(req->cache.len != 0), V_UUID(&cache));
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		if (reply->n_leases == limit) {
			reply->more = true;
			r = 0;
			break;
		}
		r = read_row(c, &rows, &l);
		if (r)
			return r;
		reply->leases[reply->n_leases] = call_alloc(c, sizeof(**reply->leases));
		if (!reply->leases[reply->n_leases])
			return call_nomem(c);
		r = fill(c, reply->leases[reply->n_leases], &l) ?:
		    add_report(c, reply->leases[reply->n_leases], &l);
		reply->n_leases++;
		snprintf(next, sizeof(next), "%s/%llu", uuid_to_text(&l.image, text),
			 (unsigned long long)l.epoch);
	}
	if (r)
		return r;
	reply->next = arena_strdup(c->arena, next);
	if (!reply->next)
		return call_nomem(c);
	c->reply.body_case = VMDEDUP__REPLY__BODY_LEASE_LIST;
	c->reply.lease_list = reply;
	return 0;
}
