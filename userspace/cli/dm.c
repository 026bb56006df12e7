// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <libdevmapper.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "cli/dm.h"

#define TARGET "dedup"

/* libdevmapper says what went wrong to a function only: the last words of this thread. */
static __thread char said[256];

__attribute__((format(printf, 5, 6)))
static void hear(int level, const char *file, int line, int dm_errno, const char *fmt, ...)
{
	va_list ap;

	if ((level & 7) > 4) /* not a warning or worse */
		return;
	va_start(ap, fmt);
	vsnprintf(said, sizeof(said), fmt, ap);
	va_end(ap);
}

static struct dm_task *task_new(int type, const char *name)
{
	struct dm_task *task;

	*said = '\0';
	dm_log_with_errno_init(hear);
	dm_set_name_mangling_mode(DM_STRING_MANGLING_NONE);
	/* Where no udev runs nobody would answer its cookies. */
	if (getenv("DM_DISABLE_UDEV") || access("/run/udev/control", F_OK))
		dm_udev_set_sync_support(0);
	task = dm_task_create(type);
	if (task && name && !dm_task_set_name(task, name)) {
		dm_task_destroy(task);
		task = NULL;
	}
	return task;
}

static int task_fail(struct dm_task *task, struct error *err, const char *doing, const char *name)
{
	int code = task ? dm_task_get_errno(task) : 0;

	if (!code)
		code = EIO;
	return error_set(err, -code, "cannot %s %s: %s%s%s (the kernel log may tell more)", doing,
			 name, strerror(code), *said ? "; " : "", said);
}

/* Runs it, and waits until udev has made or removed the names. */
static int task_run_synced(struct dm_task *task)
{
	uint32_t cookie = 0;
	int ok = dm_task_set_cookie(task, &cookie, DM_UDEV_DISABLE_LIBRARY_FALLBACK *
				    !!dm_udev_get_sync_support());

	ok = ok && dm_task_run(task);
	dm_udev_wait(cookie);
	return ok;
}

const char *dm_name_check(const char *name)
{
	if (!*name)
		return "it is empty";
	if (strlen(name) > 127)
		return "a device's name has at most 127 bytes (--name chooses another)";
	if (strchr(name, '/') || strchr(name, ' '))
		return "a device's name has no slash and no space";
	return NULL;
}

int dm_check(struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_LIST_VERSIONS, NULL);
	struct dm_versions *v, *next;
	int r = -ENOPROTOOPT;

	if (!task || !dm_task_run(task)) {
		/* Creating a device loads the module; a container, say, has no control device. */
		error_set(err, r, "the kernel's device mapper cannot be used: %s",
			  *said ? said : strerror(errno));
		goto destroy_task;
	}
	v = dm_task_get_versions(task);
	for (; v; v = v->next ? next : NULL) {
		next = (struct dm_versions *)((char *)v + v->next);
		if (!strcmp(v->name, TARGET))
			r = 0;
	}
	if (r)
		error_set(err, r, "dm-dedup is not loaded: modprobe dm-dedup");
destroy_task:
	if (task)
		dm_task_destroy(task);
	return r;
}

int dm_volume_create(const char *name, uint64_t bytes, const char *cache, const char *image,
		     bool read_only, bool ephemeral, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_CREATE, name);
	CLEANUP_FREE char *params = NULL;
	int r = 0;

	if (asprintf(&params, "%s %s%s", cache, image,
		     read_only ? " 1 read_only" : ephemeral ? " 1 ephemeral" : "") < 0)
		params = NULL;
	if (!task || !params || (read_only && !dm_task_set_ro(task)) ||
	    !dm_task_add_target(task, 0, bytes / 512, TARGET, params) ||
	    !dm_task_set_add_node(task, DM_ADD_NODE_ON_CREATE) || !task_run_synced(task))
		r = task_fail(task, err, "create the device", name);
	if (task)
		dm_task_destroy(task);
	if (!r)
		dm_task_update_nodes();
	return r;
}

int dm_volume_remove(const char *name, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_REMOVE, name);
	int r = 0;

	if (!task || !dm_task_retry_remove(task) || !task_run_synced(task)) {
		r = task_fail(task, err, "remove the device", name);
		if (r == -EBUSY)
			error_set(err, r, "/dev/mapper/%s is in use: unmount it, or stop what has it "
				  "open, first", name);
	}
	if (task)
		dm_task_destroy(task);
	if (!r)
		dm_task_update_nodes();
	return r;
}

