// SPDX-License-Identifier: GPL-2.0-or-later
/* What comes for an upcall. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent.h"

/* A fingerprint stands in for a real one: what matters here is that it follows from the content. */
void make_fp(uint64_t hash, uint8_t fp[DM_DEDUP_FP_SIZE])
{
	memset(fp, 0, DM_DEDUP_FP_SIZE);
	memcpy(fp, &hash, sizeof(hash));
	fp[31] = 1;
}

static bool all_zero(const uint8_t *p, size_t n)
{
	return !*p && !memcmp(p, p + 1, n - 1);
}

static void answer_fail(struct agent *a, uint64_t cookie, int error)
{
	struct dm_dedup_fail f = { .cookie = cookie, .error = error };
	struct dm_dedup_batch b = {};

	batch(a, DM_DEDUP_FAIL, &b, &f, sizeof(f), 1);
}

void fill_map(const struct dm_dedup_upcall *up, struct dm_dedup_map *m)
{
	memset(m, 0, sizeof(*m));
	m->cookie = up->cookie;
	m->volume = up->info.volume;
	m->block = up->block;
	memcpy(m->root, up->info.root, sizeof(m->root));
}

static int answer_map(struct agent *a, const struct dm_dedup_upcall *up, const struct known *k)
{
	struct dm_dedup_batch b = {};
	struct dm_dedup_map m;
	int r;

	fill_map(up, &m);
	if (k) {
		m.slot = k->slot;
		m.seq = k->seq;
	} else {
		m.flags = DM_DEDUP_MAP_ZERO;
	}
	r = batch(a, DM_DEDUP_MAP, &b, &m, sizeof(m), 1);
	return r ? r : m.result;
}

void fill_publish(struct agent *a, const struct dm_dedup_upcall *up, const void *data,
		  struct dm_dedup_publish *p)
{
	memset(p, 0, sizeof(*p));
	p->cookie = up->cookie;
	p->volume = up->info.volume;
	p->block = up->block;
	p->data = (uintptr_t)data;
	p->source = a->source;
	memcpy(p->root, up->info.root, sizeof(p->root));
	make_fp(stamps_hash(data, a->block), p->fp);
}

/* PUBLISHes, and remembers where the block is then. */
static int publish(struct agent *a, struct dm_dedup_publish *p, const uint8_t *data, struct known *k)
{
	struct dm_dedup_batch b = {};
	int r = batch(a, DM_DEDUP_PUBLISH, &b, p, sizeof(*p), 1);

	if (!r && !p->result) {
		k->hash = stamps_hash(data, a->block);
		k->slot = p->slot;
		k->seq = p->seq;
	}
	return r ? r : p->result;
}

static int answer_publish(struct agent *a, const struct dm_dedup_upcall *up, const uint8_t *data,
			  struct known *k)
{
	struct dm_dedup_publish p;

	fill_publish(a, up, data, &p);
	return publish(a, &p, data, k);
}

static struct known *known_of(struct agent *a, const uint8_t *data)
{
	return &a->known[stamps_hash(data, a->block) % MAX_KNOWN];
}

/* The right answer, until it is taken or nobody waits for it any more. 0, or why not. */
static int answer_rightly(struct agent *a, const struct dm_dedup_upcall *up, const uint8_t *buf)
{
	struct known *k = known_of(a, buf);
	int r;

	if (a->use_zero && all_zero(buf, a->block))
		return answer_map(a, up, NULL);
	if (a->use_map && k->seq && k->hash == stamps_hash(buf, a->block) && !answer_map(a, up, k))
		return 0;
	for (;;) {
		r = answer_publish(a, up, buf, k);
		if (r == -EIO)
			sleep(1);
		else if (r != -ENOSPC && r != -ENOMEM)
			return r;
	}
}

