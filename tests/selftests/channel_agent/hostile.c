// SPDX-License-Identifier: GPL-2.0-or-later
/* Calls that must all be refused. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "agent.h"

static int expect(struct agent *a, const char *what, int got, int want)
{
	if (got == want)
		return 0;
	fprintf(a->out, "%s: got %d, not %d\n", what, got, want);
	return 1;
}

static int hostile_batches(struct agent *a)
{
	static const struct {
		const char *name;
		unsigned long cmd;
		uint32_t size, max;
	} t[] = {
		{ "PUBLISH", DM_DEDUP_PUBLISH, sizeof(struct dm_dedup_publish),
		  DM_DEDUP_MAX_PUBLISH },
		{ "MAP", DM_DEDUP_MAP, sizeof(struct dm_dedup_map), DM_DEDUP_MAX_BATCH },
		{ "FAIL", DM_DEDUP_FAIL, sizeof(struct dm_dedup_fail), DM_DEDUP_MAX_BATCH },
		{ "DROP", DM_DEDUP_DROP, sizeof(struct dm_dedup_drop), DM_DEDUP_MAX_BATCH },
		{ "LIST_CUT", DM_DEDUP_LIST_CUT, sizeof(struct dm_dedup_cut_entry),
		  DM_DEDUP_MAX_BATCH },
		{ "LIST_CLEAN", DM_DEDUP_LIST_CLEAN, sizeof(struct dm_dedup_clean_entry),
		  DM_DEDUP_MAX_BATCH },
		{ "LIST_VOLUMES", DM_DEDUP_LIST_VOLUMES, sizeof(struct dm_dedup_volume_info),
		  DM_DEDUP_MAX_BATCH },
		{ "COMMIT", DM_DEDUP_COMMIT, sizeof(struct dm_dedup_replacement),
		  DM_DEDUP_MAX_BATCH },
	};
	char buf[512] = {};
	int bad = 0;

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct dm_dedup_batch b = {};

		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size + 8, 1), -EINVAL);
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, t[i].max + 1),
			      -EINVAL);
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, ~0U), -EINVAL);
		b.flags = 0x80;
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, 1), -EINVAL);
		b.flags = 0;
		b.reserved[3] = 1;
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, 1), -EINVAL);
		b.reserved[3] = 0;
		b.size = 1;
		bad += expect(a, t[i].name, call(a, t[i].cmd, &b), -EINVAL);
		a->hello.agent_epoch--;
		bad += expect(a, t[i].name, batch(a, t[i].cmd, &b, buf, t[i].size, 1), -ESTALE);
		a->hello.agent_epoch++;
	}
	return bad;
}

static int hostile_entries(struct agent *a)
{
	struct dm_dedup_publish p = { .volume = 12345 };
	struct dm_dedup_map m = { .volume = 12345 };
	struct dm_dedup_fail f = { .cookie = 1, .error = EIO };
	struct dm_dedup_drop d = { .slot = ~0ULL };
	struct dm_dedup_volume_info v;
	struct dm_dedup_batch b = {};
	int bad = 0;

	bad += expect(a, "PUBLISH fault", batch(a, DM_DEDUP_PUBLISH, &b, (void *)8, sizeof(p), 1),
		      -EFAULT);
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH volume", p.result, -ESTALE);
	p.source = DM_DEDUP_SOURCE_DATA + 1;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH source", p.result, -EINVAL);
	batch(a, DM_DEDUP_MAP, &b, &m, sizeof(m), 1);
	bad += expect(a, "MAP volume", m.result, -ESTALE);
	batch(a, DM_DEDUP_FAIL, &b, &f, sizeof(f), 1);
	bad += expect(a, "FAIL cookie", f.result, -ESTALE);
	f.error = -5;
	batch(a, DM_DEDUP_FAIL, &b, &f, sizeof(f), 1);
	bad += expect(a, "FAIL error", f.result, -EINVAL);
	batch(a, DM_DEDUP_DROP, &b, &d, sizeof(d), 1);
	bad += expect(a, "DROP slot", d.result, -EINVAL);
	d.slot = 0;
	d.seq = ~0ULL;
	batch(a, DM_DEDUP_DROP, &b, &d, sizeof(d), 1);
	bad += expect(a, "DROP seq", d.result, -ESTALE);
	b.volume = 12345;
	b.cut = 1;
	bad += expect(a, "COMMIT volume", batch(a, DM_DEDUP_COMMIT, &b, NULL,
						sizeof(struct dm_dedup_replacement), 0), -ENOENT);
	b.cursor = ~0ULL - 1;
	bad += expect(a, "LIST_VOLUMES cursor",
		      batch(a, DM_DEDUP_LIST_VOLUMES, &b, &v, sizeof(v), 1), 0);
	bad += expect(a, "LIST_VOLUMES count", b.count, 0);
	return bad;
}

/* Calls on a volume that exists, when there is one. */
static int hostile_volume(struct agent *a)
{
	struct dm_dedup_volume_info v;
	struct dm_dedup_batch b = {};
	struct dm_dedup_publish p = {};
	struct dm_dedup_map m = { .flags = 0x10 };
	int bad = 0;

	if (batch(a, DM_DEDUP_LIST_VOLUMES, &b, &v, sizeof(v), 1) || !b.count)
		return 0;
	memset(&b, 0, sizeof(b));
	p.volume = v.volume;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH root", p.result, -ESTALE);
	memcpy(p.root, v.root, sizeof(p.root));
	p.block = ~0ULL;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH block", p.result, -EINVAL);
	p.cookie = 7;
	p.block = 0;
	batch(a, DM_DEDUP_PUBLISH, &b, &p, sizeof(p), 1);
	bad += expect(a, "PUBLISH cookie", p.result, -ESTALE);
	m.volume = v.volume;
	batch(a, DM_DEDUP_MAP, &b, &m, sizeof(m), 1);
	bad += expect(a, "MAP flags", m.result, -EINVAL);
	b.volume = v.volume;
	b.lease_epoch = v.lease_epoch + 1;
	b.cut = v.committed_cut + 1;
	bad += expect(a, "COMMIT epoch", batch(a, DM_DEDUP_COMMIT, &b, NULL,
					       sizeof(struct dm_dedup_replacement), 0), -ESTALE);
	b.lease_epoch = v.lease_epoch;
	b.cut = v.committed_cut + 77;
	bad += expect(a, "COMMIT cut", batch(a, DM_DEDUP_COMMIT, &b, NULL,
					     sizeof(struct dm_dedup_replacement), 0), -EINVAL);
	return bad;
}

