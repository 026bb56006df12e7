// SPDX-License-Identifier: GPL-2.0-only
#include <linux/completion.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/uuid.h>
#include <linux/wait.h>
#include "channel.h"

/*
 * struct channel - see channel.h
 * @ref: the cache's, and one of the file that the agent has open
 * @gone_lock: held for reading by every call; @ops and @ctx are valid under it while !@gone
 * @lock: what follows; never held over a copy
 * @busy: an agent has it open
 * @epoch: of the last HELLO
 * @agent: an agent has said HELLO and has not gone
 */
struct channel {
	struct kref ref;
	struct miscdevice misc;
	char name[16 + UUID_STRING_LEN + 1];
	char nodename[16 + UUID_STRING_LEN + 1];

	struct rw_semaphore gone_lock;
	bool gone;
	const struct channel_ops *ops;
	void *ctx;

	spinlock_t lock;
	struct list_head unsent;
	struct list_head sent;
	u64 epoch;
	bool busy;
	bool agent;
	wait_queue_head_t wait;
};

struct request {
	struct upcall up;
	struct completion done;
	int error;
	struct dm_dedup_volume_info info;
};

static void channel_release_ref(struct kref *ref)
{
	kfree(container_of(ref, struct channel, ref));
}

/* ---- for the kernel's side ---- */

bool channel_has_agent(struct channel *ch)
{
	return READ_ONCE(ch->agent);
}

static void channel_add(struct channel *ch, struct upcall *up)
{
	lockdep_assert_held(&ch->lock);
	list_add_tail(&up->list, &ch->unsent);
	wake_up_interruptible(&ch->wait);
}

void channel_queue(struct channel *ch, struct upcall *up)
{
	spin_lock(&ch->lock);
	channel_add(ch, up);
	spin_unlock(&ch->lock);
}

void channel_cancel(struct channel *ch, struct upcall *up)
{
	spin_lock(&ch->lock);
	list_del_init(&up->list);
	spin_unlock(&ch->lock);
}

void channel_count(struct channel *ch, u32 *unsent, u32 *sent)
{
	struct upcall *up;

	*unsent = 0;
	*sent = 0;
	spin_lock(&ch->lock);
	list_for_each_entry(up, &ch->unsent, list)
		(*unsent)++;
	list_for_each_entry(up, &ch->sent, list)
		(*sent)++;
	spin_unlock(&ch->lock);
}

void channel_event(struct channel *ch, struct upcall *up, const struct dm_dedup_volume_info *info)
{
	spin_lock(&ch->lock);
	up->msg.info = *info;
	if (list_empty(&up->list))
		channel_add(ch, up);
	spin_unlock(&ch->lock);
}

int channel_ask(struct channel *ch, u16 type, u64 cookie, struct dm_dedup_volume_info *info,
		unsigned int timeout)
{
	struct request *req = kzalloc(sizeof(*req), GFP_KERNEL);
	long left;
	int r;

	if (!req)
		return -ENOMEM;
	upcall_init(&req->up, type);
	req->up.msg.cookie = cookie;
	req->up.msg.info = *info;
	init_completion(&req->done);
	channel_queue(ch, &req->up);

	left = wait_for_completion_killable_timeout(&req->done, (unsigned long)timeout * HZ);
	channel_cancel(ch, &req->up);
	/* Off the lists now; an answer that came in between counts. */
	if (left > 0 || try_wait_for_completion(&req->done)) {
		r = req->error;
		*info = req->info;
	} else {
		r = left < 0 ? -EINTR : -ETIMEDOUT;
	}
	kfree(req);
	return r;
}

/* ---- calls ---- */

static bool all_zero(const void *p, size_t n)
{
	return !memchr_inv(p, 0, n);
}

static int channel_check_epoch(struct channel *ch, u64 epoch)
{
	int r;

	spin_lock(&ch->lock);
	r = ch->agent && ch->epoch == epoch ? 0 : -ESTALE;
	spin_unlock(&ch->lock);
	return r;
}

