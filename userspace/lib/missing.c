// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the meta server names, held against what the data servers list: after a restore, when blocks
 * may have been deleted that the backup still names.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "lib/internal.h"

#define CALL_MS 30000

struct found {
	struct fp *fps; /* of one server, in order */
	size_t nr, room;
};

struct search {
	struct cluster *c;
	struct cluster_missing *out;
	uint32_t shard, domain;
	struct found at[MAX_PLACES];
	bool answers[MAX_PLACES], lacks[MAX_PLACES];
	uint32_t ids[MAX_PLACES];
	struct found missing, other; /* of the shard; of a server that the map does not give it */
	unsigned int nr_servers; /* that the map gives the shard */
};

static int unexpected(struct error *err)
{
	return error_set(err, -EPROTO, "an answer to another request");
}

static int add_fps(struct found *f, const void *fps, size_t n, struct error *err)
{
	struct fp *grown;

	if (f->nr + n > f->room) {
		f->room = 2 * f->room + n;
		grown = realloc(f->fps, f->room * sizeof(*grown));
		if (!grown)
			return error_set(err, -ENOMEM, "out of memory");
		f->fps = grown;
	}
	memcpy(f->fps + f->nr, fps, n * FP_SIZE);
	f->nr += n;
	return 0;
}

/* All that one data server has of the shard. */
static int list_server(struct search *s, struct server *server, struct found *f, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardList ask = VMDEDUP__SHARD_LIST__INIT;
	struct net_client *client = cluster_server_client(s->c, server);
	const Vmdedup__ShardListReply *page;
	struct net_reply reply;
	bool more = true;
	int r = 0;

	if (!client)
		return error_set(err, -ENOTCONN, "no connection to data server %s",
				 server->endpoint);
	f->nr = 0;
	ask.shard = s->shard;
	ask.domain = s->domain;
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_LIST;
	req.shard_list = &ask;
	while (!r && more) {
		r = net_call(client, &req, NULL, 0, CALL_MS, &reply, err);
		page = r ? NULL : reply.header->shard_list;
		if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_SHARD_LIST ||
			   page->fingerprints.len % FP_SIZE))
			r = unexpected(err);
		if (!r && page->fingerprints.len)
			r = add_fps(f, page->fingerprints.data, page->fingerprints.len / FP_SIZE,
				    err);
		more = !r && page->more && page->fingerprints.len;
		if (more)
			ask.after = (ProtobufCBinaryData){ FP_SIZE, f->fps[f->nr - 1].b };
		net_reply_free(&reply);
	}
	return r;
}

static int fp_order(const void *a, const void *b)
{
	return memcmp(a, b, FP_SIZE);
}

static bool is_in(const struct found *f, const struct fp *fp)
{
	return f->nr && bsearch(fp, f->fps, f->nr, FP_SIZE, fp_order);
}

static int look_for(struct search *s, const struct fp *fp, struct error *err)
{
	unsigned int copies = 0, i;

	for (i = 0; i < MAX_PLACES; i++) {
		if (!s->answers[i])
			continue;
		if (is_in(&s->at[i], fp))
			copies++;
		else
			s->lacks[i] = true;
	}
	s->out->blocks++;
	if (copies) {
		s->out->fewer += copies < s->nr_servers;
		return 0;
	}
	s->out->missing++;
	return add_fps(&s->missing, fp, 1, err);
}

static int compare(struct search *s, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__BlockList ask = VMDEDUP__BLOCK_LIST__INIT;
	const ProtobufCBinaryData *fps;
	struct net_reply reply;
	struct fp fp = { 0 };
	bool more = true;
	int r = 0;

	ask.shard = s->shard;
	ask.domain = s->domain;
	req.body_case = VMDEDUP__REQUEST__BODY_BLOCK_LIST;
	req.block_list = &ask;
	while (!r && more) {
		r = cluster_call(s->c, &req, NULL, 0, CALL_MS, &reply, err);
		if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_BLOCK_LIST ||
			   reply.header->block_list->fingerprints.len % FP_SIZE))
			r = unexpected(err);
		fps = r ? NULL : &reply.header->block_list->fingerprints;
		for (size_t i = 0; !r && fps && i < fps->len; i += FP_SIZE) {
			memcpy(fp.b, fps->data + i, FP_SIZE);
			r = look_for(s, &fp, err);
		}
		more = !r && fps && fps->len && reply.header->block_list->more;
		ask.after = (ProtobufCBinaryData){ FP_SIZE, fp.b };
		net_reply_free(&reply);
	}
	return r;
}

