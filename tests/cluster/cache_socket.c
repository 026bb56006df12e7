// SPDX-License-Identifier: GPL-2.0-or-later
/* A cache behind a socket, for an agent. A connection for each thread: verbs may block. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cache_wire.h"

static char socket_path[108];
static __thread int connection = -1;

static int connect_thread(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (connection >= 0)
		return 0;
	connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	strcpy(addr.sun_path, socket_path);
	if (connection >= 0 && !connect(connection, (struct sockaddr *)&addr, sizeof(addr)))
		return 0;
	fprintf(stderr, "no connection to %s: %s\n", socket_path, strerror(errno));
	_exit(1); /* the host has gone, and its agent with it */
}

/* @out_max: room in @out for the answer's payload. */
static int call2(struct wire *w, const void *in, size_t in_len, const void *in2, size_t in2_len,
		 void *out, size_t out_max)
{
	connect_thread();
	w->len = (uint32_t)(in_len + in2_len);
	if (wire_io(connection, w, sizeof(*w), true) ||
	    wire_io(connection, (void *)in, in_len, true) ||
	    wire_io(connection, (void *)in2, in2_len, true) ||
	    wire_io(connection, w, sizeof(*w), false) || w->len > out_max ||
	    wire_io(connection, out, w->len, false))
		_exit(1);
	return w->r;
}

static int call(struct wire *w, const void *in, size_t in_len, void *out, size_t out_max)
{
	return call2(w, in, in_len, NULL, 0, out, out_max);
}

void cache_socket_step(const char *name)
{
	struct wire w = { .verb = WIRE_STEP };

	call(&w, name, strlen(name) + 1, NULL, 0);
}

static int op_connect(struct cache *c, struct dm_dedup_hello *hello, struct error *err)
{
	struct wire w = { .verb = WIRE_CONNECT };

	return call(&w, NULL, 0, hello, sizeof(*hello));
}

static ssize_t op_read(struct cache *c, struct dm_dedup_upcall *ups, size_t max, int timeout_ms)
{
	struct wire w = { .verb = WIRE_READ, .count = max, .cursor = (uint64_t)timeout_ms };
	int r = call(&w, NULL, 0, ups, max * sizeof(*ups));

	return r ? r : (ssize_t)w.count;
}

static void op_wake(struct cache *c)
{
	struct wire w = { .verb = WIRE_WAKE };

	call(&w, NULL, 0, NULL, 0);
}

static void op_disconnect(struct cache *c)
{
	struct wire w = { .verb = WIRE_DISCONNECT };

	call(&w, NULL, 0, NULL, 0);
}

static void op_free(struct cache *c)
{
	free(c);
}

static int op_reply(struct cache *c, struct dm_dedup_reply *reply)
{
	struct wire w = { .verb = WIRE_REPLY };

	return call(&w, reply, sizeof(*reply), NULL, 0);
}

static int op_publish(struct cache *c, struct dm_dedup_publish *p, size_t count)
{
	struct wire w = { .verb = WIRE_PUBLISH, .count = 1 };
	size_t i;
	int r = 0;

	for (i = 0; !r && i < count; i++)
		r = call2(&w, &p[i], sizeof(p[i]), (void *)(uintptr_t)p[i].data, 1 << WIRE_SHIFT,
			  &p[i], sizeof(p[i]));
	return r;
}

static int entries(enum wire_verb verb, void *e, size_t count, size_t size)
{
	struct wire w = { .verb = verb, .count = count };

	return call(&w, e, count * size, e, count * size);
}

static int op_map(struct cache *c, struct dm_dedup_map *m, size_t count)
{
	return entries(WIRE_MAP, m, count, sizeof(*m));
}

static int op_fail(struct cache *c, struct dm_dedup_fail *f, size_t count)
{
	return entries(WIRE_FAIL, f, count, sizeof(*f));
}

static int op_drop(struct cache *c, struct dm_dedup_drop *d, size_t count)
{
	return entries(WIRE_DROP, d, count, sizeof(*d));
}

