// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup cache: the disk of a cache while no kernel has it open. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/fingerprint.h"
#include "cache/cache.h"
#include "cli/cli.h"
#include "cli/ui.h"
#include "proto/limits.h"

/* ---- what a cache is ---- */

static json_t *info_json(const struct cache_info *i)
{
	return json_pack("{s:o, s:o, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
			 "cache", json_uuid(i->cache.b, sizeof(i->cache.b)), "cluster",
			 uuid_is_null(&i->cluster) ? json_null() :
				 json_uuid(i->cluster.b, sizeof(i->cluster.b)),
			 "incarnation", json_uuid(i->incarnation.b, sizeof(i->incarnation.b)),
			 "label", i->label, "incarnation_nr", (json_int_t)i->incarnation_nr,
			 "block_bytes", (json_int_t)1 << i->block_shift,
			 "device_bytes", (json_int_t)i->device_bytes,
			 "data_start", (json_int_t)i->data_start,
			 "slots", (json_int_t)i->nr_slots,
			 "journal_bytes", (json_int_t)i->journal_bytes,
			 "store_memory", (json_int_t)i->store_memory,
			 "max_volumes", (json_int_t)i->max_volumes);
}

static void info_print(const struct cache_info *i)
{
	char text[UUID_TEXT_SIZE], size[32], block[32];

	printf("cache    %s%s%s\n", uuid_to_text(&i->cache, text), *i->label ? ", " : "", i->label);
	printf("cluster  %s\n", uuid_is_null(&i->cluster) ? "any" : uuid_to_text(&i->cluster, text));
	printf("slots    %llu of %s, on %s\n", (unsigned long long)i->nr_slots,
	       size_to_text(1ULL << i->block_shift, block), size_to_text(i->device_bytes, size));
	printf("journal  %s\n", size_to_text(i->journal_bytes, size));
	printf("memory   %s in the kernel for the records\n", size_to_text(i->store_memory, size));
	printf("opened   %u times\n", i->incarnation_nr);
}

/* ---- format ---- */

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct progress *bar = ctx;

	if (!bar->label)
		progress_start(bar, "format", total);
	progress_update(bar, done);
}

static int format_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	uint64_t block_size = 1ULL << BLOCK_SHIFT_DEFAULT;
	const char *label = NULL, *cluster = NULL;
	bool json = false, force = false;
	struct cache_params params = { 0 };
	const struct opt opts[] = {
		OPT_SIZE("block-size", "SIZE", &block_size, "the cluster's (256K)"),
		OPT_SIZE("journal", "SIZE", &params.journal, "64K to 64M (a 128th, at least 2M)"),
		OPT_TEXT("cluster", "UUID", &cluster, "refuse to serve any other cluster"),
		OPT_TEXT("label", "TEXT", &label, "a name for people, at most 63 bytes"),
		OPT_FLAG("force", &force, "even if the disk is not empty: all on it is lost"),
		OPT_FLAG("json", &json, "print JSON"),
		OPT_END
	};
	struct cache_info info;
	struct progress bar = { 0 };
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	while (params.block_shift < 63 && 1ULL << params.block_shift < block_size)
		params.block_shift++;
	if (1ULL << params.block_shift != block_size || params.block_shift < BLOCK_SHIFT_MIN ||
	    params.block_shift > BLOCK_SHIFT_MAX) {
		fprintf(stderr, "vmdedup: --block-size: a power of two from 4K to 1M\n");
		return EXIT_USAGE;
	}
	if (cluster && uuid_from_text(&params.cluster, cluster)) {
		fprintf(stderr, "vmdedup: --cluster: \"%s\" is not a UUID\n", cluster);
		return EXIT_USAGE;
	}
	params.label = label;
	params.force = force;
	r = cache_format(argv[0], &params, on_progress, &bar, &info, &err);
	progress_end(&bar);
	if (r)
		return cli_fail(&err);
	if (json)
		json_show(info_json(&info));
	else
		info_print(&info);
	return EXIT_OK;
}

/* ---- check ---- */

static void on_problem(void *ctx, const char *text)
{
	json_t *problems = ctx;

	fprintf(stderr, "vmdedup: %s\n", text);
	json_array_append_new(problems, json_string(text));
}