/* The parameters of its table; free them. *same: it has that size. */
static int table_params(const char *name, uint64_t sectors, char **out, bool *read_only, bool *same,
			struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_TABLE, name);
	char *type = NULL, *params = NULL;
	uint64_t start, len = 0;
	struct dm_info info;
	int r = 0;

	if (!task || !dm_task_run(task) || !dm_task_get_info(task, &info) || !info.exists)
		r = task_fail(task, err, "read the table of", name);
	else
		dm_get_next_target(task, NULL, &start, &len, &type, &params);
	*out = !r && type && !strcmp(type, TARGET) && params ? strdup(params) : NULL;
	if (!r && !*out)
		r = error_set(err, -EINVAL, "/dev/mapper/%s is no volume", name);
	*read_only = !r && info.read_only;
	*same = len == sectors;
	if (task)
		dm_task_destroy(task);
	return r;
}

int dm_volume_resize(const char *name, uint64_t bytes, struct error *err)
{
	CLEANUP_FREE char *params = NULL;
	struct dm_task *task = NULL;
	bool read_only, same;
	int r;

	r = table_params(name, bytes / 512, &params, &read_only, &same, err);
	if (r || same)
		return r;
	task = task_new(DM_DEVICE_RELOAD, name);
	if (!task || (read_only && !dm_task_set_ro(task)) ||
	    !dm_task_add_target(task, 0, bytes / 512, TARGET, params) || !dm_task_run(task))
		r = task_fail(task, err, "load a larger table for", name);
	if (task)
		dm_task_destroy(task);
	if (r)
		return r;
	/* Takes the new table, and suspends for as long as that needs; what waits for blocks waits on. */
	task = task_new(DM_DEVICE_RESUME, name);
	if (!task || !dm_task_no_flush(task) || !task_run_synced(task))
		r = task_fail(task, err, "resume", name);
	if (task)
		dm_task_destroy(task);
	return r;
}

/* 1: it is one of ours; 0: it is not, or has gone meanwhile. */
static int examine(const char *name, struct dm_volume *v)
{
	struct dm_task *task = task_new(DM_DEVICE_TABLE, name);
	struct dm_info info;
	uint64_t start, len;
	char *type = NULL, *params = NULL, *image;
	int is = 0;

	if (!task || !dm_task_run(task) || !dm_task_get_info(task, &info) || !info.exists)
		goto destroy_task;
	dm_get_next_target(task, NULL, &start, &len, &type, &params);
	if (!type || strcmp(type, TARGET) || !params)
		goto destroy_task;
	image = strchr(params, ' ');
	if (!image)
		goto destroy_task;
	image += strspn(image, " ");
	snprintf(v->name, sizeof(v->name), "%s", name);
	snprintf(v->image, sizeof(v->image), "%.*s", (int)strcspn(image, " "), image);
	v->open_count = info.open_count;
	v->read_only = info.read_only;
	is = 1;
destroy_task:
	if (task)
		dm_task_destroy(task);
	return is;
}

int dm_volume_list(struct dm_volume **volumes, size_t *count, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_LIST, NULL);
	struct dm_names *names, *next;
	int r = 0;

	*volumes = NULL;
	*count = 0;
	if (!task || !dm_task_run(task)) {
		r = task_fail(task, err, "list", "the device mapper's devices");
		goto destroy_task;
	}
	names = dm_task_get_names(task);
	if (!names || !names->dev)
		goto destroy_task;
	for (; names; names = names->next ? next : NULL) {
		struct dm_volume *grown = realloc(*volumes, (*count + 1) * sizeof(*grown));

		next = (struct dm_names *)((char *)names + names->next);
		if (!grown) {
			r = error_set(err, -ENOMEM, "out of memory");
			break;
		}
		*volumes = grown;
		*count += examine(names->name, &grown[*count]);
	}
destroy_task:
	if (task)
		dm_task_destroy(task);
	return r;
}

void dm_image_of(const char *what, char image[256], char device[128])
{
	CLEANUP_FREE struct dm_volume *volumes = NULL;
	const char *base = strncmp(what, "/dev/mapper/", 12) ? what : what + 12;
	size_t count = 0;

	snprintf(image, 256, "%s", base);
	*device = '\0';
	if (dm_volume_list(&volumes, &count, NULL))
		return;
	for (int by_image = 0; by_image < 2; by_image++) {
		for (size_t i = 0; i < count; i++) {
			if (strcmp(by_image ? volumes[i].image : volumes[i].name, base))
				continue;
			snprintf(image, 256, "%s", volumes[i].image);
			snprintf(device, 128, "%s", volumes[i].name);
			return;
		}
	}
}