static int channel_hello(struct channel *ch, void __user *arg)
{
	struct dm_dedup_hello hello;
	struct upcall *up;

	if (copy_from_user(&hello, arg, sizeof(hello)))
		return -EFAULT;
	if (hello.size != sizeof(hello) || !all_zero(hello.reserved, sizeof(hello.reserved)))
		return -EINVAL;
	if (hello.abi_major != DM_DEDUP_ABI_MAJOR)
		return -EPROTO;
	hello.abi_minor = min_t(u16, hello.abi_minor, DM_DEDUP_ABI_MINOR);
	hello.features &= DM_DEDUP_FEATURE_SOURCE | DM_DEDUP_FEATURE_LOOSE;
	ch->ops->hello(ch->ctx, &hello);

	spin_lock(&ch->lock);
	hello.agent_epoch = ++ch->epoch;
	WRITE_ONCE(ch->agent, true);
	list_for_each_entry(up, &ch->sent, list)
		up->msg.flags |= DM_DEDUP_UP_RESEND;
	list_splice_init(&ch->sent, &ch->unsent);
	wake_up_interruptible(&ch->wait);
	spin_unlock(&ch->lock);

	return copy_to_user(arg, &hello, sizeof(hello)) ? -EFAULT : 0;
}

static int channel_reply(struct channel *ch, void __user *arg)
{
	struct dm_dedup_reply *reply = memdup_user(arg, sizeof(*reply));
	struct upcall *up;
	int r;

	if (IS_ERR(reply))
		return PTR_ERR(reply);
	r = -EINVAL;
	if (reply->size != sizeof(*reply) || reply->error < 0 || reply->error > MAX_ERRNO ||
	    !all_zero(reply->reserved, sizeof(reply->reserved)) ||
	    !all_zero(reply->info.reserved, sizeof(reply->info.reserved)))
		goto out;
	spin_lock(&ch->lock);
	r = -ESTALE;
	if (!ch->agent || ch->epoch != reply->agent_epoch)
		goto unlock;
	list_for_each_entry(up, &ch->sent, list) {
		struct request *req = container_of(up, struct request, up);

		if (up->msg.cookie != reply->cookie)
			continue;
		r = -EINVAL;
		if (up->msg.type != DM_DEDUP_UP_LOOKUP && up->msg.type != DM_DEDUP_UP_OPEN)
			break;
		list_del_init(&up->list);
		req->error = -reply->error;
		req->info = reply->info;
		/* The waiter frees the request: nothing of it may be touched after this. */
		complete(&req->done);
		r = 0;
		break;
	}
unlock:
	spin_unlock(&ch->lock);
out:
	kfree(reply);
	return r;
}

static int channel_cut(struct channel *ch, void __user *arg)
{
	struct dm_dedup_cut cut;
	int r;

	if (copy_from_user(&cut, arg, sizeof(cut)))
		return -EFAULT;
	if (cut.size != sizeof(cut) || cut.flags & ~DM_DEDUP_CUT_RECOVER ||
	    !all_zero(cut.reserved, sizeof(cut.reserved)))
		return -EINVAL;
	r = channel_check_epoch(ch, cut.agent_epoch);
	if (r)
		return r;
	r = ch->ops->cut(ch->ctx, &cut);
	if (r)
		return r;
	return copy_to_user(arg, &cut, sizeof(cut)) ? -EFAULT : 0;
}

static int channel_volume_call(struct channel *ch, unsigned int cmd, void __user *arg)
{
	struct dm_dedup_volume_call call;
	u32 flags = cmd == DM_DEDUP_RELEASE ? DM_DEDUP_RELEASE_DISCARD : 0;
	int r;

	if (copy_from_user(&call, arg, sizeof(call)))
		return -EFAULT;
	if (call.size != sizeof(call) || (call.flags & ~flags) ||
	    !all_zero(call.reserved, sizeof(call.reserved)))
		return -EINVAL;
	r = channel_check_epoch(ch, call.agent_epoch);
	if (r)
		return r;
	if (cmd == DM_DEDUP_FENCE)
		return ch->ops->fence(ch->ctx, &call);
	return ch->ops->release(ch->ctx, &call);
}

/* ---- calls with an array ---- */

#define BATCH_IN	1U	/* entries are copied in */
#define BATCH_OUT	2U	/* the batch itself is copied out */
#define BATCH_EMPTY	4U	/* no entries is a call, too */

typedef int (*batch_fn)(void *ctx, struct dm_dedup_batch *batch, void *entries);

struct batch_call {
	unsigned int cmd;
	u32 entry_size;
	u32 max;
	u32 how;
	u32 flags;
	size_t fn;		/* offset in struct channel_ops */
};

#define BATCH_CALL(cmd_, type_, max_, how_, flags_, fn_) \
	{ cmd_, sizeof(struct type_), max_, how_, flags_, offsetof(struct channel_ops, fn_) }

