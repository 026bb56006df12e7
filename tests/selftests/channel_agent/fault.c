// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Faults: answers that must be refused, given before the right one and after it, and steps at
 * which the agent dies as by kill -9. What the kernel takes although it should not is counted.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include "agent.h"

/* Dies here if `die` has named this step. */
void step(struct agent *a, const char *name)
{
	if (!strcmp(a->die_at, name))
		raise(SIGKILL);
}

static void want(struct agent *a, const char *what, int got, int wanted)
{
	a->wrong_tried++;
	if (got == wanted)
		return;
	a->wrong_taken++;
	fprintf(stderr, "channel_agent: %s: %d, not %d\n", what, got, wanted);
}

static int publish(struct agent *a, struct dm_dedup_publish *p)
{
	struct dm_dedup_batch b = {};
	int r = batch(a, DM_DEDUP_PUBLISH, &b, p, sizeof(*p), 1);

	return r ? r : p->result;
}

static int map(struct agent *a, struct dm_dedup_map *m)
{
	struct dm_dedup_batch b = {};
	int r = batch(a, DM_DEDUP_MAP, &b, m, sizeof(*m), 1);

	return r ? r : m->result;
}

static int fail(struct agent *a, uint64_t cookie, int error)
{
	struct dm_dedup_fail f = { .cookie = cookie, .error = error };
	struct dm_dedup_batch b = {};
	int r = batch(a, DM_DEDUP_FAIL, &b, &f, sizeof(f), 1);

	return r ? r : f.result;
}

/* One field at a time is not what it should be; the content would be wrong, too. */
static void wrong_publishes(struct agent *a, const struct dm_dedup_upcall *up, void *data)
{
	struct dm_dedup_publish p;

	fill_publish(a, up, data, &p);
	p.root[0] ^= 1;
	want(a, "PUBLISH for another root", publish(a, &p), -ESTALE);
	fill_publish(a, up, data, &p);
	p.volume += 1000;
	want(a, "PUBLISH for another volume", publish(a, &p), -ESTALE);
	fill_publish(a, up, data, &p);
	p.volume = 0;
	want(a, "PUBLISH for no volume", publish(a, &p), -EINVAL);
	fill_publish(a, up, data, &p);
	p.block ^= 1;
	want(a, "PUBLISH for another block", publish(a, &p), -EINVAL);
	fill_publish(a, up, data, &p);
	p.block = 1ULL << 60;
	want(a, "PUBLISH beyond the end", publish(a, &p), -EINVAL);
	fill_publish(a, up, data, &p);
	p.cookie ^= 1ULL << 62;
	want(a, "PUBLISH under another cookie", publish(a, &p), -ESTALE);
	fill_publish(a, up, (char *)data, &p);
	p.data = 8;
	want(a, "PUBLISH of nothing", publish(a, &p), -EFAULT);
	fill_publish(a, up, data, &p);
	a->hello.agent_epoch--;
	want(a, "PUBLISH of another epoch", publish(a, &p), -ESTALE);
	a->hello.agent_epoch++;
}

static void wrong_maps(struct agent *a, const struct dm_dedup_upcall *up)
{
	struct dm_dedup_map m;

	for (int i = 0; i < MAX_KNOWN; i++) {
		const struct known *k = &a->known[i];

		if (!k->seq)
			continue;
		fill_map(up, &m);
		m.slot = k->slot;
		m.seq = k->seq - 1;
		want(a, "MAP with a stale sequence", map(a, &m), -ESTALE);
		m.seq = k->seq + 1;
		want(a, "MAP with a sequence to come", map(a, &m), -ESTALE);
		break;
	}
	fill_map(up, &m);
	m.slot = a->hello.nr_slots;
	want(a, "MAP of no slot", map(a, &m), -EINVAL);
	fill_map(up, &m);
	m.flags = DM_DEDUP_MAP_ZERO;
	m.root[5] ^= 0x80;
	want(a, "MAP for another root", map(a, &m), -ESTALE);
	fill_map(up, &m);
	m.flags = DM_DEDUP_MAP_ZERO;
	m.cookie++;
	/* The cookie may be of another FETCH that waits. */
	m.block ^= 1;
	m.volume += 1000;
	want(a, "MAP under another cookie", map(a, &m), -ESTALE);
}

void wrong_answers(struct agent *a, const struct dm_dedup_upcall *up, void *data)
{
	struct dm_dedup_reply rep = { .size = sizeof(rep), .agent_epoch = a->hello.agent_epoch,
				      .cookie = up->cookie };
	uint8_t right;

	/* If any of these is taken, a test that compares contents finds it as well. */
	right = ((uint8_t *)data)[77];
	((uint8_t *)data)[77] ^= 0xff;
	wrong_publishes(a, up, data);
	((uint8_t *)data)[77] = right;
	wrong_maps(a, up);
	want(a, "FAIL under another cookie", fail(a, up->cookie ^ 1ULL << 62, EIO), -ESTALE);
	want(a, "FAIL without an error", fail(a, up->cookie, 0), -EINVAL);
	want(a, "FAIL with a negative error", fail(a, up->cookie, -EIO), -EINVAL);
	want(a, "REPLY to a FETCH", call(a, DM_DEDUP_REPLY, &rep), -EINVAL);
}

/* The right answer has been given: the same again, and others, name nothing any more. */
void late_answers(struct agent *a, const struct dm_dedup_upcall *up, void *data)
{
	struct dm_dedup_publish p;
	struct dm_dedup_map m;

	fill_publish(a, up, data, &p);
	want(a, "PUBLISH twice", publish(a, &p), -ESTALE);
	fill_map(up, &m);
	m.flags = DM_DEDUP_MAP_ZERO;
	want(a, "MAP after PUBLISH", map(a, &m), -ESTALE);
	want(a, "FAIL after PUBLISH", fail(a, up->cookie, EIO), -ESTALE);
}

int cmd_faults(struct agent *a)
{
	fprintf(a->out, "%llu wrong answers, %llu taken\n", (unsigned long long)a->wrong_tried,
		(unsigned long long)a->wrong_taken);
	return a->wrong_taken || !a->wrong_tried ? -EBADMSG : 0;
}
