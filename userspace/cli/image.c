// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup image: the verbs that ask the meta server. A clone and a snapshot may have the agent push
 * first. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/uuid.h"
#include "cli/agent.h"
#include "cli/connect.h"
#include "cli/ui.h"
#include "proto/limits.h"

static json_t *image_json(const Vmdedup__Image *im)
{
	json_t *j = json_object();

	json_object_set_new(j, "name", json_string(im->name));
	json_object_set_new(j, "uuid", json_uuid(im->uuid.data, im->uuid.len));
	json_object_set_new(j, "size", json_integer(im->size));
	json_object_set_new(j, "root", json_fp(im->root.data, im->root.len));
	json_object_set_new(j, "version", json_integer(im->version));
	json_object_set_new(j, "versions", json_integer(im->versions));
	json_object_set_new(j, "label", json_string(im->label));
	json_object_set_new(j, "created_s", json_integer(im->created_s));
	json_object_set_new(j, "changed_s", json_integer(im->changed_s));
	json_object_set_new(j, "leased_host", im->leased_to.len ? json_string(im->leased_host) :
								  json_null());
	json_object_set_new(j, "leased_to", json_uuid(im->leased_to.data, im->leased_to.len));
	json_object_set_new(j, "lease_epoch", json_integer(im->lease_epoch));
	json_object_set_new(j, "head_cut", json_integer(im->head_cut));
	return j;
}

/* ---- ls ---- */

static int ls_page(struct connection *cn, const char *prefix, const char *after,
		   struct net_reply *reply, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageList list = VMDEDUP__IMAGE_LIST__INIT;
	int r;

	list.prefix = (char *)prefix;
	list.after = (char *)after;
	list.limit = PROTO_MAX_LIST;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_LIST;
	req.image_list = &list;
	r = cluster_call(cn->cluster, &req, NULL, 0, CLI_TIMEOUT_MS, reply, err);
	if (!r && reply->header->body_case != VMDEDUP__REPLY__BODY_IMAGE_LIST)
		r = error_set(err, -EPROTO, "the meta server answered with something else");
	return r;
}

static void ls_row(struct table *t, const Vmdedup__Image *im)
{
	char size[32], changed[32], root[16];

	table_cell(t, "%s", im->name);
	table_cell(t, "%s", size_to_text(im->size, size));
	table_cell(t, "%llu", (unsigned long long)im->versions);
	table_cell(t, "%s", time_to_text(im->changed_s, changed));
	table_cell(t, "%s", fp_short(im->root.data, im->root.len, root));
	table_cell(t, "%s", im->leased_to.len ? im->leased_host : "-");
}

static int ls_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	static const char *const heads[] = { "<NAME", "SIZE", "VERSIONS", "<CHANGED", "<ROOT",
					     "<ATTACHED" };
	bool json = false, more = true;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	char after[IMAGE_NAME_MAX + 1] = "";
	struct connection cn;
	struct error err = { 0 };
	struct table *t = NULL;
	json_t *all = NULL;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 1, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	if (json)
		all = json_array();
	else
		t = table_new(heads, 6);
	while (!r && more) {
		struct net_reply reply;

		r = ls_page(&cn, argc ? argv[0] : "", after, &reply, &err);
		more = !r && reply.header->image_list->more && reply.header->image_list->n_images;
		for (size_t i = 0; !r && i < reply.header->image_list->n_images; i++) {
			const Vmdedup__Image *im = reply.header->image_list->images[i];

			if (json)
				json_array_append_new(all, image_json(im));
			else
				ls_row(t, im);
			snprintf(after, sizeof(after), "%s", im->name);
		}
		net_reply_free(&reply);
	}
	connect_close(&cn);
	if (r) {
		json_decref(all);
		return cli_fail(&err);
	}
	if (json)
		json_show(all);
	else
		table_print(t);
	return EXIT_OK;
}

/* ---- show ---- */

