// SPDX-License-Identifier: GPL-2.0-or-later
/* vmdedup image export and verify */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/cleanup.h"
#include "base/clock.h"
#include "blockio/blockio.h"
#include "cli/transfer.h"
#include "cli/ui.h"

#define PROBLEMS_SHOWN 20
#define COMPARE_BYTES  (1U << 20)

static const char *why(int r)
{
	switch (r) {
	case -ENOENT:
		return "no data server has it";
	case -EIO:
		return "no replica matches its fingerprint";
	case -ETIMEDOUT:
		return "no data server answers";
	default:
		return strerror(-r);
	}
}

/* ---- export ---- */

struct export_state {
	struct sink *sink;
	struct progress bar;
};

static int export_block(void *arg, uint64_t offset, int r, const void *data, size_t len,
			struct error *err)
{
	struct export_state *ex = arg;

	if (r)
		return error_set(err, r, "the block at byte %llu cannot be had: %s",
				 (unsigned long long)offset, why(r));
	return sink_pwrite(ex->sink, data, len, offset, err);
}

static int export_zeros(void *arg, uint64_t offset, uint64_t len, struct error *err)
{
	struct export_state *ex = arg;

	return sink_zero(ex->sink, len, offset, err);
}

static bool export_progress(void *arg, uint64_t done)
{
	struct export_state *ex = arg;

	progress_update(&ex->bar, done);
	return !cli_stopped();
}

static int export(struct connection *cn, const Vmdedup__Image *image, const char *path, bool force,
		  struct error *err)
{
	struct export_state ex = { 0 };
	struct transfer t = { cn, image, export_block, export_zeros, export_progress, &ex };
	int r;

	ex.sink = sink_open(path, image->size, force, err);
	if (!ex.sink)
		return err->code;
	progress_start(&ex.bar, "export", image->size);
	r = transfer_run(&t, err);
	progress_end(&ex.bar);
	if (r)
		error_prefix(err, "export of %s", image->name);
	else
		r = sink_commit(ex.sink, err);
	sink_close(ex.sink);
	return r;
}

int export_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	bool json = false, force = false;
	uint64_t version = 0, start = clock_mono_ns();
	const struct opt opts[] = {
		OPT_NUMBER("version", "N", &version, "that version instead of the head"),
		OPT_FLAG("force", &force, "replace FILE, or write to a block device"),
		OPT_FLAG("json", &json, "print the summary as JSON"),
		OPT_END
	};
	Vmdedup__Image *image = NULL;
	struct connection cn;
	struct error err = { 0 };
	double seconds;
	char size[32];
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 2, 2, &code))
		return code;
	r = cli_name_check(argv[0], &err);
	if (!r)
		r = connect_open(&cn, &cli->conf, &err);
	if (r)
		return cli_fail(&err);
	cli_catch_signals();
	r = cli_image_get(&cn, argv[0], version, &image, &err);
	if (!r)
		r = export(&cn, image, argv[1], force, &err);
	connect_close(&cn);
	seconds = (clock_mono_ns() - start) / 1e9;
	if (!r && json)
		json_show(json_pack("{s:s, s:s, s:I, s:o, s:f}", "name", image->name, "file",
				    argv[1], "bytes", (json_int_t)image->size, "root",
				    json_fp(image->root.data, image->root.len), "seconds", seconds));
	else if (!r)
		printf("exported %s to %s: %s in %.2f s, %.0f MB/s\n", image->name, argv[1],
		       size_to_text(image->size, size), seconds, image->size / seconds / 1e6);
	cli_image_free(image);
	return r ? cli_fail(&err) : EXIT_OK;
}

/* ---- verify ---- */

struct verify {
	const char *name;
	struct source *source; /* NULL: only against the fingerprints */
	struct progress bar;
	uint64_t zero_bytes;
	void *zero_buf;
	pthread_mutex_t lock; /* guards what follows, and stderr */
	uint64_t blocks, problems;
};

static void problem(struct verify *v, uint64_t offset, const char *what)
{
	pthread_mutex_lock(&v->lock);
	if (v->problems++ < PROBLEMS_SHOWN)
		fprintf(stderr, "%svmdedup: %s: byte %llu: %s\n", v->bar.on ? "\r\033[K" : "",
			v->name, (unsigned long long)offset, what);
	pthread_mutex_unlock(&v->lock);
}

static int verify_block(void *arg, uint64_t offset, int r, const void *data, size_t len,
			struct error *err)
{
	struct verify *v = arg;
	CLEANUP_FREE void *other = NULL;

