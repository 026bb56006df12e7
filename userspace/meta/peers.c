// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Agents that serve peers: who there is, and whom an agent is told of: at most half of its own rack,
 * then those that have images open that it has open as well, then some at random. All of it is hints, forgotten when an agent is
 * silent for longer than it said. And who goes by a host's name.
 */
#include <errno.h>
#include <string.h>
#include "base/log.h"
#include "meta/core.h"
#include "proto/peer_address.h"

#define MAX_IMAGES    64	/* of one agent */
#define MAX_SUGGESTED 64
#define MAX_LIARS     16
#define MAX_FOUND     16	/* of one name */
#define MIN_TTL_S     10
#define MAX_TTL_S     3600

/* ---- what an agent says ---- */

static int check(struct meta_call *c, const Vmdedup__PeerAnnounce *req, struct uuid *cache,
		 struct peer_address *address)
{
	int r = call_get_uuid(c, &req->cache, "the cache's UUID", cache) ?:
		call_check_text(c, req->host, "the host's name") ?:
		call_check_text(c, req->rack, "the rack's name");

	if (r)
		return r;
	if (peer_address_take(req->address, address))
		return call_error(c, -EINVAL, "the peer's address is not tcp://HOST:PORT of at most "
				  "%d bytes, with a key of 32 bytes or none", PEER_ENDPOINT_MAX - 1);
	if (req->images.len % 16 || req->images.len > 16 * MAX_IMAGES)
		return call_error(c, -EINVAL, "%zu bytes of images' UUIDs: 16 each, at most %d of them",
				  req->images.len, MAX_IMAGES);
	if (req->ttl_s < MIN_TTL_S || req->ttl_s > MAX_TTL_S)
		return call_error(c, -EINVAL, "a peer is remembered for %d to %d seconds, not %u",
				  MIN_TTL_S, MAX_TTL_S, req->ttl_s);
	return 0;
}

/* Later than any could say: the clock went back. Whoever is there says so again soon. */
static int forget_silent(struct meta_call *c, uint64_t now)
{
	int64_t n;

	n = store_exec(call_store(c), &c->err,
		       "DELETE FROM peer_images WHERE cache IN (SELECT cache FROM peers WHERE "
		       "until_s < ?1 OR until_s > ?2)", V_INT(now), V_INT(now + MAX_TTL_S));
	if (n >= 0)
		n = store_exec(call_store(c), &c->err, "DELETE FROM peers WHERE until_s < ?1 OR "
			       "until_s > ?2", V_INT(now), V_INT(now + MAX_TTL_S));
	return n < 0 ? (int)n : 0;
}

static int remember(struct meta_call *c, const struct uuid *cache,
		    const struct peer_address *address, uint64_t now)
{
	const Vmdedup__PeerAnnounce *req = c->req->peer_announce;
	struct store *s = call_store(c);
	int64_t n;
	size_t i;

	/* A host has another cache now: the one before is not reached there any more. */
	n = store_exec(s, &c->err,
		       "DELETE FROM peer_images WHERE cache IN (SELECT cache FROM peers WHERE endpoint = "
		       "?1 AND cache <> ?2)", V_TEXT(address->endpoint), V_UUID(cache));
	if (n >= 0)
		n = store_exec(s, &c->err, "DELETE FROM peers WHERE endpoint = ?1 AND cache <> ?2",
			       V_TEXT(address->endpoint), V_UUID(cache));
	if (n < 0)
		return (int)n;
	n = store_exec(s, &c->err,
		       "INSERT INTO peers (cache, endpoint, curve_key, host, rack, until_s, accused) "
		       "VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0) ON CONFLICT (cache) DO UPDATE SET endpoint = "
		       "?2, curve_key = ?3, host = ?4, rack = ?5, until_s = ?6",
		       V_UUID(cache), V_TEXT(address->endpoint),
		       V_BLOB(address->key, address->has_key ? sizeof(address->key) : 0),
		       V_TEXT(req->host), V_TEXT(req->rack), V_INT(now + req->ttl_s));
	if (n >= 0)
		n = store_exec(s, &c->err, "DELETE FROM peer_images WHERE cache = ?1",
			       V_UUID(cache));
	for (i = 0; n >= 0 && i < req->images.len / 16; i++)
		n = store_exec(s, &c->err,
			       "INSERT INTO peer_images (cache, image) VALUES (?1, ?2) ON CONFLICT "
			       "(cache, image) DO NOTHING",
			       V_UUID(cache), V_BLOB(req->images.data + 16 * i, 16));
	return n < 0 ? (int)n : 0;
}

static int note_liars(struct meta_call *c)
{
	const Vmdedup__PeerAnnounce *req = c->req->peer_announce;
	int64_t n = 0;
	size_t i;

	for (i = 0; n >= 0 && i < req->n_liars && i < MAX_LIARS; i++) {
		if (strlen(req->liars[i]) >= PEER_ENDPOINT_MAX || call_check_text(c, req->liars[i], ""))
			continue;
		log_warn("host %s says that its peer %s sent a block that does not match its "
			 "fingerprint", req->host, req->liars[i]);
		n = store_exec(call_store(c), &c->err,
			       "UPDATE peers SET accused = accused + 1 WHERE endpoint = ?1",
			       V_TEXT(req->liars[i]));
	}
	return n < 0 ? (int)n : 0;
}

