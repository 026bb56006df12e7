// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>
#include "agent/budget.h"
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
	struct budget budget;
};

struct host_filter *host_filter_new(uint64_t bytes_an_hour, uint64_t now_ns)
{
	struct host_filter *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	pthread_mutex_init(&h->lock, NULL);
	budget_init(&h->budget, bytes_an_hour, now_ns);
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

/* @len bytes may go out. */
static int pay(struct host_filter *h, uint64_t now_ns, uint64_t max, size_t len)
{
	if (max && len > max)
		return -EFBIG;
	if (len + FILTER_OVERHEAD > budget_left(&h->budget, now_ns))
		return -EDQUOT;
	budget_spend(&h->budget, len + FILTER_OVERHEAD);
	return 0;
}

static int copy_packed(const void *packed, size_t len, struct host_filter_answer *out)
{
	out->packed = malloc(len);
	if (!out->packed)
		return -ENOMEM;
	memcpy(out->packed, packed, len);
	return 0;
}

static int answer_full(struct host_filter *h, uint64_t now_ns, uint64_t max,
		       struct host_filter_answer *out)
{
	int r;

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
	out->packed_len = h->packed_len;
	r = pay(h, now_ns, max, h->packed_len);
	return r ?: copy_packed(h->packed, h->packed_len, out);
}

static int answer_added(struct host_filter *h, uint64_t now_ns, uint64_t max, size_t missing,
			struct host_filter_answer *out)
{
	int r;

	out->packed = filter_pack(missing ? h->added[h->nr_added - missing] : NULL,
				  missing * FILTER_ADDED_SIZE, &out->packed_len);
	if (!out->packed)
		return -ENOMEM;
	r = pay(h, now_ns, max, out->packed_len);
	if (r) {
		free(out->packed);
		out->packed = NULL;
	}
	return r;
}

int host_filter_answer(struct host_filter *h, uint64_t now_ns, uint64_t generation,
		       uint64_t additions, uint64_t max, struct host_filter_answer *out)
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
		r = answer_full(h, now_ns, max, out);
	} else {
		r = answer_added(h, now_ns, max, missing, out);
	}
	pthread_mutex_unlock(&h->lock);
	return r;
}
