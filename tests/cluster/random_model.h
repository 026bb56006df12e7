/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What random_ops knows of the images of its fleet: the head, the versions and the volume of each,
 * as numbers that stand for sectors' contents (content_fill()). And its random numbers.
 */
#ifndef VMDEDUP_TESTS_RANDOM_MODEL_H
#define VMDEDUP_TESTS_RANDOM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_IMAGES   24
#define MAX_VERSIONS 5
#define MAX_SECTORS  4800 /* 600 blocks: a recipe of two levels */
#define DETACHED     -1

struct version {
	uint64_t number;
	uint32_t *ids;
};

struct image {
	bool used;
	char name[32];
	uint64_t sectors;
	uint32_t *head; /* as committed */
	uint32_t *live; /* what the guest reads, while attached */
	int host;
	uint64_t volume;
	struct version versions[MAX_VERSIONS];
	size_t nr_versions;
	uint64_t last_version; /* the highest seen */
};

struct model {
	struct image images[MAX_IMAGES];
	unsigned int names; /* given out */
	uint64_t rng;
};

uint64_t rnd(struct model *m, uint64_t n); /* below @n */
bool chance(struct model *m, unsigned int per_cent);

uint32_t *ids_copy(const uint32_t *ids, uint64_t sectors);
/* Mostly of few contents, so that blocks meet again; some new, some zeros. */
void ids_random(struct model *m, uint32_t *ids, uint64_t first, uint64_t count);

bool is_attached(const struct image *im);
bool is_detached(const struct image *im);
/* @fits NULL: any. NULL: there is none. */
struct image *some_image(struct model *m, bool (*fits)(const struct image *im));
struct image *free_image(struct model *m);
void image_init(struct model *m, struct image *im, uint64_t sectors); /* with another name */
void image_drop(struct image *im);
void image_pushed(struct image *im);   /* what was written is the head */
void image_detached(struct image *im); /* only the head is left */
void image_kept(struct image *im, uint64_t number); /* the head, as a version; there must be room */

#endif
