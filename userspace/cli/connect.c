// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cli/connect.h"
#include "proto/limits.h"

int connect_open(struct connection *cn, const struct config *conf, struct error *err)
{
	int r;

	*cn = (struct connection){ .conf = conf };
	cn->net = net_ctx_new(conf->curve_secret, conf->curve_clients, err);
	if (!cn->net)
		return err->code ? err->code : -ENOMEM;
	r = embedded_or_remote(cn->net, conf, &cn->embedded, &cn->meta, err);
	if (r)
		goto close;
	cn->cluster = connect_another(cn, err);
	if (cn->cluster)
		return 0;
	r = err->code ? err->code : -ENOTCONN;
close:
	connect_close(cn);
	return r;
}

struct cluster *connect_another(struct connection *cn, struct error *err)
{
	return cluster_open(cn->net, cn->conf, cn->meta, "cli", CLI_TIMEOUT_MS, err);
}

void connect_close(struct connection *cn)
{
	cluster_close(cn->cluster);
	if (cn->embedded)
		embedded_stop(cn->embedded);
	free(cn->meta);
	if (cn->net)
		net_ctx_free(cn->net);
	*cn = (struct connection){ 0 };
}

int cli_name_check(const char *name, struct error *err)
{
	const char *wrong = image_name_check(name);

	/* It may be long, or hold anything: show the start of it only. */
	return wrong ? error_set(err, -EINVAL, "\"%.60s%s\" cannot be an image's name: %s", name,
				 strlen(name) > 60 ? "..." : "", wrong) : 0;
}

static int image_ask(struct connection *cn, Vmdedup__ImageGet *get, Vmdedup__Image **image,
		     struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	struct net_reply reply = { 0 };
	int r;

	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_GET;
	req.image_get = get;
	r = cluster_call(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_IMAGE)
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	if (!r) {
		*image = reply.header->image;
		reply.header->image = NULL;
		reply.header->body_case = VMDEDUP__REPLY__BODY__NOT_SET;
	}
	net_reply_free(&reply);
	return r;
}

int cli_image_get(struct connection *cn, const char *name, uint64_t version, Vmdedup__Image **image,
	      struct error *err)
{
	Vmdedup__ImageGet get = VMDEDUP__IMAGE_GET__INIT;
	int r = cli_name_check(name, err);

	get.name = (char *)name;
	get.version = version;
	return r ? r : image_ask(cn, &get, image, err);
}

int cli_image_get_by_uuid(struct connection *cn, const struct uuid *uuid, Vmdedup__Image **image,
			  struct error *err)
{
	Vmdedup__ImageGet get = VMDEDUP__IMAGE_GET__INIT;

	get.uuid = (ProtobufCBinaryData){ sizeof(uuid->b), (uint8_t *)uuid->b };
	return image_ask(cn, &get, image, err);
}

void cli_image_free(Vmdedup__Image *image)
{
	if (image)
		vmdedup__image__free_unpacked(image, NULL);
}

int cli_root_of(const Vmdedup__Image *image, struct fp *root, struct error *err)
{
	if (image->root.len != FP_SIZE)
		return error_set(err, -EPROTO, "image %s has no root", image->name);
	memcpy(root->b, image->root.data, FP_SIZE);
	return 0;
}