int cmd_hostile(struct agent *a)
{
	struct dm_dedup_hello h = { .size = sizeof(h), .abi_major = DM_DEDUP_ABI_MAJOR + 1 };
	struct dm_dedup_cut cut = { .size = sizeof(cut), .flags = 2 };
	struct dm_dedup_volume_call vc = { .size = sizeof(vc), .volume = 12345 };
	struct dm_dedup_reply *rep = calloc(1, sizeof(*rep));
	char small[16];
	int bad = 0;

	bad += expect(a, "HELLO major", call(a, DM_DEDUP_HELLO, &h), -EPROTO);
	h.size = 3;
	bad += expect(a, "HELLO size", call(a, DM_DEDUP_HELLO, &h), -EINVAL);
	bad += expect(a, "HELLO fault", call(a, DM_DEDUP_HELLO, (void *)8), -EFAULT);
	bad += expect(a, "unknown call", call(a, _IO(DM_DEDUP_IOC, 0x7f), &h), -ENOTTY);
	bad += expect(a, "CUT flags", call(a, DM_DEDUP_CUT, &cut), -EINVAL);
	bad += expect(a, "CUT volume", do_cut(a, 12345, &cut), -ENOENT);
	bad += expect(a, "FENCE epoch", call(a, DM_DEDUP_FENCE, &vc), -ESTALE);
	vc.agent_epoch = a->hello.agent_epoch;
	bad += expect(a, "FENCE volume", call(a, DM_DEDUP_FENCE, &vc), -ENOENT);
	bad += expect(a, "RELEASE volume", call(a, DM_DEDUP_RELEASE, &vc), -ENOENT);
	vc.flags = 2;
	bad += expect(a, "RELEASE flags", call(a, DM_DEDUP_RELEASE, &vc), -EINVAL);
	rep->size = sizeof(*rep);
	rep->agent_epoch = a->hello.agent_epoch;
	rep->cookie = 77;
	bad += expect(a, "REPLY cookie", call(a, DM_DEDUP_REPLY, rep), -ESTALE);
	rep->error = -1;
	bad += expect(a, "REPLY error", call(a, DM_DEDUP_REPLY, rep), -EINVAL);
	free(rep);
	bad += expect(a, "short read", read(a->fd, small, sizeof(small)) < 0 ? -errno : 0, -EINVAL);
	bad += hostile_batches(a) + hostile_entries(a) + hostile_volume(a);
	return bad ? -EBADMSG : 0;
}
