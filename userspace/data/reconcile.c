// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One shard, compared with a current replica: what is missing here is fetched, what is stamped lower
 * is stamped anew. What is here and not there stays: it may be on its way.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "data/repair.h"

#define FETCH_BYTES (8U << 20)

struct shard_round {
	struct repair *rp;
	struct source *src;
	uint16_t shard;
	uint32_t domain;
	uint64_t epoch; /* that this shard stamps at least */
	size_t damaged; /* there, of all domains */
	/* what is here, in order, a page at a time */
	size_t at, nr;
	bool more;
	struct fp after;
	bool has_after;
	/* of one page of theirs */
	uint8_t missing[LIST_PAGE * FP_SIZE], older[LIST_PAGE * FP_SIZE];
	size_t nr_missing, nr_older;
};

static int ops_run(struct shard_round *sr, enum job_kind kind, enum bstore_op_kind op,
		   const uint8_t *fps, size_t nr, uint64_t epoch)
{
	struct job *job = server_job_new(sr->rp->s, kind, nr);
	int r;

	if (!job)
		return -ENOMEM;
	job->domain = sr->domain;
	for (size_t i = 0; i < nr; i++) {
		job->ops[i].kind = op;
		job->ops[i].domain = sr->domain;
		job->ops[i].shard = sr->shard;
		job->ops[i].epoch = epoch;
		if (fps)
			memcpy(job->ops[i].fp.b, fps + i * FP_SIZE, FP_SIZE);
	}
	server_submit_wait(sr->rp->s, job);
	r = job->r;
	for (size_t i = 0; !r && i < nr; i++)
		r = job->ops[i].r;
	job_free(job);
	return r;
}

/* ---- what is here ---- */

static int mine_fill(struct shard_round *sr)
{
	int n = bstore_list(sr->rp->s->store, sr->shard, sr->domain,
			    sr->has_after ? &sr->after : NULL, sr->rp->mine, LIST_PAGE, &sr->more);

	if (n < 0)
		return n;
	sr->at = 0;
	sr->nr = (size_t)n;
	if (n) {
		sr->after = sr->rp->mine[n - 1].fp;
		sr->has_after = true;
	}
	return 0;
}

/* The row of @fp here, or NULL. Called with ascending fingerprints. */
static int mine_find(struct shard_round *sr, const uint8_t *fp, const struct bstore_listed **row)
{
	*row = NULL;
	for (;;) {
		int order, r;

		if (sr->at == sr->nr) {
			if (!sr->more)
				return 0;
			r = mine_fill(sr);
			if (r)
				return r;
			continue;
		}
		order = memcmp(sr->rp->mine[sr->at].fp.b, fp, FP_SIZE);
		if (order > 0)
			return 0;
		if (!order) {
			*row = &sr->rp->mine[sr->at];
			return 0;
		}
		sr->at++;
	}
}

/* ---- a page of theirs ---- */

static int compare(struct shard_round *sr, const Vmdedup__ShardListReply *page)
{
	size_t n = page->fingerprints.len / FP_SIZE;
	int r = 0;

	sr->nr_missing = sr->nr_older = 0;
	for (size_t i = 0; !r && i < n; i++) {
		const uint8_t *fp = page->fingerprints.data + i * FP_SIZE;
		const struct bstore_listed *row;

		r = mine_find(sr, fp, &row);
		if (r || (row && !row->bad && row->epoch >= page->epochs[i]))
			continue;
		if (!row || row->bad)
			memcpy(sr->missing + sr->nr_missing++ * FP_SIZE, fp, FP_SIZE);
		else
			memcpy(sr->older + sr->nr_older++ * FP_SIZE, fp, FP_SIZE);
	}
	return r;
}

