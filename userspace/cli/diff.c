// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup image diff: which blocks differ between two versions, or two images. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "cli/connect.h"
#include "cli/ui.h"
#include "proto/limits.h"

struct ranges {
	unsigned int shift;
	uint64_t size;
	uint64_t first, count; /* of the run under way; count 0: none */
	uint64_t blocks, zeroed, filled;
	bool list;
	json_t *json; /* NULL: text */
};

static void run_end(struct ranges *r)
{
	uint64_t offset = r->first << r->shift, bytes = r->count << r->shift;

	if (!r->count)
		return;
	if (offset + bytes > r->size)
		bytes = r->size - offset;
	if (r->json)
		json_array_append_new(r->json, json_pack("{s:I, s:I}", "offset", (json_int_t)offset,
							 "bytes", (json_int_t)bytes));
	else if (r->list)
		printf("%llu %llu\n", (unsigned long long)offset, (unsigned long long)bytes);
	r->count = 0;
}

static int differs(void *arg, uint64_t block, const struct fp *from, const struct fp *to)
{
	struct ranges *r = arg;

	r->blocks++;
	r->zeroed += fp_is_zero(to);
	r->filled += fp_is_zero(from);
	if (r->count && block != r->first + r->count)
		run_end(r);
	if (!r->count)
		r->first = block;
	r->count++;
	return 0;
}

static int diff(struct connection *cn, const Vmdedup__Image *a, const Vmdedup__Image *b,
		struct ranges *ranges, struct error *err)
{
	const struct cluster_params *p = cluster_params(cn->cluster);
	struct fp from, to;
	int r;

	if (a->domain != b->domain)
		return error_set(err, -EINVAL, "the images are of different domains: nothing of one "
				 "can be told to equal anything of the other");
	if (a->size != b->size)
		return error_set(err, -EINVAL, "one has %llu bytes and the other %llu",
				 (unsigned long long)a->size, (unsigned long long)b->size);
	r = cli_root_of(a, &from, err);
	if (!r)
		r = cli_root_of(b, &to, err);
	if (r)
		return r;
	ranges->shift = p->block_shift;
	ranges->size = a->size;
	r = recipe_diff(&from, &to, a->size, p->block_shift, p->algorithm, &cluster_recipe_ops,
			cn->cluster, differs, ranges, err);
	run_end(ranges);
	return r;
}

static void show(struct ranges *r)
{
	char size[32];

	if (r->json) {
		json_show(json_pack("{s:I, s:I, s:I, s:I, s:o}", "blocks", (json_int_t)r->blocks,
				    "block_bytes", (json_int_t)1 << r->shift, "zeroed",
				    (json_int_t)r->zeroed, "filled", (json_int_t)r->filled, "ranges",
				    r->json));
		return;
	}
	printf("%llu blocks differ (%s): %llu became zeros, %llu were zeros\n",
	       (unsigned long long)r->blocks, size_to_text(r->blocks << r->shift, size),
	       (unsigned long long)r->zeroed, (unsigned long long)r->filled);
}

int diff_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, list = false;
	uint64_t from = 0, to = 0;
	const struct opt opts[] = {
		OPT_NUMBER("from", "N", &from, "version of NAME (the head; for one image: needed)"),
		OPT_NUMBER("to", "N", &to, "version of NAME, or of OTHER (the head)"),
		OPT_FLAG("ranges", &list, "print offset and length of each range that differs"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	Vmdedup__Image *a = NULL, *b = NULL;
	struct ranges ranges = { 0 };
	struct error err = { 0 };
	struct connection cn;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 2, &code))
		return code;
	if (argc == 1 && !from) {
		fprintf(stderr, "vmdedup: with what? --from N (`vmdedup image history %s` lists versions), "
			"or a second image\n", argv[0]);
		return EXIT_USAGE;
	}
	r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	ranges.list = list;
	ranges.json = json ? json_array() : NULL;
	r = cli_image_get(&cn, argv[0], from, &a, &err);
	if (!r)
		r = cli_image_get(&cn, argv[argc - 1], to, &b, &err);
	if (!r)
		r = diff(&cn, a, b, &ranges, &err);
	connect_close(&cn);
	cli_image_free(a);
	cli_image_free(b);
	if (r) {
		json_decref(ranges.json);
		return cli_fail(&err);
	}
	show(&ranges);
	return EXIT_OK;
}
