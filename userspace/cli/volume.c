// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup volume: attach, detach, push, ls. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/cleanup.h"
#include "base/uuid.h"
#include "cli/agent.h"
#include "cli/connect.h"
#include "cli/dm.h"
#include "cli/origins.h"
#include "cli/ui.h"

#define WAIT_LOOK_MS 20

/* Volume.flags as they stand on the wire. */
enum {
	VOLUME_READONLY = 1 << 0,
	VOLUME_EPHEMERAL = 1 << 1,
	VOLUME_DIRTY = 1 << 2,
	VOLUME_OPEN = 1 << 3,
	VOLUME_DIVERGED = 1 << 5,
	VOLUME_FENCED = 1 << 6,
};

/* ---- attach ---- */

static int prepare(struct agent_link *a, const char *image, bool read_only, bool ephemeral,
		   uint64_t *size, char **cache, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumePrepare body = VMDEDUP__VOLUME_PREPARE__INIT;
	struct net_reply reply;
	int r;

	body.name = (char *)image;
	body.readonly = read_only;
	body.ephemeral = ephemeral;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PREPARE;
	req.volume_prepare = &body;
	r = agent_call(a, &req, VMDEDUP__REPLY__BODY_VOLUME_PREPARE, CLI_TIMEOUT_MS, &reply, err);
	if (!r) {
		*size = reply.header->volume_prepare->size;
		*cache = strdup(reply.header->volume_prepare->cache_device);
		if (!*cache)
			r = error_set(err, -ENOMEM, "out of memory");
		else if (!**cache)
			r = error_set(err, -ENODEV, "the agent has no cache device: set `cache` in "
				      "[agent] of the configuration and restart it");
	}
	net_reply_free(&reply);
	return r;
}

/* Before the kernel does: its error would be a number. */
static int not_attached_yet(const char *cache, const char *image, const char *name,
			    struct error *err)
{
	CLEANUP_FREE struct dm_volume *volumes = NULL;
	size_t count;
	int r = dm_volume_list(cache, &volumes, &count, err);

	for (size_t i = 0; !r && i < count; i++)
		if (!strcmp(volumes[i].image, image))
			r = error_set(err, -EBUSY, "image %s is attached on this host already, as "
				      "/dev/mapper/%s", image, volumes[i].name);
	return r ?: dm_name_is_free(name, err);
}

/* Another host has it, and may be about to hand it over. */
static int prepare_wait(struct agent_link *a, const char *image, bool read_only, bool ephemeral,
			uint64_t wait_s, uint64_t *size, char **cache, struct error *err)
{
	uint64_t end = clock_mono_ns() + wait_s * 1000000000ULL;
	int r;

	for (;;) {
		memset(err, 0, sizeof(*err));
		r = prepare(a, image, read_only, ephemeral, size, cache, err);
		if (r != -EBUSY || clock_mono_ns() >= end)
			return r;
		poll(NULL, 0, WAIT_LOOK_MS);
	}
}

static int attach(struct cli *cli, const char *image, const char *name, bool read_only,
		  bool ephemeral, uint64_t wait_s, uint64_t *size, struct error *err)
{
	CLEANUP_FREE char *cache = NULL;
	const char *wrong = dm_name_check(name);
	struct agent_link a;
	int r = cli_name_check(image, err);

	if (!r && wrong)
		r = error_set(err, -EINVAL, "\"%.140s\" cannot be a device's name: %s", name, wrong);
	if (!r)
		r = dm_check(err);
	if (!r)
		r = not_attached_yet(cli->conf.cache, image, name, err);
	if (!r)
		r = agent_open(&a, &cli->conf, err);
	if (r)
		return r;
	r = prepare_wait(&a, image, read_only, ephemeral, wait_s, size, &cache, err);
	agent_close(&a);
	if (!r)
		r = dm_volume_create(name, *size, cache, image, read_only, ephemeral, err);
	return r ? error_prefix(err, "attach of %s", image) : 0;
}