static json_t *report_json(const struct cache_report *rp, json_t *problems)
{
	json_t *j = info_json(&rp->info);

	json_object_set_new(j, "free", json_integer(rp->free));
	json_object_set_new(j, "clean", json_integer(rp->clean));
	json_object_set_new(j, "dirty", json_integer(rp->dirty));
	json_object_set_new(j, "void_dirty", json_integer(rp->void_dirty));
	json_object_set_new(j, "volumes", json_integer(rp->volumes));
	json_object_set_new(j, "journal_appends", json_integer(rp->journal_appends));
	json_object_set_new(j, "journal_changes", json_integer(rp->journal_changes));
	json_object_set_new(j, "repairable", json_boolean(rp->repairable));
	json_object_set_new(j, "problems", problems);
	return j;
}

static void report_print(const struct cache_report *rp, const char *path)
{
	info_print(&rp->info);
	printf("holds    %llu volumes; slots: %llu free, %llu clean, %llu dirty, %llu void\n",
	       (unsigned long long)rp->volumes, (unsigned long long)rp->free,
	       (unsigned long long)rp->clean, (unsigned long long)rp->dirty,
	       (unsigned long long)rp->void_dirty);
	printf("replay   %llu appends with %llu changes\n", (unsigned long long)rp->journal_appends,
	       (unsigned long long)rp->journal_changes);
	if (!rp->problems)
		printf("the cache is well\n");
	else
		printf("%llu problem%s%s%s\n", (unsigned long long)rp->problems,
		       rp->problems == 1 ? "" : "s",
		       rp->repairable ? ", all repairable: vmdedup cache repair " : "",
		       rp->repairable ? path : "");
}

static int check_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "print JSON"), OPT_END };
	struct cache_report rp = { 0 };
	struct error err = { 0 };
	json_t *problems;
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	problems = json_array();
	r = cache_check(argv[0], on_problem, problems, &rp, &err);
	if (!r && json)
		json_show(report_json(&rp, json_incref(problems)));
	else if (!r)
		report_print(&rp, argv[0]);
	json_decref(problems);
	if (r)
		return cli_fail(&err);
	return rp.problems ? EXIT_BAD_CONTENT : EXIT_OK;
}

/* ---- repair ---- */

static int repair_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	const struct opt opts[] = { OPT_END };
	struct error err = { 0 };
	unsigned int repaired;
	int code;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	if (cache_repair(argv[0], &repaired, &err))
		return cli_fail(&err);
	if (repaired)
		printf("%u superblock%s written anew\n", repaired, repaired == 1 ? "" : "s");
	else
		printf("there was nothing to repair\n");
	return EXIT_OK;
}

/* ---- dump ---- */

/* One line a record; as JSON, one object a line, so that no dump is too large to read. */
struct dump {
	bool json;
	unsigned int bits; /* of a bitmap that count */
};

static void json_line(json_t *j)
{
	json_dumpf(j, stdout, JSON_COMPACT | JSON_ENSURE_ASCII);
	putchar('\n');
	json_decref(j);
}

static int dump_volume(void *ctx, uint64_t index, const struct dedup_volume_rec *v)
{
	const struct dump *d = ctx;
	char hex[FP_HEX_SIZE], image[UUID_TEXT_SIZE];
	struct uuid uuid;
	struct fp root;

	memcpy(root.b, v->root, FP_SIZE);
	memcpy(uuid.b, v->image, sizeof(uuid.b));
	if (d->json)
		json_line(json_pack("{s:s, s:I, s:I, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}",
				    "record", "volume", "index", (json_int_t)index,
				    "id", (json_int_t)v->id, "name", v->name,
				    "image", uuid_to_text(&uuid, image),
				    "root", fp_to_hex(&root, hex), "size", (json_int_t)v->size,
				    "lease_epoch", (json_int_t)v->lease_epoch,
				    "cut_counter", (json_int_t)v->cut_counter,
				    "committed_cut", (json_int_t)v->committed_cut,
				    "flags", (json_int_t)v->flags));
	else
		printf("volume %llu id %llu image %s name %s size %llu root %s epoch %llu cut %llu "
		       "committed %llu flags 0x%x\n", (unsigned long long)index,
		       (unsigned long long)v->id, uuid_to_text(&uuid, image), v->name,
		       (unsigned long long)v->size, fp_to_hex(&root, hex),
		       (unsigned long long)v->lease_epoch, (unsigned long long)v->cut_counter,
		       (unsigned long long)v->committed_cut, v->flags);
	return ferror(stdout) ? -EIO : 0;
}

