// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/serving.h"

/* What is on its way out. Outlives the server: ZeroMQ may hold frames for longer. */
struct uploads {
	atomic_uint refs;
	_Atomic uint64_t bytes;
	struct {
		char who[160]; /* the asking thread's */
		atomic_uint blocks;
	} peers[UPLOAD_PEERS];
};

struct sent {
	struct uploads *uploads;
	unsigned int peer;
	size_t len;
};

struct serving {
	struct uploads *uploads;
	struct redirect *redirect;
};

static void uploads_put(struct uploads *u)
{
	if (atomic_fetch_sub(&u->refs, 1) == 1)
		free(u);
}

void serving_sent(struct sent *sent)
{
	atomic_fetch_sub(&sent->uploads->bytes, sent->len);
	atomic_fetch_sub(&sent->uploads->peers[sent->peer].blocks, 1);
	uploads_put(sent->uploads);
	free(sent);
}

/* The place of @who, or -1: too many are being served. */
static int place_of(struct uploads *u, const char *who)
{
	int i, free_place = -1;

	for (i = 0; i < UPLOAD_PEERS; i++) {
		bool busy = atomic_load(&u->peers[i].blocks);

		if (busy && !strncmp(u->peers[i].who, who, sizeof(u->peers[i].who) - 1))
			return i;
		if (!busy && free_place < 0)
			free_place = i;
	}
	if (free_place >= 0)
		snprintf(u->peers[free_place].who, sizeof(u->peers[0].who), "%s", who);
	return free_place;
}

/* NULL: more than its share, or than anybody's. */
static struct sent *admit(struct uploads *u, const char *who, size_t len)
{
	struct sent *sent;
	int place = place_of(u, who);

	if (place < 0 || atomic_load(&u->peers[place].blocks) >= UPLOAD_BLOCKS ||
	    atomic_load(&u->bytes) >= UPLOAD_BYTES)
		return NULL;
	sent = malloc(sizeof(*sent));
	if (!sent)
		return NULL;
	*sent = (struct sent){ u, (unsigned int)place, len };
	atomic_fetch_add(&u->refs, 1);
	atomic_fetch_add(&u->bytes, len);
	atomic_fetch_add(&u->peers[place].blocks, 1);
	return sent;
}

int serving_ask(struct serving *s, const char *who, const struct peer_address *from,
		const struct fp *fp, size_t len, uint64_t now_ns, struct sent **sent,
		const struct peer_address *names[REDIRECT_NAMES], size_t *nr)
{
	*nr = 0;
	*sent = admit(s->uploads, who, len);
	if (*sent)
		return 0;
	if (from)
		*nr = redirect_names(s->redirect, fp, from, now_ns, names);
	return *nr ? -EREMOTE : -EBUSY;
}

void serving_handed(struct serving *s, const struct peer_address *from, const struct fp *fp,
		    uint64_t now_ns)
{
	redirect_handed(s->redirect, fp, from, now_ns);
}

int serving_find(struct agent *a, const struct fp *fp, uint64_t *slot, uint64_t *seq,
		 const void **data, size_t *len)
{
	*data = NULL;
	if (agent_find_slot(a, fp, slot, seq))
		return 0;
	if (!agent_is_getting(a, fp, data, len))
		return -ENOENT;
	/* It has come, and matched, and is just being written; or it has yet to come. */
	return *data ? 0 : -EINPROGRESS;
}

struct serving *serving_new(size_t blocks)
{
	struct serving *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->uploads = calloc(1, sizeof(*s->uploads));
	s->redirect = redirect_new(blocks);
	if (s->uploads)
		atomic_init(&s->uploads->refs, 1);
	if (!s->uploads || !s->redirect) {
		serving_free(s);
		return NULL;
	}
	return s;
}

void serving_free(struct serving *s)
{
	if (!s)
		return;
	if (s->uploads)
		uploads_put(s->uploads);
	redirect_free(s->redirect);
	free(s);
}
