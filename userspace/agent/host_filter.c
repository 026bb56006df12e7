// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>
#include "agent/host_filter.h"

struct host_filter {
	pthread_mutex_t lock; /* guards all below */
	uint64_t generation;  /* 0: none yet */
	unsigned int shift;
	uint8_t *bits;
	bool beginning;
	uint8_t (*added)[FILTER_ADDED_SIZE];
	size_t nr_added, room;
	uint64_t blocks, max_blocks;
	/* the full filter as it was packed last, with so many of the additions in it */
	void *packed;
	size_t packed_len, packed_added;
};

struct host_filter *host_filter_new(void)
{
	struct host_filter *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	pthread_mutex_init(&h->lock, NULL);
	/* Another life's generations must not be taken for ours. */
	if (getrandom(&h->generation, sizeof(h->generation), 0) != sizeof(h->generation))
		h->generation = 1;
	h->generation = (h->generation & UINT32_MAX) << 24;
	h->beginning = true;
	return h;
}

void host_filter_free(struct host_filter *h)
{
	if (!h)
		return;
	pthread_mutex_destroy(&h->lock);
	free(h->bits);
	free(h->added);
	free(h->packed);
	free(h);
}

int host_filter_begin(struct host_filter *h, uint64_t blocks)
{
	uint64_t most = blocks + blocks / 2 + 64;
	unsigned int shift = filter_shift_for(most);
	uint8_t *bits = calloc(1, (size_t)1 << (shift - 3));

	if (!bits)
		return -ENOMEM;
	pthread_mutex_lock(&h->lock);
	free(h->bits);
	free(h->packed);
	h->bits = bits;
	h->packed = NULL;
	h->shift = shift;
	h->generation++;
	h->nr_added = 0;
	h->blocks = 0;
	h->max_blocks = most;
	h->beginning = true;
	pthread_mutex_unlock(&h->lock);
	return 0;
}

void host_filter_put(struct host_filter *h, const struct fp *fp)
{
	pthread_mutex_lock(&h->lock);
	if (h->bits) {
		filter_set(h->bits, h->shift, FILTER_HASHES, fp->b);
		h->blocks++;
	}
	pthread_mutex_unlock(&h->lock);
}

void host_filter_end(struct host_filter *h)
{
	pthread_mutex_lock(&h->lock);
	h->beginning = false;
	pthread_mutex_unlock(&h->lock);
}

static bool log_addition(struct host_filter *h, const struct fp *fp)
{
	void *more;

	if (h->nr_added == HOST_FILTER_MAX_ADDED)
		return false;
	if (h->nr_added == h->room) {
		h->room = h->room ? 2 * h->room : 256;
		more = realloc(h->added, h->room * sizeof(*h->added));
		if (!more) {
			h->room = h->nr_added;
			return false;
		}
		h->added = more;
	}
	memcpy(h->added[h->nr_added++], fp->b, FILTER_ADDED_SIZE);
	return true;
}

bool host_filter_add(struct host_filter *h, const struct fp *fp)
{
	bool ok = true;

	pthread_mutex_lock(&h->lock);
	/* One that is in it already tells nobody anything. */
	if (!h->bits)
		ok = false;
	else if (!filter_has(h->bits, h->shift, FILTER_HASHES, fp->b)) {
		ok = h->blocks < h->max_blocks && log_addition(h, fp);
		if (ok) {
			filter_set(h->bits, h->shift, FILTER_HASHES, fp->b);
			h->blocks++;
		}
	}
	pthread_mutex_unlock(&h->lock);
	return ok;
}

static int copy_packed(const void *packed, size_t len, struct host_filter_answer *out)
{
	out->packed = malloc(len);
	if (!out->packed)
		return -ENOMEM;
	memcpy(out->packed, packed, len);
	out->packed_len = len;
	return 0;
}

static int answer_full(struct host_filter *h, struct host_filter_answer *out)
{
	/* Packed anew when what it lacks would be a good part of it. */
	if (h->packed && (h->nr_added - h->packed_added) * FILTER_ADDED_SIZE > h->packed_len / 4) {
		free(h->packed);
		h->packed = NULL;
	}
	if (!h->packed) {
		h->packed = filter_pack(h->bits, (size_t)1 << (h->shift - 3), &h->packed_len);
		h->packed_added = h->nr_added;
	}
	if (!h->packed)
		return -ENOMEM;
	out->full = true;
	out->additions = h->packed_added;
	return copy_packed(h->packed, h->packed_len, out);
}

int host_filter_answer(struct host_filter *h, uint64_t generation, uint64_t additions,
		       struct host_filter_answer *out)
{
	size_t missing;
	int r = 0;

	memset(out, 0, sizeof(*out));
	pthread_mutex_lock(&h->lock);
	missing = additions <= h->nr_added ? h->nr_added - (size_t)additions : 0;
	out->generation = h->generation;
	out->shift = h->shift;
	out->additions = h->nr_added;
	out->blocks = h->blocks;
	if (!h->bits || h->beginning) {
		r = -EAGAIN;
	} else if (generation != h->generation || additions > h->nr_added ||
		   missing * FILTER_ADDED_SIZE > (size_t)1 << (h->shift - 3)) {
		r = answer_full(h, out);
	} else {
		out->packed = filter_pack(missing ? h->added[additions] : NULL,
					  missing * FILTER_ADDED_SIZE,
					  &out->packed_len);
		r = out->packed ? 0 : -ENOMEM;
	}
	pthread_mutex_unlock(&h->lock);
	return r;
}