static void answer_fetch(struct agent *a, const struct dm_dedup_upcall *up)
{
	struct image *im = image_by_uuid(a, up->info.image);
	uint8_t *buf = malloc(a->block);

	step(a, "fetch");
	if (!im || !buf || image_read_root(im, up->info.root, up->block, a->block, buf)) {
		answer_fail(a, up->cookie, EIO);
		goto out;
	}
	if (a->faults)
		wrong_answers(a, up, buf);
	answer_rightly(a, up, buf);
	if (a->faults)
		late_answers(a, up, buf);
	step(a, "publish");
out:
	free(buf);
}

static int warm_block(struct agent *a, const struct image *im, uint64_t block, uint8_t *buf)
{
	struct dm_dedup_publish p = { .data = (uintptr_t)buf, .source = DM_DEDUP_SOURCE_PEER };
	int r = image_read(im, block, a->block, buf);

	if (r)
		return r;
	make_fp(stamps_hash(buf, a->block), p.fp);
	do
		r = publish(a, &p, buf, known_of(a, buf));
	while (r == -ENOSPC || r == -ENOMEM);
	step(a, "warm");
	return r;
}

/* PUBLISHes the blocks of an image that no volume may have: from FIRST on, COUNT of them. */
int cmd_warm(struct agent *a, char **argv)
{
	uint64_t first = strtoull(argv[1], NULL, 0), n = strtoull(argv[2], NULL, 0);
	struct image *im = image_by_name(a, argv[0]);
	uint8_t *buf = malloc(a->block);
	int r = im && buf ? 0 : -ENOENT;

	for (uint64_t i = 0; !r && i < n; i++)
		r = warm_block(a, im, first + i, buf);
	free(buf);
	return r;
}

static void answer_lookup(struct agent *a, const struct dm_dedup_upcall *up, struct image *im)
{
	struct dm_dedup_reply *rep = calloc(1, sizeof(*rep));

	rep->size = sizeof(*rep);
	rep->agent_epoch = a->hello.agent_epoch;
	rep->cookie = up->cookie;
	if (!im) {
		rep->error = ENOENT;
	} else if (up->type == DM_DEDUP_UP_OPEN && im->error) {
		rep->error = im->error;
	} else {
		image_uuid(im, rep->info.image);
		image_resize(im);
		rep->info.size = im->size;
		if (up->type == DM_DEDUP_UP_OPEN) {
			memset(rep->info.image, 0, sizeof(rep->info.image));
			image_root(im, im->version, rep->info.root);
			rep->info.lease_epoch = im->epoch;
			rep->info.committed_cut = im->cut;
		}
	}
	call(a, DM_DEDUP_REPLY, rep);
	free(rep);
}

static void answer(struct agent *a, const struct dm_dedup_upcall *up)
{
	switch (up->type) {
	case DM_DEDUP_UP_LOOKUP:
		step(a, "lookup");
		answer_lookup(a, up, image_by_name(a, up->info.name));
		break;
	case DM_DEDUP_UP_OPEN:
		step(a, "open");
		answer_lookup(a, up, image_by_uuid(a, up->info.image));
		break;
	case DM_DEDUP_UP_FETCH:
		answer_fetch(a, up);
		break;
	default:
		break;
	}
}

void handle_upcall(struct agent *a, const struct dm_dedup_upcall *up)
{
	bool hold = (a->hold && up->type == DM_DEDUP_UP_FETCH) ||
		    (a->hold_open && up->type == DM_DEDUP_UP_OPEN);

	if (hold && a->nr_held < MAX_HELD)
		a->held[a->nr_held++] = *up;
	else
		answer(a, up);
}

/* Those that came last go first where faults are wanted. */
void answer_held(struct agent *a, int error)
{
	int n = a->nr_held;

	for (int i = 0; i < n; i++) {
		const struct dm_dedup_upcall *up = &a->held[a->faults ? n - 1 - i : i];

		if (error && up->type == DM_DEDUP_UP_FETCH)
			answer_fail(a, up->cookie, error);
		else
			answer(a, up);
	}
	a->nr_held = 0;
	a->hold = a->hold_open = false;
}