static void show_text(const Vmdedup__Image *im)
{
	char size[32], t[32], hex[FP_HEX_SIZE] = "-";
	struct fp root;

	if (im->root.len == FP_SIZE) {
		memcpy(root.b, im->root.data, FP_SIZE);
		fp_to_hex(&root, hex);
	}
	printf("name      %s\n", im->name);
	printf("size      %s (%llu bytes)\n", size_to_text(im->size, size),
	       (unsigned long long)im->size);
	if (im->version)
		printf("version   %llu%s%s\n", (unsigned long long)im->version,
		       *im->label ? ", " : "", im->label);
	printf("root      %s\n", hex);
	printf("versions  %llu\n", (unsigned long long)im->versions);
	printf("created   %s\n", time_to_text(im->created_s, t));
	printf("changed   %s\n", time_to_text(im->changed_s, t));
	if (im->leased_to.len)
		printf("attached  for writing on %s (lease epoch %llu, cut %llu)\n", im->leased_host,
		       (unsigned long long)im->lease_epoch, (unsigned long long)im->head_cut);
	else
		printf("attached  nowhere for writing\n");
}

static int show_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	uint64_t version = 0;
	const struct opt opts[] = {
		OPT_FLAG("json", &json, "print JSON"),
		OPT_NUMBER("version", "N", &version, "that version instead of the head"),
		OPT_END
	};
	Vmdedup__Image *image = NULL;
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	r = cli_name_check(argv[0], &err);
	if (!r)
		r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	r = cli_image_get(&cn, argv[0], version, &image, &err);
	connect_close(&cn);
	if (r)
		return cli_fail(&err);
	if (json)
		json_show(image_json(image));
	else
		show_text(image);
	cli_image_free(image);
	return EXIT_OK;
}

/* ---- mutations: clone, rm, rename, snapshot, rollback ---- */

/* Sends the request; the image in the answer, if there is one, is shown with @json, with the
 * seconds between request and answer. */
static int mutate_on(struct connection *cn, Vmdedup__Request *req, bool json, struct error *err)
{
	uint64_t start = clock_mono_ns();
	struct net_reply reply;
	int r = cluster_mutate(cn->cluster, req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);

	if (!r && json && reply.header->body_case == VMDEDUP__REPLY__BODY_IMAGE) {
		json_t *image = image_json(reply.header->image);

		json_object_set_new(image, "seconds",
				    json_real((clock_mono_ns() - start) / 1e9));
		json_show(image);
	}
	net_reply_free(&reply);
	return r;
}

static int mutate(struct cli *cli, Vmdedup__Request *req, bool json)
{
	struct connection cn;
	struct error err = { 0 };
	int r = connect_open(&cn, &cli->conf, &err);

	if (!r) {
		r = mutate_on(&cn, req, json, &err);
		connect_close(&cn);
	}
	return r ? cli_fail(&err) : EXIT_OK;
}

/* The cache of this host's agent; false: there is none. */
static bool own_cache(struct agent_link *a, uint8_t cache[16])
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__AgentStatus body = VMDEDUP__AGENT_STATUS__INIT;
	struct net_reply reply = { 0 };
	bool found = false;

	req.body_case = VMDEDUP__REQUEST__BODY_AGENT_STATUS;
	req.agent_status = &body;
	if (!agent_call(a, &req, VMDEDUP__REPLY__BODY_AGENT_STATUS, AGENT_TIMEOUT_MS, &reply, NULL) &&
	    reply.header->agent_status->cache.len == 16) {
		memcpy(cache, reply.header->agent_status->cache.data, 16);
		found = true;
	}
	net_reply_free(&reply);
	return found;
}

/* @what is made of it: for people. */
static int push_first(struct agent_link *a, const Vmdedup__Image *im, const char *what,
		      struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumePush push = VMDEDUP__VOLUME_PUSH__INIT;
	struct net_reply reply = { 0 };
	char uuid[UUID_TEXT_SIZE];
	struct uuid image;
	int r;

	memcpy(image.b, im->uuid.data, sizeof(image.b));
	push.name = (char *)uuid_to_text(&image, uuid); /* the volume may know an older name */
	push.nonce = agent_nonce();
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PUSH;
	req.volume_push = &push;
	r = agent_call(a, &req, VMDEDUP__REPLY__BODY_VOLUME_PUSH, -1, &reply, err);
	net_reply_free(&reply);
	return r ? error_prefix(err, "push of %s before its %s", im->name, what) : 0;
}

