// SPDX-License-Identifier: GPL-2.0-or-later
/* The cluster: making one, and what it says about itself. */
#include "meta/core.h"
#include "meta/server.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int cluster_domains(struct meta_call *c, Vmdedup__Domain ***out, size_t *n)
{
	struct rows rows CLEANUP_ROWS = { 0 };
	Vmdedup__Domain **list;
	const void *key;
	int64_t count = 0;
	size_t len;
	int r;

	*n = 0;
	r = store_int(call_store(c), &c->err, &count, "SELECT count(*) FROM domains");
	if (r < 0)
		return r;
	*out = list = call_alloc(c, ((size_t)count + 1) * sizeof(*list));
	if (!list)
		return call_nomem(c);
	r = store_query(call_store(c), &c->err, &rows,
			"SELECT id, name, key FROM domains ORDER BY id");
	while (!r && *n < (size_t)count && (r = rows_next(&rows, &c->err)) > 0) {
		Vmdedup__Domain *d = call_alloc(c, sizeof(*d));

		if (!d)
			return call_nomem(c);
		vmdedup__domain__init(d);
		list[(*n)++] = d;
		d->id = (uint32_t)rows_int(&rows, 0);
		d->name = arena_strdup(c->arena, rows_text(&rows, 1));
		if (!d->name)
			return call_nomem(c);
		key = rows_blob(&rows, 2, &len);
		r = call_bytes(c, &d->key, key, len);
	}
	return r < 0 ? r : 0;
}

static int count_of(struct meta_call *c, uint64_t *out, const char *sql)
{
	int64_t n = 0;
	int r = store_int(call_store(c), &c->err, &n, sql);

	*out = (uint64_t)n;
	return r < 0 ? r : 0;
}

int cluster_info(struct meta_call *c)
{
	Vmdedup__ClusterInfoReply *reply = call_alloc(c, sizeof(*reply));
	const struct meta_params *p = &c->m->params;
	int r;

	if (!reply)
		return call_nomem(c);
	vmdedup__cluster_info_reply__init(reply);
	reply->block_shift = p->block_shift;
	reply->algorithm = (Vmdedup__Algorithm)p->algorithm;
	reply->min_copies = p->min_copies;
	reply->replicas = p->replicas;
	reply->map_version = p->map_version;
	reply->out_after_s = p->out_after_s;
	reply->governed = c->m->governs;
	reply->name = arena_strdup(c->arena, p->name);
	if (!reply->name)
		return call_nomem(c);
	reply->deletion_suspended = p->deletion_suspended;
	r = call_bytes(c, &reply->cluster, p->uuid.b, sizeof(p->uuid.b)) ?:
	    call_bytes(c, &reply->history, p->history.b, sizeof(p->history.b)) ?:
	    cluster_domains(c, &reply->domains, &reply->n_domains) ?:
	    count_of(c, &reply->images, "SELECT count(*) FROM images WHERE name IS NOT NULL") ?:
	    count_of(c, &reply->blocks, "SELECT sum(blocks) FROM totals") ?:
	    count_of(c, &reply->nodes, "SELECT sum(nodes) FROM totals") ?:
	    count_of(c, &reply->pushes, "SELECT count(*) FROM pushes WHERE state = 0");
	if (r)
		return r;
	c->reply.body_case = VMDEDUP__REPLY__BODY_CLUSTER_INFO;
	c->reply.cluster_info = reply;
	return 0;
}

/* ---- a new cluster ---- */

static int check_init(const struct meta_init *in, struct error *err)
{
	if (!in->name || !*in->name || strlen(in->name) > META_MAX_TEXT)
		return error_set(err, -EINVAL, "a cluster's name has 1 to %d bytes", META_MAX_TEXT);
	if (in->algorithm > FP_MD5)
		return error_set(err, -EINVAL, "unknown fingerprint algorithm %d", in->algorithm);
	if (in->block_shift < BLOCK_SHIFT_MIN || in->block_shift > BLOCK_SHIFT_MAX)
		return error_set(err, -EINVAL,
				 "the block size is a power of two from 4 KiB to 1 MiB");
	if (in->replicas < 1 || in->replicas > 4)
		return error_set(err, -EINVAL, "replicas: %u; 1 to 4 are allowed", in->replicas);
	if (in->min_copies < 1 || in->min_copies > in->replicas)
		return error_set(err, -EINVAL, "min-copies: %u; 1 to the replicas (%u) are allowed",
				 in->min_copies, in->replicas);
	return 0;
}

int meta_fill(struct store *s, const struct meta_env *env, const struct meta_init *in,
	      struct error *err)
{
	uint8_t key[RECEIPT_KEY_SIZE];
	int64_t now = (int64_t)env->wall_s(env->ctx), n;
	struct uuid uuid, history;
	unsigned int shard;
	int r;

	r = check_init(in, err) ?: uuid_generate(&uuid) ?: uuid_generate(&history);
	if (r)
		return error_set(err, r, "%s", err && err->code ? err->text : "no random numbers");
	if (env->random(env->ctx, key, sizeof(key)))
		return error_set(err, -EIO, "no random numbers from the system");
	n = store_exec(
		s, err,
		"INSERT INTO cluster (one, schema, uuid, history, name, algorithm, block_shift, "
		"replicas, min_copies, receipt_key, map_version, members_version, age_s, "
		"created_s) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1, 1, 0, ?10)",
		V_INT(META_SCHEMA_VERSION), V_UUID(&uuid), V_UUID(&history), V_TEXT(in->name),
		V_INT(in->algorithm), V_INT(in->block_shift), V_INT(in->replicas),
		V_INT(in->min_copies), V_BLOB(key, sizeof(key)), V_INT(now));
	if (n >= 0)
		n = store_exec(s, err, "INSERT INTO domains (id, name, key, created_s) VALUES "
			       "(0, 'public', ?1, ?2)", V_BLOB("", 0), V_INT(now));
	if (n >= 0)
		n = store_exec(s, err, "INSERT INTO totals (slot, nodes, blocks) VALUES (0, 0, 0)");
	for (shard = 0; n >= 0 && shard < NR_SHARDS; shard++)
		n = store_exec(s, err, "INSERT INTO shards (shard, epoch) VALUES (?1, 1)",
			       V_INT(shard));
	return n < 0 ? (int)n : 0;
}
