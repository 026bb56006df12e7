// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup image resize, volume resize: first the image, then the device that this host has of it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/cleanup.h"
#include "cli/connect.h"
#include "cli/dm.h"
#include "cli/ui.h"
#include "proto/limits.h"

struct resized {
	char name[IMAGE_NAME_MAX + 1], host[256];
	uint64_t before, size;
	const char *device; /* of this host, that has the size now; NULL: none */
};

static int size_of(const char *text, uint64_t *size, struct error *err)
{
	if (size_from_text(text, size) || !*size || *size % 512 || *size > IMAGE_SIZE_MAX)
		return error_set(err, -EINVAL, "\"%.60s\" is no size of an image: a multiple of 512 bytes up "
				 "to 64T, such as 20G", text);
	return 0;
}

/* @size 0: as it is. */
static int resize_image(struct connection *cn, const Vmdedup__Image *im, uint64_t size,
			struct resized *done, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageResize body = VMDEDUP__IMAGE_RESIZE__INIT;
	struct net_reply reply = { 0 };
	int r;

	snprintf(done->name, sizeof(done->name), "%s", im->name);
	snprintf(done->host, sizeof(done->host), "%s", im->leased_to.len ? im->leased_host : "");
	done->before = done->size = im->size;
	if (!size || size == im->size)
		return 0;
	body.image = im->uuid;
	body.size = size;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_RESIZE;
	req.image_resize = &body;
	r = cluster_mutate(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_IMAGE)
		done->size = reply.header->image->size;
	net_reply_free(&reply);
	return r;
}

static void show(const struct resized *done, bool json)
{
	char before[32], now[32];

	if (json) {
		json_show(json_pack("{s:s, s:I, s:I, s:s?}", "image", done->name, "size",
				    (json_int_t)done->size, "before", (json_int_t)done->before, "device",
				    done->device));
		return;
	}
	printf("image %s: %s, before %s\n", done->name, size_to_text(done->size, now),
	       size_to_text(done->before, before));
	if (done->device)
		printf("/dev/mapper/%s has that size now\n", done->device);
	else if (*done->host)
		printf("it is attached on host %s: `vmdedup volume resize %s` there makes the device "
		       "larger\n", done->host, done->name);
}

int image_resize_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct resized done = { 0 };
	struct error err = { 0 };
	Vmdedup__Image *im = NULL;
	struct connection cn;
	uint64_t size;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 2, 2, &code))
		return code;
	r = size_of(argv[1], &size, &err);
	if (!r)
		r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	r = cli_image_get(&cn, argv[0], 0, &im, &err);
	if (!r)
		r = resize_image(&cn, im, size, &done, &err);
	cli_image_free(im);
	connect_close(&cn);
	if (r)
		return cli_fail(&err);
	show(&done, json);
	return EXIT_OK;
}

/* ---- the device's image, by its UUID: a name may mean another image than it did at the attach ---- */

/* An image that got another name has it in no table: the meta server knows the name. */
static int find_device(struct cli *cli, struct connection *cn, const char *said, struct dm_named *d,
		       struct error *err)
{
	Vmdedup__Image *im = NULL;
	char text[UUID_TEXT_SIZE];
	struct uuid uuid = { 0 };
	int r = dm_find(cli->conf.cache, said, d, err);

	if (r || *d->device || strchr(said, '/') || !uuid_from_text(&uuid, said))
		goto check;
	r = cli_image_get(cn, said, 0, &im, err);
	if (r)
		return r;
	memcpy(uuid.b, im->uuid.data, MIN(im->uuid.len, sizeof(uuid.b)));
	cli_image_free(im);
	r = dm_find(cli->conf.cache, uuid_to_text(&uuid, text), d, err);
check:
	if (!r && !*d->device)
		r = error_set(err, -ENOENT, "image %.200s is not attached on this host: `vmdedup image "
			      "resize` makes the image larger", said);
	if (!r && uuid_is_null(&d->uuid))
		r = error_set(err, -EIO, "the kernel does not tell which image /dev/mapper/%s has",
			      d->device);
	return r;
}

/* What was said is a device's name, and the name of an image that it does not have: the image cannot become
 * smaller again. */
static int means_one(struct connection *cn, const char *said, const struct dm_named *d,
		     const Vmdedup__Image *has, struct error *err)
{
	Vmdedup__Image *im = NULL;
	char text[UUID_TEXT_SIZE];
	struct uuid uuid;
	int r;

	if (strchr(said, '/') || !uuid_from_text(&uuid, said) || !strcmp(said, has->name))
		return 0;
	r = cli_image_get(cn, said, 0, &im, err);
	if (!r)
		r = error_set(err, -EEXIST, "/dev/mapper/%s has the image %s (%s), and %s is another image "
			      "by now: give /dev/mapper/%s or that UUID for the first, `vmdedup image "
			      "resize` for the other", d->device, has->name, uuid_to_text(&d->uuid, text),
			      said, d->device);
	cli_image_free(im);
	if (r != -ENOENT)
		return r;
	memset(err, 0, sizeof(*err));
	return 0;
}

/* Without a size: the device follows the image, as after a command that was cut off. */
static int resize_volume(struct cli *cli, struct connection *cn, const char *said, uint64_t size,
			 struct dm_named *d, struct resized *done, struct error *err)
{
	Vmdedup__Image *im = NULL;
	int r = find_device(cli, cn, said, d, err);

	if (!r)
		r = cli_image_get_by_uuid(cn, &d->uuid, &im, err);
	if (!r)
		r = means_one(cn, said, d, im, err);
	if (!r)
		r = resize_image(cn, im, size, done, err);
	/* The kernel looks the new table's image up: by its UUID where the old table's name is not its any more. */
	if (!r)
		r = dm_volume_resize(d->device, done->size, strcmp(d->image, im->name) ? d->volume : NULL,
				     err);
	cli_image_free(im);
	return r;
}

int volume_resize_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct resized done = { 0 };
	struct error err = { 0 };
	struct connection cn;
	struct dm_named d;
	uint64_t size = 0;
	int code, r = 0;

	if (!cli_options(verb, opts, &argc, &argv, 1, 2, &code))
		return code;
	if (argc > 1)
		r = size_of(argv[1], &size, &err);
	if (!r)
		r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	r = resize_volume(cli, &cn, argv[0], size, &d, &done, &err);
	connect_close(&cn);
	if (r)
		return cli_fail(&err);
	done.device = d.device;
	show(&done, json);
	return EXIT_OK;
}
