// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup image import */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "cli/connect.h"
#include "cli/pipeline.h"
#include "cli/ui.h"

#define IMPORT_TRIES 50 /* each a whole read of the source: only what is missing is sent */

struct import {
	const char *what, *name, *format;
	uint64_t threads;
	struct connection cn;
	struct source *source;
	struct cluster_push *push;
	struct recipe_builder *builder;
	struct progress bar;
	struct pipeline_stats data;
	struct cluster_push_stats pushed;
	struct fp root;
	double seconds;
};

static bool on_progress(void *arg, uint64_t done)
{
	struct import *im = arg;

	progress_update(&im->bar, done);
	return !cli_stopped();
}

static int push_begin(struct import *im, struct error *err)
{
	Vmdedup__PushBegin begin = VMDEDUP__PUSH_BEGIN__INIT;

	begin.name = (char *)im->name;
	begin.size = source_size(im->source);
	begin.domain = cluster_params(im->cn.cluster)->domain;
	im->push = cluster_push_begin(im->cn.cluster, &begin, NULL, err);
	return im->push ? 0 : err->code;
}

static int pump(struct import *im, struct error *err)
{
	struct pipeline *p = pipeline_new(im->source, im->cn.cluster, im->push, im->builder,
					  im->threads, err);
	int r;

	if (!p)
		return err->code;
	progress_start(&im->bar, "import", source_size(im->source));
	r = pipeline_run(p, on_progress, im, err);
	if (!r)
		r = recipe_builder_finish(im->builder, &im->root, err);
	if (!r)
		r = cluster_push_commit(im->push, &im->root, NULL, err);
	progress_end(&im->bar);
	pipeline_stats(p, &im->data);
	cluster_push_stats(im->push, &im->pushed);
	pipeline_stop(p);
	cluster_push_free(im->push);
	im->push = NULL;
	pipeline_free(p);
	return r;
}

static int import_once(struct import *im, struct error *err)
{
	const struct cluster_params *params = cluster_params(im->cn.cluster);
	int r = push_begin(im, err);

	if (r)
		return r;
	im->builder = recipe_builder_new(source_size(im->source), params->block_shift,
					 params->algorithm, &cluster_push_recipe_ops, im->push);
	if (im->builder)
		r = pump(im, err);
	else
		r = error_set(err, -ENOMEM, "out of memory");
	recipe_builder_free(im->builder);
	cluster_push_free(im->push);
	im->push = NULL;
	return r;
}

static int import(struct import *im, struct error *err)
{
	uint64_t start = clock_mono_ns();
	int r;

	for (int tries = 1;; tries++) {
		r = import_once(im, err);
		/* A collection took what this push had found there, before any recipe named it. What
		 * is there still is not sent again. */
		if (r != -EAGAIN || tries == IMPORT_TRIES)
			break;
		if (cli_stopped()) {
			r = -EINTR;
			break;
		}
		fprintf(stderr, "vmdedup: import of %s begins again: %s\n", im->what, err->text);
	}
	im->seconds = (clock_mono_ns() - start) / 1e9;
	if (r == -EINTR)
		return error_set(err, r, "interrupted: there is no image %s; a second import sends "
				 "only what this one did not", im->name);
	return r ? error_prefix(err, "import of %s", im->what) : 0;
}

static void show_json(const struct import *im)
{
	json_int_t block = (json_int_t)1 << cluster_params(im->cn.cluster)->block_shift;

	json_show(json_pack("{s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}",
			    "name", im->name, "source", im->what, "format",
			    source_format(im->source), "root", json_fp(im->root.b, FP_SIZE),
			    "virtual_bytes", (json_int_t)source_size(im->source),
			    "data_bytes", (json_int_t)im->data.data_bytes,
			    "zero_bytes", (json_int_t)im->data.zero_bytes,
			    "block_bytes", block,
			    "data_blocks", (json_int_t)im->data.data_blocks,
			    "unique_blocks", (json_int_t)im->pushed.blocks,
			    "unique_bytes", (json_int_t)im->pushed.blocks * block,
			    "new_blocks", (json_int_t)im->pushed.new_blocks,
			    "stored_bytes", (json_int_t)im->pushed.bytes_sent,
			    "seconds", im->seconds,
			    "bytes_per_second", source_size(im->source) / im->seconds));
}

static void show_text(const struct import *im)
{
	uint64_t block = 1ULL << cluster_params(im->cn.cluster)->block_shift;
	uint64_t size = source_size(im->source);
	char a[32], b[32];

	printf("imported %s from %s (%s)\n", im->name, im->what, source_format(im->source));
	printf("  virtual size  %s\n", size_to_text(size, a));
	printf("  data          %s, and %s of zeros\n", size_to_text(im->data.data_bytes, a),
	       size_to_text(im->data.zero_bytes, b));
	printf("  unique        %s in %llu blocks of %s\n",
	       size_to_text(im->pushed.blocks * block, a), (unsigned long long)im->pushed.blocks,
	       size_to_text(block, b));
	printf("  new           %s in %llu blocks\n", size_to_text(im->pushed.new_blocks * block, a),
	       (unsigned long long)im->pushed.new_blocks);
	printf("  stored        %s\n", size_to_text(im->pushed.bytes_sent, a));
	printf("  time          %.2f s, %.0f MB/s\n", im->seconds, size / im->seconds / 1e6);
}

int import_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	struct import im = { 0 };
	bool json = false;
	const struct opt opts[] = {
		OPT_TEXT("format", "FORMAT", &im.format,
			 "raw, qcow2, vmdk, vhdx, ... instead of what the content says"),
		OPT_NUMBER("threads", "N", &im.threads, "for hashing (one a core)"),
		OPT_FLAG("json", &json, "print the summary as JSON"),
		OPT_END
	};
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 2, 2, &code))
		return code;
	im.what = argv[0];
	im.name = argv[1];
	/* The cheapest checks first: nothing is started for a name that cannot be. */
	r = cli_name_check(im.name, &err);
	if (!r) {
		im.source = source_open(im.what, im.format, &err);
		r = im.source ? 0 : err.code;
	}
	if (!r)
		r = connect_open(&im.cn, &cli->conf, &err);
	if (!r) {
		cli_catch_signals();
		r = import(&im, &err);
		if (!r && json)
			show_json(&im);
		else if (!r)
			show_text(&im);
		connect_close(&im.cn);
	}
	source_close(im.source);
	return r ? cli_fail(&err) : EXIT_OK;
}