static int op_cut(struct cache *c, uint64_t of, struct dm_dedup_cut *cut)
{
	return entries(WIRE_CUT, cut, 1, sizeof(*cut));
}

static int list(struct wire *w, uint64_t *cursor, void *e, size_t *count, size_t size)
{
	int r;

	w->cursor = *cursor;
	w->count = *count;
	r = call(w, NULL, 0, e, *count * size);
	*cursor = w->cursor;
	*count = w->count;
	return r;
}

static int op_list_cut(struct cache *c, uint64_t of, uint64_t volume, uint64_t cut,
		       uint64_t *cursor, struct dm_dedup_cut_entry *e, size_t *count)
{
	struct wire w = { .verb = WIRE_LIST_CUT, .volume = volume, .cut = cut };

	return list(&w, cursor, e, count, sizeof(*e));
}

static int op_list_clean(struct cache *c, uint64_t *cursor, struct dm_dedup_clean_entry *e,
			 size_t *count)
{
	struct wire w = { .verb = WIRE_LIST_CLEAN };

	return list(&w, cursor, e, count, sizeof(*e));
}

static int op_list_volumes(struct cache *c, uint64_t *cursor, struct dm_dedup_volume_info *e,
			   size_t *count)
{
	struct wire w = { .verb = WIRE_LIST_VOLUMES };

	return list(&w, cursor, e, count, sizeof(*e));
}

static int op_commit(struct cache *c, uint64_t of, uint64_t volume, uint64_t cut,
		     const uint8_t *root, uint64_t lease_epoch, struct dm_dedup_replacement *r,
		     size_t count, bool more)
{
	struct wire w = {
		.verb = WIRE_COMMIT, .volume = volume, .cut = cut, .epoch = lease_epoch,
		.count = count, .flags = more,
	};

	memcpy(w.root, root, sizeof(w.root));
	return call(&w, r, count * sizeof(*r), r, count * sizeof(*r));
}

static int op_fence(struct cache *c, uint64_t volume, uint64_t lease_epoch)
{
	struct wire w = { .verb = WIRE_FENCE, .volume = volume, .epoch = lease_epoch };

	return call(&w, NULL, 0, NULL, 0);
}

static int op_release(struct cache *c, uint64_t volume, uint64_t lease_epoch, uint32_t flags)
{
	struct wire w = {
		.verb = WIRE_RELEASE, .volume = volume, .epoch = lease_epoch, .flags = flags,
	};

	return call(&w, NULL, 0, NULL, 0);
}

static int op_open_slots(struct cache *c, uint64_t *of)
{
	*of = 1;
	return 0;
}

static void op_close_slots(struct cache *c)
{
}

static int op_read_slot(struct cache *c, uint64_t of, uint64_t slot, void *buf, size_t len)
{
	struct wire w = { .verb = WIRE_READ_SLOT, .cursor = slot };

	return len == 1 << WIRE_SHIFT ? call(&w, NULL, 0, buf, len) : -EINVAL;
}

static const struct cache_ops socket_ops = {
	.connect = op_connect,
	.read = op_read,
	.wake = op_wake,
	.disconnect = op_disconnect,
	.free = op_free,
	.reply = op_reply,
	.publish = op_publish,
	.map = op_map,
	.fail = op_fail,
	.drop = op_drop,
	.cut = op_cut,
	.list_cut = op_list_cut,
	.list_clean = op_list_clean,
	.list_volumes = op_list_volumes,
	.commit = op_commit,
	.fence = op_fence,
	.release = op_release,
	.open_slots = op_open_slots,
	.close_slots = op_close_slots,
	.read_slot = op_read_slot,
};

struct cache *cache_socket_new(const char *path)
{
	struct cache *c = calloc(1, sizeof(*c));

	if (!c || strlen(path) >= sizeof(socket_path))
		abort();
	strcpy(socket_path, path);
	c->ops = &socket_ops;
	return c;
}
