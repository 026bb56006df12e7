// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <string.h>
#include "agent/core_impl.h"
#include "base/cleanup.h"

/* ---- traces on the wire ---- */

size_t trace_pack(const uint32_t *blocks, size_t nr, uint8_t *out, size_t room)
{
	int64_t before = 0, diff;
	size_t i, n = 0;
	uint64_t v;

	for (i = 0; i < nr && n + 10 <= room; i++) {
		diff = (int64_t)blocks[i] - before;
		before = blocks[i];
		v = ((uint64_t)diff << 1) ^ (uint64_t)(diff >> 63);
		for (; v >= 0x80; v >>= 7)
			out[n++] = (uint8_t)(v | 0x80);
		out[n++] = (uint8_t)v;
	}
	return n;
}

size_t trace_unpack(const uint8_t *in, size_t len, uint64_t nr_blocks, uint32_t *blocks, size_t max)
{
	uint64_t block = 0, v;
	size_t at = 0, n = 0;
	unsigned int shift;

	while (at < len && n < max) {
		for (v = 0, shift = 0; at < len && in[at] & 0x80 && shift < 56; shift += 7)
			v |= (uint64_t)(in[at++] & 0x7f) << shift;
		if (at == len || in[at] & 0x80)
			break;
		v |= (uint64_t)in[at++] << shift;
		block += (v >> 1) ^ (0 - (v & 1));
		if (block >= nr_blocks || block > UINT32_MAX)
			break;
		blocks[n++] = (uint32_t)block;
	}
	return n;
}

/* ---- read-ahead ---- */

static uint64_t blocks_of(const struct agent *a, const struct volume *v)
{
	return (v->size + (1ULL << a->hello.block_shift) - 1) >> a->hello.block_shift;
}

static uint32_t max_window(const struct agent *a)
{
	return MAX(PREFETCH_WINDOW_BYTES >> a->hello.block_shift, 1);
}

/* The stream that @block goes on with, else the one that was used longest ago, begun anew. */
static struct stream *stream_of(struct agent *a, struct prefetch *p, uint64_t block)
{
	struct stream *oldest = &p->streams[0], *s;
	uint64_t slack = max_window(a);
	size_t i;

	for (i = 0; i < PREFETCH_STREAMS; i++) {
		s = &p->streams[i];
		/* Guests with many reads under way ask a little out of order. */
		if (s->used && block + slack > s->last && block <= s->end)
			return s;
		if (s->used < oldest->used)
			oldest = s;
	}
	*oldest = (struct stream){ .first = block, .last = block, .end = block };
	return oldest;
}

static void record(struct prefetch *p, uint64_t block)
{
	if (!p->recording || p->nr_seen == TRACE_MAX || block > UINT32_MAX)
		return;
	if (!p->seen)
		p->seen = malloc(TRACE_MAX * sizeof(*p->seen));
	if (p->seen)
		p->seen[p->nr_seen++] = (uint32_t)block;
}

static void read_ahead(struct agent *a, struct volume *v, uint64_t block)
{
	struct prefetch *p = &v->prefetch;
	struct stream *s = stream_of(a, p, block);
	uint64_t until, run;

	s->used = ++p->uses;
	if (s->end == block && s->last == block) { /* its first */
		s->end = block + 1;
		return;
	}
	s->last = MAX(s->last, block);
	s->end = MAX(s->end, block + 1);
	/* Not further ahead than it has come: most files end soon. */
	run = MAX(s->last - s->first, PREFETCH_FIRST);
	s->window = (uint32_t)MIN(MIN(MAX(2 * s->window, PREFETCH_FIRST), run), max_window(a));
	until = MIN(s->last + 1 + s->window, blocks_of(a, v));
	while (s->end < until && fetch_ahead(a, v, s->end))
		record(p, s->end++); /* a touch that hits tells nobody: it is likely enough */
}

/* ---- recording ---- */