/* What is stored from here on is stamped with their epoch or a later one. */
static int raise_epoch(struct shard_round *sr, const Vmdedup__ShardListReply *page)
{
	uint64_t epoch = sr->epoch;
	int r;

	for (size_t i = 0; i < page->n_epochs; i++)
		epoch = MAX(epoch, page->epochs[i]);
	if (epoch == sr->epoch)
		return 0;
	r = ops_run(sr, JOB_EPOCH, STORE_EPOCH, NULL, 1, epoch);
	if (!r)
		sr->epoch = epoch;
	return r;
}

static void note_left(struct shard_round *sr, size_t left)
{
	pthread_mutex_lock(&sr->rp->s->lock);
	sr->rp->s->repair.left_blocks = left;
	pthread_mutex_unlock(&sr->rp->s->lock);
}

static int fetch_missing(struct shard_round *sr)
{
	size_t max = MIN(MAX(FETCH_BYTES / sr->rp->t->block_size, 1), (size_t)PROTO_MAX_BLOCKS);
	int r = 0;

	for (size_t i = 0; !r && i < sr->nr_missing; i += max) {
		struct fetched got = { 0 };

		note_left(sr, sr->nr_missing - i);
		r = repair_fetch(sr->rp, sr->src, sr->domain, sr->missing + i * FP_SIZE,
				 MIN(max, sr->nr_missing - i), &got);
		/* Absent: deleted there since. Damaged there: it may heal itself, then again; the
		 * others do not wait for that, for it may be the only one that has them. */
		sr->damaged += got.damaged;
	}
	note_left(sr, 0);
	return r;
}

static int take_page(struct shard_round *sr, const Vmdedup__ShardListReply *page)
{
	int r = compare(sr, page) ?: raise_epoch(sr, page) ?: fetch_missing(sr);

	if (!r && sr->nr_older)
		r = ops_run(sr, JOB_TOUCH, STORE_TOUCH, sr->older, sr->nr_older, 0);
	return r == -ENOENT ? -EAGAIN : r; /* deleted here in between: compare again */
}

static int reconcile_domain(struct shard_round *sr)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ShardList ask = VMDEDUP__SHARD_LIST__INIT;
	uint8_t after[FP_SIZE];
	struct net_reply reply;
	bool more = true;
	int r = mine_fill(sr);

	ask.shard = sr->shard;
	ask.domain = sr->domain;
	ask.disk = (ProtobufCBinaryData){ sizeof(sr->src->disk), sr->src->disk };
	req.body_case = VMDEDUP__REQUEST__BODY_SHARD_LIST;
	req.shard_list = &ask;
	while (!r && more) {
		const Vmdedup__ShardListReply *page;
		size_t n;

		r = repair_call(sr->rp, &sr->src->client, &req, &reply);
		page = r ? NULL : reply.header->shard_list;
		if (!r && (reply.header->body_case != VMDEDUP__REPLY__BODY_SHARD_LIST ||
			   page->fingerprints.len % FP_SIZE ||
			   page->fingerprints.len / FP_SIZE != page->n_epochs ||
			   page->n_epochs > LIST_PAGE))
			r = -EPROTO;
		n = r ? 0 : page->n_epochs;
		more = n && page->more;
		if (n) {
			memcpy(after, page->fingerprints.data + (n - 1) * FP_SIZE, FP_SIZE);
			ask.after = (ProtobufCBinaryData){ FP_SIZE, after };
			r = take_page(sr, page);
		}
		net_reply_free(&reply);
	}
	return r;
}

int reconcile_shard(struct repair *rp, uint16_t shard, struct source *src)
{
	const Vmdedup__ServerJoinReply *join = rp->t->reply;
	struct shard_round *sr CLEANUP_FREE = calloc(1, sizeof(*sr));
	int r = sr ? 0 : -ENOMEM;

	for (size_t i = 0; !r && i < join->n_domains; i++) {
		*sr = (struct shard_round){ .rp = rp, .src = src, .shard = shard,
					    .domain = join->domains[i]->id, .epoch = sr->epoch,
					    .damaged = sr->damaged };
		r = reconcile_domain(sr);
	}
	if (!r && sr->damaged)
		r = -EIO;
	return r;
}