/* What a running volume has written is to be in its clone or snapshot, @what: cut and pushed by
 * this host's agent. */
static int push_if_attached(struct cli *cli, struct connection *cn, const char *name,
			    const char *what, struct error *err)
{
	Vmdedup__Image *im = NULL;
	struct agent_link a;
	uint8_t cache[16];
	int r = cli_image_get(cn, name, 0, &im, err);

	if (r || im->leased_to.len != sizeof(cache))
		goto free_image;
	r = agent_open(&a, &cli->conf, NULL) || !own_cache(&a, cache) ||
	    memcmp(cache, im->leased_to.data, sizeof(cache)) ? -EBUSY : 0;
	if (r)
		error_set(err, r, "image %s is attached on host %s, and what it wrote since its last "
			  "push is known there alone: %s it there, or say --head to %s the last push",
			  name, im->leased_host, what, what);
	else
		r = push_first(&a, im, what, err);
	agent_close(&a);
free_image:
	cli_image_free(im);
	return r;
}

static int clone_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, head = false;
	uint64_t version = 0;
	const struct opt opts[] = {
		OPT_FLAG("json", &json, "print the new image as JSON"),
		OPT_NUMBER("version", "N", &version, "of that version instead of the head"),
		OPT_FLAG("head", &head, "of an attached image: as last pushed, without a push now"),
		OPT_END
	};
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageClone clone = VMDEDUP__IMAGE_CLONE__INIT;
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 2, 2, &code))
		return code;
	if (cli_name_check(argv[0], &err) || cli_name_check(argv[1], &err) ||
	    connect_open(&cn, &cli->conf, &err))
		return cli_fail(&err);
	clone.source = argv[0];
	clone.source_version = version;
	clone.name = argv[1];
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_CLONE;
	req.image_clone = &clone;
	r = version || head ? 0 : push_if_attached(cli, &cn, argv[0], "clone", &err);
	if (!r)
		r = mutate_on(&cn, &req, json, &err);
	connect_close(&cn);
	return r ? cli_fail(&err) : EXIT_OK;
}

static int rm_one(struct cluster *c, const char *name, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRemove remove_it = VMDEDUP__IMAGE_REMOVE__INIT;
	struct net_reply reply = { 0 };
	int r = cli_name_check(name, err);

	if (r)
		return r;
	remove_it.name = (char *)name;
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_REMOVE;
	req.image_remove = &remove_it;
	r = cluster_mutate(c, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
	net_reply_free(&reply);
	return r;
}

static int rm_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const struct opt opts[] = { OPT_END };
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 10000, &code))
		return code;
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	code = EXIT_OK;
	for (int i = 0; i < argc; i++)
		if (rm_one(cn.cluster, argv[i], &err))
			code = cli_fail(&err);
	connect_close(&cn);
	return code;
}

static int rename_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print the image as JSON"), OPT_END };
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__ImageRename rename_it = VMDEDUP__IMAGE_RENAME__INIT;
	struct error err = { 0 };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 2, 2, &code))
		return code;
	if (cli_name_check(argv[0], &err) || cli_name_check(argv[1], &err))
		return cli_fail(&err);
	rename_it.name = argv[0];
	rename_it.new_name = argv[1];
	req.body_case = VMDEDUP__REQUEST__BODY_IMAGE_RENAME;
	req.image_rename = &rename_it;
	return mutate(cli, &req, json);
}

