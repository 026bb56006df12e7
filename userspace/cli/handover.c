// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup volume handover: what the agent does, in the order that keeps the guest's pause short. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/agent.h"
#include "cli/dm.h"
#include "cli/ui.h"

#define WARM_S		60
#define WARM_S_MAX	3600 /* HANDOVER_WAIT_MAX_MS */
#define ROUNDS_MAX	8
#define ROUND_SHORT_MS	250

struct handover {
	struct dm_named of;
	const char *to;
	bool prepare, cold;
	bool runs; /* a guest does, or may */
	bool gone; /* there is no such volume here */
	uint64_t warm_s;
	char host[256], why_cold[256];
	uint64_t blocks, warm, from_peers, epoch, pushed, ms, rounds, round_ms;
	uint64_t push_ms, warm_ms, remove_ms, release_ms, lease_ms;
};

static uint64_t ms_since(uint64_t start)
{
	return (clock_mono_ns() - start) / 1000000;
}

static int push_first(struct agent_link *a, struct handover *h, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumePush push = VMDEDUP__VOLUME_PUSH__INIT;
	struct net_reply reply = { 0 };
	uint64_t start = clock_mono_ns();
	int r;

	push.name = h->of.volume;
	push.nonce = agent_nonce();
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PUSH;
	req.volume_push = &push;
	r = agent_call(a, &req, VMDEDUP__REPLY__BODY_VOLUME_PUSH, -1, &reply, err);
	net_reply_free(&reply);
	h->push_ms = ms_since(start);
	return r;
}

enum step {
	STEP_ASK,    /* whether the other is there */
	STEP_WARM,   /* it, while the guest goes on */
	STEP_SWITCH,
};

/* @warm_ms: how long to wait for that. */
static int hand_over(struct agent_link *a, struct handover *h, enum step step, uint64_t warm_ms,
		     struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumeHandover body = VMDEDUP__VOLUME_HANDOVER__INIT;
	const Vmdedup__VolumeHandoverReply *said;
	struct net_reply reply = { 0 };
	int r;

	body.name = h->of.volume;
	body.to = (char *)h->to;
	body.ask = step == STEP_ASK;
	body.warm = step == STEP_WARM;
	body.wait_ms = warm_ms;
	body.stopped = !h->runs;
	body.nonce = agent_nonce();
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER;
	req.volume_handover = &body;
	r = agent_call(a, &req, VMDEDUP__REPLY__BODY_VOLUME_HANDOVER, -1, &reply, err);
	said = r ? NULL : reply.header->volume_handover;
	if (said) {
		snprintf(h->host, sizeof(h->host), "%s", said->host);
		h->epoch = said->lease_epoch;
		h->pushed = said->push ? said->push->blocks : 0;
		h->release_ms = said->release_ms;
		h->lease_ms = said->lease_ms;
	}
	if (said && step == STEP_WARM) {
		snprintf(h->why_cold, sizeof(h->why_cold), "%s", said->cold);
		h->blocks = said->blocks;
		h->warm = said->warm;
		h->from_peers += said->from_peers;
	}
	net_reply_free(&reply);
	return r;
}

/* Somebody has the device open: a guest that still runs. */
static bool is_in_use(const char *device)
{
	struct dm_volume *volumes = NULL;
	size_t i, count = 0;
	bool in_use = false;

	if (*device && !dm_volume_list(NULL, &volumes, &count, NULL))
		for (i = 0; i < count; i++)
			in_use |= !strcmp(volumes[i].name, device) && volumes[i].open_count;
	free(volumes);
	return in_use;
}

/* *warm_ms: what is left of the time for it. */
static int round_before(struct agent_link *a, struct handover *h, uint64_t *warm_ms,
			struct error *err)
{
	uint64_t start;
	int r = push_first(a, h, err);

	h->gone = r == -ENOENT;
	if (r || h->cold)
		return r;
	start = clock_mono_ns();
	r = hand_over(a, h, STEP_WARM, *warm_ms, err);
	h->warm_ms = ms_since(start);
	*warm_ms -= MIN(*warm_ms, h->warm_ms);
	return r;
}

/* A round is worth another: it was not short, and shorter than the one before (0: none) by a quarter at least. */
static bool is_worth_more(uint64_t ms, uint64_t before)
{
	return ms > ROUND_SHORT_MS && (!before || ms < before / 4 * 3);
}

/* Only pushes: what is left then is what the guest writes in a push, and not in a warming. */
static int push_the_rest(struct agent_link *a, struct handover *h, struct error *err)
{
	uint64_t before;
	int i, r;

	for (i = 0, r = 0; !r && i < ROUNDS_MAX; i++) {
		before = h->push_ms;
		r = push_first(a, h, err);
		if (!is_worth_more(h->push_ms, before))
			break;
	}
	return r;
}

/*
 * What a guest writes in one round is left for the next, and in the end for the switch, while it waits:
 * there are rounds as long as they get shorter. A volume that is not here any more needs none: an earlier
 * handover stopped behind the push.
 */
static int before_the_switch(struct agent_link *a, struct handover *h, struct error *err)
{
	uint64_t warm_ms = h->warm_s * 1000, before, start;
	int r;

	do {
		before = h->round_ms;
		start = clock_mono_ns();
		r = round_before(a, h, &warm_ms, err);
		h->round_ms = ms_since(start);
	} while (!r && ++h->rounds < ROUNDS_MAX && h->runs && !*h->why_cold &&
		 is_worth_more(h->round_ms, before));
	if (!r && h->runs && !h->cold)
		r = push_the_rest(a, h, err);
	return h->gone && !h->rounds && !h->prepare ? 0 : r;
}

