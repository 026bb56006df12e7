// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <libdevmapper.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
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

static int create(const char *name, const struct dm_table *t, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_CREATE, name);
	int r = 0;

	if (!task || !t->params || (t->read_only && !dm_task_set_ro(task)) ||
	    !dm_task_add_target(task, 0, t->sectors, TARGET, t->params) ||
	    !dm_task_set_add_node(task, DM_ADD_NODE_ON_CREATE) || !task_run_synced(task))
		r = task_fail(task, err, "create the device", name);
	if (task)
		dm_task_destroy(task);
	if (!r)
		dm_task_update_nodes();
	return r;
}

int dm_volume_create(const char *name, uint64_t bytes, const char *cache, const char *image,
		     bool read_only, bool ephemeral, struct error *err)
{
	struct dm_table t = { .sectors = bytes / 512, .read_only = read_only };
	int r;

	if (asprintf(&t.params, "%s %s%s", cache, image,
		     read_only ? " 1 read_only" : ephemeral ? " 1 ephemeral" : "") < 0)
		t.params = NULL;
	r = create(name, &t, err);
	free(t.params);
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

int dm_table_read(const char *name, struct dm_table *t, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_TABLE, name);
	char *type = NULL, *params = NULL;
	struct dm_info info;
	uint64_t start;
	int r = 0;

	memset(t, 0, sizeof(*t));
	if (!task || !dm_task_run(task) || !dm_task_get_info(task, &info) || !info.exists) {
		r = task_fail(task, err, "read the table of", name);
		goto destroy_task;
	}
	dm_get_next_target(task, NULL, &start, &t->sectors, &type, &params);
	t->read_only = info.read_only;
	t->params = type && !strcmp(type, TARGET) && params ? strdup(params) : NULL;
	if (!t->params)
		r = error_set(err, -EINVAL, "/dev/mapper/%s is no volume", name);
destroy_task:
	if (task)
		dm_task_destroy(task);
	return r;
}

char *dm_params_with(const char *params, const char *image)
{
	size_t cache = strcspn(params, " ");
	const char *old = params + cache + strspn(params + cache, " ");
	char *made;

	if (!*old || asprintf(&made, "%.*s %s%s", (int)cache, params, image,
			      old + strcspn(old, " ")) < 0)
		return NULL;
	return made;
}

int dm_table_restore(const char *name, const struct dm_table *t, const char *image, struct error *err)
{
	struct dm_table again = *t;
	int r;

	again.params = image ? dm_params_with(t->params, image) : strdup(t->params);
	r = create(name, &again, err);
	free(again.params);
	return r;
}

static int load(const char *name, const struct dm_table *t, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_RELOAD, name);
	int r = 0;

	if (!task || (t->read_only && !dm_task_set_ro(task)) ||
	    !dm_task_add_target(task, 0, t->sectors, TARGET, t->params) || !dm_task_run(task))
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

int dm_volume_resize(const char *name, uint64_t bytes, const char *image, struct error *err)
{
	struct dm_table t;
	char *params;
	int r = dm_table_read(name, &t, err);

	if (r || t.sectors == bytes / 512)
		goto free_params;
	params = image ? dm_params_with(t.params, image) : strdup(t.params);
	free(t.params);
	t.params = params;
	t.sectors = bytes / 512;
	r = params ? load(name, &t, err) : error_set(err, -ENOMEM, "out of memory");
free_params:
	free(t.params);
	return r;
}

/* Its status says which image it has: "VOLUME UUID ...". What the table calls it says less. */
static void ask_uuid(const char *name, struct uuid *uuid)
{
	struct dm_task *task = task_new(DM_DEVICE_STATUS, name);
	char *type = NULL, *params = NULL, text[UUID_TEXT_SIZE];
	uint64_t start, len;
	struct dm_info info;

	memset(uuid, 0, sizeof(*uuid));
	if (!task || !dm_task_no_flush(task) || !dm_task_run(task) ||
	    !dm_task_get_info(task, &info) || !info.exists)
		goto destroy_task;
	dm_get_next_target(task, NULL, &start, &len, &type, &params);
	if (!type || strcmp(type, TARGET) || !params || sscanf(params, "%*u %36s", text) != 1 ||
	    uuid_from_text(uuid, text))
		memset(uuid, 0, sizeof(*uuid));
destroy_task:
	if (task)
		dm_task_destroy(task);
}