static int snapshot_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, head = false;
	const char *label = "";
	const struct opt opts[] = {
		OPT_FLAG("json", &json, "print the image as JSON"),
		OPT_TEXT("label", "TEXT", &label, "a note that history shows"),
		OPT_FLAG("head", &head, "of an attached image: as last pushed, without a push now"),
		OPT_END
	};
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Snapshot snapshot = VMDEDUP__SNAPSHOT__INIT;
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (cli_name_check(argv[0], &err) || connect_open(&cn, &cli->conf, &err))
		return cli_fail(&err);
	snapshot.name = argv[0];
	snapshot.label = (char *)label;
	req.body_case = VMDEDUP__REQUEST__BODY_SNAPSHOT;
	req.snapshot = &snapshot;
	r = head ? 0 : push_if_attached(cli, &cn, argv[0], "snapshot", &err);
	if (!r)
		r = mutate_on(&cn, &req, json, &err);
	connect_close(&cn);
	return r ? cli_fail(&err) : EXIT_OK;
}

static int rollback_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	uint64_t version = 0;
	const struct opt opts[] = {
		OPT_FLAG("json", &json, "print the image as JSON"),
		OPT_NUMBER("version", "N", &version, "the version to go back to (needed)"),
		OPT_END
	};
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__Rollback rollback = VMDEDUP__ROLLBACK__INIT;
	struct error err = { 0 };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (!version) {
		fprintf(stderr, "vmdedup: --version is needed (`vmdedup image history %s` lists them)\n",
			argv[0]);
		return EXIT_USAGE;
	}
	if (cli_name_check(argv[0], &err))
		return cli_fail(&err);
	rollback.name = argv[0];
	rollback.version = version;
	req.body_case = VMDEDUP__REQUEST__BODY_ROLLBACK;
	req.rollback = &rollback;
	return mutate(cli, &req, json);
}

/* ---- history ---- */

static void history_row(struct table *t, json_t *all, const Vmdedup__Version *v)
{
	char size[32], created[32], root[16];
	json_t *j;

	if (t) {
		table_cell(t, "%llu", (unsigned long long)v->number);
		table_cell(t, "%s", time_to_text(v->created_s, created));
		table_cell(t, "%s", size_to_text(v->size, size));
		table_cell(t, "%s", fp_short(v->root.data, v->root.len, root));
		table_cell(t, "%s", v->label);
		return;
	}
	j = json_object();
	json_object_set_new(j, "version", json_integer(v->number));
	json_object_set_new(j, "created_s", json_integer(v->created_s));
	json_object_set_new(j, "size", json_integer(v->size));
	json_object_set_new(j, "root", json_fp(v->root.data, v->root.len));
	json_object_set_new(j, "label", json_string(v->label));
	json_array_append_new(all, j);
}

static int history_fill(struct cluster *c, const char *name, struct table *t, json_t *all,
			struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VersionList list = VMDEDUP__VERSION_LIST__INIT;
	bool more = true;
	int r = 0;

	list.name = (char *)name;
	list.limit = PROTO_MAX_LIST;
	req.body_case = VMDEDUP__REQUEST__BODY_VERSION_LIST;
	req.version_list = &list;
	while (!r && more) {
		struct net_reply reply;
		const Vmdedup__VersionListReply *page;

		r = cluster_call(c, &req, NULL, 0, CLI_TIMEOUT_MS, &reply, err);
		if (!r && reply.header->body_case != VMDEDUP__REPLY__BODY_VERSION_LIST)
			r = error_set(err, -EPROTO, "the meta server answered with something else");
		page = r ? NULL : reply.header->version_list;
		more = page && page->more && page->n_versions;
		for (size_t i = 0; page && i < page->n_versions; i++) {
			history_row(t, all, page->versions[i]);
			list.after = page->versions[i]->number;
		}
		net_reply_free(&reply);
	}
	return r;
}

static int history_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	static const char *const heads[] = { "VERSION", "<CREATED", "SIZE", "<ROOT", "<LABEL" };
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct table *t = NULL;
	json_t *all = NULL;
	struct connection cn;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	r = cli_name_check(argv[0], &err);
	if (!r)
		r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	if (json)
		all = json_array();
	else
		t = table_new(heads, 5);
	r = history_fill(cn.cluster, argv[0], t, all, &err);
	connect_close(&cn);
	if (r) {
		json_decref(all);
		return cli_fail(&err);
	}
	if (json)
		json_show(all);
	else
		table_print(t);
	return EXIT_OK;
}

/* ---- the table ---- */

