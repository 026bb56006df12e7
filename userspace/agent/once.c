// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent/once.h"

static struct once_entry *find(struct once *o, uint64_t nonce)
{
	size_t i;

	for (i = 0; nonce && i < ONCE_MAX; i++)
		if (o->entries[i].nonce == nonce)
			return &o->entries[i];
	return NULL;
}

static void send_answer(struct net_request *req, const struct once_entry *e)
{
	Vmdedup__Reply *reply = NULL;

	if (e->answer)
		reply = vmdedup__reply__unpack(NULL, e->answer_len, e->answer);
	if (!reply) {
		net_reply_error(req, ENOMEM, "out of memory");
		return;
	}
	net_reply_send(req, reply, NULL, 0);
	vmdedup__reply__free_unpacked(reply, NULL);
}

/* The oldest that is done makes room; with all under way the request is not remembered. */
static void remember(struct once *o, uint64_t nonce)
{
	size_t i;

	for (i = 0; i < ONCE_MAX; i++) {
		struct once_entry *e = &o->entries[(o->next + i) % ONCE_MAX];

		if (e->nonce && !e->done)
			continue;
		free(e->answer);
		memset(e, 0, sizeof(*e));
		e->nonce = nonce;
		o->next = (o->next + i + 1) % ONCE_MAX;
		return;
	}
}

bool once_is_repeat(struct once *o, uint64_t nonce, struct net_request *req)
{
	struct once_entry *e = find(o, nonce);

	if (!e) {
		if (nonce)
			remember(o, nonce);
		return false;
	}
	if (e->done)
		send_answer(req, e);
	else if (e->nr_repeats < ONCE_REPEATS)
		e->repeats[e->nr_repeats++] = req;
	else
		net_reply_error(req, EBUSY, "the same request is under way already");
	return true;
}

void once_reply(struct once *o, uint64_t nonce, struct net_request *req, Vmdedup__Reply *reply)
{
	struct once_entry *e = find(o, nonce);
	size_t i;

	if (e) {
		e->answer_len = vmdedup__reply__get_packed_size(reply);
		e->answer = malloc(e->answer_len ? e->answer_len : 1);
		if (e->answer)
			vmdedup__reply__pack(reply, e->answer);
		e->done = true;
		for (i = 0; i < e->nr_repeats; i++)
			send_answer(e->repeats[i], e);
		e->nr_repeats = 0;
	}
	net_reply_send(req, reply, NULL, 0);
}

void once_free(struct once *o)
{
	size_t i;

	for (i = 0; i < ONCE_MAX; i++)
		free(o->entries[i].answer);
	memset(o, 0, sizeof(*o));
}
