// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/serving.h"
#include "base/cleanup.h"

#define REDIRECT_PEERS 1024
#define PACE_NS	       20000000ULL /* the least that a pace is measured for */
#define NSEC_PER_SEC   1000000000ULL

/* What is on its way out. Outlives the server: ZeroMQ may hold frames for longer. */
struct uploads {
	atomic_uint refs;
	_Atomic uint64_t bytes, gone; /* on their way, and no more */
	atomic_bool dry;	      /* there was nothing on its way for a while */
	atomic_uint blocks[UPLOAD_PEERS];
	pthread_mutex_t lock; /* guards the rest */
	uint64_t pace;	      /* bytes a second, while there is something to send; 0: not known */
	uint64_t since_ns, gone_then;
	int nr_used; /* no place beyond was ever used */
	uint32_t hashes[UPLOAD_PEERS];
	char who[UPLOAD_PEERS][160];
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
	if (atomic_fetch_sub(&u->refs, 1) != 1)
		return;
	pthread_mutex_destroy(&u->lock);
	free(u);
}

void serving_cancel(struct sent *sent)
{
	if (atomic_fetch_sub(&sent->uploads->bytes, sent->len) == sent->len)
		atomic_store(&sent->uploads->dry, true);
	atomic_fetch_sub(&sent->uploads->blocks[sent->peer], 1);
	uploads_put(sent->uploads);
	free(sent);
}

void serving_sent(struct sent *sent)
{
	atomic_fetch_add(&sent->uploads->gone, sent->len);
	serving_cancel(sent);
}

/* The place of @who, or -1: too many are being served. */
static int place_of(struct uploads *u, const char *who)
{
	uint32_t hash = text_hash(who);
	int i, place = -1;

	for (i = 0; i < u->nr_used; i++) {
		bool busy = atomic_load(&u->blocks[i]);

		if (busy && u->hashes[i] == hash && !strncmp(u->who[i], who, sizeof(u->who[0]) - 1))
			return i;
		if (!busy && place < 0)
			place = i;
	}
	if (place < 0 && u->nr_used < UPLOAD_PEERS)
		place = u->nr_used++;
	if (place >= 0) {
		u->hashes[place] = hash;
		snprintf(u->who[place], sizeof(u->who[0]), "%s", who);
	}
	return place;
}

static void measure_pace(struct uploads *u, uint64_t now_ns)
{
	uint64_t gone = atomic_load(&u->gone), took, pace;

	if (now_ns < u->since_ns) /* another thread has been faster */
		return;
	took = now_ns - u->since_ns;
	if (!atomic_exchange(&u->dry, false)) {
		if (took < PACE_NS)
			return;
		pace = (gone - u->gone_then) * NSEC_PER_SEC / took;
		u->pace = u->pace ? (3 * u->pace + pace) / 4 : pace;
	}
	u->since_ns = now_ns;
	u->gone_then = gone;
}

static uint64_t room(const struct uploads *u)
{
	uint64_t most = u->pace / (NSEC_PER_SEC / UPLOAD_NS);

	return u->pace ? MIN(MAX(most, UPLOAD_LEAST), UPLOAD_BYTES) : UPLOAD_FIRST;
}

/* NULL: more than its share, or than anybody's. */
static struct sent *admit(struct uploads *u, const char *who, size_t len, uint64_t now_ns)
{
	struct sent *sent;
	int place = place_of(u, who);

	measure_pace(u, now_ns);
	if (place < 0 || atomic_load(&u->blocks[place]) >= UPLOAD_BLOCKS ||
	    atomic_load(&u->bytes) >= room(u))
		return NULL;
	sent = malloc(sizeof(*sent));
	if (!sent)
		return NULL;
	*sent = (struct sent){ u, (unsigned int)place, len };
	atomic_fetch_add(&u->refs, 1);
	atomic_fetch_add(&u->bytes, len);
	atomic_fetch_add(&u->blocks[place], 1);
	return sent;
}

struct sent *serving_admit(struct serving *s, const char *who, size_t len, uint64_t now_ns)
{
	struct sent *sent;

	pthread_mutex_lock(&s->uploads->lock);
	sent = admit(s->uploads, who, len, now_ns);
	pthread_mutex_unlock(&s->uploads->lock);
	return sent;
}

void serving_busy(struct serving *s, const struct peer_address *from, const struct fp *fp,
		  uint64_t now_ns, const struct peer_address *names[REDIRECT_NAMES], size_t *nr)
{
	*nr = from ? redirect_names(s->redirect, fp, from, now_ns, names) : 0;
}

int serving_ask(struct serving *s, const char *who, const struct peer_address *from,
		const struct fp *fp, size_t len, uint64_t now_ns, struct sent **sent,
		const struct peer_address *names[REDIRECT_NAMES], size_t *nr)
{
	*nr = 0;
	*sent = serving_admit(s, who, len, now_ns);
	if (*sent)
		return 0;
	serving_busy(s, from, fp, now_ns, names, nr);
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
	s->redirect = redirect_new(blocks, REDIRECT_PEERS);
	if (s->uploads) {
		atomic_init(&s->uploads->refs, 1);
		atomic_init(&s->uploads->dry, true);
		pthread_mutex_init(&s->uploads->lock, NULL);
	}
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
