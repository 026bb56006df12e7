// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup image resize, volume resize: first the image, then the device that this host has of it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
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
static int resize_image(struct connection *cn, const char *name, uint64_t size,
			struct resized *done, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageResize body = VMDEDUP__IMAGE_RESIZE__INIT;
	struct net_reply reply = { 0 };
	Vmdedup__Image *im = NULL;
	int r = cli_name_check(name, err);

	if (!r)
		r = cli_image_get(cn, name, 0, &im, err);
	if (r)
		return r;
	snprintf(done->name, sizeof(done->name), "%s", im->name);
	snprintf(done->host, sizeof(done->host), "%s", im->leased_to.len ? im->leased_host : "");
	done->before = done->size = im->size;
	if (size && size != im->size) {
		body.image = im->uuid;
		body.size = size;
		req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_RESIZE;
		req.image_resize = &body;
		r = cluster_mutate(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
		if (!r && reply.header->body_case == VMDEDUP__REPLY__BODY_IMAGE)
			done->size = reply.header->image->size;
		net_reply_free(&reply);
	}
	cli_image_free(im);
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
	r = resize_image(&cn, argv[0], size, &done, &err);
	connect_close(&cn);
	if (r)
		return cli_fail(&err);
	show(&done, json);
	return EXIT_OK;
}

/* Without a size: the device follows the image, as after a command that was cut off. */
int volume_resize_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	char image[256], device[128];
	struct resized done = { 0 };
	struct error err = { 0 };
	struct connection cn;
	uint64_t size = 0;
	int code, r = 0;

	if (!cli_options(verb, opts, &argc, &argv, 1, 2, &code))
		return code;
	dm_image_of(argv[0], image, device);
	if (argc > 1)
		r = size_of(argv[1], &size, &err);
	if (!r && !*device)
		r = error_set(&err, -ENOENT, "image %.200s is not attached on this host: `vmdedup image "
			      "resize` makes the image larger", image);
	if (!r)
		r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	r = resize_image(&cn, image, size, &done, &err);
	connect_close(&cn);
	if (!r)
		r = dm_volume_resize(device, done.size, &err);
	if (r)
		return cli_fail(&err);
	done.device = device;
	show(&done, json);
	return EXIT_OK;
}