static int attach_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const char *name = NULL;
	bool json = false, read_only = false, ephemeral = false;
	uint64_t size = 0, wait_s = 0;
	const struct opt opts[] = {
		OPT_TEXT("name", "DEVICE", &name, "name below /dev/mapper (the image's)"),
		OPT_FLAG("read-only", &read_only, "take no lease; any number of hosts may"),
		OPT_FLAG("ephemeral", &ephemeral, "what is written is dropped on detach"),
		OPT_NUMBER("wait", "SECONDS", &wait_s, "for another host that has it to hand it over"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct error err = { 0 };
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (!name)
		name = argv[0];
	if (attach(cli, argv[0], name, read_only, ephemeral, wait_s, &size, &err))
		return cli_fail(&err);
	if (json)
		json_show(json_pack("{s:s, s:s+, s:I, s:b, s:b}", "image", argv[0], "device",
				    "/dev/mapper/", name, "size", (json_int_t)size, "read_only",
				    read_only, "ephemeral", ephemeral));
	else
		printf("/dev/mapper/%s\n", name);
	return EXIT_OK;
}

/* ---- push, and waiting for it ---- */

static uint64_t dirty_of(struct agent_link *a, const char *volume)
{
	struct net_reply reply;
	const Vmdedup__Volume *v;
	uint64_t dirty = 0;

	if (!agent_volumes(a, &reply, NULL)) {
		v = agent_volume_in(reply.header->volume_list, volume);
		dirty = v ? v->dirty_bytes : 0;
	}
	net_reply_free(&reply);
	return dirty;
}

struct waiting {
	bool done;
	int r;
	struct net_reply reply;
};

static void answered(void *arg, int r, struct net_reply *reply)
{
	struct waiting *w = arg;

	w->done = true;
	w->r = r;
	if (reply)
		w->reply = *reply;
}

/* A push takes as long as it takes: shows how much of what was dirty is gone. Ctrl-C ends the
 * waiting, not the push. */
static int push_wait(struct agent_link *a, Vmdedup__Request *req, const char *volume,
		     const char *label, struct net_reply *reply, struct error *err)
{
	uint64_t dirty = dirty_of(a, volume), next = clock_mono_ns() + 300000000ULL;
	struct waiting w = { 0 };
	struct progress bar;
	int r = net_client_submit(a->client, req, NULL, 0, -1, answered, &w);

	if (r)
		return error_set(err, r, "cannot reach the agent: %s", strerror(-r));
	progress_start(&bar, label, dirty);
	while (!w.done && !cli_stopped()) {
		net_client_run(a->client, 100);
		if (!w.done && bar.on && clock_mono_ns() >= next) {
			uint64_t left = dirty_of(a, volume);

			progress_update(&bar, left < dirty ? dirty - left : 0);
			next = clock_mono_ns() + 300000000ULL;
		}
	}
	progress_end(&bar);
	*reply = w.reply;
	if (!w.done)
		return error_set(err, -EINTR, "not waited for: the agent goes on with it");
	if (w.r)
		return error_set(err, w.r, "the agent has gone: %s", strerror(-w.r));
	if (w.reply.header->error)
		return error_set(err, -w.reply.header->error, "%s", w.reply.header->error_text);
	if (w.reply.header->body_case != VMDEDUP__REPLY__BODY_VOLUME_PUSH)
		return error_set(err, -EPROTO, "the agent answered with something else");
	return 0;
}

static void push_show(const char *image, const Vmdedup__VolumePushReply *p, bool json)
{
	char sent[32], ms[32], root[16];

	if (json) {
		json_show(json_pack("{s:s, s:I, s:I, s:I, s:I, s:o, s:I, s:I}", "image", image,
				    "cut", (json_int_t)p->cut, "blocks", (json_int_t)p->blocks,
				    "new_blocks", (json_int_t)p->new_blocks,
				    "bytes_sent", (json_int_t)p->bytes_sent,
				    "root", json_fp(p->root.data, p->root.len),
				    "version", (json_int_t)p->version,
				    "milliseconds", (json_int_t)p->milliseconds));
		return;
	}
	if (!p->blocks) {
		printf("pushed %s: nothing was dirty", image);
	} else {
		printf("pushed %s: %llu blocks, %llu of them new, %s sent in %s, root %s", image,
		       (unsigned long long)p->blocks, (unsigned long long)p->new_blocks,
		       size_to_text(p->bytes_sent, sent), duration_to_text(p->milliseconds, ms),
		       fp_short(p->root.data, p->root.len, root));
	}
	if (p->version)
		printf(", version %llu", (unsigned long long)p->version);
	printf("\n");
}

static int push_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const char *label = "";
	bool json = false, version = false;
	const struct opt opts[] = {
		OPT_FLAG("version", &version, "keep the result as a numbered version"),
		OPT_TEXT("label", "TEXT", &label, "a note to that version"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumePush push = VMDEDUP__VOLUME_PUSH__INIT;
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	struct agent_link a;
	struct dm_named d;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	r = agent_open(&a, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	cli_catch_signals();
	push.name = d.volume;
	push.version = version || *label;
	push.nonce = agent_nonce();
	push.label = (char *)label;
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PUSH;
	req.volume_push = &push;
	r = dm_find(cli->conf.cache, argv[0], &d, &err) ?:
	    push_wait(&a, &req, d.volume, "push", &reply, &err);
	if (!r)
		push_show(d.image, reply.header->volume_push, json);
	net_reply_free(&reply);
	agent_close(&a);
	return r ? cli_fail(&err) : EXIT_OK;
}

/* ---- detach ---- */

static int detach(struct agent_link *a, const char *volume, bool no_push, bool discard,
		  struct net_reply *reply, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumeDetach body = VMDEDUP__VOLUME_DETACH__INIT;

	body.name = (char *)volume;
	body.no_push = no_push;
	body.discard = discard;
	body.nonce = agent_nonce();
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_DETACH;
	req.volume_detach = &body;
	return push_wait(a, &req, volume, "detach", reply, err);
}

static int detach_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, no_push = false, discard = false;
	const struct opt opts[] = {
		OPT_FLAG("no-push", &no_push, "leave dirty data and the lease here for later"),
		OPT_FLAG("discard", &discard, "drop the dirty data (ephemeral or diverged volumes)"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct net_reply reply = { 0 };
	struct error err = { 0 };
	struct agent_link a;
	struct dm_named d;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	/* Before the device goes: without an agent there would be nobody to push. */
	r = agent_open(&a, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	cli_catch_signals();
	r = dm_find(cli->conf.cache, argv[0], &d, &err);
	if (!r && *d.device)
		r = dm_volume_remove(d.device, &err);
	if (!r)
		r = detach(&a, d.volume, no_push, discard, &reply, &err);
	if (!r && json)
		push_show(d.image, reply.header->volume_push, true);
	else if (!r && reply.header->volume_push->blocks)
		push_show(d.image, reply.header->volume_push, false);
	if (!r && !json)
		printf("detached %s\n", d.image);
	net_reply_free(&reply);
	agent_close(&a);
	return r ? cli_fail(&err) : EXIT_OK;
}

/* ---- ls ---- */

static const char *flags_text(uint32_t flags, char text[96])
{
	static const struct {
		uint32_t flag;
		const char *word;
	} words[] = {
		{ VOLUME_OPEN, "open" },	   { VOLUME_READONLY, "read-only" },
		{ VOLUME_EPHEMERAL, "ephemeral" }, { VOLUME_DIRTY, "dirty" },
		{ VOLUME_DIVERGED, "DIVERGED" },   { VOLUME_FENCED, "FENCED" },
	};
	size_t n = 0;

	*text = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (flags & words[i].flag)
			n += snprintf(text + n, 96 - n, "%s%s", n ? "," : "", words[i].word);
	return n ? text : "-";
}

static const struct dm_volume *device_of(const struct dm_volume *volumes, size_t count,
					 const ProtobufCBinaryData *image)
{
	for (size_t i = 0; i < count; i++)
		if (image->len == sizeof(volumes[i].uuid.b) &&
		    !memcmp(volumes[i].uuid.b, image->data, image->len))
			return &volumes[i];
	return NULL;
}

static json_t *volume_json(const Vmdedup__Volume *v, const struct dm_volume *dev)
{
	char flags[96];

	return json_pack("{s:s, s:s?, s:o, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:s, s:o, s:o, s:I}",
			 "image", v->name, "device", dev ? dev->name : NULL,
			 "uuid", json_uuid(v->image.data, v->image.len),
			 "size", (json_int_t)v->size, "state", flags_text(v->flags, flags),
			 "lease_epoch", (json_int_t)v->lease_epoch,
			 "committed_cut", (json_int_t)v->committed_cut,
			 "closed_cut", (json_int_t)v->closed_cut,
			 "dirty_bytes", (json_int_t)v->dirty_bytes,
			 "oldest_ms", (json_int_t)v->oldest_ms,
			 "root", json_fp(v->root.data, v->root.len),
			 "fetches", (json_int_t)v->fetches, "trouble", v->trouble,
			 "from", origins_json(v->from, v->n_from),
			 "latency_us", origins_json(v->latency_us, v->n_latency_us),
			 "prefetched", (json_int_t)v->prefetched);
}

static void ls_show(const Vmdedup__VolumeListReply *list, const struct dm_volume *devices,
		    size_t count, bool json)
{
	static const char *const heads[] = { "<IMAGE", "<DEVICE", "SIZE", "<STATE", "DIRTY", "OLDEST",
					     "FETCHED", "<ROOT", "<TROUBLE" };
	struct table *t = json ? NULL : table_new(heads, 9);
	json_t *all = json ? json_array() : NULL;

	for (size_t i = 0; i < list->n_volumes; i++) {
		const Vmdedup__Volume *v = list->volumes[i];
		const struct dm_volume *dev = device_of(devices, count, &v->image);
		char size[32], dirty[32], oldest[32], flags[96], root[16];

		if (json) {
			json_array_append_new(all, volume_json(v, dev));
			continue;
		}
		table_cell(t, "%s", v->name);
		table_cell(t, "%s", dev ? dev->name : "-");
		table_cell(t, "%s", size_to_text(v->size, size));
		table_cell(t, "%s", flags_text(v->flags, flags));
		table_cell(t, "%s", size_to_text(v->dirty_bytes, dirty));
		table_cell(t, "%s", v->dirty_bytes ? duration_to_text(v->oldest_ms, oldest) : "-");
		table_cell(t, "%llu", (unsigned long long)v->fetches);
		table_cell(t, "%s", fp_short(v->root.data, v->root.len, root));
		table_cell(t, "%s", *v->trouble ? v->trouble : "-");
	}
	if (json)
		json_show(all);
	else
		table_print(t);
}

static int ls_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	CLEANUP_FREE struct dm_volume *devices = NULL;
	struct net_reply reply;
	struct error err = { 0 };
	struct agent_link a;
	size_t count = 0;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 0, 0, &code))
		return code;
	r = agent_open(&a, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	r = agent_volumes(&a, &reply, &err);
	if (!r) {
		/* Without the device mapper there are no devices to show, and that is all. */
		dm_volume_list(cli->conf.cache, &devices, &count, NULL);
		ls_show(reply.header->volume_list, devices, count, json);
	}
	net_reply_free(&reply);
	agent_close(&a);
	return r ? cli_fail(&err) : EXIT_OK;
}

const struct verb volume_verbs[] = {
	{ "volume", "attach", "IMAGE", "make an image a block device of this host",
	  "Prints the device's path. A plain `dmsetup create` with the table\n"
	  "`0 SECTORS dedup CACHE IMAGE` does the same.\n\n"
	  "examples:\n"
	  "  vmdedup volume attach web-01\n"
	  "  vmdedup volume attach web-01 --wait 60\n"
	  "  vmdedup volume attach debian-12 --read-only --name base\n", attach_run },
	{ "volume", "detach", "IMAGE|DEVICE", "remove the device, push what is dirty, end the lease",
	  "examples:\n"
	  "  vmdedup volume detach web-01\n"
	  "  vmdedup volume detach web-01 --no-push\n", detach_run },
	{ "volume", "push", "IMAGE|DEVICE", "deduplicate and store what was written so far",
	  "examples:\n"
	  "  vmdedup volume push web-01\n"
	  "  vmdedup volume push web-01 --label \"before the upgrade\"\n", push_run },
	{ "volume", "handover", "IMAGE|DEVICE", "move a volume to another host that runs an agent",
	  "Pushes, has the other host's cache warmed with what this one's holds of the image, removes the\n"
	  "device, pushes the rest and gives the lease to the other host, where `vmdedup volume attach`\n"
	  "opens it. While the guest still runs, --prepare does all that does not stop it. Cut off at any\n"
	  "moment, exactly one of the hosts has the volume: the same command again goes on.\n\n"
	  "examples:\n"
	  "  vmdedup volume handover web-01 --to host7 --prepare\n"
	  "  vmdedup volume handover web-01 --to host7\n"
	  "  vmdedup volume attach web-01 --wait 60      (on host7)\n", handover_run },
	{ "volume", "resize", "IMAGE|DEVICE [SIZE]", "make an image and its device larger, in use",
	  "Without SIZE the device gets the size that the image has. What is new is zeros; the guest sees\n"
	  "the new size when it looks again (`virsh blockresize`).\n\n"
	  "examples:\n"
	  "  vmdedup volume resize web-01 40G\n"
	  "  vmdedup volume resize web-01\n", volume_resize_run },
	{ "volume", "ls", "", "list this host's volumes",
	  "examples:\n"
	  "  vmdedup volume ls\n", ls_run },
	{ "volume", "leases", "", "list the leases of all hosts",
	  "examples:\n"
	  "  vmdedup volume leases\n", leases_run },
	{ "volume", "break-lease", "IMAGE", "take an image from a host that is gone",
	  "Says what would be lost, and does nothing without --yes. The host may still be running.\n"
	  "What it had not pushed stays recoverable there until the broken lease is forgotten.\n\n"
	  "examples:\n"
	  "  vmdedup volume break-lease web-01\n"
	  "  vmdedup volume break-lease web-01 --yes\n"
	  "  vmdedup volume break-lease web-01 --forget --yes\n", break_lease_run },
	{ "volume", "recover", "VOLUME [NEW]", "make what a diverged volume holds a new image",
	  "The new image is what the guest had last written, over the root on which the volume stood.\n"
	  "Then the volume is given up. Without NEW the image gets a name of its own, which is printed.\n"
	  "A recovery that was cut off is done again, under another name.\n\n"
	  "examples:\n"
	  "  vmdedup volume recover web-01\n"
	  "  vmdedup volume recover web-01 web-01-of-host3\n", recover_run },
	{ 0 }
};