/* ---- what it is told ---- */

#define MAX_LOOKED 8 /* images of one host, whose other holders are looked for at a time */

struct suggestion {
	struct meta_call *c;
	Vmdedup__PeerAnnounceReply *reply;
	struct uuid cache, from; /* of who asks; where to begin */
	size_t all, want;	 /* @want: of them, up to now */
};

static bool is_suggested(const Vmdedup__PeerAnnounceReply *reply, const char *endpoint)
{
	size_t i;

	for (i = 0; i < reply->n_peers; i++)
		if (!strcmp(reply->peers[i]->endpoint, endpoint))
			return true;
	return false;
}

/* A row (endpoint, curve_key, rack, ...). */
static int add_address(struct meta_call *c, Vmdedup__PeerAnnounceReply *reply, struct rows *rows)
{
	Vmdedup__PeerAddress *a = call_alloc(c, sizeof(*a));
	const void *key;
	size_t len;

	if (!a)
		return call_nomem(c);
	vmdedup__peer_address__init(a);
	a->endpoint = arena_strdup(c->arena, rows_text(rows, 0));
	if (!a->endpoint)
		return call_nomem(c);
	a->rack = peer_rack(rows_text(rows, 2));
	key = rows_blob(rows, 1, &len);
	if (len && call_bytes(c, &a->curve_key, key, len))
		return -ENOMEM;
	reply->peers[reply->n_peers++] = a;
	return 0;
}

/* Adds the rows of the query as far as more are wanted. */
static int take_rows(struct suggestion *sg, struct rows *rows)
{
	struct meta_call *c = sg->c;
	int r;

	while ((r = rows_next(rows, &c->err)) > 0 && sg->reply->n_peers < sg->want) {
		if (is_suggested(sg->reply, rows_text(rows, 0)))
			continue;
		r = add_address(c, sg->reply, rows);
		if (r)
			return r;
	}
	return r < 0 ? r : 0;
}

#define COLUMNS	   "peers.endpoint, peers.curve_key, peers.rack, peers.cache"
/* Of its rack: so many are looked at, whoever they are. */
#define OF_RACK(turn) \
	"SELECT " COLUMNS " FROM (SELECT * FROM peers WHERE rack = ?4 AND cache " turn " ?2 AND cache " \
	"<> ?1 ORDER BY cache LIMIT 256) AS peers "
#define IN_COMMON \
	"WHERE EXISTS (SELECT 1 FROM peer_images mine JOIN peer_images other ON other.image = mine.image " \
	"WHERE mine.cache = ?1 AND other.cache = peers.cache) "
/* With one image: an index has them in order. */
#define WITH_IMAGE(turn) \
	"SELECT " COLUMNS " FROM (SELECT cache FROM peer_images WHERE image = ?4 AND cache " turn " ?2 " \
	"AND cache <> ?1 ORDER BY cache LIMIT ?3) AS near JOIN peers ON peers.cache = near.cache "
#define ANY(turn) "SELECT " COLUMNS " FROM peers WHERE cache <> ?1 AND cache " turn " ?2 "
#define IN_ORDER  "ORDER BY peers.cache LIMIT ?3"

/*
 * In two turns round the circle of UUIDs, from a random place: fair without sorting all, and none looks at
 * more than some rows, however many have an image open. Half of the places
 * at most are for the rack, so that racks know each other; a quarter is kept for those at random, through
 * which parts of a fleet meet.
 */
static const struct step {
	const char *first, *second;
	enum { BY_RACK = 1, BY_IMAGE } by; /* ?4 */
	unsigned int quarters;
} steps[] = {
	{ OF_RACK(">") IN_COMMON IN_ORDER, OF_RACK("<=") IN_COMMON IN_ORDER, BY_RACK, 2 },
	{ WITH_IMAGE(">") IN_ORDER, WITH_IMAGE("<=") IN_ORDER, BY_IMAGE, 3 },
	{ OF_RACK(">") IN_ORDER, OF_RACK("<=") IN_ORDER, BY_RACK, 2 },
	{ ANY(">") IN_ORDER, ANY("<=") IN_ORDER, 0, 4 },
};

static int search(struct suggestion *sg, const char *query, const struct val *by)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	struct store *s = call_store(sg->c);
	int r;

	if (sg->reply->n_peers >= sg->want)
		return 0;
	if (by)
		r = store_query(s, &sg->c->err, &rows, query, V_UUID(&sg->cache), V_UUID(&sg->from),
				V_INT(2 * sg->all), *by);
	else
		r = store_query(s, &sg->c->err, &rows, query, V_UUID(&sg->cache), V_UUID(&sg->from),
				V_INT(2 * sg->all));
	return r ? r : take_rows(sg, &rows);
}