/* Of @fewer blocks that some data servers lack. */
static void note_whole(struct search *s, uint64_t fewer)
{
	struct cluster_whole *w = &s->out->whole[s->out->nr_whole];
	unsigned int i;

	*w = (struct cluster_whole){ .shard = s->shard };
	for (i = 0; i < MAX_PLACES; i++)
		if (s->answers[i] && !s->lacks[i])
			w->servers[w->nr++] = s->ids[i];
	if (w->nr)
		s->out->nr_whole++;
	else
		s->out->scattered += fewer;
}

static bool has_place(const struct search *s, const struct server *server)
{
	for (unsigned int i = 0; i < s->c->map_replicas; i++)
		if (s->c->map[s->shard * s->c->map_replicas + i] == server)
			return true;
	return false;
}

/* Where the shard was when the last store was lost: the restored map may not know. */
static int look_elsewhere(struct search *s, struct error *err)
{
	struct error silent = { 0 };
	size_t i, k, nr;
	int r;

	for (i = 0; s->missing.nr && i < s->c->nr_servers; i++) {
		struct server *server = s->c->servers[i];

		if (!cluster_server_is_up(server) || has_place(s, server))
			continue;
		r = list_server(s, server, &s->other, &silent);
		if (r == -ENOMEM)
			return error_set(err, r, "out of memory");
		s->out->silent += r != 0;
		for (k = nr = 0; !r && k < s->missing.nr; k++) {
			if (is_in(&s->other, &s->missing.fps[k]))
				s->out->elsewhere++;
			else
				s->missing.fps[nr++] = s->missing.fps[k];
		}
		s->missing.nr = r ? s->missing.nr : nr;
	}
	return 0;
}

static int search_shard(struct search *s, struct error *err)
{
	uint64_t fewer = s->out->fewer;
	struct error silent = { 0 };
	int r;

	s->nr_servers = 0;
	s->missing.nr = 0;
	for (unsigned int i = 0; i < MAX_PLACES; i++) {
		struct server *server = i < s->c->map_replicas ?
					s->c->map[s->shard * s->c->map_replicas + i] : NULL;

		s->answers[i] = s->lacks[i] = false;
		if (!server)
			continue;
		s->nr_servers++;
		s->ids[i] = server->id;
		r = list_server(s, server, &s->at[i], &silent);
		if (r == -ENOMEM)
			return error_set(err, r, "out of memory");
		s->answers[i] = !r;
		s->out->silent += r != 0;
	}
	r = compare(s, err);
	if (!r && s->out->fewer > fewer)
		note_whole(s, s->out->fewer - fewer);
	return r ?: look_elsewhere(s, err);
}

int cluster_find_missing(struct cluster *c, bool (*stopped)(void *arg), void *arg,
			 struct cluster_missing *out, struct error *err)
{
	struct search s = { .c = c, .out = out, .domain = c->params.domain };
	int r;

	*out = (struct cluster_missing){ 0 };
	r = cluster_map_fetch(c, CALL_MS, err);
	for (s.shard = 0; !r && s.shard < NR_SHARDS; s.shard++) {
		if (stopped && stopped(arg))
			r = error_set(err, -EINTR, "stopped");
		else
			r = search_shard(&s, err);
	}
	for (unsigned int i = 0; i < MAX_PLACES; i++)
		free(s.at[i].fps);
	free(s.missing.fps);
	free(s.other.fps);
	return r;
}