static const struct batch_call batch_calls[] = {
	BATCH_CALL(DM_DEDUP_PUBLISH, dm_dedup_publish, DM_DEDUP_MAX_PUBLISH, BATCH_IN, 0, publish),
	BATCH_CALL(DM_DEDUP_MAP, dm_dedup_map, DM_DEDUP_MAX_BATCH, BATCH_IN, 0, map),
	BATCH_CALL(DM_DEDUP_FAIL, dm_dedup_fail, DM_DEDUP_MAX_BATCH, BATCH_IN, 0, fail),
	BATCH_CALL(DM_DEDUP_DROP, dm_dedup_drop, DM_DEDUP_MAX_BATCH, BATCH_IN, 0, drop),
	BATCH_CALL(DM_DEDUP_LIST_CUT, dm_dedup_cut_entry, DM_DEDUP_MAX_BATCH, BATCH_OUT, 0,
		   list_cut),
	BATCH_CALL(DM_DEDUP_LIST_CLEAN, dm_dedup_clean_entry, DM_DEDUP_MAX_BATCH, BATCH_OUT, 0,
		   list_clean),
	BATCH_CALL(DM_DEDUP_LIST_VOLUMES, dm_dedup_volume_info, DM_DEDUP_MAX_BATCH, BATCH_OUT, 0,
		   list_volumes),
	BATCH_CALL(DM_DEDUP_COMMIT, dm_dedup_replacement, DM_DEDUP_MAX_BATCH,
		   BATCH_IN | BATCH_EMPTY, DM_DEDUP_COMMIT_MORE, commit),
};

static int channel_batch(struct channel *ch, const struct batch_call *bc, void __user *arg)
{
	batch_fn fn = *(batch_fn *)((const char *)ch->ops + bc->fn);
	struct dm_dedup_batch batch;
	void __user *uentries;
	void *entries;
	u32 count;
	int r;

	if (copy_from_user(&batch, arg, sizeof(batch)))
		return -EFAULT;
	if (batch.size != sizeof(batch) || batch.entry_size != bc->entry_size ||
	    (batch.flags & ~bc->flags) || !all_zero(batch.reserved, sizeof(batch.reserved)) ||
	    batch.count > bc->max || (!batch.count && !(bc->how & BATCH_EMPTY)))
		return -EINVAL;
	r = channel_check_epoch(ch, batch.agent_epoch);
	if (r)
		return r;
	count = batch.count;
	uentries = u64_to_user_ptr(batch.entries);
	entries = kvcalloc(max(count, 1U), bc->entry_size, GFP_KERNEL);
	if (!entries)
		return -ENOMEM;
	r = -EFAULT;
	if ((bc->how & BATCH_IN) && copy_from_user(entries, uentries, count * bc->entry_size))
		goto out;

	r = fn(ch->ctx, &batch, entries);
	if (copy_to_user(uentries, entries, min(batch.count, count) * bc->entry_size) ||
	    ((bc->how & BATCH_OUT) && copy_to_user(arg, &batch, sizeof(batch))))
		r = -EFAULT;
out:
	kvfree(entries);
	return r;
}

static int channel_call(struct channel *ch, unsigned int cmd, void __user *arg)
{
	size_t i;

	switch (cmd) {
	case DM_DEDUP_HELLO:
		return channel_hello(ch, arg);
	case DM_DEDUP_REPLY:
		return channel_reply(ch, arg);
	case DM_DEDUP_CUT:
		return channel_cut(ch, arg);
	case DM_DEDUP_FENCE:
	case DM_DEDUP_RELEASE:
		return channel_volume_call(ch, cmd, arg);
	}
	for (i = 0; i < ARRAY_SIZE(batch_calls); i++)
		if (batch_calls[i].cmd == cmd)
			return channel_batch(ch, &batch_calls[i], arg);
	return -ENOTTY;
}

/* ---- the file ---- */

static long channel_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct channel *ch = file->private_data;
	int r = -ENODEV;

	down_read(&ch->gone_lock);
	if (!ch->gone)
		r = channel_call(ch, cmd, (void __user *)arg);
	up_read(&ch->gone_lock);
	return r;
}

static int channel_open(struct inode *inode, struct file *file)
{
	struct channel *ch = container_of(file->private_data, struct channel, misc);
	int r = 0;

	spin_lock(&ch->lock);
	if (ch->busy)
		r = -EBUSY;
	else
		ch->busy = true;
	spin_unlock(&ch->lock);
	if (r)
		return r;
	/* misc_open() holds misc_mtx, and misc_deregister() comes before the cache's put. */
	kref_get(&ch->ref);
	file->private_data = ch;
	return stream_open(inode, file);
}

