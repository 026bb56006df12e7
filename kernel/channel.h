/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * DOC: the channel
 *
 * One character device per cache; include/uapi/linux/dm-dedup.h is what goes over it. The
 * channel keeps the queue of upcalls, the agent's epoch, and copies and checks what is common
 * to all calls. What a call means it leaves to struct channel_ops: it knows no slots.
 *
 * Upcalls
 *
 *	state    list     goes to
 *	idle     none     queued by channel_queue(), channel_event(), channel_ask()
 *	queued   unsent   sent by read(); an event becomes idle again
 *	sent     sent     idle by channel_cancel() or REPLY; queued again, with RESEND, by HELLO
 */
#ifndef DEDUP_CHANNEL_H
#define DEDUP_CHANNEL_H

#include <linux/list.h>
#include <linux/types.h>
#include <linux/dm-dedup.h>

struct channel;

/**
 * struct upcall - a request or an event
 * @list: under channel.lock
 * @msg: what the agent gets. Its type, cookie and info are the owner's and do not change
 *       while it is queued; an event's cookie is 0.
 */
struct upcall {
	struct list_head list;
	struct dm_dedup_upcall msg;
};

/**
 * struct channel_ops - the calls, checked as far as the channel can
 *
 * All run in the agent's context, may sleep, and return 0 or a negative errno. Those with a
 * batch get its entries in kernel memory and fill in the results; what they write to @batch
 * and @entries goes back to the agent also when they return an error.
 */
struct channel_ops {
	void (*hello)(void *ctx, struct dm_dedup_hello *hello);
	int (*publish)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*map)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*fail)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*drop)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*list_cut)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*list_clean)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*list_volumes)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*commit)(void *ctx, struct dm_dedup_batch *batch, void *entries);
	int (*cut)(void *ctx, struct dm_dedup_cut *cut);
	int (*fence)(void *ctx, const struct dm_dedup_volume_call *call);
	int (*release)(void *ctx, const struct dm_dedup_volume_call *call);
};

/*
 * Creates /dev/dm-dedup/<uuid>. @first_epoch: no agent epoch that was ever given out is above
 * it. @where is set before anybody can open the device, and so before @ops are called. Returns 0 or
 * -ENOMEM, and what misc_register() returns.
 */
int channel_create(struct channel **where, const u8 *uuid, u64 first_epoch,
		   const struct channel_ops *ops, void *ctx);

/* Waits for calls that are under way; an agent that still has it open gets ENODEV. */
void channel_destroy(struct channel *ch);

/* Has an agent said HELLO, and not gone since? */
bool channel_has_agent(struct channel *ch);

/* Queues a request; it stays the channel's until channel_cancel(). Never sleeps. */
void channel_queue(struct channel *ch, struct upcall *up);

/* Takes a request or an event back, whatever its state. Never sleeps. */
void channel_cancel(struct channel *ch, struct upcall *up);

/* How many upcalls wait for the agent to read them, and how many for its answer. Never sleeps. */
void channel_count(struct channel *ch, u32 *unsent, u32 *sent);

/* Queues an event unless it is queued already, and says @info with it. Never sleeps. */
void channel_event(struct channel *ch, struct upcall *up, const struct dm_dedup_volume_info *info);

/*
 * Sends a LOOKUP or OPEN and waits for its REPLY, killably, for @timeout seconds. Returns the
 * agent's (negative) errno, -ETIMEDOUT, -EINTR, or 0 and the reply in @info.
 */
int channel_ask(struct channel *ch, u16 type, u64 cookie, struct dm_dedup_volume_info *info,
		unsigned int timeout);

static inline void upcall_init(struct upcall *up, u16 type)
{
	memset(up, 0, sizeof(*up));
	INIT_LIST_HEAD(&up->list);
	up->msg.size = sizeof(up->msg);
	up->msg.type = type;
}

#endif
