// SPDX-License-Identifier: GPL-2.0-or-later
/* The control socket, <run>/agent.sock: what the command `vmdedup` asks of this host's agent. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "agent/daemon.h"
#include "base/cleanup.h"
#include "base/clock.h"

/* A request that waits for a list of volumes. */
struct volumes_request {
	struct work work;
	struct daemon *daemon;
	struct net_request *req;
	struct dm_dedup_volume_info *infos;
	size_t count;
	int r;
};

struct push_request {
	struct pusher_task task;
	struct daemon *daemon;
	struct net_request *req;
	uint64_t nonce;
};

struct prepare_request {
	struct work work;
	struct daemon *daemon;
	struct net_request *req;
	char name[DM_DEDUP_NAME_SIZE];
	uint32_t flags;
	struct agent_image image;
	bool is_open; /* for writing, by the cache's records */
	int r;
};

static ProtobufCBinaryData bytes(const void *data, size_t len)
{
	return (ProtobufCBinaryData){ .len = len, .data = (uint8_t *)data };
}

void control_trouble(struct daemon *d, char *text, size_t size)
{
	struct pusher_stats pushed = { 0 };
	struct agent_stats stats;

	agent_stats(d->agent, &stats);
	if (d->pusher)
		pusher_stats(d->pusher, &pushed);
	snprintf(text, size, "%s%s%s%s%s", d->cache_trouble,
		 d->cache_trouble[0] && stats.trouble[0] ? "; " : "", stats.trouble,
		 (d->cache_trouble[0] || stats.trouble[0]) && pushed.trouble[0] ? "; " : "",
		 pushed.trouble);
}

/* ---- status and volumes ---- */

static void fill_core_stats(Vmdedup__AgentStatusReply *s, struct daemon *d)
{
	struct agent_stats stats;

	agent_stats(d->agent, &stats);
	s->clean = stats.clean;
	s->fetches = stats.fetches;
	s->fetch_bytes = stats.got_bytes;
	s->from_cache = stats.reads.count[FROM_CACHE];
	s->from_zero = stats.reads.count[FROM_ZERO];
	s->from_data = stats.reads.count[FROM_DATA];
	s->from_peer = stats.reads.count[FROM_PEER];
	s->prefetched = stats.prefetched;
	s->failed = stats.failed;
	s->waiting = stats.waiting;
	s->meta_ok = stats.meta_ok;
	s->data_ok = stats.data_ok;
}

/* On average, in microseconds. */
static void mean_waits(const struct agent_reads *reads, uint64_t us[NR_ORIGINS])
{
	size_t i;

	for (i = 0; i < NR_ORIGINS; i++)
		us[i] = reads->count[i] ? reads->wait_ns[i] / reads->count[i] / 1000 : 0;
}

static void reply_status(struct daemon *d, struct net_request *req, uint64_t dirty_bytes)
{
	Vmdedup__AgentStatusReply status = VMDEDUP__AGENT_STATUS_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct pusher_stats pushed = { 0 };
	uint64_t latency_us[NR_ORIGINS];
	struct agent_stats stats;
	char trouble[800];

	status.version = (char *)VMDEDUP_VERSION;
	status.host = d->host;
	status.mode = (char *)(d->embedded ? "embedded" : "fleet");
	status.channel = agent_is_connected(d->agent);
	if (status.channel) {
		status.cache = bytes(d->hello.cache, sizeof(d->hello.cache));
		status.slots = d->hello.nr_slots;
		status.block_shift = d->hello.block_shift;
	}
	status.cache_device = d->config->cache ? d->config->cache : (char *)"";
	status.dirty_bytes = dirty_bytes;
	fill_core_stats(&status, d);
	agent_stats(d->agent, &stats);
	mean_waits(&stats.reads, latency_us);
	status.n_latency_us = NR_ORIGINS;
	status.latency_us = latency_us;
	if (d->pusher)
		pusher_stats(d->pusher, &pushed);
	status.pushes = pushed.pushes;
	status.pushed_blocks = pushed.blocks;
	status.pushed_new = pushed.new_blocks;
	status.pushed_bytes = pushed.bytes_sent;
	control_trouble(d, trouble, sizeof(trouble));
	status.trouble = trouble;
	status.uptime_s = (clock_mono_ns() - d->started_ns) / 1000000000ULL;
	reply.body_case = VMDEDUP__REPLY__BODY_AGENT_STATUS;
	reply.agent_status = &status;
	net_reply_send(req, &reply, NULL, 0);
}

