// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "net/calls.h"

void calls_init(struct calls *t)
{
	memset(t, 0, sizeof(*t));
	TAILQ_INIT(&t->waiting);
	TAILQ_INIT(&t->held);
	TAILQ_INIT(&t->sent);
	TAILQ_INIT(&t->failed);
	t->next_deadline = UINT64_MAX;
}

static struct call_list *list_of(struct calls *t, enum call_state state)
{
	switch (state) {
	case CALL_WAITING:
		return &t->waiting;
	case CALL_HELD:
		return &t->held;
	case CALL_SENT:
		return &t->sent;
	default:
		return &t->failed;
	}
}

void calls_move(struct calls *t, struct call *call, enum call_state state)
{
	TAILQ_REMOVE(list_of(t, call->state), call, link);
	call->state = state;
	TAILQ_INSERT_TAIL(list_of(t, state), call, link);
}

struct call *calls_find(struct calls *t, uint64_t id)
{
	struct call *call = t->buckets[id % CALL_BUCKETS];

	while (call && call->id != id)
		call = call->next_in_bucket;
	return call;
}

void calls_insert(struct calls *t, struct call *call)
{
	struct call **bucket = &t->buckets[call->id % CALL_BUCKETS];

	call->next_in_bucket = *bucket;
	*bucket = call;
	TAILQ_INSERT_TAIL(list_of(t, call->state), call, link);
	t->pending++;
	if (call->deadline < t->next_deadline)
		t->next_deadline = call->deadline;
}

static void call_free(struct call *call)
{
	for (size_t i = 0; i < call->nr; i++)
		zmq_msg_close(&call->msgs[i]);
	free(call);
}

void calls_end(struct calls *t, struct call *call, int r, struct net_reply *reply)
{
	struct call **p = &t->buckets[call->id % CALL_BUCKETS];
	net_done_fn done = call->done;
	void *arg = call->arg;

	while (*p != call)
		p = &(*p)->next_in_bucket;
	*p = call->next_in_bucket;
	TAILQ_REMOVE(list_of(t, call->state), call, link);
	t->pending--;
	call_free(call);
	done(arg, r, reply);
}

void calls_fail_all(struct calls *t, int r)
{
	struct call *call;

	while ((call = TAILQ_FIRST(&t->sent)) || (call = TAILQ_FIRST(&t->held)) ||
	       (call = TAILQ_FIRST(&t->waiting))) {
		call->result = r;
		calls_move(t, call, CALL_FAILED);
	}
}

void calls_send_again(struct calls *t)
{
	struct call *call;

	TAILQ_CONCAT(&t->sent, &t->held, link);
	TAILQ_FOREACH(call, &t->sent, link)
		call->state = CALL_WAITING;
	TAILQ_CONCAT(&t->sent, &t->waiting, link);
	TAILQ_CONCAT(&t->waiting, &t->sent, link);
}

/* A timeout makes us look at all calls, once, and find the next. */
void calls_expire(struct calls *t, uint64_t now)
{
	struct call_list *lists[] = { &t->waiting, &t->held, &t->sent };
	struct call *call, *next;

	if (now < t->next_deadline)
		return;
	t->next_deadline = UINT64_MAX;
	for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
		struct call_list *list = lists[i];

		for (call = TAILQ_FIRST(list); call; call = next) {
			next = TAILQ_NEXT(call, link);
			if (call->deadline <= now) {
				call->result = -ETIMEDOUT;
				calls_move(t, call, CALL_FAILED);
			} else if (call->deadline < t->next_deadline) {
				t->next_deadline = call->deadline;
			}
		}
	}
}
