// SPDX-License-Identifier: GPL-2.0-or-later
/* The real world below a core, and a new store in it. */
#include "meta/core.h"
#include "meta/server.h"
#include "base/clock.h"

#include <errno.h>
#include <libgen.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

static uint64_t real_wall_s(void *ctx)
{
	return clock_wall_s();
}

static uint64_t real_mono_ns(void *ctx)
{
	return clock_mono_ns();
}

static int real_random(void *ctx, void *buf, size_t len)
{
	return getrandom(buf, len, 0) == (ssize_t)len ? 0 : -EIO;
}

const struct meta_env meta_real_env = {
	.wall_s = real_wall_s, .mono_ns = real_mono_ns, .random = real_random,
};

static int make_folder(const char *store, struct error *err)
{
	char *copy CLEANUP_FREE = strdup(store);

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	if (mkdir(dirname(copy), 0700) && errno != EEXIST)
		return error_set(err, -errno, "cannot make the folder of %s: %s", store,
				 strerror(errno));
	return 0;
}

int meta_store_init(const char *store, const struct meta_init *init, struct error *err)
{
	struct store *s;
	int r;

	r = (store_is_pg(store) ? 0 : make_folder(store, err)) ?: store_create(&s, store, err);
	if (r)
		return r;
	r = meta_fill(s, &meta_real_env, init, err) ?: store_commit(s, err);
	store_close(s);
	return r;
}