/* What a Volume points at. */
struct volume_parts {
	char trouble[256];
	struct agent_reads reads;
	uint64_t latency_us[NR_ORIGINS];
};

static void fill_volume(struct daemon *d, Vmdedup__Volume *v,
			const struct dm_dedup_volume_info *info, struct volume_parts *parts)
{
	struct uuid image;

	vmdedup__volume__init(v);
	v->id = info->volume;
	v->name = (char *)info->name;
	v->image = bytes(info->image, sizeof(info->image));
	v->size = info->size;
	v->flags = info->flags;
	v->lease_epoch = info->lease_epoch;
	v->committed_cut = info->committed_cut;
	v->closed_cut = info->closed_cut;
	v->dirty_bytes = info->dirty_bytes;
	v->oldest_ms = info->oldest_ms;
	v->root = bytes(info->root, sizeof(info->root));
	memcpy(image.b, info->image, sizeof(image.b));
	v->fetches = agent_image_fetches(d->agent, &image);
	agent_image_reads(d->agent, &image, &parts->reads);
	mean_waits(&parts->reads, parts->latency_us);
	v->n_from = v->n_latency_us = NR_ORIGINS;
	v->from = parts->reads.count;
	v->latency_us = parts->latency_us;
	v->prefetched = parts->reads.prefetched;
	pusher_trouble(d->pusher, info->volume, parts->trouble);
	v->trouble = parts->trouble;
}

static void reply_volumes(struct daemon *d, struct net_request *req,
			  const struct dm_dedup_volume_info *infos, size_t count)
{
	Vmdedup__VolumeListReply list = VMDEDUP__VOLUME_LIST_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	CLEANUP_FREE Vmdedup__Volume *volumes = calloc(MAX(count, 1), sizeof(*volumes));
	CLEANUP_FREE Vmdedup__Volume **pointers = calloc(MAX(count, 1), sizeof(*pointers));
	CLEANUP_FREE struct volume_parts *parts = calloc(MAX(count, 1), sizeof(*parts));
	size_t i;

	if (!volumes || !pointers || !parts) {
		net_reply_error(req, ENOMEM, "out of memory for a list of %zu volumes", count);
		return;
	}
	for (i = 0; i < count; i++) {
		fill_volume(d, &volumes[i], &infos[i], &parts[i]);
		pointers[i] = &volumes[i];
	}
	list.n_volumes = count;
	list.volumes = pointers;
	reply.body_case = VMDEDUP__REPLY__BODY_VOLUME_LIST;
	reply.volume_list = &list;
	net_reply_send(req, &reply, NULL, 0);
}

static void list_volumes(struct work *w)
{
	struct volumes_request *v = (struct volumes_request *)w;

	v->r = cache_volumes(v->daemon->cache, &v->infos, &v->count);
}

static void volumes_listed(struct work *w)
{
	struct volumes_request *v = (struct volumes_request *)w;
	uint64_t dirty = 0;
	size_t i;

	for (i = 0; !v->r && i < v->count; i++)
		dirty += v->infos[i].dirty_bytes;
	if (net_request_header(v->req)->body_case == VMDEDUP__REQUEST__BODY_AGENT_STATUS)
		reply_status(v->daemon, v->req, dirty);
	else if (v->r)
		net_reply_error(v->req, -v->r, "cannot list the volumes: %s",
				v->r == -ENODEV ? v->daemon->cache_trouble : strerror(-v->r));
	else
		reply_volumes(v->daemon, v->req, v->infos, v->count);
	free(v->infos);
	free(v);
}

static void handle_volumes(struct daemon *d, struct net_request *req)
{
	struct volumes_request *v = calloc(1, sizeof(*v));

	if (!v) {
		net_reply_error(req, ENOMEM, "out of memory");
		return;
	}
	v->work.run = list_volumes;
	v->work.done = volumes_listed;
	v->daemon = d;
	v->req = req;
	pool_submit(d->calls, &v->work);
}

/* ---- push and detach ---- */

