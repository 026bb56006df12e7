// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup volume handover: what the agent does, in the order that keeps the guest's pause short. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "cli/agent.h"
#include "cli/dm.h"
#include "cli/ui.h"

#define WARM_S	   60
#define WARM_S_MAX 3600 /* HANDOVER_WAIT_MAX_MS */

struct handover {
	char image[256], device[128];
	const char *to;
	bool prepare, cold;
	uint64_t warm_s;
	char host[256], why_cold[256];
	uint64_t blocks, warm, from_peers, epoch, pushed, ms;
};

static int push_first(struct agent_link *a, struct handover *h, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumePush push = VMDEDUP__VOLUME_PUSH__INIT;
	struct net_reply reply = { 0 };
	int r;

	push.name = h->image;
	push.nonce = agent_nonce();
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_PUSH;
	req.volume_push = &push;
	r = agent_call(a, &req, VMDEDUP__REPLY__BODY_VOLUME_PUSH, -1, &reply, err);
	net_reply_free(&reply);
	return r;
}

static int hand_over(struct agent_link *a, struct handover *h, bool warm, struct error *err)
{
	Vmdedup__Request req = VMDEDUP__REQUEST__INIT;
	Vmdedup__VolumeHandover body = VMDEDUP__VOLUME_HANDOVER__INIT;
	const Vmdedup__VolumeHandoverReply *said;
	struct net_reply reply = { 0 };
	int r;

	body.name = h->image;
	body.to = (char *)h->to;
	body.warm = warm;
	body.wait_ms = h->warm_s * 1000;
	body.nonce = agent_nonce();
	req.body_case = VMDEDUP__REQUEST__BODY_VOLUME_HANDOVER;
	req.volume_handover = &body;
	r = agent_call(a, &req, VMDEDUP__REPLY__BODY_VOLUME_HANDOVER, -1, &reply, err);
	said = r ? NULL : reply.header->volume_handover;
	if (said) {
		snprintf(h->host, sizeof(h->host), "%s", said->host);
		h->epoch = said->lease_epoch;
		h->pushed = said->push ? said->push->blocks : 0;
	}
	if (said && warm) {
		snprintf(h->why_cold, sizeof(h->why_cold), "%s", said->cold);
		h->blocks = said->blocks;
		h->warm = said->warm;
		h->from_peers = said->from_peers;
	}
	net_reply_free(&reply);
	return r;
}

/* A volume that is not here any more needs neither: an earlier handover stopped behind the push. */
static int before_the_switch(struct agent_link *a, struct handover *h, struct error *err)
{
	int r = push_first(a, h, err);

	if (r == -ENOENT && !h->prepare)
		return 0;
	if (!r && !h->cold)
		r = hand_over(a, h, true, err);
	return r;
}

static int run(struct agent_link *a, struct handover *h, struct error *err)
{
	uint64_t start;
	int r = before_the_switch(a, h, err);

	if (r || h->prepare)
		return r;
	start = clock_mono_ns();
	memset(err, 0, sizeof(*err));
	if (*h->device)
		r = dm_volume_remove(h->device, err);
	if (!r)
		r = hand_over(a, h, false, err);
	h->ms = (clock_mono_ns() - start) / 1000000;
	return r;
}

static void show(const struct handover *h, bool json)
{
	if (json) {
		json_show(json_pack("{s:s, s:s, s:b, s:I, s:I, s:I, s:s, s:I, s:I, s:I}", "image",
				    h->image, "host", h->host, "handed_over", !h->prepare, "blocks",
				    (json_int_t)h->blocks, "warm", (json_int_t)h->warm, "from_peers",
				    (json_int_t)h->from_peers, "cold", h->why_cold, "last_push_blocks",
				    (json_int_t)h->pushed, "lease_epoch", (json_int_t)h->epoch,
				    "milliseconds", (json_int_t)h->ms));
		return;
	}
	if (*h->why_cold)
		printf("%s is not warm: %s\n", h->host, h->why_cold);
	else if (h->blocks)
		printf("%s is warm: %llu blocks, %llu of them brought from peers now\n", h->host,
		       (unsigned long long)h->warm, (unsigned long long)h->from_peers);
	if (!h->prepare)
		printf("handed %s over to %s in %llu ms, lease epoch %llu: `vmdedup volume attach %s` "
		       "there\n", h->image, h->host, (unsigned long long)h->ms,
		       (unsigned long long)h->epoch, h->image);
}

int handover_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	struct handover h = { .warm_s = WARM_S };
	bool json = false;
	const struct opt opts[] = {
		OPT_TEXT("to", "HOST", &h.to, "that host, or the UUID of its cache (needed)"),
		OPT_FLAG("prepare", &h.prepare, "only push and warm: the guest goes on"),
		OPT_FLAG("cold", &h.cold, "do not warm the other host"),
		OPT_NUMBER("warm-wait", "SECONDS", &h.warm_s, "for the other to be warm (60; up to 3600)"),
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
	if (h.warm_s > WARM_S_MAX) {
		fprintf(stderr, "vmdedup: --warm-wait takes at most %d seconds\n", WARM_S_MAX);
		return EXIT_USAGE;
	}
	r = agent_open(&a, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	cli_catch_signals();
	dm_image_of(argv[0], h.image, h.device);
	r = run(&a, &h, &err);
	if (!r)
		show(&h, json);
	agent_close(&a);
	return r ? cli_fail(&err) : EXIT_OK;
}