	pthread_mutex_lock(&v->lock);
	v->blocks++;
	pthread_mutex_unlock(&v->lock);
	if (r) {
		problem(v, offset, why(r));
		return 0;
	}
	if (!v->source)
		return 0;
	other = malloc(len);
	if (!other)
		return error_set(err, -ENOMEM, "out of memory");
	r = source_pread(v->source, other, len, offset, err);
	if (!r && memcmp(data, other, len))
		problem(v, offset, "differs from the source");
	return r;
}

static int verify_zeros(void *arg, uint64_t offset, uint64_t len, struct error *err)
{
	struct verify *v = arg;
	int r = 0;

	v->zero_bytes += len;
	while (v->source && len && !r) {
		uint64_t extent, n;
		bool data;

		r = source_extent(v->source, offset, &extent, &data, err);
		n = MIN(extent, len);
		if (!r && data) {
			n = MIN(n, COMPARE_BYTES);
			r = source_pread(v->source, v->zero_buf, n, offset, err);
			if (!r && !mem_is_zero(v->zero_buf, n))
				problem(v, offset, "is zeros, and not in the source");
		}
		offset += n;
		len -= n;
	}
	return r;
}

static bool verify_progress(void *arg, uint64_t done)
{
	struct verify *v = arg;

	progress_update(&v->bar, done);
	return !cli_stopped();
}

static int verify(struct connection *cn, const Vmdedup__Image *image, struct verify *v,
		  struct error *err)
{
	struct transfer t = { cn, image, verify_block, verify_zeros, verify_progress, v };
	int r;

	if (v->source && source_size(v->source) != image->size) {
		fprintf(stderr, "vmdedup: %s has %llu bytes, the source %llu\n", image->name,
			(unsigned long long)image->size,
			(unsigned long long)source_size(v->source));
		v->problems++;
		return 0;
	}
	v->zero_buf = malloc(COMPARE_BYTES);
	if (!v->zero_buf)
		return error_set(err, -ENOMEM, "out of memory");
	pthread_mutex_init(&v->lock, NULL);
	progress_start(&v->bar, "verify", image->size);
	r = transfer_run(&t, err);
	progress_end(&v->bar);
	pthread_mutex_destroy(&v->lock);
	free(v->zero_buf);
	return r ? error_prefix(err, "verify of %s", image->name) : 0;
}

static void verify_show(const struct verify *v, const Vmdedup__Image *image, double seconds,
			bool json)
{
	char size[32];

	if (json) {
		json_show(json_pack("{s:s, s:I, s:I, s:I, s:I, s:b, s:f}", "name", image->name,
				    "bytes", (json_int_t)image->size, "blocks",
				    (json_int_t)v->blocks, "zero_bytes",
				    (json_int_t)v->zero_bytes, "problems",
				    (json_int_t)v->problems, "against_source", v->source != NULL,
				    "seconds", seconds));
		return;
	}
	printf("verified %s: %s, %llu blocks%s, %llu problem%s, %.2f s, %.0f MB/s\n", image->name,
	       size_to_text(image->size, size), (unsigned long long)v->blocks,
	       v->source ? " against the source" : "", (unsigned long long)v->problems,
	       v->problems == 1 ? "" : "s", seconds, image->size / seconds / 1e6);
}

int verify_run(struct cli *cli, const struct verb *verb, int argc, char **argv)
{
	struct verify v = { 0 };
	const char *against = NULL, *format = NULL;
	bool json = false;
	uint64_t version = 0, start = clock_mono_ns();
	const struct opt opts[] = {
		OPT_TEXT("against", "SOURCE", &against, "compare with it, byte for byte"),
		OPT_TEXT("format", "FORMAT", &format, "of SOURCE, instead of what its content says"),
		OPT_NUMBER("version", "N", &version, "that version instead of the head"),
		OPT_FLAG("json", &json, "print the summary as JSON"),
		OPT_END
	};
	Vmdedup__Image *image = NULL;
	struct connection cn = { 0 };
	struct error err = { 0 };
	int code, r;

	if (!cli_options(verb, opts, &argc, &argv, 1, 1, &code))
		return code;
	v.name = argv[0];
	r = cli_name_check(v.name, &err);
	if (!r && against) {
		v.source = source_open(against, format, &err);
		r = v.source ? 0 : err.code;
	}
	if (!r)
		r = connect_open(&cn, &cli->conf, &err);
	if (!r) {
		cli_catch_signals();
		r = cli_image_get(&cn, v.name, version, &image, &err);
		if (!r)
			r = verify(&cn, image, &v, &err);
		connect_close(&cn);
	}
	if (!r)
		verify_show(&v, image, (clock_mono_ns() - start) / 1e9, json);
	cli_image_free(image);
	source_close(v.source);
	if (r)
		return cli_fail(&err);
	return v.problems ? EXIT_BAD_CONTENT : EXIT_OK;
}