static unsigned int bits_set(const struct dump *d, const uint8_t *bitmap)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < d->bits / 8; i++)
		n += __builtin_popcount(bitmap[i]);
	return n;
}

static int dump_slot(void *ctx, uint64_t slot, const struct dedup_slot_rec *rec)
{
	const struct dump *d = ctx;
	char hex[FP_HEX_SIZE];
	struct fp fp;

	memcpy(fp.b, rec->fp, FP_SIZE);
	if (rec->state == DEDUP_SLOT_CLEAN && d->json)
		json_line(json_pack("{s:s, s:I, s:I, s:s, s:s}", "record", "slot", "slot",
				    (json_int_t)slot, "seq", (json_int_t)rec->seq, "state", "clean",
				    "fp", fp_to_hex(&fp, hex)));
	else if (rec->state == DEDUP_SLOT_CLEAN)
		printf("slot %llu seq %llu clean %s\n", (unsigned long long)slot,
		       (unsigned long long)rec->seq, fp_to_hex(&fp, hex));
	else if (d->json)
		json_line(json_pack("{s:s, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:b, s:b}", "record",
				    "slot", "slot", (json_int_t)slot, "seq", (json_int_t)rec->seq,
				    "state", "dirty", "volume", (json_int_t)rec->volume, "block",
				    (json_int_t)rec->block, "cut", (json_int_t)rec->cut, "sectors",
				    (json_int_t)bits_set(d, rec->bitmap), "base_zero",
				    !!(rec->flags & DEDUP_OVERLAY_BASE_ZERO), "complete",
				    !!(rec->flags & DEDUP_OVERLAY_COMPLETE)));
	else
		printf("slot %llu seq %llu dirty volume %llu block %llu cut %llu sectors %u%s%s\n",
		       (unsigned long long)slot, (unsigned long long)rec->seq,
		       (unsigned long long)rec->volume, (unsigned long long)rec->block,
		       (unsigned long long)rec->cut, bits_set(d, rec->bitmap),
		       rec->flags & DEDUP_OVERLAY_BASE_ZERO ? " base-zero" : "",
		       rec->flags & DEDUP_OVERLAY_COMPLETE ? " complete" : "");
	return ferror(stdout) ? -EIO : 0;
}

static int dump_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false;
	const struct opt opts[] = { OPT_FLAG("json", &json, "one JSON object a line"), OPT_END };
	struct dump d = { 0 };
	struct cache_visitor visitor = { dump_volume, dump_slot, &d };
	struct cache_info info;
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	d.json = json;
	r = cache_info_read(argv[0], &info, &err);
	if (r)
		return cli_fail(&err);
	d.bits = 1U << (info.block_shift - 9);
	if (json) {
		json_t *j = info_json(&info);

		json_object_set_new(j, "record", json_string("super"));
		json_line(j);
	} else {
		info_print(&info);
	}
	r = cache_dump(argv[0], &visitor, NULL, &err);
	return r ? cli_fail(&err) : EXIT_OK;
}

const struct verb cache_verbs[] = {
	{ "cache", "format", "DISK", "make an empty cache on a disk; what was on it is lost",
	  "The block size must be the cluster's. Then:\n"
	  "  dmsetup create cache0 --table \"0 $(blockdev --getsz DISK) dedup-cache DISK\"\n\n"
	  "examples:\n"
	  "  vmdedup cache format /dev/nvme0n1p3\n"
	  "  vmdedup cache format --block-size 64K --force /dev/vg0/cache\n", format_run },
	{ "cache", "check", "DISK", "check a cache disk that is not open",
	  "Writes nothing. Exit code 6 when something is wrong.\n\n"
	  "examples:\n"
	  "  vmdedup cache check /dev/nvme0n1p3\n", check_run },
	{ "cache", "repair", "DISK", "restore a destroyed superblock from the other one",
	  "examples:\n"
	  "  vmdedup cache repair /dev/nvme0n1p3\n", repair_run },
	{ "cache", "dump", "DISK", "print every record of a cache disk that is not open",
	  "examples:\n"
	  "  vmdedup cache dump /dev/nvme0n1p3 | grep dirty\n"
	  "  vmdedup cache dump --json /dev/nvme0n1p3 | jq -r 'select(.state == \"clean\").fp'\n",
	  dump_run },
	{ 0 }
};