/* 1: it is one of ours; 0: it is not, or has gone meanwhile. */
static int examine(const char *name, struct dm_volume *v)
{
	struct dm_task *task = task_new(DM_DEVICE_TABLE, name);
	struct dm_info info;
	uint64_t start, len;
	char *type = NULL, *params = NULL, *image;
	unsigned int major, minor;
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
	v->cache = sscanf(params, "%u:%u", &major, &minor) == 2 ? makedev(major, minor) : 0;
	snprintf(v->name, sizeof(v->name), "%s", name);
	snprintf(v->image, sizeof(v->image), "%.*s", (int)strcspn(image, " "), image);
	v->open_count = info.open_count;
	v->read_only = info.read_only;
	ask_uuid(name, &v->uuid);
	is = 1;
destroy_task:
	if (task)
		dm_task_destroy(task);
	return is;
}

int dm_name_is_free(const char *name, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_INFO, name);
	struct dm_volume v = { 0 };
	struct dm_info info;
	int r = 0;

	if (!task || !dm_task_run(task) || !dm_task_get_info(task, &info))
		r = task_fail(task, err, "look for a device", name);
	else if (info.exists && examine(name, &v))
		r = error_set(err, -EEXIST, "there is a device /dev/mapper/%s already, for image %s over "
			      "the cache device %u:%u: all caches of a host share its devices' names "
			      "(--name chooses another name)", name, v.image, major(v.cache),
			      minor(v.cache));
	else if (info.exists)
		r = error_set(err, -EEXIST, "there is a device /dev/mapper/%s already, which is no "
			      "volume (--name chooses another name)", name);
	if (task)
		dm_task_destroy(task);
	return r;
}

/* 0: any; 1, which is no device: there is none. */
static dev_t device_number(const char *path)
{
	struct stat st;

	if (!path || !*path)
		return 0;
	return stat(path, &st) || !S_ISBLK(st.st_mode) ? 1 : st.st_rdev;
}

int dm_volume_list(const char *cache, struct dm_volume **volumes, size_t *count, struct error *err)
{
	struct dm_task *task = task_new(DM_DEVICE_LIST, NULL);
	dev_t of = device_number(cache);
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
		*count += examine(names->name, &grown[*count]) &&
			  (!of || grown[*count].cache == of);
	}
destroy_task:
	if (task)
		dm_task_destroy(task);
	return r;
}

static bool has_image(const struct dm_volume *v, const char *what)
{
	struct uuid uuid;

	return !strcmp(v->image, what) ||
	       (!uuid_from_text(&uuid, what) && uuid_equal(&uuid, &v->uuid));
}

static void take(const struct dm_volume *v, struct dm_named *named)
{
	char text[UUID_TEXT_SIZE];

	snprintf(named->image, sizeof(named->image), "%s", v->image);
	snprintf(named->device, sizeof(named->device), "%s", v->name);
	named->uuid = v->uuid;
	snprintf(named->volume, sizeof(named->volume), "%s",
		 uuid_is_null(&v->uuid) ? v->image : uuid_to_text(&v->uuid, text));
}

int dm_find_among(const struct dm_volume *volumes, size_t count, const char *what,
		  struct dm_named *named, struct error *err)
{
	bool is_path = !strncmp(what, "/dev/mapper/", 12);
	const char *base = is_path ? what + 12 : what;

	/* A path is never an image's name: of a device that is not over this cache it is nobody's. */
	memset(named, 0, sizeof(*named));
	snprintf(named->image, sizeof(named->image), "%s", what);
	snprintf(named->volume, sizeof(named->volume), "%s", what);
	for (size_t i = 0; i < count; i++) {
		const struct dm_volume *v = &volumes[i];

		if (strcmp(v->name, base) && (is_path || !has_image(v, base)))
			continue;
		if (*named->device)
			return error_set(err, -EEXIST, "%.100s means two volumes, /dev/mapper/%s and "
					 "/dev/mapper/%s: give the path of the one that is meant, or the "
					 "UUID of its image (`vmdedup volume ls --json`)", base,
					 named->device, v->name);
		take(v, named);
	}
	return 0;
}

int dm_find(const char *cache, const char *what, struct dm_named *named, struct error *err)
{
	CLEANUP_FREE struct dm_volume *volumes = NULL;
	size_t count = 0;

	if (dm_volume_list(cache, &volumes, &count, NULL))
		count = 0;
	return dm_find_among(volumes, count, what, named, err);
}
