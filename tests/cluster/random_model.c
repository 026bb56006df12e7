// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "random_model.h"
#include "world.h"

uint64_t rnd(struct model *m, uint64_t n)
{
	m->rng ^= m->rng << 13;
	m->rng ^= m->rng >> 7;
	m->rng ^= m->rng << 17;
	return (m->rng * 0x2545f4914f6cdd1dULL >> 16) % n;
}

bool chance(struct model *m, unsigned int per_cent)
{
	return rnd(m, 100) < per_cent;
}

uint32_t *ids_copy(const uint32_t *ids, uint64_t sectors)
{
	uint32_t *copy = malloc(sectors * sizeof(*copy));

	if (!copy)
		die("out of memory");
	memcpy(copy, ids, sectors * sizeof(*copy));
	return copy;
}

void ids_random(struct model *m, uint32_t *ids, uint64_t first, uint64_t count)
{
	uint32_t id = 0;

	for (uint64_t s = first; s < first + count; s++) {
		if (s == first || !(s % 8) || chance(m, 2))
			id = chance(m, 20) ? 0 : chance(m, 70) ? 1 + (uint32_t)rnd(m, 150) :
			     (uint32_t)rnd(m, UINT32_MAX);
		ids[s] = id;
	}
}

struct image *some_image(struct model *m, bool (*fits)(const struct image *im))
{
	size_t n = rnd(m, MAX_IMAGES);

	for (size_t i = 0; i < MAX_IMAGES; i++) {
		struct image *im = &m->images[(n + i) % MAX_IMAGES];

		if (im->used && (!fits || fits(im)))
			return im;
	}
	return NULL;
}

struct image *free_image(struct model *m)
{
	for (size_t i = 0; i < MAX_IMAGES; i++)
		if (!m->images[i].used)
			return &m->images[i];
	return NULL;
}

bool is_attached(const struct image *im)
{
	return im->host != DETACHED;
}

bool is_detached(const struct image *im)
{
	return im->host == DETACHED;
}

void image_init(struct model *m, struct image *im, uint64_t sectors)
{
	memset(im, 0, sizeof(*im));
	im->used = true;
	im->host = DETACHED;
	im->sectors = sectors;
	snprintf(im->name, sizeof(im->name), "image-%u", m->names++);
}

void image_drop(struct image *im)
{
	for (size_t i = 0; i < im->nr_versions; i++)
		free(im->versions[i].ids);
	free(im->head);
	free(im->live);
	memset(im, 0, sizeof(*im));
}

void image_pushed(struct image *im)
{
	memcpy(im->head, im->live, im->sectors * sizeof(*im->head));
}

void image_detached(struct image *im)
{
	free(im->live);
	im->live = NULL;
	im->host = DETACHED;
}

void image_kept(struct image *im, uint64_t number)
{
	im->last_version = number;
	im->versions[im->nr_versions].number = number;
	im->versions[im->nr_versions++].ids = ids_copy(im->head, im->sectors);
}
