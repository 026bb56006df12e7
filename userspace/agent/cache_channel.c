// SPDX-License-Identifier: GPL-2.0-or-later
/* The kernel's cache: a dedup-cache device and its channel. */
#include <errno.h>
#include <fcntl.h>
#include <libdevmapper.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "agent/cache.h"
#include "base/cleanup.h"
#include "base/uuid.h"

#define CHANNEL_FOLDER "/dev/dm-dedup"

struct channel {
	struct cache cache;
	char *path;
	/* Held shared by every verb; exclusively while the descriptors come and go, so that none
	 * is closed and used again under a call. */
	pthread_rwlock_t lock;
	int fd;	     /* the channel; -1: not connected */
	uint64_t connection; /* counts them */
	dev_t device;/* the cache's, as found when it was connected */
	pthread_mutex_t slots_lock; /* guards the two below; taken after @lock */
	int slots_fd;
	unsigned int slots_users;
	int wake_fd;
	struct dm_dedup_hello hello;
};

/* ---- which channel belongs to the device ---- */

/* The device's status line names its UUID: the first word of it that is one. */
static int uuid_in_params(const char *params, char text[UUID_TEXT_SIZE])
{
	CLEANUP_FREE char *copy = strdup(params);
	char *word, *rest = copy;
	struct uuid uuid;

	while (copy && (word = strsep(&rest, " ")))
		if (strlen(word) == UUID_TEXT_SIZE - 1 && !uuid_from_text(&uuid, word)) {
			uuid_to_text(&uuid, text);
			return 0;
		}
	return -ENOENT;
}

static int uuid_of_device(const char *path, char text[UUID_TEXT_SIZE], struct error *err)
{
	uint64_t start, length;
	char *type = NULL, *params = NULL;
	struct dm_task *task;
	struct dm_info info;
	int r = -ENODEV;

	task = dm_task_create(DM_DEVICE_STATUS);
	if (!task)
		return error_set(err, -ENODEV,
				 "cannot ask the device mapper (is dm_mod loaded, are you root?)");
	dm_task_no_flush(task); /* a status must not wait for parked I/O */
	if (!dm_task_set_name(task, path) || !dm_task_run(task) ||
	    !dm_task_get_info(task, &info) || !info.exists) {
		error_set(err, r, "there is no cache device %s yet", path);
		goto destroy_task;
	}
	dm_get_next_target(task, NULL, &start, &length, &type, &params);
	if (!type || strcmp(type, "dedup-cache"))
		error_set(err, r, "%s is not a dedup-cache device", path);
	else if (!params || uuid_in_params(params, text))
		error_set(err, r, "the status of %s names no cache UUID: \"%s\"", path,
			  params ? params : "");
	else
		r = 0;
destroy_task:
	dm_task_destroy(task);
	return r;
}

static void quiet_dm_log(int level, const char *file, int line, int dm_errno, const char *f, ...)
{
	/* What fails is told by our own errors; it is asked for again and again. */
}

/* ---- connect ---- */

