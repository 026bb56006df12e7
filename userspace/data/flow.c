// SPDX-License-Identifier: GPL-2.0-or-later
/* Blocks on their way out are counted until ZeroMQ has sent them. */
#include <errno.h>
#include <stdlib.h>

#include "data/server_priv.h"

struct sent {
	struct flow *flow;
	struct block_buf *buf;
};

struct flow *flow_new(void (*below)(void *arg), void *arg)
{
	struct flow *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	atomic_init(&f->refs, 1);
	pthread_mutex_init(&f->lock, NULL);
	f->below = below;
	f->arg = arg;
	return f;
}

static void flow_put(struct flow *f)
{
	if (atomic_fetch_sub(&f->refs, 1) != 1)
		return;
	pthread_mutex_destroy(&f->lock);
	free(f);
}

void flow_end(struct flow *f)
{
	if (!f)
		return;
	pthread_mutex_lock(&f->lock);
	f->below = NULL;
	pthread_mutex_unlock(&f->lock);
	flow_put(f);
}

bool flow_is_full(struct flow *f)
{
	return atomic_load(&f->bytes) >= MAX_BYTES_OUT;
}

/* On any thread, ZeroMQ's too. */
static void frame_sent(void *data, void *hint)
{
	struct sent *sent = hint;
	struct flow *f = sent->flow;
	size_t len = sent->buf->len;
	size_t before = atomic_fetch_sub(&f->bytes, len);

	if (before >= MAX_BYTES_OUT && before - len < MAX_BYTES_OUT) {
		pthread_mutex_lock(&f->lock);
		if (f->below)
			f->below(f->arg);
		pthread_mutex_unlock(&f->lock);
	}
	block_buf_put(sent->buf);
	free(sent);
	flow_put(f);
}

int flow_frame(struct flow *f, struct block_buf *buf, struct net_frame *frame)
{
	struct sent *sent = malloc(sizeof(*sent));

	if (!sent) {
		block_buf_put(buf);
		return -ENOMEM;
	}
	*sent = (struct sent){ f, buf };
	atomic_fetch_add(&f->refs, 1);
	atomic_fetch_add(&f->bytes, buf->len);
	*frame = (struct net_frame){
		.data = buf->data + buf->offset, .len = buf->len,
		.free_fn = frame_sent, .hint = sent,
	};
	return 0;
}
