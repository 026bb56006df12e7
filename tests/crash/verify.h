/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a crash has left of a cache's disk, judged: is it a cache that is well, and does it hold
 * what was acknowledged? Reads volumes without a kernel: the records that recovery finds, the
 * overlays' bitmaps, the data in the slots, and below them the version that the record names.
 */
#ifndef VMDEDUP_TESTS_CRASH_VERIFY_H
#define VMDEDUP_TESTS_CRASH_VERIFY_H

#include <stdbool.h>
#include <stdint.h>
#include "record.h"
#include "../stamps.h"

struct version_block {
	uint64_t version;
	const uint8_t *data;
	struct version_block *older;
};

/* A volume of the load, and its image's versions as the agent has them. */
struct load_volume {
	const char *name;
	struct stamps stamps;
	uint64_t every;		/* operations between acknowledgements */
	uint64_t nr_blocks;
	uint8_t *base;		/* version 1 */
	struct version_block **versions; /* by block, newest first */
	/* As recovered. */
	bool found;
	struct dedup_volume_rec rec;
	uint64_t version;
	uint32_t (*overlays)[2];	/* by block: slots + 1, upper first */
};

struct verifier {
	struct load_volume *volumes;
	unsigned int nr_volumes;
	uint32_t block_bytes;
	struct dedup_slot_rec *slots;	/* of the crash being judged */
	uint64_t nr_slots;
	/* Figures. */
	uint64_t sectors;
	uint64_t dirty_sectors;		/* of them in overlays */
	uint64_t clean;
	uint64_t replayed;		/* appends */
};

/* @dir: with NAME.base and NAME.N. @stamps are set up here. -1: errno says why. */
int load_volume_init(struct load_volume *v, const char *dir, const char *name, uint64_t seed,
		     uint64_t count, uint64_t every, bool zeros, uint32_t block_bytes);

/*
 * Judges the image of @bytes at @image, which is also the file @path. The volumes' stamps know
 * what was acknowledged. @text gets the first thing that is wrong. The image is opened as the
 * kernel would open it in the end, and has the next incarnation's writes then.
 */
bool verify_crash(struct verifier *v, const char *path, uint8_t *image, uint64_t bytes, char *text,
		  size_t text_size);

#endif