static int channel_release(struct inode *inode, struct file *file)
{
	struct channel *ch = file->private_data;

	spin_lock(&ch->lock);
	ch->busy = false;
	WRITE_ONCE(ch->agent, false);
	spin_unlock(&ch->lock);
	kref_put(&ch->ref, channel_release_ref);
	return 0;
}

/* Takes the next upcall for the agent into @msg. A request then waits for its answer. */
static bool channel_next(struct channel *ch, struct dm_dedup_upcall *msg)
{
	struct upcall *up;

	spin_lock(&ch->lock);
	up = list_first_entry_or_null(&ch->unsent, struct upcall, list);
	if (up) {
		*msg = up->msg;
		if (up->msg.cookie)
			list_move_tail(&up->list, &ch->sent);
		else
			list_del_init(&up->list);
	}
	spin_unlock(&ch->lock);
	return up;
}

static bool channel_readable(struct channel *ch)
{
	bool ret;

	spin_lock(&ch->lock);
	ret = ch->gone || !list_empty(&ch->unsent);
	spin_unlock(&ch->lock);
	return ret;
}

/* A copy that faults loses nothing: after the next HELLO, what was sent goes out again. */
static ssize_t channel_copy(struct channel *ch, char __user *buf, size_t n)
{
	struct dm_dedup_upcall msg;
	size_t done = 0;

	while (n - done >= sizeof(msg) && channel_next(ch, &msg)) {
		if (copy_to_user(buf + done, &msg, sizeof(msg)))
			return -EFAULT;
		done += sizeof(msg);
	}
	return done;
}

static ssize_t channel_read(struct file *file, char __user *buf, size_t n, loff_t *pos)
{
	struct channel *ch = file->private_data;
	ssize_t r;

	if (n < sizeof(struct dm_dedup_upcall))
		return -EINVAL;
	for (;;) {
		if (READ_ONCE(ch->gone))
			return -ENODEV;
		if (!channel_has_agent(ch))
			return -EPROTO;
		r = channel_copy(ch, buf, n);
		if (r)
			return r;
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		r = wait_event_interruptible(ch->wait, channel_readable(ch));
		if (r)
			return r;
	}
}

static __poll_t channel_poll(struct file *file, poll_table *wait)
{
	struct channel *ch = file->private_data;

	poll_wait(file, &ch->wait, wait);
	if (READ_ONCE(ch->gone))
		return EPOLLERR | EPOLLHUP;
	return channel_readable(ch) ? EPOLLIN | EPOLLRDNORM : 0;
}

static const struct file_operations channel_fops = {
	.owner = THIS_MODULE,
	.open = channel_open,
	.release = channel_release,
	.read = channel_read,
	.poll = channel_poll,
	.unlocked_ioctl = channel_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

int channel_create(struct channel **where, const u8 *uuid, u64 first_epoch,
		   const struct channel_ops *ops, void *ctx)
{
	struct channel *ch = kzalloc(sizeof(*ch), GFP_KERNEL);
	int r;

	if (!ch)
		return -ENOMEM;
	kref_init(&ch->ref);
	init_rwsem(&ch->gone_lock);
	spin_lock_init(&ch->lock);
	INIT_LIST_HEAD(&ch->unsent);
	INIT_LIST_HEAD(&ch->sent);
	init_waitqueue_head(&ch->wait);
	ch->ops = ops;
	ch->ctx = ctx;
	ch->epoch = first_epoch;
	snprintf(ch->name, sizeof(ch->name), "dm-dedup-%pUb", uuid);
	snprintf(ch->nodename, sizeof(ch->nodename), "dm-dedup/%pUb", uuid);
	ch->misc.minor = MISC_DYNAMIC_MINOR;
	ch->misc.name = ch->name;
	ch->misc.nodename = ch->nodename;
	ch->misc.fops = &channel_fops;
	ch->misc.mode = 0600;
	*where = ch;
	r = misc_register(&ch->misc);
	if (r) {
		*where = NULL;
		kfree(ch);
	}
	return r;
}

void channel_destroy(struct channel *ch)
{
	misc_deregister(&ch->misc);
	down_write(&ch->gone_lock);
	spin_lock(&ch->lock);
	WRITE_ONCE(ch->gone, true);
	WRITE_ONCE(ch->agent, false);
	INIT_LIST_HEAD(&ch->unsent);
	INIT_LIST_HEAD(&ch->sent);
	spin_unlock(&ch->lock);
	up_write(&ch->gone_lock);
	wake_up_all(&ch->wait);
	kref_put(&ch->ref, channel_release_ref);
}