/* The switch has failed, and the device has gone: for nothing, if the volume is here still. */
static void device_again(struct agent_link *a, const struct handover *h, const struct dm_table *t,
			 struct error *err)
{
	struct net_reply reply = { 0 };
	struct error why = { 0 };
	bool is_here;

	is_here = !agent_volumes(a, &reply, NULL) &&
		  agent_volume_in(reply.header->volume_list, h->of.volume);
	net_reply_free(&reply);
	if (!is_here) /* or nobody knows: the agent's own words tell what to do */
		return;
	if (dm_table_restore(h->of.device, t, uuid_is_null(&h->of.uuid) ? NULL : h->of.volume, &why))
		error_prefix(err, "/dev/mapper/%s was removed and cannot be made again (%.200s): `vmdedup "
			     "volume attach` does; nothing was handed over", h->of.device, why.text);
	else
		error_prefix(err, "nothing was handed over, and /dev/mapper/%s is there again",
			     h->of.device);
}

static int run(struct agent_link *a, struct handover *h, struct error *err)
{
	struct dm_table table = { 0 };
	bool removed = false;
	uint64_t start;
	int r = before_the_switch(a, h, err);

	if (r || h->prepare)
		return r;
	memset(err, 0, sizeof(*err));
	/* A device that has gone for a host that is not there would be missed. */
	if (*h->of.device)
		r = hand_over(a, h, STEP_ASK, 0, err) ?: dm_table_read(h->of.device, &table, err);
	start = clock_mono_ns();
	if (!r && *h->of.device) {
		r = dm_volume_remove(h->of.device, err);
		removed = !r;
	}
	h->remove_ms = ms_since(start);
	if (!r)
		r = hand_over(a, h, STEP_SWITCH, 0, err);
	h->ms = ms_since(start);
	if (r && removed)
		device_again(a, h, &table, err);
	free(table.params);
	return r;
}

static json_t *took_json(const struct handover *h)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I}", "push", (json_int_t)h->push_ms, "warm",
			 (json_int_t)h->warm_ms, "remove", (json_int_t)h->remove_ms, "release",
			 (json_int_t)h->release_ms, "lease", (json_int_t)h->lease_ms);
}

static void show(const struct handover *h, bool json)
{
	if (json) {
		json_show(json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "image",
				    h->of.image, "host", h->host, "handed_over", !h->prepare, "blocks",
				    (json_int_t)h->blocks, "warm", (json_int_t)h->warm, "from_peers",
				    (json_int_t)h->from_peers, "cold", h->why_cold, "last_push_blocks",
				    (json_int_t)h->pushed, "lease_epoch", (json_int_t)h->epoch,
				    "milliseconds", (json_int_t)h->ms, "rounds", (json_int_t)h->rounds,
				    "last_round_ms", (json_int_t)h->round_ms, "took_ms", took_json(h)));
		return;
	}
	if (*h->why_cold)
		printf("%s is not warm: %s\n", h->host, h->why_cold);
	else if (h->blocks)
		printf("%s is warm: %llu blocks, %llu of them brought from peers now\n", h->host,
		       (unsigned long long)h->warm, (unsigned long long)h->from_peers);
	if (!h->prepare)
		printf("handed %s over to %s in %llu ms, lease epoch %llu: `vmdedup volume attach %s` "
		       "there\n", h->of.image, h->host, (unsigned long long)h->ms,
		       (unsigned long long)h->epoch, h->of.image);
}

int handover_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	struct handover h = { .warm_s = UINT64_MAX };
	bool json = false;
	const struct opt opts[] = {
		OPT_TEXT("to", "HOST", &h.to, "that host, or the UUID of its cache (needed)"),
		OPT_FLAG("prepare", &h.prepare, "only push and warm: the guest goes on"),
		OPT_FLAG("cold", &h.cold, "do not warm the other host"),
		OPT_NUMBER("warm-wait", "SECONDS", &h.warm_s, "for the other to be warm (60; 0 once the guest has stopped)"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct error err = { 0 };
	struct agent_link a;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (!h.to || !*h.to) {
		fprintf(stderr, "vmdedup: --to is needed: the host that is to have %s\n", argv[0]);
		return EXIT_USAGE;
	}
	if (h.warm_s != UINT64_MAX && h.warm_s > WARM_S_MAX) {
		fprintf(stderr, "vmdedup: --warm-wait takes at most %d seconds\n", WARM_S_MAX);
		return EXIT_USAGE;
	}
	r = agent_open(&a, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	cli_catch_signals();
	r = dm_find(cli->conf.cache, argv[0], &h.of, &err);
	if (r)
		goto close_agent;
	/* A guest that has stopped is waiting already: the other host is warmed, and not waited for. */
	h.runs = h.prepare || is_in_use(h.of.device);
	if (h.warm_s == UINT64_MAX)
		h.warm_s = h.runs ? WARM_S : 0;
	r = run(&a, &h, &err);
	if (!r)
		show(&h, json);
close_agent:
	agent_close(&a);
	return r ? cli_fail(&err) : EXIT_OK;
}