const struct verb image_verbs[] = {
	{ "image", "import", "SOURCE NAME", "store a disk as a new image",
	  "SOURCE is a raw file (holes are skipped), a block device, a qcow2, vmdk, vhdx, vdi or vpc\n"
	  "file (read through qemu-nbd), or an NBD URI. Blocks of zeros are never stored; a block\n"
	  "that the cluster has already is not sent. An interrupted import leaves nothing behind\n"
	  "that blocks a second try, and the second try sends only what the first did not.\n\n"
	  "examples:\n"
	  "  vmdedup image import debian-12.qcow2 debian-12\n"
	  "  vmdedup image import /dev/vg0/web web-01 --json\n"
	  "  vmdedup image import nbd://10.0.0.5/disk0 disk0\n", import_run },
	{ "image", "export", "NAME FILE", "write an image to a sparse raw file",
	  "Every block is verified against its fingerprint. FILE appears only when it is whole.\n\n"
	  "examples:\n"
	  "  vmdedup image export web-01 web-01.raw\n"
	  "  vmdedup image export web-01 --version 3 --force /dev/vg0/restore\n", export_run },
	{ "image", "clone", "SOURCE NAME", "a new image that starts as a copy, in constant time",
	  "Of an image that is attached on this host its volume is cut and pushed first; the guest goes\n"
	  "on meanwhile.\n\n"
	  "examples:\n"
	  "  vmdedup image clone debian-12 web-01\n"
	  "  vmdedup image clone web-01 --version 3 web-01-old\n", clone_run },
	{ "image", "ls", "[PREFIX]", "list images",
	  "examples:\n"
	  "  vmdedup image ls\n"
	  "  vmdedup image ls web- --json\n", ls_run },
	{ "image", "show", "NAME", "one image in full",
	  "examples:\n"
	  "  vmdedup image show web-01\n", show_run },
	{ "image", "rm", "NAME...", "remove images; their space is collected later",
	  "An image that is attached for writing is not removed.\n\n"
	  "examples:\n"
	  "  vmdedup image rm web-01 web-02\n", rm_run },
	{ "image", "rename", "NAME NEW", "give an image another name",
	  "examples:\n"
	  "  vmdedup image rename web-01 web-old\n", rename_run },
	{ "image", "resize", "NAME SIZE", "make an image larger; what is new is zeros",
	  "At most 64 TiB; an image cannot become smaller. Versions keep their size. Where the image is\n"
	  "attached, `vmdedup volume resize` makes the device larger as well, while it is in use.\n\n"
	  "examples:\n"
	  "  vmdedup image resize web-01 40G\n", image_resize_run },
	{ "image", "verify", "NAME", "read every block of an image and check it",
	  "Exit code 6 when a block is missing or differs.\n\n"
	  "examples:\n"
	  "  vmdedup image verify web-01\n"
	  "  vmdedup image verify debian-12 --against debian-12.qcow2\n", verify_run },
	{ "image", "snapshot", "NAME", "keep the head as a numbered version",
	  "Of an image that is attached on this host its volume is cut and pushed first; the guest goes\n"
	  "on meanwhile. Attached on another host: say it there, or --head for what was last pushed.\n\n"
	  "examples:\n"
	  "  vmdedup image snapshot web-01 --label \"before the upgrade\"\n"
	  "  vmdedup image snapshot web-01 --head\n", snapshot_run },
	{ "image", "diff", "NAME [OTHER]", "which blocks differ between versions or images",
	  "examples:\n"
	  "  vmdedup image diff web-01 --from 3\n"
	  "  vmdedup image diff web-01 --from 3 --to 4 --ranges\n"
	  "  vmdedup image diff debian-12 web-01 --json\n", diff_run },
	{ "image", "history", "NAME", "list an image's versions",
	  "examples:\n"
	  "  vmdedup image history web-01\n", history_run },
	{ "image", "rollback", "NAME", "make an earlier version the head again",
	  "The image must not be attached for writing. A head that is no version yet is kept as one.\n\n"
	  "examples:\n"
	  "  vmdedup image rollback web-01 --version 3\n", rollback_run },
	{ 0 }
};