static void push_done(struct work *w)
{
	struct push_request *p = (struct push_request *)w;
	Vmdedup__VolumePushReply body = VMDEDUP__VOLUME_PUSH_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	const struct push_result *result = &p->task.result;

	if (p->task.err.code) {
		reply.error = -p->task.err.code;
		reply.error_text = p->task.err.text;
		once_reply(&p->daemon->once, p->nonce, p->req, &reply);
		free(p);
		return;
	}
	if (p->task.kind == TASK_DETACH || p->task.kind == TASK_RECOVER)
		agent_forget_volume(p->daemon->agent, &p->task.image);
	body.cut = result->cut;
	body.blocks = result->blocks;
	body.new_blocks = result->new_blocks;
	body.bytes_sent = result->bytes_sent;
	body.version = result->version;
	body.root = bytes(result->root.b, sizeof(result->root.b));
	body.milliseconds = p->task.milliseconds;
	reply.body_case = VMDEDUP__REPLY__BODY_VOLUME_PUSH;
	reply.volume_push = &body;
	once_reply(&p->daemon->once, p->nonce, p->req, &reply);
	free(p);
}

static struct push_request *push_new(struct daemon *d, struct net_request *req,
				     enum pusher_task_kind kind, const char *name, uint64_t nonce)
{
	struct push_request *p;

	if (!name || !*name || strlen(name) >= sizeof(p->task.name)) {
		net_reply_error(req, EINVAL, "the name of an image has 1 to %zu bytes",
				sizeof(p->task.name) - 1);
		return NULL;
	}
	if (once_is_repeat(&d->once, nonce, req))
		return NULL;
	p = calloc(1, sizeof(*p));
	if (!p) {
		Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;

		reply.error = ENOMEM;
		reply.error_text = (char *)"out of memory";
		once_reply(&d->once, nonce, req, &reply);
		return NULL;
	}
	p->nonce = nonce;
	p->task.work.done = push_done;
	p->task.kind = kind;
	strcpy(p->task.name, name);
	p->daemon = d;
	p->req = req;
	return p;
}

static void handle_push(struct daemon *d, struct net_request *req)
{
	const Vmdedup__VolumePush *msg = net_request_header(req)->volume_push;
	struct push_request *p = push_new(d, req, TASK_PUSH, msg->name, msg->nonce);

	if (!p)
		return;
	p->task.make_version = msg->version;
	snprintf(p->task.label, sizeof(p->task.label), "%.255s", msg->label ? msg->label : "");
	pusher_submit(d->pusher, &p->task);
}

static void handle_detach(struct daemon *d, struct net_request *req)
{
	const Vmdedup__VolumeDetach *msg = net_request_header(req)->volume_detach;
	struct push_request *p = push_new(d, req, TASK_DETACH, msg->name, msg->nonce);

	if (!p)
		return;
	p->task.no_push = msg->no_push;
	p->task.discard = msg->discard;
	pusher_submit(d->pusher, &p->task);
}

static void handle_recover(struct daemon *d, struct net_request *req)
{
	const Vmdedup__VolumeRecover *msg = net_request_header(req)->volume_recover;
	struct push_request *p;

	if (!msg->new_name || !*msg->new_name || strlen(msg->new_name) >= DM_DEDUP_NAME_SIZE) {
		net_reply_error(req, EINVAL, "the name of an image has 1 to %d bytes",
				DM_DEDUP_NAME_SIZE - 1);
		return;
	}
	p = push_new(d, req, TASK_RECOVER, msg->name, msg->nonce);
	if (!p)
		return;
	strcpy(p->task.new_image, msg->new_name);
	pusher_submit(d->pusher, &p->task);
}

/* ---- prepare ---- */

static bool writes(uint32_t flags)
{
	return !(flags & (DM_DEDUP_VOL_READONLY | DM_DEDUP_VOL_EPHEMERAL));
}

/* NULL: it can be opened as asked. */
static const char *why_not(struct prepare_request *p, char text[512])
{
	const struct agent_image *image = &p->image;

	if (p->r == -ENOENT)
		snprintf(text, 512, "there is no image %s", p->name);
	else if (p->r)
		snprintf(text, 512, "cannot ask the meta server about image %s: %s", p->name,
			 strerror(-p->r));
	else if (writes(p->flags) && !uuid_is_null(&image->leased_to) &&
		 memcmp(image->leased_to.b, p->daemon->hello.cache, sizeof(image->leased_to.b)))
		snprintf(text, 512,
			 "image %s is in use by host %s: it has one writer at a time (detach it "
			 "there, or attach a clone or --read-only)",
			 p->name, image->leased_host);
	else if (writes(p->flags) && p->is_open)
		snprintf(text, 512, "image %s is attached on this host already", p->name);
	else
		return NULL;
	return text;
}

