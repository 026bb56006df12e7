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
	bool answers[MAX_PLACES];
	unsigned int nr_servers; /* that the map gives the shard */
};

static int unexpected(struct error *err)
{
	return error_set(err, -EPROTO, "an answer to another request");
}

static int add_page(struct found *f, const ProtobufCBinaryData *fps, struct error *err)
{
	size_t n = fps->len / FP_SIZE;
	struct fp *grown;

	if (f->nr + n > f->room) {
		f->room = 2 * f->room + n;
		grown = realloc(f->fps, f->room * sizeof(*grown));
		if (!grown)
			return error_set(err, -ENOMEM, "out of memory");
		f->fps = grown;
	}
	memcpy(f->fps + f->nr, fps->data, n * FP_SIZE);
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
			r = add_page(f, &page->fingerprints, err);
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

static void look_for(struct search *s, const struct fp *fp)
{
	unsigned int copies = 0, i;

	for (i = 0; i < MAX_PLACES; i++)
		copies += s->answers[i] &&
			  bsearch(fp, s->at[i].fps, s->at[i].nr, FP_SIZE, fp_order) != NULL;
	s->out->blocks++;
	if (!copies)
		s->out->missing++;
	else if (copies < s->nr_servers)
		s->out->fewer++;
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
		for (size_t i = 0; fps && i < fps->len; i += FP_SIZE) {
			memcpy(fp.b, fps->data + i, FP_SIZE);
			look_for(s, &fp);
		}
		more = fps && fps->len && reply.header->block_list->more;
		ask.after = (ProtobufCBinaryData){ FP_SIZE, fp.b };
		net_reply_free(&reply);
	}
	return r;
}

static int search_shard(struct search *s, struct error *err)
{
	struct error silent = { 0 };
	int r;

	s->nr_servers = 0;
	for (unsigned int i = 0; i < MAX_PLACES; i++) {
		struct server *server = i < s->c->map_replicas ?
					s->c->map[s->shard * s->c->map_replicas + i] : NULL;

		s->answers[i] = false;
		if (!server)
			continue;
		s->nr_servers++;
		r = list_server(s, server, &s->at[i], &silent);
		if (r == -ENOMEM)
			return error_set(err, r, "out of memory");
		s->answers[i] = !r;
		s->out->silent += r != 0;
	}
	return compare(s, err);
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
	return r;
}
