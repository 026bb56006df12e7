// SPDX-License-Identifier: GPL-2.0-or-later
/* What `ctl` may ask for; main.c says what the commands mean. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "agent.h"

static int cmd_volumes(struct agent *a)
{
	struct dm_dedup_volume_info info[8];
	struct dm_dedup_batch b = {};
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_VOLUMES, &b, info, sizeof(info[0]), 8);
		for (uint32_t i = 0; !r && i < b.count; i++)
			fprintf(a->out, "%llu %s %#x %llu %llu %llu %llu\n", info[i].volume,
				info[i].name, info[i].flags, info[i].committed_cut,
				info[i].closed_cut, info[i].dirty_bytes, info[i].lease_epoch);
	} while (!r && b.cursor != ~0ULL);
	return r;
}

static int cmd_volume_call(struct agent *a, unsigned long cmd, char **argv, int argc)
{
	struct dm_dedup_volume_info info;
	struct dm_dedup_volume_call c = { .size = sizeof(c) };
	int r = find_volume(a, argv[0], &info);

	if (r)
		return r;
	if (cmd == DM_DEDUP_RELEASE)
		step(a, "give");
	c.agent_epoch = a->hello.agent_epoch;
	c.volume = info.volume;
	c.lease_epoch = info.lease_epoch;
	if (argc > 1 && !strcmp(argv[1], "discard"))
		c.flags = DM_DEDUP_RELEASE_DISCARD;
	else if (argc > 1)
		c.lease_epoch = strtoull(argv[1], NULL, 0);
	r = call(a, cmd, &c);
	if (cmd == DM_DEDUP_RELEASE)
		step(a, "release");
	return r;
}

static int cmd_clean(struct agent *a)
{
	static struct dm_dedup_clean_entry e[256];
	struct dm_dedup_batch b = {};
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_CLEAN, &b, e, sizeof(e[0]), 256);
		for (uint32_t i = 0; !r && i < b.count; i++)
			fprintf(a->out, "%llu %llu\n", e[i].slot, e[i].seq);
	} while (!r && b.cursor != ~0ULL);
	return r;
}

static int cmd_drop(struct agent *a, char **argv)
{
	struct dm_dedup_drop d = { .slot = strtoull(argv[0], NULL, 0),
				   .seq = strtoull(argv[1], NULL, 0) };
	struct dm_dedup_batch b = {};
	int r = batch(a, DM_DEDUP_DROP, &b, &d, sizeof(d), 1);

	return r ? r : d.result;
}

static int cmd_dropall(struct agent *a)
{
	static struct dm_dedup_clean_entry e[256];
	struct dm_dedup_drop d[256];
	struct dm_dedup_batch l = {}, b = {};
	int r;

	do {
		r = batch(a, DM_DEDUP_LIST_CLEAN, &l, e, sizeof(e[0]), 256);
		for (uint32_t i = 0; !r && i < l.count; i++)
			d[i] = (struct dm_dedup_drop){ .slot = e[i].slot, .seq = e[i].seq };
		if (!r && l.count)
			r = batch(a, DM_DEDUP_DROP, &b, d, sizeof(d[0]), l.count);
	} while (!r && l.cursor != ~0ULL);
	return r;
}

static int cmd_set(struct agent *a, char **argv)
{
	struct image *im = image_by_name(a, argv[0]);
	uint64_t n = strtoull(argv[2], NULL, 0);

	if (!im)
		return -ENOENT;
	if (!strcmp(argv[1], "epoch"))
		im->epoch = n;
	else if (!strcmp(argv[1], "cut"))
		im->cut = n;
	else if (!strcmp(argv[1], "version"))
		im->version = n;
	else if (!strcmp(argv[1], "error"))
		im->error = n;
	else if (!strcmp(argv[1], "uuid"))
		im->uuid = n;
	else
		return -EINVAL;
	head_save(im);
	return 0;
}

static int cmd_cut(struct agent *a, char **argv)
{
	struct dm_dedup_volume_info info;
	struct dm_dedup_cut cut;
	int r = find_volume(a, argv[0], &info);

	r = r ? r : do_cut(a, info.volume, &cut);
	if (!r)
		fprintf(a->out, "%llu\n", cut.cut);
	return r;
}

/* Commands without arguments. */
static int run_word(struct agent *a, const char *word)
{
	if (!strcmp(word, "volumes"))
		return cmd_volumes(a);
	if (!strcmp(word, "clean"))
		return cmd_clean(a);
	if (!strcmp(word, "dropall"))
		return cmd_dropall(a);
	if (!strcmp(word, "hostile"))
		return cmd_hostile(a);
	if (!strcmp(word, "faults"))
		return cmd_faults(a);
	if (!strcmp(word, "hello")) {
		a->nr_held = 0;
		return hello(a);
	}
	if (!strcmp(word, "hold"))
		a->hold = true;
	else if (!strcmp(word, "hold-open"))
		a->hold_open = true;
	else if (!strcmp(word, "answer"))
		answer_held(a, 0);
	else if (!strcmp(word, "waiting"))
		fprintf(a->out, "%d\n", a->nr_held);
	else if (!strcmp(word, "quit"))
		a->quit = true;
	else
		return -EINVAL;
	return 0;
}

static int cmd_recover(struct agent *a, const char *what)
{
	int r;

	a->recover = true;
	r = cmd_push(a, what, true);
	a->recover = false;
	return r;
}

int run_command(struct agent *a, int argc, char **argv)
{
	const char *word = argv[0];

	if (argc < 2)
		return run_word(a, word);
	argc--;
	argv++;
	if (!strcmp(word, "fail")) {
		answer_held(a, atoi(argv[0]));
		return 0;
	}
	if (!strcmp(word, "die")) {
		snprintf(a->die_at, sizeof(a->die_at), "%s", argv[0]);
		return 0;
	}
	if (!strcmp(word, "push") || !strcmp(word, "merge"))
		return cmd_push(a, argv[0], word[0] == 'p');
	if (!strcmp(word, "stage"))
		return cmd_stage(a, argv[0]);
	if (!strcmp(word, "recover"))
		return cmd_recover(a, argv[0]);
	if (!strcmp(word, "release"))
		return cmd_volume_call(a, DM_DEDUP_RELEASE, argv, argc);
	if (!strcmp(word, "fence"))
		return cmd_volume_call(a, DM_DEDUP_FENCE, argv, argc);
	if (!strcmp(word, "cut"))
		return cmd_cut(a, argv);
	if (!strcmp(word, "drop") && argc > 1)
		return cmd_drop(a, argv);
	if (!strcmp(word, "list") && argc > 1)
		return cmd_list(a, argv[0], strtoull(argv[1], NULL, 0));
	if (!strcmp(word, "set") && argc > 2)
		return cmd_set(a, argv);
	if (!strcmp(word, "warm") && argc > 2)
		return cmd_warm(a, argv);
	if (!strcmp(word, "commit") && argc > 2)
		return cmd_commit(a, argv);
	if (!strcmp(word, "replace") && argc > 4)
		return cmd_replace(a, argv);
	return -EINVAL;
}