/* One that was replayed stays in front of what it lacked; few that it lacked change nothing. */
static void hand_over(struct agent *a, struct volume *v)
{
	struct prefetch *p = &v->prefetch;
	uint32_t *all = NULL, nr = 0;
	uint8_t *packed = NULL;

	if (p->nr_seen < TRACE_MIN || (p->nr_replay && p->nr_seen < p->nr_replay / 5))
		return;
	all = malloc(TRACE_MAX * sizeof(*all));
	packed = malloc(TRACE_MAX_BYTES);
	if (all && packed) {
		if (p->nr_replay)
			memcpy(all, p->replay, p->nr_replay * sizeof(*all));
		nr = MIN(p->nr_seen, TRACE_MAX - p->nr_replay);
		memcpy(all + p->nr_replay, p->seen, nr * sizeof(*all));
		a->ops->trace_put(a->ctx, &v->opened_root, &v->image, packed,
				  trace_pack(all, p->nr_replay + nr, packed, TRACE_MAX_BYTES));
	}
	free(all);
	free(packed);
}

static void stop_recording(struct agent *a, struct volume *v, bool keep)
{
	struct prefetch *p = &v->prefetch;

	if (!p->recording)
		return;
	p->recording = false;
	if (keep && p->asked && a->ops->trace_put)
		hand_over(a, v);
	free(p->seen);
	p->seen = NULL;
	p->nr_seen = 0;
}

/* ---- replay ---- */

void prefetch_more(struct agent *a)
{
	struct volume *v;

	LIST_FOREACH(v, &a->volumes, link) {
		struct prefetch *p = &v->prefetch;

		while (p->next_replay < p->nr_replay && a->nr_ahead < PREFETCH_REPLAY &&
		       fetch_ahead(a, v, p->replay[p->next_replay]))
			p->next_replay++;
	}
}

void agent_trace_done(struct agent *a, uint64_t id, int r, const void *blocks, size_t len)
{
	struct volume *v = job_take(a, id, JOB_TRACE);
	struct prefetch *p = v ? &v->prefetch : NULL;

	if (!v || !a->connected || !(v->flags & DM_DEDUP_VOL_OPEN) || p->replay)
		return;
	p->asked = !r; /* else nobody knows whether there is one */
	if (r || !len)
		return;
	p->replay = malloc(TRACE_MAX * sizeof(*p->replay));
	if (!p->replay)
		return;
	p->nr_replay = (uint32_t)trace_unpack(blocks, len, blocks_of(a, v), p->replay, TRACE_MAX);
	p->next_replay = 0;
	prefetch_more(a);
}

/* ---- a volume ---- */

void prefetch_opened(struct agent *a, struct volume *v, const struct fp *root)
{
	struct prefetch *p = &v->prefetch;

	prefetch_ended(a, v, false);
	v->opened_root = *root;
	p->recording = true;
	p->until_ns = agent_now(a) + TRACE_S * NSEC_PER_SEC;
	if (a->ops->trace_get && !fp_is_zero(root))
		a->ops->trace_get(a->ctx, job_start(a, &v->trace, JOB_TRACE, v), root, &v->image);
}

void prefetch_missed(struct agent *a, struct volume *v, uint64_t block)
{
	record(&v->prefetch, block);
	read_ahead(a, v, block);
}

void prefetch_ended(struct agent *a, struct volume *v, bool keep)
{
	stop_recording(a, v, keep);
	job_end(a, &v->trace);
	free(v->prefetch.replay);
	memset(&v->prefetch, 0, sizeof(v->prefetch));
}

void prefetch_tick(struct agent *a, uint64_t now)
{
	struct volume *v;

	LIST_FOREACH(v, &a->volumes, link)
		if (v->prefetch.recording && v->prefetch.until_ns <= now)
			stop_recording(a, v, true);
}

uint64_t prefetch_next_ns(struct agent *a)
{
	uint64_t next = UINT64_MAX;
	struct volume *v;

	LIST_FOREACH(v, &a->volumes, link)
		if (v->prefetch.recording && v->prefetch.until_ns < next)
			next = v->prefetch.until_ns;
	return next;
}