static int search_both(struct suggestion *sg, const struct step *step, const struct val *by)
{
	return search(sg, step->first, by) ?: search(sg, step->second, by);
}

/* One of its images after the other, from a random one: others the next time. */
static int search_images(struct suggestion *sg, const struct step *step)
{
	const Vmdedup__PeerAnnounce *req = sg->c->req->peer_announce;
	size_t nr = req->images.len / 16, most = MIN(nr, MAX_LOOKED), i;
	struct val image;
	int r = 0;

	for (i = 0; !r && i < most && sg->reply->n_peers < sg->want; i++) {
		image = V_BLOB(req->images.data + (sg->from.b[0] + i) % nr * 16, 16);
		r = search_both(sg, step, &image);
	}
	return r;
}

static int suggest(struct suggestion *sg)
{
	const Vmdedup__PeerAnnounce *req = sg->c->req->peer_announce;
	struct val rack = V_TEXT(req->rack);
	struct meta_call *c = sg->c;
	size_t i;
	int r = 0;

	if (c->m->env->random(c->m->env->ctx, sg->from.b, sizeof(sg->from.b)))
		return call_error(c, -EIO, "no random numbers from the system");
	for (i = 0; !r && i < sizeof(steps) / sizeof(steps[0]); i++) {
		sg->want = sg->all - sg->all * (4 - steps[i].quarters) / 4;
		if (steps[i].by == BY_IMAGE)
			r = search_images(sg, &steps[i]);
		else if (steps[i].by != BY_RACK)
			r = search_both(sg, &steps[i], NULL);
		else if (*req->rack)
			r = search_both(sg, &steps[i], &rack);
	}
	return r;
}

int peers_announce(struct meta_call *c)
{
	const Vmdedup__PeerAnnounce *req = c->req->peer_announce;
	Vmdedup__PeerAnnounceReply *reply = call_alloc(c, sizeof(*reply));
	struct suggestion sg = { .c = c, .reply = reply };
	uint64_t now = call_now_s(c);
	struct peer_address address;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__peer_announce_reply__init(reply);
	sg.all = req->want < MAX_SUGGESTED ? req->want : MAX_SUGGESTED;
	reply->peers = call_alloc(c, (sg.all + 1) * sizeof(*reply->peers));
	if (!reply->peers)
		return call_nomem(c);
	r = check(c, req, &sg.cache, &address) ?:
	    forget_silent(c, now) ?:
	    remember(c, &sg.cache, &address, now) ?:
	    note_liars(c) ?:
	    suggest(&sg);
	if (r)
		return r;
	c->reply.body_case = VMDEDUP__REPLY__BODY_PEER_ANNOUNCE;
	c->reply.peer_announce = reply;
	return 0;
}

/* ---- one host ---- */

int peers_find(struct meta_call *c)
{
	const Vmdedup__HostFind *req = c->req->host_find;
	Vmdedup__HostFindReply *reply = call_alloc(c, sizeof(*reply));
	Vmdedup__PeerAddress **addresses = call_alloc(c, MAX_FOUND * sizeof(*addresses));
	Vmdedup__PeerAnnounceReply list = { .peers = addresses };
	struct uuid *caches = call_alloc(c, MAX_FOUND * sizeof(*caches));
	char **hosts = call_alloc(c, MAX_FOUND * sizeof(*hosts));
	struct rows rows CLEANUP_ROWS = { 0 };
	struct uuid cache = { 0 };
	int r;

	if (!reply || !addresses || !caches || !hosts)
		return call_nomem(c);
	vmdedup__host_find_reply__init(reply);
	if (uuid_from_text(&cache, req->host))
		cache = (struct uuid){ 0 };
	r = call_check_text(c, req->host, "the host's name") ?:
	    store_query(call_store(c), &c->err, &rows,
			"SELECT endpoint, curve_key, rack, cache, host FROM peers WHERE (host = ?1 OR cache = "
			"?4) AND until_s >= ?2 ORDER BY cache LIMIT ?3", V_TEXT(req->host),
			V_INT(call_now_s(c)), V_INT(MAX_FOUND), V_UUID(&cache));
	while (!r && (r = rows_next(&rows, &c->err)) > 0) {
		hosts[list.n_peers] = arena_strdup(c->arena, rows_text(&rows, 4));
		if (!hosts[list.n_peers])
			return call_nomem(c);
		r = rows_bytes(&rows, 3, caches[list.n_peers].b, sizeof(caches[0].b), &c->err) ?:
		    add_address(c, &list, &rows);
	}
	if (r)
		return r;
	reply->caches = (ProtobufCBinaryData){ list.n_peers * sizeof(caches[0]), caches[0].b };
	reply->addresses = addresses;
	reply->hosts = hosts;
	reply->n_addresses = reply->n_hosts = list.n_peers;
	c->reply.body_case = VMDEDUP__REPLY__BODY_HOST_FIND;
	c->reply.host_find = reply;
	return 0;
}