static int open_channel(struct channel *ch, int *fd, dev_t *device, struct error *err)
{
	CLEANUP_FREE char *name = NULL;
	char uuid[UUID_TEXT_SIZE];
	struct stat st;
	int r;

	r = uuid_of_device(ch->path, uuid, err);
	if (r)
		return r;
	if (asprintf(&name, "%s/%s", CHANNEL_FOLDER, uuid) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	*fd = open(name, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (*fd < 0) {
		r = -errno;
		if (r == -EBUSY)
			return error_set(err, r, "another agent has the cache %s", ch->path);
		return error_set(err, r, "cannot open the channel %s: %s", name, strerror(-r));
	}
	if (stat(ch->path, &st)) {
		r = -errno;
		close(*fd);
		return error_set(err, r, "cannot find the cache device %s: %s", ch->path,
				 strerror(-r));
	}
	*device = st.st_rdev;
	return 0;
}

static int channel_connect(struct cache *c, struct dm_dedup_hello *hello, struct error *err)
{
	struct channel *ch = (struct channel *)c;
	int fd = -1, r;
	dev_t device = 0;

	r = open_channel(ch, &fd, &device, err);
	if (r)
		return r;
	*hello = (struct dm_dedup_hello){
		.size = sizeof(*hello),
		.abi_major = DM_DEDUP_ABI_MAJOR,
		.abi_minor = DM_DEDUP_ABI_MINOR,
		.features = DM_DEDUP_FEATURE_SOURCE | DM_DEDUP_FEATURE_LOOSE,
	};
	if (ioctl(fd, DM_DEDUP_HELLO, hello)) {
		r = -errno;
		close(fd);
		if (r == -EPROTO)
			return error_set(err, r,
					 "the module dm-dedup speaks version %u of the channel, this agent "
					 "%u: install those that belong together",
					 hello->abi_major, DM_DEDUP_ABI_MAJOR);
		return error_set(err, r, "HELLO to the cache %s: %s", ch->path, strerror(-r));
	}
	pthread_rwlock_wrlock(&ch->lock);
	ch->fd = fd;
	ch->connection++;
	ch->device = device;
	ch->hello = *hello;
	pthread_rwlock_unlock(&ch->lock);
	return 0;
}

static void channel_disconnect(struct cache *c)
{
	struct channel *ch = (struct channel *)c;

	pthread_rwlock_wrlock(&ch->lock);
	if (ch->fd >= 0)
		close(ch->fd);
	ch->fd = -1;
	/* Whoever still has the slots open can read none from here on. */
	if (ch->slots_fd >= 0)
		close(ch->slots_fd);
	ch->slots_fd = -1;
	pthread_rwlock_unlock(&ch->lock);
}

static void channel_free(struct cache *c)
{
	struct channel *ch = (struct channel *)c;

	channel_disconnect(c);
	close(ch->wake_fd);
	pthread_rwlock_destroy(&ch->lock);
	pthread_mutex_destroy(&ch->slots_lock);
	free(ch->path);
	free(ch);
}

static void channel_wake(struct cache *c)
{
	struct channel *ch = (struct channel *)c;
	const uint64_t one = 1;

	if (write(ch->wake_fd, &one, sizeof(one)) < 0)
		return; /* only when the counter is full: then it is readable */
}

static ssize_t channel_read(struct cache *c, struct dm_dedup_upcall *ups, size_t max,
			    int timeout_ms)
{
	struct channel *ch = (struct channel *)c;
	struct pollfd fds[2] = {
		{ .fd = ch->fd, .events = POLLIN },
		{ .fd = ch->wake_fd, .events = POLLIN },
	};
	uint64_t count;
	ssize_t n;

	n = poll(fds, 2, timeout_ms);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (fds[1].revents && read(ch->wake_fd, &count, sizeof(count)) < 0)
		return 0;
	if (!fds[0].revents)
		return 0;
	n = read(ch->fd, ups, max * sizeof(*ups));
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (!n || n % (ssize_t)sizeof(*ups)) /* no kernel of this ABI does that */
		return -EPROTO;
	return n / (ssize_t)sizeof(*ups);
}

/* ---- verbs ---- */

static int call(struct channel *ch, unsigned long number, void *arg)
{
	int r;

	do {
		r = ioctl(ch->fd, number, arg);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

#define ANY 0 /* connection */

/* Takes the lock shared; false: not connected, or another time than that. */
static bool enter(struct channel *ch, uint64_t connection)
{
	pthread_rwlock_rdlock(&ch->lock);
	if (ch->fd >= 0 && (connection == ANY || connection == ch->connection))
		return true;
	pthread_rwlock_unlock(&ch->lock);
	return false;
}

static void leave(struct channel *ch)
{
	pthread_rwlock_unlock(&ch->lock);
}

static int channel_reply(struct cache *c, struct dm_dedup_reply *reply)
{
	struct channel *ch = (struct channel *)c;
	int r;

	if (!enter(ch, ANY))
		return -ENODEV;
	reply->size = sizeof(*reply);
	reply->agent_epoch = ch->hello.agent_epoch;
	r = call(ch, DM_DEDUP_REPLY, reply);
	leave(ch);
	return r;
}

static int batch_call_of(struct cache *c, uint64_t connection, unsigned long number,
			 struct dm_dedup_batch *b, void *entries, size_t entry_size, size_t count)
{
	struct channel *ch = (struct channel *)c;
	int r;

	if (!enter(ch, connection))
		return -ENODEV;
	b->size = sizeof(*b);
	b->entry_size = (uint32_t)entry_size;
	b->agent_epoch = ch->hello.agent_epoch;
	b->entries = (uintptr_t)entries;
	b->count = (uint32_t)count;
	r = call(ch, number, b);
	leave(ch);
	return r;
}

static int batch_call(struct cache *c, unsigned long number, struct dm_dedup_batch *b,
		      void *entries, size_t entry_size, size_t count)
{
	return batch_call_of(c, ANY, number, b, entries, entry_size, count);
}

static int channel_publish(struct cache *c, struct dm_dedup_publish *p, size_t count)
{
	struct dm_dedup_batch b = { 0 };

	return batch_call(c, DM_DEDUP_PUBLISH, &b, p, sizeof(*p), count);
}

static int channel_map(struct cache *c, struct dm_dedup_map *m, size_t count)
{
	struct dm_dedup_batch b = { 0 };

	return batch_call(c, DM_DEDUP_MAP, &b, m, sizeof(*m), count);
}

static int channel_fail(struct cache *c, struct dm_dedup_fail *f, size_t count)
{
	struct dm_dedup_batch b = { 0 };

	return batch_call(c, DM_DEDUP_FAIL, &b, f, sizeof(*f), count);
}

static int channel_drop(struct cache *c, struct dm_dedup_drop *d, size_t count)
{
	struct dm_dedup_batch b = { 0 };

	return batch_call(c, DM_DEDUP_DROP, &b, d, sizeof(*d), count);
}

static int channel_cut(struct cache *c, uint64_t connection, struct dm_dedup_cut *cut)
{
	struct channel *ch = (struct channel *)c;
	int r;

	if (!enter(ch, connection))
		return -ENODEV;
	cut->size = sizeof(*cut);
	cut->agent_epoch = ch->hello.agent_epoch;
	r = call(ch, DM_DEDUP_CUT, cut);
	leave(ch);
	return r;
}

static int list_call(struct cache *c, uint64_t connection, unsigned long number,
		     struct dm_dedup_batch *b, uint64_t *cursor, void *entries, size_t entry_size,
		     size_t *count)
{
	int r;

	b->cursor = *cursor;
	r = batch_call_of(c, connection, number, b, entries, entry_size,
			  MIN(*count, DM_DEDUP_MAX_BATCH));
	if (r)
		return r;
	*cursor = b->cursor;
	*count = b->count;
	return 0;
}

static int channel_list_cut(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
			    uint64_t *cursor, struct dm_dedup_cut_entry *entries, size_t *count)
{
	struct dm_dedup_batch b = { .volume = volume, .cut = cut };

	return list_call(c, connection, DM_DEDUP_LIST_CUT, &b, cursor, entries, sizeof(*entries),
			 count);
}

static int channel_list_clean(struct cache *c, uint64_t *cursor,
			      struct dm_dedup_clean_entry *entries, size_t *count)
{
	struct dm_dedup_batch b = { 0 };

	return list_call(c, ANY, DM_DEDUP_LIST_CLEAN, &b, cursor, entries, sizeof(*entries), count);
}

static int channel_list_volumes(struct cache *c, uint64_t *cursor,
				struct dm_dedup_volume_info *infos, size_t *count)
{
	struct dm_dedup_batch b = { 0 };

	return list_call(c, ANY, DM_DEDUP_LIST_VOLUMES, &b, cursor, infos, sizeof(*infos), count);
}

static int channel_commit(struct cache *c, uint64_t connection, uint64_t volume, uint64_t cut,
			  const uint8_t *root, uint64_t lease_epoch,
			  struct dm_dedup_replacement *replacements, size_t count, bool more)
{
	struct dm_dedup_batch b = {
		.volume = volume,
		.cut = cut,
		.lease_epoch = lease_epoch,
		.flags = more ? DM_DEDUP_COMMIT_MORE : 0,
	};

	memcpy(b.root, root, sizeof(b.root));
	return batch_call_of(c, connection, DM_DEDUP_COMMIT, &b, replacements, sizeof(*replacements),
			     count);
}

static int volume_call(struct cache *c, unsigned long number, uint64_t volume,
		       uint64_t lease_epoch, uint32_t flags)
{
	struct channel *ch = (struct channel *)c;
	struct dm_dedup_volume_call v = {
		.size = sizeof(v),
		.flags = flags,
		.volume = volume,
		.lease_epoch = lease_epoch,
	};
	int r;

	if (!enter(ch, ANY))
		return -ENODEV;
	v.agent_epoch = ch->hello.agent_epoch;
	r = call(ch, number, &v);
	leave(ch);
	return r;
}

static int channel_fence(struct cache *c, uint64_t volume, uint64_t lease_epoch)
{
	return volume_call(c, DM_DEDUP_FENCE, volume, lease_epoch, 0);
}

static int channel_release(struct cache *c, uint64_t volume, uint64_t lease_epoch, uint32_t flags)
{
	return volume_call(c, DM_DEDUP_RELEASE, volume, lease_epoch, flags);
}

/*
 * The device by its path may be another cache's by now. It is ours when it is the device that the
 * channel was found by, and the channel still answers: then that device was there all the time,
 * and while it is open it cannot go.
 */
static int open_device(struct channel *ch)
{
	struct dm_dedup_volume_info info;
	struct dm_dedup_batch b = {
		.size = sizeof(b),
		.entry_size = sizeof(info),
		.agent_epoch = ch->hello.agent_epoch,
		.entries = (uintptr_t)&info,
		.count = 1,
	};
	struct stat st;
	int fd, r = 0;

	fd = open(ch->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) || st.st_rdev != ch->device)
		r = -ENODEV;
	if (!r)
		r = call(ch, DM_DEDUP_LIST_VOLUMES, &b);
	if (r) {
		close(fd);
		return r;
	}
	ch->slots_fd = fd;
	return 0;
}

static int channel_open_slots(struct cache *c, uint64_t *connection)
{
	struct channel *ch = (struct channel *)c;
	int r = 0;

	if (!enter(ch, ANY))
		return -ENODEV;
	pthread_mutex_lock(&ch->slots_lock);
	if (ch->slots_fd < 0)
		r = open_device(ch);
	if (!r)
		ch->slots_users++;
	*connection = ch->connection;
	pthread_mutex_unlock(&ch->slots_lock);
	leave(ch);
	return r;
}

static void channel_close_slots(struct cache *c)
{
	struct channel *ch = (struct channel *)c;

	pthread_rwlock_rdlock(&ch->lock);
	pthread_mutex_lock(&ch->slots_lock);
	if (!--ch->slots_users && ch->slots_fd >= 0) {
		close(ch->slots_fd);
		ch->slots_fd = -1;
	}
	pthread_mutex_unlock(&ch->slots_lock);
	pthread_rwlock_unlock(&ch->lock);
}

static int channel_read_slot(struct cache *c, uint64_t connection, uint64_t slot, void *buf,
			     size_t len)
{
	struct channel *ch = (struct channel *)c;
	size_t done = 0;
	ssize_t n;
	off_t at;
	int r;

	if (!enter(ch, connection))
		return -ENODEV;
	/* The descriptor stays while the lock is held: only disconnect and the last user close it. */
	if (ch->slots_fd < 0 || slot >= ch->hello.nr_slots ||
	    len != (size_t)1 << ch->hello.block_shift) {
		r = ch->slots_fd < 0 ? -ENODEV : -EINVAL;
		leave(ch);
		return r;
	}
	at = (off_t)(ch->hello.data_offset + (slot << ch->hello.block_shift));
	while (done < len) {
		n = pread(ch->slots_fd, (char *)buf + done, len - done, at + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	n = done == len ? 0 : n < 0 ? -errno : -EIO;
	leave(ch);
	return (int)n;
}

static const struct cache_ops channel_ops = {
	.connect = channel_connect,
	.read = channel_read,
	.wake = channel_wake,
	.disconnect = channel_disconnect,
	.free = channel_free,
	.reply = channel_reply,
	.publish = channel_publish,
	.map = channel_map,
	.fail = channel_fail,
	.drop = channel_drop,
	.cut = channel_cut,
	.list_cut = channel_list_cut,
	.list_clean = channel_list_clean,
	.list_volumes = channel_list_volumes,
	.commit = channel_commit,
	.fence = channel_fence,
	.release = channel_release,
	.open_slots = channel_open_slots,
	.close_slots = channel_close_slots,
	.read_slot = channel_read_slot,
};

struct cache *cache_channel_new(const char *path, struct error *err)
{
	struct channel *ch = calloc(1, sizeof(*ch));

	if (!ch)
		goto no_memory;
	ch->cache.ops = &channel_ops;
	ch->fd = -1;
	ch->slots_fd = -1;
	ch->path = strdup(path);
	ch->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (!ch->path || ch->wake_fd < 0)
		goto free_channel;
	pthread_rwlock_init(&ch->lock, NULL);
	pthread_mutex_init(&ch->slots_lock, NULL);
	dm_log_with_errno_init(quiet_dm_log);
	return &ch->cache;

free_channel:
	if (ch->wake_fd >= 0)
		close(ch->wake_fd);
	free(ch->path);
	free(ch);
no_memory:
	error_set(err, -ENOMEM, "out of memory");
	return NULL;
}