static void prepare_answer(struct prepare_request *p)
{
	Vmdedup__VolumePrepareReply body = VMDEDUP__VOLUME_PREPARE_REPLY__INIT;
	Vmdedup__Reply reply = VMDEDUP__REPLY__INIT;
	struct daemon *d = p->daemon;
	char text[512];
	const char *why = why_not(p, text);

	if (why) {
		net_reply_error(p->req, p->r ? -p->r : EBUSY, "%s", why);
		free(p);
		return;
	}
	body.size = p->image.size;
	body.cache_device = d->config->cache ? d->config->cache : (char *)"";
	reply.body_case = VMDEDUP__REPLY__BODY_VOLUME_PREPARE;
	reply.volume_prepare = &body;
	net_reply_send(p->req, &reply, NULL, 0);
	free(p);
}

static void look_for_open(struct work *w)
{
	struct prepare_request *p = (struct prepare_request *)w;
	CLEANUP_FREE struct dm_dedup_volume_info *infos = NULL;
	size_t i, count;

	/* Without the cache, the OPEN finds out. */
	if (cache_volumes(p->daemon->cache, &infos, &count))
		return;
	for (i = 0; i < count; i++)
		p->is_open |= !memcmp(infos[i].image, p->image.uuid.b, sizeof(p->image.uuid.b)) &&
			      infos[i].flags & DM_DEDUP_VOL_OPEN && writes(infos[i].flags);
}

static void looked_for_open(struct work *w)
{
	prepare_answer((struct prepare_request *)w);
}

/* The cache's records tell what is open: it may have refused what the core has answered. */
static void prepare_done(void *arg, int r, const struct agent_image *image)
{
	struct prepare_request *p = arg;

	p->r = r;
	if (r || !p->daemon->calls) {
		prepare_answer(p);
		return;
	}
	p->image = *image;
	p->work.run = look_for_open;
	p->work.done = looked_for_open;
	pool_submit(p->daemon->calls, &p->work);
}

static void handle_prepare(struct daemon *d, struct net_request *req)
{
	const Vmdedup__VolumePrepare *msg = net_request_header(req)->volume_prepare;
	struct prepare_request *p;

	if (!msg->name || !*msg->name || strlen(msg->name) >= sizeof(p->name)) {
		net_reply_error(req, EINVAL, "the name of an image has 1 to %zu bytes",
				sizeof(p->name) - 1);
		return;
	}
	if (!agent_is_connected(d->agent)) {
		net_reply_error(req, ENODEV, "the agent has no cache: %s", d->cache_trouble);
		return;
	}
	p = calloc(1, sizeof(*p));
	if (!p) {
		net_reply_error(req, ENOMEM, "out of memory");
		return;
	}
	p->daemon = d;
	p->req = req;
	strcpy(p->name, msg->name);
	p->flags = (msg->readonly ? DM_DEDUP_VOL_READONLY : 0) |
		   (msg->ephemeral ? DM_DEDUP_VOL_EPHEMERAL : 0);
	agent_ask_image(d->agent, p->name, prepare_done, p);
}

/* ---- dispatch ---- */

void control_handle(void *ctx, struct net_request *req)
{
	const Vmdedup__Request *msg = net_request_header(req);
	struct daemon *d = ctx;

	if (!d->cache && msg->body_case == VMDEDUP__REQUEST__BODY_AGENT_STATUS) {
		reply_status(d, req, 0);
		return;
	}
	if (!d->cache) {
		net_reply_error(req, ENODEV,
				"this agent has no cache: set `cache` in [agent] of the "
				"configuration and start it again");
		return;
	}
	switch (msg->body_case) {
	case VMDEDUP__REQUEST__BODY_AGENT_STATUS:
	case VMDEDUP__REQUEST__BODY_VOLUME_LIST:
		handle_volumes(d, req);
		break;
	case VMDEDUP__REQUEST__BODY_VOLUME_PUSH:
		handle_push(d, req);
		break;
	case VMDEDUP__REQUEST__BODY_VOLUME_DETACH:
		handle_detach(d, req);
		break;
	case VMDEDUP__REQUEST__BODY_VOLUME_RECOVER:
		handle_recover(d, req);
		break;
	case VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER:
		control_handover(d, req);
		break;
	case VMDEDUP__REQUEST__BODY_VOLUME_PREPARE:
		handle_prepare(d, req);
		break;
	case VMDEDUP__REQUEST__BODY_PEER_LIST:
		control_peers(d, req);
		break;
	default:
		net_reply_error(req, EOPNOTSUPP, "an agent does not answer this request");
	}
}
