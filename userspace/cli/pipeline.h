/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pipeline of an import. Workers, one a core, read chunks of the source, find the blocks of
 * zeros, and hash the others while they are in the core's cache; the caller's thread offers the
 * blocks to the push and builds the recipe, in order; workers then compress only the blocks that
 * turned out to be missing. All memory is in a fixed number of chunks.
 */
#ifndef VMDEDUP_CLI_PIPELINE_H
#define VMDEDUP_CLI_PIPELINE_H

#include "blockio/blockio.h"
#include "lib/cluster.h"

struct pipeline_stats {
	uint64_t data_bytes;  /* in blocks that are not all zeros */
	uint64_t data_blocks;
	uint64_t zero_bytes;
};

struct pipeline;
/* All that it names must outlive it. @threads 0: one a core. */
struct pipeline *pipeline_new(struct source *source, struct cluster *c, struct cluster_push *push,
			      struct recipe_builder *builder, unsigned int threads,
			      struct error *err);
/* To the end of the source: all blocks are offered, and given where missing. @progress gets the
 * bytes that are behind, and ends the work (-EINTR) when it returns false. */
int pipeline_run(struct pipeline *p, bool (*progress)(void *arg, uint64_t done), void *arg,
		 struct error *err);
void pipeline_stats(const struct pipeline *p, struct pipeline_stats *stats);
/* Stops the workers. The push must end before pipeline_free(): its blocks lie in the chunks. */
void pipeline_stop(struct pipeline *p);
void pipeline_free(struct pipeline *p);

#endif
